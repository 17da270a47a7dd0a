//! Folds the control journal: purges into generations, push orders to the task that carries them
//! out, the challenges of authorities into the table that requests are compared with.
//!
//! Owns the order of the steps for one entry and what reports say of purges. Does not know how a
//! purge covers a response ([`crate::stored::generations`]) or how the journal is received
//! (`fleet::follow`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nearcast_fleet::change::{Change, Entry, Purge, PushOrder};
use nearcast_fleet::config::Fleet;
use nearcast_fleet::follow::FollowState;
use nearcast_fleet::report::PurgeProgress;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use crate::edge::{Edge, Knowledge};
use crate::stored::covered::{self, Before, Covered, Unclear};
use crate::stored::generations::PurgeState;

/// Purges whose effect is kept for reports.
const PURGES_KEPT: usize = 64;

/// What the entries of the journal led to, for reports. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    /// The fleet, which says in which cluster this node is.
    fleet: watch::Receiver<Arc<Fleet>>,
    purges: Arc<Mutex<VecDeque<PurgeProgress>>>,
    /// Revision of the purge that is in force and not counted yet; 0 if there is none.
    counting: Arc<AtomicU64>,
    /// What is not known of earlier purges.
    unclear: Arc<Mutex<Unclear>>,
    /// Notified when there is something new to report.
    pub(crate) changed: Arc<Notify>,
}

impl Journal {
    /// A journal of which nothing is folded yet.
    pub(crate) fn of(fleet: watch::Receiver<Arc<Fleet>>) -> Self {
        Self {
            fleet,
            purges: Arc::default(),
            counting: Arc::default(),
            unclear: Arc::default(),
            changed: Arc::default(),
        }
    }

    /// The purges folded lately, oldest first.
    pub(crate) fn purges(&self) -> Vec<PurgeProgress> {
        self.purges.lock().iter().cloned().collect()
    }

    /// The revision to report, where `folded` is the newest folded one. It is that of a purge once
    /// its responses are counted: a report without a count would confirm the purge without one.
    pub(crate) fn reported(&self, folded: u64) -> u64 {
        match self.counting.load(Ordering::Acquire) {
            0 => folded,
            counting => folded.min(counting - 1),
        }
    }

    /// Folds entries as they come until there are no more, and forwards push orders.
    pub(crate) async fn follow(
        self,
        edge: Arc<Edge>,
        mut entries: mpsc::Receiver<Entry>,
        mut state: watch::Receiver<FollowState>,
        orders: mpsc::Sender<PushOrder>,
    ) {
        let mut has_state = true;
        loop {
            let known = *state.borrow_and_update();
            // Only when every entry that was received has been folded as well.
            if edge.generations.revision() >= known.revision {
                learn(&edge, known);
            }

            tokio::select! {
                biased;
                entry = entries.recv() => match entry {
                    Some(entry) => {
                        // While a long journal is folded, covered responses are counted once, after
                        // its last entry.
                        let is_last = entries.is_empty() || edge.is_caught_up.load(Ordering::Acquire);
                        self.fold(&edge, entry, is_last, &orders).await;
                    }
                    None if has_state => {
                        // There are no more entries, so every entry that exists is known.
                        edge.generations.advance(known.revision);
                        learn(&edge, known);
                        has_state = state.changed().await.is_ok();
                    }
                    None => return,
                },
                changed = state.changed(), if has_state => has_state = changed.is_ok(),
            }
        }
    }

    async fn fold(
        &self,
        edge: &Arc<Edge>,
        entry: Entry,
        is_last: bool,
        orders: &mpsc::Sender<PushOrder>,
    ) {
        let fleet = self.fleet.borrow().clone();
        edge.lifecycle.fold(&entry, &fleet, &edge.name);
        match entry.change {
            Change::Purge(purge) => self.purge(edge, entry.revision, purge, is_last).await,
            // The receiver takes every order at once and works on the newest. If it has ended,
            // nothing is pushed.
            Change::Push(order) => drop(orders.send(order).await),
            Change::Challenges(open) => edge.challenges.set(open.http),
            Change::FleetFile { .. } | Change::Drain(_) => {}
        }
        edge.generations.advance(entry.revision);
    }

