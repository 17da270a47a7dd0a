//! The share of its clients that each cluster keeps, so that a full cluster gives away its surplus
//! and no more.
//!
//! A cluster with a load above [`TARGET`] of its capacity keeps a share of its clients; the others
//! get the next cluster in their own order, which keeps a share of those in turn. When all clusters
//! that share sites are together loaded above the target, the target of each is their common load,
//! so that they become equally full. Two facts make the share a control loop rather than a formula:
//!
//! - *An answer lasts*: resolvers keep it for the site's TTL, and loads are reported afterwards.
//!   The measured load is the effect of the shares over the last TTL, and of demand. So the new
//!   share is the mean of those shares, corrected by the load that resulted: demand is `load /
//!   mean`, and the share to keep is `target / demand`. This does not oscillate: where the load is
//!   on target, the share stays.
//! - *Not every client can be moved gradually*: all clients of a resolver that sends no client
//!   subnet share one cached answer, and such a resolver may bring a third of the demand. Moved by
//!   chance, that demand would jump to and fro with each TTL. So clients with a subnet are moved
//!   first, prefix by prefix, by a hash, which is steady. Resolvers without one take part only
//!   where moving the others does not suffice; those at the edge of the share are moved by the
//!   chance of each answer.
//!
//! Pure but for its memory; time is an argument.

use nearcast_fleet::config::Fleet;

/// Load above this part of the capacity is given away.
pub(super) const TARGET: f64 = 0.95;
/// A cluster keeps at least this share, so that its effect on the load can be measured.
const LEAST: f64 = 0.02;
/// Number of samples of past shares, over the time that an answer lasts.
const REMEMBERED: usize = 32;
/// The share follows its command in this part of the time that an answer lasts.
const FOLLOWS_IN: f64 = 0.12;
/// A load this much above its target is too high.
const TOO_HIGH: f64 = 0.03;
/// The exponent that corrects the share: a little more than one, since not all clients can be
/// moved.
const CORRECTS: f64 = 1.25;
/// When a load stays too high for so many lifetimes of an answer, fewer clients can be moved than
/// the share assumes, and the correction grows by [`IMPATIENCE`] for each further lifetime, up to
/// [`EAGER_MAX`].
const PATIENCE: f64 = 1.25;
/// See [`PATIENCE`].
const IMPATIENCE: f64 = 1.5;
/// See [`PATIENCE`].
const EAGER_MAX: f64 = 6.0;
/// Below this share, where hardly any client with a subnet is kept and the load is still too high,
/// resolvers without one take part.
const EXHAUSTED: f64 = 2.0 * LEAST;
/// They leave again over so many lifetimes of an answer, once the load allows it.
const LEAVES_IN: f64 = 20.0;
/// Longest TTL considered: longer ones would make the share too slow for changing demand.
const LASTS_MS_MAX: u64 = 300_000;

/// A share as a fixed-point number, `u32::MAX` for the whole.
pub(super) type Fraction = u32;
/// All clients.
pub(super) const WHOLE: Fraction = u32::MAX;

/// A share in whole steps of a 1024th, so that small changes do not make a new snapshot.
pub(super) fn part(share: f64) -> Fraction {
    let steps = (share.clamp(0.0, 1.0) * 1_024.0).round() as u64;
    (steps << 22).min(u64::from(WHOLE)) as u32
}

/// The share of its clients that a cluster keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RetainedShare {
    /// Of clients known by their prefix.
    pub(super) by_prefix: f64,
    /// Of resolvers that send no prefix.
    pub(super) by_chance: f64,
}

impl RetainedShare {
    pub(super) const ALL: Self = Self {
        by_prefix: 1.0,
        by_chance: 1.0,
    };
}

/// The control loop of one cluster's share.
#[derive(Debug)]
struct ShareController {
    kept: f64,
    /// How far resolvers without a client subnet take part, 0 to 1.
    chance: f64,
    /// Past shares, over the time that an answer lasts.
    past: [f64; REMEMBERED],
    next: usize,
    remembered_ms: u64,
    too_high_ms: u64,
    at_ms: u64,
}

impl ShareController {
    fn new(now_ms: u64) -> Self {
        Self {
            kept: 1.0,
            chance: 0.0,
            past: [1.0; REMEMBERED],
            next: 0,
            remembered_ms: now_ms,
            too_high_ms: 0,
            at_ms: now_ms,
        }
    }

