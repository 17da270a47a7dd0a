//! Selects the cluster: pure, without sockets, clocks and maps; chance is an argument.
//!
//! Each policy ranks the site's clusters; the first one that is up and accepts the client is
//! selected. A cluster that is full, or has just returned, accepts only a share of its clients
//! ([`super::share`], [`super::ramp`]): those whose hash of prefix and cluster name is below the
//! share. For a resolver that sends no subnet the hash is of its own prefix, moved a little by
//! chance. Shares are relative to the largest of the site's clusters that are up, so one of them
//! always accepts the client, and the only one that is up accepts all. When none is up, the
//! addresses of the first one are given: a health check can be wrong about all of them at once, and
//! no answer is surely wrong.
//!
//! A cluster without an address of the requested family is no candidate. So a name has addresses of
//! a family for every client or for none, as RFC 7871 requires, and a client that queries `AAAA`
//! gets the best cluster that has one.

use std::net::IpAddr;

use nearcast_fleet::config::SelectionPolicy;

use super::addresses::Weight;
use super::choice::{Family, Reason};
use super::plan::distance_km;
use super::share::{Fraction, WHOLE};
use nearcast_fleet::random::mix;

/// Round-trip times are ranked over the nearest so many clusters of a site.
pub(super) const RANKED_MAX: usize = 64;
/// The guess at distance zero, in place of a time that was never measured. It is on the high side,
/// as a good measured time is more certain.
const GUESS_BASE_US: f64 = 20_000.0;
/// Added to it for each kilometre: light in fibre there and back, over twice the shortest way.
const GUESS_US_PER_KM: f64 = 20.0;
/// Times that differ by less than this and a fiftieth are equal, and distance decides.
const EQUAL_WITHIN_US: f64 = 500.0;
/// A resolver without client subnets may be drawn this part of the whole away from its hash.
const RESOLVER_CHANCE: u32 = 8;
/// No measurement.
pub(super) const UNMEASURED: u32 = u32::MAX;

/// Addresses of one family in one cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Pool {
    /// Of all its nodes.
    pub(super) all: Vec<IpAddr>,
    /// Of those that are up.
    pub(super) up: Vec<IpAddr>,
    /// Of those that are up, in the same order; empty when all weigh the same.
    pub(super) weights: Vec<Weight>,
}

/// The state of a cluster as selection sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ClusterState {
    /// `A`.
    pub(super) v4: Pool,
    /// `AAAA`.
    pub(super) v6: Pool,
    /// Weight under weighted steering.
    pub(super) weight: u32,
    /// Degrees north and east.
    pub(super) position: (f64, f64),
    /// Whether it has reached its capacity, or gives clients away so as not to.
    pub(super) full: bool,
    /// The share that it accepts of clients known by their prefix.
    pub(super) by_prefix: Fraction,
    /// The share that it accepts of other clients.
    pub(super) by_chance: Fraction,
    /// Makes hashes of prefixes differ from those of other clusters.
    pub(super) salt: u64,
}

impl Default for ClusterState {
    fn default() -> Self {
        let (v4, v6) = Default::default();
        Self {
            v4,
            v6,
            weight: 0,
            position: (0.0, 0.0),
            full: false,
            by_prefix: WHOLE,
            by_chance: WHOLE,
            salt: 0,
        }
    }
}

/// Whether a cluster can be selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Availability {
    /// It can be selected.
    Open,
    /// It is full: only for a share of its clients.
    Full,
    /// No node is up.
    Down,
    /// No node has an address of that family.
    NoAddress,
}

