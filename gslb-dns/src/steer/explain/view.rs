//! The JSON of an explanation.

use std::net::IpAddr;

use serde::Serialize;

/// The answer of `GET /explain`.
#[derive(Debug, Serialize)]
pub(in crate::steer) struct Explanation {
    pub(super) host: String,
    pub(super) r#type: String,
    pub(super) client: ClientView,
    pub(super) dns: DnsView,
    /// For a name whose addresses are steered.
    #[serde(flatten)]
    pub(super) steered: Option<SteeredView>,
    pub(super) revision: u64,
    /// The explanation in one sentence.
    pub(super) summary: String,
}

/// The response that a query for the name gets.
#[derive(Debug, Serialize)]
pub(super) struct DnsView {
    /// The response code's name.
    pub(super) status: &'static str,
    /// `steered`, `records`, `no-data`, `no-name`, `delegated`, `elsewhere` or `too-long`.
    pub(super) kind: &'static str,
    /// Apex of the zone that the last name is in.
    pub(super) zone: Option<String>,
    /// Aliases that were followed, then records.
    pub(super) records: Vec<RecordView>,
    /// The site whose hosts are `*`, when no site names this host and DNS does not steer it.
    pub(super) catch_all: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct RecordView {
    pub(super) owner: String,
    pub(super) ttl: u32,
    pub(super) r#type: String,
    pub(super) data: String,
}

/// The choice for a steered name, with everything that led to it.
#[derive(Debug, Serialize)]
pub(super) struct SteeredView {
    pub(super) site: String,
    pub(super) steered_name: String,
    pub(super) family: &'static str,
    pub(super) policy: &'static str,
    pub(super) place: Option<LocationView>,
    pub(super) geo_source: String,
    pub(super) candidates: Vec<CandidateView>,
    pub(super) chosen: Option<ChosenView>,
    pub(super) reason: &'static str,
    pub(super) scope_prefix: u8,
    /// The network that the answer is valid for.
    pub(super) scope: String,
    pub(super) ttl: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct ClientView {
    pub(super) address: IpAddr,
    pub(super) source_prefix: u8,
    /// `client` or `resolver`: whose address it is.
    pub(super) from: &'static str,
    pub(super) resolver: Option<IpAddr>,
}

#[derive(Debug, Serialize)]
pub(super) struct LocationView {
    pub(super) country: String,
    pub(super) latitude: f64,
    pub(super) longitude: f64,
    pub(super) source: &'static str,
    /// The network around the client that has this location.
    pub(super) prefix: String,
}

#[derive(Debug, Serialize)]
pub(super) struct CandidateView {
    pub(super) cluster: String,
    pub(super) label: String,
    pub(super) distance_km: Option<f64>,
    pub(super) rtt_ms: Option<f64>,
    pub(super) rtt: Option<MeasuredView>,
    /// Load of its nodes that are up, as a share of their capacity (it may pass 1); none without
    /// capacities or reports.
    pub(super) load: Option<f64>,
    /// `up`, `degraded` (some nodes down), `drained` (all of them) or `down`.
    pub(super) health: &'static str,
    pub(super) nodes: Vec<NodeView>,
    pub(super) weight: u32,
    /// Position in the policy's ranking, from 1; none under weighted and round-robin steering.
    pub(super) rank: Option<usize>,
    /// Why it was not chosen; none for the chosen one.
    pub(super) rejected: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct MeasuredView {
    /// `prefix`, or `aggregate` for the mean over the /20 or /40.
    pub(super) from: &'static str,
    pub(super) min_ms: Option<f64>,
    pub(super) connections: Option<u32>,
    pub(super) age_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct NodeView {
    pub(super) node: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) up: bool,
    /// An operator keeps it out of answers, whatever its health.
    pub(super) drained: bool,
    pub(super) full: bool,
    pub(super) since_unix_ms: u64,
    pub(super) reason: String,
    pub(super) check_us: u64,
    pub(super) egress_bits: Option<u64>,
    pub(super) capacity_bits: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChosenView {
    pub(super) cluster: String,
    pub(super) label: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) reason: &'static str,
}
