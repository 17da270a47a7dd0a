//! Counts by second for the last hour: of the fleet, of each cluster, of each site, and of each node for two minutes.
//!
//! Reports carry totals; what came in is the difference of two, spread evenly over the time between them, so that a slow
//! report interval draws no saw teeth. Bounded by [`SECONDS_KEPT`] cells a key and [`KEYS_MAX`] keys of a kind. Pure: the
//! time comes in.

use std::collections::{BTreeMap, VecDeque};

use nearcast_fleet::report::SiteTotals;

use crate::view;

/// Cache statuses in their order here; anything else counts as `other`.
pub(crate) const STATUSES: [&str; 10] =
    ["hit", "stale", "revalidated", "collapsed", "miss", "partial", "bypass", "error", "local", "other"];
/// The first of these statuses are hits.
const HITS: usize = 4;
/// Index of `local`, which counts in no ratio.
const LOCAL: usize = 8;

/// An hour.
pub(crate) const SECONDS_KEPT: u64 = 3600;
/// Seconds kept of a single node.
pub(crate) const NODE_SECONDS_KEPT: u64 = 120;
/// Clusters, sites and nodes that are counted apart; more count in the total alone.
const KEYS_MAX: usize = 128;
/// A difference between reports further apart than this is spread over this time.
const SPREAD_MAX_MS: u64 = 60_000;

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Counts {
    /// By status.
    pub(crate) requests: [f64; 10],
    pub(crate) errors: f64,
    /// Body bytes, `local` left out.
    pub(crate) response_bytes: f64,
    pub(crate) origin_bytes: f64,
    pub(crate) origin_requests: f64,
    /// Body bytes that push orders fetched, from the origin and from neighbours: in no ratio.
    pub(crate) push_origin_bytes: f64,
    pub(crate) push_peer_bytes: f64,
    pub(crate) pushed_hits: f64,
    pub(crate) pushed_hit_bytes: f64,
}

impl Counts {
    /// What came between two totals of the same process; a total that is behind (reports can overtake one another) brought
    /// nothing.
    pub(crate) fn between(before: Option<&SiteTotals>, after: &SiteTotals) -> Self {
        let empty = SiteTotals::default();
        let before = before.unwrap_or(&empty);
        let less = |a: u64, b: u64| a.saturating_sub(b) as f64;
        let of = |map: &BTreeMap<String, u64>, status: &str| map.get(status).copied().unwrap_or(0);
        let mut counts = Self {
            errors: less(after.errors, before.errors),
            origin_bytes: less(after.origin_bytes, before.origin_bytes),
            origin_requests: less(after.origin_requests, before.origin_requests),
            push_origin_bytes: less(after.push_origin_bytes, before.push_origin_bytes),
            push_peer_bytes: less(after.push_peer_bytes, before.push_peer_bytes),
            pushed_hits: less(after.pushed_hits, before.pushed_hits),
            pushed_hit_bytes: less(after.pushed_hit_bytes, before.pushed_hit_bytes),
            ..Self::default()
        };
        for (status, total) in &after.requests {
            let index = STATUSES.iter().position(|s| s == status).unwrap_or(STATUSES.len() - 1);
            counts.requests[index] += less(*total, of(&before.requests, status));
        }
        for (status, total) in after.bytes.iter().filter(|(status, _)| *status != STATUSES[LOCAL]) {
            counts.response_bytes += less(*total, of(&before.bytes, status));
        }
        counts
    }

    /// Requests that were not `local`.
    pub(crate) fn counted(&self) -> f64 {
        self.requests.iter().sum::<f64>() - self.requests[LOCAL]
    }

    /// Requests that were hits.
    pub(crate) fn hits(&self) -> f64 {
        self.requests[..HITS].iter().sum()
    }

    pub(crate) fn add(&mut self, other: &Self, share: f64) {
        for (a, b) in self.requests.iter_mut().zip(other.requests) {
            *a += b * share;
        }
        self.errors += other.errors * share;
        self.response_bytes += other.response_bytes * share;
        self.origin_bytes += other.origin_bytes * share;
        self.origin_requests += other.origin_requests * share;
        self.push_origin_bytes += other.push_origin_bytes * share;
        self.push_peer_bytes += other.push_peer_bytes * share;
        self.pushed_hits += other.pushed_hits * share;
        self.pushed_hit_bytes += other.pushed_hit_bytes * share;
    }

