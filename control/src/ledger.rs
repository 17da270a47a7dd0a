//! The journal as the API uses it: written off the async threads, read by many long polls.
//!
//! Changes that come while others are written wait and are written together, with one sync for all
//! of them: who writes takes whatever waits, until nothing does. A change is acknowledged when it
//! is on disk, and refused with all that shared its record when that fails.
//!
//! Nodes that follow closely are answered from the newest entries in memory, and those with the
//! same cursor by one and the same bytes; only nodes further behind cost a read of the file.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nearcast_fleet::journal::{Change, Entry, Journal, JournalError};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::error::ApiError;

/// Entries in one answer to a node.
pub(crate) const PAGE_ENTRIES_MAX: usize = 256;
/// Changes that wait to be written; more are refused.
const WAITING_MAX: usize = 1024;
/// Changes that are written together.
const GROUP_MAX: usize = 256;
/// Newest entries in memory, and bytes of them.
const TAIL_ENTRIES_MAX: usize = 1024;
const TAIL_BYTES_MAX: usize = 8 << 20;
/// Bytes of entries in one answer, beyond which no further one is added.
const PAGE_BYTES_MAX: usize = 8 << 20;
/// Answers kept for nodes with the same cursor.
const PAGES_MAX: usize = 8;
/// Reads of the file at a time, for nodes further behind.
const READERS_MAX: usize = 2;

/// What came of [`Ledger::reconcile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reconciled {
    /// The entries after its cursor tell the follower all that it lacks, the journal's identity in
    /// the answer among them.
    Told,
    /// The journal was set back: it stood at this revision, below the follower's cursor. The answer
    /// must say so before anything is appended beyond that cursor, as the follower would take it
    /// for the next step and lack what lies between.
    SetBack(u64),
    /// It says what cannot be ([`Journal::is_plausible`]).
    NotBelieved,
}

/// A shared journal.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    journal: Arc<Mutex<Journal>>,
    queue: Arc<Mutex<Queue>>,
    tail: Arc<Mutex<Tail>>,
    readers: Arc<Semaphore>,
    id: Arc<str>,
    revision: Arc<watch::Sender<u64>>,
}

/// Changes that wait to be written.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Somebody writes and will come back for what waits.
    is_written: bool,
}

struct Waiting {
    change: Change,
    now_unix_ms: u64,
    before_told: Box<dyn FnOnce(&Entry) + Send>,
    answer: oneshot::Sender<Result<Entry, JournalError>>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("change", &self.change)
            .finish_non_exhaustive()
    }
}

/// The newest entries, as nodes are given them.
#[derive(Debug)]
struct Tail {
    entries: VecDeque<Encoded>,
    bytes: usize,
    /// Newest revision that is not in here: a cursor from there on needs no file.
    floor: u64,
    newest: u64,
    /// Answers by cursor, made at the newest revision.
    pages: VecDeque<Page>,
}

#[derive(Debug, Clone)]
struct Encoded {
    revision: u64,
    json: Bytes,
    /// When its items mean nothing any more; none for what has no such end.
    ends_unix_ms: Option<u64>,
}

#[derive(Debug)]
struct Page {
    after: u64,
    /// An entry in it loses its items then.
    good_until_unix_ms: u64,
    body: Bytes,
}

