//! What nodes have reported: the only place that turns reports into the state of the fleet. Pure:
//! reports and the time come in, happenings and answers go out.
//!
//! A node that has not reported for [`SILENT_INTERVALS`] intervals is silent, which is not down: it
//! may well be serving. It is down when most name servers that report say so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::tz::TimeZone;
use nearcast_fleet::config::{Cluster, Fleet};
use nearcast_fleet::drains::Drains;
use nearcast_fleet::journal::DrainTarget;
use nearcast_fleet::report::{
    DnsReport, EdgeReport, NodeHealth, OriginReport, SelectionCount, SiteTotals,
};
use nearcast_push::account::Earnings;
use nearcast_push::schedule;

use crate::events::{Happening, Level};
use crate::facts::Fact;
use crate::fleet_view;
use crate::purges::Purges;
use crate::pushes::Pushes;
use crate::series::{Counts, Key, NODE_SECONDS_KEPT, Series, lift};
use crate::view;

/// Report intervals without a report after which a node is silent.
const SILENT_INTERVALS: u32 = 3;
/// Nodes get this long after control's start to report before they are silent, milliseconds.
const GRACE_MS: u64 = 5_000;
/// Kinds of steered answers that are counted apart.
const SELECTIONS_MAX: usize = 4096;

/// How a cluster may be.
const CLUSTER_STATES: [&str; 4] = ["up", "degraded", "down", "waiting"];

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeState {
    /// It has not reported since control started, and need not have yet.
    Waiting,
    Up,
    Draining,
    /// An operator has drained it or its cluster; it serves whoever still comes.
    Drained,
    Down,
    Silent,
}

impl NodeState {
    pub(crate) const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Up,
        Self::Draining,
        Self::Drained,
        Self::Down,
        Self::Silent,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Down => "down",
            Self::Silent => "silent",
        }
    }
}

/// What kind of node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Edge,
    Dns,
    Origin,
    Control,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Dns => "gslb-dns",
            Self::Origin => "origin",
            Self::Control => "control",
        }
    }
}

#[derive(Debug)]
enum Latest {
    Edge(Box<EdgeReport>),
    Dns(Box<DnsReport>),
    Origin(OriginReport),
}

#[derive(Debug)]
struct Node {
    last_ms: u64,
    started_unix_ms: u64,
    revision: u64,
    draining: bool,
    latest: Latest,
}

type SelectionKey = (String, String, String, String);

#[derive(Debug, Default)]
struct SelectionRecord {
    latitude: f64,
    longitude: f64,
    total: u64,
    /// Second after the epoch and count.
    recent: VecDeque<(u64, u64)>,
}

/// The state of the fleet.
#[derive(Debug)]
pub(crate) struct Book {
    started_unix_ms: u64,
    nodes: BTreeMap<String, Node>,
    /// Those of them that are name servers.
    name_servers: BTreeSet<String>,
    selections: BTreeMap<SelectionKey, SelectionRecord>,
    told_nodes: BTreeMap<String, NodeState>,
    told_clusters: BTreeMap<String, &'static str>,
    /// They have changed since they were last given to be kept.
    has_told: bool,
    pub(crate) series: Series,
    pub(crate) purges: Purges,
    pub(crate) pushes: Pushes,
    /// What operators have drained, as the journal has it.
    pub(crate) drains: Drains,
}

/// What a status answer needs besides the book.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub(crate) now_unix_ms: u64,
    pub(crate) journal: String,
    pub(crate) revision: u64,
    pub(crate) fleet_revision: u64,
    pub(crate) window_seconds: u64,
}

impl Book {
    /// Nothing is known yet.
    pub(crate) fn new(started_unix_ms: u64) -> Self {
        Self {
            started_unix_ms,
            nodes: BTreeMap::new(),
            name_servers: BTreeSet::new(),
            selections: BTreeMap::new(),
            told_nodes: BTreeMap::new(),
            told_clusters: BTreeMap::new(),
            has_told: false,
            series: Series::default(),
            purges: Purges::default(),
            pushes: Pushes::default(),
            drains: Drains::default(),
        }
    }

    /// When counting began.
    pub(crate) fn started_unix_ms(&self) -> u64 {
        self.started_unix_ms
    }

