//! Whether the node wants clients: it serves, is drained by an operator, or is on its way to its
//! end.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use nearcast_fleet::clock::unix_millis;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::drains::Drains;
use nearcast_fleet::journal::Entry;

/// How far the node is with its end. In order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    /// It was not told to end.
    Serving,
    /// Health checks get a 503, and everything else goes on: name servers have yet to see that.
    LameDuck,
    /// Name servers give other nodes by now: each response asks its client to leave the connection.
    Leaving,
    /// Nothing new is accepted; what is under way finishes.
    Draining,
}

/// See the module's words. Only the end of [`crate::run`] moves the stage; only the journal's
/// reader folds drains.
#[derive(Debug)]
pub(crate) struct Standing {
    stage: AtomicU8,
    is_drained: AtomicBool,
    drains: Mutex<Drains>,
    /// What name servers ask for.
    health_path: ArcSwap<String>,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            stage: AtomicU8::new(Stage::Serving as u8),
            is_drained: AtomicBool::new(false),
            drains: Mutex::default(),
            health_path: ArcSwap::default(),
        }
    }
}

impl Standing {
    /// Goes over to a stage.
    pub(crate) fn reach(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::Relaxed);
    }

    fn is_at_least(&self, stage: Stage) -> bool {
        self.stage.load(Ordering::Relaxed) >= stage as u8
    }

    /// Whether the node was told to end.
    pub(crate) fn is_ending(&self) -> bool {
        self.is_at_least(Stage::LameDuck)
    }

    /// Whether each response is the last one of its connection.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_at_least(Stage::Leaving)
    }

    /// Whether an operator has drained the node or its cluster.
    pub(crate) fn is_drained(&self) -> bool {
        self.is_drained.load(Ordering::Relaxed)
    }

    /// Why the node wants no clients, as health checks are told; `None` where it does.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        match (self.is_ending(), self.is_drained()) {
            (true, _) => Some("draining\n"),
            (false, true) => Some("drained\n"),
            (false, false) => None,
        }
    }

    /// Whether the node wants no clients, and a request for this path, with its query, is the
    /// health check of the fleet file.
    pub(crate) fn refuses(&self, path: &str) -> bool {
        self.refusal().is_some() && *self.health_path.load().as_str() == *path
    }

    /// Begins with what an earlier run knew as drained.
    pub(crate) fn begin(&self, kept: Drains, fleet: &Fleet, node: &str) {
        let mut drains = self.drains.lock().expect("no holder of this lock panics");
        *drains = kept;
        self.look(&drains, fleet, node);
    }

    /// Takes in a journal entry.
    pub(crate) fn fold(&self, entry: &Entry, fleet: &Fleet, node: &str) {
        let mut drains = self.drains.lock().expect("no holder of this lock panics");
        if drains.fold(entry) {
            self.look(&drains, fleet, node);
        }
    }

    /// Looks again whether the node is drained: it may be in another cluster of a changed fleet.
    pub(crate) fn follow(&self, fleet: &Fleet, node: &str) {
        self.look(
            &self.drains.lock().expect("no holder of this lock panics"),
            fleet,
            node,
        );
    }

    fn look(&self, drains: &Drains, fleet: &Fleet, node: &str) {
        self.health_path
            .store(Arc::new(fleet.steering.health.path.clone()));
        let by = fleet
            .edge(node)
            .and_then(|(cluster, _)| drains.of_node(&cluster.name, node));
        let was_drained = self.is_drained.swap(by.is_some(), Ordering::Relaxed);
        match by {
            Some((by, _)) if !was_drained => tracing::info!(
                by = by.kind(),
                name = by.name(),
                "drained: clients are steered elsewhere"
            ),
            None if was_drained => tracing::info!("no longer drained: clients may come back"),
            _ => {}
        }
    }

    /// For how long the node has been drained; zero where it is not.
    pub(crate) fn drained_for(&self, fleet: &Fleet, node: &str, now: SystemTime) -> Duration {
        let drains = self.drains.lock().expect("no holder of this lock panics");
        let since = fleet
            .edge(node)
            .and_then(|(cluster, _)| drains.of_node(&cluster.name, node))
            .map(|(_, since)| since.unix_ms);
        since.map_or(Duration::ZERO, |since| {
            Duration::from_millis(unix_millis(now).saturating_sub(since))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_on_its_way_out_does_not_come_back() {
        let standing = Standing::default();
        assert_eq!((standing.refusal(), standing.is_leaving()), (None, false));
        standing.reach(Stage::LameDuck);
        assert_eq!(
            (standing.refusal(), standing.is_leaving()),
            (Some("draining\n"), false),
            "connections are kept at first"
        );
        standing.reach(Stage::Draining);
        standing.reach(Stage::Leaving);
        assert!(
            standing.is_ending() && standing.is_leaving() && standing.is_at_least(Stage::Draining)
        );
    }
}
