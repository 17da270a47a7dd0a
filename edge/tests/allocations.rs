//! What a hit from memory takes from the allocator: nothing.
#![allow(unsafe_code)] // An allocator is unsafe to implement.

mod lab;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lab::{Origin, Plan, Reply, pattern};

/// The system's allocator, which counts what it is asked for.
struct Counting(AtomicU64);

#[global_allocator]
static ALLOCATOR: Counting = Counting(AtomicU64::new(0));

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, bytes: *mut u8, layout: Layout) {
        // SAFETY: the bytes came from the system's allocator, with this layout.
        unsafe { System.dealloc(bytes, layout) }
    }

    unsafe fn realloc(&self, bytes: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.0.fetch_add(1, Relaxed);
        // SAFETY: the bytes came from the system's allocator, with this layout.
        unsafe { System.realloc(bytes, layout, size) }
    }
}

const HITS: usize = 200;
const ROUNDS: usize = 30;

#[test]
fn a_hit_from_memory_allocates_nothing() {
    for length in [1 << 10, 16 << 10, 200 << 10] {
        let origin = Origin::start(move |_| {
            Reply::ok(pattern(length), "max-age=600").field("ETag", "\"a\"")
        });
        let edge = Plan::new(&origin).start();
        edge.get("/a");
        let mut stream = edge.connect();
        stream.set_nodelay(true).expect("an open socket");
        let mut response = vec![0; length + 2048];
        let mut exchange = || {
            stream
                .write_all(b"GET /a HTTP/1.1\r\nHost: www.test\r\nUser-Agent: test\r\n\r\n")
                .expect("sent");
            let mut received = 0;
            loop {
                received += stream.read(&mut response[received..]).expect("received");
                let end = response[..received]
                    .windows(4)
                    .position(|w| w == b"\r\n\r\n");
                if end.is_some_and(|end| received == end + 4 + length) {
                    let head = &response[..end.expect("just found")];
                    assert!(head.windows(11).any(|w| w == b"ams-1; hit;"), "a hit");
                    return;
                }
            }
        };
        for _ in 0..HITS {
            exchange();
        }
        // Other threads allocate now and then: most rounds see none of that.
        let least = (0..ROUNDS)
            .map(|_| {
                let before = ALLOCATOR.0.load(Relaxed);
                for _ in 0..HITS {
                    exchange();
                }
                ALLOCATOR.0.load(Relaxed) - before
            })
            .min();
        assert_eq!(
            least,
            Some(0),
            "allocations of {HITS} hits of {length} bytes"
        );
    }
}
