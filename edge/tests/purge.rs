//! Purges of every scope, also across a restart; the disk tier under them.

mod lab;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lab::{Edge, Origin, Plan, Reply, pattern, wait_for};
use nearcast_fleet::follow::FollowState;
use nearcast_fleet::journal::PurgeScope;

fn versions() -> (Origin, Arc<AtomicUsize>) {
    let version = Arc::new(AtomicUsize::new(1));
    let published = version.clone();
    let origin = Origin::start(move |seen| {
        let v = published.load(Ordering::SeqCst);
        let reply = Reply::ok(format!("version {v}"), "max-age=3600").field("ETag", &format!("\"{v}\"")).field("Cache-Tag", "pages, news");
        match seen.fields.get("if-none-match").is_some_and(|tag| *tag == format!("\"{v}\"")) {
            true => Reply { status: 304, body: vec![], ..reply },
            false => reply,
        }
    });
    (origin, version)
}

#[test]
fn a_purge_of_any_scope_makes_what_it_covers_not_exist() {
    let (origin, version) = versions();
    let mut edge = Plan::new(&origin).start();
    let s = |text: &str| text.to_owned();
    let scopes = [
        PurgeScope::Url(s("http://www.test/news/today")),
        PurgeScope::Url(s("http://WWW.test:8080/news/today")),
        PurgeScope::Prefix(s("http://www.test/news/")),
        PurgeScope::Host(s("www.test")),
        PurgeScope::Site(s("www")),
        PurgeScope::Tag(s("news")),
        PurgeScope::All,
    ];
    for scope in scopes {
        let before = edge.get("/news/today").text();
        version.fetch_add(1, Ordering::SeqCst);
        assert_eq!(edge.get("/news/today").text(), before, "still stored before {scope:?}");
        for other in [PurgeScope::Url(s("http://www.test/news/other")), PurgeScope::Tag(s("sport")), PurgeScope::Site(s("video"))] {
            edge.purge(other, false);
        }
        assert!(edge.get("/news/today").is_hit(), "not covered by another scope");
        edge.purge(scope.clone(), false);
        let after = edge.get("/news/today");
        assert_eq!(after.text(), format!("version {}", version.load(Ordering::SeqCst)), "{scope:?}");
        assert!(after.cache().contains("fwd=uri-miss"), "{}", after.cache());
    }
}

#[test]
fn a_soft_purge_validates_instead_of_forgetting() {
    let (origin, version) = versions();
    let mut edge = Plan::new(&origin).start();
    edge.get("/soft");
    edge.purge(PurgeScope::Site("www".into()), true);
    let validated = edge.get("/soft");
    assert!(validated.cache().contains("fwd=stale; fwd-status=304"), "{}", validated.cache());
    assert!(edge.get("/soft").is_hit(), "once is enough");
    version.fetch_add(1, Ordering::SeqCst);
    edge.purge(PurgeScope::Tag("pages".into()), true);
    assert_eq!(edge.get("/soft").text(), "version 2");
}

#[test]
fn a_fill_under_way_is_covered_by_a_purge_that_comes_meanwhile() {
    let version = Arc::new(AtomicUsize::new(1));
    let published = version.clone();
    let origin = Origin::start(move |_| {
        let v = published.load(Ordering::SeqCst);
        Reply::ok(vec![v as u8; 100_000], "max-age=3600").slow(10, 60)
    });
    let mut edge = Plan::new(&origin).start();
    let mut early = edge.connect();
    std::io::Write::write_all(&mut early, b"GET /slow HTTP/1.1\r\nHost: www.test\r\n\r\n").expect("sent");
    wait_for("the fill to begin", || origin.count("/slow") == 1);
    version.store(2, Ordering::SeqCst);
    edge.purge(PurgeScope::All, false);
    assert_eq!(edge.get("/slow").body[0], 2);
    assert_eq!(edge.get("/slow").body[0], 2);
    assert_eq!(origin.count("/slow"), 2);
}

fn on_disk(origin: &Origin, directory: &tempfile::TempDir) -> Plan {
    Plan { disk: 64 << 20, state_dir: directory.path().to_owned(), ..Plan::new(origin) }
}

#[test]
fn what_is_on_disk_survives_a_restart() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = Origin::start(|seen| match seen.target.as_str() {
        "/big" => Reply::ok(pattern(3_000_000), "max-age=600"),
        "/part" => Reply::ok(pattern(3_000_000), "max-age=600").field("ETag", "\"p\"").ranged(seen),
        _ => Reply::ok("small", "max-age=600").field("Vary", "Accept-Language"),
    });
    let edge = on_disk(&origin, &directory).start();
    edge.get("/big");
    edge.ask("GET", "/small", &[("Accept-Language", "en")]);
    edge.ask("GET", "/part", &[("Range", "bytes=1000000-1000009")]);
    edge.stop().expect("a good end");
    let asked = origin.seen().len();
    let edge = on_disk(&origin, &directory).start();
    let big = edge.get("/big");
    assert!(big.is_hit() && big.body == pattern(3_000_000), "{}", big.cache());
    assert!(edge.ask("GET", "/small", &[("Accept-Language", "en")]).is_hit());
    let part = edge.ask("GET", "/part", &[("Range", "bytes=1000000-1000009")]);
    assert!(part.is_hit() && part.body == pattern(3_000_000)[1_000_000..1_000_010], "{}", part.cache());
    assert_eq!(origin.seen().len(), asked);
}

