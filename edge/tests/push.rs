//! Push orders: from the origin or a node of the same cluster, into the pushed share, at the
//! order's rate.

mod lab;

use std::time::Duration;

use lab::{Edge, Origin, Plan, Reply, free_address, pattern, wait_for};
use nearcast_fleet::change::{Change, PushItem, PushOrder};
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::testing::NODE_KEY;

const BYTES: usize = 700_000;

fn order(id: &str, paths: impl IntoIterator<Item = String>, rate_bytes: u64) -> Change {
    let item = |path: String| PushItem {
        site: "www".into(),
        url: format!("http://www.test{path}"),
        bytes: BYTES as u64,
    };
    Change::Push(PushOrder {
        id: id.into(),
        cluster: "ams".into(),
        items: paths.into_iter().map(item).collect(),
        rate_bytes,
        not_after_unix_ms: now_unix_ms() + 60_000,
        fresh_until_unix_ms: now_unix_ms() + 600_000,
    })
}

fn origin() -> Origin {
    Origin::start(|seen| match seen.target.starts_with("/v/") {
        true => Reply::ok(pattern(BYTES), "max-age=3600")
            .field("ETag", "\"v\"")
            .ranged(seen),
        false => Reply::status(404).field("Cache-Control", "no-store"),
    })
}

fn pushed(edge: &Edge, source: &str) -> f64 {
    edge.metric(&format!(
        "nearcast_push_bytes_total{{cluster=\"ams\",source=\"{source}\"}}"
    ))
}

#[test]
fn a_pushed_urls_first_request_is_a_hit() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = origin();
    let plan = Plan {
        disk: 64 << 20,
        push_share: 32 << 20,
        state_dir: directory.path().to_owned(),
        ..Plan::new(&origin)
    };
    let mut edge = plan.start();
    edge.entry(order("before", ["/v/warm".to_owned()], 100 << 20));
    wait_for("what is warm", || {
        pushed(&edge, "origin") >= BYTES as f64
            && edge.metric("nearcast_edge_disk_pushed_bytes") >= BYTES as f64
    });
    assert_eq!(edge.get("/v/warm").body.len(), BYTES);
    edge.entry(order(
        "one",
        ["/v/warm", "/v/a", "/v/b", "/missing"].map(str::to_owned),
        100 << 20,
    ));
    wait_for("the push", || {
        pushed(&edge, "origin") >= 3.0 * BYTES as f64
            && edge.metric("nearcast_edge_disk_pushed_bytes") >= 3.0 * BYTES as f64
    });
    for path in ["/v/a", "/v/b"] {
        let answer = edge.get(path);
        assert!(
            answer.is_hit() && answer.body == pattern(BYTES),
            "{path}: {}",
            answer.cache()
        );
    }
    assert_eq!(
        (
            origin.count("/v/warm"),
            origin.count("/v/a"),
            origin.count("/missing")
        ),
        (1, 1, 1)
    );
    let metrics = edge.metrics();
    assert!(
        metrics.contains("nearcast_edge_origin_bytes_total{site=\"www\"} 0"),
        "no client caused them: {metrics}"
    );
}

#[test]
fn a_cluster_asks_the_origin_about_once_for_each() {
    let origin = origin();
    let addresses = [free_address(), free_address()];
    let directories = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
    let start = |n: usize| {
        let names = ["ams-1", "ams-2"];
        Plan {
            name: names[n].into(),
            listen: Some(addresses[n]),
            peers: vec![(names[1 - n].into(), addresses[1 - n])],
            disk: 64 << 20,
            push_share: 32 << 20,
            state_dir: directories[n].path().to_owned(),
            ..Plan::new(&origin)
        }
        .start()
    };
    let mut edges = [start(0), start(1)];
    let paths: Vec<String> = (0..16).map(|n| format!("/v/{n}")).collect();
    for edge in &mut edges {
        edge.entry(order("both", paths.clone(), 200 << 20));
    }
    let all = 16.0 * BYTES as f64;
    for edge in &edges {
        wait_for("the push", || {
            pushed(edge, "origin") + pushed(edge, "peer") >= all
        });
        for path in &paths {
            wait_for("the last bytes to be stored", || edge.get(path).is_hit());
        }
        assert!(
            pushed(edge, "peer") > 0.0 && pushed(edge, "origin") > 0.0,
            "some are its own, some are not"
        );
        let answer = edge.get("/v/3");
        assert!(
            answer.field("via") == "1.1 ams-1" || answer.field("via") == "1.1 ams-2",
            "{answer:?}"
        );
        assert!(
            answer.field("nearcast-revision").is_empty(),
            "{:?}",
            answer.fields
        );
        assert!(
            !edge
                .metrics()
                .contains("site=\"www\",status_class=\"5xx\",cache_status=\"error\"")
        );
    }
    assert_eq!(origin.seen().len(), 16, "each came from the origin once");
}

