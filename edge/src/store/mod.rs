//! The store: slices of bodies by key, in memory and on disk.
//!
//! Knows bytes and keys, never HTTP: a body is a number, an owner (a number its user chose) and a
//! row of slices of [`SLICE_BYTES`], the last one shorter; beside them lies one opaque description,
//! the head. Only fills write. A slice may be gone at any time; who needs it then fetches it again.
//!
//! Two pools share the disk, each with its own files and its own eviction, so that neither can push
//! the other out: what clients pulled and what was pushed ahead of them. Of what was pushed, bodies
//! of the newest wish ([`Store::wish_anew`]) stay: eviction takes others alone, and what does not
//! fit beside wanted ones is not written.

mod disk;
mod log;
mod memory;
mod record;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

pub(crate) use disk::DiskFigures;
use disk::DiskTier;
use memory::MemoryTier;

pub(crate) use nearcast_fleet::disk::SLICE_BYTES;

/// The number of a body; never given twice, not even after a restart.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BodyId(pub(crate) u64);

/// One slice of one body.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq, Hash)]
pub(crate) struct SliceKey {
    /// The body.
    pub(crate) body: BodyId,
    /// Place in the row, from 0.
    pub(crate) index: u32,
}

/// Which share of the disk a body lives in.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq)]
pub(crate) enum Pool {
    /// Fetched because a client asked.
    Pull,
    /// Fetched ahead by a push order.
    Pushed,
}

/// A body as the store knows it, shared by everything that holds a part of it.
#[derive(Debug)]
pub(crate) struct StoredBody {
    /// Its number.
    pub(crate) id: BodyId,
    /// A number of the user's, handed back when the body is gone.
    pub(crate) owner: u128,
    /// Never changed: what forgets a body must not be evicted before what describes it.
    pool: Pool,
    /// Copies of slices in either tier or on their way to disk.
    copies: AtomicU32,
    /// One more than the highest slice index ever stored.
    slices: AtomicU32,
    /// Length of the head, which the first slice pays for in memory.
    head_bytes: AtomicU32,
    /// Used since it was last written to disk: it may stay when its region is evicted.
    touched: AtomicBool,
    /// The newest wish that named it; see [`Store::want`].
    wish: AtomicU32,
    gone: mpsc::UnboundedSender<Gone>,
}

/// A body whose last slice has left the store.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq)]
pub(crate) struct Gone {
    /// The body.
    pub(crate) id: BodyId,
    /// Its owner number.
    pub(crate) owner: u128,
}

impl StoredBody {
    /// The share of the disk it lives in.
    pub(crate) fn pool(&self) -> Pool {
        self.pool
    }

    /// Whether any tier holds any slice of it.
    pub(crate) fn has_slices(&self) -> bool {
        self.copies.load(Ordering::Acquire) > 0
    }

    /// One more than the highest slice index ever stored: how many places [`Store::forget`] looks
    /// at.
    pub(crate) fn slices(&self) -> u32 {
        self.slices.load(Ordering::Relaxed)
    }

    /// Marks it as used, so that its slices on disk get a second life when their region is evicted.
    pub(crate) fn touch(&self) {
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
    }

    fn slice_key(&self, index: u32) -> SliceKey {
        SliceKey {
            body: self.id,
            index,
        }
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
            let _ = self.0.gone.send(Gone {
                id: self.0.id,
                owner: self.0.owner,
            });
        }
    }
}

/// How a store is laid out.
#[derive(Debug, Clone)]
pub(crate) struct StoreConfig {
    /// Bytes of slices kept in memory.
    pub(crate) memory_bytes: u64,
    /// The disk tier; `None` keeps everything in memory.
    pub(crate) disk: Option<DiskConfig>,
}

/// How the disk tier is laid out.
#[derive(Debug, Clone)]
pub(crate) struct DiskConfig {
    /// Directory of its files, made when it is missing.
    pub(crate) directory: PathBuf,
    /// Bytes for what clients pulled.
    pub(crate) pull_bytes: u64,
    /// Bytes for what was pushed.
    pub(crate) pushed_bytes: u64,
}

