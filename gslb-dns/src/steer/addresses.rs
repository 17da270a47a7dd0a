//! The addresses of one answer, drawn from those of a cluster.

use std::net::IpAddr;
use std::ops::Deref;

use nearcast_fleet::random::mix;

/// Most addresses in one answer.
pub(super) const ADDRESSES_MAX: usize = 8;
/// Most addresses considered for one answer where their weights differ.
const WEIGHED_MAX: usize = 64;

/// The weight of a node's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weight {
    /// Relative to the others of its pool.
    pub(super) weight: u16,
    /// The share of its clients that it gets while it returns, `u16::MAX` for all.
    pub(super) ramp: u16,
}

impl Weight {
    /// That of a node whose weight is not known.
    pub(super) const WHOLE: Self = Self {
        weight: u16::MAX,
        ramp: u16::MAX,
    };
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

    /// `all` in rotation, starting at the `start`-th one (modulo their number), cut at the limit.
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

impl Addresses {
    /// Some of `all` at random, by weights, which are in the same order.
    ///
    /// With `leaves_out` the share of answers that hold an address is its weight relative to the
    /// largest, in any order, so that it does not matter which address of an answer resolvers and
    /// clients use; one address always remains. Without it all addresses are in the answer, in an
    /// order drawn by weight: many clients may share the answer and must be spread over all nodes.
    /// Returning nodes are left out of these too, as often as their ramp says.
    pub(super) fn weighted(
        all: &[IpAddr],
        weights: &[Weight],
        leaves_out: bool,
        random: u64,
    ) -> Self {
        let mut out = Self::EMPTY;
        // Where there are more nodes than are considered, start at a random one.
        let start = if all.len() > WEIGHED_MAX {
            (mix(random) as usize) % all.len()
        } else {
            0
        };
        let count = all.len().min(weights.len()).min(WEIGHED_MAX);
        let at = |i: usize| (start + i) % all.len();
        let availability = |i: usize| {
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
        let most = u64::from((0..count).map(availability).max().unwrap_or(0));
        let mut left = 0_u64;
        let mut total = 0_u64;

        for i in 0..count {
            let drawn = mix(random ^ (i as u64 + 1) << 48) & 0xffff;
            if u64::from(availability(i)) << 16 > drawn * most || most == 0 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::random::mix;

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
}
