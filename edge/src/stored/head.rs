//! The text of a stored response in one allocation: its URL, the origin's fields, and the request
//! fields that select it. The same bytes are a part of its form on disk.
//!
//! Common names are numbers of a table, common lines numbers of another, and dates in the form of
//! RFC 9110 section 5.6.7 are seconds. So an ordinary head takes less than it takes on the wire.
//! Everything else is kept byte by byte.
//!
//! Another entry of the tables is another version of the form on disk.

use std::sync::LazyLock;

use http::header::{DATE, EXPIRES, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue};
use nearcast_http_rules::dates;

/// Names of fields in order, by their number, which follows [`INLINE`].
const NAMES: [&str; 96] = [
    "accept",
    "accept-ch",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-max-age",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "cache-groups",
    "cache-status",
    "cache-tag",
    "cdn-cache-control",
    "content-digest",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-security-policy",
    "content-security-policy-report-only",
    "content-type",
    "cookie",
    "critical-ch",
    "cross-origin-embedder-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "date",
    "deprecation",
    "digest",
    "dpr",
    "etag",
    "expires",
    "feature-policy",
    "host",
    "last-modified",
    "link",
    "location",
    "nel",
    "no-vary-search",
    "origin",
    "origin-agent-cluster",
    "p3p",
    "permissions-policy",
    "pragma",
    "proxy-status",
    "referer",
    "referrer-policy",
    "refresh",
    "report-to",
    "reporting-endpoints",
    "repr-digest",
    "retry-after",
    "sec-fetch-dest",
    "sec-fetch-mode",
    "sec-fetch-site",
    "server",
    "server-timing",
    "set-cookie",
    "sourcemap",
    "speculation-rules",
    "strict-transport-security",
    "surrogate-control",
    "surrogate-key",
    "timing-allow-origin",
    "trailer",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-amz-cf-id",
    "x-amz-id-2",
    "x-amz-meta-mtime",
    "x-amz-request-id",
    "x-amz-server-side-encryption",
    "x-amz-storage-class",
    "x-amz-version-id",
    "x-cache",
    "x-cache-hits",
    "x-content-type-options",
    "x-dns-prefetch-control",
    "x-frame-options",
    "x-permitted-cross-domain-policies",
    "x-powered-by",
    "x-request-id",
    "x-robots-tag",
    "x-served-by",
    "x-xss-protection",
];

/// Lines of fields by their number, which follows [`LINES_FROM`].
const LINES: [(&str, &str); 56] = [
    ("accept-ranges", "bytes"),
    ("access-control-allow-credentials", "true"),
    ("access-control-allow-origin", "*"),
    ("cache-control", "max-age=0"),
    ("cache-control", "max-age=3600"),
    ("cache-control", "max-age=31536000"),
    ("cache-control", "max-age=60"),
    ("cache-control", "max-age=86400"),
    ("cache-control", "no-cache"),
    ("cache-control", "public"),
    ("cache-control", "public, max-age=3600"),
    ("cache-control", "public, max-age=31536000"),
    ("cache-control", "public, max-age=31536000, immutable"),
    ("cache-control", "public, max-age=86400"),
    ("content-encoding", "br"),
    ("content-encoding", "gzip"),
    ("content-encoding", "zstd"),
    ("content-type", "application/javascript"),
    ("content-type", "application/json"),
    ("content-type", "application/octet-stream"),
    ("content-type", "application/pdf"),
    ("content-type", "application/vnd.apple.mpegurl"),
    ("content-type", "application/xml"),
    ("content-type", "font/woff2"),
    ("content-type", "image/avif"),
    ("content-type", "image/gif"),
    ("content-type", "image/jpeg"),
    ("content-type", "image/png"),
    ("content-type", "image/svg+xml"),
    ("content-type", "image/webp"),
    ("content-type", "image/x-icon"),
    ("content-type", "text/css"),
    ("content-type", "text/css; charset=utf-8"),
    ("content-type", "text/html"),
    ("content-type", "text/html; charset=UTF-8"),
    ("content-type", "text/html; charset=utf-8"),
    ("content-type", "text/javascript"),
    ("content-type", "text/javascript; charset=utf-8"),
    ("content-type", "text/plain"),
    ("content-type", "text/plain; charset=utf-8"),
    ("content-type", "video/iso.segment"),
    ("content-type", "video/mp2t"),
    ("content-type", "video/mp4"),
    ("pragma", "no-cache"),
    ("referrer-policy", "strict-origin-when-cross-origin"),
    ("server", "Apache"),
    ("server", "AmazonS3"),
    ("server", "nginx"),
    ("server", "cloudflare"),
    ("strict-transport-security", "max-age=31536000"),
    ("timing-allow-origin", "*"),
    ("vary", "Accept-Encoding"),
    ("vary", "Origin"),
    ("vary", "accept-encoding"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "SAMEORIGIN"),
];

