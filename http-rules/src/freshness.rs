//! Whether a response may be stored, and for how long it is fresh.
//!
//! Follows RFC 9111 section 3 (storing), 4.2 (freshness and age), RFC 9213 (targeted fields), RFC
//! 5861, RFC 8246.

use http::header::{
    ACCEPT, AGE, AUTHORIZATION, COOKIE, DATE, EXPIRES, LAST_MODIFIED, SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use nearcast_fleet::config::CachePolicy;
use serde::{Deserialize, Serialize};

use crate::conditional;
use crate::fields::{self, CacheControl, DELTA_SECONDS_MAX};
use crate::invalidate;
use crate::range::ContentRange;
use crate::request_fields::{self, Sight, Unusual};
use crate::vary;

/// A guessed lifetime is this part of the time since the last change (RFC 9111 section 4.2.2).
const HEURISTIC_PART: u64 = 10;
/// Longest guessed lifetime, in seconds.
const HEURISTIC_MAX: u64 = 24 * 3600;
/// From dates before this one no lifetime is guessed: they stand for "unknown" (1970 and 1980 are
/// the zeros of common clocks). 1990-01-01T00:00:00Z, before there was HTTP.
const PLAUSIBLE_SINCE: u64 = 631_152_000;
/// How far a `Date` may be from this cache's clock for a guess, in seconds.
const CLOCK_DIFFERENCE_MAX: u64 = 24 * 3600;

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

/// Why a response is not stored. The one word for it in `Cache-Status`, the log and the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotStored {
    /// Not a response to GET.
    Method,
    /// Its status says something of the request or the connection, not of the resource; or it is
    /// interim, or a 304.
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
    /// `Vary: *`.
    VaryStar,
    /// More fields in `Vary` than are looked at, or one that the edge makes for each request.
    Vary,
    /// It sets a cookie and does not say that it is public.
    SetCookie,
    /// The request had fields that may have brought it about, and neither `Vary` nor the site names
    /// them.
    RequestFields,
    /// The request had a cookie or credentials, and only a guess or the site's default would say
    /// how long it is fresh.
    Credentials,
    /// Nothing says how long it is fresh.
    NoLifetime,
    /// Stale at once, and nothing to validate it with.
    Useless,
    /// A part without a strong validator, or without a valid `Content-Range`.
    Partial,
    /// It has more tags than are kept, or one that no purge can name.
    Tags,
    /// Its body is larger than the site's `body_max` or the node's store allows.
    TooLarge,
    /// The request had a body.
    RequestBody,
    /// The request's path can be read in more than one way (dot segments, a backslash, a broken
    /// escape).
    AmbiguousPath,
    /// An error, while what is stored may still serve in its place.
    ErrorBesideStored,
    /// A purge or an unsafe request covers it, which came after it was asked for.
    Overtaken,
    /// Answers to such requests could not be shared lately, so it went to its client as it came.
    Unshared,
    /// It ended early, and the rest of it cannot be asked for.
    Incomplete,
    /// The request asked for a WebSocket, and the origin answered it otherwise.
    Upgrade,
}

