//! Fills: shared by all who want the same, never slowed by a reader, resumed after a cut.

mod lab;

use std::io::{BufReader, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lab::{Answer, Edge, Gate, Origin, Plan, Reply, Seen, pattern, read_answer, wait_for};
use nearcast_fleet::config::CachePolicy;
use nearcast_fleet::units::Bytes;

#[test]
fn two_hundred_at_once_on_one_cold_slow_url_are_one_origin_request() {
    let body = pattern(1 << 20);
    let sent = body.clone();
    let origin = Origin::start(move |_| {
        Reply::ok(sent.clone(), "max-age=600")
            .field("ETag", "\"slow\"")
            .slow(16, 40)
    });
    let edge = Plan::new(&origin).start();
    let times: Vec<(Duration, Duration)> = std::thread::scope(|scope| {
        let asks: Vec<_> = (0..200)
            .map(|_| {
                scope.spawn(|| {
                    let began = Instant::now();
                    let mut stream = edge.connect();
                    stream
                        .write_all(
                            b"GET /slow HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n",
                        )
                        .expect("sent");
                    let mut reader = BufReader::new(stream);
                    let mut whole = Vec::new();
                    let mut first = None;
                    let mut buffer = [0; 65536];
                    loop {
                        let n = reader.read(&mut buffer).expect("readable");
                        if n == 0 {
                            break;
                        }
                        whole.extend_from_slice(&buffer[..n]);
                        let has_body = whole
                            .windows(4)
                            .position(|w| w == b"\r\n\r\n")
                            .is_some_and(|at| whole.len() > at + 4);
                        if first.is_none() && has_body {
                            first = Some(began.elapsed());
                        }
                    }
                    assert!(whole.ends_with(&body), "whole");
                    (first.expect("a body"), began.elapsed())
                })
            })
            .collect();
        asks.into_iter()
            .map(|a| a.join().expect("no panic"))
            .collect()
    });
    assert_eq!(origin.count("/slow"), 1, "one request at the origin");
    let early = times
        .iter()
        .filter(|(first, last)| first.as_secs_f64() < 0.7 * last.as_secs_f64())
        .count();
    assert!(early > 150, "only {early} of 200 saw bytes before the end");
    let metrics = edge.metrics();
    assert!(metrics.contains("cache_status=\"collapsed\""), "{metrics}");
}

/// Sends so many requests at once that all but one wait for that one's forward request, and then
/// opens the gate.
fn ask_together(
    edge: &Edge,
    gate: &Gate,
    requests: usize,
    ask: impl Fn() -> Answer + Sync,
) -> Vec<Answer> {
    ask_in_groups(edge, gate, requests, 1, ask)
}

/// As [`ask_together`], where one of each group does not wait.
fn ask_in_groups(
    edge: &Edge,
    gate: &Gate,
    requests: usize,
    groups: usize,
    ask: impl Fn() -> Answer + Sync,
) -> Vec<Answer> {
    std::thread::scope(|scope| {
        let asks: Vec<_> = (0..requests).map(|_| scope.spawn(&ask)).collect();
        wait_for("the others to wait", || {
            edge.metric("nearcast_edge_forwards_waiting") == (requests - groups) as f64
        });
        gate.open();
        asks.into_iter()
            .map(|a| a.join().expect("no panic"))
            .collect()
    })
}

#[test]
fn an_error_goes_to_all_who_waited_and_to_nobody_after_them() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |_| {
        held.wait();
        Reply {
            status: 503,
            ..Reply::ok("in trouble", "").field("Retry-After", "7")
        }
    });
    let edge = Plan::new(&origin).start();
    for answer in ask_together(&edge, &gate, 200, || edge.get("/x")) {
        assert_eq!(
            (
                answer.status,
                answer.text().as_str(),
                answer.field("retry-after")
            ),
            (503, "in trouble", "7"),
            "{answer:?}"
        );
        assert!(
            answer.whole && answer.field("age").is_empty() && !answer.is_hit(),
            "{answer:?}"
        );
    }
    assert_eq!(origin.count("/x"), 1, "one request at an origin in trouble");
    assert_eq!(edge.get("/x").status, 503);
    assert_eq!(origin.count("/x"), 2, "it is not stored");
    wait_for("nothing of it to be kept", || edge.memory_used() == 0.0);
}

