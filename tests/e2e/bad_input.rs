//! Bad input: one clear sentence or one a mistake, the right exit code, nothing half-started.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use crate::lab::addresses::Block;
use crate::lab::fleet::Plan;
use crate::lab::process::nearcast;

fn attempt(arguments: &[&str]) -> (Option<i32>, String) {
    // One that starts all the same would otherwise run for ever.
    let output = Command::new("timeout")
        .arg("60")
        .arg(nearcast().get_program())
        .args(arguments)
        .output()
        .expect("the binary runs");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn who_asks_for_json_gets_errors_as_json() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("nearcast.toml");
    std::fs::write(&file, Plan::new().text()).expect("the file can be written");
    let (path, missing) = (file.to_str().expect("a plain path"), "/nowhere.toml");
    for (arguments, kind, code, words) in [
        (
            vec!["status", "--fleet", path],
            "unavailable",
            69,
            "control does not answer",
        ),
        (vec!["plan", "--fleet", missing], "no_input", 66, missing),
        (vec!["check", missing], "no_input", 66, missing),
        (vec!["purge", "--fleet", path], "usage", 64, "--url"),
        (
            vec!["purge", "--url", "/a", "--fleet", path],
            "usage",
            64,
            "nothing was purged",
        ),
        (
            vec!["trace", "a b", "--fleet", path],
            "usage",
            64,
            "not the id",
        ),
        (vec!["statos"], "usage", 64, "status"),
    ] {
        let with_json = [&arguments[..], &["--json"]].concat();
        let (found, errors) = attempt(&with_json);
        let value: serde_json::Value = serde_json::from_str(&errors).expect(&errors);
        let error = &value["error"];
        assert_eq!(found, Some(code), "{errors}");
        assert_eq!(
            (&error["code"], &error["exit_code"]),
            (&kind.into(), &code.into())
        );
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(words), "{errors}");
        let (_, plain) = attempt(&arguments);
        assert!(
            serde_json::from_str::<serde_json::Value>(&plain).is_err(),
            "{plain}"
        );
    }
}

#[test]
fn a_wrong_fleet_file_names_every_mistake_and_nothing_starts() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("nearcast.toml");
    let plan = Plan::new();
    let text = plan
        .text()
        .replace("steering = \"geo\"", "steering = \"nearest\"")
        .replace(
            "time_zone = \"Asia/Singapore\"",
            "time_zone = \"Asia/Atlantis\"",
        )
        .replacen("off_peak = ", "offpeak = ", 1)
        .replace("ttl = \"5s\"", "ttl = \"5 fortnights\"");
    std::fs::write(&file, &text).expect("the file can be written");
    let path = file.to_str().expect("a plain path");
    for arguments in [
        vec!["check", path],
        vec!["control", "--node", "control", "--fleet", path],
    ] {
        let (code, errors) = attempt(&arguments);
        assert_eq!(code, Some(64), "{errors}");
        for mistake in ["nearest", "Asia/Atlantis", "offpeak", "5 fortnights"] {
            let line = text
                .lines()
                .position(|l| l.contains(mistake))
                .expect("it was put there")
                + 1;
            assert!(
                errors
                    .lines()
                    .any(|l| l.contains(&format!("nearcast.toml:{line}:"))),
                "no message for {mistake} in line {line}:\n{errors}"
            );
        }
        assert!(
            errors.contains("off_peak"),
            "the nearest known key is named: {errors}"
        );
        assert!(
            !directory.path().join("state").exists(),
            "nothing was started"
        );
    }
}

#[test]
fn what_cannot_start_says_why_in_one_sentence() {
    let block = Block::take();
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = |name: &str| {
        directory
            .path()
            .join(name)
            .to_str()
            .expect("a plain path")
            .to_owned()
    };
    let free = format!("{}:8080", block.host(9));
    let _held = TcpListener::bind((block.host(10), 8080)).expect("the block is free");
    let held = format!("{}:8080", block.host(10));
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    std::fs::write(path("good.toml"), plan.text()).expect("the file can be written");
    std::fs::write(
        path("zone.toml"),
        plan.text()
            .replace("mail A 192.0.2.25", "mail A 192.0.2.25\", \"sub NS ns.sub"),
    )
    .expect("the file can be written");
    let (good, zone, content) = (path("good.toml"), path("zone.toml"), path("nowhere"));
    let table: [(&[&str], i32, &str); 12] = [
        (
            &["check", &content],
            66,
            "give the path of a file that is there",
        ),
        (
            &["apply", &content],
            66,
            "give the path of a file that is there",
        ),
        (
            &["purge", "--url", "/x", "--fleet", &good],
            64,
            "write //host/path for both schemes",
        ),
        (
            &["purge", "--site", "www", "--fleet", &good],
            66,
            "state/control/token",
        ),
        (
            &["gslb-dns", "--fleet", &zone, "--node", "ns1"],
            64,
            "sub.demo.test: a name server in this zone has no address",
        ),
        (
            &["control", "--fleet", &zone],
            64,
            "sub.demo.test: a name server in this zone has no address",
        ),
        (
            &["apply", &zone],
            64,
            "sub.demo.test: a name server in this zone has no address",
        ),
        (
            &["edge", "--listen", &held, "--origin", "http://127.0.0.1:1"],
            69,
            &held,
        ),
        (
            &["edge", "--listen", &free, "--origin", "gopher://x"],
            64,
            "gopher",
        ),
        (
            &["origin", "--root", &content, "--listen", &free],
            66,
            "nowhere",
        ),
        (
            &["edge", "--fleet", &good, "--node", "nobody"],
            64,
            "nobody",
        ),
        (
            &["control", "--fleet", &content, "--node", "control"],
            66,
            "nowhere",
        ),
    ];
    for (arguments, code, words) in table {
        let (found, errors) = attempt(arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(words), "{arguments:?}: {errors}");
        assert_eq!(errors.trim().lines().count(), 1, "one sentence: {errors}");
    }
}

#[test]
fn a_node_whose_port_is_in_use_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let path = directory.path().join("nearcast.toml");
    std::fs::write(&path, plan.text()).expect("the file can be written");
    let path = path.to_str().expect("a plain path");
    let edge = (plan.edge(0, 0), 8080).into();
    let _held = [edge, plan.dns()]
        .map(|address: SocketAddr| TcpListener::bind(address).expect("the block is free"));
    for role in ["edge", "gslb-dns"] {
        let (code, errors) = attempt(&[role, "--fleet", path]);
        assert_eq!(code, Some(69), "{errors}");
        assert!(
            !directory.path().join("state").exists(),
            "{role} left something behind"
        );
    }
}
