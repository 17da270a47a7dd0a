//! Many clients of one cold, slow URL cost the origin one request, and each of them gets the first bytes
//! before the origin has sent the last.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use nearcast_testing::{Gate, Origin, Reply};

use crate::lab::fleet::{Fleet, Plan};

const CLIENTS: usize = 200;
const BODY_BYTES: usize = 1 << 20;
/// Time for one read: far more than any takes, so that a client that waits for the end fails.
const READ_TIME_MAX: Duration = Duration::from_secs(30);

/// A client that has sent its request and received the head and first bytes of the response.
struct Client {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    fn with_first_bytes(edge: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(edge).expect("the edge listens");
        stream
            .set_read_timeout(Some(READ_TIME_MAX))
            .expect("a time");
        stream
            .write_all(b"GET /slow HTTP/1.1\r\nHost: www.demo.test\r\nConnection: close\r\n\r\n")
            .expect("the edge reads");
        let mut client = Self {
            stream,
            received: Vec::new(),
        };
        let mut bytes = [0; 16 << 10];
        while client.body().is_none_or(<[u8]>::is_empty) {
            let count = client
                .stream
                .read(&mut bytes)
                .expect("bytes before the end");
            assert!(count > 0, "the response ended early");
            client.received.extend_from_slice(&bytes[..count]);
        }
        client
    }

    fn body(&self) -> Option<&[u8]> {
        let head_end = self.received.windows(4).position(|w| w == b"\r\n\r\n")?;
        Some(&self.received[head_end + 4..])
    }

    fn finish(mut self) -> usize {
        self.stream
            .read_to_end(&mut self.received)
            .expect("the rest");
        assert!(self.received.starts_with(b"HTTP/1.1 200"));
        self.body().map_or(0, <[u8]>::len)
    }
}

/// Does the same in many threads at once.
fn at_once<T: Send + 'static>(work: Vec<impl FnOnce() -> T + Send + 'static>) -> Vec<T> {
    let threads: Vec<JoinHandle<T>> = work.into_iter().map(std::thread::spawn).collect();
    let join = |thread: JoinHandle<T>| thread.join().expect("no client fails");
    threads.into_iter().map(join).collect()
}

#[test]
fn two_hundred_at_once_on_one_cold_slow_url_are_one_origin_request() {
    let mut plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let (gate, body) = (Gate::default(), vec![b'x'; BODY_BYTES]);
    let held = gate.clone();
    let origin = Origin::start_at(plan.origin_address(), move |_| {
        Reply::ok(body.clone(), "max-age=600")
            .field("ETag", "\"slow\"")
            .held_at(BODY_BYTES / 2, &held)
    });
    plan.origin = Some(origin.url());
    let fleet = Fleet::start(plan);
    let edge = SocketAddr::from((fleet.plan.edge(0, 0), 8080));

    let clients = at_once(vec![move || Client::with_first_bytes(edge); CLIENTS]);
    gate.open();
    let finishing = clients.into_iter().map(|client| move || client.finish());
    let lengths = at_once(finishing.collect());
    assert_eq!(lengths, [BODY_BYTES; CLIENTS]);
    assert_eq!(origin.count("/slow"), 1, "one request at the origin");
}
