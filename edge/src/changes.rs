//! What unsafe requests have changed lately, so that an answer which was asked for before the
//! change is not stored after it.
//!
//! A stored response is dropped when an unsafe request to its URL succeeds (RFC 9111 section 4.4).
//! One that is still on its way then may be from before the change: it is told by the number of
//! changes that were known when it was asked for.

use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use xxhash_rust::xxh3::xxh3_128;

use crate::stored::index::HashedKey;
use crate::stored::response::StoredResponse;
use nearcast_http_rules::invalidate;

/// Changes that are remembered one by one. When there are more all are forgotten, and no answer
/// that was asked for before that is stored.
const CHANGES_MAX: usize = 65_536;

/// See the module's words.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    count: AtomicU64,
    /// Before this one nothing is remembered.
    floor: AtomicU64,
    /// Number of the last change of a URL or group.
    of: DashMap<u128, u64, BuildHasherDefault<HashedKey>>,
    /// Number of the last change of any group.
    of_groups: AtomicU64,
}

impl Changes {
    /// How many changes there were; to be asked for before a forward request is sent.
    pub(crate) fn now(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Notes that what is stored under a key's hash has changed.
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
    pub(crate) fn note_group(&self, origin: &str, group: &str) {
        self.note(group_hash(origin, group));
        self.of_groups.fetch_max(self.now(), Ordering::SeqCst);
    }

    /// Whether a response that was asked for when there were `since` changes is from before one of
    /// them.
    pub(crate) fn have_covered(&self, response: &StoredResponse, since: u64) -> bool {
        if self.now() == since {
            return false;
        }
        let is_later = |hash: u128| self.of.get(&hash).is_some_and(|number| *number > since);
        let in_group = || {
            let origin = invalidate::origin_of(&response.url);
            invalidate::groups(&response.fields)
                .iter()
                .any(|group| is_later(group_hash(origin, group)))
        };
        // The floor last: it is raised before what is below it is forgotten.
        is_later(response.hash)
            || self.of_groups.load(Ordering::SeqCst) > since && in_group()
            || self.floor.load(Ordering::SeqCst) > since
    }
}

fn group_hash(origin: &str, group: &str) -> u128 {
    xxh3_128(format!("{origin}\n{group}").as_bytes())
}
