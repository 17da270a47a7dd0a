//! The periodic work of the role: time, gauges, files, and following the fleet file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::node_key;
use nearcast_net::shutdown::Shutdown;
use prometheus::IntGaugeVec;
use prometheus::core::Collector;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::admission::Admission;
use crate::dir::write_whole;
use crate::event::{Level, NewEvent};
use crate::fleet_file;
use crate::fleet_state::nodes::{NodeState, Role};
use crate::persist::series_file::SeriesFile;
use crate::push::scheduler::Scheduler;
use crate::state::State;

/// How often changes that time alone brings are looked for: silent nodes, windows, expired orders.
const TICK: Duration = Duration::from_millis(500);
/// How often learned popularity is written and the journal's length is checked.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// How often the series are written and the state log is checked. A crash loses at most this much
/// of the series.
const SERIES_EVERY: Duration = Duration::from_secs(2);

/// Updates the gauges of connections.
pub(crate) async fn count_connections(
    state: Arc<State>,
    admission: Arc<Admission>,
    mut shutdown: Shutdown,
) {
    loop {
        for (class, count) in admission.counts() {
            state
                .metrics
                .connections_of
                .with_label_values(&[class.name()])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = shutdown.requested() => return,
        }
    }
}

/// Finds the changes that time alone brings, runs the push schedule and updates the gauges.
pub(crate) async fn keep_time(state: Arc<State>, mut scheduler: Scheduler, mut shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.requested() => return,
        }
        let (now, fleet) = (now_unix_ms(), state.fleet());
        let new_events = {
            let mut fleet_state = state.fleet_state();
            let new_events = fleet_state.tick(&fleet, now);
            state.save(&mut fleet_state, false);
            new_events
        };
        state.events.add(now, new_events);
        scheduler.look(&state, &fleet, now).await;
        gauges(&state, &fleet, now);
    }
}

/// Removes the values of clusters that the fleet no longer has. The others stay untouched, so that a
/// scrape never misses them.
fn forget_clusters(gauge: &IntGaugeVec, fleet: &Fleet) {
    for family in gauge.collect() {
        for label in family
            .get_metric()
            .iter()
            .flat_map(|metric| metric.get_label())
        {
            if !fleet
                .clusters
                .iter()
                .any(|cluster| cluster.name == label.value())
            {
                let _ = gauge.remove_label_values(&[label.value()]);
            }
        }
    }
}

fn gauges(state: &State, fleet: &Fleet, now_unix_ms: u64) {
    let metrics = &state.metrics;
    metrics
        .journal_revision
        .set(i64::try_from(state.journal.revision()).unwrap_or(i64::MAX));
    let counts = state.fleet_state().state_counts(fleet, now_unix_ms);
    for role in Role::ALL {
        for node_state in NodeState::ALL {
            let count = counts.get(&(role, node_state.name())).copied().unwrap_or(0);
            metrics
                .nodes
                .with_label_values(&[role.name(), node_state.name()])
                .set(count);
        }
    }
    forget_clusters(&metrics.push_missed, fleet);
    for cluster in &fleet.clusters {
        let is_missed = state.fleet_state().orders.missed(&cluster.name).is_some();
        metrics
            .push_missed
            .with_label_values(&[cluster.name.as_str()])
            .set(is_missed.into());
    }
    let missed = state.fleet_state().orders.take_missed();
    for (cluster, why) in missed {
        metrics
            .pushes_missed
            .with_label_values(&[cluster.as_str(), why.as_str()])
            .inc();
    }
    for (cluster, urls) in state.popularity.sizes() {
        metrics
            .tracked_urls
            .with_label_values(&[cluster.as_str()])
            .set(urls as i64);
    }
}

