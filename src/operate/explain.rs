//! `nearcast explain`.

use std::time::Duration;

use nearcast_fleet::client::Client;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::{Failure, FailureKind};
use serde_json::{Value, json};

use super::api::{list, string};
use super::print_json;
use crate::cli::ExplainArgs;
use crate::text::Table;
use crate::{find, text};

/// How long a name server may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Columns of the labels of single values.
const LABEL_COLUMNS: usize = 13;

/// Asks every name server that serves the name's zone, and shows how they differ.
pub(crate) async fn run(arguments: ExplainArgs) -> Result<(), Failure> {
    let fleet = find::fleet_to_ask(&arguments.ask)?;
    if fleet.zone_name_servers.is_empty() {
        return Err(Failure::new(
            FailureKind::Usage,
            "the fleet file has no [[name_server]]; no server steers clients",
        ));
    }
    let host = arguments
        .host
        .strip_suffix('.')
        .unwrap_or(&arguments.host)
        .to_ascii_lowercase();
    if host.is_empty()
        || !host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._*".contains(&b))
    {
        let hint = "write a name such as www.example.org, without scheme, port and path";
        return Err(Failure::new(
            FailureKind::Usage,
            format!("{:?} is not a host name; {hint}", arguments.host),
        ));
    }
    let rtype = arguments.rtype.to_ascii_uppercase();
    if !rtype.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Failure::new(
            FailureKind::Usage,
            format!("{rtype:?} is not a record type; write A, AAAA, MX and so on"),
        ));
    }
    let mut query = format!("host={host}&type={rtype}");
    if let Some(prefix) = &arguments.client {
        query.push_str(&format!("&client={prefix}"));
    }
    if let Some(resolver) = arguments.resolver {
        query.push_str(&format!("&resolver={resolver}"));
    }
    let client = Client::new(fleet.ca.clone());
    let mut answers: Vec<(String, Value)> = Vec::new();
    let mut failures = Vec::new();
    for server in servers_of(&fleet, &host)
        .iter()
        .filter_map(|i| fleet.name_servers.get(*i))
    {
        match ask(&client, &format!("{}/explain?{query}", server.admin_url)).await {
            Ok(answer) => answers.push((server.name.clone(), answer)),
            Err(failure) => failures.push((server.name.clone(), failure)),
        }
    }
    let Some((first_name, first)) = answers.first().cloned() else {
        let (name, failure) = failures.swap_remove(0);
        return Err(Failure::new(failure.kind, format!("{name}: {failure}")));
    };
    let others: Vec<&(String, Value)> = answers[1..]
        .iter()
        .filter(|(_, a)| differs(&first, a))
        .collect();
    if arguments.json {
        let mut all = first;
        if !others.is_empty() {
            all["others"] = others
                .iter()
                .map(|(name, answer)| json!({"name_server": name, "answer": answer}))
                .collect();
        }
        print_json(&all);
        return Ok(());
    }
    let width = text::terminal_width();
    out!("{}", describe(&host, &first, width));
    for (name, other) in others {
        outln!(
            "\n{name} differs from {first_name}:\n{}",
            describe(&host, other, width).trim_end()
        );
    }
    for (name, failure) in failures {
        errln!("nearcast: {name}: {failure}");
    }
    Ok(())
}

/// The name servers that serve the zone of a name. A name in no zone gets those of the CDN's zone,
/// which answer that it is in none.
fn servers_of<'f>(fleet: &'f Fleet, host: &str) -> &'f [usize] {
    let holds = |zone: &str| {
        zone.is_empty()
            || host == zone
            || host
                .strip_suffix(zone)
                .is_some_and(|rest| rest.ends_with('.'))
    };
    let own = (fleet.zone.as_str(), fleet.zone_name_servers.as_slice());
    let zones = std::iter::once(own).chain(
        fleet
            .zones
            .iter()
            .map(|z| (z.name.as_str(), z.name_servers.as_slice())),
    );
    let closest = zones
        .filter(|(zone, _)| holds(zone))
        .max_by_key(|(zone, _)| zone.len());
    closest.map_or(own.1, |(_, servers)| servers)
}

