//! The memory in which slices lie.
//!
//! One range of addresses ([`area`]), in pages ([`pages`]), of which runs are spans of slots of one
//! length ([`spans`], [`classes`]). Freed slots are used again, so that neither a hit nor a miss
//! causes page faults once the tier is full; while there is room, memory comes as huge pages.
//!
//! What is charged to the budget: every page that has memory behind it, whatever is in it. So slots
//! that are free, the unused end of a slot and pages kept for later are paid for. [`Arena::slack`]
//! is the part of it in which nothing lies. The memory tier bounds it: it gives back idle pages
//! ([`Arena::trim`]) and moves slices out of sparse spans ([`Arena::drain`]).

mod area;
mod classes;
mod pages;
mod spans;

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::budget::{Budget, Kind};
use area::{Area, HUGE_BYTES, Piece};
use classes::{CLASSES, PAGE_BYTES, Shape, class_of};
use pages::{CHUNK_PAGES, Pages};
use spans::Spans;

/// Most addresses that are reserved. Beyond them buffers come from the heap.
const RESERVED_BYTES_MAX: u64 = 1 << 40;
/// Least addresses beyond the limit, for what is in use while the limit is exceeded.
const RESERVED_BESIDE: u64 = 64 << 20;
/// A chunk begins as a huge page while so much room is left.
const ROOM_FOR_HUGE: u64 = 4 * HUGE_BYTES as u64;
/// While less room than this is left, a slice may lie in a slot that is some classes longer, before
/// a new span is made.
const ROOM_FOR_SPANS: u64 = 1 << 20;
const LONGER_CLASSES: usize = 2;

/// No span, in the map of pages.
const NOTHING: u32 = u32::MAX;
const SPAN_BITS: u32 = 23;

/// Gives out buffers for slices.
#[derive(Debug)]
pub struct Arena(Arc<Shared>);

/// What the arena and its slots share.
#[derive(Debug)]
struct Shared {
    /// `None` when no addresses could be reserved: then all buffers come from the heap.
    area: Option<Area>,
    budget: Arc<Budget>,
    pages: Mutex<Pages>,
    classes: Box<[Mutex<Spans>]>,
    shapes: Box<[Shape]>,
    /// Class and number of the span of each page, by chunk.
    map: Box<[OnceLock<Box<[AtomicU32; CHUNK_PAGES]>>]>,
    /// Bytes of slots in use.
    used: AtomicU64,
    /// Bytes of pages that have memory behind them.
    backed: AtomicU64,
    /// The class in which the next search for a sparse span begins.
    cursor: AtomicUsize,
}

/// A buffer that is being filled.
#[derive(Debug)]
pub struct Buffer(Memory);

#[derive(Debug)]
enum Memory {
    Slot(Slot),
    Heap(BytesMut),
}

/// A slot in use.
#[derive(Debug)]
struct Slot {
    piece: Piece,
    shared: Arc<Shared>,
}

impl Arena {
    /// An arena whose pages are charged to a budget.
    pub fn new(budget: Arc<Budget>) -> Self {
        let wanted = budget
            .limit()
            .saturating_mul(2)
            .max(budget.limit().saturating_add(RESERVED_BESIDE))
            .min(RESERVED_BYTES_MAX);
        let bytes = (wanted as usize).next_multiple_of(HUGE_BYTES);
        let area = Area::reserve(bytes)
            .inspect_err(|error| {
                tracing::warn!(%error, "cannot reserve addresses for the store's memory; it uses the heap");
            })
            .ok();
        let chunks = area.as_ref().map_or(0, |area| area.bytes() / HUGE_BYTES);
        let shapes: Box<[Shape]> = (0..CLASSES).map(classes::shape).collect();
        let spans = shapes.iter().map(|shape| Mutex::new(Spans::new(*shape)));
        Self(Arc::new(Shared {
            area,
            budget,
            pages: Mutex::new(Pages::new(chunks)),
            classes: spans.collect(),
            shapes,
            map: (0..chunks).map(|_| OnceLock::new()).collect(),
            used: AtomicU64::new(0),
            backed: AtomicU64::new(0),
            cursor: AtomicUsize::new(0),
        }))
    }

