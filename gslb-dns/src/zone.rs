//! The zones that one name server serves, compiled from the fleet file: immutable, shared, looked up by one hash.
//!
//! Owns which names exist, what they hold, where delegations cut a zone and which names are steered (RFC 1034 section
//! 4.2, RFC 2181, RFC 4592). Knows no messages, no clients and no clocks: the serial is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

use nearcast_fleet::config::{Fleet, Zone};

use crate::rdata::{self, DataError};
use crate::wire::{self, rtype};

/// TTL of the CDN zone's name servers and their addresses.
const INFRASTRUCTURE_TTL: u32 = 3600;
/// TTL of SOA records where the zone sets none, and the most a negative answer is kept (RFC 2308 section 5).
const NEGATIVE_TTL_MAX: u32 = 300;
/// Negative TTL of the CDN's own zone: a new site must not stay unknown for long.
const CDN_NEGATIVE_TTL: u32 = 60;
/// SOA REFRESH, RETRY, EXPIRE: nobody transfers these zones, so they are what secondaries of a copy would want.
const SOA_TIMERS: [u32; 3] = [3600, 600, 1_209_600];
/// TTLs above are invalid (RFC 2181 section 8).
const TTL_MAX: u32 = i32::MAX as u32;

/// Most bytes of records of one name and type. A message has 65,535; the aliases before them and OPT need some.
const SET_BYTES_MAX: usize = 60_000;
/// Bytes of a record before its data when its owner is a pointer.
const RECORD_HEAD_BYTES: usize = 12;

/// Why zones could not be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// A record cannot be used.
    #[error("zone {zone}: record {record:?}: {source}")]
    Record {
        /// Apex.
        zone: String,
        /// As written.
        record: String,
        /// The fault.
        source: DataError,
    },
    /// A record contradicts another.
    #[error("zone {zone}: {owner}: {reason}")]
    Conflict {
        /// Apex.
        zone: String,
        /// Where.
        owner: String,
        /// What and the mend.
        reason: &'static str,
    },
    /// A set is larger than a message.
    #[error("zone {zone}: {owner}: its {rtype} records do not fit into one message; spread them over several names")]
    TooLarge {
        /// Apex.
        zone: String,
        /// Where.
        owner: String,
        /// Their type.
        rtype: String,
    },
    /// This node serves nothing.
    #[error("no zone names {0:?} among its name servers: add it to name_servers of a zone or start another node")]
    NothingServed(String),
}

/// Records of one name and type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RrSet {
    /// Type.
    pub rtype: u16,
    /// TTL of all of them (RFC 2181 section 5.2).
    pub ttl: u32,
    /// Data of each, names uncompressed.
    pub data: Box<[Box<[u8]>]>,
    /// Addresses of the name servers that an NS set names, as far as this zone has them.
    pub additional: Box<[Address]>,
}

/// An address record for the additional section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Host.
    pub owner: Box<[u8]>,
    /// A or AAAA.
    pub rtype: u16,
    /// TTL.
    pub ttl: u32,
    /// The address.
    pub data: Box<[u8]>,
    /// Whether a referral is of no use without it: the host is inside the delegated zone (RFC 9471).
    pub is_required: bool,
}

/// A name that exists, an empty non-terminal included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Lower case.
    pub owner: Box<[u8]>,
    /// Index of its zone.
    pub zone: usize,
    /// What it holds.
    pub sets: Box<[RrSet]>,
    /// Site whose addresses are steered here: index into `Fleet::sites`.
    pub site: Option<usize>,
    /// The node of the delegation at or above it; what it holds is then not authoritative.
    pub cut: Option<usize>,
    /// The node of its child `*`.
    pub wildcard: Option<usize>,
}

impl Node {
    /// Its records of a type.
    pub fn set(&self, rtype: u16) -> Option<&RrSet> {
        self.sets.iter().find(|s| s.rtype == rtype)
    }
}

