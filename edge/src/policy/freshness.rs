//! Whether a response may be stored, and for how long it is fresh.
//!
//! Follows RFC 9111 section 3 (storing), 4.2 (freshness and age), RFC 9213 (targeted fields), RFC 5861, RFC 8246.

use http::header::{AGE, AUTHORIZATION, DATE, EXPIRES, LAST_MODIFIED, SET_COOKIE};
use http::{HeaderMap, Method, StatusCode};
use nearcast_fleet::config::CachePolicy;
use serde::{Deserialize, Serialize};

use super::conditional;
use super::fields::{self, CacheControl, DELTA_SECONDS_MAX};
use super::range::ContentRange;
use super::vary;

/// A guessed lifetime is this part of the time since the last change (RFC 9111 section 4.2.2).
pub const HEURISTIC_PART: u64 = 10;
/// Longest guessed lifetime, in seconds.
pub const HEURISTIC_MAX: u64 = 24 * 3600;

/// What of a request matters to storing: the one that was forwarded, with the client's fields.
#[derive(Debug, Clone, Copy)]
pub struct RequestFacts<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The client's fields.
    pub fields: &'a HeaderMap,
}

/// When the forward request was sent and its response head received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// Milliseconds after the Unix epoch.
    pub requested_ms: u64,
    /// Milliseconds after the Unix epoch.
    pub received_ms: u64,
}

/// Whether a response may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may, and this is all that later decisions on its age need.
    Store(Freshness),
    /// It may not, or it would be of no use.
    DoNotStore(NotStored),
}

/// Why a response is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotStored {
    /// Not a response to GET.
    Method,
    /// Its status says something of the request or the connection, not of the resource; or it is interim, or a 304.
    Status,
    /// `no-store` in the response.
    NoStore,
    /// `no-store` in the request, where clients are obeyed.
    RequestNoStore,
    /// `private`, with or without a list of fields.
    Private,
    /// The request had credentials and the response does not allow shared use.
    Authorization,
    /// `must-understand` with a status this cache does not know.
    MustUnderstand,
    /// `Vary: *`, or more fields in it than are looked at.
    Vary,
    /// It sets a cookie and does not say that it is public.
    SetCookie,
    /// Nothing says how long it is fresh.
    NoLifetime,
    /// Stale at once, and nothing to validate it with.
    Useless,
    /// A part without a strong validator, or without a valid `Content-Range`.
    Partial,
}

impl NotStored {
    /// For `detail` in `Cache-Status`, and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Status => "status",
            Self::NoStore => "no-store",
            Self::RequestNoStore => "request no-store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::MustUnderstand => "must-understand",
            Self::Vary => "vary",
            Self::SetCookie => "set-cookie",
            Self::NoLifetime => "no freshness information",
            Self::Useless => "stale at once",
            Self::Partial => "partial without a strong validator",
        }
    }
}

/// Where a lifetime comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Basis {
    /// A targeted field.
    Targeted,
    /// `s-maxage`.
    SMaxage,
    /// `max-age`.
    MaxAge,
    /// `Expires` minus `Date`.
    Expires,
    /// Guessed from `Last-Modified`.
    Heuristic,
    /// The site's default.
    Default,
    /// Nothing: it is stale, and good for validation only.
    Nothing,
}

/// All that decides on a stored response's age and use; small, made once, kept with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freshness {
    /// Seconds that it is fresh, from when it was made.
    pub lifetime: u64,
    /// Where that comes from.
    pub basis: Basis,
    /// Age in seconds when it was received (`corrected_initial_age`, RFC 9111 section 4.2.3).
    pub initial_age: u64,
    /// When it was received.
    pub received_ms: u64,
    /// `stale-while-revalidate` in seconds; the site's own where `None`.
    pub stale_while_revalidate: Option<u64>,
    /// `stale-if-error` in seconds; the site's own where `None`.
    pub stale_if_error: Option<u64>,
    /// `must-revalidate`, `proxy-revalidate` or what implies one: never to be used stale (RFC 9111 section 4.2.4).
    pub must_revalidate: bool,
    /// `no-cache`: to be validated before each use.
    pub no_cache: bool,
    /// `immutable`: not to be validated for a client's reload while fresh (RFC 8246).
    pub immutable: bool,
}

