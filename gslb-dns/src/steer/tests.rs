//! Steering as a whole, without its tasks but for the last tests.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use nearcast_fleet::config::{Fleet, Node, SelectionPolicy};
use nearcast_fleet::drains::Drains;
use nearcast_fleet::node_key;
use nearcast_fleet::report::{DnsReport, RttReport, RttSample};
use proptest::prelude::*;
use serde_json::Value;

use super::fixture::{self, GEO, KEY, ONE, RTT, TURNS, WEIGHTED};
use super::health::CheckOutcome;
use super::location::{self, Atlas};
use super::rtt::{self, RttTable, Topology};
use super::snapshot::masked;
use super::state::DRAINED;
use super::*;
use nearcast_fleet::random::mix;

mod lying_nodes;
mod service;
mod spill;

/// No exploration, first address first.
const STEADY: u64 = (u32::MAX as u64) << 32;

impl Steering {
    fn select(&self, site: usize, client: &ClientPrefix, family: Family, random: u64) -> Choice {
        self.snapshot().select(site, client, family, random)
    }
}

fn ecs(text: &str) -> ClientPrefix {
    let (address, bits) = text.split_once('/').unwrap();
    ClientPrefix {
        address: address.parse().unwrap(),
        source_prefix: bits.parse().unwrap(),
        from_ecs: true,
    }
}

fn pick(steering: &Steering, site: usize, client: &str) -> (&'static str, Reason, u8) {
    let choice = steering.select(site, &ecs(client), Family::V4, STEADY);
    (
        ["ams", "nyc", "sin"][choice.cluster],
        choice.reason,
        choice.scope_prefix,
    )
}

fn down(steering: &Steering, nodes: &[&str]) {
    for node in nodes {
        let checked_at = steering.state().health[*node].checked_at();
        for endpoint in checked_at {
            steering.observe_health(
                node,
                endpoint,
                CheckOutcome::Refusing("status 503".into()),
                5,
            );
        }
    }
}

fn report(node: &str, egress_bits: u64, samples: &[(&str, u32)]) -> RttReport {
    let samples = samples.iter().map(|(prefix, us)| RttSample {
        prefix: prefix.parse().unwrap(),
        count: 4,
        min_us: *us,
        mean_us: *us,
    });
    RttReport {
        node: node.into(),
        egress_bits,
        connections: 3,
        samples: samples.collect(),
    }
}

const NL: &str = "198.51.100.0/24";
const US: &str = "203.0.113.0/24";
const SG: &str = "192.0.2.0/24";

#[test]
fn each_policy_answers_with_its_reason_and_scope() {
    let steering = fixture::steering();
    assert_eq!(pick(&steering, GEO, NL), ("ams", Reason::Geo, 24));
    assert_eq!(pick(&steering, GEO, US), ("nyc", Reason::Geo, 24));
    assert_eq!(pick(&steering, GEO, SG), ("sin", Reason::Geo, 24));
    assert_eq!(
        pick(&steering, GEO, "10.1.2.3/32"),
        ("nyc", Reason::Unplaced, 8)
    );
    assert_eq!(pick(&steering, RTT, NL), ("ams", Reason::Geo, 24));
    assert_eq!(
        pick(&steering, RTT, "10.1.2.3/32"),
        ("nyc", Reason::Unplaced, 24),
        "never wider than measurements may differ"
    );
    assert_eq!(
        pick(&steering, ONE, NL),
        ("sin", Reason::Geo, 0),
        "there is no other"
    );
    let turns: Vec<_> = (0..4).map(|_| pick(&steering, TURNS, NL)).collect();
    assert_eq!(
        turns.iter().map(|t| t.0).collect::<Vec<_>>(),
        ["nyc", "ams", "sin", "nyc"]
    );
    assert!(turns.iter().all(|t| (t.1, t.2) == (Reason::RoundRobin, 0)));
    let drawn: std::collections::BTreeSet<usize> = (0..64)
        .map(|i| {
            let choice = steering.select(WEIGHTED, &ecs(NL), Family::V4, i << 42);
            assert_eq!(
                (choice.reason, choice.scope_prefix, choice.ttl),
                (Reason::Weighted, 0, 20)
            );
            choice.cluster
        })
        .collect();
    assert_eq!(drawn.len(), 3);
    let none = steering.select(99, &ecs(NL), Family::V4, 0);
    assert!(none.addresses.is_empty());
}

/// Holds loads for some seconds from a moment on, also in seconds: reports every two, ticks in
/// between.
fn hold(steering: &Steering, loads: &[(&str, u64)], from_s: u64, seconds: u64) {
    for quarter in 0..seconds * 4 {
        let now_ms = from_s * 1_000 + quarter * 250;
        if quarter % 8 == 0 {
            for (node, egress_bits) in loads {
                steering
                    .take_report(&report(node, *egress_bits, &[]), now_ms)
                    .unwrap();
            }
        }
        steering.tick(now_ms);
    }
}

#[test]
fn answers_rotate_over_nodes_that_are_up() {
    let steering = fixture::steering();
    let addresses = |random| {
        steering
            .select(GEO, &ecs(NL), Family::V4, STEADY | random)
            .addresses
            .to_vec()
    };
    let ip = |last| IpAddr::from([127, 0, 10, last]);
    assert_eq!(addresses(0), [ip(1), ip(2)]);
    assert_eq!(addresses(1), [ip(2), ip(1)]);
    down(&steering, &["ams-2"]);
    assert_eq!(addresses(1), [ip(1)]);
    down(&steering, &["ams-1"]);
    assert_eq!(pick(&steering, GEO, NL), ("nyc", Reason::Failover, 24));
    down(&steering, &["nyc-1", "nyc-2", "sin-1", "sin-2"]);
    assert_eq!(pick(&steering, GEO, NL), ("ams", Reason::AllDown, 24));
    assert_eq!(
        addresses(0),
        [ip(1), ip(2)],
        "all of them, as none is better"
    );
}

