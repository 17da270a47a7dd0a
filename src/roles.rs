//! One node of the fleet: from arguments to the role's `run`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nearcast_fleet::config::{CachePolicy, Fleet};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::follow::{self, NodeContext};
use nearcast_fleet::{file, shutdown};
use tokio::signal::unix::SignalKind;
use tokio::sync::watch;

use crate::cli::{EdgeArgs, GslbDnsArgs, NodeArgs, OriginArgs};
use crate::operate::check;
use crate::{find, kernel, signals};

/// `nearcast gslb-dns`.
pub(crate) async fn gslb_dns(arguments: GslbDnsArgs, with_parent: bool) -> Result<(), Failure> {
    kernel::raise_open_files();
    let path = find::fleet_path(arguments.node.fleet.fleet.as_deref())?;
    let fleet = check::load(&path)?;
    let name = choose(arguments.node.node, "[[name_server]]", fleet.name_servers.iter().map(|n| n.name.as_str()))?;
    let context = context(name, fleet, Some(path), check::record_faults, with_parent).await?;
    nearcast_gslb_dns::run(context).await
}

/// `nearcast edge`.
pub(crate) async fn edge(arguments: EdgeArgs, with_parent: bool) -> Result<(), Failure> {
    kernel::raise_open_files();
    let EdgeArgs { node, listen, origin, default_ttl, forward_fields, key_fields, memory, disk, state_dir } = arguments;
    let context = match origin {
        Some(origin) => {
            let state_dir = match state_dir {
                Some(named) => named,
                None => own_state_dir(listen.first(), disk.0 > 0)?,
            };
            let lower = |names: Vec<String>| names.iter().map(|name| name.to_ascii_lowercase()).collect();
            let cache =
                CachePolicy { default_ttl, forward_fields: lower(forward_fields), key_fields: lower(key_fields), ..CachePolicy::default() };
            let fleet = file::standalone_edge(listen, &origin, state_dir, memory, disk, cache)?;
            context("edge".to_owned(), fleet, None, no_check, with_parent).await?
        }
        None => {
            let path = find::fleet_path(node.fleet.fleet.as_deref()).map_err(|f| or_without(f, "--listen ADDR:PORT --origin URL"))?;
            let fleet = file::load(&path)?;
            let names = fleet.clusters.iter().flat_map(|c| c.nodes.iter().map(|n| n.name.as_str()));
            let name = choose(node.node, "[[cluster.node]]", names)?;
            context(name, fleet, Some(path), no_check, with_parent).await?
        }
    };
    nearcast_edge::run(context).await
}

/// `nearcast origin`.
pub(crate) async fn origin(arguments: OriginArgs, with_parent: bool) -> Result<(), Failure> {
    kernel::raise_open_files();
    let OriginArgs { node, root, listen, demo_content } = arguments;
    let (fleet, name, path) = match (root, listen) {
        (Some(root), Some(listen)) => {
            if demo_content {
                write_demo_content(&root)?;
            }
            (file::standalone_origin(root, listen)?, "origin".to_owned(), None)
        }
        _ => {
            let path = find::fleet_path(node.fleet.fleet.as_deref()).map_err(|f| or_without(f, "--root DIR --listen ADDR:PORT"))?;
            let fleet = file::load(&path)?;
            let name = choose(node.node, "[[origin_node]]", fleet.origins.iter().map(|n| n.name.as_str()))?;
            if let Some(origin) = fleet.origins.iter().find(|o| o.name == name).filter(|_| demo_content) {
                write_demo_content(&origin.root)?;
            }
            (fleet, name, Some(path))
        }
    };
    let context = context(name, fleet, path, no_check, with_parent).await?;
    nearcast_origin::run(context).await
}

/// `nearcast control`.
pub(crate) async fn control(arguments: NodeArgs, with_parent: bool) -> Result<(), Failure> {
    kernel::raise_open_files();
    let path = find::fleet_path(arguments.fleet.fleet.as_deref())?;
    let fleet = check::load(&path)?;
    choose(arguments.node, "[control]", std::iter::once(find::control(&fleet)?.name.as_str()))?;
    let (fleet_tx, _) = watch::channel(Arc::new(fleet));
    let (trigger, shutdown) = shutdown::channel();
    signals::end_on(trigger, with_parent)?;
    let (disk_tx, disk) = watch::channel(file::read(&path)?);
    let mut hangup = signals::listen(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match file::read(&path) {
                Ok(text) => drop(disk_tx.send_replace(text)),
                Err(failure) => tracing::error!(%failure, "SIGHUP: the fleet file stays as it was"),
            }
        }
    });
    nearcast_control::run(fleet_tx, disk, check::record_faults, shutdown).await
}

/// For roles that serve no zones: a fault in one does not keep them from a new fleet file.
fn no_check(_: &Fleet, _: &str) -> Vec<file::Mistake> {
    Vec::new()
}

/// What every role but control is given. `check` has a say in what the journal brings.
async fn context(
    name: String,
    fleet: Fleet,
    path: Option<PathBuf>,
    check: file::FurtherCheck,
    with_parent: bool,
) -> Result<NodeContext, Failure> {
    let state_dir = fleet.node_dir(&name);
    let (fleet_tx, _) = watch::channel(Arc::new(fleet));
    let (trigger, shutdown) = shutdown::channel();
    signals::end_on(trigger, with_parent)?;
    reload_on_hangup(fleet_tx.clone(), path)?;
    Ok(follow::prepare(name, fleet_tx, state_dir, check, shutdown).await)
}

