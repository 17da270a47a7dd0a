//! A fleet of real processes on one block of loopback addresses.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::addresses::Block;
use super::process::{Process, nearcast};
use super::{tools, wait};

/// How long a role may take to be ready on a busy machine.
const READY: Duration = Duration::from_secs(30);

/// The fleet's places: name, latitude, longitude, time zone. Their order gives the last byte of
/// their edges' addresses: 11, 12 for the first cluster, 21, 22 for the second.
pub const PLACES: [(&str, f64, f64, &str); 3] = [
    ("ams", 52.37, 4.90, "Europe/Amsterdam"),
    ("nyc", 40.71, -74.01, "America/New_York"),
    ("sin", 1.35, 103.82, "Asia/Singapore"),
];

/// The demo's client network in each place, as the built-in table places it.
pub const CLIENTS: [(&str, &str); 3] = [
    ("ams", "198.51.100.0/24"),
    ("nyc", "203.0.113.0/24"),
    ("sin", "192.0.2.0/24"),
];

/// A fleet file in the making, with the settings that tests vary.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Addresses.
    pub block: Block,
    /// Clusters, of [`PLACES`].
    pub clusters: usize,
    /// Edges in each.
    pub nodes: usize,
    /// Origin URL of the site `www`; the fleet's own origin role unless set.
    pub origin: Option<String>,
    /// Port of the name server.
    pub dns_port: u16,
    /// Steering of the site.
    pub steering: &'static str,
    /// Lines added to the section `[fleet]`.
    pub fleet: String,
    /// Lines added to every `[[cluster]]`.
    pub cluster: String,
    /// Lines added to the site.
    pub site: String,
    /// Whole sections added at the end.
    pub more: String,
    /// Hosts of the site.
    pub hosts: Vec<&'static str>,
    /// Whether each node has its own key, in its state directory, and the fleet's key is accepted
    /// from none.
    pub own_keys: bool,
    /// Directory with `ca.pem`, `node.pem` and `node.key`: control, admin listeners and edges (on port
    /// 8443) then have that certificate, and nodes verify one another by that authority.
    pub certificates: Option<PathBuf>,
    /// Web origins whose pages may ask control where DNS sends their viewer.
    pub steering_origins: Vec<String>,
    /// Whether the origin role writes the demo's pages and video into its root first.
    pub demo_content: bool,
}

impl Plan {
    /// The off-peak window of a cluster. It is half a day away, so that no push begins by itself
    /// during a test, unless the test sets the fleet's clock.
    fn off_peak(&self, longitude: f64) -> String {
        if self.more.contains("[clock]") {
            return "02:00-06:00".to_owned();
        }
        let utc_hours = nearcast_fleet::clock::now_unix_s() / 3600 % 24;
        // Within two hours of the zone's time, which is exact enough here.
        let local = (utc_hours as f64 + longitude / 15.0).rem_euclid(24.0) as u64;
        format!("{:02}:00-{:02}:00", (local + 11) % 24, (local + 13) % 24)
    }

    /// Three clusters of two edges and one site, `www`, with the host `www.demo.test`, steered by
    /// geography.
    pub fn new() -> Self {
        Self {
            block: Block::take(),
            clusters: 3,
            nodes: 2,
            origin: None,
            dns_port: 5300,
            steering: "geo",
            fleet: String::new(),
            cluster: String::new(),
            site: String::new(),
            more: String::new(),
            hosts: vec!["www.demo.test"],
            own_keys: false,
            certificates: None,
            steering_origins: Vec::new(),
            demo_content: false,
        }
    }

    /// Where the name server answers.
    pub fn dns(&self) -> SocketAddr {
        SocketAddr::from((self.block.host(53), self.dns_port))
    }

    /// Where control's API is.
    pub fn control(&self) -> SocketAddr {
        SocketAddr::from((self.block.host(70), 7700))
    }

    /// Where the origin role serves.
    pub fn origin_address(&self) -> SocketAddr {
        SocketAddr::from((self.block.host(80), 8000))
    }

    /// Address of an edge: cluster and node count from 0.
    pub fn edge(&self, cluster: usize, node: usize) -> Ipv4Addr {
        self.block.host(((cluster + 1) * 10 + node + 1) as u8)
    }

