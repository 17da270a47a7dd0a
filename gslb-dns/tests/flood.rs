//! A flood from one network gets small answers that ask for TCP or a cookie; who shows a cookie is
//! served. And: the common answer takes no memory.
#![allow(unsafe_code, reason = "a counting allocator can only be written so")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use nearcast_gslb_dns::cookie::{CookieKey, CookieSecrets};
use nearcast_gslb_dns::handler::{Handler, Worker};
use nearcast_gslb_dns::limit::ANSWERS_PER_SECOND_MAX;
use nearcast_gslb_dns::metrics::Transport;
use nearcast_gslb_dns::steer::{Revision, Steering};
use nearcast_gslb_dns::zone::Zones;
use support::{demo_zone, fleet, query, query_with, rcode, site};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator; counting touches only a thread-local
// integer.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|a| a.set(a.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Bench {
    handler: Handler,
    worker: Worker,
    out: Vec<u8>,
    _runtime: tokio::runtime::Runtime,
    _trigger: nearcast_net::shutdown::ShutdownTrigger,
}

impl Bench {
    fn new() -> Self {
        let fleet = fleet(
            vec![],
            vec![site("www", &["www.demo.test"])],
            vec![demo_zone()],
        );
        let zones = Zones::compile(&fleet, "ns1", 1).expect("it compiles");
        Self::with(Revision {
            fleet: Arc::new(fleet),
            zones: Arc::new(zones),
        })
    }

    fn with(served: Revision) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (trigger, shutdown) = nearcast_net::shutdown::channel();
        let (_tx, rx) = tokio::sync::watch::channel(served);
        let steering = {
            let _inside = runtime.enter();
            Steering::start(rx, &prometheus::Registry::new(), shutdown)
        };
        let secrets = CookieSecrets::new(CookieKey::of_bytes([9; 32]), None, 0);
        let handler = Handler {
            steering,
            server_id: "ns1".to_owned(),
            cookies: ArcSwap::from_pointee(secrets),
        };
        let worker = Worker::new(Transport::Udp, 5, 1_800_000_000);
        Self {
            handler,
            worker,
            out: Vec::with_capacity(4096),
            _runtime: runtime,
            _trigger: trigger,
        }
    }

    fn ask(&mut self, message: &[u8], client: &str) -> Vec<u8> {
        let client: IpAddr = client.parse().expect("an address");
        self.out.clear();
        assert!(self.answer(message, client));
        self.out.clone()
    }

    fn answer(&mut self, message: &[u8], client: IpAddr) -> bool {
        let snapshot = self.handler.steering.snapshot();
        self.handler
            .answer(&snapshot, &mut self.worker, message, client, &mut self.out)
    }
}

#[test]
fn a_flood_is_sent_to_tcp_and_a_cookie_opens_the_door() {
    let mut bench = Bench::new();
    let plain = query(1, "mail.demo.test", 1);
    let fresh = query_with(1, "mail.demo.test", 1, 0, &[(10, vec![1; 8])]);
    let cookie = bench.ask(&fresh, "192.0.2.1");
    let at = cookie
        .windows(4)
        .position(|w| w == [0, 10, 0, 24])
        .expect("a cookie")
        + 4;
    let valid = query_with(
        1,
        "mail.demo.test",
        1,
        0,
        &[(10, cookie[at..at + 24].to_vec())],
    );
    for _ in 0..ANSWERS_PER_SECOND_MAX {
        bench.ask(&plain, "192.0.2.1");
    }
    let cut = bench.ask(&plain, "192.0.2.1");
    assert_eq!(
        (rcode(&cut), cut[2] & 2, cut.len()),
        (0, 2, plain.len()),
        "TC and no records"
    );
    let bad = bench.ask(&fresh, "192.0.2.1");
    let extended = bad
        .windows(5)
        .position(|w| w[..3] == [0, 0, 41])
        .map(|at| bad[at + 5]);
    assert_eq!((rcode(&bad), extended), (7, Some(1)), "BADCOOKIE is 23");
    let served = bench.ask(&valid, "192.0.2.1");
    assert_eq!(
        (rcode(&served), served[2] & 2, served[7]),
        (0, 0, 1),
        "a valid cookie is answered"
    );
    assert_eq!(bench.ask(&plain, "192.0.3.1")[7], 1, "and so are others");
}

#[test]
fn before_there_are_zones_it_says_that_it_is_not_ready() {
    let fleet = Arc::new(fleet(vec![], vec![], vec![]));
    let mut bench = Bench::with(Revision {
        fleet,
        zones: Arc::default(),
    });
    let answer = bench.ask(&query_with(1, "www.cdn.test", 1, 0, &[]), "127.0.0.1");
    assert_eq!(rcode(&answer), 2, "SERVFAIL");
    bench.worker = Worker::new(Transport::Tcp, 5, 1_800_000_000);
    let told = bench.answer(
        &query_with(1, "www.cdn.test", 1, 0, &[]),
        IpAddr::from([127, 0, 0, 1]),
    );
    assert!(
        told && bench.out.ends_with(&[0, 15, 0, 2, 0, 14]),
        "not ready (RFC 8914): {:?}",
        bench.out
    );
}

#[test]
fn common_answers_take_no_memory() {
    let mut bench = Bench::new();
    let subnet = vec![(8, vec![0, 1, 24, 0, 203, 0, 113])];
    let rows = [
        ("steered", query_with(1, "www.cdn.test", 1, 0, &subnet)),
        ("steered for a resolver", query(1, "www.cdn.test", 1)),
        ("an alias", query_with(1, "www.demo.test", 1, 0, &subnet)),
        ("an alias followed", query(1, "www.demo.test", 1)),
        ("a record", query(1, "demo.test", 15)),
        ("no data", query(1, "mail.demo.test", 28)),
        ("a missing name", query(1, "nowhere.demo.test", 1)),
        ("a referral", query(1, "www.sub.demo.test", 1)),
        ("a refusal", query(1, "example.com", 1)),
        (
            "a cookie",
            query_with(1, "www.cdn.test", 1, 0, &[(10, vec![1; 8])]),
        ),
    ];
    let client: IpAddr = "198.51.100.7".parse().expect("an address");
    for (what, message) in rows {
        // What is made once, such as thread-local state, is made before the count.
        bench.ask(&message, "198.51.100.7");
        let before = ALLOCATIONS.with(Cell::get);
        for _ in 0..10 {
            bench.out.clear();
            bench.answer(&message, client);
        }
        assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "{what}");
    }
}
