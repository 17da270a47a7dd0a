//! How control starts and ends: the stages of its [`Role`], and the state that earlier processes left.

use std::net::SocketAddr;
use std::sync::Arc;

use nearcast_fleet::admin::Readiness;
use nearcast_fleet::change::{Challenges, Change};
use nearcast_fleet::clock::{now_unix_ms, now_unix_s};
use nearcast_fleet::config::{Control, Fleet};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::FurtherCheck;
use nearcast_fleet::journal::JournalError;
use nearcast_fleet::listener_tls::ListenerTls;
use nearcast_fleet::role::{self, Admin, Role};
use nearcast_net::listen;
use nearcast_net::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::admission::{Admission, Limits};
use crate::dir::{Dir, write_whole};
use crate::event::{Level, NewEvent};
use crate::fleet_file::{self, InForce};
use crate::history::History;
use crate::journal::SharedJournal;
use crate::persist::series_file::SeriesFile;
use crate::persist::state_log::{self, StateLog};
use crate::push::learned::LearnedPopularity;
use crate::push::scheduler::Scheduler;
use crate::state::{FleetFile, Parts, State};
use crate::tasks::{
    count_connections, follow_disk, follow_fleet, keep_files, keep_time, report_weak_keys,
};
use crate::{api, certificates, kernel, server};

/// The time at which the push schedule was last evaluated, in control's directory.
const SCHEDULE_FILE: &str = "schedule.json";
/// The state log, in control's directory.
const STATE_LOG_FILE: &str = "facts";
/// The time series, in control's directory.
const SERIES_FILE: &str = "series";
/// Learned popularity, in control's directory.
const POPULARITY_FILE: &str = "popularity.json";
/// Copy of the fleet file on disk as it was when it was last read.
const SEEN_FILE: &str = "fleet-file.seen";

/// Runs the control role of the fleet until shutdown. `fleet` is updated when another fleet file
/// comes into force. `disk` is the text of the fleet file that `fleet` was read from; it changes
/// when the file is read again. `check` finds the mistakes that only other roles can find: a fleet
/// file with one does not come into force. `when_open` is called when the listeners are open and
/// nothing has been read or written yet.
///
/// # Errors
/// A [`Failure`] when the fleet has no control role, a port is in use, control's directory cannot
/// be made or is in use, or the journal is damaged. Nothing has been started then.
pub async fn run(
    fleet: watch::Sender<Arc<Fleet>>,
    disk: watch::Receiver<String>,
    check: FurtherCheck,
    when_open: impl FnOnce() -> Result<(), Failure> + Send,
    shutdown: Shutdown,
) -> Result<(), Failure> {
    let given = fleet.borrow().clone();
    let Some(control) = given.control.clone() else {
        return Err(Failure::new(
            FailureKind::Usage,
            "the fleet file has no [control] section; add one to run the control role",
        ));
    };
    let follow_fleet = fleet.subscribe();
    let starting = StartingControl {
        inputs: StateInputs {
            control,
            given,
            fleet,
            check,
            shutdown: shutdown.clone(),
        },
        disk,
        when_open: Some(when_open),
        dir: None,
    };
    role::run(starting, follow_fleet, shutdown).await
}

/// Control before it has started.
struct StartingControl<F> {
    inputs: StateInputs,
    disk: watch::Receiver<String>,
    when_open: Option<F>,
    /// Control's directory, once it is locked.
    dir: Option<Dir>,
}

/// The inputs of control's state, beside the files in its directory.
pub(crate) struct StateInputs {
    pub(crate) control: Control,
    /// The fleet as it was read from disk.
    pub(crate) given: Arc<Fleet>,
    pub(crate) fleet: watch::Sender<Arc<Fleet>>,
    pub(crate) check: FurtherCheck,
    pub(crate) shutdown: Shutdown,
}

/// Control while it serves.
struct RunningControl {
    state: Arc<State>,
    /// The task of the API; `None` once it has ended.
    serving: Option<JoinHandle<()>>,
    tasks: JoinSet<()>,
    /// Locked until the end.
    dir: Dir,
}

impl<F: FnOnce() -> Result<(), Failure> + Send> Role for StartingControl<F> {
    type Listeners = TcpListener;
    type Running = RunningControl;

    fn admin_address(&self) -> Option<SocketAddr> {
        Some(self.inputs.control.admin)
    }

