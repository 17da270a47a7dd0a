//! Finds the fleet file of a command, and the operator's token.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use nearcast_fleet::config::{Control, Fleet, Secret};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::{self, KeySource};

use crate::cli::{AskArgs, CaArg};
use crate::kernel;

/// Default name of the fleet file.
pub(crate) const FILE_NAME: &str = "nearcast.toml";
/// Name of the file in the demo's directory that the demo locks; it contains the demo's process id.
pub(crate) const LOCK_NAME: &str = "demo.lock";

/// Bytes of a token that are read.
const TOKEN_BYTES_MAX: u64 = 4096;

/// The directory of this user's demo.
pub(crate) fn demo_dir() -> PathBuf {
    std::env::temp_dir().join(format!("nearcast-demo-{}", kernel::user_id()))
}

/// The running demo's fleet file.
fn demo_fleet_path() -> Option<PathBuf> {
    let demo = demo_dir();
    is_locked(&demo.join(LOCK_NAME)).then(|| demo.join(FILE_NAME))
}

/// The fleet file to use: `--fleet` or `NEARCAST_FLEET`, else the running demo's, else
/// `./nearcast.toml`.
pub(crate) fn fleet_path(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    if let Some(demo) = demo_fleet_path() {
        return Ok(demo);
    }
    let here = PathBuf::from(FILE_NAME);
    if here.exists() {
        return Ok(here);
    }
    let message = "no fleet file: name one with --fleet FILE or NEARCAST_FLEET, run where nearcast.toml is, or start `nearcast demo`";
    Err(Failure::new(FailureKind::Usage, message))
}

/// Loads the fleet file of an operator's command.
pub(crate) fn fleet(named: Option<&Path>) -> Result<Fleet, Failure> {
    // Operators authenticate with a token, and may not be able to read a node's key.
    file::load_with(&fleet_path(named)?, KeySource::Unneeded)
}

/// Loads the fleet file of a command that asks its nodes.
pub(crate) fn fleet_to_ask(arguments: &AskArgs) -> Result<Fleet, Failure> {
    let fleet = fleet(arguments.fleet.fleet.as_deref())?;
    Ok(trusting(fleet, &arguments.ca))
}

/// A fleet whose `https` URLs are verified by the authority that the command names, where it does.
pub(crate) fn trusting(mut fleet: Fleet, named: &CaArg) -> Fleet {
    if let Some(ca) = &named.ca {
        fleet.ca = Some(ca.clone());
    }
    fleet
}

/// The fleet's control role.
pub(crate) fn control(fleet: &Fleet) -> Result<&Control, Failure> {
    fleet.control.as_ref().ok_or_else(|| {
        Failure::new(
            FailureKind::Usage,
            "the fleet file has no [control]: without that role there are no purges, pushes and reports; add it",
        )
    })
}

/// The operator's token: the one given, else the one that control has written to the state directory
/// of the fleet file. A copy of a fleet file may have a relative `state_dir`, which is then another
/// directory; so the running demo's fleet file and `./nearcast.toml` are tried too, where their
/// control has the same URL.
pub(crate) fn token(given: Option<String>, fleet: &Fleet) -> Result<Secret, Failure> {
    if let Some(token) = given {
        return Ok(Secret(token));
    }
    let own = token_path(fleet)?;
    let mut tried = vec![own.clone()];
    let refused = match read_token(&own) {
        Ok(token) => return Ok(token),
        Err(error) => error,
    };
    let others = [
        demo_fleet_path(),
        Some(PathBuf::from(FILE_NAME)).filter(|here| here.exists()),
    ];
    for path in others.into_iter().flatten() {
        // The token's place needs no key, and the user may not be able to read one.
        let Ok(other) = file::load_with(&path, KeySource::Unneeded) else {
            continue;
        };
        let is_same =
            other.control.as_ref().map(|c| &c.url) == fleet.control.as_ref().map(|c| &c.url);
        let Ok(path) = token_path(&other) else {
            continue;
        };
        if !is_same || tried.contains(&path) {
            continue;
        }
        if let Ok(token) = read_token(&path) {
            return Ok(token);
        }
        tried.push(path);
    }
    Err(no_token(&tried, &refused))
}

/// The path of the file in which control keeps the operators' token.
fn token_path(fleet: &Fleet) -> Result<PathBuf, Failure> {
    Ok(fleet.node_dir(&control(fleet)?.name).join("token"))
}

fn read_token(path: &Path) -> std::io::Result<Secret> {
    let mut text = String::new();
    File::open(path)?
        .take(TOKEN_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(Secret(text.trim().to_owned()))
}

fn no_token(tried: &[PathBuf], error: &std::io::Error) -> Failure {
    let (kind, hint) = match error.kind() {
        std::io::ErrorKind::PermissionDenied => (
            FailureKind::Refused,
            "run this as root or as control's user, or give the token with --token or NEARCAST_TOKEN",
        ),
        _ => (
            FailureKind::NoInput,
            "run this on control's machine with the fleet file that control was started with (a relative state_dir is beside the file), \
             or give the token with --token or NEARCAST_TOKEN",
        ),
    };
    let places: Vec<String> = tried
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Failure::new(
        kind,
        format!(
            "cannot read the operator's token in {}: {error}; {hint}",
            places.join(" or ")
        ),
    )
}

/// Whether a process holds the lock on that file.
fn is_locked(path: &Path) -> bool {
    File::open(path)
        .and_then(|file| kernel::try_lock(&file))
        .is_ok_and(|taken| !taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_seen_while_its_file_is_open() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(LOCK_NAME);
        assert!(!is_locked(&path), "no such file");
        let file = File::create(&path).expect("a file");
        assert!(!is_locked(&path), "nobody holds it");
        assert!(kernel::try_lock(&file).expect("lockable"));
        assert!(is_locked(&path));
        drop(file);
        assert!(!is_locked(&path));
    }
}
