//! A dump of the directories, so that a start need not read the whole log.
//!
//! Two files in turns, [`NAMES`]: while one is written, the other one stays valid. A checkpoint says
//! up to which sequence number of the log it is complete; whoever loads it reads the log behind that
//! number. It is written a segment at a time, without stopping writers: a segment may hold later
//! changes, which are in the log as well, so that reading them again changes nothing.
//!
//! A file has, in this order and little-endian:
//!
//! | Bytes | What |
//! |---|---|
//! | 4096 | header: magic, version, store, number, sequence, lengths, sums of table, state and header |
//! | 8 a segment | table: entries of the segment and its checksum, for each directory |
//! | as the header says | state: bytes of the log, which only it understands |
//! | 16 an entry | the segments, in the order of the table |
//!
//! Writing invalidates the header first and writes the new one last, each followed by a sync. So a
//! file is never valid with only some of its parts, whatever a power cut leaves of the writes between.
//! The checksum of a segment covers the store, the number of the checkpoint and the place of the
//! segment, so that a part of another checkpoint is not taken for this one's. A segment that does not
//! match makes the checkpoint unusable: the caller reads the whole log instead.

use std::io;
use std::sync::Arc;

use crate::budget::{Budget, Kind};
use crate::directory::{Directory, ENTRY_BYTES, Found, SEGMENTS};
use crate::io::{DiskFile, Files};

/// The files of the checkpoints.
pub const NAMES: [&str; 2] = ["checkpoint-a", "checkpoint-b"];

const MAGIC: [u8; 8] = *b"nearcast";
/// Format of the file; another one is not read.
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 4096;
/// Bytes of the header that are used, with the checksum at their end.
const HEADER_USED: usize = 64;
const ROW_BYTES: usize = 8;
/// Most bytes of the log's state.
const STATE_BYTES_MAX: usize = 64 << 20;
/// Most directories in a checkpoint.
const DIRECTORIES_MAX: usize = 8;
/// Bytes that are written or read at once.
const WINDOW: usize = 1 << 20;

/// The two files of a store.
#[derive(Debug)]
pub struct Checkpoints {
    files: Arc<dyn Files>,
    store: u64,
    next_number: u64,
    budget: Arc<Budget>,
}

impl Checkpoints {
    /// Reads what the two files hold, and returns the newest valid checkpoint of the store. Only an
    /// error of the disk is an error: without a valid checkpoint there is `None`. Reads no segments.
    pub fn open(
        files: Arc<dyn Files>,
        store: u64,
        budget: Arc<Budget>,
    ) -> io::Result<(Self, Option<Checkpoint>)> {
        let mut newest: Option<Checkpoint> = None;
        for name in NAMES {
            let file = match files.open(name) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let checkpoint = match Checkpoint::read(file, store) {
                Ok(checkpoint) => checkpoint,
                Err(error) if is_damage(&error) => continue,
                Err(error) => return Err(error),
            };
            if newest.as_ref().is_none_or(|n| n.number < checkpoint.number) {
                newest = Some(checkpoint);
            }
        }
        let next_number = newest.as_ref().map_or(0, |newest| newest.number + 1);
        let checkpoints = Self {
            files,
            store,
            next_number,
            budget,
        };
        Ok((checkpoints, newest))
    }

    /// Writes a checkpoint over the older one of the two, and returns its length in bytes.
    ///
    /// All records up to `sequence` must be in the directories before the call. The same directories
    /// in the same order as those that are loaded. An error of the kind
    /// [`io::ErrorKind::WouldBlock`] where a segment has not been loaded yet.
    pub fn write(
        &mut self,
        sequence: u64,
        state: &[u8],
        directories: &[&Directory],
    ) -> io::Result<u64> {
        self.write_before(sequence, state, directories, || Ok(()))
    }

