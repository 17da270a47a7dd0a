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
