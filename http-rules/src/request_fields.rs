//! What the fields of a client's request mean for its answer: which may have brought it about for
//! one client alone.
//!
//! The names are those of [`nearcast_fleet::request_fields`]. Follows RFC 9111 section 7.1 (cache
//! poisoning).

use http::header::{AUTHORIZATION, COOKIE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue};
use nearcast_fleet::config::CachePolicy;
use nearcast_fleet::request_fields::{is_edges_own, is_ordinary};

use crate::fields;

/// Bytes that the ordinary fields of a request may have together before an error counts as brought
/// about by them. Under half of what common servers take for one line (Apache httpd 8190, nginx
/// 8192).
const ORDINARY_BYTES_MAX: usize = 4096;
/// Lines that the fields of a request may have before an error counts as brought about by them:
/// half of what common servers take (Apache httpd and gunicorn 100). Browsers send about 20.
const LINES_MAX: usize = 50;

/// Whether a site says of a field that answers do not depend on it, or keeps them apart by it.
pub fn is_listed(name: &HeaderName, policy: &CachePolicy) -> bool {
    let is_it = |listed: &String| listed == name.as_str();
    policy.forward_fields.iter().any(is_it) || policy.key_fields.iter().any(is_it)
}

/// How the origin comes to see a field, which decides whether `Vary` may name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// As the client sent it.
    Client,
    /// The same for all requests of a key: the edge drops it, or makes it from nothing but the key.
    Same,
    /// As the edge makes it for each forward request: no later request can be compared with that.
    Edge,
}

/// How the origin sees the field of that name.
pub(crate) fn sight(name: &HeaderName) -> Sight {
    match name.as_str() {
        "x-forwarded-for"
        | "range"
        | "if-range"
        | "if-match"
        | "if-none-match"
        | "if-modified-since"
        | "if-unmodified-since" => Sight::Edge,
        // Of these the origin sees the client's members before the edge's own.
        "via" | "cdn-loop" => Sight::Client,
        _ if fields::is_hop_by_hop(name) || is_edges_own(name.as_str()) => Sight::Same,
        _ => Sight::Client,
    }
}

/// The fields of a request that may have brought about its answer, beside those that every request
/// has: in their order, without the ones that never reach an origin and those that the site lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unusual(Vec<(HeaderName, HeaderValue)>);

