//! What the threads of the disk tier share: directories, queue, removals, counters.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::pool::{Pools, Record};
use super::purge::Walk;
use super::queue::{Queue, QueuedHead, Work};
use super::record::Header;
use super::recovery::{is_in, now_ms};
use super::removals::{Removal, Removals};
use super::superblock::{SILENCE_MAX_MS, Superblock, clear_mark, mark_doubt};
use crate::body::{BodyId, Pool, SliceKey, StoredBody};
use crate::budget::Budget;
use crate::checkpoint::Checkpoint;
use crate::directory::{Directory, Found, Place};
use crate::groups::{Group, Groups};
use crate::io::DiskFile;

/// Flag of an entry of the heads' directory: slice 0 is in the same record.
pub(crate) const HAS_SLICE: u8 = 1;
/// Requests that are kept until the superblock was read.
const EARLY_MAX: usize = 10_000;
/// How often records that cannot be read are logged.
const UNREADABLE_EVERY: Duration = Duration::from_secs(60);

/// Counters that the threads of the tier share.
#[derive(Debug, Default)]
pub(crate) struct DiskCounters {
    /// Bytes in regions, by pool.
    pub(crate) pool_bytes: [AtomicU64; 2],
    pub(crate) evictions: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) dropped_writes: AtomicU64,
    /// Records that were not worth their place to the policy.
    pub(crate) unadmitted: AtomicU64,
    pub(crate) is_off: AtomicBool,
}

impl DiskCounters {
    pub(crate) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_dropped(&self) {
        self.dropped_writes.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is known once the superblock was read.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) seed: u64,
    pub(crate) pools: Pools,
    /// Records with a smaller sequence are of earlier runs.
    pub(crate) first_sequence: u64,
    pub(crate) superblock: Mutex<Superblock>,
    pub(crate) superblock_file: Arc<dyn DiskFile>,
    pub(crate) removals_file: Arc<dyn DiskFile>,
}

/// How far the tier is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The directories are being built.
    Opening,
    /// They answer, and read their segments when they are first used.
    Ready,
    /// They are complete.
    Loaded,
    /// The files are not used.
    Refused(Arc<str>),
}

const OPENING: u8 = 0;
const READY: u8 = 1;
const LOADED: u8 = 2;

/// A checkpoint, and its regions that are in use as they were.
#[derive(Debug, Clone)]
struct Lazy {
    checkpoint: Arc<Checkpoint>,
    regions: Arc<Vec<(u8, u16)>>,
}

/// A request that came before the superblock was read.
#[derive(Debug)]
enum Early {
    Put {
        body: Arc<StoredBody>,
        name: Box<str>,
        group: Group,
        head: Bytes,
    },
    Remove(Box<str>),
    Forget(Arc<StoredBody>),
}

#[derive(Debug, Default)]
struct EarlyRequests {
    list: Vec<Early>,
    is_over: bool,
    /// Some were left out.
    is_incomplete: bool,
}

/// A doubt, and the last sign of life that may not carry it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Doubt {
    before: u64,
    alive_at: u64,
}

/// The mark of doubt in the state directory, see [`super::superblock`].
#[derive(Debug, Default)]
struct Mark {
    /// Where there is one.
    directory: Option<PathBuf>,
    is_under_way: bool,
    is_written: bool,
}

/// Bodies that reclaiming keeps, with the epoch in which each was pinned last.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    epoch: AtomicU32,
    bodies: Mutex<HashMap<BodyId, u32>>,
}

impl Pins {
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    pub(crate) fn pin(&self, body: BodyId) {
        self.bodies.lock().insert(body, self.epoch());
    }

    pub(crate) fn unpin(&self, body: BodyId) {
        self.bodies.lock().remove(&body);
    }

    pub(crate) fn is_pinned(&self, body: BodyId) -> bool {
        self.bodies.lock().get(&body) == Some(&self.epoch())
    }

