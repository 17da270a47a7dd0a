//! The fleet as it is once its file has been checked: every reference resolved, every default
//! filled in.
//!
//! Owns the meaning of each setting. [`crate::file`] makes these values out of a fleet file and is
//! the only place that knows how they are written.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::clock::FleetClock;
pub use crate::secret::Secret;
use crate::units::Bytes;

/// The whole CDN, as checked. Built by [`crate::file::parse`]; immutable, shared as `Arc<Fleet>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// The CDN's own zone, lower case, without a trailing dot (`cdn.test`). Steered names live
    /// here: `<site>.<zone>`.
    pub zone: String,
    /// Name servers that serve `zone`: indexes into `Fleet::name_servers`.
    pub zone_name_servers: Vec<usize>,
    /// SOA RNAME mailbox as written (`hostmaster@cdn.test`).
    pub hostmaster: String,
    /// Directory that relative paths in a fleet file are taken from (the fleet file's own); a new
    /// revision of the file is parsed with the same.
    pub base: PathBuf,
    /// Directory below which each node keeps its state, in a directory of its own name.
    pub state_dir: PathBuf,
    /// The user that roles run as which are started as root: a name or number, perhaps with a group
    /// after a colon.
    pub user: Option<String>,
    /// The key that this machine holds: the fleet's, or a node's own one; see [`crate::node_key`].
    /// Never shown in logs or answers.
    pub node_key: Secret,
    /// Which keys nodes may show.
    pub keys: KeyPolicy,
    /// How often nodes report to control and to the name servers.
    pub report_interval: Duration,
    /// Names by which admin listeners may be asked besides those that nobody else can own and those
    /// of the fleet's URLs, see [`crate::own_names`].
    pub admin_hosts: Vec<String>,
    /// How long nodes that are told to end go on.
    pub drain: DrainLimits,
    /// The fleet's clock: real time, or one that runs fast for demonstrations.
    pub clock: FleetClock,
    /// The control role; without one there are no purges, pushes, reports and no console.
    pub control: Option<Control>,
    /// Hosts that serve content as an origin of our own (the `nearcast origin` role), by node name.
    pub origins: Vec<OriginNode>,
    /// Authoritative name servers.
    pub name_servers: Vec<NameServer>,
    /// How name servers find out about clients and nodes.
    pub steering: Steering,
    /// Places with edges, at least one.
    pub clusters: Vec<Cluster>,
    /// Customers' content.
    pub sites: Vec<Site>,
    /// Zones served besides the CDN's own, in file order.
    pub zones: Vec<Zone>,
    /// When this revision was made, in seconds after the Unix epoch: when control accepted it, or,
    /// for a file on disk, when that was last modified. 0 where there is no file. Name servers make
    /// the serials of their zones of it.
    pub changed_unix_s: u64,
}

/// How long a node that is told to end goes on, in two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainLimits {
    /// The lame duck: how long an edge at most serves new clients on, while name servers and
    /// resolvers forget it.
    pub lame_duck_max: Duration,
    /// How long a name server goes on answering while its `/ready` says that it drains: until an
    /// anycast route is withdrawn.
    pub dns_withdrawal: Duration,
    /// How long transfers that are under way may take to finish once no new connections are
    /// accepted.
    pub finish_max: Duration,
}

impl Default for DrainLimits {
    fn default() -> Self {
        Self {
            lame_duck_max: Duration::from_secs(60),
            dns_withdrawal: Duration::ZERO,
            finish_max: Duration::from_secs(60),
        }
    }
}

/// Which keys are accepted from nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyPolicy {
    /// Whether each node must show its own key; otherwise the fleet's is accepted from all, too.
    pub own_only: bool,
    /// Generation of a node's own key by node name, where it is not 1. Keys of other generations
    /// are revoked.
    pub generations: BTreeMap<String, u32>,
    /// Generation of the secret by which the edges of a cluster know one another, by cluster name,
    /// where it is not 1.
    pub cluster_generations: BTreeMap<String, u32>,
}

