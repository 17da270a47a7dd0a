//! The push schedule: orders the push of each cluster in its off-peak window, and finds windows that
//! were missed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nearcast_fleet::config::{Cluster, Fleet};
use nearcast_push::schedule::{self, Due, Window};
use serde::{Deserialize, Serialize};

use crate::dir::write_whole;
use crate::event::{Level, NewEvent};
use crate::fleet_state::nodes::time_zone;
use crate::fleet_state::order_record::MissedReason;
use crate::push::learned::policy;
use crate::push::order::{NoOrder, order};
use crate::push::planner::window_of;
use crate::state::State;

/// Windows of one cluster that are searched after a time in which control was not running.
const UNSEEN_MAX: usize = 31;
/// How often the time of the last look is saved, in the fleet's time, and its least and most in real
/// time.
const SAVE_EVERY: Duration = Duration::from_secs(600);
const SAVE_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A window that got no order is tried again after this time, milliseconds.
const RETRY_MS: u64 = 5_000;

/// A window without an order so far.
#[derive(Debug, Clone)]
struct Skipped {
    window: Window,
    /// When to try again.
    again_unix_ms: u64,
    /// Why there is no order, when a fault is the cause.
    fault: Option<String>,
}

/// The memory of the schedule between its looks, and when it last looked: windows that passed in
/// between, perhaps while control was not running, were missed.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// Windows without an order, by cluster.
    skipped: BTreeMap<String, Skipped>,
    /// Time of the last look; `None` when unknown.
    looked_unix_ms: Option<u64>,
    /// When that was last saved.
    saved_unix_ms: u64,
    /// Where it is saved.
    path: PathBuf,
}

/// The saved file.
#[derive(Debug, Serialize, Deserialize)]
struct Looked {
    looked_unix_ms: u64,
}

impl Scheduler {
    /// Restores when an earlier process last looked. Reads one small file.
    pub(crate) fn open(path: PathBuf) -> Self {
        let looked = std::fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Looked>(&text).ok());
        Self {
            skipped: BTreeMap::new(),
            looked_unix_ms: looked.map(|l| l.looked_unix_ms),
            saved_unix_ms: 0,
            path,
        }
    }

    /// Finds windows that passed without a look, and orders the push of every cluster whose window is
    /// open and has no order yet.
    pub(crate) async fn look(&mut self, state: &Arc<State>, fleet: &Arc<Fleet>, now_unix_ms: u64) {
        let since = self.looked_unix_ms.replace(now_unix_ms);
        self.save(fleet, now_unix_ms).await;
        if policy(fleet).is_none() {
            return;
        }
        for cluster in &fleet.clusters {
            // A skipped window that has ended is newer than one that passed without a look.
            let unseen = self.unseen(state, fleet, cluster, since, now_unix_ms);
            let missed = self.take_failed(&cluster.name, now_unix_ms).or(unseen);
            if let Some((why, words)) = missed {
                let new_event = state.fleet_state().orders.miss(&cluster.name, why, words);
                state.events.add(now_unix_ms, [new_event]);
            }
            self.order_if_due(state, fleet, cluster, now_unix_ms).await;
        }
    }

    /// Orders the push of a cluster whose window is open and has no order yet.
    async fn order_if_due(
        &mut self,
        state: &Arc<State>,
        fleet: &Arc<Fleet>,
        cluster: &Cluster,
        now_unix_ms: u64,
    ) {
        let last = state
            .fleet_state()
            .orders
            .last_scheduled_unix_ms(&cluster.name);
        let window = window_of(fleet, cluster, now_unix_ms);
        let Due::Now(window) = schedule::due(window, last, now_unix_ms) else {
            return;
        };
        let skipped = self
            .skipped
            .get(&cluster.name)
            .filter(|skipped| skipped.window.start_unix_ms == window.start_unix_ms);
        let is_announced = skipped.is_some();
        if skipped.is_some_and(|skipped| now_unix_ms < skipped.again_unix_ms) {
            return;
        }

        let why = match order(state, fleet, cluster, Some(&window), now_unix_ms).await {
            Ok(_) => {
                self.skipped.remove(&cluster.name);
                return;
            }
            Err(NoOrder::Runs(_)) => return,
            Err(why) => why,
        };
        let has_failed = matches!(why, NoOrder::Failed(_));
        let skipped = Skipped {
            window,
            again_unix_ms: now_unix_ms + RETRY_MS,
            fault: has_failed.then(|| why.to_string()),
        };
        self.skipped.insert(cluster.name.clone(), skipped);
        if !is_announced {
            let level = if has_failed { Level::Warn } else { Level::Info };
            let message = format!("no push to {} for now: {why}", cluster.name);
            let new_event = NewEvent::new("push_skipped", level, message).cluster(&cluster.name);
            state.events.add(now_unix_ms, [new_event]);
        }
    }

    /// Forgets the skipped window of a cluster that has ended. Returns why it was missed, when a fault
    /// was the cause.
    fn take_failed(&mut self, cluster: &str, now_unix_ms: u64) -> Option<(MissedReason, String)> {
        self.skipped
            .get(cluster)
            .filter(|skipped| skipped.window.end_unix_ms <= now_unix_ms)?;
        let Skipped { window, fault, .. } = self.skipped.remove(cluster)?;
        let words = format!(
            "the off-peak window of {} had no push: {}",
            window.date, fault?
        );
        Some((MissedReason::NotOrdered, words))
    }

    /// The newest window of a cluster that passed between two looks.
    fn unseen(
        &self,
        state: &State,
        fleet: &Fleet,
        cluster: &Cluster,
        since_unix_ms: Option<u64>,
        now_unix_ms: u64,
    ) -> Option<(MissedReason, String)> {
        let passed = schedule::passed(
            &fleet.clock,
            &time_zone(cluster),
            cluster.off_peak,
            since_unix_ms?,
            now_unix_ms,
            UNSEEN_MAX,
        );
        let fleet_state = state.fleet_state();
        let is_missed = |w: &&Window| {
            !fleet_state
                .orders
                .was_ordered(&cluster.name, w.start_unix_ms, w.end_unix_ms)
        };
        let missed: Vec<&Window> = passed.iter().filter(is_missed).collect();
        let newest = missed.last()?;
        let more = if missed.len() > 1 {
            format!(", and {} before it", missed.len() - 1)
        } else {
            String::new()
        };
        let words = format!(
            "the off-peak window of {} passed without a push{more}: control was not running",
            newest.date
        );
        Some((MissedReason::ControlDown, words))
    }

    /// Saves now and then when it last looked, so that the next start can find missed windows.
    async fn save(&mut self, fleet: &Fleet, now_unix_ms: u64) {
        let pause = fleet
            .clock
            .real_duration(SAVE_EVERY)
            .clamp(SAVE_PAUSE.0, SAVE_PAUSE.1)
            .as_millis() as u64;
        if self.saved_unix_ms.saturating_add(pause) > now_unix_ms {
            return;
        }
        self.saved_unix_ms = now_unix_ms;
        let (path, looked) = (
            self.path.clone(),
            Looked {
                looked_unix_ms: now_unix_ms,
            },
        );
        let text = serde_json::to_vec(&looked).expect("a number is JSON");
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || write_whole(&path, &text)).await
        {
            tracing::debug!(%error, "the time of the last look at the schedule cannot be written");
        }
    }
}