/// Adds that the role works without a fleet file too.
fn or_without(failure: Failure, arguments: &str) -> Failure {
    Failure { message: format!("{}; without a fleet file: {arguments}", failure.message), ..failure }
}

/// The node that is meant: the one named, or the only one of its role.
fn choose<'f>(asked: Option<String>, kind: &str, names: impl Iterator<Item = &'f str>) -> Result<String, Failure> {
    let names: Vec<&str> = names.collect();
    let message = match asked {
        Some(name) if names.contains(&name.as_str()) => return Ok(name),
        None if names.len() == 1 => return Ok(names[0].to_owned()),
        _ if names.is_empty() => format!("the fleet file has no {kind}; add one to run this role"),
        Some(name) => format!("the fleet file has no {kind} named {name:?}; it has: {}", names.join(", ")),
        None => format!("which node is this? Say --node NAME; the fleet file has: {}", names.join(", ")),
    };
    Err(Failure::new(FailureKind::Usage, message))
}

/// State of an edge without a fleet file: by the port, so that two of them do not meet.
fn own_state_dir(listen: Option<&SocketAddr>, is_needed: bool) -> Result<PathBuf, Failure> {
    let port = listen.map_or(0, SocketAddr::port);
    let path = std::env::temp_dir().join(format!("nearcast-edge-{}-{port}", kernel::user_id()));
    if is_needed {
        make_own(&path)?;
    }
    Ok(path)
}

/// Makes a directory where everybody can make one. What somebody else has put there under that name is not used.
fn make_own(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    let is_own = || std::fs::symlink_metadata(path).is_ok_and(|about| about.is_dir() && about.uid() == kernel::user_id());
    match made {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && is_own() => Ok(()),
        Err(error) => {
            let message = format!(
                "cannot use {} as the state directory: {error}, and it is not this user's own; name another with --state-dir",
                path.display()
            );
            Err(Failure::new(FailureKind::CannotCreate, message))
        }
    }
}

/// Reads the fleet file again at each SIGHUP. A file with mistakes changes nothing and is logged. Neither does one that
/// was not edited: the fleet may have a newer revision by now, from the journal.
fn reload_on_hangup(fleet_tx: watch::Sender<Arc<Fleet>>, path: Option<PathBuf>) -> Result<(), Failure> {
    let mut hangup = signals::listen(SignalKind::hangup())?;
    let mut seen = fleet_tx.borrow().clone();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let Some(path) = &path else {
                tracing::warn!("SIGHUP: this node has no fleet file to read again");
                continue;
            };
            match file::load(path) {
                Ok(fleet) if fleet == *seen => tracing::info!(path = %path.display(), "SIGHUP: the fleet file has not changed"),
                Ok(fleet) => {
                    tracing::info!(path = %path.display(), "SIGHUP: the fleet file was read again");
                    seen = Arc::new(fleet);
                    fleet_tx.send_replace(seen.clone());
                }
                Err(failure) => tracing::error!(%failure, "SIGHUP: the fleet file stays as it was"),
            }
        }
    });
    Ok(())
}

fn write_demo_content(root: &Path) -> Result<(), Failure> {
    nearcast_origin::demo::write(root).map_err(|error| {
        let kind = if error.kind() == std::io::ErrorKind::StorageFull { FailureKind::Io } else { FailureKind::CannotCreate };
        Failure::new(kind, format!("cannot write the demo's content to {}: {error}", root.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_that_somebody_planted_is_not_used() {
        let directory = tempfile::tempdir().expect("a directory");
        let own = directory.path().join("own");
        make_own(&own).expect("it is made");
        make_own(&own).expect("it is there already, and ours");
        let (link, file) = (directory.path().join("link"), directory.path().join("file"));
        std::os::unix::fs::symlink(&own, &link).expect("a link");
        std::fs::write(&file, "").expect("a file");
        for planted in [link, file] {
            let refused = make_own(&planted).expect_err("it is not a directory of ours");
            assert_eq!(refused.kind.exit_code(), 73);
            assert!(refused.message.contains("--state-dir"), "{refused}");
        }
    }

    #[test]
    fn the_only_node_needs_no_name() {
        type Row<'a> = (Option<&'a str>, &'a [&'a str], Result<&'a str, &'a str>);
        let table: [Row<'_>; 6] = [
            (None, &["ns1"], Ok("ns1")),
            (Some("ns1"), &["ns1"], Ok("ns1")),
            (Some("b"), &["a", "b"], Ok("b")),
            (None, &["a", "b"], Err("a, b")),
            (Some("nobody"), &["a", "b"], Err("\"nobody\"")),
            (None, &[], Err("has no [[x]]")),
        ];
        for (asked, names, expected) in table {
            let found = choose(asked.map(str::to_owned), "[[x]]", names.iter().copied());
            match (found, expected) {
                (Ok(name), Ok(wanted)) => assert_eq!(name, wanted),
                (Err(failure), Err(words)) => assert!(failure.message.contains(words), "{failure}"),
                other => panic!("{asked:?} of {names:?}: {other:?}"),
            }
        }
    }
}
