//! What a request is for: the cache key, and whether method and path may be answered from the store.
//!
//! Follows RFC 9111 section 2 and 4, RFC 9110 section 4.2.3, RFC 3986 section 6. Nothing is decoded: two URLs are one
//! only where every origin must take them for one.

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
    #[error("the request names no valid host: send one Host field, a name or an address with at most a port")]
    Authority,
    /// Answer 400.
    #[error("the request's path is not valid: it starts with a slash and has visible ASCII characters only")]
    Path,
    /// Answer 414.
    #[error("the request's path and query have more than {PATH_BYTES_MAX} bytes: send a shorter one")]
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
    /// The key of a request. Scheme and authority are compared in lower case and without the default port, path and
    /// query byte by byte.
    ///
    /// # Errors
    /// An authority or a path that is none, or too long.
    pub fn new(scheme: &str, host: &str, path_and_query: &str) -> Result<Self, KeyError> {
        let scheme = scheme.to_ascii_lowercase();
        let host = authority(&scheme, host)?;
        check_path(path_and_query)?;
        let url = format!("{scheme}://{host}{path_and_query}");
        Ok(Self { hash: hash(&url), url: url.into() })
    }
}

/// xxh3-128 of a key's URL.
pub fn hash(url: &str) -> u128 {
    xxhash_rust::xxh3::xxh3_128(url.as_bytes())
}

/// An authority in lower case, without its default port or a dot at its end.
///
/// # Errors
/// When it is empty, too long, has user information or a character that a host cannot have, or a port that is none.
pub fn authority(scheme: &str, host: &str) -> Result<String, KeyError> {
    let (name, port) = split_port(host)?;
    if host.len() > AUTHORITY_BYTES_MAX || !is_host(name) {
        return Err(KeyError::Authority);
    }
    let name = name.to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    let default = if scheme == "https" { 443 } else { 80 };
    match port {
        Some(port) if port != default => Ok(format!("{name}:{port}")),
        _ => Ok(name.to_owned()),
    }
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
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().map(|p| (name, Some(p))).map_err(|_| KeyError::Authority)
        }
        Some(_) => Err(KeyError::Authority),
    }
}

fn is_host(name: &str) -> bool {
    if let Some(inner) = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let is_named = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    is_named && !name.is_empty() && !name.starts_with('.') && !name.contains("..")
}

fn check_path(path_and_query: &str) -> Result<(), KeyError> {
    if path_and_query.len() > PATH_BYTES_MAX {
        return Err(KeyError::TooLong);
    }
    let is_valid = path_and_query.starts_with('/') && path_and_query.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b'#');
    is_valid.then_some(()).ok_or(KeyError::Path)
}

/// Why a path may mean one thing to this cache and another to an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ambiguity {
    /// `%2F` or `%5C`.
    EncodedSlash,
    /// A segment `.` or `..`, also where it is encoded in part or whole.
    DotSegment,
    /// `;`, behind which some servers see parameters and others a name.
    Parameter,
    /// A backslash.
    Backslash,
    /// `%25` before two hexadecimal digits.
    DoubleEncoding,
    /// `%00` or another encoded control character.
    Control,
    /// A percent sign without two hexadecimal digits.
    BrokenEscape,
    /// `%3F` or `%23`, which some servers cut a path at.
    EncodedDelimiter,
}

/// What is ambiguous in a path, if anything. Such a path is passed to the origin as it is, and its answer is neither
/// stored nor looked up: so nobody can store one resource under another's name. A query is compared byte by byte and
/// never ambiguous here.
pub fn ambiguity(path_and_query: &str) -> Option<Ambiguity> {
    let path = path_and_query.split('?').next().unwrap_or_default().as_bytes();
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        let found = match byte {
            b'\\' => Some(Ambiguity::Backslash),
            b';' => Some(Ambiguity::Parameter),
            b'%' => escaped(after),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
        rest = after;
    }
    path.split(|b| *b == b'/').any(is_dots).then_some(Ambiguity::DotSegment)
}

fn escaped(after: &[u8]) -> Option<Ambiguity> {
    let digit = |b: &u8| char::from(*b).to_digit(16);
    let (Some(high), Some(low)) = (after.first().and_then(digit), after.get(1).and_then(digit)) else {
        return Some(Ambiguity::BrokenEscape);
    };
    match high * 16 + low {
        0x2f | 0x5c => Some(Ambiguity::EncodedSlash),
        0x3f | 0x23 => Some(Ambiguity::EncodedDelimiter),
        0x3b => Some(Ambiguity::Parameter),
        0x25 if after.len() >= 4 && after[2..4].iter().all(u8::is_ascii_hexdigit) => Some(Ambiguity::DoubleEncoding),
        0..=0x1f | 0x7f => Some(Ambiguity::Control),
        _ => None,
    }
}

/// Whether a segment is one or two dots, each as itself or as `%2e`.
fn is_dots(segment: &[u8]) -> bool {
    let mut rest = segment;
    for dots in 0..3 {
        if rest.is_empty() {
            return dots > 0;
        }
        rest = match rest {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return false,
        };
    }
    false
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