impl ClusterState {
    /// Its addresses of a family.
    pub(super) fn pool(&self, family: Family) -> &Pool {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Whether it can be selected for that family.
    pub(super) fn availability(&self, family: Family) -> Availability {
        let pool = self.pool(family);
        match (pool.up.is_empty(), pool.all.is_empty()) {
            (false, _) if self.full => Availability::Full,
            (false, _) => Availability::Open,
            (true, false) => Availability::Down,
            (true, true) => Availability::NoAddress,
        }
    }

    /// Whether it accepts all of its clients.
    pub(super) fn takes_all(&self) -> bool {
        self.by_prefix == WHOLE && self.by_chance == WHOLE
    }

    /// The addresses to answer with: of nodes that are up, else of all. With their weights; none
    /// when they are equal.
    pub(super) fn serving(&self, family: Family) -> (&[IpAddr], &[Weight]) {
        let pool = self.pool(family);
        if pool.up.is_empty() {
            (&pool.all, &[])
        } else {
            (&pool.up, &pool.weights)
        }
    }
}

/// The inputs of one decision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) policy: SelectionPolicy,
    /// All clusters of the fleet.
    pub(super) clusters: &'a [ClusterState],
    /// The site's clusters, best first by distance, or by weight when the location is unknown.
    pub(super) order: &'a [u16],
    /// Whether the client's location is known.
    pub(super) placed: bool,
    /// The client's location, degrees north and east.
    pub(super) here: Option<(f64, f64)>,
    /// Measured microseconds by cluster, [`UNMEASURED`] where there is none.
    pub(super) rtt: Option<&'a [u32]>,
    pub(super) family: Family,
    /// Explore when the random number's upper half is below this.
    pub(super) explore_below: u32,
    /// Counts the answers of the site, for [`SelectionPolicy::RoundRobin`].
    pub(super) turn: u64,
    pub(super) random: u64,
    /// Whether one of the clusters accepts only a share of its clients.
    pub(super) is_shared: bool,
    /// The prefix of the client or resolver, in the grain by which shares are split.
    pub(super) grain: u64,
    /// Whether that prefix is the client's; else many clients may be behind it.
    pub(super) has_subnet: bool,
}

impl Inputs<'_> {
    fn state(&self, cluster: u16) -> &ClusterState {
        &self.clusters[usize::from(cluster)]
    }

    fn is_up(&self, cluster: u16) -> bool {
        matches!(
            self.state(cluster).availability(self.family),
            Availability::Open | Availability::Full
        )
    }

    /// Whether the answer is drawn by chance, for any client.
    fn is_drawn(&self) -> bool {
        matches!(
            self.policy,
            SelectionPolicy::Weighted | SelectionPolicy::RoundRobin
        )
    }

    /// The share that a cluster accepts of clients like this one.
    fn part(&self, cluster: u16) -> Fraction {
        let state = self.state(cluster);
        if self.has_subnet || self.is_drawn() {
            state.by_prefix
        } else {
            state.by_chance
        }
    }

    /// The largest share among the clusters that are up.
    fn most(&self, ranked: impl Iterator<Item = u16>) -> Fraction {
        if self.is_shared {
            ranked
                .filter(|c| self.is_up(*c))
                .map(|c| self.part(c))
                .max()
                .unwrap_or(WHOLE)
        } else {
            WHOLE
        }
    }

    /// Whether a cluster accepts this client, where the largest share is `most`.
    fn takes(&self, cluster: u16, most: Fraction) -> bool {
        let part = self.part(cluster);
        if part >= most {
            return true;
        }
        let salt = self.state(cluster).salt;
        let (hash, chance) = (
            (mix(self.grain ^ salt) >> 32) as u32,
            (mix(self.random ^ salt) >> 32) as u32,
        );
        let drawn = u64::from(match (self.is_drawn(), self.has_subnet) {
            (true, _) => chance,
            (false, true) => hash,
            // Near the edge of the share a resolver's answers are divided over time: it may stand
            // for more demand than fits.
            (false, false) => hash.wrapping_add(chance / RESOLVER_CHANCE),
        });
        // Both sides are multiplied by `most`, which avoids a division.
        drawn * u64::from(most) < u64::from(part) << 32
    }
}

/// One cluster in a ranking by time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ranked {
    pub(super) cluster: u16,
    /// Microseconds, measured or guessed.
    pub(super) score: f64,
    pub(super) measured: bool,
}

/// A ranking of at most [`RANKED_MAX`] clusters, on the stack.
pub(super) struct Ranking {
    items: [Ranked; RANKED_MAX],
    len: usize,
}

impl Ranking {
    /// Best first.
    pub(super) fn items(&self) -> &[Ranked] {
        &self.items[..self.len]
    }
}

