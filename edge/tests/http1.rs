//! One connection, many requests: the short way, the long one and hyper's, in any order.

mod lab;

use std::io::{BufReader, Read, Write};
use std::time::Duration;

use lab::{Answer, Gate, Origin, Plan, Reply, pattern, read_answer, wait_for};
use nearcast_fleet::config::ClientLimits;

fn request(method: &str, path: &str, fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: www.test\r\n{fields}\r\n")
}

#[test]
fn a_hit_says_the_same_whichever_way_it_comes() {
    let origin = Origin::start(|seen| match seen.target.as_str() {
        "/empty" => Reply::ok("", "max-age=60"),
        "/none" => Reply {
            status: 204,
            ..Reply::ok("", "max-age=60")
        },
        "/gone" => Reply {
            status: 410,
            ..Reply::ok("gone", "max-age=60").field("Age", "7")
        },
        "/varies" => Reply::ok("en", "max-age=60")
            .field("Vary", "Accept-Language")
            .field("ETag", "\"e\""),
        "/twice" => Reply::ok("x", "max-age=60")
            .field("X-A", "1")
            .field("X-A", "2")
            .field("Cache-Status", "other; hit"),
        _ => Reply::ok("plain", "max-age=60")
            .field("ETag", "\"a\"")
            .field("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT"),
    });
    let edge = Plan::new(&origin).start();
    for path in [
        "/plain", "/empty", "/none", "/gone", "/varies", "/twice", "/q?a=b&c",
    ] {
        let fields = "Accept-Language: en\r\n";
        let mut answers: Vec<Answer> = Vec::new();
        let mut stream = edge.connect();
        let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
        // A loop's field that names others only sends a request the long way; a length of none
        // sends it to hyper.
        for more in ["", "", "CDN-Loop: other\r\n", "Content-Length: 0\r\n"] {
            stream
                .write_all(request("GET", path, &format!("{fields}{more}")).as_bytes())
                .expect("sent");
            answers.push(read_answer(&mut reader, false).expect("an answer"));
        }
        // Another cache's member stands before ours.
        let is_hit = |answer: &Answer| {
            answer
                .fields
                .iter()
                .any(|(_, value)| value.starts_with("ams-1; hit"))
        };
        assert!(
            !is_hit(&answers[0]) && answers[1..].iter().all(is_hit),
            "{path}: {answers:?}"
        );
        for other in &answers[2..] {
            let sorted = |answer: &Answer| {
                let mut fields = answer.fields.clone();
                // A second may pass between two answers.
                fields.retain(|(name, value)| {
                    !(name == "age" || name == "cache-status" && value.contains("ttl"))
                });
                fields.sort();
                (answer.status, fields, answer.body.clone())
            };
            assert_eq!(sorted(&answers[1]), sorted(other), "{path}");
        }
        assert!(
            answers[1].fields.iter().any(|(n, _)| n == "age"),
            "{path}: {:?}",
            answers[1]
        );
    }
    assert_eq!(
        edge.get("/varies").cache().split("; ").nth(1),
        Some("fwd=vary-miss")
    );
}