    /// Takes in an edge's report.
    pub(crate) fn edge(
        &mut self,
        fleet: &Fleet,
        cluster: &Cluster,
        mut report: EdgeReport,
        now_ms: u64,
    ) -> Vec<Happening> {
        let edges = edge_names(fleet);
        let mut happenings = self.purges.report(&report, &edges, now_ms);
        happenings.extend(self.pushes.report(&report));
        let (from_ms, counts_from_zero) = self.since(&report.node, report.started_unix_ms, now_ms);
        let before = match self.nodes.get(&report.node).map(|n| &n.latest) {
            Some(Latest::Edge(before)) if before.started_unix_ms == report.started_unix_ms => {
                Some(before)
            }
            _ => None,
        };
        if before.is_some() || counts_from_zero {
            let (mut all, nothing) = (Counts::default(), SiteTotals::default());
            for site in &fleet.sites {
                // Without a word of a site it had no requests there: that is known.
                let totals = report.sites.get(&site.name).unwrap_or(&nothing);
                let counts = Counts::between(before.and_then(|b| b.sites.get(&site.name)), totals);
                self.series
                    .add(Key::Site(site.name.clone()), from_ms, now_ms, &counts);
                all.add(&counts, 1.0);
            }
            self.series.add(Key::Total, from_ms, now_ms, &all);
            self.series
                .add(Key::Cluster(cluster.name.clone()), from_ms, now_ms, &all);
            self.series
                .add(Key::Node(report.node.clone()), from_ms, now_ms, &all);
            let hour = schedule::local_hour(&fleet.clock, &time_zone(cluster), now_ms);
            let earned = Earnings {
                requests: all.counted() as u64,
                response_bytes: all.response_bytes as u64,
                pushed_hits: all.pushed_hits as u64,
                pushed_hit_bytes: all.pushed_hit_bytes as u64,
            };
            self.pushes.earn(&cluster.name, hour, earned);
        }
        if let Some(Node {
            latest: Latest::Edge(before),
            ..
        }) = self.nodes.get(&report.node)
            && before.started_unix_ms == report.started_unix_ms
        {
            for (site, earlier) in &before.sites {
                lift(report.sites.entry(site.clone()).or_default(), earlier);
            }
        }
        let name = report.node.clone();
        let node = Node {
            last_ms: now_ms,
            started_unix_ms: report.started_unix_ms,
            revision: report.revision,
            draining: report.draining,
            latest: Latest::Edge(Box::new(report)),
        };
        self.nodes.insert(name, node);
        happenings
    }

    /// Takes in a name server's report.
    pub(crate) fn dns(
        &mut self,
        fleet: &Fleet,
        mut report: DnsReport,
        now_ms: u64,
    ) -> Vec<Happening> {
        // As `health_of` looks for them.
        report.health.sort_by(|a, b| a.node.cmp(&b.node));
        self.name_servers.insert(report.node.clone());
        let (from_ms, counts_from_zero) = self.since(&report.node, report.started_unix_ms, now_ms);
        let before = match self.nodes.remove(&report.node) {
            Some(Node {
                latest: Latest::Dns(before),
                ..
            }) if before.started_unix_ms == report.started_unix_ms => Some(before),
            _ => None,
        };
        if before.is_some() || counts_from_zero {
            let queries =
                |r: &DnsReport| r.queries.values().fold(0u64, |a, n| a.saturating_add(*n));
            let new = queries(&report).saturating_sub(before.as_ref().map_or(0, |b| queries(b)));
            let mut counts = Counts::default();
            counts.requests[0] = new as f64;
            self.series
                .add(Key::Node(report.node.clone()), from_ms, now_ms, &counts);
            let known: BTreeMap<SelectionKey, u64> = before
                .iter()
                .flat_map(|b| &b.selections)
                .map(|s| (selection_key(s), s.count))
                .collect();
            for selection in &report.selections {
                let earlier = known.get(&selection_key(selection)).copied().unwrap_or(0);
                self.select(
                    selection,
                    selection.count.saturating_sub(earlier),
                    now_ms / 1000,
                );
            }
        }
        let happenings = before
            .map(|b| health_changes(fleet, &b, &report))
            .unwrap_or_default();
        let node = Node {
            last_ms: now_ms,
            started_unix_ms: report.started_unix_ms,
            revision: report.revision,
            draining: report.draining,
            latest: Latest::Dns(Box::new(report.clone())),
        };
        self.nodes.insert(report.node, node);
        happenings
    }

    /// Takes in an origin's report.
    pub(crate) fn origin(&mut self, report: OriginReport, now_ms: u64) {
        let (from_ms, counts_from_zero) = self.since(&report.node, report.started_unix_ms, now_ms);
        let before = match self.nodes.get(&report.node).map(|n| &n.latest) {
            Some(Latest::Origin(before)) if before.started_unix_ms == report.started_unix_ms => {
                Some(before)
            }
            _ => None,
        };
        if before.is_some() || counts_from_zero {
            let requests =
                |r: &OriginReport| r.requests.values().fold(0u64, |a, n| a.saturating_add(*n));
            let mut counts = Counts::default();
            counts.requests[0] =
                requests(&report).saturating_sub(before.map_or(0, requests)) as f64;
            counts.response_bytes =
                report.bytes.saturating_sub(before.map_or(0, |b| b.bytes)) as f64;
            self.series
                .add(Key::Node(report.node.clone()), from_ms, now_ms, &counts);
        }
        let node = Node {
            last_ms: now_ms,
            started_unix_ms: report.started_unix_ms,
            revision: 0,
            draining: report.draining,
            latest: Latest::Origin(report.clone()),
        };
        self.nodes.insert(report.node, node);
    }

