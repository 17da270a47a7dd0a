//! The fleet file: from text to a checked [`Fleet`], or to every mistake in it at once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Fleet;
use crate::failure::Failure;
use crate::units::Bytes;

/// One mistake in a fleet file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// What is wrong, with the dotted path of the setting (`cluster[1].node[0].listen: ...`).
    pub problem: String,
    /// What to write instead.
    pub mend: String,
}

/// Parses and checks a fleet file's text. Relative paths in it are taken from `base`.
///
/// # Errors
/// Every mistake found, in file order, at least one.
pub fn parse(text: &str, base: &Path) -> Result<Fleet, Vec<Mistake>> {
    let _ = (text, base);
    Err(Vec::new())
}

/// Reads, parses and checks a fleet file.
///
/// # Errors
/// [`crate::failure::FailureKind::NoInput`] when it cannot be read; `Usage` with every mistake, one a line as
/// `FILE:LINE:COLUMN: PROBLEM; MEND`.
pub fn load(path: &Path) -> Result<Fleet, Failure> {
    let _ = path;
    unreachable!()
}

/// The fleet of one edge without a fleet file: node `edge` in cluster `local`, one site `site` for any host, no
/// control, no admin listener, the client's `Host` passed on to the origin, no node key. `disk` of 0 keeps nothing on
/// disk; `default_ttl` is the site's lifetime for responses without freshness information.
///
/// # Errors
/// [`crate::failure::FailureKind::Usage`] when `origin` is not `http://host[:port]` or `https://host[:port]`, or
/// nothing is listened on.
pub fn standalone_edge(
    listen: Vec<SocketAddr>,
    origin: &str,
    state_dir: PathBuf,
    memory: Bytes,
    disk: Bytes,
    default_ttl: Option<Duration>,
) -> Result<Fleet, Failure> {
    let _ = (listen, origin, state_dir, memory, disk, default_ttl);
    unreachable!()
}

/// The fleet of one origin node without a fleet file: node `origin` that serves the directory `root` on `listen`, no
/// control, no admin listener, built-in cache rules alone.
///
/// # Errors
/// [`crate::failure::FailureKind::NoInput`] when `root` is no directory.
pub fn standalone_origin(root: PathBuf, listen: SocketAddr) -> Result<Fleet, Failure> {
    let _ = (root, listen);
    unreachable!()
}
