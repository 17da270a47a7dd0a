//! What a client can do wrong, and where it ends.

mod lab;

use std::io::{BufReader, Read, Write};
use std::time::Duration;

use lab::{Origin, Plan, Reply, read_answer};

#[test]
fn requests_that_break_the_protocol_get_the_standards_answer() {
    let origin = Origin::start(|seen| Reply::ok(seen.method.clone(), "max-age=60"));
    let edge = Plan::new(&origin).start();
    let long = "x".repeat(70_000);
    let many = "A: b\r\n".repeat(200);
    let table: Vec<(String, u16)> = vec![
        ("GET / HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 200),
        ("GET http://www.test/ HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n".into(), 200),
        ("GET HTTP://WWW.test:80?a HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 200),
        ("GET https://www.test/ HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 200),
        ("GET //x HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 200),
        ("OPTIONS * HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 200),
        ("GET / HTTP/1.0\r\nHost: www.test\r\n\r\n".into(), 200),
        ("GET * HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 400),
        ("GET www.test HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 400),
        ("GET www.test:80 HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 400),
        ("GET x HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 400),
        ("GET ?x HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 400),
        ("GET /x#y HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 400),
        ("GET /caf\u{e9} HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 400),
        ("GET http://www.test/x#y HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 400),
        ("GET ftp://www.test/x HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 400),
        ("GET http:///x HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 400),
        ("GET http://user@www.test/x HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 400),
        ("GET http://www.test/ HTTP/1.1\r\n\r\n".into(), 400),
        ("GET http://www.test/ HTTP/1.1\r\nHost: a b\r\n\r\n".into(), 400),
        ("POST / HTTP/1.1\r\nHost: www.test\r\nContent-Length: 9999999999\r\n\r\n".into(), 413),
        (format!("POST / HTTP/1.1\r\nHost: www.test\r\nContent-Length: {}\r\n\r\n", "9".repeat(40)), 413),
        ("POST / HTTP/1.1\r\nHost: www.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".into(), 501),
        (format!("GET /{long} HTTP/1.1\r\nHost: www.test\r\n\r\n"), 414),
        ("GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: www.test\r\nHost: www.test\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: www.test/path\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: www test\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n".into(), 421),
        ("POST / HTTP/1.1\r\nHost: www.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), 400),
        ("POST / HTTP/1.1\r\nHost: www.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n".into(), 400),
        ("POST / HTTP/1.1\r\nHost: www.test\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc".into(), 400),
        ("POST / HTTP/1.1\r\nHost: www.test\r\nContent-Length: +3\r\n\r\nabc".into(), 400),
        ("POST / HTTP/1.1\r\nHost: www.test\r\nTransfer-Encoding: gzip\r\n\r\nabc".into(), 400),
        ("POST / HTTP/1.1\r\nHost: www.test\r\nTransfer-Encoding: chunked, gzip\r\n\r\nabc".into(), 400),
        ("POST / HTTP/1.1\r\nHost: www.test\r\nTransfer-Encoding: chunked,\r\n\r\n0\r\n\r\n".into(), 400),
        ("POST / HTTP/1.1\r\nHost: www.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n".into(), 400),
        ("POST / HTTP/1.0\r\nHost: www.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), 400),
        ("POST / HTTP/1.1\r\nHost: www.test\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost : www.test\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: www.test\r\nA: b\r\n c\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: www.test\r\nA: b\rc\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: www.test\r\nA: b\0c\r\n\r\n".into(), 400),
        ("GET / HTTP/1.1\nHost: www.test\n\n".into(), 400),
        ("GET / HTTP/1.1\r\nHost: www.test\r\nA: b\nB: c\r\n\r\n".into(), 400),
        (format!("GET / HTTP/1.1\r\nHost: www.test\r\nA: {long}\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: www.test\r\n{many}\r\n"), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: www.test\r\n\r\n", &long[..20_000]), 414),
        ("TRACE / HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 501),
        ("CONNECT www.test:80 HTTP/1.1\r\nHost: www.test\r\n\r\n".into(), 501),
        ("GET / HTTP/1.1\r\nHost: www.test\r\nCDN-Loop: other, nearcast-cdn.test; v=1\r\n\r\n".into(), 508),
        ("GET / HTTP/1.1\r\nHost: www.test\r\nCDN-Loop: nearcast-cdn.testing\r\n\r\n".into(), 200),
    ];
    for (request, status) in table {
        // The same as the first request of a connection, and behind one that hyper reads.
        for before in [
            "",
            "POST / HTTP/1.1\r\nHost: www.test\r\nContent-Length: 3\r\n\r\nabc",
        ] {
            let shown = &request[..request.floor_char_boundary(120)];
            let mut stream = edge.connect();
            stream
                .write_all(format!("{before}{request}").as_bytes())
                .expect("sent");
            let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
            if !before.is_empty() {
                assert_eq!(
                    read_answer(&mut reader, false)
                        .expect("the one before")
                        .status,
                    200
                );
            }
            let answer = read_answer(&mut reader, false)
                .unwrap_or_else(|error| panic!("{shown:?}: {error}"));
            assert_eq!(answer.status, status, "{shown:?}");
            if status < 400 {
                continue;
            }
            let error = match status {
                421 => "destination_not_found",
                501 if answer.text().contains("method") => "http_request_denied",
                508 => "proxy_loop_detected",
                _ => "http_request_error",
            };
            assert_eq!(answer.error(), format!("ams-1; error={error}"), "{shown:?}");
            assert_eq!(
                answer.field("content-type"),
                "text/plain; charset=utf-8",
                "{shown:?}"
            );
            assert!(
                answer.whole && answer.text().trim_end().len() > 10,
                "{shown:?}: {answer:?}"
            );
            // The connection ends, or goes on with the next request.
            if answer.field("connection") != "close" {
                stream
                    .write_all(b"GET / HTTP/1.1\r\nHost: www.test\r\n\r\n")
                    .expect("sent");
                assert_eq!(
                    read_answer(&mut reader, false).map_or(0, |next| next.status),
                    200,
                    "{shown:?}: {answer:?}"
                );
            }
        }
    }
    let refused =
        "nearcast_edge_requests_total{cache_status=\"local\",site=\"-\",status_class=\"4xx\"}";
    assert!(edge.metric(refused) > 50.0, "what is refused counts");
}

#[test]
fn a_head_that_does_not_come_in_time_is_answered() {
    let origin = Origin::start(|seen| Reply::ok(seen.method.clone(), "max-age=60"));
    let edge = Plan::new(&origin).start();
    let before = "POST / HTTP/1.1\r\nHost: www.test\r\nContent-Length: 3\r\n\r\nabc";
    let mut waiting: Vec<_> = ["", before]
        .map(|before| {
            let mut stream = edge.connect();
            stream
                .write_all(format!("{before}GET / HTTP/1.1\r\nHost: www").as_bytes())
                .expect("sent");
            let mut reader = BufReader::new(stream);
            if !before.is_empty() {
                assert_eq!(
                    read_answer(&mut reader, false)
                        .expect("the one before")
                        .status,
                    200
                );
            }
            reader
        })
        .into();
    // Who has not begun a request gets no answer to it.
    let mut idle = edge.connect();
    for reader in &mut waiting {
        let answer = read_answer(reader, false).expect("an answer");
        assert_eq!(
            (answer.status, answer.field("connection")),
            (408, "close"),
            "{answer:?}"
        );
        assert_eq!(answer.error(), "ams-1; error=http_request_error");
    }
    assert_eq!(idle.read(&mut [0]).expect("the end"), 0);
}

#[test]
fn the_origin_sees_who_came_before_and_nothing_that_poisons() {
    let origin = Origin::start(|_| {
        Reply::ok("x", "max-age=60")
            .field("Connection", "X-Hop")
            .field("X-Hop", "1")
            .field("Keep-Alive", "timeout=5")
    });
    let edge = Plan::new(&origin).start();
    let fields = [
        ("X-Forwarded-Host", "evil"),
        ("CDN-Loop", "other"),
        ("Connection", "x-mine"),
        ("X-Mine", "1"),
        ("Range", "bytes=0-"),
        ("TE", "gzip"),
    ];
    let answer = edge.ask("GET", "/", &fields);
    assert!(
        answer.field("x-hop").is_empty() && answer.field("keep-alive").is_empty(),
        "{answer:?}"
    );
    let seen = &origin.seen()[0].fields;
    for absent in ["x-forwarded-host", "x-mine", "range", "te", "nearcast-peer"] {
        assert!(!seen.contains_key(absent), "{absent}: {seen:?}");
    }
    assert_eq!(
        (seen["host"].as_str(), seen["via"].as_str()),
        ("www.test", "1.1 ams-1")
    );
    assert!(seen["cdn-loop"].ends_with("nearcast-cdn.test"), "{seen:?}");
    let stored = edge.get("/");
    assert!(stored.is_hit() && stored.field("x-hop").is_empty());
}

#[test]
fn several_requests_on_one_connection_and_bodies_nobody_wanted() {
    let origin = Origin::start(|seen| Reply::ok(seen.target.clone(), "max-age=60"));
    let edge = Plan::new(&origin).start();
    let mut stream = edge.connect();
    stream
        .write_all(
            b"GET /a HTTP/1.1\r\nHost: www.test\r\n\r\nGET /b HTTP/1.1\r\nHost: www.test\r\n\r\n",
        )
        .expect("sent");
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    assert_eq!(read_answer(&mut reader, false).expect("first").text(), "/a");
    assert_eq!(
        read_answer(&mut reader, false).expect("second").text(),
        "/b"
    );
    // The body of a refused request must not be taken for a request.
    let inner = "GET /smuggled HTTP/1.1\r\nHost: www.test\r\n\r\n";
    let outer = format!(
        "POST /c HTTP/1.1\r\nHost: elsewhere.example\r\nContent-Length: {}\r\n\r\n{inner}",
        inner.len()
    );
    stream.write_all(outer.as_bytes()).expect("sent");
    assert_eq!(read_answer(&mut reader, false).expect("third").status, 421);
    let mut rest = Vec::new();
    stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("set");
    let _ = reader.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    assert_eq!(origin.count("/smuggled"), 0);
}

#[test]
fn the_body_of_a_request_for_something_stored_is_no_request() {
    let origin = Origin::start(|seen| Reply::ok(seen.target.clone(), "max-age=60"));
    let edge = Plan::new(&origin).start();
    edge.get("/a");
    let mut stream = edge.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    let inner = "GET /smuggled HTTP/1.1\r\nHost: www.test\r\n\r\n";
    for method in ["GET", "HEAD"] {
        let outer = format!(
            "{method} /a HTTP/1.1\r\nHost: www.test\r\nContent-Length: {}\r\n\r\n{inner}",
            inner.len()
        );
        stream.write_all(outer.as_bytes()).expect("sent");
        let answer = read_answer(&mut reader, method == "HEAD").expect("an answer");
        assert_eq!(
            (answer.status, answer.field("content-length")),
            (200, "2"),
            "{method}: {answer:?}"
        );
    }
    stream
        .write_all(b"GET /b HTTP/1.1\r\nHost: www.test\r\n\r\n")
        .expect("sent");
    assert_eq!(
        read_answer(&mut reader, false)
            .expect("the next one")
            .text(),
        "/b"
    );
    assert_eq!(origin.count("/smuggled"), 0);
}

#[test]
fn a_client_that_waits_for_leave_to_send_its_body_gets_it() {
    let origin = Origin::start(|seen| Reply::ok(seen.body.clone(), "max-age=60"));
    let edge = Plan::new(&origin).start();
    let mut stream = edge.connect();
    stream.write_all(b"POST /a HTTP/1.1\r\nHost: www.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").expect("sent");
    let mut reader = BufReader::new(stream.try_clone().expect("a handle"));
    assert_eq!(read_answer(&mut reader, true).expect("leave").status, 100);
    stream.write_all(b"data").expect("sent");
    assert_eq!(
        read_answer(&mut reader, false).expect("an answer").text(),
        "data"
    );
    assert!(
        !origin.seen()[0].fields.contains_key("expect"),
        "what was met here is not asked for again"
    );
}

#[test]
fn a_request_with_a_transfer_coding_that_is_not_understood_goes_nowhere() {
    let origin = Origin::start(|seen| Reply::ok(seen.body.clone(), ""));
    let edge = Plan::new(&origin).start();
    let table = [
        ("HTTP/1.1", "Transfer-Encoding: gzip, chunked", 501),
        (
            "HTTP/1.1",
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
            501,
        ),
        ("HTTP/1.1", "transfer-ENCODING: Identity, CHUNKED", 501),
        ("HTTP/1.1", "Transfer-Encoding: x;a=\"b\", chunked", 501),
        ("HTTP/1.1", "Transfer-Encoding: chunked, chunked", 400),
        (
            "HTTP/1.1",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            400,
        ),
        ("HTTP/1.1", "Transfer-Encoding: chunked, gzip, chunked", 400),
        ("HTTP/1.1", "Transfer-Encoding: identity", 400),
        ("HTTP/1.1", "Transfer-Encoding: xchunked", 400),
        ("HTTP/1.1", "Transfer-Encoding: chunked;a=b", 400),
        ("HTTP/1.1", "Transfer-Encoding:", 400),
        ("HTTP/1.0", "Transfer-Encoding: gzip, chunked", 400),
        ("HTTP/1.1", "Transfer-Encoding: Chunked", 200),
        ("HTTP/1.1", "Transfer-Encoding: ,chunked", 200),
    ];
    for method in ["POST", "GET", "OPTIONS"] {
        for path in ["/a", "/.nearcast/health"] {
            for (version, field, status) in table {
                let mut stream = edge.connect();
                let head =
                    format!("{method} {path} {version}\r\nHost: www.test\r\n{field}\r\n\r\n");
                stream
                    .write_all(format!("{head}3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: www.test\r\n\r\n").as_bytes())
                    .expect("sent");
                let mut reader = BufReader::new(stream);
                let answer = read_answer(&mut reader, false).expect("an answer");
                assert_eq!(answer.status, status, "{method} {path} {version} {field}");
                let mut rest = Vec::new();
                reader.read_to_end(&mut rest).expect("the connection ends");
                assert!(
                    rest.is_empty(),
                    "{method} {field}: {}",
                    String::from_utf8_lossy(&rest)
                );
            }
        }
    }
    assert_eq!((origin.seen().len(), origin.count("/smuggled")), (2 * 3, 0));
}

#[test]
fn an_upload_that_is_too_large_is_refused_as_soon_as_that_is_known() {
    let origin = Origin::start(|seen| Reply::ok(seen.body.clone(), ""));
    let mut plan = Plan::new(&origin);
    plan.origin_policy.limits.request_bytes_max = Some(nearcast_fleet::units::Bytes(4));
    let edge = plan.start();
    let table = [
        (
            "PUT /fits HTTP/1.1\r\nHost: www.test\r\nContent-Length: 4\r\n\r\nabcd",
            200,
        ),
        (
            "PUT /fits HTTP/1.1\r\nHost: www.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
            200,
        ),
        // Its body is not waited for.
        (
            "PUT /long HTTP/1.1\r\nHost: www.test\r\nContent-Length: 5\r\n\r\n",
            413,
        ),
        (
            "POST /long HTTP/1.1\r\nHost: www.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
            413,
        ),
        (
            "GET /long HTTP/1.1\r\nHost: www.test\r\nContent-Length: 5\r\n\r\n",
            413,
        ),
        (
            "POST /chunks HTTP/1.1\r\nHost: www.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n1\r\ne\r\n",
            413,
        ),
    ];
    for (request, status) in table {
        let answer = edge.raw(request.as_bytes());
        assert_eq!(answer.status, status, "{request:?}");
        if status == 413 {
            assert_eq!(
                answer.error(),
                "ams-1; error=http_request_error",
                "{request:?}"
            );
            assert!(
                answer.text().contains("larger than this site takes"),
                "{}",
                answer.text()
            );
        }
    }
    assert_eq!((origin.count("/fits"), origin.count("/long")), (2, 0));
}

#[test]
fn health_is_answered_for_any_host_and_counts_as_local() {
    let origin = Origin::start(|_| Reply::ok("x", ""));
    let edge = Plan::new(&origin).start();
    let health = edge.ask("GET", "/.nearcast/health", &[("Host", "127.0.0.1:8080")]);
    assert_eq!((health.status, health.text().as_str()), (200, "ok\n"));
    assert!(edge.metrics().contains(
        "nearcast_edge_requests_total{cache_status=\"local\",site=\"-\",status_class=\"2xx\"} 1"
    ));
}

#[test]
fn a_port_in_use_is_named() {
    let origin = Origin::start(|_| Reply::ok("x", ""));
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = held.local_addr().expect("bound");
    let failure = Plan {
        listen: Some(address),
        ..Plan::new(&origin)
    }
    .try_start()
    .err()
    .expect("it cannot start");
    assert_eq!(failure.kind.exit_code(), 69);
    assert!(failure.message.contains(&address.to_string()), "{failure}");
    let running = Plan::new(&origin).start();
    let second = Plan {
        listen: Some(running.address),
        ..Plan::new(&origin)
    }
    .try_start()
    .err()
    .expect("also when an edge has it");
    assert_eq!(second.kind.exit_code(), 69, "{second}");
}

#[test]
fn a_node_that_is_no_edge_is_named() {
    let origin = Origin::start(|_| Reply::ok("x", ""));
    let mut plan = Plan::new(&origin);
    plan.hosts = vec!["www.test".into()];
    let (trigger, shutdown) = nearcast_net::shutdown::channel();
    drop(trigger);
    let failure = plan.run_as("nobody", shutdown).expect_err("no such node");
    assert_eq!(failure.kind.exit_code(), 64);
    assert!(
        failure.message.contains("nobody") && failure.message.contains("ams-1"),
        "{failure}"
    );
}
