//! A purge reaches every node, and a node that was away serves nothing that it missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::lab::fleet::{Fleet, Plan};
use crate::lab::http::{Origin, Reply};

/// A fleet whose origin counts up: every body is the number of versions published so far.
fn versions() -> (Fleet, Origin, Arc<AtomicUsize>) {
    let mut plan = Plan { clusters: 2, nodes: 2, ..Plan::new() };
    let version = Arc::new(AtomicUsize::new(1));
    let published = version.clone();
    let origin = Origin::start(plan.origin_address(), move |_| {
        let v = published.load(Ordering::SeqCst);
        Reply::ok(format!("version {v}"), "max-age=3600").field("ETag", &format!("\"{v}\"")).field("Cache-Tag", "all-pages, news")
    });
    plan.origin = Some(origin.url());
    (Fleet::start(plan), origin, version)
}

fn edges(fleet: &Fleet) -> Vec<std::net::Ipv4Addr> {
    (0..2).flat_map(|c| (0..2).map(move |n| (c, n))).map(|(c, n)| fleet.plan.edge(c, n)).collect()
}

fn bodies(fleet: &Fleet, path: &str) -> Vec<String> {
    edges(fleet).into_iter().map(|e| fleet.curl(e, &[], path)).collect()
}

fn purge(fleet: &Fleet, arguments: &[&str]) -> serde_json::Value {
    let output = fleet.operate(&[&["purge", "--json"], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let code = if answer["complete"] == true { 0 } else { 69 };
    assert_eq!(output.status.code(), Some(code), "{text}{}", String::from_utf8_lossy(&output.stderr));
    answer
}

#[test]
fn a_purge_of_any_scope_reaches_every_node() {
    let (fleet, _origin, version) = versions();
    let scopes: [&[&str]; 6] = [
        &["--url", "http://www.demo.test/news/today"],
        &["--prefix", "http://www.demo.test/news/"],
        &["--host", "www.demo.test"],
        &["--site", "www"],
        &["--tag", "news"],
        &["--all", "--yes"],
    ];
    for scope in scopes {
        let before = format!("version {}", version.load(Ordering::SeqCst));
        assert_eq!(bodies(&fleet, "/news/today"), vec![before.clone(); 4], "stored before {scope:?}");
        version.fetch_add(1, Ordering::SeqCst);
        assert_eq!(bodies(&fleet, "/news/today"), vec![before; 4], "still stored before {scope:?}");
        let answer = purge(&fleet, scope);
        assert_eq!(answer["complete"], true, "{scope:?}: {answer}");
        assert_eq!(answer["nodes"].as_array().map(Vec::len), Some(4), "{answer}");
        assert_eq!(answer["responses"], 4, "{scope:?} covered one stored response on each of four nodes: {answer}");
        let after = format!("version {}", version.load(Ordering::SeqCst));
        assert_eq!(bodies(&fleet, "/news/today"), vec![after; 4], "new after {scope:?}");
    }
}

#[test]
fn a_purge_leaves_everything_else() {
    let (fleet, origin, _version) = versions();
    bodies(&fleet, "/a");
    bodies(&fleet, "/b");
    purge(&fleet, &["--url", "http://www.demo.test/a"]);
    bodies(&fleet, "/b");
    assert_eq!(origin.count("/b"), 4, "one for each edge, none after the purge of another URL");
}

#[test]
fn a_soft_purge_validates_instead_of_forgetting() {
    let (fleet, origin, _version) = versions();
    bodies(&fleet, "/soft");
    purge(&fleet, &["--url", "http://www.demo.test/soft", "--soft"]);
    bodies(&fleet, "/soft");
    let validating = origin.seen().iter().filter(|s| s.target == "/soft" && s.fields.contains_key("if-none-match")).count();
    assert_eq!(validating, 4, "each edge asked whether its copy is still good");
}

#[test]
fn a_node_that_was_away_serves_nothing_that_it_missed() {
    let (mut fleet, _origin, version) = versions();
    bodies(&fleet, "/kept");
    let ip = fleet.plan.edge(1, 1);
    fleet.node("nyc-2").signal("TERM");
    fleet.node("nyc-2").wait(std::time::Duration::from_secs(15));
    version.fetch_add(1, Ordering::SeqCst);
    let answer = purge(&fleet, &["--site", "www"]);
    assert_eq!(answer["complete"], false, "one node is away: {answer}");
    fleet.start_node("edge", "nyc-2");
    fleet.wait_ready("nyc-2", ip);
    assert_eq!(fleet.curl(ip, &[], "/kept"), "version 2");
}

#[test]
fn a_purge_without_the_token_is_refused() {
    let (fleet, _origin, _version) = versions();
    let url = format!("http://{}/v1/purges", fleet.plan.control());
    for extra in [vec![], vec!["-H", "Authorization: Bearer wrong"]] {
        let code = crate::lab::tools::curl(
            &[
                vec!["-o", "/dev/null", "-w", "%{http_code}", "-H", "Content-Type: application/json", "-d", "{\"scope\":{\"by\":\"all\"}}"],
                extra,
                vec![&url],
            ]
            .concat(),
        );
        assert_eq!(code, "401");
    }
    let output = fleet.operate(&["purge", "--all", "--yes", "--token", "wrong"]);
    assert_eq!(output.status.code(), Some(77), "{}", String::from_utf8_lossy(&output.stderr));
}
