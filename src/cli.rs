//! The command line: commands, flags and their help.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};
use nearcast_fleet::units::{self, Bytes};
use nearcast_net::address;

/// The groups of `nearcast --help`, in order.
const GROUPS: [(&str, &[&str]); 3] = [
    ("Try", &["demo", "traffic"]),
    ("Roles", &["gslb-dns", "edge", "origin", "control"]),
    (
        "Operate",
        &[
            "check",
            "apply",
            "status",
            "explain",
            "purge",
            "drain",
            "undrain",
            "plan",
            "push",
            "trace",
            "certificates",
            "key",
            "health",
        ],
    ),
];

/// A content delivery network that one person can run.
///
/// Authoritative DNS sends each client to the best cluster of caching edges; a
/// planner pushes tomorrow's popular content to them while the links are quiet.
#[derive(Debug, Parser)]
#[command(
    name = "nearcast",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// What to log to stderr: error, warn, info, debug, trace, or module=level with commas between
    /// [env: RUST_LOG]
    #[arg(long, global = true, value_name = "FILTER", display_order = 900)]
    pub(crate) log: Option<String>,
    /// End when stdin reaches its end (the demo holds the other side).
    #[arg(long, global = true, hide = true)]
    pub(crate) end_with_parent: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "a process has one, and boxes would be in the way of clap"
)]
pub(crate) enum Command {
    /// Run a whole CDN on this machine, with content and clients
    Demo(DemoArgs),
    /// Send requests of synthetic clients on three continents
    Traffic(TrafficArgs),
    /// Answer DNS queries with the best cluster for each client
    GslbDns(GslbDnsArgs),
    /// Cache and serve content near clients
    Edge(EdgeArgs),
    /// Serve a directory as an origin
    Origin(OriginArgs),
    /// Keep the journal, plan pushes, serve the API and the console
    Control(NodeArgs),
    /// Check a fleet file: every mistake, with its place and a hint
    Check(CheckArgs),
    /// Explain which cluster a client is sent to, and why
    Explain(ExplainArgs),
    /// Remove stored responses from every edge, or have them validated
    Purge(PurgeArgs),
    /// Steer clients away from an edge or a cluster before maintenance
    Drain(DrainArgs),
    /// Return an edge or a cluster to service
    Undrain(UndrainArgs),
    /// Show each cluster's next push plan, and how near the optimum
    Plan(PlanArgs),
    /// Push the plan to the clusters now
    Push(PushArgs),
    /// Show one request by its id, as each edge answered it
    Trace(TraceArgs),
    /// Show ordered certificates, and why one is lacking
    Certificates(CertificatesArgs),
    /// Show the state of the fleet
    Status(StatusArgs),
    /// Apply a new fleet file to the running fleet
    Apply(ApplyArgs),
    /// Print a node's own key, or make a new key for a fleet
    Key(KeyArgs),
    /// Request a URL once; exit 0 when it answers 2xx
    Health(HealthArgs),
}

impl Command {
    /// Whether it runs a node until shutdown.
    pub(crate) fn is_role(&self) -> bool {
        matches!(
            self,
            Self::GslbDns(_) | Self::Edge(_) | Self::Origin(_) | Self::Control(_)
        )
    }
}

/// The argument for the fleet file.
#[derive(Debug, Clone, Args)]
pub(crate) struct FleetArg {
    /// The fleet file [default: the running demo's, else ./nearcast.toml]
    #[arg(
        long,
        value_name = "FILE",
        env = "NEARCAST_FLEET",
        hide_env_values = true
    )]
    pub(crate) fleet: Option<PathBuf>,
}

/// The arguments of a command that asks control or name servers.
#[derive(Debug, Clone, Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArg,
    #[command(flatten)]
    pub(crate) ca: CaArg,
}

/// The argument for the authority of https URLs.
#[derive(Debug, Clone, Args)]
pub(crate) struct CaArg {
    /// PEM file of the authority to trust for https URLs of the fleet [default: ca in the fleet
    /// file, else SSL_CERT_FILE, else the authorities of the Web]
    #[arg(long, value_name = "FILE", env = "NEARCAST_CA", hide_env_values = true)]
    pub(crate) ca: Option<PathBuf>,
}

