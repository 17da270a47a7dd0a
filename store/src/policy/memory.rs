//! The policy of the memory tier: requests served a byte, with ageing.
//!
//! The value of an entry is `frequency / bytes`, as in GDSF (Cherkasova, HPL-98-69R1). The frequency
//! counts uses, each of which counts half after [`HALF_LIFE_TURNS`] turns; in a turn as many entries
//! come as there are. So the logarithm of a value falls at the same rate for all entries, and the
//! order of two entries changes by uses only. Values are rounded to classes, and each class is a list
//! in the order of time, which is then also the order of values (the structure of CAMP, Middleware
//! 2014): the victim is the first entry of one of the lists. A hit does not move its entry. When an
//! entry would be the victim and was used since it was last considered, its uses are added to its
//! frequency, and it goes to the end of the list of its new value.
//!
//! A key that left and comes back within a few turns continues with the frequency it had
//! ([`Ghost`]). An unknown key starts with the share of unknown keys that were used again of late, which is
//! what an average one of them will be used. In a scan that share falls to almost nothing: its
//! entries displace one another, and they hardly move the clock.

use super::ghost::{Ghost, short};

/// No entry.
const NONE: u32 = u32::MAX;

/// Classes of an octave of value.
const STEPS: i32 = 4;
const CLASSES: usize = 128;
/// Class of the value 1: one use of an entry that needs one byte. There is room for 2^8 uses of it
/// and, below it, for an unknown key of [`REQUEST_BYTES_MAX`] bytes in a scan.
const CLASS_OF_ONE: i32 = 96;

/// Logarithms to base 2 are stored with that many steps of an octave.
const LOG_STEPS: i32 = 8;
/// Frequency 1 as it is stored, so that lower ones can be stored too.
const LOG_OF_ONE: i32 = 96;

/// Turns in which a use loses half of its weight.
const HALF_LIFE_TURNS: f32 = 0.5;
/// Parts of the clock in a turn.
const TURN: u64 = 1 << 36;
/// Stamps of entries are coarser than the clock, so that 32 bits are enough.
const STAMPS_A_TURN: u32 = 1024;
/// Time in which a value falls by one class, in stamps.
const STAMPS_A_CLASS: i64 = (STAMPS_A_TURN as f32 * HALF_LIFE_TURNS) as i64 / STEPS as i64;

/// Bytes that a request for a part of a long body needs in memory, at most: its slices weigh no less
/// than those of a body of this size.
const REQUEST_BYTES_MAX: u64 = 1024 * 1024;
/// Entries that one search for a victim considers again because they were used, at most.
const CONSIDERED_MAX: usize = 128;
/// Keys that are remembered for each entry, at least.
const REMEMBERED_AN_ENTRY: usize = 2;

/// Outcomes of unknown keys over which their rate of return is averaged, as one in that many
/// entries, and beside them.
const RATE_ENTRIES: f32 = 1.0 / 3.0;
const RATE_OUTCOMES_MIN: f32 = 32.0;
/// Least rate of return, so that the frequency of an unknown key can be stored.
const RATE_MIN: f32 = 0.001;
/// Least part that an unknown key moves the clock, so that entries age in a scan too.
const RATE_OF_CLOCK_MIN: f32 = 0.01;

/// Chooses victims among entries that the caller numbers: small numbers, used again.
#[derive(Debug)]
pub struct MemoryPolicy {
    entries: Vec<Entry>,
    classes: [List; CLASSES],
    /// Classes that have entries.
    occupied: u128,
    /// Turns so far, in parts of [`TURN`]. It may wrap.
    clock: u64,
    len: usize,
    /// Entries that a search for a victim found to be held; empty between calls.
    held: Vec<u32>,
    ghost: Ghost,
    /// Share of unknown keys that were used again, of late.
    return_rate: f32,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    next: u32,
    previous: u32,
    /// The part of the key that [`Ghost`] uses.
    key: u32,
    /// When the entry was last considered.
    stamp: u32,
    /// Its list, or [`ABSENT`].
    class: u8,
    /// Logarithm of the bytes that a request needs.
    bytes: u8,
    /// Logarithm of the frequency at the time of the stamp.
    frequency: u8,
    /// Whether the key was unknown and no use of the entry was seen yet.
    is_new: bool,
}

const ABSENT: u8 = u8::MAX;

