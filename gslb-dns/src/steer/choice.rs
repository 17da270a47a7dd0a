//! The values that steering is called with and answers with. They live on the stack.

use std::net::IpAddr;

use super::addresses::Addresses;

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `A`.
    V4,
    /// `AAAA`.
    V6,
}

impl Family {
    /// Whether `address` is of this family.
    pub fn holds(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// The client that an answer is for: the prefix of the client-subnet option, or the resolver's own
/// address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientPrefix {
    /// An address, with zeros after `source_prefix` bits when it comes from the option.
    pub address: IpAddr,
    /// Number of known bits.
    pub source_prefix: u8,
    /// Whether it comes from a client-subnet option.
    pub from_ecs: bool,
}

impl ClientPrefix {
    /// A host whose whole address is known, such as a resolver.
    pub fn host(address: IpAddr) -> Self {
        let source_prefix = if address.is_ipv4() { 32 } else { 128 };
        Self {
            address,
            source_prefix,
            from_ecs: false,
        }
    }
}

/// Why a cluster was selected; the label `reason` of `nearcast_dns_selections_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// Least distance from the client's place.
    Geo,
    /// Least round-trip time.
    Rtt,
    /// The second best, to measure it.
    Explore,
    /// At random by weight.
    Weighted,
    /// Each in turn.
    RoundRobin,
    /// The best one is down, or has just returned and takes only a share of its clients; this is
    /// the next.
    Failover,
    /// The best one is full and takes only a share of its clients; this is the next.
    Spill,
    /// All clusters that are up are full; they share clients so that all are equally full.
    AllFull,
    /// The client's location is unknown.
    Unplaced,
    /// All are down; the best one's addresses are better than none.
    AllDown,
    /// No cluster of the site has an address of that family, for any client.
    NoAddress,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Geo,
        Self::Rtt,
        Self::Explore,
        Self::Weighted,
        Self::RoundRobin,
        Self::Failover,
        Self::Spill,
        Self::AllFull,
        Self::Unplaced,
        Self::AllDown,
        Self::NoAddress,
    ];

    /// The label in metrics, reports and explanations.
    pub fn label(self) -> &'static str {
        match self {
            Self::Geo => "geo",
            Self::Rtt => "rtt",
            Self::Explore => "explore",
            Self::Weighted => "weighted",
            Self::RoundRobin => "round-robin",
            Self::Failover => "failover",
            Self::Spill => "spill",
            Self::AllFull => "all-full",
            Self::Unplaced => "no-place",
            Self::AllDown => "all-down",
            Self::NoAddress => "no-address",
        }
    }
}

/// The answer for one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The cluster, an index into `Fleet::clusters`; without meaning when `addresses` is empty.
    pub cluster: usize,
    /// Addresses in the order to give them. Empty means that the name has none of that family, for
    /// any client.
    pub addresses: Addresses,
    /// Seconds.
    pub ttl: u32,
    /// The scope to return with a client-subnet option: every client inside it gets this cluster.
    pub scope_prefix: u8,
    /// Why.
    pub reason: Reason,
}

impl Choice {
    /// A choice without addresses.
    pub(super) fn empty(ttl: u32, reason: Reason) -> Self {
        Self {
            cluster: 0,
            addresses: Addresses::EMPTY,
            ttl,
            scope_prefix: 0,
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_as_listed_and_labels_differ() {
        let labels: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
        }
    }
}
