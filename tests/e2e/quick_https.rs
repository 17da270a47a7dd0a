//! `nearcast edge --listen :443 --origin URL --host HOST`: a domain, one command, https. The authority
//! is Pebble, which finds the host by pebble-challtestsrv.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nearcast_testing::{Origin, Reply};
use tempfile::TempDir;

use crate::full_disk::SmallDisk;
use crate::lab::addresses::Block;
use crate::lab::certificates::{Authority, s_client};
use crate::lab::network::remove_leftovers;
use crate::lab::process::{Process, nearcast, run};
use crate::lab::tools::curl;
use crate::lab::wait;

const SOON: Duration = Duration::from_secs(120);
const HOST: &str = "www.example.org";
/// Where the edge listens, and where nobody does.
const HTTPS: u16 = 8443;
const HTTP: u16 = 8080;
const NOWHERE: u16 = 9999;

/// An authority, the names that it knows, and an origin.
struct World {
    block: Block,
    origin: Origin,
    // Before the directory, which has its output.
    _names: Process,
    directory: TempDir,
}

/// The ports at which an authority asks, and how long its certificates are valid.
#[derive(Clone, Copy)]
struct Asks {
    https: u16,
    http: u16,
    valid_s: u64,
}

const BY_TLS: Asks = Asks {
    https: HTTPS,
    http: NOWHERE,
    valid_s: 30 * 86_400,
};

impl World {
    /// A world whose names have this address.
    fn new(address: &str) -> Self {
        let block = Block::take();
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let origin = Origin::start_at(SocketAddr::from((block.host(80), 8000)), |_| {
            Reply::ok("hello", "max-age=60")
        });
        let address = address.replace("EDGE", &block.host(10).to_string());
        let mut command = Command::new("pebble-challtestsrv");
        command
            .args(["-defaultIPv4", &address, "-defaultIPv6", ""])
            .args(["-dns01", &format!("{}:5353", block.host(53))])
            .args(["-management", &format!("{}:8055", block.host(53))])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        let names = Process::start("names", directory.path(), command);
        let world = Self {
            block,
            directory,
            origin,
            _names: names,
        };
        wait::until("the names", SOON, || {
            std::net::TcpStream::connect((block.host(53), 8055)).map(drop)
        });
        Authority::new(&world.path("ca.pem"))
            .write_for(&[block.host(90).to_string()], world.directory.path());
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn edge_address(&self) -> Ipv4Addr {
        self.block.host(10)
    }

    /// Starts the authority.
    fn authority(&self, asks: Asks) -> Process {
        let [address, management] =
            [14000, 15000].map(|port| SocketAddr::from((self.block.host(90), port)));
        let config = serde_json::json!({"pebble": {
            "listenAddress": address, "managementListenAddress": management,
            "certificate": self.path("node.pem"), "privateKey": self.path("node.key"),
            "httpPort": asks.http, "tlsPort": asks.https, "ocspResponderURL": "",
            "externalAccountBindingRequired": false, "certificateValidityPeriod": asks.valid_s,
        }});
        std::fs::write(self.path("pebble.json"), config.to_string()).expect("written");
        let mut command = Command::new("pebble");
        command.arg("-config").arg(self.path("pebble.json"));
        command.args(["-strict", "-dnsserver"]);
        command.arg(format!("{}:5353", self.block.host(53)));
        // It waits for seconds otherwise before it asks, and refuses a part of all nonces.
        command.env("PEBBLE_VA_NOSLEEP", "1");
        command.env("PEBBLE_WFE_NONCEREJECT", "10");
        let pebble = Process::start("pebble", self.directory.path(), command);
        // Its root is made anew at each start.
        wait::until("the authority", SOON, || {
            let root = Command::new("curl")
                .args(["-sfk", "--max-time", "20"])
                .arg(format!("https://{management}/roots/0"))
                .output()
                .expect("curl runs; tests/run installs it");
            std::fs::write(self.path("root.pem"), &root.stdout).expect("written");
            match root.status.success() {
                true => Ok(()),
                false => Err("it does not answer"),
            }
        });
        pebble
    }

    /// The command with its usual arguments and these.
    fn command(&self, more: &[&str]) -> Command {
        let edge = self.edge_address();
        let mut command = nearcast();
        command
            .args(["edge", "--listen", &format!("{edge}:{HTTPS}")])
            .args(["--listen-http", &format!("{edge}:{HTTP}")])
            .args(["--origin", &self.origin.url(), "--host", HOST])
            .args(["--contact", "ops@example.org"])
            .args(self.of_authority())
            .args(more);
        command
    }

    /// The arguments by which the authority of this world is asked.
    fn of_authority(&self) -> [String; 6] {
        [
            "--acme-ca".to_owned(),
            self.path("ca.pem").display().to_string(),
            "--acme-directory".to_owned(),
            format!("https://{}:14000/dir", self.block.host(90)),
            "--resolver".to_owned(),
            format!("{}:5353", self.block.host(53)),
        ]
    }

    /// Starts the edge.
    fn edge(&self) -> Process {
        let mut command = self.command(&["--state-dir"]);
        command.arg(self.path("state"));
        let edge = Process::start("edge", self.directory.path(), command);
        wait::until("the edge to listen", SOON, || {
            std::net::TcpStream::connect((self.edge_address(), HTTP)).map(drop)
        });
        edge
    }

    /// What a client gets that trusts the authority.
    fn fetch(&self) -> Result<String, String> {
        self.fetch_of(HOST)
    }

    fn fetch_of(&self, host: &str) -> Result<String, String> {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "-i", "--cacert"])
            .arg(self.path("root.pem"))
            .args([
                "--resolve",
                &format!("{host}:{HTTPS}:{}", self.edge_address()),
            ])
            .arg(format!("https://{host}:{HTTPS}/page"))
            .output()
            .expect("curl runs; tests/run installs it");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn wait_served(&self) -> String {
        wait::until("the host to be served", SOON, || self.fetch())
    }