    /// Begins a new epoch; the pins of the one before count for nothing from then on.
    pub(crate) fn new_epoch(&self) {
        let before = self.epoch.fetch_add(1, Ordering::Relaxed);
        // The last epoch's are named again in a moment; those of the epochs before it go.
        self.bodies.lock().retain(|_, epoch| *epoch == before);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Heads by the hash of their names.
    pub(crate) heads: Directory,
    /// Slices by the hash of body and index, without those that lie behind the current head of their
    /// body.
    pub(crate) slices: Directory,
    pub(crate) queue: Queue,
    pub(crate) removals: Removals,
    pub(crate) counters: DiskCounters,
    /// When a record that cannot be read was logged last.
    said_unreadable: Mutex<Option<Instant>>,
    pub(crate) pins: Pins,
    /// The next place in the order of all writes and removals.
    pub(crate) sequence: AtomicU64,
    /// See [`super::superblock`].
    doubtful_before: AtomicU64,
    pub(crate) opened: OnceLock<Opened>,
    /// How far the tier is; also as a number, for look-ups.
    phase: Mutex<Phase>,
    phase_changed: Condvar,
    stage: AtomicU8,
    /// From where segments of the directories are read when they are first used.
    lazy: Mutex<Option<Lazy>>,
    /// Held while a removal is between the directory and the queue. See
    /// [`wait_for_barrier`](Self::wait_for_barrier).
    removing: RwLock<()>,
    pub(crate) groups: Groups,
    pub(crate) budget: Arc<Budget>,
    is_closed: AtomicBool,
    is_to_end_clean: AtomicBool,
    /// Up to which sequence the superblock says that what is on disk is doubtful.
    doubt_written: AtomicU64,
    /// When the last sign of life was begun, in milliseconds after `started`.
    alive_at: AtomicU64,
    /// Everything before this is doubtful at the next start, certainly.
    certain_before: AtomicU64,
    /// The newest record that this run has begun to write.
    written: AtomicU64,
    started: Instant,
    mark: Mutex<Mark>,
    /// There was a reason for doubt before the superblock was read.
    is_doubtful_early: AtomicBool,
    early: Mutex<EarlyRequests>,
    /// The purge that is being carried out.
    pub(super) purge: Mutex<Option<Arc<Walk>>>,
    /// Removals that the directories have to apply once they are read.
    late: Mutex<Vec<Removal>>,
}

impl Shared {
    /// `directory_bytes` is the limit of each directory.
    pub(crate) fn new(budget: &Arc<Budget>, directory_bytes: u64, queue_bytes: u64) -> Self {
        Self {
            heads: Directory::new(budget.clone(), directory_bytes),
            slices: Directory::new(budget.clone(), directory_bytes),
            queue: Queue::new(queue_bytes),
            removals: Removals::new(),
            counters: DiskCounters::default(),
            said_unreadable: Mutex::default(),
            pins: Pins::default(),
            sequence: AtomicU64::new(1),
            doubtful_before: AtomicU64::new(0),
            opened: OnceLock::new(),
            phase: Mutex::new(Phase::Opening),
            phase_changed: Condvar::new(),
            stage: AtomicU8::new(OPENING),
            lazy: Mutex::default(),
            removing: RwLock::default(),
            groups: Groups::new(budget),
            budget: budget.clone(),
            is_closed: AtomicBool::new(false),
            is_to_end_clean: AtomicBool::new(false),
            doubt_written: AtomicU64::new(0),
            alive_at: AtomicU64::new(0),
            certain_before: AtomicU64::new(0),
            written: AtomicU64::new(0),
            started: Instant::now(),
            mark: Mutex::default(),
            is_doubtful_early: AtomicBool::new(false),
            early: Mutex::default(),
            purge: Mutex::default(),
            late: Mutex::default(),
        }
    }

    /// Whether the directories answer.
    pub(crate) fn is_ready(&self) -> bool {
        self.stage.load(Ordering::Acquire) >= READY
    }

    /// Whether the files are being opened.
    pub(crate) fn is_opening(&self) -> bool {
        self.stage.load(Ordering::Acquire) == OPENING
            && matches!(*self.phase.lock(), Phase::Opening)
    }

    /// Whether the directories hold everything that an earlier run left.
    pub(crate) fn is_loaded(&self) -> bool {
        self.stage.load(Ordering::Acquire) >= LOADED
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.lock().clone()
    }

    fn set_phase(&self, phase: Phase) {
        let stage = match phase {
            Phase::Opening | Phase::Refused(_) => OPENING,
            Phase::Ready => READY,
            Phase::Loaded => LOADED,
        };
        let mut now = self.phase.lock();
        self.stage.store(stage, Ordering::Release);
        *now = phase;
        self.phase_changed.notify_all();
    }

