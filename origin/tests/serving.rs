//! The origin over real sockets: what it serves, refuses and promises.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nearcast_fleet::config::OriginRule;
use nearcast_fleet::follow;
use nearcast_net::shutdown::{self, ShutdownTrigger};

struct Origin {
    address: SocketAddr,
    trigger: Option<ShutdownTrigger>,
    thread: Option<std::thread::JoinHandle<Result<(), nearcast_fleet::failure::Failure>>>,
}

/// Runs an origin in a thread of its own on a free port.
fn start(root: &Path, rules: Vec<OriginRule>) -> Origin {
    let address = TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a free port");
    let mut fleet = nearcast_fleet::file::standalone_origin(root.to_owned(), address)
        .expect("the root is there");
    fleet.origins[0].rules = rules;
    let (trigger, shutdown) = shutdown::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let (fleet_tx, _) = tokio::sync::watch::channel(Arc::new(fleet));
            let context = follow::prepare(
                "origin".to_owned(),
                fleet_tx,
                std::env::temp_dir(),
                |_, _| vec![],
                shutdown,
            )
            .await;
            nearcast_origin::run(context).await
        })
    });
    for _ in 0..500 {
        if TcpStream::connect(address).is_ok() {
            return Origin {
                address,
                trigger: Some(trigger),
                thread: Some(thread),
            };
        }
        assert!(
            !thread.is_finished(),
            "the origin ended at once: {:?}",
            thread.join()
        );
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("the origin does not listen");
}

impl Origin {
    /// Sends bytes, ends the sending side, reads to the end: head (lower case) and body.
    fn raw(&self, request: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a time-out can be set");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        let end = answer
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(&answer)));
        let body = answer.split_off(end + 4);
        (String::from_utf8_lossy(&answer).to_lowercase(), body)
    }

    fn ask(&self, method: &str, target: &str, fields: &str) -> (String, Vec<u8>) {
        self.raw(&format!(
            "{method} {target} HTTP/1.1\r\nHost: origin.test\r\nConnection: close\r\n{fields}\r\n"
        ))
    }

    fn get(&self, target: &str, fields: &str) -> (String, Vec<u8>) {
        self.ask("GET", target, fields)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.trigger.take();
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(Ok(())))), "{ended:?}");
        }
    }
}

fn field(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|l| {
        l.strip_prefix(name)?
            .strip_prefix(": ")
            .map(|v| v.trim().to_owned())
    })
}

fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, text: &[u8]| {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("room");
        std::fs::write(path, text).expect("room");
    };
    write("index.html", b"<h1>front</h1>");
    write("dir/index.html", b"<h1>dir</h1>");
    write("ten.bin", b"0123456789");
    write("empty.txt", b"");
    write("app.js", b"plain");
    write("app.js.gz", b"zipped");
    write("app.js.br", b"brotli");
    write("v/film/seg-1.m4s", &[7; 200_000]);
    write("v/film/master.m3u8", b"#EXTM3U\n");
    write("v/film/manifest.mpd", b"<MPD/>");
    write(".secret", b"secret");
    root
}

