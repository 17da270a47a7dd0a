//! What the node reports to control and to name servers, and the figures of other parts that its
//! metrics show.
//!
//! Owns the content and the occasion of reports. Does not know how they are sent
//! (`fleet::reporter`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nearcast_fleet::client::Client;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::node_key;
use nearcast_fleet::report::{EdgeReport, RttReport};
use nearcast_fleet::reporter;
use nearcast_net::shutdown::Shutdown;
use nearcast_store::Kind;
use nearcast_store::io::DiskState;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::access_log::AccessLog;
use crate::edge::{Edge, Worker};
use crate::journal::Journal;
use crate::metrics::Reading;
use crate::popularity::Popularity;
use crate::push::Pushes;
use crate::rtt::RoundTrips;
use crate::serve::connections::Refused;
use crate::serve::handshake::HandshakeResult;
use crate::serve::quic::Beginning;
use crate::serve::{http2, http3};

/// How long control may take to answer a report that a purge caused.
const PURGE_REPORT_MAX: Duration = Duration::from_secs(1);
/// Shortest time that a rate is computed over, in seconds.
const RATE_SECONDS_MIN: f64 = 0.001;

/// What reports are made of.
#[derive(Clone)]
pub(crate) struct Reporting {
    pub(crate) edge: Arc<Edge>,
    pub(crate) workers: Vec<Arc<Worker>>,
    pub(crate) journal: Journal,
    pub(crate) pushes: Pushes,
    pub(crate) fleet: watch::Receiver<Arc<Fleet>>,
}

impl Reporting {
    /// Starts the tasks that report. The report of purges joins `tasks`; the others are returned:
    /// they end with a last report at the shutdown.
    pub(crate) fn start(self, tasks: &mut JoinSet<()>, shutdown: Shutdown) -> JoinSet<()> {
        // One connection for both kinds of reports to control, beside that of the journal.
        let client = Client::following(self.fleet.clone());
        let mut reporters = JoinSet::new();
        reporters.spawn(reporter::run_with(
            client.clone(),
            self.edge.name.to_string(),
            edges_of_control,
            self.fleet.clone(),
            self.clone().edge_reports(),
            shutdown.clone(),
        ));
        reporters.spawn(reporter::run(
            self.edge.name.to_string(),
            reporter::to_name_servers,
            self.fleet.clone(),
            self.clone().rtt_reports(Instant::now()),
            shutdown,
        ));
        tasks.spawn(self.report_purges(client));
        reporters
    }

    /// Builds the periodic reports to control. Request counts are sent until one was accepted.
    fn edge_reports(self) -> impl FnMut(bool) -> EdgeReport {
        let mut unreported = Popularity::default();
        move |was_accepted| {
            if was_accepted {
                unreported = Popularity::default();
            }
            self.workers
                .iter()
                .for_each(|w| unreported.merge(w.take_popularity()));
            self.edge_report(&unreported)
        }
    }

    /// Builds the periodic reports to name servers: round-trip times and load since the last one.
    fn rtt_reports(self, now: Instant) -> impl FnMut(bool) -> RttReport {
        let mut last = (now, self.edge.metrics.response_bytes());
        move |_| {
            let mut noted = RoundTrips::default();
            self.workers
                .iter()
                .for_each(|w| noted.merge(w.take_round_trips()));

            let now = (Instant::now(), self.edge.metrics.response_bytes());
            let (before, bytes_before) = std::mem::replace(&mut last, now);
            let seconds = now.0.duration_since(before).as_secs_f64();
            RttReport {
                node: self.edge.name.to_string(),
                egress_bits: bits_a_second(now.1 - bytes_before, seconds),
                connections: self.edge.connections.count() as u64,
                samples: noted.samples(),
            }
        }
    }

