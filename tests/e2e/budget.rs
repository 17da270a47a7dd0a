//! The memory of an edge, as the kernel counts it, beside the setting `memory` and its metrics.
//!
//! The kernel's figure is memory of the process alone (`RssAnon`): the code of the binary under test
//! is mapped from a file and is several times as long as that of a release.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use nearcast_testing::{Reply, Seen};

use crate::lab::edge::{Edge, Settings};
use crate::lab::wait;

const MEMORY: u64 = 16 << 20;
/// What a process may take beside `memory`, without its code (docs/storage.md).
const BESIDE: u64 = 48 << 20;
const A_CONNECTION: u64 = 8 << 10;

fn edge(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Edge {
    let settings = |_| Settings {
        node: "memory = \"16MiB\"".into(),
        ..Settings::default()
    };
    Edge::start(settings, script)
}

/// Bytes of memory that the edge's process has for itself.
fn resident(edge: &Edge) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", edge.pid())).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .expect("the kernel says it")
        << 10
}

fn connect(edge: &Edge) -> TcpStream {
    let stream = TcpStream::connect((edge.ip, 8080)).expect("the edge listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a socket option");
    stream
}

/// Requests each path over one connection and reads the answers. Returns how many were hits.
fn request_all(edge: &Edge, paths: impl Iterator<Item = String>) -> usize {
    let mut stream = BufReader::new(connect(edge));
    let mut hits = 0;
    let mut body = Vec::new();
    for path in paths {
        let request = format!("GET {path} HTTP/1.1\r\nHost: www.test\r\n\r\n");
        stream
            .get_mut()
            .write_all(request.as_bytes())
            .expect("it reads");
        let mut length = 0;
        for number in 0.. {
            let mut line = String::new();
            stream.read_line(&mut line).expect("it answers");
            assert!(number > 0 || line.starts_with("HTTP/1.1 200"), "{line}");
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a number");
            }
            hits += usize::from(line.starts_with("cache-status:") && line.contains("; hit"));
        }
        body.resize(length, 0);
        stream.read_exact(&mut body).expect("it sends the body");
    }
    hits
}

/// Requests `0..count` over four connections at once.
fn request_numbers(edge: &Edge, count: usize, path: impl Fn(usize) -> String + Sync) {
    std::thread::scope(|scope| {
        for first in 0..4 {
            let path = &path;
            scope.spawn(move || request_all(edge, (first..count).step_by(4).map(path)));
        }
    });
}

/// What the kernel and the metrics say, in a text for failures.
fn figures(edge: &Edge) -> String {
    let mut text = format!("resident {}", resident(edge));
    for name in [
        "nearcast_edge_stored_urls",
        "nearcast_edge_memory_bytes",
        "nearcast_edge_memory_unused_bytes",
        "nearcast_edge_memory_part_bytes{part=\"heads\"}",
        "nearcast_edge_memory_part_bytes{part=\"slices\"}",
        "nearcast_edge_memory_part_bytes{part=\"in_flight\"}",
        "nearcast_edge_memory_evictions_total",
    ] {
        let _ = write!(text, ", {name} {}", edge.metric(name));
    }
    text
}

fn assert_bounded(edge: &Edge, connections: u64, what: &str) {
    let limit = MEMORY + BESIDE + connections * A_CONNECTION;
    let resident = resident(edge);
    eprintln!("{what}: {}", figures(edge));
    assert!(resident <= limit, "{what}: {}", figures(edge));
    assert!(
        edge.metric("nearcast_edge_memory_bytes") <= MEMORY + (4 << 20),
        "{what}: {}",
        figures(edge)
    );
}

#[test]
fn memory_is_bounded_whatever_the_sizes_of_responses() {
    let long = "v".repeat(200);
    let edge = edge(move |seen| {
        let target = &seen.target;
        if target.starts_with("/fields") {
            let reply = Reply::ok("x", "max-age=600");
            return (0..20).fold(reply, |reply, number| {
                reply.field(&format!("X-Long-{number}"), &long)
            });
        }
        let bytes = match target.split('?').next() {
            Some("/small") => 1024,
            Some("/middle") => 20_000,
            _ => 700_000,
        };
        Reply::ok(vec![b'x'; bytes], "max-age=600")
    });
    let empty = resident(&edge);
    assert_eq!(edge.metric("nearcast_edge_memory_limit_bytes"), MEMORY);
    for (path, count) in [
        ("/small", 20_000),
        ("/fields", 5000),
        ("/middle", 1500),
        ("/large", 60),
        ("/small", 8000),
    ] {
        request_numbers(&edge, count, |number| format!("{path}?{number}"));
        assert_bounded(&edge, 4, path);
        let taken = edge.metric("nearcast_edge_memory_bytes");
        // The heap keeps what heads took when there were more of them.
        let grown = resident(&edge).saturating_sub(empty);
        assert!(
            grown <= taken + taken / 20 + (32 << 20),
            "{path}: {grown} bytes more than when it was empty; {}",
            figures(&edge)
        );
    }
    assert!(edge.metric("nearcast_edge_memory_evictions_total") > 5000);
    // What came last is there, and the memory is used.
    let again = request_all(&edge, (7900..8000).map(|number| format!("/small?{number}")));
    assert!(
        again > 80,
        "{again} of the last 100 are hits; {}",
        figures(&edge)
    );
    assert!(
        edge.metric("nearcast_edge_memory_bytes") > MEMORY / 10 * 8,
        "{}",
        figures(&edge)
    );
}

#[test]
fn slow_readers_of_long_bodies_take_little_memory() {
    const READERS: usize = 200;
    // The body is longer than what so little memory stores: each reader has a request of its own.
    let settings = |_| Settings {
        node: "memory = \"16MiB\"".into(),
        site: "[site.limits]\nconnections_max = 256".into(),
        ..Settings::default()
    };
    let edge = Edge::start(settings, |_| {
        Reply::ok(vec![b'x'; 100 << 20], "max-age=600").field("ETag", "\"one\"")
    });
    let mut readers: Vec<TcpStream> = (0..READERS).map(|_| connect(&edge)).collect();
    for reader in &mut readers {
        reader
            .write_all(b"GET /film HTTP/1.1\r\nHost: www.test\r\n\r\n")
            .expect("it reads");
    }
    let mut piece = vec![0; 64 << 10];
    for round in 0..20 {
        for (number, reader) in readers.iter_mut().enumerate() {
            // Each at a pace of its own.
            if round % (1 + number % 4) == 0 {
                reader.read_exact(&mut piece).expect("it sends the body");
            }
        }
        assert_bounded(&edge, READERS as u64, &format!("round {round}"));
    }
    drop(readers);
    wait::until("the readers to be gone", Duration::from_secs(20), || {
        let in_flight = edge.metric("nearcast_edge_memory_part_bytes{part=\"in_flight\"}");
        if in_flight <= 1 << 20 {
            Ok(())
        } else {
            Err(figures(&edge))
        }
    });
}
