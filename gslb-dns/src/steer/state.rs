//! The state of steering that its tasks and the admin paths change, and the snapshots made from it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use nearcast_fleet::change::DnsChallenge;
use nearcast_fleet::config::{Cluster, Fleet};
use nearcast_fleet::drains::Drains;

use super::addresses::Weight;
use super::counters::{SelectionCounters, SelectionLabels};
use super::health::HealthState;
use super::load::NodeLoad;
use super::plan::Plan;
use super::ramp::Ramps;
use super::refused::RefusedKeys;
use super::rtt::{RttMap, RttTable};
use super::select::ClusterState;
use super::service::Services;
use super::share::{self, ClusterLoad, Fraction, Shares, WHOLE};
use super::snapshot::Snapshot;
use crate::challenges::ChallengeRecords;
use crate::zone::Zones;
use nearcast_fleet::random::mix;

/// The pause after measurements were compiled, as a multiple of the time that it took: two or three
/// percent of a core at most.
const RTT_REST_FACTOR: u64 = 40;
/// The reason shown for a drained edge, whatever its health.
pub(super) const DRAINED: &str = "drained by an operator";
/// Most former revisions of the fleet whose counters are kept apart; queries in flight have
/// finished long before.
const PAST_COUNTERS_MAX: usize = 8;

/// The state that the tasks and the admin paths change.
pub(super) struct State {
    pub(super) fleet: Arc<Fleet>,
    pub(super) zones: Arc<Zones>,
    /// The open challenges, with the revision that brought them.
    pub(super) open_challenges: (u64, Vec<DnsChallenge>),
    /// Their records over these zones.
    pub(super) challenges: Arc<ChallengeRecords>,
    pub(super) plan: Arc<Plan>,
    pub(super) services: Arc<Services>,
    /// By node name.
    pub(super) health: HashMap<String, HealthState>,
    /// By node name.
    pub(super) loads: HashMap<String, NodeLoad>,
    pub(super) ramps: Ramps,
    pub(super) shares: Shares,
    /// Factor on each node's weight, by node name, so that the nodes of a cluster become equally
    /// full.
    pub(super) corrections: HashMap<String, f64>,
    /// The resulting shares, by cluster number.
    pub(super) accepted: Vec<AcceptedShare>,
    pub(super) weights: HashMap<String, Weight>,
    pub(super) refreshed_ms: u64,
    /// Nodes and clusters that operators have drained.
    pub(super) drains: Drains,
    pub(super) rtt: RttTable,
    pub(super) rtt_changed: bool,
    pub(super) rtt_map: Arc<RttMap>,
    /// Measurements are not compiled before this time, so that they take a small part of a core at
    /// any rate of reports.
    pub(super) rtt_rest_until_ms: u64,
    pub(super) keys: RefusedKeys,
    pub(super) counters: Arc<SelectionCounters>,
    pub(super) turns: Arc<[AtomicU64]>,
    /// Counters of former revisions; queries in flight may still add to them.
    pub(super) past: Vec<Arc<SelectionCounters>>,
    /// Sums of counters that no query can add to any more.
    pub(super) settled: BTreeMap<SelectionLabels, u64>,
}

/// The share of its clients that a cluster accepts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct AcceptedShare {
    pub(super) full: bool,
    pub(super) by_prefix: Fraction,
    pub(super) by_chance: Fraction,
}

impl AcceptedShare {
    /// All clients.
    const WHOLE: Self = Self {
        full: false,
        by_prefix: WHOLE,
        by_chance: WHOLE,
    };
}

impl State {
    /// Lays the open challenges over the zones.
    pub(super) fn lay_challenges(&mut self) {
        let (_, open) = &self.open_challenges;
        self.challenges = Arc::new(ChallengeRecords::new(open, &self.fleet.zone, &self.zones));
    }

