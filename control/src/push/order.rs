//! Ordering a push: plan, append to the journal, announce.

use std::sync::Arc;
use std::time::Duration;

use nearcast_fleet::change::{Change, Entry, PushItem, PushOrder};
use nearcast_fleet::config::{Cluster, Fleet};
use nearcast_fleet::units::Bytes;
use nearcast_push::schedule::Window;

use crate::error::ApiError;
use crate::event::{Level, NewEvent, count};
use crate::fleet_state::order_record::order_id;
use crate::push::learned::PlannedCluster;
use crate::push::planner::{budget, peak_ends_after_ms, rate_bytes};
use crate::state::State;
use crate::views;

/// Least time for a manual order, milliseconds.
const MANUAL_MS_MIN: u64 = 60_000;

/// Why a cluster got no order.
#[derive(Debug)]
pub(crate) enum NoOrder {
    /// Another order is running.
    Runs(String),
    /// The plan is empty.
    NothingToFill(String),
    /// Planning failed, or the journal refused the order.
    Failed(ApiError),
}

impl std::fmt::Display for NoOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Runs(order) => write!(f, "order {order} still runs"),
            Self::NothingToFill(why) => f.write_str(why),
            Self::Failed(error) => write!(f, "{error}"),
        }
    }
}

/// Plans the push to a cluster and appends its order: for the rest of `window`, or for a manual order
/// for the length of the cluster's window from now on.
pub(crate) async fn order(
    state: &Arc<State>,
    fleet: &Arc<Fleet>,
    cluster: &Cluster,
    window: Option<&Window>,
    now_unix_ms: u64,
) -> Result<views::PushedOrder, NoOrder> {
    // One order at a time, so that two requests cannot both find that none is running.
    let _turn = state.orders.lock().await;
    if let Some(running) = state.fleet_state().orders.running(&cluster.name) {
        return Err(NoOrder::Runs(running.to_owned()));
    }
    let (seconds, not_after_unix_ms) = match window {
        Some(window) => (window.seconds_left(now_unix_ms), window.end_unix_ms),
        None => {
            let manual_ms = manual_ms(fleet, cluster);
            (manual_ms as f64 / 1000.0, now_unix_ms + manual_ms)
        }
    };

    let planned = plan(state, fleet, cluster, seconds).await?;
    let order = PushOrder {
        id: order_id(&cluster.name, window.map(|w| w.date.as_str()), now_unix_ms),
        cluster: cluster.name.clone(),
        items: planned
            .plan
            .items
            .iter()
            .map(|item| PushItem {
                site: item.site.to_string(),
                url: item.url.to_string(),
                bytes: item.size,
            })
            .collect(),
        rate_bytes: rate_bytes(cluster),
        not_after_unix_ms,
        fresh_until_unix_ms: not_after_unix_ms
            + peak_ends_after_ms(fleet, cluster, &planned.hours, not_after_unix_ms),
    };
    let entry = append(state, cluster, order.clone(), now_unix_ms).await?;

    let trigger = if window.is_some() {
        "scheduled"
    } else {
        "manual"
    };
    let bytes = planned.plan.body_bytes;
    announce(state, &order, entry.revision, trigger, bytes, now_unix_ms);
    Ok(views::PushedOrder {
        id: order.id,
        cluster: order.cluster,
        revision: entry.revision,
        items: order.items.len(),
        bytes,
    })
}

/// Real time for a manual order: the length of the cluster's off-peak window.
fn manual_ms(fleet: &Fleet, cluster: &Cluster) -> u64 {
    let window = Duration::from_secs(u64::from(cluster.off_peak.minutes()) * 60);
    (fleet.clock.real_duration(window).as_millis() as u64).max(MANUAL_MS_MIN)
}

/// The plan for that many real seconds, made off the async threads.
async fn plan(
    state: &Arc<State>,
    fleet: &Arc<Fleet>,
    cluster: &Cluster,
    seconds: f64,
) -> Result<PlannedCluster, NoOrder> {
    let planned = {
        let (state, fleet, cluster) = (state.clone(), fleet.clone(), cluster.clone());
        tokio::task::spawn_blocking(move || {
            let budget = budget(&fleet, &cluster, seconds);
            state.popularity.plan(&fleet, &cluster, &budget)
        })
        .await
        .map_err(|_| NoOrder::Failed(ApiError::Internal("the planner ended".to_owned())))?
    };
    if !planned.plan.items.is_empty() {
        return Ok(planned);
    }
    Err(NoOrder::NothingToFill(match planned.urls {
        0 => "no requests have been reported yet".to_owned(),
        known => format!(
            "none of {} is worth a fill or fits",
            count(known as u64, "known URL")
        ),
    }))
}

/// Appends an order to the journal and to the state of the fleet.
async fn append(
    state: &Arc<State>,
    cluster: &Cluster,
    order: PushOrder,
    now_unix_ms: u64,
) -> Result<Entry, NoOrder> {
    let (accepting, accepted) = (state.clone(), order.clone());
    let nodes = cluster.nodes.iter().map(|n| n.name.clone()).collect();
    let accept = move |entry: &Entry| {
        accepting.fleet_state().orders.accept(
            &accepted,
            entry.revision,
            entry.accepted_unix_ms,
            nodes,
        );
    };
    state
        .journal
        .append(Change::Push(order), now_unix_ms, accept)
        .await
        .map_err(|error| NoOrder::Failed(error.into()))
}

/// Counts an accepted order and adds its event.
fn announce(
    state: &State,
    order: &PushOrder,
    revision: u64,
    trigger: &str,
    bytes: u64,
    now_unix_ms: u64,
) {
    let cluster = order.cluster.as_str();
    let metrics = &state.metrics;
    metrics
        .push_orders
        .with_label_values(&[cluster, trigger])
        .inc();
    metrics
        .push_order_bytes
        .with_label_values(&[cluster])
        .inc_by(bytes);
    let message = format!(
        "push to {cluster} begins: {}, {} on each node",
        count(order.items.len() as u64, "URL"),
        Bytes(bytes).rounded()
    );
    let new_event = NewEvent::new("push_started", Level::Info, message)
        .cluster(cluster)
        .order(&order.id)
        .revision(revision);
    state.events.add(now_unix_ms, [new_event]);
}
