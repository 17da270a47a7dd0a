//! Preconditions and ranges of a request against a file (RFC 9110 sections 13 and 14). Pure.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{
    HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
};

/// What to answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// 200 with everything.
    Whole,
    /// 206 with the bytes from `first` to `last`, both counted from 0.
    Part {
        /// First byte.
        first: u64,
        /// Last byte, included.
        last: u64,
    },
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 416.
    Unsatisfiable,
}

/// The file as preconditions see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validators<'a> {
    /// Strong entity tag, with its quotes.
    pub(crate) etag: &'a str,
    /// When it was last changed, in whole seconds.
    pub(crate) modified: SystemTime,
    /// Its length.
    pub(crate) bytes: u64,
}

/// Decides in the order of RFC 9110 section 13.2.2. Ranges count for GET alone.
pub(crate) fn decide(fields: &HeaderMap, file: Validators<'_>, is_get: bool) -> Verdict {
    if fields.contains_key(IF_MATCH) {
        if !lists(fields, IF_MATCH, |tag| tag == file.etag) {
            return Verdict::PreconditionFailed;
        }
    } else if date(fields, IF_UNMODIFIED_SINCE).is_some_and(|limit| file.modified > limit) {
        return Verdict::PreconditionFailed;
    }
    if fields.contains_key(IF_NONE_MATCH) {
        // Weak comparison: a client may have been given the tag as weak by a cache that coded the
        // body.
        if lists(fields, IF_NONE_MATCH, |tag| {
            tag.strip_prefix("W/").unwrap_or(tag) == file.etag
        }) {
            return Verdict::NotModified;
        }
    } else if date(fields, IF_MODIFIED_SINCE).is_some_and(|limit| file.modified <= limit) {
        return Verdict::NotModified;
    }
    if !is_get || !range_applies(fields, file) {
        return Verdict::Whole;
    }
    range(fields, file.bytes)
}

fn text(fields: &HeaderMap, name: HeaderName) -> Option<&str> {
    fields.get(name)?.to_str().ok().map(str::trim)
}

fn date(fields: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(text(fields, name)?).ok()
}

fn lists(fields: &HeaderMap, name: HeaderName, is_ours: impl Fn(&str) -> bool) -> bool {
    let values = fields.get_all(name);
    // Our tags hold no comma, so a list can be cut at commas.
    values
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || is_ours(tag))
}

/// `If-Range`: a strong tag or the exact date; anything else asks for the whole.
fn range_applies(fields: &HeaderMap, file: Validators<'_>) -> bool {
    match text(fields, IF_RANGE) {
        None => !fields.contains_key(IF_RANGE),
        Some(tag) if tag.starts_with('"') => tag == file.etag,
        Some(other) => httpdate::parse_http_date(other).is_ok_and(|d| d == file.modified),
    }
}

/// One range; several, or what cannot be read, gives the whole (RFC 9110 section 14.2 lets a server
/// ignore `Range`).
fn range(fields: &HeaderMap, bytes: u64) -> Verdict {
    let mut values = fields.get_all(RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Verdict::Whole;
    };
    let Some((unit, set)) = value.to_str().ok().and_then(|v| v.split_once('=')) else {
        return Verdict::Whole;
    };
    let Some((first, last)) = set.trim().split_once('-') else {
        return Verdict::Whole;
    };
    let number = |text: &str| {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse().unwrap_or(u64::MAX))
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Verdict::Whole;
    }
    match (number(first), number(last)) {
        (Some(first), _)
            if first >= bytes && (last.trim().is_empty() || number(last).is_some()) =>
        {
            Verdict::Unsatisfiable
        }
        (Some(first), Some(last)) if first <= last => Verdict::Part {
            first,
            last: last.min(bytes - 1),
        },
        (Some(first), None) if last.trim().is_empty() => Verdict::Part {
            first,
            last: bytes - 1,
        },
        (None, Some(0)) if first.trim().is_empty() => Verdict::Unsatisfiable,
        (None, Some(_)) if first.trim().is_empty() && bytes == 0 => Verdict::Unsatisfiable,
        (None, Some(suffix)) if first.trim().is_empty() => Verdict::Part {
            first: bytes.saturating_sub(suffix),
            last: bytes - 1,
        },
        _ => Verdict::Whole,
    }
}