    /// A buffer of `length` bytes, whose content is not specified.
    pub fn buffer(&self, length: usize) -> Buffer {
        match Shared::take(&self.0, length) {
            Some(slot) => Buffer(Memory::Slot(slot)),
            None => Buffer(Memory::Heap(BytesMut::zeroed(length))),
        }
    }

    /// One buffer with the bytes of all pieces, `length` together.
    pub fn gather(&self, pieces: &[Bytes], length: usize) -> Bytes {
        let mut buffer = self.buffer(length);
        let mut at = 0;
        for piece in pieces {
            buffer[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        buffer.freeze()
    }

    /// The same bytes, in the arena. Bytes that are a part of a slot are copied as well: they would
    /// keep the whole of it.
    pub fn adopt(&self, bytes: Bytes) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        let length = bytes.len();
        let is_fitting = self
            .0
            .class_at(bytes.as_ptr())
            .is_some_and(|class| class_of(length).is_some_and(|own| class <= own + LONGER_CLASSES));
        if is_fitting {
            bytes
        } else {
            self.gather(&[bytes], length)
        }
    }

    /// Whether bytes lie in the arena, which has charged them.
    pub fn owns(&self, bytes: &Bytes) -> bool {
        let area = self.0.area.as_ref();
        area.is_some_and(|area| area.offset_of(bytes.as_ptr()).is_some())
    }

    /// Bytes of memory that it holds, all of them charged.
    pub fn held_bytes(&self) -> u64 {
        self.0.backed.load(Ordering::Relaxed)
    }

    /// Bytes of memory that it holds and in which nothing lies.
    pub fn slack(&self) -> u64 {
        self.held_bytes()
            .saturating_sub(self.0.used.load(Ordering::Relaxed))
    }

    /// Gives back whole pages in which nothing lies, at least `bytes` if there are so many. Not more:
    /// what is given back now causes page faults later. `false` when there was none.
    pub(crate) fn trim(&self, bytes: u64) -> bool {
        self.0.trim(bytes.div_ceil(PAGE_BYTES as u64) as usize)
    }

    /// Chooses a sparse span, which gives out no more slots. Returns the tags of what lies in it:
    /// when that has been moved, its pages are idle.
    pub(crate) fn drain(&self) -> Option<Vec<u32>> {
        let shared = &self.0;
        (0..CLASSES).find_map(|_| {
            let class = shared.cursor.fetch_add(1, Ordering::Relaxed) % CLASSES;
            shared.classes[class].lock().drain()
        })
    }

    /// Notes by which tag [`drain`](Self::drain) names these bytes.
    pub(crate) fn set_tag(&self, bytes: &Bytes, tag: u32) {
        self.0.at(bytes.as_ptr(), |spans, number, slot| {
            spans.set_tag(number, slot, tag);
        });
    }
}

impl Default for Arena {
    /// An arena with a budget of its own.
    fn default() -> Self {
        Self::new(Budget::new(1 << 30))
    }
}

impl Shared {
    fn take(shared: &Arc<Self>, length: usize) -> Option<Slot> {
        let area = shared.area.as_ref()?;
        let class = class_of(length)?;
        let (offset, slot_bytes) = shared.take_slot(class)?;
        shared.used.fetch_add(slot_bytes, Ordering::Relaxed);
        debug_assert!(length as u64 <= slot_bytes);
        #[allow(unsafe_code)] // The one place that turns a slot into bytes.
        // SAFETY: the slot was usable and free, and is marked as used until the `Slot` that holds
        // this piece is dropped. Pages of a span with used slots are never released, and the area
        // lives as long as `shared`, which the `Slot` holds.
        let piece = unsafe { area.piece(offset, length as u32) };
        Some(Slot {
            piece,
            shared: shared.clone(),
        })
    }

