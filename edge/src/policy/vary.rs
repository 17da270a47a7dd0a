//! Which of several stored responses a request selects.
//!
//! Follows RFC 9111 section 4.1 and RFC 9110 section 12.5.

use http::header::{DATE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::fields;

/// Names in `Vary`; a response with more is not stored.
pub const VARY_NAMES_MAX: usize = 32;

/// The fields that `Vary` names, sorted, each once; `None` when it has `*`, an invalid name or too many: then the
/// response selects nothing.
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

/// The request's fields that select this response, to be kept with it.
pub fn selecting(request: &HeaderMap, response: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in names(response).unwrap_or_default().into_iter().filter(|name| !fields::is_named_by_connection(request, name.as_str())) {
        for value in request.get_all(&name) {
            // A copy of its own: the value may keep a connection's whole read buffer alive.
            kept.append(name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone()));
        }
    }
    kept
}

/// Whether a request selects a stored response: `stored` are its fields, `selecting` those kept of its request.
/// Allocates nothing where the fields are equal as they came.
pub fn is_selected(stored: &HeaderMap, selecting: &HeaderMap, request: &HeaderMap) -> bool {
    if !stored.contains_key(VARY) {
        return true;
    }
    // What [`names`] refuses is never stored; so that this holds also for what another version stored, it is asked again.
    let mut left = VARY_NAMES_MAX;
    fields::list(stored, VARY).all(|member| {
        let is_name = member != b"*" && left > 0 && member.iter().all(|b| fields::is_token(*b));
        left = left.saturating_sub(1);
        is_name && std::str::from_utf8(member).is_ok_and(|name| is_same(name, selecting, request))
    })
}

/// Whether a request, given as its fields' lines, says byte by byte what the response's own request said in
/// every field that `Vary` names, in one line each. Allocates nothing. What is not repeated may still be selected by the
/// rules of [`is_selected`]; `Connection` must name none of the fields.
pub fn is_repeated<'a>(stored: &HeaderMap, selecting: &HeaderMap, request: impl Iterator<Item = (&'a str, &'a [u8])> + Clone) -> bool {
    let is_same = |name: &str| {
        let mut then = selecting.get_all(name).iter();
        let mut now = request.clone().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        then.next().map(HeaderValue::as_bytes) == now.next() && then.next().is_none() && now.next().is_none()
    };
    !stored.contains_key(VARY) || fields::list(stored, VARY).all(|member| member != b"*" && std::str::from_utf8(member).is_ok_and(is_same))
}

/// Whether two requests say the same in one field.
fn is_same(name: &str, one: &HeaderMap, other: &HeaderMap) -> bool {
    // What a client takes away behind this hop the origin does not see: it counts as absent.
    if fields::is_named_by_connection(other, name) {
        return !one.contains_key(name);
    }
    one.get_all(name) == other.get_all(name) || normal(name, one) == normal(name, other)
}

/// A field as it is compared: its members in order; a preference list as a set with its weights.
fn normal(name: &str, request: &HeaderMap) -> Option<Vec<Vec<u8>>> {
    request.get(name)?;
    let is_preference = ["accept-encoding", "accept-language"].iter().any(|known| known.eq_ignore_ascii_case(name));
    let members = fields::list(request, name);
    if !is_preference {
        return Some(members.map(<[u8]>::to_vec).collect());
    }
    let mut members: Vec<Vec<u8>> = members.map(preference).collect();
    members.sort_unstable();
    members.dedup();
    Some(members)
}

