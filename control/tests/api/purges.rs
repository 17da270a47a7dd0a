//! Purges and their confirmations.

use serde_json::Value;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

use crate::lab::{KEY, Lab, SOON, address, body, fleet_text};

#[tokio::test]
async fn a_purge_answers_when_every_edge_has_confirmed() {
    let lab = Lab::start().await;
    for node in ["ams-1", "ams-2"] {
        lab.edge(node, 0, json!({})).await;
    }
    let purge = async {
        let request = json!({"scope": {"by": "url", "value": "http://www.demo.test/a"}, "soft": true, "wait_ms": 15_000});
        let response = lab.post("/v1/purges", &lab.token.0, request).await;
        assert_eq!(response.status(), 200, "{response:?}");
        body(&response)
    };
    let nodes = async {
        // The purge answers the long poll, not its time limit.
        let page = body(
            &lab.get_with("/v1/journal?after=0&wait_ms=20000&node=ams-1", KEY)
                .await,
        );
        assert_eq!(
            (&page["revision"], &page["entries"][0]["change"]["kind"]),
            (&json!(1), &json!("purge"))
        );
        assert_eq!(page["entries"][0]["change"]["soft"], true);
        assert_eq!(page["journal"].as_str().unwrap().len(), 32);
        lab.get_with("/v1/journal?after=1&node=ams-1", KEY).await;
        let half = lab.get("/v1/purges/1").await;
        assert_eq!(
            (&half["complete"], &half["missing"], &half["received"]),
            (&json!(false), &json!(["ams-1", "ams-2"]), &json!(["ams-1"]))
        );
        for (node, responses) in [("ams-1", 1), ("ams-2", 2)] {
            let folded = json!([{"revision": 1, "responses": responses, "effective_unix_ms": 5}]);
            lab.edge(node, 1, json!({"purges": folded})).await;
        }
    };
    let begun = std::time::Instant::now();
    let (answer, ()) = tokio::join!(purge, nodes);
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "it waited for its time instead of its edges"
    );
    assert_eq!(
        (
            &answer["complete"],
            &answer["responses"],
            &answer["missing"]
        ),
        (&json!(true), &json!(3), &json!([]))
    );
    assert_eq!(
        answer["nodes"][1],
        json!({"node": "ams-2", "responses": 2, "at_least": false, "effective_unix_ms": 5})
    );
    assert_eq!(
        answer["scope"],
        json!({"by": "url", "value": "http://www.demo.test/a"})
    );
    lab.event("purge_complete").await;

    let lab = lab.restart().await;
    let kept = lab.get("/v1/purges").await;
    assert_eq!(
        (&kept["purges"][0]["revision"], &kept["purges"][0]["soft"]),
        (&json!(1), &json!(true)),
        "it outlives control"
    );
    assert_eq!(lab.get("/v1/status").await["revision"], 1);
    lab.stop().await;
}

