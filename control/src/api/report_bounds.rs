//! The bounds of a report: names that the fleet has, plausible counts, and lists no longer than their
//! kind allows. Pure.
//!
//! A report comes from a node of the fleet, but the node may be broken or compromised. Its statements
//! about itself may then be wrong, but they must not exceed the memory of this role, nor spoil what
//! other nodes have reported. Values out of bounds are clamped, and unknown names are dropped.

use std::collections::BTreeMap;

use nearcast_fleet::config::Fleet;
use nearcast_fleet::report::{DnsReport, EdgeReport, FillProgress, OriginReport};

/// Largest count: every number up to it is exact in JSON and as `f64`.
const COUNT_MAX: u64 = (1 << 53) - 1;
/// Requests of one URL in one report.
const URL_REQUESTS_MAX: u64 = 100_000_000;
/// Bytes of one URL in one report, and the length of one stored response: a pebibyte.
const URL_BYTES_MAX: u64 = 1 << 50;
/// Bytes that a node can store.
const STORED_BYTES_MAX: u64 = 1 << 50;
/// Connections of a node.
const CONNECTIONS_MAX: u64 = 100_000_000;
/// Labels of one kind: cache statuses, response codes, status classes.
const LABELS_MAX: usize = 64;
/// Characters of a label or name, and of a sentence.
const NAME_CHARS_MAX: usize = 64;
const SENTENCE_CHARS_MAX: usize = 300;
/// Lengths of lists, as `nearcast_fleet::report` defines them.
const FILLS_MAX: usize = 16;
const PURGES_MAX: usize = 64;
const REASONS_MAX: usize = 8;
const URLS_MAX: usize = 65_536;
const SELECTIONS_MAX: usize = 16_384;
/// A node's clock may be ahead of control's by this much.
const AHEAD_MAX_MS: u64 = 60_000;

/// Clamps values, and notes whether it had to.
struct Clamp(bool);

impl Clamp {
    fn to(&mut self, value: &mut u64, most: u64) {
        if *value > most {
            (*value, self.0) = (most, true);
        }
    }

    fn text(&mut self, text: &mut String, most: usize) {
        if text.chars().nth(most).is_some() {
            (*text, self.0) = (text.chars().take(most).collect(), true);
        }
    }

    fn list<T>(&mut self, list: &mut Vec<T>, most: usize) {
        self.0 |= list.len() > most;
        list.truncate(most);
    }

    /// Keeps the newest entries of a list that ends with the newest.
    fn newest<T>(&mut self, list: &mut Vec<T>, most: usize) {
        self.0 |= list.len() > most;
        list.drain(..list.len().saturating_sub(most));
    }

    fn keep<T>(&mut self, list: &mut Vec<T>, is_good: impl FnMut(&T) -> bool) {
        let before = list.len();
        list.retain(is_good);
        self.0 |= list.len() < before;
    }

    fn counts(&mut self, counts: &mut BTreeMap<String, u64>) {
        let before = counts.len();
        let mut left = LABELS_MAX;
        counts.retain(|label, _| {
            let is_good = label.chars().count() <= NAME_CHARS_MAX && left > 0;
            left -= usize::from(is_good);
            is_good
        });
        self.0 |= counts.len() < before;
        counts
            .values_mut()
            .for_each(|count| self.to(count, COUNT_MAX));
    }

    fn float(&mut self, value: &mut f64, most: f64) {
        let good = if value.is_finite() {
            value.clamp(-most, most)
        } else {
            0.0
        };
        if good != *value {
            (*value, self.0) = (good, true);
        }
    }

    fn sites(&mut self, report: &mut EdgeReport, fleet: &Fleet) {
        let before = report.sites.len();
        report
            .sites
            .retain(|name, _| fleet.sites.iter().any(|site| site.name == *name));
        self.0 |= report.sites.len() < before;
        for totals in report.sites.values_mut() {
            self.counts(&mut totals.requests);
            self.counts(&mut totals.bytes);
            for count in [
                &mut totals.errors,
                &mut totals.origin_bytes,
                &mut totals.origin_requests,
                &mut totals.push_origin_bytes,
                &mut totals.push_peer_bytes,
                &mut totals.pushed_hits,
                &mut totals.pushed_hit_bytes,
            ] {
                self.to(count, COUNT_MAX);
            }
        }
    }

    fn fill(&mut self, fill: &mut FillProgress, now_unix_ms: u64) {
        self.list(&mut fill.reasons, REASONS_MAX);
        fill.reasons
            .iter_mut()
            .for_each(|reason| self.text(reason, SENTENCE_CHARS_MAX));
        self.to(&mut fill.ended_unix_ms, now_unix_ms + AHEAD_MAX_MS);
        let most = fill.items.min(COUNT_MAX);
        for items in [
            &mut fill.items,
            &mut fill.already_warm,
            &mut fill.warmed,
            &mut fill.failed,
            &mut fill.unfinished,
        ] {
            self.to(items, most);
        }
        for bytes in [
            &mut fill.already_warm_bytes,
            &mut fill.origin_bytes,
            &mut fill.peer_bytes,
        ] {
            self.to(bytes, STORED_BYTES_MAX);
        }
    }
}