    /// Waits until the directories are complete, or the files are refused.
    pub(crate) fn wait_until_loaded(&self) {
        let mut phase = self.phase.lock();
        while matches!(*phase, Phase::Opening | Phase::Ready) {
            self.phase_changed.wait(&mut phase);
        }
    }

    /// The files are not used in this run.
    pub(crate) fn refuse(&self, why: &str) {
        {
            let mut early = self.early.lock();
            early.list.clear();
            early.is_over = true;
        }
        self.counters.is_off.store(true, Ordering::Relaxed);
        self.set_phase(Phase::Refused(why.into()));
        self.queue.end();
    }

    /// The files are open.
    pub(crate) fn open(&self, opened: Opened) {
        let first = opened.first_sequence;
        if self.opened.set(opened).is_ok() {
            if self.is_doubtful_early.load(Ordering::SeqCst) {
                self.set_doubtful_before(first);
            }
            self.end_early();
        }
    }

    /// Lets the directories answer from a checkpoint whose regions are in use as they were.
    pub(crate) fn answer_from(&self, checkpoint: Arc<Checkpoint>, regions: Arc<Vec<(u8, u16)>>) {
        *self.lazy.lock() = Some(Lazy {
            checkpoint,
            regions,
        });
        self.set_phase(Phase::Ready);
    }

    /// The directories answer nothing for now.
    pub(crate) fn close_directories(&self) {
        *self.lazy.lock() = None;
        self.set_phase(Phase::Opening);
    }

    /// Reads the segment of a key from the checkpoint, if it was not read yet.
    pub(crate) fn fill_segment_of(&self, key: u128) {
        self.fill_segment(0, &self.heads, key);
    }

    fn fill_segment(&self, index: usize, directory: &Directory, key: u128) {
        let segment = directory.segment_of(key);
        if directory.is_filled(segment) {
            return;
        }
        let lazy = self.lazy.lock().clone();
        if let Some(lazy) = lazy {
            // A failure is found by the thread that reads all segments.
            let _ = lazy
                .checkpoint
                .load_segment(index, directory, segment, |found| {
                    is_in(&lazy.regions, found)
                });
        }
    }

    /// Reads the segments of the slices of a body.
    pub(crate) fn fill_segments_of(&self, body: BodyId, slices: u32) {
        if self.is_loaded() {
            return;
        }
        for index in 0..slices {
            let key = slice_hash(SliceKey { body, index });
            self.fill_segment(1, &self.slices, key);
        }
    }

    /// Applies the removals that came meanwhile; from then on the directories are complete.
    pub(crate) fn finish_loading(
        &self,
        mut apply: impl FnMut(&Removal) -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            let removals = self.late.lock().clone();
            removals.iter().try_for_each(&mut apply)?;
            let mut late = self.late.lock();
            late.drain(..removals.len());
            if late.is_empty() {
                *self.lazy.lock() = None;
                self.set_phase(Phase::Loaded);
                return Ok(());
            }
        }
    }

    /// Whether a removal that is still to be applied covers a record.
    pub(crate) fn is_removed(&self, key: u128, body: BodyId, sequence: u64) -> bool {
        !self.is_loaded()
            && self
                .late
                .lock()
                .iter()
                .any(|removal| removal.covers(key, body.0, sequence))
    }

    /// Whether a removal that is still to be applied covers whatever there is of a body.
    pub(crate) fn is_to_be_removed(&self, key: u128, body: BodyId) -> bool {
        self.is_removed(key, body, 0)
    }

    pub(crate) fn close(&self, is_clean: bool) {
        self.is_to_end_clean.store(is_clean, Ordering::SeqCst);
        self.is_closed.store(true, Ordering::SeqCst);
        self.queue.close();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    pub(crate) fn is_to_end_clean(&self) -> bool {
        self.is_to_end_clean.load(Ordering::SeqCst)
    }

    /// Reads the record at a place, see [`PoolFile::read`](super::pool::PoolFile::read).
    pub(crate) fn read<R>(
        &self,
        place: Place,
        waits: bool,
        take: impl FnOnce(&Record<'_>) -> R,
    ) -> Option<io::Result<R>> {
        let Some(opened) = self.opened.get() else {
            return Some(Err(io::ErrorKind::NotFound.into()));
        };
        opened.pools[place.pool as usize].read(place, waits, take)
    }

    /// The same into a buffer, see [`PoolFile::read_into`](super::pool::PoolFile::read_into).
    pub(crate) fn read_into<'a>(
        &self,
        buffer: &'a mut [u8],
        place: Place,
        waits: bool,
    ) -> Option<io::Result<Record<'a>>> {
        let Some(opened) = self.opened.get() else {
            return Some(Err(io::ErrorKind::NotFound.into()));
        };
        opened.pools[place.pool as usize].read_into(buffer, place, waits)
    }

