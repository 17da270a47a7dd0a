//! `nearcast check`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::{self, Mistake};
use nearcast_gslb_dns::zone::{self, ZoneError};
use serde_json::json;

use super::print_json;
use crate::cli::CheckArgs;
use crate::text::plural;

/// Checks a fleet file and says what it holds.
pub(crate) fn run(arguments: &CheckArgs) -> Result<(), Failure> {
    if arguments.json {
        return check_json(&arguments.file);
    }
    let fleet = load(&arguments.file)?;
    tell_warnings(&arguments.file, &fleet);
    outln!("{}: OK: {}", arguments.file.display(), summary(&fleet));
    Ok(())
}

/// A fleet file in which the name servers, too, find no mistake.
///
/// # Errors
/// As [`file::load`]; `Usage` with every mistake in the zones' records.
pub(crate) fn load(path: &Path) -> Result<Fleet, Failure> {
    let fleet = file::load(path)?;
    let faults = record_faults(&fleet, &std::fs::read_to_string(path).unwrap_or_default());
    if faults.is_empty() { Ok(fleet) } else { Err(Failure::new(FailureKind::Usage, file::describe(&path.display().to_string(), &faults))) }
}

fn check_json(path: &Path) -> Result<(), Failure> {
    let text = file::read(path)?;
    let base = path.parent().unwrap_or(Path::new(""));
    match file::parse_and_check(&text, base, record_faults) {
        Ok(fleet) => {
            let warnings: Vec<_> = warnings(&fleet, &text).iter().map(to_json).collect();
            print_json(&json!({"ok": true, "summary": summary(&fleet), "mistakes": [], "warnings": warnings}));
            Ok(())
        }
        Err(mistakes) => {
            let count = mistakes.len();
            let list: Vec<_> = mistakes.iter().map(to_json).collect();
            print_json(&json!({"ok": false, "mistakes": list, "warnings": []}));
            Err(Failure::new(FailureKind::Usage, format!("{} has {}", path.display(), plural(count, "mistake"))))
        }
    }
}

fn to_json(mistake: &Mistake) -> serde_json::Value {
    json!({"line": mistake.line, "column": mistake.column, "problem": mistake.problem, "mend": mistake.mend})
}

/// Prints on stderr what may be meant, and probably is not: one a line, as `FILE:LINE:COLUMN: warning: PROBLEM; MEND`.
pub(crate) fn tell_warnings(path: &Path, fleet: &Fleet) {
    for Mistake { line, column, problem, mend } in warnings(fleet, &std::fs::read_to_string(path).unwrap_or_default()) {
        eprintln!("{}:{line}:{column}: warning: {problem}; {mend}", path.display());
    }
}

/// What is no mistake, as it may be meant so, and is one on several machines: addresses on which nodes on other machines
/// reach nothing.
pub(crate) fn warnings(fleet: &Fleet, text: &str) -> Vec<Mistake> {
    let mut found = Vec::new();
    let mut warn = |(line, column), problem: String, mend: &str| found.push(Mistake { line, column, problem, mend: mend.to_owned() });
    let edges: Vec<_> = fleet.clusters.iter().flat_map(|c| &c.nodes).collect();
    let edges_at: BTreeSet<IpAddr> = edges.iter().flat_map(|n| n.addresses.iter().copied().chain([n.service.ip()])).collect();
    let servers_at = fleet.name_servers.iter().flat_map(|s| s.addresses.iter().copied().chain(host_of(&s.admin_url)));
    let nodes_at: BTreeSet<IpAddr> = edges_at.iter().copied().chain(servers_at).collect();
    // The addresses of one machine look like those of several; a single one is certainly of one.
    let is_spread = |addresses: &BTreeSet<IpAddr>| addresses.iter().filter(|ip| !ip.is_loopback()).count() > 1;
    if let Some(control) = fleet.control.as_ref().filter(|_| is_spread(&nodes_at)) {
        let place = place_of(text, |line| line.find("[control]"));
        let others = "fine if every node is on control's machine";
        if is_loopback(&control.url) {
            let problem =
                format!("control is at {}, which nodes on other machines cannot reach: they get no purge, push or revision", control.url);
            warn(place, problem, &format!("set listen (and url) in [control] to an address that every node reaches; {others}"));
        } else if control.listen.ip().is_loopback() {
            let problem = format!("control listens on {}, and other nodes are to reach it by {}", control.listen, control.url);
            warn(place, problem, "set listen in [control] to the address of that URL; fine if a proxy passes it on");
        }
    }
    for server in &fleet.name_servers {
        let own = server.addresses.iter().copied().collect();
        let others: BTreeSet<IpAddr> = edges_at.union(&own).copied().collect();
        if !is_spread(&others) || edges_at.iter().all(IpAddr::is_loopback) {
            continue;
        }
        let place = place_of(text, |line| line.find(&format!("\"{}\"", server.name)));
        if is_loopback(&server.admin_url) {
            let problem = format!(
                "edges report to {} at {}, which those on other machines cannot reach: it knows neither their load nor round-trip times",
                server.name, server.admin_url
            );
            warn(
                place,
                problem,
                "set its admin (and admin_url) to an address that every edge reaches; fine if every edge is on its machine",
            );
        } else if server.admin.ip().is_loopback() {
            let problem =
                format!("the admin listener of {} is {}, and edges are to reach it by {}", server.name, server.admin, server.admin_url);
            warn(place, problem, "set admin to the address of that URL; fine if a proxy passes it on");
        }
    }
    for edge in edges.iter().filter(|n| n.service.ip().is_loopback() && n.addresses.iter().any(|ip| !ip.is_loopback())) {
        if is_spread(&nodes_at) {
            let place = place_of(text, |line| line.find(&format!("\"{}\"", edge.name)));
            let problem = format!(
                "name servers and other edges reach {} at {}, which those on other machines cannot: they take it for dead",
                edge.name, edge.service
            );
            warn(place, problem, "set its service to an address that they reach; fine if all of them are on its machine");
        }
    }
    if is_spread(&edges_at) {
        for site in fleet.sites.iter().filter(|site| is_loopback(&site.origin)) {
            let place = place_of(text, |line| line.find(&site.origin));
            let problem = format!("the origin of {} is {}: each edge asks its own machine", site.name, site.origin);
            warn(place, problem, "write an address that every edge reaches; fine if there is an origin beside each");
        }
    }
    found
}

