//! The configuration of a fleet after its file was checked: references are resolved and defaults
//! filled in.
//!
//! Owns the meaning of every setting. [`crate::file`] builds these values from the text of a fleet
//! file and is the only module that knows the syntax.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::clock::FleetClock;
pub use crate::secret::Secret;
use crate::units::Bytes;

/// A whole CDN. Built by [`crate::file::parse`]; immutable, shared as `Arc<Fleet>`.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// Zone of the CDN, lower case, without a trailing dot (`cdn.test`). The steered names are
    /// below it: `<site>.<zone>`.
    pub zone: String,
    /// Name servers of `zone`, as indexes into `Fleet::name_servers`.
    pub zone_name_servers: Vec<usize>,
    /// SOA RNAME mailbox as written (`hostmaster@cdn.test`).
    pub hostmaster: String,
    /// Directory at which relative paths in the fleet file start: that of the file. Later revisions
    /// of the file use it as well.
    pub base: PathBuf,
    /// Parent of the nodes' state directories, each named after its node.
    pub state_dir: PathBuf,
    /// User that roles started as root switch to: a name or number, optionally with a group after a
    /// colon.
    pub user: Option<String>,
    /// Key of this machine: the fleet's key or a node's own one, see [`crate::node_key`]. Never in
    /// logs or answers.
    pub node_key: Secret,
    /// Keys that are accepted from nodes.
    pub keys: KeyPolicy,
    /// Interval of nodes' reports to control and the name servers.
    pub report_interval: Duration,
    /// Host names that admin listeners accept beside addresses, local names and those of the
    /// fleet's URLs, see [`crate::own_names`].
    pub admin_hosts: Vec<String>,
    /// Time limits of a node's shutdown.
    pub drain: DrainLimits,
    /// Clock of the fleet: real time, or a faster one for demonstrations.
    pub clock: FleetClock,
    /// The control role. A fleet without it has no purges, pushes, reports and console.
    pub control: Option<Control>,
    /// Nodes of the role `nearcast origin`.
    pub origins: Vec<OriginNode>,
    /// Authoritative name servers.
    pub name_servers: Vec<NameServer>,
    /// Location, health and measurement settings of the name servers.
    pub steering: Steering,
    /// Clusters of edges, at least one.
    pub clusters: Vec<Cluster>,
    /// Sites: the content of customers.
    pub sites: Vec<Site>,
    /// Certificates that edges show to clients.
    pub tls: TlsSettings,
    /// Certificates that control orders by ACME, or the only edge where there is no control; `None`
    /// orders none.
    pub acme: Option<Acme>,
    /// Certification authority that nodes and commands trust for `https` URLs of this fleet's own
    /// nodes (PEM); `None` trusts the authorities of the Web.
    pub ca: Option<PathBuf>,
    /// Certificate and key of every node's admin listener; `None` serves plain HTTP.
    pub admin_identity: Option<CertificateFiles>,
    /// Access log of the edges; `None` writes none.
    pub access_log: Option<AccessLog>,
    /// Zones served beside the CDN's own, in file order.
    pub zones: Vec<Zone>,
    /// Time of this revision, seconds after the Unix epoch: when control accepted it, or when the
    /// file on disk was last modified; 0 without a file. Name servers derive the serial numbers of
    /// their zones from it.
    pub changed_unix_s: u64,
}

/// A certificate and its key, as files on the nodes that show it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CertificateFiles {
    /// Certificate, with the chain to its authority (PEM).
    pub cert: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
}

/// The oldest version of TLS that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    V1_3,
}

/// TLS of edges towards clients. Each certificate serves the names that it contains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// In file order. An ECDSA and an RSA certificate may have the same names: each client gets one
    /// that it supports.
    pub certificates: Vec<CertificateFiles>,
    /// Host whose certificate is shown to clients that name no host; `None` refuses them.
    pub default_host: Option<String>,
    /// Oldest version of TLS.
    pub version_min: TlsVersion,
}

/// Certificates that control orders by ACME (RFC 8555).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// The authorities, in the order in which they are asked; at least one.
    pub authorities: Vec<AcmeAuthority>,
    /// Addresses of the operator for the authority's messages, as URLs (`mailto:...`).
    pub contact: Vec<String>,
    /// Resolver that is asked whether a name leads to this fleet; `None` is that of the system.
    pub resolver: Option<SocketAddr>,
    /// How authorities are shown that names are ours, for certificates that say nothing else;
    /// `None` where it follows from the names.
    pub challenge: Option<AcmeChallenge>,
    /// Certificates with names of their own, perhaps wildcards. Each host of a site that none of
    /// them covers gets a certificate for itself.
    pub certificates: Vec<OrderedCertificate>,
}

