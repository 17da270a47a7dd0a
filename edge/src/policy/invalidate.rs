//! What an answer makes unusable, and the tags by which purges find a stored response.
//!
//! Follows RFC 9111 section 4.4 (invalidation) and RFC 9875 (groups).

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderName, Method, StatusCode};

use super::fields;
use super::key::{self, MethodClass};

/// Tags of one response; more are left out.
pub const TAGS_MAX: usize = 256;
/// Bytes of one tag; a longer one is left out.
pub const TAG_BYTES_MAX: usize = 256;

/// What an answer makes unusable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Invalidation {
    /// Keys whose every stored response goes.
    pub urls: Vec<String>,
    /// Groups of the same origin whose every stored response is to be validated or goes (RFC 9875 section 3).
    pub groups: Vec<Box<str>>,
}

/// What the answer to a request makes unusable: nothing unless the method is unsafe and the answer no error.
/// `url` is the request's key.
pub fn invalidated(method: &Method, url: &str, status: StatusCode, response: &HeaderMap) -> Invalidation {
    let is_unsafe = key::method_class(method) == MethodClass::Unsafe;
    if !is_unsafe || !(status.is_success() || status.is_redirection()) {
        return Invalidation::default();
    }
    let mut urls = vec![url.to_owned()];
    for name in [LOCATION, CONTENT_LOCATION] {
        let target = response.get(name).and_then(|value| value.to_str().ok());
        if let Some(found) = target.and_then(|target| same_origin_url(url, target)).filter(|found| !urls.contains(found)) {
            urls.push(found);
        }
    }
    Invalidation { urls, groups: group_names(response, "cache-group-invalidation") }
}

/// A reference resolved against a key (RFC 3986 section 5.2), as a key; `None` when it is of another origin.
pub fn same_origin_url(base: &str, reference: &str) -> Option<String> {
    let reference = reference.trim().split('#').next()?;
    let (scheme, rest) = base.split_once("://")?;
    let path_at = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(path_at);
    let base_path = path.split('?').next().unwrap_or("/");
    let has_scheme = reference.find([':', '/', '?']).is_some_and(|at| reference[at..].starts_with(':'));
    let path = if has_scheme {
        let (other_scheme, after) = reference.split_once("://")?;
        on_host(scheme, host, other_scheme, after)?
    } else if let Some(after) = reference.strip_prefix("//") {
        on_host(scheme, host, scheme, after)?
    } else if reference.is_empty() {
        path.to_owned()
    } else if reference.starts_with('?') {
        format!("{base_path}{reference}")
    } else if reference.starts_with('/') {
        without_dots(reference)
    } else {
        let directory = base_path.rfind('/').map_or("/", |at| &base_path[..=at]);
        without_dots(&format!("{directory}{reference}"))
    };
    Some(format!("{scheme}://{host}{path}"))
}

fn on_host(scheme: &str, host: &str, other_scheme: &str, after: &str) -> Option<String> {
    let at = after.find(['/', '?']).unwrap_or(after.len());
    let (other, path) = after.split_at(at);
    let is_same = other_scheme.eq_ignore_ascii_case(scheme) && key::authority(scheme, other).is_ok_and(|other| other == host);
    let slash = if path.starts_with('/') { "" } else { "/" };
    is_same.then(|| without_dots(&format!("{slash}{path}")))
}

/// A path without `.` and `..` (RFC 3986 section 5.2.4); its query as it is.
fn without_dots(path_and_query: &str) -> String {
    let (path, query) = path_and_query.split_at(path_and_query.find('?').unwrap_or(path_and_query.len()));
    let mut kept: Vec<&str> = Vec::new();
    let mut is_directory = false;
    for segment in path.split('/').skip(1) {
        is_directory = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
    }
    let end = if is_directory && !kept.is_empty() { "/" } else { "" };
    format!("/{}{end}{query}", kept.join("/"))
}