#[test]
fn what_does_not_fit_goes_to_the_next_and_what_is_fuller_is_given_less() {
    let steering = fixture::steering();
    // How often each node is in the answers to clients who show a subnet, and to resolvers who do
    // not.
    let given = |client: &ClientPrefix| {
        let mut counts = [0; 2];
        for i in 0..1_000 {
            for address in steering
                .select(GEO, client, Family::V4, STEADY ^ mix(i))
                .addresses
                .iter()
            {
                counts[usize::from(*address == IpAddr::from([127, 0, 10, 2]))] += 1;
            }
        }
        counts
    };
    hold(&steering, &[("ams-1", 950_000), ("ams-2", 0)], 0, 300);
    assert_eq!(
        pick(&steering, GEO, NL),
        ("ams", Reason::Geo, 24),
        "there is room in the cluster"
    );
    let [first, second] = given(&ecs(NL));
    assert!(first < 200 && second == 1_000, "{first}, {second}");
    let resolver = ClientPrefix {
        from_ecs: false,
        ..ecs(NL)
    };
    assert_eq!(
        given(&resolver),
        [1_000, 1_000],
        "many clients may share this answer"
    );
    hold(
        &steering,
        &[("ams-1", 9_000_000), ("ams-2", 9_000_000)],
        300,
        300,
    );
    assert_eq!(pick(&steering, GEO, NL), ("nyc", Reason::Spill, 24));
    hold(
        &steering,
        &[
            ("nyc-1", 9_000_000),
            ("nyc-2", 9_000_000),
            ("sin-1", 9_000_000),
            ("sin-2", 9_000_000),
        ],
        600,
        4,
    );
    assert_eq!(pick(&steering, GEO, NL).1, Reason::AllFull);
}

#[test]
fn while_clients_are_shared_out_scopes_are_no_wider_than_the_grain() {
    let steering = fixture::steering();
    assert_eq!(
        pick(&steering, GEO, "10.1.2.3/32"),
        ("nyc", Reason::Unplaced, 8)
    );
    hold(
        &steering,
        &[("ams-1", 1_200_000), ("ams-2", 1_200_000)],
        0,
        10,
    );
    assert_eq!(
        pick(&steering, GEO, "10.1.2.3/32").2,
        24,
        "ams is in the order of all"
    );
    assert_eq!(
        steering
            .select(GEO, &ecs("fd00::/64"), Family::V4, STEADY)
            .scope_prefix,
        48
    );
    assert_eq!(
        pick(&steering, ONE, NL),
        ("sin", Reason::Geo, 0),
        "there is no other"
    );
    steering.tick(600_000);
    assert_eq!(
        pick(&steering, GEO, "10.1.2.3/32").2,
        8,
        "loads are forgotten"
    );
}

/// A node answers its checks again.
fn back(steering: &Steering, nodes: &[&str], now_ms: u64) {
    for node in nodes {
        let checked_at = steering.state().health[*node].checked_at();
        for endpoint in checked_at.iter().chain(&checked_at) {
            steering.observe_health(node, *endpoint, CheckOutcome::Passed(100), now_ms);
        }
    }
}

#[test]
fn clients_return_in_a_ramp() {
    let mut fleet = fixture::fleet();
    fleet.steering.ramp = Duration::from_secs(30);
    let steering = mapped_on(fleet, &[("10.0.0.0/12", 52.0, 5.0)]);
    let clients: Vec<ClientPrefix> = (0..1_000_u32)
        .map(|i| ecs(&format!("10.{}.{}.0/24", i / 256, i % 256)))
        .collect();
    let at_home = |from_ecs: bool| {
        let given = |i: usize, client: &ClientPrefix| {
            steering.select(
                GEO,
                &ClientPrefix {
                    from_ecs,
                    ..*client
                },
                Family::V4,
                STEADY ^ mix(i as u64),
            )
        };
        clients
            .iter()
            .enumerate()
            .filter(|(i, client)| given(*i, client).cluster == 0)
            .count() as i32
    };
    assert_eq!(
        (at_home(true), at_home(false)),
        (1_000, 1_000),
        "a name server that has just started holds nobody back"
    );
    let checked_at = steering.state().health["ams-1"].checked_at()[0];
    for node in ["ams-1", "ams-2"] {
        steering.observe_health(
            node,
            checked_at,
            CheckOutcome::Refusing("status 503".into()),
            60_000,
        );
    }
    assert_eq!(at_home(true), 0);
    back(&steering, &["ams-1", "ams-2"], 160_000);
    for (second, expected) in [(160, 100), (170, 400), (180, 700), (191, 1_000)] {
        steering.tick(second * 1_000);
        for from_ecs in [true, false] {
            let got = at_home(from_ecs);
            assert!(
                (got - expected).abs() <= 50,
                "second {second}, subnet {from_ecs}: {got}"
            );
        }
    }
    // One node of a cluster returns: the cluster keeps its clients, the node gets its share of them
    // little by little.
    steering.observe_health(
        "ams-1",
        checked_at,
        CheckOutcome::Refusing("status 503".into()),
        200_000,
    );
    back(&steering, &["ams-1"], 300_000);
    let counted = |from_ecs: bool| {
        let client = ClientPrefix {
            from_ecs,
            ..ecs("10.0.0.0/24")
        };
        let given = (0..1_000).flat_map(|i| {
            steering
                .select(GEO, &client, Family::V4, mix(i))
                .addresses
                .to_vec()
        });
        given
            .filter(|a| *a == IpAddr::from([127, 0, 10, 1]))
            .count() as i32
    };
    for (second, expected) in [(300, 100), (315, 550), (331, 1_000)] {
        steering.tick(second * 1_000);
        assert_eq!(at_home(true), 1_000);
        for from_ecs in [true, false] {
            let got = counted(from_ecs);
            assert!(
                (got - expected).abs() <= 50,
                "second {second}, subnet {from_ecs}: {got}"
            );
        }
    }
    // All return at once: there is nobody else to hold clients for them.
    for node in ["ams-1", "ams-2", "nyc-1", "nyc-2", "sin-1", "sin-2"] {
        steering.observe_health(
            node,
            checked_at,
            CheckOutcome::Refusing("status 503".into()),
            400_000,
        );
    }
    back(&steering, &["ams-1", "ams-2"], 500_000);
    assert_eq!((at_home(true), at_home(false)), (1_000, 1_000));
}

