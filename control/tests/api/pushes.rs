//! Plans and push orders.

use nearcast_fleet::clock::now_unix_ms;
use serde_json::Value;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

use crate::lab::{KEY, Lab, SOON, address, body, fleet_text};

#[tokio::test]
async fn a_push_is_planned_ordered_followed_and_counted() {
    // Noon in Amsterdam: no window opens during the test.
    let ip = address();
    let real = now_unix_ms() as f64 / 1000.0;
    let clock = format!("[clock]\nanchor_real = {real}\nanchor_fleet = \"2026-01-15T11:00:00Z\"\n");
    let text = fleet_text(&ip, &clock);
    let lab = Lab::start_with(Arc::new(tempfile::tempdir().unwrap()), ip, text).await;
    let started = now_unix_ms() + 1;
    let skipped = body(&lab.post("/v1/pushes", &lab.token.0, json!({})).await);
    assert_eq!(
        (&skipped["orders"], &skipped["skipped"][0]["cluster"]),
        (&json!([]), &json!("ams")),
        "nothing is known yet"
    );
    let url = |n: u64| json!({"site": "www", "url": format!("http://www.demo.test/{n}"), "requests": 100 * n, "bytes": 100_000 * n, "size": 1000});
    let popularity = json!([url(1), url(2), url(3), {"site": "www", "url": "http://www.demo.test/unknown", "requests": 9, "bytes": 9, "size": 0}]);
    lab.edge(
        "ams-1",
        0,
        json!({"started_unix_ms": started, "popularity": popularity}),
    )
    .await;
    let plan = lab.get("/v1/plan?cluster=ams&items=2").await;
    let ams = &plan["clusters"][0];
    let stored = 3 * nearcast_store::measures::stored_bytes(1000);
    assert_eq!(
        (&ams["items_total"], &ams["stored_bytes"], &ams["gap"]),
        (&json!(3), &json!(stored), &json!(0.0))
    );
    assert!(
        stored > 3000
            && ams["budget"]["share_bytes"].as_u64()
                < lab.get("/v1/fleet").await["clusters"][0]["push_share_bytes"].as_u64()
    );
    let urls: Vec<_> = ams["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["url"].as_str().unwrap())
        .collect();
    assert_eq!(
        urls,
        ["http://www.demo.test/3", "http://www.demo.test/2"],
        "most valuable first"
    );
    assert_eq!(
        (&ams["excluded"][0]["reason"], &ams["excluded"][0]["count"]),
        (&json!("size_unknown"), &json!(1))
    );
    assert_eq!(
        ams["window"]["start_local"]
            .as_str()
            .unwrap()
            .split('T')
            .nth(1),
        Some("02:00:00")
    );

    let response = lab
        .post("/v1/pushes", &lab.token.0, json!({"clusters": ["ams"]}))
        .await;
    assert_eq!(response.status(), 202);
    let order = body(&response)["orders"][0].clone();
    assert_eq!(
        (&order["items"], &order["bytes"]),
        (&json!(3), &json!(3000))
    );
    let again = body(&lab.post("/v1/pushes", &lab.token.0, json!({})).await);
    assert!(
        again["skipped"][0]["reason"]
            .as_str()
            .unwrap()
            .contains("still runs"),
        "{again}"
    );
    let page = body(&lab.get_with("/v1/journal?after=0", KEY).await);
    let change = &page["entries"][0]["change"];
    assert_eq!(
        (
            &change["kind"],
            &change["id"],
            &change["items"].as_array().unwrap().len()
        ),
        (&json!("push"), &order["id"], &3)
    );
    assert_eq!(change["rate_bytes"], 10_000_000);

    let fill = |ended: bool| {
        json!([{"order": order["id"], "items": 3, "already_warm": 1, "already_warm_bytes": 1000, "warmed": 2, "origin_bytes": 1000, "peer_bytes": 1000,
            "failed": 0, "reasons": [], "ended": ended, "ended_unix_ms": 5}])
    };
    lab.edge(
        "ams-1",
        1,
        json!({"started_unix_ms": started, "fills": fill(true)}),
    )
    .await;
    let half = lab.get("/v1/pushes").await["orders"][0].clone();
    assert_eq!(
        (&half["state"], &half["progress"], &half["trigger"]),
        (&json!("running"), &json!(0.5), &json!("manual"))
    );
    let sites = json!({"www": {"requests": {"hit": 10}, "bytes": {"hit": 10_000}, "errors": 0, "origin_bytes": 0, "origin_requests": 0, "pushed_hits": 8, "pushed_hit_bytes": 8000}});
    lab.edge(
        "ams-2",
        1,
        json!({"started_unix_ms": started, "fills": fill(true), "sites": sites}),
    )
    .await;
    let done = lab.get("/v1/pushes").await["orders"][0].clone();
    assert_eq!(
        (
            &done["state"],
            &done["total"]["warmed"],
            &done["total"]["already_warm"]
        ),
        (&json!("ended"), &json!(4), &json!(2))
    );
    assert_eq!(
        (
            &done["benefit"]["pushed_hits"],
            &done["benefit"]["peak"]["pushed_hit_ratio"]
        ),
        (&json!(8), &json!(0.8))
    );
    lab.event("push_ended").await;

    let lab = lab.restart().await;
    assert_eq!(
        lab.get("/v1/plan").await["clusters"][0]["items_total"],
        3,
        "what was learnt outlives control"
    );
    assert_eq!(lab.get("/v1/pushes").await["orders"][0]["id"], order["id"]);
    lab.stop().await;
}

#[tokio::test]
async fn an_order_is_issued_once_when_the_window_opens() {
    let ip = address();
    // Amsterdam's 02:00 in winter is 01:00 UTC: two real seconds from now, and the window is four
    // hours long.
    let real = now_unix_ms() as f64 / 1000.0;
    let clock = format!(
        "[clock]\nspeed = 60.0\nanchor_real = {real}\nanchor_fleet = \"2026-01-15T00:58:00Z\"\n"
    );
    let text = fleet_text(&ip, &clock);
    let lab = Lab::start_with(Arc::new(tempfile::tempdir().unwrap()), ip, text).await;
    let popularity = json!([{"site": "www", "url": "http://www.demo.test/1", "requests": 50, "bytes": 50_000, "size": 1000}]);
    lab.edge("ams-1", 0, json!({"popularity": popularity}))
        .await;
    let started = lab.event("push_started").await;
    assert!(
        started["order"]
            .as_str()
            .unwrap()
            .starts_with("ams-2026-01-15-"),
        "{started}"
    );
    let order = lab.get("/v1/pushes").await["orders"][0].clone();
    assert_eq!(order["trigger"], "scheduled");
    let lab = lab.restart().await;
    // This gauge appears after the first look at the schedule.
    lab.metric("nearcast_control_push_missed{cluster=\"ams\"}")
        .await;
    assert_eq!(
        lab.get("/v1/pushes").await["orders"]
            .as_array()
            .unwrap()
            .len(),
        1,
        "one a window, also over a restart"
    );
    lab.stop().await;
}

#[tokio::test]
async fn a_window_that_passed_while_control_was_down_is_an_alert_once() {
    let lab = Lab::start().await;
    assert_eq!(
        lab.get("/v1/status").await["clusters"][0]["push_missed"],
        Value::Null
    );
    let (dir, ip, text) = lab.stop().await;
    // The time of the last look of an earlier process. Each day since has a window of four hours.
    let looked = dir.path().join("state/control/schedule.json");
    assert!(looked.exists(), "it is written down from the start");
    std::fs::write(
        &looked,
        json!({"looked_unix_ms": now_unix_ms() - 3 * 86_400_000}).to_string(),
    )
    .unwrap();
    let lab = Lab::start_with(dir, ip, text).await;
    let missed = lab.event("push_missed").await;
    assert_eq!(
        (&missed["level"], &missed["cluster"]),
        (&json!("warn"), &json!("ams"))
    );
    let words = missed["message"].as_str().unwrap();
    assert!(
        words.contains("passed without a push, and ") && words.contains("control was not running"),
        "{words}"
    );
    assert_eq!(
        lab.get("/v1/status").await["clusters"][0]["push_missed"],
        missed["message"]
    );
    let line = "nearcast_control_pushes_missed_total{cluster=\"ams\",reason=\"control-down\"} 1";
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let metrics = lab
            .client
            .get(&format!("http://{}:9170/metrics", lab.ip), SOON)
            .await
            .unwrap();
        let metrics = String::from_utf8_lossy(metrics.body()).into_owned();
        if metrics.contains(line) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{metrics}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let lab = lab.restart().await;
    lab.event("control_started").await;
    assert_eq!(
        lab.get("/v1/status").await["clusters"][0]["push_missed"],
        Value::Null,
        "it is told once"
    );
    lab.stop().await;
}