/// The control role: journal, API, console, push job.
#[derive(Debug, Clone, PartialEq)]
pub struct Control {
    /// Node name, `control` unless set.
    pub name: String,
    /// Where API and console listen.
    pub listen: SocketAddr,
    /// How other nodes reach the API, `http://host:port` without a trailing slash.
    pub url: String,
    /// Admin listener.
    pub admin: SocketAddr,
    /// Names by which it may be asked besides those that nobody else can own and the one in `url`,
    /// see [`crate::own_names`].
    pub hosts: Vec<String>,
    /// Push planning on the fleet's clock; `None` when the file turns it off.
    pub push: Option<PushPolicy>,
}

/// When and how much the push job plans.
#[derive(Debug, Clone, PartialEq)]
pub struct PushPolicy {
    /// Half-life of a request count in the forecast, in fleet-clock time.
    pub half_life: Duration,
    /// A URL needs at least this many expected requests a day in a cluster to be planned.
    pub expected_requests_min: f64,
}

/// An origin server of our own.
#[derive(Debug, Clone, PartialEq)]
pub struct OriginNode {
    /// Node name.
    pub name: String,
    /// Where it serves HTTP.
    pub listen: SocketAddr,
    /// Admin listener; always there when the node comes from a fleet file.
    pub admin: Option<SocketAddr>,
    /// Directory whose files it serves.
    pub root: PathBuf,
    /// Cache rules, first match wins; the built-in ones follow them.
    pub rules: Vec<OriginRule>,
}

/// `Cache-Control` for files that match a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginRule {
    /// Glob over the path below the root: `*` within a segment, `**` over segments.
    pub pattern: String,
    /// The field value to send.
    pub cache_control: String,
}

/// An authoritative name server node.
#[derive(Debug, Clone, PartialEq)]
pub struct NameServer {
    /// Node name (`ns1`).
    pub name: String,
    /// Its host name in NS records, lower case without a trailing dot (`ns1.cdn.test` unless set).
    pub host: String,
    /// Where it answers DNS, UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Addresses for NS glue and address records of `host`.
    pub addresses: Vec<IpAddr>,
    /// Admin listener; edges report round-trip times here.
    pub admin: SocketAddr,
    /// How edges reach the admin listener, `http://host:port`.
    pub admin_url: String,
}

/// Health, location and measurement settings of all name servers.
#[derive(Debug, Clone, PartialEq)]
pub struct Steering {
    /// MaxMind-format database; `None` means the built-in country table alone.
    pub geo_db: Option<PathBuf>,
    /// Active health checks of edges.
    pub health: HealthCheck,
    /// A measured round-trip time older than this no longer counts.
    pub rtt_max_age: Duration,
    /// Share of `rtt`-steered answers (0..1) that try the second-best cluster, so that it gets
    /// measured.
    pub rtt_explore: f64,
    /// Time over which clients return to a node that was out of the answers; zero brings all of
    /// them back at once.
    pub ramp: Duration,
    /// Whether measured times are held against the clusters' places and against what other nodes
    /// measure. Laboratories with invented places turn it off.
    pub rtt_bound: bool,
}

/// An active health check.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthCheck {
    /// Path asked of each edge's HTTP listener.
    pub path: String,
    /// Time between two checks of one node, before jitter.
    pub interval: Duration,
    /// Longest time that a check waits. The time learned from measured round trips is never longer;
    /// it is this one until there is a measurement, and while the address is down.
    pub timeout: Duration,
    /// Shortest time that a check waits, however short the round trip is; `timeout` where that is
    /// shorter.
    pub timeout_min: Duration,
    /// Failures in a row that make a node down.
    pub fall: u32,
    /// Successes in a row that make it up again.
    pub rise: u32,
    /// Share of the interval (0..1) by which each check is moved at random.
    pub jitter: f64,
}

