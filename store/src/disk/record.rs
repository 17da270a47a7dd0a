//! The format of records: a header of 64 bytes, a head, a slice, each with a checksum.
//!
//! The checksum of a header covers, beside its bytes, what is not written: the identity of the
//! store, the region's generation, and the record's own position. So a record is valid only where
//! this store wrote it, and only until its region is used anew: copied files, misdirected writes and
//! reads, and old content of a region are all no records.

use crate::body::{Pool, SliceKey};
use crate::directory::RECORD_BYTES_MAX;
use crate::groups::Group;
use crate::measures;
pub(crate) use crate::measures::record_span;

/// Length of a record's header in bytes.
pub(crate) const HEADER_BYTES: usize = measures::RECORD_HEADER_BYTES;
/// Records start at multiples of this many bytes.
pub(crate) const ALIGNMENT: usize = measures::RECORD_ALIGNMENT;
/// Largest head and slice of a record together.
pub(crate) const PAYLOAD_BYTES_MAX: usize = RECORD_BYTES_MAX as usize - HEADER_BYTES - ALIGNMENT;

/// "NCR" and the version of the format.
pub(super) const MAGIC: [u8; 4] = *b"NCR\x02";

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The head of a body and its slice 0.
    Object,
    /// The head of a body.
    Head,
    /// A slice of a body. Bytes of a head before it do not count.
    Slice,
    /// Nothing any more: what was here has been removed.
    Removed,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Object, Self::Head, Self::Slice, Self::Removed];

    /// Whether the record has a head that counts.
    pub(crate) fn has_head(self) -> bool {
        matches!(self, Self::Object | Self::Head)
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    /// The site of the body.
    pub(crate) group: Group,
    /// Number of the body.
    pub(crate) body: u64,
    /// Hash of the name; in a slice, what the policy knows it by.
    pub(crate) key: u128,
    /// Position in the order of all writes and removals. A record that is moved keeps it.
    pub(crate) sequence: u64,
    /// Index of the slice; in records with a head, the number of slices of the body so far.
    pub(crate) index: u32,
    pub(crate) head_length: u32,
    pub(crate) slice_length: u32,
    pub(crate) head_crc: u32,
    pub(crate) slice_crc: u32,
}

/// Where a record is, beyond what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) store: u64,
    pub(crate) pool: Pool,
    pub(crate) slot: u16,
    /// Which use of the region.
    pub(crate) generation: u64,
    /// From the start of the region.
    pub(crate) offset: u32,
}

impl Header {
    /// Bytes from the start of this record to the start of the next one.
    pub(crate) fn span(&self) -> u32 {
        record_span((self.head_length + self.slice_length) as usize) as u32
    }

    /// The header as it is on disk.
    pub(crate) fn encode(&self, at: &Position) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = self.kind as u8;
        out[6..8].copy_from_slice(&self.group.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.body.to_le_bytes());
        out[16..32].copy_from_slice(&self.key.to_le_bytes());
        out[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        for (value, place) in [
            (self.index, 40),
            (self.head_length, 44),
            (self.slice_length, 48),
            (self.head_crc, 52),
            (self.slice_crc, 56),
        ] {
            out[place..place + 4].copy_from_slice(&value.to_le_bytes());
        }
        let crc = checksum(&out, at);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header in `bytes`, or `None` where there is none of this position.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES], at: &Position) -> Option<Self> {
        if bytes[..4] != MAGIC || u32_at(bytes, 60) != checksum(bytes, at) {
            return None;
        }
        let header = Self {
            kind: *Kind::ALL.get(usize::from(bytes[4]))?,
            group: Group(u16::from_le_bytes([bytes[6], bytes[7]])),
            body: u64_at(bytes, 8),
            key: u128::from(u64_at(bytes, 16)) | u128::from(u64_at(bytes, 24)) << 64,
            sequence: u64_at(bytes, 32),
            index: u32_at(bytes, 40),
            head_length: u32_at(bytes, 44),
            slice_length: u32_at(bytes, 48),
            head_crc: u32_at(bytes, 52),
            slice_crc: u32_at(bytes, 56),
        };
        let length = u64::from(header.head_length) + u64::from(header.slice_length);
        (length <= PAYLOAD_BYTES_MAX as u64).then_some(header)
    }

    /// Whether the record has the slice of that key.
    pub(crate) fn has_slice(&self, key: SliceKey) -> bool {
        let index = match self.kind {
            Kind::Object => 0,
            Kind::Slice => self.index,
            Kind::Head | Kind::Removed => return false,
        };
        self.body == key.body.0 && index == key.index
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn checksum(header: &[u8; HEADER_BYTES], at: &Position) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..60]);
    let mut place = [0; 23];
    place[..8].copy_from_slice(&at.store.to_le_bytes());
    place[8] = at.pool as u8;
    place[9..11].copy_from_slice(&at.slot.to_le_bytes());
    place[11..19].copy_from_slice(&at.generation.to_le_bytes());
    place[19..].copy_from_slice(&at.offset.to_le_bytes());
    hasher.update(&place);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Position = Position {
        store: 5,
        pool: Pool::Pull,
        slot: 3,
        generation: 9,
        offset: 4096,
    };

    fn header(kind: Kind) -> Header {
        Header {
            kind,
            group: Group(7),
            body: u64::MAX - 1,
            key: u128::MAX / 3,
            sequence: 1 << 40,
            index: 2,
            head_length: 100,
            slice_length: 30,
            head_crc: 1,
            slice_crc: 2,
        }
    }

    #[test]
    fn headers_survive_the_round_trip_and_only_at_their_own_position() {
        for kind in Kind::ALL {
            let header = header(kind);
            let bytes = header.encode(&AT);
            assert_eq!(Header::decode(&bytes, &AT), Some(header));
            assert_eq!(header.span(), 200);
            for other in [
                Position { store: 6, ..AT },
                Position {
                    pool: Pool::Pushed,
                    ..AT
                },
                Position { slot: 4, ..AT },
                Position {
                    generation: 8,
                    ..AT
                },
                Position { offset: 4104, ..AT },
            ] {
                assert_eq!(Header::decode(&bytes, &other), None, "{other:?}");
            }
        }
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let whole = header(Kind::Object).encode(&AT);
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = whole;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&damaged, &AT), None, "bit {bit}");
        }
    }
}