    /// What has changed by time alone, or since the last call: nodes that fell silent or came back,
    /// clusters without nodes, orders that ran out of time.
    pub(crate) fn tick(&mut self, fleet: &Fleet, now_ms: u64) -> Vec<Happening> {
        let reporting: BTreeSet<String> = self
            .edges(fleet, now_ms)
            .into_iter()
            .filter(|(_, reports)| *reports)
            .map(|(name, _)| name)
            .collect();
        self.pushes.follow(fleet);
        let mut happenings = self.pushes.tick(now_ms, silent_after_ms(fleet), |node| {
            reporting.contains(node)
        });
        let (earlier_nodes, earlier_clusters) =
            (self.told_nodes.clone(), self.told_clusters.clone());
        let mut told = BTreeMap::new();
        for (name, role, cluster) in roster(fleet)
            .into_iter()
            .filter(|(_, role, _)| *role != Role::Control)
        {
            let (state, reason) = self.state(fleet, &name, role, now_ms);
            let earlier = self
                .told_nodes
                .get(&name)
                .copied()
                .unwrap_or(NodeState::Waiting);
            // Nothing is known of it yet: what was told before control's start still is what was
            // told.
            if state == NodeState::Waiting {
                told.insert(name, earlier);
                continue;
            }
            if state != earlier
                && let Some(mut happening) = node_change(&name, earlier, state, &reason)
            {
                happening.cluster = cluster.map(str::to_owned);
                happenings.push(happening);
            }
            told.insert(name, state);
        }
        self.told_nodes = told;
        let mut told = BTreeMap::new();
        for cluster in &fleet.clusters {
            let (state, _) = self.cluster_state(fleet, cluster, now_ms);
            let earlier = self
                .told_clusters
                .get(&cluster.name)
                .copied()
                .unwrap_or("waiting");
            if state == "waiting" {
                told.insert(cluster.name.clone(), earlier);
                continue;
            }
            if state == "down" && earlier != "down" {
                let message = format!(
                    "{} has no node that serves; its clients are steered elsewhere",
                    cluster.label
                );
                happenings.push(
                    Happening::new("cluster_down", Level::Warn, message).cluster(&cluster.name),
                );
            } else if earlier == "down" && state != "down" {
                let message = format!("{} serves again", cluster.label);
                happenings.push(
                    Happening::new("cluster_up", Level::Good, message).cluster(&cluster.name),
                );
            }
            told.insert(cluster.name.clone(), state);
        }
        self.told_clusters = told;
        self.has_told |= self.told_nodes != earlier_nodes || self.told_clusters != earlier_clusters;
        happenings
    }

    /// Takes in what an earlier process knew, oldest fact first.
    pub(crate) fn restore(&mut self, fact: Fact) {
        match fact {
            Fact::Push(record) => self.pushes.restore(*record),
            Fact::Told { nodes, clusters } => {
                let state = |name: &str| NodeState::ALL.into_iter().find(|s| s.name() == name);
                self.told_nodes = nodes
                    .into_iter()
                    .filter_map(|(node, told)| Some((node, state(&told)?)))
                    .collect();
                let state = |name: &str| CLUSTER_STATES.into_iter().find(|s| *s == name);
                self.told_clusters = clusters
                    .into_iter()
                    .filter_map(|(cluster, told)| Some((cluster, state(&told)?)))
                    .collect();
            }
            other => self.purges.restore(other),
        }
    }

    /// What has become known since the last call; with `all`, how far running orders are, too.
    pub(crate) fn take_facts(&mut self, all: bool) -> Vec<Fact> {
        let mut facts = self.purges.take_facts();
        facts.extend(
            self.pushes
                .take_changed(all)
                .into_iter()
                .map(|r| Fact::Push(Box::new(r))),
        );
        if std::mem::take(&mut self.has_told) {
            facts.push(self.told());
        }
        facts
    }

    /// All that is known and would be lost.
    pub(crate) fn all_facts(&self) -> Vec<Fact> {
        let pushes = self
            .pushes
            .all()
            .into_iter()
            .map(|r| Fact::Push(Box::new(r)));
        self.purges
            .all_facts()
            .into_iter()
            .chain(pushes)
            .chain([self.told()])
            .collect()
    }

    fn told(&self) -> Fact {
        Fact::Told {
            nodes: self
                .told_nodes
                .iter()
                .map(|(node, state)| (node.clone(), state.name().to_owned()))
                .collect(),
            clusters: self
                .told_clusters
                .iter()
                .map(|(cluster, state)| (cluster.clone(), (*state).to_owned()))
                .collect(),
        }
    }

    /// The fleet has changed: what it no longer has is forgotten.
    pub(crate) fn forget(&mut self, fleet: &Fleet) {
        let names: BTreeSet<String> = roster(fleet).into_iter().map(|(name, ..)| name).collect();
        self.nodes.retain(|name, _| names.contains(name));
        self.name_servers.retain(|name| names.contains(name));
        self.series.retain(|key| match key {
            Key::Total => true,
            Key::Cluster(name) => fleet.clusters.iter().any(|c| c.name == *name),
            Key::Site(name) => fleet.sites.iter().any(|s| s.name == *name),
            Key::Node(name) => names.contains(name),
        });
        self.selections.retain(|(site, cluster, ..), _| {
            fleet.sites.iter().any(|s| s.name == *site)
                && fleet.clusters.iter().any(|c| c.name == *cluster)
        });
    }

    /// The journal revision that a name server has reported lately; 0 while it may still begin to
    /// report, `None` where it does not.
    pub(crate) fn revision_of(&self, fleet: &Fleet, name_server: &str, now_ms: u64) -> Option<u64> {
        match self
            .nodes
            .get(name_server)
            .filter(|node| matches!(node.latest, Latest::Dns(_)))
        {
            Some(node) => (!self.is_silent(fleet, name_server, now_ms)).then_some(node.revision),
            None => self.may_wait(fleet, now_ms).then_some(0),
        }
    }