    /// As an answer, over that many seconds.
    pub(crate) fn rates(&self, seconds: u64) -> view::Rates {
        let whole = |n: f64| n.round().max(0.0) as u64;
        let ratio = |part: f64, of: f64| (of >= 0.5).then(|| (part / of).clamp(0.0, 1.0));
        let a_second = |n: f64| n / seconds.max(1) as f64;
        view::Rates {
            seconds,
            requests: STATUSES.iter().zip(self.requests).filter(|(_, n)| *n >= 0.5).map(|(s, n)| ((*s).to_owned(), whole(n))).collect(),
            counted: whole(self.counted()),
            hits: whole(self.hits()),
            errors: whole(self.errors),
            requests_per_second: a_second(self.counted()),
            response_bytes: whole(self.response_bytes),
            origin_bytes: whole(self.origin_bytes),
            origin_requests: whole(self.origin_requests),
            push_origin_bytes: whole(self.push_origin_bytes),
            push_peer_bytes: whole(self.push_peer_bytes),
            egress_bits_per_second: a_second(self.response_bytes * 8.0),
            object_hit_ratio: ratio(self.hits(), self.counted()),
            byte_hit_ratio: ratio(self.response_bytes - self.origin_bytes, self.response_bytes),
            pushed_hits: whole(self.pushed_hits),
            pushed_hit_bytes: whole(self.pushed_hit_bytes),
            pushed_hit_ratio: ratio(self.pushed_hits, self.counted()),
        }
    }
}

/// Lifts totals to those of an earlier report of the same process, where that one has more.
pub(crate) fn lift(totals: &mut SiteTotals, earlier: &SiteTotals) {
    let lift_all = |to: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>| {
        for (status, total) in from {
            let to = to.entry(status.clone()).or_insert(0);
            *to = (*to).max(*total);
        }
    };
    lift_all(&mut totals.requests, &earlier.requests);
    lift_all(&mut totals.bytes, &earlier.bytes);
    totals.errors = totals.errors.max(earlier.errors);
    totals.origin_bytes = totals.origin_bytes.max(earlier.origin_bytes);
    totals.origin_requests = totals.origin_requests.max(earlier.origin_requests);
    totals.push_origin_bytes = totals.push_origin_bytes.max(earlier.push_origin_bytes);
    totals.push_peer_bytes = totals.push_peer_bytes.max(earlier.push_peer_bytes);
    totals.pushed_hits = totals.pushed_hits.max(earlier.pushed_hits);
    totals.pushed_hit_bytes = totals.pushed_hit_bytes.max(earlier.pushed_hit_bytes);
}

/// What is counted apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Total,
    Cluster(String),
    Site(String),
    Node(String),
}

#[derive(Debug, Default)]
struct Ring {
    /// Second after the epoch of the first cell.
    first: u64,
    cells: VecDeque<Counts>,
    since_start: Counts,
}

impl Ring {
    fn add(&mut self, second: u64, counts: &Counts, share: f64, kept: u64) {
        if self.cells.is_empty() {
            self.first = second;
        }
        if second < self.first {
            let missing = self.first - second;
            if missing + self.cells.len() as u64 > kept {
                return;
            }
            // Another node's time reaches further back.
            for _ in 0..missing {
                self.cells.push_front(Counts::default());
            }
            self.first = second;
        }
        let mut index = second - self.first;
        if index >= self.cells.len() as u64 + kept {
            // Everything kept is too old.
            self.cells.clear();
            self.first = second;
            index = 0;
        }
        while self.cells.len() as u64 <= index {
            self.cells.push_back(Counts::default());
        }
        while self.cells.len() as u64 > kept {
            self.cells.pop_front();
            self.first += 1;
        }
        let index = (second - self.first) as usize;
        self.cells[index].add(counts, share);
    }

    fn cell(&self, second: u64) -> Counts {
        second.checked_sub(self.first).and_then(|i| self.cells.get(i as usize)).copied().unwrap_or_default()
    }
}

/// All rings.
#[derive(Debug, Default)]
pub(crate) struct Series {
    rings: BTreeMap<Key, Ring>,
}

