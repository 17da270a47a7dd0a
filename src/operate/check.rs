//! `nearcast check`.

mod acme;
mod ordered;
mod tls;

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nearcast_fleet::clock::now_unix_s;
use nearcast_fleet::config::{CertificateFiles, Control, Fleet, NameServer, Node, Site};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::{self, Mistake};
use nearcast_fleet::node_key;
use nearcast_fleet::wanted_certificates::{covers, wanted_certificates};
use nearcast_gslb_dns::steer;
use nearcast_gslb_dns::zone::{self, ZoneError};
use nearcast_net::tls::{ClientRoots, FileError, Identity};
use serde_json::json;

use super::print_json;
use crate::cli::CheckArgs;
use crate::kernel;
use crate::privileges::Account;
use crate::text::plural;

/// Checks a fleet file and prints a summary.
pub(crate) async fn run(arguments: &CheckArgs) -> Result<(), Failure> {
    if arguments.json {
        return check_json(&arguments.file).await;
    }
    let fleet = load(&arguments.file)?;
    print_warnings(&arguments.file, &fleet);
    let text = std::fs::read_to_string(&arguments.file).unwrap_or_default();
    let acme::Found { warnings, unasked } = acme::look(&fleet, &text).await;
    print_all(&arguments.file, warnings);
    if let Some(unasked) = unasked {
        errln!("{}: {unasked}", arguments.file.display());
    }
    outln!("{}: OK: {}", arguments.file.display(), summary(&fleet));
    Ok(())
}

/// Loads a fleet file that is valid for the name servers too.
///
/// # Errors
/// As [`file::load`]; `Usage` with every mistake in the zones' records.
pub(crate) fn load(path: &Path) -> Result<Fleet, Failure> {
    let fleet = file::load(path)?;
    refuse_faults(path, &fleet)?;
    Ok(fleet)
}

/// Refuses a fleet file in which the name servers find mistakes.
///
/// # Errors
/// `Usage` with every mistake in the zones' records.
pub(crate) fn refuse_faults(path: &Path, fleet: &Fleet) -> Result<(), Failure> {
    let faults = record_faults(fleet, &std::fs::read_to_string(path).unwrap_or_default());
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(
            FailureKind::Usage,
            file::describe(&path.display().to_string(), &faults),
        ))
    }
}

async fn check_json(path: &Path) -> Result<(), Failure> {
    let text = file::read(path)?;
    let base = path.parent().unwrap_or(Path::new(""));
    match file::parse_and_check(&text, base, record_faults) {
        Ok(fleet) => {
            let found = acme::look(&fleet, &text).await;
            let warnings = warnings(&fleet, &text).into_iter().chain(found.warnings);
            let warnings: Vec<_> = warnings.map(|warning| to_json(&warning)).collect();
            print_json(&json!({
                "ok": true,
                "summary": summary(&fleet),
                "mistakes": [],
                "warnings": warnings,
                "unasked": found.unasked,
            }));
            Ok(())
        }
        Err(mistakes) => {
            let count = mistakes.len();
            let list: Vec<_> = mistakes.iter().map(to_json).collect();
            print_json(&json!({"ok": false, "mistakes": list, "warnings": []}));
            Err(Failure::new(
                FailureKind::Usage,
                format!("{} has {}", path.display(), plural(count, "mistake")),
            ))
        }
    }
}

fn to_json(mistake: &Mistake) -> serde_json::Value {
    json!({"line": mistake.line, "column": mistake.column, "problem": mistake.problem, "hint": mistake.hint})
}

/// Prints warnings on stderr, one a line: `FILE:LINE:COLUMN: warning: PROBLEM; HINT`.
pub(crate) fn print_warnings(path: &Path, fleet: &Fleet) {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    print_all(path, warnings(fleet, &text));
}

fn print_all(path: &Path, warnings: Vec<Mistake>) {
    for Mistake {
        line,
        column,
        problem,
        hint,
    } in warnings
    {
        errln!(
            "{}:{line}:{column}: warning: {problem}; {hint}",
            path.display()
        );
    }
}

/// Settings that are valid, perhaps on purpose, and may keep nodes from working as the file says.
pub(crate) fn warnings(fleet: &Fleet, text: &str) -> Vec<Mistake> {
    let mut found = file::renamed_settings(text);
    found.extend(unreachable_elsewhere(fleet, text));
    found.extend(own_certificate_warnings(fleet, text));
    found.extend(certificate_warnings(fleet, text));
    found.extend(tls::warnings(fleet, text));
    found.extend(ordered::warnings(fleet, text));
    for warning in node_key::warnings(fleet) {
        let (line, column) = place_of(text, |line| line.find("node_key"));
        let (problem, hint) = warning.split_once("; ").unwrap_or((&warning, ""));
        found.push(Mistake {
            line,
            column,
            problem: problem.to_owned(),
            hint: hint.to_owned(),
        });
    }
    if let Some(path) = &fleet.steering.geo_db
        && let Err(failure) = steer::check_geo_db(path)
    {
        let (line, column) = place_of(text, |line| line.find("geo_db"));
        let problem = format!("steering.geo_db: {failure}");
        let hint = "a name server where it is so places clients by the built-in country table until the file is good".to_owned();
        found.push(Mistake {
            line,
            column,
            problem,
            hint,
        });
    }
    found
}