/// Writes the series, the state log and learned popularity, and compacts the journal; also once at
/// the end.
pub(crate) async fn keep_files(
    state: Arc<State>,
    series_file: SeriesFile,
    path: PathBuf,
    mut shutdown: Shutdown,
) {
    let series_file = Arc::new(series_file);
    let mut saved = Instant::now();
    loop {
        let is_end = tokio::select! {
            () = tokio::time::sleep(SERIES_EVERY) => false,
            () = shutdown.requested() => true,
        };
        {
            let mut fleet_state = state.fleet_state();
            state.save(&mut fleet_state, true);
        }
        let is_saved = is_end || saved.elapsed() >= SAVE_EVERY;
        if is_saved {
            saved = Instant::now();
        }
        let (state, path, series_file) = (state.clone(), path.clone(), series_file.clone());
        let outcome = tokio::task::spawn_blocking(move || {
            series_file.save(|all| {
                let series = &mut state.fleet_state().series;
                if all { series.all() } else { series.changed() }
            });
            // Compaction drops entries whose outcome is in the state log, so that log is written first.
            state
                .log
                .rewrite(is_saved && state.journal.is_compaction_due(), || {
                    state.all_records()
                });
            if !is_saved {
                return Ok(());
            }
            state.journal.compact_blocking(now_unix_ms());
            save(&state, &path)
        })
        .await;
        if let Ok(Err(error)) = outcome {
            tracing::warn!(%error, "learned popularity cannot be written; after a restart, learning begins anew");
        }
        if is_end {
            return;
        }
    }
}

fn save(state: &State, path: &Path) -> std::io::Result<()> {
    write_whole(path, &state.popularity.to_bytes())
}

/// Applies the fleet file on disk whenever it has been read again.
pub(crate) async fn follow_disk(
    state: Arc<State>,
    mut disk: watch::Receiver<String>,
    seen_path: PathBuf,
    mut shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            changed = disk.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = shutdown.requested() => return,
        }
        let text = disk.borrow_and_update().clone();
        let outcome = fleet_file::reload(&state, text, &seen_path).await;
        let new_event = match outcome {
            Ok(Some(message)) => NewEvent::new("fleet_file_read", Level::Info, message),
            Ok(None) => continue,
            Err(reason) => {
                tracing::error!(%reason, "the fleet file on disk is not applied; the one in force stays");
                let message = format!("the fleet file on disk is not applied: {reason}");
                NewEvent::new("fleet_file_refused", Level::Warn, message)
            }
        };
        state.events.add(now_unix_ms(), [new_event]);
    }
}

/// Adapts the state and learned popularity to a changed fleet.
pub(crate) async fn follow_fleet(state: Arc<State>, mut shutdown: Shutdown) {
    let mut fleets = state.fleet.subscribe();
    let mut reported = node_key::warnings(&state.fleet());
    loop {
        tokio::select! {
            changed = fleets.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = shutdown.requested() => return,
        }
        let fleet = fleets.borrow_and_update().clone();
        state.fleet_state().forget(&fleet);
        state.popularity.follow(&fleet);
        report_weak_keys(&state, &mut reported);
    }
}

/// Adds an event for each key that works but should be replaced, when there are new ones.
pub(crate) fn report_weak_keys(state: &State, reported: &mut Vec<String>) {
    let warnings = node_key::warnings(&state.fleet());
    if warnings != *reported {
        state.events.add(
            now_unix_ms(),
            warnings
                .iter()
                .map(|warning| NewEvent::new("weak_key", Level::Warn, warning.clone())),
        );
        *reported = warnings;
    }
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::testing::FleetText;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn a_cluster_that_goes_takes_its_gauge_along() {
        let fleet = FleetText::new().cluster("ams", &["192.0.2.1"]).fleet();
        let gauge = Metrics::new().push_missed;
        for cluster in ["ams", "gone"] {
            gauge.with_label_values(&[cluster]).set(1);
        }
        forget_clusters(&gauge, &fleet);
        let families = gauge.collect();
        let left: Vec<&str> = families[0]
            .get_metric()
            .iter()
            .map(|metric| metric.get_label()[0].value())
            .collect();
        assert_eq!(
            (left, gauge.with_label_values(&["ams"]).get()),
            (vec!["ams"], 1)
        );
    }
}
