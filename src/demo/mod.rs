//! `nearcast demo`: a whole CDN of child processes on this machine.
//!
//! Locks its directory, checks that its addresses are free, writes the fleet file, starts every
//! role, waits until all are ready and steering works, prints commands to try, and watches its
//! children until it ends. However it ends, its children end with it.

mod certificates;
mod children;
mod dir;
mod file;

use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use nearcast_fleet::client::Client;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::{Failure, FailureKind};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::signal::unix::{Signal, SignalKind};
use tokio::sync::mpsc;

use self::children::{Children, Ended};
use self::dir::DemoDir;
use self::file::CLUSTERS;
use crate::cli::DemoArgs;
use crate::operate::key;
use crate::traffic::dns;
use crate::{find, signals};

/// How long everything may take to be ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// Time between two looks at what is not ready yet.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Time between two looks at whether the parent still lives.
const PARENT_EVERY: Duration = Duration::from_millis(250);
/// Time between two lines of the clients' progress, where it is not one line that is redrawn.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Name of the clients among the children.
const TRAFFIC: &str = "traffic";

/// Runs the demo to its end.
pub(crate) async fn run(arguments: DemoArgs, log: Option<&str>) -> Result<(), Failure> {
    if let Some(directory) = &arguments.certificates {
        let written = certificates::write_unless_recent(directory, Timestamp::now())?;
        let state = if written { "written" } else { "recent already" };
        outln!("{}: {state}", directory.join(certificates::ROOT).display());
        return Ok(());
    }
    let mut ends = Ends::listen()?;
    let path = arguments.state_dir.clone().unwrap_or_else(find::demo_dir);
    let dir = DemoDir::take(&path)?;
    let outcome = live(&arguments, log, dir.path(), &mut ends).await;
    if arguments.keep {
        outln!("kept: {}", dir.path().display());
        return outcome;
    }
    let (path, removed) = (dir.path().to_owned(), dir.remove());
    removed.map_err(|e| {
        Failure::new(
            FailureKind::Io,
            format!("cannot remove {}: {e}; remove it yourself", path.display()),
        )
    })?;
    outcome
}

/// Runs the demo in its directory until all children have ended.
async fn live(
    arguments: &DemoArgs,
    log: Option<&str>,
    dir: &Path,
    ends: &mut Ends,
) -> Result<(), Failure> {
    let fleet_path = dir.join(find::FILE_NAME);
    let now = Timestamp::now();
    let text = file::text(now, arguments.clock_speed);
    certificates::write(&dir.join(certificates::DIRECTORY), now)?;
    // Control and the name server hold the fleet's key, the others their own, which they find in
    // their state directories.
    let root = key::new_key()?;
    key::write(&dir.join(file::KEY), &root)?;
    std::fs::write(&fleet_path, text).map_err(|e| {
        Failure::new(
            FailureKind::CannotCreate,
            format!("cannot write {}: {e}", fleet_path.display()),
        )
    })?;
    let fleet = nearcast_fleet::file::load(&fleet_path)?;
    key::write_all(&root, &fleet, dir)?;
    check_addresses(&fleet)?;
    let mut children = Children::new(dir, &fleet_path, log)?;
    let outcome = tokio::select! {
        outcome = serve(arguments, &fleet, dir, &mut children) => outcome,
        why = ends.requested() => {
            outln!("\n{why}: ending everything");
            Ok(())
        }
    };
    tokio::select! {
        () = children.end() => {}
        _ = ends.requested() => {} // a second request: the remaining children are killed when they are dropped
    }
    outcome
}

/// Starts everything, prints commands to try, and watches. Returns only with a failure.
async fn serve(
    arguments: &DemoArgs,
    fleet: &Fleet,
    dir: &Path,
    children: &mut Children,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let nodes = nodes(fleet);
    outln!("Starting {} processes ...", nodes.len());
    for node in &nodes {
        let mut command = vec![node.role, "--node", &node.name];
        if node.role == "origin" {
            command.push("--demo-content");
        }
        children.start(&node.name, &command, false)?;
    }
    let ready = async {
        for node in &nodes {
            wait_ready(node).await;
        }
        wait_steered().await;
    };
    tokio::select! {
        () = ready => {}
        ended = children.next_ended() => return Err(ended_early(&ended, children)),
        () = tokio::time::sleep(READY_MAX) => return Err(never_ready(dir)),
    }
    let default_dir = arguments.state_dir.is_none();
    out!(
        "{}",
        banner(
            begun.elapsed(),
            arguments.clock_speed,
            dir,
            default_dir,
            |name| children.pid(name)
        )
    );
    let rate = arguments.traffic_rate.to_string();
    let lines = match arguments.no_traffic {
        true => None,
        false => children.start(
            TRAFFIC,
            &["traffic", "--progress", "1s", "--rate", &rate],
            true,
        )?,
    };
    Err(watch(children, lines, nodes.len(), dir).await)
}

