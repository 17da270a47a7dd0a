//! Every role drains: told to end, it finishes what it has begun, takes nothing new and ends with 0.

use std::process::Command;
use std::time::Duration;

use crate::lab::fleet::{CLIENTS, Fleet, Plan};
use crate::lab::http::{Origin, Reply};
use crate::lab::process::Process;
use crate::lab::tools::dig_addresses;
use crate::lab::wait;

/// The roles' own limit is 10 s.
const DRAINED: Duration = Duration::from_secs(15);

#[test]
fn an_edge_leaves_the_answers_and_finishes_the_transfer_it_has_begun() {
    let mut plan = Plan { clusters: 1, nodes: 2, ..Plan::new() };
    let origin =
        Origin::start(plan.origin_address(), |_| Reply::ok(vec![b'x'; 300_000], "max-age=60").slow(10, Duration::from_millis(300)));
    plan.origin = Some(origin.url());
    let mut fleet = Fleet::start(plan);
    let edge = fleet.plan.edge(0, 0);
    let mut command = Command::new("curl");
    command.args(["-sS", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", "-H", "Host: www.demo.test"]);
    command.arg(format!("http://{edge}:8080/long"));
    let mut transfer = Process::start("curl", &fleet.path(""), command);
    wait::until("the transfer to begin", Duration::from_secs(10), || if origin.count("/long") == 1 { Ok(()) } else { Err("not yet") });
    fleet.node("ams-1").signal("TERM");
    wait::until("the draining edge to leave the answers", Duration::from_secs(10), || {
        let found = dig_addresses(fleet.plan.dns(), "www.cdn.test", CLIENTS[0].1);
        if found == [fleet.plan.edge(0, 1).to_string()] { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert!(transfer.wait(DRAINED).success());
    assert_eq!(transfer.output(), "200 300000", "the transfer was finished");
    assert!(fleet.node("ams-1").wait(DRAINED).success(), "and the edge ended well");
}

#[test]
fn every_role_ends_well_when_told_to() {
    let mut fleet = Fleet::start(Plan { nodes: 1, clusters: 1, ..Plan::new() });
    fleet.head(fleet.plan.edge(0, 0), "/");
    for name in ["ams-1", "ns1", "origin", "control"] {
        fleet.node(name).signal("TERM");
        let status = fleet.node(name).wait(DRAINED);
        assert!(status.success(), "{name} ended with {status}");
    }
}
