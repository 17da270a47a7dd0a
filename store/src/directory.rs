//! What lies where on disk: from the hash of a key to the places of its records.
//!
//! The directory is all that a response on disk costs in memory: one [`Entry`] of 16 bytes. Heads
//! stay on disk. An entry holds 42 bits of the hash beside the 12 bits that choose its segment, so
//! a look-up may find the place of another key's record about once in 2^34 look-ups of absent keys
//! with a million entries; the record itself holds the whole hash, and readers compare it.
//!
//! [`SEGMENTS`] segments by the first bits of the hash, each behind its own lock, each an array that
//! is sorted by hash. Hashes are evenly spread, so a look-up starts where the hash should be and
//! searches from there. The array lies in blocks of [`BLOCK`] entries that are all full but the
//! last, which grows in small steps. So there is no moment at which a table doubles, all blocks have
//! one size, and what the allocator wastes is small: about 17 bytes an entry with millions of them,
//! at most 24 from a hundred thousand on. The price is that an insertion moves half a segment, a
//! microsecond or two with ten million entries, beside a write to disk that costs more.
//!
//! After a start, the content of a segment may still lie in a checkpoint. Until it is read
//! ([`Directory::fill`]), the segment keeps the changes that are asked for, to apply them then, and
//! a look-up says that the key may be there ([`Directory::may_contain`]) but finds nothing.
//!
//! Knows nothing of files and of records' content. The log decides what is written where; this
//! module answers what is current.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::body::Pool;
use crate::budget::{Budget, Kind};
use crate::groups::Group;

/// Parts of the directory with a lock each.
pub const SEGMENTS: usize = 1 << SEGMENT_BITS;
/// Bytes of an entry, in memory and in what [`Directory::fill`] reads.
pub const ENTRY_BYTES: usize = size_of::<Entry>();
/// Most bytes of a record, see [`Place::length`].
pub const RECORD_BYTES_MAX: u32 = ((1 << LENGTH_BITS) - 1) * LENGTH_UNIT;
/// Most bytes of a region, see [`Place::offset`].
pub const REGION_BYTES_MAX: u32 = (1 << OFFSET_BITS) * OFFSET_UNIT;
/// Uses that an entry counts; further ones are not counted.
pub const USES_MAX: u8 = 3;
/// Values of the flags of an entry, which only the log understands.
pub const FLAGS_MAX: u8 = 3;

const SEGMENT_BITS: u32 = 12;
const TAG_BITS: u32 = 42;
const LENGTH_BITS: u32 = 10;
const OFFSET_BITS: u32 = 23;
const LENGTH_UNIT: u32 = 512;
const OFFSET_UNIT: u32 = 8;

/// Entries of a block: 2 KiB.
const BLOCK: usize = 128;
/// Entries by which the last block of a segment grows.
const GROWTH: usize = 8;
/// Changes that a segment keeps until its content is read. With more of them the content is given
/// up: nothing of it is found any more.
const CHANGES_MAX: usize = 256;
/// What an allocation costs beside its bytes, at most.
const ALLOCATION: u64 = 16;
/// Groups that are counted in one allocation.
const GROUP_CHUNK: usize = 256;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The pool, each of which has a file.
    pub pool: Pool,
    /// The region of that file.
    pub slot: u16,
    /// Bytes from the start of the region, a multiple of 8 below [`REGION_BYTES_MAX`].
    pub offset: u32,
    /// Bytes of the record. Rounded up to a multiple of 512 in what the directory returns, so a
    /// read of so many bytes has all of it. At most [`RECORD_BYTES_MAX`].
    pub length: u32,
}

impl Place {
    /// Whether both are the same record: one position has one record at a time.
    pub fn is_same_position(&self, other: &Self) -> bool {
        (self.pool, self.slot, self.offset) == (other.pool, other.slot, other.offset)
    }
}

/// What the directory knows of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// A hash of the body's number: tells the variants of one key apart.
    pub body: u16,
    /// The group that the record counts for.
    pub group: Group,
    /// How often it was used since [`Directory::take_uses`], at most [`USES_MAX`].
    pub uses: u8,
    /// What the log noted, at most [`FLAGS_MAX`].
    pub flags: u8,
    /// Where it lies.
    pub place: Place,
}

/// What became of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insertion {
    /// The key had no record of that body.
    Added,
    /// The key had a record of that body, which is forgotten.
    Replaced(Found),
    /// The directory may not take more memory; nothing has changed.
    Full,
}

/// Bytes that are not the entries of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes that are not a segment of the directory")]
pub struct Malformed;

/// The places of records by key. See the module.
#[derive(Debug)]
pub struct Directory {
    segments: Box<[Mutex<Segment>]>,
    entries: AtomicU64,
    groups: Box<[OnceLock<Box<[AtomicU32; GROUP_CHUNK]>>]>,
    memory: Memory,
}

impl Directory {
    /// An empty directory that takes at most `limit` bytes, charged to `budget` as it grows.
    pub fn new(budget: Arc<Budget>, limit: u64) -> Self {
        let segments: Box<[_]> = (0..SEGMENTS).map(|_| Mutex::default()).collect();
        let chunks = (usize::from(u16::MAX) + 1) / GROUP_CHUNK;
        let groups: Box<[_]> = (0..chunks).map(|_| OnceLock::new()).collect();
        let memory = Memory {
            budget,
            limit,
            taken: AtomicU64::new(0),
        };
        memory.take(size_of_val(&*segments) + size_of_val(&*groups));
        Self {
            segments,
            entries: AtomicU64::new(0),
            groups,
            memory,
        }
    }