/// Prints the clients' progress and each child that ends; returns when all nodes have ended.
async fn watch<L: AsyncRead + Unpin + Send + 'static>(
    children: &mut Children,
    lines: Option<L>,
    mut left: usize,
    dir: &Path,
) -> Failure {
    let mut lines = relay(lines);
    let progress = std::io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{spinner} clients: {wide_msg}")
            .expect("the template is right");
        ProgressBar::new_spinner()
            .with_style(style)
            .with_message("starting")
    });
    let say = |words: &str| match &progress {
        Some(bar) => bar.suspend(|| outln!("{words}")),
        None => outln!("{words}"),
    };
    let mut printed = Instant::now();
    loop {
        tokio::select! {
            Some(line) = lines.recv() => match &progress {
                // The clients' last words, when they fail.
                _ if line.starts_with("nearcast:") => say(&line),
                Some(bar) => {
                    bar.set_message(line);
                    bar.tick();
                }
                None if printed.elapsed() + Duration::from_millis(500) > LINE_EVERY => {
                    outln!("clients: {line}");
                    printed = Instant::now();
                }
                None => {}
            },
            ended = children.next_ended() => {
                say(&describe_end(&ended, dir));
                if ended.name == TRAFFIC {
                    continue;
                }
                left -= 1;
                if left == 0 {
                    return Failure::new(FailureKind::Unavailable, "every node has ended, so the demo ends too");
                }
            }
        }
    }
}

/// The lines of a stream, through a channel, since a cancelled read would lose one.
fn relay<L: AsyncRead + Unpin + Send + 'static>(stream: Option<L>) -> mpsc::Receiver<String> {
    let (tx, rx) = mpsc::channel(16);
    if let Some(stream) = stream {
        tokio::spawn(async move {
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if tx.send(line).await.is_err() {
                    return;
                }
            }
        });
    }
    rx
}

/// A node of the demo.
struct DemoNode {
    role: &'static str,
    name: String,
    admin: SocketAddr,
}

fn nodes(fleet: &Fleet) -> Vec<DemoNode> {
    let node = |role, name: &str, admin| DemoNode {
        role,
        name: name.to_owned(),
        admin,
    };
    let control = fleet
        .control
        .iter()
        .map(|c| node("control", &c.name, c.admin));
    let origins = fleet
        .origins
        .iter()
        .filter_map(|o| Some(node("origin", &o.name, o.admin?)));
    let edges = fleet
        .clusters
        .iter()
        .flat_map(|c| &c.nodes)
        .filter_map(|n| Some(node("edge", &n.name, n.admin?)));
    let servers = fleet
        .name_servers
        .iter()
        .map(|s| node("gslb-dns", &s.name, s.admin));
    control.chain(origins).chain(edges).chain(servers).collect()
}

/// Checks that every address of the fleet is free; otherwise the demo does not start.
fn check_addresses(fleet: &Fleet) -> Result<(), Failure> {
    let mut tcp: Vec<(String, SocketAddr)> = nodes(fleet)
        .into_iter()
        .map(|n| (format!("{}'s admin listener", n.name), n.admin))
        .collect();
    tcp.extend(
        fleet
            .control
            .iter()
            .map(|c| ("the console".to_owned(), c.listen)),
    );
    tcp.extend(
        fleet
            .origins
            .iter()
            .map(|o| ("the origin".to_owned(), o.listen)),
    );
    let edges = fleet.clusters.iter().flat_map(|c| &c.nodes);
    tcp.extend(edges.flat_map(|n| {
        let listeners = n.listen.iter().chain(&n.listen_tls);
        listeners.map(|l| (format!("edge {}", n.name), *l))
    }));
    let dns: Vec<SocketAddr> = fleet
        .name_servers
        .iter()
        .flat_map(|s| s.listen.iter().copied())
        .collect();
    tcp.extend(dns.iter().map(|l| ("DNS over TCP".to_owned(), *l)));
    for (what, address) in tcp {
        TcpListener::bind(address).map_err(|e| taken(&what, address, &e))?;
    }
    for address in dns {
        UdpSocket::bind(address).map_err(|e| taken("DNS over UDP", address, &e))?;
    }
    Ok(())
}