/// A body found on disk at start.
#[derive(Debug)]
pub(crate) struct RecoveredBody {
    /// Its number and pool; the owner is given by the caller of [`Store::recover`].
    pub(crate) body: Arc<StoredBody>,
    /// The head that was stored last.
    pub(crate) head: Bytes,
}

/// See the module's words.
#[derive(Debug)]
pub(crate) struct Store {
    memory: MemoryTier,
    disk: Option<DiskTier>,
    next_body: AtomicU64,
    /// The number of the newest wish.
    wish: Arc<AtomicU32>,
    gone: mpsc::UnboundedSender<Gone>,
}

impl Store {
    /// A store and the channel on which it names bodies that have left it.
    ///
    /// A disk that cannot be used is not an error: the disk tier starts turned off, with a warning.
    pub(crate) fn open(config: &StoreConfig) -> (Self, mpsc::UnboundedReceiver<Gone>) {
        let (gone, gone_rx) = mpsc::unbounded_channel();
        let wish = Arc::new(AtomicU32::new(1));
        let disk = config
            .disk
            .as_ref()
            .map(|disk| DiskTier::open(disk, config.memory_bytes, wish.clone()));
        (
            Self {
                memory: MemoryTier::new(config.memory_bytes),
                disk,
                next_body: AtomicU64::new(first_body()),
                wish,
                gone,
            },
            gone_rx,
        )
    }

    /// Reads what an earlier run left on disk and hands each body to `accept`, which returns its
    /// owner number, or `None` to forget it. Blocking; called once, before the first write.
    pub(crate) fn recover(
        &self,
        mut accept: impl FnMut(BodyId, &[u8]) -> Option<u128>,
        mut found: impl FnMut(RecoveredBody),
    ) {
        let Some(disk) = &self.disk else { return };
        let scan = disk.scan();
        for (id, found_body) in scan.bodies {
            let owner = accept(BodyId(id), &found_body.head);
            let body = self.body(BodyId(id), owner.unwrap_or(0), found_body.pool);
            body.head_bytes
                .store(found_body.head.len() as u32, Ordering::Relaxed);
            if owner.is_some() && disk.adopt(&body, found_body.slices, found_body.head_region) {
                found(RecoveredBody {
                    body,
                    head: found_body.head,
                });
            }
        }
        disk.start_writing();
    }

    /// A new, empty body. One that is pushed is wanted.
    pub(crate) fn new_body(&self, owner: u128, pool: Pool) -> Arc<StoredBody> {
        let body = self.body(
            BodyId(self.next_body.fetch_add(1, Ordering::Relaxed)),
            owner,
            pool,
        );
        if pool == Pool::Pushed {
            self.want(&body);
        }
        body
    }

