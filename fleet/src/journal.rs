//! The control journal: an append-only, checksummed and synced file of changes in the order in
//! which every node applies them.
//!
//! The file is a log of framed records ([`crate::framed`] owns the bytes). A record holds one entry
//! as a JSON object, or entries that were written together ([`Journal::append_group`]) as a JSON
//! array: one checksum covers the group, so a crash leaves all of it or nothing. An entry that
//! [`Journal::append`] returned is on disk; an entry that it refused is not in the file. Revisions
//! rise by one, except where [`Journal::reconcile`] closed a gap after a lost journal or
//! [`Journal::compact`] left out superseded entries.

use std::path::{Path, PathBuf};

use crate::change::{Change, Entry, Purge, PurgeScope};
use crate::fold::fold;
use crate::framed::{FramedError, FramedLog, RecordPosition};

/// The magic number at the start of a journal file.
const MAGIC: &[u8; 8] = b"NCJRNL1\n";

/// Largest encoded change.
const CHANGE_BYTES_MAX: usize = 16 << 20;

/// Most encoded bytes of entries that share a record; a larger entry has a record of its own.
const GROUP_BYTES_MAX: usize = 1 << 20;

/// Encoded bytes after which [`Journal::after`] returns no further entry.
const AFTER_BYTES_MAX: usize = 8 << 20;

/// The journal is compacted again when it has grown by this many bytes beyond twice its compacted
/// length.
const COMPACT_AFTER_BYTES: u64 = 8 << 20;

/// Newest entries that compaction always keeps, as operators look at recent changes.
const RECENT_KEPT: usize = 256;

/// Most changes a second in the long run: several times what a disk can sync. A follower that
/// claims to have seen more is not believed, so that none can use up the revisions (JSON represents
/// 2^53 of them exactly).
const REVISIONS_PER_SECOND_MAX: u64 = 10_000;

/// Earliest possible time of a journal: 2026-01-01, milliseconds after the Unix epoch.
const FIRST_JOURNAL_UNIX_MS: u64 = 1_767_225_600_000;

/// Largest tolerated difference between clocks.
const CLOCKS_DIFFER_MAX_MS: u64 = 3_600_000;

/// The journal file of the control role.
#[derive(Debug)]
pub struct Journal {
    log: FramedLog,
    /// Location of every entry, in order.
    locations: Vec<EntryLocation>,
    path: PathBuf,
    /// Length after the last compaction by this process.
    compacted_bytes: u64,
    /// Whether the file had a purge of everything when it was opened.
    opened_with_purge_of_all: bool,
    /// Summary of all entries; its purge of everything counts since the file was opened.
    summary: Summary,
    /// Followers have used the revisions up to this one, though they are not in this file.
    revision_floor: u64,
}

