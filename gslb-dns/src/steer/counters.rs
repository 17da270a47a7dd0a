//! Counts selections without a lock: each worker thread adds to one of a few sets of counters.
//!
//! Most combinations of site, cluster, reason and country never occur, so their counters are in a
//! small open-addressed table of atomics. Selections without a country, and those that find no free
//! slot, have a counter for each site, cluster and reason. A `CounterVec` or a concurrent map would
//! take a lock and hash strings for every answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nearcast_fleet::config::Fleet;

use super::choice::Reason;

/// Number of sets; threads are spread over them evenly.
const SHARDS: usize = 4;
/// Above this size of a set there is only one: threads seldom meet in so many counters, and several
/// sets would take much memory.
const SHARED_ABOVE: usize = 1 << 18;
/// Slots of each set's table by country.
const SLOTS: usize = 4_096;
/// Slots probed before the selection is counted without a country.
const PROBES: usize = 16;

/// The labels of a count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SelectionLabels {
    pub(super) site: String,
    pub(super) cluster: String,
    pub(super) reason: Reason,
    /// Empty where it is not known.
    pub(super) country: String,
}

struct Shard {
    /// Without a country, by site, cluster and reason.
    without_country: Box<[AtomicU64]>,
    /// Key (0 for an empty slot) and count.
    by_country: Box<[(AtomicU64, AtomicU64)]>,
}

/// The counters for one revision of the fleet, by its indexes.
pub(super) struct SelectionCounters {
    sites: Vec<String>,
    clusters: Vec<String>,
    shards: Box<[Shard]>,
}

fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
    }
    MINE.with(|mine| *mine)
}

fn pack(cell: usize, country: [u8; 2]) -> u64 {
    (cell as u64 + 1) << 16 | u64::from(u16::from_be_bytes(country))
}

impl SelectionCounters {
    /// All zero.
    pub(super) fn new(fleet: &Fleet) -> Self {
        let cells = fleet.sites.len() * fleet.clusters.len() * Reason::ALL.len();
        let shard = || Shard {
            without_country: (0..cells).map(|_| AtomicU64::new(0)).collect(),
            by_country: (0..SLOTS)
                .map(|_| (AtomicU64::new(0), AtomicU64::new(0)))
                .collect(),
        };
        Self {
            sites: fleet.sites.iter().map(|s| s.name.clone()).collect(),
            clusters: fleet.clusters.iter().map(|c| c.name.clone()).collect(),
            shards: (0..if cells > SHARED_ABOVE { 1 } else { SHARDS })
                .map(|_| shard())
                .collect(),
        }
    }

    /// Whether these counters are by this fleet's indexes.
    pub(super) fn fits(&self, fleet: &Fleet) -> bool {
        self.sites.iter().eq(fleet.sites.iter().map(|s| &s.name))
            && self
                .clusters
                .iter()
                .eq(fleet.clusters.iter().map(|c| &c.name))
    }

