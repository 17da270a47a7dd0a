//! The zones that one name server serves, compiled from the fleet file: immutable, shared, and
//! found by one hash look-up.
//!
//! Owns the names that exist, their records, the delegations that cut a zone, and the names that
//! are steered (RFC 1034 section 4.2, RFC 2181, RFC 4592). Knows no messages, no clients and no
//! clocks: the serial is an argument.
//!
//! `layout` relates the zones of a fleet to one another, `build` compiles one of them, `text` reads
//! records, `serial` keeps the zones' serial. Zone files, DNSSEC signing and zone transfers belong
//! here too.

mod build;
mod layout;
mod serial;
pub mod text;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use nearcast_fleet::config::{Fleet, Zone};

use self::build::Builder;
use self::layout::Layout;
pub(crate) use self::serial::Serial;
pub use self::serial::{is_newer, next_serial};
use self::text::DataError;
use crate::message::{self, rtype};

/// A fault that keeps zones from being compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// A record is malformed.
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
        /// The contradiction, and a hint.
        reason: &'static str,
    },
    /// A record set does not fit into a message.
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
    /// This name server serves no zone.
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
    /// Addresses of the name servers that an NS set names, where this zone has them.
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
    /// Whether a referral is useless without it: the host is inside the delegated zone (RFC 9471).
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
    /// The site whose addresses are steered at this name: an index into `Fleet::sites`.
    pub site: Option<usize>,
    /// The node of the delegation at or above this one, if any; the records here are then not
    /// authoritative.
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

/// The data of a zone that negative answers need.
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

/// The result of looking a name up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameMatch {
    /// The name exists: the index of its node.
    Exact(usize),
    /// The name does not exist: the index of its closest encloser.
    ClosestEncloser(usize),
    /// No zone of this server holds the name.
    NotServed,
}

/// All zones of one name server.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Zones {
    names: HashMap<Box<[u8]>, u32, BuildHasherDefault<NameHasher>>,
    /// Nodes on the parent's side of a delegation whose both sides are served here: DS records are
    /// there.
    parents: HashMap<Box<[u8]>, u32, BuildHasherDefault<NameHasher>>,
    nodes: Vec<Node>,
    zones: Vec<ZoneHead>,
}

/// A multiply-and-fold hash over eight bytes at a time. Only names of the fleet are inserted, so an
/// attacker cannot choose keys that collide; the standard library's keyed hash is slower.
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
    /// Looks a name up (wire form in lower case).
    pub fn find(&self, name: &[u8]) -> NameMatch {
        if let Some(&node) = self.names.get(name) {
            return NameMatch::Exact(node as usize);
        }
        let mut rest = message::parent(name);
        while let Some(ancestor) = rest {
            if let Some(&node) = self.names.get(ancestor) {
                return NameMatch::ClosestEncloser(node as usize);
            }
            rest = message::parent(ancestor);
        }
        NameMatch::NotServed
    }

    /// The node on the parent's side for the apex of a zone, when both sides of the delegation are
    /// served here.
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

    /// Compiles the zones that the name server `server` of this fleet serves.
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

    /// Adds one built zone. Its names at and below the apex of another served zone belong to that
    /// zone.
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
                // The topmost cut counts: everything below it belongs to the delegated zone.
                if builder
                    .names
                    .get(name)
                    .is_some_and(|b| b.sets.contains_key(&rtype::NS))
                {
                    cut = indexes.get(name).copied();
                }
                at = message::parent(name);
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

            // Each name from the owner up to this zone's apex, without the apex.
            let names = std::iter::successors(Some(owner.as_slice()), |n| message::parent(n));
            let belongs_deeper = names
                .take_while(|n| n.len() > builder.apex.len())
                .any(|n| apexes.contains(n));

            if !belongs_deeper {
                self.names
                    .insert(owner.clone().into_boxed_slice(), index as u32);
            } else if apexes.contains(owner.as_slice()) {
                // Of three served zones in a row, the deepest parent wins.
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

/// Every fault in the zones of a fleet, each once; for checking a fleet file before it is used.
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