#[test]
fn a_dead_address_leaves_the_answers_while_the_node_stays() {
    let mut fleet = fixture::fleet();
    let node = &mut fleet.clusters[0].nodes[0];
    node.listen = node
        .addresses
        .iter()
        .map(|a| SocketAddr::new(*a, 8080))
        .collect();
    node.service = node.listen[0];
    let dead = node.listen[1];
    let steering = Steering::new(fixture::served(fleet), Atlas::built_in(), 0);
    steering.observe_health(
        "ams-1",
        dead,
        CheckOutcome::Failed("connection refused".into()),
        5,
    );
    let addresses = |family| {
        steering
            .select(GEO, &ecs(NL), family, STEADY)
            .addresses
            .len()
    };
    assert_eq!((addresses(Family::V4), addresses(Family::V6)), (2, 1));
    let mut report = DnsReport::default();
    steering.fill_report(&mut report);
    assert!(report.health[0].up);
    assert_eq!(
        report.health[0].reason,
        "127.0.10.1:8080: not checked yet; [2001:db8:10::1]:8080: connection refused"
    );
    let told = explain(
        &steering,
        "host=geo.demo.test&client=198.51.100.7&type=AAAA",
    );
    assert_eq!(
        told["chosen"]["addresses"].as_array().map(Vec::len),
        Some(1)
    );
    assert!(
        told["candidates"][0]["nodes"][0]["reason"]
            .as_str()
            .unwrap()
            .starts_with("127.0.10.1:8080: not checked yet; [2001:db8:10::1]")
    );
}

#[test]
fn addresses_of_a_family_exist_for_all_or_for_none() {
    let steering = fixture::steering();
    for (client, cluster) in [(NL, 0), (US, 1), (SG, 0)] {
        let choice = steering.select(GEO, &ecs(client), Family::V6, STEADY);
        assert_eq!(
            (choice.cluster, choice.reason),
            (cluster, Reason::Geo),
            "{client}"
        );
        assert!(choice.addresses.iter().all(IpAddr::is_ipv6) && choice.addresses.len() == 2);
    }
    for client in [NL, US, SG, "10.0.0.1/32", "2001:db8::/48"] {
        let choice = steering.select(ONE, &ecs(client), Family::V6, STEADY);
        assert_eq!(
            (choice.addresses.len(), choice.scope_prefix, choice.reason),
            (0, 0, Reason::NoAddress),
            "{client}"
        );
    }
    let mut report = DnsReport::default();
    steering.fill_report(&mut report);
    assert!(
        report.selections.iter().all(|s| s.site != "one"),
        "no address is no selection"
    );
}

#[test]
fn a_subnet_of_mapped_addresses_is_the_ipv4_network_and_keeps_its_own_count_of_bits() {
    let steering = fixture::steering();
    assert_eq!(
        pick(&steering, GEO, "::ffff:198.51.100.0/120"),
        ("ams", Reason::Geo, 96 + 24)
    );
    assert_eq!(
        pick(&steering, GEO, "::ffff:203.0.113.7/128"),
        ("nyc", Reason::Geo, 96 + 24)
    );
    assert_eq!(
        pick(&steering, GEO, "::ffff:203.0.113.0/112").2,
        96 + pick(&steering, GEO, "203.0.0.0/16").2,
        "bits that are not known"
    );
    assert_eq!(
        pick(&steering, ONE, "::ffff:198.51.100.0/120").2,
        0,
        "all clients get the same"
    );
}

#[test]
fn round_trip_times_come_and_go() {
    let steering = fixture::steering();
    for (node, us) in [("ams-1", 90_000), ("nyc-2", 12_000), ("sin-1", 60_000)] {
        assert_eq!(
            steering.take_report(&report(node, 0, &[(NL, us), ("10.0.0.0/8", 5)]), 1_000),
            Ok(1)
        );
    }
    assert_eq!(pick(&steering, RTT, NL).1, Reason::Geo, "not compiled yet");
    steering.tick(1_250);
    assert_eq!(pick(&steering, RTT, NL), ("nyc", Reason::Rtt, 24));
    assert_eq!(
        pick(&steering, RTT, "198.51.100.77/32"),
        ("nyc", Reason::Rtt, 24)
    );
    assert_eq!(
        pick(&steering, GEO, NL),
        ("ams", Reason::Geo, 24),
        "other policies do not mind"
    );
    let explored = steering.select(RTT, &ecs(NL), Family::V4, 0);
    assert_eq!(
        (explored.cluster, explored.reason, explored.scope_prefix),
        (2, Reason::Explore, 24)
    );
    steering.tick(601_000);
    assert_eq!(pick(&steering, RTT, NL).0, "nyc", "as old as may be");
    steering.tick(602_001);
    assert_eq!(
        pick(&steering, RTT, NL),
        ("ams", Reason::Geo, 24),
        "too old"
    );
    assert!(
        steering
            .take_report(&report("nobody", 0, &[]), 1)
            .unwrap_err()
            .contains("no edge \"nobody\"")
    );
}

#[test]
fn loads_that_are_not_reported_any_more_are_forgotten() {
    let steering = fixture::steering();
    hold(
        &steering,
        &[("ams-1", 9_000_000), ("ams-2", 9_000_000)],
        1,
        301,
    );
    // The last report was at second 301.
    assert_eq!(pick(&steering, GEO, NL), ("nyc", Reason::Spill, 24));
    steering.tick(311_000);
    assert_eq!(pick(&steering, GEO, NL).0, "nyc");
    steering.tick(311_001);
    assert_eq!(pick(&steering, GEO, NL), ("ams", Reason::Geo, 24));
}

