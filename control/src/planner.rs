//! The push job: makes plans of what edges reported, orders them when a cluster's off-peak window
//! opens, or when asked.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nearcast_fleet::config::{Cluster, Fleet, PushPolicy};
use nearcast_fleet::disk;
use nearcast_fleet::journal::{Change, Entry, PushItem, PushOrder};
use nearcast_fleet::report::UrlCount;
use nearcast_fleet::units::Bytes;
use nearcast_push::forecast::{self, Expected};
use nearcast_push::plan::{self, Budget, Exclusion, Limit, Plan};
use nearcast_push::popularity::{ClusterPopularity, Limits, Popularity};
use nearcast_push::schedule::{self, Due, Window};
use serde::{Deserialize, Serialize};

use crate::book::time_zone;
use crate::dir::write_whole;
use crate::error::ApiError;
use crate::events::{Happening, Level};
use crate::fleet_view;
use crate::purges::count;
use crate::pushes::{Missed, order_id};
use crate::state::State;
use crate::view;

/// Items in one order.
pub(crate) const ITEMS_MAX: usize = 4096;
/// URLs remembered a cluster.
const URLS_MAX: usize = 50_000;
/// URLs of one report that are taken in.
const REPORT_URLS_MAX: usize = 4096;
/// URLs a cluster that are kept over a restart.
const URLS_SAVED_MAX: usize = 10_000;
/// An order that was asked for may take at least this long, milliseconds.
const ASKED_MS_MIN: u64 = 60_000;
/// Windows of one cluster that are looked for after a time in which control was not running.
const UNSEEN_MAX: usize = 31;
/// How often it is written down when the schedule was looked at, in the fleet's time, and the least
/// and most of it in real time.
const SAVE_EVERY: Duration = Duration::from_secs(600);
const SAVE_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A window in which nothing was worth an order is looked at again after this time, milliseconds.
const RETRY_MS: u64 = 5_000;

/// What edges were asked for.
#[derive(Debug)]
pub(crate) struct Learnt(Mutex<Popularity>);

/// A plan with what it was made of.
struct Made {
    plan: Plan,
    forecast_requests: f64,
    forecast_bytes: f64,
    hours: [f64; 24],
    urls: usize,
}

impl Learnt {
    /// From what an earlier process saved.
    pub(crate) fn new(policy: Option<&PushPolicy>, saved: Option<&[u8]>) -> Self {
        let clusters: BTreeMap<String, ClusterPopularity> = saved
            .and_then(|text| match serde_json::from_slice(text) {
                Ok(clusters) => Some(clusters),
                Err(error) => {
                    tracing::warn!(%error, "what was learnt of popularity cannot be read; learning begins anew");
                    None
                }
            })
            .unwrap_or_default();
        Self(Mutex::new(Popularity::restore(limits(policy), clusters)))
    }

    /// Takes in an edge's counts.
    pub(crate) fn fold(
        &self,
        fleet: &Fleet,
        cluster: &Cluster,
        counts: &[UrlCount],
        now_unix_ms: u64,
    ) {
        let counts = &counts[..counts.len().min(REPORT_URLS_MAX)];
        let at = fleet.clock.fleet_seconds(now_unix_ms as f64 / 1000.0);
        self.lock()
            .fold(&cluster.name, &time_zone(cluster), at, counts);
    }

    /// The fleet has changed.
    pub(crate) fn follow(&self, fleet: &Fleet) {
        let mut popularity = self.lock();
        popularity.set_limits(limits(policy(fleet)));
        popularity.retain(|name| fleet.clusters.iter().any(|c| c.name == name));
    }

    /// What to write for the next process. Blocking for some milliseconds.
    pub(crate) fn save(&self) -> Vec<u8> {
        let heads: BTreeMap<String, ClusterPopularity> = self
            .lock()
            .clusters()
            .iter()
            .map(|(name, c)| (name.clone(), c.head(URLS_SAVED_MAX)))
            .collect();
        serde_json::to_vec(&heads).expect("counts are finite and keys are strings")
    }

    /// URLs remembered, by cluster.
    pub(crate) fn sizes(&self) -> Vec<(String, usize)> {
        self.lock()
            .clusters()
            .iter()
            .map(|(name, c)| (name.clone(), c.urls()))
            .collect()
    }

