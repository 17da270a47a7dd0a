//! Every figure of the edge: counters a worker thread, summed when they are asked for, so that no
//! two threads write to one cache line.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use nearcast_fleet::report::SiteTotals;
use nearcast_http_rules::freshness::NotStored;
pub(crate) use nearcast_http_rules::status::Label as Answer;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

/// In place of a site's name for what belongs to none. No site is called so: names are DNS labels.
pub(crate) const NO_SITE: &str = "-";
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Upper bounds of the request-time buckets in seconds.
const SECONDS: [f64; 12] = [
    0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0,
];

/// One site's counters on one worker. Aligned, so that workers' counters share no cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct SiteShard {
    requests: [[AtomicU64; CLASSES.len()]; Answer::ALL.len()],
    bytes: [AtomicU64; Answer::ALL.len()],
    origin_bytes: AtomicU64,
    origin_requests: AtomicU64,
    push_origin_bytes: AtomicU64,
    push_peer_bytes: AtomicU64,
    pushed_hits: AtomicU64,
    pushed_hit_bytes: AtomicU64,
    not_stored: [AtomicU64; NotStored::ALL.len()],
    unsynced: AtomicU64,
    /// Fills that ended as nobody read them any more.
    abandoned: AtomicU64,
}

/// How the ways to a site's origin are now.
#[derive(Debug, Default)]
pub(crate) struct OriginGauges {
    in_use: AtomicU64,
    idle: AtomicU64,
    waiting: AtomicU64,
    is_open: AtomicU64,
    /// How often its breaker closed and opened.
    changes: [AtomicU64; 2],
}

impl OriginGauges {
    pub(crate) fn set_breaker(&self, is_open: bool) {
        self.is_open.store(is_open.into(), Relaxed);
    }

    pub(crate) fn breaker_changed(&self, is_open: bool) {
        self.set_breaker(is_open);
        self.changes[usize::from(is_open)].fetch_add(1, Relaxed);
    }

    pub(crate) fn set_connections(&self, in_use: usize, idle: usize, waiting: usize) {
        for (gauge, value) in [
            (&self.in_use, in_use),
            (&self.idle, idle),
            (&self.waiting, waiting),
        ] {
            gauge.store(value as u64, Relaxed);
        }
    }
}

/// Connections of one site that became another protocol's.
#[derive(Debug, Default)]
struct Upgrades {
    open: AtomicU64,
    /// Since the start.
    begun: AtomicU64,
    /// Not begun because too many were open.
    refused: AtomicU64,
}

/// Counts one such connection as open until it is dropped.
#[derive(Debug)]
pub(crate) struct UpgradePlace(Arc<Upgrades>);

impl Drop for UpgradePlace {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// One site's counters. They live as long as the process, whatever happens to the site.
#[derive(Debug)]
pub(crate) struct SiteCounters {
    shards: Box<[SiteShard]>,
    /// Failures of its origin by reason. They are rare, and the reasons are few.
    failures: Mutex<BTreeMap<&'static str, u64>>,
    origin: Arc<OriginGauges>,
    upgrades: Arc<Upgrades>,
}

impl SiteCounters {
    fn new(workers: usize) -> Self {
        Self {
            shards: (0..workers).map(|_| SiteShard::default()).collect(),
            failures: Mutex::default(),
            origin: Arc::default(),
            upgrades: Arc::default(),
        }
    }

    pub(crate) fn origin_gauges(&self) -> &Arc<OriginGauges> {
        &self.origin
    }

    /// Room for one more connection of another protocol; `None` when `most` are open.
    pub(crate) fn enter_upgrade(&self, most: usize) -> Option<UpgradePlace> {
        let entered = self.upgrades.open.fetch_update(Relaxed, Relaxed, |open| {
            (open < most as u64).then_some(open + 1)
        });
        let counted = if entered.is_ok() {
            &self.upgrades.begun
        } else {
            &self.upgrades.refused
        };
        counted.fetch_add(1, Relaxed);
        entered.is_ok().then(|| UpgradePlace(self.upgrades.clone()))
    }

