//! When a certificate is ordered: pure functions of its validity, the authority's advice, failures
//! and the time.
//!
//! Follows RFC 9773 for the authority's advice. Times are seconds after the Unix epoch; what is
//! random comes in as a fraction from 0 to below 1.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A certificate without advice is renewed when this share of its validity has passed ...
const RENEW_SHARE: f64 = 2.0 / 3.0;
/// ... or up to this share earlier, so that certificates of one day are not renewed in one moment.
const JITTER_SHARE: f64 = 1.0 / 20.0;
/// With less than this share of its validity left, a certificate is urgent: advice cannot put it off
/// beyond that, and failed orders are repeated sooner.
const URGENT_SHARE: f64 = 1.0 / 10.0;
/// Back-off after the first failed order; it doubles with each further one.
const BACK_OFF_MIN: Duration = Duration::from_secs(60);
/// The longest back-off.
pub(crate) const BACK_OFF_MAX: Duration = Duration::from_secs(86_400);
/// The longest back-off for an urgent certificate.
const BACK_OFF_URGENT_MAX: Duration = Duration::from_secs(3600);
/// The longest back-off where no authority was asked, because the names do not lead here: a look at
/// DNS costs nobody anything.
const BACK_OFF_PRECHECK_MAX: Duration = Duration::from_secs(600);
/// Back-off varies by this share upwards, so that what failed together is not repeated together.
const BACK_OFF_JITTER: f64 = 0.2;
/// Advice is asked for again after this time when that failed (RFC 9773 section 4.3.3).
pub(crate) const ADVICE_AGAIN: Duration = Duration::from_secs(3600);
/// Advice is asked for again after this time where the authority gives none.
pub(crate) const ADVICE_ABSENT_AGAIN: Duration = Duration::from_secs(86_400);

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    /// Its begin.
    pub(crate) from: i64,
    /// Its end.
    pub(crate) until: i64,
}

/// When an authority advises to renew a certificate (RFC 9773 section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    /// Its begin.
    pub(crate) start: i64,
    /// Its end.
    pub(crate) end: i64,
}

impl Window {
    /// The window, unless it ends before it begins: such advice is none.
    pub(crate) fn checked(start: i64, end: i64) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    /// A moment of the window.
    fn moment(self, fraction: f64) -> i64 {
        let length = self.end.saturating_sub(self.start);
        self.start.saturating_add((length as f64 * fraction) as i64)
    }
}

impl Validity {
    fn life(self) -> i64 {
        self.until.saturating_sub(self.from).max(0)
    }

    /// The moment from which on a certificate is urgent.
    fn urgent_from(self) -> i64 {
        self.until - (self.life() as f64 * URGENT_SHARE) as i64
    }

    /// Whether little time is left, or none.
    pub(crate) fn is_urgent(self, now: i64) -> bool {
        now > self.urgent_from()
    }
}

/// When a certificate is renewed: at a moment of the window that the authority advises, or else when
/// two thirds of its validity have passed. The same fraction gives the same moment. A window in the
/// past means at once, as for a certificate that is going to be revoked.
pub(crate) fn renew_at(validity: Validity, window: Option<Window>, fraction: f64) -> i64 {
    let moment = match window {
        Some(window) => window.moment(fraction),
        None => {
            let share = RENEW_SHARE - JITTER_SHARE * fraction;
            validity.from + (validity.life() as f64 * share) as i64
        }
    };
    moment.min(validity.urgent_from())
}

/// What an order failed for, as far as the time of the next one depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailedAt {
    /// Before an authority was asked.
    Precheck,
    /// At an authority.
    Authority,
}

