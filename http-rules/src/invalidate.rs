//! Which stored responses a response invalidates, and the tags by which purges find a stored
//! response.
//!
//! Follows RFC 9111 section 4.4 (invalidation) and RFC 9875 (groups).

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use nearcast_fleet::scope;

use crate::key::{self, MethodClass};
use crate::{fields, structured};

/// Most tags of one response; a response with more is not stored. The largest head of an origin has
/// about as many tags of 15 bytes.
pub const TAGS_MAX: usize = 4096;

/// The stored responses that a response invalidates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Invalidation {
    /// Keys of which every stored response is invalidated.
    pub urls: Vec<String>,
    /// Groups of the same origin of which every stored response is invalidated (RFC 9875 section
    /// 3).
    pub groups: Vec<Box<str>>,
}

/// The stored responses that the response to a request invalidates: none unless the method is
/// unsafe and the response is not an error. `url` is the request's key.
pub fn invalidated(
    method: &Method,
    url: &str,
    status: StatusCode,
    response: &HeaderMap,
) -> Invalidation {
    let is_unsafe = key::method_class(method) == MethodClass::Unsafe;
    if !is_unsafe || !(status.is_success() || status.is_redirection()) {
        return Invalidation::default();
    }
    let mut urls = vec![url.to_owned()];
    for name in [LOCATION, CONTENT_LOCATION] {
        let target = response.get(name).and_then(|value| value.to_str().ok());
        if let Some(found) = target
            .and_then(|target| same_origin_url(url, target))
            .filter(|found| !urls.contains(found))
        {
            urls.push(found);
        }
    }
    Invalidation {
        urls,
        groups: group_names(response, "cache-group-invalidation"),
    }
}

/// Resolves a reference against a key (RFC 3986 section 5.2) and gives the key of the target;
/// `None` when the target has another origin.
fn same_origin_url(base: &str, reference: &str) -> Option<String> {
    let reference = reference.trim().split('#').next()?;
    let (scheme, rest) = base.split_once("://")?;
    let path_at = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(path_at);
    let base_path = path.split('?').next().unwrap_or("/");
    let has_scheme = reference
        .find([':', '/', '?'])
        .is_some_and(|at| reference[at..].starts_with(':'));
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
    let is_same = other_scheme.eq_ignore_ascii_case(scheme)
        && key::authority(scheme, other).is_ok_and(|other| other == host);
    let slash = if path.starts_with('/') { "" } else { "/" };
    is_same.then(|| without_dots(&format!("{slash}{path}")))
}

/// Removes `.` and `..` from a path (RFC 3986 section 5.2.4) and keeps its query.
fn without_dots(path_and_query: &str) -> String {
    let (path, query) =
        path_and_query.split_at(path_and_query.find('?').unwrap_or(path_and_query.len()));
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
    let end = if is_directory && !kept.is_empty() {
        "/"
    } else {
        ""
    };
    format!("/{}{end}{query}", kept.join("/"))
}

/// A response has too many tags, or one that no purge can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidTag;

/// Tags of a response from `Cache-Tag` (commas), `Surrogate-Key` (spaces) and `Cache-Groups`
/// (strings), sorted and without duplicates.
///
/// # Errors
/// A tag is too long or has control characters, or there are more than [`TAGS_MAX`] tags. A purge
/// by such a tag would not find the response, so the response must not be stored.
pub fn tags(response: &HeaderMap) -> Result<Box<[Box<str>]>, InvalidTag> {
    let mut tags: Vec<Box<str>> = Vec::new();
    let lists = fields::list(response, "cache-tag").map(fields::unquoted);
    let keys = response
        .get_all("surrogate-key")
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|b| matches!(b, b' ' | b'\t')));
    for text in lists.chain(keys) {
        let text = text.trim_ascii();
        if !text.is_empty() {
            tags.push(tag(text)?);
        }
    }
    for group in groups(response) {
        tags.push(tag(group.trim().as_bytes())?);
    }
    tags.sort_unstable();
    tags.dedup();
    if tags.len() > TAGS_MAX {
        Err(InvalidTag)
    } else {
        Ok(tags.into())
    }
}

