//! Accumulates the edges' request counts: how often clients of each cluster requested each URL,
//! newer requests counting more.
//!
//! Counts decay exponentially with a half-life in fleet time. They are kept in forward-decay form
//! (Cormode, Shkapenyuk, Srivastava, Xu: "Forward Decay", ICDE 2009): a count is multiplied by its
//! weight when it arrives and never touched again, since only ratios matter; the common factor is
//! taken out when it grows large. So a fold costs one map entry a URL, and the order of two URLs
//! never changes without a request.
//!
//! Memory is bounded by [`Limits::urls_max`] URLs a cluster: past it the least requested sixteenth
//! is dropped at once. Knows nothing of plans, sockets or the real clock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use nearcast_fleet::report::UrlCount;
use serde::{Deserialize, Serialize};

/// Longer URLs are ignored.
pub const URL_BYTES_MAX: usize = 2048;

/// A cluster whose clock was set back by more than this starts afresh.
const SET_BACK_MAX_SECONDS: f64 = 86_400.0;

/// A longer silence does not count as observed time. A shorter one is an outage of control: edges
/// continue to count and report the counts with the first accepted report, so its time must count
/// as well. Those requests all count for the hour in which they arrive; the day's sum stays about
/// right.
const GAP_MAX_SECONDS: f64 = 86_400.0;

/// The common factor is taken out of all counts when a new count would weigh 2 to this power.
const WEIGHT_EXPONENT_MAX: f64 = 40.0;

/// Counts below this are dropped: the weight of a request after about 30 half-lives.
const NOTHING: f64 = 1e-9;

/// Limits of the accumulation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Half-life of a request in fleet seconds.
    pub half_life_seconds: f64,
    /// Most URLs a cluster.
    pub urls_max: usize,
}

impl Limits {
    /// 200,000 URLs a cluster with that half-life (at least a second).
    pub fn with_half_life(half_life: std::time::Duration) -> Self {
        Self {
            half_life_seconds: half_life.as_secs_f64().max(1.0),
            urls_max: 200_000,
        }
    }
}

/// Result of adding one report's counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Folded {
    /// Accepted counts.
    pub taken: usize,
    /// Ignored counts: empty or overlong URLs, or no requests.
    pub ignored: usize,
    /// URLs dropped because of the limit.
    pub evicted: usize,
}

/// Request counts of all clusters.
#[derive(Debug, Clone, PartialEq)]
pub struct Popularity {
    limits: Limits,
    clusters: BTreeMap<String, ClusterPopularity>,
}

/// Request counts of one cluster. All counts and seconds are weighted; their common factor cancels
/// in every ratio.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ClusterPopularity {
    /// Fleet seconds at which a request weighs 1.
    landmark: f64,
    /// Fleet seconds of the newest fold.
    newest: f64,
    /// Requests of all URLs, dropped ones included.
    pub(crate) requests: f64,
    /// Body bytes of these requests.
    pub(crate) bytes: f64,
    /// By local hour of day.
    pub(crate) hours: [HourRecord; 24],
    pub(crate) urls: HashMap<Arc<str>, UrlRecord>,
}

/// One local hour of day.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct HourRecord {
    /// Weighted requests.
    pub(crate) requests: f64,
    /// Weighted fleet seconds in which requests were being counted.
    pub(crate) observed: f64,
    /// These seconds without weights, to decide whether they are enough for a rate.
    #[serde(default)]
    pub(crate) seconds: f64,
}

/// One URL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct UrlRecord {
    pub(crate) site: Arc<str>,
    /// Weighted requests.
    pub(crate) requests: f64,
    /// Weighted body bytes served.
    pub(crate) bytes: f64,
    /// Newest known complete length; 0 while unknown.
    pub(crate) size: u64,
}

