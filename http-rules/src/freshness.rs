//! How long a response is fresh, and how old it is.
//!
//! Follows RFC 9111 section 4.2 (freshness and age), RFC 9213 (targeted fields), RFC 5861 (stale
//! use) and RFC 8246 (`immutable`).

use http::header::{AGE, DATE, EXPIRES, LAST_MODIFIED};
use http::{HeaderMap, StatusCode};
use nearcast_fleet::config::CachePolicy;
use serde::{Deserialize, Serialize};

use crate::cache_control::CacheControl;
use crate::dates;
use crate::fields::{self, DELTA_SECONDS_MAX};

/// A heuristic lifetime is this fraction of the time since the last change (RFC 9111 section
/// 4.2.2).
const HEURISTIC_PART: u64 = 10;
/// Longest heuristic lifetime, in seconds.
const HEURISTIC_MAX: u64 = 24 * 3600;
/// A `Last-Modified` before this time means "unknown" and gives no heuristic lifetime: 1970 and 1980
/// are the zeros of common clocks. 1990-01-01T00:00:00Z, before HTTP existed.
const PLAUSIBLE_SINCE: u64 = 631_152_000;
/// Largest difference between `Date` and this cache's clock that allows a heuristic lifetime, in
/// seconds.
const CLOCK_DIFFERENCE_MAX: u64 = 24 * 3600;

/// When the forward request was sent and its response head received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// Milliseconds after the Unix epoch.
    pub requested_ms: u64,
    /// Milliseconds after the Unix epoch.
    pub received_ms: u64,
}

/// The source of a lifetime.
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
    /// Computed from `Last-Modified`.
    Heuristic,
    /// The site's default.
    Default,
    /// None: the response is stale, and may be used after validation only.
    Nothing,
}

/// All facts that decide the age and the use of a stored response; made once and kept with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freshness {
    /// Seconds that the response is fresh, from when it was generated.
    pub lifetime: u64,
    /// The source of the lifetime.
    pub basis: Basis,
    /// Age in seconds when it was received (`corrected_initial_age`, RFC 9111 section 4.2.3).
    pub initial_age: u64,
    /// Age in seconds when the origin sent it, without the time of the exchange.
    pub age_when_sent: u64,
    /// When it was received, in milliseconds after the Unix epoch.
    pub received_ms: u64,
    /// `stale-while-revalidate` in seconds; `None` leaves it to the site.
    pub stale_while_revalidate: Option<u64>,
    /// `stale-if-error` in seconds; `None` leaves it to the site.
    pub stale_if_error: Option<u64>,
    /// `must-revalidate`, `proxy-revalidate` or a directive that implies one: the response must not
    /// be used stale (RFC 9111 section 4.2.4).
    pub must_revalidate: bool,
    /// `no-cache`: the response must be validated before each use.
    pub no_cache: bool,
    /// `immutable`: a client's reload does not cause a validation while it is fresh (RFC 8246).
    pub immutable: bool,
}

impl Freshness {
    /// The freshness of a response with these fields; also after a 304 has freshened them.
    pub fn of(
        status: StatusCode,
        fields: &HeaderMap,
        policy: &CachePolicy,
        exchange: Exchange,
    ) -> Self {
        let directives = CacheControl::of_response(fields);
        Self::with_directives(&directives, status, fields, policy, exchange)
    }

    /// As [`of`](Self::of), with the cache directives of these fields.
    pub(crate) fn with_directives(
        directives: &CacheControl,
        status: StatusCode,
        fields: &HeaderMap,
        policy: &CachePolicy,
        exchange: Exchange,
    ) -> Self {
        let (lifetime, basis) = lifetime(directives, status, fields, policy, exchange.received_ms);

        // By RFC 9111 section 5.2.2.10 `s-maxage` forbids stale use as `proxy-revalidate` does. An
        // origin that writes a window of stale use beside it clearly permits stale use in that
        // window; the site's own windows do not apply.
        let forbids_stale = directives.must_revalidate || directives.proxy_revalidate;
        let has_window =
            directives.stale_while_revalidate.is_some() || directives.stale_if_error.is_some();
        let is_s_maxage_only = directives.s_maxage.is_some() && !forbids_stale;
        let window = |seconds: Option<u64>| match is_s_maxage_only {
            true => Some(seconds.unwrap_or(0)),
            false => seconds,
        };

        Self {
            lifetime,
            basis,
            initial_age: initial_age(fields, exchange),
            age_when_sent: age_when_sent(fields, exchange),
            received_ms: exchange.received_ms,
            stale_while_revalidate: window(directives.stale_while_revalidate),
            stale_if_error: window(directives.stale_if_error),
            must_revalidate: forbids_stale || is_s_maxage_only && !has_window,
            no_cache: directives.no_cache,
            immutable: directives.immutable,
        }
    }

