//! When a stale response, whose validation failed, is to be validated again: for its URL alone, whatever else its origin does.

use std::sync::Mutex;

/// Failures of one kind in a row, before which each client asks the origin anew: one that fails quickly and is well at once
/// is found to be so. What timed out is enough once.
const FAILURES_MIN: u32 = 5;
/// Time to the next validation, which doubles with each that fails, up to the longest.
const PAUSE_MIN_MS: u64 = 1000;
const PAUSE_MAX_MS: u64 = 30_000;

/// How a validation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failing {
    /// The origin took as long as it may.
    TimedOut,
    /// The origin could not be asked, or what came was of no use.
    Unanswered,
    /// The origin answered with an error.
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
    kind: Failing,
    count: u32,
    until_ms: u64,
}

/// See the module's words. Times are milliseconds after the Unix epoch.
#[derive(Debug, Default)]
pub(crate) struct Backoff(Mutex<Option<Failures>>);

impl Backoff {
    /// A validation failed. Those that others waited for as well count once.
    pub(crate) fn note(&self, kind: Failing, now_ms: u64) {
        let mut failures = self.0.lock().expect("no holder of this lock panics");
        let before = failures.filter(|before| before.kind == kind);
        if before.is_some_and(|before| before.until_ms > now_ms) {
            return;
        }
        let count = before.map_or(0, |before| before.count).saturating_add(1);
        let least = if kind == Failing::TimedOut { 1 } else { FAILURES_MIN };
        let pause_ms = count.checked_sub(least).map_or(0, |more| (PAUSE_MIN_MS << more.min(10)).min(PAUSE_MAX_MS));
        *failures = Some(Failures { kind, count, until_ms: if pause_ms == 0 { 0 } else { now_ms + pause_ms } });
    }

    /// A validation succeeded.
    pub(crate) fn clear(&self) {
        *self.0.lock().expect("no holder of this lock panics") = None;
    }

    /// Why clients are not to wait for a validation, and whether it is time for one behind their answers.
    pub(crate) fn standing(&self, now_ms: u64) -> Option<(Failing, bool)> {
        let failures = (*self.0.lock().expect("no holder of this lock panics"))?;
        (failures.until_ms > 0).then_some((failures.kind, failures.until_ms <= now_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_url_backs_off_further_with_each_failure_of_a_kind() {
        use Failing::*;
        let backoff = Backoff::default();
        assert_eq!(backoff.standing(0), None);
        let mut now = 1_000_000;
        for _ in 1..FAILURES_MIN {
            backoff.note(Status, now);
            assert_eq!(backoff.standing(now), None, "each client asks");
        }
        for pause in [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            backoff.note(Status, now);
            // Others waited for the same failure.
            (0..100).for_each(|_| backoff.note(Status, now));
            assert_eq!(backoff.standing(now + pause - 1), Some((Status, false)));
            assert_eq!(backoff.standing(now + pause), Some((Status, true)));
            now += pause;
        }
        backoff.note(TimedOut, now);
        assert_eq!(backoff.standing(now), Some((TimedOut, false)), "once is enough");
        backoff.note(Unanswered, now);
        assert_eq!(backoff.standing(now), None, "another kind begins anew");
        backoff.note(TimedOut, now);
        backoff.clear();
        assert_eq!(backoff.standing(now), None);
    }
}