impl Popularity {
    /// Empty.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            clusters: BTreeMap::new(),
        }
    }

    /// Restores the state of an earlier process. URLs beyond the limit are dropped, least requested
    /// first.
    pub fn restore(limits: Limits, clusters: BTreeMap<String, ClusterPopularity>) -> Self {
        let mut all = Self { limits, clusters };
        for cluster in all.clusters.values_mut() {
            // Saved by a version that did not count seconds: the observed time was enough.
            for hour in cluster
                .hours
                .iter_mut()
                .filter(|h| h.seconds == 0.0 && h.observed > 0.0)
            {
                hour.seconds = 3600.0;
            }
            cluster.evict(limits.urls_max);
        }
        all
    }

    /// Changes half-life and limit for the future; accumulated counts stay.
    pub fn set_limits(&mut self, limits: Limits) {
        for cluster in self.clusters.values_mut() {
            // Existing weights are relative to the old half-life, so they are normalised first.
            cluster.rescale(self.limits.half_life_seconds, cluster.newest);
            cluster.evict(limits.urls_max);
        }
        self.limits = limits;
    }

    /// Adds the counts of a report of a node of `cluster`, received at `fleet_seconds` (after the
    /// Unix epoch, on the fleet's clock). `zone` is the cluster's, for the hour of day.
    pub fn fold(
        &mut self,
        cluster: &str,
        zone: &TimeZone,
        fleet_seconds: f64,
        counts: &[UrlCount],
    ) -> Folded {
        if !fleet_seconds.is_finite() {
            return Folded {
                ignored: counts.len(),
                ..Folded::default()
            };
        }
        if !self.clusters.contains_key(cluster) {
            self.clusters.insert(
                cluster.to_owned(),
                ClusterPopularity::starting_at(fleet_seconds),
            );
        }
        let record = self.clusters.get_mut(cluster).expect("inserted above");
        record.fold(self.limits, zone, fleet_seconds, counts)
    }

    /// The counts of a cluster.
    pub fn cluster(&self, name: &str) -> Option<&ClusterPopularity> {
        self.clusters.get(name)
    }

    /// Every cluster by name.
    pub fn clusters(&self) -> &BTreeMap<String, ClusterPopularity> {
        &self.clusters
    }

    /// Removes clusters for which `keep` returns false.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.clusters.retain(|name, _| keep(name));
    }
}

impl ClusterPopularity {
    fn starting_at(fleet_seconds: f64) -> Self {
        Self {
            landmark: fleet_seconds,
            newest: fleet_seconds,
            ..Self::default()
        }
    }

    /// Number of URLs.
    pub fn urls(&self) -> usize {
        self.urls.len()
    }

    /// A copy with only the `most` most requested URLs, for writing to disk.
    pub fn head(&self, most: usize) -> Self {
        let mut head = self.clone();
        head.evict_to(most);
        head
    }

    fn fold(
        &mut self,
        limits: Limits,
        zone: &TimeZone,
        fleet_seconds: f64,
        counts: &[UrlCount],
    ) -> Folded {
        if fleet_seconds < self.newest - SET_BACK_MAX_SECONDS {
            *self = Self::starting_at(fleet_seconds);
        }
        let now = fleet_seconds.max(self.newest);
        if (now - self.landmark) / limits.half_life_seconds > WEIGHT_EXPONENT_MAX {
            self.rescale(limits.half_life_seconds, now);
        }
        self.observe(limits.half_life_seconds, zone, now);
        let weight = self.weight(limits.half_life_seconds, now);
        let hour = local_hour(zone, now);
        let mut folded = Folded::default();
        for count in counts {
            if count.url.is_empty() || count.url.len() > URL_BYTES_MAX || count.requests == 0 {
                folded.ignored += 1;
                continue;
            }
            self.add(count, weight, hour);
            folded.taken += 1;
        }

        folded.evicted = self.evict(limits.urls_max);
        folded
    }

    fn add(&mut self, count: &UrlCount, weight: f64, hour: usize) {
        let (requests, bytes) = (count.requests as f64 * weight, count.bytes as f64 * weight);
        self.requests += requests;
        self.bytes += bytes;
        self.hours[hour].requests += requests;
        match self.urls.get_mut(count.url.as_str()) {
            Some(record) => {
                record.requests += requests;
                record.bytes += bytes;
                if count.size > 0 {
                    record.size = count.size;
                }
                if *record.site != count.site {
                    record.site = count.site.as_str().into();
                }
            }
            None => {
                let record = UrlRecord {
                    site: count.site.as_str().into(),
                    requests,
                    bytes,
                    size: count.size,
                };
                self.urls.insert(count.url.as_str().into(), record);
            }
        }
    }

    /// Adds the time since the newest report as observed, each part to its local hour.
    fn observe(&mut self, half_life: f64, zone: &TimeZone, now: f64) {
        if now - self.newest > GAP_MAX_SECONDS {
            self.newest = now;
            return;
        }
        // At most a day, in steps that end with the hour of the epoch or of a zone's quarter-hour
        // offset.
        while self.newest < now {
            let quarter_end = (self.newest / 900.0).floor() * 900.0 + 900.0;
            let until = quarter_end.min(now);
            let weight = self.weight(half_life, until);
            let hour = &mut self.hours[local_hour(zone, self.newest)];
            hour.observed += (until - self.newest) * weight;
            hour.seconds += until - self.newest;
            self.newest = until;
        }
    }

    fn weight(&self, half_life: f64, at: f64) -> f64 {
        ((at - self.landmark) / half_life).exp2()
    }

