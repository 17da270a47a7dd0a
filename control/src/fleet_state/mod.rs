//! The state of the fleet as reports show it. Only this module turns reports into state. Pure: reports
//! and the time are arguments; events and answers are results.
//!
//! A node without a report for three report intervals is silent, which is not down: it may well
//! serve. A node is down when most name servers that report say so.

mod announced;
pub(crate) mod nodes;
pub(crate) mod order_record;
pub(crate) mod orders;
pub(crate) mod purge_record;
pub(crate) mod purges;
pub(crate) mod saved;
mod selections;
pub(crate) mod series;
pub(crate) mod status;

use std::collections::{BTreeMap, BTreeSet};

use nearcast_fleet::config::{Cluster, Fleet};
use nearcast_fleet::drains::Drains;
use nearcast_fleet::report::{DnsReport, EdgeReport, OriginReport, SiteTotals};
use nearcast_push::account::Earnings as PushBenefit;
use nearcast_push::schedule;

use crate::certificates::Progress;
use crate::event::NewEvent;
use crate::fleet_state::announced::{AnnouncedStates, cluster_change};
use crate::fleet_state::nodes::{
    ClusterState, LatestReport, Node, NodeState, Role, edge_names, health_changes, health_of,
    node_change, roster, silent_after_ms, time_zone,
};
use crate::fleet_state::orders::Orders;
use crate::fleet_state::purges::Purges;
use crate::fleet_state::saved::StateRecord;
use crate::fleet_state::selections::{SelectionKey, Selections, selection_key};
use crate::fleet_state::series::{Counts, Key, Series, keep_monotonic};
use crate::views;

/// Time after control's start within which nodes may send their first report, milliseconds.
const GRACE_MS: u64 = 5_000;

/// The state of the fleet.
#[derive(Debug)]
pub(crate) struct FleetState {
    started_unix_ms: u64,
    nodes: BTreeMap<String, Node>,
    /// Names of the name servers among the nodes.
    name_servers: BTreeSet<String>,
    selections: Selections,
    announced: AnnouncedStates,
    /// The announced states have changed since they were last saved.
    is_announced_unsaved: bool,
    pub(crate) series: Series,
    pub(crate) purges: Purges,
    pub(crate) orders: Orders,
    /// The drains in force, as the journal has them.
    pub(crate) drains: Drains,
}

impl FleetState {
    /// A state in which nothing is known yet.
    pub(crate) fn new(started_unix_ms: u64) -> Self {
        Self {
            started_unix_ms,
            nodes: BTreeMap::new(),
            name_servers: BTreeSet::new(),
            selections: Selections::default(),
            announced: AnnouncedStates::default(),
            is_announced_unsaved: false,
            series: Series::default(),
            purges: Purges::default(),
            orders: Orders::default(),
            drains: Drains::default(),
        }
    }

    /// When counting began.
    pub(crate) fn started_unix_ms(&self) -> u64 {
        self.started_unix_ms
    }

    /// Applies an edge's report. Returns the events that it brings.
    pub(crate) fn apply_edge_report(
        &mut self,
        fleet: &Fleet,
        cluster: &Cluster,
        mut report: EdgeReport,
        now_ms: u64,
    ) -> Vec<NewEvent> {
        let edges = edge_names(fleet);
        let mut new_events = self.purges.report(&report, &edges, now_ms);
        new_events.extend(self.orders.report(&report));

        self.count_edge(fleet, cluster, &report, now_ms);
        if let Some(before) = earlier_edge_report(&self.nodes, &report) {
            for (site, earlier) in &before.sites {
                keep_monotonic(report.sites.entry(site.clone()).or_default(), earlier);
            }
        }
        let name = report.node.clone();
        let node = Node {
            last_report_unix_ms: now_ms,
            started_unix_ms: report.started_unix_ms,
            revision: report.revision,
            is_draining: report.draining,
            latest: LatestReport::Edge(Box::new(report)),
        };
        self.nodes.insert(name, node);
        new_events
    }

