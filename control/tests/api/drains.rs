//! Drains.

use http::Method;
use serde_json::Value;
use serde_json::json;

use crate::lab::{KEY, Lab, body};

#[tokio::test]
async fn a_drain_is_kept_shown_and_said_by_whom_it_was_seen() {
    let lab = Lab::start().await;
    let drain = async |body: Value| lab.post("/v1/drains", &lab.token.0, body).await;
    let dns = async |revision: u64| {
        let report = json!({
            "node": "ns1", "started_unix_ms": 1, "revision": revision, "draining": false, "queries": {}, "selections": [], "health": [],
            "rtt_prefixes": 0, "geo_source": "built-in"
        });
        lab.report("dns", report).await;
    };
    // The name server may still send its first report.
    let first = body(&drain(json!({"name": "ams-1", "wait_ms": 0})).await);
    assert_eq!(
        (&first["missing"], &first["complete"], &first["revision"]),
        (&json!(["ns1"]), &json!(false), &json!(1)),
        "{first}"
    );
    dns(0).await;
    lab.edge("ams-1", 1, json!({"drained": true})).await;
    lab.edge("ams-2", 1, json!({})).await;
    let again = body(&drain(json!({"name": "ams-1", "wait_ms": 0})).await);
    assert_eq!(
        (&again["changed"], &again["missing"], &again["complete"]),
        (&json!(false), &json!(["ns1"]), &json!(false)),
        "{again}"
    );
    assert_eq!(
        (&again["since_unix_ms"], &again["nodes"]),
        (&first["since_unix_ms"], &json!(["ams-1"])),
        "{again}"
    );
    let (seen, ()) = tokio::join!(drain(json!({"name": "ams-1", "wait_ms": 15_000})), dns(1));
    assert_eq!(body(&seen)["seen"], json!(["ns1"]));
    assert_eq!(lab.event("drained").await["node"], "ams-1");
    let state = async |name: &str| {
        let status = lab.get("/v1/status").await;
        let node = status["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["name"] == name)
            .unwrap()
            .clone();
        (
            node["state"].clone(),
            node["drained"].clone(),
            status["clusters"][0]["state"].clone(),
        )
    };
    assert_eq!(
        state("ams-1").await,
        (json!("drained"), json!(true), json!("degraded"))
    );

    type Row = (Value, u16, &'static str);
    let table: [Row; 8] = [
        (json!({"name": "ams-2"}), 409, "last in service for www"),
        (json!({"name": "ams"}), 409, "last in service for www"),
        (json!({"name": "amz-1"}), 404, "did you mean ams-1?"),
        (json!({"name": "ns1"}), 404, "is a name server"),
        (
            json!({"name": "ams", "kind": "node"}),
            404,
            "no edge or cluster",
        ),
        (
            json!({"name": "ams", "kind": "site"}),
            422,
            "node and cluster",
        ),
        (json!({"node": "ams-1"}), 422, "does not fit"),
        (json!({}), 422, "does not fit"),
    ];
    for (request, status, words) in table {
        let response = drain(request.clone()).await;
        let message = body(&response)["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            response.status().as_u16() == status && message.contains(words),
            "{request}: {status} {message}"
        );
    }
    let unknown = lab
        .ask(
            Method::POST,
            "/v1/drains",
            Some(KEY),
            "application/json",
            r#"{"name":"ams-1"}"#,
        )
        .await;
    assert_eq!(unknown.status(), 401, "nodes drain nobody");

    let forced = body(&drain(json!({"name": "ams", "force": true, "wait_ms": 0})).await);
    assert_eq!(
        (&forced["kind"], &forced["sites_without_nodes"]),
        (&json!("cluster"), &json!(["www"])),
        "{forced}"
    );
    let lab = lab.restart().await;
    let drains = lab.get("/v1/drains").await;
    let names: Vec<&Value> = drains["drains"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| &d["name"])
        .collect();
    assert_eq!(names, ["ams-1", "ams"], "also after a restart: {drains}");

    let undrain = async |name: &str| {
        lab.post(
            "/v1/drains",
            &lab.token.0,
            json!({"name": name, "drained": false, "wait_ms": 0}),
        )
        .await
    };
    let refused = undrain("ams-2").await;
    assert!(
        refused.status() == 409
            && body(&refused)["error"]["message"]
                .as_str()
                .unwrap()
                .contains("undrain ams"),
        "{refused:?}"
    );
    let back = body(&undrain("ams").await);
    assert_eq!(
        (&back["changed"], &back["notes"]),
        (&json!(true), &json!(["still drained: ams-1"])),
        "{back}"
    );
    assert_eq!(body(&undrain("ams-1").await)["changed"], json!(true));
    assert_eq!(
        body(&undrain("ams-1").await)["changed"],
        json!(false),
        "twice is once"
    );
    // An edge that followed another journal still reports a drain, so it gets another entry.
    lab.edge("ams-1", 1, json!({"drained": true})).await;
    assert_eq!(body(&undrain("ams-1").await)["changed"], json!(true));

    // A drain of a removed edge can be undone, before a new edge gets the name.
    let drain = async || {
        lab.post(
            "/v1/drains",
            &lab.token.0,
            json!({"name": "ams-1", "wait_ms": 0}),
        )
        .await
        .status()
    };
    assert_eq!(drain().await, 200);
    let renamed = lab.text.replace("name = \"ams-1\"", "name = \"ams-3\"");
    let renamed = lab
        .ask(
            Method::PUT,
            "/v1/fleet-file",
            Some(&lab.token.0),
            "text/plain",
            renamed,
        )
        .await;
    assert_eq!(renamed.status(), 200, "{renamed:?}");
    assert_eq!(
        drain().await,
        404,
        "nothing new is drained under an unknown name"
    );
    assert_eq!(body(&undrain("ams-1").await)["changed"], json!(true));
    assert_eq!(lab.get("/v1/drains").await["drains"], json!([]));
    assert_eq!(undrain("ams-1").await.status(), 404);
    lab.stop().await;
}
