//! Conditional requests: the preconditions of a client, the validation of a stored response, and
//! the update of stored fields by its result.
//!
//! Follows RFC 9110 section 13 and RFC 9111 sections 3.2 and 4.3.

use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE,
    ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::{dates, fields};

/// The result of a request's preconditions, evaluated in the order of RFC 9110 section 13.2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precondition {
    /// Answer as without preconditions.
    Proceed {
        /// Whether a `Range` applies: the method is GET and there is no `If-Range`, or it holds.
        is_range_valid: bool,
    },
    /// Answer 304, with [`not_modified_fields`].
    NotModified,
    /// Answer 412.
    Failed,
}

/// Evaluates the preconditions of a request against the selected representation, whose fields are
/// `stored`.
///
/// Preconditions apply to GET and HEAD and to successful responses only (RFC 9110 section 13.2.1).
pub fn evaluate(
    method: &Method,
    request: &HeaderMap,
    status: StatusCode,
    stored: &HeaderMap,
) -> Precondition {
    let is_conditional = matches!(*method, Method::GET | Method::HEAD) && status.is_success();
    if !is_conditional {
        return Precondition::Proceed {
            is_range_valid: false,
        };
    }
    if !may_proceed(request, stored) {
        return Precondition::Failed;
    }
    if is_not_modified(request, stored) {
        return Precondition::NotModified;
    }
    let can_be_ranged = *method == Method::GET && matches!(status.as_u16(), 200 | 206);
    Precondition::Proceed {
        is_range_valid: can_be_ranged && if_range_holds(request, stored),
    }
}

/// If-Match, or in its absence If-Unmodified-Since (RFC 9110 sections 13.1.1 and 13.1.4).
fn may_proceed(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_MATCH) {
        let current = stored.get(ETAG).map(HeaderValue::as_bytes);
        return fields::entity_tags(request, IF_MATCH).any(|tag| {
            tag == b"*" || current.is_some_and(|current| is_strongly_equal(tag, current))
        });
    }
    match (
        dates::date(request, IF_UNMODIFIED_SINCE),
        dates::date(stored, LAST_MODIFIED),
    ) {
        (Some(since), Some(modified)) => modified <= since,
        _ => true,
    }
}

/// If-None-Match, or in its absence If-Modified-Since (RFC 9110 sections 13.1.2 and 13.1.3).
fn is_not_modified(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let current = stored.get(ETAG).map(HeaderValue::as_bytes);
        return fields::entity_tags(request, IF_NONE_MATCH).any(|tag| {
            tag == b"*" || current.is_some_and(|current| is_weakly_equal(tag, current))
        });
    }
    let Some(since) = dates::date(request, IF_MODIFIED_SINCE) else {
        return false;
    };
    // RFC 9111 section 4.3.2: Date replaces a missing Last-Modified.
    let modified = dates::date(stored, LAST_MODIFIED)
        .or_else(|| dates::date(stored, DATE).filter(|_| !stored.contains_key(LAST_MODIFIED)));
    modified.is_some_and(|modified| modified <= since)
}

/// Whether there is no `If-Range`, or it holds: it has an equal strong tag, or exactly the strong
/// `Last-Modified` (RFC 9110 section 13.1.5).
pub fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(wanted) = request.get(IF_RANGE).map(|v| v.as_bytes().trim_ascii()) else {
        return true;
    };
    if wanted.starts_with(b"\"") || wanted.starts_with(b"W/") {
        return stored
            .get(ETAG)
            .is_some_and(|current| is_strongly_equal(wanted, current.as_bytes()));
    }
    let exact = stored
        .get(LAST_MODIFIED)
        .is_some_and(|modified| modified.as_bytes() == wanted);
    exact && is_strong_date(stored)
}

