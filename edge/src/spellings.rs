//! Keys whose URLs are not in the canonical form of purges, so that a purge of a URL finds them
//! without visiting every key.

use std::collections::BTreeSet;

use parking_lot::Mutex;

/// Parts, each with a lock, so that threads that store such keys seldom wait for one another.
const PARTS: usize = 16;
/// Keys noted in a part before it is searched for keys that have left the index.
const NOTED_MIN: usize = 64;

/// The hashes of keys by the hash of their canonical form, in order, so that one form may have any
/// number of keys. Keys that have left the index may still be noted.
#[derive(Debug, Default)]
pub(crate) struct Spellings([Mutex<Noted>; PARTS]);

#[derive(Debug, Default)]
struct Noted {
    /// Canonical form and key.
    pairs: BTreeSet<(u128, u128)>,
    /// Count beyond which keys that have left the index are removed.
    most: usize,
}

impl Spellings {
    /// Notes a key. `is_stored` states which of the others are still in the index. It is called now and
    /// then for all keys of a part, so that a part has at most twice as many as are stored.
    pub(crate) fn note(&self, canonical: u128, key: u128, is_stored: impl Fn(u128) -> bool) {
        let mut noted = self.part(canonical).lock();
        if !noted.pairs.insert((canonical, key)) || noted.pairs.len() <= noted.most.max(NOTED_MIN) {
            return;
        }
        noted.pairs.retain(|(_, k)| *k == key || is_stored(*k));
        noted.most = 2 * noted.pairs.len();
    }

    /// Keys whose URLs have that canonical form, but are spelt in another way.
    pub(crate) fn of(&self, canonical: u128) -> Vec<u128> {
        let noted = self.part(canonical).lock();
        noted
            .pairs
            .range((canonical, 0)..=(canonical, u128::MAX))
            .map(|(_, key)| *key)
            .collect()
    }

    fn part(&self, canonical: u128) -> &Mutex<Noted> {
        &self.0[(canonical % PARTS as u128) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(spellings: &Spellings) -> usize {
        spellings.0.iter().map(|part| part.lock().pairs.len()).sum()
    }

    #[test]
    fn keys_that_have_left_are_forgotten() {
        let spellings = Spellings::default();
        let keys = 100 * (PARTS * NOTED_MIN) as u128;
        for key in 0..keys {
            // The newest hundred are stored.
            spellings.note(key / 2, key, |k| k + 100 > key);
        }
        assert!(
            count(&spellings) <= PARTS * (NOTED_MIN + 1),
            "{}",
            count(&spellings)
        );
        let last = keys / 2 - 1;
        assert_eq!(spellings.of(last), [2 * last, 2 * last + 1]);
        assert!(spellings.of(last + 1).is_empty());
    }

    #[test]
    fn one_form_may_have_as_many_spellings_as_there_are_keys() {
        let spellings = Spellings::default();
        // A search through all of them for each one would take minutes.
        let keys = 1 << 18;
        for turn in 0..2 {
            for key in 0..keys {
                spellings.note(7, key, |_| true);
            }
            assert_eq!(
                (count(&spellings), spellings.of(7).len()),
                (keys as usize, keys as usize),
                "turn {turn}"
            );
        }
        assert_eq!(spellings.of(7), (0..keys).collect::<Vec<_>>());
    }
}
