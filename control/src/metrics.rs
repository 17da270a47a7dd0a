//! Every metric of the control role.

use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Upper bounds of the buckets of `purge_seconds`.
const PURGE_SECONDS: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Handles of all metrics.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    /// By method and status class.
    pub(crate) requests: IntCounterVec,
    /// By role of the sender.
    pub(crate) reports: IntCounterVec,
    /// By reason.
    pub(crate) keys_refused: IntCounterVec,
    /// By role of the sender.
    pub(crate) reports_clamped: IntCounterVec,
    /// By kind of scope.
    pub(crate) purges: IntCounterVec,
    /// From acceptance to the answer, by whether every edge had confirmed it.
    pub(crate) purge_seconds: HistogramVec,
    /// By cluster and trigger: scheduled or manual.
    pub(crate) push_orders: IntCounterVec,
    /// By cluster.
    pub(crate) push_order_bytes: IntCounterVec,
    /// By cluster and reason.
    pub(crate) pushes_missed: IntCounterVec,
    /// By cluster.
    pub(crate) push_missed: IntGaugeVec,
    pub(crate) journal_revision: IntGauge,
    /// By role and state.
    pub(crate) nodes: IntGaugeVec,
    /// By cluster.
    pub(crate) tracked_urls: IntGaugeVec,
    pub(crate) connections: IntGauge,
    /// By class of the caller.
    pub(crate) connections_of: IntGaugeVec,
    /// Connections closed to make room for others.
    pub(crate) connections_evicted: IntCounter,
    /// By reason.
    pub(crate) handshakes_failed: IntCounterVec,
    /// By certificate, in seconds after the Unix epoch.
    pub(crate) certificate_expiry: IntGaugeVec,
    /// By certificate, in seconds after the Unix epoch.
    pub(crate) certificate_next_order: IntGaugeVec,
    /// By certificate.
    pub(crate) certificate_failures: IntGaugeVec,
    /// By authority and result: `obtained` or `failed`.
    pub(crate) acme_orders: IntCounterVec,
}

impl Metrics {
    /// Creates and registers all.
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        Self {
            requests: counters(
                &registry,
                "requests_total",
                "Requests to the API and the console.",
                &["method", "status_class"],
            ),
            reports: counters(&registry, "reports_total", "Reports of nodes.", &["role"]),
            keys_refused: counters(
                &registry,
                "keys_refused_total",
                "Requests whose node key was refused.",
                &["reason"],
            ),
            reports_clamped: counters(
                &registry,
                "reports_clamped_total",
                "Reports with values out of bounds, which were clamped.",
                &["role"],
            ),
            purges: counters(&registry, "purges_total", "Accepted purges.", &["scope"]),
            purge_seconds: purge_seconds(&registry),
            push_orders: counters(
                &registry,
                "push_orders_total",
                "Accepted push orders.",
                &["cluster", "trigger"],
            ),
            push_order_bytes: counters(
                &registry,
                "push_order_bytes_total",
                "Bytes of the items of push orders.",
                &["cluster"],
            ),
            pushes_missed: counters(
                &registry,
                "pushes_missed_total",
                "Off-peak windows that did not complete their push.",
                &["cluster", "reason"],
            ),
            push_missed: gauges(
                &registry,
                "push_missed",
                "1 while a cluster's last off-peak window has not completed its push.",
                &["cluster"],
            ),
            journal_revision: registered(
                &registry,
                IntGauge::new(name("journal_revision"), "Newest revision of the journal."),
            ),
            nodes: gauges(
                &registry,
                "nodes",
                "Nodes of the fleet by role and state.",
                &["role", "state"],
            ),
            tracked_urls: gauges(
                &registry,
                "tracked_urls",
                "URLs whose requests are tracked.",
                &["cluster"],
            ),
            connections: registered(
                &registry,
                IntGauge::new(name("connections"), "Open connections to the API."),
            ),
            connections_of: gauges(
                &registry,
                "connections_by_class",
                "Open connections to the API by class of the caller.",
                &["class"],
            ),
            connections_evicted: registered(
                &registry,
                IntCounter::new(
                    name("connections_evicted_total"),
                    "Connections that were closed to make room for others of their class.",
                ),
            ),
            handshakes_failed: counters(
                &registry,
                "handshakes_failed_total",
                "Connections to the API that sent no request over TLS.",
                &["reason"],
            ),
            certificate_expiry: gauges(
                &registry,
                "certificate_expiry_timestamp_seconds",
                "When a certificate that control orders expires.",
                &["certificate"],
            ),
            certificate_next_order: gauges(
                &registry,
                "certificate_next_order_timestamp_seconds",
                "When the next order of a certificate is due.",
                &["certificate"],
            ),
            certificate_failures: gauges(
                &registry,
                "certificate_failures",
                "Orders of a certificate that failed since the last success.",
                &["certificate"],
            ),
            acme_orders: counters(
                &registry,
                "acme_orders_total",
                "Orders of certificates that ended.",
                &["authority", "result"],
            ),
            registry,
        }
    }
}

fn name(suffix: &str) -> String {
    format!("nearcast_control_{suffix}")
}

fn counters(registry: &Registry, suffix: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    let made = IntCounterVec::new(Opts::new(name(suffix), help), labels);
    registered(registry, made)
}

fn gauges(registry: &Registry, suffix: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    let made = IntGaugeVec::new(Opts::new(name(suffix), help), labels);
    registered(registry, made)
}

fn purge_seconds(registry: &Registry) -> HistogramVec {
    let help = "Time from accepting a purge to its answer.";
    let opts = HistogramOpts::new(name("purge_seconds"), help).buckets(PURGE_SECONDS.to_vec());
    registered(registry, HistogramVec::new(opts, &["complete"]))
}

fn registered<M: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<M>,
) -> M {
    let metric = made.expect("a metric's name and labels are valid");
    registry
        .register(Box::new(metric.clone()))
        .expect("every metric has a name of its own");
    metric
}