/// Location of an entry.
#[derive(Debug, Clone, Copy)]
struct EntryLocation {
    revision: u64,
    /// The record that holds it.
    place: RecordPosition,
    /// Index among the entries of the record.
    index: u32,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Reading or writing failed, for example on a full disk. Nothing was acknowledged.
    #[error("journal {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A record before the last one is damaged. Starting would lose an acknowledged change.
    #[error("journal {} is damaged at byte {offset}: {reason}; restore it from a copy, or move it away to begin a new one", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Offset of the damage.
        offset: u64,
        /// Description of the damage.
        reason: String,
    },
    /// The change is larger than a record may be (16 MiB).
    #[error("a change of {bytes} bytes is too large for the journal (limit {limit})")]
    TooLarge {
        /// Its encoded length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}

impl JournalError {
    /// The same error for another entry of the group.
    fn repeated(&self) -> Self {
        match self {
            Self::Io { path, source } => {
                let same = |code| std::io::Error::from_raw_os_error(code);
                let source = source.raw_os_error().map_or_else(
                    || std::io::Error::new(source.kind(), source.to_string()),
                    same,
                );
                Self::Io {
                    path: path.clone(),
                    source,
                }
            }
            Self::Damaged {
                path,
                offset,
                reason,
            } => Self::Damaged {
                path: path.clone(),
                offset: *offset,
                reason: reason.clone(),
            },
            Self::TooLarge { bytes, limit } => Self::TooLarge {
                bytes: *bytes,
                limit: *limit,
            },
        }
    }
}

impl From<FramedError> for JournalError {
    fn from(error: FramedError) -> Self {
        match error {
            FramedError::Io { path, source } => Self::Io { path, source },
            FramedError::Damaged {
                path,
                offset,
                reason,
            } => Self::Damaged {
                path,
                offset,
                reason,
            },
            FramedError::TooLarge { bytes, limit } => Self::TooLarge { bytes, limit },
        }
    }
}

impl Journal {
    /// Opens or creates the journal, checks every record and cuts off an unfinished last one.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] when a record before the last one is bad; [`JournalError::Io`].
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let mut locations: Vec<EntryLocation> = Vec::new();
        let mut summary = Summary::default();
        let mut damage = None;
        let each = |place: RecordPosition, payload: &[u8]| {
            if let Err(reason) = scan_record(place, payload, &mut locations, &mut summary) {
                damage.get_or_insert((place.offset, reason));
            }
        };

        let log = FramedLog::open(path, MAGIC, CHANGE_BYTES_MAX, each)?;
        match damage {
            Some((offset, reason)) => Err(JournalError::Damaged {
                path: path.to_owned(),
                offset,
                reason,
            }),
            None => Ok(Self {
                log,
                locations,
                path: path.to_owned(),
                compacted_bytes: 0,
                opened_with_purge_of_all: summary.has_purged_all,
                summary: Summary {
                    has_purged_all: false,
                    ..summary
                },
                revision_floor: 0,
            }),
        }
    }

    /// Identity of the journal: 32 hexadecimal digits, drawn when the file was created.
    pub fn id(&self) -> String {
        self.log.id()
    }

    /// Appends a change; it is on disk when this returns. After an error the file is unchanged.
    /// Blocking.
    ///
    /// A fleet file is accepted in a later second than the one before it, whatever the clock shows:
    /// zones derive their serial from that second.
    ///
    /// # Errors
    /// [`JournalError::TooLarge`]; [`JournalError::Io`], for example a full disk.
    pub fn append(&mut self, change: Change, accepted_unix_ms: u64) -> Result<Entry, JournalError> {
        self.append_as(self.next_revision(), change, accepted_unix_ms)
    }

    /// Records the time of a fleet file that was in force without being in the journal. The next
    /// fleet file is accepted in a later second, so that no two have the same serial.
    pub fn heed_fleet_file(&mut self, changed_unix_s: u64) {
        self.summary.fleet_file_unix_ms = self
            .summary
            .fleet_file_unix_ms
            .max(changed_unix_s.saturating_mul(1000));
    }

    /// Appends changes in order, each with its time of acceptance, with one sync a record. Entries
    /// that are returned are on disk; after an error of a record none of its entries is in the
    /// file. Blocking.
    pub fn append_group(
        &mut self,
        changes: Vec<(Change, u64)>,
    ) -> Vec<Result<Entry, JournalError>> {
        let mut outcomes = Vec::with_capacity(changes.len());
        let mut group: Vec<Entry> = Vec::new();
        let mut payload = Vec::new();
        // The summary as if the whole group were written.
        let mut summary = self.summary;
        for (change, accepted_unix_ms) in changes {
            let mut entry = summary.entry(
                self.next_revision() + group.len() as u64,
                change,
                accepted_unix_ms,
            );
            summary.add(&entry);
            let mut encoded = encode(&entry);
            if encoded.len() > CHANGE_BYTES_MAX {
                self.append_encoded(&mut group, &mut payload, &mut outcomes);
                outcomes.push(Err(JournalError::TooLarge {
                    bytes: encoded.len(),
                    limit: CHANGE_BYTES_MAX,
                }));
                continue;
            }
            if !group.is_empty() && payload.len() + encoded.len() + 2 > GROUP_BYTES_MAX {
                self.append_encoded(&mut group, &mut payload, &mut outcomes);
                // If the entries before it failed, it gets their revision.
                entry.revision = self.next_revision();
                encoded = encode(&entry);
            }
            if !payload.is_empty() {
                payload.push(b',');
            }
            payload.append(&mut encoded);
            group.push(entry);
        }

        self.append_encoded(&mut group, &mut payload, &mut outcomes);
        outcomes
    }

    /// Appends one record of entries; `payload` is their encodings, separated by commas.
    fn append_encoded(
        &mut self,
        group: &mut Vec<Entry>,
        payload: &mut Vec<u8>,
        outcomes: &mut Vec<Result<Entry, JournalError>>,
    ) {
        if group.is_empty() {
            return;
        }
        // A single entry is written in the form that every version reads.
        let written = match group.len() {
            1 => self.log.append(payload),
            _ => self.log.append(&[b"[", payload.as_slice(), b"]"].concat()),
        };

        payload.clear();
        match written.map_err(JournalError::from) {
            Ok(place) => {
                self.locations
                    .extend((0..).zip(group.iter()).map(|(index, entry)| EntryLocation {
                        revision: entry.revision,
                        place,
                        index,
                    }));
                group.iter().for_each(|entry| self.summary.add(entry));
                outcomes.extend(group.drain(..).map(Ok));
            }
            Err(error) => outcomes.extend(group.drain(..).map(|_| Err(error.repeated()))),
        }
    }

    /// Repairs the journal for a follower that has seen more than it holds.
    ///
    /// A follower that requests the entries after revision `after` of the journal
    /// `follower_journal` has seen another journal (this one replaced a lost one) or more of this
    /// one (an older copy was restored). Either way acknowledged changes are lost, purges among
    /// them, and revisions would be used twice. So everything is purged, with a revision above all
    /// that either side has used. Returns that entry, or `None` when nothing was lost.
    ///
    /// One such purge is enough, and no follower can cause more: a journal can be set back only
    /// while no process has it open, so the lost entries precede this process, and one purge of
    /// everything since then covers them. A follower of another journal purges its own content; any
    /// purge of everything in this journal covers the rest. Then only the revisions that followers
    /// have used are skipped. A claim for which [`Journal::is_plausible`] is false is ignored.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn reconcile(
        &mut self,
        follower_journal: Option<&str>,
        after: u64,
        now_unix_ms: u64,
    ) -> Result<Option<Entry>, JournalError> {
        let other = after > 0 && follower_journal.is_some_and(|id| id != self.id());
        if after <= self.revision() && !other {
            return Ok(None);
        }
        if !self.is_plausible(follower_journal, after, now_unix_ms) {
            return Ok(None);
        }
        let is_covered = self.summary.has_purged_all || (other && self.opened_with_purge_of_all);
        if is_covered {
            if after > self.revision() {
                // The follower may have used one more for its own purge of everything.
                self.revision_floor = self.revision_floor.max(after + 1);
            }
            return Ok(None);
        }

        let everything = Change::Purge(Purge {
            scope: PurgeScope::All,
            soft: false,
        });
        self.append_as(self.next_revision().max(after + 1), everything, now_unix_ms)
            .map(Some)
    }

    /// Whether a follower can have seen revision `after` of the journal `follower_journal`: a
    /// revision of this journal, or no more than can have been added since its newest entry, or to
    /// another journal since the first one.
    pub fn is_plausible(
        &self,
        follower_journal: Option<&str>,
        after: u64,
        now_unix_ms: u64,
    ) -> bool {
        let is_other = follower_journal.is_some_and(|id| id != self.id());
        let (base, since_ms) = if is_other {
            (0, FIRST_JOURNAL_UNIX_MS)
        } else {
            (self.revision(), self.summary.newest_unix_ms)
        };
        let seconds = (now_unix_ms.saturating_sub(since_ms) + CLOCKS_DIFFER_MAX_MS) / 1000;
        after
            <= self
                .revision()
                .max(base.saturating_add(seconds.saturating_mul(REVISIONS_PER_SECOND_MAX)))
    }

    fn next_revision(&self) -> u64 {
        self.revision().max(self.revision_floor) + 1
    }

    /// Revision of the newest entry; 0 for an empty journal.
    pub fn revision(&self) -> u64 {
        self.locations
            .last()
            .map_or(0, |location| location.revision)
    }

    /// Up to `most` entries after `revision`, oldest first; fewer when they are large. An entry
    /// that cannot be read, because the disk fails, ends the list and is logged.
    pub fn after(&self, revision: u64, most: usize) -> Vec<Entry> {
        let first = self
            .locations
            .partition_point(|location| location.revision <= revision);
        let mut bytes = 0;
        let mut entries = Vec::new();
        let mut record = DecodedRecord::default();
        for location in self.locations[first..].iter().take(most) {
            if record.place != Some(location.place) {
                bytes += location.place.bytes;
                if bytes > AFTER_BYTES_MAX && !entries.is_empty() {
                    break;
                }
            }
            match self.read(*location, &mut record) {
                Ok(entry) => entries.push(entry),
                Err(error) => {
                    tracing::error!(path = %self.path.display(), offset = location.place.offset, %error, "a journal entry cannot be read");
                    break;
                }
            }
        }
        entries
    }

    /// Whether the journal has grown enough for [`Journal::compact`].
    pub fn is_compaction_due(&self) -> bool {
        self.log.bytes() > 2 * self.compacted_bytes + COMPACT_AFTER_BYTES
    }

    /// Removes superseded entries; returns their number. Identity, revisions and order stay, and so
    /// do the newest 256 entries, so that a follower reaches the same state from any cursor:
    /// instead of a removed entry it gets a later one that covers at least as much. Beyond 262,144
    /// purged scopes, or 64 MiB of their names, the older ones become one purge of everything. A
    /// crash leaves the old file or the new one. Blocking.
    ///
    /// # Errors
    /// [`JournalError::Io`], also for an entry that was damaged meanwhile; the journal stays as it
    /// was.
    pub fn compact(&mut self, now_unix_ms: u64) -> Result<usize, JournalError> {
        let io = |source| JournalError::Io {
            path: self.path.clone(),
            source,
        };
        // Whatever the result, the next compaction waits for growth.
        self.compacted_bytes = self.log.bytes();
        let (old, recent) = self
            .locations
            .split_at(self.locations.len().saturating_sub(RECENT_KEPT));
        let mut record = DecodedRecord::default();
        let old: Vec<Entry> = old
            .iter()
            .map(|location| self.read(*location, &mut record))
            .collect::<Result<_, _>>()
            .map_err(io)?;

        let before = old.len();
        let mut kept = fold(old, now_unix_ms);
        let left_out = before - kept.len();
        if left_out == 0 {
            return Ok(0);
        }
        for location in recent {
            kept.push(self.read(*location, &mut record).map_err(io)?);
        }
        let revisions: Vec<u64> = kept.iter().map(|entry| entry.revision).collect();
        let mut places = Vec::with_capacity(revisions.len());
        self.log
            .rewrite(kept.iter().map(encode), |place, _| places.push(place))?;
        self.locations = revisions
            .into_iter()
            .zip(places)
            .map(|(revision, place)| EntryLocation {
                revision,
                place,
                index: 0,
            })
            .collect();

        self.compacted_bytes = self.log.bytes();
        Ok(left_out)
    }

    /// Reads an entry; `record` caches the last record for further entries of it.
    fn read(&self, location: EntryLocation, record: &mut DecodedRecord) -> std::io::Result<Entry> {
        if record.place != Some(location.place) {
            *record = DecodedRecord::default();
            record.entries = decode(&self.log.read(location.place)?)?;
            record.place = Some(location.place);
        }
        let missing = || {
            std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "the record holds fewer entries than it did",
            )
        };
        record
            .entries
            .get(location.index as usize)
            .cloned()
            .ok_or_else(missing)
    }

    fn append_as(
        &mut self,
        revision: u64,
        change: Change,
        accepted_unix_ms: u64,
    ) -> Result<Entry, JournalError> {
        let entry = self.summary.entry(revision, change, accepted_unix_ms);
        let place = self.log.append(&encode(&entry))?;
        self.locations.push(EntryLocation {
            revision,
            place,
            index: 0,
        });
        self.summary.add(&entry);
        Ok(entry)
    }
}

