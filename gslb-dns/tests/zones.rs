//! What is served: made from the fleet file by rules, seen through the compiled zones.

mod support;

use nearcast_fleet::config::{Fleet, NameServer};
use nearcast_gslb_dns::answer::{Answer, Link, Outcome, resolve};
use nearcast_gslb_dns::message::{QName, presentation, rtype};
use nearcast_gslb_dns::zone::text;
use nearcast_gslb_dns::zone::{ZoneError, Zones, is_newer, next_serial};
use support::{demo_zone, fleet, site, zone};

fn name(text: &str) -> QName {
    QName::from_wire(&text::name(text, &[0]).expect("a name")).expect("short enough")
}

fn ask<'z>(zones: &'z Zones, qname: &str, qtype: u16) -> Answer<'z> {
    resolve(zones, &name(qname), qtype, false)
}

/// The hierarchy of the resolver lab: root, `test` and the rest on three servers.
fn hierarchy() -> Fleet {
    let mut fleet = fleet(
        vec![],
        vec![site("www", &["www.demo.test"])],
        vec![demo_zone()],
    );
    for (name, host, last) in [("root", "a.root-servers", 2), ("tld", "ns.nic.test", 3)] {
        fleet.name_servers.push(NameServer {
            name: name.to_owned(),
            host: host.to_owned(),
            addresses: vec![std::net::Ipv4Addr::new(127, 9, 9, last).into()],
            ..fleet.name_servers[0].clone()
        });
    }
    for (name, server, records) in [
        ("", 1, vec!["test NS ns.nic.test."]),
        (
            "test",
            2,
            vec!["cdn NS ns1.cdn.test.", "demo NS ns1.cdn.test."],
        ),
    ] {
        fleet.zones.push(nearcast_fleet::config::Zone {
            name_servers: vec![server],
            ..zone(name, &records)
        });
    }
    fleet
}

#[test]
fn a_root_and_a_top_level_zone_refer_downwards_with_glue() {
    let fleet = hierarchy();
    for (server, cut, ns, address) in [
        ("root", "test", "ns.nic.test", [127, 9, 9, 3]),
        ("tld", "demo.test", "ns1.cdn.test", [127, 0, 0, 53]),
        ("tld", "cdn.test", "ns1.cdn.test", [127, 0, 0, 53]),
    ] {
        let zones = Zones::compile(&fleet, server, 1).expect("it compiles");
        let below = format!("www.{cut}");
        let Outcome::Referral(owner, set) = ask(&zones, &below, rtype::A).outcome else {
            panic!("{below} at {server}")
        };
        assert_eq!(presentation(owner), cut);
        assert_eq!(presentation(&set.data[0]), ns);
        let glue = set
            .additional
            .iter()
            .find(|a| a.rtype == rtype::A)
            .unwrap_or_else(|| panic!("glue for {ns}"));
        assert_eq!(
            (presentation(&glue.owner), &*glue.data),
            (ns.to_owned(), &address[..])
        );
    }
    let root = Zones::compile(&fleet, "root", 1).expect("it compiles");
    let Outcome::Records(_, ns) = ask(&root, ".", rtype::NS).outcome else {
        panic!("the root's name servers")
    };
    assert_eq!(presentation(&ns.data[0]), "a.root-servers");
    assert_eq!(
        ns.additional.len(),
        1,
        "a priming query gets the address too"
    );
    assert!(matches!(
        ask(&root, "a.root-servers", rtype::A).outcome,
        Outcome::Records(..)
    ));
    assert!(matches!(
        ask(&root, "example", rtype::A).outcome,
        Outcome::NxDomain
    ));
    assert!(
        matches!(
            ask(&root, "root-servers", rtype::NS).outcome,
            Outcome::NoData
        ),
        "an empty non-terminal"
    );
    let tld = Zones::compile(&fleet, "tld", 1).expect("it compiles");
    assert!(matches!(
        ask(&tld, "ns.nic.test", rtype::A).outcome,
        Outcome::Records(..)
    ));
    assert!(matches!(
        ask(&tld, "nic.test", rtype::NS).outcome,
        Outcome::NoData
    ));
}

