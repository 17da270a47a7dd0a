//! The store: slices of bodies by key, in memory and on disk.
//!
//! Knows bytes and keys, never HTTP: a body is a number, an owner (a number its user chose) and a row of slices
//! of [`SLICE_BYTES`], the last one shorter; beside them lies one opaque description, the head. Only fills
//! write. A slice may be gone at any time; who needs it then fetches it again.
//!
//! Two pools share the disk, each with its own files and its own eviction, so that neither can push the other
//! out: what clients pulled and what was pushed ahead of them.

mod disk;
mod log;
mod memory;
mod record;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

pub use disk::DiskFigures;
use disk::DiskTier;
use memory::MemoryTier;

/// Length of every slice but a body's last one.
pub const SLICE_BYTES: usize = 256 * 1024;

/// The number of a body; never given twice, not even after a restart.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BodyId(pub u64);

/// One slice of one body.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq, Hash)]
pub struct SliceKey {
    /// The body.
    pub body: BodyId,
    /// Place in the row, from 0.
    pub index: u32,
}

/// Which share of the disk a body lives in.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq)]
pub enum Pool {
    /// Fetched because a client asked.
    Pull,
    /// Fetched ahead by a push order.
    Pushed,
}

/// A body as the store knows it, shared by everything that holds a part of it.
#[derive(Debug)]
pub struct StoredBody {
    /// Its number.
    pub id: BodyId,
    /// A number of the user's, handed back when the body is gone.
    pub owner: u128,
    pool: AtomicU8,
    /// Copies of slices in either tier or on their way to disk.
    copies: AtomicU32,
    /// One more than the highest slice index ever stored.
    slices: AtomicU32,
    /// Length of the head, which the first slice pays for in memory.
    head_bytes: AtomicU32,
    /// Used since it was last written to disk: it may stay when its region is evicted.
    touched: AtomicBool,
    gone: mpsc::UnboundedSender<Gone>,
}

/// A body whose last slice has left the store.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq)]
pub struct Gone {
    /// The body.
    pub id: BodyId,
    /// Its owner number.
    pub owner: u128,
}

impl StoredBody {
    /// The share of the disk it lives in.
    pub fn pool(&self) -> Pool {
        if self.pool.load(Ordering::Relaxed) == 0 { Pool::Pull } else { Pool::Pushed }
    }

    /// Whether any tier holds any slice of it.
    pub fn has_slices(&self) -> bool {
        self.copies.load(Ordering::Acquire) > 0
    }

    /// Marks it as used, so that its slices on disk get a second life when their region is evicted.
    pub fn touch(&self) {
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
    }

    fn slice_key(&self, index: u32) -> SliceKey {
        SliceKey { body: self.id, index }
    }
}

/// One copy of one slice: counted while it lives.
#[derive(Debug)]
pub(crate) struct Copy(Arc<StoredBody>);

impl Copy {
    fn new(body: &Arc<StoredBody>) -> Self {
        body.copies.fetch_add(1, Ordering::AcqRel);
        Self(body.clone())
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if self.0.copies.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Nobody listens only while the process ends.
            let _ = self.0.gone.send(Gone { id: self.0.id, owner: self.0.owner });
        }
    }
}

/// How a store is laid out.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Bytes of slices kept in memory.
    pub memory_bytes: u64,
    /// The disk tier; `None` keeps everything in memory.
    pub disk: Option<DiskConfig>,
}

/// How the disk tier is laid out.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// Directory of its files, made when it is missing.
    pub directory: PathBuf,
    /// Bytes for what clients pulled.
    pub pull_bytes: u64,
    /// Bytes for what was pushed.
    pub pushed_bytes: u64,
}

/// A body found on disk at start.
#[derive(Debug)]
pub struct RecoveredBody {
    /// Its number and pool; the owner is given by the caller of [`Store::recover`].
    pub body: Arc<StoredBody>,
    /// The head that was stored last.
    pub head: Bytes,
}

/// See the module's words.
#[derive(Debug)]
pub struct Store {
    memory: MemoryTier,
    disk: Option<DiskTier>,
    next_body: AtomicU64,
    gone: mpsc::UnboundedSender<Gone>,
}

impl Store {
    /// A store and the channel on which it names bodies that have left it.
    ///
    /// A disk that cannot be used is not an error: the disk tier starts turned off, with a warning.
    pub fn open(config: &StoreConfig) -> (Self, mpsc::UnboundedReceiver<Gone>) {
        let (gone, gone_rx) = mpsc::unbounded_channel();
        let disk = config.disk.as_ref().map(DiskTier::open);
        (Self { memory: MemoryTier::new(config.memory_bytes), disk, next_body: AtomicU64::new(first_body()), gone }, gone_rx)
    }

    /// Reads what an earlier run left on disk and hands each body to `accept`, which returns its owner number, or
    /// `None` to forget it. Blocking; called once, before the first write.
    pub fn recover(&self, mut accept: impl FnMut(BodyId, &[u8]) -> Option<u128>, mut found: impl FnMut(RecoveredBody)) {
        let Some(disk) = &self.disk else { return };
        let scan = disk.scan();
        for (id, found_body) in scan.bodies {
            let owner = accept(BodyId(id), &found_body.head);
            let body = self.body(BodyId(id), owner.unwrap_or(0), found_body.pool);
            body.head_bytes.store(found_body.head.len() as u32, Ordering::Relaxed);
            if owner.is_some() && disk.adopt(&body, found_body.slices, found_body.head_region) {
                found(RecoveredBody { body, head: found_body.head });
            }
        }
        disk.start_writing();
    }

