//! One pool: a data file that is divided into regions, each written from front to back and reclaimed
//! whole.
//!
//! A region has a generation, a number that no other use of any region ever had. The file `regions`
//! holds the generation of each region; a record is valid only with it ([`super::record`]). So a
//! region is given up by one small durable write, after which nothing in it can come back, whatever
//! its bytes are.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::record::{ALIGNMENT, HEADER_BYTES, Header, MAGIC, Position};
use crate::body::Pool;
use crate::directory::Place;
use crate::io::DiskFile;
use crate::policy::Stream;

/// Bytes that are gathered before they are written.
/// A region that is less full than this part of its length is copied whole where it is reclaimed.
const SPARSE_SHARE: u32 = 4;
const GATHER_BYTES: usize = 1 << 20;
/// After so many bytes the writing of the pages begins, and the one before must have ended: at most
/// twice as many bytes of a pool are dirty.
const WINDOW_BYTES: u32 = 8 << 20;
/// Regions of a pool, which the directory can tell apart.
pub(crate) const REGIONS_MAX: u64 = 1 << 16;
/// Length of an entry of the file `regions`.
const ENTRY_BYTES: usize = 32;
/// Bytes that a scan reads at once.
const READ_BYTES: usize = 512 << 10;
/// Zeros are passed over in blocks of this length, a multiple of the alignment.
const ZERO_BYTES: usize = 4096;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A record that was read, with its checksums verified.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) header: Header,
    pub(crate) head: &'a [u8],
    pub(crate) slice: &'a [u8],
}

/// How far a pool had been written at a moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PoolFrontier {
    /// Regions of this generation and later ones were begun afterwards.
    next_generation: u64,
    /// The regions that were being written, each with the end of its records.
    active: [Option<(u16, u32)>; 2],
}

impl PoolFrontier {
    /// Whether the record at a place, in a region of that generation, was there.
    pub(crate) fn contains(&self, place: Place, generation: u64) -> bool {
        let active = self.active.iter().flatten();
        let end = active.copied().find(|(slot, _)| *slot == place.slot);
        let is_written = end.is_none_or(|(_, end)| place.offset < end);
        generation != 0 && generation < self.next_generation && is_written
    }

    /// Whether a region of that generation was there and nothing more was written to it.
    pub(crate) fn is_complete(&self, slot: u16, generation: u64) -> bool {
        let is_active = self
            .active
            .iter()
            .flatten()
            .any(|(active, _)| *active == slot);
        generation != 0 && generation < self.next_generation && !is_active
    }
}

/// The side of a pool that readers share.
#[derive(Debug)]
pub(crate) struct PoolFile {
    pool: Pool,
    store: u64,
    region_bytes: u32,
    file: Arc<dyn DiskFile>,
    /// By region; 0 for a free one.
    generations: Box<[AtomicU64]>,
    frontier: Mutex<PoolFrontier>,
    /// The first generation of this run.
    first_generation: AtomicU64,
}

impl PoolFile {
    pub(crate) fn new(
        pool: Pool,
        store: u64,
        (region_bytes, regions): (u32, usize),
        file: Arc<dyn DiskFile>,
    ) -> Self {
        Self {
            pool,
            store,
            region_bytes,
            file,
            generations: (0..regions).map(|_| AtomicU64::new(0)).collect(),
            frontier: Mutex::default(),
            first_generation: AtomicU64::new(0),
        }
    }

    fn position(&self, slot: u16, generation: u64, offset: u32) -> Position {
        Position {
            store: self.store,
            pool: self.pool,
            slot,
            generation,
            offset,
        }
    }

    /// Which use of the region this is; 0 where it is free.
    pub(crate) fn generation(&self, slot: u16) -> u64 {
        self.generations
            .get(usize::from(slot))
            .map_or(0, |generation| generation.load(Ordering::Acquire))
    }

    /// Which use each region is of.
    pub(crate) fn generations(&self) -> Vec<u64> {
        let generations = self.generations.iter();
        generations.map(|g| g.load(Ordering::Acquire)).collect()
    }