/// Whether two name servers differ about a name, where not by chance.
fn differs(a: &Value, b: &Value) -> bool {
    let is_by_chance = matches!(a["policy"].as_str(), Some("weighted" | "round-robin"));
    let mark = |v: &Value| {
        (
            v["dns"]["status"].clone(),
            v["dns"]["kind"].clone(),
            v["policy"].clone(),
        )
    };
    mark(a) != mark(b) || !is_by_chance && a["chosen"]["cluster"] != b["chosen"]["cluster"]
}

async fn ask(client: &Client, url: &str) -> Result<Value, Failure> {
    let response = client.get(url, ANSWER_MAX).await.map_err(|e| {
        let hint = "is it running (`nearcast gslb-dns`)?";
        Failure::new(
            FailureKind::Unavailable,
            format!("the name server's admin listener does not answer: {e}; {hint}"),
        )
    })?;
    let value: Option<Value> = serde_json::from_slice(response.body()).ok();
    match (response.status().is_success(), value) {
        (true, Some(value)) => Ok(value),
        (_, value) => {
            let message = value.and_then(|v| {
                v["error"]["message"]
                    .as_str()
                    .or(v["error"].as_str())
                    .map(str::to_owned)
            });
            let message = message.unwrap_or_else(|| {
                String::from_utf8_lossy(response.body())
                    .trim()
                    .chars()
                    .take(200)
                    .collect()
            });
            Err(Failure::new(
                FailureKind::Usage,
                format!("it answers {}: {message}", response.status()),
            ))
        }
    }
}

/// Describes one choice, or the answer of DNS where a name is not steered. Members that the answer
/// lacks are left out.
fn describe(host: &str, answer: &Value, width: usize) -> String {
    let is_steered = answer["site"].is_string();
    let cluster = scalar(&answer["chosen"]["cluster"]).unwrap_or_else(|| "nobody".to_owned());
    let mut text = text::wrapped(&heading(host, answer, &cluster), width);
    for (label, value) in facts(answer, is_steered) {
        let value = value.unwrap_or_default();
        let lines = text::wrapped(&value, width.saturating_sub(LABEL_COLUMNS + 1));
        for (at, line) in lines.lines().enumerate() {
            let label = if at == 0 { label } else { "" };
            text.push_str(&format!("{label:<LABEL_COLUMNS$} {line}\n"));
        }
    }
    if !is_steered {
        text.push_str(&records_table(answer, width));
    }
    text.push_str(&candidates_table(answer, &cluster, width));
    text
}

fn heading(host: &str, answer: &Value, cluster: &str) -> String {
    if !answer["site"].is_string() {
        let summary =
            scalar(&answer["summary"]).unwrap_or_else(|| format!("{host} is not steered"));
        return format!("{summary}\n\n");
    }
    let reason = scalar(&answer["reason"])
        .or_else(|| scalar(&answer["chosen"]["reason"]))
        .map_or(String::new(), |reason| format!(" ({reason})"));
    format!("{host} -> {cluster}{reason}\n\n")
}