/// The argument for the operator's token.
#[derive(Debug, Clone, Args)]
pub(crate) struct TokenArg {
    /// The operator's token [default: the file `token` in control's state directory]
    #[arg(
        long,
        value_name = "TOKEN",
        env = "NEARCAST_TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast gslb-dns --fleet nearcast.toml --node ns1\n  dig @127.0.0.1 -p 5300 www.demo.test +subnet=203.0.113.0/24"
)]
pub(crate) struct GslbDnsArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast control --fleet nearcast.toml\n  curl http://127.0.0.1:7700/v1/status\n\nSIGHUP reads the fleet file again; SIGTERM and SIGINT drain and end."
)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArg,
    /// Which node of the fleet file this is [default: the only one of this role]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// The user to run as when started as root: USER or USER:GROUP [default: `user` in [fleet],
    /// else nearcast, else nobody]
    #[arg(
        long,
        value_name = "USER",
        env = "NEARCAST_USER",
        hide_env_values = true
    )]
    pub(crate) user: Option<String>,
    /// The key of this node [default: node.key in its state directory, else what the fleet file
    /// says]
    #[arg(
        long,
        value_name = "FILE",
        env = "NEARCAST_KEY_FILE",
        hide_env_values = true
    )]
    pub(crate) key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast edge --fleet nearcast.toml --node ams-1\n  nearcast edge --listen :443 --origin http://127.0.0.1:8000 --host www.example.org\n  nearcast edge --listen localhost:8080 --origin https://example.com --default-ttl 1m\n  curl -i -H 'Host: example.com' http://127.0.0.1:8080/\n\nSIGHUP reads the fleet file again; SIGTERM and SIGINT drain and end."
)]
pub(crate) struct EdgeArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Serve HTTP here, or HTTPS with --host; a port alone is every IPv4 address, with --host every
    /// address; may be repeated
    #[arg(long, value_name = "ADDR:PORT", value_parser = Listen::parse, requires = "origin", conflicts_with = "node", help_heading = "Without a fleet file")]
    pub(crate) listen: Vec<Listen>,
    /// Serve this host over HTTPS, with a certificate that the edge obtains and renews by itself, which
    /// accepts the authority's terms of service; may be repeated. Its addresses must lead here, to port
    /// 443 or 80
    #[arg(
        long,
        value_name = "HOST",
        requires = "listen",
        conflicts_with_all = ["listen_tls", "cert"],
        help_heading = "Without a fleet file"
    )]
    pub(crate) host: Vec<String>,
    /// Redirect HTTP to HTTPS here [default: port 80 of the addresses of --listen]; may be repeated
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_listener, requires = "host", help_heading = "Without a fleet file")]
    pub(crate) listen_http: Vec<SocketAddr>,
    /// Open no listener for HTTP; the authority then has to reach --listen at port 443
    #[arg(
        long,
        requires = "host",
        conflicts_with = "listen_http",
        help_heading = "Without a fleet file"
    )]
    pub(crate) no_redirect: bool,
    /// The directory of the authority that issues certificates [default: that of Let's Encrypt]
    #[arg(
        long,
        value_name = "URL",
        requires = "host",
        help_heading = "Without a fleet file"
    )]
    pub(crate) acme_directory: Option<String>,
    /// PEM file of the authority to trust for that URL [default: the authorities of the Web]
    #[arg(
        long,
        value_name = "FILE",
        requires = "host",
        help_heading = "Without a fleet file"
    )]
    pub(crate) acme_ca: Option<PathBuf>,
    /// The resolver that is asked where the hosts lead [default: the system's]
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse_server, requires = "host", help_heading = "Without a fleet file")]
    pub(crate) resolver: Option<SocketAddr>,
    /// A mail address for the authority's messages; may be repeated
    #[arg(
        long,
        value_name = "MAIL",
        requires = "host",
        help_heading = "Without a fleet file"
    )]
    pub(crate) contact: Vec<String>,
    /// Serve HTTPS here; may be repeated
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_listener, requires = "listen", requires = "cert", help_heading = "Without a fleet file")]
    pub(crate) listen_tls: Vec<SocketAddr>,
    /// A certificate for --listen-tls, with its chain (PEM); may be repeated, each with its --key
    #[arg(
        long,
        value_name = "FILE",
        requires = "listen_tls",
        requires = "key",
        help_heading = "Without a fleet file"
    )]
    pub(crate) cert: Vec<PathBuf>,
    /// The private key of a certificate (PEM)
    #[arg(
        long,
        value_name = "FILE",
        requires = "cert",
        help_heading = "Without a fleet file"
    )]
    pub(crate) key: Vec<PathBuf>,
    /// The origin to fetch from, http://HOST[:PORT] or https://HOST[:PORT]
    #[arg(
        long,
        value_name = "URL",
        requires = "listen",
        help_heading = "Without a fleet file"
    )]
    pub(crate) origin: Option<String>,
    /// Lifetime of responses that have no freshness information [default: they are not stored]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "listen", help_heading = "Without a fleet file")]
    pub(crate) default_ttl: Option<Duration>,
    /// A request field that is sent to the origin and on which responses do not depend; may be
    /// repeated
    #[arg(
        long = "forward-field",
        value_name = "NAME",
        requires = "listen",
        help_heading = "Without a fleet file"
    )]
    pub(crate) forward_fields: Vec<String>,
    /// A request field whose value is part of the cache key; may be repeated
    #[arg(
        long = "key-field",
        value_name = "NAME",
        requires = "listen",
        help_heading = "Without a fleet file"
    )]
    pub(crate) key_fields: Vec<String>,
    /// Do not derive heuristic lifetimes from Last-Modified (RFC 9111 section 4.2.2)
    #[arg(long, requires = "listen", help_heading = "Without a fleet file")]
    pub(crate) no_heuristic: bool,
    /// Serve no HTTP/3; without this it is served by UDP on the ports for HTTPS
    #[arg(long, requires = "listen", help_heading = "Without a fleet file")]
    pub(crate) no_http3: bool,
    /// Log requests to this file; - is standard output
    #[arg(
        long,
        value_name = "PATH|-",
        requires = "listen",
        help_heading = "Without a fleet file"
    )]
    pub(crate) access_log: Option<PathBuf>,
    /// Form of the access log's lines
    #[arg(
        long,
        value_name = "FORM",
        value_enum,
        default_value_t,
        requires = "access_log",
        help_heading = "Without a fleet file"
    )]
    pub(crate) access_log_format: AccessLogFormat,
    /// Size of the memory tier
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "64MiB", help_heading = "Without a fleet file")]
    pub(crate) memory: Bytes,
    /// Size of the disk tier; 0 turns it off
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "0", help_heading = "Without a fleet file")]
    pub(crate) disk: Bytes,
    /// Directory of content, certificates and state [default: a directory of its own in the temporary
    /// directory; with --host one that lasts, see docs/quick-edge.md]
    #[arg(
        long,
        value_name = "DIR",
        alias = "state",
        help_heading = "Without a fleet file"
    )]
    pub(crate) state_dir: Option<PathBuf>,
}