/// A member of a preference list: lower case, no white space, its weight only where it is not 1.
fn preference(member: &[u8]) -> Vec<u8> {
    let text: Vec<u8> = member.iter().filter(|b| !matches!(b, b' ' | b'\t')).map(u8::to_ascii_lowercase).collect();
    let Some(at) = text.windows(3).position(|w| w == b";q=") else { return text };
    let weight = &text[at + 3..];
    let weight = if weight.contains(&b'.') { weight.trim_ascii_end().strip_suffix(b"0").map_or(weight, trim_zeros) } else { weight };
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

/// Which of several selected responses is used: the one with the newest `Date`, of equals the one received last.
pub fn newest<'a, T>(selected: impl IntoIterator<Item = (T, &'a HeaderMap, u64)>) -> Option<T> {
    let made = |fields: &HeaderMap, received_ms: u64| fields::date(fields, DATE).unwrap_or(received_ms / 1000);
    selected.into_iter().max_by_key(|(_, fields, received_ms)| (made(fields, *received_ms), *received_ms)).map(|(found, ..)| found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{self, NOW_MS, date, map};
    use super::*;

    /// Whether a response stored for the first request answers the second.
    fn matches(response: &[&str], first: &[&str], second: &[&str]) -> bool {
        let (response, first) = (map(response), map(first));
        is_selected(&response, &selecting(&first, &response), &map(second))
    }

    #[test]
    fn every_listed_field_must_match() {
        // 14.
        type Lines = &'static [&'static str];
        let table: [(Lines, Lines, Lines, bool); 14] = [
            (&[], &["foo: 1"], &["foo: 2"], true),
            (&["vary: Foo"], &["foo: 1"], &["foo: 1"], true),
            (&["vary: foo"], &["foo: 1"], &["foo: 2"], false),
            (&["vary: foo"], &["foo: 1"], &[], false),
            (&["vary: foo"], &[], &["foo: 1"], false),
            (&["vary: foo"], &[], &["foo:"], false),
            (&["vary: foo"], &[], &["bar: 1"], true),
            (&["vary: foo, bar"], &["foo: 1", "bar: a"], &["bar: a", "foo: 1"], true),
            (&["vary: foo", "vary: bar"], &["foo: 1", "bar: a"], &["foo: 1", "bar: b"], false),
            (&["vary: , foo, ,"], &["foo: 1"], &["foo: 1"], true),
            (&["vary: foo, bar, baz"], &["foo: 1", "baz: 7"], &["foo: 1", "baz: 7"], true),
            (&["vary: *"], &["foo: 1"], &["foo: 1"], false),
            (&["vary: *, foo"], &["foo: 1"], &["foo: 1"], false),
            (&["vary: foo", "vary: *"], &["foo: 1"], &["foo: 1"], false),
        ];
        for (response, first, second, expected) in table {
            assert_eq!(matches(response, first, second), expected, "{response:?} {first:?} {second:?}");
        }
    }

    #[test]
    fn what_is_repeated_is_selected_and_not_the_other_way_round() {
        type Lines = &'static [&'static str];
        // Response, first request, second request, whether it is repeated, whether it is selected.
        let table: [(Lines, Lines, Lines, bool, bool); 10] = [
            (&[], &["foo: 1"], &["foo: 2"], true, true),
            (&["vary: Foo"], &["foo: 1"], &["FOO: 1"], true, true),
            (&["vary: foo, bar"], &["foo: 1"], &["foo: 1"], true, true),
            (&["vary: foo", "vary: bar"], &["foo: 1"], &["foo: 1", "bar: 1"], false, false),
            (&["vary: foo"], &["foo: 1"], &["foo: 2"], false, false),
            (&["vary: foo"], &["foo: 1"], &["foo: 1", "foo: 2"], false, false),
            (&["vary: foo"], &["foo: 1", "foo: 2"], &["foo: 1"], false, false),
            (&["vary: foo"], &["foo: 1", "foo: 2"], &["foo: 1, 2"], false, true),
            (&["vary: accept-encoding"], &["accept-encoding: gzip, br"], &["accept-encoding: br,gzip"], false, true),
            (&["vary: *"], &[], &[], false, false),
        ];
        for (response, first, second, repeated, selected) in table {
            let (stored, request) = (map(response), map(second));
            let kept = selecting(&map(first), &stored);
            let lines: Vec<_> = request.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
            assert_eq!(is_repeated(&stored, &kept, lines.iter().copied()), repeated, "{response:?} {first:?} {second:?}");
            assert_eq!(is_selected(&stored, &kept, &request), selected, "{response:?} {first:?} {second:?}");
        }
    }

    #[test]
    fn only_white_space_and_lines_may_differ() {
        // 15.
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
            assert_eq!(matches(&["vary: foo"], first, second), expected, "{first:?} {second:?}");
        }
    }

    #[test]
    fn preferences_are_sets_with_weights() {
        // 15.
        let table = [
            ("gzip, br", "br,gzip", true),
            ("GZIP", "gzip", true),
            ("gzip;q=1.0", "gzip", true),
            ("gzip; q=0.50", "gzip;q=0.5", true),
            ("gzip;q=0.000", "gzip;q=0", true),
            ("gzip;Q=0.5", "gzip;q=0.5", true),
            ("gzip;q=0.5", "gzip", false),
            ("gzip;q=0", "gzip", false),
            ("gzip", "gzip, br", false),
            ("gzip;q=10", "gzip;q=1", false),
            ("gzip;q=0.05", "gzip;q=0.5", false),
        ];
        for (first, second, expected) in table {
            for name in ["accept-encoding", "accept-language"] {
                let (first, second) = (format!("{name}: {first}"), format!("{name}: {second}"));
                assert_eq!(matches(&[&format!("vary: {name}")], &[&first], &[&second]), expected, "{first} {second}");
            }
        }
        assert!(!matches(&["vary: accept-encoding"], &[], &["accept-encoding: identity"]), "absent is not the same as said");
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
        let wide = |count| map(&[&format!("vary: {}", (0..count).map(|n| format!("f{n}")).collect::<Vec<_>>().join(","))]);
        assert_eq!(names(&wide(VARY_NAMES_MAX)).map(|n| n.len()), Some(VARY_NAMES_MAX));
        assert_eq!(names(&wide(VARY_NAMES_MAX + 1)), None);
        assert_eq!(names(&map(&["vary: b, a, B"])), Some(vec![HeaderName::from_static("a"), HeaderName::from_static("b")]));
    }

    #[test]
    fn the_newest_date_wins() {
        // 16.
        let (old, new, none) = (map(&[&format!("date: {}", date(-9))]), map(&[&format!("date: {}", date(9))]), map(&[]));
        assert_eq!(newest([("new", &new, 1), ("old", &old, 2)]), Some("new"));
        assert_eq!(newest([("a", &old, 1), ("b", &old, 2)]), Some("b"));
        assert_eq!(newest([("old", &old, NOW_MS), ("without", &none, NOW_MS)]), Some("without"));
        assert_eq!(newest::<()>([]), None);
    }

    proptest! {
        #![proptest_config(testing::seeded())]

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
