//! The disk tier: where each slice lies, the queue to the one thread that writes, and what happens
//! when the disk is full or fails.
//!
//! The index is in memory; [`DiskTier::scan`] makes it anew at start. A failing disk turns writes
//! off for a while, with a warning and a figure; reads that fail are misses. Nothing here is ever
//! an error for a client.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::log::{Evicted, Place, PoolLog, RecordAt, Region, check};
use super::memory::KeyHasher;
use super::record::{HEADER_BYTES, Header, Kind, record_span};
use super::{BodyId, Copy, DiskConfig, Pool, SliceKey, StoredBody};
use crate::kernel;

/// Bytes that may wait for the disk, by default as many as the memory tier has; more are shed.
/// Fills wait for room before that, so that the least is enough for many at once.
const QUEUE_BYTES_MIN: u64 = 8 << 20;
const QUEUE_BYTES_MAX: u64 = 64 << 20;
/// How long writes stay off after one failed.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// What the disk tier tells of itself.
#[derive(Debug, Clone, std::marker::Copy, Default, PartialEq, Eq)]
pub(crate) struct DiskFigures {
    /// Bytes in files of the pool that clients fill.
    pub(crate) pull_bytes: u64,
    /// Bytes in files of the pool that pushes fill.
    pub(crate) pushed_bytes: u64,
    /// Regions evicted for space.
    pub(crate) evictions: u64,
    /// Reads and writes that failed.
    pub(crate) errors: u64,
    /// Slices that were not written because the disk was behind, off or full of what is wanted.
    pub(crate) shed: u64,
    /// Whether writes are on.
    pub(crate) is_on: bool,
}

#[derive(Debug, Default)]
struct Counters {
    pool_bytes: [AtomicU64; 2],
    evictions: AtomicU64,
    errors: AtomicU64,
    shed: AtomicU64,
    queued_bytes: AtomicU64,
    is_off: AtomicBool,
}

/// Where one slice is.
#[derive(Debug)]
struct Located {
    place: Whereabouts,
    copy: Copy,
}

impl Located {
    fn is_at(&self, region: &Arc<Region>, offset: u64) -> bool {
        matches!(&self.place, Whereabouts::At(place) if Arc::ptr_eq(&place.region, region) && place.offset == offset)
    }

    fn is_in(&self, region: &Arc<Region>) -> bool {
        matches!(&self.place, Whereabouts::At(place) if Arc::ptr_eq(&place.region, region))
    }
}

#[derive(Debug)]
enum Whereabouts {
    /// On its way to disk.
    Queued(Bytes),
    At(Place),
}

type SliceIndex = DashMap<SliceKey, Located, BuildHasherDefault<KeyHasher>>;

enum Job {
    Slice {
        body: Arc<StoredBody>,
        index: u32,
        bytes: Bytes,
    },
    Head {
        body: Arc<StoredBody>,
        head: Bytes,
    },
    Forget {
        body: Arc<StoredBody>,
    },
    Flush(mpsc::SyncSender<()>),
}

impl Job {
    fn weight(&self) -> u64 {
        match self {
            Self::Slice { bytes, .. } => record_span(bytes.len()),
            Self::Head { head, .. } => record_span(head.len()),
            Self::Forget { .. } | Self::Flush(_) => 0,
        }
    }
}

/// See the module's words.
#[derive(Debug)]
pub(super) struct DiskTier {
    slices: Arc<SliceIndex>,
    counters: Arc<Counters>,
    jobs: mpsc::Sender<Job>,
    queue_bytes_max: u64,
    writer: Mutex<Option<Writer>>,
}

/// A body that the scan found.
#[derive(Debug)]
pub(super) struct FoundBody {
    pub(super) head: Bytes,
    pub(super) head_region: HeadPlace,
    pub(super) pool: Pool,
    pub(super) slices: HashMap<u32, Place>,
}

/// The region and pool a body's newest head was written to.
#[derive(Debug, Clone, std::marker::Copy)]
pub(super) struct HeadPlace {
    region: u64,
    pool: Pool,
    offset: u64,
}

/// What an earlier run left.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) bodies: HashMap<u64, FoundBody>,
}