/// A pair of files as `check` finds it.
enum PairHere {
    /// Neither file is on this machine.
    Elsewhere,
    Usable(Identity),
    /// What is wrong with it, and the hint where it is not the usual one.
    Broken(String, Option<&'static str>),
}

impl PairHere {
    fn look(files: &CertificateFiles) -> Self {
        let error = match Identity::load(&files.cert, &files.key) {
            Ok(identity) => return Self::Usable(identity),
            Err(error) => error,
        };
        // A directory that this user may not enter hides whether they are there.
        let is_here = [&files.cert, &files.key].map(|path| path.try_exists().unwrap_or(true));
        let is_closed = matches!(
            &error,
            FileError::Unreadable { error, .. } if error.kind() == ErrorKind::PermissionDenied
        );
        match is_here {
            [false, false] => Self::Elsewhere,
            _ if is_closed => Self::Broken(
                error.to_string(),
                Some("if the nodes run as another user, check as root"),
            ),
            _ => Self::Broken(error.to_string(), None),
        }
    }
}

/// The user that roles run as when root starts them; `None` where that is root or unknown, and where
/// this process is not root and so may not see all permissions.
fn account_of(fleet: &Fleet) -> Option<Account> {
    let is_root = kernel::user_id() == 0;
    is_root.then(|| Account::of_fleet(fleet)).flatten()
}

/// Says that a node's user cannot read a file that root can.
fn unreadable_to(account: Option<&Account>, files: &CertificateFiles) -> Option<String> {
    let account = account?;
    let mut paths = [&files.cert, &files.key].into_iter();
    let (path, closed) = paths.find_map(|path| Some((path, account.closed_to(path)?)))?;
    let of = match closed == *path {
        true => String::new(),
        false => format!(" (by the permissions of {})", closed.display()),
    };
    Some(format!(
        "the user {}, which a node that root starts runs as, cannot read {}{of}",
        account.name,
        path.display()
    ))
}

/// Who cannot read the files and should, or can and should not; with a hint.
fn access_warning(
    account: Option<&Account>,
    files: &CertificateFiles,
) -> Option<(String, &'static str)> {
    if let Some(problem) = unreadable_to(account, files) {
        return Some((problem, UNREADABLE_HINT));
    }
    let about = std::fs::metadata(&files.key).ok()?;
    (about.permissions().mode() & FOR_OTHERS != 0).then(|| {
        let problem = format!(
            "every user of this machine has access to the private key {}",
            files.key.display()
        );
        (problem, "chmod 640, or 600 where the nodes' user owns it")
    })
}

/// What clients object to or soon will, as the rest of a sentence about the certificate.
fn validity_warning(identity: &Identity, now: i64) -> Option<String> {
    let words = identity.warning(now)?;
    let days = identity.expires_soon(now).map(|left| left / 86_400);
    Some(match days.filter(|_| words == Identity::EXPIRES_SOON) {
        Some(0) => "expires within a day".to_owned(),
        Some(days) => format!("expires in {}", plural(days as usize, "day")),
        None => words.to_owned(),
    })
}

/// The permissions of a file for users who are neither its owner nor in its group.
const FOR_OTHERS: u32 = 0o007;
const UNREADABLE_HINT: &str = "let its group read the file and enter the directories above it (chgrp, chmod 640), or copy the pair; see docs/tls.md";

/// What is wrong with the certificates of the nodes' own listeners and of the authority, as far as
/// this machine has the files.
fn own_certificate_warnings(fleet: &Fleet, text: &str) -> Vec<Mistake> {
    let now = now_unix_s() as i64;
    let account = account_of(fleet);
    let hint = "a node that starts with such a file ends at once; a running one keeps the former";
    let of_pair = |setting: &str, files: &CertificateFiles| {
        let (problem, hint) = match PairHere::look(files) {
            PairHere::Elsewhere => return None,
            PairHere::Broken(problem, own_hint) => (problem, own_hint.unwrap_or(hint)),
            PairHere::Usable(identity) => match validity_warning(&identity, now) {
                Some(words) => (
                    format!("{} {words}", files.cert.display()),
                    "replace it; nodes read it again by themselves",
                ),
                None if identity.is_authority() => (
                    format!(
                        "{} is the certificate of an authority; nodes and commands refuse it",
                        files.cert.display()
                    ),
                    "make one with basicConstraints CA:FALSE, or sign a certificate for the nodes with it",
                ),
                None => access_warning(account.as_ref(), files)?,
            },
        };
        Some((files.cert.clone(), format!("{setting}: {problem}"), hint))
    };
    let control = fleet.control.as_ref().and_then(|c| c.identity.as_ref());
    let pairs = [
        ("control.cert", control),
        ("fleet.admin_cert", fleet.admin_identity.as_ref()),
    ];
    let mut found: Vec<_> = pairs
        .into_iter()
        .filter_map(|(setting, files)| of_pair(setting, files?))
        .collect();
    if let Some(ca) = fleet.ca.as_ref().filter(|ca| ca.exists())
        && let Err(error) = ClientRoots::load(Some(ca))
    {
        found.push((ca.clone(), format!("fleet.ca: {error}"), hint));
    }

    found
        .into_iter()
        .map(|(path, problem, hint)| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            warning(place_of(text, |line| line.find(&*file)), problem, hint)
        })
        .collect()
}

