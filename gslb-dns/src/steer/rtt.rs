//! Measured round-trip times by client prefix and cluster.
//!
//! Edges report what their own TCP connections show, by /24 and /48. Each value is smoothed over reports, ages, and no longer counts when
//! it is too old. Where a prefix has no value for a cluster, the mean over its /20 (or /40) stands in if two or more of its
//! prefixes have one; where that is missing too, geography decides.
//!
//! The query path reads a compiled copy ([`RttMap`]), made anew when something changed or aged.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nearcast_fleet::report::RttSample;

use super::select::UNMEASURED;

/// Most prefixes kept; the ones not heard of for longest make room.
pub(super) const PREFIXES_MAX: usize = 65_536;
/// Most samples taken from one report.
pub(super) const SAMPLES_MAX: usize = 4_096;
/// Longer times are taken for a mistake of the measurement.
const RTT_US_MAX: u32 = 10_000_000;
/// Weight of what was known, after one more connection.
const KEEP_PER_SAMPLE: f32 = 0.8;
/// Connections beyond this in one report add no weight.
const SAMPLES_WEIGHT_MAX: u32 = 16;
/// Prefixes of an aggregate that need a value before it has one.
const AGGREGATE_OF_MIN: u32 = 2;

/// A prefix as a number: /24 and /48, and the aggregates over them.
fn key(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(ip) => 1 << 60 | u64::from(u32::from(ip) >> 8),
        IpAddr::V6(ip) => 2 << 60 | (u128::from(ip) >> 80) as u64,
    }
}

/// The /20 over a /24, the /40 over a /48.
fn aggregate(key: u64) -> u64 {
    let (family, bits) = (key >> 60, key & ((1 << 60) - 1));
    if family == 1 { 3 << 60 | bits >> 4 } else { 4 << 60 | bits >> 8 }
}

/// What is known of one cluster for one prefix.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Cell {
    /// Smoothed mean, microseconds.
    pub(super) smoothed_us: f32,
    /// Least since the value was last too old, microseconds.
    pub(super) min_us: u32,
    /// Connections it comes from; 0 for none.
    pub(super) samples: u32,
    /// When the last report came, milliseconds after the Unix epoch.
    pub(super) at_ms: u64,
}

impl Cell {
    fn is_fresh(&self, now_ms: u64, max_age_ms: u64) -> bool {
        self.samples > 0 && now_ms.saturating_sub(self.at_ms) <= max_age_ms
    }
}

#[derive(Debug)]
struct Entry {
    /// By cluster.
    cells: Box<[Cell]>,
    touched_ms: u64,
}

/// All measurements. One writer at a time.
#[derive(Debug, Default)]
pub(super) struct RttTable {
    clusters: Vec<String>,
    entries: HashMap<u64, Entry>,
    limit: usize,
}

impl RttTable {
    /// For these clusters.
    pub(super) fn new(clusters: Vec<String>) -> Self {
        Self { clusters, entries: HashMap::new(), limit: PREFIXES_MAX }
    }

    /// Goes over to another list of clusters; those that stay keep their values.
    pub(super) fn set_clusters(&mut self, clusters: Vec<String>) {
        if clusters == self.clusters {
            return;
        }
        let from: Vec<Option<usize>> = clusters.iter().map(|c| self.clusters.iter().position(|old| old == c)).collect();
        for entry in self.entries.values_mut() {
            entry.cells = from.iter().map(|old| old.map_or(Cell::default(), |i| entry.cells[i])).collect();
        }
        self.clusters = clusters;
    }

