//! What the handlers and the periodic work of one control role share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nearcast_fleet::client::Client;
use nearcast_fleet::clock::unix_millis;
use nearcast_fleet::config::{Fleet, Secret};
use nearcast_fleet::file::{self, FurtherCheck, KeySource, Mistake};
use nearcast_fleet::journal::{Change, Entry};
use nearcast_fleet::node_key::KeyRefused;
use nearcast_fleet::shutdown::Shutdown;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinError;

use crate::book::{Book, roster};
use crate::callers::Callers;
use crate::events::{Events, Happening, Level};
use crate::facts::{Fact, Facts};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::planner::Learnt;
use crate::view;

/// The fleet file in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FleetFile {
    /// Journal revision; 0 for the file that control was started with.
    pub(crate) revision: u64,
    pub(crate) text: String,
}

/// Shared as `Arc<State>`.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) fleet: watch::Sender<Arc<Fleet>>,
    pub(crate) fleet_file: Mutex<FleetFile>,
    /// Relative paths in a fleet file are taken from here.
    pub(crate) base: PathBuf,
    check: FurtherCheck,
    pub(crate) token: Secret,
    pub(crate) ledger: Ledger,
    book: Mutex<Book>,
    pub(crate) learnt: Learnt,
    pub(crate) events: Events,
    /// Who asks, and which keys were refused.
    pub(crate) callers: Callers,
    pub(crate) facts: Facts,
    pub(crate) metrics: Metrics,
    /// Changes when something about purges has become known.
    pub(crate) confirmed: watch::Sender<()>,
    /// Held while an order is planned and appended.
    pub(crate) orders: tokio::sync::Mutex<()>,
    /// Plans that are made for those who look at them.
    pub(crate) plans: Semaphore,
    /// Held while a fleet file is checked and appended.
    pub(crate) fleet_files: tokio::sync::Mutex<()>,
    /// Asks name servers.
    pub(crate) client: Client,
    pub(crate) shutdown: Shutdown,
}

/// What [`State::new`] is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) fleet: watch::Sender<Arc<Fleet>>,
    pub(crate) fleet_file: FleetFile,
    pub(crate) base: PathBuf,
    pub(crate) check: FurtherCheck,
    pub(crate) token: Secret,
    pub(crate) ledger: Ledger,
    pub(crate) book: Book,
    pub(crate) learnt: Learnt,
    pub(crate) facts: Facts,
    /// Of earlier processes, oldest first.
    pub(crate) events: Vec<view::Event>,
    pub(crate) shutdown: Shutdown,
}

/// Plans made at a time for those who look at them.
const PLANS_MAX: usize = 1;

