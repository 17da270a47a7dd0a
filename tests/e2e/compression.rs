//! Compression: each coding made once and shared, decoded by other programs; its ranges, conditions,
//! streams, purges and limits.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use nearcast_testing::{Gate, Origin, Reply, Seen};

use crate::lab::fleet::{Fleet, Plan};
use crate::lab::process::Process;
use crate::lab::tools::curl;
use crate::lab::wait;

const LIMIT: Duration = Duration::from_secs(20);
const CODINGS: [&str; 3] = ["zstd", "br", "gzip"];

fn scripted(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Fleet, Origin) {
    let mut plan = Plan::new();
    plan.clusters = 1;
    plan.nodes = 1;
    let origin = Origin::start_at(plan.origin_address(), script);
    plan.origin = Some(origin.url());
    (Fleet::start(plan), origin)
}

fn text(bytes: usize) -> Vec<u8> {
    (0..)
        .flat_map(|line: usize| format!("<p>line {line} of the page</p>\n").into_bytes())
        .take(bytes)
        .collect()
}

fn page(bytes: usize) -> Reply {
    Reply::ok(text(bytes), "max-age=600")
        .field("Content-Type", "text/html; charset=utf-8")
        .field("ETag", "\"v1\"")
}

struct Answer {
    status: u16,
    fields: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    fn is_hit(&self) -> bool {
        self.field("cache-status").contains("; hit")
    }

    fn decoded(&self) -> Vec<u8> {
        decoded(self.field("content-encoding"), &self.body)
    }
}

/// What decodes of a body, or of its begin.
fn decoded(coding: &str, mut body: &[u8]) -> Vec<u8> {
    let mut reader: Box<dyn Read> = match coding {
        "zstd" => Box::new(zstd::stream::read::Decoder::new(body).expect("memory")),
        "br" => Box::new(brotli::Decompressor::new(body, 4096)),
        "gzip" => Box::new(flate2::read::GzDecoder::new(body)),
        _ => Box::new(&mut body),
    };
    let (mut whole, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = reader.read(&mut buffer) {
        whole.extend_from_slice(&buffer[..read]);
    }
    whole
}

/// A request by curl, with these fields.
fn get(fleet: &Fleet, path: &str, fields: &[&str]) -> Answer {
    request(fleet, path, fields, &[])
}

fn request(fleet: &Fleet, path: &str, fields: &[&str], more: &[&str]) -> Answer {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let (head, body) = (directory.path().join("head"), directory.path().join("body"));
    let (head, body) = (head.to_str().expect("plain"), body.to_str().expect("plain"));
    let mut arguments = vec!["-D", head, "-o", body];
    arguments.extend(fields.iter().flat_map(|field| ["-H", field]));
    arguments.extend(more);
    fleet.curl(fleet.plan.edge(0, 0), &arguments, path);
    let head = std::fs::read_to_string(head).expect("curl wrote it");
    let mut lines = head.lines();
    let status = lines.next().expect("a status line");
    Answer {
        status: status
            .split(' ')
            .nth(1)
            .expect("a status")
            .parse()
            .expect("a number"),
        fields: lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
        body: std::fs::read(body).unwrap_or_default(),
    }
}

/// How many compressions ended with that result.
fn compressions(fleet: &Fleet, coding: &str, result: &str) -> String {
    let metrics = curl(&[&format!("http://{}:9100/metrics", fleet.plan.edge(0, 0))]);
    let name =
        format!("nearcast_edge_compressions_total{{coding=\"{coding}\",result=\"{result}\"}} ");
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(&name))
        .unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
        .to_owned()
}

