//! What each field of a client's request means to a shared cache: which never reach an origin, which every client sends,
//! and which may have brought about an answer that is for one client alone.
//!
//! The lists here are the only ones: forwarding, storing, collapsing and the sharing of errors all go by them.
//! Follows RFC 9111 section 7.1 (cache poisoning) and RFC 3875 section 4.1.18 (how gateways name fields).

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue};
use nearcast_fleet::config::CachePolicy;

use super::fields;

/// Fields by which gateways and applications are told another host, path, method or scheme than the request has, or who
/// the client is. They are dropped from every request, in every spelling (see [`is_removed`]). What an origin is to
/// learn of these the edge says itself, in `X-Forwarded-For` and `X-Forwarded-Proto`.
const REMOVED: [&str; 66] = [
    // Who the client is.
    "ali-cdn-real-ip",
    "cdn-real-ip",
    "cdn-src-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-ipcountry",
    "cf-pseudo-ipv4",
    "cf-visitor",
    "client-ip",
    "cloudfront-viewer-address",
    "do-connecting-ip",
    "fastly-client-ip",
    "fastly-ff",
    "fastly-ssl",
    "fly-client-ip",
    "forwarded",
    "forwarded-for",
    "http-client-ip",
    "real-ip",
    "remote-addr",
    "remote-user",
    "ssl-client-cert",
    "true-client-ip",
    "wl-proxy-client-ip",
    "x-appengine-user-ip",
    "x-authenticated-user",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-custom-ip-authorization",
    "x-nf-client-connection-ip",
    "x-originating-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-remote-user",
    "x-true-client-ip",
    // What the request is.
    "base-url",
    "front-end-https",
    "http-host",
    "http-url",
    "proxy",
    "proxy-host",
    "proxy-url",
    "request-uri",
    "surrogate-capability",
    "x-arr-ssl",
    "x-backend-host",
    "x-forwarded",
    "x-forwarder-for",
    "x-host",
    "x-http-destinationurl",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-http-path-override",
    "x-https",
    "x-matched-path",
    "x-method-override",
    "x-now-route-matches",
    "x-proxy-url",
    "x-scheme",
    "x-server-name",
    "x-url-scheme",
    "x-waws-unencoded-url",
];

/// Families of such fields, whose members differ from gateway to gateway.
const REMOVED_PREFIXES: [&str; 6] = ["x-forwarded-", "x-invoke-", "x-middleware-", "x-original-", "x-override-", "x-rewrite-"];

/// Fields that most clients send to most URLs, and those that the edge makes itself. What is in them is taken for
/// nothing that a well-kept origin makes an answer for one client of, unless its `Vary` says so. Exact names; sorted.
const ORDINARY: [&str; 45] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "cdn-loop",
    "cmcd-object",
    "cmcd-request",
    "cmcd-session",
    "cmcd-status",
    "content-length",
    "dnt",
    "expect",
    "from",
    "host",
    "icy-metadata",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "nearcast-peer",
    "origin",
    "pragma",
    "priority",
    "purpose",
    "range",
    "referer",
    "save-data",
    "sec-ch-ua",
    "sec-ch-ua-mobile",
    "sec-ch-ua-platform",
    "sec-fetch-dest",
    "sec-fetch-mode",
    "sec-fetch-site",
    "sec-fetch-storage-access",
    "sec-fetch-user",
    "sec-gpc",
    "sec-purpose",
    "traceparent",
    "tracestate",
    "upgrade-insecure-requests",
    "user-agent",
    "via",
    "x-playback-session-id",
];

