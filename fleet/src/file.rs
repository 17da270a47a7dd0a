//! The fleet file: from text to a checked [`Fleet`], or to every mistake in it at once.
//!
//! The only place that knows how settings are written and what their defaults are;
//! [`crate::config`] says what they mean. `docs/fleet-file.md` is the same for people, and a test
//! holds the two together.

mod names;
mod reader;
mod record;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use toml::de::DeTable;

use self::reader::{Mistakes, Section, Text, nearest};
use crate::clock::{FleetClock, unix_seconds};
use crate::config::*;
use crate::failure::{Failure, FailureKind};
use crate::node_key::{self, OwnKey, Strength};
use crate::units::{self, Bytes};

/// The known name that a mistyped one most likely stands for.
pub fn nearest_name<'k>(name: &str, known: &'k [&'k str]) -> Option<&'k str> {
    self::reader::nearest(name, known)
}

/// The largest fleet file that is read.
pub const FILE_BYTES_MAX: usize = 4 << 20;

/// The shortest node key, and the shortest purge token.
const NODE_KEY_CHARS_MIN: usize = 16;

/// The highest generation of a node's key.
const KEY_GENERATION_MAX: u64 = 1_000_000;

/// Every section with the settings that it may have, as the file writes them.
pub const SETTINGS: &[(&str, &[&str])] = &[
    ("", ROOT),
    ("fleet", FLEET),
    ("clock", CLOCK),
    ("clients", CLIENTS),
    ("control", CONTROL),
    ("control.push", PUSH),
    ("steering", STEERING),
    ("steering.health", HEALTH),
    ("origin_node", ORIGIN_NODE),
    ("origin_node.rule", RULE),
    ("name_server", NAME_SERVER),
    ("cluster", CLUSTER),
    ("cluster.place", PLACE),
    ("cluster.node", NODE),
    ("cluster.node.clients", CLIENTS),
    ("site", SITE),
    ("site.cache", CACHE),
    ("site.limits", LIMITS),
    ("zone", ZONE),
];

const ROOT: &[&str] = &[
    "fleet",
    "clock",
    "clients",
    "control",
    "steering",
    "origin_node",
    "name_server",
    "cluster",
    "site",
    "zone",
];
const FLEET: &[&str] = &[
    "zone",
    "hostmaster",
    "state_dir",
    "user",
    "node_key",
    "node_key_file",
    "node_keys",
    "report_interval",
    "name_servers",
    "admin_hosts",
    "drain_max",
    "dns_withdrawal",
    "finish_max",
];
const CLOCK: &[&str] = &["speed", "anchor_real", "anchor_fleet"];
const CLIENTS: &[&str] = &[
    "head_max",
    "fields_max",
    "head_timeout",
    "idle_timeout",
    "write_timeout",
    "connections_max",
];
const CONTROL: &[&str] = &["name", "listen", "url", "hosts", "admin", "push"];
const PUSH: &[&str] = &["enabled", "half_life", "expected_requests_min"];
const STEERING: &[&str] = &[
    "geo_db",
    "rtt_max_age",
    "rtt_explore",
    "rtt_bound",
    "ramp",
    "health",
];
const HEALTH: &[&str] = &[
    "path",
    "interval",
    "timeout",
    "timeout_min",
    "fall",
    "rise",
    "jitter",
];
const ORIGIN_NODE: &[&str] = &["name", "listen", "admin", "root", "key_generation", "rule"];
const RULE: &[&str] = &["pattern", "cache_control"];
const NAME_SERVER: &[&str] = &[
    "name",
    "host",
    "listen",
    "addresses",
    "admin",
    "admin_url",
    "key_generation",
];
const CLUSTER: &[&str] = &[
    "name",
    "label",
    "place",
    "time_zone",
    "off_peak",
    "fill_rate",
    "push_share",
    "weight",
    "key_generation",
    "node",
];
const PLACE: &[&str] = &["latitude", "longitude"];
const NODE: &[&str] = &[
    "name",
    "address",
    "addresses",
    "listen",
    "service",
    "admin",
    "memory",
    "disk",
    "threads",
    "capacity",
    "key_generation",
    "clients",
];
const SITE: &[&str] = &[
    "name",
    "hosts",
    "origin",
    "origin_host",
    "origin_ca",
    "origin_cert",
    "origin_key",
    "steering",
    "ttl",
    "clusters",
    "purge_from",
    "purge_token",
    "purge_token_file",
    "cache",
    "limits",
];
const CACHE: &[&str] = &[
    "default_ttl",
    "heuristic",
    "stale_while_revalidate",
    "stale_if_error",
    "obey_client",
    "body_max",
    "forward_fields",
    "key_fields",
    "store_set_cookie",
    "serve_unsynced",
    "finish_rest",
    "finish_share",
];
const LIMITS: &[&str] = &[
    "connect",
    "first_byte",
    "between_bytes",
    "request_pause",
    "request_body",
    "head",
    "fields",
    "connections",
    "waiting",
    "connection_wait",
    "upgrades",
    "upgrade_idle",
];
/// Names in each of a site's lists of request fields.
const FIELDS_MAX: usize = 32;

const ZONE: &[&str] = &["name", "ttl", "name_servers", "records"];

/// One mistake in a fleet file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// What is wrong, with the dotted path of the setting (`cluster[1].node[0].listen: ...`).
    pub problem: String,
    /// What to write instead.
    pub mend: String,
}

/// Parses and checks a fleet file's text. Relative paths in it are taken from `base`.
///
/// # Errors
/// Every mistake found, in file order, at least one.
pub fn parse(text: &str, base: &Path) -> Result<Fleet, Vec<Mistake>> {
    parse_with(text, base, KeySource::File)
}

/// Where the node key of a fleet comes from.
#[derive(Debug, Clone, Copy)]
pub enum KeySource<'k> {
    /// The fleet file, or the file that it names.
    File,
    /// This one, whatever the fleet file says: the key of this machine. An empty one is none, and
    /// the fleet file is asked.
    Given(&'k Secret),
    /// This one in place of what the file that it names holds; a key that the fleet file itself has
    /// counts.
    InPlaceOfFile(&'k Secret),
    /// Nobody needs it: the file that the fleet file names need not be there.
    Unneeded,
}

/// [`parse`] with a node key from elsewhere.
///
/// # Errors
/// As [`parse`].
pub fn parse_with(text: &str, base: &Path, key: KeySource<'_>) -> Result<Fleet, Vec<Mistake>> {
    let mistakes = Mistakes::new(text);
    if text.len() > FILE_BYTES_MAX {
        mistakes.note(
            0,
            format!("the file has {} bytes", text.len()),
            format!("at most {FILE_BYTES_MAX} are read"),
        );
        return Err(mistakes.into_sorted());
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        mistakes.note(
            at,
            error.message().replace('\n', ", "),
            "write TOML: [section] headers, and lines of the form key = \"value\"",
        );
    }
    // What is left of a file with such errors would only give mistakes that nobody made.
    if !errors.is_empty() {
        return Err(mistakes.into_sorted());
    }
    let fleet = {
        let root = Section::root(&mistakes, table.get_ref(), ROOT);
        check(&root, base, key)
    };
    if mistakes.is_empty() {
        Ok(fleet)
    } else {
        Err(mistakes.into_sorted())
    }
}

/// Reads, parses and checks a fleet file.
///
/// # Errors
/// [`FailureKind::NoInput`] when it cannot be read; [`FailureKind::Usage`] with every mistake, one
/// a line as `FILE:LINE:COLUMN: PROBLEM; MEND`.
pub fn load(path: &Path) -> Result<Fleet, Failure> {
    load_with(path, KeySource::File)
}

/// [`load`] with a node key from elsewhere.
///
/// # Errors
/// As [`load`].
pub fn load_with(path: &Path, key: KeySource<'_>) -> Result<Fleet, Failure> {
    let text = read(path)?;
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let base = std::path::absolute(parent).unwrap_or_else(|_| parent.to_owned());
    let fleet = parse_with(&text, &base, key).map_err(|mistakes| {
        Failure::new(
            FailureKind::Usage,
            describe(&path.display().to_string(), &mistakes),
        )
    })?;
    Ok(Fleet {
        changed_unix_s: modified_unix_s(path),
        ..fleet
    })
}

/// When a file was last modified, in seconds after the Unix epoch; not later than now, and 0 where
/// that is not known.
fn modified_unix_s(path: &Path) -> u64 {
    let modified = std::fs::metadata(path)
        .and_then(|about| about.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH);
    unix_seconds(modified.min(SystemTime::now())) as u64
}

/// Reads a fleet file's text.
///
/// # Errors
/// [`FailureKind::NoInput`] when it cannot be read; [`FailureKind::BadData`] when it is no text.
pub fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        let (kind, mend) = match error.kind() {
            std::io::ErrorKind::InvalidData => (FailureKind::BadData, "save it as UTF-8 text"),
            std::io::ErrorKind::PermissionDenied => (
                FailureKind::NoInput,
                "let this user read it, and search the directories above it",
            ),
            // Commands take the path in different ways: what it is called there is not known here.
            _ => (
                FailureKind::NoInput,
                "give the path of a file that is there",
            ),
        };
        Failure::new(
            kind,
            format!(
                "cannot read the fleet file {}: {error}; {mend}",
                path.display()
            ),
        )
    })
}