/// Tags of a response from `Cache-Tag` (commas), `Surrogate-Key` (spaces) and `Cache-Groups` (strings), sorted, each once.
pub fn tags(response: &HeaderMap) -> Box<[Box<str>]> {
    let mut tags: Vec<Box<str>> = Vec::new();
    for member in fields::list(response, "cache-tag") {
        tags.extend(tag(fields::unquoted(member)));
    }
    for value in response.get_all("surrogate-key") {
        tags.extend(value.as_bytes().split(|b| matches!(b, b' ' | b'\t')).take(TAGS_MAX).filter_map(tag));
    }
    tags.extend(groups(response));
    tags.truncate(TAGS_MAX);
    tags.sort_unstable();
    tags.dedup();
    tags.into()
}

fn tag(text: &[u8]) -> Option<Box<str>> {
    let is_tag = !text.is_empty() && text.len() <= TAG_BYTES_MAX && text.iter().all(|b| (0x21..0x7f).contains(b) || *b == b' ');
    is_tag.then(|| std::str::from_utf8(text).ok().map(Box::from))?
}

/// The groups of a response (RFC 9875 section 2); they hold within its origin only, see [`origin_of`].
pub fn groups(response: &HeaderMap) -> Vec<Box<str>> {
    group_names(response, "cache-groups")
}

/// Scheme and authority of a key, within which groups hold.
pub fn origin_of(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    &url[..end]
}