impl NotStored {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 24] = [
        Self::Method,
        Self::Status,
        Self::NoStore,
        Self::RequestNoStore,
        Self::Private,
        Self::Authorization,
        Self::MustUnderstand,
        Self::VaryStar,
        Self::Vary,
        Self::SetCookie,
        Self::RequestFields,
        Self::Credentials,
        Self::NoLifetime,
        Self::Useless,
        Self::Partial,
        Self::Tags,
        Self::TooLarge,
        Self::RequestBody,
        Self::AmbiguousPath,
        Self::ErrorBesideStored,
        Self::Overtaken,
        Self::Unshared,
        Self::Incomplete,
        Self::Upgrade,
    ];

    /// A token (RFC 9110 section 5.6.2), for `detail` in `Cache-Status`, the metric's label and the
    /// log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Status => "status",
            Self::NoStore => "no-store",
            Self::RequestNoStore => "request-no-store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::MustUnderstand => "must-understand",
            Self::VaryStar => "vary-star",
            Self::Vary => "vary",
            Self::SetCookie => "set-cookie",
            Self::RequestFields => "request-field",
            Self::Credentials => "credentials",
            Self::NoLifetime => "no-freshness",
            Self::Useless => "stale-at-once",
            Self::Partial => "partial",
            Self::Tags => "tags",
            Self::TooLarge => "too-large",
            Self::RequestBody => "request-body",
            Self::AmbiguousPath => "ambiguous-path",
            Self::ErrorBesideStored => "error-beside-stored",
            Self::Overtaken => "overtaken",
            Self::Unshared => "unshared",
            Self::Incomplete => "incomplete",
            Self::Upgrade => "upgrade",
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
    /// Age in seconds that its origin gave it, without the time of the exchange.
    pub age_when_sent: u64,
    /// When it was received.
    pub received_ms: u64,
    /// `stale-while-revalidate` in seconds; the site's own where `None`.
    pub stale_while_revalidate: Option<u64>,
    /// `stale-if-error` in seconds; the site's own where `None`.
    pub stale_if_error: Option<u64>,
    /// `must-revalidate`, `proxy-revalidate` or what implies one: never to be used stale (RFC 9111
    /// section 4.2.4).
    pub must_revalidate: bool,
    /// `no-cache`: to be validated before each use.
    pub no_cache: bool,
    /// `immutable`: not to be validated for a client's reload while fresh (RFC 8246).
    pub immutable: bool,
}

impl Freshness {
    /// What the fields of a stored response say. Also right after a 304 has freshened it.
    pub fn of(
        status: StatusCode,
        fields: &HeaderMap,
        policy: &CachePolicy,
        exchange: Exchange,
    ) -> Self {
        let directives = CacheControl::of_response(fields);
        let (lifetime, basis) = lifetime(&directives, status, fields, policy, exchange.received_ms);
        let forbids_stale = directives.must_revalidate || directives.proxy_revalidate;
        // By RFC 9111 section 5.2.2.10 `s-maxage` forbids stale use as `proxy-revalidate` does. An
        // origin that writes a window of stale use beside it plainly means it; the site's own
        // windows do not count.
        let has_window =
            directives.stale_while_revalidate.is_some() || directives.stale_if_error.is_some();
        let is_shared_only = directives.s_maxage.is_some() && !forbids_stale;
        let window = |said: Option<u64>| {
            if is_shared_only {
                Some(said.unwrap_or(0))
            } else {
                said
            }
        };
        Self {
            lifetime,
            basis,
            initial_age: initial_age(fields, exchange),
            age_when_sent: age_when_sent(fields, exchange),
            received_ms: exchange.received_ms,
            stale_while_revalidate: window(directives.stale_while_revalidate),
            stale_if_error: window(directives.stale_if_error),
            must_revalidate: forbids_stale || is_shared_only && !has_window,
            no_cache: directives.no_cache,
            immutable: directives.immutable,
        }
    }

    /// Seconds since it was made (`current_age`, RFC 9111 section 4.2.3).
    pub fn age(&self, now_ms: u64) -> u64 {
        self.initial_age
            .saturating_add(now_ms.saturating_sub(self.received_ms) / 1000)
    }

    /// Seconds that it is still fresh; zero or less when it is stale.
    pub fn ttl(&self, now_ms: u64) -> i64 {
        i64::try_from(self.lifetime)
            .unwrap_or(i64::MAX)
            .saturating_sub_unsigned(self.age(now_ms))
    }

    /// Whether it may be given to a request that waited for it, even if it was stale when it came:
    /// it has a lifetime, it may be used without validation, and only a slow origin made it too old
    /// where it must not be used stale. Each who waited would have got the same, or later.
    pub fn is_for_those_who_waited(&self) -> bool {
        self.lifetime > 0
            && !self.no_cache
            && (!self.must_revalidate || self.lifetime > self.age_when_sent)
    }