#[test]
fn of_an_error_that_is_large_or_of_unknown_length_the_others_get_the_status() {
    for (bytes, chunked) in [(1 << 20, false), (1 << 20, true), (10, true)] {
        let gate = Gate::default();
        let held = gate.clone();
        let origin = Origin::start(move |_| {
            held.wait();
            Reply {
                status: 503,
                chunked,
                ..Reply::ok(pattern(bytes), "")
            }
        });
        let edge = Plan::new(&origin).start();
        let answers = ask_together(&edge, &gate, 20, || edge.get("/x"));
        assert!(
            answers.iter().all(|a| a.status == 503 && a.whole),
            "{bytes} {chunked}"
        );
        assert_eq!(
            answers.iter().filter(|a| a.body == pattern(bytes)).count(),
            1,
            "{bytes} {chunked}: one has it whole"
        );
        assert_eq!(origin.count("/x"), 1, "{bytes} {chunked}");
    }
}

/// One client's request, and others' that wait for what comes of it; how often the origin was
/// asked.
fn lead_and_follow(
    edge: &Edge,
    origin: &Origin,
    gate: &Gate,
    own: &[(&str, &str)],
    followers: usize,
) -> (Answer, Vec<Answer>, usize) {
    let (own, others) = std::thread::scope(|scope| {
        let own = scope.spawn(|| edge.ask("GET", "/hot", own));
        wait_for("the first to be asked for", || origin.count("/hot") == 1);
        let others: Vec<_> = (0..followers)
            .map(|_| scope.spawn(|| edge.get("/hot")))
            .collect();
        // Those that cannot wait for the first wait for one of their own.
        wait_for("the others to wait", || {
            edge.metric("nearcast_edge_forwards_waiting") + (origin.count("/hot") - 1) as f64
                >= followers as f64
        });
        gate.open();
        (
            own.join().expect("no panic"),
            others
                .into_iter()
                .map(|o| o.join().expect("no panic"))
                .collect(),
        )
    });
    (own, others, origin.count("/hot"))
}

#[test]
fn an_error_that_one_clients_fields_brought_about_is_nobody_elses() {
    for (name, value) in [
        ("Authorization", "evil"),
        ("X-Evil", "1"),
        ("Cookie", "evil=1"),
        ("Range", "bytes=5-9"),
    ] {
        for hangs_up in [false, true] {
            let gate = Gate::default();
            let held = gate.clone();
            let origin = Origin::start(move |seen| {
                held.wait();
                match seen.fields.contains_key(&name.to_lowercase()) {
                    true if hangs_up => Reply::ok("x".repeat(100), "max-age=60")
                        .field("Content-Length", "5")
                        .cut_after(0),
                    true => Reply {
                        status: 500,
                        ..Reply::ok("bad fields", "")
                    },
                    false => Reply::ok("fine", "max-age=60"),
                }
            });
            let edge = Plan::new(&origin).start();
            let (own, others, asked) = lead_and_follow(&edge, &origin, &gate, &[(name, value)], 20);
            assert_eq!(own.status, if hangs_up { 502 } else { 500 }, "{name}");
            for other in others {
                assert_eq!(
                    (other.status, other.text().as_str()),
                    (200, "fine"),
                    "{name}: {other:?}"
                );
            }
            assert!(asked <= 3, "{name}: {asked} requests");
        }
    }
}

