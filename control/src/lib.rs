//! The control role: the journal of changes, the API and the console, the push job.
//!
//! - [`handler`](self) answers `/v1` (examples in `API.md`, schema at `/v1/openapi.json`); `server`
//!   accepts connections under the limits of `admission`, and `gate` is what each request passes
//!   first.
//! - `ledger` is the journal that nodes follow; `revision` decides which fleet file is in force.
//! - `book` folds reports into the state of the fleet, with `series`, `purges` and `pushes`;
//!   `events` tells what happened.
//! - `facts` and `charts` keep on disk what `purges`, `pushes`, `events` and `series` know, over
//!   restarts.
//! - `planner` turns reported popularity into push orders, with the pure rules of `nearcast-push`.
//!
//! Nothing that serves clients depends on this role: with it down, there are no changes and no
//! console.
//!
//! Which fleet file is in force: whichever changed last. That is the journal's newest revision,
//! unless the file on disk has been edited since control last read it (at a start or on SIGHUP);
//! the file on disk is then recorded as a new revision.

mod admission;
mod book;
mod bounds;
mod callers;
mod charts;
mod console;
mod dir;
mod drains;
mod error;
mod events;
mod facts;
mod fleet_view;
mod gate;
mod handler;
mod kept;
mod kernel;
mod ledger;
mod metrics;
mod planner;
mod purges;
mod pushes;
mod revision;
mod series;
mod server;
mod state;
mod view;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nearcast_fleet::admin::{self, Readiness};
use nearcast_fleet::config::{Control, Fleet};
use nearcast_fleet::drains::Drains;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::FurtherCheck;
use nearcast_fleet::journal::{Change, Entry, JournalError};
use nearcast_fleet::node_key;
use nearcast_fleet::shutdown::Shutdown;
use prometheus::IntGaugeVec;
use prometheus::core::Collector;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::admission::{Admission, Limits};
use crate::book::Book;
use crate::charts::Charts;
use crate::dir::{Dir, write_whole};
use crate::events::{Happening, Level};
use crate::facts::{Fact, Facts};
use crate::ledger::Ledger;
use crate::planner::{Learnt, Scheduler};
use crate::revision::InForce;
use crate::state::{FleetFile, Parts, State, now_unix_ms};

/// How often time alone is looked at: silence, windows, orders that run out of time.
const TICK: Duration = Duration::from_millis(500);
/// How often what was learnt is written, and the journal's length looked at.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// File of when the push schedule was last looked at, in control's directory.
const LOOKED_FILE: &str = "schedule.json";
/// How often charts are written, and the files of facts looked at: as much of the charts a kill may
/// cost.
const CHARTS_EVERY: Duration = Duration::from_secs(2);
/// Orders whose time ran out while control was away run on for so long, so that nodes can say how
/// they ended.
const ORDERS_GRACE_MS: u64 = 15_000;
/// What is known of purges, pushes and events, and the charts.
const FACTS_FILE: &str = "facts";
const SERIES_FILE: &str = "series";
/// File of what was learnt, in control's directory.
const LEARNT_FILE: &str = "popularity.json";
/// Copy of the fleet file on disk as it was when it was last read.
const SEEN_FILE: &str = "fleet-file.seen";

