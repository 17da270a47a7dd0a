//! The demo's directory: one demo at a time locks it, and removes it at its end.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nearcast_fleet::failure::{Failure, FailureKind};

use crate::find::LOCK_NAME;
use crate::kernel;
use crate::privileges::Account;

/// Attempts to lock a file that another demo, which is ending, removes.
const TRIES: usize = 5;

/// The directory, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct DemoDir {
    path: PathBuf,
    _lock: File,
}

impl DemoDir {
    /// Makes and locks the directory, empty of what an earlier demo has left. Refuses a directory
    /// of somebody else, one with other content, and one that a running demo holds.
    pub(super) fn take(path: &Path) -> Result<Self, Failure> {
        let cannot = |error: std::io::Error| {
            let (kind, hint) = match error.kind() {
                std::io::ErrorKind::StorageFull => (
                    FailureKind::Io,
                    "free some space, or choose another directory with --state-dir",
                ),
                _ => (
                    FailureKind::CannotCreate,
                    "choose another directory with --state-dir",
                ),
            };
            Failure::new(
                kind,
                format!(
                    "cannot use {} for the demo: {error}; {hint}",
                    path.display()
                ),
            )
        };
        for _ in 0..TRIES {
            make(path).map_err(cannot)?;
            let path = path.canonicalize().map_err(cannot)?;
            if !is_ours(&path).map_err(cannot)? {
                let message = format!(
                    "{} holds something that is not the demo's, or belongs to another user; choose another directory with --state-dir",
                    path.display()
                );
                return Err(Failure::new(FailureKind::CannotCreate, message));
            }
            let mut lock = open_lock(&path.join(LOCK_NAME)).map_err(cannot)?;
            if !kernel::try_lock(&lock).map_err(cannot)? {
                return Err(already_running(&mut lock));
            }
            if kernel::user_id() == 0 {
                // Nodes of an earlier demo of root have had it as their state directory; that user
                // is to change nothing in it now. Not before it is known that none of them runs.
                std::os::unix::fs::lchown(&path, Some(0), Some(0)).map_err(cannot)?;
            }
            if !is_same_file(&lock, &path.join(LOCK_NAME)) {
                continue;
            }
            empty(&path).map_err(cannot)?;
            let taken = lock
                .set_len(0)
                .and_then(|()| writeln!(lock, "{}", std::process::id()));
            let this = Self { path, _lock: lock };
            if let Err(error) = taken {
                // A full disk, most likely: an empty directory would stay for nothing.
                let _ = this.remove();
                return Err(cannot(error));
            }
            return Ok(this);
        }
        Err(Failure::new(
            FailureKind::Unavailable,
            format!("other demos come and go in {}; try again", path.display()),
        ))
    }

    /// Where it is, absolute.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it.
    pub(super) fn remove(self) -> std::io::Result<()> {
        fs::remove_dir_all(&self.path)
    }
}

fn make(path: &Path) -> std::io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Whether the directory is this user's and either empty or an earlier demo's.
fn is_ours(path: &Path) -> std::io::Result<bool> {
    let about = fs::symlink_metadata(path)?;
    let empty = fs::read_dir(path)?.next().is_none();
    // Nodes of root's demo run as another user, whose the directory is meanwhile.
    let is_own = about.uid() == kernel::user_id()
        || (kernel::user_id() == 0 && about.uid() == Account::default_of_system().uid);
    Ok(about.is_dir() && is_own && (empty || path.join(LOCK_NAME).is_file()))
}

fn open_lock(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Removes everything but the lock.
fn empty(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == LOCK_NAME {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

fn already_running(lock: &mut File) -> Failure {
    let mut text = String::new();
    let pid: Option<u32> = lock
        .take(32)
        .read_to_string(&mut text)
        .ok()
        .and_then(|_| text.trim().parse().ok());
    let who = pid.map_or_else(String::new, |pid| {
        format!(" (process {pid}; `kill {pid}` ends it)")
    });
    Failure::new(
        FailureKind::Unavailable,
        format!(
            "a demo is running already{who}: see {}",
            super::file::CONSOLE_URL
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_demo_at_a_time_and_nothing_stays() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("demo");
        let first = DemoDir::take(&path).expect("free");
        let refused = DemoDir::take(&path).expect_err("taken");
        assert_eq!(refused.kind, FailureKind::Unavailable);
        assert!(
            refused
                .message
                .contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        assert!(
            refused.message.contains("http://127.0.0.1:7700"),
            "{refused}"
        );
        fs::create_dir(path.join("logs")).expect("room");
        fs::write(path.join("logs/a.log"), "x").expect("room");
        drop(first);
        let second = DemoDir::take(&path).expect("free again");
        let left: Vec<_> = fs::read_dir(&path)
            .expect("there")
            .map(|e| e.expect("readable").file_name())
            .collect();
        assert_eq!(left, [LOCK_NAME], "what a killed demo left is gone");
        second.remove().expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_the_demos_is_left_alone() {
        let parent = tempfile::tempdir().expect("a directory");
        fs::write(parent.path().join("thesis.txt"), "years of work").expect("room");
        let refused = DemoDir::take(parent.path()).expect_err("not empty");
        assert_eq!(refused.kind, FailureKind::CannotCreate);
        assert!(parent.path().join("thesis.txt").exists());
        let nowhere = DemoDir::take(&parent.path().join("a/b")).expect_err("no parent");
        assert_eq!(nowhere.kind, FailureKind::CannotCreate);
    }
}