#[test]
fn what_comes_for_one_client_alone_sends_the_others_to_one_of_them() {
    let strong = ("ETag", "\"s\"");
    for (what, field, tag, status) in [
        (
            "a part that cannot be kept",
            ("Range", "bytes=300000-300010"),
            ("ETag", "W/\"s\""),
            206,
        ),
        ("no part", ("Range", "bytes=99999999-"), strong, 416),
        ("credentials", ("Authorization", "mine"), strong, 200),
    ] {
        let gate = Gate::default();
        let held = gate.clone();
        let origin = Origin::start(move |seen| {
            held.wait();
            Reply::ok(pattern(700_000), "max-age=60")
                .field(tag.0, tag.1)
                .ranged(seen)
        });
        let edge = Plan::new(&origin).start();
        let (own, others, asked) = lead_and_follow(&edge, &origin, &gate, &[field], 50);
        assert_eq!(own.status, status, "{what}");
        assert!(
            others
                .iter()
                .all(|o| o.status == 200 && o.body == pattern(700_000)),
            "{what}"
        );
        assert_eq!(asked, 2, "{what}");
        assert!(edge.get("/hot").is_hit(), "{what}");
    }
}

#[test]
fn a_purge_while_many_wait_costs_one_request_more() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |_| {
        held.wait();
        Reply::ok("x", "max-age=60")
    });
    let mut edge = Plan::new(&origin).start();
    let mut streams: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = edge.connect();
            stream
                .write_all(b"GET /hot HTTP/1.1\r\nHost: www.test\r\n\r\n")
                .expect("sent");
            stream
        })
        .collect();
    wait_for("all but one to wait", || {
        edge.metric("nearcast_edge_forwards_waiting") == 49.0
    });
    edge.purge(nearcast_fleet::change::PurgeScope::All, false);
    gate.open();
    for stream in &mut streams {
        assert_eq!(
            read_answer(&mut BufReader::new(stream), false)
                .expect("an answer")
                .text(),
            "x"
        );
    }
    assert_eq!(origin.count("/hot"), 2);
    assert!(edge.get("/hot").is_hit());
}

#[test]
fn an_error_that_is_for_one_client_tells_the_others_its_status_alone() {
    for (name, value) in [
        ("Set-Cookie", "who=me"),
        ("Cache-Control", "private"),
        ("Cache-Control", "no-store"),
        ("Vary", "*"),
    ] {
        let gate = Gate::default();
        let held = gate.clone();
        let origin = Origin::start(move |_| {
            held.wait();
            Reply {
                status: 500,
                ..Reply::ok("mine alone", "").field(name, value)
            }
        });
        let edge = Plan::new(&origin).start();
        let answers = ask_together(&edge, &gate, 20, || edge.get("/x"));
        assert!(answers.iter().all(|a| a.status == 500), "{name}");
        let (own, others): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|a| a.text() == "mine alone");
        assert_eq!(
            (own.len(), others.len(), origin.count("/x")),
            (1, 19, 1),
            "{name}"
        );
        for other in others {
            assert_eq!(
                other.error(),
                "ams-1; received-status=500",
                "{name}: {other:?}"
            );
            assert!(
                other.field("set-cookie").is_empty() && other.cache().contains("; collapsed"),
                "{name}: {other:?}"
            );
        }
    }
}

#[test]
fn an_error_behind_a_stale_response_is_shared_as_well() {
    // What may be served on error is; what may not gets the error. Neither asks the origin again.
    for (cache_control, status, text) in [
        ("max-age=0, stale-if-error=60", 200, "good"),
        ("max-age=0, must-revalidate", 502, "bad"),
    ] {
        let (gate, is_bad) = (Gate::default(), std::sync::Arc::new(AtomicUsize::new(0)));
        let (held, bad) = (gate.clone(), is_bad.clone());
        let origin = Origin::start(move |_| match bad.load(Ordering::SeqCst) {
            0 => Reply::ok("good", cache_control).field("ETag", "\"g\""),
            _ => {
                held.wait();
                Reply {
                    status: 502,
                    ..Reply::ok("bad", "max-age=60")
                }
            }
        });
        let edge = Plan::new(&origin).start();
        assert_eq!(edge.get("/x").text(), "good");
        is_bad.store(1, Ordering::SeqCst);
        for answer in ask_together(&edge, &gate, 20, || edge.get("/x")) {
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (status, text),
                "{cache_control}: {answer:?}"
            );
        }
        assert_eq!(origin.count("/x"), 2, "{cache_control}");
    }
}