    fn shard(&self, worker: usize) -> &SiteShard {
        &self.shards[worker % self.shards.len()]
    }

    pub(crate) fn answered(&self, worker: usize, answer: Answer, status: u16) {
        let class = usize::from(status / 100).clamp(1, CLASSES.len()) - 1;
        self.shard(worker).requests[answer as usize][class].fetch_add(1, Relaxed);
    }

    pub(crate) fn sent(&self, worker: usize, answer: Answer, bytes: u64) {
        self.shard(worker).bytes[answer as usize].fetch_add(bytes, Relaxed);
    }

    pub(crate) fn asked_origin(&self, worker: usize) {
        self.shard(worker).origin_requests.fetch_add(1, Relaxed);
    }

    pub(crate) fn received(&self, worker: usize, bytes: u64) {
        self.shard(worker).origin_bytes.fetch_add(bytes, Relaxed);
    }

    /// Bytes that came for a push order.
    pub(crate) fn pushed(&self, worker: usize, is_peer: bool, bytes: u64) {
        let shard = self.shard(worker);
        if is_peer {
            &shard.push_peer_bytes
        } else {
            &shard.push_origin_bytes
        }
        .fetch_add(bytes, Relaxed);
    }

    pub(crate) fn not_stored(&self, worker: usize, cause: NotStored) {
        self.shard(worker).not_stored[cause as usize].fetch_add(1, Relaxed);
    }

    /// What is stored was served although a purge of it may be missing.
    pub(crate) fn served_unsynced(&self, worker: usize) {
        self.shard(worker).unsynced.fetch_add(1, Relaxed);
    }

    pub(crate) fn fill_abandoned(&self, worker: usize) {
        self.shard(worker).abandoned.fetch_add(1, Relaxed);
    }

    /// A request to the origin, or the body of its response, failed.
    pub(crate) fn origin_failed(&self, reason: &'static str) {
        *self
            .failures
            .lock()
            .expect("no holder of this lock panics")
            .entry(reason)
            .or_default() += 1;
    }

    /// A request is answered with pushed content, so many bytes of which are sent at once.
    pub(crate) fn pushed_hit(&self, worker: usize, bytes: u64) {
        self.shard(worker).pushed_hits.fetch_add(1, Relaxed);
        self.pushed_sent(worker, bytes);
    }

    /// More bytes of pushed content are sent.
    pub(crate) fn pushed_sent(&self, worker: usize, bytes: u64) {
        self.shard(worker)
            .pushed_hit_bytes
            .fetch_add(bytes, Relaxed);
    }

    fn sum(&self, pick: impl Fn(&SiteShard) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|s| pick(s).load(Relaxed)).sum()
    }

    fn requests(&self, answer: Answer, class: usize) -> u64 {
        self.sum(|s| &s.requests[answer as usize][class])
    }

    fn totals(&self) -> SiteTotals {
        let by_answer = |count: &dyn Fn(Answer) -> u64| {
            Answer::ALL
                .iter()
                .map(|a| (a.as_str().to_owned(), count(*a)))
                .filter(|(_, n)| *n > 0)
                .collect::<BTreeMap<_, _>>()
        };
        SiteTotals {
            requests: by_answer(&|a| (0..CLASSES.len()).map(|c| self.requests(a, c)).sum()),
            bytes: by_answer(&|a| self.sum(|s| &s.bytes[a as usize])),
            errors: Answer::ALL
                .iter()
                .map(|a| self.requests(*a, CLASSES.len() - 1))
                .sum(),
            origin_bytes: self.sum(|s| &s.origin_bytes),
            origin_requests: self.sum(|s| &s.origin_requests),
            push_origin_bytes: self.sum(|s| &s.push_origin_bytes),
            push_peer_bytes: self.sum(|s| &s.push_peer_bytes),
            pushed_hits: self.sum(|s| &s.pushed_hits),
            pushed_hit_bytes: self.sum(|s| &s.pushed_hit_bytes),
        }
    }
}

