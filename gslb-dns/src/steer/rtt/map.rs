//! The compiled copy of the measurements, which the query path reads.

use std::net::IpAddr;

/// A prefix as a number: /24 and /48, and the aggregates over them.
pub(super) fn key(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(ip) => 1 << 60 | u64::from(u32::from(ip) >> 8),
        IpAddr::V6(ip) => 2 << 60 | (u128::from(ip) >> 80) as u64,
    }
}

/// The /20 over a /24, the /40 over a /48.
pub(super) fn aggregate(key: u64) -> u64 {
    let (family, bits) = (key >> 60, key & ((1 << 60) - 1));
    if family == 1 {
        3 << 60 | bits >> 4
    } else {
        4 << 60 | bits >> 8
    }
}

/// The compiled copy: an open-addressed table of rows. Immutable.
///
/// A look-up is one multiplication and, at half load, one or two neighbouring slots; all rows are
/// in one array. A map of vectors would cost each query a keyed hash and a second allocation's
/// cache line.
#[derive(Debug, Default)]
pub(in crate::steer) struct RttMap {
    /// Key and row; a key of 0 is an empty slot. A power of two long, or empty.
    slots: Vec<(u64, u32)>,
    rows: Vec<u32>,
    width: usize,
    /// Prefixes with a measurement, without aggregates.
    pub(in crate::steer) prefixes: usize,
    /// When the first measurement in it becomes too old, milliseconds after the Unix epoch.
    pub(in crate::steer) next_expiry_ms: u64,
}

impl RttMap {
    pub(super) fn with_capacity(count: usize, width: usize) -> Self {
        let slots = if count == 0 {
            Vec::new()
        } else {
            vec![(0, 0); (count * 2).next_power_of_two()]
        };
        Self {
            slots,
            rows: Vec::with_capacity(count * width),
            width,
            prefixes: 0,
            next_expiry_ms: u64::MAX,
        }
    }

    fn first_slot(&self, key: u64) -> usize {
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (self.slots.len() - 1)
    }

    pub(super) fn insert(&mut self, key: u64, row: impl Iterator<Item = u32>) {
        let mut slot = self.first_slot(key);
        while self.slots[slot].0 != 0 {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = (key, (self.rows.len() / self.width.max(1)) as u32);
        self.rows.extend(row);
    }

    fn row(&self, key: u64) -> Option<&[u32]> {
        if self.slots.is_empty() {
            return None;
        }
        let mut slot = self.first_slot(key);
        // At most half of the slots are taken, so an empty one ends the loop.
        while self.slots[slot].0 != 0 {
            if self.slots[slot].0 == key {
                let start = self.slots[slot].1 as usize * self.width;
                return self.rows.get(start..start + self.width);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        None
    }

    /// Microseconds by cluster ([`UNMEASURED`](crate::steer::select::UNMEASURED) where there is none) for an address, from its prefix
    /// or the aggregate over it.
    pub(in crate::steer) fn find(&self, address: IpAddr) -> Option<&[u32]> {
        let key = key(address);
        self.row(key).or_else(|| self.row(aggregate(key)))
    }
}
