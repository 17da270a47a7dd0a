//! `nearcast explain`.

use std::time::Duration;

use nearcast_fleet::client::Client;
use nearcast_fleet::failure::{Failure, FailureKind};
use serde_json::{Value, json};

use super::api::{list, string};
use super::print_json;
use crate::cli::ExplainArgs;
use crate::{find, text};

/// How long a name server may take over its answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Asks every name server that serves the CDN's zone, and shows where they differ.
pub(crate) async fn run(arguments: ExplainArgs) -> Result<(), Failure> {
    let fleet = find::fleet(arguments.fleet.fleet.as_deref())?;
    if fleet.zone_name_servers.is_empty() {
        return Err(Failure::new(FailureKind::Usage, "the fleet file has no [[name_server]]; nobody steers clients"));
    }
    let host = arguments.host.trim_end_matches('.').to_ascii_lowercase();
    if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._*".contains(&b)) {
        return Err(Failure::new(FailureKind::Usage, format!("{:?} is no host name", arguments.host)));
    }
    let mut query = format!("host={host}&client={}", arguments.client);
    if let Some(resolver) = arguments.resolver {
        query.push_str(&format!("&resolver={resolver}"));
    }
    let client = Client::new();
    let mut answers: Vec<(String, Value)> = Vec::new();
    let mut failures = Vec::new();
    // The others serve parents of our zones and steer nobody.
    for server in fleet.zone_name_servers.iter().filter_map(|i| fleet.name_servers.get(*i)) {
        match ask(&client, &format!("{}/explain?{query}", server.admin_url)).await {
            Ok(answer) => answers.push((server.name.clone(), answer)),
            Err(failure) => failures.push((server.name.clone(), failure)),
        }
    }
    let Some((first_name, first)) = answers.first().cloned() else {
        let (name, failure) = failures.swap_remove(0);
        return Err(Failure::new(failure.kind, format!("{name}: {failure}")));
    };
    let others: Vec<&(String, Value)> = answers[1..].iter().filter(|(_, a)| a["chosen"]["cluster"] != first["chosen"]["cluster"]).collect();
    if arguments.json {
        let mut all = first;
        if !others.is_empty() {
            all["others"] = others.iter().map(|(name, answer)| json!({"name_server": name, "answer": answer})).collect();
        }
        print_json(&all);
        return Ok(());
    }
    out!("{}", told(&host, &first));
    for (name, other) in others {
        outln!("\n{name} differs from {first_name}:\n{}", told(&host, other).trim_end());
    }
    for (name, failure) in failures {
        eprintln!("nearcast: {name}: {failure}");
    }
    Ok(())
}

async fn ask(client: &Client, url: &str) -> Result<Value, Failure> {
    let response = client.get(url, ANSWER_MAX).await.map_err(|e| {
        let mend = "is it running (`nearcast gslb-dns`)?";
        Failure::new(FailureKind::Unavailable, format!("the name server's admin listener does not answer: {e}; {mend}"))
    })?;
    let value: Option<Value> = serde_json::from_slice(response.body()).ok();
    match (response.status().is_success(), value) {
        (true, Some(value)) => Ok(value),
        (_, value) => {
            let said = value.and_then(|v| v["error"]["message"].as_str().or(v["error"].as_str()).map(str::to_owned));
            let said = said.unwrap_or_else(|| String::from_utf8_lossy(response.body()).trim().chars().take(200).collect());
            Err(Failure::new(FailureKind::Usage, format!("it answers {}: {said}", response.status())))
        }
    }
}