impl Freshness {
    /// What the fields of a stored response say. Also right after a 304 has freshened it.
    pub fn of(status: StatusCode, fields: &HeaderMap, policy: &CachePolicy, exchange: Exchange) -> Self {
        let directives = CacheControl::of_response(fields);
        let (lifetime, basis) = lifetime(&directives, status, fields, policy, exchange.received_ms);
        let is_shared_only = directives.s_maxage.is_some();
        Self {
            lifetime,
            basis,
            initial_age: initial_age(fields, exchange),
            received_ms: exchange.received_ms,
            stale_while_revalidate: directives.stale_while_revalidate,
            stale_if_error: directives.stale_if_error,
            must_revalidate: directives.must_revalidate || directives.proxy_revalidate || is_shared_only,
            no_cache: directives.no_cache,
            immutable: directives.immutable,
        }
    }

    /// Seconds since it was made (`current_age`, RFC 9111 section 4.2.3).
    pub fn age(&self, now_ms: u64) -> u64 {
        self.initial_age.saturating_add(now_ms.saturating_sub(self.received_ms) / 1000)
    }

    /// Seconds that it is still fresh; zero or less when it is stale.
    pub fn ttl(&self, now_ms: u64) -> i64 {
        i64::try_from(self.lifetime).unwrap_or(i64::MAX).saturating_sub_unsigned(self.age(now_ms))
    }

    /// Whether it is fresh, which at an age of its lifetime it is no more.
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        self.lifetime > self.age(now_ms)
    }
}

/// Whether a response may be stored (RFC 9111 section 3), before its body is known to be whole.
///
/// A response with an incomplete body is never to be stored as a whole one (section 3.3): that is for who reads it.
pub fn judge(request: RequestFacts<'_>, status: StatusCode, fields: &HeaderMap, policy: &CachePolicy, exchange: Exchange) -> Verdict {
    let directives = CacheControl::of_response(fields);
    let refusals = [
        refused_by_request(request, &directives, policy),
        refused_by_status(status, fields, &directives),
        refused_by_fields(fields, &directives),
    ];
    if let Some(reason) = refusals.into_iter().flatten().next() {
        return Verdict::DoNotStore(reason);
    }
    let freshness = Freshness::of(status, fields, policy, exchange);
    match refused_as_useless(fields, &freshness, policy) {
        Some(reason) => Verdict::DoNotStore(reason),
        None => Verdict::Store(freshness),
    }
}

fn refused_by_request(request: RequestFacts<'_>, directives: &CacheControl, policy: &CachePolicy) -> Option<NotStored> {
    if *request.method != Method::GET {
        return Some(NotStored::Method);
    }
    if policy.obey_client && CacheControl::of_request(request.fields).no_store {
        return Some(NotStored::RequestNoStore);
    }
    // RFC 9111 section 3.5.
    let allows_shared = directives.public || directives.s_maxage.is_some() || directives.must_revalidate;
    (request.fields.contains_key(AUTHORIZATION) && !allows_shared).then_some(NotStored::Authorization)
}

fn refused_by_status(status: StatusCode, fields: &HeaderMap, directives: &CacheControl) -> Option<NotStored> {
    if !is_of_resource(status) {
        return Some(NotStored::Status);
    }
    if directives.must_understand && !is_understood(status) {
        return Some(NotStored::MustUnderstand);
    }
    let is_part = status == StatusCode::PARTIAL_CONTENT;
    let can_be_joined =
        || conditional::strong_tag(fields).is_some() && matches!(ContentRange::of(fields), Some(ContentRange::Bytes { .. }));
    (is_part && !can_be_joined()).then_some(NotStored::Partial)
}

fn refused_by_fields(fields: &HeaderMap, directives: &CacheControl) -> Option<NotStored> {
    // With a status that is understood `must-understand` lifts `no-store` (RFC 9111 section 5.2.2.3).
    if directives.no_store && !directives.must_understand {
        return Some(NotStored::NoStore);
    }
    if directives.private {
        return Some(NotStored::Private);
    }
    if vary::names(fields).is_none() {
        return Some(NotStored::Vary);
    }
    // This cache's own policy: a cookie is for one client unless the origin clearly says otherwise.
    let is_for_all = directives.public || directives.is_targeted;
    (fields.contains_key(SET_COOKIE) && !is_for_all).then_some(NotStored::SetCookie)
}