#[test]
fn each_coding_is_made_once_and_other_programs_decode_it() {
    let (fleet, origin) = scripted(|seen| {
        page(if seen.target == "/big" {
            1 << 20
        } else {
            60_000
        })
    });
    for (path, bytes, made) in [("/page", 60_000, "1"), ("/big", 1 << 20, "2")] {
        for coding in CODINGS {
            let field = format!("Accept-Encoding: {coding}");
            let answers = [(); 3].map(|()| get(&fleet, path, &[&field]));
            for answer in &answers {
                assert_eq!(answer.field("content-encoding"), coding, "{path}");
                assert_eq!(answer.field("vary"), "Accept-Encoding");
                assert!(answer.decoded() == text(bytes), "{path} {coding}");
                assert!(answer.body.len() * 4 < bytes);
                assert_eq!(answer.field("etag"), answers[0].field("etag"));
            }
            let [_, second, third] = &answers;
            assert!(second.is_hit() && third.is_hit());
            assert!(second.body == third.body, "{path} {coding}");
            assert_eq!(
                second.field("content-length"),
                second.body.len().to_string()
            );
            assert!(
                second.field("etag").starts_with(&format!("\"v1;{coding}-")),
                "{}",
                second.field("etag")
            );
            assert_eq!(compressions(&fleet, coding, "whole"), made, "{path}");
        }
        assert_eq!(origin.count(path), 1);
        let plain = get(&fleet, path, &[]);
        assert_eq!(
            [
                plain.field("etag"),
                plain.field("vary"),
                plain.field("content-encoding")
            ],
            ["\"v1\"", "Accept-Encoding", ""]
        );
        assert!(plain.is_hit() && plain.body == text(bytes));
        let by_curl = request(&fleet, path, &[], &["--compressed"]);
        assert!(by_curl.body == text(bytes) && by_curl.field("content-encoding") == "zstd");
    }
}

#[test]
fn many_first_requests_at_once_compress_once() {
    let gate = Gate::default();
    let held = gate.clone();
    let (fleet, origin) = scripted(move |_| page(300_000).held_at(200_000, &held));
    let address = format!("{}:8080", fleet.plan.edge(0, 0));
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(&address).expect("the edge accepts");
            stream.set_read_timeout(Some(LIMIT)).expect("a socket");
            let head = "GET /page HTTP/1.1\r\nHost: www.demo.test\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n";
            stream.write_all(head.as_bytes()).expect("it is read");
            stream
        })
        .collect();
    // All of them get the head before the origin has sent the body.
    let mut begun = Vec::new();
    for mut stream in clients {
        let mut start = vec![0; 12];
        stream.read_exact(&mut start).expect("a head");
        assert_eq!(start, b"HTTP/1.1 200");
        begun.push(stream);
    }
    gate.open();
    let mut bodies = begun.into_iter().map(|mut stream| {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("a body");
        rest
    });
    let first = bodies.next().expect("a hundred");
    let tail = |answer: &[u8]| answer[answer.len() - 500..].to_vec();
    assert!(bodies.all(|other| tail(&other) == tail(&first)));
    assert_eq!(origin.count("/page"), 1);
    assert_eq!(compressions(&fleet, "gzip", "whole"), "1");
    let after = get(&fleet, "/page", &["Accept-Encoding: gzip"]);
    assert!(after.is_hit() && after.decoded() == text(300_000));
}

#[test]
fn a_slow_origins_bytes_reach_the_client_coded_before_the_end() {
    let gate = Gate::default();
    let held = gate.clone();
    let (fleet, _origin) = scripted(move |seen| {
        let reply = page(5000).held_at(1000, &held);
        match seen.target.as_str() {
            "/private" => Reply {
                fields: vec![
                    ("Cache-Control".into(), "private".into()),
                    ("Content-Type".into(), "text/html".into()),
                ],
                ..reply.chunked()
            },
            "/events" => Reply {
                fields: vec![("Content-Type".into(), "text/event-stream".into())],
                ..reply.chunked()
            },
            _ => reply.chunked(),
        }
    });
    let address = format!("{}:8080", fleet.plan.edge(0, 0));
    let mut open = Vec::new();
    for (path, coding) in [
        ("/stored", "gzip"),
        ("/stored2", "br"),
        ("/stored3", "zstd"),
        ("/private", "gzip"),
        ("/events", ""),
    ] {
        let mut stream = TcpStream::connect(&address).expect("the edge accepts");
        stream.set_read_timeout(Some(LIMIT)).expect("a socket");
        let accepted = if coding.is_empty() { "gzip" } else { coding };
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: www.demo.test\r\nAccept-Encoding: {accepted}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("it is read");
        let mut received = Vec::new();
        let mut buffer = [0; 4096];
        // The origin holds the rest back until all of them have these bytes.
        while decoded(coding, &unchunked(&received)).len() < 1000 {
            let read = stream.read(&mut buffer).expect("more comes");
            assert!(read > 0, "{path}");
            received.extend_from_slice(&buffer[..read]);
        }
        assert!(
            decoded(coding, &unchunked(&received)) == text(1000),
            "{path}"
        );
        open.push((path, coding, stream, received));
    }
    gate.open();
    for (path, coding, mut stream, mut received) in open {
        let mut buffer = [0; 4096];
        while !received.ends_with(b"\r\n0\r\n\r\n") {
            let read = stream.read(&mut buffer).expect("more comes");
            assert!(read > 0, "{path}");
            received.extend_from_slice(&buffer[..read]);
        }
        assert!(
            decoded(coding, &unchunked(&received)) == text(5000),
            "{path}"
        );
    }
}

