//! A full disk: the edge serves on; control refuses a change that it cannot write, and loses none
//! that it has acknowledged.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nearcast_testing::{Origin, Reply};

use crate::lab::addresses::Block;
use crate::lab::fleet::{Fleet, Plan};
use crate::lab::process::{Process, nearcast, run};
use crate::lab::tools::curl;
use crate::lab::wait;

/// A file system of a few kilobytes. Dropping it unmounts it.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(at: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&at).expect("a directory can be made");
        run(
            "mount",
            [
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size}"),
                "tmpfs",
                at.to_str().expect("a plain path"),
            ],
        );
        Self(at)
    }

    /// Writes until there is no room left.
    pub fn fill(&self) {
        use std::io::Write;
        let mut file =
            std::fs::File::create(self.0.join("filler")).expect("there is room for a name");
        while file.write_all(&[0; 512]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).expect("the filler is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

fn start_control(directory: &Path, plan: &Plan) -> Process {
    let mut command = nearcast();
    command
        .args(["control", "--node", "control", "--fleet"])
        .arg(directory.join("nearcast.toml"));
    let control = Process::start("control", directory, command);
    wait::until("control to be ready", Duration::from_secs(20), || {
        let url = format!("http://{}:9100/ready", plan.control().ip());
        let code = std::process::Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url])
            .output()
            .expect("curl runs");
        if code.stdout == b"200" {
            Ok(())
        } else {
            Err("not ready")
        }
    });
    control
}

#[test]
fn control_refuses_what_it_cannot_keep_and_loses_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let disk = SmallDisk::mount(directory.path().join("state"), "1m");
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    std::fs::write(directory.path().join("nearcast.toml"), plan.text())
        .expect("the file can be written");
    let mut control = start_control(directory.path(), &plan);
    let purge = |tag: &str| {
        let mut command = nearcast();
        command
            .args(["purge", "--wait", "0s", "--tag", tag])
            .env("NEARCAST_FLEET", directory.path().join("nearcast.toml"));
        let output = command.output().expect("the binary runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, errors) = purge("first");
    assert_eq!(code, Some(0), "the disk has room: {errors}");
    disk.fill();
    // A record may still fit into the journal's last page; then the next one does not.
    let long = "x".repeat(1000);
    let refused = (0..8)
        .map(|n| purge(&format!("refused-{n}-{long}")))
        .find(|(_, errors)| errors.to_lowercase().contains("space"));
    let (code, errors) = refused.expect("a full disk refuses");
    assert_eq!(code, Some(74), "{errors}");
    assert!(errors.contains("nothing was changed"), "{errors}");
    disk.empty();
    let (code, errors) = purge("after");
    assert_eq!(code, Some(0), "there is room again: {errors}");
    control.kill();
    drop(control);
    let _control = start_control(directory.path(), &plan);
    let kept = curl(&[&format!("http://{}/v1/purges", plan.control())]);
    assert!(
        kept.contains("\"first\"") && kept.contains("\"after\""),
        "what was acknowledged is kept: {kept}"
    );
}

#[test]
fn nodes_start_on_a_full_disk_and_follow() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let plan = Plan {
        clusters: 1,
        nodes: 1,
        ..Plan::new()
    };
    std::fs::write(directory.path().join("nearcast.toml"), plan.text())
        .expect("the file can be written");
    let _control = start_control(directory.path(), &plan);
    // The nodes' machine has a disk of its own.
    let there = directory.path().join("there");
    let disk = SmallDisk::mount(there.join("state"), "64k");
    std::fs::write(there.join("nearcast.toml"), plan.text()).expect("the file can be written");
    let copy = disk.0.join("ns1/journal.copy");
    let status = || curl(&[&format!("http://{}/v1/status", plan.control())]);
    let start_and_purge = |tag: &str| {
        let mut command = nearcast();
        command
            .args(["gslb-dns", "--node", "ns1", "--fleet"])
            .arg(there.join("nearcast.toml"));
        let mut node = Process::start("ns1", directory.path(), command);
        for n in 1..=2 {
            let mut command = nearcast();
            command
                .args(["purge", "--wait", "0s", "--tag", &format!("{tag}-{n}")])
                .env("NEARCAST_FLEET", directory.path().join("nearcast.toml"));
            command.output().expect("the binary runs");
            wait::until(
                "the name server to have all",
                Duration::from_secs(20),
                || {
                    assert!(node.ended().is_none(), "{}", node.output());
                    let status: serde_json::Value =
                        serde_json::from_str(&status()).map_err(|e| e.to_string())?;
                    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
                    let behind = nodes.iter().all(|node| {
                        node["name"] != "ns1" || node["revision"] != status["revision"]
                    });
                    if !behind {
                        Ok(())
                    } else {
                        Err(format!("{status}"))
                    }
                },
            );
        }
        node.kill();
    };
    disk.fill();
    start_and_purge("no-copy");
    assert!(!copy.exists(), "there was no room for one");
    disk.empty();
    start_and_purge("copy");
    // Several records, which a start would like to fold.
    let kept = std::fs::read(&copy).expect("there was room");
    disk.fill();
    start_and_purge("full-again");
    let still = std::fs::read(&copy).expect("it is still there");
    assert!(still.starts_with(&kept), "it could not be folded");
}

