//! Measured round-trip times by client prefix and cluster.
//!
//! Edges report the times of their own TCP connections, by /24 and /48. The value of each node is
//! smoothed over its reports and expires when it is too old. The time of a cluster is the median of
//! its nodes. Where a prefix has no value for a cluster, the mean over its /20 (or /40) stands in
//! if two or more of its prefixes have one; where that is missing too, distance decides.
//!
//! **A single node moves no clients.** A node may be broken or compromised, and no other node can
//! repeat its measurements. So each measurement is compared with three things that the node cannot
//! choose (`plausible`):
//!
//! - *light*: the times of two clusters to one prefix are together at least the time of light in
//!   fibre between the two. Where they are less, one is false: the one with fewer votes, where the
//!   location of the prefix has a vote too;
//! - *the other nodes of its cluster*: a value that differs from the majority is dropped, and of
//!   two that differ the one nearer to the time expected by distance counts;
//! - *the nearest cluster*: it serves the clients of a prefix, so it has measured them. Another
//!   cluster gets them only if it is quicker than it can be by distance with two votes, or with one
//!   where the nearest cluster itself reports that it is slow. That the nearest cluster is slow
//!   takes two votes, one of which may be that of another cluster whose time shows the location to
//!   be wrong.
//!
//! Dropped values are counted by node. Test set-ups whose locations are invented turn all of this
//! off (`steering.rtt_bound`).
//!
//! The query path reads a compiled copy ([`RttMap`]), made anew when measurements change or expire.

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
/// Most values kept, for each prefix on average. Above this the node with the most values loses its
/// oldest, so a node that reports about every prefix evicts its own values.
const VALUES_PER_PREFIX: usize = 8;
/// Most nodes of one cluster whose values are kept for one prefix; the one with the oldest report
/// is evicted.
const VALUES_PER_CLUSTER_MAX: usize = 5;
/// Most samples taken from one report.
pub(super) const SAMPLES_MAX: usize = 4_096;
/// Longer times are rejected as errors of the measurement.
const RTT_US_MAX: u32 = 10_000_000;
/// Weight of the old value, after one more connection.
const KEEP_PER_SAMPLE: f32 = 0.8;
/// Connections beyond this in one report add no weight.
const SAMPLES_WEIGHT_MAX: u32 = 16;
/// Prefixes of an aggregate that need a value before it has one.
const AGGREGATE_OF_MIN: u32 = 2;
/// Light in fibre, there and back: 200 km in a millisecond one way.
const LIGHT_US_PER_KM: f64 = 10.0;
/// Allowed distance between a cluster and its location in the fleet file, in kilometres.
const CLUSTER_SLACK_KM: f64 = 100.0;

/// The measurement of one cluster for one prefix.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct MeasuredRtt {
    /// The median of its nodes, microseconds.
    pub(super) smoothed_us: f32,
    /// The shortest time that a node has measured since its value last expired, microseconds.
    pub(super) min_us: u32,
    /// Number of connections measured; 0 for none.
    pub(super) samples: u32,
    /// Time of the last report, milliseconds after the Unix epoch.
    pub(super) at_ms: u64,
}

/// The value of one node for one prefix.
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

    /// This value with that of a new sample.
    fn smoothed(&self, fresh: Self) -> Self {
        let keep = KEEP_PER_SAMPLE.powi(fresh.samples.min(SAMPLES_WEIGHT_MAX) as i32);
        Self {
            smoothed_us: self.smoothed_us * keep + fresh.smoothed_us * (1.0 - keep),
            min_us: self.min_us.min(fresh.min_us),
            samples: self.samples.saturating_add(fresh.samples),
            ..fresh
        }
    }
}

/// Whether a sample is about a prefix of the grain or a longer one, and plausible.
fn is_useful(sample: &RttSample) -> bool {
    let long_enough = match sample.prefix {
        IpNet::V4(net) => net.prefix_len() >= 24,
        IpNet::V6(net) => net.prefix_len() >= 48,
    };
    long_enough && (1..=RTT_US_MAX).contains(&sample.mean_us) && sample.count > 0
}

