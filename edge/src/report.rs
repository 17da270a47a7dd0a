//! What the node tells control and the name servers, and the figures that other parts keep.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nearcast_fleet::client::Client;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::node_key;
use nearcast_fleet::report::{EdgeReport, RttReport};
use nearcast_fleet::reporter;
use nearcast_fleet::shutdown::Shutdown;
use prometheus::proto::MetricType::{COUNTER, GAUGE};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::connections::Refused;
use crate::edge::{Edge, Worker};
use crate::journal::Journal;
use crate::popularity::Popularity;
use crate::push::Pushes;
use crate::rtt::RoundTrips;

/// How long control may take to answer a report out of turn.
const PROMPT_REPORT_MAX: Duration = Duration::from_secs(1);

/// Starts the tasks that report; gives those that end, with a last report, at the shutdown.
pub(crate) fn start(
    tasks: &mut JoinSet<()>,
    edge: &Arc<Edge>,
    workers: Vec<Arc<Worker>>,
    journal: &Journal,
    pushes: &Pushes,
    fleet: watch::Receiver<Arc<Fleet>>,
    shutdown: Shutdown,
) -> JoinSet<()> {
    let mut reporters = JoinSet::new();
    let mut untold = Popularity::default();
    let (of_edge, of_workers, of_journal, of_pushes) = (
        edge.clone(),
        workers.clone(),
        journal.clone(),
        pushes.clone(),
    );
    let build = move |was_accepted: bool| {
        if was_accepted {
            untold = Popularity::default();
        }
        of_workers
            .iter()
            .for_each(|w| untold.merge(w.take_popularity()));
        edge_report(&of_edge, &untold, &of_journal, &of_pushes)
    };
    // One connection for both kinds of reports to control, beside that of the journal.
    let client = Client::new();
    let name = edge.name.to_string();
    let to_control = |f: &Fleet| reporter::to_control(f, "edge");
    reporters.spawn(reporter::run_with(
        client.clone(),
        name.clone(),
        to_control,
        fleet.clone(),
        build,
        shutdown.clone(),
    ));
    tasks.spawn(report_purges(
        client,
        edge.clone(),
        journal.clone(),
        pushes.clone(),
        fleet.clone(),
    ));
    let edge = edge.clone();
    let last = Mutex::new((Instant::now(), edge.metrics.response_bytes()));
    let build = move |_| {
        let mut noted = RoundTrips::default();
        workers
            .iter()
            .for_each(|w| noted.merge(w.take_round_trips()));
        let bytes = edge.metrics.response_bytes();
        let (at, before) = std::mem::replace(
            &mut *last.lock().expect("no holder of this lock panics"),
            (Instant::now(), bytes),
        );
        let seconds = at.elapsed().as_secs_f64().max(0.001);
        RttReport {
            node: edge.name.to_string(),
            egress_bits: ((bytes - before) as f64 * 8.0 / seconds) as u64,
            connections: edge.connections.count() as u64,
            samples: noted.samples(),
        }
    };
    reporters.spawn(reporter::run(
        name,
        reporter::to_name_servers,
        fleet,
        build,
        shutdown,
    ));
    reporters
}

/// Tells control of a purge at once: somebody waits for it. What gets lost comes with the next
/// report.
async fn report_purges(
    client: Client,
    edge: Arc<Edge>,
    journal: Journal,
    pushes: Pushes,
    fleet: watch::Receiver<Arc<Fleet>>,
) {
    loop {
        journal.changed.notified().await;
        let now = fleet.borrow().clone();
        let report = edge_report(&edge, &Popularity::default(), &journal, &pushes);
        let key = node_key::shown_by(&now, &edge.name);
        for url in reporter::to_control(&now, "edge") {
            let _ = client
                .post_json(&url, key.as_ref(), &report, PROMPT_REPORT_MAX)
                .await;
        }
    }
}

fn edge_report(
    edge: &Edge,
    popularity: &Popularity,
    journal: &Journal,
    pushes: &Pushes,
) -> EdgeReport {
    let disk = edge.store.disk_figures().unwrap_or_default();
    EdgeReport {
        node: edge.name.to_string(),
        started_unix_ms: edge.started_ms,
        revision: edge.generations.revision(),
        draining: edge.standing.is_ending(),
        drained: edge.standing.is_drained(),
        sites: edge.metrics.totals(),
        connections: edge.connections.count() as u64,
        memory_bytes: edge.store.memory_bytes(),
        disk_bytes: disk.pull_bytes + disk.pushed_bytes,
        pushed_bytes: disk.pushed_bytes,
        popularity: popularity.top(),
        fills: pushes.progress(),
        purges: journal.purges(),
    }
}

