//! Compiles one zone: the fleet file's records, and the ones that follow from the fleet (SOA, name
//! servers, delegations, glue, sites), checked against one another.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nearcast_fleet::config::{Fleet, Zone};

use super::layout::{Layout, NEGATIVE_TTL_MAX, SiteHost, absolute};
use super::text::{self, DataError};
use super::{Address, RrSet, ZoneError};
use crate::message::registry::{type_mnemonic, type_number};
use crate::message::{self, rtype};

/// TTL of the CDN zone's name servers and their addresses.
const INFRASTRUCTURE_TTL: u32 = 3600;
/// Negative TTL of the CDN's own zone: a new site must not stay unknown for long.
const CDN_NEGATIVE_TTL: u32 = 60;
/// SOA REFRESH, RETRY and EXPIRE. These zones are not transferred; the values suit secondaries of a
/// copy.
const SOA_TIMERS: [u32; 3] = [3600, 600, 1_209_600];
/// TTLs above are invalid (RFC 2181 section 8).
const TTL_MAX: u32 = i32::MAX as u32;
/// Most bytes of records of one name and type. A message has 65,535; the aliases before them and
/// OPT need some.
const SET_BYTES_MAX: usize = 60_000;
/// Bytes of a record before its data when its owner is a pointer.
const RECORD_HEAD_BYTES: usize = 12;

/// A zone while it is compiled.
pub(super) struct Builder {
    pub(super) apex: Vec<u8>,
    pub(super) text: String,
    pub(super) names: BTreeMap<Vec<u8>, NameBuilder>,
    pub(super) soa: Vec<u8>,
    pub(super) negative_ttl: u32,
    pub(super) serial: u32,
    pub(super) errors: Vec<ZoneError>,
}

#[derive(Default)]
pub(super) struct NameBuilder {
    pub(super) sets: BTreeMap<u16, SetBuilder>,
    pub(super) site: Option<usize>,
}

pub(super) struct SetBuilder {
    pub(super) ttl: u32,
    pub(super) data: Vec<Vec<u8>>,
    /// Their size in a message. Beyond [`SET_BYTES_MAX`] no more are added.
    pub(super) bytes: usize,
}

impl Builder {
    pub(super) fn build(
        layout: &Layout<'_>,
        number: usize,
        serial: u32,
    ) -> Result<Self, Vec<ZoneError>> {
        let fleet = layout.fleet;
        let zone: &Zone = &layout.zones[number];
        let text = if zone.name.is_empty() {
            ".".to_owned()
        } else {
            zone.name.clone()
        };
        let apex = match &layout.apexes[number] {
            Ok(apex) => apex.clone(),
            Err(source) => {
                return Err(vec![ZoneError::Record {
                    zone: text,
                    record: zone.name.clone(),
                    source: source.clone(),
                }]);
            }
        };
        let is_cdn = number == 0;
        let ttl = u32::try_from(zone.ttl.as_secs())
            .unwrap_or(TTL_MAX)
            .min(TTL_MAX);
        let negative_ttl = if is_cdn {
            CDN_NEGATIVE_TTL
        } else {
            ttl.min(NEGATIVE_TTL_MAX)
        };
        let mut b = Self {
            apex,
            text,
            names: BTreeMap::new(),
            soa: Vec::new(),
            negative_ttl,
            serial,
            errors: Vec::new(),
        };
        b.names.insert(b.apex.clone(), NameBuilder::default());

        for record in &zone.records {
            let added = b.written_record(record);
            b.note(
                || format!("{} {} {}", record.owner, record.rtype, record.data),
                added,
            );
        }

        let ns_ttl = if is_cdn { INFRASTRUCTURE_TTL } else { ttl };
        let added = b.apex_records(layout, zone, ttl, ns_ttl);
        b.note(|| "the apex".to_owned(), added);
        b.delegations(layout, number, ns_ttl);
        b.name_server_hosts(fleet, layout, ns_ttl);
        b.sites(layout, number, ttl);
        b.check();
        b.fill_empty_non_terminals();

        if b.errors.is_empty() {
            Ok(b)
        } else {
            Err(b.errors)
        }
    }

    fn note(&mut self, record: impl FnOnce() -> String, result: Result<(), DataError>) {
        if let Err(source) = result {
            self.errors.push(ZoneError::Record {
                zone: self.text.clone(),
                record: record(),
                source,
            });
        }
    }

    fn conflict(&mut self, owner: &[u8], reason: &'static str) {
        self.errors.push(ZoneError::Conflict {
            zone: self.text.clone(),
            owner: message::presentation(owner),
            reason,
        });
    }