#[tokio::test]
async fn what_a_purge_names_is_taken_in_any_spelling_or_refused_with_a_reason() {
    let lab = Lab::start().await;
    let purge = async |scopes: Value| {
        lab.post(
            "/v1/purges",
            &lab.token.0,
            json!({"scopes": scopes, "wait_ms": 0}),
        )
        .await
    };
    let one = |by: &str, value: &str| json!([{"by": by, "value": value}]);
    for (by, given, form) in [
        (
            "url",
            "//WWW.demo.test:443/caf\u{e9} x#y",
            "//www.demo.test/caf%C3%A9%20x",
        ),
        (
            "url",
            "http://m\u{fc}nchen.test",
            "http://xn--mnchen-3ya.test/",
        ),
        (
            "prefix",
            "http://www.demo.test/v/720*",
            "http://www.demo.test/v/720",
        ),
        (
            "prefix",
            "http://www.demo.test/v/720",
            "http://www.demo.test/v/720",
        ),
        ("host", "WWW.Demo.Test.:80", "www.demo.test"),
        ("tag", " two words \u{e9} ", "two words \u{e9}"),
    ] {
        let response = purge(one(by, given)).await;
        assert_eq!(response.status(), 200, "{given}: {response:?}");
        assert_eq!(body(&response)["scope"], json!({"by": by, "value": form}));
    }
    let long = "x".repeat(1025);
    let before = lab.get("/v1/status").await["revision"].clone();
    for (by, given, words) in [
        ("url", "/news", "//host/path"),
        ("url", "demo/news", "//host/path"),
        ("url", "ftp://www.demo.test/", "not a scheme"),
        ("url", "http:///news", "not a host"),
        ("url", "http://www.demo.test/100%", "%25"),
        ("url", "http://www.demo.test/a\u{7}", "control character"),
        ("prefix", "http://www.demo.te", "add at least a /"),
        ("prefix", "http://www.demo.test/*/x", "not at its end"),
        ("host", "http://www.demo.test/", "name alone"),
        ("site", "mars", "it has www"),
        ("tag", "", "empty"),
        ("tag", long.as_str(), "at most 1024 bytes"),
    ] {
        // One invalid scope refuses the valid one beside it.
        for scopes in [
            one(by, given),
            json!([{"by": "tag", "value": "good"}, {"by": by, "value": given}]),
        ] {
            let response = purge(scopes).await;
            assert_eq!(response.status(), 422, "{given}: {response:?}");
            assert!(
                body(&response)["error"]["message"]
                    .as_str()
                    .unwrap()
                    .contains(words),
                "{given}: {response:?}"
            );
        }
    }
    let many: Vec<Value> = (0..257)
        .map(|n| json!({"by": "tag", "value": n.to_string()}))
        .collect();
    for (request, words) in [
        (json!({"scopes": many}), "at most 256"),
        (json!({"scopes": []}), "empty"),
        (
            json!({"scopes": [{"by": "all"}, {"by": "tag", "value": "t"}]}),
            "names nothing else",
        ),
        (
            json!({"scope": {"by": "all"}, "scopes": [{"by": "all"}]}),
            "either",
        ),
        (json!({"soft": true}), "either"),
    ] {
        let response = lab.post("/v1/purges", &lab.token.0, request).await;
        assert_eq!(response.status(), 422, "{response:?}");
        assert!(
            body(&response)["error"]["message"]
                .as_str()
                .unwrap()
                .contains(words),
            "{response:?}"
        );
    }
    assert_eq!(
        lab.get("/v1/status").await["revision"],
        before,
        "nothing of it was written"
    );
    lab.stop().await;
}

#[tokio::test]
async fn several_scopes_are_one_revision_and_outlive_control() {
    let lab = Lab::start().await;
    let scopes: Vec<Value> = (0..20)
        .map(|n| json!({"by": "url", "value": format!("http://www.demo.test/{n}")}))
        .collect();
    let answer = body(
        &lab.post(
            "/v1/purges",
            &lab.token.0,
            json!({"scopes": scopes, "soft": true, "wait_ms": 0}),
        )
        .await,
    );
    assert_eq!(
        (
            &answer["revision"],
            &answer["scopes_total"],
            &answer["scope"]
        ),
        (&json!(1), &json!(20), &scopes[0])
    );
    assert_eq!(answer["scopes"], json!(scopes[..16]));
    let page = body(&lab.get_with("/v1/journal?after=0&node=ams-1", KEY).await);
    assert_eq!(
        page["entries"][0]["change"]["scope"]["value"]
            .as_array()
            .map(Vec::len),
        Some(20),
        "nodes get all: {page}"
    );
    assert!(
        lab.event("purge_accepted").await["message"]
            .as_str()
            .unwrap()
            .contains("and 17 more")
    );
    let lab = lab.restart().await;
    let kept = lab.get("/v1/purges").await;
    assert_eq!(
        (
            &kept["purges"][0]["scopes_total"],
            &kept["purges"][0]["soft"]
        ),
        (&json!(20), &json!(true))
    );
    lab.stop().await;
}

#[tokio::test]
async fn a_purge_that_may_not_be_what_was_meant_says_so() {
    let lab = Lab::start().await;
    for (scope, words) in [
        (
            json!({"by": "url", "value": "http://wwww.demo.test/"}),
            "no site of the fleet has the host wwww.demo.test",
        ),
        (json!({"by": "host", "value": "other.test"}), "no site"),
        (
            json!({"by": "url", "value": "http://www.demo.test/img/*"}),
            "by prefix",
        ),
        (json!({"by": "tag", "value": "a,b"}), "one by one"),
    ] {
        let answer = body(
            &lab.post(
                "/v1/purges",
                &lab.token.0,
                json!({"scope": scope, "wait_ms": 0}),
            )
            .await,
        );
        let notes = answer["notes"].as_array().unwrap();
        assert!(
            notes.len() == 1 && notes[0].as_str().unwrap().contains(words),
            "{answer}"
        );
    }
    for host in ["www.demo.test", "www.cdn.test"] {
        let scope = json!({"by": "host", "value": host});
        let answer = body(
            &lab.post(
                "/v1/purges",
                &lab.token.0,
                json!({"scope": scope, "wait_ms": 0}),
            )
            .await,
        );
        assert_eq!(answer["notes"], json!([]), "{host}");
    }
    let log = lab.get("/v1/events/log").await;
    let warned = log["events"]
        .as_array()
        .unwrap()
        .iter()
        .any(|e| e["kind"] == "purge_incomplete");
    assert!(!warned, "who does not wait is not warned: {log}");
    lab.stop().await;
}

