//! A running edge and a scripted origin on free loopback ports, and a client that speaks raw HTTP.
#![allow(dead_code, unused_imports)] // each test binary uses a part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nearcast_fleet::change::{Change, Entry, Purge, PurgeScope};
use nearcast_fleet::config::*;
use nearcast_fleet::failure::Failure;
use nearcast_fleet::follow::{FollowState, Following, NodeContext};
use nearcast_fleet::testing;
use nearcast_fleet::units::Bytes;
use nearcast_net::shutdown::{self, ShutdownTrigger};
pub(crate) use nearcast_testing::{Gate, Origin, Reply, Seen};
use tokio::sync::{mpsc, watch};

/// A listener whose queue is full, with the connections that fill it: connecting to it takes for
/// ever.
pub(crate) fn hanging_listener(address: SocketAddr) -> Vec<socket2::Socket> {
    use socket2::{Domain, Socket, Type};
    let new = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let listener = new();
    listener.set_reuse_address(true).expect("set");
    // The one before it may take a moment to let go of the port.
    wait_for("the port", || listener.bind(&address.into()).is_ok());
    listener.listen(0).expect("it listens");
    let mut held = vec![listener];
    loop {
        let socket = new();
        let is_taken = socket
            .connect_timeout(&address.into(), Duration::from_millis(200))
            .is_ok();
        held.push(socket);
        if !is_taken {
            return held;
        }
    }
}

/// What an edge is started with.
pub(crate) struct Plan {
    pub(crate) origin: String,
    pub(crate) origin_host: Option<String>,
    pub(crate) memory: u64,
    pub(crate) disk: u64,
    pub(crate) push_share: u64,
    pub(crate) cache: CachePolicy,
    pub(crate) origin_policy: OriginPolicy,
    pub(crate) purge: PurgePolicy,
    /// Where control is, if anywhere.
    pub(crate) control: Option<SocketAddr>,
    pub(crate) hosts: Vec<String>,
    pub(crate) state_dir: PathBuf,
    pub(crate) caught_up: bool,
    pub(crate) name: String,
    /// Cluster peers beside this node: name and service address.
    pub(crate) peers: Vec<(String, SocketAddr)>,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) clients: ClientLimits,
    /// Proxies that every node believes.
    pub(crate) trusted_proxies: Vec<ipnet::IpNet>,
    /// Where a name server takes reports, if anywhere.
    pub(crate) name_server: Option<SocketAddr>,
}

impl Plan {
    pub(crate) fn new(origin: &Origin) -> Self {
        Self {
            origin: format!("http://{}", origin.address),
            origin_host: None,
            memory: 32 << 20,
            disk: 0,
            push_share: 0,
            cache: CachePolicy::default(),
            origin_policy: OriginPolicy::default(),
            purge: PurgePolicy::default(),
            control: None,
            hosts: vec!["www.test".into()],
            state_dir: PathBuf::from("/nonexistent"),
            caught_up: true,
            name: "ams-1".into(),
            peers: vec![],
            listen: None,
            clients: ClientLimits::default(),
            trusted_proxies: vec![],
            name_server: None,
        }
    }

    pub(crate) fn fleet(&self, listen: SocketAddr, admin: SocketAddr) -> Fleet {
        let node = |name: &str, service: SocketAddr| Node {
            listen: vec![service],
            service,
            memory: Bytes(self.memory),
            disk: Bytes(self.disk),
            threads: Some(2),
            clients: self.clients,
            trusted_proxies: self.trusted_proxies.clone(),
            ..testing::node(name, &[&service.ip().to_string()])
        };
        let own = Node {
            admin: Some(admin),
            ..node(&self.name, listen)
        };
        let peers = self.peers.iter().map(|(n, a)| node(n, *a));
        let cluster = Cluster {
            off_peak: DailyWindow {
                start_minute: 0,
                end_minute: 1,
            },
            fill_rate_bits: 1 << 30,
            push_share: Bytes(self.push_share),
            ..testing::cluster(
                "ams",
                52.0,
                4.0,
                std::iter::once(own).chain(peers).collect(),
            )
        };
        let site = Site {
            hosts: self.hosts.clone(),
            origin: self.origin.clone(),
            origin_host: self.origin_host.clone(),
            cache: self.cache.clone(),
            origin_policy: self.origin_policy.clone(),
            purge: self.purge.clone(),
            ..testing::site("www", &[], &[0])
        };
        let steering = self.name_server.map(|admin| {
            testing::FleetText::new()
                .name_server("ns1", "127.0.0.1:53")
                .text_after(&format!("admin = \"{admin}\""))
                .cluster("ams", &["127.0.0.1"])
                .site("www", "http://127.0.0.1:1", "hosts = [\"www.test\"]")
                .fleet()
        });
        let (name_servers, zone_name_servers) = steering
            .map(|fleet| (fleet.name_servers, fleet.zone_name_servers))
            .unwrap_or_default();
        Fleet {
            name_servers,
            zone_name_servers,
            state_dir: self.state_dir.clone(),
            report_interval: Duration::from_millis(200),
            control: self.control.map(|address| Control {
                name: "control".into(),
                hosts: Vec::new(),
                steering_origins: Vec::new(),
                identity: None,
                listen: address,
                url: format!("http://{address}"),
                admin: address,
                push: None,
            }),
            ..testing::fleet_of(vec![cluster], vec![site])
        }
    }

