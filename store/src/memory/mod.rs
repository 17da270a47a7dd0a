//! The memory tier: heads of responses and slices of bodies, evicted while the budget is exceeded.
//!
//! An entry is a head, with the only slice of its body if that has one slice, or one slice of a
//! longer body. Where the bytes are is written in the body itself ([`resident`]), so that a hit
//! takes a lock of this body only, and counts a use there. Entries, their order and the policy are
//! behind one lock, which hits never take.
//!
//! When a head is evicted, the slices of its body leave with it, and the body is announced as gone
//! unless the disk holds a part of it: the index then drops the response.
//!
//! The budget counts more than the entries. While it is exceeded and the arena holds more than a 16th
//! of it without use, memory is given back by moving slices out of sparse spans; beyond that, by
//! eviction.

pub(crate) mod resident;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::arena::Arena;
use crate::body::StoredBody;
use crate::budget::{Budget, Charge, Kind};
use crate::measures::SLICE_BYTES;
use crate::policy::MemoryPolicy;
use resident::{NO_ENTRY, Part, Resident};

/// Memory of the owner of the slice that belongs to a head, with what the allocator adds. The body is
/// counted with its head.
const OWNER_BYTES: u32 = 48;
/// Memory of a slice with an entry of its own beside its bytes: its place in the table of its body,
/// the owner of its bytes.
const PART_BYTES: u32 = 192;
/// The budget's part that the arena may hold without use: one of so many.
const SLACK_SHARE: u64 = 16;
/// Least bytes that the arena may hold without use.
const SLACK_MIN: u64 = SLICE_BYTES as u64;
/// Entries that are added between two looks at the size of the bookkeeping.
const ADDED_BETWEEN_LOOKS: u32 = 256;
/// So many entries that came last are evicted only if nothing else is left: their first readers may
/// not have them yet.
const NEWEST: u32 = 64;
/// Stands for the head in the place of the index of a slice.
const HEAD: u32 = u32::MAX;

/// The memory tier.
#[derive(Debug)]
pub(crate) struct MemoryTier {
    budget: Arc<Budget>,
    arena: Arc<Arena>,
    entries: Mutex<Entries>,
    evictions: AtomicU64,
    slack_max: u64,
}

#[derive(Debug)]
struct Entries {
    entries: Vec<Option<Entry>>,
    /// Numbers of entries that are free.
    unused: Vec<u32>,
    policy: MemoryPolicy,
    bookkeeping: Charge,
    added: u32,
}

/// A head, or a slice of a longer body.
#[derive(Debug)]
struct Entry {
    body: Arc<StoredBody>,
    /// [`HEAD`], or the index of the slice.
    index: u32,
    /// How many had been added before.
    number: u32,
}

/// What left the tier. It is dropped without a lock, because that frees memory and announces bodies.
#[derive(Debug, Default)]
struct Left {
    bodies: Vec<Arc<StoredBody>>,
    slices: Vec<Bytes>,
    parts: Option<Box<resident::Parts>>,
    /// A body whose head left: it is held no longer.
    released: Option<Arc<StoredBody>>,
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(body) = &self.released {
            body.release();
        }
    }
}

impl MemoryTier {
    pub(crate) fn new(budget: Arc<Budget>, arena: Arc<Arena>) -> Self {
        let entries = Entries {
            entries: Vec::new(),
            unused: Vec::new(),
            policy: MemoryPolicy::default(),
            bookkeeping: budget.charge_for(Kind::Heads, 0),
            added: 0,
        };
        Self {
            slack_max: (budget.limit() / SLACK_SHARE).max(SLACK_MIN),
            budget,
            arena,
            entries: Mutex::new(entries),
            evictions: AtomicU64::new(0),
        }
    }

    /// A slice. A use of a body of one slice counts by [`StoredBody::touch`], a use of another slice
    /// here.
    pub(crate) fn get(&self, body: &StoredBody, index: u32) -> Option<Bytes> {
        body.resident.lock().get(index)
    }

    pub(crate) fn contains(&self, body: &StoredBody, index: u32) -> bool {
        body.resident.lock().contains(index)
    }

    /// Puts a slice into memory, with the head of its body.
    pub(crate) fn insert(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        let bytes = self.arena.adopt(bytes);
        let replaced = {
            let mut entries = self.entries.lock();
            let mut resident = body.resident.lock();
            let (entry, replaced) = if index == 0 && bytes.len() < SLICE_BYTES {
                let replaced = resident.whole.replace(bytes.clone());
                (self.set_head(&mut entries, body, &mut resident), replaced)
            } else {
                self.set_head(&mut entries, body, &mut resident);
                self.set_part(&mut entries, body, &mut resident, index, bytes.clone())
            };
            self.arena.set_tag(&bytes, entry);
            replaced
        };
        drop((replaced, bytes));
        self.make_room();
    }