    /// Makes an empty directory one whose segments are all read later. See [`fill`](Self::fill).
    pub fn defer(&self) {
        for segment in &self.segments {
            segment.lock().deferred.get_or_insert_default();
        }
    }

    /// Gives a segment that was read later its content: entries in the form of
    /// [`write_segment`](Self::write_segment), of which those stay that `keep` accepts. Applies the
    /// changes that were made meanwhile. Nothing happens where the segment has its content already.
    ///
    /// The error is [`Malformed`] where the bytes are not those of this segment; then nothing has
    /// changed. Entries beyond the limit of memory are left out.
    pub fn fill(
        &self,
        segment: usize,
        bytes: &[u8],
        mut keep: impl FnMut(&Found) -> bool,
    ) -> Result<(), Malformed> {
        let (entries, []) = bytes.as_chunks::<ENTRY_BYTES>() else {
            return Err(Malformed);
        };
        let entries = entries
            .iter()
            .map(|bytes| Entry(u128::from_le_bytes(*bytes)));
        if !entries.clone().is_sorted_by_key(Entry::tag) {
            return Err(Malformed);
        }

        let mut content = self.segments[segment].lock();
        let Some(deferred) = content.deferred.take() else {
            return Ok(());
        };
        if !deferred.is_given_up {
            for entry in entries.filter(|entry| keep(&entry.found())) {
                if !content.push(entry, &self.memory) {
                    break;
                }
                self.entries.fetch_add(1, Ordering::Relaxed);
                self.count_one(entry.group());
            }
        }
        for change in &deferred.changes {
            self.apply(&mut content, change);
        }
        self.memory.give_back(deferred.bytes());
        Ok(())
    }

    /// Whether a segment has its content.
    pub fn is_filled(&self, segment: usize) -> bool {
        self.segments[segment].lock().deferred.is_none()
    }

    /// The segment of a key.
    pub fn segment_of(&self, key: u128) -> usize {
        split(key).0
    }

    /// Appends the entries of a segment, as [`fill`](Self::fill) reads them. `None` where the
    /// segment has no content yet.
    pub fn write_segment(&self, segment: usize, into: &mut Vec<u8>) -> Option<u32> {
        let segment = self.segments[segment].lock();
        if segment.deferred.is_some() {
            return None;
        }
        for entry in segment.blocks.iter().flatten() {
            into.extend_from_slice(&entry.0.to_le_bytes());
        }
        Some(segment.len() as u32)
    }

