//! Stored responses by cache key: what look-ups read and only fills, freshening, invalidation and eviction write.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use dashmap::DashMap;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::response::StoredResponse;
use crate::store::BodyId;

/// Variants kept of one URL; the oldest leave.
const VARIANTS_MAX: usize = 32;
/// Shards of the map: many, so that two threads seldom meet in one.
const SHARDS: usize = 128;

/// Stored variants of one key, newest first.
pub(crate) type Variants = Arc<Vec<Arc<StoredResponse>>>;

/// See the module's words.
#[derive(Debug)]
pub(crate) struct Index {
    responses: DashMap<u128, Variants, BuildHasherDefault<HashedKey>>,
    /// Chosen at random by each process, so that no client can choose where its keys lie.
    seed: u64,
}

impl Index {
    pub(crate) fn new() -> Self {
        use std::hash::BuildHasher;
        let seed = std::hash::RandomState::new().hash_one(SHARDS);
        Self { responses: DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), SHARDS), seed }
    }

    /// What a cache key is looked up by. Keys that meet in one hash are told apart by their URLs.
    pub(crate) fn hash(&self, url: &str) -> u128 {
        xxh3_128_with_seed(url.as_bytes(), self.seed)
    }

    /// All variants stored under a key, and perhaps those of another key that meets it: compare the URL.
    pub(crate) fn variants(&self, hash: u128) -> Option<Variants> {
        self.responses.get(&hash).map(|found| found.value().clone())
    }

    /// Puts a response first, in place of those that `replaces` names. Gives back what left.
    pub(crate) fn insert(&self, response: Arc<StoredResponse>, replaces: impl Fn(&StoredResponse) -> bool) -> Vec<Arc<StoredResponse>> {
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