/// The oldest value of the node's cluster for a prefix, where the cluster has as many as it may.
fn oldest_of_full_cluster(entry: &PrefixEntry, topology: &Topology, node: usize) -> Option<usize> {
    let cluster = topology.nodes[node].1;
    let of_cluster = || {
        let values = entry.values.iter().enumerate();
        values.filter(|(_, value)| topology.nodes[usize::from(value.node)].1 == cluster)
    };
    if of_cluster().count() < VALUES_PER_CLUSTER_MAX {
        return None;
    }
    let oldest = of_cluster().min_by_key(|(_, value)| value.at_ms);
    oldest.map(|(index, _)| index)
}

#[derive(Debug)]
struct PrefixEntry {
    pub(super) address: IpAddr,
    pub(super) values: Vec<NodeRtt>,
}

/// The clusters and nodes that measure, with their locations.
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
        // A fleet has fewer nodes than a `u16` counts; reports of those beyond would be ignored.
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
    /// Values counts of each node.
    counts: Vec<usize>,
    /// Reported values that were dropped, by node.
    dropped: HashMap<String, u64>,
    limit: usize,
}

impl RttTable {
    /// For these clusters and nodes.
    pub(super) fn new(topology: Topology) -> Self {
        Self {
            counts: vec![0; topology.nodes.len()],
            topology,
            limit: PREFIXES_MAX,
            ..Self::default()
        }
    }