    /// Number of entries.
    pub fn len(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> u64 {
        self.memory.taken.load(Ordering::Relaxed)
    }

    /// Number of entries of a group.
    pub fn count(&self, group: Group) -> u64 {
        let (chunk, at) = group_position(group);
        let chunk = self.groups[chunk].get();
        chunk.map_or(0, |chunk| u64::from(chunk[at].load(Ordering::Relaxed)))
    }

    /// Whether a key has an entry, or may have one because its segment has no content yet.
    pub fn may_contain(&self, key: u128) -> bool {
        let (segment, tag) = self.locate(key);
        let segment = segment.lock();
        let at = segment.position(tag);
        let has_entry = segment.get(at).is_some_and(|entry| entry.tag() == tag);
        has_entry || segment.deferred.is_some()
    }

    /// The entries of a key, in no order.
    pub fn find(&self, key: u128) -> Vec<Found> {
        let (segment, tag) = self.locate(key);
        let segment = segment.lock();
        let entries = segment.run(tag).map(|(_, entry)| entry.found());
        entries.collect()
    }

    /// The entry of one body of a key.
    pub fn find_body(&self, key: u128, body: u16) -> Option<Found> {
        let (segment, tag) = self.locate(key);
        let found = segment.lock().of_body(tag, body);
        found.map(|(_, entry)| entry.found())
    }

    /// Whether the record of a key at that position is current.
    pub fn is_current(&self, key: u128, place: Place) -> bool {
        let (segment, tag) = self.locate(key);
        segment.lock().at_place(tag, place).is_some()
    }

    /// Inserts a record, in place of an earlier one of the same key and body.
    pub fn insert(&self, key: u128, found: Found) -> Insertion {
        let (segment, tag) = self.locate(key);
        let entry = Entry::new(tag, &found);
        let mut segment = segment.lock();
        if self.defers(&mut segment, Change::Insert(entry)) {
            return Insertion::Added;
        }
        self.insert_entry(&mut segment, entry)
    }

    /// Notes that a record has moved, if it is still the current one. Its uses stay. `true` also
    /// where the segment has no content yet; then it happens later.
    pub fn replace(&self, key: u128, old: Place, new: Place) -> bool {
        let (segment, tag) = self.locate(key);
        let mut segment = segment.lock();
        self.defers(&mut segment, Change::Replace(tag, old, new)) || segment.replace(tag, old, new)
    }

    /// Removes the record of a key at that position, if it is current. Happens later, and returns
    /// nothing, where the segment has no content yet.
    pub fn remove_at(&self, key: u128, place: Place) -> Option<Found> {
        let (segment, tag) = self.locate(key);
        let mut segment = segment.lock();
        if self.defers(&mut segment, Change::RemoveAt(tag, place)) {
            return None;
        }
        let (at, entry) = segment.at_place(tag, place)?;
        self.remove_entry(&mut segment, at, entry);
        Some(entry.found())
    }

    /// Removes the record of one body of a key. Happens later, and returns nothing, where the
    /// segment has no content yet.
    pub fn remove_body(&self, key: u128, body: u16) -> Option<Found> {
        let (segment, tag) = self.locate(key);
        let mut segment = segment.lock();
        if self.defers(&mut segment, Change::RemoveBody(tag, body)) {
            return None;
        }
        let (at, entry) = segment.of_body(tag, body)?;
        self.remove_entry(&mut segment, at, entry);
        Some(entry.found())
    }

    /// Removes all records of a key, and returns them. Happens later, and returns nothing, where
    /// the segment has no content yet.
    pub fn remove_key(&self, key: u128) -> Vec<Found> {
        let (segment, tag) = self.locate(key);
        let mut segment = segment.lock();
        if self.defers(&mut segment, Change::RemoveKey(tag)) {
            return Vec::new();
        }
        self.remove_tag(&mut segment, tag)
    }

    /// Notes a use of one body of a key.
    pub fn note_use(&self, key: u128, body: u16) {
        let (segment, tag) = self.locate(key);
        let mut segment = segment.lock();
        if let Some((at, entry)) = segment.of_body(tag, body)
            && entry.uses() < USES_MAX
        {
            *segment.get_mut(at) = entry.with_uses(entry.uses() + 1);
        }
    }

    /// The uses of the record of a key at that position, which count from zero again. `None` if it
    /// is not the current one; no uses where the segment has no content yet.
    pub fn take_uses(&self, key: u128, place: Place) -> Option<u8> {
        let (segment, tag) = self.locate(key);
        let mut segment = segment.lock();
        if segment.deferred.is_some() {
            return Some(0);
        }
        let (at, entry) = segment.at_place(tag, place)?;
        let uses = entry.uses();
        if uses > 0 {
            *segment.get_mut(at) = entry.with_uses(0);
        }
        Some(uses)
    }

    /// Keeps of one segment the entries that `keep` accepts, and returns how many left. For threads
    /// in the background, which walk all of `0..`[`SEGMENTS`]: the segment is locked meanwhile. Wait
    /// until all segments have their content first.
    pub fn retain(&self, segment: usize, mut keep: impl FnMut(&Found) -> bool) -> u64 {
        let mut segment = self.segments[segment].lock();
        let removed = segment.retain(&self.memory, |entry| {
            let keeps = keep(&entry.found());
            if !keeps {
                self.uncount(entry.group());
            }
            keeps
        });
        self.entries.fetch_sub(removed, Ordering::Relaxed);
        removed
    }

    /// Shows each entry of one segment, which is locked meanwhile.
    pub fn visit(&self, segment: usize, mut visit: impl FnMut(&Found)) {
        let segment = self.segments[segment].lock();
        for entry in segment.blocks.iter().flatten() {
            visit(&entry.found());
        }
    }

    fn locate(&self, key: u128) -> (&Mutex<Segment>, u64) {
        let (segment, tag) = split(key);
        (&self.segments[segment], tag)
    }

    /// Notes a change for later if the segment has no content yet.
    fn defers(&self, segment: &mut Segment, change: Change) -> bool {
        let Some(deferred) = &mut segment.deferred else {
            return false;
        };
        let before = deferred.bytes();
        if deferred.changes.len() < CHANGES_MAX {
            deferred.changes.push(change);
        } else {
            // Without its content the segment has nothing that a change could miss.
            deferred.is_given_up = true;
            deferred.changes.clear();
            deferred.changes.push(change);
        }
        self.memory.take((deferred.bytes() - before) as usize);
        true
    }

    fn apply(&self, segment: &mut Segment, change: &Change) {
        match *change {
            Change::Insert(entry) => {
                self.insert_entry(segment, entry);
            }
            Change::Replace(tag, old, new) => {
                segment.replace(tag, old, new);
            }
            Change::RemoveAt(tag, place) => {
                if let Some((at, entry)) = segment.at_place(tag, place) {
                    self.remove_entry(segment, at, entry);
                }
            }
            Change::RemoveBody(tag, body) => {
                if let Some((at, entry)) = segment.of_body(tag, body) {
                    self.remove_entry(segment, at, entry);
                }
            }
            Change::RemoveKey(tag) => {
                self.remove_tag(segment, tag);
            }
        }
    }

    fn insert_entry(&self, segment: &mut Segment, entry: Entry) -> Insertion {
        let tag = entry.tag();
        if let Some((at, old)) = segment.of_body(tag, entry.body()) {
            *segment.get_mut(at) = entry;
            self.uncount(old.group());
            self.count_one(entry.group());
            return Insertion::Replaced(old.found());
        }
        let at = segment.position(tag);
        if !segment.insert(at, entry, &self.memory) {
            return Insertion::Full;
        }
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.count_one(entry.group());
        Insertion::Added
    }

    fn remove_tag(&self, segment: &mut Segment, tag: u64) -> Vec<Found> {
        let mut removed = Vec::new();
        loop {
            let Some((at, entry)) = segment.run(tag).next() else {
                return removed;
            };
            self.remove_entry(segment, at, entry);
            removed.push(entry.found());
        }
    }

    fn remove_entry(&self, segment: &mut Segment, at: usize, entry: Entry) {
        segment.remove(at, &self.memory);
        self.entries.fetch_sub(1, Ordering::Relaxed);
        self.uncount(entry.group());
    }

    fn count_one(&self, group: Group) {
        let (chunk, at) = group_position(group);
        let chunk = self.groups[chunk].get_or_init(|| {
            self.memory
                .take(size_of::<[AtomicU32; GROUP_CHUNK]>() + ALLOCATION as usize);
            Box::new([const { AtomicU32::new(0) }; GROUP_CHUNK])
        });
        chunk[at].fetch_add(1, Ordering::Relaxed);
    }

    fn uncount(&self, group: Group) {
        let (chunk, at) = group_position(group);
        if let Some(chunk) = self.groups[chunk].get() {
            chunk[at].fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.memory.budget.give_back(Kind::Directory, self.bytes());
    }
}

fn group_position(group: Group) -> (usize, usize) {
    let number = usize::from(group.0);
    (number / GROUP_CHUNK, number % GROUP_CHUNK)
}

/// The segment of a key, and the part of it that its entries hold.
fn split(key: u128) -> (usize, u64) {
    let segment = key >> (128 - SEGMENT_BITS);
    let tag = (key >> (128 - SEGMENT_BITS - TAG_BITS)) & mask(TAG_BITS);
    (segment as usize, tag as u64)
}

/// Memory that a directory takes, within its limit.
#[derive(Debug)]
struct Memory {
    budget: Arc<Budget>,
    limit: u64,
    taken: AtomicU64,
}

impl Memory {
    fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
        self.budget.take(Kind::Directory, bytes as u64);
    }

    /// Takes bytes if they are within the limit.
    fn try_take(&self, bytes: u64) -> bool {
        if self.taken.fetch_add(bytes, Ordering::Relaxed) + bytes > self.limit {
            self.taken.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.budget.take(Kind::Directory, bytes);
        true
    }

    fn give_back(&self, bytes: u64) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.give_back(Kind::Directory, bytes);
    }
}

/// Sixteen bytes: from the top 42 bits of the key's hash, 16 of the body, 16 of the group, 2 of
/// uses, 2 of flags, and the place: 1 bit of the pool, 16 of the slot, 23 of the offset, 10 of the
/// length. In this order, entries sort by hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u128);

const OFFSET_AT: u32 = LENGTH_BITS;
const SLOT_AT: u32 = OFFSET_AT + OFFSET_BITS;
const POOL_AT: u32 = SLOT_AT + 16;
const FLAGS_AT: u32 = POOL_AT + 1;
const USES_AT: u32 = FLAGS_AT + 2;
const GROUP_AT: u32 = USES_AT + 2;
const BODY_AT: u32 = GROUP_AT + 16;
const TAG_AT: u32 = BODY_AT + 16;
const _: () = assert!(TAG_AT + TAG_BITS == 128, "an entry is 16 bytes");

const fn mask(bits: u32) -> u128 {
    (1 << bits) - 1
}

impl Entry {
    fn new(tag: u64, found: &Found) -> Self {
        debug_assert!(found.uses <= USES_MAX && found.flags <= FLAGS_MAX);
        Self(
            u128::from(tag) << TAG_AT
                | u128::from(found.body) << BODY_AT
                | u128::from(found.group.0) << GROUP_AT
                | u128::from(found.uses.min(USES_MAX)) << USES_AT
                | u128::from(found.flags & FLAGS_MAX) << FLAGS_AT
                | place_bits(found.place),
        )
    }

