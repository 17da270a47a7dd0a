//! Which fields of a client's request may have caused a response that is for that client alone.
//!
//! The names are those of [`nearcast_fleet::request_fields`]. Follows RFC 9111 section 7.1 (cache
//! poisoning).

use http::header::{AUTHORIZATION, COOKIE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue};
use nearcast_fleet::config::CachePolicy;
use nearcast_fleet::request_fields::{is_ordinary, is_owned_by_edge};

use crate::fields;

/// Most bytes of all ordinary fields of a request. With more, an error counts as caused by them.
/// This is under half of the line length that common servers accept (Apache httpd 8190, nginx
/// 8192).
const ORDINARY_BYTES_MAX: usize = 4096;
/// Most field lines of a request. With more, an error counts as caused by them. This is half of the
/// number that common servers accept (Apache httpd and gunicorn 100); browsers send about 20.
const LINES_MAX: usize = 50;

/// Whether the site's settings name a field: responses do not depend on it (`forward_fields`), or
/// the site keeps them apart by it (`key_fields`).
pub fn is_listed(name: &HeaderName, policy: &CachePolicy) -> bool {
    let is_it = |listed: &String| listed == name.as_str();
    policy.forward_fields.iter().any(is_it) || policy.key_fields.iter().any(is_it)
}

/// How a field reaches the origin, which decides whether `Vary` may name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OriginView {
    /// As the client sent it.
    Client,
    /// The same for all requests of a key: the edge drops it, or makes it from the key alone.
    Same,
    /// Made by the edge for each forward request, so no later request can be compared with it.
    Edge,
}

/// How the field of this name reaches the origin.
pub(crate) fn origin_view(name: &HeaderName) -> OriginView {
    match name.as_str() {
        "x-forwarded-for"
        | "range"
        | "if-range"
        | "if-match"
        | "if-none-match"
        | "if-modified-since"
        | "if-unmodified-since" => OriginView::Edge,
        // The origin receives the client's members before the edge's own.
        "via" | "cdn-loop" => OriginView::Client,
        _ if fields::is_hop_by_hop(name) || is_owned_by_edge(name.as_str()) => OriginView::Same,
        _ => OriginView::Client,
    }
}

/// The fields of a request that may have caused its response and that most requests do not have, in
/// their order. Fields that never reach an origin, and those that the site lists, are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnkeyedFields(Vec<(HeaderName, HeaderValue)>);

impl UnkeyedFields {
    /// The unkeyed fields of a client's request. `Cookie` and `Authorization` are left out, since
    /// they have rules of their own.
    pub fn of(client: &HeaderMap, policy: &CachePolicy) -> Self {
        let is_unusual = |name: &HeaderName| {
            !is_ordinary(name.as_str())
                && !matches!(*name, AUTHORIZATION | COOKIE)
                && !is_listed(name, policy)
                && origin_view(name) == OriginView::Client
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

    /// Whether the request has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a response's `Vary` names all of them, so that they select it.
    pub fn are_varied_on(&self, vary: &[HeaderName]) -> bool {
        self.0.iter().all(|(name, _)| vary.contains(name))
    }

    /// The first field that `vary` does not name.
    pub fn first_beyond(&self, vary: &[HeaderName]) -> Option<&HeaderName> {
        self.0
            .iter()
            .map(|(name, _)| name)
            .find(|name| !vary.contains(name))
    }

    /// Appends them as a text that differs wherever the fields differ; nothing when there are none.
    pub fn write(&self, text: &mut Vec<u8>) {
        write_fields(self.0.iter().map(|(name, value)| (name, value)), text);
    }
}

/// Appends fields as a text that differs wherever they differ: no name and no value has a line
/// break.
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

/// The fields of a validation whose first attempt failed, perhaps because of the client's ordinary
/// fields: those that may select the response, and no others.
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

/// Whether an origin may refuse a request for its fields: there are too many, or the ordinary ones
/// are too long or have unusual bytes.
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

/// Whether an origin may refuse a request for the way it was sent: it [`is_oversized`], or it
/// passed other proxies, which some origins take for a loop.
pub(crate) fn may_be_refused(client: &HeaderMap) -> bool {
    is_oversized(client) || client.contains_key(VIA) || client.contains_key("cdn-loop")
}

/// The fields of a forward request on behalf of a stored response: those that most clients send or
/// the edge makes, those that the site lists, and those that the stored response varies on.
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

/// A request's values of the fields by which the site keeps stored responses apart, whether or not
/// `Vary` names them (`key_fields`).
pub fn keyed(client: &HeaderMap, policy: &CachePolicy) -> HeaderMap {
    let mut keyed = HeaderMap::new();
    for name in policy
        .key_fields
        .iter()
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
    {
        // The origin does not receive a field that `Connection` names, so the field counts as
        // absent.
        if fields::is_named_by_connection(client, name.as_str()) {
            continue;
        }
        for value in client.get_all(&name) {
            // Copied, since the value may keep a connection's whole read buffer alive.
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
                UnkeyedFields::of(&map(request), &policy).is_empty(),
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
        let found = UnkeyedFields::of(&request, &policy);
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
            UnkeyedFields::of(&map(request), &policy).write(&mut text);
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