    /// How far it is written.
    pub(crate) fn frontier(&self) -> PoolFrontier {
        *self.frontier.lock()
    }

    /// How far earlier runs had written it.
    pub(crate) fn frontier_at_start(&self) -> PoolFrontier {
        PoolFrontier {
            next_generation: self.first_generation.load(Ordering::Acquire),
            active: [None, None],
        }
    }

    fn file_offset(&self, slot: u16, offset: u32) -> u64 {
        u64::from(slot) * u64::from(self.region_bytes) + u64::from(offset)
    }

    /// Reads the record at a place and gives it to `take`. Without `waits` only from the page
    /// cache; `None` where it is not there. The error is of the kind [`io::ErrorKind::NotFound`]
    /// where the region is of another use meanwhile.
    pub(crate) fn read<R>(
        &self,
        place: Place,
        waits: bool,
        take: impl FnOnce(&Record<'_>) -> R,
    ) -> Option<io::Result<R>> {
        SCRATCH.with_borrow_mut(|buffer| {
            let length = place.length.min(self.region_bytes) as usize;
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let read = self.read_into(&mut buffer[..length], place, waits)?;
            Some(read.map(|record| take(&record)))
        })
    }

    /// The same, into a buffer as long as the place.
    pub(crate) fn read_into<'a>(
        &self,
        buffer: &'a mut [u8],
        place: Place,
        waits: bool,
    ) -> Option<io::Result<Record<'a>>> {
        let generation = self.generation(place.slot);
        let room = self.region_bytes.saturating_sub(place.offset);
        let length = buffer.len().min(place.length.min(room) as usize);
        if generation == 0 || length < HEADER_BYTES {
            return Some(Err(io::ErrorKind::NotFound.into()));
        }
        let from = self.file_offset(place.slot, place.offset);
        let buffer = &mut buffer[..length];
        if !self.file.read_now(buffer, from) {
            if !waits {
                return None;
            }
            if let Err(error) = self.file.read_at(buffer, from) {
                return Some(Err(error));
            }
        }
        let position = self.position(place.slot, generation, place.offset);
        let record = check(buffer, &position);
        if record.is_err() && self.generation(place.slot) != generation {
            return Some(Err(io::ErrorKind::NotFound.into()));
        }
        Some(record)
    }

    /// The header at a place.
    pub(crate) fn read_header(&self, place: Place) -> io::Result<Header> {
        let generation = self.generation(place.slot);
        if generation == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut bytes = [0; HEADER_BYTES];
        let from = self.file_offset(place.slot, place.offset);
        self.file.read_at(&mut bytes, from)?;
        let position = self.position(place.slot, generation, place.offset);
        Header::decode(&bytes, &position).ok_or_else(damaged)
    }

    /// Replaces the header at a place.
    pub(crate) fn write_header(&self, place: Place, header: &Header) -> io::Result<()> {
        let generation = self.generation(place.slot);
        let position = self.position(place.slot, generation, place.offset);
        let from = self.file_offset(place.slot, place.offset);
        self.file.write_at(&header.encode(&position), from)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Shows every record of a region, from an offset on, to `each`, and returns where they end. What is no record is
    /// skipped: the search for the next one begins behind it. The payloads are not verified.
    pub(crate) fn scan(
        &self,
        slot: u16,
        from: u32,
        mut each: impl FnMut(&Header, Place) -> io::Result<()>,
    ) -> io::Result<u32> {
        let generation = self.generation(slot);
        let mut window = Window {
            file: &*self.file,
            start: self.file_offset(slot, 0),
            length: self.region_bytes,
            at: 0,
            bytes: Vec::new(),
        };
        let (mut offset, mut end) = (from, from);
        while offset + HEADER_BYTES as u32 <= self.region_bytes {
            let position = self.position(slot, generation, offset);
            let header = Header::decode(window.header(offset)?, &position)
                .filter(|header| offset + header.span() <= self.region_bytes);
            let Some(header) = header else {
                offset = window.next_candidate(offset + ALIGNMENT as u32);
                continue;
            };
            let place = Place {
                pool: self.pool,
                slot,
                offset,
                length: header.span(),
            };
            each(&header, place)?;
            offset += header.span();
            end = offset;
        }
        Ok(end)
    }
}

