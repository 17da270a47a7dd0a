//! The compiled map: the whole address space as sorted runs with one value each.
//!
//! IPv4 is mapped address by address, IPv6 by its first 64 bits. A look-up is one step in an index
//! over the first 16 bits and a binary search in the rest. It also gives the widest prefix around
//! the address that is inside the run: the scope that an answer made from the run's value may have.

/// A fixed-width unsigned key.
pub(super) trait Key: Copy + Ord + std::fmt::Debug {
    /// All ones.
    const MAX: Self;
    /// Zero.
    const ZERO: Self;
    /// Width.
    const BITS: u32;
    /// First 16 bits.
    fn top(self) -> usize;
    /// The key whose first 16 bits these are, zeros after them.
    fn from_top(top: usize) -> Self;
    /// The next key; `None` after the last.
    fn next(self) -> Option<Self>;
    /// Position of the highest bit in which the two differ (0 is the lowest); they must differ.
    fn highest_difference(self, other: Self) -> u32;
    /// The key before; the key must not be zero.
    fn previous(self) -> Self;
}

macro_rules! key {
    ($t:ty) => {
        impl Key for $t {
            const MAX: Self = <$t>::MAX;
            const ZERO: Self = 0;
            const BITS: u32 = <$t>::BITS;
            fn top(self) -> usize {
                (self >> (<$t>::BITS - 16)) as usize
            }
            fn from_top(top: usize) -> Self {
                (top as $t) << (<$t>::BITS - 16)
            }
            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }
            fn highest_difference(self, other: Self) -> u32 {
                <$t>::BITS - 1 - (self ^ other).leading_zeros()
            }
            fn previous(self) -> Self {
                self - 1
            }
        }
    };
}
key!(u32);
key!(u64);

/// Runs that cover all keys without a gap; neighbours differ in value. The value 0 means unknown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ranges<K> {
    starts: Vec<K>,
    values: Vec<u32>,
    /// By the first 16 bits: how many runs begin before them. One more at the end.
    index: Vec<u32>,
}

/// Builds [`Ranges`] from spans given in ascending order.
pub(super) struct Builder<K> {
    starts: Vec<K>,
    values: Vec<u32>,
    /// The first key not covered yet; `None` once all are.
    next: Option<K>,
}

impl<K: Key> Builder<K> {
    pub(super) fn new() -> Self {
        Self {
            starts: Vec::new(),
            values: Vec::new(),
            next: Some(K::ZERO),
        }
    }

    /// Sets the value of `first..=last`; keys skipped since the last span get 0, and keys of a
    /// former span keep its value.
    pub(super) fn push(&mut self, first: K, last: K, value: u32) {
        let Some(next) = self.next else { return };
        if last < next {
            return;
        }
        let first = first.max(next);
        if first > next {
            self.run(next, 0);
        }
        self.run(first, value);
        self.next = last.next();
    }

    fn run(&mut self, start: K, value: u32) {
        if self.values.last() != Some(&value) {
            self.starts.push(start);
            self.values.push(value);
        }
    }

    pub(super) fn finish(mut self) -> Ranges<K> {
        if let Some(next) = self.next {
            self.run(next, 0);
        }
        let mut index = Vec::with_capacity(65_537);
        let mut before = 0;
        for top in 0..65_536 {
            let bucket = K::from_top(top);
            while before < self.starts.len() && self.starts[before] < bucket {
                before += 1;
            }
            index.push(before as u32);
        }
        index.push(self.starts.len() as u32);
        self.starts.shrink_to_fit();
        self.values.shrink_to_fit();
        Ranges {
            starts: self.starts,
            values: self.values,
            index,
        }
    }
}

impl<K: Key> Ranges<K> {
    fn position(&self, key: K) -> usize {
        let top = key.top();
        let from = self.index[top] as usize;
        let to = self.index[top + 1] as usize;
        // The run of `key` begins at or before it, and the first run begins at zero.
        (from + self.starts[from..to].partition_point(|start| *start <= key)).saturating_sub(1)
    }

    /// The value at `key`.
    pub(super) fn value(&self, key: K) -> u32 {
        self.values[self.position(key)]
    }

    /// The value at `key`, and the length of the widest prefix around `key` with that value
    /// throughout.
    pub(super) fn find(&self, key: K) -> (u32, u8) {
        let position = self.position(key);
        let mut free = K::BITS;
        let start = self.starts[position];
        if start > K::ZERO {
            free = free.min(key.highest_difference(start.previous()));
        }
        if let Some(after) = self.starts.get(position + 1) {
            free = free.min(key.highest_difference(*after));
        }
        (self.values[position], (K::BITS - free) as u8)
    }

