//! What nodes and control say to one another about single requests: a question by its id, and what
//! each node has kept of it.

use serde::{Deserialize, Serialize};

/// Longest id of a request, in bytes.
pub const ID_BYTES_MAX: usize = 64;

/// Most records of one node about one id.
pub const RECORDS_MAX: usize = 16;

/// Whether a text can be the id of a request: 1 to 64 characters of a token (RFC 9110 section
/// 5.6.2).
pub fn is_id(text: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    (1..=ID_BYTES_MAX).contains(&text.len()) && text.iter().all(is_tchar)
}

/// A question of control's to all edges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceQuestion {
    /// Its number; numbers rise, also over restarts of control.
    pub number: u64,
    /// Id of the request.
    pub id: String,
}

/// The questions that a node has not seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceQuestions {
    /// Number of the newest question, open or not.
    pub newest: u64,
    /// Those that wait for an answer, in the order of their numbers.
    pub questions: Vec<TraceQuestion>,
}

/// A node's answer to one question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceAnswer {
    /// The node that answers.
    pub node: String,
    /// Number of the question.
    pub number: u64,
    /// What the node has kept; none where it does not know the id. At most [`RECORDS_MAX`].
    pub records: Vec<TraceRecord>,
}

/// One request as one node answered it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceRecord {
    /// When its head was read, milliseconds after the Unix epoch.
    pub time_unix_ms: u64,
    /// Node that answered it. Control sets this to the node that shows its key.
    #[serde(default)]
    pub node: String,
    /// Cluster of the node.
    #[serde(default)]
    pub cluster: String,
    /// Site; empty where the request has none.
    #[serde(default)]
    pub site: String,
    /// Address of the client, whole.
    pub client: String,
    /// Host that it names; empty where it names none.
    #[serde(default)]
    pub host: String,
    /// Method; empty where the head could not be read.
    #[serde(default)]
    pub method: String,
    /// Path with its query, cut after a kilobyte.
    #[serde(default)]
    pub path: String,
    /// Status of the response; 499 where the client left before there was one.
    pub status: u16,
    /// Bytes of the response's body that were sent.
    pub bytes: u64,
    /// How the cache was used, as in the metrics' label `cache_status`.
    pub cache: String,
    /// Why the request was forwarded (RFC 9211 section 2.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward: Option<String>,
    /// Why the origin's response was not stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_stored: Option<String>,
    /// `HTTP/1.1`, for example.
    pub protocol: String,
    /// Version of TLS; absent without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// Microseconds until the head of the response.
    pub first_byte_us: u64,
    /// Microseconds until the end of the response.
    pub total_us: u64,
    /// Microseconds for which the request waited for the origin; absent where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_us: Option<u64>,
    /// How the response ended early: `client-left` or `cut`; absent for a whole one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Another node of the cluster sent the request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_peer: bool,
}
