//! The fields of forwarded messages: of the request to the origin, and of the response to the
//! client.
//!
//! Follows RFC 9110 section 7.6 (forwarding, Via, Max-Forwards), RFC 8586 (CDN-Loop), RFC 9111
//! section 4.3.1 and 5.1.

use std::net::IpAddr;

use http::header::InvalidHeaderValue;
use http::header::{ACCEPT_ENCODING, ACCEPT_RANGES, AGE, EXPECT, HOST, MAX_FORWARDS, RANGE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use nearcast_fleet::config::CachePolicy;
use nearcast_fleet::request_fields::is_removed;

use crate::conditional::CONDITIONS;
use crate::{coding, compress, fields, request_fields};

/// `CDN-Loop` (RFC 8586).
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
/// `X-Forwarded-For`.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`.
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// `Early-Data` (RFC 8470 section 5.1): a request that an attacker may have replayed.
pub const EARLY_DATA: HeaderName = HeaderName::from_static("early-data");

/// Most CDNs that a request may have passed; more count as a loop of CDNs that do not add their own
/// id.
const LOOP_MEMBERS_MAX: usize = 16;

/// The member of `Via` that a node adds to a message, by the version of HTTP in which it received the
/// message (RFC 9110 section 7.6.3).
#[derive(Debug, Clone)]
pub struct Via([HeaderValue; 4]);

impl Via {
    /// For the node of that name.
    ///
    /// # Errors
    /// The name is not a field value.
    pub fn new(name: &str) -> Result<Self, InvalidHeaderValue> {
        let member = |version: &str| HeaderValue::try_from(format!("{version} {name}"));
        Ok(Self([
            member("1.0")?,
            member("1.1")?,
            member("2.0")?,
            member("3.0")?,
        ]))
    }

    /// The member for a message that was received in this version. A message that the node makes
    /// itself has that of HTTP/1.1.
    pub fn received(&self, version: Version) -> &HeaderValue {
        &self.0[match version {
            Version::HTTP_10 => 0,
            Version::HTTP_2 => 2,
            Version::HTTP_3 => 3,
            _ => 1,
        }]
    }
}

/// Which fields of a client reach the origin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ClientFields<'a> {
    /// All except those for one hop and those that rewrite the request or name the client. For
    /// requests that bypass the store.
    Passed,
    /// As [`Passed`](Self::Passed), without `Range` and preconditions, and with a reduced
    /// `Accept-Encoding`. For requests whose response may be stored.
    Storable,
    /// Those that most clients send, those that the site lists, and those that `vary` names. For
    /// requests on behalf of a stored response (background validations, missing slices), which must
    /// not depend on one client (RFC 9111 section 7.1).
    Shared {
        /// The site's settings.
        policy: &'a CachePolicy,
        /// The names in the stored response's `Vary`.
        vary: &'a [HeaderName],
    },
}

/// The facts of this node and of the client's connection that a forward request carries.
#[derive(Debug, Clone, Copy)]
pub struct Forwarder<'a> {
    /// `1.1 ams-1`, see [`Via`].
    pub via: &'a HeaderValue,
    /// This CDN's id in `CDN-Loop`.
    pub loop_id: &'a HeaderValue,
    /// The host that the origin receives; `None` for the host of the client's request.
    pub origin_host: Option<&'a HeaderValue>,
    /// The host of the client's request.
    pub host: &'a HeaderValue,
    /// The client's address.
    pub client: IpAddr,
    /// The scheme of the client's request, `http` or `https`.
    pub scheme: &'static str,
}

