//! Purge scopes in canonical form: URLs, prefixes of URLs, hosts, sites and tags.
//!
//! One URL has many spellings: raw UTF-8 or escaped, escapes in either case, with or without port.
//! A cache key keeps the bytes of the request. Purges and keys are therefore compared in the
//! canonical form of this module. The command line and control reject a scope that has no such
//! form, the journal carries the form, and edges convert a key when they look up its purges. Pure.
//! Follows RFC 3986 (sections 2.1, 2.3, 5.2.4, 6.2.2) and RFC 3492 (punycode).

mod escape;
mod host;
mod punycode;

use std::borrow::Cow;

use crate::change::PurgeScope;

pub use self::host::host;

/// Longest URL in canonical form, in bytes. Every key of an edge fits, even with all bytes escaped.
pub const URL_BYTES_MAX: usize = 32 * 1024;
/// Longest tag, in bytes.
pub const TAG_BYTES_MAX: usize = 1024;
/// Most scopes of one purge.
pub const SCOPES_MAX: usize = 256;

/// The scheme of a URL or prefix that covers `http` and `https`: what operators write without a
/// scheme. No cache key has it. Nodes of earlier versions, whose keys have one scheme only, ignore
/// the scheme of an entry.
const ANY_SCHEME: &str = "*";
/// The schemes of cache keys.
pub const SCHEMES: [&str; 2] = ["http", "https"];

/// The kinds of purge scope: the one list of their names in the API, the journal, the command line
/// and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "PurgeScope explains each")]
pub enum ScopeKind {
    Url,
    Prefix,
    Host,
    Site,
    Tag,
    SiteTag,
    All,
}

impl ScopeKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Url,
        Self::Prefix,
        Self::Host,
        Self::Site,
        Self::Tag,
        Self::SiteTag,
        Self::All,
    ];

    /// The name: `by` in the API and the journal, and the label of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Prefix => "prefix",
            Self::Host => "host",
            Self::Site => "site",
            Self::Tag => "tag",
            Self::SiteTag => "site_tag",
            Self::All => "all",
        }
    }

    /// The kind with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The scope of this kind with a value. `None` for the two kinds that no single text gives:
    /// everything, which has no value, and the tag of a site, which has two.
    pub fn with_value(self, value: String) -> Option<PurgeScope> {
        match self {
            Self::Url => Some(PurgeScope::Url(value)),
            Self::Prefix => Some(PurgeScope::Prefix(value)),
            Self::Host => Some(PurgeScope::Host(value)),
            Self::Site => Some(PurgeScope::Site(value)),
            Self::Tag => Some(PurgeScope::Tag(value)),
            Self::SiteTag | Self::All => None,
        }
    }
}

impl PurgeScope {
    /// The kind. A list has the kind of everything, since it has no name of its own; callers that
    /// care look at each member.
    pub fn kind(&self) -> ScopeKind {
        match self {
            Self::Url(_) => ScopeKind::Url,
            Self::Prefix(_) => ScopeKind::Prefix,
            Self::Host(_) => ScopeKind::Host,
            Self::Site(_) => ScopeKind::Site,
            Self::Tag(_) => ScopeKind::Tag,
            Self::SiteTag { .. } => ScopeKind::SiteTag,
            Self::All | Self::Any(_) => ScopeKind::All,
        }
    }
}

