//! Byte ranges: those that a request names, those that a response has, and the framing of several.
//!
//! Follows RFC 9110 sections 14 and 15.3.7.

use std::fmt;

use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method};

use crate::fields;

/// Most ranges of one request; a request with more gets the whole representation.
pub const RANGES_MAX: usize = 16;

/// The bytes from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// Offset of the first byte, from 0.
    pub first: u64,
    /// Offset of the last byte.
    pub last: u64,
}

impl ByteRange {
    /// The number of bytes, at least one.
    pub fn length(self) -> u64 {
        self.last - self.first + 1
    }

    /// The offset after the last byte.
    pub fn end(self) -> u64 {
        self.last + 1
    }
}

/// One range of a request, before the length of the representation is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RangeSpec {
    /// `9-`.
    From(u64),
    /// `0-9`.
    FromTo(u64, u64),
    /// `-9`.
    Last(u64),
}

impl RangeSpec {
    /// The bytes of a representation of this length; `None` when the range is outside.
    pub fn within(self, length: u64) -> Option<ByteRange> {
        let end = length.checked_sub(1)?;
        match self {
            Self::From(first) => (first <= end).then_some(ByteRange { first, last: end }),
            Self::FromTo(first, last) => (first <= end).then_some(ByteRange {
                first,
                last: last.min(end),
            }),
            Self::Last(0) => None,
            Self::Last(count) => Some(ByteRange {
                first: length.saturating_sub(count),
                last: end,
            }),
        }
    }
}

/// The ranges of a request; `None` when there is no valid `Range` or it must be ignored.
pub fn requested(method: &Method, request: &HeaderMap) -> Option<Vec<RangeSpec>> {
    let mut values = request.get_all(RANGE).into_iter();
    let value = values.next().filter(|_| *method == Method::GET)?;
    if values.next().is_some() {
        return None;
    }
    parse(value.as_bytes())
}

/// Parses a `Range` field (RFC 9110 section 14.1.2); `None` when it is malformed, has another unit
/// or too many ranges.
pub fn parse(value: &[u8]) -> Option<Vec<RangeSpec>> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let (unit, set) = text.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut specs = Vec::new();
    for member in set
        .split(',')
        .map(|member| member.trim_matches([' ', '\t']))
        .filter(|member| !member.is_empty())
    {
        if specs.len() == RANGES_MAX {
            return None;
        }
        specs.push(spec(member)?);
    }
    (!specs.is_empty()).then_some(specs)
}

fn spec(member: &str) -> Option<RangeSpec> {
    let (first, last) = member.split_once('-')?;
    match (first, last) {
        ("", last) => Some(RangeSpec::Last(number(last)?)),
        (first, "") => Some(RangeSpec::From(number(first)?)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(RangeSpec::FromTo(first, last))
        }
    }
}

/// Parses digits; a number that overflows counts as the largest one.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The part of a representation that a request gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The whole, as 200.
    Whole,
    /// These ranges, as 206: a single one as it is, several as `multipart/byteranges` in the order
    /// of the request. Never empty.
    Ranges(Vec<ByteRange>),
    /// None, as 416 with `Content-Range: bytes */length`.
    Unsatisfiable,
}

/// The part of a representation of this length that the ranges of a request select. Overlapping and
/// adjacent ranges are joined. Ranges that have more bytes together than the whole select the whole
/// (RFC 9110 sections 14.2 and 17.15).
pub fn resolve(specs: &[RangeSpec], length: u64) -> Part {
    // A suffix of an empty representation is satisfiable (RFC 9110 section 14.1.2), but
    // Content-Range cannot express it, so the answer is the whole.
    if length == 0
        && specs
            .iter()
            .any(|spec| matches!(spec, RangeSpec::Last(count) if *count > 0))
    {
        return Part::Whole;
    }
    let ranges: Vec<ByteRange> = specs
        .iter()
        .filter_map(|spec| spec.within(length))
        .collect();
    if ranges.is_empty() {
        return Part::Unsatisfiable;
    }
    let asked: u128 = ranges.iter().map(|range| u128::from(range.length())).sum();
    if ranges.len() > 1 && asked > u128::from(length) {
        return Part::Whole;
    }
    Part::Ranges(joined(ranges))
}