/// What the parser cannot tell of a file that it has read, as it takes a role to know; given with
/// the file's text, in which the mistakes have their places.
pub type FurtherCheck = fn(&Fleet, &str) -> Vec<Mistake>;

/// [`parse`], and then a further check.
///
/// # Errors
/// Every mistake of the parser; if it has none, every one of the further check.
pub fn parse_and_check(
    text: &str,
    base: &Path,
    check: FurtherCheck,
) -> Result<Fleet, Vec<Mistake>> {
    parse_and_check_with(text, base, KeySource::File, check)
}

/// [`parse_and_check`] with a node key from elsewhere.
///
/// # Errors
/// As [`parse_and_check`].
pub fn parse_and_check_with(
    text: &str,
    base: &Path,
    key: KeySource<'_>,
    check: FurtherCheck,
) -> Result<Fleet, Vec<Mistake>> {
    let fleet = parse_with(text, base, key)?;
    let mistakes = check(&fleet, text);
    if mistakes.is_empty() {
        Ok(fleet)
    } else {
        Err(mistakes)
    }
}

/// Mistakes for people, one a line: `FILE:LINE:COLUMN: PROBLEM; MEND`.
pub fn describe(file: &str, mistakes: &[Mistake]) -> String {
    let lines = mistakes
        .iter()
        .map(|m| format!("{file}:{}:{}: {}; {}", m.line, m.column, m.problem, m.mend));
    lines.collect::<Vec<_>>().join("\n")
}

/// The fleet of one edge without a fleet file: node `edge` in cluster `local`, one site `site` for
/// any host, no control, no admin listener, the client's `Host` passed on to the origin, no node
/// key. `disk` of 0 keeps nothing on disk; `cache` is the site's policy. The node's state is in
/// `state_dir`/edge.
///
/// # Errors
/// [`FailureKind::Usage`] when `origin` is not `http://host[:port]` or `https://host[:port]`,
/// nothing is listened on, or a request field of the policy has a name that it cannot have.
pub fn standalone_edge(
    listen: Vec<SocketAddr>,
    origin: &str,
    state_dir: PathBuf,
    memory: Bytes,
    disk: Bytes,
    cache: CachePolicy,
) -> Result<Fleet, Failure> {
    let origin = names::base_url(origin, &["http", "https"]).map_err(|problem| {
        Failure::new(
            FailureKind::Usage,
            format!("{origin:?} is no origin: {problem}; write http://host[:port] or https://host[:port], such as http://127.0.0.1:8000"),
        )
    })?;
    for name in cache.forward_fields.iter().chain(&cache.key_fields) {
        names::request_field(name).map_err(|(problem, mend)| {
            Failure::new(
                FailureKind::Usage,
                format!("the request field {name:?}: {problem}; {mend}"),
            )
        })?;
    }
    let Some(service) = listen.first().copied() else {
        return Err(Failure::new(
            FailureKind::Usage,
            "there is nothing to listen on; name an address and a port, such as 127.0.0.1:8080",
        ));
    };
    let node = Node {
        name: "edge".into(),
        addresses: listen.iter().map(SocketAddr::ip).collect(),
        listen,
        service,
        admin: None,
        memory,
        disk,
        threads: None,
        capacity_bits: None,
        clients: ClientLimits::default(),
    };
    let cluster = Cluster {
        name: "local".into(),
        label: "local".into(),
        place: Place {
            latitude: 0.0,
            longitude: 0.0,
        },
        time_zone: "UTC".into(),
        off_peak: DailyWindow {
            start_minute: 120,
            end_minute: 360,
        },
        fill_rate_bits: FILL_RATE_BITS,
        push_share: Bytes(disk.0 / 2),
        weight: 1,
        nodes: vec![node],
    };
    let site = Site {
        name: "site".into(),
        hosts: vec!["*".into()],
        origin,
        origin_host: None,
        policy: SelectionPolicy::Geo,
        ttl: SITE_TTL,
        clusters: vec![0],
        cache,
        origin_policy: OriginPolicy::default(),
        purge: PurgePolicy::default(),
    };
    Ok(Fleet {
        clusters: vec![cluster],
        sites: vec![site],
        ..standalone(state_dir)
    })
}

/// The fleet of one origin node without a fleet file: node `origin` that serves the directory
/// `root` on `listen`, no control, no admin listener, built-in cache rules alone.
///
/// # Errors
/// [`FailureKind::NoInput`] when `root` is no directory.
pub fn standalone_origin(root: PathBuf, listen: SocketAddr) -> Result<Fleet, Failure> {
    if !root.is_dir() {
        return Err(Failure::new(
            FailureKind::NoInput,
            format!(
                "{} is no directory; name one that has the content",
                root.display()
            ),
        ));
    }
    let node = OriginNode {
        name: "origin".into(),
        listen,
        admin: None,
        root,
        rules: Vec::new(),
    };
    Ok(Fleet {
        origins: vec![node],
        ..standalone(PathBuf::from("."))
    })
}

/// Nothing but defaults; a zone that no public name can be in.
fn standalone(state_dir: PathBuf) -> Fleet {
    use std::hash::{BuildHasher as _, RandomState};
    Fleet {
        // Of its own in every process: requests carry it, and a loop must not be seen where two
        // stand in a row.
        zone: format!("{:016x}.invalid", RandomState::new().hash_one(0)),
        zone_name_servers: Vec::new(),
        hostmaster: "hostmaster@cdn.invalid".into(),
        base: PathBuf::from("."),
        state_dir,
        user: None,
        node_key: Secret(String::new()),
        keys: KeyPolicy::default(),
        report_interval: REPORT_INTERVAL,
        admin_hosts: Vec::new(),
        drain: DrainLimits::default(),
        clock: FleetClock::REAL,
        control: None,
        origins: Vec::new(),
        name_servers: Vec::new(),
        steering: default_steering(),
        clusters: Vec::new(),
        sites: Vec::new(),
        zones: Vec::new(),
        changed_unix_s: 0,
    }
}

const REPORT_INTERVAL: Duration = Duration::from_secs(2);
const FILL_RATE_BITS: u64 = 100_000_000;
const SITE_TTL: Duration = Duration::from_secs(20);
const ZONE_TTL: Duration = Duration::from_secs(300);
const DAY: Duration = Duration::from_secs(86_400);

fn default_steering() -> Steering {
    Steering {
        geo_db: None,
        health: HealthCheck {
            path: "/.nearcast/health".into(),
            interval: Duration::from_millis(500),
            timeout: Duration::from_secs(2),
            timeout_min: Duration::from_millis(250),
            fall: 2,
            rise: 2,
            jitter: 0.1,
        },
        rtt_max_age: Duration::from_secs(600),
        rtt_explore: 0.01,
        rtt_bound: true,
        ramp: Duration::from_secs(30),
    }
}

