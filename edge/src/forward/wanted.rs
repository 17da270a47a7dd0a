//! Which slices a client's range request asks the origin for, and which slices a 206 brings. Pure.
//!
//! Follows RFC 9110 sections 14 and 15.3.7.

use http::header::RANGE;
use http::{HeaderMap, HeaderValue, Method};

use nearcast_http_rules::conditional;
use nearcast_http_rules::range::{self, ByteRange, ContentRange, Part, RangeSpec};
use nearcast_store::SLICE_BYTES;

/// Most bytes of several ranges, of a body too large to be stored, that are assembled from requests
/// for their slices. Larger requests go to the origin as the client made them: nothing would hold
/// such a fill back to the client's pace.
const ASSEMBLED_BYTES_MAX: u64 = 16 * SLICE;
/// Length of the largest body whose slices can be numbered.
const NUMBERED_BYTES_MAX: u64 = u32::MAX as u64 * SLICE;

const SLICE: u64 = SLICE_BYTES as u64;

/// The slices of an unknown representation that are requested first: those of a client's first
/// range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WantedSlices {
    spec: RangeSpec,
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
    pub(crate) fn of(specs: &[RangeSpec], has_if_range: bool) -> Option<Self> {
        let requested = *specs.first()?;
        let spec = match requested {
            RangeSpec::From(0) => return None,
            // A range of no bytes cannot be requested; one byte brings the length.
            RangeSpec::Last(0) => RangeSpec::Last(1),
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
            RangeSpec::FromTo(first, last) => range_field(
                first / SLICE * SLICE,
                last.saturating_add(1).checked_next_multiple_of(SLICE),
            ),
            RangeSpec::From(first) => range_field(first / SLICE * SLICE, None),
            RangeSpec::Last(count) => {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(range: &str) -> Vec<RangeSpec> {
        range::requested(&Method::GET, &range_value(range)).expect("a valid range")
    }

    fn part_of(fields: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(
            http::header::CONTENT_RANGE,
            HeaderValue::try_from(fields).expect("a valid field"),
        );
        map
    }

    #[test]
    fn a_range_requests_the_slices_around_it() {
        let table = [
            ("bytes=0-0", Some(format!("bytes=0-{}", SLICE - 1))),
            ("bytes=5-10", Some(format!("bytes=0-{}", SLICE - 1))),
            (
                "bytes=262144-262144",
                Some(format!("bytes={SLICE}-{}", 2 * SLICE - 1)),
            ),
            (
                "bytes=262143-262144",
                Some(format!("bytes=0-{}", 2 * SLICE - 1)),
            ),
            ("bytes=262145-", Some(format!("bytes={SLICE}-"))),
            ("bytes=-1", Some(format!("bytes=-{SLICE}"))),
            // One byte brings the length.
            ("bytes=-0", Some(format!("bytes=-{SLICE}"))),
            ("bytes=7-8, 0-1", Some(format!("bytes=0-{}", SLICE - 1))),
            // The whole.
            ("bytes=0-", None),
            ("bytes=0-18446744073709551614", Some("bytes=0-".to_owned())),
        ];
        for (range, expected) in table {
            let wanted = WantedSlices::of(&specs(range), false);
            let field = wanted.map(|wanted| wanted.field()[RANGE].to_str().unwrap().to_owned());
            assert_eq!(field, expected, "{range}");
        }
    }

    #[test]
    fn only_whole_slices_from_the_wanted_byte_on_are_of_use() {
        let complete = 10 * SLICE;
        // The client's range, the part that came in slices, whether parts can be joined, and the
        // first and last byte of what is used.
        let whole = Some((0, complete - 1));
        let table = [
            ("bytes=0-9", (0, SLICE - 1), false, Some((0, SLICE - 1))),
            // Up to the end, which need not be a slice's.
            (
                "bytes=-5",
                (9 * SLICE, complete - 1),
                false,
                Some((9 * SLICE, complete - 1)),
            ),
            // One byte less than a slice before it, as a suffix is requested.
            (
                "bytes=-5",
                (9 * SLICE - 5, complete - 1),
                false,
                Some((9 * SLICE, complete - 1)),
            ),
            // Less than was requested.
            ("bytes=0-262150", (0, SLICE - 1), true, Some((0, SLICE - 1))),
            ("bytes=0-262150", (0, SLICE - 1), false, None),
            ("bytes=0-9", (0, 9), true, None),
            // From elsewhere.
            ("bytes=0-9", (SLICE, 2 * SLICE - 1), true, None),
            ("bytes=0-9", (5, SLICE - 1), true, None),
            // Several ranges need further parts.
            (
                "bytes=0-9, 524288-524297",
                (0, SLICE - 1),
                true,
                Some((0, SLICE - 1)),
            ),
            ("bytes=0-9, 524288-524297", (0, SLICE - 1), false, None),
            ("bytes=0-9, 524288-524297", (0, complete - 1), false, whole),
        ];
        for (range, (first, last), is_joinable, expected) in table {
            let wanted = WantedSlices::of(&specs(range), false).expect("no whole");
            let part = wanted.part(
                &part_of(&format!("bytes {first}-{last}/{complete}")),
                is_joinable,
            );
            let found = part.map(|part| (part.range.first, part.range.last));
            assert_eq!(found, expected, "{range} {first}-{last}");
            if let Some(part) = part {
                assert_eq!(
                    part.skip,
                    part.range.first - first,
                    "{range} {first}-{last}"
                );
            }
        }
        let wanted = WantedSlices::of(&specs("bytes=0-9"), false).expect("no whole");
        for unusable in ["bytes 0-1048575/*", "bytes */10", "items 0-9/10"] {
            assert_eq!(wanted.part(&part_of(unusable), true), None, "{unusable}");
        }
    }

    #[test]
    fn after_a_416_the_first_range_inside_is_requested_once() {
        let table = [
            ("bytes=100-200, 5-9", "bytes */50", Some("bytes=5-9")),
            ("bytes=100-200, 60-70", "bytes */50", None),
            // The range that was refused is inside, so another one is of no help.
            ("bytes=5-9, 100-200", "bytes */50", None),
            ("bytes=100-200, 5-9", "bytes */*", None),
        ];
        for (range, unsatisfied, expected) in table {
            let client = range_value(range);
            let wanted = WantedSlices::of(&specs(range), false).expect("no whole");
            let next = wanted.after_unsatisfied(&part_of(unsatisfied), &client);
            let inside = expected.map(|range| specs(range)[0]);
            assert_eq!(next.map(|next| next.spec), inside, "{range} {unsatisfied}");
            if let Some(next) = next {
                let again = next.after_unsatisfied(&part_of("bytes */3"), &client);
                assert_eq!(again, None, "{range}");
            }
        }
    }

    #[test]
    fn ranges_of_a_large_body_are_assembled_within_limits() {
        let tag = [("etag", "\"v1\"")];
        // The request's fields, the complete length, and whether they are assembled.
        type Fields = &'static [(&'static str, &'static str)];
        let table: [(Fields, u64, bool); 6] = [
            (&[("range", "bytes=0-9, 20-29")], 1 << 30, true),
            (&[("range", "bytes=0-9")], 1 << 30, false),
            (
                &[("range", "bytes=0-16777216, 20000000-20000009")],
                1 << 30,
                false,
            ),
            (&[("range", "bytes=0-9, 20-29")], u64::MAX / 2, false),
            (
                &[("range", "bytes=0-9, 20-29"), ("if-range", "\"v1\"")],
                1 << 30,
                true,
            ),
            (
                &[("range", "bytes=0-9, 20-29"), ("if-range", "\"v2\"")],
                1 << 30,
                false,
            ),
        ];
        let map = |fields: &[(&'static str, &str)]| {
            fields
                .iter()
                .map(|(name, value)| {
                    let value = HeaderValue::from_str(value).expect("a valid field");
                    (http::HeaderName::from_static(name), value)
                })
                .collect::<HeaderMap>()
        };
        for (client, complete, expected) in table {
            let is_assembled = can_be_assembled(&map(client), &map(&tag), complete);
            assert_eq!(is_assembled, expected, "{client:?} of {complete}");
        }
    }
}
