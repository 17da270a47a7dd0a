//! The journal of changes as control uses it: append, read after a revision, watch for new revisions.
//! Only this module accesses the journal's file.
//!
//! Changes that arrive while others are written wait and are then written in one group, with one sync
//! for all of them. A change is acknowledged when it is on disk. When a write fails, every change of
//! the group is refused.
//!
//! Nodes that follow closely are answered from the newest entries in memory, and nodes with the same
//! cursor get the same bytes. Only nodes further behind cost a read of the file.

mod recent;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use nearcast_fleet::change::{Change, Entry};
use nearcast_fleet::journal::{Journal, JournalError};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::journal::recent::{Encoded, RecentEntries, drop_expired_items};

pub(crate) use recent::PAGE_ENTRIES_MAX;

/// Changes that wait to be written; further ones are refused.
const WAITING_MAX: usize = 1024;
/// Changes that are written in one group.
const GROUP_MAX: usize = 256;
/// Concurrent reads of the file, for nodes further behind.
const READERS_MAX: usize = 2;

/// Why a change was not appended, or entries were not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppendError {
    /// [`WAITING_MAX`] is reached.
    #[error("too many changes wait for the disk")]
    Busy,
    /// A task ended, by a defect or with the process.
    #[error("the journal's {0} ended")]
    Ended(&'static str),
    /// The file cannot be written.
    #[error(transparent)]
    Storage(JournalError),
}

/// The outcome of [`SharedJournal::reconcile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reconciled {
    /// The follower can follow: the entries after its cursor, and the journal's identity in the
    /// answer, contain everything that it lacks.
    Follows,
    /// The journal was set back to this revision, below the follower's cursor. The answer must say so
    /// before anything is appended beyond that cursor. Otherwise the follower would miss the entries
    /// in between.
    SetBack(u64),
    /// The cursor is impossible ([`Journal::is_plausible`]).
    Implausible,
}

/// The journal. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct SharedJournal {
    journal: Arc<Mutex<Journal>>,
    queue: Arc<Mutex<Queue>>,
    recent: Arc<Mutex<RecentEntries>>,
    readers: Arc<Semaphore>,
    id: Arc<str>,
    revision: Arc<watch::Sender<u64>>,
}

/// Changes that wait to be written.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// A writer is running and will return for what waits.
    has_writer: bool,
}

/// A change, and the request that waits for it.
struct Waiting {
    change: Change,
    now_unix_ms: u64,
    on_accept: Box<dyn FnOnce(&Entry) + Send>,
    answer: oneshot::Sender<Result<Entry, JournalError>>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("change", &self.change)
            .finish_non_exhaustive()
    }
}

