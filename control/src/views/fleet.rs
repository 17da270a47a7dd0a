//! The fleet file in force as an answer, without its secrets.

use std::time::Duration;

use nearcast_fleet::config::{
    Cluster, DailyWindow, Fleet, NameServer, Node, OriginNode, PushPolicy, SelectionPolicy, Site,
    Steering, Zone,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::views::clock::{Clock, clock};

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

/// How name servers locate clients and check nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SteeringView {
    /// Whether a geo database is configured.
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
    /// Listeners for HTTPS; none without certificates.
    pub listen_tls: Vec<String>,
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

/// The outcome of a new fleet file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct FleetFileAccepted {
    pub revision: u64,
    pub changed: bool,
    /// Nodes that must be restarted for their new listeners; absent when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart: Vec<String>,
}

impl FleetView {
    /// The view of a fleet. `revision` is that of its fleet file.
    pub(crate) fn new(fleet: &Fleet, revision: u64, now_unix_ms: u64) -> Self {
        let control = fleet.control.as_ref();
        Self {
            zone: fleet.zone.clone(),
            hostmaster: fleet.hostmaster.clone(),
            revision,
            report_interval_ms: millis(fleet.report_interval),
            clock: clock(&fleet.clock, now_unix_ms),
            control: ControlView {
                name: control.map(|c| c.name.clone()).unwrap_or_default(),
                listen: control.map(|c| c.listen.to_string()).unwrap_or_default(),
                url: control.map(|c| c.url.clone()).unwrap_or_default(),
            },
            push: control
                .and_then(|c| c.push.as_ref())
                .map(PushPolicyView::from),
            steering: SteeringView::from(&fleet.steering),
            origins: fleet.origins.iter().map(OriginView::from).collect(),
            name_servers: fleet
                .name_servers
                .iter()
                .map(NameServerView::from)
                .collect(),
            clusters: fleet.clusters.iter().map(ClusterView::from).collect(),
            sites: fleet
                .sites
                .iter()
                .map(|s| SiteView::new(fleet, s))
                .collect(),
            zones: fleet
                .zones
                .iter()
                .map(|z| ZoneView::new(fleet, z))
                .collect(),
        }
    }
}

impl From<&PushPolicy> for PushPolicyView {
    fn from(policy: &PushPolicy) -> Self {
        Self {
            half_life_seconds: policy.half_life.as_secs_f64(),
            expected_requests_min: policy.expected_requests_min,
        }
    }
}

impl From<&Steering> for SteeringView {
    fn from(steering: &Steering) -> Self {
        Self {
            geo_db: steering.geo_db.is_some(),
            rtt_max_age_seconds: steering.rtt_max_age.as_secs_f64(),
            rtt_explore: steering.rtt_explore,
            health: HealthCheckView {
                path: steering.health.path.clone(),
                interval_ms: millis(steering.health.interval),
                timeout_ms: millis(steering.health.timeout),
                fall: steering.health.fall,
                rise: steering.health.rise,
            },
        }
    }
}

impl From<&OriginNode> for OriginView {
    fn from(origin: &OriginNode) -> Self {
        Self {
            name: origin.name.clone(),
            listen: origin.listen.to_string(),
        }
    }
}

impl From<&NameServer> for NameServerView {
    fn from(server: &NameServer) -> Self {
        Self {
            name: server.name.clone(),
            host: server.host.clone(),
            listen: texts(&server.listen),
            addresses: texts(&server.addresses),
            admin_url: server.admin_url.clone(),
        }
    }
}

impl From<&Cluster> for ClusterView {
    fn from(cluster: &Cluster) -> Self {
        Self {
            name: cluster.name.clone(),
            label: cluster.label.clone(),
            latitude: cluster.place.latitude,
            longitude: cluster.place.longitude,
            time_zone: cluster.time_zone.clone(),
            off_peak: daily_window(cluster.off_peak),
            fill_rate_bits: cluster.fill_rate_bits,
            push_share_bytes: cluster.push_share.0,
            weight: cluster.weight,
            nodes: cluster.nodes.iter().map(NodeView::from).collect(),
        }
    }
}

impl From<&Node> for NodeView {
    fn from(node: &Node) -> Self {
        Self {
            name: node.name.clone(),
            addresses: texts(&node.addresses),
            listen: texts(&node.listen),
            listen_tls: texts(&node.listen_tls),
            service: node.service.to_string(),
            memory_bytes: node.memory.0,
            disk_bytes: node.disk.0,
            capacity_bits: node.capacity_bits,
        }
    }
}

impl SiteView {
    fn new(fleet: &Fleet, site: &Site) -> Self {
        Self {
            name: site.name.clone(),
            hosts: site.hosts.clone(),
            steered_name: fleet.steered_name(site),
            origin: site.origin.clone(),
            policy: policy_name(site.policy).to_owned(),
            ttl_seconds: site.ttl.as_secs_f64(),
            clusters: site
                .clusters
                .iter()
                .filter_map(|index| fleet.clusters.get(*index))
                .map(|cluster| cluster.name.clone())
                .collect(),
        }
    }
}

impl ZoneView {
    fn new(fleet: &Fleet, zone: &Zone) -> Self {
        Self {
            name: zone.name.clone(),
            ttl_seconds: zone.ttl.as_secs_f64(),
            records: zone.records.len(),
            name_servers: zone
                .name_servers
                .iter()
                .filter_map(|index| fleet.name_servers.get(*index))
                .map(|server| server.name.clone())
                .collect(),
        }
    }
}

fn texts(list: &[impl ToString]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// The policy as the fleet file writes it.
pub(crate) fn policy_name(policy: SelectionPolicy) -> &'static str {
    match policy {
        SelectionPolicy::Geo => "geo",
        SelectionPolicy::Rtt => "rtt",
        SelectionPolicy::Weighted => "weighted",
        SelectionPolicy::RoundRobin => "round-robin",
    }
}

/// A daily window as the fleet file writes it, such as `02:00-06:00`.
pub(crate) fn daily_window(window: DailyWindow) -> String {
    let text = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
    format!("{}-{}", text(window.start_minute), text(window.end_minute))
}