/// The number of a name that follows in full.
const INLINE: u8 = 0;
/// The first number of a whole line.
const LINES_FROM: u8 = 160;
/// In the place of a length: the value is a date, of which the seconds follow.
const IS_DATE: u8 = 255;
/// In the place of a length: the length follows in four bytes. Shorter lengths stand for themselves.
const IS_LONG: u8 = 254;

static HEADER_NAMES: LazyLock<Vec<HeaderName>> =
    LazyLock::new(|| NAMES.map(HeaderName::from_static).to_vec());

/// The value of a field as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Text(&'a [u8]),
    /// Seconds after the Unix epoch.
    Date(u64),
}

impl<'a> Value<'a> {
    /// The text of a value that is no date.
    pub(crate) fn text(self) -> &'a [u8] {
        match self {
            Value::Text(text) => text,
            Value::Date(_) => b"",
        }
    }
}

/// URL and fields of a stored response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head(Box<[u8]>);

impl Head {
    /// `fields` are the origin's; `selecting` those of the request that `Vary` names, and `keyed`
    /// those that the site adds to the cache key.
    pub(crate) fn new(
        url: &str,
        fields: &HeaderMap,
        selecting: &HeaderMap,
        keyed: &HeaderMap,
    ) -> Self {
        let mut bytes = Vec::with_capacity(256);
        write_bytes(&mut bytes, url.as_bytes());
        for section in [selecting, keyed] {
            let mut packed = Vec::new();
            // Compared with requests byte by byte, so never as dates.
            write_fields(&mut packed, section, false);
            write_bytes(&mut bytes, &packed);
        }
        write_fields(&mut bytes, fields, true);
        Self(bytes.into())
    }

    /// Reads what [`as_bytes`](Self::as_bytes) gave. `None` for anything else.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let head = Self(bytes.into());
        let (url, rest) = read_bytes(bytes)?;
        std::str::from_utf8(url).ok()?;
        let (selecting, rest) = read_bytes(rest)?;
        let (keyed, fields) = read_bytes(rest)?;
        let are_valid = [selecting, keyed, fields].into_iter().all(|section| {
            let mut lines = Lines { rest: section };
            while !lines.rest.is_empty() {
                let Some((name, value)) = lines.read() else {
                    return false;
                };
                let is_value = match value {
                    Value::Text(text) => HeaderValue::from_bytes(text).is_ok(),
                    Value::Date(_) => section.as_ptr() == fields.as_ptr(),
                };
                if !is_value || HeaderName::from_lowercase(name.as_bytes()).is_err() {
                    return false;
                }
            }
            true
        });
        are_valid.then_some(head)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Cache key: `scheme://host/path?query`.
    pub(crate) fn url(&self) -> &str {
        std::str::from_utf8(self.url_bytes()).unwrap_or_default()
    }

    /// The same for comparisons.
    pub(crate) fn url_bytes(&self) -> &[u8] {
        read_bytes(&self.0).map_or(&[], |(url, _)| url)
    }

