//! Push orders: a node stores what its cluster will request, before clients request it.
//!
//! For each URL one node of the cluster, the owner, asks the origin; the others ask the owner, so
//! that the origin sends each response about once. A response that is whole in the pushed share of
//! the disk is not fetched again while it stays fresh until the order says, and is validated
//! otherwise. All others are fetched into that share, even where clients have pulled them: the pull
//! share may evict them before they are wanted. Responses that an order names stay on disk until the
//! next order.
//!
//! An order never exceeds its rate, and a newer order replaces the one that runs. When the time of an
//! order is over, all its fills stop at once; whole slices stay, and the next order that names the
//! URL fetches the others.

mod item;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use nearcast_fleet::change::{PushItem, PushOrder};
use nearcast_fleet::config::Fleet;
use nearcast_fleet::report::FillProgress;
use nearcast_http_rules::key::Key;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use self::item::{ItemFiller, ItemOutcome, find_pushed};
use crate::clock::Clock;
use crate::edge::Worker;
use crate::forward::Pacer;
use crate::peer::owner;

/// Items of one order that are fetched side by side.
const ITEMS_AT_ONCE: usize = 4;
/// Orders whose progress is kept for reports.
const ORDERS_KEPT: usize = 16;
/// Reasons of failures kept of one order.
const REASONS_MAX: usize = 8;

/// The progress of push orders. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pushes(Arc<Mutex<VecDeque<OrderProgress>>>);

/// The progress of one order, whose pacer counts its bytes.
#[derive(Debug)]
struct OrderProgress {
    progress: FillProgress,
    pacer: Arc<Pacer>,
}

impl Pushes {
    /// The progress of the last orders, oldest first.
    pub(crate) fn progress(&self) -> Vec<FillProgress> {
        let with_bytes = |OrderProgress { progress, pacer }: &OrderProgress| FillProgress {
            origin_bytes: pacer.origin_bytes(),
            peer_bytes: pacer.peer_bytes(),
            ..progress.clone()
        };
        self.0.lock().iter().map(with_bytes).collect()
    }

    fn begin(&self, order: &PushOrder, pacer: Arc<Pacer>) {
        let mut orders = self.0.lock();
        orders.retain(|other| other.progress.order != order.id);
        let progress = FillProgress {
            order: order.id.clone(),
            items: with_schemes(&order.items).len() as u64,
            ..FillProgress::default()
        };
        orders.push_back(OrderProgress { progress, pacer });
        while orders.len() > ORDERS_KEPT {
            orders.pop_front();
        }
    }

    fn update(&self, order: &str, change: impl FnOnce(&mut FillProgress)) {
        let mut orders = self.0.lock();
        if let Some(found) = orders.iter_mut().find(|o| o.progress.order == order) {
            change(&mut found.progress);
        }
    }

    fn end(&self, order: &str, reason: Option<&str>, now_ms: u64) {
        self.update(order, |progress| {
            progress.ended = true;
            progress.unfinished = progress
                .items
                .saturating_sub(progress.already_warm + progress.warmed + progress.failed);
            progress.ended_unix_ms = now_ms;
            if let Some(reason) = reason {
                add_reason(progress, reason);
            }
        });
    }
}

fn add_outcome(progress: &mut FillProgress, item: &PushItem, outcome: ItemOutcome) {
    match outcome {
        ItemOutcome::AlreadyWarm(bytes) => {
            progress.already_warm += 1;
            progress.already_warm_bytes += bytes;
        }
        ItemOutcome::Warmed => progress.warmed += 1,
        ItemOutcome::Failed(reason) => {
            progress.failed += 1;
            add_reason(progress, &format!("{}: {reason}", item.url));
        }
    }
}

fn add_reason(progress: &mut FillProgress, reason: &str) {
    if progress.reasons.len() < REASONS_MAX && !progress.reasons.iter().any(|r| r == reason) {
        progress.reasons.push(reason.to_owned());
    }
}