#[test]
fn requests_of_every_kind_follow_one_another_on_a_connection() {
    let origin = Origin::start(|seen| match seen.target.as_str() {
        "/chunked" => Reply::ok(pattern(100_000), "no-store").chunked().slow(5, 5),
        "/large" => Reply::ok(pattern(700_000), "max-age=60").field("ETag", "\"l\""),
        _ => Reply::ok(format!("{} {}", seen.method, seen.body.len()), "max-age=60")
            .field("ETag", "\"s\""),
    });
    let edge = Plan::new(&origin).start();
    edge.get("/large");
    let mut steps: Vec<(String, bool, u16, Vec<u8>)> = vec![
        (request("GET", "/a", ""), false, 200, b"GET 0".to_vec()),
        (request("GET", "/a", ""), false, 200, b"GET 0".to_vec()),
        (request("HEAD", "/a", ""), true, 200, vec![]),
        (
            request("GET", "/a", "If-None-Match: \"s\"\r\n"),
            false,
            304,
            vec![],
        ),
        (request("GET", "/large", ""), false, 200, pattern(700_000)),
        (
            request("GET", "/large", "Range: bytes=5-9\r\n"),
            false,
            206,
            pattern(10)[5..].to_vec(),
        ),
        (request("GET", "/chunked", ""), false, 200, pattern(100_000)),
        (
            request("DELETE", "/b", ""),
            false,
            200,
            b"DELETE 0".to_vec(),
        ),
        (request("GET", "/large", ""), false, 200, pattern(700_000)),
    ];
    for is_handed_over in [false, true] {
        if is_handed_over {
            let body = format!("{}abc", request("POST", "/c", "Content-Length: 3\r\n"));
            steps.insert(2, (body, false, 200, b"POST 3".to_vec()));
        }
        // One after the other, and all at once.
        for is_pipelined in [false, true] {
            let mut stream = edge.connect();
            let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
            if is_pipelined {
                let all: String = steps.iter().map(|(request, ..)| request.as_str()).collect();
                stream.write_all(all.as_bytes()).expect("sent");
            }
            for (request, is_head, status, body) in &steps {
                if !is_pipelined {
                    stream.write_all(request.as_bytes()).expect("sent");
                }
                let answer = read_answer(&mut reader, *is_head).expect("an answer");
                assert_eq!((answer.status, answer.whole), (*status, true), "{request}");
                assert!(
                    answer.body == *body,
                    "{request}: {} bytes",
                    answer.body.len()
                );
            }
        }
    }
}

#[test]
fn a_request_may_come_a_byte_at_a_time() {
    let origin = Origin::start(|seen| Reply::ok(seen.target.clone(), "max-age=60"));
    let edge = Plan::new(&origin).start();
    let mut stream = edge.connect();
    stream.set_nodelay(true).expect("set");
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    for path in ["/a", "/b"] {
        for byte in request("GET", path, "X-A: b\r\n").bytes() {
            stream.write_all(&[byte]).expect("sent");
        }
        assert_eq!(
            read_answer(&mut reader, false).expect("an answer").text(),
            path
        );
    }
}

#[test]
fn the_connection_ends_with_the_request_that_says_so() {
    let origin = Origin::start(|seen| Reply::ok(seen.target.clone(), "max-age=60"));
    let edge = Plan::new(&origin).start();
    for fields in [
        "Connection: close\r\n",
        "Connection: x, Close\r\n",
        "Connection: close\r\nContent-Length: 0\r\n",
    ] {
        for path in ["/a", "/a"] {
            let mut stream = edge.connect();
            let two = format!(
                "{}{}",
                request("GET", path, fields),
                request("GET", "/never", "")
            );
            stream.write_all(two.as_bytes()).expect("sent");
            let mut reader = BufReader::new(stream);
            let answer = read_answer(&mut reader, false).expect("an answer");
            assert_eq!(
                (answer.text().as_str(), answer.field("connection")),
                (path, "close"),
                "{fields}"
            );
            let mut rest = Vec::new();
            // The rest of what was sent may have the connection reset rather than closed.
            let _ = reader.read_to_end(&mut rest);
            assert!(
                rest.is_empty(),
                "{fields}: {}",
                String::from_utf8_lossy(&rest)
            );
        }
    }
    assert_eq!(origin.count("/never"), 0);
}

#[test]
fn a_body_that_ends_early_never_looks_whole() {
    let origin = Origin::start(|seen| match seen.target.as_str() {
        "/length" => Reply::ok(pattern(50_000), "no-store")
            .cut_after(20_000)
            .slow(5, 20),
        _ => Reply::ok(pattern(50_000), "no-store")
            .chunked()
            .cut_after(20_000)
            .slow(5, 20),
    });
    let edge = Plan::new(&origin).start();
    for path in ["/length", "/chunked"] {
        let mut stream = edge.connect();
        stream
            .write_all(request("GET", path, "").as_bytes())
            .expect("sent");
        let answer = read_answer(&mut BufReader::new(stream), false).expect("a head");
        assert!(
            !answer.whole && answer.body.len() <= 20_000,
            "{path}: {} bytes",
            answer.body.len()
        );
    }
}

