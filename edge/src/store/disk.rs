//! The disk tier: an index of slices in memory, and the queue to the thread that writes.
//!
//! [`DiskTier::scan`] builds the index anew at start. A slice that cannot be read is a miss. A write
//! that is not possible is dropped and counted. Neither is ever an error for a client.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::body::{SliceKey, StoredBody};
use super::config::DiskConfig;
use super::log::check;
use super::record::{HEADER_BYTES, RecordKind};
use super::scan::ScannedBody;
use super::slices::{SliceIndex, SliceLocation};
use super::writer::{DiskCounters, WriteJob, Writer};
use crate::kernel;

/// Bounds of the queue to the disk, which is as large as the memory tier between them. Writes beyond
/// it are dropped. Fills wait before that, so that the least size is enough for many at once.
const QUEUE_BYTES_MIN: u64 = 8 << 20;
const QUEUE_BYTES_MAX: u64 = 64 << 20;

/// Figures of the disk tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DiskFigures {
    /// Bytes in files of the pool that clients fill.
    pub(crate) pull_bytes: u64,
    /// Bytes in files of the pool that push orders fill.
    pub(crate) pushed_bytes: u64,
    /// Regions evicted for space.
    pub(crate) evictions: u64,
    /// Failed reads and writes.
    pub(crate) errors: u64,
    /// Slices that were not written because the queue was full, writes were off, or pinned bodies
    /// filled the pool.
    pub(crate) dropped_writes: u64,
    /// Whether writes are on.
    pub(crate) is_enabled: bool,
}

/// The disk tier of the store.
#[derive(Debug)]
pub(super) struct DiskTier {
    slices: Arc<SliceIndex>,
    counters: Arc<DiskCounters>,
    jobs: mpsc::Sender<WriteJob>,
    queue_bytes_max: u64,
    /// Until its thread starts.
    writer: Mutex<Option<Writer>>,
}

impl DiskTier {
    /// A tier beside a memory tier of that many bytes. Touches no file.
    pub(super) fn open(config: &DiskConfig, memory_bytes: u64, pin_epoch: Arc<AtomicU32>) -> Self {
        let (jobs, queue) = mpsc::channel();
        let slices = Arc::new(SliceIndex::default());
        let counters = Arc::new(DiskCounters::default());
        let writer = Writer::new(queue, slices.clone(), counters.clone(), config, pin_epoch);
        Self {
            slices,
            counters,
            jobs,
            queue_bytes_max: memory_bytes.clamp(QUEUE_BYTES_MIN, QUEUE_BYTES_MAX),
            writer: Mutex::new(Some(writer)),
        }
    }

    /// Finds what an earlier run left, by body number. Blocking.
    pub(super) fn scan(&self) -> HashMap<u64, ScannedBody> {
        match self.writer.lock().as_mut() {
            Some(writer) => writer.scan(),
            None => HashMap::new(),
        }
    }

    /// Takes a scanned body into the index. `false` when it has no slice.
    pub(super) fn adopt(&self, body: &Arc<StoredBody>, scanned: ScannedBody) -> bool {
        if scanned.slices.is_empty() {
            return false;
        }
        for (index, location) in scanned.slices {
            body.note_slice(index);
            self.slices.insert(body, index, location);
        }
        if let Some(writer) = self.writer.lock().as_mut() {
            writer.adopt(body, scanned.head_location);
        }
        true
    }

    /// Starts the thread that writes. Until then writes wait in the queue.
    pub(super) fn start_writing(&self) {
        let Some(writer) = self.writer.lock().take() else {
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
        self.slices.contains(key)
    }

    /// A slice that can be read without waiting: from the queue or from the page cache.
    pub(super) fn read_now(&self, key: SliceKey) -> Option<Bytes> {
        let at = match self.slices.location(key)? {
            SliceLocation::Queued(bytes) => return Some(bytes),
            SliceLocation::OnDisk(at) => at,
        };
        let mut buffer = vec![0u8; HEADER_BYTES + at.length as usize];
        if !kernel::read_cached(&at.region.file, &mut buffer, at.offset) {
            return None;
        }
        let expected = (RecordKind::Slice, key.body, key.index);
        self.payload_or_remove(key, check(buffer, at.length, expected))
    }

    /// A slice, waiting for the disk. Blocking.
    pub(super) fn read(&self, key: SliceKey) -> Option<Bytes> {
        let at = match self.slices.location(key)? {
            SliceLocation::Queued(bytes) => return Some(bytes),
            SliceLocation::OnDisk(at) => at,
        };
        let expected = (RecordKind::Slice, key.body, key.index);
        self.payload_or_remove(key, at.region.read(at.offset, at.length, expected))
    }

    /// The payload of a record that was read. A slice that cannot be read leaves the index, so that
    /// it is fetched again.
    fn payload_or_remove(&self, key: SliceKey, read: io::Result<Vec<u8>>) -> Option<Bytes> {
        match read {
            Ok(buffer) => Some(Bytes::from(buffer).slice(HEADER_BYTES..)),
            Err(error) => {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "a slice on disk cannot be read and is fetched again");
                self.slices.remove(key);
                None
            }
        }
    }

    /// Queues a slice to be written, or drops the write when the queue is full.
    pub(super) fn write_slice(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        let job = WriteJob::Slice {
            body: body.clone(),
            index,
            bytes: bytes.clone(),
        };
        if !self.has_room(&job) {
            self.counters.dropped_writes.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.slices.insert_queued(body, index, bytes);
        self.send(job);
    }

    /// Queues a head to be written, unless the queue is full.
    pub(super) fn write_head(&self, body: &Arc<StoredBody>, head: Bytes) {
        let job = WriteJob::Head {
            body: body.clone(),
            head,
        };
        if self.has_room(&job) {
            self.send(job);
        }
    }

    pub(super) fn forget(&self, body: &Arc<StoredBody>) {
        for index in 0..body.slices() {
            self.slices.remove(body.slice_key(index));
        }
        self.send(WriteJob::Forget { body: body.clone() });
    }

    fn has_room(&self, job: &WriteJob) -> bool {
        self.counters.queued_bytes.load(Ordering::Relaxed) + job.queued_bytes()
            <= self.queue_bytes_max
    }

    fn send(&self, job: WriteJob) {
        self.counters
            .queued_bytes
            .fetch_add(job.queued_bytes(), Ordering::Relaxed);
        // The receiver has ended only when its thread could not start or the process ends.
        let _ = self.jobs.send(job);
    }

    /// Bytes that the queue can take.
    pub(super) fn write_room(&self) -> u64 {
        self.queue_bytes_max
            .saturating_sub(self.counters.queued_bytes.load(Ordering::Relaxed))
    }

    /// Waits until the writes queued before are done. Blocking.
    pub(super) fn flush(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        if self.jobs.send(WriteJob::Flush(done)).is_ok() {
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
            dropped_writes: counters.dropped_writes.load(Ordering::Relaxed),
            is_enabled: !counters.is_off.load(Ordering::Relaxed),
        }
    }
}
