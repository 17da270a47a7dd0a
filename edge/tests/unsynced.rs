//! Control and the origin both away when a node starts again: what is on disk is served for as long
//! as the origin may fail.

mod lab;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lab::{Edge, Origin, Plan, Reply, exchange, pattern, wait_for};
use nearcast_fleet::change::PurgeScope;
use nearcast_fleet::config::CachePolicy;
use nearcast_fleet::follow::FollowState;

const LARGE: usize = 700_000;

/// Answers by path; with errors once it has failed.
fn origin() -> (Origin, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(false));
    let failing = fails.clone();
    let origin = Origin::start(move |seen| {
        if failing.load(Ordering::SeqCst) {
            return Reply::status(503);
        }
        let directives = match seen.target.split('?').next() {
            Some("/must") => "max-age=600, must-revalidate",
            Some("/proxy") => "max-age=600, proxy-revalidate",
            Some("/no-cache") => "no-cache",
            Some("/shared") => "s-maxage=600",
            Some("/short") => "max-age=600, stale-if-error=0",
            Some("/stale") => "max-age=1",
            _ => "max-age=600",
        };
        let reply = Reply::ok(
            if seen.target == "/large" {
                pattern(LARGE)
            } else {
                b"kept".to_vec()
            },
            directives,
        )
        .field("ETag", "\"v\"");
        if seen.target == "/stale" {
            reply.field("Age", "100")
        } else {
            reply.ranged(seen)
        }
    });
    (origin, fails)
}

fn plan(origin: &Origin, directory: &Path, cache: CachePolicy) -> Plan {
    Plan {
        disk: 64 << 20,
        state_dir: directory.to_owned(),
        cache,
        ..Plan::new(origin)
    }
}

fn a_day() -> CachePolicy {
    CachePolicy {
        stale_if_error: Duration::from_secs(86_400),
        ..CachePolicy::default()
    }
}

/// A node that was started again after it had stored what these paths name.
fn again(origin: &Origin, directory: &Path, cache: CachePolicy, paths: &[&str]) -> Edge {
    let first = plan(origin, directory, cache.clone()).start();
    for path in paths {
        assert_eq!(first.get(path).status, 200, "{path}");
    }
    first.stop().expect("a good end");
    Plan {
        caught_up: false,
        ..plan(origin, directory, cache)
    }
    .start()
}

/// Control was asked and did not answer.
fn cut_off(edge: &Edge) {
    edge.state.send_modify(|s| {
        *s = FollowState {
            recalled: true,
            asked: true,
            control_reachable: false,
            ..*s
        }
    });
}

fn ready(edge: &Edge) -> (u16, String) {
    let answer = exchange(
        edge.admin,
        b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    .expect("it answers");
    (answer.status, answer.text())
}

#[test]
fn what_is_on_disk_is_served_where_nobody_can_say_whether_it_is_good() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (origin, _) = origin();
    let paths = [
        "/fresh",
        "/stale",
        "/large",
        "/must",
        "/proxy",
        "/no-cache",
        "/shared",
        "/short",
        "/purged",
    ];
    let mut edge = again(&origin, directory.path(), a_day(), &paths);
    // Of what the node's own copy of the journal brings.
    edge.purge(PurgeScope::Url("http://www.test/purged".into()), false);
    origin.stop();
    cut_off(&edge);
    for (path, age) in [("/fresh", 0), ("/stale", 100)] {
        for _ in 0..3 {
            let answer = edge.get(path);
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (200, "kept"),
                "{path}: {}",
                answer.cache()
            );
            assert!(
                answer.cache().ends_with("; detail=unsynced"),
                "{path}: {}",
                answer.cache()
            );
            assert!(
                answer.field("age").parse::<u64>().expect("an age") >= age,
                "{path}"
            );
        }
    }
    let range = edge.ask("GET", "/large", &[("Range", "bytes=300000-300099")]);
    assert_eq!(
        (range.status, &range.body[..]),
        (206, &pattern(LARGE)[300_000..300_100]),
        "{}",
        range.cache()
    );
    let head = edge.ask("HEAD", "/large", &[]);
    assert_eq!(
        (head.status, head.field("content-length")),
        (200, "700000"),
        "{}",
        head.cache()
    );
    let whole = edge.get("/large");
    assert!(
        whole.status == 200 && whole.body == pattern(LARGE),
        "{}",
        whole.cache()
    );
    let condition = edge.ask("GET", "/fresh", &[("If-None-Match", "\"v\"")]);
    for answer in [&range, &head, &whole, &condition] {
        assert!(
            answer.cache().ends_with("; detail=unsynced"),
            "{}",
            answer.cache()
        );
    }
    assert_eq!(condition.status, 304);
    assert_eq!(
        edge.metric("nearcast_edge_unsynced_total{site=\"www\"}"),
        10.0
    );
    for path in [
        "/must",
        "/proxy",
        "/no-cache",
        "/shared",
        "/short",
        "/purged",
        "/unknown",
    ] {
        let answer = edge.get(path);
        assert!(
            (502..=504).contains(&answer.status),
            "{path}: {} {}",
            answer.status,
            answer.cache()
        );
        assert!(
            !answer.text().contains("kept") && !answer.cache().contains("unsynced"),
            "{path}: {}",
            answer.cache()
        );
    }
    let (status, words) = ready(&edge);
    assert!(
        status == 200 && words.starts_with("ready; control does not answer"),
        "{words}"
    );
    // Control is back: what is known holds, and is served as ever.
    edge.purge(PurgeScope::Url("http://www.test/stale".into()), false);
    edge.state.send_modify(|s| {
        *s = FollowState {
            caught_up: true,
            control_reachable: true,
            ..*s
        }
    });
    wait_for("the node to know that it has caught up", || {
        ready(&edge).1 == "ready\n"
    });
    assert!(edge.get("/fresh").is_hit() && (502..=504).contains(&edge.get("/stale").status));
}