#[test]
fn the_report_tells_selections_health_and_sources() {
    let steering = fixture::steering();
    for client in [NL, NL, US, "10.0.0.1/32"] {
        steering.select(GEO, &ecs(client), Family::V4, STEADY);
    }
    steering
        .take_report(&report("ams-1", 0, &[(NL, 1_000)]), 1_000)
        .unwrap();
    steering.tick(1_000);
    down(&steering, &["sin-2"]);
    let mut report = DnsReport {
        node: "ns1".into(),
        revision: 7,
        ..DnsReport::default()
    };
    steering.fill_report(&mut report);
    let rows: Vec<_> = report
        .selections
        .iter()
        .map(|s| {
            (
                s.site.as_str(),
                s.cluster.as_str(),
                s.reason.as_str(),
                s.country.as_str(),
                s.latitude.round() as i32,
                s.count,
            )
        })
        .collect();
    assert_eq!(
        rows,
        [
            ("geo", "ams", "geo", "NL", 52, 2),
            ("geo", "nyc", "geo", "US", 38, 1),
            ("geo", "nyc", "no-place", "", 0, 1)
        ]
    );
    assert_eq!(
        (
            report.node.as_str(),
            report.rtt_prefixes,
            report.geo_source.as_str()
        ),
        ("ns1", 1, "built-in")
    );
    assert_eq!(report.health.len(), 6);
    let sick: Vec<_> = report
        .health
        .iter()
        .filter(|h| !h.up)
        .map(|h| (h.node.as_str(), h.reason.as_str(), h.since_unix_ms))
        .collect();
    assert_eq!(sick, [("sin-2", "status 503", 5)]);
    assert_eq!(steering.revision(), 7);
}

#[test]
fn another_fleet_keeps_counts_health_and_times() {
    let steering = fixture::steering();
    steering.select(GEO, &ecs(NL), Family::V4, STEADY);
    steering
        .take_report(&report("nyc-1", 0, &[(NL, 1_000)]), 1_000)
        .unwrap();
    down(&steering, &["sin-1", "sin-2"]);
    let mut fleet = fixture::fleet();
    fleet.clusters.remove(0);
    fleet.sites = vec![
        fixture::site("new", SelectionPolicy::Geo, &[0, 1]),
        fixture::site("rtt", SelectionPolicy::Rtt, &[0, 1]),
    ];
    steering.adopt(fixture::served(fleet), Atlas::built_in(), 2_000);
    assert_eq!(
        steering.select(0, &ecs(SG), Family::V4, STEADY).reason,
        Reason::Failover,
        "sin is still down"
    );
    let choice = steering.select(1, &ecs(NL), Family::V4, STEADY);
    assert_eq!((choice.cluster, choice.reason), (0, Reason::Rtt));
    assert_eq!(choice.addresses[0], IpAddr::from([127, 0, 20, 1]));
    let mut report = DnsReport::default();
    steering.fill_report(&mut report);
    let rows: Vec<_> = report
        .selections
        .iter()
        .map(|s| (s.site.as_str(), s.cluster.as_str(), s.count))
        .collect();
    assert_eq!(
        rows,
        [("geo", "ams", 1), ("new", "nyc", 1), ("rtt", "nyc", 1)]
    );
    assert_eq!(report.health.len(), 4);
    steering.adopt(fixture::served(fixture::fleet()), Atlas::built_in(), 3_000);
    let state = steering.state();
    assert!(
        state.past.is_empty(),
        "nobody adds to former counters, so they are summed up"
    );
    assert!(state.health["ams-1"].up && !state.health["sin-1"].up);
}

