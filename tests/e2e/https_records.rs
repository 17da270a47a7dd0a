//! HTTPS records (RFC 9460) as kdig shows them: the protocols, port and addresses of the edges that
//! the same client is steered to.

use std::collections::BTreeSet;

use tempfile::TempDir;

use crate::lab::certificates::Authority;
use crate::lab::fleet::{CLIENTS, Fleet, Plan};
use crate::lab::tools::{dig_addresses, kdig};

/// Two clusters whose edges serve TLS on port 8443, with the customer's apex and another site.
fn start(change: impl FnOnce(&mut Plan)) -> (Fleet, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut plan = Plan {
        clusters: 2,
        nodes: 2,
        hosts: vec!["www.demo.test", "demo.test"],
        certificates: Some(directory.path().to_owned()),
        more: "[[site]]\nname = \"plain\"\nhosts = [\"plain.demo.test\"]\norigin = \"http://127.0.0.1:1\"\n\
               https.dns_record = false\n"
            .to_owned(),
        ..Plan::new()
    };
    change(&mut plan);
    Authority::new(&directory.path().join("ca.pem")).write(&plan, directory.path());
    (Fleet::start(plan), directory)
}

/// What kdig says of a name's HTTPS record for clients of a network.
fn ask(fleet: &Fleet, name: &str, subnet: &str) -> String {
    let subnet = format!("+subnet={subnet}");
    kdig(fleet.plan.dns(), &["+edns", &subnet, name, "HTTPS"])
}

/// The record in what kdig says: owner, TTL, class, type and data.
fn record(said: &str) -> Vec<&str> {
    let is_record = |line: &&str| !line.starts_with(';') && line.contains("\tHTTPS\t");
    let mut lines = said.lines().filter(is_record);
    let line = lines
        .next()
        .unwrap_or_else(|| panic!("no record in\n{said}"));
    assert_eq!(lines.next(), None, "one record");
    line.split_whitespace().collect()
}

/// The value of a parameter of a record.
fn parameter<'a>(record: &[&'a str], key: &str) -> Option<&'a str> {
    let mut values = record.iter().filter_map(|word| word.split_once('='));
    values
        .find(|(found, _)| *found == key)
        .map(|(_, value)| value)
}

fn scope(said: &str) -> &str {
    let line = said.lines().find_map(|l| l.split("CLIENT-SUBNET: ").nth(1));
    let line = line.unwrap_or_else(|| panic!("no client subnet in\n{said}"));
    line.trim()
        .rsplit('/')
        .next()
        .expect("address/source/scope")
}

#[test]
fn each_client_gets_the_record_of_its_own_edges() {
    let (fleet, _directory) = start(|_| {});
    for (_, subnet) in &CLIENTS[..2] {
        let dns = fleet.plan.dns();
        let addresses = BTreeSet::from_iter(dig_addresses(dns, "www.cdn.test", subnet));
        assert_eq!(addresses.len(), 2);
        let with_subnet = format!("+subnet={subnet}");
        let a = kdig(dns, &["+edns", &with_subnet, "www.cdn.test", "A"]);
        // kdig sets RD, as a stub does: it gets the whole chain.
        for (name, owner) in [
            ("www.cdn.test", "www.cdn.test."),
            ("www.demo.test", "www.cdn.test."),
            ("demo.test", "demo.test."),
        ] {
            let said = ask(&fleet, name, subnet);
            let record = record(&said);
            assert_eq!(record[0], owner, "{said}");
            assert_eq!(record[1], "5", "the site's TTL: {said}");
            assert_eq!(record[4..6], ["1", "."], "{said}");
            assert_eq!(parameter(&record, "alpn"), Some("h3,h2"), "{said}");
            assert_eq!(parameter(&record, "port"), Some("8443"), "{said}");
            let hints = parameter(&record, "ipv4hint").unwrap_or_default();
            let hints: BTreeSet<String> = hints.split(',').map(str::to_owned).collect();
            assert_eq!(hints, addresses, "{said}");
            assert_eq!(parameter(&record, "ipv6hint"), None, "{said}");
            assert_eq!(scope(&said), scope(&a), "{said}");
        }
    }
}

#[test]
fn a_site_without_the_record_answers_that_there_is_none() {
    let (fleet, _directory) = start(|_| {});
    let said = ask(&fleet, "plain.cdn.test", CLIENTS[0].1);
    assert!(
        said.contains("NOERROR") && said.contains("\tSOA\t"),
        "{said}"
    );
    assert!(!said.contains("\tHTTPS\t"), "{said}");
    assert_eq!(scope(&said), "0", "every client gets that answer");

    // No certificate, no record.
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let fleet = Fleet::start(plan);
    let said = ask(&fleet, "www.cdn.test", CLIENTS[0].1);
    assert!(
        said.contains("NOERROR") && said.contains("\tSOA\t"),
        "{said}"
    );
    assert!(!said.contains("\tHTTPS\t"), "{said}");
}

#[test]
fn the_protocols_are_those_that_edges_serve() {
    for (clients, alpn) in [
        ("http3 = false", Some("h2")),
        ("http2 = false", Some("h3")),
        ("http2 = false\nhttp3 = false", None),
    ] {
        let (fleet, _directory) = start(|plan| {
            plan.clusters = 1;
            plan.nodes = 1;
            plan.more += &format!("[clients]\n{clients}\n");
        });
        let said = ask(&fleet, "www.cdn.test", CLIENTS[0].1);
        let record = record(&said);
        assert_eq!(parameter(&record, "alpn"), alpn, "{clients}: {said}");
        assert_eq!(parameter(&record, "port"), Some("8443"), "{said}");
    }
}

#[test]
fn explain_shows_the_record_or_why_there_is_none() {
    let (fleet, _directory) = start(|_| {});
    let explain = |host: &str| {
        let arguments = [
            "explain",
            host,
            "--client",
            "198.51.100.9",
            "--type",
            "HTTPS",
        ];
        let output = fleet.operate(&arguments);
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{words}");
        words
    };
    let words = explain("www.demo.test");
    let hint = format!("ipv4hint={}", fleet.plan.edge(0, 0));
    assert!(words.contains("1 . alpn=h3,h2 port=8443"), "{words}");
    assert!(words.contains(&hint) && words.contains("ams"), "{words}");
    let words = explain("plain.cdn.test");
    assert!(words.contains("https.dns_record = false"), "{words}");
}