    /// Takes in one sample. Says whether it was of use.
    pub(super) fn add(&mut self, cluster: usize, sample: &RttSample, now_ms: u64, max_age_ms: u64) -> bool {
        let long_enough = match sample.prefix {
            IpNet::V4(net) => net.prefix_len() >= 24,
            IpNet::V6(net) => net.prefix_len() >= 48,
        };
        let plausible = (1..=RTT_US_MAX).contains(&sample.mean_us) && sample.count > 0;
        if !long_enough || !plausible || cluster >= self.clusters.len() {
            return false;
        }
        let key = key(sample.prefix.addr());
        if self.entries.len() >= self.limit && !self.entries.contains_key(&key) {
            self.make_room();
        }
        let clusters = self.clusters.len();
        let entry = self.entries.entry(key).or_insert_with(|| Entry { cells: vec![Cell::default(); clusters].into(), touched_ms: now_ms });
        entry.touched_ms = now_ms;
        let cell = &mut entry.cells[cluster];
        let min_us = sample.min_us.clamp(1, sample.mean_us);
        *cell = if cell.is_fresh(now_ms, max_age_ms) {
            let keep = KEEP_PER_SAMPLE.powi(sample.count.min(SAMPLES_WEIGHT_MAX) as i32);
            Cell {
                smoothed_us: cell.smoothed_us * keep + sample.mean_us as f32 * (1.0 - keep),
                min_us: cell.min_us.min(min_us),
                samples: cell.samples.saturating_add(sample.count),
                at_ms: now_ms,
            }
        } else {
            Cell { smoothed_us: sample.mean_us as f32, min_us, samples: sample.count, at_ms: now_ms }
        };
        true
    }

    /// Lets the sixteenth go that was not heard of for longest.
    fn make_room(&mut self) {
        let mut ages: Vec<(u64, u64)> = self.entries.iter().map(|(key, e)| (e.touched_ms, *key)).collect();
        let count = (self.limit / 16).max(1).min(ages.len());
        if count < ages.len() {
            ages.select_nth_unstable(count);
        }
        for (_, key) in &ages[..count] {
            self.entries.remove(key);
        }
    }

    /// What is known for an address and a cluster itself, aggregates aside.
    pub(super) fn cell(&self, address: IpAddr, cluster: usize) -> Option<Cell> {
        let cell = *self.entries.get(&key(address))?.cells.get(cluster)?;
        (cell.samples > 0).then_some(cell)
    }

    /// Drops what is too old and compiles the rest.
    pub(super) fn compile(&mut self, now_ms: u64, max_age_ms: u64) -> RttMap {
        self.entries.retain(|_, e| e.cells.iter().any(|c| c.is_fresh(now_ms, max_age_ms)));
        let width = self.clusters.len();
        // Weighted sum, weight, and number of prefixes, by cluster.
        let mut aggregates: HashMap<u64, Vec<(f64, f64, u32)>> = HashMap::new();
        for (key, entry) in &self.entries {
            let sums = aggregates.entry(aggregate(*key)).or_insert_with(|| vec![(0.0, 0.0, 0); width]);
            for (sum, cell) in sums.iter_mut().zip(&entry.cells).filter(|(_, c)| c.is_fresh(now_ms, max_age_ms)) {
                let weight = f64::from(cell.samples.min(64));
                *sum = (sum.0 + f64::from(cell.smoothed_us) * weight, sum.1 + weight, sum.2 + 1);
            }
        }
        let mean = |sum: &(f64, f64, u32)| if sum.2 < AGGREGATE_OF_MIN { UNMEASURED } else { (sum.0 / sum.1) as u32 };
        let useful = aggregates.iter().filter(|(_, sums)| sums.iter().any(|s| s.2 >= AGGREGATE_OF_MIN));
        let mut map = RttMap::with_room(self.entries.len() + useful.clone().count(), width);
        map.prefixes = self.entries.len();
        for (key, entry) in &self.entries {
            let around = &aggregates[&aggregate(*key)];
            let row = entry
                .cells
                .iter()
                .zip(around)
                .map(|(cell, sum)| if cell.is_fresh(now_ms, max_age_ms) { cell.smoothed_us.round() as u32 } else { mean(sum) });
            map.insert(*key, row);
        }
        for (key, sums) in useful {
            map.insert(*key, sums.iter().map(mean));
        }
        map
    }
}

/// The compiled copy: an open-addressed table of rows. Immutable.
#[derive(Debug, Default)]
pub(super) struct RttMap {
    /// Key and row; a key of 0 is an empty slot. A power of two long, or empty.
    slots: Vec<(u64, u32)>,
    rows: Vec<u32>,
    width: usize,
    /// Prefixes with a fresh measurement, without aggregates.
    pub(super) prefixes: usize,
}

