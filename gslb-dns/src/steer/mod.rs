//! Steering: which cluster a client is given, and how that is known.
//!
//! The query path reads one immutable [`Snapshot`] behind an atomic pointer: the zones, whose steered names stand for sites by their number
//! in the fleet, and what [`Snapshot::select`] decides from: where addresses are
//! ([`location`], compiled by [`plan`] into an order of clusters for each run of addresses), what round-trip times say ([`rtt`]), which
//! nodes are up ([`health`]) and full ([`load`]). [`select`] decides from these alone. Everything that changes them runs in tasks beside
//! it and swaps in a new snapshot.
//!
//! # Scopes (RFC 7871)
//!
//! Whoever is inside the scope returned gets the same cluster, now and whatever goes up, down or full; chance and turns aside. It is not
//! the widest such prefix of the moment: while a cluster is down, networks with different orders may share the next one, but a scope that
//! spans them would be wrong once it is up again, and resolvers would hold scopes that overlap. What counts is the order:
//!
//! - `geo`: the widest prefix around the client inside a run of addresses that share an order of clusters;
//! - `rtt`: the same, but never wider than /24 (/48), the grain of measurements; an exploring answer too. Where there is a measurement, it
//!   also stays inside one place, since times that are guessed depend on that;
//! - `weighted` and `round-robin`: 0, since these answers do not depend on who asks. Shares are then met over resolvers,
//!   not over the clients of one resolver;
//! - a site with a single cluster: 0 likewise, and so does the absence of addresses of a family, which is the same for all.
//!
//! A client that shows fewer bits than the map tells apart is steered as the first address of its prefix, and the longer scope tells its
//! resolver that more bits would have helped.

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
mod ranges;
mod rtt;
mod select;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use nearcast_fleet::admin::{self, Extra};
use nearcast_fleet::clock::unix_millis;
use nearcast_fleet::config::{Fleet, SelectionPolicy};
use nearcast_fleet::drains::Drains;
use nearcast_fleet::failure::Failure;
use nearcast_fleet::report::{DnsReport, NodeHealth, RttReport, SelectionCount};
use nearcast_fleet::shutdown::Shutdown;
use prometheus::core::{Collector, Desc};

use self::count::{Kind, Tally};
use self::health::Vitals;
use self::load::NodeLoad;
use self::location::{Atlas, ClientPlace, GRAIN_V4, GRAIN_V6};
use self::plan::Plan;
use self::rtt::{RttMap, RttTable};
use self::select::{ClusterState, Decision, Question};
use crate::zone::Zones;
pub use choice::{ADDRESSES_MAX, Addresses, Choice, ClientPrefix, Family, Reason};

/// Why a drained edge is not in the answers, whatever its health.
const DRAINED: &str = "drained by an operator";
/// Longest TTL given, a week.
const TTL_MAX: u64 = 604_800;
/// Counters of so many former revisions of the fleet are kept apart; queries in flight have long left older ones.
const PAST_TALLIES_MAX: usize = 8;

/// Everything that steers, shared by all query workers.
pub struct Steering {
    snapshot: ArcSwap<Snapshot>,
    state: Mutex<State>,
    revision: AtomicU64,
}

/// A fleet and the zones compiled from it. The zones name sites by their place in the fleet, so the two are of use only together.
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
    /// What operators have drained.
    drains: Drains,
    rtt: RttTable,
    rtt_changed: bool,
    rtt_map: Arc<RttMap>,
    rtt_compiled_ms: u64,
    tally: Arc<Tally>,
    turns: Arc<[AtomicU64]>,
    /// Counters by the indexes of former revisions; queries in flight may still add to them.
    past: Vec<Arc<Tally>>,
    /// Sums of counters that nobody adds to any more.
    settled: BTreeMap<Kind, u64>,
}

/// Milliseconds after the Unix epoch, now.
fn now_ms() -> u64 {
    unix_millis(SystemTime::now())
}

