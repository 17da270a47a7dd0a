//! What an edge does to its origin: how many connections it opens, and on which a request goes.

mod lab;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
        Self {
            address,
            most,
            open,
        }
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
    assert!(
        origin.most.load(Ordering::SeqCst) <= 7,
        "{}",
        origin.most.load(Ordering::SeqCst)
    );
    wait_for("the count", || in_use(&edge) == 0.0);
    assert!(origin.open.load(Ordering::SeqCst) > 0, "they are kept");
}

#[test]
fn a_full_queue_and_a_long_wait_are_told_as_what_they_are() {
    let gate = Gate::default();
    let origin = Counting::start(&gate);
    let mut plan = plan(origin.address);
    let limits = &mut plan.origin_policy.limits;
    (
        limits.connections_max,
        limits.waiting_max,
        limits.connection_wait,
    ) = (1, 1, Duration::from_millis(300));
    let edge = plan.start();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| edge.get("/first"));
        wait_for("the first", || in_use(&edge) == 1.0);
        let late = scope.spawn(|| edge.get("/waits"));
        wait_for("the second", || waiting(&edge) == 1.0);
        for answer in [edge.get("/full"), late.join().expect("no panic")] {
            assert_eq!(
                (answer.status, answer.error().as_str()),
                (503, "ams-1; error=connection_limit_reached")
            );
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
            stream
                .write_all(
                    b"POST /up HTTP/1.1\r\nHost: www.test\r\nContent-Length: 1000\r\n\r\nbegin",
                )
                .expect("sent");
            stream
        })
        .collect();
    for n in 0..10 {
        assert_eq!(edge.get(&format!("/{n}")).text(), "ok");
    }
    assert!(origin.most.load(Ordering::SeqCst) <= 4);
    drop(stuck);
    wait_for("the uploads to be given up", || {
        in_use(&edge) == 0.0 && waiting(&edge) == 0.0
    });
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
                        length = line
                            .to_lowercase()
                            .strip_prefix("content-length: ")
                            .and_then(|l| l.trim().parse().ok())
                            .unwrap_or(length);
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
    let requests = [
        "GET", "POST", "PUT", "HEAD", "PATCH", "GET", "DELETE", "POST",
    ];
    for (n, method) in requests.iter().enumerate() {
        let body = if matches!(*method, "POST" | "PUT" | "PATCH") {
            "body"
        } else {
            ""
        };
        let head = format!(
            "{method} /{n} HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = edge.connect();
        stream.write_all(head.as_bytes()).expect("sent");
        let answer =
            lab::read_answer(&mut BufReader::new(stream), *method == "HEAD").expect("an answer");
        assert_eq!(answer.status, 200, "{method} {answer:?}");
    }
    let expected: Vec<String> = requests
        .iter()
        .enumerate()
        .map(|(n, method)| format!("{method} /{n}"))
        .collect();
    assert_eq!(*seen.lock().expect("unpoisoned"), expected, "each once");
}

#[test]
fn a_url_that_errs_is_asked_ever_more_rarely_and_no_other_suffers() {
    let is_bad = Arc::new(AtomicBool::new(false));
    let switch = is_bad.clone();
    let origin =
        Origin::start(
            move |seen| match seen.target == "/bad" && switch.load(Ordering::SeqCst) {
                true => Reply::status(500),
                false => Reply::ok("kept", "max-age=0, stale-if-error=600"),
            },
        );
    let edge = Plan::new(&origin).start();
    edge.get("/bad");
    edge.get("/good");
    is_bad.store(true, Ordering::SeqCst);
    let before = origin.count("/bad");
    for _ in 0..100 {
        let answer = edge.get("/bad");
        assert_eq!((answer.status, answer.text().as_str()), (200, "kept"));
    }
    let asked = origin.count("/bad") - before;
    assert!((5..=10).contains(&asked), "{asked} of 100 asked the origin");
    assert!(edge.get("/bad").cache().contains("detail=\"origin-error\""));
    let before = origin.count("/good");
    for n in 0..10 {
        assert!(
            edge.get("/good").cache().contains("fwd=stale"),
            "it is validated each time"
        );
        assert_eq!(edge.get(&format!("/new/{n}")).status, 200);
    }
    assert_eq!(origin.count("/good") - before, 10);
    is_bad.store(false, Ordering::SeqCst);
    wait_for("the URL to be validated again", || {
        !edge.get("/bad").cache().contains("detail")
    });
    assert_eq!(
        edge.metric("nearcast_edge_origin_breaker_changes_total"),
        0.0
    );
}

