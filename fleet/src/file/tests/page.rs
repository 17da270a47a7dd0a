//! `docs/fleet-file.md` lists the settings, defaults and requirements of the code.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const PAGE: &str = include_str!("../../../../docs/fleet-file.md");

/// Every section, with what is required.
const BASE: &str = r#"[fleet]
zone = "cdn.test"
node_key = "a key that only this test knows"
[clock]
[clients]
[tls]
[[certificate]]
cert = "www.pem"
key = "www.key"
[acme]
terms_agreed = true
[[acme.authority]]
name = "letsencrypt"
[access_log]
path = "access.log"
[control]
[control.push]
[steering]
[steering.health]
[[origin_node]]
name = "origin"
listen = "127.0.0.1:8000"
root = "content"
[[origin_node.rule]]
pattern = "**"
cache_control = "no-store"
[[name_server]]
name = "ns1"
listen = "127.0.0.1:5300"
[[cluster]]
name = "ams"
place = { latitude = 1, longitude = 1 }
[[cluster.node]]
name = "ams-1"
address = "192.0.2.1"
[cluster.node.clients]
[[site]]
name = "www"
origin = "http://192.0.2.80"
[site.cache]
[site.compression]
[site.limits]
[site.https]
[[zone]]
name = "demo.test"
"#;

