//! Loopback addresses that no other test has.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A /24 of 127.0.0.0/8 for one test: `block.host(10)` is its tenth address.
#[derive(Debug, Clone, Copy)]
pub struct Block(u8, u8);

impl Block {
    /// The next block. Blocks of two test processes that run at once differ by the process id;
    /// 127.0 and 127.1 are left to the demo and to others. One in which something listens, such as
    /// a node of a run that was cut off, is passed over.
    pub fn take() -> Self {
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            assert!(n < 256, "one process takes at most 256 blocks");
            let block = Self(16 + (std::process::id() % 200) as u8, n as u8);
            if !block.is_in_use() {
                return block;
            }
        }
    }

    /// Whether a socket of this machine has an address of the block, by the kernel's own tables.
    fn is_in_use(self) -> bool {
        // As a number in the machine's order: the last byte of the address comes first.
        let rest = format!("{:02X}{:02X}7F", self.1, self.0);
        ["/proc/net/tcp", "/proc/net/udp"].iter().any(|table| {
            let text = std::fs::read_to_string(table).expect("/proc is mounted");
            // Local address, and state: connections that wait for their last packets hold nothing.
            let mut sockets = text.lines().skip(1).map(|line| line.split_whitespace().skip(1).step_by(2).take(2).collect::<Vec<_>>());
            sockets.any(|fields| matches!(fields[..], [local, "0A" | "07"] if local.get(2..8) == Some(rest.as_str())))
        })
    }

    /// An address of the block.
    pub fn host(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.0, self.1, last)
    }
}

#[test]
fn a_block_in_which_something_listens_is_passed_over() {
    let block = Block::take();
    assert!(!block.is_in_use());
    let listener = std::net::TcpListener::bind((block.host(9), 0)).expect("the block is free");
    assert!(block.is_in_use());
    drop(listener);
    let socket = std::net::UdpSocket::bind((block.host(9), 0)).expect("the block is free");
    assert!(block.is_in_use());
    drop(socket);
    assert!(!block.is_in_use());
}
