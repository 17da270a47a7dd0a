//! The compose demo as a project of this run alone: a copy of `deploy/` with names, images, ports
//! and networks of its own, so that it runs beside a user's, replaces no image, and is not in the
//! way of what an earlier run that was cut off has left.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use super::process::{is_test, run};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// What the projects of all runs are called, with the process id after a dash. So their containers,
/// networks, volumes and the image's tag are known.
const PROJECTS: &str = "nearcast-e2e";
/// The networks of `deploy/`, as they are written in its files, and what may stand in for each
/// where it is taken: other prefixes of the same continent, so that steering by geography comes out
/// alike.
const NETWORKS: [(&str, [&str; 4]); 4] = [
    (
        "172.30.53.",
        ["172.30.153.", "172.31.53.", "10.253.53.", "10.254.153."],
    ),
    (
        "198.51.100.",
        ["193.0.0.", "193.0.1.", "193.0.2.", "193.0.3."],
    ),
    (
        "203.0.113.",
        ["11.200.0.", "11.200.1.", "11.200.2.", "11.200.3."],
    ),
    (
        "192.0.2.",
        ["133.11.0.", "133.11.1.", "133.11.2.", "133.11.3."],
    ),
];

/// The running project. Dropping it removes its containers, networks, volumes and image.
pub struct Compose {
    name: String,
    /// The copy of `deploy/`.
    directory: TempDir,
    /// What is written in place of each of `NETWORKS`.
    prefixes: [String; 4],
    ports: [u16; 3],
    _turn: MutexGuard<'static, ()>,
}

/// One at a time: a run has one project.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Compose {
    /// A copy for this run, after what earlier runs have left is removed as far as Docker lets go
    /// of it. Builds no image.
    pub fn new() -> Self {
        Self::in_turn(turn())
    }

    fn in_turn(turn: MutexGuard<'static, ()>) -> Self {
        remove_leftovers();
        let name = format!("{PROJECTS}-{}", std::process::id());
        let directory =
            TempDir::with_prefix("nearcast-e2e-").expect("a temporary directory can be made");
        run(
            "cp",
            [
                "-r",
                &format!("{ROOT}/deploy/."),
                &directory.path().display().to_string(),
            ],
        );
        let taken = taken_networks();
        let prefixes = NETWORKS.map(|(own, others)| {
            let free = std::iter::once(own)
                .chain(others)
                .find(|prefix| is_free(prefix, &taken));
            free.unwrap_or_else(|| {
                panic!("{own}0/24 and its stand-ins are taken; networks in use: {taken:?}")
            })
            .to_owned()
        });
        let compose = Self {
            name,
            directory,
            prefixes,
            ports: free_ports(),
            _turn: turn,
        };
        compose.rewrite(compose.directory.path());
        compose
    }

    /// Name and tag of the image that this run builds.
    pub fn image(&self) -> String {
        format!("{PROJECTS}:{}", std::process::id())
    }

    /// An address of the demo in this run.
    pub fn address(&self, written: &str) -> String {
        self.rewritten(written)
    }

    fn rewritten(&self, text: &str) -> String {
        let mut text = text.replace("nearcast:local", &self.image());
        for image in [
            "nearcast-unbound:local",
            "nearcast-client:local",
            "prom/prometheus:v",
        ] {
            text = text.replace(image, &format!("{PROJECTS}/{image}"));
        }
        for ((own, _), prefix) in NETWORKS.iter().zip(&self.prefixes) {
            text = text.replace(own, prefix);
        }
        text
    }

    fn rewrite(&self, directory: &Path) {
        for entry in std::fs::read_dir(directory)
            .expect("the copy is there")
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                self.rewrite(&path);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                std::fs::write(&path, self.rewritten(&text)).expect("the copy can be written");
            }
        }
    }

    /// `docker-compose` on the copy.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker-compose");
        command
            .current_dir(self.directory.path())
            .args(["-f", "compose.yaml", "-p", &self.name])
            .args(arguments);
        let names = [
            "NEARCAST_CONSOLE_PORT",
            "NEARCAST_PROMETHEUS_PORT",
            "NEARCAST_GRAFANA_PORT",
        ];
        command.envs(
            names
                .into_iter()
                .zip(self.ports.map(|port| port.to_string())),
        );
        command
    }

    /// Runs `docker-compose` and gives its standard output.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self
            .command(arguments)
            .output()
            .expect("docker-compose runs; tests/run installs it");
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(
            output.status.success(),
            "docker-compose {arguments:?}:\n{out}\n{err}"
        );
        out.into_owned()
    }

    /// Runs a program in a service's container.
    pub fn exec(&self, service: &str, arguments: &[&str]) -> String {
        self.run(&[&["exec", "-T", service], arguments].concat())
    }

    /// Its containers, one a line: name and state.
    pub fn containers(&self) -> String {
        let filter = format!("label=com.docker.compose.project={}", self.name);
        run(
            "docker",
            [
                "ps",
                "--filter",
                &filter,
                "--format",
                "{{.Names}} {{.Status}}",
            ],
        )
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(logs) = self
                .command(&["logs", "--tail", "15", "--no-color"])
                .output()
        {
            eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
        }
        let _ = self
            .command(&["down", "--volumes", "--timeout", "2"])
            .output();
        remove(&self.name);
        let _ = Command::new("docker")
            .args(["image", "rm", &self.image()])
            .output();
    }
}