/// Makes the fleet of a whole file; with mistakes noted the value means nothing.
fn check(root: &Section<'_>, base: &Path, key: KeySource<'_>) -> Fleet {
    let head = root.section("fleet", FLEET);
    if !head.is_present() {
        root.note_missing(
            "fleet",
            "the section [fleet] with zone = \"cdn.example.org\"",
        );
    }
    let zone = head
        .is_present()
        .then(|| {
            head.need_text(
                "zone",
                "zone = \"cdn.example.org\", a zone that this fleet serves",
            )
        })
        .flatten()
        .and_then(|t| zone_name(&t, false))
        .unwrap_or_else(|| "cdn.invalid".into());
    let mut taken = Names::default();
    let control = check_control(root, &mut taken);
    let origins: Vec<OriginNode> = root
        .sections("origin_node", ORIGIN_NODE)
        .iter()
        .map(|s| check_origin_node(s, base, &mut taken))
        .collect();
    let name_servers = check_name_servers(root, &zone, &mut taken);
    let clients = check_clients(&root.section("clients", CLIENTS), ClientLimits::default());
    let clusters = check_clusters(root, clients, &mut taken);
    let node_key = check_node_key(
        &head,
        base,
        key,
        control.is_some() || !name_servers.is_empty(),
    );
    let keys = check_keys(&head, taken);
    let sites = check_sites(root, base, &zone, &clusters, &name_servers, &node_key);
    let zone_name_servers = references(
        &head,
        "name_servers",
        &name_servers,
        |n| &n.name,
        "name server",
    );
    let own = OwnZone {
        zone: &zone,
        name_servers: &zone_name_servers,
        sites: sites.iter().map(|s| s.name.as_str()).collect(),
    };
    let zones = check_zones(root, &head, &own, &name_servers);
    Fleet {
        hostmaster: check_hostmaster(&head, &zone),
        zone,
        zone_name_servers,
        base: base.to_owned(),
        state_dir: head
            .text("state_dir")
            .map_or_else(|| PathBuf::from("/var/lib/nearcast"), |t| path(&t, base)),
        user: head.text("user").map(|t| check_user(&t)),
        node_key,
        keys,
        report_interval: head
            .duration(
                "report_interval",
                Duration::from_millis(200)..=Duration::from_secs(60),
            )
            .unwrap_or(REPORT_INTERVAL),
        admin_hosts: check_own_names(&head, "admin_hosts"),
        drain: check_drain(&head),
        clock: check_clock(root),
        control,
        origins,
        name_servers,
        steering: check_steering(root, base),
        clusters,
        sites,
        zones,
        changed_unix_s: 0,
    }
}

/// Names and listeners that are taken, with where and by whom; and the generations of keys that the
/// nodes with these names have.
#[derive(Default)]
struct Names {
    nodes: HashMap<String, usize>,
    listeners: HashMap<SocketAddr, String>,
    addresses: HashMap<IpAddr, String>,
    generations: BTreeMap<String, u32>,
    cluster_generations: BTreeMap<String, u32>,
}

impl Names {
    /// Notes a second node of that name.
    fn node(&mut self, text: &Text<'_>, section: &Section<'_>) {
        let line = section.mistakes.line_of(text.at);
        if let Some(first) = self.nodes.insert(text.text.to_owned(), line) {
            text.note(
                format!(
                    "{:?} is the name of another node, in line {first}",
                    text.text
                ),
                "give every node a name of its own",
            );
        }
    }

    /// Notes a second listener on one address and port. Addresses that every machine has prove
    /// nothing, unless both nodes are certainly on one machine: such ones carry the mark `local`.
    fn listener(
        &mut self,
        section: &Section<'_>,
        key: &'static str,
        address: SocketAddr,
        is_local: bool,
        owner: &str,
    ) {
        if address.port() == 0
            || address.ip().is_unspecified()
            || (address.ip().is_loopback() && !is_local)
        {
            return;
        }
        let whose = format!("{key} of {owner}");
        if let Some(first) = self.listeners.get(&address) {
            let (problem, mend) = if section.has(key) {
                (
                    format!("{address} is taken by {first}"),
                    "choose another port or address".to_owned(),
                )
            } else {
                (
                    format!("{address}, which is the default, is taken by {first}"),
                    format!("add {key} with another address and port"),
                )
            };
            section.mistakes.note(
                section.at_of(key),
                format!("{}: {problem}", section.path_of(key)),
                mend,
            );
        } else {
            self.listeners.insert(address, whose);
        }
    }
}

/// A required name that is a label; notes mistakes and a second node of the name.
fn node_name(
    section: &Section<'_>,
    example: &str,
    default: Option<&str>,
    taken: &mut Names,
) -> String {
    let text = match default {
        Some(_) => section.text("name"),
        None => section.need_text("name", example),
    };
    let Some(text) = text else {
        let name = default.unwrap_or_default();
        if !name.is_empty() {
            taken
                .nodes
                .entry(name.to_owned())
                .or_insert_with(|| section.mistakes.line_of(section.at));
        }
        return name.to_owned();
    };
    check_label(&text);
    taken.node(&text, section);
    text.text.to_owned()
}

fn check_label(text: &Text<'_>) -> bool {
    let good = names::is_label(text.text);
    if !good {
        text.note(
            format!("{:?} cannot be a name", text.text),
            "use up to 63 lower-case letters, digits and -, such as \"ams-1\"",
        );
    }
    good
}

fn host_name(text: &Text<'_>) -> String {
    let host = names::normal(text.text);
    if let Some(problem) = names::host_problem(&host) {
        text.note(
            format!("{:?} is not a host name: {problem}", text.text),
            "write a name such as \"www.example.org\", without scheme, port and path",
        );
    }
    host
}

fn zone_name(text: &Text<'_>, or_root: bool) -> Option<String> {
    let zone = names::normal(text.text);
    if or_root && text.text == "." {
        return Some(zone);
    }
    match names::host_problem(&zone) {
        None => Some(zone),
        Some(problem) => {
            text.note(
                format!("{:?} is not a zone name: {problem}", text.text),
                "write a domain name such as \"example.org\"",
            );
            None
        }
    }
}

fn path(text: &Text<'_>, base: &Path) -> PathBuf {
    if text.text.is_empty() {
        text.note(
            "the path is empty",
            "write a path, from the fleet file's directory or absolute",
        );
    }
    // As components: `.` is left out.
    base.join(text.text).components().collect()
}

fn url(text: &Text<'_>, schemes: &[&str]) -> String {
    names::base_url(text.text, schemes).unwrap_or_else(|problem| {
        let forms: Vec<String> = schemes
            .iter()
            .map(|s| format!("{s}://host[:port]"))
            .collect();
        text.note(
            format!("{:?} cannot be used: {problem}", text.text),
            format!("write {} and nothing more", forms.join(" or ")),
        );
        String::new()
    })
}

/// A list of references that is no longer than this is looked up name by name.
const SHORT_LIST: usize = 16;

/// Indexes of the things that a list names; all of them without a list.
fn references<T>(
    section: &Section<'_>,
    key: &'static str,
    things: &[T],
    name: impl Fn(&T) -> &String,
    what: &str,
) -> Vec<usize> {
    let Some(texts) = section.texts(key) else {
        return (0..things.len()).collect();
    };
    let names: Vec<&String> = things.iter().map(&name).collect();
    // Most lists are short, and there are many of them.
    let numbers: Option<HashMap<&str, usize>> = (texts.len() > SHORT_LIST).then(|| {
        names
            .iter()
            .enumerate()
            .rev()
            .map(|(number, name)| (name.as_str(), number))
            .collect()
    });
    let number_of = |text: &str| match &numbers {
        Some(numbers) => numbers.get(text).copied(),
        None => names.iter().position(|n| *n == text),
    };
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    if texts.is_empty() {
        section.mistakes.note(
            section.at_of(key),
            format!("{}: the list is empty", section.path_of(key)),
            format!("name at least one {what}, or leave {key} out for all"),
        );
    }
    for text in texts {
        match number_of(text.text) {
            Some(index) if !seen.insert(index) => {
                text.note(format!("{:?} is there twice", text.text), "remove one")
            }
            Some(index) => found.push(index),
            None if names.is_empty() => text.note(
                format!("there is no {what} {:?}; there is none at all", text.text),
                format!("add a [[{}]] of that name", what.replace(' ', "_")),
            ),
            None => {
                let near = nearest(text.text, &names)
                    .map_or_else(String::new, |n| format!("did you mean {n:?}? "));
                let all: Vec<String> = names.iter().map(|n| format!("{n:?}")).collect();
                text.note(
                    format!("there is no {what} {:?}", text.text),
                    format!("{near}there is {}", all.join(", ")),
                );
            }
        }
    }
    found
}

fn check_hostmaster(head: &Section<'_>, zone: &str) -> String {
    let Some(text) = head.text("hostmaster") else {
        return format!("hostmaster@{zone}");
    };
    let good = text.text.split_once('@').is_some_and(|(user, domain)| {
        !user.is_empty()
            && user.bytes().all(|b| b.is_ascii_graphic() && b != b'@')
            && names::host_problem(&names::normal(domain)).is_none()
    });
    if !good {
        text.note(
            format!("{:?} is not a mail address", text.text),
            "write one such as \"hostmaster@example.org\"",
        );
    }
    text.text.to_owned()
}

