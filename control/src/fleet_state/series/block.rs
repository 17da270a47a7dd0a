//! Blocks: consecutive cells of one key as bytes.

use crate::fleet_state::series::counts::VALUES;
use crate::fleet_state::series::resolution::COARSE;
use crate::fleet_state::series::ring::Key;

/// The cells that a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Seconds, to be added to the coarser cells too.
    Seconds,
    /// Seconds that the coarser cells already contain.
    SecondsAlone,
    Minutes,
    Quarters,
}

impl Kind {
    fn parse(byte: u8) -> Option<Self> {
        [
            Self::Seconds,
            Self::SecondsAlone,
            Self::Minutes,
            Self::Quarters,
        ]
        .get(usize::from(byte))
        .copied()
    }

    /// Its position in [`COARSE`]; `None` for seconds.
    pub(super) fn coarse(self) -> Option<usize> {
        match self {
            Self::Seconds | Self::SecondsAlone => None,
            Self::Minutes => Some(0),
            Self::Quarters => Some(1),
        }
    }

    /// Seconds in a cell.
    pub(super) fn step(self) -> u64 {
        self.coarse().map_or(1, |index| COARSE[index].0)
    }
}

/// Encodes a block: kind, key, number of the first cell, number of cells, cells. A cell is the number
/// of its known seconds (when that is 0, nothing follows), a mask of the values that are not zero, and
/// those values.
pub(super) fn encode(
    key: &Key,
    kind: Kind,
    first: u64,
    cells: impl Iterator<Item = (u16, [f64; VALUES])>,
) -> Vec<u8> {
    let (key_kind, name) = match key {
        Key::Total => (0, ""),
        Key::Cluster(name) => (1, name.as_str()),
        Key::Site(name) => (2, name.as_str()),
        Key::Node(_) => (u8::MAX, ""),
    };
    let mut bytes = vec![kind as u8, key_kind];
    bytes.extend((name.len() as u16).to_le_bytes());
    bytes.extend(name.as_bytes());
    bytes.extend(first.to_le_bytes());
    let at = bytes.len();
    bytes.extend(0u32.to_le_bytes());
    let mut count = 0u32;
    for (seconds, values) in cells {
        count += 1;
        bytes.extend(seconds.to_le_bytes());
        if seconds > 0 {
            let mask = values
                .iter()
                .enumerate()
                .fold(0u32, |mask, (n, v)| mask | u32::from(*v != 0.0) << n);
            bytes.extend(mask.to_le_bytes());
            bytes.extend(
                values
                    .iter()
                    .filter(|v| **v != 0.0)
                    .flat_map(|v| (*v as f32).to_le_bytes()),
            );
        }
    }
    bytes[at..at + 4].copy_from_slice(&count.to_le_bytes());
    bytes
}

/// The head of a block.
pub(super) struct BlockHead {
    pub(super) kind: Kind,
    pub(super) key: Key,
    /// Number of the first cell.
    pub(super) first: u64,
    /// Number of cells.
    pub(super) count: u32,
}

impl BlockHead {
    /// Decodes the head of a block and takes it off the front.
    pub(super) fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let kind = Kind::parse(take::<1>(bytes)?[0])?;
        let key_kind = take::<1>(bytes)?[0];
        let name_bytes = usize::from(u16::from_le_bytes(take(bytes)?));
        let (name, rest) = bytes.split_at_checked(name_bytes)?;
        *bytes = rest;
        let name = String::from_utf8(name.to_vec()).ok()?;
        let key = match key_kind {
            0 => Key::Total,
            1 => Key::Cluster(name),
            2 => Key::Site(name),
            _ => return None,
        };
        Some(Self {
            kind,
            key,
            first: u64::from_le_bytes(take(bytes)?),
            count: u32::from_le_bytes(take(bytes)?),
        })
    }
}

/// Decodes a cell and takes it off the front: its known seconds and its values.
pub(super) fn decode_cell(bytes: &mut &[u8]) -> Option<(u16, [f64; VALUES])> {
    let seconds = u16::from_le_bytes(take(bytes)?);
    let mut values = [0.0; VALUES];
    if seconds == 0 {
        return Some((seconds, values));
    }
    let mask = u32::from_le_bytes(take(bytes)?);
    for index in (0..32).filter(|index| mask >> index & 1 == 1) {
        let value = f64::from(f32::from_le_bytes(take(bytes)?));
        // A newer version may count more.
        if let Some(slot) = values.get_mut(index) {
            *slot = if value.is_finite() {
                value.max(0.0)
            } else {
                0.0
            };
        }
    }
    Some((seconds, values))
}

/// Takes the first bytes off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}
