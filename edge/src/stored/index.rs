//! Stored responses by cache key.
//!
//! Look-ups read it; fills, freshening, invalidation and eviction write it. Bounds the number of
//! keys, of variants of one URL and of sets of names in their `Vary` fields.

use std::borrow::Cow;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use http::{HeaderMap, HeaderName};
use nearcast_fleet::scope;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::response::StoredResponse;
use crate::spellings::Spellings;
use crate::store::BodyId;
use nearcast_http_rules::vary;

/// Largest number of variants of one URL. Those not used lately are evicted first, the oldest of
/// them before the others.
const VARIANTS_MAX: usize = 256;
/// Largest number of different `Vary` fields among the variants of one URL: a look-up reads the
/// request fields once for each.
const VARY_SETS_MAX: usize = 8;
/// How long a variant counts as used lately. Variants that no client requests twice are not used
/// lately, so they are evicted first: there may be any number of them.
const USED_LATELY_S: u64 = 600;
/// Shards of the map: many, so that two threads seldom use the same one.
const SHARDS: usize = 128;

/// Bytes of the memory tier for one key of the index, and bounds of the number of keys: responses
/// whose body is only on disk take memory for their description, too.
const BYTES_A_KEY: u64 = 1024;
const KEYS_MIN: usize = 16_384;
const KEYS_MAX: usize = 262_144;
/// Insertions between two checks of the number of keys.
const CHECK_EVERY: usize = 64;
/// The index is evicted in so many parts: one part at a time when there are too many keys.
const EVICTION_PARTS: usize = 16;

/// Stored variants of one key.
pub(crate) type Variants = Arc<VariantSet>;

/// Stored variants of one URL, newest first. The hashes by which requests select them are side by
/// side, so that a look-up of one among many reads no others. Never changed, only replaced.
#[derive(Debug, Default)]
pub(crate) struct VariantSet {
    responses: Vec<Arc<StoredResponse>>,
    selections: Vec<Option<vary::Selection>>,
    /// The different `Vary` fields: hash of the names, and the names.
    vary_sets: Vec<(u64, Vec<HeaderName>)>,
}

impl std::ops::Deref for VariantSet {
    type Target = [Arc<StoredResponse>];

    fn deref(&self) -> &Self::Target {
        &self.responses
    }
}

impl VariantSet {
    fn new(responses: Vec<Arc<StoredResponse>>) -> Self {
        let selections: Vec<_> = responses.iter().map(|r| r.selection).collect();
        let mut vary_sets: Vec<(u64, Vec<HeaderName>)> = Vec::new();
        for (response, selection) in responses.iter().zip(&selections) {
            let Some(selection) =
                selection.filter(|s| !vary_sets.iter().any(|(names, _)| *names == s.names))
            else {
                continue;
            };
            vary_sets.push((
                selection.names,
                vary::names(&response.fields).unwrap_or_default(),
            ));
        }
        Self {
            responses,
            selections,
            vary_sets,
        }
    }

    /// The variants that a request selects.
    pub(crate) fn selected<'a>(
        &'a self,
        request: &'a HeaderMap,
        keyed: &'a HeaderMap,
    ) -> impl Iterator<Item = &'a Arc<StoredResponse>> {
        let asked = self.vary_sets.iter().map(|(names, list)| vary::Selection {
            names: *names,
            hash: vary::selection_hash(list, request),
        });
        let asked: Vec<_> = asked.collect();
        let is_candidate = move |selection: &Option<vary::Selection>| {
            selection.is_some_and(|s| asked.contains(&s))
        };
        let candidates = self
            .responses
            .iter()
            .zip(&self.selections)
            .filter(move |(_, selection)| is_candidate(selection));
        candidates
            .map(|(response, _)| response)
            .filter(move |response| response.is_selected(request, keyed))
    }

    /// Removes the variants that are too many beside the newest one, and returns them.
    fn evict(responses: &mut Vec<Arc<StoredResponse>>) -> Vec<Arc<StoredResponse>> {
        let Some((newest, others)) = responses.split_first() else {
            return Vec::new();
        };
        let now_s = newest.freshness.received_ms / 1000;
        if responses.len() > VARIANTS_MAX {
            // Among equals the one that was stored first.
            let least = others
                .iter()
                .enumerate()
                .rev()
                .min_by_key(|(_, r)| EvictionRank::of(r, now_s))
                .map(|(at, _)| at + 1);
            return least.map(|at| responses.remove(at)).into_iter().collect();
        }

        let Some(least) = least_used_vary_set(newest, others, now_s) else {
            return Vec::new();
        };
        responses
            .extract_if(1.., |r| vary_names(r) == least)
            .collect()
    }
}