/// Reads a region forward in large pieces.
struct Window<'a> {
    file: &'a dyn DiskFile,
    start: u64,
    length: u32,
    at: u32,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// The next offset in the window at which a header may begin, or its end.
    fn next_candidate(&self, offset: u32) -> u32 {
        let mut offset = offset;
        let mut rest = self.bytes.get((offset - self.at) as usize..).unwrap_or(&[]);
        // Most of what has no header was never written.
        while let Some(block) = rest.first_chunk::<ZERO_BYTES>()
            && *block == [0; ZERO_BYTES]
        {
            rest = &rest[ZERO_BYTES..];
            offset += ZERO_BYTES as u32;
        }
        let mut steps = rest.chunks(ALIGNMENT);
        let found = steps.position(|chunk| chunk.starts_with(&MAGIC));
        let steps = found.unwrap_or(rest.len().div_ceil(ALIGNMENT));
        offset + (steps * ALIGNMENT) as u32
    }

    fn header(&mut self, offset: u32) -> io::Result<&[u8; HEADER_BYTES]> {
        let end = self.at + self.bytes.len() as u32;
        if offset < self.at || offset + HEADER_BYTES as u32 > end {
            let length = (READ_BYTES as u32).min(self.length - offset) as usize;
            self.bytes.resize(length, 0);
            self.at = offset;
            self.file
                .read_at(&mut self.bytes, self.start + u64::from(offset))?;
        }
        let from = (offset - self.at) as usize;
        let header = self.bytes[from..].first_chunk();
        Ok(header.expect("the window was filled for a header"))
    }
}

fn damaged() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "a record's checksum does not match",
    )
}

fn check<'a>(bytes: &'a [u8], position: &Position) -> io::Result<Record<'a>> {
    let header = bytes
        .first_chunk()
        .and_then(|bytes| Header::decode(bytes, position))
        .ok_or_else(damaged)?;
    let payload = &bytes[HEADER_BYTES..];
    let (head, slice) = (header.head_length as usize, header.slice_length as usize);
    let payload = payload.get(..head + slice).ok_or_else(damaged)?;
    let (head, slice) = payload.split_at(head);
    let is_intact = (!header.kind.has_head() || crc32fast::hash(head) == header.head_crc)
        && crc32fast::hash(slice) == header.slice_crc;
    if is_intact {
        Ok(Record {
            header,
            head,
            slice,
        })
    } else {
        Err(damaged())
    }
}

/// A region that is being written.
#[derive(Debug)]
struct Active {
    slot: u16,
    /// End of what was written.
    written: u32,
    /// What follows it.
    gathered: Vec<u8>,
    /// End of what is on its way to the device, and the start of that window.
    started: u32,
    window: u32,
}

impl Active {
    fn end(&self) -> u32 {
        self.written + self.gathered.len() as u32
    }
}

#[derive(Debug, Clone, Copy)]
struct Region {
    generation: u64,
    stream: Stream,
    used: u32,
}

/// The side of a pool that the writer has.
#[derive(Debug)]
pub(crate) struct PoolLog {
    shared: Arc<PoolFile>,
    table: Arc<dyn DiskFile>,
    /// `None` for a free region.
    regions: Vec<Option<Region>>,
    active: [Option<Active>; 2],
    next_generation: u64,
}