/// Whether `Last-Modified` is strong: at least a second before `Date`, so that two changes cannot
/// share it (RFC 9110 section 8.8.2.2).
fn is_strong_date(stored: &HeaderMap) -> bool {
    match (
        dates::date(stored, LAST_MODIFIED),
        dates::date(stored, DATE),
    ) {
        (Some(modified), Some(generated)) => generated > modified,
        _ => false,
    }
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Weak comparison (RFC 9110 section 8.8.3.2).
fn is_weakly_equal(one: &[u8], other: &[u8]) -> bool {
    opaque(one.trim_ascii()) == opaque(other.trim_ascii())
}

/// Strong comparison (RFC 9110 section 8.8.3.2).
fn is_strongly_equal(one: &[u8], other: &[u8]) -> bool {
    is_strong(one.trim_ascii()) && one.trim_ascii() == other.trim_ascii()
}

/// Whether a tag is quoted and has no `W/`.
fn is_strong(tag: &[u8]) -> bool {
    tag.len() >= 2 && tag.starts_with(b"\"") && tag.ends_with(b"\"")
}

/// The strong entity tag of a response; `None` when it has none or several.
pub fn strong_tag(response: &HeaderMap) -> Option<&HeaderValue> {
    let mut tags = response.get_all(ETAG).into_iter();
    let tag = tags.next()?;
    (tags.next().is_none() && is_strong(tag.as_bytes().trim_ascii())).then_some(tag)
}

/// Least difference between `Last-Modified` and `Date`, in seconds, for a date that identifies one
/// version. RFC 9110 section 8.8.2.2 requires one second by the same clock, or enough to make up
/// for different clocks. This cache does not know which clock set the time of the file, so it uses
/// the minute of RFC 7232 section 2.2.2 and Apache.
const STRONG_DATE_SECONDS_MIN: u64 = 60;

/// A validator that identifies a representation byte for byte, so that parts of it from several
/// responses may be joined (RFC 9110 sections 8.8.1 and 15.3.7.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StrongValidator {
    /// A strong entity tag.
    Tag(HeaderValue),
    /// The `Last-Modified` of a response without an entity tag, old enough to be strong. A date
    /// never replaces a weak tag: with a weak tag the bytes may differ between responses, and a
    /// client that has a tag must not send a date in `If-Range` (RFC 9110 section 13.1.5).
    Date(HeaderValue),
}

impl StrongValidator {
    /// The strong validator of a response that was received at this time. Its value is copied,
    /// since the original may keep a connection's whole read buffer alive.
    pub fn of(response: &HeaderMap, received_ms: u64) -> Option<Self> {
        let copy = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).ok();
        if response.contains_key(ETAG) {
            return strong_tag(response).and_then(copy).map(Self::Tag);
        }
        let modified = single_value(response, &LAST_MODIFIED)?;
        // RFC 9110 section 6.6.1: the time of receipt replaces a missing Date.
        let generated = dates::date(response, DATE).unwrap_or(received_ms / 1000);
        let is_strong = dates::parse_date(modified.as_bytes())?
            .saturating_add(STRONG_DATE_SECONDS_MIN)
            <= generated;
        copy(modified).filter(|_| is_strong).map(Self::Date)
    }

    /// The value of an `If-Range` for this representation.
    pub fn value(&self) -> &HeaderValue {
        match self {
            Self::Tag(value) | Self::Date(value) => value,
        }
    }

    /// Whether another response carries the same representation. A response without a validator may
    /// be of any version, so it does not.
    pub fn matches(&self, response: &HeaderMap) -> bool {
        match self {
            Self::Tag(tag) => strong_tag(response) == Some(tag),
            Self::Date(modified) => {
                !response.contains_key(ETAG)
                    && single_value(response, &LAST_MODIFIED) == Some(modified)
            }
        }
    }
}

/// The value of a field that occurs once.
fn single_value<'a>(response: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = response.get_all(name).into_iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether a response can be validated.
pub fn has_validator(response: &HeaderMap) -> bool {
    response.contains_key(ETAG) || response.contains_key(LAST_MODIFIED)
}

/// The fields of a 304 for a client, from those of the stored response: without those that describe
/// a body (RFC 9110 section 15.4.5).
pub fn not_modified_fields(mut stored: HeaderMap) -> HeaderMap {
    for name in [
        CONTENT_TYPE,
        CONTENT_LENGTH,
        CONTENT_ENCODING,
        CONTENT_LANGUAGE,
        CONTENT_RANGE,
    ] {
        stored.remove(name);
    }
    stored
}