    /// Makes a request at `now` weigh 1.
    fn rescale(&mut self, half_life: f64, now: f64) {
        let factor = 1.0 / self.weight(half_life, now);
        self.landmark = now;
        self.requests *= factor;
        self.bytes *= factor;
        for hour in &mut self.hours {
            hour.requests *= factor;
            hour.observed *= factor;
        }
        self.urls.retain(|_, record| {
            record.requests *= factor;
            record.bytes *= factor;
            record.requests > NOTHING
        });
    }

    /// Drops the least requested URLs when there are more than `most`, down to a sixteenth below
    /// it, so that the cost of selection is shared by many reports. Returns the number of dropped
    /// URLs.
    fn evict(&mut self, most: usize) -> usize {
        if self.urls.len() <= most {
            0
        } else {
            self.evict_to(most - most / 16)
        }
    }

    fn evict_to(&mut self, keep: usize) -> usize {
        let before = self.urls.len();
        if before <= keep {
            return 0;
        }
        if keep == 0 {
            self.urls.clear();
            return before;
        }
        let mut scores: Vec<f64> = self.urls.values().map(|r| r.requests).collect();
        let (_, &mut least_kept, _) = scores.select_nth_unstable_by(before - keep, f64::total_cmp);
        let mut equals_to_drop =
            (before - keep).saturating_sub(scores.iter().filter(|s| **s < least_kept).count());
        self.urls.retain(|_, record| {
            if record.requests == least_kept && equals_to_drop > 0 {
                equals_to_drop -= 1;
                return false;
            }
            record.requests >= least_kept
        });
        before - self.urls.len()
    }
}