impl Series {
    /// Adds what was counted between two real times (milliseconds after the epoch).
    pub(crate) fn add(&mut self, key: Key, from_ms: u64, to_ms: u64, counts: &Counts) {
        if *counts == Counts::default() {
            return;
        }
        if !self.rings.contains_key(&key) && key != Key::Total {
            let kind = std::mem::discriminant(&key);
            if self.rings.keys().filter(|k| std::mem::discriminant(*k) == kind).count() >= KEYS_MAX {
                return;
            }
        }
        let kept = if matches!(key, Key::Node(_)) { NODE_SECONDS_KEPT } else { SECONDS_KEPT };
        let ring = self.rings.entry(key).or_default();
        ring.since_start.add(counts, 1.0);
        let from_ms = from_ms.min(to_ms).max(to_ms.saturating_sub(SPREAD_MAX_MS));
        let span = to_ms - from_ms;
        if span == 0 {
            ring.add(to_ms / 1000, counts, 1.0, kept);
            return;
        }
        for second in from_ms / 1000..=(to_ms - 1) / 1000 {
            let inside = to_ms.min((second + 1) * 1000) - from_ms.max(second * 1000);
            ring.add(second, counts, inside as f64 / span as f64, kept);
        }
    }

    /// The sum over `seconds` that end before second `end`.
    pub(crate) fn recent(&self, key: &Key, end: u64, seconds: u64) -> Counts {
        let mut sum = Counts::default();
        if let Some(ring) = self.rings.get(key) {
            for second in end.saturating_sub(seconds)..end {
                sum.add(&ring.cell(second), 1.0);
            }
        }
        sum
    }

    /// Everything that was ever added.
    pub(crate) fn since_start(&self, key: &Key) -> Counts {
        self.rings.get(key).map(|r| r.since_start).unwrap_or_default()
    }

    /// By second, `seconds` of them that end before second `end`.
    pub(crate) fn line(&self, key: &Key, end: u64, seconds: u64) -> view::Line {
        let mut line = view::Line::default();
        let round = |n: f64| (n * 1000.0).round() / 1000.0;
        for second in end.saturating_sub(seconds)..end {
            let cell = self.rings.get(key).map(|r| r.cell(second)).unwrap_or_default();
            line.counted.push(round(cell.counted()));
            line.hits.push(round(cell.hits()));
            line.errors.push(round(cell.errors));
            line.response_bytes.push(cell.response_bytes.round());
            line.origin_bytes.push(cell.origin_bytes.round());
            line.push_origin_bytes.push(cell.push_origin_bytes.round());
            line.pushed_hits.push(round(cell.pushed_hits));
            line.pushed_hit_bytes.push(cell.pushed_hit_bytes.round());
        }
        line
    }

    /// Requests by cache status and second; statuses that never occur are left out.
    pub(crate) fn statuses(&self, end: u64, seconds: u64) -> BTreeMap<String, Vec<f64>> {
        let Some(ring) = self.rings.get(&Key::Total) else { return BTreeMap::new() };
        let mut lines = BTreeMap::new();
        for (index, status) in STATUSES.iter().enumerate() {
            let line: Vec<f64> =
                (end.saturating_sub(seconds)..end).map(|s| (ring.cell(s).requests[index] * 1000.0).round() / 1000.0).collect();
            if line.iter().any(|n| *n > 0.0) {
                lines.insert((*status).to_owned(), line);
            }
        }
        lines
    }

