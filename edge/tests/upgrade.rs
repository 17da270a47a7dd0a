//! WebSockets through an edge: bytes both ways, and what is refused.

mod lab;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use lab::{Edge, Gate, Origin, Plan, Reply, wait_for};

const ASK: &str = "GET /chat?a=b HTTP/1.1\r\nHost: www.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An origin that runs `script` on each connection behind the head of a request, whose lines it is
/// given in lower case.
fn origin(script: impl Fn(Vec<String>, TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let script = script.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::with_capacity(1, &stream);
                let mut lines = Vec::new();
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 {
                        return;
                    }
                    if line == "\r\n" {
                        break;
                    }
                    lines.push(line.trim_end().to_lowercase());
                }
                script(lines, stream.try_clone().expect("a socket"));
            });
        }
    });
    address
}

/// Agrees, sends back what comes, and says goodbye when the other side has ended.
fn echo(lines: Vec<String>, mut stream: TcpStream) {
    assert!(
        lines.contains(&"upgrade: websocket".to_owned())
            && lines.contains(&"connection: upgrade".to_owned()),
        "{lines:?}"
    );
    assert!(
        lines.iter().any(|line| line == "sec-websocket-version: 13"),
        "{lines:?}"
    );
    stream.write_all(AGREE.as_bytes()).expect("sent");
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => stream.write_all(&buffer[..length]).expect("sent"),
            Err(_) => return,
        }
    }
    let _ = stream.write_all(b"bye");
}

fn edge_of(address: SocketAddr, change: impl FnOnce(&mut Plan)) -> Edge {
    let unused = Origin::start(|_| Reply::ok("", ""));
    let mut plan = Plan::new(&unused);
    plan.origin = format!("http://{address}");
    change(&mut plan);
    plan.start()
}

fn read_head(stream: &mut TcpStream) -> String {
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("set");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream
            .read_exact(&mut byte)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&head)));
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).to_lowercase()
}

fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut read = vec![0; bytes.len()];
    stream.read_exact(&mut read).expect("bytes");
    assert_eq!(read, bytes);
}

/// Sum of the series of a metric that have all these labels.
fn series(edge: &Edge, name: &str, labels: &[&str]) -> f64 {
    let metrics = edge.metrics();
    let of_name = metrics
        .lines()
        .filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
    of_name
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// A request for a WebSocket to which the edge answers 101.
fn open(edge: &Edge) -> TcpStream {
    let mut stream = edge.connect();
    stream.write_all(ASK.as_bytes()).expect("sent");
    let head = read_head(&mut stream);
    assert!(head.starts_with("http/1.1 101"), "{head}");
    stream
}

#[test]
fn bytes_go_both_ways_and_each_side_ends_for_itself() {
    let edge = edge_of(origin(echo), |_| {});
    let mut stream = edge.connect();
    // What comes at once with the request waits for the origin's word.
    stream
        .write_all(format!("{ASK}early").as_bytes())
        .expect("sent");
    let head = read_head(&mut stream);
    for line in [
        "http/1.1 101",
        "\r\nconnection: upgrade\r\n",
        "\r\nupgrade: websocket\r\n",
        "sec-websocket-accept: s3pp",
        "fwd=bypass",
    ] {
        assert!(head.contains(line), "{line}: {head}");
    }
    assert!(
        !head.contains("content-length") && !head.contains("transfer-encoding"),
        "{head}"
    );
    expect(&mut stream, b"early");
    stream.write_all(b"\x81\x85hello").expect("sent");
    expect(&mut stream, b"\x81\x85hello");
    assert_eq!(edge.metric("nearcast_edge_upgrades_open{"), 1.0);
    wait_for("the bytes to count while it is open", || {
        edge.metric("nearcast_edge_response_bytes_total") == 12.0
    });
    stream.shutdown(Shutdown::Write).expect("ended");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("an orderly end");
    assert_eq!(rest, b"bye", "the other side may still send");
    wait_for("the tunnel to close", || {
        edge.metric("nearcast_edge_upgrades_open{") == 0.0
    });
    assert_eq!(
        series(
            &edge,
            "nearcast_edge_upgrades_total",
            &["site=\"www\"", "result=\"begun\""]
        ),
        1.0
    );
    assert_eq!(
        series(
            &edge,
            "nearcast_edge_requests_total",
            &["cache_status=\"bypass\"", "status_class=\"1xx\""]
        ),
        1.0
    );
}

#[test]
fn much_goes_through_in_both_directions_at_once() {
    let edge = edge_of(origin(echo), |_| {});
    let mut stream = open(&edge);
    let sent: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut writer = stream.try_clone().expect("a socket");
    let expected = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).expect("sent");
        writer.shutdown(Shutdown::Write).expect("ended");
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("all");
    writing.join().expect("no panic");
    assert!(
        received
            .strip_suffix(b"bye")
            .is_some_and(|echoed| echoed == expected),
        "{} bytes",
        received.len()
    );
}