/// Why a scope cannot be purged as it is written. The message says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages explain them")]
pub enum ScopeError {
    #[error("there is nothing to purge in an empty {0}")]
    Empty(&'static str),
    #[error("a {0} cannot have a control character: write %XX for one in a URL")]
    Control(&'static str),
    #[error(
        "{0:?} names no host: write //host/path for both schemes, or http:// or https://, a host and a path, as clients ask for it"
    )]
    NoHost(String),
    #[error("{0:?} is not a scheme of this network: write http:// or https://")]
    Scheme(String),
    #[error("{0:?} is not a host: {1}")]
    Host(String, &'static str),
    #[error(
        "a percent sign in {0:?} is not followed by two hexadecimal digits: write %25 for a percent sign"
    )]
    BrokenEscape(String),
    #[error("a URL has at most {URL_BYTES_MAX} bytes, escapes counted as three")]
    UrlTooLong,
    #[error("{0:?} ends within or right after the host: add at least a /, or purge the host")]
    PrefixOfHost(String),
    #[error(
        "a * in {0:?} is not at its end: a prefix covers the URLs that begin with it, and other patterns are not supported; write %2A for a * in the URL"
    )]
    StarWithin(String),
    #[error(
        "a tag has at most {TAG_BYTES_MAX} bytes, this one has {0}: responses with longer tags are not stored"
    )]
    TagTooLong(usize),
    #[error(
        "a purge names at most {SCOPES_MAX} scopes, this one has {0}: send several purges, or name a prefix, host, site or tag that covers them"
    )]
    TooMany(usize),
    #[error("a purge of everything names nothing else")]
    AllAndMore,
}

/// A scope in canonical form, as the journal carries it. It does not check whether a site exists.
///
/// # Errors
/// The scope has no canonical form; the error says what to write instead.
pub fn canonical(scope: &PurgeScope) -> Result<PurgeScope, ScopeError> {
    Ok(match scope {
        PurgeScope::Url(text) => PurgeScope::Url(url(text)?),
        // The star distinguishes it from the prefixes of earlier versions, see `prefix_coverage`.
        PurgeScope::Prefix(text) => PurgeScope::Prefix(prefix(text)? + "*"),
        PurgeScope::Host(text) => PurgeScope::Host(host(text)?),
        PurgeScope::Tag(text) => PurgeScope::Tag(tag(text)?),
        PurgeScope::SiteTag { site, tag: text } => PurgeScope::SiteTag {
            site: site.clone(),
            tag: tag(text)?,
        },
        PurgeScope::Site(name) if name.is_empty() => return Err(ScopeError::Empty("site")),
        PurgeScope::Site(_) | PurgeScope::All => scope.clone(),
        PurgeScope::Any(scopes) => any_of(scopes)?,
    })
}

/// Several scopes as one, each in canonical form, without duplicates. A single scope stays as it is.
///
/// # Errors
/// As [`canonical`] for the first invalid scope; too many scopes; everything together with another
/// scope.
pub fn any_of(scopes: &[PurgeScope]) -> Result<PurgeScope, ScopeError> {
    if scopes.len() > SCOPES_MAX {
        return Err(ScopeError::TooMany(scopes.len()));
    }

    let mut found: Vec<PurgeScope> = Vec::with_capacity(scopes.len());
    for scope in scopes {
        let listed = match canonical(scope)? {
            PurgeScope::Any(inner) => inner,
            PurgeScope::All if scopes.len() > 1 => return Err(ScopeError::AllAndMore),
            one => vec![one],
        };
        for one in listed {
            if !found.contains(&one) {
                found.push(one);
            }
        }
    }

    // Members that are lists themselves count with all of their scopes.
    if found.len() > SCOPES_MAX {
        return Err(ScopeError::TooMany(found.len()));
    }
    match found.len() {
        0 => Err(ScopeError::Empty("list")),
        1 => Ok(found.remove(0)),
        _ => Ok(PurgeScope::Any(found)),
    }
}

/// A URL in canonical form: `http://host/path?query`, or with the scheme `https`, or with `*`, which
/// means both. A URL that is written without a scheme (`//host/path`, `host.name/path`) has `*`.
///
/// The port depends on how a client reached the cache, so the form drops it. Path and query have
/// every escape that RFC 3986 requires and no other; the path has no dot segments; the fragment is
/// left out.
///
/// # Errors
/// The URL has no host, a scheme other than http and https, a control character or a malformed
/// escape, or is too long.
pub fn url(text: &str) -> Result<String, ScopeError> {
    let (scheme, host, rest) = split(text, "URL")?;
    let mut url = format!("{scheme}://{}", self::host(host)?);
    let start = url.len();
    push_path(rest, text, &mut url)?;
    remove_dots(&mut url, start, false);
    check_length(url)
}

