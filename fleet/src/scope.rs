//! What a purge may name, in one canonical form: URLs, beginnings of URLs, hosts, tags.
//!
//! People and programs write one URL in many ways: raw UTF-8 or escaped, escapes in either case,
//! with or without port. A cache key keeps the bytes that came. So what a purge names and what is
//! stored are compared in the form made here: the command line and control refuse what has none,
//! the journal carries it, and edges make it of their keys when they look a purge up. Pure. Follows
//! RFC 3986 (sections 2.1, 2.3, 5.2.4, 6.2.2) and RFC 3492 (punycode).

use std::borrow::Cow;
use std::net::Ipv6Addr;

use crate::change::PurgeScope;

/// Bytes of a URL in canonical form: every key of an edge fits, also with each of its bytes
/// escaped.
pub const URL_BYTES_MAX: usize = 32 * 1024;
/// Bytes of one tag.
pub const TAG_BYTES_MAX: usize = 1024;
/// Scopes of one purge.
pub const SCOPES_MAX: usize = 256;
/// Characters of a host name.
const HOST_CHARS_MAX: usize = 253;
/// Characters of a label of it.
const LABEL_CHARS_MAX: usize = 63;

/// Why something cannot be purged as it is written. The words name what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the words say it")]
pub enum ScopeError {
    #[error("there is nothing to purge in an empty {0}")]
    Empty(&'static str),
    #[error("a control character cannot be in a {0}: write %XX for one that belongs to a URL")]
    Control(&'static str),
    #[error("{0:?} is no whole URL: {hint}", hint = whole_url(.0))]
    NoScheme(String),
    #[error("{0:?} is no scheme that is served here: write http:// or https://")]
    Scheme(String),
    #[error("{0:?} is no host: {1}")]
    Host(String, &'static str),
    #[error(
        "the percent sign in {0:?} has not two hexadecimal digits after it: write %25 for a percent sign"
    )]
    BrokenEscape(String),
    #[error("a URL has at most {URL_BYTES_MAX} bytes, escapes counted as three")]
    UrlTooLong,
    #[error("{0:?} ends within or right after the host: add at least a /, or purge the host")]
    PrefixOfHost(String),
    #[error(
        "a * in {0:?} is not at its end: a prefix covers what begins with it, and no other pattern; write %2A for a * of the URL"
    )]
    StarWithin(String),
    #[error(
        "a tag has at most {TAG_BYTES_MAX} bytes, this one has {0}: responses with longer ones are not stored"
    )]
    TagTooLong(usize),
    #[error(
        "a purge names at most {SCOPES_MAX} things, this one {0}: send several, or name a prefix, host, site or tag that covers them"
    )]
    TooMany(usize),
    #[error("a purge of everything names nothing else")]
    AllAndMore,
}

/// What to write in place of a URL that has no scheme: itself with one, where it may begin with a
/// host.
fn whole_url(text: &str) -> String {
    let host = text.split(['/', '?', '#']).next().unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let is_host = name.contains('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    match is_host {
        true => format!("write http://{text}"),
        false => "write http:// or https://, a host and a path, as clients ask for it".to_owned(),
    }
}

