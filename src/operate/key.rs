//! `nearcast key`: a new key for a fleet, and the own keys of its nodes.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nearcast_fleet::config::{Fleet, Secret};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::{self, KeySource};
use nearcast_fleet::node_key::{self, OwnKey};
use nearcast_fleet::random::entropy;
use serde_json::json;

use super::print_json;
use crate::cli::KeyArgs;
use crate::{find, kernel};

/// Random bytes of a new key.
const NEW_KEY_BYTES: usize = 32;

/// Prints or writes what was asked for.
pub(crate) fn run(arguments: &KeyArgs) -> Result<(), Failure> {
    if arguments.new {
        return give(arguments, &new_key()?, json!({}));
    }
    let path = find::fleet_path(arguments.fleet.fleet.as_deref())?;
    let fleet = match &arguments.key_file {
        Some(key) => Fleet {
            node_key: file::read_key(key)?,
            ..file::load_with(&path, KeySource::Unneeded)?
        },
        None => file::load(&path)?,
    };
    let root = fleet.node_key.clone();
    if root.0.is_empty() || node_key::is_own(&root) {
        let message = "nodes' own keys are derived from the fleet's key, and this is none: run this where control or a name server runs, or name \
                       the file that holds it with --key-file";
        return Err(Failure::new(FailureKind::Usage, message));
    }
    match (&arguments.node, &arguments.dir) {
        (Some(node), _) => {
            let own = OwnKey::derive(&root, &fleet, node).ok_or_else(|| no_key(&fleet, node))?;
            give(
                arguments,
                &own.line(),
                json!({"node": own.node, "generation": own.generation}),
            )
        }
        (None, Some(dir)) => {
            let files = write_all(&root, &fleet, dir)?;
            if arguments.json {
                print_json(&json!({ "files": files }));
            } else {
                files.iter().for_each(|file| outln!("{file}"));
            }
            Ok(())
        }
        (None, None) => Err(Failure::new(
            FailureKind::Usage,
            "name a node, or --new, or --all with --dir",
        )),
    }
}

fn no_key(fleet: &Fleet, node: &str) -> Failure {
    let message = match fleet
        .control
        .as_ref()
        .is_some_and(|control| control.name == node)
    {
        true => format!(
            "{node} is the control role, which checks the keys of all nodes: give it the fleet's key"
        ),
        false => format!(
            "the fleet file has no node {node:?}; it has: {}",
            node_key::nodes(fleet).join(", ")
        ),
    };
    Failure::new(FailureKind::Usage, message)
}

/// A key that cannot be guessed, as a line of text.
///
/// # Errors
/// The system gives no random bytes.
pub(crate) fn new_key() -> Result<Secret, Failure> {
    let bytes =
        entropy::<NEW_KEY_BYTES>().map_err(|e| Failure::new(FailureKind::System, e.to_string()))?;
    Ok(Secret(
        bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    ))
}

/// Writes the key file of every node of the fleet below a directory; gives their paths.
///
/// # Errors
/// A directory or file cannot be made.
pub(crate) fn write_all(root: &Secret, fleet: &Fleet, dir: &Path) -> Result<Vec<String>, Failure> {
    let control = fleet.control.iter().map(|control| control.name.as_str());
    let mut files = Vec::new();
    for node in control.chain(node_key::nodes(fleet)) {
        let is_checker =
            !(fleet.edge(node).is_some() || fleet.origins.iter().any(|origin| origin.name == node));
        let own = OwnKey::derive(root, fleet, node).filter(|_| !is_checker);
        let of_node = dir.join(node);
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&of_node);
        made.map_err(|e| {
            Failure::new(
                FailureKind::CannotCreate,
                format!("cannot make {}: {e}", of_node.display()),
            )
        })?;
        let path = of_node.join("node.key");
        write(&path, &own.map_or_else(|| root.clone(), |own| own.line()))?;
        files.push(path.display().to_string());
    }
    Ok(files)
}

/// Prints a key, or writes it to the file that is asked for.
fn give(arguments: &KeyArgs, key: &Secret, about: serde_json::Value) -> Result<(), Failure> {
    let mut about = about;
    match &arguments.out {
        Some(path) => {
            write(path, key)?;
            about["file"] = json!(path.display().to_string());
        }
        None if arguments.json => about["key"] = json!(key.0),
        None => outln!("{}", key.0),
    }
    if arguments.json {
        print_json(&about);
    }
    Ok(())
}

/// Writes a key for its owner alone to read. What was there is replaced whole.
pub(crate) fn write(path: &Path, key: &Secret) -> Result<(), Failure> {
    let beside = path.with_extension("new");
    let of = path
        .parent()
        .filter(|of| !of.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // A node's directory is its user's, perhaps: whatever that user has put there is replaced,
    // never written through.
    let left = std::fs::remove_file(&beside).or_else(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            Ok(())
        } else {
            Err(e)
        }
    });
    let written = left
        .and_then(|()| {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&beside)
        })
        .and_then(|mut file| {
            if kernel::user_id() == 0 {
                // For the user to read whose the directory is.
                let owner = std::fs::metadata(of)?;
                std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
            }
            writeln!(file, "{}", key.0).and_then(|()| file.sync_all())
        })
        .and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|e| {
        Failure::new(
            FailureKind::CannotCreate,
            format!("cannot write {}: {e}", path.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn every_node_gets_the_key_that_it_may_hold() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = "[fleet]\nzone = \"cdn.test\"\nnode_keys = \"own\"\nnode_key_file = \"fleet.key\"\n[control]\n[[name_server]]\nname = \"ns1\"\n\
                    listen = \"127.0.0.1:5300\"\n[[cluster]]\nname = \"ams\"\nplace = { latitude = 1, longitude = 1 }\n[[cluster.node]]\n\
                    name = \"ams-1\"\naddress = \"192.0.2.1\"\n";
        let root = new_key().expect("random bytes");
        write(&dir.path().join("fleet.key"), &root).expect("written");
        let fleet = file::parse(text, dir.path()).expect("a good file");
        assert_eq!(fleet.node_key, root);
        let files = write_all(&root, &fleet, dir.path()).expect("written");
        assert_eq!(files.len(), 3);
        for (node, expected) in [
            ("control", root.clone()),
            ("ns1", root.clone()),
            (
                "ams-1",
                OwnKey::derive(&root, &fleet, "ams-1")
                    .expect("a node")
                    .line(),
            ),
        ] {
            let path = dir.path().join(node).join("node.key");
            assert_eq!(file::read_key(&path).expect("a key"), expected, "{node}");
            assert_eq!(
                std::fs::metadata(&path)
                    .expect("there")
                    .permissions()
                    .mode()
                    & 0o777,
                0o600
            );
        }
    }

    #[test]
    fn what_somebody_has_planted_is_replaced_and_not_written_through() {
        let directory = tempfile::tempdir().expect("a directory");
        let (key, elsewhere) = (
            directory.path().join("node.key"),
            directory.path().join("elsewhere"),
        );
        std::fs::write(&elsewhere, "mine").expect("it is ours");
        std::os::unix::fs::symlink(&elsewhere, directory.path().join("node.new")).expect("a link");
        std::os::unix::fs::symlink(&elsewhere, &key).expect("a link");
        write(&key, &Secret("a secret".into())).expect("it is written");
        assert_eq!(std::fs::read_to_string(&elsewhere).expect("there"), "mine");
        let about = std::fs::symlink_metadata(&key).expect("there");
        assert!(about.is_file() && about.permissions().mode() & 0o777 == 0o600);
        assert_eq!(std::fs::read_to_string(&key).expect("there"), "a secret\n");
    }
}
