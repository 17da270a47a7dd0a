//! `nearcast explain`.

use std::net::IpAddr;
use std::time::Duration;

use nearcast_fleet::client::Client;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::{Failure, FailureKind};
use serde_json::{Value, json};

use super::api::{list, string};
use super::print_json;
use crate::cli::ExplainArgs;
use crate::{find, text};

/// How long a name server may take over its answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Asks every name server that serves the name's zone, and shows where they differ.
pub(crate) async fn run(arguments: ExplainArgs) -> Result<(), Failure> {
    let fleet = find::fleet(arguments.fleet.fleet.as_deref())?;
    if fleet.zone_name_servers.is_empty() {
        return Err(Failure::new(
            FailureKind::Usage,
            "the fleet file has no [[name_server]]; nobody steers clients",
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
        let mend = "write a name such as www.example.org, without scheme, port and path";
        return Err(Failure::new(
            FailureKind::Usage,
            format!("{:?} is no host name; {mend}", arguments.host),
        ));
    }
    let rtype = arguments.rtype.to_ascii_uppercase();
    if !rtype.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Failure::new(
            FailureKind::Usage,
            format!("{rtype:?} is no record type; write A, AAAA, MX and so on"),
        ));
    }
    let mut query = format!("host={host}&type={rtype}");
    if let Some(prefix) = &arguments.client {
        query.push_str(&format!("&client={prefix}"));
    }
    if let Some(resolver) = arguments.resolver {
        query.push_str(&format!("&resolver={resolver}"));
    }
    let client = Client::new();
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
    out!("{}", told(&host, &first));
    for (name, other) in others {
        outln!(
            "\n{name} differs from {first_name}:\n{}",
            told(&host, other).trim_end()
        );
    }
    for (name, failure) in failures {
        eprintln!("nearcast: {name}: {failure}");
    }
    Ok(())
}

/// The name servers that serve the zone of a name; for one in no zone those of the CDN's, which say
/// so.
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

/// Whether two name servers say different things of a name, chance aside.
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

/// A client's address, with or without a prefix length, as it goes into a query.
pub(crate) fn client_prefix(text: &str) -> Result<String, String> {
    let (address, bits) = text
        .split_once('/')
        .map_or((text, None), |(address, bits)| (address, Some(bits)));
    let found: IpAddr = address.parse().map_err(
        |_| "write an IP address, perhaps with the bits of a prefix, such as 203.0.113.0/24",
    )?;
    let whole = if found.is_ipv4() { 32 } else { 128 };
    match bits.map(str::parse::<u8>) {
        Some(Ok(bits)) if bits <= whole => Ok(format!("{found}/{bits}")),
        Some(_) => Err(format!(
            "the prefix of such an address has 0 to {whole} bits"
        )),
        None => Ok(found.to_string()),
    }
}

async fn ask(client: &Client, url: &str) -> Result<Value, Failure> {
    let response = client.get(url, ANSWER_MAX).await.map_err(|e| {
        let mend = "is it running (`nearcast gslb-dns`)?";
        Failure::new(
            FailureKind::Unavailable,
            format!("the name server's admin listener does not answer: {e}; {mend}"),
        )
    })?;
    let value: Option<Value> = serde_json::from_slice(response.body()).ok();
    match (response.status().is_success(), value) {
        (true, Some(value)) => Ok(value),
        (_, value) => {
            let said = value.and_then(|v| {
                v["error"]["message"]
                    .as_str()
                    .or(v["error"].as_str())
                    .map(str::to_owned)
            });
            let said = said.unwrap_or_else(|| {
                String::from_utf8_lossy(response.body())
                    .trim()
                    .chars()
                    .take(200)
                    .collect()
            });
            Err(Failure::new(
                FailureKind::Usage,
                format!("it answers {}: {said}", response.status()),
            ))
        }
    }
}

