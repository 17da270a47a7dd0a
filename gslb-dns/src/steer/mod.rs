//! Steering: which cluster a client is given, and how that is known.
//!
//! The query path reads one immutable [`Snapshot`] behind an atomic pointer: the zones, whose
//! steered names stand for sites by their number in the fleet, and what [`Snapshot::select`]
//! decides from: where addresses are ([`location`], compiled by [`plan`] into an order of clusters
//! for each run of addresses), what round-trip times say ([`rtt`]), which nodes are up ([`health`],
//! found out by [`check`]), what they carry ([`load`]), what clusters keep of their clients when
//! they are full ([`share`]), and how nodes return ([`ramp`]). [`select`] decides from these alone.
//! Everything that changes them runs in tasks beside it and swaps in a new snapshot.
//!
//! # Scopes (RFC 7871)
//!
//! Whoever is inside the scope returned gets the same cluster, now and whatever goes up, down or
//! full; chance and turns aside. It is not the widest such prefix of the moment: while a cluster is
//! down, networks with different orders may share the next one, but a scope that spans them would
//! be wrong once it is up again, and resolvers would hold scopes that overlap. What counts is the
//! order:
//!
//! - `geo`: the widest prefix around the client inside a run of addresses that share an order of
//!   clusters;
//! - `rtt`: the same, but never wider than /24 (/48), the grain of measurements; an exploring
//!   answer too. Where there is a measurement, it also stays inside one place, since times that are
//!   guessed depend on that;
//! - `weighted` and `round-robin`: 0, since these answers do not depend on who asks. Shares are
//!   then met over resolvers, not over the clients of one resolver;
//! - a site with a single cluster: 0 likewise, and so does the absence of addresses of a family,
//!   which is the same for all.
//!
//! While a cluster of a site takes a share of its clients alone, because it is full or has just
//! returned, the clients of one prefix of the grain (/24, /48) go together: a hash of that prefix
//! decides. So scopes of the site are then no wider than the grain. That is the one case in which a
//! scope depends on what is full: if it were always so, resolvers would ask for each /24 apart
//! although nothing is. Wider scopes that resolvers hold from before end with their TTL. For a
//! resolver that tells no prefix its own counts, moved a little by chance.
//!
//! A client that shows fewer bits than the map tells apart is steered as the first address of its
//! prefix, and the longer scope tells its resolver that more bits would have helped.

mod check;
mod choice;
mod count;
mod countries;
mod explain;
#[cfg(test)]
mod fixture;
mod health;
mod load;
mod location;
mod plan;
mod ramp;
mod ranges;
mod refused;
mod rtt;
mod select;
mod share;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use nearcast_fleet::admin::Extra;
use nearcast_fleet::clock::unix_millis;
use nearcast_fleet::config::{Cluster, Fleet, Node, SelectionPolicy};
use nearcast_fleet::drains::Drains;
use nearcast_fleet::node_key::{self, KeyRefused};
use nearcast_fleet::report::{DnsReport, NodeHealth, RttReport, SelectionCount};
use nearcast_fleet::shutdown::Shutdown;
use prometheus::core::{Collector, Desc};

use self::count::{Kind, Tally};
use self::health::Vitals;
use self::load::NodeLoad;
use self::location::{Atlas, ClientPlace, GRAIN_V4, GRAIN_V6};
use self::plan::Plan;
use self::ramp::Ramps;
use self::rtt::{Layout, RttMap, RttTable};
use self::select::{ClusterState, Decision, Question, Weight};
use self::share::{ClusterLoad, Part, Shares, WHOLE};
use crate::zone::Zones;
pub use choice::{ADDRESSES_MAX, Addresses, Choice, ClientPrefix, Family, Reason};

/// Measurements are compiled again after so many times as long as it took: two or three percent of
/// a core at most.
const RTT_REST_FACTOR: u64 = 40;
/// Why a drained edge is not in the answers, whatever its health.
const DRAINED: &str = "drained by an operator";
/// Longest TTL given, a week.
const TTL_MAX: u64 = 604_800;
/// Counters of so many former revisions of the fleet are kept apart; queries in flight have long
/// left older ones.
const PAST_TALLIES_MAX: usize = 8;