#[test]
fn a_purge_also_covers_what_a_restart_brings_back() {
    for stored_again in [false, true] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (origin, version) = versions();
        let mut edge = on_disk(&origin, &directory).start();
        edge.get("/page");
        edge.purge(PurgeScope::Site("www".into()), false);
        if stored_again {
            edge.get("/page");
        }
        edge.stop().expect("a good end");
        version.fetch_add(1, Ordering::SeqCst);
        // The journal's copy is handed out again from its begin.
        let mut edge = on_disk(&origin, &directory).start();
        edge.purge(PurgeScope::Site("www".into()), false);
        let expected = if stored_again { "version 1" } else { "version 2" };
        assert_eq!(edge.get("/page").text(), expected, "stored after the purge: {stored_again}");
    }
}

#[test]
fn until_every_missed_purge_is_known_nothing_of_an_earlier_run_is_used_unvalidated() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (origin, version) = versions();
    let edge = on_disk(&origin, &directory).start();
    for path in ["/one", "/two", "/three"] {
        edge.get(path);
    }
    edge.stop().expect("a good end");
    let mut edge = Plan { caught_up: false, ..on_disk(&origin, &directory) }.start();
    let same = edge.get("/one");
    assert!(same.cache().contains("fwd=stale; fwd-status=304"), "{}", same.cache());
    assert!(edge.get("/one").is_hit(), "it is of this run now");
    version.fetch_add(1, Ordering::SeqCst);
    assert_eq!(edge.get("/two").text(), "version 2");
    edge.purge(PurgeScope::Url("http://www.test/other".into()), false);
    edge.state.send_modify(|s| *s = FollowState { caught_up: true, ..*s });
    wait_for("the node to know that it has caught up", || edge.metric("nearcast_edge_is_caught_up") == 1.0);
    let three = edge.get("/three");
    assert!(three.is_hit() && three.text() == "version 1", "no purge covers it: {}", three.cache());
}

#[test]
fn memory_that_is_too_small_is_helped_by_the_disk() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = Origin::start(|_| Reply::ok(pattern(2 << 20), "max-age=600"));
    let edge = Plan { memory: 2 << 20, ..on_disk(&origin, &directory) }.start();
    let paths: Vec<String> = (0..10).map(|n| format!("/{n}")).collect();
    paths.iter().for_each(|p| assert!(edge.get(p).whole));
    for path in &paths {
        let answer = edge.get(path);
        assert!(answer.is_hit() && answer.body == pattern(2 << 20), "{path}: {}", answer.cache());
    }
    assert_eq!(origin.seen().len(), 10);
    assert!(edge.metric("nearcast_edge_disk_bytes") > (20 << 20) as f64);
}

#[test]
fn more_than_the_disk_holds_evicts_and_breaks_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = Origin::start(|seen| Reply::ok(pattern(500_000), "max-age=600").field("ETag", "\"v\"").ranged(seen));
    let plan = || Plan { disk: 8 << 20, memory: 2 << 20, ..on_disk(&origin, &directory) };
    let edge = plan().start();
    for round in 0..2 {
        for n in 0..40 {
            let answer = edge.get(&format!("/{n}"));
            assert!(answer.whole && answer.body == pattern(500_000), "round {round}, {n}: {}", answer.cache());
        }
    }
    wait_for("evictions", || edge.metric("nearcast_edge_disk_evictions_total") > 0.0);
    assert!(edge.metric("nearcast_edge_disk_bytes") <= (8 << 20) as f64);
    wait_for("evicted responses to leave the index", || edge.metric("nearcast_edge_stored_urls") < 40.0);
    edge.stop().expect("a good end");
    let edge = plan().start();
    for n in 0..40 {
        let answer = edge.get(&format!("/{n}"));
        assert!(answer.whole && answer.body == pattern(500_000), "after a restart, {n}: {}", answer.cache());
    }
}

#[test]
fn a_disk_that_fails_never_shows_to_a_client() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = Origin::start(|_| Reply::ok(pattern(500_000), "max-age=600"));
    let edge: Edge = on_disk(&origin, &directory).start();
    // The pool's directory cannot be made any more: every write fails.
    let store = directory.path().join("ams-1").join("store");
    std::fs::remove_dir_all(&store).expect("it was made");
    std::fs::write(&store, b"in the way").expect("writable");
    for _ in 0..2 {
        for n in 0..5 {
            let answer = edge.get(&format!("/{n}"));
            assert!(answer.whole && answer.body == pattern(500_000));
        }
    }
    assert_eq!(origin.seen().len(), 5, "memory serves on");
    wait_for("the failure to be counted", || edge.metric("nearcast_edge_disk_errors_total") >= 1.0);
    assert_eq!(edge.metric("nearcast_edge_disk_is_on"), 0.0);
}

#[test]
fn a_state_directory_that_cannot_be_written_to_is_a_clear_failure() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("ams-1"), b"in the way").expect("writable");
    let (origin, _version) = versions();
    let failure = on_disk(&origin, &directory).try_start().err().expect("it cannot start");
    assert_eq!(failure.kind.exit_code(), 73, "{failure}");
    assert!(failure.message.contains("state_dir"), "{failure}");
}