    pub(crate) fn read_header(&self, place: Place) -> io::Result<Header> {
        let opened = self.opened.get().ok_or(io::ErrorKind::NotFound)?;
        opened.pools[place.pool as usize].read_header(place)
    }

    /// Counts a use of a slice, and with it of the head of its body.
    pub(crate) fn note_slice_use(&self, key: SliceKey, disk_key: Option<u128>) {
        let body = body_hash(key.body);
        self.slices.note_use(slice_hash(key), body);
        if let Some(disk_key) = disk_key {
            self.heads.note_use(disk_key, body);
        }
    }

    /// Gives a sign of life, and writes what else the superblock should say by now.
    pub(crate) fn show_life(&self) -> io::Result<()> {
        self.write_superblock(false, self.removals.done())
    }

    /// Notes that the run ended in order, with everything carried out.
    pub(crate) fn mark_clean(&self) -> io::Result<()> {
        self.write_superblock(true, self.removals.all_done())?;
        let mark = self.mark.lock();
        match &mark.directory {
            // The superblock says it.
            Some(directory) if mark.is_written => clear_mark(directory),
            _ => Ok(()),
        }
    }

    fn write_superblock(&self, is_clean: bool, removals_done: u64) -> io::Result<()> {
        let opened = self.opened.get().ok_or(io::ErrorKind::NotFound)?;
        let mut block = opened.superblock.lock();
        block.alive_ms = now_ms();
        // Before the doubt is read: see `doubt`.
        self.alive_at.store(self.elapsed_ms(), Ordering::SeqCst);
        let doubtful_before = self.doubtful_before();
        block.is_clean = is_clean;
        block.removals_done = removals_done;
        block.sequence = self.sequence.load(Ordering::SeqCst);
        block.doubtful_before = doubtful_before;
        block.write(&*opened.superblock_file)?;
        if is_clean || self.is_doubt_unwritten() {
            opened.superblock_file.sync_data()?;
            self.doubt_written
                .fetch_max(doubtful_before, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Whether the superblock does not say yet what is doubtful.
    pub(crate) fn is_doubt_unwritten(&self) -> bool {
        self.doubt_written.load(Ordering::SeqCst) < self.doubtful_before()
    }

    /// The hash of a name, once the seed is known.
    pub(crate) fn key(&self, name: &str) -> Option<u128> {
        Some(hash_name(self.opened.get()?.seed, name))
    }

    pub(crate) fn find_slice(&self, key: SliceKey) -> Option<Found> {
        self.slices.find_body(slice_hash(key), body_hash(key.body))
    }

    pub(crate) fn find_head(&self, key: u128, body: BodyId) -> Option<Found> {
        self.heads.find_body(key, body_hash(body))
    }

    /// Where a slice is on disk.
    pub(crate) fn slice_place(&self, body: &StoredBody, index: u32) -> Option<Place> {
        if !self.is_ready() {
            return None;
        }
        if let Some(found) = self.find_slice(body.slice_key(index)) {
            return Some(found.place);
        }
        let head = self.find_head(body.disk_key().filter(|_| index == 0)?, body.id)?;
        (head.flags & HAS_SLICE != 0).then_some(head.place)
    }

    pub(crate) fn put_head(&self, body: &Arc<StoredBody>, name: &str, group: Group, head: Bytes) {
        let Some(key) = self.key(name) else {
            let mut early = self.early.lock();
            if !early.is_over {
                if early.list.len() < EARLY_MAX {
                    early.list.push(Early::Put {
                        body: body.clone(),
                        name: name.into(),
                        group,
                        head,
                    });
                } else {
                    self.counters.count_dropped();
                }
                return;
            }
            drop(early);
            // It has become known meanwhile, or never will.
            if self.opened.get().is_some() {
                self.put_head(body, name, group, head);
            }
            return;
        };
        self.put_head_of(body, key, group, head);
    }

    fn put_head_of(&self, body: &Arc<StoredBody>, key: u128, group: Group, head: Bytes) {
        body.set_disk_key(key);
        let head = QueuedHead {
            body: body.clone(),
            key,
            group,
            head,
            sequence: 0,
            has_taken_before: false,
        };
        if !self.queue.put_head(head) {
            self.counters.count_dropped();
        }
    }

    /// Removes all bodies of a name.
    pub(crate) fn remove(&self, name: &str) {
        match self.key(name) {
            Some(key) => self.remove_key(key),
            None => self.note_early(Early::Remove(name.into())),
        }
    }

    fn note_early(&self, request: Early) {
        let mut early = self.early.lock();
        if early.is_over {
            drop(early);
            if self.opened.get().is_some() {
                self.carry_out(request);
            } else {
                self.note_doubt();
            }
        } else if early.list.len() < EARLY_MAX {
            early.list.push(request);
        } else {
            early.is_incomplete = true;
        }
    }

    fn carry_out(&self, request: Early) {
        match request {
            Early::Put {
                body,
                name,
                group,
                head,
            } => self.put_head(&body, &name, group, head),
            Early::Remove(name) => self.remove(&name),
            Early::Forget(body) => self.forget(&body),
        }
    }

    /// Whether there are requests that wait for the superblock.
    pub(crate) fn has_early(&self) -> bool {
        let early = self.early.lock();
        !early.list.is_empty() || early.is_incomplete
    }

    /// Carries out what was asked for before the superblock was read.
    pub(crate) fn end_early(&self) {
        loop {
            let mut early = self.early.lock();
            let list = std::mem::take(&mut early.list);
            if list.is_empty() {
                early.is_over = true;
                if std::mem::take(&mut early.is_incomplete) {
                    drop(early);
                    self.note_doubt();
                }
                return;
            }
            drop(early);
            list.into_iter().for_each(|request| self.carry_out(request));
        }
    }

    fn remove_key(&self, key: u128) {
        let _removing = self.removing.read();
        let was_taken = self.queue.remove_key(key);
        let found = if self.is_filled(key) {
            self.heads.remove_key(key)
        } else {
            Vec::new()
        };
        self.record_removal(key, None, &found, was_taken, false);
    }

    /// Whether the directory has the entries of a key. If not, a removal is applied later, as its
    /// places must be known.
    fn is_filled(&self, key: u128) -> bool {
        self.is_loaded() || self.heads.is_filled(self.heads.segment_of(key))
    }

    /// Removes one body.
    pub(crate) fn forget(&self, body: &Arc<StoredBody>) {
        let _removing = self.removing.read();
        self.pins.unpin(body.id);
        let was_taken = self.queue.remove_body(body.id);
        let Some(key) = body.disk_key() else {
            // Its head may be among the requests that wait for the superblock.
            if self.opened.get().is_none() {
                self.note_early(Early::Forget(body.clone()));
            }
            self.forget_slices(body);
            return;
        };
        let found: Vec<_> = self
            .is_filled(key)
            .then(|| self.heads.remove_body(key, body_hash(body.id)))
            .into_iter()
            .flatten()
            .collect();
        self.record_removal(key, Some(body.id.0), &found, was_taken, false);
        self.forget_slices(body);
    }

    /// Removes the head of a body; its slices stay.
    pub(crate) fn forget_head(&self, body: &StoredBody) {
        let _removing = self.removing.read();
        self.pins.unpin(body.id);
        let was_taken = self.queue.remove_head(body.id);
        let Some(key) = body.disk_key() else {
            return;
        };
        let found = self
            .is_filled(key)
            .then(|| self.heads.remove_body(key, body_hash(body.id)))
            .flatten();
        if let Some(found) = found.filter(|found| found.flags & HAS_SLICE != 0) {
            let slice = slice_hash(body.slice_key(0));
            self.slices.insert(slice, Found { flags: 0, ..found });
        }
        let found: Vec<_> = found.into_iter().collect();
        self.record_removal(key, Some(body.id.0), &found, was_taken, true);
    }

    fn forget_slices(&self, body: &StoredBody) {
        for index in 0..body.slices() {
            let key = slice_hash(body.slice_key(index));
            self.slices.remove_body(key, body_hash(body.id));
        }
    }

    /// Records that what was found under a key has been removed, if there was something. The writer
    /// destroys it.
    fn record_removal(
        &self,
        key: u128,
        body: Option<u64>,
        found: &[Found],
        was_taken: bool,
        keeps_slice: bool,
    ) {
        let removal = Removal {
            key,
            body,
            sequence: self.sequence.fetch_add(1, Ordering::SeqCst),
        };
        // Under the lock, so that the directories become complete either before this or with it.
        let mut late = self.late.lock();
        let is_loaded = self.is_loaded();
        if !is_loaded {
            late.push(removal);
        }
        drop(late);
        if found.is_empty() && !was_taken && is_loaded {
            return;
        }
        // Before the removal is recorded: with its block all of this must have been queued.
        for found in found {
            self.destroy_later(key, found.place, keeps_slice);
        }
        self.removals.append(removal);
    }

    /// Records that a record which is in no directory must not come back.
    pub(crate) fn record_disowned(&self, header: &Header) {
        self.removals.append(Removal {
            key: header.key,
            body: Some(header.body),
            sequence: header.sequence + 1,
        });
    }

    /// Waits until everything that has been removed so far is destroyed durably.
    pub(crate) fn wait_for_barrier(&self) -> io::Result<()> {
        // What has left a directory has been queued to be destroyed, too.
        drop(self.removing.write());
        let (done, wait) = std::sync::mpsc::sync_channel(1);
        self.queue.put_work(Work::Barrier(done));
        match wait.recv() {
            Ok(true) => Ok(()),
            _ => Err(io::Error::other("removed records could not be destroyed")),
        }
    }

    pub(crate) fn destroy_later(&self, key: u128, place: Place, keeps_slice: bool) {
        let Some(opened) = self.opened.get() else {
            return;
        };
        self.queue.put_work(Work::Destroy {
            key,
            place,
            generation: opened.pools[place.pool as usize].generation(place.slot),
            keeps_slice,
        });
    }

    /// A record that cannot be read leaves the directory, and never comes back.
    pub(crate) fn drop_unreadable(&self, key: u128, place: Place, error: &io::Error) {
        if error.kind() == io::ErrorKind::NotFound {
            return;
        }
        self.note_unreadable(error);
        let _removing = self.removing.read();
        let Some(found) = self.heads.remove_at(key, place) else {
            return;
        };
        // Whose head it was cannot be read, and a removal of the name would cover its other bodies. While
        // there are some, a later removal of the name is recorded in any case and covers this one, too.
        if self.heads.may_contain(key) || self.queue.has_key(key) {
            self.destroy_later(key, found.place, false);
        } else {
            self.record_removal(key, None, &[found], false, false);
        }
    }

    /// The same for a slice.
    pub(crate) fn drop_unreadable_slice(
        &self,
        key: SliceKey,
        disk_key: Option<u128>,
        place: Place,
        error: &io::Error,
    ) {
        if error.kind() == io::ErrorKind::NotFound {
            return;
        }
        match disk_key.filter(|disk_key| self.heads.is_current(*disk_key, place)) {
            Some(disk_key) => self.drop_unreadable(disk_key, place, error),
            None => {
                self.note_unreadable(error);
                self.slices.remove_at(slice_hash(key), place);
            }
        }
    }

    /// Counts an error, and says so once in [`UNREADABLE_EVERY`]: a damaged disk has many of them.
    fn note_unreadable(&self, error: &io::Error) {
        self.counters.count_error();
        let now = Instant::now();
        let mut said = self.said_unreadable.lock();
        let is_due = said.is_none_or(|at| now.duration_since(at) >= UNREADABLE_EVERY);
        if is_due {
            *said = Some(now);
            drop(said);
            tracing::warn!(
                %error,
                errors = self.counters.errors.load(Ordering::Relaxed),
                "a record on disk cannot be read; what it held is fetched again. Others like it are counted and not logged for a minute"
            );
        }
    }

    /// From now on everything that is on disk is doubtful.
    pub(crate) fn note_doubt(&self) {
        if self.opened.get().is_none() {
            self.is_doubtful_early.store(true, Ordering::SeqCst);
        }
        let now = self.sequence.fetch_add(1, Ordering::SeqCst);
        self.doubtful_before.fetch_max(now, Ordering::SeqCst);
    }

    /// Where the mark of doubt is left.
    pub(crate) fn set_state_directory(&self, directory: Option<PathBuf>) {
        self.mark.lock().directory = directory;
    }

    /// Leaves the mark of doubt, on a thread of its own, as the disk of that directory may hang too.
    pub(crate) fn leave_mark(self: &Arc<Self>) {
        let directory = {
            let mut mark = self.mark.lock();
            let Some(directory) = mark.directory.clone() else {
                return;
            };
            if mark.is_written || mark.is_under_way {
                return;
            }
            mark.is_under_way = true;
            directory
        };
        let shared = self.clone();
        let spawned = std::thread::Builder::new()
            .name("store-doubt".into())
            .spawn(move || {
                let marked = mark_doubt(&directory);
                let mut mark = shared.mark.lock();
                (mark.is_under_way, mark.is_written) = (false, marked.is_ok());
            });
        if spawned.is_err() {
            self.mark.lock().is_under_way = false;
        }
    }

    fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// The doubt that was noted so far. A sign of life that is begun from now on carries it, even if
    /// it reaches the disk much later.
    pub(crate) fn doubt(&self) -> Doubt {
        let before = self.doubtful_before();
        Doubt {
            before,
            alive_at: self.alive_at.load(Ordering::SeqCst),
        }
    }

    /// Notes that a doubt is certain, see [`is_certain`](Self::is_certain).
    pub(crate) fn note_certain(&self, doubt: Doubt) {
        self.certain_before
            .fetch_max(doubt.before, Ordering::SeqCst);
    }

    /// Notes that a record of that sequence may be on disk from now on.
    pub(crate) fn note_written(&self, sequence: u64) {
        self.written.fetch_max(sequence, Ordering::SeqCst);
    }

    /// Whether all that is on disk is older than a doubt that is certain: then another removal that
    /// cannot be recorded changes nothing.
    pub(crate) fn is_all_doubtful(&self) -> bool {
        self.written.load(Ordering::SeqCst) < self.certain_before.load(Ordering::SeqCst)
    }

    /// Whether the next start knows of a doubt, if this run does not end in order.
    pub(crate) fn is_certain(&self, doubt: Doubt) -> bool {
        self.doubt_written.load(Ordering::SeqCst) >= doubt.before
            || self.mark.lock().is_written
            || self.elapsed_ms() - doubt.alive_at > SILENCE_MAX_MS
    }

    pub(crate) fn doubtful_before(&self) -> u64 {
        self.doubtful_before.load(Ordering::SeqCst)
    }

    pub(crate) fn set_doubtful_before(&self, sequence: u64) {
        self.doubtful_before.fetch_max(sequence, Ordering::SeqCst);
    }
}

pub(crate) fn hash_name(seed: u64, name: &str) -> u128 {
    // Keys whose upper half is 0 stand for none.
    xxh3_128_with_seed(name.as_bytes(), seed) | 1 << 64
}

/// The key of a slice in its directory.
pub(crate) fn slice_hash(key: SliceKey) -> u128 {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&key.body.0.to_le_bytes());
    bytes[8..].copy_from_slice(&key.index.to_le_bytes());
    xxh3_128_with_seed(&bytes, 0)
}

/// What tells bodies of one key apart.
pub(crate) fn body_hash(body: BodyId) -> u16 {
    (body.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16
}

/// The key of the slice in a record.
pub(crate) fn slice_key_of(header: &Header) -> SliceKey {
    SliceKey {
        body: BodyId(header.body),
        index: if header.kind.has_head() {
            0
        } else {
            header.index
        },
    }
}

/// The entry of a record with a head.
pub(crate) fn head_entry(header: &Header, place: Place) -> Found {
    Found {
        body: body_hash(BodyId(header.body)),
        group: header.group,
        uses: 0,
        flags: if header.kind == super::record::Kind::Object {
            HAS_SLICE
        } else {
            0
        },
        place,
    }
}

/// The entry of a slice.
pub(crate) fn slice_entry(header: &Header, place: Place) -> Found {
    Found {
        body: body_hash(BodyId(header.body)),
        group: header.group,
        uses: 0,
        flags: 0,
        place,
    }
}

pub(crate) const POOLS: [Pool; 2] = Pool::ALL;