/// A listener of an edge without a fleet file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) address: SocketAddr,
    /// It was written as a port alone.
    pub(crate) is_port: bool,
}

impl Listen {
    fn parse(text: &str) -> Result<Self, String> {
        let address = parse_listener(text)?;
        let port = text.trim().trim_start_matches('*').trim_start_matches(':');
        Ok(Self {
            address,
            is_port: port.parse::<u16>().is_ok(),
        })
    }
}

/// Forms of an access log's lines.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub(crate) enum AccessLogFormat {
    /// A JSON object a line
    #[default]
    Json,
    /// Common Log Format
    Common,
    /// Common Log Format with Referer and User-Agent
    Combined,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast origin --fleet nearcast.toml --node origin\n  nearcast origin --root ./public --listen :8000\n  nearcast origin --root ./demo --listen 127.0.0.1:8000 --demo-content\n\nSIGHUP reads the fleet file again; SIGTERM and SIGINT drain and end."
)]
pub(crate) struct OriginArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Serve the files of this directory
    #[arg(
        long,
        value_name = "DIR",
        requires = "listen",
        conflicts_with = "node",
        help_heading = "Without a fleet file"
    )]
    pub(crate) root: Option<PathBuf>,
    /// Serve HTTP here; a port alone is every IPv4 address
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_listener, requires = "root", help_heading = "Without a fleet file")]
    pub(crate) listen: Option<SocketAddr>,
    /// Write the demo's pages and videos into the directory first
    #[arg(long)]
    pub(crate) demo_content: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast check nearcast.toml\n  nearcast check --json nearcast.toml | jq '.mistakes[].problem'\n\nExit codes: 0 the file is good, 64 it has mistakes, 66 it cannot be read."
)]
pub(crate) struct CheckArgs {
    /// The fleet file
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast explain www.demo.test --client 203.0.113.9\n  nearcast explain video.demo.test --resolver 198.51.100.53 --type AAAA\n  nearcast explain demo.test --client 192.0.2.0/24 --type MX\n  nearcast explain www.demo.test --client 192.0.2.1 --json | jq .chosen"
)]
pub(crate) struct ExplainArgs {
    /// The host name that the client resolves
    #[arg(value_name = "HOST")]
    pub(crate) host: String,
    /// The client's address or prefix, as its resolver sends it in a client subnet
    #[arg(long, value_name = "IP[/BITS]", required_unless_present = "resolver", value_parser = client_prefix)]
    pub(crate) client: Option<String>,
    /// The resolver's address, which decides where the resolver sends no client subnet
    #[arg(long, value_name = "IP")]
    pub(crate) resolver: Option<IpAddr>,
    /// The record type
    #[arg(long = "type", value_name = "TYPE", default_value = "A")]
    pub(crate) rtype: String,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// Print JSON: the first name server's answer; those of the others under `others` where they
    /// differ
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("scope").required(true).multiple(true).args(["url", "prefix", "host", "site", "tag", "all"]),
    override_usage = "nearcast purge --url URL | --prefix URL | --host HOST | --site NAME\n                     | --tag TAG ... | --all  [OPTIONS]",
    after_help = "All but --all may be repeated and combined into one purge, all or nothing, of up to 256 items. A URL without a scheme covers http and https.\n\nExamples:\n  nearcast purge --url www.demo.test/img/hero.webp\n  nearcast purge --url www.demo.test/ --url https://www.demo.test/about --tag news\n  nearcast purge --prefix www.demo.test/img/ --soft\n  nearcast purge --site video --wait 10s\n  nearcast purge --all --yes --json"
)]
pub(crate) struct PurgeArgs {
    /// One URL, in any equivalent spelling, with every variant
    #[arg(long, value_name = "URL")]
    pub(crate) url: Vec<String>,
    /// Every URL that starts with this text, also within a segment or in the query
    #[arg(long, value_name = "URL")]
    pub(crate) prefix: Vec<String>,
    /// Every response of a host name
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Vec<String>,
    /// Every response of a site of the fleet file
    #[arg(long, value_name = "NAME")]
    pub(crate) site: Vec<String>,
    /// Every response that carries this tag (Cache-Tag, Surrogate-Key, Cache-Groups); up to 1024
    /// bytes
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Vec<String>,
    /// Every response; asks for confirmation on a terminal, and needs --yes without one
    #[arg(long, conflicts_with_all = ["url", "prefix", "host", "site", "tag"])]
    pub(crate) all: bool,
    /// Do not ask for confirmation of --all
    #[arg(long)]
    pub(crate) yes: bool,
    /// Keep the responses, and validate them with the origin before they are served again
    #[arg(long)]
    pub(crate) soft: bool,
    /// How long to wait until every edge has confirmed; exit code 69 when one has not. 0s does not
    /// wait, and shows no counts
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    #[command(flatten)]
    pub(crate) token: TokenArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast trace \"$(curl -sX TRACE http://127.0.10.1:8080/ | sed -n 's/^request id: //p')\"\n  nearcast trace --json \"$(curl -sX TRACE http://127.0.20.1:8080/ | sed -n 's/^request id: //p')\"\n\nThe id is in the access log (request_id), in X-Request-Id at the origin, and in the text of errors. Each edge keeps its last 10,000 requests\nin memory, with or without an access log."
)]
pub(crate) struct TraceArgs {
    /// The id of the request
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    #[command(flatten)]
    pub(crate) token: TokenArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The target of a drain or undrain.
#[derive(Debug, Args)]
pub(crate) struct DrainTargetArgs {
    /// The edge or the cluster; edges that a drained cluster gets later are drained too
    #[arg(value_name = "NODE|CLUSTER")]
    pub(crate) name: String,
    /// Whether NAME is a node or a cluster, where both have that name
    #[arg(long, value_name = "KIND", value_parser = ["node", "cluster"])]
    pub(crate) kind: Option<String>,
    /// How long to wait until every name server has seen the change; exit code 69 when one has not.
    /// 0s does not wait
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s")]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    #[command(flatten)]
    pub(crate) token: TokenArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast drain ams-1\n  nearcast undrain ams-1\n  nearcast drain ams --json | jq .ttl_seconds\n\nThe edge still serves every client that connects. A drain stays in the journal, over restarts of any node, until it is undone.\nA restart alone needs no drain: on SIGTERM an edge serves on as a lame duck before it ends."
)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    pub(crate) target: DrainTargetArgs,
    /// Drain even if that leaves a site without an edge in service
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nearcast undrain ams\n  nearcast undrain ams-1 --wait 0s")]
pub(crate) struct UndrainArgs {
    #[command(flatten)]
    pub(crate) target: DrainTargetArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast plan\n  nearcast plan --cluster ams --items 20\n  nearcast plan --json | jq '.clusters[] | {cluster, gap}'\n\nThe gap is certified: no choice within the same disk share and fill budget is expected to serve more\nthan that much more."
)]
pub(crate) struct PlanArgs {
    /// Only this cluster
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// How many items of each cluster to show
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) items: u32,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast push --now\n  nearcast push --now --cluster ams --cluster nyc\n  nearcast push            # shows the orders so far"
)]
pub(crate) struct PushArgs {
    /// Push now instead of waiting for each cluster's off-peak window
    #[arg(long)]
    pub(crate) now: bool,
    /// Only this cluster; may be repeated
    #[arg(long, value_name = "NAME", requires = "now")]
    pub(crate) cluster: Vec<String>,
    /// Stop watching after this time; the push continues
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10m", requires = "now")]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    #[command(flatten)]
    pub(crate) token: TokenArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast certificates\n  nearcast certificates --json | jq '.certificates[] | select(.failures > 0)'\n\nThe fleet file orders certificates by its section [acme]; the demo's has none. Exits with 69 while orders fail and leave a host without a certificate."
)]
pub(crate) struct CertificatesArgs {
    /// Order the certificate of this host now, whatever is due
    #[arg(long, value_name = "HOST")]
    pub(crate) renew: Option<String>,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    #[command(flatten)]
    pub(crate) token: TokenArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast status\n  watch -n1 nearcast status\n  nearcast status --json | jq '.nodes[] | select(.state != \"up\")'"
)]
pub(crate) struct StatusArgs {
    /// The time over which rates are computed
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    pub(crate) window: Duration,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast apply nearcast.toml\n  nearcast apply --check nearcast.toml\n  nearcast apply --restart-needed nearcast.toml\n\nThe file itself says where the running fleet is, unless --fleet names another one. Changed listeners need a restart of\ntheir nodes. To change the zone, state_dir, the node key or [control], edit the file on control's machine and restart\ncontrol."
)]
pub(crate) struct ApplyArgs {
    /// The new fleet file
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Have control check the file, and change nothing
    #[arg(long)]
    pub(crate) check: bool,
    /// Accept changed listeners, which need a restart of their nodes
    #[arg(long)]
    pub(crate) restart_needed: bool,
    /// The fleet file that says where the running fleet is [default: FILE]
    #[arg(
        long,
        value_name = "FILE",
        env = "NEARCAST_FLEET",
        hide_env_values = true
    )]
    pub(crate) fleet: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) ca: CaArg,
    #[command(flatten)]
    pub(crate) token: TokenArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast key --new                          # the fleet's key, for control and the name servers\n  nearcast key ams-1                          # the own key of one node\n  nearcast key ams-1 --out ams-1.key\n  nearcast key --all --dir keys               # keys/NODE/node.key for every node\n\nThe keys are derived from the fleet's key: --key-file, or what the fleet file names. They are secrets."
)]
pub(crate) struct KeyArgs {
    /// The node whose own key to print
    #[arg(value_name = "NODE", required_unless_present_any = ["new", "all"])]
    pub(crate) node: Option<String>,
    /// Make a new key for a fleet
    #[arg(long, conflicts_with_all = ["node", "all"])]
    pub(crate) new: bool,
    /// Write a key file for every node into --dir: control and name servers get the fleet's key,
    /// all others their own
    #[arg(long, conflicts_with = "node", requires = "dir")]
    pub(crate) all: bool,
    /// The directory for --all, which writes DIR/NODE/node.key
    #[arg(long, value_name = "DIR", requires = "all")]
    pub(crate) dir: Option<PathBuf>,
    /// Write to this file, which only its owner can read, and print nothing
    #[arg(long, value_name = "FILE", conflicts_with = "all")]
    pub(crate) out: Option<PathBuf>,
    /// The file with the fleet's key [default: what the fleet file says]
    #[arg(
        long,
        value_name = "FILE",
        env = "NEARCAST_KEY_FILE",
        hide_env_values = true
    )]
    pub(crate) key_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) fleet: FleetArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast health http://127.0.10.1:9100/ready\n\nExit codes: 0 it answers 2xx, 1 it does not."
)]
pub(crate) struct HealthArgs {
    /// The URL
    #[arg(value_name = "URL")]
    pub(crate) url: String,
    /// How long to wait for the response
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "2s")]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) ca: CaArg,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast demo\n  nearcast demo --no-traffic\n  nearcast demo --clock-speed 1440 --traffic-rate 120\n\nIt runs as child processes on fixed loopback addresses, needs no network and no root, and prints what to try.\nCtrl-C ends everything and leaves nothing behind."
)]
pub(crate) struct DemoArgs {
    /// Start no synthetic clients
    #[arg(long)]
    pub(crate) no_traffic: bool,
    /// Requests a second of the synthetic clients, on the day's average
    #[arg(long, value_name = "N", default_value_t = 150.0, value_parser = parse_rate, conflicts_with = "no_traffic")]
    pub(crate) traffic_rate: f64,
    /// Speed of the fleet's clock, as a multiple of real time
    #[arg(long, value_name = "N", default_value_t = 360.0, value_parser = parse_speed)]
    pub(crate) clock_speed: f64,
    /// Directory of state, content and logs [default: nearcast-demo-UID in the temporary
    /// directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Keep that directory at the end
    #[arg(long)]
    pub(crate) keep: bool,
    /// Write the demo's certificates and their authority's root (ca.pem) into this directory, unless
    /// recent ones are there, and end; the compose demo uses it
    #[arg(long, value_name = "DIR", exclusive = true)]
    pub(crate) certificates: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nearcast traffic\n  nearcast traffic --rate 200 --duration 30s\n  nearcast traffic --duration 10s --seed 7 --json | jq .hit_ratio\n\nClients live in 82 large cities, each with a network of its own: Amsterdam (198.51.100.0/24), New York (203.0.113.0/24),\nSingapore (192.0.2.0/24), and parts of 198.18.0.0/15. A city has clients by its people, and they follow its day on the\nfleet's clock, prefer popular titles, and watch in fast motion."
)]
pub(crate) struct TrafficArgs {
    /// Requests a second, on the day's average
    #[arg(long, value_name = "N", default_value_t = 150.0, value_parser = parse_rate)]
    pub(crate) rate: f64,
    /// End after this long [default: at Ctrl-C]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,
    /// Seed of the clients' choices and times: the same seed makes the same clients
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Ask this name server; may be repeated [default: those of the fleet file]
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_server)]
    pub(crate) dns: Vec<SocketAddr>,
    #[command(flatten)]
    pub(crate) fleet: FleetArg,
    /// Print the final counts as JSON, and no progress
    #[arg(long)]
    pub(crate) json: bool,
    /// Time between two lines of progress, where progress is not one line that is redrawn.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s", hide = true)]
    pub(crate) progress: Duration,
}