    /// Whether an edge has reported that it is drained.
    pub(crate) fn takes_itself_for_drained(&self, edge: &str) -> bool {
        self.nodes
            .get(edge)
            .is_some_and(|node| matches!(&node.latest, Latest::Edge(report) if report.drained))
    }

    /// Whether an operator has drained an edge or its cluster.
    fn is_drained(&self, fleet: &Fleet, edge: &str) -> bool {
        fleet
            .edge(edge)
            .is_some_and(|(cluster, _)| self.drains.is_drained(&cluster.name, edge))
    }

    /// Every edge, with whether it reports (or may still begin to).
    pub(crate) fn edges(&self, fleet: &Fleet, now_ms: u64) -> Vec<(String, bool)> {
        let reports = |name: &str| match self.nodes.get(name) {
            Some(node) => now_ms.saturating_sub(node.last_ms) <= silent_after_ms(fleet),
            None => self.may_wait(fleet, now_ms),
        };
        edge_names(fleet)
            .into_iter()
            .map(|name| (name.clone(), reports(&name)))
            .collect()
    }

    /// How many nodes of each role are in each state.
    pub(crate) fn state_counts(
        &self,
        fleet: &Fleet,
        now_ms: u64,
    ) -> BTreeMap<(Role, &'static str), i64> {
        let mut counts = BTreeMap::new();
        for (name, role, _) in roster(fleet) {
            *counts
                .entry((role, self.state(fleet, &name, role, now_ms).0.name()))
                .or_insert(0) += 1;
        }
        counts
    }

    /// The whole status answer, without events.
    pub(crate) fn status(&self, fleet: &Fleet, around: &Surroundings) -> view::Status {
        let now = around.now_unix_ms;
        let (end, window) = (settled_second(fleet, now), around.window_seconds);
        let rates = |key: &Key| self.series.recent(key, end, window).rates(window);
        let since_start = (now.saturating_sub(self.started_unix_ms) / 1000).max(1);
        view::Status {
            now_unix_ms: now,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            zone: fleet.zone.clone(),
            control: fleet
                .control
                .as_ref()
                .map(|c| c.name.clone())
                .unwrap_or_default(),
            started_unix_ms: self.started_unix_ms,
            journal: around.journal.clone(),
            revision: around.revision,
            fleet_revision: around.fleet_revision,
            report_interval_ms: fleet.report_interval.as_millis() as u64,
            window_seconds: window,
            clock: fleet_view::clock(&fleet.clock, now),
            recent: rates(&Key::Total),
            since_start: self.series.since_start(&Key::Total).rates(since_start),
            clusters: fleet
                .clusters
                .iter()
                .map(|c| self.cluster(fleet, c, around, end))
                .collect(),
            nodes: roster(fleet)
                .into_iter()
                .map(|(name, role, cluster)| self.node(fleet, name, role, cluster, around, end))
                .collect(),
            sites: fleet
                .sites
                .iter()
                .map(|s| view::SiteStatus {
                    name: s.name.clone(),
                    hosts: s.hosts.clone(),
                    steered_name: fleet.steered_name(s),
                    policy: fleet_view::policy(s.policy).to_owned(),
                    recent: rates(&Key::Site(s.name.clone())),
                })
                .collect(),
            selections: self.selections(now / 1000, window),
            events: Vec::new(),
        }
    }

    fn cluster(
        &self,
        fleet: &Fleet,
        cluster: &Cluster,
        around: &Surroundings,
        end: u64,
    ) -> view::ClusterStatus {
        let now = around.now_unix_ms;
        let zone = time_zone(cluster);
        let window = schedule::window(&fleet.clock, &zone, cluster.off_peak, now);
        let (state, nodes_up) = self.cluster_state(fleet, cluster, now);
        let connections = cluster
            .nodes
            .iter()
            .filter_map(|n| self.nodes.get(&n.name))
            .fold(0u64, |a, n| match &n.latest {
                Latest::Edge(e) if now.saturating_sub(n.last_ms) <= silent_after_ms(fleet) => {
                    a.saturating_add(e.connections)
                }
                _ => a,
            });
        view::ClusterStatus {
            name: cluster.name.clone(),
            label: cluster.label.clone(),
            latitude: cluster.place.latitude,
            longitude: cluster.place.longitude,
            time_zone: cluster.time_zone.clone(),
            local_time: schedule::local_time(&fleet.clock, &zone, now).unwrap_or_default(),
            off_peak: fleet_view::daily(cluster.off_peak),
            off_peak_now: window.as_ref().is_some_and(|w| w.is_open(now)),
            next_window_unix_ms: window.map(|w| w.start_unix_ms),
            state: state.to_owned(),
            drained: self
                .drains
                .get(&DrainTarget::Cluster(cluster.name.clone()))
                .is_some(),
            nodes: cluster.nodes.len(),
            nodes_up,
            connections,
            push: self.pushes.running(&cluster.name).map(str::to_owned),
            push_missed: self.pushes.missed(&cluster.name).map(str::to_owned),
            recent: self
                .series
                .recent(
                    &Key::Cluster(cluster.name.clone()),
                    end,
                    around.window_seconds,
                )
                .rates(around.window_seconds),
        }
    }

