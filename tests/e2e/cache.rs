//! A miss, then hits; ranges; validation; stale content while the origin is away.

use std::net::SocketAddr;
use std::time::Duration;

use nearcast_testing::{Origin, Reply, Seen};

use crate::lab::fleet::{CLIENTS, Fleet, Plan};
use crate::lab::tools::dig_addresses;
use crate::lab::wait;

fn scripted(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Fleet, Origin) {
    let mut plan = Plan::new();
    plan.clusters = 1;
    plan.nodes = 1;
    let origin = Origin::start_at(plan.origin_address(), script);
    plan.origin = Some(origin.url());
    (Fleet::start(plan), origin)
}

#[test]
fn a_miss_then_a_hit_through_the_steered_name() {
    let fleet = Fleet::start(Plan::new());
    let edge: std::net::Ipv4Addr = dig_addresses(fleet.plan.dns(), "www.demo.test", CLIENTS[2].1)
        [0]
    .parse()
    .expect("an address");
    let first = fleet.head(edge, "/");
    assert!(first.starts_with("http/1.1 200"), "{first}");
    assert!(
        first.contains("cache-status: sin-") && first.contains("fwd=uri-miss"),
        "{first}"
    );
    let second = fleet.head(edge, "/");
    assert!(
        second.contains("; hit") && second.contains("\nage: ") && second.contains("\nvia: "),
        "{second}"
    );
    assert_eq!(fleet.curl(edge, &[], "/"), "<h1>hello</h1>\n");
}

#[test]
fn a_response_without_freshness_information_is_not_stored() {
    let (fleet, origin) = scripted(|_| Reply {
        fields: vec![],
        ..Reply::ok("x", "")
    });
    for _ in 0..3 {
        let head = fleet.head(fleet.plan.edge(0, 0), "/bare");
        assert!(head.contains("fwd=") && !head.contains("; hit"), "{head}");
    }
    assert_eq!(origin.count("/bare"), 3);
}

#[test]
fn ranges_come_from_slices_and_cost_the_origin_little() {
    const BYTES: usize = 4 << 20;
    let body: Vec<u8> = (0..BYTES).map(|i| (i % 251) as u8).collect();
    let whole = body.clone();
    let (fleet, origin) = scripted(move |seen| {
        let tagged = Reply::ok(body.clone(), "max-age=600")
            .field("ETag", "\"v1\"")
            .field("Accept-Ranges", "bytes");
        let Some((first, last)) = seen
            .fields
            .get("range")
            .and_then(|r| r.strip_prefix("bytes=")?.split_once('-'))
        else {
            return tagged;
        };
        let first: usize = first.parse().expect("the edge asks for plain ranges");
        let last = last.parse().unwrap_or(BYTES - 1).min(BYTES - 1);
        let part = Reply {
            status: 206,
            body: body[first..=last].to_vec(),
            ..tagged
        };
        part.field("Content-Range", &format!("bytes {first}-{last}/{BYTES}"))
    });
    let edge = fleet.plan.edge(0, 0);
    let file = fleet.path("part");
    let fetch = |range: &str| {
        fleet.curl(
            edge,
            &["-r", range, "-o", file.to_str().expect("a plain path")],
            "/big",
        );
        std::fs::read(&file).expect("curl wrote it")
    };
    assert_eq!(fetch("3000000-3000099"), whole[3_000_000..3_000_100]);
    let asked: usize = origin
        .seen()
        .iter()
        .filter_map(|s| {
            s.fields
                .get("range")?
                .strip_prefix("bytes=")?
                .split_once('-')
        })
        .map(|(a, b)| {
            b.parse::<usize>().expect("closed range") + 1
                - a.parse::<usize>().expect("closed range")
        })
        .sum();
    assert!(
        asked > 0 && asked <= (1 << 20) + 200,
        "a cold range of 100 bytes cost the origin {asked} bytes"
    );
    assert_eq!(fetch("0-"), whole);
    let before = origin.seen().len();
    assert_eq!(fetch("-500"), whole[BYTES - 500..]);
    assert_eq!(fetch("1048000-1050000"), whole[1_048_000..=1_050_000]);
    assert_eq!(
        origin.seen().len(),
        before,
        "warm ranges ask the origin nothing"
    );
    let head = fleet
        .curl(
            edge,
            &["-r", "9999999-", "-D", "-", "-o", "/dev/null"],
            "/big",
        )
        .to_lowercase();
    assert!(
        head.starts_with("http/1.1 416")
            && head.contains(&format!("content-range: bytes */{BYTES}")),
        "{head}"
    );
}