#[test]
fn only_a_failed_validation_and_a_silent_control_are_reasons() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (origin, fails) = origin();
    let edge = again(&origin, directory.path(), a_day(), &["/a", "/b", "/c"]);
    cut_off(&edge);
    let validated = edge.get("/a");
    assert!(
        validated.cache().contains("fwd=stale; fwd-status=200"),
        "the origin answers: {}",
        validated.cache()
    );
    fails.store(true, Ordering::SeqCst);
    let answer = edge.get("/b");
    assert_eq!(answer.text(), "kept");
    let expected = ["fwd=stale; fwd-status=503; ttl=", "; detail=unsynced"];
    assert!(
        expected.iter().all(|words| answer.cache().contains(words)),
        "{}",
        answer.cache()
    );
    // Control answers, and has not said all yet.
    edge.state.send_modify(|s| {
        *s = FollowState {
            recalled: true,
            asked: true,
            control_reachable: true,
            ..*s
        }
    });
    wait_for("the node to know", || {
        ready(&edge).1.starts_with("ready; not caught up")
    });
    let answer = edge.get("/c");
    assert!(
        answer.status == 503 && !answer.cache().contains("unsynced"),
        "{} {}",
        answer.status,
        answer.cache()
    );
    // Not even all of its own copy of the journal is folded: what that purges is not known.
    edge.state.send_modify(|s| {
        *s = FollowState {
            recalled: false,
            asked: false,
            control_reachable: false,
            ..*s
        }
    });
    wait_for("the node to know", || edge.get("/c").status == 503);
    assert_eq!(
        edge.metric("nearcast_edge_unsynced_total{site=\"www\"}"),
        1.0
    );
    // Control is asked, and takes its time.
    edge.state.send_modify(|s| {
        *s = FollowState {
            recalled: true,
            asked: false,
            control_reachable: false,
            ..*s
        }
    });
    wait_for("the node to ask", || {
        edge.get("/c").cache().ends_with("detail=unsynced")
    });
}

#[test]
fn a_site_may_forbid_it_and_without_a_window_of_stale_use_there_is_none() {
    for cache in [
        CachePolicy {
            serve_unsynced: false,
            ..a_day()
        },
        CachePolicy::default(),
    ] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (origin, _) = origin();
        let edge = again(&origin, directory.path(), cache.clone(), &["/fresh"]);
        origin.stop();
        cut_off(&edge);
        let answer = edge.get("/fresh");
        assert!(
            answer.status == 502 && !answer.cache().contains("unsynced"),
            "{cache:?}: {} {}",
            answer.status,
            answer.cache()
        );
    }
}
