//! Which slices a client's range request asks the origin for, and which slices a 206 brings. Pure.
//!
//! Follows RFC 9110 sections 14 and 15.3.7.

use http::header::RANGE;
use http::{HeaderMap, HeaderValue, Method};

use crate::store::SLICE_BYTES;
use nearcast_http_rules::conditional;
use nearcast_http_rules::range::{self, ByteRange, ContentRange, Part, Spec};

/// Most bytes of several ranges, of a body too large to be stored, that are assembled from requests
/// for their slices. Larger requests go to the origin as the client made them: nothing would hold
/// such a fill back to the client's pace.
const ASSEMBLED_BYTES_MAX: u64 = 16 * SLICE;
/// Length of the largest body whose slices can be numbered.
const NUMBERED_BYTES_MAX: u64 = u32::MAX as u64 * SLICE;

const SLICE: u64 = SLICE_BYTES as u64;

/// The slices of an unknown representation that are requested first: those of a client's first
/// range.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WantedSlices {
    spec: Spec,
    /// Further requests may be needed: for other ranges, or for the whole where `If-Range` fails.
    pub(super) may_need_more: bool,
    /// It replaces a range that turned out to be outside the representation.
    is_second: bool,
}

/// A byte range of a representation that consists of whole slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SliceRange {
    pub(super) range: ByteRange,
    /// Complete length of the representation.
    pub(super) complete: u64,
    /// Bytes of the response's body before the range.
    pub(super) skip: u64,
}

impl WantedSlices {
    /// The slices of the first range; `None` when that is the whole.
    pub(crate) fn of(specs: &[Spec], has_if_range: bool) -> Option<Self> {
        let requested = *specs.first()?;
        let spec = match requested {
            Spec::From(0) => return None,
            // A range of no bytes cannot be requested; one byte brings the length.
            Spec::Last(0) => Spec::Last(1),
            other => other,
        };
        Some(Self {
            spec,
            may_need_more: has_if_range || specs.len() > 1 || spec != requested,
            is_second: false,
        })
    }

    /// The slices to request after a 416: those of the client's first range that is inside the length
    /// which the 416 states. `None` when there is none, or this one was such a replacement already.
    pub(super) fn after_unsatisfied(
        self,
        unsatisfied: &HeaderMap,
        client: &HeaderMap,
    ) -> Option<Self> {
        let Some(ContentRange::Unsatisfied(length)) = ContentRange::of(unsatisfied) else {
            return None;
        };
        let spec = range::requested(&Method::GET, client)?
            .into_iter()
            .find(|spec| spec.within(length).is_some())?;
        (!self.is_second && spec != self.spec).then_some(Self {
            spec,
            may_need_more: true,
            is_second: true,
        })
    }

    /// `Range` for whole slices. The alignment of a suffix range of unknown length is unknown, so
    /// that `SLICE - 1` extra bytes are requested.
    pub(super) fn field(self) -> HeaderMap {
        match self.spec {
            Spec::FromTo(first, last) => range_field(
                first / SLICE * SLICE,
                last.saturating_add(1).checked_next_multiple_of(SLICE),
            ),
            Spec::From(first) => range_field(first / SLICE * SLICE, None),
            Spec::Last(count) => {
                range_value(&format!("bytes=-{}", count.saturating_add(SLICE - 1)))
            }
        }
    }

    /// The whole slices in a 206 to [`field`](Self::field); `None` when the wanted range does not
    /// begin in them, or is not complete in them and further parts cannot be joined to them.
    pub(super) fn part(self, fields: &HeaderMap, is_joinable: bool) -> Option<SliceRange> {
        let Some(ContentRange::Bytes {
            range,
            complete: Some(complete),
        }) = ContentRange::of(fields)
        else {
            return None;
        };
        let first = range.first.checked_next_multiple_of(SLICE)?;
        let end = if range.end() == complete {
            complete
        } else {
            range.end() / SLICE * SLICE
        };
        let wanted = self.spec.within(complete);
        let has_start =
            first < end && wanted.is_none_or(|w| first <= w.first / SLICE * SLICE && w.first < end);
        let is_enough = !self.may_need_more && wanted.is_none_or(|w| w.end() <= end);
        let slices = SliceRange {
            range: ByteRange {
                first,
                last: end.checked_sub(1)?,
            },
            complete,
            skip: first - range.first,
        };
        (has_start && (is_enough || is_joinable || slices.is_whole())).then_some(slices)
    }

    /// Whether a 206 is the range that the client requested, whichever range was forwarded.
    pub(super) fn is_met_by(self, fields: &HeaderMap) -> bool {
        let Some(ContentRange::Bytes {
            range,
            complete: Some(complete),
        }) = ContentRange::of(fields)
        else {
            return false;
        };
        !self.may_need_more && self.spec.within(complete) == Some(range)
    }
}

impl SliceRange {
    /// The whole representation, where a 206 carries it: the same as a 200 (RFC 9110 section
    /// 15.3.7.3).
    pub(super) fn of_whole(fields: &HeaderMap) -> Option<Self> {
        let Some(ContentRange::Bytes {
            range,
            complete: Some(complete),
        }) = ContentRange::of(fields)
        else {
            return None;
        };
        let slices = Self {
            range,
            complete,
            skip: 0,
        };
        slices.is_whole().then_some(slices)
    }

    pub(super) fn is_whole(self) -> bool {
        self.range.first == 0 && self.range.end() == self.complete
    }
}

/// Whether several ranges of a body that is too large to be stored can be assembled from slices that
/// are requested one range at a time. Many origins answer a request for several ranges with the
/// whole.
pub(super) fn can_be_assembled(client: &HeaderMap, part: &HeaderMap, complete: u64) -> bool {
    let specs = range::requested(&Method::GET, client)
        .filter(|specs| specs.len() > 1)
        .unwrap_or_default();
    let bytes = match range::resolve(&specs, complete) {
        Part::Ranges(ranges) => ranges
            .iter()
            .map(|range| range.length())
            .fold(0, u64::saturating_add),
        Part::Whole | Part::Unsatisfiable => return false,
    };
    bytes <= ASSEMBLED_BYTES_MAX
        && complete <= NUMBERED_BYTES_MAX
        && conditional::if_range_holds(client, part)
}

/// `Range` for bytes from `first` up to `end`.
pub(super) fn range_field(first: u64, end: Option<u64>) -> HeaderMap {
    match end {
        Some(end) => range_value(&format!("bytes={first}-{}", end.saturating_sub(1))),
        None => range_value(&format!("bytes={first}-")),
    }
}

fn range_value(text: &str) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert(
        RANGE,
        HeaderValue::try_from(text).expect("digits are valid in a field"),
    );
    fields
}