/// The order of eviction, least first: whether it was used lately, and when it was used or received
/// last, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct EvictionRank {
    was_used_lately: bool,
    last_s: u64,
}

impl EvictionRank {
    fn of(response: &StoredResponse, now_s: u64) -> Self {
        let used_s = response.used_s();
        Self {
            was_used_lately: used_s + USED_LATELY_S > now_s && used_s > 0,
            last_s: used_s.max(response.freshness.received_ms / 1000),
        }
    }
}

/// Hash of the names in `Vary`.
fn vary_names(response: &StoredResponse) -> Option<u64> {
    response.selection.map(|s| s.names)
}

/// The set of names in `Vary` whose best variant is evicted first, if there are too many sets beside
/// that of the newest variant.
fn least_used_vary_set(
    newest: &StoredResponse,
    others: &[Arc<StoredResponse>],
    now_s: u64,
) -> Option<Option<u64>> {
    let mut sets: Vec<(Option<u64>, EvictionRank)> = Vec::new();
    for response in others
        .iter()
        .filter(|r| vary_names(r) != vary_names(newest))
    {
        let rank = EvictionRank::of(response, now_s);
        match sets
            .iter_mut()
            .find(|(set, _)| *set == vary_names(response))
        {
            Some((_, best)) => *best = rank.max(*best),
            None => sets.push((vary_names(response), rank)),
        }
    }
    if sets.len() < VARY_SETS_MAX {
        return None;
    }
    let least = sets.into_iter().rev().min_by_key(|(_, best)| *best);
    least.map(|(set, _)| set)
}

/// Stored responses by the hash of their cache key.
#[derive(Debug)]
pub(crate) struct Index {
    responses: DashMap<u128, Variants, BuildHasherDefault<HashedKey>>,
    /// Keys whose canonical URL, which purges name, is spelt otherwise.
    spellings: Spellings,
    keys_max: usize,
    inserted: AtomicUsize,
    /// Parts evicted so far.
    evicted_parts: AtomicUsize,
    /// Random for each process, so that no client can choose keys whose hashes collide.
    seed: u64,
}