/// Request times, a worker's and a kind's own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Times {
    buckets: [AtomicU64; SECONDS.len() + 1],
    nanos: AtomicU64,
}

/// Figures that others keep, read when metrics are asked for: name, help, whether it is a counter,
/// value. A name may have one label behind it, `name{label="value"}`; those of one name follow one
/// another.
pub(crate) type Reading = (&'static str, &'static str, MetricType, f64);
type Readings = Box<dyn Fn() -> Vec<Reading> + Send + Sync>;

/// See the module's words.
pub(crate) struct Metrics {
    workers: usize,
    cluster: String,
    sites: RwLock<BTreeMap<String, Arc<SiteCounters>>>,
    times: [Box<[Times]>; 2],
    readings: std::sync::OnceLock<Readings>,
}

impl Metrics {
    pub(crate) fn new(workers: usize, cluster: &str) -> Self {
        let times = || (0..workers).map(|_| Times::default()).collect();
        Self {
            workers,
            cluster: cluster.to_owned(),
            sites: RwLock::default(),
            times: [times(), times()],
            readings: std::sync::OnceLock::new(),
        }
    }

    /// Gives the figures that other parts keep. Once.
    pub(crate) fn read_from(&self, readings: Readings) {
        let _ = self.readings.set(readings);
    }

