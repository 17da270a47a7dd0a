//! HTTPS records: their addresses are those of `A` and `AAAA`.

use super::*;

fn service(steering: &Steering, site: usize, client: &str, random: u64) -> Option<Service> {
    let snapshot = steering.snapshot();
    match snapshot.select_wanted(site, &ecs(client), Wanted::Service, random) {
        Selection::Service(service) => Some(service),
        Selection::Nothing => None,
        Selection::Addresses(choice) => panic!("{choice:?}"),
    }
}

fn with_tls() -> Steering {
    let fleet = fixture::fleet_with_tls();
    Steering::new(fixture::served(fleet), Atlas::built_in(), 0)
}

#[test]
fn hints_are_the_addresses_of_the_same_client() {
    let steering = with_tls();
    down(&steering, &["ams-1"]);
    for site in [GEO, RTT, WEIGHTED, ONE] {
        for client in [NL, US, SG, "10.0.0.1/32", "2001:db8::/48"] {
            for i in 0..64 {
                let random = mix(i);
                let found = service(&steering, site, client, random).expect("a record");
                for (family, hints) in [(Family::V4, found.v4), (Family::V6, found.v6)] {
                    let choice = steering.select(site, &ecs(client), family, random);
                    assert_eq!(hints, choice, "site {site}, {client}, {family:?}");
                }
                assert_eq!(found.port, 443);
            }
        }
    }
}

#[test]
fn both_families_are_of_one_turn() {
    let steering = with_tls();
    // Singapore has no IPv6 address, so the turns of IPv6 have two clusters.
    for turn in 0..12 {
        let found = service(&steering, TURNS, NL, STEADY).expect("a record");
        let expected = ([1, 0, 2][turn % 3], [1, 0][turn % 2]);
        let clusters = (found.v4.cluster, found.v6.cluster);
        assert_eq!(clusters, expected, "turn {turn}");
    }
    let choice = steering.select(TURNS, &ecs(NL), Family::V4, STEADY);
    assert_eq!(choice.cluster, 1, "an HTTPS record takes one turn");
}

#[test]
fn a_record_counts_as_one_selection() {
    let steering = with_tls();
    service(&steering, GEO, NL, STEADY).expect("a record");
    let counts: Vec<u64> = steering.totals().into_values().collect();
    assert_eq!(counts, [1]);
}

#[test]
fn where_all_are_down_the_record_names_them_all_the_same() {
    let steering = with_tls();
    let names = ["ams-1", "ams-2", "nyc-1", "nyc-2", "sin-1", "sin-2"];
    down(&steering, &names);
    let found = service(&steering, GEO, NL, STEADY).expect("a record");
    assert_eq!(found.v4.addresses.len(), 2);
    assert!(Selection::Service(found).is_all_down());
}

#[test]
fn protocols_follow_the_cluster_of_the_client() {
    let mut fleet = fixture::fleet_with_tls();
    fleet.clusters[0].nodes[1].clients.http3 = false;
    let steering = Steering::new(fixture::served(fleet), Atlas::built_in(), 0);
    // Singapore has no IPv6 address; IPv6 leads from there to Amsterdam.
    for (client, http3) in [(NL, false), (US, true), (SG, false)] {
        let found = service(&steering, GEO, client, STEADY).expect("a record");
        assert_eq!(found.protocols.http3, http3, "{client}");
        assert!(found.protocols.http2, "{client}");
    }
}

#[test]
fn no_site_has_a_record_for_some_clients_only() {
    let mut fleet = fixture::fleet_with_tls();
    fleet.clusters[2].nodes[0].listen_tls.clear();
    let steering = Steering::new(fixture::served(fleet), Atlas::built_in(), 0);
    for client in [NL, US, SG, "10.0.0.1/32"] {
        assert_eq!(service(&steering, GEO, client, STEADY), None, "{client}");
    }
    // The next revision of the fleet has TLS everywhere.
    let fleet = fixture::fleet_with_tls();
    steering.adopt(fixture::served(fleet), Atlas::built_in(), 1_000);
    assert!(service(&steering, GEO, NL, STEADY).is_some());
}

#[test]
fn explanations_show_the_record_or_why_there_is_none() {
    let mut fleet = fixture::fleet_with_tls();
    fleet.sites[ONE].https.dns_record = false;
    let steering = Steering::new(fixture::served(fleet), Atlas::built_in(), 0);
    let told = explain(
        &steering,
        "host=geo.demo.test&client=198.51.100.7&type=HTTPS",
    );
    let records = told["dns"]["records"].as_array().expect("records");
    assert_eq!(records[0]["type"], "CNAME");
    assert_eq!(
        (
            &records[1]["owner"],
            &records[1]["type"],
            &records[1]["data"]
        ),
        (
            &"geo.cdn.test".into(),
            &"HTTPS".into(),
            &"1 . alpn=h3,h2 ipv4hint=127.0.10.1,127.0.10.2 ipv6hint=2001:db8:10::1,2001:db8:10::2"
                .into()
        )
    );
    assert_eq!(told["chosen"]["cluster"], "ams");
    assert_eq!(told["family"], "HTTPS");
    assert_eq!(told["dns"]["kind"], "steered");
    assert_eq!(
        told["chosen"]["addresses"].as_array().map(Vec::len),
        Some(4)
    );

    let told = explain(&steering, "host=one.demo.test&client=10.0.0.1&type=HTTPS");
    assert_eq!(told["dns"]["kind"], "no-data");
    let summary = told["summary"].as_str().expect("a summary");
    assert!(
        summary.ends_with("the site has https.dns_record = false"),
        "{summary}"
    );
}
