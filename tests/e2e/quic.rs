//! QUIC at an edge: which worker gets a packet, handshakes and their limits, false senders, and the
//! end of connections. The client is `aioquic`, driven a datagram at a time (`lab/quic.py`).

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::lab::addresses::Block;
use crate::lab::certificates::{Authority, ECDSA, Pair};
use crate::lab::fleet::{Fleet, Plan};
use crate::lab::process::{Process, nearcast, run};
use crate::lab::tools::{self, PYTHON};
use crate::lab::wait;

const LIMIT: Duration = Duration::from_secs(30);
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/lab/quic.py");

/// An edge with a fleet file, without control and origin.
struct Lab {
    edge: Process,
    address: SocketAddr,
    admin: SocketAddr,
    _directory: tempfile::TempDir,
}

/// The command of an edge with settings of `[clients]` and of its node.
fn command(block: Block, directory: &std::path::Path, clients: &str, node: &str) -> Command {
    let pair = Pair::make(directory, "www", &ECDSA, "DNS:www.test");
    let ip = block.host(10);
    let mut text = format!(
        "[fleet]\nzone = \"cdn.test\"\nstate_dir = \"state\"\n{}\n[clients]\n{clients}\n",
        pair.section()
    );
    let _ = write!(
        text,
        "[[cluster]]\nname = \"ams\"\nplace = {{ latitude = 52.37, longitude = 4.9 }}\n\
         [[cluster.node]]\nname = \"ams-1\"\naddress = \"{ip}\"\nlisten = \"{ip}:8080\"\nlisten_tls = \"{ip}:8443\"\n\
         admin = \"{ip}:9100\"\nmemory = \"16MiB\"\ndisk = \"0\"\n{node}\n\
         [[site]]\nname = \"www\"\nhosts = [\"www.test\"]\norigin = \"http://{}:8000\"\n",
        block.host(80)
    );
    let file = directory.join("nearcast.toml");
    std::fs::write(&file, text).expect("the fleet file can be written");
    let mut command = nearcast();
    command.args(["edge", "--node", "ams-1", "--user", "root", "--fleet"]);
    command.arg(&file);
    command
}

impl Lab {
    fn start(clients: &str, node: &str) -> Self {
        let block = Block::take();
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let command = command(block, directory.path(), clients, node);
        let mut edge = Process::start("edge", directory.path(), command);
        edge.wait_for_output("the edge serves", LIMIT);
        let [address, admin] = [8443, 9100].map(|port| SocketAddr::from((block.host(10), port)));
        Self {
            edge,
            address,
            admin,
            _directory: directory,
        }
    }

    /// Runs a case to its end.
    fn client(&self, case: &str, more: &[&str]) -> String {
        run(PYTHON, arguments(self.address, case, more))
    }

    /// The edge has not lost a task.
    fn is_well(&self) {
        let output = self.edge.output();
        assert!(!output.contains("panicked"), "{output}");
    }

    fn metric(&self, series: &str) -> u64 {
        let metrics = tools::curl(&[&format!("http://{}/metrics", self.admin)]);
        let line = metrics.lines().find(|line| line.starts_with(series));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("no {series} in {metrics}")) as u64
    }

    fn handshakes(&self, result: &str) -> u64 {
        self.metric(&format!(
            "nearcast_edge_tls_handshakes_total{{result=\"{result}\"}}"
        ))
    }

    fn incoming(&self, result: &str) -> u64 {
        self.metric(&format!(
            "nearcast_edge_quic_incoming_total{{result=\"{result}\"}}"
        ))
    }

    fn wait_handshakes(&self, result: &str, count: u64) {
        let what = format!("{count} handshakes with {result}");
        wait::until(&what, LIMIT, || match self.handshakes(result) {
            found if found >= count => Ok(()),
            found => Err(format!("{found}")),
        });
    }

    fn memory_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.edge.pid());
        let status = std::fs::read_to_string(path).expect("the edge runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kilobytes.expect("a number") << 10
    }
}

fn arguments(address: SocketAddr, case: &str, more: &[&str]) -> Vec<String> {
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let own = [CLIENT, case, &ip, &port];
    own.iter().chain(more).map(ToString::to_string).collect()
}