/// Entries of one class, by their stamps.
#[derive(Debug, Clone, Copy)]
struct List {
    first: u32,
    last: u32,
    /// Stamp of the first entry.
    stamp: u32,
}

impl Default for MemoryPolicy {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            classes: [List::EMPTY; CLASSES],
            occupied: 0,
            clock: 0,
            len: 0,
            held: Vec::new(),
            ghost: Ghost::default(),
            return_rate: 0.5,
        }
    }
}

impl MemoryPolicy {
    /// Adds an entry. `bytes` is what it holds, `request_bytes` what a request that needs it needs in
    /// all: for a slice the length of its body, for an entry that answers alone the same as `bytes`.
    /// An entry that is there with this key gets another size and keeps its frequency.
    pub fn insert(&mut self, slot: u32, key: u64, bytes: u32, request_bytes: u64) {
        let request_bytes = request_bytes.min(REQUEST_BYTES_MAX).max(u64::from(bytes));
        let bytes = log_of_bytes(request_bytes);
        if self.contains(slot) {
            if self.entries[slot as usize].key == short(key) {
                self.resize(slot, bytes);
                return;
            }
            self.remove(slot);
        }
        let index = slot as usize;
        if self.entries.len() <= index {
            self.entries.resize(index + 1, Entry::ABSENT);
        }
        self.len += 1;
        self.ghost.grow(self.len * REMEMBERED_AN_ENTRY);
        let known = self.ghost.take(short(key)).map(|(remembered, insertions)| {
            let turns = insertions as f32 / self.len as f32;
            (Remembered::from_byte(remembered), turns)
        });
        let (frequency, moves_clock) = match known {
            Some((remembered, turns)) => {
                if remembered.is_new {
                    self.has_returned();
                }
                (remembered.frequency * decay(turns) + 1.0, 1.0)
            }
            None => (self.return_rate.max(RATE_MIN), self.return_rate),
        };
        let parts = TURN as f32 * moves_clock.max(RATE_OF_CLOCK_MIN) / self.len as f32;
        self.clock = self.clock.wrapping_add(parts as u64);
        self.entries[index] = Entry {
            key: short(key),
            bytes,
            frequency: log_of_frequency(frequency),
            is_new: known.is_none(),
            ..Entry::ABSENT
        };
        self.enqueue(slot);
    }

    /// Takes an entry out, without a trace. A slot that is not there is ignored.
    pub fn remove(&mut self, slot: u32) {
        if self.contains(slot) {
            self.dequeue(slot);
            self.len -= 1;
        }
    }

    /// The next victim, which is taken out, or `None` if no entry may go. `take_uses` returns how
    /// often a slot was used since it was last asked, and sets its counter to zero; or `None` if the
    /// slot may not be evicted now.
    ///
    /// Where a long row of entries was used, the least valuable of [`CONSIDERED_MAX`] goes, so that the
    /// time of a call has a limit.
    pub fn evict(&mut self, mut take_uses: impl FnMut(u32) -> Option<u32>) -> Option<u32> {
        let victim = self.find_victim(&mut take_uses);
        while let Some(slot) = self.held.pop() {
            self.enqueue(slot);
        }
        let victim = victim?;
        self.leave(victim);
        Some(victim)
    }

    /// The next victim, which stays in its list. Entries that are held are taken out of theirs.
    fn find_victim(&mut self, take_uses: &mut impl FnMut(u32) -> Option<u32>) -> Option<u32> {
        let mut considered = 0;
        let mut least: Option<u32> = None;
        while considered < CONSIDERED_MAX
            && let Some(slot) = self.first()
        {
            match take_uses(slot) {
                None => {
                    self.dequeue(slot);
                    self.held.push(slot);
                    continue;
                }
                Some(0) => return Some(slot),
                Some(uses) => self.consider(slot, uses),
            }
            considered += 1;
            if least.is_none_or(|least| self.class_of(slot) < self.class_of(least)) {
                least = Some(slot);
            }
        }
        least
    }

    /// Whether a slot is there.
    pub fn contains(&self, slot: u32) -> bool {
        self.entries
            .get(slot as usize)
            .is_some_and(|entry| entry.class != ABSENT)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory that the policy takes, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.ghost.memory_bytes() + size_of::<Self>()
    }

    fn class_of(&self, slot: u32) -> u8 {
        self.entries[slot as usize].class
    }

