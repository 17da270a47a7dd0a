//! Whether a stored response may be used now.
//!
//! Follows RFC 9111 section 4, 4.2.4 (stale) and 5.2.1 (what clients ask for), RFC 5861 and RFC 8246.

use http::StatusCode;
use nearcast_fleet::config::CachePolicy;

use super::fields::{CacheControl, DELTA_SECONDS_MAX};
use super::freshness::Freshness;

/// How a stored response stands at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Seconds, for `Age`.
    pub age: u64,
    /// Seconds that it is still fresh; zero or less when stale. For `Cache-Status`.
    pub ttl: i64,
    /// What may be done with it.
    pub reuse: Reuse,
}

/// What may be done with a stored response that a request has selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Use it.
    Fresh,
    /// It is stale, and the client accepts that (`max-stale`): use it.
    StaleAccepted,
    /// It is stale. Use it at once where it may be served while revalidating, and validate behind; else validate first,
    /// and use it if that fails and it may be served on error.
    Stale {
        /// Within `stale-while-revalidate`.
        may_serve_while_revalidating: bool,
        /// Within `stale-if-error`.
        may_serve_on_error: bool,
    },
    /// Validate it first.
    MustValidate {
        /// Who says so.
        reason: MustValidate,
        /// Whether it may be used when that fails.
        may_serve_on_error: bool,
    },
}

impl Reuse {
    /// Whether it may be used when the origin cannot be asked.
    pub fn may_serve_on_error(self) -> bool {
        match self {
            Self::Fresh | Self::StaleAccepted => true,
            Self::Stale { may_serve_on_error, .. } | Self::MustValidate { may_serve_on_error, .. } => may_serve_on_error,
        }
    }

    /// Whether it may be used before the origin is asked.
    pub fn may_serve_now(self) -> bool {
        matches!(self, Self::Fresh | Self::StaleAccepted | Self::Stale { may_serve_while_revalidating: true, .. })
    }
}

/// Why a stored response is to be validated before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MustValidate {
    /// `no-cache` in the response.
    ResponseNoCache,
    /// It is stale, and `must-revalidate`, `proxy-revalidate` or `s-maxage` forbids its use.
    MustRevalidate,
    /// `no-cache` in the request.
    RequestNoCache,
    /// Older than the request's `max-age`.
    RequestMaxAge,
    /// Not fresh for as long as the request's `min-fresh`.
    RequestMinFresh,
}

impl MustValidate {
    /// Whether the client asks for it, so that the forward reason is `request` and not `stale` (RFC 9211 section 2.2).
    pub fn is_of_request(self) -> bool {
        matches!(self, Self::RequestNoCache | Self::RequestMaxAge | Self::RequestMinFresh)
    }
}

/// How a stored response stands. `request` holds the client's directives, `None` where they are not looked at;
/// `is_soft_purged` makes it stale now, and never fresher than it is.
pub fn standing(
    freshness: &Freshness,
    request: Option<&CacheControl>,
    is_soft_purged: bool,
    policy: &CachePolicy,
    now_ms: u64,
) -> Standing {
    let age = freshness.age(now_ms);
    let ttl = freshness.ttl(now_ms);
    let ttl = if is_soft_purged { ttl.min(0) } else { ttl };
    let request = request.filter(|_| policy.obey_client);
    let reuse = if freshness.no_cache {
        Reuse::MustValidate { reason: MustValidate::ResponseNoCache, may_serve_on_error: false }
    } else if let Some(reason) = request.and_then(|asked| wants_validation(freshness, asked, age, ttl)) {
        Reuse::MustValidate { reason, may_serve_on_error: ttl > 0 || may_serve_on_error(freshness, request, policy, ttl) }
    } else if ttl > 0 {
        Reuse::Fresh
    } else {
        stale(freshness, request, policy, ttl)
    };
    Standing { age, ttl, reuse }
}

/// What a client's directives say against a stored response (RFC 9111 section 5.2.1).
fn wants_validation(freshness: &Freshness, asked: &CacheControl, age: u64, ttl: i64) -> Option<MustValidate> {
    // A reload does not change what is said never to change (RFC 8246 section 2.1).
    let is_settled = freshness.immutable && ttl > 0;
    if asked.no_cache && !is_settled {
        return Some(MustValidate::RequestNoCache);
    }
    // An acceptance of staleness speaks of the lifetime, and does not lift the limit on age.
    if asked.max_age.is_some_and(|max| age > max) && !is_settled {
        return Some(MustValidate::RequestMaxAge);
    }
    let lacks = |least: u64| ttl < i64::try_from(least).unwrap_or(i64::MAX);
    asked.min_fresh.is_some_and(lacks).then_some(MustValidate::RequestMinFresh)
}

fn stale(freshness: &Freshness, request: Option<&CacheControl>, policy: &CachePolicy, ttl: i64) -> Reuse {
    if freshness.must_revalidate {
        return Reuse::MustValidate { reason: MustValidate::MustRevalidate, may_serve_on_error: false };
    }
    let late = ttl.unsigned_abs();
    let accepted = request.and_then(|asked| asked.max_stale);
    if accepted.is_some_and(|max| max >= DELTA_SECONDS_MAX || late <= max) {
        return Reuse::StaleAccepted;
    }
    let window = freshness.stale_while_revalidate.unwrap_or(policy.stale_while_revalidate.as_secs());
    Reuse::Stale {
        may_serve_while_revalidating: window > 0 && late <= window,
        may_serve_on_error: may_serve_on_error(freshness, request, policy, ttl),
    }
}

/// Whether a stale response may be used on an error (RFC 5861 section 4).
fn may_serve_on_error(freshness: &Freshness, request: Option<&CacheControl>, policy: &CachePolicy, ttl: i64) -> bool {
    let late = ttl.min(0).unsigned_abs();
    let response = freshness.stale_if_error.unwrap_or(policy.stale_if_error.as_secs());
    let window = request.and_then(|asked| asked.stale_if_error).unwrap_or(response);
    !freshness.must_revalidate && window > 0 && late <= window
}

/// Whether an origin's answer is an error behind which a stale response may be used (RFC 5861 section 4).
pub fn is_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// The status of the answer where a stored response needed validation and the origin could not be asked; `own` is what
/// the failure would be without one (RFC 9111 section 5.2.2.2).
pub fn failure_status(reuse: Reuse, own: StatusCode) -> StatusCode {
    match reuse {
        Reuse::MustValidate { reason: MustValidate::MustRevalidate | MustValidate::ResponseNoCache, .. } => StatusCode::GATEWAY_TIMEOUT,
        _ => own,
    }
}

/// Whether a request may be answered from the store only; a failure to do so is a 504 (RFC 9111 section 5.2.1.7).
pub fn is_only_if_cached(request: Option<&CacheControl>, policy: &CachePolicy) -> bool {
    policy.obey_client && request.is_some_and(|asked| asked.only_if_cached)
}
