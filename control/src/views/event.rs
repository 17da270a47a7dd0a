//! Events.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An event.
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

/// The newest events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct EventList {
    pub newest: u64,
    /// Oldest first.
    pub events: Vec<Event>,
}
