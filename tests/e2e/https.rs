//! Sites by https: redirects, Strict-Transport-Security, stored responses and purges by scheme, and
//! early data.

use std::net::Ipv4Addr;

use nearcast_testing::{Gate, Origin, Reply};
use tempfile::TempDir;

use crate::lab::addresses::Block;
use crate::lab::certificates::Authority;
use crate::lab::edge::{Edge, Settings, field, status};
use crate::lab::fleet::{Fleet, Plan};
use crate::lab::tools::curl;
use crate::lab::wait;

const SOON: std::time::Duration = std::time::Duration::from_secs(20);

/// A site whose clients are to use https.
fn redirecting(node: impl FnOnce(Block) -> String) -> Edge {
    let settings = |block: Block| Settings {
        node: node(block),
        site: "[site.https]\nredirect = true\nhsts = \"365d\"\nhsts_subdomains = true\n".to_owned(),
        ..Settings::default()
    };
    Edge::start(settings, |seen| match seen.target.as_str() {
        // The setting replaces what an origin says.
        "/own" => Reply::ok("own", "max-age=600").field("Strict-Transport-Security", "max-age=1"),
        "/missing" => Reply::status(404),
        "/private" => Reply::ok("private", "no-store"),
        _ => Reply::ok("page", "max-age=600").field("ETag", "\"1\""),
    })
}

#[test]
fn clients_without_tls_are_redirected() {
    let edge = redirecting(|_| String::new());
    let table: [(&[&str], &str, &str, &str); 11] = [
        (&[], "/page", "301", "https://www.test:8443/page"),
        (
            &[],
            "/page?a=%41&b",
            "301",
            "https://www.test:8443/page?a=%41&b",
        ),
        (&["-I"], "/page", "301", "https://www.test:8443/page"),
        (
            &["-X", "POST"],
            "/page",
            "308",
            "https://www.test:8443/page",
        ),
        (&["-X", "DELETE"], "/", "308", "https://www.test:8443/"),
        (
            &["-H", "Host: OTHER.test"],
            "/x",
            "301",
            "https://other.test:8443/x",
        ),
        (&[], "/.well-known/acme-challenge/token", "200", ""),
        (
            &[],
            "/.well-known/acme",
            "301",
            "https://www.test:8443/.well-known/acme",
        ),
        (&[], "/.nearcast/health", "200", ""),
        // The site has no setting for purges.
        (&["-X", "PURGE"], "/page", "405", ""),
        (&["-H", "Host: unknown.test"], "/page", "421", ""),
    ];
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        for (arguments, path, expected, location) in table {
            let url = format!("http://www.test:8080{path}");
            let answer = edge.curl(&[&[version], arguments].concat(), &url);
            assert_eq!(status(&answer), expected, "{path}: {answer}");
            assert_eq!(field(&answer, "location"), location, "{path}: {answer}");
            // RFC 6797 section 7.2.
            let security = field(&answer, "strict-transport-security");
            assert_eq!(security, "", "{path}: {answer}");
        }
    }
    assert_eq!(edge.origin.count("/page"), 0);
    let followed = edge.curl(
        &[
            "-L",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{url_effective}",
        ],
        "http://www.test:8080/page?q",
    );
    assert!(
        followed.ends_with("200 https://www.test:8443/page?q"),
        "{followed}"
    );
    // A redirect is no reason to close a connection.
    let twice = edge.curl(
        &[
            "-o",
            "/dev/null",
            "-w",
            "%{num_connects} ",
            "http://www.test:8080/a",
            "-o",
            "/dev/null",
        ],
        "http://www.test:8080/b",
    );
    assert!(twice.ends_with("1 0 "), "{twice}");
}

#[test]
fn a_redirect_names_no_port_where_that_is_the_usual_one() {
    let edge = redirecting(|block| {
        let ip = block.host(10);
        format!("listen = \"{ip}:80\"\nlisten_tls = [\"{ip}:8443\", \"{ip}:443\"]\n")
    });
    let answer = edge.curl(&[], "http://www.test/page");
    assert_eq!(field(&answer, "location"), "https://www.test/page");
    let followed = edge.curl(&["-L"], "http://www.test/page");
    assert!(followed.ends_with("page"), "{followed}");
}

