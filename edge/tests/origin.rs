//! What an edge does to its origin: how many connections it opens, and on which a request goes.

mod lab;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::{Edge, Gate, Origin, Plan, Reply, wait_for};

/// A plan for an origin that listens there.
fn plan(address: SocketAddr) -> Plan {
    let unused = Origin::start(|_| Reply::status(404));
    let mut plan = Plan::new(&unused);
    plan.origin = format!("http://{address}");
    plan
}

/// An origin that counts its open connections, and answers each request when the gate is open.
struct Counting {
    address: SocketAddr,
    most: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Counting {
    fn start(gate: &Gate) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (most, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (gate, counts) = (gate.clone(), (most.clone(), open.clone()));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let ((most, open), gate) = (counts.clone(), gate.clone());
                most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(&stream);
                    let mut line = String::new();
                    while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
                        if line == "\r\n" {
                            gate.wait();
                            let answer = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok";
                            let _ = (&stream).write_all(answer);
                        }
                        line.clear();
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, most, open }
    }
}

fn waiting(edge: &Edge) -> f64 {
    edge.metric("nearcast_edge_origin_connections{site=\"www\",state=\"waiting\"}")
}

fn in_use(edge: &Edge) -> f64 {
    edge.metric("nearcast_edge_origin_connections{site=\"www\",state=\"in_use\"}")
}

#[test]
fn however_many_urls_are_cold_no_more_connections_are_open_than_the_site_allows() {
    let gate = Gate::default();
    let origin = Counting::start(&gate);
    let mut plan = plan(origin.address);
    plan.origin_policy.limits.connections_max = 7;
    let edge = plan.start();
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..60)
            .map(|n| {
                scope.spawn({
                    let edge = &edge;
                    move || edge.get(&format!("/{n}"))
                })
            })
            .collect();
        wait_for("all to ask", || waiting(&edge) + in_use(&edge) == 60.0);
        assert_eq!(in_use(&edge), 7.0);
        gate.open();
        for answer in asked {
            assert_eq!(answer.join().expect("no panic").text(), "ok");
        }
    });
    assert!(origin.most.load(Ordering::SeqCst) <= 7, "{}", origin.most.load(Ordering::SeqCst));
    wait_for("the count", || in_use(&edge) == 0.0);
    assert!(origin.open.load(Ordering::SeqCst) > 0, "they are kept");
}

#[test]
fn a_full_queue_and_a_long_wait_are_told_as_what_they_are() {
    let gate = Gate::default();
    let origin = Counting::start(&gate);
    let mut plan = plan(origin.address);
    let limits = &mut plan.origin_policy.limits;
    (limits.connections_max, limits.waiting_max, limits.connection_wait) = (1, 1, Duration::from_millis(300));
    let edge = plan.start();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| edge.get("/first"));
        wait_for("the first", || in_use(&edge) == 1.0);
        let late = scope.spawn(|| edge.get("/waits"));
        wait_for("the second", || waiting(&edge) == 1.0);
        for answer in [edge.get("/full"), late.join().expect("no panic")] {
            assert_eq!((answer.status, answer.field("proxy-status")), (503, "ams-1; error=connection_limit_reached"));
            assert_eq!(answer.field("retry-after"), "1");
        }
        gate.open();
        assert_eq!(first.join().expect("no panic").text(), "ok");
    });
    assert_eq!(edge.get("/full").text(), "ok");
}

#[test]
fn uploads_that_never_end_leave_room_for_everybody_else() {
    let gate = Gate::default();
    gate.open();
    let origin = Counting::start(&gate);
    let mut plan = plan(origin.address);
    plan.origin_policy.limits.connections_max = 4;
    let edge = plan.start();
    let stuck: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = edge.connect();
            stream.write_all(b"POST /up HTTP/1.1\r\nHost: www.test\r\nContent-Length: 1000\r\n\r\nbegin").expect("sent");
            stream
        })
        .collect();
    for n in 0..10 {
        assert_eq!(edge.get(&format!("/{n}")).text(), "ok");
    }
    assert!(origin.most.load(Ordering::SeqCst) <= 4);
    drop(stuck);
    wait_for("the uploads to be given up", || in_use(&edge) == 0.0 && waiting(&edge) == 0.0);
}

#[test]
fn what_may_not_be_sent_twice_never_meets_a_connection_that_is_closing() {
    // Closes each connection without a word when a second request comes on it, having read that.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let noted = noted.clone();
            std::thread::spawn(move || {
                for number in 0..2 {
                    let mut reader = BufReader::new(&stream);
                    let (mut line, mut length) = (String::new(), 0);
                    let _ = reader.read_line(&mut line);
                    let request = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
                    while line != "\r\n" && !line.is_empty() {
                        line.clear();
                        let _ = reader.read_line(&mut line);
                        length = line.to_lowercase().strip_prefix("content-length: ").and_then(|l| l.trim().parse().ok()).unwrap_or(length);
                    }
                    let mut body = vec![0; length];
                    let _ = reader.read_exact(&mut body);
                    if number == 1 {
                        return;
                    }
                    noted.lock().expect("unpoisoned").push(request);
                    let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
    let edge = plan(address).start();
    let requests = ["GET", "POST", "PUT", "HEAD", "PATCH", "GET", "DELETE", "POST"];
    for (n, method) in requests.iter().enumerate() {
        let body = if matches!(*method, "POST" | "PUT" | "PATCH") { "body" } else { "" };
        let head = format!("{method} /{n} HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let mut stream = edge.connect();
        stream.write_all(head.as_bytes()).expect("sent");
        let answer = lab::read_answer(&mut BufReader::new(stream), *method == "HEAD").expect("an answer");
        assert_eq!(answer.status, 200, "{method} {answer:?}");
    }
    let expected: Vec<String> = requests.iter().enumerate().map(|(n, method)| format!("{method} /{n}")).collect();
    assert_eq!(*seen.lock().expect("unpoisoned"), expected, "each once");
}
