//! The superblock: identity, format, and what a run has to know of the run before it.
//!
//! Two copies of 512 bytes, written in turns and in place, so that a torn write leaves the other one
//! and a full disk takes the write. A superblock of another format is never overwritten.
//!
//! # When stored responses are doubtful
//! A removal that could not be recorded leaves a response on disk that must not be served
//! unvalidated. [`Superblock::doubtful_before`] says which: those whose sequence is smaller. It
//! becomes the present sequence
//!
//! - when a removal cannot be recorded, and is written when the disk answers again;
//! - at a start after runs that had no disk tier: each run, with or without one, adds one to the
//!   number in the file [`SESSION_FILE`] beside the directory of the store, and the superblock has
//!   the number of the last run that used it;
//! - at a start after a run that did not end in order, if its last sign of life is older than
//!   [`SILENCE_MAX_MS`] or of the future: the disk may have failed while the node ran on;
//! - at a start after a run that left a mark of a removal that could not be recorded in the file
//!   [`DOUBT_FILE`] beside the directory of the store, which may lie on another disk.
//!
//! Whoever asks whether a removal is recorded hears that it is not once one of these is certain for
//! the next start: the superblock says so, or the mark is there, or the last sign of life is so old
//! that any end but one in order leaves doubt. So a kill right after the answer leaves no gap. Signs
//! of life are not synced: a power cut loses them, and leaves doubt.

use std::io;
use std::path::Path;

use crate::io::DiskFile;

/// The file with the number of the last run, in the node's state directory.
pub(crate) const SESSION_FILE: &str = "store-session";
/// The file with the number of the last run with a removal that could not be recorded.
pub(crate) const DOUBT_FILE: &str = "store-doubt";
/// How old the last sign of life of a run may be, in milliseconds.
pub(crate) const SILENCE_MAX_MS: u64 = 2_000;

/// The format of all files of the tier.
pub(crate) const FORMAT: u32 = 2;

const MAGIC: &[u8; 8] = b"NCSTORE\0";
const COPY_BYTES: usize = 512;
/// Distance of the two copies.
const COPY_STEP: u64 = 4096;
/// Bytes that count.
const BYTES: usize = 144;

/// What the superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Superblock {
    /// How often it was written.
    pub(crate) turn: u64,
    /// A random number of this store, part of all checksums.
    pub(crate) store: u64,
    /// With which names are hashed.
    pub(crate) seed: u64,
    /// The last run that used it.
    pub(crate) session: u64,
    /// All sequences given so far are smaller, if the run ended in order.
    pub(crate) sequence: u64,
    /// See the module.
    pub(crate) doubtful_before: u64,
    /// Last sign of life, in milliseconds after the Unix epoch.
    pub(crate) alive_ms: u64,
    /// Whether the run ended in order.
    pub(crate) is_clean: bool,
    /// Length of the regions of each pool.
    pub(crate) region_bytes: [u64; 2],
    /// Number of regions of each pool.
    pub(crate) regions: [u64; 2],
    /// Blocks of removals that have been carried out in the pools.
    pub(crate) removals_done: u64,
}

/// Why the files of a tier cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    /// Made by another version.
    #[error("the store's files have format {found}, this version reads and writes format {FORMAT}")]
    Format { found: u32 },
    /// Something else has the name.
    #[error("the file \"superblock\" is none of a store, or both of its copies are damaged")]
    Foreign,
    /// The disk does not answer as it should.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Superblock {
    /// The newer of the two copies; `None` in an empty file.
    pub(crate) fn read(file: &dyn DiskFile) -> Result<Option<Self>, Unusable> {
        let length = file.length()?;
        let mut newest: Option<Self> = None;
        let mut other = None;
        let mut is_blank = true;
        for copy in 0..2 {
            let mut bytes = [0; COPY_BYTES];
            if copy * COPY_STEP + COPY_BYTES as u64 <= length {
                file.read_at(&mut bytes, copy * COPY_STEP)?;
            } else if copy * COPY_STEP < length {
                is_blank = false;
            }
            is_blank &= bytes.iter().all(|byte| *byte == 0);
            match Self::decode(&bytes) {
                Ok(read) if newest.is_none_or(|known| known.turn < read.turn) => {
                    newest = Some(read);
                }
                Ok(_) => {}
                Err(unusable) => other = Some(unusable),
            }
        }
        match (newest, other) {
            // A torn write of another version is no reason to go on either.
            (_, Some(Unusable::Format { found })) => Err(Unusable::Format { found }),
            (Some(newest), _) => Ok(Some(newest)),
            (None, _) if is_blank => Ok(None),
            (None, _) => Err(Unusable::Foreign),
        }
    }

    /// Writes it over the older copy. Durable after `sync_data`.
    pub(crate) fn write(&mut self, file: &dyn DiskFile) -> io::Result<()> {
        self.turn += 1;
        file.write_at(&self.encode(), self.turn % 2 * COPY_STEP)
    }

    fn encode(&self) -> [u8; COPY_BYTES] {
        let mut out = [0; COPY_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        let numbers = [
            self.turn,
            self.store,
            self.seed,
            self.session,
            self.sequence,
            self.doubtful_before,
            self.alive_ms,
            u64::from(self.is_clean),
            self.region_bytes[0],
            self.region_bytes[1],
            self.regions[0],
            self.regions[1],
            self.removals_done,
        ];
        for (number, place) in numbers.iter().zip(out[16..].chunks_exact_mut(8)) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[..BYTES]);
        out[BYTES..BYTES + 4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; COPY_BYTES]) -> Result<Self, Unusable> {
        // The format stands before everything that it determines.
        let format = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        if bytes[..8] != *MAGIC {
            return Err(Unusable::Foreign);
        }
        if format != FORMAT {
            return Err(Unusable::Format { found: format });
        }
        if bytes[BYTES..BYTES + 4] != crc32fast::hash(&bytes[..BYTES]).to_le_bytes() {
            return Err(Unusable::Foreign);
        }
        let mut numbers = bytes[16..BYTES].chunks_exact(8).map(|number| {
            let number = number.first_chunk().expect("chunks of eight bytes");
            u64::from_le_bytes(*number)
        });
        let mut next = || numbers.next().unwrap_or_default();
        Ok(Self {
            turn: next(),
            store: next(),
            seed: next(),
            session: next(),
            sequence: next(),
            doubtful_before: next(),
            alive_ms: next(),
            is_clean: next() == 1,
            region_bytes: [next(), next()],
            regions: [next(), next()],
            removals_done: next(),
        })
    }
}