/// A certificate that control orders, from a section `[[certificate]]` without files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderedCertificate {
    /// Its names, lower case: hosts and wildcards (`*.example.org`).
    pub hosts: Vec<String>,
    /// How the authority is shown that its names are ours; `None` is [`Acme::challenge`].
    pub challenge: Option<AcmeChallenge>,
}

/// How an authority is shown that a name is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// By a TXT record (RFC 8555 section 8.4).
    Dns,
    /// By a file on port 80 (RFC 8555 section 8.3).
    Http,
}

/// An authority that issues certificates by ACME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeAuthority {
    /// Its name here: a label.
    pub name: String,
    /// URL of its directory.
    pub directory: String,
    /// Authority that its own certificate is verified with (PEM, on control's machine); `None` are
    /// those of the Web.
    pub ca: Option<PathBuf>,
    /// The account elsewhere that this one belongs to (RFC 8555 section 7.3.4).
    pub external_account: Option<ExternalAccount>,
    /// The authority's profile of certificates, such as `shortlived`; `None` is its default.
    pub profile: Option<String>,
}

/// An account that an authority keeps elsewhere, with the key that proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    /// Its identifier.
    pub key_id: String,
    /// File with its key (base64url), on control's machine: only control reads it.
    pub hmac_key_file: PathBuf,
}

/// The access log of the edges.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessLog {
    /// Where it is written.
    pub target: LogTarget,
    /// Form of its lines.
    pub format: LogFormat,
    /// Share (0..=1) of the requests that are logged.
    pub sample: f64,
    /// Whether clients' addresses lose their last bits: IPv4 to /24, IPv6 to /48.
    pub truncates_clients: bool,
    /// Size at which a file is rotated.
    pub rotate_at: Bytes,
    /// Rotated files that are kept.
    pub kept: usize,
}

impl AccessLog {
    /// A log with the default of every other setting.
    pub fn to(target: LogTarget) -> Self {
        Self {
            target,
            format: LogFormat::default(),
            sample: 1.0,
            truncates_clients: false,
            rotate_at: Bytes(100 << 20),
            kept: 5,
        }
    }
}

/// Where an access log is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// A file; a relative path starts at the node's state directory.
    File(PathBuf),
}

/// Form of an access log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// Common Log Format.
    Common,
    /// Common Log Format with `Referer` and `User-Agent`, as Apache's and nginx's `combined`.
    Combined,
}

/// Time limits of a node's shutdown, step by step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainLimits {
    /// Longest time for which an edge keeps serving new clients as a lame duck, while name servers
    /// and resolvers forget its addresses.
    pub lame_duck_max: Duration,
    /// Time for which a name server keeps answering while its `/ready` reports draining, until an
    /// anycast route is withdrawn.
    pub dns_withdrawal: Duration,
    /// Longest time for transfers in progress to finish after new connections are refused.
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

/// The keys that are accepted from nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyPolicy {
    /// Whether each node must present its own key. Otherwise the fleet's key is accepted as well.
    pub own_only: bool,
    /// Key generation by node name, where it is not 1. Keys of other generations are revoked.
    pub generations: BTreeMap<String, u32>,
    /// Generation of the peer secret by cluster name, where it is not 1. Edges of one cluster
    /// authenticate one another with the peer secret.
    pub cluster_generations: BTreeMap<String, u32>,
}

/// The control role: journal, API, console, push job.
#[derive(Debug, Clone, PartialEq)]
pub struct Control {
    /// Node name, `control` unless set.
    pub name: String,
    /// Address of API and console.
    pub listen: SocketAddr,
    /// URL of the API for other nodes, `http://host:port` without a trailing slash.
    pub url: String,
    /// Admin listener.
    pub admin: SocketAddr,
    /// Host names that it accepts beside addresses, local names and the host of `url`, see
    /// [`crate::own_names`].
    pub hosts: Vec<String>,
    /// Web origins (`https://host[:port]`) whose pages may ask the API which edges they are steered to.
    /// Without any the API does not answer that question.
    pub steering_origins: Vec<String>,
    /// Certificate of API and console; `None` serves plain HTTP.
    pub identity: Option<CertificateFiles>,
    /// Push planning; `None` when the file turns it off.
    pub push: Option<PushPolicy>,
}

