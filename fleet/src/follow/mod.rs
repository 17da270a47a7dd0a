//! Follows the control journal from the node's own cursor.
//!
//! Owns the long poll to control, the node's copy of the journal, and the fleet value that the
//! other parts of the node watch. A node works without control; it then keeps its last state.
//!
//! **When control's journal is another one than before** (its file was lost and begun anew, or an
//! older copy was restored), acknowledged changes are lost, and purges among them may never have
//! reached this node. The node keeps its state and immediately hands out a purge of everything,
//! with a revision above all earlier ones, so that no earlier stored response is used. Then it
//! follows the new journal from its start. It skips the purges that the new journal already has, as
//! the purge of everything covers them. Later entries keep their revisions, or get the next higher
//! ones if those are too low, so that every purge takes effect in the role.

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
use nearcast_net::shutdown::Shutdown;

/// How long a node that cannot start waits for a better revision of the fleet file.
const START_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a start waits for control.
const CONTROL_WAIT_MAX: Duration = Duration::from_secs(2);

/// Capacity of the channel of entries to the role.
const ENTRIES_WAITING_MAX: usize = 1024;

/// The environment of a running role: its name, the fleet as it changes, and the journal's entries.
#[derive(Debug)]
pub struct NodeContext {
    /// Node name.
    pub name: String,
    /// The fleet. Changes on SIGHUP and with a new revision of the fleet file in the journal.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    /// Entries in order: first those stored by the last run, so that purges are folded again, then
    /// new ones. A fleet-file entry is applied to `fleet` before it appears here. A role that does
    /// not use entries drops the receiver.
    pub entries: mpsc::Receiver<Entry>,
    /// Progress of the node.
    pub state: watch::Receiver<FollowState>,
    /// To begin when the role's listeners are open; no entries arrive before.
    pub following: Following,
    /// Requests the end of the role.
    pub shutdown: Shutdown,
}

/// A prepared follower. The default follows nothing.
#[derive(Debug, Default)]
pub struct Following(Option<Prepared>, BeforeStart);

/// Work to do before the follower begins.
#[derive(Default)]
struct BeforeStart(Option<Box<dyn FnOnce() -> Result<(), Failure> + Send>>);

impl std::fmt::Debug for BeforeStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "BeforeStart(..)"
        } else {
            "BeforeStart"
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
    /// Revision of a fleet file with which this node could not start.
    refused: Option<u64>,
}

/// Prepares the environment of a role. Writes nothing: when a listener's port is in use, perhaps by
/// a process of the same node, the role ends without a trace.
///
/// When this returns, the newest fleet file of the stored journal is in force, in place of the one
/// on this machine, whose node key stays; an edit of the latter goes to a clone of `fleet_tx`. A
/// fleet file in which `check` finds mistakes, or that has no node of this name, is logged and not
/// applied: the node starts with the file on this machine and follows control, whose next revision
/// may be better. [`Following::begin`] does not apply it either and only hands it out.
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
        following: Following(Some(prepared), BeforeStart::default()),
        shutdown: its_shutdown,
    }
}

/// The drains that a node stored in its directory, so that it need not wait until its journal is
/// folded again. Reads from disk.
pub async fn stored_drains(state_dir: &Path) -> Drains {
    let path = copy_path(state_dir);
    tokio::task::spawn_blocking(move || copy::drains(&path))
        .await
        .unwrap_or_default()
}

fn copy_path(state_dir: &Path) -> PathBuf {
    state_dir.join("journal.copy")
}

impl Following {
    /// Adds work that runs once when following begins, so when the role's listeners are open. Its
    /// failure becomes that of [`Self::begin`].
    pub fn after(self, work: impl FnOnce() -> Result<(), Failure> + Send + 'static) -> Self {
        Self(self.0, BeforeStart(Some(Box::new(work))))
    }

    /// Starts the follower's task. The task ends after the shutdown was requested and the role has
    /// dropped the state that it got. A role calls this when its listeners are open.
    ///
    /// The cursor and the entries that a restart needs are stored in the node's directory
    /// (`journal.copy`) and synced before they are handed out. A full disk is logged, and new
    /// entries are handed out nevertheless. In a fleet without control there are no entries, their
    /// channel is closed, and the node counts as caught up. If the fleet gets a control role later,
    /// the node must be restarted to follow it.
    ///
    /// A role that keeps `entries` must read them; one that does not use them drops them. Until it
    /// reads, as at its start, as many entries as a journal has wait in memory, so that a later
    /// revision of the fleet file still reaches the fleet.
    ///
    /// # Errors
    /// The state directory cannot be created, or the copy in it cannot be read or written.
    pub async fn begin(self) -> Result<(), Failure> {
        if let BeforeStart(Some(work)) = self.1 {
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
        // A node without control leaves no trace on disk, but uses the state of an earlier run.
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
            client: Client::following(fleet_tx.subscribe()),
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
    let (kind, hint) = match error.kind() {
        std::io::ErrorKind::StorageFull => (FailureKind::Io, "free some space"),
        std::io::ErrorKind::InvalidData => (FailureKind::Io, "move what is there away"),
        _ => (FailureKind::CannotCreate, "make the directory writable"),
    };
    let message = format!(
        "cannot use {}: {error}; the node keeps its state there: {hint} or choose another one (fleet.state_dir, --state-dir)",
        state_dir.display()
    );
    Failure::new(kind, message)
}

/// Builds a part without which a role cannot start from the fleet in force. After a failure it
/// tries again with each further revision from control, as a revision may have been the cause.
/// Follow first, see [`Following::begin`].
///
/// # Errors
/// The last failure of `make`: at once in a fleet without control, otherwise after ten seconds.
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
            () = shutdown.requested() => return Err(failure),
        }
    }
}

/// Waits until a node without a stored revision of the fleet file has learned from control whether
/// there is one, for a limited time.
pub async fn wait_for_control(mut state: watch::Receiver<FollowState>, mut shutdown: Shutdown) {
    // When control does not answer, the state of the earlier run is in force.
    let heard =
        state.wait_for(|state| state.caught_up || (state.asked && !state.control_reachable));
    tokio::select! {
        _ = tokio::time::timeout(CONTROL_WAIT_MAX, heard) => {}
        () = shutdown.requested() => {}
    }
}

#[cfg(test)]
mod tests;
