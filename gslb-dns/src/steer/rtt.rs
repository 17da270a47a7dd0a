//! Measured round-trip times by client prefix and cluster.
//!
//! Edges report what their own TCP connections show, by /24 and /48. Each node's value is smoothed
//! over its reports, ages, and no longer counts when it is too old. What a cluster's time is, its
//! nodes decide together: the median of them. Where a prefix has no value for a cluster, the mean
//! over its /20 (or /40) stands in if two or more of its prefixes have one; where that is missing
//! too, geography decides.
//!
//! **What one node says moves nobody.** A node may be broken or taken over, and what it measures
//! nobody else can repeat. So a measurement is held against three things that it cannot choose:
//!
//! - *light*: the times of two clusters to one prefix together are at least the time of light in
//!   fibre between the two. Where they are less, one is false: the one with fewer voices, the place
//!   of the prefix having one;
//! - *the other nodes of its cluster*: a value that differs from what most say is dropped, and of
//!   two that differ the one that is nearer to what the distance lets expect counts;
//! - *the nearest cluster*: it serves the clients of a prefix, so it has measured them. Another
//!   cluster takes them only if it is quicker than it can be by distance with two voices, or with
//!   one where the nearest cluster itself says that it is slow; and the nearest cluster's being
//!   slow takes two voices, be it that of another cluster that shows the place to be wrong.
//!
//! What is dropped is counted by node. Laboratories whose places are invented turn all of this off
//! (`steering.rtt_bound`).
//!
//! The query path reads a compiled copy ([`RttMap`]), made anew when something changed or aged.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::report::RttSample;

use super::location::{Atlas, ClientPlace};
use super::plan::distance_km;
use super::select::UNMEASURED;

/// Most prefixes kept.
pub(super) const PREFIXES_MAX: usize = 65_536;
/// Most values of nodes kept, for each prefix on average. Where there are more, the node with the
/// most loses its oldest: so one that reports about everything pushes out its own.
const VOICES_PER_PREFIX: usize = 8;
/// Nodes of one cluster whose values are kept for one prefix; the one not heard of for longest
/// makes room.
const VOICES_MAX: usize = 5;
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

/// Light in fibre, there and back: 200 km in a millisecond one way.
const LIGHT_US_PER_KM: f64 = 10.0;
/// A cluster is within so many kilometres of the place that the fleet file gives.
const CLUSTER_SLACK_KM: f64 = 100.0;
/// A client is, for what speaks against a measurement, within so many kilometres of its place.
const CLIENT_SLACK_KM: f64 = 500.0;
/// What is expected at a distance when nothing was measured, as selection guesses it.
const EXPECTED_US: f64 = 20_000.0;
const EXPECTED_US_PER_KM: f64 = 20.0;
/// The nearest cluster is slow when it takes so much longer than expected.
const SLOW_US: f64 = 30_000.0;
/// Values of two nodes agree within so much, or a factor of two.
const AGREE_US: f64 = 20_000.0;

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
    if family == 1 {
        3 << 60 | bits >> 4
    } else {
        4 << 60 | bits >> 8
    }
}

/// What is known of one cluster for one prefix.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Cell {
    /// The median of its nodes, microseconds.
    pub(super) smoothed_us: f32,
    /// Least that a node has measured since its value was last too old, microseconds.
    pub(super) min_us: u32,
    /// Connections it comes from; 0 for none.
    pub(super) samples: u32,
    /// When the last report came, milliseconds after the Unix epoch.
    pub(super) at_ms: u64,
}

/// What one node says of one prefix.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Voice {
    /// Index into [`Layout::nodes`].
    node: u16,
    smoothed_us: f32,
    min_us: u32,
    samples: u32,
    at_ms: u64,
    /// Whether it was counted as dropped since its last report.
    is_counted: bool,
}

impl Voice {
    fn is_fresh(&self, now_ms: u64, max_age_ms: u64) -> bool {
        now_ms.saturating_sub(self.at_ms) <= max_age_ms
    }
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    voices: Vec<Voice>,
}

