//! What shows that a file has changed since it was read.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What tells one state of a file from another without reading it. Compare one from before the file
/// was read with a later one: a change while it was read is then seen too.
///
/// The time of the last change of the inode is part of it: a file whose owner or permissions were
/// mended can be read now, although its content and its time of modification are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    modified: (i64, i64),
    changed: (i64, i64),
    bytes: u64,
    file: (u64, u64),
}

impl Stamp {
    /// The stamp of a file now, of the one to which a link leads; `None` where there is none.
    pub fn of(path: &Path) -> Option<Self> {
        Self::read(path).ok()
    }

    /// The same, with the reason where there is none.
    ///
    /// # Errors
    /// The file's metadata cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        let about = fs::metadata(path)?;
        Ok(Self {
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
            bytes: about.len(),
            file: (about.dev(), about.ino()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_stamp_shows_new_content_and_new_permissions_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let [path, link] = ["file", "link"].map(|name| dir.path().join(name));
        assert_eq!(Stamp::of(&path), None);
        fs::write(&path, "text").expect("written");
        let first = Stamp::of(&path);
        assert!(first.is_some());
        assert_eq!(fs::read(&path).expect("read"), b"text");
        assert_eq!(Stamp::of(&path), first);
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        assert_eq!(Stamp::of(&link), first);

        // A file system's clock may be coarse: repeated until the next tick of it.
        let changed_by = |change: &dyn Fn()| {
            let before = Stamp::of(&path);
            while Stamp::of(&path) == before {
                change();
            }
        };
        changed_by(&|| {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("permitted");
        });
        changed_by(&|| fs::write(&path, "texT").expect("written"));
        fs::remove_file(&path).expect("removed");
        assert_eq!(Stamp::of(&link), None);
    }
}