#[test]
fn a_child_zone_that_the_file_does_not_delegate_is_delegated_by_its_parent() {
    let mut fleet = hierarchy();
    fleet.zones.iter_mut().for_each(|z| {
        z.records
            .retain(|r| r.rtype != "NS" || !r.owner.ends_with("test") || r.owner.contains("sub"))
    });
    let tld = Zones::compile(&fleet, "tld", 1).expect("it compiles");
    assert!(matches!(
        ask(&tld, "x.demo.test", rtype::A).outcome,
        Outcome::Referral(..)
    ));
    let root = Zones::compile(&fleet, "root", 1).expect("it compiles");
    assert!(
        matches!(ask(&root, "x.demo.test", rtype::A).outcome, Outcome::Referral(owner, _) if presentation(owner) == "test")
    );
}

#[test]
fn where_both_sides_of_a_cut_are_served_the_child_answers_and_ds_is_the_parents() {
    let mut parent = zone(
        "test",
        &[
            "demo DS 1 13 2 abcd",
            "demo NS ns1.cdn.test.",
            "occluded.demo A 192.0.2.1",
        ],
    );
    parent.name_servers = vec![0];
    let fleet = fleet(vec![], vec![], vec![demo_zone(), parent]);
    let zones = Zones::compile(&fleet, "ns1", 1).expect("it compiles");
    assert!(matches!(
        ask(&zones, "mail.demo.test", rtype::A).outcome,
        Outcome::Records(..)
    ));
    assert!(
        matches!(
            ask(&zones, "occluded.demo.test", rtype::A).outcome,
            Outcome::NxDomain
        ),
        "the parent's data below the cut is not the child's"
    );
    let ds = ask(&zones, "demo.test", rtype::DS);
    assert!(matches!(ds.outcome, Outcome::Records(..)));
    assert_eq!(presentation(&ds.zone.expect("a zone").apex), "test");
    let none = ask(&zones, "cdn.test", rtype::DS);
    assert!(matches!(none.outcome, Outcome::NoData));
    assert_eq!(
        presentation(&none.zone.expect("a zone").apex),
        "test",
        "the parent says that there is none"
    );
    assert!(
        matches!(
            ask(&zones, "demo.test", rtype::NS).outcome,
            Outcome::Records(..)
        ),
        "NS at the apex is the child's"
    );
}

#[test]
fn hosts_of_sites_become_aliases_or_are_steered_themselves() {
    let sites = vec![
        site(
            "www",
            &[
                "www.demo.test",
                "auto.demo.test",
                "demo.test",
                "elsewhere.example",
                "*",
            ],
        ),
        site(
            "video",
            &[
                "mail.demo.test",
                "both.demo.test",
                "x.sub.demo.test",
                "film.cdn.test",
                "video.cdn.test",
                "cdn.test",
            ],
        ),
    ];
    let mut demo = demo_zone();
    demo.records
        .push(support::record("demo.test", "both TXT x"));
    let fleet = fleet(vec![], sites, vec![demo]);
    let zones = Zones::compile(&fleet, "ns1", 1).expect("it compiles");
    // Name, site at its end, names on the way.
    for (qname, expected, links) in [
        ("www.cdn.test", Some(0), 0),
        ("video.cdn.test", Some(1), 0),
        ("www.demo.test", Some(0), 1),
        ("auto.demo.test", Some(0), 1),
        // No alias can stand at an apex or beside other records.
        ("demo.test", Some(0), 0),
        ("cdn.test", Some(1), 0),
        ("both.demo.test", Some(1), 0),
        ("film.cdn.test", Some(1), 1),
        // Own records win; what is below a cut is not ours.
        ("mail.demo.test", None, 0),
        ("x.sub.demo.test", None, 0),
    ] {
        let answer = ask(&zones, qname, rtype::A);
        let site = match answer.outcome {
            Outcome::Steered(_, site) => Some(site),
            _ => None,
        };
        assert_eq!(site, expected, "{qname}: {answer:?}");
        assert_eq!(answer.links.iter().flatten().count(), links, "{qname}");
    }
    assert!(
        matches!(
            ask(&zones, "demo.test", rtype::MX).outcome,
            Outcome::Records(..)
        ),
        "the apex keeps its records"
    );
    assert!(matches!(
        ask(&zones, "both.demo.test", rtype::TXT).outcome,
        Outcome::Records(..)
    ));
}

