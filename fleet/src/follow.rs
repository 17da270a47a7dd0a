//! Following the control journal from a node's own cursor.
//!
//! Owns the long poll to control, the node's copy of what it has folded, and the fleet value that
//! the other parts of the node watch. A node works without control; it then keeps the last it knew.
//!
//! **When control's journal is not the one that was followed** (its file was lost and begun anew,
//! or an older copy of it was restored), changes that were acknowledged are gone, and purges among
//! them may never have reached this node. What the node knows stays applied, and a purge of
//! everything is handed out at once, under a revision above all that were ever handed out; so
//! nothing stored before can be used. Then the new journal is followed from its start. Purges that
//! it already has are left out, as the purge of everything covers them; later entries keep their
//! revisions, or, should those be too low still, get the next higher ones, so that a role sees
//! every purge take effect.

mod copy;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::copy::{Copy, Position};
use crate::change::{Change, Entry, Purge, PurgeScope};
use crate::client::{Client, ClientError};
use crate::clock::unix_millis;
use crate::config::{Control, Fleet, Secret};
use crate::drains::Drains;
use crate::failure::{Failure, FailureKind};
use crate::file::{self, FurtherCheck, KeySource};
use crate::fold::fold;
use crate::framed::FramedError;
use crate::node_key;
use crate::shutdown::Shutdown;

/// How long control may hold a request for which it has nothing new.
const WAIT: Duration = Duration::from_secs(20);

/// How much longer than that an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Pauses between attempts while control is away: from the first to the last, doubling, a random
/// half taken off.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Failures in a row before one is told: with the pauses above, two seconds or a little more.
const FAILURES_TOLD: u32 = 5;

/// As much of a refusal's text is told.
const REASON_CHARS_MAX: usize = 400;

/// How long a node that cannot start waits for a revision with which it can.
const START_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a start waits for control.
const HEAR_WAIT_MAX: Duration = Duration::from_secs(2);

/// Entries on their way to the role.
const ENTRIES_WAITING_MAX: usize = 1024;

/// Entries that wait beside those while the role does not read yet: more than the 262,144 purges
/// that a folded journal keeps.
const ENTRIES_AHEAD_MAX: usize = 300_000;

/// Control's answer to `GET /v1/journal?after=N&wait_ms=M&node=NAME&journal=ID`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalAnswer {
    /// Identity of the journal, [`crate::journal::Journal::id`].
    pub journal: String,
    /// Revision of its newest entry.
    pub revision: u64,
    /// Entries after the one asked about, oldest first, at most 256; empty when the wait has passed
    /// without any.
    pub entries: Vec<Entry>,
}

/// What a role is given to run: its name, the fleet as it changes, and the journal's entries.
#[derive(Debug)]
pub struct NodeContext {
    /// Node name.
    pub name: String,
    /// The fleet; changes on SIGHUP and when the journal brings a new revision of the fleet file.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    /// Entries in order, first those this node already had at its last run (so that purges can be
    /// folded again), then new ones. Fleet-file entries are applied to `fleet` before they appear
    /// here. A role that has no use for entries drops this.
    pub entries: mpsc::Receiver<Entry>,
    /// How far the node is.
    pub state: watch::Receiver<FollowState>,
    /// To begin when the role's listeners are open; nothing comes before.
    pub following: Following,
    /// When to end.
    pub shutdown: Shutdown,
}

/// How far a node is in following the journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FollowState {
    /// Revision of the newest entry handed out.
    pub revision: u64,
    /// Whether the end of control's journal has been reached since this process started. Until then
    /// a stored response from an earlier run may be covered by a purge that is not known yet.
    pub caught_up: bool,
    /// Whether control answered when it was asked last, were it with a refusal.
    pub control_reachable: bool,
    /// Whether all that the node's own copy of the journal had was handed out.
    pub recalled: bool,
    /// Whether an exchange with control has ended since then, well or not.
    pub asked: bool,
}

/// Following the journal, ready to begin. The default follows nothing.
#[derive(Debug, Default)]
pub struct Following(Option<Prepared>, First);

/// What is done before it begins.
#[derive(Default)]
struct First(Option<Box<dyn FnOnce() -> Result<(), Failure> + Send>>);

impl std::fmt::Debug for First {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "First(..)"
        } else {
            "First"
        })
    }
}

