//! Whether a response may be stored.
//!
//! Follows RFC 9111 sections 3 (storing) and 7.1 (cache poisoning), RFC 9110 section 15.1 and RFC
//! 9213 (targeted fields).

use http::header::{ACCEPT, AUTHORIZATION, COOKIE, SET_COOKIE, VARY};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use nearcast_fleet::config::CachePolicy;

use crate::cache_control::CacheControl;
use crate::fields;
use crate::freshness::{Basis, Exchange, Freshness, is_heuristically_cacheable};
use crate::not_stored::NotStored;
use crate::range::ContentRange;
use crate::request_fields::{self, OriginView, UnkeyedFields};
use crate::{conditional, invalidate, reuse, vary};

/// The forwarded request, as far as it decides whether its response may be stored.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The client's fields.
    pub fields: &'a HeaderMap,
}

/// All that callers need to know about a response that was received or freshened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assessment {
    /// The facts that decide its age and use, whether it may be stored or not.
    pub freshness: Freshness,
    /// Why it may not be stored; `None` when it may.
    pub not_stored: Option<NotStored>,
}

/// Assesses a response (RFC 9111 section 3), before its body is known to be complete. A response
/// with an incomplete body must not be stored as a complete one (section 3.3); the reader of the
/// body ensures that.
pub fn assess(
    request: RequestFacts<'_>,
    status: StatusCode,
    fields: &HeaderMap,
    policy: &CachePolicy,
    exchange: Exchange,
) -> Assessment {
    let directives = CacheControl::of_response(fields);
    let freshness = Freshness::with_directives(&directives, status, fields, policy, exchange);
    let not_stored = refused_by_request(request, &directives, policy)
        .or_else(|| refused_by_status(request, status, fields, &directives, exchange.received_ms))
        .or_else(|| refused_by_fields(fields, &directives))
        .or_else(|| refused_as_request_specific(request, status, fields, policy))
        .or_else(|| refused_as_assumed(request, fields, &freshness, policy))
        .or_else(|| refused_as_useless(fields, &freshness, policy));
    Assessment {
        freshness,
        not_stored,
    }
}

fn refused_by_request(
    request: RequestFacts<'_>,
    directives: &CacheControl,
    policy: &CachePolicy,
) -> Option<NotStored> {
    if *request.method != Method::GET {
        return Some(NotStored::Method);
    }
    if reuse::client_directives(request.fields, policy).is_some_and(|asked| asked.no_store) {
        return Some(NotStored::RequestNoStore);
    }
    // RFC 9111 section 3.5.
    let allows_shared =
        directives.public || directives.s_maxage.is_some() || directives.must_revalidate;
    (request.fields.contains_key(AUTHORIZATION) && !allows_shared)
        .then_some(NotStored::Authorization)
}

fn refused_by_status(
    request: RequestFacts<'_>,
    status: StatusCode,
    fields: &HeaderMap,
    directives: &CacheControl,
    received_ms: u64,
) -> Option<NotStored> {
    if !is_about_resource(status) {
        return Some(NotStored::Status);
    }
    if directives.must_understand && !is_understood(status) {
        return Some(NotStored::MustUnderstand);
    }
    if status == StatusCode::NOT_ACCEPTABLE && !varies_on_preferences(request, fields) {
        return Some(NotStored::Status);
    }
    let is_part = status == StatusCode::PARTIAL_CONTENT;
    (is_part && !is_joinable_part(fields, received_ms)).then_some(NotStored::Partial)
}

/// Whether `Vary` names every preference of a request. A 406 without that may be wrong for the next
/// client.
fn varies_on_preferences(request: RequestFacts<'_>, fields: &HeaderMap) -> bool {
    let mut preferences = request
        .fields
        .keys()
        .filter(|name| name.as_str().starts_with("accept"));
    vary::names(fields)
        .is_some_and(|vary| vary.contains(&ACCEPT) && preferences.all(|name| vary.contains(name)))
}

/// Whether parts of other responses can complete this one (RFC 9111 section 3.4).
fn is_joinable_part(fields: &HeaderMap, received_ms: u64) -> bool {
    let has_range = matches!(ContentRange::of(fields), Some(ContentRange::Bytes { .. }));
    has_range && conditional::StrongValidator::of(fields, received_ms).is_some()
}

