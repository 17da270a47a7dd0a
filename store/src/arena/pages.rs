//! Which pages are used, and behind which ones there is memory.
//!
//! Knows numbers of pages only; the parent module makes the system calls. Pages are grouped in
//! chunks, each a huge page. Runs of pages never cross the end of a chunk.

/// Pages of a chunk.
pub(super) const CHUNK_PAGES: usize = 512;
const WORDS: usize = CHUNK_PAGES / 64;

type Bits = [u64; WORDS];

/// Pages by number, and what is known of them.
#[derive(Debug, Default)]
pub(super) struct Pages {
    used: Vec<Bits>,
    /// Pages with memory behind them.
    backed: Vec<Bits>,
    /// Of each chunk: length of the longest run of free pages.
    longest: Vec<u16>,
    /// Of each chunk: free pages with memory behind them.
    idle: Vec<u16>,
    idle_total: usize,
    chunks_max: usize,
}

/// A run of pages that was taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) page: usize,
    /// Pages that have memory behind them now and had none before.
    pub(super) newly_backed: usize,
    /// The chunk is to be one huge page: all its pages count as backed.
    pub(super) is_new_huge: bool,
}

impl Pages {
    pub(super) fn new(chunks_max: usize) -> Self {
        Self {
            chunks_max,
            ..Self::default()
        }
    }

    /// Takes `count` pages in a row. Pages with memory behind them come first, then free pages of
    /// chunks in use, then a new chunk. `may_be_huge` allows to back the whole of an unused chunk at
    /// once. `None` when there is no room.
    pub(super) fn take(&mut self, count: usize, may_be_huge: bool) -> Option<Taken> {
        debug_assert!((1..=CHUNK_PAGES).contains(&count));
        let found = self
            .find_idle(count)
            .or_else(|| self.find_free(count))
            .or_else(|| Some((self.add_chunk()?, 0)));
        let (chunk, first) = found?;
        let is_new_huge =
            may_be_huge && self.used[chunk] == [0; WORDS] && self.backed[chunk] == [0; WORDS];
        let before = ones(&self.backed[chunk]);
        if is_new_huge {
            self.backed[chunk] = [u64::MAX; WORDS];
        } else {
            set(&mut self.backed[chunk], first, count);
        }
        set(&mut self.used[chunk], first, count);
        self.update(chunk);
        Some(Taken {
            page: chunk * CHUNK_PAGES + first,
            newly_backed: ones(&self.backed[chunk]) - before,
            is_new_huge,
        })
    }

    /// Frees pages that were taken. The memory behind them stays.
    pub(super) fn free(&mut self, page: usize, count: usize) {
        let (chunk, first) = (page / CHUNK_PAGES, page % CHUNK_PAGES);
        clear(&mut self.used[chunk], first, count);
        self.update(chunk);
    }

    /// Free pages with memory behind them.
    pub(super) fn idle(&self) -> usize {
        self.idle_total
    }

    /// Chooses runs of idle pages until at most `keep` are left, and counts them as pages without
    /// memory. Short runs go first, because few spans fit into them; among equals those of the last
    /// chunks.
    pub(super) fn trim(&mut self, keep: usize) -> Vec<(usize, usize)> {
        let mut chosen = Vec::new();
        for longest in [15, 63, CHUNK_PAGES] {
            for chunk in (0..self.used.len()).rev() {
                if self.idle_total <= keep {
                    return chosen;
                }
                if self.idle[chunk] == 0 {
                    continue;
                }
                let idle = self.idle_bits(chunk);
                let mut left = self.idle_total - keep;
                for (first, count) in runs(&idle).filter(|(_, count)| *count <= longest) {
                    let count = count.min(left);
                    left -= count;
                    if count > 0 {
                        clear(&mut self.backed[chunk], first, count);
                        chosen.push((chunk * CHUNK_PAGES + first, count));
                    }
                }
                self.update(chunk);
            }
        }
        chosen
    }

    fn find_idle(&self, count: usize) -> Option<(usize, usize)> {
        if self.idle_total < count {
            return None;
        }
        (0..self.used.len())
            .filter(|chunk| self.idle[*chunk] as usize >= count)
            .find_map(|chunk| Some((chunk, find_run(&self.idle_bits(chunk), count)?)))
    }

    fn find_free(&self, count: usize) -> Option<(usize, usize)> {
        let chunk = self
            .longest
            .iter()
            .position(|run| usize::from(*run) >= count)?;
        let free = self.used[chunk].map(|word| !word);
        Some((chunk, find_run(&free, count)?))
    }

    fn add_chunk(&mut self) -> Option<usize> {
        if self.used.len() == self.chunks_max {
            return None;
        }
        self.used.push([0; WORDS]);
        self.backed.push([0; WORDS]);
        self.longest.push(CHUNK_PAGES as u16);
        self.idle.push(0);
        Some(self.used.len() - 1)
    }