#[test]
fn a_chain_stops_before_a_steered_name_when_asked_to() {
    let fleet = fleet(
        vec![],
        vec![site("www", &["www.demo.test"])],
        vec![demo_zone()],
    );
    let zones = Zones::compile(&fleet, "ns1", 1).expect("it compiles");
    for (qname, stops, expected_links) in [
        ("www.demo.test", true, 1),
        ("a.cdn.demo.test", true, 1),
        ("alias.demo.test", true, 1),
    ] {
        let answer = resolve(&zones, &name(qname), rtype::A, stops);
        assert_eq!(answer.links.iter().flatten().count(), expected_links);
        assert_eq!(
            matches!(answer.outcome, Outcome::Incomplete),
            qname != "alias.demo.test",
            "{qname}: only a tailored end is left open"
        );
    }
    assert!(
        matches!(
            resolve(&zones, &name("www.cdn.test"), rtype::A, true).outcome,
            Outcome::Steered(_, 0)
        ),
        "asked directly it is answered"
    );
}

#[test]
fn a_redirection_makes_names_below_it_and_says_when_one_is_too_long() {
    let long = format!("{}.{}", "x".repeat(60), "y".repeat(60));
    let records = [
        format!("old DNAME {long}.{long}.example."),
        "short DNAME target".to_owned(),
        "target A 192.0.2.9".to_owned(),
        "a.target A 192.0.2.10".to_owned(),
    ];
    let records: Vec<&str> = records.iter().map(String::as_str).collect();
    let fleet = fleet(vec![], vec![], vec![zone("demo.test", &records)]);
    let zones = Zones::compile(&fleet, "ns1", 1).expect("it compiles");
    let made = ask(&zones, "a.short.demo.test", rtype::A);
    assert!(matches!(made.outcome, Outcome::Records(..)), "{made:?}");
    assert!(
        matches!(&made.links[0], Some(Link::Dname { target, .. }) if presentation(target) == "a.target.demo.test")
    );
    assert!(
        matches!(
            ask(&zones, "short.demo.test", rtype::A).outcome,
            Outcome::NoData
        ),
        "the owner itself is not redirected"
    );
    assert!(matches!(
        ask(
            &zones,
            &format!("{}.old.demo.test", "z".repeat(30)),
            rtype::A
        )
        .outcome,
        Outcome::NameTooLong
    ));
}

#[test]
fn contradictions_and_bad_records_are_all_told() {
    let records = [
        "c CNAME a",
        "c TXT b",
        "d CNAME a",
        "d CNAME b",
        "e A x",
        "f NOSUCH 1",
        "x.example. A 192.0.2.1",
        "@ SOA a b 1 2 3 4 5",
        "g CNAME www.cdn.test.",
    ];
    let fleet = fleet(vec![], vec![], vec![zone("demo.test", &records)]);
    let errors = Zones::compile(&fleet, "ns1", 1).expect_err("many faults");
    let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
    for part in [
        "c.demo.test: a CNAME stands beside",
        "d.demo.test: more than one CNAME",
        "an IPv4 address",
        "the type NOSUCH",
        "x.example: the name is not in this zone",
        "SOA is made by",
    ] {
        assert!(text.iter().any(|t| t.contains(part)), "{part} in {text:#?}");
    }
    assert_eq!(errors.len(), 6, "{text:#?}");
    let mut twice = fleet.clone();
    twice.name_servers.push(NameServer {
        name: "ns2".to_owned(),
        ..fleet.name_servers[0].clone()
    });
    twice.zones[0].name_servers = vec![0, 1];
    twice.zone_name_servers = vec![0, 1];
    assert_eq!(
        nearcast_gslb_dns::zone::check(&twice),
        errors,
        "each fault once, whoever serves the zone"
    );
    let mut unserved = fleet.clone();
    unserved.zones.clear();
    assert_eq!(
        Zones::compile(&unserved, "ns9", 1).expect_err("no zone"),
        [ZoneError::NothingServed("ns9".to_owned())]
    );
    let mut clash = unserved;
    clash.sites = vec![site("www", &[])];
    clash.zones = vec![zone("cdn.test", &["www A 192.0.2.1"])];
    let errors = Zones::compile(&clash, "ns1", 1).expect_err("a clash");
    assert!(errors[0].to_string().contains("steered name"), "{errors:?}");
}