impl PoolLog {
    /// A pool with the regions that the table says. Regions of earlier runs are not written to.
    /// Generations of this run begin at `next_generation`.
    pub(crate) fn open(
        shared: Arc<PoolFile>,
        table: Arc<dyn DiskFile>,
        next_generation: u64,
    ) -> io::Result<Self> {
        let count = shared.generations.len();
        let mut bytes = vec![0; count * ENTRY_BYTES];
        let from = table_offset(shared.pool, 0);
        let held = usize::try_from(table.length()?.saturating_sub(from)).unwrap_or(usize::MAX);
        let held = held.min(bytes.len());
        if held > 0 {
            table.read_at(&mut bytes[..held], from)?;
        }
        // Sparse; what is behind the last region goes when a pool has become smaller.
        let length = count as u64 * u64::from(shared.region_bytes);
        if shared.file.length()? != length {
            shared.file.set_len(length)?;
        }

        let regions: Vec<_> = bytes
            .chunks_exact(ENTRY_BYTES)
            .enumerate()
            .map(|(slot, entry)| decode_entry(entry, shared.store, shared.pool, slot as u16))
            .collect();
        for (region, generation) in regions.iter().zip(&shared.generations) {
            let known = region.map_or(0, |region: Region| region.generation);
            generation.store(known, Ordering::Release);
        }
        shared.frontier.lock().next_generation = next_generation;
        shared
            .first_generation
            .store(next_generation, Ordering::Release);
        Ok(Self {
            shared,
            table,
            regions,
            active: [None, None],
            next_generation,
        })
    }

    pub(crate) fn shared(&self) -> &Arc<PoolFile> {
        &self.shared
    }

    /// Whether the pool is large enough to hold anything.
    pub(crate) fn is_usable(&self) -> bool {
        self.regions.len() >= 2
    }

    pub(crate) fn regions_max(&self) -> usize {
        self.regions.len()
    }

    pub(crate) fn region_bytes(&self) -> u32 {
        self.shared.region_bytes
    }

    pub(crate) fn free(&self) -> usize {
        self.regions
            .iter()
            .filter(|region| region.is_none())
            .count()
    }

    /// The regions in use, in the order in which they were begun.
    pub(crate) fn used_slots(&self) -> Vec<u16> {
        let mut slots: Vec<_> = (0..self.regions.len())
            .filter_map(|slot| Some((self.regions[slot]?.generation, slot as u16)))
            .collect();
        slots.sort_unstable();
        slots.into_iter().map(|(_, slot)| slot).collect()
    }