#[tokio::test]
async fn an_https_url_covers_what_clients_of_that_fleet_ask_for() {
    let ip = address();
    // Nobody is taken for silent, however slow the machine is.
    let plain = fleet_text(&ip, "").replace("\"200ms\"", "\"10s\"");
    let with = |lines: &str| {
        let listen = "listen = \"127.0.10.2:8080\"\n";
        plain.replace(listen, &format!("{listen}{lines}\n"))
    };
    let proxied = plain.clone() + "\n[clients]\ntrusted_proxies = [\"10.0.0.0/8\"]\n";
    let certificate = "\n[[certificate]]\ncert = \"c.pem\"\nkey = \"k.pem\"\n";
    let with_tls = with("listen_tls = \"127.0.10.2:8443\"") + certificate;
    for (text, is_widened) in [(&plain, true), (&proxied, false), (&with_tls, false)] {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let lab = Lab::start_with(dir, ip.clone(), text.clone()).await;
        for node in ["ams-1", "ams-2"] {
            lab.edge(node, 0, json!({})).await;
        }
        let purges = [
            ("url", "https", 0),
            ("url", "HTTPS", 0),
            ("prefix", "https", 0),
            ("url", "http", 0),
            ("url", "https", 1),
        ];
        for (revision, (by, scheme, responses)) in (1..).zip(purges) {
            let scope = json!({"by": by, "value": format!("{scheme}://www.demo.test:443/a")});
            let request = json!({"scope": scope, "wait_ms": 15_000});
            let purge = lab.post("/v1/purges", &lab.token.0, request);
            let confirm = async {
                lab.get_with(
                    &format!(
                        "/v1/journal?after={}&wait_ms=20000&node=ams-1",
                        revision - 1
                    ),
                    KEY,
                )
                .await;
                for node in ["ams-1", "ams-2"] {
                    let folded = json!([{"revision": revision, "responses": responses, "effective_unix_ms": 5}]);
                    lab.edge(node, revision, json!({"purges": folded})).await;
                }
            };
            let (answer, ()) = tokio::join!(purge, confirm);
            let answer = body(&answer);
            assert_eq!(answer["complete"], true, "{answer}");
            let covers_both = is_widened && scheme != "http";
            let form = match covers_both {
                true => "//www.demo.test/a".to_owned(),
                false => format!("{}://www.demo.test/a", scheme.to_lowercase()),
            };
            assert_eq!(answer["scope"], json!({"by": by, "value": form}), "{text}");
            let notes = answer["notes"].as_array().unwrap();
            match !is_widened && responses == 0 {
                true => assert!(
                    notes.len() == 1
                        && notes[0]
                            .as_str()
                            .unwrap()
                            .contains("//www.demo.test/a covers http and https"),
                    "{answer}"
                ),
                false => assert!(notes.is_empty(), "{answer}"),
            }
        }
        // A list has each URL once.
        let scopes = [
            "https://www.demo.test/b",
            "//www.demo.test/b",
            "http://www.demo.test/b",
        ]
        .map(|url| json!({"by": "url", "value": url}));
        let request = json!({"scopes": scopes, "wait_ms": 0});
        let answer = body(&lab.post("/v1/purges", &lab.token.0, request).await);
        assert_eq!(
            answer["scopes_total"],
            3 - u32::from(is_widened),
            "{answer}"
        );
        lab.stop().await;
    }
}

