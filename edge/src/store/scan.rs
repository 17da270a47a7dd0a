//! Finds the bodies that an earlier run left on disk.
//!
//! After a crash the files may hold anything, so every record is checked before it counts
//! ([`super::log`]). Of several records of one slice or one head the newest counts.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;

use bytes::Bytes;

use super::body::Pool;
use super::log::{PoolLog, RecordLocation};
use super::record::{Header, RecordKind};

/// A body that the scan found.
#[derive(Debug)]
pub(super) struct ScannedBody {
    pub(super) head: Bytes,
    pub(super) head_location: HeadLocation,
    pub(super) slices: HashMap<u32, RecordLocation>,
}

/// Where the newest head of a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeadLocation {
    pub(super) pool: Pool,
    /// Number of the region.
    pub(super) region: u64,
    /// Offset of the record's header.
    pub(super) offset: u64,
}

/// The newest records of each body, with their sequence numbers.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// `None` for a body that was forgotten.
    heads: HashMap<u64, (u64, Option<ScannedHead>)>,
    slices: HashMap<u64, HashMap<u32, (u64, RecordLocation)>>,
    newest_sequence: u64,
}

#[derive(Debug)]
struct ScannedHead {
    bytes: Vec<u8>,
    location: HeadLocation,
}

impl Scan {
    /// Reads all records of a pool.
    pub(super) fn add_pool(&mut self, pool: Pool, log: &mut PoolLog) -> io::Result<()> {
        log.scan(|header, location, payload| self.add(pool, header, location, payload))
    }

    fn add(
        &mut self,
        pool: Pool,
        header: &Header,
        location: RecordLocation,
        payload: Option<Vec<u8>>,
    ) {
        self.newest_sequence = self.newest_sequence.max(header.sequence);
        match header.kind {
            RecordKind::Slice => {
                let slices = self.slices.entry(header.body).or_default();
                insert_newer(slices, header.index, header.sequence, location);
            }
            RecordKind::Head | RecordKind::Forget => {
                let head = payload.map(|bytes| ScannedHead {
                    bytes,
                    location: HeadLocation {
                        pool,
                        region: location.region.number,
                        offset: location.offset,
                    },
                });
                insert_newer(&mut self.heads, header.body, header.sequence, head);
            }
        }
    }

    /// The largest sequence number of any record.
    pub(super) fn newest_sequence(&self) -> u64 {
        self.newest_sequence
    }

    /// The bodies that have a head, by number.
    pub(super) fn into_bodies(self) -> HashMap<u64, ScannedBody> {
        let mut slices = self.slices;
        let with_head = self
            .heads
            .into_iter()
            .filter_map(|(id, (_, head))| Some((id, head?)));
        with_head
            .map(|(id, head)| {
                let slices = slices
                    .remove(&id)
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(index, (_, location))| (index, location))
                    .collect();
                let body = ScannedBody {
                    head: head.bytes.into(),
                    head_location: head.location,
                    slices,
                };
                (id, body)
            })
            .collect()
    }
}

fn insert_newer<K: std::hash::Hash + Eq, V>(
    newest: &mut HashMap<K, (u64, V)>,
    key: K,
    sequence: u64,
    value: V,
) {
    match newest.entry(key) {
        Entry::Occupied(mut known) if known.get().0 < sequence => {
            known.insert((sequence, value));
        }
        Entry::Occupied(_) => {}
        Entry::Vacant(free) => {
            free.insert((sequence, value));
        }
    }
}