    fn advance(&mut self, load: f64, target: f64, lasts_ms: u64, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.at_ms);
        self.at_ms = now_ms;
        let lasts = lasts_ms.max(1) as f64;
        let passed = passed_ms as f64 / lasts;
        let mean = self.past.iter().sum::<f64>() / REMEMBERED as f64;
        let eager = (CORRECTS + IMPATIENCE * (self.too_high_ms as f64 / lasts - PATIENCE).max(0.0))
            .min(EAGER_MAX);
        let command = (mean * (target / load.max(1e-3)).powf(eager)).clamp(LEAST, 1.0);
        self.kept += (command - self.kept) * (1.0 - (-passed / FOLLOWS_IN).exp());

        self.too_high_ms = if load > target + TOO_HIGH {
            self.too_high_ms + passed_ms
        } else {
            0
        };

        if self.too_high_ms > 0 && self.kept <= EXHAUSTED && self.chance == 0.0 {
            // The remaining demand is that of the resolvers that have not taken part: the share
            // starts again, now for them too.
            (self.kept, self.chance) = ((target / load).clamp(LEAST, 1.0), 1.0);
            (self.past, self.too_high_ms) = ([1.0; REMEMBERED], 0);
        } else if self.too_high_ms > 0 && self.kept <= EXHAUSTED {
            self.chance = (self.chance + passed).min(1.0);
        } else if load <= target && self.kept > 0.5 {
            self.chance = (self.chance - passed / LEAVES_IN).max(0.0);
        }

        // After a long pause all samples are the present share.
        let step_ms = (lasts_ms / REMEMBERED as u64).max(1);
        let steps = now_ms.saturating_sub(self.remembered_ms) / step_ms;
        self.remembered_ms += steps * step_ms;
        for _ in 0..steps.min(REMEMBERED as u64) {
            self.past[self.next] = self.kept;
            self.next = (self.next + 1) % REMEMBERED;
        }

        if self.kept > 0.999 {
            self.kept = 1.0;
        }
    }

    fn kept(&self) -> RetainedShare {
        RetainedShare {
            by_prefix: self.kept,
            by_chance: 1.0 - (1.0 - self.kept) * self.chance,
        }
    }
}

/// The load of a cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ClusterLoad {
    /// Bits a second that its nodes in answers send.
    pub(super) egress_bits: f64,
    /// Bits a second that they can carry.
    pub(super) capacity_bits: f64,
}

impl ClusterLoad {
    pub(super) fn ratio(self) -> f64 {
        self.egress_bits / self.capacity_bits.max(1.0)
    }
}

/// The shares of all clusters of one fleet, by their numbers.
#[derive(Debug)]
pub(super) struct Shares {
    controls: Vec<Option<ShareController>>,
    /// Clusters with the same number share sites, directly or through others.
    groups: Vec<usize>,
    /// Milliseconds for which an answer affects the reported loads.
    lasts_ms: Vec<u64>,
}

impl Shares {
    pub(super) fn new(fleet: &Fleet) -> Self {
        let count = fleet.clusters.len();
        let mut groups: Vec<usize> = (0..count).collect();
        let mut ttl_ms = vec![0; count];
        for site in &fleet.sites {
            let site_ms = (site.ttl.as_millis() as u64).min(LASTS_MS_MAX);
            let Some(first) = site.clusters.first().map(|c| groups[*c]) else {
                continue;
            };
            for cluster in &site.clusters {
                ttl_ms[*cluster] = site_ms.max(ttl_ms[*cluster]);
                let joined = groups[*cluster];
                groups
                    .iter_mut()
                    .filter(|g| **g == joined)
                    .for_each(|g| *g = first);
            }
        }

        // A report holds the mean of an interval, and is an interval old when the next one arrives.
        let reported_ms = fleet.report_interval.as_millis() as u64 * 3 / 2;
        let lasts_ms = ttl_ms
            .into_iter()
            .map(|ttl| ttl.max(1_000) + reported_ms)
            .collect();

        Self {
            controls: (0..count).map(|_| None).collect(),
            groups,
            lasts_ms,
        }
    }

