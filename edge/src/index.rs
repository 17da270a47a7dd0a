//! Stored responses by cache key: what look-ups read and only fills, freshening, invalidation and eviction write.

use std::borrow::Cow;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use nearcast_fleet::scope;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::response::StoredResponse;
use crate::spellings::Spellings;
use crate::store::BodyId;

/// Variants kept of one URL; the oldest leave.
const VARIANTS_MAX: usize = 32;
/// Shards of the map: many, so that two threads seldom meet in one.
const SHARDS: usize = 128;

/// Keys that an index holds for each byte of the memory tier, and the bounds of that: what is on disk alone costs memory
/// for its description, too.
const BYTES_A_KEY: u64 = 1024;
const KEYS_MIN: usize = 16_384;
const KEYS_MAX: usize = 262_144;
/// Insertions between two looks at how many keys there are.
const LOOK_EVERY: usize = 64;
/// One key in so many leaves when there are too many.
const SHED_PART: usize = 16;

/// Stored variants of one key, newest first.
pub(crate) type Variants = Arc<Vec<Arc<StoredResponse>>>;

/// See the module's words.
#[derive(Debug)]
pub(crate) struct Index {
    responses: DashMap<u128, Variants, BuildHasherDefault<HashedKey>>,
    /// Keys that purges name otherwise.
    spellings: Spellings,
    keys_max: usize,
    inserted: AtomicUsize,
    /// Parts shed so far.
    shed_parts: AtomicUsize,
    /// Chosen at random by each process, so that no client can choose where its keys lie.
    seed: u64,
}

impl Index {
    /// An index beside a memory tier of that many bytes.
    pub(crate) fn new(memory_bytes: u64) -> Self {
        use std::hash::BuildHasher;
        let seed = std::hash::RandomState::new().hash_one(SHARDS);
        let keys_max = usize::try_from(memory_bytes / BYTES_A_KEY).unwrap_or(KEYS_MAX).clamp(KEYS_MIN, KEYS_MAX);
        let responses = DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), SHARDS);
        Self { responses, spellings: Spellings::default(), keys_max, inserted: AtomicUsize::new(0), shed_parts: AtomicUsize::new(0), seed }
    }

    /// What a cache key is looked up by. Keys that meet in one hash are told apart by their URLs.
    pub(crate) fn hash(&self, url: &str) -> u128 {
        xxh3_128_with_seed(url.as_bytes(), self.seed)
    }

    /// All variants stored under a key, and perhaps those of another key that meets it: compare the URL.
    pub(crate) fn variants(&self, hash: u128) -> Option<Variants> {
        self.responses.get(&hash).map(|found| found.value().clone())
    }

    /// Hashes of the keys that a URL in canonical form names: its own, and those of keys that are spelt otherwise.
    pub(crate) fn named(&self, canonical: &str) -> Vec<u128> {
        let own = self.hash(canonical);
        let mut hashes = self.spellings.of(own);
        hashes.push(own);
        hashes
    }

    /// Puts a response first, in place of those that `replaces` names. Gives back what left.
    pub(crate) fn insert(&self, response: Arc<StoredResponse>, replaces: impl Fn(&StoredResponse) -> bool) -> Vec<Arc<StoredResponse>> {
        if let Cow::Owned(canonical) = scope::stored(&response.url) {
            // Before the entry is taken: this looks at others.
            self.spellings.note(self.hash(&canonical), response.hash, |key| self.responses.contains_key(&key));
        }
        let mut entry = self.responses.entry(response.hash).or_default();
        let (mut left, mut stay): (Vec<_>, Vec<_>) = entry.iter().cloned().partition(|r| r.url != response.url || replaces(r));
        stay.insert(0, response);
        left.extend(stay.drain(VARIANTS_MAX.min(stay.len())..));
        *entry = Arc::new(stay);
        left
    }

    /// Takes out every response of a key that `which` names.
    pub(crate) fn remove(&self, hash: u128, which: impl Fn(&StoredResponse) -> bool) -> Vec<Arc<StoredResponse>> {
        let mut left = Vec::new();
        self.responses.remove_if_mut(&hash, |_, variants| {
            let (leaves, stay): (Vec<_>, Vec<_>) = variants.iter().cloned().partition(|r| which(r));
            if leaves.is_empty() {
                return false;
            }
            left = leaves;
            let is_empty = stay.is_empty();
            *variants = Arc::new(stay);
            is_empty
        });
        left
    }

    /// Takes out a body that has left the store.
    pub(crate) fn remove_body(&self, hash: u128, body: BodyId) {
        self.remove(hash, |r| r.content.body.id == body && !r.content.is_filling() && !r.content.body.has_slices());
    }

    /// Now and then: while there are too many keys, takes a part of them out, whichever their hashes name, each part in its
    /// turn.
    pub(crate) fn shed(&self) -> Vec<Arc<StoredResponse>> {
        let mut left = Vec::new();
        if !self.inserted.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_EVERY) {
            return left;
        }
        while self.responses.len() > self.keys_max {
            let part = self.shed_parts.fetch_add(1, Ordering::Relaxed) % SHED_PART;
            self.responses.retain(|hash, variants| {
                let stays = (*hash >> 100) as usize % SHED_PART != part;
                if !stays {
                    left.extend(variants.iter().cloned());
                }
                stays
            });
        }
        left
    }

    /// Every stored response, a shard at a time. Slow: for purges that name no URL.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&Arc<StoredResponse>)) {
        for entry in &self.responses {
            entry.value().iter().for_each(&mut each);
        }
    }

    /// Keys with stored responses.
    pub(crate) fn len(&self) -> usize {
        self.responses.len()
    }
}