/// The host of a URL, where it is an address.
fn host_of(url: &str) -> Option<IpAddr> {
    let rest = url.split_once("://")?.1.split('/').next()?;
    let host = rest.strip_prefix('[').map_or_else(|| rest.split(':').next(), |v6| v6.split(']').next())?;
    host.parse().ok()
}

fn is_loopback(url: &str) -> bool {
    host_of(url).is_some_and(|ip| ip.is_loopback())
        || url.split_once("://").is_some_and(|(_, rest)| rest.split([':', '/']).next() == Some("localhost"))
}

/// What only a name server can tell of the zones' records, at the place of the record.
pub(crate) fn record_faults(fleet: &Fleet, text: &str) -> Vec<Mistake> {
    let mistake = |fault: ZoneError| {
        let ((line, column), mend) = match &fault {
            // Owner, type, data.
            ZoneError::Record { record, .. } => (
                place_of(text, |l| record.splitn(3, ' ').skip(1).all(|w| l.contains(w)).then_some(0)),
                "write the data as RFC 1035 does, or as TYPE<number> \\# <length> <hex>",
            ),
            ZoneError::Conflict { zone, owner, .. } | ZoneError::TooLarge { zone, owner, .. } => {
                (place_of_owner(text, zone, owner), "see docs/fleet-file.md, zones")
            }
            ZoneError::NothingServed(name) => (place_of(text, |l| l.find(name)), "or take the name server out"),
        };
        Mistake { line, column, problem: fault.to_string(), mend: mend.to_owned() }
    };
    zone::check(fleet).into_iter().map(mistake).collect()
}

/// Line and column, from 1, of the first line in which `at` finds something; the file's start when there is none.
fn place_of(text: &str, at: impl Fn(&str) -> Option<usize>) -> (usize, usize) {
    text.lines().enumerate().find_map(|(n, line)| Some((n + 1, at(line)? + 1))).unwrap_or((1, 1))
}

