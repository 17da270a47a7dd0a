//! The files of one pool: regions of a fixed size, written one after the other and evicted whole,
//! oldest first.
//!
//! Owns the files of a pool. Eviction returns the records of the region, so that the caller can
//! write some of them again. Knows nothing of bodies beyond their numbers.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nearcast_fleet::disk::{REGION_HEADER_BYTES, SLICE_BYTES, region_bytes};
use parking_lot::Mutex;

use super::body::BodyId;
use super::record::{ALIGNMENT, HEADER_BYTES, Header, RecordKind, record_span};

const REGION_MAGIC: &[u8; 8] = b"NCREGN01";
/// Payloads up to this length are copied behind their header and written with one system call.
const ONE_WRITE_BYTES_MAX: usize = 16 * 1024;

/// A region file. Readers share it, so that an evicted region stays readable until they end.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) number: u64,
    pub(super) file: File,
    path: PathBuf,
    records: Mutex<Vec<RegionRecord>>,
}

/// What identifies a record: its kind, its body, and the index of its slice.
pub(super) type RecordIdentity = (RecordKind, BodyId, u32);

/// One record of a region.
#[derive(Debug, Clone, Copy)]
pub(super) struct RegionRecord {
    pub(super) kind: RecordKind,
    pub(super) body: BodyId,
    pub(super) index: u32,
    /// Payload length in bytes.
    pub(super) length: u32,
    /// Offset of the record's header.
    pub(super) offset: u64,
}

impl RegionRecord {
    fn new(header: &Header, offset: u64) -> Self {
        Self {
            kind: header.kind,
            body: BodyId(header.body),
            index: header.index,
            length: header.length,
            offset,
        }
    }

    pub(super) fn identity(&self) -> RecordIdentity {
        (self.kind, self.body, self.index)
    }
}

/// Where a record is.
#[derive(Debug, Clone)]
pub(super) struct RecordLocation {
    pub(super) region: Arc<Region>,
    /// Offset of the record's header.
    pub(super) offset: u64,
    /// Payload length in bytes.
    pub(super) length: u32,
}

/// A region that was taken out of the pool, with its records.
#[derive(Debug)]
pub(super) struct EvictedRegion {
    pub(super) region: Arc<Region>,
    records: Vec<RegionRecord>,
}

impl EvictedRegion {
    pub(super) fn records_of(&self, kind: RecordKind) -> impl Iterator<Item = &RegionRecord> {
        self.records.iter().filter(move |r| r.kind == kind)
    }
}

/// The files of one pool.
#[derive(Debug)]
pub(super) struct PoolLog {
    directory: PathBuf,
    capacity: u64,
    region_bytes: u64,
    /// Regions with their lengths in bytes, oldest first.
    regions: VecDeque<(Arc<Region>, u64)>,
    next_number: u64,
    /// Whether the newest region accepts records. A region of an earlier run does not: its tail may
    /// be damaged.
    is_writable: bool,
}

impl PoolLog {
    /// A pool of that many bytes. Touches no file.
    pub(super) fn new(directory: PathBuf, capacity: u64) -> Self {
        Self {
            directory,
            capacity,
            region_bytes: region_bytes(capacity),
            regions: VecDeque::new(),
            next_number: 1,
            is_writable: false,
        }
    }

    /// Whether the pool is large enough to hold anything.
    pub(super) fn is_usable(&self) -> bool {
        self.region_bytes >= REGION_HEADER_BYTES + record_span(SLICE_BYTES) + record_span(4096)
    }

    /// Largest payload a record of this pool can have.
    pub(super) fn payload_max(&self) -> usize {
        (self.region_bytes - REGION_HEADER_BYTES) as usize - HEADER_BYTES - ALIGNMENT
    }

    /// Bytes of records in a region.
    pub(super) fn records_bytes(&self) -> u64 {
        self.region_bytes - REGION_HEADER_BYTES
    }

    /// Largest number of regions.
    pub(super) fn regions_max(&self) -> u64 {
        self.capacity / self.region_bytes
    }

    /// Second-chance budget: bytes of unpinned but recently used records that one eviction may
    /// rewrite. The rest of the region is for new records.
    pub(super) fn second_chance_bytes(&self) -> u64 {
        self.region_bytes / 2
    }

