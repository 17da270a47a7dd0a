//! A real recursive resolver, Unbound with its client-subnet cache, walks from a root of ours and
//! keeps clients apart.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use nearcast_fleet::config::{Fleet, NameServer, Zone};
use support::{Server, demo_zone, dig, fleet, site, zone};

const BLOCK: [u8; 2] = [127, 77];

fn host(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(BLOCK[0], BLOCK[1], 1, last)
}

/// Root, `test` and the CDN's own server, each on port 53 as resolvers expect.
fn hierarchy() -> Fleet {
    let mut fleet = fleet(
        vec![SocketAddr::from((host(53), 53))],
        vec![site("www", &["www.demo.test"])],
        vec![demo_zone()],
    );
    fleet.name_servers[0].addresses = vec![host(53).into()];
    fleet.name_servers[0].admin = SocketAddr::from((host(53), 9153));
    for (name, server_host, last) in [("root", "a.root-servers", 2), ("tld", "ns.nic.test", 3)] {
        fleet.name_servers.push(NameServer {
            name: name.to_owned(),
            host: server_host.to_owned(),
            listen: vec![SocketAddr::from((host(last), 53))],
            addresses: vec![host(last).into()],
            admin: SocketAddr::from((host(last), 9153)),
            ..fleet.name_servers[0].clone()
        });
    }
    let delegated = ["cdn NS ns1.cdn.test.", "demo NS ns1.cdn.test."];
    fleet.zones.push(Zone {
        name_servers: vec![1],
        ..zone("", &["test NS ns.nic.test."])
    });
    fleet.zones.push(Zone {
        name_servers: vec![2],
        ..zone("test", &delegated)
    });
    fleet
}

struct Unbound(Child);

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn unbound(directory: &std::path::Path) -> Unbound {
    std::fs::write(
        directory.join("root.hints"),
        format!(
            ". 3600000 NS a.root-servers.\na.root-servers. 3600000 A {}\n",
            host(2)
        ),
    )
    .expect("written");
    let configuration = format!(
        "server:\n interface: {resolver}\n port: 53\n do-ip6: no\n username: \"\"\n chroot: \"\"\n pidfile: \"\"\n directory: \"{dir}\"\n \
         use-syslog: no\n logfile: \"\"\n verbosity: 2\n access-control: 127.0.0.0/8 allow\n do-not-query-localhost: no\n \
         root-hints: \"{dir}/root.hints\"\n module-config: \"subnetcache iterator\"\n local-zone: \"test.\" nodefault\n \
         qname-minimisation: yes\n send-client-subnet: {ns}\n client-subnet-always-forward: yes\nremote-control:\n control-enable: no\n",
        resolver = host(54),
        ns = host(53),
        dir = directory.display()
    );
    std::fs::write(directory.join("unbound.conf"), configuration).expect("written");
    let log = std::fs::File::create(directory.join("log")).expect("a log");
    let child = Command::new("/usr/sbin/unbound")
        .args(["-d", "-p", "-c"])
        .arg(directory.join("unbound.conf"))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("unbound runs; apt-get install unbound");
    Unbound(child)
}

/// Queries answered by the CDN's own server so far.
fn asked() -> f64 {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect((host(53), 9153)).expect("the admin listener");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("written");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    let counts = text
        .lines()
        .filter(|l| l.starts_with("nearcast_dns_queries_total{"));
    counts
        .filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

#[test]
fn unbound_walks_from_our_root_and_keeps_regions_apart() {
    let fleet = hierarchy();
    let servers: Vec<Server> = fleet
        .name_servers
        .iter()
        .map(|s| Server::start_node(fleet.clone(), &s.name, s.listen[0]))
        .collect();
    let directory = tempfile::tempdir().expect("a directory");
    let _unbound = unbound(directory.path());
    let resolver = SocketAddr::from((host(54), 53));
    let mut text = String::new();
    for _ in 0..100 {
        text = dig(resolver, &["demo.test", "MX", "+short"]);
        if text.trim() == "10 mail.demo.test." {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let log = || std::fs::read_to_string(directory.path().join("log")).unwrap_or_default();
    assert_eq!(text.trim(), "10 mail.demo.test.", "{}", log());
    let addresses = |subnet: &str| -> Vec<String> {
        let text = dig(
            resolver,
            &["www.demo.test", "A", "+short", &format!("+subnet={subnet}")],
        );
        let mut found: Vec<String> = text
            .lines()
            .filter(|l| l.starts_with("127"))
            .map(str::to_owned)
            .collect();
        found.sort();
        found
    };
    for (subnet, net) in [
        ("198.51.100.0/24", 10),
        ("203.0.113.0/24", 20),
        ("192.0.2.0/24", 30),
        ("203.0.113.0/24", 20),
    ] {
        assert_eq!(
            addresses(subnet),
            [format!("127.0.{net}.1"), format!("127.0.{net}.2")],
            "{subnet}\n{}",
            log()
        );
    }
    // Another client of a network that has been asked for is answered out of the resolver's cache.
    let before = asked();
    assert!(before >= 4.0);
    assert_eq!(addresses("203.0.113.200/32"), ["127.0.20.1", "127.0.20.2"]);
    assert!(asked() - before < 1.0, "{}", log());
    for (name, qtype, status) in [
        ("nowhere.demo.test", "A", "NXDOMAIN"),
        ("z.b.c.demo.test", "A", "NXDOMAIN"),
        ("c.demo.test", "A", "NOERROR"),
        ("x.old.demo.test", "A", "NXDOMAIN"),
        ("many.demo.test", "A", "NOERROR"),
        ("www.cdn.test", "AAAA", "NOERROR"),
    ] {
        let text = dig(resolver, &[name, qtype, "+subnet=192.0.2.0/24"]);
        assert!(
            text.contains(&format!("status: {status},")),
            "{text}\n{}",
            log()
        );
    }
    drop(servers);
}