/// Whether there is such a user is for each machine to know.
fn check_user(text: &Text<'_>) -> String {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= 64
            && !name.starts_with('-')
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let (user, group) = text
        .text
        .split_once(':')
        .map_or((text.text, None), |(user, group)| (user, Some(group)));
    if !is_name(user) || !group.is_none_or(is_name) {
        text.note(
            format!("{:?} is no user", text.text),
            "write a name or number such as \"nearcast\", or one with a group, \"nearcast:www-data\"",
        );
    }
    text.text.to_owned()
}

/// How a secret is made.
const MAKE_SECRET: &str =
    "make one with `nearcast key --new` or `head -c 24 /dev/urandom | base64`";

fn check_node_key(
    head: &Section<'_>,
    base: &Path,
    source: KeySource<'_>,
    is_needed: bool,
) -> Secret {
    if head.item("node_keys").and_then(|item| item.silent_text()) == Some("own")
        && let Some(text) = head.text("node_key")
    {
        // The file goes to every node, and with it what only control and name servers may hold.
        text.note(
            "every node gets the fleet file, and with node_keys = \"own\" none may hold the fleet's key",
            "put it into a file on the machines of control and the name servers, and name that with node_key_file",
        );
    }
    match source {
        KeySource::Given(key) if !key.0.is_empty() => return key.clone(),
        KeySource::InPlaceOfFile(key) if !key.0.is_empty() && !head.has("node_key") => {
            return key.clone();
        }
        KeySource::Unneeded if !head.has("node_key") => return Secret(String::new()),
        _ => {}
    }
    if is_needed && head.is_present() && !head.has("node_key") && !head.has("node_key_file") {
        head.note_missing(
            "node_key",
            &format!(
                "node_key or node_key_file, the secret that nodes show one another; {MAKE_SECRET}"
            ),
        );
    }
    let key = check_secret(head, base, ["node_key", "node_key_file"], "key")
        .unwrap_or_else(|| Secret(String::new()));
    if node_key::is_own(&key) {
        match head.text("node_key") {
            Some(text) => text.note(
                "this is one node's own key, and the fleet file is the same for all",
                "put it into a file of that node (node_key_file)",
            ),
            None if OwnKey::parse(&key.0).is_none() => {
                if let Some(text) = head.text("node_key_file") {
                    text.note(
                        "the file begins as a node's own key does, and is none",
                        "write there what `nearcast key NODE` prints, one line",
                    );
                }
            }
            None => {}
        }
    }
    key
}

/// Reads the node key of this machine from a file of its own: the fleet's key, or a node's own one.
///
/// # Errors
/// [`FailureKind::NoInput`] when it cannot be read; [`FailureKind::Usage`] when it holds no key, or
/// one that anybody can guess.
pub fn read_key(path: &Path) -> Result<Secret, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::new(
            FailureKind::NoInput,
            format!(
                "cannot read the key file {}: {error}; `nearcast key` makes one",
                path.display()
            ),
        )
    })?;
    let key = Secret(text.trim_end_matches(['\r', '\n']).to_owned());
    let problem = match secret_problem(&key.0, "key") {
        Some((problem, mend)) => Some(format!("{problem}; {mend}")),
        None if node_key::is_own(&key) && OwnKey::parse(&key.0).is_none() => Some(
            "this is no node's own key; write there what `nearcast key NODE` prints, one line"
                .to_owned(),
        ),
        None => None,
    };
    match problem {
        Some(problem) => Err(Failure::new(
            FailureKind::Usage,
            format!("{}: {problem}", path.display()),
        )),
        None => Ok(key),
    }
}

/// What is wrong with a secret, and what mends it.
fn secret_problem(secret: &str, what: &str) -> Option<(String, String)> {
    if secret.chars().count() < NODE_KEY_CHARS_MIN {
        return Some((
            format!("the {what} has fewer than {NODE_KEY_CHARS_MIN} characters"),
            MAKE_SECRET.to_owned(),
        ));
    }
    if secret.trim() != secret || !secret.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        let mend =
            format!("use visible ASCII characters, none of them blank at its ends; {MAKE_SECRET}");
        return Some((
            format!("the {what} has characters that an HTTP field cannot carry"),
            mend,
        ));
    }
    match node_key::strength(secret) {
        Strength::Worthless(why) => Some((format!("the {what} {why}"), MAKE_SECRET.to_owned())),
        _ => None,
    }
}

/// Which keys nodes may show.
fn check_keys(head: &Section<'_>, taken: Names) -> KeyPolicy {
    const FORMS: &str = "write \"own\", which takes each node's own key alone, or \"shared\", which takes the fleet's key too";
    let Names {
        generations,
        cluster_generations,
        ..
    } = taken;
    let mut keys = KeyPolicy {
        own_only: false,
        generations,
        cluster_generations,
    };
    match head.text("node_keys") {
        Some(text) if text.text == "own" => keys.own_only = true,
        Some(text) if text.text != "shared" => {
            text.note(format!("{:?} is no way to show keys", text.text), FORMS)
        }
        _ => {}
    }
    keys
}

/// Notes the generation of a key where it is not the first.
fn key_generation(section: &Section<'_>, name: &str, generations: &mut BTreeMap<String, u32>) {
    if let Some(generation) = section
        .integer("key_generation", 1..=KEY_GENERATION_MAX)
        .filter(|generation| *generation != 1)
    {
        generations.insert(name.to_owned(), generation as u32);
    }
}

/// A secret in one of two settings: itself, or the name of the file that has it alone; `None` when
/// neither is there.
fn check_secret(
    section: &Section<'_>,
    base: &Path,
    [plain, in_file]: [&'static str; 2],
    what: &str,
) -> Option<Secret> {
    let (secret, text) = match (section.text(plain), section.text(in_file)) {
        (Some(_), Some(file)) => {
            file.note(
                format!("the {what} is in {plain} already"),
                format!("keep one of {plain} and {in_file}"),
            );
            return None;
        }
        (Some(text), None) => (text.text.to_owned(), text),
        (None, Some(text)) => match std::fs::read_to_string(path(&text, base)) {
            Ok(content) => (content.trim_end_matches(['\r', '\n']).to_owned(), text),
            Err(error) => {
                let problem = format!("cannot read {}: {error}", base.join(text.text).display());
                text.note(
                    problem,
                    format!("put the {what} there, alone; {MAKE_SECRET}"),
                );
                return None;
            }
        },
        (None, None) => return None,
    };
    if let Some((problem, mend)) = secret_problem(&secret, what) {
        text.note(problem, mend);
    }
    Some(Secret(secret))
}

fn check_clock(root: &Section<'_>) -> FleetClock {
    let section = root.section("clock", CLOCK);
    let speed = section.float("speed", 0.001..=1_000_000.0).unwrap_or(1.0);
    let real = instant(&section, "anchor_real");
    let fleet = instant(&section, "anchor_fleet");
    for (key, other, is_missing) in [
        (
            "anchor_real",
            "anchor_fleet",
            !section.has("anchor_real") && (section.has("anchor_fleet") || speed != 1.0),
        ),
        (
            "anchor_fleet",
            "anchor_real",
            !section.has("anchor_fleet") && (section.has("anchor_real") || speed != 1.0),
        ),
    ] {
        if is_missing {
            section.note_missing(key, &format!("{key} and {other}, an instant each such as 2026-01-01T00:00:00Z: the clock shows the second when the real time is the first"));
        }
    }
    match (real, fleet) {
        (Some(anchor_real), Some(anchor_fleet)) => FleetClock {
            anchor_real,
            anchor_fleet,
            speed,
        },
        _ => FleetClock {
            speed,
            ..FleetClock::REAL
        },
    }
}

/// Seconds after the Unix epoch: a number, or a date and time with its offset.
fn instant(section: &Section<'_>, key: &'static str) -> Option<f64> {
    let item = section.item(key)?;
    let found = item.number().or_else(|| {
        let date: jiff::Timestamp = item.date()?.parse().ok()?;
        Some(date.as_nanosecond() as f64 / 1e9)
    });
    let good = found.filter(|seconds| (0.0..=32_503_680_000.0).contains(seconds));
    if good.is_none() {
        item.note(
            "this is no instant",
            "write seconds after 1970 or a date with time and offset, such as 2026-01-01T00:00:00Z",
        );
    }
    good
}

/// Names by which a listener may be asked, see [`crate::own_names`].
fn check_own_names(section: &Section<'_>, key: &'static str) -> Vec<String> {
    let check = |text: Text<'_>| match text.text {
        "*" => "*".to_owned(),
        written => {
            let name = names::normal(written.strip_prefix("*.").unwrap_or(written));
            if let Some(problem) = names::host_problem(&name) {
                text.note(
                    format!("{written:?} is no host name: {problem}"),
                    "write a name without a port, *.NAME for all below it, or *",
                );
            }
            if written.starts_with("*.") {
                format!("*.{name}")
            } else {
                name
            }
        }
    };
    section
        .texts(key)
        .unwrap_or_default()
        .into_iter()
        .map(check)
        .collect()
}

