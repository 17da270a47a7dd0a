//! A purge reaches every node, and a node that was away serves nothing that it missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nearcast_testing::{Origin, Reply};

use crate::lab::fleet::{Fleet, Plan};

/// A fleet whose origin counts up: every body is the number of versions published so far.
fn versions() -> (Fleet, Origin, Arc<AtomicUsize>) {
    versions_with("")
}

/// The same with more lines for its site.
fn versions_with(site: &str) -> (Fleet, Origin, Arc<AtomicUsize>) {
    let mut plan = Plan {
        clusters: 2,
        nodes: 2,
        site: site.to_owned(),
        ..Plan::new()
    };
    let version = Arc::new(AtomicUsize::new(1));
    let published = version.clone();
    let origin = Origin::start_at(plan.origin_address(), move |_| {
        let v = published.load(Ordering::SeqCst);
        Reply::ok(format!("version {v}"), "max-age=3600")
            .field("ETag", &format!("\"{v}\""))
            .field("Cache-Tag", "all-pages, news")
    });
    plan.origin = Some(origin.url());
    (Fleet::start(plan), origin, version)
}

fn edges(fleet: &Fleet) -> Vec<std::net::Ipv4Addr> {
    (0..2)
        .flat_map(|c| (0..2).map(move |n| (c, n)))
        .map(|(c, n)| fleet.plan.edge(c, n))
        .collect()
}

fn bodies(fleet: &Fleet, path: &str) -> Vec<String> {
    edges(fleet)
        .into_iter()
        .map(|e| fleet.curl(e, &[], path))
        .collect()
}