#[test]
fn files_have_types_validators_and_lifetimes() {
    let root = root();
    let origin = start(
        root.path(),
        vec![OriginRule {
            pattern: "dir/**".into(),
            cache_control: "no-cache".into(),
        }],
    );
    for (target, kind, lifetime, body) in [
        (
            "/",
            "text/html; charset=utf-8",
            "max-age=60",
            &b"<h1>front</h1>"[..],
        ),
        (
            "/dir/",
            "text/html; charset=utf-8",
            "no-cache",
            b"<h1>dir</h1>",
        ),
        (
            "/ten.bin?x=1",
            "application/octet-stream",
            "max-age=300",
            b"0123456789",
        ),
        (
            "/v/film/master.m3u8",
            "application/vnd.apple.mpegurl",
            "max-age=10",
            b"#EXTM3U\n",
        ),
        (
            "/v/film/manifest.mpd",
            "application/dash+xml",
            "max-age=10",
            b"<MPD/>",
        ),
        (
            "/v/film/seg-1.m4s",
            "video/iso.segment",
            "immutable",
            &[7; 200_000],
        ),
        ("/empty.txt", "text/plain; charset=utf-8", "max-age=60", b""),
    ] {
        let (head, found) = origin.get(target, "");
        assert!(head.starts_with("http/1.1 200 "), "{target}: {head}");
        assert_eq!(
            field(&head, "content-type").as_deref(),
            Some(kind),
            "{target}"
        );
        assert!(
            field(&head, "cache-control").is_some_and(|v| v.contains(lifetime)),
            "{target}: {head}"
        );
        assert_eq!(
            field(&head, "content-length"),
            Some(body.len().to_string()),
            "{target}"
        );
        assert!(found == body, "{target}");
        let tag = field(&head, "etag").expect("a tag");
        assert!(
            tag.starts_with('"')
                && field(&head, "last-modified").is_some()
                && field(&head, "date").is_some(),
            "{head}"
        );
        let (head, found) = origin.get(target, &format!("If-None-Match: {tag}\r\n"));
        assert!(
            head.starts_with("http/1.1 304 ") && found.is_empty(),
            "{target}: {head}"
        );
        assert!(
            field(&head, "etag").is_some() && field(&head, "cache-control").is_some(),
            "{head}"
        );
        let (head, found) = origin.ask("HEAD", target, "");
        assert!(
            head.starts_with("http/1.1 200 ") && found.is_empty(),
            "{target}: {head}"
        );
        assert_eq!(
            field(&head, "content-length"),
            Some(body.len().to_string()),
            "{target}"
        );
    }
}

#[test]
fn a_changed_file_has_another_tag() {
    let root = root();
    let origin = start(root.path(), Vec::new());
    let tag = || field(&origin.get("/ten.bin", "").0, "etag");
    let (before, modified) = (
        tag(),
        std::fs::metadata(root.path().join("ten.bin"))
            .and_then(|m| m.modified())
            .expect("a time"),
    );
    std::fs::write(root.path().join("ten.bin"), "9876543210").expect("room");
    // Even when a tool sets the old time again.
    let file = std::fs::File::options()
        .write(true)
        .open(root.path().join("ten.bin"))
        .expect("it is there");
    file.set_modified(modified).expect("times can be set");
    assert_ne!(before, tag());
}

#[test]
fn ranges_and_if_range_are_honoured() {
    let root = root();
    let origin = start(root.path(), Vec::new());
    let tag = field(&origin.get("/ten.bin", "").0, "etag").expect("a tag");
    for (fields, status, range, body) in [
        (
            "Range: bytes=2-4\r\n".to_owned(),
            206,
            Some("bytes 2-4/10"),
            &b"234"[..],
        ),
        (
            "Range: bytes=-3\r\n".to_owned(),
            206,
            Some("bytes 7-9/10"),
            b"789",
        ),
        (
            "Range: bytes=8-\r\n".to_owned(),
            206,
            Some("bytes 8-9/10"),
            b"89",
        ),
        (
            format!("Range: bytes=0-0\r\nIf-Range: {tag}\r\n"),
            206,
            Some("bytes 0-0/10"),
            b"0",
        ),
        (
            "Range: bytes=0-0\r\nIf-Range: \"old\"\r\n".to_owned(),
            200,
            None,
            b"0123456789",
        ),
        (
            "Range: bytes=0-1,4-5\r\n".to_owned(),
            200,
            None,
            b"0123456789",
        ),
    ] {
        let (head, found) = origin.get("/ten.bin", &fields);
        assert!(
            head.starts_with(&format!("http/1.1 {status} ")),
            "{fields}: {head}"
        );
        assert_eq!(field(&head, "content-range").as_deref(), range, "{fields}");
        assert_eq!(found, body, "{fields}");
    }
    let (head, _) = origin.get("/ten.bin", "Range: bytes=10-\r\n");
    assert!(head.starts_with("http/1.1 416 "), "{head}");
    assert_eq!(field(&head, "content-range").as_deref(), Some("bytes */10"));
}

