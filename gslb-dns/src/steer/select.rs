//! Which cluster: pure, without sockets, clocks and maps; chance is an argument.
//!
//! Each policy ranks the site's clusters; the first one that is up and takes the client is given. A
//! cluster that is full, or has just returned, takes a share of clients alone ([`super::share`],
//! [`super::ramp`]): those with a hash of their prefix and of the cluster's name below that share.
//! For a resolver that shows no subnet it is the hash of its own prefix, moved a little by chance.
//! Shares count relative to the largest of the site's clusters that are up, so one of them always
//! takes the client, and the only one that is up takes everybody. When none is up, the first one's
//! addresses are given all the same, since a health check can be wrong about all of them at once
//! and no answer is surely wrong.
//!
//! A cluster without an address of the family asked for is no candidate. So a name has addresses of
//! a family for every client or for none, as RFC 7871 wants, and a client that asks for `AAAA` is
//! given the best cluster that has one.

use std::net::IpAddr;

use nearcast_fleet::config::SelectionPolicy;

use super::choice::{Family, Reason};
use super::plan::distance_km;
use super::share::{Part, WHOLE};

/// Round-trip times are ranked over the nearest so many clusters of a site.
pub(super) const RANKED_MAX: usize = 64;
/// In place of a time that was never measured, at distance zero. On the high side, as a measured
/// good one is worth more.
const GUESS_BASE_US: f64 = 20_000.0;
/// Added for each kilometre: light in fibre there and back, by twice the shortest way.
const GUESS_US_PER_KM: f64 = 20.0;
/// Times that differ less than this and a fiftieth count as equal, and distance decides.
const EQUAL_WITHIN_US: f64 = 500.0;
/// By this part of all a resolver without client subnets may be drawn away from its hash.
const RESOLVER_CHANCE: u32 = 8;
/// No measurement.
pub(super) const UNMEASURED: u32 = u32::MAX;

/// How much a node's address is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weight {
    /// Relative to the others of its pool.
    pub(super) weight: u16,
    /// The share that it has of its clients while it returns, `u16::MAX` for all.
    pub(super) ramp: u16,
}

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

/// What selection knows of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ClusterState {
    /// `A`.
    pub(super) v4: Pool,
    /// `AAAA`.
    pub(super) v6: Pool,
    /// Share under weighted steering.
    pub(super) weight: u32,
    /// Degrees north and east.
    pub(super) position: (f64, f64),
    /// Whether it is as full as it may be, or gives clients away so as not to be.
    pub(super) full: bool,
    /// The share that it takes of clients known by their prefix.
    pub(super) by_prefix: Part,
    /// The share that it takes of other answers.
    pub(super) by_chance: Part,
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

/// Whether a cluster may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may.
    Open,
    /// It may to a share of clients alone, as it is full.
    Full,
    /// None of its nodes is up.
    Down,
    /// None of its nodes has an address of that family.
    Addressless,
}