#[test]
fn browsers_are_told_to_stay_with_https_whatever_the_answer() {
    let edge = redirecting(|_| String::new());
    let expected = "max-age=31536000; includeSubDomains";
    for version in ["--http1.1", "--http2"] {
        for (arguments, path, code) in [
            (&[][..], "/page", "200"),
            (&[], "/page", "200"),
            (&["-I"], "/page", "200"),
            (&["-H", "If-None-Match: \"1\""], "/page", "304"),
            (&["-r", "0-1"], "/page", "206"),
            (&[], "/own", "200"),
            (&[], "/own", "200"),
            (&[], "/private", "200"),
            (&[], "/missing", "404"),
            (&["-d", "a=b"], "/form", "200"),
        ] {
            let url = format!("https://www.test:8443{path}");
            let answer = edge.curl(&[&[version], arguments].concat(), &url);
            assert_eq!(status(&answer), code, "{path}: {answer}");
            let name = "strict-transport-security:";
            let count = answer.to_lowercase().matches(name).count();
            assert_eq!(count, 1, "{path}: {answer}");
            assert_eq!(
                field(&answer, name.trim_end_matches(':')),
                expected,
                "{answer}"
            );
        }
        let hit = edge.curl(&[version], "https://www.test:8443/page");
        assert!(hit.contains("; hit"), "{hit}");
    }
    edge.origin.stop();
    let failed = edge.curl(&[], "https://www.test:8443/down");
    assert_eq!(status(&failed), "502", "{failed}");
    assert_eq!(field(&failed, "strict-transport-security"), expected);
}

#[test]
fn http_and_https_are_stored_apart_and_the_origin_is_told() {
    let script = |seen: &nearcast_testing::Seen| match (&*seen.method, &*seen.target) {
        ("POST", "/new") => Reply::status(201).field("Location", "/page"),
        _ => Reply::ok(
            format!("by {}", seen.fields["x-forwarded-proto"]),
            "max-age=600",
        ),
    };
    let edge = Edge::start(|_| Settings::default(), script);
    let ask = |version: &str, scheme: &str| {
        let port = if scheme == "http" { 8080 } else { 8443 };
        let version = match (version, scheme) {
            ("2", "http") => "--http2-prior-knowledge",
            ("2", _) => "--http2",
            _ => "--http1.1",
        };
        // What a client states itself is not believed.
        let stated = ["-H", "X-Forwarded-Proto: ftp"];
        let url = format!("{scheme}://www.test:{port}/page");
        edge.curl(&[&[version], &stated[..]].concat(), &url)
    };
    for (round, cached) in ["fwd=uri-miss", "; hit"].into_iter().enumerate() {
        // Both versions of the protocol share what is stored.
        let versions = ["1", "2"];
        for scheme in ["http", "https"] {
            let answer = ask(versions[round], scheme);
            assert!(answer.contains(cached), "{answer}");
            assert!(answer.ends_with(&format!("by {scheme}")), "{answer}");
        }
    }
    assert_eq!(edge.origin.count("/page"), 2);

    // Another scheme is another origin (RFC 9111 section 4.4).
    edge.curl(&["-X", "POST"], "https://www.test:8443/new");
    assert!(ask("1", "http").contains("; hit"));
    assert!(ask("2", "https").contains("fwd="));
    assert_eq!(edge.origin.count("/page"), 3);
}

/// Two edges with a certificate for clients, and an origin whose bodies are the scheme.
fn fleet(site: &str) -> (Fleet, Origin, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut plan = Plan {
        clusters: 1,
        own_keys: true,
        certificates: Some(directory.path().to_owned()),
        site: site.to_owned(),
        ..Plan::new()
    };
    let authority = Authority::new(&directory.path().join("ca.pem"));
    authority.write(&plan, directory.path());
    let origin = Origin::start_at(plan.origin_address(), |seen| {
        let scheme = seen.fields.get("x-forwarded-proto").cloned();
        Reply::ok(scheme.unwrap_or_default().repeat(20_000), "max-age=3600").field("ETag", "\"1\"")
    });
    plan.origin = Some(origin.url());
    (Fleet::start(plan), origin, directory)
}