fn taken(what: &str, address: SocketAddr, error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            let message = format!(
                "another program listens on {address}, which the demo needs for {what}; stop it, the demo's addresses are fixed"
            );
            Failure::new(FailureKind::Unavailable, message)
        }
        _ => Failure::bind(what, address, error),
    }
}

async fn wait_ready(node: &DemoNode) {
    let client = Client::new(None);
    let url = format!("http://{}/ready", node.admin);
    while !client
        .get(&url, Duration::from_secs(2))
        .await
        .is_ok_and(|r| r.status().is_success())
    {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until the clients of each region are sent to the edges of their own cluster.
async fn wait_steered() {
    for place in &CLUSTERS {
        let client = place.client;
        let edges: Vec<Ipv4Addr> = (1..=file::EDGES_PER_CLUSTER)
            .map(|n| place.edge(n))
            .collect();
        loop {
            let found = dns::resolve(&[file::DNS], "www.demo.test", client, || {
                std::process::id() as u16
            })
            .await;
            if found.is_ok_and(|a| {
                a.list.len() == edges.len() && a.list.iter().all(|a| edges.contains(a))
            }) {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Columns of a terminal that the text fits, as far as the paths in it are short.
const BANNER_COLUMNS: usize = 80;

/// Text that suggests commands to try; each can be copied as it is.
fn banner(
    took: Duration,
    speed: f64,
    dir: &Path,
    default_dir: bool,
    pid: impl Fn(&str) -> Option<u32>,
) -> String {
    let this = this_program();
    let fleet = if default_dir {
        String::new()
    } else {
        format!(" --fleet {}", dir.join(find::FILE_NAME).display())
    };
    let day = Duration::from_secs_f64(24.0 * 3600.0 / speed);
    let port = file::EDGE_PORT;
    let [ams, nyc, _] = &CLUSTERS;
    let (pages, other) = (ams.edge(2), nyc.edge(1));
    let digs: String = CLUSTERS
        .iter()
        .map(|p| {
            let place = format!("{} -> {}", p.region, p.label);
            format!(
                "    # {place}\n    dig @{} -p {} www.demo.test +short +subnet={}\n",
                file::DNS.ip(),
                file::DNS.port(),
                p.clients,
            )
        })
        .collect();
    // The one that plays the film: the pages come from the other, which can still be read then.
    let victim = format!("{}-1", ams.name);
    let kill = pid(&victim).map_or_else(String::new, |pid| {
        format!(
            "  Kill an edge: it is out of dig's answers within two seconds, and films go on:\n    \
             kill -9 {pid}  # {victim}\n"
        )
    });
    let tls_port = file::EDGE_TLS_PORT;
    let root = dir.join(certificates::DIRECTORY).join(certificates::ROOT);
    let root = root.display();
    let log = dir.join(format!("{}-1", nyc.name)).join("access.log");
    let log = log.display();
    let about = format!(
        "A CDN of {} clusters runs on this machine, ready after {:.1} s. A day of it takes {}.",
        CLUSTERS.len(),
        took.as_secs_f64(),
        crate::text::span_ms(day.as_millis() as u64),
    );
    let about = crate::text::wrapped(&about, crate::text::terminal_width().min(BANNER_COLUMNS));
    format!(
        "\n{about}Ctrl-C ends it.\n\n\
         \x20 Console  {console}\n\
         \x20 Player   http://{pages}:{port}/watch\n\
         \x20          https://{pages}:{tls_port}/watch, for a browser that trusts\n\
         \x20          {root}\n\n\
         Try, in another terminal:\n\
         \x20 DNS steers each client to its place:\n{digs}\
         \x20 A miss, then a hit: run it twice, and compare Cache-Status:\n\
         \x20   curl -sD - -o /dev/null --resolve www.demo.test:{port}:{other} \\\n\
         \x20     'http://www.demo.test:{port}/about.html?first'\n\
         \x20 The same by HTTPS and HTTP/2, with a certificate of the demo's own authority:\n\
         \x20   curl -sD - -o /dev/null --cacert {root} \\\n\
         \x20     --resolve www.demo.test:{tls_port}:{other} \\\n\
         \x20     'https://www.demo.test:{tls_port}/about.html?first'\n\
         \x20 Why that cluster?\n    {this} explain www.demo.test --client 203.0.113.9{fleet}\n\
         \x20 Forget a site everywhere, and see how long that takes:\n    {this} purge --site www{fleet}\n\
         \x20 What would be pushed tonight? Push it now:\n    {this} plan{fleet}\n    {this} push --now{fleet}\n\
         \x20 Who asked for what, and how one of the requests was answered:\n\
         \x20   tail -n 1 {log}\n\
         \x20   {this} trace{fleet} \"$(tail -n 1 \\\n\
         \x20     {log} \\\n\
         \x20     | sed 's/.*\"request_id\":\"\\([^\"]*\\).*/\\1/')\"\n\
         {kill}\
         \x20 All nodes at a glance:\n    {this} status{fleet}\n\n\
         Files: {} (nearcast.toml, certificates/, logs/)\n\n",
        dir.display(),
        console = file::CONSOLE_URL,
    )
}

/// This program's name as it was called.
fn this_program() -> String {
    let called = std::env::args_os().next();
    called.map_or_else(
        || "nearcast".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// The message about a child that has ended.
fn describe_end(ended: &Ended, dir: &Path) -> String {
    let how = how(ended.status);
    match ended.name.as_str() {
        TRAFFIC => format!(
            "the clients have {how}; the fleet continues without them (`nearcast traffic` starts others)"
        ),
        name => format!(
            "{name} has {how}; the others go on. Its log: {}. To start it again, on its own until you end it: {} {} --fleet {} --node {name}",
            dir.join("logs").join(format!("{name}.log")).display(),
            this_program(),
            ended.role,
            dir.join(find::FILE_NAME).display(),
        ),
    }
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "ended".to_owned(),
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(9)) => "been killed".to_owned(),
        (None, Some(signal)) => format!("been ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The failure of a child that ended before all were ready, with the last lines of its log.
fn ended_early(ended: &Ended, children: &Children) -> Failure {
    let log = std::fs::read_to_string(children.log_path(&ended.name)).unwrap_or_default();
    let words = log
        .lines()
        .rev()
        .find_map(|l| l.strip_prefix("nearcast: ").map(str::to_owned));
    let words = words
        .or_else(|| log.lines().next_back().map(str::to_owned))
        .unwrap_or_else(|| "its log is empty".to_owned());
    Failure::new(
        FailureKind::Unavailable,
        format!(
            "{} has {} at its start: {words}",
            ended.name,
            how(ended.status)
        ),
    )
}

fn never_ready(dir: &Path) -> Failure {
    let message = format!(
        "not everything was ready after {} s; with --keep the logs stay in {}",
        READY_MAX.as_secs(),
        dir.join("logs").display()
    );
    Failure::new(FailureKind::Unavailable, message)
}

/// The reasons for which the demo ends.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    parent: u32,
}

impl Ends {
    fn listen() -> Result<Self, Failure> {
        Ok(Self {
            terminate: signals::listen(SignalKind::terminate())?,
            interrupt: signals::listen(SignalKind::interrupt())?,
            hangup: signals::listen(SignalKind::hangup())?,
            parent: std::os::unix::process::parent_id(),
        })
    }

    /// Waits for the next reason to end.
    async fn requested(&mut self) -> &'static str {
        let parent = self.parent;
        let orphaned = async {
            while std::os::unix::process::parent_id() == parent {
                tokio::time::sleep(PARENT_EVERY).await;
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.hangup.recv() => "the terminal is gone",
            () = orphaned => {
                self.parent = std::os::unix::process::parent_id();
                "the parent process is gone"
            }
        }
    }
}
