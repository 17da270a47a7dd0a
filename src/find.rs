//! Finding the fleet that an operator means, and the token that control wants.

use std::fs::File;
use std::path::{Path, PathBuf};

use nearcast_fleet::config::{Control, Fleet, Secret};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::{self, KeySource};

use crate::kernel;

/// Name of the fleet file where none is named.
pub(crate) const FILE_NAME: &str = "nearcast.toml";
/// Name of the file in the demo's directory that it keeps locked; it holds the demo's process id.
pub(crate) const LOCK_NAME: &str = "demo.lock";

/// The directory of this user's demo.
pub(crate) fn demo_dir() -> PathBuf {
    std::env::temp_dir().join(format!("nearcast-demo-{}", kernel::user_id()))
}

/// The fleet file to use: the one named (`--fleet`, `NEARCAST_FLEET`), the running demo's, `./nearcast.toml`.
pub(crate) fn fleet_path(named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    let demo = demo_dir();
    if is_locked(&demo.join(LOCK_NAME)) {
        return Ok(demo.join(FILE_NAME));
    }
    let here = PathBuf::from(FILE_NAME);
    if here.exists() {
        return Ok(here);
    }
    let message = "no fleet file: name one with --fleet FILE or NEARCAST_FLEET, run where nearcast.toml is, or start `nearcast demo`";
    Err(Failure::new(FailureKind::Usage, message))
}

/// The fleet that an operator means.
pub(crate) fn fleet(named: Option<&Path>) -> Result<Fleet, Failure> {
    // Operators show a token, and nodes' keys are not theirs to read.
    file::load_with(&fleet_path(named)?, KeySource::Unneeded)
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

/// The operator's token: the one given, else the one that control has written.
pub(crate) fn token(given: Option<String>, fleet: &Fleet) -> Result<Secret, Failure> {
    if let Some(token) = given {
        return Ok(Secret(token));
    }
    let path = fleet.node_dir(&control(fleet)?.name).join("token");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Secret(text.trim().to_owned())),
        Err(error) => {
            let kind = match error.kind() {
                std::io::ErrorKind::PermissionDenied => FailureKind::Refused,
                _ => FailureKind::NoInput,
            };
            let mend = "give it with --token or NEARCAST_TOKEN, or run this on control's machine as its user";
            Err(Failure::new(kind, format!("cannot read the operator's token in {}: {error}; {mend}", path.display())))
        }
    }
}

/// Whether some process holds the lock on that file.
fn is_locked(path: &Path) -> bool {
    File::open(path).and_then(|file| kernel::try_lock(&file)).is_ok_and(|taken| !taken)
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