/// Other names that must not come in another spelling, as a gateway would take them for these.
const OTHER_KNOWN: [&str; 15] = [
    "access-control-request-headers",
    "access-control-request-method",
    "authorization",
    "connection",
    "content-encoding",
    "content-type",
    "cookie",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Bytes that the ordinary fields of a request may have together before an error counts as brought about by them. Under
/// half of what common servers take for one line (Apache httpd 8190, nginx 8192).
pub const ORDINARY_BYTES_MAX: usize = 4096;

/// Whether a field never reaches an origin: one that rewrites the request or names the client, in whatever spelling, and
/// any other known field in another spelling than its own.
///
/// Gateways in the manner of CGI make variables of fields: every character but letters and digits becomes `_`, so that
/// `X_Forwarded_Host` and `X.Forwarded.Host` are read as `X-Forwarded-Host`.
pub fn is_removed(name: &HeaderName) -> bool {
    let name = name.as_str();
    let mut folded = [0; FOLDED_BYTES_MAX];
    // Longer than every known name: only a prefix can be known.
    let length = name.len().min(FOLDED_BYTES_MAX);
    let mut is_odd = false;
    for (to, from) in folded.iter_mut().zip(name.bytes()) {
        let is_kept = from.is_ascii_alphanumeric() || from == b'-';
        is_odd |= !is_kept;
        *to = if is_kept { from } else { b'-' };
    }
    let folded = std::str::from_utf8(&folded[..length]).unwrap_or_default();
    if REMOVED_PREFIXES.iter().any(|prefix| folded.starts_with(prefix)) {
        return true;
    }
    let is_whole = length == name.len();
    let is_listed = |list: &[&str]| list.binary_search(&folded).is_ok();
    is_whole && (REMOVED.contains(&folded) || is_odd && (is_listed(&ORDINARY) || is_listed(&OTHER_KNOWN)))
}

/// Enough for every name above.
const FOLDED_BYTES_MAX: usize = 40;

/// Whether nearly every request has a field of this name, or the edge makes it itself.
pub fn is_ordinary(name: &HeaderName) -> bool {
    ORDINARY.binary_search(&name.as_str()).is_ok()
}

/// Whether a site says of a field that answers do not depend on it, or keeps them apart by it.
pub fn is_listed(name: &HeaderName, policy: &CachePolicy) -> bool {
    let is_it = |listed: &String| listed == name.as_str();
    policy.forward_fields.iter().any(is_it) || policy.key_fields.iter().any(is_it)
}

/// How the origin comes to see a field, which decides whether `Vary` may name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// As the client sent it.
    Client,
    /// The same for all requests of a key: the edge drops it, or makes it from nothing but the key.
    Same,
    /// As the edge makes it for each forward request: no later request can be compared with that.
    Edge,
}

/// How the origin sees the field of that name.
pub fn sight(name: &HeaderName) -> Sight {
    match name.as_str() {
        "x-forwarded-for" | "range" | "if-range" | "if-match" | "if-none-match" | "if-modified-since" | "if-unmodified-since" => {
            Sight::Edge
        }
        "host" | "x-forwarded-proto" | "nearcast-peer" | "expect" => Sight::Same,
        _ if fields::is_hop_by_hop(name) || is_removed(name) => Sight::Same,
        _ => Sight::Client,
    }
}

/// The fields of a request that may have brought about its answer, beside those that every request has: in their order,
/// without the ones that never reach an origin and those that the site lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unusual(Vec<(HeaderName, HeaderValue)>);