impl SharedJournal {
    /// Opens the journal. Blocking.
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let journal = Journal::open(path)?;
        let newest = journal.revision();
        Ok(Self {
            id: journal.id().into(),
            journal: Arc::new(Mutex::new(journal)),
            queue: Arc::default(),
            recent: Arc::new(Mutex::new(RecentEntries::after(newest))),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
            revision: Arc::new(watch::channel(newest).0),
        })
    }

    /// Identity of the journal.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Newest revision.
    pub(crate) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// A receiver of the newest revision.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Appends a change: it is on disk when this returns. `on_accept` runs when it is on disk and
    /// before any node can see the entry, so that no node is ahead of control's own state. It runs in
    /// the order of entries.
    pub(crate) async fn append(
        &self,
        change: Change,
        now_unix_ms: u64,
        on_accept: impl FnOnce(&Entry) + Send + 'static,
    ) -> Result<Entry, AppendError> {
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut queue = self.queue.lock();
            if queue.waiting.len() >= WAITING_MAX {
                return Err(AppendError::Busy);
            }
            queue.waiting.push_back(Waiting {
                change,
                now_unix_ms,
                on_accept: Box::new(on_accept),
                answer,
            });
            !std::mem::replace(&mut queue.has_writer, true)
        };
        if begins {
            let this = self.clone();
            tokio::task::spawn_blocking(move || this.write_waiting());
        }
        answered
            .await
            .map_err(|_| AppendError::Ended("writer"))?
            .map_err(AppendError::Storage)
    }

    /// Writes until no change waits. Blocking.
    fn write_waiting(&self) {
        let writing = Writing(self);
        loop {
            let mut journal = self.journal.lock();
            let group: Vec<Waiting> = {
                let mut queue = self.queue.lock();
                let count = queue.waiting.len().min(GROUP_MAX);
                if count == 0 {
                    queue.has_writer = false;
                    drop(queue);
                    std::mem::forget(writing);
                    return;
                }
                queue.waiting.drain(..count).collect()
            };
            let mut outcomes = Vec::with_capacity(group.len());
            let (changes, rest): (Vec<_>, Vec<_>) = group
                .into_iter()
                .map(|w| ((w.change, w.now_unix_ms), (w.on_accept, w.answer)))
                .unzip();
            for (outcome, (on_accept, answer)) in
                journal.append_group(changes).into_iter().zip(rest)
            {
                if let Ok(entry) = &outcome {
                    on_accept(entry);
                }
                outcomes.push((outcome, answer));
            }
            self.publish(
                outcomes
                    .iter()
                    .filter_map(|(outcome, _)| outcome.as_ref().ok()),
            );
            drop(journal);
            for (outcome, answer) in outcomes {
                // The requester may have disconnected.
                let _ = answer.send(outcome);
            }
        }
    }

    /// Makes entries visible to nodes. The caller holds the lock of the journal, so that revisions
    /// appear in order.
    fn publish<'a>(&self, entries: impl Iterator<Item = &'a Entry>) {
        let newest = self.recent.lock().add(entries);
        if newest > self.revision() {
            self.revision.send_replace(newest);
        }
    }

    /// [`SharedJournal::append`], blocking.
    pub(crate) fn append_blocking(
        &self,
        change: Change,
        now_unix_ms: u64,
        on_accept: impl FnOnce(&Entry),
    ) -> Result<Entry, JournalError> {
        let mut journal = self.journal.lock();
        let entry = journal.append(change, now_unix_ms)?;
        on_accept(&entry);
        self.publish(std::iter::once(&entry));
        Ok(entry)
    }

    /// [`Journal::reconcile`] with a follower that has seen another journal, or later revisions of this
    /// one: everything is purged under a revision that neither side has used. Nothing happens for a
    /// follower that is only behind.
    pub(crate) async fn reconcile(
        &self,
        follower_journal: Option<String>,
        after: u64,
        now_unix_ms: u64,
        on_accept: impl FnOnce(&Entry) + Send + 'static,
    ) -> Result<Reconciled, AppendError> {
        let is_other = after > 0
            && follower_journal
                .as_deref()
                .is_some_and(|id| id != self.id());
        if after <= self.revision() && !is_other {
            return Ok(Reconciled::Follows);
        }
        let this = self.clone();
        let reconciled = tokio::task::spawn_blocking(move || {
            let mut journal = this.journal.lock();
            if !journal.is_plausible(follower_journal.as_deref(), after, now_unix_ms) {
                return Ok(Reconciled::Implausible);
            }
            let before = journal.revision();
            if let Some(entry) =
                journal.reconcile(follower_journal.as_deref(), after, now_unix_ms)?
            {
                tracing::warn!(
                    revision = entry.revision,
                    "a node has seen changes that this journal lacks: everything is purged"
                );
                on_accept(&entry);
                this.publish(std::iter::once(&entry));
                return Ok(Reconciled::Follows);
            }
            Ok(if after > before && !is_other {
                Reconciled::SetBack(before)
            } else {
                Reconciled::Follows
            })
        });
        reconciled
            .await
            .map_err(|_| AppendError::Ended("writer"))?
            .map_err(AppendError::Storage)
    }

    /// [`Journal::heed_fleet_file`].
    pub(crate) fn heed_fleet_file(&self, changed_unix_s: u64) {
        self.journal.lock().heed_fleet_file(changed_unix_s);
    }

    /// Whether [`SharedJournal::compact_blocking`] would compact now.
    pub(crate) fn is_compaction_due(&self) -> bool {
        self.journal.lock().is_compaction_due()
    }

    /// Drops entries that later ones supersede, when the journal has grown enough. A journal that
    /// cannot be compacted stays as it is. Blocking.
    pub(crate) fn compact_blocking(&self, now_unix_ms: u64) {
        let mut journal = self.journal.lock();
        if !journal.is_compaction_due() {
            return;
        }
        match journal.compact(now_unix_ms) {
            Ok(dropped) => tracing::info!(
                dropped,
                "the journal is compacted: entries that later ones supersede are dropped"
            ),
            Err(error) => {
                tracing::warn!(%error, "the journal cannot be compacted; it stays as it is")
            }
        }
    }

    /// Up to `most` entries after a revision, oldest first. Blocking.
    pub(crate) fn after_blocking(&self, revision: u64, most: usize) -> Vec<Entry> {
        self.journal.lock().after(revision, most)
    }

    /// The answer to a node for its cursor, as JSON: the entries after it. Orders whose time is over
    /// have no items.
    pub(crate) async fn page(&self, after: u64, now_unix_ms: u64) -> Result<Bytes, AppendError> {
        if let Some(body) = self.recent.lock().page(&self.id, after, now_unix_ms) {
            return Ok(body);
        }
        let ended = |_| AppendError::Ended("reader");
        let permit = self
            .readers
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        // Another node with this cursor may have caused the read meanwhile.
        if let Some(body) = self.recent.lock().page(&self.id, after, now_unix_ms) {
            return Ok(body);
        }
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let entries =
                drop_expired_items(this.after_blocking(after, PAGE_ENTRIES_MAX), now_unix_ms);
            let entries: Vec<Encoded> = entries.iter().map(Encoded::of).collect();
            let body = this
                .recent
                .lock()
                .keep(&this.id, after, now_unix_ms, &entries);
            drop(permit);
            body
        });
        read.await.map_err(ended)
    }

    /// Holds changes back like a slow disk.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> parking_lot::MutexGuard<'_, Journal> {
        self.journal.lock()
    }
}

