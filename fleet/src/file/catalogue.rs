//! Every section with its settings, and the warnings about former names.
//!
//! The list of a section is in the section's module. Readers assert that they read listed settings
//! only, and a test checks that every listed setting is read.

use toml::de::{DeTable, DeValue};

use super::access_log::ACCESS_LOG;
use super::acme::{ACME, AUTHORITY};
use super::clusters::{CLUSTER, NODE, PLACE};
use super::compression::COMPRESSION;
use super::control::{CONTROL, PUSH};
use super::fleet_section::{CLIENTS, CLOCK, FLEET};
use super::mistakes::{Mistake, Mistakes};
use super::name_servers::NAME_SERVER;
use super::origin_nodes::{ORIGIN_NODE, RULE};
use super::settings::Settings;
use super::site_https::HTTPS;
use super::sites::{CACHE, LIMITS, SITE};
use super::steering::{HEALTH, STEERING};
use super::tls::{CERTIFICATE, TLS};
use super::zones::ZONE;

/// Sections of a fleet file.
pub(super) const ROOT: Settings = Settings::of(&[
    "fleet",
    "clock",
    "clients",
    "access_log",
    "control",
    "tls",
    "certificate",
    "acme",
    "steering",
    "origin_node",
    "name_server",
    "cluster",
    "site",
    "zone",
]);

/// Every section with its settings.
pub(super) const SETTINGS: &[(&str, Settings)] = &[
    ("", ROOT),
    ("fleet", FLEET),
    ("clock", CLOCK),
    ("clients", CLIENTS),
    ("access_log", ACCESS_LOG),
    ("control", CONTROL),
    ("control.push", PUSH),
    ("tls", TLS),
    ("certificate", CERTIFICATE),
    ("acme", ACME),
    ("acme.authority", AUTHORITY),
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
    ("site.compression", COMPRESSION),
    ("site.limits", LIMITS),
    ("site.https", HTTPS),
    ("zone", ZONE),
];

/// A warning for every setting that a fleet file calls by a former name, in file order.
pub fn renamed_settings(text: &str) -> Vec<Mistake> {
    let (table, _) = DeTable::parse_recoverable(text);
    let warnings = Mistakes::new(text);
    for (section, settings) in SETTINGS {
        if settings.former.is_empty() {
            continue;
        }
        let path: Vec<&str> = section.split('.').filter(|key| !key.is_empty()).collect();
        each_table(table.get_ref(), &path, "", &mut |table, path| {
            for key in table.keys() {
                if let Some(present) = settings.present_name(key.get_ref()) {
                    warnings.note(
                        key.span().start,
                        format!("{path}{}: this setting was renamed", key.get_ref()),
                        format!("write {present}; the former name works for one more release"),
                    );
                }
            }
        });
    }
    warnings.into_sorted()
}

/// Calls `visit` with every table at `path` and its dotted path, which ends with a dot.
fn each_table<'a>(
    table: &'a DeTable<'a>,
    path: &[&str],
    above: &str,
    visit: &mut impl FnMut(&'a DeTable<'a>, &str),
) {
    let Some((first, rest)) = path.split_first() else {
        return visit(table, above);
    };
    match table.get(*first).map(|value| value.get_ref()) {
        Some(DeValue::Table(below)) => each_table(below, rest, &format!("{above}{first}."), visit),
        Some(DeValue::Array(values)) => {
            for (n, value) in values.iter().enumerate() {
                if let DeValue::Table(below) = value.get_ref() {
                    each_table(below, rest, &format!("{above}{first}[{n}]."), visit);
                }
            }
        }
        _ => {}
    }
}
