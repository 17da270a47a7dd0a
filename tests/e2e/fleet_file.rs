//! The fleet file changes while the fleet runs: on disk with SIGHUP, and by `nearcast apply`.

use std::path::Path;
use std::time::Duration;

use crate::lab::fleet::Plan;
use crate::lab::process::{Process, nearcast};
use crate::lab::wait;

const SOON: Duration = Duration::from_secs(20);

/// What control gives out as the fleet file in force.
fn shown(plan: &Plan, token: &str) -> Result<String, String> {
    let url = format!("http://{}/v1/fleet-file", plan.control());
    let mut curl = std::process::Command::new("curl");
    let output = curl
        .args(["-sf", "-H", &format!("Authorization: Bearer {token}"), &url])
        .output()
        .expect("curl runs");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err("no answer".to_owned())
    }
}

#[test]
fn an_edit_on_disk_is_in_force_after_a_hangup_and_apply_goes_on_from_there() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let path = directory.path().join("nearcast.toml");
    let text = |mark: &str| {
        format!(
            "# {mark}\n{}",
            plan.text().replace(
                "report_interval",
                &format!("hostmaster = \"{mark}@cdn.test\"\nreport_interval")
            )
        )
    };
    std::fs::write(&path, text("first")).expect("the file can be written");
    // As people call it: in the file's directory, by its name alone.
    let here = |arguments: &[&str]| {
        let mut command = nearcast();
        command
            .args(arguments)
            .args(["--fleet", "nearcast.toml"])
            .current_dir(directory.path());
        command
    };
    let control = Process::start("control", directory.path(), here(&["control"]));
    let token = wait::until("control's token", SOON, || {
        std::fs::read_to_string(directory.path().join("state/control/token"))
            .map_err(|e| e.to_string())
    });
    let in_force = |mark: &str| {
        wait::until(&format!("{mark} to be in force"), SOON, || {
            match shown(&plan, &token)? {
                found if found == text(mark) => Ok(()),
                other => Err(other.lines().next().unwrap_or_default().to_owned()),
            }
        });
    };
    in_force("first");
    std::fs::write(&path, text("second")).expect("the file can be written");
    control.signal("HUP");
    in_force("second");

    let third = Path::new("third.toml");
    std::fs::write(directory.path().join(third), text("third")).expect("the file can be written");
    let applied = here(&["apply", "third.toml"])
        .output()
        .expect("the binary runs");
    assert!(
        applied.status.success(),
        "{}",
        String::from_utf8_lossy(&applied.stderr)
    );
    in_force("third");
    // The file on disk has not been edited since: it does not take the applied one's place.
    control.signal("HUP");
    let mut control = control;
    control.wait_for_output("has not changed", SOON);
    in_force("third");
}

#[test]
fn other_listeners_are_applied_and_opened_at_the_next_start() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    let path = directory.path().join("nearcast.toml");
    std::fs::write(&path, plan.text()).expect("the file can be written");
    let here = |arguments: &[&str]| {
        let mut command = nearcast();
        command.args(arguments).current_dir(directory.path());
        command
    };
    let mut control = Process::start(
        "control",
        directory.path(),
        here(&["control", "--fleet", "nearcast.toml"]),
    );
    let edge = || {
        Process::start(
            "ams-1",
            directory.path(),
            here(&["edge", "--node", "ams-1", "--fleet", "nearcast.toml"]),
        )
    };
    let mut running = edge();
    let (before, after) = (
        format!("{}:8080", plan.edge(0, 0)),
        format!("{}:8081", plan.edge(0, 0)),
    );
    let listens = |address: &str| std::net::TcpStream::connect(address).map(drop);
    wait::until("the edge at its first listener", SOON, || listens(&before));
    control.wait_for_output("the control API listens", SOON);

    std::fs::write(
        directory.path().join("new.toml"),
        plan.text().replace(&before, &after),
    )
    .expect("the file can be written");
    let apply = |arguments: &[&str]| {
        let output = here(
            &[
                &["apply", "--fleet", "nearcast.toml", "new.toml"],
                arguments,
            ]
            .concat(),
        )
        .output()
        .expect("the binary runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let (code, words) = apply(&[]);
    assert!(
        code == Some(64) && words.contains("ams-1") && words.contains("--restart-needed"),
        "{words}"
    );
    let (code, words) = apply(&["--restart-needed", "--check"]);
    assert!(
        code == Some(0) && words.contains("nothing was changed"),
        "{words}"
    );
    let (code, words) = apply(&["--restart-needed"]);
    assert!(
        code == Some(0)
            && words.contains("revision 1")
            && words.contains("start these nodes again")
            && words.contains("ams-1"),
        "{words}"
    );

    // The file on the edge's machine is as it was: the revision brings the listener.
    let copy = directory.path().join("state/ams-1/journal.copy");
    wait::until("the revision in the edge's copy", SOON, || {
        let bytes = std::fs::read(&copy).map_err(|e| e.to_string())?;
        if String::from_utf8_lossy(&bytes).contains(&after) {
            Ok(())
        } else {
            Err("not there yet".to_owned())
        }
    });
    listens(&before).expect("until then it listens where it did");
    running.signal("TERM");
    running.wait(SOON);
    let moved_edge = edge();
    wait::until("the edge at its new listener", SOON, || listens(&after));
    assert!(listens(&before).is_err());

    // Where control itself is to listen elsewhere, its file is edited and it is started again.
    let moved = plan.text().replace(&before, &after).replace(
        &plan.control().to_string(),
        &format!("{}:7701", plan.control().ip()),
    );
    std::fs::write(directory.path().join("new.toml"), &moved).expect("the file can be written");
    let (code, words) = apply(&["--restart-needed"]);
    assert!(
        code == Some(64)
            && words.contains("control (name, listen, url, admin)")
            && words.contains("start control again"),
        "{words}"
    );
    std::fs::write(&path, &moved).expect("the file can be written");
    control.signal("TERM");
    control.wait(SOON);
    let _control = Process::start(
        "control-again",
        directory.path(),
        here(&["control", "--fleet", "nearcast.toml"]),
    );
    moved_edge.signal("HUP");
    wait::until("the edge at control's new place", SOON, || {
        let status = here(&["status", "--json", "--fleet", "nearcast.toml"])
            .output()
            .expect("the binary runs");
        let status: serde_json::Value =
            serde_json::from_slice(&status.stdout).map_err(|e| e.to_string())?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let edge = nodes.iter().find(|node| node["name"] == "ams-1");
        if edge.is_some_and(|edge| edge["state"] == "up" && edge["behind"] == 0) {
            Ok(())
        } else {
            Err(format!("{edge:?}"))
        }
    });
}
