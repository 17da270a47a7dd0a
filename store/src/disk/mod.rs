//! The disk tier: a log of records in two data files, and directories in memory of what lies where.
//!
//! All that a response on disk costs in memory is its entry in the directory. A slice that cannot be
//! read is a miss. A write that is not possible is dropped and counted. Neither is ever an error for
//! a client.
//!
//! - [`record`]: the format of records; [`pool`]: the regions of one pool; [`superblock`]: identity,
//!   format, and when what is on disk is doubtful.
//! - [`queue`]: what waits to be written; [`writer`]: the one thread that writes; [`reclaim`]: frees
//!   regions.
//! - [`removals`]: the durable record of removals.
//! - [`purge`]: removes what a purge covers from the directories.
//! - [`recovery`]: opens the files and builds the directories; [`shared`]: what the threads share.
//!
//! # What was removed stays removed
//! The header on disk is the truth: a record counts if its header is valid in the present use of its
//! region. A removal takes the entry out of the directory, is recorded durably, and then the writer
//! destroys the header in place. Only when that is synced may the record of the removal be written
//! over. A head that is replaced by a newer one of its body is destroyed too, and so is a record that
//! the directory has no room for, so that there is never a valid head on disk that the directory does
//! not know, beside those that a recorded removal covers. So no loss of a checkpoint, no order of
//! regions and no power cut brings a removed response back.
//!
//! A region is reclaimed by a durable change of the table of regions before the directory forgets
//! its records. So where the directory has no entry, there is nothing on disk to remove, and a
//! removal needs no writing.

pub(crate) mod fuzz;
#[cfg(test)]
mod histories;
mod pool;
mod purge;
mod queue;
mod reclaim;
mod record;
mod recovery;
mod removals;
mod shared;
mod superblock;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

pub use self::purge::{Frontier, Purged};
use self::queue::Work;
use self::record::Header;
use self::recovery::{Layout, Recovery};
use self::removals::Turn;
use self::shared::{Phase, Shared, body_hash};
use self::superblock::Unusable;
use self::writer::Writer;
use crate::arena::Arena;
use crate::body::{BodyId, Pool, SliceKey, StoredBody};
use crate::budget::Budget;
use crate::config::DiskConfig;
use crate::directory::{Found, Place};
use crate::groups::Group;
use crate::io::{DiskPool, DiskState, Files, Patience, RealFiles, Unavailable, is_left};
use crate::measures::SLICE_BYTES;

/// Bounds of the queue to the disk, which is as large as the memory tier between them. Writes beyond
/// it are dropped. Fills wait before that, so that the least size is enough for many at once.
const QUEUE_BYTES_MIN: u64 = 8 << 20;
const QUEUE_BYTES_MAX: u64 = 64 << 20;
/// Each directory may take this part of the memory, and at least so many bytes.
const DIRECTORY_SHARE: u64 = 2;
const DIRECTORY_BYTES_MIN: u64 = 8 << 20;
/// How long a removal is waited for.
const RECORDING_MAX: Duration = Duration::from_secs(1);
/// Pause between signs of life in the superblock.
const ALIVE_EVERY: Duration = Duration::from_millis(500);
/// Pause between two looks at whether doubt is certain for the next start.
const DOUBT_PAUSE: Duration = Duration::from_millis(5);
/// How long the end of the tier's work is waited for.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// Figures of the disk tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskFigures {
    /// Bytes of records in the pool that clients fill.
    pub pull_bytes: u64,
    /// Bytes of records in the pool that push orders fill.
    pub pushed_bytes: u64,
    /// Regions evicted for space.
    pub evictions: u64,
    /// Failed reads and writes.
    pub errors: u64,
    /// Heads and slices that were not written because the queue was full, writes were off, or pinned
    /// bodies filled the pool.
    pub dropped_writes: u64,
    /// Heads and slices that were not written because what they would displace is used more.
    pub unadmitted: u64,
    /// Whether writes are on.
    pub is_enabled: bool,
    /// Heads on disk.
    pub heads: u64,
    /// Slices on disk, without those in the same record as their heads.
    pub slices: u64,
    /// Bytes of memory of the directories of both.
    pub directory_bytes: u64,
    /// Bytes that wait to be written.
    pub queued_bytes: u64,
}