/// A tag in the form that purges use. Bytes that are not UTF-8 are read as ISO 8859-1, the former
/// encoding of fields.
fn tag(text: &[u8]) -> Result<Box<str>, InvalidTag> {
    let text = std::str::from_utf8(text).map_or_else(
        |_| text.iter().map(|b| char::from(*b)).collect(),
        str::to_owned,
    );
    scope::tag(&text)
        .map(String::into_boxed_str)
        .map_err(|_| InvalidTag)
}

/// The groups of a response (RFC 9875 section 2). They apply within its origin only, see
/// [`origin_of`].
pub fn groups(response: &HeaderMap) -> Vec<Box<str>> {
    group_names(response, "cache-groups")
}

/// Scheme and authority of a key, the scope of groups.
pub fn origin_of(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    &url[..end]
}

/// The members of a structured list of strings; other types and empty strings are left out (RFC
/// 9875 section 2). The size of a head limits their number.
fn group_names(response: &HeaderMap, name: &'static str) -> Vec<Box<str>> {
    let strings = structured::strings(response, &HeaderName::from_static(name));
    strings
        .into_iter()
        .filter(|group| !group.trim().is_empty())
        .map(String::into_boxed_str)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, map};

    const URL: &str = "http://a.test/dir/page?q=1";

    fn urls(method: &str, status: u16, response: &[&str]) -> Vec<String> {
        let method = Method::from_bytes(method.as_bytes()).expect("a token");
        invalidated(
            &method,
            URL,
            StatusCode::from_u16(status).expect("valid"),
            &map(response),
        )
        .urls
    }

    #[test]
    fn unsafe_methods_that_succeed_drop_their_target() {
        // RFC 9111 section 4.4.
        for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH"] {
            for (status, is_dropped) in [
                (200, true),
                (201, true),
                (204, true),
                (303, true),
                (400, false),
                (404, false),
                (500, false),
            ] {
                assert_eq!(
                    urls(method, status, &[]),
                    if is_dropped { vec![URL] } else { vec![] },
                    "{method} {status}"
                );
            }
        }
        for method in ["GET", "HEAD", "OPTIONS", "PROPFIND", "TRACE"] {
            assert!(urls(method, 200, &["location: /x"]).is_empty(), "{method}");
        }
    }

    #[test]
    fn locations_are_dropped_on_the_same_origin_only() {
        // RFC 9111 section 4.4.
        let found = urls(
            "POST",
            201,
            &["location: /new", "content-location: http://A.test:80/other"],
        );
        assert_eq!(found, [URL, "http://a.test/new", "http://a.test/other"]);
        let found = urls(
            "POST",
            201,
            &[
                "location: http://b.test/new",
                "content-location: https://a.test/other",
            ],
        );
        assert_eq!(found, [URL]);
        assert_eq!(
            urls("POST", 201, &["location: /dir/page?q=1"]),
            [URL],
            "each once"
        );
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
            assert_eq!(
                same_origin_url(URL, reference).as_deref(),
                expected,
                "{reference}"
            );
        }
        assert_eq!(origin_of(URL), "http://a.test");
        assert_eq!(origin_of("http://a.test"), "http://a.test");
    }

    #[test]
    fn groups_are_strings_of_their_origin() {
        // RFC 9875 sections 2 and 3.
        let table: [(&[&str], &[&str]); 5] = [
            (&["cache-groups: \"a\", \"b c\";x=1"], &["a", "b c"]),
            (
                &["cache-groups: \"a\"", "cache-groups: \"b\", token, \"\""],
                &["a", "b"],
            ),
            (&["cache-groups: a, b"], &[]),
            (&["cache-groups: \"a\", ?"], &[]),
            (
                &["cache-groups: \"with \\\"quotes\\\"\""],
                &["with \"quotes\""],
            ),
        ];
        for (response, expected) in table {
            assert_eq!(
                groups(&map(response))
                    .iter()
                    .map(|g| &**g)
                    .collect::<Vec<_>>(),
                expected,
                "{response:?}"
            );
        }
        let said = map(&["cache-group-invalidation: \"a\", \"b\""]);
        let of = |method: Method, status| invalidated(&method, URL, status, &said).groups.len();
        assert_eq!(of(Method::POST, StatusCode::OK), 2);
        assert_eq!(
            of(Method::GET, StatusCode::OK),
            0,
            "a safe method invalidates nothing"
        );
        assert_eq!(of(Method::POST, StatusCode::BAD_REQUEST), 0);
    }

    #[test]
    fn tags_come_from_three_fields_and_are_bounded() {
        // RFC 9875 section 2, for groups.
        let found = |response: &[&str]| {
            tags(&map(response)).map(|tags| tags.iter().map(|t| t.to_string()).collect::<Vec<_>>())
        };
        let count = |response: &[&str]| found(response).map(|tags| tags.len());
        let all = found(&[
            "cache-tag: b, a , a",
            "surrogate-key: c  d",
            "cache-groups: \"e\", \"f\"",
            "cache-tag: \"g\"",
        ]);
        assert_eq!(all.expect("few"), ["a", "b", "c", "d", "e", "f", "g"]);
        assert_eq!(found(&["cache-tag:", "surrogate-key: "]), Ok(vec![]));
        // Either all tags are kept, or the response is not stored.
        let longest = "x".repeat(scope::TAG_BYTES_MAX);
        let names: Vec<String> = (0..=TAGS_MAX).map(|n| format!("t{n}")).collect();
        let groups_of = |names: &[String]| {
            names
                .iter()
                .map(|t| format!("\"{t}\""))
                .collect::<Vec<_>>()
                .join(", ")
        };
        for (field, separator) in [("cache-tag", ","), ("surrogate-key", " ")] {
            assert_eq!(
                count(&[&format!("{field}: {longest}{separator}z")]),
                Ok(2),
                "{field}"
            );
            assert_eq!(
                count(&[&format!("{field}: z{separator}{longest}y")]),
                Err(InvalidTag),
                "{field}"
            );
            assert_eq!(
                count(&[&format!("{field}: {}", names[1..].join(separator))]),
                Ok(TAGS_MAX),
                "{field}"
            );
            assert_eq!(
                count(&[&format!("{field}: {}", names.join(separator))]),
                Err(InvalidTag),
                "{field}"
            );
        }
        assert_eq!(count(&[&format!("cache-groups: \"{longest}\"")]), Ok(1));
        assert_eq!(
            count(&[&format!("cache-groups: \"{longest}y\"")]),
            Err(InvalidTag)
        );
        assert_eq!(
            count(&[&format!("cache-groups: {}", groups_of(&names[1..]))]),
            Ok(TAGS_MAX)
        );
        assert_eq!(
            count(&[&format!("cache-groups: {}", groups_of(&names))]),
            Err(InvalidTag)
        );
        assert_eq!(
            groups(&map(&[&format!("cache-groups: {}", groups_of(&names))])).len(),
            names.len(),
            "none is left out"
        );
        assert_eq!(
            count(&[
                &format!("cache-tag: {}", names.join(",")),
                "surrogate-key: t1"
            ]),
            Err(InvalidTag)
        );
        assert_eq!(
            count(&[
                &format!("cache-tag: {}", names[1..].join(",")),
                "surrogate-key: t1 t2"
            ]),
            Ok(TAGS_MAX),
            "each once"
        );
        assert_eq!(count(&["cache-tag: a\tb"]), Err(InvalidTag));
        // A field may have any byte.
        let mut odd = map(&["cache-tag: produit-été, two words"]);
        odd.append(
            "surrogate-key",
            http::HeaderValue::from_bytes(b"caf\xe9").expect("obs-text"),
        );
        assert_eq!(
            tags(&odd)
                .expect("few")
                .iter()
                .map(|t| &**t)
                .collect::<Vec<_>>(),
            ["café", "produit-été", "two words"]
        );
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
            for tag in tags(&response).unwrap_or_default() {
                prop_assert_eq!(scope::tag(&tag), Ok(tag.to_string()), "a purge can name it");
            }
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