impl DiskTier {
    /// A tier beside a memory tier of that many bytes.
    pub(super) fn open(config: &DiskConfig, memory_bytes: u64, wish: Arc<AtomicU32>) -> Self {
        let (jobs, queue) = mpsc::channel();
        let slices = Arc::new(SliceIndex::default());
        let counters = Arc::new(Counters::default());
        let writer = Writer {
            queue,
            slices: slices.clone(),
            counters: counters.clone(),
            pools: [
                PoolLog::new(config.directory.join("pull"), config.pull_bytes),
                PoolLog::new(config.directory.join("pushed"), config.pushed_bytes),
            ],
            heads: HashMap::new(),
            sequence: 1,
            off_until: None,
            wish,
            full_for_wish: None,
        };
        let queue_bytes_max = memory_bytes.clamp(QUEUE_BYTES_MIN, QUEUE_BYTES_MAX);
        Self {
            slices,
            counters,
            jobs,
            queue_bytes_max,
            writer: Mutex::new(Some(writer)),
        }
    }

    /// Finds what an earlier run left. Blocking.
    pub(super) fn scan(&self) -> Scan {
        match self
            .writer
            .lock()
            .expect("no holder of this lock panics")
            .as_mut()
        {
            Some(writer) => writer.scan(),
            None => Scan::default(),
        }
    }

    /// Takes a found body into the index. `false` when no slice of it was left.
    pub(super) fn adopt(
        &self,
        body: &Arc<StoredBody>,
        slices: HashMap<u32, Place>,
        head: HeadPlace,
    ) -> bool {
        if slices.is_empty() {
            return false;
        }
        for (index, place) in slices {
            body.slices.fetch_max(index + 1, Ordering::Relaxed);
            self.slices.insert(
                body.slice_key(index),
                Located {
                    place: Whereabouts::At(place),
                    copy: Copy::new(body),
                },
            );
        }
        if let Some(writer) = self
            .writer
            .lock()
            .expect("no holder of this lock panics")
            .as_mut()
        {
            writer.heads.insert(body.id, (head, body.clone()));
        }
        true
    }

    /// Starts the thread that writes. Until then writes wait in the queue.
    pub(super) fn start_writing(&self) {
        let Some(writer) = self
            .writer
            .lock()
            .expect("no holder of this lock panics")
            .take()
        else {
            return;
        };
        let spawned = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run());
        if let Err(error) = spawned {
            tracing::warn!(%error, "cannot start the thread that writes to disk; nothing is written");
            self.counters.is_off.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn contains(&self, key: SliceKey) -> bool {
        self.slices.contains_key(&key)
    }

    /// A slice that needs no wait: queued, or in the page cache.
    pub(super) fn read_now(&self, key: SliceKey) -> Option<Bytes> {
        let place = match self.place(key)? {
            Whereabouts::Queued(bytes) => return Some(bytes),
            Whereabouts::At(place) => place,
        };
        let mut buffer = vec![0u8; HEADER_BYTES + place.length as usize];
        if !kernel::read_cached(&place.region.file, &mut buffer, place.offset) {
            return None;
        }
        self.checked(
            key,
            check(buffer, place.length, (Kind::Slice, key.body, key.index)),
        )
    }

    /// A slice, waiting for the disk. Blocking.
    pub(super) fn read(&self, key: SliceKey) -> Option<Bytes> {
        match self.place(key)? {
            Whereabouts::Queued(bytes) => Some(bytes),
            Whereabouts::At(place) => self.checked(
                key,
                place.region.read(
                    place.offset,
                    place.length,
                    (Kind::Slice, key.body, key.index),
                ),
            ),
        }
    }

    fn place(&self, key: SliceKey) -> Option<Whereabouts> {
        let located = self.slices.get(&key)?;
        Some(match &located.place {
            Whereabouts::Queued(bytes) => Whereabouts::Queued(bytes.clone()),
            Whereabouts::At(place) => Whereabouts::At(place.clone()),
        })
    }

    fn checked(&self, key: SliceKey, read: io::Result<Vec<u8>>) -> Option<Bytes> {
        match read {
            Ok(buffer) => Some(Bytes::from(buffer).slice(HEADER_BYTES..)),
            Err(error) => {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "a slice on disk cannot be read and is fetched again");
                self.slices.remove(&key);
                None
            }
        }
    }

