//! `nearcast check`.

use std::collections::HashMap;
use std::path::Path;

use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::{self, Mistake};
use nearcast_gslb_dns::steer;
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
    for warning in warnings(&fleet) {
        eprintln!("{}: warning: {warning}", arguments.file.display());
    }
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
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::new(FailureKind::NoInput, format!("cannot read the fleet file {}: {e}", path.display())))?;
    let base = path.parent().unwrap_or(Path::new(""));
    match file::parse_and_check(&text, base, record_faults) {
        Ok(fleet) => {
            print_json(&json!({"ok": true, "summary": summary(&fleet), "mistakes": [], "warnings": warnings(&fleet)}));
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
    let faults = zone::check(fleet);
    if faults.is_empty() {
        return Vec::new();
    }
    let strings = Strings::new(text);
    let mistake = |fault: ZoneError| {
        let ((line, column), mend) = match &fault {
            // Owner, type, data.
            ZoneError::Record { record, .. } => {
                (strings.record(record).unwrap_or(START), "write the data as RFC 1035 does, or as TYPE<number> \\# <length> <hex>")
            }
            ZoneError::Conflict { zone, owner, .. } | ZoneError::TooLarge { zone, owner, .. } => {
                (strings.owner(zone, owner), "see docs/fleet-file.md, zones")
            }
            ZoneError::NothingServed(name) => (strings.first(name).unwrap_or(START), "or take the name server out"),
        };
        Mistake { line, column, problem: fault.to_string(), mend: mend.to_owned() }
    };
    faults.into_iter().map(mistake).collect()
}

/// Line and column, from 1.
type Place = (usize, usize);

/// Where a file begins, for what cannot be found in it.
const START: Place = (1, 1);

/// The strings of a fleet file with the places where they begin, each found in one step: a file may have as many faults as records.
struct Strings {
    whole: HashMap<String, Place>,
    /// By the first word of several, as records begin with their owner.
    first_word: HashMap<String, Place>,
    /// By type and data, as records end with them.
    data: HashMap<String, Place>,
}

impl Strings {
    fn new(text: &str) -> Self {
        let mut strings = Self { whole: HashMap::new(), first_word: HashMap::new(), data: HashMap::new() };
        for (n, line) in text.lines().enumerate() {
            for (column, content) in strings_of(line) {
                strings.add((n + 1, column), &content);
            }
        }
        strings
    }

    fn add(&mut self, place: Place, content: &str) {
        let mut words = content.trim().splitn(2, char::is_whitespace);
        let (first, mut rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().trim_start());
        self.whole.entry(content.trim().to_owned()).or_insert(place);
        if rest.is_empty() {
            return;
        }
        self.first_word.entry(first.to_ascii_lowercase()).or_insert(place);
        // A class and a TTL may stand before the type.
        for _ in 0..3 {
            let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            self.data.entry(format!("{} {}", word.to_ascii_uppercase(), after.trim_start())).or_insert(place);
            rest = after.trim_start();
        }
    }

    /// Where a record is written, given as `OWNER TYPE DATA`.
    fn record(&self, record: &str) -> Option<Place> {
        let (_, data) = record.split_once(' ')?;
        self.data.get(data.trim_end()).copied()
    }

    /// Where a string is, or the name in `zone = "..."` and the like.
    fn first(&self, whole: &str) -> Option<Place> {
        self.whole.get(whole).copied()
    }

    /// Where the first record of a name is written: relative to its zone, or whole; else where the zone or the site is named.
    fn owner(&self, zone: &str, owner: &str) -> Place {
        let relative = if owner == zone { "@" } else { owner.strip_suffix(zone).map_or(owner, |o| o.trim_end_matches('.')) };
        let whole = format!("{owner}.");
        let record = [relative, &whole].iter().filter_map(|name| self.first_word.get(*name)).min();
        let named = || [owner, relative, zone].iter().filter_map(|name| self.whole.get(*name)).min();
        record.or_else(named).copied().unwrap_or(START)
    }
}

/// The strings of one line of TOML: column of the content, from 1, and content. Those over several lines are not read.
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

/// What may be well, and may keep nodes from doing what the file says.
fn warnings(fleet: &Fleet) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(path) = &fleet.steering.geo_db
        && let Err(failure) = steer::check_geo_db(path)
    {
        warnings.push(format!(
            "steering.geo_db: {failure}; a name server where it is so places clients by the built-in country table until the file is good"
        ));
    }
    warnings
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
        assert_eq!((strings.first("film"), strings.first("not here")), (Some((2, 9)), None));
    }

    #[test]
    fn ten_thousand_sites_and_zones_are_checked_and_each_fault_is_at_its_line() {
        const COUNT: usize = 10_000;
        let text = |zone: &dyn Fn(usize) -> String| {
            let mut text = "[fleet]\nzone = \"cdn.test\"\nnode_key = \"a key of this test alone\"\n[[name_server]]\nname = \"ns1\"\nlisten = \"127.0.0.1:53\"\n\
                            [[cluster]]\nname = \"ams\"\nplace = { latitude = 52.4, longitude = 4.9 }\n[[cluster.node]]\nname = \"ams-1\"\naddress = \"192.0.2.1\"\n"
                .to_owned();
            for n in 0..COUNT {
                text += &format!("[[site]]\nname = \"s{n}\"\nhosts = [\"www.z{n}.test\"]\norigin = \"http://o.test\"\n");
                text += &format!("[[zone]]\nname = \"z{n}.test\"\nrecords = [\n{}\n]\n", zone(n));
            }
            text
        };
        let good = text(&|n| format!("\"@ MX 10 mail{n}\", \"mail{n} A 192.0.2.9\""));
        let fleet = file::parse_and_check(&good, Path::new(""), record_faults).expect("no mistake");
        assert_eq!((fleet.sites.len(), fleet.zones.len()), (COUNT, COUNT));
        // A fault in every zone: the file says where each of them is.
        let bad = text(&|n| format!("\"@ MX 10 mail{n}\", \"svc HTTPS not{n}\""));
        let faults = file::parse_and_check(&bad, Path::new(""), record_faults).expect_err("mistakes");
        assert_eq!(faults.len(), COUNT);
        let lines: Vec<&str> = bad.lines().collect();
        for (n, fault) in faults.iter().enumerate() {
            assert!(lines[fault.line - 1].contains(&format!("not{n}\"")), "{fault:?}");
        }
    }
}
