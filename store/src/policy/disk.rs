//! The policy of a pool on disk: bytes served, in a log of regions.
//!
//! Two streams, as in S3-FIFO (SOSP 2023): new records go into the probationary stream, which has a small share
//! of the pool, and what is asked for again into the main stream. A region is reclaimed whole, the oldest
//! of its stream, and each live record in it is written again or leaves. What decides is how often its
//! key was asked for, of late: a use counts half after [`HALF_LIFE_TURNS`] turns of the pool's
//! records. Frequencies are kept in a table ([`Ghost`]) for records on disk and for those that left.
//!
//! - A record of the probationary stream goes on if it was used.
//! - A record of the main stream goes on if its frequency is at least the threshold, which follows the
//!   quantile at which half of the bytes of reclaimed regions go on. The threshold is never below one use.
//! - A key that comes back while it is remembered goes into the main stream at once if its frequency is
//!   near the threshold.
//! - While almost nothing of the probationary stream is used (a scan), unknown keys are only remembered,
//!   and one in [`PROBES`] of them is written, which shows when that ends.
//!
//! How large the probationary stream is follows the keys that come back soon after they left: where more
//! of those that left it do than of those that left the main stream, it grows, up to half of the pool. Content
//! that is asked for while it is new, and then never again, needs that.
//!
//! The state need not survive a restart. What is lost with it are frequencies: until each region was
//! reclaimed once, the uses that the directory counted decide alone.

use super::ghost::{Ghost, short};

/// Least and greatest share of the pool that the probationary stream has.
const PROBATION_MIN: f32 = 0.05;
const PROBATION_MAX: f32 = 0.5;
/// Factor by which the share changes at a time, each time this part of the pool was examined.
const PROBATION_STEP: f32 = 1.1;
const PROBATION_STEP_AFTER: f32 = 1.0 / 32.0;
/// A key that comes back within that many turns is one that a larger stream would have kept.
const SOON_TURNS: f32 = 0.25;
/// It grows only where it would gain that many times what the main stream would lose, because what is used
/// in a large probationary stream has to be written again.
const PROBATION_GAIN_MIN: f32 = 1.5;
/// Part of the pool that leaves before the counts of what left and came back are halved.
const COUNTED_PART: f32 = 0.5;
/// Bytes of a stream that are taken to have left beside those that did, as a part of the pool.
const COUNTED_PART_MIN: f32 = 0.01;
/// Turns in which a use loses half of its weight. In a turn as many records are written or examined
/// as the pool has.
const HALF_LIFE_TURNS: f32 = 2.0;
/// Keys that are remembered for each record, at least.
const REMEMBERED_A_RECORD: usize = 2;
/// Frequency of a key that was asked for once, beside uses: much less than one use, because most such
/// keys are never asked for again.
const FREQUENCY_OF_UNKNOWN: f32 = 0.1;
/// Part of a main region's bytes that should be written again.
const REWRITTEN_PART: f32 = 0.5;
/// Octaves by which the threshold can move in a turn of the pool.
const THRESHOLD_GAIN: f32 = 2.0;
/// Part of the probationary stream's bytes that is used when nothing is known.
const USED_PART_AT_START: f32 = 0.5;
/// Below that part the pool is being scanned.
const USED_PART_MIN: f32 = 0.03;
/// During a scan one unknown key in that many is written.
const PROBES: u64 = 8;

/// Logarithms of frequencies are stored with that many steps of an octave.
const LOG_STEPS: f32 = 8.0;
/// Frequency 1 as it is stored, so that lower ones can be stored too.
const LOG_OF_ONE: f32 = 112.0;

/// One of the two sequences of regions of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Records that nobody has asked for again.
    Probation,
    /// Records that somebody has asked for again.
    Main,
}

/// What happens to a live record of a region that is reclaimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It leaves the disk.
    Drop,
    /// It is written again, and keeps that many uses.
    Rewrite(Stream, u8),
}

/// Decides for one pool.
#[derive(Debug)]
pub struct DiskPolicy {
    capacity_bytes: u64,
    frequencies: Ghost,
    /// Records in the pool when one was last examined.
    records: usize,
    /// Logarithm of the frequency from which records of the main stream go on.
    threshold: f32,
    /// Part of the probationary stream's bytes that was used, of late.
    used_part: f32,
    /// Share of the pool that the probationary stream has.
    probation: f32,
    /// Bytes of each stream that left, and of those the bytes that came back soon, of late.
    left: [f32; 2],
    came_back: [f32; 2],
    /// Bytes that were examined since the share was last changed.
    examined: f32,
}

/// What is remembered of a key, in one byte that is not zero: the logarithm of its frequency, whose
/// lowest bit gives way to the stream that it left last.
#[derive(Debug, Clone, Copy)]
struct Remembered {
    frequency: f32,
    left: Stream,
}