/// Where the first record of a name is written: relative to its zone, or whole; else where the zone or the site is named.
fn place_of_owner(text: &str, zone: &str, owner: &str) -> (usize, usize) {
    let relative = if owner == zone { "@" } else { owner.strip_suffix(zone).map_or(owner, |o| o.trim_end_matches('.')) };
    let whole = format!("{owner}.");
    let record = |line: &str| {
        let begins = |name: &str| ['"', '\''].iter().find_map(|quote| line.find(&format!("{quote}{name} "))).map(|at| at + 1);
        begins(relative).or_else(|| begins(&whole))
    };
    match place_of(text, record) {
        (1, 1) => place_of(text, |line| [owner, relative, zone].iter().find_map(|name| line.find(&format!("\"{name}\"")))),
        found => found,
    }
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
        if fleet.control.is_some() { "control".to_owned() } else { "no control".to_owned() },
    ];
    format!("zone {}, {}", fleet.zone, parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPREAD: &str = "[fleet]\nzone = \"cdn.test\"\nnode_key = \"a key that only this test knows\"\n[control]\nlisten = \"10.0.0.5:7700\"\n\
        [[name_server]]\nname = \"ns1\"\nlisten = \"192.0.2.53:53\"\nadmin = \"10.0.0.53:9153\"\n\
        [[cluster]]\nname = \"ams\"\nplace = { latitude = 1, longitude = 1 }\n\
        [[cluster.node]]\nname = \"ams-1\"\naddress = \"192.0.2.1\"\n[[cluster.node]]\nname = \"ams-2\"\naddress = \"192.0.2.2\"\n\
        [[site]]\nname = \"www\"\norigin = \"http://192.0.2.80\"\n";

    #[test]
    fn what_nodes_elsewhere_cannot_reach_is_warned_of() {
        let warned = |text: &str| {
            let fleet = file::parse(text, Path::new("/")).unwrap_or_else(|m| panic!("{}", file::describe("text", &m)));
            warnings(&fleet, text)
        };
        for (old, new, line, words) in [
            ("", "", 0, ""),
            ("listen = \"10.0.0.5:7700\"\n", "", 4, "control is at http://127.0.0.1:7700"),
            ("10.0.0.5:7700", "localhost:7700", 4, "control is at http://127.0.0.1:7700"),
            ("10.0.0.5:7700\"", "127.0.0.1:7700\"\nurl = \"http://control.test:7700\"", 4, "control listens on 127.0.0.1:7700"),
            ("10.0.0.5:7700\"", "10.0.0.5:7700\"\nurl = \"http://localhost:7700\"", 4, "control is at http://localhost:7700"),
            ("admin = \"10.0.0.53:9153\"\n", "", 7, "edges report to ns1 at http://127.0.0.1:9153"),
            ("10.0.0.53:9153\"", "[::1]:9153\"", 7, "edges report to ns1 at http://[::1]:9153"),
            ("10.0.0.53:9153\"", "127.0.0.1:9153\"\nadmin_url = \"http://10.0.0.53:9153\"", 7, "the admin listener of ns1"),
            (
                "\"192.0.2.2\"",
                "\"192.0.2.2\"\nlisten = \"127.0.0.1:8080\"\nadmin = \"127.0.0.1:9101\"",
                17,
                "reach ams-2 at 127.0.0.1:8080",
            ),
            ("http://192.0.2.80", "http://127.0.0.1:8000", 21, "each edge asks its own machine"),
        ] {
            let text = SPREAD.replace(old, new);
            let found = warned(&text);
            match words {
                "" => assert!(found.is_empty(), "{found:?}"),
                _ => assert!(matches!(&found[..], [one] if one.problem.contains(words)), "{new}: {found:?}"),
            }
            assert!(found.iter().all(|m| m.line.abs_diff(line) <= 2 && !m.mend.is_empty()), "{new}: {found:?}");
        }
        // All on one machine.
        let local = SPREAD
            .replace("\"192.0.2.2\"", "\"127.0.10.2\"\nadmin = \"127.0.10.2:9100\"")
            .replace("192.0.2.", "127.0.10.")
            .replace("10.0.0.5:", "127.0.0.1:")
            .replace("http://127.0.10.80", "http://127.0.0.1");
        assert!(warned(&local).is_empty());
        let one_machine = "[fleet]\nzone = \"cdn.test\"\nnode_key = \"a key that only this test knows\"\n[control]\n\
            [[name_server]]\nname = \"ns1\"\nlisten = \"192.0.2.1:53\"\n\
            [[cluster]]\nname = \"ams\"\nplace = { latitude = 1, longitude = 1 }\n[[cluster.node]]\nname = \"ams-1\"\naddress = \"192.0.2.1\"\n\
            [[site]]\nname = \"www\"\norigin = \"http://127.0.0.1:8000\"\n";
        assert!(warned(one_machine).is_empty());
    }

    #[test]
    fn a_name_is_found_where_its_first_record_is_written() {
        let text = "[[site]]\nname = \"film\"\n[[zone]]\nname = \"demo.test\"\nrecords = [\n  \"@ MX 10 m\", 'a TXT \"x\"',\n  \"sub.demo.test. NS ns\",\n]";
        for (zone, owner, place) in [
            ("demo.test", "demo.test", (6, 4)),
            ("demo.test", "a.demo.test", (6, 17)),
            ("demo.test", "sub.demo.test", (7, 4)),
            ("demo.test", "gone.demo.test", (4, 8)),
            ("cdn.test", "film.cdn.test", (2, 8)),
            ("other.test", "a.b.other.test", (1, 1)),
        ] {
            assert_eq!(place_of_owner(text, zone, owner), place, "{owner}");
        }
    }
}