    /// Whether it is fresh, which at an age of its lifetime it is no more.
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        self.lifetime > self.age(now_ms)
    }
}

/// Whether a response may be stored (RFC 9111 section 3), before its body is known to be whole.
///
/// A response with an incomplete body is never to be stored as a whole one (section 3.3): that is
/// for who reads it.
pub fn judge(
    request: RequestFacts<'_>,
    status: StatusCode,
    fields: &HeaderMap,
    policy: &CachePolicy,
    exchange: Exchange,
) -> Verdict {
    let directives = CacheControl::of_response(fields);
    let refusals = [
        refused_by_request(request, &directives, policy),
        refused_by_status(request, status, fields, &directives, exchange.received_ms),
        refused_by_fields(fields, &directives),
        refused_as_brought_about(request, status, fields, policy),
    ];
    if let Some(reason) = refusals.into_iter().flatten().next() {
        return Verdict::DoNotStore(reason);
    }
    let freshness = Freshness::of(status, fields, policy, exchange);
    // What is validated before each use needs no lifetime.
    if matches!(freshness.basis, Basis::Heuristic | Basis::Default)
        && !freshness.no_cache
        && !may_guess_for(request, fields, policy)
    {
        return Verdict::DoNotStore(NotStored::Credentials);
    }
    match refused_as_useless(fields, &freshness, policy) {
        Some(reason) => Verdict::DoNotStore(reason),
        None => Verdict::Store(freshness),
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
    if policy.obey_client && CacheControl::of_request(request.fields).no_store {
        return Some(NotStored::RequestNoStore);
    }
    // RFC 9111 section 3.5.
    let allows_shared =
        directives.public || directives.s_maxage.is_some() || directives.must_revalidate;
    (request.fields.contains_key(AUTHORIZATION) && !allows_shared)
        .then_some(NotStored::Authorization)
}

/// What a request's own fields may have brought about is nobody else's, and errors all the more: a
/// field that is too long, or a cookie that is broken, must not become everybody's error.
fn refused_as_brought_about(
    request: RequestFacts<'_>,
    status: StatusCode,
    fields: &HeaderMap,
    policy: &CachePolicy,
) -> Option<NotStored> {
    let vary = vary::names(fields).unwrap_or_default();
    let is_told_apart = |name: &HeaderName| {
        !request.fields.contains_key(name)
            || vary.contains(name)
            || request_fields::is_listed(name, policy)
    };
    let is_error = status.is_client_error() || status.is_server_error();
    // These speak of the resource, whoever asks.
    let is_of_anybody = matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE);
    let may_be_own = !Unusual::of(request.fields, policy).are_varied_on(&vary)
        || is_error && request_fields::may_be_refused(request.fields)
        || is_error && !is_of_anybody && !(is_told_apart(&COOKIE) && is_told_apart(&AUTHORIZATION));
    may_be_own.then_some(NotStored::RequestFields)
}

/// Whether a lifetime that nobody said may be given to the answer of a request (RFC 9111 section
/// 4.2.2 leaves it to the cache): not where a cookie or credentials may have made it one client's
/// own.
fn may_guess_for(request: RequestFacts<'_>, fields: &HeaderMap, policy: &CachePolicy) -> bool {
    let vary = vary::names(fields).unwrap_or_default();
    [COOKIE, AUTHORIZATION].iter().all(|name| {
        !request.fields.contains_key(name)
            || vary.contains(name)
            || request_fields::is_listed(name, policy)
    })
}

