//! What shows that a file has changed since it was read.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Time, size and number of a file, or that it is not there. Compare one from before the file was
/// read with a later one: a change while it was read is then seen too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp(Option<(i64, i64, u64, u64)>);

impl Stamp {
    /// The stamp of a file now.
    pub(crate) fn of(path: &Path) -> Self {
        let about = fs::metadata(path).ok();
        Self(about.map(|a| (a.mtime(), a.mtime_nsec(), a.len(), a.ino())))
    }
}
