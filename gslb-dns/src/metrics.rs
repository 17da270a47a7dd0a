//! The metrics of queries: names, labels and handles. Steering counts selections.

use std::collections::BTreeMap;

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use crate::message::rtype;

/// The transport of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// Types with a label of their own; all others are `other`, so that a client cannot create labels.
const TYPES: [(u16, &str); 19] = [
    (rtype::A, "A"),
    (rtype::AAAA, "AAAA"),
    (rtype::NS, "NS"),
    (rtype::CNAME, "CNAME"),
    (rtype::SOA, "SOA"),
    (rtype::PTR, "PTR"),
    (rtype::MX, "MX"),
    (rtype::TXT, "TXT"),
    (rtype::SRV, "SRV"),
    (rtype::NAPTR, "NAPTR"),
    (rtype::DS, "DS"),
    (rtype::DNSKEY, "DNSKEY"),
    (rtype::TLSA, "TLSA"),
    (rtype::SVCB, "SVCB"),
    (rtype::HTTPS, "HTTPS"),
    (rtype::CAA, "CAA"),
    (rtype::ANY, "ANY"),
    (rtype::AXFR, "AXFR"),
    (rtype::IXFR, "IXFR"),
];
const TYPE_LABELS: usize = TYPES.len() + 1;

/// Response codes with a label.
const RCODES: [(u16, &str); 10] = [
    (0, "NOERROR"),
    (1, "FORMERR"),
    (2, "SERVFAIL"),
    (3, "NXDOMAIN"),
    (4, "NOTIMP"),
    (5, "REFUSED"),
    (6, "YXDOMAIN"),
    (9, "NOTAUTH"),
    (16, "BADVERS"),
    (23, "BADCOOKIE"),
];
const CELLS: usize = 2 * TYPE_LABELS * RCODES.len();

/// The counters, shared.
#[derive(Debug)]
pub struct Metrics {
    queries: Vec<IntCounter>,
    ignored: IntCounter,
}

impl Metrics {
    /// Makes and registers the counters.
    ///
    /// # Errors
    /// When the registry has metrics of these names already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let vec = IntCounterVec::new(
            Opts::new(
                "nearcast_dns_queries_total",
                "Answered DNS queries by transport, type and response code.",
            ),
            &["transport", "qtype", "rcode"],
        )?;
        registry.register(Box::new(vec.clone()))?;
        let ignored = IntCounter::new(
            "nearcast_dns_ignored_total",
            "Messages that get no answer: shorter than a header, or responses.",
        )?;
        registry.register(Box::new(ignored.clone()))?;
        let labels = |cell: usize| {
            let (transport, rest) = (
                cell / (TYPE_LABELS * RCODES.len()),
                cell % (TYPE_LABELS * RCODES.len()),
            );
            let qtype = TYPES.get(rest / RCODES.len()).map_or("other", |t| t.1);
            [
                ["udp", "tcp"][transport],
                qtype,
                RCODES[rest % RCODES.len()].1,
            ]
        };

        // Looked up once, not for every query.
        let queries = (0..CELLS)
            .map(|cell| vec.with_label_values(&labels(cell)))
            .collect();
        Ok(Self { queries, ignored })
    }

    /// Answered queries by response code since start.
    pub fn by_rcode(&self) -> BTreeMap<String, u64> {
        let mut totals = BTreeMap::new();
        for (cell, counter) in self.queries.iter().enumerate() {
            let count = counter.get();
            if count > 0 {
                *totals
                    .entry(RCODES[cell % RCODES.len()].1.to_owned())
                    .or_default() += count;
            }
        }
        totals
    }
}

/// Counts of one worker that are added to the shared counters a batch at a time.
#[derive(Debug)]
pub struct Tally {
    counts: Box<[u32; CELLS]>,
    touched: Vec<u16>,
    ignored: u32,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            counts: Box::new([0; CELLS]),
            touched: Vec::with_capacity(CELLS),
            ignored: 0,
        }
    }
}

impl Tally {
    /// Counts an answered query.
    pub fn answered(&mut self, transport: Transport, qtype: Option<u16>, rcode: u16) {
        let kind = qtype
            .and_then(|q| TYPES.iter().position(|t| t.0 == q))
            .unwrap_or(TYPES.len());
        let code = RCODES.iter().position(|r| r.0 == rcode).unwrap_or(2);
        let cell = (transport as usize * TYPE_LABELS + kind) * RCODES.len() + code;
        if self.counts[cell] == 0 {
            self.touched.push(cell as u16);
        }
        self.counts[cell] += 1;
    }

    /// Counts a message that gets no answer.
    pub fn ignored(&mut self) {
        self.ignored += 1;
    }

    /// Adds everything to the shared counters and starts again.
    pub fn flush(&mut self, metrics: &Metrics) {
        for cell in self.touched.drain(..) {
            let count = std::mem::take(&mut self.counts[usize::from(cell)]);
            metrics.queries[usize::from(cell)].inc_by(u64::from(count));
        }
        if self.ignored > 0 {
            metrics
                .ignored
                .inc_by(u64::from(std::mem::take(&mut self.ignored)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_arrives_under_its_labels_and_starts_again() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).expect("a new registry");
        let mut tally = Tally::default();
        tally.answered(Transport::Udp, Some(rtype::A), 0);
        tally.answered(Transport::Udp, Some(rtype::A), 0);
        tally.answered(Transport::Tcp, Some(65_280), 3);
        tally.answered(Transport::Tcp, None, 1);
        tally.ignored();
        tally.flush(&metrics);
        tally.flush(&metrics);
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .expect("text");
        for line in [
            "nearcast_dns_queries_total{qtype=\"A\",rcode=\"NOERROR\",transport=\"udp\"} 2",
            "nearcast_dns_queries_total{qtype=\"other\",rcode=\"NXDOMAIN\",transport=\"tcp\"} 1",
            "nearcast_dns_queries_total{qtype=\"other\",rcode=\"FORMERR\",transport=\"tcp\"} 1",
            "nearcast_dns_ignored_total 1",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        let expected = BTreeMap::from([
            ("NOERROR".to_owned(), 2),
            ("NXDOMAIN".to_owned(), 1),
            ("FORMERR".to_owned(), 1),
        ]);
        assert_eq!(metrics.by_rcode(), expected);
    }
}
