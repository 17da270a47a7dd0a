//! How many retries an origin gets: a share of its requests, so that retries never multiply the load
//! of an origin in trouble.

use std::time::Duration;

use tokio::time::Instant;

/// Thousandths of a retry that each request allows.
const PER_REQUEST: u64 = 200;
/// The same for each second, so that sites with few requests get retries as well.
const PER_SECOND: u64 = 1000;
/// Thousandths of retries that can be saved; the initial value.
const MOST: u64 = 20_000;
const RETRY: u64 = 1000;

/// The retry budget of one origin.
#[derive(Debug)]
pub(super) struct RetryBudget {
    left: u64,
    counted: Instant,
}

impl RetryBudget {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: MOST,
            counted: now,
        }
    }

    /// Adds the share of a request that is no retry.
    pub(super) fn note_request(&mut self) {
        self.left = (self.left + PER_REQUEST).min(MOST);
    }

    /// Takes one retry, if one is left.
    pub(super) fn take_retry(&mut self, now: Instant) -> bool {
        let since = now
            .saturating_duration_since(self.counted)
            .min(Duration::from_secs(MOST / PER_SECOND));
        self.left = (self.left + since.as_millis() as u64 * PER_SECOND / 1000).min(MOST);
        self.counted = now;
        let is_there = self.left >= RETRY;
        self.left -= if is_there { RETRY } else { 0 };
        is_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_requests_and_a_few_more() {
        let start = Instant::now();
        let retries =
            |budget: &mut RetryBudget, now| (0..1000).filter(|_| budget.take_retry(now)).count();
        let mut budget = RetryBudget::new(start);
        assert_eq!(retries(&mut budget, start), 20);
        (0..50).for_each(|_| budget.note_request());
        assert_eq!(retries(&mut budget, start), 10);
        assert_eq!(retries(&mut budget, start + Duration::from_secs(3)), 3);
        (0..100_000).for_each(|_| budget.note_request());
        assert_eq!(
            retries(&mut budget, start + Duration::from_secs(1_000_000)),
            20,
            "no more is saved up"
        );
    }
}