impl Ledger {
    /// Opens the journal. Blocking.
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let journal = Journal::open(path)?;
        let newest = journal.revision();
        Ok(Self {
            id: journal.id().into(),
            journal: Arc::new(Mutex::new(journal)),
            queue: Arc::default(),
            tail: Arc::new(Mutex::new(Tail {
                entries: VecDeque::new(),
                bytes: 0,
                floor: newest,
                newest,
                pages: VecDeque::new(),
            })),
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

    /// Sees new revisions, the newest of those that came together.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Appends a change: it is on disk when this returns. `before_told` runs after that and before
    /// any node can see the entry, so that no node can be ahead of what control knows; entries are
    /// told in their order.
    pub(crate) async fn append(
        &self,
        change: Change,
        now_unix_ms: u64,
        before_told: impl FnOnce(&Entry) + Send + 'static,
    ) -> Result<Entry, ApiError> {
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut queue = self.queue();
            if queue.waiting.len() >= WAITING_MAX {
                return Err(ApiError::TooBusy("too many changes wait for the disk"));
            }
            queue.waiting.push_back(Waiting {
                change,
                now_unix_ms,
                before_told: Box::new(before_told),
                answer,
            });
            !std::mem::replace(&mut queue.is_written, true)
        };
        if begins {
            let this = self.clone();
            tokio::task::spawn_blocking(move || this.write_waiting());
        }
        answered
            .await
            .map_err(|_| ApiError::Internal("the journal's writer ended".to_owned()))?
            .map_err(ApiError::Storage)
    }

    /// Writes what waits until nothing does. Blocking.
    fn write_waiting(&self) {
        let writing = Writing(self);
        loop {
            let mut journal = self.journal();
            let group: Vec<Waiting> = {
                let mut queue = self.queue();
                let count = queue.waiting.len().min(GROUP_MAX);
                if count == 0 {
                    queue.is_written = false;
                    drop(queue);
                    std::mem::forget(writing);
                    return;
                }
                queue.waiting.drain(..count).collect()
            };
            let mut told = Vec::with_capacity(group.len());
            let (changes, rest): (Vec<_>, Vec<_>) = group
                .into_iter()
                .map(|w| ((w.change, w.now_unix_ms), (w.before_told, w.answer)))
                .unzip();
            for (outcome, (before_told, answer)) in
                journal.append_group(changes).into_iter().zip(rest)
            {
                if let Ok(entry) = &outcome {
                    before_told(entry);
                }
                told.push((outcome, answer));
            }
            self.tell(told.iter().filter_map(|(outcome, _)| outcome.as_ref().ok()));
            drop(journal);
            for (outcome, answer) in told {
                // Whoever asked may have gone.
                let _ = answer.send(outcome);
            }
        }
    }

    /// Lets nodes see entries. Called with the journal locked, so that revisions are seen in order.
    fn tell<'a>(&self, entries: impl Iterator<Item = &'a Entry>) {
        let newest = self.tail().add(entries);
        if newest > self.revision() {
            self.revision.send_replace(newest);
        }
    }

    /// [`Ledger::append`], blocking.
    pub(crate) fn append_blocking(
        &self,
        change: Change,
        now_unix_ms: u64,
        before_told: impl FnOnce(&Entry),
    ) -> Result<Entry, JournalError> {
        let mut journal = self.journal();
        let entry = journal.append(change, now_unix_ms)?;
        before_told(&entry);
        self.tell(std::iter::once(&entry));
        Ok(entry)
    }

    /// [`Journal::reconcile`] with a follower that has seen another journal, or more of this one:
    /// everything is purged under a revision that neither side has used. Nothing happens for a
    /// follower that is merely behind.
    pub(crate) async fn reconcile(
        &self,
        follower_journal: Option<String>,
        after: u64,
        now_unix_ms: u64,
        before_told: impl FnOnce(&Entry) + Send + 'static,
    ) -> Result<Reconciled, ApiError> {
        let is_other = after > 0
            && follower_journal
                .as_deref()
                .is_some_and(|id| id != self.id());
        if after <= self.revision() && !is_other {
            return Ok(Reconciled::Told);
        }
        let this = self.clone();
        let reconciled = tokio::task::spawn_blocking(move || {
            let mut journal = this.journal.lock().unwrap_or_else(PoisonError::into_inner);
            if !journal.is_plausible(follower_journal.as_deref(), after, now_unix_ms) {
                return Ok(Reconciled::NotBelieved);
            }
            let before = journal.revision();
            if let Some(entry) =
                journal.reconcile(follower_journal.as_deref(), after, now_unix_ms)?
            {
                tracing::warn!(
                    revision = entry.revision,
                    "a node has seen changes that this journal lacks: everything is purged"
                );
                before_told(&entry);
                this.tell(std::iter::once(&entry));
                return Ok(Reconciled::Told);
            }
            Ok(if after > before && !is_other {
                Reconciled::SetBack(before)
            } else {
                Reconciled::Told
            })
        });
        reconciled
            .await
            .map_err(|_| ApiError::Internal("the journal's writer ended".to_owned()))?
            .map_err(ApiError::Storage)
    }