/// Bounds an edge's report. `newest` is the journal's newest revision. Returns whether anything was
/// out of bounds.
pub(super) fn edge(report: &mut EdgeReport, fleet: &Fleet, newest: u64, now_unix_ms: u64) -> bool {
    let mut clamp = Clamp(false);
    clamp.to(&mut report.started_unix_ms, now_unix_ms + AHEAD_MAX_MS);
    clamp.to(&mut report.revision, newest);
    clamp.to(&mut report.connections, CONNECTIONS_MAX);
    for bytes in [
        &mut report.memory_bytes,
        &mut report.disk_bytes,
        &mut report.pushed_bytes,
    ] {
        clamp.to(bytes, STORED_BYTES_MAX);
    }
    clamp.sites(report, fleet);
    clamp.list(&mut report.popularity, URLS_MAX);
    clamp.keep(&mut report.popularity, |url| {
        fleet.sites.iter().any(|site| site.name == url.site)
    });
    for url in &mut report.popularity {
        clamp.to(&mut url.requests, URL_REQUESTS_MAX);
        clamp.to(&mut url.bytes, URL_BYTES_MAX);
        clamp.to(&mut url.size, URL_BYTES_MAX);
    }
    clamp.newest(&mut report.fills, FILLS_MAX);
    for fill in &mut report.fills {
        clamp.fill(fill, now_unix_ms);
    }
    clamp.newest(&mut report.purges, PURGES_MAX);
    for purge in &mut report.purges {
        clamp.to(&mut purge.responses, COUNT_MAX);
        clamp.to(&mut purge.effective_unix_ms, now_unix_ms + AHEAD_MAX_MS);
    }
    clamp.0
}

/// Bounds a name server's report. Returns whether anything was out of bounds.
pub(super) fn dns(report: &mut DnsReport, fleet: &Fleet, newest: u64, now_unix_ms: u64) -> bool {
    let mut clamp = Clamp(false);
    clamp.to(&mut report.started_unix_ms, now_unix_ms + AHEAD_MAX_MS);
    clamp.to(&mut report.revision, newest);
    clamp.to(&mut report.challenges_revision, newest);
    clamp.to(&mut report.rtt_prefixes, CONNECTIONS_MAX);
    clamp.text(&mut report.geo_source, SENTENCE_CHARS_MAX);
    clamp.counts(&mut report.queries);
    clamp.keep(&mut report.health, |health| {
        fleet.edge(&health.node).is_some()
    });
    clamp.list(
        &mut report.health,
        fleet
            .clusters
            .iter()
            .map(|cluster| cluster.nodes.len())
            .sum(),
    );
    for health in &mut report.health {
        clamp.text(&mut health.reason, SENTENCE_CHARS_MAX);
        clamp.to(&mut health.since_unix_ms, now_unix_ms + AHEAD_MAX_MS);
        clamp.to(&mut health.check_us, COUNT_MAX);
    }
    clamp.list(&mut report.selections, SELECTIONS_MAX);
    clamp.keep(&mut report.selections, |selection| {
        fleet.sites.iter().any(|site| site.name == selection.site)
            && fleet
                .clusters
                .iter()
                .any(|cluster| cluster.name == selection.cluster)
    });
    for selection in &mut report.selections {
        clamp.text(&mut selection.reason, NAME_CHARS_MAX);
        clamp.text(&mut selection.country, NAME_CHARS_MAX);
        clamp.float(&mut selection.latitude, 90.0);
        clamp.float(&mut selection.longitude, 180.0);
        clamp.to(&mut selection.count, COUNT_MAX);
    }
    clamp.0
}

