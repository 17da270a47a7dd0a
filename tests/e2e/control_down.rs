//! The control role is killed and everything goes on; what it acknowledged survives.

use std::time::Duration;

use nearcast_testing::{Origin, Reply};

use crate::lab::fleet::{CLIENTS, Fleet, Plan};
use crate::lab::tools::dig_addresses;
use crate::lab::wait;

#[test]
fn the_control_role_is_killed_and_everything_goes_on() {
    let mut fleet = Fleet::start(Plan::new());
    let edge = fleet.plan.edge(1, 0);
    fleet.head(edge, "/");
    let purge = fleet.operate(&["purge", "--url", "http://www.demo.test/before"]);
    assert!(
        purge.status.success(),
        "{}",
        String::from_utf8_lossy(&purge.stderr)
    );
    fleet.node("control").kill();

    assert!(
        fleet.head(edge, "/").contains("; hit"),
        "edges serve what they have"
    );
    std::fs::write(fleet.path("content/new.html"), "new\n").expect("a page can be written");
    assert_eq!(
        fleet.curl(edge, &[], "/new.html"),
        "new\n",
        "and fetch what they lack"
    );
    for (place, subnet) in CLIENTS {
        assert_eq!(
            dig_addresses(fleet.plan.dns(), "www.demo.test", subnet).len(),
            2,
            "{place} is steered"
        );
    }
    // Failover needs no control either.
    fleet.node("ams-1").kill();
    let dead = fleet.plan.edge(0, 0).to_string();
    wait::until(
        "the dead edge to leave the answers",
        Duration::from_secs(10),
        || {
            let found = dig_addresses(fleet.plan.dns(), "www.cdn.test", CLIENTS[0].1);
            if found.contains(&dead) {
                Err(format!("{found:?}"))
            } else {
                Ok(())
            }
        },
    );
    // An edge starts, and serves, while control is away.
    fleet.start_node("edge", "ams-1");
    wait::until(
        "the edge to serve without control",
        Duration::from_secs(20),
        || {
            let found = dig_addresses(fleet.plan.dns(), "www.cdn.test", CLIENTS[0].1);
            if found.contains(&dead) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        },
    );
    let refused = fleet.operate(&["purge", "--all", "--yes"]);
    assert_eq!(
        refused.status.code(),
        Some(69),
        "a purge says plainly that control does not answer"
    );

    fleet.start_node("control", "control");
    let ip = fleet.plan.block.host(70);
    fleet.wait_ready("control", ip);
    let purges = crate::lab::tools::curl(&[&format!("http://{}/v1/purges", fleet.plan.control())]);
    assert!(
        purges.contains("http://www.demo.test/before"),
        "an acknowledged purge outlives a kill: {purges}"
    );
    let next = fleet.operate(&["purge", "--site", "www", "--json"]);
    assert!(
        String::from_utf8_lossy(&next.stdout).contains("\"complete\": true")
            || String::from_utf8_lossy(&next.stdout).contains("\"complete\":true")
    );
}

#[test]
fn an_edge_that_starts_again_while_control_and_the_origin_are_down_serves_what_it_has() {
    let mut plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    plan.site = "cache.stale_if_error = \"1d\"\n".to_owned();
    let origin = Origin::start_at(plan.origin_address(), |_| {
        Reply::ok("kept", "max-age=600").field("ETag", "\"v\"")
    });
    plan.origin = Some(origin.url());
    let mut fleet = Fleet::start(plan);
    let edge = fleet.plan.edge(0, 0);
    for path in ["/kept", "/purged"] {
        assert!(fleet.curl(edge, &[], path).contains("kept"));
    }
    let purge = fleet.operate(&["purge", "--url", "http://www.demo.test/purged"]);
    assert!(
        purge.status.success(),
        "{}",
        String::from_utf8_lossy(&purge.stderr)
    );
    // An orderly end: what is stored is on disk.
    fleet.node("ams-1").signal("TERM");
    fleet.node("ams-1").wait(Duration::from_secs(30));
    fleet.node("control").kill();
    drop(origin);
    fleet.start_node("edge", "ams-1");
    fleet.wait_ready("ams-1", edge);
    let kept = fleet.curl(edge, &["-i"], "/kept").to_lowercase();
    assert!(
        kept.starts_with("http/1.1 200")
            && kept.contains("detail=unsynced")
            && kept.ends_with("kept"),
        "{kept}"
    );
    let purged = fleet.curl(edge, &["-i"], "/purged").to_lowercase();
    assert!(
        purged.starts_with("http/1.1 50") && !purged.contains("unsynced"),
        "a purge that it knows of holds: {purged}"
    );
    let ready = crate::lab::tools::curl(&[&format!("http://{edge}:9100/ready")]);
    assert!(ready.starts_with("ready; "), "{ready}");
    fleet.start_node("control", "control");
    wait::until("the edge to catch up", Duration::from_secs(20), || {
        let ready = crate::lab::tools::curl(&[&format!("http://{edge}:9100/ready")]);
        if ready == "ready\n" {
            Ok(())
        } else {
            Err(ready)
        }
    });
    let head = fleet.head(edge, "/kept");
    assert!(
        head.contains("; hit") && !head.contains("unsynced"),
        "{head}"
    );
}