    /// A free slot of a class: where it lies in the area, and its length.
    fn take_slot(&self, class: usize) -> Option<(usize, u64)> {
        let mut own = self.classes[class].lock();
        if let Some(slot) = own.take() {
            return Some(place(&own, slot));
        }
        if self.budget.room() < ROOM_FOR_SPANS {
            // Classes are locked in ascending order, so two threads never wait for each other.
            for longer in class + 1..(class + 1 + LONGER_CLASSES).min(CLASSES) {
                let mut longer = self.classes[longer].lock();
                if let Some(slot) = longer.take() {
                    return Some(place(&longer, slot));
                }
            }
        }
        if own.len() >> SPAN_BITS != 0 {
            return None;
        }
        let pages = own.shape().pages;
        let page = self.take_pages(pages)?;
        let number = own.add(page);
        for page in page..page + pages {
            self.entry(page)
                .store((class as u32) << SPAN_BITS | number, Ordering::Relaxed);
        }
        own.take().map(|slot| place(&own, slot))
    }

    fn take_pages(&self, count: usize) -> Option<usize> {
        let area = self.area.as_ref()?;
        let mut pages = self.pages.lock();
        let taken = pages.take(count, self.budget.room() >= ROOM_FOR_HUGE)?;
        if !area.make_usable((taken.page / CHUNK_PAGES + 1) * HUGE_BYTES) {
            pages.free(taken.page, count);
            return None;
        }
        if taken.is_new_huge {
            let first = taken.page / CHUNK_PAGES * HUGE_BYTES;
            area.advise_huge(first, HUGE_BYTES, true);
        }
        self.add_backed(taken.newly_backed);
        Some(taken.page)
    }

    fn add_backed(&self, pages: usize) {
        let bytes = (pages * PAGE_BYTES) as u64;
        self.backed.fetch_add(bytes, Ordering::Relaxed);
        self.budget.take(Kind::Slices, bytes);
    }

    fn trim(&self, count: usize) -> bool {
        let Some(area) = &self.area else { return false };
        let mut pages = self.pages.lock();
        let keep = pages.idle().saturating_sub(count);
        let runs = pages.trim(keep);
        let mut released = 0;
        for (page, count) in &runs {
            // A huge page that loses a part is none any more, and must not become one again by
            // itself: the rest of it would be memory that nobody pays for.
            let chunk = page / CHUNK_PAGES * HUGE_BYTES;
            area.advise_huge(chunk, HUGE_BYTES, false);
            area.release(page * PAGE_BYTES, count * PAGE_BYTES);
            released += count;
        }
        let bytes = (released * PAGE_BYTES) as u64;
        self.backed.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.give_back(Kind::Slices, bytes);
        released > 0
    }

    /// The entry of a page in the map.
    fn entry(&self, page: usize) -> &AtomicU32 {
        let chunk = self.map[page / CHUNK_PAGES]
            .get_or_init(|| Box::new([const { AtomicU32::new(NOTHING) }; CHUNK_PAGES]));
        &chunk[page % CHUNK_PAGES]
    }

    fn class_at(&self, address: *const u8) -> Option<usize> {
        self.span_at(address).map(|(class, ..)| class)
    }

    /// Class and number of the span of an address in a used slot, and its offset in the area.
    fn span_at(&self, address: *const u8) -> Option<(usize, u32, usize)> {
        let offset = self.area.as_ref()?.offset_of(address)?;
        let entry = self.entry(offset / PAGE_BYTES).load(Ordering::Relaxed);
        let span = (entry >> SPAN_BITS) as usize;
        (entry != NOTHING).then_some((span, entry & ((1 << SPAN_BITS) - 1), offset))
    }

    /// Calls `act` with the spans of the class of a used slot, the number of its span and its own.
    fn at<T>(
        &self,
        address: *const u8,
        act: impl FnOnce(&mut Spans, u32, usize) -> T,
    ) -> Option<T> {
        let (class, number, offset) = self.span_at(address)?;
        let mut spans = self.classes[class].lock();
        let slot = (offset - spans.page(number) * PAGE_BYTES) / self.shapes[class].slot_bytes;
        Some(act(&mut spans, number, slot))
    }

