//! What a request is for: the cache key, and whether method and path may be answered from the
//! store.
//!
//! Follows RFC 9111 section 2 and 4, RFC 9110 section 4.2.3, RFC 3986 section 6. Nothing is
//! decoded: two URLs are one only where every origin must take them for one.

use http::Method;

/// Bytes of a path with its query.
pub const PATH_BYTES_MAX: usize = 8 * 1024;
/// Bytes of an authority.
pub const AUTHORITY_BYTES_MAX: usize = 255 + 6;

/// A cache key: `scheme://authority/path?query`, and its hash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// As it is compared, also by purges.
    pub url: Box<str>,
    /// xxh3-128 of the URL.
    pub hash: u128,
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
    /// The key of a request. Scheme and authority are compared in lower case and without the
    /// default port, path and query byte by byte.
    ///
    /// # Errors
    /// An authority or a path that is none, or too long.
    pub fn new(scheme: &str, host: &str, path_and_query: &str) -> Result<Self, KeyError> {
        let mut url = String::new();
        write(scheme, host, path_and_query, &mut url)?;
        Ok(Self {
            hash: hash(&url),
            url: url.into(),
        })
    }
}

/// Writes a key's URL into a buffer, which is emptied first and keeps its room: for the path of a
/// hit, which allocates nothing then.
///
/// # Errors
/// As [`Key::new`]; what is in the buffer then is not to be used.
pub fn write(
    scheme: &str,
    host: &str,
    path_and_query: &str,
    buffer: &mut String,
) -> Result<(), KeyError> {
    buffer.clear();
    buffer.reserve(scheme.len() + 3 + host.len() + path_and_query.len());
    push_lower(scheme, buffer);
    buffer.push_str("://");
    write_authority(scheme, host, buffer)?;
    check_path(path_and_query)?;
    buffer.push_str(path_and_query);
    Ok(())
}

fn push_lower(text: &str, buffer: &mut String) {
    let start = buffer.len();
    buffer.push_str(text);
    buffer[start..].make_ascii_lowercase();
}

/// xxh3-128 of a key's URL.
pub fn hash(url: &str) -> u128 {
    xxhash_rust::xxh3::xxh3_128(url.as_bytes())
}

/// An authority in lower case, without its default port or a dot at its end.
///
/// # Errors
/// When it is empty, too long, has user information or a character that a host cannot have, or a
/// port that is none.
pub fn authority(scheme: &str, host: &str) -> Result<String, KeyError> {
    let mut buffer = String::with_capacity(host.len());
    write_authority(scheme, host, &mut buffer)?;
    Ok(buffer)
}

fn write_authority(scheme: &str, host: &str, buffer: &mut String) -> Result<(), KeyError> {
    let (name, port) = split_port(host)?;
    if host.len() > AUTHORITY_BYTES_MAX || !is_host(name) {
        return Err(KeyError::Authority);
    }
    push_lower(name.strip_suffix('.').unwrap_or(name), buffer);
    let default = if scheme.eq_ignore_ascii_case("https") {
        443
    } else {
        80
    };
    if let Some(port) = port.filter(|port| *port != default) {
        buffer.push(':');
        // Without zeros in front, and so not as it came.
        buffer.push_str(&port.to_string());
    }
    Ok(())
}

