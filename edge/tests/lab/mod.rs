//! A running edge and a scripted origin on free loopback ports, and a client that speaks raw HTTP.
#![allow(dead_code)] // each test binary uses a part

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nearcast_fleet::change::{Change, Entry, Purge, PurgeScope};
use nearcast_fleet::config::*;
use nearcast_fleet::failure::Failure;
use nearcast_fleet::follow::{FollowState, Following, NodeContext};
use nearcast_fleet::testing;
use nearcast_fleet::units::Bytes;
use nearcast_net::shutdown::{self, ShutdownTrigger};
use tokio::sync::{mpsc, watch};

/// A request as the origin saw it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) fields: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// First and last byte of a plain range request.
    pub(crate) fn range(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) = self
            .fields
            .get("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }

    /// First and last byte of a plain range request for a body of that length.
    fn range_of(&self, length: usize) -> Option<(usize, usize)> {
        if let Some(last) = self
            .fields
            .get("range")
            .and_then(|r| r.strip_prefix("bytes=-")?.parse::<usize>().ok())
        {
            return Some((length.saturating_sub(last), length - 1));
        }
        let (first, last) = self.range()?;
        Some((first, last.unwrap_or(length - 1).min(length - 1)))
    }
}

/// Something that others wait for until the test opens it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().expect("unpoisoned") = true;
        self.0.1.notify_all();
    }

    /// Waits, but not for ever: a test that fails must end.
    pub(crate) fn wait(&self) {
        let is_open = self.0.0.lock().expect("unpoisoned");
        drop(
            self.0
                .1
                .wait_timeout_while(is_open, Duration::from_secs(60), |is_open| !*is_open),
        );
    }
}

/// What the origin answers.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Even pieces of the body, each after a pause.
    pub(crate) pieces: usize,
    pub(crate) pause: Duration,
    /// Bytes after which the connection is cut.
    pub(crate) cut: Option<usize>,
    /// `Transfer-Encoding: chunked` in place of a length.
    pub(crate) chunked: bool,
    /// What comes before the response, as it is on the wire.
    pub(crate) interim: &'static str,
    /// A gate between that and the response.
    pub(crate) held_head: Option<Gate>,
    /// A gate before the byte at this place of the body.
    pub(crate) held: Option<(usize, Gate)>,
}

impl Reply {
    pub(crate) fn ok(body: impl Into<Vec<u8>>, cache_control: &str) -> Self {
        let fields = if cache_control.is_empty() {
            vec![]
        } else {
            vec![("Cache-Control".into(), cache_control.into())]
        };
        Self {
            status: 200,
            fields,
            body: body.into(),
            pieces: 1,
            pause: Duration::ZERO,
            cut: None,
            chunked: false,
            interim: "",
            held_head: None,
            held: None,
        }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::ok("", "")
        }
    }

    pub(crate) fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    pub(crate) fn slow(mut self, pieces: usize, pause_ms: u64) -> Self {
        self.pieces = pieces;
        self.pause = Duration::from_millis(pause_ms);
        self
    }

    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// Sends no byte from there on before the gate is open.
    pub(crate) fn held_at(mut self, bytes: usize, gate: &Gate) -> Self {
        self.held = Some((bytes, gate.clone()));
        self
    }

    pub(crate) fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// The same as an origin that knows ranges and `If-Range` would answer it.
    pub(crate) fn ranged(self, seen: &Seen) -> Self {
        let is_validator = |wanted: &String| {
            self.fields
                .iter()
                .any(|(n, v)| matches!(&**n, "ETag" | "Last-Modified") && v == wanted)
        };
        if seen
            .fields
            .get("if-range")
            .is_some_and(|wanted| !is_validator(wanted))
        {
            return self;
        }
        let length = self.body.len();
        if let Some(set) = seen
            .fields
            .get("range")
            .and_then(|r| r.strip_prefix("bytes="))
            .filter(|set| set.contains(','))
        {
            return self.multipart(set);
        }
        let Some((first, last)) = seen.range_of(length) else {
            return self;
        };
        if first >= length {
            return Self {
                status: 416,
                body: vec![],
                ..self
            }
            .field("Content-Range", &format!("bytes */{length}"));
        }
        let body = self.body[first..=last].to_vec();
        Self {
            status: 206,
            body,
            ..self
        }
        .field("Content-Range", &format!("bytes {first}-{last}/{length}"))
    }

    /// Those of several ranges that are inside, as parts.
    fn multipart(self, set: &str) -> Self {
        let length = self.body.len();
        let mut parts = Vec::new();
        for member in set.split(',') {
            let fields = HashMap::from([("range".to_owned(), format!("bytes={}", member.trim()))]);
            let Some((first, last)) = (Seen {
                fields,
                ..Seen::default()
            })
            .range_of(length)
            .filter(|(first, _)| *first < length) else {
                continue;
            };
            let head =
                format!("\r\n--part\r\nContent-Range: bytes {first}-{last}/{length}\r\n\r\n");
            parts.extend_from_slice(head.as_bytes());
            parts.extend_from_slice(&self.body[first..=last]);
        }
        if parts.is_empty() {
            return Self {
                status: 416,
                body: vec![],
                ..self
            }
            .field("Content-Range", &format!("bytes */{length}"));
        }
        parts.extend_from_slice(b"\r\n--part--\r\n");
        Self {
            status: 206,
            body: parts,
            ..self
        }
        .field("Content-Type", "multipart/byteranges; boundary=part")
    }
}