fn refused_by_status(
    request: RequestFacts<'_>,
    status: StatusCode,
    fields: &HeaderMap,
    directives: &CacheControl,
    received_ms: u64,
) -> Option<NotStored> {
    if !is_of_resource(status) {
        return Some(NotStored::Status);
    }
    if directives.must_understand && !is_understood(status) {
        return Some(NotStored::MustUnderstand);
    }
    // What was not acceptable to one client may be to the next, unless all that it may have
    // disliked is in `Vary`.
    let is_told_apart = |vary: Vec<HeaderName>| {
        let mut said = request
            .fields
            .keys()
            .filter(|name| name.as_str().starts_with("accept"));
        vary.contains(&ACCEPT) && said.all(|name| vary.contains(name))
    };
    if status == StatusCode::NOT_ACCEPTABLE && !vary::names(fields).is_some_and(is_told_apart) {
        return Some(NotStored::Status);
    }
    let is_part = status == StatusCode::PARTIAL_CONTENT;
    let can_be_joined = || {
        let has_range = matches!(ContentRange::of(fields), Some(ContentRange::Bytes { .. }));
        has_range && conditional::StrongValidator::of(fields, received_ms).is_some()
    };
    (is_part && !can_be_joined()).then_some(NotStored::Partial)
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
    // What the edge makes for each request anew selects nothing for the next one.
    let selects = |names: Vec<HeaderName>| {
        names
            .iter()
            .all(|name| request_fields::sight(name) != Sight::Edge)
    };
    if fields::list(fields, VARY).any(|member| member == b"*") {
        return Some(NotStored::VaryStar);
    }
    if !vary::names(fields).is_some_and(selects) {
        return Some(NotStored::Vary);
    }
    if invalidate::tags(fields).is_err() {
        return Some(NotStored::Tags);
    }
    // This cache's own policy: a cookie is for one client unless the origin clearly says otherwise.
    let is_for_all = directives.public || directives.is_targeted;
    (fields.contains_key(SET_COOKIE) && !is_for_all).then_some(NotStored::SetCookie)
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
    // Also one that is stale when it comes has those to serve who waited for it.
    let is_usable_now = freshness.lifetime > 0 && !freshness.no_cache;
    (!is_usable_now && !has_validator && !is_useful_stale).then_some(NotStored::Useless)
}

/// Whether a status may be stored without explicit freshness (RFC 9110 section 15.1).
fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501
    )
}

/// Whether this cache knows what a final status means for caching (RFC 9111 section 3).
pub fn is_understood(status: StatusCode) -> bool {
    let others = matches!(
        status.as_u16(),
        302 | 303 | 307 | 400 | 401 | 403 | 409 | 422 | 451 | 500 | 502 | 503 | 504
    );
    is_heuristically_cacheable(status) || others
}

/// Whether a status speaks of the resource. Those that speak of how the request was made or sent
/// are never stored, whatever they say: one client's long fields or broken connection must not
/// become everybody's answer.
fn is_of_resource(status: StatusCode) -> bool {
    !status.is_informational()
        && !matches!(
            status.as_u16(),
            304 | 407 | 408 | 412 | 413 | 416 | 417 | 421 | 425 | 426 | 428 | 429 | 431 | 508 | 511
        )
}