/// A prefix of URLs in canonical form, without the `*` at its end.
///
/// # Errors
/// As [`url`]; the prefix ends within or right after the host; a star is not at its end.
pub fn prefix(text: &str) -> Result<String, ScopeError> {
    let beginning = text.trim().trim_end_matches('*');
    let (scheme, host, rest) = split(beginning, "prefix")?;
    if rest.is_empty() {
        return Err(ScopeError::PrefixOfHost(text.trim().to_owned()));
    }
    if rest.contains('*') {
        return Err(ScopeError::StarWithin(text.trim().to_owned()));
    }
    let mut url = format!("{scheme}://{}", self::host(host)?);
    let start = url.len();
    push_path(rest, text, &mut url)?;
    // The last segment may continue: `/.` is a prefix of `/.well-known`.
    remove_dots(&mut url, start, true);
    check_length(url)
}

/// A tag in canonical form: without leading and trailing white space.
///
/// # Errors
/// The tag is empty, too long, or has control characters.
pub fn tag(text: &str) -> Result<String, ScopeError> {
    let tag = text.trim();
    if tag.is_empty() {
        return Err(ScopeError::Empty("tag"));
    }
    if tag.len() > TAG_BYTES_MAX {
        return Err(ScopeError::TagTooLong(tag.len()));
    }
    if tag.chars().any(char::is_control) {
        return Err(ScopeError::Control("tag"));
    }
    Ok(tag.to_owned())
}

/// The URL of a cache key in canonical form, with its scheme and host as they are. Never fails: a
/// percent sign without two digits counts as `%25`. Nearly every key is in canonical form already
/// and is borrowed.
pub fn canonical_key(url: &str) -> Cow<'_, str> {
    let start = url.find("://").map_or(0, |at| at + 3);
    let path_at = url[start..]
        .find(['/', '?'])
        .map_or(url.len(), |at| start + at);
    let (before, path) = url.split_at(path_at);
    if escape::is_canonical(path.as_bytes()) {
        return Cow::Borrowed(url);
    }
    let mut made = String::with_capacity(url.len() + 16);
    made.push_str(before);
    let Ok(()) = escape::push_escaped(path, &mut made, || Ok::<(), std::convert::Infallible>(()));
    Cow::Owned(made)
}

/// The URL of a journal entry in canonical form, including one that an earlier version accepted and
/// this one rejects.
pub fn journalled_url(text: &str) -> String {
    url(text).unwrap_or_else(|_| lenient_url(text))
}

/// The URLs that a prefix of a journal entry covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Covered {
    /// Every URL that begins with this text.
    Beginning(String),
    /// This URL.
    Url(String),
}

/// The URLs that the prefix of a journal entry covers. A prefix with a star at its end covers every
/// URL that begins with it. One without a star comes from an earlier version, in which `/x/` covered
/// `/x` and `/x?q` too; it still covers them, since they may be stored.
pub fn prefix_coverage(text: &str) -> Vec<Covered> {
    if let Some(beginning) = text.strip_suffix('*') {
        return vec![Covered::Beginning(lenient_url(beginning))];
    }
    let beginning = lenient_url(text);
    let directory = beginning.trim_end_matches('/');
    let is_below_host = directory.matches('/').count() > 2;
    match directory.len() < beginning.len() {
        true if is_below_host => vec![
            Covered::Url(directory.to_owned()),
            Covered::Beginning(format!("{directory}?")),
            Covered::Beginning(format!("{directory}/")),
        ],
        true => vec![Covered::Beginning(format!("{directory}/"))],
        false => vec![Covered::Beginning(beginning)],
    }
}

/// The host of a URL or prefix in canonical form.
pub fn host_of(canonical: &str) -> &str {
    let rest = canonical
        .split_once("://")
        .map_or(canonical, |(_, rest)| rest);
    &rest[..rest.find(['/', '?']).unwrap_or(rest.len())]
}