/// A scripted origin.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    open: Arc<AtomicBool>,
}

impl Origin {
    pub(crate) fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), script)
    }

    pub(crate) fn start_at(
        address: SocketAddr,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (seen, open) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicBool::new(true)),
        );
        let script = Arc::new(script);
        let (all, is_open) = (seen.clone(), open.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if !is_open.load(Ordering::SeqCst) {
                    return;
                }
                let (all, script, is_open) = (all.clone(), script.clone(), is_open.clone());
                // A connection that breaks is what some tests are about.
                std::thread::spawn(move || drop(answer(&stream, &all, &*script, &is_open)));
            }
        });
        Self {
            address,
            seen,
            open,
        }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("unpoisoned").clone()
    }

    pub(crate) fn count(&self, target: &str) -> usize {
        self.seen().iter().filter(|s| s.target == target).count()
    }

    /// Refuses connections from now on and closes the ones there are after their next request.
    pub(crate) fn stop(&self) {
        self.open.store(false, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop();
    }
}

fn answer(
    mut stream: &TcpStream,
    all: &Mutex<Vec<Seen>>,
    script: &dyn Fn(&Seen) -> Reply,
    open: &AtomicBool,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || !open.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let mut seen = Seen {
            method: words.next().unwrap_or_default(),
            target: words.next().unwrap_or_default(),
            ..Seen::default()
        };
        loop {
            let mut field = String::new();
            reader.read_line(&mut field)?;
            let Some((name, value)) = field.trim_end().split_once(':') else {
                break;
            };
            seen.fields
                .insert(name.to_lowercase(), value.trim().to_owned());
        }
        if seen.fields.contains_key("transfer-encoding") {
            loop {
                let mut size = String::new();
                reader.read_line(&mut size)?;
                let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
                let mut chunk = vec![0; size + 2];
                reader.read_exact(&mut chunk)?;
                if size == 0 {
                    break;
                }
                seen.body.extend_from_slice(&chunk[..size]);
            }
        } else {
            let length = seen
                .fields
                .get("content-length")
                .and_then(|v| v.parse().ok())
                .unwrap_or(0);
            reader.by_ref().take(length).read_to_end(&mut seen.body)?;
        }
        all.lock().expect("unpoisoned").push(seen.clone());
        let reply = script(&seen);
        stream.write_all(reply.interim.as_bytes())?;
        if let Some(gate) = &reply.held_head {
            gate.wait();
        }
        let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
        for (name, value) in &reply.fields {
            head += &format!("{name}: {value}\r\n");
        }
        if reply.chunked {
            head += "Transfer-Encoding: chunked\r\n";
        } else if reply.status != 304 {
            head += &format!("Content-Length: {}\r\n", reply.body.len());
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if seen.method == "HEAD" || reply.status == 304 {
            continue;
        }
        let mut sent = 0;
        if let Some((at, gate)) = &reply.held {
            write_piece(stream, &reply.body[..*at], reply.chunked)?;
            gate.wait();
            write_piece(stream, &reply.body[*at..], reply.chunked)?;
            if reply.chunked {
                stream.write_all(b"0\r\n\r\n")?;
            }
            continue;
        }
        for piece in reply
            .body
            .chunks(reply.body.len().div_ceil(reply.pieces).max(1))
        {
            std::thread::park_timeout(reply.pause);
            let piece = &piece[..piece.len().min(reply.cut.unwrap_or(usize::MAX) - sent)];
            write_piece(stream, piece, reply.chunked)?;
            sent += piece.len();
            if reply.cut == Some(sent) {
                return stream.shutdown(std::net::Shutdown::Both);
            }
        }
        if reply.chunked {
            stream.write_all(b"0\r\n\r\n")?;
        }
    }
}

fn write_piece(mut stream: &TcpStream, piece: &[u8], chunked: bool) -> std::io::Result<()> {
    if !chunked || piece.is_empty() {
        return stream.write_all(piece);
    }
    stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
    stream.write_all(piece)?;
    stream.write_all(b"\r\n")
}

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
        Fleet {
            state_dir: self.state_dir.clone(),
            report_interval: Duration::from_millis(200),
            control: self.control.map(|address| Control {
                name: "control".into(),
                hosts: Vec::new(),
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
