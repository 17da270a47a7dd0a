//! The journal as the API uses it: appended by one request at a time off the async threads, read by many long polls.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nearcast_fleet::journal::{Change, Entry, Journal, JournalError};
use tokio::sync::watch;

use crate::error::ApiError;

/// Entries in one answer to a node.
pub(crate) const PAGE_ENTRIES_MAX: usize = 256;
/// A shared journal.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    journal: Arc<Mutex<Journal>>,
    id: Arc<str>,
    revision: Arc<watch::Sender<u64>>,
}

impl Ledger {
    /// Opens the journal. Blocking.
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let journal = Journal::open(path)?;
        let (revision, _) = watch::channel(journal.revision());
        Ok(Self { id: journal.id().to_string().into(), journal: Arc::new(Mutex::new(journal)), revision: Arc::new(revision) })
    }

    /// Identity of the journal.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Newest revision.
    pub(crate) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Sees every new revision.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Appends a change: it is on disk when this returns. `before_told` runs after that and before any node can see the
    /// entry, so that no node can be ahead of what control knows.
    pub(crate) async fn append(
        &self,
        change: Change,
        now_unix_ms: u64,
        before_told: impl FnOnce(&Entry) + Send + 'static,
    ) -> Result<Entry, ApiError> {
        let this = self.clone();
        let appended = tokio::task::spawn_blocking(move || this.append_blocking(change, now_unix_ms, before_told)).await;
        appended.map_err(|_| ApiError::Internal("the journal's writer ended".to_owned()))?.map_err(ApiError::Storage)
    }

    /// [`Ledger::append`], blocking.
    pub(crate) fn append_blocking(
        &self,
        change: Change,
        now_unix_ms: u64,
        before_told: impl FnOnce(&Entry),
    ) -> Result<Entry, JournalError> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = journal.append(change, now_unix_ms)?;
        before_told(&entry);
        // Sent with the lock held, so that revisions are seen in order.
        self.revision.send_replace(entry.revision);
        Ok(entry)
    }

    /// [`Journal::reconcile`] with a follower that has seen another journal, or more of this one: everything is purged under a
    /// revision that neither side has used. Nothing happens for a follower that is merely behind. `false` for one that says what
    /// cannot be ([`Journal::is_plausible`]).
    pub(crate) async fn reconcile(
        &self,
        follower_journal: Option<String>,
        after: u64,
        now_unix_ms: u64,
        before_told: impl FnOnce(&Entry) + Send + 'static,
    ) -> Result<bool, ApiError> {
        let is_other = after > 0 && follower_journal.as_deref().is_some_and(|id| id != self.id());
        if after <= self.revision() && !is_other {
            return Ok(true);
        }
        let this = self.clone();
        let reconciled = tokio::task::spawn_blocking(move || {
            let mut journal = this.journal.lock().unwrap_or_else(PoisonError::into_inner);
            if !journal.is_plausible(follower_journal.as_deref(), after, now_unix_ms) {
                return Ok(false);
            }
            if let Some(entry) = journal.reconcile(follower_journal.as_deref(), after, now_unix_ms)? {
                tracing::warn!(revision = entry.revision, "a node has seen changes that this journal lacks: everything is purged");
                before_told(&entry);
                this.revision.send_replace(entry.revision);
            }
            Ok(true)
        });
        reconciled.await.map_err(|_| ApiError::Internal("the journal's writer ended".to_owned()))?.map_err(ApiError::Storage)
    }

    /// Leaves out what later entries supersede, when the journal has grown enough. A journal that cannot be compacted goes on as
    /// it was. Blocking.
    pub(crate) fn compact_blocking(&self, now_unix_ms: u64) {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if !journal.is_compaction_due() {
            return;
        }
        match journal.compact(now_unix_ms) {
            Ok(left_out) => tracing::info!(left_out, "the journal is compacted: later entries supersede those left out"),
            Err(error) => tracing::warn!(%error, "the journal cannot be compacted; it goes on as it was"),
        }
    }

    /// Up to `most` entries after a revision, oldest first. Blocking.
    pub(crate) fn after_blocking(&self, revision: u64, most: usize) -> Vec<Entry> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).after(revision, most)
    }

    /// What a node is given for its cursor, with orders whose time is over emptied (nobody fills for them any more, but their
    /// place in the order stays).
    pub(crate) async fn page(&self, after: u64, now_unix_ms: u64) -> Result<Vec<Entry>, ApiError> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || without_old_items(this.after_blocking(after, PAGE_ENTRIES_MAX), now_unix_ms))
            .await
            .map_err(|_| ApiError::Internal("the journal's reader ended".to_owned()))
    }
}

fn without_old_items(mut entries: Vec<Entry>, now_unix_ms: u64) -> Vec<Entry> {
    for entry in &mut entries {
        if let Change::Push(order) = &mut entry.change
            && order.not_after_unix_ms < now_unix_ms
        {
            order.items.clear();
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::journal::{PushItem, PushOrder};

    #[test]
    fn orders_whose_time_is_over_keep_their_place_alone() {
        let entry = |revision: u64, not_after_unix_ms| {
            let item = PushItem { site: "www".into(), url: "http://a/".into(), bytes: 1 };
            let order = PushOrder {
                id: revision.to_string(),
                cluster: "ams".into(),
                items: vec![item; 3],
                rate_bytes: 1,
                not_after_unix_ms,
                fresh_until_unix_ms: 0,
            };
            Entry { revision, accepted_unix_ms: 0, change: Change::Push(order) }
        };
        let given = without_old_items(vec![entry(1, 99), entry(2, 100), entry(3, 101)], 100);
        let items: Vec<_> = given
            .iter()
            .map(|e| match &e.change {
                Change::Push(o) => (e.revision, o.items.len()),
                _ => (0, 0),
            })
            .collect();
        assert_eq!(items, [(1, 0), (2, 3), (3, 3)]);
    }
}
