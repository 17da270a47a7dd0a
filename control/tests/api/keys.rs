//! Node keys.

use http::{Request, StatusCode};
use nearcast_fleet::config::Secret;
use nearcast_fleet::node_key::OwnKey;
use nearcast_fleet::ticket_keys::ClusterKeys;
use serde_json::Value;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

use crate::lab::{KEY, Lab, SOON, address, body, fleet_text};

/// A fleet in which each node has its own key, and the fleet's key is in a file.
fn own_keys_text(ip: &str, dir: &Path) -> String {
    std::fs::write(dir.join("fleet.key"), format!("{KEY}\n")).unwrap();
    fleet_text(ip, "").replace(
        &format!("node_key = \"{KEY}\""),
        "node_key_file = \"fleet.key\"\nnode_keys = \"own\"",
    )
}

#[tokio::test]
async fn each_node_speaks_for_itself_alone_and_a_revoked_key_for_nobody() {
    let (ip, dir) = (address(), Arc::new(tempfile::tempdir().unwrap()));
    let text = own_keys_text(&ip, dir.path());
    let mut lab = Lab::start_with(dir, ip, text.clone()).await;
    let fleet = lab.fleet.borrow().clone();
    let key = |node: &str| {
        OwnKey::derive(&Secret(KEY.into()), &fleet, node)
            .unwrap()
            .shown()
            .0
    };
    let (first, second, dns) = (key("ams-1"), key("ams-2"), key("ns1"));
    let edge = |node: &str| {
        json!({"node": node, "started_unix_ms": 1, "revision": 0, "draining": false, "sites": {}, "connections": 0, "memory_bytes": 0,
            "disk_bytes": 0, "pushed_bytes": 0, "popularity": [], "fills": [], "purges": []})
    };
    let purge = |node: &str| json!({"node": node, "site": "www", "scopes": [{"by": "tag", "value": "t"}], "soft": false, "wait_ms": 0});
    // Request, key, and expected status.
    let table: [(&str, Value, &str, u16); 11] = [
        ("/v1/reports/edge", edge("ams-1"), &first, 200),
        ("/v1/reports/edge", edge("ams-1"), &second, 403),
        ("/v1/reports/edge", edge("ams-1"), &dns, 403),
        ("/v1/reports/edge", edge("ams-1"), KEY, 401),
        (
            "/v1/reports/edge",
            edge("ams-1"),
            "nck1.ams-1.1.0000000000000000000000000000000000000000000000000000000000000000",
            401,
        ),
        ("/v1/site-purges", purge("ams-2"), &first, 403),
        ("/v1/site-purges", purge("ams-2"), KEY, 401),
        ("/v1/journal?after=0&node=ams-2", Value::Null, &first, 403),
        ("/v1/journal?after=0&node=ams-2", Value::Null, KEY, 401),
        ("/v1/journal?after=0&node=ams-2", Value::Null, &second, 200),
        ("/v1/journal?after=0", Value::Null, &second, 200),
    ];
    for (path, sent, key, status) in table {
        let response = if sent.is_null() {
            lab.get_with(path, key).await
        } else {
            lab.post(path, key, sent).await
        };
        assert_eq!(
            response.status().as_u16(),
            status,
            "{path} {key}: {response:?}"
        );
        if status == 403 {
            let message = body(&response)["error"]["message"]
                .as_str()
                .unwrap()
                .to_owned();
            assert!(message.contains("may not speak for"), "{message}");
        }
    }
    let refused = lab.event("key_refused").await;
    assert_eq!(refused["level"], "warn");
    let nodes = lab.get("/v1/status").await["nodes"].clone();
    let shown = |name: &str| {
        nodes
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["name"] == name)
            .unwrap()["key"]
            .clone()
    };
    assert_eq!((shown("ams-1"), shown("ns1")), (json!("own"), Value::Null));

    let revoked = text.replace(
        "name = \"ams-1\"\n",
        "name = \"ams-1\"\nkey_generation = 2\n",
    );
    lab.read_again(&revoked).await;
    let response = lab.get_with("/v1/journal?after=0&node=ams-1", &first).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(
        body(&response)["error"]["message"]
            .as_str()
            .unwrap()
            .contains("nearcast key ams-1"),
        "{response:?}"
    );
    let renewed = OwnKey::derive(&Secret(KEY.into()), &lab.fleet.borrow().clone(), "ams-1")
        .unwrap()
        .shown()
        .0;
    assert_eq!(
        lab.get_with("/v1/journal?after=0&node=ams-1", &renewed)
            .await
            .status(),
        StatusCode::OK
    );
    lab.stop().await;
}