    /// Bytes in files.
    pub(super) fn bytes(&self) -> u64 {
        self.regions.iter().map(|(_, length)| *length).sum()
    }

    /// Whether a payload of that length needs a new region first.
    pub(super) fn is_full_for(&self, payload: usize) -> bool {
        match self.regions.back() {
            Some((_, length)) if self.is_writable => {
                length + record_span(payload) > self.region_bytes
            }
            _ => true,
        }
    }

    /// Takes the oldest region out of the pool, if a new one does not fit beside the others.
    pub(super) fn evict_for_new_region(&mut self) -> Option<EvictedRegion> {
        if self.bytes_reserved() + self.region_bytes <= self.capacity {
            return None;
        }
        let (region, _) = self.regions.pop_front()?;
        if let Err(error) = fs::remove_file(&region.path) {
            tracing::warn!(path = %region.path.display(), %error, "cannot remove an evicted region file");
        }
        let records = std::mem::take(&mut *region.records.lock());
        Some(EvictedRegion { region, records })
    }

    fn bytes_reserved(&self) -> u64 {
        self.regions
            .iter()
            .map(|(_, length)| (*length).max(self.region_bytes))
            .sum()
    }

    /// Starts a new region file.
    pub(super) fn roll(&mut self) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let number = self.next_number;
        let path = self.directory.join(format!("region-{number:016x}"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        if let Err(error) = file.write_all_at(&region_header(number), 0) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        self.next_number += 1;
        self.regions.push_back((
            Arc::new(Region {
                number,
                file,
                path,
                records: Mutex::default(),
            }),
            REGION_HEADER_BYTES,
        ));
        self.is_writable = true;
        Ok(())
    }

    /// Appends a record to the newest region, which has room for it. A record counts only with its
    /// header, so a crash between the two writes leaves the end of the region where it was.
    pub(super) fn append(&mut self, header: &Header, payload: &[u8]) -> io::Result<RecordLocation> {
        let (region, length) = self.regions.back_mut().expect("a region was rolled before");
        let offset = *length;
        if payload.len() <= ONE_WRITE_BYTES_MAX {
            let mut whole = Vec::with_capacity(HEADER_BYTES + payload.len());
            whole.extend_from_slice(&header.encode());
            whole.extend_from_slice(payload);
            region.file.write_all_at(&whole, offset)?;
        } else {
            region
                .file
                .write_all_at(payload, offset + HEADER_BYTES as u64)?;
            region.file.write_all_at(&header.encode(), offset)?;
        }
        *length += header.span();
        region
            .records
            .lock()
            .push(RegionRecord::new(header, offset));
        Ok(RecordLocation {
            region: region.clone(),
            offset,
            length: header.length,
        })
    }

    /// Opens the files of an earlier run and calls `each` with every complete record, oldest region
    /// first. Heads come with their payload; payloads of slices are checked when they are read. A
    /// region ends at its first damaged header. Files that are not regions are removed.
    pub(super) fn scan(
        &mut self,
        mut each: impl FnMut(&Header, RecordLocation, Option<Vec<u8>>),
    ) -> io::Result<()> {
        for (number, path) in region_files(&self.directory)? {
            self.next_number = self.next_number.max(number + 1); // Below u64::MAX: see `region_files`.
            match scan_region(&path, number, &mut each) {
                Ok((region, length)) => self.regions.push_back((region, length)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a region file of the store is unusable and is removed");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(())
    }
}

impl Region {
    /// Reads a record, header included, and checks it. The error is `InvalidData` when the bytes are
    /// not those that were written.
    pub(super) fn read(
        &self,
        offset: u64,
        length: u32,
        expected: RecordIdentity,
    ) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0u8; HEADER_BYTES + length as usize];
        self.file.read_exact_at(&mut buffer, offset)?;
        check(buffer, length, expected)
    }
}

/// Checks the record in `buffer`, which is a header and a payload of `length` bytes.
pub(super) fn check(
    buffer: Vec<u8>,
    length: u32,
    (kind, body, index): RecordIdentity,
) -> io::Result<Vec<u8>> {
    let damaged = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "a record's checksum does not match",
        )
    };
    let header = buffer
        .first_chunk::<HEADER_BYTES>()
        .and_then(Header::decode)
        .ok_or_else(damaged)?;
    let is_expected = header.kind == kind
        && header.body == body.0
        && header.index == index
        && header.length == length;
    if !is_expected || crc32fast::hash(&buffer[HEADER_BYTES..]) != header.payload_crc {
        return Err(damaged());
    }
    Ok(buffer)
}

