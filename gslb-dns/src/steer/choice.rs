//! What is asked of steering and what it answers: small values that live on the stack.

use std::net::IpAddr;
use std::ops::Deref;

/// Most addresses in one answer.
pub const ADDRESSES_MAX: usize = 8;

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

/// Whom an answer is for: the prefix of the client-subnet option, or the resolver's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientPrefix {
    /// An address, with zeros after `source_prefix` bits when it comes from the option.
    pub address: IpAddr,
    /// How many bits of it are known.
    pub source_prefix: u8,
    /// Whether it comes from a client-subnet option.
    pub from_ecs: bool,
}

impl ClientPrefix {
    /// A host whose whole address is known, such as a resolver.
    pub fn host(address: IpAddr) -> Self {
        let source_prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address, source_prefix, from_ecs: false }
    }
}

/// Why a client was given its cluster; the label `reason` of `nearcast_dns_selections_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// Least distance from the client's place.
    Geo,
    /// Least round-trip time.
    Rtt,
    /// The second best, so that it gets measured.
    Explore,
    /// At random by weight.
    Weighted,
    /// Each in turn.
    RoundRobin,
    /// The best one is down, this is the next.
    Failover,
    /// The best one is full, this is the next.
    Spill,
    /// Every one that is up is full, this is the best of them.
    AllFull,
    /// Nothing is known about where the client is.
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

    /// As it stands in metrics, reports and explanations.
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

/// Up to [`ADDRESSES_MAX`] addresses without an allocation. Dereferences to a slice.
#[derive(Clone, Copy)]
pub struct Addresses {
    len: u8,
    items: [IpAddr; ADDRESSES_MAX],
}

impl Addresses {
    /// None.
    pub const EMPTY: Self = Self { len: 0, items: [IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED); ADDRESSES_MAX] };

    /// `all`, beginning at the `start`-th one (modulo their number) and going round; what does not fit is left out.
    pub fn rotated(all: &[IpAddr], start: usize) -> Self {
        let mut out = Self::EMPTY;
        if all.is_empty() {
            return out;
        }
        let start = start % all.len();
        let (tail, head) = all.split_at(start);
        for (slot, address) in out.items.iter_mut().zip(head.iter().chain(tail)) {
            *slot = *address;
            out.len += 1;
        }
        out
    }
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        &self.items[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Addresses {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Addresses {}

/// The answer for one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The cluster, an index into `Fleet::clusters`; without meaning when `addresses` is empty.
    pub cluster: usize,
    /// Addresses in the order to give them. Empty means that the name has none of that family, for any client.
    pub addresses: Addresses,
    /// Seconds.
    pub ttl: u32,
    /// The scope to return with a client-subnet option: every client inside it gets this cluster.
    pub scope_prefix: u8,
    /// Why.
    pub reason: Reason,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn addresses_go_round_and_stop_at_the_limit() {
        let three = [v4(1), v4(2), v4(3)];
        for (start, expected) in [(0, [1, 2, 3]), (1, [2, 3, 1]), (2, [3, 1, 2]), (3, [1, 2, 3]), (301, [2, 3, 1])] {
            assert_eq!(&*Addresses::rotated(&three, start), &expected.map(v4), "start {start}");
        }
        assert!(Addresses::rotated(&[], 5).is_empty());
        let many: Vec<IpAddr> = (0..20).map(v4).collect();
        let got = Addresses::rotated(&many, 15);
        assert_eq!(&*got, &[15, 16, 17, 18, 19, 0, 1, 2].map(v4));
    }

    #[test]
    fn reasons_are_numbered_as_listed_and_labels_differ() {
        let labels: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        for (number, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
        }
    }
}