fn check_control(root: &Section<'_>, taken: &mut Names) -> Option<Control> {
    let section = root.section("control", CONTROL);
    let push = section.section("push", PUSH);
    if !section.is_present() {
        return None;
    }
    let name = node_name(&section, "", Some("control"), taken);
    let listen = section
        .socket("listen")
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 7700)));
    let admin = section
        .socket("admin")
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9170)));
    let is_local = listen.ip().is_loopback();
    taken.listener(&section, "listen", listen, is_local, &name);
    taken.listener(&section, "admin", admin, is_local, &name);
    let policy = PushPolicy {
        half_life: push
            .duration("half_life", Duration::from_secs(60)..=365 * DAY)
            .unwrap_or(DAY),
        expected_requests_min: push
            .float("expected_requests_min", 0.0..=1e12)
            .unwrap_or(2.0),
    };
    Some(Control {
        name,
        url: reachable_url(&section, "url", listen, "listen"),
        hosts: check_own_names(&section, "hosts"),
        listen,
        admin,
        push: push.boolean("enabled", true).then_some(policy),
    })
}

/// A URL that other nodes use; by default the listener's, if that has an address.
fn reachable_url(
    section: &Section<'_>,
    key: &'static str,
    listen: SocketAddr,
    listen_key: &str,
) -> String {
    if let Some(text) = section.text(key) {
        return url(&text, &["http"]);
    }
    if listen.ip().is_unspecified() && !section.has(key) {
        let problem = format!(
            "{}: this setting is required, as {listen_key} is {listen}, every address",
            section.path_of(key)
        );
        section.mistakes.note(
            section.at,
            problem,
            format!(
                "add {key} = \"http://host:{}\", by which other nodes reach it",
                listen.port()
            ),
        );
    }
    format!("http://{listen}")
}

fn check_origin_node(section: &Section<'_>, base: &Path, taken: &mut Names) -> OriginNode {
    let name = node_name(section, "name = \"origin\"", None, taken);
    let listen = need_socket(section, "listen", "listen = \"127.0.0.1:8000\"");
    let admin = section
        .socket("admin")
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9180)));
    let is_local = listen.ip().is_loopback();
    taken.listener(section, "listen", listen, is_local, &name);
    taken.listener(section, "admin", admin, is_local, &name);
    let root = section
        .need_text("root", "root = \"content\", the directory that it serves")
        .map(|t| path(&t, base));
    key_generation(section, &name, &mut taken.generations);
    let rules = section
        .sections("rule", RULE)
        .iter()
        .map(check_rule)
        .collect();
    OriginNode {
        name,
        listen,
        admin: Some(admin),
        root: root.unwrap_or_default(),
        rules,
    }
}

fn check_rule(section: &Section<'_>) -> OriginRule {
    let pattern = section.need_text("pattern", "pattern = \"img/**\", a glob below the root");
    let value = section.need_text("cache_control", "cache_control = \"max-age=3600\"");
    if let Some(text) = pattern.as_ref().filter(|t| t.text.is_empty()) {
        text.note("the pattern is empty", "write a glob such as \"img/**\"");
    }
    let is_field =
        |text: &str| !text.trim().is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b));
    if let Some(text) = value.as_ref().filter(|t| !is_field(t.text)) {
        text.note(
            "this is no field value",
            "write directives such as \"max-age=3600\"",
        );
    }
    let own = |t: Option<Text<'_>>| t.map_or_else(String::new, |t| t.text.to_owned());
    OriginRule {
        pattern: own(pattern),
        cache_control: own(value),
    }
}

fn need_socket(section: &Section<'_>, key: &'static str, example: &str) -> SocketAddr {
    if !section.has(key) {
        section.note_missing(key, example);
    }
    section
        .socket(key)
        .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
}

fn check_name_servers(root: &Section<'_>, zone: &str, taken: &mut Names) -> Vec<NameServer> {
    let mut hosts: HashMap<String, String> = HashMap::new();
    let check_one = |section: &Section<'_>| {
        let name = node_name(section, "name = \"ns1\"", None, taken);
        let host = section
            .text("host")
            .map_or_else(|| format!("{name}.{zone}"), |t| host_name(&t));
        if let Some(first) = hosts.insert(host.clone(), name.clone()) {
            let problem = format!(
                "{}: {host} is the host of {first} too",
                section.path_of("host")
            );
            section.mistakes.note(
                section.at_of("host"),
                problem,
                "give every name server a host name of its own",
            );
        }
        if !section.has("listen") {
            section.note_missing("listen", "listen = \"192.0.2.53:53\"");
        }
        let listen = section.sockets("listen");
        let is_local = listen.first().is_some_and(|a| a.ip().is_loopback());
        let admin = section
            .socket("admin")
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9153)));
        for address in &listen {
            taken.listener(section, "listen", *address, is_local, &name);
        }
        taken.listener(section, "admin", admin, is_local, &name);
        let addresses = if section.has("addresses") {
            section
                .addresses("addresses")
                .into_iter()
                .map(|(a, _)| a)
                .collect()
        } else {
            unique(listen.iter().map(SocketAddr::ip))
        };
        if !section.has("addresses") && addresses.iter().any(IpAddr::is_unspecified) {
            let problem = format!(
                "{}: this setting is required, as listen has every address",
                section.path_of("addresses")
            );
            section.mistakes.note(
                section.at,
                problem,
                "add addresses = [\"192.0.2.53\"], those that resolvers reach it by",
            );
        }
        let admin_url = reachable_url(section, "admin_url", admin, "admin");
        key_generation(section, &name, &mut taken.generations);
        NameServer {
            name,
            host,
            listen,
            addresses,
            admin,
            admin_url,
        }
    };
    root.sections("name_server", NAME_SERVER)
        .iter()
        .map(check_one)
        .collect()
}

fn unique<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    values.for_each(|v| {
        if !seen.contains(&v) {
            seen.push(v)
        }
    });
    seen
}

fn check_steering(root: &Section<'_>, base: &Path) -> Steering {
    let section = root.section("steering", STEERING);
    let health = section.section("health", HEALTH);
    let defaults = default_steering();
    let check_path = |text: Text<'_>| {
        if !text.text.starts_with('/') || !text.text.bytes().all(|b| b.is_ascii_graphic()) {
            text.note(
                format!("{:?} is not a path", text.text),
                "write one that begins with / and has no blanks",
            );
        }
        text.text.to_owned()
    };
    Steering {
        geo_db: section.text("geo_db").map(|t| path(&t, base)),
        rtt_max_age: section
            .duration("rtt_max_age", Duration::from_secs(1)..=7 * DAY)
            .unwrap_or(defaults.rtt_max_age),
        rtt_explore: section
            .percent("rtt_explore")
            .unwrap_or(defaults.rtt_explore),
        ramp: section
            .duration("ramp", Duration::ZERO..=Duration::from_secs(3_600))
            .unwrap_or(defaults.ramp),
        rtt_bound: section.boolean("rtt_bound", defaults.rtt_bound),
        health: HealthCheck {
            path: health.text("path").map_or(defaults.health.path, check_path),
            interval: health
                .duration(
                    "interval",
                    Duration::from_millis(50)..=Duration::from_secs(300),
                )
                .unwrap_or(defaults.health.interval),
            timeout: health
                .duration(
                    "timeout",
                    Duration::from_millis(10)..=Duration::from_secs(60),
                )
                .unwrap_or(defaults.health.timeout),
            timeout_min: health
                .duration(
                    "timeout_min",
                    Duration::from_millis(10)..=Duration::from_secs(60),
                )
                .unwrap_or(defaults.health.timeout_min),
            fall: health
                .integer("fall", 1..=10_000)
                .map_or(defaults.health.fall, |n| n as u32),
            rise: health
                .integer("rise", 1..=10_000)
                .map_or(defaults.health.rise, |n| n as u32),
            jitter: health.percent("jitter").unwrap_or(defaults.health.jitter),
        },
    }
}