/// The fields of a request to the origin.
pub fn to_origin(client: &HeaderMap, which: ClientFields<'_>, by: &Forwarder<'_>) -> HeaderMap {
    let mut forward = fields::end_to_end(client, false);
    let removed: Vec<HeaderName> = forward
        .keys()
        .filter(|name| is_removed(name.as_str()))
        .cloned()
        .collect();
    for name in removed {
        forward.remove(name);
    }
    forward.remove(EXPECT);

    if which == ClientFields::Passed {
        compress::add_identity_tags(&mut forward);
    } else {
        forward.remove(RANGE);
        for name in CONDITIONS {
            forward.remove(name);
        }
        // Requests that select the same stored response send the origin the same value.
        if let Some(reduced) = coding::accept_encoding(&forward) {
            forward.insert(ACCEPT_ENCODING, reduced);
        }
    }
    if let ClientFields::Shared { policy, vary } = which {
        forward = request_fields::shared(&forward, policy, vary);
        // Such a request is repeated by the edge and not by the client.
        forward.remove(EARLY_DATA);
    }
    if forward.contains_key(EARLY_DATA) {
        // Any value, and several, mean the same (RFC 8470 section 5.1).
        forward.insert(EARLY_DATA, HeaderValue::from_static("1"));
    }

    add_own_fields(
        &mut forward,
        by.origin_host.unwrap_or(by.host).clone(),
        by.via,
        Some(by.loop_id),
    );
    // A client's own statement of its address is not trusted.
    if let Ok(address) = HeaderValue::try_from(by.client.to_string()) {
        forward.insert(X_FORWARDED_FOR, address);
    }
    forward.insert(X_FORWARDED_PROTO, HeaderValue::from_static(by.scheme));
    forward
}

/// The fields of a request to the origin that no client made, as a push order needs them. `scheme`
/// is that of the key.
pub fn without_client(
    host: HeaderValue,
    via: &HeaderValue,
    loop_id: Option<&HeaderValue>,
    scheme: &'static str,
) -> HeaderMap {
    let mut forward = HeaderMap::new();
    add_own_fields(&mut forward, host, via, loop_id);
    // An origin may redirect everything to https, or name the scheme in links.
    forward.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    forward
}

/// The fields that this node adds to every request to an origin (RFC 9110 section 7.6.3, RFC 8586
/// section 2).
fn add_own_fields(
    forward: &mut HeaderMap,
    host: HeaderValue,
    via: &HeaderValue,
    loop_id: Option<&HeaderValue>,
) {
    forward.insert(HOST, host);
    forward.append(VIA, via.clone());
    if let Some(loop_id) = loop_id {
        forward.append(CDN_LOOP, loop_id.clone());
    }
}

/// The finding of a loop check (RFC 8586 section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Loop {
    /// No loop.
    Clear,
    /// The request passed this CDN before: answer 508.
    Ours,
    /// The request passed too many CDNs: answer 508.
    TooMany,
}

/// Whether a request has passed this CDN before.
pub fn find_loop(request: &HeaderMap, own_id: &[u8]) -> Loop {
    let mut count = 0;
    for member in fields::list(request, CDN_LOOP) {
        let id = member
            .split(|b| matches!(b, b';' | b' ' | b'\t'))
            .next()
            .unwrap_or_default();
        if id.eq_ignore_ascii_case(own_id) {
            return Loop::Ours;
        }
        count += 1;
    }
    if count >= LOOP_MEMBERS_MAX {
        Loop::TooMany
    } else {
        Loop::Clear
    }
}

/// How far a request may be forwarded (RFC 9110 section 7.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MaxForwards {
    /// Without limit.
    Unlimited,
    /// With this value of `Max-Forwards`.
    Left(u64),
    /// Not at all: this node answers it.
    Here,
}

/// The limit by `Max-Forwards`, which applies to OPTIONS and TRACE only.
pub fn max_forwards(method: &Method, request: &HeaderMap) -> MaxForwards {
    if !matches!(*method, Method::OPTIONS | Method::TRACE) {
        return MaxForwards::Unlimited;
    }
    match request
        .get(MAX_FORWARDS)
        .and_then(|value| fields::delta_seconds(value.as_bytes().trim_ascii()))
    {
        None => MaxForwards::Unlimited,
        Some(0) => MaxForwards::Here,
        Some(left) => MaxForwards::Left(left - 1),
    }
}

/// The fields of a response that is relayed to a client.
pub fn passed(origin: &HeaderMap, via: &HeaderValue) -> HeaderMap {
    let mut response = fields::end_to_end(origin, false);
    response.append(VIA, via.clone());
    response
}