impl DiskPolicy {
    /// The policy of a pool of that many bytes.
    pub fn new(capacity_bytes: u64) -> Self {
        Self {
            capacity_bytes: capacity_bytes.max(1),
            frequencies: Ghost::default(),
            records: 0,
            threshold: 0.0,
            used_part: USED_PART_AT_START,
            probation: PROBATION_MIN,
            left: [0.0; 2],
            came_back: [0.0; 2],
            examined: 0.0,
        }
    }

    /// The stream of a new record, or `None` if it is not worth its place. While the pool is not
    /// full, everything is admitted.
    pub fn place(&mut self, key: u64, bytes: u32, is_full: bool) -> Option<Stream> {
        let Some((remembered, turns)) = self.take(key) else {
            if is_full && self.used_part < USED_PART_MIN && !key.is_multiple_of(PROBES) {
                self.remember(key, FREQUENCY_OF_UNKNOWN, Stream::Probation);
                return None;
            }
            return Some(Stream::Probation);
        };
        if turns < SOON_TURNS {
            self.came_back[remembered.left as usize] += bytes as f32;
        }
        let frequency = remembered.frequency + 1.0;
        self.remember(key, frequency, remembered.left);
        if frequency.log2() >= self.threshold / 2.0 {
            Some(Stream::Main)
        } else {
            Some(Stream::Probation)
        }
    }

    /// The stream whose oldest region is reclaimed next, given the bytes of both streams' regions.
    /// A stream without a region that can be reclaimed is given as 0.
    pub fn reclaim(&self, probation_bytes: u64, main_bytes: u64) -> Stream {
        let probation_bytes_max = (self.capacity_bytes as f32 * self.probation) as u64;
        if main_bytes == 0 || probation_bytes > probation_bytes_max {
            Stream::Probation
        } else {
            Stream::Main
        }
    }

    /// What happens to a live record of that length in the region that is reclaimed. `uses` is the
    /// counter of its place in the directory, `records` the number of records in the pool.
    pub fn examine(
        &mut self,
        from: Stream,
        key: u64,
        bytes: u32,
        uses: u8,
        records: usize,
    ) -> Fate {
        self.records = records;
        self.frequencies.grow(records * REMEMBERED_A_RECORD);
        let remembered = self.take(key);
        let before = remembered.map_or(FREQUENCY_OF_UNKNOWN, |(known, _)| known.frequency);
        let frequency = before + f32::from(uses);
        self.remember(key, frequency, from);
        let part = bytes as f32 / self.capacity_bytes as f32;
        let goes_on = match from {
            Stream::Probation => {
                let is_used = uses > 0;
                let step = (part / PROBATION_MIN).min(1.0);
                self.used_part += step * (f32::from(u8::from(is_used)) - self.used_part);
                is_used
            }
            Stream::Main => {
                let is_kept = frequency.log2() >= self.threshold;
                let step = part * THRESHOLD_GAIN;
                self.threshold += if is_kept {
                    step * (1.0 - REWRITTEN_PART)
                } else {
                    -step * REWRITTEN_PART
                };
                self.threshold = self.threshold.max(0.0);
                is_kept
            }
        };
        self.examined += bytes as f32;
        if self.examined >= self.capacity_bytes as f32 * PROBATION_STEP_AFTER {
            self.examined = 0.0;
            self.change_probation();
        }
        if goes_on {
            return Fate::Rewrite(Stream::Main, 0);
        }
        self.left[from as usize] += bytes as f32;
        Fate::Drop
    }

    /// Memory that the policy takes, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.frequencies.memory_bytes() + size_of::<Self>()
    }

    /// Changes the share of the probationary stream by what came back of either stream.
    fn change_probation(&mut self) {
        let capacity = self.capacity_bytes as f32;
        let [probation, main] = [Stream::Probation, Stream::Main].map(|stream| {
            let left = self.left[stream as usize] + capacity * COUNTED_PART_MIN;
            self.came_back[stream as usize] / left
        });
        // Without a measure of the main stream nothing says that it has bytes to spare.
        let is_measured = self.left[Stream::Main as usize] > capacity * COUNTED_PART_MIN;
        if is_measured && probation > main * PROBATION_GAIN_MIN {
            self.probation *= PROBATION_STEP;
        } else {
            self.probation /= PROBATION_STEP;
        }
        self.probation = self.probation.clamp(PROBATION_MIN, PROBATION_MAX);
        if self.left[0] + self.left[1] > capacity * COUNTED_PART {
            self.left = self.left.map(|bytes| bytes / 2.0);
            self.came_back = self.came_back.map(|bytes| bytes / 2.0);
        }
    }

    /// Forgets a key. Returns its frequency at this moment, and the turns since it was remembered.
    fn take(&mut self, key: u64) -> Option<(Remembered, f32)> {
        let (byte, insertions) = self.frequencies.take(short(key))?;
        let turns = insertions as f32 / self.records.max(1) as f32;
        let mut remembered = Remembered::from_byte(byte);
        remembered.frequency *= (-turns / HALF_LIFE_TURNS).exp2();
        Some((remembered, turns))
    }

    fn remember(&mut self, key: u64, frequency: f32, left: Stream) {
        let remembered = Remembered { frequency, left };
        self.frequencies.insert(short(key), remembered.to_byte());
    }
}

