//! Fleet files that the journal brings: whether this node can start with one, and putting one in
//! force.

use std::sync::Arc;

use tokio::sync::watch;

use crate::change::{Change, Entry};
use crate::config::Fleet;
use crate::file::{self, FurtherCheck, KeySource};

/// Puts the newest fleet file of an earlier run in force, unless this node could not even start
/// with it: false then.
pub(super) fn start_with(
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

/// Puts the fleet of a fleet-file entry in force, but for the node key: that is of this machine,
/// and what the entry says of it may be older than the file here. One with mistakes (another
/// version accepted it, or a file that it names is not here) leaves the fleet as it is.
pub(super) fn apply_fleet_file(
    entry: &Entry,
    fleet: &watch::Sender<Arc<Fleet>>,
    check: FurtherCheck,
) {
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