#[test]
fn nothing_goes_on_before_the_origin_agrees() {
    let gate = Gate::default();
    let (tell, told) = mpsc::channel();
    let held = gate.clone();
    let script = move |_: Vec<String>, mut stream: TcpStream| {
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .expect("set");
        let early = stream.read(&mut [0; 16]);
        tell.send(early.is_err()).expect("the test waits");
        held.wait();
        stream
            .write_all(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
            .expect("sent");
        tell.send(!matches!(stream.read(&mut [0; 16]), Ok(length) if length > 0))
            .expect("the test waits");
    };
    let edge = edge_of(origin(script), |_| {});
    let mut stream = edge.connect();
    // To an origin that does not agree, this would be a request that the edge has never seen.
    stream
        .write_all(format!("{ASK}GET /x HTTP/1.1\r\nHost: other.test\r\n\r\n").as_bytes())
        .expect("sent");
    assert!(
        told.recv().expect("the origin is asked"),
        "the origin got nothing behind the head"
    );
    gate.open();
    let head = read_head(&mut stream);
    assert!(
        head.starts_with("http/1.1 403") && head.contains("fwd=bypass"),
        "{head}"
    );
    expect(&mut stream, b"no");
    assert!(told.recv().expect("it ends"), "nor later");
    let head = read_head(&mut stream);
    assert!(
        head.starts_with("http/1.1 421"),
        "it is a request as any other: {head}"
    );
}

#[test]
fn the_end_of_either_side_ends_the_other() {
    let (tell, told) = mpsc::channel();
    let script = move |lines: Vec<String>, mut stream: TcpStream| {
        stream.write_all(AGREE.as_bytes()).expect("sent");
        if lines[0].contains("/chat") {
            let ended = stream.read_to_end(&mut Vec::new());
            tell.send(ended.map_or(0, |length| length))
                .expect("the test waits");
        }
    };
    let edge = edge_of(origin(script), |_| {});
    drop(open(&edge));
    assert_eq!(
        told.recv_timeout(Duration::from_secs(30))
            .expect("the origin sees the end"),
        0
    );
    let mut stream = edge.connect();
    stream
        .write_all(ASK.replace("/chat", "/closing").as_bytes())
        .expect("sent");
    assert!(read_head(&mut stream).starts_with("http/1.1 101"));
    assert_eq!(
        stream.read(&mut [0]).expect("an orderly end"),
        0,
        "the origin has closed"
    );
    drop(stream);
    wait_for("both to close", || {
        edge.metric("nearcast_edge_upgrades_open{") == 0.0
    });
}

#[test]
fn they_are_bounded_in_number_and_idle_time() {
    let edge = edge_of(origin(echo), |plan| {
        plan.origin_policy.limits.upgrades_max = 1;
        plan.origin_policy.limits.upgrade_idle = Duration::from_secs(1);
    });
    let mut first = open(&edge);
    let mut second = edge.connect();
    second.write_all(ASK.as_bytes()).expect("sent");
    let head = read_head(&mut second);
    assert!(
        head.starts_with("http/1.1 503") && head.contains("error=connection_limit_reached"),
        "{head}"
    );
    assert_eq!(
        series(
            &edge,
            "nearcast_edge_upgrades_total",
            &["site=\"www\"", "result=\"refused\""]
        ),
        1.0
    );
    let mut rest = Vec::new();
    let _ = first.read_to_end(&mut rest);
    assert!(rest.is_empty(), "an idle one is closed");
    drop(first);
    wait_for("room for the next one", || {
        edge.metric("nearcast_edge_upgrades_open{") == 0.0
    });
    open(&edge);
}

#[test]
fn what_is_no_websocket_or_not_allowed_is_a_plain_request() {
    let plain = |lines: Vec<String>, mut stream: TcpStream| {
        let has_upgrade = lines
            .iter()
            .any(|line| line.starts_with("upgrade:") || line.starts_with("http2-settings:"));
        let body = if has_upgrade { "passed" } else { "plain!" };
        let _ = stream.write_all(
            format!("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n{body}")
                .as_bytes(),
        );
    };
    let address = origin(plain);
    let h2c = "GET /a HTTP/1.1\r\nHost: www.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let without_connection = "GET /b HTTP/1.1\r\nHost: www.test\r\nUpgrade: websocket\r\n\r\n";
    for (request, upgrades_max) in [(h2c, 8), (without_connection, 8), (ASK, 0)] {
        let edge = edge_of(address, |plan| {
            plan.origin_policy.limits.upgrades_max = upgrades_max
        });
        let mut stream = edge.connect();
        stream.write_all(request.as_bytes()).expect("sent");
        let head = read_head(&mut stream);
        assert!(head.starts_with("http/1.1 200"), "{request}: {head}");
        expect(&mut stream, b"plain!");
    }
}

#[test]
fn a_connection_that_the_library_reads_can_become_one() {
    let script = |lines: Vec<String>, mut stream: TcpStream| {
        if lines[0].starts_with("post") {
            let _ = stream.read_exact(&mut [0; 3]);
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        } else {
            echo(lines, stream);
        }
    };
    let edge = edge_of(origin(script), |_| {});
    let mut stream = edge.connect();
    let post = "POST /post HTTP/1.1\r\nHost: www.test\r\nContent-Length: 3\r\n\r\nabc";
    stream
        .write_all(format!("{post}{post}{ASK}early").as_bytes())
        .expect("sent");
    for _ in 0..2 {
        assert!(read_head(&mut stream).starts_with("http/1.1 200"));
        expect(&mut stream, b"ok");
    }
    assert!(read_head(&mut stream).starts_with("http/1.1 101"));
    expect(&mut stream, b"early");
    stream.write_all(b"more").expect("sent");
    expect(&mut stream, b"more");
}

#[test]
fn what_an_origin_answers_instead_says_why_it_is_not_stored() {
    let script = |lines: Vec<String>, mut stream: TcpStream| {
        let answer = if lines[0].contains("/other") {
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno"
        } else {
            "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\nContent-Length: 2\r\n\r\nno"
        };
        let _ = stream.write_all(answer.as_bytes());
    };
    let edge = edge_of(origin(script), |_| {});
    for (path, status, names_protocol) in [("/chat", "426", true), ("/other", "200", false)] {
        let mut stream = edge.connect();
        stream
            .write_all(ASK.replace("/chat", path).as_bytes())
            .expect("sent");
        let head = read_head(&mut stream);
        expect(&mut stream, b"no");
        assert!(
            head.starts_with(&format!("http/1.1 {status}"))
                && head.contains("; detail=upgrade\r\n"),
            "{head}"
        );
        assert_eq!(
            head.contains("upgrade: websocket\r\n"),
            names_protocol,
            "{head}"
        );
    }
    assert_eq!(
        series(
            &edge,
            "nearcast_edge_not_stored_total",
            &["cause=\"upgrade\"", "site=\"www\""]
        ),
        2.0
    );
}

#[test]
fn an_origin_that_switches_to_something_else_is_an_error() {
    let script = |_: Vec<String>, mut stream: TcpStream| {
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        );
        let _ = stream.read_to_end(&mut Vec::new());
    };
    let edge = edge_of(origin(script), |_| {});
    let mut stream = edge.connect();
    stream.write_all(ASK.as_bytes()).expect("sent");
    let head = read_head(&mut stream);
    assert!(
        head.starts_with("http/1.1 502") && head.contains("proxy-status"),
        "{head}"
    );
}

#[test]
fn an_open_one_may_go_on_until_the_drain_has_ended() {
    let edge = edge_of(origin(echo), |_| {});
    let mut stream = open(&edge);
    edge.begin_stop();
    wait_for("the listener to close", || {
        TcpStream::connect(edge.address).is_err()
    });
    stream.write_all(b"still here").expect("sent");
    expect(&mut stream, b"still here");
    stream.shutdown(Shutdown::Write).expect("ended");
    expect(&mut stream, b"bye");
    edge.stop().expect("with its last connection");
}
