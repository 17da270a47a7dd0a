//! What a node keeps of the journal for its next start: where it was, and the entries that still
//! mean something.
//!
//! Owns the file `journal.copy`; does no network.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::position::Position;
use crate::change::{Change, Entry};
use crate::drains::Drains;
use crate::fold::fold;
use crate::framed::{self, FramedError, FramedLog};

const MAGIC: &[u8; 8] = b"NCCOPY1\n";

/// The largest record: a whole answer of control.
const RECORD_BYTES_MAX: usize = 64 << 20;

/// Bytes written since the file was last folded after which it is folded again, or as many as it
/// has, whichever is more: a long copy is not written over and over.
const FOLD_AFTER_BYTES: u64 = 8 << 20;

/// One record of the file: where the node is from then on, and what came with it.
#[derive(Debug, Serialize, Deserialize)]
struct Batch {
    position: Position,
    entries: Vec<Entry>,
}

/// The open copy.
#[derive(Debug)]
pub(super) struct JournalCopy {
    /// None while the disk is too full for one to be made.
    log: Option<FramedLog>,
    path: PathBuf,
    pub(super) position: Position,
    /// Bytes since it was folded.
    written: u64,
    /// Bytes of it when it was folded.
    folded: u64,
}

impl JournalCopy {
    /// Opens or makes the copy; gives it with the entries that a start needs, in order. A damaged
    /// copy is set aside as `journal.copy.bad` and begun anew: control has everything in it, but
    /// stored responses cannot be trusted until then, which `caught_up` says. Where the disk is
    /// full, a copy that is there is used as it is, and one that is not there is made as soon as
    /// there is room.
    pub(super) fn open(path: &Path, now_unix_ms: u64) -> io::Result<(Self, Vec<Entry>)> {
        match Self::open_whole(path, now_unix_ms) {
            Err(FramedError::Io { source, .. }) if is_full(&source) && !path.exists() => {
                tracing::warn!(path = %path.display(), error = %source, "there is no room for a copy of the journal; a restart before there is will know nothing of it");
                Ok((
                    Self {
                        log: None,
                        path: path.to_owned(),
                        position: Position::default(),
                        written: 0,
                        folded: 0,
                    },
                    Vec::new(),
                ))
            }
            Err(damaged @ FramedError::Damaged { .. }) => {
                Ok((Self::begin_anew(path, &damaged)?, Vec::new()))
            }
            other => other.map_err(to_io),
        }
    }

    fn begin_anew(path: &Path, error: &FramedError) -> io::Result<Self> {
        let aside = path.with_extension("copy.bad");
        tracing::error!(%error, aside = %aside.display(), "the copy of the journal is set aside; beginning a new one");
        std::fs::rename(path, aside)?;
        Self::open_whole(path, 0)
            .map_err(to_io)
            .map(|(copy, _)| copy)
    }

    fn open_whole(path: &Path, now_unix_ms: u64) -> Result<(Self, Vec<Entry>), FramedError> {
        let mut position = Position::default();
        let mut entries = Vec::new();
        let mut bad = None;
        let mut records = 0;
        let each = |place: framed::RecordPosition, payload: &[u8]| match serde_json::from_slice::<
            Batch,
        >(payload)
        {
            Ok(batch) => {
                position = batch.position;
                entries.extend(batch.entries);
                records += 1;
            }
            Err(error) => {
                bad.get_or_insert((place.offset, error.to_string()));
            }
        };
        let mut log = Self::open_log(path, each)?;
        if let Some((offset, reason)) = bad {
            return Err(FramedError::Damaged {
                path: path.to_owned(),
                offset,
                reason,
            });
        }
        let entries = fold(entries, now_unix_ms);
        if records > 1
            && let Err(error) = log.rewrite(batches(&position, &entries), |_, _| ())
        {
            tracing::warn!(%error, "the copy of the journal cannot be written folded; it is used as it is");
        }
        let folded = log.bytes();
        Ok((
            Self {
                log: Some(log),
                path: path.to_owned(),
                position,
                written: 0,
                folded,
            },
            entries,
        ))
    }

