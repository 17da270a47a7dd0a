//! What is remembered of keys that are no longer held.
//!
//! A set-associative table: a key's place is a bucket of [`WAYS`] entries, and within its bucket the
//! oldest entry gives way. An entry takes six bytes: 32 bits of the key, a value and a stamp.
//! Two keys with the same 32 bits are taken for one, which costs hit ratio and nothing else.

/// Entries in a bucket.
const WAYS: usize = 8;
/// Entries of a new table.
const ENTRIES_MIN: usize = 1024;
/// Bytes of memory that one entry takes.
const ENTRY_BYTES: usize = 6;
/// Stamps of the eight bits that an entry has; half of them are in use at a time.
const AGES: u64 = 128;

/// Keys that left a tier, with one byte of the caller's.
#[derive(Debug)]
pub(super) struct Ghost {
    keys: Vec<u32>,
    /// Zero marks a free entry.
    values: Vec<u8>,
    stamps: Vec<u8>,
    /// Bits of a key that name its bucket.
    bucket_bits: u32,
    /// Entries inserted so far: the clock of the table.
    inserted: u64,
}

impl Default for Ghost {
    fn default() -> Self {
        Self::with_entries(ENTRIES_MIN)
    }
}

impl Ghost {
    /// A table of at least that many entries.
    pub(super) fn with_entries(entries: usize) -> Self {
        let buckets = entries.div_ceil(WAYS).next_power_of_two();
        Self {
            keys: vec![0; buckets * WAYS],
            values: vec![0; buckets * WAYS],
            stamps: vec![0; buckets * WAYS],
            bucket_bits: buckets.ilog2(),
            inserted: 0,
        }
    }

    /// Number of entries that the table can have.
    pub(super) fn capacity(&self) -> usize {
        self.keys.len()
    }

    /// Memory that the table takes, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.keys.len() * ENTRY_BYTES
    }

    /// Makes room for that many entries, in steps of two. Keeps what the table has.
    pub(super) fn grow(&mut self, entries: usize) {
        if entries <= self.capacity() {
            return;
        }
        let mut larger = Self::with_entries(entries);
        for at in 0..self.keys.len() {
            if self.values[at] != 0 {
                larger.inserted = self.clock_of(self.stamps[at]);
                larger.put(self.keys[at], self.values[at]);
            }
        }
        larger.inserted = self.inserted;
        *self = larger;
    }

    /// Remembers a key that leaves the tier, with a value that is not zero.
    pub(super) fn insert(&mut self, key: u32, value: u8) {
        self.inserted += 1;
        self.put(key, value.max(1));
    }

    /// Forgets a key. Returns its value, and about how many keys were inserted since.
    pub(super) fn take(&mut self, key: u32) -> Option<(u8, u64)> {
        let at = self.find(key)?;
        let value = std::mem::take(&mut self.values[at]);
        Some((value, self.inserted - self.clock_of(self.stamps[at])))
    }

    fn bucket(&self, key: u32) -> usize {
        let number = u64::from(key) << self.bucket_bits >> 32;
        number as usize * WAYS
    }

    fn find(&self, key: u32) -> Option<usize> {
        let bucket = self.bucket(key);
        (bucket..bucket + WAYS).find(|at| self.keys[*at] == key && self.values[*at] != 0)
    }

    fn put(&mut self, key: u32, value: u8) {
        let bucket = self.bucket(key);
        let at = self.find(key).unwrap_or_else(|| {
            (bucket..bucket + WAYS)
                .min_by_key(|at| match self.values[*at] {
                    0 => 0,
                    _ => 1 + self.clock_of(self.stamps[*at]),
                })
                .expect("a bucket has entries")
        });
        self.keys[at] = key;
        self.values[at] = value;
        self.stamps[at] = self.stamp();
    }

    /// Insertions between two stamps: a table's worth of insertions takes a quarter of the stamps.
    fn insertions_a_stamp(&self) -> u64 {
        (self.capacity() as u64 * 4 / AGES).max(1)
    }

    fn stamp(&self) -> u8 {
        (self.inserted / self.insertions_a_stamp()) as u8
    }

    /// The clock at the time of a stamp, which is at most 255 stamps ago.
    fn clock_of(&self, stamp: u8) -> u64 {
        let ago = self.stamp().wrapping_sub(stamp);
        self.inserted
            .saturating_sub(u64::from(ago) * self.insertions_a_stamp())
    }
}

/// The 32 bits of a key that the table uses.
pub(super) fn short(key: u64) -> u32 {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of a number in these tests.
    fn key(number: u64) -> u32 {
        short(xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes()))
    }

    #[test]
    fn what_was_inserted_last_is_remembered_in_bounded_memory() {
        let mut ghost = Ghost::with_entries(4096);
        let memory = ghost.memory_bytes();
        for number in 0..100_000 {
            ghost.insert(key(number), 1 + (number % 255) as u8);
        }
        assert_eq!(ghost.memory_bytes(), memory);
        // Buckets fill unevenly, so the oldest of the last table's worth may be gone.
        let known = |ghost: &mut Ghost, number: u64| match ghost.take(key(number)) {
            Some((value, _)) => {
                assert_eq!(u64::from(value), 1 + number % 255);
                true
            }
            None => false,
        };
        let young = (98_500..100_000).filter(|n| known(&mut ghost, *n)).count();
        assert!(young >= 1490, "{young} of 1500");
        let old = (0..80_000).filter(|n| known(&mut ghost, *n)).count();
        assert!(old < 10, "{old} of 80000");
    }

    #[test]
    fn a_key_that_was_taken_is_forgotten() {
        let mut ghost = Ghost::default();
        ghost.insert(key(1), 7);
        assert_eq!(ghost.take(key(1)), Some((7, 0)));
        assert_eq!(ghost.take(key(1)), None);
    }

    #[test]
    fn ages_count_insertions_and_survive_growth() {
        let mut ghost = Ghost::with_entries(2048);
        ghost.insert(key(1), 7);
        for number in 1000..2000 {
            ghost.insert(key(number), 1);
        }
        ghost.grow(4096);
        assert_eq!(ghost.capacity(), 4096);
        let (value, age) = ghost.take(key(1)).expect("it is young");
        assert_eq!(value, 7);
        assert!((800..1300).contains(&age), "{age}");
        let kept = (1000..2000)
            .filter(|n| ghost.take(key(*n)).is_some())
            .count();
        assert!(kept >= 980, "{kept} of 1000");
    }
}
