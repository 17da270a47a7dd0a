//! Every metric of the control role.

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

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
    /// Report fields that were cut to what can be, by role of the sender.
    pub(crate) bounded: IntCounterVec,
    /// By what they cover.
    pub(crate) purges: IntCounterVec,
    /// From acceptance to the answer, by whether it was complete.
    pub(crate) purge_seconds: HistogramVec,
    /// By cluster and whether scheduled or asked.
    pub(crate) push_orders: IntCounterVec,
    /// By cluster.
    pub(crate) push_order_bytes: IntCounterVec,
    /// By cluster and why.
    pub(crate) pushes_missed: IntCounterVec,
    /// Whether a cluster's last window did not bring what it should, until a push ends well.
    pub(crate) push_missed: IntGaugeVec,
    /// Newest journal revision.
    pub(crate) journal_revision: IntGauge,
    /// By role and state.
    pub(crate) nodes: IntGaugeVec,
    /// URLs remembered, by cluster.
    pub(crate) popular_urls: IntGaugeVec,
    /// Connections open now.
    pub(crate) connections: IntGauge,
    /// By whose they are.
    pub(crate) connections_of: IntGaugeVec,
    /// Strangers' and nodes' connections that had to go for others.
    pub(crate) connections_evicted: IntCounter,
}

impl Metrics {
    /// Makes and registers all.
    pub(crate) fn new() -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels)
                .expect("a metric's name and labels are valid")
        };
        let gauge =
            |name: &str, help: &str| IntGauge::new(name, help).expect("a metric's name is valid");
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            IntGaugeVec::new(Opts::new(name, help), labels)
                .expect("a metric's name and labels are valid")
        };
        let buckets = vec![0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
        let purge_opts = HistogramOpts::new(
            "nearcast_control_purge_seconds",
            "Time from accepting a purge to its answer.",
        )
        .buckets(buckets);
        let this = Self {
            registry: Registry::new(),
            requests: counter(
                "nearcast_control_requests_total",
                "API and console requests.",
                &["method", "status_class"],
            ),
            reports: counter(
                "nearcast_control_reports_total",
                "Reports from nodes.",
                &["role"],
            ),
            keys_refused: counter(
                "nearcast_control_keys_refused_total",
                "Requests with a node key that was refused.",
                &["reason"],
            ),
            bounded: counter(
                "nearcast_control_reports_bounded_total",
                "Reports with values that cannot be, which were cut.",
                &["role"],
            ),
            purges: counter(
                "nearcast_control_purges_total",
                "Accepted purges.",
                &["scope"],
            ),
            purge_seconds: HistogramVec::new(purge_opts, &["complete"])
                .expect("a metric's name and labels are valid"),
            push_orders: counter(
                "nearcast_control_push_orders_total",
                "Accepted push orders.",
                &["cluster", "why"],
            ),
            push_order_bytes: counter(
                "nearcast_control_push_order_bytes_total",
                "Bytes of the items of push orders.",
                &["cluster"],
            ),
            pushes_missed: counter(
                "nearcast_control_pushes_missed_total",
                "Off-peak windows that did not bring what they should.",
                &["cluster", "reason"],
            ),
            push_missed: gauges(
                "nearcast_control_push_missed",
                "1 while a cluster lacks what its last off-peak window should have brought.",
                &["cluster"],
            ),
            journal_revision: gauge(
                "nearcast_control_journal_revision",
                "Newest revision of the journal.",
            ),
            nodes: gauges(
                "nearcast_control_nodes",
                "Nodes of the fleet by role and state.",
                &["role", "state"],
            ),
            popular_urls: gauges(
                "nearcast_control_popular_urls",
                "URLs whose requests are remembered.",
                &["cluster"],
            ),
            connections: gauge(
                "nearcast_control_connections",
                "Connections open to the API.",
            ),
            connections_of: gauges(
                "nearcast_control_connections_by_class",
                "Connections open to the API by whose they are.",
                &["class"],
            ),
            connections_evicted: IntCounter::new(
                "nearcast_control_connections_evicted_total",
                "Connections that had to give way to others of their class.",
            )
            .expect("a metric's name is valid"),
        };
        let all: [Box<dyn prometheus::core::Collector>; 16] = [
            Box::new(this.requests.clone()),
            Box::new(this.reports.clone()),
            Box::new(this.keys_refused.clone()),
            Box::new(this.bounded.clone()),
            Box::new(this.purges.clone()),
            Box::new(this.purge_seconds.clone()),
            Box::new(this.push_orders.clone()),
            Box::new(this.push_order_bytes.clone()),
            Box::new(this.pushes_missed.clone()),
            Box::new(this.push_missed.clone()),
            Box::new(this.journal_revision.clone()),
            Box::new(this.nodes.clone()),
            Box::new(this.popular_urls.clone()),
            Box::new(this.connections.clone()),
            Box::new(this.connections_of.clone()),
            Box::new(this.connections_evicted.clone()),
        ];
        for metric in all {
            this.registry
                .register(metric)
                .expect("every metric has a name of its own");
        }
        this
    }
}
