//! `nearcast check`.

use std::path::Path;

use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::{self, Mistake};
use nearcast_fleet::node_key;
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
    outln!("{}: OK: {}", arguments.file.display(), summary(&fleet));
    for warning in node_key::warnings(&fleet) {
        eprintln!("{}: warning: {warning}", arguments.file.display());
    }
    Ok(())
}

/// A fleet file in which the name servers, too, find no mistake.
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
    if faults.is_empty() { Ok(()) } else { Err(Failure::new(FailureKind::Usage, file::describe(&path.display().to_string(), &faults))) }
}

fn check_json(path: &Path) -> Result<(), Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::new(FailureKind::NoInput, format!("cannot read the fleet file {}: {e}", path.display())))?;
    let base = path.parent().unwrap_or(Path::new(""));
    match file::parse_and_check(&text, base, record_faults) {
        Ok(fleet) => {
            print_json(&json!({"ok": true, "summary": summary(&fleet), "mistakes": [], "warnings": node_key::warnings(&fleet)}));
            Ok(())
        }
        Err(mistakes) => {
            let count = mistakes.len();
            let list: Vec<_> =
                mistakes.into_iter().map(|m| json!({"line": m.line, "column": m.column, "problem": m.problem, "mend": m.mend})).collect();
            print_json(&json!({"ok": false, "mistakes": list}));
            Err(Failure::new(FailureKind::Usage, format!("{} has {}", path.display(), plural(count, "mistake"))))
        }
    }
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