#[test]
fn an_origin_that_hangs_up_does_so_once_for_all_who_wait() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |_| {
        held.wait();
        Reply::ok("x".repeat(100), "max-age=60")
            .field("Content-Length", "5")
            .cut_after(0)
    });
    let edge = Plan::new(&origin).start();
    for answer in ask_together(&edge, &gate, 20, || edge.get("/x")) {
        assert_eq!(answer.status, 502, "{answer:?}");
        assert!(
            answer.field("proxy-status").starts_with("ams-1; error="),
            "{answer:?}"
        );
    }
    assert_eq!(origin.count("/x"), 1);
}

#[test]
fn each_variant_is_asked_for_once_however_many_wait_for_whichever() {
    let gates = [Gate::default(), Gate::default()];
    let held = gates.clone();
    let origin = Origin::start(move |seen| {
        let name = if seen.target == "/unusual" {
            "x-kind"
        } else {
            "accept"
        };
        held[usize::from(name == "x-kind")].wait();
        Reply::ok(seen.fields[name].clone(), "max-age=60").field("Vary", name)
    });
    let edge = Plan::new(&origin).start();
    let number = AtomicUsize::new(0);
    // What may differ by an unusual field never waits for another value's; what differs by an
    // ordinary one finds out.
    for (path, name, groups) in [("/unusual", "X-Kind", 4), ("/ordinary", "Accept", 1)] {
        let gate = &gates[groups / 4];
        ask_in_groups(&edge, gate, 40, groups, || {
            let kind = ["a", "b", "c", "d"][number.fetch_add(1, Ordering::SeqCst) % 4];
            let answer = edge.ask("GET", path, &[(name, kind)]);
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (200, kind),
                "{answer:?}"
            );
            answer
        });
        assert_eq!(origin.count(path), 4, "{name}: one for each variant");
    }
}

/// A body of 16 slices of which the origin holds all but the first slice back, when it is asked for
/// the whole.
fn held_back(gate: &Gate, body: &[u8], answers_ranges: bool) -> Origin {
    let (gate, body) = (gate.clone(), body.to_vec());
    Origin::start(move |seen: &Seen| {
        let reply = Reply::ok(body.clone(), "max-age=600").field("ETag", "\"v\"");
        match seen.range() {
            Some(_) if answers_ranges => reply.ranged(seen),
            _ => reply.held_at(300_000, &gate),
        }
    })
}

#[test]
fn a_seek_far_ahead_of_a_fill_does_not_wait_for_it_and_nothing_comes_twice() {
    const SLICE: usize = 256 << 10;
    let (gate, body) = (Gate::default(), pattern(16 * SLICE));
    let origin = held_back(&gate, &body, true);
    let edge = Plan {
        memory: 64 << 20,
        ..Plan::new(&origin)
    }
    .start();
    std::thread::scope(|scope| {
        let whole = scope.spawn(|| edge.get("/film"));
        wait_for("the fill to be under way", || edge.memory_used() > 0.0);
        // Many who jump to the same place.
        let seeks: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| edge.ask("GET", "/film", &[("Range", "bytes=3000000-3300000")]))
            })
            .collect();
        for seek in seeks {
            let answer = seek.join().expect("no panic");
            assert!(
                answer.status == 206 && answer.whole && answer.body == body[3_000_000..=3_300_000],
                "{}",
                answer.body.len()
            );
        }
        gate.open();
        let whole = whole.join().expect("no panic");
        assert!(
            whole.whole && whole.body == body,
            "{} bytes",
            whole.body.len()
        );
    });
    let ranges: Vec<_> = origin.seen().iter().map(Seen::range).collect();
    let ahead = Some((11 * SLICE, Some(13 * SLICE - 1)));
    assert_eq!(
        ranges,
        [None, ahead, Some((13 * SLICE, Some(16 * SLICE - 1)))]
    );
    let received = edge.metric("nearcast_edge_origin_bytes_total");
    assert!(
        received < (16 * SLICE + 128 * 1024) as f64,
        "{received} bytes for {}",
        body.len()
    );
    assert!(edge.get("/film").is_hit());
}

