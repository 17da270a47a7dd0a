//! Decides which reported times count.

use std::collections::HashMap;
use std::net::IpAddr;

use super::{PrefixEntry, Topology, light_us, median};
use crate::steer::location::{Atlas, Location};
use crate::steer::plan::distance_km;

/// A client is, for what speaks against a measurement, within so many kilometres of its place.
const CLIENT_SLACK_KM: f64 = 500.0;
/// What is expected at a distance when nothing was measured, as selection guesses it.
const EXPECTED_US: f64 = 20_000.0;
const EXPECTED_US_PER_KM: f64 = 20.0;
/// The nearest cluster is slow when it takes so much longer than expected.
const SLOW_US: f64 = 30_000.0;
/// Values of two nodes agree within so much, or a factor of two.
const AGREE_US: f64 = 20_000.0;

/// What a cluster's nodes say together of one prefix.
#[derive(Debug, Clone, Copy)]
pub(super) struct AgreedRtt {
    pub(super) us: f64,
    /// Nodes that say so.
    pub(super) voices: usize,
    pub(super) weight: f64,
}

/// Decides what counts of what was reported. Without places, all of it does.
pub(super) struct PlausibilityFilter<'a> {
    topology: &'a Topology,
    atlas: Option<&'a Atlas>,
    /// Kilometres to each cluster by the number of the place; few places have many prefixes.
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

    /// Kilometres from where an address is to each cluster; `None` where that is not known.
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

    /// What counts for a prefix, by cluster; what is dropped is counted.
    pub(super) fn row(
        &mut self,
        entry: &mut PrefixEntry,
        dropped: &mut HashMap<String, u64>,
    ) -> Vec<Option<AgreedRtt>> {
        let distances = self.distances(entry.address);
        let topology = self.topology;
        let mut is_out = vec![false; entry.voices.len()];
        let mut row: Vec<Option<AgreedRtt>> = vec![None; topology.clusters.len()];
        for (cluster, said) in row.iter_mut().enumerate() {
            let of_cluster: Vec<usize> = (0..entry.voices.len())
                .filter(|n| topology.nodes[usize::from(entry.voices[*n].node)].1 == cluster)
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
            *said = Some(AgreedRtt {
                us,
                voices,
                weight: f64::from(weight),
            });
        }
        if self.atlas.is_some() {
            let mut fallen = vec![false; row.len()];
            self.hold_against_light(&mut row, distances.as_deref(), &mut fallen);
            match &distances {
                Some(km) => hold_against_nearest(topology, &mut row, km, &mut fallen),
                None => hold_together(topology, &mut row),
            }
            for (voice, is_out) in entry.voices.iter().zip(&mut is_out) {
                *is_out |= fallen[topology.nodes[usize::from(voice.node)].1];
            }
        }
        for (voice, is_out) in entry.voices.iter_mut().zip(is_out) {
            if is_out && !voice.is_counted {
                *dropped
                    .entry(topology.nodes[usize::from(voice.node)].0.clone())
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
        row: &mut [Option<AgreedRtt>],
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
                if one.us + two.us >= self.topology.light_us(a, b) {
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
    pub(super) fn nearest_first(&mut self, address: IpAddr, row: &mut [Option<f64>]) {
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
    topology: &Topology,
    row: &mut [Option<AgreedRtt>],
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
            >= topology
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
fn hold_together(topology: &Topology, row: &mut [Option<AgreedRtt>]) {
    for (cluster, said) in row.iter_mut().enumerate() {
        let nodes = topology
            .nodes
            .iter()
            .filter(|(_, of)| *of == cluster)
            .count();
        *said = said.filter(|said| said.voices >= 2 || nodes == 1);
    }
    if row.iter().flatten().count() < 2 {
        row.fill(None);
    }
}