/// The clusters and nodes that measure, and where they are.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Layout {
    clusters: Vec<(String, (f64, f64))>,
    /// Names, with the cluster of each.
    nodes: Vec<(String, usize)>,
}

impl Layout {
    /// Of a fleet.
    pub(super) fn of(fleet: &Fleet) -> Self {
        let clusters = fleet
            .clusters
            .iter()
            .map(|c| (c.name.clone(), (c.place.latitude, c.place.longitude)))
            .collect();
        let nodes = fleet
            .clusters
            .iter()
            .enumerate()
            .flat_map(|(i, c)| c.nodes.iter().map(move |n| (n.name.clone(), i)));
        // A fleet has fewer nodes than a `u16` counts; those beyond would not be heard.
        Self {
            clusters,
            nodes: nodes.take(usize::from(u16::MAX)).collect(),
        }
    }

    fn node(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|(node, _)| node == name)
    }

    /// The least time between two clusters, microseconds.
    fn light_us(&self, a: usize, b: usize) -> f64 {
        light_us(distance_km(self.clusters[a].1, self.clusters[b].1) - CLUSTER_SLACK_KM)
    }
}

fn light_us(km: f64) -> f64 {
    km.max(0.0) * LIGHT_US_PER_KM
}

/// All measurements. One writer at a time.
#[derive(Debug, Default)]
pub(super) struct RttTable {
    layout: Layout,
    entries: HashMap<u64, Entry>,
    /// Values held of each node.
    held: Vec<usize>,
    /// Reported values that were dropped, by node.
    dropped: HashMap<String, u64>,
    limit: usize,
}

