//! The states of nodes and clusters that events have announced. Each change is announced once, also
//! over restarts of control.

use std::collections::BTreeMap;

use nearcast_fleet::config::Cluster;

use crate::event::{Level, NewEvent};
use crate::fleet_state::nodes::{ClusterState, NodeState};
use crate::fleet_state::saved::StateRecord;

/// The announced states.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AnnouncedStates {
    pub(super) nodes: BTreeMap<String, NodeState>,
    pub(super) clusters: BTreeMap<String, ClusterState>,
}

impl AnnouncedStates {
    /// The announced state of a node.
    pub(super) fn node(&self, name: &str) -> NodeState {
        self.nodes.get(name).copied().unwrap_or(NodeState::Waiting)
    }

    /// The announced state of a cluster.
    pub(super) fn cluster(&self, name: &str) -> ClusterState {
        self.clusters
            .get(name)
            .copied()
            .unwrap_or(ClusterState::Waiting)
    }

    /// The states as a record to save.
    pub(super) fn record(&self) -> StateRecord {
        StateRecord::AnnouncedStates {
            nodes: self
                .nodes
                .iter()
                .map(|(node, state)| (node.clone(), state.name().to_owned()))
                .collect(),
            clusters: self
                .clusters
                .iter()
                .map(|(cluster, state)| (cluster.clone(), state.name().to_owned()))
                .collect(),
        }
    }

    /// The states of a saved record. Unknown names are skipped.
    pub(super) fn of_record(
        nodes: &BTreeMap<String, String>,
        clusters: &BTreeMap<String, String>,
    ) -> Self {
        let node_state = |text: &str| NodeState::ALL.into_iter().find(|s| s.name() == text);
        let cluster_state = |text: &str| ClusterState::ALL.into_iter().find(|s| s.name() == text);
        Self {
            nodes: nodes
                .iter()
                .filter_map(|(node, text)| Some((node.clone(), node_state(text)?)))
                .collect(),
            clusters: clusters
                .iter()
                .filter_map(|(cluster, text)| Some((cluster.clone(), cluster_state(text)?)))
                .collect(),
        }
    }
}

/// The event of a cluster's changed state, if it has one.
pub(super) fn cluster_change(
    cluster: &Cluster,
    before: ClusterState,
    after: ClusterState,
) -> Option<NewEvent> {
    let label = &cluster.label;
    let new_event = match (before, after) {
        (ClusterState::Down, ClusterState::Down) => return None,
        (_, ClusterState::Down) => NewEvent::new(
            "cluster_down",
            Level::Warn,
            format!("{label} has no node that serves; its clients are steered elsewhere"),
        ),
        (ClusterState::Down, _) => {
            NewEvent::new("cluster_up", Level::Good, format!("{label} serves again"))
        }
        _ => return None,
    };
    Some(new_event.cluster(&cluster.name))
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::testing::FleetText;

    use super::*;

    #[test]
    fn only_the_loss_and_the_return_of_a_cluster_are_events() {
        let fleet = FleetText::new().cluster("ams", &["192.0.2.1"]).fleet();
        for before in ClusterState::ALL {
            for after in ClusterState::ALL {
                let expected = match (before, after) {
                    (ClusterState::Down, ClusterState::Down) => None,
                    (_, ClusterState::Down) => Some("cluster_down"),
                    (ClusterState::Down, _) => Some("cluster_up"),
                    _ => None,
                };
                let event = cluster_change(&fleet.clusters[0], before, after);
                assert_eq!(event.map(|e| e.kind), expected, "{before:?} {after:?}");
            }
        }
    }

    #[test]
    fn a_saved_record_restores_the_states() {
        let states = AnnouncedStates {
            nodes: NodeState::ALL
                .into_iter()
                .map(|state| (state.name().to_owned(), state))
                .collect(),
            clusters: ClusterState::ALL
                .into_iter()
                .map(|state| (state.name().to_owned(), state))
                .collect(),
        };
        let StateRecord::AnnouncedStates {
            mut nodes,
            clusters,
        } = states.record()
        else {
            panic!("another record");
        };
        nodes.insert("a".to_owned(), "of a newer version".to_owned());
        assert_eq!(AnnouncedStates::of_record(&nodes, &clusters), states);
    }
}
