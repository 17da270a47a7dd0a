//! The record of removals: a file of fixed length, written in place in turns, so that a removal is
//! durable after one small `fdatasync`, on a full disk too.
//!
//! A removal covers records of a key, or of one body of it, with a smaller sequence. The writer
//! destroys their headers in the pools later; only then may the block be written over. At a start
//! all removals that are not known to be carried out are applied again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::io::DiskFile;

const BLOCK_BYTES: usize = 512;
const ENTRY_BYTES: usize = 40;
const HEADER_BYTES: usize = 32;
const ENTRIES_MAX: usize = (BLOCK_BYTES - HEADER_BYTES) / ENTRY_BYTES;
/// Blocks of the file: 2 MiB.
const BLOCKS: u64 = 4096;
const MAGIC: &[u8; 8] = b"NCREMOV2";
/// Removals that may wait for the thread that records them.
const PENDING_MAX: usize = 1 << 20;

/// One removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) key: u128,
    /// Only this body.
    pub(crate) body: Option<u64>,
    /// Records with a smaller sequence are removed.
    pub(crate) sequence: u64,
}

impl Removal {
    pub(crate) fn covers(&self, key: u128, body: u64, sequence: u64) -> bool {
        self.key == key
            && sequence < self.sequence
            && self.body.is_none_or(|removed| removed == body)
    }
}

/// What is durable, by count of removals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) durable: u64,
    /// Removals up to here that are not durable could not be recorded.
    pub(crate) failed: u64,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<Removal>,
    /// Removals so far.
    appended: u64,
    /// The next block.
    block: u64,
    /// Blocks before this one may be written over.
    done: u64,
    is_closed: bool,
}

/// The removals of a tier. [`run_once`](Self::run_once) is the work of one thread.
#[derive(Debug)]
pub(crate) struct Removals {
    /// Blocks of the file.
    blocks: u64,
    state: Mutex<State>,
    changed: Condvar,
    recorded: watch::Sender<Recorded>,
}

/// What [`Removals::run_once`] did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// All removals of this block and before are durable.
    Recorded(u64),
    /// There was nothing to record.
    Idle,
    /// Removals could not be recorded.
    Failed,
    End,
}

impl Removals {
    pub(crate) fn new() -> Self {
        Self::of_blocks(BLOCKS)
    }

    fn of_blocks(blocks: u64) -> Self {
        Self {
            blocks,
            state: Mutex::default(),
            changed: Condvar::new(),
            recorded: watch::channel(Recorded::default()).0,
        }
    }

