//! When a stale response whose validation failed is validated again. Each URL has its own back-off,
//! whatever the state of its origin.

use parking_lot::Mutex;

/// Failures of one kind without a success in between after which validations pause. Before, each
/// client's request validates anew, so that the recovery of an origin that fails quickly is noticed
/// at once. A single time-out is enough.
const FAILURES_MIN: u32 = 5;
/// Time to the next validation. It doubles with each failure of any kind, up to the maximum.
const PAUSE_MIN_MS: u64 = 1000;
const PAUSE_MAX_MS: u64 = 30_000;

/// How a validation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failing {
    /// The origin did not answer in time.
    TimedOut,
    /// The origin could not be asked, or its response was unusable.
    Unanswered,
    /// The origin sent an error.
    Status,
}

impl Failing {
    /// In `Cache-Status`.
    pub(crate) fn detail(self) -> &'static str {
        match self {
            Self::TimedOut => "origin-timed-out",
            Self::Unanswered => "origin-failed",
            Self::Status => "origin-error",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    /// The last one.
    kind: Failing,
    /// By kind.
    counts: [u32; 3],
    /// Pauses so far.
    pauses: u32,
    /// End of the last pause.
    until_ms: u64,
}

/// The back-off of one stored response. Times are milliseconds after the Unix epoch.
#[derive(Debug, Default)]
pub(crate) struct Backoff(Mutex<Option<Failures>>);

impl Backoff {
    /// Notes a failed validation. Failures within a pause change nothing: those validations began
    /// before it.
    pub(crate) fn note(&self, kind: Failing, now_ms: u64) {
        let mut failures = self.0.lock();
        let failures = failures.get_or_insert(Failures {
            kind,
            counts: [0; 3],
            pauses: 0,
            until_ms: 0,
        });
        if failures.until_ms > now_ms {
            return;
        }
        failures.kind = kind;
        let count = &mut failures.counts[kind as usize];
        *count = count.saturating_add(1);
        let least = if kind == Failing::TimedOut {
            1
        } else {
            FAILURES_MIN
        };
        // Only a success ends the pauses.
        if failures.pauses > 0 || *count >= least {
            let pause_ms = (PAUSE_MIN_MS << failures.pauses.min(10)).min(PAUSE_MAX_MS);
            failures.pauses = failures.pauses.saturating_add(1);
            failures.until_ms = now_ms + pause_ms;
        }
    }

    /// Notes a successful validation.
    pub(crate) fn clear(&self) {
        *self.0.lock() = None;
    }

    /// Why clients do not wait for a validation, and whether one in the background is due.
    pub(crate) fn state(&self, now_ms: u64) -> Option<(Failing, bool)> {
        let failures = (*self.0.lock())?;
        (failures.until_ms > 0).then_some((failures.kind, failures.until_ms <= now_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_url_backs_off_further_with_each_failure() {
        use Failing::*;
        let backoff = Backoff::default();
        assert_eq!(backoff.state(0), None);
        let mut now = 1_000_000;
        for _ in 1..FAILURES_MIN {
            backoff.note(Status, now);
            assert_eq!(backoff.state(now), None, "each client asks");
        }
        for pause in [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            backoff.note(Status, now);
            // Others waited for the same failure.
            (0..100).for_each(|_| backoff.note(Status, now));
            assert_eq!(backoff.state(now + pause - 1), Some((Status, false)));
            assert_eq!(backoff.state(now + pause), Some((Status, true)));
            now += pause;
        }
        backoff.clear();
        assert_eq!(backoff.state(now), None);
        backoff.note(TimedOut, now);
        assert_eq!(
            backoff.state(now),
            Some((TimedOut, false)),
            "once is enough"
        );
        assert_eq!(
            backoff.state(now + 1000),
            Some((TimedOut, true)),
            "it begins with a short pause again"
        );
    }

    #[test]
    fn a_failure_of_another_kind_ends_nothing() {
        use Failing::*;
        let backoff = Backoff::default();
        let mut now = 1_000_000;
        backoff.note(TimedOut, now);
        backoff.note(Status, now);
        assert_eq!(
            backoff.state(now),
            Some((TimedOut, false)),
            "a validation that began before"
        );
        for (kind, pause) in [(Status, 2000), (TimedOut, 4000), (Unanswered, 8000)] {
            now += 100_000;
            backoff.note(kind, now);
            assert_eq!(backoff.state(now + pause - 1), Some((kind, false)));
            assert_eq!(backoff.state(now + pause), Some((kind, true)));
        }
        // Counts of one kind go on after those of another.
        let backoff = Backoff::default();
        for _ in 1..FAILURES_MIN {
            for kind in [Status, Unanswered] {
                backoff.note(kind, now);
                assert_eq!(backoff.state(now), None);
            }
        }
        backoff.note(Status, now);
        assert_eq!(backoff.state(now), Some((Status, false)));
    }
}