/// Passes a key that is a hash already.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct HashedKey(u64);

impl Hasher for HashedKey {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, value: u128) {
        self.0 = (value as u64) ^ (value >> 64) as u64;
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};
    use nearcast_fleet::config::CachePolicy;

    use super::*;
    use crate::content::Content;
    use crate::policy::freshness::{Exchange, Freshness};
    use crate::response::Facts;
    use crate::store::{Pool, Store, StoreConfig};

    fn response(index: &Index, store: &Arc<Store>, url: &str) -> Arc<StoredResponse> {
        let hash = index.hash(url);
        let content = Content::new(store.clone(), store.new_body(hash, Pool::Pull), Some(0), None);
        let exchange = Exchange { requested_ms: 0, received_ms: 0 };
        let facts = Facts {
            url: url.into(),
            hash,
            site: "www".into(),
            status: StatusCode::OK,
            freshness: Freshness::of(StatusCode::OK, &HeaderMap::new(), &CachePolicy::default(), exchange),
            fields: HeaderMap::new(),
            selecting: HeaderMap::new(),
            requested_ms: 0,
            born: 0,
            is_soft: false,
            is_recovered: false,
        };
        facts.store(content)
    }

    #[test]
    fn keys_and_variants_are_bounded() {
        let (store, _gone) = Store::open(&StoreConfig { memory_bytes: 1 << 20, disk: None });
        let (store, index) = (Arc::new(store), Index::new(0));
        let mut shed = 0;
        for n in 0..KEYS_MIN * 3 {
            assert!(index.insert(response(&index, &store, &format!("http://a.test/{n}")), |_| false).is_empty());
            shed += index.shed().len();
            assert!(index.len() <= KEYS_MIN + LOOK_EVERY, "{} keys", index.len());
        }
        assert_eq!(index.len() + shed, KEYS_MIN * 3);
        let left: usize = (0..VARIANTS_MAX + 5).map(|_| index.insert(response(&index, &store, "http://b.test/"), |_| false).len()).sum();
        assert_eq!((left, index.variants(index.hash("http://b.test/")).map(|v| v.len())), (5, Some(VARIANTS_MAX)));
    }

    #[test]
    fn a_canonical_url_names_every_spelling_that_is_stored() {
        let (store, _gone) = Store::open(&StoreConfig { memory_bytes: 1 << 20, disk: None });
        let (store, index) = (Arc::new(store), Index::new(0));
        for url in ["http://a.test/%c3%a9", "http://a.test/%C3%A9", "http://a.test/%C3%a9", "http://a.test/e"] {
            index.insert(response(&index, &store, url), |_| false);
        }
        let named = |url: &str| index.named(url).into_iter().filter(|hash| index.variants(*hash).is_some()).count();
        assert_eq!((named("http://a.test/%C3%A9"), named("http://a.test/e"), named("http://a.test/x")), (3, 1, 0));
    }

    #[test]
    fn what_is_replaced_or_removed_is_given_back() {
        let (store, _gone) = Store::open(&StoreConfig { memory_bytes: 1 << 20, disk: None });
        let (store, index) = (Arc::new(store), Index::new(0));
        let (old, new) = (response(&index, &store, "http://a.test/"), response(&index, &store, "http://a.test/"));
        index.insert(old.clone(), |_| false);
        let left = index.insert(new.clone(), |_| true);
        assert!(left.len() == 1 && Arc::ptr_eq(&left[0], &old));
        assert!(index.remove(new.hash, |_| false).is_empty());
        assert_eq!(index.remove(new.hash, |_| true).len(), 1);
        assert!(index.variants(new.hash).is_none() && index.len() == 0);
    }
}
