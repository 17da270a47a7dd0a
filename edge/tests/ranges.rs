//! Byte ranges from slices, and what they cost the origin.

mod lab;

use lab::{Edge, Origin, Plan, Reply, pattern, wait_for};

const BYTES: usize = 4 << 20;
const SLICE: usize = 256 << 10;

fn ranged() -> (Edge, Origin, Vec<u8>) {
    let body = pattern(BYTES);
    let sent = body.clone();
    let origin = Origin::start(move |seen| {
        Reply::ok(sent.clone(), "max-age=600")
            .field("ETag", "\"v1\"")
            .field("Content-Type", "video/mp4")
            .ranged(seen)
    });
    (Plan::new(&origin).start(), origin, body)
}

fn get(edge: &Edge, range: &str) -> lab::Answer {
    edge.ask("GET", "/big", &[("Range", range)])
}

#[test]
fn a_cold_range_costs_its_slices_and_warm_ones_cost_nothing() {
    let (edge, origin, body) = ranged();
    let cold = get(&edge, "bytes=3000000-3000099");
    assert_eq!(
        (cold.status, cold.field("content-range")),
        (206, "bytes 3000000-3000099/4194304")
    );
    assert!(cold.body == body[3_000_000..3_000_100]);
    assert!(
        cold.cache().contains("fwd-status=206"),
        "the status that was received: {}",
        cold.cache()
    );
    let asked = origin.seen()[0].range().expect("a range");
    assert!(
        asked.1.expect("closed") - asked.0 < SLICE && asked.0 % SLICE == 0,
        "{asked:?}"
    );
    let whole = get(&edge, "bytes=0-");
    assert!(whole.body == body);
    assert!(whole.cache().contains("fwd=partial"), "{}", whole.cache());
    let before = origin.seen().len();
    let table: [(&str, u16, &[u8], &str); 6] = [
        (
            "bytes=-500",
            206,
            &body[BYTES - 500..],
            "bytes 4193804-4194303/4194304",
        ),
        (
            "bytes=1048000-1050000",
            206,
            &body[1_048_000..=1_050_000],
            "bytes 1048000-1050000/4194304",
        ),
        (
            "bytes=4194303-",
            206,
            &body[BYTES - 1..],
            "bytes 4194303-4194303/4194304",
        ),
        ("bytes=9999999-", 416, b"", "bytes */4194304"),
        ("bytes=5-4", 200, &body, ""),
        ("lines=1-2", 200, &body, ""),
    ];
    for (range, status, expected, content_range) in table {
        let answer = get(&edge, range);
        assert_eq!(
            (answer.status, answer.field("content-range")),
            (status, content_range),
            "{range}"
        );
        assert!(
            answer.body == expected && answer.is_hit(),
            "{range}: {} {}",
            answer.body.len(),
            answer.cache()
        );
    }
    assert_eq!(
        origin.seen().len(),
        before,
        "warm ranges ask the origin nothing"
    );
}

#[test]
fn cold_ranges_of_every_form_are_right() {
    for range in [
        "bytes=-500",
        "bytes=300000-",
        "bytes=0-0",
        "bytes=0-",
        "bytes=262143-262144",
        "bytes=4194303-5000000",
    ] {
        let (edge, _origin, body) = ranged();
        let answer = get(&edge, range);
        let (first, last) = answer
            .field("content-range")
            .trim_start_matches("bytes ")
            .split_once('/')
            .expect("a range")
            .0
            .split_once('-')
            .expect("two ends");
        let (first, last): (usize, usize) = (
            first.parse().expect("a number"),
            last.parse().expect("a number"),
        );
        assert!(
            answer.status == 206 && answer.body == body[first..=last],
            "{range}: {:?}",
            answer.fields
        );
        lab::wait_for("the slices to be stored", || get(&edge, range).is_hit());
    }
}

