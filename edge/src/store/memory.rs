//! The memory tier: slices by key under one limit of bytes, evicted by a policy that a single scan
//! cannot flush (quick_cache's S3-FIFO relative).

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use nearcast_fleet::disk::SLICE_BYTES;
use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};

use super::body::{SliceGuard, SliceKey};

/// Memory that one slice takes beside its bytes: key, entry and reference counts.
const SLICE_OVERHEAD_BYTES: u64 = 160;
/// Least number of full slices in a shard, so that a small cache is not split into shards of a few
/// slices.
const SHARD_SLICES_MIN: u64 = 32;
const SHARDS_MAX: u64 = 16;
/// Item size for which the tables of the cache are laid out.
const TYPICAL_ITEM_BYTES: u64 = 16 * 1024;

/// A slice in memory.
#[derive(Debug)]
pub(super) struct MemorySlice {
    pub(super) bytes: Bytes,
    /// Bytes of the head that this slice pays for: only the first slice of a body does.
    head_bytes: u32,
    _guard: SliceGuard,
}

/// The memory tier: a cache of slices with a limit in bytes.
#[derive(Debug)]
pub(super) struct MemoryTier {
    cache: Cache<
        SliceKey,
        Arc<MemorySlice>,
        SliceWeight,
        BuildHasherDefault<KeyHasher>,
        CountEvictions,
    >,
    evictions: Arc<AtomicU64>,
}

impl MemoryTier {
    pub(super) fn new(bytes: u64) -> Self {
        let evictions = Arc::new(AtomicU64::new(0));
        let shards = (bytes / (SHARD_SLICES_MIN * SLICE_BYTES as u64)).clamp(1, SHARDS_MAX);
        let options = OptionsBuilder::new()
            .shards(1 << shards.ilog2())
            .estimated_items_capacity((bytes / TYPICAL_ITEM_BYTES).max(64) as usize)
            .weight_capacity(bytes)
            .build()
            .expect("all required options are given");
        let cache = Cache::with_options(
            options,
            SliceWeight,
            BuildHasherDefault::default(),
            CountEvictions(evictions.clone()),
        );
        Self { cache, evictions }
    }

    pub(super) fn get(&self, key: SliceKey) -> Option<Bytes> {
        self.cache.get(&key).map(|slice| slice.bytes.clone())
    }

    pub(super) fn contains(&self, key: SliceKey) -> bool {
        self.cache.contains_key(&key)
    }

    pub(super) fn insert(&self, key: SliceKey, bytes: Bytes, head_bytes: u32, guard: SliceGuard) {
        self.cache.insert(
            key,
            Arc::new(MemorySlice {
                bytes,
                head_bytes,
                _guard: guard,
            }),
        );
    }

    pub(super) fn remove(&self, key: SliceKey) {
        self.cache.remove(&key);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Clone)]
struct SliceWeight;

impl Weighter<SliceKey, Arc<MemorySlice>> for SliceWeight {
    fn weight(&self, _key: &SliceKey, slice: &Arc<MemorySlice>) -> u64 {
        slice.bytes.len() as u64 + u64::from(slice.head_bytes) + SLICE_OVERHEAD_BYTES
    }
}

/// Counts evicted slices and returns them to the caller, which drops them outside the lock of the
/// cache.
#[derive(Debug, Clone)]
struct CountEvictions(Arc<AtomicU64>);

impl Lifecycle<SliceKey, Arc<MemorySlice>> for CountEvictions {
    type RequestState = [Option<Arc<MemorySlice>>; 2];

    fn on_evict(&self, state: &mut Self::RequestState, _key: SliceKey, slice: Arc<MemorySlice>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        if let Some(free) = state.iter_mut().find(|s| s.is_none()) {
            *free = Some(slice);
        }
    }
}

/// Hashes slice keys without a seed: this process numbers the bodies, so no client chooses keys.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        let mixed = self.0 ^ (self.0 >> 32);
        let mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }
}