/// Settings of push planning.
#[derive(Debug, Clone, PartialEq)]
pub struct PushPolicy {
    /// Half-life of request counts in the forecast, in time of the fleet's clock.
    pub half_life: Duration,
    /// Least expected requests a day and cluster for which a URL is planned.
    pub expected_requests_min: f64,
}

/// A node of the role `nearcast origin`.
#[derive(Debug, Clone, PartialEq)]
pub struct OriginNode {
    /// Node name.
    pub name: String,
    /// Addresses of its HTTP listener.
    pub listen: SocketAddr,
    /// Admin listener; always there when the node comes from a fleet file.
    pub admin: Option<SocketAddr>,
    /// Directory of the content.
    pub root: PathBuf,
    /// Cache rules; the first match decides, and the built-in rules follow them.
    pub rules: Vec<OriginRule>,
}

/// `Cache-Control` for files that match a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginRule {
    /// Glob over the path below the root: `*` within a segment, `**` over segments.
    pub pattern: String,
    /// Value of the field.
    pub cache_control: String,
}

/// An authoritative name server node.
#[derive(Debug, Clone, PartialEq)]
pub struct NameServer {
    /// Node name (`ns1`).
    pub name: String,
    /// Host name in NS records, lower case, without a trailing dot (`ns1.cdn.test` unless set).
    pub host: String,
    /// Addresses of its UDP and TCP listeners.
    pub listen: Vec<SocketAddr>,
    /// Addresses for glue and address records of `host`.
    pub addresses: Vec<IpAddr>,
    /// Admin listener, which also receives the edges' round-trip reports.
    pub admin: SocketAddr,
    /// URL of the admin listener for edges, `http://host:port`.
    pub admin_url: String,
}

/// Health, location and measurement settings of all name servers.
#[derive(Debug, Clone, PartialEq)]
pub struct Steering {
    /// Database in MaxMind format; `None` uses the built-in country table alone.
    pub geo_db: Option<PathBuf>,
    /// Active health checks of edges.
    pub health: HealthCheck,
    /// Age after which a measured round-trip time expires.
    pub rtt_max_age: Duration,
    /// Share (0..1) of `rtt`-steered answers that name the second-best cluster, so that it is
    /// measured as well.
    pub rtt_explore: f64,
    /// Time over which clients return to a node that was out of the answers; zero returns all of
    /// them at once.
    pub ramp: Duration,
    /// Whether measurements are compared with the clusters' distance and with those of other nodes.
    /// Laboratories with invented places turn this off.
    pub rtt_bound: bool,
}

/// An active health check.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthCheck {
    /// Path of the check on each edge's HTTP listener.
    pub path: String,
    /// Interval between two checks of one node, before jitter.
    pub interval: Duration,
    /// Longest time-out of a check. It applies until there is a measurement and while the address
    /// is down; the time-out learned from round-trip times is never longer.
    pub timeout: Duration,
    /// Shortest time-out of a check, even after short round-trip times; `timeout` where that is
    /// shorter.
    pub timeout_min: Duration,
    /// Consecutive failures after which a node is down.
    pub fall: u32,
    /// Consecutive successes after which it is up again.
    pub rise: u32,
    /// Share of the interval (0..1) by which each check is shifted at random.
    pub jitter: f64,
}

/// A cluster: edges in one place.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// Name (`ams`), unique among clusters.
    pub name: String,
    /// Display name: `Amsterdam`.
    pub label: String,
    /// Location.
    pub place: Place,
    /// IANA name of its time zone (`Europe/Amsterdam`).
    pub time_zone: String,
    /// Local time of day in which pushes run.
    pub off_peak: DailyWindow,
    /// Limit of pushes in the whole cluster, bits a second.
    pub fill_rate_bits: u64,
    /// Space for pushed content on each node's disk.
    pub push_share: Bytes,
    /// Weight under weighted steering.
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

