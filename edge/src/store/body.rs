//! What the tiers share about one body: its number, its counters and the count of its slices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::mpsc;

/// The number of a body. No number is given twice, not even after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BodyId(pub(crate) u64);

/// Names one slice of one body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SliceKey {
    pub(crate) body: BodyId,
    /// Position among the slices of the body, from 0.
    pub(crate) index: u32,
}

/// Which share of the disk holds a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pool {
    /// Bodies that were fetched because a client requested them.
    Pull,
    /// Bodies that a push order fetched ahead of clients.
    Pushed,
}

impl Pool {
    /// Both pools, in the order of their numbers.
    pub(super) const ALL: [Self; 2] = [Self::Pull, Self::Pushed];
}

/// A body as the store knows it. Everything that holds a part of it shares it.
#[derive(Debug)]
pub(crate) struct StoredBody {
    pub(crate) id: BodyId,
    /// A number that the user of the store chose. It comes back when the body is gone.
    pub(crate) owner: u128,
    /// Never changes: the record that forgets a body must be in the same pool as its head, or it
    /// could be evicted before it.
    pool: Pool,
    /// Slices in either tier or in the queue to the disk; a slice in both tiers counts twice.
    slice_guards: AtomicU32,
    /// One more than the highest slice index ever stored.
    slices: AtomicU32,
    /// Length of the head, which the first slice pays for in memory.
    head_bytes: AtomicU32,
    /// Whether it was used since it was last written to disk. Used bodies get a second chance when
    /// their region is evicted.
    touched: AtomicBool,
    /// The newest epoch in which it was pinned.
    pin_epoch: AtomicU32,
    gone: mpsc::UnboundedSender<Gone>,
}

/// A body whose last slice has left the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(crate) id: BodyId,
    pub(crate) owner: u128,
}

impl StoredBody {
    /// A body without slices. Its end is sent to `gone`.
    pub(super) fn new(
        id: BodyId,
        owner: u128,
        pool: Pool,
        gone: mpsc::UnboundedSender<Gone>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            owner,
            pool,
            slice_guards: AtomicU32::new(0),
            slices: AtomicU32::new(0),
            head_bytes: AtomicU32::new(0),
            touched: AtomicBool::new(false),
            pin_epoch: AtomicU32::new(0),
            gone,
        })
    }

    /// The share of the disk that holds it.
    pub(crate) fn pool(&self) -> Pool {
        self.pool
    }

    /// Whether any tier holds a slice of it.
    pub(crate) fn has_slices(&self) -> bool {
        self.slice_guards.load(Ordering::Acquire) > 0
    }

    /// One more than the highest slice index ever stored: how many positions
    /// [`Store::forget`](super::Store::forget) visits.
    pub(crate) fn slices(&self) -> u32 {
        self.slices.load(Ordering::Relaxed)
    }

    /// Notes that a slice of that index is stored.
    pub(super) fn note_slice(&self, index: u32) {
        self.slices
            .fetch_max(index.saturating_add(1), Ordering::Relaxed);
    }

    /// Marks it as used, so that its slices on disk get a second chance when their region is
    /// evicted.
    pub(crate) fn touch(&self) {
        // Looking first keeps the cache line shared between threads.
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was used since the last call.
    pub(super) fn take_touched(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }

    pub(super) fn set_head_bytes(&self, bytes: u32) {
        self.head_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of the head that the slice of that index pays for in memory.
    pub(super) fn head_bytes_of(&self, index: u32) -> u32 {
        if index == 0 {
            self.head_bytes.load(Ordering::Relaxed)
        } else {
            0
        }
    }

    pub(super) fn pin(&self, epoch: u32) {
        self.pin_epoch.store(epoch, Ordering::Relaxed);
    }

    /// Whether eviction must keep it on disk: only pushed bodies are pinned.
    pub(super) fn is_pinned(&self, epoch: u32) -> bool {
        self.pool == Pool::Pushed && self.pin_epoch.load(Ordering::Relaxed) == epoch
    }

    pub(super) fn slice_key(&self, index: u32) -> SliceKey {
        SliceKey {
            body: self.id,
            index,
        }
    }
}

/// Counts one slice in one tier while it lives. The last guard of a body announces that the body is
/// gone.
#[derive(Debug)]
pub(super) struct SliceGuard(Arc<StoredBody>);

impl SliceGuard {
    pub(super) fn new(body: &Arc<StoredBody>) -> Self {
        body.slice_guards.fetch_add(1, Ordering::AcqRel);
        Self(body.clone())
    }

    pub(super) fn body(&self) -> &Arc<StoredBody> {
        &self.0
    }
}

impl Drop for SliceGuard {
    fn drop(&mut self) {
        if self.0.slice_guards.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The receiver has ended only while the process ends.
            let _ = self.0.gone.send(Gone {
                id: self.0.id,
                owner: self.0.owner,
            });
        }
    }
}