    fn open_log(
        path: &Path,
        each: impl FnMut(framed::RecordPosition, &[u8]),
    ) -> Result<FramedLog, FramedError> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(|source| FramedError::Io {
                path: directory.to_owned(),
                source,
            })?;
        }
        FramedLog::open(path, MAGIC, RECORD_BYTES_MAX, each)
    }

    /// Takes over what control has sent: it is on disk when this returns.
    ///
    /// # Errors
    /// [`FramedError::Damaged`] when folding finds that what was kept is lost: it is set aside, and
    /// this is an empty copy from then on, at the journal's start. With others, nothing was taken
    /// over.
    pub(super) fn take(
        &mut self,
        position: Position,
        entries: &[Entry],
        now_unix_ms: u64,
    ) -> Result<(), FramedError> {
        let batch = Batch {
            position,
            entries: entries.to_vec(),
        };
        let payload = encode(&batch);
        match &mut self.log {
            Some(log) => log.append(&payload)?,
            none => none
                .insert(Self::open_log(&self.path, |_, _| ())?)
                .append(&payload)?,
        };
        self.position = batch.position;
        self.written += payload.len() as u64;
        if self.written > FOLD_AFTER_BYTES.max(self.folded) {
            // Not again before as much has been written once more, whatever comes of it.
            self.written = 0;
            match Self::open_whole(&self.path, now_unix_ms) {
                Ok((folded, _)) => *self = folded,
                Err(damaged @ FramedError::Damaged { .. }) => {
                    *self = Self::begin_anew(&self.path, &damaged).map_err(|source| {
                        FramedError::Io {
                            path: self.path.clone(),
                            source,
                        }
                    })?;
                    return Err(damaged);
                }
                Err(error) => {
                    tracing::warn!(%error, "the copy of the journal cannot be folded; it goes on as it was")
                }
            }
        }
        Ok(())
    }
}

/// The newest fleet file in a copy, which stays as it is; none when there is no good copy.
pub(super) fn fleet_file(path: &Path) -> Option<Entry> {
    let mut newest = None;
    let each = |_, payload: &[u8]| {
        let entries = serde_json::from_slice(payload)
            .map_or_else(|_| Vec::new(), |batch: Batch| batch.entries);
        newest = entries
            .into_iter()
            .rfind(|e| matches!(e.change, Change::FleetFile { .. }))
            .or_else(|| newest.take());
    };
    FramedLog::peek(path, MAGIC, RECORD_BYTES_MAX, each).ok()?;
    newest
}

/// What is drained by the entries in a copy, which stays as it is; nothing when there is no good
/// copy.
pub(super) fn drains(path: &Path) -> Drains {
    let mut drains = Drains::default();
    let each = |_, payload: &[u8]| {
        let entries = serde_json::from_slice(payload)
            .map_or_else(|_| Vec::new(), |batch: Batch| batch.entries);
        for entry in &entries {
            drains.fold(entry);
        }
    };
    let peeked = FramedLog::peek(path, MAGIC, RECORD_BYTES_MAX, each);
    if peeked.is_ok() {
        drains
    } else {
        Drains::default()
    }
}

/// The folded copy in records of bounded size, the position in each.
fn batches(position: &Position, entries: &[Entry]) -> impl Iterator<Item = Vec<u8>> {
    // A change has 16 MiB at most: those that may be large go alone, lists of scopes among them.
    let is_small = |entry: &Entry| matches!(&entry.change, Change::Purge(purge) if purge.scope.each().len() == 1);
    let groups = entries
        .chunk_by(move |a, b| is_small(a) && is_small(b))
        .flat_map(|group| group.chunks(256));
    let groups: Vec<&[Entry]> = if entries.is_empty() {
        vec![&[]]
    } else {
        groups.collect()
    };
    let batch = |group: &&[Entry]| {
        encode(&Batch {
            position: position.clone(),
            entries: group.to_vec(),
        })
    };
    groups.iter().map(batch).collect::<Vec<_>>().into_iter()
}