fn split_port(host: &str) -> Result<(&str, Option<u16>), KeyError> {
    let name_end = match host.starts_with('[') {
        true => host.find(']').ok_or(KeyError::Authority)? + 1,
        false => host.find(':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(name_end);
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok((name, None)),
        None => Err(KeyError::Authority),
        // An empty port is the default one (RFC 3986 section 6.2.3).
        Some("") => Ok((name, None)),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
            .parse()
            .map(|p| (name, Some(p)))
            .map_err(|_| KeyError::Authority),
        Some(_) => Err(KeyError::Authority),
    }
}

fn is_host(name: &str) -> bool {
    if let Some(inner) = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let is_named = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    is_named && !name.is_empty() && !name.starts_with('.') && !name.contains("..")
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

/// Whether a request target has one of the four forms (RFC 9112 section 3.2), the one that its
/// method may have: a path with a query; an http or https URL without user information; `*` for
/// OPTIONS; host and port for CONNECT. None has a fragment. What the path and the host may have in
/// them is another matter.
///
/// A cache that speaks no TLS gets https URLs from what does so in front of it: they name the same
/// resources.
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

/// Why a path is passed on without a look into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ambiguity {
    /// A segment `.` or `..`, also where dots, slashes or what delimits it are encoded once or
    /// twice, or where a parameter follows (`..;x`): nginx, Apache and Tomcat fold them, each its
    /// own set. Clients take them out before they ask (RFC 3986 section 5.2.4).
    DotSegment,
    /// A backslash: no URI has one (RFC 3986 section 3.3), and IIS reads it as a slash.
    Backslash,
    /// `%00` or another control character, encoded once or twice: servers in C end the path there,
    /// others split lines.
    Control,
    /// A percent sign without two hexadecimal digits: an error here, a character there.
    BrokenEscape,
}

/// What is ambiguous in a path, if anything. Such a path is passed to the origin as it is, and its
/// answer is neither stored nor looked up: a purge of the resource that the origin takes it for
/// would not cover it.
///
/// Every other spelling is a key of its own, byte by byte, and what is stored is given to that
/// spelling alone: encoded slashes, delimiters, percent signs and parameters are safe to store,
/// whatever an origin makes of them. A query is never ambiguous.
pub fn ambiguity(path_and_query: &str) -> Option<Ambiguity> {
    let mut rest = path_and_query.as_bytes();
    // Dots since the segment began, as long as there is nothing else in it.
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
        // Servers that decode see the end of a segment in an encoded slash, delimiter or parameter,
        // others in itself alone.
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

/// The byte that an escape stands for, also where its percent sign is escaped, and how long it is.
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

/// What a method is to a cache (RFC 9110 section 9, RFC 9111 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MethodClass {
    /// Answered from the store, and stored.
    Get,
    /// Answered from what GET stored; its own answer makes no entry.
    Head,
    /// Passed on; changes nothing.
    Safe,
    /// Passed on; what it changes is dropped from the store. Also every method that is not known.
    Unsafe,
    /// Not for a reverse proxy: answer 405 (CONNECT, TRACE).
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
            ("https", "a.test:80", "/", "https://a.test:80/"),
            ("http", "a.test:8080", "/", "http://a.test:8080/"),
            ("http", "[2001:DB8::1]:80", "/", "http://[2001:db8::1]/"),
            ("http", "127.0.0.1:8080", "/", "http://127.0.0.1:8080/"),
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
        let key = Key::new("http", "a", "/x").expect("valid");
        assert_eq!(key.hash, hash("http://a/x"));
        assert_ne!(key.hash, hash("http://a/X"));
    }

    #[test]
    fn a_key_can_be_written_without_allocating() {
        let mut buffer = String::with_capacity(64);
        let room = buffer.as_ptr();
        for (path, expected) in [("/a?b", "http://a.test/a?b"), ("/", "http://a.test/")] {
            assert_eq!(write("HTTP", "A.Test:80", path, &mut buffer), Ok(()));
            assert_eq!((buffer.as_str(), buffer.as_ptr()), (expected, room));
        }
        assert_eq!(authority("http", "a:0080"), Ok("a".to_owned()));
        assert_eq!(authority("http", "a:08080"), Ok("a:8080".to_owned()));
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
                prop_assert_eq!(&*key.url, format!("http://{again}{path}"));
            }
        }

        #[test]
        fn different_paths_have_different_keys(one in "/[a-zA-Z0-9%./]{0,12}", other in "/[a-zA-Z0-9%./]{0,12}") {
            let key = |path: &str| Key::new("http", "a", path).expect("valid");
            prop_assert_eq!(key(&one) == key(&other), one == other);
        }
    }
}
