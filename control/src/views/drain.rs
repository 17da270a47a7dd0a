//! Drain requests and drains.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A request to drain an edge or a cluster, or to return it to service.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainRequest {
    /// An edge or a cluster.
    pub name: String,
    /// `node` or `cluster`; needed when both have that name.
    #[serde(default)]
    pub kind: Option<String>,
    /// `false` returns it to service.
    #[serde(default = "yes")]
    pub drained: bool,
    /// Drain even when a site is left without an edge in service.
    #[serde(default)]
    pub force: bool,
    /// Time to wait for the name servers, at most 60,000; 5,000 by default.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

fn yes() -> bool {
    true
}

/// A drain, and the name servers that have applied it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainView {
    pub name: String,
    /// `node` or `cluster`.
    pub kind: String,
    pub drained: bool,
    /// Whether this request changed anything; `false` in lists.
    pub changed: bool,
    /// Journal revision of the change; 0 when there is none.
    pub revision: u64,
    /// When it was drained, or returned by this request; 0 when unknown.
    pub since_unix_ms: u64,
    /// The edges concerned.
    pub nodes: Vec<String>,
    /// Time after which no resolver that obeys TTLs returns the addresses, counted from when every
    /// name server has applied the drain.
    pub ttl_seconds: u64,
    /// Name servers that have applied the change.
    pub seen: Vec<String>,
    /// Name servers that report and have not applied it.
    pub missing: Vec<String>,
    /// Name servers that do not report, so nothing is known about them.
    pub silent: Vec<String>,
    /// Whether every name server that reports has applied it.
    pub complete: bool,
    /// Sites without any edge in service. Their clients still get addresses, since any answer is
    /// better than none.
    pub sites_without_nodes: Vec<String>,
    /// Remarks for people.
    pub notes: Vec<String>,
}

/// All drains in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainsView {
    pub drains: Vec<DrainView>,
}