    pub(crate) fn start(self) -> Edge {
        self.try_start()
            .unwrap_or_else(|failure| panic!("the edge starts: {failure}"))
    }

    /// Runs the edge under another node's name.
    pub(crate) fn run_as(
        self,
        name: &str,
        shutdown: nearcast_net::shutdown::Shutdown,
    ) -> Result<(), Failure> {
        let (_fleet, fleet) = watch::channel(Arc::new(self.fleet(free_address(), free_address())));
        let (_entries, entries) = mpsc::channel(1);
        let (_state, state) = watch::channel(FollowState::default());
        let context = NodeContext {
            name: name.into(),
            fleet,
            entries,
            state,
            following: Following::default(),
            shutdown,
        };
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(nearcast_edge::run(context))
    }

    /// Starts the edge; gives its failure when it ends before it serves.
    pub(crate) fn try_start(self) -> Result<Edge, Failure> {
        let listen = self.listen.unwrap_or_else(free_address);
        let admin = free_address();
        let fleet = Arc::new(self.fleet(listen, admin));
        let (fleet_tx, fleet) = watch::channel(fleet);
        let (entries_tx, entries) = mpsc::channel(16);
        let (state_tx, state) = watch::channel(FollowState {
            caught_up: self.caught_up,
            ..FollowState::default()
        });
        let (trigger, shutdown) = shutdown::channel();
        let context = NodeContext {
            name: self.name,
            fleet,
            entries,
            state,
            following: Following::default(),
            shutdown,
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(nearcast_edge::run(context))
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if thread.is_finished() {
                return Err(thread
                    .join()
                    .expect("no panic")
                    .expect_err("it cannot have ended well"));
            }
            let ready = exchange(
                admin,
                b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            );
            if ready.is_ok_and(|r| r.status == 200) {
                break;
            }
            assert!(Instant::now() < deadline, "the edge is not ready in time");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(Edge {
            address: listen,
            admin,
            trigger: Some(trigger),
            thread: Some(thread),
            entries: entries_tx,
            state: state_tx,
            fleet: fleet_tx,
            revision: 0,
        })
    }
}

/// An address of this test process's own that nobody listens on.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let pid = std::process::id();
    loop {
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let ip = Ipv4Addr::new(
            127,
            64 + (pid >> 8) as u8 % 128,
            pid as u8,
            (n % 250) as u8 + 1,
        );
        if let Ok(listener) = TcpListener::bind((ip, 0)) {
            return listener.local_addr().expect("bound");
        }
    }
}

/// A running edge. Dropping it ends it.
pub(crate) struct Edge {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    trigger: Option<ShutdownTrigger>,
    thread: Option<JoinHandle<Result<(), Failure>>>,
    pub(crate) entries: mpsc::Sender<Entry>,
    pub(crate) state: watch::Sender<FollowState>,
    pub(crate) fleet: watch::Sender<Arc<Fleet>>,
    revision: u64,
}