/// A scope as the journal carries it.
///
/// # Errors
/// What is wrong with it, and what to write instead. Whether a site exists is not looked at.
pub fn canonical(scope: &PurgeScope) -> Result<PurgeScope, ScopeError> {
    Ok(match scope {
        PurgeScope::Url(text) => PurgeScope::Url(url(text)?),
        // The star tells it from prefixes of earlier versions, see `beginnings`.
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

/// Several scopes as one, each in canonical form and once; a single one is itself.
///
/// # Errors
/// As [`canonical`], for the first that has a mistake; too many of them; everything beside
/// something else.
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
    if found.len() > SCOPES_MAX {
        return Err(ScopeError::TooMany(found.len()));
    }
    match found.len() {
        0 => Err(ScopeError::Empty("list")),
        1 => Ok(found.remove(0)),
        _ => Ok(PurgeScope::Any(found)),
    }
}

/// A URL in canonical form: `http://host/path?query`.
///
/// Scheme and port say by which way a client came, so they do not count. Path and query have every
/// byte escaped that is not allowed in them (RFC 3986), and no escape that is not needed; the path
/// has no dot segments; the fragment is left out.
///
/// # Errors
/// It has no scheme or host, another scheme than HTTP's, a control character or a broken escape, or
/// is too long.
pub fn url(text: &str) -> Result<String, ScopeError> {
    let (host, rest) = split(text, "URL")?;
    let mut url = format!("http://{}", self::host(host)?);
    let start = url.len();
    push_path(rest, text, &mut url)?;
    remove_dots(&mut url, start, false);
    check_length(url)
}

/// The beginning of URLs in canonical form; a `*` at its end is left out.
///
/// # Errors
/// As [`url`]; it ends in or after the host; a star that is not at its end.
pub fn prefix(text: &str) -> Result<String, ScopeError> {
    let beginning = text.trim().trim_end_matches('*');
    let (host, rest) = split(beginning, "prefix")?;
    if rest.is_empty() {
        return Err(ScopeError::PrefixOfHost(text.trim().to_owned()));
    }
    if rest.contains('*') {
        return Err(ScopeError::StarWithin(text.trim().to_owned()));
    }
    let mut url = format!("http://{}", self::host(host)?);
    let start = url.len();
    push_path(rest, text, &mut url)?;
    // What the last segment goes on with is open: `/.` begins `/.well-known`.
    remove_dots(&mut url, start, true);
    check_length(url)
}

/// A host in canonical form: lower case, ASCII, without port and final dot.
///
/// # Errors
/// It is no host name or address.
pub fn host(text: &str) -> Result<String, ScopeError> {
    let refuse = |why| Err(ScopeError::Host(text.trim().to_owned(), why));
    let authority = text.trim();
    if authority.is_empty() {
        return refuse("it is empty; write one such as www.example.org");
    }
    if authority.contains("://") || authority.contains('/') {
        return refuse("write its name alone, without scheme and path");
    }
    if authority.contains('@') {
        return refuse("leave out the user name before the @");
    }
    if authority.contains('*') {
        return refuse("name the hosts one by one, or purge the site");
    }
    let (name, port) = match authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((address, port)) => match address.parse::<Ipv6Addr>() {
            Ok(address) => (format!("[{address}]"), port.to_owned()),
            Err(_) => return refuse("what is in its [] is no IPv6 address"),
        },
        None => {
            let (name, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            match dns_name(name) {
                Ok(name) => (name, port.to_owned()),
                Err(why) => return refuse(why),
            }
        }
    };
    let is_port = |digits: &str| {
        digits.is_empty()
            || digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok()
    };
    match port.strip_prefix(':') {
        Some(digits) if is_port(digits) => Ok(name),
        None if port.is_empty() => Ok(name),
        _ => refuse("what follows the : is no port"),
    }
}

/// A tag without the blanks around it.
///
/// # Errors
/// It is empty, too long, or has control characters.
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

/// A cache key's URL, or one of an earlier version's journal, in canonical form. Takes everything:
/// a percent sign without digits is one that should have been `%25`.
pub fn stored(url: &str) -> Cow<'_, str> {
    let start = url.find("://").map_or(0, |at| at + 3);
    let path_at = url[start..]
        .find(['/', '?'])
        .map_or(url.len(), |at| start + at);
    let (before, path) = url.split_at(path_at);
    if is_canonical(path.as_bytes()) {
        return Cow::Borrowed(url);
    }
    let mut made = String::with_capacity(url.len() + 16);
    made.push_str(before);
    let Ok(()) = push_escaped(path, &mut made, || Ok::<(), std::convert::Infallible>(()));
    Cow::Owned(made)
}

/// A URL of a journal entry in canonical form, also one that an earlier version has accepted and
/// this one would not.
pub fn journalled_url(text: &str) -> String {
    url(text).unwrap_or_else(|_| lenient(text))
}

/// What a prefix of a journal entry covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Covered {
    /// Every URL that begins so.
    Beginning(String),
    /// This URL.
    Url(String),
}

