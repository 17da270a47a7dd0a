//! The position of a node in a journal, and how an answer of control moves it. Pure.

use serde::{Deserialize, Serialize};

use crate::change::{Change, Entry, Purge, PurgeScope};

/// Control's answer to `GET /v1/journal?after=N&wait_ms=M&node=NAME&journal=ID`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalAnswer {
    /// Identity of the journal, [`crate::journal::Journal::id`].
    pub journal: String,
    /// Revision of its newest entry.
    pub revision: u64,
    /// Entries after the one asked about, oldest first, at most 256; empty when the wait has passed
    /// without any.
    pub entries: Vec<Entry>,
}

/// Where a node is in a journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// The journal's identity; none before the first answer of control.
    pub(super) journal: Option<String>,
    /// Newest revision of it that has been taken over.
    pub(super) cursor: u64,
    /// Highest revision that was ever handed to the role, in this journal or one before it.
    pub(super) given: u64,
    /// Newest revision of this journal when the node came to it from another; its purges up to
    /// there are covered.
    pub(super) joined_at: u64,
}

/// The position after an answer of the journal that is followed, and what it brings.
pub(super) fn advance(before: &Position, answer: &JournalAnswer) -> (Position, Vec<Entry>) {
    let mut position = Position {
        journal: Some(answer.journal.clone()),
        ..before.clone()
    };
    let mut entries = Vec::new();
    for entry in answer.entries.iter().filter(|e| e.revision > before.cursor) {
        position.cursor = entry.revision;
        let mut entry = entry.clone();
        if entry.revision > before.joined_at {
            entry.revision = entry.revision.max(position.given + 1);
            position.given = entry.revision;
        } else if matches!(entry.change, Change::Purge(_)) {
            continue;
        }
        entries.push(entry);
    }
    (position, entries)
}

/// The position at the start of another journal, and the purge of everything that goes with it.
pub(super) fn change_journal(
    before: &Position,
    answer: &JournalAnswer,
    now_unix_ms: u64,
) -> (Position, Vec<Entry>) {
    let revision = answer.revision.max(before.given + 1);
    let change = Change::Purge(Purge {
        scope: PurgeScope::All,
        soft: false,
    });
    let position = Position {
        journal: Some(answer.journal.clone()),
        cursor: 0,
        given: revision,
        joined_at: answer.revision,
    };
    (
        position,
        vec![Entry {
            revision,
            accepted_unix_ms: now_unix_ms,
            change,
        }],
    )
}