    /// Adds an edge's new counts to the series, and to the benefit of its cluster's order.
    fn count_edge(&mut self, fleet: &Fleet, cluster: &Cluster, report: &EdgeReport, now_ms: u64) {
        let (from_ms, counts_from_zero) = self.since(&report.node, report.started_unix_ms, now_ms);
        let before = earlier_edge_report(&self.nodes, report);
        if before.is_none() && !counts_from_zero {
            return;
        }

        let (mut all, nothing) = (Counts::default(), SiteTotals::default());
        for site in &fleet.sites {
            // A site that the report lacks had no requests there, which is known.
            let totals = report.sites.get(&site.name).unwrap_or(&nothing);
            let counts = Counts::between(before.and_then(|b| b.sites.get(&site.name)), totals);
            self.series
                .add(Key::Site(site.name.clone()), from_ms, now_ms, &counts);
            all.add(&counts, 1.0);
        }
        for key in [
            Key::Total,
            Key::Cluster(cluster.name.clone()),
            Key::Node(report.node.clone()),
        ] {
            self.series.add(key, from_ms, now_ms, &all);
        }

        let hour = schedule::local_hour(&fleet.clock, &time_zone(cluster), now_ms);
        let benefit = PushBenefit {
            requests: all.counted() as u64,
            response_bytes: all.response_bytes as u64,
            pushed_hits: all.pushed_hits as u64,
            pushed_hit_bytes: all.pushed_hit_bytes as u64,
        };
        self.orders.credit(&cluster.name, hour, benefit);
    }

    /// Applies a name server's report. Returns the events that it brings.
    pub(crate) fn apply_dns_report(
        &mut self,
        fleet: &Fleet,
        mut report: DnsReport,
        now_ms: u64,
    ) -> Vec<NewEvent> {
        // `health_of` searches in this order.
        report.health.sort_by(|a, b| a.node.cmp(&b.node));
        self.name_servers.insert(report.node.clone());
        let (from_ms, counts_from_zero) = self.since(&report.node, report.started_unix_ms, now_ms);
        let before = match self.nodes.remove(&report.node) {
            Some(Node {
                latest: LatestReport::Dns(before),
                ..
            }) if before.started_unix_ms == report.started_unix_ms => Some(before),
            _ => None,
        };

        if before.is_some() || counts_from_zero {
            let queries =
                |r: &DnsReport| r.queries.values().fold(0u64, |a, n| a.saturating_add(*n));
            let new = queries(&report).saturating_sub(before.as_ref().map_or(0, |b| queries(b)));
            let counts = Counts::of_requests(new);
            self.series
                .add(Key::Node(report.node.clone()), from_ms, now_ms, &counts);
            let counted: BTreeMap<SelectionKey, u64> = before
                .iter()
                .flat_map(|b| &b.selections)
                .map(|s| (selection_key(s), s.count))
                .collect();
            for selection in &report.selections {
                let earlier = counted.get(&selection_key(selection)).copied().unwrap_or(0);
                self.selections.add(
                    selection,
                    selection.count.saturating_sub(earlier),
                    now_ms / 1000,
                );
            }
        }

        let new_events = before
            .map(|b| health_changes(fleet, &b, &report))
            .unwrap_or_default();
        let node = Node {
            last_report_unix_ms: now_ms,
            started_unix_ms: report.started_unix_ms,
            revision: report.revision,
            is_draining: report.draining,
            latest: LatestReport::Dns(Box::new(report.clone())),
        };
        self.nodes.insert(report.node, node);
        new_events
    }