impl RttTable {
    /// For these clusters and nodes.
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            held: vec![0; layout.nodes.len()],
            layout,
            limit: PREFIXES_MAX,
            ..Self::default()
        }
    }

    /// Goes over to other clusters and nodes; those that stay keep their values.
    pub(super) fn set_layout(&mut self, layout: Layout) {
        if layout == self.layout {
            return;
        }
        let to: Vec<Option<usize>> = self
            .layout
            .nodes
            .iter()
            .map(|(name, _)| layout.node(name))
            .collect();
        self.held = vec![0; layout.nodes.len()];
        let held = &mut self.held;
        self.entries.retain(|_, entry| {
            entry
                .voices
                .retain_mut(|voice| match to[usize::from(voice.node)] {
                    Some(node) => {
                        (voice.node, held[node]) = (node as u16, held[node] + 1);
                        true
                    }
                    None => false,
                });
            !entry.voices.is_empty()
        });
        self.dropped.retain(|name, _| layout.node(name).is_some());
        self.layout = layout;
    }

    /// Takes in one sample of a node. Says whether it was of use.
    pub(super) fn add(
        &mut self,
        node: &str,
        sample: &RttSample,
        now_ms: u64,
        max_age_ms: u64,
    ) -> bool {
        let long_enough = match sample.prefix {
            IpNet::V4(net) => net.prefix_len() >= 24,
            IpNet::V6(net) => net.prefix_len() >= 48,
        };
        let plausible = (1..=RTT_US_MAX).contains(&sample.mean_us) && sample.count > 0;
        let Some(node) = self.layout.node(node).filter(|_| long_enough && plausible) else {
            return false;
        };
        let address = sample.prefix.addr();
        let key = key(address);
        let known = self.entries.get(&key);
        let has_value = known.is_some_and(|entry| {
            entry
                .voices
                .iter()
                .any(|voice| usize::from(voice.node) == node)
        });
        if !has_value
            && (self.voices() >= self.limit * VOICES_PER_PREFIX
                || (known.is_none() && self.entries.len() >= self.limit))
        {
            self.make_room();
        }
        let (nodes, held) = (&self.layout.nodes, &mut self.held);
        let entry = self.entries.entry(key).or_insert_with(|| Entry {
            address,
            voices: Vec::with_capacity(1),
        });
        let min_us = sample.min_us.clamp(1, sample.mean_us);
        let fresh = Voice {
            node: node as u16,
            smoothed_us: sample.mean_us as f32,
            min_us,
            samples: sample.count,
            at_ms: now_ms,
            is_counted: false,
        };
        if let Some(voice) = entry
            .voices
            .iter_mut()
            .find(|voice| usize::from(voice.node) == node)
        {
            *voice = if voice.is_fresh(now_ms, max_age_ms) {
                let keep = KEEP_PER_SAMPLE.powi(sample.count.min(SAMPLES_WEIGHT_MAX) as i32);
                Voice {
                    smoothed_us: voice.smoothed_us * keep + sample.mean_us as f32 * (1.0 - keep),
                    min_us: voice.min_us.min(min_us),
                    samples: voice.samples.saturating_add(sample.count),
                    ..fresh
                }
            } else {
                fresh
            };
            return true;
        }
        let cluster = nodes[node].1;
        let of_cluster = || {
            entry
                .voices
                .iter()
                .enumerate()
                .filter(|(_, voice)| nodes[usize::from(voice.node)].1 == cluster)
        };
        if of_cluster().count() >= VOICES_MAX
            && let Some((oldest, _)) = of_cluster().min_by_key(|(_, voice)| voice.at_ms)
        {
            let gone = entry.voices.swap_remove(oldest);
            held[usize::from(gone.node)] -= 1;
        }
        entry.voices.push(fresh);
        held[node] += 1;
        true
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= self.limit || self.voices() >= self.limit * VOICES_PER_PREFIX
    }

    /// Values of all nodes.
    fn voices(&self) -> usize {
        self.held.iter().sum()
    }

    /// Takes a sixteenth of the room from the node that has the most: its oldest values.
    fn make_room(&mut self) {
        let count = (self.limit / 16).max(1);
        while self.is_full() {
            let Some(most) = (0..self.held.len())
                .max_by_key(|node| self.held[*node])
                .filter(|node| self.held[*node] > 0)
            else {
                return;
            };
            let is_its = |voice: &&Voice| usize::from(voice.node) == most;
            let mut ages: Vec<(u64, u64)> = self
                .entries
                .iter()
                .filter_map(|(key, e)| Some((e.voices.iter().find(is_its)?.at_ms, *key)))
                .collect();
            let count = count.min(ages.len());
            if count < ages.len() {
                ages.select_nth_unstable(count);
            }
            for (_, key) in &ages[..count] {
                let Some(entry) = self.entries.get_mut(key) else {
                    continue;
                };
                entry.voices.retain(|voice| usize::from(voice.node) != most);
                if entry.voices.is_empty() {
                    self.entries.remove(key);
                }
            }
            self.held[most] -= count;
        }
    }

    /// What a cluster's nodes say for an address itself, aggregates aside.
    pub(super) fn cell(&self, address: IpAddr, cluster: usize) -> Option<Cell> {
        let entry = self.entries.get(&key(address))?;
        let said: Vec<&Voice> = entry
            .voices
            .iter()
            .filter(|voice| self.layout.nodes[usize::from(voice.node)].1 == cluster)
            .collect();
        let mut times: Vec<f64> = said
            .iter()
            .map(|voice| f64::from(voice.smoothed_us))
            .collect();
        Some(Cell {
            smoothed_us: median(&mut times)? as f32,
            min_us: said.iter().map(|voice| voice.min_us).min()?,
            samples: said
                .iter()
                .fold(0, |sum, voice| sum.saturating_add(voice.samples)),
            at_ms: said.iter().map(|voice| voice.at_ms).max()?,
        })
    }

    /// Reported values that were dropped, by node.
    pub(super) fn dropped(&self) -> impl Iterator<Item = (&str, u64)> {
        self.dropped
            .iter()
            .map(|(node, count)| (node.as_str(), *count))
    }

    /// Drops what is too old and compiles the rest; judges it by the places of an atlas, or takes
    /// it as it is without one.
    pub(super) fn compile(
        &mut self,
        now_ms: u64,
        max_age_ms: u64,
        places: Option<&Atlas>,
    ) -> RttMap {
        let (held, mut next_expiry_ms) = (&mut self.held, u64::MAX);
        self.entries.retain(|_, entry| {
            entry.voices.retain(|voice| {
                let is_fresh = voice.is_fresh(now_ms, max_age_ms);
                held[usize::from(voice.node)] -= usize::from(!is_fresh);
                if is_fresh {
                    next_expiry_ms = next_expiry_ms
                        .min(voice.at_ms.saturating_add(max_age_ms).saturating_add(1));
                }
                is_fresh
            });
            !entry.voices.is_empty()
        });
        let width = self.layout.clusters.len();
        let mut judge = Judge::new(&self.layout, places);
        // By cluster for each prefix; weighted sum, weight, and number of prefixes, by cluster, for
        // each aggregate.
        let mut rows: Vec<(u64, Vec<Option<Said>>)> = Vec::with_capacity(self.entries.len());
        let mut aggregates: HashMap<u64, (IpAddr, Vec<Sum>)> = HashMap::new();
        for (key, entry) in &mut self.entries {
            let row = judge.row(entry, &mut self.dropped);
            let (_, sums) = aggregates
                .entry(aggregate(*key))
                .or_insert_with(|| (entry.address, vec![(0.0, 0.0, 0); width]));
            for (sum, said) in sums.iter_mut().zip(&row) {
                if let Some(said) = said {
                    *sum = (
                        sum.0 + said.us * said.weight,
                        sum.1 + said.weight,
                        sum.2 + 1,
                    );
                }
            }
            rows.push((*key, row));
        }
        let mean = |sum: &Sum| (sum.2 >= AGGREGATE_OF_MIN).then(|| sum.0 / sum.1);
        let mut around: HashMap<u64, Vec<Option<f64>>> = HashMap::new();
        for (key, (address, sums)) in &aggregates {
            let mut row: Vec<Option<f64>> = sums.iter().map(mean).collect();
            judge.nearest_first(*address, &mut row);
            around.insert(*key, row);
        }
        let useful = || {
            around
                .iter()
                .filter(|(_, row)| row.iter().any(Option::is_some))
        };
        let mut map = RttMap::with_room(rows.len() + useful().count(), width);
        (map.prefixes, map.next_expiry_ms) = (rows.len(), next_expiry_ms);
        let whole = |us: Option<f64>| us.map_or(UNMEASURED, |us| us.round() as u32);
        for (key, row) in &rows {
            let around = &around[&aggregate(*key)];
            if row.iter().any(Option::is_some) {
                map.insert(
                    *key,
                    row.iter().zip(around).map(|(said, mean)| {
                        whole(said.map(|said| said.us).or(mean.map(f64::trunc)))
                    }),
                );
            }
        }
        for (key, row) in useful() {
            map.insert(*key, row.iter().map(|us| whole(us.map(f64::trunc))));
        }
        map
    }
}

