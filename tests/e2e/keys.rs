//! Each node has its own key: what it opens, what a wrong one leads to, and how one is revoked.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use crate::lab::fleet::{Fleet, Plan};
use crate::lab::tools;
use crate::lab::wait;

const SOON: Duration = Duration::from_secs(20);

fn events(fleet: &Fleet) -> String {
    tools::curl(&[&format!("http://{}/v1/events/log", fleet.plan.control())])
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).trim().to_owned()
}

#[test]
fn a_fleet_of_nodes_with_their_own_keys_serves_purges_and_revokes() {
    let mut fleet = Fleet::start(Plan {
        clusters: 1,
        own_keys: true,
        ..Plan::new()
    });
    let purge =
        |fleet: &Fleet| fleet.operate(&["purge", "--site", "www", "--wait", "10s", "--json"]);
    assert!(
        purge(&fleet).status.success(),
        "every edge confirms under its own key"
    );
    assert!(
        !events(&fleet).contains("key_refused"),
        "{}",
        events(&fleet)
    );
    for name in ["ams-1", "ns1"] {
        assert!(
            !fleet.node(name).output().contains("refused"),
            "{}",
            fleet.node(name).output()
        );
    }

    // The key of one node says nothing for another.
    let key = text(&fleet.operate(&["key", "ams-1"]).stdout);
    let shown = key.rsplit_once('.').expect("five parts").0;
    let ask = |fleet: &Fleet, key: &str, node: &str| {
        let url = format!(
            "http://{}/v1/journal?after=0&node={node}",
            fleet.plan.control()
        );
        tools::curl(&[
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-H",
            &format!("Authorization: Bearer {key}"),
            &url,
        ])
    };
    let root = std::fs::read_to_string(fleet.path("fleet.key")).expect("the fleet's key");
    assert_eq!(
        [
            ask(&fleet, shown, "ams-1"),
            ask(&fleet, shown, "ams-2"),
            ask(&fleet, root.trim(), "ams-1")
        ],
        ["200", "403", "401"]
    );

    // A former key is refused, by name, and the one that fits is taken without a restart.
    let changed = std::fs::read_to_string(fleet.path("nearcast.toml")).expect("the fleet file");
    let changed = changed.replace(
        "name = \"ams-1\"\n",
        "name = \"ams-1\"\nkey_generation = 2\n",
    );
    std::fs::write(fleet.path("nearcast.toml"), changed).expect("written");
    let applied = fleet.operate(&["apply", &fleet.path("nearcast.toml").to_string_lossy()]);
    assert!(applied.status.success(), "{}", text(&applied.stderr));
    wait::until("the former key to be refused", SOON, || {
        let events = events(&fleet);
        if events.contains("ams-1 is refused: the key of ams-1 is of generation 1") {
            Ok(())
        } else {
            Err(events)
        }
    });
    assert!(
        fleet
            .head(fleet.plan.edge(0, 0), "/")
            .starts_with("http/1.1 200"),
        "it serves all the while"
    );
    let file = fleet.path("state/ams-1/node.key");
    let renewed = fleet.operate(&["key", "ams-1", "--out", &file.to_string_lossy()]);
    assert!(renewed.status.success(), "{}", text(&renewed.stderr));
    fleet.node("ams-1").signal("HUP");
    wait::until("the purge to be confirmed by all again", SOON, || {
        let purge = purge(&fleet);
        if purge.status.success() {
            Ok(())
        } else {
            Err(text(&purge.stdout))
        }
    });
}

#[test]
fn a_node_takes_the_first_key_of_its_own_without_a_restart() {
    let mut fleet = Fleet::start(Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    });
    let file = fleet.path("state/ams-1/node.key");
    assert!(!file.exists(), "it began with the key of the fleet file");
    let made = fleet.operate(&["key", "ams-1", "--out", &file.to_string_lossy()]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    // Readable for the user that the node runs as: where the tests are root's, that is not the one
    // that wrote it.
    let owner = std::fs::metadata(fleet.path("state/ams-1"))
        .expect("the node's state")
        .uid();
    std::os::unix::fs::chown(&file, Some(owner), None).expect("handed over");
    fleet.node("ams-1").signal("HUP");
    wait::until("the node to show its own key", SOON, || {
        let said = fleet.operate(&["status", "--json"]);
        let status: serde_json::Value =
            serde_json::from_slice(&said.stdout).map_err(|_| text(&said.stderr))?;
        let nodes = status["nodes"].as_array().ok_or("no nodes")?;
        let is_own = nodes
            .iter()
            .any(|node| node["name"] == "ams-1" && node["key"] == "own");
        if is_own {
            Ok(())
        } else {
            Err(text(&said.stdout))
        }
    });
}

#[test]
fn a_key_that_a_node_cannot_work_with_keeps_it_from_starting() {
    let fleet = Fleet::start(Plan {
        clusters: 1,
        nodes: 1,
        own_keys: true,
        ..Plan::new()
    });
    let of_edge = fleet.path("state/ams-1/node.key");
    for (role, node, words) in [
        ("origin", "origin", "is of ams-1"),
        ("control", "control", "need the fleet's"),
    ] {
        let refused = fleet.operate(&[
            role,
            "--node",
            node,
            "--key-file",
            &of_edge.to_string_lossy(),
        ]);
        let said = text(&refused.stderr);
        assert!(
            refused.status.code() == Some(64) && said.contains(words),
            "{role}: {said}"
        );
    }
    let control = fleet.operate(&["key", "control"]);
    assert!(
        text(&control.stderr).contains("give it the fleet's key"),
        "{}",
        text(&control.stderr)
    );
    let none = fleet.operate(&["key", "ams-1", "--key-file", &of_edge.to_string_lossy()]);
    assert!(
        text(&none.stderr).contains("derived from the fleet's key"),
        "{}",
        text(&none.stderr)
    );
}