/// A body that was read from disk or found in the queue to it.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The body itself, where it is still in the queue.
    pub(crate) body: LoadedBody,
    pub(crate) head: Bytes,
    /// Slice 0, where it is in the same record.
    pub(crate) slice: Option<Bytes>,
    /// `None` where it is not on disk yet.
    pub(crate) sequence: Option<u64>,
}

impl Loaded {
    fn id(&self) -> BodyId {
        match &self.body {
            LoadedBody::Queued(body) => body.id,
            LoadedBody::OnDisk { id, .. } => *id,
        }
    }
}

#[derive(Debug)]
pub(crate) enum LoadedBody {
    Queued(Arc<StoredBody>),
    OnDisk {
        id: BodyId,
        pool: Pool,
        key: u128,
        slices: u32,
    },
}

/// How long after its start look-ups wait for the directories, and the pause between two looks.
const OPENING_WAIT_MAX: Duration = Duration::from_secs(1);
const OPENING_PAUSE: Duration = Duration::from_millis(1);

/// The disk tier of the store.
#[derive(Debug)]
pub(crate) struct DiskTier {
    shared: Arc<Shared>,
    disk: Arc<DiskPool>,
    arena: Arc<Arena>,
    is_recording_stuck: AtomicBool,
    is_closed: AtomicBool,
    opened_at: Instant,
    /// Hears of the end of the tier's thread.
    ended: Mutex<Option<mpsc::Receiver<()>>>,
}

impl DiskTier {
    /// A tier in a directory. Returns at once; a thread opens the files.
    pub(crate) fn open(config: &DiskConfig, budget: &Arc<Budget>, arena: &Arc<Arena>) -> Self {
        let files = Arc::new(RealFiles::new(config.directory.clone()));
        let layout = Layout {
            pool_bytes: [config.pull_bytes, config.pushed_bytes],
            state_directory: config.directory.parent().map(Path::to_owned),
        };
        let name = config.directory.display().to_string();
        Self::open_with(name, files, layout, Patience::default(), budget, arena)
    }

