//! Fleet-file revisions: which one is in force, which settings cannot change while the fleet runs, and
//! how a new one is applied.

use std::path::Path;
use std::sync::Arc;

use nearcast_fleet::change::{Change, Entry};
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::{Fleet, Secret};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::{self, KeySource};

use crate::dir::write_whole;
use crate::error::ApiError;
use crate::event::{Level, NewEvent};
use crate::state::{FleetFile, State};

/// Changes in a fleet file that running nodes cannot apply.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Obstacles {
    /// Settings that a revision cannot change: nodes find control, their state and one another by
    /// them.
    pub(crate) fixed: Vec<String>,
    /// Nodes whose listeners change. They open the new ones at the next start.
    pub(crate) restarts: Vec<String>,
}

impl Obstacles {
    /// Why a revision is refused, and what to do instead; `None` when it is accepted. `may_restart`
    /// says that the sender will restart nodes.
    pub(crate) fn refusal(&self, may_restart: bool) -> Option<String> {
        if !self.fixed.is_empty() {
            return Some(format!(
                "this cannot change by a revision: {}; change it in the fleet file on control's machine and start control again, which \
                 makes the file a revision of its own; a changed state_dir, node key or [control] has to be in the files of the other \
                 machines as well: send their nodes SIGHUP, or start them again",
                self.fixed.join("; ")
            ));
        }
        if !self.restarts.is_empty() && !may_restart {
            return Some(format!(
                "listeners of {} change, which their running processes cannot apply; `nearcast apply --restart-needed FILE` accepts it, \
                 and the new listeners are opened when those nodes are started again",
                self.restarts.join(", ")
            ));
        }
        None
    }
}

/// The changes between two fleets that running nodes cannot apply.
pub(crate) fn obstacles(before: &Fleet, after: &Fleet) -> Obstacles {
    let mut fixed = Vec::new();
    let mut differ = |is_different: bool, what: &str| {
        if is_different {
            fixed.push(what.to_owned());
        }
    };
    differ(before.zone != after.zone, "fleet.zone");
    differ(before.state_dir != after.state_dir, "fleet.state_dir");
    differ(before.node_key != after.node_key, "fleet.node_key");
    let control = |f: &Fleet| {
        f.control
            .as_ref()
            .map(|c| (c.name.clone(), c.listen, c.url.clone(), c.admin))
    };
    differ(
        control(before) != control(after),
        "control (name, listen, url, admin)",
    );
    let mut restarts = Vec::new();
    for old in before.clusters.iter().flat_map(|c| &c.nodes) {
        if after
            .edge(&old.name)
            .is_some_and(|(_, new)| (&old.listen, &old.admin) != (&new.listen, &new.admin))
        {
            restarts.push(old.name.clone());
        }
    }
    for old in &before.name_servers {
        let new = after.name_servers.iter().find(|n| n.name == old.name);
        if new.is_some_and(|new| (&old.listen, &old.admin) != (&new.listen, &new.admin)) {
            restarts.push(old.name.clone());
        }
    }
    for old in &before.origins {
        let new = after.origins.iter().find(|o| o.name == old.name);
        if new.is_some_and(|new| {
            (&old.listen, &old.admin, &old.root) != (&new.listen, &new.admin, &new.root)
        }) {
            restarts.push(old.name.clone());
        }
    }
    Obstacles { fixed, restarts }
}

/// Makes a fleet file a revision and applies it, even when the request is cancelled meanwhile. The
/// caller holds the lock of fleet files.
///
/// # Errors
/// Those of [`SharedJournal::append`](crate::journal::SharedJournal::append). Nothing has changed then.
pub(crate) async fn accept(
    state: &Arc<State>,
    fleet: Fleet,
    text: String,
) -> Result<Entry, ApiError> {
    let change = Change::FleetFile { text: text.clone() };
    let accepting = state.clone();
    let entry = state
        .journal
        .append(change, now_unix_ms(), move |entry| {
            apply(&accepting, fleet, text, entry)
        })
        .await?;
    Ok(entry)
}

/// Applies a revision that the journal has accepted.
fn apply(state: &State, fleet: Fleet, text: String, entry: &Entry) {
    *state.fleet_file.lock() = FleetFile {
        revision: entry.revision,
        text,
    };
    state.fleet.send_replace(Arc::new(fleet));
    let message = format!("the fleet file has revision {}", entry.revision);
    state.events.add(
        now_unix_ms(),
        [NewEvent::new("fleet_file", Level::Info, message).revision(entry.revision)],
    );
}