    /// The origin's fields.
    pub(crate) fn fields(&self) -> Lines<'_> {
        let skipped = read_bytes(&self.0)
            .and_then(|(_, rest)| read_bytes(rest))
            .and_then(|(_, rest)| read_bytes(rest));
        Lines {
            rest: skipped.map_or(&[], |(_, rest)| rest),
        }
    }

    /// The request fields that `Vary` names.
    pub(crate) fn selecting(&self) -> Lines<'_> {
        let section = read_bytes(&self.0).and_then(|(_, rest)| read_bytes(rest));
        Lines {
            rest: section.map_or(&[], |(section, _)| section),
        }
    }

    /// The request fields that the site adds to the cache key.
    pub(crate) fn keyed(&self) -> Lines<'_> {
        let section = read_bytes(&self.0)
            .and_then(|(_, rest)| read_bytes(rest))
            .and_then(|(_, rest)| read_bytes(rest));
        Lines {
            rest: section.map_or(&[], |(section, _)| section),
        }
    }
}

/// The lines of a section: name in lower case and value.
#[derive(Debug, Clone)]
pub(crate) struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Lines<'a> {
    /// The same as a map.
    pub(crate) fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        let mut lines = self.clone();
        while let Some(number) = lines.rest.first().copied() {
            let Some((name, value)) = lines.read() else {
                break;
            };
            let known = usize::from(number).wrapping_sub(1);
            let name = match HEADER_NAMES.get(known) {
                Some(known) => Ok(known.clone()),
                None => HeaderName::from_lowercase(name.as_bytes()),
            };
            let value = match value {
                Value::Text(text) => HeaderValue::from_bytes(text),
                Value::Date(seconds) => Ok(dates::format_date(seconds)),
            };
            if let (Ok(name), Ok(value)) = (name, value) {
                map.append(name, value);
            }
        }
        map
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Lines with a value of text, as comparisons with requests need them.
    pub(crate) fn texts(self) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone {
        self.map(|(name, value)| (name, value.text()))
    }

    fn read(&mut self) -> Option<(&'a str, Value<'a>)> {
        let (&number, rest) = self.rest.split_first()?;
        if let Some(line) = number.checked_sub(LINES_FROM) {
            let (name, value) = LINES.get(usize::from(line))?;
            self.rest = rest;
            return Some((name, Value::Text(value.as_bytes())));
        }
        let (name, rest) = match number {
            INLINE => {
                let (name, rest) = read_bytes(rest)?;
                (std::str::from_utf8(name).ok()?, rest)
            }
            known => (*NAMES.get(usize::from(known) - 1)?, rest),
        };
        let (value, rest) = match rest.split_first()? {
            (&IS_DATE, rest) => {
                let (seconds, rest) = rest.split_first_chunk::<5>()?;
                let mut whole = [0; 8];
                whole[..5].copy_from_slice(seconds);
                (Value::Date(u64::from_le_bytes(whole)), rest)
            }
            _ => {
                let (text, rest) = read_bytes(rest)?;
                (Value::Text(text), rest)
            }
        };
        self.rest = rest;
        Some((name, value))
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = (&'a str, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.read()
    }
}

fn write_fields(bytes: &mut Vec<u8>, fields: &HeaderMap, has_dates: bool) {
    for (name, value) in fields {
        let is_line = |(n, v): &(&str, &str)| *n == name.as_str() && v.as_bytes() == value;
        if let Some(line) = LINES.iter().position(is_line) {
            bytes.push(LINES_FROM + line as u8);
            continue;
        }
        match NAMES.binary_search(&name.as_str()) {
            Ok(known) => bytes.push(known as u8 + 1),
            Err(_) => {
                bytes.push(INLINE);
                write_bytes(bytes, name.as_str().as_bytes());
            }
        }
        let is_dated = has_dates && matches!(*name, DATE | LAST_MODIFIED | EXPIRES);
        match is_dated.then(|| seconds(value)).flatten() {
            Some(seconds) => {
                bytes.push(IS_DATE);
                bytes.extend_from_slice(&seconds.to_le_bytes()[..5]);
            }
            None => write_bytes(bytes, value.as_bytes()),
        }
    }
}

