//! DNS gives each region its own cluster, with dig and kdig, by UDP and TCP.

use crate::lab::fleet::{CLIENTS, Fleet, Plan};
use crate::lab::tools::{dig, dig_addresses, kdig};

#[test]
fn three_regions_get_three_clusters() {
    let fleet = Fleet::start(Plan::new());
    let plan = &fleet.plan;
    for (c, (place, subnet)) in CLIENTS.iter().enumerate() {
        let mut expected = vec![plan.edge(c, 0).to_string(), plan.edge(c, 1).to_string()];
        expected.sort();
        for transport in ["+notcp", "+tcp"] {
            let text = dig(
                plan.dns(),
                &[
                    "www.demo.test",
                    "A",
                    transport,
                    &format!("+subnet={subnet}"),
                ],
            );
            assert!(text.contains("status: NOERROR"), "{text}");
            assert!(
                text.contains("www.demo.test.") && text.contains("CNAME\twww.cdn.test."),
                "{text}"
            );
            let mut found = dig_addresses(plan.dns(), "www.cdn.test", subnet);
            found.sort();
            assert_eq!(found, expected, "clients in {subnet} belong to {place}");
        }
    }
}

#[test]
fn a_steered_answer_says_how_far_it_holds() {
    let fleet = Fleet::start(Plan::new());
    for (_, subnet) in CLIENTS {
        let text = dig(
            fleet.plan.dns(),
            &["www.cdn.test", "A", &format!("+subnet={subnet}")],
        );
        let scope = text
            .lines()
            .find_map(|l| l.split("CLIENT-SUBNET: ").nth(1))
            .unwrap_or_else(|| panic!("no client subnet in\n{text}"));
        let (network, scope) = scope.trim().rsplit_once('/').expect("address/source/scope");
        assert_eq!(
            network, subnet,
            "the client's network comes back as it was sent"
        );
        // The registries give these documentation networks to nobody, so no wider prefix shares
        // their place.
        assert_eq!(scope, "24", "{text}");
        let tcp = kdig(
            fleet.plan.dns(),
            &["+tcp", &format!("+subnet={subnet}"), "www.cdn.test", "A"],
        );
        assert!(
            tcp.contains("NOERROR") && tcp.contains(&format!("{subnet}/24")),
            "{tcp}"
        );
    }
}

#[test]
fn nodes_of_a_cluster_come_in_rotation() {
    let fleet = Fleet::start(Plan::new());
    let first: std::collections::BTreeSet<String> = (0..40)
        .filter_map(|_| {
            dig_addresses(fleet.plan.dns(), "www.cdn.test", CLIENTS[0].1)
                .into_iter()
                .next()
        })
        .collect();
    assert_eq!(
        first.len(),
        2,
        "over 40 answers both edges are first at times: {first:?}"
    );
}

#[test]
fn the_customers_zone_has_mail_and_text_and_knows_what_is_missing() {
    let fleet = Fleet::start(Plan::new());
    let at = fleet.plan.dns();
    assert_eq!(
        dig(at, &["demo.test", "MX", "+short"]).trim(),
        "10 mail.demo.test."
    );
    assert_eq!(
        dig(at, &["demo.test", "TXT", "+short"]).trim(),
        "\"v=spf1 mx -all\""
    );
    let nodata = dig(at, &["mail.demo.test", "AAAA"]);
    assert!(
        nodata.contains("status: NOERROR")
            && nodata.contains("ANSWER: 0")
            && nodata.contains("SOA"),
        "{nodata}"
    );
    let missing = dig(at, &["nowhere.demo.test", "A"]);
    assert!(
        missing.contains("status: NXDOMAIN") && missing.contains("SOA"),
        "{missing}"
    );
    let foreign = dig(at, &["example.com", "A"]);
    assert!(
        foreign.contains("status: REFUSED") && !foreign.contains(" ra"),
        "{foreign}"
    );
}