/// Lifetime in seconds and where it comes from (RFC 9111 section 4.2.1).
fn lifetime(
    directives: &CacheControl,
    status: StatusCode,
    fields: &HeaderMap,
    policy: &CachePolicy,
    received_ms: u64,
) -> (u64, Basis) {
    if let Some(seconds) = directives.s_maxage {
        return (
            seconds,
            if directives.is_targeted {
                Basis::Targeted
            } else {
                Basis::SMaxage
            },
        );
    }
    if let Some(seconds) = directives.max_age {
        return (
            seconds,
            if directives.is_targeted {
                Basis::Targeted
            } else {
                Basis::MaxAge
            },
        );
    }
    let made = fields::date(fields, DATE).unwrap_or(received_ms / 1000);
    if !directives.is_targeted && fields.contains_key(EXPIRES) {
        // `0`, several that differ and anything else invalid are in the past.
        let expires = fields::date(fields, EXPIRES).unwrap_or(0);
        return (expires.saturating_sub(made), Basis::Expires);
    }
    // A targeted field takes Cache-Control out of the picture, and with it a `no-store` there: then
    // only what says so is stored.
    let may_guess =
        directives.public || (is_heuristically_cacheable(status) && !directives.is_targeted);
    let is_plausible = |modified: &u64| {
        (PLAUSIBLE_SINCE..=made).contains(modified)
            && made.abs_diff(received_ms / 1000) <= CLOCK_DIFFERENCE_MAX
    };
    let modified = fields::date(fields, LAST_MODIFIED).filter(is_plausible);
    if let Some(modified) = modified.filter(|_| policy.heuristic && may_guess) {
        return (
            (made.saturating_sub(modified) / HEURISTIC_PART).min(HEURISTIC_MAX),
            Basis::Heuristic,
        );
    }
    match policy.default_ttl.filter(|_| may_guess) {
        Some(default) => (default.as_secs().min(DELTA_SECONDS_MAX), Basis::Default),
        None => (0, Basis::Nothing),
    }
}

/// The greater of the age that the fields tell and the time since their `Date` when the request was
/// sent, in seconds.
fn age_when_sent(fields: &HeaderMap, exchange: Exchange) -> u64 {
    let apparent = fields::date(fields, DATE).map_or(0, |made| {
        (exchange.requested_ms / 1000).saturating_sub(made)
    });
    apparent.max(age_field(fields))
}

/// `corrected_initial_age` in seconds (RFC 9111 section 4.2.3).
fn initial_age(fields: &HeaderMap, exchange: Exchange) -> u64 {
    let made = fields::date(fields, DATE);
    let apparent = made.map_or(0, |made| (exchange.received_ms / 1000).saturating_sub(made));
    let delay = exchange.received_ms.saturating_sub(exchange.requested_ms) / 1000;
    apparent.max(age_field(fields).saturating_add(delay))
}