    /// The same, where `before_valid` makes durable what has left the directories meanwhile: the
    /// checkpoint becomes valid after it.
    pub fn write_before(
        &mut self,
        sequence: u64,
        state: &[u8],
        directories: &[&Directory],
        before_valid: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<u64> {
        let is_too_large = state.len() > STATE_BYTES_MAX || directories.len() > DIRECTORIES_MAX;
        if is_too_large {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for directory in directories {
            if (0..SEGMENTS).any(|segment| !directory.is_filled(segment)) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        let number = self.next_number;
        let file = self.files.create(NAMES[(number % 2) as usize])?;
        self.files.sync()?;
        file.write_at(&[0; HEADER_BYTES], 0)?;
        file.sync_data()?;

        let rows = directories.len() * SEGMENTS;
        let mut table = Vec::with_capacity(rows * ROW_BYTES);
        let state_at = HEADER_BYTES + rows * ROW_BYTES;
        let _charge = self.budget.charge_for(
            Kind::Directory,
            (table.capacity() + WINDOW + WINDOW / 4) as u64,
        );
        let mut out = Output::new(&*file, state_at as u64);
        out.write(state)?;
        for (index, directory) in directories.iter().enumerate() {
            for segment in 0..SEGMENTS {
                let before = out.buffer.len();
                let entries = directory.write_segment(segment, &mut out.buffer);
                let entries = entries.ok_or(io::ErrorKind::WouldBlock)?;
                let place = (index * SEGMENTS + segment) as u32;
                let sum = segment_sum(self.store, number, place, &out.buffer[before..]);
                table.extend_from_slice(&entries.to_le_bytes());
                table.extend_from_slice(&sum.to_le_bytes());
                out.flush(WINDOW)?;
            }
        }
        let length = out.finish()?;
        file.write_at(&table, HEADER_BYTES as u64)?;
        file.set_len(length)?;
        file.sync_data()?;
        before_valid()?;

        let header = Header {
            store: self.store,
            number,
            sequence,
            state_bytes: state.len() as u32,
            directories: directories.len() as u32,
            table_sum: crc32fast::hash(&table),
            state_sum: crc32fast::hash(state),
        };
        file.write_at(&header.to_bytes(), 0)?;
        file.sync_data()?;
        self.next_number += 1;
        Ok(length)
    }
}

/// A valid checkpoint whose segments are read when they are needed.
#[derive(Debug)]
pub struct Checkpoint {
    file: Arc<dyn DiskFile>,
    store: u64,
    number: u64,
    /// The sequence number up to which it is complete.
    pub sequence: u64,
    /// What the log gave to [`Checkpoints::write`].
    pub state: Vec<u8>,
    /// Offset of each segment, and of the end.
    offsets: Vec<u64>,
    sums: Vec<u32>,
}

impl Checkpoint {
    fn read(file: Arc<dyn DiskFile>, store: u64) -> io::Result<Self> {
        let mut bytes = [0; HEADER_BYTES];
        file.read_at(&mut bytes, 0)?;
        let header = Header::from_bytes(&bytes).filter(|header| header.store == store);
        let header = header.ok_or(io::ErrorKind::InvalidData)?;

        let rows = header.directories as usize * SEGMENTS;
        let mut table = vec![0; rows * ROW_BYTES];
        file.read_at(&mut table, HEADER_BYTES as u64)?;
        let mut state = vec![0; header.state_bytes as usize];
        let state_at = (HEADER_BYTES + table.len()) as u64;
        file.read_at(&mut state, state_at)?;
        let sums = (crc32fast::hash(&table), crc32fast::hash(&state));
        if sums != (header.table_sum, header.state_sum) {
            return Err(io::ErrorKind::InvalidData.into());
        }

        let mut offset = state_at + state.len() as u64;
        let mut offsets = vec![offset];
        let mut sums = Vec::with_capacity(rows);
        for row in table.chunks_exact(ROW_BYTES) {
            offset += u64::from(read_u32(row, 0)) * ENTRY_BYTES as u64;
            offsets.push(offset);
            sums.push(read_u32(row, 4));
        }
        if file.length()? < offset {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self {
            file,
            store,
            number: header.number,
            sequence: header.sequence,
            state,
            offsets,
            sums,
        })
    }

    /// Number of directories that it holds.
    pub fn directories(&self) -> usize {
        self.sums.len() / SEGMENTS
    }

    /// Reads one segment of a directory, of which the entries stay that `keep` accepts. For the
    /// first use of a key: the directory has [deferred](Directory::defer) its segments.
    pub fn load_segment(
        &self,
        index: usize,
        directory: &Directory,
        segment: usize,
        keep: impl FnMut(&Found) -> bool,
    ) -> io::Result<()> {
        if directory.is_filled(segment) {
            return Ok(());
        }
        let row = index * SEGMENTS + segment;
        let mut buffer = vec![0; self.length(row, row + 1)];
        self.file.read_at(&mut buffer, self.offsets[row])?;
        self.fill(row, directory, segment, &buffer, keep)
    }

    /// Reads all segments of a directory that are not read yet. For a thread in the background.
    pub fn load(
        &self,
        index: usize,
        directory: &Directory,
        mut keep: impl FnMut(&Found) -> bool,
    ) -> io::Result<()> {
        let first = index * SEGMENTS;
        let mut buffer = Vec::new();
        let mut from = 0;
        while from < SEGMENTS {
            let fits = |to: usize| self.length(first + from, first + to) <= WINDOW;
            let mut to = from + 1;
            while to < SEGMENTS && fits(to + 1) {
                to += 1;
            }
            buffer.resize(self.length(first + from, first + to), 0);
            let start = self.offsets[first + from];
            self.file.read_at(&mut buffer, start)?;
            for segment in from..to {
                let row = first + segment;
                let at = (self.offsets[row] - start) as usize;
                let bytes = &buffer[at..at + self.length(row, row + 1)];
                self.fill(row, directory, segment, bytes, &mut keep)?;
            }
            from = to;
        }
        Ok(())
    }

    fn fill(
        &self,
        row: usize,
        directory: &Directory,
        segment: usize,
        bytes: &[u8],
        keep: impl FnMut(&Found) -> bool,
    ) -> io::Result<()> {
        if segment_sum(self.store, self.number, row as u32, bytes) != self.sums[row] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let filled = directory.fill(segment, bytes, keep);
        filled.map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed))
    }

    fn length(&self, from: usize, to: usize) -> usize {
        (self.offsets[to] - self.offsets[from]) as usize
    }
}

/// Whether an error of [`Checkpoint`] means that the file is damaged or not one of this store, rather
/// than that the disk has failed.
pub fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
    )
}