    /// Its state, and how many nodes are up.
    fn cluster_state(
        &self,
        fleet: &Fleet,
        cluster: &Cluster,
        now_ms: u64,
    ) -> (&'static str, usize) {
        let states: Vec<NodeState> = cluster
            .nodes
            .iter()
            .map(|n| self.state(fleet, &n.name, Role::Edge, now_ms).0)
            .collect();
        let count = |state| states.iter().filter(|s| **s == state).count();
        let up = count(NodeState::Up);
        let state = if up == states.len() {
            "up"
        } else if count(NodeState::Waiting) == states.len() {
            "waiting"
        } else if count(NodeState::Drained) == states.len() {
            "drained"
        } else if count(NodeState::Down) + count(NodeState::Draining) + count(NodeState::Drained)
            == states.len()
        {
            "down"
        } else {
            "degraded"
        };
        (state, up)
    }

    fn node(
        &self,
        fleet: &Fleet,
        name: String,
        role: Role,
        cluster: Option<&str>,
        around: &Surroundings,
        end: u64,
    ) -> view::NodeStatus {
        let now = around.now_unix_ms;
        let (state, reason) = self.state(fleet, &name, role, now);
        let mut status = view::NodeStatus {
            role: role.name().to_owned(),
            cluster: cluster.map(str::to_owned),
            state: state.name().to_owned(),
            reason,
            drained: self.is_drained(fleet, &name),
            health: self
                .health(fleet, &name, now)
                .into_iter()
                .map(|(_, h)| h)
                .collect(),
            ..view::NodeStatus::default()
        };
        if role == Role::Control {
            status.name = name;
            status.started_unix_ms = self.started_unix_ms;
            (status.last_report_unix_ms, status.age_ms, status.revision) =
                (now, Some(0), around.revision);
            return status;
        }
        let window = around.window_seconds.min(NODE_SECONDS_KEPT);
        let rates = self
            .series
            .recent(&Key::Node(name.clone()), end, window)
            .rates(window);
        if let Some((_, node)) = fleet.edge(&name) {
            status.addresses = Some(node.addresses.iter().map(ToString::to_string).collect());
            status.memory_max_bytes = Some(node.memory.0);
            status.disk_max_bytes = Some(node.disk.0);
            status.push_share_bytes = fleet.edge(&name).map(|(c, _)| c.push_share.0);
        }
        if let Some(node) = self.nodes.get(&name) {
            status.last_report_unix_ms = node.last_ms;
            status.age_ms = Some(now.saturating_sub(node.last_ms));
            status.started_unix_ms = node.started_unix_ms;
            status.draining = node.draining;
            status.revision = node.revision;
            if role != Role::Origin {
                status.behind = around.revision.saturating_sub(node.revision);
            }
            match &node.latest {
                Latest::Edge(e) => {
                    status.connections = Some(e.connections);
                    status.memory_bytes = Some(e.memory_bytes);
                    status.disk_bytes = Some(e.disk_bytes);
                    status.pushed_bytes = Some(e.pushed_bytes);
                    status.object_hit_ratio = rates.object_hit_ratio;
                }
                Latest::Dns(d) => {
                    status.queries_per_second = Some(rates.requests_per_second);
                    status.rtt_prefixes = Some(d.rtt_prefixes);
                    status.geo_source = Some(d.geo_source.clone());
                }
                Latest::Origin(_) => {}
            }
            if role != Role::Dns {
                status.requests_per_second = Some(rates.requests_per_second);
                status.egress_bits_per_second = Some(rates.egress_bits_per_second);
            }
        }
        status.name = name;
        status
    }

    /// A node's state and, when it is not up, why.
    fn state(&self, fleet: &Fleet, name: &str, role: Role, now_ms: u64) -> (NodeState, String) {
        if role == Role::Control {
            return (NodeState::Up, String::new());
        }
        let health = self.health(fleet, name, now_ms);
        let fresh: Vec<&view::Health> = health
            .iter()
            .filter(|(is_fresh, _)| *is_fresh)
            .map(|(_, h)| h)
            .collect();
        let against: Vec<&&view::Health> = fresh.iter().filter(|h| !h.up).collect();
        let node = self.nodes.get(name);
        if node.is_some_and(|n| n.draining) && !self.is_silent(fleet, name, now_ms) {
            return (NodeState::Draining, "draining".to_owned());
        }
        if role == Role::Edge
            && !self.is_silent(fleet, name, now_ms)
            && self.is_drained(fleet, name)
        {
            return (NodeState::Drained, "drained by an operator".to_owned());
        }
        if against.len() * 2 > fresh.len() && (node.is_some() || !self.may_wait(fleet, now_ms)) {
            return (
                NodeState::Down,
                format!("{} says: {}", against[0].by, against[0].reason),
            );
        }
        match node {
            None if self.may_wait(fleet, now_ms) => {
                (NodeState::Waiting, "no report yet".to_owned())
            }
            None => (
                NodeState::Silent,
                "no report since control started".to_owned(),
            ),
            Some(n) if self.is_silent(fleet, name, now_ms) => (
                NodeState::Silent,
                format!(
                    "no report for {} s",
                    now_ms.saturating_sub(n.last_ms) / 1000
                ),
            ),
            Some(_) => (NodeState::Up, String::new()),
        }
    }

