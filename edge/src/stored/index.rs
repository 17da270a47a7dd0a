//! Stored responses by cache key.
//!
//! Look-ups read it; fills, freshening, invalidation and eviction write it. Bounds the number of
//! keys, of variants of one URL and of sets of names in their `Vary` fields.

use std::borrow::Cow;
use std::hash::Hasher;
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use http::{HeaderMap, HeaderName};
use nearcast_fleet::scope;
use parking_lot::RwLock;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::response::StoredResponse;
use crate::spellings::Spellings;
use nearcast_http_rules::vary;
use nearcast_store::BodyId;

/// Largest number of variants of one URL. Those not used lately are evicted first, the oldest of
/// them before the others.
const VARIANTS_MAX: usize = 256;
/// Largest number of different `Vary` fields among the variants of one URL: a look-up reads the
/// request fields once for each.
const VARY_SETS_MAX: usize = 8;
/// How long a variant counts as used lately. Variants that no client requests twice are not used
/// lately, so they are evicted first: there may be any number of them.
const USED_LATELY_S: u64 = 600;
/// Tables of the index, each with a lock: so many that two threads seldom use the same one, and that
/// the growth of one never moves many entries while look-ups wait.
const TABLES: usize = 4096;

/// Capacity of a table below which it is never made smaller.
const SHRINK_FROM: usize = 64;

/// Stored variants of one key.
#[derive(Debug, Clone)]
pub(crate) enum Variants {
    /// Nearly always there is one.
    One(Arc<StoredResponse>),
    Many(Arc<VariantSet>),
}

impl Variants {
    pub(super) fn of(mut responses: Vec<Arc<StoredResponse>>) -> Option<Self> {
        match responses.len() {
            0 => None,
            1 => responses.pop().map(Self::One),
            _ => Some(Self::Many(Arc::new(VariantSet::new(responses)))),
        }
    }

    /// The variants that a request selects.
    pub(crate) fn selected<'a>(
        &'a self,
        request: &HeaderMap,
        keyed: &HeaderMap,
    ) -> Vec<&'a Arc<StoredResponse>> {
        match self {
            Self::One(only) if only.is_selected(request, keyed) => vec![only],
            Self::One(_) => Vec::new(),
            Self::Many(set) => set.selected(request, keyed),
        }
    }

    /// The hash of their key. A key with variants has one at least.
    fn hash(&self) -> u128 {
        self.first().map_or(0, |response| response.hash())
    }
}

impl std::ops::Deref for Variants {
    type Target = [Arc<StoredResponse>];

    fn deref(&self) -> &Self::Target {
        match self {
            Self::One(only) => std::slice::from_ref(only),
            Self::Many(set) => &set.responses,
        }
    }
}

/// Stored variants of one URL, newest first. The hashes by which requests select them are side by
/// side, so that a look-up of one among many reads no others. Never changed, only replaced.
#[derive(Debug, Default)]
pub(crate) struct VariantSet {
    responses: Vec<Arc<StoredResponse>>,
    selections: Vec<Option<vary::Selection>>,
    /// The different `Vary` fields: hash of the names, and the names.
    vary_sets: Vec<(u64, Vec<HeaderName>)>,
}

impl VariantSet {
    fn new(responses: Vec<Arc<StoredResponse>>) -> Self {
        let selections: Vec<_> = responses.iter().map(|r| r.selection()).collect();
        let mut vary_sets: Vec<(u64, Vec<HeaderName>)> = Vec::new();
        for (response, selection) in responses.iter().zip(&selections) {
            let Some(selection) =
                selection.filter(|s| !vary_sets.iter().any(|(names, _)| *names == s.names))
            else {
                continue;
            };
            vary_sets.push((selection.names, response.vary_names()));
        }
        Self {
            responses,
            selections,
            vary_sets,
        }
    }

