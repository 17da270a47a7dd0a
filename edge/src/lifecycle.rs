//! Whether the node accepts clients: it serves, an operator has drained it, or it is shutting down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use nearcast_fleet::change::Entry;
use nearcast_fleet::clock::unix_millis;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::drains::Drains;
use parking_lot::Mutex;

/// How far the node's shutdown has come. In order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    /// No shutdown was requested.
    Serving,
    /// Health checks get a 503, and all other requests are served: name servers have yet to see the
    /// 503.
    LameDuck,
    /// Name servers answer with other nodes by now: each response closes its connection.
    Leaving,
    /// No connection is accepted; requests under way finish.
    Draining,
}

/// The node's stage and drains. Only the end of [`crate::run`] changes the stage; only the journal's
/// reader folds drains.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    stage: AtomicU8,
    is_drained: AtomicBool,
    drains: Mutex<Drains>,
    /// The path that name servers request.
    health_path: ArcSwap<String>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            stage: AtomicU8::new(Stage::Serving as u8),
            is_drained: AtomicBool::new(false),
            drains: Mutex::default(),
            health_path: ArcSwap::default(),
        }
    }
}

impl Lifecycle {
    /// Reaches a stage, unless a later one was reached before.
    pub(crate) fn reach(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::Relaxed);
    }

    fn is_at_least(&self, stage: Stage) -> bool {
        self.stage.load(Ordering::Relaxed) >= stage as u8
    }

    /// Whether a shutdown was requested.
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

    /// Why the node accepts no clients, for health checks; `None` while it does.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        match (self.is_ending(), self.is_drained()) {
            (true, _) => Some("draining\n"),
            (false, true) => Some("drained\n"),
            (false, false) => None,
        }
    }

    /// Whether the node accepts no clients, and a request for this path, with its query, is the health
    /// check of the fleet file.
    pub(crate) fn refuses(&self, path: &str) -> bool {
        self.refusal().is_some() && *self.health_path.load().as_str() == *path
    }

    /// Begins with the drains that an earlier run knew.
    pub(crate) fn begin(&self, known: Drains, fleet: &Fleet, node: &str) {
        let mut drains = self.drains.lock();
        *drains = known;
        self.update(&drains, fleet, node);
    }

    /// Folds a journal entry.
    pub(crate) fn fold(&self, entry: &Entry, fleet: &Fleet, node: &str) {
        let mut drains = self.drains.lock();
        if drains.fold(entry) {
            self.update(&drains, fleet, node);
        }
    }

    /// Follows a changed fleet, in which the node may be in another cluster.
    pub(crate) fn follow(&self, fleet: &Fleet, node: &str) {
        self.update(&self.drains.lock(), fleet, node);
    }

    fn update(&self, drains: &Drains, fleet: &Fleet, node: &str) {
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
        let drains = self.drains.lock();
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
        let lifecycle = Lifecycle::default();
        assert_eq!((lifecycle.refusal(), lifecycle.is_leaving()), (None, false));
        lifecycle.reach(Stage::LameDuck);
        assert_eq!(
            (lifecycle.refusal(), lifecycle.is_leaving()),
            (Some("draining\n"), false),
            "connections are kept at first"
        );
        lifecycle.reach(Stage::Draining);
        lifecycle.reach(Stage::Leaving);
        assert!(
            lifecycle.is_ending()
                && lifecycle.is_leaving()
                && lifecycle.is_at_least(Stage::Draining)
        );
    }
}