fn check_clusters(root: &Section<'_>, clients: ClientLimits, taken: &mut Names) -> Vec<Cluster> {
    let sections = root.sections("cluster", CLUSTER);
    if !root.has("cluster") {
        root.note_missing("cluster", "a section [[cluster]] with name and place, and a [[cluster.node]] with name and address below it");
    }
    let mut lines: HashMap<String, usize> = HashMap::new();
    let mut clusters = Vec::new();
    for section in &sections {
        clusters.push(check_cluster(section, clients, &mut lines, taken));
    }
    clusters
}

fn check_cluster(
    section: &Section<'_>,
    clients: ClientLimits,
    lines: &mut HashMap<String, usize>,
    taken: &mut Names,
) -> Cluster {
    let name = section.need_text("name", "name = \"ams\"");
    if let Some(text) = &name {
        check_label(text);
        if let Some(first) = lines.insert(text.text.to_owned(), section.mistakes.line_of(text.at)) {
            text.note(
                format!(
                    "{:?} is the name of another cluster, in line {first}",
                    text.text
                ),
                "give every cluster a name of its own",
            );
        }
    }
    let name = name.map_or_else(String::new, |t| t.text.to_owned());
    if !section.has("node") {
        section.note_missing(
            "node",
            "a section [[cluster.node]] with name and address below this one",
        );
    }
    let nodes: Vec<Node> = section
        .sections("node", NODE)
        .iter()
        .map(|s| check_node(s, clients, taken))
        .collect();
    key_generation(section, &name, &mut taken.cluster_generations);
    let smallest_disk = nodes.iter().map(|n| n.disk).min().unwrap_or_default();
    Cluster {
        label: section
            .text("label")
            .map_or_else(|| name.clone(), |t| t.text.to_owned()),
        name,
        place: check_place(section),
        time_zone: check_time_zone(section),
        off_peak: section.text("off_peak").map_or(
            DailyWindow {
                start_minute: 120,
                end_minute: 360,
            },
            |t| check_window(&t),
        ),
        fill_rate_bits: section.rate("fill_rate").unwrap_or(FILL_RATE_BITS),
        push_share: check_push_share(section, smallest_disk),
        weight: section
            .integer("weight", 0..=1_000_000)
            .map_or(1, |n| n as u32),
        nodes,
    }
}

fn check_place(section: &Section<'_>) -> Place {
    if !section.has("place") {
        section.note_missing(
            "place",
            "place = { latitude = 52.37, longitude = 4.90 }, where the cluster is",
        );
    }
    let place = section.section("place", PLACE);
    for (key, example) in [
        ("latitude", "latitude = 52.37, degrees north"),
        ("longitude", "longitude = 4.90, degrees east"),
    ] {
        if place.is_present() && !place.has(key) {
            place.note_missing(key, example);
        }
    }
    Place {
        latitude: place.float("latitude", -90.0..=90.0).unwrap_or(0.0),
        longitude: place.float("longitude", -180.0..=180.0).unwrap_or(0.0),
    }
}

fn check_time_zone(section: &Section<'_>) -> String {
    let Some(text) = section.text("time_zone") else {
        return "UTC".into();
    };
    if jiff::tz::db().get(text.text).is_err() {
        let names: Vec<String> = jiff::tz::db().available().map(|n| n.to_string()).collect();
        let near = nearest(text.text, &names)
            .map_or_else(String::new, |n| format!("did you mean {n:?}? "));
        text.note(
            format!("there is no time zone {:?}", text.text),
            format!("{near}write a name of the IANA database, such as \"Europe/Amsterdam\""),
        );
    }
    text.text.to_owned()
}

fn check_window(text: &Text<'_>) -> DailyWindow {
    let found = text
        .text
        .split_once('-')
        .and_then(|(start, end)| Some((minute_of_day(start)?, minute_of_day(end)?)));
    match found {
        Some((0, 1440)) => return DailyWindow { start_minute: 0, end_minute: 1440 },
        Some((start, end)) if start % 1440 != end % 1440 => {
            return DailyWindow { start_minute: start % 1440, end_minute: end % 1440 };
        }
        Some(_) => text.note(
            format!("{:?} starts when it ends", text.text),
            "write two different times, such as \"02:00-06:00\", or \"00:00-24:00\" for the whole day",
        ),
        None => text.note(
            format!("{:?} is no span of time of day", text.text),
            "write local times as \"HH:MM-HH:MM\", such as \"02:00-06:00\" or \"22:30-05:00\"",
        ),
    }
    DailyWindow {
        start_minute: 0,
        end_minute: 1,
    }
}

/// Minutes after midnight; `24:00` is the next one.
fn minute_of_day(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let two_digits = |s: &str| {
        (s.len() == 2 && s.bytes().all(|b| b.is_ascii_digit()))
            .then(|| s.parse::<u16>().ok())
            .flatten()
    };
    match (two_digits(hour)?, two_digits(minute)?) {
        (24, 0) => Some(1440),
        (hour, minute) if hour < 24 && minute < 60 => Some(hour * 60 + minute),
        _ => None,
    }
}

/// A percentage of the smallest node disk, or a size.
fn check_push_share(section: &Section<'_>, smallest_disk: Bytes) -> Bytes {
    let half = Bytes(smallest_disk.0 / 2);
    let Some(item) = section.item("push_share") else {
        return half;
    };
    if item.is_bare_zero() {
        return Bytes(0);
    }
    let Some(text) =
        item.as_text("a percentage of the nodes' disks or a size, such as \"50%\" or \"1GiB\"")
    else {
        return half;
    };
    if text.text.trim_end().ends_with('%') {
        let share = text.quantity(units::percent).unwrap_or(0.5);
        if share > 1.0 {
            text.note(
                format!("{} is out of range", text.text),
                "write one from 0% to 100%",
            );
        }
        return Bytes((smallest_disk.0 as f64 * share.min(1.0)) as u64);
    }
    let size = text.quantity(units::bytes).unwrap_or(half);
    if size > smallest_disk {
        text.note(
            format!(
                "{} is more than the smallest disk of this cluster's nodes, {smallest_disk}",
                text.text
            ),
            "write less, or give the nodes more disk",
        );
    }
    size
}

fn check_node(section: &Section<'_>, clients: ClientLimits, taken: &mut Names) -> Node {
    let name = node_name(section, "name = \"ams-1\"", None, taken);
    let addresses = check_node_addresses(section, &name, taken);
    let listen = if section.has("listen") {
        section.sockets("listen")
    } else {
        addresses.iter().map(|a| SocketAddr::new(*a, 80)).collect()
    };
    let first_listen = listen
        .first()
        .copied()
        .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 80)));
    let reached_by = if first_listen.ip().is_unspecified() {
        addresses.first().copied()
    } else {
        None
    };
    let service = section.socket("service").unwrap_or_else(|| {
        SocketAddr::new(reached_by.unwrap_or(first_listen.ip()), first_listen.port())
    });
    if section.has("service") && service.ip().is_unspecified() {
        section.mistakes.note(
            section.at_of("service"),
            format!("{}: {service} reaches no node", section.path_of("service")),
            "write the address and port by which name servers and other nodes reach it",
        );
    }
    let admin = section
        .socket("admin")
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9100)));
    let is_local = first_listen.ip().is_loopback();
    for address in &listen {
        taken.listener(section, "listen", *address, true, &name);
    }
    taken.listener(section, "admin", admin, is_local, &name);
    key_generation(section, &name, &mut taken.generations);
    Node {
        name,
        addresses,
        listen,
        service,
        admin: Some(admin),
        memory: section
            .bytes("memory", Bytes(1 << 20)..=Bytes(1 << 44))
            .unwrap_or(Bytes(64 << 20)),
        disk: section
            .bytes("disk", Bytes(0)..=Bytes(1 << 50))
            .unwrap_or(Bytes(1 << 30)),
        threads: section.integer("threads", 1..=1024).map(|n| n as usize),
        capacity_bits: section.rate("capacity"),
        clients: check_clients(&section.section("clients", CLIENTS), clients),
    }
}

/// How long nodes go on when they are told to end.
fn check_drain(head: &Section<'_>) -> DrainLimits {
    let defaults = DrainLimits::default();
    DrainLimits {
        lame_duck_max: head
            .duration("drain_max", Duration::ZERO..=DAY)
            .unwrap_or(defaults.lame_duck_max),
        dns_withdrawal: head
            .duration("dns_withdrawal", Duration::ZERO..=Duration::from_secs(600))
            .unwrap_or(defaults.dns_withdrawal),
        finish_max: head
            .duration("finish_max", Duration::ZERO..=DAY)
            .unwrap_or(defaults.finish_max),
    }
}