    pub(super) fn compile_rtt(&mut self, now_ms: u64) {
        self.rtt_changed = false;
        let begun = Instant::now();
        let places = self.fleet.steering.rtt_bound.then_some(&*self.plan.atlas);
        self.rtt_map = Arc::new(self.rtt.compile(
            now_ms,
            self.fleet.steering.rtt_max_age.as_millis() as u64,
            places,
        ));
        self.rtt_rest_until_ms = now_ms + begun.elapsed().as_millis() as u64 * RTT_REST_FACTOR;
    }

    /// Adds up counters that no query can add to any more.
    pub(super) fn settle(&mut self) {
        let surplus = self.past.len().saturating_sub(PAST_COUNTERS_MAX);
        let mut i = 0;
        self.past.retain(|tally| {
            i += 1;
            let ended = Arc::strong_count(tally) == 1 || i <= surplus;
            if ended {
                tally.add_to(&mut self.settled);
            }
            !ended
        });
    }

    /// Whether the node is in answers.
    fn is_given(&self, cluster: &str, node: &str) -> bool {
        self.health.get(node).is_none_or(|v| v.up) && !self.drains.is_drained(cluster, node)
    }

    /// The load of a cluster's nodes that are in answers; `None` where one has no capacity, or none
    /// has reported.
    fn cluster_load(&self, cluster: &Cluster) -> Option<ClusterLoad> {
        let mut sum = ClusterLoad {
            egress_bits: 0.0,
            capacity_bits: 0.0,
        };
        for node in cluster
            .nodes
            .iter()
            .filter(|n| self.is_given(&cluster.name, &n.name))
        {
            let capacity = node.capacity_bits.filter(|c| *c > 0)?;
            if let Some(load) = self.loads.get(&node.name).filter(|l| l.at_ms > 0) {
                sum.egress_bits += load.egress_bits as f64;
                sum.capacity_bits += capacity as f64;
            }
        }
        let is_down = !cluster
            .nodes
            .iter()
            .any(|n| self.is_given(&cluster.name, &n.name));
        (is_down || sum.capacity_bits > 0.0).then_some(sum)
    }

    /// Updates the shares that clusters accept and the weights of their nodes; says whether any
    /// changed.
    pub(super) fn refresh(&mut self, now_ms: u64) -> bool {
        let fleet = self.fleet.clone();
        let passed_ms = now_ms.saturating_sub(self.refreshed_ms);
        self.refreshed_ms = now_ms;
        let loads: Vec<Option<ClusterLoad>> = fleet
            .clusters
            .iter()
            .map(|c| self.cluster_load(c))
            .collect();
        self.shares.advance(&loads, now_ms);
        let mut accepted = Vec::with_capacity(fleet.clusters.len());
        let mut weights = HashMap::new();

        for (number, (cluster, load)) in fleet.clusters.iter().zip(&loads).enumerate() {
            let ramp = self.weigh(
                cluster,
                *load,
                self.shares.lasts_ms(number),
                passed_ms,
                now_ms,
                &mut weights,
            );
            let kept = self.shares.kept(number);
            let full = kept.by_prefix < 1.0 || load.is_some_and(|l| l.ratio() >= share::TARGET);
            accepted.push(AcceptedShare {
                full,
                by_prefix: share::part(kept.by_prefix * ramp),
                by_chance: share::part(kept.by_chance * ramp),
            });
        }

        let changed = accepted != self.accepted || weights != self.weights;
        (self.accepted, self.weights) = (accepted, weights);
        changed
    }