    /// Forgets clusters, sites and nodes for which `keep` is false.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        self.rings.retain(|key, _| *key == Key::Total || keep(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(hit: u64, miss: u64, bytes: u64, origin_bytes: u64) -> SiteTotals {
        SiteTotals {
            requests: [("hit".to_owned(), hit), ("miss".to_owned(), miss)].into(),
            bytes: [("hit".to_owned(), bytes), ("local".to_owned(), 5)].into(),
            origin_bytes,
            ..SiteTotals::default()
        }
    }

    #[test]
    fn totals_become_differences() {
        let table = [
            (None, totals(10, 2, 100, 20), (12.0, 10.0, 100.0, 20.0)),
            (Some(totals(10, 2, 100, 20)), totals(15, 2, 180, 20), (5.0, 5.0, 80.0, 0.0)),
            (Some(totals(10, 2, 100, 20)), totals(9, 3, 100, 5), (1.0, 0.0, 0.0, 0.0)),
        ];
        for (before, after, (counted, hits, bytes, origin)) in table {
            let c = Counts::between(before.as_ref(), &after);
            assert_eq!((c.counted(), c.hits(), c.response_bytes, c.origin_bytes), (counted, hits, bytes, origin));
        }
        let mut overtaken = totals(9, 3, 90, 30);
        lift(&mut overtaken, &totals(10, 2, 100, 20));
        assert_eq!(overtaken, totals(10, 3, 100, 30));
        let odd = SiteTotals { requests: [("new-status".to_owned(), 3), ("local".to_owned(), 9)].into(), ..SiteTotals::default() };
        let c = Counts::between(None, &odd);
        assert_eq!((c.counted(), c.hits()), (3.0, 0.0), "unknown statuses count, local ones do not");
    }

    #[test]
    fn ratios_are_null_until_something_is_counted() {
        let nothing = Counts::default().rates(30);
        assert_eq!((nothing.object_hit_ratio, nothing.byte_hit_ratio, nothing.pushed_hit_ratio), (None, None, None));
        let some = Counts::between(None, &totals(9, 1, 1000, 100)).rates(10);
        assert_eq!((some.object_hit_ratio, some.byte_hit_ratio, some.requests_per_second), (Some(0.9), Some(0.9), 1.0));
        assert_eq!(some.requests, [("hit".to_owned(), 9), ("miss".to_owned(), 1)].into());
        let more_from_origin = Counts::between(None, &totals(9, 1, 100, 1000)).rates(10);
        assert_eq!(more_from_origin.byte_hit_ratio, Some(0.0));
    }

    #[test]
    fn a_difference_is_spread_over_its_time() {
        let c = Counts::between(None, &totals(10, 0, 1000, 0));
        let table = [
            (10_000, 12_000, vec![(10, 5.0), (11, 5.0), (12, 0.0)]),
            (10_500, 12_500, vec![(10, 2.5), (11, 5.0), (12, 2.5)]),
            (10_200, 10_700, vec![(10, 10.0)]),
            (10_000, 10_000, vec![(10, 10.0)]),
            (0, 100_000, vec![(39, 0.0), (40, 10.0 / 60.0), (99, 10.0 / 60.0), (100, 0.0)]),
        ];
        for (from, to, expected) in table {
            let mut s = Series::default();
            s.add(Key::Total, from, to, &c);
            for (second, hits) in expected {
                let got = s.recent(&Key::Total, second + 1, 1).hits();
                assert!((got - hits).abs() < 1e-9, "{from}..{to}: {got} at {second}, expected {hits}");
            }
            assert!((s.recent(&Key::Total, 200, 200).hits() - 10.0).abs() < 1e-9);
        }
    }

    #[test]
    fn an_hour_is_kept_and_no_more_keys_than_the_limit() {
        let c = Counts::between(None, &totals(1, 0, 0, 0));
        let mut s = Series::default();
        for second in 0..2 * SECONDS_KEPT {
            s.add(Key::Total, second * 1000, second * 1000 + 1000, &c);
        }
        assert_eq!(s.recent(&Key::Total, 2 * SECONDS_KEPT, 2 * SECONDS_KEPT).hits(), SECONDS_KEPT as f64);
        assert_eq!(s.since_start(&Key::Total).hits(), 2.0 * SECONDS_KEPT as f64);
        s.add(Key::Total, 99_999_000, 100_000_000, &c);
        assert_eq!(s.rings[&Key::Total].cells.len(), 1, "a long silence leaves nothing");
        s.add(Key::Total, 1000, 2000, &c);
        assert_eq!(s.recent(&Key::Total, 100_000, 100_000).hits(), 1.0, "what is too old is not counted by second");
        for n in 0..2 * KEYS_MAX {
            s.add(Key::Site(n.to_string()), 0, 1000, &c);
        }
        assert_eq!(s.rings.len(), KEYS_MAX + 1);
        s.retain(|k| *k == Key::Site("7".into()));
        assert_eq!(s.rings.len(), 2);
    }

    #[test]
    fn lines_have_one_value_a_second() {
        let c = Counts::between(None, &totals(4, 2, 100, 50));
        let mut s = Series::default();
        s.add(Key::Total, 5000, 7000, &c);
        let line = s.line(&Key::Total, 8, 4);
        assert_eq!(
            (line.hits, line.counted, line.origin_bytes),
            (vec![0.0, 2.0, 2.0, 0.0], vec![0.0, 3.0, 3.0, 0.0], vec![0.0, 25.0, 25.0, 0.0])
        );
        assert_eq!(s.statuses(8, 4), [("hit".to_owned(), vec![0.0, 2.0, 2.0, 0.0]), ("miss".to_owned(), vec![0.0, 1.0, 1.0, 0.0])].into());
        assert_eq!(s.line(&Key::Site("x".into()), 8, 4).hits, vec![0.0; 4]);
    }
}
