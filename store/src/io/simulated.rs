//! A disk in memory for tests, with the faults of real ones.
//!
//! - A power cut ([`SimulatedDisk::cut`]) keeps what was synced and any subset of the writes after it,
//!   each of them whole, torn at sectors of 512 bytes, or lost. Changes of names are kept in their
//!   order up to any point, as journalling file systems do. Writing back makes nothing durable.
//! - A killed process ([`SimulatedDisk::kill`]) loses nothing that was written.
//! - [`Fault`]s happen at numbered operations, or last: errors, hangs, writes that are reported and
//!   lost, writes and reads at another place, flipped bits.
//! - A capacity in bytes.
//!
//! After a cut or a kill, the files of the former process fail with `EIO`, and
//! [`SimulatedDisk::files`] has those of the next one. Choices come from the seed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{DiskFile, Files};

const PAGE_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;

type Page = Arc<[u8; PAGE_BYTES as usize]>;

/// What goes wrong at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with that error number.
    Error(i32),
    /// It hangs until [`SimulatedDisk::release`].
    Hang,
    /// A write or sync is reported as done and is not.
    Lost,
    /// A write or read happens at another place of the same file.
    Misdirected,
    /// One bit is read or written wrongly.
    FlippedBit,
    /// The power fails before it.
    Cut,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It reads bytes or lengths.
    Read,
    /// It writes bytes, or changes lengths, space or names.
    Write,
    /// It makes something durable.
    Sync,
}

/// A small generator of numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number of 64 bits.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below a bound, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// True once in that many times.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// The content of a file: pages that take space, and a length.
#[derive(Debug, Clone, Default)]
struct Content {
    pages: BTreeMap<u64, Page>,
    length: u64,
}

/// A change of a file that is not durable yet.
#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, bytes: Arc<[u8]> },
    Length(u64),
    Allocate(Range<u64>),
    Punch(Range<u64>),
}

#[derive(Debug, Clone, Default)]
struct Inode {
    durable: Content,
    current: Content,
    pending: Vec<Change>,
}

/// A change of names that is not durable yet.
#[derive(Debug, Clone)]
enum NameChange {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

#[derive(Debug, Clone, Default)]
struct Names {
    durable: BTreeMap<String, u64>,
    current: BTreeMap<String, u64>,
    pending: Vec<NameChange>,
}

#[derive(Debug)]
struct State {
    random: Random,
    inodes: HashMap<u64, Inode>,
    names: Names,
    next_inode: u64,
    /// The running process. Files of others fail.
    process: u64,
    /// Whether the power failed at a numbered operation.
    is_cut: bool,
    locked_by: Option<u64>,
    next_files: u64,
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    lasting: HashMap<Kind, Fault>,
    bad: Vec<(String, Range<u64>, Fault)>,
    releases: u64,
    hanging: u64,
    capacity: u64,
    is_cached: bool,
}

#[derive(Debug)]
struct Disk {
    state: Mutex<State>,
    released: Condvar,
}

/// A disk with one directory.
#[derive(Debug, Clone)]
pub struct SimulatedDisk(Arc<Disk>);

impl SimulatedDisk {
    /// An empty disk. The seed decides what a power cut keeps, and where faults strike.
    pub fn new(seed: u64) -> Self {
        Self::with(State {
            random: Random::new(seed),
            inodes: HashMap::new(),
            names: Names::default(),
            next_inode: 0,
            process: 0,
            is_cut: false,
            locked_by: None,
            next_files: 0,
            operations: 0,
            faults: BTreeMap::new(),
            lasting: HashMap::new(),
            bad: Vec::new(),
            releases: 0,
            hanging: 0,
            capacity: u64::MAX,
            is_cached: false,
        })
    }

    fn with(state: State) -> Self {
        Self(Arc::new(Disk {
            state: Mutex::new(state),
            released: Condvar::new(),
        }))
    }