/// A span of local time of day, in minutes after midnight. `end < start` wraps over midnight; 0 to
/// 1,440 is the whole day.
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
    /// Addresses of its HTTP listener.
    pub listen: Vec<SocketAddr>,
    /// Addresses of its HTTPS listener.
    pub listen_tls: Vec<SocketAddr>,
    /// Those of both on which every connection begins with a header of the PROXY protocol.
    pub proxy_protocol: Vec<SocketAddr>,
    /// Prefixes of proxies whose statements on the client and on the scheme are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Address for cluster peers, and for health checks where [`Node::checked_at`] says so.
    pub service: SocketAddr,
    /// Admin listener; always there when the node comes from a fleet file.
    pub admin: Option<SocketAddr>,
    /// Size of the memory tier.
    pub memory: Bytes,
    /// Size of the disk tier; 0 turns it off.
    pub disk: Bytes,
    /// Worker threads; `None` starts one a core.
    pub threads: Option<usize>,
    /// Capacity in response bits a second. Traffic that would fill the cluster beyond 95 % is
    /// steered to the next cluster.
    pub capacity_bits: Option<u64>,
    /// Limits for its clients.
    pub clients: ClientLimits,
}

/// Limits for the clients of an edge: sizes of request heads, numbers and time-outs of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    /// Largest request head in bytes.
    pub head_bytes_max: usize,
    /// Most fields of a request head.
    pub fields_max: usize,
    /// Time-out for a request head, from its first byte.
    pub head_timeout: Duration,
    /// Time-out of an idle connection between two requests.
    pub idle_timeout: Duration,
    /// Time-out for a client that takes no byte of a response.
    pub write_timeout: Duration,
    /// Most open client connections; `None` derives the limit from that of open files.
    pub connections_max: Option<usize>,
    /// Time-out for a TLS handshake, and for a PROXY header before it.
    pub handshake_timeout: Duration,
    /// Whether HTTP/2 is offered.
    pub http2: bool,
    /// Most concurrent streams of an HTTP/2 connection.
    pub http2_streams_max: u32,
    /// Whether HTTP/3 is served, by UDP on the addresses of the listeners for TLS.
    pub http3: bool,
    /// Most concurrent requests of an HTTP/3 connection.
    pub http3_streams_max: u32,
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
            handshake_timeout: Duration::from_secs(10),
            http2: true,
            http2_streams_max: 128,
            http3: true,
            http3_streams_max: 128,
        }
    }
}

/// A site: a customer's content, with its hosts and origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// Name, a DNS label (`www`): the steered name is `<name>.<fleet zone>`.
    pub name: String,
    /// Host names that clients use, lower case, without a trailing dot; `*` alone matches any host.
    pub hosts: Vec<String>,
    /// Base URL of the origin, `http://host[:port]` or `https://host[:port]`.
    pub origin: String,
    /// `Host` field for the origin; `None` forwards the client's.
    pub origin_host: Option<String>,
    /// Steering policy.
    pub policy: SelectionPolicy,
    /// TTL of the steered addresses.
    pub ttl: Duration,
    /// Clusters that serve it, in file order, as indexes into `Fleet::clusters`.
    pub clusters: Vec<usize>,
    /// Caching policy.
    pub cache: CachePolicy,
    /// Limits and TLS settings towards the origin.
    pub origin_policy: OriginPolicy,
    /// Clients that may purge it with the method `PURGE`.
    pub purge: PurgePolicy,
    /// What clients without TLS get, and what browsers are told about TLS.
    pub https: HttpsPolicy,
    /// Compression of responses that the origin sends without a content coding.
    pub compression: CompressionPolicy,
}

/// HTTPS towards the clients of a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpsPolicy {
    /// Whether the certificates of its hosts are files on the edges: control orders none for them.
    pub brings_certificates: bool,
    /// Whether requests without TLS are redirected to `https`.
    pub redirect: bool,
    /// `Strict-Transport-Security` of responses over TLS (RFC 6797).
    pub hsts: Option<Hsts>,
    /// Whether name servers answer HTTPS queries for its steered names with a record (RFC 9460).
    pub dns_record: bool,
}

impl Default for HttpsPolicy {
    fn default() -> Self {
        Self {
            brings_certificates: false,
            redirect: false,
            hsts: None,
            dns_record: true,
        }
    }
}

/// `Strict-Transport-Security` (RFC 6797).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hsts {
    /// `max-age`.
    pub max_age: Duration,
    /// `includeSubDomains`.
    pub subdomains: bool,
    /// `preload`.
    pub preload: bool,
}

/// A content coding that an edge can apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coding {
    /// `zstd` (RFC 8878).
    Zstd,
    /// `br` (RFC 7932).
    Brotli,
    /// `gzip` (RFC 1952).
    Gzip,
}