/// A structured list of strings; members that are none, are empty or too long are left out (RFC 9875 section 2).
fn group_names(response: &HeaderMap, name: &'static str) -> Vec<Box<str>> {
    fields::strings(response, &HeaderName::from_static(name)).iter().filter_map(|group| tag(group.as_bytes())).take(TAGS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{self, map};
    use super::*;

    const URL: &str = "http://a.test/dir/page?q=1";

    fn urls(method: &str, status: u16, response: &[&str]) -> Vec<String> {
        let method = Method::from_bytes(method.as_bytes()).expect("a token");
        invalidated(&method, URL, StatusCode::from_u16(status).expect("valid"), &map(response)).urls
    }

    #[test]
    fn unsafe_methods_that_succeed_drop_their_target() {
        // 48.
        for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH"] {
            for (status, is_dropped) in [(200, true), (201, true), (204, true), (303, true), (400, false), (404, false), (500, false)] {
                assert_eq!(urls(method, status, &[]), if is_dropped { vec![URL] } else { vec![] }, "{method} {status}");
            }
        }
        for method in ["GET", "HEAD", "OPTIONS", "PROPFIND", "TRACE"] {
            assert!(urls(method, 200, &["location: /x"]).is_empty(), "{method}");
        }
    }

    #[test]
    fn locations_are_dropped_on_the_same_origin_only() {
        // 49.
        let found = urls("POST", 201, &["location: /new", "content-location: http://A.test:80/other"]);
        assert_eq!(found, [URL, "http://a.test/new", "http://a.test/other"]);
        let found = urls("POST", 201, &["location: http://b.test/new", "content-location: https://a.test/other"]);
        assert_eq!(found, [URL]);
        assert_eq!(urls("POST", 201, &["location: /dir/page?q=1"]), [URL], "each once");
    }

    #[test]
    fn references_resolve_within_their_origin() {
        let table = [
            ("/x", Some("http://a.test/x")),
            ("/x/../y/./z", Some("http://a.test/y/z")),
            ("/x/..", Some("http://a.test/")),
            ("/x/y/..", Some("http://a.test/x/")),
            ("/../../x", Some("http://a.test/x")),
            ("x", Some("http://a.test/dir/x")),
            ("../x", Some("http://a.test/x")),
            ("./", Some("http://a.test/dir/")),
            ("?r=2", Some("http://a.test/dir/page?r=2")),
            ("?u=http://b/", Some("http://a.test/dir/page?u=http://b/")),
            ("", Some(URL)),
            ("#part", Some(URL)),
            ("/x#part", Some("http://a.test/x")),
            ("/x?../y", Some("http://a.test/x?../y")),
            ("/a//b/", Some("http://a.test/a//b/")),
            ("//a.test/x", Some("http://a.test/x")),
            ("//A.test:80", Some("http://a.test/")),
            ("http://a.test?q", Some("http://a.test/?q")),
            ("HTTP://a.test/x", Some("http://a.test/x")),
            ("//b.test/x", None),
            ("http://a.test:8080/x", None),
            ("https://a.test/x", None),
            ("http://user@a.test/x", None),
            ("mailto:a@a.test", None),
            ("javascript:alert(1)", None),
        ];
        for (reference, expected) in table {
            assert_eq!(same_origin_url(URL, reference).as_deref(), expected, "{reference}");
        }
        assert_eq!(origin_of(URL), "http://a.test");
        assert_eq!(origin_of("http://a.test"), "http://a.test");
    }

    #[test]
    fn groups_are_strings_of_their_origin() {
        // 50.
        let table: [(&[&str], &[&str]); 5] = [
            (&["cache-groups: \"a\", \"b c\";x=1"], &["a", "b c"]),
            (&["cache-groups: \"a\"", "cache-groups: \"b\", token, \"\""], &["a", "b"]),
            (&["cache-groups: a, b"], &[]),
            (&["cache-groups: \"a\", ?"], &[]),
            (&["cache-groups: \"with \\\"quotes\\\"\""], &["with \"quotes\""]),
        ];
        for (response, expected) in table {
            assert_eq!(groups(&map(response)).iter().map(|g| &**g).collect::<Vec<_>>(), expected, "{response:?}");
        }
        let said = map(&["cache-group-invalidation: \"a\", \"b\""]);
        let of = |method: Method, status| invalidated(&method, URL, status, &said).groups.len();
        assert_eq!(of(Method::POST, StatusCode::OK), 2);
        assert_eq!(of(Method::GET, StatusCode::OK), 0, "a safe method invalidates nothing");
        assert_eq!(of(Method::POST, StatusCode::BAD_REQUEST), 0);
    }

    #[test]
    fn tags_come_from_three_fields_and_are_bounded() {
        // 50.
        let response = map(&["cache-tag: b, a , a", "surrogate-key: c  d", "cache-groups: \"e\", \"f\"", "cache-tag: \"g\""]);
        assert_eq!(tags(&response).iter().map(|t| &**t).collect::<Vec<_>>(), ["a", "b", "c", "d", "e", "f", "g"]);
        let longest = "x".repeat(TAG_BYTES_MAX);
        assert_eq!(tags(&map(&[&format!("cache-tag: {longest}, {longest}y, z")])).len(), 2);
        let many: Vec<String> = (0..TAGS_MAX * 2).map(|n| format!("t{n}")).collect();
        assert_eq!(tags(&map(&[&format!("cache-tag: {}", many.join(","))])).len(), TAGS_MAX);
        assert_eq!(tags(&map(&[&format!("surrogate-key: {}", many.join(" "))])).len(), TAGS_MAX);
        let groups_many = many.iter().map(|t| format!("\"{t}\"")).collect::<Vec<_>>().join(", ");
        assert_eq!(groups(&map(&[&format!("cache-groups: {groups_many}")])).len(), TAGS_MAX);
        assert_eq!(tags(&map(&["cache-tag: a\tb", "cache-tag:"])).len(), 0);
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn no_response_panics(values in proptest::collection::vec(testing::value(), 1..4), groups in testing::pieces(&["\"a\"", ", ", ";x", "(", ")"])) {
            let mut response = HeaderMap::new();
            for value in values.into_iter().chain([groups]) {
                for name in ["location", "content-location", "cache-tag", "surrogate-key", "cache-groups", "cache-group-invalidation"] {
                    response.append(HeaderName::from_static(name), value.clone());
                }
            }
            let found = tags(&response);
            prop_assert!(found.len() <= TAGS_MAX && found.iter().all(|t| !t.is_empty() && t.len() <= TAG_BYTES_MAX));
            for url in invalidated(&Method::POST, URL, StatusCode::OK, &response).urls {
                prop_assert_eq!(origin_of(&url), "http://a.test");
            }
        }

        #[test]
        fn references_stay_on_their_origin(reference in "[a-z/.:?#@%\\\\]{0,30}") {
            if let Some(url) = same_origin_url(URL, &reference) {
                prop_assert_eq!(origin_of(&url), "http://a.test");
                prop_assert!(!url.split('?').next().unwrap_or_default().contains("/../"));
            }
        }
    }
}