/// Runs the control role of the fleet until shutdown. `fleet` is updated when another fleet file
/// comes into force. `disk` is the text of the fleet file that `fleet` was read from; it changes
/// when the file is read again. `check` is what other roles know of fleet files: one in which it
/// finds mistakes does not come into force. `when_open` is called when the listeners are open and
/// nothing has been read or written yet.
///
/// # Errors
/// A [`Failure`] when the fleet has no control role, a port is in use, control's directory cannot
/// be made or is in use, or the journal is damaged. Nothing has been started then.
pub async fn run(
    fleet: watch::Sender<Arc<Fleet>>,
    disk: watch::Receiver<String>,
    check: FurtherCheck,
    when_open: impl FnOnce() -> Result<(), Failure>,
    shutdown: Shutdown,
) -> Result<(), Failure> {
    let given = fleet.borrow().clone();
    let Some(control) = given.control.clone() else {
        return Err(Failure::new(
            FailureKind::Usage,
            "the fleet file has no [control] section; add one to run the control role",
        ));
    };
    let listener = TcpListener::bind(control.listen)
        .await
        .map_err(|e| Failure::bind("the control API", control.listen, &e))?;
    let admin_listener = admin::bind(control.admin).await?;
    when_open()?;
    let dir = Dir::open(&given.node_dir(&control.name))?;
    let mut disk = disk;
    let on_disk = disk.borrow_and_update().clone();
    let (state, charts) = open(
        fleet,
        &given,
        &control,
        &dir,
        on_disk,
        check,
        shutdown.clone(),
    )?;
    let state = Arc::new(state);

    let (ready, readiness) = watch::channel(Readiness::Ready);
    let admin_task = tokio::spawn(admin::serve(
        admin_listener,
        state.metrics.registry.clone(),
        readiness,
        None,
        admin::own_names_of(state.fleet.subscribe()),
        shutdown.clone(),
    ));
    let mut tasks = JoinSet::new();
    tasks.spawn(keep_time(
        state.clone(),
        Scheduler::open(dir.file(LOOKED_FILE)),
        shutdown.clone(),
    ));
    tasks.spawn(keep_files(
        state.clone(),
        charts,
        dir.file(LEARNT_FILE),
        shutdown.clone(),
    ));
    tasks.spawn(follow_fleet(state.clone(), shutdown.clone()));
    tasks.spawn(follow_disk(
        state.clone(),
        disk,
        dir.file(SEEN_FILE),
        shutdown.clone(),
    ));
    tracing::info!(listen = %control.listen, revision = state.ledger.revision(), "the control API listens");
    let message = format!(
        "control started at journal revision {}",
        state.ledger.revision()
    );
    state.events.add(
        now_unix_ms(),
        [Happening::new("control_started", Level::Info, message)],
    );
    tell_weak_keys(&state, &mut Vec::new());

    let admission = Admission::new(Limits::of_files(kernel::open_files_max()));
    let limits = admission.limits();
    tracing::info!(
        limits.nodes,
        limits.operators,
        limits.strangers,
        "connections that the API takes"
    );
    tasks.spawn(count_connections(
        state.clone(),
        admission.clone(),
        shutdown.clone(),
    ));
    server::serve(
        listener,
        handler::router(state.clone()),
        admission,
        state.metrics.clone(),
        shutdown,
    )
    .await;
    ready.send_replace(Readiness::NotReady("draining".to_owned()));
    while tasks.join_next().await.is_some() {}
    state.keep(&mut state.book(), true);
    // Events of the last moment wait there too.
    let last = state.facts.record(std::iter::empty());
    state.facts.kept(last).await;
    admin_task.abort();
    drop(dir);
    Ok(())
}

