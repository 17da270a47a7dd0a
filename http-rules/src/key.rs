//! The cache key of a request, and whether its method and path allow an answer from the store.
//!
//! Follows RFC 9111 sections 2 and 4, RFC 9110 section 4.2.3 and RFC 3986 section 6. Path and query
//! are never decoded: two URLs share a key only where every origin must treat them as equal.
//!
//! Clients, push orders and operators name URLs in different ways, and every key is made here:
//! [`Host`] takes an authority apart, [`Host::write_url`] joins scheme, host and path, and
//! [`Key::of_url`] does both for a whole URL.

use http::Method;
use nearcast_fleet::scope::SCHEMES;

/// Longest path with its query, in bytes.
pub const PATH_BYTES_MAX: usize = 8 * 1024;
/// Longest authority, in bytes.
pub const AUTHORITY_BYTES_MAX: usize = 255 + 6;

fn is_https(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("https")
}

/// A cache key: `scheme://host/path?query`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The URL, as it is indexed and compared.
    pub url: Box<str>,
}

/// Why a request has no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum KeyError {
    /// Answer 400.
    #[error(
        "the request names no valid host: send one Host field, a name or an address with at most a port"
    )]
    Authority,
    /// Answer 400.
    #[error(
        "the request's path is not valid: it starts with a slash and has visible ASCII characters only"
    )]
    Path,
    /// Answer 414.
    #[error(
        "the request's path and query have more than {PATH_BYTES_MAX} bytes: send a shorter one"
    )]
    TooLong,
}

impl KeyError {
    /// The status to answer with.
    pub fn status(self) -> http::StatusCode {
        match self {
            Self::Authority | Self::Path => http::StatusCode::BAD_REQUEST,
            Self::TooLong => http::StatusCode::URI_TOO_LONG,
        }
    }
}

impl Key {
    /// The key of a request for an authority as the client wrote it. Scheme and host are compared
    /// in lower case, path and query byte by byte.
    ///
    /// # Errors
    /// The authority or the path is malformed or too long.
    pub fn new(scheme: &str, authority: &str, path_and_query: &str) -> Result<Self, KeyError> {
        let mut url = String::new();
        Host::parse(authority)?.write_url(scheme, path_and_query, &mut url)?;
        Ok(Self { url: url.into() })
    }

    /// The key of a whole URL, whose fragment is left out and whose empty path is `/`.
    ///
    /// # Errors
    /// As [`Key::new`]; without a scheme [`KeyError::Authority`].
    pub fn of_url(url: &str) -> Result<Self, KeyError> {
        let (scheme, rest) = url.trim().split_once("://").ok_or(KeyError::Authority)?;
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if path.starts_with('/') {
            return Self::new(scheme, authority, path);
        }
        Self::new(scheme, authority, &format!("/{path}"))
    }

    /// The keys of a URL that a push order names. Without a scheme (`//host/path`, `host/path`) it
    /// has one key for each.
    ///
    /// # Errors
    /// As [`Key::new`].
    pub fn all_of_url(url: &str) -> Result<Vec<Self>, KeyError> {
        let url = url.trim();
        match url.split(['/', '?', '#']).next() {
            Some(scheme) if scheme.ends_with(':') && url[scheme.len()..].starts_with("//") => {
                Ok(vec![Self::of_url(url)?])
            }
            _ => {
                let rest = url.strip_prefix("//").unwrap_or(url);
                let of_scheme = |scheme| Self::of_url(&format!("{scheme}://{rest}"));
                SCHEMES.into_iter().map(of_scheme).collect()
            }
        }
    }
}

/// The host of a key: in lower case, without port, user information and final dot.
///
/// The port is the one by which the client reached this node. It says nothing about the resource,
/// so it is no part of a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host(Box<str>);

impl Host {
    /// The host of an authority as a client wrote it.
    ///
    /// # Errors
    /// [`KeyError::Authority`] when the authority is empty, too long, or has user information, a
    /// character that a host cannot have, or a malformed port.
    pub fn parse(authority: &str) -> Result<Self, KeyError> {
        let (name, _) = split_authority(authority)?;
        let mut host = String::with_capacity(name.len());
        push_lower(name, &mut host);
        Ok(Self(host.into()))
    }