/// What is wrong with a geo database, as far as it can be told without compiling it; for checking a
/// fleet file before it is used.
///
/// # Errors
/// The file cannot be read (`NoInput`), or is no database (`BadData`).
pub fn check_geo_db(path: &std::path::Path) -> Result<(), nearcast_fleet::failure::Failure> {
    Atlas::probe(path)
}

/// Everything that steers, shared by all query workers.
pub struct Steering {
    snapshot: ArcSwap<Snapshot>,
    state: Mutex<State>,
    revision: AtomicU64,
}

/// A fleet and the zones compiled from it. The zones name sites by their place in the fleet, so the
/// two are of use only together.
#[derive(Debug, Clone)]
pub struct Served {
    /// The fleet.
    pub fleet: Arc<Fleet>,
    /// What this name server serves of it.
    pub zones: Arc<Zones>,
}

/// What the query path reads, all of one moment. Immutable, but for counters.
pub struct Snapshot {
    fleet: Arc<Fleet>,
    zones: Arc<Zones>,
    plan: Arc<Plan>,
    clusters: Vec<ClusterState>,
    rtt: Arc<RttMap>,
    tally: Arc<Tally>,
    turns: Arc<[AtomicU64]>,
    explore_below: u32,
    /// Whether some cluster takes only a share of its clients.
    is_shared: bool,
}

/// What the tasks and the admin paths change.
struct State {
    fleet: Arc<Fleet>,
    zones: Arc<Zones>,
    plan: Arc<Plan>,
    /// By node name.
    vitals: HashMap<String, Vitals>,
    /// By node name.
    loads: HashMap<String, NodeLoad>,
    ramps: Ramps,
    shares: Shares,
    /// By node name: what its weight is corrected by so that the nodes of a cluster are equally
    /// full.
    corrections: HashMap<String, f64>,
    /// What these come to, by cluster number and by node name.
    taken: Vec<Taken>,
    weights: HashMap<String, Weight>,
    refreshed_ms: u64,
    /// What operators have drained.
    drains: Drains,
    rtt: RttTable,
    rtt_changed: bool,
    rtt_map: Arc<RttMap>,
    /// Before that time the measurements are not compiled again: they take a small part of a core,
    /// whatever comes in.
    rtt_rest_until_ms: u64,
    keys: refused::RefusedKeys,
    tally: Arc<Tally>,
    turns: Arc<[AtomicU64]>,
    /// Counters by the indexes of former revisions; queries in flight may still add to them.
    past: Vec<Arc<Tally>>,
    /// Sums of counters that nobody adds to any more.
    settled: BTreeMap<Kind, u64>,
}

/// What a cluster takes of its clients.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Taken {
    full: bool,
    by_prefix: Part,
    by_chance: Part,
}

/// Milliseconds after the Unix epoch, now.
fn now_ms() -> u64 {
    unix_millis(SystemTime::now())
}

impl Steering {
    /// Starts steering for what is served: loads the geo database, begins health checks. Whatever
    /// `served` holds later is gone over to.
    ///
    /// A geo database that cannot be used is told, and the built-in table used until it can.
    ///
    /// Must be called inside a Tokio runtime; its tasks end with `shutdown`.
    pub fn start(
        served: tokio::sync::watch::Receiver<Served>,
        registry: &prometheus::Registry,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let current = served.borrow().clone();
        let geo = watch::start(current.fleet.steering.geo_db.as_deref(), registry);
        let steering = Arc::new(Self::new(current, Arc::clone(&geo.atlas), now_ms()));
        let selections = Selections::new(Arc::clone(&steering));
        if let Err(error) = registry.register(Box::new(selections)) {
            tracing::warn!(%error, "selections are not counted in this registry");
        }
        watch::spawn(&steering, served, geo, shutdown);
        steering
    }