/// A place with edges.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Name (`ams`), unique among clusters.
    pub name: String,
    /// For people: `Amsterdam`.
    pub label: String,
    /// Where it is.
    pub place: Place,
    /// IANA time zone name of its local clock (`Europe/Amsterdam`).
    pub time_zone: String,
    /// Local hours in which pushes run.
    pub off_peak: DailyWindow,
    /// Bits a second that a push may use in the whole cluster.
    pub fill_rate_bits: u64,
    /// Bytes of each node's disk that pushed content may occupy.
    pub push_share: Bytes,
    /// Relative share under weighted steering.
    pub weight: u32,
    /// Its edges, at least one.
    pub nodes: Vec<Node>,
}

/// Geographic position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// Degrees north, -90..=90.
    pub latitude: f64,
    /// Degrees east, -180..=180.
    pub longitude: f64,
}

/// A span of local time of day, in minutes after midnight; `end < start` wraps over midnight. From
/// 0 to 1,440 it is the whole day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DailyWindow {
    /// First minute.
    pub start_minute: u16,
    /// Minute after the last one.
    pub end_minute: u16,
}

/// One edge.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Name (`ams-1`), unique among all nodes of the fleet.
    pub name: String,
    /// Addresses given to clients.
    pub addresses: Vec<IpAddr>,
    /// Where it serves HTTP.
    pub listen: Vec<SocketAddr>,
    /// Where cluster peers reach it, and health checks where [`Node::checked_at`] says so.
    pub service: SocketAddr,
    /// Admin listener; always there when the node comes from a fleet file.
    pub admin: Option<SocketAddr>,
    /// Bytes of slices kept in memory.
    pub memory: Bytes,
    /// Bytes kept on disk; 0 turns the disk tier off.
    pub disk: Bytes,
    /// Worker threads; `None` means one a core.
    pub threads: Option<usize>,
    /// Response bits a second it can carry; what would take its cluster above 95 % is given to the
    /// next one.
    pub capacity_bits: Option<u64>,
    /// Limits of its clients.
    pub clients: ClientLimits,
}

/// Limits of clients on an edge: the size of their requests' heads, and the number and time of
/// their connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// Fields of a request's head.
    pub fields_max: usize,
    /// How long a head may take from its first byte on.
    pub head_timeout: Duration,
    /// How long a connection may lie idle between two requests.
    pub idle_timeout: Duration,
    /// How long a client may take no byte of a response.
    pub write_timeout: Duration,
    /// Connections of clients that may be open; `None` leaves it to the limit of open files.
    pub connections_max: Option<usize>,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            head_bytes_max: 64 << 10,
            fields_max: 128,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            connections_max: None,
        }
    }
}

/// A customer's content.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// Name, a DNS label (`www`): the steered name is `<name>.<fleet zone>`.
    pub name: String,
    /// Host names clients use, lower case without a trailing dot; `*` alone stands for any host.
    pub hosts: Vec<String>,
    /// Base URL of the origin, `http://host[:port]` or `https://host[:port]`.
    pub origin: String,
    /// `Host` sent to the origin; `None` passes the client's on.
    pub origin_host: Option<String>,
    /// How clients are given a cluster.
    pub policy: SelectionPolicy,
    /// TTL of the steered addresses.
    pub ttl: Duration,
    /// Clusters that may serve it, in file order: indexes into `Fleet::clusters`.
    pub clusters: Vec<usize>,
    /// How edges cache it.
    pub cache: CachePolicy,
    /// How edges deal with its origin.
    pub origin_policy: OriginPolicy,
    /// Who may purge it by asking an edge.
    pub purge: PurgePolicy,
}

/// Who may purge a site's content with the method `PURGE`: nobody unless the site says so. The
/// operators' token is another one, and purges by way of control alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PurgePolicy {
    /// Clients with these addresses.
    pub from: Vec<IpNet>,
    /// Clients that show this as `Authorization: Bearer`.
    pub token: Option<Secret>,
}

