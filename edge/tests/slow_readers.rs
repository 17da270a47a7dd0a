//! Readers that are slower than others, or than the origin: eviction ends none of them, they slow
//! nobody, and the origin sends a bounded number of bytes for them.

mod lab;

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lab::{Answer, Edge, Origin, Plan, Reply, Seen, pattern, read_answer, wait_for};

const BODY: usize = 15_000_000;
const OTHERS: usize = 40;
const OTHER: usize = 1 << 20;

/// What names a representation.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Validator {
    Strong,
    Date,
    Weak,
    None,
}

fn validated(reply: Reply, validator: Validator) -> Reply {
    match validator {
        Validator::Strong => reply.field("ETag", "\"v\""),
        Validator::Date => reply.field("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT"),
        Validator::Weak => reply.field("ETag", "W/\"v\""),
        Validator::None => reply,
    }
}

fn origin_of(body: Vec<u8>, validator: Validator, chunked: bool) -> Origin {
    Origin::start(move |seen| match seen.target.starts_with("/other") {
        true => Reply::ok(pattern(OTHER), "max-age=600"),
        false => answer(&body, validator, chunked, seen),
    })
}

fn answer(body: &[u8], validator: Validator, chunked: bool, seen: &Seen) -> Reply {
    let reply = Reply {
        chunked,
        ..Reply::ok(body, "max-age=600").field("Content-Type", "text/plain")
    };
    let reply = validated(reply, validator);
    match validator {
        Validator::Strong | Validator::Date => reply.ranged(seen),
        Validator::Weak | Validator::None => reply,
    }
}

fn edge_of(origin: &Origin, disk: u64, directory: &tempfile::TempDir) -> Edge {
    Plan {
        memory: 32 << 20,
        disk,
        state_dir: directory.path().to_path_buf(),
        ..Plan::new(origin)
    }
    .start()
}

/// A client that has read some of its answer and then stalls.
struct Stalled {
    stream: TcpStream,
    read: Vec<u8>,
}

/// Asks for a path on a connection whose buffers are small, and reads the first bytes of the answer.
fn stall(edge: &Edge, path: &str, fields: &str) -> Stalled {
    let socket =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(64 << 10).expect("set");
    socket
        .connect(&edge.address.into())
        .expect("the edge listens");
    let mut stream = TcpStream::from(socket);
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut read = vec![0; 20_000];
    stream.read_exact(&mut read).expect("it has begun");
    Stalled { stream, read }
}

impl Stalled {
    fn go_on(self) -> Answer {
        let read = std::io::Cursor::new(self.read).chain(self.stream);
        read_answer(&mut BufReader::new(read), false).expect("an answer")
    }
}

/// Many other responses pass through the memory tier.
fn crawl(edge: &Edge, name: &str) {
    for number in 0..OTHERS {
        let answer = edge.get(&format!("/other-{name}-{number}"));
        assert!(answer.whole && answer.body.len() == OTHER);
    }
}

/// Bytes of bodies that the origin has sent for `/big`, when `crawls` crawls have passed.
fn origin_bodies(edge: &Edge, crawls: usize) -> f64 {
    let all = edge.metric("nearcast_edge_origin_bytes_total");
    (all - (crawls * OTHERS * OTHER) as f64) / BODY as f64
}

/// One reader stalls, another does not, and much else passes through the memory.
fn stall_beside_a_fast_one(cases: &[(Validator, bool)], disk: u64, bodies_max: f64) {
    let body = pattern(BODY);
    for (validator, chunked) in cases {
        let case = format!("{validator:?}, chunked {chunked}, disk {disk}");
        let origin = origin_of(body.clone(), *validator, *chunked);
        let directory = tempfile::tempdir().expect("a directory");
        let edge = edge_of(&origin, disk, &directory);
        let slow = stall(&edge, "/big", "");
        let fast = edge.get("/big");
        assert!(fast.whole && fast.body == body, "{case}: the fast one");
        crawl(&edge, "a");
        let slow = slow.go_on();
        assert!(
            slow.whole && slow.body == body,
            "{case}: {} bytes of the slow one",
            slow.body.len()
        );
        let bodies = origin_bodies(&edge, 1);
        assert!(
            bodies <= bodies_max,
            "{case}: the origin sent {bodies} bodies"
        );
    }
}

#[test]
fn without_a_disk_a_stalled_reader_gets_everything_slows_nobody_and_costs_two_bodies() {
    let cases = [
        (Validator::Strong, false),
        (Validator::Strong, true),
        (Validator::Date, false),
        (Validator::Weak, true),
        (Validator::None, false),
        (Validator::None, true),
    ];
    stall_beside_a_fast_one(&cases, 0, 2.1);
}

