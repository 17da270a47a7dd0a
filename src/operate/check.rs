//! `nearcast check`.

use std::path::Path;

use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file;
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
    outln!("{}: OK: {}", arguments.file.display(), summary(&fleet));
    Ok(())
}

fn check_json(path: &Path) -> Result<(), Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::new(FailureKind::NoInput, format!("cannot read the fleet file {}: {e}", path.display())))?;
    let base = path.parent().unwrap_or(Path::new(""));
    match file::parse(&text, base) {
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