#[test]
fn a_stale_response_is_validated_and_freshened() {
    let (fleet, origin) = scripted(|seen| {
        let reply = Reply::ok("same", "max-age=0").field("ETag", "\"one\"");
        if seen
            .fields
            .get("if-none-match")
            .is_some_and(|v| v == "\"one\"")
        {
            return Reply {
                status: 304,
                body: vec![],
                ..reply
            };
        }
        reply
    });
    let edge = fleet.plan.edge(0, 0);
    assert_eq!(fleet.curl(edge, &[], "/page"), "same");
    let head = fleet.head(edge, "/page");
    assert!(
        head.contains("fwd=stale") && head.contains("fwd-status=304"),
        "{head}"
    );
    assert_eq!(fleet.curl(edge, &[], "/page"), "same");
    let are_conditional: Vec<bool> = origin
        .seen()
        .iter()
        .filter(|seen| seen.target == "/page")
        .map(|seen| seen.fields.contains_key("if-none-match"))
        .collect();
    assert_eq!(are_conditional, [false, true, true]);
}

#[test]
fn a_dead_origin_is_bridged_by_stale_content_and_named_where_there_is_none() {
    let (fleet, origin) = scripted(|_| Reply::ok("kept", "max-age=1, stale-if-error=600"));
    let edge = fleet.plan.edge(0, 0);
    assert_eq!(fleet.curl(edge, &[], "/kept"), "kept");
    drop(origin);
    // Fresh at first, then stale; both are served, and the stale one says so.
    wait::until("a stale answer", Duration::from_secs(20), || {
        let head = fleet.head(edge, "/kept");
        assert!(head.starts_with("http/1.1 200"), "{head}");
        if head.contains("fwd=stale") {
            Ok(())
        } else {
            Err(head)
        }
    });
    let head = fleet.head(edge, "/never-seen");
    assert!(head.starts_with("http/1.1 502"), "{head}");
    assert!(head.contains("proxy-status: ams-1; error="), "{head}");
}

#[test]
fn other_methods_pass_and_invalidate() {
    let (fleet, origin) = scripted(|seen| Reply::ok(seen.method.clone(), "max-age=600"));
    let edge = fleet.plan.edge(0, 0);
    for _ in 0..2 {
        assert_eq!(fleet.curl(edge, &[], "/thing"), "GET");
    }
    assert_eq!(origin.count("/thing"), 1);
    assert_eq!(
        fleet.curl(edge, &["-X", "POST", "-d", "data"], "/thing"),
        "POST"
    );
    assert_eq!(fleet.curl(edge, &[], "/thing"), "GET");
    assert_eq!(
        origin.count("/thing"),
        3,
        "the POST passed and dropped what was stored"
    );
}

#[test]
fn an_unknown_host_and_a_loop_are_refused() {
    let fleet = Fleet::start(Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    });
    let edge = SocketAddr::from((fleet.plan.edge(0, 0), 8080));
    let unknown = crate::lab::tools::curl(&[
        "-i",
        "-H",
        "Host: elsewhere.example",
        &format!("http://{edge}/"),
    ]);
    assert!(unknown.starts_with("HTTP/1.1 421"), "{unknown}");
    let health = crate::lab::tools::curl(&["-i", &format!("http://{edge}/.nearcast/health")]);
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let looped = fleet.curl(
        fleet.plan.edge(0, 0),
        &["-i", "-H", "CDN-Loop: nearcast-cdn.test"],
        "/",
    );
    assert!(looped.starts_with("HTTP/1.1 508"), "{looped}");
}
