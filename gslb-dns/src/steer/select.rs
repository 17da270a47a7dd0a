//! Which cluster: pure, without sockets, clocks and maps; chance is an argument.
//!
//! Each policy ranks the site's clusters; the first one that is open (up, and not full) is given. When none is open,
//! the first that is up; when none is up, the first one's addresses all the same, since a health check can be
//! wrong about all of them at once and no answer is surely wrong.
//!
//! A cluster without an address of the family asked for is no candidate. So a name has addresses of a family for every
//! client or for none, as RFC 7871 wants, and a client that asks for `AAAA` is given the best cluster that has one.

use std::net::IpAddr;

use nearcast_fleet::config::SelectionPolicy;

use super::choice::{Family, Reason};
use super::plan::distance_km;

/// Round-trip times are ranked over the nearest so many clusters of a site.
pub(super) const RANKED_MAX: usize = 64;
/// In place of a time that was never measured, at distance zero. On the high side, as a measured good one is worth more.
const GUESS_BASE_US: f64 = 20_000.0;
/// Added for each kilometre: light in fibre there and back, by twice the shortest way.
const GUESS_US_PER_KM: f64 = 20.0;
/// Times that differ less than this and a fiftieth count as equal, and distance decides.
const EQUAL_WITHIN_US: f64 = 500.0;
/// No measurement.
pub(super) const UNMEASURED: u32 = u32::MAX;

/// Addresses of one family in one cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Pool {
    /// Of all its nodes.
    pub(super) all: Vec<IpAddr>,
    /// Of those that are up.
    pub(super) up: Vec<IpAddr>,
    /// Of those that are up and not full.
    pub(super) open: Vec<IpAddr>,
}

/// What selection knows of a cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ClusterState {
    /// `A`.
    pub(super) v4: Pool,
    /// `AAAA`.
    pub(super) v6: Pool,
    /// Share under weighted steering.
    pub(super) weight: u32,
    /// Degrees north and east.
    pub(super) position: (f64, f64),
}

/// Whether a cluster may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may.
    Open,
    /// Its nodes that are up are all full.
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
        if !pool.open.is_empty() {
            Standing::Open
        } else if !pool.up.is_empty() {
            Standing::Full
        } else if !pool.all.is_empty() {
            Standing::Down
        } else {
            Standing::Addressless
        }
    }

    /// The addresses to give from: the best kind it has.
    pub(super) fn serving(&self, family: Family) -> &[IpAddr] {
        let pool = self.pool(family);
        [&pool.open, &pool.up].into_iter().find(|p| !p.is_empty()).unwrap_or(&pool.all)
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

/// Ranks by time those clusters that have an address. Measured times count as they are; a cluster without one counts with a guess from its
/// distance, or last when the place is unknown, so that one measurement of a far cluster does not draw everyone there.
pub(super) fn rank_by_time(q: &Question<'_>) -> Ranking {
    let empty = Ranked { cluster: 0, score: 0.0, measured: false };
    let mut ranking = Ranking { items: [empty; RANKED_MAX], len: 0 };
    for (place_in_order, cluster) in q.order.iter().enumerate() {
        let state = &q.clusters[usize::from(*cluster)];
        if ranking.len == RANKED_MAX || state.standing(q.family) == Standing::Addressless {
            continue;
        }
        let measured = q.rtt.and_then(|row| row.get(usize::from(*cluster)).copied()).filter(|us| *us != UNMEASURED);
        let score = match (measured, q.here) {
            (Some(us), _) => f64::from(us),
            (None, Some(here)) if q.rtt.is_some() => GUESS_BASE_US + GUESS_US_PER_KM * distance_km(here, state.position),
            // In the order given; only ranks matter.
            (None, _) => 1e12 + place_in_order as f64,
        };
        let mut slot = ranking.len;
        while slot > 0 && ranking.items[slot - 1].score > score {
            ranking.items[slot] = ranking.items[slot - 1];
            slot -= 1;
        }
        ranking.items[slot] = Ranked { cluster: *cluster, score, measured: measured.is_some() };
        ranking.len += 1;
    }
    prefer_near_among_equals(&mut ranking, q.order);
    ranking
}

/// Brings forward the cluster that stands first in `order` among those about as quick as the quickest.
fn prefer_near_among_equals(ranking: &mut Ranking, order: &[u16]) {
    let Some(best) = ranking.items().first().copied().filter(|r| r.measured) else { return };
    let limit = best.score * 1.02 + EQUAL_WITHIN_US;
    let equals = ranking.items().iter().take_while(|r| r.score <= limit).count();
    let nearest = order.iter().find_map(|c| ranking.items[..equals].iter().position(|r| r.cluster == *c));
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
            let plain = if q.placed { Reason::Geo } else { Reason::Unplaced };
            first_open(q, q.order.iter().copied(), |_| plain)
        }
        SelectionPolicy::Rtt => by_time(q),
        SelectionPolicy::Weighted | SelectionPolicy::RoundRobin => by_chance(q),
    }
}

