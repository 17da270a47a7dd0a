//! A file of control that is worth keeping, but whose loss or damage does not stop control from
//! starting: records are appended, and the file is rewritten when it has grown.
//!
//! When the disk is full or the file is damaged, control continues without the lost records and logs
//! that once.

use std::path::{Path, PathBuf};

use nearcast_fleet::framed::{FramedError, FramedLog};

/// The largest record.
pub(crate) const RECORD_BYTES_MAX: usize = 16 << 20;
/// The file is rewritten when it is this much longer than twice its length after the last rewrite.
const GROWN_BYTES: u64 = 4 << 20;

/// The open file.
#[derive(Debug)]
pub(crate) struct RecordFile {
    path: PathBuf,
    magic: [u8; 8],
    /// `None` while the file cannot be created.
    log: Option<FramedLog>,
    /// Its length after the last rewrite.
    rewritten_bytes: u64,
    /// The file lacks records and must be rewritten.
    is_due: bool,
    is_failing: bool,
}

impl RecordFile {
    /// Opens or creates the file and calls `each` with every record in order. Blocking.
    pub(crate) fn open(path: PathBuf, magic: [u8; 8], each: impl FnMut(&[u8])) -> Self {
        let mut this = Self {
            path,
            magic,
            log: None,
            rewritten_bytes: 0,
            is_due: false,
            is_failing: false,
        };
        match FramedLog::open_or_set_aside(&this.path, &this.magic, RECORD_BYTES_MAX, each) {
            Ok((log, damage)) => {
                if let Some(damage) = damage {
                    tracing::error!(%damage, "a file of control is damaged; its readable records are copied to a new one");
                    this.is_due = true;
                }
                this.rewritten_bytes = log.bytes();
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

    /// Appends a record and syncs the file. The first failure is logged. Blocking.
    pub(crate) fn append(&mut self, payload: &[u8]) {
        let Some(log) = &mut self.log else {
            self.is_due = true;
            return;
        };
        let outcome = log.append(payload).map(drop);
        self.note(outcome);
    }

    /// Whether [`RecordFile::rewrite`] is due.
    pub(crate) fn is_due(&self) -> bool {
        self.is_due
            || self
                .log
                .as_ref()
                .is_some_and(|log| log.bytes() > 2 * self.rewritten_bytes + GROWN_BYTES)
    }

    /// Notes that the file lacks records, which only [`RecordFile::rewrite`] can restore.
    pub(crate) fn set_due(&mut self) {
        self.is_due = true;
    }

    /// Replaces all records of the file. Blocking.
    pub(crate) fn rewrite(&mut self, payloads: impl Iterator<Item = Vec<u8>>) {
        let log = match self.log.take() {
            Some(log) => Ok(log),
            None => FramedLog::open(&self.path, &self.magic, RECORD_BYTES_MAX, |_, _| ()),
        };
        let outcome = log.and_then(|log| {
            let log = self.log.insert(log);
            log.rewrite(payloads, |_, _| ())?;
            // Set before any failure is noted, so that growth alone does not make it due again.
            self.rewritten_bytes = log.bytes();
            Ok(())
        });
        self.is_due = false;
        self.note(outcome);
    }

    /// Logs the first of several failures, and the recovery.
    fn note(&mut self, outcome: Result<(), FramedError>) {
        match outcome {
            Ok(()) if self.is_failing && !self.is_due => {
                tracing::info!(path = %self.path.display(), "the file can be written again");
                self.is_failing = false;
            }
            Ok(()) => {}
            Err(error) => {
                if !self.is_failing {
                    tracing::warn!(%error, "a file of control cannot be written; a restart meanwhile loses what it lacks");
                }
                (self.is_failing, self.is_due) = (true, true);
            }
        }
    }
}
