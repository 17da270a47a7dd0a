//! Byte ranges: what a client asks for, what a response holds, and the frame around several.
//!
//! Follows RFC 9110 section 14 and 15.3.7.

use std::fmt;

use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method};

use super::fields;

/// Ranges of one request; a request with more gets the whole.
pub const RANGES_MAX: usize = 16;

/// Bytes `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// First byte, from 0.
    pub first: u64,
    /// Last byte.
    pub last: u64,
}

impl ByteRange {
    /// How many bytes; at least one.
    pub fn length(self) -> u64 {
        self.last - self.first + 1
    }

    /// The byte after the last.
    pub fn end(self) -> u64 {
        self.last + 1
    }
}

/// One range as it was asked for, before the length is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spec {
    /// `9-`.
    From(u64),
    /// `0-9`.
    FromTo(u64, u64),
    /// `-9`.
    Last(u64),
}

impl Spec {
    /// What it is of a representation of this length; `None` when it is outside.
    pub fn within(self, length: u64) -> Option<ByteRange> {
        let end = length.checked_sub(1)?;
        match self {
            Self::From(first) => (first <= end).then_some(ByteRange { first, last: end }),
            Self::FromTo(first, last) => (first <= end).then_some(ByteRange { first, last: last.min(end) }),
            Self::Last(0) => None,
            Self::Last(count) => Some(ByteRange { first: length.saturating_sub(count), last: end }),
        }
    }
}

/// The ranges of a request; `None` when there are none, or none that count: the field is then ignored.
pub fn requested(method: &Method, request: &HeaderMap) -> Option<Vec<Spec>> {
    let mut values = request.get_all(RANGE).into_iter();
    let value = values.next().filter(|_| *method == Method::GET)?;
    if values.next().is_some() {
        return None;
    }
    parse(value.as_bytes())
}

/// A Range field (RFC 9110 section 14.1.2). `None` when it is malformed, of another unit, or has too many ranges.
pub fn parse(value: &[u8]) -> Option<Vec<Spec>> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let (unit, set) = text.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut specs = Vec::new();
    for member in set.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|member| !member.is_empty()) {
        if specs.len() == RANGES_MAX {
            return None;
        }
        specs.push(spec(member)?);
    }
    (!specs.is_empty()).then_some(specs)
}

fn spec(member: &str) -> Option<Spec> {
    let (first, last) = member.split_once('-')?;
    match (first, last) {
        ("", last) => Some(Spec::Last(number(last)?)),
        (first, "") => Some(Spec::From(number(first)?)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Spec::FromTo(first, last))
        }
    }
}

/// Digits; more than fits is the most that fits.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// What a request gets of a representation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it, as 200.
    Whole,
    /// These, as 206: one as it is, several as `multipart/byteranges` in the order asked for. Never empty.
    Ranges(Vec<ByteRange>),
    /// 416 with `Content-Range: bytes */length`.
    Unsatisfiable,
}

/// What ranges are of a representation of this length. Overlapping and adjacent ones are joined; where all of them
/// together are more than the whole, the whole it is (RFC 9110 section 14.2, 17.15).
pub fn resolve(specs: &[Spec], length: u64) -> Part {
    let ranges: Vec<ByteRange> = specs.iter().filter_map(|spec| spec.within(length)).collect();
    if ranges.is_empty() {
        return Part::Unsatisfiable;
    }
    let asked: u128 = ranges.iter().map(|range| u128::from(range.length())).sum();
    if ranges.len() > 1 && asked > u128::from(length) {
        return Part::Whole;
    }
    Part::Ranges(joined(ranges))
}

/// Ranges of which none overlaps or touches another; each joined one stands where its first member stood.
fn joined(ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    let mut joined: Vec<ByteRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let mut range = range;
        let mut place = joined.len();
        let mut at = 0;
        while at < joined.len() {
            if !touches(joined[at], range) {
                at += 1;
                continue;
            }
            let other = joined.remove(at);
            range = ByteRange { first: range.first.min(other.first), last: range.last.max(other.last) };
            place = place.min(at);
            // A larger range may touch one that it did not before.
            at = 0;
        }
        joined.insert(place.min(joined.len()), range);
    }
    joined
}

fn touches(one: ByteRange, other: ByteRange) -> bool {
    one.first <= other.last.saturating_add(1) && other.first <= one.last.saturating_add(1)
}