/// The fields of a response that is served from stored fields. `age` is in seconds, and `None` for
/// a response that the origin sends now, whose own Age stays (RFC 9111 section 5.1). `is_rangeable`
/// when it is a 200 of known length.
pub fn stored(
    stored: HeaderMap,
    age: Option<u64>,
    is_rangeable: bool,
    via: &HeaderValue,
) -> HeaderMap {
    let mut response = stored;
    if let Some(age) = age {
        response.insert(AGE, HeaderValue::from(age));
    }
    if is_rangeable {
        response
            .entry(ACCEPT_RANGES)
            .or_insert(HeaderValue::from_static("bytes"));
    }
    response.append(VIA, via.clone());
    response
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, map};

    static HOST_ASKED: HeaderValue = HeaderValue::from_static("www.test");
    static VIA_OURS: HeaderValue = HeaderValue::from_static("1.1 ams-1");
    static ID: HeaderValue = HeaderValue::from_static("nearcast-cdn.test");

    fn by<'a>(origin_host: Option<&'a HeaderValue>) -> Forwarder<'a> {
        Forwarder {
            via: &VIA_OURS,
            loop_id: &ID,
            origin_host,
            host: &HOST_ASKED,
            client: IpAddr::from([192, 0, 2, 7]),
            scheme: "https",
        }
    }

    fn with_ours(lines: &[&str]) -> HeaderMap {
        let ours = [
            "host: www.test",
            "via: 1.1 ams-1",
            "cdn-loop: nearcast-cdn.test",
            "x-forwarded-for: 192.0.2.7",
            "x-forwarded-proto: https",
        ];
        map(&lines.iter().copied().chain(ours).collect::<Vec<_>>())
    }

    #[test]
    fn via_names_the_version_that_was_received() {
        let via = Via::new("ams-1").expect("a field value");
        for (version, expected) in [
            (Version::HTTP_10, "1.0 ams-1"),
            (Version::HTTP_11, "1.1 ams-1"),
            (Version::HTTP_2, "2.0 ams-1"),
            (Version::HTTP_3, "3.0 ams-1"),
        ] {
            assert_eq!(via.received(version), expected, "{version:?}");
        }
        assert!(Via::new("a\nb").is_err());
    }

    #[test]
    fn what_may_be_stored_is_asked_for_whole_and_without_conditions() {
        // RFC 9110 section 7.6.1 and RFC 9111 section 4.3.1.
        let client = map(&[
            "accept: a",
            "foo: 1",
            "cookie: c",
            "range: bytes=0-1",
            "if-range: x",
            "if-none-match: x",
            "if-match: x",
            "if-modified-since: x",
            "if-unmodified-since: x",
            "connection: close, gone",
            "gone: 1",
            "te: trailers",
            "expect: 100-continue",
            "proxy-authorization: x",
        ]);
        assert_eq!(
            to_origin(&client, ClientFields::Storable, &by(None)),
            with_ours(&["accept: a", "foo: 1", "cookie: c"])
        );
    }

    #[test]
    fn early_data_is_stated_to_the_origin_by_the_requests_of_its_client() {
        // RFC 8470 section 5.1.
        let policy = CachePolicy::default();
        for lines in [
            &["early-data: 1"][..],
            &["early-data: 0"],
            &["early-data: x", "early-data: 1"],
        ] {
            for which in [ClientFields::Passed, ClientFields::Storable] {
                assert_eq!(
                    to_origin(&map(lines), which, &by(None)),
                    with_ours(&["early-data: 1"]),
                    "{lines:?} {which:?}"
                );
            }
            let vary = [EARLY_DATA];
            let shared = ClientFields::Shared {
                policy: &policy,
                vary: &vary,
            };
            assert_eq!(to_origin(&map(lines), shared, &by(None)), with_ours(&[]));
        }
    }

    #[test]
    fn requests_on_behalf_of_what_is_stored_have_no_clients_own_fields() {
        let client = map(&[
            "accept: a",
            "foo: 1",
            "bar: 2",
            "cookie: c",
            "authorization: d",
            "range: bytes=0-1",
            "sec-websocket-key: e",
        ]);
        let (plain, listed) = (
            CachePolicy::default(),
            CachePolicy {
                forward_fields: vec!["bar".into()],
                ..CachePolicy::default()
            },
        );
        let table: [(&CachePolicy, &[&str], &[&str]); 5] = [
            (&plain, &[], &["accept: a"]),
            (&plain, &["foo"], &["accept: a", "foo: 1"]),
            (
                &plain,
                &["cookie", "authorization"],
                &["accept: a", "cookie: c", "authorization: d"],
            ),
            (&listed, &[], &["accept: a", "bar: 2"]),
            (&listed, &["foo"], &["accept: a", "foo: 1", "bar: 2"]),
        ];
        for (policy, vary, expected) in table {
            let vary: Vec<HeaderName> = vary
                .iter()
                .map(|name| HeaderName::from_bytes(name.as_bytes()).expect("a name"))
                .collect();
            assert_eq!(
                to_origin(
                    &client,
                    ClientFields::Shared {
                        policy,
                        vary: &vary
                    },
                    &by(None)
                ),
                with_ours(expected),
                "{vary:?}"
            );
        }
    }

    #[test]
    fn what_is_passed_keeps_range_and_conditions() {
        // RFC 9110 section 13.1: the origin evaluates them.
        let client = map(&[
            "range: bytes=0-1",
            "if-match: \"a\"",
            "content-length: 5",
            "connection: content-length",
        ]);
        let expected = with_ours(&["range: bytes=0-1", "if-match: \"a\"", "content-length: 5"]);
        assert_eq!(
            to_origin(&client, ClientFields::Passed, &by(None)),
            expected
        );
    }

    #[test]
    fn no_client_can_tell_the_origin_another_request() {
        // RFC 9111 section 7.1.
        let policy = CachePolicy::default();
        for which in [
            ClientFields::Passed,
            ClientFields::Storable,
            ClientFields::Shared {
                policy: &policy,
                vary: &[],
            },
        ] {
            for name in [
                "x-forwarded-host",
                "X_Forwarded_Host",
                "x-original-url",
                "x.real.ip",
                "forwarded",
                "cdn_loop",
                "content_length",
            ] {
                let forward = to_origin(&map(&[&format!("{name}: evil.test")]), which, &by(None));
                assert!(
                    forward.values().all(|value| value != "evil.test"),
                    "{name} {which:?}"
                );
            }
        }
    }

    #[test]
    fn the_origin_sees_its_own_host_and_the_true_client() {
        let own = HeaderValue::from_static("origin.test");
        let forward = to_origin(
            &map(&["host: other", "x-forwarded-for: 1.2.3.4"]),
            ClientFields::Storable,
            &by(Some(&own)),
        );
        assert_eq!(
            forward.get_all(HOST).into_iter().collect::<Vec<_>>(),
            ["origin.test"]
        );
        assert_eq!(
            forward
                .get_all(X_FORWARDED_FOR)
                .into_iter()
                .collect::<Vec<_>>(),
            ["192.0.2.7"]
        );
    }

    #[test]
    fn loops_are_marked_and_seen() {
        // RFC 8586 section 2: other ids stay, ours is added, and `Connection` cannot remove the
        // field.
        let client = map(&["cdn-loop: other; v=1", "connection: cdn-loop", "via: 1.0 x"]);
        let policy = CachePolicy::default();
        let forward = to_origin(
            &client,
            ClientFields::Shared {
                policy: &policy,
                vary: &[],
            },
            &by(None),
        );
        assert_eq!(
            forward.get_all(CDN_LOOP).into_iter().collect::<Vec<_>>(),
            ["other; v=1", "nearcast-cdn.test"]
        );
        assert_eq!(
            forward.get_all(VIA).into_iter().collect::<Vec<_>>(),
            ["1.0 x", "1.1 ams-1"],
            "RFC 9110 section 7.6.3"
        );
        let many = format!("cdn-loop: {}", vec!["x"; LOOP_MEMBERS_MAX].join(", "));
        let table: [(&[&str], Loop); 7] = [
            (&[], Loop::Clear),
            (&["cdn-loop: other, nearcast-cdn.test.example"], Loop::Clear),
            (&["cdn-loop: nearcast-cdn.test"], Loop::Ours),
            (
                &["cdn-loop: other; a=\"b, c\" , NEARCAST-cdn.test; x=1"],
                Loop::Ours,
            ),
            (&["cdn-loop: a", "cdn-loop: nearcast-cdn.test"], Loop::Ours),
            (&["cdn-loop: a; b=\"nearcast-cdn.test\""], Loop::Clear),
            (&[&many], Loop::TooMany),
        ];
        for (request, expected) in table {
            assert_eq!(
                find_loop(&map(request), ID.as_bytes()),
                expected,
                "{request:?}"
            );
        }
        assert_eq!(
            find_loop(&forward, ID.as_bytes()),
            Loop::Ours,
            "what we send is known when it comes back"
        );
    }

    #[test]
    fn max_forwards_counts_down_for_two_methods() {
        // RFC 9110 section 7.6.2.
        let table = [
            (Method::OPTIONS, "0", MaxForwards::Here),
            (Method::OPTIONS, "5", MaxForwards::Left(4)),
            (Method::TRACE, "0", MaxForwards::Here),
            (Method::OPTIONS, "x", MaxForwards::Unlimited),
            (Method::GET, "0", MaxForwards::Unlimited),
        ];
        for (method, value, expected) in table {
            assert_eq!(
                max_forwards(&method, &map(&[&format!("max-forwards: {value}")])),
                expected,
                "{method} {value}"
            );
        }
        assert_eq!(
            max_forwards(&Method::OPTIONS, &map(&[])),
            MaxForwards::Unlimited
        );
    }

    #[test]
    fn age_is_on_stored_replies_only() {
        // RFC 9111 section 5.1 and RFC 9110 section 14.3.
        let of_origin = map(&["age: 5", "x: 1"]);
        assert_eq!(
            stored(of_origin.clone(), Some(9), true, &VIA_OURS),
            map(&["age: 9", "x: 1", "accept-ranges: bytes", "via: 1.1 ams-1"])
        );
        assert_eq!(
            stored(of_origin, None, false, &VIA_OURS),
            map(&["age: 5", "x: 1", "via: 1.1 ams-1"])
        );
        assert_eq!(
            stored(map(&["x: 1"]), None, false, &VIA_OURS),
            map(&["x: 1", "via: 1.1 ams-1"])
        );
        let refused = map(&["accept-ranges: none"]);
        assert_eq!(
            stored(refused, None, true, &VIA_OURS),
            map(&["accept-ranges: none", "via: 1.1 ams-1"]),
            "the origin's word stays"
        );
    }

    #[test]
    fn passed_replies_lose_what_is_for_one_hop() {
        let origin = map(&[
            "connection: x",
            "x: 1",
            "keep-alive: 5",
            "age: 3",
            "cache-status: up; hit",
            "via: 1.1 up",
        ]);
        assert_eq!(
            passed(&origin, &VIA_OURS),
            map(&[
                "age: 3",
                "cache-status: up; hit",
                "via: 1.1 up",
                "via: 1.1 ams-1"
            ])
        );
    }

    #[test]
    fn targeted_fields_are_forwarded() {
        // RFC 9213 section 2.2: caches between this one and the client may use them too.
        let response = passed(&map(&["cdn-cache-control: max-age=5"]), &VIA_OURS);
        assert_eq!(
            response,
            map(&["cdn-cache-control: max-age=5", "via: 1.1 ams-1"])
        );
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn nothing_of_one_hop_ever_passes(connection in testing::pieces(&["close", "foo", "cdn-loop", "host", "via", ","]), value in testing::value()) {
            let mut client = HeaderMap::new();
            client.insert("connection", connection);
            for name in ["foo", "te", "upgrade", "keep-alive", "cdn-loop", "max-forwards"] {
                client.insert(name, value.clone());
            }
            let _ = max_forwards(&Method::OPTIONS, &client);
            let forward = to_origin(&client, ClientFields::Passed, &by(None));
            for name in ["connection", "te", "upgrade", "keep-alive"] {
                prop_assert!(!forward.contains_key(name));
            }
            prop_assert_eq!(forward.get_all(CDN_LOOP).into_iter().count(), 2);
            // An open quote of another cannot hide ours: each stands in a line of its own.
            prop_assert_eq!(find_loop(&forward, ID.as_bytes()), Loop::Ours);
        }
    }
}
