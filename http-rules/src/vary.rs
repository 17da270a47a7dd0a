//! Which of several stored responses a request selects (`Vary`).
//!
//! Follows RFC 9111 section 4.1 and RFC 9110 section 12.5.

use std::hash::{DefaultHasher, Hash, Hasher};

use http::header::{ACCEPT_ENCODING, ACCEPT_LANGUAGE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::coding::{AcceptedCodings, accept_encoding};
use crate::fields;
use crate::request_fields::{self, OriginView};

/// Most names in `Vary`; a response with more is not stored.
const VARY_NAMES_MAX: usize = 32;

/// The fields that `Vary` names, sorted and without duplicates. `None` when `Vary` has `*`, an
/// invalid name or too many names: then no request selects the response.
pub fn names(response: &HeaderMap) -> Option<Vec<HeaderName>> {
    let mut names = Vec::new();
    for member in fields::list(response, VARY) {
        if member == b"*" || names.len() == VARY_NAMES_MAX {
            return None;
        }
        names.push(HeaderName::from_bytes(member).ok()?);
    }
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    Some(names)
}

/// The request's fields that select this response, which are stored with it. `Accept-Encoding` is
/// reduced as in [`coding`](crate::coding).
pub fn selecting(request: &HeaderMap, response: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in names(response)
        .unwrap_or_default()
        .into_iter()
        .filter(|name| !is_hidden(name, request))
    {
        if name == ACCEPT_ENCODING {
            kept.extend(accept_encoding(request).map(|value| (name, value)));
            continue;
        }
        for value in request.get_all(&name) {
            // Copied, since the value may keep a connection's whole read buffer alive.
            kept.append(
                name.clone(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone()),
            );
        }
    }
    kept
}

/// Whether a request selects a stored response. `stored` has the response's fields, `selecting` the
/// stored fields of its own request. Does not allocate where the fields are equal byte by byte.
pub fn is_selected(stored: &HeaderMap, selecting: &HeaderMap, request: &HeaderMap) -> bool {
    if !stored.contains_key(VARY) {
        return true;
    }
    // Responses whose `Vary` [`names`] refuses are never stored; this check does not rely on it.
    let mut left = VARY_NAMES_MAX;
    fields::list(stored, VARY).all(|member| {
        let is_name = member != b"*" && left > 0 && member.iter().all(|b| fields::is_token(*b));
        left = left.saturating_sub(1);
        is_name && std::str::from_utf8(member).is_ok_and(|name| is_same(name, selecting, request))
    })
}

/// The fast check: whether every field that `Vary` names has the same bytes, in one line, as in the
/// response's own request, or the same codings in `Accept-Encoding`. `stored` has the lines of the
/// response, `selecting` the stored lines of its own request, and `request` the lines of the
/// request's fields; its `Connection` must name none of them. Does not allocate. A request that
/// fails this check may still select the response by [`is_selected`].
pub fn matches_exactly<'a, 's>(
    stored: impl Iterator<Item = (&'s str, &'s [u8])> + Clone,
    selecting: impl Iterator<Item = (&'s str, &'s [u8])> + Clone,
    request: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
) -> bool {
    let is_same = |name: &str| {
        let (then, now) = (
            values(selecting.clone(), name),
            values(request.clone(), name),
        );
        let (mut kept, mut said) = (then.clone(), now.clone());
        let (first_kept, first_said) = (kept.next(), said.next());
        if first_kept == first_said {
            return kept.next().is_none() && said.next().is_none();
        }
        let is_coded = first_kept.is_some() && first_said.is_some() && is_accept_encoding(name);
        is_coded && AcceptedCodings::of(then) == AcceptedCodings::of(now)
    };
    values(stored, VARY.as_str())
        .flat_map(fields::members)
        .all(|member| member != b"*" && std::str::from_utf8(member).is_ok_and(is_same))
}

/// The values of the lines with a name.
fn values<'a, 'n>(
    lines: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
    name: &'n str,
) -> impl Iterator<Item = &'a [u8]> + Clone {
    lines
        .filter(move |(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

/// Whether two requests are equal in one field, after normalisation.
fn is_same(name: &str, one: &HeaderMap, other: &HeaderMap) -> bool {
    // The origin does not receive a field that `Connection` names, so the field counts as absent.
    if fields::is_named_by_connection(other, name) {
        return !one.contains_key(name);
    }
    if is_accept_encoding(name) {
        return AcceptedCodings::of_request(one) == AcceptedCodings::of_request(other);
    }
    one.get_all(name) == other.get_all(name)
        || normal(name, one) == normal(name, other)
        || HeaderName::from_bytes(name.as_bytes())
            .is_ok_and(|name| request_fields::origin_view(&name) == OriginView::Same)
}

/// Whether the origin never receives the client's value of a field: it is for one hop, or the edge
/// drops or replaces it.
fn is_hidden(name: &HeaderName, request: &HeaderMap) -> bool {
    fields::is_named_by_connection(request, name.as_str())
        || request_fields::origin_view(name) == OriginView::Same
}

fn is_accept_encoding(name: &str) -> bool {
    name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str())
}

/// Hashes of the names in a stored response's `Vary` and of its own request's values, by which an
/// index finds one response among many. Equal hashes prove nothing; with different ones a request
/// does not select the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selection {
    /// Hash of the names in `Vary`.
    pub names: u64,
    /// Hash of the request's values of these fields.
    pub hash: u64,
}

impl Selection {
    /// The hashes of a stored response; `None` when no request selects it. `stored` has the
    /// response's fields, `selecting` the stored fields of its own request.
    pub fn of(stored: &HeaderMap, selecting: &HeaderMap) -> Option<Self> {
        let names = names(stored)?;
        let mut hasher = DefaultHasher::new();
        names.hash(&mut hasher);
        Some(Self {
            names: hasher.finish(),
            hash: selection_hash(&names, selecting),
        })
    }
}

/// The hash of a request's values of these fields, as in [`Selection::hash`]. Requests that are
/// equal by [`is_selected`] have the same hash.
pub fn selection_hash(names: &[HeaderName], request: &HeaderMap) -> u64 {
    let mut hasher = DefaultHasher::new();
    for name in names {
        let is_hidden = is_hidden(name, request);
        if *name == ACCEPT_ENCODING {
            AcceptedCodings::of_request(request)
                .filter(|_| !is_hidden)
                .hash(&mut hasher);
        } else {
            normal(name.as_str(), request)
                .filter(|_| !is_hidden)
                .hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// A field in the form that is compared: the members in order; for a preference list the set of
/// members with their weights.
fn normal(name: &str, request: &HeaderMap) -> Option<Vec<Vec<u8>>> {
    request.get(name)?;
    let members = fields::list(request, name);
    if !name.eq_ignore_ascii_case(ACCEPT_LANGUAGE.as_str()) {
        return Some(members.map(<[u8]>::to_vec).collect());
    }
    let mut members: Vec<Vec<u8>> = members.map(preference).collect();
    members.sort_unstable();
    members.dedup();
    Some(members)
}

/// A member of a preference list in lower case, without white space, and without a weight of 1.
fn preference(member: &[u8]) -> Vec<u8> {
    let text: Vec<u8> = member
        .iter()
        .filter(|b| !matches!(b, b' ' | b'\t'))
        .map(u8::to_ascii_lowercase)
        .collect();
    let Some(at) = text.windows(3).position(|w| w == b";q=") else {
        return text;
    };

    let weight = &text[at + 3..];
    let weight = if weight.contains(&b'.') {
        weight
            .trim_ascii_end()
            .strip_suffix(b"0")
            .map_or(weight, trim_zeros)
    } else {
        weight
    };
    let weight = weight.strip_suffix(b".").unwrap_or(weight);

    let mut normal = text[..at].to_vec();
    if weight != b"1" {
        normal.extend_from_slice(b";q=");
        normal.extend_from_slice(weight);
    }
    normal
}

fn trim_zeros(mut digits: &[u8]) -> &[u8] {
    while let Some(shorter) = digits.strip_suffix(b"0") {
        digits = shorter;
    }
    digits
}

/// The response to use of several selected ones, each with its `Date` in seconds and the time of its
/// receipt in milliseconds: the one with the newest `Date`; of equal ones the one received last.
pub fn newest<T>(selected: impl IntoIterator<Item = (T, Option<u64>, u64)>) -> Option<T> {
    let made = |date: Option<u64>, received_ms: u64| date.unwrap_or(received_ms / 1000);
    selected
        .into_iter()
        .max_by_key(|(_, date, received_ms)| (made(*date, *received_ms), *received_ms))
        .map(|(found, ..)| found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, NOW_MS, map};

    /// Whether a response stored for the first request answers the second.
    fn matches(response: &[&str], first: &[&str], second: &[&str]) -> bool {
        let (response, first) = (map(response), map(first));
        is_selected(&response, &selecting(&first, &response), &map(second))
    }

    #[test]
    fn every_listed_field_must_match() {
        // RFC 9111 section 4.1.
        type Lines = &'static [&'static str];
        let table: [(Lines, Lines, Lines, bool); 18] = [
            (&[], &["foo: 1"], &["foo: 2"], true),
            (&["vary: Foo"], &["foo: 1"], &["foo: 1"], true),
            (&["vary: foo"], &["foo: 1"], &["foo: 2"], false),
            (&["vary: foo"], &["foo: 1"], &[], false),
            (&["vary: foo"], &[], &["foo: 1"], false),
            (&["vary: foo"], &[], &["foo:"], false),
            (&["vary: foo"], &[], &["bar: 1"], true),
            (
                &["vary: foo, bar"],
                &["foo: 1", "bar: a"],
                &["bar: a", "foo: 1"],
                true,
            ),
            (
                &["vary: foo", "vary: bar"],
                &["foo: 1", "bar: a"],
                &["foo: 1", "bar: b"],
                false,
            ),
            (&["vary: , foo, ,"], &["foo: 1"], &["foo: 1"], true),
            (
                &["vary: foo, bar, baz"],
                &["foo: 1", "baz: 7"],
                &["foo: 1", "baz: 7"],
                true,
            ),
            (&["vary: *"], &["foo: 1"], &["foo: 1"], false),
            (&["vary: *, foo"], &["foo: 1"], &["foo: 1"], false),
            (&["vary: foo", "vary: *"], &["foo: 1"], &["foo: 1"], false),
            // What the origin does not see tells no requests apart.
            (
                &["vary: x-forwarded-host"],
                &[],
                &["x-forwarded-host: a"],
                true,
            ),
            (
                &["vary: X-Real-IP, foo"],
                &["x-real-ip: a", "foo: 1"],
                &["foo: 1"],
                true,
            ),
            (
                &["vary: te, x-forwarded-proto"],
                &["te: trailers"],
                &["x-forwarded-proto: a"],
                true,
            ),
            (&["vary: via"], &[], &["via: 1.1 a"], false),
        ];
        for (response, first, second, expected) in table {
            assert_eq!(
                matches(response, first, second),
                expected,
                "{response:?} {first:?} {second:?}"
            );
        }
    }

    #[test]
    fn what_is_repeated_is_selected_and_not_the_other_way_round() {
        type Lines = &'static [&'static str];
        // Response, first request, second request, whether it is repeated, whether it is selected.
        let table: [(Lines, Lines, Lines, bool, bool); 15] = [
            (&[], &["foo: 1"], &["foo: 2"], true, true),
            (&["vary: Foo"], &["foo: 1"], &["FOO: 1"], true, true),
            (&["vary: foo, bar"], &["foo: 1"], &["foo: 1"], true, true),
            (
                &["vary: foo", "vary: bar"],
                &["foo: 1"],
                &["foo: 1", "bar: 1"],
                false,
                false,
            ),
            (&["vary: foo"], &["foo: 1"], &["foo: 2"], false, false),
            (
                &["vary: foo"],
                &["foo: 1"],
                &["foo: 1", "foo: 2"],
                false,
                false,
            ),
            (
                &["vary: foo"],
                &["foo: 1", "foo: 2"],
                &["foo: 1"],
                false,
                false,
            ),
            (
                &["vary: foo"],
                &["foo: 1", "foo: 2"],
                &["foo: 1, 2"],
                false,
                true,
            ),
            (
                &["vary: accept-encoding"],
                &["accept-encoding: gzip, br"],
                &["accept-encoding: br,gzip"],
                true,
                true,
            ),
            (
                &["vary: accept-encoding"],
                &["accept-encoding: gzip, br"],
                &["accept-encoding: br", "accept-encoding: gzip;q=0.5"],
                true,
                true,
            ),
            (
                &["vary: accept-encoding"],
                &["accept-encoding: gzip"],
                &["accept-encoding: br"],
                false,
                false,
            ),
            (
                &["vary: accept-encoding"],
                &["accept-encoding: identity"],
                &[],
                false,
                false,
            ),
            (
                &["vary: accept-encoding"],
                &[],
                &["accept-encoding: identity"],
                false,
                false,
            ),
            (
                &["vary: accept-encoding, foo"],
                &["accept-encoding: gzip", "foo: 1"],
                &["accept-encoding: x, gzip", "foo: 1"],
                true,
                true,
            ),
            (&["vary: *"], &[], &[], false, false),
        ];
        for (response, first, second, repeated, selected) in table {
            let (stored, request) = (map(response), map(second));
            let kept = selecting(&map(first), &stored);
            let lines = |fields: &HeaderMap| -> Vec<(String, Vec<u8>)> {
                let owned = |(name, value): (&HeaderName, &HeaderValue)| {
                    (name.to_string(), value.as_bytes().to_vec())
                };
                fields.iter().map(owned).collect()
            };
            let (all, own, asked) = (lines(&stored), lines(&kept), lines(&request));
            assert_eq!(
                matches_exactly(borrowed(&all), borrowed(&own), borrowed(&asked)),
                repeated,
                "{response:?} {first:?} {second:?}"
            );
            assert_eq!(
                is_selected(&stored, &kept, &request),
                selected,
                "{response:?} {first:?} {second:?}"
            );
        }
    }

    fn borrowed(lines: &[(String, Vec<u8>)]) -> impl Iterator<Item = (&str, &[u8])> + Clone {
        lines.iter().map(|(name, value)| (&**name, &**value))
    }

    #[test]
    fn only_white_space_and_lines_may_differ() {
        // RFC 9111 section 4.1: white space and lines may be normalised.
        let table: [(&[&str], &[&str], bool); 7] = [
            (&["foo: 1,2"], &["foo:  1 , 2 "], true),
            (&["foo: 1, 2"], &["foo: 1", "foo: 2"], true),
            (&["foo: 1, 2"], &["foo: 2, 1"], false),
            (&["foo: a"], &["foo: A"], false),
            (&["foo: \"a,b\""], &["foo: \"a, b\""], false),
            (&["foo: a b"], &["foo: ab"], false),
            (&["foo: 1"], &["foo: 1", "foo: 1"], false),
        ];
        for (first, second, expected) in table {
            assert_eq!(
                matches(&["vary: foo"], first, second),
                expected,
                "{first:?} {second:?}"
            );
        }
    }

    #[test]
    fn languages_are_sets_with_weights() {
        // RFC 9111 section 4.1 and RFC 9110 section 12.5.4.
        let table = [
            ("de, en", "en,de", true),
            ("DE", "de", true),
            ("de;q=1.0", "de", true),
            ("de; q=0.50", "de;q=0.5", true),
            ("de;q=0.000", "de;q=0", true),
            ("de;Q=0.5", "de;q=0.5", true),
            ("de;q=0.5", "de", false),
            ("de;q=0", "de", false),
            ("de", "de, en", false),
            ("de;q=10", "de;q=1", false),
            ("de;q=0.05", "de;q=0.5", false),
        ];
        for (first, second, expected) in table {
            let (first, second) = (
                format!("accept-language: {first}"),
                format!("accept-language: {second}"),
            );
            assert_eq!(
                matches(&["vary: accept-language"], &[&first], &[&second]),
                expected,
                "{first} {second}"
            );
        }
    }

    #[test]
    fn codings_are_reduced_to_those_that_count() {
        // RFC 9110 section 12.5.3.
        let table = [
            ("", "identity"),
            ("identity", "identity"),
            ("gzip", "gzip"),
            ("x-gzip", "gzip"),
            ("GZIP;q=1.0", "gzip"),
            ("br,gzip", "gzip, br"),
            ("gzip, deflate, br, zstd", "gzip, deflate, br, zstd"),
            (
                "gzip, deflate, br, zstd, dcb, dcz",
                "gzip, deflate, br, zstd, dcb, dcz",
            ),
            ("gzip;q=1.0,deflate;q=0.6,identity;q=0.3", "gzip, deflate"),
            ("gzip;q=0.001", "gzip"),
            ("gzip;q=0", "identity"),
            ("gzip;q=0.000, br", "br"),
            ("gzip; q = 0 , br", "br"),
            ("gzip;foo=1;Q=0, br", "br"),
            ("gzip, gzip;q=0", "identity"),
            ("gzip;q=0, gzip", "identity"),
            // What is malformed, and what nobody knows, is as good as absent.
            ("gzip;q=10", "identity"),
            ("gzip;q=-1, br;q=, zstd;q=0.x", "identity"),
            ("compress, exi, junk-31, gzip", "gzip"),
            ("junk-1;q=0", "identity"),
            ("\"gzip\"", "identity"),
            // What is not named is refused, unless there is a star.
            ("*", "*"),
            ("*;q=0.5, gzip", "gzip, *"),
            ("*, gzip;q=0, br;q=0", "*, gzip;q=0, br;q=0"),
            ("*, junk;q=0", "*"),
            // Identity is accepted unless it is refused.
            ("identity;q=0", "identity;q=0"),
            ("*;q=0", "identity;q=0"),
            ("identity;q=1, *;q=0", "identity"),
            ("gzip, *;q=0", "gzip, identity;q=0"),
            ("gzip, identity;q=0", "gzip, identity;q=0"),
            ("*, identity;q=0", "*, identity;q=0"),
            ("*, *;q=0", "identity;q=0"),
        ];
        for (said, expected) in table {
            let reduced =
                accept_encoding(&map(&[&format!("accept-encoding: {said}")])).expect("it is there");
            assert_eq!(reduced, expected, "{said}");
            let (said, reduced) = (
                format!("accept-encoding: {said}"),
                format!("accept-encoding: {expected}"),
            );
            assert!(
                matches(&["vary: Accept-Encoding"], &[&said], &[&reduced]),
                "{said}"
            );
        }
        assert_eq!(
            accept_encoding(&map(&["accept-encoding: gzip", "accept-encoding: br"]))
                .expect("there"),
            "gzip, br"
        );
        assert_eq!(accept_encoding(&map(&[])), None);
        assert!(
            !matches(
                &["vary: accept-encoding"],
                &[],
                &["accept-encoding: identity"]
            ),
            "absent is not the same as said"
        );
        assert!(!matches(
            &["vary: accept-encoding"],
            &["accept-encoding: gzip"],
            &["accept-encoding: gzip, br"]
        ));
        assert!(!matches(
            &["vary: accept-encoding"],
            &["accept-encoding: gzip"],
            &["accept-encoding: gzip, identity;q=0"]
        ));
    }

    #[test]
    fn what_a_client_takes_away_behind_us_counts_as_absent() {
        // The origin answered without seeing `foo`: that answer is for those who send none.
        let hides = ["connection: foo", "foo: 1"];
        assert!(!matches(&["vary: foo"], &hides, &["foo: 1"]));
        assert!(matches(&["vary: foo"], &hides, &[]));
        assert!(matches(&["vary: foo"], &[], &hides));
        assert!(!matches(&["vary: foo"], &["foo: 1"], &hides));
    }

    #[test]
    fn names_are_bounded() {
        let wide = |count| {
            map(&[&format!(
                "vary: {}",
                (0..count)
                    .map(|n| format!("f{n}"))
                    .collect::<Vec<_>>()
                    .join(",")
            )])
        };
        assert_eq!(
            names(&wide(VARY_NAMES_MAX)).map(|n| n.len()),
            Some(VARY_NAMES_MAX)
        );
        assert_eq!(names(&wide(VARY_NAMES_MAX + 1)), None);
        assert_eq!(
            names(&map(&["vary: b, a, B"])),
            Some(vec![
                HeaderName::from_static("a"),
                HeaderName::from_static("b")
            ])
        );
    }

    #[test]
    fn the_newest_date_wins() {
        // RFC 9111 section 4.1.
        let (old, new) = (Some(NOW_MS / 1000 - 9), Some(NOW_MS / 1000 + 9));
        assert_eq!(newest([("new", new, 1), ("old", old, 2)]), Some("new"));
        assert_eq!(newest([("a", old, 1), ("b", old, 2)]), Some("b"));
        assert_eq!(
            newest([("old", old, NOW_MS), ("without", None, NOW_MS)]),
            Some("without")
        );
        assert_eq!(newest::<()>([]), None);
    }

    fn codings_value() -> impl Strategy<Value = HeaderValue> {
        testing::pieces(&[
            "gzip", "br", "identity", "*", ";q=0", ";q=0.5", ";q=1", ", ", "x",
        ])
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn requests_that_select_the_same_have_the_same_number(first in codings_value(), second in codings_value(), foo in testing::value(), bar in testing::value()) {
            let response = map(&["vary: foo, accept-language, accept-encoding"]);
            let names = names(&response).expect("valid");
            let mut requests = [map(&[]), map(&["connection: foo"])];
            for (request, value) in requests.iter_mut().zip([&first, &second]) {
                request.insert("accept-encoding", value.clone());
                request.insert("accept-language", value.clone());
                request.insert("foo", foo.clone());
                request.append("foo", bar.clone());
            }
            for (one, other) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let kept = selecting(&requests[one], &response);
                let selection = Selection::of(&response, &kept).expect("valid");
                let is_equal = selection.hash == selection_hash(&names, &requests[other]);
                prop_assert!(is_equal || !is_selected(&response, &kept, &requests[other]), "{:?}", requests);
            }
        }

        #[test]
        fn a_request_selects_what_it_made(vary in testing::value(), foo in testing::value(), bar in testing::value()) {
            let mut response = map(&["vary: foo, accept-language"]);
            let mut request = HeaderMap::new();
            request.insert("foo", foo.clone());
            request.insert("accept-language", bar.clone());
            prop_assert!(is_selected(&response, &selecting(&request, &response), &request));
            response.append(VARY, vary);
            let is_possible = names(&response).is_some();
            prop_assert_eq!(is_selected(&response, &selecting(&request, &response), &request), is_possible);
        }
    }
}
