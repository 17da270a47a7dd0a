//! Fleets for the tests of steering.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nearcast_fleet::clock::FleetClock;
use nearcast_fleet::config::{
    CachePolicy, ClientLimits, Cluster, DailyWindow, Fleet, HealthCheck, NameServer, Node,
    OriginPolicy, Place, Record, Secret, SelectionPolicy, Site, Steering, Zone,
};
use nearcast_fleet::units::Bytes;

pub(super) const KEY: &str = "a key that only these tests know";

/// A node that accepts no connections.
pub(super) fn node(name: &str, addresses: &[&str]) -> Node {
    Node {
        name: name.to_owned(),
        addresses: addresses
            .iter()
            .map(|a| a.parse::<IpAddr>().unwrap())
            .collect(),
        listen: Vec::new(),
        service: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        admin: None,
        memory: Bytes(1 << 20),
        disk: Bytes(0),
        threads: None,
        capacity_bits: None,
        clients: ClientLimits::default(),
    }
}

pub(super) fn cluster(
    name: &str,
    latitude: f64,
    longitude: f64,
    weight: u32,
    nodes: Vec<Node>,
) -> Cluster {
    Cluster {
        name: name.to_owned(),
        label: name.to_uppercase(),
        place: Place {
            latitude,
            longitude,
        },
        time_zone: "UTC".to_owned(),
        off_peak: DailyWindow {
            start_minute: 120,
            end_minute: 360,
        },
        fill_rate_bits: 1 << 20,
        push_share: Bytes(0),
        weight,
        nodes,
    }
}

pub(super) fn site(name: &str, policy: SelectionPolicy, clusters: &[usize]) -> Site {
    Site {
        name: name.to_owned(),
        hosts: vec![format!("{name}.demo.test")],
        origin: "http://127.0.0.1:1".to_owned(),
        origin_host: None,
        policy,
        ttl: Duration::from_secs(20),
        clusters: clusters.to_vec(),
        cache: CachePolicy::default(),
        origin_policy: OriginPolicy::default(),
        purge: Default::default(),
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
    Fleet {
        zone: "cdn.test".to_owned(),
        zone_name_servers: Vec::new(),
        admin_hosts: Vec::new(),
        hostmaster: "hostmaster@cdn.test".to_owned(),
        base: std::path::PathBuf::new(),
        state_dir: std::path::PathBuf::new(),
        user: None,
        node_key: Secret(KEY.to_owned()),
        keys: Default::default(),
        report_interval: Duration::from_secs(2),
        drain: Default::default(),
        clock: FleetClock::REAL,
        control: None,
        origins: Vec::new(),
        name_servers: Vec::new(),
        steering: Steering {
            geo_db: None,
            health: HealthCheck {
                path: "/.nearcast/health".to_owned(),
                interval: Duration::from_millis(500),
                timeout: Duration::from_millis(400),
                timeout_min: Duration::from_millis(250),
                fall: 2,
                rise: 2,
                jitter: 0.1,
            },
            rtt_max_age: Duration::from_secs(600),
            rtt_explore: 0.01,
            ramp: Duration::ZERO,
            // The places of these tests' measurements are invented.
            rtt_bound: false,
        },
        clusters: vec![
            cluster("ams", 52.37, 4.9, 1, pair("ams", 10, true)),
            cluster("nyc", 40.71, -74.01, 2, pair("nyc", 20, true)),
            cluster("sin", 1.35, 103.82, 1, pair("sin", 30, false)),
        ],
        sites: vec![
            site("geo", SelectionPolicy::Geo, &all),
            site("rtt", SelectionPolicy::Rtt, &all),
            site("weighted", SelectionPolicy::Weighted, &all),
            site("turns", SelectionPolicy::RoundRobin, &all),
            site("one", SelectionPolicy::Geo, &[2]),
            site("far", SelectionPolicy::Geo, &[1, 2]),
        ],
        zones: Vec::new(),
        changed_unix_s: 0,
    }
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