    fn resize(&mut self, slot: u32, bytes: u8) {
        let entry = &mut self.entries[slot as usize];
        if entry.bytes != bytes {
            entry.bytes = bytes;
            self.age(slot);
            self.dequeue(slot);
            self.enqueue(slot);
        }
    }

    /// Adds the uses of an entry since it was last considered, and moves it to the list of its value.
    fn consider(&mut self, slot: u32, uses: u32) {
        let entry = self.entries[slot as usize];
        if entry.is_new {
            self.has_returned();
        }
        let turns = self.turns_since(entry.stamp);
        // On average the uses were half of the time ago.
        let uses = uses as f32 * decay(turns / 2.0);
        let frequency = frequency_of_log(entry.frequency) * decay(turns) + uses;
        let entry = &mut self.entries[slot as usize];
        entry.frequency = log_of_frequency(frequency);
        entry.is_new = false;
        self.dequeue(slot);
        self.enqueue(slot);
    }

    /// Takes a victim out and remembers its key.
    fn leave(&mut self, slot: u32) {
        self.age(slot);
        let entry = self.entries[slot as usize];
        if entry.is_new {
            self.return_rate *= 1.0 - self.rate_step();
        }
        let remembered = Remembered {
            frequency: frequency_of_log(entry.frequency),
            is_new: entry.is_new,
        };
        self.ghost.insert(entry.key, remembered.to_byte());
        self.dequeue(slot);
        self.len -= 1;
    }

    /// An unknown key was used again.
    fn has_returned(&mut self) {
        self.return_rate = (self.return_rate + self.rate_step()).min(1.0);
    }

    fn rate_step(&self) -> f32 {
        1.0 / (self.len as f32 * RATE_ENTRIES + RATE_OUTCOMES_MIN)
    }

    /// The clock as entries keep it.
    fn stamp(&self) -> u32 {
        (self.clock / (TURN / u64::from(STAMPS_A_TURN))) as u32
    }

    fn turns_since(&self, stamp: u32) -> f32 {
        self.stamp().wrapping_sub(stamp) as f32 / STAMPS_A_TURN as f32
    }

    /// Brings the frequency of an entry, which is then to be queued again, to this moment.
    fn age(&mut self, slot: u32) {
        let entry = self.entries[slot as usize];
        let frequency = frequency_of_log(entry.frequency) * decay(self.turns_since(entry.stamp));
        self.entries[slot as usize].frequency = log_of_frequency(frequency);
    }

    /// The entry with the lowest value.
    fn first(&self) -> Option<u32> {
        let now = self.stamp();
        let mut occupied = self.occupied;
        let mut lowest = (i64::MAX, NONE);
        while occupied != 0 {
            let class = occupied.trailing_zeros();
            let list = &self.classes[class as usize];
            let age = now.wrapping_sub(list.stamp);
            let value = i64::from(class) * STAMPS_A_CLASS - i64::from(age);
            if value < lowest.0 {
                lowest = (value, list.first);
            }
            occupied &= occupied - 1;
        }
        (lowest.1 != NONE).then_some(lowest.1)
    }

    /// Puts an entry at the end of the list of its value.
    fn enqueue(&mut self, slot: u32) {
        let stamp = self.stamp();
        let entry = &mut self.entries[slot as usize];
        let value = i32::from(entry.frequency) - LOG_OF_ONE - i32::from(entry.bytes);
        let class = CLASS_OF_ONE + (value * STEPS).div_euclid(LOG_STEPS);
        let class = class.clamp(0, CLASSES as i32 - 1) as usize;
        entry.class = class as u8;
        entry.stamp = stamp;
        entry.next = NONE;
        let list = &mut self.classes[class];
        entry.previous = list.last;
        let last = std::mem::replace(&mut list.last, slot);
        if last == NONE {
            list.first = slot;
            list.stamp = stamp;
            self.occupied |= 1 << class;
        } else {
            self.entries[last as usize].next = slot;
        }
    }

    fn dequeue(&mut self, slot: u32) {
        let entry = &mut self.entries[slot as usize];
        let class = std::mem::replace(&mut entry.class, ABSENT) as usize;
        let Entry { next, previous, .. } = *entry;
        if next == NONE {
            self.classes[class].last = previous;
        } else {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
            return;
        }
        self.classes[class].first = next;
        if next == NONE {
            self.occupied &= !(1 << class);
        } else {
            self.classes[class].stamp = self.entries[next as usize].stamp;
        }
    }
}