/// Compression of a site's responses by the edges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompressionPolicy {
    /// Codings in order of preference where a client wants several equally; empty turns
    /// compression off.
    pub codings: Vec<Coding>,
    /// Effort, 1 (fast) to 9 (small), for every coding.
    pub level: u32,
    /// Smallest body that is compressed.
    pub bytes_min: Bytes,
    /// Largest body that is compressed.
    pub bytes_max: Bytes,
    /// Media types, in lower case and without parameters; `text/*` matches all types of text.
    pub types: Vec<String>,
}

impl Default for CompressionPolicy {
    fn default() -> Self {
        let types = [
            "text/*",
            "application/javascript",
            "application/json",
            "application/manifest+json",
            "application/xml",
            "application/xhtml+xml",
            "application/rss+xml",
            "application/atom+xml",
            "application/vnd.apple.mpegurl",
            "application/x-mpegurl",
            "application/dash+xml",
            "application/wasm",
            "image/svg+xml",
            "font/ttf",
            "font/otf",
        ];
        Self {
            // Pages of 60 KiB at level 4: zstd takes a fifth to a tenth of gzip's time and makes them
            // 5 % larger; brotli takes 0.8 to 1.5 of gzip's time and makes them 0 to 3 % smaller.
            // Zstd costs the least, and clients that lack it are served with what all decode.
            codings: vec![Coding::Zstd, Coding::Gzip, Coding::Brotli],
            level: 4,
            bytes_min: Bytes(256),
            bytes_max: Bytes(16 << 20),
            types: types.map(str::to_owned).to_vec(),
        }
    }
}

/// Clients that may purge a site with the method `PURGE`: none unless the site names them. The
/// operators' token does not work here; it purges through control.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PurgePolicy {
    /// Clients with these addresses.
    pub from: Vec<IpNet>,
    /// Clients that send this token as `Authorization: Bearer`.
    pub token: Option<Secret>,
}

impl PurgePolicy {
    /// Whether no client may purge the site.
    pub fn is_off(&self) -> bool {
        self.from.is_empty() && self.token.is_none()
    }
}

/// How a cluster is selected for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SelectionPolicy {
    /// The cluster nearest to the client's geo-IP location.
    Geo,
    /// The cluster with the least measured round-trip time; by location where there is none.
    Rtt,
    /// A random cluster, in proportion to the weights.
    Weighted,
    /// Each cluster in turn.
    RoundRobin,
}

/// How edges cache a site, beside the origin's own fields.
#[derive(Debug, Clone, PartialEq)]
pub struct CachePolicy {
    /// Freshness lifetime of a response without freshness information; `None` does not store such a
    /// response.
    pub default_ttl: Option<Duration>,
    /// Whether a heuristic lifetime is derived from `Last-Modified` (RFC 9111 section 4.2.2).
    pub heuristic: bool,
    /// `stale-while-revalidate` where the origin sends none.
    pub stale_while_revalidate: Duration,
    /// `stale-if-error` where the origin sends none.
    pub stale_if_error: Duration,
    /// Whether clients' request `Cache-Control` is obeyed (RFC 9111 section 5.2.1).
    pub obey_client: bool,
    /// Largest body that is stored; larger ones are relayed.
    pub body_bytes_max: Bytes,
    /// Request fields, in lower case, that do not affect responses (perhaps `cookie`): requests
    /// with them fill the store like all others.
    pub forward_fields: Vec<String>,
    /// Request fields, in lower case, that are part of the cache key, as if every response named
    /// them in `Vary`.
    pub key_fields: Vec<String>,
    /// Whether a storable response is stored with its `Set-Cookie` lines.
    pub store_set_cookie: bool,
    /// Whether responses stored by an earlier run are served within `stale_if_error` when they
    /// cannot be validated, although this node has not reached control since its start and may lack
    /// a purge of them.
    pub serve_unsynced: bool,
    /// A fill without readers continues when at most this is left of it.
    pub finish_rest: Bytes,
    /// A fill without readers continues when at least this share (0..1) was received.
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

/// Settings towards a site's origin.
#[derive(Debug, Clone, PartialEq)]
pub struct OriginPolicy {
    /// Limits of time and size.
    pub limits: OriginLimits,
    /// TLS files, for an `https` origin.
    pub tls: OriginTls,
    /// Whether HTTP/2 is used with an `https` origin that offers it.
    pub http2: bool,
}

impl Default for OriginPolicy {
    fn default() -> Self {
        Self {
            limits: OriginLimits::default(),
            tls: OriginTls::default(),
            http2: true,
        }
    }
}

/// Files for TLS to an origin. They are on the edges, and only edges read them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct OriginTls {
    /// Trusted certification authorities in place of all others (PEM).
    pub ca: Option<PathBuf>,
    /// Client certificate, with the chain to its authority, and its key (PEM).
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Limits of time and size between an edge and an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginLimits {
    /// Time-out for connecting, TLS included.
    pub connect: Duration,
    /// Time-out from the end of a request to the head of its response.
    pub first_byte: Duration,
    /// Longest pause within a response body.
    pub between_bytes: Duration,
    /// Longest pause within a request body, of the client that sends it or of the origin that
    /// receives it.
    pub request_pause: Duration,
    /// Largest request body; `None` is unlimited.
    pub request_bytes_max: Option<Bytes>,
    /// Largest response head.
    pub head_bytes_max: Bytes,
    /// Most fields of a response.
    pub fields_max: usize,
    /// Most connections of one edge, idle ones included.
    pub connections_max: usize,
    /// Most requests that wait for a connection.
    pub waiting_max: usize,
    /// Longest time for which a request waits for a connection.
    pub connection_wait: Duration,
    /// Most WebSockets of one edge, each on a connection of its own; 0 allows none.
    pub upgrades_max: usize,
    /// Time-out of an idle WebSocket.
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
    /// TTL of records without their own.
    pub ttl: Duration,
    /// Name servers that serve it, as indexes into `Fleet::name_servers`.
    pub name_servers: Vec<usize>,
    /// Checked records in file order. The name server adds SOA and NS of the apex.
    pub records: Vec<Record>,
}

/// One resource record in presentation format (RFC 1035 section 5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Owner, absolute, lower case, without a trailing dot; the root is the empty string.
    pub owner: String,
    /// TTL in seconds.
    pub ttl: u32,
    /// Type mnemonic in upper case (`A`, `MX`, `TYPE65280`).
    pub rtype: String,
    /// Data in presentation format; relative names in it are relative to the zone.
    pub data: String,
}