#[test]
fn what_is_at_hand_also_goes_to_a_client_that_has_closed_its_side() {
    let origin = Origin::start(|_| Reply::ok(pattern(30_000), "max-age=60"));
    let edge = Plan::new(&origin).start();
    edge.get("/a");
    let mut stream = edge.connect();
    stream
        .write_all(request("GET", "/a", "").as_bytes())
        .expect("sent");
    stream.shutdown(std::net::Shutdown::Write).expect("shut");
    let mut reader = BufReader::new(stream);
    let answer = read_answer(&mut reader, false).expect("an answer");
    assert!(answer.whole && answer.body == pattern(30_000));
    assert_eq!(reader.read(&mut [0]).expect("the end"), 0);
}

/// A request without a body goes the own way, one with none of zero length by way of hyper.
const WAYS: [&str; 2] = ["", "Content-Length: 0\r\n"];

#[test]
fn a_client_that_leaves_frees_its_connection_while_the_origin_thinks() {
    for way in WAYS {
        for head in [
            "",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        ] {
            let gate = Gate::default();
            let held = gate.clone();
            let is_begun = !head.is_empty();
            let origin = Origin::start(move |_| match is_begun {
                true => Reply::ok("abcd", "no-store").chunked().held_at(2, &held),
                false => {
                    held.wait();
                    Reply::ok("x", "no-store")
                }
            });
            let edge = Plan::new(&origin).start();
            let clients: Vec<_> = (0..20)
                .map(|n| {
                    let mut stream = edge.connect();
                    stream
                        .write_all(request("GET", &format!("/{n}"), way).as_bytes())
                        .expect("sent");
                    if is_begun {
                        read_head(&mut stream);
                    }
                    stream
                })
                .collect();
            wait_for("the origin to be asked", || {
                origin.seen().len() == clients.len()
            });
            assert_eq!(edge.metric("nearcast_edge_connections "), 20.0);
            drop(clients);
            wait_for("their connections to end", || {
                edge.metric("nearcast_edge_connections ") == 0.0
            });
            gate.open();
        }
    }
}

fn read_head(stream: &mut std::net::TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("text")
}

#[test]
fn what_a_request_changed_is_forgotten_also_when_its_client_has_left() {
    for way in WAYS {
        let gate = Gate::default();
        let held = gate.clone();
        let origin = Origin::start(move |seen| {
            if seen.method == "DELETE" {
                held.wait();
            }
            Reply::ok("x", "max-age=60")
        });
        let edge = Plan::new(&origin).start();
        edge.get("/x");
        assert!(edge.get("/x").is_hit());
        let mut stream = edge.connect();
        stream
            .write_all(request("DELETE", "/x", way).as_bytes())
            .expect("sent");
        wait_for("the origin to be asked", || {
            origin.seen().iter().any(|s| s.method == "DELETE")
        });
        drop(stream);
        wait_for("the connection to end", || {
            edge.metric("nearcast_edge_connections ") == 0.0
        });
        gate.open();
        wait_for("what was deleted to be forgotten", || {
            !edge.get("/x").is_hit()
        });
    }
}

#[test]
fn a_response_arrives_whole_whatever_the_client_sent_behind_its_request() {
    let origin =
        Origin::start(|_| Reply::ok(pattern(8 << 20), "max-age=60").field("ETag", "\"l\""));
    let edge = Plan {
        memory: 64 << 20,
        ..Plan::new(&origin)
    }
    .start();
    edge.get("/large");
    for way in WAYS {
        let mut stream = edge.connect();
        stream
            .write_all(request("GET", "/large", &format!("Connection: close\r\n{way}")).as_bytes())
            .expect("sent");
        stream
            .write_all(request("GET", "/large", "").repeat(2000).as_bytes())
            .expect("sent");
        let answer = read_answer(&mut BufReader::new(stream), false).expect("an answer");
        assert!(
            answer.whole && answer.body == pattern(8 << 20),
            "{way}: {} bytes",
            answer.body.len()
        );
    }
}