    /// Counts one selection.
    pub(super) fn add(
        &self,
        site: usize,
        cluster: usize,
        reason: Reason,
        country: Option<[u8; 2]>,
    ) {
        let shard = &self.shards[shard_of_thread() % self.shards.len()];
        let cell = (site * self.clusters.len() + cluster) * Reason::ALL.len() + reason as usize;
        let Some(without_country) = shard.without_country.get(cell) else {
            return;
        };

        let Some(country) = country.filter(|c| *c != [0; 2]) else {
            without_country.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let key = pack(cell, country);
        let start = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize;

        for step in 0..PROBES {
            let (slot, count) = &shard.by_country[(start + step) % SLOTS];
            let mut held = slot.load(Ordering::Relaxed);
            if held == 0 {
                held = match slot.compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => key,
                    Err(other) => other,
                };
            }
            if held == key {
                count.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }

        without_country.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds all counts to `totals`.
    pub(super) fn add_to(&self, totals: &mut BTreeMap<SelectionLabels, u64>) {
        let kind = |cell: usize, country: String| {
            let (pair, reason) = (cell / Reason::ALL.len(), cell % Reason::ALL.len());
            SelectionLabels {
                site: self.sites[pair / self.clusters.len()].clone(),
                cluster: self.clusters[pair % self.clusters.len()].clone(),
                reason: Reason::ALL[reason],
                country,
            }
        };

        for shard in &*self.shards {
            let mut add = |cell: usize, country: String, count: u64| {
                if count > 0 {
                    *totals.entry(kind(cell, country)).or_default() += count;
                }
            };
            for (slot, count) in &shard.by_country {
                let key = slot.load(Ordering::Relaxed);
                if key != 0 {
                    let country = String::from_utf8_lossy(&(key as u16).to_be_bytes()).into_owned();
                    add(
                        (key >> 16) as usize - 1,
                        country,
                        count.load(Ordering::Relaxed),
                    );
                }
            }
            for (cell, count) in shard.without_country.iter().enumerate() {
                add(cell, String::new(), count.load(Ordering::Relaxed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steer::fixture;

    fn totals(tally: &SelectionCounters) -> BTreeMap<SelectionLabels, u64> {
        let mut totals = BTreeMap::new();
        tally.add_to(&mut totals);
        totals
    }

    fn kind(site: &str, cluster: &str, reason: Reason, country: &str) -> SelectionLabels {
        SelectionLabels {
            site: site.into(),
            cluster: cluster.into(),
            reason,
            country: country.into(),
        }
    }

    #[test]
    fn counts_by_all_four_from_many_threads() {
        let tally = SelectionCounters::new(&fixture::fleet());
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        tally.add(0, 0, Reason::Geo, Some(*b"NL"));
                        tally.add(0, 0, Reason::Geo, Some(*b"BE"));
                        tally.add(5, 2, Reason::NoAddress, None);
                        tally.add(5, 2, Reason::NoAddress, Some([0; 2]));
                        tally.add(6, 0, Reason::Geo, None);
                        tally.add(usize::MAX >> 8, 0, Reason::Geo, None);
                    }
                });
            }
        });
        let expected = BTreeMap::from([
            (kind("geo", "ams", Reason::Geo, "BE"), 6_000),
            (kind("geo", "ams", Reason::Geo, "NL"), 6_000),
            (kind("far", "sin", Reason::NoAddress, ""), 12_000),
        ]);
        assert_eq!(totals(&tally), expected);
    }

    #[test]
    fn what_finds_no_slot_is_counted_without_a_country() {
        let tally = SelectionCounters::new(&fixture::fleet());
        let mut countries = 0;
        for first in b'A'..=b'Z' {
            for second in b'A'..=b'Z' {
                for (site, reason) in (0..6).flat_map(|s| Reason::ALL.map(|r| (s, r))) {
                    tally.add(site, 1, reason, Some([first, second]));
                    countries += 1;
                }
            }
        }
        let totals = totals(&tally);
        assert_eq!(totals.values().sum::<u64>(), countries);
        assert!(totals.len() <= SLOTS + 6 * Reason::ALL.len());
        assert!(totals.iter().any(|(k, n)| k.country.is_empty() && *n > 0));
    }

    #[test]
    fn a_set_for_thousands_of_sites_is_shared_by_all_threads() {
        let mut fleet = fixture::fleet();
        let one = fleet.sites[0].clone();
        fleet.sites = (0..10_000)
            .map(|n| nearcast_fleet::config::Site {
                name: format!("s{n}"),
                ..one.clone()
            })
            .collect();
        let tally = SelectionCounters::new(&fleet);
        assert_eq!(tally.shards.len(), 1);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    tally.add(9_999, 2, Reason::Geo, Some(*b"NL"));
                    tally.add(9_999, 2, Reason::Geo, None);
                });
            }
        });
        let expected = BTreeMap::from([
            (kind("s9999", "sin", Reason::Geo, ""), 6),
            (kind("s9999", "sin", Reason::Geo, "NL"), 6),
        ]);
        assert_eq!(totals(&tally), expected);
    }

    #[test]
    fn knows_whose_counters_they_are() {
        let mut fleet = fixture::fleet();
        let tally = SelectionCounters::new(&fleet);
        assert!(tally.fits(&fleet));
        fleet.clusters.swap(0, 1);
        assert!(!tally.fits(&fleet));
        fleet.clusters.swap(0, 1);
        fleet.sites.pop();
        assert!(!tally.fits(&fleet));
    }
}
