//! The fields of what is sent on: to the origin, and back to the client.
//!
//! Follows RFC 9110 section 7.6 (forwarding, Via, Max-Forwards), RFC 8586 (CDN-Loop), RFC 9111 section 4.3.1 and 5.1.

use std::net::IpAddr;

use http::header::{ACCEPT_RANGES, AGE, EXPECT, HOST, MAX_FORWARDS, RANGE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::conditional::CONDITIONS;
use super::fields;

/// `CDN-Loop` (RFC 8586).
pub const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
/// `X-Forwarded-For`.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// CDNs that a request may have passed; more is taken for a loop that does not name itself.
pub const LOOP_MEMBERS_MAX: usize = 16;

/// Fields by which an origin may be told another host, path or method than the key has. They are dropped from every
/// request, so that no answer to them can be stored for others.
const REWRITING: [&str; 13] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-host",
    "x-http-method-override",
    "x-method-override",
    "x-http-method",
    "x-original-url",
    "x-rewrite-url",
];

/// Fields of a client that may change an answer or count for every origin, and so reach it also where the answer is stored.
const ALLOWED: [&str; 17] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "authorization",
    "cache-control",
    "cookie",
    "origin",
    "pragma",
    "referer",
    "traceparent",
    "tracestate",
    "user-agent",
    "via",
    "cdn-loop",
    "access-control-request-headers",
    "access-control-request-method",
];

/// Which of a client's fields reach the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientFields<'a> {
    /// All but those for one hop and those that rewrite the request: for what is passed through.
    Passed,
    /// As [`Passed`](Self::Passed), without `Range` and conditions: for what may be stored, when the origin may vary by any field.
    Storable,
    /// Those of a fixed list, and these: for what may be stored (RFC 9111 section 7.1).
    Listed(&'a [HeaderName]),
}

/// What of this node and connection a forward request shows.
#[derive(Debug, Clone, Copy)]
pub struct Forwarder<'a> {
    /// `1.1 ams-1`.
    pub via: &'a HeaderValue,
    /// This CDN's id.
    pub loop_id: &'a HeaderValue,
    /// The host that the origin is to see; the client's where `None`.
    pub origin_host: Option<&'a HeaderValue>,
    /// The host that the client asked for.
    pub host: &'a HeaderValue,
    /// The client's address.
    pub client: IpAddr,
    /// `http` or `https`, as the client came.
    pub scheme: &'static str,
}

/// The fields of a request to the origin.
pub fn to_origin(client: &HeaderMap, which: ClientFields<'_>, by: &Forwarder<'_>) -> HeaderMap {
    let mut forward = fields::end_to_end(client, false);
    for name in REWRITING {
        forward.remove(name);
    }
    forward.remove(EXPECT);
    if which != ClientFields::Passed {
        forward.remove(RANGE);
        for name in CONDITIONS {
            forward.remove(name);
        }
    }
    if let ClientFields::Listed(others) = which {
        let unlisted: Vec<HeaderName> = forward.keys().filter(|name| !is_listed(name, others)).cloned().collect();
        for name in unlisted {
            forward.remove(name);
        }
    }
    forward.insert(HOST, by.origin_host.unwrap_or(by.host).clone());
    forward.append(VIA, by.via.clone());
    forward.append(CDN_LOOP, by.loop_id.clone());
    // What a client says of its own address is not believed.
    if let Ok(address) = HeaderValue::try_from(by.client.to_string()) {
        forward.insert(X_FORWARDED_FOR, address);
    }
    forward.insert(X_FORWARDED_PROTO, HeaderValue::from_static(by.scheme));
    forward
}

fn is_listed(name: &HeaderName, others: &[HeaderName]) -> bool {
    ALLOWED.contains(&name.as_str()) || others.contains(name)
}

/// What `CDN-Loop` says of a request (RFC 8586 section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Loop {
    /// It may go on.
    Clear,
    /// It was here before: answer 508.
    Ours,
    /// It passed too many CDNs: answer 508.
    TooMany,
}

/// Whether a request has been at this CDN before.
pub fn find_loop(request: &HeaderMap, own_id: &[u8]) -> Loop {
    let mut count = 0;
    for member in fields::list(request, CDN_LOOP) {
        let id = member.split(|b| matches!(b, b';' | b' ' | b'\t')).next().unwrap_or_default();
        if id.eq_ignore_ascii_case(own_id) {
            return Loop::Ours;
        }
        count += 1;
    }
    if count >= LOOP_MEMBERS_MAX { Loop::TooMany } else { Loop::Clear }
}

/// What `Max-Forwards` says of a request (RFC 9110 section 7.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MaxForwards {
    /// It may go on as it is.
    Unlimited,
    /// It may go on with this value.
    Left(u64),
    /// This node is to answer it.
    Here,
}

/// What `Max-Forwards` says; it counts for OPTIONS and TRACE only.
pub fn max_forwards(method: &Method, request: &HeaderMap) -> MaxForwards {
    if !matches!(*method, Method::OPTIONS | Method::TRACE) {
        return MaxForwards::Unlimited;
    }
    match request.get(MAX_FORWARDS).and_then(|value| fields::delta_seconds(value.as_bytes().trim_ascii())) {
        None => MaxForwards::Unlimited,
        Some(0) => MaxForwards::Here,
        Some(left) => MaxForwards::Left(left - 1),
    }
}

/// Fields of a response that goes to a client as it comes.
pub fn passed(origin: &HeaderMap, via: &HeaderValue) -> HeaderMap {
    let mut response = fields::end_to_end(origin, false);
    response.append(VIA, via.clone());
    response
}

/// Fields of a response out of stored ones. `age` is in seconds; `None` for one that comes from the origin now, whose
/// own Age stays (RFC 9111 section 5.1). `is_rangeable`: its length is known and it is a 200.
pub fn stored(stored: &HeaderMap, age: Option<u64>, is_rangeable: bool, via: &HeaderValue) -> HeaderMap {
    let mut response = stored.clone();
    if let Some(age) = age {
        response.insert(AGE, HeaderValue::from(age));
    }
    if is_rangeable {
        response.entry(ACCEPT_RANGES).or_insert(HeaderValue::from_static("bytes"));
    }
    response.append(VIA, via.clone());
    response
}

/// Takes the targeted fields out of a response. By default they are passed on: another cache of a CDN may stand between
/// this one and the client, and they are for it too (RFC 9213 section 2.2).
pub fn remove_targeted(response: &mut HeaderMap) {
    for name in &fields::TARGETED {
        response.remove(name);
    }
}