/// The story of one choice, or what DNS has instead. Members that the answer lacks are left out.
fn told(host: &str, answer: &Value) -> String {
    let mut told = String::new();
    let chosen = &answer["chosen"];
    let is_steered = answer["site"].is_string();
    let cluster = scalar(&chosen["cluster"]).unwrap_or_else(|| "nobody".to_owned());
    if is_steered {
        let reason = scalar(&answer["reason"])
            .or_else(|| scalar(&chosen["reason"]))
            .map_or(String::new(), |r| format!(" ({r})"));
        told.push_str(&format!("{host} -> {cluster}{reason}\n\n"));
    } else {
        told.push_str(&format!(
            "{}\n\n",
            scalar(&answer["summary"]).unwrap_or_else(|| format!("{host} is not steered"))
        ));
    }
    let addresses: Vec<String> = [&answer["addresses"], &chosen["addresses"]]
        .iter()
        .flat_map(|v| list(v))
        .map(string)
        .collect();
    let client = &answer["client"];
    let prefix = scalar(&client["address"]).map(|address| {
        scalar(&client["source_prefix"]).map_or(address.clone(), |bits| format!("{address}/{bits}"))
    });
    let from = scalar(&client["from"]);
    let is_client = from.as_deref() == Some("client");
    let aliases: Vec<String> = list(&answer["dns"]["records"])
        .iter()
        .filter(|r| r["type"] == "CNAME")
        .map(|r| string(&r["data"]))
        .collect();
    let facts = [
        ("type", scalar(&answer["type"])),
        ("answer", scalar(&answer["dns"]["status"])),
        ("zone", scalar(&answer["dns"]["zone"])),
        (
            "aliases",
            (is_steered && !aliases.is_empty()).then(|| aliases.join(", ")),
        ),
        ("site", scalar(&answer["site"])),
        ("policy", scalar(&answer["policy"])),
        ("client", prefix.clone().filter(|_| is_client)),
        ("resolver", scalar(&client["resolver"])),
        (
            "address used",
            prefix
                .zip(from)
                .filter(|_| is_steered)
                .map(|(prefix, from)| format!("{prefix}, the {from}'s")),
        ),
        ("prefix", scalar(&answer["place"]["prefix"])),
        ("place", is_steered.then(|| place_words(&answer["place"]))),
        (
            "addresses",
            (!addresses.is_empty()).then(|| addresses.join(", ")),
        ),
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
    ];
    for (label, value) in facts {
        if let Some(value) = value {
            told.push_str(&format!("{label:<13} {value}\n"));
        }
    }
    let records = list(&answer["dns"]["records"]);
    if !is_steered && !records.is_empty() {
        let row = |r: &Value| {
            vec![
                string(&r["owner"]),
                r["ttl"].to_string(),
                string(&r["type"]),
                string(&r["data"]),
            ]
        };
        told.push('\n');
        told.push_str(&text::table(
            &["name", ">TTL", "type", "data"],
            &records.iter().map(row).collect::<Vec<_>>(),
        ));
    }
    let rows: Vec<Vec<String>> = list(&answer["candidates"])
        .iter()
        .map(|c| candidate_row(c, &cluster))
        .collect();
    if !rows.is_empty() {
        told.push('\n');
        told.push_str(&text::table(
            &[
                "",
                "cluster",
                ">distance",
                ">round trip",
                ">load",
                "health",
                "why not",
            ],
            &rows,
        ));
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
    let down: Vec<String> = nodes
        .iter()
        .filter(|n| n["up"] != true)
        .map(|n| format!("{}: {}", string(&n["node"]), string(&n["reason"])))
        .collect();
    let names = if down.is_empty() {
        String::new()
    } else {
        format!(" ({})", down.join(", "))
    };
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
        let told = told("www.demo.test", &answer);
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
            "1 of 2 up (nyc-2: refused)",
            "all-down",
            "farther",
        ];
        for words in words {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert!(told.lines().any(|l| l.starts_with("*  nyc")), "{told}");
    }

    #[test]
    fn a_name_that_is_not_steered_is_told_as_dns_has_it() {
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
            let told = told("demo.test", &answer);
            for words in words {
                assert!(told.contains(words), "{words}: {told}");
            }
            assert!(
                !told.contains("nobody")
                    && !told.contains("place")
                    && !told.contains("address used"),
                "{told}"
            );
        }
    }

    #[test]
    fn clients_are_addresses_or_prefixes() {
        for (text, expected) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("192.0.2.0/24", Some("192.0.2.0/24")),
            ("2001:DB8::/48", Some("2001:db8::/48")),
            ("192.0.2.0/33", None),
            ("192.0.2.0/", None),
            ("www.demo.test", None),
            ("", None),
        ] {
            assert_eq!(client_prefix(text).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn name_servers_are_told_apart_where_chance_has_no_part() {
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