/// When the writer panics, waiting requests get an error and the next change starts a new writer.
/// Entries that were written but not published are read from the file.
struct Writing<'a>(&'a SharedJournal);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.has_writer = false;
        queue.waiting.clear();
        drop(queue);
        let journal = self.0.journal.lock();
        let newest = journal.revision();
        self.0.recent.lock().begin_after(newest);
        self.0.revision.send_replace(newest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::change::{PushItem, PushOrder};

    #[test]
    fn orders_whose_time_is_over_keep_their_place_alone() {
        let entry = |revision: u64, not_after_unix_ms| {
            let item = PushItem {
                site: "www".into(),
                url: "http://a/".into(),
                bytes: 1,
            };
            let order = PushOrder {
                id: revision.to_string(),
                cluster: "ams".into(),
                items: vec![item; 3],
                rate_bytes: 1,
                not_after_unix_ms,
                fresh_until_unix_ms: 0,
            };
            Entry {
                revision,
                accepted_unix_ms: 0,
                change: Change::Push(order),
            }
        };
        let given = drop_expired_items(vec![entry(1, 99), entry(2, 100), entry(3, 101)], 100);
        let items: Vec<_> = given
            .iter()
            .map(|e| match &e.change {
                Change::Push(o) => (e.revision, o.items.len()),
                _ => (0, 0),
            })
            .collect();
        assert_eq!(items, [(1, 0), (2, 3), (3, 3)]);
    }

    fn purge(n: usize) -> Change {
        use nearcast_fleet::change::{Purge, PurgeScope};
        Change::Purge(Purge {
            scope: PurgeScope::Tag(n.to_string()),
            soft: false,
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn changes_that_come_together_are_told_in_order_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = SharedJournal::open(&path).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let mut appends = tokio::task::JoinSet::new();
        for n in 0..500 {
            let (journal, told, seen) = (journal.clone(), told.clone(), journal.clone());
            appends.spawn(async move {
                let on_accept = move |entry: &Entry| {
                    assert!(seen.revision() < entry.revision, "no node sees it before");
                    told.lock().push(entry.revision);
                };
                journal.append(purge(n), 7, on_accept).await.unwrap()
            });
        }
        let mut acknowledged: Vec<Entry> = appends.join_all().await;
        acknowledged.sort_by_key(|entry| entry.revision);
        assert_eq!(*told.lock(), (1..=500).collect::<Vec<_>>());
        assert_eq!(journal.revision(), 500);
        assert_eq!(journal.after_blocking(0, 1000), acknowledged);
        assert_eq!(
            SharedJournal::open(&path).unwrap().after_blocking(0, 1000),
            acknowledged,
            "on disk"
        );
    }

    #[derive(serde::Deserialize)]
    struct Page {
        journal: String,
        revision: u64,
        entries: Vec<Entry>,
    }

    async fn page(journal: &SharedJournal, after: u64, now_unix_ms: u64) -> Page {
        serde_json::from_slice(&journal.page(after, now_unix_ms).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_page_is_the_same_from_memory_and_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = SharedJournal::open(&path).unwrap();
        let count = recent::ENTRIES_MAX as u64 + 300;
        for n in 0..count {
            journal
                .append_blocking(purge(n as usize), n, |_| ())
                .unwrap();
        }
        let fresh = SharedJournal::open(&path).unwrap();
        for after in [
            0,
            1,
            299,
            300,
            301,
            count - 257,
            count - 256,
            count - 1,
            count,
            count + 5,
        ] {
            let (warm, cold) = (page(&journal, after, 1).await, page(&fresh, after, 1).await);
            assert_eq!(
                (&warm.journal, warm.revision, &warm.entries),
                (&cold.journal, count, &cold.entries),
                "after {after}"
            );
            assert_eq!(
                warm.entries,
                journal.after_blocking(after, PAGE_ENTRIES_MAX),
                "after {after}"
            );
            assert!(warm.entries.len() <= PAGE_ENTRIES_MAX && warm.revision == cold.revision);
        }
        // Nodes with the same cursor share one answer; a new entry makes another.
        let (a, b) = (
            journal.page(count, 1).await.unwrap(),
            journal.page(count, 1).await.unwrap(),
        );
        assert_eq!(a.as_ptr(), b.as_ptr());
        journal.append_blocking(purge(0), 1, |_| ()).unwrap();
        assert_eq!(page(&journal, count, 1).await.entries.len(), 1);
    }

    #[tokio::test]
    async fn what_was_written_before_a_panic_reaches_the_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let journal = SharedJournal::open(&dir.path().join("journal")).unwrap();
        journal.append(purge(1), 1, |_| ()).await.unwrap();
        assert!(
            journal
                .append(purge(2), 1, |_| panic!("on purpose"))
                .await
                .is_err()
        );
        // The writer publishes it when it ends, which may be after the answer.
        journal
            .watch()
            .wait_for(|revision| *revision == 2)
            .await
            .unwrap();
        assert_eq!(
            (
                page(&journal, 1, 1).await.entries.len(),
                page(&journal, 0, 1).await.entries.len()
            ),
            (1, 2)
        );
        let blocking = journal.clone();
        let panicked = tokio::task::spawn_blocking(move || {
            blocking.append_blocking(purge(3), 1, |_| panic!("on purpose"))
        })
        .await;
        assert!(panicked.is_err());
        assert_eq!(
            journal.append(purge(4), 1, |_| ()).await.unwrap().revision,
            4
        );
        for after in 0..=4 {
            assert_eq!(
                page(&journal, after, 1).await.entries,
                journal.after_blocking(after, 10),
                "after {after}"
            );
        }
    }

    #[tokio::test]
    async fn an_order_in_memory_loses_its_items_when_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let journal = SharedJournal::open(&dir.path().join("journal")).unwrap();
        let item = PushItem {
            site: "www".into(),
            url: "http://a/".into(),
            bytes: 1,
        };
        let order = PushOrder {
            id: "o".into(),
            cluster: "ams".into(),
            items: vec![item],
            rate_bytes: 1,
            not_after_unix_ms: 100,
            fresh_until_unix_ms: 0,
        };
        journal
            .append_blocking(Change::Push(order), 1, |_| ())
            .unwrap();
        for (now, items) in [(1, 1), (100, 1), (101, 0), (101, 0)] {
            let page = page(&journal, 0, now).await;
            let Change::Push(order) = &page.entries[0].change else {
                panic!("it is an order")
            };
            assert_eq!(order.items.len(), items, "at {now}");
        }
    }
}