    /// The certificate that the edge shows.
    fn shown(&self) -> Option<String> {
        let edge = SocketAddr::from((self.edge_address(), HTTPS));
        let said = s_client(edge, &["-servername", HOST], "");
        let from = said.find("-----BEGIN CERTIFICATE-----")?;
        let pem = &said[from..];
        Some(pem[..pem.find("-----END CERTIFICATE-----")?].to_owned())
    }

    fn redirect(&self) -> String {
        let at = format!("http://{}:{HTTP}/a?b", self.edge_address());
        curl(&["-i", "-H", &format!("Host: {HOST}"), &at]).to_lowercase()
    }
}

/// Whether a redirect leads to the same page by https.
fn leads_to_https(answer: &str) -> bool {
    let target = format!("location: https://{HOST}:{HTTPS}/a?b");
    answer.starts_with("http/1.1 301") && answer.contains(&target)
}

#[test]
fn a_domain_and_one_command_are_https() {
    let world = World::new("EDGE");
    let mut pebble = world.authority(BY_TLS);
    let mut edge = world.edge();
    let first = world.wait_served().to_lowercase();
    assert!(first.starts_with("http/2 200"), "{first}");
    let second = world.fetch().expect("it is served").to_lowercase();
    assert!(
        second.contains("; hit") && second.ends_with("hello"),
        "{second}"
    );
    assert!(leads_to_https(&world.redirect()), "{}", world.redirect());
    edge.wait_for_output(&format!("https://{HOST}:{HTTPS}/ is served"), SOON);
    let said = edge.output();
    for words in [
        "accepts its terms of service",
        &format!("waiting for a certificate of {HOST}"),
        &format!("{HOST} leads to this machine"),
    ] {
        assert!(said.contains(words), "{words} in:\n{said}");
    }
    assert!(!said.contains("PRIVATE KEY"), "{said}");
    let file = world.path(&format!("state/edge/acme/certificates/{HOST}.pem"));
    let mode = std::fs::metadata(&file).expect("it is there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);

    // A client that asks for a challenge when none is open gets an alert.
    let at = SocketAddr::from((world.edge_address(), HTTPS));
    let said = s_client(at, &["-servername", HOST, "-alpn", "acme-tls/1"], "");
    assert!(said.contains("no application protocol"), "{said}");

    // After a restart the certificate is the same, and nobody is asked for another.
    let shown = world.shown().expect("a certificate");
    pebble.kill();
    edge.signal("TERM");
    assert!(edge.wait(SOON).success());
    let mut edge = world.edge();
    world.wait_served();
    assert_eq!(world.shown(), Some(shown));
    edge.wait_for_output("has a certificate of an earlier run", SOON);
    // Both runs write to this file.
    let said = edge.output();
    assert_eq!(
        said.matches("waiting for a certificate").count(),
        1,
        "{said}"
    );
    assert!(!said.contains("no new certificate"), "{said}");
}

#[test]
fn the_command_of_the_readme_is_enough() {
    const README: &str = include_str!("../../README.md");
    let world = World::new("EDGE");
    let _pebble = world.authority(BY_TLS);
    let line = README.lines().map(str::trim);
    let mut lines = line.filter(|line| line.contains("--host www.example.com"));
    let line = lines.next().expect("the README has such a command");
    let [a_listener, an_origin] = [":443", "https://origin.example.com"];
    assert!(
        line.contains(a_listener) && line.contains(an_origin),
        "{line}"
    );
    let mut words = line.split_whitespace().skip(1).map(|word| match word {
        ":443" => format!("{}:{HTTPS}", world.edge_address()),
        "https://origin.example.com" => world.origin.url(),
        "www.example.com" => HOST.to_owned(),
        word => word.to_owned(),
    });
    // What differs in a test: the authority, its resolver, a port and a directory.
    let mut command = nearcast();
    command.args(&mut words);
    command.args(world.of_authority());
    command.args([
        "--host",
        "second.example.org",
        "--listen-http",
        &format!("{}:{HTTP}", world.edge_address()),
    ]);
    command.env("STATE_DIRECTORY", world.path("state"));
    let _edge = Process::start("edge", world.directory.path(), command);
    world.wait_served();
    wait::until("another host", SOON, || {
        world.fetch_of("second.example.org")
    });
    assert!(world.path("state/edge/acme").is_dir());
    assert!(leads_to_https(&world.redirect()), "{}", world.redirect());
}

#[test]
fn where_port_443_is_not_reached_a_file_on_port_80_is_the_proof() {
    let world = World::new("EDGE");
    let _pebble = world.authority(Asks {
        https: NOWHERE,
        http: HTTP,
        ..BY_TLS
    });
    let edge = world.edge();
    world.wait_served();
    let said = edge.output();
    assert!(said.contains("by another challenge now"), "{said}");
    // The proof is over: such paths are the origin's, as before.
    let path = "/.well-known/acme-challenge/some";
    let at = format!("http://{}:{HTTP}{path}", world.edge_address());
    let answer = curl(&["-i", "-H", &format!("Host: {HOST}"), &at]);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(world.origin.count(path), 1);
}

#[test]
fn a_certificate_is_renewed_before_it_ends() {
    let world = World::new("EDGE");
    let _pebble = world.authority(Asks {
        valid_s: 45,
        ..BY_TLS
    });
    let mut edge = world.edge();
    world.wait_served();
    let first = world.shown().expect("a certificate");
    let second = wait::until("another certificate", SOON, || {
        world.fetch()?;
        match world.shown() {
            Some(shown) if shown != first => Ok(shown),
            _ => Err("it is the same".to_owned()),
        }
    });
    assert_ne!(first, second);
    edge.wait_for_output("renewed a certificate", SOON);
}

#[test]
fn an_edge_on_a_full_disk_shows_the_certificate_that_it_has() {
    let world = World::new("EDGE");
    let disk = SmallDisk::mount(world.path("state"), "512k");
    let _pebble = world.authority(BY_TLS);
    let mut edge = world.edge();
    world.wait_served();
    let shown = world.shown();
    edge.signal("TERM");
    assert!(edge.wait(SOON).success());
    disk.fill();
    let mut edge = world.edge();
    edge.wait_for_output("no certificate is ordered until it can be kept", SOON);
    world.wait_served();
    assert_eq!(world.shown(), shown);
}

#[test]
fn an_authority_that_is_down_is_asked_again_while_http_is_served() {
    let world = World::new("EDGE");
    // Its certificate and directory, for later.
    world.authority(BY_TLS).kill();
    let mut edge = world.edge();
    edge.wait_for_output(&format!("no new certificate of {HOST}"), SOON);
    assert!(leads_to_https(&world.redirect()), "{}", world.redirect());
    assert!(world.fetch().is_err(), "there is no certificate yet");
    let _pebble = world.authority(BY_TLS);
    // The first pause is about a minute.
    wait::until("the host to be served", 3 * SOON, || world.fetch());
}

#[test]
fn a_host_without_an_address_is_waited_for_and_nothing_is_ordered() {
    let world = World::new("");
    let pebble = world.authority(BY_TLS);
    let mut edge = world.edge();
    let edge_address = world.edge_address();
    edge.wait_for_output(&format!("{HOST} has no address"), SOON);
    let said = edge.output();
    let hint = format!("create the record `{HOST}. A {edge_address}`");
    assert!(said.contains(&hint), "{said}");
    let orders = pebble.output().matches("orders in the db").count();
    assert_eq!(orders, 0, "{}", pebble.output());

    let management = format!("http://{}:8055/set-default-ipv4", world.block.host(53));
    curl(&["-d", &format!("{{\"ip\":\"{edge_address}\"}}"), &management]);
    world.wait_served();
    edge.wait_for_output(&format!("{HOST} has an address now"), SOON);
}

#[test]
fn a_host_that_leads_elsewhere_is_said_before_the_order() {
    let world = World::new("192.0.2.99");
    let mut edge = world.edge();
    edge.wait_for_output(&format!("{HOST} leads to 192.0.2.99, and not to"), SOON);
}

/// A network namespace with a loopback of its own, whose low ports are free.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        remove_leftovers();
        let namespace = Self(format!("nc{}-quick", std::process::id()));
        run("ip", ["netns", "add", &namespace.0]);
        let up = [
            "netns",
            "exec",
            &namespace.0,
            "ip",
            "link",
            "set",
            "lo",
            "up",
        ];
        run("ip", up);
        namespace
    }

    fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).args(program);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.0])
            .status();
    }
}