#[test]
fn draining_cuts_no_response_of_a_client_that_asks_ahead() {
    let origin =
        Origin::start(|_| Reply::ok(pattern(4 << 20), "max-age=60").field("ETag", "\"l\""));
    let edge = Plan {
        memory: 64 << 20,
        ..Plan::new(&origin)
    }
    .start();
    edge.get("/large");
    let mut stream = edge.connect();
    stream
        .write_all(request("GET", "/large", "").repeat(100).as_bytes())
        .expect("sent");
    let mut reader = BufReader::new(stream);
    read_answer(&mut reader, false).expect("the first");
    edge.begin_stop();
    loop {
        let answer = read_answer(&mut reader, false).expect("an answer");
        assert!(
            answer.whole && answer.body.len() == 4 << 20,
            "{} bytes",
            answer.body.len()
        );
        if answer.field("connection") == "close" {
            break;
        }
    }
    edge.stop().expect("a good end");
}

#[test]
fn every_head_behind_another_request_is_looked_at() {
    let origin = Origin::start(|seen| Reply::ok(seen.method.clone(), "no-store"));
    let edge = Plan::new(&origin).start();
    let bad = [
        "POST /bad HTTP/1.1\r\nHost: www.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /bad HTTP/1.1\nHost: www.test\n\n",
        "GET /bad HTTP/1.1\r\nHost: www.test\r\nContent-Length: 0\nA: b\r\n\r\n",
    ];
    let spaces = " ".repeat(100);
    let first = [
        request("GET", "/good", ""),
        request("GET", "/good", "Content-Length: 0\r\n"),
        format!("{}abc", request("POST", "/good", "Content-Length: 3\r\n")),
        format!(
            "{}abc",
            request("POST", "/good", &format!("Content-Length:{spaces}3\r\n"))
        ),
        format!(
            "{}3\r\nabc\r\n0\r\n\r\n",
            request("POST", "/good", "Transfer-Encoding: chunked\r\n")
        ),
    ];
    for (good, bad) in first.iter().flat_map(|good| bad.map(|bad| (good, bad))) {
        let mut stream = edge.connect();
        stream
            .write_all(format!("{good}{bad}").as_bytes())
            .expect("sent");
        let mut reader = BufReader::new(stream);
        let answer = read_answer(&mut reader, false).expect("an answer");
        assert_eq!(answer.status, 200, "{good}");
        // Behind a body whose end cannot be foreseen nothing more is read.
        let next = read_answer(&mut reader, false).map_or(0, |next| next.status);
        assert_eq!(
            next,
            if answer.field("connection") == "close" {
                0
            } else {
                400
            },
            "{good}{bad}"
        );
    }
    assert_eq!(origin.count("/bad"), 0);
}

#[test]
fn a_chunk_ends_when_it_is_sent() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |_| Reply::ok("event", "no-store").chunked().held_at(3, &held));
    let edge = Plan::new(&origin).start();
    for way in WAYS {
        let mut stream = edge.connect();
        stream
            .write_all(request("GET", "/a", way).as_bytes())
            .expect("sent");
        read_head(&mut stream);
        let mut chunk = [0; 8];
        stream
            .read_exact(&mut chunk)
            .expect("a whole chunk while the next is awaited");
        assert_eq!(&chunk, b"3\r\neve\r\n");
    }
    gate.open();
}

