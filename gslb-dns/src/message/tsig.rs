//! TSIG records (RFC 8945), only as much as an unsigned error response needs: this server knows no
//! keys and verifies nothing.

use super::name::{QName, expand_name, is_name, name_bytes};

/// The position of a TSIG record in its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TsigAt {
    pub(super) start: u16,
    pub(super) data: u16,
    pub(super) end: u16,
}

/// The parts of a query's TSIG record that the response repeats (RFC 8945 section 4.2).
#[derive(Debug, Clone)]
pub struct Tsig<'m> {
    /// The key's name.
    pub(super) key: QName,
    /// The algorithm's name, then time signed and fudge.
    pub(super) fixed: &'m [u8],
}

impl<'m> Tsig<'m> {
    /// Reads the record at a position of its message; `None` when it is malformed.
    pub fn read(message: &'m [u8], at: TsigAt) -> Option<Self> {
        let key = expand_name(message, usize::from(at.start))?;
        let data = message.get(usize::from(at.data)..usize::from(at.end))?;
        let algorithm = name_bytes(data);
        if !is_name(&data[..algorithm]) {
            return None;
        }
        // Time signed (6), fudge, MAC size; MAC; original ID, error, other length; other data.
        let mac = data.get(algorithm + 8..algorithm + 10)?;
        let after_mac = algorithm + 10 + usize::from(u16::from_be_bytes([mac[0], mac[1]]));
        let other = data.get(after_mac + 4..after_mac + 6)?;
        let end = after_mac + 6 + usize::from(u16::from_be_bytes([other[0], other[1]]));
        (end == data.len()).then_some(Self {
            key,
            fixed: &data[..algorithm + 8],
        })
    }

    /// Length of the record in the response.
    pub fn answer_len(&self) -> usize {
        self.key.as_bytes().len() + 10 + self.fixed.len() + 8
    }
}