    fn bits(self, at: u32, bits: u32) -> u64 {
        ((self.0 >> at) & mask(bits)) as u64
    }

    fn tag(self) -> u64 {
        self.bits(TAG_AT, TAG_BITS)
    }

    fn body(self) -> u16 {
        self.bits(BODY_AT, 16) as u16
    }

    fn group(self) -> Group {
        Group(self.bits(GROUP_AT, 16) as u16)
    }

    fn uses(self) -> u8 {
        self.bits(USES_AT, 2) as u8
    }

    fn place(self) -> Place {
        Place {
            pool: match self.bits(POOL_AT, 1) {
                0 => Pool::Pull,
                _ => Pool::Pushed,
            },
            slot: self.bits(SLOT_AT, 16) as u16,
            offset: self.bits(OFFSET_AT, OFFSET_BITS) as u32 * OFFSET_UNIT,
            length: self.bits(0, LENGTH_BITS) as u32 * LENGTH_UNIT,
        }
    }

    fn found(self) -> Found {
        Found {
            body: self.body(),
            group: self.group(),
            uses: self.uses(),
            flags: self.bits(FLAGS_AT, 2) as u8,
            place: self.place(),
        }
    }

    fn with_place(self, place: Place) -> Self {
        Self(self.0 & !mask(FLAGS_AT) | place_bits(place))
    }

    fn with_uses(self, uses: u8) -> Self {
        Self(self.0 & !(mask(2) << USES_AT) | u128::from(uses) << USES_AT)
    }
}

fn place_bits(place: Place) -> u128 {
    debug_assert!(place.offset.is_multiple_of(OFFSET_UNIT) && place.offset < REGION_BYTES_MAX);
    debug_assert!(place.length <= RECORD_BYTES_MAX);
    let pool = match place.pool {
        Pool::Pull => 0u128,
        Pool::Pushed => 1,
    };
    pool << POOL_AT
        | u128::from(place.slot) << SLOT_AT
        | (u128::from(place.offset / OFFSET_UNIT) & mask(OFFSET_BITS)) << OFFSET_AT
        | u128::from(place.length.div_ceil(LENGTH_UNIT)) & mask(LENGTH_BITS)
}

/// Entries in the order of their hashes, in blocks that are all full but the last one.
#[derive(Debug, Default)]
struct Segment {
    blocks: Vec<Vec<Entry>>,
    /// There while its content is still to be read.
    deferred: Option<Box<Deferred>>,
}

/// What happens to a segment once its content is read.
#[derive(Debug, Default)]
struct Deferred {
    changes: Vec<Change>,
    is_given_up: bool,
}

impl Deferred {
    fn bytes(&self) -> u64 {
        (self.changes.capacity() * size_of::<Change>()) as u64
    }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Insert(Entry),
    Replace(u64, Place, Place),
    RemoveAt(u64, Place),
    RemoveBody(u64, u16),
    RemoveKey(u64),
}

impl Segment {
    fn len(&self) -> usize {
        let last = self.blocks.last().map_or(0, Vec::len);
        self.blocks.len().saturating_sub(1) * BLOCK + last
    }