fn segment_sum(store: u64, number: u64, place: u32, bytes: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&store.to_le_bytes());
    sum.update(&number.to_le_bytes());
    sum.update(&place.to_le_bytes());
    sum.update(bytes);
    sum.finalize()
}

#[derive(Debug, PartialEq, Eq)]
struct Header {
    store: u64,
    number: u64,
    sequence: u64,
    state_bytes: u32,
    directories: u32,
    table_sum: u32,
    state_sum: u32,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(SEGMENTS as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.store.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.number.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.state_bytes.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.directories.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.table_sum.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.state_sum.to_le_bytes());
        let sum = crc32fast::hash(&bytes[..HEADER_USED - 4]);
        bytes[HEADER_USED - 4..HEADER_USED].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let sum = crc32fast::hash(&bytes[..HEADER_USED - 4]);
        let is_valid = bytes[..8] == MAGIC
            && sum == read_u32(bytes, HEADER_USED - 4)
            && read_u32(bytes, 8) == VERSION
            && read_u32(bytes, 12) as usize == SEGMENTS;
        let header = Self {
            store: read_u64(bytes, 16),
            number: read_u64(bytes, 24),
            sequence: read_u64(bytes, 32),
            state_bytes: read_u32(bytes, 40),
            directories: read_u32(bytes, 44),
            table_sum: read_u32(bytes, 48),
            state_sum: read_u32(bytes, 52),
        };
        let is_within_limits = header.state_bytes as usize <= STATE_BYTES_MAX
            && header.directories as usize <= DIRECTORIES_MAX;
        (is_valid && is_within_limits).then_some(header)
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Writes to a file in windows, of which one is on its way to the device while the next one fills,
/// so that few pages are dirty when the file is synced.
struct Output<'a> {
    file: &'a dyn DiskFile,
    buffer: Vec<u8>,
    offset: u64,
    started: Option<std::ops::Range<u64>>,
}