    /// Reports each purge at once, because an operator waits for it. If the report is lost, the
    /// next periodic one has the same content.
    async fn report_purges(self, client: Client) {
        loop {
            self.journal.changed.notified().await;
            let fleet = self.fleet.borrow().clone();
            let report = self.edge_report(&Popularity::default());
            let key = node_key::shown_by(&fleet, &self.edge.name);
            for url in edges_of_control(&fleet) {
                let _ = client
                    .post_json(&url, key.as_ref(), &report, PURGE_REPORT_MAX)
                    .await;
            }
        }
    }

    fn edge_report(&self, popularity: &Popularity) -> EdgeReport {
        let edge = &self.edge;
        let disk = edge.store.disk_figures().unwrap_or_default();
        EdgeReport {
            node: edge.name.to_string(),
            started_unix_ms: edge.started_ms,
            revision: self.journal.reported(edge.generations.revision()),
            draining: edge.lifecycle.is_ending(),
            drained: edge.lifecycle.is_drained(),
            sites: edge.metrics.totals(),
            connections: edge.connections.count() as u64,
            memory_bytes: edge.store.memory_bytes(),
            disk_bytes: disk.pull_bytes + disk.pushed_bytes,
            pushed_bytes: disk.pushed_bytes,
            popularity: popularity.top(),
            fills: self.pushes.progress(),
            purges: self.journal.purges(),
        }
    }
}

/// Where control accepts the reports of edges.
fn edges_of_control(fleet: &Fleet) -> Vec<String> {
    reporter::to_control(fleet, "edge")
}

fn bits_a_second(bytes: u64, seconds: f64) -> u64 {
    (bytes as f64 * 8.0 / seconds.max(RATE_SECONDS_MIN)) as u64
}

/// Connects the metrics with the figures that other parts keep.
pub(crate) fn add_readings(edge: &Arc<Edge>, log: &Arc<AccessLog>) {
    let log = log.clone();
    // Weak, because the edge holds its metrics.
    let edge_of = Arc::downgrade(edge);
    edge.metrics.read_from(Box::new(move || {
        let Some(edge) = edge_of.upgrade() else {
            return Vec::new();
        };
        let mut readings = Vec::new();
        readings.extend(connection_readings(&edge));
        readings.extend(tls_readings(&edge));
        readings.extend(log_readings(&log));
        readings.extend(node_readings(&edge));
        readings.extend(forward_readings(&edge));
        readings.extend(memory_readings(&edge));
        readings.extend(disk_readings(&edge));
        readings.extend(edge.compressions.readings());
        readings
    }));
}

fn tls_readings(edge: &Edge) -> Vec<Reading> {
    let states = edge.certificates.states();
    if states.is_empty() {
        return Vec::new();
    }
    let handshakes = HandshakeResult::all().map(|result| {
        Reading::counter(
            "nearcast_edge_tls_handshakes_total",
            "TLS handshakes with clients by result: full, resumed, or why there was none.",
            edge.handshakes.count(result) as f64,
        )
        .with_label("result", result.label())
    });
    let beginnings = Beginning::ALL.map(|result| {
        Reading::counter(
            "nearcast_edge_quic_incoming_total",
            "Connections of QUIC that began: accepted, their clients asked to show their addresses (retry), or refused.",
            edge.quic.count(result) as f64,
        )
        .with_label("result", result.label())
    });
    let [loaded, failed] = edge.certificates.reads();
    let reads = [("loaded", loaded), ("failed", failed)].map(|(result, count)| {
        Reading::counter(
            "nearcast_edge_certificate_reads_total",
            "New or changed certificates that were read (loaded), or cannot be used (failed).",
            count as f64,
        )
        .with_label("result", result)
    });
    let broken = states.iter().map(|state| {
        let (name, help) = (
            "nearcast_edge_certificate_broken",
            "1 while the certificate's files cannot be used as they are; a former one may be in force.",
        );
        Reading::flag(name, help, state.is_broken)
            .with_label("certificate", state.files.cert.display().to_string())
    });
    let expiry = states.iter().filter_map(|state| {
        let reading = Reading::gauge(
            "nearcast_edge_certificate_expiry_timestamp_seconds",
            "When the certificate in force expires, in seconds after the Unix epoch.",
            state.not_after_unix_s? as f64,
        );
        let source = match edge.certificates.is_ordered(&state.files.cert) {
            true => "acme",
            false => "file",
        };
        let reading = reading.with_label("certificate", state.files.cert.display().to_string());
        Some(reading.with_label("source", source))
    });
    handshakes
        .chain(beginnings)
        .chain(reads)
        .chain(broken)
        .chain(expiry)
        .collect()
}