/// Of an aggregate's prefixes for one cluster: weighted sum, weight, and number.
type Sum = (f64, f64, u32);

fn median(times: &mut [f64]) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    let (half, odd) = (times.len() / 2, times.len() % 2 == 1);
    if odd {
        times.get(half).copied()
    } else {
        Some((times.get(half.checked_sub(1)?)? + times.get(half)?) / 2.0)
    }
}

/// What a cluster's nodes say together of one prefix.
#[derive(Debug, Clone, Copy)]
struct Said {
    us: f64,
    /// Nodes that say so.
    voices: usize,
    weight: f64,
}

/// Decides what counts of what was reported. Without places, all of it does.
struct Judge<'a> {
    layout: &'a Layout,
    atlas: Option<&'a Atlas>,
    /// Kilometres to each cluster by the number of the place; few places have many prefixes.
    distances: HashMap<u32, Option<Vec<f64>>>,
}

impl<'a> Judge<'a> {
    fn new(layout: &'a Layout, atlas: Option<&'a Atlas>) -> Self {
        Self {
            layout,
            atlas,
            distances: HashMap::new(),
        }
    }

    /// Kilometres from where an address is to each cluster; `None` where that is not known.
    fn distances(&mut self, address: IpAddr) -> Option<Vec<f64>> {
        let atlas = self.atlas?;
        let (number, _) = atlas.find(address);
        let layout = self.layout;
        let made = || {
            let here = atlas.place(number).map(ClientPlace::position)?;
            Some(
                layout
                    .clusters
                    .iter()
                    .map(|(_, there)| distance_km(here, *there))
                    .collect(),
            )
        };
        self.distances.entry(number).or_insert_with(made).clone()
    }