/// Certificates that cannot be used, or that clients will object to, as far as their files are on
/// this machine; and hosts that no certificate covers, where all of them are.
fn certificate_warnings(fleet: &Fleet, text: &str) -> Vec<Mistake> {
    let now = now_unix_s() as i64;
    let account = account_of(fleet);
    let mut found = Vec::new();
    let mut identities = Vec::new();
    for pair in &fleet.tls.certificates {
        let file = pair.cert.file_name().unwrap_or_default().to_string_lossy();
        let place = place_of(text, |line| line.find(&*file));
        match PairHere::look(pair) {
            PairHere::Elsewhere => {}
            PairHere::Broken(problem, hint) => found.push(warning(
                place,
                problem,
                hint.unwrap_or(
                    "an edge with these files does not serve the certificate's hosts over TLS",
                ),
            )),
            PairHere::Usable(identity) => {
                found.extend(validity_warning(&identity, now).map(|words| {
                    warning(
                        place,
                        format!("{} {words}", pair.cert.display()),
                        "replace it on the edges, which read it again by themselves",
                    )
                }));
                found.extend(
                    access_warning(account.as_ref(), pair)
                        .map(|(problem, hint)| warning(place, problem, hint)),
                );
                identities.push(identity);
            }
        }
    }
    // Where a certificate is elsewhere or broken, the hosts that it covers are not known.
    if !identities.is_empty() && identities.len() == fleet.tls.certificates.len() {
        found.extend(coverage_warnings(fleet, text, &identities));
    }
    found
}

/// Hosts that no certificate covers, and certificates that cover no host; `identities` are those of
/// the fleet, in its order.
fn coverage_warnings(fleet: &Fleet, text: &str, identities: &[Identity]) -> Vec<Mistake> {
    let strings = Strings::new(text);
    let ordered = wanted_certificates(fleet);
    let is_ordered = |host: &str| {
        let names = ordered.iter().flat_map(|wanted| &wanted.hosts);
        names.into_iter().any(|name| covers(name, host))
    };
    let is_covered =
        |host: &str| identities.iter().any(|identity| identity.covers(host)) || is_ordered(host);
    let mut found = Vec::new();
    for site in &fleet.sites {
        let hosts = site.hosts.iter();
        for host in hosts.filter(|host| *host != "*" && !is_covered(host)) {
            let place = strings.first(host).unwrap_or(START);
            let (problem, hint) = match site.https.redirect {
                true => (
                    format!(
                        "no certificate covers {host}, and its clients are redirected to https"
                    ),
                    "add a certificate, or take redirect out of [site.https]",
                ),
                false if site.https.dns_record => (
                    format!("no certificate covers {host}"),
                    "clients cannot reach it over https; add a certificate, or write dns_record = false in [site.https] if it is served over http alone",
                ),
                false => (
                    format!("no certificate covers {host}"),
                    "clients cannot reach it over https; add a certificate, or leave it if it is served over http alone",
                ),
            };
            found.push(warning(place, problem, hint));
        }
    }

    let default_host = fleet.tls.default_host.as_deref();
    if let Some(host) = default_host.filter(|host| !is_covered(host)) {
        found.push(warning(
            place_of(text, |line| line.find("default_host")),
            format!("tls.default_host: no certificate covers {host}"),
            "write a host of a certificate; until then clients that name no host are refused",
        ));
    }

    // A site with the host `*` answers for every name, and so may need every certificate.
    let hosts = || fleet.sites.iter().flat_map(|site| &site.hosts);
    if hosts().any(|host| host == "*") {
        return found;
    }
    let steered = fleet
        .sites
        .iter()
        .map(|s| format!("{}.{}", s.name, fleet.zone));
    let asked: Vec<String> = hosts().cloned().chain(steered).collect();
    let addresses = fleet.edges().flat_map(|(_, node)| &node.addresses);
    let asked: Vec<String> = asked
        .into_iter()
        .chain(addresses.map(ToString::to_string))
        .chain(fleet.tls.default_host.clone())
        .collect();
    for (pair, identity) in fleet.tls.certificates.iter().zip(identities) {
        if !asked.iter().any(|host| identity.covers(host)) {
            let file = pair.cert.file_name().unwrap_or_default().to_string_lossy();
            found.push(warning(
                place_of(text, |line| line.find(&*file)),
                format!("{} covers no host of a site", pair.cert.display()),
                "add its names to the hosts of a site, or take it out",
            ));
        }
    }
    found
}