fn log_readings(log: &AccessLog) -> [Reading; 2] {
    let (written, lost) = log.counts();
    [("written", written), ("lost", lost)].map(|(result, lines)| {
        let reading = Reading::counter(
            "nearcast_edge_access_log_lines_total",
            "Lines of the access log that were written, and lines that were lost because the disk or pipe could not take them.",
            lines as f64,
        );
        reading.with_label("result", result)
    })
}

fn connection_readings(edge: &Edge) -> Vec<Reading> {
    let connections = &edge.connections;
    let mut readings = vec![
        Reading::gauge(
            "nearcast_edge_connections",
            "Open client connections.",
            connections.count() as f64,
        ),
        Reading::gauge(
            "nearcast_edge_connections_max",
            "Largest number of client connections that may be open.",
            connections.max() as f64,
        ),
        Reading::counter(
            "nearcast_edge_idle_connections_closed_total",
            "Idle client connections that were closed to make room for others.",
            connections.closed_idle() as f64,
        ),
    ];
    for (reason, refused) in [
        ("full", Refused::Full),
        ("share", Refused::Share),
        ("files", Refused::Files),
    ] {
        let reading = Reading::counter(
            "nearcast_edge_connections_refused_total",
            "Client connections that were closed because too many were open.",
            connections.refused(refused) as f64,
        );
        readings.push(reading.with_label("reason", reason));
    }
    for (reason, refused) in edge.proxy_counters.refused() {
        let reading = Reading::counter(
            "nearcast_edge_proxy_connections_refused_total",
            "Connections on listeners with PROXY protocol that were closed: from a stranger, or without a header that can be used.",
            refused as f64,
        );
        readings.push(reading.with_label("reason", reason));
    }
    readings.push(Reading::counter(
        "nearcast_edge_proxy_fields_malformed_total",
        "Requests of trusted proxies whose statements on their clients were malformed and not believed.",
        edge.proxy_counters.malformed() as f64,
    ));
    for reason in http2::frames::Closed::ALL {
        let reading = Reading::counter(
            "nearcast_edge_http2_closed_total",
            "HTTP/2 connections that the node closed for an error, a limit or a time-out.",
            edge.metrics.http2_closed_count(reason) as f64,
        );
        readings.push(reading.with_label("reason", reason.as_str()));
    }
    for reason in http3::closed::Closed::ALL {
        let reading = Reading::counter(
            "nearcast_edge_http3_closed_total",
            "HTTP/3 connections that the node closed for an error, a limit or a time-out.",
            edge.metrics.http3_closed_count(reason) as f64,
        );
        readings.push(reading.with_label("reason", reason.as_str()));
    }
    readings
}

fn node_readings(edge: &Edge) -> [Reading; 4] {
    [
        Reading::flag(
            "nearcast_edge_draining",
            "Whether the node is shutting down.",
            edge.lifecycle.is_ending(),
        ),
        Reading::flag(
            "nearcast_edge_drained",
            "Whether an operator has drained the node or its cluster.",
            edge.lifecycle.is_drained(),
        ),
        Reading::gauge(
            "nearcast_edge_journal_revision",
            "Newest folded revision of the journal.",
            edge.generations.revision() as f64,
        ),
        Reading::flag(
            "nearcast_edge_caught_up",
            "Whether all purges are known that may cover stored responses of an earlier run.",
            edge.is_caught_up.load(Ordering::Relaxed),
        ),
    ]
}

