//! `nearcast check`.

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
    let fleet = file::load(&arguments.file)?;
    let faults = record_faults(&fleet, &std::fs::read_to_string(&arguments.file).unwrap_or_default());
    if !faults.is_empty() {
        return Err(Failure::new(FailureKind::Usage, file::describe(&arguments.file.display().to_string(), &faults)));
    }
    outln!("{}: OK: {}", arguments.file.display(), summary(&fleet));
    Ok(())
}

fn check_json(path: &Path) -> Result<(), Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::new(FailureKind::NoInput, format!("cannot read the fleet file {}: {e}", path.display())))?;
    let base = path.parent().unwrap_or(Path::new(""));
    let parsed = file::parse(&text, base).and_then(|fleet| {
        let faults = record_faults(&fleet, &text);
        if faults.is_empty() { Ok(fleet) } else { Err(faults) }
    });
    match parsed {
        Ok(fleet) => {
            print_json(&json!({"ok": true, "summary": summary(&fleet), "mistakes": []}));
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

/// What only a name server can tell of the zones' records, at the line that holds the record's data.
fn record_faults(fleet: &Fleet, text: &str) -> Vec<Mistake> {
    let line_of = |words: &[&str]| text.lines().position(|l| words.iter().all(|w| l.contains(w))).map_or(1, |n| n + 1);
    let mistake = |fault: ZoneError| {
        let (line, mend) = match &fault {
            // Owner, type, data.
            ZoneError::Record { record, .. } => (
                line_of(&record.splitn(3, ' ').skip(1).collect::<Vec<_>>()),
                "write the data as RFC 1035 does, or as TYPE<number> \\# <length> <hex>",
            ),
            ZoneError::Conflict { owner, .. } | ZoneError::TooLarge { owner, .. } => {
                (line_of(&[owner.split('.').next().unwrap_or(owner)]), "see docs/fleet-file.md, zones")
            }
            ZoneError::NothingServed(name) => (line_of(&[name]), "or take the name server out"),
        };
        Mistake { line, column: 1, problem: fault.to_string(), mend: mend.to_owned() }
    };
    zone::check(fleet).into_iter().map(mistake).collect()
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
