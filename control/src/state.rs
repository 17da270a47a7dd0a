//! The state that handlers and tasks of the control role share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nearcast_fleet::change::{Change, Entry};
use nearcast_fleet::client::Client;
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::{Fleet, Secret};
use nearcast_fleet::file::{self, FurtherCheck, KeySource, Mistake};
use nearcast_fleet::node_key::KeyRefused;
use nearcast_net::shutdown::Shutdown;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinError;

use crate::asking::Asking;
use crate::certificates::Certificates;
use crate::event::{Level, NewEvent};
use crate::event_log::EventLog;
use crate::fleet_state::FleetState;
use crate::fleet_state::nodes::is_node;
use crate::fleet_state::purge_record;
use crate::fleet_state::saved::StateRecord;
use crate::journal::SharedJournal;
use crate::metrics::Metrics;
use crate::node_keys::NodeKeys;
use crate::persist::state_log::StateLog;
use crate::push::learned::LearnedPopularity;
use crate::ticket_keys::TicketRings;
use crate::traces::Traces;
use crate::views;

/// The fleet file in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FleetFile {
    /// Journal revision; 0 for the file that control was started with.
    pub(crate) revision: u64,
    pub(crate) text: String,
}

/// The shared state, used as `Arc<State>`.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) fleet: watch::Sender<Arc<Fleet>>,
    pub(crate) fleet_file: Mutex<FleetFile>,
    /// Relative paths in a fleet file start here.
    pub(crate) base: PathBuf,
    check: FurtherCheck,
    pub(crate) token: Secret,
    pub(crate) journal: SharedJournal,
    fleet_state: Mutex<FleetState>,
    pub(crate) popularity: LearnedPopularity,
    pub(crate) events: EventLog,
    pub(crate) node_keys: NodeKeys,
    pub(crate) ticket_rings: TicketRings,
    pub(crate) certificates: Certificates,
    pub(crate) log: StateLog,
    pub(crate) metrics: Metrics,
    /// Notified when confirmations of purges are on disk.
    pub(crate) confirmed: watch::Sender<()>,
    /// Held while an order is planned and appended.
    pub(crate) orders: tokio::sync::Mutex<()>,
    /// Limits plans that are made for display.
    pub(crate) plans: Semaphore,
    /// Pages that ask for the edges of their viewers.
    pub(crate) asking: Asking,
    /// Held while a fleet file is checked and appended.
    pub(crate) fleet_files: tokio::sync::Mutex<()>,
    /// Questions to edges about single requests.
    pub(crate) traces: Traces,
    /// For requests to name servers.
    pub(crate) client: Client,
    pub(crate) shutdown: Shutdown,
}

/// The parts of [`State::new`].
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) fleet: watch::Sender<Arc<Fleet>>,
    pub(crate) fleet_file: FleetFile,
    pub(crate) base: PathBuf,
    pub(crate) check: FurtherCheck,
    pub(crate) token: Secret,
    pub(crate) journal: SharedJournal,
    pub(crate) fleet_state: FleetState,
    pub(crate) popularity: LearnedPopularity,
    pub(crate) log: StateLog,
    /// Events of earlier processes, oldest first.
    pub(crate) events: Vec<views::Event>,
    pub(crate) shutdown: Shutdown,
}

/// Plans made at a time for display.
const PLANS_MAX: usize = 1;

