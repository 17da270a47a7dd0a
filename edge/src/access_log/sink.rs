//! Where lines go: standard output, or a file that is rotated by its size.
//!
//! A file has whole lines only, also after its disk was full.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nearcast_fleet::config::{AccessLog, LogTarget};

/// Permissions of new files and directories: lines have addresses of clients.
const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;

/// Target of a log, and its rotation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SinkSettings {
    /// `None` is standard output.
    path: Option<PathBuf>,
    rotate_at: u64,
    kept: usize,
}

impl SinkSettings {
    /// Relative paths start at the node's state directory.
    pub(super) fn new(settings: &AccessLog, directory: &Path) -> Self {
        Self {
            path: match &settings.target {
                LogTarget::Stdout => None,
                LogTarget::File(path) => Some(directory.join(path)),
            },
            rotate_at: settings.rotate_at.0,
            kept: settings.kept,
        }
    }
}

impl std::fmt::Display for SinkSettings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            None => formatter.write_str("standard output"),
            Some(path) => write!(formatter, "{}", path.display()),
        }
    }
}

/// Lines that could not be written.
#[derive(Debug)]
pub(super) struct WriteFailed {
    pub(super) lines_lost: u64,
    pub(super) error: io::Error,
}

/// An open log.
#[derive(Debug)]
pub(super) struct Sink {
    settings: SinkSettings,
    /// `None` after a failure, until it can be opened again.
    file: Option<File>,
    /// The end of the last line is missing.
    is_torn: bool,
    /// The reason why the newest rotation failed, for one warning each.
    rotation_failed: Option<ErrorKind>,
}

impl Sink {
    /// A log that is opened with its first line.
    pub(super) fn new(settings: SinkSettings) -> Self {
        Self {
            settings,
            file: None,
            is_torn: false,
            rotation_failed: None,
        }
    }

    pub(super) fn settings(&self) -> &SinkSettings {
        &self.settings
    }

