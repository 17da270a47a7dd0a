//! The store of an edge: slices of bodies by key, in memory and on disk.
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
//! - [`budget`]: the memory that all of it may take; [`arena`]: where
//!   slices lie in memory; [`memory`]: the memory tier.
//! - [`disk`]: the disk tier.
//! - [`directory`]: where the records of a key lie on disk; [`groups`]: numbers of sites;
//!   [`checkpoint`]: its dump, for the next start.
//! - [`io`]: files, real and simulated, and the watch over a disk that hangs or fails.
//! - [`policy`]: what stays in either tier.
//! - [`measures`]: what bodies take on disk, with which control plans; [`kernel`]: system calls.

mod arena;
mod body;
mod budget;
pub mod checkpoint;
mod config;
pub mod directory;
mod disk;
pub mod groups;
pub mod io;
mod kernel;
pub mod measures;
mod memory;
pub mod policy;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use disk::{DiskTier, Loaded, LoadedBody};
use memory::MemoryTier;

pub use crate::measures::SLICE_BYTES;
pub use arena::{Arena, Buffer};
pub use body::{BodyId, Gone, Pool, StoredBody};
pub use budget::{Budget, Charge, Kind};
pub use config::{DiskConfig, StoreConfig};
pub use disk::{DiskFigures, Frontier, Purged};
pub use groups::Group;
pub use io::DiskState;

/// A body that [`Store::load`] found on disk.
#[derive(Debug)]
pub struct FoundBody {
    /// The body. Its slices are on disk.
    pub body: Arc<StoredBody>,
    /// Its head, as it was stored last.
    pub head: Bytes,
    /// Whether an earlier run stored it.
    pub is_of_earlier_run: bool,
    /// Whether a removal of it may have been lost: it must be validated before use.
    pub is_doubtful: bool,
}

/// Slices of bodies in memory and, if it is configured, on disk.
#[derive(Debug)]
pub struct Store {
    memory: MemoryTier,
    budget: Arc<Budget>,
    arena: Arc<Arena>,
    disk: Option<DiskTier>,
    next_body: AtomicU64,
    gone: mpsc::UnboundedSender<Gone>,
}

impl Store {
    /// A store, and the channel on which it announces bodies that have left it.
    ///
    /// A disk that cannot be used is not an error: writes are turned off, with a warning.
    pub fn open(config: &StoreConfig) -> (Self, mpsc::UnboundedReceiver<Gone>) {
        Self::with_disk(config.memory_bytes, |budget, arena| {
            let disk = config.disk.as_ref()?;
            Some(DiskTier::open(disk, budget, arena))
        })
    }

    /// A store on any files, with so many bytes for each pool. For tests.
    #[cfg(any(test, feature = "testing"))]
    pub fn open_on(
        files: Arc<dyn io::Files>,
        memory_bytes: u64,
        pool_bytes: [u64; 2],
        patience: io::Patience,
    ) -> (Self, mpsc::UnboundedReceiver<Gone>) {
        Self::with_disk(memory_bytes, |budget, arena| {
            let tier = DiskTier::open_on_files(files, pool_bytes, patience, budget, arena);
            Some(tier)
        })
    }

    fn with_disk(
        memory_bytes: u64,
        disk: impl FnOnce(&Arc<Budget>, &Arc<Arena>) -> Option<DiskTier>,
    ) -> (Self, mpsc::UnboundedReceiver<Gone>) {
        let (gone, gone_rx) = mpsc::unbounded_channel();
        let budget = Budget::new(memory_bytes);
        let arena = Arc::new(Arena::new(budget.clone()));
        let disk = disk(&budget, &arena);
        let store = Self {
            memory: MemoryTier::new(budget.clone(), arena.clone()),
            budget,
            arena,
            disk,
            next_body: AtomicU64::new(first_body()),
            gone,
        };
        (store, gone_rx)
    }

    /// Waits until everything that an earlier run left on disk is found. Blocking. Nobody needs to
    /// wait: until then the disk answers what it knows.
    pub fn wait_until_loaded(&self) {
        if let Some(disk) = &self.disk {
            disk.wait_until_loaded();
        }
    }