#[test]
fn a_seek_waits_where_the_origin_gives_no_parts() {
    let (gate, body) = (Gate::default(), pattern(4 << 20));
    let origin = held_back(&gate, &body, false);
    let edge = Plan::new(&origin).start();
    std::thread::scope(|scope| {
        let whole = scope.spawn(|| edge.get("/film"));
        wait_for("the fill to be under way", || edge.memory_used() > 0.0);
        let seek = scope.spawn(|| edge.ask("GET", "/film", &[("Range", "bytes=3000000-3000009")]));
        wait_for("the try", || origin.seen().len() == 2);
        gate.open();
        assert!(whole.join().expect("no panic").body == body);
        assert!(seek.join().expect("no panic").body == body[3_000_000..3_000_010]);
    });
    assert_eq!(origin.seen().len(), 2, "one try");
}

#[test]
fn what_may_not_be_shared_does_not_make_anybody_wait_in_line() {
    let origin = Origin::start(|_| {
        std::thread::park_timeout(Duration::from_millis(300));
        Reply::ok("mine", "private")
    });
    let edge = Plan::new(&origin).start();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(edge.get("/me").text(), "mine"));
        }
    });
    assert_eq!(origin.count("/me"), 20, "each has its own");
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "side by side: {:?}",
        began.elapsed()
    );
}

#[test]
fn what_may_be_shared_again_is_shared_again() {
    let asked = AtomicUsize::new(0);
    let origin = Origin::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::ok("mine", "private"),
        _ => {
            std::thread::park_timeout(Duration::from_millis(200));
            Reply::ok("ours", "max-age=0, stale-if-error=1").field("ETag", "\"o\"")
        }
    });
    let edge = Plan::new(&origin).start();
    assert_eq!(edge.get("/x").text(), "mine");
    assert_eq!(edge.get("/x").text(), "ours");
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(edge.get("/x").text(), "ours"));
        }
    });
    assert!(
        origin.count("/x") <= 5,
        "{} requests for 20 validations at once",
        origin.count("/x")
    );
}

#[test]
fn a_cut_is_resumed_and_nobody_notices() {
    let body = pattern(1_000_000);
    let sent = body.clone();
    let origin = Origin::start(move |seen| {
        let reply = Reply::ok(sent.clone(), "max-age=600")
            .field("ETag", "\"v\"")
            .ranged(seen);
        if reply.body.len() > 400_000 {
            reply.cut_after(300_001)
        } else {
            reply
        }
    });
    let edge = Plan::new(&origin).start();
    for _ in 0..2 {
        let answer = edge.get("/cut");
        assert!(
            answer.whole && answer.body == body,
            "{} bytes",
            answer.body.len()
        );
    }
    let ranges: Vec<_> = origin
        .seen()
        .iter()
        .map(|s| (s.range(), s.fields.get("if-range").cloned()))
        .collect();
    let tag = Some("\"v\"".to_owned());
    assert_eq!(
        ranges,
        [
            (None, None),
            (Some((300_001, Some(999_999))), tag.clone()),
            (Some((600_002, Some(999_999))), tag)
        ]
    );
}

