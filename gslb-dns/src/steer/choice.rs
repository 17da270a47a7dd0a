//! The values that steering is called with and answers with. They live on the stack.

use std::net::IpAddr;

use super::addresses::Addresses;
use super::service::Protocols;

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

/// The records of a steered name that are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Addresses.
    Addresses(Family),
    /// The HTTPS record (RFC 9460).
    Service,
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

/// The HTTPS record for one client, with the addresses that the client gets for `A` and `AAAA`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// For `ipv4hint`.
    pub v4: Choice,
    /// For `ipv6hint`. It has the other's cluster, unless one of the two has no address of its
    /// family.
    pub v6: Choice,
    /// The port of all edges.
    pub port: u16,
    /// The protocols of all edges of the cluster, or of both.
    pub protocols: Protocols,
}

impl Service {
    /// The choice that stands for both: that of IPv4, where it has addresses.
    pub fn main(&self) -> &Choice {
        match self.v4.addresses.is_empty() {
            true => &self.v6,
            false => &self.v4,
        }
    }
}

/// What was selected for one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "it lives on the stack: a query allocates nothing"
)]
pub enum Selection {
    /// The name has no such records, for any client, or is not steered.
    Nothing,
    /// Addresses of one family, at least one.
    Addresses(Choice),
    /// An HTTPS record with at least one address.
    Service(Service),
}

impl Selection {
    /// These addresses, if there are any.
    pub fn of_choice(choice: Choice) -> Self {
        match choice.addresses.is_empty() {
            true => Self::Nothing,
            false => Self::Addresses(choice),
        }
    }

    /// This record, if it has an address.
    pub fn of_service(service: Service) -> Self {
        match service.main().addresses.is_empty() {
            true => Self::Nothing,
            false => Self::Service(service),
        }
    }

    /// The scope to return with a client-subnet option. An answer without records is the same for
    /// every client (RFC 7871 section 7.2.1).
    pub fn scope_prefix(&self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Addresses(choice) => choice.scope_prefix,
            Self::Service(service) => service.v4.scope_prefix.max(service.v6.scope_prefix),
        }
    }

    /// Whether it has addresses although nothing is up.
    pub fn is_all_down(&self) -> bool {
        let is_down = |choice: &Choice| choice.reason == Reason::AllDown;
        match self {
            Self::Nothing => false,
            Self::Addresses(choice) => is_down(choice),
            Self::Service(service) => is_down(&service.v4) || is_down(&service.v6),
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