/// Limits of clients; settings that the section does not have are as in `otherwise`.
fn check_clients(section: &Section<'_>, otherwise: ClientLimits) -> ClientLimits {
    let second = Duration::from_secs(1);
    let head_max = section.bytes("head_max", Bytes(4 << 10)..=Bytes(256 << 10));
    ClientLimits {
        head_bytes_max: head_max.map_or(otherwise.head_bytes_max, |bytes| bytes.0 as usize),
        fields_max: section
            .integer("fields_max", 16..=1024)
            .map_or(otherwise.fields_max, |n| n as usize),
        head_timeout: section
            .duration("head_timeout", second..=300 * second)
            .unwrap_or(otherwise.head_timeout),
        idle_timeout: section
            .duration("idle_timeout", second..=3600 * second)
            .unwrap_or(otherwise.idle_timeout),
        write_timeout: section
            .duration("write_timeout", second..=600 * second)
            .unwrap_or(otherwise.write_timeout),
        connections_max: section
            .integer("connections_max", 16..=1_000_000)
            .map(|n| n as usize)
            .or(otherwise.connections_max),
    }
}

fn check_node_addresses(section: &Section<'_>, name: &str, taken: &mut Names) -> Vec<IpAddr> {
    let key = match (section.has("address"), section.has("addresses")) {
        (true, true) => {
            let problem = format!("{}: address is set as well", section.path_of("addresses"));
            section.mistakes.note(
                section.at_of("addresses"),
                problem,
                "keep one of address and addresses",
            );
            "addresses"
        }
        (false, false) => {
            section.note_missing(
                "address",
                "address = \"192.0.2.1\", which clients are given",
            );
            return Vec::new();
        }
        (true, false) => "address",
        (false, true) => "addresses",
    };
    let mut addresses = Vec::new();
    for (address, at) in section.addresses(key) {
        let note = |problem: String, mend: &str| {
            section
                .mistakes
                .note(at, format!("{}: {problem}", section.path_of(key)), mend)
        };
        if address.is_unspecified() || address.is_multicast() {
            note(
                format!("{address} reaches no node"),
                "write the address that clients are given",
            );
        }
        match taken.addresses.insert(address, name.to_owned()) {
            Some(first) => note(
                format!("{address} is an address of {first} already"),
                "give every node an address of its own",
            ),
            None => addresses.push(address),
        }
    }
    addresses
}

const POLICIES: [(&str, SelectionPolicy); 4] = [
    ("geo", SelectionPolicy::Geo),
    ("rtt", SelectionPolicy::Rtt),
    ("weighted", SelectionPolicy::Weighted),
    ("round-robin", SelectionPolicy::RoundRobin),
];

fn check_sites(
    root: &Section<'_>,
    base: &Path,
    zone: &str,
    clusters: &[Cluster],
    name_servers: &[NameServer],
    node_key: &Secret,
) -> Vec<Site> {
    let mut lines: HashMap<String, usize> = HashMap::new();
    let mut hosts: HashMap<String, String> = HashMap::new();
    let servers: HashMap<&str, &NameServer> = name_servers
        .iter()
        .rev()
        .map(|n| (n.host.as_str(), n))
        .collect();
    let mut sites = Vec::new();
    let sections = root.sections("site", SITE);
    // A site's own steered name may be among its hosts; another site's may not.
    for text in sections
        .iter()
        .filter_map(|section| section.item("name")?.silent_text())
    {
        hosts
            .entry(format!("{text}.{zone}"))
            .or_insert_with(|| text.to_owned());
    }
    for section in &sections {
        let name = section.need_text("name", "name = \"www\"");
        if let Some(text) = &name {
            check_label(text);
            let line = section.mistakes.line_of(text.at);
            if let Some(first) = lines.insert(text.text.to_owned(), line) {
                text.note(
                    format!(
                        "{:?} is the name of another site, in line {first}",
                        text.text
                    ),
                    "give every site a name of its own",
                );
            }
            let steered = format!("{}.{zone}", text.text);
            if let Some(server) = servers.get(steered.as_str()) {
                text.note(
                    format!("{steered} is the host of the name server {}", server.name),
                    "give the site another name",
                );
            }
        }
        let name = name.map_or_else(String::new, |t| t.text.to_owned());
        let origin = section
            .need_text("origin", "origin = \"http://origin.example.org\"")
            .map_or_else(String::new, |t| url(&t, &["http", "https"]));
        sites.push(Site {
            hosts: check_hosts(section, &name, &mut hosts),
            name,
            origin_host: section.text("origin_host").map(|t| check_origin_host(&t)),
            policy: section
                .text("steering")
                .map_or(SelectionPolicy::Geo, |t| check_policy(&t)),
            ttl: section
                .duration("ttl", Duration::from_secs(1)..=DAY)
                .unwrap_or(SITE_TTL),
            clusters: references(section, "clusters", clusters, |c| &c.name, "cluster"),
            cache: check_cache(&section.section("cache", CACHE)),
            origin_policy: OriginPolicy {
                limits: check_limits(&section.section("limits", LIMITS)),
                tls: check_origin_tls(section, base, origin.starts_with("http://")),
            },
            purge: check_purge(section, base, node_key),
            origin,
        });
    }
    sites
}

fn check_hosts(
    section: &Section<'_>,
    site: &str,
    taken: &mut HashMap<String, String>,
) -> Vec<String> {
    let mut hosts = Vec::new();
    let mut seen = HashSet::new();
    for text in section.texts("hosts").unwrap_or_default() {
        let host = match text.text {
            "*" => "*".to_owned(),
            written if written.contains('*') => {
                text.note(
                    format!("{written:?} is no host name"),
                    "name the hosts one by one, or write \"*\" alone for any host",
                );
                continue;
            }
            _ => host_name(&text),
        };
        if !seen.insert(host.clone()) {
            text.note(format!("{host} is there twice"), "remove one");
            continue;
        }
        if let Some(first) = taken
            .insert(host.clone(), site.to_owned())
            .filter(|first| first != site)
        {
            text.note(
                format!("{host} is a host of the site {first} already"),
                "a host belongs to one site; remove it from one of them",
            );
        }
        hosts.push(host);
    }
    hosts
}

fn check_origin_host(text: &Text<'_>) -> String {
    names::host_and_port(text.text).unwrap_or_else(|problem| {
        text.note(
            format!("{:?} is no host: {problem}", text.text),
            "write host or host:port, such as \"www.example.org\"",
        );
        String::new()
    })
}

/// The files are on the edges: whether they are there is not looked at.
fn check_origin_tls(section: &Section<'_>, base: &Path, is_plain: bool) -> OriginTls {
    let file = |key: &'static str| {
        let text = section.text(key)?;
        if is_plain {
            text.note(
                "the origin is reached without TLS",
                format!("write origin = \"https://...\", or leave {key} out"),
            );
        }
        Some(path(&text, base))
    };
    let (ca, cert, key) = (file("origin_ca"), file("origin_cert"), file("origin_key"));
    for (there, missing, example) in [
        (
            "origin_cert",
            "origin_key",
            "origin_key = \"edge.key\", its key",
        ),
        (
            "origin_key",
            "origin_cert",
            "origin_cert = \"edge.pem\", its certificate",
        ),
    ] {
        if section.has(there) && !section.has(missing) {
            section.note_missing(missing, example);
        }
    }
    OriginTls {
        ca,
        identity: cert.zip(key),
    }
}

fn check_policy(text: &Text<'_>) -> SelectionPolicy {
    match POLICIES.iter().find(|(name, _)| *name == text.text) {
        Some((_, policy)) => *policy,
        None => {
            let known = POLICIES.map(|(name, _)| name);
            let near = nearest(text.text, &known)
                .map_or_else(String::new, |n| format!("did you mean {n:?}? "));
            text.note(
                format!("there is no steering {:?}", text.text),
                format!(
                    "{near}write one of {}",
                    known.map(|n| format!("{n:?}")).join(", ")
                ),
            );
            SelectionPolicy::Geo
        }
    }
}