/// A file's time as HTTP dates tell it: whole seconds.
pub(crate) fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const TAG: &str = "\"abc\"";

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn verdict(fields: &[(&'static str, &str)], bytes: u64, is_get: bool) -> Verdict {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_str(value).expect("a field value"));
        }
        decide(
            &map,
            Validators {
                etag: TAG,
                modified: at(1_000_000),
                bytes,
            },
            is_get,
        )
    }

    #[test]
    fn preconditions_are_evaluated_in_their_order() {
        let (before, same, after) = (
            httpdate::fmt_http_date(at(999_999)),
            httpdate::fmt_http_date(at(1_000_000)),
            httpdate::fmt_http_date(at(1_000_001)),
        );
        use Verdict::{NotModified, PreconditionFailed, Whole};
        let table: [(&[(&'static str, &str)], Verdict); 16] = [
            (&[], Whole),
            (&[("if-none-match", TAG)], NotModified),
            (&[("if-none-match", "W/\"abc\"")], NotModified),
            (&[("if-none-match", "\"x\", \"abc\"")], NotModified),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-none-match", "\"x\"")], Whole),
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
            assert_eq!(verdict(fields, 10, true), expected, "{fields:?}");
        }
    }

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        use Verdict::{Part, Unsatisfiable, Whole};
        let table = [
            ("bytes=0-3", Part { first: 0, last: 3 }),
            ("bytes=5-", Part { first: 5, last: 9 }),
            ("bytes=-4", Part { first: 6, last: 9 }),
            ("bytes=-40", Part { first: 0, last: 9 }),
            ("bytes=0-999", Part { first: 0, last: 9 }),
            ("Bytes = 1-2", Part { first: 1, last: 2 }),
            ("bytes=10-", Unsatisfiable),
            ("bytes=99999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=4-3", Whole),
            ("bytes=a-b", Whole),
            ("bytes=-", Whole),
            ("bytes=0-1,3-4", Whole),
            ("items=0-1", Whole),
            ("bytes", Whole),
            ("bytes=+1-2", Whole),
        ];
        for (range, expected) in table {
            assert_eq!(verdict(&[("range", range)], 10, true), expected, "{range}");
            assert_eq!(
                verdict(&[("range", range)], 10, false),
                Whole,
                "HEAD has no ranges: {range}"
            );
        }
        for range in ["bytes=0-0", "bytes=-1"] {
            assert_eq!(
                verdict(&[("range", range)], 0, true),
                Unsatisfiable,
                "an empty file has no bytes: {range}"
            );
        }
    }

    #[test]
    fn if_range_takes_a_strong_tag_or_the_exact_date() {
        let part = Verdict::Part { first: 0, last: 1 };
        for (condition, expected) in [
            (TAG.to_owned(), part),
            ("\"x\"".to_owned(), Verdict::Whole),
            ("W/\"abc\"".to_owned(), Verdict::Whole),
            (httpdate::fmt_http_date(at(1_000_000)), part),
            (httpdate::fmt_http_date(at(1_000_001)), Verdict::Whole),
            ("nonsense".to_owned(), Verdict::Whole),
        ] {
            assert_eq!(
                verdict(
                    &[("range", "bytes=0-1"), ("if-range", &condition)],
                    10,
                    true
                ),
                expected,
                "{condition}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn parts_lie_inside_the_file(range in "(bytes|)[=]?[0-9,= -]{0,24}", bytes in 0u64..40) {
            match verdict(&[("range", &range)], bytes, true) {
                Verdict::Part { first, last } => proptest::prop_assert!(first <= last && last < bytes),
                Verdict::Whole | Verdict::Unsatisfiable => {}
                other => proptest::prop_assert!(false, "{:?}", other),
            }
        }
    }
}
