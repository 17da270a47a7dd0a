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
    let output = curl.args(["-sf", "-H", &format!("Authorization: Bearer {token}"), &url]).output().expect("curl runs");
    if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err("no answer".to_owned()) }
}

#[test]
fn an_edit_on_disk_is_in_force_after_a_hangup_and_apply_goes_on_from_there() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let plan = Plan { clusters: 1, nodes: 1, ..Plan::new() };
    let path = directory.path().join("nearcast.toml");
    let text = |mark: &str| {
        format!("# {mark}\n{}", plan.text().replace("report_interval", &format!("hostmaster = \"{mark}@cdn.test\"\nreport_interval")))
    };
    std::fs::write(&path, text("first")).expect("the file can be written");
    // As people call it: in the file's directory, by its name alone.
    let here = |arguments: &[&str]| {
        let mut command = nearcast();
        command.args(arguments).args(["--fleet", "nearcast.toml"]).current_dir(directory.path());
        command
    };
    let control = Process::start("control", directory.path(), here(&["control"]));
    let token = wait::until("control's token", SOON, || {
        std::fs::read_to_string(directory.path().join("state/control/token")).map_err(|e| e.to_string())
    });
    let in_force = |mark: &str| {
        wait::until(&format!("{mark} to be in force"), SOON, || match shown(&plan, &token)? {
            found if found == text(mark) => Ok(()),
            other => Err(other.lines().next().unwrap_or_default().to_owned()),
        });
    };
    in_force("first");
    std::fs::write(&path, text("second")).expect("the file can be written");
    control.signal("HUP");
    in_force("second");

    let third = Path::new("third.toml");
    std::fs::write(directory.path().join(third), text("third")).expect("the file can be written");
    let applied = here(&["apply", "third.toml"]).output().expect("the binary runs");
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    in_force("third");
    // The file on disk has not been edited since: it does not take the applied one's place.
    control.signal("HUP");
    let mut control = control;
    control.wait_for_output("has not changed", SOON);
    in_force("third");
}