    /// Adopts another fleet; clusters that remain, by name, keep their shares.
    pub(super) fn adopt(&mut self, from: &Fleet, to: &Fleet) {
        let mut old = std::mem::replace(self, Self::new(to));
        for (control, cluster) in self.controls.iter_mut().zip(&to.clusters) {
            let was = from.clusters.iter().position(|c| c.name == cluster.name);
            *control = was
                .and_then(|i| old.controls.get_mut(i))
                .and_then(Option::take);
        }
    }

    /// Records the load of each cluster, `None` where it is unknown or has no limit.
    pub(super) fn advance(&mut self, loads: &[Option<ClusterLoad>], now_ms: u64) {
        for (number, load) in loads.iter().enumerate() {
            let Some(load) = load.filter(|l| l.capacity_bits > 0.0) else {
                self.controls[number] = None;
                continue;
            };
            let (load, target) = (load.ratio(), self.target(number, loads));
            if self.controls[number].is_none() && load <= target {
                continue;
            }
            let control = self.controls[number].get_or_insert_with(|| ShareController::new(now_ms));
            control.advance(load, target, self.lasts_ms[number], now_ms);
            if control.kept >= 1.0 && control.past.iter().all(|p| *p > 0.999) && load <= target {
                self.controls[number] = None;
            }
        }
    }

    /// The load that a cluster may have: that of its whole group when this exceeds [`TARGET`]. A
    /// cluster with an unknown load has room for all that the others give away.
    fn target(&self, number: usize, loads: &[Option<ClusterLoad>]) -> f64 {
        let mut group = self
            .groups
            .iter()
            .zip(loads)
            .filter(|(g, _)| **g == self.groups[number])
            .map(|(_, load)| *load);
        let sum = group.try_fold((0.0, 0.0), |(egress, capacity), load| {
            let load = load?;
            Some((egress + load.egress_bits, capacity + load.capacity_bits))
        });
        sum.map_or(TARGET, |(egress, capacity)| {
            TARGET.max(egress / f64::max(capacity, 1.0))
        })
    }

    /// What a cluster keeps.
    pub(super) fn kept(&self, number: usize) -> RetainedShare {
        self.controls
            .get(number)
            .and_then(Option::as_ref)
            .map_or(RetainedShare::ALL, ShareController::kept)
    }
}

/// How fast weights follow loads, a time that an answer lasts.
const BALANCE_RATE: f64 = 0.5;
/// Below this load of the cluster, how its nodes differ is no harm.
const BALANCE_FROM: f64 = 0.3;
/// A weight differs from the share of the capacity by this factor at most.
const BALANCE_MAX: f64 = 16.0;

/// Corrects the weight of one node by its load against that of all nodes of its cluster, both as
/// parts of their capacity.
pub(super) fn balance(correction: &mut f64, load: f64, mean: f64, passed_ms: u64, lasts_ms: u64) {
    let passed = (passed_ms as f64 / lasts_ms.max(1) as f64).min(1.0);
    if mean < BALANCE_FROM {
        *correction += (1.0 - *correction) * passed;
        return;
    }
    let above = (load / mean - 1.0).clamp(-1.0, 1.0);
    *correction =
        (*correction * (1.0 - BALANCE_RATE * above * passed)).clamp(1.0 / BALANCE_MAX, BALANCE_MAX);
}