impl Entry {
    const ABSENT: Self = Self {
        next: NONE,
        previous: NONE,
        key: 0,
        stamp: 0,
        class: ABSENT,
        bytes: 0,
        frequency: 0,
        is_new: false,
    };
}

impl List {
    const EMPTY: Self = Self {
        first: NONE,
        last: NONE,
        stamp: 0,
    };
}

/// What is remembered of a key, in one byte that is not zero: the logarithm of its frequency, whose
/// lowest bit gives way to `is_new`.
#[derive(Debug, Clone, Copy)]
struct Remembered {
    frequency: f32,
    is_new: bool,
}

impl Remembered {
    fn to_byte(self) -> u8 {
        log_of_frequency(self.frequency).max(2) & !1 | u8::from(self.is_new)
    }

    fn from_byte(byte: u8) -> Self {
        Self {
            frequency: frequency_of_log(byte & !1),
            is_new: byte & 1 == 1,
        }
    }
}

/// The part of a use's weight that is left after that many turns.
fn decay(turns: f32) -> f32 {
    (-turns / HALF_LIFE_TURNS).exp2()
}

fn log_of_bytes(bytes: u64) -> u8 {
    ((bytes.max(1) as f32).log2() * LOG_STEPS as f32) as u8
}

fn log_of_frequency(frequency: f32) -> u8 {
    let log = frequency.max(f32::MIN_POSITIVE).log2() * LOG_STEPS as f32;
    (log.round() as i32 + LOG_OF_ONE).clamp(0, 255) as u8
}

