//! Decides which reported times count.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{PrefixEntry, Topology, light_us, median};
use crate::steer::location::{Atlas, Location};
use crate::steer::plan::distance_km;

/// Allowed distance between a client and its location when that speaks against a measurement, in
/// kilometres.
const CLIENT_SLACK_KM: f64 = 500.0;
/// The time expected at a distance where nothing was measured, as selection guesses it.
const EXPECTED_US: f64 = 20_000.0;
const EXPECTED_US_PER_KM: f64 = 20.0;
/// The nearest cluster is slow when its time exceeds the expected one by this.
const SLOW_US: f64 = 30_000.0;
/// Values of two nodes agree within this, or within a factor of two.
const AGREE_US: f64 = 20_000.0;

/// The time that a cluster's nodes agree on for one prefix.
#[derive(Debug, Clone, Copy)]
pub(super) struct AgreedRtt {
    pub(super) us: f64,
    /// Number of nodes that agree.
    pub(super) votes: usize,
    pub(super) weight: f64,
}

/// Decides which reported values count. Without locations, all of them do.
pub(super) struct PlausibilityFilter<'a> {
    topology: &'a Topology,
    atlas: Option<&'a Atlas>,
    /// Kilometres to each cluster by the number of the location; few locations have many prefixes.
    distances: HashMap<u32, Option<Vec<f64>>>,
}

impl<'a> PlausibilityFilter<'a> {
    pub(super) fn new(topology: &'a Topology, atlas: Option<&'a Atlas>) -> Self {
        Self {
            topology,
            atlas,
            distances: HashMap::new(),
        }
    }

    /// Kilometres from the location of an address to each cluster; `None` where it has none.
    fn distances(&mut self, address: IpAddr) -> Option<Vec<f64>> {
        let atlas = self.atlas?;
        let (number, _) = atlas.find(address);
        let topology = self.topology;
        let made = || {
            let here = atlas.location(number).map(Location::position)?;
            Some(
                topology
                    .clusters
                    .iter()
                    .map(|(_, there)| distance_km(here, *there))
                    .collect(),
            )
        };
        self.distances.entry(number).or_insert_with(made).clone()
    }

    /// The times that count for a prefix, by cluster; dropped values are counted.
    pub(super) fn row(
        &mut self,
        entry: &mut PrefixEntry,
        dropped: &mut HashMap<String, u64>,
    ) -> Vec<Option<AgreedRtt>> {
        let distances = self.distances(entry.address);
        let topology = self.topology;
        let mut is_out = vec![false; entry.values.len()];
        let mut row: Vec<Option<AgreedRtt>> = vec![None; topology.clusters.len()];
        for (cluster, agreed_rtt) in row.iter_mut().enumerate() {
            let of_cluster: Vec<usize> = (0..entry.values.len())
                .filter(|n| topology.nodes[usize::from(entry.values[*n].node)].1 == cluster)
                .collect();
            if of_cluster.is_empty() {
                continue;
            }
            let times: Vec<f64> = of_cluster
                .iter()
                .map(|n| f64::from(entry.values[*n].smoothed_us))
                .collect();
            let expected = distances.as_ref().map(|km| expected_us(km[cluster]));
            let (us, votes) = if self.atlas.is_some() {
                agreed(&times, expected)
            } else {
                (median(&mut times.clone()).unwrap_or(0.0), 1)
            };
            for (n, time) in of_cluster.iter().zip(&times) {
                is_out[*n] = self.atlas.is_some() && !agree(*time, us);
            }
            let weight = of_cluster
                .iter()
                .fold(0u32, |sum, n| sum.saturating_add(entry.values[*n].samples))
                .min(64);
            *agreed_rtt = Some(AgreedRtt {
                us,
                votes,
                weight: f64::from(weight),
            });
        }

        if self.atlas.is_some() {
            let mut rejected = vec![false; row.len()];
            self.reject_faster_than_light(&mut row, distances.as_deref(), &mut rejected);
            match &distances {
                Some(km) => compare_with_nearest(topology, &mut row, km, &mut rejected),
                None => require_agreement(topology, &mut row),
            }
            for (value, is_out) in entry.values.iter().zip(&mut is_out) {
                *is_out |= rejected[topology.nodes[usize::from(value.node)].1];
            }
        }

        for (value, is_out) in entry.values.iter_mut().zip(is_out) {
            if is_out && !value.is_counted {
                *dropped
                    .entry(topology.nodes[usize::from(value.node)].0.clone())
                    .or_default() += 1;
                value.is_counted = true;
            }
        }

        row
    }

