//! Push requests and push orders.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A request to push now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PushRequest {
    /// All clusters unless given.
    #[serde(default)]
    pub clusters: Option<Vec<String>>,
}

/// The outcome of a push request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pushed {
    pub orders: Vec<PushedOrder>,
    pub skipped: Vec<PushSkipped>,
}

/// An accepted order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PushedOrder {
    pub id: String,
    pub cluster: String,
    pub revision: u64,
    pub items: usize,
    pub bytes: u64,
}

/// A cluster that got no order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PushSkipped {
    pub cluster: String,
    pub reason: String,
}

/// All push orders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pushes {
    pub now_unix_ms: u64,
    /// Newest first.
    pub orders: Vec<Order>,
}

/// A push order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    pub id: String,
    pub cluster: String,
    pub revision: u64,
    /// `scheduled` or `manual`.
    pub trigger: String,
    /// `running`, `ended`, `expired` or `replaced`.
    pub state: String,
    pub accepted_unix_ms: u64,
    pub not_after_unix_ms: u64,
    pub rate_bytes: u64,
    pub items: u64,
    pub bytes: u64,
    pub progress: f64,
    pub total: FilledView,
    pub nodes: Vec<OrderNode>,
    pub benefit: BenefitView,
}

/// Progress over all nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FilledView {
    pub items: u64,
    pub already_warm: u64,
    pub already_warm_bytes: u64,
    pub warmed: u64,
    pub failed: u64,
    /// Copies that were neither stored nor failed when their nodes ended the order.
    pub unfinished: u64,
    pub origin_bytes: u64,
    pub peer_bytes: u64,
}

/// Progress of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OrderNode {
    pub node: String,
    /// Whether it has reported this order.
    pub reported: bool,
    pub items: u64,
    pub already_warm: u64,
    pub already_warm_bytes: u64,
    pub warmed: u64,
    pub origin_bytes: u64,
    pub peer_bytes: u64,
    pub failed: u64,
    pub unfinished: u64,
    pub reasons: Vec<String>,
    pub ended: bool,
    pub ended_unix_ms: u64,
}

/// The benefit of what an order pushed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BenefitView {
    /// When the cluster's next order took over; 0 while requests count for this one.
    pub until_unix_ms: u64,
    pub requests: u64,
    pub response_bytes: u64,
    pub pushed_hits: u64,
    pub pushed_hit_bytes: u64,
    pub pushed_hit_ratio: Option<f64>,
    /// Hours with requests.
    pub hours: Vec<HourView>,
    pub peak: Option<PeakView>,
}

/// One local hour of day.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HourView {
    pub hour: u8,
    pub requests: u64,
    pub pushed_hits: u64,
    pub pushed_hit_bytes: u64,
}

/// The busiest hours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PeakView {
    pub from_hour: u8,
    pub to_hour: u8,
    pub requests: u64,
    pub pushed_hits: u64,
    pub pushed_hit_bytes: u64,
    pub pushed_hit_ratio: Option<f64>,
}