#[test]
fn a_cold_range_of_any_form_costs_its_slices() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    // What of the body has to come, and how much more may: the edges of each run of slices.
    type Row = (&'static str, &'static [(usize, usize)], usize);
    let table: [Row; 9] = [
        ("bytes=-500", &[(BYTES - 500, BYTES)], 1),
        ("bytes=-1", &[(BYTES - 1, BYTES)], 1),
        ("bytes=-300000", &[(BYTES - 300_000, BYTES)], 1),
        ("bytes=4000000-", &[(4_000_000, BYTES)], 1),
        (
            "bytes=1000000-1000009,3000000-3000009",
            &[(1_000_000, 1_000_010), (3_000_000, 3_000_010)],
            4,
        ),
        (
            "bytes=3000000-3000009,5-9,1000000-1000009",
            &[(3_000_000, 3_000_010), (5, 10), (1_000_000, 1_000_010)],
            6,
        ),
        ("bytes=0-0,-1", &[(0, 1), (BYTES - 1, BYTES)], 3),
        ("bytes=-7,0-0", &[(BYTES - 7, BYTES), (0, 1)], 3),
        (
            "bytes=4000000-18446744073709551615",
            &[(4_000_000, BYTES)],
            1,
        ),
    ];
    for (range, parts, edges) in table {
        let body = pattern(BYTES);
        let (sent, bytes) = (body.clone(), Arc::new(AtomicUsize::new(0)));
        let counted = bytes.clone();
        let origin = Origin::start(move |seen| {
            let reply = Reply::ok(sent.clone(), "max-age=600")
                .field("ETag", "\"v1\"")
                .ranged(seen);
            counted.fetch_add(reply.body.len(), Ordering::SeqCst);
            reply
        });
        let edge = Plan::new(&origin).start();
        let answer = get(&edge, range);
        assert!(
            answer.status == 206 && answer.whole,
            "{range}: {} {:?}",
            answer.status,
            answer.fields
        );
        match parts {
            [(first, end)] => assert!(
                answer.body == body[*first..*end],
                "{range}: {} bytes",
                answer.body.len()
            ),
            parts => {
                let mut rest = &answer.body[..];
                for (first, end) in parts {
                    let head = format!("Content-Range: bytes {first}-{}/{BYTES}\r\n\r\n", end - 1);
                    let at = rest
                        .windows(head.len())
                        .position(|w| w == head.as_bytes())
                        .expect("a part")
                        + head.len();
                    assert!(
                        rest[at..at + end - first] == body[*first..*end],
                        "{range}: {first}"
                    );
                    rest = &rest[at + end - first..];
                }
            }
        }
        let wanted: usize = parts.iter().map(|(first, end)| end - first).sum();
        let cost = bytes.load(Ordering::SeqCst);
        assert!(
            cost < wanted + edges * SLICE,
            "{range}: {cost} bytes for {wanted}"
        );
        wait_for("the slices to be stored", || get(&edge, range).is_hit());
        assert_eq!(
            bytes.load(Ordering::SeqCst),
            cost,
            "{range}: once is enough"
        );
    }
}

#[test]
fn a_range_costs_its_slices_also_where_it_is_stale_or_has_a_condition() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (version, bytes) = (Arc::new(AtomicUsize::new(1)), Arc::new(AtomicUsize::new(0)));
    let (now, counted) = (version.clone(), bytes.clone());
    let origin = Origin::start(move |seen| {
        let v = now.load(Ordering::SeqCst);
        let tag = format!("\"{v}\"");
        let reply =
            Reply::ok(vec![v as u8; BYTES], "max-age=0, stale-if-error=60").field("ETag", &tag);
        let reply = match seen.fields.get("if-none-match") == Some(&tag) {
            true => Reply {
                status: 304,
                body: vec![],
                ..reply
            },
            false => reply.ranged(seen),
        };
        counted.fetch_add(reply.body.len(), Ordering::SeqCst);
        reply
    });
    let edge = Plan::new(&origin).start();
    let resume = |tag: &str| {
        edge.ask(
            "GET",
            "/big",
            &[("Range", "bytes=3000000-3000009"), ("If-Range", tag)],
        )
    };
    let cold = resume("\"1\"");
    assert!(
        cold.status == 206 && cold.body == [1; 10],
        "{} {}",
        cold.status,
        cold.body.len()
    );
    assert_eq!(
        bytes.load(Ordering::SeqCst),
        SLICE,
        "one slice for a cold one whose condition holds"
    );
    assert_eq!(get(&edge, "bytes=3000000-3000009").body, [1; 10]);
    assert_eq!(
        bytes.load(Ordering::SeqCst),
        SLICE,
        "nothing for one that is confirmed"
    );
    version.store(2, Ordering::SeqCst);
    let changed = get(&edge, "bytes=3000000-3000009");
    assert!(
        changed.status == 206 && changed.body == [2; 10],
        "{} {}",
        changed.status,
        changed.body.len()
    );
    assert_eq!(
        bytes.load(Ordering::SeqCst),
        2 * SLICE,
        "one slice for one that has changed"
    );
    let other = resume("\"1\"");
    assert!(
        other.status == 200 && other.whole && other.body == vec![2; BYTES],
        "{} {}",
        other.status,
        other.body.len()
    );
    assert_eq!(
        bytes.load(Ordering::SeqCst),
        BYTES + SLICE,
        "and the whole, once, where the client has another one"
    );
}

#[test]
fn a_part_in_place_of_a_304_keeps_what_is_stored() {
    let origin = Origin::start(|seen| {
        Reply::ok(pattern(BYTES), "max-age=0, stale-if-error=60")
            .field("ETag", "\"v\"")
            .ranged(seen)
    });
    let edge = Plan::new(&origin).start();
    assert!(edge.get("/big").whole);
    for _ in 0..2 {
        let answer = get(&edge, "bytes=3000000-3000009");
        assert!(
            answer.status == 206 && answer.body == pattern(BYTES)[3_000_000..3_000_010],
            "{answer:?}"
        );
        assert!(
            answer.cache().contains("fwd=stale; fwd-status=206"),
            "{}",
            answer.cache()
        );
    }
    origin.stop();
    let kept = edge.get("/big");
    assert!(
        kept.whole && kept.body == pattern(BYTES),
        "{} bytes: {}",
        kept.body.len(),
        kept.cache()
    );
}