/// Joins overlapping and adjacent ranges; a joined range takes the place of its first member.
fn joined(ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    let mut joined: Vec<ByteRange> = Vec::with_capacity(ranges.len());
    for mut range in ranges {
        let mut position = joined.len();
        // Each join makes the range larger, so it may touch a range that it did not touch before.
        while let Some(at) = joined.iter().position(|other| touches(*other, range)) {
            let other = joined.remove(at);
            range = ByteRange {
                first: range.first.min(other.first),
                last: range.last.max(other.last),
            };
            position = position.min(at);
        }
        joined.insert(position.min(joined.len()), range);
    }
    joined
}

fn touches(one: ByteRange, other: ByteRange) -> bool {
    one.first <= other.last.saturating_add(1) && other.first <= one.last.saturating_add(1)
}

/// A `Content-Range` field (RFC 9110 section 14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentRange {
    /// The field of a 206.
    Bytes {
        /// The bytes in the response.
        range: ByteRange,
        /// Length of the whole representation; `None` (`*`) when it is unknown.
        complete: Option<u64>,
    },
    /// The field of a 416, with the length of the whole representation.
    Unsatisfied(u64),
}

impl ContentRange {
    /// The field of a response; `None` when it is missing, invalid or there more than once.
    pub fn of(response: &HeaderMap) -> Option<Self> {
        let mut values = response.get_all(CONTENT_RANGE).into_iter();
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        Self::parse(value.as_bytes())
    }

    /// Parses a value; `None` when it is invalid.
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
        let range = ByteRange {
            first: exact(first)?,
            last: exact(last)?,
        };
        let complete = match complete {
            "*" => None,
            digits => Some(exact(digits)?),
        };
        let is_valid = range.first <= range.last
            && range.last < u64::MAX
            && complete.is_none_or(|complete| range.last < complete);
        is_valid.then_some(Self::Bytes { range, complete })
    }

    /// The field value.
    pub fn to_value(self) -> HeaderValue {
        // Digits and punctuation are always a valid value.
        HeaderValue::try_from(self.to_string()).unwrap_or(HeaderValue::from_static("bytes */*"))
    }
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes {
                range,
                complete: Some(complete),
            } => write!(f, "bytes {}-{}/{complete}", range.first, range.last),
            Self::Bytes {
                range,
                complete: None,
            } => write!(f, "bytes {}-{}/*", range.first, range.last),
            Self::Unsatisfied(complete) => write!(f, "bytes */{complete}"),
        }
    }
}

/// Parses digits; `None` when the number overflows.
fn exact(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// The framing of a `multipart/byteranges` body (RFC 9110 section 14.6): a [`head`](Self::head)
/// before each part, and the [`tail`](Self::tail) after the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multipart {
    boundary: String,
    part_type: String,
    ranges: Vec<ByteRange>,
    complete: u64,
}

impl Multipart {
    /// The framing of these ranges of a representation of `complete` bytes. The boundary must not
    /// occur in the body, so callers derive it from random bytes.
    pub fn new(
        boundary: &str,
        content_type: Option<&HeaderValue>,
        ranges: Vec<ByteRange>,
        complete: u64,
    ) -> Self {
        let boundary: String = boundary
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(BOUNDARY_BYTES_MAX)
            .collect();
        let kind = content_type.and_then(|kind| kind.to_str().ok());
        let part_type = kind
            .map(|kind| format!("Content-Type: {kind}\r\n"))
            .unwrap_or_default();
        Self {
            boundary,
            part_type,
            ranges,
            complete,
        }
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> &[ByteRange] {
        &self.ranges
    }

    /// The text before the bytes of a range.
    pub fn head(&self, number: usize) -> String {
        let Some(range) = self.ranges.get(number) else {
            return String::new();
        };
        let start = if number == 0 { "" } else { "\r\n" };
        let content_range = ContentRange::Bytes {
            range: *range,
            complete: Some(self.complete),
        };
        format!(
            "{start}--{}\r\n{}Content-Range: {content_range}\r\n\r\n",
            self.boundary, self.part_type
        )
    }

    /// The text after the bytes of the last range.
    pub fn tail(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }

    /// Length of the whole body.
    pub fn content_length(&self) -> u64 {
        let heads: u64 = (0..self.ranges.len())
            .map(|number| self.head(number).len() as u64)
            .sum();
        let bodies: u64 = self
            .ranges
            .iter()
            .map(|range| range.length())
            .fold(0, u64::saturating_add);
        heads
            .saturating_add(bodies)
            .saturating_add(self.tail().len() as u64)
    }

    /// The body's Content-Type.
    pub fn content_type(&self) -> HeaderValue {
        // Letters and digits are always a valid value.
        let value = format!("multipart/byteranges; boundary={}", self.boundary);
        HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("multipart/byteranges"))
    }
}

