//! The zones that one name server serves, compiled from the fleet file: immutable, shared, looked
//! up by one hash.
//!
//! Owns which names exist, what they hold, where delegations cut a zone and which names are steered
//! (RFC 1034 section 4.2, RFC 2181, RFC 4592). Knows no messages, no clients and no clocks: the
//! serial is an argument.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

use nearcast_fleet::config::{Fleet, Site, Zone};

use crate::rdata::{self, DataError};
use crate::wire::{self, rtype};

/// TTL of the CDN zone's name servers and their addresses.
const INFRASTRUCTURE_TTL: u32 = 3600;
/// TTL of SOA records where the zone sets none, and the most a negative answer is kept (RFC 2308
/// section 5).
const NEGATIVE_TTL_MAX: u32 = 300;
/// Negative TTL of the CDN's own zone: a new site must not stay unknown for long.
const CDN_NEGATIVE_TTL: u32 = 60;
/// SOA REFRESH, RETRY, EXPIRE: nobody transfers these zones, so they are what secondaries of a copy
/// would want.
const SOA_TIMERS: [u32; 3] = [3600, 600, 1_209_600];
/// TTLs above are invalid (RFC 2181 section 8).
const TTL_MAX: u32 = i32::MAX as u32;

/// Most bytes of records of one name and type. A message has 65,535; the aliases before them and
/// OPT need some.
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
    #[error(
        "zone {zone}: {owner}: its {rtype} records do not fit into one message; spread them over several names"
    )]
    TooLarge {
        /// Apex.
        zone: String,
        /// Where.
        owner: String,
        /// Their type.
        rtype: String,
    },
    /// This node serves nothing.
    #[error(
        "no zone names {0:?} among its name servers: add it to name_servers of a zone or start another node"
    )]
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
    /// Whether a referral is of no use without it: the host is inside the delegated zone (RFC
    /// 9471).
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
    /// TTL of the SOA record in negative answers: the lesser of its own and its minimum (RFC 2308
    /// section 5).
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

/// A multiply-and-fold hash over eight bytes at a time. The keys are our own names; queries only
/// look up.
#[derive(Debug, Default)]
struct NameHasher(u64);

impl NameHasher {
    fn mix(&mut self, word: u64) {
        let product =
            u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xa076_1d64_78bd_642f_u128;
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
        let layout = Layout::new(fleet);
        let is_served = |z: &Zone| {
            z.name_servers
                .iter()
                .any(|&s| fleet.name_servers.get(s).is_some_and(|s| s.name == server))
        };
        let mut errors = Vec::new();
        let mut built = Vec::new();
        for number in (0..layout.zones.len()).filter(|&z| is_served(&layout.zones[z])) {
            match Builder::build(&layout, number, serial) {
                Ok(b) => built.push(b),
                Err(mut faults) => errors.append(&mut faults),
            }
        }
        if built.is_empty() && errors.is_empty() {
            errors.push(ZoneError::NothingServed(server.to_owned()));
        }
        errors.extend(layout.faults);
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut zones = Self::default();
        let apexes: HashSet<Box<[u8]>> = built
            .iter()
            .map(|b| b.apex.clone().into_boxed_slice())
            .collect();
        for builder in built {
            zones.add(builder, &apexes);
        }
        Ok(zones)
    }

    /// The serial of all of them.
    pub fn serial(&self) -> u32 {
        self.zones.first().map_or(0, |z| z.serial)
    }