    /// The variants that a request selects.
    fn selected<'a>(
        &'a self,
        request: &HeaderMap,
        keyed: &HeaderMap,
    ) -> Vec<&'a Arc<StoredResponse>> {
        let asked = self.vary_sets.iter().map(|(names, list)| vary::Selection {
            names: *names,
            hash: vary::selection_hash(list, request),
        });
        let asked: Vec<_> = asked.collect();
        let is_candidate =
            |selection: &Option<vary::Selection>| selection.is_some_and(|s| asked.contains(&s));
        self.responses
            .iter()
            .zip(&self.selections)
            .filter(|(_, selection)| is_candidate(selection))
            .map(|(response, _)| response)
            .filter(|response| response.is_selected(request, keyed))
            .collect()
    }

    /// Removes the variants that are too many beside the newest one, and returns them.
    fn evict(responses: &mut Vec<Arc<StoredResponse>>) -> Vec<Arc<StoredResponse>> {
        let Some((newest, others)) = responses.split_first() else {
            return Vec::new();
        };
        let now_s = newest.received_ms() / 1000;
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
            last_s: used_s.max(response.received_ms() / 1000),
        }
    }
}

/// Hash of the names in `Vary`.
fn vary_names(response: &StoredResponse) -> Option<u64> {
    response.selection().map(|s| s.names)
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
///
/// Bounded by the memory that each response is charged for (`Edge::publish`): the store announces a
/// body whose place in memory is needed, and its responses leave.
#[derive(Debug)]
pub(crate) struct Index {
    tables: Box<[Table]>,
    /// Keys whose canonical URL, which purges name, is spelt otherwise.
    spellings: Spellings,
    /// Random for each process, so that no client can choose keys whose hashes collide.
    seed: u64,
}

/// One table of the index. Entries have no key of their own: their response knows it.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Table(RwLock<HashTable<Variants>>);

/// The hash within a table.
fn within(hash: u128) -> u64 {
    hash as u64
}

fn rehash(variants: &Variants) -> u64 {
    within(variants.hash())
}

impl Index {
    /// An empty index.
    pub(crate) fn new() -> Self {
        use std::hash::BuildHasher;
        let seed = std::hash::RandomState::new().hash_one(TABLES);
        Self {
            tables: (0..TABLES).map(|_| Table::default()).collect(),
            spellings: Spellings::default(),
            seed,
        }
    }

    fn table(&self, hash: u128) -> &RwLock<HashTable<Variants>> {
        &self.tables[(hash >> 64) as usize % TABLES].0
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
        let table = self.table(hash).read();
        table.find(within(hash), |v| v.hash() == hash).cloned()
    }

    fn contains(&self, hash: u128) -> bool {
        let table = self.table(hash).read();
        table.find(within(hash), |v| v.hash() == hash).is_some()
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
        self.insert_unless(response, replaces, |_| false)
            .unwrap_or_default()
    }

    /// The same, unless there is a response that `forbids` it, which is returned then.
    pub(crate) fn insert_unless(
        &self,
        response: Arc<StoredResponse>,
        replaces: impl Fn(&StoredResponse) -> bool,
        forbids: impl Fn(&StoredResponse) -> bool,
    ) -> Result<Vec<Arc<StoredResponse>>, Arc<StoredResponse>> {
        if let Cow::Owned(canonical) = scope::canonical_key(response.url()) {
            // Before the entry is locked, because this reads other entries.
            self.spellings
                .note(self.hash(&canonical), response.hash(), |key| {
                    self.contains(key)
                });
        }
        let hash = response.hash();
        let mut table = self.table(hash).write();
        let mut entry = match table.entry(within(hash), |v| v.hash() == hash, rehash) {
            Entry::Vacant(vacant) => {
                vacant.insert(Variants::One(response));
                return Ok(Vec::new());
            }
            Entry::Occupied(entry) => entry,
        };
        let is_of = |r: &StoredResponse| r.is_of(response.url());
        if let Some(other) = entry.get().iter().find(|r| is_of(r) && forbids(r)) {
            return Err(other.clone());
        }
        let (mut left, mut stay): (Vec<_>, Vec<_>) = entry
            .get()
            .iter()
            .cloned()
            .partition(|r| !is_of(r) || replaces(r));
        left.iter()
            .filter(|older| is_of(older))
            .for_each(|older| response.inherit_use(older));
        stay.insert(0, response.clone());
        left.extend(VariantSet::evict(&mut stay));
        if let Some(variants) = Variants::of(stay) {
            *entry.get_mut() = variants;
        }
        Ok(left)
    }

    /// Removes the responses of a key that `which` selects.
    pub(crate) fn remove(
        &self,
        hash: u128,
        which: impl Fn(&StoredResponse) -> bool,
    ) -> Vec<Arc<StoredResponse>> {
        let mut table = self.table(hash).write();
        let Ok(mut entry) = table.find_entry(within(hash), |v| v.hash() == hash) else {
            return Vec::new();
        };
        let (left, stay): (Vec<_>, Vec<_>) = entry.get().iter().cloned().partition(|r| which(r));
        if left.is_empty() {
            return left;
        }
        match Variants::of(stay) {
            Some(variants) => *entry.get_mut() = variants,
            None => {
                entry.remove();
                // A table that was emptied for good gives its memory back.
                if table.capacity() > SHRINK_FROM && table.len() * 4 < table.capacity() {
                    let least = table.len() * 2;
                    table.shrink_to(least, rehash);
                }
            }
        }
        left
    }

    /// Removes the responses whose body has left the store.
    pub(crate) fn remove_body(&self, hash: u128, body: BodyId) {
        self.remove(hash, |r| {
            r.content.body.id == body && !r.content.is_filling() && !r.content.body.has_slices()
        });
    }

    /// Visits every stored response, a table at a time. Slow: only for purges that name no URL.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&Arc<StoredResponse>)) {
        for table in &self.tables {
            for variants in table.0.read().iter() {
                variants.iter().for_each(&mut each);
            }
        }
    }

    /// Number of keys with stored responses.
    pub(crate) fn len(&self) -> usize {
        self.tables.iter().map(|table| table.0.read().len()).sum()
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
    use crate::stored::head::Head;
    use crate::stored::response::StoredResponseParts;
    use nearcast_http_rules::freshness::{Exchange, Freshness};
    use nearcast_store::{Pool, Store, StoreConfig};

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
            head: Head::new(url, &vary, &selecting, &HeaderMap::new()),
            site: "www".into(),
            status: StatusCode::OK,
            version: http::Version::HTTP_11,
            freshness: Freshness::of(
                StatusCode::OK,
                &HeaderMap::new(),
                &CachePolicy::default(),
                exchange,
            ),
            requested_ms: second * 1000,
            requested_at_revision: 0,
            is_soft: false,
            is_recovered: false,
            is_doubtful: false,
        };
        parts.store(content)
    }

    #[test]
    fn any_number_of_keys_is_found_and_variants_are_bounded() {
        let (store, _gone) = Store::open(&StoreConfig {
            memory_bytes: 1 << 20,
            disk: None,
        });
        let (store, index) = (Arc::new(store), Index::new());
        for n in 0..50_000 {
            let added = response(&index, &store, &format!("http://a.test/{n}"));
            assert!(index.insert(added, |_| false).is_empty());
        }
        assert_eq!(index.len(), 50_000);
        for n in 0..50_000 {
            let url = format!("http://a.test/{n}");
            let found = index.variants(index.hash(&url)).expect("it is stored");
            assert!(found.len() == 1 && found[0].is_of(&url));
            assert_eq!(index.remove(index.hash(&url), |_| true).len(), 1);
        }
        assert_eq!(index.len(), 0);
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
            Self(Index::new(), Arc::new(store))
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
            let found = variants.selected(&request, &none);
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
                variants.selected(&map(&both), &none).len(),
                variants.selected(&map(&both[..1]), &none).len()
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
        let Variants::Many(set) = &variants else {
            panic!("there are many");
        };
        assert_eq!(
            (set.vary_sets.len(), variants.len()),
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
        let (store, index) = (Arc::new(store), Index::new());
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
        let (store, index) = (Arc::new(store), Index::new());
        let (old, new) = (
            response(&index, &store, "http://a.test/"),
            response(&index, &store, "http://a.test/"),
        );
        index.insert(old.clone(), |_| false);
        let left = index.insert(new.clone(), |_| true);
        assert!(left.len() == 1 && Arc::ptr_eq(&left[0], &old));
        assert!(index.remove(new.hash(), |_| false).is_empty());
        assert_eq!(index.remove(new.hash(), |_| true).len(), 1);
        assert!(index.variants(new.hash()).is_none() && index.len() == 0);
    }
}