/// The head of the response to a scheme and path at one edge.
fn head(fleet: &Fleet, edge: Ipv4Addr, scheme: &str, path: &str) -> String {
    let port = if scheme == "http" { 8080 } else { 8443 };
    let directory = fleet.plan.certificates.as_ref().expect("set");
    let ca = directory.join("ca.pem").display().to_string();
    let resolve = format!("www.demo.test:{port}:{edge}");
    let url = format!("{scheme}://www.demo.test:{port}{path}");
    curl(&[
        "-D",
        "-",
        "-o",
        "/dev/null",
        "--cacert",
        &ca,
        "--resolve",
        &resolve,
        &url,
    ])
}

#[test]
fn a_purge_covers_the_schemes_that_it_names_and_both_where_it_names_none() {
    let (fleet, _origin, _directory) = fleet("purge_token = \"a token of this site alone\"\n");
    let edges = [0, 1].map(|node| fleet.plan.edge(0, node));
    let is_hit = |edge: Ipv4Addr, scheme: &str, path: &str| {
        head(&fleet, edge, scheme, path).contains("; hit")
    };
    let fill = || {
        for edge in edges {
            for scheme in ["http", "https"] {
                for path in ["/a/b", "/kept"] {
                    is_hit(edge, scheme, path);
                    assert!(is_hit(edge, scheme, path), "{scheme}://{path}");
                }
            }
        }
    };
    // What is purged, and whether http and https are still stored.
    let check = |what: &str, purged: [bool; 2]| {
        for edge in edges {
            for (scheme, is_purged) in ["http", "https"].into_iter().zip(purged) {
                assert_eq!(is_hit(edge, scheme, "/a/b"), !is_purged, "{what}: {scheme}");
                assert!(is_hit(edge, scheme, "/kept"), "{what}: {scheme}");
            }
        }
    };
    for (arguments, purged) in [
        (["--url", "http://www.demo.test/a/b"], [true, false]),
        (["--url", "https://www.demo.test:443/a/b"], [false, true]),
        (["--url", "//www.demo.test/a/b"], [true, true]),
        (["--url", "www.demo.test/a/b"], [true, true]),
        (["--prefix", "http://www.demo.test/a/"], [true, false]),
        (["--prefix", "https://www.demo.test/a/*"], [false, true]),
        (["--prefix", "//www.demo.test/a/"], [true, true]),
        (["--prefix", "WWW.demo.test/a"], [true, true]),
    ] {
        fill();
        let output = fleet.operate(&[&["purge", "--json"], &arguments[..]].concat());
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let count = purged.into_iter().filter(|is_purged| *is_purged).count() * edges.len();
        assert_eq!(
            (&answer["complete"], &answer["responses"]),
            (&true.into(), &count.into()),
            "{arguments:?}: {answer}"
        );
        check(&arguments.concat(), purged);
    }

    // The method covers both, whichever the client has used.
    for (scheme, port) in [("http", 8080), ("https", 8443)] {
        fill();
        let ca = fleet
            .plan
            .certificates
            .as_ref()
            .expect("set")
            .join("ca.pem");
        let ca = ca.display().to_string();
        let resolve = format!("www.demo.test:{port}:{}", edges[0]);
        let token = "Authorization: Bearer a token of this site alone";
        let url = format!("{scheme}://www.demo.test:{port}/a/b");
        let said = curl(&[
            "-X",
            "PURGE",
            "-H",
            token,
            "--cacert",
            &ca,
            "--resolve",
            &resolve,
            &url,
        ]);
        assert!(said.contains("\"responses\":4"), "{said}");
        check("PURGE", [true, true]);
    }

    // The API shows the scope as it was written.
    let ca = fleet
        .plan
        .certificates
        .as_ref()
        .expect("set")
        .join("ca.pem");
    let purges = format!("https://{}/v1/purges", fleet.plan.control());
    let listed = curl(&["--cacert", &ca.display().to_string(), &purges]);
    for written in [
        "//www.demo.test/a/b",
        "http://www.demo.test/a/b",
        "https://www.demo.test/a/",
    ] {
        assert!(
            listed.contains(&format!("\"{written}\"")),
            "{written}: {listed}"
        );
    }
    assert!(!listed.contains("*:"), "{listed}");
}

