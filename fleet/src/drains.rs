//! Planned restarts and drains: the edges from which clients are steered away, and the time for
//! which an ending edge keeps serving them. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::change::{Change, Drain, DrainTarget, Entry};
use crate::config::{Cluster, Fleet};

/// Time for a name server to apply the result of a check, and for an earlier answer to reach its
/// client.
const SETTLE: Duration = Duration::from_millis(500);

/// The begin of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainStart {
    /// Revision of the change.
    pub revision: u64,
    /// Time of its acceptance by control, milliseconds after the Unix epoch.
    pub unix_ms: u64,
}

/// The drains in force, folded from the journal. Names that the fleet no longer has are harmless; a
/// drained cluster includes nodes that are added later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drains(BTreeMap<DrainTarget, DrainStart>);

impl Drains {
    /// Applies a journal entry. Returns whether anything changed.
    pub fn fold(&mut self, entry: &Entry) -> bool {
        let Change::Drain(Drain { target, drained }) = &entry.change else {
            return false;
        };
        match (drained, self.0.contains_key(target)) {
            (true, false) => {
                self.0.insert(
                    target.clone(),
                    DrainStart {
                        revision: entry.revision,
                        unix_ms: entry.accepted_unix_ms,
                    },
                );
                true
            }
            (false, true) => self.0.remove(target).is_some(),
            _ => false,
        }
    }

    /// The begin of the drain of exactly this target; `None` when it is not drained.
    pub fn get(&self, target: &DrainTarget) -> Option<DrainStart> {
        self.0.get(target).copied()
    }

    /// The drain that steers clients away from a node: its own, otherwise that of its cluster.
    pub fn of_node(&self, cluster: &str, node: &str) -> Option<(DrainTarget, DrainStart)> {
        [
            DrainTarget::Node(node.to_owned()),
            DrainTarget::Cluster(cluster.to_owned()),
        ]
        .into_iter()
        .find_map(|target| self.get(&target).map(|since| (target, since)))
    }

    /// Whether clients are steered away from a node.
    pub fn is_drained(&self, cluster: &str, node: &str) -> bool {
        !self.0.is_empty() && self.of_node(cluster, node).is_some()
    }

    /// Every drain, nodes first, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&DrainTarget, DrainStart)> {
        self.0.iter().map(|(target, since)| (target, *since))
    }
}

/// The two phases of an edge's planned end. It serves everybody until resolvers have forgotten its
/// addresses; in the second phase it asks clients on kept connections to leave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LameDuck {
    /// Time until every name server has detected that the edge drains.
    pub detection: Duration,
    /// Time until no resolver has its addresses any more.
    pub ttl: Duration,
}

impl LameDuck {
    /// The phases of an edge: one round of health checks (a 503 takes the edge out at once), then
    /// the largest TTL of the sites of its cluster, together at most
    /// [`crate::config::DrainLimits::lame_duck_max`]. Zero where no name server steers clients.
    pub fn of(fleet: &Fleet, node: &str) -> Self {
        let Some(cluster) = fleet.edge(node).map(|(cluster, _)| cluster) else {
            return Self::default();
        };
        if fleet.name_servers.is_empty() {
            return Self::default();
        }
        let Some(ttl) = largest_ttl(fleet, cluster) else {
            return Self::default();
        };
        let health = &fleet.steering.health;
        let detection =
            health.interval.mul_f64(1.0 + health.jitter.clamp(0.0, 1.0)) + health.timeout + SETTLE;
        let most = fleet.drain.lame_duck_max;
        let detection = detection.min(most);
        Self {
            detection,
            ttl: ttl.min(most - detection),
        }
    }

    /// Both phases together.
    pub fn whole(self) -> Duration {
        self.detection + self.ttl
    }

    /// The rest for a node that was drained for this long: after the whole time its clients have
    /// left already.
    pub fn after(self, drained_for: Duration) -> Self {
        if drained_for >= self.whole() {
            Self::default()
        } else {
            self
        }
    }
}

/// Largest TTL of a cluster's addresses; `None` when it serves no site.
pub fn largest_ttl(fleet: &Fleet, cluster: &Cluster) -> Option<Duration> {
    let number = fleet.clusters.iter().position(|c| c.name == cluster.name)?;
    fleet
        .sites
        .iter()
        .filter(|site| site.clusters.contains(&number))
        .map(|site| site.ttl)
        .max()
}