    /// Seconds since the response was generated (`current_age`, RFC 9111 section 4.2.3).
    pub fn age(&self, now_ms: u64) -> u64 {
        self.initial_age
            .saturating_add(now_ms.saturating_sub(self.received_ms) / 1000)
    }

    /// Seconds until the response becomes stale; zero or less when it is stale.
    pub fn ttl(&self, now_ms: u64) -> i64 {
        i64::try_from(self.lifetime)
            .unwrap_or(i64::MAX)
            .saturating_sub_unsigned(self.age(now_ms))
    }

    /// Whether the response may answer the requests that waited for it, even if it was stale on
    /// arrival. It needs a lifetime and must be usable without validation; where stale use is
    /// forbidden, only the time of the exchange may have made it too old. A forward request of its
    /// own would have brought each of them the same response, or a later one.
    pub fn may_serve_waiting_requests(&self) -> bool {
        self.lifetime > 0
            && !self.no_cache
            && (!self.must_revalidate || self.lifetime > self.age_when_sent)
    }

    /// Whether the response is fresh; at an age equal to its lifetime it is stale.
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        self.lifetime > self.age(now_ms)
    }
}

/// Whether a status is cacheable without explicit freshness (RFC 9110 section 15.1).
pub(crate) fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501
    )
}

/// Lifetime in seconds and its source (RFC 9111 section 4.2.1).
fn lifetime(
    directives: &CacheControl,
    status: StatusCode,
    fields: &HeaderMap,
    policy: &CachePolicy,
    received_ms: u64,
) -> (u64, Basis) {
    let explicit = directives
        .s_maxage
        .map(|seconds| (seconds, Basis::SMaxage))
        .or(directives.max_age.map(|seconds| (seconds, Basis::MaxAge)));
    if let Some((seconds, basis)) = explicit {
        let basis = match directives.is_targeted {
            true => Basis::Targeted,
            false => basis,
        };
        return (seconds, basis);
    }

    let generated = dates::date(fields, DATE).unwrap_or(received_ms / 1000);
    if !directives.is_targeted && fields.contains_key(EXPIRES) {
        // `0`, several different values and other invalid ones are in the past.
        let expires = dates::date(fields, EXPIRES).unwrap_or(0);
        return (expires.saturating_sub(generated), Basis::Expires);
    }

    // A targeted field replaces Cache-Control, and with it a `no-store` there, so such a response
    // is stored on an explicit statement only.
    let may_assume =
        directives.public || (is_heuristically_cacheable(status) && !directives.is_targeted);
    if !may_assume {
        return (0, Basis::Nothing);
    }
    if let Some(seconds) = heuristic_lifetime(fields, policy, generated, received_ms) {
        return (seconds, Basis::Heuristic);
    }
    match policy.default_ttl {
        Some(default) => (default.as_secs().min(DELTA_SECONDS_MAX), Basis::Default),
        None => (0, Basis::Nothing),
    }
}

/// A fraction of the time since the last change (RFC 9111 section 4.2.2), in seconds; `None` where
/// the site forbids it or a date is not plausible.
fn heuristic_lifetime(
    fields: &HeaderMap,
    policy: &CachePolicy,
    generated: u64,
    received_ms: u64,
) -> Option<u64> {
    let modified = dates::date(fields, LAST_MODIFIED)?;
    let is_plausible = (PLAUSIBLE_SINCE..=generated).contains(&modified)
        && generated.abs_diff(received_ms / 1000) <= CLOCK_DIFFERENCE_MAX;
    (policy.heuristic && is_plausible)
        .then(|| ((generated - modified) / HEURISTIC_PART).min(HEURISTIC_MAX))
}

/// The greater of `Age` and the time between `Date` and the sending of the request, in seconds.
fn age_when_sent(fields: &HeaderMap, exchange: Exchange) -> u64 {
    let apparent = dates::date(fields, DATE).map_or(0, |generated| {
        (exchange.requested_ms / 1000).saturating_sub(generated)
    });
    apparent.max(age_field(fields))
}

/// `corrected_initial_age` in seconds (RFC 9111 section 4.2.3).
fn initial_age(fields: &HeaderMap, exchange: Exchange) -> u64 {
    let generated = dates::date(fields, DATE);
    let apparent = generated.map_or(0, |generated| {
        (exchange.received_ms / 1000).saturating_sub(generated)
    });
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

    use super::*;
    use crate::testing::{NOW_MS, date, map};

    const NOW: Exchange = Exchange {
        requested_ms: NOW_MS,
        received_ms: NOW_MS,
    };

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
                found.may_serve_waiting_requests(),
                expected,
                "{response:?} after {took} ms"
            );
        }
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
}
