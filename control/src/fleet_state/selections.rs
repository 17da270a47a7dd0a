//! Steered answers by site, cluster, reason and country.

use std::collections::{BTreeMap, VecDeque};

use nearcast_fleet::config::Fleet;
use nearcast_fleet::report::SelectionCount;

use crate::fleet_state::series::NODE_SECONDS_KEPT;
use crate::views;

/// Combinations that are counted apart; further ones are not counted.
const SELECTIONS_MAX: usize = 4096;

/// Site, cluster, reason, country.
pub(super) type SelectionKey = (String, String, String, String);

#[derive(Debug, Default)]
struct SelectionRecord {
    latitude: f64,
    longitude: f64,
    total: u64,
    /// Second after the epoch and count.
    recent: VecDeque<(u64, u64)>,
}

/// The counts of all combinations.
#[derive(Debug, Default)]
pub(super) struct Selections(BTreeMap<SelectionKey, SelectionRecord>);

impl Selections {
    /// Counts new answers of a combination at a second.
    pub(super) fn add(&mut self, selection: &SelectionCount, new: u64, second: u64) {
        let key = selection_key(selection);
        if new == 0 || (!self.0.contains_key(&key) && self.0.len() >= SELECTIONS_MAX) {
            return;
        }
        let record = self.0.entry(key).or_default();
        (record.latitude, record.longitude) = (selection.latitude, selection.longitude);
        record.total = record.total.saturating_add(new);
        match record.recent.back_mut() {
            Some((last, count)) if *last == second => *count = count.saturating_add(new),
            _ => record.recent.push_back((second, new)),
        }
        while record
            .recent
            .front()
            .is_some_and(|(s, _)| s + NODE_SECONDS_KEPT < second)
        {
            record.recent.pop_front();
        }
    }

    /// Drops sites and clusters that the fleet no longer has.
    pub(super) fn retain(&mut self, fleet: &Fleet) {
        self.0.retain(|(site, cluster, ..), _| {
            fleet.sites.iter().any(|s| s.name == *site)
                && fleet.clusters.iter().any(|c| c.name == *cluster)
        });
    }

    /// As answers, the most frequent first. `window` is in seconds.
    pub(super) fn views(&self, second: u64, window: u64) -> Vec<views::Selection> {
        let mut all: Vec<views::Selection> = self
            .0
            .iter()
            .map(|((site, cluster, reason, country), r)| views::Selection {
                country: country.clone(),
                latitude: r.latitude,
                longitude: r.longitude,
                site: site.clone(),
                cluster: cluster.clone(),
                reason: reason.clone(),
                recent: r
                    .recent
                    .iter()
                    .filter(|(s, _)| s + window >= second)
                    .map(|(_, n)| n)
                    .sum(),
                total: r.total,
            })
            .collect();
        all.sort_by_key(|s| std::cmp::Reverse((s.recent, s.total)));
        all
    }
}

pub(super) fn selection_key(s: &SelectionCount) -> SelectionKey {
    (
        s.site.clone(),
        s.cluster.clone(),
        s.reason.clone(),
        s.country.clone(),
    )
}
