//! A name server in this process on loopback addresses, and ways to ask it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nearcast_fleet::config::{
    Cluster, Fleet, HealthCheck, NameServer, Node, Record, Site, Steering, Zone,
};
use nearcast_fleet::failure::Failure;
use nearcast_fleet::follow::{FollowState, Following, NodeContext};
use nearcast_fleet::testing;
use nearcast_net::shutdown::{self, ShutdownTrigger};
use tokio::sync::{mpsc, watch};

/// `name [ttl] TYPE data` relative to a zone, as the fleet file writes records.
pub fn record(zone: &str, line: &str) -> Record {
    let mut words = line.splitn(3, ' ');
    let (name, mut rtype, mut data) = (
        words.next().expect("a name"),
        words.next().expect("a type"),
        words.next().expect("data").to_owned(),
    );
    let mut ttl = 300;
    if let Ok(seconds) = rtype.parse() {
        ttl = seconds;
        let (t, d) = data.split_once(' ').expect("a type and data");
        (rtype, data) = (Box::leak(t.to_owned().into_boxed_str()), d.to_owned());
    }
    let owner = match (name, zone) {
        ("@", _) => zone.to_owned(),
        (n, _) if n.ends_with('.') => n.trim_end_matches('.').to_owned(),
        (n, "") => n.to_owned(),
        (n, z) => format!("{n}.{z}"),
    };
    Record {
        owner,
        ttl,
        rtype: rtype.to_owned(),
        data,
    }
}

/// A zone of these records, served by the fleet's first name server.
pub fn zone(name: &str, records: &[&str]) -> Zone {
    Zone {
        name: name.to_owned(),
        ttl: Duration::from_secs(300),
        name_servers: vec![0],
        records: records.iter().map(|r| record(name, r)).collect(),
    }
}

/// A site with these hosts in every cluster.
pub fn site(name: &str, hosts: &[&str]) -> Site {
    testing::site(name, hosts, &[0, 1, 2])
}

/// Where every edge of these tests answers its health checks: they are all up, from the first check
/// on.
fn healthy() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                );
            }
        });
        address
    })
}

/// Where nobody answers: the health check of an edge there fails at once.
pub fn nobody() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 1))
}

fn cluster(name: &str, latitude: f64, longitude: f64, net: u8) -> Cluster {
    let node = |last: u8| Node {
        service: healthy(),
        ..testing::node(&format!("{name}-{last}"), &[&format!("127.0.{net}.{last}")])
    };
    testing::cluster(name, latitude, longitude, vec![node(1), node(2)])
}

/// A directory of this process; each fleet has one of its own, and a server that stops removes it.
fn state_dir() -> std::path::PathBuf {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    std::env::temp_dir().join(format!("nearcast-dns-test-{}-{number}", std::process::id()))
}

/// Three clusters, one name server `ns1`, zone `cdn.test`, and what is given.
pub fn fleet(listen: Vec<SocketAddr>, sites: Vec<Site>, zones: Vec<Zone>) -> Fleet {
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let clusters = vec![
        cluster("ams", 52.37, 4.9, 10),
        cluster("nyc", 40.71, -74.01, 20),
        cluster("sin", 1.35, 103.82, 30),
    ];
    let fleet = testing::fleet_of(clusters, sites);
    Fleet {
        hostmaster: "host.master@cdn.test".to_owned(),
        base: std::env::temp_dir(),
        state_dir: state_dir(),
        report_interval: Duration::from_secs(60),
        name_servers: vec![NameServer {
            name: "ns1".to_owned(),
            host: "ns1.cdn.test".to_owned(),
            listen,
            addresses: vec![
                Ipv4Addr::new(127, 0, 0, 53).into(),
                "2001:db8::53".parse().expect("an address"),
            ],
            admin,
            admin_url: format!("http://{admin}"),
        }],
        zone_name_servers: vec![0],
        steering: Steering {
            ramp: Duration::ZERO,
            rtt_bound: false,
            health: HealthCheck {
                timeout: Duration::from_millis(400),
                ..fleet.steering.health
            },
            ..fleet.steering
        },
        zones,
        changed_unix_s: 1_700_000_000,
        ..fleet
    }
}