    /// A new body without slices. A pushed one is pinned.
    pub fn new_body(&self, owner: u128, pool: Pool) -> Arc<StoredBody> {
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
    pub fn new_pin_epoch(&self) {
        if let Some(disk) = &self.disk {
            disk.new_pin_epoch();
        }
    }

    /// Keeps a pushed body on disk until the next epoch. Eviction takes others.
    pub fn pin(&self, body: &StoredBody) {
        if let Some(disk) = &self.disk
            && body.pool() == Pool::Pushed
        {
            disk.pin(body.id);
        }
    }

    /// A slice that is in memory. Never blocks.
    pub fn get_memory(&self, body: &StoredBody, index: u32) -> Option<Bytes> {
        self.memory.get(body, index)
    }

    /// A slice that can be read without waiting for a disk: from memory, from the queue to the disk,
    /// or from the page cache. A slice read from disk is put into memory.
    pub fn get_now(&self, body: &Arc<StoredBody>, index: u32) -> Option<Bytes> {
        if let Some(bytes) = self.memory.get(body, index) {
            return Some(bytes);
        }
        let bytes = self.disk.as_ref()?.read_now(body, index)?;
        self.promote(body, index, &bytes);
        Some(bytes)
    }

    /// A slice from disk, waiting for it. `None` when it is missing or unreadable. Blocking.
    pub fn read_blocking(&self, body: &Arc<StoredBody>, index: u32) -> Option<Bytes> {
        let bytes = self.disk.as_ref()?.read_blocking(body, index)?;
        self.promote(body, index, &bytes);
        Some(bytes)
    }

    fn promote(&self, body: &Arc<StoredBody>, index: u32, bytes: &Bytes) {
        body.touch();
        self.memory.insert(body, index, bytes.clone());
    }

    /// Whether a slice is in either tier.
    pub fn contains(&self, body: &StoredBody, index: u32) -> bool {
        self.memory.contains(body, index)
            || self
                .disk
                .as_ref()
                .is_some_and(|disk| disk.contains(body, index))
    }

    /// Whether a slice is on disk or in the queue to it.
    pub fn is_on_disk(&self, body: &StoredBody, index: u32) -> bool {
        self.disk
            .as_ref()
            .is_some_and(|disk| disk.contains(body, index))
    }

    /// Whether a slice is in the tier that lasts: on disk or in the queue to it; in memory if there
    /// is no disk tier.
    pub fn is_kept(&self, body: &StoredBody, index: u32) -> bool {
        self.disk.as_ref().map_or_else(
            || self.memory.contains(body, index),
            |disk| disk.contains(body, index),
        )
    }

    /// Stores a slice in memory and queues it for the disk. Never blocks: when the queue is full the
    /// slice is kept in memory only, and the dropped write is counted.
    pub fn put(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        body.note_slice(index);
        if let Some(disk) = &self.disk {
            disk.write_slice(body, index, bytes.clone());
        }
        self.put_in_memory(body, index, bytes);
    }

    /// Stores a slice in memory only, for a body that no look-up finds any more.
    pub fn put_in_memory(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        body.note_slice(index);
        self.memory.insert(body, index, bytes);
    }

    /// Stores a slice on disk only, for content that no client has requested yet.
    pub fn put_on_disk(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        body.note_slice(index);
        match &self.disk {
            Some(disk) => disk.write_slice(body, index, bytes),
            None => self.put(body, index, bytes),
        }
    }

    /// Whether the disk may hold a head under that name. A question to the directory in memory, never
    /// to the disk.
    pub fn may_have(&self, name: &str) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.may_have(name))
    }

    /// Whether there may be heads of that name on disk beside those of the bodies in `known`.
    pub fn may_have_others(&self, name: &str, known: &[BodyId]) -> bool {
        self.disk
            .as_ref()
            .is_some_and(|disk| disk.may_have_others(name, known))
    }

    /// Reads the heads of that name from disk, newest first, without those of the bodies in `known`.
    /// A slice 0 in the same record is put into memory. Empty when the disk is off, or slow for a
    /// second.
    pub async fn load(&self, name: &str, owner: u128, known: &[BodyId]) -> Vec<FoundBody> {
        let Some(disk) = &self.disk else {
            return Vec::new();
        };
        let loaded = disk.load(name, known).await.into_iter();
        loaded
            .map(|loaded| self.found(disk, loaded, owner))
            .collect()
    }

    fn found(&self, disk: &DiskTier, loaded: Loaded, owner: u128) -> FoundBody {
        let body = match loaded.body {
            LoadedBody::Queued(body) => body,
            LoadedBody::OnDisk {
                id,
                pool,
                key,
                slices,
            } => {
                let body = self.body(id, owner, pool);
                body.set_disk_key(key);
                if slices > 0 {
                    body.note_slice(slices - 1);
                }
                body
            }
        };
        body.set_head_bytes(loaded.head.len() as u32);
        if let Some(slice) = &loaded.slice {
            self.promote(&body, 0, slice);
        }
        let is = |question: fn(&DiskTier, u64) -> bool| {
            loaded
                .sequence
                .is_some_and(|sequence| question(disk, sequence))
        };
        FoundBody {
            is_of_earlier_run: is(DiskTier::is_of_earlier_run),
            is_doubtful: is(DiskTier::is_doubtful),
            head: loaded.head,
            body,
        }
    }

    /// Whether the disk, or the queue to it, holds the head of a body.
    pub fn has_head(&self, body: &StoredBody) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.has_head(body))
    }

    /// The number of a site, which is kept beside the data.
    pub fn group(&self, site: &str) -> Group {
        self.disk
            .as_ref()
            .map_or(Group::OTHER, |disk| disk.group(site))
    }

    /// Number of heads of a site on disk.
    pub fn heads_on_disk(&self, site: &str) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.count(site))
    }

    /// What is written to disk so far. A purge takes it when it begins to hold. `None` where the
    /// files are not open.
    pub fn frontier(&self) -> Option<Frontier> {
        self.disk.as_ref()?.frontier()
    }

    /// What earlier runs have written to disk.
    pub fn frontier_at_start(&self) -> Frontier {
        let disk = self.disk.as_ref();
        disk.map(DiskTier::frontier_at_start).unwrap_or_default()
    }

    /// Removes from disk what a purge of a site, or of everything, covers: what was written up to
    /// `before`. Responses from before `certain_from` may have been covered by earlier purges too.
    /// The purge must be in force: nothing of this is recorded on disk. Blocking, but not for the
    /// disk; one call at a time.
    pub fn purge_on_disk(
        &self,
        site: Option<&str>,
        before: &Frontier,
        certain_from: &Frontier,
    ) -> Purged {
        let disk = self.disk.as_ref();
        disk.map_or_else(Purged::default, |d| d.purge(site, before, certain_from))
    }

    /// How many responses [`purge_on_disk`](Self::purge_on_disk) would remove.
    pub fn count_on_disk(
        &self,
        site: Option<&str>,
        before: &Frontier,
        certain_from: &Frontier,
    ) -> Purged {
        let disk = self.disk.as_ref();
        disk.map_or_else(Purged::default, |d| {
            d.count_covered(site, before, certain_from)
        })
    }

    /// Takes a body off the disk for a purge that covers it and is in force: nothing of this is
    /// recorded.
    pub fn withdraw(&self, body: &StoredBody) {
        if let Some(disk) = &self.disk {
            disk.withdraw(body);
        }
    }

    /// The same for all bodies of a name. Says how many there were.
    pub fn withdraw_name(&self, name: &str, certain_from: &Frontier) -> Purged {
        let disk = self.disk.as_ref();
        disk.map_or_else(Purged::default, |d| d.withdraw_name(name, certain_from))
    }

    /// How many bodies of a name are on disk or on the way to it.
    pub fn count_name(&self, name: &str, certain_from: &Frontier) -> Purged {
        let disk = self.disk.as_ref();
        disk.map_or_else(Purged::default, |d| d.count_name(name, certain_from))
    }

    /// Whether the directory of the disk has the head of a body. See [`has_head`](Self::has_head).
    pub fn is_in_directory(&self, body: &StoredBody) -> bool {
        let disk = self.disk.as_ref();
        disk.is_some_and(|disk| disk.is_in_directory(body))
    }

    /// Gives the space of regions back in which nothing counts any more, after a purge. Blocking,
    /// for a thread in the background.
    pub fn give_back_space(&self) {
        if let Some(disk) = &self.disk {
            disk.give_back_space();
        }
    }

    /// Notes that a body is used from memory, so that the disk does not evict it as one that nobody
    /// uses. Now and then is enough.
    pub fn note_use(&self, body: &StoredBody) {
        body.touch();
        if let Some(disk) = &self.disk {
            disk.note_use(body);
        }
    }

    /// Removes the head of a body from the disk, so that no look-up finds it any more. Its slices stay
    /// for those who read them.
    pub fn forget_head(&self, body: &Arc<StoredBody>) {
        if let Some(disk) = &self.disk {
            disk.forget_head(body);
        }
    }

    /// Removes all bodies of that name from the disk.
    pub fn remove(&self, name: &str) {
        if let Some(disk) = &self.disk {
            disk.remove(name);
        }
    }

    /// Waits, for a second at most, until all removals so far are durable. `true` at once where the
    /// disk holds nothing that they cover; `false` where they could not be recorded.
    pub async fn removals_recorded(&self) -> bool {
        match &self.disk {
            Some(disk) => disk.removals_recorded().await,
            None => true,
        }
    }

    /// A slice from either tier, waiting for the disk where it must. `None` when it is missing or
    /// unreadable.
    pub async fn read_slice(&self, body: &Arc<StoredBody>, index: u32) -> Option<Bytes> {
        if let Some(slice) = self.get_now(body, index) {
            return Some(slice);
        }
        let bytes = self.disk.as_ref()?.read(body, index).await?;
        self.promote(body, index, &bytes);
        Some(bytes)
    }

    /// Stores the head of a body on disk, under a name. It replaces an earlier one of that body.
    pub fn put_head(&self, body: &Arc<StoredBody>, name: &str, group: Group, head: Bytes) {
        body.set_head_bytes(head.len() as u32);
        if let Some(disk) = &self.disk {
            disk.write_head(body, name, group, head);
        }
    }

    /// Holds the head of a body in memory, where it takes that many bytes, the body included, or notes
    /// its new size.
    /// When it is evicted, the body is announced as gone. So the response is to be found before.
    pub fn account_head(&self, body: &Arc<StoredBody>, bytes: u32) {
        body.set_head_bytes(bytes);
        self.memory.hold_head(body);
    }

    /// Holds the head of a body in memory, unless a tier holds a part of the body.
    pub fn keep_head(&self, body: &Arc<StoredBody>) {
        if !body.has_slices() {
            self.memory.hold_head(body);
        }
    }

    /// Evicts from memory until the budget is kept, for those who charge it for other things.
    pub fn make_room(&self) {
        self.memory.make_room();
    }

    /// Removes a body for good, so that the next start does not find it either. Takes time in
    /// proportion to the slices of the body.
    pub fn forget(&self, body: &Arc<StoredBody>) {
        self.memory.remove(body);
        if let Some(disk) = &self.disk {
            disk.forget(body);
        }
    }

    /// The bytes of memory that everything of the store takes.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// The memory in which slices lie.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Bytes of memory that are taken.
    pub fn memory_bytes(&self) -> u64 {
        self.budget.taken()
    }

    /// Heads and slices evicted from memory.
    pub fn memory_evictions(&self) -> u64 {
        self.memory.evictions()
    }

    /// Figures of the disk tier; `None` when there is none.
    pub fn disk_figures(&self) -> Option<DiskFigures> {
        self.disk.as_ref().map(DiskTier::figures)
    }

    /// The state of the disk; `None` when there is none.
    pub fn disk_state(&self) -> Option<DiskState> {
        self.disk.as_ref().map(DiskTier::state)
    }

    /// Why the files of the disk tier are not used at all, if they are not.
    pub fn disk_refusal(&self) -> Option<Arc<str>> {
        self.disk.as_ref()?.refusal()
    }

    /// Bytes that can be stored now without a dropped write.
    pub fn write_room(&self) -> u64 {
        self.disk.as_ref().map_or(u64::MAX, DiskTier::write_room)
    }

    /// Ends the work with the disk: writes what is queued and marks the files as complete. Blocking;
    /// called once, at shutdown.
    pub fn close(&self) {
        if let Some(disk) = &self.disk {
            disk.close();
        }
    }

    /// Has a checkpoint of the disk tier written, as happens now and then. For tests.
    #[cfg(any(test, feature = "testing"))]
    pub fn checkpoint(&self) {
        if let Some(disk) = &self.disk {
            disk.checkpoint();
        }
    }

    /// Waits until the writes queued before have been written to the files. Blocking.
    pub fn flush(&self) {
        if let Some(disk) = &self.disk {
            disk.flush();
        }
    }
}

/// Counts a run of a node without a disk tier, in the node's state directory. A later run with one
/// then knows that removals may have passed it by. Blocking.
pub fn note_run_without_disk(state_directory: &Path) {
    disk::note_run_without_disk(state_directory);
}

/// For fuzz targets: the name of the bodies in [`fuzz_record`].
#[doc(hidden)]
pub const FUZZ_NAME: &str = disk::fuzz::NAME;

/// For fuzz targets: a record with good checksums, padded to where the next one begins. `kind` is
/// the number of a kind on disk; `None` when there is no such kind.
#[doc(hidden)]
pub fn fuzz_record(
    kind: u8,
    body: u64,
    index: u32,
    sequence: u64,
    payload: &[u8],
    offset: usize,
) -> Option<Vec<u8>> {
    disk::fuzz::record(kind, body, index, sequence, payload, offset)
}

/// For fuzz targets: the files of a store with these bytes in its first region.
#[doc(hidden)]
pub fn fuzz_store_files(directory: &Path, region: &[u8]) -> std::io::Result<()> {
    disk::fuzz::make_files(directory, region)
}

/// The first body number of this process: random in 63 bits, so that it meets no number of an
/// earlier run.
fn first_body() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() >> 1
}