fn forward_readings(edge: &Edge) -> [Reading; 3] {
    [
        Reading::gauge(
            "nearcast_edge_forwards",
            "Forward requests that other requests may wait for.",
            edge.forwards.len() as f64,
        ),
        Reading::gauge(
            "nearcast_edge_forwards_waiting",
            "Requests that wait for the forward request of another.",
            edge.forwards.waiting() as f64,
        ),
        Reading::gauge(
            "nearcast_edge_fills",
            "Responses that are being written into the store.",
            edge.forwards.fills.count() as f64,
        ),
    ]
}

fn memory_readings(edge: &Edge) -> Vec<Reading> {
    let (store, budget) = (&edge.store, edge.store.budget());
    let mut readings = vec![
        Reading::gauge(
            "nearcast_edge_stored_urls",
            "Cache keys with stored responses in memory.",
            edge.index.len() as f64,
        ),
        Reading::gauge(
            "nearcast_edge_memory_limit_bytes",
            "The setting memory: what stored responses may take in memory.",
            budget.limit() as f64,
        ),
        Reading::gauge(
            "nearcast_edge_memory_bytes",
            "Bytes of memory that stored responses take, all told.",
            store.memory_bytes() as f64,
        ),
        Reading::gauge(
            "nearcast_edge_memory_unused_bytes",
            "Bytes of memory that are kept for slices and have none in them now.",
            store.arena().slack() as f64,
        ),
        Reading::counter(
            "nearcast_edge_memory_evictions_total",
            "Heads and slices evicted from memory.",
            store.memory_evictions() as f64,
        ),
    ];
    readings.extend(Kind::ALL.map(|kind| {
        Reading::gauge(
            "nearcast_edge_memory_part_bytes",
            "Bytes of memory that stored responses take, by what they are taken for.",
            budget.taken_for(kind) as f64,
        )
        .with_label("part", kind.name())
    }));
    readings
}

fn disk_readings(edge: &Edge) -> Vec<Reading> {
    let Some(disk) = edge.store.disk_figures() else {
        return Vec::new();
    };
    let state = edge.store.disk_state();
    let states = DiskState::LABELS.into_iter().map(|label| {
        Reading::flag(
            "nearcast_edge_disk_state",
            "1 for the state of the store's disk: opening (what it holds is being found), on, full (it has no room for new bytes), left (it hangs or fails, and is not used until it answers again), refused (what it holds is of another version).",
            state.as_ref().is_some_and(|state| state.label() == label),
        )
        .with_label("state", label)
    });
    let figures = vec![
        Reading::gauge(
            "nearcast_edge_disk_bytes",
            "Bytes on disk.",
            (disk.pull_bytes + disk.pushed_bytes) as f64,
        ),
        Reading::gauge(
            "nearcast_edge_disk_pushed_bytes",
            "Bytes on disk in the share for pushed content.",
            disk.pushed_bytes as f64,
        ),
        Reading::counter(
            "nearcast_edge_disk_evictions_total",
            "Regions evicted from disk.",
            disk.evictions as f64,
        ),
        Reading::counter(
            "nearcast_edge_disk_errors_total",
            "Failed reads and writes of the disk.",
            disk.errors as f64,
        ),
        Reading::counter(
            "nearcast_edge_disk_dropped_writes_total",
            "Slices that were not written because the queue to the disk was full, writes were off or pinned content filled the share.",
            disk.dropped_writes as f64,
        ),
        Reading::flag(
            "nearcast_edge_disk_enabled",
            "Whether writes to the disk are on. They are off for a while after one failed.",
            disk.is_enabled,
        ),
    ];
    figures.into_iter().chain(states).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_no_time_to_pass() {
        for (bytes, seconds, expected) in [
            (0, 1.0, 0),
            (1000, 1.0, 8000),
            (1000, 2.0, 4000),
            (1, 0.0, 8000),
        ] {
            assert_eq!(
                bits_a_second(bytes, seconds),
                expected,
                "{bytes} in {seconds}"
            );
        }
    }
}