#[test]
fn an_edge_with_a_full_disk_serves_on() {
    let block = Block::take();
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let disk = SmallDisk::mount(directory.path().join("state"), "3m");
    let origin = Origin::start_at(SocketAddr::from((block.host(80), 8000)), |_| {
        Reply::ok(vec![b'x'; 600_000], "max-age=600").field("ETag", "\"x\"")
    });
    let listen = format!("{}:8080", block.host(10));
    let mut command = nearcast();
    command
        .args([
            "edge",
            "--listen",
            &listen,
            "--origin",
            &origin.url(),
            "--memory",
            "2MiB",
            "--disk",
            "64MiB",
            "--state-dir",
        ])
        .arg(&disk.0);
    let mut edge = Process::start("edge", directory.path(), command);
    wait::until("the edge to answer", Duration::from_secs(20), || {
        std::net::TcpStream::connect(&listen).map(drop)
    });
    for round in 0..2 {
        for n in 0..20 {
            let size = curl(&[
                "-o",
                "/dev/null",
                "-w",
                "%{http_code} %{size_download}",
                &format!("http://{listen}/{n}"),
            ]);
            assert_eq!(size, "200 600000", "round {round}, {n}");
        }
    }
    assert!(edge.ended().is_none(), "{}", edge.output());
    let said = edge.output().to_lowercase();
    assert!(
        said.contains("space") || said.contains("disk"),
        "the log tells of the disk: {said}"
    );
}

#[test]
fn an_access_log_goes_on_when_its_disk_has_room_again() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let disk = SmallDisk::mount(directory.path().join("logs"), "256k");
    let log = disk.0.join("access.log");
    // The edge runs as another user than the one of this test.
    use std::os::unix::fs::PermissionsExt as _;
    for path in [directory.path(), &disk.0] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
    }
    let fleet = Fleet::start(Plan {
        clusters: 1,
        nodes: 1,
        more: format!("[access_log]\npath = {:?}\n", log.display().to_string()),
        ..Plan::new()
    });
    let edge = fleet.plan.edge(0, 0);
    let count = |result: &str| {
        let metrics = curl(&[&format!("http://{edge}:9100/metrics")]);
        let name = format!("nearcast_edge_access_log_lines_total{{result=\"{result}\"}} ");
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok())
            .unwrap_or_else(|| panic!("{metrics}"))
    };
    let ask = |path: &str| fleet.curl(edge, &["-o", "/dev/null"], path);
    ask("/before");
    wait::until("a line", Duration::from_secs(20), || {
        (count("written") == 1).then_some(()).ok_or("none")
    });
    disk.fill();
    // Lines beyond the room that the file's last page has.
    ask("/full?[1-60]");
    wait::until("lost lines", Duration::from_secs(20), || {
        let (written, lost) = (count("written"), count("lost"));
        match lost > 0 && written + lost == 61 {
            true => Ok(()),
            false => Err(format!("{written} written, {lost} lost")),
        }
    });
    disk.empty();
    ask("/after");
    wait::until("a line again", Duration::from_secs(20), || {
        let text = std::fs::read_to_string(&log).expect("text");
        text.contains("\"/after\"").then_some(()).ok_or(text)
    });
    let (written, lost) = (count("written"), count("lost"));
    assert_eq!(written + lost, 62);
    let text = std::fs::read_to_string(&log).expect("text");
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    assert_eq!(lines.len() as u64, written, "no part of a line is left");
}
