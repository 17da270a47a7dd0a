//! Keys whose URLs are not spelt as purges spell them, so that a purge of a URL finds them without a look at every key.

use std::collections::HashMap;
use std::sync::Mutex;

/// Keys noted before the first look for those that have left the index.
const NOTED_MIN: usize = 1024;

/// By the hash of the canonical form, the hashes of keys. Keys that have left the index may still be named.
#[derive(Debug, Default)]
pub(crate) struct Spellings(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    keys: HashMap<u128, Vec<u128>>,
    count: usize,
    /// Count beyond which keys that have left are taken out.
    most: usize,
}

impl Spellings {
    /// Notes a key. `is_stored` says which of the others are still there; it is asked now and then, for all of them, so that
    /// no more are noted than twice as many as there are.
    pub(crate) fn note(&self, canonical: u128, key: u128, is_stored: impl Fn(u128) -> bool) {
        let mut noted = self.0.lock().expect("no holder of this lock panics");
        let keys = noted.keys.entry(canonical).or_default();
        if keys.contains(&key) {
            return;
        }
        keys.push(key);
        noted.count += 1;
        if noted.count <= noted.most.max(NOTED_MIN) {
            return;
        }
        noted.keys.retain(|_, keys| {
            keys.retain(|k| *k == key || is_stored(*k));
            !keys.is_empty()
        });
        noted.count = noted.keys.values().map(Vec::len).sum();
        noted.most = 2 * noted.count;
    }

    /// Keys whose URLs have that canonical form and another spelling.
    pub(crate) fn of(&self, canonical: u128) -> Vec<u128> {
        self.0.lock().expect("no holder of this lock panics").keys.get(&canonical).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_have_left_are_forgotten() {
        let spellings = Spellings::default();
        for key in 0..10 * NOTED_MIN as u128 {
            // The newest hundred are stored.
            spellings.note(key / 2, key, |k| k + 100 > key);
        }
        let noted = spellings.0.lock().expect("unpoisoned");
        assert!(noted.count <= NOTED_MIN + 1, "{}", noted.count);
        assert_eq!(noted.count, noted.keys.values().map(Vec::len).sum::<usize>());
        drop(noted);
        let last = 5 * NOTED_MIN as u128 - 1;
        assert_eq!(spellings.of(last), [2 * last, 2 * last + 1]);
    }
}
