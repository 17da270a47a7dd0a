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

mod map;
mod plausible;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::report::RttSample;

pub(super) use self::map::RttMap;
use self::map::{aggregate, key};
use self::plausible::{AgreedRtt, PlausibilityFilter};
use super::location::Atlas;
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

/// What is known of one cluster for one prefix.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct MeasuredRtt {
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
struct NodeRtt {
    /// Index into [`Topology::nodes`].
    pub(super) node: u16,
    pub(super) smoothed_us: f32,
    pub(super) min_us: u32,
    pub(super) samples: u32,
    pub(super) at_ms: u64,
    /// Whether it was counted as dropped since its last report.
    pub(super) is_counted: bool,
}

impl NodeRtt {
    fn is_fresh(&self, now_ms: u64, max_age_ms: u64) -> bool {
        now_ms.saturating_sub(self.at_ms) <= max_age_ms
    }
}

#[derive(Debug)]
struct PrefixEntry {
    pub(super) address: IpAddr,
    pub(super) voices: Vec<NodeRtt>,
}

/// The clusters and nodes that measure, and where they are.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Topology {
    pub(super) clusters: Vec<(String, (f64, f64))>,
    /// Names, with the cluster of each.
    pub(super) nodes: Vec<(String, usize)>,
}

impl Topology {
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
    topology: Topology,
    entries: HashMap<u64, PrefixEntry>,
    /// Values held of each node.
    held: Vec<usize>,
    /// Reported values that were dropped, by node.
    dropped: HashMap<String, u64>,
    limit: usize,
}

impl RttTable {
    /// For these clusters and nodes.
    pub(super) fn new(topology: Topology) -> Self {
        Self {
            held: vec![0; topology.nodes.len()],
            topology,
            limit: PREFIXES_MAX,
            ..Self::default()
        }
    }

    /// Goes over to other clusters and nodes; those that stay keep their values.
    pub(super) fn set_topology(&mut self, topology: Topology) {
        if topology == self.topology {
            return;
        }
        let to: Vec<Option<usize>> = self
            .topology
            .nodes
            .iter()
            .map(|(name, _)| topology.node(name))
            .collect();
        self.held = vec![0; topology.nodes.len()];
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
        self.dropped.retain(|name, _| topology.node(name).is_some());
        self.topology = topology;
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
        let Some(node) = self
            .topology
            .node(node)
            .filter(|_| long_enough && plausible)
        else {
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
        let (nodes, held) = (&self.topology.nodes, &mut self.held);
        let entry = self.entries.entry(key).or_insert_with(|| PrefixEntry {
            address,
            voices: Vec::with_capacity(1),
        });
        let min_us = sample.min_us.clamp(1, sample.mean_us);
        let fresh = NodeRtt {
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
                NodeRtt {
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
            let is_its = |voice: &&NodeRtt| usize::from(voice.node) == most;
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
    pub(super) fn measured(&self, address: IpAddr, cluster: usize) -> Option<MeasuredRtt> {
        let entry = self.entries.get(&key(address))?;
        let said: Vec<&NodeRtt> = entry
            .voices
            .iter()
            .filter(|voice| self.topology.nodes[usize::from(voice.node)].1 == cluster)
            .collect();
        let mut times: Vec<f64> = said
            .iter()
            .map(|voice| f64::from(voice.smoothed_us))
            .collect();
        Some(MeasuredRtt {
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
        let width = self.topology.clusters.len();
        let mut judge = PlausibilityFilter::new(&self.topology, places);
        // By cluster for each prefix; weighted sum, weight, and number of prefixes, by cluster, for
        // each aggregate.
        let mut rows: Vec<(u64, Vec<Option<AgreedRtt>>)> = Vec::with_capacity(self.entries.len());
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