/// What a journalled prefix covers. One that ends in a star covers what begins with it. Without a
/// star it is of an earlier version, which cut at a `/`, so that `/x/` covered `/x` and `/x?q` too:
/// that stays covered, since it may be stored still.
pub fn beginnings(text: &str) -> Vec<Covered> {
    if let Some(beginning) = text.strip_suffix('*') {
        return vec![Covered::Beginning(lenient(beginning))];
    }
    let beginning = lenient(text);
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

/// The host of a URL or beginning in canonical form.
pub fn host_of(canonical: &str) -> &str {
    let rest = canonical
        .split_once("://")
        .map_or(canonical, |(_, rest)| rest);
    &rest[..rest.find(['/', '?']).unwrap_or(rest.len())]
}

/// Splits into authority and what follows it, without the fragment.
fn split<'t>(text: &'t str, what: &'static str) -> Result<(&'t str, &'t str), ScopeError> {
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
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-'))
    };
    let Some((scheme, rest)) = text
        .split_once("://")
        .filter(|(scheme, _)| is_scheme(scheme))
    else {
        return Err(ScopeError::NoScheme(text.to_owned()));
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(ScopeError::Scheme(scheme.to_owned()));
    }
    let rest = rest.split('#').next().unwrap_or_default();
    Ok(rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len())))
}

/// Appends path and query, escaped as they should be.
fn push_path(rest: &str, whole: &str, url: &mut String) -> Result<(), ScopeError> {
    if !rest.starts_with('/') {
        url.push('/');
    }
    push_escaped(rest, url, || {
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

/// Bytes that are the same with and without an escape: the unreserved ones, and those that were
/// unreserved in RFC 2396 (`!*'()`), which programs escape or not as they please.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!*'()".contains(&byte)
}

/// Other bytes that may be in a path or query as they are; an escape of one is not the same.
fn is_delimiter(byte: u8) -> bool {
    b"/?:@$&+,;=".contains(&byte)
}

fn escaped(bytes: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    match bytes {
        [b'%', high, low, ..] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
        _ => None,
    }
}

fn is_canonical(path: &[u8]) -> bool {
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        let is_good = match byte {
            b'%' => {
                escaped(rest).is_some_and(|b| !is_plain(b))
                    && after[..2].iter().all(|b| !b.is_ascii_lowercase())
            }
            byte => is_plain(*byte) || is_delimiter(*byte),
        };
        if !is_good {
            return false;
        }
        rest = after;
    }
    path.first() == Some(&b'/')
}

/// Appends text with the escapes that it needs; `broken` decides about a percent sign without
/// digits.
fn push_escaped<E>(
    text: &str,
    url: &mut String,
    broken: impl Fn() -> Result<(), E>,
) -> Result<(), E> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut push = |byte: u8, is_raw: bool| match is_raw {
        true => url.push(char::from(byte)),
        false => url.extend([
            '%',
            char::from(HEX[usize::from(byte >> 4)]),
            char::from(HEX[usize::from(byte & 15)]),
        ]),
    };
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        match (byte, escaped(rest)) {
            (b'%', Some(byte)) => {
                push(byte, is_plain(byte));
                rest = &after[2..];
                continue;
            }
            (b'%', None) => {
                broken()?;
                push(b'%', false);
            }
            (byte, _) => push(*byte, is_plain(*byte) || is_delimiter(*byte)),
        }
        rest = after;
    }
    Ok(())
}

/// Takes `.` and `..` out of a path, as every client does before it asks. The last segment of a
/// beginning is open.
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
        if n == last {
            kept.push("");
        }
    }
    let made = format!("/{}{query}", kept.join("/"));
    url.truncate(start);
    url.push_str(&made);
}

/// What the journal of an earlier version may have, read as that version read it.
fn lenient(text: &str) -> String {
    let text = text.trim();
    let (_, rest) = text.split_once("://").unwrap_or(("http", text));
    let rest = rest.split('#').next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let authority = authority.to_ascii_lowercase();
    let end = match authority.find(']') {
        Some(at) => at + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    stored(&format!(
        "http://{}{slash}{path}",
        authority[..end].trim_end_matches('.')
    ))
    .into_owned()
}

/// A host name as DNS has it.
fn dns_name(name: &str) -> Result<String, &'static str> {
    const INTERNATIONAL: &str = "letters, digits, - and . can be in it; write an international name as DNS has it (xn--...)";
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut labels = Vec::new();
    for label in name.split('.') {
        let lower = label.to_lowercase();
        let is_good = |c: char| {
            c == '-'
                || c == '_'
                || if c.is_ascii() {
                    c.is_ascii_alphanumeric()
                } else {
                    c.is_alphanumeric()
                }
        };
        if lower.is_empty() {
            return Err("it has an empty label");
        }
        if !lower.chars().all(is_good) {
            return Err(INTERNATIONAL);
        }
        let label = if lower.is_ascii() {
            lower
        } else {
            format!("xn--{}", punycode(&lower).ok_or(INTERNATIONAL)?)
        };
        if label.len() > LABEL_CHARS_MAX {
            return Err("a label of it has more than 63 characters");
        }
        labels.push(label);
    }
    let name = labels.join(".");
    if name.len() > HOST_CHARS_MAX {
        Err("it has more than 253 characters")
    } else {
        Ok(name)
    }
}