/// All precondition fields. A forward request whose response may be stored has none of the
/// client's.
pub(crate) const CONDITIONS: [HeaderName; 5] = [
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    IF_RANGE,
];

/// Turns a forward request into a validation of these stored responses, of which the first is the
/// selected one (RFC 9111 section 4.3.1). The client's preconditions are removed.
pub fn set_validation<'a>(
    forward: &mut HeaderMap,
    stored: impl IntoIterator<Item = &'a HeaderMap>,
) {
    for name in CONDITIONS {
        forward.remove(name);
    }

    let mut tags: Vec<u8> = Vec::new();
    for (number, response) in stored.into_iter().enumerate() {
        if let Some(modified) = response.get(LAST_MODIFIED).filter(|_| number == 0) {
            forward.insert(IF_MODIFIED_SINCE, modified.clone());
        }

        let Some(tag) = response.get(ETAG).map(HeaderValue::as_bytes) else {
            continue;
        };
        // The selected response is always validated, however long its tag is.
        if tags.len() + tag.len() > VALIDATION_BYTES_MAX && !tags.is_empty() {
            break;
        }
        if !tags.is_empty() {
            tags.extend_from_slice(b", ");
        }
        tags.extend_from_slice(tag);
    }

    if let Some(tags) = HeaderValue::from_bytes(&tags)
        .ok()
        .filter(|tags| !tags.is_empty())
    {
        forward.insert(IF_NONE_MATCH, tags);
    }
}

/// Longest `If-None-Match` of a validation, in bytes.
const VALIDATION_BYTES_MAX: usize = 2048;

/// Whether a 304 confirms this stored response (RFC 9111 section 4.3.4).
///
/// A 304 without a validator confirms a response if it is the only one that was validated
/// (`is_only_one`).
pub fn is_confirmed(stored: &HeaderMap, not_modified: &HeaderMap, is_only_one: bool) -> bool {
    if let Some(tag) = not_modified.get(ETAG).map(HeaderValue::as_bytes) {
        let is_equal = |current: &HeaderValue| match is_strong(tag.trim_ascii()) {
            true => is_strongly_equal(tag, current.as_bytes()),
            false => is_weakly_equal(tag, current.as_bytes()),
        };
        return stored.get(ETAG).is_some_and(is_equal);
    }
    match (not_modified.get(LAST_MODIFIED), stored.get(LAST_MODIFIED)) {
        (Some(new), Some(old)) => {
            new == old
                || dates::parse_date(new.as_bytes())
                    .is_some_and(|n| Some(n) == dates::parse_date(old.as_bytes()))
        }
        (Some(_), None) => false,
        (None, _) => is_only_one,
    }
}

/// The fields of a response in the form that is stored: without those for one hop and without those
/// of its framing, which the store knows better, and with a Date.
pub fn stored_fields(response: &HeaderMap, received_ms: u64) -> HeaderMap {
    let mut stored = fields::end_to_end(response, true);
    stored.remove(CONTENT_LENGTH);
    stored.remove(CONTENT_RANGE);
    // RFC 9110 section 6.6.1: a recipient with a clock adds a missing Date.
    if dates::date(&stored, DATE).is_none() {
        stored.insert(DATE, dates::format_date(received_ms / 1000));
    }
    stored
}

/// Stored fields after a 304, or after a HEAD that matches (RFC 9111 section 3.2): the new fields
/// replace the old ones, except those that describe the stored body.
pub fn freshened(stored: &HeaderMap, new: &HeaderMap, received_ms: u64) -> HeaderMap {
    const OF_BODY: [HeaderName; 4] = [
        CONTENT_ENCODING,
        CONTENT_TYPE,
        CONTENT_LENGTH,
        CONTENT_RANGE,
    ];
    let mut freshened = stored.clone();
    // The old age does not apply to a response that was confirmed now.
    freshened.remove(AGE);
    let update = stored_fields(new, received_ms);
    for name in update.keys().filter(|name| !OF_BODY.contains(name)) {
        freshened.remove(name);
        for value in update.get_all(name) {
            freshened.append(name.clone(), value.clone());
        }
    }
    freshened
}

