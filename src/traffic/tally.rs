//! Counts of the clients' requests and results.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use super::fetch::Outcome;
use crate::text;

/// Rates are of this many seconds.
const RECENT_SECONDS: usize = 5;
/// Hit ratio shown is of this many seconds.
const RATIO_SECONDS: usize = 30;

/// Counts since the start, and those of the last seconds.
#[derive(Debug, Default)]
pub(super) struct Tally {
    all: Counts,
    /// Whole seconds, newest last; the one that runs is `all - at_second`.
    seconds: VecDeque<Counts>,
    at_second: Counts,
    clusters: BTreeMap<String, u64>,
    last_error: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    requests: u64,
    hits: u64,
    errors: u64,
    retries: u64,
    bytes: u64,
    dns_queries: u64,
    sessions: u64,
    turned_away: u64,
}

impl Counts {
    fn minus(self, other: Self) -> Self {
        Self {
            requests: self.requests - other.requests,
            hits: self.hits - other.hits,
            errors: self.errors - other.errors,
            retries: self.retries - other.retries,
            bytes: self.bytes - other.bytes,
            dns_queries: self.dns_queries - other.dns_queries,
            sessions: self.sessions - other.sessions,
            turned_away: self.turned_away - other.turned_away,
        }
    }

    fn ratio(self) -> Option<f64> {
        let answered = self.requests - self.errors;
        (answered > 0).then(|| self.hits as f64 / answered as f64)
    }
}

impl Tally {
    /// A session began.
    pub(super) fn session(&mut self) {
        self.all.sessions += 1;
    }

    /// A session did not begin, because too many were under way.
    pub(super) fn turned_away(&mut self) {
        self.all.turned_away += 1;
    }

    /// A request ended.
    pub(super) fn request(&mut self, outcome: &Outcome, cluster_of: &BTreeMap<Ipv4Addr, String>) {
        let all = &mut self.all;
        all.requests += 1;
        all.retries += u64::from(outcome.retried);
        all.dns_queries += u64::from(outcome.dns_queries);
        match &outcome.result {
            Ok(got) => {
                all.hits += u64::from(got.hit);
                all.bytes += got.bytes;
                let cluster = cluster_of
                    .get(&got.edge)
                    .map_or("elsewhere", String::as_str);
                match self.clusters.get_mut(cluster) {
                    Some(count) => *count += 1,
                    None => drop(self.clusters.insert(cluster.to_owned(), 1)),
                }
            }
            Err(error) => {
                all.errors += 1;
                self.last_error = Some(error.clone());
            }
        }
    }

    /// Ends the current second.
    pub(super) fn tick(&mut self) {
        self.seconds.push_back(self.all.minus(self.at_second));
        self.at_second = self.all;
        if self.seconds.len() > RATIO_SECONDS {
            self.seconds.pop_front();
        }
    }

    /// Whether there were requests and every one failed.
    pub(super) fn all_failed(&self) -> Option<String> {
        let failed = self.all.requests > 0 && self.all.errors == self.all.requests;
        failed.then(|| self.last_error.clone().unwrap_or_default())
    }

    /// The progress line.
    pub(super) fn line(&self) -> String {
        let recent = self.recent(RECENT_SECONDS);
        let seconds = self.seconds.len().clamp(1, RECENT_SECONDS) as f64;
        let clusters: Vec<String> = self
            .clusters
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let mut line = format!(
            "{} requests, {:.0}/s, {}, hit ratio {}, errors {}, retries {}",
            self.all.requests,
            recent.requests as f64 / seconds,
            text::bits_per_second(recent.bytes as f64 * 8.0 / seconds),
            text::percent(self.recent(RATIO_SECONDS).ratio()),
            self.all.errors,
            self.all.retries,
        );
        if !clusters.is_empty() {
            line.push_str(&format!(" | {}", clusters.join(", ")));
        }
        if self.all.turned_away > 0 {
            line.push_str(&format!(" | {} sessions turned away", self.all.turned_away));
        }
        line
    }

    /// All counts, as JSON.
    pub(super) fn summary(&self, took: Duration, seed: u64) -> Value {
        let all = &self.all;
        json!({
            "seconds": took.as_secs_f64(), "seed": seed, "sessions": all.sessions, "turned_away": all.turned_away,
            "requests": all.requests, "requests_per_second": all.requests as f64 / took.as_secs_f64().max(0.001),
            "hits": all.hits, "hit_ratio": all.ratio(), "errors": all.errors, "retries": all.retries, "bytes": all.bytes,
            "dns_queries": all.dns_queries, "clusters": self.clusters, "last_error": self.last_error,
        })
    }

    /// All counts, as text.
    pub(super) fn words(&self, took: Duration) -> String {
        let all = &self.all;
        let mut words = format!(
            "{} sessions, {} requests in {:.0} s ({:.1}/s), {}, hit ratio {}, {} DNS questions, {} errors, {} retries\n",
            all.sessions,
            all.requests,
            took.as_secs_f64(),
            all.requests as f64 / took.as_secs_f64().max(0.001),
            text::bytes(all.bytes as f64),
            text::percent(all.ratio()),
            all.dns_queries,
            all.errors,
            all.retries,
        );
        if let Some(error) = &self.last_error {
            words.push_str(&format!("last error: {error}\n"));
        }
        words
    }

    fn recent(&self, seconds: usize) -> Counts {
        let skip = self.seconds.len().saturating_sub(seconds);
        self.seconds
            .iter()
            .skip(skip)
            .fold(Counts::default(), |sum, c| Counts {
                requests: sum.requests + c.requests,
                hits: sum.hits + c.hits,
                errors: sum.errors + c.errors,
                retries: sum.retries + c.retries,
                bytes: sum.bytes + c.bytes,
                dns_queries: sum.dns_queries + c.dns_queries,
                sessions: sum.sessions + c.sessions,
                turned_away: sum.turned_away + c.turned_away,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::fetch::Got;

    fn outcome(hit: Option<bool>) -> Outcome {
        let edge = Ipv4Addr::new(127, 0, 10, 1);
        let got = |hit| Got {
            edge,
            bytes: 1000,
            hit,
            body: Vec::new(),
        };
        Outcome {
            result: hit.map(got).ok_or_else(|| "refused".to_owned()),
            retried: hit.is_none(),
            dns_queries: 1,
        }
    }

    #[test]
    fn the_line_tells_rates_of_the_last_seconds_and_counts_of_all() {
        let clusters = BTreeMap::from([(Ipv4Addr::new(127, 0, 10, 1), "ams".to_owned())]);
        let mut tally = Tally::default();
        assert_eq!(tally.all_failed(), None);
        tally.request(&outcome(None), &clusters);
        assert_eq!(tally.all_failed().as_deref(), Some("refused"));
        for second in 0..40 {
            for _ in 0..10 {
                tally.request(&outcome(Some(second >= 10)), &clusters);
            }
            tally.tick();
        }
        assert_eq!(tally.all_failed(), None);
        assert_eq!(
            tally.line(),
            "401 requests, 10/s, 80.0 kbit/s, hit ratio 100.0 %, errors 1, retries 1 | ams 400"
        );
        let summary = tally.summary(Duration::from_secs(40), 1);
        assert_eq!(summary["hit_ratio"], 0.75);
        assert_eq!(summary["clusters"]["ams"], 400);
        assert!(
            tally
                .words(Duration::from_secs(40))
                .contains("hit ratio 75.0 %")
        );
    }
}
