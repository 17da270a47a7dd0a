//! The one thread that writes the files of both pools: its queue, eviction, and what happens when
//! the disk is full or fails.
//!
//! A write that fails turns writes off for [`RETRY_AFTER`]. Slices that cannot be written leave the
//! index of the disk tier and are counted.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::body::{BodyId, Pool, SliceKey, StoredBody};
use super::config::DiskConfig;
use super::log::{EvictedRegion, PoolLog, RegionRecord};
use super::record::{HEADER_BYTES, Header, RecordKind, record_span};
use super::scan::{HeadLocation, Scan, ScannedBody};
use super::slices::SliceIndex;

/// How long writes stay off after one failed.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Counters that the disk tier and its writer share.
#[derive(Debug, Default)]
pub(super) struct DiskCounters {
    /// Bytes in files, by pool.
    pub(super) pool_bytes: [AtomicU64; 2],
    pub(super) evictions: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) dropped_writes: AtomicU64,
    pub(super) queued_bytes: AtomicU64,
    pub(super) is_off: AtomicBool,
}

/// What the writer is asked to do.
pub(super) enum WriteJob {
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
    /// Answer when everything before it is written.
    Flush(mpsc::SyncSender<()>),
}

impl WriteJob {
    /// Bytes that it takes up in the queue.
    pub(super) fn queued_bytes(&self) -> u64 {
        match self {
            Self::Slice { bytes, .. } => record_span(bytes.len()),
            Self::Head { head, .. } => record_span(head.len()),
            Self::Forget { .. } | Self::Flush(_) => 0,
        }
    }
}

/// Writes the files of both pools.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Receiver<WriteJob>,
    slices: Arc<SliceIndex>,
    counters: Arc<DiskCounters>,
    pools: [PoolLog; 2],
    heads: HashMap<BodyId, (HeadLocation, Arc<StoredBody>)>,
    /// Sequence number of the next record.
    sequence: u64,
    off_until: Option<Instant>,
    /// The newest epoch; bodies pinned in it stay on disk.
    pin_epoch: Arc<AtomicU32>,
    /// The epoch whose pinned bodies fill the pushed pool: nothing is written to that pool until a
    /// new epoch begins or a pushed body is forgotten.
    full_in_epoch: Option<u32>,
}

/// How many bytes of the evicted records one new region may take up again.
struct RewriteBudget {
    /// For all records: at most one region.
    all: u64,
    /// For records of bodies that are used but not pinned.
    unpinned: u64,
}

impl RewriteBudget {
    fn take(&mut self, payload: usize, is_pinned: bool) -> bool {
        let span = record_span(payload);
        if span > self.all || (!is_pinned && span > self.unpinned) {
            return false;
        }
        self.all -= span;
        if !is_pinned {
            self.unpinned -= span;
        }
        true
    }
}

/// A record that is written again when its region is evicted.
struct Survivor {
    kind: RecordKind,
    body: Arc<StoredBody>,
    index: u32,
    payload: Vec<u8>,
}

impl Writer {
    pub(super) fn new(
        queue: mpsc::Receiver<WriteJob>,
        slices: Arc<SliceIndex>,
        counters: Arc<DiskCounters>,
        config: &DiskConfig,
        pin_epoch: Arc<AtomicU32>,
    ) -> Self {
        Self {
            queue,
            slices,
            counters,
            pools: [
                PoolLog::new(config.directory.join("pull"), config.pull_bytes),
                PoolLog::new(config.directory.join("pushed"), config.pushed_bytes),
            ],
            heads: HashMap::new(),
            sequence: 1,
            off_until: None,
            pin_epoch,
            full_in_epoch: None,
        }
    }