impl ClusterState {
    /// Its addresses of a family.
    pub(super) fn pool(&self, family: Family) -> &Pool {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Whether it may be given to those who ask for that family.
    pub(super) fn standing(&self, family: Family) -> Standing {
        let pool = self.pool(family);
        match (pool.up.is_empty(), pool.all.is_empty()) {
            (false, _) if self.full => Standing::Full,
            (false, _) => Standing::Open,
            (true, false) => Standing::Down,
            (true, true) => Standing::Addressless,
        }
    }

    /// Whether it takes all of its clients.
    pub(super) fn takes_all(&self) -> bool {
        self.by_prefix == WHOLE && self.by_chance == WHOLE
    }

    /// The addresses to give from, the best kind it has, with their weights; none when they weigh
    /// the same.
    pub(super) fn serving(&self, family: Family) -> (&[IpAddr], &[Weight]) {
        let pool = self.pool(family);
        if pool.up.is_empty() {
            (&pool.all, &[])
        } else {
            (&pool.up, &pool.weights)
        }
    }
}

/// Everything one decision depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) policy: SelectionPolicy,
    /// All clusters of the fleet.
    pub(super) clusters: &'a [ClusterState],
    /// The site's, best first by distance, or by weight when the place is unknown.
    pub(super) order: &'a [u16],
    /// Whether the client's place is known.
    pub(super) placed: bool,
    /// The client's place, degrees.
    pub(super) here: Option<(f64, f64)>,
    /// Measured microseconds by cluster, [`UNMEASURED`] where there is none.
    pub(super) rtt: Option<&'a [u32]>,
    pub(super) family: Family,
    /// Explore when the random number's upper half is below this.
    pub(super) explore_below: u32,
    /// Counts the answers of the site, for [`SelectionPolicy::RoundRobin`].
    pub(super) turn: u64,
    pub(super) random: u64,
    /// Whether one of the clusters takes only a share of its clients.
    pub(super) is_shared: bool,
    /// The prefix of the client or resolver, of the grain by which shares are split.
    pub(super) grain: u64,
    /// Whether that is the client's; else many clients may be behind it.
    pub(super) has_subnet: bool,
}