/// Ranks the clusters that have an address by time. A cluster without a measured time is ranked by
/// a guess from its distance, or last when the location is unknown, so that one measurement of a
/// distant cluster does not draw all clients there.
pub(super) fn rank_by_time(q: &Inputs<'_>) -> Ranking {
    let empty = Ranked {
        cluster: 0,
        score: 0.0,
        measured: false,
    };
    let mut ranking = Ranking {
        items: [empty; RANKED_MAX],
        len: 0,
    };

    for (place_in_order, cluster) in q.order.iter().enumerate() {
        let state = &q.clusters[usize::from(*cluster)];
        if ranking.len == RANKED_MAX || state.availability(q.family) == Availability::NoAddress {
            continue;
        }
        let measured = q
            .rtt
            .and_then(|row| row.get(usize::from(*cluster)).copied())
            .filter(|us| *us != UNMEASURED);
        let score = match (measured, q.here) {
            (Some(us), _) => f64::from(us),
            (None, Some(here)) if q.rtt.is_some() => {
                GUESS_BASE_US + GUESS_US_PER_KM * distance_km(here, state.position)
            }
            // In the order given; only ranks matter.
            (None, _) => 1e12 + place_in_order as f64,
        };
        let mut slot = ranking.len;
        while slot > 0 && ranking.items[slot - 1].score > score {
            ranking.items[slot] = ranking.items[slot - 1];
            slot -= 1;
        }
        ranking.items[slot] = Ranked {
            cluster: *cluster,
            score,
            measured: measured.is_some(),
        };
        ranking.len += 1;
    }

    prefer_near_among_equals(&mut ranking, q.order);
    ranking
}

/// Moves the cluster that is first in `order` to the front, among those about as quick as the
/// quickest.
fn prefer_near_among_equals(ranking: &mut Ranking, order: &[u16]) {
    let Some(best) = ranking.items().first().copied().filter(|r| r.measured) else {
        return;
    };
    let limit = best.score * 1.02 + EQUAL_WITHIN_US;
    let equals = ranking
        .items()
        .iter()
        .take_while(|r| r.score <= limit)
        .count();
    let nearest = order
        .iter()
        .find_map(|c| ranking.items[..equals].iter().position(|r| r.cluster == *c));
    if let Some(nearest) = nearest {
        ranking.items[..=nearest].rotate_right(1);
    }
}

/// The result of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    /// `None` only with [`Reason::NoAddress`].
    pub(super) cluster: Option<u16>,
    pub(super) reason: Reason,
}

/// Selects a cluster.
pub(super) fn decide(q: &Inputs<'_>) -> Decision {
    match q.policy {
        SelectionPolicy::Geo => {
            let plain = if q.placed {
                Reason::Geo
            } else {
                Reason::Unplaced
            };
            first_open(q, q.order.iter().copied(), |_| plain)
        }
        SelectionPolicy::Rtt => by_time(q),
        SelectionPolicy::Weighted | SelectionPolicy::RoundRobin => by_chance(q),
    }
}

/// The first cluster of a ranking that is up and accepts the client, or the first of all when none
/// is up.
fn first_open(
    q: &Inputs<'_>,
    ranked: impl Iterator<Item = u16> + Clone,
    plain: impl Fn(u16) -> Reason,
) -> Decision {
    let most = q.most(ranked.clone());
    let mut passed: Option<(u16, Availability)> = None;
    for cluster in ranked.clone() {
        match q.state(cluster).availability(q.family) {
            Availability::NoAddress => {}
            availability @ (Availability::Open | Availability::Full) if q.takes(cluster, most) => {
                let is_open = |c: u16| q.state(c).availability(q.family) == Availability::Open;
                let reason = match passed {
                    _ if availability == Availability::Full && !ranked.clone().any(is_open) => {
                        Reason::AllFull
                    }
                    None => plain(cluster),
                    Some((_, Availability::Full)) => Reason::Spill,
                    // It is down, or has just returned.
                    Some(_) => Reason::Failover,
                };
                return Decision {
                    cluster: Some(cluster),
                    reason,
                };
            }
            availability => passed = passed.or(Some((cluster, availability))),
        }
    }

    match passed {
        Some((cluster, _)) => Decision {
            cluster: Some(cluster),
            reason: Reason::AllDown,
        },
        None => Decision {
            cluster: None,
            reason: Reason::NoAddress,
        },
    }
}

