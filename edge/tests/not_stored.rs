//! Why a response is not stored: one word in `Cache-Status`, and the same in the metric.

mod lab;

use lab::{Edge, Origin, Plan, Reply, pattern};
use nearcast_fleet::config::CachePolicy;
use nearcast_fleet::units::Bytes;

fn count(edge: &Edge, cause: &str) -> f64 {
    let name = format!("nearcast_edge_not_stored_total{{cause=\"{cause}\",site=\"www\"}}");
    let metrics = edge.metrics();
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(&name)?.trim().parse().ok());
    line.unwrap_or(0.0)
}

#[test]
fn whatever_is_not_stored_says_why() {
    let origin = Origin::start(
        |seen| match seen.target.split('?').next().unwrap_or_default() {
            "/no-store" => Reply::ok("x", "no-store"),
            "/private" => Reply::ok("x", "private, max-age=60"),
            "/nothing" => Reply::ok("x", ""),
            "/cookie" => Reply::ok("x", "max-age=60").field("Set-Cookie", "a=b"),
            "/star" => Reply::ok("x", "max-age=60").field("Vary", "*"),
            "/vary" => Reply::ok("x", "max-age=60").field("Vary", "X-Forwarded-For"),
            "/status" => Reply {
                status: 429,
                ..Reply::ok("x", "max-age=60")
            },
            "/large" => Reply::ok(pattern(200_000), "max-age=60"),
            "/large-part" => Reply::ok(pattern(600_000), "max-age=60").ranged(seen),
            "/tags" => Reply::ok("x", "max-age=60").field("Cache-Tag", &"y".repeat(1025)),
            "/understand" => Reply {
                status: 299,
                ..Reply::ok("x", "max-age=60, must-understand")
            },
            "/guess" => Reply::ok("x", "").field("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT"),
            "/weak" => Reply::ok(pattern(600_000), "max-age=60")
                .field("ETag", "W/\"w\"")
                .ranged(seen),
            _ => Reply::ok("x", "max-age=60"),
        },
    );
    let cache = CachePolicy {
        obey_client: true,
        body_bytes_max: Bytes(100_000),
        ..CachePolicy::default()
    };
    let edge = Plan {
        cache,
        ..Plan::new(&origin)
    }
    .start();
    type Fields<'a> = &'a [(&'a str, &'a str)];
    // Method, path, fields of the request, word in the metric, word in `Cache-Status` where it says
    // more.
    let table: [(&str, &str, Fields<'_>, &str, &str); 23] = [
        ("GET", "/no-store", &[], "no-store", ""),
        ("GET", "/private", &[], "private", ""),
        ("GET", "/nothing", &[], "no-freshness", ""),
        ("GET", "/cookie", &[], "set-cookie", ""),
        ("GET", "/star", &[], "vary-star", ""),
        ("GET", "/vary", &[], "vary", ""),
        ("GET", "/status", &[], "status", ""),
        ("GET", "/large", &[], "too-large", ""),
        (
            "GET",
            "/large-part",
            &[("Range", "bytes=0-9")],
            "too-large",
            "",
        ),
        ("GET", "/tags", &[], "tags", ""),
        ("GET", "/understand", &[], "must-understand", ""),
        ("GET", "/guess", &[("Cookie", "a=b")], "credentials", ""),
        (
            "GET",
            "/fine?1",
            &[("Authorization", "Basic eDp5")],
            "authorization",
            "",
        ),
        (
            "GET",
            "/fine?2",
            &[("Cache-Control", "no-store")],
            "request-no-store",
            "",
        ),
        (
            "GET",
            "/fine?3",
            &[("X-Odd", "1")],
            "request-field",
            "request-field:x-odd",
        ),
        ("GET", "/fine/../x", &[], "ambiguous-path", ""),
        ("GET", "/fine/%00", &[], "ambiguous-path", ""),
        ("GET", "/fine?4", &[("Content-Length", "0")], "", ""),
        ("HEAD", "/fine?5", &[], "method", ""),
        ("POST", "/fine?6", &[("Content-Length", "0")], "method", ""),
        ("OPTIONS", "/fine?7", &[], "method", ""),
        // What requests of that kind got lately goes on being passed, and says the same.
        ("GET", "/private", &[], "private", ""),
        ("GET", "/private", &[("Range", "bytes=0-0")], "private", ""),
    ];
    for (method, path, fields, cause, word) in table {
        let before = if cause.is_empty() {
            0.0
        } else {
            count(&edge, cause)
        };
        let answer = edge.ask(method, path, fields);
        let found = answer.cache().split("detail=").nth(1).unwrap_or_default();
        let expected = if word.is_empty() { cause } else { word };
        assert_eq!(
            found,
            expected,
            "{method} {path} {fields:?}: {}",
            answer.cache()
        );
        assert_eq!(
            answer.cache().contains("; stored"),
            cause.is_empty(),
            "{method} {path} {fields:?}: {}",
            answer.cache()
        );
        if !cause.is_empty() {
            assert_eq!(
                count(&edge, cause),
                before + 1.0,
                "{method} {path} {fields:?}"
            );
        }
    }
    let stored = edge.get("/fine?8");
    assert!(
        stored.cache().contains("; stored") && !stored.cache().contains("detail"),
        "{}",
        stored.cache()
    );
    let hit = edge.get("/fine?8");
    assert!(
        hit.is_hit() && !hit.cache().contains("detail"),
        "{}",
        hit.cache()
    );
}

#[test]
fn a_body_with_a_body_of_the_request_or_cut_off_is_counted_too() {
    let origin = Origin::start(|seen| match seen.target.as_str() {
        "/at-once" => Reply::ok("x", "max-age=0"),
        "/cut" => Reply::ok(pattern(500_000), "max-age=60").cut_after(300_000),
        _ => Reply::ok("x", "max-age=60"),
    });
    let edge = Plan::new(&origin).start();
    let answer = edge.raw(
        b"GET /with HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
    );
    assert!(
        answer.cache().ends_with("detail=request-body"),
        "{}",
        answer.cache()
    );
    // Where clients are not obeyed, so that none may accept it stale.
    let answer = edge.get("/at-once");
    assert!(
        answer.cache().ends_with("detail=stale-at-once"),
        "{}",
        answer.cache()
    );
    let _ = edge.get("/cut");
    lab::wait_for("what was cut to be counted", || {
        count(&edge, "incomplete") >= 1.0
    });
}
