//! Status, series and events.

use nearcast_fleet::clock::now_unix_ms;
use serde_json::Value;
use serde_json::json;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::lab::{KEY, Lab, SOON};

#[tokio::test]
async fn reports_become_status_series_and_selections() {
    let lab = Lab::start().await;
    let sites = |hit: u64, miss: u64| {
        json!({"www": {"requests": {"hit": hit, "miss": miss, "local": 50}, "bytes": {"hit": hit * 1000, "miss": miss * 1000}, "errors": 1,
            "origin_bytes": miss * 1000, "origin_requests": miss, "pushed_hits": hit / 2, "pushed_hit_bytes": hit * 500}})
    };
    let started = now_unix_ms() + 1;
    for (hit, miss) in [(60, 20), (80, 20)] {
        lab.edge(
            "ams-1",
            0,
            json!({"started_unix_ms": started, "sites": sites(hit, miss)}),
        )
        .await;
    }
    lab.report(
        "dns",
        json!({"node": "ns1", "started_unix_ms": started, "revision": 0, "draining": false, "queries": {"NOERROR": 7}, "rtt_prefixes": 2, "geo_source": "built-in",
            "selections": [{"site": "www", "cluster": "ams", "reason": "geo", "country": "NL", "latitude": 52.1, "longitude": 5.3, "count": 9}],
            "health": [{"node": "ams-1", "up": true, "since_unix_ms": 1, "reason": "ok", "check_us": 9},
                       {"node": "ams-2", "up": false, "since_unix_ms": 2, "reason": "connection refused", "check_us": 0}]}),
    )
    .await;
    let deadline = tokio::time::Instant::now() + SOON;
    let status = loop {
        let status = lab.get("/v1/status?window=60").await;
        if status["recent"]["counted"] == 100 {
            break status;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{}",
            status["recent"]
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let recent = &status["recent"];
    assert_eq!(
        (
            &recent["hits"],
            &recent["object_hit_ratio"],
            &recent["byte_hit_ratio"]
        ),
        (&json!(80), &json!(0.8), &json!(0.8))
    );
    assert_eq!(
        (&recent["pushed_hits"], &status["since_start"]["counted"]),
        (&json!(40), &json!(100))
    );
    assert_eq!(status["clusters"][0]["recent"]["counted"], 100);
    assert_eq!(status["sites"][0]["recent"]["requests"]["local"], 50);
    assert_eq!(status["selections"][0]["total"], 9);
    let node = |name: &str| {
        status["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|n| n["name"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(
        (&node("ns1")["role"], &node("ns1")["geo_source"]),
        (&json!("gslb-dns"), &json!("built-in"))
    );
    // A window of a minute is requested, but control has counted for some seconds only.
    let window = status["window_seconds"].as_u64().unwrap();
    let run = status["now_unix_ms"].as_u64().unwrap() - status["started_unix_ms"].as_u64().unwrap();
    assert!(
        window >= 1 && window * 1000 <= run.max(1000),
        "{window} s of {run} ms"
    );
    assert_eq!(node("control")["state"], "up");
    assert_eq!(node("ams-1")["health"][0]["name_server"], "ns1");
    assert_eq!(node("ams-2")["health"][0]["reason"], "connection refused");
    let series = lab.get("/v1/series?seconds=60").await;
    let sum = |path: &Value| {
        path.as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_f64)
            .sum::<f64>()
    };
    assert_eq!(series["points"], 60);
    assert!(
        (sum(&series["total"]["counted"]) - 100.0).abs() < 0.1
            && (sum(&series["clusters"]["ams"]["hits"]) - 80.0).abs() < 0.1,
        "{series}"
    );
    assert_eq!(series["statuses"]["miss"].as_array().unwrap().len(), 60);
    let fleet = lab.get("/v1/fleet").await;
    assert_eq!(
        (
            &fleet["clusters"][0]["nodes"][1]["name"],
            &fleet["sites"][0]["steered_name"]
        ),
        (&json!("ams-2"), &json!("www.cdn.test"))
    );
    assert!(!fleet.to_string().contains(KEY), "no secret in {fleet}");
    // Without further reports, the node becomes silent in time.
    lab.event("node_silent").await;
    lab.stop().await;
}

#[tokio::test]
async fn what_pushes_fetch_is_no_part_of_the_byte_hit_ratio() {
    let lab = Lab::start().await;
    let started = now_unix_ms() + 1;
    let sites = |pushed: u64| {
        json!({"www": {"requests": {"hit": 9, "miss": 1}, "bytes": {"hit": 9000, "miss": 1000}, "errors": 0, "origin_bytes": 1000, "origin_requests": 1,
            "push_origin_bytes": pushed, "push_peer_bytes": 2 * pushed, "pushed_hits": 0, "pushed_hit_bytes": 0}})
    };
    lab.edge(
        "ams-1",
        0,
        json!({"started_unix_ms": started, "sites": sites(500_000)}),
    )
    .await;
    let all = lab.get("/v1/status").await["since_start"].clone();
    assert_eq!(
        (&all["byte_hit_ratio"], &all["origin_bytes"]),
        (&json!(0.9), &json!(1000)),
        "{all}"
    );
    assert_eq!(
        (&all["push_origin_bytes"], &all["push_peer_bytes"]),
        (&json!(500_000), &json!(1_000_000))
    );
    lab.edge(
        "ams-1",
        0,
        json!({"started_unix_ms": started, "sites": sites(900_000)}),
    )
    .await;
    let all = lab.get("/v1/status").await["since_start"].clone();
    assert_eq!(
        (&all["byte_hit_ratio"], &all["push_origin_bytes"]),
        (&json!(0.9), &json!(900_000)),
        "{all}"
    );
    lab.stop().await;
}

#[tokio::test]
async fn events_stream_and_go_on_from_the_last_one() {
    let lab = Lab::start().await;
    let mut stream = TcpStream::connect((lab.ip.as_str(), 7700)).await.unwrap();
    stream
        .write_all(b"GET /v1/events HTTP/1.1\r\nHost: control\r\n\r\n")
        .await
        .unwrap();
    let first = read_until(&mut stream, "control_started").await;
    assert!(first.contains("content-type: text/event-stream"), "{first}");
    lab.post(
        "/v1/purges",
        &lab.token.0,
        json!({"scope": {"by": "tag", "value": "news"}, "wait_ms": 0}),
    )
    .await;
    let second = read_until(&mut stream, "purge_accepted").await;
    let id: u64 = second
        .split("id: ")
        .nth(1)
        .unwrap()
        .split('\n')
        .next()
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    drop(stream);
    let mut stream = TcpStream::connect((lab.ip.as_str(), 7700)).await.unwrap();
    let request = format!(
        "GET /v1/events HTTP/1.1\r\nHost: control\r\nLast-Event-ID: {}\r\n\r\n",
        id - 1
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let resumed = read_until(&mut stream, "purge_accepted").await;
    assert!(!resumed.contains("control_started"), "{resumed}");
    // An open stream does not delay shutdown.
    let begun = std::time::Instant::now();
    lab.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(5));
}

async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    tokio::time::timeout(SOON, read_whole_event(stream, text))
        .await
        .unwrap_or_else(|_| panic!("no {text} in time"))
}

async fn read_whole_event(stream: &mut TcpStream, text: &str) -> String {
    let mut all = String::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "the stream ended without {text}: {all}");
        all.push_str(&String::from_utf8_lossy(&buffer[..read]));
        // An event ends with a blank line.
        if all
            .split(text)
            .nth(1)
            .is_some_and(|rest| rest.contains("\n\n"))
        {
            return all;
        }
    }
}