impl State {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            client: Client::following(parts.fleet.subscribe()),
            fleet: parts.fleet,
            fleet_file: Mutex::new(parts.fleet_file),
            base: parts.base,
            check: parts.check,
            token: parts.token,
            journal: parts.journal,
            fleet_state: Mutex::new(parts.fleet_state),
            popularity: parts.popularity,
            events: EventLog::new(now_unix_ms(), parts.events, Some(parts.log.clone())),
            node_keys: NodeKeys::default(),
            ticket_rings: TicketRings::default(),
            certificates: Certificates::default(),
            log: parts.log,
            metrics: Metrics::new(),
            confirmed: watch::channel(()).0,
            orders: tokio::sync::Mutex::new(()),
            plans: Semaphore::new(PLANS_MAX),
            asking: Asking::default(),
            fleet_files: tokio::sync::Mutex::new(()),
            traces: Traces::new(now_unix_ms()),
            shutdown: parts.shutdown,
        }
    }

    /// The fleet in force.
    pub(crate) fn fleet(&self) -> Arc<Fleet> {
        self.fleet.borrow().clone()
    }

    /// The state of the fleet. Hold the lock for a few lines, never over an await.
    pub(crate) fn fleet_state(&self) -> MutexGuard<'_, FleetState> {
        let mut fleet_state = self.fleet_state.lock();
        fleet_state
            .purges
            .show_written(|number| self.log.is_written(number));
        fleet_state
    }

    /// Appends the changes of the state to the state log; with `all`, also the progress of running
    /// orders. Returns the number of the last record, if there was any.
    pub(crate) fn save(&self, fleet_state: &mut FleetState, all: bool) -> Option<u64> {
        let records = fleet_state.take_records(all);
        if records.is_empty() {
            return None;
        }
        let number = self.log.append(records);
        fleet_state.purges.saved_as(number);
        Some(number)
    }

    /// Everything that a later process needs, as records.
    pub(crate) fn all_records(&self) -> Vec<StateRecord> {
        let mut records = vec![StateRecord::Journal {
            id: self.journal.id().to_owned(),
        }];
        records.extend(self.fleet_state().all_records());
        records.extend(
            self.events
                .after(0, usize::MAX)
                .into_iter()
                .map(StateRecord::Event),
        );
        records
    }

    /// Parses a fleet file with the node key of this machine. Returns its fleet or all its mistakes.
    /// Reads the files that it names.
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
        self.fleet_file.lock().clone()
    }

    /// Revision of the fleet file in force.
    pub(crate) fn fleet_revision(&self) -> u64 {
        self.fleet_file.lock().revision
    }

    /// Counts and announces a refused node key. `named` is the node that the request names.
    pub(crate) fn key_refused(&self, refused: &KeyRefused, named: Option<&str>) {
        self.metrics
            .keys_refused
            .with_label_values(&[refused.label()])
            .inc();
        let fleet = self.fleet();
        let node = refused
            .node()
            .or_else(|| named.filter(|name| is_node(&fleet, name)));
        let now = now_unix_ms();
        self.events
            .add(now, self.node_keys.refused(node, refused, now));
    }

    /// Applies a purge that the journal has accepted, before any node can see it. `edge` is the edge
    /// that a client sent it to; `waiter` is the request that waits for it.
    pub(crate) fn purge_accepted(
        &self,
        entry: &Entry,
        edge: Option<&str>,
        waiter: Option<&PurgeWaiter>,
    ) {
        let Change::Purge(purge) = &entry.change else {
            return;
        };
        {
            let mut fleet_state = self.fleet_state();
            fleet_state
                .purges
                .accept(entry.revision, entry.accepted_unix_ms, purge, false);
            // Before further purges can push it out.
            if let Some(waiter) = waiter.filter(|_| fleet_state.purges.wait(entry.revision)) {
                waiter.revision.store(entry.revision, Ordering::Relaxed);
            }
        }
        let by = edge.map_or_else(String::new, |node| format!(", requested at {node}"));
        let message = format!(
            "purge {} of {} accepted{by}",
            entry.revision,
            purge_record::describe(purge)
        );
        let new_event =
            NewEvent::new("purge_accepted", Level::Info, message).revision(entry.revision);
        self.events.add(entry.accepted_unix_ms, [new_event]);
    }
}

/// A request that waits for a purge. The purge's record is kept until this is dropped.
#[derive(Debug)]
pub(crate) struct PurgeWaiter {
    state: Arc<State>,
    /// 0 until the purge has a revision and its record is kept for this request.
    revision: AtomicU64,
}

impl PurgeWaiter {
    /// For a purge that is not accepted yet.
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self {
            state,
            revision: AtomicU64::new(0),
        }
    }

    /// Whether the purge's record is kept for it: not when too many requests wait.
    pub(crate) fn waits(&self) -> bool {
        self.revision.load(Ordering::Relaxed) > 0
    }
}

impl Drop for PurgeWaiter {
    fn drop(&mut self) {
        let revision = self.revision.load(Ordering::Relaxed);
        if revision > 0 {
            self.state.fleet_state().purges.end_wait(revision);
        }
    }
}