    /// [`Journal::heed_fleet_file`].
    pub(crate) fn heed_fleet_file(&self, changed_unix_s: u64) {
        self.journal().heed_fleet_file(changed_unix_s);
    }

    /// Whether [`Ledger::compact_blocking`] would do anything.
    pub(crate) fn is_compaction_due(&self) -> bool {
        self.journal().is_compaction_due()
    }

    /// Leaves out what later entries supersede, when the journal has grown enough. A journal that
    /// cannot be compacted goes on as it was. Blocking.
    pub(crate) fn compact_blocking(&self, now_unix_ms: u64) {
        let mut journal = self.journal();
        if !journal.is_compaction_due() {
            return;
        }
        match journal.compact(now_unix_ms) {
            Ok(left_out) => tracing::info!(
                left_out,
                "the journal is compacted: later entries supersede those left out"
            ),
            Err(error) => {
                tracing::warn!(%error, "the journal cannot be compacted; it goes on as it was")
            }
        }
    }

    /// Up to `most` entries after a revision, oldest first. Blocking.
    pub(crate) fn after_blocking(&self, revision: u64, most: usize) -> Vec<Entry> {
        self.journal().after(revision, most)
    }

    /// The answer to a node for its cursor, as JSON: what comes after it, with orders whose time is
    /// over emptied (nobody fills for them any more, but their place in the order stays).
    pub(crate) async fn page(&self, after: u64, now_unix_ms: u64) -> Result<Bytes, ApiError> {
        if let Some(body) = self.tail().page(&self.id, after, now_unix_ms) {
            return Ok(body);
        }
        let ended = |_| ApiError::Internal("the journal's reader ended".to_owned());
        let permit = self
            .readers
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        // Another one with this cursor may have read it meanwhile.
        if let Some(body) = self.tail().page(&self.id, after, now_unix_ms) {
            return Ok(body);
        }
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let entries =
                without_old_items(this.after_blocking(after, PAGE_ENTRIES_MAX), now_unix_ms);
            let entries: Vec<Encoded> = entries.iter().map(Encoded::of).collect();
            let body = this.tail().keep(&this.id, after, now_unix_ms, &entries);
            drop(permit);
            body
        });
        read.await.map_err(ended)
    }

    /// Lets changes wait as they would for a slow disk.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> MutexGuard<'_, Journal> {
        self.journal()
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Should the writer panic, those who wait are told and the next change begins anew. What it has
/// written and not told is read from the file.
struct Writing<'a>(&'a Ledger);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.is_written = false;
        queue.waiting.clear();
        drop(queue);
        let journal = self.0.journal();
        let newest = journal.revision();
        self.0.tail().begin_after(newest);
        self.0.revision.send_replace(newest);
    }
}

impl Encoded {
    fn of(entry: &Entry) -> Self {
        let json =
            serde_json::to_vec(entry).expect("an entry has string keys and no failing parts");
        let ends_unix_ms = match &entry.change {
            Change::Push(order) if !order.items.is_empty() => Some(order.not_after_unix_ms),
            _ => None,
        };
        Self {
            revision: entry.revision,
            json: json.into(),
            ends_unix_ms,
        }
    }

    /// As it is at a time.
    fn at(&self, now_unix_ms: u64) -> Self {
        if self.ends_unix_ms.is_none_or(|end| end >= now_unix_ms) {
            return self.clone();
        }
        let entry: Entry = serde_json::from_slice(&self.json).expect("it was encoded here");
        Self::of(&without_old_items(vec![entry], now_unix_ms)[0])
    }
}