#[test]
fn an_origin_that_gives_ranges_in_its_own_way_is_understood() {
    let body = pattern(BYTES);
    // Asked for one range or several: without a tag, a part that is not all of it, one without the
    // length, and the whole.
    for way in ["untagged", "short", "unknown length", "whole"] {
        for (range, parts) in [
            ("bytes=-9", &[(BYTES - 9, BYTES)][..]),
            ("bytes=700000-700009,5-9", &[(700_000, 700_010), (5, 10)]),
        ] {
            let sent = body.clone();
            let origin = Origin::start(move |seen| {
                let reply = Reply::ok(sent.clone(), "max-age=600");
                let reply = if way == "untagged" {
                    reply
                } else {
                    reply.field("ETag", "\"v\"")
                };
                let Reply {
                    mut body,
                    mut fields,
                    status,
                    ..
                } = if way == "whole" {
                    reply
                } else {
                    reply.ranged(seen)
                };
                let value = fields
                    .iter_mut()
                    .find(|(n, _)| n == "Content-Range")
                    .map(|(_, v)| v);
                match (way, value) {
                    ("short", Some(value)) if body.len() > 100_000 => {
                        let first: usize = value["bytes ".len()..]
                            .split('-')
                            .next()
                            .expect("a number")
                            .parse()
                            .expect("a number");
                        body.truncate(100_000);
                        *value = format!("bytes {first}-{}/{BYTES}", first + 99_999);
                    }
                    ("unknown length", Some(value)) => {
                        *value = value.replace(&format!("/{BYTES}"), "/*")
                    }
                    _ => {}
                }
                Reply {
                    status,
                    fields,
                    ..Reply::ok(body, "")
                }
            });
            let edge = Plan::new(&origin).start();
            let answer = get(&edge, range);
            assert_eq!(
                (answer.status, answer.whole),
                (206, true),
                "{way} {range}: {answer:?}"
            );
            for (first, end) in parts {
                let part = &body[*first..*end];
                assert!(
                    answer.body.windows(part.len()).any(|w| w == part),
                    "{way} {range}"
                );
            }
            // One whose parts can be put together is asked for more of them, and neither for ever
            // nor for the same again.
            let most = if matches!(way, "short" | "unknown length") {
                5
            } else {
                2
            };
            assert!(
                origin.seen().len() <= most,
                "{way} {range}: {:?}",
                origin
                    .seen()
                    .iter()
                    .map(|s| s.fields.get("range").cloned())
                    .collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn ranges_outside_say_so_and_leave_the_url_as_shared_as_it_was() {
    let (edge, origin, body) = ranged();
    for range in ["bytes=9999999-", "bytes=-0", "bytes=9999999-, 8888888-"] {
        let answer = get(&edge, range);
        assert_eq!(
            (answer.status, answer.field("content-range")),
            (416, "bytes */4194304"),
            "{range}"
        );
    }
    let some = get(&edge, "bytes=9999999-, 5-9");
    assert!(some.status == 206 && some.body == body[5..10], "{some:?}");
    let asked = origin.count("/big");
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| assert!(edge.get("/big").whole));
        }
    });
    assert!(
        origin.count("/big") <= asked + 2,
        "what came for one range makes nobody ask alone"
    );
}

