//! Following the control journal from a node's own cursor.
//!
//! Owns the long poll to control, the node's copy of what it has folded, and the fleet value that the other
//! parts of the node watch. A node works without control; it then keeps the last it knew.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::config::Fleet;
use crate::journal::Entry;
use crate::shutdown::Shutdown;

/// What a role is given to run: its name, the fleet as it changes, and the journal's entries.
#[derive(Debug)]
pub struct NodeContext {
    /// Node name.
    pub name: String,
    /// The fleet; changes on SIGHUP and when the journal brings a new revision of the fleet file.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    /// Entries in order, first those this node already had at its last run (so that purges can be folded
    /// again), then new ones. Fleet-file entries are applied to `fleet` before they appear here. A role that
    /// has no use for entries drops this.
    pub entries: mpsc::Receiver<Entry>,
    /// How far the node is.
    pub state: watch::Receiver<FollowState>,
    /// When to end.
    pub shutdown: Shutdown,
}

/// How far a node is in following the journal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FollowState {
    /// Revision of the newest entry handed out.
    pub revision: u64,
    /// Whether the end of control's journal has been reached since this process started. Until then a
    /// stored response from an earlier run may be covered by a purge that is not known yet.
    pub caught_up: bool,
    /// Whether the last exchange with control succeeded.
    pub control_reachable: bool,
}

/// Starts following for one node: a task that ends with `shutdown`.
///
/// The cursor and the entries that a restart needs are kept in `state_dir` (`journal.copy`), fsynced before
/// they are handed out. Without a control role in the fleet the context has no entries and counts as caught up.
pub async fn start(
    name: String,
    fleet_tx: watch::Sender<Arc<Fleet>>,
    state_dir: PathBuf,
    shutdown: Shutdown,
) -> std::io::Result<NodeContext> {
    let _ = (name, fleet_tx, state_dir, shutdown);
    unreachable!()
}
