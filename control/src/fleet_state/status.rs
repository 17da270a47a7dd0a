//! The answer of `/v1/status`.

use nearcast_fleet::change::DrainTarget;
use nearcast_fleet::config::{Cluster, Fleet};
use nearcast_push::schedule;

use crate::fleet_state::FleetState;
use crate::fleet_state::nodes::{LatestReport, Node, Role, roster, time_zone};
use crate::fleet_state::series::{Key, NODE_SECONDS_KEPT};
use crate::views;

/// Everything that a status answer needs besides the state of the fleet.
#[derive(Debug, Clone)]
pub(crate) struct StatusContext {
    pub(crate) now_unix_ms: u64,
    /// Identity of the journal.
    pub(crate) journal: String,
    /// Newest revision of the journal.
    pub(crate) revision: u64,
    pub(crate) fleet_revision: u64,
    /// Rates are means over this many seconds ...
    pub(crate) window_seconds: u64,
    /// ... before this second.
    pub(crate) end_second: u64,
}

impl FleetState {
    /// The answer of `/v1/status`, without events and node keys.
    pub(crate) fn status(&self, fleet: &Fleet, context: &StatusContext) -> views::Status {
        let now = context.now_unix_ms;
        let (end, window) = (context.end_second, context.window_seconds);
        let rates = |key: &Key| self.series.recent(key, end, window).rates(window);
        let since_start = (now.saturating_sub(self.started_unix_ms) / 1000).max(1);
        views::Status {
            now_unix_ms: now,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            zone: fleet.zone.clone(),
            control: fleet
                .control
                .as_ref()
                .map(|c| c.name.clone())
                .unwrap_or_default(),
            started_unix_ms: self.started_unix_ms,
            journal: context.journal.clone(),
            revision: context.revision,
            fleet_revision: context.fleet_revision,
            report_interval_ms: fleet.report_interval.as_millis() as u64,
            window_seconds: window,
            clock: views::clock(&fleet.clock, now),
            recent: rates(&Key::Total),
            since_start: self.series.since_start(&Key::Total).rates(since_start),
            clusters: fleet
                .clusters
                .iter()
                .map(|c| self.cluster_status(fleet, c, context))
                .collect(),
            nodes: roster(fleet)
                .into_iter()
                .map(|(name, role, cluster)| self.node_status(fleet, name, role, cluster, context))
                .collect(),
            sites: fleet
                .sites
                .iter()
                .map(|s| views::SiteStatus {
                    name: s.name.clone(),
                    hosts: s.hosts.clone(),
                    steered_name: fleet.steered_name(s),
                    policy: views::policy_name(s.policy).to_owned(),
                    recent: rates(&Key::Site(s.name.clone())),
                })
                .collect(),
            selections: self.selections.views(now / 1000, window),
            events: Vec::new(),
        }
    }

    fn cluster_status(
        &self,
        fleet: &Fleet,
        cluster: &Cluster,
        context: &StatusContext,
    ) -> views::ClusterStatus {
        let now = context.now_unix_ms;
        let zone = time_zone(cluster);
        let window = schedule::window(&fleet.clock, &zone, cluster.off_peak, now);
        let (state, nodes_up) = self.cluster_state(fleet, cluster, now);
        let connections = cluster
            .nodes
            .iter()
            .filter_map(|n| self.nodes.get(&n.name))
            .fold(0u64, |a, n| match &n.latest {
                LatestReport::Edge(e) if !n.is_silent(fleet, now) => {
                    a.saturating_add(e.connections)
                }
                _ => a,
            });
        views::ClusterStatus {
            name: cluster.name.clone(),
            label: cluster.label.clone(),
            latitude: cluster.place.latitude,
            longitude: cluster.place.longitude,
            time_zone: cluster.time_zone.clone(),
            local_time: schedule::local_time(&fleet.clock, &zone, now).unwrap_or_default(),
            off_peak: views::daily_window(cluster.off_peak),
            off_peak_now: window.as_ref().is_some_and(|w| w.is_open(now)),
            next_window_unix_ms: window.map(|w| w.start_unix_ms),
            state: state.name().to_owned(),
            drained: self
                .drains
                .get(&DrainTarget::Cluster(cluster.name.clone()))
                .is_some(),
            nodes: cluster.nodes.len(),
            nodes_up,
            connections,
            push_order: self.orders.running(&cluster.name).map(str::to_owned),
            push_missed: self.orders.missed(&cluster.name).map(str::to_owned),
            recent: self
                .series
                .recent(
                    &Key::Cluster(cluster.name.clone()),
                    context.end_second,
                    context.window_seconds,
                )
                .rates(context.window_seconds),
        }
    }