#[derive(Debug)]
struct Prepared {
    name: String,
    state_dir: PathBuf,
    has_control: bool,
    fleet_tx: watch::Sender<Arc<Fleet>>,
    check: FurtherCheck,
    entries_tx: mpsc::Sender<Entry>,
    state_tx: watch::Sender<FollowState>,
    shutdown: Shutdown,
    /// Revision of the fleet file with which this node could not start.
    refused: Option<u64>,
}

/// Prepares what a role is given. Writes nothing: should a listener's port be in use, perhaps by a
/// process of this very node, the role can end as if nothing had been.
///
/// The newest fleet file that the journal has brought is in force when this returns, before the one
/// on this machine, whose node key it keeps; an edit of that one goes to a clone of `fleet_tx`. A
/// fleet file of the journal in which `check` finds mistakes, or that has no node of this name, is
/// told and changes nothing: the node starts with the file on this machine and follows control,
/// whose next revision may be a better one. It is not put in force by [`Following::begin`] either,
/// only handed out.
pub async fn prepare(
    name: String,
    fleet_tx: watch::Sender<Arc<Fleet>>,
    state_dir: PathBuf,
    check: FurtherCheck,
    shutdown: Shutdown,
) -> NodeContext {
    let has_control = fleet_tx.borrow().control.is_some();
    let path = copy_path(&state_dir);
    let newest = tokio::task::spawn_blocking(move || copy::fleet_file(&path)).await;
    let refused = match newest {
        Ok(Some(entry)) if !start_with(&entry, &name, &fleet_tx, check) => Some(entry.revision),
        _ => None,
    };
    let (entries_tx, entries) = mpsc::channel(ENTRIES_WAITING_MAX);
    let (state_tx, state) = watch::channel(FollowState {
        caught_up: !has_control,
        ..FollowState::default()
    });
    let (fleet, its_name, its_shutdown) = (fleet_tx.subscribe(), name.clone(), shutdown.clone());
    let prepared = Prepared {
        name,
        state_dir,
        has_control,
        fleet_tx,
        check,
        entries_tx,
        state_tx,
        shutdown,
        refused,
    };
    NodeContext {
        name: its_name,
        fleet,
        entries,
        state,
        following: Following(Some(prepared), First::default()),
        shutdown: its_shutdown,
    }
}

/// What a node of that directory knew as drained when it ended, so that it need not wait for its
/// journal to be folded again. Reads from disk.
pub async fn kept_drains(state_dir: &Path) -> Drains {
    let path = copy_path(state_dir);
    tokio::task::spawn_blocking(move || copy::drains(&path))
        .await
        .unwrap_or_default()
}

fn copy_path(state_dir: &Path) -> PathBuf {
    state_dir.join("journal.copy")
}

impl Following {
    /// The same, with work that is done once when it begins, so when the role's listeners are open,
    /// and whose failure is that of [`Self::begin`].
    pub fn after(self, work: impl FnOnce() -> Result<(), Failure> + Send + 'static) -> Self {
        Self(self.0, First(Some(Box::new(work))))
    }

    /// Begins: a task that ends with the role, which drops the state that it was given, after the
    /// shutdown was asked for. A role calls this when its listeners are open.
    ///
    /// The cursor and the entries that a restart needs are kept in the node's directory
    /// (`journal.copy`), fsynced before they are handed out (a full disk is logged, and what comes
    /// is handed out all the same). Without a control role in the fleet there are no entries, their
    /// channel is closed, and the node counts as caught up; should the fleet get one later, the
    /// node must be started again to follow it.
    ///
    /// A role that keeps `entries` must read them; one that has no use for them drops them. While
    /// it does not read yet, as at its start, as many as a journal has wait in memory, so that a
    /// revision that comes after them still reaches the fleet.
    ///
    /// # Errors
    /// The state directory cannot be made, or the copy in it cannot be read or written.
    pub async fn begin(self) -> Result<(), Failure> {
        if let First(Some(work)) = self.1 {
            work()?;
        }
        let Some(Prepared {
            name,
            state_dir,
            has_control,
            fleet_tx,
            check,
            entries_tx,
            state_tx,
            shutdown,
            refused,
        }) = self.0
        else {
            return Ok(());
        };
        let path = copy_path(&state_dir);
        // A node without control leaves no trace on disk, but heeds what an earlier run has left.
        if !has_control && !path.exists() {
            return Ok(());
        }
        let opened =
            tokio::task::spawn_blocking(move || Copy::open(&path, unix_millis(SystemTime::now())))
                .await;
        let opened = opened
            .map_err(std::io::Error::other)
            .and_then(|opened| opened);
        let (copy, kept) = opened.map_err(|error| unusable(&state_dir, &error))?;
        let position = copy.position.clone();
        let (ahead_tx, ahead) = mpsc::channel(ENTRIES_WAITING_MAX);
        tokio::spawn(hold(ahead, entries_tx));
        let follower = Follower {
            name,
            client: Client::new(),
            position,
            copy: Some(copy),
            unsaved: Vec::new(),
            fleet_tx,
            check,
            refused,
            entries_tx: ahead_tx,
            state_tx,
        };
        tokio::spawn(follower.run(kept, shutdown));
        Ok(())
    }
}