/// The first valid value of `Age`, else 0 (RFC 9111 section 5.1).
fn age_field(fields: &HeaderMap) -> u64 {
    fields::list(fields, AGE)
        .find_map(fields::delta_seconds)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
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
        match judge(
            RequestFacts {
                method,
                fields: &request,
            },
            status,
            &response,
            policy,
            NOW,
        ) {
            Verdict::Store(freshness) => Ok(freshness),
            Verdict::DoNotStore(reason) => Err(reason),
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
    fn nothing_is_guessed_from_dates_that_cannot_be() {
        let now = format!("date: {}", date(0));
        let table = [
            (date(-1000), now.clone(), 100),
            (date(1), now.clone(), 77),
            ("Thu, 01 Jan 1970 00:00:00 GMT".to_owned(), now.clone(), 77),
            ("Tue, 01 Jan 1980 00:00:00 GMT".to_owned(), now, 77),
            (date(-1000), format!("date: {}", date(3 * 86_400)), 77),
            (
                date(-9 * 86_400),
                format!("date: {}", date(-3 * 86_400)),
                77,
            ),
        ];
        let policy = CachePolicy {
            default_ttl: Some(Duration::from_secs(77)),
            ..CachePolicy::default()
        };
        for (modified, made, expected) in table {
            let response = map(&[&format!("last-modified: {modified}"), &made]);
            assert_eq!(
                Freshness::of(StatusCode::OK, &response, &policy, NOW).lifetime,
                expected,
                "{modified} {made}"
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
    fn those_who_waited_share_what_they_may() {
        // Response, milliseconds that the origin took, and whether they share it.
        let behind = format!("date: {}", date(-3));
        let table: [(&[&str], u64, bool); 12] = [
            (&["cache-control: max-age=1"], 0, true),
            (&["cache-control: max-age=1"], 1300, true),
            (&["cache-control: max-age=1", "age: 1"], 0, true),
            (&["cache-control: max-age=1", &behind], 200, true),
            (&["cache-control: max-age=0"], 0, false),
            (&["cache-control: no-cache, max-age=9"], 0, false),
            (&["cache-control: max-age=1, must-revalidate"], 1300, true),
            (&["cache-control: s-maxage=1"], 1300, true),
            (
                &["cache-control: max-age=1, must-revalidate", "age: 1"],
                0,
                false,
            ),
            (&["cache-control: s-maxage=1", &behind], 0, false),
            (
                &[
                    "cache-control: s-maxage=1, stale-while-revalidate=5",
                    &behind,
                ],
                0,
                true,
            ),
            (&[], 0, false),
        ];
        for (response, took, expected) in table {
            let exchange = Exchange {
                requested_ms: NOW_MS - took,
                received_ms: NOW_MS,
            };
            let found = Freshness::of(
                StatusCode::OK,
                &map(response),
                &CachePolicy::default(),
                exchange,
            );
            assert_eq!(
                found.is_for_those_who_waited(),
                expected,
                "{response:?} after {took} ms"
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
    fn lifetime_comes_from_the_first_that_speaks() {
        // RFC 9111 sections 4.2.1, 4.2.2 and 5.3, RFC 9213 section 2.2. The default policy uses
        // heuristics; `default_ttl` is 77 s here.
        let in_100 = format!("expires: {}", date(100));
        let past = format!("expires: {}", date(-100));
        let made = format!("date: {}", date(0));
        let changed = format!("last-modified: {}", date(-1000));
        let ages_ago = "last-modified: Sun, 06 Nov 1994 08:49:37 GMT";
        let table: [(&[&str], u64, Basis); 19] = [
            (
                &[
                    "cdn-cache-control: max-age=3",
                    "cache-control: s-maxage=5, max-age=7",
                    &in_100,
                ],
                3,
                Basis::Targeted,
            ),
            (
                &["cdn-cache-control: s-maxage=2, max-age=3"],
                2,
                Basis::Targeted,
            ),
            (
                &["cdn-cache-control: max-age=0", "cache-control: max-age=7"],
                0,
                Basis::Targeted,
            ),
            (
                &["cdn-cache-control: max-age=3 4", "cache-control: max-age=7"],
                7,
                Basis::MaxAge,
            ),
            (&["cache-control: max-age=7, s-maxage=5"], 5, Basis::SMaxage),
            (&["cache-control: max-age=1, s-maxage=5"], 5, Basis::SMaxage),
            (&["cache-control: max-age=7", &past], 7, Basis::MaxAge),
            (
                &["cache-control: max-age=7", "expires: 0"],
                7,
                Basis::MaxAge,
            ),
            (&["cache-control: max-age=0", &in_100], 0, Basis::MaxAge),
            (&["cache-control: max-age=x", &in_100], 0, Basis::MaxAge),
            (&[&in_100, &made], 100, Basis::Expires),
            (&[&in_100], 100, Basis::Expires),
            (&[&past, &made, &changed], 0, Basis::Expires),
            (&["expires: 0", &changed], 0, Basis::Expires),
            (&[&in_100, "expires: 0"], 0, Basis::Expires),
            (&[&changed, &made], 100, Basis::Heuristic),
            (&[ages_ago, &made], HEURISTIC_MAX, Basis::Heuristic),
            (&["last-modified: never"], 77, Basis::Default),
            (&[], 77, Basis::Default),
        ];
        let policy = CachePolicy {
            default_ttl: Some(Duration::from_secs(77)),
            ..CachePolicy::default()
        };
        for (response, seconds, basis) in table {
            let found = Freshness::of(StatusCode::OK, &map(response), &policy, NOW);
            assert_eq!(
                (found.lifetime, found.basis),
                (seconds, basis),
                "{response:?}"
            );
        }
        let found = Freshness::of(StatusCode::FOUND, &map(&[&changed]), &policy, NOW);
        assert_eq!(
            found.basis,
            Basis::Nothing,
            "the default is for what may be guessed"
        );
        let timid = CachePolicy {
            heuristic: false,
            ..CachePolicy::default()
        };
        assert_eq!(
            Freshness::of(StatusCode::OK, &map(&[&changed]), &timid, NOW).basis,
            Basis::Nothing
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
    fn age_counts_all_that_went_before() {
        // RFC 9111 sections 4.2.3 and 5.1. Fields, delay of the exchange in ms, age when received.
        let late = format!("date: {}", date(-30));
        let early = format!("date: {}", date(30));
        let table: [(&[&str], u64, u64); 14] = [
            (&[], 0, 0),
            (&[], 2500, 2),
            (&[&late], 0, 30),
            (&[&early], 0, 0),
            (&["age: 10"], 0, 10),
            (&["age: 10"], 3000, 13),
            (&[&late, "age: 10"], 3000, 30),
            (&[&late, "age: 29"], 3000, 32),
            (&["age: -7200"], 0, 0),
            (&["age: abc"], 0, 0),
            (&["age: 7200.0"], 0, 0),
            (&["age: x, 60"], 0, 60),
            (&["age: 60", "age: 0"], 0, 60),
            (&["age: 99999999999999999999"], 0, DELTA_SECONDS_MAX),
        ];
        for (response, delay, expected) in table {
            let exchange = Exchange {
                requested_ms: NOW_MS - delay,
                received_ms: NOW_MS,
            };
            let found = Freshness::of(
                StatusCode::OK,
                &map(response),
                &CachePolicy::default(),
                exchange,
            );
            assert_eq!(found.initial_age, expected, "{response:?} {delay}");
            assert_eq!(
                found.age(NOW_MS + 1999),
                expected + 1,
                "and grows by whole seconds"
            );
        }
    }

    #[test]
    fn fresh_until_age_reaches_the_lifetime() {
        let found = Freshness::of(
            StatusCode::OK,
            &map(&["cache-control: max-age=10", "age: 4"]),
            &CachePolicy::default(),
            NOW,
        );
        let table = [
            (0, 6, true),
            (5_999, 1, true),
            (6_000, 0, false),
            (8_000, -2, false),
        ];
        for (later_ms, ttl, is_fresh) in table {
            assert_eq!(
                (
                    found.ttl(NOW_MS + later_ms),
                    found.is_fresh(NOW_MS + later_ms)
                ),
                (ttl, is_fresh),
                "{later_ms}"
            );
        }
        assert_eq!(
            found.ttl(0),
            6,
            "a clock that was set back makes nothing younger than when it came"
        );
    }

    #[test]
    fn it_survives_being_written_down() {
        let response = map(&[
            "cache-control: max-age=10, stale-if-error=3, immutable, must-revalidate",
            "age: 4",
        ]);
        let found = Freshness::of(StatusCode::OK, &response, &CachePolicy::default(), NOW);
        let text = serde_json::to_string(&found).expect("plain");
        assert_eq!(
            serde_json::from_str::<Freshness>(&text).expect("the same"),
            found
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
            let verdict = judge(
                RequestFacts {
                    method: &Method::GET,
                    fields: &request,
                },
                StatusCode::OK,
                &now,
                &CachePolicy::default(),
                NOW,
            );
            let found = if let Verdict::DoNotStore(reason) = verdict {
                Some(reason)
            } else {
                None
            };
            assert_eq!(found, expected, "{new}");
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
            let verdict = judge(facts, status, &fields, &CachePolicy::default(), Exchange { requested_ms, received_ms });
            let directives = CacheControl::of_response(&fields);
            if let Verdict::Store(freshness) = verdict {
                prop_assert!(!directives.no_store && !directives.private);
                prop_assert!(freshness.lifetime <= DELTA_SECONDS_MAX);
                prop_assert!(freshness.age(now_ms) >= freshness.initial_age);
                prop_assert_eq!(freshness.is_fresh(now_ms), freshness.ttl(now_ms) > 0);
            }
        }
    }
}