impl Unusual {
    /// Those of a client's request. `Cookie` and `Authorization` are none of them: they have rules
    /// of their own.
    pub fn of(client: &HeaderMap, policy: &CachePolicy) -> Self {
        let is_unusual = |name: &HeaderName| {
            !is_ordinary(name.as_str())
                && !matches!(*name, AUTHORIZATION | COOKIE)
                && !is_listed(name, policy)
                && sight(name) == Sight::Client
                && !fields::is_named_by_connection(client, name.as_str())
        };
        Self(
            client
                .iter()
                .filter(|(name, _)| is_unusual(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        )
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a response says by its `Vary` that it depends on all of them, so that it is kept
    /// apart by them.
    pub fn are_varied_on(&self, vary: &[HeaderName]) -> bool {
        self.0.iter().all(|(name, _)| vary.contains(name))
    }

    /// The first of them that `vary` does not name.
    pub fn first_beyond(&self, vary: &[HeaderName]) -> Option<&HeaderName> {
        self.0
            .iter()
            .map(|(name, _)| name)
            .find(|name| !vary.contains(name))
    }

    /// As text that tells requests with different ones apart; appended, nothing where there are
    /// none.
    pub fn write(&self, text: &mut Vec<u8>) {
        write_fields(self.0.iter().map(|(name, value)| (name, value)), text);
    }
}

/// Appends fields so that different ones are different text: no name and no value has a line break.
pub fn write_fields<'a>(
    fields: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
    text: &mut Vec<u8>,
) {
    for (name, value) in fields {
        for part in [name.as_str().as_bytes(), b"\n", value.as_bytes(), b"\n"] {
            text.extend_from_slice(part);
        }
    }
}

/// The fields by which a stored response is validated where the client's ordinary ones may be to
/// blame for a failure: those that may select it.
pub fn selecting_only(fields: &HeaderMap, policy: &CachePolicy, vary: &[HeaderName]) -> HeaderMap {
    let is_kept = |name: &HeaderName| {
        name.as_str().starts_with("accept")
            || *name == http::header::RANGE
            || is_listed(name, policy)
            || vary.contains(name)
    };
    fields
        .iter()
        .filter(|(name, _)| is_kept(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Whether a request's fields are so many, or the ordinary ones so long or of such bytes, that an
/// origin may refuse it for them.
pub fn is_oversized(client: &HeaderMap) -> bool {
    let mut bytes = 0;
    let mut is_odd = client.len() > LINES_MAX;
    for (name, value) in client.iter().filter(|(name, _)| is_ordinary(name.as_str())) {
        bytes += name.as_str().len() + value.len();
        is_odd |= value
            .as_bytes()
            .iter()
            .any(|b| !matches!(b, b'\t' | 0x20..0x7f));
    }
    is_odd || bytes > ORDINARY_BYTES_MAX
}

/// Whether a request may be refused for how it was made: [`is_oversized`], or it says that it came
/// by way of others, which some origins and their proxies take for a loop.
pub(crate) fn may_be_refused(client: &HeaderMap) -> bool {
    is_oversized(client) || client.contains_key(VIA) || client.contains_key("cdn-loop")
}

/// The fields of a forward request that it keeps where it is made on behalf of what is stored:
/// those that every client sends or the edge makes, those that the site lists, and those that the
/// stored response varies on.
pub fn shared(fields: &HeaderMap, policy: &CachePolicy, vary: &[HeaderName]) -> HeaderMap {
    let is_shared = |name: &HeaderName| {
        is_ordinary(name.as_str())
            || matches!(name.as_str(), "x-forwarded-for" | "x-forwarded-proto")
            || is_listed(name, policy)
            || vary.contains(name)
    };
    fields
        .iter()
        .filter(|(name, _)| is_shared(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The fields by which a site keeps stored responses apart, whatever `Vary` says, as one request
/// has them.
pub fn keyed(client: &HeaderMap, policy: &CachePolicy) -> HeaderMap {
    let mut keyed = HeaderMap::new();
    for name in policy
        .key_fields
        .iter()
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
    {
        // What ends at this hop the origin does not see: it counts as absent.
        if fields::is_named_by_connection(client, name.as_str()) {
            continue;
        }
        for value in client.get_all(&name) {
            // A copy of its own: the value may keep a connection's whole read buffer alive.
            keyed.append(
                name.clone(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone()),
            );
        }
    }
    keyed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::map;

    fn name(text: &str) -> HeaderName {
        HeaderName::from_bytes(text.as_bytes()).expect("a name")
    }

    #[test]
    fn unusual_is_what_neither_every_client_sends_nor_the_site_lists() {
        let policy = CachePolicy {
            forward_fields: vec!["x-app".into()],
            key_fields: vec!["x-tenant".into()],
            ..CachePolicy::default()
        };
        let none: [&[&str]; 6] = [
            &[],
            &[
                "host: a",
                "accept: b",
                "range: bytes=0-1",
                "if-none-match: x",
                "cookie: c",
                "authorization: d",
            ],
            &["x-app: 1", "x-tenant: 2"],
            &[
                "x-forwarded-host: evil",
                "x_forwarded_host: evil",
                "user_agent: evil",
            ],
            &[
                "connection: close, x-hop",
                "x-hop: 1",
                "keep-alive: 5",
                "upgrade: h2c",
            ],
            &["nearcast-peer: key", "content-length: 0"],
        ];
        for request in none {
            assert!(
                Unusual::of(&map(request), &policy).is_empty(),
                "{request:?}"
            );
        }
        let request = map(&[
            "x-app: 1",
            "sec-websocket-key: 2",
            "x_app: 3",
            "x_tenant: 4",
            "max-forwards: 5",
        ]);
        let found = Unusual::of(&request, &policy);
        assert_eq!(found.0.len(), 4, "exact names alone are listed: {found:?}");
        assert!(!found.are_varied_on(&[
            name("x_app"),
            name("max-forwards"),
            name("sec-websocket-key")
        ]));
        assert!(found.are_varied_on(&[
            name("x_app"),
            name("max-forwards"),
            name("sec-websocket-key"),
            name("x_tenant")
        ]));
        let text = |request: &[&str]| {
            let mut text = Vec::new();
            Unusual::of(&map(request), &policy).write(&mut text);
            text
        };
        assert!(text(&["accept: a", "cookie: b"]).is_empty());
        assert_eq!(text(&["x: 1", "accept: a"]), text(&["accept: b", "x: 1"]));
        assert_ne!(text(&["x: 1"]), text(&["x: 2"]));
        assert_ne!(text(&["x: 1", "y: 2"]), text(&["x: 1", "x: 2"]));
    }

    #[test]
    fn ordinary_fields_may_be_too_long_or_odd() {
        let half = "x".repeat(ORDINARY_BYTES_MAX / 2);
        for (request, expected) in [
            (
                vec!["accept: a".to_owned(), "user-agent: b\tc".to_owned()],
                false,
            ),
            (vec![format!("referer: {half}")], false),
            (
                vec![format!("referer: {half}"), format!("user-agent: {half}")],
                true,
            ),
            (vec!["accept-language: \u{e9}".to_owned()], true),
            (vec![format!("x-unusual: {half}{half}")], false),
            (vec!["dnt: 1".to_owned(); LINES_MAX], false),
            (vec!["dnt: 1".to_owned(); LINES_MAX + 1], true),
        ] {
            let lines: Vec<&str> = request.iter().map(String::as_str).collect();
            assert_eq!(
                is_oversized(&map(&lines)),
                expected,
                "{:?}",
                lines
                    .iter()
                    .map(|l| &l[..l.len().min(30)])
                    .collect::<Vec<_>>()
            );
        }
    }
}
