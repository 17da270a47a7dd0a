//! Responses that are on disk only: found, served and removed as if they were in memory.

mod lab;

use std::io::{BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lab::{Edge, Origin, Plan, Reply, wait_for};
use nearcast_fleet::change::PurgeScope;
use nearcast_fleet::config::CachePolicy;

/// More responses than the memory of [`small`] holds.
const MANY: usize = 3000;
const BODY: usize = 1024;

/// An edge with little memory and much disk.
fn small(origin: &Origin, directory: &tempfile::TempDir) -> Plan {
    Plan {
        memory: 1 << 20,
        disk: 256 << 20,
        state_dir: directory.path().to_owned(),
        cache: CachePolicy {
            obey_client: true,
            ..CachePolicy::default()
        },
        ..Plan::new(origin)
    }
}

fn body_of(path: &str) -> Vec<u8> {
    path.bytes().cycle().take(BODY).collect()
}

/// An origin whose responses have a body of their path.
fn origin() -> Origin {
    Origin::start(|seen| {
        Reply::ok(body_of(&seen.target), "max-age=600")
            .field("ETag", &format!("\"{}\"", seen.target))
            .field("Last-Modified", "Sun, 01 Nov 2026 10:00:00 GMT")
    })
}

/// Requests paths one after the other on one connection. Gives the number of hits.
fn get_all(edge: &Edge, paths: impl Iterator<Item = String>) -> usize {
    let stream = edge.connect();
    let mut writer = stream.try_clone().expect("a socket");
    let mut reader = BufReader::new(stream);
    let mut hits = 0;
    for path in paths {
        let request = format!("GET {path} HTTP/1.1\r\nHost: www.test\r\n\r\n");
        writer.write_all(request.as_bytes()).expect("sent");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            reader.read_exact(&mut byte).expect("a head");
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .and_then(|length| length.parse().ok())
            .unwrap_or_else(|| panic!("{path}: {head}"));
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        assert!(body == body_of(&path), "{path}: another body");
        let is_hit = head.contains("ams-1; hit");
        hits += usize::from(is_hit);
    }
    hits
}

fn paths(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("/{n}"))
}

/// Waits until everything so far is on disk.
fn written(edge: &Edge, count: usize) {
    wait_for("the responses to be written", || {
        edge.metric("nearcast_edge_disk_bytes") >= (count * BODY) as f64
    });
}

#[test]
fn what_memory_has_no_room_for_is_a_hit_from_disk() {
    let (directory, origin) = (tempfile::tempdir().expect("a directory"), origin());
    let edge = small(&origin, &directory).start();
    assert_eq!(get_all(&edge, paths(MANY)), 0);
    written(&edge, MANY);
    let resident = edge.metric("nearcast_edge_stored_urls");
    assert!(resident < MANY as f64 / 2.0, "{resident} are in memory");
    assert_eq!(get_all(&edge, paths(MANY)), MANY);

    // By now the first ones are on disk only, each for one kind of request.
    let head = edge.ask("HEAD", "/1", &[]);
    assert!(
        head.is_hit() && head.field("content-length") == "1024",
        "{head:?}"
    );
    let part = edge.ask("GET", "/2", &[("Range", "bytes=1-3")]);
    assert!(
        part.status == 206 && part.is_hit() && part.body == body_of("/2")[1..4],
        "{part:?}"
    );
    let same = edge.ask("GET", "/3", &[("If-None-Match", "\"/3\"")]);
    assert!(same.status == 304 && same.is_hit(), "{same:?}");
    let other = edge.ask("GET", "/5", &[("If-None-Match", "\"x\"")]);
    assert!(other.status == 200 && other.is_hit(), "{other:?}");
    assert_eq!(origin.seen().len(), MANY);
}

#[test]
fn a_restart_loses_nothing_and_the_first_request_is_a_hit() {
    let (directory, origin) = (tempfile::tempdir().expect("a directory"), origin());
    let edge = small(&origin, &directory).start();
    get_all(&edge, paths(MANY));
    edge.stop().expect("a good end");
    let edge = small(&origin, &directory).start();
    let first = edge.get("/7");
    assert!(first.is_hit(), "{first:?}");
    assert_eq!(get_all(&edge, paths(MANY)), MANY);
    assert_eq!(origin.seen().len(), MANY);
}