#[test]
fn the_longest_head_is_the_same_whichever_way_it_comes() {
    let origin = Origin::start(|_| Reply::ok("x", "max-age=60"));
    let small = ClientLimits {
        head_bytes_max: 4 << 10,
        fields_max: 16,
        ..ClientLimits::default()
    };
    let large = ClientLimits {
        head_bytes_max: 256 << 10,
        fields_max: 1024,
        ..ClientLimits::default()
    };
    // By a field's length, or by how many fields there are beside three or four.
    type Tried = &'static [(usize, u16)];
    let table: [(ClientLimits, Tried, Tried); 3] = [
        (
            ClientLimits::default(),
            &[(60_000, 200), (66_000, 431), (200_000, 431)],
            &[(120, 200), (130, 431), (2000, 431)],
        ),
        (
            small,
            &[(3_900, 200), (4_200, 431), (60_000, 431)],
            &[(12, 200), (17, 431), (200, 431)],
        ),
        (
            large,
            &[(60_000, 200), (250_000, 200), (270_000, 431)],
            &[(12, 200), (130, 200), (1020, 200), (1030, 431)],
        ),
    ];
    for (clients, lengths, counts) in table {
        let edge = Plan {
            clients,
            ..Plan::new(&origin)
        }
        .start();
        for way in WAYS {
            let lengths = lengths
                .iter()
                .map(|(length, status)| (format!("A: {}\r\n", "x".repeat(*length)), *status));
            let counts = counts
                .iter()
                .map(|(count, status)| ("A: b\r\n".repeat(*count), *status));
            for (fields, status) in lengths.chain(counts) {
                let answer = edge.raw(
                    request("GET", "/a", &format!("{way}{fields}Connection: close\r\n")).as_bytes(),
                );
                assert_eq!(
                    answer.status,
                    status,
                    "{} bytes, {way}, {clients:?}",
                    fields.len()
                );
                let [bytes, fields] =
                    [clients.head_bytes_max, clients.fields_max].map(|limit| limit.to_string());
                assert!(
                    status == 200
                        || answer.text().contains(&bytes) && answer.text().contains(&fields),
                    "{answer:?}"
                );
            }
        }
    }
}

#[test]
fn a_connection_lies_idle_for_as_long_as_it_is_set_to() {
    let origin = Origin::start(|_| Reply::ok("x", "max-age=60"));
    let clients = ClientLimits {
        idle_timeout: Duration::from_secs(1),
        head_timeout: Duration::from_secs(2),
        ..ClientLimits::default()
    };
    let edge = Plan {
        clients,
        ..Plan::new(&origin)
    }
    .start();
    for way in WAYS {
        let mut stream = edge.connect();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("set");
        let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
        for _ in 0..2 {
            stream
                .write_all(request("GET", "/a", way).as_bytes())
                .expect("sent");
            assert_eq!(
                read_answer(&mut reader, false).expect("an answer").status,
                200
            );
        }
        let began = std::time::Instant::now();
        assert_eq!(reader.read(&mut [0]).expect("the end"), 0);
        assert!(
            began.elapsed() >= Duration::from_millis(900),
            "{:?}",
            began.elapsed()
        );
        let mut slow = edge.connect();
        slow.write_all(request("GET", "/a", way).trim_end().as_bytes())
            .expect("sent");
        assert_eq!(
            read_answer(&mut BufReader::new(slow), false)
                .expect("an answer")
                .status,
            408
        );
    }
}

#[test]
fn what_is_hot_stays_on_the_disk() {
    let origin =
        Origin::start(|_| Reply::ok(pattern(200_000), "max-age=6000").field("ETag", "\"x\""));
    let directory = tempfile::tempdir().expect("a directory");
    let plan = || Plan {
        disk: 16 << 20,
        memory: 8 << 20,
        state_dir: directory.path().to_owned(),
        ..Plan::new(&origin)
    };
    let edge = plan().start();
    let mut stream = edge.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    for n in 0..240 {
        edge.get(&format!("/cold{n}"));
        stream
            .write_all(request("GET", "/hot", "").as_bytes())
            .expect("sent");
        assert!(read_answer(&mut reader, false).expect("an answer").whole);
    }
    assert_eq!(origin.count("/hot"), 1);
    edge.stop().expect("a good end");
    assert!(plan().start().get("/hot").is_hit());
}