/// Longest boundary, in bytes (RFC 2046 section 5.1.1).
const BOUNDARY_BYTES_MAX: usize = 70;

/// Whether a response permits range requests: its `Accept-Ranges` is not `none`.
pub fn is_rangeable(response: &HeaderMap) -> bool {
    !fields::list(response, http::header::ACCEPT_RANGES)
        .any(|unit| unit.eq_ignore_ascii_case(b"none"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, map};

    fn range(first: u64, last: u64) -> ByteRange {
        ByteRange { first, last }
    }

    /// What a field gets of ten bytes, as text; `-` where it is ignored.
    fn of_ten(value: &str) -> String {
        let Some(specs) = parse(value.as_bytes()) else {
            return "-".to_owned();
        };
        match resolve(&specs, 10) {
            Part::Whole => "whole".to_owned(),
            Part::Unsatisfiable => "416".to_owned(),
            Part::Ranges(ranges) => ranges
                .iter()
                .map(|r| format!("{}-{}", r.first, r.last))
                .collect::<Vec<_>>()
                .join(","),
        }
    }

    #[test]
    fn ranges_of_ten_bytes() {
        let table = [
            // RFC 9110 section 14.1.2: single, open and suffix ranges.
            ("bytes=0-0", "0-0"),
            ("bytes=2-5", "2-5"),
            ("Bytes=2-5", "2-5"),
            ("bytes=5-", "5-9"),
            ("bytes=0-", "0-9"),
            ("bytes=5-100", "5-9"),
            ("bytes=0-18446744073709551615", "0-9"),
            ("bytes=0-99999999999999999999999", "0-9"),
            ("bytes=-3", "7-9"),
            ("bytes=-10", "0-9"),
            ("bytes=-11", "0-9"),
            ("bytes=-99999999999999999999999", "0-9"),
            // RFC 9110 section 15.5.17: no range overlaps the representation.
            ("bytes=10-", "416"),
            ("bytes=10-20", "416"),
            ("bytes=-0", "416"),
            ("bytes=99999999999999999999999-", "416"),
            ("bytes=10-, 11-", "416"),
            // RFC 9110 section 14.2: an invalid field is ignored.
            ("bytes", "-"),
            ("bytes=", "-"),
            ("bytes=,", "-"),
            ("bytes=-", "-"),
            ("bytes=5-2", "-"),
            ("bytes=a-5", "-"),
            ("bytes=1-b", "-"),
            ("bytes=+1-5", "-"),
            ("bytes=1--5", "-"),
            ("bytes=1 -5", "-"),
            ("bytes=0x1-5", "-"),
            ("bytes=5", "-"),
            ("bytes=1-2, x", "-"),
            ("lines=1-2", "-"),
            ("bytes =1-2", "-"),
            // RFC 9110 sections 14.2 and 15.3.7.2: several ranges, in the order requested;
            // unsatisfiable ones are left out, overlapping and adjacent ones are joined.
            ("bytes=0-0,-1", "0-0,9-9"),
            ("bytes= 0-1 ,\t4-5 ", "0-1,4-5"),
            ("bytes=8-9,0-1", "8-9,0-1"),
            ("bytes=0-1,,20-", "0-1"),
            ("bytes=0-3,2-5", "0-5"),
            ("bytes=0-1,2-3", "0-3"),
            ("bytes=6-7,0-1,1-3", "6-7,0-3"),
            ("bytes=6-7,0-1,2-5", "0-7"),
            ("bytes=0-1,0-1", "0-1"),
            ("bytes=0-9,0-0", "whole"),
            ("bytes=0-,0-", "whole"),
        ];
        for (value, expected) in table {
            assert_eq!(of_ten(value), expected, "{value}");
        }
    }

    #[test]
    fn ranges_are_bounded() {
        // RFC 9110 section 14.2: a server may ignore a field with many small ranges.
        let many = |count: usize| {
            format!(
                "bytes={}",
                (0..count)
                    .map(|n| format!("{n}-{n}"))
                    .collect::<Vec<_>>()
                    .join(",")
            )
        };
        assert_eq!(
            parse(many(RANGES_MAX).as_bytes()).map(|s| s.len()),
            Some(RANGES_MAX)
        );
        assert_eq!(parse(many(RANGES_MAX + 1).as_bytes()), None);
    }

    #[test]
    fn ranges_count_for_get_only() {
        // RFC 9110 section 14.2: range handling is defined for GET alone.
        let request = map(&["range: bytes=0-1"]);
        assert_eq!(
            requested(&Method::GET, &request),
            Some(vec![RangeSpec::FromTo(0, 1)])
        );
        for method in [Method::HEAD, Method::POST, Method::PUT, Method::DELETE] {
            assert_eq!(requested(&method, &request), None, "{method}");
        }
        assert_eq!(
            requested(
                &Method::GET,
                &map(&["range: bytes=0-1", "range: bytes=3-4"])
            ),
            None,
            "two lines are malformed"
        );
        assert_eq!(requested(&Method::GET, &map(&[])), None);
    }

    #[test]
    fn nothing_of_nothing() {
        for spec in [
            RangeSpec::From(0),
            RangeSpec::FromTo(0, 5),
            RangeSpec::Last(5),
            RangeSpec::Last(0),
        ] {
            assert_eq!(spec.within(0), None, "{spec:?}");
        }
        let table = [
            ("bytes=-5", Part::Whole),
            ("bytes=-500,0-1", Part::Whole),
            ("bytes=0-0,-1", Part::Whole),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=0-", Part::Unsatisfiable),
            ("bytes=0-0,5-", Part::Unsatisfiable),
        ];
        for (value, expected) in table {
            assert_eq!(
                resolve(&parse(value.as_bytes()).expect("ranges"), 0),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn an_origin_may_refuse_ranges() {
        // RFC 9110 section 14.3.
        assert!(is_rangeable(&map(&[])) && is_rangeable(&map(&["accept-ranges: bytes"])));
        assert!(!is_rangeable(&map(&["accept-ranges: None"])));
    }

    #[test]
    fn content_range_reads_and_writes() {
        // RFC 9110 section 14.4.
        let valid = [
            (
                "bytes 0-4/10",
                ContentRange::Bytes {
                    range: range(0, 4),
                    complete: Some(10),
                },
            ),
            (
                "bytes 4-9/*",
                ContentRange::Bytes {
                    range: range(4, 9),
                    complete: None,
                },
            ),
            ("bytes */10", ContentRange::Unsatisfied(10)),
            ("bytes */0", ContentRange::Unsatisfied(0)),
        ];
        for (text, expected) in valid {
            assert_eq!(
                ContentRange::parse(text.as_bytes()),
                Some(expected),
                "{text}"
            );
            assert_eq!(expected.to_value(), text);
        }
        let invalid = [
            "",
            "bytes",
            "bytes 0-4",
            "bytes 4-0/10",
            "bytes 0-10/10",
            "bytes */*",
            "bytes -4/10",
            "bytes 0-/10",
            "bytes 0-+4/10",
            "bytes=0-4/10",
            "lines 0-4/10",
            "bytes 0-4/",
            "bytes 0-18446744073709551615/*",
            "bytes 0-99999999999999999999/*",
        ];
        for text in invalid {
            assert_eq!(ContentRange::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(
            ContentRange::of(&map(&[
                "content-range: bytes */1",
                "content-range: bytes */1"
            ])),
            None
        );
    }

    /// The whole body of a frame around these bytes.
    fn framed(frame: &Multipart, body: &[u8]) -> Vec<u8> {
        let mut whole = Vec::new();
        for (number, range) in frame.ranges().iter().enumerate() {
            whole.extend_from_slice(frame.head(number).as_bytes());
            whole.extend_from_slice(&body[range.first as usize..range.end() as usize]);
        }
        whole.extend_from_slice(frame.tail().as_bytes());
        whole
    }

    #[test]
    fn parts_are_framed() {
        // RFC 9110 section 14.6.
        let kind = HeaderValue::from_static("text/plain");
        let frame = Multipart::new(
            "b-o u\r\nnd",
            Some(&kind),
            vec![range(8, 9), range(0, 1)],
            10,
        );
        let expected = "--bound\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\n89\
                        \r\n--bound\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\
                        \r\n--bound--\r\n";
        assert_eq!(
            String::from_utf8(framed(&frame, b"0123456789")).expect("text"),
            expected
        );
        assert_eq!(frame.content_type(), "multipart/byteranges; boundary=bound");
        assert_eq!(frame.head(2), "");
        let bare = Multipart::new("x", None, vec![range(0, 0)], 10);
        assert_eq!(bare.head(0), "--x\r\nContent-Range: bytes 0-0/10\r\n\r\n");
    }

    prop_compose! {
        fn specs()(found in proptest::collection::vec(
            prop_oneof![
                (0u64..120).prop_map(RangeSpec::From),
                (0u64..120, 0u64..60).prop_map(|(first, more)| RangeSpec::FromTo(first, first + more)),
                (0u64..120).prop_map(RangeSpec::Last),
                Just(RangeSpec::From(u64::MAX)),
                Just(RangeSpec::FromTo(0, u64::MAX)),
                Just(RangeSpec::Last(u64::MAX)),
            ], 1..=RANGES_MAX)) -> Vec<RangeSpec> { found }
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn no_value_panics(value in testing::pieces(&["bytes=", "bytes ", "0-", "-5", "3-9", "*/", "/10", "7"]), other in testing::value(), length in any::<u64>()) {
            for value in [&value, &other] {
                let _ = ContentRange::parse(value.as_bytes());
                if let Some(specs) = parse(value.as_bytes()) {
                    let _ = resolve(&specs, length);
                }
            }
        }

        #[test]
        fn ranges_hold_what_was_asked_for_and_no_more(specs in specs(), length in 0u64..100) {
            let asked = |at: u64| specs.iter().filter_map(|s| s.within(length)).any(|r| r.first <= at && at <= r.last);
            match resolve(&specs, length) {
                Part::Unsatisfiable => prop_assert!((0..length).all(|at| !asked(at))),
                Part::Whole => prop_assert!(specs.len() > 1 || length == 0),
                Part::Ranges(ranges) => {
                    prop_assert!(!ranges.is_empty());
                    for at in 0..length {
                        let times = ranges.iter().filter(|r| r.first <= at && at <= r.last).count();
                        prop_assert_eq!(times, usize::from(asked(at)), "each byte once, byte {}", at);
                    }
                    prop_assert!(ranges.iter().all(|r| r.first <= r.last && r.last < length));
                    prop_assert!(ranges.iter().map(|r| r.length()).sum::<u64>() <= length);
                }
            }
        }

        #[test]
        fn lengths_agree_with_the_frame(specs in specs(), body in proptest::collection::vec(any::<u8>(), 1..100), boundary in "[a-zA-Z0-9]{1,80}", kind in testing::value()) {
            let length = body.len() as u64;
            if let Part::Ranges(ranges) = resolve(&specs, length) {
                let frame = Multipart::new(&boundary, Some(&kind), ranges, length);
                prop_assert_eq!(framed(&frame, &body).len() as u64, frame.content_length());
            }
        }

        #[test]
        fn content_ranges_survive(first in any::<u64>(), more in any::<u64>(), beyond in proptest::option::of(1u64..1000)) {
            let last = first.saturating_add(more).min(u64::MAX - 1);
            let first = first.min(last);
            let complete = beyond.map(|b| last.saturating_add(b));
            let written = ContentRange::Bytes { range: ByteRange { first, last }, complete };
            prop_assert_eq!(ContentRange::parse(written.to_string().as_bytes()), Some(written));
        }
    }
}