    fn add(&mut self, owner: Vec<u8>, rtype: u16, ttl: u32, data: Vec<u8>) {
        let set = self
            .names
            .entry(owner)
            .or_default()
            .sets
            .entry(rtype)
            .or_insert(SetBuilder {
                ttl,
                data: Vec::new(),
                bytes: 0,
            });
        set.ttl = set.ttl.min(ttl);
        if set.bytes <= SET_BYTES_MAX && !set.data.contains(&data) {
            set.bytes += RECORD_HEAD_BYTES + data.len();
            set.data.push(data);
        }
    }

    fn add_address(&mut self, owner: &[u8], ttl: u32, address: IpAddr) {
        match address {
            IpAddr::V4(a) => self.add(owner.to_vec(), rtype::A, ttl, a.octets().to_vec()),
            IpAddr::V6(a) => self.add(owner.to_vec(), rtype::AAAA, ttl, a.octets().to_vec()),
        }
    }

    fn written_record(&mut self, record: &nearcast_fleet::config::Record) -> Result<(), DataError> {
        let owner = absolute(&record.owner)?;
        if !message::is_at_or_below(&owner, &self.apex) {
            self.conflict(
                &owner,
                "the name is not in this zone; move the record to its own zone",
            );
            return Ok(());
        }
        let rtype =
            type_number(&record.rtype).ok_or_else(|| DataError::Type(record.rtype.clone()))?;
        if rtype == rtype::SOA || rtype == rtype::OPT || (rtype::TKEY..=rtype::ANY).contains(&rtype)
        {
            self.conflict(&owner, "SOA is made by the name server and query types are no records; leave the record out");
            return Ok(());
        }
        let data = text::data(rtype, &record.data, &self.apex)?;
        self.add(owner, rtype, record.ttl.min(TTL_MAX), data);
        Ok(())
    }

    /// SOA and, unless the file gives them, NS.
    fn apex_records(
        &mut self,
        layout: &Layout<'_>,
        zone: &Zone,
        ttl: u32,
        ns_ttl: u32,
    ) -> Result<(), DataError> {
        let mut hosts = zone
            .name_servers
            .iter()
            .filter_map(|&s| layout.servers.get(s));
        let mname = hosts.next().cloned().unwrap_or_else(|| vec![0]);
        let rname = mailbox(&layout.fleet.hostmaster)?;
        let mut soa = [mname, rname].concat();

        for n in [self.serial]
            .into_iter()
            .chain(SOA_TIMERS)
            .chain([self.negative_ttl])
        {
            soa.extend_from_slice(&n.to_be_bytes());
        }

        self.soa.clone_from(&soa);
        self.add(
            self.apex.clone(),
            rtype::SOA,
            ttl.max(self.negative_ttl),
            soa,
        );

        if !self
            .names
            .get(&self.apex)
            .is_some_and(|b| b.sets.contains_key(&rtype::NS))
        {
            for host in zone
                .name_servers
                .iter()
                .filter_map(|&s| layout.servers.get(s))
            {
                self.add(self.apex.clone(), rtype::NS, ns_ttl, host.clone());
            }
        }

        Ok(())
    }

    /// NS records for zones of the fleet directly below this one, unless the file delegates them.
    fn delegations(&mut self, layout: &Layout<'_>, number: usize, ttl: u32) {
        for &child in &layout.children[number] {
            let Ok(apex) = &layout.apexes[child] else {
                continue;
            };
            let is_delegated = |name: &[u8]| {
                self.names
                    .get(name)
                    .is_some_and(|b| b.sets.contains_key(&rtype::NS))
            };
            // A delegation above the child covers it.
            let mut at = Some(apex.as_slice());
            let mut is_cut = false;
            while let Some(name) = at.filter(|n| n.len() > self.apex.len()) {
                is_cut |= is_delegated(name);
                at = message::parent(name);
            }
            if is_cut {
                continue;
            }
            for host in layout.zones[child]
                .name_servers
                .iter()
                .filter_map(|&s| layout.servers.get(s))
            {
                self.add(apex.clone(), rtype::NS, ttl, host.clone());
            }
        }
    }

