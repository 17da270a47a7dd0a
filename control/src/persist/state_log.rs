//! The state log: what control has learned from reports and events and nobody can repeat after a
//! restart, such as which edges confirmed a purge and when, and how pushes ended. The file `facts`
//! in control's directory.
//!
//! Records are appended in order and written in groups, with one sync for all that wait. Callers
//! that must not show something before it is on disk use [`StateLog::wait_written`]. When the file
//! has grown, it is replaced by the records of the current state.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::fleet_state::saved::StateRecord;
use crate::persist::record_file::RecordFile;

const MAGIC: [u8; 8] = *b"NCFACT1\n";
/// Records that wait to be written. Further ones are dropped, and the file is rewritten.
const WAITING_MAX: usize = 1 << 16;
/// Records that are written at a time.
const GROUP_MAX: usize = 4096;
/// Records are collected for this long before they are written.
const GATHER_TIME: Duration = Duration::from_millis(3);
/// Target size of one frame of the file; a frame holds several records.
const FRAME_BYTES: usize = 1 << 20;
/// Longest time that anything waits for the disk.
const WRITTEN_TIME_MAX: Duration = Duration::from_secs(5);

/// Drops records that refer to another journal, or to revisions beyond the newest one of this one.
/// In both cases (the journal was begun anew, or restored from an older copy) the revisions mean
/// other changes now. Events stay.
pub(crate) fn of_journal(records: Vec<StateRecord>, id: &str, newest: u64) -> Vec<StateRecord> {
    let journal = records.iter().rev().find_map(|record| match record {
        StateRecord::Journal { id } => Some(id.as_str()),
        _ => None,
    });
    let is_same_journal = journal == Some(id);
    let is_valid = |revision: u64| is_same_journal && revision <= newest;
    let keep = |record| match record {
        StateRecord::Purge(ref purge) => is_valid(purge.revision).then_some(record),
        StateRecord::Complete { revision, .. } => is_valid(revision).then_some(record),
        StateRecord::Order(ref order) => is_valid(order.revision).then_some(record),
        StateRecord::Confirmed {
            node,
            mut purges,
            mut at_least,
        } => {
            purges.retain(|(revision, ..)| is_valid(*revision));
            at_least.retain(|revision| is_valid(*revision));
            Some(StateRecord::Confirmed {
                node,
                purges,
                at_least,
            })
        }
        StateRecord::Journal { .. }
        | StateRecord::AnnouncedStates { .. }
        | StateRecord::Event(_) => Some(record),
    };
    records.into_iter().filter_map(keep).collect()
}

/// The file and the records that wait to be written. Clones share both.
#[derive(Debug, Clone)]
pub(crate) struct StateLog {
    file: Arc<Mutex<RecordFile>>,
    queue: Arc<Mutex<Queue>>,
    /// Number of the newest record that is on disk, or cannot be written.
    written: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<StateRecord>,
    /// Records that were ever appended; the number of the newest one.
    appended: u64,
    /// A writer is running and will return for what waits.
    has_writer: bool,
    /// Records were dropped.
    has_dropped: bool,
}

impl StateLog {
    /// Opens the file. Returns its records, oldest first, and whether the file was missing.
    /// Blocking.
    pub(crate) fn open(path: PathBuf) -> (Self, Vec<StateRecord>, bool) {
        let is_first = !path.exists();
        let (mut records, mut unknown) = (Vec::new(), 0u64);
        let file = RecordFile::open(path, MAGIC, |payload| {
            let values: Vec<serde_json::Value> =
                serde_json::from_slice(payload).unwrap_or_default();
            for value in values {
                match serde_json::from_value(value) {
                    Ok(record) => records.push(record),
                    Err(_) => unknown += 1,
                }
            }
        });
        if unknown > 0 {
            tracing::warn!(path = %file.path().display(), unknown, "the state log has records that this version does not know; they are skipped");
        }
        let log = Self {
            file: Arc::new(Mutex::new(file)),
            queue: Arc::default(),
            written: Arc::new(watch::channel(0).0),
        };
        (log, records, is_first)
    }

    /// Appends records and returns the number of the last one, to wait for. Must be called within
    /// the runtime.
    pub(crate) fn append(&self, records: impl IntoIterator<Item = StateRecord>) -> u64 {
        let mut queue = self.queue.lock();
        for record in records {
            queue.appended += 1;
            if queue.waiting.len() < WAITING_MAX {
                queue.waiting.push_back(record);
            } else {
                // The next rewrite of the file restores the missing record from the state.
                queue.has_dropped = true;
            }
        }
        if !queue.waiting.is_empty() && !std::mem::replace(&mut queue.has_writer, true) {
            let log = self.clone();
            tokio::task::spawn_blocking(move || log.write_waiting());
        }
        queue.appended
    }

    /// Writes until no record waits. Blocking.
    fn write_waiting(&self) {
        loop {
            // More records arrive meanwhile, and the journal gets the disk.
            std::thread::sleep(GATHER_TIME);
            let mut file = self.file.lock();
            let (records, upto) = {
                let mut queue = self.queue.lock();
                if std::mem::take(&mut queue.has_dropped) {
                    file.set_due();
                }
                let count = queue.waiting.len().min(GROUP_MAX);
                if count == 0 {
                    queue.has_writer = false;
                    let appended = queue.appended;
                    self.written.send_if_modified(|written| {
                        std::mem::replace(written, appended) != appended
                    });
                    return;
                }
                let records: Vec<StateRecord> = queue.waiting.drain(..count).collect();
                (records, queue.appended - queue.waiting.len() as u64)
            };

            for frame in frames(&records) {
                file.append(&frame);
            }
            drop(file);
            self.written.send_replace(upto);
        }
    }

