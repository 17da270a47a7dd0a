//! The format of the records in region files: a fixed header and a payload, each with a checksum.
//!
//! Owns the bytes of one record. Knows nothing of files or pools, nor of the meaning of a payload.

use nearcast_fleet::disk;
pub(super) use nearcast_fleet::disk::record_span;

/// Length of a record's header in bytes.
pub(super) const HEADER_BYTES: usize = disk::RECORD_HEADER_BYTES;
/// Records start at multiples of this many bytes.
pub(super) const ALIGNMENT: usize = disk::RECORD_ALIGNMENT;
/// Largest payload of a record: a slice, or a head with very many fields.
pub(super) const PAYLOAD_BYTES_MAX: usize = 1 << 20;

const MAGIC: u32 = 0x314c_434e; // "NCL1" in little-endian order

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordKind {
    /// The head of a body, an opaque description. A later one replaces it.
    Head,
    /// One slice of a body.
    Slice,
    /// The body was forgotten: its earlier records do not count.
    Forget,
}

impl RecordKind {
    fn to_byte(self) -> u8 {
        match self {
            Self::Head => 1,
            Self::Slice => 2,
            Self::Forget => 3,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Head),
            2 => Some(Self::Slice),
            3 => Some(Self::Forget),
            _ => None,
        }
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: RecordKind,
    pub(super) body: u64,
    /// Slice index; 0 for the other kinds.
    pub(super) index: u32,
    /// Payload length in bytes.
    pub(super) length: u32,
    /// Position in the order of all writes of the store.
    pub(super) sequence: u64,
    /// CRC-32 of the payload.
    pub(super) payload_crc: u32,
}

impl Header {
    /// The header of a payload.
    pub(super) fn for_payload(
        kind: RecordKind,
        body: u64,
        index: u32,
        sequence: u64,
        payload: &[u8],
    ) -> Self {
        Self {
            kind,
            body,
            index,
            length: payload.len() as u32,
            sequence,
            payload_crc: crc32fast::hash(payload),
        }
    }

    /// The header as it is on disk.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4] = self.kind.to_byte();
        out[8..16].copy_from_slice(&self.body.to_le_bytes());
        out[16..20].copy_from_slice(&self.index.to_le_bytes());
        out[20..24].copy_from_slice(&self.length.to_le_bytes());
        out[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        out[32..36].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..36]);
        out[36..40].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header in `bytes`, or `None` when it is torn or damaged.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != MAGIC || u32_at(36) != crc32fast::hash(&bytes[..36]) {
            return None;
        }
        let kind = RecordKind::from_byte(bytes[4])?;
        let length = u32_at(20);
        if length as usize > PAYLOAD_BYTES_MAX {
            return None;
        }
        Some(Self {
            kind,
            body: u64_at(8),
            index: u32_at(16),
            length,
            sequence: u64_at(24),
            payload_crc: u32_at(32),
        })
    }

    /// Bytes from the start of this record to the start of the next one.
    pub(super) fn span(&self) -> u64 {
        record_span(self.length as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_round_trip() {
        for (kind, body, index, payload) in [
            (RecordKind::Head, 1u64, 0u32, &b"head"[..]),
            (RecordKind::Slice, u64::MAX, u32::MAX, &[7u8; 300][..]),
            (RecordKind::Forget, 0, 0, &b""[..]),
        ] {
            let header = Header::for_payload(kind, body, index, 9, payload);
            assert_eq!(Header::decode(&header.encode()), Some(header));
            assert_eq!(header.span() % ALIGNMENT as u64, 0);
        }
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let whole = Header::for_payload(RecordKind::Slice, 77, 3, 12, b"payload").encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = whole;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&damaged), None, "bit {bit}");
        }
    }
}