/// The first open one of a ranking, or the next best when none is open.
fn first_open(q: &Question<'_>, ranked: impl Iterator<Item = u16> + Clone, plain: impl Fn(u16) -> Reason) -> Decision {
    let mut best = None;
    let mut up = None;
    for cluster in ranked {
        match q.clusters[usize::from(cluster)].standing(q.family) {
            Standing::Addressless => continue,
            Standing::Open => {
                let reason = match best {
                    None => plain(cluster),
                    Some((_, Standing::Full)) => Reason::Spill,
                    Some(_) => Reason::Failover,
                };
                return Decision { cluster: Some(cluster), reason };
            }
            standing => {
                if best.is_none() {
                    best = Some((cluster, standing));
                }
                if standing == Standing::Full && up.is_none() {
                    up = Some(cluster);
                }
            }
        }
    }
    match (up, best) {
        (Some(cluster), _) => Decision { cluster: Some(cluster), reason: Reason::AllFull },
        (None, Some((cluster, _))) => Decision { cluster: Some(cluster), reason: Reason::AllDown },
        (None, None) => Decision { cluster: None, reason: Reason::NoAddress },
    }
}

fn by_time(q: &Question<'_>) -> Decision {
    let placed = if q.placed { Reason::Geo } else { Reason::Unplaced };
    let explores = ((q.random >> 32) as u32) < q.explore_below;
    if q.rtt.is_none() && !explores {
        return first_open(q, q.order.iter().copied(), |_| placed);
    }
    let ranking = rank_by_time(q);
    let is_open = |r: &&Ranked| q.clusters[usize::from(r.cluster)].standing(q.family) == Standing::Open;
    if explores && let Some(second) = ranking.items().iter().filter(is_open).nth(1) {
        return Decision { cluster: Some(second.cluster), reason: Reason::Explore };
    }
    let measured = |cluster| ranking.items().iter().any(|r| r.cluster == cluster && r.measured);
    first_open(q, ranking.items().iter().map(|r| r.cluster), |c| if measured(c) { Reason::Rtt } else { placed })
}