    /// From here on no body is wanted but those that are named with [`want`](Self::want) or made
    /// for the pushed pool.
    pub(crate) fn wish_anew(&self) {
        self.wish.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps a pushed body on disk until the next wish. Others make way for it.
    pub(crate) fn want(&self, body: &StoredBody) {
        body.wish
            .store(self.wish.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn body(&self, id: BodyId, owner: u128, pool: Pool) -> Arc<StoredBody> {
        Arc::new(StoredBody {
            id,
            owner,
            pool,
            copies: AtomicU32::new(0),
            slices: AtomicU32::new(0),
            head_bytes: AtomicU32::new(0),
            touched: AtomicBool::new(false),
            wish: AtomicU32::new(0),
            gone: self.gone.clone(),
        })
    }

    /// A slice that is in memory. Never blocks.
    pub(crate) fn get_memory(&self, body: &StoredBody, index: u32) -> Option<Bytes> {
        self.memory.get(body.slice_key(index))
    }

    /// A slice that can be had without waiting for a disk: in memory, on its way to disk, or in the
    /// page cache. Slices read from disk are kept in memory from then on.
    pub(crate) fn get_now(&self, body: &Arc<StoredBody>, index: u32) -> Option<Bytes> {
        let key = body.slice_key(index);
        if let Some(bytes) = self.memory.get(key) {
            return Some(bytes);
        }
        let bytes = self.disk.as_ref()?.read_now(key)?;
        self.promote(body, index, &bytes);
        Some(bytes)
    }

    /// A slice from disk, waiting for it. `None` when it is not there or not readable. Blocking.
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
            self.head_share(body, index),
            Copy::new(body),
        );
    }

    /// Whether a slice is in either tier.
    pub(crate) fn contains(&self, body: &StoredBody, index: u32) -> bool {
        let key = body.slice_key(index);
        self.memory.contains(key) || self.disk.as_ref().is_some_and(|d| d.contains(key))
    }

    /// Whether a slice is where it lasts: on disk or on its way there; in memory where there is no
    /// disk.
    pub(crate) fn is_kept(&self, body: &StoredBody, index: u32) -> bool {
        let key = body.slice_key(index);
        self.disk
            .as_ref()
            .map_or_else(|| self.memory.contains(key), |disk| disk.contains(key))
    }

    /// Stores a slice in memory and, in time, on disk. Never blocks: with the disk far behind the
    /// slice is kept in memory alone, and counted as shed.
    pub(crate) fn put(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        body.slices.fetch_max(index + 1, Ordering::Relaxed);
        if let Some(disk) = &self.disk {
            disk.write_slice(body, index, bytes.clone());
        }
        self.put_in_memory(body, index, bytes);
    }

    /// Stores a slice in memory alone, for a body that nobody will look for again.
    pub(crate) fn put_in_memory(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        body.slices.fetch_max(index + 1, Ordering::Relaxed);
        self.memory.insert(
            body.slice_key(index),
            bytes,
            self.head_share(body, index),
            Copy::new(body),
        );
    }

    /// Stores a slice of a body on disk alone, for content that nobody has asked for yet.
    pub(crate) fn put_on_disk(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        body.slices.fetch_max(index + 1, Ordering::Relaxed);
        match &self.disk {
            Some(disk) => disk.write_slice(body, index, bytes),
            None => self.put(body, index, bytes),
        }
    }

    /// Stores the head of a body on disk, replacing an earlier one.
    pub(crate) fn put_head(&self, body: &Arc<StoredBody>, head: Bytes) {
        body.head_bytes.store(head.len() as u32, Ordering::Relaxed);
        if let Some(disk) = &self.disk {
            disk.write_head(body, head);
        }
    }

    /// How many bytes the description of a body takes, for the accounts of the memory tier.
    pub(crate) fn account_head(&self, body: &StoredBody, bytes: u32) {
        body.head_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Removes a body for good, also from what the next start would find. Takes time for each of
    /// its slices.
    pub(crate) fn forget(&self, body: &Arc<StoredBody>) {
        for index in 0..body.slices() {
            self.memory.remove(body.slice_key(index));
        }
        if let Some(disk) = &self.disk {
            disk.forget(body);
        }
    }

    /// Bytes in memory.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Slices that left memory for space.
    pub(crate) fn memory_evictions(&self) -> u64 {
        self.memory.evictions()
    }

    /// The disk tier's figures; `None` when there is no disk tier.
    pub(crate) fn disk_figures(&self) -> Option<DiskFigures> {
        self.disk.as_ref().map(DiskTier::figures)
    }

    /// How far the queue to the disk is from full: bytes that can be put now without being shed.
    pub(crate) fn write_room(&self) -> u64 {
        self.disk.as_ref().map_or(u64::MAX, DiskTier::write_room)
    }

    /// Waits until everything written before is on its way out of this process. Blocking.
    pub(crate) fn flush(&self) {
        if let Some(disk) = &self.disk {
            disk.flush();
        }
    }

    fn head_share(&self, body: &StoredBody, index: u32) -> u32 {
        if index == 0 {
            body.head_bytes.load(Ordering::Relaxed)
        } else {
            0
        }
    }
}

/// Where a process starts to number its bodies: at random in 63 bits, so that it meets none of an
/// earlier run.
fn first_body() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() >> 1
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const OWNER: u128 = 7;

    /// Head and, for each of the first three slices, its bytes.
    type Found = (Bytes, [Option<Bytes>; 3]);

    /// A store on a directory, with what it finds there.
    fn open(directory: &Path) -> (Store, Vec<Found>) {
        let disk = DiskConfig {
            directory: directory.to_owned(),
            pull_bytes: 16 << 20,
            pushed_bytes: 0,
        };
        let (store, _gone) = Store::open(&StoreConfig {
            memory_bytes: 1 << 20,
            disk: Some(disk),
        });
        let mut found = Vec::new();
        store.recover(|_, _| Some(OWNER), |body| found.push(body));
        let mut found: Vec<_> = found
            .iter()
            .map(|f| {
                (
                    f.head.clone(),
                    [0, 1, 2].map(|index| store.read_blocking(&f.body, index)),
                )
            })
            .collect();
        found.sort_by(|one, other| one.0.cmp(&other.0));
        (store, found)
    }

    fn put(store: &Store, head: &'static str, slices: usize) -> Arc<StoredBody> {
        let body = store.new_body(OWNER, Pool::Pull);
        for index in 0..slices as u32 {
            store.put(&body, index, slice(head, index));
        }
        store.put_head(&body, Bytes::from_static(head.as_bytes()));
        store.flush();
        body
    }

    fn slice(head: &str, index: u32) -> Bytes {
        format!("{head} {index} ").repeat(1000).into()
    }

    fn region(directory: &Path) -> std::path::PathBuf {
        let mut files: Vec<_> = fs::read_dir(directory.join("pull"))
            .expect("it was made")
            .map(|f| f.expect("readable").path())
            .collect();
        files.sort();
        files.pop().expect("a region was written")
    }

    /// Changes one byte where `text` first stands in a file.
    fn damage(file: &Path, text: &str) {
        let mut bytes = fs::read(file).expect("readable");
        let at = bytes
            .windows(text.len())
            .position(|w| w == text.as_bytes())
            .expect("it was written");
        bytes[at] ^= 1;
        fs::write(file, bytes).expect("writable");
    }

    #[test]
    fn what_was_written_is_found_again_and_what_was_forgotten_never() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (store, _) = open(directory.path());
        put(&store, "kept", 2);
        let forgotten = put(&store, "forgotten", 2);
        store.forget(&forgotten);
        // Still in the queue when it is forgotten.
        let queued = store.new_body(OWNER, Pool::Pull);
        store.put(&queued, 0, slice("queued", 0));
        store.put_head(&queued, Bytes::from_static(b"queued"));
        store.forget(&queued);
        store.flush();
        drop(store);
        for _ in 0..2 {
            let (store, found) = open(directory.path());
            assert_eq!(
                found,
                [(
                    Bytes::from_static(b"kept"),
                    [Some(slice("kept", 0)), Some(slice("kept", 1)), None]
                )]
            );
            store.flush();
        }
    }