    /// Opens the file anew: it may have been renamed by a program that rotates logs.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        let file = open(&self.settings)?;
        // The same file may be opened again, and an earlier run may have ended within a line. Of
        // standard output only this run knows.
        if let Some(path) = &self.settings.path {
            self.is_torn = ends_within_line(path);
        }
        self.file = Some(file);
        Ok(())
    }

    /// Writes whole lines, and rotates the file before a line that would make it larger than its
    /// limit. A single line may be larger.
    pub(super) fn write(&mut self, mut lines: &[u8]) -> Result<(), WriteFailed> {
        while !lines.is_empty() {
            let written = self.write_some(lines).map_err(|(whole, error)| {
                let lost = &lines[whole..];
                WriteFailed {
                    lines_lost: lost.iter().filter(|byte| **byte == b'\n').count() as u64,
                    error,
                }
            })?;
            lines = &lines[written..];
        }
        Ok(())
    }

    /// Writes as many lines as the file has room for, at least one; returns their bytes. An error
    /// has the bytes of the lines that were written whole.
    fn write_some(&mut self, lines: &[u8]) -> Result<usize, (usize, io::Error)> {
        if self.is_gone() {
            self.file = None;
        }
        if self.file.is_none() {
            self.reopen().map_err(|error| (0, error))?;
        }
        let mut size = self.size();
        let mut fit = self.fit(size, lines);
        if fit == 0 && self.rotate() {
            size = Some(0);
            fit = self.fit(size, lines);
        }
        let first_line = || lines.iter().position(|byte| *byte == b'\n');
        if fit == 0 {
            fit = match self.rotation_failed {
                // The file grows: that is better than lines that are lost.
                Some(_) => lines.len(),
                None => first_line().map_or(lines.len(), |at| at + 1),
            };
        }
        match self.append(&lines[..fit]) {
            Ok(()) => Ok(fit),
            Err((written, error)) => {
                let whole = lines[..written]
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |at| at + 1);
                self.mend(size.map(|size| size + whole as u64), written > whole);
                if !is_full(&error) {
                    self.file = None;
                }
                Err((whole, error))
            }
        }
    }

    /// Bytes of the lines that a file of this size has room for; all of them without a limit.
    fn fit(&self, size: Option<u64>, lines: &[u8]) -> usize {
        let Some(size) = size else { return lines.len() };
        let room = self.settings.rotate_at.saturating_sub(size);
        if lines.len() as u64 <= room {
            return lines.len();
        }
        let room = &lines[..room as usize];
        room.iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1)
    }

    /// The size of the file; `None` for standard output.
    fn size(&self) -> Option<u64> {
        self.settings.path.as_ref()?;
        Some(
            self.file
                .as_ref()?
                .metadata()
                .map_or(0, |about| about.len()),
        )
    }

    /// Whether somebody has removed the file.
    fn is_gone(&self) -> bool {
        self.settings.path.is_some()
            && self
                .file
                .as_ref()
                .is_some_and(|file| file.metadata().is_ok_and(|about| about.nlink() == 0))
    }

    /// Appends bytes; an error has the number of those that were written.
    fn append(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let Some(file) = &mut self.file else {
            return Err((0, ErrorKind::NotConnected.into()));
        };
        if self.is_torn {
            file.write_all(b"\n").map_err(|error| (0, error))?;
            self.is_torn = false;
        }
        let mut written = 0;
        while written < bytes.len() {
            match file.write(&bytes[written..]) {
                Ok(0) => return Err((written, ErrorKind::WriteZero.into())),
                Ok(more) => written += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err((written, error)),
            }
        }
        Ok(())
    }

    /// Removes the part of a line that was written before a failure; where that is impossible, the
    /// next line begins on a line of its own.
    fn mend(&mut self, whole: Option<u64>, is_torn: bool) {
        if !is_torn {
            return;
        }
        let file = self.file.as_ref();
        let is_cut = whole
            .zip(file)
            .is_some_and(|(whole, file)| file.set_len(whole).is_ok());
        self.is_torn = !is_cut;
    }

    /// Renames the file and the ones before it, and begins a new one. `false` without effect.
    fn rotate(&mut self) -> bool {
        let Some(path) = &self.settings.path else {
            return false;
        };
        if self.size() == Some(0) {
            return false;
        }
        match shift(path, self.settings.kept) {
            Ok(()) => {
                self.rotation_failed = None;
                self.reopen().is_ok()
            }
            Err(error) => {
                if self.rotation_failed != Some(error.kind()) {
                    tracing::warn!(path = %path.display(), %error, "the access log cannot be rotated; it grows beyond rotate_at");
                }
                self.rotation_failed = Some(error.kind());
                false
            }
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

/// `access.log.1` becomes `access.log.2`, and so on; the last one is removed, and the file becomes
/// `access.log.1`.
fn shift(path: &Path, kept: usize) -> io::Result<()> {
    let numbered = |number: usize| {
        let mut name = OsString::from(path);
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    let absent_is_fine = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    };
    if kept == 0 {
        return std::fs::remove_file(path);
    }
    for number in (1..kept).rev() {
        std::fs::rename(numbered(number), numbered(number + 1)).or_else(absent_is_fine)?;
    }
    std::fs::rename(path, numbered(1))
}

/// Whether the last line of a file has no end. A file that cannot be read is taken for whole.
fn ends_within_line(path: &Path) -> bool {
    let last_byte = || {
        let file = File::open(path)?;
        let last = file.metadata()?.len().checked_sub(1);
        let mut byte = *b"\n";
        if let Some(last) = last {
            file.read_exact_at(&mut byte, last)?;
        }
        io::Result::Ok(byte)
    };
    last_byte().is_ok_and(|byte| byte != *b"\n")
}

/// Opens the target to append to it; makes the file and its directories where they are missing.
fn open(settings: &SinkSettings) -> io::Result<File> {
    let Some(path) = &settings.path else {
        // Not `Stdout`, whose own buffer would keep what cannot be written.
        return Ok(io::stdout().as_fd().try_clone_to_owned()?.into());
    };
    if let Some(parent) = path.parent() {
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(parent)?;
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(FILE_MODE)
        // A pipe without a reader is an error instead of a wait.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is not a regular file; write \"-\" for standard output",
        ));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::config::LogFormat;
    use nearcast_fleet::units::Bytes;

    use super::*;

    fn sink(directory: &Path, rotate_at: u64, kept: usize) -> Sink {
        let settings = AccessLog {
            target: LogTarget::File("logs/access.log".into()),
            format: LogFormat::Json,
            sample: 1.0,
            truncates_clients: false,
            rotate_at: Bytes(rotate_at),
            kept,
        };
        Sink::new(SinkSettings::new(&settings, directory))
    }

    fn files(directory: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = std::fs::read_dir(directory.join("logs"))
            .expect("a directory")
            .map(|entry| {
                let path = entry.expect("an entry").path();
                let name = path.file_name().expect("a name").to_string_lossy();
                (
                    name.into_owned(),
                    std::fs::read_to_string(&path).expect("text"),
                )
            })
            .collect();
        files.sort();
        files
    }

    fn named(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect()
    }

    #[test]
    fn files_are_rotated_between_lines_and_the_oldest_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut sink = sink(directory.path(), 10, 2);
        sink.write(b"one\ntwo\nthree\n").expect("written");
        assert_eq!(
            files(directory.path()),
            named(&[("access.log", "three\n"), ("access.log.1", "one\ntwo\n")])
        );
        sink.write(b"longer than the limit\nfour\n")
            .expect("written");
        assert_eq!(
            files(directory.path()),
            named(&[
                ("access.log", "four\n"),
                ("access.log.1", "longer than the limit\n"),
                ("access.log.2", "three\n"),
            ])
        );
        use std::os::unix::fs::PermissionsExt as _;
        let about = std::fs::metadata(directory.path().join("logs/access.log")).expect("a file");
        assert_eq!(about.permissions().mode() & 0o007, 0, "not for everybody");
    }

    #[test]
    fn without_kept_files_there_is_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut sink = sink(directory.path(), 10, 0);
        sink.write(b"one\ntwo\nthree\nfour\n").expect("written");
        assert_eq!(files(directory.path()), named(&[("access.log", "four\n")]));
    }

    #[test]
    fn a_later_run_appends_and_its_size_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        sink(directory.path(), 10, 5)
            .write(b"before\n")
            .expect("written");
        sink(directory.path(), 10, 5)
            .write(b"after\n")
            .expect("written");
        assert_eq!(
            files(directory.path()),
            named(&[("access.log", "after\n"), ("access.log.1", "before\n")])
        );
    }

    #[test]
    fn a_line_that_was_cut_before_the_file_was_opened_stays_apart() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("logs/access.log");
        std::fs::create_dir_all(directory.path().join("logs")).expect("made");
        // An earlier run ended while its disk was full.
        std::fs::write(&log, "one\ntw").expect("written");
        let mut sink = sink(directory.path(), 1000, 5);
        sink.write(b"three\n").expect("written");
        sink.reopen().expect("opened");
        sink.write(b"four\n").expect("written");
        let text = std::fs::read_to_string(&log).expect("text");
        assert_eq!(text, "one\ntw\nthree\nfour\n");
    }

    #[test]
    fn a_renamed_file_is_left_at_the_next_opening_and_a_removed_one_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("logs/access.log");
        let mut sink = sink(directory.path(), 1000, 5);
        sink.write(b"one\n").expect("written");
        std::fs::rename(&log, directory.path().join("logs/moved")).expect("renamed");
        sink.write(b"two\n").expect("written");
        sink.reopen().expect("opened");
        sink.write(b"three\n").expect("written");
        assert_eq!(
            files(directory.path()),
            named(&[("access.log", "three\n"), ("moved", "one\ntwo\n")])
        );
        std::fs::remove_file(&log).expect("removed");
        sink.write(b"four\n").expect("written");
        assert_eq!(std::fs::read_to_string(&log).expect("text"), "four\n");
    }

    #[test]
    fn what_is_no_file_is_refused_without_a_wait() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = directory.path().join("logs/access.log");
        std::fs::create_dir_all(&log).expect("made");
        let failed = sink(directory.path(), 1000, 5).write(b"one\ntwo\n");
        assert_eq!(failed.expect_err("a directory").lines_lost, 2);
        std::fs::remove_dir(&log).expect("removed");
        let made = std::process::Command::new("mkfifo").arg(&log).status();
        assert!(made.expect("mkfifo runs").success());
        let failed = sink(directory.path(), 1000, 5).write(b"one\n");
        assert_eq!(failed.expect_err("a pipe").lines_lost, 1);
    }

    #[test]
    fn a_file_that_cannot_be_renamed_grows() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut sink = sink(directory.path(), 10, 1);
        sink.write(b"one\n").expect("written");
        // A directory in its way, which cannot be replaced.
        std::fs::create_dir_all(directory.path().join("logs/access.log.1/x")).expect("made");
        sink.write(b"two\nthree\nfour\n").expect("written");
        let text = std::fs::read_to_string(directory.path().join("logs/access.log"));
        assert_eq!(text.expect("text"), "one\ntwo\nthree\nfour\n");
    }
}