    /// The fleet file's text.
    pub fn text(&self) -> String {
        let mut text = format!(
            "[fleet]\nzone = \"cdn.test\"\n{}\nstate_dir = \"state\"\nreport_interval = \"200ms\"\n{}\n",
            if self.own_keys {
                "node_key_file = \"fleet.key\"\nnode_keys = \"own\""
            } else {
                "node_key = \"a key that only this test knows\""
            },
            self.fleet
        );
        let files = self.certificates.as_ref().map(|directory| {
            let file = |name: &str| directory.join(name).display().to_string();
            (file("ca.pem"), file("node.pem"), file("node.key"))
        });
        if let Some((ca, cert, key)) = &files {
            let _ = writeln!(
                text,
                "ca = \"{ca}\"\nadmin_cert = \"{cert}\"\nadmin_key = \"{key}\"\n\n\
                 [[certificate]]\ncert = \"{cert}\"\nkey = \"{key}\"\n"
            );
        }
        let (control, dns, origin) = (self.control(), self.dns(), self.origin_address());
        let _ = writeln!(
            text,
            "[control]\nlisten = \"{control}\"\nadmin = \"{}:9100\"\nsteering_origins = {:?}\n",
            control.ip(),
            self.steering_origins
        );
        if let Some((_, cert, key)) = &files {
            let _ = writeln!(text, "cert = \"{cert}\"\nkey = \"{key}\"\n");
        }
        let _ = writeln!(
            text,
            "[[origin_node]]\nname = \"origin\"\nlisten = \"{origin}\"\nadmin = \"{}:9100\"\nroot = \"content\"\n",
            origin.ip()
        );
        let _ = writeln!(
            text,
            "[[name_server]]\nname = \"ns1\"\nlisten = \"{dns}\"\nadmin = \"{}:9100\"\n",
            dns.ip()
        );
        for (c, (name, latitude, longitude, zone)) in PLACES.iter().enumerate().take(self.clusters)
        {
            let _ = writeln!(
                text,
                "[[cluster]]\nname = \"{name}\"\nplace = {{ latitude = {latitude}, longitude = {longitude} }}\ntime_zone = \"{zone}\"\n\
                 off_peak = \"{}\"\nfill_rate = \"400Mbit/s\"\n{}",
                self.off_peak(*longitude),
                self.cluster
            );
            for n in 0..self.nodes {
                let ip = self.edge(c, n);
                let _ = writeln!(
                    text,
                    "[[cluster.node]]\nname = \"{name}-{}\"\naddress = \"{ip}\"\nlisten = \"{ip}:8080\"\nadmin = \"{ip}:9100\"\n\
                     memory = \"16MiB\"\ndisk = \"64MiB\"\nthreads = 1",
                    n + 1
                );
                if files.is_some() {
                    let _ = writeln!(text, "listen_tls = \"{ip}:8443\"");
                }
            }
        }
        let url = self
            .origin
            .clone()
            .unwrap_or_else(|| format!("http://{origin}"));
        let _ = writeln!(
            text,
            "\n[[site]]\nname = \"www\"\nhosts = {:?}\norigin = \"{url}\"\nsteering = \"{}\"\nttl = \"5s\"\n{}",
            self.hosts, self.steering, self.site
        );
        text + "\n[[zone]]\nname = \"demo.test\"\nrecords = [\"www CNAME www.cdn.test.\", \"@ MX 10 mail\", \"mail A 192.0.2.25\", \"@ TXT \\\"v=spf1 mx -all\\\"\"]\n"
            + &self.more
    }

    /// The names of the nodes that [`Fleet::start`] starts, with their commands, in order.
    fn roles(&self) -> Vec<(&'static str, String, Ipv4Addr)> {
        let mut roles = vec![("control", "control".to_owned(), self.block.host(70))];
        if self.origin.is_none() {
            roles.push(("origin", "origin".to_owned(), self.block.host(80)));
        }
        for (c, place) in PLACES.iter().enumerate().take(self.clusters) {
            for n in 0..self.nodes {
                roles.push(("edge", format!("{}-{}", place.0, n + 1), self.edge(c, n)));
            }
        }
        roles.push(("gslb-dns", "ns1".to_owned(), self.block.host(53)));
        roles
    }
}

/// A running fleet. Dropping it kills its processes and removes its directory.
pub struct Fleet {
    /// Its settings.
    pub plan: Plan,
    /// Its nodes by name.
    pub nodes: BTreeMap<String, Process>,
    directory: TempDir,
}