    /// What counts for a prefix, by cluster; what is dropped is counted.
    fn row(&mut self, entry: &mut Entry, dropped: &mut HashMap<String, u64>) -> Vec<Option<Said>> {
        let distances = self.distances(entry.address);
        let layout = self.layout;
        let mut is_out = vec![false; entry.voices.len()];
        let mut row: Vec<Option<Said>> = vec![None; layout.clusters.len()];
        for (cluster, said) in row.iter_mut().enumerate() {
            let of_cluster: Vec<usize> = (0..entry.voices.len())
                .filter(|n| layout.nodes[usize::from(entry.voices[*n].node)].1 == cluster)
                .collect();
            if of_cluster.is_empty() {
                continue;
            }
            let times: Vec<f64> = of_cluster
                .iter()
                .map(|n| f64::from(entry.voices[*n].smoothed_us))
                .collect();
            let expected = distances.as_ref().map(|km| expected_us(km[cluster]));
            let (us, voices) = if self.atlas.is_some() {
                together(&times, expected)
            } else {
                (median(&mut times.clone()).unwrap_or(0.0), 1)
            };
            for (n, time) in of_cluster.iter().zip(&times) {
                is_out[*n] = self.atlas.is_some() && !agree(*time, us);
            }
            let weight = of_cluster
                .iter()
                .fold(0u32, |sum, n| sum.saturating_add(entry.voices[*n].samples))
                .min(64);
            *said = Some(Said {
                us,
                voices,
                weight: f64::from(weight),
            });
        }
        if self.atlas.is_some() {
            let mut fallen = vec![false; row.len()];
            self.hold_against_light(&mut row, distances.as_deref(), &mut fallen);
            match &distances {
                Some(km) => hold_against_nearest(layout, &mut row, km, &mut fallen),
                None => hold_together(layout, &mut row),
            }
            for (voice, is_out) in entry.voices.iter().zip(&mut is_out) {
                *is_out |= fallen[layout.nodes[usize::from(voice.node)].1];
            }
        }
        for (voice, is_out) in entry.voices.iter_mut().zip(is_out) {
            if is_out && !voice.is_counted {
                *dropped
                    .entry(layout.nodes[usize::from(voice.node)].0.clone())
                    .or_default() += 1;
                voice.is_counted = true;
            }
        }
        row
    }

    /// Of two clusters whose times are together less than light needs between them, the one with
    /// fewer voices falls, or both.
    fn hold_against_light(
        &self,
        row: &mut [Option<Said>],
        distances: Option<&[f64]>,
        fallen: &mut [bool],
    ) {
        let place_voice = |cluster: usize, us: f64| {
            distances.is_some_and(|km| us >= light_us(km[cluster] - CLIENT_SLACK_KM))
        };
        for a in 0..row.len() {
            for b in a + 1..row.len() {
                let (Some(one), Some(two)) = (row[a], row[b]) else {
                    continue;
                };
                if one.us + two.us >= self.layout.light_us(a, b) {
                    continue;
                }
                let votes_a = one.voices + usize::from(place_voice(a, one.us));
                let votes_b = two.voices + usize::from(place_voice(b, two.us));
                if votes_a <= votes_b {
                    (row[a], fallen[a]) = (None, true);
                }
                if votes_b <= votes_a {
                    (row[b], fallen[b]) = (None, true);
                }
            }
        }
    }

