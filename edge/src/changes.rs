//! The latest changes by unsafe requests, so that a response which was requested before a change is
//! not stored after it.
//!
//! An unsafe request that succeeds invalidates the stored responses of its URL (RFC 9111 section
//! 4.4). A response that is still being received then may be older than the change. It is recognised
//! by the number of changes that were counted when it was requested.

use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use xxhash_rust::xxh3::xxh3_128;

use crate::stored::index::HashedKey;
use crate::stored::response::StoredResponse;
use nearcast_http_rules::invalidate;

/// Largest number of changes that are kept one by one. When there are more, all are dropped, and no
/// response that was requested before that is stored.
const CHANGES_MAX: usize = 65_536;

/// Counts changes, and keeps the number of the last one of each URL or group.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    count: AtomicU64,
    /// Number of the change at which the older ones were dropped.
    floor: AtomicU64,
    /// Number of the last change of a URL or group.
    of: DashMap<u128, u64, BuildHasherDefault<HashedKey>>,
    /// Number of the last change of any group.
    of_groups: AtomicU64,
    /// When each group changed last, in milliseconds after the Unix epoch: for responses that are
    /// read from disk later.
    groups_changed_ms: DashMap<u128, u64, BuildHasherDefault<HashedKey>>,
    /// When these were dropped, because there were too many.
    groups_dropped_ms: AtomicU64,
}

impl Changes {
    /// Number of changes so far. Read it before a forward request is sent.
    pub(crate) fn now(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Notes that the resource of a cache key, given by its hash, has changed.
    pub(crate) fn note(&self, hash: u128) {
        let number = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        if self.of.len() >= CHANGES_MAX {
            self.floor.fetch_max(number, Ordering::SeqCst);
            self.of.clear();
        }
        self.of
            .entry(hash)
            .and_modify(|last| *last = number.max(*last))
            .or_insert(number);
    }

    /// Notes that the members of a group of an origin have changed (RFC 9875).
    pub(crate) fn note_group(&self, origin: &str, group: &str, now_ms: u64) {
        if self.groups_changed_ms.len() >= CHANGES_MAX {
            self.groups_dropped_ms.fetch_max(now_ms, Ordering::SeqCst);
            self.groups_changed_ms.clear();
        }
        let group_hash = group_hash(origin, group);
        self.groups_changed_ms.insert(group_hash, now_ms);
        self.note(group_hash);
        self.of_groups.fetch_max(self.now(), Ordering::SeqCst);
    }

    /// Whether a change of a group of which it is a member has made a response out of date that was
    /// read from disk.
    pub(crate) fn have_covered_on_disk(&self, response: &StoredResponse) -> bool {
        if self.of_groups.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let groups = invalidate::groups(&response.fields());
        let origin = invalidate::origin_of(response.url());
        let changed_ms = groups.iter().filter_map(|group| {
            let changed = self.groups_changed_ms.get(&group_hash(origin, group))?;
            Some(*changed)
        });
        let dropped_ms = self.groups_dropped_ms.load(Ordering::SeqCst);
        let last_ms = changed_ms.fold(dropped_ms, u64::max);
        !groups.is_empty() && response.requested_ms() <= last_ms
    }

    /// Whether a change after the first `since` ones may have made a response out of date that was
    /// requested then.
    pub(crate) fn have_covered(&self, response: &StoredResponse, since: u64) -> bool {
        if self.now() == since {
            return false;
        }
        let is_later = |hash: u128| self.of.get(&hash).is_some_and(|number| *number > since);
        let in_group = || {
            let origin = invalidate::origin_of(response.url());
            invalidate::groups(&response.fields())
                .iter()
                .any(|group| is_later(group_hash(origin, group)))
        };
        // The floor is read last: it is raised before the changes below it are dropped.
        is_later(response.hash())
            || self.of_groups.load(Ordering::SeqCst) > since && in_group()
            || self.floor.load(Ordering::SeqCst) > since
    }
}

fn group_hash(origin: &str, group: &str) -> u128 {
    xxh3_128(format!("{origin}\n{group}").as_bytes())
}