#[test]
fn with_a_disk_a_stalled_reader_gets_everything_slows_nobody_and_costs_one_body() {
    let cases = [
        (Validator::Strong, false),
        (Validator::Weak, true),
        (Validator::None, false),
    ];
    stall_beside_a_fast_one(&cases, 256 << 20, 1.1);
}

#[test]
fn a_lone_slow_reader_costs_one_body() {
    let body = pattern(BODY);
    for validator in [Validator::Strong, Validator::None] {
        for chunked in [false, true] {
            let case = format!("{validator:?}, chunked {chunked}");
            let origin = origin_of(body.clone(), validator, chunked);
            let directory = tempfile::tempdir().expect("a directory");
            let edge = edge_of(&origin, 0, &directory);
            let slow = stall(&edge, "/big", "");
            crawl(&edge, "a");
            let slow = slow.go_on();
            assert!(slow.whole && slow.body == body, "{case}");
            let bodies = origin_bodies(&edge, 1);
            assert!(bodies <= 1.05, "{case}: the origin sent {bodies} bodies");
        }
    }
}

#[test]
fn slow_readers_of_ranges_get_everything() {
    let body = pattern(BODY);
    for validator in [Validator::Strong, Validator::None] {
        let origin = origin_of(body.clone(), validator, false);
        let directory = tempfile::tempdir().expect("a directory");
        let edge = edge_of(&origin, 0, &directory);
        assert!(edge.get("/big").body == body);
        let one = stall(&edge, "/big", "Range: bytes=100-\r\n");
        let several = stall(&edge, "/big", "Range: bytes=0-3000000,4000000-14000000\r\n");
        crawl(&edge, "a");
        let one = one.go_on();
        assert!(
            one.whole && one.status == 206 && one.body == body[100..],
            "{validator:?}: {} {:?} {} bytes",
            one.status,
            one.fields,
            one.body.len()
        );
        crawl(&edge, "b");
        let several = several.go_on();
        assert!(
            several.whole && several.status == 206 && several.body.len() > 13_000_000,
            "{validator:?}: {} bytes",
            several.body.len()
        );
    }
}

/// Text that compresses to about three quarters.
fn text(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    (0..bytes)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            b'0' + (state >> 58) as u8
        })
        .collect()
}

#[test]
fn a_stalled_reader_of_a_coded_form_gets_the_same_bytes_as_others() {
    let body = text(BODY);
    for coding in ["gzip", "br", "zstd"] {
        for validator in [Validator::Strong, Validator::None] {
            let case = format!("{coding}, {validator:?}");
            let origin = origin_of(body.clone(), validator, false);
            let directory = tempfile::tempdir().expect("a directory");
            let edge = edge_of(&origin, 0, &directory);
            let field = format!("Accept-Encoding: {coding}\r\n");
            let slow = stall(&edge, "/big", &field);
            let fast = edge.ask("GET", "/big", &[("Accept-Encoding", coding)]);
            assert_eq!(fast.field("content-encoding"), coding);
            assert!(fast.whole && fast.body.len() > 8_000_000, "{case}");
            crawl(&edge, "a");
            let slow = slow.go_on();
            assert!(
                slow.whole && slow.body == fast.body,
                "{case}: {} of {} bytes",
                slow.body.len(),
                fast.body.len()
            );
            let bodies = origin_bodies(&edge, 1);
            assert!(bodies <= 2.1, "{case}: the origin sent {bodies} bodies");
        }
    }
}

#[test]
fn a_reader_of_what_has_changed_is_cut_and_gets_no_byte_of_the_new() {
    let (old, new) = (pattern(BODY), vec![b'n'; BODY]);
    for validator in [Validator::Strong, Validator::None] {
        let has_changed = Arc::new(AtomicBool::new(false));
        let (asked, sent, other) = (has_changed.clone(), old.clone(), new.clone());
        let origin = Origin::start(move |seen| {
            if seen.target.starts_with("/other") {
                return Reply::ok(pattern(OTHER), "max-age=600");
            }
            match asked.load(Ordering::SeqCst) {
                false => answer(&sent, validator, false, seen),
                true if validator == Validator::Strong => Reply::ok(other.clone(), "max-age=600")
                    .field("ETag", "\"new\"")
                    .ranged(seen),
                true => Reply::ok(other.clone(), "max-age=600"),
            }
        });
        let directory = tempfile::tempdir().expect("a directory");
        let edge = edge_of(&origin, 0, &directory);
        let slow = stall(&edge, "/big", "");
        assert!(edge.get("/big").body == old);
        crawl(&edge, "a");
        has_changed.store(true, Ordering::SeqCst);
        let slow = slow.go_on();
        assert!(!slow.whole, "{validator:?}: it cannot be completed");
        assert!(
            old.starts_with(&slow.body) && slow.body.len() > 20_000 - 1000,
            "{validator:?}: {} bytes",
            slow.body.len()
        );
        wait_for("the new one", || edge.get("/big").body == new);
    }
}
