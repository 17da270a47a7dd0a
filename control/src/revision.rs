//! Fleet-file revisions: which one is in force at start, what cannot change while the fleet runs, and taking one on.

use std::path::Path;
use std::sync::Arc;
use std::sync::PoisonError;

use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file;
use nearcast_fleet::journal::Entry;

use crate::events::{Happening, Level};
use crate::state::{FleetFile, State, now_unix_ms};

/// Settings that differ and that running nodes cannot take on: sockets that are open, names of directories, the key that
/// nodes know one another by.
pub(crate) fn obstacles(before: &Fleet, after: &Fleet) -> Vec<String> {
    let mut found = Vec::new();
    let mut differ = |is_different: bool, what: &str| {
        if is_different {
            found.push(what.to_owned());
        }
    };
    differ(before.zone != after.zone, "fleet.zone");
    differ(before.state_dir != after.state_dir, "fleet.state_dir");
    differ(before.node_key != after.node_key, "fleet.node_key");
    let control = |f: &Fleet| f.control.as_ref().map(|c| (c.name.clone(), c.listen, c.url.clone(), c.admin));
    differ(control(before) != control(after), "control (name, listen, url, admin)");
    for old in before.clusters.iter().flat_map(|c| &c.nodes) {
        if let Some((_, new)) = after.edge(&old.name) {
            differ((&old.listen, &old.admin) != (&new.listen, &new.admin), &format!("listen and admin of {}", old.name));
        }
    }
    for old in &before.name_servers {
        if let Some(new) = after.name_servers.iter().find(|n| n.name == old.name) {
            differ((&old.listen, &old.admin) != (&new.listen, &new.admin), &format!("listen and admin of {}", old.name));
        }
    }
    for old in &before.origins {
        if let Some(new) = after.origins.iter().find(|o| o.name == old.name) {
            differ((&old.listen, &old.admin) != (&new.listen, &new.admin), &format!("listen and admin of {}", old.name));
        }
    }
    found
}

/// Takes on a revision that is in the journal.
pub(crate) fn apply(state: &State, fleet: Fleet, text: String, entry: &Entry) {
    *state.fleet_file.lock().unwrap_or_else(PoisonError::into_inner) = FleetFile { revision: entry.revision, text: Some(text) };
    state.fleet.send_replace(Arc::new(fleet));
    let message = format!("the fleet file has revision {}", entry.revision);
    state.events.add(now_unix_ms(), [Happening::new("fleet_file", Level::Info, message).revision(entry.revision)]);
}

/// What is in force at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AtStart {
    /// The file on disk, as it was given.
    Disk,
    /// The newest revision of the journal.
    Journal,
    /// The file on disk, which is to be a new revision.
    DiskAsRevision,
}

/// Whichever changed last is in force: the journal's newest revision, unless the file on disk has been edited since
/// control last started (`seen` is its text then).
pub(crate) fn at_start(disk: Option<&str>, seen: Option<&str>, newest: Option<&str>) -> AtStart {
    match (disk, newest) {
        (_, None) => AtStart::Disk,
        (None, Some(_)) => AtStart::Journal,
        (Some(disk), Some(newest)) if disk == newest || seen == Some(disk) => AtStart::Journal,
        (Some(_), Some(_)) => AtStart::DiskAsRevision,
    }
}

/// Reads a revision of the journal; one that no longer checks (an older version accepted it) is a failure that says so.
pub(crate) fn parse(text: &str, revision: u64, base: &Path) -> Result<Fleet, Failure> {
    file::parse(text, base).map_err(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(|m| format!("{}:{}: {}; {}", m.line, m.column, m.problem, m.mend)).collect();
        Failure::new(
            FailureKind::Usage,
            format!("revision {revision} of the fleet file in the journal does not check; edit the fleet file on disk and it becomes a new revision\n{}", lines.join("\n")),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whichever_changed_last_is_in_force() {
        let table = [
            // disk, seen at the last start, newest of the journal
            (Some("a"), None, None, AtStart::Disk),
            (None, None, None, AtStart::Disk),
            (Some("b"), Some("a"), None, AtStart::Disk),
            (Some("a"), Some("a"), Some("b"), AtStart::Journal),
            (Some("b"), Some("a"), Some("b"), AtStart::Journal),
            (Some("c"), Some("a"), Some("b"), AtStart::DiskAsRevision),
            (Some("c"), None, Some("b"), AtStart::DiskAsRevision),
            (None, Some("a"), Some("b"), AtStart::Journal),
        ];
        for (disk, seen, newest, expected) in table {
            assert_eq!(at_start(disk, seen, newest), expected, "{disk:?} {seen:?} {newest:?}");
        }
    }
}