    /// Addresses of the fleet's name servers with hosts in this zone: authoritative, or glue below
    /// a delegation.
    fn name_server_hosts(&mut self, fleet: &Fleet, layout: &Layout<'_>, ttl: u32) {
        for (server, host) in fleet.name_servers.iter().zip(&layout.servers) {
            let holds = |t: u16| {
                self.names
                    .get(host)
                    .is_some_and(|b| b.sets.contains_key(&t))
            };
            if !message::is_at_or_below(host, &self.apex)
                || holds(rtype::A)
                || holds(rtype::AAAA)
                || holds(rtype::CNAME)
            {
                continue;
            }
            for &address in &server.addresses {
                self.add_address(host, ttl, address);
            }
        }
    }

    /// Steered names in the CDN's zone; in other zones the sites' hosts that have no address
    /// records of their own.
    fn sites(&mut self, layout: &Layout<'_>, number: usize, ttl: u32) {
        for SiteHost {
            owner,
            site,
            is_steered,
        } in &layout.hosts[number]
        {
            let built = self.names.entry(owner.clone()).or_default();
            let holds = |t: u16| built.sets.contains_key(&t);

            if *is_steered {
                if holds(rtype::A) || holds(rtype::AAAA) || holds(rtype::CNAME) {
                    let reason = "a site's steered name has an address or CNAME record; leave the record out or rename the site";
                    self.conflict(owner, reason);
                } else {
                    built.site = Some(*site);
                }
                continue;
            }

            let is_taken = [rtype::A, rtype::AAAA, rtype::CNAME, rtype::NS]
                .into_iter()
                .any(holds);
            if *owner == self.apex {
                // A CNAME cannot exist beside SOA and NS (RFC 1034 section 3.6.2), so the apex
                // itself is steered.
                if !holds(rtype::A) && !holds(rtype::AAAA) {
                    built.site = Some(*site);
                }
            } else if built.site.is_none() && !is_taken {
                if built.sets.is_empty() {
                    self.add(
                        owner.clone(),
                        rtype::CNAME,
                        ttl,
                        layout.steered[*site].clone(),
                    );
                } else {
                    // A CNAME cannot exist beside other records, so the name itself is steered.
                    built.site = Some(*site);
                }
            }
        }
    }

    /// Finds records that contradict one another or do not fit into a message.
    fn check(&mut self) {
        let faults: Vec<(Vec<u8>, &'static str)> = self
            .names
            .iter()
            .filter_map(|(owner, b)| Some((owner.clone(), self.fault(owner, b)?)))
            .collect();
        for (owner, reason) in faults {
            self.conflict(&owner, reason);
        }
        let large: Vec<(Vec<u8>, u16)> = self
            .names
            .iter()
            .flat_map(|(owner, b)| b.sets.iter().map(move |(rtype, set)| (owner, rtype, set)))
            .filter(|(_, _, set)| set.bytes > SET_BYTES_MAX)
            .map(|(owner, rtype, _)| (owner.clone(), *rtype))
            .collect();
        for (owner, rtype) in large {
            let rtype = type_mnemonic(rtype).map_or_else(|| format!("TYPE{rtype}"), str::to_owned);
            self.errors.push(ZoneError::TooLarge {
                zone: self.text.clone(),
                owner: message::presentation(&owner),
                rtype,
            });
        }
    }

    fn fault(&self, owner: &[u8], built: &NameBuilder) -> Option<&'static str> {
        let holds = |t: u16| built.sets.contains_key(&t);
        let is_apex = owner == self.apex;
        match built.sets.get(&rtype::CNAME) {
            Some(set) if set.data.len() > 1 => return Some("more than one CNAME; keep one"),
            // RFC 2181 section 10.1.
            Some(_) if built.sets.len() > 1 || built.site.is_some() => {
                return Some("a CNAME stands beside other records; keep either");
            }
            _ => {}
        }

        match built.sets.get(&rtype::DNAME) {
            Some(set) if set.data.len() > 1 => return Some("more than one DNAME; keep one"),
            // RFC 6672 section 2.3.
            Some(_) if holds(rtype::NS) && !is_apex => {
                return Some("a DNAME stands beside a delegation; keep either");
            }
            _ => {}
        }

        if self
            .above(owner)
            .any(|(_, b)| b.sets.contains_key(&rtype::DNAME))
        {
            // RFC 6672 section 2.4.
            return Some(
                "it is below a DNAME, which stands for every name there; leave either out",
            );
        }

        if let Some(set) = built.sets.get(&rtype::NS) {
            if owner.starts_with(b"\x01*") && !is_apex {
                return Some(
                    "a wildcard cannot be delegated (RFC 4592 section 4.2); delegate each name",
                );
            }
            for host in &set.data {
                let host = host.to_ascii_lowercase();
                if self.is_alias(&host) {
                    return Some(
                        "a name server's host is a CNAME (RFC 2181 section 10.3); name the host that has the addresses",
                    );
                }
                if self.lacks_address(&host, owner) {
                    return Some(
                        "a name server in this zone has no address; add an A or AAAA record for it",
                    );
                }
            }
        }

        let mail = built.sets.get(&rtype::MX).filter(|set| {
            set.data
                .iter()
                .any(|d| self.is_alias(&d[2..].to_ascii_lowercase()))
        });
        mail.map(|_| "a mail host is a CNAME (RFC 2181 section 10.3); name the host that has the addresses")
    }

