//! The one thread that writes the data files: new records, the destruction of removed ones, and
//! reclaiming ([`super::reclaim`]).
//!
//! Records are gathered and written in pieces. Only then does the directory learn their places
//! ("settled"); what was removed meanwhile is destroyed at once.
//!
//! A write that fails turns writes off for a while. What cannot be written is dropped and counted.
//! What cannot be destroyed is kept and tried again, and the removals behind it stay recorded.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128;

use super::pool::PoolLog;
use super::queue::{Job, QueuedHead, Work};
use super::record::{Header, Kind, PAYLOAD_BYTES_MAX};
use super::recovery::encode_state;
use super::shared::{
    HAS_SLICE, Opened, POOLS, Shared, body_hash, head_entry, slice_entry, slice_hash, slice_key_of,
};
use crate::body::{BodyId, Pool, StoredBody};
use crate::checkpoint::Checkpoints;
use crate::directory::{Found, Insertion, Place};
use crate::policy::{DiskPolicy, Stream};

/// How long writes stay off after one failed: the first time, and at most.
const OFF_MIN: Duration = Duration::from_secs(1);
const OFF_MAX: Duration = Duration::from_secs(60);
/// How long the thread waits for something to do before it looks at the time.
const IDLE_WAIT: Duration = Duration::from_millis(500);
/// How long destroyed records may wait to be synced, so that many share one sync.
const SYNC_AFTER: Duration = Duration::from_secs(1);
/// Most time between checkpoints while something changes, and least.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(120);
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(10);
/// Bytes of records behind a checkpoint from which on another is due: a start reads what lies behind
/// the last one.
const CHECKPOINT_BYTES: u64 = 256 << 20;
/// Pools of fewer regions have one stream.
const TWO_STREAMS_MIN: usize = 16;

/// A record that was gathered and not settled yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) header: Header,
    pub(super) place: Place,
    pub(super) origin: Origin,
}

#[derive(Debug)]
pub(super) enum Origin {
    /// It comes from the queue.
    New,
    /// It was copied from a region that is being reclaimed.
    Moved {
        from: Place,
        uses: u8,
        is_head: bool,
    },
}

/// Writes the files of both pools.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) pools: [PoolLog; 2],
    pub(super) policies: [DiskPolicy; 2],
    /// By pool and stream.
    pub(super) pending: [[Vec<Pending>; 2]; 2],
    /// Heads that have been copied out of the region that is being reclaimed, where they were.
    pub(super) moved: Vec<(u128, Place)>,
    off_until: Option<Instant>,
    off_for: Duration,
    /// The epoch whose pinned bodies fill the pushed pool: nothing is written to that pool until a
    /// new epoch begins or a pushed body is removed.
    full_in_epoch: Option<u32>,
    /// What is to be destroyed.
    undestroyed: VecDeque<Work>,
    /// The removals that were queued, and the time of the first that is not synced.
    removals_queued: u64,
    unsynced_since: Option<Instant>,
    checkpoints: Arc<Mutex<Checkpoints>>,
    checkpointing: Option<JoinHandle<()>>,
    /// When the last checkpoint was begun, and its place in the order of writes. `None` where a start
    /// would have to read everything.
    checkpoint_at: Option<Instant>,
    checkpoint_sequence: u64,
    /// Bytes of records that were written since.
    written_since: u64,
}

impl Writer {
    /// `was_clean` says that the last run left a checkpoint of everything.
    pub(crate) fn new(
        shared: Arc<Shared>,
        pools: [PoolLog; 2],
        checkpoints: Checkpoints,
        was_clean: bool,
    ) -> Self {
        let policies = [0, 1].map(|pool: usize| {
            let log = &pools[pool];
            DiskPolicy::new(log.regions_max() as u64 * u64::from(log.region_bytes()))
        });
        Self {
            shared,
            pools,
            policies,
            pending: Default::default(),
            moved: Vec::new(),
            off_until: None,
            off_for: OFF_MIN,
            full_in_epoch: None,
            undestroyed: VecDeque::new(),
            removals_queued: 0,
            unsynced_since: None,
            checkpoints: Arc::new(Mutex::new(checkpoints)),
            checkpointing: None,
            checkpoint_at: was_clean.then(Instant::now),
            checkpoint_sequence: 0,
            written_since: 0,
        }
    }

