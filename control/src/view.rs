//! The API's answers and requests as JSON: what `API.md` describes by example and the OpenAPI
//! document by schema.
//!
//! A test reads the examples with these types, so that the two cannot drift apart.

use std::collections::BTreeMap;

use nearcast_fleet::journal::Entry;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ErrorBody {
    pub error: ErrorView,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ErrorView {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// Every mistake of a fleet file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<Mistake>,
}

/// One mistake in a fleet file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mistake {
    /// 1-based.
    pub line: usize,
    /// 1-based.
    pub column: usize,
    pub problem: String,
    pub mend: String,
}

impl From<&nearcast_fleet::file::Mistake> for Mistake {
    fn from(m: &nearcast_fleet::file::Mistake) -> Self {
        Self {
            line: m.line,
            column: m.column,
            problem: m.problem.clone(),
            mend: m.hint.clone(),
        }
    }
}

/// The fleet's clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Clock {
    /// Fleet seconds a real second.
    pub speed: f64,
    pub fleet_unix_ms: i64,
    /// UTC.
    pub fleet_time: String,
}

/// Rates and ratios over some seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rates {
    pub seconds: u64,
    /// By cache status.
    pub requests: BTreeMap<String, u64>,
    /// All but `local`.
    pub counted: u64,
    /// `hit`, `stale`, `revalidated` and `collapsed`.
    pub hits: u64,
    pub errors: u64,
    pub requests_per_second: f64,
    pub response_bytes: u64,
    /// Body bytes from origins for what clients asked for.
    pub origin_bytes: u64,
    pub origin_requests: u64,
    /// Body bytes that push orders fetched from origins; in no ratio.
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
    /// The order that runs.
    pub push: Option<String>,
    /// What its last off-peak window did not bring, for people, until a push ends well.
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
    /// Journal entries that it has not folded.
    pub behind: u64,
    pub draining: bool,
    /// Whether an operator has drained the edge or its cluster.
    #[serde(default)]
    pub drained: bool,
    /// What kind of node key it has shown last: `own`, or `shared` for the fleet's; null before
    /// any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// As name servers see it.
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

/// An edge's health as one name server sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Health {
    /// Name server.
    pub by: String,
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

/// Who was steered where, and why.
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

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Event {
    pub id: u64,
    pub at_unix_ms: u64,
    pub kind: String,
    pub message: String,
    /// `info`, `good` or `warn`.
    pub level: String,
    pub node: Option<String>,
    pub cluster: Option<String>,
    pub revision: Option<u64>,
    pub order: Option<String>,
}

/// The kept events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct EventLog {
    pub newest: u64,
    /// Oldest first.
    pub events: Vec<Event>,
}

/// The fleet file in force, without secrets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FleetView {
    pub zone: String,
    pub hostmaster: String,
    pub revision: u64,
    pub report_interval_ms: u64,
    pub clock: Clock,
    pub control: ControlView,
    pub push: Option<PushPolicyView>,
    pub steering: SteeringView,
    pub origins: Vec<OriginView>,
    pub name_servers: Vec<NameServerView>,
    pub clusters: Vec<ClusterView>,
    pub sites: Vec<SiteView>,
    pub zones: Vec<ZoneView>,
}

/// The control role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ControlView {
    pub name: String,
    pub listen: String,
    pub url: String,
}

/// How pushes are planned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PushPolicyView {
    pub half_life_seconds: f64,
    pub expected_requests_min: f64,
}

/// How name servers find out about clients and nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SteeringView {
    /// Whether a database is set.
    pub geo_db: bool,
    pub rtt_max_age_seconds: f64,
    pub rtt_explore: f64,
    pub health: HealthCheckView,
}

/// Active health checks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HealthCheckView {
    pub path: String,
    pub interval_ms: u64,
    pub timeout_ms: u64,
    pub fall: u32,
    pub rise: u32,
}

/// An origin role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OriginView {
    pub name: String,
    pub listen: String,
}

/// A name server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NameServerView {
    pub name: String,
    pub host: String,
    pub listen: Vec<String>,
    pub addresses: Vec<String>,
    pub admin_url: String,
}