#[test]
fn records_given_for_the_cdn_zone_join_it() {
    let fleet = fleet(
        vec![],
        vec![site("www", &[])],
        vec![zone(
            "cdn.test",
            &["status CNAME status.example.", "www TXT note"],
        )],
    );
    let zones = Zones::compile(&fleet, "ns1", 1).expect("it compiles");
    assert!(matches!(
        ask(&zones, "www.cdn.test", rtype::A).outcome,
        Outcome::Steered(..)
    ));
    assert!(matches!(
        ask(&zones, "www.cdn.test", rtype::TXT).outcome,
        Outcome::Records(..)
    ));
    assert_eq!(
        ask(&zones, "status.cdn.test", rtype::A)
            .links
            .iter()
            .flatten()
            .count(),
        1
    );
}

#[test]
fn ten_thousand_sites_and_zones_lead_each_to_its_own() {
    const COUNT: usize = 10_000;
    let hosts: Vec<[String; 3]> = (0..COUNT)
        .map(|n| {
            [
                format!("www.z{n}.test"),
                format!("z{n}.test"),
                format!("x.sub.z{n}.test"),
            ]
        })
        .collect();
    let sites = (0..COUNT)
        .map(|n| {
            site(
                &format!("s{n}"),
                &[&hosts[n][0], &hosts[n][1], &hosts[n][2]],
            )
        })
        .collect();
    let mut zones: Vec<_> = (0..COUNT)
        .map(|n| {
            zone(
                &format!("z{n}.test"),
                &["@ MX 10 mail", "mail A 192.0.2.1", "other TXT x"],
            )
        })
        .collect();
    // A deeper zone in every hundredth one, and one above them all.
    zones.extend(
        (0..COUNT)
            .step_by(100)
            .map(|n| zone(&format!("sub.z{n}.test"), &["y TXT x"])),
    );
    zones.push(zone("test", &["www A 192.0.2.2"]));
    let fleet = fleet(vec![], sites, zones);
    assert_eq!(nearcast_gslb_dns::zone::check(&fleet), []);
    let zones = Zones::compile(&fleet, "ns1", 7).expect("it compiles");
    assert_eq!(
        (zones.zone_count(), zones.serial()),
        (COUNT + COUNT / 100 + 2, 7)
    );
    for n in (0..COUNT)
        .step_by(37)
        .chain([0, 100, COUNT - 100, COUNT - 1])
    {
        for (qname, links) in [
            (format!("s{n}.cdn.test"), 0),
            (hosts[n][0].clone(), 1),
            (hosts[n][1].clone(), 0),
            (hosts[n][2].clone(), 1),
        ] {
            let answer = ask(&zones, &qname, rtype::A);
            assert!(
                matches!(answer.outcome, Outcome::Steered(_, site) if site == n),
                "{qname}: {answer:?}"
            );
            assert_eq!(answer.links.iter().flatten().count(), links, "{qname}");
        }
        let mail = ask(&zones, &format!("mail.z{n}.test"), rtype::A);
        assert!(matches!(mail.outcome, Outcome::Records(..)));
        assert_eq!(
            presentation(&mail.zone.expect("a zone").apex),
            format!("z{n}.test")
        );
        let deep = ask(&zones, &format!("nowhere.sub.z{n}.test"), rtype::A);
        assert_eq!(deep.outcome, Outcome::NxDomain);
        assert_eq!(
            presentation(&deep.zone.expect("a zone").apex),
            if n % 100 == 0 {
                format!("sub.z{n}.test")
            } else {
                format!("z{n}.test")
            }
        );
    }
}