    fn open(&self) -> Result<TcpListener, Failure> {
        let address = self.inputs.control.listen;
        listen::open(address).map_err(|e| Failure::bind("the control API", address, &e))
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        if let Some(when_open) = self.when_open.take() {
            when_open()?;
        }
        let directory = self.inputs.given.node_dir(&self.inputs.control.name);
        self.dir = Some(Dir::open(&directory)?);
        Ok(())
    }

    async fn start(
        mut self,
        listener: TcpListener,
        admin: &mut Admin,
    ) -> Result<RunningControl, Failure> {
        let dir = self.dir.take().expect("begin has opened it");
        let disk_text = self.disk.borrow_and_update().clone();
        let listen = self.inputs.control.listen;
        let shutdown = self.inputs.shutdown.clone();
        let tls = ListenerTls::open(self.inputs.fleet.subscribe(), |fleet| {
            fleet.control.as_ref()?.identity.as_ref()
        })?;
        let (state, series) = self.inputs.restore(&dir, disk_text)?;
        let state = Arc::new(state);
        admin.serve(state.metrics.registry.clone(), None);

        let mut tasks = JoinSet::new();
        tasks.spawn(keep_time(
            state.clone(),
            Scheduler::open(dir.file(SCHEDULE_FILE)),
            shutdown.clone(),
        ));
        tasks.spawn(keep_files(
            state.clone(),
            series,
            dir.file(POPULARITY_FILE),
            shutdown.clone(),
        ));
        tasks.spawn(follow_fleet(state.clone(), shutdown.clone()));
        tasks.spawn(certificates::run(
            state.clone(),
            dir.file(certificates::DIRECTORY),
            shutdown.clone(),
        ));
        tasks.spawn(follow_disk(
            state.clone(),
            self.disk,
            dir.file(SEEN_FILE),
            shutdown.clone(),
        ));
        let revision = state.journal.revision();
        let is_tls = tls.is_on();
        tracing::info!(%listen, is_tls, revision, "the control API listens");
        let message = format!("control started at journal revision {revision}");
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
            limits.anonymous,
            "limits of connections to the API"
        );
        tasks.spawn(count_connections(
            state.clone(),
            admission.clone(),
            shutdown.clone(),
        ));
        let serving = tokio::spawn(server::serve(
            listener,
            Arc::new(tls),
            api::router(state.clone()),
            admission,
            state.metrics.clone(),
            shutdown,
        ));
        admin.set_readiness(Readiness::Ready);
        Ok(RunningControl {
            state,
            serving: Some(serving),
            tasks,
            dir,
        })
    }

    async fn failed(running: &mut RunningControl) -> Failure {
        let Some(serving) = &mut running.serving else {
            return std::future::pending().await;
        };
        let ended = serving.await;
        running.serving = None;
        match ended {
            // Shutdown was requested.
            Ok(()) => std::future::pending().await,
            Err(error) => Failure::new(
                FailureKind::Internal,
                format!("the API's listener ended: {error}"),
            ),
        }
    }

    async fn drain(mut running: RunningControl, _: &mut Shutdown) {
        if let Some(serving) = running.serving.take() {
            let _ = serving.await;
        }
        while running.tasks.join_next().await.is_some() {}
        let state = running.state;
        state.save(&mut state.fleet_state(), true);
        // Events of the last moment wait in the queue too.
        let last = state.log.append(std::iter::empty());
        state.log.wait_written(last).await;
        drop(running.dir);
    }
}

impl StateInputs {
    /// Restores the state that earlier processes left, and puts the fleet file in force that changed
    /// last.
    pub(crate) fn restore(
        self,
        dir: &Dir,
        disk_text: String,
    ) -> Result<(State, SeriesFile), Failure> {
        let token = dir.token()?;
        let journal = SharedJournal::open(&dir.file("journal")).map_err(|e| journal_failure(&e))?;
        journal.heed_fleet_file(self.given.changed_unix_s);
        let history = History::read(&journal);
        if history.has_open_challenges {
            // Of orders that ended with an earlier process.
            let none = Change::Challenges(Challenges::default());
            journal
                .append_blocking(none, now_unix_ms(), |_| ())
                .map_err(|e| journal_failure(&e))?;
        }
        let newest = history.fleet_file.clone();
        let fleet_file = self.choose_fleet_file(dir, &journal, newest, disk_text)?;

        let in_force = self.fleet.borrow().clone();
        let (log, known, is_first) = StateLog::open(dir.file(STATE_LOG_FILE));
        let known = state_log::of_journal(known, journal.id(), journal.revision());
        let (mut fleet_state, events) = history.restore(&in_force, known, is_first);
        let series = SeriesFile::open(dir.file(SERIES_FILE), &mut fleet_state.series, now_unix_s());
        fleet_state.forget(&in_force);
        let policy = in_force.control.as_ref().and_then(|c| c.push.as_ref());
        let learned = std::fs::read(dir.file(POPULARITY_FILE)).ok();
        let popularity = LearnedPopularity::new(policy, learned.as_deref());
        let state = State::new(Parts {
            fleet: self.fleet,
            fleet_file,
            base: self.given.base.clone(),
            check: self.check,
            token,
            journal,
            fleet_state,
            popularity,
            log,
            events,
            shutdown: self.shutdown,
        });

        // Compaction drops entries whose outcome is in the state log, so that log is written first.
        state.log.rewrite(true, || state.all_records());
        state.journal.compact_blocking(now_unix_ms());
        Ok((state, series))
    }