    /// Applies an origin's report.
    pub(crate) fn apply_origin_report(&mut self, report: OriginReport, now_ms: u64) {
        let (from_ms, counts_from_zero) = self.since(&report.node, report.started_unix_ms, now_ms);
        let before = match self.nodes.get(&report.node).map(|n| &n.latest) {
            Some(LatestReport::Origin(before))
                if before.started_unix_ms == report.started_unix_ms =>
            {
                Some(before)
            }
            _ => None,
        };
        if before.is_some() || counts_from_zero {
            let requests =
                |r: &OriginReport| r.requests.values().fold(0u64, |a, n| a.saturating_add(*n));
            let new = requests(&report).saturating_sub(before.map_or(0, requests));
            let mut counts = Counts::of_requests(new);
            counts.response_bytes =
                report.bytes.saturating_sub(before.map_or(0, |b| b.bytes)) as f64;
            self.series
                .add(Key::Node(report.node.clone()), from_ms, now_ms, &counts);
        }
        let node = Node {
            last_report_unix_ms: now_ms,
            started_unix_ms: report.started_unix_ms,
            revision: 0,
            is_draining: report.draining,
            latest: LatestReport::Origin(report.clone()),
        };
        self.nodes.insert(report.node, node);
    }

    /// Finds changes that time alone brings, and those since the last call: nodes that became silent
    /// or report again, clusters without nodes, orders whose time ran out. Returns their events.
    pub(crate) fn tick(&mut self, fleet: &Fleet, now_ms: u64) -> Vec<NewEvent> {
        let reporting: BTreeSet<String> = self
            .edges(fleet, now_ms)
            .into_iter()
            .filter(|(_, reports)| *reports)
            .map(|(name, _)| name)
            .collect();
        self.orders.follow(fleet);
        let mut new_events = self.orders.tick(now_ms, silent_after_ms(fleet), |node| {
            reporting.contains(node)
        });

        let mut announced = AnnouncedStates::default();
        self.announce_nodes(fleet, now_ms, &mut announced, &mut new_events);
        self.announce_clusters(fleet, now_ms, &mut announced, &mut new_events);
        self.is_announced_unsaved |= self.announced != announced;
        self.announced = announced;
        new_events
    }

    fn announce_nodes(
        &self,
        fleet: &Fleet,
        now_ms: u64,
        announced: &mut AnnouncedStates,
        new_events: &mut Vec<NewEvent>,
    ) {
        for (name, role, cluster) in roster(fleet) {
            if role == Role::Control {
                continue;
            }
            let (state, reason) = self.state(fleet, &name, role, now_ms);
            let earlier = self.announced.node(&name);
            // Nothing is known yet since control's start, so the earlier announcement holds.
            if state == NodeState::Waiting {
                announced.nodes.insert(name, earlier);
                continue;
            }
            if state != earlier
                && let Some(mut new_event) = node_change(&name, earlier, state, &reason)
            {
                new_event.cluster = cluster.map(str::to_owned);
                new_events.push(new_event);
            }
            announced.nodes.insert(name, state);
        }
    }

    fn announce_clusters(
        &self,
        fleet: &Fleet,
        now_ms: u64,
        announced: &mut AnnouncedStates,
        new_events: &mut Vec<NewEvent>,
    ) {
        for cluster in &fleet.clusters {
            let (state, _) = self.cluster_state(fleet, cluster, now_ms);
            let earlier = self.announced.cluster(&cluster.name);
            let state = if state == ClusterState::Waiting {
                earlier
            } else {
                new_events.extend(cluster_change(cluster, earlier, state));
                state
            };
            announced.clusters.insert(cluster.name.clone(), state);
        }
    }

    /// Restores a record of an earlier process. Call it for the oldest record first.
    pub(crate) fn restore(&mut self, record: StateRecord) {
        match record {
            StateRecord::Order(order) => self.orders.restore(*order),
            StateRecord::AnnouncedStates { nodes, clusters } => {
                self.announced = AnnouncedStates::of_record(&nodes, &clusters);
            }
            other => self.purges.restore(other),
        }
    }