    /// Adds one built zone; its names at and below the apex of another served zone belong to that
    /// one.
    fn add(&mut self, builder: Builder, apexes: &HashSet<Box<[u8]>>) {
        let zone = self.zones.len();
        let first = self.nodes.len();
        let indexes: HashMap<Vec<u8>, usize> = builder
            .names
            .keys()
            .enumerate()
            .map(|(i, n)| (n.clone(), first + i))
            .collect();
        for (owner, built) in &builder.names {
            let mut cut = None;
            let mut at = Some(owner.as_slice());
            while let Some(name) = at.filter(|n| n.len() > builder.apex.len()) {
                // The topmost cut counts: what is below it belongs to somebody else.
                if builder
                    .names
                    .get(name)
                    .is_some_and(|b| b.sets.contains_key(&rtype::NS))
                {
                    cut = indexes.get(name).copied();
                }
                at = wire::parent(name);
            }
            let wildcard_name: Vec<u8> = [b"\x01*", owner.as_slice()].concat();
            let index = self.nodes.len();
            self.nodes.push(Node {
                owner: owner.clone().into_boxed_slice(),
                zone,
                sets: built
                    .sets
                    .iter()
                    .map(|(&rtype, set)| builder.finish(owner, rtype, set))
                    .collect(),
                site: built.site,
                cut,
                wildcard: indexes.get(&wildcard_name).copied(),
            });
            // Each name from the owner up to this zone's apex, that one left out.
            let names = std::iter::successors(Some(owner.as_slice()), |n| wire::parent(n));
            let belongs_deeper = names
                .take_while(|n| n.len() > builder.apex.len())
                .any(|n| apexes.contains(n));
            if !belongs_deeper {
                self.names
                    .insert(owner.clone().into_boxed_slice(), index as u32);
            } else if apexes.contains(owner.as_slice()) {
                // With three served zones in a row the closest parent comes last only if it is
                // deeper: compare.
                let is_closer = self.parents.get(owner.as_slice()).is_none_or(|&p| {
                    self.zones[self.nodes[p as usize].zone].apex.len() < builder.apex.len()
                });
                if is_closer {
                    self.parents
                        .insert(owner.clone().into_boxed_slice(), index as u32);
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

/// Every fault in what the fleet's name servers would serve, each once; for checking a fleet file
/// before it is used.
pub fn check(fleet: &Fleet) -> Vec<ZoneError> {
    let layout = Layout::new(fleet);
    let mut serve = vec![false; fleet.name_servers.len()];
    let mut faults: Vec<ZoneError> = Vec::new();
    for (number, zone) in layout.zones.iter().enumerate() {
        let mut is_served = false;
        for server in &zone.name_servers {
            if let Some(serves) = serve.get_mut(*server) {
                (*serves, is_served) = (true, true);
            }
        }
        if is_served {
            faults.extend(Builder::build(&layout, number, 0).err().unwrap_or_default());
        }
    }
    let idle = fleet
        .name_servers
        .iter()
        .zip(serve)
        .filter(|(_, serves)| !serves);
    faults.extend(idle.map(|(server, _)| ZoneError::NothingServed(server.name.clone())));
    faults.extend(layout.faults);
    faults
}

/// What the zones of a fleet have to do with one another, worked out once: looking at every zone
/// and site again for each zone would take a hundred million steps for ten thousand of them.
struct Layout<'f> {
    fleet: &'f Fleet,
    /// The CDN's own first; records that the file gives for it join it.
    zones: Vec<Cow<'f, Zone>>,
    /// Apexes in wire form.
    apexes: Vec<Result<Vec<u8>, DataError>>,
    by_apex: HashMap<Vec<u8>, usize>,
    /// Of each zone, those right below it.
    children: Vec<Vec<usize>>,
    /// Of each zone, the names in it that lead to sites, in file order.
    hosts: Vec<Vec<SiteHost>>,
    /// Steered names of the sites.
    steered: Vec<Vec<u8>>,
    /// Hosts of the name servers.
    servers: Vec<Vec<u8>>,
    /// Names that cannot be written; told beside those of the zones.
    faults: Vec<ZoneError>,
}

/// A name that leads to a site.
struct SiteHost {
    owner: Vec<u8>,
    site: usize,
    /// Whether it is the site's own name below the CDN's zone.
    is_steered: bool,
}

impl<'f> Layout<'f> {
    fn new(fleet: &'f Fleet) -> Self {
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
                .and_then(|apex| wire::parent(apex))
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

    /// A name in wire form; one that has none is a fault, and stands for the root.
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
        let mut names = std::iter::successors(Some(name), |n| wire::parent(n));
        names.find_map(|n| self.by_apex.get(n).copied())
    }
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
    /// What they take in a message. Beyond [`SET_BYTES_MAX`] none is kept any more.
    bytes: usize,
}

/// An absolute name without its final dot, as the fleet file's types hold it, in wire form and
/// lower case.
fn absolute(text: &str) -> Result<Vec<u8>, DataError> {
    if text.is_empty() {
        return Ok(vec![0]);
    }
    rdata::name(text, &[0]).map(|w| w.to_ascii_lowercase())
}

impl Builder {
    fn build(layout: &Layout<'_>, number: usize, serial: u32) -> Result<Self, Vec<ZoneError>> {
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
        b.names.insert(b.apex.clone(), Built::default());
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
            owner: wire::presentation(owner),
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
            .or_insert(BuiltSet {
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
        if !wire::is_at_or_below(&owner, &self.apex) {
            self.conflict(
                &owner,
                "the name is not in this zone; move the record to its own zone",
            );
            return Ok(());
        }
        let rtype = rdata::type_number(&record.rtype)
            .ok_or_else(|| DataError::Type(record.rtype.clone()))?;
        if rtype == rtype::SOA || rtype == rtype::OPT || (rtype::TKEY..=rtype::ANY).contains(&rtype)
        {
            self.conflict(&owner, "SOA is made by the name server and query types are no records; leave the record out");
            return Ok(());
        }
        let data = rdata::data(rtype, &record.data, &self.apex)?;
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

    /// NS records for zones of the fleet right below this one that the file does not delegate
    /// itself.
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
            for host in layout.zones[child]
                .name_servers
                .iter()
                .filter_map(|&s| layout.servers.get(s))
            {
                self.add(apex.clone(), rtype::NS, ttl, host.clone());
            }
        }
    }

    /// Addresses of the fleet's name servers whose hosts are in this zone: authoritative, or glue
    /// below a cut.
    fn name_server_hosts(&mut self, fleet: &Fleet, layout: &Layout<'_>, ttl: u32) {
        for (server, host) in fleet.name_servers.iter().zip(&layout.servers) {
            let holds = |t: u16| {
                self.names
                    .get(host)
                    .is_some_and(|b| b.sets.contains_key(&t))
            };
            if !wire::is_at_or_below(host, &self.apex)
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

    /// Steered names in the CDN's zone; elsewhere the sites' hosts that have no records of their
    /// own.
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
                // No CNAME can stand beside SOA and NS (RFC 1034 section 3.6.2): the apex itself is
                // steered.
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
                    // Other records are there, so no CNAME can be: the name is steered itself.
                    built.site = Some(*site);
                }
            }
        }
    }

    /// What no resolver could use, or would read as something else.
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
            let rtype =
                rdata::type_mnemonic(rtype).map_or_else(|| format!("TYPE{rtype}"), str::to_owned);
            self.errors.push(ZoneError::TooLarge {
                zone: self.text.clone(),
                owner: wire::presentation(&owner),
                rtype,
            });
        }
    }

    fn fault(&self, owner: &[u8], built: &Built) -> Option<&'static str> {
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

    /// The names above one, up to the apex, as far as they are known.
    fn above<'s>(&'s self, name: &'s [u8]) -> impl Iterator<Item = (&'s [u8], &'s Built)> {
        let first = wire::parent(name).filter(|_| name.len() > self.apex.len());
        let names = std::iter::successors(first, |n| {
            wire::parent(n).filter(|_| n.len() > self.apex.len())
        });
        names.filter_map(|n| Some((n, self.names.get(n)?)))
    }

    fn is_alias(&self, host: &[u8]) -> bool {
        self.names
            .get(host)
            .is_some_and(|b| b.sets.contains_key(&rtype::CNAME))
    }

    /// Whether a name server of the delegation or apex `owner` is in this zone and has no address
    /// here or by a wildcard.
    fn lacks_address(&self, host: &[u8], owner: &[u8]) -> bool {
        if !wire::is_at_or_below(host, &self.apex) {
            return false;
        }
        let has_address = |b: &Built| {
            b.site.is_some() || b.sets.contains_key(&rtype::A) || b.sets.contains_key(&rtype::AAAA)
        };
        if self.names.get(host).is_some_and(has_address) {
            return false;
        }
        if owner.len() > self.apex.len() && wire::is_at_or_below(host, owner) {
            return true;
        }
        // What is below another cut is another's; so is what a wildcard stands for not missing.
        !self.above(host).any(|(name, b)| {
            (name.len() > self.apex.len() && b.sets.contains_key(&rtype::NS))
                || self.names.contains_key(&[b"\x01*", name].concat())
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

/// The serial after `previous` at a time: the time itself when it is newer in serial arithmetic
/// (RFC 1982), else one more.
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