#[tokio::test]
async fn a_site_s_clients_purge_that_site_alone() {
    let ip = address();
    let other = "[[site]]\nname = \"video\"\nhosts = [\"video.demo.test\"]\norigin = \"http://127.0.0.1:8000\"\n";
    let text = fleet_text(&ip, other);
    let lab = Lab::start_with(Arc::new(tempfile::tempdir().unwrap()), ip, text).await;
    let asked = |node: &str, site: &str, scopes: Value| json!({"node": node, "site": site, "scopes": scopes, "soft": true, "wait_ms": 0});
    let url = |value: &str| json!([{"by": "url", "value": value}]);
    let good = asked(
        "ams-1",
        "www",
        json!([{"by": "url", "value": "http://www.demo.test/a"}, {"by": "tag", "value": "news"}]),
    );
    for secret in [lab.token.0.as_str(), "wrong"] {
        assert_eq!(
            lab.post("/v1/site-purges", secret, good.clone())
                .await
                .status(),
            401,
            "nodes alone"
        );
    }
    for (request, status) in [
        (asked("mars-1", "www", url("http://www.demo.test/a")), 404),
        (asked("ams-1", "mars", url("http://www.demo.test/a")), 404),
        (asked("ams-1", "www", url("http://video.demo.test/a")), 422),
        (asked("ams-1", "www", url("http://other.test/a")), 422),
        (asked("ams-1", "www", url("/a")), 422),
        (asked("ams-1", "www", json!([{"by": "all"}])), 422),
        (
            asked("ams-1", "www", json!([{"by": "site", "value": "www"}])),
            422,
        ),
        (
            asked(
                "ams-1",
                "www",
                json!([{"by": "host", "value": "www.demo.test"}]),
            ),
            422,
        ),
        (
            asked(
                "ams-1",
                "www",
                json!([{"by": "prefix", "value": "http://www.demo.test/"}]),
            ),
            422,
        ),
        (
            asked(
                "ams-1",
                "www",
                json!([{"by": "site_tag", "value": {"site": "video", "tag": "t"}}]),
            ),
            422,
        ),
        (asked("ams-1", "www", json!([])), 422),
    ] {
        assert_eq!(
            lab.post("/v1/site-purges", KEY, request.clone())
                .await
                .status(),
            status,
            "{request}"
        );
    }
    assert_eq!(
        lab.get("/v1/status").await["revision"],
        0,
        "nothing was accepted"
    );
    let answer = body(&lab.post("/v1/site-purges", KEY, good).await);
    let expected = json!([{"by": "url", "value": "http://www.demo.test/a"}, {"by": "site_tag", "value": {"site": "www", "tag": "news"}}]);
    assert_eq!(
        (&answer["revision"], &answer["scopes"], &answer["soft"]),
        (&json!(1), &expected, &json!(true))
    );
    lab.message("requested at ams-1").await;
    lab.stop().await;
}

#[tokio::test]
async fn a_purge_names_the_edges_that_are_missing() {
    let lab = Lab::start().await;
    lab.edge("ams-1", 0, json!({})).await;
    let response = lab
        .post(
            "/v1/purges",
            &lab.token.0,
            json!({"scope": {"by": "site", "value": "www"}, "wait_ms": 100}),
        )
        .await;
    let answer = body(&response);
    assert_eq!(
        (&answer["complete"], &answer["missing"], &answer["nodes"]),
        (&json!(false), &json!(["ams-1", "ams-2"]), &json!([]))
    );
    lab.event("purge_incomplete").await;
    lab.stop().await;
}

#[tokio::test]
async fn a_purge_that_waits_is_answered_however_many_come_after_it() {
    let lab = Lab::start().await;
    lab.edge("ams-1", 0, json!({})).await;
    lab.edge("ams-2", 0, json!({})).await;
    let waits = {
        let (client, url, token) = (lab.client.clone(), lab.url("/v1/purges"), lab.token.clone());
        let purge = json!({"scope": {"by": "tag", "value": "first"}, "wait_ms": 60_000});
        tokio::spawn(async move {
            client
                .post_json(&url, Some(&token), &purge, Duration::from_secs(70))
                .await
                .unwrap()
        })
    };
    lab.event("purge_accepted").await;
    for n in 0..300 {
        // Edges that are silent are not waited for.
        if n % 10 == 0 {
            lab.edge("ams-1", 0, json!({})).await;
            lab.edge("ams-2", 0, json!({})).await;
        }
        lab.post(
            "/v1/purges",
            &lab.token.0,
            json!({"scope": {"by": "tag", "value": n.to_string()}, "wait_ms": 0}),
        )
        .await;
    }
    // Both edges are past the first purge. ams-1 no longer reports a count for it.
    lab.get_with("/v1/journal?after=301&node=ams-1", KEY).await;
    for _ in 0..2 {
        lab.edge("ams-1", 301, json!({})).await;
        lab.edge(
            "ams-2",
            301,
            json!({"purges": [{"revision": 1, "responses": 3, "effective_unix_ms": 5}]}),
        )
        .await;
    }
    let answer = tokio::time::timeout(SOON, waits)
        .await
        .expect("it is answered")
        .unwrap();
    let shown = body(&answer);
    assert_eq!(
        (
            answer.status().as_u16(),
            &shown["revision"],
            &shown["complete"],
            &shown["responses"]
        ),
        (200, &json!(1), &json!(true), &json!(3)),
        "{shown}"
    );
    lab.stop().await;
}