fn purge(fleet: &Fleet, arguments: &[&str]) -> serde_json::Value {
    let output = fleet.operate(&[&["purge", "--json"], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let code = if answer["complete"] == true { 0 } else { 69 };
    assert_eq!(
        output.status.code(),
        Some(code),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
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
        assert_eq!(
            bodies(&fleet, "/news/today"),
            vec![before.clone(); 4],
            "stored before {scope:?}"
        );
        version.fetch_add(1, Ordering::SeqCst);
        assert_eq!(
            bodies(&fleet, "/news/today"),
            vec![before; 4],
            "still stored before {scope:?}"
        );
        let answer = purge(&fleet, scope);
        assert_eq!(answer["complete"], true, "{scope:?}: {answer}");
        assert_eq!(
            answer["nodes"].as_array().map(Vec::len),
            Some(4),
            "{answer}"
        );
        assert_eq!(
            answer["responses"], 4,
            "{scope:?} covered one stored response on each of four nodes: {answer}"
        );
        let after = format!("version {}", version.load(Ordering::SeqCst));
        assert_eq!(
            bodies(&fleet, "/news/today"),
            vec![after; 4],
            "new after {scope:?}"
        );
    }
}

#[test]
fn a_purge_leaves_everything_else() {
    let (fleet, origin, _version) = versions();
    bodies(&fleet, "/a");
    bodies(&fleet, "/b");
    purge(&fleet, &["--url", "http://www.demo.test/a"]);
    bodies(&fleet, "/b");
    assert_eq!(
        origin.count("/b"),
        4,
        "one for each edge, none after the purge of another URL"
    );
}

#[test]
fn a_soft_purge_validates_instead_of_forgetting() {
    let (fleet, origin, _version) = versions();
    bodies(&fleet, "/soft");
    purge(&fleet, &["--url", "http://www.demo.test/soft", "--soft"]);
    bodies(&fleet, "/soft");
    let validating = origin
        .seen()
        .iter()
        .filter(|s| s.target == "/soft" && s.fields.contains_key("if-none-match"))
        .count();
    assert_eq!(
        validating, 4,
        "each edge asked whether its copy is still good"
    );
}

#[test]
fn a_node_that_was_away_serves_nothing_that_it_missed() {
    let (mut fleet, _origin, version) = versions();
    bodies(&fleet, "/kept");
    let ip = fleet.plan.edge(1, 1);
    fleet.node("nyc-2").signal("TERM");
    fleet.node("nyc-2").wait(std::time::Duration::from_secs(60));
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
                vec![
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{http_code}",
                    "-H",
                    "Content-Type: application/json",
                    "-d",
                    "{\"scope\":{\"by\":\"all\"}}",
                ],
                extra,
                vec![&url],
            ]
            .concat(),
        );
        assert_eq!(code, "401");
    }
    let output = fleet.operate(&["purge", "--all", "--yes", "--token", "wrong"]);
    assert_eq!(
        output.status.code(),
        Some(77),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What a purge prints for people, with its exit code.
fn words(fleet: &Fleet, arguments: &[&str]) -> (Option<i32>, String) {
    let output = fleet.operate(&[&["purge"], arguments].concat());
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn a_purge_covers_what_people_write_and_says_how_much() {
    let (fleet, _origin, version) = versions();
    let table: [(&[&str], &[&str]); 6] = [
        (
            &["/%E5%81%A5%E5%BA%B7/i"],
            &["--url", "http://www.demo.test/健康/i"],
        ),
        (
            &["/caf%c3%a9"],
            &["--url", "http://www.demo.test/caf%C3%A9"],
        ),
        (
            &["/a%20b?q=%7Ex"],
            &["--url", "//WWW.demo.test:443/a b?q=~x#part"],
        ),
        (
            &["/v/720/s1", "/v/720p.m3u8"],
            &["--prefix", "http://www.demo.test/v/720*"],
        ),
        (
            &["/search?q=a", "/search?q=b"],
            &["--prefix", "http://www.demo.test/search?q="],
        ),
        (
            &["/x", "/y/1"],
            &[
                "--url",
                "http://www.demo.test/x",
                "--prefix",
                "http://www.demo.test/y/",
                "--tag",
                "none",
            ],
        ),
    ];
    for (paths, arguments) in table {
        for path in paths.iter().chain(&["/kept"]) {
            bodies(&fleet, path);
        }
        version.fetch_add(1, Ordering::SeqCst);
        let answer = purge(&fleet, arguments);
        assert_eq!(
            answer["responses"],
            4 * paths.len(),
            "{arguments:?}: {answer}"
        );
        let after = format!("version {}", version.load(Ordering::SeqCst));
        paths.iter().for_each(|path| {
            assert_eq!(
                bodies(&fleet, path),
                vec![after.clone(); 4],
                "{path} after {arguments:?}"
            )
        });
        assert_ne!(
            bodies(&fleet, "/kept"),
            vec![after; 4],
            "what it does not name stays"
        );
        purge(&fleet, &["--url", "http://www.demo.test/kept"]);
    }
    let (code, told) = words(&fleet, &["--url", "http://www.demo.test/never"]);
    assert!(
        code == Some(0)
            && told.contains("nothing that it covers was stored on 4 edges; complete after"),
        "{told}"
    );
    let (code, told) = words(&fleet, &["--url", "http://wwww.demo.test/"]);
    assert!(
        code == Some(0) && told.contains("note: no site of the fleet has the host wwww.demo.test"),
        "{told}"
    );
    let (code, told) = words(&fleet, &["--url", "http://www.demo.test/x", "--wait", "0s"]);
    assert!(
        code == Some(0)
            && told.starts_with("accepted as revision ")
            && !told.contains("0 responses"),
        "{told}"
    );
}

#[test]
fn what_cannot_be_purged_is_refused_and_nothing_goes() {
    let (fleet, _origin, _version) = versions();
    bodies(&fleet, "/a");
    let long = "x".repeat(1025);
    let table: [(&[&str], &str); 12] = [
        (
            &["--url", "/a"],
            "--url: \"/a\" names no host: write //host/path for both schemes",
        ),
        (&["--url", "demo/a"], "names no host"),
        (&["--url", "http:///a"], "is not a host"),
        (&["--url", "http://www.demo.test/100%"], "write %25"),
        (
            &["--url", "http://www.demo.test/a\u{1}"],
            "control character",
        ),
        (&["--url", "ftp://www.demo.test/a"], "is not a scheme"),
        (&["--prefix", "http://www.demo.te"], "add at least a /"),
        (
            &["--prefix", "http://www.demo.test/*.jpg"],
            "not at its end",
        ),
        (&["--host", "*.demo.test"], "one by one"),
        (&["--tag", &long], "at most 1024 bytes"),
        (
            &["--url", "http://www.demo.test/a", "--site", "mars"],
            "it has www",
        ),
        (&["--all"], "give --yes"),
    ];
    for (arguments, hint) in table {
        let (code, told) = words(&fleet, arguments);
        assert_eq!(code, Some(64), "{arguments:?}: {told}");
        assert!(told.contains(hint), "{arguments:?}: {told}");
    }
    for edge in edges(&fleet) {
        assert!(
            fleet.head(edge, "/a").contains("; hit"),
            "nothing was purged"
        );
    }
}

#[test]
fn a_purge_request_to_one_edge_reaches_every_node() {
    let (mut fleet, origin, version) = versions_with(
        "purge_token = \"a token of this site alone\"\npurge_from = \"192.0.2.0/24\"\n",
    );
    let edge = fleet.plan.edge(0, 1);
    let token = ["-H", "Authorization: Bearer a token of this site alone"];
    let ask = |fleet: &Fleet, more: &[&str], path: &str| {
        let answer = fleet.curl(
            edge,
            &[&["-X", "PURGE", "-w", "\n%{http_code}"], more].concat(),
            path,
        );
        let (body, code) = answer.rsplit_once('\n').expect("a status");
        (code.to_owned(), body.to_owned())
    };
    for (more, path) in [
        (vec![], "/caf%C3%A9"),
        (vec!["-H", "Surrogate-Key: other news"], "/"),
    ] {
        let before = bodies(&fleet, "/caf%c3%a9");
        version.fetch_add(1, Ordering::SeqCst);
        for refused in [
            vec![],
            vec!["-H", "Authorization: Bearer a token of another site"],
        ] {
            let (code, body) = ask(&fleet, &[refused, more.clone()].concat(), path);
            assert_eq!(code, "403", "{body}");
        }
        assert_eq!(
            bodies(&fleet, "/caf%c3%a9"),
            before,
            "a stranger purges nothing"
        );
        let (code, body) = ask(&fleet, &[&token[..], &more].concat(), path);
        let answer: serde_json::Value =
            serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"));
        assert!(
            code == "200" && answer["complete"] == true && answer["responses"] == 4,
            "{code} {body}"
        );
        let after = format!("version {}", version.load(Ordering::SeqCst));
        assert_eq!(bodies(&fleet, "/caf%c3%a9"), vec![after; 4], "{answer}");
        let told = crate::lab::tools::curl(&[&format!(
            "http://{}/v1/purges/{}",
            fleet.plan.control(),
            answer["revision"]
        )]);
        assert!(told.contains("\"complete\":true"), "{told}");
    }
    let (code, body) = ask(
        &fleet,
        &[&token[..], &["-H", "Nearcast-Purge: soft"]].concat(),
        "/caf%c3%a9",
    );
    assert!(
        code == "200" && body.contains("\"responses\":4"),
        "{code} {body}"
    );
    bodies(&fleet, "/caf%c3%a9");
    assert_eq!(
        origin
            .seen()
            .iter()
            .filter(|s| s.fields.contains_key("if-none-match"))
            .count(),
        4,
        "each asked whether it is still good"
    );

    fleet.node("control").kill();
    let (code, body) = ask(&fleet, &token, "/caf%c3%a9");
    assert!(
        code == "503" && body.contains("control does not answer"),
        "{code} {body}"
    );
    for edge in edges(&fleet) {
        assert!(
            fleet.head(edge, "/caf%c3%a9").contains("; hit"),
            "no node purges alone"
        );
    }
    assert!(
        origin
            .seen()
            .iter()
            .all(|s| s.method == "GET" || s.method == "HEAD"),
        "PURGE never goes to the origin"
    );
}
