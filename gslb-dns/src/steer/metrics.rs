//! The metrics of steering, gathered when they are scraped.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};

use super::share::WHOLE;
use super::steering::Steering;

/// Collects `nearcast_dns_selections_total` and the other metrics of steering.
pub(super) struct SteeringCollector {
    steering: Arc<Steering>,
    described: prometheus::IntCounterVec,
    node_up: prometheus::IntGaugeVec,
    address_up: prometheus::IntGaugeVec,
    cluster_share: prometheus::GaugeVec,
    rtt_prefixes: prometheus::IntGauge,
    rtt_dropped: prometheus::IntCounterVec,
    keys_refused: prometheus::IntCounterVec,
}

impl SteeringCollector {
    pub(super) fn new(steering: Arc<Steering>) -> Self {
        let opts = |name, help| prometheus::Opts::new(name, help);
        Self {
            steering,
            described: selections_vec(),
            node_up: prometheus::IntGaugeVec::new(
                opts("nearcast_dns_node_up", "Whether this name server takes the edge for up."),
                &["node"],
            )
            .expect("valid metric"),
            address_up: prometheus::IntGaugeVec::new(
                opts("nearcast_dns_address_up", "Whether this name server has the edge's address in its answers."),
                &["node", "address"],
            )
            .expect("valid metric"),
            cluster_share: prometheus::GaugeVec::new(
                opts("nearcast_dns_cluster_share", "Share of its clients that a cluster takes; less than 1 while it is full or returns."),
                &["cluster"],
            )
            .expect("valid metric"),
            rtt_prefixes: prometheus::IntGauge::with_opts(opts(
                "nearcast_dns_rtt_prefixes",
                "Client prefixes with a round-trip time that counts.",
            ))
            .expect("valid metric"),
            rtt_dropped: rtt_dropped_vec(),
            keys_refused: keys_refused_vec(),
        }
    }
}

fn selections_vec() -> prometheus::IntCounterVec {
    prometheus::IntCounterVec::new(
        prometheus::Opts::new(
            "nearcast_dns_selections_total",
            "Steered answers by site, cluster given and reason.",
        ),
        &["site", "cluster", "reason"],
    )
    .expect("valid metric")
}

fn rtt_dropped_vec() -> prometheus::IntCounterVec {
    let help = "Reported round-trip times that were dropped, since they cannot be or others outvote them, by the edge that reported them.";
    prometheus::IntCounterVec::new(
        prometheus::Opts::new("nearcast_dns_rtt_dropped_total", help),
        &["node"],
    )
    .expect("valid metric")
}

fn keys_refused_vec() -> prometheus::IntCounterVec {
    let opts = prometheus::Opts::new(
        "nearcast_dns_keys_refused_total",
        "Reports with a node key that was refused.",
    );
    prometheus::IntCounterVec::new(opts, &["reason"]).expect("valid metric")
}

impl Collector for SteeringCollector {
    fn desc(&self) -> Vec<&Desc> {
        let steered = [
            self.described.desc(),
            self.node_up.desc(),
            self.address_up.desc(),
            self.cluster_share.desc(),
        ];
        let measured = [
            self.rtt_prefixes.desc(),
            self.rtt_dropped.desc(),
            self.keys_refused.desc(),
        ];
        [steered.concat(), measured.concat()].concat()
    }

    fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
        let counts = selections_vec();
        for (kind, count) in self.steering.totals() {
            counts
                .with_label_values(&[kind.site.as_str(), &kind.cluster, kind.reason.label()])
                .inc_by(count);
        }

        let state = self.steering.state();
        self.node_up.reset();
        self.address_up.reset();
        for (node, health) in &state.health {
            self.node_up
                .with_label_values(&[node.as_str()])
                .set(i64::from(health.up));
            for (address, is_up) in health.addresses() {
                self.address_up
                    .with_label_values(&[node.as_str(), &address.to_string()])
                    .set(i64::from(is_up));
            }
        }

        self.cluster_share.reset();
        for (cluster, accepted) in state.fleet.clusters.iter().zip(&state.accepted) {
            self.cluster_share
                .with_label_values(&[cluster.name.as_str()])
                .set(f64::from(accepted.by_prefix) / f64::from(WHOLE));
        }

        self.rtt_prefixes.set(state.rtt_map.prefixes as i64);
        let (dropped, refused) = (rtt_dropped_vec(), keys_refused_vec());
        for (node, count) in state.rtt.dropped() {
            dropped.with_label_values(&[node]).inc_by(count);
        }

        for (reason, count) in state.keys.counts() {
            refused.with_label_values(&[reason]).inc_by(count);
        }
        let steered = [
            counts.collect(),
            self.node_up.collect(),
            self.address_up.collect(),
            self.cluster_share.collect(),
        ];
        let measured = [
            self.rtt_prefixes.collect(),
            dropped.collect(),
            refused.collect(),
        ];
        [steered.concat(), measured.concat()].concat()
    }
}
