//! The counts of a cell of the time series, and the differences of reported totals.

use std::collections::BTreeMap;

use nearcast_fleet::report::{CacheStatus, SiteTotals};

use crate::views;

/// Counts of requests: one for each cache status, and one for the statuses of a newer version.
const STATUSES: usize = CacheStatus::ALL.len() + 1;
/// Position of the requests with a status that this version does not know.
const OTHER: usize = CacheStatus::ALL.len();
/// Numbers in [`Counts`].
pub(super) const VALUES: usize = STATUSES + 8;

/// The words of the statuses, in the order of their counts, which is also the order on disk.
pub(super) fn status_words() -> impl Iterator<Item = &'static str> {
    let known = CacheStatus::ALL.into_iter().map(CacheStatus::as_str);
    known.chain(["other"])
}

/// What was counted, as fractions when a difference is spread over time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Counts {
    /// By status.
    pub(crate) requests: [f64; STATUSES],
    pub(crate) errors: f64,
    /// Body bytes, `local` left out.
    pub(crate) response_bytes: f64,
    pub(crate) origin_bytes: f64,
    pub(crate) origin_requests: f64,
    /// Body bytes that push orders fetched from the origin and from other nodes. They count in no
    /// ratio.
    pub(crate) push_origin_bytes: f64,
    pub(crate) push_peer_bytes: f64,
    pub(crate) pushed_hits: f64,
    pub(crate) pushed_hit_bytes: f64,
}

impl Counts {
    /// The difference of two totals of the same process. A total below the earlier one (reports can
    /// overtake one another) counts as no difference.
    pub(crate) fn between(before: Option<&SiteTotals>, after: &SiteTotals) -> Self {
        let empty = SiteTotals::default();
        let before = before.unwrap_or(&empty);
        let less = |a: u64, b: u64| a.saturating_sub(b) as f64;
        let of = |map: &BTreeMap<String, u64>, status: &str| map.get(status).copied().unwrap_or(0);
        let mut counts = Self {
            errors: less(after.errors, before.errors),
            origin_bytes: less(after.origin_bytes, before.origin_bytes),
            origin_requests: less(after.origin_requests, before.origin_requests),
            push_origin_bytes: less(after.push_origin_bytes, before.push_origin_bytes),
            push_peer_bytes: less(after.push_peer_bytes, before.push_peer_bytes),
            pushed_hits: less(after.pushed_hits, before.pushed_hits),
            pushed_hit_bytes: less(after.pushed_hit_bytes, before.pushed_hit_bytes),
            ..Self::default()
        };
        for (status, total) in &after.requests {
            let index = CacheStatus::of_word(status).map_or(OTHER, |status| status as usize);
            counts.requests[index] += less(*total, of(&before.requests, status));
        }
        for (status, total) in after
            .bytes
            .iter()
            .filter(|(status, _)| *status != CacheStatus::Local.as_str())
        {
            counts.response_bytes += less(*total, of(&before.bytes, status));
        }
        counts
    }

    /// Queries of a name server or requests of an origin, which have no cache status. They are counted
    /// under the first one, and only in rates of requests.
    pub(crate) fn of_requests(requests: u64) -> Self {
        let mut counts = Self::default();
        counts.requests[0] = requests as f64;
        counts
    }

    /// All numbers, in the order in which they are written. New ones go to the end.
    pub(super) fn values(&self) -> [f64; VALUES] {
        let mut values = [0.0; VALUES];
        let (requests, others) = values.split_at_mut(STATUSES);
        requests.copy_from_slice(&self.requests);
        others.copy_from_slice(&[
            self.errors,
            self.response_bytes,
            self.origin_bytes,
            self.origin_requests,
            self.pushed_hits,
            self.pushed_hit_bytes,
            self.push_origin_bytes,
            self.push_peer_bytes,
        ]);
        values
    }

    /// The inverse of [`Counts::values`].
    pub(super) fn of_values(values: [f64; VALUES]) -> Self {
        let mut counts = Self::default();
        let (requests, others) = values.split_at(STATUSES);
        counts.requests.copy_from_slice(requests);
        for (count, value) in [
            &mut counts.errors,
            &mut counts.response_bytes,
            &mut counts.origin_bytes,
            &mut counts.origin_requests,
            &mut counts.pushed_hits,
            &mut counts.pushed_hit_bytes,
            &mut counts.push_origin_bytes,
            &mut counts.push_peer_bytes,
        ]
        .into_iter()
        .zip(others)
        {
            *count = *value;
        }
        counts
    }