#[test]
fn precompressed_variants_are_negotiated() {
    let root = root();
    let origin = start(root.path(), Vec::new());
    let mut tags = Vec::new();
    for (accept, coding, body) in [
        ("", None, &b"plain"[..]),
        ("Accept-Encoding: gzip\r\n", Some("gzip"), b"zipped"),
        ("Accept-Encoding: gzip, br\r\n", Some("br"), b"brotli"),
        ("Accept-Encoding: zstd\r\n", None, b"plain"),
        (
            "Accept-Encoding: gzip;q=0.5, br;q=0.4\r\n",
            Some("gzip"),
            b"zipped",
        ),
        (
            "Accept-Encoding: br;q=0, gzip;q=0.001\r\n",
            Some("gzip"),
            b"zipped",
        ),
        ("Accept-Encoding: *\r\n", Some("br"), b"brotli"),
        ("Accept-Encoding: *;q=0\r\n", None, b"plain"),
        (
            "Accept-Encoding: gzip;q=0.3, identity;q=0.9\r\n",
            None,
            b"plain",
        ),
        ("Accept-Encoding: GZip; Q=1.0\r\n", Some("gzip"), b"zipped"),
        ("Accept-Encoding: gzip;q=nonsense\r\n", None, b"plain"),
    ] {
        let (head, found) = origin.get("/app.js", accept);
        assert_eq!(
            field(&head, "content-encoding").as_deref(),
            coding,
            "{accept}"
        );
        assert_eq!(
            field(&head, "vary").as_deref(),
            Some("accept-encoding"),
            "{accept}"
        );
        assert_eq!(
            field(&head, "content-type").as_deref(),
            Some("text/javascript; charset=utf-8")
        );
        assert_eq!(found, body, "{accept}");
        tags.push(field(&head, "etag"));
    }
    assert!(
        tags[0] != tags[1] && tags[1] != tags[2] && tags[0] == tags[3],
        "one tag a coding: {tags:?}"
    );
    assert_eq!(
        field(&origin.get("/ten.bin", "").0, "vary"),
        None,
        "a file without variants varies with nothing"
    );
}

#[test]
fn nothing_outside_the_root_can_be_read() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(parent.path().join("secret.txt"), "secret").expect("room");
    let inside = parent.path().join("root");
    std::fs::create_dir(&inside).expect("room");
    std::fs::write(inside.join("index.html"), "front").expect("room");
    std::fs::write(inside.join(".hidden"), "secret").expect("room");
    let link = |from: &str, to: &str| {
        std::os::unix::fs::symlink(parent.path().join(from), inside.join(to))
            .expect("links are there")
    };
    link("secret.txt", "link");
    link("", "up");
    // A variant of a file is a file as well.
    link("secret.txt", "index.html.gz");
    link("secret.txt", "index.html.br");
    let origin = start(&inside, Vec::new());
    for target in [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/.%2e/secret.txt",
        "/x/../../secret.txt",
        "/link",
        "/.hidden",
        "//secret.txt",
        "/%5c..%5csecret.txt",
        "/secret.txt%00.html",
        "/index.html/../../secret.txt",
    ] {
        let (head, body) = origin.get(target, "");
        assert!(head.starts_with("http/1.1 40"), "{target}: {head}");
        assert!(
            !String::from_utf8_lossy(&body).contains("secret"),
            "{target}"
        );
    }
    let (head, body) = origin.get("/", "Accept-Encoding: gzip, br\r\n");
    assert!(
        head.starts_with("http/1.1 200 ") && body == b"front",
        "{head}"
    );
}

#[test]
fn what_is_no_file_is_not_there_and_takes_no_time() {
    let root = root();
    let made = |program: &str, name: &str| {
        std::process::Command::new(program)
            .arg(root.path().join(name))
            .status()
            .is_ok_and(|s| s.success())
    };
    assert!(made("mkfifo", "pipe") && made("mkfifo", "page.html") && made("mkfifo", "ten.bin.gz"));
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).expect("room");
    std::os::unix::fs::symlink("/dev/zero", root.path().join("zero")).expect("links are there");
    std::os::unix::fs::symlink("loop", root.path().join("loop")).expect("links are there");
    let many = root.path().join("many");
    std::fs::create_dir(&many).expect("room");
    (0..5000).for_each(|n| std::fs::write(many.join(n.to_string()), b"").expect("room"));
    let origin = start(root.path(), Vec::new());
    for target in [
        "/pipe",
        "/page",
        "/page.html",
        "/socket",
        "/zero",
        "/loop",
        "/many",
        "/many/",
    ] {
        let (head, _) = origin.get(target, "");
        assert!(head.starts_with("http/1.1 404 "), "{target}: {head}");
    }
    let (head, body) = origin.get("/ten.bin", "Accept-Encoding: gzip\r\n");
    assert!(
        field(&head, "content-encoding").is_none() && body == b"0123456789",
        "{head}"
    );
}

