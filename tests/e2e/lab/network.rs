//! Hosts with delays between them: network namespaces joined by `delay.py`. Needs root.

use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::process::{self, run};
use super::wait;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network of named hosts. Dropping it ends the forwarder and removes the namespaces.
pub struct Network {
    prefix: String,
    hosts: Vec<&'static str>,
    forwarder: Child,
    /// Held open: the forwarder ends with its input, so also when the test is killed.
    _input: ChildStdin,
}

impl Network {
    /// Makes a namespace for every host with its address, and delays of so many milliseconds one
    /// way between pairs.
    pub fn new(
        directory: &Path,
        hosts: &[(&'static str, &str)],
        delays: &[(&str, &str, u32)],
    ) -> Self {
        remove_leftovers();
        let prefix = format!(
            "nc{}-{}-",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        for (host, _) in hosts {
            run("ip", ["netns", "add", &format!("{prefix}{host}")]);
        }
        // Real-time priority keeps the delays true on a busy machine; without the right to it they
        // only drift.
        let real_time = Command::new("chrt")
            .args(["-f", "10", "true"])
            .status()
            .is_ok_and(|s| s.success());
        let mut command = if real_time {
            let mut command = Command::new("chrt");
            command.args(["-f", "10", "python3"]);
            command
        } else {
            Command::new("python3")
        };
        let log = directory.join("delay.log");
        let file = std::fs::File::create(&log).expect("the log can be written");
        let mut forwarder = command
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/e2e/lab/delay.py"
            ))
            .args(
                hosts
                    .iter()
                    .map(|(host, address)| format!("{prefix}{host}={address}")),
            )
            .arg("--")
            .args(
                delays
                    .iter()
                    .map(|(a, b, ms)| format!("{prefix}{a}:{prefix}{b}:{ms}")),
            )
            .stdin(Stdio::piped())
            .stdout(file.try_clone().expect("a log handle can be copied"))
            .stderr(file)
            .spawn()
            .expect("python3 runs; tests/run installs it");
        let input = forwarder.stdin.take().expect("standard input is a pipe");
        wait::until("the delay network", Duration::from_secs(10), || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.contains("ready") {
                Ok(())
            } else {
                Err(text)
            }
        });
        Self {
            prefix,
            hosts: hosts.iter().map(|(host, _)| *host).collect(),
            forwarder,
            _input: input,
        }
    }

    /// A command that runs on a host.
    pub fn on(&self, host: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &format!("{}{host}", self.prefix)])
            .arg(program);
        command
    }
}

/// Removes namespaces of runs that were cut off, which are named by the process, and ends what
/// still runs in them.
pub fn remove_leftovers() {
    for line in run("ip", ["netns", "list"]).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let pid = name
            .strip_prefix("nc")
            .and_then(|rest| rest.split_once('-'))
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        if pid.is_none_or(process::is_test) {
            continue;
        }
        // Another test may remove it at the same time.
        let running = Command::new("ip")
            .args(["netns", "pids", name])
            .output()
            .map(|o| o.stdout)
            .unwrap_or_default();
        for left in String::from_utf8_lossy(&running).split_whitespace() {
            let _ = Command::new("kill").args(["-KILL", left]).status();
        }
        let _ = Command::new("ip").args(["netns", "delete", name]).status();
    }
}

#[test]
fn namespaces_of_a_run_that_was_cut_off_are_removed() {
    // No process has this number: the kernel's limit is lower.
    let (left, own) = (
        "nc4194998-0-left".to_owned(),
        format!("nc{}-own", std::process::id()),
    );
    run("ip", ["netns", "add", &left]);
    run("ip", ["netns", "add", &own]);
    let mut lasting = Command::new("ip")
        .args(["netns", "exec", &left, "sleep", "600"])
        .spawn()
        .expect("ip runs");
    wait::until(
        "a process in the namespace",
        Duration::from_secs(10),
        || {
            let pids = run("ip", ["netns", "pids", &left]);
            if pids.trim().is_empty() {
                Err("none")
            } else {
                Ok(())
            }
        },
    );
    remove_leftovers();
    let names = run("ip", ["netns", "list"]);
    run("ip", ["netns", "delete", &own]);
    assert!(!names.contains(&left) && names.contains(&own), "{names}");
    lasting.wait().expect("it was ended");
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.forwarder.kill();
        let _ = self.forwarder.wait();
        for host in &self.hosts {
            let _ = Command::new("ip")
                .args(["netns", "delete", &format!("{}{host}", self.prefix)])
                .status();
        }
    }
}
