//! Fleets for the tests of steering.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nearcast_fleet::config::{
    CertificateFiles, Cluster, Fleet, HealthCheck, NameServer, Node, Record, SelectionPolicy, Site,
    Steering, Zone,
};
use nearcast_fleet::testing;
pub(super) use nearcast_fleet::testing::{NODE_KEY as KEY, node};

pub(super) fn cluster(
    name: &str,
    latitude: f64,
    longitude: f64,
    weight: u32,
    nodes: Vec<Node>,
) -> Cluster {
    Cluster {
        label: name.to_uppercase(),
        weight,
        ..testing::cluster(name, latitude, longitude, nodes)
    }
}

pub(super) fn site(name: &str, policy: SelectionPolicy, clusters: &[usize]) -> Site {
    Site {
        policy,
        ..testing::site(name, &[&format!("{name}.demo.test")], clusters)
    }
}

/// Amsterdam (weight 1), New York (weight 2), Singapore (weight 1), two nodes each, IPv6 in the
/// first two; sites `geo`, `rtt`, `weighted`, `turns`, `one` (Singapore alone) and `far` (New York
/// and Singapore).
pub(super) fn fleet() -> Fleet {
    let pair = |name: &str, net: u8, v6: bool| {
        let one = |last: u8| {
            let v4 = format!("127.0.{net}.{last}");
            let v6_address = format!("2001:db8:{net}::{last}");
            let addresses: Vec<&str> = if v6 {
                vec![&v4, &v6_address]
            } else {
                vec![&v4]
            };
            Node {
                capacity_bits: Some(1_000_000),
                ..node(&format!("{name}-{last}"), &addresses)
            }
        };
        vec![one(1), one(2)]
    };
    let all = [0, 1, 2];
    let clusters = vec![
        cluster("ams", 52.37, 4.9, 1, pair("ams", 10, true)),
        cluster("nyc", 40.71, -74.01, 2, pair("nyc", 20, true)),
        cluster("sin", 1.35, 103.82, 1, pair("sin", 30, false)),
    ];
    let sites = vec![
        site("geo", SelectionPolicy::Geo, &all),
        site("rtt", SelectionPolicy::Rtt, &all),
        site("weighted", SelectionPolicy::Weighted, &all),
        site("turns", SelectionPolicy::RoundRobin, &all),
        site("one", SelectionPolicy::Geo, &[2]),
        site("far", SelectionPolicy::Geo, &[1, 2]),
    ];
    let fleet = testing::fleet_of(clusters, sites);
    Fleet {
        state_dir: std::path::PathBuf::new(),
        report_interval: Duration::from_secs(2),
        steering: Steering {
            ramp: Duration::ZERO,
            // The places of these tests' measurements are invented.
            rtt_bound: false,
            health: HealthCheck {
                timeout: Duration::from_millis(400),
                ..fleet.steering.health
            },
            ..fleet.steering
        },
        ..fleet
    }
}

/// [`fleet`] with a certificate, and with TLS on port 443 of every edge.
pub(super) fn fleet_with_tls() -> Fleet {
    let mut fleet = fleet();
    fleet.tls.certificates.push(CertificateFiles {
        cert: "a.pem".into(),
        key: "a.key".into(),
    });
    for node in fleet.clusters.iter_mut().flat_map(|c| &mut c.nodes) {
        node.listen_tls = vec![SocketAddr::new(node.addresses[0], 443)];
    }
    fleet
}

pub(super) const GEO: usize = 0;
pub(super) const RTT: usize = 1;
pub(super) const WEIGHTED: usize = 2;
pub(super) const TURNS: usize = 3;
pub(super) const ONE: usize = 4;

/// A fleet with its zones, and `demo.test`, which the sites' hosts are in, on a name server that is
/// not in the fleet.
pub(super) fn served(fleet: Fleet) -> super::Revision {
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let server = NameServer {
        name: "ns1".to_owned(),
        host: "ns1.cdn.test".to_owned(),
        listen: Vec::new(),
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
        admin,
        admin_url: format!("http://{admin}"),
    };
    let record = |name: &str, rtype: &str, data: &str| Record {
        owner: format!("{name}.demo.test"),
        ttl: 300,
        rtype: rtype.to_owned(),
        data: data.to_owned(),
    };
    let records = vec![
        record("mail", "A", "192.0.2.25"),
        record("alias", "CNAME", "mail"),
        record("sub", "NS", "ns.example."),
    ];
    let zone = Zone {
        name: "demo.test".to_owned(),
        ttl: Duration::from_secs(300),
        name_servers: vec![0],
        records,
    };
    let serving = Fleet {
        name_servers: vec![server],
        zone_name_servers: vec![0],
        zones: vec![zone],
        ..fleet.clone()
    };
    let zones = crate::zone::Zones::compile(&serving, "ns1", 1).expect("they compile");
    super::Revision {
        fleet: Arc::new(fleet),
        zones: Arc::new(zones),
    }
}

/// Steering of [`fleet`] without tasks.
pub(super) fn steering() -> super::Steering {
    super::Steering::new(served(fleet()), super::location::Atlas::built_in(), 0)
}