/// The customer's zone of these tests.
pub fn demo_zone() -> Zone {
    zone(
        "demo.test",
        &[
            "www CNAME www.cdn.test.",
            "@ MX 10 mail",
            "mail A 192.0.2.25",
            "@ TXT \"v=spf1 mx -all\"",
            "alias CNAME mail",
            "chain CNAME alias",
            "loop CNAME pool",
            "pool CNAME loop",
            "dangling CNAME nowhere",
            "foreign CNAME www.example.org.",
            "a.b.c TXT deep",
            "*.wild TXT any",
            "x.y.wild TXT given",
            "*.cdn CNAME www.cdn.test.",
            "sub NS ns.sub",
            "sub NS ns.other",
            "ns.sub A 192.0.2.53",
            "ns.other A 192.0.2.54",
            "other NS ns.other",
            "odd TYPE65280 \\# 4 c0a80c05",
            "svc HTTPS 1 . alpn=h2,h3 port=8443 ipv4hint=192.0.2.1",
            "many 60 A 192.0.2.1",
            "many 30 A 192.0.2.2",
            "old DNAME mail",
            "Mixed TXT \"case\"",
        ],
    )
}

/// A running name server.
pub struct Server {
    /// Where it answers.
    pub address: SocketAddr,
    /// Changes its fleet.
    pub fleet: watch::Sender<Arc<Fleet>>,
    trigger: Option<ShutdownTrigger>,
    state_dir: std::path::PathBuf,
    thread: Option<std::thread::JoinHandle<Result<(), Failure>>>,
    _entries: mpsc::Sender<nearcast_fleet::change::Entry>,
    _state: watch::Sender<FollowState>,
}

