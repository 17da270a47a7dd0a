//! The store: slices of bodies by key, in memory and on disk.
//!
//! Knows bytes and keys, never HTTP. A body has a number, an owner (a number that its user chose), a
//! list of slices of [`SLICE_BYTES`] bytes, the last one shorter, and one opaque description, the
//! head. Only fills write. A slice may be evicted at any time; a reader that needs it fetches it
//! again.
//!
//! Two pools share the disk: bodies that clients pulled and bodies that were pushed ahead of them.
//! Each has its own files and its own eviction, so that neither can evict the other. Pushed bodies
//! that are pinned in the newest epoch ([`Store::new_pin_epoch`]) stay: eviction takes only others,
//! and a write that does not fit beside pinned bodies is dropped.
//!
//! - [`body`]: what both tiers share about one body; [`config`]: sizes.
//! - [`memory`]: the memory tier.
//! - [`disk`]: the disk tier, with the index of its [`slices`] and the queue to its [`writer`].
//! - [`log`]: the files of one pool; [`record`]: the format of their records; [`scan`]: finds what
//!   they hold at start.

mod body;
mod config;
mod disk;
mod log;
mod memory;
mod record;
mod scan;
mod slices;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use body::SliceGuard;
use disk::DiskTier;
use memory::MemoryTier;

pub(crate) use body::{BodyId, Gone, Pool, StoredBody};
pub(crate) use config::{DiskConfig, StoreConfig};
pub(crate) use disk::DiskFigures;
pub(crate) use nearcast_fleet::disk::SLICE_BYTES;

/// A body found on disk at start.
#[derive(Debug)]
pub(crate) struct RecoveredBody {
    pub(crate) body: Arc<StoredBody>,
    /// The head that was stored last.
    pub(crate) head: Bytes,
}

/// Slices of bodies in memory and, if it is configured, on disk.
#[derive(Debug)]
pub(crate) struct Store {
    memory: MemoryTier,
    disk: Option<DiskTier>,
    next_body: AtomicU64,
    pin_epoch: Arc<AtomicU32>,
    gone: mpsc::UnboundedSender<Gone>,
}

impl Store {
    /// A store, and the channel on which it announces bodies whose last slice has left it.
    ///
    /// A disk that cannot be used is not an error: writes are turned off, with a warning.
    pub(crate) fn open(config: &StoreConfig) -> (Self, mpsc::UnboundedReceiver<Gone>) {
        let (gone, gone_rx) = mpsc::unbounded_channel();
        let pin_epoch = Arc::new(AtomicU32::new(1));
        let disk = config
            .disk
            .as_ref()
            .map(|disk| DiskTier::open(disk, config.memory_bytes, pin_epoch.clone()));
        let store = Self {
            memory: MemoryTier::new(config.memory_bytes),
            disk,
            next_body: AtomicU64::new(first_body()),
            pin_epoch,
            gone,
        };
        (store, gone_rx)
    }

    /// Reads what an earlier run left on disk. `owner_of` gets each head and returns the owner
    /// number of the body, or `None` to leave the body out; `found` gets the bodies that have
    /// slices. Blocking; called once, before the first write.
    pub(crate) fn recover(
        &self,
        mut owner_of: impl FnMut(BodyId, &[u8]) -> Option<u128>,
        mut found: impl FnMut(RecoveredBody),
    ) {
        let Some(disk) = &self.disk else { return };
        for (id, scanned) in disk.scan() {
            let Some(owner) = owner_of(BodyId(id), &scanned.head) else {
                continue;
            };
            let body = self.body(BodyId(id), owner, scanned.head_location.pool);
            body.set_head_bytes(scanned.head.len() as u32);
            let head = scanned.head.clone();
            if disk.adopt(&body, scanned) {
                found(RecoveredBody { body, head });
            }
        }
        disk.start_writing();
    }

    /// A new body without slices. A pushed one is pinned.
    pub(crate) fn new_body(&self, owner: u128, pool: Pool) -> Arc<StoredBody> {
        let id = BodyId(self.next_body.fetch_add(1, Ordering::Relaxed));
        let body = self.body(id, owner, pool);
        if pool == Pool::Pushed {
            self.pin(&body);
        }
        body
    }

    fn body(&self, id: BodyId, owner: u128, pool: Pool) -> Arc<StoredBody> {
        StoredBody::new(id, owner, pool, self.gone.clone())
    }

