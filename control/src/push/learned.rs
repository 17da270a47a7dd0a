//! The popularity of URLs that edges have reported, and the plans made of it.

use std::collections::BTreeMap;
use std::time::Duration;

use nearcast_fleet::config::{Cluster, Fleet, PushPolicy};
use nearcast_fleet::report::UrlCount;
use nearcast_push::forecast;
use nearcast_push::plan::{self, Budget, Plan};
use nearcast_push::popularity::{ClusterPopularity, Limits, Popularity};
use parking_lot::Mutex;

use crate::fleet_state::nodes::time_zone;

/// URLs that are tracked for each cluster.
const URLS_MAX: usize = 50_000;
/// URLs of one report that are counted.
const REPORT_URLS_MAX: usize = 4096;
/// URLs of each cluster that are saved for the next process.
const URLS_SAVED_MAX: usize = 10_000;

/// Popularity by cluster.
#[derive(Debug)]
pub(crate) struct LearnedPopularity(Mutex<Popularity>);

/// A plan of a cluster with the forecast that it is based on.
pub(super) struct PlannedCluster {
    pub(super) plan: Plan,
    pub(super) forecast_requests: f64,
    pub(super) forecast_bytes: f64,
    /// Expected requests by local hour of day.
    pub(super) hours: [f64; 24],
    /// Tracked URLs.
    pub(super) urls: usize,
}

impl LearnedPopularity {
    /// Restores what an earlier process saved.
    pub(crate) fn new(policy: Option<&PushPolicy>, saved: Option<&[u8]>) -> Self {
        let clusters: BTreeMap<String, ClusterPopularity> = saved
            .and_then(|text| match serde_json::from_slice(text) {
                Ok(clusters) => Some(clusters),
                Err(error) => {
                    tracing::warn!(%error, "learned popularity cannot be read; learning begins anew");
                    None
                }
            })
            .unwrap_or_default();
        Self(Mutex::new(Popularity::restore(limits(policy), clusters)))
    }

    /// Adds an edge's counts.
    pub(crate) fn fold(
        &self,
        fleet: &Fleet,
        cluster: &Cluster,
        counts: &[UrlCount],
        now_unix_ms: u64,
    ) {
        let counts = &counts[..counts.len().min(REPORT_URLS_MAX)];
        let at = fleet.clock.fleet_seconds(now_unix_ms as f64 / 1000.0);
        self.0
            .lock()
            .fold(&cluster.name, &time_zone(cluster), at, counts);
    }

    /// Adapts to a changed fleet.
    pub(crate) fn follow(&self, fleet: &Fleet) {
        let mut popularity = self.0.lock();
        popularity.set_limits(limits(policy(fleet)));
        popularity.retain(|name| fleet.clusters.iter().any(|c| c.name == name));
    }

    /// The bytes to save for the next process. Blocking for some milliseconds.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let heads: BTreeMap<String, ClusterPopularity> = self
            .0
            .lock()
            .clusters()
            .iter()
            .map(|(name, c)| (name.clone(), c.head(URLS_SAVED_MAX)))
            .collect();
        serde_json::to_vec(&heads).expect("counts are finite and keys are strings")
    }

    /// Tracked URLs, by cluster.
    pub(crate) fn sizes(&self) -> Vec<(String, usize)> {
        self.0
            .lock()
            .clusters()
            .iter()
            .map(|(name, c)| (name.clone(), c.urls()))
            .collect()
    }

    /// Plans the next push to a cluster within a budget.
    pub(super) fn plan(&self, fleet: &Fleet, cluster: &Cluster, budget: &Budget) -> PlannedCluster {
        // Hold the lock for the forecast only.
        let (forecast, urls) = match self.0.lock().cluster(&cluster.name) {
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
        PlannedCluster {
            plan: plan::plan(forecast.items, budget, is_served),
            forecast_requests: forecast.requests,
            forecast_bytes: forecast.bytes,
            hours: forecast.hours,
            urls,
        }
    }
}

/// The push settings of the fleet; `None` when pushes are not scheduled.
pub(super) fn policy(fleet: &Fleet) -> Option<&PushPolicy> {
    fleet.control.as_ref().and_then(|c| c.push.as_ref())
}

fn limits(policy: Option<&PushPolicy>) -> Limits {
    let half_life = policy.map_or(Duration::from_secs(86_400), |p| p.half_life);
    Limits {
        urls_max: URLS_MAX,
        ..Limits::with_half_life(half_life)
    }
}