    pub(super) fn write_slice(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        let job = Job::Slice {
            body: body.clone(),
            index,
            bytes: bytes.clone(),
        };
        if !self.has_room(&job) {
            self.counters.shed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if let Entry::Vacant(free) = self.slices.entry(body.slice_key(index)) {
            free.insert(Located {
                place: Whereabouts::Queued(bytes),
                copy: Copy::new(body),
            });
        }
        self.send(job);
    }

    pub(super) fn write_head(&self, body: &Arc<StoredBody>, head: Bytes) {
        let job = Job::Head {
            body: body.clone(),
            head,
        };
        if self.has_room(&job) {
            self.send(job);
        }
    }

    pub(super) fn forget(&self, body: &Arc<StoredBody>) {
        for index in 0..body.slices.load(Ordering::Relaxed) {
            self.slices.remove(&body.slice_key(index));
        }
        self.send(Job::Forget { body: body.clone() });
    }

    fn has_room(&self, job: &Job) -> bool {
        self.counters.queued_bytes.load(Ordering::Relaxed) + job.weight() <= self.queue_bytes_max
    }

    fn send(&self, job: Job) {
        self.counters
            .queued_bytes
            .fetch_add(job.weight(), Ordering::Relaxed);
        // The writer is gone only when its thread could not start or the process ends.
        let _ = self.jobs.send(job);
    }

    pub(super) fn write_room(&self) -> u64 {
        self.queue_bytes_max
            .saturating_sub(self.counters.queued_bytes.load(Ordering::Relaxed))
    }

    pub(super) fn flush(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        if self.jobs.send(Job::Flush(done)).is_ok() {
            let _ = wait.recv();
        }
    }

    pub(super) fn figures(&self) -> DiskFigures {
        let counters = &self.counters;
        DiskFigures {
            pull_bytes: counters.pool_bytes[0].load(Ordering::Relaxed),
            pushed_bytes: counters.pool_bytes[1].load(Ordering::Relaxed),
            evictions: counters.evictions.load(Ordering::Relaxed),
            errors: counters.errors.load(Ordering::Relaxed),
            shed: counters.shed.load(Ordering::Relaxed),
            is_on: !counters.is_off.load(Ordering::Relaxed),
        }
    }
}

/// The one writer of the pools' files.
#[derive(Debug)]
struct Writer {
    queue: mpsc::Receiver<Job>,
    slices: Arc<SliceIndex>,
    counters: Arc<Counters>,
    pools: [PoolLog; 2],
    heads: HashMap<BodyId, (HeadPlace, Arc<StoredBody>)>,
    sequence: u64,
    off_until: Option<Instant>,
    /// The number of the newest wish.
    wish: Arc<AtomicU32>,
    /// The wish that was found to fill the pushed pool: nothing more is written to it until that
    /// changes.
    full_for_wish: Option<u32>,
}

/// What an eviction may write again.
struct Room {
    /// Bytes of records in all: a region's.
    all: u64,
    /// Bytes of records of bodies that nobody wants, but that were used.
    used: u64,
}

impl Room {
    fn take(&mut self, payload: usize, is_wanted: bool) -> bool {
        let span = record_span(payload);
        if span > self.all || (!is_wanted && span > self.used) {
            return false;
        }
        self.all -= span;
        if !is_wanted {
            self.used -= span;
        }
        true
    }
}

/// A record that goes on when its region is evicted.
struct Survivor {
    kind: Kind,
    body: Arc<StoredBody>,
    index: u32,
    payload: Vec<u8>,
}

impl Writer {
    fn run(mut self) {
        while let Ok(job) = self.queue.recv() {
            let weight = job.weight();
            if let Job::Flush(done) = job {
                let _ = done.send(());
            } else if self.is_on(Instant::now()) {
                if let Err(error) = self.write(job) {
                    self.turn_off(&error);
                }
            } else {
                self.drop_unwritten(job);
            }
            self.counters
                .queued_bytes
                .fetch_sub(weight, Ordering::Relaxed);
            for (bytes, pool) in self.counters.pool_bytes.iter().zip(&self.pools) {
                bytes.store(pool.bytes(), Ordering::Relaxed);
            }
        }
    }

    fn is_on(&mut self, now: Instant) -> bool {
        match self.off_until {
            Some(until) if now < until => false,
            Some(_) => {
                self.off_until = None;
                true
            }
            None => true,
        }
    }