fn refused_by_fields(fields: &HeaderMap, directives: &CacheControl) -> Option<NotStored> {
    // With a status that is understood `must-understand` lifts `no-store` (RFC 9111 section
    // 5.2.2.3).
    if directives.no_store && !directives.must_understand {
        return Some(NotStored::NoStore);
    }
    if directives.private {
        return Some(NotStored::Private);
    }
    if fields::list(fields, VARY).any(|member| member == b"*") {
        return Some(NotStored::VaryStar);
    }

    // A field that the edge makes anew for each forward request cannot select a response.
    let can_select = |names: Vec<HeaderName>| {
        names
            .iter()
            .all(|name| request_fields::origin_view(name) != OriginView::Edge)
    };
    if !vary::names(fields).is_some_and(can_select) {
        return Some(NotStored::Vary);
    }
    if invalidate::tags(fields).is_err() {
        return Some(NotStored::Tags);
    }

    // The policy of this cache: a cookie is for one client unless the origin clearly says otherwise.
    let is_for_all = directives.public || directives.is_targeted;
    (fields.contains_key(SET_COOKIE) && !is_for_all).then_some(NotStored::SetCookie)
}

/// A response that fields of its own request may have caused is for that client alone (RFC 9111
/// section 7.1). The rule is stricter for errors: one client's oversized field or malformed cookie
/// must not become the error of every client.
fn refused_as_request_specific(
    request: RequestFacts<'_>,
    status: StatusCode,
    fields: &HeaderMap,
    policy: &CachePolicy,
) -> Option<NotStored> {
    let vary = vary::names(fields).unwrap_or_default();
    let is_error = status.is_client_error() || status.is_server_error();
    // These two are about the resource, whoever the client is.
    let is_same_for_all = matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE);

    let may_be_own = !UnkeyedFields::of(request.fields, policy).are_varied_on(&vary)
        || is_error && request_fields::may_be_refused(request.fields)
        || is_error && !is_same_for_all && !are_credentials_selecting(request, &vary, policy);
    may_be_own.then_some(NotStored::RequestFields)
}

/// A heuristic or default lifetime (which RFC 9111 section 4.2.2 leaves to the cache) does not apply
/// to a response that a cookie or credentials may have made one client's own. A response that is
/// validated before each use needs no lifetime.
fn refused_as_assumed(
    request: RequestFacts<'_>,
    fields: &HeaderMap,
    freshness: &Freshness,
    policy: &CachePolicy,
) -> Option<NotStored> {
    let is_assumed = matches!(freshness.basis, Basis::Heuristic | Basis::Default);
    let may_be_own = || {
        let vary = vary::names(fields).unwrap_or_default();
        !are_credentials_selecting(request, &vary, policy)
    };
    (is_assumed && !freshness.no_cache && may_be_own()).then_some(NotStored::Credentials)
}

/// Whether `Vary` or the site keeps responses apart by the cookie and the credentials of a request.
fn are_credentials_selecting(
    request: RequestFacts<'_>,
    vary: &[HeaderName],
    policy: &CachePolicy,
) -> bool {
    [COOKIE, AUTHORIZATION].iter().all(|name| {
        !request.fields.contains_key(name)
            || vary.contains(name)
            || request_fields::is_listed(name, policy)
    })
}

fn refused_as_useless(
    fields: &HeaderMap,
    freshness: &Freshness,
    policy: &CachePolicy,
) -> Option<NotStored> {
    let has_validator = conditional::has_validator(fields);
    if freshness.basis == Basis::Nothing && !(freshness.no_cache && has_validator) {
        return Some(NotStored::NoLifetime);
    }

    let stale_use = freshness
        .stale_while_revalidate
        .unwrap_or(policy.stale_while_revalidate.as_secs())
        + freshness
            .stale_if_error
            .unwrap_or(policy.stale_if_error.as_secs());
    let is_useful_stale = policy.obey_client || (stale_use > 0 && !freshness.must_revalidate);
    // A response that is stale on arrival still answers the requests that waited for it.
    let is_usable_now = freshness.lifetime > 0 && !freshness.no_cache;
    (!is_usable_now && !has_validator && !is_useful_stale).then_some(NotStored::Useless)
}