/// Applies the fleet file on disk when it was edited since it was last read. Returns a message when
/// no revision of the journal announces the outcome.
///
/// # Errors
/// Why the file is not applied: mistakes in it, or changes that are impossible while the fleet runs.
pub(crate) async fn reload(
    state: &Arc<State>,
    text: String,
    seen_path: &Path,
) -> Result<Option<String>, String> {
    let _turn = state.fleet_files.lock().await;
    let seen = std::fs::read_to_string(seen_path).ok();
    let message = reload_text(state, &text, seen.as_deref()).await?;
    // Write it whatever the outcome, or the same text would count as an edit once another is in
    // force. A crash before this makes the same text a revision once more, which changes nothing.
    if seen.as_ref() != Some(&text) {
        write_whole(seen_path, text.as_bytes())
            .map_err(|e| format!("cannot write {}: {e}", seen_path.display()))?;
    }
    Ok(message)
}

async fn reload_text(
    state: &Arc<State>,
    text: &str,
    seen: Option<&str>,
) -> Result<Option<String>, String> {
    let current = state.fleet_file();
    let newest = (current.revision > 0).then_some(current.text.as_str());
    let in_force = choose(text, seen, newest);
    if in_force == InForce::Journal {
        return Ok(Some(format!(
            "the fleet file on disk has not changed; revision {} stays in force",
            current.revision
        )));
    }
    if text == current.text {
        return Ok(None);
    }
    let parsed = state
        .parse(text.to_owned())
        .await
        .map_err(|e| e.to_string())?;
    let fleet = parsed.map_err(|mistakes| file::describe("fleet file", &mistakes))?;
    let Obstacles {
        mut fixed,
        restarts,
    } = obstacles(&state.fleet(), &fleet);
    if !restarts.is_empty() {
        fixed.push(format!("listeners of {}", restarts.join(", ")));
    }
    if !fixed.is_empty() {
        return Err(format!(
            "this cannot change while the fleet runs: {}; start control again, which makes the file a revision, and then the nodes concerned",
            fixed.join("; ")
        ));
    }
    if in_force == InForce::DiskAsRevision {
        accept(state, fleet, text.to_owned())
            .await
            .map_err(|e| e.to_string())?;
    } else {
        *state.fleet_file.lock() = FleetFile {
            revision: 0,
            text: text.to_owned(),
        };
        state.fleet.send_replace(Arc::new(fleet));
    }
    Ok((in_force == InForce::Disk).then(|| "the fleet file on disk was read again".to_owned()))
}

/// Which fleet file is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InForce {
    /// The file on disk.
    Disk,
    /// The newest revision of the journal.
    Journal,
    /// The file on disk, which becomes a new revision.
    DiskAsRevision,
}

/// Chooses the fleet file that changed last: the journal's newest revision, unless the file on disk
/// was edited since control last read it (`seen` is its text then).
pub(crate) fn choose(disk: &str, seen: Option<&str>, newest: Option<&str>) -> InForce {
    match newest {
        None => InForce::Disk,
        Some(newest) if disk == newest || seen == Some(disk) => InForce::Journal,
        Some(_) => InForce::DiskAsRevision,
    }
}

