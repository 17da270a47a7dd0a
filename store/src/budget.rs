//! The bytes that a store may take in memory, shared by everything that takes some.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What bytes of a budget are taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Heads of responses, with their entries in the index and in the memory tier.
    Heads,
    /// Memory of the arena: slices, and what it holds beside them.
    Slices,
    /// Bytes on their way from origins, and kept for readers.
    InFlight,
    /// The directory of what lies on disk.
    Directory,
    /// What waits to be written to disk.
    Queue,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Heads,
        Self::Slices,
        Self::InFlight,
        Self::Directory,
        Self::Queue,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Heads => "heads",
            Self::Slices => "slices",
            Self::InFlight => "in_flight",
            Self::Directory => "directory",
            Self::Queue => "queue",
        }
    }
}

/// A limit of bytes, and how many of them are taken.
///
/// Taking never fails: whoever takes bytes that can be given back on demand (the memory tier) looks
/// at [`excess`](Self::excess) and evicts; whoever cannot (a running fill) looks at
/// [`room`](Self::room) before it takes more.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    taken: AtomicU64,
    by_kind: [AtomicU64; Kind::ALL.len()],
}

impl Budget {
    /// A budget of that many bytes.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            taken: AtomicU64::new(0),
            by_kind: Default::default(),
        })
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that are taken.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Bytes that are taken for one kind.
    pub fn taken_for(&self, kind: Kind) -> u64 {
        self.by_kind[kind as usize].load(Ordering::Relaxed)
    }

    /// Bytes that are left.
    pub fn room(&self) -> u64 {
        self.limit.saturating_sub(self.taken())
    }

    /// Bytes that are taken beyond the limit.
    pub fn excess(&self) -> u64 {
        self.taken().saturating_sub(self.limit)
    }

    /// Takes bytes for what is in flight until the charge is dropped.
    pub fn charge(self: &Arc<Self>, bytes: u64) -> Charge {
        self.charge_for(Kind::InFlight, bytes)
    }

    /// Takes bytes until the charge is dropped.
    pub fn charge_for(self: &Arc<Self>, kind: Kind, bytes: u64) -> Charge {
        self.take(kind, bytes);
        Charge {
            budget: self.clone(),
            kind,
            bytes,
        }
    }

    /// Takes bytes that the caller gives back by [`give_back`](Self::give_back).
    pub(crate) fn take(&self, kind: Kind, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        self.by_kind[kind as usize].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back bytes of [`take`](Self::take).
    pub(crate) fn give_back(&self, kind: Kind, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
        self.by_kind[kind as usize].fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes of a budget, until it is dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    kind: Kind,
    bytes: u64,
}

impl Charge {
    /// Changes how many bytes it takes.
    pub fn set(&mut self, bytes: u64) {
        if bytes >= self.bytes {
            self.budget.take(self.kind, bytes - self.bytes);
        } else {
            self.budget.give_back(self.kind, self.bytes - bytes);
        }
        self.bytes = bytes;
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.kind, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let budget = Budget::new(100);
        let mut first = budget.charge(60);
        let second = budget.charge_for(Kind::Heads, 70);
        assert_eq!(
            (budget.taken(), budget.room(), budget.excess()),
            (130, 0, 30)
        );
        first.set(10);
        assert_eq!(
            (budget.taken(), budget.room(), budget.excess()),
            (80, 20, 0)
        );
        let by_kind = Kind::ALL.map(|kind| budget.taken_for(kind));
        assert_eq!(by_kind, [70, 0, 10, 0, 0]);
        drop((first, second));
        assert_eq!(
            (budget.taken(), budget.room(), budget.excess()),
            (0, 100, 0)
        );
        assert!(Kind::ALL.iter().all(|kind| budget.taken_for(*kind) == 0));
    }
}