#[test]
fn a_failure_of_a_request_sent_on_as_it_is_is_no_answer_of_the_origins() {
    let state = Arc::new(AtomicUsize::new(0));
    let switch = state.clone();
    let origin = Origin::start(move |_| match switch.load(Ordering::SeqCst) {
        0 => Reply::ok("0123456789", "max-age=0, stale-if-error=600").field("ETag", "\"a\""),
        // A part that fits nothing: from then on ranges are sent on as they are.
        1 => Reply {
            status: 206,
            ..Reply::ok("234", "no-store")
        }
        .field("Content-Range", "bytes 2-4/10"),
        // No HTTP.
        2 => Reply::ok("x", "").field("Content-Length", "5"),
        _ => Reply::status(503),
    });
    let edge = Plan::new(&origin).start();
    let ask = || edge.ask("GET", "/x", &[("Range", "bytes=2-4")]);
    assert_eq!(edge.get("/x").text(), "0123456789");
    state.store(1, Ordering::SeqCst);
    let answer = ask();
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (206, "234"),
        "{answer:?}"
    );
    state.store(2, Ordering::SeqCst);
    let answer = ask();
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (206, "234"),
        "{answer:?}"
    );
    assert!(
        answer.cache().contains("detail=\"http_protocol_error\"")
            && !answer.cache().contains("fwd-status"),
        "{answer:?}"
    );
    let failed = "nearcast_edge_origin_failures_total{reason=\"http_protocol_error\",site=\"www\"}";
    assert_eq!(edge.metric(failed), 1.0);
    state.store(3, Ordering::SeqCst);
    let answer = ask();
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (206, "234"),
        "{answer:?}"
    );
    assert!(
        answer.cache().contains("fwd-status=503"),
        "that is one: {answer:?}"
    );
}

#[test]
fn an_upload_that_fails_on_the_clients_side_is_no_failure_of_the_origins() {
    let origin = Origin::start(|_| Reply::ok("read", ""));
    let mut plan = Plan::new(&origin);
    plan.origin_policy.limits.request_bytes_max = Some(nearcast_fleet::units::Bytes(4));
    let edge = plan.start();
    for method in ["POST", "PUT"] {
        let mut stream = edge.connect();
        let head = format!(
            "{method} /up HTTP/1.1\r\nHost: www.test\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        stream
            .write_all(format!("{head}9\r\n123456789\r\n0\r\n\r\n").as_bytes())
            .expect("sent");
        let answer = lab::read_answer(&mut BufReader::new(stream), false).expect("an answer");
        assert_eq!(answer.status, 413, "{method} {answer:?}");
    }
    assert_eq!(edge.metric("nearcast_edge_origin_failures_total"), 0.0);
}

#[test]
fn a_failure_that_many_waited_for_counts_once() {
    for hangs_up in [false, true] {
        let gates = Arc::new(Mutex::new(None::<Gate>));
        let held = gates.clone();
        let origin = Origin::start(move |_| {
            let gate = held.lock().expect("unpoisoned").clone();
            let Some(gate) = gate else {
                return Reply::ok("kept", "max-age=0, stale-if-error=600");
            };
            gate.wait();
            match hangs_up {
                // What it sends is no response.
                true => Reply::ok("x", "").field("Content-Length", "5"),
                false => Reply::status(500),
            }
        });
        let edge = Plan::new(&origin).start();
        edge.get("/x");
        for round in 1..=3 {
            let gate = Gate::default();
            *gates.lock().expect("unpoisoned") = Some(gate.clone());
            std::thread::scope(|scope| {
                let asked: Vec<_> = (0..6).map(|_| scope.spawn(|| edge.get("/x"))).collect();
                wait_for("the others to wait", || {
                    edge.metric("nearcast_edge_forwards_waiting") == 5.0
                });
                gate.open();
                for answer in asked {
                    let answer = answer.join().expect("no panic");
                    assert_eq!(answer.text(), "kept", "{answer:?}");
                    assert!(
                        !answer.cache().contains("detail=\"origin-"),
                        "{round}: {answer:?}"
                    );
                }
            });
            assert_eq!(origin.count("/x"), 1 + round, "each round asks anew");
        }
    }
}

/// An origin whose connections are accepted and never answered, on an address that [`Origin`] had.
fn hang(address: SocketAddr) -> (TcpListener, Arc<AtomicUsize>) {
    let mut listener = None;
    wait_for("the port", || {
        listener = TcpListener::bind(address).ok();
        listener.is_some()
    });
    let listener = listener.expect("bound");
    let (accepting, asked) = (
        listener.try_clone().expect("a handle"),
        Arc::new(AtomicUsize::new(0)),
    );
    let counted = asked.clone();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in accepting.incoming().flatten() {
            let mut byte = [0];
            // What only wakes this thread sends nothing.
            if (&stream).read(&mut byte).is_ok_and(|n| n == 0) {
                return;
            }
            counted.fetch_add(1, Ordering::SeqCst);
            held.push(stream);
        }
    });
    (listener, asked)
}