/// A Content-Range field (RFC 9110 section 14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentRange {
    /// Of a 206.
    Bytes {
        /// What is there.
        range: ByteRange,
        /// Length of the whole; `None` (`*`) when it is not known.
        complete: Option<u64>,
    },
    /// Of a 416: the length of the whole.
    Unsatisfied(u64),
}

impl ContentRange {
    /// The one in a response; `None` when there is none, several or none that is valid.
    pub fn of(response: &HeaderMap) -> Option<Self> {
        let mut values = response.get_all(CONTENT_RANGE).into_iter();
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        Self::parse(value.as_bytes())
    }

    /// Reads one; `None` when it is invalid.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.trim();
        let (unit, rest) = text.split_once(' ')?;
        let (range, complete) = rest.trim_start().split_once('/')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        if range == "*" {
            return exact(complete).map(Self::Unsatisfied);
        }
        let (first, last) = range.split_once('-')?;
        let range = ByteRange { first: exact(first)?, last: exact(last)? };
        let complete = match complete {
            "*" => None,
            digits => Some(exact(digits)?),
        };
        let is_valid = range.first <= range.last && range.last < u64::MAX && complete.is_none_or(|complete| range.last < complete);
        is_valid.then_some(Self::Bytes { range, complete })
    }

    /// As a field's value.
    pub fn to_value(self) -> HeaderValue {
        // Digits and signs are always a valid value.
        HeaderValue::try_from(self.to_string()).unwrap_or(HeaderValue::from_static("bytes */*"))
    }
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { range, complete: Some(complete) } => write!(f, "bytes {}-{}/{complete}", range.first, range.last),
            Self::Bytes { range, complete: None } => write!(f, "bytes {}-{}/*", range.first, range.last),
            Self::Unsatisfied(complete) => write!(f, "bytes */{complete}"),
        }
    }
}

/// Digits that fit.
fn exact(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The frame of a `multipart/byteranges` body (RFC 9110 section 14.6): before each part its [`head`](Self::head), after
/// the last the [`tail`](Self::tail).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multipart {
    boundary: String,
    part_type: String,
    ranges: Vec<ByteRange>,
    complete: u64,
}

impl Multipart {
    /// A frame around these ranges of a representation of `complete` bytes. The boundary must not occur in the body:
    /// the caller makes it from something random.
    pub fn new(boundary: &str, content_type: Option<&HeaderValue>, ranges: Vec<ByteRange>, complete: u64) -> Self {
        let boundary: String = boundary.chars().filter(char::is_ascii_alphanumeric).take(BOUNDARY_BYTES_MAX).collect();
        let kind = content_type.and_then(|kind| kind.to_str().ok());
        let part_type = kind.map(|kind| format!("Content-Type: {kind}\r\n")).unwrap_or_default();
        Self { boundary, part_type, ranges, complete }
    }

    /// The ranges in order.
    pub fn ranges(&self) -> &[ByteRange] {
        &self.ranges
    }

    /// What stands before a range's bytes.
    pub fn head(&self, number: usize) -> String {
        let Some(range) = self.ranges.get(number) else { return String::new() };
        let start = if number == 0 { "" } else { "\r\n" };
        let content_range = ContentRange::Bytes { range: *range, complete: Some(self.complete) };
        format!("{start}--{}\r\n{}Content-Range: {content_range}\r\n\r\n", self.boundary, self.part_type)
    }

    /// What stands after the last range's bytes.
    pub fn tail(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }

    /// Length of the whole body.
    pub fn content_length(&self) -> u64 {
        let heads: u64 = (0..self.ranges.len()).map(|number| self.head(number).len() as u64).sum();
        let bodies: u64 = self.ranges.iter().map(|range| range.length()).fold(0, u64::saturating_add);
        heads.saturating_add(bodies).saturating_add(self.tail().len() as u64)
    }

    /// The body's Content-Type.
    pub fn content_type(&self) -> HeaderValue {
        // Letters and digits are always a valid value.
        let value = format!("multipart/byteranges; boundary={}", self.boundary);
        HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("multipart/byteranges"))
    }
}

/// Bytes of a boundary (RFC 2046 section 5.1.1).
const BOUNDARY_BYTES_MAX: usize = 70;

/// Whether a response says that its bytes can be asked for in ranges.
pub fn is_rangeable(response: &HeaderMap) -> bool {
    !fields::list(response, http::header::ACCEPT_RANGES).any(|unit| unit.eq_ignore_ascii_case(b"none"))
}