#[test]
fn what_is_popular_by_https_is_pushed_by_https() {
    let (fleet, origin, _directory) = fleet("");
    let path = "/v/film/720p/seg-1.m4s";
    for _ in 0..20 {
        head(&fleet, fleet.plan.edge(0, 0), "https", path);
    }
    wait::until("the plan to hold it", SOON, || {
        let plan = fleet.operate(&["plan", "--json"]);
        let text = String::from_utf8_lossy(&plan.stdout).into_owned();
        match text.contains(&format!("https://www.demo.test{path}")) {
            true => Ok(()),
            false => Err(text + &String::from_utf8_lossy(&plan.stderr)),
        }
    });
    let push = fleet.operate(&["push", "--now"]);
    assert!(
        push.status.success(),
        "{}",
        String::from_utf8_lossy(&push.stderr)
    );
    let other = fleet.plan.edge(0, 1);
    let first = head(&fleet, other, "https", path);
    assert!(first.contains("; hit"), "{first}");
    let by_http = head(&fleet, other, "http", path);
    assert!(by_http.contains("fwd="), "{by_http}");
    let told = origin.seen().into_iter().filter(|seen| seen.target == path);
    let told: Vec<_> = told
        .map(|seen| seen.fields["x-forwarded-proto"].clone())
        .collect();
    let (last, pushed) = told.split_last().expect("it was asked");
    assert!(
        last == "http" && pushed.iter().all(|told| told == "https"),
        "{told:?}"
    );
}

#[test]
fn early_data_goes_to_the_origin_and_its_425_to_early_requests_alone() {
    let gate = Gate::default();
    let held = gate.clone();
    let script = move |seen: &nearcast_testing::Seen| {
        let is_early = seen.fields.get("early-data").map(String::as_str) == Some("1");
        match (is_early, &*seen.target) {
            (true, "/held") => Reply {
                held_head: Some(held.clone()),
                ..Reply::status(425)
            },
            (true, _) => Reply::status(425),
            (_, "/stale") => {
                Reply::ok("late", "max-age=0, stale-if-error=600").field("ETag", "\"1\"")
            }
            _ => Reply::ok("late", "max-age=600"),
        }
    };
    let edge = Edge::start(|_| Settings::default(), script);
    let early = ["-H", "Early-Data: 1"];
    let held_url = "http://www.test:8080/held";
    std::thread::scope(|scope| {
        let ask_early = || edge.curl(&early, held_url);
        let waiting = scope.spawn(ask_early);
        wait::until("the origin to be asked", SOON, || {
            match edge.origin.count("/held") {
                1 => Ok(()),
                count => Err(count),
            }
        });
        // It neither waits for the early one nor gets what that gets.
        let answer = edge.curl(&[], held_url);
        assert!(
            status(&answer) == "200" && answer.contains("fwd=uri-miss"),
            "{answer}"
        );
        gate.open();
        let early = waiting.join().expect("it ends");
        assert_eq!(status(&early), "425", "{early}");
    });
    // What is stored needs no origin, early or not.
    for arguments in [&early[..], &[]] {
        let answer = edge.curl(arguments, held_url);
        assert!(
            status(&answer) == "200" && answer.contains("; hit"),
            "{answer}"
        );
    }
    assert_eq!(edge.origin.count("/held"), 2);

    for (scheme, port, version) in [
        ("http", 8080, "--http1.1"),
        ("http", 8080, "--http2-prior-knowledge"),
        ("https", 8443, "--http2"),
    ] {
        let url = |path: &str| format!("{scheme}://www.test:{port}{path}");
        let ask = |arguments: &[&str], path: &str| {
            let answer = edge.curl(&[&[version], arguments].concat(), &url(path));
            status(&answer).to_owned()
        };
        // Neither stored nor remembered.
        let path = format!("/page{version}");
        for _ in 0..2 {
            assert_eq!(ask(&early, &path), "425");
        }
        assert_eq!(edge.origin.count(&path), 2);
        assert_eq!(
            (ask(&[], &path), ask(&early, &path)),
            ("200".into(), "200".into())
        );
        assert_eq!(edge.origin.count(&path), 3);
        // Unsafe methods, and any value of the field.
        let unsafe_path = format!("/form{version}");
        for value in ["Early-Data: 1", "Early-Data: x"] {
            assert_eq!(ask(&["-d", "a=b", "-H", value], &unsafe_path), "425");
        }
        assert_eq!(ask(&["-d", "a=b"], &unsafe_path), "200");
        // A 425 is no error for which something stale stands in.
        assert_eq!(ask(&[], "/stale"), "200");
        assert_eq!(ask(&early, "/stale"), "425");
        assert_eq!(ask(&[], "/stale"), "200");
    }
}