#[test]
fn serials_only_grow() {
    for (previous, now, expected) in [
        (None, 1_800_000_000, 1_800_000_000),
        (Some(1), 1_800_000_000, 1_800_000_000),
        (Some(5), 5, 6),
        (Some(9), 5, 10),
        (Some(u32::MAX), 5, 5),
        (Some(u32::MAX), u32::MAX, 0),
    ] {
        let serial = next_serial(previous, now);
        assert_eq!(serial, expected, "{previous:?} at {now}");
        assert!(previous.is_none_or(|p| is_newer(serial, p)));
    }
    // RFC 1982 section 5.1's own examples, in 32 bits.
    for (a, b, expected) in [
        (1, 0, true),
        (44, 0, true),
        (0, 44, false),
        (u32::MAX, u32::MAX - 1, true),
        (0, u32::MAX, true),
        (7, 7, false),
        (1 << 31, 0, false),
    ] {
        assert_eq!(is_newer(a, b), expected, "{a} {b}");
    }
}

#[test]
fn records_that_resolvers_cannot_use_are_told() {
    let many: Vec<String> = (0..300)
        .map(|i| format!("big TXT \"{i:03}{}\"", "x".repeat(250)))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let rows: &[(&[&str], Option<&str>)] = &[
        (
            &["old DNAME new", "x.old A 192.0.2.1"],
            Some("x.old.demo.test: it is below a DNAME"),
        ),
        (
            &["old DNAME new", "old TXT beside", "x.new A 192.0.2.1"],
            None,
        ),
        (
            &["old DNAME new", "old NS ns.example."],
            Some("old.demo.test: a DNAME stands beside a delegation"),
        ),
        (
            &["*.w NS ns.example."],
            Some("*.w.demo.test: a wildcard cannot be delegated"),
        ),
        (
            &["sub NS ns.sub"],
            Some("sub.demo.test: a name server in this zone has no address"),
        ),
        (&["sub NS ns.sub", "ns.sub AAAA 2001:db8::1"], None),
        (
            &["sub NS ns", "other NS ns.sub", "ns.sub A 192.0.2.1"],
            Some("sub.demo.test: a name server in this zone has no address"),
        ),
        (
            &["sub NS ns", "ns CNAME host", "host A 192.0.2.1"],
            Some("sub.demo.test: a name server's host is a CNAME"),
        ),
        (&["sub NS ns.example."], None),
        // Who answers for a host below another cut is not known here.
        (&["sub NS ns.far", "far NS ns.example."], None),
        (
            &["@ MX 10 m", "m CNAME host", "host A 192.0.2.1"],
            Some("demo.test: a mail host is a CNAME"),
        ),
        (&["@ MX 10 m"], None),
        (&many, Some("big.demo.test: its TXT records do not fit")),
        (&many[..200], None),
    ];
    for (records, expected) in rows {
        let compiled = Zones::compile(
            &fleet(vec![], vec![], vec![zone("demo.test", records)]),
            "ns1",
            1,
        );
        match (compiled, expected) {
            (Ok(_), None) => {}
            (Err(errors), Some(part)) => {
                assert_eq!(errors.len(), 1, "{errors:?}");
                assert!(
                    errors[0].to_string().contains(part),
                    "{part} in {}",
                    errors[0]
                );
            }
            (result, _) => panic!("{:?}: {:?}", &records[..records.len().min(3)], result.err()),
        }
    }
}

#[test]
fn a_loop_of_aliases_has_each_once() {
    let records = [
        "a CNAME b",
        "b CNAME c",
        "c CNAME b",
        "self CNAME self",
        "d DNAME x.d",
    ];
    let fleet = fleet(vec![], vec![], vec![zone("demo.test", &records)]);
    let zones = Zones::compile(&fleet, "ns1", 1).expect("it compiles");
    for (qname, links) in [
        ("a.demo.test", 3),
        ("b.demo.test", 2),
        ("self.demo.test", 1),
    ] {
        let answer = ask(&zones, qname, rtype::A);
        assert_eq!(
            (answer.links.iter().flatten().count(), answer.outcome),
            (links, Outcome::Incomplete),
            "{qname}"
        );
    }
    // Each made name is another one; the limit ends it.
    let growing = ask(&zones, "q.d.demo.test", rtype::A);
    assert_eq!(
        growing.links.iter().flatten().count(),
        nearcast_gslb_dns::answer::LINKS_MAX
    );
}