    /// The existing names above one, up to the apex.
    fn above<'s>(&'s self, name: &'s [u8]) -> impl Iterator<Item = (&'s [u8], &'s NameBuilder)> {
        let first = message::parent(name).filter(|_| name.len() > self.apex.len());
        let names = std::iter::successors(first, |n| {
            message::parent(n).filter(|_| n.len() > self.apex.len())
        });
        names.filter_map(|n| Some((n, self.names.get(n)?)))
    }

    fn is_alias(&self, host: &[u8]) -> bool {
        self.names
            .get(host)
            .is_some_and(|b| b.sets.contains_key(&rtype::CNAME))
    }

    /// Whether a name server of the delegation or apex `owner` is in this zone and has no address,
    /// neither its own nor by a wildcard.
    fn lacks_address(&self, host: &[u8], owner: &[u8]) -> bool {
        if !message::is_at_or_below(host, &self.apex) {
            return false;
        }
        let has_address = |b: &NameBuilder| {
            b.site.is_some() || b.sets.contains_key(&rtype::A) || b.sets.contains_key(&rtype::AAAA)
        };
        if self.names.get(host).is_some_and(has_address) {
            return false;
        }
        if owner.len() > self.apex.len() && message::is_at_or_below(host, owner) {
            return true;
        }
        // Names below another delegation belong to that zone, and a wildcard gives its names
        // addresses.
        !self.above(host).any(|(name, b)| {
            (name.len() > self.apex.len() && b.sets.contains_key(&rtype::NS))
                || self.names.contains_key(&[b"\x01*", name].concat())
        })
    }

    fn fill_empty_non_terminals(&mut self) {
        let owners: Vec<Vec<u8>> = self.names.keys().cloned().collect();
        for owner in owners {
            let mut at = message::parent(&owner);
            while let Some(name) = at.filter(|n| n.len() > self.apex.len()) {
                self.names.entry(name.to_vec()).or_default();
                at = message::parent(name);
            }
        }
    }

    /// The immutable form of a set, with addresses for name servers.
    pub(super) fn finish(&self, owner: &[u8], rtype: u16, set: &SetBuilder) -> RrSet {
        let mut additional = Vec::new();
        if rtype == rtype::NS {
            for host in &set.data {
                let host = host.to_ascii_lowercase();
                let Some(built) = self.names.get(&host) else {
                    continue;
                };
                for kind in [rtype::A, rtype::AAAA] {
                    let Some(addresses) = built.sets.get(&kind) else {
                        continue;
                    };
                    additional.extend(addresses.data.iter().map(|data| Address {
                        owner: host.clone().into_boxed_slice(),
                        rtype: kind,
                        ttl: addresses.ttl,
                        data: data.clone().into_boxed_slice(),
                        is_required: message::is_at_or_below(&host, owner),
                    }));
                }
            }
            // Required addresses come first, so that optional ones can be left out.
            additional.sort_by_key(|a| !a.is_required);
        }

        RrSet {
            rtype,
            ttl: set.ttl,
            data: set
                .data
                .iter()
                .map(|d| d.clone().into_boxed_slice())
                .collect(),
            additional: additional.into_boxed_slice(),
        }
    }
}

/// A mailbox as SOA RNAME (RFC 1035 section 8): the local part is one label.
fn mailbox(address: &str) -> Result<Vec<u8>, DataError> {
    let Some((local, domain)) = address.split_once('@') else {
        return absolute(address.trim_end_matches('.'));
    };
    let domain = absolute(domain.trim_end_matches('.'))?;
    let len = u8::try_from(local.len())
        .ok()
        .filter(|l| (1..=63).contains(l));
    let len = len.ok_or_else(|| DataError::Name {
        text: address.to_owned(),
        reason: "its local part is not 1 to 63 bytes long",
    })?;
    Ok([&[len], local.as_bytes(), &domain].concat())
}