fn check_cache(section: &Section<'_>) -> CachePolicy {
    let defaults = CachePolicy::default();
    let year = 365 * DAY;
    CachePolicy {
        default_ttl: section.duration("default_ttl", Duration::ZERO..=year),
        heuristic: section.boolean("heuristic", defaults.heuristic),
        stale_while_revalidate: section
            .duration("stale_while_revalidate", Duration::ZERO..=year)
            .unwrap_or(defaults.stale_while_revalidate),
        stale_if_error: section
            .duration("stale_if_error", Duration::ZERO..=year)
            .unwrap_or(defaults.stale_if_error),
        obey_client: section.boolean("obey_client", defaults.obey_client),
        body_bytes_max: section
            .bytes("body_max", Bytes(1 << 10)..=Bytes(1 << 44))
            .unwrap_or(defaults.body_bytes_max),
        forward_fields: check_fields(section, "forward_fields"),
        key_fields: check_fields(section, "key_fields"),
        store_set_cookie: section.boolean("store_set_cookie", defaults.store_set_cookie),
        serve_unsynced: section.boolean("serve_unsynced", defaults.serve_unsynced),
        finish_rest: section
            .bytes("finish_rest", Bytes(0)..=Bytes(1 << 44))
            .unwrap_or(defaults.finish_rest),
        finish_share: section
            .percent("finish_share")
            .unwrap_or(defaults.finish_share),
    }
}

/// Names of request fields, in lower case, each once.
fn check_fields(section: &Section<'_>, key: &'static str) -> Vec<String> {
    let mut names = Vec::new();
    let texts = section.texts(key).unwrap_or_default();
    if let Some(text) = texts.get(FIELDS_MAX) {
        text.note(
            format!("there are more than {FIELDS_MAX} fields"),
            "remove some: each is looked at for every request that is not a hit",
        );
    }
    for text in texts.into_iter().take(FIELDS_MAX) {
        let name = text.text.to_ascii_lowercase();
        if let Err((problem, mend)) = names::request_field(&name) {
            text.note(problem, mend);
        } else if names.contains(&name) {
            text.note(format!("{name} is there twice"), "remove one");
        } else {
            names.push(name);
        }
    }
    names
}

fn check_limits(section: &Section<'_>) -> OriginLimits {
    let defaults = OriginLimits::default();
    let pause = Duration::from_secs(1)..=DAY;
    OriginLimits {
        connect: section
            .duration(
                "connect",
                Duration::from_millis(10)..=Duration::from_secs(300),
            )
            .unwrap_or(defaults.connect),
        first_byte: section
            .duration("first_byte", Duration::from_millis(100)..=DAY)
            .unwrap_or(defaults.first_byte),
        between_bytes: section
            .duration("between_bytes", pause.clone())
            .unwrap_or(defaults.between_bytes),
        request_pause: section
            .duration("request_pause", pause)
            .unwrap_or(defaults.request_pause),
        request_bytes_max: match section
            .item("request_body")
            .and_then(|item| item.silent_text())
        {
            Some(UNLIMITED) => None,
            _ => section
                .bytes("request_body", Bytes(0)..=Bytes(1 << 50))
                .or(defaults.request_bytes_max),
        },
        head_bytes_max: section
            .bytes("head", Bytes(4 << 10)..=Bytes(1 << 20))
            .unwrap_or(defaults.head_bytes_max),
        fields_max: section
            .integer("fields", 16..=10_000)
            .map_or(defaults.fields_max, |n| n as usize),
        connections_max: section
            .integer("connections", 1..=65_536)
            .map_or(defaults.connections_max, |n| n as usize),
        waiting_max: section
            .integer("waiting", 0..=65_536)
            .map_or(defaults.waiting_max, |n| n as usize),
        connection_wait: section
            .duration("connection_wait", Duration::ZERO..=DAY)
            .unwrap_or(defaults.connection_wait),
        upgrades_max: section
            .integer("upgrades", 0..=65_536)
            .map_or(defaults.upgrades_max, |n| n as usize),
        upgrade_idle: section
            .duration("upgrade_idle", Duration::from_secs(1)..=DAY)
            .unwrap_or(defaults.upgrade_idle),
    }
}

/// How a size that has no limit is written.
const UNLIMITED: &str = "unlimited";

fn check_purge(section: &Section<'_>, base: &Path, node_key: &Secret) -> PurgePolicy {
    const KEYS: [&str; 2] = ["purge_token", "purge_token_file"];
    let from = section
        .texts("purge_from")
        .unwrap_or_default()
        .iter()
        .filter_map(check_prefix)
        .collect();
    let token = check_secret(section, base, KEYS, "token");
    if token.as_ref().is_some_and(|token| token == node_key)
        && let Some(text) = KEYS.iter().find_map(|key| section.text(key))
    {
        text.note(
            "the token is the node key, which opens every site and node",
            format!("make another one; {MAKE_SECRET}"),
        );
    }
    PurgePolicy { from, token }
}

/// Addresses: a prefix, or one alone.
fn check_prefix(text: &Text<'_>) -> Option<IpNet> {
    const FORMS: &str = "write one such as \"192.0.2.7\", \"10.0.0.0/8\" or \"2001:db8::/32\"";
    let found: Option<IpNet> = text
        .text
        .parse()
        .ok()
        .or_else(|| text.text.parse::<IpAddr>().ok().map(IpNet::from));
    match found {
        None => text.note(
            format!("{:?} is no address or prefix of addresses", text.text),
            FORMS,
        ),
        Some(prefix) if prefix.prefix_len() == 0 => {
            text.note(
                format!("{:?} is every address", text.text),
                "name those that may purge, or set a purge_token",
            );
        }
        Some(_) => {}
    }
    found.map(|prefix| prefix.trunc())
}

/// What is known of the CDN's own zone before the zones are checked.
struct OwnZone<'f> {
    zone: &'f str,
    name_servers: &'f [usize],
    /// The sites' names.
    sites: HashSet<&'f str>,
}

impl<'f> OwnZone<'f> {
    /// The site whose steered name this is.
    fn site_of(&self, owner: &str) -> Option<&'f str> {
        let name = owner.strip_suffix(self.zone)?.strip_suffix('.')?;
        self.sites.get(name).copied()
    }
}

fn check_zones(
    root: &Section<'_>,
    head: &Section<'_>,
    own: &OwnZone<'_>,
    name_servers: &[NameServer],
) -> Vec<Zone> {
    let mut lines: HashMap<String, usize> = HashMap::new();
    let mut zones = Vec::new();
    for section in &root.sections("zone", ZONE) {
        if name_servers.is_empty() {
            section.mistakes.note(
                section.at,
                format!("{}: there is no name server to serve it", section.path),
                "add a [[name_server]]",
            );
        }
        let name_text = section.need_text("name", "name = \"example.org\", or \".\" for the root");
        let name = name_text.as_ref().and_then(|t| zone_name(t, true));
        if let (Some(text), Some(name)) = (&name_text, &name)
            && let Some(first) = lines.insert(name.clone(), section.mistakes.line_of(text.at))
        {
            text.note(
                format!(
                    "{} is another zone's name, in line {first}",
                    record::shown(name)
                ),
                "put all its records into one [[zone]]",
            );
        }
        let is_own = name.as_deref() == Some(own.zone);
        let servers = if is_own && !section.has("name_servers") {
            own.name_servers.to_vec()
        } else {
            references(
                section,
                "name_servers",
                name_servers,
                |n| &n.name,
                "name server",
            )
        };
        if is_own
            && section.has("name_servers")
            && head.has("name_servers")
            && servers != own.name_servers
        {
            let problem = format!(
                "{}: [fleet] names other name servers for this zone",
                section.path_of("name_servers")
            );
            section
                .mistakes
                .note(section.at_of("name_servers"), problem, "remove it here");
        }
        let ttl = section
            .duration("ttl", Duration::from_secs(1)..=365 * DAY)
            .unwrap_or(ZONE_TTL);
        // Without a good name every record would look wrong.
        let records = name
            .as_deref()
            .map_or_else(Vec::new, |name| check_records(section, name, ttl, own));
        zones.push(Zone {
            name: name.unwrap_or_default(),
            ttl,
            name_servers: servers,
            records,
        });
    }
    zones
}

fn check_records(
    section: &Section<'_>,
    zone: &str,
    ttl: Duration,
    own: &OwnZone<'_>,
) -> Vec<Record> {
    let mut records = Vec::new();
    for text in section.texts("records").unwrap_or_default() {
        match record::parse(text.text, zone, ttl.as_secs() as u32) {
            Ok(record) => {
                if let Some(site) = own.site_of(&record.owner) {
                    text.note(
                        format!("{} is the steered name of the site {site}", record.owner),
                        "remove it: its addresses are those of the clusters",
                    );
                }
                records.push((record, text));
            }
            Err((problem, mend)) => text.note(problem, mend),
        }
    }
    record::check_together(&records);
    records.into_iter().map(|(record, _)| record).collect()
}

#[cfg(test)]
mod tests;
