//! The file `series` in control's directory: the counts over time of [`crate::series`], so that
//! charts outlive the process.
//!
//! Every few seconds what has changed is appended; once an hour, or when the file has grown,
//! everything is written anew.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::kept::KeptFile;
use crate::series::Series;
use crate::state::State;

const MAGIC: [u8; 8] = *b"NCCHRT1\n";
/// Bytes of blocks in one record, beyond which another one is begun.
const RECORD_BYTES: usize = 1 << 20;
/// The file is written anew after this time, so that a start reads no more than an hour of seconds
/// twice.
const ANEW_EVERY: Duration = Duration::from_secs(3600);

/// The open file.
#[derive(Debug)]
pub(crate) struct Charts(Mutex<Open>);

#[derive(Debug)]
struct Open {
    file: KeptFile,
    anew: Instant,
}

impl Charts {
    /// Opens the file and takes what it holds into the series. Blocking.
    pub(crate) fn open(path: PathBuf, series: &mut Series, now_second: u64) -> Self {
        let mut bad = None;
        let mut file = KeptFile::open(path, MAGIC, |payload| {
            if let Err(reason) = series.load(payload, now_second) {
                bad = Some(reason);
            }
        });
        if let Some(reason) = bad {
            tracing::warn!(path = %file.path().display(), reason, "a part of the charts is left out");
        }
        // What was read lies one behind the other; from now on it is one.
        file.rewrite(records(series.all()).into_iter());
        Self(Mutex::new(Open {
            file,
            anew: Instant::now(),
        }))
    }

    /// Writes what has changed. Blocking.
    pub(crate) fn save(&self, state: &State) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.file.is_due() || open.anew.elapsed() >= ANEW_EVERY {
            let blocks = state.book().series.all();
            open.file.rewrite(records(blocks).into_iter());
            open.anew = Instant::now();
            return;
        }
        let blocks = state.book().series.changed();
        for record in records(blocks) {
            open.file.append(&record);
        }
    }
}

fn records(blocks: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut records: Vec<Vec<u8>> = Vec::new();
    for block in blocks {
        match records.last_mut() {
            Some(record) if record.len() + block.len() <= RECORD_BYTES => record.extend(block),
            _ => records.push(block),
        }
    }
    records
}