/// Splits a URL into its scheme in canonical form, its authority, and path and query. The fragment
/// is dropped.
fn split<'t>(
    text: &'t str,
    what: &'static str,
) -> Result<(&'static str, &'t str, &'t str), ScopeError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(ScopeError::Empty(what));
    }
    if text.chars().any(char::is_control) {
        return Err(ScopeError::Control(what));
    }
    let is_scheme = |s: &str| {
        !s.is_empty()
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'*'))
    };
    let (scheme, rest) = match text
        .split_once("://")
        .filter(|(scheme, _)| is_scheme(scheme))
    {
        Some((scheme, rest)) => match known_scheme(scheme) {
            Some(known) => (known, rest),
            None => return Err(ScopeError::Scheme(scheme.to_owned())),
        },
        None => match text.strip_prefix("//") {
            Some(rest) => (ANY_SCHEME, rest),
            None if begins_with_host(text) => (ANY_SCHEME, text),
            None => return Err(ScopeError::NoHost(text.to_owned())),
        },
    };
    let rest = rest.split('#').next().unwrap_or_default();
    let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    Ok((scheme, host, path))
}

/// A scheme in canonical form: one of cache keys, or the one that means both.
fn known_scheme(scheme: &str) -> Option<&'static str> {
    SCHEMES
        .into_iter()
        .chain([ANY_SCHEME])
        .find(|known| known.eq_ignore_ascii_case(scheme))
}

