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
        let weight = |c: &u16| u64::from(q.clusters[usize::from(*c)].weight);
        let total: u64 = of_kind().map(|c| weight(&c)).sum();
        let cluster = if q.policy == SelectionPolicy::Weighted && total > 0 {
            let mut left = (((q.random >> 16) & 0xffff_ffff) * total) >> 32;
            of_kind().find(|c| match left.checked_sub(weight(c)) {
                Some(rest) => {
                    left = rest;
                    false
                }
                None => true,
            })
        } else {
            let turn = if q.policy == SelectionPolicy::Weighted { q.random >> 16 } else { q.turn };
            of_kind().nth((turn % count) as usize)
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