/// The comparison of the 200 to a HEAD with a stored response (RFC 9111 section 4.3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeadComparison {
    /// They match: [`freshened`] applies.
    Same,
    /// The representation changed: the stored response is invalidated.
    Other,
    /// They cannot be compared.
    Nothing,
}

/// Compares the response to a HEAD with a stored response of this status, these fields and this
/// body length.
pub fn compare_head(
    stored_status: StatusCode,
    stored: &HeaderMap,
    length: Option<u64>,
    status: StatusCode,
    head: &HeaderMap,
) -> HeadComparison {
    if status != StatusCode::OK || stored_status != StatusCode::OK {
        return HeadComparison::Nothing;
    }
    let length_of_head = fields::list(head, CONTENT_LENGTH)
        .next()
        .and_then(|text| std::str::from_utf8(text).ok()?.parse::<u64>().ok());
    let is_same_length = length_of_head.is_none() || length.is_none() || length_of_head == length;
    let is_same = |name: &HeaderName| {
        head.get(name)
            .is_none_or(|new| stored.get(name) == Some(new))
    };
    match is_same_length && is_same(&ETAG) && is_same(&LAST_MODIFIED) {
        true => HeadComparison::Same,
        false => HeadComparison::Other,
    }
}

#[cfg(test)]
mod tests {
    use http::header::{CACHE_CONTROL, CONTENT_LOCATION, EXPIRES, VARY};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, NOW_MS, date, map};

    const GO: Precondition = Precondition::Proceed {
        is_range_valid: true,
    };
    const GO_WHOLE: Precondition = Precondition::Proceed {
        is_range_valid: false,
    };

    fn asked(request: &[&str], stored: &[&str]) -> Precondition {
        evaluate(&Method::GET, &map(request), StatusCode::OK, &map(stored))
    }

    #[test]
    fn if_none_match_compares_weakly_and_wins() {
        // RFC 9110 sections 13.1.2 and 13.2.2.
        let stored = [
            "etag: \"a\"",
            &format!("last-modified: {}", date(0)),
            &format!("date: {}", date(9)),
        ];
        let later = format!("if-modified-since: {}", date(5));
        let earlier = format!("if-modified-since: {}", date(-5));
        let table: [(&[&str], Precondition); 12] = [
            (&["if-none-match: \"a\""], Precondition::NotModified),
            (&["if-none-match: W/\"a\""], Precondition::NotModified),
            (&["if-none-match: \"b\", \"a\""], Precondition::NotModified),
            (
                &["if-none-match: \"b\"", "if-none-match: \"a\""],
                Precondition::NotModified,
            ),
            (&["if-none-match: *"], Precondition::NotModified),
            (&["if-none-match: \"b\""], GO),
            (&["if-none-match: a"], GO),
            (&["if-none-match: \"A\""], GO),
            (&["if-none-match: \"b\"", &later], GO),
            (
                &["if-none-match: \"a\"", &earlier],
                Precondition::NotModified,
            ),
            (&["if-none-match: \"x,\\\"a\""], GO),
            (&["if-none-match:", &later], GO),
        ];
        for (request, expected) in table {
            assert_eq!(asked(request, &stored), expected, "{request:?}");
        }
        assert_eq!(
            asked(&["if-none-match: W/\"a\""], &["etag: W/\"a\""]),
            Precondition::NotModified
        );
        assert_eq!(
            asked(&["if-none-match: \"x, y\""], &["etag: \"x, y\""]),
            Precondition::NotModified,
            "a comma in a tag"
        );
        let odd = "\",\\\"";
        assert_eq!(
            asked(
                &[&format!("if-none-match: \"b\", {odd}")],
                &[&format!("etag: {odd}")]
            ),
            Precondition::NotModified,
            "a backslash is itself"
        );
        assert_eq!(asked(&["if-none-match: *"], &[]), Precondition::NotModified);
        assert_eq!(asked(&["if-none-match: \"a\""], &[]), GO);
    }

    #[test]
    fn if_modified_since_looks_at_last_modified_or_date() {
        // RFC 9110 section 13.1.3 and RFC 9111 section 4.3.2.
        let (modified, made) = (
            format!("last-modified: {}", date(0)),
            format!("date: {}", date(100)),
        );
        let since = |offset| format!("if-modified-since: {}", date(offset));
        let table: [(&str, &[&str], Precondition); 9] = [
            (&since(0), &[&modified, &made], Precondition::NotModified),
            (&since(1), &[&modified, &made], Precondition::NotModified),
            (&since(-1), &[&modified, &made], GO),
            (&since(100), &[&made], Precondition::NotModified),
            (&since(99), &[&made], GO),
            (&since(200), &["last-modified: never", &made], GO),
            (&since(0), &[], GO),
            ("if-modified-since: yesterday", &[&modified], GO),
            (
                "if-modified-since: Sunday, 06-Nov-94 08:49:37 GMT",
                &["last-modified: Sun, 06 Nov 1994 08:49:37 GMT"],
                Precondition::NotModified,
            ),
        ];
        for (request, stored, expected) in table {
            assert_eq!(asked(&[request], stored), expected, "{request} {stored:?}");
        }
    }

    #[test]
    fn preconditions_fail_with_412() {
        // RFC 9110 sections 13.1.1 and 13.1.4.
        let stored = ["etag: \"a\"", &format!("last-modified: {}", date(0))];
        let since = |offset| format!("if-unmodified-since: {}", date(offset));
        let table: [(&[&str], Precondition); 9] = [
            (&["if-match: \"a\""], GO),
            (&["if-match: \"b\", \"a\""], GO),
            (&["if-match: *"], GO),
            (&["if-match: W/\"a\""], Precondition::Failed),
            (&["if-match: \"b\""], Precondition::Failed),
            (&[&since(0)], GO),
            (&[&since(-1)], Precondition::Failed),
            (&["if-unmodified-since: x"], GO),
            (&["if-match: \"a\"", &since(-1)], GO),
        ];
        for (request, expected) in table {
            assert_eq!(asked(request, &stored), expected, "{request:?}");
        }
        assert_eq!(
            asked(&["if-match: \"a\"", "if-none-match: \"a\""], &stored),
            Precondition::NotModified,
            "both, in their order"
        );
        assert_eq!(
            asked(&["if-match: \"a\""], &["etag: W/\"a\""]),
            Precondition::Failed
        );
    }

    #[test]
    fn conditions_count_for_reads_that_succeed() {
        let request = map(&["if-none-match: *", "if-match: \"x\""]);
        let stored = map(&["etag: \"a\""]);
        assert_eq!(
            evaluate(&Method::POST, &request, StatusCode::OK, &stored),
            GO_WHOLE
        );
        assert_eq!(
            evaluate(&Method::GET, &request, StatusCode::NOT_FOUND, &stored),
            GO_WHOLE
        );
        assert_eq!(
            evaluate(
                &Method::HEAD,
                &map(&["if-none-match: *"]),
                StatusCode::OK,
                &stored
            ),
            Precondition::NotModified
        );
        assert_eq!(
            evaluate(&Method::HEAD, &map(&[]), StatusCode::OK, &stored),
            GO_WHOLE
        );
        assert_eq!(
            evaluate(&Method::GET, &map(&[]), StatusCode::NO_CONTENT, &stored),
            GO_WHOLE
        );
    }

    #[test]
    fn if_range_needs_the_very_same() {
        // RFC 9110 section 13.1.5.
        let modified = date(0);
        let table: [(&str, &[&str], bool); 9] = [
            ("\"a\"", &["etag: \"a\""], true),
            ("\"b\"", &["etag: \"a\""], false),
            ("W/\"a\"", &["etag: \"a\""], false),
            ("W/\"a\"", &["etag: W/\"a\""], false),
            ("\"a\"", &[], false),
            (
                &modified,
                &[
                    &format!("last-modified: {modified}"),
                    &format!("date: {}", date(1)),
                ],
                true,
            ),
            (
                &modified,
                &[
                    &format!("last-modified: {modified}"),
                    &format!("date: {modified}"),
                ],
                false,
            ),
            (&modified, &[&format!("last-modified: {modified}")], false),
            (
                &date(1),
                &[
                    &format!("last-modified: {modified}"),
                    &format!("date: {}", date(9)),
                ],
                false,
            ),
        ];
        for (value, stored, expected) in table {
            let expected = if expected { GO } else { GO_WHOLE };
            assert_eq!(
                asked(&[&format!("if-range: {value}")], stored),
                expected,
                "{value} {stored:?}"
            );
        }
    }

    #[test]
    fn tags_of_slices_are_strong() {
        // RFC 9110 section 8.8.3.3: each content coding has a strong tag of its own. A weak tag
        // names no bytes.
        for (value, is_strong) in [
            ("\"a\"", true),
            ("\"\"", true),
            ("W/\"a\"", false),
            ("a", false),
            ("\"", false),
            ("w/\"a\"", false),
        ] {
            assert_eq!(
                strong_tag(&map(&[&format!("etag: {value}")])).is_some(),
                is_strong,
                "{value}"
            );
        }
        assert!(
            strong_tag(&map(&["etag: \"a\"", "etag: \"b\""])).is_none(),
            "two are none"
        );
    }

    #[test]
    fn parts_are_joined_by_a_strong_tag_or_an_old_date() {
        let (modified, second) = (
            format!("last-modified: {}", date(-60)),
            format!("last-modified: {}", date(-59)),
        );
        let (now, later) = (format!("date: {}", date(0)), format!("date: {}", date(1)));
        let strong_tag =
            |tag: &'static str| Some(StrongValidator::Tag(HeaderValue::from_static(tag)));
        let strong_date = |seconds| {
            Some(StrongValidator::Date(
                HeaderValue::try_from(date(seconds)).expect("a date"),
            ))
        };
        let table: [(&[&str], Option<StrongValidator>); 13] = [
            (&[], None),
            (&["etag: \"a\""], strong_tag("\"a\"")),
            (&["etag: \"a\"", &modified, &now], strong_tag("\"a\"")),
            (&["etag: W/\"a\""], None),
            // Bytes of one weak tag may differ, and its date says no more.
            (&["etag: W/\"a\"", &modified, &now], None),
            (&["etag: a", &modified, &now], None),
            (&["etag: \"a\"", "etag: \"b\"", &modified, &now], None),
            (&[&modified, &now], strong_date(-60)),
            (&[&modified], strong_date(-60)),
            (&[&second, &now], None),
            (&[&second, &later], strong_date(-59)),
            (&["last-modified: yesterday", &now], None),
            (&[&modified, &second, &later], None),
        ];
        for (response, expected) in table {
            assert_eq!(
                StrongValidator::of(&map(response), NOW_MS),
                expected,
                "{response:?}"
            );
        }
    }

    #[test]
    fn what_shows_no_equal_validator_is_of_no_known_version() {
        let (modified, other) = (
            format!("last-modified: {}", date(-60)),
            format!("last-modified: {}", date(0)),
        );
        let tagged = StrongValidator::of(&map(&["etag: \"a\""]), NOW_MS).expect("a strong tag");
        let dated = StrongValidator::of(&map(&[&modified]), NOW_MS).expect("a strong date");
        let table: [(&[&str], bool, bool); 8] = [
            (&[], false, false),
            (&["etag: \"a\""], true, false),
            (&["etag: W/\"a\""], false, false),
            (&["etag: \"b\"", &modified], false, false),
            (&["etag: \"a\"", &modified], true, false),
            (&[&modified], false, true),
            (&[&other], false, false),
            (&[&modified, &modified], false, false),
        ];
        for (response, is_tagged, is_dated) in table {
            assert_eq!(
                (
                    tagged.matches(&map(response)),
                    dated.matches(&map(response))
                ),
                (is_tagged, is_dated),
                "{response:?}"
            );
        }
        assert_eq!(
            (tagged.value(), dated.value().to_str().ok()),
            (&HeaderValue::from_static("\"a\""), Some(&*date(-60)))
        );
    }

    #[test]
    fn our_304_has_what_a_client_needs() {
        // RFC 9110 section 15.4.5.
        let stored = map(&[
            "etag: \"a\"",
            "date: x",
            "cache-control: x",
            "expires: x",
            "vary: x",
            "content-location: /x",
            "content-type: x",
            "content-length: 1",
            "content-encoding: x",
            "content-language: x",
            "content-range: x",
        ]);
        let mut found: Vec<HeaderName> = not_modified_fields(stored).keys().cloned().collect();
        found.sort_by_key(HeaderName::to_string);
        assert_eq!(
            found,
            [CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, VARY]
        );
    }

    #[test]
    fn validation_sends_stored_validators_only() {
        // RFC 9111 section 4.3.1.
        let mut forward = map(&[
            "if-none-match: \"client\"",
            "if-modified-since: x",
            "if-match: x",
            "if-unmodified-since: x",
            "if-range: x",
            "accept: y",
        ]);
        let first = map(&["etag: \"a\"", "last-modified: then"]);
        let second = map(&["etag: W/\"b\"", "last-modified: later"]);
        set_validation(&mut forward, [&first, &second]);
        assert_eq!(
            forward,
            map(&[
                "accept: y",
                "if-modified-since: then",
                "if-none-match: \"a\", W/\"b\""
            ])
        );
        set_validation(&mut forward, [&map(&[])]);
        assert_eq!(forward, map(&["accept: y"]));
    }

    #[test]
    fn validation_is_bounded() {
        let stored: Vec<HeaderMap> = (0..100)
            .map(|n| map(&[&format!("etag: \"{n:0>100}\"")]))
            .collect();
        let mut forward = HeaderMap::new();
        set_validation(&mut forward, &stored);
        let length = forward.get(IF_NONE_MATCH).map_or(0, |v| v.len());
        assert!(
            (100..=VALIDATION_BYTES_MAX + 200).contains(&length),
            "{length}"
        );
        set_validation(
            &mut forward,
            [&map(&[&format!("etag: \"{}\"", "x".repeat(4000))])],
        );
        assert_eq!(
            forward.get(IF_NONE_MATCH).map(|v| v.len()),
            Some(4002),
            "one always goes"
        );
    }

    #[test]
    fn a_304_confirms_what_it_names() {
        // RFC 9111 section 4.3.4. Stored response, 304, whether it is the only one validated.
        let modified = format!("last-modified: {}", date(0));
        let table: [(&[&str], &[&str], bool, bool); 12] = [
            (&["etag: \"a\""], &["etag: \"a\""], false, true),
            (&["etag: \"a\""], &["etag: \"b\""], true, false),
            (&["etag: \"a\""], &["etag: W/\"a\""], true, true),
            (&["etag: W/\"a\""], &["etag: W/\"a\""], true, true),
            (&["etag: W/\"a\""], &["etag: \"a\""], true, false),
            (&[&modified], &["etag: \"a\""], true, false),
            (&[&modified], &[&modified], false, true),
            (&[&modified], &["last-modified: x"], true, false),
            (&["etag: \"a\""], &[&modified], true, false),
            (&["etag: \"a\""], &[], true, true),
            (&["etag: \"a\""], &[], false, false),
            (
                &["etag: \"a\"", &modified],
                &["etag: \"b\"", &modified],
                true,
                false,
            ),
        ];
        for (stored, not_modified, is_only_one, expected) in table {
            assert_eq!(
                is_confirmed(&map(stored), &map(not_modified), is_only_one),
                expected,
                "{stored:?} {not_modified:?}"
            );
        }
    }

    #[test]
    fn freshening_replaces_all_but_what_describes_the_body() {
        // RFC 9111 section 3.2.
        let stored = map(&[
            "age: 50",
            "cache-control: max-age=1",
            "content-type: a",
            "content-encoding: a",
            "etag: \"a\"",
            "x: 1",
            "x: 2",
            "kept: 1",
            &format!("date: {}", date(-9)),
        ]);
        let new = map(&[
            "cache-control: max-age=9",
            "content-type: b",
            "content-encoding: b",
            "content-length: 5",
            "content-range: bytes 0-1/2",
            "connection: close, y",
            "y: 1",
            "transfer-encoding: chunked",
            "x: 3",
            "new: 1",
        ]);
        let expected = map(&[
            "cache-control: max-age=9",
            "content-type: a",
            "content-encoding: a",
            "etag: \"a\"",
            "x: 3",
            "kept: 1",
            "new: 1",
            &format!("date: {}", date(0)),
        ]);
        assert_eq!(freshened(&stored, &new, NOW_MS), expected);
    }

    #[test]
    fn stored_fields_have_a_date_and_no_framing() {
        // RFC 9111 sections 3.1 and 5.5.
        let stored = stored_fields(
            &map(&[
                "content-length: 5",
                "content-range: x",
                "connection: a",
                "a: 1",
                "b: 2",
            ]),
            NOW_MS,
        );
        assert_eq!(stored, map(&["b: 2", &format!("date: {}", date(0))]));
        let said = format!("date: {}", date(-5));
        assert_eq!(
            stored_fields(&map(&[&said]), NOW_MS),
            map(&[&said]),
            "one that is there stays"
        );
        assert!(!stored.contains_key("warning"));
    }

    #[test]
    fn head_confirms_or_makes_unusable() {
        // RFC 9111 section 4.3.5.
        let stored = map(&["etag: \"a\"", "last-modified: then"]);
        let table: [(u16, &[&str], HeadComparison); 8] = [
            (
                200,
                &["etag: \"a\"", "content-length: 5"],
                HeadComparison::Same,
            ),
            (200, &[], HeadComparison::Same),
            (200, &["content-length: 6"], HeadComparison::Other),
            (200, &["etag: \"b\""], HeadComparison::Other),
            (200, &["etag: W/\"a\""], HeadComparison::Other),
            (200, &["last-modified: now"], HeadComparison::Other),
            (404, &["etag: \"b\""], HeadComparison::Nothing),
            (304, &["etag: \"a\""], HeadComparison::Nothing),
        ];
        for (status, head, expected) in table {
            let status = StatusCode::from_u16(status).expect("valid");
            assert_eq!(
                compare_head(StatusCode::OK, &stored, Some(5), status, &map(head)),
                expected,
                "{status} {head:?}"
            );
        }
        let other = map(&["content-length: 6"]);
        assert_eq!(
            compare_head(StatusCode::OK, &stored, None, StatusCode::OK, &other),
            HeadComparison::Same,
            "a length that is not known yet"
        );
        assert_eq!(
            compare_head(
                StatusCode::NOT_FOUND,
                &stored,
                Some(5),
                StatusCode::OK,
                &other
            ),
            HeadComparison::Nothing
        );
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn no_condition_panics(tag in testing::pieces(&["\"a\"", "W/", "*", "a"]), other in testing::value(), more in testing::value()) {
            let mut request = HeaderMap::new();
            for name in CONDITIONS {
                request.append(name.clone(), tag.clone());
                request.append(name, more.clone());
            }
            let mut stored = HeaderMap::new();
            stored.insert(ETAG, other.clone());
            stored.insert(LAST_MODIFIED, more);
            evaluate(&Method::GET, &request, StatusCode::OK, &stored);
            is_confirmed(&stored, &request, true);
            compare_head(StatusCode::OK, &stored, Some(1), StatusCode::OK, &request);
            let validator = StrongValidator::of(&stored, u64::MAX);
            prop_assert!(validator.is_none_or(|validator| validator.matches(&stored)));
            set_validation(&mut request, [&stored, &stored]);
            prop_assert!(!request.contains_key(IF_MATCH) && !request.contains_key(IF_RANGE));
        }

        #[test]
        fn strong_equality_is_weak_equality(one in testing::pieces(&["\"a\"", "W/", "\"b\""]), other in testing::pieces(&["\"a\"", "W/", "\"b\""])) {
            prop_assert!(!is_strongly_equal(one.as_bytes(), other.as_bytes()) || is_weakly_equal(one.as_bytes(), other.as_bytes()));
        }

        #[test]
        fn a_tag_matches_itself(tag in "\"[!#-~]{0,20}\"") {
            let line = format!("if-none-match: \"other\", {tag}");
            prop_assert_eq!(asked(&[&line], &[&format!("etag: {tag}")]), Precondition::NotModified);
        }
    }
}