    /// The directory, for the running process.
    pub fn files(&self) -> Arc<dyn Files> {
        let mut state = self.0.state.lock();
        state.next_files += 1;
        Arc::new(SimulatedFiles {
            disk: self.0.clone(),
            process: state.process,
            number: state.next_files,
        })
    }

    /// Another disk with what this one has now, synced or not, and no faults.
    pub fn copy(&self, seed: u64) -> Self {
        let copy = Self::new(seed);
        let state = self.0.state.lock();
        let mut new = copy.0.state.lock();
        new.inodes.clone_from(&state.inodes);
        new.names = state.names.clone();
        new.next_inode = state.next_inode;
        drop(new);
        copy
    }

    /// Ends the running process. What it wrote stays.
    pub fn kill(&self) {
        let mut state = self.0.state.lock();
        state.end_process();
        self.0.released.notify_all();
    }

    /// Cuts the power, unless that has happened at a numbered operation, and restores it: what was
    /// not synced is lost in part. Faults end.
    pub fn cut(&self) {
        let mut state = self.0.state.lock();
        state.lose();
        state.end_process();
        state.faults.clear();
        state.lasting.clear();
        self.0.released.notify_all();
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.0.state.lock().operations
    }

    /// Lets something go wrong after that many further operations.
    pub fn fault_after(&self, operations: u64, fault: Fault) {
        let mut state = self.0.state.lock();
        let number = state.operations + operations;
        state.faults.insert(number, fault);
    }

    /// Lets something go wrong at each operation of a kind until [`release`](Self::release).
    pub fn fault_always(&self, kind: Kind, fault: Fault) {
        self.0.state.lock().lasting.insert(kind, fault);
    }

    /// Lets something go wrong at each read and write that touches a part of a file.
    pub fn fault_in(&self, name: &str, range: Range<u64>, fault: Fault) {
        self.0
            .state
            .lock()
            .bad
            .push((name.to_owned(), range, fault));
    }

    /// Ends all faults, and lets go what hangs.
    pub fn release(&self) {
        let mut state = self.0.state.lock();
        state.faults.clear();
        state.lasting.clear();
        state.bad.clear();
        state.releases += 1;
        self.0.released.notify_all();
    }

    /// How many operations hang.
    pub fn hanging(&self) -> u64 {
        self.0.state.lock().hanging
    }

    /// Sets the capacity in bytes. What exceeds it stays.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.state.lock().capacity = bytes;
    }

    /// Bytes that files take.
    pub fn used(&self) -> u64 {
        self.0.state.lock().used()
    }

    /// Whether reads find everything in the page cache.
    pub fn set_cached(&self, is_cached: bool) {
        self.0.state.lock().is_cached = is_cached;
    }

    /// The names of all files.
    pub fn names(&self) -> Vec<String> {
        self.0.state.lock().names.current.keys().cloned().collect()
    }

    /// The bytes of a file; empty where there is none.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.0.state.lock();
        let Some(inode) = state.names.current.get(name) else {
            return Vec::new();
        };
        let content = &state.inodes[inode].current;
        let mut bytes = vec![0; content.length as usize];
        content.read(&mut bytes, 0);
        bytes
    }

    /// Sets the bytes of a file, durably, as a hand from outside.
    pub fn set_bytes(&self, name: &str, bytes: &[u8]) {
        let mut state = self.0.state.lock();
        let inode = state.inode_of(name);
        state.names.durable = state.names.current.clone();
        let mut content = Content {
            length: bytes.len() as u64,
            ..Content::default()
        };
        // Pages of zeros take no space.
        for (n, page) in bytes.chunks(PAGE_BYTES as usize).enumerate() {
            if page.iter().any(|byte| *byte != 0) {
                content.write(page, n as u64 * PAGE_BYTES);
            }
        }
        content.length = bytes.len() as u64;
        let inode = state.inodes.entry(inode).or_default();
        inode.durable = content.clone();
        inode.current = content;
        inode.pending.clear();
    }

    /// Flips one bit of a file, as a hand from outside.
    pub fn flip(&self, name: &str, offset: u64, bit: u8) {
        let mut state = self.0.state.lock();
        let inode = state.inode_of(name);
        let inode = state.inodes.entry(inode).or_default();
        for content in [&mut inode.current, &mut inode.durable] {
            let mut byte = [0];
            content.read(&mut byte, offset);
            if offset < content.length {
                content.write(&[byte[0] ^ (1 << bit)], offset);
            }
        }
    }
}

