//! What the tiers share about one body: its number, its counters and the count of its slices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::memory::resident::Resident;

/// The number of a body. No number is given twice, not even after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BodyId(pub u64);

/// Names one slice of one body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SliceKey {
    pub body: BodyId,
    /// Position among the slices of the body, from 0.
    pub index: u32,
}

/// Which share of the disk holds a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// Bodies that were fetched because a client requested them.
    Pull,
    /// Bodies that a push order fetched ahead of clients.
    Pushed,
}

impl Pool {
    /// Both pools, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Pull, Self::Pushed];
}

/// A body as the store knows it. Everything that holds a part of it shares it.
#[derive(Debug)]
pub struct StoredBody {
    /// Its number.
    pub id: BodyId,
    /// A number that the user of the store chose. It comes back when the body is gone.
    pub owner: u128,
    /// Never changes: the record that forgets a body must be in the same pool as its head, or it
    /// could be evicted before it.
    pool: Pool,
    /// What holds it: its entry in the memory tier.
    holders: AtomicU32,
    /// One more than the highest slice index ever stored.
    slices: AtomicU32,
    /// Memory that its head takes.
    head_bytes: AtomicU32,
    /// What of it is in memory. The memory tier writes it.
    pub(crate) resident: Mutex<Resident>,
    /// Uses since the policy of the memory tier last asked.
    uses: AtomicU8,
    /// Whether it was used since it was last written to disk. Used bodies get a second chance when
    /// their region is evicted.
    touched: AtomicBool,
    /// Under which it is on disk; 0 for not at all.
    disk_key: [AtomicU64; 2],
    gone: mpsc::UnboundedSender<Gone>,
}

/// A body that no tier holds any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// The number of the body.
    pub id: BodyId,
    /// Its owner.
    pub owner: u128,
}

impl StoredBody {
    /// A body without slices. Its end is sent to `gone`.
    pub fn new(
        id: BodyId,
        owner: u128,
        pool: Pool,
        gone: mpsc::UnboundedSender<Gone>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            owner,
            pool,
            holders: AtomicU32::new(0),
            slices: AtomicU32::new(0),
            head_bytes: AtomicU32::new(0),
            resident: Mutex::default(),
            uses: AtomicU8::new(0),
            touched: AtomicBool::new(false),
            disk_key: [AtomicU64::new(0), AtomicU64::new(0)],
            gone,
        })
    }

    /// The share of the disk that holds it.
    pub fn pool(&self) -> Pool {
        self.pool
    }

    /// Whether any tier holds a part of it.
    pub fn has_slices(&self) -> bool {
        self.holders.load(Ordering::Acquire) > 0
    }

    /// Counts one more that holds a part of it.
    pub(crate) fn hold(&self) {
        self.holders.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts one less. The last one announces that the body is gone.
    pub(crate) fn release(&self) {
        if self.holders.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The receiver has ended only while the process ends.
            let _ = self.gone.send(Gone {
                id: self.id,
                owner: self.owner,
            });
        }
    }

    /// One more than the highest slice index ever stored: how many positions
    /// [`Store::forget`](super::Store::forget) visits.
    pub fn slices(&self) -> u32 {
        self.slices.load(Ordering::Relaxed)
    }

    /// Notes that a slice of that index is stored.
    pub fn note_slice(&self, index: u32) {
        self.slices
            .fetch_max(index.saturating_add(1), Ordering::Relaxed);
    }

    /// Marks it as used: memory keeps it longer, and its slices on disk get a second chance when
    /// their region is evicted.
    pub fn touch(&self) {
        self.count_use();
        // Looking first keeps the cache line shared between threads.
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was used since the last call.
    pub fn take_touched(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }

    /// Counts a use for the memory tier.
    pub(crate) fn count_use(&self) {
        let uses = self.uses.load(Ordering::Relaxed);
        if uses < u8::MAX {
            // Of two uses at once one may be lost, which is cheaper than an exact count.
            self.uses.store(uses + 1, Ordering::Relaxed);
        }
    }

    /// Uses since the last call.
    pub(crate) fn take_uses(&self) -> u32 {
        u32::from(self.uses.swap(0, Ordering::Relaxed))
    }

    pub(crate) fn set_head_bytes(&self, bytes: u32) {
        self.head_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Memory that its head takes.
    pub(crate) fn head_bytes(&self) -> u32 {
        self.head_bytes.load(Ordering::Relaxed)
    }

    /// Notes under which key its head is on disk. The key never changes.
    pub(crate) fn set_disk_key(&self, key: u128) {
        self.disk_key[0].store(key as u64, Ordering::Relaxed);
        self.disk_key[1].store((key >> 64) as u64, Ordering::Release);
    }

    /// The key under which its head is on disk, or on its way to it.
    pub(crate) fn disk_key(&self) -> Option<u128> {
        // The upper half of a key is never 0, and is written last.
        let high = self.disk_key[1].load(Ordering::Acquire);
        let low = self.disk_key[0].load(Ordering::Relaxed);
        (high != 0).then_some(u128::from(high) << 64 | u128::from(low))
    }

    pub(crate) fn slice_key(&self, index: u32) -> SliceKey {
        SliceKey {
            body: self.id,
            index,
        }
    }
}
