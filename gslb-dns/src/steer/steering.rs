//! Steering: its state behind one lock, and the snapshot that queries read.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use nearcast_fleet::change::DnsChallenge;
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::Node;
use nearcast_fleet::drains::Drains;
use nearcast_fleet::report::{DnsReport, NodeHealth, RttReport, SelectionCount};
use parking_lot::{Mutex, MutexGuard};

use super::counters::{SelectionCounters, SelectionLabels};
use super::countries;
use super::health::{CheckOutcome, HealthState};
use super::load;
use super::location::Atlas;
use super::plan::Plan;
use super::ramp::Ramps;
use super::refused::RefusedKeys;
use super::rtt::{self, RttTable, Topology};
use super::service::Services;
use super::share::Shares;
use super::snapshot::{Revision, Snapshot};
use super::state::{DRAINED, State, turns};

/// The steering of a name server, shared by all query workers.
pub struct Steering {
    pub(super) snapshot: ArcSwap<Snapshot>,
    pub(super) state: Mutex<State>,
    pub(super) revision: AtomicU64,
}

impl Steering {
    /// Steering without tasks: its state changes only by calls.
    pub(super) fn new(Revision { fleet, zones }: Revision, atlas: Arc<Atlas>, now_ms: u64) -> Self {
        let plan = Arc::new(Plan::new(&fleet, atlas));
        let counters = Arc::new(SelectionCounters::new(&fleet));
        let health = fleet
            .clusters
            .iter()
            .flat_map(|c| &c.nodes)
            .map(|n| (n.name.clone(), HealthState::unknown(n, now_ms)))
            .collect();
        let mut state = State {
            health,
            loads: HashMap::new(),
            ramps: Ramps::default(),
            shares: Shares::new(&fleet),
            corrections: HashMap::new(),
            accepted: Vec::new(),
            weights: HashMap::new(),
            refreshed_ms: now_ms,
            drains: Drains::default(),
            rtt: RttTable::new(Topology::of(&fleet)),
            rtt_changed: false,
            rtt_map: Arc::default(),
            rtt_rest_until_ms: now_ms,
            keys: RefusedKeys::default(),
            counters,
            turns: turns(&fleet),
            services: Arc::new(Services::new(&fleet)),
            past: Vec::new(),
            settled: BTreeMap::new(),
            open_challenges: (0, Vec::new()),
            challenges: Arc::default(),
            fleet,
            zones,
            plan,
        };
        state.refresh(now_ms);

        Self {
            snapshot: ArcSwap::from_pointee(state.snapshot()),
            state: Mutex::new(state),
            revision: AtomicU64::new(0),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn publish(&self, state: &State) {
        self.snapshot.store(Arc::new(state.snapshot()));
    }

    /// The current snapshot. One query, or a batch of them, is answered from one snapshot; drop it
    /// soon.
    pub fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// Records an edge's report; gives the number of samples that were of use.
    pub(super) fn take_report(&self, report: &RttReport, now_ms: u64) -> Result<usize, String> {
        let mut state = self.state();
        let fleet = state.fleet.clone();
        let found = fleet.edge(&report.node).map(|(_, node)| node);
        let Some(node) = found else {
            return Err(format!(
                "the fleet has no edge {:?}",
                report.node.chars().take(64).collect::<String>()
            ));
        };
        let max_age_ms = fleet.steering.rtt_max_age.as_millis() as u64;
        let samples = report.samples.iter().take(rtt::SAMPLES_MAX);
        let taken = samples
            .filter(|s| state.rtt.add(&node.name, s, now_ms, max_age_ms))
            .count();
        state.rtt_changed |= taken > 0;
        let load = state.loads.entry(node.name.clone()).or_default();
        if load.observe(
            report.egress_bits,
            report.connections,
            node.capacity_bits,
            now_ms,
        ) {
            tracing::info!(node = %node.name, full = load.full, egress_bits = report.egress_bits, "load of an edge changed");
        }
        Ok(taken)
    }

    /// Does the periodic work: compiles new measurements, expires old ones and old loads, advances
    /// shares and ramps.
    pub(super) fn tick(&self, now_ms: u64) {
        let mut state = self.state();
        let stale_ms =
            (state.fleet.report_interval * load::STALE_AFTER_INTERVALS).as_millis() as u64;
        let mut changed = false;
        for load in state.loads.values_mut() {
            changed |= load.expire(now_ms, stale_ms);
        }
        let is_due = state.rtt_changed || now_ms >= state.rtt_map.next_expiry_ms;
        if is_due && now_ms >= state.rtt_rest_until_ms {
            state.compile_rtt(now_ms);
            changed = true;
        }
        changed |= state.refresh(now_ms);
        if changed {
            self.publish(&state);
        }
    }

    /// Records the result of a health check of one of a node's endpoints.
    pub(super) fn observe_health(
        &self,
        node: &str,
        endpoint: SocketAddr,
        outcome: CheckOutcome,
        now_ms: u64,
    ) {
        let mut state = self.state();
        let fleet = state.fleet.clone();
        let Some(health) = state.health.get_mut(node) else {
            return;
        };
        let was_up = health.up;
        let changed = health.observe(endpoint, outcome, &fleet.steering.health, now_ms);
        if changed.is_empty() {
            return;
        }
        match (was_up, health.up) {
            (false, true) => tracing::info!(node, reason = %health.reason, "edge is up"),
            (true, false) => tracing::warn!(node, reason = %health.reason, "edge is down"),
            _ => {
                for (address, is_up) in changed {
                    tracing::warn!(node, %address, is_up, reason = %health.reason, "an address of an edge changed");
                }
            }
        }
        state.refresh(now_ms);
        self.publish(&state);
    }

    /// Sets the nodes that operators have drained: they are in no answer while any other node is
    /// up.
    pub fn set_drained(&self, drains: Drains) {
        let mut state = self.state();
        state.drains = drains;
        state.refresh(now_unix_ms());
        self.publish(&state);
    }

    /// Sets the challenges that are answered (RFC 8555 section 8.4), and the revision that brought
    /// them.
    pub fn set_challenges(&self, revision: u64, open: Vec<DnsChallenge>) {
        let mut state = self.state();
        state.open_challenges = (revision, open);
        state.lay_challenges();
        self.publish(&state);
    }

    /// Adopts another revision of the fleet with its zones, or another atlas.
    pub(super) fn adopt(
        &self,
        Revision { fleet, zones }: Revision,
        atlas: Arc<Atlas>,
        now_ms: u64,
    ) {
        let current = self.state().plan.clone();
        // Computing the plan takes time, so it is done without the lock.
        let plan = if current.fits(&fleet, &atlas) {
            current
        } else {
            Arc::new(Plan::new(&fleet, atlas))
        };
        let mut state = self.state();
        let nodes: HashMap<&str, &Node> = fleet
            .clusters
            .iter()
            .flat_map(|c| &c.nodes)
            .map(|n| (n.name.as_str(), n))
            .collect();

        state
            .health
            .retain(|name, _| nodes.contains_key(name.as_str()));
        state
            .loads
            .retain(|name, _| nodes.contains_key(name.as_str()));

        for (name, node) in nodes {
            let health = state
                .health
                .entry(name.to_owned())
                .or_insert_with(|| HealthState::unknown(node, now_ms));
            health.adapt(node, now_ms);
        }

        let State {
            shares,
            fleet: former,
            ..
        } = &mut *state;
        shares.adopt(former, &fleet);
        state.ramps.retain(|name| fleet.edge(name).is_some());

        state
            .corrections
            .retain(|name, _| fleet.edge(name).is_some());
        state.rtt.set_topology(Topology::of(&fleet));
        if !state.counters.fits(&fleet) {
            let past = std::mem::replace(
                &mut state.counters,
                Arc::new(SelectionCounters::new(&fleet)),
            );
            state.past.push(past);
            state.turns = turns(&fleet);
        }

        state.services = Arc::new(Services::new(&fleet));
        state.fleet = fleet;
        state.zones = zones;
        state.plan = plan;
        state.lay_challenges();
        state.compile_rtt(now_ms);
        state.refresh(now_ms);
        self.publish(&state);
        state.settle();
    }

    /// The atlas in use.
    pub(super) fn atlas(&self) -> Arc<Atlas> {
        self.snapshot.load().plan.atlas.clone()
    }

    /// Selections since start.
    pub(super) fn totals(&self) -> BTreeMap<SelectionLabels, u64> {
        let mut state = self.state();
        state.settle();
        let mut totals = state.settled.clone();
        for tally in state.past.iter().chain([&state.counters]) {
            tally.add_to(&mut totals);
        }
        totals
    }

    /// Fills in the part of a report that steering knows: selections, health, number of measured
    /// prefixes, geo source. Keeps the report's revision, so that explanations can name it.
    pub fn fill_report(&self, report: &mut DnsReport) {
        self.revision.store(report.revision, Ordering::Relaxed);
        report.selections = self
            .totals()
            .into_iter()
            .map(|(kind, count)| {
                let code = <[u8; 2]>::try_from(kind.country.as_bytes()).unwrap_or_default();
                let (latitude, longitude) = countries::index(code).map_or((0.0, 0.0), |i| {
                    (countries::COUNTRIES[i].1, countries::COUNTRIES[i].2)
                });
                SelectionCount {
                    site: kind.site,
                    cluster: kind.cluster,
                    reason: kind.reason.label().to_owned(),
                    country: kind.country,
                    latitude: f64::from(latitude),
                    longitude: f64::from(longitude),
                    count,
                }
            })
            .collect();
        let state = self.state();
        let nodes = state
            .fleet
            .clusters
            .iter()
            .flat_map(|c| c.nodes.iter().map(move |n| (c, n)));

        report.health = nodes
            .filter_map(|(cluster, node)| {
                let health = state.health.get(&node.name)?;
                let is_drained = state.drains.is_drained(&cluster.name, &node.name);
                Some(NodeHealth {
                    node: node.name.clone(),
                    up: health.up && !is_drained,
                    since_unix_ms: health.since_ms,
                    reason: if is_drained {
                        DRAINED.to_owned()
                    } else {
                        health.reason.clone()
                    },
                    check_us: health.check_us,
                })
            })
            .collect();
        (report.challenges_revision, _) = state.open_challenges;
        report.rtt_prefixes = state.rtt_map.prefixes as u64;
        report.geo_source.clone_from(&state.plan.atlas.description);
    }
}