    fn make(&self, fleet: &Fleet, cluster: &Cluster, budget: &Budget) -> Made {
        // The lock is held for the forecast alone.
        let (forecast, urls) = match self.lock().cluster(&cluster.name) {
            Some(known) => (forecast::next_day(known), known.urls()),
            None => (forecast::Forecast::default(), 0),
        };
        let index = fleet.clusters.iter().position(|c| c.name == cluster.name);
        let is_served = |site: &str| {
            fleet
                .sites
                .iter()
                .any(|s| s.name == site && index.is_some_and(|i| s.clusters.contains(&i)))
        };
        Made {
            plan: plan::plan(forecast.items, budget, is_served),
            forecast_requests: forecast.requests,
            forecast_bytes: forecast.bytes,
            hours: forecast.hours,
            urls,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Popularity> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn policy(fleet: &Fleet) -> Option<&PushPolicy> {
    fleet.control.as_ref().and_then(|c| c.push.as_ref())
}

fn limits(policy: Option<&PushPolicy>) -> Limits {
    let half_life = policy.map_or(std::time::Duration::from_secs(86_400), |p| p.half_life);
    Limits {
        urls_max: URLS_MAX,
        ..Limits::with_half_life(half_life)
    }
}

/// What a plan for a cluster must fit into, with that many real seconds to fill.
fn budget(fleet: &Fleet, cluster: &Cluster, seconds: f64) -> Budget {
    Budget {
        share_bytes: disk::usable_bytes(cluster.push_share.0),
        fill_bytes: (rate_bytes(cluster) as f64 * seconds) as u64,
        nodes: cluster.nodes.len() as u64,
        expected_requests_min: policy(fleet).map_or(2.0, |p| p.expected_requests_min),
        items_max: ITEMS_MAX,
        stored_bytes: disk::stored_bytes,
    }
}

/// Real milliseconds from `from_unix_ms` to the end of the next of the cluster's busiest hours of
/// day, a day at the most: until then what is pushed should stay fresh. Hours that are equally busy
/// count as the first of them, and a zone's clock change in between is left out.
fn peak_ends_after_ms(
    fleet: &Fleet,
    cluster: &Cluster,
    hours: &[f64; 24],
    from_unix_ms: u64,
) -> u64 {
    let busiest = (0..24u64)
        .rev()
        .max_by(|a, b| hours[*a as usize].total_cmp(&hours[*b as usize]))
        .unwrap_or(0);
    let now = u64::from(schedule::local_hour(
        &fleet.clock,
        &time_zone(cluster),
        from_unix_ms,
    ));
    // An end that is in this very hour has come or is about to: tomorrow's is meant.
    let ahead = match (busiest + 1 + 24 - now) % 24 {
        0 => 24,
        hours => hours,
    };
    fleet
        .clock
        .real_duration(std::time::Duration::from_secs(ahead * 3600))
        .as_millis() as u64
}

fn rate_bytes(cluster: &Cluster) -> u64 {
    cluster.fill_rate_bits / 8
}

fn window_of(fleet: &Fleet, cluster: &Cluster, now_unix_ms: u64) -> Option<Window> {
    schedule::window(
        &fleet.clock,
        &time_zone(cluster),
        cluster.off_peak,
        now_unix_ms,
    )
}

/// Tomorrow's plans as an answer: of one cluster or all, with the best `items_most` items each.
/// Takes milliseconds to tenths of a second: run it off the async threads.
pub(crate) fn plans(
    learnt: &Learnt,
    fleet: &Fleet,
    only: Option<&str>,
    items_most: usize,
    now_unix_ms: u64,
) -> view::PlanView {
    let clusters = fleet
        .clusters
        .iter()
        .filter(|c| only.is_none_or(|name| c.name == name));
    view::PlanView {
        now_unix_ms,
        enabled: policy(fleet).is_some(),
        clock: fleet_view::clock(&fleet.clock, now_unix_ms),
        clusters: clusters
            .map(|c| cluster_plan(learnt, fleet, c, items_most, now_unix_ms))
            .collect(),
    }
}

fn cluster_plan(
    learnt: &Learnt,
    fleet: &Fleet,
    cluster: &Cluster,
    items_most: usize,
    now_unix_ms: u64,
) -> view::ClusterPlan {
    const EXCLUDED_ITEMS_MAX: usize = 20;
    let window = window_of(fleet, cluster, now_unix_ms);
    let seconds = window.as_ref().map_or(0.0, |w| w.seconds_left(now_unix_ms));
    let budget = budget(fleet, cluster, seconds);
    let Made {
        plan,
        forecast_requests,
        forecast_bytes,
        hours,
        urls,
    } = learnt.make(fleet, cluster, &budget);
    let gap = plan.gap();
    let mut excluded = plan.excluded;
    excluded.sort_by(|(a, _), (b, _)| {
        b.requests
            .total_cmp(&a.requests)
            .then_with(|| a.url.cmp(&b.url))
    });
    let mut counts: HashMap<Exclusion, view::ExcludedCount> = HashMap::new();
    for (item, reason) in &excluded {
        let count = counts
            .entry(*reason)
            .or_insert_with(|| view::ExcludedCount {
                reason: reason.name().to_owned(),
                count: 0,
                expected_requests: 0.0,
                expected_bytes: 0.0,
            });
        count.count += 1;
        count.expected_requests += item.requests;
        count.expected_bytes += item.bytes;
    }
    let mut counts: Vec<_> = counts.into_values().collect();
    counts.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.reason.cmp(&b.reason)));
    view::ClusterPlan {
        cluster: cluster.name.clone(),
        label: cluster.label.clone(),
        time_zone: cluster.time_zone.clone(),
        local_time: schedule::local_time(&fleet.clock, &time_zone(cluster), now_unix_ms)
            .unwrap_or_default(),
        off_peak: fleet_view::daily(cluster.off_peak),
        window: window.map(|w| window_view(cluster, &w, now_unix_ms)),
        budget: view::BudgetView {
            share_bytes: budget.share_bytes,
            fill_bytes: budget.fill_bytes,
            rate_bytes: rate_bytes(cluster),
            nodes: budget.nodes,
        },
        forecast: view::ForecastView {
            requests: forecast_requests,
            bytes: forecast_bytes,
            urls,
            hours: hours.to_vec(),
        },
        items_total: plan.items.len(),
        stored_bytes: plan.stored_bytes,
        fetched_bytes: plan.fetched_bytes,
        capacity_bytes: plan.capacity_bytes,
        limit: match plan.limit {
            Limit::DiskShare => "disk_share",
            Limit::FillBudget => "fill_budget",
        }
        .to_owned(),
        expected_requests: plan.expected_requests,
        expected_bytes: plan.expected_bytes,
        upper_bound_bytes: plan.upper_bound_bytes,
        gap,
        items: plan
            .items
            .iter()
            .take(items_most)
            .map(|i| view::PlanItem {
                site: i.site.to_string(),
                url: i.url.to_string(),
                bytes: i.size,
                expected_requests: i.requests,
                expected_bytes: i.bytes,
                reason: None,
            })
            .collect(),
        excluded: counts,
        excluded_items: excluded
            .iter()
            .take(EXCLUDED_ITEMS_MAX)
            .map(|(e, reason)| excluded_item(e, *reason))
            .collect(),
    }
}

fn excluded_item(item: &Expected, reason: Exclusion) -> view::PlanItem {
    view::PlanItem {
        site: item.site.to_string(),
        url: item.url.to_string(),
        bytes: item.size.unwrap_or(0),
        expected_requests: item.requests,
        expected_bytes: if item.bytes.is_finite() {
            item.bytes
        } else {
            0.0
        },
        reason: Some(reason.name().to_owned()),
    }
}

fn window_view(cluster: &Cluster, window: &Window, now_unix_ms: u64) -> view::WindowView {
    let local = |fleet_seconds| {
        schedule::local_time_of(&time_zone(cluster), fleet_seconds).unwrap_or_default()
    };
    view::WindowView {
        date: window.date.clone(),
        open: window.is_open(now_unix_ms),
        start_unix_ms: window.start_unix_ms,
        end_unix_ms: window.end_unix_ms,
        start_fleet_unix_ms: (window.start_fleet * 1000.0) as i64,
        end_fleet_unix_ms: (window.end_fleet * 1000.0) as i64,
        start_local: local(window.start_fleet),
        end_local: local(window.end_fleet),
    }
}

/// Why a cluster got no order.
#[derive(Debug)]
pub(crate) enum NoOrder {
    /// One is still under way.
    Runs(String),
    /// The plan is empty.
    NothingToFill(String),
    /// The journal refused it.
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

/// Plans for a cluster and appends the order: within `window`, or for as long as its window is when
/// asked for now.
pub(crate) async fn order(
    state: &Arc<State>,
    fleet: &Arc<Fleet>,
    cluster: &Cluster,
    window: Option<&Window>,
    now_unix_ms: u64,
) -> Result<view::PushedOrder, NoOrder> {
    // One at a time, so that two askers cannot both find nothing running.
    let _turn = state.orders.lock().await;
    if let Some(running) = state.book().pushes.running(&cluster.name) {
        return Err(NoOrder::Runs(running.to_owned()));
    }
    let asked_ms = || {
        let window = std::time::Duration::from_secs(u64::from(cluster.off_peak.minutes()) * 60);
        (fleet.clock.real_duration(window).as_millis() as u64).max(ASKED_MS_MIN)
    };
    let (seconds, not_after_unix_ms) = match window {
        Some(w) => (w.seconds_left(now_unix_ms), w.end_unix_ms),
        None => (asked_ms() as f64 / 1000.0, now_unix_ms + asked_ms()),
    };
    let made = {
        let (state, fleet, cluster) = (state.clone(), fleet.clone(), cluster.clone());
        tokio::task::spawn_blocking(move || {
            state
                .learnt
                .make(&fleet, &cluster, &budget(&fleet, &cluster, seconds))
        })
        .await
        .map_err(|_| NoOrder::Failed(ApiError::Internal("the planner ended".to_owned())))?
    };
    if made.plan.items.is_empty() {
        return Err(NoOrder::NothingToFill(match made.urls {
            0 => "no requests have been reported yet".to_owned(),
            known => format!(
                "none of {} is worth a fill or fits",
                count(known as u64, "known URL")
            ),
        }));
    }
    let items: Vec<PushItem> = made
        .plan
        .items
        .iter()
        .map(|i| PushItem {
            site: i.site.to_string(),
            url: i.url.to_string(),
            bytes: i.size,
        })
        .collect();
    let order = PushOrder {
        id: order_id(&cluster.name, window.map(|w| w.date.as_str()), now_unix_ms),
        cluster: cluster.name.clone(),
        items,
        rate_bytes: rate_bytes(cluster),
        not_after_unix_ms,
        fresh_until_unix_ms: not_after_unix_ms
            + peak_ends_after_ms(fleet, cluster, &made.hours, not_after_unix_ms),
    };
    let entry = {
        let (state, order, change) = (state.clone(), order.clone(), order.clone());
        let nodes = cluster.nodes.iter().map(|n| n.name.clone()).collect();
        let ledger = state.ledger.clone();
        let accept = move |entry: &Entry| {
            state
                .book()
                .pushes
                .accept(&order, entry.revision, entry.accepted_unix_ms, nodes)
        };
        ledger
            .append(Change::Push(change), now_unix_ms, accept)
            .await
            .map_err(NoOrder::Failed)?
    };
    let why = if window.is_some() {
        "scheduled"
    } else {
        "asked"
    };
    state
        .metrics
        .push_orders
        .with_label_values(&[cluster.name.as_str(), why])
        .inc();
    state
        .metrics
        .push_order_bytes
        .with_label_values(&[cluster.name.as_str()])
        .inc_by(made.plan.body_bytes);
    let message = format!(
        "push to {} begins: {}, {} on each node",
        cluster.name,
        count(order.items.len() as u64, "URL"),
        Bytes(made.plan.body_bytes).rounded()
    );
    let happening = Happening::new("push_started", Level::Info, message)
        .cluster(&cluster.name)
        .order(&order.id)
        .revision(entry.revision);
    state.events.add(now_unix_ms, [happening]);
    Ok(view::PushedOrder {
        id: order.id,
        cluster: cluster.name.clone(),
        revision: entry.revision,
        items: order.items.len(),
        bytes: made.plan.body_bytes,
    })
}

/// A window that has no order so far.
#[derive(Debug, Clone)]
struct Skipped {
    window: Window,
    /// When to look again.
    again_unix_ms: u64,
    /// Why there is none, where that is a fault.
    fault: Option<String>,
}

/// What the schedule remembers between its looks, and when it last looked: windows that passed in
/// between, perhaps as control was not running, were missed.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// Windows in which nothing was worth an order, by cluster.
    skipped: BTreeMap<String, Skipped>,
    /// When it last looked; `None` when nobody knows.
    looked_unix_ms: Option<u64>,
    /// When that was last written, and where.
    saved_unix_ms: u64,
    path: PathBuf,
}

/// What is written down.
#[derive(Debug, Serialize, Deserialize)]
struct Looked {
    looked_unix_ms: u64,
}

impl Scheduler {
    /// With what an earlier process wrote. Reads one small file.
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