    fn is_silent(&self, fleet: &Fleet, name: &str, now_ms: u64) -> bool {
        self.nodes
            .get(name)
            .is_none_or(|n| now_ms.saturating_sub(n.last_ms) > silent_after_ms(fleet))
    }

    fn may_wait(&self, fleet: &Fleet, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.started_unix_ms) <= silent_after_ms(fleet).max(GRACE_MS)
    }

    /// What each name server says of an edge, with whether that name server still reports.
    fn health(&self, fleet: &Fleet, edge: &str, now_ms: u64) -> Vec<(bool, view::Health)> {
        let mut all = Vec::new();
        for by in &self.name_servers {
            let Some(Node {
                latest: Latest::Dns(report),
                ..
            }) = self.nodes.get(by)
            else {
                continue;
            };
            for h in health_of(report, edge) {
                let health = view::Health {
                    by: by.clone(),
                    up: h.up,
                    since_unix_ms: h.since_unix_ms,
                    reason: h.reason.clone(),
                    check_us: h.check_us,
                };
                all.push((!self.is_silent(fleet, by, now_ms), health));
            }
        }
        all
    }

    /// Time from which a report's counts are, and whether its totals all came since control
    /// started.
    fn since(&self, name: &str, started_unix_ms: u64, now_ms: u64) -> (u64, bool) {
        let last = self
            .nodes
            .get(name)
            .map_or(self.started_unix_ms, |n| n.last_ms);
        let is_new = started_unix_ms >= self.started_unix_ms || self.nodes.contains_key(name);
        (last.max(started_unix_ms).min(now_ms), is_new)
    }

    fn select(&mut self, selection: &SelectionCount, new: u64, second: u64) {
        let key = selection_key(selection);
        if new == 0
            || (!self.selections.contains_key(&key) && self.selections.len() >= SELECTIONS_MAX)
        {
            return;
        }
        let record = self.selections.entry(key).or_default();
        (record.latitude, record.longitude) = (selection.latitude, selection.longitude);
        record.total = record.total.saturating_add(new);
        match record.recent.back_mut() {
            Some((last, count)) if *last == second => *count = count.saturating_add(new),
            _ => record.recent.push_back((second, new)),
        }
        while record
            .recent
            .front()
            .is_some_and(|(s, _)| s + NODE_SECONDS_KEPT < second)
        {
            record.recent.pop_front();
        }
    }

    fn selections(&self, second: u64, window: u64) -> Vec<view::Selection> {
        let mut all: Vec<view::Selection> = self
            .selections
            .iter()
            .map(|((site, cluster, reason, country), r)| view::Selection {
                country: country.clone(),
                latitude: r.latitude,
                longitude: r.longitude,
                site: site.clone(),
                cluster: cluster.clone(),
                reason: reason.clone(),
                recent: r
                    .recent
                    .iter()
                    .filter(|(s, _)| s + window >= second)
                    .map(|(_, n)| n)
                    .sum(),
                total: r.total,
            })
            .collect();
        all.sort_by_key(|s| std::cmp::Reverse((s.recent, s.total)));
        all
    }
}

/// The second before which reports are in: younger ones are still on their way.
pub(crate) fn settled_second(fleet: &Fleet, now_ms: u64) -> u64 {
    now_ms.saturating_sub(fleet.report_interval.as_millis() as u64 + 500) / 1000
}

/// The cluster's zone; UTC where the fleet file's checker knows more zones than this binary.
pub(crate) fn time_zone(cluster: &Cluster) -> TimeZone {
    TimeZone::get(&cluster.time_zone).unwrap_or(TimeZone::UTC)
}

/// Every node of the fleet with its role and cluster.
pub(crate) fn roster(fleet: &Fleet) -> Vec<(String, Role, Option<&str>)> {
    let edges = fleet.clusters.iter().flat_map(|c| {
        c.nodes
            .iter()
            .map(|n| (n.name.clone(), Role::Edge, Some(c.name.as_str())))
    });
    let dns = fleet
        .name_servers
        .iter()
        .map(|n| (n.name.clone(), Role::Dns, None));
    let origins = fleet
        .origins
        .iter()
        .map(|o| (o.name.clone(), Role::Origin, None));
    let control = fleet
        .control
        .iter()
        .map(|c| (c.name.clone(), Role::Control, None));
    edges.chain(dns).chain(origins).chain(control).collect()
}

fn edge_names(fleet: &Fleet) -> Vec<String> {
    fleet
        .clusters
        .iter()
        .flat_map(|c| c.nodes.iter().map(|n| n.name.clone()))
        .collect()
}

fn silent_after_ms(fleet: &Fleet) -> u64 {
    // Half a second more, so that a slow report at the third interval does not count.
    (fleet.report_interval * SILENT_INTERVALS).as_millis() as u64 + 500
}

fn selection_key(s: &SelectionCount) -> SelectionKey {
    (
        s.site.clone(),
        s.cluster.clone(),
        s.reason.clone(),
        s.country.clone(),
    )
}

