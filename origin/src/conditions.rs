//! Preconditions and ranges of a request for a file: which response they lead to. Pure.
//!
//! The rules are those of [`nearcast_http_rules::conditional`] and [`nearcast_http_rules::range`]
//! (RFC 9110 sections 13 and 14). Ranges that do not join into one give the whole file, which
//! section 14.2 permits.

use http::{HeaderMap, Method, StatusCode};
use nearcast_http_rules::conditional::{self, Precondition};
use nearcast_http_rules::range::{self, ByteRange, Part};

/// The kind of response that a request for a file gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// 200 with the whole file.
    Whole,
    /// 206 with these bytes.
    Part(ByteRange),
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 416.
    Unsatisfiable,
}

/// Decides in the order of RFC 9110 section 13.2.2. `file` has the validators of the file and the
/// `Date` of the response, `bytes` is the file's length.
pub(crate) fn decide(
    method: &Method,
    request: &HeaderMap,
    file: &HeaderMap,
    bytes: u64,
) -> Decision {
    let is_range_valid = match conditional::evaluate(method, request, StatusCode::OK, file) {
        Precondition::Failed => return Decision::PreconditionFailed,
        Precondition::NotModified => return Decision::NotModified,
        Precondition::Proceed { is_range_valid } => is_range_valid,
    };
    let Some(ranges) = range::requested(method, request).filter(|_| is_range_valid) else {
        return Decision::Whole;
    };
    match range::resolve(&ranges, bytes) {
        Part::Ranges(ranges) if ranges.len() == 1 => Decision::Part(ranges[0]),
        Part::Ranges(_) | Part::Whole => Decision::Whole,
        Part::Unsatisfiable => Decision::Unsatisfiable,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use http::HeaderValue;

    use super::*;

    const TAG: &str = "\"abc\"";

    fn date(seconds: u64) -> String {
        httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_str(value).expect("a field value"));
        }
        map
    }

    fn decision_at(
        date_of_response: u64,
        fields: &[(&'static str, &str)],
        bytes: u64,
        is_get: bool,
    ) -> Decision {
        let file = map(&[
            ("etag", TAG),
            ("last-modified", &date(1_000_000)),
            ("date", &date(date_of_response)),
        ]);
        let method = if is_get { Method::GET } else { Method::HEAD };
        decide(&method, &map(fields), &file, bytes)
    }

    fn decision(fields: &[(&'static str, &str)], bytes: u64, is_get: bool) -> Decision {
        decision_at(2_000_000, fields, bytes, is_get)
    }

    fn part(first: u64, last: u64) -> Decision {
        Decision::Part(ByteRange { first, last })
    }

    #[test]
    fn preconditions_are_evaluated_in_their_order() {
        let (before, same, after) = (date(999_999), date(1_000_000), date(1_000_001));
        use Decision::{NotModified, PreconditionFailed, Whole};
        let table: [(&[(&'static str, &str)], Decision); 17] = [
            (&[], Whole),
            (&[("if-none-match", TAG)], NotModified),
            (&[("if-none-match", "W/\"abc\"")], NotModified),
            (&[("if-none-match", "\"x\", \"abc\"")], NotModified),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-none-match", "\"x\"")], Whole),
            // RFC 9110 section 8.8.3: a comma inside the quotes belongs to the tag.
            (&[("if-none-match", "\"x,\"abc\"")], Whole),
            (
                &[("if-none-match", "\"x\""), ("if-modified-since", &same)],
                Whole,
            ),
            (&[("if-modified-since", &same)], NotModified),
            (&[("if-modified-since", &after)], NotModified),
            (&[("if-modified-since", &before)], Whole),
            (&[("if-modified-since", "yesterday")], Whole),
            (&[("if-match", TAG)], Whole),
            (&[("if-match", "\"x\"")], PreconditionFailed),
            (&[("if-match", "W/\"abc\"")], PreconditionFailed),
            (&[("if-unmodified-since", &before)], PreconditionFailed),
            (&[("if-unmodified-since", &same)], Whole),
        ];
        for (fields, expected) in table {
            assert_eq!(decision(fields, 10, true), expected, "{fields:?}");
        }
    }

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        use Decision::{Unsatisfiable, Whole};
        let table = [
            ("bytes=0-3", part(0, 3)),
            ("bytes=5-", part(5, 9)),
            ("bytes=-4", part(6, 9)),
            ("bytes=-40", part(0, 9)),
            ("bytes=0-999", part(0, 9)),
            ("Bytes=1-2", part(1, 2)),
            // RFC 9110 section 14.1.1: no white space around the unit.
            ("Bytes = 1-2", Whole),
            ("bytes=10-", Unsatisfiable),
            ("bytes=99999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=10-,-0", Unsatisfiable),
            ("bytes=4-3", Whole),
            ("bytes=a-b", Whole),
            ("bytes=-", Whole),
            ("bytes=0-1,3-4", Whole),
            ("bytes=0-1,2-4", part(0, 4)),
            ("bytes=0-1,20-", part(0, 1)),
            ("items=0-1", Whole),
            ("bytes", Whole),
            ("bytes=+1-2", Whole),
        ];
        for (range, expected) in table {
            assert_eq!(decision(&[("range", range)], 10, true), expected, "{range}");
            assert_eq!(
                decision(&[("range", range)], 10, false),
                Whole,
                "HEAD has no ranges: {range}"
            );
        }
        for (range, expected) in [("bytes=0-0", Unsatisfiable), ("bytes=-1", Whole)] {
            // RFC 9110 section 14.1.2: the last bytes of an empty file are satisfiable.
            assert_eq!(decision(&[("range", range)], 0, true), expected, "{range}");
        }
    }

    #[test]
    fn if_range_takes_a_strong_tag_or_the_exact_date() {
        let range = |condition: &str, date_of_response| {
            let fields = [("range", "bytes=0-1"), ("if-range", condition)];
            decision_at(date_of_response, &fields, 10, true)
        };
        for (condition, expected) in [
            (TAG.to_owned(), part(0, 1)),
            ("\"x\"".to_owned(), Decision::Whole),
            ("W/\"abc\"".to_owned(), Decision::Whole),
            (date(1_000_000), part(0, 1)),
            (date(1_000_001), Decision::Whole),
            ("nonsense".to_owned(), Decision::Whole),
        ] {
            assert_eq!(range(&condition, 2_000_000), expected, "{condition}");
        }
        assert_eq!(
            range(&date(1_000_000), 1_000_000),
            Decision::Whole,
            "RFC 9110 section 8.8.2.2: the file may change again in the same second"
        );
    }

    proptest::proptest! {
        #[test]
        fn parts_lie_inside_the_file(range in "(bytes|)[=]?[0-9,= -]{0,24}", bytes in 0u64..40) {
            match decision(&[("range", &range)], bytes, true) {
                Decision::Part(range) => proptest::prop_assert!(range.first <= range.last && range.last < bytes),
                Decision::Whole | Decision::Unsatisfiable => {}
                other => proptest::prop_assert!(false, "{:?}", other),
            }
        }
    }
}