/// The first place in the file that `find` finds, else its start.
fn place_of(text: &str, find: impl Fn(&str) -> Option<usize>) -> Position {
    let mut places = text
        .lines()
        .enumerate()
        .filter_map(|(n, line)| find(line).map(|at| (n + 1, at + 1)));
    places.next().unwrap_or(START)
}

/// Addresses at which nodes on other machines cannot be reached.
fn unreachable_elsewhere(fleet: &Fleet, text: &str) -> Vec<Mistake> {
    let edges: Vec<&Node> = fleet.clusters.iter().flat_map(|c| &c.nodes).collect();
    let edges_at: BTreeSet<IpAddr> = edges
        .iter()
        .flat_map(|n| n.addresses.iter().copied().chain([n.service.ip()]))
        .collect();
    let servers_at = fleet
        .name_servers
        .iter()
        .flat_map(|s| s.addresses.iter().copied().chain(host_of(&s.admin_url)));
    let nodes_at: BTreeSet<IpAddr> = edges_at.iter().copied().chain(servers_at).collect();

    let strings = Strings::new(text);
    let named = |name: &str| strings.first(name).unwrap_or(START);
    let mut found = Vec::new();
    if is_spread(&nodes_at) {
        let place = place_of(text, |line| line.find("[control]"));
        found.extend(
            fleet
                .control
                .as_ref()
                .and_then(|c| control_warning(c, place)),
        );
    }
    for server in &fleet.name_servers {
        let own = server.addresses.iter().copied().collect();
        let others: BTreeSet<IpAddr> = edges_at.union(&own).copied().collect();
        if is_spread(&others) && !edges_at.iter().all(IpAddr::is_loopback) {
            found.extend(name_server_warning(server, named(&server.name)));
        }
    }
    if is_spread(&nodes_at) {
        let edges = edges.into_iter();
        found.extend(edges.filter_map(|edge| edge_warning(edge, named(&edge.name))));
    }
    if is_spread(&edges_at) {
        let sites = fleet.sites.iter();
        found.extend(sites.filter_map(|site| site_warning(site, named(&site.origin))));
    }
    found
}

/// Whether addresses belong to more than one machine, for all that the file shows: several addresses
/// may be of one machine, and a single one certainly is.
fn is_spread(addresses: &BTreeSet<IpAddr>) -> bool {
    addresses.iter().filter(|ip| !ip.is_loopback()).count() > 1
}

fn warning((line, column): Position, problem: String, hint: &str) -> Mistake {
    Mistake {
        line,
        column,
        problem,
        hint: hint.to_owned(),
    }
}

fn control_warning(control: &Control, place: Position) -> Option<Mistake> {
    let (listen, url) = (control.listen, &control.url);
    if is_loopback(url) {
        return Some(warning(
            place,
            format!(
                "control is at {url}, which nodes on other machines cannot reach: they get no purge, push or revision"
            ),
            "set listen (and url) in [control] to an address that every node reaches; fine if every node is on control's machine",
        ));
    }
    listen.ip().is_loopback().then(|| {
        warning(
            place,
            format!("control listens on {listen}, and other nodes are to reach it by {url}"),
            "set listen in [control] to the address of that URL; fine if a proxy passes it on",
        )
    })
}

fn name_server_warning(server: &NameServer, place: Position) -> Option<Mistake> {
    let NameServer {
        name,
        admin,
        admin_url,
        ..
    } = server;
    if is_loopback(admin_url) {
        return Some(warning(
            place,
            format!(
                "edges report to {name} at {admin_url}, which those on other machines cannot reach: it knows neither their load nor round-trip times"
            ),
            "set its admin (and admin_url) to an address that every edge reaches; fine if every edge is on its machine",
        ));
    }
    admin.ip().is_loopback().then(|| {
        warning(
            place,
            format!(
                "the admin listener of {name} is {admin}, and edges are to reach it by {admin_url}"
            ),
            "set admin to the address of that URL; fine if a proxy passes it on",
        )
    })
}

fn edge_warning(edge: &Node, place: Position) -> Option<Mistake> {
    let is_misplaced =
        edge.service.ip().is_loopback() && edge.addresses.iter().any(|ip| !ip.is_loopback());
    is_misplaced.then(|| {
        warning(
            place,
            format!(
                "name servers and other edges reach {} at {}, which those on other machines cannot: they take it for dead",
                edge.name, edge.service
            ),
            "set its service to an address that they reach; fine if all of them are on its machine",
        )
    })
}

fn site_warning(site: &Site, place: Position) -> Option<Mistake> {
    is_loopback(&site.origin).then(|| {
        warning(
            place,
            format!(
                "the origin of {} is {}: each edge asks its own machine",
                site.name, site.origin
            ),
            "write an address that every edge reaches; fine if there is an origin beside each",
        )
    })
}

