//! A file of control that is worth keeping and not worth refusing to start for: appended, written
//! anew when it has grown.
//!
//! Where the disk is full, or the file damaged, control goes on without what is lost, and says so
//! once.

use std::path::{Path, PathBuf};

use nearcast_fleet::framed::{FramedError, FramedLog};

/// The largest record.
pub(crate) const RECORD_BYTES_MAX: usize = 16 << 20;
/// Bytes beyond twice its length when it was last written anew after which it is written anew
/// again.
const GROWN_BYTES: u64 = 4 << 20;

/// The open file.
#[derive(Debug)]
pub(crate) struct KeptFile {
    path: PathBuf,
    magic: [u8; 8],
    /// None while it cannot be made.
    log: Option<FramedLog>,
    /// Its length when it was written anew.
    anew_bytes: u64,
    /// It lacks something, or has been told to: it is to be written anew.
    is_due: bool,
    is_failing: bool,
}

impl KeptFile {
    /// Opens or makes it and calls `each` with every record in order. Blocking.
    pub(crate) fn open(path: PathBuf, magic: [u8; 8], each: impl FnMut(&[u8])) -> Self {
        let mut this = Self {
            path,
            magic,
            log: None,
            anew_bytes: 0,
            is_due: false,
            is_failing: false,
        };
        match FramedLog::open_or_set_aside(&this.path, &this.magic, RECORD_BYTES_MAX, each) {
            Ok((log, damage)) => {
                if let Some(damage) = damage {
                    tracing::error!(%damage, "a file of control is damaged; what could be read of it is kept in a new one");
                    this.is_due = true;
                }
                this.anew_bytes = log.bytes();
                this.log = Some(log);
            }
            Err(error) => this.note(Err(error)),
        }
        this
    }

    /// The file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a record and syncs it. What fails is told, once. Blocking.
    pub(crate) fn append(&mut self, payload: &[u8]) {
        let Some(log) = &mut self.log else {
            self.is_due = true;
            return;
        };
        let outcome = log.append(payload).map(drop);
        self.note(outcome);
    }

    /// Whether it is time for [`KeptFile::rewrite`].
    pub(crate) fn is_due(&self) -> bool {
        self.is_due
            || self
                .log
                .as_ref()
                .is_some_and(|log| log.bytes() > 2 * self.anew_bytes + GROWN_BYTES)
    }

    /// It lacks something that only [`KeptFile::rewrite`] mends.
    pub(crate) fn set_due(&mut self) {
        self.is_due = true;
    }

    /// Puts these records in place of all that it holds. Blocking.
    pub(crate) fn rewrite(&mut self, payloads: impl Iterator<Item = Vec<u8>>) {
        let log = match self.log.take() {
            Some(log) => Ok(log),
            None => FramedLog::open(&self.path, &self.magic, RECORD_BYTES_MAX, |_, _| ()),
        };
        let outcome = log.and_then(|log| {
            let log = self.log.insert(log);
            log.rewrite(payloads, |_, _| ())?;
            // Whatever fails below, it is not again due at once.
            self.anew_bytes = log.bytes();
            Ok(())
        });
        self.is_due = false;
        self.note(outcome);
    }

    fn note(&mut self, outcome: Result<(), FramedError>) {
        match outcome {
            Ok(()) if self.is_failing && !self.is_due => {
                tracing::info!(path = %self.path.display(), "the file can be written again");
                self.is_failing = false;
            }
            Ok(()) => {}
            Err(error) => {
                if !self.is_failing {
                    tracing::warn!(%error, "a file of control cannot be written; a restart before it can will know less");
                }
                (self.is_failing, self.is_due) = (true, true);
            }
        }
    }
}
