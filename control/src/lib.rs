//! The control role: the journal of changes, the API and the console, the push job.
//!
//! - `api` answers `/v1` (examples in `API.md`, schema at `/v1/openapi.json`) and serves the
//!   console; `server` accepts connections under the limits of `admission`. `views` are the API's
//!   JSON types.
//! - `journal` is the journal that nodes follow; `fleet_file` decides which fleet file is in force.
//! - `fleet_state` folds reports into the state of the fleet: nodes, time series, purges, push
//!   orders. `event_log` keeps the newest events.
//! - `persist` keeps on disk, over restarts, what reports and events alone have shown; `history`
//!   reads it and the journal at start.
//! - `push` turns reported popularity into push orders, with the pure rules of `nearcast-push`.
//! - `tasks` is the periodic work.
//!
//! Nothing that serves clients depends on this role: while it is down, there are no changes and no
//! console.
//!
//! The fleet file in force is the one that changed last: the journal's newest revision, unless the
//! file on disk was edited since control last read it (at start or on SIGHUP). An edited file is
//! recorded as a new revision.

mod admission;
mod api;
mod dir;
mod error;
mod event;
mod event_log;
mod fleet_file;
mod fleet_state;
mod history;
mod journal;
mod kernel;
mod metrics;
mod node_keys;
mod persist;
mod push;
mod server;
mod state;
mod tasks;
mod views;

use std::sync::Arc;

use nearcast_fleet::admin::{self, Readiness};
use nearcast_fleet::config::{Control, Fleet};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::FurtherCheck;
use nearcast_fleet::journal::{Change, JournalError};
use nearcast_fleet::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admission::{Admission, Limits};
use crate::dir::{Dir, write_whole};
use crate::event::{Level, NewEvent};
use crate::fleet_file::InForce;
use crate::history::History;
use crate::journal::SharedJournal;
use crate::persist::series_file::SeriesFile;
use crate::persist::state_log::{self, StateLog};
use crate::push::learned::LearnedPopularity;
use crate::push::scheduler::Scheduler;
use crate::state::{FleetFile, Parts, State, now_unix_ms};
use crate::tasks::{
    count_connections, follow_disk, follow_fleet, keep_files, keep_time, report_weak_keys,
};

/// File of when the push schedule was last looked at, in control's directory.
const SCHEDULE_FILE: &str = "schedule.json";
/// The state log and the time series, in control's directory.
const STATE_LOG_FILE: &str = "facts";
const SERIES_FILE: &str = "series";
/// File of learned popularity, in control's directory.
const POPULARITY_FILE: &str = "popularity.json";
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
        Scheduler::open(dir.file(SCHEDULE_FILE)),
        shutdown.clone(),
    ));
    tasks.spawn(keep_files(
        state.clone(),
        charts,
        dir.file(POPULARITY_FILE),
        shutdown.clone(),
    ));
    tasks.spawn(follow_fleet(state.clone(), shutdown.clone()));
    tasks.spawn(follow_disk(
        state.clone(),
        disk,
        dir.file(SEEN_FILE),
        shutdown.clone(),
    ));
    tracing::info!(listen = %control.listen, revision = state.journal.revision(), "the control API listens");
    let message = format!(
        "control started at journal revision {}",
        state.journal.revision()
    );
    state.events.add(
        now_unix_ms(),
        [NewEvent::new("control_started", Level::Info, message)],
    );
    report_weak_keys(&state, &mut Vec::new());

    let admission = Admission::new(Limits::of_files(kernel::open_files_max()));
    let limits = admission.limits();
    tracing::info!(
        limits.nodes,
        limits.operators,
        limits.strangers,
        "limits of connections to the API"
    );
    tasks.spawn(count_connections(
        state.clone(),
        admission.clone(),
        shutdown.clone(),
    ));
    server::serve(
        listener,
        api::router(state.clone()),
        admission,
        state.metrics.clone(),
        shutdown,
    )
    .await;
    ready.send_replace(Readiness::NotReady("draining".to_owned()));
    while tasks.join_next().await.is_some() {}
    state.save(&mut state.fleet_state(), true);
    // Events of the last moment wait in the queue too.
    let last = state.log.append(std::iter::empty());
    state.log.wait_written(last).await;
    admin_task.abort();
    drop(dir);
    Ok(())
}

/// Restores the state that earlier processes left and decides which fleet file is in force.
fn open(
    fleet: watch::Sender<Arc<Fleet>>,
    given: &Fleet,
    control: &Control,
    dir: &Dir,
    disk_text: String,
    check: FurtherCheck,
    shutdown: Shutdown,
) -> Result<(State, SeriesFile), Failure> {
    let token = dir.token()?;
    let journal = SharedJournal::open(&dir.file("journal")).map_err(|e| journal_failure(&e))?;
    journal.heed_fleet_file(given.changed_unix_s);
    let history = History::read(&journal);
    let seen = std::fs::read_to_string(dir.file(SEEN_FILE)).ok();
    let newest = history.fleet_file.clone();
    let base = given.base.clone();
    let in_force = fleet_file::choose(
        &disk_text,
        seen.as_deref(),
        newest.as_ref().map(|(_, text)| text.as_str()),
    );
    let fleet_file = match (in_force, newest) {
        (InForce::Journal, Some((revision, text))) => {
            let journalled = fleet_file::parse(&text, revision, &base, &given.node_key)?;
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
            let entry = journal
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
    let (log, known, is_first) = StateLog::open(dir.file(STATE_LOG_FILE));
    let known = state_log::of_journal(known, journal.id(), journal.revision());
    let (mut fleet_state, events) = history.restore(&in_force, known, is_first);
    let charts = SeriesFile::open(
        dir.file(SERIES_FILE),
        &mut fleet_state.series,
        now_unix_ms() / 1000,
    );
    fleet_state.forget(&in_force);
    let policy = in_force.control.as_ref().and_then(|c| c.push.as_ref());
    let popularity = LearnedPopularity::new(
        policy,
        std::fs::read(dir.file(POPULARITY_FILE)).ok().as_deref(),
    );
    let state = State::new(Parts {
        fleet,
        fleet_file,
        base,
        check,
        token,
        journal,
        fleet_state,
        popularity,
        log,
        events,
        shutdown,
    });
    // Compaction drops entries whose outcome is in the state log, so that log is written first.
    state.log.rewrite(true, || state.all_records());
    state.journal.compact_blocking(now_unix_ms());
    Ok((state, charts))
}

fn journal_failure(error: &JournalError) -> Failure {
    let kind = match error {
        JournalError::Io { .. } => FailureKind::Io,
        JournalError::Damaged { .. } => FailureKind::BadData,
        JournalError::TooLarge { .. } => FailureKind::Usage,
    };
    Failure::new(kind, error.to_string())
}