    /// All runs: first key, last key, value.
    pub(super) fn runs(&self) -> impl Iterator<Item = (K, K, u32)> + '_ {
        self.starts
            .iter()
            .zip(&self.values)
            .enumerate()
            .map(|(i, (start, value))| {
                let last = self
                    .starts
                    .get(i + 1)
                    .map_or(K::MAX, |next| next.previous());
                (*start, last, *value)
            })
    }

    /// The same runs with other values; neighbours that become equal are joined.
    pub(super) fn map(&self, f: impl Fn(u32) -> u32) -> Self {
        let mut out = Builder::new();
        for (first, last, value) in self.runs() {
            out.push(first, last, f(value));
        }
        out.finish()
    }

    /// `self` where it knows something (a value other than 0), else `base`.
    pub(super) fn over(&self, base: &Self) -> Self {
        let mut out = Builder::new();
        let mut below = base.runs().peekable();
        for (first, last, value) in self.runs() {
            if value != 0 {
                out.push(first, last, value);
                continue;
            }
            while let Some((from, to, under)) = below.peek().copied() {
                if from > last {
                    break;
                }
                if to >= first {
                    out.push(from.max(first), to.min(last), under);
                }
                if to > last {
                    break;
                }
                below.next();
            }
        }
        out.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn made(spans: &[(u32, u32, u32)]) -> Ranges<u32> {
        let mut builder = Builder::new();
        for (first, last, value) in spans {
            builder.push(*first, *last, *value);
        }
        builder.finish()
    }

    #[test]
    fn finds_values_and_widest_prefixes() {
        let map = made(&[
            (0x0a00_0000, 0x0aff_ffff, 1),
            (0x0b00_0000, 0x0b00_00ff, 1),
            (0xc000_0200, 0xc000_02ff, 2),
            (u32::MAX, u32::MAX, 3),
        ]);
        for (key, expected) in [
            (0_u32, (0, 5)),       // 0.0.0.0/5 ends before 8.0.0.0, 10.0.0.0 is inside 8.0.0.0/6
            (0x0a01_0203, (1, 8)), // the run goes on into 11.0.0.0/24, but no wider prefix fits
            (0x0b00_0001, (1, 24)),
            (0x0b00_0100, (0, 24)),
            (0xc000_0201, (2, 24)),
            (u32::MAX, (3, 32)),
            (u32::MAX - 1, (0, 32)),
        ] {
            assert_eq!(map.find(key), expected, "{key:08x}");
            assert_eq!(map.value(key), expected.0);
        }
        assert_eq!(
            made(&[]).find(77),
            (0, 0),
            "one value everywhere needs no bits"
        );
    }

    #[test]
    fn later_spans_do_not_change_former_ones_and_neighbours_join() {
        let map = made(&[(0, 9, 1), (5, 20, 2), (21, 30, 2)]);
        assert_eq!(
            map.runs().collect::<Vec<_>>(),
            [(0, 9, 1), (10, 30, 2), (31, u32::MAX, 0)]
        );
    }

    fn any_ranges() -> impl Strategy<Value = Ranges<u32>> {
        proptest::collection::vec((0_u32..=32, any::<u32>(), 0_u32..4), 0..12).prop_map(
            |mut prefixes| {
                for (len, key, _) in &mut prefixes {
                    let mask = if *len == 0 {
                        0
                    } else {
                        u32::MAX << (32 - *len)
                    };
                    *key &= mask;
                }
                prefixes.sort_by_key(|(len, key, _)| (*key, *len));
                let mut builder = Builder::new();
                for (len, key, value) in prefixes {
                    let last = if len == 0 {
                        u32::MAX
                    } else {
                        key | !(u32::MAX << (32 - len))
                    };
                    let last = if len == 32 { key } else { last };
                    builder.push(key, last, value);
                }
                builder.finish()
            },
        )
    }

    /// The value at `key`, by looking at every run.
    fn slow(map: &Ranges<u32>, key: u32) -> u32 {
        map.runs()
            .find(|(first, last, _)| (*first..=*last).contains(&key))
            .unwrap()
            .2
    }

    proptest! {
        #[test]
        fn the_prefix_is_uniform_and_one_bit_less_is_not(map in any_ranges(), key in any::<u32>()) {
            let (value, len) = map.find(key);
            prop_assert_eq!(value, slow(&map, key));
            let span = |len: u8| {
                let mask = if len == 0 { 0 } else { u32::MAX << (32 - len) };
                (key & mask, key | !mask)
            };
            let uniform = |len: u8| {
                let (first, last) = span(len);
                map.runs().filter(|(a, b, _)| *a <= last && *b >= first).all(|(_, _, v)| v == value)
            };
            prop_assert!(uniform(len));
            prop_assert!(len == 0 || !uniform(len - 1));
        }

        #[test]
        fn laying_over_prefers_what_is_known(top in any_ranges(), base in any_ranges(), keys in proptest::collection::vec(any::<u32>(), 20)) {
            let both = top.over(&base);
            let edges = top.runs().chain(base.runs()).flat_map(|(a, b, _)| [a, b]);
            for key in keys.into_iter().chain(edges) {
                let expected = match slow(&top, key) { 0 => slow(&base, key), known => known };
                prop_assert_eq!(both.value(key), expected);
            }
        }
    }
}