/// Adds the entries of a record. The error describes damage; the entries before it are added.
fn scan_record(
    place: RecordPosition,
    payload: &[u8],
    locations: &mut Vec<EntryLocation>,
    summary: &mut Summary,
) -> Result<(), String> {
    let entries = decode(payload).map_err(|error| {
        format!("the record is whole but no entry ({error}); a newer version may have written it")
    })?;
    for (index, entry) in (0..).zip(entries) {
        let revision = entry.revision;
        let newest = locations.last().map_or(0, |location| location.revision);
        if revision <= newest {
            return Err(format!("revision {revision} follows revision {newest}"));
        }
        locations.push(EntryLocation {
            revision,
            place,
            index,
        });
        summary.add(&entry);
    }
    Ok(())
}

/// A summary of the entries of a journal, as far as it needs one.
#[derive(Debug, Clone, Copy, Default)]
struct Summary {
    /// When the newest fleet file was accepted, milliseconds after the Unix epoch.
    fleet_file_unix_ms: u64,
    /// When the newest entry was accepted, milliseconds after the Unix epoch.
    newest_unix_ms: u64,
    /// Whether a purge of everything is among them.
    has_purged_all: bool,
}

impl Summary {
    fn add(&mut self, entry: &Entry) {
        if matches!(entry.change, Change::FleetFile { .. }) {
            self.fleet_file_unix_ms = entry.accepted_unix_ms;
        }
        self.newest_unix_ms = entry.accepted_unix_ms;
        self.has_purged_all |= matches!(
            entry.change,
            Change::Purge(Purge {
                scope: PurgeScope::All,
                soft: false
            })
        );
    }