#[test]
fn a_peer_that_is_away_is_replaced_by_the_origin_and_nobody_else_may_ask_like_a_peer() {
    let origin = origin();
    let mut edge = Plan {
        peers: vec![("ams-2".into(), free_address())],
        ..Plan::new(&origin)
    }
    .start();
    let paths: Vec<String> = (0..8).map(|n| format!("/v/{n}")).collect();
    edge.entry(order("alone", paths.clone(), 200 << 20));
    wait_for("the push", || pushed(&edge, "origin") >= 8.0 * BYTES as f64);
    paths
        .iter()
        .for_each(|p| wait_for("the last bytes to be stored", || edge.get(p).is_hit()));
    let fields = [
        ("Nearcast-Peer", "a key that is wrong entirely"),
        ("Cache-Control", "only-if-cached"),
    ];
    assert_eq!(
        edge.ask("GET", "/v/other", &fields).status,
        200,
        "an ordinary request"
    );
    let fields = [
        ("Nearcast-Peer", NODE_KEY),
        ("Cache-Control", "only-if-cached"),
    ];
    assert_eq!(edge.ask("GET", "/v/another", &fields).status, 504);
}

#[test]
fn a_push_keeps_to_its_rate_and_a_newer_order_replaces_it() {
    let origin = origin();
    let mut edge = Plan::new(&origin).start();
    let began = std::time::Instant::now();
    edge.entry(order(
        "slow",
        (0..100).map(|n| format!("/v/slow{n}")),
        1_400_000,
    ));
    wait_for("two files", || {
        pushed(&edge, "origin") >= 2.0 * BYTES as f64
    });
    assert!(
        began.elapsed() > Duration::from_millis(500),
        "faster than its rate: {:?}",
        began.elapsed()
    );
    edge.entry(order("new", ["/v/new".to_owned()], 100 << 20));
    wait_for("the newer order", || origin.count("/v/new") == 1);
    let before = origin.seen().len();
    std::thread::park_timeout(Duration::from_millis(1500));
    assert_eq!(origin.seen().len(), before, "the older one has ended");
}

#[test]
fn an_order_for_another_cluster_interrupts_nothing() {
    let origin = origin();
    let mut edge = Plan::new(&origin).start();
    edge.entry(order(
        "ours",
        (0..4).map(|n| format!("/v/ours{n}")),
        1_400_000,
    ));
    wait_for("the first file", || pushed(&edge, "origin") >= BYTES as f64);
    let Change::Push(mut other) = order("theirs", ["/v/theirs".to_owned()], 100 << 20) else {
        unreachable!("an order is a push")
    };
    other.cluster = "nyc".into();
    edge.entry(Change::Push(other));
    wait_for("all of our own order", || {
        pushed(&edge, "origin") >= 4.0 * BYTES as f64
    });
    assert_eq!(origin.count("/v/theirs"), 0);
}

/// How many of these are stored whole: a request that may not leave the node is answered.
fn hits(edge: &Edge, numbers: impl Iterator<Item = usize>) -> usize {
    numbers
        .filter(|n| {
            edge.ask(
                "GET",
                &format!("/v/{n}"),
                &[("Cache-Control", "only-if-cached")],
            )
            .is_hit()
        })
        .count()
}

fn numbered(numbers: impl Iterator<Item = usize>) -> impl Iterator<Item = String> {
    numbers.map(|n| format!("/v/{n}"))
}