#[test]
fn variants_are_read_together() {
    let origin = Origin::start(|seen| {
        let language = seen
            .fields
            .get("accept-language")
            .cloned()
            .unwrap_or_default();
        match seen.target.starts_with("/page") {
            true => Reply::ok(language, "max-age=600").field("Vary", "Accept-Language"),
            false => Reply::ok(body_of(&seen.target), "max-age=600"),
        }
    });
    let directory = tempfile::tempdir().expect("a directory");
    let edge = small(&origin, &directory).start();
    let languages = ["de", "en", "fr"];
    let ask = |language| edge.ask("GET", "/page", &[("Accept-Language", language)]);
    for language in languages {
        assert!(!ask(language).is_hit());
    }
    get_all(&edge, paths(MANY));
    written(&edge, MANY);
    for language in languages {
        let answer = ask(language);
        assert!(answer.is_hit() && answer.text() == language, "{answer:?}");
    }
    assert!(!ask("nl").is_hit());
    assert_eq!(origin.count("/page"), 4);
}

#[test]
fn what_was_removed_while_it_was_on_disk_only_stays_away() {
    let (directory, origin) = (tempfile::tempdir().expect("a directory"), origin());
    let mut edge = small(&origin, &directory).start();
    get_all(&edge, paths(MANY));
    written(&edge, MANY);
    edge.ask("POST", "/1", &[("Content-Length", "0")]);
    edge.purge(PurgeScope::Url("http://www.test/2".into()), false);
    let is_hit = |edge: &Edge, path: &str| {
        edge.ask("GET", path, &[("Cache-Control", "only-if-cached")])
            .is_hit()
    };
    for path in ["/1", "/2"] {
        assert!(!is_hit(&edge, path), "{path}");
    }
    assert!(is_hit(&edge, "/3"));
    edge.stop().expect("a good end");

    let edge = small(&origin, &directory).start();
    let kept = edge.ask("GET", "/3", &[("Cache-Control", "only-if-cached")]);
    assert!(!is_hit(&edge, "/1") && kept.is_hit(), "{kept:?}");
}

#[test]
fn a_group_that_has_changed_stays_away_from_the_disk() {
    let origin = Origin::start(|seen| match (&*seen.method, &*seen.target) {
        ("POST", _) => Reply::ok("done", "no-store").field("Cache-Group-Invalidation", "\"news\""),
        (_, path) if path.starts_with("/news") => {
            Reply::ok("old", "max-age=600").field("Cache-Groups", "\"news\"")
        }
        (_, path) => Reply::ok(body_of(path), "max-age=600"),
    });
    let directory = tempfile::tempdir().expect("a directory");
    let edge = small(&origin, &directory).start();
    edge.get("/news/1");
    get_all(&edge, paths(MANY));
    written(&edge, MANY);
    edge.ask("POST", "/publish", &[("Content-Length", "0")]);
    let kept = [("Cache-Control", "only-if-cached")];
    assert!(!edge.ask("GET", "/news/1", &kept).is_hit());
    assert!(edge.ask("GET", "/1", &kept).is_hit());
    edge.get("/news/1");
    assert!(edge.ask("GET", "/news/1", &kept).is_hit(), "it is newer");
}

#[test]
fn a_request_that_reads_from_disk_never_brings_back_what_was_removed() {
    let version = Arc::new(AtomicUsize::new(0));
    let shown = version.clone();
    let origin = Origin::start(move |seen| {
        if seen.method == "POST" {
            shown.fetch_add(1, Ordering::SeqCst);
        }
        match seen.target.as_str() {
            "/changing" => Reply::ok(shown.load(Ordering::SeqCst).to_string(), "max-age=600"),
            path => Reply::ok(body_of(path), "max-age=600"),
        }
    });
    let directory = tempfile::tempdir().expect("a directory");
    let edge = small(&origin, &directory).start();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Others need the memory, so the response is read from disk again and again.
        scope.spawn(|| {
            let mut turn = 0;
            while !is_over.load(Ordering::SeqCst) {
                get_all(&edge, (turn..turn + 200).map(|n| format!("/{}", n % MANY)));
                turn += 200;
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let least = version.load(Ordering::SeqCst);
                    // Counted at the origin already, while the edge may not have the answer yet.
                    let answer = edge.get("/changing");
                    let got: usize = answer.text().parse().expect("a number");
                    assert!(got + 1 >= least, "{got} after {least}");
                }
            });
        }
        for turn in 1..=150 {
            edge.ask("POST", "/changing", &[("Content-Length", "0")]);
            for _ in 0..3 {
                let got = edge.get("/changing").text();
                assert_eq!(got, turn.to_string(), "after its change was acknowledged");
            }
        }
        is_over.store(true, Ordering::SeqCst);
    });
}
