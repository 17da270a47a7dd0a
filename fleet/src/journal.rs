//! The control journal: an append-only, checksummed, fsynced file of changes, in the order that every node
//! folds them.

use serde::{Deserialize, Serialize};

/// One change, with its place in the order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// 1 for the first, one more each.
    pub revision: u64,
    /// When it was accepted, milliseconds after the Unix epoch.
    pub accepted_unix_ms: u64,
    /// What changes.
    pub change: Change,
}

/// What a journal entry changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Change {
    /// Stored responses are invalidated.
    Purge(Purge),
    /// The fleet file has this text from now on (it was checked before it was accepted).
    FleetFile {
        /// The whole file.
        text: String,
    },
    /// A cluster is asked to fill itself.
    Push(PushOrder),
}

/// A purge as an operator asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// What it covers.
    pub scope: PurgeScope,
    /// `true` makes covered responses stale (they may be validated); `false` makes them unusable.
    #[serde(default)]
    pub soft: bool,
}

/// What a purge covers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "by", content = "value", rename_all = "snake_case")]
pub enum PurgeScope {
    /// One absolute URL, every variant.
    Url(String),
    /// Every URL of a host whose path starts with this one's, cut at a `/`: `http://host/path/`.
    Prefix(String),
    /// Every URL of a host.
    Host(String),
    /// Every URL of a site.
    Site(String),
    /// Every response with this tag.
    Tag(String),
    /// Everything.
    All,
}

/// What a cluster should have before its next peak.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PushOrder {
    /// Unique name of the order.
    pub id: String,
    /// Cluster it is for.
    pub cluster: String,
    /// Most valuable first.
    pub items: Vec<PushItem>,
    /// Bytes a second that the whole cluster may fetch for it.
    pub rate_bytes: u64,
    /// Real time at which it must have ended, milliseconds after the Unix epoch.
    pub not_after_unix_ms: u64,
}

/// One URL to fill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PushItem {
    /// Site name.
    pub site: String,
    /// Absolute URL as clients ask for it.
    pub url: String,
    /// Expected length in bytes.
    pub bytes: u64,
}

/// The journal file of the control role.
#[derive(Debug)]
pub struct Journal {}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Reading or writing failed; a full disk shows up here, and nothing was acknowledged.
    #[error("journal {path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A record before the last one is damaged: serving would lose an acknowledged change.
    #[error("journal {path} is damaged at byte {offset}: {reason}")]
    Damaged {
        /// The file.
        path: std::path::PathBuf,
        /// Where.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// The change is larger than a record may be (16 MiB).
    #[error("a change of {bytes} bytes is too large for the journal (limit {limit})")]
    TooLarge {
        /// Its encoded length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

impl Journal {
    /// Opens or makes the journal, checks every record and cuts off an unfinished last one.
    pub fn open(path: &std::path::Path) -> Result<Self, JournalError> {
        let _ = path;
        unreachable!()
    }

    /// Appends a change; it is on disk when this returns. Blocking.
    pub fn append(&mut self, change: Change, accepted_unix_ms: u64) -> Result<Entry, JournalError> {
        let _ = (change, accepted_unix_ms);
        unreachable!()
    }

    /// Revision of the newest entry; 0 for an empty journal.
    pub fn revision(&self) -> u64 {
        unreachable!()
    }

    /// Up to `most` entries after `revision`, oldest first.
    pub fn after(&self, revision: u64, most: usize) -> Vec<Entry> {
        let _ = (revision, most);
        unreachable!()
    }
}