/// Three ports of loopback that nobody listens on.
fn free_ports() -> [u16; 3] {
    let held = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
    held.map(|listener| listener.local_addr().expect("bound").port())
}

/// Lines that a `docker` command prints; none when it fails, as for a thing that is gone meanwhile.
fn docker(arguments: &[&str]) -> Vec<String> {
    let output = Command::new("docker")
        .args(arguments)
        .output()
        .expect("docker runs; tests/run installs it");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .filter(|line| output.status.success() && !line.trim().is_empty())
        .map(|line| line.trim().to_owned())
        .collect()
}

/// Removes what runs that were cut off have left, and nothing of a run that goes on.
pub fn remove_leftovers() {
    const PROJECT: &str = "{{.Label \"com.docker.compose.project\"}}";
    let label = "label=com.docker.compose.project";
    let listed = [
        docker(&["ps", "--all", "--filter", label, "--format", PROJECT]),
        docker(&["network", "ls", "--filter", label, "--format", PROJECT]),
        docker(&["volume", "ls", "--filter", label, "--format", PROJECT]),
    ];
    let projects: BTreeSet<String> = listed
        .into_iter()
        .flatten()
        .filter(|name| is_left(name))
        .collect();
    projects.iter().for_each(|name| remove(name));
    for tag in docker(&["image", "ls", "--format", "{{.Tag}}", PROJECTS]) {
        if is_left(&format!("{PROJECTS}-{tag}")) {
            docker(&["image", "rm", "--force", &format!("{PROJECTS}:{tag}")]);
        }
    }
}

/// Whether a project is one of ours whose process is gone. Earlier versions had one name without a
/// number.
fn is_left(project: &str) -> bool {
    let Some(rest) = project.strip_prefix(PROJECTS) else {
        return false;
    };
    match rest.strip_prefix('-').map(str::parse::<u32>) {
        None => rest.is_empty(),
        Some(Err(_)) => false,
        Some(Ok(pid)) => !is_test(pid),
    }
}

/// Removes everything of a project. Docker may keep a network whose endpoint it has lost: that is
/// let go first, and what stays all the same only takes a subnet that nobody else needs.
fn remove(project: &str) {
    let filter = format!("label=com.docker.compose.project={project}");
    for container in docker(&["ps", "--all", "--quiet", "--filter", &filter]) {
        docker(&["rm", "--force", "--volumes", &container]);
    }
    for network in docker(&["network", "ls", "--quiet", "--filter", &filter]) {
        for endpoint in docker(&[
            "network",
            "inspect",
            "--format",
            "{{range .Containers}}{{println .Name}}{{end}}",
            &network,
        ]) {
            docker(&["network", "disconnect", "--force", &network, &endpoint]);
        }
        docker(&["network", "rm", &network]);
    }
    for volume in docker(&["volume", "ls", "--quiet", "--filter", &filter]) {
        docker(&["volume", "rm", "--force", &volume]);
    }
}

/// Networks that Docker has, and those that this machine routes to, as address and prefix length.
fn taken_networks() -> Vec<(Ipv4Addr, u8)> {
    let networks = docker(&["network", "ls", "--quiet"]);
    let mut subnets = Vec::new();
    for network in &networks {
        subnets.extend(docker(&[
            "network",
            "inspect",
            "--format",
            "{{range .IPAM.Config}}{{println .Subnet}}{{end}}",
            network,
        ]));
    }
    let routes = run("ip", ["-4", "route", "show", "table", "all"]);
    subnets.extend(routes.lines().filter_map(|line| {
        line.split_whitespace()
            .find(|word| word.contains('/'))
            .map(str::to_owned)
    }));
    let parse = |text: &str| {
        let (address, length) = text.split_once('/')?;
        Some((address.parse().ok()?, length.parse().ok()?))
    };
    subnets
        .iter()
        .filter_map(|text| parse(text))
        .filter(|(_, length)| *length > 0)
        .collect()
}

