//! Stored, reused, validated, varied: what a shared cache does, over real sockets.

mod lab;

use lab::{Origin, Plan, Reply, pattern};

#[test]
fn a_miss_then_a_hit_then_a_head_from_the_same_bytes() {
    let origin = Origin::start(|_| Reply::ok("hello", "max-age=60").field("ETag", "\"1\""));
    let edge = Plan::new(&origin).start();
    let first = edge.get("/page");
    assert_eq!((first.status, first.text().as_str()), (200, "hello"));
    assert!(first.cache().starts_with("ams-1; fwd=uri-miss; fwd-status=200") && first.cache().contains("; stored"), "{first:?}");
    assert_eq!(first.field("age"), "", "what comes from the origin has no age of ours");
    let second = edge.get("/page");
    assert!(second.cache().starts_with("ams-1; hit; ttl=") && second.field("age") != "", "{second:?}");
    assert_eq!((second.field("content-length"), second.field("via"), second.text().as_str()), ("5", "1.1 ams-1", "hello"));
    let head = edge.ask("HEAD", "/page", &[]);
    assert!(head.is_hit() && head.field("content-length") == "5" && head.body.is_empty(), "{head:?}");
    assert_eq!(origin.count("/page"), 1);
    let metrics = edge.metrics();
    assert!(metrics.contains("nearcast_edge_requests_total{cache_status=\"hit\",site=\"www\",status_class=\"2xx\"} 2"), "{metrics}");
    edge.stop().expect("a good end");
}

#[test]
fn large_bodies_come_whole_first_and_second_hand() {
    let body = pattern(3_000_000);
    for chunked in [false, true] {
        let sent = body.clone();
        let origin = Origin::start(move |_| Reply { chunked, ..Reply::ok(sent.clone(), "max-age=60") });
        let edge = Plan::new(&origin).start();
        for _ in 0..2 {
            let answer = edge.get("/big");
            assert!(answer.whole && answer.body == body, "chunked {chunked}: {} bytes", answer.body.len());
        }
        assert_eq!(origin.count("/big"), 1);
    }
}
