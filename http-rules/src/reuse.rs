//! Whether a stored response may be used now.
//!
//! Follows RFC 9111 section 4, 4.2.4 (stale) and 5.2.1 (directives of clients), RFC 5861 and RFC
//! 8246.

use http::{HeaderMap, StatusCode};
use nearcast_fleet::config::CachePolicy;

use crate::cache_control::CacheControl;
use crate::fields::DELTA_SECONDS_MAX;
use crate::freshness::Freshness;

/// A stored response at a point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evaluation {
    /// Age in seconds, for `Age`.
    pub age: u64,
    /// Remaining freshness in seconds, zero or less when stale. For `Cache-Status`.
    pub ttl: i64,
    /// How it may be used.
    pub reuse: Reuse,
}

/// How a stored response that a request has selected may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// At once.
    Fresh,
    /// At once: it is stale, and the client accepts that (`max-stale`).
    StaleAccepted,
    /// It is stale. Within `stale-while-revalidate` it is served at once and revalidated in the
    /// background. Otherwise it is validated first; if that fails, it is served within
    /// `stale-if-error`.
    Stale {
        /// Within `stale-while-revalidate`.
        may_serve_while_revalidating: bool,
        /// Within `stale-if-error`.
        may_serve_on_error: bool,
    },
    /// After validation.
    MustValidate {
        /// The cause.
        reason: MustValidate,
        /// Whether it may be served if the validation fails.
        may_serve_on_error: bool,
    },
}

impl Reuse {
    /// Whether it may be served when the origin fails.
    pub fn may_serve_on_error(self) -> bool {
        match self {
            Self::Fresh | Self::StaleAccepted => true,
            Self::Stale {
                may_serve_on_error, ..
            }
            | Self::MustValidate {
                may_serve_on_error, ..
            } => may_serve_on_error,
        }
    }

    /// Whether the client requires the validation.
    pub fn is_required_by_client(self) -> bool {
        matches!(self, Self::MustValidate { reason, .. } if reason.is_required_by_client())
    }

    /// Whether it may be served before the origin answers.
    pub fn may_serve_now(self) -> bool {
        matches!(
            self,
            Self::Fresh
                | Self::StaleAccepted
                | Self::Stale {
                    may_serve_while_revalidating: true,
                    ..
                }
        )
    }
}

/// Why a stored response must be validated before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MustValidate {
    /// `no-cache` in the response.
    ResponseNoCache,
    /// It is stale, and `must-revalidate`, `proxy-revalidate` or `s-maxage` forbids stale use.
    MustRevalidate,
    /// `no-cache` in the request.
    RequestNoCache,
    /// Older than the request's `max-age`.
    RequestMaxAge,
    /// Not fresh for as long as the request's `min-fresh`.
    RequestMinFresh,
}

impl MustValidate {
    /// Whether the client requires it, so that the forward reason is `request` and not `stale` (RFC
    /// 9211 section 2.2).
    pub fn is_required_by_client(self) -> bool {
        matches!(
            self,
            Self::RequestNoCache | Self::RequestMaxAge | Self::RequestMinFresh
        )
    }
}

/// The directives of a client that apply: those of its request where the site obeys clients, else
/// `None`. Every rule about a client's directives uses this function or [`obeyed`].
pub fn client_directives(request: &HeaderMap, policy: &CachePolicy) -> Option<CacheControl> {
    policy
        .obey_client
        .then(|| CacheControl::of_request(request))
}

/// Directives that were read before, where the site obeys clients.
fn obeyed<'a>(request: Option<&'a CacheControl>, policy: &CachePolicy) -> Option<&'a CacheControl> {
    request.filter(|_| policy.obey_client)
}

