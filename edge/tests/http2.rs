//! HTTP/2 with prior knowledge: what clients of the library get, and what frames made by hand meet.

mod lab;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lab::{Edge, Origin, Plan, Reply, pattern};

type Sender = http2::SendRequest<Full<Bytes>>;

/// A client with one connection.
async fn connect(address: SocketAddr) -> Sender {
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("the edge listens");
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .expect("the edge speaks HTTP/2");
    tokio::spawn(connection);
    sender
}

fn request(method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://www.test{path}"))
        .version(Version::HTTP_2);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request
        .body(Full::new(Bytes::copy_from_slice(body)))
        .expect("a request")
}

async fn ask(sender: &mut Sender, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let response = sender.send_request(request).await.expect("an answer");
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    Response::from_parts(head, body)
}

fn field<'a>(response: &'a Response<Bytes>, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .map_or("", |value| value.to_str().expect("text"))
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async {
            tokio::time::timeout(Duration::from_secs(60), test)
                .await
                .expect("in time");
        });
}

#[test]
fn requests_are_answered_as_in_http_1_1() {
    let origin = Origin::start(|seen| match seen.target.as_str() {
        "/none" => Reply {
            status: 404,
            ..Reply::ok("none", "max-age=60")
        },
        "/empty" => Reply {
            status: 204,
            ..Reply::ok("", "max-age=60")
        },
        "/echo" => Reply::ok(seen.body.clone(), "no-store"),
        "/large" => Reply::ok(pattern(3_000_000), "max-age=60"),
        _ => Reply::ok(pattern(100_000), "max-age=60").field("ETag", "\"v1\""),
    });
    let edge = Plan::new(&origin).start();
    run(async {
        let mut client = connect(edge.address).await;
        let get = |path: &str, fields: &[(&str, &str)]| request("GET", path, fields, b"");
        let first = ask(&mut client, get("/a", &[])).await;
        assert_eq!(
            (first.status().as_u16(), first.body().to_vec()),
            (200, pattern(100_000))
        );
        assert!(field(&first, "cache-status").contains("fwd=uri-miss"));
        assert!(!field(&first, "date").is_empty());
        for count in 0..3 {
            let hit = ask(&mut client, get("/a", &[])).await;
            assert!(field(&hit, "cache-status").contains("; hit"), "{hit:?}");
            assert_eq!(hit.headers().get_all("age").iter().count(), 1, "{count}");
            assert_eq!(
                (field(&hit, "content-length"), hit.body().len()),
                ("100000", 100_000)
            );
        }
        let head = ask(&mut client, request("HEAD", "/a", &[], b"")).await;
        assert_eq!(
            (field(&head, "content-length"), head.body().len()),
            ("100000", 0)
        );
        let part = ask(&mut client, get("/a", &[("range", "bytes=10-19")])).await;
        assert_eq!(
            (part.status().as_u16(), &part.body()[..]),
            (206, &pattern(100_000)[10..20])
        );
        let same = ask(&mut client, get("/a", &[("if-none-match", "\"v1\"")])).await;
        assert_eq!((same.status().as_u16(), same.body().len()), (304, 0));
        for _ in 0..2 {
            let empty = ask(&mut client, get("/empty", &[])).await;
            assert_eq!(
                (empty.status().as_u16(), field(&empty, "content-length")),
                (204, "")
            );
            let none = ask(&mut client, get("/none", &[])).await;
            assert_eq!(
                (none.status().as_u16(), &none.body()[..]),
                (404, &b"none"[..])
            );
            let large = ask(&mut client, get("/large", &[])).await;
            assert!(large.body()[..] == pattern(3_000_000)[..]);
        }
        let upload = pattern(2_000_000);
        let echoed = ask(&mut client, request("POST", "/echo", &[], &upload)).await;
        assert!(echoed.body()[..] == upload[..], "{}", echoed.body().len());
        let other = Request::get("http://elsewhere.example/").body(Full::default());
        let other = ask(&mut client, other.expect("a request")).await;
        assert_eq!(other.status().as_u16(), 421);
        let trace = ask(&mut client, request("TRACE", "/", &[], b"")).await;
        assert_eq!(trace.status().as_u16(), 501);
        assert!(
            field(&trace, "proxy-status").contains("http_request_denied"),
            "{trace:?}"
        );
    });
    assert_eq!(origin.count("/a"), 1);
}