impl Shares {
    /// Milliseconds for which an answer of that cluster shows in reports.
    pub(super) fn lasts_ms(&self, number: usize) -> u64 {
        self.lasts_ms.get(number).copied().unwrap_or(LASTS_MS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steer::fixture;

    fn load(ratio: f64) -> Option<ClusterLoad> {
        Some(ClusterLoad {
            egress_bits: ratio * 1e6,
            capacity_bits: 1e6,
        })
    }

    /// Holds loads for a number of seconds.
    fn hold(shares: &mut Shares, loads: [Option<ClusterLoad>; 3], from_s: u64, seconds: u64) {
        for quarter in 0..seconds * 4 {
            shares.advance(&loads, from_s * 1_000 + quarter * 250);
        }
    }

    #[test]
    fn what_is_below_the_target_is_kept_whole() {
        let mut shares = Shares::new(&fixture::fleet());
        hold(&mut shares, [load(0.94), load(0.5), load(0.0)], 0, 300);
        assert_eq!([0, 1, 2].map(|c| shares.kept(c)), [RetainedShare::ALL; 3]);
    }

    #[test]
    fn a_surplus_is_given_away_by_prefix_first_and_then_by_chance_too() {
        let mut shares = Shares::new(&fixture::fleet());
        hold(&mut shares, [load(1.2), load(0.2), load(0.2)], 0, 20);
        let kept = shares.kept(0);
        assert!((0.6..0.85).contains(&kept.by_prefix), "{kept:?}");
        assert_eq!(kept.by_chance, 1.0);
        assert_eq!(shares.kept(1), RetainedShare::ALL);
        hold(&mut shares, [load(1.2), load(0.2), load(0.2)], 20, 400);
        let kept = shares.kept(0);
        assert!(
            kept.by_prefix < 0.1 && kept.by_chance < 0.2,
            "nothing helped: {kept:?}"
        );
        hold(&mut shares, [load(0.3), load(0.2), load(0.2)], 420, 600);
        assert_eq!(shares.kept(0), RetainedShare::ALL, "and comes back whole");
        hold(&mut shares, [load(1.2), load(0.2), load(0.2)], 1_020, 20);
        hold(&mut shares, [None, load(0.2), load(0.2)], 1_040, 1);
        assert_eq!(
            shares.kept(0),
            RetainedShare::ALL,
            "of what is not known nothing is given away"
        );
    }

    #[test]
    fn the_target_of_all_is_what_all_carry() {
        let mut fleet = fixture::fleet();
        let shares = Shares::new(&fleet);
        let loads = [load(2.0), load(1.0), load(0.6)];
        for cluster in 0..3 {
            assert!((shares.target(cluster, &loads) - 1.2).abs() < 1e-9);
        }
        let down = Some(ClusterLoad {
            egress_bits: 0.0,
            capacity_bits: 0.0,
        });
        assert_eq!(shares.target(0, &[load(2.0), down, load(0.6)]), 1.3);
        assert_eq!(
            shares.target(0, &[load(2.0), None, load(0.6)]),
            TARGET,
            "one has room for any load"
        );
        assert_eq!(shares.target(0, &[load(0.2), load(0.2), load(0.2)]), TARGET);
        // Amsterdam shares no site with the others.
        fleet.sites = vec![
            fixture::site("a", nearcast_fleet::config::SelectionPolicy::Geo, &[0]),
            fleet.sites[5].clone(),
        ];
        let apart = Shares::new(&fleet);
        assert_eq!([0, 1].map(|c| apart.target(c, &loads)), [2.0, TARGET]);
    }

    #[test]
    fn clusters_that_stay_keep_their_shares() {
        let fleet = fixture::fleet();
        let mut shares = Shares::new(&fleet);
        hold(&mut shares, [load(0.2), load(1.4), load(0.2)], 0, 20);
        let kept = shares.kept(1);
        let mut other = fleet.clone();
        other.clusters.remove(0);
        other.sites = vec![fixture::site(
            "a",
            nearcast_fleet::config::SelectionPolicy::Geo,
            &[0, 1],
        )];
        shares.adopt(&fleet, &other);
        assert_eq!([0, 1].map(|c| shares.kept(c)), [kept, RetainedShare::ALL]);
    }

    #[test]
    fn weights_follow_loads_within_bounds() {
        let mut correction = 1.0;
        balance(&mut correction, 1.2, 1.0, 1_000, 10_000);
        assert!((correction - 0.99).abs() < 1e-9);
        for _ in 0..10_000 {
            balance(&mut correction, 2.0, 1.0, 1_000, 10_000);
        }
        assert_eq!(correction, 1.0 / BALANCE_MAX);
        for _ in 0..200 {
            balance(&mut correction, 0.2, 0.1, 1_000, 10_000);
        }
        assert!(
            (correction - 1.0).abs() < 1e-6,
            "forgotten when there is little load"
        );
    }

    #[test]
    fn parts_are_in_steps() {
        for (share, expected) in [
            (0.0, 0),
            (1.0, WHOLE),
            (2.0, WHOLE),
            (-1.0, 0),
            (0.5, 1 << 31),
            (0.500_1, 1 << 31),
        ] {
            assert_eq!(part(share), expected, "{share}");
        }
    }
}