impl PurgePolicy {
    /// Whether anybody may.
    pub fn is_off(&self) -> bool {
        self.from.is_empty() && self.token.is_none()
    }
}

/// How a site's clients are given a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SelectionPolicy {
    /// Least great-circle distance from the geo-IP place.
    Geo,
    /// Least measured round-trip time; geography where there is none.
    Rtt,
    /// At random in proportion to the clusters' weights.
    Weighted,
    /// Each in turn.
    RoundRobin,
}

/// How edges cache a site, beside what the origin's own fields say.
#[derive(Debug, Clone, PartialEq)]
pub struct CachePolicy {
    /// Lifetime of a response that has no freshness information; `None` stores no such response.
    pub default_ttl: Option<Duration>,
    /// Whether a lifetime may be guessed from `Last-Modified` (RFC 9111 section 4.2.2).
    pub heuristic: bool,
    /// `stale-while-revalidate` where the origin gives none.
    pub stale_while_revalidate: Duration,
    /// `stale-if-error` where the origin gives none.
    pub stale_if_error: Duration,
    /// Whether clients' request `Cache-Control` is obeyed (RFC 9111 section 5.2.1).
    pub obey_client: bool,
    /// Larger bodies are passed through and not stored.
    pub body_bytes_max: Bytes,
    /// Request fields, in lower case, that answers do not depend on, `cookie` among them perhaps:
    /// requests that have them fill the store like all others.
    pub forward_fields: Vec<String>,
    /// Request fields, in lower case, by which stored responses are kept apart, as if every
    /// response named them in `Vary`.
    pub key_fields: Vec<String>,
    /// Whether a response that may be stored is stored with its `Set-Cookie` lines.
    pub store_set_cookie: bool,
    /// Whether what an earlier run stored is served within `stale_if_error` where it cannot be
    /// validated, although the node has not reached control since its start and so may lack a purge
    /// of it.
    pub serve_unsynced: bool,
    /// A fill that its last reader leaves goes on where no more than this is left of it.
    pub finish_rest: Bytes,
    /// A fill that its last reader leaves goes on where at least this share (0..1) of it has come.
    pub finish_share: f64,
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self {
            default_ttl: None,
            heuristic: true,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            obey_client: false,
            body_bytes_max: Bytes(8 << 30),
            forward_fields: Vec::new(),
            key_fields: Vec::new(),
            store_set_cookie: false,
            serve_unsynced: true,
            finish_rest: Bytes(1 << 20),
            finish_share: 0.5,
        }
    }
}

/// How edges deal with a site's origin.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OriginPolicy {
    /// How long it may take, and how much may come and go.
    pub limits: OriginLimits,
    /// How TLS is spoken with it, where its URL says so.
    pub tls: OriginTls,
}

/// Files for TLS to an origin. They are on the edges; nothing else reads them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct OriginTls {
    /// Authorities that are trusted in place of all others, in PEM form.
    pub ca: Option<PathBuf>,
    /// The certificate that is shown, with those that lead to its authority, and its key, both in
    /// PEM form.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Times and sizes between an edge and an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginLimits {
    /// Time for making a connection, TLS included.
    pub connect: Duration,
    /// Time from the end of a request to the head of its response.
    pub first_byte: Duration,
    /// Longest pause within a response's body.
    pub between_bytes: Duration,
    /// Longest pause within a request's body: of the client that sends it, and of the origin that
    /// takes it.
    pub request_pause: Duration,
    /// Largest body of a request; `None` has no limit.
    pub request_bytes_max: Option<Bytes>,
    /// Largest head of a response.
    pub head_bytes_max: Bytes,
    /// Most fields of a response.
    pub fields_max: usize,
    /// Most connections of one edge, idle ones included.
    pub connections_max: usize,
    /// Most requests that wait for one of them.
    pub waiting_max: usize,
    /// Longest time that a request waits for one of them.
    pub connection_wait: Duration,
    /// Most WebSockets of one edge, each with a connection of its own; 0 allows none.
    pub upgrades_max: usize,
    /// How long a WebSocket may pass nothing on.
    pub upgrade_idle: Duration,
}

