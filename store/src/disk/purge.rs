//! Removing what a purge covers, of a site or of everything, from the directories.
//!
//! Purges are in force before anything is removed: whoever loads a head compares it with them. So
//! what is removed here needs no record of its own on disk and is not destroyed; where a crash brings
//! it back into a directory, it is refused when it is loaded, and leaves again.
//!
//! A walk removes only what was written before the purge began to hold ([`Frontier`]), a segment of
//! the directory at a time. Records that reclaiming moves meanwhile are removed when they have
//! arrived, so that each is counted once. Afterwards regions without any record that counts are given
//! back to the file system.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::DiskTier;
use super::pool::{PoolFrontier, Pools};
use super::queue::Work;
use super::shared::{POOLS, Shared, body_hash};
use crate::body::StoredBody;
use crate::directory::{Directory, Found, Place, SEGMENTS};
use crate::groups::Group;

/// How long a purge waits for the directories after a start.
const LOADING_MAX: Duration = Duration::from_secs(2);

/// What had been written to disk up to a moment. The default is: nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Frontier([PoolFrontier; 2]);

impl Frontier {
    fn contains(&self, pools: &Pools, place: Place) -> bool {
        let generation = pools[place.pool as usize].generation(place.slot);
        self.0[place.pool as usize].contains(place, generation)
    }
}

/// How many responses on disk a purge covers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// Those that were written after the moment up to which earlier purges may have covered some.
    pub certain: u64,
    /// Those written before it.
    pub uncertain: u64,
    /// Whether there may be more: the directory is not complete, or the site has no number.
    pub is_incomplete: bool,
}

/// A purge that is being carried out.
#[derive(Debug)]
pub(super) struct Walk {
    /// `None` for everything.
    group: Option<Group>,
    before: Frontier,
    certain_from: Frontier,
    certain: AtomicU64,
    uncertain: AtomicU64,
}

impl Walk {
    fn covers(&self, pools: &Pools, group: Group, place: Place) -> bool {
        self.group.is_none_or(|wanted| wanted == group) && self.before.contains(pools, place)
    }