fn refused_as_useless(fields: &HeaderMap, freshness: &Freshness, policy: &CachePolicy) -> Option<NotStored> {
    let has_validator = conditional::has_validator(fields);
    if freshness.basis == Basis::Nothing && !(freshness.no_cache && has_validator) {
        return Some(NotStored::NoLifetime);
    }
    let stale_use = freshness.stale_while_revalidate.unwrap_or(policy.stale_while_revalidate.as_secs())
        + freshness.stale_if_error.unwrap_or(policy.stale_if_error.as_secs());
    let is_useful_stale = policy.obey_client || (stale_use > 0 && !freshness.must_revalidate);
    let is_usable_now = freshness.lifetime > freshness.initial_age && !freshness.no_cache;
    (!is_usable_now && !has_validator && !is_useful_stale).then_some(NotStored::Useless)
}

/// Whether a status may be stored without explicit freshness (RFC 9110 section 15.1).
pub fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Whether this cache knows what a final status means for caching (RFC 9111 section 3).
pub fn is_understood(status: StatusCode) -> bool {
    let others = matches!(status.as_u16(), 302 | 303 | 307 | 400 | 401 | 403 | 409 | 422 | 451 | 500 | 502 | 503 | 504);
    is_heuristically_cacheable(status) || others
}

/// Whether a status speaks of the resource. Those that speak of how the request was made or sent are never stored,
/// whatever they say: one client's long fields or broken connection must not become everybody's answer.
fn is_of_resource(status: StatusCode) -> bool {
    !status.is_informational()
        && !matches!(status.as_u16(), 304 | 407 | 408 | 412 | 413 | 416 | 417 | 421 | 425 | 426 | 428 | 429 | 431 | 511)
}

/// Lifetime in seconds and where it comes from (RFC 9111 section 4.2.1).
fn lifetime(directives: &CacheControl, status: StatusCode, fields: &HeaderMap, policy: &CachePolicy, received_ms: u64) -> (u64, Basis) {
    if let Some(seconds) = directives.s_maxage {
        return (seconds, if directives.is_targeted { Basis::Targeted } else { Basis::SMaxage });
    }
    if let Some(seconds) = directives.max_age {
        return (seconds, if directives.is_targeted { Basis::Targeted } else { Basis::MaxAge });
    }
    let made = fields::date(fields, DATE).unwrap_or(received_ms / 1000);
    if !directives.is_targeted && fields.contains_key(EXPIRES) {
        // `0`, several that differ and anything else invalid are in the past.
        let expires = fields::date(fields, EXPIRES).unwrap_or(0);
        return (expires.saturating_sub(made), Basis::Expires);
    }
    // A targeted field takes Cache-Control out of the picture, and with it a `no-store` there: then only what says so is stored.
    let may_guess = directives.public || (is_heuristically_cacheable(status) && !directives.is_targeted);
    let modified = fields::date(fields, LAST_MODIFIED).filter(|_| policy.heuristic && may_guess);
    if let Some(modified) = modified {
        return ((made.saturating_sub(modified) / HEURISTIC_PART).min(HEURISTIC_MAX), Basis::Heuristic);
    }
    match policy.default_ttl.filter(|_| may_guess) {
        Some(default) => (default.as_secs().min(DELTA_SECONDS_MAX), Basis::Default),
        None => (0, Basis::Nothing),
    }
}

/// `corrected_initial_age` in seconds (RFC 9111 section 4.2.3).
fn initial_age(fields: &HeaderMap, exchange: Exchange) -> u64 {
    let made = fields::date(fields, DATE);
    let apparent = made.map_or(0, |made| (exchange.received_ms / 1000).saturating_sub(made));
    let delay = exchange.received_ms.saturating_sub(exchange.requested_ms) / 1000;
    apparent.max(age_field(fields).saturating_add(delay))
}

/// The first valid value of `Age`, else 0 (RFC 9111 section 5.1).
pub fn age_field(fields: &HeaderMap) -> u64 {
    fields::list(fields, AGE).find_map(fields::delta_seconds).unwrap_or(0)
}
