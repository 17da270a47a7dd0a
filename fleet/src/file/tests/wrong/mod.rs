//! Wrong files: every mistake is found, with its place and a hint. The tables are split by settings.

mod access_log;
mod acme;
mod clusters;
mod control;
mod fleet;
mod name_servers;
mod origin_nodes;
mod site_cache;
mod site_compression;
mod site_limits;
mod site_origin;
mod sites;
mod syntax;
mod tls;
mod zones;

use super::*;

/// The tables, by the file that has them.
const WRONG: &[(&str, &[Case])] = &[
    ("access_log", access_log::CASES),
    ("acme", acme::CASES),
    ("clusters", clusters::CASES),
    ("control", control::CASES),
    ("fleet", fleet::CASES),
    ("name_servers", name_servers::CASES),
    ("origin_nodes", origin_nodes::CASES),
    ("site_cache", site_cache::CASES),
    ("site_compression", site_compression::CASES),
    ("site_limits", site_limits::CASES),
    ("site_origin", site_origin::CASES),
    ("sites", sites::CASES),
    ("syntax", syntax::CASES),
    ("tls", tls::CASES),
    ("zones", zones::CASES),
];

#[test]
fn a_wrong_file_is_told_where_and_what_to_write() {
    let mut failures = String::new();
    let cases = WRONG
        .iter()
        .flat_map(|(settings, cases)| cases.iter().enumerate().map(move |case| (settings, case)));
    for (settings, (n, (old, new, place, column, problem, hint))) in cases {
        assert!(
            LAB.contains(old),
            "{settings} {n}: {old:?} is not in the file"
        );
        let text = LAB.replacen(old, new, 1);
        let at = text
            .find(place)
            .unwrap_or_else(|| panic!("{settings} {n}: {place:?} is not in the file"));
        let line = text[..at].matches('\n').count() + 1;
        match &parse(&text, Path::new("/etc/nearcast"))
            .err()
            .unwrap_or_default()[..]
        {
            [m] if (m.line, m.column) == (line, *column)
                && m.problem.contains(problem)
                && m.hint.contains(hint) => {}
            other => {
                failures += &format!(
                    "{settings} {n}, {new:?}: not one mistake at {line}:{column} but\n{}\n",
                    describe("file", other)
                )
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn all_mistakes_come_at_once_in_file_order() {
    let text = LAB
        .replace("steering = \"geo\"", "steering = \"nearest\"")
        .replace(
            "time_zone = \"Europe/Amsterdam\"",
            "time_zone = \"Asia/Atlantis\"",
        )
        .replacen("off_peak = ", "offpeak = ", 1)
        .replace("ttl = \"5s\"", "ttl = \"5 fortnights\"");
    let mistakes = parse(&text, Path::new("/")).expect_err("wrong");
    assert_eq!(mistakes.len(), 4, "{}", describe("file", &mistakes));
    assert!(mistakes.is_sorted_by_key(|m| (m.line, m.column)));
}
