//! Traces.

use nearcast_fleet::trace::TraceRecord;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the edges have kept of one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TraceView {
    pub id: String,
    /// One for each edge that had the request, or more where a sender has used an id twice; in the
    /// order of time.
    pub records: Vec<TraceRecordView>,
    /// Edges that have answered.
    pub answered: Vec<String>,
    /// Edges that have not, so they may know more.
    pub silent: Vec<String>,
}

/// One request as one edge answered it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TraceRecordView {
    /// When its head was read.
    pub time_unix_ms: u64,
    pub node: String,
    pub cluster: String,
    /// Empty where the request has none.
    pub site: String,
    /// Address of the client.
    pub client: String,
    pub host: String,
    /// Empty where the head could not be read.
    pub method: String,
    /// With the query; cut after a kilobyte.
    pub path: String,
    /// 499 where the client left before there was a response.
    pub status: u16,
    /// Bytes of the response's body that were sent.
    pub bytes: u64,
    /// As the metrics' label `cache_status`.
    pub cache: String,
    /// Why it was forwarded.
    pub forward: Option<String>,
    /// Why the origin's response was not stored.
    pub not_stored: Option<String>,
    pub protocol: String,
    /// Version of TLS.
    pub tls: Option<String>,
    pub first_byte_us: u64,
    pub total_us: u64,
    /// Time for which it waited for the origin.
    pub origin_us: Option<u64>,
    /// `client-left` or `cut`.
    pub ended: Option<String>,
    /// Another node of the cluster sent it.
    pub is_peer: bool,
}

impl From<TraceRecord> for TraceRecordView {
    fn from(record: TraceRecord) -> Self {
        Self {
            time_unix_ms: record.time_unix_ms,
            node: record.node,
            cluster: record.cluster,
            site: record.site,
            client: record.client,
            host: record.host,
            method: record.method,
            path: record.path,
            status: record.status,
            bytes: record.bytes,
            cache: record.cache,
            forward: record.forward,
            not_stored: record.not_stored,
            protocol: record.protocol,
            tls: record.tls,
            first_byte_us: record.first_byte_us,
            total_us: record.total_us,
            origin_us: record.origin_us,
            ended: record.ended,
            is_peer: record.is_peer,
        }
    }
}

/// An edge's answer was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TraceAccepted {
    /// Whether somebody still waits for it.
    pub is_awaited: bool,
}
