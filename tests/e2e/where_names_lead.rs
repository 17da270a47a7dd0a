//! `nearcast check` of a fleet that orders certificates: whether their names lead to the fleet, asked
//! of a real name server (Unbound).

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::lab::addresses::Block;
use crate::lab::process::{Process, nearcast};
use crate::lab::tools::dig;
use crate::lab::wait;

const SOON: Duration = Duration::from_secs(60);

/// A fleet at 192.0.2.0/24 whose names this resolver is asked for.
fn fleet_file(resolver: SocketAddr) -> String {
    format!(
        r#"[fleet]
zone = "cdn.test"
node_key = "a key that only this test knows"
[control]
listen = "127.0.0.1:7700"
[acme]
terms_agreed = true
resolver = "{resolver}"
[[certificate]]
hosts = ["*.shop.test"]
[[certificate]]
hosts = ["www.alias.test"]
challenge = "dns"
[[certificate]]
hosts = ["www.lost.test"]
challenge = "dns"
[[name_server]]
name = "ns1"
listen = "127.0.0.53:53"
[[zone]]
name = "shop.test"
records = ["@ A 192.0.2.1"]
[[cluster]]
name = "ams"
place = {{ latitude = 52, longitude = 5 }}
[[cluster.node]]
name = "ams-1"
address = "192.0.2.1"
[[site]]
name = "www"
hosts = ["www.here.test", "www.there.test", "www.nowhere.test", "apex.test", "www.alias.test", "www.lost.test", "a.shop.test"]
origin = "http://192.0.2.80"
"#
    )
}

fn unbound(block: Block, directory: &std::path::Path) -> (Process, SocketAddr) {
    let address = SocketAddr::from((block.host(53), 5353));
    let zone = |zone: &str, server: &str| {
        let soa = format!("{zone}. SOA {server}. h.{zone}. 1 60 60 60 60");
        format!("  local-zone: \"{zone}.\" static\n  local-data: \"{soa}\"\n")
    };
    let records = [
        "www.here.test. A 192.0.2.1",
        "www.there.test. A 203.0.113.9",
        "apex.test. A 203.0.113.9",
        "_acme-challenge.www.alias.test. CNAME www.alias.test._acme-challenge.cdn.test.",
    ];
    let records = records.map(|record| format!("  local-data: \"{record}\"\n"));
    let zones = ["here", "there", "nowhere", "apex", "alias", "lost", "shop"];
    let zones = zones.map(|name| zone(&format!("{name}.test"), "ns1.other.test"));
    let config = format!(
        "server:\n  interface: {}@{}\n  access-control: 127.0.0.0/8 allow\n  do-daemonize: no\n  \
         use-syslog: no\n  username: \"\"\n  chroot: \"\"\n  pidfile: \"\"\n{}{}{}\
         remote-control:\n  control-enable: no\n",
        address.ip(),
        address.port(),
        zones.concat(),
        zone("cdn.test", "ns1.cdn.test"),
        records.concat(),
    );
    let path = directory.join("unbound.conf");
    std::fs::write(&path, config).expect("written");
    let mut command = Command::new("/usr/sbin/unbound");
    command.arg("-c").arg(&path);
    let unbound = Process::start("unbound", directory, command);
    wait::until("unbound", SOON, || {
        let bound = std::net::TcpStream::connect(address);
        bound.map(drop)
    });
    assert!(dig(address, &["www.here.test", "+short"]).contains("192.0.2.1"));
    (unbound, address)
}

fn check(directory: &std::path::Path, text: &str, more: &[&str]) -> (Output, String) {
    let file = directory.join("nearcast.toml");
    std::fs::write(&file, text).expect("written");
    let output = nearcast()
        .arg("check")
        .args(more)
        .arg(&file)
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

#[test]
fn names_that_lead_elsewhere_are_warned_of_with_the_record_to_write() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let (_unbound, resolver) = unbound(Block::take(), directory.path());
    let text = fleet_file(resolver);
    let (output, said) = check(directory.path(), &text, &[]);
    assert!(output.status.success(), "{said}");
    for words in [
        "the certificate of *.shop.test: _acme-challenge.shop.test is answered by ns1.other.test (zone shop.test); delegate the zone: `shop.test. NS ns1.cdn.test.`",
        "the certificate of www.lost.test: _acme-challenge.www.lost.test is answered by ns1.other.test",
        "create the record `_acme-challenge.www.lost.test. CNAME www.lost.test._acme-challenge.cdn.test.`",
        "the certificate of www.there.test: www.there.test leads to 203.0.113.9, and not to 192.0.2.1; create the record `www.there.test. CNAME www.cdn.test.`",
        "the certificate of www.nowhere.test: www.nowhere.test has no address",
        "the certificate of apex.test: apex.test leads to 203.0.113.9, and not to 192.0.2.1; create the record `apex.test. A 192.0.2.1` (apex.test is the apex of its zone and can have no CNAME), or serve its zone here with a [[zone]]",
    ] {
        assert!(said.contains(words), "{words} in:\n{said}");
    }
    for good in [
        "of www.here.test",
        "of www.alias.test",
        "of a.shop.test",
        "could not ask",
    ] {
        assert!(!said.contains(good), "{good} in:\n{said}");
    }
    // Where the name is written.
    let line = text.lines().position(|line| line.contains("*.shop.test"));
    let place = format!("nearcast.toml:{}:", line.expect("there") + 1);
    assert!(said.contains(&place), "{place} in:\n{said}");

    let (output, _) = check(directory.path(), &text, &["--json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let warnings = found["warnings"].as_array().expect("a list");
    let is_of_there = |warning: &&serde_json::Value| {
        let problem = warning["problem"].as_str().expect("text");
        problem.starts_with("the certificate of www.there.test: ")
    };
    assert_eq!(warnings.iter().filter(is_of_there).count(), 1, "{found}");
    assert_eq!(found["unasked"], serde_json::Value::Null);
}

#[test]
fn a_machine_without_a_resolver_is_told_so_in_one_line() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    // A socket that never answers.
    let silent = std::net::UdpSocket::bind((Block::take().host(53), 0)).expect("a free port");
    let text = fleet_file(silent.local_addr().expect("bound"));
    let began = Instant::now();
    let (output, said) = check(directory.path(), &text, &[]);
    assert!(output.status.success(), "{said}");
    assert!(began.elapsed() < Duration::from_secs(30), "it is bounded");
    assert_eq!(said.matches("could not ask").count(), 1, "{said}");
    assert!(
        said.contains("could not ask where 7 names of certificates lead: "),
        "{said}"
    );
    assert!(!said.contains("the certificate of"), "{said}");
    let (output, _) = check(directory.path(), &text, &["--json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(
        found["unasked"]
            .as_str()
            .is_some_and(|why| why.contains("7 names"))
    );
}