impl<'a> Output<'a> {
    fn new(file: &'a dyn DiskFile, offset: u64) -> Self {
        Self {
            file,
            buffer: Vec::with_capacity(WINDOW + WINDOW / 4),
            offset,
            started: None,
        }
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(WINDOW));
            self.buffer.extend_from_slice(now);
            self.flush(WINDOW)?;
            bytes = rest;
        }
        Ok(())
    }

    /// Writes the buffer if it has at least `enough` bytes.
    fn flush(&mut self, enough: usize) -> io::Result<()> {
        if self.buffer.is_empty() || self.buffer.len() < enough {
            return Ok(());
        }
        self.file.write_at(&self.buffer, self.offset)?;
        let written = self.offset..self.offset + self.buffer.len() as u64;
        self.offset = written.end;
        self.buffer.clear();
        self.file.start_writeback(written.clone())?;
        if let Some(before) = self.started.replace(written) {
            self.file.wait_writeback(before)?;
        }
        Ok(())
    }

    /// Writes the rest, and returns the end.
    fn finish(mut self) -> io::Result<u64> {
        self.flush(0)?;
        Ok(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Pool;
    use crate::directory::Place;
    use crate::groups::Group;
    use crate::io::RealFiles;

    const STORE: u64 = 77;

    fn files() -> (tempfile::TempDir, Arc<dyn Files>) {
        let directory = tempfile::tempdir().expect("a directory");
        let files = RealFiles::new(directory.path().to_path_buf());
        (directory, Arc::new(files))
    }

    fn open(files: &Arc<dyn Files>) -> (Checkpoints, Option<Checkpoint>) {
        Checkpoints::open(files.clone(), STORE, Budget::new(u64::MAX)).expect("a disk")
    }

    fn directory() -> Directory {
        Directory::new(Budget::new(u64::MAX), u64::MAX)
    }

    fn key(number: u64) -> u128 {
        xxhash_rust::xxh3::xxh3_128(&number.to_le_bytes())
    }

    fn found(number: u64) -> Found {
        let place = Place {
            pool: Pool::Pull,
            slot: number as u16,
            offset: 64,
            length: 512,
        };
        Found {
            body: number as u16,
            group: Group(number as u16 % 9),
            uses: 0,
            flags: 1,
            place,
        }
    }

    fn filled(count: u64) -> Directory {
        let directory = directory();
        for number in 0..count {
            directory.insert(key(number), found(number));
        }
        directory
    }

    fn loaded(checkpoint: &Checkpoint, index: usize) -> Directory {
        let directory = directory();
        directory.defer();
        let loaded = checkpoint.load(index, &directory, |_| true);
        loaded.expect("a whole checkpoint");
        directory
    }

    #[test]
    fn what_is_written_is_loaded() {
        let (_directory, files) = files();
        let (mut checkpoints, none) = open(&files);
        assert!(none.is_none());
        let (heads, slices) = (filled(10_000), filled(100));
        let written = checkpoints.write(5, b"regions", &[&heads, &slices]);
        assert!(written.is_ok_and(|length| length > 160_000));

        let (_, checkpoint) = open(&files);
        let checkpoint = checkpoint.expect("a checkpoint");
        assert_eq!(
            (checkpoint.sequence, &*checkpoint.state),
            (5, &b"regions"[..])
        );
        assert_eq!(checkpoint.directories(), 2);
        let again = loaded(&checkpoint, 0);
        assert_eq!((again.len(), loaded(&checkpoint, 1).len()), (10_000, 100));
        for number in 0..10_000 {
            assert_eq!(again.find(key(number)), [found(number)]);
        }
        for group in 0..9 {
            assert_eq!(again.count(Group(group)), heads.count(Group(group)));
        }
    }

    #[test]
    fn one_segment_is_loaded_alone_and_the_filter_holds() {
        let (_directory, files) = files();
        let (mut checkpoints, _) = open(&files);
        let written = checkpoints.write(1, b"", &[&filled(1000)]);
        written.expect("room for a checkpoint");
        let checkpoint = open(&files).1.expect("a checkpoint");

        let directory = directory();
        directory.defer();
        let segment = directory.segment_of(key(3));
        let load = checkpoint.load_segment(0, &directory, segment, |_| true);
        load.expect("a whole segment");
        assert_eq!(directory.find(key(3)), [found(3)]);
        let unwritable = checkpoints.write(2, b"", &[&directory]);
        let kind = unwritable.expect_err("segments are missing").kind();
        assert_eq!(kind, io::ErrorKind::WouldBlock);

        directory.remove_key(key(3));
        let rest = checkpoint.load(0, &directory, |found| found.place.slot < 500);
        rest.expect("a whole checkpoint");
        assert!(!directory.may_contain(key(3)), "it was removed");
        assert_eq!(directory.len(), 499);
    }

    #[test]
    fn the_newest_is_taken_and_the_older_one_is_overwritten() {
        let (_directory, files) = files();
        for run in 0..5 {
            let (mut checkpoints, before) = open(&files);
            assert_eq!(
                before.map(|b| b.sequence),
                (run > 0).then_some(run * 10 + 9)
            );
            let first = checkpoints.write(run * 10 + 18, b"first", &[&filled(5)]);
            first.expect("room for a checkpoint");
            let second = checkpoints.write(run * 10 + 19, b"second", &[&filled(5)]);
            second.expect("room for a checkpoint");
            let (_, newest) = open(&files);
            assert_eq!(newest.expect("a checkpoint").state, b"second");
        }
    }

    #[test]
    fn another_store_and_another_version_are_not_read() {
        let (_directory, files) = files();
        let (mut checkpoints, _) = open(&files);
        let written = checkpoints.write(1, b"", &[&filled(5)]);
        written.expect("room for a checkpoint");
        let other = Checkpoints::open(files.clone(), STORE + 1, Budget::new(u64::MAX));
        assert!(other.expect("a disk").1.is_none());

        let file = files.open(NAMES[0]).expect("written");
        let mut header = [0; HEADER_BYTES];
        file.read_at(&mut header, 0).expect("a header");
        header[8] += 1;
        let sum = crc32fast::hash(&header[..HEADER_USED - 4]);
        header[HEADER_USED - 4..HEADER_USED].copy_from_slice(&sum.to_le_bytes());
        file.write_at(&header, 0).expect("room");
        assert!(open(&files).1.is_none());
    }

    /// Any flipped bit and any missing end is noticed, at the latest when the segment is read.
    #[test]
    fn damage_anywhere_is_noticed() {
        let (_directory, files) = files();
        let (mut checkpoints, _) = open(&files);
        let length = checkpoints
            .write(1, b"regions", &[&filled(200)])
            .expect("room for a checkpoint");
        let is_whole = || {
            let Some(checkpoint) = open(&files).1 else {
                return false;
            };
            let directory = directory();
            directory.defer();
            match checkpoint.load(0, &directory, |_| true) {
                Ok(()) => true,
                Err(error) => {
                    assert!(is_damage(&error), "{error}");
                    false
                }
            }
        };
        assert!(is_whole());

        let file = files.open(NAMES[0]).expect("written");
        let used = 0..HEADER_USED as u64;
        for at in used.chain((HEADER_BYTES as u64..length).step_by(37)) {
            let mut byte = [0];
            file.read_at(&mut byte, at).expect("within the file");
            file.write_at(&[byte[0] ^ 1 << (at % 8)], at).expect("room");
            assert!(!is_whole(), "a flipped bit at {at}");
            file.write_at(&byte, at).expect("room");
        }
        assert!(is_whole());
        for shorter in [length - 1, length / 2, 4096, 10, 0] {
            file.set_len(shorter).expect("a file");
            assert!(!is_whole(), "{shorter} bytes");
        }
    }

    /// A part of an older checkpoint in the same place of the same file is not taken for the new one.
    #[test]
    fn a_segment_of_an_older_checkpoint_is_noticed() {
        let (_directory, files) = files();
        let (mut checkpoints, _) = open(&files);
        let (old, new) = (filled(50), filled(50));
        for number in 0..50 {
            new.insert(
                key(number),
                Found {
                    flags: 2,
                    ..found(number)
                },
            );
        }
        let length = checkpoints.write(1, b"", &[&old]).expect("room");
        let file = files.open(NAMES[0]).expect("written");
        let mut first = vec![0; length as usize];
        file.read_at(&mut first, 0).expect("written");
        for sequence in 2..4 {
            checkpoints.write(sequence, b"", &[&new]).expect("room");
        }
        let segments = HEADER_BYTES + SEGMENTS * ROW_BYTES;
        file.write_at(&first[segments..], segments as u64)
            .expect("room");
        let checkpoint = open(&files).1.expect("a valid header");
        assert_eq!(checkpoint.sequence, 3);
        let directory = directory();
        directory.defer();
        assert!(checkpoint.load(0, &directory, |_| true).is_err());
    }
}
