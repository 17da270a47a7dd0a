//! Control's directory, `<state_dir>/<control name>/`: a lock, the token, the journal, and saved
//! state.
//!
//! The directory has mode 0700 and the token 0600. The token is 32 random bytes in hexadecimal, made at
//! the first start. There is no default token.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nearcast_fleet::config::Secret;
use nearcast_fleet::failure::{Failure, FailureKind};

use crate::kernel;

/// Shorter tokens are refused.
const TOKEN_CHARS_MIN: usize = 32;

/// The opened and locked directory. The lock ends with this value.
#[derive(Debug)]
pub(crate) struct Dir {
    path: PathBuf,
    /// Held, never read.
    _lock: File,
}

impl Dir {
    /// Creates the directory when it is missing, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| cannot_create(path, &e))?;
        fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(|e| cannot_create(path, &e))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|e| cannot_create(&lock_path, &e))?;
        kernel::lock(&lock).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => Failure::new(
                FailureKind::Unavailable,
                format!(
                    "{} is in use by another control role; stop that one first",
                    path.display()
                ),
            ),
            _ => Failure::new(
                FailureKind::System,
                format!("cannot lock {}: {e}", lock_path.display()),
            ),
        })?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The operators' token, created when there is none.
    pub(crate) fn token(&self) -> Result<Secret, Failure> {
        let path = self.file("token");
        match fs::read_to_string(&path) {
            Ok(text) if text.trim().len() >= TOKEN_CHARS_MIN => {
                fs::set_permissions(&path, Permissions::from_mode(0o600))
                    .map_err(|e| cannot_create(&path, &e))?;
                Ok(Secret(text.trim().to_owned()))
            }
            Ok(_) => Err(Failure::new(
                FailureKind::BadData,
                format!(
                    "{} holds less than {TOKEN_CHARS_MIN} characters; delete it and a new token is made",
                    path.display()
                ),
            )),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let token = random_token().map_err(|e| {
                    Failure::new(FailureKind::System, format!("no random bytes: {e}"))
                })?;
                write_whole(&path, token.as_bytes()).map_err(|e| cannot_create(&path, &e))?;
                Ok(Secret(token))
            }
            Err(e) => Err(Failure::new(
                FailureKind::NoInput,
                format!("cannot read {}: {e}", path.display()),
            )),
        }
    }
}

/// Writes a file atomically: readers, also after a crash, see the old or the new content.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let written = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
    let outcome = written.and_then(|()| fs::rename(&new, path));
    if outcome.is_err() {
        // Half a file is useless, and the disk may be full.
        let _ = fs::remove_file(&new);
        return outcome;
    }
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn random_token() -> io::Result<String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

fn cannot_create(path: &Path, error: &io::Error) -> Failure {
    let (kind, hint) = match error.kind() {
        io::ErrorKind::StorageFull => (FailureKind::Io, "free some space or set state_dir"),
        _ => (
            FailureKind::CannotCreate,
            "make it writable or set state_dir",
        ),
    };
    Failure::new(
        kind,
        format!("cannot make {}: {error}; {hint}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_token_is_made_once_and_private() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("state/control");
        let dir = Dir::open(&path).unwrap();
        let token = dir.token().unwrap();
        assert_eq!(
            (token.0.len(), mode(&path), mode(&path.join("token"))),
            (64, 0o700, 0o600)
        );
        assert_eq!(dir.token().unwrap(), token, "the same at the next start");
        let other = Dir::open(&tmp.path().join("other"))
            .unwrap()
            .token()
            .unwrap();
        assert_ne!(other, token);
        fs::set_permissions(path.join("token"), Permissions::from_mode(0o644)).unwrap();
        dir.token().unwrap();
        assert_eq!(
            mode(&path.join("token")),
            0o600,
            "a readable token is made private"
        );
        fs::write(path.join("token"), "short\n").unwrap();
        assert_eq!(dir.token().unwrap_err().kind, FailureKind::BadData);
    }

    #[test]
    fn a_second_control_role_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let first = Dir::open(tmp.path()).unwrap();
        assert_eq!(
            Dir::open(tmp.path()).unwrap_err().kind,
            FailureKind::Unavailable
        );
        drop(first);
        Dir::open(tmp.path()).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let failure = Dir::open(Path::new("/proc/nearcast/control")).unwrap_err();
        assert_eq!(failure.kind, FailureKind::CannotCreate);
        assert!(
            failure.message.contains("/proc/nearcast/control"),
            "{failure}"
        );
    }
}