/// Counts this run in the session file of a node's state directory. Returns the number of the run
/// before, or `None` where that is not known or the run left a mark of doubt, and the number of this
/// run, which is larger than `least`.
pub(crate) fn begin_session(directory: &Path, least: u64) -> io::Result<(Option<u64>, u64)> {
    let before = read_number(&directory.join(SESSION_FILE))?;
    let marked = read_number(&directory.join(DOUBT_FILE))?;
    let session = before.unwrap_or(0).max(least) + 1;
    // Made now, as a full disk may have no room for it later.
    if marked.is_none() {
        write_number(&directory.join(DOUBT_FILE), 0)?;
    }
    write_number(&directory.join(SESSION_FILE), session)?;
    let is_marked = before.is_some() && marked == before;
    Ok((before.filter(|_| !is_marked), session))
}

/// Marks the run that began last as one with a removal that could not be recorded. A run that has
/// not come to its own beginning marks the one before, which is what the next start looks for then.
pub(crate) fn mark_doubt(directory: &Path) -> io::Result<()> {
    let session = read_number(&directory.join(SESSION_FILE))?;
    write_number(&directory.join(DOUBT_FILE), session.unwrap_or(0))
}

/// Takes the mark away.
pub(crate) fn clear_mark(directory: &Path) -> io::Result<()> {
    write_number(&directory.join(DOUBT_FILE), 0)
}

fn read_number(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a number in place and in a fixed length, so that a full disk takes the write.
fn write_number(path: &Path, number: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;

    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    file.write_all_at(format!("{number:020}\n").as_bytes(), 0)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Files, RealFiles};

    #[test]
    fn the_newer_intact_copy_counts_and_other_formats_are_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let files = RealFiles::new(directory.path().to_owned());
        let file = files.create("superblock").expect("a new file");
        assert!(matches!(Superblock::read(&*file), Ok(None)));
        let mut block = Superblock {
            store: 7,
            session: 3,
            ..Superblock::default()
        };
        block.write(&*file).expect("room");
        block.sequence = 9;
        block.write(&*file).expect("room");
        assert_eq!(Superblock::read(&*file).expect("readable"), Some(block));

        // The second write went to the first copy; damage to it leaves the other one.
        file.write_at(&[1], 40).expect("room");
        let older = Superblock::read(&*file).expect("readable").expect("a copy");
        assert_eq!((older.turn, older.sequence), (1, 0));
        file.write_at(&[1], COPY_STEP + 40).expect("room");
        assert!(matches!(Superblock::read(&*file), Err(Unusable::Foreign)));

        let mut newer = block.encode();
        newer[8] = 3;
        file.write_at(&newer, 0).expect("room");
        block.write(&*file).expect("room");
        assert!(matches!(
            Superblock::read(&*file),
            Err(Unusable::Format { found: 3 })
        ));
    }

    #[test]
    fn each_run_has_a_larger_number() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        assert_eq!(begin_session(path, 0).expect("room"), (None, 1));
        assert_eq!(begin_session(path, 0).expect("room"), (Some(1), 2));
        assert_eq!(begin_session(path, 9).expect("room"), (Some(2), 10));
        std::fs::write(path.join(SESSION_FILE), "odd").expect("room");
        assert_eq!(begin_session(path, 1).expect("room"), (None, 2));

        mark_doubt(path).expect("room");
        assert_eq!(begin_session(path, 2).expect("room"), (None, 3));
        assert_eq!(begin_session(path, 3).expect("room"), (Some(3), 4));
        mark_doubt(path).expect("room");
        clear_mark(path).expect("room");
        assert_eq!(begin_session(path, 4).expect("room"), (Some(4), 5));
    }
}