/// Parses a revision of the journal with the key of this machine. A revision that an older version
/// accepted may have mistakes now, which is a failure.
pub(crate) fn parse(
    text: &str,
    revision: u64,
    base: &Path,
    key: &Secret,
) -> Result<Fleet, Failure> {
    file::parse_with(text, base, KeySource::Given(key)).map_err(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(|m| format!("{}:{}: {}; {}", m.line, m.column, m.problem, m.hint)).collect();
        Failure::new(
            FailureKind::Usage,
            format!("revision {revision} of the fleet file in the journal has mistakes; edit the fleet file on disk and it becomes a new revision\n{}", lines.join("\n")),
        )
    })
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::testing::{FleetText, fleet, fleet_at};

    use super::*;

    #[test]
    fn what_cannot_change_says_what_to_do() {
        let text = FleetText::new()
            .control("127.0.0.1:7700")
            .origin_node("files", "127.0.0.1:8000", "content")
            .name_server("ns1", "127.0.0.1:5300")
            .cluster("ams", &["127.0.10.1"])
            .text();
        for (old, new, fixed, restarts) in [
            ("cdn.test", "cdn.example", "fleet.zone", ""),
            ("a key that only", "another key that", "fleet.node_key", ""),
            (
                "[fleet]\n",
                "[fleet]\nstate_dir = \"/elsewhere\"\n",
                "fleet.state_dir",
                "",
            ),
            (
                "127.0.0.1:7700",
                "127.0.0.1:7701",
                "control (name, listen, url, admin)",
                "",
            ),
            ("127.0.0.1:8000", "127.0.0.1:8001", "", "files"),
            ("\"content\"", "\"other\"", "", "files"),
            ("127.0.0.1:5300", "127.0.0.1:5301", "", "ns1"),
            (
                "127.0.10.1\"",
                "127.0.10.1\"\nlisten = \"127.0.10.1:81\"",
                "",
                "ams-1",
            ),
            (
                "127.0.10.1\"",
                "127.0.10.1\"\nadmin = \"127.0.10.1:81\"",
                "",
                "ams-1",
            ),
            ("127.0.10.1\"", "127.0.10.1\"\nmemory = \"1GiB\"", "", ""),
        ] {
            let found = obstacles(&fleet(&text), &fleet(&text.replace(old, new)));
            assert_eq!(
                (found.fixed.join(","), found.restarts.join(",")),
                (fixed.to_owned(), restarts.to_owned()),
                "{new}"
            );
            let refused = found.refusal(false);
            assert_eq!(
                refused.is_some(),
                !(fixed.is_empty() && restarts.is_empty()),
                "{new}"
            );
            assert_eq!(found.refusal(true).is_some(), !fixed.is_empty(), "{new}");
            let words = if fixed.is_empty() {
                "--restart-needed"
            } else {
                "start control again"
            };
            assert!(
                refused.is_none_or(|refused| refused.contains(words)
                    && refused.contains(&format!("{fixed}{restarts}"))),
                "{new}"
            );
        }
    }

    #[tokio::test]
    async fn a_revision_is_taken_on_when_whoever_sent_it_has_gone() {
        use futures_util::FutureExt;
        let dir = tempfile::tempdir().unwrap();
        let text = |label: &str| {
            FleetText::new()
                .control("127.0.0.1:7700")
                .cluster_head("ams", &format!("label = \"{label}\""))
                .node("ams-1", "127.0.10.1", "")
                .text()
        };
        let fleet = |label: &str| fleet_at(&text(label), dir.path());
        let given = fleet("old");
        let control = given.control.clone().unwrap();
        let own_dir = crate::dir::Dir::open(&dir.path().join("control")).unwrap();
        let sender = tokio::sync::watch::channel(Arc::new(given.clone())).0;
        let (_trigger, shutdown) = nearcast_net::shutdown::channel();
        let inputs = crate::start::StateInputs {
            control,
            given: Arc::new(given),
            fleet: sender,
            check: |_, _| Vec::new(),
            shutdown,
        };
        let (state, _) = inputs.restore(&own_dir, text("old")).unwrap();
        let state = Arc::new(state);
        let disk = state.journal.hold();
        assert!(
            accept(&state, fleet("new"), text("new"))
                .now_or_never()
                .is_none(),
            "it waits for the disk, and is dropped"
        );
        drop(disk);
        let mut fleets = state.fleet.subscribe();
        let is_new = fleets.wait_for(|fleet| fleet.clusters[0].label == "new");
        assert!(
            tokio::time::timeout(std::time::Duration::from_secs(20), is_new)
                .await
                .is_ok()
        );
        assert_eq!(
            state.fleet_file(),
            FleetFile {
                revision: 1,
                text: text("new")
            }
        );
    }

    #[test]
    fn whichever_changed_last_is_in_force() {
        let table = [
            // disk, seen when it was last read, newest of the journal
            ("a", None, None, InForce::Disk),
            ("b", Some("a"), None, InForce::Disk),
            ("a", Some("a"), Some("b"), InForce::Journal),
            ("b", Some("a"), Some("b"), InForce::Journal),
            ("c", Some("a"), Some("b"), InForce::DiskAsRevision),
            ("c", None, Some("b"), InForce::DiskAsRevision),
        ];
        for (disk, seen, newest, expected) in table {
            assert_eq!(
                choose(disk, seen, newest),
                expected,
                "{disk:?} {seen:?} {newest:?}"
            );
        }
    }
}