    /// The host as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Writes the URL of a key into a buffer. The buffer is emptied first and keeps its capacity,
    /// so that a hit allocates nothing.
    ///
    /// # Errors
    /// [`KeyError::Path`] or [`KeyError::TooLong`]; the buffer is empty then.
    pub fn write_url(
        &self,
        scheme: &str,
        path_and_query: &str,
        url: &mut String,
    ) -> Result<(), KeyError> {
        url.clear();
        check_path(path_and_query)?;
        url.reserve(scheme.len() + 3 + self.0.len() + path_and_query.len());
        push_lower(scheme, url);
        url.push_str("://");
        url.push_str(&self.0);
        url.push_str(path_and_query);
        Ok(())
    }
}

impl std::ops::Deref for Host {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

fn push_lower(text: &str, buffer: &mut String) {
    let start = buffer.len();
    buffer.push_str(text);
    buffer[start..].make_ascii_lowercase();
}

/// An authority in lower case, without its scheme's default port and without a final dot. Unlike a
/// [`Host`] it keeps other ports, which name other origins (RFC 9110 section 4.3.1).
///
/// # Errors
/// As [`Host::parse`].
pub fn authority(scheme: &str, authority: &str) -> Result<String, KeyError> {
    let (name, port) = split_authority(authority)?;
    let mut found = String::with_capacity(authority.len());
    push_lower(name, &mut found);
    let default_port = if is_https(scheme) { 443 } else { 80 };
    if let Some(port) = port.filter(|port| *port != default_port) {
        found.push(':');
        // The number, since the client may have written leading zeros.
        found.push_str(&port.to_string());
    }
    Ok(found)
}

/// The host of an authority without a final dot, and its port.
fn split_authority(authority: &str) -> Result<(&str, Option<u16>), KeyError> {
    let (name, port) = split_port(authority)?;
    if authority.len() > AUTHORITY_BYTES_MAX || !is_host(name) {
        return Err(KeyError::Authority);
    }
    Ok((name.strip_suffix('.').unwrap_or(name), port))
}

fn split_port(authority: &str) -> Result<(&str, Option<u16>), KeyError> {
    let name_end = match authority.starts_with('[') {
        true => authority.find(']').ok_or(KeyError::Authority)? + 1,
        false => authority.find(':').unwrap_or(authority.len()),
    };
    let (name, port) = authority.split_at(name_end);
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok((name, None)),
        None => Err(KeyError::Authority),
        // An empty port is the default one (RFC 3986 section 6.2.3).
        Some("") => Ok((name, None)),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
            .parse()
            .map(|port| (name, Some(port)))
            .map_err(|_| KeyError::Authority),
        Some(_) => Err(KeyError::Authority),
    }
}

fn is_host(name: &str) -> bool {
    if let Some(inner) = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let has_host_characters = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    has_host_characters && !name.is_empty() && !name.starts_with('.') && !name.contains("..")
}

fn check_path(path_and_query: &str) -> Result<(), KeyError> {
    if path_and_query.len() > PATH_BYTES_MAX {
        return Err(KeyError::TooLong);
    }
    let is_valid = path_and_query.starts_with('/')
        && path_and_query
            .bytes()
            .all(|b| (0x21..0x7f).contains(&b) && b != b'#');
    is_valid.then_some(()).ok_or(KeyError::Path)
}

/// Whether a request target has the form that its method requires (RFC 9112 section 3.2): a path
/// with a query; an http or https URL without user information; `*` for OPTIONS; host and port for
/// CONNECT. No form has a fragment. The characters of path and host are checked elsewhere.
///
/// Both schemes are accepted. The scheme by which a request came is that of its connection, or what
/// a trusted proxy states ([`crate::proxies`]), and never the target's: a client without TLS must
/// not name the responses of clients with TLS.
pub fn is_target(method: &Method, target: &str) -> bool {
    if target.contains('#') {
        return false;
    }
    match target {
        "*" => *method == Method::OPTIONS,
        _ if *method == Method::CONNECT => authority("http", target).is_ok(),
        _ if target.starts_with('/') => true,
        _ => {
            let Some((scheme, rest)) = target.split_once("://") else {
                return false;
            };
            let is_web =
                scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
            is_web && authority(scheme, rest.split(['/', '?']).next().unwrap_or_default()).is_ok()
        }
    }
}

