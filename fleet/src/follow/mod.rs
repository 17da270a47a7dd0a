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
mod fleet_file;
mod follower;
mod position;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::copy::JournalCopy;
use self::fleet_file::start_with;
pub use self::follower::FollowState;
use self::follower::{Follower, hold};
pub use self::position::JournalAnswer;
use crate::change::Entry;
use crate::client::Client;
use crate::clock::now_unix_ms;
use crate::config::Fleet;
use crate::drains::Drains;
use crate::failure::{Failure, FailureKind};
use crate::file::FurtherCheck;
use crate::shutdown::Shutdown;

/// How long a node that cannot start waits for a revision with which it can.
const START_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a start waits for control.
const HEAR_WAIT_MAX: Duration = Duration::from_secs(2);

/// Entries on their way to the role.
const ENTRIES_WAITING_MAX: usize = 1024;

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
            tokio::task::spawn_blocking(move || JournalCopy::open(&path, now_unix_ms())).await;
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

#[cfg(test)]
mod tests;
