//! The questions before an order, with a real name server (Unbound) that answers from records of
//! its own.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nearcast_acme::lookup::{Answerer, Resolver};

const ADDRESSES: u8 = 120;

struct Unbound {
    child: Child,
    _directory: tempfile::TempDir,
    address: SocketAddr,
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Unbound {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = free.local_addr().expect("bound");
        drop(free);
        let path = directory.path().join("unbound.conf");
        std::fs::write(&path, config(address)).expect("it can be written");
        let search = std::env::var("PATH").unwrap_or_default();
        let child = Command::new("unbound")
            .arg("-c")
            .arg(&path)
            .env("PATH", format!("{search}:/usr/sbin"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unbound runs; tests/run installs it");
        let made = Self {
            child,
            _directory: directory,
            address,
        };
        let began = Instant::now();
        let resolver = Resolver::at(address);
        while resolver.addresses("www.example.org").await.is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "it answers");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        made
    }
}

fn config(address: SocketAddr) -> String {
    let zone = |zone: &str, server: &str| {
        let soa = format!("{zone}. SOA {server}. h.{zone}. 1 60 60 60 60");
        format!("  local-zone: \"{zone}.\" static\n  local-data: \"{soa}\"\n")
    };
    let many = (1..=ADDRESSES).map(|n| format!("many.example.org. A 192.0.2.{n}"));
    let records = [
        "www.example.org. A 192.0.2.1",
        "www.example.org. AAAA 2001:db8::1",
        "alias.example.org. CNAME www.example.org.",
        "_acme-challenge.www.example.org. CNAME www.example.org._acme-challenge.cdn.test.",
    ];
    let records: String = many
        .chain(records.map(str::to_owned))
        .map(|record| format!("  local-data: \"{record}\"\n"))
        .collect();
    format!(
        "server:\n  interface: {}@{}\n  access-control: 127.0.0.0/8 allow\n  do-daemonize: no\n  \
         use-syslog: no\n  username: \"\"\n  chroot: \"\"\n  pidfile: \"\"\n  max-udp-size: 1232\n\
         {}{}{records}remote-control:\n  control-enable: no\n",
        address.ip(),
        address.port(),
        zone("example.org", "ns1.other.net"),
        zone("cdn.test", "ns1.cdn.test"),
    )
}

#[tokio::test]
async fn a_real_name_server_is_understood() {
    let unbound = Unbound::start().await;
    let resolver = Resolver::at(unbound.address);
    let found = resolver.addresses("WWW.example.org").await;
    let found = found.expect("an answer");
    let list: Vec<String> = found.list.iter().map(ToString::to_string).collect();
    assert_eq!(list, ["192.0.2.1", "2001:db8::1"]);
    assert!(found.chain.is_empty());

    let found = resolver.addresses("alias.example.org").await;
    let found = found.expect("an answer");
    assert_eq!(found.chain, ["www.example.org"]);
    assert_eq!(found.list.len(), 2, "through the CNAME");
    let found = resolver.addresses("no.example.org").await;
    let found = found.expect("an answer");
    assert!(found.list.is_empty(), "there is no such name");

    // More than a datagram holds: by TCP.
    let found = resolver.addresses("many.example.org").await;
    let found = found.expect("an answer");
    assert_eq!(found.list.len(), usize::from(ADDRESSES));

    let of = |chain: &[&str], zone: &str, server: &str| Answerer {
        chain: chain.iter().map(|name| (*name).to_owned()).collect(),
        zone: zone.to_owned(),
        name_servers: vec![server.to_owned()],
    };
    let alias = "www.example.org._acme-challenge.cdn.test";
    for (host, expected) in [
        ("a.example.org", of(&[], "example.org", "ns1.other.net")),
        ("*.example.org", of(&[], "example.org", "ns1.other.net")),
        ("www.example.org", of(&[alias], "cdn.test", "ns1.cdn.test")),
    ] {
        let found = resolver.challenge_answerer(host).await;
        assert_eq!(found, Ok(expected), "{host}");
    }
}
