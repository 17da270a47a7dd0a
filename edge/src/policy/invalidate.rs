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