    pub(super) fn opened(&self) -> &Opened {
        let opened = self.shared.opened.get();
        opened.expect("the writer starts after the files were opened")
    }

    /// Writes what comes through the queue until the store is closed. Everything has been tried
    /// when it returns; whether all removals are carried out and synced.
    pub(crate) fn run(&mut self) -> bool {
        loop {
            let has_gathered = self.pending.iter().flatten().any(|p| !p.is_empty());
            let wait = if has_gathered {
                Duration::ZERO
            } else {
                IDLE_WAIT
            };
            let job = self.shared.queue.take(&self.shared.sequence, wait);
            let now = Instant::now();
            match job {
                Job::Head(head, slice) => self.write_head(&head, slice.as_ref(), now),
                Job::Slice {
                    body,
                    index,
                    bytes,
                    sequence,
                } => self.write_slice(&body, index, &bytes, sequence, now),
                Job::Work(work) => {
                    self.write_all(now);
                    self.work(work, now);
                }
                Job::Idle => {
                    self.write_all(now);
                    self.sync_removals(now, SYNC_AFTER);
                }
                Job::End => {
                    self.write_all(now);
                    self.off_until = None;
                    self.sync_removals(now, Duration::ZERO);
                    let is_done = self.undestroyed.is_empty() && self.unsynced_since.is_none();
                    return is_done && self.opened().pools.iter().all(|pool| pool.sync().is_ok());
                }
            }
            self.show_bytes();
            if self.is_checkpoint_due(now) {
                self.begin_checkpoint(now);
            }
        }
    }

    fn is_checkpoint_due(&self, now: Instant) -> bool {
        let Some(at) = self.checkpoint_at else {
            return self.shared.heads.len() + self.shared.slices.len() > 0;
        };
        let since = now.duration_since(at);
        since >= CHECKPOINT_EVERY
            || since >= CHECKPOINT_PAUSE && self.written_since >= CHECKPOINT_BYTES
    }

    /// Writes a checkpoint on a thread of its own, if something has changed and none is being
    /// written.
    fn begin_checkpoint(&mut self, now: Instant) {
        let sequence = self.shared.sequence.load(Ordering::SeqCst);
        let is_under_way = self
            .checkpointing
            .as_ref()
            .is_some_and(|t| !t.is_finished());
        if sequence == self.checkpoint_sequence || self.is_off(now) || is_under_way {
            return;
        }
        self.checkpoint_sequence = sequence;
        (self.checkpoint_at, self.written_since) = (Some(now), 0);
        self.write_all(now);
        self.destroy(now);
        let (shared, state) = (self.shared.clone(), encode_state(&self.pools));
        let checkpoints = self.checkpoints.clone();
        let spawned = std::thread::Builder::new()
            .name("store-checkpoint".into())
            .spawn(move || {
                let directories = [&shared.heads, &shared.slices];
                let written =
                    checkpoints
                        .lock()
                        .write_before(sequence, &state, &directories, || shared.wait_for_barrier());
                if let Err(error) = written {
                    shared.counters.count_error();
                    tracing::warn!(%error, "a checkpoint of the store could not be written");
                }
            });
        match spawned {
            Ok(thread) => self.checkpointing = Some(thread),
            Err(error) => {
                tracing::warn!(%error, "cannot start a thread for the store's checkpoint");
            }
        }
    }

