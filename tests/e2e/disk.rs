//! Disks that hang, fill and fail under an edge, an edge that is killed, and runs without its disk:
//! clients are served, and nothing that was invalidated comes back.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nearcast_testing::{Origin, Reply, Seen};
use parking_lot::Mutex;

use crate::lab::addresses::Block;
use crate::lab::process::{Process, nearcast, run};
use crate::lab::tools::curl;
use crate::lab::wait;

const LIMIT: Duration = Duration::from_secs(20);
/// Probes of a disk that was left come after 1, 2, 4, 8 s.
const PROBES_MAX: Duration = Duration::from_secs(40);

/// An ext4 file system in a file. Dropping it unmounts it, thawed.
struct LoopDisk(PathBuf);

impl LoopDisk {
    fn mount(image: &Path, at: PathBuf, megabytes: u64) -> Self {
        std::fs::create_dir_all(&at).expect("a directory can be made");
        std::fs::File::create(image)
            .and_then(|file| file.set_len(megabytes << 20))
            .expect("an image can be made");
        run("mkfs.ext4", ["-q", "-m", "0", text(image)]);
        run("mount", ["-o", "loop", text(image), text(&at)]);
        Self(at)
    }

    /// Lets each write hang.
    fn freeze(&self) {
        run("fsfreeze", ["--freeze", text(&self.0)]);
    }

    fn thaw(&self) {
        run("fsfreeze", ["--unfreeze", text(&self.0)]);
    }

    /// Takes all room.
    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.0.join("filler")).expect("room for a name");
        while file.write_all(&[0; 4096]).is_ok() {}
        let _ = file.sync_all();
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        for command in [["fsfreeze", "--unfreeze"], ["umount", "-l"]] {
            let _ = Command::new(command[0])
                .arg(command[1])
                .arg(&self.0)
                .stderr(std::process::Stdio::null())
                .status();
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// One edge, and an origin whose bodies name their version; a POST makes a new one.
struct Lab {
    // It must be thawed before the edge can end.
    disk: Option<LoopDisk>,
    edge: Option<Process>,
    block: Block,
    origin: Origin,
    versions: Arc<Mutex<HashMap<String, u64>>>,
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let block = Block::take();
        let versions: Arc<Mutex<HashMap<String, u64>>> = Arc::default();
        let seen_by = versions.clone();
        let origin = Origin::start_at(
            SocketAddr::from((block.host(80), 8000)),
            move |seen: &Seen| {
                let mut versions = seen_by.lock();
                let version = versions.entry(seen.target.clone()).or_insert(1);
                if seen.method == "POST" {
                    *version += 1;
                    return Reply::ok("changed", "no-store");
                }
                let tag = format!("\"{version}\"");
                if seen.fields.get("if-none-match") == Some(&tag) {
                    return Reply::status(304).field("ETag", &tag);
                }
                let body = format!("{} version {version}\n", seen.target).repeat(2000);
                Reply::ok(body, "max-age=6000").field("ETag", &tag)
            },
        );
        Self {
            disk: None,
            edge: None,
            block,
            origin,
            versions,
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
        }
    }

    /// The same with the store on a file system of its own.
    fn on_a_disk_of(megabytes: u64) -> Self {
        let mut lab = Self::new();
        let image = lab.directory.path().join("image");
        lab.disk = Some(LoopDisk::mount(&image, lab.store(), megabytes));
        lab
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("state/ams-1/store")
    }

    fn disk(&self) -> &LoopDisk {
        self.disk.as_ref().expect("a disk of its own")
    }

    /// Starts an edge with so much disk, and waits until it answers.
    fn start(&mut self, disk: &str) {
        let ip = self.block.host(10);
        let fleet = format!(
            "[fleet]\nzone = \"cdn.test\"\nstate_dir = \"state\"\n\
             [[cluster]]\nname = \"ams\"\nplace = {{ latitude = 52.37, longitude = 4.9 }}\n\
             [[cluster.node]]\nname = \"ams-1\"\naddress = \"{ip}\"\nadmin = \"{ip}:9100\"\nlisten = \"{ip}:8080\"\n\
             memory = \"4MiB\"\ndisk = \"{disk}\"\nthreads = 1\n\
             [[site]]\nname = \"www\"\nhosts = [\"www.test\"]\norigin = \"{}\"\n",
            self.origin.url()
        );
        let file = self.directory.path().join("nearcast.toml");
        std::fs::write(&file, fleet).expect("the fleet file can be written");
        let mut command = nearcast();
        command.args(["edge", "--node", "ams-1", "--user", "root", "--fleet"]);
        command.arg(&file);
        self.edge = Some(Process::start("edge", self.directory.path(), command));
        wait::until("the edge to answer", LIMIT, || {
            std::net::TcpStream::connect((ip, 8080)).map(drop)
        });
    }

    fn kill(&mut self) {
        if let Some(edge) = &mut self.edge {
            edge.kill();
        }
    }

    fn curl(&self, path: &str, more: &[&str]) -> String {
        let url = format!("http://{}:8080{path}", self.block.host(10));
        curl(&[&["-i", "-H", "Host: www.test", &url], more].concat())
    }

    /// The `Cache-Status` of a path, whose body has to be of the present version.
    fn get(&self, path: &str) -> String {
        let answer = self.curl(path, &[]);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a response");
        let version = self.versions.lock().get(path).copied().unwrap_or(1);
        let expected = format!("{path} version {version}\n").repeat(2000);
        assert!(body == expected, "{path}: {head}\n{:.60}", body);
        head.lines()
            .find(|line| line.to_lowercase().starts_with("cache-status"))
            .unwrap_or_default()
            .to_owned()
    }

    fn post(&self, path: &str) {
        let answer = self.curl(path, &["-X", "POST", "-d", "x"]);
        assert!(answer.ends_with("changed"), "{path}: {answer}");
    }

    fn admin(&self, path: &str) -> String {
        curl(&[&format!("http://{}:9100{path}", self.block.host(10))])
    }

    fn wait_until_ready(&self, what: &str, limit: Duration, is: impl Fn(&str) -> bool) {
        wait::until(what, limit, || {
            let ready = self.admin("/ready");
            if is(&ready) { Ok(()) } else { Err(ready) }
        });
    }

    fn metric(&self, name: &str) -> f64 {
        let metrics = self.admin("/metrics");
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or_else(|| panic!("{name}: {metrics}"))
    }
}