/// What a name server says of an edge; its report is sorted by their names.
fn health_of<'r>(report: &'r DnsReport, edge: &'r str) -> impl Iterator<Item = &'r NodeHealth> {
    let first = report.health.partition_point(|h| h.node.as_str() < edge);
    report.health[first..]
        .iter()
        .take_while(move |h| h.node == edge)
}

fn health_changes(fleet: &Fleet, before: &DnsReport, after: &DnsReport) -> Vec<Happening> {
    let mut happenings = Vec::new();
    for h in &after.health {
        let was_up = health_of(before, &h.node).next().map(|b| b.up);
        let Some((cluster, _)) = fleet.edge(&h.node) else {
            continue;
        };
        let happening = match (was_up, h.up) {
            (Some(true), false) => Happening::new(
                "node_out",
                Level::Warn,
                format!(
                    "{} took {} out of its answers: {}",
                    after.node, h.node, h.reason
                ),
            ),
            (Some(false), true) => Happening::new(
                "node_in",
                Level::Good,
                format!("{} answers with {} again", after.node, h.node),
            ),
            _ => continue,
        };
        happenings.push(happening.node(&h.node).cluster(&cluster.name));
    }
    happenings
}

fn node_change(name: &str, before: NodeState, after: NodeState, reason: &str) -> Option<Happening> {
    let happening = match after {
        NodeState::Up if before == NodeState::Waiting => {
            Happening::new("node_up", Level::Info, format!("{name} reports"))
        }
        NodeState::Up => Happening::new("node_up", Level::Good, format!("{name} is back")),
        NodeState::Silent => Happening::new(
            "node_silent",
            Level::Warn,
            format!("{name} is silent: {reason}"),
        ),
        NodeState::Draining => {
            Happening::new("node_draining", Level::Info, format!("{name} drains"))
        }
        // The name server's own event says it, or that of the drain.
        NodeState::Down | NodeState::Drained | NodeState::Waiting => return None,
    };
    Some(happening.node(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::report::{NodeHealth, SiteTotals};

    const START: u64 = 1_000_000;

    fn fleet() -> Fleet {
        let text = r#"
            [fleet]
            zone = "cdn.test"
            node_key = "a key that only this test knows"
            report_interval = "1s"
            [control]
            [[origin_node]]
            name = "origin"
            listen = "127.0.0.1:8000"
            admin = "127.0.0.1:9180"
            root = "content"
            [[name_server]]
            name = "ns1"
            listen = "127.0.0.1:5300"
            [[cluster]]
            name = "ams"
            place = { latitude = 52.37, longitude = 4.9 }
            time_zone = "Europe/Amsterdam"
            off_peak = "02:00-06:00"
            fill_rate = "80Mbit/s"
            [[cluster.node]]
            name = "ams-1"
            address = "127.0.10.1"
            [[cluster.node]]
            name = "ams-2"
            address = "127.0.10.2"
            admin = "127.0.10.2:9100"
            [[site]]
            name = "www"
            hosts = ["www.demo.test"]
            origin = "http://127.0.0.1:8000"
        "#;
        nearcast_fleet::file::parse(text, std::path::Path::new("/"))
            .unwrap_or_else(|m| panic!("{m:?}"))
    }

    fn edge(node: &str, started_unix_ms: u64, hits: u64, draining: bool) -> EdgeReport {
        let totals = SiteTotals {
            requests: [("hit".to_owned(), hits)].into(),
            ..SiteTotals::default()
        };
        let sites = [("www".to_owned(), totals)].into();
        EdgeReport {
            node: node.into(),
            started_unix_ms,
            draining,
            sites,
            ..EdgeReport::default()
        }
    }

    fn dns(up: &[(&str, bool)]) -> DnsReport {
        let health = |(node, up): &(&str, bool)| NodeHealth {
            node: (*node).to_owned(),
            up: *up,
            reason: "status 503".into(),
            ..NodeHealth::default()
        };
        DnsReport {
            node: "ns1".into(),
            started_unix_ms: START,
            health: up.iter().map(health).collect(),
            ..DnsReport::default()
        }
    }

    struct Lab {
        fleet: Fleet,
        book: Book,
    }

    impl Lab {
        fn new() -> Self {
            Self {
                fleet: fleet(),
                book: Book::new(START),
            }
        }

        fn edge(&mut self, report: EdgeReport, at: u64) -> Vec<Happening> {
            let cluster = self.fleet.clusters[0].clone();
            self.book.edge(&self.fleet, &cluster, report, START + at)
        }

        fn state(&self, node: &str, at: u64) -> &'static str {
            self.book
                .state(&self.fleet, node, Role::Edge, START + at)
                .0
                .name()
        }

        fn tick(&mut self, at: u64) -> Vec<&'static str> {
            self.book
                .tick(&self.fleet, START + at)
                .iter()
                .map(|h| h.kind)
                .collect()
        }

        fn cluster(&self, at: u64) -> (&'static str, usize) {
            self.book
                .cluster_state(&self.fleet, &self.fleet.clusters[0], START + at)
        }

        fn counted(&self, at: u64) -> u64 {
            self.book
                .series
                .recent(&Key::Total, (START + at) / 1000 + 1, 3600)
                .counted()
                .round() as u64
        }
    }

    #[test]
    fn silent_is_not_down() {
        let mut lab = Lab::new();
        assert_eq!(
            (lab.state("ams-1", 0), lab.cluster(0)),
            ("waiting", ("waiting", 0))
        );
        lab.edge(edge("ams-1", START, 0, false), 1000);
        assert_eq!(lab.tick(1000), ["node_up"]);
        assert_eq!(
            (
                lab.state("ams-1", 1000),
                lab.state("ams-2", 1000),
                lab.cluster(1000)
            ),
            ("up", "waiting", ("degraded", 1))
        );
        assert_eq!(
            (lab.state("ams-1", 4500), lab.state("ams-1", 4501)),
            ("up", "silent")
        );
        assert_eq!(
            (lab.state("ams-2", 5000), lab.state("ams-2", 5001)),
            ("waiting", "silent")
        );
        assert_eq!(
            lab.cluster(6000),
            ("degraded", 0),
            "silent nodes may well serve"
        );
        lab.book.dns(
            &lab.fleet,
            dns(&[("ams-1", true), ("ams-2", false)]),
            START + 6000,
        );
        assert_eq!(
            (lab.state("ams-1", 6000), lab.state("ams-2", 6000)),
            ("silent", "down")
        );
        assert_eq!(
            lab.state("ams-2", 9501),
            "silent",
            "a name server that is silent itself says nothing"
        );
        let edges = lab.book.edges(&lab.fleet, START + 4000);
        assert_eq!(
            edges,
            [("ams-1".to_owned(), true), ("ams-2".to_owned(), true)],
            "an edge may still begin to report"
        );
        let edges = lab.book.edges(&lab.fleet, START + 6000);
        assert_eq!(
            edges,
            [("ams-1".to_owned(), false), ("ams-2".to_owned(), false)]
        );
    }

    #[test]
    fn changes_are_told_once() {
        let mut lab = Lab::new();
        for node in ["ams-1", "ams-2"] {
            lab.edge(edge(node, START, 0, false), 1000);
        }
        lab.book.dns(
            &lab.fleet,
            dns(&[("ams-1", true), ("ams-2", true)]),
            START + 1000,
        );
        lab.book.origin(
            OriginReport {
                node: "origin".into(),
                started_unix_ms: START,
                ..OriginReport::default()
            },
            START + 1000,
        );
        assert_eq!(lab.tick(1000), ["node_up"; 4]);
        assert!(lab.tick(1500).is_empty());
        let out = lab.book.dns(
            &lab.fleet,
            dns(&[("ams-1", false), ("ams-2", true)]),
            START + 2000,
        );
        assert_eq!(
            (
                out[0].kind,
                out[0].node.as_deref(),
                out[0].cluster.as_deref()
            ),
            ("node_out", Some("ams-1"), Some("ams"))
        );
        assert!(lab.tick(2000).is_empty(), "the cluster still serves");
        lab.edge(edge("ams-2", START, 0, true), 2500);
        assert_eq!(lab.tick(2500), ["node_draining", "cluster_down"]);
        let back = lab.book.dns(
            &lab.fleet,
            dns(&[("ams-1", true), ("ams-2", true)]),
            START + 3000,
        );
        assert_eq!(back.iter().map(|h| h.kind).collect::<Vec<_>>(), ["node_in"]);
        assert_eq!(lab.tick(3000), ["node_up", "cluster_up"]);
        assert!(
            lab.book
                .dns(
                    &lab.fleet,
                    dns(&[("ams-1", true), ("ams-2", true)]),
                    START + 3500
                )
                .is_empty()
        );
    }

    #[test]
    fn totals_count_once_over_restarts_of_either_side() {
        let mut lab = Lab::new();
        // It ran before control did: its total is a baseline.
        lab.edge(edge("ams-1", START - 9000, 500, false), 1000);
        assert_eq!(lab.counted(1000), 0);
        lab.edge(edge("ams-1", START - 9000, 510, false), 2000);
        assert_eq!(lab.counted(2000), 10);
        // Overtaken reports add nothing, and what follows counts from the larger total.
        lab.edge(edge("ams-1", START - 9000, 507, false), 2001);
        lab.edge(edge("ams-1", START - 9000, 512, false), 2002);
        assert_eq!(lab.counted(2002), 12);
        // It restarts: all of its new total is new.
        lab.edge(edge("ams-1", START + 2500, 4, false), 3000);
        assert_eq!(lab.counted(3000), 16);
        // It started after control did: nothing of it was seen before.
        lab.edge(edge("ams-2", START + 100, 3, false), 3000);
        assert_eq!(lab.counted(3000), 19);
    }

    #[test]
    fn what_the_fleet_no_longer_has_is_forgotten() {
        let mut lab = Lab::new();
        lab.edge(edge("ams-2", START, 5, false), 1000);
        lab.fleet.clusters[0].nodes.pop();
        lab.book.forget(&lab.fleet);
        assert!(!lab.book.nodes.contains_key("ams-2"));
        assert_eq!(
            (
                lab.counted(1000),
                lab.book
                    .series
                    .since_start(&Key::Node("ams-2".into()))
                    .counted()
            ),
            (5, 0.0)
        );
        assert_eq!(roster(&lab.fleet).len(), 4);
    }
}
