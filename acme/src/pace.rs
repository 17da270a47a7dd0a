//! How many orders are begun, whatever is due: the limits of known authorities are kept without
//! being told so.
//!
//! Times are instants of a clock that only goes forward: setting the machine's clock changes
//! nothing here.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::Limits;

/// Failed validations of a host at an authority within [`VALIDATION_WINDOW`]: Let's Encrypt refuses
/// further orders after five.
const FAILED_VALIDATIONS_MAX: usize = 5;
const VALIDATION_WINDOW: Duration = Duration::from_secs(3600);

/// In the long run this many times the orders at once, and this many times the interval: 200, then
/// one each 40 seconds. Let's Encrypt takes 300 of an account at once, then one each 36 seconds; a part
/// is left for orders after a restart, which forgets what was begun.
const LONG_RUN: u32 = 10;

/// When orders may begin: a number at once, then one each interval, in the short and in the long run.
#[derive(Debug)]
pub(crate) struct Pace {
    buckets: [Bucket; 2],
}

#[derive(Debug)]
struct Bucket {
    burst: u32,
    interval: Duration,
    /// When the bucket is full again.
    full_at: Instant,
}

impl Bucket {
    /// When one more may begin.
    fn free_at(&self, now: Instant) -> Instant {
        // With `burst - 1` intervals still to go, one token is left.
        let before = self.interval.saturating_mul(self.burst.saturating_sub(1));
        let full_at = self.full_at.max(now);
        full_at.checked_sub(before).map_or(now, |at| at.max(now))
    }

    fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + self.interval;
    }
}

impl Pace {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Self {
        let bucket = |burst, interval| Bucket {
            burst,
            interval,
            full_at: now,
        };
        Self {
            buckets: [
                bucket(limits.order_burst, limits.order_interval),
                bucket(
                    limits.order_burst.saturating_mul(LONG_RUN),
                    limits.order_interval.saturating_mul(LONG_RUN),
                ),
            ],
        }
    }

    /// When the next order may begin: not before `now`.
    pub(crate) fn free_at(&self, now: Instant) -> Instant {
        let free = self.buckets.iter().map(|bucket| bucket.free_at(now));
        free.max().unwrap_or(now)
    }

    /// Counts an order that begins.
    pub(crate) fn take(&mut self, now: Instant) {
        for bucket in &mut self.buckets {
            bucket.take(now);
        }
    }
}

/// The failed validations of each host at each authority within the last hour.
#[derive(Debug, Default)]
pub(crate) struct Validations {
    failed: HashMap<(String, String), VecDeque<Instant>>,
}

impl Validations {
    /// Counts a failed validation of a host at an authority.
    pub(crate) fn failed(&mut self, authority: &str, host: &str, now: Instant) {
        self.failed.retain(|_, times| {
            times.retain(|at| now.saturating_duration_since(*at) < VALIDATION_WINDOW);
            !times.is_empty()
        });
        let times = self
            .failed
            .entry((authority.to_owned(), host.to_owned()))
            .or_default();
        if times.len() == FAILED_VALIDATIONS_MAX {
            times.pop_front();
        }
        times.push_back(now);
    }

    /// When these hosts may be validated by an authority again: not before `now`.
    pub(crate) fn free_at(&self, authority: &str, hosts: &[String], now: Instant) -> Instant {
        let of_host = |host: &String| {
            let host = host.strip_prefix("*.").unwrap_or(host);
            let times = self.failed.get(&(authority.to_owned(), host.to_owned()))?;
            let first = times
                .front()
                .filter(|_| times.len() >= FAILED_VALIDATIONS_MAX)?;
            Some(*first + VALIDATION_WINDOW)
        };
        hosts.iter().filter_map(of_host).fold(now, Instant::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many orders begin within a time if as many as may be do.
    fn begun(within: Duration) -> usize {
        let start = Instant::now();
        let mut pace = Pace::new(&Limits::default(), start);
        let (mut now, mut count) = (start, 0);
        loop {
            now = pace.free_at(now);
            if now > start + within {
                return count;
            }
            pace.take(now);
            count += 1;
        }
    }

    #[test]
    fn orders_begin_at_the_pace_of_the_authorities() {
        let limits = Limits::default();
        assert_eq!(begun(Duration::ZERO), limits.order_burst as usize);
        let minute = Duration::from_secs(60);
        let expected = limits.order_burst as usize + 60 / limits.order_interval.as_secs() as usize;
        assert_eq!(begun(minute), expected);
        // Let's Encrypt: 300, and one each 36 seconds.
        for hours in [1, 3, 24] {
            let within = minute * 60 * hours;
            let most = 300 + within.as_secs() / 36;
            assert!(begun(within) as u64 <= most, "{hours} hours");
        }
        // A thousand hosts are through within half a day.
        assert!(begun(minute * 60 * 12) >= 1000);
    }

    #[test]
    fn a_pause_gives_no_more_than_a_burst() {
        let start = Instant::now();
        let limits = Limits::default();
        let mut pace = Pace::new(&limits, start);
        let now = start + Duration::from_secs(30 * 86_400);
        let mut at_once = 0;
        while pace.free_at(now) == now {
            pace.take(now);
            at_once += 1;
        }
        assert_eq!(at_once, limits.order_burst);
    }

    #[test]
    fn a_host_is_validated_at_most_five_times_an_hour_in_vain() {
        let start = Instant::now();
        let minutes = |n: u64| start + Duration::from_secs(60 * n);
        let mut validations = Validations::default();
        let hosts = ["b.test".to_owned(), "*.a.test".to_owned()];
        for n in 0..5 {
            assert_eq!(validations.free_at("ca", &hosts, minutes(n)), minutes(n));
            validations.failed("ca", "a.test", minutes(n));
        }
        assert_eq!(validations.free_at("ca", &hosts, minutes(5)), minutes(60));
        assert_eq!(validations.free_at("other", &hosts, minutes(5)), minutes(5));
        assert_eq!(
            validations.free_at("ca", &hosts[..1], minutes(5)),
            minutes(5)
        );
        assert_eq!(validations.free_at("ca", &hosts, minutes(60)), minutes(60));
        validations.failed("ca", "a.test", minutes(60));
        assert_eq!(validations.free_at("ca", &hosts, minutes(60)), minutes(61));
        validations.failed("ca", "c.test", minutes(500));
        assert_eq!(validations.failed.len(), 1, "what is old is forgotten");
    }
}