fn is_free(prefix: &str, taken: &[(Ipv4Addr, u8)]) -> bool {
    let own = u32::from(
        format!("{prefix}0")
            .parse::<Ipv4Addr>()
            .expect("a prefix of three numbers"),
    );
    taken.iter().all(|(address, length)| {
        let mask = u32::MAX
            .checked_shl(32 - u32::from((*length).min(24)))
            .unwrap_or(0);
        u32::from(*address) & mask != own & mask
    })
}

#[test]
fn networks_that_overlap_are_not_chosen() {
    let taken = [("172.16.0.0", 12), ("192.0.2.128", 25), ("10.0.0.1", 32)]
        .map(|(ip, length)| (ip.parse().expect("an address"), length));
    for (prefix, free) in [
        ("172.30.53.", false),
        ("172.32.0.", true),
        ("192.0.2.", false),
        ("192.0.3.", true),
        ("10.0.0.", false),
        ("10.0.1.", true),
    ] {
        assert_eq!(is_free(prefix, &taken), free, "{prefix}");
    }
}

#[test]
fn what_a_run_that_was_cut_off_has_left_is_removed_and_nothing_else() {
    // No process has this number: the kernel's limit is lower.
    let (left, others) = (format!("{PROJECTS}-4194999"), format!("{PROJECTS}ing"));
    let prefixes: Vec<String> = {
        let taken = taken_networks();
        (0..=255)
            .map(|n| format!("10.252.{n}."))
            .filter(|prefix| is_free(prefix, &taken))
            .take(2)
            .collect()
    };
    for (project, prefix) in [&left, &others].into_iter().zip(&prefixes) {
        let (label, subnet) = (
            format!("com.docker.compose.project={project}"),
            format!("{prefix}0/24"),
        );
        run(
            "docker",
            [
                "network",
                "create",
                "--internal",
                "--label",
                &label,
                "--subnet",
                &subnet,
                &format!("{project}_core"),
            ],
        );
        run(
            "docker",
            [
                "volume",
                "create",
                "--label",
                &label,
                &format!("{project}_state"),
            ],
        );
    }
    remove_leftovers();
    let names = run("docker", ["network", "ls", "--format", "{{.Name}}"])
        + &run("docker", ["volume", "ls", "--format", "{{.Name}}"]);
    remove(&others);
    assert!(!names.contains(&left), "{names}");
    assert!(
        names.contains(&format!("{others}_core")) && names.contains(&format!("{others}_state")),
        "{names}"
    );
    assert!(
        !is_left(&format!("{PROJECTS}-{}", std::process::id())),
        "this run goes on"
    );
    assert!(is_left(PROJECTS) && !is_left("nearcast") && !is_left(&format!("{PROJECTS}-x")));
}

#[test]
fn a_network_that_somebody_has_is_not_in_the_way() {
    // A compose demo of a user: it has the first of the networks, and Docker gives none of them
    // twice.
    let (own, others) = NETWORKS[1];
    // Not while another project of this run has chosen that network and not made it yet.
    let turn = turn();
    let held = is_free(own, &taken_networks()).then(|| {
        let name = format!("nc{}-held", std::process::id());
        run(
            "docker",
            [
                "network",
                "create",
                "--internal",
                "--subnet",
                &format!("{own}0/24"),
                &name,
            ],
        );
        name
    });
    let compose = Compose::in_turn(turn);
    let config = compose.run(&["config"]);
    if let Some(name) = held {
        run("docker", ["network", "rm", &name]);
    }
    assert!(
        others.contains(&compose.prefixes[1].as_str()),
        "{}",
        compose.prefixes[1]
    );
    assert!(
        !config.contains(own) && config.contains(&format!("{}0/24", compose.prefixes[1])),
        "{config}"
    );
    assert!(
        config.contains(&compose.image())
            && !config.contains("nearcast:local")
            && !config.contains("image: prom/"),
        "{config}"
    );
    let fleet = std::fs::read_to_string(compose.directory.path().join("fleet.toml"))
        .expect("the copy is there");
    assert!(
        fleet.contains(&format!("address = \"{}11\"", compose.prefixes[1])) && !fleet.contains(own),
        "{fleet}"
    );
}