#[test]
fn a_body_that_comes_in_crumbs_is_given_up_within_the_budget_of_retries() {
    let origin = Origin::start(|seen| {
        Reply::ok(pattern(1 << 20), "max-age=600")
            .field("ETag", "\"v\"")
            .ranged(seen)
            .cut_after(10)
    });
    let edge = Plan::new(&origin).start();
    let answer = edge.get("/crumbs");
    assert!(
        !answer.whole && pattern(1 << 20).starts_with(&answer.body),
        "{} bytes",
        answer.body.len()
    );
    wait_for("the fill to end", || {
        edge.metric("nearcast_edge_fills") == 0.0
    });
    assert!(
        origin.count("/crumbs") <= 60,
        "{} requests",
        origin.count("/crumbs")
    );
}

#[test]
fn a_cut_that_cannot_be_resumed_cuts_the_client_and_is_never_stored_as_whole() {
    for chunked in [false, true] {
        let asked = AtomicUsize::new(0);
        let origin = Origin::start(move |_| {
            let reply = Reply {
                chunked,
                ..Reply::ok(pattern(1_000_000), "max-age=600").slow(20, 0)
            };
            if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                reply.cut_after(400_000)
            } else {
                reply
            }
        });
        let edge = Plan::new(&origin).start();
        let first = edge.get("/cut");
        assert!(
            !first.whole && first.body.len() <= 400_000,
            "chunked {chunked}: a part must not look whole"
        );
        let second = edge.get("/cut");
        assert!(
            second.whole && second.body == pattern(1_000_000) && !second.is_hit(),
            "chunked {chunked}: {}",
            second.cache()
        );
        assert!(edge.get("/cut").is_hit());
    }
}

#[test]
fn a_client_that_does_not_read_slows_nobody() {
    let body = pattern(24 << 20);
    let sent = body.clone();
    let origin = Origin::start(move |_| {
        Reply::ok(sent.clone(), "max-age=600")
            .field("ETag", "\"v\"")
            .slow(200, 1)
    });
    let edge = Plan {
        memory: 64 << 20,
        ..Plan::new(&origin)
    }
    .start();
    let mut stalled = edge.connect();
    stalled
        .write_all(b"GET /big HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n")
        .expect("sent");
    wait_for("the fill to begin", || origin.count("/big") == 1);
    let quick = edge.get("/big");
    assert!(quick.whole && quick.body == body);
    assert_eq!(origin.count("/big"), 1);
    let late = read_answer(&mut BufReader::new(stalled), false).expect("an answer");
    assert!(
        late.whole && late.body == body,
        "the slow one gets everything as well"
    );
}

#[test]
fn a_fill_outlives_the_client_that_began_it() {
    let origin = Origin::start(|_| Reply::ok(pattern(600_000), "max-age=600").slow(10, 30));
    let edge = Plan::new(&origin).start();
    let mut hasty = edge.connect();
    hasty
        .write_all(b"GET /slow HTTP/1.1\r\nHost: www.test\r\n\r\n")
        .expect("sent");
    wait_for("the fill to begin", || origin.count("/slow") == 1);
    drop(hasty);
    let answer = edge.get("/slow");
    assert!(answer.whole && answer.body == pattern(600_000));
    assert_eq!(origin.count("/slow"), 1);
}

#[test]
fn fills_that_nobody_waits_for_end_where_there_are_too_many() {
    // It would take longer than this test waits. That a client has gone shows when something is
    // sent to it.
    let origin = Origin::start(|_| Reply::ok(pattern(2 << 20), "max-age=60").slow(2000, 40));
    // However few there are, they would end by themselves otherwise.
    let cache = CachePolicy {
        finish_share: 0.0,
        ..CachePolicy::default()
    };
    let edge = Plan {
        cache,
        ..Plan::new(&origin)
    }
    .start();
    let begin = |n: usize| {
        let mut stream = edge.connect();
        stream
            .write_all(format!("GET /big?{n} HTTP/1.1\r\nHost: www.test\r\n\r\n").as_bytes())
            .expect("sent");
        stream.read_exact(&mut [0; 100]).expect("it has begun");
        stream
    };
    let read = begin(0);
    let few = 30;
    (1..few).for_each(|n| drop(begin(n)));
    assert_eq!(
        edge.metric("nearcast_edge_fills"),
        few as f64,
        "few go on without a reader"
    );
    (few..60).for_each(|n| drop(begin(n)));
    wait_for("others to end for those that came after them", || {
        edge.metric("nearcast_edge_fills") <= 32.0
    });
    let mut got = 0;
    wait_for("more of what is read", || {
        got += (&read).read(&mut [0; 1 << 16]).expect("it goes on");
        got > 150_000
    });
}