    /// Puts the fleet file in force that changed last: the journal's `newest`, or the one on disk,
    /// which becomes a revision where it was edited.
    fn choose_fleet_file(
        &self,
        dir: &Dir,
        journal: &SharedJournal,
        newest: Option<(u64, String)>,
        disk_text: String,
    ) -> Result<FleetFile, Failure> {
        let seen_path = dir.file(SEEN_FILE);
        let seen = std::fs::read_to_string(&seen_path).ok();
        let in_force = fleet_file::choose(
            &disk_text,
            seen.as_deref(),
            newest.as_ref().map(|(_, text)| text.as_str()),
        );
        let is_unseen = seen.as_ref() != Some(&disk_text);
        let chosen = match (in_force, newest) {
            (InForce::Journal, Some((revision, text))) => {
                self.put_revision_in_force(revision, &text)?;
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
        if is_unseen {
            write_whole(&seen_path, disk_text.as_bytes()).map_err(|e| {
                let message = format!("cannot write {}: {e}", seen_path.display());
                Failure::new(FailureKind::Io, message)
            })?;
        }
        Ok(chosen)
    }

    fn put_revision_in_force(&self, revision: u64, text: &str) -> Result<(), Failure> {
        let given = &self.given;
        let journalled = fleet_file::parse(text, revision, &given.base, &given.node_key)?;
        // The listeners are open at the addresses of the file on disk.
        if journalled.control.as_ref() != Some(&self.control) {
            return Err(Failure::new(
                FailureKind::Usage,
                format!(
                    "revision {revision} of the fleet file in the journal has another [control] than the file on disk; edit the file on disk and it becomes a new revision"
                ),
            ));
        }
        self.fleet.send_replace(Arc::new(journalled));
        Ok(())
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

#[cfg(test)]
mod tests {
    use nearcast_fleet::change::DnsChallenge;
    use nearcast_fleet::testing::FleetText;
    use nearcast_net::shutdown;

    use super::*;

    fn no_more_mistakes(_: &Fleet, _: &str) -> Vec<nearcast_fleet::file::Mistake> {
        Vec::new()
    }

    /// Starts with a directory as a process does; gives the newest revision.
    fn restored(directory: &std::path::Path) -> u64 {
        let text = FleetText::new()
            .control("127.0.0.1:7700")
            .cluster("ams", &["192.0.2.1"]);
        let given = Arc::new(text.fleet());
        let inputs = StateInputs {
            control: given.control.clone().expect("it has one"),
            given: given.clone(),
            fleet: watch::channel(given).0,
            check: no_more_mistakes,
            shutdown: shutdown::channel().1,
        };
        let dir = Dir::open(directory).expect("a directory");
        let (state, _series) = inputs.restore(&dir, text.text()).expect("it starts");
        state.journal.revision()
    }

    #[tokio::test]
    async fn challenges_that_an_earlier_process_left_open_are_withdrawn() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control");
        drop(Dir::open(&path).expect("a directory"));
        let open = Change::Challenges(Challenges {
            dns: vec![DnsChallenge {
                host: "www.own.test".to_owned(),
                value: "value".to_owned(),
            }],
            http: Vec::new(),
        });
        let journal = SharedJournal::open(&path.join("journal")).expect("a journal");
        let entry = journal.append_blocking(open, 1, |_| ()).expect("space");
        drop(journal);

        let withdrawn = restored(&path);
        assert_eq!(withdrawn, entry.revision + 1);
        let journal = SharedJournal::open(&path.join("journal")).expect("a journal");
        let newest = journal.after_blocking(entry.revision, 9);
        assert_eq!(newest[0].change, Change::Challenges(Challenges::default()));
        drop(journal);
        // Once is enough.
        assert_eq!(restored(&path), withdrawn);
    }
}