    /// The next entry. A fleet file's time is in a later second than that of the one before it.
    fn entry(&self, revision: u64, change: Change, accepted_unix_ms: u64) -> Entry {
        let earliest = match change {
            Change::FleetFile { .. } if self.fleet_file_unix_ms > 0 => {
                (self.fleet_file_unix_ms / 1000 + 1) * 1000
            }
            _ => 0,
        };
        Entry {
            revision,
            accepted_unix_ms: accepted_unix_ms.max(earliest),
            change,
        }
    }
}

/// The record that was read last.
#[derive(Debug, Default)]
struct DecodedRecord {
    place: Option<RecordPosition>,
    entries: Vec<Entry>,
}

fn decode(payload: &[u8]) -> serde_json::Result<Vec<Entry>> {
    if payload.first() == Some(&b'[') {
        serde_json::from_slice(payload)
    } else {
        serde_json::from_slice(payload).map(|entry| vec![entry])
    }
}

fn encode(entry: &Entry) -> Vec<u8> {
    serde_json::to_vec(entry).expect("an entry has string keys and no failing parts")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::change::{Drain, DrainTarget, PushOrder};

    fn purge(url: &str) -> Change {
        Change::Purge(Purge {
            scope: PurgeScope::Url(url.into()),
            soft: false,
        })
    }

    fn written(path: &Path, count: u64) -> Vec<Entry> {
        let mut journal = Journal::open(path).expect("opens");
        (0..count)
            .map(|n| {
                journal
                    .append(purge(&format!("http://h/{n}")), 1000 + n)
                    .expect("appends")
            })
            .collect()
    }

    #[test]
    fn entries_survive_reopening_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let entries = written(&path, 5);
        let mut journal = Journal::open(&path).expect("opens again");
        assert_eq!(
            (journal.revision(), journal.after(0, 100)),
            (5, entries.clone())
        );
        assert_eq!(journal.after(2, 2), entries[2..4]);
        assert_eq!(journal.after(5, 9), []);
        assert_eq!(journal.after(99, 9), []);
        let id = journal.id();
        assert_eq!(
            journal
                .append(Change::FleetFile { text: "x".into() }, 1)
                .expect("appends")
                .revision,
            6
        );
        assert_eq!(Journal::open(&path).expect("opens").id(), id);
        assert_eq!(id.len(), 32);
    }

    #[test]
    fn a_group_is_read_entry_by_entry_and_folds_like_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let mut journal = Journal::open(&path).expect("opens");
        let mut entries = vec![journal.append(purge("http://h/alone"), 1).expect("appends")];
        let group = |n: u64| {
            (0..n)
                .map(|k| (purge(&format!("http://h/{k}")), 10 + k))
                .collect::<Vec<_>>()
        };
        for n in [5, 1, 0, 400] {
            entries.extend(
                journal
                    .append_group(group(n))
                    .into_iter()
                    .map(|outcome| outcome.expect("appends")),
            );
        }
        entries.push(journal.append(purge("http://h/last"), 1).expect("appends"));
        assert_eq!(
            entries.iter().map(|e| e.revision).collect::<Vec<_>>(),
            (1..=408).collect::<Vec<_>>()
        );
        for mut journal in [journal, Journal::open(&path).expect("opens")] {
            for (after, most) in [
                (0, 1000),
                (0, 3),
                (3, 2),
                (4, 1000),
                (6, 256),
                (407, 9),
                (408, 9),
            ] {
                let expected = &entries[after..(after + most).min(entries.len())];
                assert_eq!(
                    journal.after(after as u64, most),
                    expected,
                    "{most} after {after}"
                );
            }
            assert!(journal.compact(1).is_ok());
            assert_eq!(
                journal.after(408 - RECENT_KEPT as u64, 1000),
                entries[408 - RECENT_KEPT..]
            );
        }
    }

    #[test]
    fn a_group_cut_at_any_byte_is_gone_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let entries = written(&path, 2);
        let before = std::fs::metadata(&path).expect("there").len() as usize;
        let mut journal = Journal::open(&path).expect("opens");
        let group = || {
            (0..3)
                .map(|n| (purge(&format!("http://h/g{n}")), 5))
                .collect::<Vec<_>>()
        };
        assert!(journal.append_group(group()).iter().all(Result::is_ok));
        let whole = std::fs::read(&path).expect("read");
        for at in before..whole.len() {
            // Cut short; and written but for one page, as a loss of power may leave it.
            let mut holed = whole.clone();
            holed[at..(at + 64).min(whole.len())].fill(0);
            if holed == whole {
                continue;
            }
            for bytes in [&whole[..at], &holed] {
                std::fs::write(&path, bytes).expect("write");
                let mut journal = Journal::open(&path).unwrap_or_else(|e| panic!("at {at}: {e}"));
                assert_eq!(journal.after(0, 9), entries, "at {at}");
                assert_eq!(
                    journal
                        .append(purge("http://h/more"), 9)
                        .expect("appends")
                        .revision,
                    3
                );
            }
        }
    }

    #[test]
    fn a_group_that_fails_leaves_nothing_and_one_that_is_too_large_fails_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let entries = written(&path, 2);
        let before = std::fs::read(&path).expect("read");
        let mut journal = Journal::open(&path).expect("opens");
        let group = || {
            (0..3)
                .map(|n| (purge(&format!("http://h/g{n}")), 5))
                .collect::<Vec<_>>()
        };
        for written_before_the_error in [0, 12, 100] {
            journal.log.fail_next_write_after(written_before_the_error);
            let outcomes = journal.append_group(group());
            assert!(
                outcomes.len() == 3
                    && outcomes.iter().all(|o| o
                        .as_ref()
                        .is_err_and(|e| e.to_string().contains("No space left")))
            );
            assert_eq!(std::fs::read(&path).expect("read"), before);
            assert_eq!(
                (journal.revision(), journal.after(0, 9)),
                (2, entries.clone())
            );
        }
        let big = |bytes: usize| {
            (
                Change::FleetFile {
                    text: "x".repeat(bytes),
                },
                1,
            )
        };
        let mut changes = group();
        changes.insert(1, big(CHANGE_BYTES_MAX));
        changes.insert(3, big(GROUP_BYTES_MAX));
        let outcomes = journal.append_group(changes);
        let revisions: Vec<Option<u64>> = outcomes
            .iter()
            .map(|o| o.as_ref().ok().map(|e| e.revision))
            .collect();
        assert_eq!(revisions, [Some(3), None, Some(4), Some(5), Some(6)]);
        let again = Journal::open(&path).expect("opens");
        assert_eq!(
            again.after(2, 9),
            outcomes.into_iter().flatten().collect::<Vec<_>>()
        );
    }

    #[test]
    fn two_journals_have_two_ids() {
        let dir = tempfile::tempdir().expect("a directory");
        let [a, b] = ["a", "b"].map(|n| Journal::open(&dir.path().join(n)).expect("opens").id());
        assert_ne!(a, b);
    }

    #[test]
    fn a_file_cut_at_any_byte_keeps_a_prefix_and_takes_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let header = {
            written(&path, 0);
            std::fs::metadata(&path).expect("there").len()
        };
        let entries = written(&path, 4);
        let whole = std::fs::read(&path).expect("read");
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("write");
            let opened = Journal::open(&path);
            if (cut as u64) < header {
                assert!(
                    matches!(opened, Err(JournalError::Damaged { .. })),
                    "cut at {cut}"
                );
                continue;
            }
            let mut journal = opened.unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
            let kept = journal.after(0, 9);
            assert_eq!(kept, entries[..kept.len()], "cut at {cut}");
            assert!(kept.len() < 4, "cut at {cut}");
            let more = journal.append(purge("http://h/more"), 9).expect("appends");
            assert_eq!(
                Journal::open(&path)
                    .expect("opens")
                    .after(kept.len() as u64, 9),
                [more],
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_flipped_byte_before_the_last_record_is_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        written(&path, 3);
        let two = std::fs::metadata(&path).expect("there").len();
        written(&path, 1);
        let whole = std::fs::read(&path).expect("read");
        for at in 0..two as usize {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x20;
            std::fs::write(&path, &bytes).expect("write");
            let opened = Journal::open(&path);
            assert!(
                matches!(opened, Err(JournalError::Damaged { .. })),
                "byte {at}: {opened:?}"
            );
            assert_eq!(
                std::fs::read(&path).expect("read"),
                bytes,
                "a damaged file is left as it is"
            );
        }
    }

    #[test]
    fn a_full_disk_is_reported_and_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let entries = written(&path, 2);
        let before = std::fs::read(&path).expect("read");
        let mut journal = Journal::open(&path).expect("opens");
        for written_before_the_error in [0, 1, 11, 12, 30] {
            journal.log.fail_next_write_after(written_before_the_error);
            let error = journal.append(purge("http://h/lost"), 1).expect_err("full");
            assert!(error.to_string().contains("No space left"), "{error}");
            assert_eq!(std::fs::read(&path).expect("read"), before);
            assert_eq!(
                (journal.revision(), journal.after(0, 9)),
                (2, entries.clone())
            );
        }
        assert_eq!(
            journal
                .append(purge("http://h/kept"), 1)
                .expect("space again")
                .revision,
            3
        );
        assert_eq!(Journal::open(&path).expect("opens").revision(), 3);
    }

    #[test]
    fn a_change_beyond_the_limit_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = Journal::open(&dir.path().join("journal")).expect("opens");
        let error = journal
            .append(
                Change::FleetFile {
                    text: "x".repeat(CHANGE_BYTES_MAX),
                },
                1,
            )
            .expect_err("too large");
        assert!(matches!(error, JournalError::TooLarge { .. }), "{error}");
        assert_eq!(journal.revision(), 0);
    }

    #[test]
    fn large_entries_come_in_several_answers() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = Journal::open(&dir.path().join("journal")).expect("opens");
        for _ in 0..3 {
            journal
                .append(
                    Change::FleetFile {
                        text: "x".repeat(5 << 20),
                    },
                    1,
                )
                .expect("appends");
        }
        assert_eq!(journal.after(0, 256).len(), 1);
        assert_eq!(journal.after(2, 256).len(), 1);
    }

    /// A journal that has something to leave out: one URL purged again and again, then the newest
    /// entries.
    fn repetitive(path: &Path) -> (Journal, Vec<Entry>) {
        let mut journal = Journal::open(path).expect("opens");
        let old = (0..300).map(|n| purge(&format!("http://h/{}", n % 3)));
        let recent = (0..RECENT_KEPT).map(|_| purge("http://h/0"));
        let entries = old
            .chain(recent)
            .map(|change| journal.append(change, 7).expect("appends"))
            .collect();
        (journal, entries)
    }

    #[test]
    fn compaction_leaves_what_followers_and_people_need() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let (mut journal, entries) = repetitive(&path);
        let (id, before) = (journal.id(), std::fs::metadata(&path).expect("there").len());
        assert_eq!(journal.compact(9).expect("room"), 297);
        assert!(std::fs::metadata(&path).expect("there").len() < before);
        // Three of the old ones, the newest of each URL, and all recent ones, whatever the cursor.
        for mut reader in [journal, Journal::open(&path).expect("opens")] {
            assert_eq!((reader.id(), reader.revision()), (id.clone(), 556));
            for cursor in [0, 1, 297, 298, 299, 300, 301, 555, 556] {
                let expected: Vec<&Entry> = entries
                    .iter()
                    .filter(|e| e.revision > cursor.max(297))
                    .collect();
                assert_eq!(
                    reader.after(cursor, 1000).iter().collect::<Vec<_>>(),
                    expected,
                    "from {cursor}"
                );
            }
            assert_eq!(reader.reconcile(Some(&id), 556, 1).expect("fine"), None);
        }
        let mut journal = Journal::open(&path).expect("opens");
        assert_eq!(
            journal
                .append(purge("http://h/more"), 1)
                .expect("appends")
                .revision,
            557
        );
        assert_eq!(Journal::open(&path).expect("opens").revision(), 557);
        let kept = std::fs::read(&path).expect("read");
        assert_eq!(
            journal.compact(9).expect("room"),
            1,
            "one entry is no longer among the newest and superseded"
        );
        assert_ne!(std::fs::read(&path).expect("read"), kept);
    }

    #[test]
    fn a_compaction_cut_short_at_any_byte_loses_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let (mut journal, entries) = repetitive(&path);
        let old = std::fs::read(&path).expect("read");
        journal.compact(9).expect("room");
        let new = std::fs::read(&path).expect("read");
        for cut in (0..new.len()).step_by(997).chain([new.len()]) {
            std::fs::write(&path, &old).expect("write");
            std::fs::write(path.with_extension("new"), &new[..cut]).expect("write");
            let mut journal = Journal::open(&path).expect("opens");
            assert!(!path.with_extension("new").exists());
            assert_eq!(journal.after(0, 1000), entries, "cut at {cut}");
            assert_eq!(journal.compact(9).expect("room"), 297, "cut at {cut}");
            assert_eq!(std::fs::read(&path).expect("read"), new, "cut at {cut}");
        }
    }

    #[test]
    fn a_compaction_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let (mut journal, entries) = repetitive(&path);
        // Nothing can be written under the name of the new file.
        std::fs::create_dir(path.with_extension("new")).expect("room");
        assert!(matches!(journal.compact(9), Err(JournalError::Io { .. })));
        assert_eq!(journal.after(0, 1000), entries);
        assert_eq!(
            journal
                .append(purge("http://h/more"), 1)
                .expect("appends")
                .revision,
            557
        );
        std::fs::remove_dir(path.with_extension("new")).expect("there");
        assert_eq!(Journal::open(&path).expect("opens").revision(), 557);
    }

    #[test]
    fn compaction_does_not_put_right_checksums_on_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let (mut journal, _) = repetitive(&path);
        // A bit rots under the running process, in the newest entry of that URL, which compaction
        // keeps.
        let mut bytes = std::fs::read(&path).expect("read");
        let at = bytes
            .windows(10)
            .rposition(|w| w == b"http://h/1")
            .expect("it is there")
            + 9;
        bytes[at] = b'7';
        std::fs::write(&path, &bytes).expect("write");
        let outcome = journal.compact(9);
        assert!(
            outcome
                .as_ref()
                .is_err_and(|e| e.to_string().contains("damaged at byte")),
            "{outcome:?}"
        );
        assert_eq!(
            std::fs::read(&path).expect("read"),
            bytes,
            "the file is as it was"
        );
        let last = journal
            .after(0, usize::MAX)
            .last()
            .expect("those before it")
            .revision;
        assert!(
            last < journal.revision(),
            "nothing from the damage on is given out"
        );
    }

    #[test]
    fn nobody_else_may_read_a_journal() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        drop(Journal::open(&path).expect("it is begun"));
        assert_eq!(
            std::fs::metadata(&path)
                .expect("it is there")
                .permissions()
                .mode()
                & 0o077,
            0,
            "it may hold the node key"
        );
    }

    #[test]
    fn purges_are_read_as_every_version_wrote_them() {
        let s = str::to_owned;
        let table = [
            (
                r#"{"scope":{"by":"url","value":"http://a/"}}"#,
                PurgeScope::Url(s("http://a/")),
            ),
            (
                r#"{"scope":{"by":"prefix","value":"http://a/x/"},"soft":false}"#,
                PurgeScope::Prefix(s("http://a/x/")),
            ),
            (r#"{"scope":{"by":"all"},"soft":false}"#, PurgeScope::All),
            (
                r#"{"scope":{"by":"site_tag","value":{"site":"www","tag":"t"}},"soft":false}"#,
                PurgeScope::SiteTag {
                    site: s("www"),
                    tag: s("t"),
                },
            ),
            (
                r#"{"scope":{"by":"any","value":[{"by":"tag","value":"t"},{"by":"host","value":"a"}]},"soft":false}"#,
                PurgeScope::Any(vec![PurgeScope::Tag(s("t")), PurgeScope::Host(s("a"))]),
            ),
        ];
        for (text, scope) in table {
            let purge: Purge = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(purge, Purge { scope, soft: false });
            let again = serde_json::to_string(&purge).expect("encodes");
            assert_eq!(
                serde_json::from_str::<Purge>(&again).expect("its own form"),
                purge
            );
        }
    }

    #[test]
    fn an_order_of_an_earlier_version_is_read() {
        let text = r#"{"kind":"push","id":"o","cluster":"ams","items":[],"rate_bytes":1,"not_after_unix_ms":2}"#;
        let order = PushOrder {
            id: "o".into(),
            cluster: "ams".into(),
            items: vec![],
            rate_bytes: 1,
            not_after_unix_ms: 2,
            fresh_until_unix_ms: 0,
        };
        assert_eq!(
            serde_json::from_str::<Change>(text).expect("it is read"),
            Change::Push(order)
        );
    }

    #[test]
    fn compaction_is_due_when_the_journal_has_grown() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = Journal::open(&dir.path().join("journal")).expect("opens");
        let text = "x".repeat(COMPACT_AFTER_BYTES as usize / 2);
        let grow = |journal: &mut Journal| {
            journal
                .append(Change::FleetFile { text: text.clone() }, 1)
                .expect("appends")
        };
        grow(&mut journal);
        assert!(!journal.is_compaction_due());
        grow(&mut journal);
        assert!(journal.is_compaction_due());
        assert_eq!(journal.compact(1).expect("room"), 0, "both are recent");
        assert!(
            !journal.is_compaction_due(),
            "not again before it has grown"
        );
    }

    #[test]
    fn a_follower_that_has_seen_more_gets_everything_purged_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        written(&path, 3);
        let mut journal = Journal::open(&path).expect("opens");
        let id = journal.id();
        for (follower, after) in [
            (None, 0),
            (None, 3),
            (Some(id.as_str()), 2),
            (Some("other"), 0),
        ] {
            assert_eq!(
                journal.reconcile(follower, after, 1).expect("works"),
                None,
                "{follower:?} {after}"
            );
        }
        let entry = journal
            .reconcile(Some(&id), 57, 1)
            .expect("works")
            .expect("amiss");
        assert_eq!(
            (entry.revision, entry.change),
            (
                58,
                Change::Purge(Purge {
                    scope: PurgeScope::All,
                    soft: false
                })
            )
        );
        for (follower, after) in [
            (Some(id.as_str()), 57),
            (Some("other"), 2),
            (None, 100),
            (Some(id.as_str()), 70),
            (Some("third"), 1),
        ] {
            assert_eq!(
                journal.reconcile(follower, after, 1).expect("works"),
                None,
                "one purge covers all: {follower:?} {after}"
            );
        }
        assert_eq!(
            journal
                .append(purge("http://h/"), 1)
                .expect("appends")
                .revision,
            102,
            "no revision that a follower has used is used again"
        );
        let mut again = Journal::open(&path).expect("gaps are no damage");
        assert_eq!(
            again
                .after(3, 9)
                .iter()
                .map(|e| e.revision)
                .collect::<Vec<_>>(),
            [58, 102]
        );
        assert_eq!(
            again.reconcile(Some("other"), 500, 1).expect("works"),
            None,
            "followers of another journal purge by themselves"
        );
        let entry = again
            .reconcile(Some(&id), 510, 1)
            .expect("works")
            .expect("it may have been set back before it was opened");
        assert_eq!(entry.revision, 511);
    }

    #[test]
    fn what_no_journal_can_have_reached_is_not_believed() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut journal = Journal::open(&dir.path().join("journal")).expect("opens");
        let (now, day) = (FIRST_JOURNAL_UNIX_MS + 300 * 86_400_000, 86_400_000);
        journal
            .append(purge("http://h/"), now - day)
            .expect("appends");
        let id = journal.id();
        let own = Some(id.as_str());
        for (follower, after, expected) in [
            (own, 1, true),
            (own, 2, true),
            (own, 800_000_000, true),
            (own, 1_000_000_000, false),
            (None, 1_000_000_000, false),
            (Some("lost"), 1_000_000_000, true),
            (Some("lost"), 1 << 40, false),
            (own, 1 << 52, false),
            (Some("lost"), 1 << 52, false),
            (None, u64::MAX, false),
        ] {
            assert_eq!(
                journal.is_plausible(follower, after, now),
                expected,
                "{follower:?} {after}"
            );
            if !expected {
                assert_eq!(
                    journal.reconcile(follower, after, now).expect("works"),
                    None,
                    "{follower:?} {after}"
                );
            }
        }
        assert_eq!(
            journal
                .append(purge("http://h/"), now)
                .expect("appends")
                .revision,
            2,
            "none of these has left a mark"
        );
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let scope = prop_oneof![
            ".*".prop_map(PurgeScope::Url),
            ".*".prop_map(PurgeScope::Prefix),
            ".*".prop_map(PurgeScope::Tag),
            Just(PurgeScope::All),
        ];
        prop_oneof![
            (scope, any::<bool>()).prop_map(|(scope, soft)| Change::Purge(Purge { scope, soft })),
            ".*".prop_map(|text| Change::FleetFile { text }),
            (".*", any::<bool>(), any::<bool>()).prop_map(|(name, drained, is_node)| {
                let target = if is_node {
                    DrainTarget::Node(name)
                } else {
                    DrainTarget::Cluster(name)
                };
                Change::Drain(Drain { target, drained })
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn whatever_was_acknowledged_is_read_back_after_any_cut(
            changes in proptest::collection::vec(any_change(), 1..6), cut in any::<prop::sample::Index>(),
        ) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("journal");
            let mut journal = Journal::open(&path).expect("opens");
            let mut ends = vec![std::fs::metadata(&path).expect("there").len()];
            for change in &changes {
                journal.append(change.clone(), 7).expect("appends");
                ends.push(std::fs::metadata(&path).expect("there").len());
            }
            let whole = *ends.last().expect("one");
            let length = ends[0] + cut.index((whole - ends[0]) as usize + 1) as u64;
            std::fs::OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(length)).expect("cut");
            let kept: Vec<Change> = Journal::open(&path).expect("opens").after(0, 99).into_iter().map(|e| e.change).collect();
            let expected = ends.iter().filter(|end| **end <= length).count() - 1;
            prop_assert_eq!(&kept[..], &changes[..expected]);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), with_header in any::<bool>()) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("journal");
            if with_header {
                Journal::open(&path).expect("opens");
            }
            let mut all = std::fs::read(&path).unwrap_or_default();
            all.extend(bytes);
            std::fs::write(&path, all).expect("write");
            let _ = Journal::open(&path);
        }
    }
}