#[test]
fn what_the_short_way_answers_counts_like_everything_else() {
    let origin = Origin::start(|_| Reply::ok("0123456789", "max-age=60"));
    let edge = Plan::new(&origin).start();
    let mut stream = edge.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    for _ in 0..5 {
        stream
            .write_all(request("GET", "/a", "").as_bytes())
            .expect("sent");
        assert_eq!(
            read_answer(&mut reader, false)
                .expect("an answer")
                .body
                .len(),
            10
        );
    }
    let hits =
        "nearcast_edge_requests_total{cache_status=\"hit\",site=\"www\",status_class=\"2xx\"}";
    wait_for("four hits", || edge.metric(hits) == 4.0);
    assert_eq!(
        edge.metric("nearcast_edge_response_bytes_total{cache_status=\"hit\",site=\"www\"}"),
        40.0
    );
    assert_eq!(
        edge.metric("nearcast_edge_request_seconds_count{forward=\"hit\"}"),
        4.0
    );
}

#[test]
fn a_connection_for_one_response_gets_it_whole() {
    let origin = Origin::start(|seen| match seen.target.as_str() {
        "/large" => Reply::ok(pattern(250_000), "max-age=60"),
        "/long" => Reply::ok(pattern(700_000), "max-age=60"),
        _ => Reply::ok(pattern(1000), "max-age=60"),
    });
    let edge = Plan::new(&origin).start();
    let table = [("/small", 1000), ("/large", 250_000), ("/long", 700_000)];
    for (path, length) in table {
        for round in 0..4 {
            let stream = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                .expect("a socket");
            // The edge cannot write a large response at once.
            stream.set_recv_buffer_size(4096).expect("set");
            stream.connect(&edge.address.into()).expect("it listens");
            let mut stream = std::net::TcpStream::from(stream);
            let request = request("GET", path, "Connection: close\r\n");
            // Whole, or in two pieces, the first of which the edge reads alone.
            let (first, second) = request.split_at(if round == 3 { 30 } else { request.len() });
            stream.write_all(first.as_bytes()).expect("sent");
            if !second.is_empty() {
                std::thread::sleep(Duration::from_millis(50));
                stream.write_all(second.as_bytes()).expect("sent");
            }
            std::thread::sleep(Duration::from_millis(20));
            let answer = read_answer(&mut BufReader::new(&stream), false).expect("an answer");
            assert_eq!(
                (answer.status, answer.is_hit(), answer.field("connection")),
                (200, round > 0, "close"),
                "{path} {round}"
            );
            assert!(answer.body == pattern(length), "{path} {round}");
            assert_eq!(stream.read(&mut [0]).expect("an end"), 0, "{path} {round}");
        }
    }
    let hits =
        "nearcast_edge_requests_total{cache_status=\"hit\",site=\"www\",status_class=\"2xx\"}";
    wait_for("all hits", || edge.metric(hits) == 9.0);
    wait_for("no open connections", || {
        edge.metric("nearcast_edge_connections ") == 0.0
    });
}

#[test]
fn a_purge_holds_for_the_short_way() {
    let origin = Origin::start(|seen| Reply::ok(seen.target.clone(), "max-age=60"));
    let mut edge = Plan::new(&origin).start();
    let mut stream = edge.connect();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("set");
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    for (purged, is_hit) in [(false, false), (false, true), (true, false), (false, true)] {
        if purged {
            edge.purge(nearcast_fleet::change::PurgeScope::All, false);
        }
        stream
            .write_all(request("GET", "/a", "").as_bytes())
            .expect("sent");
        assert_eq!(
            read_answer(&mut reader, false).expect("an answer").is_hit(),
            is_hit
        );
    }
}

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\nSet-Cookie: a=b\r\n\r\n";

