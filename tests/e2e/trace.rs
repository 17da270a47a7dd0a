//! Traces: a request is found by its id on whichever edge it was, by people with the token only.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nearcast_fleet::node_key;
use nearcast_testing::{Origin, Reply};
use serde_json::Value;

use crate::lab::fleet::{Fleet, Plan};
use crate::lab::tools::curl;
use crate::lab::wait;

const SOON: Duration = Duration::from_secs(20);

/// A fleet of two clusters in front of a scripted origin.
fn start(own_keys: bool) -> (Fleet, Origin) {
    let plan = Plan {
        clusters: 2,
        nodes: 2,
        own_keys,
        ..Plan::new()
    };
    let origin = Origin::start_at(SocketAddr::from((plan.block.host(81), 8000)), |_| {
        Reply::ok(vec![b'x'; 1000], "max-age=600")
    });
    let plan = Plan {
        origin: Some(origin.url()),
        ..plan
    };
    (Fleet::start(plan), origin)
}

/// `nearcast trace --json`.
fn trace(fleet: &Fleet, id: &str) -> (Option<i32>, Value, String) {
    let output = fleet.operate(&["trace", "--json", id]);
    (
        output.status.code(),
        serde_json::from_slice(&output.stdout).unwrap_or_default(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn a_request_is_found_by_its_id_wherever_it_was() {
    let (mut fleet, origin) = start(false);
    let edges = [(0, 0, "ams-1"), (1, 1, "nyc-2")];
    for (cluster, node, _) in edges {
        let path = format!("/page-{cluster}");
        fleet.curl(fleet.plan.edge(cluster, node), &["-o", "/dev/null"], &path);
    }
    for (cluster, _, name) in edges {
        let path = format!("/page-{cluster}");
        let seen = origin.seen();
        let seen = seen.iter().find(|seen| seen.target == path);
        let id = &seen.expect("it was asked").fields["x-request-id"];
        // Edges ask for questions from their start on, but not yet in this moment.
        let answer = wait::until("the trace", SOON, || {
            let (code, answer, said) = trace(&fleet, id);
            match code {
                Some(0) => Ok(answer),
                _ => Err(said),
            }
        });
        let records = answer["records"].as_array().expect("records");
        assert_eq!(records.len(), 1, "{answer}");
        let record = &records[0];
        assert_eq!(
            (&record["node"], &record["path"], &record["cache"]),
            (&name.into(), &path.as_str().into(), &"miss".into())
        );
        assert_eq!(
            (&record["status"], &record["bytes"], &record["site"]),
            (&200.into(), &1000.into(), &"www".into())
        );
        assert!(
            record["origin_us"].as_u64().is_some_and(|us| us > 0),
            "{record}"
        );
        let shown = fleet.operate(&["trace", id]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(
            shown.contains(name) && shown.contains(&format!("GET {path} on www.demo.test:8080")),
            "{shown}"
        );
    }

    // A hit has no id that anybody sees but in the log; an error names its own.
    let refused = curl(&[&format!("http://{}:8080/", fleet.plan.edge(1, 0))]);
    let id = refused.trim().rsplit("request id: ").next().expect("an id");
    let (code, answer, said) = trace(&fleet, id);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        (
            &answer["records"][0]["node"],
            &answer["records"][0]["cache"]
        ),
        (&"nyc-1".into(), &"local".into())
    );

    // A node that is gone is named, and delays for a bounded time.
    fleet.node("nyc-2").kill();
    let began = Instant::now();
    let (code, _, said) = trace(&fleet, "0123456789abcdef01234567");
    assert_eq!(code, Some(64), "{said}");
    assert!(
        said.contains("knows the request") && said.contains("no answer came from nyc-2"),
        "{said}"
    );
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn nodes_of_a_cluster_share_the_id_of_a_request() {
    let (fleet, _origin) = start(false);
    let parsed =
        nearcast_fleet::file::parse(&fleet.plan.text(), &fleet.path("")).expect("a good file");
    let secret = node_key::shown_to_peers(&parsed, "ams").expect("a secret");
    let peer = format!("Nearcast-Peer: {}", secret.0);
    for (node, id) in [(0, "hop-of-peers"), (1, "hop-of-peers")] {
        fleet.curl(
            fleet.plan.edge(0, node),
            &[
                "-o",
                "/dev/null",
                "-H",
                &peer,
                "-H",
                &format!("X-Request-Id: {id}"),
            ],
            "/page",
        );
    }
    // Without the secret the id is not believed, nor with that of another cluster.
    for (cluster, field) in [(0, "X-A: b"), (1, peer.as_str())] {
        fleet.curl(
            fleet.plan.edge(cluster, 0),
            &[
                "-o",
                "/dev/null",
                "-H",
                field,
                "-H",
                "X-Request-Id: hop-of-peers",
            ],
            "/page",
        );
    }
    let nodes = wait::until("both records", SOON, || {
        let (_, answer, said) = trace(&fleet, "hop-of-peers");
        let records = answer["records"].as_array().cloned().unwrap_or_default();
        match records.len() {
            0 | 1 => Err(said),
            _ => Ok(records),
        }
    });
    let mut names: Vec<_> = nodes.iter().map(|record| record["node"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, [Some("ams-1"), Some("ams-2")]);
    assert!(
        nodes.iter().all(|record| record["is_peer"] == true),
        "{nodes:?}"
    );
}

#[test]
fn traces_need_the_token_and_an_id() {
    let (fleet, _origin) = start(true);
    let control = fleet.plan.control();
    let token = std::fs::read_to_string(fleet.path("state/control/token")).expect("a token");
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let ask = |path: &str, field: &str| {
        curl(&[
            "--path-as-is",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-H",
            field,
            &format!("http://{control}{path}"),
        ])
    };
    let id = "0123456789abcdef01234567";
    assert_eq!(ask(&format!("/v1/traces/{id}"), "X-A: b"), "401");
    assert_eq!(
        ask(&format!("/v1/traces/{id}"), "Authorization: Bearer wrong"),
        "401"
    );
    assert_eq!(ask(&format!("/v1/traces/{id}"), &bearer), "404");
    let huge = "a".repeat(10_000);
    for bad in [
        "..%2f..%2fetc",
        "a%20b",
        "%22",
        "%00",
        "a%0ab",
        &huge,
        &"a".repeat(65),
    ] {
        assert_eq!(ask(&format!("/v1/traces/{bad}"), &bearer), "400", "{bad}");
    }
    for other in ["/v1/traces/", "/v1/traces/a/b", "/v1/traces/../x"] {
        assert_eq!(ask(other, &bearer), "404", "{other}");
    }
    // Questions and answers are for nodes, about themselves.
    assert_eq!(ask("/v1/trace-questions?node=ams-1", &bearer), "401");
    let parsed =
        nearcast_fleet::file::parse(&fleet.plan.text(), &fleet.path("")).expect("a good file");
    let key = node_key::shown_by(&parsed, "ams-1").expect("a key");
    let key = format!("Authorization: Bearer {}", key.0);
    assert_eq!(ask("/v1/trace-questions?node=ams-1", &key), "200");
    assert_eq!(ask("/v1/trace-questions?node=nyc-1", &key), "403");
    let answer = |node: &str| {
        curl(&[
            "-H",
            &key,
            "-H",
            "Content-Type: application/json",
            "-d",
            &format!("{{\"node\":\"{node}\",\"number\":1,\"records\":[]}}"),
            &format!("http://{control}/v1/trace-answers"),
        ])
    };
    assert!(answer("nyc-1").contains("forbidden"));
    assert_eq!(answer("ams-1"), "{\"is_awaited\":false}", "nobody asked");

    for (arguments, code, words) in [
        (
            vec!["trace", "../../etc/passwd"],
            64,
            "is not the id of a request",
        ),
        (vec!["trace", &huge], 64, "is not the id of a request"),
        (vec!["trace", id, "--token", "wrong"], 77, "--token"),
        (vec!["trace", id], 64, "knows the request"),
    ] {
        let output = fleet.operate(&arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(code) && said.contains(words),
            "{arguments:.80?}: {said}"
        );
        assert!(said.len() < 1000);
    }
}