fn encode(batch: &Batch) -> Vec<u8> {
    serde_json::to_vec(batch).expect("a batch has string keys and no failing parts")
}

/// Whether it is for want of space alone.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn to_io(error: FramedError) -> io::Error {
    match error {
        FramedError::Io { path, source } => {
            io::Error::new(source.kind(), format!("{}: {source}", path.display()))
        }
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Purge, PurgeScope};

    fn url(revision: u64, url: &str) -> Entry {
        let change = Change::Purge(Purge {
            scope: PurgeScope::Url(url.into()),
            soft: false,
        });
        Entry {
            revision,
            accepted_unix_ms: 0,
            change,
        }
    }

    fn file(revision: u64) -> Entry {
        Entry {
            revision,
            accepted_unix_ms: 0,
            change: Change::FleetFile {
                text: revision.to_string(),
            },
        }
    }

    #[test]
    fn a_copy_reopens_folded_where_it_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal.copy");
        let at = |cursor| Position {
            journal: Some("j".into()),
            cursor,
            given: cursor,
            joined_at: 0,
        };
        let (mut copy, entries) = JournalCopy::open(&path, 0).expect("opens");
        assert_eq!(
            (entries, copy.position.clone()),
            (vec![], Position::default())
        );
        copy.take(at(2), &[url(1, "a"), url(2, "a")], 0)
            .expect("kept");
        copy.take(at(3), &[file(3)], 0).expect("kept");
        for _ in 0..2 {
            let (copy, entries) = JournalCopy::open(&path, 0).expect("opens");
            assert_eq!(
                (copy.position, entries),
                (at(3), vec![url(2, "a"), file(3)])
            );
        }
    }

    #[test]
    fn a_copy_that_has_grown_is_folded_on_the_way() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal.copy");
        let (mut copy, _) = JournalCopy::open(&path, 0).expect("opens");
        let text = "x".repeat(5 << 20);
        for revision in 1..=4 {
            let entry = Entry {
                revision,
                accepted_unix_ms: 0,
                change: Change::FleetFile { text: text.clone() },
            };
            copy.take(
                Position {
                    cursor: revision,
                    ..Position::default()
                },
                &[entry],
                0,
            )
            .expect("kept");
        }
        assert_eq!(copy.position.cursor, 4);
        assert!(std::fs::metadata(&path).expect("there").len() < 11 << 20);
    }

    #[test]
    fn damage_that_folding_finds_is_told_and_the_position_goes_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal.copy");
        let (mut copy, _) = JournalCopy::open(&path, 0).expect("opens");
        let at = |cursor| Position {
            journal: Some("j".into()),
            cursor,
            given: cursor,
            joined_at: 0,
        };
        copy.take(at(1), &[url(1, "a")], 0).expect("kept");
        copy.take(at(2), &[url(2, "b")], 0).expect("kept");
        let mut bytes = std::fs::read(&path).expect("read");
        bytes[60] ^= 1;
        std::fs::write(&path, bytes).expect("write");
        let large = Entry {
            revision: 3,
            accepted_unix_ms: 0,
            change: Change::FleetFile {
                text: "x".repeat(9 << 20),
            },
        };
        let taken = copy.take(at(3), &[large], 0);
        assert!(
            matches!(taken, Err(FramedError::Damaged { .. })),
            "{taken:?}"
        );
        assert_eq!(copy.position, Position::default());
        // It is of use again.
        copy.take(at(1), &[url(1, "a")], 0).expect("kept");
        drop(copy);
        let (copy, entries) = JournalCopy::open(&path, 0).expect("opens");
        assert_eq!((copy.position, entries), (at(1), vec![url(1, "a")]));
        assert!(dir.path().join("journal.copy.bad").exists());
    }

    #[test]
    fn a_damaged_copy_is_set_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal.copy");
        std::fs::write(&path, "not a copy").expect("write");
        let (copy, entries) = JournalCopy::open(&path, 0).expect("opens");
        assert_eq!((entries, copy.position), (vec![], Position::default()));
        assert!(dir.path().join("journal.copy.bad").exists());
    }
}