impl State {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            fleet: parts.fleet,
            fleet_file: Mutex::new(parts.fleet_file),
            base: parts.base,
            check: parts.check,
            token: parts.token,
            ledger: parts.ledger,
            book: Mutex::new(parts.book),
            learnt: parts.learnt,
            events: Events::new(now_unix_ms(), parts.events, Some(parts.facts.clone())),
            callers: Callers::default(),
            facts: parts.facts,
            metrics: Metrics::new(),
            confirmed: watch::channel(()).0,
            orders: tokio::sync::Mutex::new(()),
            plans: Semaphore::new(PLANS_MAX),
            fleet_files: tokio::sync::Mutex::new(()),
            client: Client::new(),
            shutdown: parts.shutdown,
        }
    }

    /// The fleet in force.
    pub(crate) fn fleet(&self) -> Arc<Fleet> {
        self.fleet.borrow().clone()
    }

    /// The book; hold it for a few lines, never over an await.
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.purges.show(|number| self.facts.is_kept(number));
        book
    }

    /// Gives what a change of the book has come to to be kept; with `all`, how far running orders
    /// are, too. Gives the number to wait for, if there was anything.
    pub(crate) fn keep(&self, book: &mut Book, all: bool) -> Option<u64> {
        let facts = book.take_facts(all);
        if facts.is_empty() {
            return None;
        }
        let number = self.facts.record(facts);
        book.purges.recorded(number);
        Some(number)
    }

    /// All that a later process is to know, as facts.
    pub(crate) fn all_facts(&self) -> Vec<Fact> {
        let mut facts = vec![Fact::Journal {
            id: self.ledger.id().to_owned(),
        }];
        facts.extend(self.book().all_facts());
        facts.extend(
            self.events
                .after(0, usize::MAX)
                .into_iter()
                .map(Fact::Event),
        );
        facts
    }

    /// The fleet that a fleet file describes, with the node key of this machine, or every mistake
    /// in it. Reads the files that it names.
    pub(crate) async fn parse(
        &self,
        text: String,
    ) -> Result<Result<Fleet, Vec<Mistake>>, JoinError> {
        let (base, check, key) = (self.base.clone(), self.check, self.fleet().node_key.clone());
        tokio::task::spawn_blocking(move || {
            file::parse_and_check_with(&text, &base, KeySource::InPlaceOfFile(&key), check)
        })
        .await
    }

    /// Revision and text of the fleet file in force.
    pub(crate) fn fleet_file(&self) -> FleetFile {
        self.fleet_file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Revision of the fleet file in force.
    pub(crate) fn fleet_revision(&self) -> u64 {
        self.fleet_file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .revision
    }

    /// A node's key was refused; `named` is who its sender says to be.
    pub(crate) fn key_refused(&self, refused: &KeyRefused, named: Option<&str>) {
        self.metrics
            .keys_refused
            .with_label_values(&[refused.label()])
            .inc();
        let fleet = self.fleet();
        let is_node = |name: &&str| roster(&fleet).iter().any(|(node, ..)| node == name);
        let node = refused.node().or_else(|| named.filter(is_node));
        let now = now_unix_ms();
        self.events
            .add(now, self.callers.refused(node, refused, now));
    }

    /// A purge is in the journal; no node has seen it yet. `at` is the edge that a client asked for
    /// it, `waiter` who waits.
    pub(crate) fn purge_accepted(
        &self,
        entry: &Entry,
        at: Option<&str>,
        waiter: Option<&PurgeWaiter>,
    ) {
        let Change::Purge(purge) = &entry.change else {
            return;
        };
        {
            let mut book = self.book();
            book.purges
                .accept(entry.revision, entry.accepted_unix_ms, purge, false);
            // Before others come, which would push it out.
            if let Some(waiter) = waiter.filter(|_| book.purges.wait(entry.revision)) {
                waiter.revision.store(entry.revision, Ordering::Relaxed);
            }
        }
        let by = at.map_or_else(String::new, |node| format!(", asked for at {node}"));
        let message = format!(
            "purge {} of {} accepted{by}",
            entry.revision,
            crate::purges::describe(purge)
        );
        let happening =
            Happening::new("purge_accepted", Level::Info, message).revision(entry.revision);
        self.events.add(entry.accepted_unix_ms, [happening]);
    }
}

/// Somebody waits for a purge; its record is kept until this is dropped.
#[derive(Debug)]
pub(crate) struct PurgeWaiter {
    state: Arc<State>,
    /// 0 until it has one and is waited for.
    revision: AtomicU64,
}

impl PurgeWaiter {
    /// Of a purge that is not accepted yet.
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self {
            state,
            revision: AtomicU64::new(0),
        }
    }

    /// Whether its purge is waited for: not when too many are.
    pub(crate) fn waits(&self) -> bool {
        self.revision.load(Ordering::Relaxed) > 0
    }
}

impl Drop for PurgeWaiter {
    fn drop(&mut self) {
        let revision = self.revision.load(Ordering::Relaxed);
        if revision > 0 {
            self.state.book().purges.waited(revision);
        }
    }
}

/// Real time, milliseconds after the Unix epoch.
pub(crate) fn now_unix_ms() -> u64 {
    unix_millis(SystemTime::now())
}