impl Tail {
    /// Takes in new entries; gives the newest revision.
    fn add<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) -> u64 {
        for entry in entries {
            // Entries between were written and not told, or are of no journal: a cursor before them
            // needs the file.
            if entry.revision != self.newest + 1 {
                self.begin_after(entry.revision - 1);
            }
            let encoded = Encoded::of(entry);
            self.bytes += encoded.json.len();
            self.newest = entry.revision;
            self.entries.push_back(encoded);
            while self.entries.len() > TAIL_ENTRIES_MAX || self.bytes > TAIL_BYTES_MAX {
                let Some(oldest) = self.entries.pop_front() else {
                    break;
                };
                self.bytes -= oldest.json.len();
                self.floor = oldest.revision;
            }
        }
        self.pages.clear();
        self.newest
    }

    /// Forgets all up to a revision, which is on disk.
    fn begin_after(&mut self, revision: u64) {
        self.entries.clear();
        self.pages.clear();
        (self.bytes, self.floor, self.newest) = (0, revision, revision);
    }

    /// The answer for a cursor, when no file is needed for it.
    fn page(&mut self, id: &str, after: u64, now_unix_ms: u64) -> Option<Bytes> {
        if let Some(page) = self
            .pages
            .iter()
            .find(|p| p.after == after && p.good_until_unix_ms >= now_unix_ms)
        {
            return Some(page.body.clone());
        }
        if after < self.floor {
            return None;
        }
        let first = self.entries.partition_point(|e| e.revision <= after);
        let mut bytes = 0;
        let entries: Vec<Encoded> = self
            .entries
            .range(first..)
            .take(PAGE_ENTRIES_MAX)
            .enumerate()
            .take_while(|(n, e)| {
                bytes += e.json.len();
                *n == 0 || bytes <= PAGE_BYTES_MAX
            })
            .map(|(_, e)| e.at(now_unix_ms))
            .collect();
        Some(self.keep(id, after, now_unix_ms, &entries))
    }

    /// Makes an answer, and keeps it for others with the same cursor.
    fn keep(&mut self, id: &str, after: u64, now_unix_ms: u64, entries: &[Encoded]) -> Bytes {
        let newest = entries
            .last()
            .map_or(self.newest, |e| e.revision.max(self.newest));
        let mut body =
            format!("{{\"journal\":\"{id}\",\"revision\":{newest},\"entries\":[").into_bytes();
        for (n, entry) in entries.iter().enumerate() {
            if n > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&entry.json);
        }
        body.extend_from_slice(b"]}");
        let body = Bytes::from(body);
        if self.pages.len() == PAGES_MAX {
            self.pages.pop_front();
        }
        let good_until_unix_ms = entries
            .iter()
            .filter_map(|e| e.ends_unix_ms)
            .filter(|end| *end >= now_unix_ms)
            .min()
            .unwrap_or(u64::MAX);
        self.pages.retain(|p| p.after != after);
        self.pages.push_back(Page {
            after,
            good_until_unix_ms,
            body: body.clone(),
        });
        body
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

    fn purge(n: usize) -> Change {
        use nearcast_fleet::journal::{Purge, PurgeScope};
        Change::Purge(Purge {
            scope: PurgeScope::Tag(n.to_string()),
            soft: false,
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn changes_that_come_together_are_told_in_order_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let ledger = Ledger::open(&path).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let mut appends = tokio::task::JoinSet::new();
        for n in 0..500 {
            let (ledger, told, seen) = (ledger.clone(), told.clone(), ledger.clone());
            appends.spawn(async move {
                let before_told = move |entry: &Entry| {
                    assert!(seen.revision() < entry.revision, "no node sees it before");
                    told.lock().unwrap().push(entry.revision);
                };
                ledger.append(purge(n), 7, before_told).await.unwrap()
            });
        }
        let mut acknowledged: Vec<Entry> = appends.join_all().await;
        acknowledged.sort_by_key(|entry| entry.revision);
        assert_eq!(*told.lock().unwrap(), (1..=500).collect::<Vec<_>>());
        assert_eq!(ledger.revision(), 500);
        assert_eq!(ledger.after_blocking(0, 1000), acknowledged);
        assert_eq!(
            Ledger::open(&path).unwrap().after_blocking(0, 1000),
            acknowledged,
            "on disk"
        );
    }

    #[derive(serde::Deserialize)]
    struct Answer {
        journal: String,
        revision: u64,
        entries: Vec<Entry>,
    }

    async fn page(ledger: &Ledger, after: u64, now_unix_ms: u64) -> Answer {
        serde_json::from_slice(&ledger.page(after, now_unix_ms).await.unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_page_is_the_same_from_memory_and_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let ledger = Ledger::open(&path).unwrap();
        let count = TAIL_ENTRIES_MAX as u64 + 300;
        for n in 0..count {
            ledger
                .append_blocking(purge(n as usize), n, |_| ())
                .unwrap();
        }
        let fresh = Ledger::open(&path).unwrap();
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
            let (warm, cold) = (page(&ledger, after, 1).await, page(&fresh, after, 1).await);
            assert_eq!(
                (&warm.journal, warm.revision, &warm.entries),
                (&cold.journal, count, &cold.entries),
                "after {after}"
            );
            assert_eq!(
                warm.entries,
                ledger.after_blocking(after, PAGE_ENTRIES_MAX),
                "after {after}"
            );
            assert!(warm.entries.len() <= PAGE_ENTRIES_MAX && warm.revision == cold.revision);
        }
        // Followers at the same place share one answer; a new entry makes another.
        let (a, b) = (
            ledger.page(count, 1).await.unwrap(),
            ledger.page(count, 1).await.unwrap(),
        );
        assert_eq!(a.as_ptr(), b.as_ptr());
        ledger.append_blocking(purge(0), 1, |_| ()).unwrap();
        assert_eq!(page(&ledger, count, 1).await.entries.len(), 1);
    }

    #[tokio::test]
    async fn what_was_written_before_a_panic_reaches_the_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("journal")).unwrap();
        ledger.append(purge(1), 1, |_| ()).await.unwrap();
        assert!(
            ledger
                .append(purge(2), 1, |_| panic!("on purpose"))
                .await
                .is_err()
        );
        // The writer tells it on its way out, which whoever asked need not see.
        ledger
            .watch()
            .wait_for(|revision| *revision == 2)
            .await
            .unwrap();
        assert_eq!(
            (
                page(&ledger, 1, 1).await.entries.len(),
                page(&ledger, 0, 1).await.entries.len()
            ),
            (1, 2)
        );
        let blocking = ledger.clone();
        let panicked = tokio::task::spawn_blocking(move || {
            blocking.append_blocking(purge(3), 1, |_| panic!("on purpose"))
        })
        .await;
        assert!(panicked.is_err());
        assert_eq!(
            ledger.append(purge(4), 1, |_| ()).await.unwrap().revision,
            4
        );
        for after in 0..=4 {
            assert_eq!(
                page(&ledger, after, 1).await.entries,
                ledger.after_blocking(after, 10),
                "after {after}"
            );
        }
    }

    #[tokio::test]
    async fn an_order_in_memory_loses_its_items_when_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("journal")).unwrap();
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
        ledger
            .append_blocking(Change::Push(order), 1, |_| ())
            .unwrap();
        for (now, items) in [(1, 1), (100, 1), (101, 0), (101, 0)] {
            let page = page(&ledger, 0, now).await;
            let Change::Push(order) = &page.entries[0].change else {
                panic!("it is an order")
            };
            assert_eq!(order.items.len(), items, "at {now}");
        }
    }
}