    /// Whether all records up to a number are on disk, or cannot be written.
    pub(crate) fn is_written(&self, number: u64) -> bool {
        *self.written.borrow() >= number
    }

    /// Waits for [`StateLog::is_written`], for a limited time.
    pub(crate) async fn wait_written(&self, number: u64) {
        let mut written = self.written.subscribe();
        let _ = tokio::time::timeout(WRITTEN_TIME_MAX, written.wait_for(|n| *n >= number)).await;
    }

    /// Replaces the file's records by those of the current state, when the file has grown or lacks
    /// something, or `now`. `state` is called while the file is locked, so that no record is
    /// written in between. Blocking.
    pub(crate) fn rewrite(&self, now: bool, state: impl FnOnce() -> Vec<StateRecord>) {
        let mut file = self.file.lock();
        if now || file.is_due() {
            file.rewrite(frames(&state()).into_iter());
        }
    }
}

/// Encodes records as frames of about [`FRAME_BYTES`], each a JSON array.
fn frames(records: &[StateRecord]) -> Vec<Vec<u8>> {
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for record in records {
        let json = serde_json::to_vec(record).expect("records have string keys and finite numbers");
        match frames.last_mut() {
            Some(frame) if frame.len() + json.len() < FRAME_BYTES => frame.push(b','),
            _ => frames.push(vec![b'[']),
        }
        frames.last_mut().expect("there is one").extend(json);
    }
    frames.iter_mut().for_each(|frame| frame.push(b']'));
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(revision: u64) -> StateRecord {
        StateRecord::Complete {
            revision,
            at_unix_ms: revision + 7,
        }
    }

    fn revisions(records: &[StateRecord]) -> Vec<u64> {
        let of = |f: &StateRecord| {
            if let StateRecord::Complete {
                revision,
                at_unix_ms,
            } = f
            {
                (*at_unix_ms == revision + 7).then_some(*revision)
            } else {
                None
            }
        };
        records.iter().filter_map(of).collect()
    }

    #[tokio::test]
    async fn what_is_kept_is_there_after_a_kill_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("facts");
        let (log, old, is_first) = StateLog::open(path.clone());
        assert!(old.is_empty() && is_first && log.is_written(0));
        let mut last = 0;
        for n in 1..=3000 {
            last = log.append([complete(n)]);
        }
        log.wait_written(last).await;
        assert!(log.is_written(last));
        // The file after a kill, without and with half a record at its end.
        for tail in [&b""[..], b"\x09\x00\x00\x00half"] {
            let copy = dir.path().join("copy");
            std::fs::copy(&path, &copy).unwrap();
            std::fs::OpenOptions::new()
                .append(true)
                .open(&copy)
                .and_then(|mut f| std::io::Write::write_all(&mut f, tail))
                .unwrap();
            let (_, read, is_first) = StateLog::open(copy);
            assert_eq!((revisions(&read), is_first), ((1..=3000).collect(), false));
        }
        log.rewrite(true, || vec![complete(2999), complete(3000)]);
        let last = log.append([complete(3001)]);
        log.wait_written(last).await;
        assert_eq!(revisions(&StateLog::open(path).1), [2999, 3000, 3001]);
    }

    #[test]
    fn facts_of_another_journal_are_not_of_this_one() {
        let journal = |id: &str| StateRecord::Journal { id: id.into() };
        let confirmed = StateRecord::Confirmed {
            node: "a".into(),
            purges: vec![(3, 1, 1), (9, 1, 1)],
            at_least: vec![3, 9],
        };
        let records = vec![
            journal("old"),
            journal("this"),
            complete(3),
            complete(9),
            confirmed,
        ];
        for (id, newest, expected) in [
            ("this", 9, vec![3, 9]),
            ("this", 8, vec![3]),
            ("other", 9, vec![]),
            ("old", 9, vec![]),
        ] {
            let kept = of_journal(records.clone(), id, newest);
            let Some(StateRecord::Confirmed {
                purges, at_least, ..
            }) = kept.last()
            else {
                panic!("{kept:?}")
            };
            assert_eq!(*at_least, expected, "{id} {newest}");
            assert_eq!(
                (
                    revisions(&kept),
                    purges.iter().map(|p| p.0).collect::<Vec<_>>()
                ),
                (expected.clone(), expected),
                "{id} {newest}"
            );
        }
    }

    #[tokio::test]
    async fn damage_costs_one_record_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("facts");
        let (log, ..) = StateLog::open(path.clone());
        for n in [1, 2, 3] {
            let number = log.append([complete(n)]);
            log.wait_written(number).await;
        }
        drop(log);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes
            .windows(12)
            .position(|w| w == b"\"revision\":2")
            .unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let (log, read, _) = StateLog::open(path.clone());
        assert_eq!(revisions(&read), [1, 3]);
        assert_eq!(
            std::fs::read(dir.path().join("facts.damaged")).unwrap(),
            bytes
        );
        log.rewrite(false, || read);
        assert_eq!(
            revisions(&StateLog::open(path).1),
            [1, 3],
            "written anew without being asked to"
        );
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_made_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not-there/facts");
        let (log, ..) = StateLog::open(path.clone());
        let number = log.append([complete(1)]);
        log.wait_written(number).await;
        assert!(log.is_written(number));
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        log.rewrite(false, || vec![complete(1)]);
        assert_eq!(revisions(&StateLog::open(path).1), [1]);
    }
}