#[test]
fn bodies_too_large_to_be_stored_pass_through_whole() {
    for chunked in [false, true] {
        let origin = Origin::start(move |_| Reply {
            chunked,
            ..Reply::ok(pattern(12 << 20), "max-age=600")
        });
        let mut plan = Plan::new(&origin);
        plan.cache.body_bytes_max = nearcast_fleet::units::Bytes(1 << 20);
        let edge = plan.start();
        for _ in 0..2 {
            let answer = edge.get("/huge");
            assert!(
                answer.whole && answer.body == pattern(12 << 20) && !answer.is_hit(),
                "chunked {chunked}: {}",
                answer.cache()
            );
        }
        assert!(
            edge.metric("nearcast_edge_memory_bytes") < (6 << 20) as f64,
            "chunked {chunked}"
        );
    }
}

#[test]
fn slices_that_were_evicted_are_fetched_again_alone() {
    let body = pattern(3 << 20);
    let sent = body.clone();
    let origin = Origin::start(move |seen| {
        Reply::ok(sent.clone(), "max-age=600")
            .field("ETag", "\"v\"")
            .ranged(seen)
    });
    let edge = Plan {
        memory: 8 << 20,
        ..Plan::new(&origin)
    }
    .start();
    for n in 0..12 {
        assert_eq!(edge.get(&format!("/{n}")).body, body);
    }
    for n in 0..12 {
        let answer = edge.get(&format!("/{n}"));
        assert!(
            answer.whole && answer.body == body,
            "{n}: {}",
            answer.cache()
        );
    }
}

#[test]
fn a_kept_connection_that_died_is_replaced_without_an_error() {
    let origin = Origin::start(|seen| {
        // The connection is closed after every answer, without a word of it.
        let reply = Reply::ok(seen.target.clone(), "no-store");
        let bytes = reply.body.len();
        reply.cut_after(bytes)
    });
    let edge = Plan::new(&origin).start();
    for n in 0..20 {
        let target = format!("/{n}");
        let answer = edge.get(&target);
        assert_eq!((answer.status, answer.text()), (200, target));
    }
}