#[test]
fn weighted_and_round_robin_give_every_cluster_to_one_client() {
    for policy in ["weighted", "round-robin"] {
        let mut plan = Plan::new();
        plan.steering = policy;
        plan.nodes = 1;
        let fleet = Fleet::start(plan);
        let found: std::collections::BTreeSet<String> = (0..60)
            .flat_map(|_| dig_addresses(fleet.plan.dns(), "www.cdn.test", CLIENTS[0].1))
            .collect();
        assert_eq!(found.len(), 3, "{policy}: {found:?}");
    }
}

#[test]
fn explain_names_the_cluster_that_dns_gives() {
    let fleet = Fleet::start(Plan::new());
    let output = fleet.operate(&[
        "explain",
        "www.demo.test",
        "--client",
        "203.0.113.9",
        "--json",
    ]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answer: serde_json::Value = serde_json::from_str(&text).expect("--json prints JSON");
    assert_eq!(answer["chosen"]["cluster"], "nyc", "{text}");
    let people = fleet.operate(&["explain", "www.demo.test", "--client", "203.0.113.9"]);
    let people = String::from_utf8_lossy(&people.stdout).into_owned();
    for word in ["nyc", "ams", "sin", "km"] {
        assert!(people.contains(word), "{people}");
    }
}

#[test]
fn a_fleet_file_with_mistakes_changes_nothing_and_says_where_they_are() {
    let mut fleet = Fleet::start(Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    });
    let (dns, good, file) = (
        fleet.plan.dns(),
        fleet.plan.text(),
        fleet.path("nearcast.toml"),
    );
    let limit = std::time::Duration::from_secs(20);
    let mail = || {
        dig(dns, &["mail.demo.test", "A", "+short"])
            .trim()
            .to_owned()
    };
    let changes = [
        // A mistake that every role sees, with its line, and one that only a name server does.
        (
            good.replace("mail A 192.0.2.25", "mail A 192.0.2.26")
                .replace("steering = \"geo\"", "steering = \"nearest\""),
            "nearest",
        ),
        (
            good.replace(
                "\"mail A 192.0.2.25\"",
                "\"mail A 192.0.2.26\", \"sub NS ns.sub\"",
            ),
            "sub.demo.test: a name server in this zone has no address",
        ),
    ];
    for (text, words) in &changes {
        std::fs::write(&file, text).expect("the file can be written");
        fleet.node("ns1").signal("HUP");
        fleet.node("ns1").wait_for_output(words, limit);
        assert_eq!(mail(), "192.0.2.25", "what was served stays");
    }
    let line = changes[0]
        .0
        .lines()
        .position(|l| l.contains("nearest"))
        .expect("it was put there")
        + 1;
    let told = fleet.node("ns1").output();
    assert!(told.contains(&format!("nearcast.toml:{line}:")), "{told}");
    std::fs::write(
        &file,
        good.replace("mail A 192.0.2.25", "mail A 192.0.2.27"),
    )
    .expect("the file can be written");
    fleet.node("ns1").signal("HUP");
    crate::lab::wait::until("the new record", limit, || {
        if mail() == "192.0.2.27" {
            Ok(())
        } else {
            Err(mail())
        }
    });
}

#[test]
fn a_name_server_takes_all_the_descriptors_it_may() {
    let mut fleet = Fleet::start(Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    });
    fleet.node("ns1").kill();
    let mut command = std::process::Command::new("prlimit");
    command.args([
        "--nofile=256:4096",
        env!("CARGO_BIN_EXE_nearcast"),
        "gslb-dns",
        "--node",
        "ns1",
        "--fleet",
    ]);
    command.arg(fleet.path("nearcast.toml"));
    let node = crate::lab::process::Process::start("ns1-limited", &fleet.path(""), command);
    fleet.nodes.insert("ns1".to_owned(), node);
    fleet.wait_ready("ns1", fleet.plan.block.host(53));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", fleet.node("ns1").pid()))
        .expect("it runs");
    let files = limits
        .lines()
        .find(|l| l.starts_with("Max open files"))
        .expect("such a limit");
    assert_eq!(
        files.split_whitespace().nth(3),
        Some("4096"),
        "thousands of TCP connections need as many: {files}"
    );
}
