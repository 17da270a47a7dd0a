//! What is asked of steering and what it answers: small values that live on the stack.

use std::net::IpAddr;
use std::ops::Deref;

use super::select::{Weight, mix};

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
        Self {
            address,
            source_prefix,
            from_ecs: false,
        }
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
    /// The best one is down, or has just returned and takes a share of its clients alone; this is
    /// the next.
    Failover,
    /// The best one is full and takes a share of its clients alone, this is the next.
    Spill,
    /// Every one that is up is full; they share clients so that all are equally full.
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
    pub const EMPTY: Self = Self {
        len: 0,
        items: [IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED); ADDRESSES_MAX],
    };

    /// `all`, beginning at the `start`-th one (modulo their number) and going round; what does not
    /// fit is left out.
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

/// Addresses looked at for one answer where they weigh differently.
const WEIGHED_MAX: usize = 64;

impl Addresses {
    /// Some of `all` at random, by weights, which stand in the same order.
    ///
    /// With `leaves_out` an address is in an answer as often as its weight is of the largest, in
    /// any order, so that it does not matter which address of an answer resolvers and clients take;
    /// one always is. Without it, all are there, in an order drawn by weight: many clients may
    /// share the answer, and are to be spread over all nodes. Nodes that return are left out of
    /// these too, as often as their ramp says.
    pub(super) fn weighted(
        all: &[IpAddr],
        weights: &[Weight],
        leaves_out: bool,
        random: u64,
    ) -> Self {
        let mut out = Self::EMPTY;
        // Of more nodes than are looked at, those from a random one on.
        let start = if all.len() > WEIGHED_MAX {
            (mix(random) as usize) % all.len()
        } else {
            0
        };
        let count = all.len().min(weights.len()).min(WEIGHED_MAX);
        let at = |i: usize| (start + i) % all.len();
        let standing = |i: usize| {
            if leaves_out {
                weights[at(i)].weight
            } else {
                weights[at(i)].ramp
            }
        };
        let weight = |i: usize| {
            if leaves_out {
                1
            } else {
                u64::from(weights[at(i)].weight) + 1
            }
        };
        let most = u64::from((0..count).map(standing).max().unwrap_or(0));
        let mut left = 0_u64;
        let mut total = 0_u64;
        for i in 0..count {
            let drawn = mix(random ^ (i as u64 + 1) << 48) & 0xffff;
            if u64::from(standing(i)) << 16 > drawn * most || most == 0 {
                left |= 1 << i;
                total += weight(i);
            }
        }
        let mut random = random;
        while usize::from(out.len) < ADDRESSES_MAX && left != 0 {
            random = mix(random);
            let mut point = ((u128::from(random) * u128::from(total)) >> 64) as u64;
            for i in (0..count).filter(|i| left >> i & 1 == 1) {
                if let Some(rest) = point.checked_sub(weight(i)) {
                    point = rest;
                    continue;
                }
                out.items[usize::from(out.len)] = all[at(i)];
                out.len += 1;
                left &= !(1 << i);
                total -= weight(i);
                break;
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn addresses_go_round_and_stop_at_the_limit() {
        let three = [v4(1), v4(2), v4(3)];
        for (start, expected) in [
            (0, [1, 2, 3]),
            (1, [2, 3, 1]),
            (2, [3, 1, 2]),
            (3, [1, 2, 3]),
            (301, [2, 3, 1]),
        ] {
            assert_eq!(
                &*Addresses::rotated(&three, start),
                &expected.map(v4),
                "start {start}"
            );
        }
        assert!(Addresses::rotated(&[], 5).is_empty());
        let many: Vec<IpAddr> = (0..20).map(v4).collect();
        let got = Addresses::rotated(&many, 15);
        assert_eq!(&*got, &[15, 16, 17, 18, 19, 0, 1, 2].map(v4));
    }

    #[test]
    fn weights_are_met_in_the_order_and_in_what_is_left_out() {
        let all = [v4(1), v4(2), v4(3)];
        let weight = |weight: u16, ramp: u16| Weight { weight, ramp };
        let weights = [
            weight(10_000, u16::MAX),
            weight(20_000, u16::MAX),
            weight(40_000, u16::MAX / 4),
        ];
        for (leaves_out, given, first) in [
            (true, [25, 50, 100], [10, 23, 67]),
            (false, [100, 100, 25], [30, 60, 10]),
        ] {
            let (mut seen, mut led) = ([0_i32; 3], [0_i32; 3]);
            for i in 0..10_000 {
                let got = Addresses::weighted(&all, &weights, leaves_out, mix(i));
                let distinct: std::collections::BTreeSet<_> = got.iter().collect();
                assert!(!got.is_empty() && distinct.len() == got.len());
                got.iter()
                    .for_each(|a| seen[all.iter().position(|b| a == b).unwrap()] += 1);
                led[all.iter().position(|a| *a == got[0]).unwrap()] += 1;
            }
            assert!(
                seen.iter()
                    .zip(given)
                    .all(|(got, want)| (got / 100 - want).abs() <= 3),
                "{leaves_out}: {seen:?}"
            );
            assert!(
                led.iter()
                    .zip(first)
                    .all(|(got, want)| (got / 100 - want).abs() <= 9),
                "{leaves_out}: {led:?}"
            );
        }
        let many: Vec<IpAddr> = (0..200).map(v4).collect();
        assert_eq!(
            Addresses::weighted(&many, &vec![weight(5, 5); 200], true, 3).len(),
            ADDRESSES_MAX
        );
        assert_eq!(
            Addresses::weighted(&all, &[weight(0, 0); 3], true, 3).len(),
            3,
            "weights of nothing are equal weights"
        );
        assert!(Addresses::weighted(&[], &[], true, 3).is_empty());
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