/// Why a request with this path bypasses the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ambiguity {
    /// A segment `.` or `..`, also with dots, slashes or delimiters encoded once or twice, or with
    /// a parameter (`..;x`). nginx, Apache and Tomcat each resolve a different set of these.
    /// Clients remove dot segments before they send a request (RFC 3986 section 5.2.4).
    DotSegment,
    /// A backslash. URIs have none (RFC 3986 section 3.3), and IIS reads it as a slash.
    Backslash,
    /// `%00` or another control character, encoded once or twice. Servers in C end the path there,
    /// others split lines.
    Control,
    /// A percent sign without two hexadecimal digits. Some servers reject it, others read it as a
    /// character.
    BrokenEscape,
}

/// The ambiguity of a path, if it has one. Such a request is forwarded unchanged, and its response
/// is neither stored nor looked up: a purge of the resource that the origin chooses would not cover
/// it.
///
/// Every other spelling has a key of its own, byte by byte, and a stored response is served for
/// that spelling alone. So encoded slashes, delimiters, percent signs and parameters are safe to
/// store, however an origin reads them. A query is never ambiguous.
pub fn ambiguity(path_and_query: &str) -> Option<Ambiguity> {
    let mut rest = path_and_query.as_bytes();
    // Number of dots in this segment; `None` when it has any other byte.
    let mut dots = None;
    loop {
        let (byte, length) = match rest {
            [] | [b'?', ..] => return is_dots(dots).then_some(Ambiguity::DotSegment),
            [b'\\', ..] => return Some(Ambiguity::Backslash),
            [b'%', ..] => match decoded(rest) {
                None => return Some(Ambiguity::BrokenEscape),
                Some((0..=0x1f | 0x7f, _)) => return Some(Ambiguity::Control),
                Some(found) => found,
            },
            [byte, ..] => (*byte, 1),
        };

        // Servers that decode first also end a segment at an encoded slash, delimiter or parameter.
        if matches!(byte, b'/' | b'\\' | b';' | b'?' | b'#') {
            if is_dots(dots) {
                return Some(Ambiguity::DotSegment);
            }
            dots = matches!(byte, b'/' | b'\\').then_some(0);
        } else {
            dots = dots.filter(|_| byte == b'.').map(|dots| dots + 1);
        }

        rest = &rest[length..];
    }
}

fn is_dots(dots: Option<u32>) -> bool {
    matches!(dots, Some(1 | 2))
}

/// The byte that an escape encodes, also when its percent sign is escaped, and the escape's length.
fn decoded(text: &[u8]) -> Option<(u8, usize)> {
    let byte = escape(text.get(1..)?)?;
    match text.get(3..).and_then(escape).filter(|_| byte == b'%') {
        Some(inner) => Some((inner, 5)),
        None => Some((byte, 3)),
    }
}

/// The byte of two hexadecimal digits.
fn escape(text: &[u8]) -> Option<u8> {
    let digit = |b: &u8| char::from(*b).to_digit(16);
    let (high, low) = (text.first().and_then(digit)?, text.get(1).and_then(digit)?);
    u8::try_from(high * 16 + low).ok()
}

/// How a cache treats a method (RFC 9110 section 9, RFC 9111 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MethodClass {
    /// Answered from the store, and stored.
    Get,
    /// Answered from stored responses to GET; its own response is not stored.
    Head,
    /// Forwarded; invalidates nothing.
    Safe,
    /// Forwarded; invalidates its target. Unknown methods belong here.
    Unsafe,
    /// Refused with 501 (CONNECT, TRACE).
    Refused,
}