    fn count(&self, pools: &Pools, place: Place) {
        let count = if self.certain_from.contains(pools, place) {
            &self.uncertain
        } else {
            &self.certain
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// A site may have responses among those whose site had no number.
    fn purged(&self, heads: &Directory) -> Purged {
        Purged {
            certain: self.certain.load(Ordering::Relaxed),
            uncertain: self.uncertain.load(Ordering::Relaxed),
            is_incomplete: self.group.is_some() && heads.count(Group::OTHER) > 0,
        }
    }
}

impl DiskTier {
    /// What is written so far; `None` until the files are open.
    pub(crate) fn frontier(&self) -> Option<Frontier> {
        let pools = &self.shared.opened.get()?.pools;
        Some(Frontier(POOLS.map(|pool| pools[pool as usize].frontier())))
    }

    /// What earlier runs have written.
    pub(crate) fn frontier_at_start(&self) -> Frontier {
        let opened = self.shared.opened.get();
        opened.map_or_else(Frontier::default, |opened| {
            Frontier(POOLS.map(|pool| opened.pools[pool as usize].frontier_at_start()))
        })
    }

    /// Removes the responses of a site, or all of them, that were written up to `before`, and says
    /// how many there were. Blocking, but not for the disk; one call at a time.
    pub(crate) fn purge(
        &self,
        site: Option<&str>,
        before: &Frontier,
        certain_from: &Frontier,
    ) -> Purged {
        let Some((walk, pools)) = self.walk(site, before, certain_from) else {
            return self.unknown();
        };
        *self.shared.purge.lock() = Some(walk.clone());
        for segment in 0..SEGMENTS {
            self.shared.heads.retain(segment, |found| {
                let is_covered = walk.covers(pools, found.group, found.place);
                if is_covered {
                    walk.count(pools, found.place);
                }
                !is_covered
            });
        }
        // Slices have no group: those of a site are reclaimed when they are not used any more.
        if site.is_none() {
            for segment in 0..SEGMENTS {
                self.shared
                    .slices
                    .retain(segment, |found| !before.contains(pools, found.place));
            }
        }
        *self.shared.purge.lock() = None;
        walk.purged(&self.shared.heads)
    }

    /// The same without removing anything.
    pub(crate) fn count_covered(
        &self,
        site: Option<&str>,
        before: &Frontier,
        certain_from: &Frontier,
    ) -> Purged {
        let Some((walk, pools)) = self.walk(site, before, certain_from) else {
            return self.unknown();
        };
        for segment in 0..SEGMENTS {
            self.shared.heads.visit(segment, |found| {
                if walk.covers(pools, found.group, found.place) {
                    walk.count(pools, found.place);
                }
            });
        }
        walk.purged(&self.shared.heads)
    }

    fn walk(
        &self,
        site: Option<&str>,
        before: &Frontier,
        certain_from: &Frontier,
    ) -> Option<(Arc<Walk>, &Pools)> {
        if !self.is_soon_loaded() {
            return None;
        }
        let group = match site {
            Some(site) => Some(self.shared.groups.existing(site)?),
            None => None,
        };
        let walk = Walk {
            group,
            before: *before,
            certain_from: *certain_from,
            certain: AtomicU64::new(0),
            uncertain: AtomicU64::new(0),
        };
        Some((Arc::new(walk), &self.shared.opened.get()?.pools))
    }

    /// Whether the directories are complete, which takes a moment after a start. Blocking.
    fn is_soon_loaded(&self) -> bool {
        let started = Instant::now();
        while !self.shared.is_loaded() {
            let is_hopeless = self.refusal().is_some() || !self.disk.is_used();
            if is_hopeless || started.elapsed() > LOADING_MAX {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// The answer where no walk is possible. A site without a number has nothing on disk, unless
    /// there are responses whose site had none.
    fn unknown(&self) -> Purged {
        let shared = &self.shared;
        let is_empty = shared.is_loaded() && shared.heads.count(Group::OTHER) == 0;
        Purged {
            is_incomplete: !is_empty && self.refusal().is_none(),
            ..Purged::default()
        }
    }

    /// Takes a body out of the directory and the queue, for a purge that covers it.
    pub(crate) fn withdraw(&self, body: &StoredBody) {
        self.shared.queue.remove_body(body.id);
        if let Some(key) = body.disk_key() {
            self.shared.heads.remove_body(key, body_hash(body.id));
        }
    }

    /// Whether the directory has the head of a body. One that waits in the queue is not there yet.
    pub(crate) fn is_in_directory(&self, body: &StoredBody) -> bool {
        let head = body.disk_key().map(|key| (key, body_hash(body.id)));
        head.is_some_and(|(key, hash)| self.shared.heads.find_body(key, hash).is_some())
    }

    /// Takes all bodies of a name out of the directory and the queue, for a purge that covers them,
    /// and says how many there were.
    pub(crate) fn withdraw_name(&self, name: &str, certain_from: &Frontier) -> Purged {
        let purged = self.count_name(name, certain_from);
        if let Some(key) = self.shared.key(name) {
            for head in self.shared.queue.heads_of(key) {
                self.shared.queue.remove_body(head.body.id);
            }
            self.shared.heads.remove_key(key);
        }
        purged
    }

    /// How many bodies of a name there are.
    pub(crate) fn count_name(&self, name: &str, certain_from: &Frontier) -> Purged {
        self.is_soon_loaded();
        let (Some(key), Some(opened)) = (self.shared.key(name), self.shared.opened.get()) else {
            return self.unknown();
        };
        let found = self.shared.heads.find(key);
        // A body whose head is being replaced is in both.
        let queued = self.shared.queue.heads_of(key);
        let only_queued = queued
            .iter()
            .filter(|head| found.iter().all(|f| f.body != body_hash(head.body.id)));
        let only_queued = only_queued.count();
        let uncertain = found
            .iter()
            .filter(|found| certain_from.contains(&opened.pools, found.place))
            .count();
        Purged {
            certain: (found.len() - uncertain + only_queued) as u64,
            uncertain: uncertain as u64,
            is_incomplete: !self.shared.is_loaded() && self.refusal().is_none(),
        }
    }

    /// Has the writer give back the regions in which nothing counts any more. Walks the directories.
    pub(crate) fn give_back_space(&self) {
        let Some(opened) = self.shared.opened.get().filter(|_| self.shared.is_loaded()) else {
            return;
        };
        // Only what was complete before the walk: nothing can come to such a region meanwhile.
        let Some(frontier) = self.frontier() else {
            return;
        };
        let mut dead: Vec<(usize, Vec<u64>)> = POOLS
            .map(|pool| (pool as usize, opened.pools[pool as usize].generations()))
            .into();
        let mut live = |directory: &Directory| {
            for segment in 0..SEGMENTS {
                directory.visit(segment, |found: &Found| {
                    let place = found.place;
                    if let Some(slot) = dead[place.pool as usize].1.get_mut(usize::from(place.slot))
                    {
                        *slot = 0;
                    }
                });
            }
        };
        live(&self.shared.heads);
        live(&self.shared.slices);
        for (pool, generations) in dead {
            for (slot, generation) in generations.into_iter().enumerate() {
                let slot = slot as u16;
                if generation != 0 && frontier.0[pool].is_complete(slot, generation) {
                    self.shared.queue.put_work(Work::Release {
                        pool: POOLS[pool],
                        slot,
                        generation,
                    });
                }
            }
        }
    }
}

impl Shared {
    /// Notes in the directory that a record has moved, unless a purge that is being carried out
    /// covers it. `false` where it does not count any more.
    pub(super) fn move_head(&self, key: u128, group: Group, from: Place, to: Place) -> bool {
        // The lock is held meanwhile: a purge begins either before or after this.
        let purge = self.purge.lock();
        if let (Some(walk), Some(opened)) = (&*purge, self.opened.get())
            && walk.covers(&opened.pools, group, from)
        {
            if self.heads.remove_at(key, from).is_some() {
                walk.count(&opened.pools, from);
            }
            return false;
        }
        self.heads.replace(key, from, to)
    }
}