fn by_time(q: &Inputs<'_>) -> Decision {
    let placed = if q.placed {
        Reason::Geo
    } else {
        Reason::Unplaced
    };
    let explores = ((q.random >> 32) as u32) < q.explore_below;

    if q.rtt.is_none() && !explores {
        return first_open(q, q.order.iter().copied(), |_| placed);
    }
    let ranking = rank_by_time(q);
    let is_open = |r: &&Ranked| {
        q.state(r.cluster).availability(q.family) == Availability::Open
            && q.state(r.cluster).takes_all()
    };

    if explores && let Some(second) = ranking.items().iter().filter(is_open).nth(1) {
        return Decision {
            cluster: Some(second.cluster),
            reason: Reason::Explore,
        };
    }

    let measured = |cluster| {
        ranking
            .items()
            .iter()
            .any(|r| r.cluster == cluster && r.measured)
    };

    first_open(q, ranking.items().iter().map(|r| r.cluster), |c| {
        if measured(c) { Reason::Rtt } else { placed }
    })
}

/// Weighted and round-robin: among the clusters that are up, or all when none is, for any client. A
/// share below the whole lowers a cluster's weight, or passes some of its turns to the next.
fn by_chance(q: &Inputs<'_>) -> Decision {
    for up in [true, false] {
        let candidates =
            q.order
                .iter()
                .copied()
                .filter(move |c| match q.state(*c).availability(q.family) {
                    Availability::Open | Availability::Full => up,
                    Availability::Down => !up,
                    Availability::NoAddress => false,
                });
        if candidates.clone().next().is_none() {
            continue;
        }

        // Where all are down, shares do not count.
        let most = match up {
            true => q.most(q.order.iter().copied()),
            false => 0,
        };
        let cluster = match q.policy {
            SelectionPolicy::Weighted => drawn_by_weight(q, candidates.clone(), most),
            _ => in_turn(q, candidates.clone(), most),
        };

        let is_full = |c: u16| q.state(c).availability(q.family) == Availability::Full;
        let reason = match (up, q.policy) {
            (false, _) => Reason::AllDown,
            _ if candidates.clone().all(is_full) => Reason::AllFull,
            (_, SelectionPolicy::Weighted) => Reason::Weighted,
            _ => Reason::RoundRobin,
        };
        return Decision { cluster, reason };
    }
    Decision {
        cluster: None,
        reason: Reason::NoAddress,
    }
}

/// Draws a candidate by weight. A share below the whole lowers the weight, in 1024 steps.
fn drawn_by_weight(
    q: &Inputs<'_>,
    mut candidates: impl Iterator<Item = u16> + Clone,
    most: Fraction,
) -> Option<u16> {
    let weight = |c: u16| {
        let share = match (most, q.part(c)) {
            (0, _) => 1 << 10,
            (_, 0) => 0,
            (_, part) => u64::from(part >> 22) + 1,
        };
        u64::from(q.state(c).weight) * share
    };
    let total: u64 = candidates.clone().map(weight).sum();
    // If all weights are zero, they are equal.
    let (weight, total): (&dyn Fn(u16) -> u64, u64) = match total {
        0 => (&|_| 1, candidates.clone().count() as u64),
        total => (&weight, total),
    };

    let mut left = ((u128::from((q.random >> 16) & 0xffff_ffff) * u128::from(total)) >> 32) as u64;
    candidates.find(|c| match left.checked_sub(weight(*c)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })
}

/// The candidate whose turn it is, or the next one that accepts the client.
fn in_turn(
    q: &Inputs<'_>,
    candidates: impl Iterator<Item = u16> + Clone,
    most: Fraction,
) -> Option<u16> {
    let count = candidates.clone().count();
    let turn = (q.turn % count.max(1) as u64) as usize;
    candidates
        .clone()
        .cycle()
        .skip(turn)
        .take(count)
        .find(|c| q.takes(*c, most))
        .or_else(|| candidates.clone().nth(turn))
}

#[cfg(test)]
mod tests;