#[tokio::test]
async fn a_wrong_key_and_a_shared_one_are_shown() {
    let lab = Lab::start().await;
    assert_eq!(
        lab.get_with(
            "/v1/journal?after=0&node=ams-2",
            "another key than the fleet's"
        )
        .await
        .status(),
        StatusCode::UNAUTHORIZED
    );
    let refused = lab.event("key_refused").await;
    assert_eq!(refused["node"], "ams-2");
    let weak = lab.event("weak_key").await;
    assert!(
        weak["message"]
            .as_str()
            .unwrap()
            .contains("node_keys = \"own\""),
        "{weak}"
    );
    lab.get_with("/v1/journal?after=0&node=ams-1", KEY).await;
    let status = lab.get("/v1/status").await;
    let node = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|n| n["name"] == "ams-1")
        .unwrap();
    assert_eq!(node["key"], "shared");
    let metrics = lab
        .client
        .get(&format!("http://{}:9170/metrics", lab.ip), SOON)
        .await
        .unwrap();
    let metrics = String::from_utf8_lossy(metrics.body()).into_owned();
    assert!(
        metrics.contains("nearcast_control_keys_refused_total{reason=\"wrong\"} 1"),
        "{metrics}"
    );
    lab.stop().await;
}

#[tokio::test]
async fn an_edge_gets_the_ticket_keys_of_its_cluster_by_its_own_key_alone() {
    let mut lab = Lab::start().await;
    let fleet = lab.fleet.borrow().clone();
    let key = |node: &str, change: fn(&mut nearcast_fleet::config::Fleet)| {
        let mut fleet = (*fleet).clone();
        change(&mut fleet);
        let own = OwnKey::derive(&Secret(KEY.into()), &fleet, node);
        own.expect("a node").shown().0
    };
    let first = key("ams-1", |_| {});
    let renewed = key("ams-2", |fleet| {
        fleet.keys.generations.insert("ams-2".into(), 2);
    });
    let path = "/v1/ticket-keys";
    for (shown, status) in [
        (first.as_str(), 200),
        (KEY, 401),
        (&lab.token.0, 401),
        (&key("ns1", |_| {}), 404),
        (&renewed, 401),
    ] {
        let response = lab.get_with(path, shown).await;
        assert_eq!(response.status(), status, "{response:?}");
    }

    // Both edges of the cluster get the same keys, and 304 while they do not change.
    let of = async |lab: &Lab, key: &str| {
        let response = lab.get_with(path, key).await;
        let tag = response.headers()["etag"].to_str().unwrap().to_owned();
        let keys = ClusterKeys::parse(response.body()).unwrap();
        assert_eq!(response.headers()["cache-control"], "no-store");
        (keys, tag)
    };
    let (keys, tag) = of(&lab, &first).await;
    assert_eq!(
        (keys.cluster.as_str(), keys.keys().unwrap().len()),
        ("ams", 1)
    );
    assert!(of(&lab, &key("ams-2", |_| {})).await.0 == keys);
    let known = Request::get(lab.url(path))
        .header("authorization", format!("Bearer {first}"))
        .header("if-none-match", &tag);
    let unchanged = lab
        .client
        .send(known.body(Default::default()).unwrap(), SOON)
        .await;
    assert_eq!(unchanged.unwrap().status(), 304);

    // A revoked node gets no more, and what it has is worth nothing.
    let text = lab.text.replace(
        "name = \"ams-2\"\n",
        "name = \"ams-2\"\nkey_generation = 2\n",
    );
    lab.read_again(&text).await;
    let refused = lab.get_with(path, &key("ams-2", |_| {})).await;
    assert_eq!(refused.status(), 401);
    let (after, changed) = of(&lab, &first).await;
    assert_ne!(changed, tag);
    assert!(after.keys().unwrap()[0].name != keys.keys().unwrap()[0].name);
    assert!(after.revoked_before_unix_s >= keys.keys().unwrap()[0].begins_unix_s);
    assert!(of(&lab, &renewed).await.0 == after);
}