    /// Gives up all regions.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        let zeros = vec![0; REGIONS_MAX as usize * ENTRY_BYTES];
        self.table
            .write_at(&zeros, table_offset(self.shared.pool, 0))?;
        self.table.sync_data()?;
        self.regions.fill(None);
        for generation in &self.shared.generations {
            generation.store(0, Ordering::Release);
        }
        Ok(())
    }

    pub(crate) fn pool(&self) -> Pool {
        self.shared.pool
    }

    /// Where the records of a region end.
    pub(crate) fn used(&self, slot: u16) -> u32 {
        self.regions[usize::from(slot)].map_or(0, |region| region.used)
    }

    pub(crate) fn generation(&self, slot: u16) -> u64 {
        self.shared.generation(slot)
    }

    /// Sets where the records of a region end.
    pub(crate) fn set_used(&mut self, slot: u16, used: u32) {
        if let Some(region) = &mut self.regions[usize::from(slot)] {
            region.used = used;
        }
    }

    /// Bytes of records.
    pub(crate) fn bytes(&self) -> u64 {
        self.regions
            .iter()
            .flatten()
            .map(|r| u64::from(r.used))
            .sum()
    }

    /// Bytes of a stream's regions that are not being written.
    pub(crate) fn sealed_bytes(&self, stream: Stream) -> u64 {
        let regions = self.regions.iter().enumerate();
        regions
            .filter(|(slot, _)| !self.is_active(*slot as u16))
            .filter_map(|(_, region)| region.as_ref())
            .filter(|region| region.stream == stream)
            .map(|region| u64::from(region.used))
            .sum()
    }

    fn is_active(&self, slot: u16) -> bool {
        self.active.iter().flatten().any(|a| a.slot == slot)
    }

    /// The oldest region of a stream that is not being written.
    pub(crate) fn oldest(&self, stream: Stream) -> Option<u16> {
        let regions = self.regions.iter().enumerate();
        regions
            .filter_map(|(slot, region)| Some((slot as u16, region.as_ref()?)))
            .filter(|(slot, region)| region.stream == stream && !self.is_active(*slot))
            .min_by_key(|(_, region)| region.generation)
            .map(|(slot, _)| slot)
    }

    /// The oldest region that is not being written and has little in it, as an end of a run leaves
    /// it: each run begins regions of its own.
    pub(crate) fn oldest_sparse(&self) -> Option<u16> {
        let regions = self.regions.iter().enumerate();
        regions
            .filter_map(|(slot, region)| Some((slot as u16, region.as_ref()?)))
            .filter(|(slot, _)| !self.is_active(*slot) && self.is_sparse(*slot))
            .min_by_key(|(_, region)| region.generation)
            .map(|(slot, _)| slot)
    }

    /// Whether a region has little in it.
    pub(crate) fn is_sparse(&self, slot: u16) -> bool {
        self.regions[usize::from(slot)]
            .is_some_and(|region| region.used < self.region_bytes() / SPARSE_SHARE)
    }

    pub(crate) fn stream_of(&self, slot: u16) -> Stream {
        self.regions[usize::from(slot)].map_or(Stream::Probation, |region| region.stream)
    }

    /// Whether a record of that span needs a new region of its stream first.
    pub(crate) fn is_full_for(&self, stream: Stream, span: u32) -> bool {
        self.active[stream as usize]
            .as_ref()
            .is_none_or(|active| active.end() + span > self.shared.region_bytes)
    }

    /// Begins a new region of a stream. What was gathered for the one before must be written.
    pub(crate) fn roll(&mut self, stream: Stream) -> io::Result<()> {
        let slot = self.regions.iter().position(Option::is_none);
        let Some(slot) = slot else {
            return Err(io::ErrorKind::StorageFull.into());
        };
        let region = Region {
            generation: self.next_generation,
            stream,
            used: 0,
        };
        let slot = slot as u16;
        self.write_entry(slot, Some(&region))?;
        self.next_generation += 1;
        self.regions[usize::from(slot)] = Some(region);
        self.shared.generations[usize::from(slot)].store(region.generation, Ordering::Release);
        {
            let mut frontier = self.shared.frontier.lock();
            frontier.next_generation = self.next_generation;
            frontier.active[stream as usize] = Some((slot, 0));
        }
        self.active[stream as usize] = Some(Active {
            slot,
            written: 0,
            gathered: Vec::new(),
            started: 0,
            window: 0,
        });
        Ok(())
    }

    /// Adds a record to the active region of a stream, which has room for it. It is written with
    /// [`write`](Self::write).
    pub(crate) fn gather(
        &mut self,
        stream: Stream,
        header: &Header,
        head: &[u8],
        slice: &[u8],
    ) -> Place {
        let active = self.active[stream as usize]
            .as_mut()
            .expect("a region was begun before");
        let offset = active.end();
        let generation = self.regions[usize::from(active.slot)].map_or(0, |r| r.generation);
        let position = self.shared.position(active.slot, generation, offset);
        active.gathered.extend_from_slice(&header.encode(&position));
        active.gathered.extend_from_slice(head);
        active.gathered.extend_from_slice(slice);
        let span = header.span();
        let end = (offset - active.written + span) as usize;
        active.gathered.resize(end, 0);
        self.shared.frontier.lock().active[stream as usize] = Some((active.slot, offset + span));
        Place {
            pool: self.shared.pool,
            slot: active.slot,
            offset,
            length: span,
        }
    }

    /// Whether enough was gathered to be written.
    pub(crate) fn has_much(&self, stream: Stream) -> bool {
        self.active[stream as usize]
            .as_ref()
            .is_some_and(|active| active.gathered.len() >= GATHER_BYTES)
    }

    /// Writes what was gathered. After an error nothing of it counts, and the region ends before
    /// it.
    pub(crate) fn write(&mut self, stream: Stream) -> io::Result<()> {
        let Some(active) = &mut self.active[stream as usize] else {
            return Ok(());
        };
        if active.gathered.is_empty() {
            return Ok(());
        }
        let slot = active.slot;
        let from = self.shared.file_offset(slot, active.written);
        let written = self.shared.file.write_at(&active.gathered, from);
        if let Err(error) = written {
            self.active[stream as usize] = None;
            return Err(error);
        }
        active.written += active.gathered.len() as u32;
        active.gathered.clear();
        let end = active.written;
        if end - active.started >= WINDOW_BYTES {
            let base = self.shared.file_offset(slot, 0);
            let range = |from: u32, to: u32| base + u64::from(from)..base + u64::from(to);
            // Only the order of work at the device depends on these; the next sync finds an error.
            let _ = self.shared.file.start_writeback(range(active.started, end));
            let _ = self
                .shared
                .file
                .wait_writeback(range(active.window, active.started));
            (active.window, active.started) = (active.started, end);
        }
        self.set_used(slot, end);
        Ok(())
    }

    /// Makes free a region whose records have been written elsewhere or are given up. Durable when
    /// it returns; from then on nothing of it is a record. Its space is given back.
    pub(crate) fn release(&mut self, slot: u16) -> io::Result<()> {
        self.write_entry(slot, None)?;
        self.table.sync_data()?;
        self.regions[usize::from(slot)] = None;
        Ok(())
    }

    /// Gives the space of a released region back, after the directory has forgotten it.
    pub(crate) fn punch(&self, slot: u16) -> io::Result<()> {
        self.shared.generations[usize::from(slot)].store(0, Ordering::Release);
        let start = self.shared.file_offset(slot, 0);
        self.shared
            .file
            .punch(start..start + u64::from(self.shared.region_bytes))
    }

    fn write_entry(&self, slot: u16, region: Option<&Region>) -> io::Result<()> {
        let entry = encode_entry(region, self.shared.store, self.shared.pool, slot);
        self.table
            .write_at(&entry, table_offset(self.shared.pool, slot))
    }
}

