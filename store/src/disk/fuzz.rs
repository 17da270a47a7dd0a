//! For fuzz targets and tests: files of a store whose identity is known, with any bytes as its first
//! region.

use std::path::Path;

use super::pool::{encode_first_entry, table_offset};
use super::record::{HEADER_BYTES, Header, Kind, PAYLOAD_BYTES_MAX, Position};
use super::shared::hash_name;
use super::superblock::Superblock;
use crate::body::Pool;
use crate::groups::Group;
use crate::io::{Files, RealFiles};

const STORE: u64 = 1;
const SEED: u64 = 1;
const GENERATION: u64 = 1;
/// Length of the region, and of the 16 regions of the pool.
const REGION_BYTES: u64 = 1 << 20;

/// Under which the bodies of [`record`] lie.
pub(crate) const NAME: &str = "name";

/// A record at an offset of the region with good checksums, padded to where the next one begins.
/// `None` when there is no such kind. The payload is split evenly where the kind has both parts.
pub(crate) fn record(
    kind: u8,
    body: u64,
    index: u32,
    sequence: u64,
    payload: &[u8],
    offset: usize,
) -> Option<Vec<u8>> {
    let kind = [Kind::Object, Kind::Head, Kind::Slice, Kind::Removed]
        .into_iter()
        .nth(usize::from(kind))?;
    let payload = &payload[..payload.len().min(PAYLOAD_BYTES_MAX)];
    let head = match kind {
        Kind::Object => payload.len() / 2,
        Kind::Head => payload.len(),
        Kind::Slice | Kind::Removed => 0,
    };
    let (head, slice) = payload.split_at(head);
    let header = Header {
        kind,
        group: Group::OTHER,
        body,
        key: if kind.has_head() {
            hash_name(SEED, NAME)
        } else {
            0
        },
        sequence,
        index,
        head_length: head.len() as u32,
        slice_length: slice.len() as u32,
        head_crc: crc32fast::hash(head),
        slice_crc: crc32fast::hash(slice),
    };
    let position = Position {
        store: STORE,
        pool: Pool::Pull,
        slot: 0,
        generation: GENERATION,
        offset: offset as u32,
    };
    let mut bytes = header.encode(&position).to_vec();
    bytes.extend_from_slice(payload);
    bytes.resize(header.span() as usize, 0);
    debug_assert!(bytes.len() >= HEADER_BYTES);
    Some(bytes)
}

/// Makes the files of a store in a directory, whose first region has these bytes.
pub(crate) fn make_files(directory: &Path, region: &[u8]) -> std::io::Result<()> {
    let files = RealFiles::new(directory.to_owned());
    files.lock()?;
    let mut superblock = Superblock {
        store: STORE,
        seed: SEED,
        region_bytes: [REGION_BYTES, 0],
        regions: [16, 0],
        ..Superblock::default()
    };
    superblock.write(&*files.create("superblock")?)?;
    let entry = encode_first_entry(GENERATION, STORE, Pool::Pull);
    files
        .create("regions")?
        .write_at(&entry, table_offset(Pool::Pull, 0))?;
    let region = &region[..region.len().min(REGION_BYTES as usize)];
    files.create("pull.data")?.write_at(region, 0)
}
