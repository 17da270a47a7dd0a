//! Every metric of the origin: names and handles.

use std::collections::BTreeMap;

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Handles of the origin's metrics.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: IntCounterVec,
    /// Body bytes sent.
    pub(crate) response_bytes: IntCounter,
    /// Connections open now.
    pub(crate) connections: IntGauge,
}

/// Label values of the status class.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

impl Metrics {
    /// Creates the metrics and registers them.
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new("nearcast_origin_requests_total", "Requests answered."),
            &["status_class"],
        )?;
        for class in CLASSES {
            requests.with_label_values(&[class]);
        }
        let metrics = Self {
            requests,
            response_bytes: IntCounter::new(
                "nearcast_origin_response_bytes_total",
                "Body bytes sent.",
            )?,
            connections: IntGauge::new("nearcast_origin_connections", "Connections open now.")?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.response_bytes.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        Ok(metrics)
    }

    /// Counts a response.
    pub(crate) fn answered(&self, status: http::StatusCode) {
        let class = CLASSES[(usize::from(status.as_u16()) / 100).clamp(2, 5) - 2];
        self.requests.with_label_values(&[class]).inc();
    }

    /// Requests since the start by status class, without the classes that have none.
    pub(crate) fn by_class(&self) -> BTreeMap<String, u64> {
        CLASSES
            .iter()
            .map(|c| ((*c).to_owned(), self.requests.with_label_values(&[c]).get()))
            .filter(|(_, n)| *n > 0)
            .collect()
    }
}