/// Reads what earlier processes left and decides which fleet file is in force.
fn open(
    fleet: watch::Sender<Arc<Fleet>>,
    given: &Fleet,
    control: &Control,
    dir: &Dir,
    disk_text: String,
    check: FurtherCheck,
    shutdown: Shutdown,
) -> Result<(State, Charts), Failure> {
    let token = dir.token()?;
    let ledger = Ledger::open(&dir.file("journal")).map_err(|e| journal_failure(&e))?;
    ledger.heed_fleet_file(given.changed_unix_s);
    let history = History::read(&ledger);
    let seen = std::fs::read_to_string(dir.file(SEEN_FILE)).ok();
    let newest = history.fleet_file.clone();
    let base = given.base.clone();
    let in_force = revision::choose(
        &disk_text,
        seen.as_deref(),
        newest.as_ref().map(|(_, text)| text.as_str()),
    );
    let fleet_file = match (in_force, newest) {
        (InForce::Journal, Some((revision, text))) => {
            let journalled = revision::parse(&text, revision, &base, &given.node_key)?;
            if journalled.control.as_ref() != Some(control) {
                return Err(Failure::new(
                    FailureKind::Usage,
                    format!(
                        "revision {revision} of the fleet file in the journal has another [control] than the file on disk; edit the file on disk and it becomes a new revision"
                    ),
                ));
            }
            fleet.send_replace(Arc::new(journalled));
            FleetFile { revision, text }
        }
        (InForce::DiskAsRevision, _) => {
            let change = Change::FleetFile {
                text: disk_text.clone(),
            };
            let entry = ledger
                .append_blocking(change, now_unix_ms(), |_| ())
                .map_err(|e| journal_failure(&e))?;
            FleetFile {
                revision: entry.revision,
                text: disk_text.clone(),
            }
        }
        _ => FleetFile {
            revision: 0,
            text: disk_text.clone(),
        },
    };
    if seen.as_ref() != Some(&disk_text) {
        let path = dir.file(SEEN_FILE);
        write_whole(&path, disk_text.as_bytes()).map_err(|e| {
            Failure::new(
                FailureKind::Io,
                format!("cannot write {}: {e}", path.display()),
            )
        })?;
    }
    let in_force = fleet.borrow().clone();
    let (facts, known, is_first) = Facts::open(dir.file(FACTS_FILE));
    let known = facts::of_journal(known, ledger.id(), ledger.revision());
    let (mut book, events) = history.book(&in_force, known, is_first);
    let charts = Charts::open(
        dir.file(SERIES_FILE),
        &mut book.series,
        now_unix_ms() / 1000,
    );
    book.forget(&in_force);
    let policy = in_force.control.as_ref().and_then(|c| c.push.as_ref());
    let learnt = Learnt::new(policy, std::fs::read(dir.file(LEARNT_FILE)).ok().as_deref());
    let state = State::new(Parts {
        fleet,
        fleet_file,
        base,
        check,
        token,
        ledger,
        book,
        learnt,
        facts,
        events,
        shutdown,
    });
    // Only now may the journal leave out what is in the facts.
    state.facts.rewrite(true, || state.all_facts());
    state.ledger.compact_blocking(now_unix_ms());
    Ok((state, charts))
}

/// What the journal's entries come to.
#[derive(Debug, Default)]
struct History {
    /// Newest fleet file and its revision.
    fleet_file: Option<(u64, String)>,
    /// What is drained.
    drains: Drains,
    /// Newest purges, oldest first.
    purges: VecDeque<Entry>,
    /// Newest push orders, oldest first.
    pushes: VecDeque<Entry>,
}

impl History {
    fn read(ledger: &Ledger) -> Self {
        let mut history = Self::default();
        let mut after = 0;
        loop {
            let page = ledger.after_blocking(after, ledger::PAGE_ENTRIES_MAX);
            let Some(last) = page.last() else {
                return history;
            };
            after = last.revision;
            for entry in page {
                history.add(entry);
            }
        }
    }

    fn add(&mut self, entry: Entry) {
        let (kept, most) = match entry.change {
            Change::FleetFile { text } => {
                self.fleet_file = Some((entry.revision, text));
                return;
            }
            Change::Purge(_) => (&mut self.purges, purges::KEPT_MAX),
            Change::Push(_) => (&mut self.pushes, pushes::KEPT_MAX),
            Change::Drain(_) => {
                self.drains.fold(&entry);
                return;
            }
        };
        if kept.len() == most {
            kept.pop_front();
        }
        kept.push_back(entry);
    }

    /// Purges and orders of earlier processes with what those knew of them, and their events.
    /// `is_first`: there were no facts.
    fn book(&self, fleet: &Fleet, known: Vec<Fact>, is_first: bool) -> (Book, Vec<view::Event>) {
        let now = now_unix_ms();
        let mut book = Book::new(now);
        book.drains = self.drains.clone();
        let mut events = BTreeMap::new();
        // Orders first, as those of the journal end others; purges are those of the journal.
        let (orders, others): (Vec<Fact>, Vec<Fact>) = known
            .into_iter()
            .partition(|fact| matches!(fact, Fact::Push(_)));
        orders.into_iter().for_each(|fact| book.restore(fact));
        for entry in self.purges.iter().chain(&self.pushes) {
            match &entry.change {
                Change::Purge(purge) => {
                    book.purges
                        .accept(entry.revision, entry.accepted_unix_ms, purge, is_first)
                }
                Change::Push(order) if book.pushes.knows(order, entry.revision) => {}
                Change::Push(order) => {
                    let cluster = fleet.clusters.iter().find(|c| c.name == order.cluster);
                    let nodes = cluster
                        .map(|c| c.nodes.iter().map(|n| n.name.clone()).collect())
                        .unwrap_or_default();
                    book.pushes
                        .accept(order, entry.revision, entry.accepted_unix_ms, nodes);
                }
                Change::FleetFile { .. } | Change::Drain(_) => {}
            }
        }
        for fact in others {
            match fact {
                Fact::Event(event) => {
                    events.insert(event.id, event);
                    while events.len() > events::KEPT_MAX {
                        events.pop_first();
                    }
                }
                other => book.restore(other),
            }
        }
        if is_first {
            // What ran out of time before this process is no news.
            book.pushes.settle(now);
        }
        book.pushes.recall_missed();
        book.pushes.expire_not_before(now + ORDERS_GRACE_MS);
        (book, events.into_values().collect())
    }
}