impl State {
    fn end_process(&mut self) {
        self.process += 1;
        self.locked_by = None;
        self.is_cut = false;
    }

    /// Loses a part of what is not durable.
    fn lose(&mut self) {
        if self.is_cut {
            return;
        }
        self.is_cut = true;
        let kept = self.random.below(self.names.pending.len() as u64 + 1) as usize;
        let changes = std::mem::take(&mut self.names.pending);
        for change in &changes[..kept] {
            apply_name(&mut self.names.durable, change);
        }
        self.names.current = self.names.durable.clone();
        // In the order of numbers, so that the seed decides.
        let mut numbers: Vec<u64> = self.inodes.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            let Some(inode) = self.inodes.get_mut(&number) else {
                continue;
            };
            for change in std::mem::take(&mut inode.pending) {
                keep_a_part(&mut inode.durable, change, &mut self.random);
            }
            inode.current = inode.durable.clone();
        }
        let linked = &self.names.current;
        self.inodes
            .retain(|number, _| linked.values().any(|inode| inode == number));
    }

    fn inode_of(&mut self, name: &str) -> u64 {
        if let Some(inode) = self.names.current.get(name) {
            return *inode;
        }
        let inode = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(inode, Inode::default());
        self.change_name(NameChange::Link(name.to_owned(), inode));
        inode
    }

    fn change_name(&mut self, change: NameChange) {
        apply_name(&mut self.names.current, &change);
        self.names.pending.push(change);
    }

    fn used(&self) -> u64 {
        let pages: usize = self.inodes.values().map(|i| i.current.pages.len()).sum();
        pages as u64 * PAGE_BYTES
    }
}