impl Fleet {
    /// Writes the file, makes `content/` with an `index.html`, starts every role and waits until
    /// all are ready and every edge is in the answers.
    pub fn start(plan: Plan) -> Self {
        let directory =
            TempDir::with_prefix("nearcast-e2e-").expect("a temporary directory can be made");
        std::fs::write(directory.path().join("nearcast.toml"), plan.text())
            .expect("the fleet file can be written");
        std::fs::create_dir(directory.path().join("content")).expect("content can be made");
        std::fs::write(
            directory.path().join("content/index.html"),
            "<h1>hello</h1>\n",
        )
        .expect("a page can be written");
        let mut fleet = Self {
            plan,
            nodes: BTreeMap::new(),
            directory,
        };
        if fleet.plan.own_keys {
            let (key, state) = (fleet.path("fleet.key"), fleet.path("state"));
            for arguments in [
                ["key", "--new", "--out", &key.to_string_lossy()].as_slice(),
                &["key", "--all", "--dir", &state.to_string_lossy()],
            ] {
                let made = fleet.operate(arguments);
                assert!(
                    made.status.success(),
                    "{}",
                    String::from_utf8_lossy(&made.stderr)
                );
            }
        }
        let roles = fleet.plan.roles();
        for (role, name, _) in &roles {
            fleet.start_node(role, name);
        }
        for (_, name, ip) in &roles {
            fleet.wait_ready(name, *ip);
        }
        for (place, subnet) in CLIENTS.iter().take(fleet.plan.clusters) {
            wait::until(
                &format!("all edges of {place} in the answers"),
                READY,
                || {
                    let found = tools::dig_addresses(fleet.plan.dns(), "www.cdn.test", subnet);
                    if found.len() == fleet.plan.nodes || fleet.plan.steering != "geo" {
                        Ok(())
                    } else {
                        Err(format!("{found:?}"))
                    }
                },
            );
        }
        fleet
    }

    /// Path of a file of the fleet's directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// Starts (again) one node.
    pub fn start_node(&mut self, role: &str, name: &str) {
        let mut command = nearcast();
        command
            .args([role, "--node", name, "--fleet"])
            .arg(self.path("nearcast.toml"));
        if role == "origin" && self.plan.demo_content {
            command.arg("--demo-content");
        }
        let process = Process::start(name, self.directory.path(), command);
        self.nodes.insert(name.to_owned(), process);
    }

    /// Waits until a node's admin listener says that it is ready.
    pub fn wait_ready(&mut self, name: &str, ip: Ipv4Addr) {
        let certificates = self.plan.certificates.clone();
        let node = self.nodes.get_mut(name).expect("the node was started");
        wait::until(&format!("{name} to be ready"), READY, || {
            if let Some(status) = node.ended() {
                panic!("{name} ended with {status}:\n{}", node.output());
            }
            let mut asking = std::process::Command::new("curl");
            asking.args(["-s", "-o", "/dev/null", "-m", "2", "-w", "%{http_code}"]);
            match &certificates {
                None => asking.arg(format!("http://{ip}:9100/ready")),
                Some(directory) => asking
                    .arg("--cacert")
                    .arg(directory.join("ca.pem"))
                    .arg(format!("https://{ip}:9100/ready")),
            };
            let code = asking.output().expect("curl runs; tests/run installs it");
            if code.stdout == b"200" {
                Ok(())
            } else {
                Err(format!("/ready: {}", String::from_utf8_lossy(&code.stdout)))
            }
        });
    }

    /// The node of that name.
    pub fn node(&mut self, name: &str) -> &mut Process {
        self.nodes.get_mut(name).expect("the node was started")
    }

    /// `curl` for `http://www.demo.test<path>` at one edge; arguments come before the URL.
    pub fn curl(&self, edge: Ipv4Addr, arguments: &[&str], path: &str) -> String {
        let resolve = format!("www.demo.test:8080:{edge}");
        let url = format!("http://www.demo.test:8080{path}");
        tools::curl(&[&["--resolve", &resolve], arguments, &[url.as_str()]].concat())
    }

    /// The response head that an edge gives for a path, in lower case.
    pub fn head(&self, edge: Ipv4Addr, path: &str) -> String {
        self.curl(edge, &["-D", "-", "-o", "/dev/null"], path)
            .to_lowercase()
    }

    /// Runs an operator command of the binary with this fleet; gives its output.
    pub fn operate(&self, arguments: &[&str]) -> std::process::Output {
        nearcast()
            .args(arguments)
            .env("NEARCAST_FLEET", self.path("nearcast.toml"))
            .output()
            .expect("the binary runs")
    }
}