    /// Begins a new epoch: from now on only those bodies are pinned that are named to
    /// [`pin`](Self::pin) or made for the pushed pool.
    pub(crate) fn new_pin_epoch(&self) {
        self.pin_epoch.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps a pushed body on disk until the next epoch. Eviction takes others.
    pub(crate) fn pin(&self, body: &StoredBody) {
        body.pin(self.pin_epoch.load(Ordering::Relaxed));
    }

    /// A slice that is in memory. Never blocks.
    pub(crate) fn get_memory(&self, body: &StoredBody, index: u32) -> Option<Bytes> {
        self.memory.get(body.slice_key(index))
    }

    /// A slice that can be read without waiting for a disk: from memory, from the queue to the disk,
    /// or from the page cache. A slice read from disk is put into memory.
    pub(crate) fn get_now(&self, body: &Arc<StoredBody>, index: u32) -> Option<Bytes> {
        let key = body.slice_key(index);
        if let Some(bytes) = self.memory.get(key) {
            return Some(bytes);
        }
        let bytes = self.disk.as_ref()?.read_now(key)?;
        self.promote(body, index, &bytes);
        Some(bytes)
    }

    /// A slice from disk, waiting for it. `None` when it is missing or unreadable. Blocking.
    pub(crate) fn read_blocking(&self, body: &Arc<StoredBody>, index: u32) -> Option<Bytes> {
        let bytes = self.disk.as_ref()?.read(body.slice_key(index))?;
        self.promote(body, index, &bytes);
        Some(bytes)
    }

    fn promote(&self, body: &Arc<StoredBody>, index: u32, bytes: &Bytes) {
        body.touch();
        self.memory.insert(
            body.slice_key(index),
            bytes.clone(),
            body.head_bytes_of(index),
            SliceGuard::new(body),
        );
    }

    /// Whether a slice is in either tier.
    pub(crate) fn contains(&self, body: &StoredBody, index: u32) -> bool {
        let key = body.slice_key(index);
        self.memory.contains(key) || self.disk.as_ref().is_some_and(|d| d.contains(key))
    }

    /// Whether a slice is in the tier that lasts: on disk or in the queue to it; in memory if there
    /// is no disk tier.
    pub(crate) fn is_kept(&self, body: &StoredBody, index: u32) -> bool {
        let key = body.slice_key(index);
        self.disk
            .as_ref()
            .map_or_else(|| self.memory.contains(key), |disk| disk.contains(key))
    }

    /// Stores a slice in memory and queues it for the disk. Never blocks: when the queue is full the
    /// slice is kept in memory only, and the dropped write is counted.
    pub(crate) fn put(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        body.note_slice(index);
        if let Some(disk) = &self.disk {
            disk.write_slice(body, index, bytes.clone());
        }
        self.put_in_memory(body, index, bytes);
    }

    /// Stores a slice in memory only, for a body that no look-up finds any more.
    pub(crate) fn put_in_memory(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        body.note_slice(index);
        self.memory.insert(
            body.slice_key(index),
            bytes,
            body.head_bytes_of(index),
            SliceGuard::new(body),
        );
    }

    /// Stores a slice on disk only, for content that no client has requested yet.
    pub(crate) fn put_on_disk(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        body.note_slice(index);
        match &self.disk {
            Some(disk) => disk.write_slice(body, index, bytes),
            None => self.put(body, index, bytes),
        }
    }

    /// Stores the head of a body on disk. It replaces an earlier one.
    pub(crate) fn put_head(&self, body: &Arc<StoredBody>, head: Bytes) {
        body.set_head_bytes(head.len() as u32);
        if let Some(disk) = &self.disk {
            disk.write_head(body, head);
        }
    }

    /// Sets the size of a body's description, which its first slice pays for in the memory tier.
    pub(crate) fn account_head(&self, body: &StoredBody, bytes: u32) {
        body.set_head_bytes(bytes);
    }

    /// Removes a body for good, so that the next start does not find it either. Takes time in
    /// proportion to the slices of the body.
    pub(crate) fn forget(&self, body: &Arc<StoredBody>) {
        for index in 0..body.slices() {
            self.memory.remove(body.slice_key(index));
        }
        if let Some(disk) = &self.disk {
            disk.forget(body);
        }
    }

    /// Bytes in the memory tier.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Slices evicted from memory.
    pub(crate) fn memory_evictions(&self) -> u64 {
        self.memory.evictions()
    }

    /// Figures of the disk tier; `None` when there is none.
    pub(crate) fn disk_figures(&self) -> Option<DiskFigures> {
        self.disk.as_ref().map(DiskTier::figures)
    }

    /// Bytes that can be stored now without a dropped write.
    pub(crate) fn write_room(&self) -> u64 {
        self.disk.as_ref().map_or(u64::MAX, DiskTier::write_room)
    }

    /// Waits until the writes queued before have been written to the files. Blocking.
    pub(crate) fn flush(&self) {
        if let Some(disk) = &self.disk {
            disk.flush();
        }
    }
}

/// For fuzz targets: a record with good checksums, padded to where the next one begins. `kind` is
/// the number of a kind on disk; `None` when there is no such kind.
#[doc(hidden)]
pub fn fuzz_record(
    kind: u8,
    body: u64,
    index: u32,
    sequence: u64,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let kind = record::RecordKind::from_byte(kind)?;
    let header = record::Header::for_payload(kind, body, index, sequence, payload);
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(payload);
    bytes.resize(header.span() as usize, 0);
    Some(bytes)
}

/// For fuzz targets: the header of a region file.
#[doc(hidden)]
pub fn fuzz_region_header(number: u64) -> Vec<u8> {
    log::region_header(number).to_vec()
}

/// The first body number of this process: random in 63 bits, so that it meets no number of an
/// earlier run.
fn first_body() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() >> 1
}

#[cfg(test)]
mod tests;