/// Connections that were not taken, by reason.
const REFUSED: [(&str, Refused); 3] = [
    (
        "nearcast_edge_connections_refused_total{reason=\"full\"}",
        Refused::Full,
    ),
    (
        "nearcast_edge_connections_refused_total{reason=\"share\"}",
        Refused::Share,
    ),
    (
        "nearcast_edge_connections_refused_total{reason=\"files\"}",
        Refused::Files,
    ),
];

/// Lets metrics read what other parts keep.
pub(crate) fn add_readings(edge: &Arc<Edge>) {
    // Weak: the edge holds its metrics.
    let edge_of = Arc::downgrade(edge);
    edge.metrics.read_from(Box::new(move || {
        let Some(edge) = edge_of.upgrade() else { return Vec::new() };
        let disk = edge.store.disk_figures().unwrap_or_default();
        let mut readings = vec![
            ("nearcast_edge_connections", "Client connections open.", GAUGE, edge.connections.count() as f64),
            ("nearcast_edge_connection_limit", "Client connections that may be open.", GAUGE, edge.connections.max() as f64),
            (
                "nearcast_edge_idle_connections_closed_total",
                "Client connections that lay idle and were closed to make room for others.",
                COUNTER,
                edge.connections.closed_idle() as f64,
            ),
            (
                "nearcast_edge_is_draining",
                "Whether the node is on its way to its end.",
                GAUGE,
                f64::from(u8::from(edge.standing.is_ending())),
            ),
            (
                "nearcast_edge_is_drained",
                "Whether an operator has drained the node or its cluster.",
                GAUGE,
                f64::from(u8::from(edge.standing.is_drained())),
            ),
            ("nearcast_edge_forwards", "Forward requests that others may wait for.", GAUGE, edge.forwards.len() as f64),
            ("nearcast_edge_forwards_waiting", "Requests that wait for another's forward request.", GAUGE, edge.forwards.waiting() as f64),
            ("nearcast_edge_fills", "Responses on their way into the store.", GAUGE, edge.forwards.fills.count() as f64),
            ("nearcast_edge_stored_urls", "Keys with stored responses.", GAUGE, edge.index.len() as f64),
            ("nearcast_edge_memory_bytes", "Bytes of slices in memory.", GAUGE, edge.store.memory_bytes() as f64),
            ("nearcast_edge_memory_evictions_total", "Slices evicted from memory.", COUNTER, edge.store.memory_evictions() as f64),
            ("nearcast_edge_journal_revision", "Newest journal revision folded.", GAUGE, edge.generations.revision() as f64),
            (
                "nearcast_edge_is_caught_up",
                "Whether every purge is known that stored responses of an earlier run may be covered by.",
                GAUGE,
                f64::from(u8::from(edge.is_caught_up.load(Ordering::Relaxed))),
            ),
        ];
        for (name, why) in REFUSED {
            readings.push((name, "Client connections closed because too many were open.", COUNTER, edge.connections.refused(why) as f64));
        }
        if edge.store.disk_figures().is_some() {
            readings.extend([
                ("nearcast_edge_disk_bytes", "Bytes on disk.", GAUGE, (disk.pull_bytes + disk.pushed_bytes) as f64),
                ("nearcast_edge_pushed_bytes", "Bytes on disk that pushes brought.", GAUGE, disk.pushed_bytes as f64),
                ("nearcast_edge_disk_evictions_total", "Regions evicted from disk.", COUNTER, disk.evictions as f64),
                ("nearcast_edge_disk_errors_total", "Reads and writes of the disk that failed.", COUNTER, disk.errors as f64),
                ("nearcast_edge_disk_shed_total", "Slices not written because the disk was behind or off.", COUNTER, disk.dropped_writes as f64),
                ("nearcast_edge_disk_is_on", "Whether the disk takes writes.", GAUGE, f64::from(u8::from(disk.is_enabled))),
            ]);
        }
        readings
    }));
}