impl Index {
    /// An index beside a memory tier of that many bytes.
    pub(crate) fn new(memory_bytes: u64) -> Self {
        use std::hash::BuildHasher;
        let seed = std::hash::RandomState::new().hash_one(SHARDS);
        let keys_max = usize::try_from(memory_bytes / BYTES_A_KEY)
            .unwrap_or(KEYS_MAX)
            .clamp(KEYS_MIN, KEYS_MAX);
        let responses =
            DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), SHARDS);
        Self {
            responses,
            spellings: Spellings::default(),
            keys_max,
            inserted: AtomicUsize::new(0),
            evicted_parts: AtomicUsize::new(0),
            seed,
        }
    }

    /// The hash by which a cache key is looked up. Keys with the same hash are distinguished by their
    /// URLs.
    pub(crate) fn hash(&self, url: &str) -> u128 {
        xxh3_128_with_seed(url.as_bytes(), self.seed)
    }

    /// A hash of the bytes that distinguish requests for one key, with the seed of
    /// [`hash`](Self::hash).
    pub(crate) fn hash_of(&self, bytes: &[u8]) -> u128 {
        xxh3_128_with_seed(bytes, self.seed)
    }

    /// All variants stored under a hash. They may belong to another key with the same hash, so
    /// compare the URL.
    pub(crate) fn variants(&self, hash: u128) -> Option<Variants> {
        self.responses.get(&hash).map(|found| found.value().clone())
    }

    /// Hashes of the keys that a URL in canonical form names: its own, and those of its other
    /// spellings.
    pub(crate) fn named(&self, canonical: &str) -> Vec<u128> {
        let own = self.hash(canonical);
        let mut hashes = self.spellings.of(own);
        hashes.push(own);
        hashes
    }

    /// Inserts a response before the other variants of its URL and removes those that `replaces`
    /// selects. Returns the removed and evicted ones.
    pub(crate) fn insert(
        &self,
        response: Arc<StoredResponse>,
        replaces: impl Fn(&StoredResponse) -> bool,
    ) -> Vec<Arc<StoredResponse>> {
        if let Cow::Owned(canonical) = scope::canonical_key(&response.url) {
            // Before the entry is locked, because this reads other entries.
            self.spellings
                .note(self.hash(&canonical), response.hash, |key| {
                    self.responses.contains_key(&key)
                });
        }
        let mut entry = self.responses.entry(response.hash).or_default();
        let (mut left, mut stay): (Vec<_>, Vec<_>) = entry
            .iter()
            .cloned()
            .partition(|r| r.url != response.url || replaces(r));
        left.iter()
            .filter(|older| older.url == response.url)
            .for_each(|older| response.inherit_use(older));
        stay.insert(0, response);
        left.extend(VariantSet::evict(&mut stay));
        *entry = Arc::new(VariantSet::new(stay));
        left
    }

    /// Removes the responses of a key that `which` selects.
    pub(crate) fn remove(
        &self,
        hash: u128,
        which: impl Fn(&StoredResponse) -> bool,
    ) -> Vec<Arc<StoredResponse>> {
        let mut left = Vec::new();
        self.responses.remove_if_mut(&hash, |_, variants| {
            let (leaves, stay): (Vec<_>, Vec<_>) = variants.iter().cloned().partition(|r| which(r));
            if leaves.is_empty() {
                return false;
            }
            left = leaves;
            let is_empty = stay.is_empty();
            *variants = Arc::new(VariantSet::new(stay));
            is_empty
        });
        left
    }

    /// Removes the responses whose body has left the store.
    pub(crate) fn remove_body(&self, hash: u128, body: BodyId) {
        self.remove(hash, |r| {
            r.content.body.id == body && !r.content.is_filling() && !r.content.body.has_slices()
        });
    }

    /// Evicts keys while there are too many: one part after the other, where its hash decides on the
    /// part of a key. Checks only once in [`CHECK_EVERY`] calls.
    pub(crate) fn evict(&self) -> Vec<Arc<StoredResponse>> {
        let mut left = Vec::new();
        if !self
            .inserted
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(CHECK_EVERY)
        {
            return left;
        }
        while self.responses.len() > self.keys_max {
            let part = self.evicted_parts.fetch_add(1, Ordering::Relaxed) % EVICTION_PARTS;
            self.responses.retain(|hash, variants| {
                let stays = (*hash >> 100) as usize % EVICTION_PARTS != part;
                if !stays {
                    left.extend(variants.iter().cloned());
                }
                stays
            });
        }
        left
    }

    /// Visits every stored response, a shard at a time. Slow: only for purges that name no URL.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&Arc<StoredResponse>)) {
        for entry in &self.responses {
            entry.value().iter().for_each(&mut each);
        }
    }

    /// Number of keys with stored responses.
    pub(crate) fn len(&self) -> usize {
        self.responses.len()
    }
}

