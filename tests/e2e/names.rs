//! What names the name servers answer: `explain` says what dig gets, serials are the same
//! everywhere, and nothing that a fleet file names keeps a name server down.

use std::net::SocketAddr;
use std::time::Duration;

use crate::lab::fleet::{Fleet, Plan};
use crate::lab::process::{Process, nearcast, run};
use crate::lab::tools::{curl, dig};
use crate::lab::wait;

const SOON: Duration = Duration::from_secs(30);

/// Response code and sorted records (`TYPE data`) of an answer that dig shows.
fn dug(at: SocketAddr, arguments: &[&str]) -> (String, Vec<String>) {
    let text = dig(
        at,
        &[
            &["+noall", "+comments", "+answer", "-b", "127.0.0.1"],
            arguments,
        ]
        .concat(),
    );
    let status = text
        .split("status: ")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .unwrap_or_else(|| panic!("no status in {text}"));
    let answers = text
        .lines()
        .filter(|line| !line.starts_with(';') && !line.is_empty());
    let mut records: Vec<String> = answers
        .map(|line| {
            line.split_whitespace()
                .skip(3)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    records.sort();
    (status.to_owned(), records)
}

/// The same of what `explain` says.
fn explained(fleet: &Fleet, arguments: &[&str]) -> (String, Vec<String>) {
    let output = fleet.operate(&[&["explain", "--json"], arguments].concat());
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            told.contains("the answer is REFUSED"),
            "{arguments:?}: {told}"
        );
        return ("REFUSED".to_owned(), Vec::new());
    }
    let answer: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("--json prints JSON");
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let shown = answer["dns"]["records"].as_array().expect("a list").iter();
    let mut records: Vec<String> = shown
        .map(|r| format!("{} {}", word(&r["type"]), word(&r["data"])))
        .collect();
    records.sort();
    (word(&answer["dns"]["status"]), records)
}