/// The single values of an answer, with their labels.
fn facts(answer: &Value, is_steered: bool) -> [(&'static str, Option<String>); 16] {
    let (client, dns) = (&answer["client"], &answer["dns"]);
    let joined = |list: Vec<String>| (!list.is_empty()).then(|| list.join(", "));
    let aliases = list(&dns["records"])
        .iter()
        .filter(|record| record["type"] == "CNAME")
        .map(|record| string(&record["data"]))
        .collect();
    // The record itself, where it is not the addresses.
    let record = list(&dns["records"])
        .iter()
        .find(|record| is_steered && record["type"] == "HTTPS")
        .map(|record| string(&record["data"]));
    let addresses = [&answer["addresses"], &answer["chosen"]["addresses"]]
        .iter()
        .flat_map(|v| list(v))
        .map(string)
        .collect();
    let prefix = scalar(&client["address"]).map(|address| {
        scalar(&client["source_prefix"]).map_or(address.clone(), |bits| format!("{address}/{bits}"))
    });
    let from = scalar(&client["from"]);
    let is_client = from.as_deref() == Some("client");
    let used = prefix.clone().zip(from).filter(|_| is_steered);

    [
        ("type", scalar(&answer["type"])),
        ("answer", scalar(&dns["status"])),
        ("zone", scalar(&dns["zone"])),
        ("aliases", joined(aliases).filter(|_| is_steered)),
        ("site", scalar(&answer["site"])),
        ("policy", scalar(&answer["policy"])),
        ("client", prefix.filter(|_| is_client)),
        ("resolver", scalar(&client["resolver"])),
        (
            "address used",
            used.map(|(prefix, from)| format!("{prefix}, the {from}'s")),
        ),
        ("prefix", scalar(&answer["place"]["prefix"])),
        (
            "place",
            is_steered.then(|| describe_place(&answer["place"])),
        ),
        ("addresses", joined(addresses)),
        ("record", record),
        (
            "scope",
            scalar(&answer["scope_prefix"])
                .map(|s| if s.contains('/') { s } else { format!("/{s}") }),
        ),
        (
            "TTL",
            scalar(&answer["ttl"]).map(|t| {
                if t.ends_with('s') {
                    t
                } else {
                    format!("{t} s")
                }
            }),
        ),
        ("revision", scalar(&answer["revision"])),
    ]
}

fn records_table(answer: &Value, width: usize) -> String {
    let records = list(&answer["dns"]["records"]);
    if records.is_empty() {
        return String::new();
    }
    let row = |record: &Value| {
        vec![
            string(&record["owner"]),
            record["ttl"].to_string(),
            string(&record["type"]),
            string(&record["data"]),
        ]
    };
    let rows: Vec<Vec<String>> = records.iter().map(row).collect();
    let table = Table {
        heading: &["name", ">TTL", "type", "data"],
        rows: &rows,
        remark: Some("data"),
        optional: &[],
    };
    format!("\n{}", table.fit(width))
}

fn candidates_table(answer: &Value, chosen: &str, width: usize) -> String {
    let rows: Vec<Vec<String>> = list(&answer["candidates"])
        .iter()
        .map(|candidate| candidate_row(candidate, chosen))
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let heading = &[
        "",
        "cluster",
        ">distance",
        ">round trip",
        ">load",
        "health",
        "remarks",
    ];
    let table = Table {
        heading,
        rows: &rows,
        remark: Some("remarks"),
        optional: &["load"],
    };
    format!("\n{}", table.fit(width))
}

fn describe_place(place: &Value) -> String {
    let Some(country) = scalar(&place["country"]) else {
        return scalar(place).unwrap_or_else(|| "unknown".to_owned());
    };
    let position = match (place["latitude"].as_f64(), place["longitude"].as_f64()) {
        (Some(latitude), Some(longitude)) => format!(" at {latitude:.1}, {longitude:.1}"),
        _ => String::new(),
    };
    format!(
        "{country}{position}{}",
        scalar(&place["source"]).map_or(String::new(), |s| format!(" ({s})"))
    )
}

fn candidate_row(candidate: &Value, chosen: &str) -> Vec<String> {
    let name = string(&candidate["cluster"]);
    let measured = |key: &str, unit: &str, digits: usize| {
        candidate[key]
            .as_f64()
            .map_or("-".to_owned(), |n| format!("{n:.digits$} {unit}"))
    };
    vec![
        if name == chosen {
            "*".to_owned()
        } else {
            String::new()
        },
        name,
        measured("distance_km", "km", 0),
        measured("rtt_ms", "ms", 1),
        candidate["load"]
            .as_f64()
            .map_or("-".to_owned(), |l| format!("{:.0} %", l * 100.0)),
        describe_health(candidate),
        remarks(candidate),
    ]
}

/// The health of a cluster's edges: `2 of 2 up`, or the answer's own word.
fn describe_health(candidate: &Value) -> String {
    let nodes = list(&candidate["nodes"]);
    if nodes.is_empty() {
        return scalar(&candidate["health"]).unwrap_or_default();
    }
    let up = nodes.iter().filter(|n| n["up"] == true).count();
    format!("{up} of {} up", nodes.len())
}

/// Why the cluster was not chosen, and which of its edges are not up.
fn remarks(candidate: &Value) -> String {
    let down = list(&candidate["nodes"])
        .iter()
        .filter(|n| n["up"] != true)
        .map(|n| format!("{}: {}", string(&n["node"]), string(&n["reason"])));
    let all: Vec<String> = scalar(&candidate["rejected"])
        .into_iter()
        .chain(down)
        .collect();
    all.join("; ")
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
    fn a_choice_is_described_with_every_candidate() {
        let answer = json!({
            "site": "www", "type": "A", "policy": "geo", "reason": "nearest", "scope_prefix": 24, "ttl": 20, "revision": 3,
            "client": {"address": "203.0.113.9", "source_prefix": 32, "from": "client", "resolver": "192.0.2.53"},
            "dns": {"status": "NOERROR", "kind": "steered", "zone": "cdn.test", "records": [
                {"owner": "www.demo.test", "ttl": 300, "type": "CNAME", "data": "www.cdn.test."},
                {"owner": "www.cdn.test", "ttl": 20, "type": "A", "data": "127.0.20.1"}]},
            "place": {"country": "US", "latitude": 39.8, "longitude": -98.6, "source": "built-in", "prefix": "203.0.113.0/24"},
            "chosen": {"cluster": "nyc", "addresses": ["127.0.20.1", "127.0.20.2"]},
            "candidates": [
                {"cluster": "nyc", "distance_km": 2034.2, "rtt_ms": null, "load": 0.12, "health": "up", "rejected": null,
                 "nodes": [{"node": "nyc-1", "up": true}, {"node": "nyc-2", "up": false, "reason": "refused"}]},
                {"cluster": "ams", "distance_km": 7412.0, "rtt_ms": 88.26, "load": 0.0, "health": "all-down", "rejected": "farther"},
            ],
        });
        let text = describe("www.demo.test", &answer, usize::MAX);
        let words = [
            "www.demo.test -> nyc (nearest)",
            "aliases       www.cdn.test.\n",
            "client        203.0.113.9/32\n",
            "resolver      192.0.2.53\n",
            "address used  203.0.113.9/32, the client's\n",
            "prefix        203.0.113.0/24\n",
            "US at 39.8, -98.6 (built-in)",
            "127.0.20.1, 127.0.20.2",
            "/24",
            "20 s",
            "2034 km",
            "88.3 ms",
            "12 %",
            "nyc-2: refused",
            "all-down",
            "farther",
        ];
        for words in words {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(text.lines().any(|l| l.starts_with("*  nyc")), "{text}");
    }

    #[test]
    fn a_name_that_is_not_steered_is_described_by_its_records() {
        let answer = |kind: &str, status: &str, records: Value| {
            json!({"type": "MX", "revision": 3, "summary": "the summary", "client": {"address": "192.0.2.1", "source_prefix": 32, "from": "resolver", "resolver": "192.0.2.1"},
                "dns": {"status": status, "kind": kind, "zone": "demo.test", "records": records}})
        };
        let records =
            json!([{"owner": "demo.test", "ttl": 300, "type": "MX", "data": "10 mail.demo.test."}]);
        for (answer, words) in [
            (
                answer("records", "NOERROR", records),
                &[
                    "the summary\n",
                    "answer        NOERROR",
                    "demo.test  300",
                    "10 mail.demo.test.",
                    "resolver      192.0.2.1",
                ][..],
            ),
            (
                answer("no-name", "NXDOMAIN", json!([])),
                &[
                    "the summary\n",
                    "answer        NXDOMAIN\n",
                    "zone          demo.test\n",
                ][..],
            ),
        ] {
            let text = describe("demo.test", &answer, usize::MAX);
            for words in words {
                assert!(text.contains(words), "{words}: {text}");
            }
            assert!(
                !text.contains("nobody")
                    && !text.contains("place")
                    && !text.contains("address used"),
                "{text}"
            );
        }
    }

    #[test]
    fn name_servers_differ_only_where_chance_has_no_part() {
        let answer = |policy: &str, cluster: &str, status: &str| json!({"policy": policy, "chosen": {"cluster": cluster}, "dns": {"status": status, "kind": "steered"}});
        for (a, b, expected) in [
            (
                answer("geo", "ams", "NOERROR"),
                answer("geo", "ams", "NOERROR"),
                false,
            ),
            (
                answer("geo", "ams", "NOERROR"),
                answer("geo", "nyc", "NOERROR"),
                true,
            ),
            (
                answer("weighted", "ams", "NOERROR"),
                answer("weighted", "nyc", "NOERROR"),
                false,
            ),
            (
                answer("weighted", "ams", "NOERROR"),
                answer("weighted", "ams", "NXDOMAIN"),
                true,
            ),
        ] {
            assert_eq!(differs(&a, &b), expected, "{a} {b}");
        }
    }
}