fn unusable(state_dir: &Path, error: &std::io::Error) -> Failure {
    let (kind, mend) = match error.kind() {
        std::io::ErrorKind::StorageFull => (FailureKind::Io, "free some space"),
        std::io::ErrorKind::InvalidData => (FailureKind::Io, "move what is there away"),
        _ => (FailureKind::CannotCreate, "make the directory writable"),
    };
    let message = format!(
        "cannot use {}: {error}; the node keeps its state there: {mend} or choose another one (fleet.state_dir, --state-dir)",
        state_dir.display()
    );
    Failure::new(kind, message)
}

struct Follower {
    name: String,
    client: Client,
    position: Position,
    /// Always there, except while it is being written.
    copy: Option<Copy>,
    /// Entries that could not be written to the copy yet. They hold all the same: a purge does not
    /// wait for disk space.
    unsaved: Vec<Entry>,
    fleet_tx: watch::Sender<Arc<Fleet>>,
    check: FurtherCheck,
    /// See [`Prepared::refused`].
    refused: Option<u64>,
    entries_tx: mpsc::Sender<Entry>,
    state_tx: watch::Sender<FollowState>,
}

/// Why an exchange with control brought nothing.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("{0}")]
    Away(#[from] ClientError),
    #[error("control answered with status {0}: {1}")]
    Status(u16, String),
    #[error("control's answer is not what it should be: {0}")]
    Answer(#[from] serde_json::Error),
}

impl FollowError {
    /// Whether control answered all the same.
    fn is_of_control(&self) -> bool {
        match self {
            Self::Away(error) => matches!(error, ClientError::TooLarge { .. }),
            Self::Status(..) | Self::Answer(_) => true,
        }
    }
}

impl Follower {
    async fn run(mut self, kept: Vec<Entry>, mut shutdown: Shutdown) {
        let state = self.state_tx.clone();
        // A node that drains still serves, and must know of purges for as long: the role ends by
        // dropping the state.
        let ended = async {
            shutdown.asked().await;
            state.closed().await;
        };
        tokio::select! {
            () = self.follow(kept) => {}
            () = ended => {}
        }
    }

    async fn follow(&mut self, kept: Vec<Entry>) {
        for entry in kept {
            // In force already, or the very one that this node cannot start with: the role may not
            // have started yet.
            if self.refused != Some(entry.revision)
                && self.fleet_tx.borrow().changed_unix_s != entry.accepted_unix_ms / 1000
            {
                apply_fleet_file(&entry, &self.fleet_tx, self.check);
            }
            self.hand_out(entry).await;
        }
        let given = self.position.given;
        self.state_tx.send_modify(|state| {
            (state.revision, state.recalled) = (state.revision.max(given), true)
        });
        let mut fleet = self.fleet_tx.subscribe();
        let mut failures = 0;
        loop {
            let now = fleet.borrow_and_update().clone();
            let Some(control) = &now.control else {
                self.state_tx.send_modify(|state| {
                    (state.caught_up, state.control_reachable) = (true, false)
                });
                if fleet.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let state = *self.state_tx.borrow();
            // Where the node does not know how it stands, control is to say so at once.
            let wait = if state.caught_up && failures == 0 && state.control_reachable {
                WAIT
            } else {
                Duration::ZERO
            };
            let asked = Instant::now();
            let key = node_key::shown_by(&now, &self.name).unwrap_or_else(|| Secret(String::new()));
            let outcome = tokio::select! {
                outcome = ask(&self.client, control, &key, &self.name, &self.position, wait) => outcome,
                // Control may be elsewhere now; the request is asked again there.
                _ = fleet.changed() => continue,
            };
            self.note(outcome.as_ref().err(), failures);
            match outcome {
                Ok(answer) => {
                    let is_empty = answer.entries.is_empty();
                    self.take(answer).await;
                    failures = 0;
                    // Control holds such an answer back; one that does not must not be asked
                    // without end.
                    let may_wait = wait > Duration::ZERO || !self.state_tx.borrow().caught_up;
                    if is_empty && may_wait && asked.elapsed() < PAUSES.0 {
                        tokio::time::sleep(PAUSES.0).await;
                    }
                }
                Err(_) => {
                    tokio::time::sleep(pause(failures, RandomState::new().hash_one(failures)))
                        .await;
                    failures += 1;
                }
            }
        }
    }

    /// Keeps what an answer brings, applies it and hands it out.
    async fn take(&mut self, answer: JournalAnswer) {
        let before = self.position.clone();
        let is_other = before
            .journal
            .as_ref()
            .is_some_and(|id| *id != answer.journal)
            || answer.revision < before.cursor;
        let (position, entries) = if is_other {
            tracing::error!(
                journal = answer.journal, revision = answer.revision, followed = ?before.journal, cursor = before.cursor,
                "control's journal is not the one that was followed: purging everything and following it from its start"
            );
            self.state_tx.send_modify(|state| state.caught_up = false);
            change_journal(&before, &answer, unix_millis(SystemTime::now()))
        } else {
            advance(&before, &answer)
        };
        if position != before {
            self.position = position;
            self.unsaved.extend(entries.iter().cloned());
            self.save().await;
        }
        for entry in entries {
            apply_fleet_file(&entry, &self.fleet_tx, self.check);
            self.hand_out(entry).await;
        }
        // After it was saved: that may have taken the position back.
        let is_caught_up = self.position.cursor >= answer.revision;
        self.state_tx
            .send_modify(|state| state.caught_up |= is_caught_up);
    }

    /// Writes the position and the entries that are not saved yet. What cannot be written is tried
    /// again with the next answer; after a restart before that, the node asks for it again, as its
    /// saved position is from before it.
    async fn save(&mut self) {
        let Some(mut copy) = self.copy.take() else {
            self.unsaved.clear();
            return;
        };
        let now = unix_millis(SystemTime::now());
        let (position, entries) = (
            self.position.clone(),
            fold(std::mem::take(&mut self.unsaved), now),
        );
        let written = tokio::task::spawn_blocking(move || {
            let outcome = copy.take(position, &entries, now);
            (copy, entries, outcome)
        });
        match written.await {
            Ok((copy, _, Ok(()))) => self.copy = Some(copy),
            Ok((copy, _, Err(FramedError::Damaged { .. }))) => {
                // As a start with a damaged copy: the journal has everything in it, and what is
                // handed out again changes nothing where it is in force already.
                self.position = copy.position.clone();
                self.copy = Some(copy);
                self.state_tx.send_modify(|state| state.caught_up = false);
            }
            Ok((copy, entries, Err(error))) => {
                tracing::error!(%error, entries = entries.len(), "the copy of the journal cannot be written; what came is in force, and will be asked for again after a restart");
                (self.copy, self.unsaved) = (Some(copy), entries);
            }
            Err(error) => {
                tracing::error!(%error, "the copy of the journal cannot be written any more")
            }
        }
    }

    async fn hand_out(&self, entry: Entry) {
        let revision = entry.revision;
        // An error means that the role has no use for entries.
        let _ = self.entries_tx.send(entry).await;
        self.state_tx
            .send_modify(|state| state.revision = state.revision.max(revision));
    }

    fn note(&self, error: Option<&FollowError>, failures: u32) {
        match error {
            // Control may start a moment after its nodes: that is nothing to warn of.
            Some(error) if failures == FAILURES_TOLD => {
                tracing::warn!(%error, "control's journal cannot be followed; trying again")
            }
            Some(error) => {
                tracing::debug!(%error, failures, "control's journal cannot be followed yet")
            }
            None if failures > FAILURES_TOLD => {
                tracing::info!(failures, "control's journal is followed again")
            }
            None => {}
        }
        // A control that refuses is there: only one that is away leaves a node to itself.
        let is_reachable = error.is_none_or(FollowError::is_of_control);
        self.state_tx.send_if_modified(|state| {
            let before = *state;
            (state.control_reachable, state.asked) = (is_reachable, true);
            *state != before
        });
    }
}

/// Asks control for what comes next.
async fn ask(
    client: &Client,
    control: &Control,
    key: &Secret,
    name: &str,
    at: &Position,
    wait: Duration,
) -> Result<JournalAnswer, FollowError> {
    let journal = at
        .journal
        .as_deref()
        .map_or_else(String::new, |id| format!("&journal={id}"));
    let url = format!(
        "{}/v1/journal?after={}&wait_ms={}&node={name}{journal}",
        control.url,
        at.cursor,
        wait.as_millis()
    );
    let response = client.get_with(&url, key, wait + ANSWER_TIME_MAX).await?;
    if !response.status().is_success() {
        // Control's reason names the mend.
        let reason = String::from_utf8_lossy(response.body())
            .chars()
            .take(REASON_CHARS_MAX)
            .collect();
        return Err(FollowError::Status(response.status().as_u16(), reason));
    }
    Ok(serde_json::from_slice(response.body())?)
}

/// The position after an answer of the journal that is followed, and what it brings.
fn advance(before: &Position, answer: &JournalAnswer) -> (Position, Vec<Entry>) {
    let mut position = Position {
        journal: Some(answer.journal.clone()),
        ..before.clone()
    };
    let mut entries = Vec::new();
    for entry in answer.entries.iter().filter(|e| e.revision > before.cursor) {
        position.cursor = entry.revision;
        let mut entry = entry.clone();
        if entry.revision > before.joined_at {
            entry.revision = entry.revision.max(position.given + 1);
            position.given = entry.revision;
        } else if matches!(entry.change, Change::Purge(_)) {
            continue;
        }
        entries.push(entry);
    }
    (position, entries)
}

/// The position at the start of another journal, and the purge of everything that goes with it.
fn change_journal(
    before: &Position,
    answer: &JournalAnswer,
    now_unix_ms: u64,
) -> (Position, Vec<Entry>) {
    let revision = answer.revision.max(before.given + 1);
    let change = Change::Purge(Purge {
        scope: PurgeScope::All,
        soft: false,
    });
    let position = Position {
        journal: Some(answer.journal.clone()),
        cursor: 0,
        given: revision,
        joined_at: answer.revision,
    };
    (
        position,
        vec![Entry {
            revision,
            accepted_unix_ms: now_unix_ms,
            change,
        }],
    )
}

/// Passes entries on in order, and keeps those that the role does not read yet, so that the
/// follower goes on.
async fn hold(mut from: mpsc::Receiver<Entry>, to: mpsc::Sender<Entry>) {
    let mut held = VecDeque::new();
    let mut may_come = true;
    while may_come || !held.is_empty() {
        tokio::select! {
            biased;
            place = to.reserve(), if !held.is_empty() => match (place, held.pop_front()) {
                (Ok(place), Some(entry)) => place.send(entry),
                // The role has no use for entries.
                _ => return,
            },
            entry = from.recv(), if may_come && held.len() < ENTRIES_AHEAD_MAX => match entry {
                Some(entry) => held.push_back(entry),
                None => may_come = false,
            },
        }
    }
}

/// Puts the newest fleet file of an earlier run in force, unless this node could not even start
/// with it: false then.
fn start_with(
    entry: &Entry,
    name: &str,
    fleet_tx: &watch::Sender<Arc<Fleet>>,
    check: FurtherCheck,
) -> bool {
    let here = fleet_tx.borrow().clone();
    let (kept, _) = watch::channel(Arc::clone(&here));
    apply_fleet_file(entry, &kept, check);
    let found = kept.borrow().clone();
    match (obstacle(&found, name), obstacle(&here, name)) {
        (Some(reason), None) => {
            tracing::error!(
                revision = entry.revision,
                reason,
                "this node cannot start with the fleet file that was in force; it starts with the one on this machine, and follows control"
            );
            false
        }
        _ => {
            fleet_tx.send_replace(found);
            true
        }
    }
}

/// Why a node could not even start with a fleet: it has no place in it, or what it must read is not
/// there.
fn obstacle(fleet: &Fleet, name: &str) -> Option<String> {
    if !fleet.has_node(name) {
        return Some(format!("it has no node named {name:?}"));
    }
    if let Some(origin) = fleet.origins.iter().find(|o| o.name == name) {
        return (!origin.root.is_dir())
            .then(|| format!("{} is no directory", origin.root.display()));
    }
    fleet.edge(name)?;
    let files = fleet.sites.iter().flat_map(|site| {
        let tls = &site.origin_policy.tls;
        tls.ca.iter().chain(
            tls.identity
                .iter()
                .flat_map(|(certificate, key)| [certificate, key]),
        )
    });
    files.into_iter().find_map(|path| {
        std::fs::File::open(path)
            .err()
            .map(|error| format!("cannot read {}: {error}", path.display()))
    })
}

/// Makes what a role cannot start without from the fleet in force. Should that fail, it is tried
/// with each further revision that control has, as a revision may have been what broke it. Follow
/// first, see [`Following::begin`].
///
/// # Errors
/// What `make` failed with last: at once in a fleet without control, else after ten seconds.
pub async fn start_from<T>(
    mut fleet: watch::Receiver<Arc<Fleet>>,
    mut shutdown: Shutdown,
    mut make: impl FnMut(&Arc<Fleet>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + START_WAIT_MAX;
    loop {
        let current = fleet.borrow_and_update().clone();
        let failure = match make(&current) {
            Err(failure) if current.control.is_some() => failure,
            outcome => return outcome,
        };
        tracing::error!(%failure, "this node cannot start like this; waiting a while for another revision of the fleet file");
        tokio::select! {
            changed = tokio::time::timeout_at(deadline, fleet.changed()) => match changed {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(failure),
            },
            () = shutdown.asked() => return Err(failure),
        }
    }
}

/// Waits until a node that knows no revision of the fleet file yet has heard from control whether
/// there is one: as long as a start may well be put off, and no longer.
pub async fn hear_control(mut state: watch::Receiver<FollowState>, mut shutdown: Shutdown) {
    // One that does not answer is not waited for longer: what an earlier run has kept is in force.
    let heard =
        state.wait_for(|state| state.caught_up || (state.asked && !state.control_reachable));
    tokio::select! {
        _ = tokio::time::timeout(HEAR_WAIT_MAX, heard) => {}
        () = shutdown.asked() => {}
    }
}

/// Puts the fleet of a fleet-file entry in force, but for the node key: that is of this machine,
/// and what the entry says of it may be older than the file here. One with mistakes (another
/// version accepted it, or a file that it names is not here) leaves the fleet as it is.
fn apply_fleet_file(entry: &Entry, fleet: &watch::Sender<Arc<Fleet>>, check: FurtherCheck) {
    let Change::FleetFile { text } = &entry.change else {
        return;
    };
    let (base, key) = {
        let now = fleet.borrow();
        (now.base.clone(), now.node_key.clone())
    };
    match file::parse_and_check_with(text, &base, KeySource::Given(&key), check) {
        Ok(fresh) => {
            let fresh = Fleet {
                changed_unix_s: entry.accepted_unix_ms / 1000,
                ..fresh
            };
            let is_new = fleet.send_if_modified(|now| {
                let is_new = **now != fresh;
                if is_new {
                    *now = Arc::new(fresh);
                }
                is_new
            });
            tracing::info!(
                revision = entry.revision,
                is_new,
                "the fleet file of the journal is in force"
            );
        }
        Err(mistakes) => {
            let mistakes = file::describe("fleet file", &mistakes);
            tracing::error!(
                revision = entry.revision,
                mistakes,
                "the fleet file of the journal cannot be used here; keeping the one before"
            );
        }
    }
}

/// The pause after that many failures in a row: the doubled first one up to the last, less a random
/// half.
fn pause(failures: u32, random: u64) -> Duration {
    let whole = PAUSES.0.saturating_mul(1 << failures.min(16)).min(PAUSES.1);
    whole / 2 + whole.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64 / 2.0)
}

#[cfg(test)]
mod tests;