/// A hasher for keys that are hashes already.
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
    use http::{HeaderValue, StatusCode};
    use nearcast_fleet::config::CachePolicy;

    use super::*;
    use crate::body::Content;
    use crate::store::{Pool, Store, StoreConfig};
    use crate::stored::response::StoredResponseParts;
    use nearcast_http_rules::freshness::{Exchange, Freshness};

    fn response(index: &Index, store: &Arc<Store>, url: &str) -> Arc<StoredResponse> {
        variant(index, store, url, 0, &[])
    }

    /// One that varies by the names of these fields, received at that second.
    fn variant(
        index: &Index,
        store: &Arc<Store>,
        url: &str,
        second: u64,
        fields: &[(&'static str, &str)],
    ) -> Arc<StoredResponse> {
        let selecting = map(fields);
        let vary: HeaderMap = fields
            .iter()
            .map(|(name, _)| (http::header::VARY, HeaderValue::from_static(name)))
            .collect();
        let hash = index.hash(url);
        let content = Content::new(
            store.clone(),
            store.new_body(hash, Pool::Pull),
            Some(0),
            None,
        );
        let exchange = Exchange {
            requested_ms: second * 1000,
            received_ms: second * 1000,
        };
        let parts = StoredResponseParts {
            url: url.into(),
            hash,
            site: "www".into(),
            status: StatusCode::OK,
            version: http::Version::HTTP_11,
            freshness: Freshness::of(
                StatusCode::OK,
                &HeaderMap::new(),
                &CachePolicy::default(),
                exchange,
            ),
            fields: vary,
            selecting,
            keyed: HeaderMap::new(),
            requested_ms: second * 1000,
            requested_at_revision: 0,
            is_soft: false,
            is_recovered: false,
        };
        parts.store(content)
    }

    #[test]
    fn keys_and_variants_are_bounded() {
        let (store, _gone) = Store::open(&StoreConfig {
            memory_bytes: 1 << 20,
            disk: None,
        });
        let (store, index) = (Arc::new(store), Index::new(0));
        let mut evicted = 0;
        for n in 0..KEYS_MIN * 3 {
            assert!(
                index
                    .insert(
                        response(&index, &store, &format!("http://a.test/{n}")),
                        |_| false
                    )
                    .is_empty()
            );
            evicted += index.evict().len();
            assert!(
                index.len() <= KEYS_MIN + CHECK_EVERY,
                "{} keys",
                index.len()
            );
        }
        assert_eq!(index.len() + evicted, KEYS_MIN * 3);
        let left: usize = (0..VARIANTS_MAX + 5)
            .map(|_| {
                index
                    .insert(response(&index, &store, "http://b.test/"), |_| false)
                    .len()
            })
            .sum();
        assert_eq!(
            (
                left,
                index
                    .variants(index.hash("http://b.test/"))
                    .map(|v| v.len())
            ),
            (5, Some(VARIANTS_MAX))
        );
    }

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).expect("valid"),
                )
            })
            .collect()
    }

    /// An index of one URL, to which variants are added as stores add them.
    struct OneUrl(Index, Arc<Store>);

    impl OneUrl {
        fn new() -> Self {
            let (store, _gone) = Store::open(&StoreConfig {
                memory_bytes: 1 << 20,
                disk: None,
            });
            Self(Index::new(0), Arc::new(store))
        }

        fn add(&self, second: u64, fields: &[(&'static str, &str)]) {
            let added = variant(&self.0, &self.1, "http://a.test/", second, fields);
            self.0.insert(added.clone(), |r| r.is_same_variant(&added));
        }

        /// Looks one up, which uses it where there is one.
        fn uses(&self, second: u64, fields: &[(&'static str, &str)]) -> bool {
            let variants = self
                .0
                .variants(self.0.hash("http://a.test/"))
                .expect("there are some");
            let (request, none) = (map(fields), HeaderMap::new());
            let found: Vec<_> = variants.selected(&request, &none).collect();
            assert!(found.len() <= 1, "{fields:?}");
            let slow = variants.iter().filter(|r| r.is_selected(&request, &none));
            assert!(
                slow.zip(&found).all(|(a, b)| Arc::ptr_eq(a, b)) && variants.len() <= VARIANTS_MAX,
                "{fields:?}"
            );
            found.iter().for_each(|r| {
                r.note_used(second * 1000);
            });
            !found.is_empty()
        }
    }

    #[test]
    fn variants_that_nobody_uses_leave_first() {
        let url = OneUrl::new();
        let origins: Vec<String> = (0..200).map(|n| format!("https://{n}.test")).collect();
        for origin in &origins {
            url.add(1000, &[("origin", origin)]);
            assert!(url.uses(1001, &[("origin", origin)]));
        }
        for n in 0..5 * VARIANTS_MAX {
            url.add(1002, &[("origin", &format!("junk-{n}"))]);
        }
        for origin in &origins {
            assert!(url.uses(1003, &[("origin", origin)]), "{origin}");
        }
        assert!(
            url.uses(
                1003,
                &[("origin", &format!("junk-{}", 5 * VARIANTS_MAX - 1))]
            ),
            "the newest"
        );
        assert!(!url.uses(1003, &[("origin", "junk-0")]) && !url.uses(1003, &[]));
        // What takes the place of a used one is as used; the others are not for ever.
        url.add(1500, &[("origin", &origins[7])]);
        let later = 1004 + USED_LATELY_S;
        assert!(url.uses(later, &[("origin", &origins[8])]));
        for n in 0..VARIANTS_MAX - 2 {
            url.add(later, &[("origin", &format!("new-{n}"))]);
        }
        assert!(
            url.uses(later, &[("origin", &origins[8])]),
            "it was used again"
        );
        assert!(
            !url.uses(later, &[("origin", &origins[9])]),
            "not since long"
        );
    }

    #[test]
    fn a_response_in_place_of_a_used_one_is_as_used() {
        let url = OneUrl::new();
        url.add(1000, &[("origin", "used")]);
        assert!(url.uses(1001, &[("origin", "used")]));
        url.add(1002, &[("origin", "used")]);
        for n in 0..2 * VARIANTS_MAX {
            url.add(1003, &[("origin", &format!("junk-{n}"))]);
        }
        assert!(url.uses(1004, &[("origin", "used")]));
    }

    #[test]
    fn variants_that_vary_otherwise_are_found_and_bounded() {
        let url = OneUrl::new();
        url.add(1000, &[]);
        url.add(1000, &[("accept-encoding", "gzip"), ("foo", "1")]);
        let both = [("accept-encoding", "junk, GZIP;q=0.5"), ("foo", "1")];
        let none = HeaderMap::new();
        let variants = url
            .0
            .variants(url.0.hash("http://a.test/"))
            .expect("there are some");
        assert_eq!(
            (
                variants.selected(&map(&both), &none).count(),
                variants.selected(&map(&both[..1]), &none).count()
            ),
            (2, 1)
        );
        const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
        let url = OneUrl::new();
        for (n, name) in NAMES.iter().enumerate() {
            url.add(1000, &[(name, "1")]);
            url.add(1000, &[(name, "2")]);
            assert!(n > 2 || url.uses(1001, &[(name, "1")]));
        }
        let variants = url
            .0
            .variants(url.0.hash("http://a.test/"))
            .expect("there are some");
        assert_eq!(
            (variants.vary_sets.len(), variants.len()),
            (VARY_SETS_MAX, 2 * VARY_SETS_MAX)
        );
        for (n, name) in NAMES.iter().enumerate() {
            let is_kept = n <= 2 || n >= NAMES.len() - (VARY_SETS_MAX - 3);
            assert_eq!(url.uses(1002, &[(name, "2")]), is_kept, "{name}");
        }
    }

    #[test]
    fn a_canonical_url_names_every_spelling_that_is_stored() {
        let (store, _gone) = Store::open(&StoreConfig {
            memory_bytes: 1 << 20,
            disk: None,
        });
        let (store, index) = (Arc::new(store), Index::new(0));
        for url in [
            "http://a.test/%c3%a9",
            "http://a.test/%C3%A9",
            "http://a.test/%C3%a9",
            "http://a.test/e",
        ] {
            index.insert(response(&index, &store, url), |_| false);
        }
        let named = |url: &str| {
            index
                .named(url)
                .into_iter()
                .filter(|hash| index.variants(*hash).is_some())
                .count()
        };
        assert_eq!(
            (
                named("http://a.test/%C3%A9"),
                named("http://a.test/e"),
                named("http://a.test/x")
            ),
            (3, 1, 0)
        );
    }

    #[test]
    fn what_is_replaced_or_removed_is_given_back() {
        let (store, _gone) = Store::open(&StoreConfig {
            memory_bytes: 1 << 20,
            disk: None,
        });
        let (store, index) = (Arc::new(store), Index::new(0));
        let (old, new) = (
            response(&index, &store, "http://a.test/"),
            response(&index, &store, "http://a.test/"),
        );
        index.insert(old.clone(), |_| false);
        let left = index.insert(new.clone(), |_| true);
        assert!(left.len() == 1 && Arc::ptr_eq(&left[0], &old));
        assert!(index.remove(new.hash, |_| false).is_empty());
        assert_eq!(index.remove(new.hash, |_| true).len(), 1);
        assert!(index.variants(new.hash).is_none() && index.len() == 0);
    }
}