    /// Writes a checkpoint of everything.
    pub(crate) fn write_checkpoint_now(&self) -> io::Result<()> {
        let sequence = self.shared.sequence.load(Ordering::SeqCst);
        let state = encode_state(&self.pools);
        let directories = [&self.shared.heads, &self.shared.slices];
        let mut checkpoints = self.checkpoints.lock();
        // At the end of the writer everything has been destroyed.
        checkpoints
            .write(sequence, &state, &directories)
            .map(|_| ())
    }

    fn show_bytes(&self) {
        for (bytes, pool) in self.shared.counters.pool_bytes.iter().zip(&self.pools) {
            bytes.store(pool.bytes(), Ordering::Relaxed);
        }
    }

    fn is_off(&self, now: Instant) -> bool {
        self.off_until.is_some_and(|until| now < until)
    }

    pub(super) fn turn_off(&mut self, error: &io::Error, now: Instant) {
        let counters = &self.shared.counters;
        counters.count_error();
        // One warning for one outage; the next write that succeeds ends it.
        if !counters.is_off.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "cannot write to the store's disk; writes are off for a while");
        }
        self.off_until = Some(now + self.off_for);
        self.off_for = (self.off_for * 2).min(OFF_MAX);
    }

    fn turn_on(&mut self) {
        self.off_until = None;
        self.off_for = OFF_MIN;
        if self.shared.counters.is_off.swap(false, Ordering::Relaxed) {
            tracing::info!("the store's disk accepts writes again");
        }
    }

    fn write_head(&mut self, head: &QueuedHead, slice: Option<&Bytes>, now: Instant) {
        let slice_bytes = slice.map_or(&[][..], |slice| slice);
        let header = Header {
            kind: if slice.is_some() {
                Kind::Object
            } else {
                Kind::Head
            },
            group: head.group,
            body: head.body.id.0,
            key: head.key,
            sequence: head.sequence,
            index: head.body.slices(),
            head_length: head.head.len() as u32,
            slice_length: slice_bytes.len() as u32,
            head_crc: crc32fast::hash(&head.head),
            slice_crc: crc32fast::hash(slice_bytes),
        };
        let pool = head.body.pool();
        self.write_new(pool, &header, &head.head, slice_bytes, now);
    }

    fn write_slice(
        &mut self,
        body: &Arc<StoredBody>,
        index: u32,
        bytes: &Bytes,
        sequence: u64,
        now: Instant,
    ) {
        let header = Header {
            kind: Kind::Slice,
            group: crate::groups::Group::OTHER,
            body: body.id.0,
            key: slice_policy_key(body.owner, index),
            sequence,
            index,
            head_length: 0,
            slice_length: bytes.len() as u32,
            head_crc: 0,
            slice_crc: crc32fast::hash(bytes),
        };
        self.write_new(body.pool(), &header, &[], bytes, now);
    }

    fn write_new(&mut self, pool: Pool, header: &Header, head: &[u8], slice: &[u8], now: Instant) {
        let is_possible = !self.is_off(now)
            && head.len() + slice.len() <= PAYLOAD_BYTES_MAX
            && self.pools[pool as usize].is_usable()
            && header.span() <= self.pools[pool as usize].region_bytes();
        if !is_possible {
            self.drop_new(header);
            return;
        }
        // Numbers of sites must be durable before records with them.
        if let Err(error) = self.shared.groups.save() {
            self.drop_new(header);
            self.turn_off(&error, now);
            return;
        }
        let Some(stream) = self.stream(pool, header) else {
            self.shared
                .counters
                .unadmitted
                .fetch_add(1, Ordering::Relaxed);
            self.leave_out(header);
            return;
        };
        match self.make_room(pool, stream, header.span()) {
            Ok(true) => {
                let place = self.pools[pool as usize].gather(stream, header, head, slice);
                self.pending[pool as usize][stream as usize].push(Pending {
                    header: *header,
                    place,
                    origin: Origin::New,
                });
                if self.pools[pool as usize].has_much(stream)
                    && let Err(error) = self.write_stream(pool, stream)
                {
                    self.turn_off(&error, now);
                }
            }
            Ok(false) => self.drop_new(header),
            Err(error) => {
                self.drop_new(header);
                self.turn_off(&error, now);
            }
        }
    }

    pub(super) fn has_two_streams(&self, pool: Pool) -> bool {
        pool == Pool::Pull && self.pools[pool as usize].regions_max() >= TWO_STREAMS_MIN
    }

    fn stream(&mut self, pool: Pool, header: &Header) -> Option<Stream> {
        if !self.has_two_streams(pool) {
            return Some(Stream::Main);
        }
        let is_full = self.pools[pool as usize].free() <= super::reclaim::SPARE_REGIONS;
        self.policies[pool as usize].place(policy_key(header), header.span(), is_full)
    }

    /// Makes room for a record in the active region of a stream. `false` where pinned bodies fill
    /// the pool.
    fn make_room(&mut self, pool: Pool, stream: Stream, span: u32) -> io::Result<bool> {
        let passes = self.pools[pool as usize].regions_max();
        let mut rolls = 0;
        while self.pools[pool as usize].is_full_for(stream, span) {
            let epoch = self.shared.pins.epoch();
            if pool == Pool::Pushed && self.full_in_epoch == Some(epoch) {
                return Ok(false);
            }
            // Reclaiming may free nothing, as pinned records are written again. The first pass over
            // all regions keeps used records too, the second one only pinned ones.
            if rolls > 2 * passes {
                self.full_in_epoch = Some(epoch);
                return Ok(false);
            }
            self.write_stream(pool, stream)?;
            if self.pools[pool as usize].free() == 0 {
                // An earlier run ended after it had taken the last one.
                self.keep_regions_free(pool, rolls <= passes)?;
            }
            self.pools[pool as usize].roll(stream)?;
            self.keep_regions_free(pool, rolls <= passes)?;
            rolls += 1;
        }
        Ok(true)
    }

    /// Writes what was gathered for a stream, and settles it.
    pub(super) fn write_stream(&mut self, pool: Pool, stream: Stream) -> io::Result<()> {
        let pending = &self.pending[pool as usize][stream as usize];
        if let Some(newest) = pending.iter().map(|pending| pending.header.sequence).max() {
            self.shared.note_written(newest);
        }
        let written = self.pools[pool as usize].write(stream);
        let pending = std::mem::take(&mut self.pending[pool as usize][stream as usize]);
        match written {
            Ok(()) => {
                if !pending.is_empty() {
                    self.turn_on();
                }
                for pending in &pending {
                    self.written_since += u64::from(pending.header.span());
                    self.settle(pending);
                }
                Ok(())
            }
            Err(error) => {
                for pending in &pending {
                    self.abandon(pending);
                }
                Err(error)
            }
        }
    }

    fn write_all(&mut self, now: Instant) {
        for pool in POOLS {
            for stream in [Stream::Probation, Stream::Main] {
                if let Err(error) = self.write_stream(pool, stream) {
                    self.turn_off(&error, now);
                }
            }
        }
    }

    /// Tells the directories where a record lies now.
    fn settle(&mut self, pending: &Pending) {
        match pending.origin {
            Origin::New => self.settle_new(&pending.header, pending.place),
            Origin::Moved {
                from,
                uses,
                is_head,
            } => self.settle_moved(pending, from, uses, is_head),
        }
    }

    fn settle_new(&mut self, header: &Header, place: Place) {
        let shared = self.shared.clone();
        let (body, slice) = (BodyId(header.body), slice_key_of(header));
        let mut inserted = None;
        let head_is_wanted = header.kind.has_head()
            && shared.queue.settle_head(body, header.sequence, || {
                inserted = Some(shared.heads.insert(header.key, head_entry(header, place)));
            });
        if let Some(inserted) = inserted {
            self.settle_before(header, place, inserted);
        }
        let mut is_full = false;
        let slice_is_wanted = header.kind != Kind::Head
            && shared.queue.settle_slice(slice, header.sequence, || {
                // Behind a head that counts, a slice needs no entry of its own.
                if !head_is_wanted {
                    let entry = slice_entry(header, place);
                    is_full = shared.slices.insert(slice_hash(slice), entry) == Insertion::Full;
                }
            });
        if is_full {
            shared.counters.count_dropped();
        }
        if header.kind.has_head() && !head_is_wanted {
            // Removed, or replaced by a newer head, while it was written.
            self.destroy_soon(header.key, place, slice_is_wanted);
        }
    }

    /// What becomes of the record that a new head replaces.
    fn settle_before(&mut self, header: &Header, place: Place, inserted: Insertion) {
        let shared = self.shared.clone();
        match inserted {
            Insertion::Added => {}
            Insertion::Full => {
                shared.counters.count_dropped();
                self.disown(header, place);
            }
            Insertion::Replaced(old) => {
                let keeps_slice = old.flags & HAS_SLICE != 0 && header.kind == Kind::Head;
                if keeps_slice {
                    let key = slice_key_of(header);
                    let entry = Found { flags: 0, ..old };
                    shared.slices.insert(slice_hash(key), entry);
                }
                self.destroy_soon(header.key, old.place, keeps_slice);
            }
        }
    }

    fn settle_moved(&mut self, pending: &Pending, from: Place, uses: u8, is_head: bool) {
        let (header, place) = (pending.header, pending.place);
        let body = body_hash(BodyId(header.body));
        let (directory, key) = if is_head {
            (&self.shared.heads, header.key)
        } else {
            (&self.shared.slices, slice_hash(slice_key_of(&header)))
        };
        let counts = if is_head {
            self.shared.move_head(key, header.group, from, place)
        } else {
            directory.replace(key, from, place)
        };
        if counts {
            (0..uses).for_each(|_| directory.note_use(key, body));
            if is_head {
                self.moved.push((key, from));
            }
        } else if is_head {
            // Removed while it was copied.
            self.destroy_soon(header.key, place, false);
        }
    }

    /// Gives up a record that may or may not have been written.
    fn abandon(&mut self, pending: &Pending) {
        let header = &pending.header;
        match pending.origin {
            Origin::New => {
                self.drop_new(header);
                if header.kind.has_head() {
                    self.disown(header, pending.place);
                }
            }
            // The record that it copies still counts. A later removal covers both.
            Origin::Moved { .. } if header.kind.has_head() => {
                self.destroy_soon(header.key, pending.place, false);
            }
            Origin::Moved { .. } => {}
        }
    }

    /// A record that lies on disk and is in no directory: it must not come back.
    fn disown(&mut self, header: &Header, place: Place) {
        self.destroy_soon(header.key, place, false);
        self.shared.record_disowned(header);
    }

    /// Has the head at a place destroyed before anything that comes later through the queue.
    pub(super) fn destroy_soon(&mut self, key: u128, place: Place, keeps_slice: bool) {
        let generation = self.pools[place.pool as usize].generation(place.slot);
        self.undestroyed.push_back(Work::Destroy {
            key,
            place,
            generation,
            keeps_slice,
        });
    }

    /// Drops a write that is not possible.
    fn drop_new(&self, header: &Header) {
        self.shared.counters.count_dropped();
        self.leave_out(header);
    }

    /// Takes a record out of the queue without writing it.
    fn leave_out(&self, header: &Header) {
        let shared = &*self.shared;
        if header.kind.has_head() {
            shared
                .queue
                .settle_head(BodyId(header.body), header.sequence, || ());
        }
        if header.kind != Kind::Head {
            shared
                .queue
                .settle_slice(slice_key_of(header), header.sequence, || ());
        }
    }

    fn work(&mut self, work: Work, now: Instant) {
        match work {
            Work::Flush(done) => {
                let _ = done.send(());
            }
            #[cfg(any(test, feature = "testing"))]
            Work::Checkpoint => {
                self.begin_checkpoint(now);
            }
            Work::Barrier(done) => {
                self.unsynced_since.get_or_insert(now);
                self.sync_removals(now, Duration::ZERO);
                let _ = done.send(self.unsynced_since.is_none());
            }
            Work::Release {
                pool,
                slot,
                generation,
            } => {
                if let Err(error) = self.release(pool, slot, generation) {
                    self.turn_off(&error, now);
                }
            }
            Work::RemovalsQueued(block) => {
                self.removals_queued = block;
                self.unsynced_since.get_or_insert(now);
                self.sync_removals(now, SYNC_AFTER);
            }
            Work::Destroy { place, .. } => {
                if place.pool == Pool::Pushed {
                    self.full_in_epoch = None;
                }
                self.undestroyed.push_back(work);
                self.destroy(now);
            }
        }
    }

    /// Gives back a region in which nothing counts any more.
    fn release(&mut self, pool: Pool, slot: u16, generation: u64) -> io::Result<()> {
        let log = &mut self.pools[pool as usize];
        if log.generation(slot) != generation {
            return Ok(());
        }
        log.release(slot)?;
        log.punch(slot)
    }

    /// Destroys what is to be destroyed, in order, as far as the disk allows.
    fn destroy(&mut self, now: Instant) {
        while !self.is_off(now) {
            let Some(work) = self.undestroyed.front() else {
                return;
            };
            if let Err(error) = self.destroy_one(work) {
                self.turn_off(&error, now);
                return;
            }
            self.undestroyed.pop_front();
            self.unsynced_since.get_or_insert(now);
        }
    }

    fn destroy_one(&self, work: &Work) -> io::Result<()> {
        let Work::Destroy {
            key,
            place,
            generation,
            keeps_slice,
        } = work
        else {
            return Ok(());
        };
        let pool = self.pools[place.pool as usize].shared();
        if pool.generation(place.slot) != *generation {
            return Ok(());
        }
        let mut header = match pool.read_header(*place) {
            Ok(header) if header.key == *key && header.kind.has_head() => header,
            // Something else is there, or what is there is no record.
            Ok(_) => return Ok(()),
            Err(error) if error.raw_os_error().is_none() => return Ok(()),
            Err(error) => return Err(error),
        };
        header.kind = if *keeps_slice && header.kind == Kind::Object {
            Kind::Slice
        } else {
            Kind::Removed
        };
        header.index = 0;
        pool.write_header(*place, &header)
    }

    /// Syncs destroyed records where the first of them has waited so long, and lets the blocks of
    /// their removals be used again.
    fn sync_removals(&mut self, now: Instant, after: Duration) {
        self.destroy(now);
        let is_due = self
            .unsynced_since
            .is_some_and(|since| now.duration_since(since) >= after);
        if !is_due || !self.undestroyed.is_empty() || self.is_off(now) {
            return;
        }
        let synced = self.opened().pools.iter().try_for_each(|pool| pool.sync());
        match synced {
            Ok(()) => {
                self.unsynced_since = None;
                self.shared.removals.set_done(self.removals_queued);
            }
            Err(error) => self.turn_off(&error, now),
        }
    }
}

/// By which the policy knows a record. A slice has in the place of a key what its body's owner and
/// its index give, so that a body that is fetched again is known.
pub(super) fn policy_key(header: &Header) -> u64 {
    (header.key >> 64) as u64
}

fn slice_policy_key(owner: u128, index: u32) -> u128 {
    let mut bytes = [0; 20];
    bytes[..16].copy_from_slice(&owner.to_le_bytes());
    bytes[16..].copy_from_slice(&index.to_le_bytes());
    xxh3_128(&bytes)
}