/// The story of one choice. Members that the answer lacks are left out.
fn told(host: &str, answer: &Value) -> String {
    let mut told = String::new();
    let chosen = &answer["chosen"];
    let cluster = scalar(&chosen["cluster"]).unwrap_or_else(|| "nobody".to_owned());
    let reason = scalar(&answer["reason"]).or_else(|| scalar(&chosen["reason"])).map_or(String::new(), |r| format!(" ({r})"));
    told.push_str(&format!("{host} -> {cluster}{reason}\n\n"));
    let addresses: Vec<String> = [&answer["addresses"], &chosen["addresses"]].iter().flat_map(|v| list(v)).map(string).collect();
    let facts = [
        ("site", scalar(&answer["site"])),
        ("policy", scalar(&answer["policy"])),
        ("client", scalar(&answer["client"])),
        ("resolver", scalar(&answer["resolver"])),
        ("address used", scalar(&answer["source"]).or_else(|| scalar(&answer["address_source"]))),
        ("prefix", scalar(&answer["prefix"])),
        ("place", Some(place_words(&answer["place"]))),
        ("addresses", (!addresses.is_empty()).then(|| addresses.join(", "))),
        ("scope", scalar(&answer["scope_prefix"]).map(|s| if s.contains('/') { s } else { format!("/{s}") })),
        ("TTL", scalar(&answer["ttl"]).map(|t| if t.ends_with('s') { t } else { format!("{t} s") })),
        ("revision", scalar(&answer["revision"])),
    ];
    for (label, value) in facts {
        if let Some(value) = value {
            told.push_str(&format!("{label:<13} {value}\n"));
        }
    }
    let rows: Vec<Vec<String>> = list(&answer["candidates"]).iter().map(|c| candidate_row(c, &cluster)).collect();
    if !rows.is_empty() {
        told.push('\n');
        told.push_str(&text::table(&["", "cluster", ">distance", ">round trip", ">load", "health", "why not"], &rows));
    }
    told
}

fn place_words(place: &Value) -> String {
    let Some(country) = scalar(&place["country"]) else {
        return scalar(place).unwrap_or_else(|| "unknown".to_owned());
    };
    let position = match (place["latitude"].as_f64(), place["longitude"].as_f64()) {
        (Some(latitude), Some(longitude)) => format!(" at {latitude:.1}, {longitude:.1}"),
        _ => String::new(),
    };
    format!("{country}{position}{}", scalar(&place["source"]).map_or(String::new(), |s| format!(" ({s})")))
}

fn candidate_row(candidate: &Value, chosen: &str) -> Vec<String> {
    let name = string(&candidate["cluster"]);
    let measured =
        |key: &str, unit: &str, digits: usize| candidate[key].as_f64().map_or("-".to_owned(), |n| format!("{n:.digits$} {unit}"));
    vec![
        if name == chosen { "*".to_owned() } else { String::new() },
        name,
        measured("distance_km", "km", 0),
        measured("rtt_ms", "ms", 1),
        candidate["load"].as_f64().map_or("-".to_owned(), |l| format!("{:.0} %", l * 100.0)),
        health_words(candidate),
        scalar(&candidate["rejected"]).unwrap_or_default(),
    ]
}

/// What is known of a cluster's edges: `2 of 2 up`, or the word that the answer has for it.
fn health_words(candidate: &Value) -> String {
    let word = scalar(&candidate["health"]).unwrap_or_default();
    let nodes = list(&candidate["nodes"]);
    if nodes.is_empty() {
        return word;
    }
    let up = nodes.iter().filter(|n| n["up"] == true).count();
    let down: Vec<String> =
        nodes.iter().filter(|n| n["up"] != true).map(|n| format!("{}: {}", string(&n["node"]), string(&n["reason"]))).collect();
    let names = if down.is_empty() { String::new() } else { format!(" ({})", down.join(", ")) };
    format!("{up} of {} up{names}", nodes.len())
}

/// A string, number or truth value as text; none for the rest.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        Value::Bool(b) => Some(b.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_told_with_everyone_who_was_considered() {
        let answer = json!({
            "site": "www", "policy": "geo", "client": "203.0.113.9", "reason": "nearest", "scope_prefix": 24, "ttl": 20, "revision": 3,
            "place": {"country": "US", "latitude": 39.8, "longitude": -98.6, "source": "built-in"},
            "chosen": {"cluster": "nyc", "addresses": ["127.0.20.1", "127.0.20.2"]},
            "candidates": [
                {"cluster": "nyc", "distance_km": 2034.2, "rtt_ms": null, "load": 0.12, "health": "up", "rejected": null,
                 "nodes": [{"node": "nyc-1", "up": true}, {"node": "nyc-2", "up": false, "reason": "refused"}]},
                {"cluster": "ams", "distance_km": 7412.0, "rtt_ms": 88.26, "load": 0.0, "health": "all-down", "rejected": "farther"},
            ],
        });
        let told = told("www.demo.test", &answer);
        let words = [
            "www.demo.test -> nyc (nearest)",
            "US at 39.8, -98.6 (built-in)",
            "127.0.20.1, 127.0.20.2",
            "/24",
            "20 s",
            "2034 km",
            "88.3 ms",
            "12 %",
            "1 of 2 up (nyc-2: refused)",
            "all-down",
            "farther",
        ];
        for words in words {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert!(told.lines().any(|l| l.starts_with("*  nyc")), "{told}");
    }
}