/// A free port of a loopback address, for UDP and TCP.
pub fn free_address(ip: impl Into<std::net::IpAddr>) -> SocketAddr {
    let ip = ip.into();
    loop {
        let udp = UdpSocket::bind((ip, 0)).expect("a free UDP port");
        let address = udp.local_addr().expect("bound");
        if std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

impl Server {
    /// Starts `ns1` with the site `www` and the customer's zone.
    pub fn start() -> Self {
        Self::start_with(vec![site("www", &["www.demo.test"])], vec![demo_zone()])
    }

    /// Starts `ns1` with these sites and zones.
    pub fn start_with(sites: Vec<Site>, zones: Vec<Zone>) -> Self {
        let address = free_address(Ipv4Addr::LOCALHOST);
        Self::start_fleet(fleet(vec![address], sites, zones), address)
    }

    /// Starts `ns1` of a fleet; `address` is where it will be asked.
    pub fn start_fleet(fleet: Fleet, address: SocketAddr) -> Self {
        Self::start_node(fleet, "ns1", address)
    }

    /// Starts the name server of that name.
    pub fn start_node(fleet: Fleet, name: &str, address: SocketAddr) -> Self {
        let state_dir = fleet.state_dir.clone();
        let (fleet_tx, fleet_rx) = watch::channel(Arc::new(fleet));
        let (entries_tx, entries) = mpsc::channel(1);
        let (state_tx, state) = watch::channel(FollowState::default());
        let (trigger, shutdown) = shutdown::channel();
        let context = NodeContext {
            name: name.to_owned(),
            fleet: fleet_rx,
            entries,
            state,
            following: Following::default(),
            shutdown,
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(nearcast_gslb_dns::run(context))
        });
        let server = Self {
            address,
            fleet: fleet_tx,
            trigger: Some(trigger),
            state_dir,
            thread: Some(thread),
            _entries: entries_tx,
            _state: state_tx,
        };
        // UDP alone would be lost before the socket is bound; TCP says at once whether anybody
        // listens.
        for _ in 0..600 {
            if server
                .thread
                .as_ref()
                .is_some_and(std::thread::JoinHandle::is_finished)
            {
                panic!("the server ended: {:?}", server.stop());
            }
            if TcpStream::connect(address).is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("nobody listens on {address}");
    }

    /// Asks it to end and waits for that.
    pub fn stop(mut self) -> Result<(), Failure> {
        drop(self.trigger.take());
        self.thread
            .take()
            .expect("it runs")
            .join()
            .expect("it does not panic")
    }

    /// `dig`'s whole output.
    pub fn dig(&self, arguments: &[&str]) -> String {
        dig(self.address, arguments)
    }

    /// Sends one datagram; `None` when there is no answer in a second.
    pub fn udp(&self, message: &[u8]) -> Option<Vec<u8>> {
        udp_within(self.address, message, Duration::from_secs(3))
    }

    /// Whether a datagram stays without an answer while a good one after it gets one.
    pub fn ignores(&self, message: &[u8]) -> bool {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        socket
            .set_read_timeout(Some(Duration::from_secs(3)))
            .expect("a time-out");
        socket.send_to(message, self.address).expect("sent");
        let probe = query(0xbeef, "cdn.test", 6);
        socket.send_to(&probe, self.address).expect("sent");
        let mut buffer = [0; 2048];
        let (len, _) = socket
            .recv_from(&mut buffer)
            .expect("the probe is answered");
        len >= 2 && buffer[..2] == [0xbe, 0xef]
    }

    /// Sends messages on one TCP connection, reads as many answers.
    pub fn tcp(&self, messages: &[Vec<u8>], answers: usize) -> Vec<Vec<u8>> {
        let mut stream = TcpStream::connect(self.address).expect("connected");
        stream
            .set_read_timeout(Some(Duration::from_secs(3)))
            .expect("a time-out");
        let framed: Vec<u8> = messages
            .iter()
            .flat_map(|m| [&(m.len() as u16).to_be_bytes()[..], m].concat())
            .collect();
        stream.write_all(&framed).expect("written");
        (0..answers).map(|_| read_message(&mut stream)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.state_dir);
    }
}

/// `dig` against one server.
pub fn dig(server: SocketAddr, arguments: &[&str]) -> String {
    let output = std::process::Command::new("dig")
        .args([
            &format!("@{}", server.ip()),
            "-p",
            &server.port().to_string(),
            "+tries=1",
            "+time=3",
        ])
        .args(arguments)
        .output()
        .expect("dig runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Reads one framed message.
pub fn read_message(stream: &mut TcpStream) -> Vec<u8> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).expect("a length");
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut message).expect("a message");
    message
}

/// Sends one datagram and waits that long for an answer.
pub fn udp_within(server: SocketAddr, message: &[u8], wait: Duration) -> Option<Vec<u8>> {
    let own: std::net::IpAddr = if server.is_ipv4() {
        Ipv4Addr::LOCALHOST.into()
    } else {
        std::net::Ipv6Addr::LOCALHOST.into()
    };
    let socket = UdpSocket::bind((own, 0)).expect("a port");
    socket.set_read_timeout(Some(wait)).expect("a time-out");
    socket.send_to(message, server).expect("sent");
    let mut buffer = vec![0; 65_536];
    let (len, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(
        from, server,
        "the answer comes from the address that was asked"
    );
    buffer.truncate(len);
    Some(buffer)
}

/// A query of class IN without EDNS.
pub fn query(id: u16, name: &str, qtype: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|l| !l.is_empty()) {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&qtype.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    message
}

/// The same with an OPT record of these options (code, data).
pub fn query_with(
    id: u16,
    name: &str,
    qtype: u16,
    version: u8,
    options: &[(u16, Vec<u8>)],
) -> Vec<u8> {
    let mut message = query(id, name, qtype);
    add_opt(&mut message, version, 1232, options);
    message
}

/// Adds an OPT record.
pub fn add_opt(message: &mut Vec<u8>, version: u8, udp_bytes: u16, options: &[(u16, Vec<u8>)]) {
    message[11] += 1;
    let data: Vec<u8> = options
        .iter()
        .flat_map(|(code, d)| {
            [&code.to_be_bytes()[..], &(d.len() as u16).to_be_bytes(), d].concat()
        })
        .collect();
    message.extend_from_slice(&[0, 0, 41]);
    message.extend_from_slice(&udp_bytes.to_be_bytes());
    message.extend_from_slice(&[0, version, 0, 0]);
    message.extend_from_slice(&(data.len() as u16).to_be_bytes());
    message.extend_from_slice(&data);
}

/// The lower four bits of the response code.
pub fn rcode(message: &[u8]) -> u8 {
    message[3] & 15
}

/// A counts word of the header: 4 question, 6 answer, 8 authority, 10 additional.
pub fn count(message: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([message[at], message[at + 1]])
}