    /// Finds windows that passed unseen, and orders for every cluster whose window is open and has
    /// no order yet.
    pub(crate) async fn look(&mut self, state: &Arc<State>, fleet: &Arc<Fleet>, now_unix_ms: u64) {
        let since = self.looked_unix_ms.replace(now_unix_ms);
        self.save(fleet, now_unix_ms).await;
        if policy(fleet).is_none() {
            return;
        }
        for cluster in &fleet.clusters {
            let mut missed = self.unseen(state, fleet, cluster, since, now_unix_ms);
            if self
                .skipped
                .get(&cluster.name)
                .is_some_and(|skipped| skipped.window.end_unix_ms <= now_unix_ms)
                && let Some(Skipped {
                    window,
                    fault: Some(fault),
                    ..
                }) = self.skipped.remove(&cluster.name)
            {
                missed = Some((
                    Missed::NotOrdered,
                    format!(
                        "the off-peak window of {} had no push: {fault}",
                        window.date
                    ),
                ));
            }
            if let Some((why, words)) = missed {
                let happening = state.book().pushes.miss(&cluster.name, why, words);
                state.events.add(now_unix_ms, [happening]);
            }
            let last = state.book().pushes.last_scheduled_unix_ms(&cluster.name);
            let Due::Now(window) =
                schedule::due(window_of(fleet, cluster, now_unix_ms), last, now_unix_ms)
            else {
                continue;
            };
            let skipped = self
                .skipped
                .get(&cluster.name)
                .filter(|skipped| skipped.window.start_unix_ms == window.start_unix_ms);
            let is_known = skipped.is_some();
            if skipped.is_some_and(|skipped| now_unix_ms < skipped.again_unix_ms) {
                continue;
            }
            match order(state, fleet, cluster, Some(&window), now_unix_ms).await {
                Ok(_) => drop(self.skipped.remove(&cluster.name)),
                Err(NoOrder::Runs(_)) => {}
                Err(why) => {
                    let fault = matches!(why, NoOrder::Failed(_)).then(|| why.to_string());
                    let skipped = Skipped {
                        window,
                        again_unix_ms: now_unix_ms + RETRY_MS,
                        fault,
                    };
                    self.skipped.insert(cluster.name.clone(), skipped);
                    if !is_known {
                        let level = if matches!(why, NoOrder::Failed(_)) {
                            Level::Warn
                        } else {
                            Level::Info
                        };
                        let message = format!("no push to {} for now: {why}", cluster.name);
                        state.events.add(
                            now_unix_ms,
                            [
                                Happening::new("push_skipped", level, message)
                                    .cluster(&cluster.name),
                            ],
                        );
                    }
                }
            }
        }
    }

