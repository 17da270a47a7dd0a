//! Cost and yield of a push.
//!
//! The cost comes from the nodes' progress reports: items that were warm already, that were fetched
//! and that failed, and the bytes from the origin and from peers. The yield is the number of the
//! cluster's requests that pushed content answered between one order and the next, by local hour,
//! so that the next peak can be separated from the night. Pure.

use nearcast_fleet::report::FillProgress;
use serde::{Deserialize, Serialize};

/// Length of a peak in local hours.
pub const PEAK_HOURS: usize = 4;

/// Progress of an order over all nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// Items, counted once for each node.
    pub items: u64,
    /// Items that were stored and fresh before.
    pub already_warm: u64,
    /// Bytes of these items.
    pub already_warm_bytes: u64,
    /// Items fetched.
    pub warmed: u64,
    /// Items that failed.
    pub failed: u64,
    /// Items that were neither stored nor failed when their nodes ended the order.
    #[serde(default)]
    pub unfinished: u64,
    /// Bytes fetched from the origin.
    pub origin_bytes: u64,
    /// Bytes fetched from nodes of the same cluster.
    pub peer_bytes: u64,
}

impl Filled {
    /// The sum over nodes.
    pub fn sum<'a>(nodes: impl IntoIterator<Item = &'a FillProgress>) -> Self {
        nodes.into_iter().fold(Self::default(), |a, n| Self {
            items: a.items.saturating_add(n.items),
            already_warm: a.already_warm.saturating_add(n.already_warm),
            already_warm_bytes: a.already_warm_bytes.saturating_add(n.already_warm_bytes),
            warmed: a.warmed.saturating_add(n.warmed),
            failed: a.failed.saturating_add(n.failed),
            unfinished: a.unfinished.saturating_add(n.unfinished),
            origin_bytes: a.origin_bytes.saturating_add(n.origin_bytes),
            peer_bytes: a.peer_bytes.saturating_add(n.peer_bytes),
        })
    }

    /// Share (0..=1) of `items_expected` (items times nodes) that was processed, successfully or
    /// not.
    pub fn progress(&self, items_expected: u64) -> f64 {
        let done = self
            .already_warm
            .saturating_add(self.warmed)
            .saturating_add(self.failed);
        if items_expected == 0 {
            1.0
        } else {
            (done as f64 / items_expected as f64).min(1.0)
        }
    }
}

/// Requests of a cluster in a span of time, and those that pushed content answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Earnings {
    /// Requests.
    pub requests: u64,
    /// Body bytes of these requests.
    pub response_bytes: u64,
    /// Requests answered from pushed slices.
    pub pushed_hits: u64,
    /// Body bytes of these requests.
    pub pushed_hit_bytes: u64,
}

impl Earnings {
    fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            response_bytes: self.response_bytes.saturating_add(other.response_bytes),
            pushed_hits: self.pushed_hits.saturating_add(other.pushed_hits),
            pushed_hit_bytes: self.pushed_hit_bytes.saturating_add(other.pushed_hit_bytes),
        }
    }

    /// Share of the requests that pushed content answered; `None` without requests.
    pub fn pushed_hit_ratio(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.pushed_hits as f64 / self.requests as f64)
    }
}

/// Yield of an order by local hour of day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Account {
    hours: [Earnings; 24],
}

/// The busiest hours of an account.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// First local hour, 0..=23.
    pub from_hour: u8,
    /// Hour after the last one, 0..=23; it may be less than the first, over midnight.
    pub to_hour: u8,
    /// Yield in these hours.
    pub earnings: Earnings,
}

impl Account {
    /// Adds the counts of a local hour (0..=23; others are ignored).
    pub fn add(&mut self, hour: u8, earnings: Earnings) {
        if let Some(record) = self.hours.get_mut(usize::from(hour)) {
            *record = record.plus(earnings);
        }
    }

    /// Yield by local hour.
    pub fn hours(&self) -> &[Earnings; 24] {
        &self.hours
    }

    /// All hours together.
    pub fn total(&self) -> Earnings {
        self.hours
            .iter()
            .fold(Earnings::default(), |a, h| a.plus(*h))
    }

    /// The [`PEAK_HOURS`] consecutive hours with the most requests, the earliest of equals; `None`
    /// without requests.
    pub fn peak(&self) -> Option<Peak> {
        let span = |from: usize| {
            (0..PEAK_HOURS).fold(Earnings::default(), |a, n| {
                a.plus(self.hours[(from + n) % 24])
            })
        };
        let from = (0..24).rev().max_by_key(|from| span(*from).requests)?;
        let earnings = span(from);
        (earnings.requests > 0).then_some(Peak {
            from_hour: from as u8,
            to_hour: ((from + PEAK_HOURS) % 24) as u8,
            earnings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn earned(requests: u64, pushed_hits: u64) -> Earnings {
        Earnings {
            requests,
            pushed_hits,
            response_bytes: requests * 10,
            pushed_hit_bytes: pushed_hits * 10,
        }
    }

    #[test]
    fn the_peak_is_the_busiest_hours_in_a_row() {
        type Row = (&'static [(u8, u64)], Option<(u8, u8, u64)>);
        let table: [Row; 6] = [
            (&[], None),
            (&[(5, 0)], None),
            (&[(5, 7)], Some((2, 6, 7))),
            (
                &[(19, 10), (20, 30), (21, 20), (22, 10), (3, 35)],
                Some((19, 23, 70)),
            ),
            (
                &[(22, 10), (23, 10), (0, 10), (1, 10), (12, 15)],
                Some((22, 2, 40)),
            ),
            (&[(24, 1000), (10, 1)], Some((7, 11, 1))),
        ];
        for (hours, expected) in table {
            let mut account = Account::default();
            for (hour, requests) in hours {
                account.add(*hour, earned(*requests, requests / 2));
            }
            let got = account
                .peak()
                .map(|p| (p.from_hour, p.to_hour, p.earnings.requests));
            assert_eq!(got, expected, "{hours:?}");
        }
    }

    #[test]
    fn sums_and_ratios() {
        let mut account = Account::default();
        account.add(1, earned(10, 4));
        account.add(1, earned(10, 4));
        account.add(13, earned(20, 0));
        assert_eq!(
            account.total(),
            Earnings {
                requests: 40,
                response_bytes: 400,
                pushed_hits: 8,
                pushed_hit_bytes: 80
            }
        );
        assert_eq!(account.total().pushed_hit_ratio(), Some(0.2));
        assert_eq!(Earnings::default().pushed_hit_ratio(), None);
        assert_eq!(account.hours()[1].pushed_hits, 8);
    }

    #[test]
    fn progress_is_what_was_dealt_with_of_what_was_asked() {
        let node = |warm, warmed, failed| FillProgress {
            items: 10,
            already_warm: warm,
            warmed,
            failed,
            origin_bytes: 5,
            peer_bytes: 7,
            ..Default::default()
        };
        let table = [
            (vec![], 20, 0.0),
            (vec![node(1, 2, 1)], 20, 0.2),
            (vec![node(5, 5, 0), node(0, 0, 10)], 20, 1.0),
            (vec![node(9, 9, 9)], 20, 1.0),
            (vec![], 0, 1.0),
        ];
        for (nodes, expected, share) in table {
            let filled = Filled::sum(&nodes);
            assert!(
                (filled.progress(expected) - share).abs() < 1e-9,
                "{nodes:?}"
            );
            assert_eq!(
                (filled.origin_bytes, filled.peer_bytes),
                (5 * nodes.len() as u64, 7 * nodes.len() as u64)
            );
        }
    }
}