/// Whether this cache knows what a final status means for caching (RFC 9111 section 3).
fn is_understood(status: StatusCode) -> bool {
    let others = matches!(
        status.as_u16(),
        302 | 303 | 307 | 400 | 401 | 403 | 409 | 422 | 451 | 500 | 502 | 503 | 504
    );
    is_heuristically_cacheable(status) || others
}

/// Whether a status is about the resource. Statuses about the request or the connection are never
/// stored, whatever the response says: one client's long fields or broken connection must not
/// become the response of every client.
fn is_about_resource(status: StatusCode) -> bool {
    !status.is_informational()
        && !matches!(
            status.as_u16(),
            304 | 407 | 408 | 412 | 413 | 416 | 417 | 421 | 425 | 426 | 428 | 429 | 431 | 508 | 511
        )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::fields::DELTA_SECONDS_MAX;
    use crate::testing::{self, NOW_MS, date, map};

    const NOW: Exchange = Exchange {
        requested_ms: NOW_MS,
        received_ms: NOW_MS,
    };

    fn judged(
        method: &Method,
        request: &[&str],
        status: u16,
        response: &[&str],
        policy: &CachePolicy,
    ) -> Result<Freshness, NotStored> {
        let (request, response) = (map(request), map(response));
        let status = StatusCode::from_u16(status).expect("a status");
        let facts = RequestFacts {
            method,
            fields: &request,
        };
        let assessment = assess(facts, status, &response, policy, NOW);
        match assessment.not_stored {
            None => Ok(assessment.freshness),
            Some(reason) => Err(reason),
        }
    }

    /// The reason, or nothing where it is stored.
    fn refusal(request: &[&str], status: u16, response: &[&str]) -> Option<NotStored> {
        judged(
            &Method::GET,
            request,
            status,
            response,
            &CachePolicy::default(),
        )
        .err()
    }

    #[test]
    fn only_answers_to_get_are_stored() {
        // RFC 9111 section 3.
        let fresh = ["cache-control: max-age=60"];
        for method in [Method::HEAD, Method::POST, Method::OPTIONS, Method::PUT] {
            assert_eq!(
                judged(&method, &[], 200, &fresh, &CachePolicy::default()).err(),
                Some(NotStored::Method),
                "{method}"
            );
        }
        assert_eq!(refusal(&[], 200, &fresh), None);
    }

    #[test]
    fn directives_that_forbid_storing() {
        // RFC 9111 sections 5.2.2.3, 5.2.2.5 and 5.2.2.7. Status, directives, reason.
        let table: [(u16, &str, Option<NotStored>); 11] = [
            (200, "no-store, max-age=60", Some(NotStored::NoStore)),
            (200, "No-StOrE", Some(NotStored::NoStore)),
            (200, "private, max-age=60", Some(NotStored::Private)),
            (200, "private=\"x\", max-age=60", Some(NotStored::Private)),
            (200, "public, private, max-age=60", Some(NotStored::Private)),
            (200, "max-age=60, no-store, must-understand", None),
            (404, "max-age=60, no-store, must-understand", None),
            (
                299,
                "max-age=60, no-store, must-understand",
                Some(NotStored::MustUnderstand),
            ),
            (
                299,
                "max-age=60, must-understand",
                Some(NotStored::MustUnderstand),
            ),
            (
                200,
                "max-age=60, private, must-understand",
                Some(NotStored::Private),
            ),
            (299, "max-age=60", None),
        ];
        for (status, directives, expected) in table {
            assert_eq!(
                refusal(&[], status, &[&format!("cache-control: {directives}")]),
                expected,
                "{status} {directives}"
            );
        }
    }

    #[test]
    fn request_no_store_counts_where_clients_are_obeyed() {
        // RFC 9111 section 5.2.1.5.
        let obey = CachePolicy {
            obey_client: true,
            ..CachePolicy::default()
        };
        let ask = |policy: &CachePolicy| {
            judged(
                &Method::GET,
                &["cache-control: no-store"],
                200,
                &["cache-control: max-age=60"],
                policy,
            )
            .err()
        };
        assert_eq!(ask(&obey), Some(NotStored::RequestNoStore));
        assert_eq!(ask(&CachePolicy::default()), None);
    }

    #[test]
    fn credentials_need_leave() {
        // RFC 9111 section 3.5.
        let table = [
            ("max-age=60", Some(NotStored::Authorization)),
            (
                "max-age=60, proxy-revalidate",
                Some(NotStored::Authorization),
            ),
            ("max-age=60, public", None),
            ("s-maxage=60", None),
            ("max-age=60, must-revalidate", None),
        ];
        for (directives, expected) in table {
            assert_eq!(
                refusal(
                    &["authorization: Basic eA=="],
                    200,
                    &[&format!("cache-control: {directives}")]
                ),
                expected,
                "{directives}"
            );
        }
    }

    #[test]
    fn statuses_that_may_be_guessed() {
        // RFC 9110 section 15.1 and RFC 9111 section 4.2.2.
        let modified = format!("last-modified: {}", date(-86_400));
        let guessable = [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501];
        for status in [
            200, 201, 202, 203, 204, 299, 300, 301, 302, 303, 307, 308, 400, 403, 404, 405, 410,
            414, 500, 501, 502, 503, 504, 599,
        ] {
            let expected = (!guessable.contains(&status)).then_some(NotStored::NoLifetime);
            assert_eq!(refusal(&[], status, &[&modified]), expected, "{status}");
            assert_eq!(
                refusal(&[], status, &[&modified, "cache-control: public"]),
                None,
                "{status} public"
            );
            assert_eq!(
                refusal(&[], status, &["cache-control: max-age=60"]),
                None,
                "{status} explicit"
            );
        }
    }

    #[test]
    fn statuses_that_speak_of_the_request_are_never_stored() {
        // RFC 9111 section 3 (final status, 304), RFC 8470 section 5.2 (425), RFC 6585 sections 3
        // to 6 (428, 429, 431, 511).
        for status in [
            100, 103, 304, 407, 408, 412, 413, 416, 417, 421, 425, 426, 428, 429, 431, 508, 511,
        ] {
            assert_eq!(
                refusal(&[], status, &["cache-control: public, max-age=60"]),
                Some(NotStored::Status),
                "{status}"
            );
        }
    }

    #[test]
    fn cookies_need_leave() {
        // RFC 9111 section 7.3 leaves cookies to the cache.
        let table: [(&[&str], Option<NotStored>); 4] = [
            (
                &["set-cookie: a=b", "cache-control: max-age=60"],
                Some(NotStored::SetCookie),
            ),
            (
                &["set-cookie: a=b", "cache-control: max-age=60, public"],
                None,
            ),
            (&["set-cookie: a=b", "cdn-cache-control: max-age=60"], None),
            (
                &["set-cookie: a=b", "cdn-cache-control: max-age=60, private"],
                Some(NotStored::Private),
            ),
        ];
        for (response, expected) in table {
            assert_eq!(refusal(&[], 200, response), expected, "{response:?}");
        }
    }

    #[test]
    fn what_a_clients_own_fields_may_have_brought_about_is_not_stored() {
        // RFC 9111 section 7.1. Request, status, response, reason.
        type Lines = &'static [&'static str];
        let long = format!("user-agent: {}", "x".repeat(5000));
        let many = vec!["accept: a/b"; 600];
        let both: [(&[&str], u16, Lines, Option<NotStored>); 4] = [
            (&[&long], 200, &[], None),
            (&[&long], 400, &[], Some(NotStored::RequestFields)),
            (&[&long], 404, &[], Some(NotStored::RequestFields)),
            (&many, 400, &[], Some(NotStored::RequestFields)),
        ];
        const SHORT: [&str; 60] = ["dnt: 1"; 60];
        let lines: Lines = &SHORT;
        let table: [(Lines, u16, Lines, Option<NotStored>); 27] = [
            (
                &[
                    "accept: a",
                    "user-agent: b",
                    "sec-fetch-mode: c",
                    "traceparent: d",
                    "x-playback-session-id: e",
                ],
                200,
                &[],
                None,
            ),
            (&["x-evil: 1"], 200, &[], Some(NotStored::RequestFields)),
            (&["rsc: 1"], 200, &[], Some(NotStored::RequestFields)),
            (&["sec-evil: 1"], 200, &[], Some(NotStored::RequestFields)),
            (
                &["x-api-key: 1"],
                301,
                &["cache-control: public"],
                Some(NotStored::RequestFields),
            ),
            (&["rsc: 1"], 200, &["vary: Accept, RSC"], None),
            (
                &["rsc: 1", "next-url: /"],
                200,
                &["vary: rsc"],
                Some(NotStored::RequestFields),
            ),
            (
                &["rsc: 1", "next-url: /"],
                200,
                &["vary: rsc", "vary: next-url"],
                None,
            ),
            (&["x-listed: 1", "x-key: 2"], 200, &[], None),
            (
                &[
                    "x-forwarded-host: dropped",
                    "x_real_ip: dropped",
                    "te: dropped",
                ],
                200,
                &[],
                None,
            ),
            (&["connection: x-hop", "x-hop: dropped"], 200, &[], None),
            (&["x-evil: 1"], 404, &[], Some(NotStored::RequestFields)),
            (&["cookie: a=b"], 200, &[], None),
            (&["cookie: a=b"], 404, &[], None),
            (&["cookie: a=b"], 400, &[], Some(NotStored::RequestFields)),
            (&["cookie: a=b"], 403, &["vary: cookie"], None),
            (
                &["authorization: a"],
                500,
                &["cache-control: public"],
                Some(NotStored::RequestFields),
            ),
            (
                &["referer: \u{fc}"],
                400,
                &[],
                Some(NotStored::RequestFields),
            ),
            (&["referer: \u{fc}"], 200, &[], None),
            (&[], 400, &[], None),
            (&["accept: x/y"], 406, &[], Some(NotStored::Status)),
            (&["accept: x/y"], 406, &["vary: accept"], None),
            (
                &["accept: x/y"],
                406,
                &["vary: accept-encoding"],
                Some(NotStored::Status),
            ),
            (
                &["accept: x/y", "accept-language: a"],
                406,
                &["vary: accept"],
                Some(NotStored::Status),
            ),
            (
                &["via: 1.1 other"],
                403,
                &[],
                Some(NotStored::RequestFields),
            ),
            (&["cdn-loop: other"], 200, &[], None),
            (lines, 400, &[], Some(NotStored::RequestFields)),
        ];
        let policy = CachePolicy {
            forward_fields: vec!["x-listed".into()],
            key_fields: vec!["x-key".into()],
            ..CachePolicy::default()
        };
        for (request, status, response, expected) in table.into_iter().chain(both) {
            let response: Vec<&str> = response
                .iter()
                .copied()
                .chain(["cache-control: max-age=60"])
                .collect();
            assert_eq!(
                judged(&Method::GET, request, status, &response, &policy).err(),
                expected,
                "{request:?} {status} {response:?}"
            );
        }
    }

    #[test]
    fn no_lifetime_is_guessed_for_a_request_with_a_cookie_or_credentials() {
        let modified = format!("last-modified: {}", date(-86_400));
        let table: [(&[&str], &[&str], Option<NotStored>); 9] = [
            (&[], &[&modified], None),
            (&[], &[], None),
            (&["cookie: a=b"], &[&modified], Some(NotStored::Credentials)),
            (&["cookie: a=b"], &[], Some(NotStored::Credentials)),
            (
                &["cookie: a=b"],
                &[&modified, "cache-control: public"],
                Some(NotStored::Credentials),
            ),
            (&["cookie: a=b"], &[&modified, "vary: cookie"], None),
            (
                &["authorization: a"],
                &[&modified, "cache-control: public"],
                Some(NotStored::Credentials),
            ),
            (&["cookie: a=b"], &["cache-control: max-age=9"], None),
            (
                &["cookie: a=b"],
                &["cache-control: no-cache", "etag: \"a\""],
                None,
            ),
        ];
        let policy = CachePolicy {
            default_ttl: Some(Duration::from_secs(60)),
            ..CachePolicy::default()
        };
        let open = CachePolicy {
            forward_fields: vec!["cookie".into()],
            ..policy.clone()
        };
        for (request, response, expected) in table {
            assert_eq!(
                judged(&Method::GET, request, 200, response, &policy).err(),
                expected,
                "{request:?} {response:?}"
            );
            let is_cookie = request.iter().all(|line| line.starts_with("cookie"));
            let expected = expected.filter(|_| !is_cookie);
            assert_eq!(
                judged(&Method::GET, request, 200, response, &open).err(),
                expected,
                "{request:?} {response:?} where listed"
            );
        }
    }

    #[test]
    fn what_varies_by_a_field_of_the_edges_own_is_not_stored() {
        for name in [
            "X-Forwarded-For",
            "range",
            "If-None-Match",
            "accept, x-forwarded-for",
        ] {
            assert_eq!(
                refusal(
                    &[],
                    200,
                    &["cache-control: max-age=60", &format!("vary: {name}")]
                ),
                Some(NotStored::Vary),
                "{name}"
            );
        }
        for name in [
            "Host",
            "X-Forwarded-Proto",
            "X-Forwarded-Host",
            "Via",
            "CDN-Loop",
            "TE",
        ] {
            assert_eq!(
                refusal(
                    &[],
                    200,
                    &["cache-control: max-age=60", &format!("vary: {name}")]
                ),
                None,
                "{name}"
            );
        }
    }

    #[test]
    fn parts_need_a_strong_validator() {
        // RFC 9111 section 3.4 and RFC 9110 section 15.3.7.3.
        let table: [(&[&str], Option<NotStored>); 5] = [
            (&["etag: \"a\"", "content-range: bytes 0-4/10"], None),
            (&["etag: \"a\"", "content-range: bytes 0-4/*"], None),
            (
                &["etag: W/\"a\"", "content-range: bytes 0-4/10"],
                Some(NotStored::Partial),
            ),
            (&["etag: \"a\""], Some(NotStored::Partial)),
            (&["content-range: bytes 0-4/10"], Some(NotStored::Partial)),
        ];
        for (response, expected) in table {
            let response: Vec<&str> = response
                .iter()
                .copied()
                .chain(["cache-control: max-age=60"])
                .collect();
            assert_eq!(
                refusal(&["range: bytes=0-4"], 206, &response),
                expected,
                "{response:?}"
            );
        }
    }

    #[test]
    fn what_selects_nothing_is_not_stored() {
        // RFC 9111 section 4.1.
        for vary in ["*", ", *", "*, foo", "foo, *", "foo bar"] {
            let expected = if vary.contains('*') {
                NotStored::VaryStar
            } else {
                NotStored::Vary
            };
            assert_eq!(
                refusal(
                    &[],
                    200,
                    &["cache-control: max-age=60", &format!("vary: {vary}")]
                ),
                Some(expected),
                "{vary}"
            );
        }
    }

    #[test]
    fn what_is_of_no_use_is_not_stored() {
        let swr = CachePolicy {
            stale_while_revalidate: Duration::from_secs(5),
            ..CachePolicy::default()
        };
        let ask = |response: &[&str], policy: &CachePolicy| {
            judged(&Method::GET, &[], 200, response, policy).err()
        };
        let strict = CachePolicy::default();
        assert_eq!(ask(&[], &strict), Some(NotStored::NoLifetime));
        assert_eq!(ask(&["etag: \"a\""], &strict), Some(NotStored::NoLifetime));
        assert_eq!(
            ask(&["cache-control: no-cache"], &strict),
            Some(NotStored::NoLifetime)
        );
        assert_eq!(
            ask(&["cache-control: no-cache", "etag: \"a\""], &strict),
            None
        );
        assert_eq!(
            ask(&["cache-control: max-age=60, no-cache"], &strict),
            Some(NotStored::Useless)
        );
        assert_eq!(
            ask(&["cache-control: max-age=0"], &strict),
            Some(NotStored::Useless)
        );
        assert_eq!(
            ask(&["cache-control: max-age=9", "age: 9"], &strict),
            None,
            "it is for those who waited"
        );
        assert_eq!(
            ask(&["cache-control: max-age=0", "etag: W/\"a\""], &strict),
            None
        );
        assert_eq!(
            ask(&["cache-control: max-age=0, stale-if-error=5"], &strict),
            None
        );
        assert_eq!(ask(&["cache-control: max-age=0"], &swr), None);
        assert_eq!(
            ask(&["cache-control: max-age=0, must-revalidate"], &swr),
            Some(NotStored::Useless)
        );
    }

    #[test]
    fn a_targeted_field_without_a_lifetime_lets_nothing_be_guessed() {
        // RFC 9213 section 2.2: `no-store` is in a field that no longer counts; storing still
        // needs an explicit statement.
        let changed = format!("last-modified: {}", date(-1000));
        assert_eq!(
            refusal(
                &[],
                200,
                &[
                    "cdn-cache-control: foo",
                    "cache-control: no-store",
                    &changed
                ]
            ),
            Some(NotStored::NoLifetime)
        );
        assert_eq!(
            refusal(
                &[],
                200,
                &[
                    "cdn-cache-control: public",
                    "cache-control: no-store",
                    &changed
                ]
            ),
            None
        );
        assert_eq!(
            refusal(
                &[],
                200,
                &["cdn-cache-control: max-age=9", "cache-control: no-store"]
            ),
            None
        );
    }

    #[test]
    fn extension_alone_makes_nothing_cacheable() {
        assert_eq!(
            refusal(&[], 200, &["content-type: text/css"]),
            Some(NotStored::NoLifetime)
        );
    }

    #[test]
    fn a_304_that_forbids_storing_is_honoured() {
        // RFC 9111 section 3.2: the stored response is judged again with its updated fields.
        let stored = map(&["cache-control: max-age=60", "etag: \"a\""]);
        for (new, expected) in [
            ("cache-control: no-store", Some(NotStored::NoStore)),
            (
                "cache-control: private, max-age=60",
                Some(NotStored::Private),
            ),
            ("vary: *", Some(NotStored::VaryStar)),
            ("cache-tag: a, b", None),
            ("cache-tag: a\tb", Some(NotStored::Tags)),
            ("cache-control: max-age=90", None),
        ] {
            let now = conditional::freshened(&stored, &map(&[new, "etag: \"a\""]), NOW_MS);
            let request = HeaderMap::new();
            let assessment = assess(
                RequestFacts {
                    method: &Method::GET,
                    fields: &request,
                },
                StatusCode::OK,
                &now,
                &CachePolicy::default(),
                NOW,
            );
            assert_eq!(assessment.not_stored, expected, "{new}");
        }
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn no_response_panics_and_strict_ones_are_not_stored(
            control in testing::pieces(&["max-age=5", "s-maxage=9", "public", "must-revalidate", "no-cache", "no-store", "private", "immutable", ","]),
            date in testing::value(), age in testing::value(), status in 100u16..600, requested_ms in any::<u64>(), received_ms in any::<u64>(), now_ms in any::<u64>(),
        ) {
            let mut fields = HeaderMap::new();
            fields.insert("cache-control", control);
            fields.insert("date", date.clone());
            fields.insert("expires", date);
            fields.insert("age", age);
            let request = HeaderMap::new();
            let facts = RequestFacts { method: &Method::GET, fields: &request };
            let status = StatusCode::from_u16(status).expect("in range");
            let assessment = assess(facts, status, &fields, &CachePolicy::default(), Exchange { requested_ms, received_ms });
            let directives = CacheControl::of_response(&fields);
            if assessment.not_stored.is_none() {
                let freshness = assessment.freshness;
                prop_assert!(!directives.no_store && !directives.private);
                prop_assert!(freshness.lifetime <= DELTA_SECONDS_MAX);
                prop_assert!(freshness.age(now_ms) >= freshness.initial_age);
                prop_assert_eq!(freshness.is_fresh(now_ms), freshness.ttl(now_ms) > 0);
            }
        }
    }
}