/// The host of a URL, where it is an address.
fn host_of(url: &str) -> Option<IpAddr> {
    let rest = url.split_once("://")?.1.split('/').next()?;
    let host = rest
        .strip_prefix('[')
        .map_or_else(|| rest.split(':').next(), |v6| v6.split(']').next())?;
    host.parse().ok()
}

fn is_loopback(url: &str) -> bool {
    host_of(url).is_some_and(|ip| ip.is_loopback())
        || url
            .split_once("://")
            .is_some_and(|(_, rest)| rest.split([':', '/']).next() == Some("localhost"))
}

/// The mistakes in the zones' records that only a name server finds, at the place of the record.
pub(crate) fn record_faults(fleet: &Fleet, text: &str) -> Vec<Mistake> {
    let faults = zone::check(fleet);
    if faults.is_empty() {
        return Vec::new();
    }
    let strings = Strings::new(text);
    let mistake = |fault: ZoneError| {
        let ((line, column), hint) = match &fault {
            // Owner, type, data.
            ZoneError::Record { record, .. } => (
                strings.record(record).unwrap_or(START),
                "write the data as RFC 1035 does, or as TYPE<number> \\# <length> <hex>",
            ),
            ZoneError::Conflict { zone, owner, .. } | ZoneError::TooLarge { zone, owner, .. } => {
                (strings.owner(zone, owner), "see docs/fleet-file.md, zones")
            }
            ZoneError::NothingServed(name) => (
                strings.first(name).unwrap_or(START),
                "or take the name server out",
            ),
        };
        Mistake {
            line,
            column,
            problem: fault.to_string(),
            hint: hint.to_owned(),
        }
    };
    faults.into_iter().map(mistake).collect()
}

/// Line and column, from 1.
type Position = (usize, usize);

/// The start of a file, for a mistake whose place cannot be found.
const START: Position = (1, 1);

/// The strings of a fleet file with their places. Each look-up takes one step, since a file may have
/// as many faults as records.
struct Strings {
    whole: HashMap<String, Position>,
    /// By the first word of several, the owner of a record.
    first_word: HashMap<String, Position>,
    /// By type and data, the end of a record.
    data: HashMap<String, Position>,
}

impl Strings {
    fn new(text: &str) -> Self {
        let mut strings = Self {
            whole: HashMap::new(),
            first_word: HashMap::new(),
            data: HashMap::new(),
        };
        for (n, line) in text.lines().enumerate() {
            for (column, content) in strings_of(line) {
                strings.add((n + 1, column), &content);
            }
        }
        strings
    }

    fn add(&mut self, place: Position, content: &str) {
        let mut words = content.trim().splitn(2, char::is_whitespace);
        let (first, mut rest) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default().trim_start(),
        );
        self.whole.entry(content.trim().to_owned()).or_insert(place);
        if rest.is_empty() {
            return;
        }
        self.first_word
            .entry(first.to_ascii_lowercase())
            .or_insert(place);
        // A class and a TTL may precede the type.
        for _ in 0..3 {
            let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            self.data
                .entry(format!(
                    "{} {}",
                    word.to_ascii_uppercase(),
                    after.trim_start()
                ))
                .or_insert(place);
            rest = after.trim_start();
        }
    }

    /// The place of a record, given as `OWNER TYPE DATA`.
    fn record(&self, record: &str) -> Option<Position> {
        let (_, data) = record.split_once(' ')?;
        self.data.get(data.trim_end()).copied()
    }

    /// The first place of a whole string.
    fn first(&self, whole: &str) -> Option<Position> {
        self.whole.get(whole).copied()
    }

    /// The place of the first record of a name, written relative to its zone or in full; else that of
    /// the zone's or site's name.
    fn owner(&self, zone: &str, owner: &str) -> Position {
        let relative = if owner == zone {
            "@"
        } else {
            owner
                .strip_suffix(zone)
                .map_or(owner, |o| o.trim_end_matches('.'))
        };
        let whole = format!("{owner}.");
        let record = [relative, &whole]
            .iter()
            .filter_map(|name| self.first_word.get(*name))
            .min();
        let named = || {
            [owner, relative, zone]
                .iter()
                .filter_map(|name| self.whole.get(*name))
                .min()
        };
        record.or_else(named).copied().unwrap_or(START)
    }
}

/// The strings of one line of TOML: column of the content, from 1, and content. Multi-line strings
/// are not read.
fn strings_of(line: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut chars = line.chars().enumerate();
    while let Some((at, quote)) = chars.next() {
        match quote {
            '#' => break,
            '"' | '\'' => {
                let mut content = String::new();
                while let Some((_, c)) = chars.next() {
                    match c {
                        '\\' if quote == '"' => content.extend(chars.next().map(|(_, c)| c)),
                        c if c == quote => break,
                        c => content.push(c),
                    }
                }
                found.push((at + 2, content));
            }
            _ => {}
        }
    }
    found
}