/// Sites that no cluster with a node in service would serve under these drains, in file order.
pub fn sites_without_nodes(fleet: &Fleet, drains: &Drains) -> Vec<String> {
    let serves = |number: &usize| {
        fleet.clusters.get(*number).is_some_and(|cluster| {
            cluster
                .nodes
                .iter()
                .any(|node| !drains.is_drained(&cluster.name, &node.name))
        })
    };
    fleet
        .sites
        .iter()
        .filter(|site| !site.clusters.iter().any(serves))
        .map(|site| site.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FleetText;

    fn drain(revision: u64, target: DrainTarget, drained: bool) -> Entry {
        Entry {
            revision,
            accepted_unix_ms: revision * 1000,
            change: Change::Drain(Drain { target, drained }),
        }
    }

    fn node(name: &str) -> DrainTarget {
        DrainTarget::Node(name.into())
    }

    fn cluster(name: &str) -> DrainTarget {
        DrainTarget::Cluster(name.into())
    }

    #[test]
    fn nodes_and_clusters_are_drained_apart() {
        let mut drains = Drains::default();
        assert!(drains.fold(&drain(1, node("ams-1"), true)));
        assert!(
            !drains.fold(&drain(2, node("ams-1"), true)),
            "it is already, and since then"
        );
        assert_eq!(
            drains.get(&node("ams-1")),
            Some(DrainStart {
                revision: 1,
                unix_ms: 1000
            })
        );
        assert!(drains.fold(&drain(3, cluster("ams"), true)));
        assert!(
            drains.is_drained("ams", "ams-9"),
            "also one that comes later"
        );
        assert!(drains.fold(&drain(4, node("ams-1"), false)));
        assert_eq!(
            drains
                .of_node("ams", "ams-1")
                .map(|(by, since)| (by, since.revision)),
            Some((cluster("ams"), 3))
        );
        assert!(
            !drains.is_drained("nyc", "ams-1"),
            "as a node it is in service again"
        );
        assert!(
            drains.fold(&drain(5, cluster("ams"), false))
                && !drains.fold(&drain(6, cluster("ams"), false))
        );
        assert_eq!(drains, Drains::default());
    }

    fn fleet(head: &str, name_server: bool, ttl: &str) -> Fleet {
        let mut text = FleetText::new().text_in_fleet(head);
        if name_server {
            text = text.name_server("ns1", "127.0.0.1:5300");
        }
        let admin = |ip: &str| format!("admin = \"{ip}:9100\"");
        text.cluster_head("ams", "")
            .node("ams-1", "127.0.0.11", &admin("127.0.0.11"))
            .node("ams-2", "127.0.0.12", &admin("127.0.0.12"))
            .cluster_head("idle", "")
            .node("idle-1", "127.0.0.21", &admin("127.0.0.21"))
            .site("www", "http://127.0.0.1:8000", "clusters = [\"ams\"]")
            .site(
                "slow",
                "http://127.0.0.1:8000",
                &format!("clusters = [\"ams\"]\nttl = \"{ttl}\""),
            )
            .fleet()
    }

    #[test]
    fn a_lame_duck_lasts_detection_and_ttl_and_no_longer_than_allowed() {
        let whole = |fleet: &Fleet, node| LameDuck::of(fleet, node).whole();
        let plain = fleet("", true, "30s");
        let duck = LameDuck::of(&plain, "ams-1");
        let health = &plain.steering.health;
        assert_eq!(
            duck.ttl,
            Duration::from_secs(30),
            "the largest of its sites"
        );
        assert!(
            duck.detection >= health.interval + health.timeout,
            "a whole round of checks"
        );
        assert_eq!(
            whole(&plain, "idle-1"),
            Duration::ZERO,
            "nobody is steered there"
        );
        assert_eq!(whole(&plain, "nobody"), Duration::ZERO);
        assert_eq!(
            whole(&fleet("", false, "30s"), "ams-1"),
            Duration::ZERO,
            "nobody steers"
        );
        assert_eq!(
            whole(&fleet("", true, "1h"), "ams-1"),
            Duration::from_secs(60),
            "the default limit"
        );
        assert_eq!(
            whole(&fleet("drain_max = \"5s\"", true, "1h"), "ams-1"),
            Duration::from_secs(5)
        );
        assert_eq!(
            whole(&fleet("drain_max = \"0s\"", true, "1h"), "ams-1"),
            Duration::ZERO
        );
        assert_eq!(
            duck.after(duck.whole()),
            LameDuck::default(),
            "its clients have left already"
        );
        assert_eq!(duck.after(Duration::from_secs(1)), duck);
    }

    #[test]
    fn a_site_without_a_node_in_service_is_found() {
        let fleet = fleet("", true, "30s");
        let mut drains = Drains::default();
        drains.fold(&drain(1, node("ams-1"), true));
        assert_eq!(sites_without_nodes(&fleet, &drains), [""; 0]);
        drains.fold(&drain(2, node("ams-2"), true));
        assert_eq!(sites_without_nodes(&fleet, &drains), ["www", "slow"]);
        drains = Drains::default();
        drains.fold(&drain(3, cluster("ams"), true));
        assert_eq!(sites_without_nodes(&fleet, &drains), ["www", "slow"]);
    }
}