    /// Requests that count in ratios: all but `local`.
    pub(crate) fn counted(&self) -> f64 {
        self.requests.iter().sum::<f64>() - self.requests[CacheStatus::Local as usize]
    }

    /// Requests that were hits.
    pub(crate) fn hits(&self) -> f64 {
        CacheStatus::ALL
            .into_iter()
            .filter(|status| status.is_hit())
            .map(|status| self.requests[status as usize])
            .sum()
    }

    /// Adds a share of other counts.
    pub(crate) fn add(&mut self, other: &Self, share: f64) {
        for (a, b) in self.requests.iter_mut().zip(other.requests) {
            *a += b * share;
        }
        self.errors += other.errors * share;
        self.response_bytes += other.response_bytes * share;
        self.origin_bytes += other.origin_bytes * share;
        self.origin_requests += other.origin_requests * share;
        self.push_origin_bytes += other.push_origin_bytes * share;
        self.push_peer_bytes += other.push_peer_bytes * share;
        self.pushed_hits += other.pushed_hits * share;
        self.pushed_hit_bytes += other.pushed_hit_bytes * share;
    }

    /// As an answer, over that many seconds.
    pub(crate) fn rates(&self, seconds: u64) -> views::Rates {
        let whole = |n: f64| n.round().max(0.0) as u64;
        let ratio = |part: f64, of: f64| (of >= 0.5).then(|| (part / of).clamp(0.0, 1.0));
        let a_second = |n: f64| n / seconds.max(1) as f64;
        views::Rates {
            seconds,
            requests: status_words()
                .zip(self.requests)
                .filter(|(_, n)| *n >= 0.5)
                .map(|(status, n)| (status.to_owned(), whole(n)))
                .collect(),
            counted: whole(self.counted()),
            hits: whole(self.hits()),
            errors: whole(self.errors),
            requests_per_second: a_second(self.counted()),
            response_bytes: whole(self.response_bytes),
            origin_bytes: whole(self.origin_bytes),
            origin_requests: whole(self.origin_requests),
            push_origin_bytes: whole(self.push_origin_bytes),
            push_peer_bytes: whole(self.push_peer_bytes),
            egress_bits_per_second: a_second(self.response_bytes * 8.0),
            object_hit_ratio: ratio(self.hits(), self.counted()),
            byte_hit_ratio: ratio(self.response_bytes - self.origin_bytes, self.response_bytes),
            pushed_hits: whole(self.pushed_hits),
            pushed_hit_bytes: whole(self.pushed_hit_bytes),
            pushed_hit_ratio: ratio(self.pushed_hits, self.counted()),
        }
    }
}

/// Raises totals to those of an earlier report of the same process, where that one has more: reports
/// can overtake one another, and totals never fall.
pub(crate) fn keep_monotonic(totals: &mut SiteTotals, earlier: &SiteTotals) {
    let raise = |to: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>| {
        for (status, total) in from {
            let to = to.entry(status.clone()).or_insert(0);
            *to = (*to).max(*total);
        }
    };
    raise(&mut totals.requests, &earlier.requests);
    raise(&mut totals.bytes, &earlier.bytes);
    totals.errors = totals.errors.max(earlier.errors);
    totals.origin_bytes = totals.origin_bytes.max(earlier.origin_bytes);
    totals.origin_requests = totals.origin_requests.max(earlier.origin_requests);
    totals.push_origin_bytes = totals.push_origin_bytes.max(earlier.push_origin_bytes);
    totals.push_peer_bytes = totals.push_peer_bytes.max(earlier.push_peer_bytes);
    totals.pushed_hits = totals.pushed_hits.max(earlier.pushed_hits);
    totals.pushed_hit_bytes = totals.pushed_hit_bytes.max(earlier.pushed_hit_bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_counts_are_inverse() {
        let mut values = [0.0; VALUES];
        for (n, value) in values.iter_mut().enumerate() {
            *value = n as f64;
        }
        let counts = Counts::of_values(values);
        assert_eq!(counts.values(), values);
        assert_eq!(
            (counts.requests[9], counts.errors, counts.push_peer_bytes),
            (9.0, 10.0, 17.0),
            "the order on disk"
        );
    }
}