    fn turn_off(&mut self, error: &io::Error) {
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        if !self.counters.is_off.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, retry_after = ?RETRY_AFTER, "cannot write to the store's disk; it is left alone for a while");
        }
        self.off_until = Some(Instant::now() + RETRY_AFTER);
    }

    fn drop_unwritten(&mut self, job: Job) {
        match job {
            Job::Slice { body, index, .. } => {
                self.counters.shed.fetch_add(1, Ordering::Relaxed);
                self.slices.remove_if(&body.slice_key(index), |_, l| {
                    matches!(l.place, Whereabouts::Queued(_))
                });
            }
            Job::Forget { body } => {
                self.heads.remove(&body.id);
            }
            Job::Head { .. } | Job::Flush(_) => {}
        }
    }

    fn write(&mut self, job: Job) -> io::Result<()> {
        match job {
            Job::Slice { body, index, bytes } => {
                // A queued slice that is no longer in the index was forgotten meanwhile.
                if !self.slices.contains_key(&body.slice_key(index)) {
                    return Ok(());
                }
                let written = self.append(Kind::Slice, &body, index, &bytes);
                if !matches!(written, Ok(true)) {
                    self.counters.shed.fetch_add(1, Ordering::Relaxed);
                    self.slices.remove_if(&body.slice_key(index), |_, l| {
                        matches!(l.place, Whereabouts::Queued(_))
                    });
                }
                written.map(|_| ())
            }
            Job::Head { body, head } => self.append(Kind::Head, &body, 0, &head).map(|_| ()),
            Job::Forget { body } => {
                if body.pool() == Pool::Pushed {
                    self.full_for_wish = None;
                }
                let had_head = self.heads.remove(&body.id).is_some();
                if had_head {
                    self.append(Kind::Forget, &body, 0, &[]).map(|_| ())
                } else {
                    Ok(())
                }
            }
            Job::Flush(_) => Ok(()),
        }
    }

    /// Appends a record to the body's pool, evicting when that is full. `false` when it cannot hold
    /// the record.
    fn append(
        &mut self,
        kind: Kind,
        body: &Arc<StoredBody>,
        index: u32,
        payload: &[u8],
    ) -> io::Result<bool> {
        let (name, wish) = (body.pool(), self.wish.load(Ordering::Relaxed));
        let pool = &self.pools[name as usize];
        if !pool.is_usable() || payload.len() > pool.payload_max() {
            return Ok(false);
        }
        // What is wanted is written again whole, so that an eviction may give no room. The first
        // round over all regions lets go of what nobody wants nor used, the second of all that
        // nobody wants.
        let round = pool.regions_max();
        let mut rolls = 0;
        while self.pools[name as usize].is_full_for(payload.len()) {
            if rolls > 2 * round || (name == Pool::Pushed && self.full_for_wish == Some(wish)) {
                self.full_for_wish = Some(wish);
                return Ok(false);
            }
            self.roll(name, rolls <= round)?;
            rolls += 1;
        }
        self.append_with_room(kind, body, name, index, payload)?;
        Ok(true)
    }

    fn append_with_room(
        &mut self,
        kind: Kind,
        body: &Arc<StoredBody>,
        pool: Pool,
        index: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        let header = Header::for_payload(kind, body.id.0, index, self.sequence, payload);
        let place = self.pools[pool as usize].append(&header, payload)?;
        self.sequence += 1;
        if self.counters.is_off.swap(false, Ordering::Relaxed) {
            tracing::info!("the store's disk takes writes again");
        }
        match kind {
            Kind::Slice => {
                // Replaces the queued bytes, or an older place; `entry` keeps a forgotten slice
                // forgotten.
                if let Entry::Occupied(mut located) = self.slices.entry(body.slice_key(index)) {
                    located.get_mut().place = Whereabouts::At(place);
                }
            }
            Kind::Head => {
                self.heads.insert(
                    body.id,
                    (
                        HeadPlace {
                            region: place.region.number,
                            pool,
                            offset: place.offset,
                        },
                        body.clone(),
                    ),
                );
            }
            Kind::Forget => {}
        }
        Ok(())
    }

    /// Starts a new region in a pool, evicting old ones and writing again what they held that is
    /// wanted or, where `keeps_used` says so, in use.
    fn roll(&mut self, pool: Pool, keeps_used: bool) -> io::Result<()> {
        let log = &self.pools[pool as usize];
        let mut survivors = Vec::new();
        let mut room = Room {
            all: log.records_bytes(),
            used: if keeps_used {
                log.second_chance_bytes()
            } else {
                0
            },
        };
        while let Some(evicted) = self.pools[pool as usize].evict_for_new_region() {
            self.counters.evictions.fetch_add(1, Ordering::Relaxed);
            self.sort_out(pool, &evicted, &mut survivors, &mut room);
        }
        self.pools[pool as usize].roll()?;
        for survivor in survivors {
            self.append_with_room(
                survivor.kind,
                &survivor.body,
                pool,
                survivor.index,
                &survivor.payload,
            )?;
        }
        Ok(())
    }

    fn sort_out(
        &mut self,
        pool: Pool,
        evicted: &Evicted,
        survivors: &mut Vec<Survivor>,
        room: &mut Room,
    ) {
        let region = evicted.region.number;
        let mut used: HashSet<BodyId> = HashSet::new();
        // Slices first: a body whose last slice goes here needs no head.
        for record in evicted.records.iter().filter(|r| r.kind == Kind::Slice) {
            let key = SliceKey {
                body: record.body,
                index: record.index,
            };
            let Some(body) = self.body_in(key, record, &evicted.region) else {
                continue;
            };
            // One more life for each use since the last one.
            if body.touched.swap(false, Ordering::Relaxed) {
                used.insert(body.id);
            }
            let is_wanted = self.is_wanted(&body);
            let payload = if is_wanted || used.contains(&body.id) {
                payload_of(evicted, record, room, is_wanted)
            } else {
                None
            };
            match payload {
                Some(payload) => survivors.push(Survivor {
                    kind: Kind::Slice,
                    body,
                    index: record.index,
                    payload,
                }),
                None => {
                    self.slices.remove_if(&key, |_, l| l.is_in(&evicted.region));
                }
            }
        }
        for record in evicted.records.iter().filter(|r| r.kind == Kind::Head) {
            let Some((at, body)) = self
                .heads
                .get(&record.body)
                .map(|(at, body)| (*at, body.clone()))
            else {
                continue;
            };
            if at.region != region || at.pool != pool || at.offset != record.offset {
                continue;
            }
            self.heads.remove(&record.body);
            if body.has_slices()
                && let Some(payload) = payload_of(evicted, record, room, self.is_wanted(&body))
            {
                survivors.push(Survivor {
                    kind: Kind::Head,
                    body,
                    index: 0,
                    payload,
                });
            }
        }
    }

    fn is_wanted(&self, body: &StoredBody) -> bool {
        body.pool() == Pool::Pushed
            && body.wish.load(Ordering::Relaxed) == self.wish.load(Ordering::Relaxed)
    }

    /// The body of a record, when that is where its slice lies now.
    fn body_in(
        &self,
        key: SliceKey,
        record: &RecordAt,
        region: &Arc<Region>,
    ) -> Option<Arc<StoredBody>> {
        let located = self.slices.get(&key)?;
        located
            .is_at(region, record.offset)
            .then(|| located.copy.0.clone())
    }

    fn scan(&mut self) -> Scan {
        let mut scan = Scan::default();
        let mut newest: HashMap<u64, (u64, Option<FoundHead>)> = HashMap::new();
        let mut slices: HashMap<u64, HashMap<u32, (u64, Place)>> = HashMap::new();
        let mut sequence = 0;
        for (number, log) in self.pools.iter_mut().enumerate() {
            let pool = if number == 0 {
                Pool::Pull
            } else {
                Pool::Pushed
            };
            let scanned = log.scan(|header, place, payload| {
                sequence = sequence.max(header.sequence);
                match header.kind {
                    Kind::Slice => {
                        let of_body = slices.entry(header.body).or_default();
                        if of_body
                            .get(&header.index)
                            .is_none_or(|(s, _)| *s < header.sequence)
                        {
                            of_body.insert(header.index, (header.sequence, place));
                        }
                    }
                    Kind::Head | Kind::Forget => {
                        if newest
                            .get(&header.body)
                            .is_none_or(|(s, _)| *s < header.sequence)
                        {
                            let head = payload.map(|bytes| FoundHead {
                                bytes,
                                place: HeadPlace {
                                    region: place.region.number,
                                    pool,
                                    offset: place.offset,
                                },
                            });
                            newest.insert(header.body, (header.sequence, head));
                        }
                    }
                }
            });
            if let Err(error) = scanned {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "cannot read what an earlier run left in the store; it starts empty");
            }
            self.counters.pool_bytes[number].store(log.bytes(), Ordering::Relaxed);
        }
        self.sequence = sequence + 1;
        for (id, (_, head)) in newest {
            let Some(head) = head else { continue };
            let slices = slices
                .remove(&id)
                .unwrap_or_default()
                .into_iter()
                .map(|(index, (_, place))| (index, place))
                .collect();
            scan.bodies.insert(
                id,
                FoundBody {
                    head: head.bytes.into(),
                    head_region: head.place,
                    pool: head.place.pool,
                    slices,
                },
            );
        }
        scan
    }
}

/// The payload of an evicted record, when it may be written again and can still be read.
fn payload_of(
    evicted: &Evicted,
    record: &RecordAt,
    room: &mut Room,
    is_wanted: bool,
) -> Option<Vec<u8>> {
    if !room.take(record.length as usize, is_wanted) {
        return None;
    }
    let read = evicted.region.read(
        record.offset,
        record.length,
        (record.kind, record.body, record.index),
    );
    read.ok().map(|mut buffer| buffer.split_off(HEADER_BYTES))
}

struct FoundHead {
    bytes: Vec<u8>,
    place: HeadPlace,
}
