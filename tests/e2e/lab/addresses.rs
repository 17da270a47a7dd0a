//! Loopback addresses that no other test uses.

use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The range of this test process: 127.N.0.0/16. 127.0 and 127.1 are left to the demo and to others.
static RANGE: LazyLock<Range> = LazyLock::new(Range::take);

/// A range that one process has. The lock is a listener with a name in the kernel: it is exclusive in a
/// network namespace, as the addresses are, and ends with the process, however that ends.
struct Range {
    second_byte: u8,
    _lock: UnixListener,
}

impl Range {
    const FIRST: u8 = 16;
    const COUNT: u32 = 200;

    fn take() -> Self {
        let start = std::process::id() % Self::COUNT;
        let numbers = (0..Self::COUNT).map(|n| (start + n) % Self::COUNT);
        let mut ranges = numbers.filter_map(|n| Self::lock(Self::FIRST + n as u8));
        ranges.next().expect("fewer than 200 runs at once")
    }

    fn lock(second_byte: u8) -> Option<Self> {
        let name = format!("nearcast-e2e-127.{second_byte}");
        let address = SocketAddr::from_abstract_name(name).expect("a short name");
        let lock = UnixListener::bind_addr(&address).ok()?;
        Some(Self {
            second_byte,
            _lock: lock,
        })
    }
}

/// A /24 of 127.0.0.0/8 for one test: `block.host(10)` is its tenth address.
#[derive(Debug, Clone, Copy)]
pub struct Block(u8, u8);

impl Block {
    /// The next block. Two test processes that run at once have different ranges. A block in which a
    /// socket listens, such as that of a node of an interrupted run, is skipped.
    pub fn take() -> Self {
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            assert!(n < 256, "one process takes at most 256 blocks");
            let block = Self(RANGE.second_byte, n as u8);
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
fn a_block_in_which_a_socket_listens_is_skipped() {
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

#[test]
fn a_range_has_one_owner() {
    let second_byte = 240;
    let range = Range::lock(second_byte).expect("outside the ranges of runs");
    assert!(Range::lock(second_byte).is_none());
    drop(range);
    assert!(Range::lock(second_byte).is_some());
}