/// One line of what a fleet consists of.
pub(crate) fn summary(fleet: &Fleet) -> String {
    let edges: usize = fleet.clusters.iter().map(|c| c.nodes.len()).sum();
    let parts = [
        plural(fleet.clusters.len(), "cluster"),
        plural(edges, "edge"),
        plural(fleet.sites.len(), "site"),
        plural(fleet.name_servers.len(), "name server"),
        plural(fleet.zones.len(), "zone"),
        plural(fleet.origins.len(), "origin"),
        if fleet.control.is_some() {
            "control".to_owned()
        } else {
            "no control".to_owned()
        },
    ];
    format!("zone {}, {}", fleet.zone, parts.join(", "))
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::testing::{FleetText, fleet};

    use super::*;

    const SPREAD: &str = "[fleet]\nzone = \"cdn.test\"\nnode_key = \"a key that only this test knows\"\n[control]\nlisten = \"10.0.0.5:7700\"\n\
        [[name_server]]\nname = \"ns1\"\nlisten = \"192.0.2.53:53\"\nadmin = \"10.0.0.53:9153\"\n\
        [[cluster]]\nname = \"ams\"\nplace = { latitude = 1, longitude = 1 }\n\
        [[cluster.node]]\nname = \"ams-1\"\naddress = \"192.0.2.1\"\n[[cluster.node]]\nname = \"ams-2\"\naddress = \"192.0.2.2\"\n\
        [[site]]\nname = \"www\"\norigin = \"http://192.0.2.80\"\n";

    #[test]
    fn certificates_of_this_machine_that_cannot_be_used_are_warned_of() {
        // The files of a test are not for another user, whom root would become.
        let spread = SPREAD.replace("[fleet]\n", "[fleet]\nuser = \"root\"\n");
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let names = ["control.test", "www.cdn.test"].map(str::to_owned);
        let params = rcgen::CertificateParams::new(names);
        let (mut params, key) = (params.expect("a name"), rcgen::KeyPair::generate());
        let key = key.expect("a key");
        let other = rcgen::KeyPair::generate().expect("a key");
        let good = params.self_signed(&key).expect("a certificate");
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        let old = params.self_signed(&key).expect("a certificate");
        let days = |n: u64| std::time::Duration::from_secs(86_400 * n + 3600);
        params.not_after = (std::time::SystemTime::now() + days(3)).into();
        let soon = params.self_signed(&key).expect("a certificate");
        let mut params =
            rcgen::CertificateParams::new(["control.test".to_owned()]).expect("a name");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).expect("a certificate");
        for (name, text, mode) in [
            ("authority.pem", authority.pem(), 0o644),
            ("good.pem", good.pem(), 0o644),
            ("old.pem", old.pem(), 0o644),
            ("soon.pem", soon.pem(), 0o644),
            ("key.pem", key.serialize_pem(), 0o640),
            ("open.key", key.serialize_pem(), 0o644),
            ("other.key", other.serialize_pem(), 0o600),
            ("junk.pem", "junk".to_owned(), 0o644),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
                .expect("permitted");
        }
        for (cert, key, words) in [
            ("good.pem", "key.pem", ""),
            ("elsewhere.pem", "elsewhere.key", ""),
            ("old.pem", "key.pem", "old.pem has expired"),
            ("soon.pem", "key.pem", "soon.pem expires in 3 days"),
            (
                "good.pem",
                "open.key",
                "every user of this machine has access",
            ),
            ("junk.pem", "key.pem", "junk.pem has no certificate"),
            ("good.pem", "junk.pem", "junk.pem has no private key"),
            ("good.pem", "elsewhere.key", "cannot read "),
            ("elsewhere.pem", "key.pem", "cannot read "),
            ("good.pem", "other.key", "the key of another certificate"),
        ] {
            let pair = format!("cert = {:?}\nkey = {:?}\n", path(cert), path(key));
            let of_control = spread.replace("[control]\n", &format!("[control]\n{pair}"));
            let of_sites = spread.replace(
                "[control]\n",
                &format!("[[certificate]]\n{pair}[control]\n"),
            );
            for found in [
                own_certificate_warnings(&fleet(&of_control), &of_control),
                certificate_warnings(&fleet(&of_sites), &of_sites),
            ] {
                assert_eq!(found.len(), usize::from(!words.is_empty()), "{found:?}");
                assert!(
                    found
                        .iter()
                        .all(|m| m.line == 6 && m.problem.contains(words) && !m.hint.is_empty()),
                    "{found:?}"
                );
            }
        }
        // What the file says about hosts is judged where all certificates are here.
        let pair = |name: &str| {
            format!(
                "[[certificate]]\ncert = {:?}\nkey = {:?}\n",
                path(name),
                path("key.pem")
            )
        };
        let hosts = "\nhosts = [\"control.test\", \"b.other.test\", \"www.test\"]\n";
        let redirect = "[site.https]\nredirect = true\n";
        let text = format!("{}{hosts}{redirect}{}", spread.trim_end(), pair("good.pem"));
        let found = certificate_warnings(&fleet(&text), &text);
        assert!(
            found.len() == 2
                && found.iter().all(|m| m
                    .problem
                    .ends_with("and its clients are redirected to https")),
            "{found:?}"
        );
        // Names that nobody asks for.
        let own = pair("good.pem") + "[tls]\ndefault_host = ";
        for (more, line, words) in [
            ("\"www.cdn.test\"\n", "", ""),
            (
                "\"else.test\"\n",
                "default_host",
                "no certificate covers else.test",
            ),
        ] {
            let text = spread.to_owned() + &own + more;
            let found = certificate_warnings(&fleet(&text), &text);
            assert_eq!(found.len(), usize::from(!words.is_empty()), "{found:?}");
            for one in found {
                assert!(one.problem.contains(words), "{one:?}");
                let at = text.lines().nth(one.line - 1).expect("a line");
                assert!(at.starts_with(line), "{one:?}");
            }
        }
        for (site, words) in [
            ("name = \"www\"\nhosts = [\"*\"]", None),
            ("name = \"shop\"", Some("good.pem covers no host of a site")),
            ("name = \"shop\"\nhosts = [\"control.test\"]", None),
        ] {
            let text = spread.replace("name = \"www\"", site) + &pair("good.pem");
            let found = certificate_warnings(&fleet(&text), &text);
            let problem = found.first().map(|one| one.problem.as_str());
            assert_eq!(problem.is_some(), words.is_some(), "{found:?}");
            assert!(problem.is_none_or(|p| p.contains(words.unwrap_or_default())));
        }
        for (pairs, expected) in [
            (pair("good.pem"), &["b.other.test", "www.test"][..]),
            (
                pair("good.pem") + &pair("elsewhere.pem").replace("key.pem", "elsewhere.key"),
                &[],
            ),
            // Control orders one.
            (
                pair("good.pem")
                    + "[[certificate]]\nhosts = [\"b.other.test\"]\n[acme]\ncontact = [\"mailto:a@b.test\"]\nterms_agreed = true\n",
                &[],
            ),
            (String::new(), &[]),
        ] {
            let text = format!("{}{hosts}{pairs}", spread.trim_end());
            let found = certificate_warnings(&fleet(&text), &text);
            let words: Vec<_> = found.iter().map(|m| m.problem.as_str()).collect();
            let expected: Vec<_> = expected
                .iter()
                .map(|h| format!("no certificate covers {h}"))
                .collect();
            assert_eq!(words, expected);
            let line = text
                .lines()
                .position(|line| line.starts_with("hosts"))
                .map(|n| n + 1);
            assert!(
                found.iter().all(|m| Some(m.line) == line && m.column > 1),
                "{found:?}"
            );
        }
        let pair = pair("authority.pem").replace("[[certificate]]\n", "");
        let text = SPREAD.replace("[control]\n", &format!("[control]\n{pair}"));
        let found = own_certificate_warnings(&fleet(&text), &text);
        assert!(
            found.len() == 1
                && found[0]
                    .problem
                    .contains("is the certificate of an authority"),
            "{found:?}"
        );
        let ca = format!("[fleet]\nca = {:?}\n", path("junk.pem"));
        let text = spread.replace("[fleet]\n", &ca);
        let found = own_certificate_warnings(&fleet(&text), &text);
        assert!(
            found[0].line == 2 && found[0].problem.starts_with("fleet.ca: "),
            "{found:?}"
        );
    }

    #[test]
    fn what_nodes_elsewhere_cannot_reach_is_warned_of() {
        let warned = |text: &str| unreachable_elsewhere(&fleet(text), text);
        for (old, new, line, words) in [
            ("", "", 0, ""),
            (
                "listen = \"10.0.0.5:7700\"\n",
                "",
                4,
                "control is at http://127.0.0.1:7700",
            ),
            (
                "10.0.0.5:7700",
                "localhost:7700",
                4,
                "control is at http://127.0.0.1:7700",
            ),
            (
                "10.0.0.5:7700\"",
                "127.0.0.1:7700\"\nurl = \"http://control.test:7700\"",
                4,
                "control listens on 127.0.0.1:7700",
            ),
            (
                "10.0.0.5:7700\"",
                "10.0.0.5:7700\"\nurl = \"http://localhost:7700\"",
                4,
                "control is at http://localhost:7700",
            ),
            (
                "admin = \"10.0.0.53:9153\"\n",
                "",
                7,
                "edges report to ns1 at http://127.0.0.1:9153",
            ),
            (
                "10.0.0.53:9153\"",
                "[::1]:9153\"",
                7,
                "edges report to ns1 at http://[::1]:9153",
            ),
            (
                "10.0.0.53:9153\"",
                "127.0.0.1:9153\"\nadmin_url = \"http://10.0.0.53:9153\"",
                7,
                "the admin listener of ns1",
            ),
            (
                "\"192.0.2.2\"",
                "\"192.0.2.2\"\nlisten = \"127.0.0.1:8080\"\nadmin = \"127.0.0.1:9101\"",
                17,
                "reach ams-2 at 127.0.0.1:8080",
            ),
            (
                "http://192.0.2.80",
                "http://127.0.0.1:8000",
                21,
                "each edge asks its own machine",
            ),
        ] {
            let text = SPREAD.replace(old, new);
            let found = warned(&text);
            match words {
                "" => assert!(found.is_empty(), "{found:?}"),
                _ => assert!(
                    matches!(&found[..], [one] if one.problem.contains(words)),
                    "{new}: {found:?}"
                ),
            }
            assert!(
                found
                    .iter()
                    .all(|m| m.line.abs_diff(line) <= 2 && !m.hint.is_empty()),
                "{new}: {found:?}"
            );
        }
        // All on one machine.
        let local = SPREAD
            .replace(
                "\"192.0.2.2\"",
                "\"127.0.10.2\"\nadmin = \"127.0.10.2:9100\"",
            )
            .replace("192.0.2.", "127.0.10.")
            .replace("10.0.0.5:", "127.0.0.1:")
            .replace("http://127.0.10.80", "http://127.0.0.1");
        assert!(warned(&local).is_empty());
        let one_machine = FleetText::new()
            .text_after("[control]")
            .name_server("ns1", "192.0.2.1:53")
            .cluster("ams", &["192.0.2.1"])
            .site("www", "http://127.0.0.1:8000", "");
        assert!(warned(&one_machine.text()).is_empty());
    }

    const TEXT: &str = r#"[[site]]
