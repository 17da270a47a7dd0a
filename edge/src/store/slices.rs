//! The index of slices on disk and in the queue to it.

use std::hash::BuildHasherDefault;
use std::sync::Arc;

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::body::{SliceGuard, SliceKey, StoredBody};
use super::log::{RecordLocation, Region};
use super::memory::KeyHasher;

/// Where the bytes of a slice are.
#[derive(Debug, Clone)]
pub(super) enum SliceLocation {
    /// In the queue to the disk.
    Queued(Bytes),
    OnDisk(RecordLocation),
}

#[derive(Debug)]
struct SliceEntry {
    location: SliceLocation,
    guard: SliceGuard,
}

impl SliceEntry {
    fn is_in(&self, region: &Arc<Region>) -> bool {
        matches!(&self.location, SliceLocation::OnDisk(at) if Arc::ptr_eq(&at.region, region))
    }
}

/// Slices of the disk tier by key. Many threads read it. A queued slice gets a location on disk when
/// the writer has written it.
#[derive(Debug, Default)]
pub(super) struct SliceIndex(DashMap<SliceKey, SliceEntry, BuildHasherDefault<KeyHasher>>);

impl SliceIndex {
    pub(super) fn contains(&self, key: SliceKey) -> bool {
        self.0.contains_key(&key)
    }

    pub(super) fn location(&self, key: SliceKey) -> Option<SliceLocation> {
        self.0.get(&key).map(|entry| entry.location.clone())
    }

    /// Adds a slice that an earlier run wrote.
    pub(super) fn insert(&self, body: &Arc<StoredBody>, index: u32, at: RecordLocation) {
        let entry = SliceEntry {
            location: SliceLocation::OnDisk(at),
            guard: SliceGuard::new(body),
        };
        self.0.insert(body.slice_key(index), entry);
    }

    /// Adds a slice that waits to be written, unless the slice is there.
    pub(super) fn insert_queued(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) {
        if let Entry::Vacant(free) = self.0.entry(body.slice_key(index)) {
            free.insert(SliceEntry {
                location: SliceLocation::Queued(bytes),
                guard: SliceGuard::new(body),
            });
        }
    }

    /// Notes where a slice was written. A slice that was removed meanwhile stays removed.
    pub(super) fn set_location(&self, key: SliceKey, at: RecordLocation) {
        if let Entry::Occupied(mut entry) = self.0.entry(key) {
            entry.get_mut().location = SliceLocation::OnDisk(at);
        }
    }

    pub(super) fn remove(&self, key: SliceKey) {
        self.0.remove(&key);
    }

    /// Removes a slice that was not written.
    pub(super) fn remove_queued(&self, key: SliceKey) {
        self.0.remove_if(&key, |_, entry| {
            matches!(entry.location, SliceLocation::Queued(_))
        });
    }

    /// Removes a slice whose region was evicted, unless it was written elsewhere meanwhile.
    pub(super) fn remove_in(&self, key: SliceKey, region: &Arc<Region>) {
        self.0.remove_if(&key, |_, entry| entry.is_in(region));
    }

    /// The body of the slice whose record is at that offset of a region; `None` when the record is
    /// out of date.
    pub(super) fn body_at(
        &self,
        key: SliceKey,
        region: &Arc<Region>,
        offset: u64,
    ) -> Option<Arc<StoredBody>> {
        let entry = self.0.get(&key)?;
        let is_current = matches!(
            &entry.location,
            SliceLocation::OnDisk(at) if Arc::ptr_eq(&at.region, region) && at.offset == offset
        );
        is_current.then(|| entry.guard.body().clone())
    }
}