/// The class of a method.
pub fn method_class(method: &Method) -> MethodClass {
    const SAFE: [&str; 5] = ["OPTIONS", "PROPFIND", "REPORT", "SEARCH", "QUERY"];
    match *method {
        Method::GET => MethodClass::Get,
        Method::HEAD => MethodClass::Head,
        Method::CONNECT | Method::TRACE => MethodClass::Refused,
        _ if SAFE.contains(&method.as_str()) => MethodClass::Safe,
        _ => MethodClass::Unsafe,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    fn url(scheme: &str, host: &str, path: &str) -> Result<String, KeyError> {
        Key::new(scheme, host, path).map(|key| key.url.into())
    }

    #[test]
    fn keys_are_normal_where_all_agree_and_exact_elsewhere() {
        // RFC 9110 section 4.2.3.
        let table = [
            ("http", "A.Test", "/", "http://a.test/"),
            ("HTTP", "a.test:80", "/", "http://a.test/"),
            ("http", "a.test:", "/", "http://a.test/"),
            ("http", "a.test.", "/", "http://a.test/"),
            ("https", "a.test:443", "/", "https://a.test/"),
            ("https", "a.test:80", "/", "https://a.test/"),
            ("http", "a.test:8080", "/", "http://a.test/"),
            ("http", "[2001:DB8::1]:80", "/", "http://[2001:db8::1]/"),
            ("http", "127.0.0.1:8080", "/", "http://127.0.0.1/"),
            (
                "http",
                "a",
                "/A%2fb/%7Ec?Q=%41&q=a",
                "http://a/A%2fb/%7Ec?Q=%41&q=a",
            ),
            ("http", "a", "/x?", "http://a/x?"),
            ("http", "a", "//x//", "http://a//x//"),
        ];
        for (scheme, host, path, expected) in table {
            assert_eq!(
                url(scheme, host, path).as_deref(),
                Ok(expected),
                "{scheme} {host} {path}"
            );
        }
    }

    #[test]
    fn a_key_can_be_written_without_allocating() {
        let host = Host::parse("A.Test:80").expect("valid");
        let mut url = String::with_capacity(64);
        let storage = url.as_ptr();
        for (path, expected) in [("/a?b", "http://a.test/a?b"), ("/", "http://a.test/")] {
            assert_eq!(host.write_url("HTTP", path, &mut url), Ok(()));
            assert_eq!((url.as_str(), url.as_ptr()), (expected, storage));
        }
        assert_eq!(host.write_url("http", "x", &mut url), Err(KeyError::Path));
        assert_eq!(url, "");
    }

    #[test]
    fn authorities_keep_the_ports_that_name_other_origins() {
        let table = [
            ("http", "a:0080", "a"),
            ("http", "a:08080", "a:8080"),
            ("http", "A.Test.:80", "a.test"),
            ("https", "a:443", "a"),
            ("https", "a:80", "a:80"),
            ("http", "127.0.0.1:8080", "127.0.0.1:8080"),
        ];
        for (scheme, text, expected) in table {
            assert_eq!(authority(scheme, text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn urls_of_operators_have_the_keys_of_clients() {
        let table = [
            ("http://A.test:80/x?y#z", Ok("http://a.test/x?y")),
            ("https://a.test:443/x", Ok("https://a.test/x")),
            ("HTTPS://a.test", Ok("https://a.test/")),
            ("//a.test/x", Err(KeyError::Authority)),
            ("a.test/x", Err(KeyError::Authority)),
            (" http://[2001:DB8::1]:8080/ ", Ok("http://[2001:db8::1]/")),
            ("http://a.test./%7ex", Ok("http://a.test/%7ex")),
            ("http://user@a.test/", Err(KeyError::Authority)),
            ("http:///x", Err(KeyError::Authority)),
            ("http://a.test/a b", Err(KeyError::Path)),
        ];
        for (text, expected) in table {
            let found = Key::of_url(text).map(|key| key.url.into_string());
            assert_eq!(found, expected.map(str::to_owned), "{text}");
        }
        let both = ["http://a.test/x?y", "https://a.test/x?y"];
        let table: [(&str, &[&str]); 5] = [
            ("//A.test:8443/x?y", &both),
            ("a.test/x?y#z", &both),
            ("https://a.test/x?y", &both[1..]),
            ("http://a.test/x?y", &both[..1]),
            (
                "a.test?u=http://b",
                &["http://a.test/?u=http://b", "https://a.test/?u=http://b"],
            ),
        ];
        for (text, expected) in table {
            let found = Key::all_of_url(text).expect("valid");
            let found: Vec<&str> = found.iter().map(|key| &*key.url).collect();
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(Key::all_of_url("/x"), Err(KeyError::Authority));
    }

    #[test]
    fn targets_have_the_form_of_their_method() {
        let table = [
            ("GET", "/", true),
            ("GET", "/a?b://c", true),
            ("GET", "//a", true),
            ("GET", "/a:b", true),
            ("GET", "http://a.test/x", true),
            ("GET", "HTTP://A.Test:80/x?y", true),
            ("GET", "https://a.test", true),
            ("GET", "http://a.test?x", true),
            ("GET", "http://[2001:db8::1]:80/", true),
            ("OPTIONS", "*", true),
            ("CONNECT", "a.test:443", true),
            ("GET", "", false),
            ("GET", "a.test", false),
            ("GET", "a.test:80", false),
            ("GET", "a.test/x", false),
            ("GET", "x", false),
            ("GET", "?x", false),
            ("GET", "\\a", false),
            ("GET", "*", false),
            ("POST", "*", false),
            ("OPTIONS", "**", false),
            ("GET", "/x#y", false),
            ("GET", "/#", false),
            ("GET", "http://a.test/#y", false),
            ("GET", "ftp://a.test/x", false),
            ("GET", "ws://a.test/x", false),
            ("GET", "file:///etc", false),
            ("GET", "javascript:x", false),
            ("GET", "http:/a.test/x", false),
            ("GET", "http:a.test/x", false),
            ("GET", "http://", false),
            ("GET", "http:///x", false),
            ("GET", "http://user@a.test/x", false),
            ("GET", "http://user:word@a.test/x", false),
            ("GET", "http://a.test:x/", false),
            ("GET", "http://a.test\\x/", false),
            ("GET", "://a.test/", false),
            ("CONNECT", "/x", false),
            ("CONNECT", "http://a.test/", false),
        ];
        for (method, target, expected) in table {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            assert_eq!(is_target(&method, target), expected, "{method} {target}");
        }
    }

    #[test]
    fn malformed_hosts_have_no_key() {
        // RFC 9110 section 7.2 and RFC 9112 section 3.2.
        let hosts = [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a b",
            "a/b",
            "a@b",
            "user:pw@a",
            "a:x",
            "a:99999",
            "a:-1",
            "a:80:80",
            "[::1",
            "[::1]x",
            "[zz]",
            "::1",
            "a,b",
            "a;b",
            "a\0",
            "é",
        ];
        for host in hosts {
            assert_eq!(url("http", host, "/"), Err(KeyError::Authority), "{host}");
        }
        assert_eq!(
            url("http", &"a".repeat(AUTHORITY_BYTES_MAX + 1), "/"),
            Err(KeyError::Authority)
        );
    }

    #[test]
    fn malformed_and_long_paths_have_no_key() {
        // RFC 9110 sections 15.5.1 and 15.5.15.
        for path in ["", "x", "*", "/a b", "/#x", "/\u{e9}", "/\n", "/a\0"] {
            assert_eq!(url("http", "a", path), Err(KeyError::Path), "{path:?}");
        }
        let longest = format!("/{}", "x".repeat(PATH_BYTES_MAX - 1));
        assert!(url("http", "a", &longest).is_ok());
        assert_eq!(
            url("http", "a", &format!("{longest}x")),
            Err(KeyError::TooLong)
        );
        assert_eq!(
            (
                KeyError::TooLong.status().as_u16(),
                KeyError::Path.status().as_u16()
            ),
            (414, 400)
        );
    }

    #[test]
    fn ambiguous_paths_are_found() {
        // RFC 3986 sections 2.2 and 5.2.4: what origins read in more than one way.
        let table = [
            ("/", None),
            ("/a/b.css", None),
            ("/a.b/..c/d..", None),
            ("/.../x", None),
            ("/.well-known/x", None),
            ("/a%20b/%C3%A9", None),
            ("/a?x=/../%2f;%5c%2500\\", None),
            ("//a//b", None),
            ("/a%252", None),
            // Exact keys: registries, forges, wikis and package pools have these.
            ("/@scope%2fname", None),
            ("/@scope%2Fname", None),
            ("/wiki/%5C", None),
            ("/wiki/Who%3F", None),
            ("/wiki/C%23", None),
            ("/a;v=1/b.css", None),
            ("/pool/a%3bb.deb", None),
            ("/100%25done", None),
            ("/x%252fy", None),
            ("/x%25252e%25252e", None),
            ("/a..;x/..b;y", None),
            ("/a;..", None),
            ("/a%2f...%2fb", None),
            ("/a%2f.b%5c..c", None),
            ("/.;", Some(Ambiguity::DotSegment)),
            ("/a/./b", Some(Ambiguity::DotSegment)),
            ("/a/../b", Some(Ambiguity::DotSegment)),
            ("/a/..", Some(Ambiguity::DotSegment)),
            ("/a/..?x", Some(Ambiguity::DotSegment)),
            ("/%2e%2E/b", Some(Ambiguity::DotSegment)),
            ("/a/.%2e", Some(Ambiguity::DotSegment)),
            ("/static/..%2faccount", Some(Ambiguity::DotSegment)),
            ("/static%2F%2e%2e%2Faccount", Some(Ambiguity::DotSegment)),
            ("/static%5c..%5caccount", Some(Ambiguity::DotSegment)),
            ("/a/..;/b", Some(Ambiguity::DotSegment)),
            ("/a/..;x=1/b", Some(Ambiguity::DotSegment)),
            ("/a/..%3bx/b", Some(Ambiguity::DotSegment)),
            ("/a/..%3f", Some(Ambiguity::DotSegment)),
            ("/a/..%23", Some(Ambiguity::DotSegment)),
            ("/a/%252e%252e/b", Some(Ambiguity::DotSegment)),
            ("/a%252f..%252fb", Some(Ambiguity::DotSegment)),
            ("/a\\b", Some(Ambiguity::Backslash)),
            ("/a%00.css", Some(Ambiguity::Control)),
            ("/a%2500.css", Some(Ambiguity::Control)),
            ("/a%0d%0ab", Some(Ambiguity::Control)),
            ("/a%7f", Some(Ambiguity::Control)),
            ("/a%", Some(Ambiguity::BrokenEscape)),
            ("/a%2", Some(Ambiguity::BrokenEscape)),
            ("/a%zz", Some(Ambiguity::BrokenEscape)),
            ("/a%2?b", Some(Ambiguity::BrokenEscape)),
        ];
        for (path, expected) in table {
            assert_eq!(ambiguity(path), expected, "{path}");
        }
    }

    #[test]
    fn methods_have_classes() {
        let table = [
            ("GET", MethodClass::Get),
            ("HEAD", MethodClass::Head),
            ("OPTIONS", MethodClass::Safe),
            ("PROPFIND", MethodClass::Safe),
            ("POST", MethodClass::Unsafe),
            ("DELETE", MethodClass::Unsafe),
            ("M-SEARCH", MethodClass::Unsafe),
            ("get", MethodClass::Unsafe),
            ("TRACE", MethodClass::Refused),
            ("CONNECT", MethodClass::Refused),
        ];
        for (method, expected) in table {
            assert_eq!(
                method_class(&Method::from_bytes(method.as_bytes()).expect("a token")),
                expected,
                "{method}"
            );
        }
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn no_text_panics_and_keys_are_stable(host in ".{0,40}", path in ".{0,40}") {
            ambiguity(&path);
            if let Ok(key) = Key::new("http", &host, &path) {
                let again = authority("http", &host).expect("it was valid");
                prop_assert_eq!(authority("http", &again), Ok(again.clone()));
                let parsed = Host::parse(&host).expect("it was valid");
                prop_assert_eq!(Host::parse(&parsed), Ok(parsed.clone()));
                prop_assert_eq!(&*key.url, format!("http://{}{path}", &*parsed));
            }
        }

        #[test]
        fn different_paths_have_different_keys(one in "/[a-zA-Z0-9%./]{0,12}", other in "/[a-zA-Z0-9%./]{0,12}") {
            let key = |path: &str| Key::new("http", "a", path).expect("valid");
            prop_assert_eq!(key(&one) == key(&other), one == other);
        }
    }
}
