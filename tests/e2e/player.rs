//! The demo's player in headless Chromium: a film goes on when its edge dies, when all are silent for a
//! while, when control is gone and when the line gets slow; "watch as" changes the place.

use serde_json::Value;

use crate::lab::fleet::{Fleet, Plan};
use crate::lab::process::run;
use crate::lab::tools::{PYTHON, curl};

/// Three places with the demo's films, whose pages may ask where DNS sends their viewer.
fn fleet() -> Fleet {
    let mut plan = Plan {
        demo_content: true,
        ..Plan::new()
    };
    plan.hosts = vec!["www.demo.test", "*"];
    let edges = (0..plan.clusters).flat_map(|c| (0..plan.nodes).map(move |n| (c, n)));
    plan.steering_origins = edges
        .map(|(c, n)| format!("http://{}:8080", plan.edge(c, n)))
        .collect();
    Fleet::start(plan)
}

/// Plays the first film at the first edge of the first place, through a scenario of `player.py`.
fn play(fleet: &Fleet, scenario: &str, format: &str) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/lab/player.py");
    let url = format!(
        "http://{}:8080/watch?format={format}",
        fleet.plan.edge(0, 0)
    );
    let pids: serde_json::Map<String, Value> = (fleet.nodes.iter())
        .map(|(name, process)| (name.clone(), process.pid().into()))
        .collect();
    let pids = Value::from(pids).to_string();
    let output = run(PYTHON, [script, &url, scenario, &pids]);
    let result: Value = serde_json::from_str(&output).expect("player.py prints JSON");
    assert_eq!(result["errors"], serde_json::json!([]), "{result}");
    eprintln!("{scenario}: {}", result["seen"]);
    result
}

/// Milliseconds of each stall.
fn stalls(result: &Value) -> Vec<u64> {
    let list = result["seen"]["stalls"].as_array().expect("a list");
    list.iter().filter_map(Value::as_u64).collect()
}

fn nodes(result: &Value) -> Vec<&str> {
    let tiles = result["after"]["tiles"].as_array().expect("a list");
    tiles.iter().filter_map(|t| t["node"].as_str()).collect()
}

#[test]
fn pages_of_listed_origins_are_told_what_dns_answers() {
    let fleet = fleet();
    let control = fleet.plan.control();
    let url = format!("http://{control}/v1/steer?host=www.demo.test&client=");
    for (cluster, client) in ["198.51.100.9", "203.0.113.9", "192.0.2.9"]
        .into_iter()
        .enumerate()
    {
        let text = curl(&[&format!("{url}{client}")]);
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let mut bases: Vec<&str> = (answer["edges"].as_array().expect("edges").iter())
            .filter_map(|e| e["http"].as_str())
            .collect();
        bases.sort_unstable();
        let expected = [0, 1].map(|n| format!("http://{}:8080", fleet.plan.edge(cluster, n)));
        assert_eq!(bases, expected, "{text}");
        assert_eq!(
            (&answer["ttl"], &answer["reason"]),
            (&5.into(), &"geo".into())
        );
    }

    let own = format!("Origin: http://{}:8080", fleet.plan.edge(0, 0));
    let ask = |origin: &str, url: &str| curl(&["-D", "-", "-H", origin, url]).to_lowercase();
    let answered = ask(&own, &format!("{url}192.0.2.9"));
    let allowed = format!("access-control-allow-{}\r\n", own.to_lowercase());
    assert!(
        answered.starts_with("http/1.1 200") && answered.contains(&allowed),
        "{answered}"
    );
    assert!(answered.contains("vary: origin"), "{answered}");
    for (origin, query, status) in [
        ("Origin: http://other.test", "192.0.2.9", "403"),
        (own.as_str(), "nowhere", "400"),
    ] {
        let refused = ask(origin, &format!("{url}{query}"));
        assert!(
            refused.starts_with(&format!("http/1.1 {status}")),
            "{refused}"
        );
        assert_eq!(refused.contains(&allowed), origin == own, "{refused}");
    }
    let unknown = ask(&own, &format!("http://{control}/v1/steer?host=other.test"));
    assert!(unknown.starts_with("http/1.1 404"), "{unknown}");
}

#[test]
fn the_film_goes_on_when_its_edge_is_killed() {
    for format in ["dash", "hls"] {
        let fleet = fleet();
        let result = play(&fleet, "kill", format);
        assert!(stalls(&result).iter().all(|ms| *ms < 1000), "{result}");
        assert!(
            nodes(&result).contains(&"ams-1") && nodes(&result).contains(&"ams-2"),
            "{result}"
        );
    }
}

#[test]
fn the_film_goes_on_when_its_edge_falls_silent() {
    let result = play(&fleet(), "silent", "dash");
    assert!(stalls(&result).iter().all(|ms| *ms < 1000), "{result}");
}

#[test]
fn a_sentence_says_that_no_edge_answers_and_the_film_goes_on_afterwards() {
    let result = play(&fleet(), "all", "dash");
    let said = result["during"]["problem"].as_str().unwrap_or_default();
    assert!(said.contains("goes on by itself"), "{said}");
}

#[test]
fn the_film_goes_on_without_control() {
    let result = play(&fleet(), "control", "dash");
    let said = result["during"]["note"].as_str().unwrap_or_default();
    assert!(said.starts_with("Control does not answer"), "{said}");
    assert!(stalls(&result).is_empty(), "{result}");
}

#[test]
fn a_viewer_in_another_place_is_served_there() {
    let result = play(&fleet(), "place", "dash");
    assert!(
        nodes(&result).iter().any(|n| n.starts_with("ams-")),
        "{result}"
    );
    assert!(
        nodes(&result).iter().any(|n| n.starts_with("sin-")),
        "{result}"
    );
    let answer = result["after"]["answer"].as_str().unwrap_or_default();
    assert!(answer.contains("a viewer in Singapore to"), "{answer}");
}

#[test]
fn the_quality_falls_with_the_line_and_the_shown_one_is_what_plays() {
    let fleet = fleet();
    let result = play(&fleet, "slow", "dash");
    let stalls = stalls(&result);
    assert!(
        stalls.len() <= 1 && stalls.iter().all(|ms| *ms < 1000),
        "{result}"
    );
    // The page is drawn five times a second.
    let wrong = result["seen"]["wrong"].as_u64().expect("a number");
    assert!(
        wrong < 1000,
        "a wrong quality was shown for {wrong} ms: {result}"
    );
}