/// Weighted and in turn: among the best kind there is, whoever asks.
fn by_chance(q: &Question<'_>) -> Decision {
    let standings = [Standing::Open, Standing::Full, Standing::Down];
    for standing in standings {
        let of_kind = || q.order.iter().copied().filter(move |c| q.clusters[usize::from(*c)].standing(q.family) == standing);
        let count = of_kind().count() as u64;
        if count == 0 {
            continue;
        }
        let weight = |c: u16| u64::from(q.clusters[usize::from(c)].weight);
        let total: u64 = of_kind().map(weight).sum();
        let cluster = match q.policy {
            SelectionPolicy::Weighted => {
                // Weights of nothing but zero are equal weights.
                let (weight, total): (&dyn Fn(u16) -> u64, u64) = if total > 0 { (&weight, total) } else { (&|_| 1, count) };
                let mut left = ((u128::from((q.random >> 16) & 0xffff_ffff) * u128::from(total)) >> 32) as u64;
                of_kind().find(|c| match left.checked_sub(weight(*c)) {
                    Some(rest) => {
                        left = rest;
                        false
                    }
                    None => true,
                })
            }
            _ => of_kind().nth((q.turn % count) as usize),
        };
        let reason = match (standing, q.policy) {
            (Standing::Down, _) => Reason::AllDown,
            (Standing::Full, _) => Reason::AllFull,
            (_, SelectionPolicy::Weighted) => Reason::Weighted,
            _ => Reason::RoundRobin,
        };
        return Decision { cluster, reason };
    }
    Decision { cluster: None, reason: Reason::NoAddress }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::{Addressless as X, Down as D, Full as F, Open as O};

    /// Three clusters a thousand kilometres apart eastwards on the equator, with that standing; weights 1, 3 and 4.
    fn clusters(standings: [Standing; 3]) -> Vec<ClusterState> {
        let one = |(i, standing): (usize, Standing)| {
            let all = vec![IpAddr::from([192, 0, 2, i as u8])];
            let when = |yes: bool| if yes { all.clone() } else { Vec::new() };
            let pool = Pool { all: when(standing != X), up: when(matches!(standing, F | O)), open: when(standing == O) };
            ClusterState { v4: pool, v6: Pool::default(), weight: [1, 3, 4][i], position: (0.0, i as f64 * 8.993) }
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
            assert_eq!(decide(&question(SelectionPolicy::Geo, &clusters)), Decision { cluster, reason }, "{standings:?}");
            let unplaced = Question { placed: false, here: None, ..question(SelectionPolicy::Geo, &clusters) };
            let reason = if reason == Reason::Geo { Reason::Unplaced } else { reason };
            assert_eq!(decide(&unplaced), Decision { cluster, reason }, "{standings:?} without a place");
        }
    }

    #[test]
    fn the_family_asked_for_counts() {
        let mut clusters = clusters([O, O, O]);
        let v6 = vec!["2001:db8::1".parse().unwrap()];
        clusters[2].v6 = Pool { all: v6.clone(), up: v6.clone(), open: v6 };
        let asked = Question { family: Family::V6, ..question(SelectionPolicy::Geo, &clusters) };
        assert_eq!(decide(&asked), Decision { cluster: Some(2), reason: Reason::Geo });
    }

    #[test]
    fn serving_prefers_open_nodes_then_those_that_are_up() {
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let mut state = ClusterState::default();
        assert!(state.serving(Family::V4).is_empty());
        state.v4.all = vec![address(1), address(2), address(3)];
        assert_eq!(state.serving(Family::V4).len(), 3);
        state.v4.up = vec![address(2), address(3)];
        assert_eq!(state.serving(Family::V4), [address(2), address(3)]);
        state.v4.open = vec![address(3)];
        assert_eq!(state.serving(Family::V4), [address(3)]);
    }

    #[test]
    fn times_rank_and_distance_stands_in_for_them() {
        const N: u32 = UNMEASURED;
        // Guesses: 20 ms here, 40 ms and 60 ms in the other two.
        type Case = (&'static str, [u32; 3], [Standing; 3], u16, Reason);
        let table: [Case; 12] = [
            ("least time", [50_000, 10_000, 30_000], [O, O, O], 1, Reason::Rtt),
            ("the nearest when it is also quickest", [9_000, 30_000, 30_000], [O, O, O], 0, Reason::Rtt),
            ("nearly equal times go by distance", [10_400, 10_000, 30_000], [O, O, O], 0, Reason::Rtt),
            ("but not at any time", [10_900, 10_000, 30_000], [O, O, O], 1, Reason::Rtt),
            ("one quick measurement draws", [N, 15_000, N], [O, O, O], 1, Reason::Rtt),
            ("one slow measurement does not", [N, N, 200_000], [O, O, O], 0, Reason::Geo),
            ("a nearest one known to be slow is left", [300_000, N, N], [O, O, O], 1, Reason::Geo),
            ("quickest down", [50_000, 10_000, 30_000], [O, D, O], 2, Reason::Failover),
            ("quickest full", [50_000, 10_000, 30_000], [O, F, O], 2, Reason::Spill),
            ("quickest of the full ones", [50_000, 10_000, 30_000], [F, D, F], 2, Reason::AllFull),
            ("quickest of those that are down", [50_000, 10_000, 30_000], [D, D, D], 1, Reason::AllDown),
            ("no address", [50_000, 10_000, 30_000], [O, X, O], 2, Reason::Rtt),
        ];
        for (name, row, standings, cluster, reason) in table {
            let clusters = clusters(standings);
            let asked = Question { rtt: Some(&row), ..question(SelectionPolicy::Rtt, &clusters) };
            assert_eq!(decide(&asked), Decision { cluster: Some(cluster), reason }, "{name}");
        }
        let clusters = clusters([O, O, O]);
        let plain = question(SelectionPolicy::Rtt, &clusters);
        assert_eq!(decide(&plain).reason, Reason::Geo, "nothing measured, place known");
        assert_eq!(decide(&Question { placed: false, here: None, ..plain }).reason, Reason::Unplaced);
        let row = [N, N, 90_000];
        let unplaced = Question { placed: false, here: None, rtt: Some(&row), ..plain };
        assert_eq!(decide(&unplaced), Decision { cluster: Some(2), reason: Reason::Rtt }, "without a place what is measured comes first");
    }

    #[test]
    fn a_share_explores_the_second_best() {
        let row = [50_000, 10_000, 30_000];
        let share = u32::MAX / 100;
        let all = clusters([O, O, O]);
        let asked = |random: u64| Question { rtt: Some(&row), explore_below: share, random, ..question(SelectionPolicy::Rtt, &all) };
        assert_eq!(decide(&asked(0)), Decision { cluster: Some(2), reason: Reason::Explore });
        assert_eq!(decide(&asked(u64::from(share - 1) << 32)).reason, Reason::Explore);
        assert_eq!(decide(&asked(u64::from(share) << 32)), Decision { cluster: Some(1), reason: Reason::Rtt });
        let unmeasured = Question { rtt: None, ..asked(0) };
        assert_eq!(decide(&unmeasured), Decision { cluster: Some(1), reason: Reason::Explore }, "the second by distance");
        let one_left = clusters([D, O, F]);
        let asked = Question { clusters: &one_left, ..asked(0) };
        assert_eq!(decide(&asked), Decision { cluster: Some(1), reason: Reason::Rtt }, "never a full one or one that is down");
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
                let got = decide(&Question { random, ..question(SelectionPolicy::Weighted, &clusters) });
                counts[usize::from(got.cluster.unwrap())] += 1;
                reasons.insert(got.reason);
            }
            assert_eq!(reasons.len(), 1);
            (counts, reasons.pop_first().unwrap())
        };
        let near = |got: [i32; 3], want: [i32; 3]| got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 2);
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
        assert_eq!(decide(&question(SelectionPolicy::Weighted, &none)), Decision { cluster: None, reason: Reason::NoAddress });
    }

    #[test]
    fn turns_go_round_those_that_are_open() {
        for (standings, expected) in [([O, O, O], [0, 1, 2, 0, 1]), ([O, D, O], [0, 2, 0, 2, 0]), ([D, O, F], [1, 1, 1, 1, 1])] {
            let clusters = clusters(standings);
            for (turn, cluster) in expected.into_iter().enumerate() {
                let asked = Question { turn: turn as u64, ..question(SelectionPolicy::RoundRobin, &clusters) };
                assert_eq!(decide(&asked), Decision { cluster: Some(cluster), reason: Reason::RoundRobin }, "{standings:?}");
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
        let asked = Question { order: &order, rtt: Some(&row), ..question(SelectionPolicy::Rtt, &many) };
        assert_eq!(decide(&asked).cluster, Some(RANKED_MAX as u16 - 1), "the best of the nearest");
    }
}