pub(super) fn table_offset(pool: Pool, slot: u16) -> u64 {
    (pool as u64 * REGIONS_MAX + u64::from(slot)) * ENTRY_BYTES as u64
}

/// The entry of the first region in its use of that number.
pub(super) fn encode_first_entry(generation: u64, store: u64, pool: Pool) -> [u8; ENTRY_BYTES] {
    let region = Region {
        generation,
        stream: Stream::Main,
        used: 0,
    };
    encode_entry(Some(&region), store, pool, 0)
}

fn encode_entry(region: Option<&Region>, store: u64, pool: Pool, slot: u16) -> [u8; ENTRY_BYTES] {
    let mut out = [0; ENTRY_BYTES];
    let Some(region) = region else { return out };
    out[..8].copy_from_slice(&region.generation.to_le_bytes());
    out[8] = region.stream as u8;
    let crc = entry_checksum(&out, store, pool, slot);
    out[28..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The region that an entry says; `None` for a free one and a damaged entry, whose region is given
/// up.
fn decode_entry(bytes: &[u8], store: u64, pool: Pool, slot: u16) -> Option<Region> {
    let entry: &[u8; ENTRY_BYTES] = bytes.first_chunk()?;
    if entry[28..] != entry_checksum(entry, store, pool, slot).to_le_bytes() {
        return None;
    }
    let generation = u64::from_le_bytes(*entry.first_chunk()?);
    (generation != 0).then_some(Region {
        generation,
        stream: match entry[8] {
            0 => Stream::Probation,
            _ => Stream::Main,
        },
        used: 0,
    })
}

fn entry_checksum(entry: &[u8; ENTRY_BYTES], store: u64, pool: Pool, slot: u16) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&entry[..28]);
    hasher.update(&store.to_le_bytes());
    hasher.update(&[pool as u8]);
    hasher.update(&slot.to_le_bytes());
    hasher.finalize()
}

/// The pools by number.
pub(crate) type Pools = [Arc<PoolFile>; 2];