/// The bytes of a chunked response's body so far.
fn unchunked(received: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    let Some(at) = received.windows(4).position(|w| w == b"\r\n\r\n") else {
        return body;
    };
    let mut rest = &received[at + 4..];
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).expect("a size");
        let size = usize::from_str_radix(size, 16).expect("a size");
        rest = &rest[end + 2..];
        body.extend_from_slice(&rest[..size.min(rest.len())]);
        rest = rest.get(size + 2..).unwrap_or_default();
    }
    body
}

#[test]
fn ranges_and_conditions_belong_to_the_form_that_is_served() {
    let (fleet, origin) = scripted(|_| page(60_000));
    const GZIP: &str = "Accept-Encoding: gzip";
    let identity = text(60_000);
    // Before there is a coded form a part of the plain one costs less.
    let early = get(&fleet, "/page", &[GZIP, "Range: bytes=10-19"]);
    assert_eq!((early.status, &early.body[..]), (206, &identity[10..20]));
    assert_eq!(early.field("content-encoding"), "");

    get(&fleet, "/page", &[GZIP]);
    let coded = get(&fleet, "/page", &[GZIP]);
    let tag = coded.field("etag").to_owned();
    let whole = &coded.body;
    let part = |fields: &[&str]| {
        get(
            &fleet,
            "/page",
            &[&["Range: bytes=100-199"], fields].concat(),
        )
    };
    let plain_part = &identity[100..200];
    let if_range = |tag: &str| format!("If-Range: {tag}");
    let other = tag.replace("gzip-", "gzip-0");
    let table: [(&[&str], u16, &[u8], &str); 6] = [
        (&[GZIP], 206, &whole[100..200], "gzip"),
        (&[], 206, plain_part, ""),
        (&[GZIP, &if_range(&tag)], 206, &whole[100..200], "gzip"),
        // The client has the plain form.
        (&[GZIP, &if_range("\"v1\"")], 206, plain_part, ""),
        // Parts of two forms are never joined.
        (&[GZIP, &if_range(&other)], 200, whole, "gzip"),
        (&[&if_range(&tag)], 200, &identity, ""),
    ];
    for (fields, status, body, coding) in table {
        let answer = part(fields);
        assert_eq!(answer.status, status, "{fields:?}");
        assert!(answer.body == body, "{fields:?}");
        assert_eq!(answer.field("content-encoding"), coding, "{fields:?}");
        let complete = if coding.is_empty() { &identity } else { whole };
        if status == 206 {
            let range = format!("bytes 100-199/{}", complete.len());
            assert_eq!(answer.field("content-range"), range);
        }
    }
    let several = get(&fleet, "/page", &[GZIP, "Range: bytes=0-4,200-209"]);
    assert_eq!(several.status, 206);
    let has = |part: &[u8]| several.body.windows(part.len()).any(|w| w == part);
    assert!(has(&whole[..5]) && has(&whole[200..210]));
    let beyond = get(&fleet, "/page", &[GZIP, "Range: bytes=50000-"]);
    assert_eq!(beyond.status, 416, "the coded form is shorter");

    for (fields, status) in [
        (vec![GZIP.to_owned(), format!("If-None-Match: {tag}")], 304),
        (
            vec![GZIP.to_owned(), format!("If-None-Match: W/{tag}")],
            304,
        ),
        (vec![GZIP.to_owned(), "If-None-Match: \"v1\"".into()], 200),
        (vec![format!("If-None-Match: {tag}")], 200),
        (vec!["If-None-Match: \"v1\"".into()], 304),
        (vec![GZIP.to_owned(), format!("If-Match: {tag}")], 200),
        (vec![GZIP.to_owned(), "If-Match: \"v2\"".into()], 412),
    ] {
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let answer = get(&fleet, "/page", &fields);
        assert_eq!(answer.status, status, "{fields:?}");
        if status == 304 && fields.len() == 2 {
            assert!(fields[1].ends_with(answer.field("etag")), "{fields:?}");
        }
    }
    let head = request(&fleet, "/page", &[GZIP], &["-I"]);
    for name in ["etag", "content-encoding", "content-length", "vary"] {
        assert_eq!(head.field(name), coded.field(name), "{name}");
    }
    assert_eq!(origin.count("/page"), 1);
}