    fn get(&self, at: usize) -> Option<Entry> {
        self.blocks.get(at / BLOCK)?.get(at % BLOCK).copied()
    }

    fn get_mut(&mut self, at: usize) -> &mut Entry {
        &mut self.blocks[at / BLOCK][at % BLOCK]
    }

    /// Position of the first entry whose hash is not below `tag`.
    fn position(&self, tag: u64) -> usize {
        let len = self.len();
        let is_below = |at: usize| self.blocks[at / BLOCK][at % BLOCK].tag() < tag;

        // Hashes are evenly spread: the guess is off by the root of the length, about.
        let guess = ((u128::from(tag) * len as u128) >> TAG_BITS) as usize;
        let (mut low, mut high) = (guess, guess);
        let mut step = 4;
        while high < len && is_below(high) {
            low = high + 1;
            high = (high + step).min(len);
            step *= 2;
        }
        while low > 0 && !is_below(low - 1) {
            high = low - 1;
            low = low.saturating_sub(step);
            step *= 2;
        }

        while low < high {
            let middle = low.midpoint(high);
            if is_below(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The entries of a hash, with their positions.
    fn run(&self, tag: u64) -> impl Iterator<Item = (usize, Entry)> {
        let start = self.position(tag);
        (start..)
            .map_while(move |at| Some((at, self.get(at)?)))
            .take_while(move |(_, entry)| entry.tag() == tag)
    }

    fn of_body(&self, tag: u64, body: u16) -> Option<(usize, Entry)> {
        self.run(tag).find(|(_, entry)| entry.body() == body)
    }

    fn at_place(&self, tag: u64, place: Place) -> Option<(usize, Entry)> {
        self.run(tag)
            .find(|(_, entry)| entry.place().is_same_position(&place))
    }

    fn replace(&mut self, tag: u64, old: Place, new: Place) -> bool {
        let Some((at, entry)) = self.at_place(tag, old) else {
            return false;
        };
        *self.get_mut(at) = entry.with_place(new);
        true
    }

    /// Appends an entry whose hash is not below the last one, if there is memory for it.
    fn push(&mut self, entry: Entry, memory: &Memory) -> bool {
        let has_room = self.make_room(memory);
        if has_room && let Some(block) = self.blocks.last_mut() {
            block.push(entry);
        }
        has_room
    }

    /// Inserts an entry if there is memory for it.
    fn insert(&mut self, at: usize, entry: Entry, memory: &Memory) -> bool {
        if !self.make_room(memory) {
            return false;
        }
        // The last entry of each full block moves to the front of the next one.
        let mut moving = entry;
        let mut at_in_block = at % BLOCK;
        for block in &mut self.blocks[at / BLOCK..] {
            if block.len() < BLOCK {
                block.insert(at_in_block, moving);
                break;
            }
            let last = block[BLOCK - 1];
            block.copy_within(at_in_block..BLOCK - 1, at_in_block + 1);
            block[at_in_block] = moving;
            moving = last;
            at_in_block = 0;
        }
        true
    }

    /// Makes room for one entry in the last block.
    fn make_room(&mut self, memory: &Memory) -> bool {
        let growth = (GROWTH * size_of::<Entry>()) as u64;
        match self.blocks.last_mut() {
            Some(block) if block.len() < block.capacity() => true,
            Some(block) if block.len() < BLOCK => {
                let has_room = memory.try_take(growth);
                if has_room {
                    block.reserve_exact(GROWTH);
                }
                has_room
            }
            _ => {
                let has_room = memory.try_take(growth + ALLOCATION + self.block_overhead());
                if has_room {
                    self.blocks.reserve_exact(1);
                    self.blocks.push(Vec::with_capacity(GROWTH));
                }
                has_room
            }
        }
    }

    fn remove(&mut self, at: usize, memory: &Memory) {
        let first = at / BLOCK;
        self.blocks[first].remove(at % BLOCK);
        for block in first + 1..self.blocks.len() {
            let moving = self.blocks[block].remove(0);
            self.blocks[block - 1].push(moving);
        }
        self.give_back(memory);
    }

    /// Keeps the entries that `keep` accepts, and returns how many left.
    fn retain(&mut self, memory: &Memory, mut keep: impl FnMut(Entry) -> bool) -> u64 {
        let len = self.len();
        let mut kept = 0;
        for at in 0..len {
            let entry = self.blocks[at / BLOCK][at % BLOCK];
            if keep(entry) {
                if kept < at {
                    *self.get_mut(kept) = entry;
                }
                kept += 1;
            }
        }
        if kept < len {
            let blocks = kept.div_ceil(BLOCK);
            for block in &mut self.blocks[blocks..] {
                block.clear();
            }
            if let Some(last) = blocks.checked_sub(1) {
                self.blocks[last].truncate(kept - last * BLOCK);
            }
            self.give_back(memory);
        }
        (len - kept) as u64
    }

    /// Gives back empty blocks and the unused part of the last one.
    fn give_back(&mut self, memory: &Memory) {
        while let Some(block) = self.blocks.pop_if(|block| block.is_empty()) {
            self.blocks.shrink_to_fit();
            let bytes = block.capacity() * size_of::<Entry>();
            memory.give_back(bytes as u64 + ALLOCATION + self.block_overhead());
        }
        // Twice the growth, so that a segment that changes by one does not allocate each time.
        if let Some(block) = self.blocks.last_mut()
            && block.capacity() - block.len() >= 2 * GROWTH
        {
            let before = block.capacity();
            let wanted = block.len().next_multiple_of(GROWTH);
            block.shrink_to(wanted);
            memory.give_back(((before - block.capacity()) * size_of::<Entry>()) as u64);
        }
    }

    /// What one more block costs in the list of blocks, which is an allocation from the first one on.
    fn block_overhead(&self) -> u64 {
        let list = if self.blocks.is_empty() {
            ALLOCATION
        } else {
            0
        };
        size_of::<Vec<Entry>>() as u64 + list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn directory() -> Directory {
        Directory::new(Budget::new(u64::MAX), u64::MAX)
    }

    fn place(number: u32) -> Place {
        Place {
            pool: if number.is_multiple_of(2) {
                Pool::Pull
            } else {
                Pool::Pushed
            },
            slot: number as u16,
            offset: number % (1 << OFFSET_BITS) * OFFSET_UNIT,
            length: (number % 1000 + 1) * LENGTH_UNIT,
        }
    }

    fn found(body: u16, number: u32) -> Found {
        Found {
            body,
            group: Group(number as u16 % 700),
            uses: 0,
            flags: number as u8 % 4,
            place: place(number),
        }
    }

    /// Few keys, in few segments, some of which differ in their first bits only.
    fn key(number: u8) -> u128 {
        let segment = u128::from(number % 2) << 127;
        segment | u128::from(number / 2).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060) << 20
    }

    #[test]
    fn an_entry_holds_every_value_of_its_fields() {
        for (pool, bits) in [(Pool::Pull, 0), (Pool::Pushed, u16::MAX)] {
            let longest = RECORD_BYTES_MAX * u32::from(bits & 1);
            let found = Found {
                body: !bits,
                group: Group(bits),
                uses: bits as u8 & USES_MAX,
                flags: !bits as u8 & FLAGS_MAX,
                place: Place {
                    pool,
                    slot: bits,
                    offset: (REGION_BYTES_MAX - OFFSET_UNIT) * u32::from(bits & 1),
                    length: longest,
                },
            };
            let tag = u64::MAX >> (64 - TAG_BITS);
            let entry = Entry::new(tag, &found);
            assert_eq!((entry.tag(), entry.found()), (tag, found));
        }
    }

    #[test]
    fn a_length_is_rounded_up_and_a_place_is_its_position() {
        let directory = directory();
        let exact = Place {
            length: 513,
            ..place(8)
        };
        directory.insert(
            key(1),
            Found {
                place: exact,
                ..found(1, 8)
            },
        );
        let stored = directory.find_body(key(1), 1).expect("inserted").place;
        assert_eq!(stored.length, 1024);
        assert!(directory.is_current(key(1), exact));
        assert!(directory.replace(key(1), exact, place(10)));
        assert!(!directory.replace(key(1), exact, place(12)), "it has moved");
        assert_eq!(directory.remove_at(key(1), exact), None);
        assert!(directory.remove_at(key(1), place(10)).is_some());
        assert!(directory.is_empty());
    }

    #[test]
    fn uses_saturate_and_are_taken_from_the_current_record_only() {
        let directory = directory();
        directory.insert(key(1), found(7, 4));
        for _ in 0..9 {
            directory.note_use(key(1), 7);
        }
        directory.note_use(key(1), 8);
        directory.note_use(key(2), 7);
        assert_eq!(directory.take_uses(key(1), place(6)), None);
        assert_eq!(directory.take_uses(key(1), place(4)), Some(USES_MAX));
        assert_eq!(directory.take_uses(key(1), place(4)), Some(0));
    }

    #[test]
    fn the_limit_refuses_insertions_and_all_memory_comes_back() {
        let budget = Budget::new(u64::MAX);
        let fixed = Directory::new(budget.clone(), u64::MAX).bytes();
        assert_eq!(budget.taken(), 0, "dropped");
        let directory = Directory::new(budget.clone(), fixed + 10_000);
        let mut random = random_numbers(7);
        let mut added = Vec::new();
        loop {
            let key = random();
            match directory.insert(key, found(1, 2)) {
                Insertion::Added => added.push(key),
                Insertion::Replaced(_) => panic!("another key"),
                Insertion::Full => break,
            }
        }
        assert!(directory.bytes() <= fixed + 10_000);
        assert_eq!(directory.len(), added.len() as u64);
        assert_eq!(budget.taken(), directory.bytes());

        for key in added {
            assert_eq!(directory.remove_key(key).len(), 1);
        }
        let groups = 1024 + ALLOCATION;
        assert_eq!((directory.len(), directory.bytes()), (0, fixed + groups));
        drop(directory);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn a_hundred_thousand_entries_and_more_take_at_most_24_bytes_each() {
        let directory = directory();
        let mut random = random_numbers(3);
        for number in 1..=300_000 {
            directory.insert(random(), found(1, 1));
            let each = directory.bytes() as f64 / f64::from(number);
            assert!(number < 100_000 || each <= 24.0, "{each} with {number}");
        }
    }

    #[test]
    fn many_variants_of_one_key_stay_together() {
        let directory = directory();
        for body in 0..1000u16 {
            directory.insert(key(3), found(body, u32::from(body)));
            directory.insert(u128::from(body) << 80, found(1, 1));
        }
        assert_eq!(directory.find(key(3)).len(), 1000);
        assert_eq!(directory.remove_key(key(3)).len(), 1000);
        assert_eq!(directory.len(), 1000);
    }

    #[test]
    fn one_segment_is_as_a_sorted_list() {
        let directory = directory();
        let mut random = random_numbers(11);
        let mut keys: Vec<u128> = (0..5000).map(|_| random() >> SEGMENT_BITS).collect();
        for (number, key) in keys.iter().enumerate() {
            directory.insert(*key, found(1, number as u32));
        }
        for (number, key) in keys.iter().enumerate() {
            assert!(directory.is_current(*key, place(number as u32)), "{number}");
        }
        let is_kept = |found: &Found| found.place.slot.is_multiple_of(3);
        assert_eq!(directory.retain(0, is_kept), 5000 - 1667);
        for (number, key) in keys.drain(..).enumerate() {
            assert_eq!(directory.may_contain(key), number % 3 == 0, "{number}");
        }
        let mut seen = 0;
        directory.visit(0, |found| seen += u32::from(is_kept(found)));
        assert_eq!(seen, 1667);
    }

    #[test]
    fn changes_before_the_content_is_read_happen_afterwards() {
        let keys = [1, 2, 3, 4, 5, 6].map(key);
        let source = directory();
        for (number, key) in keys.iter().enumerate() {
            source.insert(*key, found(1, number as u32));
        }
        let directory = directory();
        directory.defer();
        assert!(directory.may_contain(key(9)), "nobody knows yet");
        assert_eq!(directory.find(keys[0]), []);

        let other = found(2, 20);
        assert_eq!(directory.insert(keys[0], other), Insertion::Added);
        directory.insert(keys[1], other);
        assert_eq!(directory.remove_key(keys[1]), []);
        assert_eq!(directory.remove_at(keys[2], place(2)), None);
        assert_eq!(directory.remove_at(keys[3], place(2)), None);
        assert_eq!(directory.remove_body(keys[4], 1), None);
        assert!(directory.replace(keys[5], place(5), place(21)));
        assert_eq!(directory.take_uses(keys[5], place(5)), Some(0));

        let mut bytes = Vec::new();
        for segment in 0..SEGMENTS {
            assert_eq!(directory.write_segment(segment, &mut bytes), None);
            bytes.clear();
            source.write_segment(segment, &mut bytes).expect("filled");
            directory
                .fill(segment, &bytes, |_| true)
                .expect("a segment");
            assert!(directory.is_filled(segment));
        }
        assert_eq!(directory.find(keys[0]).len(), 2);
        assert!(!directory.may_contain(keys[1]));
        assert!(!directory.may_contain(keys[2]));
        assert!(directory.is_current(keys[3], place(3)));
        assert!(!directory.may_contain(keys[4]));
        assert!(directory.is_current(keys[5], place(21)));
        assert_eq!(directory.len(), 4);
        let groups: u64 = (0..700).map(|group| directory.count(Group(group))).sum();
        assert_eq!(groups, 4);
    }

    #[test]
    fn a_segment_with_too_many_changes_gives_its_content_up() {
        let source = directory();
        for number in 0..1000 {
            source.insert(number << 75, found(1, 1));
        }
        let budget = Budget::new(u64::MAX);
        let directory = Directory::new(budget, u64::MAX);
        let before = directory.bytes();
        directory.defer();
        for number in 0..2 * CHANGES_MAX as u128 + 1 {
            directory.remove_key(number << 75);
        }
        let changes = 2 * (CHANGES_MAX * size_of::<Change>()) as u64;
        assert!((before + 1..before + changes).contains(&directory.bytes()));
        let mut bytes = Vec::new();
        source.write_segment(0, &mut bytes).expect("filled");
        directory.fill(0, &bytes, |_| true).expect("a segment");
        assert!(directory.is_empty());
        assert_eq!(directory.bytes(), before);
    }

    #[test]
    fn bytes_of_no_segment_are_refused() {
        let source = directory();
        for number in 0..3 {
            source.insert(number << 75, found(1, 1));
        }
        let mut bytes = Vec::new();
        source.write_segment(0, &mut bytes).expect("filled");
        let directory = directory();
        directory.defer();
        assert_eq!(directory.fill(0, &bytes[1..], |_| true), Err(Malformed));
        bytes.rotate_left(16);
        assert_eq!(directory.fill(0, &bytes, |_| true), Err(Malformed));
        bytes.rotate_right(16);
        assert_eq!(directory.fill(0, &bytes, |found| found.body != 1), Ok(()));
        assert!(directory.is_empty(), "none was kept");
        assert_eq!(directory.fill(0, &bytes, |_| true), Ok(()));
        assert!(directory.is_empty(), "it has its content");
    }

    #[test]
    fn threads_do_not_lose_entries() {
        let directory = directory();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let directory = &directory;
                scope.spawn(move || {
                    let mut random = random_numbers(thread);
                    let keys: Vec<u128> = (0..5000).map(|_| random()).collect();
                    for key in &keys {
                        directory.insert(*key, found(thread as u16, 5));
                    }
                    for key in &keys[..2500] {
                        assert!(directory.remove_body(*key, thread as u16).is_some());
                    }
                });
            }
        });
        assert_eq!(directory.len(), 10_000);
        assert_eq!(directory.count(Group(5)), 10_000);
    }

    /// A generator of 128-bit numbers by a seed.
    fn random_numbers(seed: u64) -> impl FnMut() -> u128 {
        let mut count = 0u64;
        move || {
            count += 1;
            xxhash_rust::xxh3::xxh3_128_with_seed(&count.to_le_bytes(), seed)
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8, u16, u32),
        Replace(u8, u32, u32),
        RemoveAt(u8, u32),
        RemoveBody(u8, u16),
        RemoveKey(u8),
        Use(u8, u16),
        TakeUses(u8, u32),
        Retain(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (key, body, number) = (0..40u8, 0..4u16, 0..30u32);
        prop_oneof![
            8 => (key.clone(), body.clone(), number.clone())
                .prop_map(|(key, body, number)| Step::Insert(key, body, number)),
            2 => (key.clone(), number.clone(), number.clone())
                .prop_map(|(key, old, new)| Step::Replace(key, old, new)),
            2 => (key.clone(), number.clone()).prop_map(|(key, at)| Step::RemoveAt(key, at)),
            2 => (key.clone(), body.clone()).prop_map(|(key, body)| Step::RemoveBody(key, body)),
            1 => key.clone().prop_map(Step::RemoveKey),
            3 => (key.clone(), body).prop_map(|(key, body)| Step::Use(key, body)),
            2 => (key, number).prop_map(|(key, at)| Step::TakeUses(key, at)),
            1 => (0..30u16).prop_map(Step::Retain),
        ]
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_map(steps in prop::collection::vec(step(), 1..300)) {
            let directory = directory();
            let mut model: HashMap<(u128, u16), Found> = HashMap::new();
            let at = |model: &HashMap<(u128, u16), Found>, wanted: u128, number: u32| {
                let mut bodies: Vec<u16> = model
                    .iter()
                    .filter(|((key, _), found)| {
                        *key == wanted && found.place.is_same_position(&place(number))
                    })
                    .map(|((_, body), _)| *body)
                    .collect();
                bodies.sort_unstable();
                bodies
            };

            for step in steps {
                match step {
                    Step::Insert(number, body, at) => {
                        let new = found(body, at);
                        let expected = match model.insert((key(number), body), new) {
                            Some(old) => Insertion::Replaced(old),
                            None => Insertion::Added,
                        };
                        prop_assert_eq!(directory.insert(key(number), new), expected);
                    }
                    // One position has one record: the model only has the cases with one.
                    Step::Replace(number, old, new) => {
                        let bodies = at(&model, key(number), old);
                        if bodies.len() > 1 { continue; }
                        let replaced = directory.replace(key(number), place(old), place(new));
                        prop_assert_eq!(replaced, bodies.len() == 1);
                        if let [body] = bodies[..] {
                            model.get_mut(&(key(number), body)).unwrap().place = place(new);
                        }
                    }
                    Step::RemoveAt(number, old) => {
                        let bodies = at(&model, key(number), old);
                        if bodies.len() > 1 { continue; }
                        let removed = directory.remove_at(key(number), place(old));
                        let expected = bodies
                            .first()
                            .and_then(|body| model.remove(&(key(number), *body)));
                        prop_assert_eq!(removed, expected);
                    }
                    Step::RemoveBody(number, body) => {
                        let removed = directory.remove_body(key(number), body);
                        prop_assert_eq!(removed, model.remove(&(key(number), body)));
                    }
                    Step::RemoveKey(number) => {
                        let removed = directory.remove_key(key(number)).len();
                        let before = model.len();
                        model.retain(|(other, _), _| *other != key(number));
                        prop_assert_eq!(removed, before - model.len());
                    }
                    Step::Use(number, body) => {
                        directory.note_use(key(number), body);
                        if let Some(found) = model.get_mut(&(key(number), body)) {
                            found.uses = (found.uses + 1).min(USES_MAX);
                        }
                    }
                    Step::TakeUses(number, old) => {
                        let bodies = at(&model, key(number), old);
                        if bodies.len() > 1 { continue; }
                        let taken = directory.take_uses(key(number), place(old));
                        let expected = bodies.first().map(|body| {
                            let found = model.get_mut(&(key(number), *body)).unwrap();
                            std::mem::take(&mut found.uses)
                        });
                        prop_assert_eq!(taken, expected);
                    }
                    Step::Retain(slot) => {
                        let removed: u64 = (0..SEGMENTS)
                            .map(|segment| directory.retain(segment, |f| f.place.slot != slot))
                            .sum();
                        let before = model.len();
                        model.retain(|_, found| found.place.slot != slot);
                        prop_assert_eq!(removed, (before - model.len()) as u64);
                    }
                }
                prop_assert_eq!(directory.len(), model.len() as u64);
            }

            for ((key, body), found) in &model {
                prop_assert_eq!(directory.find_body(*key, *body), Some(*found));
                let of_group = model.values().filter(|other| other.group == found.group);
                prop_assert_eq!(directory.count(found.group), of_group.count() as u64);
            }
        }
    }
}