#[test]
fn what_may_not_be_stored_never_reaches_the_disk() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let origin = Origin::start(|seen| {
        let reply =
            Reply::ok(b"for one client's eyes ".repeat(50_000), "no-store").field("ETag", "\"v\"");
        reply.ranged(seen)
    });
    let edge = Plan {
        disk: 64 << 20,
        state_dir: directory.path().to_owned(),
        ..Plan::new(&origin)
    }
    .start();
    let answer = get(&edge, "bytes=600000-600009");
    assert!(answer.status == 206 && !answer.is_hit());
    edge.stop().expect("a good end");
    let mut left = vec![directory.path().to_owned()];
    while let Some(path) = left.pop() {
        match std::fs::read_dir(&path) {
            Ok(entries) => left.extend(entries.map(|e| e.expect("readable").path())),
            Err(_) => {
                let bytes = std::fs::read(&path).expect("readable");
                assert!(
                    !bytes.windows(20).any(|w| w == b"for one client's eye"),
                    "{}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn several_ranges_come_as_parts_in_the_order_asked_for() {
    let (edge, _origin, body) = ranged();
    edge.get("/big");
    let answer = get(&edge, "bytes=1000-1009, 5-9");
    assert_eq!(answer.status, 206);
    let kind = answer.field("content-type");
    let boundary = kind
        .strip_prefix("multipart/byteranges; boundary=")
        .expect("parts");
    let mut expected = Vec::new();
    for (start, first, end) in [("", 1000, 1010), ("\r\n", 5, 10)] {
        expected.extend_from_slice(
            format!("{start}--{boundary}\r\nContent-Type: video/mp4\r\nContent-Range: bytes {first}-{}/4194304\r\n\r\n", end - 1)
                .as_bytes(),
        );
        expected.extend_from_slice(&body[first..end]);
    }
    expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert!(answer.whole && answer.body == expected, "{}", answer.text());
}

#[test]
fn if_range_decides_between_part_and_whole() {
    let (edge, _origin, body) = ranged();
    edge.get("/big");
    for (tag, status, bytes) in [
        ("\"v1\"", 206, 10),
        ("\"v2\"", 200, BYTES),
        ("W/\"v1\"", 200, BYTES),
    ] {
        let answer = edge.ask("GET", "/big", &[("Range", "bytes=0-9"), ("If-Range", tag)]);
        assert_eq!((answer.status, answer.body.len()), (status, bytes), "{tag}");
    }
    let cold = edge.ask(
        "GET",
        "/big?cold",
        &[("Range", "bytes=0-9"), ("If-Range", "\"v2\"")],
    );
    assert!(cold.status == 200 && cold.body == body);
}

#[test]
fn an_origin_that_ignores_ranges_is_asked_once() {
    let body = pattern(1 << 20);
    let sent = body.clone();
    let origin = Origin::start(move |_| Reply::ok(sent.clone(), "max-age=60"));
    let edge = Plan::new(&origin).start();
    let cold = get(&edge, "bytes=600000-600009");
    assert!(
        cold.status == 206 && cold.body == body[600_000..600_010],
        "{} {}",
        cold.status,
        cold.body.len()
    );
    // The first range is answered while the fill still runs; what joins it is no hit yet, and asks
    // nobody either.
    wait_for("the fill to end", || {
        let warm = get(&edge, "bytes=-5");
        assert!(
            warm.status == 206 && warm.body == body[body.len() - 5..],
            "{warm:?}"
        );
        warm.is_hit()
    });
    assert_eq!(origin.seen().len(), 1);
}

#[test]
fn parts_of_two_representations_never_meet() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, Ordering};
    let version = Arc::new(AtomicU8::new(1));
    let now = version.clone();
    let origin = Origin::start(move |seen| {
        let v = now.load(Ordering::SeqCst);
        Reply::ok(vec![v; 1 << 20], "max-age=600")
            .field("ETag", &format!("\"{v}\""))
            .ranged(seen)
    });
    let edge = Plan::new(&origin).start();
    assert_eq!(get(&edge, "bytes=0-9").body, [1; 10]);
    version.store(2, Ordering::SeqCst);
    assert_eq!(get(&edge, "bytes=0-9").body, [1; 10], "still fresh");
    let other = get(&edge, "bytes=900000-900009");
    assert_eq!(other.body, [2; 10]);
    assert_eq!(
        get(&edge, "bytes=0-9").body,
        [2; 10],
        "the older parts are gone"
    );
    assert!(edge.get("/big").body.iter().all(|b| *b == 2));
}

#[test]
fn a_cut_body_that_changed_meanwhile_is_not_offered_again() {
    // The first time what is left of it is cut; then the origin has another one.
    let asked = std::sync::atomic::AtomicU8::new(0);
    let origin = Origin::start(move |seen| {
        let n = asked
            .fetch_add(1, std::sync::atomic::Ordering::SeqCst)
            .min(1);
        let reply = Reply::ok(vec![n; 1 << 20], "max-age=600")
            .field("ETag", &format!("\"{n}\""))
            .ranged(seen);
        if n == 0 {
            reply.slow(64, 0).cut_after(606_208)
        } else {
            reply
        }
    });
    let edge = Plan::new(&origin).start();
    let first = edge.get("/big");
    assert!(
        !first.whole && first.body.iter().all(|b| *b == 0),
        "{} bytes",
        first.body.len()
    );
    let second = edge.get("/big");
    assert!(
        second.whole && second.body == vec![1; 1 << 20],
        "{} bytes: {}",
        second.body.len(),
        second.cache()
    );
}

#[test]
fn a_body_that_changed_where_it_was_missing_is_cut_once_and_then_new() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, Ordering};
    let version = Arc::new(AtomicU8::new(1));
    let now = version.clone();
    let origin = Origin::start(move |seen| {
        let v = now.load(Ordering::SeqCst);
        Reply::ok(vec![v; 1 << 20], "max-age=600")
            .field("ETag", &format!("\"{v}\""))
            .ranged(seen)
    });
    let edge = Plan::new(&origin).start();
    assert_eq!(get(&edge, "bytes=0-9").body, [1; 10]);
    wait_for("the slice to be stored", || {
        get(&edge, "bytes=0-9").is_hit()
    });
    version.store(2, Ordering::SeqCst);
    let cut = edge.get("/big");
    assert!(
        !cut.whole && cut.body.iter().all(|b| *b == 1),
        "its first slice is sent before the others are asked for"
    );
    let whole = edge.get("/big");
    assert!(
        whole.whole && whole.body == vec![2; 1 << 20],
        "{} bytes: {}",
        whole.body.len(),
        whole.cache()
    );
}

#[test]
fn an_error_instead_of_a_missing_slice_takes_nothing_away() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let is_bad = Arc::new(AtomicBool::new(false));
    let bad = is_bad.clone();
    let origin = Origin::start(move |seen| match bad.load(Ordering::SeqCst) {
        true => Reply::status(503),
        false => Reply::ok(pattern(1 << 20), "max-age=600")
            .field("ETag", "\"v\"")
            .ranged(seen),
    });
    let edge = Plan::new(&origin).start();
    assert_eq!(get(&edge, "bytes=0-9").status, 206);
    wait_for("the slice to be stored", || {
        get(&edge, "bytes=0-9").is_hit()
    });
    is_bad.store(true, Ordering::SeqCst);
    let missing = get(&edge, "bytes=600000-600009");
    assert_eq!(
        (missing.status, missing.error().as_str()),
        (503, "ams-1; error=destination_unavailable")
    );
    let there = get(&edge, "bytes=0-9");
    assert!(
        there.is_hit() && there.body == pattern(10),
        "{}",
        there.cache()
    );
    is_bad.store(false, Ordering::SeqCst);
    assert!(get(&edge, "bytes=600000-600009").body == pattern(1 << 20)[600_000..600_010]);
}