#[test]
fn only_what_gains_by_it_is_compressed_and_only_for_clients_that_want_it() {
    let (fleet, _origin) = scripted(|seen| {
        let reply = page(20_000);
        let with = |name: &str, value: &str| {
            let mut reply = reply.clone();
            reply.fields.retain(|(n, _)| n != name);
            reply.field(name, value)
        };
        match seen.target.as_str() {
            "/png" => with("Content-Type", "image/png"),
            "/no-transform" => with("Cache-Control", "max-age=600, no-transform"),
            "/coded" => with("Content-Encoding", "gzip"),
            "/short" => page(200),
            "/404" => Reply {
                status: 404,
                ..reply
            },
            "/noise" => Reply {
                body: (0..9_000_u64)
                    .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8)
                    .scan(7_u8, |last, byte| {
                        *last = last.wrapping_mul(77) ^ byte;
                        Some(*last)
                    })
                    .collect(),
                ..reply
            },
            _ => reply,
        }
    });
    for path in ["/png", "/no-transform", "/coded", "/short", "/404"] {
        for _ in 0..2 {
            let plain = get(&fleet, path, &[]);
            let answer = get(&fleet, path, &["Accept-Encoding: gzip, br"]);
            assert!(answer.body == plain.body && answer.is_hit(), "{path}");
            assert_eq!(answer.field("vary"), "", "{path}");
        }
    }
    let long = format!("Accept-Encoding: {}gzip", "x;q=0.5, ".repeat(800));
    for (field, coding) in [
        ("Accept-Encoding: identity", ""),
        ("Accept-Encoding: gzip;q=0", ""),
        ("Accept-Encoding: *;q=0", ""),
        ("Accept-Encoding: identity;q=1, *;q=0", ""),
        ("Accept-Encoding: deflate", ""),
        ("Accept-Encoding: gzip;q=0.5, identity", ""),
        ("Accept-Encoding: gzip;q=0.2, br;q=0.3", "br"),
        ("Accept-Encoding: br, gzip", "gzip"),
        ("Accept-Encoding: gzip, deflate, br, zstd", "zstd"),
        ("Accept-Encoding: *", "zstd"),
        (&long, "gzip"),
        ("X-None: 1", ""),
    ] {
        for _ in 0..2 {
            let answer = get(&fleet, "/page", &[field]);
            assert_eq!(answer.field("content-encoding"), coding, "{field:.60}");
            assert_eq!(answer.field("vary"), "Accept-Encoding", "{field:.60}");
            assert!(answer.decoded() == text(20_000), "{field:.60}");
        }
    }
    let untouched = ["Accept-Encoding: gzip", "Cache-Control: no-transform"];
    assert_eq!(
        get(&fleet, "/page", &untouched).field("content-encoding"),
        ""
    );
    assert_eq!(compressions(&fleet, "gzip", "failed"), "0");
}