    #[test]
    fn a_region_that_was_half_written_at_a_crash_gives_what_is_whole() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (store, _) = open(directory.path());
        put(&store, "first", 2);
        let whole = fs::metadata(region(directory.path()))
            .expect("readable")
            .len();
        put(&store, "second", 2);
        drop(store);
        let file = region(directory.path());
        let all = fs::read(&file).expect("readable");
        let first = (
            Bytes::from_static(b"first"),
            [Some(slice("first", 0)), Some(slice("first", 1)), None],
        );
        // In a header, in a slice, and with a slice but without the head; a hole where the kernel
        // had written no page yet.
        let record = slice("second", 0).len() as u64 + 40;
        for (length, has_hole) in [
            (whole + 7, false),
            (whole + 500, false),
            (whole + record + 500, false),
            (whole + record, true),
        ] {
            let mut left = all[..length as usize].to_vec();
            left.resize(if has_hole { all.len() } else { left.len() }, 0);
            fs::write(&file, left).expect("writable");
            let (_store, found) = open(directory.path());
            assert_eq!(
                found,
                std::slice::from_ref(&first),
                "cut at {length} of {}",
                all.len()
            );
        }
        let (store, _) = open(directory.path());
        put(&store, "third", 1);
        drop(store);
        let (_store, found) = open(directory.path());
        assert_eq!(
            found,
            [
                first,
                (
                    Bytes::from_static(b"third"),
                    [Some(slice("third", 0)), None, None]
                )
            ]
        );
    }

    #[test]
    fn bytes_that_changed_on_disk_are_never_served() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (store, _) = open(directory.path());
        put(&store, "one", 2);
        put(&store, "two", 1);
        drop(store);
        damage(&region(directory.path()), "one 1 ");
        let (store, found) = open(directory.path());
        assert_eq!(
            found[0],
            (
                Bytes::from_static(b"one"),
                [Some(slice("one", 0)), None, None]
            )
        );
        assert_eq!(
            (found.len(), store.disk_figures().expect("a disk").errors),
            (2, 1)
        );
        drop(store);
        let head = fs::read(region(directory.path())).expect("readable");
        let at = head
            .windows(3)
            .rposition(|w| w == b"two")
            .expect("its head");
        let mut bytes = head;
        bytes[at] ^= 1;
        fs::write(region(directory.path()), bytes).expect("writable");
        let (_store, found) = open(directory.path());
        assert!(
            matches!(&found[..], [(head, _)] if head.as_ref() == b"one"),
            "a body without its head is nothing: {found:?}"
        );
    }

    #[test]
    fn what_waits_for_the_disk_is_bounded_by_the_memory_there_is() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (memory_bytes, most) in [
            (4 << 20, 8 << 20),
            (32 << 20, 32 << 20),
            (1 << 30, 64 << 20),
        ] {
            let disk = DiskConfig {
                directory: directory.path().to_owned(),
                pull_bytes: 16 << 20,
                pushed_bytes: 0,
            };
            let (store, _gone) = Store::open(&StoreConfig {
                memory_bytes,
                disk: Some(disk),
            });
            assert_eq!(store.write_room(), most);
            // Nothing is written before the earlier run was looked at.
            let body = store.new_body(OWNER, Pool::Pull);
            let slices = (most / SLICE_BYTES as u64 + 10) as u32;
            (0..slices).for_each(|index| {
                store.put_on_disk(&body, index, Bytes::from(vec![0; SLICE_BYTES]))
            });
            let shed = store.disk_figures().expect("a disk").shed;
            assert!(
                (10..=12).contains(&shed) && store.write_room() < SLICE_BYTES as u64 + 40,
                "{shed} shed of {slices}"
            );
        }
    }

    fn open_pushed(directory: &Path, pushed_bytes: u64) -> (Store, Vec<RecoveredBody>) {
        let disk = DiskConfig {
            directory: directory.to_owned(),
            pull_bytes: 0,
            pushed_bytes,
        };
        let (store, _gone) = Store::open(&StoreConfig {
            memory_bytes: 64 << 20,
            disk: Some(disk),
        });
        let mut found = Vec::new();
        store.recover(|_, _| Some(OWNER), |body| found.push(body));
        (store, found)
    }

    fn push(store: &Store, length: u64) -> Arc<StoredBody> {
        let body = store.new_body(OWNER, Pool::Pushed);
        let mut left = length as usize;
        for index in 0.. {
            let slice = left.min(SLICE_BYTES);
            store.put_on_disk(&body, index, Bytes::from(vec![index as u8; slice]));
            left -= slice;
            if left == 0 {
                break;
            }
        }
        store.put_head(&body, Bytes::from(vec![b'h'; 1500]));
        // Fills wait for room in the queue; so does this.
        store.flush();
        body
    }

    fn is_whole(store: &Store, body: &StoredBody, length: u64) -> bool {
        (0..length.div_ceil(SLICE_BYTES as u64) as u32).all(|index| store.is_kept(body, index))
    }

    /// Lengths of bodies of about that size that fill a share to what is usable of it.
    fn lengths_that_fit(share: u64, about: u64, seed: u64) -> Vec<u64> {
        let mut left = nearcast_fleet::disk::usable_bytes(share);
        let mut lengths = Vec::new();
        loop {
            let length =
                about / 2 + (lengths.len() as u64 + 1) * (seed * 2_654_435_761 % about) % about;
            match left.checked_sub(nearcast_fleet::disk::stored_bytes(length)) {
                Some(rest) => left = rest,
                None => return lengths,
            }
            lengths.push(length);
        }
    }

    #[test]
    fn what_fits_a_share_is_there_night_after_night() {
        for (share, about) in [
            (8 << 20, 100_000),
            (16 << 20, 700_000),
            (32 << 20, 262_143),
            (32 << 20, 1_500_000),
            (48 << 20, 5_000),
        ] {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let (store, _) = open_pushed(directory.path(), share);
            let mut kept: Vec<(Arc<StoredBody>, u64)> = Vec::new();
            for night in 0..4 {
                store.wish_anew();
                // Half of the last night's bodies are wanted again: every other one, so that they
                // lie everywhere.
                let mut number = night;
                kept.retain(|_| {
                    number += 1;
                    number % 2 == 0
                });
                kept.iter().for_each(|(body, _)| store.want(body));
                let taken: u64 = kept
                    .iter()
                    .map(|(_, length)| nearcast_fleet::disk::stored_bytes(*length))
                    .sum();
                let mut left = nearcast_fleet::disk::usable_bytes(share) - taken;
                for length in lengths_that_fit(share, about, 7 + night) {
                    let Some(rest) = left.checked_sub(nearcast_fleet::disk::stored_bytes(length))
                    else {
                        break;
                    };
                    left = rest;
                    kept.push((push(&store, length), length));
                }
                let whole = kept
                    .iter()
                    .filter(|(body, length)| is_whole(&store, body, *length))
                    .count();
                assert_eq!(
                    whole,
                    kept.len(),
                    "share {share}, bodies of about {about}, night {night}"
                );
            }
            assert_eq!(store.disk_figures().expect("a disk").shed, 0);
            drop(store);
            let (_, found) = open_pushed(directory.path(), share);
            let found = kept
                .iter()
                .filter(|(body, _)| {
                    found
                        .iter()
                        .any(|f| f.body.id == body.id && f.head.len() == 1500)
                })
                .count();
            assert_eq!(
                found,
                kept.len(),
                "their heads are there at the next start, too"
            );
        }
    }

    #[test]
    fn what_does_not_fit_beside_wanted_bodies_is_not_written() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (store, _) = open_pushed(directory.path(), 8 << 20);
        let lengths = lengths_that_fit(8 << 20, 300_000, 7);
        let first: Vec<_> = lengths
            .iter()
            .map(|length| (push(&store, *length), *length))
            .collect();
        let beyond: Vec<_> = (0..40).map(|_| push(&store, 300_000)).collect();
        assert!(
            first
                .iter()
                .all(|(body, length)| is_whole(&store, body, *length)),
            "what came first has gone"
        );
        assert!(store.disk_figures().expect("a disk").shed > 30);
        assert!(!is_whole(&store, &beyond[39], 300_000));
        // A body that is forgotten makes room, and so does a new wish.
        store.forget(&first[0].0);
        store.forget(&first[1].0);
        store.flush();
        let next = push(&store, 250_000);
        assert!(is_whole(&store, &next, 250_000));
        store.wish_anew();
        let newest: Vec<_> = lengths
            .iter()
            .map(|length| (push(&store, *length), *length))
            .collect();
        assert!(
            newest
                .iter()
                .all(|(body, length)| is_whole(&store, body, *length))
        );
    }

    #[test]
    fn a_file_that_is_no_region_is_taken_away_and_others_stay() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (store, _) = open(directory.path());
        put(&store, "kept", 1);
        drop(store);
        let odd = directory
            .path()
            .join("pull")
            .join("region-00000000000000ff");
        fs::write(&odd, b"nothing of ours, but long enough to be read").expect("writable");
        let (_store, found) = open(directory.path());
        assert_eq!(found.len(), 1);
        assert!(!odd.exists());
    }
}
