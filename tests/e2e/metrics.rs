//! Metrics, rules and alerts as Prometheus' own tools judge them.

use std::process::{Command, Stdio};

use crate::lab::fleet::{Fleet, Plan};
use crate::lab::process::run;
use crate::lab::tools::{curl, dig_addresses};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// `promtool check metrics` on an exposition; its findings are failures.
fn lint(node: &str, text: &str) {
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs; tests/run installs it");
    std::io::Write::write_all(&mut tool.stdin.take().expect("a pipe"), text.as_bytes())
        .expect("promtool reads");
    let output = tool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.trim().is_empty(),
        "{node}: {said}"
    );
}

#[test]
fn every_role_exports_metrics_that_promtool_accepts() {
    let fleet = Fleet::start(Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    });
    for _ in 0..3 {
        fleet.head(fleet.plan.edge(0, 0), "/");
    }
    dig_addresses(fleet.plan.dns(), "www.cdn.test", "198.51.100.0/24");
    let metrics = |ip: std::net::Ipv4Addr| curl(&[&format!("http://{ip}:9100/metrics")]);
    let edge = metrics(fleet.plan.edge(0, 0));
    let dns = metrics(fleet.plan.block.host(53));
    for (node, text) in [
        ("edge", &edge),
        ("gslb-dns", &dns),
        ("control", &metrics(fleet.plan.block.host(70))),
        ("origin", &metrics(fleet.plan.block.host(80))),
    ] {
        assert!(text.contains("# HELP nearcast_"), "{node}: {text}");
        lint(node, text);
    }
    for line in [
        "nearcast_edge_requests_total{cache_status=\"miss\",site=\"www\",status_class=\"2xx\"} 1",
        "nearcast_edge_requests_total{cache_status=\"hit\",site=\"www\",status_class=\"2xx\"} 2",
        "nearcast_edge_origin_bytes_total{site=\"www\"} 15",
        "nearcast_edge_response_bytes_total{cache_status=\"hit\",site=\"www\"} 30",
    ] {
        assert!(edge.lines().any(|l| l == line), "{line} is not in\n{edge}");
    }
    assert!(
        edge.contains("nearcast_edge_request_seconds_bucket{"),
        "{edge}"
    );
    assert!(
        dns.lines()
            .any(|l| l.starts_with("nearcast_dns_queries_total{")
                && l.contains("qtype=\"A\"")
                && l.contains("transport=\"udp\"")),
        "{dns}"
    );
    assert!(
        dns.lines()
            .any(|l| l.starts_with("nearcast_dns_selections_total{")
                && l.contains("cluster=\"ams\"")
                && l.contains("reason=\"geo\"")),
        "{dns}"
    );
}

#[test]
fn promtool_accepts_the_shipped_configuration_rules_and_alerts() {
    run(
        "promtool",
        [
            "check",
            "config",
            &format!("{DEPLOY}/prometheus/prometheus.yml"),
        ],
    );
    run(
        "promtool",
        [
            "check",
            "rules",
            &format!("{DEPLOY}/prometheus/rules.yml"),
            &format!("{DEPLOY}/prometheus/alerts.yml"),
        ],
    );
    run(
        "promtool",
        ["test", "rules", &format!("{DEPLOY}/prometheus/tests.yml")],
    );
}