#[test]
fn a_file_that_shrinks_while_it_is_sent_ends_the_connection_early() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let path = root.path().join("big.bin");
    std::fs::write(&path, vec![1; 32 << 20]).expect("room");
    let origin = start(root.path(), Vec::new());
    let mut stream = TcpStream::connect(origin.address).expect("it listens");
    stream
        .write_all(b"GET /big.bin HTTP/1.1\r\nHost: o\r\n\r\n")
        .expect("it reads");
    let mut first = [0; 1000];
    stream.read_exact(&mut first).expect("the transfer begins");
    let file = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("it is there");
    file.set_len(1000).expect("files can be cut");
    let mut rest = Vec::new();
    // However it ends, a client must not take it for whole.
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 32 << 20, "{} bytes", rest.len());
    let (head, body) = origin.get("/big.bin", "");
    assert!(
        head.starts_with("http/1.1 200 ") && body.len() == 1000,
        "the next one gets what is there: {head}"
    );
}

#[test]
fn the_rest_is_refused_as_the_standard_says() {
    let root = root();
    let origin = start(root.path(), Vec::new());
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let (head, _) = origin.ask(method, "/", "Content-Length: 0\r\n");
        assert!(
            head.starts_with("http/1.1 405 ")
                && field(&head, "allow").as_deref() == Some("get, head, options"),
            "{method}: {head}"
        );
    }
    let (head, _) = origin.ask("OPTIONS", "/", "");
    assert!(
        head.starts_with("http/1.1 204 ") && field(&head, "allow").is_some(),
        "{head}"
    );
    let (head, _) = origin.get("/dir?a=b", "");
    assert!(
        head.starts_with("http/1.1 301 ")
            && field(&head, "location").as_deref() == Some("/dir/?a=b"),
        "{head}"
    );
    let (head, body) = origin.get("/nowhere", "");
    assert!(
        head.starts_with("http/1.1 404 ")
            && String::from_utf8_lossy(&body).contains("<h1>404 Not Found</h1>"),
        "{head}"
    );
    let (head, _) = origin.get(&format!("/{}", "a".repeat(9000)), "");
    assert!(head.starts_with("http/1.1 414 "), "{head}");
    let (head, _) = origin.get("/", &format!("X-Long: {}\r\n", "a".repeat(70_000)));
    assert!(head.starts_with("http/1.1 431 "), "{head}");
    let (head, _) = origin.get("/ten.bin", "If-Match: \"other\"\r\n");
    assert!(head.starts_with("http/1.1 412 "), "{head}");
    let (head, _) = origin.raw("nonsense\r\n\r\n");
    assert!(head.starts_with("http/1.1 400 "), "{head}");
}

#[test]
fn a_transfer_that_has_begun_is_finished_at_shutdown() {
    let root = tempfile::tempdir().expect("a temporary directory");
    // More than sockets can hold between them.
    std::fs::write(root.path().join("big.bin"), vec![1; 32 << 20]).expect("room");
    let mut origin = start(root.path(), Vec::new());
    let mut stream = TcpStream::connect(origin.address).expect("it listens");
    stream
        .write_all(b"GET /big.bin HTTP/1.1\r\nHost: o\r\n\r\n")
        .expect("it reads");
    let mut first = [0; 1000];
    stream.read_exact(&mut first).expect("the transfer begins");
    origin.trigger.take();
    let mut rest = Vec::new();
    stream
        .read_to_end(&mut rest)
        .expect("the transfer ends well");
    let head = String::from_utf8_lossy(&first)
        .find("\r\n\r\n")
        .expect("a head")
        + 4;
    assert_eq!(first.len() - head + rest.len(), 32 << 20);
}