/// How long no order is made after `failures` of them, one at least. `validity` is that of the
/// certificate in force; without one a new one is urgent.
pub(crate) fn back_off(
    failures: u32,
    at: FailedAt,
    validity: Option<Validity>,
    now: i64,
    fraction: f64,
) -> Duration {
    let is_urgent = validity.is_none_or(|validity| validity.is_urgent(now));
    let most = match at {
        FailedAt::Precheck => BACK_OFF_PRECHECK_MAX,
        FailedAt::Authority if is_urgent => BACK_OFF_URGENT_MAX,
        FailedAt::Authority => BACK_OFF_MAX,
    };
    let doublings = failures.saturating_sub(1).min(20);
    let plain = BACK_OFF_MIN.saturating_mul(1 << doublings);
    plain.mul_f64(1.0 + BACK_OFF_JITTER * fraction).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;
    const QUARTER: Validity = Validity {
        from: 0,
        until: 90 * DAY,
    };

    #[test]
    fn without_advice_at_two_thirds_of_the_validity() {
        for (name, until, least, most) in [
            ("90 days", 90 * DAY, 55 * DAY, 60 * DAY),
            ("6 days", 6 * DAY, 88 * 3600, 96 * 3600),
            ("an hour", 3600, 2219, 2400),
            ("five years", 5 * 365 * DAY, 1125 * DAY, 1217 * DAY),
            ("nothing", 0, 0, 0),
            ("less than nothing", -DAY, -DAY, 0),
        ] {
            let validity = Validity { from: 0, until };
            for fraction in [0.0, 0.3, 0.999] {
                let at = renew_at(validity, None, fraction);
                assert!((least..=most).contains(&at), "{name}: {at}");
            }
        }
        assert!(renew_at(QUARTER, None, 0.9) < renew_at(QUARTER, None, 0.1));
    }

    #[test]
    fn advice_is_a_moment_of_its_window_and_never_too_late() {
        for (name, start, end, fraction, expected) in [
            ("begin", 50 * DAY, 52 * DAY, 0.0, 50 * DAY),
            ("middle", 50 * DAY, 52 * DAY, 0.5, 51 * DAY),
            ("the past: revoked", -9 * DAY, -8 * DAY, 0.5, -17 * DAY / 2),
            ("after its end", 200 * DAY, 300 * DAY, 0.5, 81 * DAY),
            ("very far", i64::MIN + 1, i64::MAX, 0.9, i64::MIN + 1),
        ] {
            let window = Window::checked(start, end);
            assert!(window.is_some());
            let at = renew_at(QUARTER, window, fraction);
            match name {
                "very far" => assert!(at <= 81 * DAY),
                _ => assert_eq!(at, expected, "{name}"),
            }
            assert_eq!(at, renew_at(QUARTER, window, fraction), "it stays");
        }
        assert_eq!(Window::checked(5, 5), None);
        assert_eq!(Window::checked(6, 5), None);
    }

    #[test]
    fn back_off_doubles_within_its_bounds() {
        let minute = Duration::from_secs(60);
        let late = 85 * DAY;
        for (failures, at, validity, now, expected) in [
            (1, FailedAt::Authority, Some(QUARTER), 0, minute),
            (2, FailedAt::Authority, Some(QUARTER), 0, minute * 2),
            (5, FailedAt::Authority, Some(QUARTER), 0, minute * 16),
            (11, FailedAt::Authority, Some(QUARTER), 0, minute * 1024),
            (12, FailedAt::Authority, Some(QUARTER), 0, BACK_OFF_MAX),
            (
                u32::MAX,
                FailedAt::Authority,
                Some(QUARTER),
                0,
                BACK_OFF_MAX,
            ),
            (0, FailedAt::Authority, Some(QUARTER), 0, minute),
            // Less than a tenth of its validity is left, or nothing, or there is none.
            (12, FailedAt::Authority, Some(QUARTER), late, minute * 60),
            (
                12,
                FailedAt::Authority,
                Some(QUARTER),
                91 * DAY,
                minute * 60,
            ),
            (12, FailedAt::Authority, None, 0, minute * 60),
            (3, FailedAt::Authority, Some(QUARTER), late, minute * 4),
            (12, FailedAt::Precheck, Some(QUARTER), 0, minute * 10),
        ] {
            let found = back_off(failures, at, validity, now, 0.0);
            assert_eq!(found, expected, "{failures} {at:?} {validity:?} {now}");
            let jittered = back_off(failures, at, validity, now, 0.999);
            assert!(jittered >= found && jittered <= found.mul_f64(1.2).min(BACK_OFF_MAX));
        }
    }
}
