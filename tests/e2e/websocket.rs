//! A WebSocket goes through an edge as if it were not there.

use std::process::Command;
use std::time::Duration;

use crate::lab::fleet::{Fleet, Plan};
use crate::lab::process::{Process, run};
use crate::lab::wait;

#[test]
fn a_websocket_goes_through_an_edge() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/lab/websocket.py");
    let mut plan = Plan {
        clusters: 1,
        nodes: 1,
        more: "[access_log]\npath = \"access.log\"\n".to_owned(),
        ..Plan::new()
    };
    let address = plan.origin_address();
    plan.origin = Some(format!("http://{address}"));
    let fleet = Fleet::start(plan);
    let mut command = Command::new("python3");
    command.args([
        script,
        "serve",
        &address.ip().to_string(),
        &address.port().to_string(),
    ]);
    let mut server = Process::start("websocket", &fleet.path(""), command);
    server.wait_for_output("listening", Duration::from_secs(20));
    let edge = fleet.plan.edge(0, 0);
    let said = run(
        "python3",
        [script, "talk", &edge.to_string(), "8080", "www.demo.test"],
    );
    assert!(
        said.starts_with("talked") && said.contains("ams-1; fwd=bypass"),
        "{said}"
    );
    // It is logged at its end.
    let line = wait::until("its line", Duration::from_secs(20), || {
        let text = std::fs::read_to_string(fleet.path("state/ams-1/access.log"))
            .map_err(|e| e.to_string())?;
        let line = text.lines().find(|line| line.contains("\"status\":101"));
        line.map(str::to_owned).ok_or(text)
    });
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert!(
        line["bytes"].as_u64().is_some_and(|bytes| bytes > 0) && line["cache"] == "bypass",
        "{line}"
    );
    // To a client that asks for none, the origin's own answer comes.
    assert!(fleet.head(edge, "/socket").starts_with("http/1.1 426"));
}