#[test]
fn a_part_without_a_strong_validator_is_served_and_not_kept() {
    let body = pattern(1 << 20);
    let sent = body.clone();
    let origin = Origin::start(move |seen| Reply::ok(sent.clone(), "max-age=600").ranged(seen));
    let edge = Plan::new(&origin).start();
    for _ in 0..2 {
        let answer = get(&edge, "bytes=600000-600009");
        assert!(
            answer.status == 206 && answer.body == body[600_000..600_010],
            "{} {}",
            answer.status,
            answer.body.len()
        );
        assert!(!answer.is_hit());
    }
}

#[test]
fn a_part_of_something_too_large_to_be_stored_costs_that_part() {
    // A length that nobody has, and an honest one that is too large here.
    for length in [1_u64 << 62, 1 << 30] {
        let origin = Origin::start(move |seen| {
            let Some((first, last)) = seen.range() else {
                return Reply::ok("all of it", "no-store");
            };
            let last = last.unwrap_or(first + SLICE - 1);
            let part = (first..=last)
                .map(|at| (at % 251) as u8)
                .collect::<Vec<_>>();
            let content_range = format!("bytes {first}-{last}/{length}");
            Reply {
                status: 206,
                ..Reply::ok(part, "max-age=60")
                    .field("ETag", "\"x\"")
                    .field("Content-Range", &content_range)
            }
        });
        let edge = Plan::new(&origin).start();
        for _ in 0..2 {
            let answer = edge.ask("GET", "/big", &[("Range", "bytes=1000000-1000099")]);
            assert_eq!(
                (answer.status, answer.field("content-range")),
                (206, &*format!("bytes 1000000-1000099/{length}")),
                "{answer:?}"
            );
            assert!(
                answer
                    .body
                    .iter()
                    .zip(1_000_000..)
                    .all(|(byte, at)| usize::from(*byte) == at % 251)
                    && answer.body.len() == 100
            );
        }
        // Where the origin gives less than was asked for, the client sees what it gave: the whole
        // may be any number of bytes.
        let answer = edge.ask("GET", "/open", &[("Range", "bytes=262144-")]);
        assert_eq!(
            (answer.status, answer.field("content-range")),
            (206, &*format!("bytes 262144-524287/{length}")),
            "{answer:?}"
        );
        assert_eq!(edge.memory_used(), 0.0);
    }
}

#[test]
fn slices_of_two_versions_never_meet_whatever_a_part_leaves_out() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    // An origin that heeds Range but not If-Range, and whose parts name the tag of the first
    // version only, as small servers do.
    for names_date in [false, true] {
        let version = Arc::new(AtomicUsize::new(1));
        let now = version.clone();
        let origin = Origin::start(move |seen| {
            let n = now.load(Ordering::SeqCst);
            let (body, date) = (
                vec![b'0' + n as u8; 700_000],
                format!("Thu, 0{n} Jan 2026 00:00:00 GMT"),
            );
            let tag = format!("\"{n}\"");
            let is_part = seen.range().is_some();
            let seen = lab::Seen {
                fields: seen
                    .fields
                    .clone()
                    .into_iter()
                    .filter(|(name, _)| name != "if-range")
                    .collect(),
                ..seen.clone()
            };
            let mut reply = Reply::ok(body, "max-age=60").ranged(&seen);
            if !is_part || names_date {
                reply = reply.field("Last-Modified", &date);
            }
            if n == 1 || !is_part {
                reply.field("ETag", &tag)
            } else {
                reply
            }
        });
        let edge = Plan::new(&origin).start();
        assert_eq!(
            edge.ask("GET", "/a", &[("Range", "bytes=0-9")]).text(),
            "1111111111"
        );
        version.store(2, Ordering::SeqCst);
        let answer = edge.get("/a");
        let is_of_one = answer.body.iter().all(|byte| *byte == answer.body[0]);
        assert!(
            is_of_one && (!answer.whole || answer.body[0] == b'2'),
            "{names_date}: {} bytes",
            answer.body.len()
        );
        let answer = edge.get("/a");
        assert!(
            answer.whole && answer.body == vec![b'2'; 700_000],
            "{names_date}: {:?}",
            answer.fields
        );
    }
}

/// Two weeks before any date that this test runs at.
const LONG_AGO: &str = "Fri, 02 Jan 2026 10:00:00 GMT";