impl Default for OriginLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            first_byte: Duration::from_secs(60),
            between_bytes: Duration::from_secs(60),
            request_pause: Duration::from_secs(60),
            request_bytes_max: Some(Bytes(1 << 30)),
            head_bytes_max: Bytes(64 << 10),
            fields_max: 256,
            connections_max: 128,
            waiting_max: 1024,
            connection_wait: Duration::from_secs(30),
            upgrades_max: 256,
            upgrade_idle: Duration::from_secs(300),
        }
    }
}

/// A zone served from records in the fleet file.
#[derive(Debug, Clone, PartialEq)]
pub struct Zone {
    /// Apex, lower case without a trailing dot; the root zone is the empty string.
    pub name: String,
    /// TTL of records that name none.
    pub ttl: Duration,
    /// Name servers that serve it: indexes into `Fleet::name_servers`.
    pub name_servers: Vec<usize>,
    /// Records as checked, in file order (the apex SOA and NS are made by the name server).
    pub records: Vec<Record>,
}

/// One resource record in presentation format (RFC 1035 section 5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Owner, absolute, lower case, without a trailing dot; the root is the empty string.
    pub owner: String,
    /// Seconds.
    pub ttl: u32,
    /// Type mnemonic in upper case (`A`, `MX`, `TYPE65280`).
    pub rtype: String,
    /// Data in presentation format; relative names in it are relative to the zone.
    pub data: String,
}

impl Node {
    /// Where health checks find out whether `address`, one of the node's, serves clients: at each
    /// listener that serves it. It is up when all of them answer.
    ///
    /// `service` stands for an address that no listener serves. Where `service` is none of the
    /// node's addresses it stands for all of them: clients' addresses are then translated on their
    /// way to the node, and name servers may not reach them.
    pub fn checked_at(&self, address: IpAddr) -> Vec<SocketAddr> {
        if !self.addresses.contains(&self.service.ip()) {
            return vec![self.service];
        }
        let has_own = |port: u16| self.listen.iter().any(|l| l.port() == port && l.is_ipv4());
        let mut found: Vec<SocketAddr> = Vec::new();
        for listener in &self.listen {
            let serves = match (listener.ip(), address) {
                (ip, address) if !ip.is_unspecified() => ip == address,
                // A listener on `[::]` takes IPv4 too where nothing else does.
                (IpAddr::V6(_), IpAddr::V4(_)) => !has_own(listener.port()),
                (ip, address) => ip.is_ipv4() == address.is_ipv4(),
            };
            let endpoint = SocketAddr::new(address, listener.port());
            if serves && !found.contains(&endpoint) {
                found.push(endpoint);
            }
        }
        if found.is_empty() {
            vec![self.service]
        } else {
            found
        }
    }
}

impl Fleet {
    /// The site that serves `host` (lower case, no port, no trailing dot): an exact host first,
    /// then the steered name itself, then a site with the host `*`.
    pub fn site_of_host(&self, host: &str) -> Option<&Site> {
        let exact = self
            .sites
            .iter()
            .find(|s| s.hosts.iter().any(|h| h == host));
        exact
            .or_else(|| self.sites.iter().find(|s| self.steered_name(s) == host))
            .or_else(|| self.sites.iter().find(|s| s.hosts.iter().any(|h| h == "*")))
    }

    /// The name below the CDN's zone whose addresses are steered for `site`, without a trailing
    /// dot.
    pub fn steered_name(&self, site: &Site) -> String {
        format!("{}.{}", site.name, self.zone)
    }

    /// Whether both say the same, whenever they were made.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.changed_unix_s == other.changed_unix_s && self == other
            || *self
                == Self {
                    changed_unix_s: self.changed_unix_s,
                    ..other.clone()
                }
    }

    /// Directory in which the node of that name keeps its state.
    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.state_dir.join(node)
    }
}