/// Settings in the page's tables: by section, each with its default as written.
fn tables() -> BTreeMap<String, Vec<(String, String)>> {
    let mut tables: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut section = None;
    for line in PAGE.lines() {
        if line.starts_with('#') {
            let header = line
                .split_once('`')
                .and_then(|(_, rest)| rest.split_once('`'))
                .map(|(header, _)| header);
            section = header.map(|h| h.trim_matches(['[', ']']).to_owned());
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let (Some(section), [_, key, default, ..]) = (&section, &cells[..])
            && let Some(key) = key.strip_prefix('`').and_then(|k| k.strip_suffix('`'))
        {
            tables
                .entry(section.clone())
                .or_default()
                .push((key.to_owned(), (*default).to_owned()));
        }
    }
    tables
}

#[test]
fn it_has_every_setting_and_no_other() {
    let tables = tables();
    for (section, settings) in SETTINGS.iter().filter(|(s, _)| !s.is_empty()) {
        let keys = settings.names;
        if *section == "cluster.place" {
            assert!(
                keys.iter()
                    .all(|key| PAGE.contains(&format!("`{key}` in degrees")))
            );
            continue;
        }
        let listed: BTreeSet<&str> = tables
            .get(*section)
            .into_iter()
            .flatten()
            .map(|(key, _)| key.as_str())
            .collect();
        assert_eq!(listed, keys.iter().copied().collect(), "[{section}]");
    }
    for section in tables.keys() {
        assert!(
            SETTINGS.iter().any(|(s, _)| s == section),
            "there is no section [{section}]"
        );
    }
}

#[test]
fn its_defaults_are_those_of_the_code() {
    let base = fleet_of(BASE);
    let mut checked = 0;
    for (section, rows) in tables() {
        let header = [format!("[{section}]\n"), format!("[[{section}]]\n")]
            .into_iter()
            .find(|h| BASE.contains(h))
            .expect("every section");
        for (key, default) in rows {
            let Some(literal) = default.strip_prefix('`').and_then(|d| d.strip_suffix('`')) else {
                continue;
            };
            if !literal.starts_with(|c: char| c == '"' || c.is_ascii_digit())
                && !["true", "false"].contains(&literal)
            {
                continue;
            }
            let text = BASE.replacen(&header, &format!("{header}{key} = {literal}\n"), 1);
            assert_eq!(fleet_of(&text), base, "{section}.{key} = {literal}");
            checked += 1;
        }
    }
    assert!(
        checked >= 30,
        "only {checked} defaults were found in the page"
    );
}

#[test]
fn what_it_says_is_required_is() {
    for (section, rows) in tables() {
        for (key, _) in rows.iter().filter(|(_, default)| default == "required") {
            let header = BASE.find(&format!("[{section}]")).expect("every section");
            // A section below this one, or a line of it.
            let lines = if key == "node" {
                ("\n[[cluster.node]]", 4)
            } else {
                (&*format!("\n{key} = "), 1)
            };
            let at = header
                + BASE[header..]
                    .find(lines.0)
                    .expect("what is required is there")
                + 1;
            let rest: String = BASE[at..].split_inclusive('\n').skip(lines.1).collect();
            let mistakes = parse(&format!("{}{rest}", &BASE[..at]), Path::new("/"))
                .err()
                .unwrap_or_default();
            assert!(
                mistakes.iter().any(|m| m
                    .problem
                    .ends_with(&format!("{key}: this setting is required"))),
                "{section}.{key}"
            );
        }
    }
}

#[test]
fn its_examples_are_good() {
    let blocks: Vec<&str> = PAGE
        .split("```toml\n")
        .skip(1)
        .filter_map(|b| b.split_once("```"))
        .map(|(block, _)| block)
        .collect();
    let [smallest, grown, apart, https, zone] = &blocks[..] else {
        panic!("five examples")
    };
    assert!(smallest.lines().count() < 20);
    assert_eq!(*smallest, SMALLEST);
    let with = grown.replacen("[fleet]\n", "", 1).replace(
        "node_key_file = \"/etc/nearcast/node.key\"",
        "node_key = \"a key that only this test knows\"",
    );
    let (key, rest) = with
        .split_once("\n\n")
        .expect("the key's line, then sections");
    let whole = format!(
        "{}\n{rest}\n{zone}",
        smallest.replacen("[fleet]\n", &format!("[fleet]\n{key}\n"), 1)
    );
    let fleet = fleet_of(&whole);
    assert_eq!(
        (
            fleet.name_servers.len(),
            fleet.zones.len(),
            fleet.control.is_some()
        ),
        (1, 1, true)
    );
    let on_several = format!(
        "{}\n{apart}",
        smallest.replacen("[fleet]\n", &format!("[fleet]\n{key}\n"), 1)
    );
    let fleet = fleet_of(&on_several);
    assert_eq!(
        fleet.control.map(|c| c.url),
        Some("http://10.0.0.5:7700".to_owned())
    );
    assert_eq!(fleet.name_servers[0].admin_url, "http://10.0.0.53:9153");

    let (fleet_lines, control) = https.split_once("\n\n").expect("two sections");
    let settings = fleet_lines.replacen("[fleet]\n", &format!("[fleet]\n{key}\n"), 1);
    let encrypted = format!("{}\n{control}", smallest.replacen("[fleet]", &settings, 1));
    let fleet = fleet_of(&encrypted);
    assert!(fleet.ca.is_some() && fleet.admin_identity.is_some());
    assert!(fleet.control.is_some_and(|c| c.identity.is_some()));
}

/// The examples of `docs/certificates.md`, each with the settings that it leaves out.
#[test]
fn the_examples_of_the_page_on_certificates_are_good() {
    const CERTIFICATES: &str = include_str!("../../../../docs/certificates.md");
    let blocks = CERTIFICATES.split("```toml\n").skip(1);
    let mut authorities = 0;
    for (number, block) in blocks
        .filter_map(|block| block.split_once("```"))
        .map(|(block, _)| block)
        .enumerate()
    {
        let block: String = block
            .lines()
            .map(|line| format!("{}\n", line.trim()))
            .collect();
        let acme = if block.contains("[acme]") {
            ""
        } else {
            "[acme]\nterms_agreed = true\n"
        };
        let rest = "[control]\n[[name_server]]\nname = \"ns1\"\nlisten = \"192.0.2.53:53\"\n";
        let keyed = SMALLEST
            .replace(
                "[fleet]",
                "[fleet]\nnode_key = \"a key that only this test knows\"",
            )
            .replace(
                "\"www.example.org\"",
                "\"www.example.org\", \"example.org\"",
            );
        let fleet = fleet_of(&format!("{keyed}{rest}{acme}{block}"));
        let acme = fleet.acme.unwrap_or_else(|| panic!("{number}"));
        authorities += acme.authorities.len();
    }
    assert_eq!(authorities, 5, "one each, two in the list of several");
}