#[test]
fn many_streams_share_a_connection_and_a_forward_request() {
    let origin = Origin::start(|seen| Reply::ok(pattern(50_000 + seen.target.len()), "max-age=60"));
    let edge = Plan::new(&origin).start();
    run(async {
        let client = connect(edge.address).await;
        for _ in 0..3 {
            let answers = (0..100).map(|number| {
                let mut client = client.clone();
                tokio::spawn(async move {
                    let urgency = format!("u={}, i", number % 8);
                    let fields = [("priority", urgency.as_str())];
                    ask(
                        &mut client,
                        request("GET", &format!("/{}", number % 10), &fields, b""),
                    )
                    .await
                })
            });
            for answer in answers.collect::<Vec<_>>() {
                let answer = answer.await.expect("no panic");
                assert!(answer.body()[..] == pattern(50_002)[..], "{answer:?}");
            }
        }
    });
    for number in 0..10 {
        assert_eq!(origin.count(&format!("/{number}")), 1);
    }
}

#[test]
fn malformed_requests_never_reach_the_origin() {
    let origin = Origin::start(|_| Reply::ok("x", "no-store"));
    let edge = Plan::new(&origin).start();
    let long = "x".repeat(63_000);
    run(async {
        let mut client = connect(edge.address).await;
        let many: Vec<(&str, &str)> = vec![("x-y", "z"); 200];
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], u16);
        let table: &[Case<'_>] = &[
            ("GET", &[("host", "www.test")], 200),
            ("GET", &[("host", "elsewhere.example")], 400),
            ("GET", &[("host", "www.test"), ("host", "www.test")], 400),
            ("GET", &[("x-y", " z")], 400),
            ("GET", &[("x-y", "z\t")], 400),
            ("GET", &many, 431),
            ("GET", &[("x-y", &long), ("x-z", &long[..4000])], 431),
        ];
        for (method, fields, status) in table {
            let asked = origin.count("/");
            let answer = ask(&mut client, request(method, "/", fields, b"")).await;
            let reached = origin.count("/") - asked;
            let expected = (*status, usize::from(*status == 200));
            assert_eq!((answer.status().as_u16(), reached), expected, "{answer:?}");
            if *status == 400 {
                assert!(field(&answer, "proxy-status").contains("http_request_error"));
            }
        }
    });
}

#[test]
fn pieces_of_cookies_reach_the_origin_as_one_field() {
    let origin = Origin::start(|seen| {
        Reply::ok(
            seen.fields.get("cookie").cloned().unwrap_or_default(),
            "no-store",
        )
    });
    let edge = Plan::new(&origin).start();
    run(async {
        let mut client = connect(edge.address).await;
        let cookies = [("cookie", "a=b"), ("cookie", "c=d")];
        let answer = ask(&mut client, request("GET", "/", &cookies, b"")).await;
        assert_eq!(&answer.body()[..], b"a=b; c=d");
    });
}

/// A connection on which frames are written by hand.
struct Raw(TcpStream);

/// Kind, flags, stream and payload.
type Frame = (u8, u8, u32, Vec<u8>);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NO_ERROR: u8 = 0;
const PROTOCOL_ERROR: u8 = 1;
const ENHANCE_YOUR_CALM: u8 = 11;

impl Raw {
    fn connect(edge: &Edge) -> Self {
        let stream = edge.connect();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("set");
        Self(stream)
    }

    /// With the preface and these settings.
    fn begin(edge: &Edge, settings: &[u8]) -> Self {
        let mut raw = Self::connect(edge);
        raw.0.write_all(PREFACE).expect("sent");
        raw.send(SETTINGS, 0, 0, settings);
        raw
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        // The edge may have closed the connection: then the answer shows it.
        let _ = self.0.write_all(&frame);
    }