#[test]
fn what_is_purged_or_has_changed_is_coded_anew() {
    let version = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(1));
    let now = version.clone();
    let (fleet, _origin) = scripted(move |seen| {
        let version = now.load(std::sync::atomic::Ordering::SeqCst);
        let tag = format!("\"v{version}\"");
        if seen.fields.get("if-none-match") == Some(&tag) {
            return Reply::status(304).field("ETag", &tag);
        }
        let max_age = if seen.target == "/validated" {
            "max-age=0"
        } else {
            "max-age=600"
        };
        let body = format!("version {version} ").into_bytes().repeat(2000);
        Reply::ok(body, max_age)
            .field("Content-Type", "text/plain")
            .field("Cache-Tag", "pages")
            .field("ETag", &tag)
    });
    let is_version = |path: &str, version: usize| {
        CODINGS.into_iter().chain([""]).all(|coding| {
            let answer = get(&fleet, path, &[&format!("Accept-Encoding: {coding}")]);
            assert_eq!(answer.field("content-encoding"), coding, "{path}");
            let tag = answer.field("etag");
            let is_tagged = tag.starts_with(&format!("\"v{version}"));
            is_tagged
                && answer
                    .decoded()
                    .starts_with(format!("version {version} ").as_bytes())
        })
    };
    for path in ["/url", "/tagged", "/soft", "/validated"] {
        assert!(is_version(path, 1) && is_version(path, 1), "{path}");
    }
    let made = compressions(&fleet, "gzip", "whole");
    assert!(is_version("/validated", 1), "a 304 keeps the coded forms");
    assert_eq!(compressions(&fleet, "gzip", "whole"), made);

    version.store(2, std::sync::atomic::Ordering::SeqCst);
    assert!(is_version("/url", 1), "it is fresh");
    assert!(is_version("/validated", 2));
    let purge = |arguments: &[&str]| {
        let output = fleet.operate(&[&["purge"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
    };
    purge(&["--url", "http://www.demo.test/url"]);
    assert!(is_version("/url", 2) && is_version("/tagged", 1));
    purge(&["--soft", "--url", "http://www.demo.test/soft"]);
    assert!(is_version("/soft", 2));
    purge(&["--tag", "pages"]);
    assert!(is_version("/tagged", 2) && is_version("/url", 2));
}

#[test]
fn after_a_restart_what_is_on_disk_is_coded_anew() {
    let (mut fleet, origin) = scripted(|_| page(400_000));
    let before = get(&fleet, "/page", &["Accept-Encoding: gzip"]);
    let again = get(&fleet, "/page", &["Accept-Encoding: gzip"]);
    assert!(before.body == again.body);
    let name = fleet
        .nodes
        .keys()
        .find(|name| name.ends_with("-1") && !name.starts_with("ns"))
        .expect("an edge")
        .clone();
    fleet.node(&name).signal("TERM");
    fleet.node(&name).wait(Duration::from_secs(60));
    fleet.start_node("edge", &name);
    let edge = fleet.plan.edge(0, 0);
    fleet.wait_ready(&name, edge);
    let after = wait::until("the response of the earlier run", LIMIT, || {
        let after = get(&fleet, "/page", &["Accept-Encoding: gzip"]);
        match after.status {
            200 => Ok(after),
            status => Err(status.to_string()),
        }
    });
    assert!(after.decoded() == text(400_000));
    assert_ne!(
        after.field("etag"),
        again.field("etag"),
        "its bytes may differ"
    );
    let known = format!("If-None-Match: {}", again.field("etag"));
    assert_eq!(
        get(&fleet, "/page", &["Accept-Encoding: gzip", &known]).status,
        304
    );
    assert_eq!(
        origin
            .seen()
            .iter()
            .filter(|seen| !seen.fields.contains_key("if-none-match"))
            .count(),
        1,
        "the body came from the disk"
    );
}

#[test]
fn settings_choose_codings_and_types() {
    let mut plan = Plan::new();
    plan.clusters = 1;
    plan.nodes = 1;
    plan.site = "compression = { codings = [\"gzip\"], types = [\"x/y\"], size_min = \"1KiB\", level = 1 }\n".to_owned();
    let origin = Origin::start_at(plan.origin_address(), |seen| {
        let (kind, bytes) = match seen.target.as_str() {
            "/own" => ("X/Y; a=b", 5000),
            "/short" => ("x/y", 1000),
            _ => ("text/html", 5000),
        };
        Reply::ok(text(bytes), "max-age=600").field("Content-Type", kind)
    });
    plan.origin = Some(origin.url());
    let fleet = Fleet::start(plan);
    for (path, accepted, coding) in [
        ("/own", "gzip, zstd, br", "gzip"),
        ("/own", "zstd, br", ""),
        ("/short", "gzip", ""),
        ("/html", "gzip", ""),
    ] {
        let answer = get(&fleet, path, &[&format!("Accept-Encoding: {accepted}")]);
        assert_eq!(
            answer.field("content-encoding"),
            coding,
            "{path} {accepted}"
        );
    }
}

/// A request on a connection of its own, read up to the end of the head.
fn begun(fleet: &Fleet, target: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect((fleet.plan.edge(0, 0), 8080)).expect("the edge listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a time");
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: www.demo.test\r\nAccept-Encoding: gzip\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("the head arrives");
        head.push(byte[0]);
    }
    (stream, String::from_utf8_lossy(&head).to_lowercase())
}

#[test]
fn under_pressure_bodies_go_out_as_they_are() {
    let gate = Gate::default();
    let held = gate.clone();
    let (fleet, _origin) = scripted(move |seen| {
        let reply = page(60_000).held_at(30_000, &held);
        match seen.target.split('?').next() {
            Some("/passed") => Reply {
                fields: vec![
                    ("Content-Type".into(), "text/html".into()),
                    ("Cache-Control".into(), "no-store".into()),
                ],
                ..reply
            },
            Some("/stored") => reply,
            _ => page(60_000),
        }
    });
    let is_coded = |head: &str| head.contains("content-encoding: gzip");
    let busy = || compressions(&fleet, "gzip", "busy");
    // Half of them are for responses that are not stored.
    let mut open = Vec::new();
    for (path, most) in [("/passed", 16), ("/stored", 16)] {
        for n in 0..most {
            // On a busy machine encoders that wait for a thread are pressure, too, for a moment.
            let mut tries = 0;
            open.push(wait::until("a coding", LIMIT, || {
                tries += 1;
                let (stream, head) = begun(&fleet, &format!("{path}?{n}-{tries}"));
                match is_coded(&head) {
                    true => Ok(stream),
                    false => Err(format!("{path} {n}: {head}")),
                }
            }));
        }
        let before: u32 = busy().parse().expect("a number");
        let (stream, head) = begun(&fleet, &format!("{path}?more"));
        assert!(!is_coded(&head), "{path}: {head}");
        assert!(head.contains("vary: accept-encoding"), "{path}: {head}");
        assert_eq!(busy(), (before + 1).to_string(), "{path}");
        open.push(stream);
    }
    // A whole page, too; and nothing of it is kept as the answer for later.
    let plain = get(&fleet, "/page", &["Accept-Encoding: gzip"]);
    assert_eq!(plain.field("content-encoding"), "");
    assert!(plain.body == text(60_000));

    gate.open();
    wait::until("the page in its coding", LIMIT, || {
        let coded = get(&fleet, "/page", &["Accept-Encoding: gzip"]);
        match coded.field("content-encoding") {
            "gzip" if coded.decoded() == text(60_000) => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    assert_eq!(compressions(&fleet, "gzip", "failed"), "0");
}

#[test]
fn conditions_that_are_sent_on_have_the_tag_that_the_origin_knows() {
    let (fleet, origin) = scripted(|seen| {
        let names = |field: &str| {
            let tags = seen.fields.get(field).map_or("", String::as_str);
            tags.split(',').any(|tag| tag.trim() == "\"v1\"")
        };
        match (seen.method.as_str(), seen.target.as_str()) {
            ("PUT", _) if names("if-match") => Reply::status(204),
            ("PUT", _) => Reply::status(412),
            (_, "/page?private") if names("if-none-match") => {
                Reply::status(304).field("ETag", "\"v1\"")
            }
            (_, "/page?private") => Reply {
                fields: vec![
                    ("Content-Type".into(), "text/html".into()),
                    ("Cache-Control".into(), "no-store".into()),
                    ("ETag".into(), "\"v1\"".into()),
                ],
                ..page(20_000)
            },
            _ => page(20_000),
        }
    });
    const GZIP: &str = "Accept-Encoding: gzip";
    get(&fleet, "/page", &[GZIP]);
    let coded = get(&fleet, "/page", &[GZIP]);
    let tag = coded.field("etag").to_owned();
    assert!(tag.starts_with("\"v1;gzip-"), "{tag}");

    // An editor that has the coded form may change the page that it has seen, and no other.
    let other = tag.replace("v1", "v0");
    for (tag, status) in [(&tag, 204), (&other, 412)] {
        let field = format!("If-Match: {tag}");
        let put = ["-X", "PUT", "--data-binary", "new"];
        assert_eq!(request(&fleet, "/page", &[&field], &put).status, status);
    }
    // A response that is not stored: the origin judges, and the client keeps its tag.
    get(&fleet, "/page?private", &[GZIP]);
    let known = format!("If-None-Match: {tag}");
    let unchanged = get(&fleet, "/page?private", &[GZIP, &known]);
    assert_eq!((unchanged.status, unchanged.field("etag")), (304, &*tag));
    let seen = origin.seen();
    let last = seen.last().expect("it was asked");
    assert!(last.fields["if-none-match"].contains("\"v1\""), "{last:?}");
}

/// nginx codes nothing for requests with `Via` (`gzip_proxied`), which every request of an edge has.
#[test]
fn an_nginx_that_leaves_requests_of_proxies_plain_is_compressed_for() {
    let mut plan = Plan::new();
    plan.clusters = 1;
    plan.nodes = 1;
    plan.origin = Some(format!("http://{}", plan.origin_address()));
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let root = directory.path().join("root");
    std::fs::create_dir(&root).expect("made");
    std::fs::write(root.join("page.html"), text(60_000)).expect("written");
    let readable = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    for path in [directory.path(), &root] {
        std::fs::set_permissions(path, readable(0o755)).expect("ours");
    }
    let config = format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr;\nevents {{}}\n\
         http {{ access_log off; types {{ text/html html; }} gzip on; gzip_min_length 100;\n\
         server {{ listen {}; root root; add_header Cache-Control max-age=600; }} }}\n",
        plan.origin_address()
    );
    std::fs::write(directory.path().join("nginx.conf"), config).expect("written");
    let mut command = std::process::Command::new("nginx");
    let prefix = directory.path().to_str().expect("plain");
    command.args(["-p", prefix, "-e", "stderr", "-c", "nginx.conf"]);
    let _nginx = Process::start("nginx", directory.path(), command);
    let direct = format!("http://{}/page.html", plan.origin_address());
    wait::until("nginx to answer", LIMIT, || {
        std::net::TcpStream::connect(plan.origin_address()).map(drop)
    });
    let fleet = Fleet::start(plan);

    let size = ["-o", "/dev/null", "-w", "%{size_download}", "-H"];
    let asked = |more: &[&str]| {
        let all = [
            &size[..],
            &["Accept-Encoding: gzip"],
            more,
            &[direct.as_str()],
        ]
        .concat();
        curl(&all).parse::<usize>().expect("a number")
    };
    assert!(asked(&[]) < 10_000, "nginx codes for a client");
    assert_eq!(
        asked(&["-H", "Via: 1.1 proxy"]),
        60_000,
        "and not for a proxy"
    );
    for is_hit in [false, true] {
        let answer = get(&fleet, "/page.html", &["Accept-Encoding: gzip"]);
        assert_eq!((answer.status, answer.is_hit()), (200, is_hit));
        assert!(answer.body.len() < 10_000 && answer.decoded() == text(60_000));
    }
}

/// A field that `Connection` names is for the edge and does not go on (RFC 9110 section 7.6.1): it may
/// choose a form, and must not have the origin's plain form stored for clients that want a coded one.
#[test]
fn an_accept_encoding_for_one_hop_chooses_for_its_client_only() {
    let (fleet, origin) = scripted(|seen| {
        let is_coded = seen
            .fields
            .get("accept-encoding")
            .is_some_and(|value| value.contains("gzip"));
        match (seen.target.as_str(), is_coded) {
            ("/own", true) => Reply::ok("coded", "max-age=600")
                .field("Vary", "Accept-Encoding")
                .field("Content-Encoding", "gzip"),
            ("/own", false) => Reply::ok("plain", "max-age=600").field("Vary", "Accept-Encoding"),
            _ => page(20_000),
        }
    });
    const GZIP: &str = "Accept-Encoding: gzip";
    let hop = [GZIP, "Connection: Accept-Encoding"];
    get(&fleet, "/own", &hop);
    assert!(!origin.seen()[0].fields.contains_key("accept-encoding"));
    let answer = get(&fleet, "/own", &[GZIP]);
    assert_eq!(answer.body, b"coded");
    assert_eq!(get(&fleet, "/own", &[]).body, b"plain");

    let forms = [(); 3].map(|()| get(&fleet, "/page", &hop));
    for answer in &forms {
        assert_eq!(
            answer.field("content-encoding"),
            forms[0].field("content-encoding")
        );
        assert!(answer.decoded() == text(20_000));
    }
}