    fn idle_bits(&self, chunk: usize) -> Bits {
        std::array::from_fn(|word| self.backed[chunk][word] & !self.used[chunk][word])
    }

    fn update(&mut self, chunk: usize) {
        let free = self.used[chunk].map(|word| !word);
        self.longest[chunk] = longest_run(&free).map_or(0, |(_, count)| count as u16);
        let idle = ones(&self.idle_bits(chunk));
        self.idle_total = self.idle_total + idle - usize::from(self.idle[chunk]);
        self.idle[chunk] = idle as u16;
    }
}

fn ones(bits: &Bits) -> usize {
    bits.iter().map(|word| word.count_ones() as usize).sum()
}

fn set(bits: &mut Bits, first: usize, count: usize) {
    each_word(first, count, |word, mask| bits[word] |= mask);
}

fn clear(bits: &mut Bits, first: usize, count: usize) {
    each_word(first, count, |word, mask| bits[word] &= !mask);
}

fn each_word(first: usize, count: usize, mut each: impl FnMut(usize, u64)) {
    let end = first + count;
    let mut at = first;
    while at < end {
        let (word, bit) = (at / 64, at % 64);
        let length = (64 - bit).min(end - at);
        let mask = if length == 64 {
            u64::MAX
        } else {
            ((1 << length) - 1) << bit
        };
        each(word, mask);
        at += length;
    }
}

/// The runs of set bits, first and length.
fn runs(bits: &Bits) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = next(bits, at, true)?;
        let end = next(bits, first, false).unwrap_or(CHUNK_PAGES);
        at = end;
        Some((first, end - first))
    })
}

/// The first bit from `at` on that is set, or clear.
fn next(bits: &Bits, at: usize, is_set: bool) -> Option<usize> {
    let mut at = at;
    while at < CHUNK_PAGES {
        let word = if is_set {
            bits[at / 64]
        } else {
            !bits[at / 64]
        };
        let left = word >> (at % 64);
        if left != 0 {
            return Some(at + left.trailing_zeros() as usize);
        }
        at = (at / 64 + 1) * 64;
    }
    None
}

fn longest_run(bits: &Bits) -> Option<(usize, usize)> {
    runs(bits).max_by_key(|(_, count)| *count)
}

/// The shortest run of at least `count` bits.
fn find_run(bits: &Bits, count: usize) -> Option<usize> {
    runs(bits)
        .filter(|(_, length)| *length >= count)
        .min_by_key(|(_, length)| *length)
        .map(|(first, _)| first)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn idle_pages_are_used_before_others_and_released_from_the_end() {
        let mut pages = Pages::new(2);
        let taken = pages.take(64, false).expect("room");
        assert_eq!((taken.page, taken.newly_backed), (0, 64));
        pages.take(10, false).expect("room");
        pages.free(0, 64);
        assert_eq!(pages.idle(), 64);
        let again = pages.take(60, false).expect("room");
        assert_eq!((again.page, again.newly_backed), (0, 0));
        assert_eq!(pages.trim(0), [(60, 4)]);
        assert_eq!(pages.take(4, false).expect("room").newly_backed, 4);
        assert_eq!(
            pages.take(CHUNK_PAGES, true).expect("room").newly_backed,
            CHUNK_PAGES
        );
        assert_eq!(pages.take(439, false), None);
    }

    proptest! {
        #[test]
        fn no_page_is_given_twice_and_the_counts_are_true(
            steps in prop::collection::vec((0..4u8, 1..100usize, any::<bool>()), 0..200),
        ) {
            let mut pages = Pages::new(4);
            let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
            let mut backed: BTreeSet<usize> = BTreeSet::new();
            for (kind, count, is_huge) in steps {
                match kind {
                    0 | 1 => {
                        let Some(got) = pages.take(count, is_huge) else { continue };
                        let range = got.page..got.page + count;
                        for (first, length) in &taken {
                            prop_assert!(range.end <= *first || first + length <= range.start);
                        }
                        let before = backed.len();
                        let chunk = got.page / CHUNK_PAGES * CHUNK_PAGES;
                        if got.is_new_huge {
                            backed.extend(chunk..chunk + CHUNK_PAGES);
                        }
                        backed.extend(range);
                        prop_assert_eq!(backed.len() - before, got.newly_backed);
                        taken.insert(got.page, count);
                    }
                    2 => {
                        let Some((page, length)) = taken.pop_first() else { continue };
                        pages.free(page, length);
                    }
                    _ => {
                        for (page, length) in pages.trim(count) {
                            for page in page..page + length {
                                prop_assert!(backed.remove(&page));
                                prop_assert!(!taken.iter().any(|(first, length)| (*first..first + length).contains(&page)));
                            }
                        }
                        prop_assert!(pages.idle() <= count);
                    }
                }
                let used: usize = taken.values().sum();
                prop_assert_eq!(pages.idle(), backed.len() - used);
            }
        }
    }
}