    async fn purge(&self, edge: &Arc<Edge>, revision: u64, purge: Purge, is_last: bool) {
        if !edge.generations.has_room(&purge) {
            let folding = edge.clone();
            // If the task panics, folding the purge compacts the table, which is safe: it makes
            // more responses unusable, not fewer.
            drop(tokio::task::spawn_blocking(move || apply_and_compact(&folding)).await);
        }

        self.counting.store(revision, Ordering::Release);
        let before = Before::now(&edge.store);
        edge.generations.fold(revision, &purge);
        let effective_unix_ms = edge.clock.unix_ms();
        let covered = self.take_out(edge, purge, before, is_last).await;
        self.counting.store(0, Ordering::Release);

        let mut purges = self.purges.lock();
        purges.push_back(PurgeProgress {
            revision,
            responses: covered.responses,
            at_least: covered.is_at_least,
            effective_unix_ms,
        });
        while purges.len() > PURGES_KEPT {
            purges.pop_front();
        }
        drop(purges);
        self.changed.notify_one();
    }

    async fn take_out(
        &self,
        edge: &Arc<Edge>,
        purge: Purge,
        before: Before,
        is_last: bool,
    ) -> Covered {
        // What an earlier run stored after a purge of that time lies on disk as well, and only its
        // head tells it from what the purge covers. So only a purge that is new to the whole fleet
        // removes by what was written before it.
        let is_new = edge.is_caught_up.load(Ordering::Acquire);
        let unclear = self.unclear.clone();
        let gives_space_back = !covered::names_urls_only(&purge.scope) && !purge.soft;
        if !is_last && gives_space_back {
            covered::leave_uncounted(edge, &purge, &mut unclear.lock());
            return Covered::default();
        }
        let counting = edge.clone();
        let counted = tokio::task::spawn_blocking(move || {
            covered::take_out(
                &counting,
                &purge,
                is_new.then_some(before),
                &mut unclear.lock(),
            )
        });
        // Without a count nothing is known but that the purge is in force.
        let covered = counted.await.unwrap_or(Covered {
            responses: 0,
            is_at_least: true,
        });
        if gives_space_back && is_new {
            let freeing = edge.clone();
            drop(tokio::task::spawn_blocking(move || {
                freeing.store.give_back_space()
            }));
        }
        covered
    }
}

/// Notes which purges are known, when every received entry has been folded.
fn learn(edge: &Edge, state: FollowState) {
    let was_caught_up = edge.is_caught_up.load(Ordering::Acquire);
    let knowledge = knowledge_of(state, was_caught_up);
    if knowledge == Knowledge::CaughtUp {
        edge.is_caught_up.store(true, Ordering::Release);
    }
    edge.knowledge
        .send_if_modified(|before| std::mem::replace(before, knowledge) != knowledge);
}

/// What a node knows of the journal. A node that has caught up once stays so: later purges reach it
/// before they are acknowledged, or it is out of reach and serves what it knows.
fn knowledge_of(state: FollowState, was_caught_up: bool) -> Knowledge {
    if was_caught_up || state.caught_up {
        Knowledge::CaughtUp
    } else if !state.recalled {
        Knowledge::Recalling
    } else if !state.asked {
        Knowledge::Asking
    } else if state.control_reachable {
        Knowledge::Behind
    } else {
        Knowledge::CutOff
    }
}

/// Makes room in the table of purges: applies all purges to every stored response first, so that
/// responses which the dropped purges do not cover stay usable.
fn apply_and_compact(edge: &Edge) {
    // References are collected first, so that no shard of the index is locked meanwhile.
    let mut stored = Vec::with_capacity(edge.index.len());
    edge.index
        .for_each(|response| stored.push(response.clone()));
    for response in stored {
        if response.purge_state(&edge.generations) == PurgeState::Gone {
            edge.unpublish(&response);
        }
    }
    edge.generations.compact();
    tracing::info!("the table of purges is full: its older half is compacted");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knowledge_follows_from_what_is_known_of_control() {
        // Caught up once before, the state (caught up, recalled, asked, reachable), the knowledge.
        let table = [
            (false, [false, false, false, false], Knowledge::Recalling),
            (false, [false, false, true, true], Knowledge::Recalling),
            (false, [false, true, false, false], Knowledge::Asking),
            (false, [false, true, false, true], Knowledge::Asking),
            (false, [false, true, true, true], Knowledge::Behind),
            (false, [false, true, true, false], Knowledge::CutOff),
            (false, [true, false, false, false], Knowledge::CaughtUp),
            (false, [true, true, true, true], Knowledge::CaughtUp),
            (true, [false, true, true, true], Knowledge::CaughtUp),
            (true, [false, true, true, false], Knowledge::CaughtUp),
            (true, [false, false, false, false], Knowledge::CaughtUp),
        ];
        for (was_caught_up, [caught_up, recalled, asked, control_reachable], expected) in table {
            let state = FollowState {
                caught_up,
                recalled,
                asked,
                control_reachable,
                ..FollowState::default()
            };
            assert_eq!(
                knowledge_of(state, was_caught_up),
                expected,
                "{state:?}, caught up before: {was_caught_up}"
            );
        }
    }
}