#[test]
fn a_plan_that_fits_is_there_afterwards_and_on_the_next_night() {
    const SHARE: u64 = 32 << 20;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = origin();
    let plan = Plan {
        memory: 1 << 20,
        disk: 64 << 20,
        push_share: SHARE,
        state_dir: directory.path().to_owned(),
        ..Plan::new(&origin)
    };
    let mut edge = plan.start();
    let most = (nearcast_store::measures::usable_bytes(SHARE)
        / nearcast_store::measures::stored_bytes(BYTES as u64)) as usize;
    assert!(most > 36, "{most}");
    edge.entry(order("one", numbered(0..most), 1000 << 20));
    wait_for("the push", || {
        pushed(&edge, "origin") >= (most * BYTES) as f64
    });
    wait_for("all of the first night's", || hits(&edge, 0..most) == most);
    // The second night: every other one again, and as much that is new.
    let again = || (0..most).step_by(2);
    let new = || 1000..1000 + most / 2;
    edge.entry(order("two", numbered(again().chain(new())), 1000 << 20));
    wait_for("the push", || {
        pushed(&edge, "origin") >= ((most + new().len()) * BYTES) as f64
    });
    wait_for("all of the second night's", || {
        hits(&edge, new()) == new().len()
    });
    assert_eq!(
        hits(&edge, again()),
        again().count(),
        "what was warm has gone"
    );
    assert_eq!(
        origin.seen().len(),
        most + new().len(),
        "what was warm came from the origin again"
    );
}

/// Gives what begins with `/v/short` for half a minute, the rest for an hour, and validates both.
fn short_or_long() -> Origin {
    Origin::start(|seen| {
        let lifetime = if seen.target.starts_with("/v/short") {
            "max-age=30"
        } else {
            "max-age=3600"
        };
        match seen.fields.get("if-none-match").map(String::as_str) {
            Some("\"v\"") => Reply::status(304)
                .field("ETag", "\"v\"")
                .field("Cache-Control", lifetime),
            _ => Reply::ok(pattern(BYTES), lifetime)
                .field("ETag", "\"v\"")
                .ranged(seen),
        }
    })
}

#[test]
fn warm_is_what_stays_fresh_until_the_peak_and_the_rest_is_validated() {
    let origin = short_or_long();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let plan = Plan {
        disk: 64 << 20,
        push_share: 32 << 20,
        state_dir: directory.path().to_owned(),
        ..Plan::new(&origin)
    };
    let mut edge = plan.start();
    let items = || ["/v/short", "/v/long"].map(str::to_owned);
    edge.entry(order("one", items(), 100 << 20));
    wait_for("the push", || pushed(&edge, "origin") >= 2.0 * BYTES as f64);
    items()
        .iter()
        .for_each(|p| wait_for("the last bytes to be stored", || edge.get(p).is_hit()));
    edge.entry(order(
        "two",
        items().into_iter().chain(["/v/end".to_owned()]),
        100 << 20,
    ));
    wait_for("the push", || pushed(&edge, "origin") >= 3.0 * BYTES as f64);
    wait_for("the validation", || origin.count("/v/short") == 2);
    assert_eq!(
        origin.count("/v/long"),
        1,
        "it stays fresh for longer than the peak"
    );
    assert_eq!(
        pushed(&edge, "origin"),
        3.0 * BYTES as f64,
        "a validation brings no bytes"
    );
    assert!(edge.get("/v/short").is_hit());
}

#[test]
fn what_clients_pulled_is_pushed_all_the_same() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = origin();
    let plan = Plan {
        disk: 64 << 20,
        push_share: 32 << 20,
        state_dir: directory.path().to_owned(),
        ..Plan::new(&origin)
    };
    let mut edge = plan.start();
    assert_eq!(edge.get("/v/pulled").body.len(), BYTES);
    edge.entry(order("one", ["/v/pulled".to_owned()], 100 << 20));
    wait_for("the push", || {
        edge.metric("nearcast_edge_disk_pushed_bytes") >= BYTES as f64
    });
    assert_eq!(origin.count("/v/pulled"), 2);
    wait_for("the last bytes to be stored", || {
        edge.get("/v/pulled").is_hit()
    });
}

#[test]
fn a_cluster_validates_at_the_origin_once() {
    let origin = short_or_long();
    let addresses = [free_address(), free_address()];
    let directories = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
    let start = |n: usize| {
        let names = ["ams-1", "ams-2"];
        Plan {
            name: names[n].into(),
            listen: Some(addresses[n]),
            peers: vec![(names[1 - n].into(), addresses[1 - n])],
            disk: 64 << 20,
            push_share: 32 << 20,
            state_dir: directories[n].path().to_owned(),
            ..Plan::new(&origin)
        }
        .start()
    };
    let mut edges = [start(0), start(1)];
    let paths: Vec<String> = (0..8).map(|n| format!("/v/short{n}")).collect();
    let brought = |edge: &Edge| pushed(edge, "origin") + pushed(edge, "peer");
    for edge in &mut edges {
        edge.entry(order("one", paths.clone(), 200 << 20));
    }
    for edge in &edges {
        wait_for("the push", || brought(edge) >= 8.0 * BYTES as f64);
        paths
            .iter()
            .for_each(|p| wait_for("the last bytes to be stored", || edge.get(p).is_hit()));
    }
    for edge in &mut edges {
        edge.entry(order(
            "two",
            paths
                .iter()
                .cloned()
                .chain((0..8).map(|n| format!("/v/new{n}"))),
            200 << 20,
        ));
    }
    edges
        .iter()
        .for_each(|edge| wait_for("the second push", || brought(edge) >= 16.0 * BYTES as f64));
    wait_for("every validation", || {
        paths.iter().all(|p| origin.count(p) == 2)
    });
    assert_eq!(
        edges.iter().map(brought).sum::<f64>(),
        32.0 * BYTES as f64,
        "a validation brings no bytes"
    );
    assert_eq!(origin.seen().len(), 24);
}