/// The seconds of a date, if they stand for exactly this value.
fn seconds(value: &HeaderValue) -> Option<u64> {
    let seconds = dates::parse_date(value.as_bytes())?;
    (seconds < 1 << 40 && dates::format_date(seconds) == *value).then_some(seconds)
}

fn write_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.len() < usize::from(IS_LONG) {
        to.push(bytes.len() as u8);
    } else {
        to.push(IS_LONG);
        // Heads are limited to far less.
        to.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    }
    to.extend_from_slice(bytes);
}

fn read_bytes(from: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = from.split_first()?;
    let (length, rest) = match length {
        IS_DATE => return None,
        IS_LONG => {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        short => (usize::from(short), rest),
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use nearcast_http_rules::testing::map;
    use proptest::prelude::*;

    use super::*;

    fn ordinary() -> HeaderMap {
        map(&[
            "content-type: text/html; charset=utf-8",
            "date: Mon, 02 Nov 2026 10:00:00 GMT",
            "etag: \"5f3c-5e1a9b2c3d4e5\"",
            "last-modified: Sun, 01 Nov 2026 10:00:00 GMT",
            "cache-control: public, max-age=600",
            "server: nginx",
        ])
    }

    #[test]
    fn the_tables_are_in_order_and_fit_their_numbers() {
        assert!(NAMES.len() < usize::from(LINES_FROM));
        assert!(LINES.len() <= usize::from(u8::MAX - LINES_FROM) + 1);
        for (at, name) in NAMES.iter().enumerate() {
            assert!(at == 0 || NAMES[at - 1] < *name, "{name}");
            assert!(
                HeaderName::from_lowercase(name.as_bytes()).is_ok(),
                "{name}"
            );
        }
        for (at, line) in LINES.iter().enumerate() {
            assert!(
                !LINES[..at].contains(line) && NAMES.contains(&line.0),
                "{line:?}"
            );
        }
    }

    #[test]
    fn an_ordinary_head_is_short() {
        let url = "http://www.example.test/articles/2026/11/page-123456.html";
        let none = HeaderMap::new();
        let head = Head::new(url, &ordinary(), &none, &none);
        assert!(head.as_bytes().len() <= 140, "{}", head.as_bytes().len());
    }

    #[test]
    fn a_head_comes_back_as_it_was() {
        let odd = map(&[
            "date: Monday, 02-Nov-26 10:00:00 GMT",
            "expires: 0",
            "last-modified: mon, 02 Nov 2026 10:00:00 GMT",
            "x-own: a",
            "x-own: b",
            "vary: accept-encoding, x-own",
        ]);
        let mut long = ordinary();
        long.insert(
            "x-long",
            HeaderValue::from_str(&"y".repeat(70_000)).expect("valid"),
        );
        long.insert(
            "x-odd",
            HeaderValue::from_bytes(b"caf\xe9\t").expect("valid"),
        );
        let selecting = map(&["date: Mon, 02 Nov 2026 10:00:00 GMT", "accept-encoding: br"]);
        let keyed = map(&["cookie: a=1"]);
        let url = format!("http://a.test/{}", "u".repeat(400));
        for fields in [HeaderMap::new(), ordinary(), odd, long] {
            let head = Head::new(&url, &fields, &selecting, &keyed);
            let read = Head::read(head.as_bytes()).expect("own form");
            assert_eq!(read.fields().to_map(), fields);
            assert_eq!(read.selecting().to_map(), selecting);
            assert_eq!(read.keyed().to_map(), keyed);
            assert!(selecting.iter().all(|(name, value)| {
                let mut texts = read.selecting().texts();
                texts.any(|(n, v)| n == name.as_str() && v == value.as_bytes())
            }));
            assert_eq!(read.url(), &*url);
            assert_eq!(read, head);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Some(head) = Head::read(&bytes) {
                let (fields, selecting, keyed) =
                    (head.fields().to_map(), head.selecting().to_map(), head.keyed().to_map());
                prop_assert_eq!(fields.len(), head.fields().count());
                let again = Head::new(head.url(), &fields, &selecting, &keyed);
                prop_assert_eq!(again.fields().to_map(), fields);
            }
        }
    }
}