impl Steering {
    /// Starts steering for what is served: loads the geo database, begins health checks. Whatever `served` holds later is gone over to.
    ///
    /// Must be called inside a Tokio runtime; its tasks end with `shutdown`.
    ///
    /// # Errors
    /// The geo database is unreadable (`NoInput`) or has the wrong content (`BadData`).
    pub fn start(
        served: tokio::sync::watch::Receiver<Served>,
        registry: &prometheus::Registry,
        shutdown: Shutdown,
    ) -> Result<Arc<Self>, Failure> {
        let current = served.borrow().clone();
        let (atlas, stamp) = watch::load(current.fleet.steering.geo_db.as_deref())?;
        let steering = Arc::new(Self::new(current, atlas, now_ms()));
        let selections = Selections::new(Arc::clone(&steering));
        if let Err(error) = registry.register(Box::new(selections)) {
            tracing::warn!(%error, "selections are not counted in this registry");
        }
        watch::spawn(&steering, served, stamp, shutdown);
        Ok(steering)
    }

    /// Without tasks: what is up and measured changes by calls alone.
    fn new(Served { fleet, zones }: Served, atlas: Arc<Atlas>, now_ms: u64) -> Self {
        let plan = Arc::new(Plan::new(&fleet, atlas));
        let tally = Arc::new(Tally::new(&fleet));
        let vitals = fleet.clusters.iter().flat_map(|c| &c.nodes).map(|n| (n.name.clone(), Vitals::unknown(now_ms))).collect();
        let state = State {
            vitals,
            loads: HashMap::new(),
            drains: Drains::default(),
            rtt: RttTable::new(cluster_names(&fleet)),
            rtt_changed: false,
            rtt_map: Arc::default(),
            rtt_compiled_ms: now_ms,
            tally,
            turns: turns(&fleet),
            past: Vec::new(),
            settled: BTreeMap::new(),
            fleet,
            zones,
            plan,
        };
        Self { snapshot: ArcSwap::from_pointee(state.snapshot()), state: Mutex::new(state), revision: AtomicU64::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if something did, what it left is still consistent.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn publish(&self, state: &State) {
        self.snapshot.store(Arc::new(state.snapshot()));
    }

    /// What answers are made from now. Let go of soon: a query, or a batch of them, is answered from one.
    pub fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// The admin paths of steering: `GET /explain` and `POST /rtt` (with the node key); 404 for others.
    pub fn admin_extra(self: &Arc<Self>) -> Extra {
        let steering = Arc::clone(self);
        Arc::new(move |request| {
            let response = steering.admin(&request, now_ms());
            Box::pin(async move { response })
        })
    }

    fn admin(&self, request: &Request<Bytes>, now_ms: u64) -> Response<Bytes> {
        match (request.uri().path(), request.method()) {
            ("/explain", &Method::GET) => match self.explain(request.uri().query().unwrap_or(""), now_ms) {
                Ok(explanation) => json(StatusCode::OK, &explanation),
                Err((status, message)) => error(status, &message),
            },
            ("/rtt", &Method::POST) => self.admin_rtt(request, now_ms),
            ("/explain", _) => not_allowed("GET"),
            ("/rtt", _) => not_allowed("POST"),
            _ => error(StatusCode::NOT_FOUND, "no such path; there are /live, /ready, /metrics, /explain and /rtt"),
        }
    }

    fn admin_rtt(&self, request: &Request<Bytes>, now_ms: u64) -> Response<Bytes> {
        let key = &self.snapshot.load().fleet.node_key;
        if !admin::has_node_key(request, key) {
            return error(StatusCode::UNAUTHORIZED, "this path takes the fleet's node key as a bearer token");
        }
        let report: RttReport = match serde_json::from_slice(request.body()) {
            Ok(report) => report,
            Err(e) => return error(StatusCode::BAD_REQUEST, &format!("not a round-trip report: {e}")),
        };
        match self.take_report(&report, now_ms) {
            Ok(taken) => json(StatusCode::OK, &serde_json::json!({ "taken": taken, "of": report.samples.len() })),
            Err(message) => error(StatusCode::NOT_FOUND, &message),
        }
    }

    /// Takes in what an edge reports; says how many samples were of use.
    fn take_report(&self, report: &RttReport, now_ms: u64) -> Result<usize, String> {
        let mut state = self.state();
        let fleet = Arc::clone(&state.fleet);
        let found = fleet.clusters.iter().enumerate().find_map(|(i, c)| c.nodes.iter().find(|n| n.name == report.node).map(|n| (i, n)));
        let Some((cluster, node)) = found else {
            return Err(format!("the fleet has no edge {:?}", report.node.chars().take(64).collect::<String>()));
        };
        let max_age_ms = fleet.steering.rtt_max_age.as_millis() as u64;
        let samples = report.samples.iter().take(rtt::SAMPLES_MAX);
        let taken = samples.filter(|s| state.rtt.add(cluster, s, now_ms, max_age_ms)).count();
        state.rtt_changed |= taken > 0;
        let load = state.loads.entry(node.name.clone()).or_default();
        if load.observe(report.egress_bits, report.connections, node.capacity_bits, now_ms) {
            tracing::info!(node = %node.name, full = load.full, egress_bits = report.egress_bits, "load of an edge changed");
            self.publish(&state);
        }
        Ok(taken)
    }

    /// Does what falls due with time: compiles measurements that came in, forgets old ones and old loads.
    fn tick(&self, now_ms: u64) {
        let mut state = self.state();
        let stale_ms = (state.fleet.report_interval * load::STALE_AFTER_INTERVALS).as_millis() as u64;
        let mut changed = false;
        for load in state.loads.values_mut() {
            changed |= load.expire(now_ms, stale_ms);
        }
        let aged = state.rtt_map.prefixes > 0 && now_ms.saturating_sub(state.rtt_compiled_ms) >= 1_000;
        if state.rtt_changed || aged {
            state.compile_rtt(now_ms);
            changed = true;
        }
        if changed {
            self.publish(&state);
        }
    }

    /// Takes in the result of a health check.
    fn observe_health(&self, node: &str, outcome: health::Outcome, now_ms: u64) {
        let mut state = self.state();
        let fleet = Arc::clone(&state.fleet);
        let Some(vitals) = state.vitals.get_mut(node) else { return };
        if vitals.observe(outcome, &fleet.steering.health, now_ms) {
            if vitals.up {
                tracing::info!(node, "edge is up");
            } else {
                tracing::warn!(node, reason = %vitals.reason, "edge is down");
            }
            self.publish(&state);
        }
    }

    /// What operators have drained is in no answer, as long as anything else is up.
    pub fn set_drained(&self, drains: Drains) {
        let mut state = self.state();
        state.drains = drains;
        self.publish(&state);
    }

    /// Goes over to another revision of the fleet with its zones, or another atlas.
    fn adopt(&self, Served { fleet, zones }: Served, atlas: Arc<Atlas>, now_ms: u64) {
        let current = Arc::clone(&self.state().plan);
        // The plan can take a while, so it is made without the lock.
        let plan = if current.fits(&fleet, &atlas) { current } else { Arc::new(Plan::new(&fleet, atlas)) };
        let mut state = self.state();
        let nodes: std::collections::HashSet<&str> = fleet.clusters.iter().flat_map(|c| &c.nodes).map(|n| n.name.as_str()).collect();
        state.vitals.retain(|name, _| nodes.contains(name.as_str()));
        state.loads.retain(|name, _| nodes.contains(name.as_str()));
        for name in nodes {
            state.vitals.entry(name.to_owned()).or_insert_with(|| Vitals::unknown(now_ms));
        }
        state.rtt.set_clusters(cluster_names(&fleet));
        if !state.tally.fits(&fleet) {
            let past = std::mem::replace(&mut state.tally, Arc::new(Tally::new(&fleet)));
            state.past.push(past);
            state.turns = turns(&fleet);
        }
        state.fleet = fleet;
        state.zones = zones;
        state.plan = plan;
        state.compile_rtt(now_ms);
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

    /// Fills in what steering knows of a report: selections, health, prefixes with a measurement, the geo source.
    ///
    /// The report's revision is noted in turn, so that explanations can name it.
    pub fn fill_report(&self, report: &mut DnsReport) {
        self.revision.store(report.revision, Ordering::Relaxed);
        report.selections = self
            .totals()
            .into_iter()
            .map(|(kind, count)| {
                let code = <[u8; 2]>::try_from(kind.country.as_bytes()).unwrap_or_default();
                let (latitude, longitude) =
                    countries::index(code).map_or((0.0, 0.0), |i| (countries::COUNTRIES[i].1, countries::COUNTRIES[i].2));
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
        let nodes = state.fleet.clusters.iter().flat_map(|c| c.nodes.iter().map(move |n| (c, n)));
        report.health = nodes
            .filter_map(|(cluster, node)| {
                let vitals = state.vitals.get(&node.name)?;
                let is_drained = state.drains.is_drained(&cluster.name, &node.name);
                Some(NodeHealth {
                    node: node.name.clone(),
                    up: vitals.up && !is_drained,
                    since_unix_ms: vitals.since_ms,
                    reason: if is_drained { DRAINED.to_owned() } else { vitals.reason.clone() },
                    check_us: vitals.check_us,
                })
            })
            .collect();
        report.rtt_prefixes = state.rtt_map.prefixes as u64;
        report.geo_source.clone_from(&state.plan.atlas.description);
    }
}

fn cluster_names(fleet: &Fleet) -> Vec<String> {
    fleet.clusters.iter().map(|c| c.name.clone()).collect()
}

fn turns(fleet: &Fleet) -> Arc<[AtomicU64]> {
    fleet.sites.iter().map(|_| AtomicU64::new(0)).collect()
}

impl State {
    fn compile_rtt(&mut self, now_ms: u64) {
        self.rtt_changed = false;
        self.rtt_compiled_ms = now_ms;
        self.rtt_map = Arc::new(self.rtt.compile(now_ms, self.fleet.steering.rtt_max_age.as_millis() as u64));
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

    fn snapshot(&self) -> Snapshot {
        let up = |name: &str| self.vitals.get(name).is_none_or(|v| v.up);
        let full = |name: &str| self.loads.get(name).is_some_and(|l| l.full);
        let clusters = self.fleet.clusters.iter().map(|cluster| {
            let mut state = ClusterState {
                weight: cluster.weight,
                position: (cluster.place.latitude, cluster.place.longitude),
                ..ClusterState::default()
            };
            for node in &cluster.nodes {
                for address in &node.addresses {
                    let pool = if address.is_ipv4() { &mut state.v4 } else { &mut state.v6 };
                    pool.all.push(*address);
                    if up(&node.name) && !self.drains.is_drained(&cluster.name, &node.name) {
                        pool.up.push(*address);
                        if !full(&node.name) {
                            pool.open.push(*address);
                        }
                    }
                }
            }
            state
        });
        Snapshot {
            clusters: clusters.collect(),
            fleet: Arc::clone(&self.fleet),
            zones: Arc::clone(&self.zones),
            plan: Arc::clone(&self.plan),
            rtt: Arc::clone(&self.rtt_map),
            tally: Arc::clone(&self.tally),
            turns: Arc::clone(&self.turns),
            explore_below: (self.fleet.steering.rtt_explore.clamp(0.0, 1.0) * f64::from(u32::MAX)) as u32,
        }
    }
}

/// Bits of an IPv4-mapped IPv6 address before the IPv4 address.
const MAPPED_BITS: u8 = 96;

/// The bits of an address that are known, zeros after them; of an IPv4-mapped one the IPv4 address.
fn masked(client: &ClientPrefix) -> IpAddr {
    match client.address.to_canonical() {
        IpAddr::V4(ip) => {
            let before = if client.address.is_ipv6() { MAPPED_BITS } else { 0 };
            let known = client.source_prefix.saturating_sub(before);
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(known.into())).unwrap_or(0);
            IpAddr::V4((u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(client.source_prefix.into())).unwrap_or(0);
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

    /// The answer for one client of the `site`-th site of the fleet. Takes no lock and allocates nothing.
    ///
    /// A site that does not exist has no addresses.
    pub fn select(&self, site: usize, client: &ClientPrefix, family: Family, random: u64) -> Choice {
        let address = masked(client);
        let mut choice = self.decide(site, address, family, random);
        if choice.scope_prefix > 0 && client.address.is_ipv6() && address.is_ipv4() {
            // The scope is of the family that was asked with.
            choice.scope_prefix += MAPPED_BITS;
        }
        if !choice.addresses.is_empty() {
            self.tally.add(site, choice.cluster, choice.reason, self.plan.atlas.country(address));
        }
        choice
    }

    /// Gathers what a decision depends on.
    fn consider(&self, site: usize, address: IpAddr, family: Family, random: u64) -> Option<Considered<'_>> {
        let policy = self.fleet.sites.get(site)?.policy;
        let (order, order_scope) = match policy {
            SelectionPolicy::Geo | SelectionPolicy::Rtt => self.plan.find(site, address)?,
            SelectionPolicy::Weighted | SelectionPolicy::RoundRobin => (self.plan.unplaced(site)?, 0),
        };
        let grain = if address.is_ipv4() { GRAIN_V4 } else { GRAIN_V6 };
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
        };
        let scope_prefix = match policy {
            _ if single => 0,
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
                question.turn = self.turns.get(site).map_or(0, |t| t.load(Ordering::Relaxed));
                0
            }
        };
        Some(Considered { question, scope_prefix })
    }

    fn decide(&self, site: usize, address: IpAddr, family: Family, random: u64) -> Choice {
        let Some(mut considered) = self.consider(site, address, family, random) else {
            return Choice { cluster: 0, addresses: Addresses::EMPTY, ttl: 0, scope_prefix: 0, reason: Reason::NoAddress };
        };
        if considered.question.policy == SelectionPolicy::RoundRobin
            && let Some(turns) = self.turns.get(site)
        {
            considered.question.turn = turns.fetch_add(1, Ordering::Relaxed);
        }
        self.choice(site, &considered, select::decide(&considered.question))
    }

    fn choice(&self, site: usize, considered: &Considered<'_>, decision: Decision) -> Choice {
        let ttl = self.fleet.sites.get(site).map_or(0, |s| s.ttl.as_secs().min(TTL_MAX) as u32);
        let question = &considered.question;
        match decision.cluster {
            None => Choice { cluster: 0, addresses: Addresses::EMPTY, ttl, scope_prefix: 0, reason: decision.reason },
            Some(cluster) => Choice {
                cluster: usize::from(cluster),
                addresses: Addresses::rotated(
                    self.clusters[usize::from(cluster)].serving(question.family),
                    (question.random & 0xffff) as usize,
                ),
                ttl,
                scope_prefix: considered.scope_prefix,
                reason: decision.reason,
            },
        }
    }
}

/// `nearcast_dns_selections_total` and what else of steering goes into metrics, gathered when asked for.
struct Selections {
    steering: Arc<Steering>,
    described: prometheus::IntCounterVec,
    node_up: prometheus::IntGaugeVec,
    rtt_prefixes: prometheus::IntGauge,
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
            rtt_prefixes: prometheus::IntGauge::with_opts(opts(
                "nearcast_dns_rtt_prefixes",
                "Client prefixes with a round-trip time that counts.",
            ))
            .expect("valid metric"),
        }
    }
}

fn selections_vec() -> prometheus::IntCounterVec {
    prometheus::IntCounterVec::new(
        prometheus::Opts::new("nearcast_dns_selections_total", "Steered answers by site, cluster given and reason."),
        &["site", "cluster", "reason"],
    )
    .expect("valid metric")
}

impl Collector for Selections {
    fn desc(&self) -> Vec<&Desc> {
        [self.described.desc(), self.node_up.desc(), self.rtt_prefixes.desc()].concat()
    }

    fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
        let counts = selections_vec();
        for (kind, count) in self.steering.totals() {
            counts.with_label_values(&[kind.site.as_str(), &kind.cluster, kind.reason.label()]).inc_by(count);
        }
        let state = self.steering.state();
        self.node_up.reset();
        for (node, vitals) in &state.vitals {
            self.node_up.with_label_values(&[node.as_str()]).set(i64::from(vitals.up));
        }
        self.rtt_prefixes.set(state.rtt_map.prefixes as i64);
        [counts.collect(), self.node_up.collect(), self.rtt_prefixes.collect()].concat()
    }
}

fn json<T: serde::Serialize>(status: StatusCode, body: &T) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(serde_json::to_vec(body).unwrap_or_default()));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn error(status: StatusCode, message: &str) -> Response<Bytes> {
    let code = status.canonical_reason().unwrap_or("error").to_ascii_lowercase().replace(' ', "_");
    json(status, &serde_json::json!({ "error": { "code": code, "message": message } }))
}

fn not_allowed(allow: &'static str) -> Response<Bytes> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, &format!("this path takes {allow}"));
    response.headers_mut().insert(http::header::ALLOW, http::HeaderValue::from_static(allow));
    response
}

#[cfg(test)]
mod tests;