    fn node_status(
        &self,
        fleet: &Fleet,
        name: String,
        role: Role,
        cluster: Option<&str>,
        context: &StatusContext,
    ) -> views::NodeStatus {
        let now = context.now_unix_ms;
        let (state, reason) = self.state(fleet, &name, role, now);
        let health = self.health(fleet, &name, now);
        let mut status = views::NodeStatus {
            role: role.name().to_owned(),
            cluster: cluster.map(str::to_owned),
            state: state.name().to_owned(),
            reason,
            drained: self.is_drained(fleet, &name),
            health: health.into_iter().map(|(_, h)| h).collect(),
            ..views::NodeStatus::default()
        };
        if role == Role::Control {
            status.started_unix_ms = self.started_unix_ms;
            (status.last_report_unix_ms, status.age_ms) = (now, Some(0));
            status.revision = context.revision;
        } else {
            if let Some((cluster, node)) = fleet.edge(&name) {
                let addresses = node.addresses.iter().map(ToString::to_string).collect();
                status.addresses = Some(addresses);
                status.memory_max_bytes = Some(node.memory.0);
                status.disk_max_bytes = Some(node.disk.0);
                status.push_share_bytes = Some(cluster.push_share.0);
            }
            if let Some(node) = self.nodes.get(&name) {
                let rates = self.node_rates(&name, context);
                fill_from_report(&mut status, node, role, &rates, context);
            }
        }
        status.name = name;
        status
    }

    fn node_rates(&self, name: &str, context: &StatusContext) -> views::Rates {
        let window = context.window_seconds.min(NODE_SECONDS_KEPT);
        self.series
            .recent(&Key::Node(name.to_owned()), context.end_second, window)
            .rates(window)
    }
}

/// Fills in what a node's latest report says.
fn fill_from_report(
    status: &mut views::NodeStatus,
    node: &Node,
    role: Role,
    rates: &views::Rates,
    context: &StatusContext,
) {
    let age_ms = context.now_unix_ms.saturating_sub(node.last_report_unix_ms);
    status.last_report_unix_ms = node.last_report_unix_ms;
    status.age_ms = Some(age_ms);
    status.started_unix_ms = node.started_unix_ms;
    status.draining = node.is_draining;
    status.revision = node.revision;
    // Origins do not follow the journal.
    if role != Role::Origin {
        status.behind = context.revision.saturating_sub(node.revision);
    }
    match &node.latest {
        LatestReport::Edge(report) => {
            status.connections = Some(report.connections);
            status.memory_bytes = Some(report.memory_bytes);
            status.disk_bytes = Some(report.disk_bytes);
            status.pushed_bytes = Some(report.pushed_bytes);
            status.object_hit_ratio = rates.object_hit_ratio;
        }
        LatestReport::Dns(report) => {
            status.queries_per_second = Some(rates.requests_per_second);
            status.rtt_prefixes = Some(report.rtt_prefixes);
            status.geo_source = Some(report.geo_source.clone());
        }
        LatestReport::Origin(_) => {}
    }
    if role != Role::Dns {
        status.requests_per_second = Some(rates.requests_per_second);
        status.egress_bits_per_second = Some(rates.egress_bits_per_second);
    }
}