#[test]
fn a_port_alone_is_every_address_and_ports_80_and_443_need_a_right() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let namespace = Namespace::new();
    // Neither a resolver nor an authority answers there.
    let state = directory.path().join("state").display().to_string();
    let arguments = format!(
        "edge --listen :443 --origin http://127.0.0.1:1 --host {HOST} --resolver 127.0.0.1:5353 \
         --acme-directory https://127.0.0.1:1/dir --state-dir {state}"
    );
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let binary = env!("CARGO_BIN_EXE_nearcast");
    let mut command = namespace.command(&["setpriv", "--bounding-set=-net_bind_service", binary]);
    command.args(&arguments).env("COLUMNS", "4000");
    let (status, said) = ended(command, directory.path());
    assert_eq!(status, Some(77), "{said}");
    for words in [
        "CAP_NET_BIND_SERVICE",
        "setcap",
        "ip_unprivileged_port_start",
    ] {
        assert!(said.contains(words), "{said}");
    }

    let mut command = namespace.command(&[binary]);
    command.args(&arguments);
    let mut edge = Process::start("edge", directory.path(), command);
    edge.wait_for_output("the edge serves", SOON);
    edge.wait_for_output("cannot be checked: the resolver 127.0.0.1:5353", SOON);
    let ask = |arguments: &[&str]| {
        let output = namespace
            .command(&["curl", "-si", "--max-time", "20"])
            .args(arguments)
            .output()
            .expect("curl runs; tests/run installs it");
        String::from_utf8_lossy(&output.stdout).to_lowercase()
    };
    for address in ["127.0.0.1", "[::1]"] {
        let at = format!("http://{address}/a?b");
        let answer = ask(&["-H", &format!("Host: {HOST}"), &at]);
        let target = format!("location: https://{HOST}/a?b\r\n");
        assert!(answer.contains(&target), "{address}: {answer}");
        let answer = ask(&["-H", "Host: other.example.org", &at]);
        assert!(answer.starts_with("http/1.1 421"), "{address}: {answer}");
        // HTTPS listens there, too, and says that it has no certificate yet.
        let at = format!("{HOST}:443:{address}");
        let mut command = namespace.command(&["curl", "-sS", "--max-time", "20", "--resolve", &at]);
        let output = command.arg(format!("https://{HOST}/")).output();
        let said = output.expect("curl runs; tests/run installs it").stderr;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("unrecognized name"), "{address}: {said}");
    }
}