/// A rate that one machine can reach.
fn parse_rate(text: &str) -> Result<f64, String> {
    number_between(text, 0.1, 100_000.0)
}

/// A clock speed: at most a day a second.
fn parse_speed(text: &str) -> Result<f64, String> {
    number_between(text, 1.0, 86_400.0)
}

fn number_between(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| format!("write a number from {least} to {most}"))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    units::duration(text).map_err(|e| e.to_string())
}

/// A listener in the forms of the fleet file, short forms included.
fn parse_listener(text: &str) -> Result<SocketAddr, String> {
    address::parse(text, 8080).map_err(|e| e.hint)
}

/// A name server to ask: port 53 unless another is given.
fn parse_server(text: &str) -> Result<SocketAddr, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, 53));
    }
    let found = address::parse(text, 53).map_err(|e| e.hint)?;
    if found.ip().is_unspecified() {
        Err("write the name server's address, such as \"127.0.0.1:5300\"".to_owned())
    } else {
        Ok(found)
    }
}

/// Parses a client's address, with or without a prefix length, into the form for a query.
fn client_prefix(text: &str) -> Result<String, String> {
    let (address, bits) = text
        .split_once('/')
        .map_or((text, None), |(address, bits)| (address, Some(bits)));
    let found: IpAddr = address.parse().map_err(
        |_| "write an IP address, perhaps with the bits of a prefix, such as 203.0.113.0/24",
    )?;
    let whole = if found.is_ipv4() { 32 } else { 128 };
    match bits.map(str::parse::<u8>) {
        Some(Ok(bits)) if bits <= whole => Ok(format!("{found}/{bits}")),
        Some(_) => Err(format!(
            "the prefix of such an address has 0 to {whole} bits"
        )),
        None => Ok(found.to_string()),
    }
}