    /// A new, empty body.
    pub fn new_body(&self, owner: u128, pool: Pool) -> Arc<StoredBody> {
        self.body(BodyId(self.next_body.fetch_add(1, Ordering::Relaxed)), owner, pool)
    }

    fn body(&self, id: BodyId, owner: u128, pool: Pool) -> Arc<StoredBody> {
        Arc::new(StoredBody {
            id,
            owner,
            pool: AtomicU8::new(pool as u8),
            copies: AtomicU32::new(0),
            slices: AtomicU32::new(0),
            head_bytes: AtomicU32::new(0),
            touched: AtomicBool::new(false),
            gone: self.gone.clone(),
        })
    }

    /// A slice that is in memory. Never blocks.
    pub fn get_memory(&self, body: &StoredBody, index: u32) -> Option<Bytes> {
        self.memory.get(body.slice_key(index))
    }

    /// A slice that can be had without waiting for a disk: in memory, on its way to disk, or in the page cache.
    /// Slices read from disk are kept in memory from then on.
    pub fn get_now(&self, body: &Arc<StoredBody>, index: u32) -> Option<Bytes> {
        let key = body.slice_key(index);
        if let Some(bytes) = self.memory.get(key) {
            return Some(bytes);
        }
        let bytes = self.disk.as_ref()?.read_now(key)?;
        self.promote(body, index, &bytes);
        Some(bytes)
    }

    /// A slice from disk, waiting for it. `None` when it is not there or not readable. Blocking.
    pub fn read_blocking(&self, body: &Arc<StoredBody>, index: u32) -> Option<Bytes> {
        let bytes = self.disk.as_ref()?.read(body.slice_key(index))?;
        self.promote(body, index, &bytes);
        Some(bytes)
    }

    fn promote(&self, body: &Arc<StoredBody>, index: u32, bytes: &Bytes) {
        body.touch();
        self.memory.insert(body.slice_key(index), bytes.clone(), self.head_share(body, index), Copy::new(body));
    }

    /// Whether a slice is in either tier.
    pub fn contains(&self, body: &StoredBody, index: u32) -> bool {
        let key = body.slice_key(index);
        self.memory.contains(key) || self.disk.as_ref().is_some_and(|d| d.contains(key))
    }

    /// Stores a slice in memory and, in time, on disk. Never blocks: with the disk far behind the slice is kept in
    /// memory alone, and counted as shed.
    pub fn put(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        body.slices.fetch_max(index + 1, Ordering::Relaxed);
        if let Some(disk) = &self.disk {
            disk.write_slice(body, index, bytes.clone());
        }
        self.memory.insert(body.slice_key(index), bytes, self.head_share(body, index), Copy::new(body));
    }

    /// Stores a slice of a body on disk alone, for content that nobody has asked for yet.
    pub fn put_on_disk(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        body.slices.fetch_max(index + 1, Ordering::Relaxed);
        match &self.disk {
            Some(disk) => disk.write_slice(body, index, bytes),
            None => self.put(body, index, bytes),
        }
    }

    /// Stores the head of a body on disk, replacing an earlier one.
    pub fn put_head(&self, body: &Arc<StoredBody>, head: Bytes) {
        body.head_bytes.store(head.len() as u32, Ordering::Relaxed);
        if let Some(disk) = &self.disk {
            disk.write_head(body, head);
        }
    }

    /// How many bytes the description of a body takes, for the accounts of the memory tier.
    pub fn account_head(&self, body: &StoredBody, bytes: u32) {
        body.head_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Moves a body to another share of the disk: what is written from now on goes there.
    pub fn set_pool(&self, body: &StoredBody, pool: Pool) {
        body.pool.store(pool as u8, Ordering::Relaxed);
    }

    /// Removes a body for good, also from what the next start would find.
    pub fn forget(&self, body: &Arc<StoredBody>) {
        for index in 0..body.slices.load(Ordering::Relaxed) {
            self.memory.remove(body.slice_key(index));
        }
        if let Some(disk) = &self.disk {
            disk.forget(body);
        }
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Slices that left memory for space.
    pub fn memory_evictions(&self) -> u64 {
        self.memory.evictions()
    }

    /// The disk tier's figures; `None` when there is no disk tier.
    pub fn disk_figures(&self) -> Option<DiskFigures> {
        self.disk.as_ref().map(DiskTier::figures)
    }

    /// How far the queue to the disk is from full: bytes that can be put now without being shed.
    pub fn write_room(&self) -> u64 {
        self.disk.as_ref().map_or(u64::MAX, DiskTier::write_room)
    }

    /// Waits until everything written before is on its way out of this process. Blocking.
    pub fn flush(&self) {
        if let Some(disk) = &self.disk {
            disk.flush();
        }
    }

    fn head_share(&self, body: &StoredBody, index: u32) -> u32 {
        if index == 0 { body.head_bytes.load(Ordering::Relaxed) } else { 0 }
    }
}

/// Where a process starts to number its bodies: at random in 63 bits, so that it meets none of an earlier run.
fn first_body() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() >> 1
}
