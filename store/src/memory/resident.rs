//! What of one body is in memory. It belongs to the body, so that a hit finds it without a table.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use bytes::Bytes;

/// No entry of the tier.
pub(crate) const NO_ENTRY: u32 = u32::MAX;

/// The slices of one body in memory, and their entries in the tier.
#[derive(Debug)]
pub(crate) struct Resident {
    /// The entry of the head, or [`NO_ENTRY`]. While there is none there is no slice either.
    pub(super) head: u32,
    /// Bytes that are charged for the head.
    pub(super) head_charge: u32,
    /// What the policy was told of the size of the head entry.
    pub(super) head_weight: u32,
    /// The only slice of a body of one slice. It belongs to the entry of the head.
    pub(super) whole: Option<Bytes>,
    /// The slices of longer bodies.
    pub(super) parts: Option<Box<Parts>>,
}

pub(super) type Parts = HashMap<u32, Part, BuildHasherDefault<KeyHasher>>;

/// A slice with an entry of its own.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) bytes: Bytes,
    pub(super) entry: u32,
    pub(super) charge: u32,
    /// Uses since the policy last asked.
    pub(super) uses: u8,
}

impl Default for Resident {
    fn default() -> Self {
        Self {
            head: NO_ENTRY,
            head_charge: 0,
            head_weight: 0,
            whole: None,
            parts: None,
        }
    }
}

impl Resident {
    /// A slice, which counts as used.
    pub(super) fn get(&mut self, index: u32) -> Option<Bytes> {
        if index == 0 && self.whole.is_some() {
            return self.whole.clone();
        }
        let part = self.parts.as_mut()?.get_mut(&index)?;
        part.uses = part.uses.saturating_add(1);
        Some(part.bytes.clone())
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        (index == 0 && self.whole.is_some())
            || self
                .parts
                .as_ref()
                .is_some_and(|parts| parts.contains_key(&index))
    }

    /// The bytes of the slice that belongs to an entry.
    pub(super) fn bytes_of(&mut self, entry: u32, index: u32) -> Option<&mut Bytes> {
        if entry == self.head {
            return self.whole.as_mut();
        }
        let part = self.parts.as_mut()?.get_mut(&index)?;
        (part.entry == entry).then_some(&mut part.bytes)
    }
}

/// Hashes numbers that this process gave, without a seed: no client chooses them.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        let mixed = self.0 ^ (self.0 >> 32);
        let mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }
}