    /// Adopts other clusters and nodes; those that remain keep their values.
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
        self.counts = vec![0; topology.nodes.len()];
        let counts = &mut self.counts;
        self.entries.retain(|_, entry| {
            entry
                .values
                .retain_mut(|value| match to[usize::from(value.node)] {
                    Some(node) => {
                        (value.node, counts[node]) = (node as u16, counts[node] + 1);
                        true
                    }
                    None => false,
                });
            !entry.values.is_empty()
        });
        self.dropped.retain(|name, _| topology.node(name).is_some());
        self.topology = topology;
    }

    /// Adds one sample of a node; `false` when it is of no use.
    pub(super) fn add(
        &mut self,
        node: &str,
        sample: &RttSample,
        now_ms: u64,
        max_age_ms: u64,
    ) -> bool {
        let Some(node) = self.topology.node(node).filter(|_| is_useful(sample)) else {
            return false;
        };
        let address = sample.prefix.addr();
        let key = key(address);
        if self.needs_eviction(key, node) {
            self.evict_oldest();
        }

        let entry = self.entries.entry(key).or_insert_with(|| PrefixEntry {
            address,
            values: Vec::with_capacity(1),
        });
        let fresh = NodeRtt {
            node: node as u16,
            smoothed_us: sample.mean_us as f32,
            min_us: sample.min_us.clamp(1, sample.mean_us),
            samples: sample.count,
            at_ms: now_ms,
            is_counted: false,
        };
        let mut values = entry.values.iter_mut();
        if let Some(value) = values.find(|value| usize::from(value.node) == node) {
            *value = match value.is_fresh(now_ms, max_age_ms) {
                true => value.smoothed(fresh),
                false => fresh,
            };
            return true;
        }

        if let Some(oldest) = oldest_of_full_cluster(entry, &self.topology, node) {
            let evicted = entry.values.swap_remove(oldest);
            self.counts[usize::from(evicted.node)] -= 1;
        }
        entry.values.push(fresh);
        self.counts[node] += 1;
        true
    }

    /// Whether a value of a node for a prefix is new and there is no room for it.
    fn needs_eviction(&self, key: u64, node: usize) -> bool {
        let entry = self.entries.get(&key);
        let mut values = entry.into_iter().flat_map(|entry| &entry.values);
        if values.any(|value| usize::from(value.node) == node) {
            return false;
        }
        self.value_count() >= self.limit * VALUES_PER_PREFIX
            || (entry.is_none() && self.entries.len() >= self.limit)
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= self.limit || self.value_count() >= self.limit * VALUES_PER_PREFIX
    }

    /// Values of all nodes.
    fn value_count(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Evicts the oldest values, a sixteenth of the limit, of the node that has the most.
    fn evict_oldest(&mut self) {
        let count = (self.limit / 16).max(1);
        while self.is_full() {
            let Some(most) = (0..self.counts.len())
                .max_by_key(|node| self.counts[*node])
                .filter(|node| self.counts[*node] > 0)
            else {
                return;
            };
            let is_its = |value: &&NodeRtt| usize::from(value.node) == most;
            let mut ages: Vec<(u64, u64)> = self
                .entries
                .iter()
                .filter_map(|(key, e)| Some((e.values.iter().find(is_its)?.at_ms, *key)))
                .collect();
            let count = count.min(ages.len());
            if count < ages.len() {
                ages.select_nth_unstable(count);
            }
            for (_, key) in &ages[..count] {
                let Some(entry) = self.entries.get_mut(key) else {
                    continue;
                };
                entry.values.retain(|value| usize::from(value.node) != most);
                if entry.values.is_empty() {
                    self.entries.remove(key);
                }
            }
            self.counts[most] -= count;
        }
    }

    /// The measurement of a cluster for the prefix of an address, aggregates aside.
    pub(super) fn measured(&self, address: IpAddr, cluster: usize) -> Option<MeasuredRtt> {
        let entry = self.entries.get(&key(address))?;
        let agreed_rtt: Vec<&NodeRtt> = entry
            .values
            .iter()
            .filter(|value| self.topology.nodes[usize::from(value.node)].1 == cluster)
            .collect();
        let mut times: Vec<f64> = agreed_rtt
            .iter()
            .map(|value| f64::from(value.smoothed_us))
            .collect();
        Some(MeasuredRtt {
            smoothed_us: median(&mut times)? as f32,
            min_us: agreed_rtt.iter().map(|value| value.min_us).min()?,
            samples: agreed_rtt
                .iter()
                .fold(0, |sum, value| sum.saturating_add(value.samples)),
            at_ms: agreed_rtt.iter().map(|value| value.at_ms).max()?,
        })
    }

    /// Reported values that were dropped, by node.
    pub(super) fn dropped(&self) -> impl Iterator<Item = (&str, u64)> {
        self.dropped
            .iter()
            .map(|(node, count)| (node.as_str(), *count))
    }

    /// Drops expired values and compiles the others. They are judged by the locations of an atlas;
    /// without one all of them count.
    pub(super) fn compile(
        &mut self,
        now_ms: u64,
        max_age_ms: u64,
        places: Option<&Atlas>,
    ) -> RttMap {
        let (counts, mut next_expiry_ms) = (&mut self.counts, u64::MAX);
        self.entries.retain(|_, entry| {
            entry.values.retain(|value| {
                let is_fresh = value.is_fresh(now_ms, max_age_ms);
                counts[usize::from(value.node)] -= usize::from(!is_fresh);
                if is_fresh {
                    next_expiry_ms = next_expiry_ms
                        .min(value.at_ms.saturating_add(max_age_ms).saturating_add(1));
                }
                is_fresh
            });
            !entry.values.is_empty()
        });
        let width = self.topology.clusters.len();
        let mut judge = PlausibilityFilter::new(&self.topology, places);

        // The row of each prefix by cluster, and for each aggregate and cluster the weighted sum,
        // the weight and the number of prefixes.
        let mut rows: Vec<(u64, Vec<Option<AgreedRtt>>)> = Vec::with_capacity(self.entries.len());
        let mut aggregates: HashMap<u64, (IpAddr, Vec<Sum>)> = HashMap::new();
        for (key, entry) in &mut self.entries {
            let row = judge.row(entry, &mut self.dropped);
            let (_, sums) = aggregates
                .entry(aggregate(*key))
                .or_insert_with(|| (entry.address, vec![(0.0, 0.0, 0); width]));
            for (sum, agreed_rtt) in sums.iter_mut().zip(&row) {
                if let Some(agreed_rtt) = agreed_rtt {
                    *sum = (
                        sum.0 + agreed_rtt.us * agreed_rtt.weight,
                        sum.1 + agreed_rtt.weight,
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
            judge.limit_by_nearest(*address, &mut row);
            around.insert(*key, row);
        }

        let useful = || {
            around
                .iter()
                .filter(|(_, row)| row.iter().any(Option::is_some))
        };
        let mut map = RttMap::with_capacity(rows.len() + useful().count(), width);
        (map.prefixes, map.next_expiry_ms) = (rows.len(), next_expiry_ms);
        let whole = |us: Option<f64>| us.map_or(UNMEASURED, |us| us.round() as u32);

        for (key, row) in &rows {
            let around = &around[&aggregate(*key)];
            if row.iter().any(Option::is_some) {
                map.insert(
                    *key,
                    row.iter().zip(around).map(|(agreed_rtt, mean)| {
                        whole(
                            agreed_rtt
                                .map(|agreed_rtt| agreed_rtt.us)
                                .or(mean.map(f64::trunc)),
                        )
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

/// Over an aggregate's prefixes, for one cluster: weighted sum, weight, and number.
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