/// What a negative answer and the header need of a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneHead {
    /// Apex, lower case.
    pub apex: Box<[u8]>,
    /// SOA data.
    pub soa: Box<[u8]>,
    /// TTL of the SOA record in negative answers: the lesser of its own and its minimum (RFC 2308 section 5).
    pub negative_ttl: u32,
    /// Serial.
    pub serial: u32,
}

/// Where a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It exists: index of the node.
    Exact(usize),
    /// It does not; this is its closest encloser.
    Below(usize),
    /// In no zone of this server.
    Outside,
}

/// All zones of one name server.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Zones {
    names: HashMap<Box<[u8]>, u32, BuildHasherDefault<NameHasher>>,
    /// Parent-side nodes of apexes whose parent zone is served here too: DS lives there.
    parents: HashMap<Box<[u8]>, u32, BuildHasherDefault<NameHasher>>,
    nodes: Vec<Node>,
    zones: Vec<ZoneHead>,
}

/// A multiply-and-fold hash over eight bytes at a time. The keys are our own names; queries only look up.
#[derive(Debug, Default)]
struct NameHasher(u64);

impl NameHasher {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xa076_1d64_78bd_642f_u128;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        let chunks = bytes.chunks_exact(8);
        let mut last = [0; 8];
        let rest = chunks.remainder();
        last[..rest.len()].copy_from_slice(rest);
        for chunk in chunks {
            self.mix(u64::from_le_bytes(chunk.try_into().unwrap_or_default()));
        }
        self.mix(u64::from_le_bytes(last));
    }

    fn write_usize(&mut self, n: usize) {
        self.0 ^= n as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Zones {
    /// Where a name (lower case wire form) is.
    pub fn find(&self, name: &[u8]) -> Found {
        if let Some(&node) = self.names.get(name) {
            return Found::Exact(node as usize);
        }
        let mut rest = wire::parent(name);
        while let Some(ancestor) = rest {
            if let Some(&node) = self.names.get(ancestor) {
                return Found::Below(node as usize);
            }
            rest = wire::parent(ancestor);
        }
        Found::Outside
    }

    /// The parent's node for the apex of a zone, when both sides of the delegation are served here.
    pub fn parent_side(&self, apex: &[u8]) -> Option<usize> {
        self.parents.get(apex).map(|&n| n as usize)
    }

    /// A node by index.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The zone a node is in.
    pub fn zone_of(&self, node: &Node) -> &ZoneHead {
        &self.zones[node.zone]
    }

    /// Whether the node is the apex of its zone.
    pub fn is_apex(&self, node: &Node) -> bool {
        self.zone_of(node).apex == node.owner
    }

    /// How many zones there are.
    pub fn zone_count(&self) -> usize {
        self.zones.len()
    }

    /// Compiles what the name server `server` of this fleet serves.
    ///
    /// # Errors
    /// Every fault found, at least one.
    pub fn compile(fleet: &Fleet, server: &str, serial: u32) -> Result<Self, Vec<ZoneError>> {
        let all = zone_list(fleet);
        let is_served = |z: &Zone| z.name_servers.iter().any(|&s| fleet.name_servers.get(s).is_some_and(|s| s.name == server));
        let mut errors = Vec::new();
        let mut built = Vec::new();
        for zone in all.iter().filter(|z| is_served(z)) {
            match Builder::build(fleet, &all, zone, serial) {
                Ok(b) => built.push(b),
                Err(mut faults) => errors.append(&mut faults),
            }
        }
        if built.is_empty() && errors.is_empty() {
            errors.push(ZoneError::NothingServed(server.to_owned()));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut zones = Self::default();
        let apexes: BTreeSet<Box<[u8]>> = built.iter().map(|b| b.apex.clone().into_boxed_slice()).collect();
        for builder in built {
            zones.add(builder, &apexes);
        }
        Ok(zones)
    }

    /// Adds one built zone; its names at and below the apex of another served zone belong to that one.
    fn add(&mut self, builder: Builder, apexes: &BTreeSet<Box<[u8]>>) {
        let zone = self.zones.len();
        let first = self.nodes.len();
        let indexes: HashMap<Vec<u8>, usize> = builder.names.keys().enumerate().map(|(i, n)| (n.clone(), first + i)).collect();
        for (owner, built) in &builder.names {
            let mut cut = None;
            let mut at = Some(owner.as_slice());
            while let Some(name) = at.filter(|n| n.len() > builder.apex.len()) {
                // The topmost cut counts: what is below it belongs to somebody else.
                if builder.names.get(name).is_some_and(|b| b.sets.contains_key(&rtype::NS)) {
                    cut = indexes.get(name).copied();
                }
                at = wire::parent(name);
            }
            let wildcard_name: Vec<u8> = [b"\x01*", owner.as_slice()].concat();
            let index = self.nodes.len();
            self.nodes.push(Node {
                owner: owner.clone().into_boxed_slice(),
                zone,
                sets: built.sets.iter().map(|(&rtype, set)| builder.finish(owner, rtype, set)).collect(),
                site: built.site,
                cut,
                wildcard: indexes.get(&wildcard_name).copied(),
            });
            let belongs_deeper = apexes
                .iter()
                .any(|a| a.len() > builder.apex.len() && wire::is_at_or_below(a, &builder.apex) && wire::is_at_or_below(owner, a));
            if !belongs_deeper {
                self.names.insert(owner.clone().into_boxed_slice(), index as u32);
            } else if apexes.contains(owner.as_slice()) {
                // With three served zones in a row the closest parent comes last only if it is deeper: compare.
                let is_closer = self
                    .parents
                    .get(owner.as_slice())
                    .is_none_or(|&p| self.zones[self.nodes[p as usize].zone].apex.len() < builder.apex.len());
                if is_closer {
                    self.parents.insert(owner.clone().into_boxed_slice(), index as u32);
                }
            }
        }
        self.zones.push(ZoneHead {
            apex: builder.apex.into_boxed_slice(),
            soa: builder.soa.into_boxed_slice(),
            negative_ttl: builder.negative_ttl,
            serial: builder.serial,
        });
    }
}

/// Every fault in what the fleet's name servers would serve, each once; for checking a fleet file before it is used.
pub fn check(fleet: &Fleet) -> Vec<ZoneError> {
    let mut faults: Vec<ZoneError> = Vec::new();
    for server in &fleet.name_servers {
        for fault in Zones::compile(fleet, &server.name, 0).err().unwrap_or_default() {
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
    }
    faults
}

/// The zones of the fleet, the CDN's own first; records that the file gives for the CDN's own zone join it.
fn zone_list(fleet: &Fleet) -> Vec<Zone> {
    let given = fleet.zones.iter().find(|z| z.name == fleet.zone);
    let own = given.cloned().unwrap_or_else(|| Zone {
        name: fleet.zone.clone(),
        ttl: std::time::Duration::from_secs(u64::from(NEGATIVE_TTL_MAX)),
        name_servers: fleet.zone_name_servers.clone(),
        records: Vec::new(),
    });
    std::iter::once(own).chain(fleet.zones.iter().filter(|z| z.name != fleet.zone).cloned()).collect()
}

/// A zone in the making.
struct Builder {
    apex: Vec<u8>,
    text: String,
    names: BTreeMap<Vec<u8>, Built>,
    soa: Vec<u8>,
    negative_ttl: u32,
    serial: u32,
    errors: Vec<ZoneError>,
}

#[derive(Default)]
struct Built {
    sets: BTreeMap<u16, BuiltSet>,
    site: Option<usize>,
}

struct BuiltSet {
    ttl: u32,
    data: Vec<Vec<u8>>,
}

/// An absolute name without its final dot, as the fleet file's types hold it, in wire form and lower case.
fn absolute(text: &str) -> Result<Vec<u8>, DataError> {
    if text.is_empty() {
        return Ok(vec![0]);
    }
    rdata::name(text, &[0]).map(|w| w.to_ascii_lowercase())
}

impl Builder {
    fn build(fleet: &Fleet, all: &[Zone], zone: &Zone, serial: u32) -> Result<Self, Vec<ZoneError>> {
        let text = if zone.name.is_empty() { ".".to_owned() } else { zone.name.clone() };
        let apex =
            absolute(&zone.name).map_err(|source| vec![ZoneError::Record { zone: text.clone(), record: zone.name.clone(), source }])?;
        let is_cdn = zone.name == fleet.zone;
        let ttl = u32::try_from(zone.ttl.as_secs()).unwrap_or(TTL_MAX).min(TTL_MAX);
        let negative_ttl = if is_cdn { CDN_NEGATIVE_TTL } else { ttl.min(NEGATIVE_TTL_MAX) };
        let mut b = Self { apex, text, names: BTreeMap::new(), soa: Vec::new(), negative_ttl, serial, errors: Vec::new() };
        b.names.insert(b.apex.clone(), Built::default());
        for record in &zone.records {
            let added = b.written_record(record);
            b.note(&format!("{} {} {}", record.owner, record.rtype, record.data), added);
        }
        let ns_ttl = if is_cdn { INFRASTRUCTURE_TTL } else { ttl };
        let added = b.apex_records(fleet, zone, ttl, ns_ttl);
        b.note("the apex", added);
        let added = b.delegations(fleet, all, zone, ns_ttl);
        b.note("a delegation", added);
        let added = b.name_server_hosts(fleet, ns_ttl);
        b.note("a name server's host", added);
        let added = b.sites(fleet, all, zone, is_cdn);
        b.note("a site's host", added);
        b.check();
        b.fill_empty_non_terminals();
        if b.errors.is_empty() { Ok(b) } else { Err(b.errors) }
    }

    fn note(&mut self, record: &str, result: Result<(), DataError>) {
        if let Err(source) = result {
            self.errors.push(ZoneError::Record { zone: self.text.clone(), record: record.to_owned(), source });
        }
    }

    fn conflict(&mut self, owner: &[u8], reason: &'static str) {
        self.errors.push(ZoneError::Conflict { zone: self.text.clone(), owner: wire::presentation(owner), reason });
    }

    fn add(&mut self, owner: Vec<u8>, rtype: u16, ttl: u32, data: Vec<u8>) {
        let set = self.names.entry(owner).or_default().sets.entry(rtype).or_insert(BuiltSet { ttl, data: Vec::new() });
        set.ttl = set.ttl.min(ttl);
        if !set.data.contains(&data) {
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
        if !wire::is_at_or_below(&owner, &self.apex) {
            self.conflict(&owner, "the name is not in this zone; move the record to its own zone");
            return Ok(());
        }
        let rtype = rdata::type_number(&record.rtype).ok_or_else(|| DataError::Type(record.rtype.clone()))?;
        if rtype == rtype::SOA || rtype == rtype::OPT || (rtype::TKEY..=rtype::ANY).contains(&rtype) {
            self.conflict(&owner, "SOA is made by the name server and query types are no records; leave the record out");
            return Ok(());
        }
        let data = rdata::data(rtype, &record.data, &self.apex)?;
        self.add(owner, rtype, record.ttl.min(TTL_MAX), data);
        Ok(())
    }

    /// SOA and, unless the file gives them, NS.
    fn apex_records(&mut self, fleet: &Fleet, zone: &Zone, ttl: u32, ns_ttl: u32) -> Result<(), DataError> {
        let mut hosts = zone.name_servers.iter().filter_map(|&s| fleet.name_servers.get(s)).map(|s| absolute(&s.host));
        let mname = hosts.next().unwrap_or_else(|| Ok(vec![0]))?;
        let rname = mailbox(&fleet.hostmaster)?;
        let mut soa = [mname, rname].concat();
        for n in [self.serial].into_iter().chain(SOA_TIMERS).chain([self.negative_ttl]) {
            soa.extend_from_slice(&n.to_be_bytes());
        }
        self.soa.clone_from(&soa);
        self.add(self.apex.clone(), rtype::SOA, ttl.max(self.negative_ttl), soa);
        if !self.names.get(&self.apex).is_some_and(|b| b.sets.contains_key(&rtype::NS)) {
            for &server in &zone.name_servers {
                if let Some(server) = fleet.name_servers.get(server) {
                    self.add(self.apex.clone(), rtype::NS, ns_ttl, absolute(&server.host)?);
                }
            }
        }
        Ok(())
    }

    /// NS records for zones of the fleet right below this one that the file does not delegate itself.
    fn delegations(&mut self, fleet: &Fleet, all: &[Zone], zone: &Zone, ttl: u32) -> Result<(), DataError> {
        for child in all.iter().filter(|c| c.name != zone.name) {
            let apex = absolute(&child.name)?;
            if !wire::is_at_or_below(&apex, &self.apex) || closest_zone(all, &apex, Some(&child.name))? != Some(zone.name.as_str()) {
                continue;
            }
            let is_delegated = |name: &[u8]| self.names.get(name).is_some_and(|b| b.sets.contains_key(&rtype::NS));
            // A cut above the child has already given it away.
            let mut at = Some(apex.as_slice());
            let mut is_cut = false;
            while let Some(name) = at.filter(|n| n.len() > self.apex.len()) {
                is_cut |= is_delegated(name);
                at = wire::parent(name);
            }
            if is_cut {
                continue;
            }
            for &server in &child.name_servers {
                if let Some(server) = fleet.name_servers.get(server) {
                    self.add(apex.clone(), rtype::NS, ttl, absolute(&server.host)?);
                }
            }
        }
        Ok(())
    }

    /// Addresses of the fleet's name servers whose hosts are in this zone: authoritative, or glue below a cut.
    fn name_server_hosts(&mut self, fleet: &Fleet, ttl: u32) -> Result<(), DataError> {
        for server in &fleet.name_servers {
            let host = absolute(&server.host)?;
            let holds = |t: u16| self.names.get(&host).is_some_and(|b| b.sets.contains_key(&t));
            if !wire::is_at_or_below(&host, &self.apex) || holds(rtype::A) || holds(rtype::AAAA) || holds(rtype::CNAME) {
                continue;
            }
            for &address in &server.addresses {
                self.add_address(&host, ttl, address);
            }
        }
        Ok(())
    }

    /// Steered names in the CDN's zone; elsewhere the sites' hosts that have no records of their own.
    fn sites(&mut self, fleet: &Fleet, all: &[Zone], zone: &Zone, is_cdn: bool) -> Result<(), DataError> {
        for (index, site) in fleet.sites.iter().enumerate() {
            let steered = absolute(&fleet.steered_name(site))?;
            if is_cdn {
                let built = self.names.entry(steered.clone()).or_default();
                if built.sets.keys().any(|t| matches!(*t, rtype::A | rtype::AAAA | rtype::CNAME)) {
                    self.conflict(
                        &steered,
                        "a site's steered name has an address or CNAME record; leave the record out or rename the site",
                    );
                    continue;
                }
                built.site = Some(index);
            }
            for host in site.hosts.iter().filter(|h| *h != "*") {
                let owner = absolute(host)?;
                if owner == steered || closest_zone(all, &owner, None)? != Some(zone.name.as_str()) {
                    continue;
                }
                let built = self.names.entry(owner.clone()).or_default();
                let is_taken = built.sets.keys().any(|t| matches!(*t, rtype::A | rtype::AAAA | rtype::CNAME | rtype::NS));
                if owner == self.apex {
                    // No CNAME can stand beside SOA and NS (RFC 1034 section 3.6.2): the apex itself is steered.
                    if !built.sets.contains_key(&rtype::A) && !built.sets.contains_key(&rtype::AAAA) {
                        built.site = Some(index);
                    }
                } else if built.site.is_none() && !is_taken {
                    if built.sets.is_empty() {
                        let ttl = u32::try_from(zone.ttl.as_secs()).unwrap_or(TTL_MAX).min(TTL_MAX);
                        self.add(owner, rtype::CNAME, ttl, steered.clone());
                    } else {
                        // Other records are there, so no CNAME can be: the name is steered itself.
                        built.site = Some(index);
                    }
                }
            }
        }
        Ok(())
    }

    /// What no resolver could use, or would read as something else.
    fn check(&mut self) {
        let faults: Vec<(Vec<u8>, &'static str)> =
            self.names.iter().filter_map(|(owner, b)| Some((owner.clone(), self.fault(owner, b)?))).collect();
        for (owner, reason) in faults {
            self.conflict(&owner, reason);
        }
        let large: Vec<(Vec<u8>, u16)> = self
            .names
            .iter()
            .flat_map(|(owner, b)| b.sets.iter().map(move |(rtype, set)| (owner, rtype, set)))
            .filter(|(_, _, set)| set.data.iter().map(|d| RECORD_HEAD_BYTES + d.len()).sum::<usize>() > SET_BYTES_MAX)
            .map(|(owner, rtype, _)| (owner.clone(), *rtype))
            .collect();
        for (owner, rtype) in large {
            let rtype = rdata::type_mnemonic(rtype).map_or_else(|| format!("TYPE{rtype}"), str::to_owned);
            self.errors.push(ZoneError::TooLarge { zone: self.text.clone(), owner: wire::presentation(&owner), rtype });
        }
    }

    fn fault(&self, owner: &[u8], built: &Built) -> Option<&'static str> {
        let holds = |t: u16| built.sets.contains_key(&t);
        let is_apex = owner == self.apex;
        match built.sets.get(&rtype::CNAME) {
            Some(set) if set.data.len() > 1 => return Some("more than one CNAME; keep one"),
            // RFC 2181 section 10.1.
            Some(_) if built.sets.len() > 1 || built.site.is_some() => return Some("a CNAME stands beside other records; keep either"),
            _ => {}
        }
        match built.sets.get(&rtype::DNAME) {
            Some(set) if set.data.len() > 1 => return Some("more than one DNAME; keep one"),
            // RFC 6672 section 2.3.
            Some(_) if holds(rtype::NS) && !is_apex => return Some("a DNAME stands beside a delegation; keep either"),
            _ => {}
        }
        if self.above(owner).any(|(_, b)| b.sets.contains_key(&rtype::DNAME)) {
            // RFC 6672 section 2.4.
            return Some("it is below a DNAME, which stands for every name there; leave either out");
        }
        if let Some(set) = built.sets.get(&rtype::NS) {
            if owner.starts_with(b"\x01*") && !is_apex {
                return Some("a wildcard cannot be delegated (RFC 4592 section 4.2); delegate each name");
            }
            for host in &set.data {
                let host = host.to_ascii_lowercase();
                if self.is_alias(&host) {
                    return Some("a name server's host is a CNAME (RFC 2181 section 10.3); name the host that has the addresses");
                }
                if self.lacks_address(&host, owner) {
                    return Some("a name server in this zone has no address; add an A or AAAA record for it");
                }
            }
        }
        let mail = built.sets.get(&rtype::MX).filter(|set| set.data.iter().any(|d| self.is_alias(&d[2..].to_ascii_lowercase())));
        mail.map(|_| "a mail host is a CNAME (RFC 2181 section 10.3); name the host that has the addresses")
    }

    /// The names above one, up to the apex, as far as they are known.
    fn above<'s>(&'s self, name: &'s [u8]) -> impl Iterator<Item = (&'s [u8], &'s Built)> {
        let first = wire::parent(name).filter(|_| name.len() > self.apex.len());
        let names = std::iter::successors(first, |n| wire::parent(n).filter(|_| n.len() > self.apex.len()));
        names.filter_map(|n| Some((n, self.names.get(n)?)))
    }

    fn is_alias(&self, host: &[u8]) -> bool {
        self.names.get(host).is_some_and(|b| b.sets.contains_key(&rtype::CNAME))
    }

    /// Whether a name server of the delegation or apex `owner` is in this zone and has no address here or by a wildcard.
    fn lacks_address(&self, host: &[u8], owner: &[u8]) -> bool {
        if !wire::is_at_or_below(host, &self.apex) {
            return false;
        }
        let has_address = |b: &Built| b.site.is_some() || b.sets.contains_key(&rtype::A) || b.sets.contains_key(&rtype::AAAA);
        if self.names.get(host).is_some_and(has_address) {
            return false;
        }
        if owner.len() > self.apex.len() && wire::is_at_or_below(host, owner) {
            return true;
        }
        // What is below another cut is another's; so is what a wildcard stands for not missing.
        !self.above(host).any(|(name, b)| {
            (name.len() > self.apex.len() && b.sets.contains_key(&rtype::NS)) || self.names.contains_key(&[b"\x01*", name].concat())
        })
    }

    fn fill_empty_non_terminals(&mut self) {
        let owners: Vec<Vec<u8>> = self.names.keys().cloned().collect();
        for owner in owners {
            let mut at = wire::parent(&owner);
            while let Some(name) = at.filter(|n| n.len() > self.apex.len()) {
                self.names.entry(name.to_vec()).or_default();
                at = wire::parent(name);
            }
        }
    }

    /// The immutable form of a set, with addresses for name servers.
    fn finish(&self, owner: &[u8], rtype: u16, set: &BuiltSet) -> RrSet {
        let mut additional = Vec::new();
        if rtype == rtype::NS {
            for host in &set.data {
                let host = host.to_ascii_lowercase();
                let Some(built) = self.names.get(&host) else { continue };
                for kind in [rtype::A, rtype::AAAA] {
                    let Some(addresses) = built.sets.get(&kind) else { continue };
                    additional.extend(addresses.data.iter().map(|data| Address {
                        owner: host.clone().into_boxed_slice(),
                        rtype: kind,
                        ttl: addresses.ttl,
                        data: data.clone().into_boxed_slice(),
                        is_required: wire::is_at_or_below(&host, owner),
                    }));
                }
            }
            // What is required comes first, so that what is optional can be left out.
            additional.sort_by_key(|a| !a.is_required);
        }
        RrSet {
            rtype,
            ttl: set.ttl,
            data: set.data.iter().map(|d| d.clone().into_boxed_slice()).collect(),
            additional: additional.into_boxed_slice(),
        }
    }
}

/// The deepest zone of the fleet that holds a name, one zone left aside.
fn closest_zone<'z>(all: &'z [Zone], name: &[u8], except: Option<&str>) -> Result<Option<&'z str>, DataError> {
    let mut best: Option<(usize, &str)> = None;
    for zone in all.iter().filter(|z| except != Some(z.name.as_str())) {
        let apex = absolute(&zone.name)?;
        if wire::is_at_or_below(name, &apex) && best.is_none_or(|(len, _)| apex.len() > len) {
            best = Some((apex.len(), &zone.name));
        }
    }
    Ok(best.map(|(_, name)| name))
}

/// A mailbox as SOA RNAME (RFC 1035 section 8): the local part is one label.
fn mailbox(address: &str) -> Result<Vec<u8>, DataError> {
    let Some((local, domain)) = address.split_once('@') else { return absolute(address.trim_end_matches('.')) };
    let domain = absolute(domain.trim_end_matches('.'))?;
    let len = u8::try_from(local.len()).ok().filter(|l| (1..=63).contains(l));
    let len = len.ok_or_else(|| DataError::Name { text: address.to_owned(), reason: "its local part is not 1 to 63 bytes long" })?;
    Ok([&[len], local.as_bytes(), &domain].concat())
}

/// The serial after `previous` at a time: the time itself when it is newer in serial arithmetic (RFC 1982), else one more.
pub fn next_serial(previous: Option<u32>, unix_seconds: u32) -> u32 {
    match previous {
        None => unix_seconds,
        Some(p) if is_newer(unix_seconds, p) => unix_seconds,
        Some(p) => p.wrapping_add(1),
    }
}

/// RFC 1982 section 3.2: whether serial `a` is greater than `b`.
pub fn is_newer(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
}