    fn free(&self, address: *const u8) {
        let freed = self.at(address, |spans, number, slot| {
            let shape = spans.shape();
            if let Some(page) = spans.free(number, slot) {
                self.pages.lock().free(page, shape.pages);
            }
            shape.slot_bytes
        });
        debug_assert!(freed.is_some(), "a slot is in a span");
        self.used
            .fetch_sub(freed.unwrap_or(0) as u64, Ordering::Relaxed);
    }
}

fn place(spans: &Spans, (page, slot): (usize, usize)) -> (usize, u64) {
    let slot_bytes = spans.shape().slot_bytes;
    (page * PAGE_BYTES + slot * slot_bytes, slot_bytes as u64)
}

impl Drop for Shared {
    fn drop(&mut self) {
        let backed = *self.backed.get_mut();
        self.budget.give_back(Kind::Slices, backed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.free(self.piece.start());
    }
}

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        self.piece.as_slice()
    }
}

impl Buffer {
    /// The buffer as bytes that are shared and never change again.
    pub fn freeze(self) -> Bytes {
        match self.0 {
            Memory::Slot(slot) => Bytes::from_owner(slot),
            Memory::Heap(bytes) => bytes.freeze(),
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::Slot(slot) => slot.piece.as_slice(),
            Memory::Heap(bytes) => bytes,
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::Slot(slot) => slot.piece.as_mut_slice(),
            Memory::Heap(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_become_one() {
        let pieces = [Bytes::from_static(b"ab"), Bytes::from_static(b"cde")];
        let arena = Arena::default();
        assert_eq!(arena.gather(&pieces, 5), Bytes::from_static(b"abcde"));
    }

    #[test]
    fn what_is_freed_is_used_again_and_what_is_trimmed_is_not_paid_for() {
        let budget = Budget::new(64 << 20);
        let arena = Arena::new(budget.clone());
        let kept: Vec<Bytes> = (0..100).map(|_| arena.buffer(256 << 10).freeze()).collect();
        let held = arena.held_bytes();
        assert!((25 << 20..=26 << 20).contains(&held), "{held}");
        assert_eq!(budget.taken_for(Kind::Slices), held);
        drop(kept);
        assert_eq!((arena.held_bytes(), arena.slack()), (held, held));
        let again: Vec<Bytes> = (0..100).map(|_| arena.buffer(255 << 10).freeze()).collect();
        assert_eq!(arena.held_bytes(), held);
        drop(again);
        assert!(arena.trim(held - (1 << 20)));
        assert_eq!(arena.held_bytes(), 1 << 20);
        assert!(arena.trim(u64::MAX));
        assert!(!arena.trim(u64::MAX));
        drop(arena);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn buffers_beyond_the_largest_slot_come_from_the_heap() {
        let arena = Arena::default();
        let bytes = arena.buffer(classes::SLOT_BYTES_MAX + 1).freeze();
        assert!(!arena.owns(&bytes));
        assert_eq!(arena.held_bytes(), 0);
    }

    #[test]
    fn bytes_that_would_keep_more_than_themselves_are_copied() {
        let arena = Arena::default();
        let whole = arena.adopt(Bytes::from(vec![7; 10_000]));
        assert!(arena.owns(&whole));
        let same = arena.adopt(whole.clone());
        assert_eq!(same.as_ptr(), whole.as_ptr());
        let part = arena.adopt(whole.slice(5000..6000));
        assert!(!whole.as_ptr_range().contains(&part.as_ptr()));
        assert_eq!(part, vec![7; 1000]);
    }

    #[test]
    fn a_sparse_span_is_emptied_into_the_others() {
        let arena = Arena::new(Budget::new(64 << 20));
        let mut bytes: HashMap<u32, Bytes> = (0..200)
            .map(|tag| (tag, arena.adopt(Bytes::from(vec![tag as u8; 1000]))))
            .collect();
        for (tag, bytes) in &bytes {
            arena.set_tag(bytes, *tag);
        }
        bytes.retain(|tag, _| tag % 4 == 0);
        let mut moved = 0;
        while let Some(tags) = arena.drain() {
            for tag in tags {
                let old = bytes.remove(&tag).expect("the tag of what is kept");
                let copy = arena.gather(std::slice::from_ref(&old), old.len());
                arena.set_tag(&copy, tag);
                bytes.insert(tag, copy);
                moved += 1;
            }
        }
        assert!(moved > 0);
        while arena.trim(u64::MAX) {}
        assert!(arena.slack() < 20 << 10, "{}", arena.slack());
        assert!(
            bytes
                .iter()
                .all(|(tag, bytes)| *bytes == vec![*tag as u8; 1000])
        );
    }

    /// A buffer that is full of one byte.
    fn filled(arena: &Arena, length: usize, byte: u8) -> Bytes {
        let mut buffer = arena.buffer(length);
        buffer.fill(byte);
        buffer.freeze()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_slice_keeps_its_own_bytes(
            steps in prop::collection::vec(
                (0..8u8, prop_oneof![0..300usize, 0..9000usize, 0..300_000usize], any::<u8>()),
                1..200,
            ),
            room in 0..32u64,
        ) {
            let budget = Budget::new(room << 20);
            let arena = Arena::new(budget.clone());
            let mut shadow: HashMap<u32, (Bytes, usize, u8)> = HashMap::new();
            for (number, (kind, length, byte)) in steps.into_iter().enumerate() {
                let number = number as u32;
                match kind {
                    0..4 => {
                        let bytes = filled(&arena, length, byte);
                        arena.set_tag(&bytes, number);
                        shadow.insert(number, (bytes, length, byte));
                    }
                    4 | 5 => {
                        let oldest = shadow.keys().min().copied();
                        oldest.map(|oldest| shadow.remove(&oldest));
                    }
                    6 => {
                        arena.trim(length as u64);
                    }
                    _ => {
                        for tag in arena.drain().unwrap_or_default() {
                            let (old, length, byte) = shadow.remove(&tag).expect("it is there");
                            let new = arena.gather(std::slice::from_ref(&old), length);
                            arena.set_tag(&new, tag);
                            shadow.insert(tag, (new, length, byte));
                        }
                    }
                }
                let own: u64 = shadow.values().map(|(_, length, _)| *length as u64).sum();
                prop_assert!(arena.held_bytes() >= own);
                prop_assert_eq!(arena.held_bytes(), budget.taken());
                // Short of room, a slice may lie in a slot that is some classes longer.
                let unused = (1 + LONGER_CLASSES) * 64 * shadow.len();
                prop_assert!(arena.held_bytes() - arena.slack() <= own + own / 8 + unused as u64);
            }
            for (bytes, length, byte) in shadow.values() {
                prop_assert!(bytes.len() == *length && bytes.iter().all(|b| b == byte));
            }
            shadow.clear();
            while arena.trim(u64::MAX) {}
            prop_assert_eq!(arena.held_bytes(), 0);
        }
    }

    #[test]
    fn threads_share_it() {
        let arena = Arena::new(Budget::new(32 << 20));
        let (give, take) = std::sync::mpsc::channel::<(Bytes, u8)>();
        std::thread::scope(|scope| {
            for thread in 0..3u8 {
                let (give, arena) = (give.clone(), &arena);
                scope.spawn(move || {
                    for step in 0..5000usize {
                        let length = (step * 7919 + usize::from(thread) * 31) % 20_000;
                        let bytes = filled(arena, length, thread);
                        give.send((bytes, thread)).expect("it is received");
                    }
                });
            }
            drop(give);
            scope.spawn(move || {
                let mut kept = Vec::new();
                for (number, (bytes, thread)) in take.iter().enumerate() {
                    assert!(bytes.iter().all(|byte| *byte == thread));
                    kept.push((bytes, thread));
                    if number % 3 != 0 {
                        kept.swap_remove(number * 31 % kept.len());
                    }
                }
                for (bytes, thread) in kept {
                    assert!(bytes.iter().all(|byte| *byte == thread));
                }
            });
        });
        assert_eq!(arena.slack(), arena.held_bytes());
    }
}