pub(super) fn region_header(number: u64) -> [u8; REGION_HEADER_BYTES as usize] {
    let mut header = [0u8; REGION_HEADER_BYTES as usize];
    header[..8].copy_from_slice(REGION_MAGIC);
    header[8..].copy_from_slice(&number.to_le_bytes());
    header
}

/// The region files of a directory by number, oldest first. The largest number is left out, so that
/// there is always a next one.
fn region_files(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|n| n.strip_prefix("region-"))
            .and_then(|n| u64::from_str_radix(n, 16).ok())
            .filter(|n| *n < u64::MAX);
        if let Some(number) = number {
            files.push((number, entry.path()));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Opens a region file of an earlier run. Returns its length in bytes, too.
fn open_region(path: &Path, number: u64) -> io::Result<(Region, u64)> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let bytes = file.metadata()?.len();
    let mut head = [0u8; REGION_HEADER_BYTES as usize];
    file.read_exact_at(&mut head, 0)?;
    if head != region_header(number) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a region file",
        ));
    }
    let region = Region {
        number,
        file,
        path: path.to_owned(),
        records: Mutex::default(),
    };
    Ok((region, bytes))
}

/// Calls `each` with every complete record of a region file. Returns the region and where its
/// records end.
fn scan_region(
    path: &Path,
    number: u64,
    each: &mut impl FnMut(&Header, RecordLocation, Option<Vec<u8>>),
) -> io::Result<(Arc<Region>, u64)> {
    let (region, bytes) = open_region(path, number)?;
    let region = Arc::new(region);
    let mut window = ReadAhead {
        file: &region.file,
        start: 0,
        bytes: Vec::new(),
    };
    let mut offset = REGION_HEADER_BYTES;
    while let Some(header) = window.header_at(offset, bytes)? {
        // Only heads are read whole: a body whose head is damaged is lost, a damaged slice is
        // fetched again when it is read.
        let payload = match header.kind {
            RecordKind::Head => window.payload_at(offset, &header)?,
            RecordKind::Slice | RecordKind::Forget => None,
        };
        if header.kind != RecordKind::Head || payload.is_some() {
            region
                .records
                .lock()
                .push(RegionRecord::new(&header, offset));
            let location = RecordLocation {
                region: region.clone(),
                offset,
                length: header.length,
            };
            each(&header, location, payload);
        }
        offset += header.span();
    }
    Ok((region, offset))
}

/// Reads a file forward in large pieces, so that small records do not cost one system call each.
struct ReadAhead<'a> {
    file: &'a File,
    start: u64,
    bytes: Vec<u8>,
}

impl ReadAhead<'_> {
    const BYTES: usize = 128 * 1024;

    /// The header at an offset of a file of `size` bytes; `None` when there is no complete record.
    fn header_at(&mut self, offset: u64, size: u64) -> io::Result<Option<Header>> {
        let payload = offset + HEADER_BYTES as u64;
        if payload > size {
            return Ok(None);
        }
        let header = self
            .at(offset, HEADER_BYTES)?
            .first_chunk::<HEADER_BYTES>()
            .and_then(Header::decode);
        Ok(header.filter(|header| payload + u64::from(header.length) <= size))
    }

    /// The payload of the record at an offset; `None` when it is damaged.
    fn payload_at(&mut self, offset: u64, header: &Header) -> io::Result<Option<Vec<u8>>> {
        let payload = self.at(offset + HEADER_BYTES as u64, header.length as usize)?;
        let is_intact = crc32fast::hash(payload) == header.payload_crc;
        Ok(is_intact.then(|| payload.to_vec()))
    }

    fn at(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + length as u64 > end {
            self.bytes.resize(Self::BYTES.max(length), 0);
            self.start = offset;
            let mut filled = 0;
            while filled < length {
                match self
                    .file
                    .read_at(&mut self.bytes[filled..], offset + filled as u64)?
                {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    n => filled += n,
                }
            }
            self.bytes.truncate(filled);
        }
        let at = (offset - self.start) as usize;
        Ok(&self.bytes[at..at + length])
    }
}
