//! The file `series` in control's directory: the time series of [`Series`], so that charts outlive
//! the process.
//!
//! Changed cells are appended every few seconds. The file is rewritten once an hour and when it has
//! grown.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fleet_state::series::Series;
use crate::persist::record_file::RecordFile;

const MAGIC: [u8; 8] = *b"NCCHRT1\n";
/// Target size of one record; a record holds several blocks.
const RECORD_BYTES: usize = 1 << 20;
/// Time between two rewrites, so that a start reads at most an hour of seconds twice.
const REWRITE_EVERY: Duration = Duration::from_secs(3600);

/// The open file.
#[derive(Debug)]
pub(crate) struct SeriesFile(Mutex<Open>);

#[derive(Debug)]
struct Open {
    file: RecordFile,
    rewritten: Instant,
}

impl SeriesFile {
    /// Opens the file and loads its blocks into the series. Blocking.
    pub(crate) fn open(path: PathBuf, series: &mut Series, now_second: u64) -> Self {
        let mut bad = None;
        let mut file = RecordFile::open(path, MAGIC, |payload| {
            if let Err(reason) = series.load(payload, now_second) {
                bad = Some(reason);
            }
        });
        if let Some(reason) = bad {
            tracing::warn!(path = %file.path().display(), reason, "a part of the series cannot be read and is skipped");
        }
        // The blocks of many appends become one block for each key.
        file.rewrite(records(series.all()).into_iter());
        Self(Mutex::new(Open {
            file,
            rewritten: Instant::now(),
        }))
    }

    /// Writes the changed cells, or all of them when a rewrite is due. `blocks` returns all blocks
    /// for `true`, those of changed cells for `false`. Blocking.
    pub(crate) fn save(&self, blocks: impl FnOnce(bool) -> Vec<Vec<u8>>) {
        let mut open = self.0.lock();
        if open.file.is_due() || open.rewritten.elapsed() >= REWRITE_EVERY {
            open.file.rewrite(records(blocks(true)).into_iter());
            open.rewritten = Instant::now();
            return;
        }
        for record in records(blocks(false)) {
            open.file.append(&record);
        }
    }
}

/// Joins blocks to records of about [`RECORD_BYTES`].
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