#[test]
fn explain_says_what_dig_gets_for_each_name_client_and_type() {
    let mut plan = Plan::new();
    plan.hosts = vec!["www.demo.test", "auto.more.test", "more.test"];
    plan.more = "\n[[site]]\nname = \"any\"\nhosts = [\"*\"]\norigin = \"http://127.0.0.1:1\"\nclusters = [\"sin\"]\n\
                 [[zone]]\nname = \"more.test\"\nrecords = [\"mail A 192.0.2.25\", \"mail AAAA 2001:db8::25\", \"alias CNAME mail\", \
                 \"far CNAME www.example.org.\", \"sub NS ns.example.org.\", \"*.wild TXT \\\"any thing\\\"\", \"old DNAME wild\", \"@ MX 10 mail\"]\n"
        .to_owned();
    let fleet = Fleet::start(plan);
    let at = fleet.plan.dns();
    let names = [
        "www.cdn.test",
        "any.cdn.test",
        "auto.more.test",
        "more.test",
        "mail.more.test",
        "alias.more.test",
        "far.more.test",
        "x.sub.more.test",
        "x.wild.more.test",
        "x.old.more.test",
        "nowhere.more.test",
        "www.example.net",
    ];
    // As a resolver at 127.0.0.1 asks: with a client subnet, with one that says nothing, and
    // without.
    let clients: [(&[&str], &[&str]); 5] = [
        (
            &["+subnet=203.0.113.9/32"],
            &["--client", "203.0.113.9", "--resolver", "127.0.0.1"],
        ),
        (&["+subnet=192.0.2.0/25"], &["--client", "192.0.2.0/25"]),
        (&["+subnet=2001:db8::/48"], &["--client", "2001:db8::/48"]),
        (
            &["+subnet=0.0.0.0/0"],
            &["--client", "0.0.0.0/0", "--resolver", "127.0.0.1"],
        ),
        (&[], &["--resolver", "127.0.0.1"]),
    ];
    for (n, name) in names.iter().enumerate() {
        for (t, rtype) in ["A", "AAAA", "TXT", "MX", "ANY"].iter().enumerate() {
            // Each name with each type, and addresses for each client.
            for (of_dig, of_explain) in clients
                .iter()
                .skip(if t == 0 { 0 } else { (n + t) % clients.len() })
                .take(if t == 0 { clients.len() } else { 1 })
            {
                let found = dug(at, &[of_dig, &[*name, *rtype][..]].concat());
                let told = explained(
                    &fleet,
                    &[&[*name, "--type", *rtype][..], of_explain].concat(),
                );
                assert_eq!(told, found, "{name} {rtype} {of_dig:?}");
            }
        }
    }
    let people = |arguments: &[&str]| {
        let output = fleet.operate(&[&["explain"], arguments].concat());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let told = people(&[
        "www.demo.test",
        "--client",
        "203.0.113.0/24",
        "--resolver",
        "192.0.2.53",
    ]);
    for words in [
        "client        203.0.113.0/24",
        "resolver      192.0.2.53",
        "prefix        203.0.113.0/24",
        "aliases       www.cdn.test.",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let told = people(&["nowhere.more.test", "--resolver", "127.0.0.1"]);
    assert!(
        told.contains("there is no name nowhere.more.test in the zone more.test")
            && told.contains("NXDOMAIN"),
        "{told}"
    );
    let neither = fleet.operate(&["explain", "www.demo.test"]);
    assert!(!neither.status.success());
}

fn serial(at: SocketAddr, zone: &str) -> u32 {
    dig(at, &[zone, "SOA", "+short"])
        .split(' ')
        .nth(2)
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| panic!("no serial of {zone} at {at}"))
}

fn apply(fleet: &Fleet, text: &str) {
    let path = fleet.path("next.toml");
    std::fs::write(&path, text).expect("the file can be written");
    let applied = fleet.operate(&["apply", &path.display().to_string()]);
    assert!(
        applied.status.success(),
        "{}",
        String::from_utf8_lossy(&applied.stderr)
    );
}

#[test]
fn every_name_server_has_the_serial_of_the_revision_and_keeps_it_over_a_restart() {
    let mut plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let second = plan.block.host(54);
    plan.more = format!(
        "\n[[name_server]]\nname = \"ns2\"\nlisten = \"{second}:5300\"\nadmin = \"{second}:9100\"\n"
    );
    let mut fleet = Fleet::start(plan);
    let servers = [fleet.plan.dns(), SocketAddr::from((second, 5300))];
    let mut before = serial(servers[0], "cdn.test");
    // Two revisions, most likely of one second; the other name server has seen neither come.
    for mark in ["first", "second"] {
        apply(
            &fleet,
            &fleet.plan.text().replace(
                "report_interval",
                &format!("hostmaster = \"{mark}@cdn.test\"\nreport_interval"),
            ),
        );
        wait::until(&format!("the {mark} revision"), SOON, || {
            let soa = dig(servers[0], &["cdn.test", "SOA", "+short"]);
            if soa.contains(mark) { Ok(()) } else { Err(soa) }
        });
        let now = serial(servers[0], "cdn.test");
        assert!(now > before, "{mark}: {before} then {now}");
        before = now;
    }
    fleet.start_node("gslb-dns", "ns2");
    fleet.wait_ready("ns2", second);
    assert_eq!(
        serial(servers[1], "cdn.test"),
        before,
        "a name server that starts later"
    );
    assert_eq!(serial(servers[1], "demo.test"), before, "in each zone");
    for control_is_up in [true, false] {
        if !control_is_up {
            fleet.node("control").kill();
        }
        fleet.node("ns1").kill();
        fleet.start_node("gslb-dns", "ns1");
        fleet.wait_ready("ns1", fleet.plan.block.host(53));
        assert_eq!(
            serial(servers[0], "cdn.test"),
            before,
            "over a restart, control there: {control_is_up}"
        );
    }
}

#[test]
fn a_database_that_is_not_there_keeps_no_name_server_down() {
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let good = plan.text();
    let mut fleet = Fleet::start(plan);
    let metrics = format!("http://{}:9100/metrics", fleet.plan.block.host(53));
    let failed = || {
        curl(&[&metrics])
            .lines()
            .any(|line| line == "nearcast_dns_geo_db_failed 1")
    };
    // It comes with a revision, and then the name server is started again.
    apply(
        &fleet,
        &(good.clone() + "\n[steering]\ngeo_db = \"gone.mmdb\"\n"),
    );
    wait::until("the revision with the database", SOON, || {
        if failed() { Ok(()) } else { Err("not failed") }
    });
    fleet.node("ns1").kill();
    fleet.start_node("gslb-dns", "ns1");
    fleet.wait_ready("ns1", fleet.plan.block.host(53));
    assert!(failed());
    assert!(
        fleet
            .node("ns1")
            .output()
            .contains("built-in country table"),
        "it is told"
    );
    assert!(
        dig(fleet.plan.dns(), &["www.cdn.test", "A", "+short"]).contains("127."),
        "it answers"
    );
    // The next revision heals it.
    apply(&fleet, &good);
    wait::until("the revision without it", SOON, || {
        if failed() { Err("failed") } else { Ok(()) }
    });

    // The same in the file of a first start, which `check` warns of.
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let file = directory.path().join("nearcast.toml");
    let text = plan
        .text()
        .replace("[control]", "[steering]\ngeo_db = \"gone.mmdb\"\n[control]");
    std::fs::write(&file, text).expect("the file can be written");
    let checked = nearcast()
        .arg("check")
        .arg(&file)
        .output()
        .expect("the binary runs");
    let told = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(
        checked.status.success()
            && told.contains("warning: steering.geo_db")
            && told.contains("gone.mmdb"),
        "{told}"
    );
    let mut command = nearcast();
    command.args(["gslb-dns", "--fleet"]).arg(&file);
    let _server = Process::start("ns1", directory.path(), command);
    wait::until("an answer", SOON, || {
        let output = std::process::Command::new("dig")
            .args([
                &format!("@{}", plan.dns().ip()),
                "-p",
                "5300",
                "www.cdn.test",
                "+short",
                "+tries=1",
                "+time=1",
            ])
            .output()
            .expect("dig runs");
        if output.stdout.starts_with(b"127.") {
            Ok(())
        } else {
            Err("none")
        }
    });
    assert!(run("cat", [directory.path().join("ns1.log")]).contains("built-in country table"));
}
