//! How the zones of a fleet relate to one another: parents, children, and the zone of each host.

use std::borrow::Cow;
use std::collections::HashMap;

use nearcast_fleet::config::{Fleet, Site, Zone};

use super::ZoneError;
use super::text::{self, DataError};
use crate::message;

/// TTL of SOA records where the zone sets none, and the most a negative answer is kept (RFC 2308
/// section 5).
pub(super) const NEGATIVE_TTL_MAX: u32 = 300;

/// The relations among the zones of a fleet, worked out once: comparing every zone with every other
/// zone and site would take a hundred million steps for ten thousand of them.
pub(super) struct Layout<'f> {
    pub(super) fleet: &'f Fleet,
    /// The CDN's own zone first, with the records that the file gives for it.
    pub(super) zones: Vec<Cow<'f, Zone>>,
    /// Apexes in wire form.
    pub(super) apexes: Vec<Result<Vec<u8>, DataError>>,
    pub(super) by_apex: HashMap<Vec<u8>, usize>,
    /// The zones directly below each zone.
    pub(super) children: Vec<Vec<usize>>,
    /// The names in each zone that lead to sites, in file order.
    pub(super) hosts: Vec<Vec<SiteHost>>,
    /// Steered names of the sites.
    pub(super) steered: Vec<Vec<u8>>,
    /// Hosts of the name servers.
    pub(super) servers: Vec<Vec<u8>>,
    /// Names that have no wire form; reported with the faults of the zones.
    pub(super) faults: Vec<ZoneError>,
}

/// A name that leads to a site.
pub(super) struct SiteHost {
    pub(super) owner: Vec<u8>,
    pub(super) site: usize,
    /// Whether it is the site's own name below the CDN's zone.
    pub(super) is_steered: bool,
}

impl<'f> Layout<'f> {
    pub(super) fn new(fleet: &'f Fleet) -> Self {
        let given = fleet
            .zones
            .iter()
            .find(|z| z.name == fleet.zone)
            .map(Cow::Borrowed);
        let own = given.unwrap_or_else(|| {
            Cow::Owned(Zone {
                name: fleet.zone.clone(),
                ttl: std::time::Duration::from_secs(u64::from(NEGATIVE_TTL_MAX)),
                name_servers: fleet.zone_name_servers.clone(),
                records: Vec::new(),
            })
        });
        let others = fleet
            .zones
            .iter()
            .filter(|z| z.name != fleet.zone)
            .map(Cow::Borrowed);
        let zones: Vec<Cow<'f, Zone>> = std::iter::once(own).chain(others).collect();
        let apexes: Vec<_> = zones.iter().map(|z| absolute(&z.name)).collect();
        let mut by_apex = HashMap::with_capacity(zones.len());

        for (number, apex) in apexes.iter().enumerate() {
            if let Ok(apex) = apex {
                by_apex.entry(apex.clone()).or_insert(number);
            }
        }

        let mut layout = Self {
            fleet,
            children: zones.iter().map(|_| Vec::new()).collect(),
            hosts: zones.iter().map(|_| Vec::new()).collect(),
            zones,
            apexes,
            by_apex,
            steered: Vec::with_capacity(fleet.sites.len()),
            servers: Vec::with_capacity(fleet.name_servers.len()),
            faults: Vec::new(),
        };

        for child in 0..layout.zones.len() {
            let parent = layout.apexes[child]
                .as_ref()
                .ok()
                .and_then(|apex| message::parent(apex))
                .and_then(|above| layout.closest(above));
            if let Some(parent) = parent {
                layout.children[parent].push(child);
            }
        }

        for server in &fleet.name_servers {
            let host = layout.name(&server.host, "a name server's host");
            layout.servers.push(host);
        }
        for (number, site) in fleet.sites.iter().enumerate() {
            layout.add_site(number, site);
        }

        layout
    }

    fn add_site(&mut self, number: usize, site: &Site) {
        let steered = self.name(&self.fleet.steered_name(site), "a site's name");
        self.hosts[0].push(SiteHost {
            owner: steered.clone(),
            site: number,
            is_steered: true,
        });
        for host in site.hosts.iter().filter(|h| *h != "*") {
            let owner = self.name(host, "a site's host");
            if let Some(zone) = self.closest(&owner).filter(|_| owner != steered) {
                self.hosts[zone].push(SiteHost {
                    owner,
                    site: number,
                    is_steered: false,
                });
            }
        }
        self.steered.push(steered);
    }

    /// The wire form of a name; if it has none, that is a fault and the root takes its place.
    fn name(&mut self, text: &str, what: &str) -> Vec<u8> {
        absolute(text).unwrap_or_else(|source| {
            self.faults.push(ZoneError::Record {
                zone: self.zones[0].name.clone(),
                record: format!("{what}, {text}"),
                source,
            });
            vec![0]
        })
    }

    /// The deepest zone of the fleet that holds a name.
    fn closest(&self, name: &[u8]) -> Option<usize> {
        let mut names = std::iter::successors(Some(name), |n| message::parent(n));
        names.find_map(|n| self.by_apex.get(n).copied())
    }
}

/// The wire form of an absolute name without its final dot, as the fleet's types hold it, in lower
/// case.
pub(super) fn absolute(text: &str) -> Result<Vec<u8>, DataError> {
    if text.is_empty() {
        return Ok(vec![0]);
    }
    text::name(text, &[0]).map(|w| w.to_ascii_lowercase())
}