/// Mixes the bits of a number (splitmix64's finalizer).
pub(super) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Question<'_> {
    fn state(&self, cluster: u16) -> &ClusterState {
        &self.clusters[usize::from(cluster)]
    }

    fn is_up(&self, cluster: u16) -> bool {
        matches!(
            self.state(cluster).standing(self.family),
            Standing::Open | Standing::Full
        )
    }

    /// Whether answers do not depend on who asks: they are all drawn by chance.
    fn is_drawn(&self) -> bool {
        matches!(
            self.policy,
            SelectionPolicy::Weighted | SelectionPolicy::RoundRobin
        )
    }

    /// The share that a cluster takes of clients like this one.
    fn part(&self, cluster: u16) -> Part {
        let state = self.state(cluster);
        if self.has_subnet || self.is_drawn() {
            state.by_prefix
        } else {
            state.by_chance
        }
    }

    /// The largest share of those that are up.
    fn most(&self, ranked: impl Iterator<Item = u16>) -> Part {
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

    /// Whether a cluster takes this client, where the largest share is `most`.
    fn takes(&self, cluster: u16, most: Part) -> bool {
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
        // Both sides times `most`, in place of a division.
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

/// Ranks by time those clusters that have an address. Measured times count as they are; a cluster
/// without one counts with a guess from its distance, or last when the place is unknown, so that
/// one measurement of a far cluster does not draw everyone there.
pub(super) fn rank_by_time(q: &Question<'_>) -> Ranking {
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
        if ranking.len == RANKED_MAX || state.standing(q.family) == Standing::Addressless {
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

/// Brings forward the cluster that stands first in `order` among those about as quick as the
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

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    /// `None` with [`Reason::NoAddress`] alone.
    pub(super) cluster: Option<u16>,
    pub(super) reason: Reason,
}

/// Decides.
pub(super) fn decide(q: &Question<'_>) -> Decision {
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

/// The first one of a ranking that is up and takes the client, or the first of all when none is up.
fn first_open(
    q: &Question<'_>,
    ranked: impl Iterator<Item = u16> + Clone,
    plain: impl Fn(u16) -> Reason,
) -> Decision {
    let most = q.most(ranked.clone());
    let mut passed: Option<(u16, Standing)> = None;
    for cluster in ranked.clone() {
        match q.state(cluster).standing(q.family) {
            Standing::Addressless => {}
            standing @ (Standing::Open | Standing::Full) if q.takes(cluster, most) => {
                let is_open = |c: u16| q.state(c).standing(q.family) == Standing::Open;
                let reason = match passed {
                    _ if standing == Standing::Full && !ranked.clone().any(is_open) => {
                        Reason::AllFull
                    }
                    None => plain(cluster),
                    Some((_, Standing::Full)) => Reason::Spill,
                    // One that is down, or has just returned.
                    Some(_) => Reason::Failover,
                };
                return Decision {
                    cluster: Some(cluster),
                    reason,
                };
            }
            standing => passed = passed.or(Some((cluster, standing))),
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

fn by_time(q: &Question<'_>) -> Decision {
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
        q.state(r.cluster).standing(q.family) == Standing::Open && q.state(r.cluster).takes_all()
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

/// Weighted and in turn: among those that are up, or all when none is, whoever asks. What a cluster
/// takes less than all counts as less weight, and as turns that it leaves to the next.
fn by_chance(q: &Question<'_>) -> Decision {
    for up in [true, false] {
        let is_candidate = move |c: u16| match q.state(c).standing(q.family) {
            Standing::Open | Standing::Full => up,
            Standing::Down => !up,
            Standing::Addressless => false,
        };
        let candidates = || q.order.iter().copied().filter(move |c| is_candidate(*c));
        let count = candidates().count() as u64;
        if count == 0 {
            continue;
        }
        let most = if up {
            q.most(q.order.iter().copied())
        } else {
            0
        };
        let cluster = match q.policy {
            SelectionPolicy::Weighted => {
                let part = |c: u16| {
                    if most == 0 {
                        1 << 10
                    } else {
                        u64::from(q.part(c) >> 22) + 1
                    }
                };
                let weight = |c: u16| {
                    u64::from(q.state(c).weight)
                        * if q.part(c) == 0 && most > 0 {
                            0
                        } else {
                            part(c)
                        }
                };
                let total: u64 = candidates().map(weight).sum();
                // Weights of nothing but zero are equal weights.
                let (weight, total): (&dyn Fn(u16) -> u64, u64) = if total > 0 {
                    (&weight, total)
                } else {
                    (&|_| 1, count)
                };
                let mut left =
                    ((u128::from((q.random >> 16) & 0xffff_ffff) * u128::from(total)) >> 32) as u64;
                candidates().find(|c| match left.checked_sub(weight(*c)) {
                    Some(rest) => {
                        left = rest;
                        false
                    }
                    None => true,
                })
            }
            _ => {
                let turn = (q.turn % count) as usize;
                candidates()
                    .cycle()
                    .skip(turn)
                    .take(count as usize)
                    .find(|c| q.takes(*c, most))
                    .or_else(|| candidates().nth(turn))
            }
        };
        let all_full = || candidates().all(|c| q.state(c).standing(q.family) == Standing::Full);
        let reason = match (up, q.policy) {
            (false, _) => Reason::AllDown,
            _ if all_full() => Reason::AllFull,
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

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::{Addressless as X, Down as D, Full as F, Open as O};

    /// Three clusters a thousand kilometres apart eastwards on the equator, with that standing;
    /// weights 1, 3 and 4.
    fn clusters(standings: [Standing; 3]) -> Vec<ClusterState> {
        let one = |(i, standing): (usize, Standing)| {
            let all = vec![IpAddr::from([192, 0, 2, i as u8])];
            let when = |yes: bool| if yes { all.clone() } else { Vec::new() };
            let pool = Pool {
                all: when(standing != X),
                up: when(matches!(standing, F | O)),
                weights: Vec::new(),
            };
            // One that is full is so full that it takes nobody.
            let part = if standing == F { 0 } else { WHOLE };
            ClusterState {
                v4: pool,
                weight: [1, 3, 4][i],
                position: (0.0, i as f64 * 8.993),
                full: standing == F,
                by_prefix: part,
                by_chance: part,
                salt: mix(i as u64),
                ..ClusterState::default()
            }
        };
        standings.into_iter().enumerate().map(one).collect()
    }

    fn question(policy: SelectionPolicy, clusters: &[ClusterState]) -> Question<'_> {
        Question {
            policy,
            clusters,
            order: &[0, 1, 2],
            placed: true,
            here: Some((0.0, 0.0)),
            rtt: None,
            family: Family::V4,
            explore_below: 0,
            turn: 0,
            random: 0,
            is_shared: clusters.iter().any(|c| !c.takes_all()),
            grain: 7,
            has_subnet: true,
        }
    }

    #[test]
    fn standings_give_the_first_that_may_be_given() {
        let table = [
            ([O, O, O], Some(0), Reason::Geo),
            ([D, O, O], Some(1), Reason::Failover),
            ([F, O, O], Some(1), Reason::Spill),
            ([F, D, O], Some(2), Reason::Spill),
            ([D, F, O], Some(2), Reason::Failover),
            ([O, D, F], Some(0), Reason::Geo),
            ([X, O, O], Some(1), Reason::Geo),
            ([X, D, O], Some(2), Reason::Failover),
            ([D, F, F], Some(1), Reason::AllFull),
            ([F, F, D], Some(0), Reason::AllFull),
            ([D, D, D], Some(0), Reason::AllDown),
            ([X, D, D], Some(1), Reason::AllDown),
            ([X, X, X], None, Reason::NoAddress),
        ];
        for (standings, cluster, reason) in table {
            let clusters = clusters(standings);
            assert_eq!(
                decide(&question(SelectionPolicy::Geo, &clusters)),
                Decision { cluster, reason },
                "{standings:?}"
            );
            let unplaced = Question {
                placed: false,
                here: None,
                ..question(SelectionPolicy::Geo, &clusters)
            };
            let reason = if reason == Reason::Geo {
                Reason::Unplaced
            } else {
                reason
            };
            assert_eq!(
                decide(&unplaced),
                Decision { cluster, reason },
                "{standings:?} without a place"
            );
        }
    }

    #[test]
    fn the_family_asked_for_counts() {
        let mut clusters = clusters([O, O, O]);
        let v6 = vec!["2001:db8::1".parse().unwrap()];
        clusters[2].v6 = Pool {
            all: v6.clone(),
            up: v6,
            weights: Vec::new(),
        };
        let asked = Question {
            family: Family::V6,
            ..question(SelectionPolicy::Geo, &clusters)
        };
        assert_eq!(
            decide(&asked),
            Decision {
                cluster: Some(2),
                reason: Reason::Geo
            }
        );
    }

    #[test]
    fn serving_prefers_nodes_that_are_up() {
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let mut state = ClusterState::default();
        assert!(state.serving(Family::V4).0.is_empty());
        state.v4.all = vec![address(1), address(2), address(3)];
        assert_eq!(state.serving(Family::V4).0.len(), 3);
        state.v4.up = vec![address(2), address(3)];
        assert_eq!(state.serving(Family::V4).0, [address(2), address(3)]);
    }

    /// How many of 10,000 clients are given each cluster, and for what reasons.
    fn spread(
        clusters: &[ClusterState],
        by_prefix: bool,
    ) -> ([i32; 3], std::collections::BTreeSet<Reason>) {
        let mut counts = [0; 3];
        let mut reasons = std::collections::BTreeSet::new();
        for client in 0..10_000_u64 {
            let random = if by_prefix { 0 } else { mix(client ^ 1 << 60) };
            let asked = question(SelectionPolicy::Geo, clusters);
            let decision = decide(&Question {
                grain: client << 20,
                has_subnet: by_prefix,
                random,
                ..asked
            });
            counts[usize::from(decision.cluster.unwrap())] += 1;
            reasons.insert(decision.reason);
        }
        (counts, reasons)
    }

    #[test]
    fn shares_are_met_and_what_is_left_goes_on_to_the_next() {
        let half = WHOLE / 2;
        let quarter = WHOLE / 4;
        // Standings, shares, and the clients of each in thousands.
        let table = [
            (
                [O, O, O],
                [WHOLE, WHOLE, WHOLE],
                [10, 0, 0],
                vec![Reason::Geo],
            ),
            (
                [F, O, O],
                [half, WHOLE, WHOLE],
                [5, 5, 0],
                vec![Reason::Geo, Reason::Spill],
            ),
            (
                [F, F, O],
                [half, half, WHOLE],
                [5, 2, 3],
                vec![Reason::Geo, Reason::Spill],
            ),
            (
                [F, D, O],
                [half, WHOLE, WHOLE],
                [5, 0, 5],
                vec![Reason::Geo, Reason::Spill],
            ),
            // Those that return, alone or after one that is down.
            (
                [O, O, O],
                [quarter, WHOLE, WHOLE],
                [2, 8, 0],
                vec![Reason::Geo, Reason::Failover],
            ),
            (
                [D, O, O],
                [WHOLE, half, WHOLE],
                [0, 5, 5],
                vec![Reason::Failover],
            ),
            // Shares count by the largest, so that somebody takes every client.
            (
                [O, D, D],
                [quarter, WHOLE, WHOLE],
                [10, 0, 0],
                vec![Reason::Geo],
            ),
            (
                [O, D, O],
                [quarter, WHOLE, quarter],
                [10, 0, 0],
                vec![Reason::Geo],
            ),
            (
                [F, F, F],
                [quarter, half, half],
                [5, 5, 0],
                vec![Reason::AllFull],
            ),
        ];
        for (standings, shares, thousands, reasons) in table {
            let mut clusters = clusters(standings);
            for (cluster, share) in clusters.iter_mut().zip(shares) {
                (cluster.by_prefix, cluster.by_chance) = (share, share);
            }
            for by_prefix in [true, false] {
                let (counts, why) = spread(&clusters, by_prefix);
                let near = counts
                    .iter()
                    .zip(thousands)
                    .all(|(got, want)| (got - want * 1_000).abs() <= 650);
                assert!(
                    near,
                    "{standings:?} {shares:?} by prefix {by_prefix}: {counts:?}"
                );
                assert!(why.iter().eq(&reasons), "{standings:?} {shares:?}: {why:?}");
            }
        }
    }

    #[test]
    fn most_resolvers_stay_and_those_at_the_edge_of_the_share_are_divided_over_time() {
        let mut clusters = clusters([F, O, O]);
        (clusters[0].by_prefix, clusters[0].by_chance) = (WHOLE, WHOLE / 2);
        let kept = |grain: u64| {
            let asked = |i| Question {
                grain,
                has_subnet: false,
                random: mix(i),
                ..question(SelectionPolicy::Geo, &clusters)
            };
            (0..200)
                .filter(|i| decide(&asked(*i)).cluster == Some(0))
                .count()
        };
        let counts: Vec<usize> = (0..1_000).map(kept).collect();
        let divided = counts.iter().filter(|n| **n > 0 && **n < 200).count();
        assert!((150..350).contains(&divided), "{divided} of 1,000");
        let sum: usize = counts.iter().sum();
        assert!((92_000..108_000).contains(&sum), "{sum} of 200,000");
    }

    #[test]
    fn a_prefix_stays_where_it_is_while_its_share_grows() {
        let mut clusters = clusters([F, O, O]);
        let given = |clusters: &[ClusterState], client: u64| {
            decide(&Question {
                grain: client,
                ..question(SelectionPolicy::Geo, clusters)
            })
            .cluster
                == Some(0)
        };
        let mut before = vec![false; 1_000];
        for step in 0..=16 {
            clusters[0].by_prefix = ((u64::from(WHOLE) * step) >> 4) as u32;
            let now: Vec<bool> = (0..1_000).map(|client| given(&clusters, client)).collect();
            assert!(
                before
                    .iter()
                    .zip(&now)
                    .all(|(before, now)| *now || !*before),
                "step {step}"
            );
            before = now;
        }
        assert!(before.iter().all(|kept| *kept));
    }

    #[test]
    fn times_rank_and_distance_stands_in_for_them() {
        const N: u32 = UNMEASURED;
        // Guesses: 20 ms here, 40 ms and 60 ms in the other two.
        type Case = (&'static str, [u32; 3], [Standing; 3], u16, Reason);
        let table: [Case; 12] = [
            (
                "least time",
                [50_000, 10_000, 30_000],
                [O, O, O],
                1,
                Reason::Rtt,
            ),
            (
                "the nearest when it is also quickest",
                [9_000, 30_000, 30_000],
                [O, O, O],
                0,
                Reason::Rtt,
            ),
            (
                "nearly equal times go by distance",
                [10_400, 10_000, 30_000],
                [O, O, O],
                0,
                Reason::Rtt,
            ),
            (
                "but not at any time",
                [10_900, 10_000, 30_000],
                [O, O, O],
                1,
                Reason::Rtt,
            ),
            (
                "one quick measurement draws",
                [N, 15_000, N],
                [O, O, O],
                1,
                Reason::Rtt,
            ),
            (
                "one slow measurement does not",
                [N, N, 200_000],
                [O, O, O],
                0,
                Reason::Geo,
            ),
            (
                "a nearest one known to be slow is left",
                [300_000, N, N],
                [O, O, O],
                1,
                Reason::Geo,
            ),
            (
                "quickest down",
                [50_000, 10_000, 30_000],
                [O, D, O],
                2,
                Reason::Failover,
            ),
            (
                "quickest full",
                [50_000, 10_000, 30_000],
                [O, F, O],
                2,
                Reason::Spill,
            ),
            (
                "quickest of the full ones",
                [50_000, 10_000, 30_000],
                [F, D, F],
                2,
                Reason::AllFull,
            ),
            (
                "quickest of those that are down",
                [50_000, 10_000, 30_000],
                [D, D, D],
                1,
                Reason::AllDown,
            ),
            (
                "no address",
                [50_000, 10_000, 30_000],
                [O, X, O],
                2,
                Reason::Rtt,
            ),
        ];
        for (name, row, standings, cluster, reason) in table {
            let clusters = clusters(standings);
            let asked = Question {
                rtt: Some(&row),
                ..question(SelectionPolicy::Rtt, &clusters)
            };
            assert_eq!(
                decide(&asked),
                Decision {
                    cluster: Some(cluster),
                    reason
                },
                "{name}"
            );
        }
        let clusters = clusters([O, O, O]);
        let plain = question(SelectionPolicy::Rtt, &clusters);
        assert_eq!(
            decide(&plain).reason,
            Reason::Geo,
            "nothing measured, place known"
        );
        assert_eq!(
            decide(&Question {
                placed: false,
                here: None,
                ..plain
            })
            .reason,
            Reason::Unplaced
        );
        let row = [N, N, 90_000];
        let unplaced = Question {
            placed: false,
            here: None,
            rtt: Some(&row),
            ..plain
        };
        assert_eq!(
            decide(&unplaced),
            Decision {
                cluster: Some(2),
                reason: Reason::Rtt
            },
            "without a place what is measured comes first"
        );
    }

    #[test]
    fn a_share_explores_the_second_best() {
        let row = [50_000, 10_000, 30_000];
        let share = u32::MAX / 100;
        let all = clusters([O, O, O]);
        let asked = |random: u64| Question {
            rtt: Some(&row),
            explore_below: share,
            random,
            ..question(SelectionPolicy::Rtt, &all)
        };
        assert_eq!(
            decide(&asked(0)),
            Decision {
                cluster: Some(2),
                reason: Reason::Explore
            }
        );
        assert_eq!(
            decide(&asked(u64::from(share - 1) << 32)).reason,
            Reason::Explore
        );
        assert_eq!(
            decide(&asked(u64::from(share) << 32)),
            Decision {
                cluster: Some(1),
                reason: Reason::Rtt
            }
        );
        let unmeasured = Question {
            rtt: None,
            ..asked(0)
        };
        assert_eq!(
            decide(&unmeasured),
            Decision {
                cluster: Some(1),
                reason: Reason::Explore
            },
            "the second by distance"
        );
        let one_left = clusters([D, O, F]);
        let asked = Question {
            clusters: &one_left,
            ..asked(0)
        };
        assert_eq!(
            decide(&asked),
            Decision {
                cluster: Some(1),
                reason: Reason::Rtt
            },
            "never a full one or one that is down"
        );
    }

    #[test]
    fn weights_are_met_among_those_that_are_open() {
        let shares = |standings: [Standing; 3], weights: Option<u32>| {
            let mut clusters = clusters(standings);
            if let Some(weight) = weights {
                clusters.iter_mut().for_each(|c| c.weight = weight);
            }
            let mut counts = [0; 3];
            let mut reasons = std::collections::BTreeSet::new();
            for step in 0..800_u64 {
                let random = ((step << 32) / 800) << 16;
                let got = decide(&Question {
                    random,
                    ..question(SelectionPolicy::Weighted, &clusters)
                });
                counts[usize::from(got.cluster.unwrap())] += 1;
                reasons.insert(got.reason);
            }
            assert_eq!(reasons.len(), 1);
            (counts, reasons.pop_first().unwrap())
        };
        let near =
            |got: [i32; 3], want: [i32; 3]| got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 2);
        for (standings, weights, expected, expected_reason) in [
            ([O, O, O], None, [100, 300, 400], Reason::Weighted),
            ([O, D, O], None, [160, 0, 640], Reason::Weighted),
            ([F, O, D], None, [0, 800, 0], Reason::Weighted),
            ([F, F, D], None, [200, 600, 0], Reason::AllFull),
            ([D, D, X], None, [200, 600, 0], Reason::AllDown),
            ([O, O, X], Some(0), [400, 400, 0], Reason::Weighted),
        ] {
            let (counts, reason) = shares(standings, weights);
            assert!(near(counts, expected), "{standings:?}: {counts:?}");
            assert_eq!(reason, expected_reason, "{standings:?}");
        }
        let none = clusters([X, X, X]);
        assert_eq!(
            decide(&question(SelectionPolicy::Weighted, &none)),
            Decision {
                cluster: None,
                reason: Reason::NoAddress
            }
        );
    }

    #[test]
    fn turns_go_round_those_that_are_open() {
        for (standings, expected) in [
            ([O, O, O], [0, 1, 2, 0, 1]),
            ([O, D, O], [0, 2, 0, 2, 0]),
            ([D, O, F], [1, 1, 1, 1, 1]),
        ] {
            let clusters = clusters(standings);
            for (turn, cluster) in expected.into_iter().enumerate() {
                let asked = Question {
                    turn: turn as u64,
                    ..question(SelectionPolicy::RoundRobin, &clusters)
                };
                assert_eq!(
                    decide(&asked),
                    Decision {
                        cluster: Some(cluster),
                        reason: Reason::RoundRobin
                    },
                    "{standings:?}"
                );
            }
        }
    }

    #[test]
    fn more_clusters_than_are_ranked_do_no_harm() {
        let one = clusters([O, O, O]).remove(0);
        let many: Vec<ClusterState> = vec![one; RANKED_MAX + 10];
        let order: Vec<u16> = (0..many.len() as u16).collect();
        let mut row = vec![50_000; many.len()];
        row[RANKED_MAX - 1] = 1_000;
        row[RANKED_MAX] = 10;
        let asked = Question {
            order: &order,
            rtt: Some(&row),
            ..question(SelectionPolicy::Rtt, &many)
        };
        assert_eq!(
            decide(&asked).cluster,
            Some(RANKED_MAX as u16 - 1),
            "the best of the nearest"
        );
    }
}