fn parse_bytes(text: &str) -> Result<Bytes, String> {
    if text == "0" {
        return Ok(Bytes(0));
    }
    units::bytes(text).map_err(|e| e.to_string())
}

/// Sets the top-level help, with commands in groups.
pub(crate) fn grouped(command: clap::Command) -> clap::Command {
    let mut groups = String::new();
    let names = GROUPS.iter().flat_map(|(_, names)| names.iter());
    let width = names.map(|name| name.len()).max().unwrap_or(0);
    for (title, names) in GROUPS {
        groups.push_str(&format!("\n{title}:\n"));
        for name in names {
            let about = command
                .find_subcommand(name)
                .and_then(|c| c.get_about())
                .map(ToString::to_string)
                .unwrap_or_default();
            groups.push_str(&format!("  {name:<width$}  {about}\n"));
        }
    }
    let more = "\nStart with `nearcast demo`; `nearcast COMMAND --help` has examples.\n";
    command.help_template(format!("{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{groups}\nOptions:\n{{options}}\n{more}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_is_in_one_group_has_an_about_and_examples() {
        let command = Cli::command();
        command.clone().debug_assert();
        let grouped: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        let known: BTreeSet<&str> = command
            .get_subcommands()
            .map(clap::Command::get_name)
            .filter(|n| *n != "help")
            .collect();
        assert_eq!(grouped.iter().copied().collect::<BTreeSet<_>>(), known);
        assert_eq!(grouped.len(), known.len(), "none twice");
        for sub in command.get_subcommands() {
            assert!(sub.get_about().is_some(), "{}", sub.get_name());
            let after = sub
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                after.contains(&format!("nearcast {}", sub.get_name())),
                "examples of {}: {after}",
                sub.get_name()
            );
        }
    }

    #[test]
    fn a_listener_may_be_a_port_alone() {
        for (text, address, is_port) in [
            (":443", "0.0.0.0:443", true),
            ("443", "0.0.0.0:443", true),
            ("*:443", "0.0.0.0:443", true),
            ("0.0.0.0:443", "0.0.0.0:443", false),
            ("[::]:443", "[::]:443", false),
            ("localhost:443", "127.0.0.1:443", false),
        ] {
            let address = address.parse().expect("an address");
            let expected = Listen { address, is_port };
            assert_eq!(Listen::parse(text), Ok(expected), "{text}");
        }
        assert!(Listen::parse("www.example.org:443").is_err());
    }

    #[test]
    fn the_top_level_help_names_every_command() {
        let help = super::grouped(Cli::command()).render_help().to_string();
        let head = help.split("Options:").next().expect("a beginning");
        for line in head.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        for (title, names) in GROUPS {
            assert!(help.contains(&format!("{title}:\n")), "{help}");
            for name in names {
                assert!(
                    help.lines()
                        .any(|l| l.trim_start().starts_with(&format!("{name} "))),
                    "{name}: {help}"
                );
            }
        }
    }

    /// Lines of string literals in this program's sources, tests left out, each with its file.
    fn literals() -> Vec<(String, String)> {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut directories: Vec<_> = [
            "src",
            "net/src",
            "fleet/src",
            "http-rules/src",
            "edge/src",
            "origin/src",
            "gslb-dns/src",
            "control/src",
            "push/src",
        ]
        .map(|d| root.join(d))
        .into();
        let mut found = Vec::new();
        while let Some(directory) = directories.pop() {
            for path in std::fs::read_dir(&directory)
                .expect("the sources are here")
                .map(|entry| entry.expect("readable").path())
            {
                let name = path
                    .strip_prefix(root)
                    .expect("below it")
                    .display()
                    .to_string();
                if path.is_dir() {
                    directories.push(path);
                } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
                    let text = std::fs::read_to_string(&path).expect("readable");
                    let text = text
                        .split("#[cfg(test)]\nmod tests {")
                        .next()
                        .unwrap_or_default();
                    let lines = text
                        .lines()
                        .filter(|line| !line.trim_start().starts_with("//"));
                    found.extend(lines.map(|line| (name.clone(), line.to_owned())));
                }
            }
        }
        found
    }

    /// Flags in a text: `--node`.
    fn flags(text: &str) -> Vec<&str> {
        let ends = |rest: &str| {
            rest.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '-')
                .unwrap_or(rest.len())
        };
        let starts = text
            .match_indices("--")
            .filter(|(at, _)| !text[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '-'));
        let found = starts.map(|(at, _)| &text[at + 2..][..ends(&text[at + 2..])]);
        found
            .filter(|flag| flag.starts_with(|c: char| c.is_ascii_lowercase()))
            .collect()
    }

    #[test]
    fn every_flag_and_command_that_a_message_names_exists() {
        let mut command = Cli::command();
        command.build();
        let of = |command: &clap::Command| -> BTreeSet<String> {
            command
                .get_arguments()
                .filter_map(|a| a.get_long())
                .map(str::to_owned)
                .chain(["help".to_owned(), "version".to_owned()])
                .collect()
        };
        let all: BTreeSet<String> = command.get_subcommands().flat_map(of).collect();
        let (mut flags_seen, mut commands_seen) = (0, 0);
        let mut continues_other = false;
        for (file, line) in literals() {
            // Commands of other programs have flags of their own, also on the lines that continue them.
            let is_other = continues_other || line.contains("curl ");
            continues_other = is_other && line.ends_with(r"\\\n\");
            for flag in flags(&line).into_iter().filter(|_| !is_other) {
                assert!(
                    all.contains(flag),
                    "{file} names --{flag}, which no command has: {line}"
                );
                flags_seen += 1;
            }
            // `nearcast NAME FLAGS`, as messages quote a command.
            for quoted in line
                .split('`')
                .skip(1)
                .step_by(2)
                .filter_map(|quoted| quoted.strip_prefix("nearcast "))
            {
                let name = quoted.split_whitespace().next().unwrap_or_default();
                if name.starts_with(|c: char| !c.is_ascii_lowercase()) {
                    continue; // COMMAND, or an option of the whole
                }
                let found = command.find_subcommand(name).unwrap_or_else(|| {
                    panic!("{file} names a command {name}, which is not there: {line}")
                });
                let known = of(found);
                assert!(
                    flags(quoted).iter().all(|flag| known.contains(*flag)),
                    "{file} names a flag that {name} does not have: {line}"
                );
                commands_seen += 1;
            }
        }
        assert!(
            flags_seen > 20 && commands_seen > 10,
            "{flags_seen} flags, {commands_seen} commands: are the sources elsewhere?"
        );
    }

    #[test]
    fn listeners_may_be_written_in_short_forms() {
        for (written, expected) in [
            ("8080", Ok("0.0.0.0:8080")),
            (":8080", Ok("0.0.0.0:8080")),
            ("localhost:8080", Ok("127.0.0.1:8080")),
            ("[::1]:8080", Ok("[::1]:8080")),
            ("127.0.0.1", Err("add a port, such as \"127.0.0.1:8080\"")),
            (
                "http://localhost:8080",
                Err("without the scheme: \"localhost:8080\""),
            ),
        ] {
            let edge = [
                "nearcast", "edge", "--listen", written, "--origin", "http://x",
            ];
            let origin = ["nearcast", "origin", "--listen", written, "--root", "."];
            let edge = Cli::try_parse_from(edge).map(|cli| match cli.command {
                Command::Edge(arguments) => arguments.listen[0].address,
                other => panic!("{other:?}"),
            });
            let origin = Cli::try_parse_from(origin).map(|cli| match cli.command {
                Command::Origin(arguments) => arguments.listen.expect("given"),
                other => panic!("{other:?}"),
            });
            for found in [edge, origin] {
                match (&found, expected) {
                    (Ok(address), Ok(expected)) => assert_eq!(address.to_string(), expected),
                    (Err(error), Err(words)) => {
                        assert!(error.to_string().contains(words), "{written}: {error}")
                    }
                    _ => panic!("{written}: {found:?}"),
                }
            }
        }
        for (written, good) in [
            ("127.0.0.1", true),
            ("127.0.0.1:5300", true),
            ("localhost:5300", true),
            (":5300", false),
        ] {
            assert_eq!(parse_server(written).is_ok(), good, "{written}");
        }
    }

    #[test]
    fn clients_are_addresses_or_prefixes() {
        for (text, expected) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("192.0.2.0/24", Some("192.0.2.0/24")),
            ("2001:DB8::/48", Some("2001:db8::/48")),
            ("192.0.2.0/33", None),
            ("192.0.2.0/", None),
            ("www.demo.test", None),
            ("", None),
        ] {
            assert_eq!(client_prefix(text).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn arguments_that_do_not_belong_together_are_refused() {
        let table: [(&str, bool); 19] = [
            ("key --new", true),
            ("key ams-1 --out f", true),
            ("key", false),
            ("key --all", false),
            ("key ams-1 --new", false),
            ("edge --node b --key-file k", true),
            ("edge --listen 127.0.0.1:0 --origin http://x", true),
            ("edge --listen 127.0.0.1:0", false),
            ("edge --origin http://x", false),
            ("edge --fleet a.toml --node b", true),
            (
                "edge --node b --listen 127.0.0.1:0 --origin http://x",
                false,
            ),
            ("origin --root . --listen 127.0.0.1:0", true),
            ("origin --root .", false),
            ("purge --soft", false),
            ("purge --url http://a/ --all", false),
            ("purge --all --tag t", false),
            ("purge --yes", false),
            ("purge --all --yes", true),
            (
                "purge --url http://a/ --url http://a/b --tag t --tag u --site www --prefix http://a/c --host b",
                true,
            ),
        ];
        for (line, good) in table {
            let parsed = Cli::try_parse_from(std::iter::once("nearcast").chain(line.split(' ')));
            assert_eq!(parsed.is_ok(), good, "{line}: {parsed:?}");
        }
    }
}