impl Node {
    /// Endpoints of health checks for `address`, one of the node's: each listener that serves it.
    /// The address is up when all of them answer.
    ///
    /// `service` replaces an address that no listener serves. Where `service` is none of the node's
    /// addresses it replaces all of them: clients' addresses are then translated on their way to
    /// the node, and name servers may not reach them. Checks carry no header of the PROXY protocol, so
    /// listeners that expect one are left out.
    pub fn checked_at(&self, address: IpAddr) -> Vec<SocketAddr> {
        if !self.addresses.contains(&self.service.ip()) {
            return vec![self.service];
        }
        let has_own = |port: u16| self.listen.iter().any(|l| l.port() == port && l.is_ipv4());
        let mut found: Vec<SocketAddr> = Vec::new();
        // Name servers send no PROXY header.
        let is_checked = |listener: &&SocketAddr| !self.proxy_protocol.contains(listener);
        for listener in self.listen.iter().filter(is_checked) {
            let serves = match (listener.ip(), address) {
                (ip, address) if !ip.is_unspecified() => ip == address,
                // A listener on `[::]` accepts IPv4 too, unless there is an IPv4 listener on that
                // port.
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

    /// The steered name that a host of a site can be a CNAME to; `None` where no site has the host, or
    /// no name server answers for the name.
    pub fn steered_name_of_host(&self, host: &str) -> Option<String> {
        let has_host = |site: &&Site| site.hosts.iter().any(|one| one == host);
        let mut sites = self.sites.iter().filter(|_| !self.name_servers.is_empty());
        Some(self.steered_name(sites.find(has_host)?))
    }

    /// Whether both are equal, apart from the time of the revision.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.changed_unix_s == other.changed_unix_s && self == other
            || *self
                == Self {
                    changed_unix_s: self.changed_unix_s,
                    ..other.clone()
                }
    }

    /// State directory of the node with this name.
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

    /// Length in minutes.
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
                listen_tls: Vec::new(),
                proxy_protocol: Vec::new(),
                trusted_proxies: Vec::new(),
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

    #[test]
    fn listeners_behind_proxies_are_not_checked() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut node = crate::testing::node("ams-1", &["192.0.2.1"]);
        node.listen = vec![address("192.0.2.1:80"), address("192.0.2.1:8080")];
        node.service = address("192.0.2.1:8080");
        node.proxy_protocol = vec![address("192.0.2.1:80")];
        let checked = node.checked_at(node.addresses[0]);
        assert_eq!(checked, [address("192.0.2.1:8080")]);
    }
}