    /// The counters of a site, the same ones for each call.
    pub(crate) fn site(&self, name: &str) -> Arc<SiteCounters> {
        let mut sites = self.sites.write().expect("no holder of this lock panics");
        sites
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(SiteCounters::new(self.workers)))
            .clone()
    }

    pub(crate) fn took(&self, worker: usize, is_forward: bool, time: Duration) {
        let times = &self.times[usize::from(is_forward)][worker % self.workers];
        let seconds = time.as_secs_f64();
        let bucket = SECONDS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(SECONDS.len());
        times.buckets[bucket].fetch_add(1, Relaxed);
        times.nanos.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// Totals of every site for reports.
    pub(crate) fn totals(&self) -> BTreeMap<String, SiteTotals> {
        let sites = self.sites.read().expect("no holder of this lock panics");
        sites
            .iter()
            .filter(|(name, _)| *name != NO_SITE)
            .map(|(name, counters)| (name.clone(), counters.totals()))
            .collect()
    }

    /// Response body bytes of all sites since start.
    pub(crate) fn response_bytes(&self) -> u64 {
        let sites = self.sites.read().expect("no holder of this lock panics");
        sites
            .values()
            .map(|c| {
                Answer::ALL
                    .iter()
                    .map(|a| c.sum(|s| &s.bytes[*a as usize]))
                    .sum::<u64>()
            })
            .sum()
    }

    /// WebSockets of all sites that are open.
    pub(crate) fn upgrades_open(&self) -> u64 {
        let sites = self.sites.read().expect("no holder of this lock panics");
        sites
            .values()
            .map(|counters| counters.upgrades.open.load(Relaxed))
            .sum()
    }

    fn families(&self) -> Vec<MetricFamily> {
        let sites = self
            .sites
            .read()
            .expect("no holder of this lock panics")
            .clone();
        let (mut requests, mut bytes, mut origin, mut pushed) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut not_stored, mut unsynced, mut abandoned) = (Vec::new(), Vec::new(), Vec::new());
        let (mut upgrades, mut upgraded) = (Vec::new(), Vec::new());
        let (mut failures, mut connections, mut breakers, mut changed) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (name, counters) in &sites {
            for answer in Answer::ALL {
                let of_answer = [("site", name.as_str()), ("cache_status", answer.as_str())];
                for (class, label) in CLASSES.iter().enumerate() {
                    let count = counters.requests(answer, class);
                    if count > 0 {
                        requests.push(counter(
                            &[of_answer[0], of_answer[1], ("status_class", label)],
                            count,
                        ));
                    }
                }
                let sent = counters.sum(|s| &s.bytes[answer as usize]);
                if sent > 0 || answer == Answer::Hit {
                    bytes.push(counter(&of_answer, sent));
                }
            }
            origin.push(counter(
                &[("site", name)],
                counters.sum(|s| &s.origin_bytes),
            ));
            pushed.push(counter(&[("site", name)], counters.sum(|s| &s.pushed_hits)));
            unsynced.push(counter(&[("site", name)], counters.sum(|s| &s.unsynced)));
            abandoned.push(counter(&[("site", name)], counters.sum(|s| &s.abandoned)));
            for cause in NotStored::ALL {
                let count = counters.sum(|s| &s.not_stored[cause as usize]);
                if count > 0 {
                    not_stored.push(counter(&[("site", name), ("cause", cause.as_str())], count));
                }
            }
            let OriginGauges {
                in_use,
                idle,
                waiting,
                is_open,
                changes,
            } = &*counters.origin;
            for (state, value) in [("in_use", in_use), ("idle", idle), ("waiting", waiting)] {
                connections.push(gauge(
                    &[("site", name), ("state", state)],
                    value.load(Relaxed),
                ));
            }
            breakers.push(gauge(&[("site", name)], is_open.load(Relaxed)));
            for (state, count) in ["closed", "open"].iter().zip(changes) {
                changed.push(counter(
                    &[("site", name), ("state", state)],
                    count.load(Relaxed),
                ));
            }
            let Upgrades {
                open,
                begun,
                refused,
            } = &*counters.upgrades;
            upgrades.push(gauge(&[("site", name)], open.load(Relaxed)));
            for (result, count) in [("begun", begun), ("refused", refused)] {
                upgraded.push(counter(
                    &[("site", name), ("result", result)],
                    count.load(Relaxed),
                ));
            }
            for (reason, count) in counters
                .failures
                .lock()
                .expect("no holder of this lock panics")
                .iter()
            {
                failures.push(counter(&[("site", name), ("reason", reason)], *count));
            }
        }
        let of_all = |pick: fn(&SiteShard) -> &AtomicU64| {
            sites
                .values()
                .map(|counters| counters.sum(pick))
                .sum::<u64>()
        };
        let push = [
            ("origin", of_all(|s| &s.push_origin_bytes)),
            ("peer", of_all(|s| &s.push_peer_bytes)),
        ]
        .map(|(source, bytes)| counter(&[("cluster", &self.cluster), ("source", source)], bytes));
        let mut families = vec![
            family(
                "nearcast_edge_requests_total",
                "Requests answered.",
                MetricType::COUNTER,
                requests,
            ),
            family(
                "nearcast_edge_response_bytes_total",
                "Bytes of response bodies sent to clients.",
                MetricType::COUNTER,
                bytes,
            ),
            family(
                "nearcast_edge_origin_bytes_total",
                "Bytes of response bodies received from origins for what clients asked for.",
                MetricType::COUNTER,
                origin,
            ),
            family(
                "nearcast_edge_not_stored_total",
                "Responses of origins that were not stored, or not wholly, by cause.",
                MetricType::COUNTER,
                not_stored,
            ),
            family(
                "nearcast_edge_unsynced_total",
                "Requests answered from what an earlier run stored, without the newest purges, as neither origin nor control answered.",
                MetricType::COUNTER,
                unsynced,
            ),
            family(
                "nearcast_edge_fills_abandoned_total",
                "Fills that ended early as nobody read them any more.",
                MetricType::COUNTER,
                abandoned,
            ),
            family(
                "nearcast_edge_origin_connections",
                "Connections to origins in use and idle, and requests that wait for one.",
                MetricType::GAUGE,
                connections,
            ),
            family(
                "nearcast_edge_origin_breaker_open",
                "1 while the origin is known not to answer and asked rarely.",
                MetricType::GAUGE,
                breakers,
            ),
            family(
                "nearcast_edge_origin_breaker_changes_total",
                "How often the origin was found not to answer (open) and to answer again (closed).",
                MetricType::COUNTER,
                changed,
            ),
            family(
                "nearcast_edge_origin_failures_total",
                "Requests to origins that failed.",
                MetricType::COUNTER,
                failures,
            ),
            family(
                "nearcast_edge_upgrades",
                "WebSockets open.",
                MetricType::GAUGE,
                upgrades,
            ),
            family(
                "nearcast_edge_upgrades_total",
                "Requests for WebSockets sent to the origin (begun), and refused because too many were open.",
                MetricType::COUNTER,
                upgraded,
            ),
            family(
                "nearcast_edge_pushed_hits_total",
                "Requests that pushed content answered.",
                MetricType::COUNTER,
                pushed,
            ),
            family(
                "nearcast_edge_request_seconds",
                "Time from a request's head to the begin of its response.",
                MetricType::HISTOGRAM,
                vec![self.histogram(false), self.histogram(true)],
            ),
            family(
                "nearcast_push_bytes_total",
                "Bytes fetched by push orders.",
                MetricType::COUNTER,
                push.into(),
            ),
        ];
        for (name, help, kind, value) in self.readings.get().map(|read| read()).unwrap_or_default()
        {
            let (name, labelled) = name.split_once('{').unwrap_or((name, ""));
            let labels = labelled
                .trim_end_matches('}')
                .split_once('=')
                .map(|(name, value)| label(name, value.trim_matches('"')));
            let mut metric = Metric::from_label(labels.into_iter().collect());
            match kind {
                MetricType::COUNTER => metric.set_counter(counter_of(value)),
                _ => metric.set_gauge(gauge_of(value)),
            }
            match families.last_mut().filter(|last| last.name() == name) {
                Some(last) => last.mut_metric().push(metric),
                None => families.push(family(name, help, kind, vec![metric])),
            }
        }
        families.retain(|f| !f.get_metric().is_empty());
        families
    }

    fn histogram(&self, is_forward: bool) -> Metric {
        let times = &self.times[usize::from(is_forward)];
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(SECONDS.len());
        for (at, bound) in SECONDS.iter().enumerate() {
            cumulative += times
                .iter()
                .map(|t| t.buckets[at].load(Relaxed))
                .sum::<u64>();
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        let mut histogram = Histogram::default();
        histogram.set_sample_count(
            cumulative
                + times
                    .iter()
                    .map(|t| t.buckets[SECONDS.len()].load(Relaxed))
                    .sum::<u64>(),
        );
        histogram
            .set_sample_sum(times.iter().map(|t| t.nanos.load(Relaxed)).sum::<u64>() as f64 / 1e9);
        histogram.set_bucket(buckets);
        let mut metric = Metric::from_label(vec![label(
            "forward",
            if is_forward { "forward" } else { "hit" },
        )]);
        metric.set_histogram(histogram);
        metric
    }
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn counter_of(value: f64) -> Counter {
    let mut counter = Counter::default();
    counter.set_value(value);
    counter
}

fn gauge_of(value: f64) -> Gauge {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    gauge
}

fn gauge(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut metric = labelled(labels);
    metric.set_gauge(gauge_of(value as f64));
    metric
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let mut labels: Vec<LabelPair> = labels
        .iter()
        .map(|(name, value)| label(name, value))
        .collect();
    labels.sort_by(|a, b| a.name().cmp(b.name()));
    Metric::from_label(labels)
}

fn counter(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut metric = labelled(labels);
    metric.set_counter(counter_of(value as f64));
    metric
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

/// What the Prometheus registry asks.
pub(crate) struct Collected {
    metrics: Arc<Metrics>,
    descriptions: Vec<Desc>,
}

impl Collected {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        let name = "nearcast_edge_requests_total".to_owned();
        let labels = ["site", "cache_status", "status_class"]
            .map(str::to_owned)
            .to_vec();
        let description = Desc::new(
            name,
            "Requests answered.".to_owned(),
            labels,
            Default::default(),
        );
        Self {
            metrics,
            descriptions: description.into_iter().collect(),
        }
    }
}

impl Collector for Collected {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.metrics.families()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_workers_count_apart_is_shown_as_one_sum() {
        let metrics = Arc::new(Metrics::new(2, "ams"));
        let site = metrics.site("www");
        site.answered(0, Answer::Hit, 200);
        site.answered(1, Answer::Hit, 206);
        site.answered(1, Answer::Error, 502);
        site.sent(0, Answer::Hit, 5);
        site.sent(1, Answer::Hit, 7);
        site.received(1, 11);
        site.pushed(0, false, 100);
        site.pushed(1, true, 30);
        site.not_stored(0, NotStored::NoStore);
        site.not_stored(1, NotStored::NoStore);
        site.served_unsynced(1);
        site.fill_abandoned(0);
        // A site of any name that a site can have beside what belongs to none.
        metrics.site("none").answered(0, Answer::Hit, 200);
        metrics.site(NO_SITE).answered(0, Answer::Local, 421);
        site.origin_failed("tls_certificate_expired");
        site.pushed_hit(0, 5);
        site.origin_gauges().set_connections(3, 2, 1);
        metrics.took(0, false, Duration::from_micros(300));
        metrics.took(1, true, Duration::from_secs(60));
        metrics.read_from(Box::new(|| {
            let refused = [
                "nearcast_refused_total{reason=\"full\"}",
                "nearcast_refused_total{reason=\"share\"}",
            ];
            let of = |name| (name, "Refused.", MetricType::COUNTER, 4.0);
            vec![
                ("nearcast_edge_connections", "Open.", MetricType::GAUGE, 3.0),
                of(refused[0]),
                of(refused[1]),
            ]
        }));
        let registry = prometheus::Registry::new();
        registry
            .register(Box::new(Collected::new(metrics.clone())))
            .expect("one collector");
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .expect("valid families");
        for line in [
            "nearcast_edge_requests_total{cache_status=\"hit\",site=\"www\",status_class=\"2xx\"} 2",
            "nearcast_edge_requests_total{cache_status=\"error\",site=\"www\",status_class=\"5xx\"} 1",
            "nearcast_edge_response_bytes_total{cache_status=\"hit\",site=\"www\"} 12",
            "nearcast_edge_origin_bytes_total{site=\"www\"} 11",
            "nearcast_edge_not_stored_total{cause=\"no-store\",site=\"www\"} 2",
            "nearcast_edge_unsynced_total{site=\"www\"} 1",
            "nearcast_edge_fills_abandoned_total{site=\"www\"} 1",
            "nearcast_edge_requests_total{cache_status=\"hit\",site=\"none\",status_class=\"2xx\"} 1",
            "nearcast_edge_requests_total{cache_status=\"local\",site=\"-\",status_class=\"4xx\"} 1",
            "nearcast_edge_origin_failures_total{reason=\"tls_certificate_expired\",site=\"www\"} 1",
            "nearcast_edge_origin_connections{site=\"www\",state=\"in_use\"} 3",
            "nearcast_edge_origin_connections{site=\"www\",state=\"waiting\"} 1",
            "nearcast_edge_pushed_hits_total{site=\"www\"} 1",
            "nearcast_edge_request_seconds_bucket{forward=\"hit\",le=\"0.0005\"} 1",
            "nearcast_edge_request_seconds_bucket{forward=\"forward\",le=\"+Inf\"} 1",
            "nearcast_push_bytes_total{cluster=\"ams\",source=\"peer\"} 30",
            "nearcast_push_bytes_total{cluster=\"ams\",source=\"origin\"} 100",
            "nearcast_edge_connections 3",
            "# TYPE nearcast_refused_total counter\nnearcast_refused_total{reason=\"full\"} 4\nnearcast_refused_total{reason=\"share\"} 4",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        let totals = metrics.totals();
        assert_eq!(
            totals.keys().collect::<Vec<_>>(),
            ["none", "www"],
            "what belongs to no site is reported for none"
        );
        let totals = &totals["www"];
        assert_eq!(
            (totals.push_origin_bytes, totals.push_peer_bytes),
            (100, 30)
        );
        assert_eq!(
            (
                totals.requests["hit"],
                totals.errors,
                totals.origin_bytes,
                metrics.response_bytes()
            ),
            (2, 1, 11, 12)
        );
    }
}