    /// Sets the weights of a cluster's nodes: their share of its capacity, corrected by how full
    /// they are, and less while they return. Gives the share of its clients that the cluster
    /// accepts while all its nodes return.
    fn weigh(
        &mut self,
        cluster: &Cluster,
        load: Option<ClusterLoad>,
        lasts_ms: u64,
        passed_ms: u64,
        now_ms: u64,
        weights: &mut HashMap<String, Weight>,
    ) -> f64 {
        let has_capacities = cluster
            .nodes
            .iter()
            .all(|n| n.capacity_bits.is_some_and(|c| c > 0));
        let mut found: Vec<(&str, f64, f64)> = Vec::with_capacity(cluster.nodes.len());

        for node in &cluster.nodes {
            let is_in = self.is_given(&cluster.name, &node.name);
            let ramp = self
                .ramps
                .share(&node.name, is_in, self.fleet.steering.ramp, now_ms);
            if !is_in {
                continue;
            }
            let capacity = node
                .capacity_bits
                .filter(|_| has_capacities)
                .map_or(1.0, |c| c as f64);
            let mut correction = self.corrections.get(&node.name).copied().unwrap_or(1.0);
            let own = self.loads.get(&node.name).filter(|l| l.at_ms > 0);
            if let (Some(load), Some(own), true) = (load, own, ramp >= 1.0 && has_capacities) {
                share::balance(
                    &mut correction,
                    own.egress_bits as f64 / capacity,
                    load.ratio(),
                    passed_ms,
                    lasts_ms,
                );
                self.corrections.insert(node.name.clone(), correction);
            }
            found.push((&node.name, capacity * correction, ramp));
        }

        let ramp_most = found.iter().map(|n| n.2).fold(0.0, f64::max);
        let weight_most = found
            .iter()
            .map(|n| n.1 * n.2)
            .fold(f64::MIN_POSITIVE, f64::max);
        let fine = |share: f64| ((share.clamp(0.0, 1.0) * 256.0).round().max(1.0) * 255.99) as u16;

        for (name, weight, ramp) in &found {
            let weight = Weight {
                weight: fine(weight * ramp / weight_most),
                ramp: fine(ramp / ramp_most),
            };
            weights.insert((*name).to_owned(), weight);
        }

        if found.is_empty() { 1.0 } else { ramp_most }
    }

    /// The snapshot of this state.
    pub(super) fn snapshot(&self) -> Snapshot {
        let clusters = self.fleet.clusters.iter().enumerate();
        let clusters: Vec<ClusterState> = clusters
            .map(|(number, cluster)| self.cluster_state(number, cluster))
            .collect();
        let explore = self.fleet.steering.rtt_explore.clamp(0.0, 1.0);
        Snapshot {
            is_shared: clusters.iter().any(|c| !c.takes_all()),
            clusters,
            fleet: self.fleet.clone(),
            zones: self.zones.clone(),
            challenges: self.challenges.clone(),
            plan: self.plan.clone(),
            services: self.services.clone(),
            rtt: self.rtt_map.clone(),
            counters: self.counters.clone(),
            turns: self.turns.clone(),
            explore_below: (explore * f64::from(u32::MAX)) as u32,
        }
    }

    fn cluster_state(&self, number: usize, cluster: &Cluster) -> ClusterState {
        let accepted = self.accepted.get(number).copied();
        let accepted = accepted.unwrap_or(AcceptedShare::WHOLE);
        let mut state = ClusterState {
            weight: cluster.weight,
            position: (cluster.place.latitude, cluster.place.longitude),
            full: accepted.full,
            by_prefix: accepted.by_prefix,
            by_chance: accepted.by_chance,
            salt: cluster
                .name
                .bytes()
                .fold(0, |salt, b| mix(salt ^ u64::from(b))),
            ..ClusterState::default()
        };

        for node in &cluster.nodes {
            let is_drained = self.drains.is_drained(&cluster.name, &node.name);
            let health = self.health.get(&node.name);
            for address in &node.addresses {
                let pool = match address {
                    IpAddr::V4(_) => &mut state.v4,
                    IpAddr::V6(_) => &mut state.v6,
                };
                pool.all.push(*address);
                if !is_drained && health.is_none_or(|h| h.serves(*address)) {
                    pool.up.push(*address);
                    let weight = self.weights.get(&node.name).copied();
                    pool.weights.push(weight.unwrap_or(Weight::WHOLE));
                }
            }
        }

        for pool in [&mut state.v4, &mut state.v6] {
            if pool.weights.windows(2).all(|pair| pair[0] == pair[1]) {
                pool.weights.clear();
            }
        }

        state
    }
}

pub(super) fn turns(fleet: &Fleet) -> Arc<[AtomicU64]> {
    fleet.sites.iter().map(|_| AtomicU64::new(0)).collect()
}