#[test]
fn metrics_sum_over_countries() {
    let steering = Arc::new(fixture::steering());
    for client in [NL, "81.2.69.1/32", SG] {
        steering.select(GEO, &ecs(client), Family::V4, STEADY);
    }
    let registry = prometheus::Registry::new();
    registry
        .register(Box::new(SteeringCollector::new(steering.clone())))
        .unwrap();
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    for line in [
        "nearcast_dns_selections_total{cluster=\"ams\",reason=\"geo\",site=\"geo\"} 2",
        "nearcast_dns_selections_total{cluster=\"sin\",reason=\"geo\",site=\"geo\"} 1",
        "nearcast_dns_node_up{node=\"nyc-1\"} 1",
        "nearcast_dns_address_up{address=\"2001:db8:20::1\",node=\"nyc-1\"} 1",
        "nearcast_dns_cluster_share{cluster=\"sin\"} 1",
        "nearcast_dns_rtt_prefixes 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
}

fn ask(
    steering: &Steering,
    method: Method,
    uri: &str,
    key: Option<&str>,
    body: &str,
) -> (StatusCode, Value) {
    let mut request = Request::builder().method(method).uri(uri);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let response = steering.admin(
        &request
            .body(Bytes::copy_from_slice(body.as_bytes()))
            .unwrap(),
        2_000,
    );
    (
        response.status(),
        serde_json::from_slice(response.body()).unwrap(),
    )
}

fn explain(steering: &Steering, query: &str) -> Value {
    let (status, body) = ask(
        steering,
        Method::GET,
        &format!("/explain?{query}"),
        None,
        "",
    );
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

#[test]
fn explanations_agree_with_answers_and_say_why() {
    let steering = fixture::steering();
    let told = explain(&steering, "host=geo.demo.test&client=203.0.113.7");
    assert_eq!(told["chosen"]["cluster"], "nyc");
    assert_eq!(told["chosen"]["addresses"][0], "127.0.20.1".to_owned());
    assert_eq!(
        (
            &told["policy"],
            &told["reason"],
            &told["scope_prefix"],
            &told["ttl"]
        ),
        (&"geo".into(), &"geo".into(), &24.into(), &20.into())
    );
    assert_eq!(told["scope"], "203.0.113.0/24");
    assert_eq!(
        (&told["place"]["country"], &told["place"]["source"]),
        (&"US".into(), &"demonstration prefix".into())
    );
    let candidates = |told: &Value| -> Vec<(String, Value)> {
        let one = |c: &Value| {
            (
                c["cluster"].as_str().unwrap().to_owned(),
                c["rejected"].clone(),
            )
        };
        told["candidates"]
            .as_array()
            .unwrap()
            .iter()
            .map(one)
            .collect()
    };
    let pairs = |list: &[(&str, Option<&str>)]| -> Vec<(String, Value)> {
        list.iter()
            .map(|(c, r)| ((*c).to_owned(), r.map_or(Value::Null, Value::from)))
            .collect()
    };
    assert_eq!(
        candidates(&told),
        pairs(&[
            ("nyc", None),
            ("ams", Some("farther than nyc")),
            ("sin", Some("farther than nyc"))
        ])
    );
    assert_eq!(told["candidates"][1]["distance_km"], 5_863.0);
    assert_eq!(told["candidates"][1]["rtt_ms"], Value::Null);
    assert_eq!(
        told["summary"],
        "client 203.0.113.7 (in US) is given nyc, 0 km away: the nearest one"
    );

    down(&steering, &["nyc-1", "nyc-2"]);
    hold(
        &steering,
        &[("ams-1", 9_500_000), ("ams-2", 9_600_000)],
        0,
        300,
    );
    let told = explain(&steering, "host=geo.demo.test&client=203.0.113.0/24");
    assert_eq!(
        candidates(&told),
        pairs(&[("nyc", Some("down")), ("ams", Some("full")), ("sin", None)])
    );
    assert_eq!(
        (
            &told["reason"],
            &told["candidates"][0]["health"],
            &told["candidates"][1]["load"]
        ),
        (&"failover".into(), &"down".into(), &2.0.into())
    );
    assert_eq!(told["candidates"][0]["nodes"][1]["reason"], "status 503");

    let steering = fixture::steering();
    steering
        .take_report(&report("sin-1", 0, &[(NL, 8_000)]), 1_000)
        .unwrap();
    steering
        .take_report(&report("ams-1", 0, &[(NL, 20_500)]), 1_000)
        .unwrap();
    steering.tick(1_500);
    let told = explain(
        &steering,
        "host=rtt.demo.test&client=198.51.100.9&resolver=192.0.2.1",
    );
    assert_eq!(
        (&told["chosen"]["cluster"], &told["reason"]),
        (&"sin".into(), &"rtt".into())
    );
    assert_eq!(told["candidates"][0]["rtt_ms"], 8.0);
    assert_eq!(
        (
            &told["candidates"][0]["rtt"]["from"],
            &told["candidates"][0]["rtt"]["age_seconds"]
        ),
        (&"prefix".into(), &1.0.into())
    );
    assert_eq!(
        told["candidates"][1]["rejected"],
        "slower than sin, or farther at about the same time"
    );
    assert_eq!(told["client"]["resolver"], "192.0.2.1");

    // The client counts where its resolver sends it; a resolver that sends no more than that it has
    // one counts itself.
    for (query, from, cluster) in [
        ("client=203.0.113.0/24&resolver=192.0.2.1", "client", "nyc"),
        ("client=0.0.0.0/0&resolver=192.0.2.1", "resolver", "sin"),
        ("resolver=192.0.2.1", "resolver", "sin"),
    ] {
        let told = explain(&steering, &format!("host=geo.demo.test&{query}"));
        assert_eq!(
            (&told["client"]["from"], &told["chosen"]["cluster"]),
            (&from.into(), &cluster.into()),
            "{query}"
        );
    }
    let told = explain(&steering, "host=weighted.cdn.test&resolver=10.0.0.1");
    assert_eq!(
        (&told["scope"], &told["place"], &told["client"]["from"]),
        (&"0.0.0.0/0".into(), &Value::Null, &"resolver".into())
    );
    let told = explain(&steering, "host=one.demo.test&client=10.0.0.1&type=AAAA");
    assert_eq!(
        (&told["chosen"], &told["reason"]),
        (&Value::Null, &"no-address".into())
    );
    assert_eq!(told["candidates"][0]["rejected"], "no IPv6 address");
    assert_eq!(told["dns"]["kind"], "no-data");
}

#[test]
fn a_name_without_steered_addresses_is_explained_as_dns_answers_it() {
    let mut fleet = fixture::fleet();
    fleet.sites[5].hosts = vec!["*".into()];
    let steering = Steering::new(fixture::served(fleet), location::Atlas::built_in(), 0);
    for (host, qtype, status, kind, records, words) in [
        (
            "mail.demo.test",
            "A",
            "NOERROR",
            "records",
            &["A 192.0.2.25"][..],
            "every client gets the same",
        ),
        (
            "alias.demo.test",
            "A",
            "NOERROR",
            "records",
            &["CNAME mail.demo.test.", "A 192.0.2.25"],
            "an alias of mail.demo.test",
        ),
        (
            "alias.demo.test",
            "AAAA",
            "NOERROR",
            "no-data",
            &["CNAME mail.demo.test."],
            "has no AAAA record",
        ),
        (
            "mail.demo.test",
            "TYPE65280",
            "NOERROR",
            "no-data",
            &[],
            "has no TYPE65280 record",
        ),
        (
            "geo.demo.test",
            "MX",
            "NOERROR",
            "no-data",
            &["CNAME geo.cdn.test."],
            "has no MX record",
        ),
        (
            "nowhere.demo.test",
            "A",
            "NXDOMAIN",
            "no-name",
            &[],
            "as the site far, whose hosts are \"*\"",
        ),
        (
            "x.sub.demo.test",
            "A",
            "NOERROR",
            "delegated",
            &[],
            "sub.demo.test is served by ns.example",
        ),
        (
            "demo.test",
            "NS",
            "NOERROR",
            "records",
            &["NS ns1.cdn.test."],
            "has NS records",
        ),
    ] {
        let told = explain(
            &steering,
            &format!("host={host}&client=203.0.113.7&type={qtype}"),
        );
        assert_eq!(
            (&told["dns"]["status"], &told["dns"]["kind"]),
            (&status.into(), &kind.into()),
            "{told}"
        );
        let found = told["dns"]["records"].as_array().unwrap().iter();
        let found: Vec<String> = found
            .map(|r| {
                format!(
                    "{} {}",
                    r["type"].as_str().unwrap(),
                    r["data"].as_str().unwrap()
                )
            })
            .collect();
        assert_eq!(found, records, "{host}");
        assert!(told["summary"].as_str().unwrap().contains(words), "{told}");
        assert!(told["site"].is_null() && told["chosen"].is_null(), "{told}");
    }
    let (status, body) = ask(
        &steering,
        Method::GET,
        "/explain?host=www.example&client=192.0.2.1",
        None,
        "",
    );
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(
        body["error"]["message"]
            .as_str()
            .unwrap()
            .contains("no zone of this name server holds www.example"),
        "{body}"
    );
}

#[test]
fn admin_paths_refuse_what_is_wrong() {
    let steering = fixture::steering();
    let good = serde_json::to_string(&report("ams-1", 1, &[(NL, 900)])).unwrap();
    let other = serde_json::to_string(&report("xyz-1", 1, &[])).unwrap();
    let fleet = fixture::fleet();
    let own = |node: &str| {
        node_key::OwnKey::derive(&fleet.node_key, &fleet, node)
            .unwrap()
            .shown()
            .0
    };
    for (method, uri, key, body, status) in [
        (
            Method::POST,
            "/rtt",
            Some(KEY),
            good.as_str(),
            StatusCode::OK,
        ),
        (
            Method::POST,
            "/rtt",
            None,
            good.as_str(),
            StatusCode::UNAUTHORIZED,
        ),
        (
            Method::POST,
            "/rtt",
            Some("another"),
            good.as_str(),
            StatusCode::UNAUTHORIZED,
        ),
        (
            Method::POST,
            "/rtt",
            Some(own("ams-1").as_str()),
            good.as_str(),
            StatusCode::OK,
        ),
        (
            Method::POST,
            "/rtt",
            Some(own("ams-2").as_str()),
            good.as_str(),
            StatusCode::FORBIDDEN,
        ),
        (
            Method::POST,
            "/rtt",
            Some(KEY),
            "{",
            StatusCode::BAD_REQUEST,
        ),
        (
            Method::POST,
            "/rtt",
            Some(KEY),
            other.as_str(),
            StatusCode::NOT_FOUND,
        ),
        (
            Method::GET,
            "/rtt",
            Some(KEY),
            "",
            StatusCode::METHOD_NOT_ALLOWED,
        ),
        (Method::GET, "/explain", None, "", StatusCode::BAD_REQUEST),
        (
            Method::GET,
            "/explain?host=nobody.example&client=192.0.2.1",
            None,
            "",
            StatusCode::NOT_FOUND,
        ),
        (
            Method::POST,
            "/explain?host=geo.demo.test&client=192.0.2.1",
            None,
            "",
            StatusCode::METHOD_NOT_ALLOWED,
        ),
        (Method::GET, "/other", None, "", StatusCode::NOT_FOUND),
    ] {
        let (got, body) = ask(&steering, method.clone(), uri, key, body);
        assert_eq!(got, status, "{method} {uri}: {body}");
        assert_eq!(status.is_success(), body["error"].is_null());
    }
    assert!(steering.state().rtt_changed);
}

/// A fleet state made from numbers: who is down, who has just returned, who is full, what was
/// measured where.
fn troubled(down_mask: u8, back_mask: u8, full_mask: u8, samples: &[(u8, u8, u32)]) -> Steering {
    let mut fleet = fixture::fleet();
    fleet.steering.ramp = Duration::from_secs(60);
    let steering = Steering::new(fixture::served(fleet.clone()), Atlas::built_in(), 0);
    let nodes: Vec<&str> = fleet
        .clusters
        .iter()
        .flat_map(|c| &c.nodes)
        .map(|n| n.name.as_str())
        .collect();
    let of = |mask: u8| {
        nodes
            .iter()
            .enumerate()
            .filter(move |(i, _)| mask >> i & 1 == 1)
            .map(|(_, n)| *n)
            .collect::<Vec<_>>()
    };
    down(&steering, &of(down_mask | back_mask));
    let loads: Vec<(&str, u64)> = nodes
        .iter()
        .enumerate()
        .map(|(i, node)| {
            (
                *node,
                if full_mask >> i & 1 == 1 {
                    1_600_000
                } else {
                    300_000
                },
            )
        })
        .collect();
    hold(&steering, &loads, 1, 20);
    back(&steering, &of(back_mask & !down_mask), 80_000);
    hold(&steering, &loads, 80, 12);
    for (cluster, third, us) in samples {
        let prefix = format!("203.0.{third}.0/24");
        let node = &fleet.clusters[usize::from(cluster % 3)].nodes[0].name;
        let egress = loads
            .iter()
            .find(|(n, _)| n == node)
            .map_or(0, |(_, egress)| *egress);
        steering
            .take_report(&report(node, egress, &[(&prefix, *us)]), 92_000)
            .unwrap();
    }
    steering.tick(92_000);
    steering
}

/// A client whose whole address its resolver shows.
fn whole(address: IpAddr) -> ClientPrefix {
    ClientPrefix {
        from_ecs: true,
        ..ClientPrefix::host(address)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// The contract of scopes: whoever is inside the prefix returned gets the same cluster for the
    /// same reason.
    #[test]
    fn scopes_are_never_wider_than_proven(
        down_mask in 0_u8..64,
        back_mask in 0_u8..64,
        full_mask in 0_u8..64,
        samples in proptest::collection::vec((0_u8..3, 96_u8..128, 1_000_u32..200_000), 0..12),
        clients in proptest::collection::vec((any::<u32>(), 0_u8..=32), 12),
        near in proptest::collection::vec(64_u8..160, 8),
        v6 in proptest::collection::vec((any::<u128>(), 16_u8..=64), 4),
        inside in proptest::collection::vec(any::<u128>(), 24),
    ) {
        let steering = troubled(down_mask, back_mask, full_mask, &samples);
        let thirds = samples.iter().map(|(_, third, _)| *third).chain(near);
        let near_samples: Vec<_> = thirds.map(|third| whole([203, 0, third, 7].into())).collect();
        let v4 = clients.iter().map(|(bits, len)| ClientPrefix { address: bits.to_be_bytes().into(), source_prefix: *len, from_ecs: true });
        let v6 = v6.iter().map(|(bits, len)| {
            let address = IpAddr::from((0x2a00_u128 << 112 | bits >> 12).to_be_bytes());
            ClientPrefix { address, source_prefix: *len, from_ecs: true }
        });
        for client in near_samples.iter().copied().chain(v4).chain(v6) {
            for site in [GEO, RTT, ONE, 5] {
                let choice = steering.select(site, &client, Family::V4, STEADY);
                let tailored = site != ONE;
                prop_assert!(!tailored || choice.scope_prefix > 0);
                let others = near_samples.iter().map(|near| u128::from(u32::from_be_bytes(match near.address {
                    IpAddr::V4(ip) => ip.octets(),
                    IpAddr::V6(_) => [0; 4],
                })));
                for random in inside.iter().copied().chain(others) {
                    let neighbour = match masked(&client) {
                        IpAddr::V4(ip) => {
                            let host_bits = u32::MAX.checked_shr(choice.scope_prefix.into()).unwrap_or(0);
                            IpAddr::from((u32::from(ip) & !host_bits | random as u32 & host_bits).to_be_bytes())
                        }
                        IpAddr::V6(ip) => {
                            let host_bits = u128::MAX.checked_shr(choice.scope_prefix.into()).unwrap_or(0);
                            IpAddr::from((u128::from(ip) & !host_bits | random & host_bits).to_be_bytes())
                        }
                    };
                    let other = steering.select(site, &whole(neighbour), Family::V4, STEADY);
                    prop_assert_eq!(
                        (other.cluster, other.addresses), (choice.cluster, choice.addresses),
                        "site {}: {} and {} inside /{}", site, client.address, neighbour, choice.scope_prefix
                    );
                }
            }
        }
    }
}

/// Steering by a map of networks with a latitude and a longitude each.
fn mapped(networks: [(&str, f64, f64); 2]) -> Steering {
    mapped_on(fixture::fleet(), &networks)
}

/// The same for a fleet.
fn mapped_on(fleet: Fleet, networks: &[(&str, f64, f64)]) -> Steering {
    use mmdb_writer::{Value, Writer};
    let mut writer = Writer::new("Test");
    for (network, latitude, longitude) in networks {
        let degrees = Value::map([
            ("latitude", Value::from(*latitude)),
            ("longitude", Value::from(*longitude)),
        ]);
        writer
            .insert_value(
                network.parse::<ipnet::IpNet>().unwrap(),
                Value::map([("location", degrees)]),
            )
            .unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("geo.mmdb");
    std::fs::write(&path, writer.to_bytes().unwrap()).unwrap();
    Steering::new(
        fixture::served(fleet),
        Arc::new(Atlas::load(&path).unwrap()),
        1_000,
    )
}

#[test]
fn a_guessed_time_depends_on_the_place_and_so_does_the_scope() {
    // Both nearest to ams, then nyc, then sin; but so far from ams in the second that a measured
    // nyc is the better guess.
    let steering = mapped([("81.2.69.0/25", 52.0, 5.0), ("81.2.69.128/25", 40.0, -10.0)]);
    assert_eq!(
        pick(&steering, RTT, "81.2.69.1/32"),
        ("ams", Reason::Geo, 24)
    );
    assert_eq!(
        pick(&steering, RTT, "81.2.69.129/32"),
        ("ams", Reason::Geo, 24)
    );
    steering
        .take_report(&report("nyc-1", 0, &[("81.2.69.0/24", 45_000)]), 1_000)
        .unwrap();
    steering.tick(1_000);
    assert_eq!(
        pick(&steering, RTT, "81.2.69.1/32"),
        ("ams", Reason::Geo, 25)
    );
    assert_eq!(
        pick(&steering, RTT, "81.2.69.129/32"),
        ("nyc", Reason::Rtt, 25)
    );
}

#[test]
fn a_scope_stays_inside_one_order_also_while_several_share_a_cluster() {
    // The first is nearest to ams, the second to nyc.
    let steering = mapped([("81.2.69.0/25", 52.0, 5.0), ("81.2.69.128/25", 41.0, -74.0)]);
    let halves = || {
        [
            pick(&steering, GEO, "81.2.69.1/32"),
            pick(&steering, GEO, "81.2.69.129/32"),
        ]
    };
    assert_eq!(
        halves(),
        [("ams", Reason::Geo, 25), ("nyc", Reason::Geo, 25)]
    );
    down(&steering, &["ams-1", "ams-2"]);
    assert_eq!(
        halves(),
        [("nyc", Reason::Failover, 25), ("nyc", Reason::Geo, 25)]
    );
}

/// Polls until `done`, at most ten seconds.
async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "not within ten seconds: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An HTTP listener that answers every request with this status.
async fn health_server(status: &'static str) -> (SocketAddr, tokio::task::AbortHandle) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream
                .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                .await;
        }
    });
    (address, task.abort_handle())
}

#[tokio::test]
async fn a_dead_node_leaves_within_two_seconds_and_a_draining_one_too() {
    let mut fleet = fixture::fleet();
    let mut servers = Vec::new();
    for node in fleet.clusters.iter_mut().flat_map(|c| &mut c.nodes) {
        let (address, server) = health_server(if node.name == "nyc-1" {
            "503 Service Unavailable"
        } else {
            "200 OK"
        })
        .await;
        node.service = address;
        servers.push(server);
    }
    let (fleet_tx, fleet) = tokio::sync::watch::channel(fixture::served(fleet));
    let (trigger, shutdown) = nearcast_net::shutdown::channel();
    let registry = prometheus::Registry::new();
    let steering = Steering::start(fleet, &registry, shutdown);
    let health = |node: &str| {
        let state = steering.state();
        (state.health[node].up, state.health[node].reason.clone())
    };
    eventually("all checked", || {
        ["ams-1", "ams-2", "sin-1", "sin-2", "nyc-2"]
            .iter()
            .all(|n| health(n) == (true, "ok".into()))
    })
    .await;
    eventually("nyc-1 drains", || {
        health("nyc-1") == (false, "status 503".into())
    })
    .await;
    servers[0].abort();
    let died = std::time::Instant::now();
    eventually("ams-1 is out", || !health("ams-1").0).await;
    assert!(
        died.elapsed() < Duration::from_secs(2),
        "{:?}",
        died.elapsed()
    );
    assert_eq!(health("ams-1").1, "connection refused");
    assert_eq!(
        steering
            .select(GEO, &ecs(NL), Family::V4, 1)
            .addresses
            .to_vec(),
        [IpAddr::from([127, 0, 10, 2])]
    );

    // The node moves to where one answers.
    let mut moved = Fleet::clone(&fleet_tx.borrow().fleet);
    moved.clusters[0].nodes[0].service = moved.clusters[0].nodes[1].service;
    fleet_tx.send_replace(fixture::served(moved));
    eventually("ams-1 is back", || health("ams-1").0).await;
    trigger.shut_down();
    eventually("tasks end", || Arc::strong_count(&steering) <= 2).await;
}

#[tokio::test]
async fn the_database_is_loaded_again_when_it_changes() {
    use mmdb_writer::{Value, Writer};
    let database = |latitude: f64, longitude: f64| {
        let mut writer = Writer::new("Test");
        let location = Value::map([
            ("latitude", Value::from(latitude)),
            ("longitude", Value::from(longitude)),
        ]);
        writer
            .insert_value(
                "81.2.69.0/24".parse::<ipnet::IpNet>().unwrap(),
                Value::map([("location", location)]),
            )
            .unwrap();
        writer.to_bytes().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("geo.mmdb");
    let replace = |bytes: &[u8]| {
        std::fs::write(dir.path().join("new"), bytes).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
    };
    let mut fleet = fixture::fleet();
    fleet.steering.geo_db = Some(path.clone());
    let (fleet_tx, fleet) = tokio::sync::watch::channel(fixture::served(fleet));
    let (_trigger, shutdown) = nearcast_net::shutdown::channel();
    let registry = prometheus::Registry::new();
    let metric = |name: &str| {
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            .unwrap()
    };
    // Neither a missing file nor a broken one keeps it from starting, and each change is looked at.
    let steering = Steering::start(fleet, &registry, shutdown);
    assert_eq!(
        (
            steering.atlas().description.as_str(),
            metric("nearcast_dns_geo_db_failed")
        ),
        ("built-in", 1)
    );
    replace(b"nothing of the kind");
    let cluster = || {
        steering
            .select(GEO, &ecs("81.2.69.0/24"), Family::V4, STEADY)
            .cluster
    };
    replace(&database(40.0, -74.0));
    eventually("the first good one is in use", || {
        cluster() == 1 && metric("nearcast_dns_geo_db_failed") == 0
    })
    .await;
    // Written over in place.
    std::fs::write(&path, database(52.0, 5.0)).unwrap();
    eventually("what was written in place is in use", || cluster() == 0).await;
    std::fs::remove_file(&path).unwrap();
    eventually("it is told that the file is gone", || {
        metric("nearcast_dns_geo_db_failed") == 1
    })
    .await;
    assert_eq!(cluster(), 0);
    replace(&database(1.0, 103.0));
    eventually("the new one is in use", || cluster() == 2).await;
    let mut without = Fleet::clone(&fleet_tx.borrow().fleet);
    without.steering.geo_db = None;
    fleet_tx.send_replace(fixture::served(without));
    eventually("built in", || steering.atlas().description == "built-in").await;
}

#[test]
fn what_is_drained_is_in_no_answer_and_says_so() {
    use nearcast_fleet::change::{Change, Drain, DrainTarget, Entry};
    let steering = fixture::steering();
    let mut drains = Drains::default();
    let mut drain = |target, drained| {
        drains.fold(&Entry {
            revision: 1,
            accepted_unix_ms: 1,
            change: Change::Drain(Drain { target, drained }),
        });
        steering.set_drained(drains.clone());
    };
    let addresses = || {
        steering
            .select(GEO, &ecs(NL), Family::V4, STEADY)
            .addresses
            .to_vec()
    };
    let all = addresses();
    drain(DrainTarget::Node("ams-1".into()), true);
    assert_eq!(addresses().len(), all.len() - 1, "healthy as it is");
    let told = steering
        .explain("host=geo.demo.test&client=198.51.100.0/24", 10)
        .expect("a site");
    let told = serde_json::to_value(&told).expect("JSON");
    let ams = told["candidates"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|c| c["cluster"] == "ams")
        .expect("it is scoped")
        .clone();
    let node = ams["nodes"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|n| n["node"] == "ams-1")
        .expect("it is there")
        .clone();
    assert_eq!(
        (&node["drained"], &node["up"], &node["reason"]),
        (&true.into(), &false.into(), &DRAINED.into()),
        "{ams}"
    );
    let mut report = DnsReport::default();
    steering.fill_report(&mut report);
    let health = report
        .health
        .iter()
        .find(|h| h.node == "ams-1")
        .expect("it is reported");
    assert_eq!((health.up, health.reason.as_str()), (false, DRAINED));
    drain(DrainTarget::Cluster("ams".into()), true);
    assert_eq!(
        pick(&steering, GEO, NL).1,
        Reason::Failover,
        "its clients go to the next cluster"
    );
    drain(DrainTarget::Cluster("ams".into()), false);
    drain(DrainTarget::Node("ams-1".into()), false);
    assert_eq!(addresses(), all);
    for cluster in ["ams", "nyc", "sin"] {
        drain(DrainTarget::Cluster(cluster.into()), true);
    }
    assert_eq!(
        (pick(&steering, GEO, NL).0, pick(&steering, GEO, NL).1),
        ("ams", Reason::AllDown),
        "some address is better than none"
    );
}