/// Bytes that an origin sent so far.
#[derive(Clone, Default)]
struct Sent(std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl Sent {
    fn count(&self, reply: Reply) -> Reply {
        self.0
            .fetch_add(reply.body.len(), std::sync::atomic::Ordering::SeqCst);
        reply
    }

    fn bytes(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[test]
fn an_old_last_modified_joins_parts_as_a_strong_tag_does() {
    for range in [
        "bytes=3000000-3000099",
        "bytes=-1000",
        "bytes=4000000-",
        "bytes=5-9,700000-700009",
        "bytes=0-0,-1",
    ] {
        let (body, sent) = (pattern(BYTES), Sent::default());
        let counted = sent.clone();
        let origin = Origin::start(move |seen| {
            counted.count(
                Reply::ok(body.clone(), "max-age=600")
                    .field("Last-Modified", LONG_AGO)
                    .ranged(seen),
            )
        });
        let edge = Plan::new(&origin).start();
        let cold = get(&edge, range);
        assert!(
            cold.status == 206 && cold.whole && !cold.is_hit(),
            "{range}: {} {}",
            cold.status,
            cold.cache()
        );
        assert!(sent.bytes() <= 4 * SLICE, "{range}: {} bytes", sent.bytes());
        wait_for("the slices to be stored", || get(&edge, range).is_hit());
        let (cost, asked) = (sent.bytes(), origin.seen().len());
        for _ in 0..5 {
            // The boundary between parts is another one each time.
            let warm = get(&edge, range);
            assert!(
                warm.is_hit() && warm.status == 206 && warm.body.len() == cold.body.len(),
                "{range}: {}",
                warm.cache()
            );
        }
        assert_eq!(
            (sent.bytes(), origin.seen().len()),
            (cost, asked),
            "{range}: warm ranges cost nothing"
        );
        let whole = edge.get("/big");
        assert!(
            whole.whole && whole.body == pattern(BYTES),
            "{range}: {} bytes",
            whole.body.len()
        );
        let rest = &origin.seen()[asked..];
        assert!(
            !rest.is_empty()
                && rest
                    .iter()
                    .all(|s| s.fields.get("if-range").is_some_and(|v| v == LONG_AGO)),
            "{range}: {rest:?}"
        );
        // A client resumes by that date from what is stored.
        let resume =
            |date: &str| edge.ask("GET", "/big", &[("Range", "bytes=9-"), ("If-Range", date)]);
        assert_eq!(
            (
                resume(LONG_AGO).status,
                resume("Fri, 02 Jan 2026 10:00:01 GMT").status
            ),
            (206, 200),
            "{range}"
        );
    }
}

#[test]
fn parts_of_two_dates_never_meet() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    // What the second version changes: its date, its length alone, or it gains a tag.
    for change in ["date", "length", "tag"] {
        let version = Arc::new(AtomicUsize::new(1));
        let now = version.clone();
        let origin = Origin::start(move |seen| {
            let is_new = now.load(Ordering::SeqCst) == 2;
            let length = if is_new && change == "length" {
                (1 << 20) - 1
            } else {
                1 << 20
            };
            let date = if is_new && change == "date" {
                "Sat, 03 Jan 2026 10:00:00 GMT"
            } else {
                LONG_AGO
            };
            let reply = Reply::ok(vec![b'1' + u8::from(is_new); length], "max-age=600")
                .field("Last-Modified", date);
            let reply = if is_new && change == "tag" {
                reply.field("ETag", "\"new\"")
            } else {
                reply
            };
            // It heeds no If-Range.
            let fields = seen
                .fields
                .clone()
                .into_iter()
                .filter(|(name, _)| name != "if-range")
                .collect();
            reply.ranged(&lab::Seen {
                fields,
                ..seen.clone()
            })
        });
        let edge = Plan::new(&origin).start();
        assert_eq!(get(&edge, "bytes=0-9").text(), "1111111111");
        wait_for("the slice to be stored", || {
            get(&edge, "bytes=0-9").is_hit()
        });
        version.store(2, Ordering::SeqCst);
        assert_eq!(
            get(&edge, "bytes=900000-900009").text(),
            "2222222222",
            "{change}"
        );
        assert_eq!(
            get(&edge, "bytes=0-9").text(),
            "2222222222",
            "{change}: the older parts are gone"
        );
        let whole = edge.get("/big");
        assert!(
            whole.whole && whole.body.iter().all(|b| *b == b'2'),
            "{change}"
        );
    }
}

#[test]
fn a_range_of_what_cannot_be_joined_goes_to_the_origin_as_it_was_asked() {
    let just_now = || httpdate::fmt_http_date(std::time::SystemTime::now());
    for validator in ["none", "weak tag and date", "new date"] {
        let (body, sent) = (pattern(BYTES), Sent::default());
        let counted = sent.clone();
        let origin = Origin::start(move |seen| {
            let reply = Reply::ok(body.clone(), "max-age=600");
            let reply = match validator {
                "none" => reply,
                "new date" => reply.field("Last-Modified", &just_now()),
                _ => reply
                    .field("ETag", "W/\"v\"")
                    .field("Last-Modified", LONG_AGO),
            };
            counted.count(reply.ranged(seen))
        });
        let edge = Plan::new(&origin).start();
        // The first one finds out.
        assert_eq!(get(&edge, "bytes=-1000").status, 206);
        for range in [
            "bytes=-1000",
            "bytes=5-9",
            "bytes=1000000-1000009,5-9",
            "bytes=4194300-",
        ] {
            let (before, asked) = (sent.bytes(), origin.seen().len());
            let answer = get(&edge, range);
            assert!(
                answer.status == 206 && answer.whole && !answer.is_hit(),
                "{validator} {range}: {answer:?}"
            );
            assert!(
                sent.bytes() - before < 1200,
                "{validator} {range}: {} bytes",
                sent.bytes() - before
            );
            let seen = &origin.seen()[asked..];
            assert!(
                seen.len() == 1 && seen[0].fields["range"] == range,
                "{validator} {range}: {seen:?}"
            );
        }
        // A body that is stored whole serves ranges of every form.
        assert!(edge.get("/big").whole);
        wait_for("the whole to be stored", || edge.get("/big").is_hit());
        let asked = origin.seen().len();
        for range in [
            "bytes=-1000",
            "bytes=5-9",
            "bytes=1000000-1000009,5-9",
            "bytes=4194300-",
            "bytes=0-",
        ] {
            let answer = get(&edge, range);
            assert!(
                answer.status == 206 && answer.is_hit(),
                "{validator} {range}: {} {}",
                answer.status,
                answer.cache()
            );
        }
        assert_eq!(origin.seen().len(), asked, "{validator}");
    }
}

#[test]
fn a_small_body_is_kept_whole_whatever_names_it() {
    let origin = Origin::start(|seen| Reply::ok(pattern(100_000), "max-age=600").ranged(seen));
    let edge = Plan::new(&origin).start();
    for range in ["bytes=5-9", "bytes=5-9,99990-99999"] {
        let path = format!("/small?{}", range.len());
        let ask = || edge.ask("GET", &path, &[("Range", range)]);
        assert_eq!(ask().status, 206);
        wait_for("the body to be stored", || ask().is_hit());
        assert_eq!(origin.count(&path), 1, "{range}");
    }
}

#[test]
fn the_last_bytes_of_nothing_are_all_of_it() {
    let origin = Origin::start(|_| {
        Reply::ok("", "max-age=600")
            .field("ETag", "\"e\"")
            .field("Accept-Ranges", "bytes")
    });
    let edge = Plan::new(&origin).start();
    for (range, status) in [
        ("bytes=-5", 200),
        ("bytes=-500,0-1", 200),
        ("bytes=0-0,-1", 200),
        ("bytes=0--1", 200),
        ("bytes=0-", 416),
        ("bytes=0-4", 416),
        ("bytes=-0", 416),
    ] {
        let path = format!("/empty?{range}");
        for _ in 0..2 {
            let answer = edge.ask("GET", &path, &[("Range", range)]);
            assert_eq!(
                (answer.status, answer.body.len()),
                (status, 0),
                "{range}: {answer:?}"
            );
            assert_eq!(
                answer.field("content-range"),
                if status == 416 { "bytes */0" } else { "" },
                "{range}"
            );
        }
    }
}

/// An origin of one file of that length, which answers several ranges with the whole, or as parts.
fn origin_of_a_large_file(
    length: u64,
    validator: (&'static str, &'static str),
    knows_several: bool,
    sent: &Sent,
) -> Origin {
    let counted = sent.clone();
    let byte = |at: u64| (at % 251) as u8;
    Origin::start(move |seen| {
        let reply = Reply::ok("", "max-age=600").field(validator.0, validator.1);
        let range = seen
            .fields
            .get("range")
            .map_or("", |range| &range["bytes=".len()..]);
        if range.is_empty() || range.contains(',') && !knows_several {
            return counted.count(
                Reply {
                    body: b"the whole, whatever that costs".to_vec(),
                    ..reply
                }
                .field("X-Whole", "yes"),
            );
        }
        if range.contains(',') {
            return Reply {
                status: 206,
                ..reply
            }
            .field("Content-Type", "multipart/byteranges; boundary=theirs");
        }
        let (first, last) = range.split_once('-').expect("a range");
        let first = first
            .parse::<u64>()
            .unwrap_or_else(|_| length - last.parse::<u64>().unwrap_or(0).min(length));
        if first >= length {
            return Reply::status(416).field("Content-Range", &format!("bytes */{length}"));
        }
        let last = if range.starts_with('-') {
            length - 1
        } else {
            last.parse::<u64>().unwrap_or(length - 1).min(length - 1)
        };
        let body = (first..=last).map(byte).collect::<Vec<_>>();
        counted.count(
            Reply {
                status: 206,
                body,
                ..reply
            }
            .field("Content-Range", &format!("bytes {first}-{last}/{length}")),
        )
    })
}

#[test]
fn several_ranges_of_what_is_too_large_to_be_stored_never_cost_the_whole() {
    const LENGTH: u64 = 8 << 30;
    let ranges = "bytes=0-0,1000000000-1000000009,-5";
    for validator in [("ETag", "\"large\""), ("Last-Modified", LONG_AGO)] {
        for knows_several in [false, true] {
            let sent = Sent::default();
            let origin = origin_of_a_large_file(LENGTH, validator, knows_several, &sent);
            let edge = Plan::new(&origin).start();
            // Again while it is known that nothing of it can be stored.
            for _ in 0..3 {
                let answer = get(&edge, ranges);
                assert!(
                    answer.status == 206 && answer.whole,
                    "{validator:?} {knows_several}: {} {:?}",
                    answer.status,
                    answer.fields
                );
                for (first, last) in [
                    (0, 0),
                    (1_000_000_000, 1_000_000_009),
                    (LENGTH - 5, LENGTH - 1),
                ] {
                    let mut part = format!("Content-Range: bytes {first}-{last}/{LENGTH}\r\n\r\n")
                        .into_bytes();
                    part.extend((first..=last).map(|at| (at % 251) as u8));
                    assert!(
                        answer.body.windows(part.len()).any(|w| w == part),
                        "{validator:?} {knows_several} {first}: {}",
                        answer.text()
                    );
                }
            }
            assert!(
                sent.bytes() <= 3 * 5 * SLICE,
                "{validator:?} {knows_several}: {} bytes",
                sent.bytes()
            );
            // One that is outside from the first one on.
            let answer = get(&edge, "bytes=9000000000-9000000001,7-8");
            assert_eq!(
                (answer.status, &*answer.body),
                (206, &[7, 8][..]),
                "{:?}",
                answer.fields
            );
            // Too much to be held back to the client's pace is the origin's to answer, and so is
            // what has another version's tag.
            for fields in [
                &[("Range", "bytes=0-9999999,20000000-29999999")][..],
                &[("Range", ranges), ("If-Range", "\"other\"")],
                &[("Range", "bytes=300-400"), ("If-Range", "\"other\"")],
            ] {
                let asked = origin.seen().len();
                edge.ask("GET", "/other", fields);
                let last = origin.seen().last().expect("it was asked").clone();
                assert!(
                    origin.seen().len() > asked && last.fields["range"] == fields[0].1,
                    "{last:?}"
                );
                assert_eq!(
                    last.fields.get("if-range").map(String::as_str),
                    fields.get(1).map(|f| f.1),
                    "{last:?}"
                );
            }
            assert!(
                origin.seen().iter().all(|s| s.fields.contains_key("range")),
                "nobody asked for the whole"
            );
            wait_for("what cannot be stored to leave", || {
                edge.memory_used() == 0.0
            });
        }
    }
    // Without a validator no two answers are known to be of one version.
    let origin = origin_of_a_large_file(LENGTH, ("ETag", "W/\"large\""), true, &Sent::default());
    let edge = Plan::new(&origin).start();
    for _ in 0..2 {
        let answer = get(&edge, ranges);
        assert_eq!(
            (answer.status, answer.field("content-type")),
            (206, "multipart/byteranges; boundary=theirs"),
            "{answer:?}"
        );
    }
    assert!(
        origin.seen().iter().all(|s| s.fields.contains_key("range")),
        "nobody asked for the whole"
    );
}

#[test]
fn an_origin_that_answers_several_ranges_with_too_large_a_whole_is_asked_for_one() {
    // Its parts cannot be joined, and it knows one range at a time.
    let body = pattern(BYTES);
    let origin = Origin::start(move |seen| {
        let reply = Reply::ok(body.clone(), "max-age=600").field("ETag", "W/\"v\"");
        if seen
            .fields
            .get("range")
            .is_some_and(|range| range.contains(','))
        {
            reply.slow(64, 5)
        } else {
            reply.ranged(seen)
        }
    });
    let mut plan = Plan::new(&origin);
    plan.cache.body_bytes_max = nearcast_fleet::units::Bytes(1 << 20);
    let edge = plan.start();
    for range in [
        "bytes=5-9,3000000-3000009",
        "bytes=99999999-,5-9,3000000-3000009",
    ] {
        for _ in 0..2 {
            let answer = get(&edge, range);
            assert_eq!(
                (answer.status, answer.field("content-range")),
                (206, &*format!("bytes 5-9/{BYTES}")),
                "{range}: {:?}",
                answer.fields
            );
            assert!(answer.whole && answer.body == pattern(10)[5..], "{range}");
        }
    }
    let whole = edge.ask(
        "GET",
        "/big",
        &[("Range", "bytes=5-9,7-8"), ("If-Range", "\"other\"")],
    );
    assert!(
        whole.status == 200 && whole.body.len() == BYTES,
        "another version's is the whole: {}",
        whole.status
    );
}

#[test]
fn another_range_than_was_asked_for_is_passed_on() {
    for tag in ["", "\"v\""] {
        // Whatever was asked for.
        for (content_range, body) in [
            ("bytes 4-7/10", "4567"),
            ("bytes 0-3/10", "0123"),
            ("bytes 8-9/10", "89"),
            ("bytes 4-7/*", "4567"),
        ] {
            let origin = Origin::start(move |_| {
                let reply = Reply {
                    status: 206,
                    ..Reply::ok(body, "max-age=60").field("Content-Range", content_range)
                };
                if tag.is_empty() {
                    reply
                } else {
                    reply.field("ETag", tag)
                }
            });
            let edge = Plan::new(&origin).start();
            for range in ["bytes=5-9", "bytes=-5", "bytes=5-6,9-9"] {
                for _ in 0..2 {
                    let answer = get(&edge, range);
                    assert_eq!(
                        (answer.status, answer.field("content-range")),
                        (206, content_range),
                        "{tag} {range}: {answer:?}"
                    );
                    assert_eq!(answer.text(), body, "{tag} {range}");
                }
            }
            let whole = edge.get("/whole");
            assert_eq!(
                whole.status, 502,
                "nobody gets a part who did not ask for one: {whole:?}"
            );
        }
    }
    // All of it in answer to a request for all of it is a 200.
    let origin = Origin::start(|_| Reply {
        status: 206,
        ..Reply::ok("0123456789", "max-age=60").field("Content-Range", "bytes 0-9/10")
    });
    let edge = Plan::new(&origin).start();
    let whole = edge.get("/whole");
    assert_eq!(
        (
            whole.status,
            whole.text().as_str(),
            whole.field("content-range")
        ),
        (200, "0123456789", ""),
        "{whole:?}"
    );
    assert!(edge.get("/whole").is_hit());
    assert_eq!(
        edge.ask("GET", "/whole", &[("Range", "bytes=2-3")]).text(),
        "23"
    );
}