/// Whether a text without a scheme begins with a host: with a name that has a dot. Other words are
/// more often paths or mistakes.
fn begins_with_host(text: &str) -> bool {
    let host = text.split(['/', '?', '#']).next().unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.contains('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

/// What a URL or prefix in canonical form means without its scheme (`//host/path`), where it covers
/// both schemes.
pub fn of_any_scheme(canonical: &str) -> Option<&str> {
    let rest = canonical.strip_prefix(ANY_SCHEME)?.strip_prefix(':')?;
    rest.starts_with("//").then_some(rest)
}

/// The scope that covers what this one covers and the same in the other scheme; `None` where there
/// is none.
pub fn in_any_scheme(scope: &PurgeScope) -> Option<PurgeScope> {
    let widened = |text: &str| {
        let (scheme, rest) = text.split_once("://")?;
        SCHEMES
            .contains(&scheme)
            .then(|| format!("{ANY_SCHEME}://{rest}"))
    };
    match scope {
        PurgeScope::Url(text) => widened(text).map(PurgeScope::Url),
        PurgeScope::Prefix(text) => widened(text).map(PurgeScope::Prefix),
        _ => None,
    }
}

/// The URL of a cache key in canonical form, but for both schemes.
pub fn key_in_any_scheme(url: &str) -> String {
    let canonical = canonical_key(url);
    let rest = canonical
        .split_once("://")
        .map_or(&*canonical, |(_, rest)| rest);
    format!("{ANY_SCHEME}://{rest}")
}

/// The URLs of keys that a URL in canonical form covers: itself, or one for each scheme.
pub fn key_urls(canonical: &str) -> Vec<String> {
    match of_any_scheme(canonical) {
        Some(rest) => SCHEMES.map(|scheme| format!("{scheme}:{rest}")).into(),
        None => vec![canonical.to_owned()],
    }
}

/// Appends path and query in canonical form.
fn push_path(rest: &str, whole: &str, url: &mut String) -> Result<(), ScopeError> {
    if !rest.starts_with('/') {
        url.push('/');
    }
    escape::push_escaped(rest, url, || {
        Err(ScopeError::BrokenEscape(whole.trim().to_owned()))
    })
}

fn check_length(url: String) -> Result<String, ScopeError> {
    if url.len() > URL_BYTES_MAX {
        Err(ScopeError::UrlTooLong)
    } else {
        Ok(url)
    }
}

/// Removes the segments `.` and `..` from a path, as clients do before they send a request. The last
/// segment of a prefix stays, since it may continue (`is_open`).
fn remove_dots(url: &mut String, start: usize, is_open: bool) {
    let path_and_query = &url[start..];
    let (path, query) =
        path_and_query.split_at(path_and_query.find('?').unwrap_or(path_and_query.len()));
    let is_open = is_open && query.is_empty();

    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let last = segments.len().saturating_sub(1);
    let is_dots = |n: usize, s: &str| matches!(s, "." | "..") && !(is_open && n == last);
    if !segments.iter().enumerate().any(|(n, s)| is_dots(n, s)) {
        return;
    }

    let mut kept: Vec<&str> = Vec::new();
    for (n, segment) in segments.iter().enumerate() {
        if !is_dots(n, segment) {
            kept.push(segment);
            continue;
        }
        if *segment == ".." {
            kept.pop();
        }
        // A dot segment at the end names a directory.
        if n == last {
            kept.push("");
        }
    }

    let made = format!("/{}{query}", kept.join("/"));
    url.truncate(start);
    url.push_str(&made);
}

/// A URL that an earlier version accepted, read as that version read it.
fn lenient_url(text: &str) -> String {
    let text = text.trim();
    let (scheme, rest) = text.split_once("://").unwrap_or((ANY_SCHEME, text));
    let scheme = known_scheme(scheme).unwrap_or(ANY_SCHEME);
    let rest = rest.split('#').next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let authority = authority.to_ascii_lowercase();
    let end = match authority.find(']') {
        Some(at) => at + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    canonical_key(&format!(
        "{scheme}://{}{slash}{path}",
        authority[..end].trim_end_matches('.')
    ))
    .into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_is_the_same_however_it_is_written() {
        let table = [
            ("http://A.test:80/x?y#z", "http://a.test/x?y"),
            ("https://a.test/x", "https://a.test/x"),
            ("HTTPS://a.test", "https://a.test/"),
            ("//A.test:8443/x", "*://a.test/x"),
            ("a.test/x", "*://a.test/x"),
            ("a.test:8080", "*://a.test/"),
            ("a.test/x?u=http://b", "*://a.test/x?u=http://b"),
            ("*://a.test/x", "*://a.test/x"),
            ("http://a.test.:8080?x", "http://a.test/?x"),
            ("  http://a.test/ ", "http://a.test/"),
            (
                "http://a.test/健康/index.html",
                "http://a.test/%E5%81%A5%E5%BA%B7/index.html",
            ),
            ("http://a.test/caf%c3%a9", "http://a.test/caf%C3%A9"),
            (
                "http://a.test/café?é=ü",
                "http://a.test/caf%C3%A9?%C3%A9=%C3%BC",
            ),
            ("http://a.test/a b", "http://a.test/a%20b"),
            ("http://a.test/%7Euser/%61%2D", "http://a.test/~user/a-"),
            (
                "http://a.test/Foo_%28bar%29!%2A%27",
                "http://a.test/Foo_(bar)!*'",
            ),
            (
                "http://a.test/a|b[1]{2}\"<>^`\\",
                "http://a.test/a%7Cb%5B1%5D%7B2%7D%22%3C%3E%5E%60%5C",
            ),
            (
                "http://a.test/a%2fb?c%26d&e=%3d+%2B",
                "http://a.test/a%2Fb?c%26d&e=%3D+%2B",
            ),
            ("http://a.test/%25zz", "http://a.test/%25zz"),
            ("http://a.test/x/../y/./z/..", "http://a.test/y/"),
            ("http://a.test/x/%2E%2e/y", "http://a.test/y"),
            ("http://a.test/../..", "http://a.test/"),
            ("http://a.test//a//b/", "http://a.test//a//b/"),
            ("http://a.test/x?../y", "http://a.test/x?../y"),
            ("http://münchen.test/m", "http://xn--mnchen-3ya.test/m"),
            ("http://MÜNCHEN.Test/m", "http://xn--mnchen-3ya.test/m"),
            ("http://例え.テスト/", "http://xn--r8jz45g.xn--zckzah/"),
            (
                "http://bücher.bü-cher.test/",
                "http://xn--bcher-kva.xn--b-cher-3ya.test/",
            ),
            ("http://xn--mnchen-3ya.test", "http://xn--mnchen-3ya.test/"),
            ("http://[2001:DB8:0::1]:8080/x", "http://[2001:db8::1]/x"),
            ("http://127.0.0.1:8000/x", "http://127.0.0.1/x"),
        ];
        for (text, expected) in table {
            assert_eq!(url(text).as_deref(), Ok(expected), "{text}");
            assert_eq!(
                url(expected).as_deref(),
                Ok(expected),
                "the form of {text} is its own form"
            );
        }
    }

    #[test]
    fn what_names_no_url_is_refused_and_says_what_to_write() {
        let table = [
            ("", "empty"),
            (" ", "empty"),
            ("/news/", "//host/path"),
            ("news", "http://"),
            ("news?u=http://b", "http://"),
            ("//", "is empty"),
            ("*", "a"),
            ("**://a.test/", "not a scheme"),
            ("ftp://a.test/x", "http://"),
            ("http:///x", "is empty"),
            ("http://", "is empty"),
            ("http://?x", "is empty"),
            ("http://:80/", "empty label"),
            ("http://a..test/", "empty label"),
            ("http://u:p@a.test/", "user name"),
            ("http://a.test:x/", "port"),
            ("http://a.test:65536/", "port"),
            ("http://[::1/", "letters, digits"),
            ("http://[zz]/", "IPv6"),
            ("http://[::1]x/", "port"),
            ("http://a b/", "letters, digits"),
            ("http://a%2Etest/", "letters, digits"),
            ("http://mu\u{308}nchen.test/", "xn--"),
            ("http://*.a.test/", "one by one"),
            ("http://a.test/%zz", "%25"),
            ("http://a.test/100%", "%25"),
            ("http://a.test/%C", "%25"),
            ("http://a.test/?q=100%&x", "%25"),
            ("http://a.test/a\tb", "control character"),
            ("http://a.test/a\nb", "control character"),
            ("http://a.test/\u{85}x", "control character"),
        ];
        for (text, words) in table {
            let error = url(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
            assert!(prefix(text).is_err(), "{text}");
        }
        let long = format!("http://a.test/{}", "é".repeat(URL_BYTES_MAX / 6));
        assert_eq!(url(&long), Err(ScopeError::UrlTooLong));
        assert!(
            host(&format!("{}.test", "a".repeat(64))).is_err() && host(&"a.".repeat(130)).is_err()
        );
    }

    #[test]
    fn a_prefix_is_the_beginning_of_urls() {
        let table = [
            ("http://a.test/img/2024-", Ok("http://a.test/img/2024-")),
            ("https://A.test:443/v/720*", Ok("https://a.test/v/720")),
            ("//a.test/v/*", Ok("*://a.test/v/")),
            ("a.test/v/*", Ok("*://a.test/v/")),
            ("http://a.test/**", Ok("http://a.test/")),
            ("http://a.test/健*", Ok("http://a.test/%E5%81%A5")),
            ("http://a.test/search?q=", Ok("http://a.test/search?q=")),
            ("http://a.test?q", Ok("http://a.test/?q")),
            ("http://a.test/.", Ok("http://a.test/.")),
            ("http://a.test/x/../.w", Ok("http://a.test/.w")),
            ("http://a.test/x/..?", Ok("http://a.test/?")),
            ("http://a.test/a%2Ab", Ok("http://a.test/a*b")),
            ("http://a.te", Err("add at least a /")),
            ("http://a.test#/x", Err("add at least a /")),
            ("http://a.test*", Err("add at least a /")),
            ("http://a.*/x", Err("one by one")),
            ("http://a.test/*/x", Err("not at its end")),
            ("http://a.test/*?x=*", Err("not at its end")),
            ("http://a.test/%E5%8", Err("%25")),
        ];
        for (text, expected) in table {
            match (prefix(text), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(error), Err(words)) => {
                    assert!(error.to_string().contains(words), "{text}: {error}")
                }
                (found, expected) => panic!("{text}: {found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn a_url_without_a_scheme_stands_for_both() {
        assert_eq!(
            key_urls("*://a.test/x"),
            ["http://a.test/x", "https://a.test/x"]
        );
        assert_eq!(key_urls("https://a.test/x"), ["https://a.test/x"]);
        assert_eq!(of_any_scheme("*://a.test/x"), Some("//a.test/x"));
        assert_eq!(of_any_scheme("http://a.test/x"), None);
        assert_eq!(key_in_any_scheme("https://a.test/%41"), "*://a.test/A");
        let url = |s: &str| PurgeScope::Url(s.to_owned());
        let prefix = |s: &str| PurgeScope::Prefix(s.to_owned());
        for (scope, expected) in [
            (url("http://a.test/x"), Some(url("*://a.test/x"))),
            (prefix("https://a.test/*"), Some(prefix("*://a.test/*"))),
            (url("*://a.test/x"), None),
            (PurgeScope::Host("a.test".into()), None),
        ] {
            assert_eq!(in_any_scheme(&scope), expected, "{scope:?}");
        }
    }

    #[test]
    fn a_key_has_the_form_of_the_url_that_names_it() {
        let table = [
            ("http://a.test/caf%c3%a9", "http://a.test/caf%C3%A9"),
            ("http://a.test/%41?b=100%", "http://a.test/A?b=100%25"),
            ("http://a.test/a|b?[c]", "http://a.test/a%7Cb?%5Bc%5D"),
            ("http://a.test/?%", "http://a.test/?%25"),
            ("http://a.test/?%4", "http://a.test/?%254"),
            ("http://[::1]/a[", "http://[::1]/a%5B"),
        ];
        for (key, expected) in table {
            assert_eq!(canonical_key(key), expected);
            assert_eq!(url(expected).as_deref(), Ok(expected));
        }
        assert!(
            matches!(
                canonical_key("http://a.test/a/b?c=d&e=%C3%A9"),
                Cow::Borrowed(_)
            ),
            "nearly all are as they should be"
        );
    }

    #[test]
    fn prefixes_of_an_earlier_version_cover_what_they_covered() {
        let begins = |s: &str| Covered::Beginning(s.to_owned());
        let table = [
            ("http://a.test/x/*", vec![begins("http://a.test/x/")]),
            ("http://a.test/x", vec![begins("http://a.test/x")]),
            (
                "http://A.test:80/x//",
                vec![
                    Covered::Url("http://a.test/x".to_owned()),
                    begins("http://a.test/x?"),
                    begins("http://a.test/x/"),
                ],
            ),
            ("http://a.test/", vec![begins("http://a.test/")]),
            ("http://a.test//", vec![begins("http://a.test/")]),
            ("http://a.test/a**", vec![begins("http://a.test/a*")]),
            ("http://a.test", vec![begins("http://a.test/")]),
            ("http://a.test/%zz", vec![begins("http://a.test/%25zz")]),
        ];
        for (text, expected) in table {
            assert_eq!(prefix_coverage(text), expected, "{text}");
        }
        assert_eq!(journalled_url("http://a.test/%zz"), "http://a.test/%25zz");
        assert_eq!(journalled_url("a.test?x"), "*://a.test/?x");
        assert_eq!(journalled_url("https://a.test/%zz"), "https://a.test/%25zz");
    }

    #[test]
    fn tags_are_bounded_and_may_be_utf_8() {
        assert_eq!(tag(" produit-été ").as_deref(), Ok("produit-été"));
        assert_eq!(tag("two words").as_deref(), Ok("two words"));
        assert!(tag(&"x".repeat(TAG_BYTES_MAX)).is_ok());
        assert_eq!(
            tag(&"x".repeat(TAG_BYTES_MAX + 1)),
            Err(ScopeError::TagTooLong(TAG_BYTES_MAX + 1))
        );
        assert!(
            tag(&"x".repeat(TAG_BYTES_MAX + 1))
                .unwrap_err()
                .to_string()
                .contains(&TAG_BYTES_MAX.to_string())
        );
        assert_eq!(
            (tag(" "), tag("a\tb")),
            (
                Err(ScopeError::Empty("tag")),
                Err(ScopeError::Control("tag"))
            )
        );
    }

    #[test]
    fn several_scopes_are_one_and_all_or_nothing() {
        let url = |s: &str| PurgeScope::Url(s.to_owned());
        let one = url("http://a.test/x");
        assert_eq!(any_of(std::slice::from_ref(&one)), Ok(one.clone()));
        assert_eq!(
            any_of(&[one.clone(), url("HTTP://A.test:80/x#y")]),
            Ok(one.clone()),
            "each once"
        );
        let two =
            any_of(&[one.clone(), PurgeScope::Prefix("http://a.test/y".into())]).expect("good");
        assert_eq!(
            two,
            PurgeScope::Any(vec![
                one.clone(),
                PurgeScope::Prefix("http://a.test/y*".into())
            ])
        );
        assert_eq!(
            canonical(&two),
            Ok(two.clone()),
            "the journal's form is its own form"
        );
        assert!(any_of(&[one.clone(), url("/x")]).is_err());
        assert_eq!(any_of(&[]), Err(ScopeError::Empty("list")));
        assert_eq!(
            any_of(&[one.clone(), PurgeScope::All]),
            Err(ScopeError::AllAndMore)
        );
        assert_eq!(
            any_of(&vec![one; SCOPES_MAX + 1]),
            Err(ScopeError::TooMany(SCOPES_MAX + 1))
        );
        let three = any_of(&[two, PurgeScope::Tag("t".into())]).expect("good");
        assert!(
            matches!(&three, PurgeScope::Any(scopes) if scopes.len() == 3),
            "no lists in lists: {three:?}"
        );
    }

    #[test]
    fn every_kind_has_the_name_that_the_journal_writes() {
        for kind in ScopeKind::ALL {
            assert_eq!(ScopeKind::parse(kind.name()), Some(kind));
            let scope = match kind {
                ScopeKind::SiteTag => PurgeScope::SiteTag {
                    site: "s".into(),
                    tag: "t".into(),
                },
                ScopeKind::All => PurgeScope::All,
                kind => kind.with_value("v".into()).expect("it has one value"),
            };
            assert_eq!(scope.kind(), kind);
            let written = serde_json::to_value(&scope).expect("plain");
            assert_eq!(written["by"], kind.name());
        }
        assert_eq!(ScopeKind::parse("any"), None);
        assert_eq!(PurgeScope::Any(vec![]).kind(), ScopeKind::All);
    }

    proptest! {
        #[test]
        fn nothing_panics_and_a_form_is_its_own_form(text in "\\PC{0,40}|[a.]{1,3}[/?*]{1,3}", path in "[ -~é健]{0,30}") {
            for text in [text.clone(), format!("http://a.test/{path}"), format!("http://{text}")] {
                let _ = (host(&text), tag(&text), prefix_coverage(&text), journalled_url(&text), lenient_url(&text));
                let of_key = canonical_key(&text).into_owned();
                prop_assert_eq!(canonical_key(&of_key), of_key.as_str());
                if let Ok(found) = url(&text) {
                    prop_assert_eq!(url(&found), Ok(found.clone()));
                    prop_assert_eq!(canonical_key(&found), found.as_str());
                    prop_assert!(found.is_ascii());
                }
                if let Ok(found) = prefix(&text) {
                    // A star stands for both schemes, and none may be in the rest as it is.
                    let (scheme, rest) = found.split_once("://").expect("a URL");
                    let again = format!("{scheme}://{}*", rest.replace('*', "%2A"));
                    prop_assert_eq!(prefix(&again), Ok(found));
                }
            }
        }
    }
}
