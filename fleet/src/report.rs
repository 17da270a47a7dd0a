//! The reports of nodes, JSON over HTTP with the sender's node key.
//!
//! Counters are totals since the start of the node (`started_unix_ms` names it), so a lost report
//! costs nothing: the receiver takes differences and treats a new start as a reset. Field names are
//! read by nodes of the release before and after, so they never change.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `POST <control>/v1/reports/edge`, every report interval.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EdgeReport {
    /// Node name.
    pub node: String,
    /// When the process started, milliseconds after the Unix epoch.
    pub started_unix_ms: u64,
    /// Journal revision the node has folded.
    pub revision: u64,
    /// Whether it is draining before its end.
    pub draining: bool,
    /// Whether it has learned that an operator drained it or its cluster.
    #[serde(default)]
    pub drained: bool,
    /// Totals by site name.
    pub sites: BTreeMap<String, SiteTotals>,
    /// Client connections open now.
    pub connections: u64,
    /// Bytes of slices in memory.
    pub memory_bytes: u64,
    /// Bytes on disk, pushed content included.
    pub disk_bytes: u64,
    /// Bytes of pushed content.
    pub pushed_bytes: u64,
    /// Requests by URL since the last accepted report (not totals), the most requested ones.
    pub popularity: Vec<UrlCount>,
    /// Push orders known to the node, newest last, at most 16.
    pub fills: Vec<FillProgress>,
    /// Recently applied purges, newest last, at most 64.
    pub purges: Vec<PurgeProgress>,
}

/// How an edge answered a request: the label `cache_status` of metrics, and the keys of
/// [`SiteTotals::requests`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheStatus {
    /// From a fresh stored response.
    Hit,
    /// From a stale stored response.
    Stale,
    /// From a stored response that the origin validated.
    Revalidated,
    /// From the forward request of another client.
    Collapsed,
    /// From the origin, with a request for the whole response.
    Miss,
    /// From stored slices and, for the others, from the origin.
    Partial,
    /// From the origin, without a look-up in the store.
    Bypass,
    /// With an error of the edge, because the origin failed.
    Error,
    /// By the edge itself: health checks, refused requests.
    Local,
}

impl CacheStatus {
    /// Every status, in the order of the numbers.
    pub const ALL: [Self; 9] = [
        Self::Hit,
        Self::Stale,
        Self::Revalidated,
        Self::Collapsed,
        Self::Miss,
        Self::Partial,
        Self::Bypass,
        Self::Error,
        Self::Local,
    ];

    /// Its word in metrics and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Collapsed => "collapsed",
            Self::Miss => "miss",
            Self::Partial => "partial",
            Self::Bypass => "bypass",
            Self::Error => "error",
            Self::Local => "local",
        }
    }

    /// The status of this word; `None` for a status that a newer version may have added.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    /// Whether the request was answered without a forward request of its own for the content.
    pub fn is_hit(self) -> bool {
        match self {
            Self::Hit | Self::Stale | Self::Revalidated | Self::Collapsed => true,
            Self::Miss | Self::Partial | Self::Bypass | Self::Error | Self::Local => false,
        }
    }

    /// Whether the request counts in ratios: all but those that the edge answered itself.
    pub fn is_counted(self) -> bool {
        self != Self::Local
    }
}

/// Totals of one site at one edge since start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteTotals {
    /// Requests by [`CacheStatus`], under its word. A newer version may report further words.
    pub requests: BTreeMap<String, u64>,
    /// Response body bytes by [`CacheStatus`], under its word.
    pub bytes: BTreeMap<String, u64>,
    /// Responses with status 5xx, made by the edge or relayed.
    pub errors: u64,
    /// Body bytes received from the origin for clients' requests. Push orders are counted
    /// separately.
    pub origin_bytes: u64,
    /// Requests sent to the origin for clients' requests.
    pub origin_requests: u64,
    /// Body bytes that push orders received from the origin, or caused other nodes to receive from
    /// it.
    #[serde(default)]
    pub push_origin_bytes: u64,
    /// Body bytes that push orders received from nodes of the same cluster.
    #[serde(default)]
    pub push_peer_bytes: u64,
    /// Requests answered from pushed slices: the yield of pushes.
    pub pushed_hits: u64,
    /// Bytes of these.
    pub pushed_hit_bytes: u64,
}

/// Requests for one URL in one report interval.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UrlCount {
    /// Site name.
    pub site: String,
    /// Absolute URL as clients ask for it (`http://video.demo.test/v/1/seg.m4s`), the cache key's.
    pub url: String,
    /// Requests.
    pub requests: u64,
    /// Body bytes served.
    pub bytes: u64,
    /// Complete length of the stored representation in bytes; 0 where unknown.
    pub size: u64,
}