name = "film"
[[zone]]
name = "demo.test" # "not here"
records = [
  "@ MX 10 m", 'a TXT "x"',
  "sub.demo.test. NS ns", "b 5m IN TXT \"two  words\"",
]"#;

    #[test]
    fn a_name_is_found_where_its_first_record_is_written() {
        let strings = Strings::new(TEXT);
        for (zone, owner, place) in [
            ("demo.test", "demo.test", (6, 4)),
            ("demo.test", "a.demo.test", (6, 17)),
            ("demo.test", "sub.demo.test", (7, 4)),
            ("demo.test", "gone.demo.test", (4, 9)),
            ("cdn.test", "film.cdn.test", (2, 9)),
            ("other.test", "a.b.other.test", (1, 1)),
        ] {
            assert_eq!(strings.owner(zone, owner), place, "{owner}");
        }
    }

    #[test]
    fn a_record_is_found_by_its_type_and_data() {
        let strings = Strings::new(TEXT);
        for (record, place) in [
            ("demo.test MX 10 m", Some((6, 4))),
            ("a.demo.test TXT \"x\"", Some((6, 17))),
            ("b.demo.test TXT \"two  words\"", Some((7, 28))),
            ("sub.demo.test NS ns", Some((7, 4))),
            ("c.demo.test TXT \"y\"", None),
            ("not here", None),
        ] {
            assert_eq!(strings.record(record), place, "{record}");
        }
        assert_eq!(
            (strings.first("film"), strings.first("not here")),
            (Some((2, 9)), None)
        );
    }

    #[test]
    fn ten_thousand_sites_and_zones_are_checked_and_each_fault_is_at_its_line() {
        const COUNT: usize = 10_000;
        let text = |zone: &dyn Fn(usize) -> String| {
            let mut text = FleetText::new()
                .name_server("ns1", "127.0.0.1:53")
                .cluster("ams", &["192.0.2.1"])
                .text();
            for n in 0..COUNT {
                text += &format!(
                    "[[site]]\nname = \"s{n}\"\nhosts = [\"www.z{n}.test\"]\norigin = \"http://o.test\"\n"
                );
                text += &format!(
                    "[[zone]]\nname = \"z{n}.test\"\nrecords = [\n{}\n]\n",
                    zone(n)
                );
            }
            text
        };
        let good = text(&|n| format!("\"@ MX 10 mail{n}\", \"mail{n} A 192.0.2.9\""));
        let fleet = file::parse_and_check(&good, Path::new(""), record_faults).expect("no mistake");
        assert_eq!((fleet.sites.len(), fleet.zones.len()), (COUNT, COUNT));
        // A fault in every zone: the file says where each of them is.
        let bad = text(&|n| format!("\"@ MX 10 mail{n}\", \"svc HTTPS not{n}\""));
        let faults =
            file::parse_and_check(&bad, Path::new(""), record_faults).expect_err("mistakes");
        assert_eq!(faults.len(), COUNT);
        let lines: Vec<&str> = bad.lines().collect();
        for (n, fault) in faults.iter().enumerate() {
            assert!(
                lines[fault.line - 1].contains(&format!("not{n}\"")),
                "{fault:?}"
            );
        }
    }
}