impl Edge {
    /// `GET` of a path at the site's host.
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[])
    }

    pub(crate) fn ask(&self, method: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !fields.iter().any(|(n, _)| *n == "Host") {
            head += "Host: www.test\r\n";
        }
        for (name, value) in fields {
            head += &format!("{name}: {value}\r\n");
        }
        self.raw(format!("{head}\r\n").as_bytes())
    }

    /// Sends bytes and reads one response to the end of the connection.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Answer {
        exchange(self.address, bytes).expect("the edge answers")
    }

    pub(crate) fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).expect("the edge listens")
    }

    /// Folds a purge and waits until it holds.
    pub(crate) fn purge(&mut self, scope: PurgeScope, soft: bool) {
        self.entry(Change::Purge(Purge { scope, soft }));
    }

    /// Gives the node one journal entry and waits until it was folded.
    pub(crate) fn entry(&mut self, change: Change) {
        self.entries_at_once([change]);
    }

    /// Gives the node journal entries, one behind the other, and waits until all are folded.
    pub(crate) fn entries_at_once(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.revision += 1;
            let entry = Entry {
                revision: self.revision,
                accepted_unix_ms: 0,
                change,
            };
            self.entries.blocking_send(entry).expect("the edge follows");
        }
        let revision = self.revision;
        self.state.send_modify(|s| s.revision = revision);
        wait_for("the entries to be folded", || {
            self.metric("nearcast_edge_journal_revision") >= revision as f64
        });
    }

    pub(crate) fn metrics(&self) -> String {
        let answer = exchange(
            self.admin,
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
        .expect("metrics");
        String::from_utf8(answer.body).expect("text")
    }

    /// Sum of a metric over all its series that contain `name`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let of_name = |line: &&str| line.starts_with(name) && !line.starts_with('#');
        self.metrics()
            .lines()
            .filter(of_name)
            .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Bytes of memory that stored responses take, without those that are kept for others.
    pub(crate) fn memory_used(&self) -> f64 {
        self.metric("nearcast_edge_memory_bytes") - self.metric("nearcast_edge_memory_unused_bytes")
    }

    /// Asks for shutdown without waiting.
    pub(crate) fn begin_stop(&self) {
        if let Some(trigger) = &self.trigger {
            trigger.shut_down();
        }
    }

    /// Asks for an end without draining.
    pub(crate) fn end_at_once(&self) {
        if let Some(trigger) = &self.trigger {
            trigger.end_at_once();
        }
    }

    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Failure> {
        drop(self.trigger.take());
        self.thread
            .take()
            .map_or(Ok(()), |t| t.join().expect("the edge does not panic"))
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A test that has failed waits for no drain.
            self.end_at_once();
        }
        let _ = self.end();
    }
}

/// A response as a client read it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case, in order.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the body came whole.
    pub(crate) whole: bool,
    /// The interim responses before it, but for 100, which is an answer to wait for.
    pub(crate) interim: Vec<Answer>,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields
            .iter()
            .find(|(n, _)| n == name)
            .map_or("", |(_, v)| v)
    }

    /// `Proxy-Status` without the request's id, which differs each time.
    pub(crate) fn error(&self) -> String {
        let whole = self.field("proxy-status");
        let Some((before, id)) = whole.split_once("request-id=") else {
            return whole.to_owned();
        };
        let id = id.strip_suffix('"').expect("the id is the last");
        assert!(
            id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{whole}"
        );
        match before.strip_suffix("; details=\"") {
            Some(alone) => alone.to_owned(),
            None => format!("{}\"", before.trim_end_matches("; ")),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn cache(&self) -> &str {
        self.field("cache-status")
    }

    pub(crate) fn is_hit(&self) -> bool {
        self.cache().contains("; hit")
    }
}

pub(crate) fn exchange(address: SocketAddr, bytes: &[u8]) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(bytes)?;
    let is_head = bytes.starts_with(b"HEAD");
    read_answer(&mut BufReader::new(stream), is_head)
}

pub(crate) fn read_answer(reader: &mut impl BufRead, is_head: bool) -> std::io::Result<Answer> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status: u16 = line
        .split(' ')
        .nth(1)
        .and_then(|s| s.trim().parse().ok())
        .ok_or(std::io::ErrorKind::InvalidData)?;
    let mut answer = Answer {
        status,
        ..Answer::default()
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        answer.fields.push((name.to_lowercase(), value.to_owned()));
    }
    if (101..200).contains(&status) {
        let mut last = read_answer(reader, is_head)?;
        last.interim.insert(0, answer);
        return Ok(last);
    }
    if is_head || matches!(status, 204 | 304) {
        answer.whole = true;
    } else if answer.field("transfer-encoding") == "chunked" {
        loop {
            let mut size = String::new();
            if reader.read_line(&mut size)? == 0 {
                break;
            }
            let size = usize::from_str_radix(size.trim(), 16)
                .map_err(|_| std::io::ErrorKind::InvalidData)?;
            let mut chunk = vec![0; size + 2];
            if reader.read_exact(&mut chunk).is_err() {
                break;
            }
            answer.body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                answer.whole = true;
                break;
            }
        }
    } else {
        let length: usize = answer.field("content-length").parse().unwrap_or(0);
        let read = reader.take(length as u64).read_to_end(&mut answer.body);
        answer.whole = read.is_ok() && answer.body.len() == length;
    }
    Ok(answer)
}

/// Waits for a condition that another thread brings about.
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Bytes in which no slice is like another.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i % 251) as u8 ^ (i / 65_536) as u8)
        .collect()
}