/// Carries out orders until the channel ends. A newer order replaces the one that runs.
pub(crate) async fn run(
    worker: Arc<Worker>,
    fleet: watch::Receiver<Arc<Fleet>>,
    mut orders: mpsc::Receiver<PushOrder>,
    pushes: Pushes,
) {
    let (node, clock) = (&*worker.edge.name, &worker.edge.clock);
    let mut next = next_own(&fleet, node, clock, &mut orders).await;
    while let Some(order) = next {
        let fleet_now = fleet.borrow().clone();
        let left_ms = order.not_after_unix_ms.saturating_sub(clock.unix_ms());
        // Each node of the cluster takes an equal part of the rate.
        let nodes = fleet_now
            .edge(node)
            .map_or(1, |(cluster, _)| cluster.nodes.len().max(1)) as u64;
        let pacer = Arc::new(Pacer::new((order.rate_bytes / nodes).max(1)));
        pushes.begin(&order, pacer.clone());
        tracing::info!(
            order = order.id,
            items = order.items.len(),
            "a push order begins"
        );

        let filler = ItemFiller {
            worker: worker.clone(),
            fleet: fleet_now,
            pacer: pacer.clone(),
            fresh_until_ms: order.fresh_until_unix_ms,
        };
        let filled = carry_out(filler, &order, &pushes);
        let reason = tokio::select! {
            biased;
            newer = next_own(&fleet, node, clock, &mut orders) => {
                next = newer;
                Some("replaced by a newer order")
            }
            done = tokio::time::timeout(Duration::from_millis(left_ms), filled) => {
                next = None;
                done.is_err().then_some("its time was over")
            }
        };

        // The fills of the order are tasks of their own, and end with the pacer.
        pacer.stop();
        pushes.end(&order.id, reason, clock.unix_ms());
        if next.is_none() {
            next = next_own(&fleet, node, clock, &mut orders).await;
        }
    }
}

/// The next order for this node's cluster whose time is not over. An order that control hands out
/// again after a restart may be over, and orders for other clusters do not replace the one that
/// runs.
async fn next_own(
    fleet: &watch::Receiver<Arc<Fleet>>,
    node: &str,
    clock: &Clock,
    orders: &mut mpsc::Receiver<PushOrder>,
) -> Option<PushOrder> {
    loop {
        let order = orders.recv().await?;
        let is_own = fleet
            .borrow()
            .edge(node)
            .is_some_and(|(cluster, _)| cluster.name == order.cluster);
        if is_own && order.not_after_unix_ms > clock.unix_ms() {
            return Some(order);
        }
    }
}

/// The items of an order, each with the URL of a key: one without a scheme becomes two. Malformed
/// URLs stay, and their filling fails.
fn with_schemes(items: &[PushItem]) -> Vec<PushItem> {
    let mut found = Vec::with_capacity(items.len());
    for item in items {
        match Key::all_of_url(&item.url).as_deref() {
            Ok([_]) | Err(_) => found.push(item.clone()),
            Ok(keys) => found.extend(keys.iter().map(|key| PushItem {
                url: key.url.to_string(),
                ..item.clone()
            })),
        }
    }
    found
}

