//! The answer of `/v1/status`.

use std::collections::BTreeMap;

use crate::views::clock::Clock;
use crate::views::event::Event;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Rates and ratios over some seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rates {
    pub seconds: u64,
    /// By cache status.
    pub requests: BTreeMap<String, u64>,
    /// Requests that count in ratios: all but `local`.
    pub counted: u64,
    /// `hit`, `stale`, `revalidated` and `collapsed`.
    pub hits: u64,
    pub errors: u64,
    pub requests_per_second: f64,
    pub response_bytes: u64,
    /// Body bytes from origins for requests of clients.
    pub origin_bytes: u64,
    pub origin_requests: u64,
    /// Body bytes that push orders fetched from origins. They count in no ratio.
    pub push_origin_bytes: u64,
    /// Body bytes that push orders fetched from nodes of the same cluster.
    pub push_peer_bytes: u64,
    pub egress_bits_per_second: f64,
    /// hits / counted.
    pub object_hit_ratio: Option<f64>,
    /// 1 - origin_bytes / response_bytes.
    pub byte_hit_ratio: Option<f64>,
    pub pushed_hits: u64,
    pub pushed_hit_bytes: u64,
    pub pushed_hit_ratio: Option<f64>,
}

/// The fleet now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Status {
    pub now_unix_ms: u64,
    pub version: String,
    pub zone: String,
    /// Node name of this control role.
    pub control: String,
    pub started_unix_ms: u64,
    /// Identity of the journal.
    pub journal: String,
    /// Newest journal revision.
    pub revision: u64,
    /// Revision of the fleet file in force; 0 for the file that control was started with.
    pub fleet_revision: u64,
    pub report_interval_ms: u64,
    pub window_seconds: u64,
    pub clock: Clock,
    pub recent: Rates,
    pub since_start: Rates,
    pub clusters: Vec<ClusterStatus>,
    pub nodes: Vec<NodeStatus>,
    pub sites: Vec<SiteStatus>,
    pub selections: Vec<Selection>,
    /// Newest first.
    pub events: Vec<Event>,
}

/// A cluster now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterStatus {
    pub name: String,
    pub label: String,
    pub latitude: f64,
    pub longitude: f64,
    pub time_zone: String,
    /// On the fleet's clock.
    pub local_time: String,
    pub off_peak: String,
    pub off_peak_now: bool,
    /// Start of the open window, or of the next one.
    pub next_window_unix_ms: Option<u64>,
    /// `up`, `degraded`, `drained`, `down` or `waiting`.
    pub state: String,
    /// Whether an operator has drained the cluster as such.
    #[serde(default)]
    pub drained: bool,
    pub nodes: usize,
    pub nodes_up: usize,
    pub connections: u64,
    /// Id of the order that runs.
    pub push_order: Option<String>,
    /// Why its last off-peak window did not complete a push, in words, until a push succeeds.
    pub push_missed: Option<String>,
    pub recent: Rates,
}

/// A node now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeStatus {
    pub name: String,
    /// `edge`, `gslb-dns`, `origin` or `control`.
    pub role: String,
    pub cluster: Option<String>,
    /// `up`, `draining`, `drained`, `down`, `silent` or `waiting`.
    pub state: String,
    pub reason: String,
    /// 0 for never.
    pub last_report_unix_ms: u64,
    /// Since the last report; null for never.
    pub age_ms: Option<u64>,
    pub started_unix_ms: u64,
    pub revision: u64,
    /// Number of journal revisions that it has not applied.
    pub behind: u64,
    pub draining: bool,
    /// Whether an operator has drained the edge or its cluster.
    #[serde(default)]
    pub drained: bool,
    /// The kind of node key that it used last: `own`, or `shared` for the fleet's; absent before its
    /// first request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Health as name servers see it.
    pub health: Vec<Health>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_max_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_share_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_bits_per_second: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_hit_ratio: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries_per_second: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_prefixes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub geo_source: Option<String>,
}

/// An edge's health as a name server sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Health {
    /// Name server that checks.
    pub name_server: String,
    pub up: bool,
    pub since_unix_ms: u64,
    pub reason: String,
    pub check_us: u64,
}

/// A site now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SiteStatus {
    pub name: String,
    pub hosts: Vec<String>,
    pub steered_name: String,
    pub policy: String,
    pub recent: Rates,
}

/// Clients of one place that were steered to one cluster for one reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Selection {
    /// Country code of the clients' place, or empty.
    pub country: String,
    pub latitude: f64,
    pub longitude: f64,
    pub site: String,
    pub cluster: String,
    pub reason: String,
    /// Answers in the window.
    pub recent: u64,
    /// Answers since control started.
    pub total: u64,
}