    /// Records to save since the last call; with `all`, also the progress of running orders.
    pub(crate) fn take_records(&mut self, all: bool) -> Vec<StateRecord> {
        let mut records = self.purges.take_records();
        let orders = self.orders.take_changed(all).into_iter();
        records.extend(orders.map(|order| StateRecord::Order(Box::new(order))));
        if std::mem::take(&mut self.is_announced_unsaved) {
            records.push(self.announced.record());
        }
        records
    }

    /// Everything that is known and would be lost, as records.
    pub(crate) fn all_records(&self) -> Vec<StateRecord> {
        let orders = self.orders.all().into_iter();
        self.purges
            .all_records()
            .into_iter()
            .chain(orders.map(|order| StateRecord::Order(Box::new(order))))
            .chain([self.announced.record()])
            .collect()
    }

    /// Drops everything about nodes, clusters and sites that the fleet no longer has.
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
        self.selections.retain(fleet);
    }

    /// The journal revision that a name server has reported lately; 0 while it may still begin to
    /// report, `None` when it is silent.
    pub(crate) fn revision_of(&self, fleet: &Fleet, name_server: &str, now_ms: u64) -> Option<u64> {
        match self
            .nodes
            .get(name_server)
            .filter(|node| matches!(node.latest, LatestReport::Dns(_)))
        {
            Some(node) => (!self.is_silent(fleet, name_server, now_ms)).then_some(node.revision),
            None => self.may_wait(fleet, now_ms).then_some(0),
        }
    }

    /// How far the name servers of the fleet are with the challenges of a revision.
    pub(crate) fn dns_challenges(&self, fleet: &Fleet, revision: u64, now_ms: u64) -> Progress {
        let names = fleet.name_servers.iter().map(|server| server.name.as_str());
        self.progress(fleet, names, now_ms, |latest| match latest {
            LatestReport::Dns(report) => report.challenges_revision >= revision,
            _ => false,
        })
    }

    /// How far the edges of the fleet are with the challenges of a revision.
    pub(crate) fn http_challenges(&self, fleet: &Fleet, revision: u64, now_ms: u64) -> Progress {
        let nodes = fleet.clusters.iter().flat_map(|cluster| &cluster.nodes);
        let names = nodes.map(|node| node.name.as_str());
        self.progress(fleet, names, now_ms, |latest| match latest {
            LatestReport::Edge(report) => report.revision >= revision,
            _ => false,
        })
    }

    fn progress<'f>(
        &self,
        fleet: &Fleet,
        names: impl Iterator<Item = &'f str>,
        now_ms: u64,
        has_seen: impl Fn(&LatestReport) -> bool,
    ) -> Progress {
        let mut progress = Progress::default();
        for name in names {
            let list = match self.nodes.get(name) {
                Some(node) if has_seen(&node.latest) => &mut progress.seen,
                Some(node) if !node.is_silent(fleet, now_ms) => &mut progress.missing,
                None if self.may_wait(fleet, now_ms) => &mut progress.missing,
                _ => &mut progress.silent,
            };
            list.push(name.to_owned());
        }
        progress
    }

    /// Whether an edge has reported that it is drained.
    pub(crate) fn reports_drained(&self, edge: &str) -> bool {
        self.nodes.get(edge).is_some_and(
            |node| matches!(&node.latest, LatestReport::Edge(report) if report.drained),
        )
    }

    /// Whether an operator has drained an edge or its cluster.
    fn is_drained(&self, fleet: &Fleet, edge: &str) -> bool {
        fleet
            .edge(edge)
            .is_some_and(|(cluster, _)| self.drains.is_drained(&cluster.name, edge))
    }

    /// Every edge, with whether it reports or may still begin to.
    pub(crate) fn edges(&self, fleet: &Fleet, now_ms: u64) -> Vec<(String, bool)> {
        let reports = |name: &str| match self.nodes.get(name) {
            Some(node) => !node.is_silent(fleet, now_ms),
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

    /// A cluster's state, and how many of its nodes are up.
    fn cluster_state(
        &self,
        fleet: &Fleet,
        cluster: &Cluster,
        now_ms: u64,
    ) -> (ClusterState, usize) {
        let states: Vec<NodeState> = cluster
            .nodes
            .iter()
            .map(|n| self.state(fleet, &n.name, Role::Edge, now_ms).0)
            .collect();
        let up = states.iter().filter(|s| **s == NodeState::Up).count();
        (ClusterState::of(&states), up)
    }

    /// A node's state, and the reason when it is not up.
    fn state(&self, fleet: &Fleet, name: &str, role: Role, now_ms: u64) -> (NodeState, String) {
        if role == Role::Control {
            return (NodeState::Up, String::new());
        }
        let health = self.health(fleet, name, now_ms);
        let fresh: Vec<&views::Health> = health
            .iter()
            .filter(|(is_fresh, _)| *is_fresh)
            .map(|(_, h)| h)
            .collect();
        let against: Vec<&&views::Health> = fresh.iter().filter(|h| !h.up).collect();
        let node = self.nodes.get(name);
        if node.is_some_and(|n| n.is_draining) && !self.is_silent(fleet, name, now_ms) {
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
                format!("{} says: {}", against[0].name_server, against[0].reason),
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
                    now_ms.saturating_sub(n.last_report_unix_ms) / 1000
                ),
            ),
            Some(_) => (NodeState::Up, String::new()),
        }
    }

    fn is_silent(&self, fleet: &Fleet, name: &str, now_ms: u64) -> bool {
        self.nodes
            .get(name)
            .is_none_or(|node| node.is_silent(fleet, now_ms))
    }

    /// Whether nodes may still send their first report since control's start.
    fn may_wait(&self, fleet: &Fleet, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.started_unix_ms) <= silent_after_ms(fleet).max(GRACE_MS)
    }

    /// An edge's health as each name server sees it, with whether that name server reports.
    fn health(&self, fleet: &Fleet, edge: &str, now_ms: u64) -> Vec<(bool, views::Health)> {
        let mut all = Vec::new();
        for server in &self.name_servers {
            let Some(Node {
                latest: LatestReport::Dns(report),
                ..
            }) = self.nodes.get(server)
            else {
                continue;
            };
            for h in health_of(report, edge) {
                let health = views::Health {
                    name_server: server.clone(),
                    up: h.up,
                    since_unix_ms: h.since_unix_ms,
                    reason: h.reason.clone(),
                    check_us: h.check_us,
                };
                all.push((!self.is_silent(fleet, server, now_ms), health));
            }
        }
        all
    }

    /// The time since which a report counts, and whether its totals began after control started (so
    /// that they need no earlier report to compare with).
    fn since(&self, name: &str, started_unix_ms: u64, now_ms: u64) -> (u64, bool) {
        let last = self
            .nodes
            .get(name)
            .map_or(self.started_unix_ms, |n| n.last_report_unix_ms);
        let is_new = started_unix_ms >= self.started_unix_ms || self.nodes.contains_key(name);
        (last.max(started_unix_ms).min(now_ms), is_new)
    }
}