/// Progress of a node with a push order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillProgress {
    /// `PushOrder::id`.
    pub order: String,
    /// Items in the order.
    pub items: u64,
    /// Items that were stored before and stay fresh long enough, or were found valid.
    pub already_warm: u64,
    /// Bytes of these.
    pub already_warm_bytes: u64,
    /// Items fetched by this order.
    pub warmed: u64,
    /// Bytes fetched from the origin so far, including those of failed and unfinished items.
    pub origin_bytes: u64,
    /// Bytes fetched from nodes of the same cluster, in the same way.
    pub peer_bytes: u64,
    /// Items that failed.
    pub failed: u64,
    /// Up to 8 reasons of failures, for people.
    pub reasons: Vec<String>,
    /// Items that were neither stored nor failed when the order ended.
    #[serde(default)]
    pub unfinished: u64,
    /// Whether the order has ended (all items done, out of time, or replaced).
    pub ended: bool,
    /// Real time at which it ended, milliseconds after the Unix epoch; 0 while it runs.
    pub ended_unix_ms: u64,
}

/// Effect of a purge on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeProgress {
    /// Journal revision of the purge.
    pub revision: u64,
    /// Stored responses that it invalidated on this node.
    pub responses: u64,
    /// Whether there may have been more: what lies on disk only is not counted for every scope.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_least: bool,
    /// Time at which it took effect, milliseconds after the Unix epoch.
    pub effective_unix_ms: u64,
}

/// `POST <name server admin>/rtt`, every report interval, from each edge.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RttReport {
    /// Edge name.
    pub node: String,
    /// Response bits a second over the last interval.
    pub egress_bits: u64,
    /// Client connections open now.
    pub connections: u64,
    /// Measurements by client prefix, at most 4,096 a report.
    pub samples: Vec<RttSample>,
}

/// Round-trip times to the clients of one prefix since the last report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RttSample {
    /// /24 of IPv4 or /48 of IPv6.
    pub prefix: ipnet::IpNet,
    /// Connections measured.
    pub count: u32,
    /// Least of them, microseconds.
    pub min_us: u32,
    /// Mean of the per-connection minima, microseconds.
    pub mean_us: u32,
}

/// `POST <control>/v1/reports/dns`, every report interval.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DnsReport {
    /// Node name.
    pub node: String,
    /// When the process started, milliseconds after the Unix epoch.
    pub started_unix_ms: u64,
    /// Journal revision the node has folded.
    pub revision: u64,
    /// Whether it is draining.
    pub draining: bool,
    /// Queries since start by rcode name (`NOERROR`).
    pub queries: BTreeMap<String, u64>,
    /// Selections since start.
    pub selections: Vec<SelectionCount>,
    /// Health of every edge as this node sees it.
    pub health: Vec<NodeHealth>,
    /// Prefixes with a fresh round-trip measurement.
    pub rtt_prefixes: u64,
    /// Source of locations (`built-in`, or the database's description and build date).
    pub geo_source: String,
    /// Revision of the challenges of authorities that it answers; 0 if there were none, and from nodes
    /// of an earlier version.
    #[serde(default)]
    pub challenges_revision: u64,
}

/// Steered answers of one kind since start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SelectionCount {
    /// Site name.
    pub site: String,
    /// Cluster given.
    pub cluster: String,
    /// Reason: a label value of `nearcast_dns_selections_total` (`geo`, `rtt`, `weighted`, ...).
    pub reason: String,
    /// Country code of the client's place (`NL`), or empty.
    pub country: String,
    /// Latitude of that place, degrees.
    pub latitude: f64,
    /// Longitude of that place, degrees.
    pub longitude: f64,
    /// Number of answers.
    pub count: u64,
}

/// An edge's health as one name server sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHealth {
    /// Edge name.
    pub node: String,
    /// Whether it is in the answers.
    pub up: bool,
    /// Begin of that state, milliseconds after the Unix epoch.
    pub since_unix_ms: u64,
    /// Reason, for people (`connection refused`, `status 503`, `ok`).
    pub reason: String,
    /// Duration of the last check, microseconds; 0 where it failed.
    pub check_us: u64,
}

/// `POST <control>/v1/reports/origin`, every report interval.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginReport {
    /// Node name.
    pub node: String,
    /// When the process started, milliseconds after the Unix epoch.
    pub started_unix_ms: u64,
    /// Whether it is draining.
    pub draining: bool,
    /// Requests since start by status class (`2xx`).
    pub requests: BTreeMap<String, u64>,
    /// Body bytes sent since start.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_number_and_its_word() {
        let mut hits = Vec::new();
        for (number, status) in CacheStatus::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, number, "{status:?}");
            assert_eq!(CacheStatus::of_word(status.as_str()), Some(status));
            hits.extend(status.is_hit().then(|| status.as_str()));
        }
        assert_eq!(hits, ["hit", "stale", "revalidated", "collapsed"]);
        assert_eq!(CacheStatus::of_word("new-status"), None);
        assert!(CacheStatus::Error.is_counted() && !CacheStatus::Local.is_counted());
    }
}
