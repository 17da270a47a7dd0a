//! State over restarts, lost journals and damaged files.

use http::Method;
use http::StatusCode;
use nearcast_fleet::clock::now_unix_ms;
use serde_json::Value;
use serde_json::json;
use std::time::Duration;

use crate::lab::{KEY, Lab, SOON, body};

#[tokio::test]
async fn a_node_that_has_seen_more_than_the_journal_holds_makes_everything_purged() {
    let lab = Lab::start().await;
    let page = lab
        .ask(
            Method::GET,
            "/v1/journal?after=7&node=ams-1&journal=another",
            Some(KEY),
            "",
            vec![],
        )
        .await;
    assert_eq!(page.status(), StatusCode::OK, "{page:?}");
    let page = body(&page);
    assert_eq!(
        page["revision"], 8,
        "above all that either side has used: {page}"
    );
    assert_eq!(page["entries"][0]["change"]["scope"]["by"], "all", "{page}");
    let purges = lab.get("/v1/purges").await;
    assert_eq!(
        purges["purges"][0]["revision"], 8,
        "and it is shown as any purge: {purges}"
    );
    // An impossible cursor would use up the revisions of later changes.
    for after in [(1 << 52) + 1, u64::MAX] {
        let refused = lab
            .ask(
                Method::GET,
                &format!("/v1/journal?after={after}&node=ams-1"),
                Some(KEY),
                "",
                vec![],
            )
            .await;
        assert_eq!(
            (refused.status(), &body(&refused)["error"]["code"]),
            (StatusCode::BAD_REQUEST, &"bad_request".into()),
            "{after}"
        );
    }
    // Repeated cursors cause no further purge, and those of unknown nodes cause none.
    for (node, journal) in [
        ("ams-1", "a-third"),
        ("ams-2", "another"),
        ("ams-2", "a-fourth"),
    ] {
        let page = body(
            &lab.get_with(
                &format!("/v1/journal?after=3&node={node}&journal={journal}"),
                KEY,
            )
            .await,
        );
        assert_eq!(page["revision"], 8, "{page}");
    }
    // A node that has seen later revisions of this journal learns at once that it was set back,
    // before anything is appended beyond its cursor.
    let id = page["journal"].as_str().unwrap();
    let poll = format!("/v1/journal?after=20&wait_ms=30000&node=ams-2&journal={id}");
    let told = body(
        &tokio::time::timeout(SOON, lab.get_with(&poll, KEY))
            .await
            .expect("nothing is waited for"),
    );
    assert_eq!(
        (&told["revision"], &told["entries"]),
        (&json!(8), &json!([])),
        "{told}"
    );
    for path in [
        "/v1/journal?after=9",
        "/v1/journal?after=9&node=stranger",
        "/v1/journal?after=3&journal=x",
    ] {
        assert_eq!(
            lab.get_with(path, KEY).await.status(),
            StatusCode::BAD_REQUEST,
            "{path}"
        );
    }
    let told = lab.event("journal_reconciled").await;
    assert_eq!(
        (&told["node"], &told["revision"]),
        (&json!("ams-1"), &json!(8))
    );
    // A node that is only behind changes nothing.
    let again = body(
        &lab.ask(
            Method::GET,
            "/v1/journal?after=0&node=ams-1",
            Some(KEY),
            "",
            vec![],
        )
        .await,
    );
    assert_eq!(again["revision"], 8, "{again}");
    lab.stop().await;
}