    /// Notes a removal, to be recorded.
    pub(crate) fn append(&self, removal: Removal) {
        let mut state = self.state.lock();
        state.appended += 1;
        if state.pending.len() < PENDING_MAX {
            state.pending.push(removal);
        } else {
            let appended = state.appended;
            self.recorded.send_modify(|r| r.failed = appended);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// How many removals there were so far.
    pub(crate) fn appended(&self) -> u64 {
        self.state.lock().appended
    }

    pub(crate) fn recorded(&self) -> watch::Receiver<Recorded> {
        self.recorded.subscribe()
    }

    /// Blocks before that one may be written over.
    pub(crate) fn set_done(&self, block: u64) {
        let mut state = self.state.lock();
        state.done = state.done.max(block);
    }

    pub(crate) fn done(&self) -> u64 {
        self.state.lock().done
    }

    /// The block behind all that were written: with the writer at its end, all are carried out.
    pub(crate) fn all_done(&self) -> u64 {
        self.state.lock().block
    }

    /// Ends a wait of [`run_once`](Self::run_once).
    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    pub(crate) fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Records what is pending, or waits so long for something to record.
    pub(crate) fn run_once(&self, file: &dyn DiskFile, wait: Duration) -> Turn {
        let mut state = self.state.lock();
        if state.pending.is_empty() && !state.is_closed {
            self.changed.wait_for(&mut state, wait);
        }
        if state.pending.is_empty() {
            return if state.is_closed {
                Turn::End
            } else {
                Turn::Idle
            };
        }
        let pending = std::mem::take(&mut state.pending);
        let (appended, first, done) = (state.appended, state.block, state.done);
        drop(state);

        let blocks = pending.chunks(ENTRIES_MAX);
        let next = first + blocks.len() as u64;
        let written = if next > done + self.blocks {
            // The writer could not carry out the removals in the blocks before.
            Err(io::ErrorKind::StorageFull.into())
        } else {
            let mut numbered = (first..).zip(blocks);
            numbered
                .try_for_each(|(number, removals)| {
                    let at = number % self.blocks * BLOCK_BYTES as u64;
                    file.write_at(&encode(number, removals), at)
                })
                .and_then(|()| file.sync_data())
        };
        self.state.lock().block = next;
        match written {
            Ok(()) => {
                self.recorded.send_modify(|r| r.durable = appended);
                Turn::Recorded(next)
            }
            Err(error) => {
                tracing::warn!(%error, "removals cannot be recorded; what is on disk is validated before use");
                self.recorded.send_modify(|r| r.failed = appended);
                Turn::Failed
            }
        }
    }

    /// Reads the removals of earlier runs from the block `done` on, and goes on behind them. The
    /// flag says whether a block is damaged, so that there may have been others.
    pub(crate) fn open(
        &self,
        file: &Arc<dyn DiskFile>,
        done: u64,
    ) -> io::Result<(Vec<Removal>, bool)> {
        let length = self.blocks * BLOCK_BYTES as u64;
        // A file of another length is not as it was left.
        let held = file.length()?.min(length);
        if held < length {
            file.set_len(length)?;
        }
        file.allocate(0..length)?;
        let mut bytes = vec![0; length as usize];
        file.read_at(&mut bytes[..held as usize], 0)?;
        let (mut removals, mut is_damaged, mut next) = (Vec::new(), held < length, done);
        for (at, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            match decode(block) {
                Some((number, found)) if number % self.blocks == at as u64 => {
                    next = next.max(number + 1);
                    if number >= done {
                        removals.extend(found);
                    }
                }
                _ => is_damaged |= block.iter().any(|byte| *byte != 0),
            }
        }
        let mut state = self.state.lock();
        (state.block, state.done) = (next, done);
        Ok((removals, is_damaged))
    }

    /// Makes the file blank.
    pub(crate) fn reset(file: &dyn DiskFile) -> io::Result<()> {
        file.set_len(0)?;
        file.allocate(0..BLOCKS * BLOCK_BYTES as u64)
    }
}

fn encode(number: u64, removals: &[Removal]) -> [u8; BLOCK_BYTES] {
    let mut out = [0; BLOCK_BYTES];
    out[..8].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&number.to_le_bytes());
    out[16..20].copy_from_slice(&(removals.len() as u32).to_le_bytes());
    for (removal, entry) in removals
        .iter()
        .zip(out[HEADER_BYTES..].chunks_exact_mut(ENTRY_BYTES))
    {
        entry[..16].copy_from_slice(&removal.key.to_le_bytes());
        entry[16..24].copy_from_slice(&removal.sequence.to_le_bytes());
        if let Some(body) = removal.body {
            entry[24..32].copy_from_slice(&body.to_le_bytes());
            entry[32] = 1;
        }
    }
    let crc = crc32fast::hash(&out);
    out[20..24].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(block: &[u8]) -> Option<(u64, Vec<Removal>)> {
    let mut bytes: [u8; BLOCK_BYTES] = *block.first_chunk()?;
    let crc: [u8; 4] = *bytes[20..].first_chunk()?;
    bytes[20..24].fill(0);
    if bytes[..8] != *MAGIC || crc != crc32fast::hash(&bytes).to_le_bytes() {
        return None;
    }
    let u64_at = |bytes: &[u8], at: usize| {
        bytes[at..]
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    let count = (u64_at(&bytes, 16) & u64::from(u32::MAX)) as usize;
    let removals = bytes[HEADER_BYTES..]
        .chunks_exact(ENTRY_BYTES)
        .take(count)
        .map(|entry| Removal {
            key: u128::from(u64_at(entry, 0)) | u128::from(u64_at(entry, 8)) << 64,
            sequence: u64_at(entry, 16),
            body: (entry[32] == 1).then(|| u64_at(entry, 24)),
        });
    Some((u64_at(&bytes, 8), removals.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Files, RealFiles};

    fn removal(number: u64) -> Removal {
        Removal {
            key: u128::from(number) << 70 | 1,
            body: number.is_multiple_of(2).then_some(number),
            sequence: number + 1,
        }
    }

    #[test]
    fn removals_are_found_again_until_they_are_done_and_never_written_over_before() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let files = RealFiles::new(directory.path().to_owned());
        let file = files.create("removals").expect("a new file");
        let removals = Removals::of_blocks(8);
        // One that was cut short has lost removals, perhaps.
        for (length, expected) in [(0, true), (100, true), (8 * BLOCK_BYTES as u64, false)] {
            file.set_len(0).expect("room");
            file.allocate(0..length).expect("room");
            let (found, is_damaged) = removals.open(&file, 0).expect("readable");
            assert_eq!((found, is_damaged), (Vec::new(), expected), "{length}");
        }

        (0..30).for_each(|number| removals.append(removal(number)));
        assert_eq!(removals.run_once(&*file, Duration::ZERO), Turn::Recorded(3));
        assert_eq!(removals.run_once(&*file, Duration::ZERO), Turn::Idle);
        let again = Removals::of_blocks(8);
        let (found, _) = again.open(&file, 0).expect("readable");
        assert_eq!(found, (0..30).map(removal).collect::<Vec<_>>());
        assert_eq!(again.open(&file, 2).expect("readable").0.len(), 6);

        let mut turns = 0;
        loop {
            again.append(removal(turns));
            turns += 1;
            if again.run_once(&*file, Duration::ZERO) == Turn::Failed {
                break;
            }
        }
        assert_eq!(turns, 8, "two blocks were done, three in use");
        assert_eq!(again.recorded().borrow().failed, 8);
        file.write_at(&[9], 700).expect("room");
        assert!(Removals::of_blocks(8).open(&file, 0).expect("readable").1);
    }
}