/// Evaluates a stored response. `request` has the client's directives; they apply where the site
/// obeys clients. A soft purge makes the response stale now, and never fresher.
pub fn evaluate(
    freshness: &Freshness,
    request: Option<&CacheControl>,
    is_soft_purged: bool,
    policy: &CachePolicy,
    now_ms: u64,
) -> Evaluation {
    let age = freshness.age(now_ms);
    let ttl = freshness.ttl(now_ms);
    let ttl = if is_soft_purged { ttl.min(0) } else { ttl };
    let request = obeyed(request, policy);

    let reuse = if freshness.no_cache {
        Reuse::MustValidate {
            reason: MustValidate::ResponseNoCache,
            may_serve_on_error: false,
        }
    } else if let Some(reason) =
        request.and_then(|asked| wants_validation(freshness, asked, age, ttl))
    {
        Reuse::MustValidate {
            reason,
            may_serve_on_error: ttl > 0 || may_serve_on_error(freshness, request, policy, ttl),
        }
    } else if ttl > 0 {
        Reuse::Fresh
    } else {
        stale(freshness, request, policy, ttl)
    };

    Evaluation { age, ttl, reuse }
}

/// The directive of a client that requires validation, if there is one (RFC 9111 section 5.2.1).
fn wants_validation(
    freshness: &Freshness,
    asked: &CacheControl,
    age: u64,
    ttl: i64,
) -> Option<MustValidate> {
    // A reload does not validate an immutable response while it is fresh (RFC 8246 section 2.1).
    let is_settled = freshness.immutable && ttl > 0;
    if asked.no_cache && !is_settled {
        return Some(MustValidate::RequestNoCache);
    }
    // `max-stale` extends the lifetime and does not lift a limit on the age.
    if asked.max_age.is_some_and(|max| age > max) && !is_settled {
        return Some(MustValidate::RequestMaxAge);
    }
    let lacks = |least: u64| ttl < i64::try_from(least).unwrap_or(i64::MAX);
    asked
        .min_fresh
        .is_some_and(lacks)
        .then_some(MustValidate::RequestMinFresh)
}

fn stale(
    freshness: &Freshness,
    request: Option<&CacheControl>,
    policy: &CachePolicy,
    ttl: i64,
) -> Reuse {
    if freshness.must_revalidate {
        return Reuse::MustValidate {
            reason: MustValidate::MustRevalidate,
            may_serve_on_error: false,
        };
    }
    let late = ttl.unsigned_abs();
    let accepted = request.and_then(|asked| asked.max_stale);
    if accepted.is_some_and(|max| max >= DELTA_SECONDS_MAX || late <= max) {
        return Reuse::StaleAccepted;
    }
    let window = freshness
        .stale_while_revalidate
        .unwrap_or(policy.stale_while_revalidate.as_secs());
    Reuse::Stale {
        may_serve_while_revalidating: window > 0 && late <= window,
        may_serve_on_error: may_serve_on_error(freshness, request, policy, ttl),
    }
}

/// Whether a stale response may be used on an error (RFC 5861 section 4).
fn may_serve_on_error(
    freshness: &Freshness,
    request: Option<&CacheControl>,
    policy: &CachePolicy,
    ttl: i64,
) -> bool {
    let late = ttl.min(0).unsigned_abs();
    let response = freshness
        .stale_if_error
        .unwrap_or(policy.stale_if_error.as_secs());
    let window = request
        .and_then(|asked| asked.stale_if_error)
        .unwrap_or(response);
    !freshness.must_revalidate && window > 0 && late <= window
}

/// Whether a response that an earlier run of this node stored may be used after its validation
/// failed, although the node has not reached control and may lack a purge of it. The site must
/// allow it (`serve_unsynced`), and the response must be within its window of `stale-if-error`,
/// which the request may narrow. A response that must be validated may not be used (RFC 9111
/// section 4.2.4).
pub fn may_serve_unsynced(
    freshness: &Freshness,
    request: Option<&CacheControl>,
    policy: &CachePolicy,
    ttl: i64,
) -> bool {
    let request = obeyed(request, policy);
    policy.serve_unsynced
        && !freshness.no_cache
        && may_serve_on_error(freshness, None, policy, ttl)
        && may_serve_on_error(freshness, request, policy, ttl)
}

