//! Measured round-trip times steer: in a network with delays of its own, where near and quick are
//! not the same.

use std::time::Duration;

use crate::lab::network::Network;
use crate::lab::process::Process;
use crate::lab::wait;

const FLEET: &str = r#"
[fleet]
zone = "cdn.test"
node_key = "a key that only this test knows"
state_dir = "state"
report_interval = "500ms"

[steering]
rtt_max_age = "6s"
rtt_explore = "0%"
rtt_bound = false

[[name_server]]
name = "ns1"
listen = "192.0.2.53:53"
admin = "192.0.2.53:9153"

[[cluster]]
name = "ams"
place = { latitude = 52.37, longitude = 4.90 }
time_zone = "Europe/Amsterdam"
off_peak = "02:00-06:00"
fill_rate = "100Mbit/s"

[[cluster.node]]
name = "ams-1"
address = "198.51.100.20"
listen = "198.51.100.20:80"
admin = "198.51.100.20:9100"
memory = "8MiB"
disk = "0B"
threads = 1

[[cluster]]
name = "nyc"
place = { latitude = 40.71, longitude = -74.01 }
time_zone = "America/New_York"
off_peak = "02:00-06:00"
fill_rate = "100Mbit/s"

[[cluster.node]]
name = "nyc-1"
address = "203.0.113.20"
listen = "203.0.113.20:80"
admin = "203.0.113.20:9100"
memory = "8MiB"
disk = "0B"
threads = 1

[[site]]
name = "www"
hosts = ["www.demo.test"]
origin = "http://192.0.2.80"
steering = "rtt"
ttl = "1s"
"#;

const NEAR: &str = "198.51.100.20";
const FAR: &str = "203.0.113.20";

#[test]
fn a_client_is_steered_to_the_quicker_cluster_and_back_when_measurements_age_out() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let file = directory.path().join("nearcast.toml");
    std::fs::write(&file, FLEET).expect("the file can be written");
    // The client is in Amsterdam's network, but its way to Amsterdam is long and its way to New
    // York is short.
    let network = Network::new(
        directory.path(),
        &[
            ("dns", "192.0.2.53"),
            ("ams", NEAR),
            ("nyc", FAR),
            ("client", "198.51.100.10"),
        ],
        &[
            ("client", "ams", 60),
            ("client", "nyc", 10),
            ("client", "dns", 2),
            ("ams", "dns", 5),
            ("nyc", "dns", 5),
        ],
    );
    let mut running = Vec::new();
    for (host, role, name) in [
        ("ams", "edge", "ams-1"),
        ("nyc", "edge", "nyc-1"),
        ("dns", "gslb-dns", "ns1"),
    ] {
        let mut command = network.on(host, env!("CARGO_BIN_EXE_nearcast"));
        command.args([role, "--node", name, "--fleet"]).arg(&file);
        running.push(Process::start(name, directory.path(), command));
    }
    let text = |mut command: std::process::Command| {
        String::from_utf8_lossy(&command.output().expect("it runs").stdout).into_owned()
    };
    let steered = || {
        let mut command = network.on("client", "dig");
        command.args([
            "@192.0.2.53",
            "www.cdn.test",
            "A",
            "+short",
            "+tries=1",
            "+time=2",
        ]);
        text(command).trim().to_owned()
    };
    let is = |expected: &'static str| {
        move |found: String| {
            if found == expected {
                Ok(())
            } else {
                Err(found)
            }
        }
    };
    let visit = |edge: &str| {
        let mut command = network.on("client", "curl");
        command.args([
            "-s",
            "-o",
            "/dev/null",
            "-m",
            "5",
            "-w",
            "%{time_connect}",
            &format!("http://{edge}/.nearcast/health"),
        ]);
        text(command).parse::<f64>().expect("curl prints seconds")
    };

    wait::until(
        "geography to steer to Amsterdam",
        Duration::from_secs(30),
        || is(NEAR)(steered()),
    );
    // The client uses both clusters; their edges measure its connections and report them.
    wait::until(
        "measurements to steer to New York",
        Duration::from_secs(20),
        || {
            let (near, far) = (visit(NEAR), visit(FAR));
            assert!(
                near > 0.1 && far > 0.0,
                "the lab's delays hold: {near} {far}"
            );
            is(FAR)(steered())
        },
    );
    let mut explain = network.on("dns", "curl");
    explain.args([
        "-s",
        "http://192.0.2.53:9153/explain?host=www.demo.test&client=198.51.100.10",
    ]);
    let explained: serde_json::Value =
        serde_json::from_str(&text(explain)).expect("explain is JSON");
    assert_eq!(explained["chosen"]["cluster"], "nyc", "{explained}");
    // No more visits: what was measured ages out and geography decides again.
    wait::until(
        "the client to be steered back",
        Duration::from_secs(30),
        || is(NEAR)(steered()),
    );
}