fn apply_name(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Link(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Unlink(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

/// What a power cut leaves of a change.
fn keep_a_part(content: &mut Content, change: Change, random: &mut Random) {
    match (random.below(4), change) {
        (0, _) => {}
        (1, Change::Write { offset, bytes }) => {
            // Torn: each sector on its own.
            let end = offset + bytes.len() as u64;
            let mut at = offset;
            while at < end {
                let next = (at / SECTOR_BYTES + 1) * SECTOR_BYTES;
                let next = next.min(end);
                if random.one_in(2) {
                    let part = &bytes[(at - offset) as usize..(next - offset) as usize];
                    content.write(part, at);
                }
                at = next;
            }
        }
        (_, change) => content.apply(&change),
    }
}

impl Content {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, bytes } => self.write(bytes, *offset),
            Change::Length(length) => self.set_length(*length),
            Change::Allocate(range) => self.allocate(range),
            Change::Punch(range) => self.punch(range),
        }
    }

    fn read(&self, buffer: &mut [u8], offset: u64) {
        let mut at = 0;
        while at < buffer.len() {
            let position = offset + at as u64;
            let within = (position % PAGE_BYTES) as usize;
            let length = (PAGE_BYTES as usize - within).min(buffer.len() - at);
            match self.pages.get(&(position / PAGE_BYTES)) {
                Some(page) => {
                    buffer[at..at + length].copy_from_slice(&page[within..within + length]);
                }
                None => buffer[at..at + length].fill(0),
            }
            at += length;
        }
    }

    fn write(&mut self, bytes: &[u8], offset: u64) {
        let mut at = 0;
        while at < bytes.len() {
            let position = offset + at as u64;
            let within = (position % PAGE_BYTES) as usize;
            let length = (PAGE_BYTES as usize - within).min(bytes.len() - at);
            let page = self
                .pages
                .entry(position / PAGE_BYTES)
                .or_insert_with(|| Arc::new([0; PAGE_BYTES as usize]));
            Arc::make_mut(page)[within..within + length].copy_from_slice(&bytes[at..at + length]);
            at += length;
        }
        self.length = self.length.max(offset + bytes.len() as u64);
    }

    fn set_length(&mut self, length: u64) {
        if length < self.length {
            self.zero(length..self.length);
            self.pages.split_off(&length.div_ceil(PAGE_BYTES));
        }
        self.length = length;
    }

    fn allocate(&mut self, range: &Range<u64>) {
        let zeros: Page = Arc::new([0; PAGE_BYTES as usize]);
        for page in range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES) {
            self.pages.entry(page).or_insert_with(|| zeros.clone());
        }
        self.length = self.length.max(range.end);
    }

    fn punch(&mut self, range: &Range<u64>) {
        self.zero(range.clone());
        for page in range.start.div_ceil(PAGE_BYTES)..range.end / PAGE_BYTES {
            self.pages.remove(&page);
        }
    }

    /// Zeros in the pages that are there.
    fn zero(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let pages = range.start / PAGE_BYTES..=(range.end - 1) / PAGE_BYTES;
        for (number, page) in self.pages.range_mut(pages) {
            let start = range
                .start
                .saturating_sub(number * PAGE_BYTES)
                .min(PAGE_BYTES);
            let end = (range.end - number * PAGE_BYTES).min(PAGE_BYTES);
            Arc::make_mut(page)[start as usize..end as usize].fill(0);
        }
    }

    /// Pages of a range that take no space yet.
    fn missing(&self, range: &Range<u64>) -> u64 {
        let pages = range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES);
        let there = self.pages.range(pages.clone()).count() as u64;
        pages.end - pages.start - there
    }
}

impl Disk {
    /// Begins an operation of a process: waits where it hangs, fails where it fails, and says which
    /// fault is left to the caller.
    fn begin(
        &self,
        process: u64,
        kind: Kind,
        at: Option<(u64, &Range<u64>)>,
    ) -> io::Result<(MutexGuard<'_, State>, Option<Fault>)> {
        let mut state = self.state.lock();
        if state.process != process || state.is_cut {
            return Err(errno(libc::EIO));
        }
        let number = state.operations;
        state.operations += 1;
        let fault = state
            .faults
            .remove(&number)
            .or_else(|| state.lasting.get(&kind).copied())
            .or_else(|| state.bad_at(at));
        match fault {
            Some(Fault::Error(number)) => return Err(errno(number)),
            Some(Fault::Cut) => {
                state.lose();
                return Err(errno(libc::EIO));
            }
            Some(Fault::Hang) => {
                let releases = state.releases;
                state.hanging += 1;
                while state.releases == releases && state.process == process {
                    self.released.wait(&mut state);
                }
                state.hanging -= 1;
                if state.process != process || state.is_cut {
                    return Err(errno(libc::EIO));
                }
                return Ok((state, None));
            }
            _ => {}
        }
        Ok((state, fault))
    }
}

impl State {
    fn bad_at(&self, at: Option<(u64, &Range<u64>)>) -> Option<Fault> {
        let (inode, range) = at?;
        self.bad
            .iter()
            .find(|(name, bad, _)| {
                self.names.current.get(name) == Some(&inode)
                    && bad.start < range.end
                    && range.start < bad.end
            })
            .map(|(_, _, fault)| *fault)
    }
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// The directory, for one process.
#[derive(Debug)]
struct SimulatedFiles {
    disk: Arc<Disk>,
    process: u64,
    number: u64,
}

impl SimulatedFiles {
    fn file(&self, inode: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimulatedFile {
            disk: self.disk.clone(),
            process: self.process,
            inode,
        })
    }
}