    /// Where the nearest cluster has no time, no other counts as quicker than its distance lets
    /// expect.
    fn nearest_first(&mut self, address: IpAddr, row: &mut [Option<f64>]) {
        let Some(km) = self.distances(address) else {
            return;
        };
        let Some(nearest) = nearest(&km).filter(|nearest| row[*nearest].is_none()) else {
            return;
        };
        for (cluster, us) in row
            .iter_mut()
            .enumerate()
            .filter(|(cluster, _)| *cluster != nearest)
        {
            *us = us.filter(|us| *us >= expected_us(km[cluster]));
        }
    }
}

fn expected_us(km: f64) -> f64 {
    EXPECTED_US + EXPECTED_US_PER_KM * km
}

fn nearest(km: &[f64]) -> Option<usize> {
    (0..km.len()).min_by(|a, b| km[*a].total_cmp(&km[*b]))
}

fn agree(a: f64, b: f64) -> bool {
    (a - b).abs() <= AGREE_US || a.max(b) <= 2.0 * a.min(b)
}

/// What the nodes of a cluster say together, and how many of them: the median of most, or of two
/// that differ the one that is nearer to what is expected.
fn together(times: &[f64], expected: Option<f64>) -> (f64, usize) {
    let mut sorted = times.to_vec();
    let middle = median(&mut sorted).unwrap_or(0.0);
    let agreeing = |us: f64| times.iter().filter(|time| agree(**time, us)).count();
    if agreeing(middle) * 2 > times.len() {
        return (middle, agreeing(middle));
    }
    // Nothing is known of the place: a longer time draws nobody away.
    let expected = expected.unwrap_or(f64::MAX);
    let best = times
        .iter()
        .copied()
        .min_by(|a, b| (a - expected).abs().total_cmp(&(b - expected).abs()));
    (best.unwrap_or(middle), 1)
}

/// What another cluster says against the nearest one takes two voices.
fn hold_against_nearest(
    layout: &Layout,
    row: &mut [Option<Said>],
    km: &[f64],
    fallen: &mut [bool],
) {
    let Some(near) = nearest(km) else { return };
    let is_quicker_than_light =
        |cluster: usize, us: f64| us < light_us(km[cluster] - CLIENT_SLACK_KM);
    if let Some(said) = row[near] {
        let shows_the_place_wrong = |cluster: usize| {
            cluster != near
                && row[cluster].is_some_and(|other| {
                    other.us < said.us && is_quicker_than_light(cluster, other.us)
                })
        };
        // One node alone that says it is far away from its own clients.
        if said.voices < 2
            && said.us > expected_us(km[near])
            && !(0..row.len()).any(shows_the_place_wrong)
        {
            row[near] = None;
        }
    }
    for cluster in (0..row.len()).filter(|cluster| *cluster != near) {
        let Some(said) = row[cluster] else { continue };
        let Some(at_near) = row[near] else {
            // Nobody has measured what this would be better than.
            row[cluster] = row[cluster].filter(|said| said.us >= expected_us(km[cluster]));
            continue;
        };
        let is_near_slow = at_near.us
            >= layout
                .light_us(near, cluster)
                .max(expected_us(km[near]) + SLOW_US);
        // What the last mile costs there, it costs from everywhere; half of it may have been the
        // way.
        let excess = (at_near.us - light_us(km[near])).max(0.0);
        let least = light_us(km[cluster] - CLIENT_SLACK_KM) + excess / 2.0;
        let is_alone = said.voices < 2 && said.us < at_near.us;
        if !is_near_slow && (said.us < least || is_alone) {
            row[cluster] = None;
            fallen[cluster] |= said.us < least;
        }
    }
}