#[test]
fn what_cannot_work_is_refused_with_a_hint() {
    let world = World::new("EDGE");
    let taken = std::net::TcpListener::bind((world.edge_address(), 8081)).expect("it is free");
    let taken = taken.local_addr().expect("bound").to_string();
    let file = world.path("file");
    std::fs::write(&file, "").expect("written");
    let in_file = file.join("state").display().to_string();
    let missing = world.path("missing.pem").display().to_string();
    let edge = world.edge_address();
    let (empty, of_http) = (file.display().to_string(), format!("{edge}:80"));
    let free = format!("{edge}:8444");
    let base = ["edge", "--origin", "http://127.0.0.1:1"];
    // Arguments; exit code; words of the error.
    let table: Vec<(Vec<&str>, i32, &str)> = vec![
        (
            vec!["--listen", &free, "--host", "192.0.2.1"],
            64,
            "it is an address",
        ),
        (
            vec!["--listen", &free, "--host", "*.example.org"],
            64,
            "such as www.example.org",
        ),
        (
            vec!["--listen", &free, "--host", "localhost"],
            64,
            "no top-level names",
        ),
        (
            vec![
                "--listen", &free, "--host", HOST, "--cert", "a", "--key", "b",
            ],
            64,
            "cannot be used with",
        ),
        (
            vec![
                "--listen",
                &free,
                "--host",
                HOST,
                "--no-redirect",
                "--listen-http",
                &taken,
            ],
            64,
            "cannot be used with",
        ),
        (vec!["--host", HOST], 64, "--listen"),
        (
            vec![
                "--listen",
                &free,
                "--host",
                HOST,
                "--acme-directory",
                "http://a.test/",
            ],
            64,
            "without TLS",
        ),
        (
            vec!["--listen", &free, "--host", HOST, "--acme-ca", &missing],
            66,
            "--acme-ca: ",
        ),
        (
            vec!["--listen", &free, "--host", HOST, "--acme-ca", &empty],
            66,
            "name a PEM file",
        ),
        (
            vec!["--listen", &of_http, "--host", HOST],
            64,
            ":443, beside which port 80 is opened",
        ),
        (
            vec!["--listen", &taken, "--host", HOST, "--no-redirect"],
            69,
            "another program listens",
        ),
        (
            vec!["--listen", &free, "--host", HOST, "--listen-http", &taken],
            69,
            "--listen-http ADDR:PORT, or have none with --no-redirect",
        ),
        (
            vec![
                "--listen",
                &free,
                "--host",
                HOST,
                "--no-redirect",
                "--state-dir",
                &in_file,
            ],
            73,
            "",
        ),
    ];
    let mut failures = String::new();
    for (arguments, code, words) in table {
        let mut command = nearcast();
        command.args(base).args(&arguments).env("COLUMNS", "4000");
        let is_named = arguments.contains(&"--state-dir");
        if !is_named && arguments.contains(&"--listen") {
            command.arg("--state-dir").arg(world.path("other"));
        }
        let (status, said) = ended(command, world.directory.path());
        if status != Some(code) || !said.contains(words) {
            let _ = writeln!(failures, "{arguments:?}: {status:?}\n{said}");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn a_state_directory_belongs_to_one_edge() {
    let world = World::new("EDGE");
    let state = world.path("state").display().to_string();
    let command = |port: u16| {
        let listen = format!("{}:{port}", world.edge_address());
        let mut command = nearcast();
        command
            .args(["edge", "--listen", &listen, "--no-redirect", "--host", HOST])
            .args(["--origin", &format!("https://{HOST}")])
            .args(["--state-dir", &state])
            .args(world.of_authority())
            .env("COLUMNS", "4000");
        command
    };
    let mut edge = Process::start("edge", world.directory.path(), command(HTTPS));
    edge.wait_for_output("use another name for the origin", SOON);
    edge.wait_for_output("the edge serves", SOON);
    let (status, said) = ended(command(8444), world.directory.path());
    assert_eq!(status, Some(69), "{said}");
    let words = format!("{state}/edge is in use by another edge");
    assert!(said.contains(&words), "{said}");

    edge.signal("TERM");
    assert!(edge.wait(SOON).success());
    let mut edge = Process::start("edge", world.directory.path(), command(8444));
    edge.wait_for_output("the edge serves", SOON);
}

/// How a command that must end has ended, and what it said.
fn ended(command: Command, directory: &Path) -> (Option<i32>, String) {
    let _ = std::fs::remove_file(directory.join("refused.log"));
    let mut process = Process::start("refused", directory, command);
    let status = process.wait(SOON);
    (status.code(), process.output())
}