impl DailyWindow {
    /// Whether a local time of day (minutes after midnight) is inside.
    pub fn contains(&self, minute: u16) -> bool {
        if self.start_minute <= self.end_minute {
            (self.start_minute..self.end_minute).contains(&minute)
        } else {
            minute >= self.start_minute || minute < self.end_minute
        }
    }

    /// Its length in minutes.
    pub fn minutes(&self) -> u16 {
        match self.end_minute.checked_sub(self.start_minute) {
            Some(minutes) => minutes,
            None => self.end_minute + 24 * 60 - self.start_minute,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_of_an_address_is_checked_or_what_stands_for_it() {
        // Addresses, listeners, service; where each address is checked.
        type Case = (
            &'static [&'static str],
            &'static [&'static str],
            &'static str,
            &'static [&'static [&'static str]],
        );
        let table: [Case; 9] = [
            (
                &["192.0.2.1"],
                &["192.0.2.1:80"],
                "192.0.2.1:80",
                &[&["192.0.2.1:80"]],
            ),
            (
                &["192.0.2.1"],
                &["192.0.2.1:80", "192.0.2.1:8080"],
                "192.0.2.1:80",
                &[&["192.0.2.1:80", "192.0.2.1:8080"]],
            ),
            (
                &["192.0.2.1", "2001:db8::1"],
                &["192.0.2.1:80", "[2001:db8::1]:80"],
                "192.0.2.1:80",
                &[&["192.0.2.1:80"], &["[2001:db8::1]:80"]],
            ),
            (
                &["192.0.2.1", "192.0.2.2", "2001:db8::1"],
                &["0.0.0.0:8080", "[::]:8081", "[::]:8080"],
                "192.0.2.1:8080",
                &[
                    &["192.0.2.1:8080", "192.0.2.1:8081"],
                    &["192.0.2.2:8080", "192.0.2.2:8081"],
                    &["[2001:db8::1]:8081", "[2001:db8::1]:8080"],
                ],
            ),
            // A listener for others than clients is not checked.
            (
                &["192.0.2.1"],
                &["192.0.2.1:80", "10.0.0.1:81"],
                "192.0.2.1:80",
                &[&["192.0.2.1:80"]],
            ),
            // Another way to the same address is.
            (
                &["192.0.2.1"],
                &["192.0.2.1:80"],
                "192.0.2.1:8080",
                &[&["192.0.2.1:80"]],
            ),
            // An address that no listener serves: the service stands for it.
            (
                &["192.0.2.1", "192.0.2.9"],
                &["192.0.2.1:80"],
                "192.0.2.1:80",
                &[&["192.0.2.1:80"], &["192.0.2.1:80"]],
            ),
            // Translated addresses: the service stands for all.
            (
                &["192.0.2.1", "2001:db8::1"],
                &["0.0.0.0:80"],
                "10.0.0.1:80",
                &[&["10.0.0.1:80"], &["10.0.0.1:80"]],
            ),
            (
                &["192.0.2.1"],
                &["10.0.0.1:80"],
                "10.0.0.1:80",
                &[&["10.0.0.1:80"]],
            ),
        ];
        for (addresses, listen, service, expected) in table {
            let node = Node {
                name: "ams-1".into(),
                addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
                listen: listen.iter().map(|l| l.parse().unwrap()).collect(),
                service: service.parse().unwrap(),
                admin: None,
                memory: Bytes(0),
                disk: Bytes(0),
                threads: None,
                capacity_bits: None,
                clients: ClientLimits::default(),
            };
            let found: Vec<Vec<String>> = node
                .addresses
                .iter()
                .map(|a| {
                    node.checked_at(*a)
                        .iter()
                        .map(ToString::to_string)
                        .collect()
                })
                .collect();
            assert_eq!(found, expected, "{addresses:?} {listen:?} {service}");
        }
    }
}
