//! Loopback addresses that no other test has.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A /24 of 127.0.0.0/8 for one test: `block.host(10)` is its tenth address.
#[derive(Debug, Clone, Copy)]
pub struct Block(u8, u8);

impl Block {
    /// The next block. Blocks of two test processes that run at once differ by the process id; 127.0 and 127.1 are left
    /// to the demo and to others.
    pub fn take() -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(n < 256, "one process takes at most 256 blocks");
        Self(16 + (std::process::id() % 200) as u8, n as u8)
    }

    /// An address of the block.
    pub fn host(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.0, self.1, last)
    }
}