/// Bounds an origin's report. Returns whether anything was out of bounds.
pub(super) fn origin(report: &mut OriginReport, now_unix_ms: u64) -> bool {
    let mut clamp = Clamp(false);
    clamp.to(&mut report.started_unix_ms, now_unix_ms + AHEAD_MAX_MS);
    clamp.counts(&mut report.requests);
    clamp.to(&mut report.bytes, COUNT_MAX);
    clamp.0
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::report::{
        FillProgress, NodeHealth, PurgeProgress, SelectionCount, SiteTotals, UrlCount,
    };
    use nearcast_fleet::testing::FleetText;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn fleet() -> Fleet {
        FleetText::new()
            .cluster("ams", &["192.0.2.1"])
            .site("www", "http://192.0.2.9", "hosts = [\"a.test\"]")
            .fleet()
    }

    fn lying_edge() -> EdgeReport {
        let counts = || (0..1000).map(|n| (n.to_string(), u64::MAX)).collect();
        let totals = SiteTotals {
            requests: counts(),
            bytes: counts(),
            errors: u64::MAX,
            origin_bytes: u64::MAX,
            origin_requests: u64::MAX,
            push_origin_bytes: u64::MAX,
            push_peer_bytes: u64::MAX,
            pushed_hits: u64::MAX,
            pushed_hit_bytes: u64::MAX,
        };
        let url = |site: &str| UrlCount {
            site: site.into(),
            url: "http://a/".into(),
            requests: u64::MAX,
            bytes: u64::MAX,
            size: u64::MAX,
        };
        let fill = FillProgress {
            order: "o".into(),
            items: 4,
            already_warm: u64::MAX,
            already_warm_bytes: u64::MAX,
            warmed: u64::MAX,
            origin_bytes: u64::MAX,
            peer_bytes: u64::MAX,
            failed: u64::MAX,
            unfinished: u64::MAX,
            reasons: vec!["x".repeat(10_000); 100],
            ended: true,
            ended_unix_ms: u64::MAX,
        };
        EdgeReport {
            node: "ams-1".into(),
            started_unix_ms: u64::MAX,
            revision: 1 << 52,
            draining: false,
            drained: false,
            sites: [
                ("www".to_owned(), totals.clone()),
                ("none-such".to_owned(), totals),
            ]
            .into(),
            connections: u64::MAX,
            memory_bytes: u64::MAX,
            disk_bytes: u64::MAX,
            pushed_bytes: u64::MAX,
            popularity: vec![url("www"), url("none-such")],
            fills: vec![fill; 100],
            purges: (0..100)
                .map(|revision| PurgeProgress {
                    revision,
                    responses: u64::MAX,
                    at_least: true,
                    effective_unix_ms: u64::MAX,
                })
                .collect(),
        }
    }

    #[test]
    fn an_edge_cannot_say_more_than_can_be() {
        let mut report = lying_edge();
        assert!(edge(&mut report, &fleet(), 7, NOW));
        assert_eq!(
            (report.revision, report.started_unix_ms),
            (7, NOW + AHEAD_MAX_MS)
        );
        assert_eq!(report.sites.keys().collect::<Vec<_>>(), ["www"]);
        let totals = &report.sites["www"];
        assert_eq!(
            (
                totals.requests.len(),
                totals.requests.values().max(),
                totals.errors
            ),
            (LABELS_MAX, Some(&COUNT_MAX), COUNT_MAX)
        );
        assert_eq!(
            (report.popularity.len(), report.popularity[0].requests),
            (1, URL_REQUESTS_MAX)
        );
        let fill = &report.fills[0];
        assert_eq!(
            (
                report.fills.len(),
                fill.warmed,
                fill.reasons.len(),
                fill.reasons[0].len()
            ),
            (FILLS_MAX, 4, REASONS_MAX, SENTENCE_CHARS_MAX)
        );
        assert_eq!(
            (report.purges.len(), report.purges[63].revision),
            (PURGES_MAX, 99),
            "the newest are last"
        );
        assert!(
            !edge(&mut report, &fleet(), 7, NOW),
            "what was cut once is good"
        );
        let text = serde_json::to_string(&report).expect("JSON");
        assert!(
            !text.contains(&u64::MAX.to_string()),
            "a number was not cut: {text}"
        );
    }

    #[test]
    fn a_name_server_and_an_origin_cannot_either() {
        let selection = |site: &str, cluster: &str| SelectionCount {
            site: site.into(),
            cluster: cluster.into(),
            reason: "r".repeat(1000),
            country: "c".repeat(1000),
            latitude: 1e300,
            longitude: -1e300,
            count: u64::MAX,
        };
        let health = |node: &str| NodeHealth {
            node: node.into(),
            up: false,
            since_unix_ms: u64::MAX,
            reason: "x".repeat(1000),
            check_us: u64::MAX,
        };
        let mut report = DnsReport {
            node: "ns1".into(),
            started_unix_ms: u64::MAX,
            revision: u64::MAX,
            draining: false,
            queries: [("NOERROR".to_owned(), u64::MAX)].into(),
            selections: vec![
                selection("www", "ams"),
                selection("none", "ams"),
                selection("www", "none"),
            ],
            health: vec![health("ams-1"), health("none-such"), health("ams-1")],
            rtt_prefixes: u64::MAX,
            geo_source: "g".repeat(1000),
            challenges_revision: u64::MAX,
        };
        assert!(dns(&mut report, &fleet(), 7, NOW));
        assert_eq!(
            (
                report.selections.len(),
                report.health.len(),
                report.revision
            ),
            (1, 1, 7)
        );
        assert_eq!(
            (
                report.selections[0].latitude,
                report.selections[0].longitude
            ),
            (90.0, -180.0)
        );
        assert!(
            !serde_json::to_string(&report)
                .expect("JSON")
                .contains(&u64::MAX.to_string())
        );
        assert!(!dns(&mut report, &fleet(), 7, NOW));
        let counts = [("2xx".to_owned(), u64::MAX)].into();
        let mut report = OriginReport {
            node: "o".into(),
            started_unix_ms: u64::MAX,
            draining: false,
            requests: counts,
            bytes: u64::MAX,
        };
        assert!(origin(&mut report, NOW) && !origin(&mut report, NOW));
        assert!(
            !serde_json::to_string(&report)
                .expect("JSON")
                .contains(&u64::MAX.to_string())
        );
    }
}