    /// Holds the head of a body, or notes its new size.
    pub(crate) fn hold_head(&self, body: &Arc<StoredBody>) {
        {
            let mut entries = self.entries.lock();
            self.set_head(&mut entries, body, &mut body.resident.lock());
        }
        self.make_room();
    }

    /// Takes a body out.
    pub(crate) fn remove(&self, body: &StoredBody) {
        let left = {
            let mut entries = self.entries.lock();
            let head = body.resident.lock().head;
            if head == NO_ENTRY {
                return;
            }
            entries.policy.remove(head);
            self.take_out(&mut entries, head)
        };
        drop(left);
    }

    /// Evicts until the budget is kept, or nothing is left that can be evicted.
    pub(crate) fn make_room(&self) {
        let mut is_full = false;
        loop {
            let excess = self.budget.excess();
            if excess == 0 {
                break;
            }
            is_full = true;
            let is_slack = self.arena.slack() > self.slack_max;
            if is_slack && (self.arena.trim(excess) || self.compact()) {
                continue;
            }
            if !self.evict() {
                self.arena.trim(excess);
                break;
            }
        }
        // The last victim may have been a long slice that had to go for the few bytes of its head.
        while is_full
            && let surplus = self.arena.slack().saturating_sub(self.slack_max)
            && surplus > 0
            && (self.arena.trim(surplus) || self.compact())
        {}
    }

    /// Entries evicted so far.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Makes or updates the entry of a head, and returns it.
    fn set_head(
        &self,
        entries: &mut Entries,
        body: &Arc<StoredBody>,
        resident: &mut Resident,
    ) -> u32 {
        let (slice, on_heap) = match &resident.whole {
            Some(whole) if self.arena.owns(whole) => (whole.len() as u32, 0),
            Some(whole) => (whole.len() as u32, whole.len() as u32),
            None => (0, 0),
        };
        let own = OWNER_BYTES + body.head_bytes();
        self.recharge(&mut resident.head_charge, own + on_heap);
        let weight = own + slice;
        let is_new = resident.head == NO_ENTRY;
        if is_new {
            resident.head = entries.add(body, HEAD);
            body.hold();
        }
        // Small changes are not worth the order in which it stands.
        if is_new || resident.head_weight.abs_diff(weight) > resident.head_weight / 4 {
            resident.head_weight = weight;
            let (key, entry) = (policy_key(body, 0), resident.head);
            entries.policy.insert(entry, key, weight, u64::from(weight));
        }
        resident.head
    }

    /// Makes or replaces a slice with an entry of its own. Returns the entry and the bytes that were
    /// there before.
    fn set_part(
        &self,
        entries: &mut Entries,
        body: &Arc<StoredBody>,
        resident: &mut Resident,
        index: u32,
        bytes: Bytes,
    ) -> (u32, Option<Bytes>) {
        let length = bytes.len() as u32;
        let mut charge = PART_BYTES;
        if !self.arena.owns(&bytes) {
            charge += length;
        }
        let parts = resident.parts.get_or_insert_default();
        if let Some(part) = parts.get_mut(&index) {
            self.recharge(&mut part.charge, charge);
            return (part.entry, Some(std::mem::replace(&mut part.bytes, bytes)));
        }
        let entry = entries.add(body, index);
        let request_bytes = u64::from(body.slices()) * SLICE_BYTES as u64;
        let key = policy_key(body, index);
        let weight = length + PART_BYTES;
        entries.policy.insert(entry, key, weight, request_bytes);
        self.budget.take(Kind::Heads, u64::from(charge));
        let part = Part {
            bytes,
            entry,
            charge,
            uses: 0,
        };
        parts.insert(index, part);
        (entry, None)
    }

    fn recharge(&self, charge: &mut u32, bytes: u32) {
        let before = std::mem::replace(charge, bytes);
        if bytes >= before {
            self.budget.take(Kind::Heads, u64::from(bytes - before));
        } else {
            self.budget
                .give_back(Kind::Heads, u64::from(before - bytes));
        }
    }