impl Remembered {
    fn to_byte(self) -> u8 {
        let log = self.frequency.max(f32::MIN_POSITIVE).log2() * LOG_STEPS + LOG_OF_ONE;
        let log = log.round().clamp(2.0, 255.0) as u8;
        log & !1 | u8::from(self.left == Stream::Main)
    }

    fn from_byte(byte: u8) -> Self {
        Self {
            frequency: ((f32::from(byte & !1) - LOG_OF_ONE) / LOG_STEPS).exp2(),
            left: if byte & 1 == 1 {
                Stream::Main
            } else {
                Stream::Probation
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: u64 = 1000 * 1000;
    const RECORDS: usize = 1000;

    fn key(number: u64) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes())
    }

    /// Examines a record of a thousandth of the pool.
    fn examine(policy: &mut DiskPolicy, from: Stream, number: u64, uses: u8) -> Fate {
        policy.examine(from, key(number), 1000, uses, RECORDS)
    }

    #[test]
    fn new_records_are_on_probation_until_they_are_used() {
        let mut policy = DiskPolicy::new(POOL);
        assert_eq!(policy.place(key(1), 1000, false), Some(Stream::Probation));
        assert_eq!(policy.place(key(2), 1000, true), Some(Stream::Probation));
        let fate = examine(&mut policy, Stream::Probation, 1, 1);
        assert_eq!(fate, Fate::Rewrite(Stream::Main, 0));
        assert_eq!(examine(&mut policy, Stream::Probation, 2, 0), Fate::Drop);
        // It comes back soon after it left.
        assert_eq!(policy.place(key(2), 1000, true), Some(Stream::Main));
    }

    #[test]
    fn a_record_of_the_main_stream_leaves_when_its_uses_are_old() {
        let mut policy = DiskPolicy::new(POOL);
        examine(&mut policy, Stream::Probation, 1, 3);
        for other in 0..10_000 {
            examine(&mut policy, Stream::Probation, 100 + other % 1500, 0);
        }
        assert_eq!(examine(&mut policy, Stream::Main, 1, 0), Fate::Drop);
    }

    #[test]
    fn reclaiming_makes_progress_where_everything_is_used() {
        let mut policy = DiskPolicy::new(POOL);
        let mut kept = 0;
        for turn in 0..40 {
            for number in 0..1000 {
                let uses = 1 + (number % 3) as u8;
                let fate = examine(&mut policy, Stream::Main, number, uses);
                kept += u32::from(turn >= 20 && fate != Fate::Drop);
            }
        }
        assert!((5_000..15_000).contains(&kept), "{kept} of 20000");
    }

    #[test]
    fn a_scan_is_written_in_samples_until_it_ends() {
        let mut policy = DiskPolicy::new(POOL);
        let mut written = 0;
        for number in 0..20_000 {
            if policy.place(key(number), 1000, true).is_some() {
                written += u32::from(number >= 10_000);
                examine(&mut policy, Stream::Probation, number, 0);
            }
        }
        assert!((1_000..1_500).contains(&written), "{written} of 10000");
        // A key that comes twice is written, and so is everything while there is room.
        assert!(policy.place(key(19_999), 1000, true).is_some());
        assert!((20_000..21_000).all(|n| policy.place(key(n), 1000, false).is_some()));
        for number in 30_000..30_100 {
            examine(&mut policy, Stream::Probation, number, 1);
        }
        assert!((40_000..41_000).all(|n| policy.place(key(n), 1000, true).is_some()));
    }

    #[test]
    fn probation_has_a_small_share() {
        let policy = DiskPolicy::new(POOL);
        assert_eq!(policy.reclaim(POOL / 10, POOL / 2), Stream::Probation);
        assert_eq!(policy.reclaim(POOL / 100, POOL / 2), Stream::Main);
        assert_eq!(policy.reclaim(POOL / 100, 0), Stream::Probation);
    }

    #[test]
    fn memory_follows_the_records() {
        let mut policy = DiskPolicy::new(POOL);
        for number in 0..200_000 {
            examine(&mut policy, Stream::Probation, number, 0);
        }
        assert!(policy.memory_bytes() <= RECORDS * 4 * 6 + 1000);
    }

    #[test]
    fn probation_grows_where_what_left_it_comes_back_soon() {
        let mut policy = DiskPolicy::new(POOL);
        for number in 0..10_000 {
            examine(&mut policy, Stream::Probation, number, 0);
            examine(&mut policy, Stream::Main, 50_000 + number, 0);
            assert!(policy.place(key(number), 1000, true).is_some());
        }
        assert_eq!(policy.reclaim(POOL / 4, POOL / 2), Stream::Main);
        assert_eq!(policy.reclaim(POOL * 6 / 10, POOL / 4), Stream::Probation);
        for number in 0..10_000 {
            examine(&mut policy, Stream::Main, 20_000 + number, 0);
            policy.place(key(20_000 + number), 1000, true);
        }
        assert_eq!(policy.reclaim(POOL / 4, POOL / 2), Stream::Probation);
    }
}