/// Whether a status from the origin is an error in place of which a stale response may be used (RFC
/// 5861 section 4).
pub fn is_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// The status to answer with when a stored response needed validation and the origin failed (RFC
/// 9111 section 5.2.2.2). `own` is the status of the failure without a stored response.
pub fn failure_status(reuse: Reuse, own: StatusCode) -> StatusCode {
    match reuse {
        Reuse::MustValidate {
            reason: MustValidate::MustRevalidate | MustValidate::ResponseNoCache,
            ..
        } => StatusCode::GATEWAY_TIMEOUT,
        _ => own,
    }
}

/// Whether the client accepts a stored response only; without one the answer is a 504 (RFC 9111
/// section 5.2.1.7).
pub fn is_only_if_cached(request: Option<&CacheControl>, policy: &CachePolicy) -> bool {
    obeyed(request, policy).is_some_and(|asked| asked.only_if_cached)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::freshness::Exchange;
    use crate::testing::{self, NOW_MS, map};

    const OBEY: CachePolicy = CachePolicy {
        default_ttl: None,
        heuristic: true,
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        obey_client: true,
        body_bytes_max: nearcast_fleet::units::Bytes(1 << 20),
        forward_fields: Vec::new(),
        key_fields: Vec::new(),
        store_set_cookie: false,
        serve_unsynced: true,
        finish_rest: nearcast_fleet::units::Bytes(1 << 20),
        finish_share: 0.5,
    };

    fn freshness(directives: &str) -> Freshness {
        let exchange = Exchange {
            requested_ms: NOW_MS,
            received_ms: NOW_MS,
        };
        Freshness::of(
            StatusCode::OK,
            &map(&[&format!("cache-control: {directives}")]),
            &OBEY,
            exchange,
        )
    }

    /// How a response with these directives stands after so many seconds, for a client with those.
    fn after(response: &str, seconds: u64, request: &str, policy: &CachePolicy) -> Evaluation {
        let asked = CacheControl::of_request(&map(&[&format!("cache-control: {request}")]));
        evaluate(
            &freshness(response),
            Some(&asked),
            false,
            policy,
            NOW_MS + seconds * 1000,
        )
    }

    const fn stale(swr: bool, sie: bool) -> Reuse {
        Reuse::Stale {
            may_serve_while_revalidating: swr,
            may_serve_on_error: sie,
        }
    }

    const fn must(reason: MustValidate, sie: bool) -> Reuse {
        Reuse::MustValidate {
            reason,
            may_serve_on_error: sie,
        }
    }

    #[test]
    fn responses_say_how_they_may_be_used() {
        // RFC 9111 sections 4.2.4 and 5.2.2, RFC 5861 sections 3 and 4. Directives, age, reuse.
        use MustValidate::{MustRevalidate, ResponseNoCache};
        let table = [
            ("max-age=10", 0, Reuse::Fresh),
            ("max-age=10", 9, Reuse::Fresh),
            ("max-age=10", 10, stale(false, false)),
            (
                "max-age=10, stale-while-revalidate=5",
                10,
                stale(true, false),
            ),
            (
                "max-age=10, stale-while-revalidate=5",
                15,
                stale(true, false),
            ),
            (
                "max-age=10, stale-while-revalidate=5",
                16,
                stale(false, false),
            ),
            (
                "max-age=10, stale-while-revalidate=0",
                10,
                stale(false, false),
            ),
            ("max-age=10, stale-if-error=5", 15, stale(false, true)),
            ("max-age=10, stale-if-error=5", 16, stale(false, false)),
            (
                "max-age=10, stale-while-revalidate=2, stale-if-error=5",
                12,
                stale(true, true),
            ),
            ("max-age=10, no-cache", 0, must(ResponseNoCache, false)),
            (
                "max-age=10, no-cache=\"a\"",
                0,
                must(ResponseNoCache, false),
            ),
            (
                "max-age=10, no-cache, stale-if-error=99",
                12,
                must(ResponseNoCache, false),
            ),
            (
                "max-age=10, must-revalidate, stale-if-error=99, stale-while-revalidate=99",
                9,
                Reuse::Fresh,
            ),
            (
                "max-age=10, must-revalidate, stale-if-error=99, stale-while-revalidate=99",
                10,
                must(MustRevalidate, false),
            ),
            (
                "max-age=10, proxy-revalidate, stale-if-error=99",
                10,
                must(MustRevalidate, false),
            ),
            // `s-maxage` forbids stale use unless a window of it is written beside it.
            ("s-maxage=10", 10, must(MustRevalidate, false)),
            ("s-maxage=10, stale-if-error=99", 10, stale(false, true)),
            (
                "s-maxage=10, stale-while-revalidate=99",
                10,
                stale(true, false),
            ),
            (
                "s-maxage=10, proxy-revalidate, stale-if-error=99",
                10,
                must(MustRevalidate, false),
            ),
            (
                "s-maxage=10, must-revalidate, stale-while-revalidate=99",
                10,
                must(MustRevalidate, false),
            ),
        ];
        for (response, seconds, expected) in table {
            assert_eq!(
                after(response, seconds, "", &CachePolicy::default()).reuse,
                expected,
                "{response} after {seconds}"
            );
        }
    }

    #[test]
    fn the_site_speaks_where_the_origin_does_not() {
        let policy = CachePolicy {
            stale_while_revalidate: Duration::from_secs(3),
            stale_if_error: Duration::from_secs(6),
            ..CachePolicy::default()
        };
        let table = [
            ("max-age=10", 13, stale(true, true)),
            ("max-age=10", 14, stale(false, true)),
            ("max-age=10", 17, stale(false, false)),
            (
                "max-age=10, stale-while-revalidate=1, stale-if-error=0",
                12,
                stale(false, false),
            ),
            (
                "max-age=10, must-revalidate",
                11,
                must(MustValidate::MustRevalidate, false),
            ),
            ("s-maxage=10", 11, must(MustValidate::MustRevalidate, false)),
            (
                "s-maxage=10, stale-while-revalidate=2",
                11,
                stale(true, false),
            ),
            ("s-maxage=10, stale-if-error=2", 11, stale(false, true)),
        ];
        for (response, seconds, expected) in table {
            assert_eq!(
                after(response, seconds, "", &policy).reuse,
                expected,
                "{response} after {seconds}"
            );
        }
    }

    #[test]
    fn clients_are_obeyed_behind_one_switch() {
        // RFC 9111 section 5.2.1 and RFC 8246 section 2.1. Response, age, request, reuse where
        // the site obeys clients, and where it does not.
        use MustValidate::{RequestMaxAge, RequestMinFresh, RequestNoCache};
        let table = [
            (
                "max-age=10",
                0,
                "no-cache",
                must(RequestNoCache, true),
                Reuse::Fresh,
            ),
            (
                "max-age=10",
                5,
                "max-age=0",
                must(RequestMaxAge, true),
                Reuse::Fresh,
            ),
            ("max-age=10", 5, "max-age=5", Reuse::Fresh, Reuse::Fresh),
            (
                "max-age=10",
                6,
                "max-age=5",
                must(RequestMaxAge, true),
                Reuse::Fresh,
            ),
            ("max-age=10", 5, "min-fresh=5", Reuse::Fresh, Reuse::Fresh),
            (
                "max-age=10",
                5,
                "min-fresh=6",
                must(RequestMinFresh, true),
                Reuse::Fresh,
            ),
            (
                "max-age=10",
                12,
                "max-stale",
                Reuse::StaleAccepted,
                stale(false, false),
            ),
            (
                "max-age=10",
                12,
                "max-stale=2",
                Reuse::StaleAccepted,
                stale(false, false),
            ),
            (
                "max-age=10",
                13,
                "max-stale=2",
                stale(false, false),
                stale(false, false),
            ),
            (
                "max-age=10",
                12,
                "max-stale=5, max-age=11",
                must(RequestMaxAge, false),
                stale(false, false),
            ),
            (
                "max-age=10, must-revalidate",
                12,
                "max-stale",
                must(MustValidate::MustRevalidate, false),
                must(MustValidate::MustRevalidate, false),
            ),
            (
                "max-age=10",
                12,
                "stale-if-error=5",
                stale(false, true),
                stale(false, false),
            ),
            (
                "max-age=10, no-cache",
                1,
                "max-stale",
                must(MustValidate::ResponseNoCache, false),
                must(MustValidate::ResponseNoCache, false),
            ),
            (
                "max-age=10, immutable",
                5,
                "no-cache",
                Reuse::Fresh,
                Reuse::Fresh,
            ),
            (
                "max-age=10, immutable",
                5,
                "max-age=0",
                Reuse::Fresh,
                Reuse::Fresh,
            ),
            (
                "max-age=10, immutable",
                11,
                "no-cache",
                must(RequestNoCache, false),
                stale(false, false),
            ),
        ];
        for (response, seconds, request, obeyed, ignored) in table {
            assert_eq!(
                after(response, seconds, request, &OBEY).reuse,
                obeyed,
                "{response} after {seconds} for {request}"
            );
            assert_eq!(
                after(response, seconds, request, &CachePolicy::default()).reuse,
                ignored,
                "{response} after {seconds} without {request}"
            );
        }
    }

    #[test]
    fn only_if_cached_is_for_clients_that_are_obeyed() {
        // RFC 9111 section 5.2.1.7.
        let asked = CacheControl::of_request(&map(&["cache-control: only-if-cached"]));
        assert!(is_only_if_cached(Some(&asked), &OBEY));
        assert!(!is_only_if_cached(Some(&asked), &CachePolicy::default()));
        assert!(
            !is_only_if_cached(Some(&CacheControl::default()), &OBEY)
                && !is_only_if_cached(None, &OBEY)
        );
    }

    #[test]
    fn without_the_newest_purges_only_what_may_be_stale_is_served_and_no_longer() {
        let site = |seconds| CachePolicy {
            stale_if_error: Duration::from_secs(seconds),
            ..OBEY
        };
        let off = CachePolicy {
            serve_unsynced: false,
            ..site(100)
        };
        let table = [
            // Response, seconds after it, request, policy.
            ("max-age=10", 5, "", site(100), true),
            ("max-age=10", 50, "", site(100), true),
            ("max-age=10", 111, "", site(100), false),
            ("max-age=10", 5, "", site(0), false),
            ("max-age=10, stale-if-error=5", 5, "", site(0), true),
            ("max-age=10, stale-if-error=5", 16, "", site(100), false),
            ("max-age=10", 5, "", off.clone(), false),
            ("max-age=10, stale-if-error=50", 5, "", off, false),
            ("max-age=10, no-cache", 5, "", site(100), false),
            ("max-age=10, must-revalidate", 5, "", site(100), false),
            ("max-age=10, proxy-revalidate", 5, "", site(100), false),
            ("s-maxage=10", 5, "", site(100), false),
            ("s-maxage=10, stale-if-error=50", 5, "", site(100), true),
            ("max-age=10", 50, "stale-if-error=20", site(100), false),
            ("max-age=10", 50, "stale-if-error=90", site(20), false),
        ];
        for (response, seconds, request, policy, expected) in table {
            let asked = CacheControl::of_request(&map(&[&format!("cache-control: {request}")]));
            let freshness = freshness(response);
            let ttl = freshness.ttl(NOW_MS + seconds * 1000);
            assert_eq!(
                may_serve_unsynced(&freshness, Some(&asked), &policy, ttl),
                expected,
                "{response} after {seconds} for {request:?}"
            );
        }
    }

    #[test]
    fn a_soft_purge_makes_stale_now_and_never_fresher() {
        let table = [
            ("max-age=10", 0, 0, stale(false, false)),
            (
                "max-age=10, stale-while-revalidate=5",
                0,
                0,
                stale(true, false),
            ),
            (
                "max-age=10, stale-while-revalidate=5",
                17,
                -7,
                stale(false, false),
            ),
            (
                "max-age=10, must-revalidate",
                0,
                0,
                must(MustValidate::MustRevalidate, false),
            ),
        ];
        for (response, seconds, ttl, expected) in table {
            let found = evaluate(
                &freshness(response),
                None,
                true,
                &OBEY,
                NOW_MS + seconds * 1000,
            );
            assert_eq!(
                (found.ttl, found.reuse),
                (ttl, expected),
                "{response} after {seconds}"
            );
            assert_eq!(
                found.age, seconds,
                "RFC 9111 section 5.1: its age stays true"
            );
        }
    }

    #[test]
    fn server_errors_count_and_client_errors_do_not() {
        // RFC 5861 section 4.
        for status in [500, 502, 503, 504] {
            assert!(
                is_error(StatusCode::from_u16(status).expect("valid")),
                "{status}"
            );
        }
        for status in [200, 304, 400, 403, 404, 410, 429, 501, 505] {
            assert!(
                !is_error(StatusCode::from_u16(status).expect("valid")),
                "{status}"
            );
        }
    }

    #[test]
    fn what_must_be_validated_and_cannot_is_a_504() {
        // RFC 9111 section 5.2.2.2.
        let own = StatusCode::BAD_GATEWAY;
        assert_eq!(
            failure_status(must(MustValidate::MustRevalidate, false), own),
            StatusCode::GATEWAY_TIMEOUT
        );
        assert_eq!(
            failure_status(must(MustValidate::ResponseNoCache, false), own),
            StatusCode::GATEWAY_TIMEOUT
        );
        assert_eq!(failure_status(stale(false, false), own), own);
    }

    #[test]
    fn forward_reason_tells_who_asked() {
        use MustValidate::*;
        assert!(
            [RequestNoCache, RequestMaxAge, RequestMinFresh]
                .into_iter()
                .all(MustValidate::is_required_by_client)
        );
        assert!(
            ![ResponseNoCache, MustRevalidate]
                .into_iter()
                .any(MustValidate::is_required_by_client)
        );
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn nothing_forbidden_is_ever_served_stale(
            response in testing::pieces(&["max-age=5", "s-maxage=9", "must-revalidate", "proxy-revalidate", "no-cache", "stale-if-error=50", "stale-while-revalidate=50", ",", ","]),
            request in testing::pieces(&["no-cache", "max-age=3", "min-fresh=4", "max-stale", "max-stale=9", "only-if-cached", ",", ","]),
            seconds in 0u64..100, is_soft in any::<bool>(), obey_client in any::<bool>(),
        ) {
            let mut fields = HeaderMap::new();
            fields.insert("cache-control", response);
            let directives = CacheControl::of_response(&fields);
            let exchange = Exchange { requested_ms: NOW_MS, received_ms: NOW_MS };
            let freshness = Freshness::of(StatusCode::OK, &fields, &OBEY, exchange);
            let mut asking = HeaderMap::new();
            asking.insert("cache-control", request);
            let asked = CacheControl::of_request(&asking);
            let policy = CachePolicy { obey_client, ..OBEY };
            let found = evaluate(&freshness, Some(&asked), is_soft, &policy, NOW_MS + seconds * 1000);
            let has_window = directives.stale_if_error.is_some() || directives.stale_while_revalidate.is_some();
            let forbids = directives.must_revalidate || directives.proxy_revalidate || directives.s_maxage.is_some() && !has_window;
            let is_used_stale = found.ttl <= 0 && (found.reuse.may_serve_now() || found.reuse.may_serve_on_error());
            prop_assert!(!(forbids && is_used_stale), "{directives:?} {found:?}");
            prop_assert!(!(directives.no_cache && found.reuse.may_serve_now()), "{directives:?} {found:?}");
            prop_assert!(found.reuse != Reuse::Fresh || found.ttl > 0);
            prop_assert!(!is_soft || found.reuse != Reuse::Fresh);
        }
    }
}