    /// The newest window of a cluster that passed while nobody looked.
    fn unseen(
        &self,
        state: &State,
        fleet: &Fleet,
        cluster: &Cluster,
        since_unix_ms: Option<u64>,
        now_unix_ms: u64,
    ) -> Option<(Missed, String)> {
        let passed = schedule::passed(
            &fleet.clock,
            &time_zone(cluster),
            cluster.off_peak,
            since_unix_ms?,
            now_unix_ms,
            UNSEEN_MAX,
        );
        let book = state.book();
        let is_missed = |w: &&Window| {
            !book
                .pushes
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
        Some((Missed::ControlDown, words))
    }

    /// Writes down now and then when it looked, so that at the next start it is known what was
    /// missed.
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
            tracing::debug!(%error, "when the schedule was last looked at cannot be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_until_the_end_of_the_next_busiest_hour() {
        let file = "[fleet]\nzone = \"cdn.test\"\n[[cluster]]\nname = \"ams\"\nplace = { latitude = 1.0, longitude = 1.0 }\n\
            time_zone = \"Europe/Amsterdam\"\n[[cluster.node]]\nname = \"ams-1\"\naddress = \"127.0.0.1\"\nadmin = \"127.0.0.1:9100\"\n";
        let mut fleet =
            nearcast_fleet::file::parse(file, std::path::Path::new("/")).expect("the file is good");
        let hour = |n: usize| {
            let mut hours = [1.0; 24];
            hours[n] = 9.0;
            hours
        };
        // 2026-06-01T04:00:00Z, 06:00 in Amsterdam.
        let at = 1_780_286_400_000;
        let ahead = |fleet: &Fleet, hours| {
            peak_ends_after_ms(fleet, &fleet.clusters[0], &hours, at) as f64 / 3_600_000.0
        };
        for (busiest, expected) in [(20, 15.0), (6, 1.0), (5, 24.0), (0, 19.0), (23, 18.0)] {
            assert_eq!(ahead(&fleet, hour(busiest)), expected, "{busiest}");
        }
        assert_eq!(ahead(&fleet, [0.0; 24]), 19.0, "the first of equals");
        fleet.clock.anchor_real = at as f64 / 1000.0;
        fleet.clock.anchor_fleet = at as f64 / 1000.0;
        fleet.clock.speed = 360.0;
        assert_eq!(ahead(&fleet, hour(20)), 15.0 / 360.0, "real time");
    }
}
