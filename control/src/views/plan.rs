//! The answer of `/v1/plan`.

use crate::views::clock::Clock;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Push plans for the next window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanView {
    pub now_unix_ms: u64,
    /// Whether pushes are scheduled at all.
    pub enabled: bool,
    pub clock: Clock,
    pub clusters: Vec<ClusterPlan>,
}

/// A cluster's plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterPlan {
    pub cluster: String,
    pub label: String,
    pub time_zone: String,
    pub local_time: String,
    pub off_peak: String,
    pub window: Option<WindowView>,
    pub budget: BudgetView,
    pub forecast: ForecastView,
    pub items_total: usize,
    pub stored_bytes: u64,
    pub fetched_bytes: u64,
    pub capacity_bytes: u64,
    pub limit: String,
    pub expected_requests: f64,
    pub expected_bytes: f64,
    pub upper_bound_bytes: f64,
    pub gap: f64,
    pub items: Vec<PlanItem>,
    pub excluded: Vec<ExcludedCount>,
    pub excluded_items: Vec<PlanItem>,
}

/// An off-peak window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WindowView {
    pub date: String,
    pub open: bool,
    pub start_unix_ms: u64,
    pub end_unix_ms: u64,
    pub start_fleet_unix_ms: i64,
    pub end_fleet_unix_ms: i64,
    pub start_local: String,
    pub end_local: String,
}

/// The limits that a plan must fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BudgetView {
    /// Bytes of each node's push share that are available to pushed content, as stored.
    pub share_bytes: u64,
    pub fill_bytes: u64,
    /// Bytes a second, the whole cluster.
    pub rate_bytes: u64,
    pub nodes: u64,
}

/// A cluster's next day.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForecastView {
    pub requests: f64,
    pub bytes: f64,
    /// URLs whose requests are tracked.
    pub urls: usize,
    /// Requests by local hour.
    pub hours: Vec<f64>,
}

/// A URL in a plan, or excluded from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanItem {
    pub site: String,
    pub url: String,
    /// 0 where unknown.
    pub bytes: u64,
    pub expected_requests: f64,
    pub expected_bytes: f64,
    /// Why it was excluded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// URLs excluded for one reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExcludedCount {
    pub reason: String,
    pub count: usize,
    pub expected_requests: f64,
    pub expected_bytes: f64,
}