#[test]
fn an_encoded_path_is_pushed_and_one_that_is_never_stored_is_not_asked_for() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = origin();
    let plan = Plan {
        disk: 64 << 20,
        push_share: 32 << 20,
        state_dir: directory.path().to_owned(),
        ..Plan::new(&origin)
    };
    let mut edge = plan.start();
    edge.entry(order(
        "one",
        ["/v/a/../b", "/v/@scope%2fname"].map(str::to_owned),
        100 << 20,
    ));
    wait_for("the push", || {
        edge.metric("nearcast_edge_disk_pushed_bytes") >= BYTES as f64
    });
    assert!(edge.get("/v/@scope%2fname").is_hit());
    assert_eq!(
        (origin.count("/v/@scope%2fname"), origin.count("/v/a/../b")),
        (1, 0)
    );
}

#[test]
fn a_push_stops_when_its_time_is_over_and_the_next_goes_on_from_there() {
    const LENGTH: usize = 4 << 20;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = Origin::start(|seen| {
        Reply::ok(pattern(LENGTH), "max-age=3600")
            .field("ETag", "\"v\"")
            .ranged(seen)
    });
    let plan = || Plan {
        disk: 64 << 20,
        push_share: 32 << 20,
        state_dir: directory.path().to_owned(),
        ..Plan::new(&origin)
    };
    let mut edge = plan().start();
    let Change::Push(first) = order("first", ["/v/x".to_owned()], 1 << 20) else {
        unreachable!("an order is a push")
    };
    let not_after_unix_ms = now_unix_ms() + 1500;
    edge.entry(Change::Push(PushOrder {
        not_after_unix_ms,
        ..first
    }));
    wait_for("some of it", || pushed(&edge, "origin") >= 300_000.0);
    while now_unix_ms() < not_after_unix_ms + 1000 {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let came = pushed(&edge, "origin");
    std::thread::park_timeout(Duration::from_millis(1500));
    assert_eq!(pushed(&edge, "origin"), came, "nothing comes after it");
    assert!(came < (LENGTH - (1 << 20)) as f64, "{came}");
    // Also a node that was started again in between has what came.
    edge.stop().expect("a good end");
    let mut edge = plan().start();
    edge.entry(order("second", ["/v/x".to_owned()], 100 << 20));
    wait_for("the rest", || {
        edge.ask("GET", "/v/x", &[("Cache-Control", "only-if-cached")])
            .is_hit()
    });
    assert_eq!(edge.get("/v/x").body, pattern(LENGTH));
    let seen = origin.seen();
    assert!(
        seen.len() == 2 && !seen[0].fields.contains_key("range"),
        "{seen:?}"
    );
    let (from, _) = seen[1].range().expect("a part is asked for");
    assert!(
        from > 0 && from % 262_144 == 0 && from as f64 <= came,
        "{from} of {came}"
    );
    assert_eq!(
        pushed(&edge, "origin"),
        (LENGTH - from) as f64,
        "the rest alone"
    );
}

#[test]
fn a_cluster_whose_push_was_cut_goes_on_and_the_origin_gives_each_byte_about_once() {
    const LENGTH: usize = 2 << 20;
    let origin = Origin::start(|seen| {
        Reply::ok(pattern(LENGTH), "max-age=3600")
            .field("ETag", "\"v\"")
            .ranged(seen)
    });
    let addresses = [free_address(), free_address()];
    let directories = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
    let start = |n: usize| {
        let names = ["ams-1", "ams-2"];
        Plan {
            name: names[n].into(),
            listen: Some(addresses[n]),
            peers: vec![(names[1 - n].into(), addresses[1 - n])],
            disk: 64 << 20,
            push_share: 32 << 20,
            state_dir: directories[n].path().to_owned(),
            ..Plan::new(&origin)
        }
        .start()
    };
    let mut edges = [start(0), start(1)];
    let paths: Vec<String> = (0..6).map(|n| format!("/v/{n}")).collect();
    let Change::Push(first) = order("first", paths.clone(), 2 << 20) else {
        unreachable!("an order is a push")
    };
    let cut = PushOrder {
        not_after_unix_ms: now_unix_ms() + 2500,
        ..first
    };
    for edge in &mut edges {
        edge.entry(Change::Push(cut.clone()));
    }
    for edge in &edges {
        wait_for("some of it", || {
            pushed(edge, "origin") + pushed(edge, "peer") >= 600_000.0
        });
    }
    while now_unix_ms() < cut.not_after_unix_ms + 500 {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    for edge in &mut edges {
        edge.entry(order("second", paths.clone(), 200 << 20));
    }
    for edge in &edges {
        for path in &paths {
            wait_for("all of it", || {
                edge.ask("GET", path, &[("Cache-Control", "only-if-cached")])
                    .is_hit()
            });
            assert_eq!(edge.get(path).body, pattern(LENGTH), "{path}");
        }
        assert!(
            !edge
                .metrics()
                .contains("site=\"www\",status_class=\"5xx\",cache_status=\"error\"")
        );
    }
    let from_origin: f64 = edges.iter().map(|edge| pushed(edge, "origin")).sum();
    // A slice that was cut comes again: of each file at most one a node.
    assert!(
        from_origin <= (6 * (LENGTH + 2 * 262_144)) as f64,
        "{from_origin} bytes for {}",
        6 * LENGTH
    );
}

#[test]
fn what_a_push_has_brought_in_part_is_not_joined_with_another_version() {
    const LENGTH: usize = 2 << 20;
    let version = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(1));
    let now = version.clone();
    let origin = Origin::start(move |seen| {
        let version = now.load(std::sync::atomic::Ordering::SeqCst);
        let body: Vec<u8> = pattern(LENGTH)
            .iter()
            .map(|byte| byte ^ version as u8)
            .collect();
        Reply::ok(body, "max-age=3600")
            .field("ETag", &format!("\"{version}\""))
            .ranged(seen)
    });
    let mut edge = Plan::new(&origin).start();
    let Change::Push(first) = order("first", ["/v/x".to_owned()], 1 << 20) else {
        unreachable!("an order is a push")
    };
    edge.entry(Change::Push(PushOrder {
        not_after_unix_ms: now_unix_ms() + 1000,
        ..first
    }));
    wait_for("a slice of it", || pushed(&edge, "origin") >= 300_000.0);
    version.store(2, std::sync::atomic::Ordering::SeqCst);
    std::thread::park_timeout(Duration::from_millis(1500));
    edge.entry(order("second", ["/v/x".to_owned()], 100 << 20));
    let expected: Vec<u8> = pattern(LENGTH).iter().map(|byte| byte ^ 2).collect();
    wait_for("the other version", || {
        edge.metric("nearcast_push_bytes_total{cluster=\"ams\",source=\"origin\"}") >= LENGTH as f64
    });
    wait_for("all of it", || edge.get("/v/x").body == expected);
}

#[test]
fn a_client_that_reads_what_a_push_brings_gets_all_of_it_though_the_push_ends() {
    const LENGTH: usize = 3 << 20;
    for etag in ["\"v\"", "W/\"v\""] {
        let origin = Origin::start(move |seen| {
            Reply::ok(pattern(LENGTH), "max-age=3600")
                .field("ETag", etag)
                .ranged(seen)
        });
        let directory = tempfile::tempdir().expect("a temporary directory");
        let plan = Plan {
            disk: 64 << 20,
            push_share: 32 << 20,
            state_dir: directory.path().to_owned(),
            ..Plan::new(&origin)
        };
        let mut edge = plan.start();
        let Change::Push(first) = order("first", ["/v/x".to_owned()], 1 << 20) else {
            unreachable!("an order is a push")
        };
        edge.entry(Change::Push(PushOrder {
            not_after_unix_ms: now_unix_ms() + 2000,
            ..first
        }));
        wait_for("a slice of it", || pushed(&edge, "origin") >= 300_000.0);
        let answer = edge.get("/v/x");
        assert!(
            answer.status == 200 && answer.body == pattern(LENGTH),
            "{etag}: {}",
            answer.cache()
        );
    }
}