/// Fills the items of an order, a few at a time.
async fn carry_out(filler: ItemFiller, order: &PushOrder, pushes: &Pushes) {
    let (worker, fleet) = (filler.worker.clone(), filler.fleet.clone());
    let Some((cluster, _)) = fleet.edge(&worker.edge.name) else {
        return;
    };

    // Stored slices of the items stay on disk from now on, also of incomplete responses.
    let store = &worker.edge.store;
    store.new_pin_epoch();
    let items = with_schemes(&order.items);
    for key in items.iter().filter_map(|item| Key::of_url(&item.url).ok()) {
        if let Some(response) = find_pushed(&worker, &key.url, |_| true).await {
            store.pin(&response.content.body);
        }
    }

    // The node's own items come first: the owners of the others can have theirs by then.
    let is_own =
        |item: &&PushItem| owner(cluster, &item.url).is_none_or(|node| *node == *worker.edge.name);
    let (own, others): (Vec<_>, Vec<_>) = items.iter().partition(is_own);
    // The tasks end with this future.
    let mut running = tokio::task::JoinSet::new();
    for item in own.into_iter().chain(others) {
        if running.len() >= ITEMS_AT_ONCE {
            let _ = running.join_next().await;
        }
        let (filler, item) = (filler.clone(), item.clone());
        let (order_id, pushes) = (order.id.clone(), pushes.clone());
        running.spawn(async move {
            let outcome = filler.fill(&item).await;
            pushes.update(&order_id, |progress| add_outcome(progress, &item, outcome));
        });
    }
    while running.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::testing::FleetText;

    use super::*;

    #[test]
    fn an_item_without_a_scheme_is_one_of_each() {
        let item = |url: &str| PushItem {
            site: "www".into(),
            url: url.into(),
            bytes: 1,
        };
        let items = ["//a.test/x", "https://a.test/y", "?"].map(item);
        let expected = [
            "http://a.test/x",
            "https://a.test/x",
            "https://a.test/y",
            "?",
        ]
        .map(item);
        assert_eq!(with_schemes(&items), expected);
    }

    #[tokio::test]
    async fn bytes_are_reported_as_they_come_and_what_is_left_when_it_ends() {
        let items = vec![
            PushItem {
                site: "www".into(),
                url: "http://a/".into(),
                bytes: 100
            };
            3
        ];
        let order = PushOrder {
            id: "x".into(),
            cluster: "ams".into(),
            items,
            rate_bytes: 1,
            not_after_unix_ms: 0,
            fresh_until_unix_ms: 0,
        };
        let (pushes, pacer) = (Pushes::default(), Arc::new(Pacer::new(1)));
        pushes.begin(&order, pacer.clone());
        pacer.count(false, 70);
        pacer.count(true, 5);
        let progress = pushes.progress().remove(0);
        assert_eq!(
            (progress.origin_bytes, progress.peer_bytes, progress.ended),
            (70, 5, false)
        );
        pushes.update("x", |progress| {
            add_outcome(progress, &order.items[0], ItemOutcome::Warmed)
        });
        pacer.stop();
        // It waits for nothing any more.
        pacer.pass(1 << 40).await;
        pacer.count(false, 1);
        pushes.end("x", Some("its time was over"), 1);
        let progress = pushes.progress().remove(0);
        assert_eq!(
            (
                progress.origin_bytes,
                progress.warmed,
                progress.unfinished,
                progress.ended
            ),
            (71, 1, 2, true)
        );
        assert_eq!(progress.reasons, ["its time was over"]);
    }

    #[test]
    fn reasons_are_few_and_different() {
        let mut progress = FillProgress::default();
        for n in 0..20 {
            add_reason(&mut progress, &format!("reason {}", n / 2));
        }
        assert_eq!(progress.reasons.len(), REASONS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn only_orders_of_the_own_cluster_that_are_not_over_count() {
        let fleet = FleetText::new()
            .cluster("ams", &["192.0.2.1"])
            .cluster("nyc", &["192.0.2.2"])
            .fleet();
        let (_fleet_tx, fleet) = watch::channel(Arc::new(fleet));
        let (orders_tx, mut orders) = mpsc::channel(8);
        for (id, cluster, not_after_unix_ms) in [
            ("other", "nyc", u64::MAX),
            ("over", "ams", 1),
            ("own", "ams", u64::MAX),
            ("later", "nyc", u64::MAX),
        ] {
            let order = PushOrder {
                id: id.to_owned(),
                cluster: cluster.to_owned(),
                items: Vec::new(),
                rate_bytes: 1,
                not_after_unix_ms,
                fresh_until_unix_ms: 0,
            };
            orders_tx.send(order).await.expect("there is room");
        }
        let order = next_own(&fleet, "ams-1", &Clock::System, &mut orders)
            .await
            .expect("an own order");
        assert_eq!(order.id, "own");
        // What waits for a newer one goes on waiting while others' orders come.
        let newer = tokio::time::timeout(
            Duration::from_secs(1),
            next_own(&fleet, "ams-1", &Clock::System, &mut orders),
        )
        .await;
        assert!(
            newer.is_err(),
            "another cluster's order is taken for a newer one: {newer:?}"
        );
        drop(orders_tx);
        assert!(
            next_own(&fleet, "ams-1", &Clock::System, &mut orders)
                .await
                .is_none()
        );
    }
}