    /// A tier on any files.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn open_on_files(
        files: Arc<dyn Files>,
        pool_bytes: [u64; 2],
        patience: Patience,
        budget: &Arc<Budget>,
        arena: &Arc<Arena>,
    ) -> Self {
        let layout = Layout {
            pool_bytes,
            state_directory: None,
        };
        Self::open_with("a test's".into(), files, layout, patience, budget, arena)
    }

    fn open_with(
        name: String,
        files: Arc<dyn Files>,
        layout: Layout,
        patience: Patience,
        budget: &Arc<Budget>,
        arena: &Arc<Arena>,
    ) -> Self {
        let queue_bytes = budget.limit().clamp(QUEUE_BYTES_MIN, QUEUE_BYTES_MAX);
        let directory_bytes = (budget.limit() / DIRECTORY_SHARE).max(DIRECTORY_BYTES_MIN);
        let shared = Arc::new(Shared::new(budget, directory_bytes, queue_bytes));
        shared.set_state_directory(layout.state_directory.clone());
        let disk = Arc::new(DiskPool::new(name, files, patience));
        let (end, ended) = mpsc::channel();
        let tier = Self {
            shared: shared.clone(),
            disk: disk.clone(),
            arena: arena.clone(),
            is_recording_stuck: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            opened_at: Instant::now(),
            ended: Mutex::new(Some(ended)),
        };
        let spawned = std::thread::Builder::new()
            .name("store-disk".into())
            .spawn(move || {
                run(&shared, &disk, &layout);
                drop(end);
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "cannot start the thread of the store's disk; the disk is not used");
            tier.shared.refuse("no thread");
        }
        tier
    }

    /// Waits until everything that an earlier run left is found, or the disk is refused. Blocking.
    pub(crate) fn wait_until_loaded(&self) {
        self.shared.wait_until_loaded();
    }

    /// Why the files are not used at all, if they are not.
    pub(crate) fn refusal(&self) -> Option<Arc<str>> {
        match self.shared.phase() {
            Phase::Refused(why) => Some(why),
            _ => None,
        }
    }

    pub(crate) fn state(&self) -> DiskState {
        match (self.shared.phase(), self.disk.state()) {
            (Phase::Refused(why), _) => DiskState::Refused(why),
            (Phase::Opening, DiskState::On) => DiskState::Opening,
            (_, state) => state,
        }
    }

    /// Whether reads make sense.
    /// Whether the directories are about to answer, so that look-ups wait for them: a start takes
    /// moments, and the requests of these would all be misses otherwise. No look-up waits for a disk
    /// that takes longer.
    fn is_awaited(&self) -> bool {
        self.shared.is_opening()
            && self.opened_at.elapsed() < OPENING_WAIT_MAX
            && self.disk.is_used()
    }

    fn answers(&self) -> bool {
        self.shared.is_ready() && self.disk.is_used()
    }

    pub(crate) fn may_have(&self, name: &str) -> bool {
        let Some(key) = self.shared.key(name) else {
            return self.is_awaited();
        };
        self.shared.queue.has_key(key)
            || self.is_awaited()
            || self.answers() && self.shared.heads.may_contain(key)
    }

    pub(crate) fn may_have_others(&self, name: &str, known: &[BodyId]) -> bool {
        let Some(key) = self.shared.key(name) else {
            return self.is_awaited();
        };
        let heads = &self.shared.heads;
        if self.is_awaited() || self.answers() && !heads.is_filled(heads.segment_of(key)) {
            return true;
        }
        let is_other = |found: &Found| known.iter().all(|id| body_hash(*id) != found.body);
        let queued = self.shared.queue.heads_of(key);
        queued.iter().any(|head| !known.contains(&head.body.id))
            || self.answers() && heads.find(key).iter().any(is_other)
    }

    pub(crate) fn has_head(&self, body: &StoredBody) -> bool {
        if self.shared.queue.has_head(body.id) {
            return true;
        }
        body.disk_key().is_some_and(|key| {
            self.shared.is_ready()
                && self.shared.find_head(key, body.id).is_some()
                && !self.shared.is_to_be_removed(key, body.id)
        })
    }

    /// Reads what lies under a name, newest first.
    pub(crate) async fn load(&self, name: &str, known: &[BodyId]) -> Vec<Loaded> {
        while self.is_awaited() {
            tokio::time::sleep(OPENING_PAUSE).await;
        }
        let Some(key) = self.shared.key(name) else {
            return Vec::new();
        };
        let mut loaded: Vec<_> = self
            .shared
            .queue
            .heads_of(key)
            .into_iter()
            .rev()
            .filter(|head| !known.contains(&head.body.id))
            .map(|head| Loaded {
                head: head.head,
                slice: None,
                sequence: None,
                body: LoadedBody::Queued(head.body),
            })
            .collect();
        if self.answers() {
            // What was in the queue a moment ago may be on disk by now.
            let queued: Vec<BodyId> = loaded.iter().map(Loaded::id).collect();
            let mut on_disk = self.load_from_disk(key, known).await;
            on_disk.retain(|loaded| !queued.contains(&loaded.id()));
            loaded.extend(on_disk);
        }
        loaded
    }

    async fn load_from_disk(&self, key: u128, known: &[BodyId]) -> Vec<Loaded> {
        let mut loaded = Vec::new();
        let known: Vec<u16> = known.iter().map(|id| body_hash(*id)).collect();
        // Until everything is loaded, the slices of what is found have to be looked up as well, which
        // may take a while.
        let is_filled = self.shared.is_loaded()
            && self
                .shared
                .heads
                .is_filled(self.shared.heads.segment_of(key));
        let mut is_complete = is_filled;
        if is_filled {
            let found = self.shared.heads.find(key).into_iter();
            for found in found.filter(|found| !known.contains(&found.body)) {
                match self.read_head(key, found, false) {
                    Some(read) => loaded.extend(read),
                    None => is_complete = false,
                }
            }
        }
        if !is_complete {
            loaded.clear();
            let reader = self.reader();
            let read = self.disk.run(move || reader.read_heads(key, &known)).await;
            loaded = read.unwrap_or_default();
        }
        loaded.retain(|loaded| match (&loaded.body, loaded.sequence) {
            (LoadedBody::OnDisk { id, .. }, Some(sequence)) => {
                self.shared.heads.note_use(key, body_hash(*id));
                !self.shared.is_removed(key, *id, sequence)
            }
            _ => true,
        });
        loaded.sort_by_key(|loaded| std::cmp::Reverse(loaded.sequence));
        loaded
    }

    fn reader(&self) -> Reader {
        Reader {
            shared: self.shared.clone(),
            arena: self.arena.clone(),
        }
    }

    fn read_head(&self, key: u128, found: Found, waits: bool) -> Option<Option<Loaded>> {
        self.reader().read_head(key, found, waits)
    }

    pub(crate) fn contains(&self, body: &StoredBody, index: u32) -> bool {
        self.shared.queue.has_slice(body.slice_key(index))
            || self.answers() && self.shared.slice_place(body, index).is_some()
    }

    /// A slice that can be read without waiting: from the queue or from the page cache.
    pub(crate) fn read_now(&self, body: &StoredBody, index: u32) -> Option<Bytes> {
        let key = body.slice_key(index);
        if let Some(bytes) = self.shared.queue.slice(key) {
            return Some(bytes);
        }
        if !self.answers() {
            return None;
        }
        let place = self.shared.slice_place(body, index)?;
        let read = self.reader().read_slice(key, body.disk_key(), place, false);
        read.flatten()
    }

    /// A slice, waiting for the disk.
    pub(crate) async fn read(&self, body: &StoredBody, index: u32) -> Option<Bytes> {
        let place = self.shared.slice_place(body, index)?;
        let (key, disk_key, reader) = (body.slice_key(index), body.disk_key(), self.reader());
        let read = self
            .disk
            .run(move || reader.read_slice(key, disk_key, place, true));
        match read.await {
            Ok(read) => read.flatten(),
            Err(Unavailable) => None,
        }
    }

    /// The same, blocking.
    pub(crate) fn read_blocking(&self, body: &StoredBody, index: u32) -> Option<Bytes> {
        let key = body.slice_key(index);
        if let Some(bytes) = self.shared.queue.slice(key) {
            return Some(bytes);
        }
        let place = self.shared.slice_place(body, index)?;
        let read = self.reader().read_slice(key, body.disk_key(), place, true);
        read.flatten()
    }

    /// Queues a slice to be written, or drops the write when the queue is full.
    pub(crate) fn write_slice(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        let is_here = self.shared.slice_place(body, index).is_some();
        if !is_here && !self.shared.queue.put_slice(body, index, bytes) {
            self.shared.counters.count_dropped();
        }
    }

    pub(crate) fn write_head(&self, body: &Arc<StoredBody>, name: &str, group: Group, head: Bytes) {
        self.shared.put_head(body, name, group, head);
    }

    pub(crate) fn group(&self, site: &str) -> Group {
        self.shared.groups.number(site)
    }

    pub(crate) fn forget(&self, body: &Arc<StoredBody>) {
        self.shared.forget(body);
    }

    pub(crate) fn note_use(&self, body: &StoredBody) {
        self.shared
            .note_slice_use(body.slice_key(0), body.disk_key());
    }

    pub(crate) fn forget_head(&self, body: &StoredBody) {
        self.shared.forget_head(body);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.shared.remove(name);
    }

    pub(crate) fn pin(&self, body: BodyId) {
        self.shared.pins.pin(body);
    }

    pub(crate) fn new_pin_epoch(&self) {
        self.shared.pins.new_epoch();
    }

    /// Waits until all removals so far are durable. `false` where they cannot be recorded; then
    /// everything on disk is doubtful, in the next run too however this one ends.
    pub(crate) async fn removals_recorded(&self) -> bool {
        let is_recorded = self.are_recorded().await;
        if !is_recorded && !self.shared.is_all_doubtful() {
            let doubt = self.shared.doubt();
            self.shared.leave_mark();
            self.shared.removals.wake();
            // Ends at the latest when the last sign of life is too old.
            while !self.shared.is_certain(doubt) {
                tokio::time::sleep(DOUBT_PAUSE).await;
            }
            self.shared.note_certain(doubt);
        }
        is_recorded
    }

    async fn are_recorded(&self) -> bool {
        let started = Instant::now();
        if self.shared.has_early() {
            while self.shared.has_early() && started.elapsed() < RECORDING_MAX {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if self.shared.has_early() {
                self.shared.note_doubt();
                return false;
            }
        }
        let removals = &self.shared.removals;
        let wanted = removals.appended();
        let mut recorded = removals.recorded();
        let before = *recorded.borrow_and_update();
        if before.durable >= wanted {
            return true;
        }
        let may_wait = self.disk.is_used()
            && before.failed < wanted
            && !self.is_recording_stuck.load(Ordering::Relaxed);
        let wait = recorded.wait_for(|now| now.durable >= wanted || now.failed > before.failed);
        let rest = RECORDING_MAX.saturating_sub(started.elapsed());
        if may_wait && let Ok(Ok(now)) = tokio::time::timeout(rest, wait).await {
            if now.durable >= wanted {
                return true;
            }
        } else if may_wait {
            // Later removals do not wait again for a disk that hangs.
            self.is_recording_stuck.store(true, Ordering::Relaxed);
        } else if removals.recorded().borrow().durable >= before.durable.max(1)
            && self.disk.is_used()
        {
            self.is_recording_stuck.store(false, Ordering::Relaxed);
        }
        self.shared.note_doubt();
        false
    }

    pub(crate) fn is_doubtful(&self, sequence: u64) -> bool {
        sequence < self.shared.doubtful_before()
    }

    pub(crate) fn is_of_earlier_run(&self, sequence: u64) -> bool {
        let opened = self.shared.opened.get();
        opened.is_some_and(|opened| sequence < opened.first_sequence)
    }

    /// Bytes that the queue can take.
    pub(crate) fn write_room(&self) -> u64 {
        self.shared.queue.room()
    }

    /// Waits until the writes queued before are done. Blocking.
    pub(crate) fn flush(&self) {
        self.shared.wait_until_loaded();
        if matches!(self.shared.phase(), Phase::Refused(_)) {
            return;
        }
        let (done, wait) = mpsc::sync_channel(1);
        self.shared.queue.put_work(Work::Flush(done));
        let _ = wait.recv();
    }

    /// Has a checkpoint written, as happens now and then.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn checkpoint(&self) {
        self.shared.queue.put_work(Work::Checkpoint);
    }

    /// Ends the work of the tier in order. Blocking.
    pub(crate) fn close(&self) {
        self.end(true);
    }

    fn end(&self, is_clean: bool) {
        if self.is_closed.swap(true, Ordering::Relaxed) {
            return;
        }
        self.shared.close(is_clean);
        if let Some(ended) = self.ended.lock().take() {
            let _ = ended.recv_timeout(CLOSE_MAX);
        }
        self.disk.close();
    }

    pub(crate) fn figures(&self) -> DiskFigures {
        let counters = &self.shared.counters;
        DiskFigures {
            pull_bytes: counters.pool_bytes[0].load(Ordering::Relaxed),
            pushed_bytes: counters.pool_bytes[1].load(Ordering::Relaxed),
            evictions: counters.evictions.load(Ordering::Relaxed),
            errors: counters.errors.load(Ordering::Relaxed),
            dropped_writes: counters.dropped_writes.load(Ordering::Relaxed),
            unadmitted: counters.unadmitted.load(Ordering::Relaxed),
            is_enabled: !counters.is_off.load(Ordering::Relaxed)
                && self.disk.is_used()
                && self.refusal().is_none(),
            heads: self.shared.heads.len(),
            slices: self.shared.slices.len(),
            directory_bytes: self.shared.heads.bytes() + self.shared.slices.bytes(),
            queued_bytes: self.shared.queue.bytes(),
        }
    }

    /// Number of heads of a site on disk.
    pub(crate) fn count(&self, site: &str) -> u64 {
        let group = self.shared.groups.existing(site);
        group.map_or(0, |group| self.shared.heads.count(group))
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// Records of so many bytes are read to where their slice stays, which saves a copy. The slot there
/// is longer than the slice by header and head, which is too much for short ones.
const IN_PLACE_BYTES: Range<usize> = 32 << 10..SLICE_BYTES + (4 << 10);

/// What a record has.
struct Taken {
    header: Header,
    head: Bytes,
    slice: Bytes,
}

/// Reads records, on any thread.
struct Reader {
    shared: Arc<Shared>,
    arena: Arc<Arena>,
}

impl Reader {
    /// The heads of a key.
    fn read_heads(&self, key: u128, known: &[u16]) -> Vec<Loaded> {
        self.shared.fill_segment_of(key);
        let found = self.shared.heads.find(key).into_iter();
        found
            .filter(|found| !known.contains(&found.body))
            .filter_map(|found| self.read_head(key, found, true).flatten())
            .collect()
    }

    /// The record at a place, if it is the right one. `None` where that needs waiting.
    fn read(
        &self,
        place: Place,
        waits: bool,
        is_it: impl FnOnce(&Header) -> bool,
    ) -> Option<io::Result<Option<Taken>>> {
        let length = place.length as usize;
        if !IN_PLACE_BYTES.contains(&length) {
            return self.shared.read(place, waits, |record| {
                is_it(&record.header).then(|| Taken {
                    header: record.header,
                    head: Bytes::copy_from_slice(record.head),
                    slice: self.copy(record.slice),
                })
            });
        }
        let mut buffer = self.arena.buffer(length);
        let (header, head) = match self.shared.read_into(&mut buffer, place, waits)? {
            Ok(record) if is_it(&record.header) => {
                (record.header, Bytes::copy_from_slice(record.head))
            }
            Ok(_) => return Some(Ok(None)),
            Err(error) => return Some(Err(error)),
        };
        let start = record::HEADER_BYTES + head.len();
        let slice = start..start + header.slice_length as usize;
        let slice = buffer.freeze().slice(slice);
        Some(Ok(Some(Taken {
            header,
            head,
            slice,
        })))
    }

    /// The head at a place. `None` where that needs waiting.
    fn read_head(&self, key: u128, found: Found, waits: bool) -> Option<Option<Loaded>> {
        let read = self.read(found.place, waits, |header| {
            header.kind.has_head()
                && header.key == key
                && body_hash(BodyId(header.body)) == found.body
        })?;
        Some(match read {
            Ok(Some(taken)) => Some(self.loaded(taken, found.place.pool, waits)),
            // Another name, or it was removed after the directory was read from a checkpoint.
            Ok(None) => None,
            Err(error) => {
                if !is_left(&error) {
                    self.shared.drop_unreadable(key, found.place, &error);
                }
                None
            }
        })
    }

    fn loaded(&self, taken: Taken, pool: Pool, waits: bool) -> Loaded {
        let Header {
            kind,
            body,
            key,
            sequence,
            index,
            ..
        } = taken.header;
        if waits {
            self.shared.fill_segments_of(BodyId(body), index);
        }
        Loaded {
            body: LoadedBody::OnDisk {
                id: BodyId(body),
                pool,
                key,
                slices: index,
            },
            head: taken.head,
            slice: (kind == record::Kind::Object).then_some(taken.slice),
            sequence: Some(sequence),
        }
    }

    fn copy(&self, slice: &[u8]) -> Bytes {
        if slice.is_empty() {
            return Bytes::new();
        }
        let mut buffer = self.arena.buffer(slice.len());
        buffer.copy_from_slice(slice);
        buffer.freeze()
    }

    /// The slice at a place. `None` where that needs waiting.
    fn read_slice(
        &self,
        key: SliceKey,
        disk_key: Option<u128>,
        place: Place,
        waits: bool,
    ) -> Option<Option<Bytes>> {
        let read = self.read(place, waits, |header| header.has_slice(key))?;
        Some(match read {
            Ok(Some(taken)) => {
                self.shared.note_slice_use(key, disk_key);
                Some(taken.slice)
            }
            Ok(None) => None,
            Err(error) => {
                if !is_left(&error) {
                    self.shared
                        .drop_unreadable_slice(key, disk_key, place, &error);
                }
                None
            }
        })
    }
}

/// The thread of the tier: opens, recovers, writes, ends.
fn run(shared: &Arc<Shared>, disk: &DiskPool, layout: &Layout) {
    let Some(mut recovery) = open(shared, disk, layout) else {
        return;
    };
    let recording = {
        let shared = shared.clone();
        std::thread::Builder::new()
            .name("store-removals".into())
            .spawn(move || record_removals(&shared))
    };
    let recording = match recording {
        Ok(recording) => recording,
        Err(error) => {
            tracing::warn!(%error, "cannot start a thread of the store's disk; the disk is not used");
            shared.refuse("no thread");
            return;
        }
    };
    while let Err(error) = recovery.run(shared) {
        tracing::warn!(%error, "the store cannot read what an earlier run left on disk; it tries again");
        shared.counters.count_error();
        if shared.is_closed() || !pause(shared, disk) {
            shared.queue.end();
            shared.removals.close();
            let _ = recording.join();
            return;
        }
    }

    let Recovery {
        pools,
        checkpoints,
        was_clean,
        ..
    } = recovery;
    let mut writer = Writer::new(shared.clone(), pools, checkpoints, was_clean);
    let is_whole = writer.run();
    shared.removals.close();
    let has_recorded = recording.join().unwrap_or(false);
    if shared.is_to_end_clean() && is_whole && has_recorded && shared.is_loaded() {
        let ended = writer
            .write_checkpoint_now()
            .and_then(|()| shared.mark_clean());
        if let Err(error) = ended {
            tracing::warn!(%error, "the store's disk could not be left in order; the next start takes longer");
        }
    }
}

/// Waits for the next try. `false` when the store is closed.
fn pause(shared: &Shared, disk: &DiskPool) -> bool {
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        if shared.is_closed() {
            return false;
        }
        if Instant::now() >= until && disk.is_used() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Opens the files, trying again while the disk fails.
fn open(shared: &Shared, disk: &DiskPool, layout: &Layout) -> Option<Recovery> {
    let mut has_warned = false;
    loop {
        match recovery::open(shared, disk.files(), layout) {
            Ok(recovery) => return Some(recovery),
            Err(Unusable::Io(error)) => {
                shared.counters.count_error();
                if !has_warned && !is_left(&error) {
                    let is_taken = error.kind() == io::ErrorKind::WouldBlock;
                    let problem = if is_taken {
                        "another process uses it".into()
                    } else {
                        error.to_string()
                    };
                    tracing::warn!(%problem, "the store's disk cannot be used yet; it is tried again");
                    has_warned = true;
                }
                if !pause(shared, disk) {
                    shared.refuse("closed");
                    return None;
                }
            }
            Err(unusable) => {
                tracing::error!(problem = %unusable, "the store's disk is not used; its files stay as they are");
                if let Some(directory) = &layout.state_directory {
                    note_run_without_disk(directory);
                }
                shared.refuse(&unusable.to_string());
                return None;
            }
        }
    }
}

/// The thread that records removals, and gives signs of life. Whether all were recorded.
fn record_removals(shared: &Shared) -> bool {
    let mut is_whole = true;
    let mut alive_at = Instant::now();
    loop {
        let Some(opened) = shared.opened.get() else {
            return false;
        };
        let wait = ALIVE_EVERY.saturating_sub(alive_at.elapsed());
        match shared.removals.run_once(&*opened.removals_file, wait) {
            // While the directories are read, the removals are not in the queue yet.
            Turn::Recorded(block) if shared.is_loaded() => {
                shared.queue.put_work(Work::RemovalsQueued(block));
            }
            Turn::Recorded(_) => {}
            Turn::Idle => {}
            Turn::Failed => {
                is_whole = false;
                shared.note_doubt();
            }
            Turn::End => return is_whole,
        }
        if alive_at.elapsed() >= ALIVE_EVERY || shared.is_doubt_unwritten() {
            alive_at = Instant::now();
            // Fails where the disk fails, which is known.
            let _ = shared.show_life();
        }
    }
}

/// Counts a run of a node without a disk tier, so that a later run with one knows that removals may
/// have passed it by.
pub(crate) fn note_run_without_disk(state_directory: &Path) {
    if let Err(error) = recovery::note_run_without_disk(state_directory) {
        tracing::warn!(%error, "a run without a disk tier cannot be noted; remove the tier's files before it is used again");
    }
}