impl RttMap {
    fn with_room(count: usize, width: usize) -> Self {
        let slots = if count == 0 { Vec::new() } else { vec![(0, 0); (count * 2).next_power_of_two()] };
        Self { slots, rows: Vec::with_capacity(count * width), width, prefixes: 0 }
    }

    fn first_slot(&self, key: u64) -> usize {
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (self.slots.len() - 1)
    }

    fn insert(&mut self, key: u64, row: impl Iterator<Item = u32>) {
        let mut slot = self.first_slot(key);
        while self.slots[slot].0 != 0 {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = (key, (self.rows.len() / self.width.max(1)) as u32);
        self.rows.extend(row);
    }

    fn row(&self, key: u64) -> Option<&[u32]> {
        if self.slots.is_empty() {
            return None;
        }
        let mut slot = self.first_slot(key);
        // At most half of the slots are taken, so an empty one ends this.
        while self.slots[slot].0 != 0 {
            if self.slots[slot].0 == key {
                let start = self.slots[slot].1 as usize * self.width;
                return self.rows.get(start..start + self.width);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        None
    }

    /// Microseconds by cluster ([`UNMEASURED`] where there is none) for an address, from its prefix or the aggregate over it.
    pub(super) fn find(&self, address: IpAddr) -> Option<&[u32]> {
        let key = key(address);
        self.row(key).or_else(|| self.row(aggregate(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn sample(prefix: &str, count: u32, mean_us: u32) -> RttSample {
        RttSample { prefix: prefix.parse().unwrap(), count, min_us: mean_us / 2, mean_us }
    }

    fn table() -> RttTable {
        RttTable::new(vec!["ams".into(), "nyc".into()])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn smooths_and_keeps_the_least() {
        let mut table = table();
        let client = ip("198.51.100.7");
        assert!(table.add(0, &sample("198.51.100.0/24", 1, 10_000), 1_000, HOUR));
        assert_eq!(table.cell(client, 0).unwrap().smoothed_us, 10_000.0, "the first value counts whole");
        table.add(0, &sample("198.51.100.0/24", 1, 20_000), 2_000, HOUR);
        let cell = table.cell(client, 0).unwrap();
        assert!((cell.smoothed_us - 12_000.0).abs() < 1.0, "{cell:?}");
        assert_eq!((cell.min_us, cell.samples, cell.at_ms), (5_000, 2, 2_000));
        table.add(0, &sample("198.51.100.0/24", 1_000, 30_000), 3_000, HOUR);
        let heavy = table.cell(client, 0).unwrap().smoothed_us;
        assert!((29_000.0..30_000.0).contains(&heavy), "many connections weigh more, but not everything: {heavy}");
        assert_eq!(table.cell(client, 1), None);
        assert_eq!(table.cell(ip("198.51.101.7"), 0), None);
    }

    #[test]
    fn old_values_do_not_count_and_do_not_last() {
        let mut table = table();
        let client = ip("198.51.100.7");
        table.add(0, &sample("198.51.100.0/24", 8, 10_000), 0, 1_000);
        table.add(1, &sample("198.51.100.0/24", 8, 40_000), 600, 1_000);
        for (now, expected, prefixes) in [
            (1_000, Some([10_000, 40_000]), 1),
            (1_001, Some([UNMEASURED, 40_000]), 1),
            (1_600, Some([UNMEASURED, 40_000]), 1),
            (1_601, None, 0),
        ] {
            let map = table.compile(now, 1_000);
            assert_eq!(map.find(client), expected.as_ref().map(|r| &r[..]), "at {now}");
            assert_eq!(map.prefixes, prefixes, "at {now}");
        }
        table.add(0, &sample("198.51.100.0/24", 1, 99_000), 5_000, 1_000);
        let cell = table.cell(client, 0).unwrap();
        assert_eq!((cell.smoothed_us, cell.min_us, cell.samples), (99_000.0, 49_500, 1), "a value after a gap starts anew");
    }

    #[test]
    fn only_plausible_samples_are_taken() {
        for (case, taken) in [
            (sample("198.51.100.0/24", 1, 1), true),
            (sample("198.51.100.128/25", 1, 1), true),
            (sample("198.51.100.0/23", 1, 1), false),
            (sample("2001:db8::/48", 1, 1), true),
            (sample("2001:db8::/47", 1, 1), false),
            (sample("198.51.100.0/24", 0, 1), false),
            (sample("198.51.100.0/24", 1, 0), false),
            (sample("198.51.100.0/24", 1, RTT_US_MAX), true),
            (sample("198.51.100.0/24", 1, RTT_US_MAX + 1), false),
        ] {
            assert_eq!(table().add(0, &case, 0, HOUR), taken, "{case:?}");
        }
        assert!(!table().add(2, &sample("198.51.100.0/24", 1, 1), 0, HOUR), "no such cluster");
    }

    #[test]
    fn neighbours_stand_in_when_there_are_enough() {
        let mut table = table();
        // Two /24s of 203.0.112.0/20 for ams, one for nyc.
        table.add(0, &sample("203.0.112.0/24", 1, 10_000), 0, HOUR);
        table.add(0, &sample("203.0.113.0/24", 3, 30_000), 0, HOUR);
        table.add(1, &sample("203.0.112.0/24", 1, 70_000), 0, HOUR);
        table.add(0, &sample("2001:db8:100::/48", 1, 10_000), 0, HOUR);
        table.add(0, &sample("2001:db8:1ff::/48", 1, 20_000), 0, HOUR);
        let map = table.compile(0, HOUR);
        assert_eq!(map.prefixes, 4);
        for (client, expected) in [
            ("203.0.112.9", Some([10_000, 70_000])),
            ("203.0.113.9", Some([30_000, UNMEASURED])),
            ("203.0.127.9", Some([25_000, UNMEASURED])), // weighted by connections
            ("203.0.128.9", None),
            ("2001:db8:1aa::1", Some([15_000, UNMEASURED])),
            ("2001:db8:200::1", None),
        ] {
            assert_eq!(map.find(ip(client)), expected.as_ref().map(|r| &r[..]), "{client}");
        }
    }

    #[test]
    fn the_least_recent_make_room() {
        let mut table = table();
        table.limit = 32;
        for i in 0..100_u8 {
            table.add(0, &sample(&format!("10.0.{i}.0/24"), 1, 1_000), u64::from(i), HOUR);
            assert!(table.entries.len() <= 32);
        }
        assert!(table.cell(ip("10.0.99.1"), 0).is_some());
        assert!(table.cell(ip("10.0.75.1"), 0).is_some());
        assert!(table.cell(ip("10.0.60.1"), 0).is_none());
    }

    #[test]
    fn clusters_that_stay_keep_their_values() {
        let mut table = table();
        table.add(0, &sample("198.51.100.0/24", 1, 1_000), 0, HOUR);
        table.add(1, &sample("198.51.100.0/24", 1, 2_000), 0, HOUR);
        table.set_clusters(vec!["sin".into(), "nyc".into(), "ams".into()]);
        let map = table.compile(0, HOUR);
        assert_eq!(map.find(ip("198.51.100.1")), Some(&[UNMEASURED, 2_000, 1_000][..]));
        table.set_clusters(vec!["sin".into()]);
        assert_eq!(table.compile(0, HOUR).find(ip("198.51.100.1")), None);
    }

    #[test]
    fn a_full_map_finds_everything_and_nothing_else() {
        let mut table = table();
        for i in 0..4_000_u32 {
            let prefix = IpNet::new(IpAddr::from((i << 16).to_be_bytes()), 24).unwrap();
            table.add(0, &RttSample { prefix, count: 1, min_us: 1, mean_us: i + 1 }, 0, HOUR);
        }
        let map = table.compile(0, HOUR);
        for i in 0..4_000_u32 {
            assert_eq!(map.find(IpAddr::from((i << 16 | 5).to_be_bytes())), Some(&[i + 1, UNMEASURED][..]));
            assert_eq!(map.find(IpAddr::from((i << 16 | 0x8000).to_be_bytes())), None);
        }
        assert_eq!(RttMap::default().find(ip("192.0.2.1")), None);
    }
}