#[tokio::test]
async fn what_was_shown_is_shown_again_after_a_restart() {
    let lab = Lab::start().await;
    let traffic = |hits: u64| {
        json!({"sites": {"www": {"requests": {"hit": hits}, "bytes": {"hit": 100 * hits}, "errors": 0,
        "origin_bytes": 0, "origin_requests": 0, "pushed_hits": 0, "pushed_hit_bytes": 0}}})
    };
    let started = now_unix_ms() + 1;
    for n in 0..12 {
        for node in ["ams-1", "ams-2"] {
            let mut report = traffic(40 * n);
            report["started_unix_ms"] = json!(started);
            lab.edge(node, 0, report).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    lab.post(
        "/v1/purges",
        &lab.token.0,
        json!({"scope": {"by": "tag", "value": "done"}, "wait_ms": 0}),
    )
    .await;
    lab.post(
        "/v1/purges",
        &lab.token.0,
        json!({"scope": {"by": "tag", "value": "half"}, "wait_ms": 0}),
    )
    .await;
    let counted = json!({"purges": [{"revision": 1, "responses": 2, "effective_unix_ms": 77}]});
    lab.edge("ams-1", 2, json!({"purges": [{"revision": 1, "responses": 2, "effective_unix_ms": 77}, {"revision": 2, "responses": 1, "effective_unix_ms": 78}]})).await;
    lab.edge("ams-2", 1, counted).await;
    lab.event("purge_complete").await;
    // Wait until all reports of these seconds have arrived.
    let deadline = tokio::time::Instant::now() + SOON;
    let known = |series: &Value| {
        series["total"]["counted"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_f64)
            .sum::<f64>()
    };
    let before = loop {
        let series = lab.get("/v1/series?seconds=60").await;
        if (known(&series) - 880.0).abs() < 1.0 {
            break series;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}", known(&series));
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let (purges, events) = (lab.get("/v1/purges").await, lab.get("/v1/events/log").await);
    assert_eq!(purges["purges"][1]["complete"], true, "{purges}");
    let lab = lab.restart().await;

    let again = lab.get("/v1/purges").await;
    let shown = |purges: &Value| -> Vec<Value> {
        let kept = [
            "revision",
            "accepted_unix_ms",
            "scopes",
            "complete",
            "completed_unix_ms",
            "responses",
            "nodes",
            "missing",
        ];
        purges["purges"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| kept.iter().map(|k| p[*k].clone()).collect())
            .collect()
    };
    assert_eq!(shown(&again), shown(&purges));
    let later = lab.get("/v1/events/log").await;
    let (events, later) = (
        events["events"].as_array().unwrap(),
        later["events"].as_array().unwrap(),
    );
    assert_eq!(later[..events.len()], events[..]);
    assert_eq!(later[events.len()]["kind"], "control_started");
    let ids: Vec<u64> = later.iter().map(|e| e["id"].as_u64().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    // Earlier values are restored. Values since then are unknown, which is not zero.
    let series = lab.get("/v1/series?seconds=120").await;
    assert!((known(&series) - 880.0).abs() < 1.0, "{series}");
    let counts = series["total"]["counted"].as_array().unwrap();
    let first = before["start_unix_ms"].as_u64().unwrap();
    let at = |ms: u64| ((ms - series["start_unix_ms"].as_u64().unwrap()) / 1000) as usize;
    for (n, value) in before["total"]["counted"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .filter(|(_, v)| !v.is_null())
    {
        // Single precision is kept.
        let again = counts[at(first) + n].as_f64();
        assert!(
            again.is_some_and(|again| (again - value.as_f64().unwrap()).abs() < 0.005),
            "{again:?} {value}"
        );
    }
    for seconds in [3600, 86_400, 2_592_000] {
        let long = lab.get(&format!("/v1/series?seconds={seconds}")).await;
        let counts = long["total"]["counted"].as_array().unwrap();
        assert_eq!(counts.len() as u64, long["points"].as_u64().unwrap());
        assert!(
            counts[0].is_null() && known(&long) > 800.0,
            "{seconds}: {}",
            known(&long)
        );
    }
    // The incomplete purge continues, and its completion is one event.
    lab.get_with("/v1/journal?after=2&node=ams-2", KEY).await;
    for _ in 0..2 {
        lab.edge("ams-2", 2, json!({})).await;
    }
    let done = lab.message("purge 2 of tag half covered").await;
    assert_eq!(done["revision"], 2);
    lab.stop().await;
}

#[tokio::test]
async fn what_was_known_of_a_lost_journal_is_not_said_of_its_successor() {
    let lab = Lab::start().await;
    lab.post(
        "/v1/purges",
        &lab.token.0,
        json!({"scope": {"by": "tag", "value": "lost"}, "wait_ms": 0}),
    )
    .await;
    for node in ["ams-1", "ams-2"] {
        lab.edge(
            node,
            1,
            json!({"purges": [{"revision": 1, "responses": 2, "effective_unix_ms": 77}]}),
        )
        .await;
    }
    lab.event("purge_complete").await;
    let (dir, ip, text) = lab.stop().await;
    std::fs::remove_file(dir.path().join("state/control/journal")).unwrap();
    let lab = Lab::start_with(dir, ip, text).await;
    assert_eq!(lab.get("/v1/purges").await["purges"], json!([]));
    lab.post(
        "/v1/purges",
        &lab.token.0,
        json!({"scope": {"by": "tag", "value": "new"}, "wait_ms": 0}),
    )
    .await;
    let lab = lab.restart().await;
    let purges = lab.get("/v1/purges").await;
    assert_eq!(
        (
            &purges["purges"][0]["revision"],
            &purges["purges"][0]["complete"]
        ),
        (&json!(1), &json!(false)),
        "{purges}"
    );
    assert_eq!(purges["purges"][0]["nodes"], json!([]));
    lab.event("purge_complete").await;
    lab.stop().await;
}

#[tokio::test]
async fn damage_of_what_is_kept_is_set_aside_and_keeps_nothing_from_starting() {
    let lab = Lab::start().await;
    for n in 0..3 {
        lab.post(
            "/v1/purges",
            &lab.token.0,
            json!({"scope": {"by": "tag", "value": n.to_string()}, "wait_ms": 0}),
        )
        .await;
        lab.message(&format!("purge {} of", n + 1)).await;
        lab.edge("ams-1", n + 1, json!({})).await;
    }
    let (dir, ip, text) = lab.stop().await;
    let kept = dir.path().join("state/control");
    for name in ["facts", "series"] {
        let mut bytes = std::fs::read(kept.join(name)).unwrap();
        bytes[30] ^= 1;
        // A whole record follows, so that the damage is not an unfinished last record.
        let copy = bytes[28..].to_vec();
        bytes.extend(
            copy.iter()
                .enumerate()
                .map(|(n, b)| if n == 2 { b ^ 1 } else { *b }),
        );
        std::fs::write(kept.join(name), bytes).unwrap();
    }
    let lab = Lab::start_with(dir, ip, text).await;
    assert!(kept.join("facts.damaged").exists());
    assert_eq!(
        lab.get("/v1/purges").await["purges"]
            .as_array()
            .unwrap()
            .len(),
        3,
        "the journal has them"
    );
    lab.message("purge 3 of").await;
    lab.stop().await;
}