#[test]
fn draining_finishes_what_has_begun_and_takes_nothing_new() {
    let origin = Origin::start(|_| Reply::ok(pattern(300_000), "max-age=60").slow(10, 100));
    let edge = Plan::new(&origin).start();
    let mut stream = edge.connect();
    stream
        .write_all(b"GET /long HTTP/1.1\r\nHost: www.test\r\n\r\n")
        .expect("sent");
    let mut kept = edge.connect();
    kept.write_all(b"GET /.nearcast/health HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("sent");
    assert_eq!(
        read_answer(&mut BufReader::new(&kept), false)
            .expect("an answer")
            .status,
        200
    );
    wait_for("the transfer to begin", || origin.count("/long") == 1);
    edge.begin_stop();
    wait_for("the listener to close", || {
        std::net::TcpStream::connect(edge.address).is_err()
    });
    let answer = read_answer(&mut BufReader::new(stream), false).expect("an answer");
    assert!(answer.whole && answer.body == pattern(300_000));
    edge.stop().expect("a good end");
}

/// A client that reads the beginning of a response and goes.
fn begins_and_leaves(edge: &Edge, path: &str) {
    use std::io::{Read, Write};
    let mut client = edge.connect();
    client
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: www.test\r\n\r\n").as_bytes())
        .expect("sent");
    let mut beginning = [0; 4096];
    client.read_exact(&mut beginning).expect("it begins");
}

const ABANDONED: &str = "nearcast_edge_fills_abandoned_total{site=\"www\"}";

#[test]
fn a_fill_that_everybody_left_ends_and_the_next_request_goes_on_from_there() {
    const LENGTH: usize = 16 << 20;
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |seen| {
        let reply = Reply::ok(pattern(LENGTH), "max-age=600").field("ETag", "\"v\"");
        match seen.fields.contains_key("range") {
            true => reply.ranged(seen),
            // Three slices and a bit.
            false => reply.held_at(800_000, &held),
        }
    });
    let edge = Plan::new(&origin).start();
    begins_and_leaves(&edge, "/large");
    wait_for("the fill to end", || edge.metric(ABANDONED) == 1.0);
    gate.open();
    let answer = edge.get("/large");
    assert!(
        answer.status == 200 && answer.body == pattern(LENGTH),
        "{}",
        answer.cache()
    );
    let seen = origin.seen();
    assert_eq!(
        (seen.len(), seen[1].fields["range"].as_str()),
        (2, "bytes=786432-16777215"),
        "the slices that came stay"
    );
    assert_eq!(seen[1].fields["if-range"], "\"v\"");
    assert!(
        edge.metric("nearcast_edge_origin_bytes_total{site=\"www\"}") < (LENGTH + (1 << 20)) as f64
    );
    wait_for("all of it to be stored", || edge.get("/large").is_hit());
    assert_eq!(edge.metric(ABANDONED), 1.0);
}

#[test]
fn a_fill_goes_on_for_others_for_the_little_that_is_left_and_where_the_site_wants_it() {
    const LENGTH: usize = 4 << 20;
    let finish = |share, rest| CachePolicy {
        finish_share: share,
        finish_rest: Bytes(rest),
        ..CachePolicy::default()
    };
    // Bytes that come before the client leaves, whether another reads on, the site's policy;
    // whether it is finished.
    let table = [
        (3 << 20, false, CachePolicy::default(), true),
        (1 << 20, false, CachePolicy::default(), false),
        (1 << 20, true, CachePolicy::default(), true),
        (1 << 20, false, finish(0.0, 0), true),
        (1 << 20, false, finish(1.0, 8 << 20), true),
        (3 << 20, false, finish(1.0, 0), false),
    ];
    for (number, (come, has_other, cache, is_finished)) in table.into_iter().enumerate() {
        let gate = Gate::default();
        let held = gate.clone();
        let origin = Origin::start(move |seen| {
            let reply = Reply::ok(pattern(LENGTH), "max-age=600").field("ETag", "\"v\"");
            if seen.fields.contains_key("range") {
                reply.ranged(seen)
            } else {
                reply.held_at(come, &held)
            }
        });
        let edge = Plan {
            cache,
            ..Plan::new(&origin)
        }
        .start();
        std::thread::scope(|scope| {
            begins_and_leaves(&edge, "/x");
            let other = has_other.then(|| scope.spawn(|| edge.get("/x")));
            match is_finished {
                false => wait_for("the fill to end", || edge.metric(ABANDONED) == 1.0),
                // Longer than it takes to be abandoned.
                true => std::thread::park_timeout(Duration::from_millis(400)),
            }
            gate.open();
            if let Some(other) = other {
                assert_eq!(
                    other.join().expect("no panic").body,
                    pattern(LENGTH),
                    "case {number}"
                );
            }
        });
        let answer = edge.get("/x");
        assert!(
            answer.body == pattern(LENGTH),
            "case {number}: {}",
            answer.cache()
        );
        let ranges = origin
            .seen()
            .iter()
            .filter(|seen| seen.fields.contains_key("range"))
            .count();
        assert_eq!(
            (origin.seen().len(), ranges > 0),
            (if is_finished { 1 } else { 2 }, !is_finished),
            "case {number}"
        );
        assert_eq!(
            edge.metric(ABANDONED),
            if is_finished { 0.0 } else { 1.0 },
            "case {number}"
        );
    }
}