fn paths(of: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("/{of}-{n}")).collect()
}

#[test]
fn kills_during_mixed_work_bring_nothing_wrong_and_nothing_stale() {
    let block = Block::take();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/kills.py");
    let output = Command::new("python3")
        // How much is there depends on the machine.
        .args([script, "--kills", "10", "--least", "0.95", "--binary"])
        .arg(env!("CARGO_BIN_EXE_nearcast"))
        .args(["--address", &block.host(10).to_string()])
        .output()
        .expect("python3 runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("wrong 0, stale 0"), "{said}");
}

#[test]
fn a_disk_that_hangs_is_left_and_used_again() {
    let mut lab = Lab::on_a_disk_of(256);
    lab.start("128MiB");
    // More than memory holds.
    let stored = paths("stored", 150);
    for path in &stored {
        lab.get(path);
    }

    lab.disk().freeze();
    let begun = Instant::now();
    for path in paths("new", 40).iter().chain(&stored[..40]) {
        lab.get(path);
    }
    lab.post("/stored-0");
    lab.get("/stored-0");
    lab.wait_until_ready("the disk to be left", LIMIT, |ready| {
        ready.starts_with("ready; ") && ready.contains("disk")
    });
    assert_eq!(lab.metric("nearcast_edge_disk_state{state=\"left\"}"), 1.0);
    // A second in total, and not one for each of them.
    assert!(
        begun.elapsed() < LIMIT,
        "requests waited for the disk again and again: {:?}",
        begun.elapsed()
    );
    lab.post("/stored-1");

    lab.disk().thaw();
    lab.wait_until_ready("the disk to be used", PROBES_MAX, |ready| {
        ready == "ready\n"
    });
    assert_eq!(lab.metric("nearcast_edge_disk_state{state=\"on\"}"), 1.0);
    for path in &stored[..5] {
        lab.get(path);
    }
    let log = lab.edge.as_ref().expect("it runs").output();
    assert_eq!(
        log.matches("is not used until it answers").count(),
        1,
        "{log}"
    );

    // Not after a kill either.
    lab.post("/stored-2");
    lab.kill();
    lab.start("128MiB");
    for path in &stored[..5] {
        lab.get(path);
    }
}

#[test]
fn an_edge_starts_on_a_disk_that_hangs() {
    let mut lab = Lab::on_a_disk_of(64);
    lab.start("32MiB");
    let stored = paths("stored", 20);
    for path in &stored {
        lab.get(path);
    }
    lab.kill();

    lab.disk().freeze();
    lab.start("32MiB");
    for path in stored.iter().chain(&paths("new", 5)) {
        lab.get(path);
    }
    assert!(lab.get("/new-0").contains("; hit"), "from memory");
    lab.post("/stored-0");
    lab.wait_until_ready("the disk to be left", LIMIT, |ready| {
        ready.starts_with("ready; ") && ready.contains("disk")
    });
    lab.get("/stored-0");

    lab.disk().thaw();
    lab.wait_until_ready("the disk to be used", PROBES_MAX, |ready| {
        ready == "ready\n"
    });
    for path in &stored {
        lab.get(path);
    }
}

#[test]
fn a_removal_is_kept_on_a_full_disk() {
    let mut lab = Lab::on_a_disk_of(64);
    lab.start("48MiB");
    let stored = paths("stored", 20);
    for path in &stored {
        lab.get(path);
    }
    // The removal covers what is on disk, not what waits for it.
    std::thread::sleep(Duration::from_secs(1));
    lab.disk().fill();
    for path in &paths("new", 100) {
        lab.get(path);
    }
    for path in &stored[..10] {
        lab.post(path);
    }
    // Each answer is of the present version.
    for _ in 0..2 {
        lab.kill();
        lab.start("48MiB");
        for path in &stored {
            lab.get(path);
        }
    }
}

#[test]
fn what_changed_while_the_tier_was_off_is_not_served() {
    let mut lab = Lab::new();
    lab.start("64MiB");
    let stored = paths("stored", 20);
    for path in &stored {
        lab.get(path);
    }
    std::thread::sleep(Duration::from_secs(1));
    lab.kill();

    lab.start("0");
    for path in &stored[..10] {
        lab.post(path);
    }
    lab.kill();

    lab.start("64MiB");
    for _ in 0..2 {
        for path in &stored {
            lab.get(path);
        }
    }
    assert!(lab.get(&stored[19]).contains("; hit"), "once validated");
}
