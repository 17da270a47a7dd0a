//! The records of the state log: what reports and events have shown and nobody can repeat after a
//! restart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fleet_state::order_record::OrderRecord;
use crate::fleet_state::purge_record::PurgeRecord;
use crate::views::Event;

/// One record. Records may repeat: of each kind and subject, the newest holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub(crate) enum StateRecord {
    /// The journal that the revisions in other records belong to.
    Journal { id: String },
    /// A purge with everything known about it.
    Purge(PurgeRecord),
    /// An edge confirms purges.
    Confirmed {
        node: String,
        /// Revision, responses covered, time of confirmation.
        purges: Vec<(u64, u64, u64)>,
        /// Revisions of those of which there may have been more responses.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        at_least: Vec<u64>,
    },
    /// Every edge has confirmed a purge.
    Complete { revision: u64, at_unix_ms: u64 },
    /// A push order with everything known about it.
    #[serde(rename = "push")]
    Order(Box<OrderRecord>),
    /// The states of nodes and clusters that the last events announced.
    #[serde(rename = "told")]
    AnnouncedStates {
        nodes: BTreeMap<String, String>,
        clusters: BTreeMap<String, String>,
    },
    /// An event.
    Event(Event),
}