/// RFC 3492 section 6.3; `None` where a number is too large, which no label of 63 characters has.
fn punycode(label: &str) -> Option<String> {
    const BASE: u32 = 36;
    const T_MIN: u32 = 1;
    const T_MAX: u32 = 26;
    let mut output: String = label.chars().filter(char::is_ascii).collect();
    let basic = u32::try_from(output.len()).ok()?;
    if basic > 0 {
        output.push('-');
    }
    let (mut n, mut delta, mut bias, mut handled) = (128u32, 0u32, 72u32, basic);
    let count = u32::try_from(label.chars().count()).ok()?;
    while handled < count {
        let next = label.chars().map(u32::from).filter(|c| *c >= n).min()?;
        delta = delta.checked_add((next - n).checked_mul(handled + 1)?)?;
        n = next;
        for c in label.chars().map(u32::from) {
            if c < n {
                delta = delta.checked_add(1)?;
            }
            if c != n {
                continue;
            }
            let (mut q, mut k) = (delta, BASE);
            loop {
                let t = k.saturating_sub(bias).clamp(T_MIN, T_MAX);
                if q < t {
                    break;
                }
                output.push(digit(t + (q - t) % (BASE - t)));
                q = (q - t) / (BASE - t);
                k += BASE;
            }
            output.push(digit(q));
            bias = adapt(delta, handled + 1, handled == basic);
            delta = 0;
            handled += 1;
        }
        delta = delta.checked_add(1)?;
        n = n.checked_add(1)?;
    }
    Some(output)
}

fn digit(value: u32) -> char {
    char::from(if value < 26 {
        b'a' + value as u8
    } else {
        b'0' + (value - 26) as u8
    })
}

/// RFC 3492 section 6.1.
fn adapt(delta: u32, points: u32, is_first: bool) -> u32 {
    let mut delta = if is_first { delta / 700 } else { delta / 2 };
    delta += delta / points;
    let mut k = 0;
    while delta > 455 {
        delta /= 35;
        k += 36;
    }
    k + 36 * delta / (delta + 38)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_is_the_same_however_it_is_written() {
        let table = [
            ("http://A.test:80/x?y#z", "http://a.test/x?y"),
            ("https://a.test/x", "http://a.test/x"),
            ("HTTPS://a.test", "http://a.test/"),
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
            ("/news/", "http://"),
            ("news", "http://"),
            ("a.test/x", "http://"),
            ("//a.test/x", "http://"),
            ("a.test/x?u=http://b", "http://"),
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
            ("https://A.test:443/v/720*", Ok("http://a.test/v/720")),
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
            assert_eq!(stored(key), expected);
            assert_eq!(url(expected).as_deref(), Ok(expected));
        }
        assert!(
            matches!(stored("http://a.test/a/b?c=d&e=%C3%A9"), Cow::Borrowed(_)),
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
            assert_eq!(beginnings(text), expected, "{text}");
        }
        assert_eq!(journalled_url("http://a.test/%zz"), "http://a.test/%25zz");
        assert_eq!(journalled_url("a.test?x"), "http://a.test/?x");
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
            any_of(&[one.clone(), url("HTTPS://A.test/x#y")]),
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

    proptest! {
        #[test]
        fn nothing_panics_and_a_form_is_its_own_form(text in "\\PC{0,40}", path in "[ -~é健]{0,30}") {
            for text in [text.clone(), format!("http://a.test/{path}"), format!("http://{text}")] {
                let _ = (host(&text), tag(&text), beginnings(&text), journalled_url(&text), lenient(&text));
                let of_key = stored(&text).into_owned();
                prop_assert_eq!(stored(&of_key), of_key.as_str());
                if let Ok(found) = url(&text) {
                    prop_assert_eq!(url(&found), Ok(found.clone()));
                    prop_assert_eq!(stored(&found), found.as_str());
                    prop_assert!(found.is_ascii());
                }
                if let Ok(found) = prefix(&text) {
                    prop_assert_eq!(prefix(&format!("{}*", found.replace('*', "%2A"))), Ok(found));
                }
            }
        }
    }
}