fn frequency_of_log(log: u8) -> f32 {
    ((i32::from(log) - LOG_OF_ONE) as f32 / LOG_STEPS as f32).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of a slot in these tests.
    fn key(slot: u32) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&slot.to_le_bytes())
    }

    #[test]
    fn unused_entries_leave_in_the_order_of_their_insertion() {
        let mut policy = MemoryPolicy::default();
        for slot in 0..100 {
            policy.insert(slot, key(slot), 1000, 1000);
        }
        let victims: Vec<_> = std::iter::from_fn(|| policy.evict(|_| Some(0))).collect();
        assert_eq!(victims, (0..100).collect::<Vec<_>>());
        assert!(policy.is_empty());
    }

    #[test]
    fn of_equal_use_the_longest_leaves_first() {
        let mut policy = MemoryPolicy::default();
        for slot in 0..100 {
            policy.insert(slot, key(slot), 1000 << (slot % 8), 1000 << (slot % 8));
        }
        let victim = policy.evict(|_| Some(0)).unwrap();
        assert_eq!(victim % 8, 7);
    }

    #[test]
    fn held_entries_stay() {
        let mut policy = MemoryPolicy::default();
        for slot in 0..10 {
            policy.insert(slot, key(slot), 1000, 1000);
        }
        let held = |slot: u32| (slot >= 5).then_some(0);
        let mut victims: Vec<_> = std::iter::from_fn(|| policy.evict(held)).collect();
        victims.sort();
        assert_eq!(victims, [5, 6, 7, 8, 9]);
        assert_eq!(policy.len(), 5);
    }

    #[test]
    fn an_entry_that_is_used_outlives_the_others() {
        let mut policy = MemoryPolicy::default();
        policy.insert(0, key(0), 1000, 1000);
        for slot in 1..1000 {
            policy.insert(slot, key(slot), 1000, 1000);
            if slot > 100 {
                let victim = policy.evict(|slot| Some(u32::from(slot == 0)));
                assert_ne!(victim, Some(0), "after {slot}");
            }
        }
        assert!(policy.contains(0));
    }

    #[test]
    fn another_size_keeps_the_frequency() {
        let mut policy = MemoryPolicy::default();
        for slot in 0..10 {
            policy.insert(slot, key(slot), 1000, 1000);
        }
        policy.evict(|slot| Some(u32::from(slot < 9) * 4));
        policy.insert(3, key(3), 1100, 1100);
        assert_eq!(policy.len(), 9);
        policy.insert(10, key(10), 1000, 1000);
        assert_eq!(policy.evict(|_| Some(0)), Some(10));
    }

    #[test]
    fn a_call_has_a_limit_where_all_entries_were_used() {
        let mut policy = MemoryPolicy::default();
        for slot in 0..100_000 {
            policy.insert(slot, key(slot), 1000, 1000);
        }
        let mut asked = 0;
        let victim = policy.evict(|slot| {
            asked += 1;
            Some(if slot == 50 { 1 } else { 1000 })
        });
        assert_eq!(
            victim,
            Some(50),
            "the least used of those that were considered"
        );
        assert_eq!(asked, CONSIDERED_MAX);
    }

    /// Zipf-like numbers below `items`: a product of uniform numbers is often small.
    fn popular(random: &mut Random, items: u32) -> u32 {
        let part = |random: &mut Random| f64::from(random.below(1 << 24)) / f64::from(1 << 24);
        (part(random) * part(random) * part(random) * f64::from(items)) as u32
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u32) -> u32 {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            ((self.0 >> 33) % u64::from(limit)) as u32
        }
    }

    /// A tier of entries of one size, whose slots are the numbers of its keys.
    struct Tier {
        policy: MemoryPolicy,
        uses: std::collections::HashMap<u32, u32>,
        len_max: usize,
    }

    impl Tier {
        fn new(len_max: usize) -> Self {
            Self {
                policy: MemoryPolicy::default(),
                uses: Default::default(),
                len_max,
            }
        }

        fn request(&mut self, slot: u32) -> bool {
            if self.policy.contains(slot) {
                *self.uses.entry(slot).or_default() += 1;
                return true;
            }
            self.policy.insert(slot, key(slot), 1000, 1000);
            while self.policy.len() > self.len_max {
                let uses = &mut self.uses;
                let victim = self
                    .policy
                    .evict(|slot| Some(uses.remove(&slot).unwrap_or(0)));
                assert!(!self.policy.contains(victim.expect("no entry is held")));
            }
            false
        }
    }

    #[test]
    fn a_scan_costs_hot_content_at_most_a_point() {
        let seed = 15;
        let mut random = Random(seed);
        let mut tier = Tier::new(1000);
        for _ in 0..20_000 {
            tier.request(popular(&mut random, 800));
        }
        let mut hits = 0;
        for scanned in 0..100_000 {
            tier.request(1_000 + scanned);
            hits += u32::from(tier.request(popular(&mut random, 800)));
        }
        assert!(hits >= 99_000, "{hits} of 100000, seed {seed}");
    }

    #[test]
    fn content_that_nobody_asks_for_any_more_leaves() {
        let seed = 15;
        let mut random = Random(seed);
        let mut tier = Tier::new(1000);
        for _ in 0..50_000 {
            tier.request(popular(&mut random, 2_000));
        }
        for _ in 0..50_000 {
            tier.request(10_000 + popular(&mut random, 2_000));
        }
        let old = (0..2_000)
            .filter(|slot| tier.policy.contains(*slot))
            .count();
        assert!(old < 50, "{old} entries of the first phase, seed {seed}");
    }

    #[test]
    fn the_lists_hold_what_a_set_holds() {
        for seed in 0..20 {
            let mut random = Random(seed);
            let mut policy = MemoryPolicy::default();
            let mut model = std::collections::BTreeSet::new();
            for step in 0..3_000 {
                let slot = random.below(200);
                match random.below(4) {
                    0 | 1 => {
                        let bytes = 1 << random.below(20);
                        policy.insert(slot, key(slot), bytes, u64::from(bytes));
                        model.insert(slot);
                    }
                    2 => {
                        policy.remove(slot);
                        model.remove(&slot);
                    }
                    _ => {
                        // Slots below 50 are held; the others were used now and then.
                        let victim = policy.evict(|slot| (slot >= 50).then(|| random.below(3) / 2));
                        if let Some(victim) = victim {
                            assert!(victim >= 50, "a held entry left, seed {seed}");
                            assert!(model.remove(&victim), "seed {seed}, step {step}");
                        } else {
                            assert!(model.iter().all(|slot| *slot < 50), "seed {seed}");
                        }
                    }
                }
                assert_eq!(policy.len(), model.len(), "seed {seed}, step {step}");
            }
            assert!(
                model.iter().all(|slot| policy.contains(*slot)),
                "seed {seed}"
            );
            // A table of at least 1,024 keys and 200 entries of 20 bytes, and no more.
            assert!(policy.memory_bytes() < 20_000, "{}", policy.memory_bytes());
        }
    }
}
