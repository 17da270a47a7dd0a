//! Answers to nodes.

use nearcast_fleet::change::Entry;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Journal entries after a cursor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct JournalPage {
    /// Identity of the journal. A different identity means a different history.
    pub journal: String,
    /// Newest revision.
    pub revision: u64,
    /// Oldest first.
    #[schema(value_type = Vec<Object>)]
    pub entries: Vec<Entry>,
}

/// A report was applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct ReportAccepted {
    /// Newest journal revision.
    pub revision: u64,
}
