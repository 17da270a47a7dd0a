//! Folding the control journal: purges into generations, push orders to whoever carries them out;
//! and taking back what an earlier run stored.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use nearcast_fleet::config::Fleet;
use nearcast_fleet::follow::FollowState;
use nearcast_fleet::journal::{Change, Entry, Purge, PurgeScope, PushOrder};
use nearcast_fleet::report::PurgeProgress;
use nearcast_fleet::scope;
use tokio::sync::{Notify, mpsc, watch};

use crate::content::Content;
use crate::edge::{Edge, Knowledge, now_ms};
use crate::purge::Verdict;
use crate::response::{Recovered, StoredResponse};

/// Purges whose effect is kept for reports.
const PURGES_KEPT: usize = 64;

/// What the journal's entries led to, for reports. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    /// The fleet, which says in which cluster this node is.
    fleet: watch::Receiver<Arc<Fleet>>,
    purges: Arc<Mutex<VecDeque<PurgeProgress>>>,
    /// Woken when there is something new to report.
    pub(crate) changed: Arc<Notify>,
}

impl Journal {
    /// Nothing is folded yet.
    pub(crate) fn of(fleet: watch::Receiver<Arc<Fleet>>) -> Self {
        Self {
            fleet,
            purges: Arc::default(),
            changed: Arc::default(),
        }
    }

    fn fleet(&self) -> Arc<Fleet> {
        self.fleet.borrow().clone()
    }

    /// The purges folded lately, oldest first.
    pub(crate) fn purges(&self) -> Vec<PurgeProgress> {
        self.purges
            .lock()
            .expect("no holder of this lock panics")
            .iter()
            .cloned()
            .collect()
    }

    /// Folds entries as they come until there are no more; hands push orders on.
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
            // Only when every entry that was handed out has been folded as well.
            if edge.generations.revision() >= known.revision {
                learn(&edge, known);
            }
            tokio::select! {
                biased;
                entry = entries.recv() => match entry {
                    Some(entry) => {
                        // A long journal is folded first: one look over everything stored finds
                        // what all of it covers.
                        let is_last = entries.is_empty() || edge.is_caught_up.load(Ordering::Acquire);
                        self.fold(&edge, entry, is_last, &orders).await;
                    }
                    None if has_state => {
                        // No more entries: what is known is all there is.
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
        edge.standing.fold(&entry, &self.fleet(), &edge.name);
        match entry.change {
            Change::Purge(purge) => self.purge(edge, entry.revision, purge, is_last).await,
            // Its reader takes every order at once and works on the newest; without it nothing is
            // pushed.
            Change::Push(order) => drop(orders.send(order).await),
            Change::FleetFile { .. } | Change::Drain(_) => {}
        }
        edge.generations.advance(entry.revision);
    }

    async fn purge(&self, edge: &Arc<Edge>, revision: u64, purge: Purge, is_last: bool) {
        if !edge.generations.has_room(&purge) {
            let settling = edge.clone();
            // A look that panicked has made no room: folding does, on the safe side.
            drop(tokio::task::spawn_blocking(move || make_room(&settling)).await);
        }
        edge.generations.fold(revision, &purge);
        let effective_unix_ms = now_ms();
        let counting = edge.clone();
        let counted = match is_last || names_urls_alone(&purge.scope) {
            true => tokio::task::spawn_blocking(move || count(&counting, &purge)).await,
            false => Ok(0),
        };
        let mut purges = self.purges.lock().expect("no holder of this lock panics");
        purges.push_back(PurgeProgress {
            revision,
            responses: counted.unwrap_or(0),
            effective_unix_ms,
        });
        while purges.len() > PURGES_KEPT {
            purges.pop_front();
        }
        drop(purges);
        self.changed.notify_one();
    }
}

/// Notes what is known of purges, all that was handed out being folded.
fn learn(edge: &Edge, known: FollowState) {
    if known.caught_up {
        edge.is_caught_up.store(true, Ordering::Release);
    }
    let knowledge = match edge.is_caught_up.load(Ordering::Acquire) {
        true => Knowledge::CaughtUp,
        false if !known.recalled => Knowledge::Recalling,
        false if !known.asked => Knowledge::Asking,
        false if known.control_reachable => Knowledge::Behind,
        false => Knowledge::CutOff,
    };
    edge.knowledge
        .send_if_modified(|before| std::mem::replace(before, knowledge) != knowledge);
}

fn names_urls_alone(scope: &PurgeScope) -> bool {
    scope
        .each()
        .iter()
        .all(|one| matches!(one, PurgeScope::Url(_)))
}

/// Makes room for purges: everything stored takes its verdict first, so that what the forgotten
/// purges do not name stays.
fn make_room(edge: &Edge) {
    // As references, so that no part of the index is held while they are looked at.
    let mut stored = Vec::with_capacity(edge.index.len());
    edge.index
        .for_each(|response| stored.push(response.clone()));
    for response in stored {
        if response.verdict(&edge.generations) == Verdict::Gone {
            edge.unpublish(&response);
        }
    }
    edge.generations.compact();
    tracing::info!("very many purges: the older half is folded");
}

/// How many stored responses a purge that was folded covers; hard ones are taken out. The purge
/// holds already.
fn count(edge: &Edge, purge: &Purge) -> u64 {
    let mut covered = Vec::new();
    let mut look = |response: &Arc<StoredResponse>| {
        let before = response.is_soft();
        match response.verdict(&edge.generations) {
            Verdict::Gone => covered.push(response.clone()),
            Verdict::Soft if !before => covered.push(response.clone()),
            Verdict::Soft | Verdict::Clean => {}
        }
    };
    if names_urls_alone(&purge.scope) {
        let urls = purge.scope.each().iter().filter_map(|one| match one {
            PurgeScope::Url(url) => Some(scope::journalled_url(url)),
            _ => None,
        });
        let variants = urls
            .flat_map(|url| edge.index.named(&url))
            .filter_map(|hash| edge.index.variants(hash));
        variants.for_each(|variants| variants.iter().for_each(&mut look));
    } else {
        edge.index.for_each(look);
    }
    let mut count = 0;
    for response in covered {
        if purge.soft {
            count += 1;
        } else if response.go() {
            count += 1;
            edge.unpublish(&response);
        }
    }
    count
}

/// Takes back what an earlier run stored; gives the number of responses. Blocking.
pub(crate) fn recover(edge: &Arc<Edge>) -> usize {
    let mut count = 0;
    let accept =
        |_, head: &[u8]| Recovered::decode(head, |url| edge.index.hash(url)).map(|r| r.facts.hash);
    edge.store.recover(accept, |found| {
        let Some(recovered) = Recovered::decode(&found.head, |url| edge.index.hash(url)) else {
            return;
        };
        let content = Content::new(
            edge.store.clone(),
            found.body,
            recovered.length,
            recovered.validator,
        );
        let is_whole = content
            .length()
            .is_some_and(|length| content.has(0, length));
        let can_be_completed = content.validator.is_some() && content.length().is_some();
        let response = recovered.facts.store(content.clone());
        if !(is_whole || can_be_completed) {
            content.discard();
            return;
        }
        edge.publish(&response, |other| {
            other.is_same_variant(&response)
                && other.freshness.received_ms <= response.freshness.received_ms
        });
        count += 1;
    });
    count
}