    /// Reads what an earlier run left in the files. Call before [`run`](Self::run).
    pub(super) fn scan(&mut self) -> HashMap<u64, ScannedBody> {
        let mut scan = Scan::default();
        for (pool, log) in Pool::ALL.into_iter().zip(&mut self.pools) {
            if let Err(error) = scan.add_pool(pool, log) {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "the store cannot read its files of an earlier run; it starts empty");
            }
            self.counters.pool_bytes[pool as usize].store(log.bytes(), Ordering::Relaxed);
        }
        self.sequence = scan.newest_sequence().saturating_add(1);
        scan.into_bodies()
    }

    /// Notes the head of a body that the scan found.
    pub(super) fn adopt(&mut self, body: &Arc<StoredBody>, head: HeadLocation) {
        self.heads.insert(body.id, (head, body.clone()));
    }

    /// Writes what comes through the queue until the store is dropped.
    pub(super) fn run(mut self) {
        while let Ok(job) = self.queue.recv() {
            let queued_bytes = job.queued_bytes();
            self.handle(job, Instant::now());
            self.counters
                .queued_bytes
                .fetch_sub(queued_bytes, Ordering::Relaxed);
            for (bytes, pool) in self.counters.pool_bytes.iter().zip(&self.pools) {
                bytes.store(pool.bytes(), Ordering::Relaxed);
            }
        }
    }

    fn handle(&mut self, job: WriteJob, now: Instant) {
        if let WriteJob::Flush(done) = job {
            let _ = done.send(());
        } else if self.is_off(now) {
            self.drop_unwritten(job);
        } else if let Err(error) = self.write(job) {
            self.turn_off(&error, now);
        }
    }

    fn is_off(&mut self, now: Instant) -> bool {
        let is_off = self.off_until.is_some_and(|until| now < until);
        if !is_off {
            self.off_until = None;
        }
        is_off
    }

    fn turn_off(&mut self, error: &io::Error, now: Instant) {
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        // One warning for one outage; the next write that succeeds ends it.
        if !self.counters.is_off.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, retry_after = ?RETRY_AFTER, "cannot write to the store's disk; writes are off for a while");
        }
        self.off_until = Some(now + RETRY_AFTER);
    }

    fn drop_unwritten(&mut self, job: WriteJob) {
        match job {
            WriteJob::Slice { body, index, .. } => self.drop_slice(body.slice_key(index)),
            WriteJob::Forget { body } => {
                self.heads.remove(&body.id);
            }
            WriteJob::Head { .. } | WriteJob::Flush(_) => {}
        }
    }

    fn drop_slice(&self, key: SliceKey) {
        self.counters.dropped_writes.fetch_add(1, Ordering::Relaxed);
        self.slices.remove_queued(key);
    }

    fn write(&mut self, job: WriteJob) -> io::Result<()> {
        match job {
            WriteJob::Slice { body, index, bytes } => self.write_slice(&body, index, &bytes),
            WriteJob::Head { body, head } => {
                self.append(RecordKind::Head, &body, 0, &head).map(|_| ())
            }
            WriteJob::Forget { body } => self.write_forget(&body),
            WriteJob::Flush(_) => Ok(()),
        }
    }

    fn write_slice(&mut self, body: &Arc<StoredBody>, index: u32, bytes: &[u8]) -> io::Result<()> {
        let key = body.slice_key(index);
        // A queued slice that is not in the index was forgotten meanwhile.
        if !self.slices.contains(key) {
            return Ok(());
        }
        let written = self.append(RecordKind::Slice, body, index, bytes);
        if !matches!(written, Ok(true)) {
            self.drop_slice(key);
        }
        written.map(|_| ())
    }

    fn write_forget(&mut self, body: &Arc<StoredBody>) -> io::Result<()> {
        if body.pool() == Pool::Pushed {
            self.full_in_epoch = None;
        }
        // A body without a head would not be found at the next start anyway.
        match self.heads.remove(&body.id) {
            Some(_) => self.append(RecordKind::Forget, body, 0, &[]).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Appends a record to the body's pool, which evicts a region when it is full. `false` when the
    /// pool cannot hold the record.
    fn append(
        &mut self,
        kind: RecordKind,
        body: &Arc<StoredBody>,
        index: u32,
        payload: &[u8],
    ) -> io::Result<bool> {
        let (name, epoch) = (body.pool(), self.pin_epoch.load(Ordering::Relaxed));
        let pool = &self.pools[name as usize];
        if !pool.is_usable() || payload.len() > pool.payload_max() {
            return Ok(false);
        }

        // An eviction may free nothing, as pinned records are written again. Pass 1 over all
        // regions evicts records of bodies that are neither pinned nor used, pass 2 evicts all that
        // are not pinned.
        let pass = pool.regions_max();
        let mut rolls = 0;
        while self.pools[name as usize].is_full_for(payload.len()) {
            if rolls > 2 * pass || (name == Pool::Pushed && self.full_in_epoch == Some(epoch)) {
                self.full_in_epoch = Some(epoch);
                return Ok(false);
            }
            self.roll(name, rolls <= pass)?;
            rolls += 1;
        }

        self.append_to_region(name, kind, body, index, payload)?;
        Ok(true)
    }

    /// Appends a record to the newest region of a pool, which has room for it.
    fn append_to_region(
        &mut self,
        pool: Pool,
        kind: RecordKind,
        body: &Arc<StoredBody>,
        index: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        let header = Header::for_payload(kind, body.id.0, index, self.sequence, payload);
        let location = self.pools[pool as usize].append(&header, payload)?;
        self.sequence = self.sequence.saturating_add(1);
        if self.counters.is_off.swap(false, Ordering::Relaxed) {
            tracing::info!("the store's disk accepts writes again");
        }

        match kind {
            RecordKind::Slice => self.slices.set_location(body.slice_key(index), location),
            RecordKind::Head => {
                let head = HeadLocation {
                    pool,
                    region: location.region.number,
                    offset: location.offset,
                };
                self.heads.insert(body.id, (head, body.clone()));
            }
            RecordKind::Forget => {}
        }
        Ok(())
    }

    /// Starts a new region in a pool. Evicts old regions for it and writes their pinned records
    /// again, and with `keeps_used` also those of bodies that were used.
    fn roll(&mut self, pool: Pool, keeps_used: bool) -> io::Result<()> {
        let log = &self.pools[pool as usize];
        let mut budget = RewriteBudget {
            all: log.records_bytes(),
            unpinned: if keeps_used {
                log.second_chance_bytes()
            } else {
                0
            },
        };

        let mut survivors = Vec::new();
        while let Some(evicted) = self.pools[pool as usize].evict_for_new_region() {
            self.counters.evictions.fetch_add(1, Ordering::Relaxed);
            self.collect_survivors(pool, &evicted, &mut budget, &mut survivors);
        }
        self.pools[pool as usize].roll()?;
        for survivor in survivors {
            self.append_to_region(
                pool,
                survivor.kind,
                &survivor.body,
                survivor.index,
                &survivor.payload,
            )?;
        }
        Ok(())
    }

    fn collect_survivors(
        &mut self,
        pool: Pool,
        evicted: &EvictedRegion,
        budget: &mut RewriteBudget,
        survivors: &mut Vec<Survivor>,
    ) {
        // Slices first: a body whose last slice is evicted here needs no head.
        self.collect_slices(evicted, budget, survivors);
        self.collect_heads(pool, evicted, budget, survivors);
    }

    fn collect_slices(
        &self,
        evicted: &EvictedRegion,
        budget: &mut RewriteBudget,
        survivors: &mut Vec<Survivor>,
    ) {
        let mut used: HashSet<BodyId> = HashSet::new();
        for record in evicted.records_of(RecordKind::Slice) {
            let key = SliceKey {
                body: record.body,
                index: record.index,
            };
            let Some(body) = self.slices.body_at(key, &evicted.region, record.offset) else {
                continue;
            };
            // Each use since the last write gives a body one more life.
            if body.take_touched() {
                used.insert(body.id);
            }

            let is_pinned = self.is_pinned(&body);
            let may_survive = is_pinned || used.contains(&body.id);
            let payload = may_survive
                .then(|| payload_of(evicted, record, budget, is_pinned))
                .flatten();
            match payload {
                Some(payload) => survivors.push(Survivor {
                    kind: RecordKind::Slice,
                    body,
                    index: record.index,
                    payload,
                }),
                None => self.slices.remove_in(key, &evicted.region),
            }
        }
    }

    fn collect_heads(
        &mut self,
        pool: Pool,
        evicted: &EvictedRegion,
        budget: &mut RewriteBudget,
        survivors: &mut Vec<Survivor>,
    ) {
        for record in evicted.records_of(RecordKind::Head) {
            let here = HeadLocation {
                pool,
                region: evicted.region.number,
                offset: record.offset,
            };
            // A newer head elsewhere stays.
            if self
                .heads
                .get(&record.body)
                .is_none_or(|(at, _)| *at != here)
            {
                continue;
            }
            let Some((_, body)) = self.heads.remove(&record.body) else {
                continue;
            };
            if body.has_slices()
                && let Some(payload) = payload_of(evicted, record, budget, self.is_pinned(&body))
            {
                survivors.push(Survivor {
                    kind: RecordKind::Head,
                    body,
                    index: 0,
                    payload,
                });
            }
        }
    }

    fn is_pinned(&self, body: &StoredBody) -> bool {
        body.is_pinned(self.pin_epoch.load(Ordering::Relaxed))
    }
}

/// The payload of an evicted record, if the budget allows to write it again and it can be read.
fn payload_of(
    evicted: &EvictedRegion,
    record: &RegionRecord,
    budget: &mut RewriteBudget,
    is_pinned: bool,
) -> Option<Vec<u8>> {
    if !budget.take(record.length as usize, is_pinned) {
        return None;
    }
    let read = evicted
        .region
        .read(record.offset, record.length, record.identity());
    read.ok().map(|mut buffer| buffer.split_off(HEADER_BYTES))
}