fn journal_failure(error: &JournalError) -> Failure {
    let kind = match error {
        JournalError::Io { .. } => FailureKind::Io,
        JournalError::Damaged { .. } => FailureKind::BadData,
        JournalError::TooLarge { .. } => FailureKind::Usage,
    };
    Failure::new(kind, error.to_string())
}

/// Keeps the metrics of connections in step.
async fn count_connections(state: Arc<State>, admission: Arc<Admission>, mut shutdown: Shutdown) {
    loop {
        for (class, count) in admission.counts() {
            state
                .metrics
                .connections_of
                .with_label_values(&[class.name()])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = shutdown.asked() => return,
        }
    }
}

/// Looks at what time alone changes.
async fn keep_time(state: Arc<State>, mut scheduler: Scheduler, mut shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.asked() => return,
        }
        let (now, fleet) = (now_unix_ms(), state.fleet());
        let happenings = {
            let mut book = state.book();
            let happenings = book.tick(&fleet, now);
            state.keep(&mut book, false);
            happenings
        };
        state.events.add(now, happenings);
        scheduler.look(&state, &fleet, now).await;
        gauges(&state, &fleet, now);
    }
}

/// Ends the values of clusters that the fleet no longer has. The others stay as they are, so that
/// nobody reads a gap in between.
fn forget_clusters(gauge: &IntGaugeVec, fleet: &Fleet) {
    for family in gauge.collect() {
        for label in family
            .get_metric()
            .iter()
            .flat_map(|metric| metric.get_label())
        {
            if !fleet
                .clusters
                .iter()
                .any(|cluster| cluster.name == label.value())
            {
                let _ = gauge.remove_label_values(&[label.value()]);
            }
        }
    }
}

fn gauges(state: &State, fleet: &Fleet, now_unix_ms: u64) {
    let metrics = &state.metrics;
    metrics
        .journal_revision
        .set(i64::try_from(state.ledger.revision()).unwrap_or(i64::MAX));
    let counts = state.book().state_counts(fleet, now_unix_ms);
    for role in [
        book::Role::Edge,
        book::Role::Dns,
        book::Role::Origin,
        book::Role::Control,
    ] {
        for node_state in book::NodeState::ALL {
            let count = counts.get(&(role, node_state.name())).copied().unwrap_or(0);
            metrics
                .nodes
                .with_label_values(&[role.name(), node_state.name()])
                .set(count);
        }
    }
    forget_clusters(&metrics.push_missed, fleet);
    for cluster in &fleet.clusters {
        let is_missed = state.book().pushes.missed(&cluster.name).is_some();
        metrics
            .push_missed
            .with_label_values(&[cluster.name.as_str()])
            .set(is_missed.into());
    }
    let missed = state.book().pushes.take_missed();
    for (cluster, why) in missed {
        metrics
            .pushes_missed
            .with_label_values(&[cluster.as_str(), why.as_str()])
            .inc();
    }
    for (cluster, urls) in state.learnt.sizes() {
        metrics
            .popular_urls
            .with_label_values(&[cluster.as_str()])
            .set(urls as i64);
    }
}