impl Unusual {
    /// Those of a client's request. `Cookie` and `Authorization` are none of them: they have rules of their own.
    pub fn of(client: &HeaderMap, policy: &CachePolicy) -> Self {
        let is_unusual = |name: &HeaderName| {
            !is_ordinary(name)
                && !matches!(*name, AUTHORIZATION | COOKIE)
                && !is_listed(name, policy)
                && sight(name) == Sight::Client
                && !fields::is_named_by_connection(client, name.as_str())
        };
        Self(client.iter().filter(|(name, _)| is_unusual(name)).map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a response says by its `Vary` that it depends on all of them, so that it is kept apart by them.
    pub fn are_varied_on(&self, vary: &[HeaderName]) -> bool {
        self.0.iter().all(|(name, _)| vary.contains(name))
    }

    /// For telling requests of different ones apart; 0 where there are none.
    pub fn hash(&self) -> u128 {
        hash(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// A hash of fields in their order; 0 where there are none.
pub fn hash<'a>(fields: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>) -> u128 {
    let mut text = Vec::new();
    for (name, value) in fields {
        // No name and no value has a line break.
        for part in [name.as_str().as_bytes(), b"\n", value.as_bytes(), b"\n"] {
            text.extend_from_slice(part);
        }
    }
    if text.is_empty() { 0 } else { xxhash_rust::xxh3::xxh3_128(&text) }
}

/// Whether a request's ordinary fields are so long, or hold such bytes, that an origin may refuse it for them.
pub fn is_oversized(client: &HeaderMap) -> bool {
    let mut bytes = 0;
    let mut is_odd = false;
    for (name, value) in client.iter().filter(|(name, _)| is_ordinary(name)) {
        bytes += name.as_str().len() + value.len();
        is_odd |= value.as_bytes().iter().any(|b| !matches!(b, b'\t' | 0x20..0x7f));
    }
    is_odd || bytes > ORDINARY_BYTES_MAX
}

/// The fields of a forward request that it keeps where it is made on behalf of what is stored: those that every client
/// sends or the edge makes, those that the site lists, and those that the stored response varies on.
pub fn shared(fields: &HeaderMap, policy: &CachePolicy, vary: &[HeaderName]) -> HeaderMap {
    let is_shared = |name: &HeaderName| {
        is_ordinary(name)
            || matches!(name.as_str(), "x-forwarded-for" | "x-forwarded-proto")
            || is_listed(name, policy)
            || vary.contains(name)
    };
    fields.iter().filter(|(name, _)| is_shared(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The fields by which a site keeps stored responses apart, whatever `Vary` says, as one request has them.
pub fn keyed(client: &HeaderMap, policy: &CachePolicy) -> HeaderMap {
    let mut keyed = HeaderMap::new();
    for name in policy.key_fields.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()) {
        for value in client.get_all(&name) {
            // A copy of its own: the value may keep a connection's whole read buffer alive.
            keyed.append(name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone()));
        }
    }
    keyed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{self, map};
    use super::*;

    fn name(text: &str) -> HeaderName {
        HeaderName::from_bytes(text.as_bytes()).expect("a name")
    }

    #[test]
    fn the_lists_are_as_they_are_searched() {
        assert!(ORDINARY.is_sorted() && OTHER_KNOWN.is_sorted());
        for known in REMOVED.iter().chain(&ORDINARY).chain(&OTHER_KNOWN) {
            assert!(
                known.len() < FOLDED_BYTES_MAX && known.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{known}"
            );
        }
        for removed in REMOVED {
            assert!(!ORDINARY.contains(&removed) && !OTHER_KNOWN.contains(&removed), "{removed}");
        }
    }

    #[test]
    fn fields_that_rewrite_a_request_or_name_the_client_never_pass_in_any_spelling() {
        let rewriting = [
            "x-forwarded-host",
            "x-forwarded-prefix",
            "x-forwarded-anything",
            "x-original-host",
            "x-original-url",
            "x-rewrite-url",
            "x-host",
            "x-http-method-override",
            "true-client-ip",
            "cf-connecting-ip",
            "x-real-ip",
            "forwarded",
            "x-forwarded-for",
            "x-middleware-subrequest",
            "proxy",
            "client-ip",
            "front-end-https",
        ];
        for plain in rewriting {
            for spelling in
                [plain.to_owned(), plain.to_uppercase(), plain.replace('-', "_"), plain.replacen('-', "_", 1), plain.replace('-', ".")]
            {
                assert!(is_removed(&name(&spelling)), "{spelling}");
            }
        }
        // What a gateway would take for a field of another name that the edge or the protocol relies on.
        for spelling in [
            "content_length",
            "transfer_encoding",
            "if_none_match",
            "cdn_loop",
            "user_agent",
            "accept.encoding",
            "proxy_connection",
            "sec+fetch-mode",
        ] {
            assert!(is_removed(&name(spelling)), "{spelling}");
        }
        for passes in [
            "x-api-key",
            "x_api_key",
            "rsc",
            "accept",
            "user-agent",
            "authorization",
            "x-requested-with",
            "hostname",
            "x-forwardedhost",
            "content-type",
        ] {
            assert!(!is_removed(&name(passes)), "{passes}");
        }
        assert!(is_removed(&name(&format!("x_forwarded_{}", "y".repeat(300)))));
        assert!(!is_removed(&name(&format!("x-real-ip-{}", "y".repeat(300)))));
    }

    #[test]
    fn unusual_is_what_neither_every_client_sends_nor_the_site_lists() {
        let policy = CachePolicy { forward_fields: vec!["x-app".into()], key_fields: vec!["x-tenant".into()], ..CachePolicy::default() };
        let none: [&[&str]; 6] = [
            &[],
            &["host: a", "accept: b", "range: bytes=0-1", "if-none-match: x", "cookie: c", "authorization: d"],
            &["x-app: 1", "x-tenant: 2"],
            &["x-forwarded-host: evil", "x_forwarded_host: evil", "user_agent: evil"],
            &["connection: close, x-hop", "x-hop: 1", "keep-alive: 5", "upgrade: h2c"],
            &["nearcast-peer: key", "content-length: 0"],
        ];
        for request in none {
            assert!(Unusual::of(&map(request), &policy).is_empty(), "{request:?}");
        }
        let request = map(&["x-app: 1", "sec-websocket-key: 2", "x_app: 3", "x_tenant: 4", "max-forwards: 5"]);
        let found = Unusual::of(&request, &policy);
        assert_eq!(found.0.len(), 4, "exact names alone are listed: {found:?}");
        assert!(!found.are_varied_on(&[name("x_app"), name("max-forwards"), name("sec-websocket-key")]));
        assert!(found.are_varied_on(&[name("x_app"), name("max-forwards"), name("sec-websocket-key"), name("x_tenant")]));
        let hash = |request: &[&str]| Unusual::of(&map(request), &policy).hash();
        assert_eq!(hash(&["accept: a", "cookie: b"]), 0);
        assert_ne!(hash(&["x: 1"]), 0);
        assert_eq!(hash(&["x: 1", "accept: a"]), hash(&["accept: b", "x: 1"]));
        assert_ne!(hash(&["x: 1"]), hash(&["x: 2"]));
        assert_ne!(hash(&["x: 1", "y: 2"]), hash(&["x: 1", "x: 2"]));
    }

    #[test]
    fn ordinary_fields_may_be_too_long_or_odd() {
        let half = "x".repeat(ORDINARY_BYTES_MAX / 2);
        for (request, expected) in [
            (vec!["accept: a".to_owned(), "user-agent: b\tc".to_owned()], false),
            (vec![format!("referer: {half}")], false),
            (vec![format!("referer: {half}"), format!("user-agent: {half}")], true),
            (vec!["accept-language: \u{e9}".to_owned()], true),
            (vec![format!("x-unusual: {half}{half}")], false),
        ] {
            let lines: Vec<&str> = request.iter().map(String::as_str).collect();
            assert_eq!(is_oversized(&map(&lines)), expected, "{:?}", lines.iter().map(|l| &l[..l.len().min(30)]).collect::<Vec<_>>());
        }
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn a_name_that_a_gateway_reads_as_a_removed_one_is_removed(which in 0..REMOVED.len(), odd in proptest::collection::vec(proptest::sample::select(b"-_.+~!#$%&'*^`|".to_vec()), 8)) {
            let mut odd = odd.into_iter();
            let spelling: Vec<u8> = REMOVED[which].bytes().map(|b| if b == b'-' { odd.next().unwrap_or(b'_') } else { b }).collect();
            prop_assert!(is_removed(&HeaderName::from_bytes(&spelling).expect("a token")));
        }

        #[test]
        fn no_name_panics(text in "[!#$%&'*+.^_`|~0-9a-z-]{1,100}") {
            let name = HeaderName::from_bytes(text.as_bytes()).expect("a token");
            prop_assert!(!(is_ordinary(&name) && is_removed(&name)));
        }
    }
}