/// A case in which something is done in the middle.
struct Held {
    child: Child,
    /// Open until the child has ended, which may print more.
    _output: BufReader<std::process::ChildStdout>,
}

impl Held {
    /// Gives the first line that it prints.
    fn start(address: SocketAddr, case: &str, more: &[&str], name: &str) -> (Self, String) {
        let mut child = Command::new(PYTHON)
            .args(arguments(address, case, more))
            .env("QUIC_NAME", name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python runs; tests/run installs it");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("it prints a line");
        let held = Self {
            child,
            _output: output,
        };
        (held, line.trim().to_owned())
    }

    /// Lets it go on to its end.
    fn finish(mut self) {
        let mut input = self.child.stdin.take().expect("piped");
        // It may have ended already, with a message.
        let _ = input.write_all(b"\n");
        drop(input);
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "the client says on stderr what is wrong");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_client_connects_and_resumes_its_session_without_early_data() {
    let lab = Lab::start("", "threads = 2");
    lab.client("connect", &[]);
    lab.wait_handshakes("resumed", 1);
    assert_eq!(lab.handshakes("full"), 1);
    assert_eq!(lab.incoming("accepted"), 2);
    assert_eq!((lab.incoming("retry"), lab.incoming("refused")), (0, 0));
    lab.is_well();
}

#[test]
fn a_connection_goes_on_at_its_worker_when_its_client_changes_port_and_address() {
    for threads in ["threads = 2", "threads = 5"] {
        let lab = Lab::start("", threads);
        lab.client("migrate", &[]);
        lab.is_well();
    }
}

#[test]
fn copies_of_datagrams_from_an_attacker_end_no_connection() {
    let lab = Lab::start("", "threads = 2");
    lab.client("copied", &[]);
    lab.is_well();
}

#[test]
fn other_versions_of_quic_are_told_which_one_is_served() {
    let lab = Lab::start("", "threads = 2");
    lab.client("versions", &[]);
    assert_eq!(lab.incoming("accepted"), 1);
}

#[test]
fn thousands_of_broken_datagrams_end_nothing() {
    let lab = Lab::start("", "threads = 2");
    lab.client("garbage", &[]);
    lab.is_well();
}

#[test]
fn when_many_handshakes_are_under_way_clients_show_their_addresses_first() {
    let lab = Lab::start("", "threads = 1");
    lab.client("retry", &["70"]);
    assert!(lab.incoming("retry") >= 5);
    lab.is_well();
}

#[test]
fn an_edge_that_was_started_again_resets_the_connections_that_it_lost() {
    let directory = tempfile::tempdir().expect("a directory");
    let plan = Plan {
        clusters: 1,
        certificates: Some(directory.path().to_owned()),
        ..Plan::new()
    };
    Authority::new(&directory.path().join("ca.pem")).write(&plan, directory.path());
    let mut fleet = Fleet::start(plan);
    let shared = "session-ticket keys come from control";
    fleet.node("ams-1").wait_for_output(shared, LIMIT);
    let address = SocketAddr::from((fleet.plan.edge(0, 0), 8443));
    let (client, line) = Held::start(address, "reset", &[], "www.demo.test");
    assert_eq!(line, "connected");
    fleet.node("ams-1").kill();
    fleet.start_node("edge", "ams-1");
    client.finish();
}

#[test]
fn handshakes_that_go_no_further_are_ended() {
    let lab = Lab::start("handshake_timeout = \"1s\"", "threads = 1");
    lab.client("unfinished", &["20"]);
    lab.wait_handshakes("timeout", 20);
    let connections = || lab.metric("nearcast_edge_connections ");
    wait::until("no connections", LIMIT, || match connections() {
        0 => Ok(()),
        open => Err(format!("{open}")),
    });
    lab.is_well();
}

#[test]
fn a_client_that_names_an_unknown_host_or_protocol_gets_the_alert() {
    let lab = Lab::start("", "threads = 1");
    lab.client("unknown-name", &[]);
    for result in ["unknown-name", "no-protocol", "full"] {
        lab.wait_handshakes(result, 1);
    }
}

#[test]
fn a_client_has_its_share_of_connections_and_its_idle_ones_make_room() {
    let lab = Lab::start("connections_max = 24", "threads = 1");
    let (many, count) = Held::start(lab.address, "many", &["60"], "www.test");
    let count: u64 = count.parse().expect("a number");
    assert!(count > 18, "{count}");
    assert!(lab.metric("nearcast_edge_connections ") < 24);
    assert!(lab.metric("nearcast_edge_idle_connections_closed_total") > 0);
    lab.client("other-client", &["127.0.0.99"]);
    many.finish();
}

#[test]
fn handshakes_take_half_of_the_connections_at_most() {
    let lab = Lab::start(
        "connections_max = 24\nhandshake_timeout = \"5m\"",
        "threads = 1",
    );
    lab.client("unfinished", &["12"]);
    lab.client("refused", &[]);
    assert_eq!(lab.handshakes("too-many"), 1);
    assert_eq!((lab.incoming("accepted"), lab.incoming("refused")), (12, 1));
}

#[test]
fn a_flood_of_false_first_packets_holds_no_connection_up_and_takes_no_memory() {
    let lab = Lab::start("", "threads = 1");
    lab.client("flood", &["2"]);
    let before = lab.memory_bytes();
    lab.client("flood", &["8"]);
    let after = lab.memory_bytes();
    assert!(after < before + (16 << 20), "{before} {after}");
    assert!(lab.incoming("retry") > 100);
    lab.is_well();
}

#[test]
fn an_edge_that_ends_closes_connections_and_accepts_none() {
    let mut lab = Lab::start("", "threads = 2");
    let (client, line) = Held::start(lab.address, "drain", &[], "www.test");
    assert_eq!(line, "connected");
    lab.edge.signal("TERM");
    client.finish();
    assert!(lab.edge.wait(LIMIT).success());
    lab.is_well();
}

#[test]
fn a_udp_port_in_use_is_named_with_the_setting_that_does_without() {
    let block = Block::take();
    let _other = UdpSocket::bind((block.host(10), 8443)).expect("a free address");
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let mut edge = Process::start(
        "edge",
        directory.path(),
        command(block, directory.path(), "", ""),
    );
    let status = edge.wait(LIMIT);
    let output = edge.output();
    assert_eq!(status.code(), Some(69), "{output}");
    assert!(
        output.contains("cannot listen for HTTP/3 clients (UDP) on")
            && output.contains("`http3 = false` in [clients]"),
        "{output}"
    );

    let mut edge = Process::start(
        "edge-without",
        directory.path(),
        command(block, directory.path(), "http3 = false", ""),
    );
    edge.wait_for_output("the edge serves", LIMIT);
}

#[test]
fn answers_come_from_the_address_that_was_asked_by_ipv4_and_ipv6() {
    let block = Block::take();
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let mut command = command(block, directory.path(), "", "threads = 2");
    let file = directory.path().join("nearcast.toml");
    let text = std::fs::read_to_string(&file).expect("written");
    let own = format!("listen_tls = \"{}:8443\"", block.host(10));
    assert!(text.contains(&own));
    // No other listener of these tests has the port.
    let any = text.replace(&own, "listen_tls = \"[::]:18443\"");
    std::fs::write(&file, any).expect("written");
    let mut edge = Process::start("edge", directory.path(), {
        command.current_dir(directory.path());
        command
    });
    edge.wait_for_output("the edge serves", LIMIT);
    // A client takes answers from the address that it asked only.
    let addresses = ["::1".parse().expect("an address"), block.host(33).into()];
    for ip in addresses {
        let address = SocketAddr::new(ip, 18443);
        run(PYTHON, arguments(address, "connect", &[]));
    }
}

#[test]
fn listeners_with_a_proxy_protocol_serve_no_quic() {
    let block = Block::take();
    let address = format!("{}:8443", block.host(10));
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let node = format!("proxy_protocol = \"{address}\"");
    let clients = "trusted_proxies = \"192.0.2.0/24\"";
    let mut edge = Process::start(
        "edge",
        directory.path(),
        command(block, directory.path(), clients, &node),
    );
    edge.wait_for_output("the edge serves", LIMIT);
    UdpSocket::bind(address).expect("the port is free for UDP");
}