/// Local hour of day at fleet seconds after the Unix epoch; times beyond the calendar count as
/// midnight.
fn local_hour(zone: &TimeZone, fleet_seconds: f64) -> usize {
    Timestamp::from_second(fleet_seconds.floor() as i64).map_or(0, |t| {
        usize::try_from(t.to_zoned_datetime(zone.clone()).hour())
            .unwrap_or(0)
            .min(23)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: f64 = 86_400.0;

    fn count(url: &str, requests: u64, bytes: u64, size: u64) -> UrlCount {
        UrlCount {
            site: "www".into(),
            url: url.into(),
            requests,
            bytes,
            size,
        }
    }

    fn limits(half_life_seconds: f64, urls_max: usize) -> Limits {
        Limits {
            half_life_seconds,
            urls_max,
        }
    }

    #[test]
    fn a_count_halves_each_half_life() {
        let table = [
            (0.0, 1.0),
            (DAY, 0.5),
            (2.0 * DAY, 0.25),
            (DAY / 2.0, 0.5_f64.sqrt()),
        ];
        for (later, expected) in table {
            let mut p = Popularity::new(limits(DAY, 10));
            p.fold("ams", &TimeZone::UTC, 0.0, &[count("http://a/", 8, 0, 0)]);
            p.fold("ams", &TimeZone::UTC, later, &[count("http://b/", 8, 0, 0)]);
            let c = p.cluster("ams").unwrap();
            let ratio = c.urls["http://a/"].requests / c.urls["http://b/"].requests;
            assert!(
                (ratio - expected).abs() < 1e-9,
                "after {later} s: {ratio}, expected {expected}"
            );
        }
    }

    #[test]
    fn old_counts_neither_overflow_nor_stay() {
        let mut p = Popularity::new(limits(60.0, 10));
        p.fold(
            "ams",
            &TimeZone::UTC,
            0.0,
            &[count("http://old/", 1_000_000, 1, 1)],
        );
        for day in 1..400 {
            p.fold(
                "ams",
                &TimeZone::UTC,
                f64::from(day) * DAY,
                &[count("http://new/", 1, 1, 1)],
            );
        }
        let c = p.cluster("ams").unwrap();
        assert_eq!(c.urls(), 1);
        assert!(c.requests.is_finite() && c.requests > 0.0, "{}", c.requests);
    }

    #[test]
    fn bad_counts_are_ignored_and_a_size_once_known_is_kept() {
        let mut p = Popularity::new(limits(DAY, 10));
        let long = format!("http://a/{}", "x".repeat(URL_BYTES_MAX));
        let counts = [
            count("", 1, 1, 1),
            count(&long, 1, 1, 1),
            count("http://z/", 0, 9, 9),
            count("http://a/", 1, 5, 70),
        ];
        let folded = p.fold("ams", &TimeZone::UTC, 0.0, &counts);
        assert_eq!(
            folded,
            Folded {
                taken: 1,
                ignored: 3,
                evicted: 0
            }
        );
        p.fold("ams", &TimeZone::UTC, 1.0, &[count("http://a/", 1, 5, 0)]);
        assert_eq!(p.cluster("ams").unwrap().urls["http://a/"].size, 70);
        assert_eq!(p.fold("ams", &TimeZone::UTC, f64::NAN, &counts).ignored, 4);
    }

    #[test]
    fn the_least_requested_are_dropped_first() {
        let mut p = Popularity::new(limits(DAY, 32));
        let counts: Vec<_> = (1..=33)
            .map(|n| count(&format!("http://a/{n}"), n, 0, 0))
            .collect();
        let folded = p.fold("ams", &TimeZone::UTC, 0.0, &counts);
        assert_eq!(folded.evicted, 3, "33 URLs come down to 30 of 32");
        let c = p.cluster("ams").unwrap();
        for n in 1..=33 {
            assert_eq!(
                c.urls.contains_key(format!("http://a/{n}").as_str()),
                n > 3,
                "{n}"
            );
        }
        assert_eq!(c.head(2).urls(), 2);
        assert!(c.head(2).urls.contains_key("http://a/33"));
        assert_eq!(c.head(0).urls(), 0);
        assert!(
            (c.requests - (33 * 34 / 2) as f64).abs() < 1e-9,
            "dropped URLs still count in the total"
        );
    }

    #[test]
    fn time_is_observed_in_the_clusters_own_hours() {
        // 2026-06-01T00:00:00Z is 02:00 in Amsterdam.
        let start = 1_780_272_000.0;
        let zone = TimeZone::get("Europe/Amsterdam").unwrap();
        let mut p = Popularity::new(limits(1e12, 10));
        p.fold("ams", &zone, start, &[]);
        p.fold("ams", &zone, start + 5400.0, &[count("http://a/", 3, 0, 0)]);
        let hours = &p.cluster("ams").unwrap().hours;
        for (hour, record) in hours.iter().enumerate() {
            let expected = match hour {
                2 => 3600.0,
                3 => 1800.0,
                _ => 0.0,
            };
            assert!(
                (record.observed - expected).abs() < 0.01,
                "hour {hour}: {}",
                record.observed
            );
        }
        assert!((hours[3].requests - 3.0).abs() < 1e-6);
    }

    #[test]
    fn a_clock_that_jumps_is_survived() {
        let mut p = Popularity::new(limits(DAY, 10));
        p.fold(
            "ams",
            &TimeZone::UTC,
            100.0 * DAY,
            &[count("http://a/", 1, 0, 0)],
        );
        p.fold(
            "ams",
            &TimeZone::UTC,
            100.0 * DAY - 60.0,
            &[count("http://b/", 1, 0, 0)],
        );
        assert_eq!(
            p.cluster("ams").unwrap().urls(),
            2,
            "a little back is no matter"
        );
        p.fold("ams", &TimeZone::UTC, DAY, &[count("http://c/", 1, 0, 0)]);
        assert_eq!(p.cluster("ams").unwrap().urls(), 1, "far back starts anew");
        p.fold(
            "ams",
            &TimeZone::UTC,
            4000.0 * DAY,
            &[count("http://d/", 1, 0, 0)],
        );
        let observed: f64 = p
            .cluster("ams")
            .unwrap()
            .hours
            .iter()
            .map(|h| h.observed)
            .sum();
        assert_eq!(observed, 0.0, "a long silence is no observation");
    }

    #[test]
    fn a_new_half_life_keeps_the_past_in_proportion() {
        let mut p = Popularity::new(limits(DAY, 10));
        p.fold("ams", &TimeZone::UTC, 0.0, &[count("http://a/", 8, 0, 0)]);
        p.fold("ams", &TimeZone::UTC, DAY, &[count("http://b/", 8, 0, 0)]);
        p.set_limits(limits(10.0 * DAY, 10));
        let c = p.cluster("ams").unwrap();
        assert!((c.urls["http://b/"].requests / c.urls["http://a/"].requests - 2.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn memory_and_numbers_stay_bounded(
            folds in prop::collection::vec((0.0..1e9f64, prop::collection::vec((0u32..400, any::<u32>(), any::<u64>()), 0..40)), 1..30),
            urls_max in 1usize..100,
        ) {
            let mut p = Popularity::new(limits(3600.0, urls_max));
            for (at, counts) in folds {
                let counts: Vec<_> = counts.iter().map(|(u, r, b)| count(&format!("http://a/{u}"), u64::from(*r), *b, 0)).collect();
                p.fold("ams", &TimeZone::UTC, at, &counts);
                let c = p.cluster("ams").unwrap();
                prop_assert!(c.urls() <= urls_max);
                prop_assert!(c.requests.is_finite() && c.bytes.is_finite());
                let of_urls: f64 = c.urls.values().map(|r| r.requests).sum();
                prop_assert!(of_urls <= c.requests * (1.0 + 1e-9) + 1e-6);
            }
        }
    }
}