/// Writes what was learnt and compacts the journal now and then, and at the end.
async fn keep_files(state: Arc<State>, charts: Charts, path: PathBuf, mut shutdown: Shutdown) {
    let charts = Arc::new(charts);
    let mut saved = Instant::now();
    loop {
        let is_end = tokio::select! {
            () = tokio::time::sleep(CHARTS_EVERY) => false,
            () = shutdown.asked() => true,
        };
        {
            let mut book = state.book();
            state.keep(&mut book, true);
        }
        let is_saved = is_end || saved.elapsed() >= SAVE_EVERY;
        if is_saved {
            saved = Instant::now();
        }
        let (state, path, charts) = (state.clone(), path.clone(), charts.clone());
        let outcome = tokio::task::spawn_blocking(move || {
            charts.save(&state);
            // The journal leaves out what is in the facts, so those go first.
            state
                .facts
                .rewrite(is_saved && state.ledger.is_compaction_due(), || {
                    state.all_facts()
                });
            if !is_saved {
                return Ok(());
            }
            state.ledger.compact_blocking(now_unix_ms());
            save(&state, &path)
        })
        .await;
        if let Ok(Err(error)) = outcome {
            tracing::warn!(%error, "what was learnt of popularity cannot be written; a restart will begin anew");
        }
        if is_end {
            return;
        }
    }
}

fn save(state: &State, path: &Path) -> std::io::Result<()> {
    write_whole(path, &state.learnt.save())
}

/// Takes on the fleet file on disk whenever it has been read again.
async fn follow_disk(
    state: Arc<State>,
    mut disk: watch::Receiver<String>,
    seen_path: PathBuf,
    mut shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            changed = disk.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = shutdown.asked() => return,
        }
        let text = disk.borrow_and_update().clone();
        let outcome = revision::read_again(&state, text, &seen_path).await;
        let happening = match outcome {
            Ok(Some(message)) => Happening::new("fleet_file_read", Level::Info, message),
            Ok(None) => continue,
            Err(reason) => {
                tracing::error!(%reason, "the fleet file on disk is not taken on; the one in force stays");
                let message = format!("the fleet file on disk is not taken on: {reason}");
                Happening::new("fleet_file_refused", Level::Warn, message)
            }
        };
        state.events.add(now_unix_ms(), [happening]);
    }
}

/// Keeps book and planner in step with the fleet, whoever changes it.
async fn follow_fleet(state: Arc<State>, mut shutdown: Shutdown) {
    let mut fleets = state.fleet.subscribe();
    let mut told = node_key::warnings(&state.fleet());
    loop {
        tokio::select! {
            changed = fleets.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = shutdown.asked() => return,
        }
        let fleet = fleets.borrow_and_update().clone();
        state.book().forget(&fleet);
        state.learnt.follow(&fleet);
        tell_weak_keys(&state, &mut told);
    }
}

/// Tells of keys that work and are to be mended, when there is something new to tell.
fn tell_weak_keys(state: &State, told: &mut Vec<String>) {
    let warnings = node_key::warnings(&state.fleet());
    if warnings != *told {
        state.events.add(
            now_unix_ms(),
            warnings
                .iter()
                .map(|warning| Happening::new("weak_key", Level::Warn, warning.clone())),
        );
        *told = warnings;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_goes_takes_its_gauge_along() {
        let text = "[fleet]\nzone = \"cdn.test\"\n[[cluster]]\nname = \"ams\"\nplace = { latitude = 1, longitude = 1 }\n\
                    [[cluster.node]]\nname = \"ams-1\"\naddress = \"192.0.2.1\"\n";
        let fleet = nearcast_fleet::file::parse(text, Path::new("/")).expect("a good file");
        let gauge = metrics::Metrics::new().push_missed;
        for cluster in ["ams", "gone"] {
            gauge.with_label_values(&[cluster]).set(1);
        }
        forget_clusters(&gauge, &fleet);
        let families = gauge.collect();
        let left: Vec<&str> = families[0]
            .get_metric()
            .iter()
            .map(|metric| metric.get_label()[0].value())
            .collect();
        assert_eq!(
            (left, gauge.with_label_values(&["ams"]).get()),
            (vec!["ams"], 1)
        );
    }
}
