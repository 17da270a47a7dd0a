//! The nodes of the fleet: their roles, states and latest reports.

use jiff::tz::TimeZone;
use nearcast_fleet::config::{Cluster, Fleet};
use nearcast_fleet::report::{DnsReport, EdgeReport, NodeHealth, OriginReport};

use crate::event::{Level, NewEvent};

/// Report intervals without a report after which a node is silent.
const SILENT_INTERVALS: u32 = 3;

/// The state of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeState {
    /// It has not reported since control started, and may still begin to.
    Waiting,
    Up,
    Draining,
    /// An operator has drained it or its cluster. It still serves clients that reach it.
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

/// The state of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClusterState {
    /// No node has reported since control started, and all may still begin to.
    Waiting,
    /// All nodes are up.
    Up,
    Degraded,
    /// All nodes are drained.
    Drained,
    /// No node serves.
    Down,
}

impl ClusterState {
    pub(crate) const ALL: [Self; 5] = [
        Self::Waiting,
        Self::Up,
        Self::Degraded,
        Self::Drained,
        Self::Down,
    ];

    /// The state of a cluster with nodes in these states.
    pub(super) fn of(nodes: &[NodeState]) -> Self {
        let count = |state| nodes.iter().filter(|s| **s == state).count();
        let out = [NodeState::Down, NodeState::Draining, NodeState::Drained];
        if count(NodeState::Up) == nodes.len() {
            Self::Up
        } else if count(NodeState::Waiting) == nodes.len() {
            Self::Waiting
        } else if count(NodeState::Drained) == nodes.len() {
            Self::Drained
        } else if out.map(count).iter().sum::<usize>() == nodes.len() {
            Self::Down
        } else {
            Self::Degraded
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Drained => "drained",
            Self::Down => "down",
        }
    }
}

/// The role of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Edge,
    Dns,
    Origin,
    Control,
}

impl Role {
    pub(crate) const ALL: [Self; 4] = [Self::Edge, Self::Dns, Self::Origin, Self::Control];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Dns => "gslb-dns",
            Self::Origin => "origin",
            Self::Control => "control",
        }
    }
}

/// The latest report of a node.
#[derive(Debug)]
pub(super) enum LatestReport {
    Edge(Box<EdgeReport>),
    Dns(Box<DnsReport>),
    Origin(OriginReport),
}

/// A node that has reported.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) last_report_unix_ms: u64,
    pub(super) started_unix_ms: u64,
    pub(super) revision: u64,
    pub(super) is_draining: bool,
    pub(super) latest: LatestReport,
}

impl Node {
    /// Whether its newest report is too old.
    pub(super) fn is_silent(&self, fleet: &Fleet, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.last_report_unix_ms) > silent_after_ms(fleet)
    }
}

/// The second before which all reports have arrived.
pub(crate) fn settled_second(fleet: &Fleet, now_ms: u64) -> u64 {
    now_ms.saturating_sub(fleet.report_interval.as_millis() as u64 + 500) / 1000
}

/// The cluster's time zone; UTC when this binary does not know the zone.
pub(crate) fn time_zone(cluster: &Cluster) -> TimeZone {
    TimeZone::get(&cluster.time_zone).unwrap_or(TimeZone::UTC)
}

/// Every node of the fleet, with its role and cluster.
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

/// Whether the fleet has a node of that name.
pub(crate) fn is_node(fleet: &Fleet, name: &str) -> bool {
    roster(fleet).iter().any(|(node, ..)| node == name)
}

/// Names of all edges.
pub(super) fn edge_names(fleet: &Fleet) -> Vec<String> {
    fleet
        .clusters
        .iter()
        .flat_map(|c| c.nodes.iter().map(|n| n.name.clone()))
        .collect()
}

/// Time without a report after which a node is silent.
pub(super) fn silent_after_ms(fleet: &Fleet) -> u64 {
    // Half a second more, so that a slow report at the third interval is not too late.
    (fleet.report_interval * SILENT_INTERVALS).as_millis() as u64 + 500
}

/// An edge's health in a name server's report, which must be sorted by edge.
pub(super) fn health_of<'r>(
    report: &'r DnsReport,
    edge: &'r str,
) -> impl Iterator<Item = &'r NodeHealth> {
    let first = report.health.partition_point(|h| h.node.as_str() < edge);
    report.health[first..]
        .iter()
        .take_while(move |h| h.node == edge)
}

/// Events of edges whose health has changed between two reports of a name server.
pub(super) fn health_changes(
    fleet: &Fleet,
    before: &DnsReport,
    after: &DnsReport,
) -> Vec<NewEvent> {
    let mut new_events = Vec::new();
    for h in &after.health {
        let was_up = health_of(before, &h.node).next().map(|b| b.up);
        let Some((cluster, _)) = fleet.edge(&h.node) else {
            continue;
        };
        let new_event = match (was_up, h.up) {
            (Some(true), false) => NewEvent::new(
                "node_out",
                Level::Warn,
                format!(
                    "{} took {} out of its answers: {}",
                    after.node, h.node, h.reason
                ),
            ),
            (Some(false), true) => NewEvent::new(
                "node_in",
                Level::Good,
                format!("{} answers with {} again", after.node, h.node),
            ),
            _ => continue,
        };
        new_events.push(new_event.node(&h.node).cluster(&cluster.name));
    }
    new_events
}

/// The event of a changed state, unless another event announces it.
pub(super) fn node_change(
    name: &str,
    before: NodeState,
    after: NodeState,
    reason: &str,
) -> Option<NewEvent> {
    let new_event = match after {
        NodeState::Up if before == NodeState::Waiting => {
            NewEvent::new("node_up", Level::Info, format!("{name} reports"))
        }
        NodeState::Up => NewEvent::new("node_up", Level::Good, format!("{name} is back")),
        NodeState::Silent => NewEvent::new(
            "node_silent",
            Level::Warn,
            format!("{name} is silent: {reason}"),
        ),
        NodeState::Draining => {
            NewEvent::new("node_draining", Level::Info, format!("{name} drains"))
        }
        // The name server's event or the drain's event announces these.
        NodeState::Down | NodeState::Drained | NodeState::Waiting => return None,
    };
    Some(new_event.node(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_cluster_follows_from_its_nodes() {
        use NodeState::{Down, Drained, Draining, Silent, Up, Waiting};
        let table: [(&[NodeState], ClusterState); 9] = [
            (&[Up, Up], ClusterState::Up),
            (&[Waiting, Waiting], ClusterState::Waiting),
            (&[Drained, Drained], ClusterState::Drained),
            (&[Down, Drained], ClusterState::Down),
            (&[Draining, Down], ClusterState::Down),
            (&[Up, Down], ClusterState::Degraded),
            (&[Up, Waiting], ClusterState::Degraded),
            (&[Silent, Silent], ClusterState::Degraded),
            (&[Silent, Down], ClusterState::Degraded),
        ];
        for (nodes, expected) in table {
            assert_eq!(ClusterState::of(nodes), expected, "{nodes:?}");
        }
    }
}