/// A cluster as configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterView {
    pub name: String,
    pub label: String,
    pub latitude: f64,
    pub longitude: f64,
    pub time_zone: String,
    pub off_peak: String,
    pub fill_rate_bits: u64,
    pub push_share_bytes: u64,
    pub weight: u32,
    pub nodes: Vec<NodeView>,
}

/// An edge as configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeView {
    pub name: String,
    pub addresses: Vec<String>,
    pub listen: Vec<String>,
    pub service: String,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub capacity_bits: Option<u64>,
}

/// A site as configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SiteView {
    pub name: String,
    pub hosts: Vec<String>,
    pub steered_name: String,
    pub origin: String,
    pub policy: String,
    pub ttl_seconds: f64,
    pub clusters: Vec<String>,
}

/// A zone as configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ZoneView {
    pub name: String,
    pub ttl_seconds: f64,
    pub records: usize,
    pub name_servers: Vec<String>,
}

/// Rates by second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SeriesView {
    /// Length of a step: 1 s up to an hour, 1 min up to a day, 15 min beyond.
    pub step_ms: u64,
    pub points: usize,
    pub start_unix_ms: u64,
    pub fleet_start_unix_ms: i64,
    pub speed: f64,
    pub total: Line,
    pub statuses: BTreeMap<String, Vec<Option<f64>>>,
    pub clusters: BTreeMap<String, Line>,
    pub sites: BTreeMap<String, Line>,
}

/// One value a step: what was counted in it; null where nothing is known, as while control or the
/// nodes were away.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    pub counted: Vec<Option<f64>>,
    pub hits: Vec<Option<f64>>,
    pub errors: Vec<Option<f64>>,
    pub response_bytes: Vec<Option<f64>>,
    pub origin_bytes: Vec<Option<f64>>,
    /// Fetched from origins by push orders.
    pub push_origin_bytes: Vec<Option<f64>>,
    pub pushed_hits: Vec<Option<f64>>,
    pub pushed_hit_bytes: Vec<Option<f64>>,
}

/// Tomorrow's plans.
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

/// What a plan must fit into.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BudgetView {
    /// Bytes of each node's push share that are sure to hold pushed content, as it is stored.
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
    /// URLs that are remembered.
    pub urls: usize,
    /// Requests by local hour.
    pub hours: Vec<f64>,
}

/// A URL in a plan, or left out of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanItem {
    pub site: String,
    pub url: String,
    /// 0 where unknown.
    pub bytes: u64,
    pub expected_requests: f64,
    pub expected_bytes: f64,
    /// Why it was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What was left out for one reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExcludedCount {
    pub reason: String,
    pub count: usize,
    pub expected_requests: f64,
    pub expected_bytes: f64,
}

/// Whom to push to now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PushRequest {
    /// All clusters unless given.
    #[serde(default)]
    pub clusters: Option<Vec<String>>,
}

/// What came of it.
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
    /// `scheduled` or `asked`.
    pub why: String,
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
    pub earned: EarnedView,
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
    /// Copies that were neither there nor failed when their nodes ended the order.
    pub unfinished: u64,
    pub origin_bytes: u64,
    pub peer_bytes: u64,
}

/// Progress of one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OrderNode {
    pub node: String,
    /// Whether it has said anything about this order.
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

/// What an order earned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EarnedView {
    /// When the cluster's next order began to earn; 0 while this one does.
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

/// What to purge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PurgeRequest {
    /// What; either this or `scopes`.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// Several at once, 256 at most: all of them are purged or none.
    #[serde(default)]
    pub scopes: Option<Vec<Scope>>,
    /// Make stale instead of unusable.
    #[serde(default)]
    pub soft: bool,
    /// How long to wait for edges, at most 60,000; 5,000 unless given.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

/// What a client of a site asked an edge to purge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SitePurgeRequest {
    /// The edge.
    pub node: String,
    /// The site that the client may purge.
    pub site: String,
    /// URLs of its hosts; tags, which hold within it alone.
    pub scopes: Vec<Scope>,
    /// Make stale instead of unusable.
    #[serde(default)]
    pub soft: bool,
    /// How long to wait for edges, at most 60,000; 5,000 unless given.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