    /// Where the times of two clusters are together less than light takes between them, rejects the
    /// one with fewer votes, or both.
    fn reject_faster_than_light(
        &self,
        row: &mut [Option<AgreedRtt>],
        distances: Option<&[f64]>,
        rejected: &mut [bool],
    ) {
        let place_voice = |cluster: usize, us: f64| {
            distances.is_some_and(|km| us >= light_us(km[cluster] - CLIENT_SLACK_KM))
        };
        for a in 0..row.len() {
            for b in a + 1..row.len() {
                let (Some(one), Some(two)) = (row[a], row[b]) else {
                    continue;
                };
                if one.us + two.us >= self.topology.light_us(a, b) {
                    continue;
                }
                let votes_a = one.votes + usize::from(place_voice(a, one.us));
                let votes_b = two.votes + usize::from(place_voice(b, two.us));
                if votes_a <= votes_b {
                    (row[a], rejected[a]) = (None, true);
                }
                if votes_b <= votes_a {
                    (row[b], rejected[b]) = (None, true);
                }
            }
        }
    }

    /// Where the nearest cluster has no time, drops other times that are shorter than expected by
    /// distance.
    pub(super) fn limit_by_nearest(&mut self, address: IpAddr, row: &mut [Option<f64>]) {
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

/// The time that the nodes of a cluster agree on, and how many of them: the median of the majority,
/// or of two that differ the one nearer to the expected time.
fn agreed(times: &[f64], expected: Option<f64>) -> (f64, usize) {
    let mut sorted = times.to_vec();
    let middle = median(&mut sorted).unwrap_or(0.0);
    let agreeing = |us: f64| times.iter().filter(|time| agree(**time, us)).count();
    if agreeing(middle) * 2 > times.len() {
        return (middle, agreeing(middle));
    }
    // Without a location the longer time counts: it draws no clients away.
    let expected = expected.unwrap_or(f64::MAX);
    let best = times
        .iter()
        .copied()
        .min_by(|a, b| (a - expected).abs().total_cmp(&(b - expected).abs()));
    (best.unwrap_or(middle), 1)
}

/// Compares the other clusters with the nearest one, against which it takes two votes.
fn compare_with_nearest(
    topology: &Topology,
    row: &mut [Option<AgreedRtt>],
    km: &[f64],
    rejected: &mut [bool],
) {
    let Some(near) = nearest(km) else { return };
    let is_quicker_than_light =
        |cluster: usize, us: f64| us < light_us(km[cluster] - CLIENT_SLACK_KM);
    if let Some(agreed_rtt) = row[near] {
        let shows_the_place_wrong = |cluster: usize| {
            cluster != near
                && row[cluster].is_some_and(|other| {
                    other.us < agreed_rtt.us && is_quicker_than_light(cluster, other.us)
                })
        };
        // A single node reports that it is far away from its own clients.
        if agreed_rtt.votes < 2
            && agreed_rtt.us > expected_us(km[near])
            && !(0..row.len()).any(shows_the_place_wrong)
        {
            row[near] = None;
        }
    }

    for cluster in (0..row.len()).filter(|cluster| *cluster != near) {
        let Some(agreed_rtt) = row[cluster] else {
            continue;
        };
        let Some(at_near) = row[near] else {
            // There is no measurement that this could be better than.
            row[cluster] =
                row[cluster].filter(|agreed_rtt| agreed_rtt.us >= expected_us(km[cluster]));
            continue;
        };
        let is_near_slow = at_near.us
            >= topology
                .light_us(near, cluster)
                .max(expected_us(km[near]) + SLOW_US);
        // The delay of the last mile is part of every way; half of the excess may be delay of the
        // way instead.
        let excess = (at_near.us - light_us(km[near])).max(0.0);
        let least = light_us(km[cluster] - CLIENT_SLACK_KM) + excess / 2.0;
        let is_alone = agreed_rtt.votes < 2 && agreed_rtt.us < at_near.us;
        if !is_near_slow && (agreed_rtt.us < least || is_alone) {
            row[cluster] = None;
            rejected[cluster] |= agreed_rtt.us < least;
        }
    }
}

/// Where the location of a prefix is unknown, two clusters must have measured it, and a cluster of
/// several nodes needs two votes.
fn require_agreement(topology: &Topology, row: &mut [Option<AgreedRtt>]) {
    for (cluster, agreed_rtt) in row.iter_mut().enumerate() {
        let nodes = topology
            .nodes
            .iter()
            .filter(|(_, of)| *of == cluster)
            .count();
        *agreed_rtt = agreed_rtt.filter(|agreed_rtt| agreed_rtt.votes >= 2 || nodes == 1);
    }
    if row.iter().flatten().count() < 2 {
        row.fill(None);
    }
}
