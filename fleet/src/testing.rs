//! Fleets for tests: from the text of a fleet file, or from clusters and sites. Only tests use this
//! module: in other crates by the feature `testing`.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::config::{
    CachePolicy, ClientLimits, Cluster, CompressionPolicy, DailyWindow, Fleet, HttpsPolicy, Node,
    OriginPolicy, Place, PurgePolicy, SelectionPolicy, Site,
};
use crate::file;
use crate::units::Bytes;

/// The node key of these fleets.
pub const NODE_KEY: &str = "a key that only this test knows";

/// The fleet of a fleet file's text; relative paths start at `/`.
///
/// # Panics
/// The text has mistakes; the message lists them.
#[track_caller]
pub fn fleet(text: &str) -> Fleet {
    fleet_at(text, Path::new("/"))
}

/// The fleet of a fleet file's text; relative paths start at `base`.
///
/// # Panics
/// The text has mistakes; the message lists them.
#[track_caller]
pub fn fleet_at(text: &str, base: &Path) -> Fleet {
    match file::parse(text, base) {
        Ok(fleet) => fleet,
        Err(mistakes) => panic!("{}\n{text}", file::describe("fleet", &mistakes)),
    }
}

/// A fleet with these clusters and sites, and the defaults of a fleet file for all else.
pub fn fleet_of(clusters: Vec<Cluster>, sites: Vec<Site>) -> Fleet {
    Fleet {
        clusters,
        sites,
        ..FleetText::new().cluster("ams", &["192.0.2.1"]).fleet()
    }
}

/// A cluster of weight 1 in the time zone UTC.
pub fn cluster(name: &str, latitude: f64, longitude: f64, nodes: Vec<Node>) -> Cluster {
    Cluster {
        name: name.to_owned(),
        label: name.to_owned(),
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
        weight: 1,
        nodes,
    }
}

/// An edge with these addresses for clients; its service address accepts no connections.
///
/// # Panics
/// One of them is not an address.
#[track_caller]
pub fn node(name: &str, addresses: &[&str]) -> Node {
    let address = |text: &&str| text.parse::<IpAddr>().expect("an address");
    Node {
        name: name.to_owned(),
        addresses: addresses.iter().map(address).collect(),
        listen: Vec::new(),
        listen_tls: Vec::new(),
        proxy_protocol: Vec::new(),
        trusted_proxies: Vec::new(),
        service: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        admin: None,
        memory: Bytes(1 << 20),
        disk: Bytes(0),
        threads: None,
        capacity_bits: None,
        clients: ClientLimits::default(),
    }
}

/// A site with these hosts in these clusters, by location; its origin accepts no connections.
pub fn site(name: &str, hosts: &[&str], clusters: &[usize]) -> Site {
    Site {
        name: name.to_owned(),
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        origin: "http://127.0.0.1:1".to_owned(),
        origin_host: None,
        policy: SelectionPolicy::Geo,
        ttl: Duration::from_secs(20),
        clusters: clusters.to_vec(),
        cache: CachePolicy::default(),
        origin_policy: OriginPolicy::default(),
        purge: PurgePolicy::default(),
        https: HttpsPolicy::default(),
        compression: CompressionPolicy::default(),
    }
}

/// The text of a fleet file, section by section. Sections come in the order of the calls.
#[derive(Debug, Clone)]
pub struct FleetText {
    /// Lines of `[fleet]`.
    head: String,
    /// Sections after it.
    sections: String,
}

impl Default for FleetText {
    fn default() -> Self {
        Self::new()
    }
}

impl FleetText {
    /// A fleet with the zone `cdn.test` and [`NODE_KEY`], without nodes.
    pub fn new() -> Self {
        Self {
            head: format!("zone = \"cdn.test\"\nnode_key = \"{NODE_KEY}\"\n"),
            sections: String::new(),
        }
    }

    /// Sets one setting of `[fleet]`, written as in TOML.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        let start = format!("{key} = ");
        let others = self.head.lines().filter(|line| !line.starts_with(&start));
        let mut head: String = others.map(|line| format!("{line}\n")).collect();
        let _ = writeln!(head, "{key} = {value}");
        self.head = head;
        self
    }

    /// Adds lines to `[fleet]`.
    pub fn text_in_fleet(mut self, lines: &str) -> Self {
        self.head.push_str(lines);
        self.head.push('\n');
        self
    }

    /// Adds text at the end: lines of the section before, or sections.
    pub fn text_after(mut self, text: &str) -> Self {
        self.sections.push_str(text);
        self.sections.push('\n');
        self
    }

    /// Adds `[control]` with its API at this address and port.
    pub fn control(self, listen: &str) -> Self {
        self.text_after(&format!("[control]\nlisten = \"{listen}\""))
    }

    /// Adds a name server that answers at this address and port.
    pub fn name_server(self, name: &str, listen: &str) -> Self {
        self.text_after(&format!(
            "[[name_server]]\nname = \"{name}\"\nlisten = \"{listen}\""
        ))
    }

    /// Adds an origin node that serves a directory.
    pub fn origin_node(self, name: &str, listen: &str, root: &str) -> Self {
        self.text_after(&format!(
            "[[origin_node]]\nname = \"{name}\"\nlisten = \"{listen}\"\nroot = \"{root}\""
        ))
    }

    /// Adds a cluster at latitude and longitude 1 with an edge for each address: `NAME-1`, `NAME-2`
    /// and so on.
    pub fn cluster(mut self, name: &str, addresses: &[&str]) -> Self {
        self = self.cluster_head(name, "");
        for (number, address) in (1..).zip(addresses) {
            self = self.node(&format!("{name}-{number}"), address, "");
        }
        self
    }

    /// Begins a cluster at latitude and longitude 1, with further lines.
    pub fn cluster_head(self, name: &str, lines: &str) -> Self {
        let place = "place = { latitude = 1, longitude = 1 }";
        self.text_after(&format!("[[cluster]]\nname = \"{name}\"\n{place}\n{lines}"))
    }

    /// Adds an edge to the cluster before, with further lines.
    pub fn node(self, name: &str, address: &str, lines: &str) -> Self {
        self.text_after(&format!(
            "[[cluster.node]]\nname = \"{name}\"\naddress = \"{address}\"\n{lines}"
        ))
    }

    /// Adds a site, with further lines such as `hosts = ["www.demo.test"]`.
    pub fn site(self, name: &str, origin: &str, lines: &str) -> Self {
        self.text_after(&format!(
            "[[site]]\nname = \"{name}\"\norigin = \"{origin}\"\n{lines}"
        ))
    }

    /// The text.
    pub fn text(&self) -> String {
        format!("[fleet]\n{}{}", self.head, self.sections)
    }

    /// The fleet; relative paths start at `/`.
    ///
    /// # Panics
    /// The text has mistakes; the message lists them.
    #[track_caller]
    pub fn fleet(&self) -> Fleet {
        fleet(&self.text())
    }

    /// The fleet; relative paths start at `base`.
    ///
    /// # Panics
    /// The text has mistakes; the message lists them.
    #[track_caller]
    pub fn fleet_at(&self, base: &Path) -> Fleet {
        fleet_at(&self.text(), base)
    }
}