#[test]
fn an_origin_that_hangs_for_several_urls_holds_nobody_up() {
    let origin = Origin::start(|_| {
        Reply::ok("kept", "max-age=0, stale-if-error=600").field("Connection", "close")
    });
    let address = origin.address;
    let mut plan = Plan::new(&origin);
    plan.origin_policy.limits.first_byte = Duration::from_millis(400);
    let edge = plan.start();
    for n in 0..10 {
        assert_eq!(edge.get(&format!("/{n}")).text(), "kept");
    }
    drop(origin);
    let (listener, asked) = hang(address);
    for n in 0..3 {
        let answer = edge.get(&format!("/{n}"));
        assert!(
            answer.text() == "kept" && answer.cache().contains("http_response_timeout"),
            "{answer:?}"
        );
    }
    let open = "nearcast_edge_origin_breaker_open{site=\"www\"}";
    assert_eq!(edge.metric(open), 1.0);
    // Every other stale URL at once, whatever probes there are.
    for n in 3..10 {
        for _ in 0..5 {
            let answer = edge.get(&format!("/{n}"));
            assert_eq!(answer.text(), "kept");
            assert!(
                answer.cache().contains("; hit; ttl=")
                    && answer.cache().contains("detail=\"origin-unavailable\""),
                "{}",
                answer.cache()
            );
        }
    }
    // What is not stored fails at once, but for probes.
    let answers: Vec<_> = (0..20).map(|n| edge.get(&format!("/new/{n}"))).collect();
    let refused = answers
        .iter()
        .filter(|answer| answer.status == 503)
        .collect::<Vec<_>>();
    assert!(refused.len() >= 17, "{} of 20", refused.len());
    for answer in refused {
        assert_eq!(
            answer.error(),
            "ams-1; error=destination_unavailable; details=\"it answered nothing for several URLs\""
        );
        assert!((1..=30).contains(&answer.field("retry-after").parse::<u32>().expect("seconds")));
    }
    assert!(
        asked.load(Ordering::SeqCst) <= 6,
        "{} requests",
        asked.load(Ordering::SeqCst)
    );
    // An unsafe request that was not sent has changed nothing.
    assert_eq!(
        edge.ask("POST", "/9", &[("Content-Length", "0")]).status,
        503
    );
    assert_eq!(edge.get("/9").text(), "kept");
    // It is found to be well by the next probe, and then all of it is asked again.
    drop(listener);
    drop(TcpStream::connect(address));
    wait_for("the port", || TcpListener::bind(address).is_ok());
    let _well = Origin::start_at(address, |_| Reply::ok("new", "max-age=60"));
    wait_for("a probe", || edge.get("/5").text() == "new");
    assert_eq!(edge.metric(open), 0.0);
    for n in [0, 7] {
        wait_for("the URL", || edge.get(&format!("/{n}")).text() == "new");
    }
    assert_eq!(edge.get("/new/5").text(), "new");
    for state in ["open", "closed"] {
        assert_eq!(
            edge.metric(&format!(
                "nearcast_edge_origin_breaker_changes_total{{site=\"www\",state=\"{state}\"}}"
            )),
            1.0,
            "{state}"
        );
    }
}

#[test]
fn a_probe_that_takes_long_keeps_nobody_waiting() {
    let unused = Origin::start(|_| Reply::status(404));
    let address = unused.address;
    let edge = Plan::new(&unused).start();
    drop(unused);
    wait_for("the port", || TcpListener::bind(address).is_ok());
    for n in 0..3 {
        assert_eq!(edge.get(&format!("/{n}")).status, 502);
    }
    assert_eq!(edge.metric("nearcast_edge_origin_breaker_open"), 1.0);
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start_at(address, move |seen| {
        if seen.target == "/slow" {
            held.wait();
        }
        Reply::ok("well", "")
    });
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            wait_for("the probe to be answered", || {
                edge.get("/slow").status == 200
            })
        });
        wait_for("the probe", || {
            // An upload is refused meanwhile, and uses up no probe.
            let mut stream = edge.connect();
            let request = b"POST /up HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody";
            stream.write_all(request).expect("sent");
            assert_eq!(
                lab::read_answer(&mut BufReader::new(stream), false)
                    .expect("an answer")
                    .status,
                503
            );
            origin.count("/slow") == 1
        });
        wait_for("another probe", || edge.get("/quick").status == 200);
        assert_eq!(edge.metric("nearcast_edge_origin_breaker_open"), 0.0);
        gate.open();
        slow.join().expect("no panic");
    });
}

#[test]
fn one_url_that_hangs_blocks_no_other() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |seen| {
        if seen.target.starts_with("/slow") {
            held.wait();
        }
        Reply::ok("x", "")
    });
    let mut plan = Plan::new(&origin);
    plan.origin_policy.limits.first_byte = Duration::from_millis(200);
    let edge = plan.start();
    for n in 0..6 {
        // Queries make no other endpoint of it.
        assert_eq!(edge.get(&format!("/slow?q={n}")).status, 504);
        assert_eq!(edge.get("/slow").status, 504);
        if n > 3 {
            assert_eq!(edge.get(&format!("/{n}")).status, 200);
        }
    }
    gate.open();
    assert_eq!(
        edge.metric("nearcast_edge_origin_breaker_changes_total"),
        0.0
    );
}