/// What a purge covers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "by", content = "value", rename_all = "snake_case")]
pub(crate) enum Scope {
    /// One absolute URL, every variant and every equivalent spelling.
    Url(String),
    /// Every URL that begins so.
    Prefix(String),
    /// Every URL of a host.
    Host(String),
    /// Every URL of a site.
    Site(String),
    /// Every response with this tag.
    Tag(String),
    /// Every response of one site with this tag.
    SiteTag {
        /// Its name.
        site: String,
        tag: String,
    },
    /// Everything.
    All,
}

/// A purge and how far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PurgeView {
    pub revision: u64,
    pub accepted_unix_ms: u64,
    /// The first of `scopes`.
    pub scope: Scope,
    /// What it covers, in canonical form; the first 16.
    pub scopes: Vec<Scope>,
    /// How many there are.
    pub scopes_total: usize,
    pub soft: bool,
    /// Whether every edge of the fleet has confirmed it.
    pub complete: bool,
    /// 0 until then.
    pub completed_unix_ms: u64,
    /// Stored responses that it covered, on all nodes.
    pub responses: u64,
    pub nodes: Vec<PurgeNode>,
    /// Edges that have not confirmed.
    pub missing: Vec<String>,
    /// Those of them that are silent.
    pub silent: Vec<String>,
    /// Those of them that have fetched the change.
    pub received: Vec<String>,
    /// What may be amiss where it covered nothing: in the answer to the purge itself.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What a purge covered on one edge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PurgeNode {
    pub node: String,
    pub responses: u64,
    pub effective_unix_ms: u64,
}

/// All purges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Purges {
    /// Newest first.
    pub purges: Vec<PurgeView>,
}

/// What came of a new fleet file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct FleetFileAccepted {
    pub revision: u64,
    pub changed: bool,
    /// Nodes that have to be started again for their new listeners; absent when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart: Vec<String>,
}

/// Journal entries after a cursor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct JournalPage {
    /// Identity of the journal: another one means another history.
    pub journal: String,
    /// Newest revision.
    pub revision: u64,
    /// Oldest first.
    #[schema(value_type = Vec<Object>)]
    pub entries: Vec<Entry>,
}

/// A report was taken in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ReportAccepted {
    /// Newest journal revision.
    pub revision: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;

    /// Reads an example and writes it again: every member that it shows must exist, and none be
    /// missing.
    fn check<T: DeserializeOwned + Serialize>(name: &str, example: &str) {
        let shown: serde_json::Value =
            serde_json::from_str(example).unwrap_or_else(|e| panic!("{name}: {e}"));
        let read: T = serde_json::from_str(example).unwrap_or_else(|e| panic!("{name}: {e}"));
        let written = serde_json::to_value(&read).unwrap();
        assert_eq!(names(&written, ""), names(&shown, ""), "{name}");
    }

    fn names(value: &serde_json::Value, path: &str) -> std::collections::BTreeSet<String> {
        match value {
            serde_json::Value::Object(map) => map
                .iter()
                .flat_map(|(k, v)| {
                    names(v, &format!("{path}.{k}"))
                        .into_iter()
                        .chain([format!("{path}.{k}")])
                })
                .collect(),
            serde_json::Value::Array(list) => list
                .iter()
                .enumerate()
                .flat_map(|(n, v)| names(v, &format!("{path}[{n}]")))
                .collect(),
            _ => [path.to_owned()].into(),
        }
    }

    #[test]
    fn the_examples_of_the_description_are_what_is_answered() {
        let mut seen = Vec::new();
        for block in include_str!("../API.md").split("```json ").skip(1) {
            let (name, rest) = block.split_once('\n').unwrap();
            let example = rest.split("```").next().unwrap();
            match name {
                "status" => check::<Status>(name, example),
                "fleet" => check::<FleetView>(name, example),
                "series" => check::<SeriesView>(name, example),
                "event" => check::<Event>(name, example),
                "plan" => check::<PlanView>(name, example),
                "pushed" => check::<Pushed>(name, example),
                "pushes" => check::<Pushes>(name, example),
                "purge" => check::<PurgeView>(name, example),
                "drain" => check::<crate::drains::DrainView>(name, example),
                "mistakes" => check::<ErrorBody>(name, example),
                other => panic!("no type for the example {other:?}"),
            }
            seen.push(name);
        }
        assert_eq!(seen.len(), 10, "{seen:?}");
    }
}