    fn evict(&self) -> bool {
        let left = {
            let mut entries = self.entries.lock();
            let Entries {
                entries: all,
                policy,
                added,
                ..
            } = &mut *entries;
            let is_new = |entry: u32| match &all[entry as usize] {
                Some(entry) => added.wrapping_sub(entry.number) <= NEWEST,
                None => false,
            };
            let victim = policy
                .evict(|entry| (!is_new(entry)).then(|| take_uses(all, entry)))
                .or_else(|| policy.evict(|entry| Some(take_uses(all, entry))));
            let Some(entry) = victim else {
                return false;
            };
            self.take_out(&mut entries, entry)
        };
        self.evictions.fetch_add(1, Ordering::Relaxed);
        drop(left);
        true
    }

    /// Takes an entry out that the policy knows no longer. With a head, the slices of its body leave.
    fn take_out(&self, entries: &mut Entries, number: u32) -> Left {
        let mut left = Left::default();
        let Some(entry) = entries.free(number) else {
            return left;
        };
        let mut resident = entry.body.resident.lock();
        if entry.index == HEAD {
            resident.head = NO_ENTRY;
            self.recharge(&mut resident.head_charge, 0);
            left.slices.extend(resident.whole.take());
            left.parts = resident.parts.take();
            for part in left.parts.iter().flat_map(|parts| parts.values()) {
                entries.policy.remove(part.entry);
                let entry = entries.free(part.entry);
                left.bodies.extend(entry.map(|entry| entry.body));
                self.budget.give_back(Kind::Heads, u64::from(part.charge));
            }
            drop(resident);
            left.released = Some(entry.body);
            return left;
        }
        let part = resident
            .parts
            .as_mut()
            .and_then(|parts| parts.remove(&entry.index));
        if let Some(part) = part {
            self.budget.give_back(Kind::Heads, u64::from(part.charge));
            left.slices.push(part.bytes);
        }
        if resident
            .parts
            .as_ref()
            .is_some_and(|parts| parts.is_empty())
        {
            left.parts = resident.parts.take();
        }
        drop(resident);
        left.bodies.push(entry.body);
        left
    }

    /// Moves what lies in one sparse span. `false` when there is none.
    fn compact(&self) -> bool {
        let Some(tags) = self.arena.drain() else {
            return false;
        };
        for tag in tags {
            let replaced = {
                let entries = self.entries.lock();
                let Some(Some(entry)) = entries.entries.get(tag as usize) else {
                    continue;
                };
                let mut resident = entry.body.resident.lock();
                let Some(bytes) = resident.bytes_of(tag, entry.index) else {
                    continue;
                };
                let copy = self.arena.gather(std::slice::from_ref(bytes), bytes.len());
                self.arena.set_tag(&copy, tag);
                std::mem::replace(bytes, copy)
            };
            drop(replaced);
        }
        true
    }
}

impl Entries {
    fn add(&mut self, body: &Arc<StoredBody>, index: u32) -> u32 {
        let entry = Some(Entry {
            body: body.clone(),
            index,
            number: self.added,
        });
        self.added = self.added.wrapping_add(1);
        if self.added.is_multiple_of(ADDED_BETWEEN_LOOKS) {
            let own = self.entries.capacity() * size_of::<Option<Entry>>()
                + self.unused.capacity() * size_of::<u32>();
            self.bookkeeping
                .set((own + self.policy.memory_bytes()) as u64);
        }
        match self.unused.pop() {
            Some(number) => {
                self.entries[number as usize] = entry;
                number
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        }
    }

    fn free(&mut self, number: u32) -> Option<Entry> {
        let entry = self.entries.get_mut(number as usize)?.take();
        if entry.is_some() {
            self.unused.push(number);
        }
        entry
    }
}

/// How often an entry was used since the last call.
fn take_uses(entries: &[Option<Entry>], number: u32) -> u32 {
    let Some(Some(entry)) = entries.get(number as usize) else {
        return 0;
    };
    if entry.index == HEAD {
        return entry.body.take_uses();
    }
    let mut resident = entry.body.resident.lock();
    let part = resident
        .parts
        .as_mut()
        .and_then(|parts| parts.get_mut(&entry.index));
    let uses = part.map_or(0, |part| std::mem::take(&mut part.uses));
    if uses > 0 {
        // The head of a body that is read stays as long as its slices.
        entry.body.count_use();
    }
    u32::from(uses)
}

/// The key by which the policy remembers an entry. It is the same for the next body of the same
/// owner.
fn policy_key(body: &StoredBody, index: u32) -> u64 {
    let owner = (body.owner ^ (body.owner >> 64)) as u64;
    owner ^ u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests;