    /// Without tasks: what is up and measured changes by calls alone.
    fn new(Served { fleet, zones }: Served, atlas: Arc<Atlas>, now_ms: u64) -> Self {
        let plan = Arc::new(Plan::new(&fleet, atlas));
        let tally = Arc::new(Tally::new(&fleet));
        let vitals = fleet
            .clusters
            .iter()
            .flat_map(|c| &c.nodes)
            .map(|n| (n.name.clone(), Vitals::unknown(n, now_ms)))
            .collect();
        let mut state = State {
            vitals,
            loads: HashMap::new(),
            ramps: Ramps::default(),
            shares: Shares::new(&fleet),
            corrections: HashMap::new(),
            taken: Vec::new(),
            weights: HashMap::new(),
            refreshed_ms: now_ms,
            drains: Drains::default(),
            rtt: RttTable::new(Layout::of(&fleet)),
            rtt_changed: false,
            rtt_map: Arc::default(),
            rtt_rest_until_ms: now_ms,
            keys: refused::RefusedKeys::default(),
            tally,
            turns: turns(&fleet),
            past: Vec::new(),
            settled: BTreeMap::new(),
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

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if something did, what it left is still
        // consistent.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn publish(&self, state: &State) {
        self.snapshot.store(Arc::new(state.snapshot()));
    }

    /// What answers are made from now. Let go of soon: a query, or a batch of them, is answered
    /// from one.
    pub fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// The admin paths of steering: `GET /explain` and `POST /rtt` (with the node key); 404 for
    /// others.
    pub fn admin_extra(self: &Arc<Self>) -> Extra {
        let steering = Arc::clone(self);
        Arc::new(move |request| {
            let response = steering.admin(&request, now_ms());
            Box::pin(async move { response })
        })
    }

    fn admin(&self, request: &Request<Bytes>, now_ms: u64) -> Response<Bytes> {
        match (request.uri().path(), request.method()) {
            ("/explain", &Method::GET) => {
                match self.explain(request.uri().query().unwrap_or(""), now_ms) {
                    Ok(explanation) => json(StatusCode::OK, &explanation),
                    Err((status, message)) => error(status, &message),
                }
            }
            ("/rtt", &Method::POST) => self.admin_rtt(request, now_ms),
            ("/explain", _) => not_allowed("GET"),
            ("/rtt", _) => not_allowed("POST"),
            _ => error(
                StatusCode::NOT_FOUND,
                "no such path; there are /live, /ready, /metrics, /explain and /rtt",
            ),
        }
    }

    fn admin_rtt(&self, request: &Request<Bytes>, now_ms: u64) -> Response<Bytes> {
        let fleet = Arc::clone(&self.snapshot.load().fleet);
        let caller = match node_key::caller(&fleet, request.headers()) {
            Ok(caller) => caller,
            Err(refused) => return self.refuse_key(&refused, now_ms),
        };
        let report: RttReport = match serde_json::from_slice(request.body()) {
            Ok(report) => report,
            Err(e) => {
                return error(
                    StatusCode::BAD_REQUEST,
                    &format!("not a round-trip report: {e}"),
                );
            }
        };
        if let Err(refused) = caller.speaks_for(&report.node) {
            return self.refuse_key(&refused, now_ms);
        }
        match self.take_report(&report, now_ms) {
            Ok(taken) => json(
                StatusCode::OK,
                &serde_json::json!({ "taken": taken, "of": report.samples.len() }),
            ),
            Err(message) => error(StatusCode::NOT_FOUND, &message),
        }
    }

    fn refuse_key(&self, refused: &KeyRefused, now_ms: u64) -> Response<Bytes> {
        self.state().keys.note(refused, now_ms);
        error(refused.status(), &refused.to_string())
    }

    /// Takes in what an edge reports; says how many samples were of use.
    fn take_report(&self, report: &RttReport, now_ms: u64) -> Result<usize, String> {
        let mut state = self.state();
        let fleet = Arc::clone(&state.fleet);
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

    /// Does what falls due with time: compiles measurements that came in, forgets old ones and old
    /// loads, moves shares and ramps on.
    fn tick(&self, now_ms: u64) {
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

    /// Takes in the result of a health check of one of a node's endpoints.
    fn observe_health(
        &self,
        node: &str,
        endpoint: SocketAddr,
        outcome: health::Outcome,
        now_ms: u64,
    ) {
        let mut state = self.state();
        let fleet = Arc::clone(&state.fleet);
        let Some(vitals) = state.vitals.get_mut(node) else {
            return;
        };
        let was_up = vitals.up;
        let changed = vitals.observe(endpoint, outcome, &fleet.steering.health, now_ms);
        if changed.is_empty() {
            return;
        }
        match (was_up, vitals.up) {
            (false, true) => tracing::info!(node, reason = %vitals.reason, "edge is up"),
            (true, false) => tracing::warn!(node, reason = %vitals.reason, "edge is down"),
            _ => {
                for (address, is_up) in changed {
                    tracing::warn!(node, %address, is_up, reason = %vitals.reason, "an address of an edge changed");
                }
            }
        }
        state.refresh(now_ms);
        self.publish(&state);
    }

    /// What operators have drained is in no answer, as long as anything else is up.
    pub fn set_drained(&self, drains: Drains) {
        let mut state = self.state();
        state.drains = drains;
        state.refresh(now_ms());
        self.publish(&state);
    }

    /// Goes over to another revision of the fleet with its zones, or another atlas.
    fn adopt(&self, Served { fleet, zones }: Served, atlas: Arc<Atlas>, now_ms: u64) {
        let current = Arc::clone(&self.state().plan);
        // The plan can take a while, so it is made without the lock.
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
            .vitals
            .retain(|name, _| nodes.contains_key(name.as_str()));
        state
            .loads
            .retain(|name, _| nodes.contains_key(name.as_str()));
        for (name, node) in nodes {
            let vitals = state
                .vitals
                .entry(name.to_owned())
                .or_insert_with(|| Vitals::unknown(node, now_ms));
            vitals.adapt(node, now_ms);
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
        state.rtt.set_layout(Layout::of(&fleet));
        if !state.tally.fits(&fleet) {
            let past = std::mem::replace(&mut state.tally, Arc::new(Tally::new(&fleet)));
            state.past.push(past);
            state.turns = turns(&fleet);
        }
        state.fleet = fleet;
        state.zones = zones;
        state.plan = plan;
        state.compile_rtt(now_ms);
        state.refresh(now_ms);
        self.publish(&state);
        state.settle();
    }

    /// The atlas in use.
    fn atlas(&self) -> Arc<Atlas> {
        Arc::clone(&self.snapshot.load().plan.atlas)
    }

    /// Selections since start.
    fn totals(&self) -> BTreeMap<Kind, u64> {
        let mut state = self.state();
        state.settle();
        let mut totals = state.settled.clone();
        for tally in state.past.iter().chain([&state.tally]) {
            tally.add_to(&mut totals);
        }
        totals
    }

    /// Fills in what steering knows of a report: selections, health, prefixes with a measurement,
    /// the geo source.
    ///
    /// The report's revision is noted in turn, so that explanations can name it.
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
                let vitals = state.vitals.get(&node.name)?;
                let is_drained = state.drains.is_drained(&cluster.name, &node.name);
                Some(NodeHealth {
                    node: node.name.clone(),
                    up: vitals.up && !is_drained,
                    since_unix_ms: vitals.since_ms,
                    reason: if is_drained {
                        DRAINED.to_owned()
                    } else {
                        vitals.reason.clone()
                    },
                    check_us: vitals.check_us,
                })
            })
            .collect();
        report.rtt_prefixes = state.rtt_map.prefixes as u64;
        report.geo_source.clone_from(&state.plan.atlas.description);
    }
}

fn turns(fleet: &Fleet) -> Arc<[AtomicU64]> {
    fleet.sites.iter().map(|_| AtomicU64::new(0)).collect()
}

impl State {
    fn compile_rtt(&mut self, now_ms: u64) {
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

    /// Sums up counters that no query can add to any more.
    fn settle(&mut self) {
        let surplus = self.past.len().saturating_sub(PAST_TALLIES_MAX);
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

    /// Whether clients are given the node at all.
    fn is_given(&self, cluster: &str, node: &str) -> bool {
        self.vitals.get(node).is_none_or(|v| v.up) && !self.drains.is_drained(cluster, node)
    }

    /// What the nodes of a cluster that are given carry together; `None` where one may carry any
    /// amount, or nothing is known of those that are given.
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

    /// Brings up to date what clusters take of their clients, and the weights of their nodes. Says
    /// whether anything changed.
    fn refresh(&mut self, now_ms: u64) -> bool {
        let fleet = Arc::clone(&self.fleet);
        let passed_ms = now_ms.saturating_sub(self.refreshed_ms);
        self.refreshed_ms = now_ms;
        let loads: Vec<Option<ClusterLoad>> = fleet
            .clusters
            .iter()
            .map(|c| self.cluster_load(c))
            .collect();
        self.shares.advance(&loads, now_ms);
        let mut taken = Vec::with_capacity(fleet.clusters.len());
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
            taken.push(Taken {
                full,
                by_prefix: share::part(kept.by_prefix * ramp),
                by_chance: share::part(kept.by_chance * ramp),
            });
        }
        let changed = taken != self.taken || weights != self.weights;
        (self.taken, self.weights) = (taken, weights);
        changed
    }

    /// The weights of a cluster's nodes: their share of its capacity, corrected by how full they
    /// are, and less while they return. Gives the share of its clients that the cluster takes while
    /// all its nodes return.
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

    fn snapshot(&self) -> Snapshot {
        let serves =
            |name: &str, address: IpAddr| self.vitals.get(name).is_none_or(|v| v.serves(address));
        let whole = Taken {
            full: false,
            by_prefix: WHOLE,
            by_chance: WHOLE,
        };
        let mut clusters: Vec<ClusterState> = Vec::with_capacity(self.fleet.clusters.len());
        for (number, cluster) in self.fleet.clusters.iter().enumerate() {
            let taken = self.taken.get(number).copied().unwrap_or(whole);
            let mut state = ClusterState {
                weight: cluster.weight,
                position: (cluster.place.latitude, cluster.place.longitude),
                full: taken.full,
                by_prefix: taken.by_prefix,
                by_chance: taken.by_chance,
                salt: cluster
                    .name
                    .bytes()
                    .fold(0, |salt, b| select::mix(salt ^ u64::from(b))),
                ..ClusterState::default()
            };
            for node in &cluster.nodes {
                for address in &node.addresses {
                    let pool = if address.is_ipv4() {
                        &mut state.v4
                    } else {
                        &mut state.v6
                    };
                    pool.all.push(*address);
                    if serves(&node.name, *address)
                        && !self.drains.is_drained(&cluster.name, &node.name)
                    {
                        pool.up.push(*address);
                        let weight = self.weights.get(&node.name).copied();
                        pool.weights.push(weight.unwrap_or(Weight {
                            weight: u16::MAX,
                            ramp: u16::MAX,
                        }));
                    }
                }
            }
            for pool in [&mut state.v4, &mut state.v6] {
                if pool.weights.windows(2).all(|pair| pair[0] == pair[1]) {
                    pool.weights.clear();
                }
            }
            clusters.push(state);
        }
        Snapshot {
            is_shared: clusters.iter().any(|c| !c.takes_all()),
            clusters,
            fleet: Arc::clone(&self.fleet),
            zones: Arc::clone(&self.zones),
            plan: Arc::clone(&self.plan),
            rtt: Arc::clone(&self.rtt_map),
            tally: Arc::clone(&self.tally),
            turns: Arc::clone(&self.turns),
            explore_below: (self.fleet.steering.rtt_explore.clamp(0.0, 1.0) * f64::from(u32::MAX))
                as u32,
        }
    }
}

/// The prefix of the grain around an address, as a number.
fn grain_of(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(ip) => 1 << 60 | u64::from(u32::from(ip) >> (32 - GRAIN_V4)),
        IpAddr::V6(ip) => 2 << 60 | (u128::from(ip) >> (128 - GRAIN_V6)) as u64,
    }
}

/// Bits of an IPv4-mapped IPv6 address before the IPv4 address.
const MAPPED_BITS: u8 = 96;

/// The bits of an address that are known, zeros after them; of an IPv4-mapped one the IPv4 address.
fn masked(client: &ClientPrefix) -> IpAddr {
    match client.address.to_canonical() {
        IpAddr::V4(ip) => {
            let before = if client.address.is_ipv6() {
                MAPPED_BITS
            } else {
                0
            };
            let known = client.source_prefix.saturating_sub(before);
            let mask = u32::MAX
                .checked_shl(32_u32.saturating_sub(known.into()))
                .unwrap_or(0);
            IpAddr::V4((u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX
                .checked_shl(128_u32.saturating_sub(client.source_prefix.into()))
                .unwrap_or(0);
            IpAddr::V6((u128::from(ip) & mask).into())
        }
    }
}

/// A decision with what led to it.
struct Considered<'a> {
    question: Question<'a>,
    scope_prefix: u8,
}

impl Snapshot {
    /// The zones; their sites are this snapshot's.
    pub fn zones(&self) -> &Zones {
        &self.zones
    }

    /// The answer for one client of the `site`-th site of the fleet. Takes no lock and allocates
    /// nothing.
    ///
    /// A site that does not exist has no addresses.
    pub fn select(
        &self,
        site: usize,
        client: &ClientPrefix,
        family: Family,
        random: u64,
    ) -> Choice {
        let address = masked(client);
        let mut choice = self.decide(site, address, client.from_ecs, family, random);
        if choice.scope_prefix > 0 && client.address.is_ipv6() && address.is_ipv4() {
            // The scope is of the family that was asked with.
            choice.scope_prefix += MAPPED_BITS;
        }
        if !choice.addresses.is_empty() {
            self.tally.add(
                site,
                choice.cluster,
                choice.reason,
                self.plan.atlas.country(address),
            );
        }
        choice
    }

    /// Gathers what a decision depends on.
    fn consider(
        &self,
        site: usize,
        address: IpAddr,
        family: Family,
        random: u64,
    ) -> Option<Considered<'_>> {
        let policy = self.fleet.sites.get(site)?.policy;
        let (order, order_scope) = match policy {
            SelectionPolicy::Geo | SelectionPolicy::Rtt => self.plan.find(site, address)?,
            SelectionPolicy::Weighted | SelectionPolicy::RoundRobin => {
                (self.plan.unplaced(site)?, 0)
            }
        };
        let grain = if address.is_ipv4() {
            GRAIN_V4
        } else {
            GRAIN_V6
        };
        let single = order.clusters.len() < 2;
        let mut question = Question {
            policy,
            clusters: &self.clusters,
            order: &order.clusters,
            placed: order.placed,
            here: None,
            rtt: None,
            family,
            explore_below: if single { 0 } else { self.explore_below },
            turn: 0,
            random,
            is_shared: self.is_shared
                && order
                    .clusters
                    .iter()
                    .any(|c| !self.clusters[usize::from(*c)].takes_all()),
            grain: grain_of(address),
            has_subnet: true,
        };
        let scope_prefix = match policy {
            _ if single => 0,
            SelectionPolicy::Geo if question.is_shared => order_scope.max(grain),
            SelectionPolicy::Geo => order_scope,
            SelectionPolicy::Rtt => match self.rtt.find(address) {
                Some(row) => {
                    // A time that is guessed depends on the place itself, not on the order alone.
                    let (number, place_scope) = self.plan.atlas.find(address);
                    question.here = self.plan.atlas.place(number).map(ClientPlace::position);
                    question.rtt = Some(row);
                    order_scope.max(place_scope).max(grain)
                }
                None => order_scope.max(grain),
            },
            SelectionPolicy::Weighted => 0,
            SelectionPolicy::RoundRobin => {
                question.turn = self
                    .turns
                    .get(site)
                    .map_or(0, |t| t.load(Ordering::Relaxed));
                0
            }
        };
        Some(Considered {
            question,
            scope_prefix,
        })
    }

    fn decide(
        &self,
        site: usize,
        address: IpAddr,
        from_ecs: bool,
        family: Family,
        random: u64,
    ) -> Choice {
        let Some(mut considered) = self.consider(site, address, family, random) else {
            return Choice {
                cluster: 0,
                addresses: Addresses::EMPTY,
                ttl: 0,
                scope_prefix: 0,
                reason: Reason::NoAddress,
            };
        };
        considered.question.has_subnet = from_ecs;
        if considered.question.policy == SelectionPolicy::RoundRobin
            && let Some(turns) = self.turns.get(site)
        {
            considered.question.turn = turns.fetch_add(1, Ordering::Relaxed);
        }
        self.choice(site, &considered, select::decide(&considered.question))
    }

    fn choice(&self, site: usize, considered: &Considered<'_>, decision: Decision) -> Choice {
        let ttl = self
            .fleet
            .sites
            .get(site)
            .map_or(0, |s| s.ttl.as_secs().min(TTL_MAX) as u32);
        let question = &considered.question;
        match decision.cluster {
            None => Choice {
                cluster: 0,
                addresses: Addresses::EMPTY,
                ttl,
                scope_prefix: 0,
                reason: decision.reason,
            },
            Some(cluster) => Choice {
                cluster: usize::from(cluster),
                addresses: match self.clusters[usize::from(cluster)].serving(question.family) {
                    (all, []) => Addresses::rotated(all, (question.random & 0xffff) as usize),
                    (all, weights) => {
                        Addresses::weighted(all, weights, question.has_subnet, question.random)
                    }
                },
                ttl,
                scope_prefix: considered.scope_prefix,
                reason: decision.reason,
            },
        }
    }
}

/// `nearcast_dns_selections_total` and what else of steering goes into metrics, gathered when asked
/// for.
struct Selections {
    steering: Arc<Steering>,
    described: prometheus::IntCounterVec,
    node_up: prometheus::IntGaugeVec,
    address_up: prometheus::IntGaugeVec,
    cluster_share: prometheus::GaugeVec,
    rtt_prefixes: prometheus::IntGauge,
    rtt_dropped: prometheus::IntCounterVec,
    keys_refused: prometheus::IntCounterVec,
}

impl Selections {
    fn new(steering: Arc<Steering>) -> Self {
        let opts = |name, help| prometheus::Opts::new(name, help);
        Self {
            steering,
            described: selections_vec(),
            node_up: prometheus::IntGaugeVec::new(
                opts("nearcast_dns_node_up", "Whether this name server takes the edge for up."),
                &["node"],
            )
            .expect("valid metric"),
            address_up: prometheus::IntGaugeVec::new(
                opts("nearcast_dns_address_up", "Whether this name server has the edge's address in its answers."),
                &["node", "address"],
            )
            .expect("valid metric"),
            cluster_share: prometheus::GaugeVec::new(
                opts("nearcast_dns_cluster_share", "Share of its clients that a cluster takes; less than 1 while it is full or returns."),
                &["cluster"],
            )
            .expect("valid metric"),
            rtt_prefixes: prometheus::IntGauge::with_opts(opts(
                "nearcast_dns_rtt_prefixes",
                "Client prefixes with a round-trip time that counts.",
            ))
            .expect("valid metric"),
            rtt_dropped: rtt_dropped_vec(),
            keys_refused: keys_refused_vec(),
        }
    }
}

fn selections_vec() -> prometheus::IntCounterVec {
    prometheus::IntCounterVec::new(
        prometheus::Opts::new(
            "nearcast_dns_selections_total",
            "Steered answers by site, cluster given and reason.",
        ),
        &["site", "cluster", "reason"],
    )
    .expect("valid metric")
}

fn rtt_dropped_vec() -> prometheus::IntCounterVec {
    let help = "Reported round-trip times that were dropped, since they cannot be or others outvote them, by the edge that reported them.";
    prometheus::IntCounterVec::new(
        prometheus::Opts::new("nearcast_dns_rtt_dropped_total", help),
        &["node"],
    )
    .expect("valid metric")
}

fn keys_refused_vec() -> prometheus::IntCounterVec {
    let opts = prometheus::Opts::new(
        "nearcast_dns_keys_refused_total",
        "Reports with a node key that was refused.",
    );
    prometheus::IntCounterVec::new(opts, &["reason"]).expect("valid metric")
}

impl Collector for Selections {
    fn desc(&self) -> Vec<&Desc> {
        let steered = [
            self.described.desc(),
            self.node_up.desc(),
            self.address_up.desc(),
            self.cluster_share.desc(),
        ];
        let measured = [
            self.rtt_prefixes.desc(),
            self.rtt_dropped.desc(),
            self.keys_refused.desc(),
        ];
        [steered.concat(), measured.concat()].concat()
    }

    fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
        let counts = selections_vec();
        for (kind, count) in self.steering.totals() {
            counts
                .with_label_values(&[kind.site.as_str(), &kind.cluster, kind.reason.label()])
                .inc_by(count);
        }
        let state = self.steering.state();
        self.node_up.reset();
        self.address_up.reset();
        for (node, vitals) in &state.vitals {
            self.node_up
                .with_label_values(&[node.as_str()])
                .set(i64::from(vitals.up));
            for (address, is_up) in vitals.addresses() {
                self.address_up
                    .with_label_values(&[node.as_str(), &address.to_string()])
                    .set(i64::from(is_up));
            }
        }
        self.cluster_share.reset();
        for (cluster, taken) in state.fleet.clusters.iter().zip(&state.taken) {
            self.cluster_share
                .with_label_values(&[cluster.name.as_str()])
                .set(f64::from(taken.by_prefix) / f64::from(WHOLE));
        }
        self.rtt_prefixes.set(state.rtt_map.prefixes as i64);
        let (dropped, refused) = (rtt_dropped_vec(), keys_refused_vec());
        for (node, count) in state.rtt.dropped() {
            dropped.with_label_values(&[node]).inc_by(count);
        }
        for (reason, count) in state.keys.counts() {
            refused.with_label_values(&[reason]).inc_by(count);
        }
        let steered = [
            counts.collect(),
            self.node_up.collect(),
            self.address_up.collect(),
            self.cluster_share.collect(),
        ];
        let measured = [
            self.rtt_prefixes.collect(),
            dropped.collect(),
            refused.collect(),
        ];
        [steered.concat(), measured.concat()].concat()
    }
}

fn json<T: serde::Serialize>(status: StatusCode, body: &T) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(serde_json::to_vec(body).unwrap_or_default()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    response
}

fn error(status: StatusCode, message: &str) -> Response<Bytes> {
    let code = status
        .canonical_reason()
        .unwrap_or("error")
        .to_ascii_lowercase()
        .replace(' ', "_");
    json(
        status,
        &serde_json::json!({ "error": { "code": code, "message": message } }),
    )
}

fn not_allowed(allow: &'static str) -> Response<Bytes> {
    let mut response = error(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("this path takes {allow}"),
    );
    response
        .headers_mut()
        .insert(http::header::ALLOW, http::HeaderValue::from_static(allow));
    response
}

#[cfg(test)]
mod liars;
#[cfg(test)]
mod tests;