    /// A request whose fields are literals without indexing.
    fn request(&mut self, stream: u32, fields: &[(&str, &str)], flags: u8) {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                assert!(text.len() < 127);
                block.push(text.len() as u8);
                block.extend(text.as_bytes());
            }
        }
        self.send(HEADERS, flags, stream, &block);
    }

    fn get(&mut self, stream: u32, path: &str) {
        let fields = [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "www.test"),
            (":path", path),
        ];
        self.request(stream, &fields, 5);
    }

    /// The next frame; `None` at the end of the connection.
    fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let [l1, l2, l3, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, l1, l2, l3]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        Some((kind, flags, u32::from_be_bytes(stream), payload))
    }

    fn until(&mut self, what: &str, is_it: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self
                .next()
                .unwrap_or_else(|| panic!("the connection ended before {what}"));
            if is_it(&frame) {
                return frame;
            }
        }
    }

    /// The error code of the GOAWAY frame by which the connection ends; `None` if it has none.
    fn ended(&mut self) -> Option<u8> {
        let mut code = None;
        while let Some((kind, _, _, payload)) = self.next() {
            if kind == GOAWAY {
                code = Some(payload[7]);
            }
        }
        code
    }
}

#[test]
fn prior_knowledge_begins_a_connection_and_nothing_else() {
    let origin = Origin::start(|_| Reply::ok("x", "max-age=60"));
    let edge = Plan::new(&origin).start();

    // Whatever pieces the preface comes in.
    let mut raw = Raw::connect(&edge);
    for byte in PREFACE {
        raw.0.write_all(&[*byte]).expect("sent");
    }
    raw.send(SETTINGS, 0, 0, &[]);
    raw.get(1, "/");
    raw.until("a body", |(kind, _, stream, data)| {
        (*kind, *stream, &data[..]) == (DATA, 1, b"x")
    });

    // Another frame than SETTINGS comes first.
    let mut raw = Raw::connect(&edge);
    raw.0.write_all(PREFACE).expect("sent");
    raw.get(1, "/");
    assert_eq!(raw.ended(), Some(PROTOCOL_ERROR));

    // Half of the preface is that of HTTP/1.1 with an odd version.
    let mut raw = Raw::connect(&edge);
    raw.0
        .write_all(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
        .expect("sent");
    assert_eq!(raw.ended(), Some(PROTOCOL_ERROR));

    // Behind a request of HTTP/1.1, and with other fields, it is a request of another version.
    for before in [
        "GET / HTTP/1.1\r\nHost: www.test\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: www.test\r\n\r\nPRI * HTTP/2.0\r\nHost: www.test\r\n\r\n",
        "PRI * HTTP/2.0\r\nHost: www.test\r\n\r\n",
    ] {
        let mut stream = edge.connect();
        stream.write_all(before.as_bytes()).expect("sent");
        let mut answers = String::new();
        stream.read_to_string(&mut answers).expect("it ends");
        assert!(answers.contains("HTTP/1.1 505 "), "{answers}");
    }

    let mut off = Plan::new(&origin);
    off.clients.http2 = false;
    let edge = off.start();
    assert_eq!(edge.raw(PREFACE).status, 505);
}

#[test]
fn too_many_frames_of_a_kind_end_the_connection() {
    let origin = Origin::start(|_| Reply::ok("x", "max-age=60"));
    let edge = Plan::new(&origin).start();
    let table: [(&str, u8, u32, &[u8]); 5] = [
        ("settings", SETTINGS, 0, &[]),
        ("ping", PING, 0, &[0; 8]),
        ("priority", 2, 1, &[0; 5]),
        ("window-update", 8, 0, &[0, 0, 0, 1]),
        ("unknown", 0xbe, 0, &[]),
    ];
    for (reason, kind, stream, payload) in table {
        let mut raw = Raw::begin(&edge, &[]);
        let mut reader = Raw(raw.0.try_clone().expect("a handle"));
        let writer = std::thread::spawn({
            let payload = payload.to_vec();
            move || {
                for _ in 0..3000 {
                    raw.send(kind, 0, stream, &payload);
                }
            }
        });
        assert_eq!(reader.ended(), Some(ENHANCE_YOUR_CALM), "{reason}");
        writer.join().expect("no panic");
        let series = format!("nearcast_edge_http2_closed_total{{reason=\"{reason}\"}}");
        assert_eq!(edge.metric(&series) as u64, 1, "{reason}");
    }
}

#[test]
fn a_connection_that_does_nothing_is_closed() {
    let origin = Origin::start(|_| Reply::ok(pattern(200_000), "max-age=60"));
    let mut plan = Plan::new(&origin);
    plan.clients.head_timeout = Duration::from_millis(700);
    plan.clients.idle_timeout = Duration::from_millis(900);
    plan.clients.write_timeout = Duration::from_millis(800);
    let edge = plan.start();

    // No SETTINGS.
    let mut raw = Raw::connect(&edge);
    raw.0.write_all(PREFACE).expect("sent");
    assert_eq!(raw.ended(), Some(NO_ERROR));
    // Half a frame, and half a header block.
    let mut raw = Raw::begin(&edge, &[]);
    raw.0.write_all(&[0, 0, 8, PING]).expect("sent");
    assert_eq!(raw.ended(), Some(NO_ERROR));
    let mut raw = Raw::begin(&edge, &[]);
    raw.request(1, &[(":method", "GET")], 1);
    assert_eq!(raw.ended(), Some(NO_ERROR));
    // No request.
    let mut raw = Raw::begin(&edge, &[]);
    assert_eq!(raw.ended(), Some(NO_ERROR));
    // A window that stays closed: the stream is reset, and then the connection is idle.
    for settings in [&[0, 4, 0, 0, 0, 0][..], &[0, 4, 0, 0, 0, 1], &[]] {
        let mut raw = Raw::begin(&edge, settings);
        raw.get(1, "/");
        let reset = raw.until("a reset", |(kind, ..)| *kind == RST_STREAM);
        assert_eq!(reset.2, 1);
        assert_eq!(raw.ended(), Some(NO_ERROR));
    }
    for (reason, count) in [("slow", 3), ("idle", 4)] {
        let series = format!("nearcast_edge_http2_closed_total{{reason=\"{reason}\"}}");
        assert_eq!(edge.metric(&series) as u64, count, "{reason}");
    }
}

#[test]
fn urgent_responses_overtake_others() {
    let origin = Origin::start(|_| Reply::ok(pattern(1_000_000), "max-age=60"));
    let edge = Plan::new(&origin).start();
    edge.get("/");
    // A large window for streams and for the connection.
    let mut raw = Raw::begin(&edge, &[0, 4, 0, 0x7f, 0xff, 0xff]);
    raw.send(8, 0, 0, &[0, 0x7f, 0, 0]);
    let order = [(1, "u=7"), (3, "u=3"), (5, "u=0")];
    for (stream, priority) in order {
        let fields = [
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "www.test"),
            (":path", "/"),
            ("priority", priority),
        ];
        raw.request(stream, &fields, 5);
    }
    let mut ended = Vec::new();
    while ended.len() < order.len() {
        let (_, _, stream, _) = raw.until("an end", |(kind, flags, ..)| {
            *kind == DATA && flags & 1 == 1
        });
        ended.push(stream);
    }
    assert_eq!(ended, [5, 3, 1]);
}

#[test]
fn a_node_that_ends_answers_what_is_on_its_way() {
    let gate = lab::Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |_| {
        held.wait();
        Reply::ok("late", "max-age=60")
    });
    let edge = Plan::new(&origin).start();
    let mut raw = Raw::begin(&edge, &[]);
    raw.get(1, "/");
    lab::wait_for("the request", || origin.count("/") == 1);
    edge.begin_stop();
    raw.until("GOAWAY", |(kind, _, _, payload)| {
        *kind == GOAWAY && payload[7] == NO_ERROR
    });
    gate.open();
    raw.until("the answer", |(kind, _, stream, data)| {
        (*kind, *stream, &data[..]) == (DATA, 1, b"late")
    });
    edge.stop().expect("it ends");
}