impl Drop for SimulatedFiles {
    fn drop(&mut self) {
        let mut state = self.disk.state.lock();
        if state.locked_by == Some(self.number) {
            state.locked_by = None;
        }
    }
}

impl Files for SimulatedFiles {
    fn lock(&self) -> io::Result<()> {
        let (mut state, _) = self.disk.begin(self.process, Kind::Write, None)?;
        if state.locked_by.is_some_and(|owner| owner != self.number) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.locked_by = Some(self.number);
        Ok(())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let (state, _) = self.disk.begin(self.process, Kind::Read, None)?;
        match state.names.current.get(name) {
            Some(inode) => Ok(self.file(*inode)),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let (mut state, _) = self.disk.begin(self.process, Kind::Write, None)?;
        let inode = state.inode_of(name);
        Ok(self.file(inode))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let (mut state, _) = self.disk.begin(self.process, Kind::Write, None)?;
        if state.names.current.contains_key(name) {
            state.change_name(NameChange::Unlink(name.to_owned()));
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (mut state, _) = self.disk.begin(self.process, Kind::Write, None)?;
        if !state.names.current.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_name(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let (state, _) = self.disk.begin(self.process, Kind::Read, None)?;
        Ok(state.names.current.keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        let (mut state, fault) = self.disk.begin(self.process, Kind::Sync, None)?;
        if fault != Some(Fault::Lost) {
            state.names.durable = state.names.current.clone();
            state.names.pending.clear();
        }
        Ok(())
    }

    fn room(&self) -> io::Result<u64> {
        let (state, _) = self.disk.begin(self.process, Kind::Read, None)?;
        Ok(state.capacity.saturating_sub(state.used()))
    }

    fn probe(&self) -> io::Result<()> {
        for kind in [Kind::Write, Kind::Sync, Kind::Read] {
            drop(self.disk.begin(self.process, kind, None)?);
        }
        Ok(())
    }
}

/// An open file of one process.
#[derive(Debug)]
struct SimulatedFile {
    disk: Arc<Disk>,
    process: u64,
    inode: u64,
}

impl SimulatedFile {
    fn begin(
        &self,
        kind: Kind,
        range: &Range<u64>,
    ) -> io::Result<(MutexGuard<'_, State>, Option<Fault>)> {
        self.disk
            .begin(self.process, kind, Some((self.inode, range)))
    }

    /// Changes the file if there is room for the pages that the range needs.
    fn change(&self, needs: Range<u64>, change: Change) -> io::Result<()> {
        let (mut state, fault) = self.begin(Kind::Write, &needs)?;
        if fault == Some(Fault::Lost) {
            return Ok(());
        }
        let change = state.spoilt(change, fault);
        let room = state.capacity.saturating_sub(state.used());
        let inode = state.inodes.entry(self.inode).or_default();
        if inode.current.missing(&needs) * PAGE_BYTES > room {
            return Err(errno(libc::ENOSPC));
        }
        inode.current.apply(&change);
        inode.pending.push(change);
        Ok(())
    }
}

impl State {
    /// A change with a fault.
    fn spoilt(&mut self, change: Change, fault: Option<Fault>) -> Change {
        match (fault, change) {
            (Some(Fault::Misdirected), Change::Write { offset, bytes }) => Change::Write {
                offset: self.elsewhere(offset),
                bytes,
            },
            (Some(Fault::FlippedBit), Change::Write { offset, bytes }) if !bytes.is_empty() => {
                let mut bytes = bytes.to_vec();
                self.flip(&mut bytes);
                Change::Write {
                    offset,
                    bytes: bytes.into(),
                }
            }
            (_, change) => change,
        }
    }

    fn elsewhere(&mut self, offset: u64) -> u64 {
        let pages = 1 + self.random.below(64);
        match offset.checked_sub(pages * PAGE_BYTES) {
            Some(before) if self.random.one_in(2) => before,
            _ => offset + pages * PAGE_BYTES,
        }
    }

    fn flip(&mut self, bytes: &mut [u8]) {
        let at = self.random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << self.random.below(8);
    }
}

impl DiskFile for SimulatedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = offset..offset + buffer.len() as u64;
        let (mut state, fault) = self.begin(Kind::Read, &range)?;
        let offset = match fault {
            Some(Fault::Misdirected) => state.elsewhere(offset),
            _ => offset,
        };
        let inode = state.inodes.entry(self.inode).or_default();
        if fault.is_none() && range.end > inode.current.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        inode.current.read(buffer, offset);
        if fault == Some(Fault::FlippedBit) && !buffer.is_empty() {
            state.flip(buffer);
        }
        Ok(())
    }

    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        let is_cached = {
            let state = self.disk.state.lock();
            state.is_cached && state.lasting.is_empty()
        };
        is_cached && self.read_at(buffer, offset).is_ok()
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let change = Change::Write {
            offset,
            bytes: bytes.into(),
        };
        self.change(offset..offset + bytes.len() as u64, change)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(0..0, Change::Length(length))
    }

    fn allocate(&self, range: Range<u64>) -> io::Result<()> {
        self.change(range.clone(), Change::Allocate(range))
    }

    fn punch(&self, range: Range<u64>) -> io::Result<()> {
        self.change(0..0, Change::Punch(range))
    }

    fn sync_data(&self) -> io::Result<()> {
        let (mut state, fault) = self.begin(Kind::Sync, &(0..0))?;
        if fault != Some(Fault::Lost) {
            let inode = state.inodes.entry(self.inode).or_default();
            inode.durable = inode.current.clone();
            inode.pending.clear();
        }
        Ok(())
    }

    fn start_writeback(&self, range: Range<u64>) -> io::Result<()> {
        self.begin(Kind::Write, &range).map(drop)
    }

    fn wait_writeback(&self, range: Range<u64>) -> io::Result<()> {
        self.begin(Kind::Write, &range).map(drop)
    }

    fn length(&self) -> io::Result<u64> {
        let (mut state, _) = self.begin(Kind::Read, &(0..0))?;
        Ok(state.inodes.entry(self.inode).or_default().current.length)
    }

    fn space(&self) -> io::Result<u64> {
        let (mut state, _) = self.begin(Kind::Read, &(0..0))?;
        let inode = state.inodes.entry(self.inode).or_default();
        Ok(inode.current.pages.len() as u64 * PAGE_BYTES)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(disk: &SimulatedDisk) -> Arc<dyn DiskFile> {
        disk.files().create("a").expect("no fault")
    }

    #[test]
    fn a_cut_keeps_what_was_synced_and_sectors_of_the_rest() {
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let disk = SimulatedDisk::new(seed);
            let old = file(&disk);
            old.write_at(&[1; 4096], 0).expect("no fault");
            old.sync_data().expect("no fault");
            disk.files().sync().expect("no fault");
            old.write_at(&[2; 2048], 1024).expect("no fault");
            old.start_writeback(0..4096).expect("no fault");
            old.wait_writeback(0..4096).expect("no fault");

            disk.cut();
            assert!(old.write_at(&[3], 0).is_err(), "its process is gone");
            let bytes = disk.bytes("a");
            assert_eq!(bytes.len(), 4096, "seed {seed}");
            assert!(bytes[..1024].iter().all(|byte| *byte == 1), "seed {seed}");
            assert!(bytes[3072..].iter().all(|byte| *byte == 1), "seed {seed}");
            let sectors: Vec<u8> = bytes[1024..3072]
                .chunks(512)
                .map(|sector| {
                    assert!(sector.iter().all(|byte| *byte == sector[0]), "seed {seed}");
                    sector[0]
                })
                .collect();
            match sectors.iter().filter(|byte| **byte == 2).count() {
                0 => lost += 1,
                4 => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(kept > 20 && lost > 20 && torn > 20, "{kept} {lost} {torn}");
    }

    #[test]
    fn names_need_a_sync_of_the_directory() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let disk = SimulatedDisk::new(seed);
            file(&disk).write_at(b"x", 0).expect("no fault");
            let files = disk.files();
            files.sync().expect("no fault");
            files.create("b").expect("no fault");
            files.rename("b", "c").expect("no fault");
            files.remove("a").expect("no fault");
            disk.cut();
            seen.insert(disk.names().concat());
        }
        let seen: Vec<_> = seen.into_iter().collect();
        assert_eq!(seen, ["a", "ab", "ac", "c"]);
    }

    #[test]
    fn a_killed_process_loses_nothing() {
        let disk = SimulatedDisk::new(1);
        let files = disk.files();
        files.lock().expect("it is free");
        let old = file(&disk);
        old.write_at(b"kept", 10).expect("no fault");
        disk.kill();
        assert!(old.length().is_err());
        disk.files().lock().expect("it is free again");
        assert_eq!(&disk.bytes("a")[10..], b"kept");
    }

    #[test]
    fn faults() {
        let disk = SimulatedDisk::new(1);
        let file = file(&disk);
        file.write_at(&[1; 100], 0).expect("no fault");
        let mut bytes = [0; 100];

        disk.fault_after(1, Fault::Error(libc::EIO));
        file.read_at(&mut bytes, 0).expect("the next one fails");
        let error = file.read_at(&mut bytes, 0).expect_err("a fault");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));