/// Where the place of a prefix is not known, two clusters must have measured it, and a node of
/// several speaks only with another.
fn hold_together(layout: &Layout, row: &mut [Option<Said>]) {
    for (cluster, said) in row.iter_mut().enumerate() {
        let nodes = layout.nodes.iter().filter(|(_, of)| *of == cluster).count();
        *said = said.filter(|said| said.voices >= 2 || nodes == 1);
    }
    if row.iter().flatten().count() < 2 {
        row.fill(None);
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
    /// When the first measurement in it becomes too old, milliseconds after the Unix epoch.
    pub(super) next_expiry_ms: u64,
}

impl RttMap {
    fn with_room(count: usize, width: usize) -> Self {
        let slots = if count == 0 {
            Vec::new()
        } else {
            vec![(0, 0); (count * 2).next_power_of_two()]
        };
        Self {
            slots,
            rows: Vec::with_capacity(count * width),
            width,
            prefixes: 0,
            next_expiry_ms: u64::MAX,
        }
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

    /// Microseconds by cluster ([`UNMEASURED`] where there is none) for an address, from its prefix
    /// or the aggregate over it.
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
        RttSample {
            prefix: prefix.parse().unwrap(),
            count,
            min_us: mean_us / 2,
            mean_us,
        }
    }

    /// Clusters with one node each, whose name is the cluster's.
    fn layout(names: &[&str]) -> Layout {
        Layout {
            clusters: names
                .iter()
                .map(|name| ((*name).to_owned(), (0.0, 0.0)))
                .collect(),
            nodes: names
                .iter()
                .enumerate()
                .map(|(i, name)| ((*name).to_owned(), i))
                .collect(),
        }
    }

    fn table() -> RttTable {
        RttTable::new(layout(&["ams", "nyc"]))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn smooths_and_keeps_the_least() {
        let mut table = table();
        let client = ip("198.51.100.7");
        assert!(table.add("ams", &sample("198.51.100.0/24", 1, 10_000), 1_000, HOUR));
        assert_eq!(
            table.cell(client, 0).unwrap().smoothed_us,
            10_000.0,
            "the first value counts whole"
        );
        table.add("ams", &sample("198.51.100.0/24", 1, 20_000), 2_000, HOUR);
        let cell = table.cell(client, 0).unwrap();
        assert!((cell.smoothed_us - 12_000.0).abs() < 1.0, "{cell:?}");
        assert_eq!((cell.min_us, cell.samples, cell.at_ms), (5_000, 2, 2_000));
        table.add(
            "ams",
            &sample("198.51.100.0/24", 1_000, 30_000),
            3_000,
            HOUR,
        );
        let heavy = table.cell(client, 0).unwrap().smoothed_us;
        assert!(
            (29_000.0..30_000.0).contains(&heavy),
            "many connections weigh more, but not everything: {heavy}"
        );
        assert_eq!(table.cell(client, 1), None);
        assert_eq!(table.cell(ip("198.51.101.7"), 0), None);
    }

    #[test]
    fn old_values_do_not_count_and_do_not_last() {
        let mut table = table();
        let client = ip("198.51.100.7");
        table.add("ams", &sample("198.51.100.0/24", 8, 10_000), 0, 1_000);
        table.add("nyc", &sample("198.51.100.0/24", 8, 40_000), 600, 1_000);
        for (now, expected, prefixes) in [
            (1_000, Some([10_000, 40_000]), 1),
            (1_001, Some([UNMEASURED, 40_000]), 1),
            (1_600, Some([UNMEASURED, 40_000]), 1),
            (1_601, None, 0),
        ] {
            let map = table.compile(now, 1_000, None);
            assert_eq!(
                map.find(client),
                expected.as_ref().map(|r| &r[..]),
                "at {now}"
            );
            assert_eq!(map.prefixes, prefixes, "at {now}");
        }
        table.add("ams", &sample("198.51.100.0/24", 1, 99_000), 5_000, 1_000);
        let cell = table.cell(client, 0).unwrap();
        assert_eq!(
            (cell.smoothed_us, cell.min_us, cell.samples),
            (99_000.0, 49_500, 1),
            "a value after a gap starts anew"
        );
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
            assert_eq!(table().add("ams", &case, 0, HOUR), taken, "{case:?}");
        }
        assert!(
            !table().add("lon", &sample("198.51.100.0/24", 1, 1), 0, HOUR),
            "no such node"
        );
    }

    #[test]
    fn neighbours_stand_in_when_there_are_enough() {
        let mut table = table();
        // Two /24s of 203.0.112.0/20 for ams, one for nyc.
        table.add("ams", &sample("203.0.112.0/24", 1, 10_000), 0, HOUR);
        table.add("ams", &sample("203.0.113.0/24", 3, 30_000), 0, HOUR);
        table.add("nyc", &sample("203.0.112.0/24", 1, 70_000), 0, HOUR);
        table.add("ams", &sample("2001:db8:100::/48", 1, 10_000), 0, HOUR);
        table.add("ams", &sample("2001:db8:1ff::/48", 1, 20_000), 0, HOUR);
        let map = table.compile(0, HOUR, None);
        assert_eq!(map.prefixes, 4);
        for (client, expected) in [
            ("203.0.112.9", Some([10_000, 70_000])),
            ("203.0.113.9", Some([30_000, UNMEASURED])),
            ("203.0.127.9", Some([25_000, UNMEASURED])), // weighted by connections
            ("203.0.128.9", None),
            ("2001:db8:1aa::1", Some([15_000, UNMEASURED])),
            ("2001:db8:200::1", None),
        ] {
            assert_eq!(
                map.find(ip(client)),
                expected.as_ref().map(|r| &r[..]),
                "{client}"
            );
        }
    }

    #[test]
    fn the_least_recent_make_room() {
        let mut table = table();
        table.limit = 32;
        for i in 0..100_u8 {
            table.add(
                "ams",
                &sample(&format!("10.0.{i}.0/24"), 1, 1_000),
                u64::from(i),
                HOUR,
            );
            assert!(table.entries.len() <= 32);
        }
        assert!(table.cell(ip("10.0.99.1"), 0).is_some());
        assert!(table.cell(ip("10.0.75.1"), 0).is_some());
        assert!(table.cell(ip("10.0.60.1"), 0).is_none());
    }

    #[test]
    fn clusters_that_stay_keep_their_values() {
        let mut table = table();
        table.add("ams", &sample("198.51.100.0/24", 1, 1_000), 0, HOUR);
        table.add("nyc", &sample("198.51.100.0/24", 1, 2_000), 0, HOUR);
        table.set_layout(layout(&["sin", "nyc", "ams"]));
        let map = table.compile(0, HOUR, None);
        assert_eq!(
            map.find(ip("198.51.100.1")),
            Some(&[UNMEASURED, 2_000, 1_000][..])
        );
        table.set_layout(layout(&["sin"]));
        assert_eq!(table.compile(0, HOUR, None).find(ip("198.51.100.1")), None);
    }

    #[test]
    fn a_full_map_finds_everything_and_nothing_else() {
        let mut table = table();
        for i in 0..4_000_u32 {
            let prefix = IpNet::new(IpAddr::from((i << 16).to_be_bytes()), 24).unwrap();
            table.add(
                "ams",
                &RttSample {
                    prefix,
                    count: 1,
                    min_us: 1,
                    mean_us: i + 1,
                },
                0,
                HOUR,
            );
        }
        let map = table.compile(0, HOUR, None);
        for i in 0..4_000_u32 {
            assert_eq!(
                map.find(IpAddr::from((i << 16 | 5).to_be_bytes())),
                Some(&[i + 1, UNMEASURED][..])
            );
            assert_eq!(
                map.find(IpAddr::from((i << 16 | 0x8000).to_be_bytes())),
                None
            );
        }
        assert_eq!(RttMap::default().find(ip("192.0.2.1")), None);
    }
}
