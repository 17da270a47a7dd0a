//! The sections `[[zone]]` and their records.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::reader::Section;
use super::record;
use super::settings::Settings;
use super::values::{DAY, references, zone_name};
use crate::config::{NameServer, Record, Zone};

/// Settings of `[[zone]]`.
pub(super) const ZONE: Settings = Settings::of(&["name", "ttl", "name_servers", "records"]);

/// The default.
const ZONE_TTL: Duration = Duration::from_secs(300);

/// What is known of the CDN's own zone before the zones are checked.
pub(super) struct OwnZone<'f> {
    pub(super) zone: &'f str,
    pub(super) name_servers: &'f [usize],
    /// The sites' names.
    pub(super) sites: HashSet<&'f str>,
}

impl<'f> OwnZone<'f> {
    /// The site whose steered name this is.
    fn site_of(&self, owner: &str) -> Option<&'f str> {
        let name = owner.strip_suffix(self.zone)?.strip_suffix('.')?;
        self.sites.get(name).copied()
    }
}

pub(super) fn check_zones(
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
            Err((problem, hint)) => text.note(problem, hint),
        }
    }
    record::check_together(&records);
    records.into_iter().map(|(record, _)| record).collect()
}