/// The previous report of the same process.
fn earlier_edge_report<'n>(
    nodes: &'n BTreeMap<String, Node>,
    report: &EdgeReport,
) -> Option<&'n EdgeReport> {
    match &nodes.get(&report.node)?.latest {
        LatestReport::Edge(before) if before.started_unix_ms == report.started_unix_ms => {
            Some(before)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::report::{NodeHealth, SiteTotals};
    use nearcast_fleet::testing::FleetText;

    const START: u64 = 1_000_000;

    fn fleet() -> Fleet {
        FleetText::new()
            .set("report_interval", "\"1s\"")
            .control("127.0.0.1:7700")
            .origin_node("origin", "127.0.0.1:8000", "content")
            .name_server("ns1", "127.0.0.1:5300")
            .cluster("ams", &["192.0.2.1", "192.0.2.2"])
            .site(
                "www",
                "http://127.0.0.1:8000",
                "hosts = [\"www.demo.test\"]",
            )
            .fleet()
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
        state: FleetState,
    }

    impl Lab {
        fn new() -> Self {
            Self {
                fleet: fleet(),
                state: FleetState::new(START),
            }
        }

        fn edge(&mut self, report: EdgeReport, at: u64) -> Vec<NewEvent> {
            let cluster = self.fleet.clusters[0].clone();
            self.state
                .apply_edge_report(&self.fleet, &cluster, report, START + at)
        }

        fn state(&self, node: &str, at: u64) -> &'static str {
            self.state
                .state(&self.fleet, node, Role::Edge, START + at)
                .0
                .name()
        }

        fn tick(&mut self, at: u64) -> Vec<&'static str> {
            self.state
                .tick(&self.fleet, START + at)
                .iter()
                .map(|h| h.kind)
                .collect()
        }

        fn cluster(&self, at: u64) -> (&'static str, usize) {
            let (state, up) =
                self.state
                    .cluster_state(&self.fleet, &self.fleet.clusters[0], START + at);
            (state.name(), up)
        }

        fn counted(&self, at: u64) -> u64 {
            self.state
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
        lab.state.apply_dns_report(
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
        let edges = lab.state.edges(&lab.fleet, START + 4000);
        assert_eq!(
            edges,
            [("ams-1".to_owned(), true), ("ams-2".to_owned(), true)],
            "an edge may still begin to report"
        );
        let edges = lab.state.edges(&lab.fleet, START + 6000);
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
        lab.state.apply_dns_report(
            &lab.fleet,
            dns(&[("ams-1", true), ("ams-2", true)]),
            START + 1000,
        );
        lab.state.apply_origin_report(
            OriginReport {
                node: "origin".into(),
                started_unix_ms: START,
                ..OriginReport::default()
            },
            START + 1000,
        );
        assert_eq!(lab.tick(1000), ["node_up"; 4]);
        assert!(lab.tick(1500).is_empty());
        let out = lab.state.apply_dns_report(
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
        let back = lab.state.apply_dns_report(
            &lab.fleet,
            dns(&[("ams-1", true), ("ams-2", true)]),
            START + 3000,
        );
        assert_eq!(back.iter().map(|h| h.kind).collect::<Vec<_>>(), ["node_in"]);
        assert_eq!(lab.tick(3000), ["node_up", "cluster_up"]);
        assert!(
            lab.state
                .apply_dns_report(
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
        // The edge started before control: its first total is a baseline.
        lab.edge(edge("ams-1", START - 9000, 500, false), 1000);
        assert_eq!(lab.counted(1000), 0);
        lab.edge(edge("ams-1", START - 9000, 510, false), 2000);
        assert_eq!(lab.counted(2000), 10);
        // Overtaken reports add nothing, and later ones count from the larger total.
        lab.edge(edge("ams-1", START - 9000, 507, false), 2001);
        lab.edge(edge("ams-1", START - 9000, 512, false), 2002);
        assert_eq!(lab.counted(2002), 12);
        // The edge restarts: its whole total is new.
        lab.edge(edge("ams-1", START + 2500, 4, false), 3000);
        assert_eq!(lab.counted(3000), 16);
        // This edge started after control: its whole total is new.
        lab.edge(edge("ams-2", START + 100, 3, false), 3000);
        assert_eq!(lab.counted(3000), 19);
    }

    #[test]
    fn what_the_fleet_no_longer_has_is_forgotten() {
        let mut lab = Lab::new();
        lab.edge(edge("ams-2", START, 5, false), 1000);
        lab.fleet.clusters[0].nodes.pop();
        lab.state.forget(&lab.fleet);
        assert!(!lab.state.nodes.contains_key("ams-2"));
        assert_eq!(
            (
                lab.counted(1000),
                lab.state
                    .series
                    .since_start(&Key::Node("ams-2".into()))
                    .counted()
            ),
            (5, 0.0)
        );
        assert_eq!(roster(&lab.fleet).len(), 4);
    }
}