#[test]
fn a_hint_reaches_the_client_while_the_origin_thinks() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |seen| {
        let directives = if seen.target == "/own" {
            "private"
        } else {
            "max-age=60"
        };
        Reply {
            interim: HINTS,
            held_head: Some(held.clone()),
            ..Reply::ok("final", directives)
        }
    });
    let edge = Plan::new(&origin).start();
    let requests = [
        request("GET", "/shared", ""),
        request("GET", "/own", "Authorization: x\r\n"),
        request("HEAD", "/head", ""),
        request("GET", "/a%2fb", ""),
        request("DELETE", "/gone", ""),
    ];
    let mut clients: Vec<_> = requests
        .iter()
        .map(|request| {
            let mut stream = edge.connect();
            stream
                .set_read_timeout(Some(Duration::from_secs(30)))
                .expect("set");
            stream.write_all(request.as_bytes()).expect("sent");
            assert_eq!(
                read_head(&mut stream),
                "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n",
                "{request}"
            );
            stream
        })
        .collect();
    // Those who wait for the same get the response alone.
    let mut follower = edge.connect();
    follower
        .write_all(request("GET", "/shared", "").as_bytes())
        .expect("sent");
    wait_for("a follower", || {
        edge.metric("nearcast_edge_forwards_waiting") >= 1.0
    });
    gate.open();
    for (stream, request) in clients.iter_mut().zip(&requests) {
        let answer = read_answer(&mut BufReader::new(stream), request.starts_with("HEAD"))
            .expect("an answer");
        assert_eq!(
            (answer.status, answer.interim.len()),
            (200, 0),
            "{request}: {answer:?}"
        );
    }
    let followed = read_answer(&mut BufReader::new(follower), false).expect("an answer");
    assert!(
        followed.cache().contains("collapsed") && followed.interim.is_empty(),
        "{followed:?}"
    );
    assert_eq!(origin.count("/shared"), 1);
}

#[test]
fn interim_responses_are_bounded_and_only_for_those_who_know_them() {
    const MANY: &str = concat!(
        "HTTP/1.1 103 Early Hints\r\nLink: </1>\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </2>\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 104 Upload Resumption Supported\r\n\r\n",
        "HTTP/1.1 102 A\r\n\r\nHTTP/1.1 102 B\r\n\r\nHTTP/1.1 102 C\r\n\r\nHTTP/1.1 102 D\r\n\r\n",
        "HTTP/1.1 102 E\r\n\r\nHTTP/1.1 102 F\r\n\r\nHTTP/1.1 102 G\r\n\r\n",
    );
    let origin = Origin::start(|_| Reply {
        interim: MANY,
        ..Reply::ok("final", "max-age=0").field("ETag", "\"e\"")
    });
    let edge = Plan::new(&origin).start();
    let table = [
        (request("GET", "/a", "Connection: close\r\n"), 8),
        // Also where something stored is validated.
        (request("GET", "/a", "Connection: close\r\n"), 8),
        (
            request("GET", "/b", "Connection: close\r\nIf-None-Match: \"e\"\r\n"),
            8,
        ),
        ("GET /c HTTP/1.0\r\nHost: www.test\r\n\r\n".to_owned(), 0),
        // By way of hyper.
        (
            request("GET", "/d", "Connection: close\r\nContent-Length: 0\r\n"),
            0,
        ),
    ];
    for (request, count) in table {
        let answer = edge.raw(request.as_bytes());
        assert_eq!(answer.interim.len(), count, "{request}: {answer:?}");
        if count > 0 {
            let statuses: Vec<u16> = answer
                .interim
                .iter()
                .map(|interim| interim.status)
                .collect();
            assert_eq!(statuses, [103, 103, 102, 104, 102, 102, 102, 102]);
            assert_eq!(
                (
                    answer.interim[0].field("link"),
                    answer.interim[1].field("link")
                ),
                ("</1>", "</2>")
            );
        }
    }
}