        disk.fault_after(0, Fault::FlippedBit);
        file.read_at(&mut bytes, 0).expect("no error");
        assert_eq!(bytes.iter().filter(|byte| **byte != 1).count(), 1);

        disk.fault_after(0, Fault::Lost);
        file.write_at(&[2; 100], 0).expect("no error");
        disk.fault_after(0, Fault::Misdirected);
        file.write_at(&[3; 100], 0).expect("no error");
        file.read_at(&mut bytes, 0).expect("no fault");
        assert_eq!(bytes, [1; 100]);

        disk.fault_in("a", 50..51, Fault::Error(libc::EIO));
        file.read_at(&mut bytes[..50], 0).expect("good sectors");
        assert!(file.read_at(&mut bytes[..51], 0).is_err());
        disk.release();
        file.read_at(&mut bytes, 0).expect("no fault");
    }

    #[test]
    fn a_capacity_counts_pages() {
        let disk = SimulatedDisk::new(1);
        let file = file(&disk);
        disk.set_capacity(3 * PAGE_BYTES);
        file.allocate(0..2 * PAGE_BYTES).expect("room");
        file.write_at(&[1; 8192], 0).expect("reserved");
        let error = file.write_at(&[1; 8192], 8192).expect_err("no room");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        file.punch(0..PAGE_BYTES).expect("no fault");
        assert_eq!(file.space().expect("no fault"), PAGE_BYTES);
        file.write_at(&[1; 8192], 8192).expect("room again");
        let mut bytes = [9; 4096];
        file.read_at(&mut bytes, 0).expect("no fault");
        assert_eq!(bytes, [0; 4096]);
        file.set_len(4097).expect("no fault");
        file.set_len(8192).expect("no fault");
        file.read_at(&mut bytes, 4096).expect("no fault");
        assert_eq!((bytes[0], bytes[1]), (1, 0));
    }

    #[test]
    fn what_hangs_is_let_go() {
        let disk = SimulatedDisk::new(1);
        let file = file(&disk);
        disk.fault_always(Kind::Write, Fault::Hang);
        let writes = std::thread::spawn(move || file.write_at(b"late", 0));
        while disk.hanging() == 0 {
            std::thread::yield_now();
        }
        disk.release();
        writes.join().expect("it ends").expect("no error");
        assert_eq!(disk.bytes("a"), b"late");
    }
}
