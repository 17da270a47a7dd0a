//! Byte ranges from slices, and what they cost the origin.

mod lab;

use lab::{Edge, Origin, Plan, Reply, pattern, wait_for};

const BYTES: usize = 4 << 20;
const SLICE: usize = 256 << 10;

fn ranged() -> (Edge, Origin, Vec<u8>) {
    let body = pattern(BYTES);
    let sent = body.clone();
    let origin = Origin::start(move |seen| {
        Reply::ok(sent.clone(), "max-age=600").field("ETag", "\"v1\"").field("Content-Type", "video/mp4").ranged(seen)
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
    assert_eq!((cold.status, cold.field("content-range")), (206, "bytes 3000000-3000099/4194304"));
    assert!(cold.body == body[3_000_000..3_000_100]);
    let asked = origin.seen()[0].range().expect("a range");
    assert!(asked.1.expect("closed") - asked.0 < SLICE && asked.0 % SLICE == 0, "{asked:?}");
    let whole = get(&edge, "bytes=0-");
    assert!(whole.body == body);
    assert!(whole.cache().contains("fwd=partial"), "{}", whole.cache());
    let before = origin.seen().len();
    let table: [(&str, u16, &[u8], &str); 6] = [
        ("bytes=-500", 206, &body[BYTES - 500..], "bytes 4193804-4194303/4194304"),
        ("bytes=1048000-1050000", 206, &body[1_048_000..=1_050_000], "bytes 1048000-1050000/4194304"),
        ("bytes=4194303-", 206, &body[BYTES - 1..], "bytes 4194303-4194303/4194304"),
        ("bytes=9999999-", 416, b"", "bytes */4194304"),
        ("bytes=5-4", 200, &body, ""),
        ("lines=1-2", 200, &body, ""),
    ];
    for (range, status, expected, content_range) in table {
        let answer = get(&edge, range);
        assert_eq!((answer.status, answer.field("content-range")), (status, content_range), "{range}");
        assert!(answer.body == expected && answer.is_hit(), "{range}: {} {}", answer.body.len(), answer.cache());
    }
    assert_eq!(origin.seen().len(), before, "warm ranges ask the origin nothing");
}

#[test]
fn cold_ranges_of_every_form_are_right() {
    for range in ["bytes=-500", "bytes=300000-", "bytes=0-0", "bytes=0-", "bytes=262143-262144", "bytes=4194303-5000000"] {
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
        let (first, last): (usize, usize) = (first.parse().expect("a number"), last.parse().expect("a number"));
        assert!(answer.status == 206 && answer.body == body[first..=last], "{range}: {:?}", answer.fields);
        lab::wait_for("the slices to be stored", || get(&edge, range).is_hit());
    }
}

#[test]
fn several_ranges_come_as_parts_in_the_order_asked_for() {
    let (edge, _origin, body) = ranged();
    edge.get("/big");
    let answer = get(&edge, "bytes=1000-1009, 5-9");
    assert_eq!(answer.status, 206);
    let kind = answer.field("content-type");
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").expect("parts");
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
    for (tag, status, bytes) in [("\"v1\"", 206, 10), ("\"v2\"", 200, BYTES), ("W/\"v1\"", 200, BYTES)] {
        let answer = edge.ask("GET", "/big", &[("Range", "bytes=0-9"), ("If-Range", tag)]);
        assert_eq!((answer.status, answer.body.len()), (status, bytes), "{tag}");
    }
    let cold = edge.ask("GET", "/big?cold", &[("Range", "bytes=0-9"), ("If-Range", "\"v2\"")]);
    assert!(cold.status == 200 && cold.body == body);
}

#[test]
fn an_origin_that_ignores_ranges_is_asked_once() {
    let body = pattern(1 << 20);
    let sent = body.clone();
    let origin = Origin::start(move |_| Reply::ok(sent.clone(), "max-age=60"));
    let edge = Plan::new(&origin).start();
    let cold = get(&edge, "bytes=600000-600009");
    assert!(cold.status == 206 && cold.body == body[600_000..600_010], "{} {}", cold.status, cold.body.len());
    // The first range is answered while the fill still runs; what joins it is no hit yet, and asks nobody either.
    wait_for("the fill to end", || {
        let warm = get(&edge, "bytes=-5");
        assert!(warm.status == 206 && warm.body == body[body.len() - 5..], "{warm:?}");
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
        Reply::ok(vec![v; 1 << 20], "max-age=600").field("ETag", &format!("\"{v}\"")).ranged(seen)
    });
    let edge = Plan::new(&origin).start();
    assert_eq!(get(&edge, "bytes=0-9").body, [1; 10]);
    version.store(2, Ordering::SeqCst);
    assert_eq!(get(&edge, "bytes=0-9").body, [1; 10], "still fresh");
    let other = get(&edge, "bytes=900000-900009");
    assert_eq!(other.body, [2; 10]);
    assert_eq!(get(&edge, "bytes=0-9").body, [2; 10], "the older parts are gone");
    assert!(edge.get("/big").body.iter().all(|b| *b == 2));
}

#[test]
fn a_part_without_a_strong_validator_is_served_and_not_kept() {
    let body = pattern(1 << 20);
    let sent = body.clone();
    let origin = Origin::start(move |seen| Reply::ok(sent.clone(), "max-age=600").ranged(seen));
    let edge = Plan::new(&origin).start();
    for _ in 0..2 {
        let answer = get(&edge, "bytes=600000-600009");
        assert!(answer.status == 206 && answer.body == body[600_000..600_010], "{} {}", answer.status, answer.body.len());
        assert!(!answer.is_hit());
    }
}
