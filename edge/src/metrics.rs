//! The metrics of the edge: counters that each worker thread has for itself, summed when they are
//! read, so that no two threads write to one cache line.
//!
//! Owns names, help texts and labels of all metrics. Does not know when something is counted.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nearcast_fleet::report::CacheStatus;
use nearcast_fleet::report::SiteTotals;
use nearcast_http_rules::not_stored::NotStored;
use parking_lot::{Mutex, RwLock};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use crate::serve::{http2, http3};

/// The site label of requests that belong to no site. No site has this name: names are DNS labels.
pub(crate) const NO_SITE: &str = "-";
/// Label values of `status_class`.
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Position of the class of server errors.
const SERVER_ERRORS: usize = 4;
/// Upper bounds of the buckets of the request time, in seconds.
const SECONDS: [f64; 12] = [
    0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0,
];

const REQUESTS: &str = "nearcast_edge_requests_total";
const REQUESTS_HELP: &str = "Requests answered.";

/// A counter of a site that has no labels of its own.
#[derive(Debug, Clone, Copy)]
enum SiteCount {
    OriginBytes,
    OriginRequests,
    PushOriginBytes,
    PushPeerBytes,
    PushedHits,
    PushedHitBytes,
    /// Requests answered from an earlier run's responses although purges may be missing.
    Unsynced,
    /// Fills that ended because they had no reader any more.
    FillsAbandoned,
}

impl SiteCount {
    const COUNT: usize = Self::FillsAbandoned as usize + 1;
}

/// One site's counters on one worker. Aligned, so that workers' counters share no cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct SiteShard {
    requests: [[AtomicU64; STATUS_CLASSES.len()]; CacheStatus::ALL.len()],
    bytes: [AtomicU64; CacheStatus::ALL.len()],
    counts: [AtomicU64; SiteCount::COUNT],
    not_stored: [AtomicU64; NotStored::ALL.len()],
}

/// The state of a site's connections to its origin.
#[derive(Debug, Default)]
pub(crate) struct OriginGauges {
    in_use: AtomicU64,
    idle: AtomicU64,
    waiting: AtomicU64,
    http2: AtomicU64,
    is_open: AtomicU64,
    /// How often its breaker closed and opened.
    changes: [AtomicU64; 2],
    /// Connections opened since the start, by protocol.
    opened: [AtomicU64; 2],
}

impl OriginGauges {
    pub(crate) fn set_breaker(&self, is_open: bool) {
        self.is_open.store(is_open.into(), Relaxed);
    }

    pub(crate) fn breaker_changed(&self, is_open: bool) {
        self.set_breaker(is_open);
        self.changes[usize::from(is_open)].fetch_add(1, Relaxed);
    }

    /// Sets the number of open connections by HTTP/2.
    pub(crate) fn set_http2_connections(&self, open: usize) {
        self.http2.store(open as u64, Relaxed);
    }

    /// Counts a connection that was opened.
    pub(crate) fn connected(&self, protocol: OriginProtocol) {
        self.opened[protocol as usize].fetch_add(1, Relaxed);
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

/// The protocol of a connection to an origin.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OriginProtocol {
    Http1,
    Http2,
}

/// Connections of one site that were upgraded to WebSockets.
#[derive(Debug, Default)]
struct Upgrades {
    open: AtomicU64,
    /// Since the start.
    begun: AtomicU64,
    /// Refused because too many were open.
    refused: AtomicU64,
}

/// Counts one upgraded connection as open until it is dropped.
#[derive(Debug)]
pub(crate) struct UpgradePermit(Arc<Upgrades>);

impl Drop for UpgradePermit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// One site's counters. They live as long as the process, even if the site is removed.
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

    /// A permit for one more upgraded connection; `None` when `max` are open.
    pub(crate) fn enter_upgrade(&self, max: usize) -> Option<UpgradePermit> {
        let entered = self.upgrades.open.fetch_update(Relaxed, Relaxed, |open| {
            (open < max as u64).then_some(open + 1)
        });
        let counted = if entered.is_ok() {
            &self.upgrades.begun
        } else {
            &self.upgrades.refused
        };
        counted.fetch_add(1, Relaxed);
        entered
            .is_ok()
            .then(|| UpgradePermit(self.upgrades.clone()))
    }

    fn shard(&self, worker: usize) -> &SiteShard {
        &self.shards[worker % self.shards.len()]
    }

    fn add(&self, worker: usize, count: SiteCount, more: u64) {
        self.shard(worker).counts[count as usize].fetch_add(more, Relaxed);
    }

    /// Counts a request by cache status and status code.
    pub(crate) fn answered(&self, worker: usize, label: CacheStatus, status: u16) {
        let class = usize::from(status / 100).clamp(1, STATUS_CLASSES.len()) - 1;
        self.shard(worker).requests[label as usize][class].fetch_add(1, Relaxed);
    }

    /// Counts body bytes sent to clients.
    pub(crate) fn sent(&self, worker: usize, label: CacheStatus, bytes: u64) {
        self.shard(worker).bytes[label as usize].fetch_add(bytes, Relaxed);
    }

    /// Counts a request to the origin.
    pub(crate) fn asked_origin(&self, worker: usize) {
        self.add(worker, SiteCount::OriginRequests, 1);
    }

    /// Counts body bytes received from the origin.
    pub(crate) fn received(&self, worker: usize, bytes: u64) {
        self.add(worker, SiteCount::OriginBytes, bytes);
    }

    /// Counts body bytes received for a push order.
    pub(crate) fn pushed(&self, worker: usize, is_peer: bool, bytes: u64) {
        let count = if is_peer {
            SiteCount::PushPeerBytes
        } else {
            SiteCount::PushOriginBytes
        };
        self.add(worker, count, bytes);
    }

    pub(crate) fn not_stored(&self, worker: usize, cause: NotStored) {
        self.shard(worker).not_stored[cause as usize].fetch_add(1, Relaxed);
    }

    /// Counts a response of an earlier run that was served although a purge of it may be missing.
    pub(crate) fn served_unsynced(&self, worker: usize) {
        self.add(worker, SiteCount::Unsynced, 1);
    }

    pub(crate) fn fill_abandoned(&self, worker: usize) {
        self.add(worker, SiteCount::FillsAbandoned, 1);
    }

    /// Counts a failed request to the origin, or a body of a response that ended early.
    pub(crate) fn origin_failed(&self, reason: &'static str) {
        *self.failures.lock().entry(reason).or_default() += 1;
    }

    /// Counts a request that pushed content answers, and the bytes that are sent at once.
    pub(crate) fn pushed_hit(&self, worker: usize, bytes: u64) {
        self.add(worker, SiteCount::PushedHits, 1);
        self.pushed_sent(worker, bytes);
    }

    /// Counts further bytes of pushed content.
    pub(crate) fn pushed_sent(&self, worker: usize, bytes: u64) {
        self.add(worker, SiteCount::PushedHitBytes, bytes);
    }

    fn sum(&self, pick: impl Fn(&SiteShard) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|s| pick(s).load(Relaxed)).sum()
    }

    fn count(&self, count: SiteCount) -> u64 {
        self.sum(|s| &s.counts[count as usize])
    }

    fn requests(&self, label: CacheStatus, class: usize) -> u64 {
        self.sum(|s| &s.requests[label as usize][class])
    }

    fn bytes(&self, label: CacheStatus) -> u64 {
        self.sum(|s| &s.bytes[label as usize])
    }

    fn totals(&self) -> SiteTotals {
        let by_label = |count: &dyn Fn(CacheStatus) -> u64| {
            CacheStatus::ALL
                .iter()
                .map(|label| (label.as_str().to_owned(), count(*label)))
                .filter(|(_, n)| *n > 0)
                .collect::<BTreeMap<_, _>>()
        };
        let of_all_classes = |label| {
            (0..STATUS_CLASSES.len())
                .map(|class| self.requests(label, class))
                .sum()
        };
        SiteTotals {
            requests: by_label(&of_all_classes),
            bytes: by_label(&|label| self.bytes(label)),
            errors: CacheStatus::ALL
                .iter()
                .map(|label| self.requests(*label, SERVER_ERRORS))
                .sum(),
            origin_bytes: self.count(SiteCount::OriginBytes),
            origin_requests: self.count(SiteCount::OriginRequests),
            push_origin_bytes: self.count(SiteCount::PushOriginBytes),
            push_peer_bytes: self.count(SiteCount::PushPeerBytes),
            pushed_hits: self.count(SiteCount::PushedHits),
            pushed_hit_bytes: self.count(SiteCount::PushedHitBytes),
        }
    }
}

/// Request times of one worker.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Times {
    buckets: [AtomicU64; SECONDS.len() + 1],
    nanos: AtomicU64,
}

/// A figure that another part of the edge keeps. Readings of one name must follow one another.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: Vec<(&'static str, Cow<'static, str>)>,
    value: f64,
}

impl Reading {
    /// A value that goes up and down.
    pub(crate) fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Self {
            name,
            help,
            kind: MetricType::GAUGE,
            labels: Vec::new(),
            value,
        }
    }

    /// A total since the start.
    pub(crate) fn counter(name: &'static str, help: &'static str, value: f64) -> Self {
        Self {
            kind: MetricType::COUNTER,
            ..Self::gauge(name, help, value)
        }
    }

    /// 1 if it is true, else 0.
    pub(crate) fn flag(name: &'static str, help: &'static str, is_true: bool) -> Self {
        Self::gauge(name, help, f64::from(u8::from(is_true)))
    }

    /// The same with one more label.
    pub(crate) fn with_label(
        mut self,
        name: &'static str,
        value: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.labels.push((name, value.into()));
        self
    }
}

type Readings = Box<dyn Fn() -> Vec<Reading> + Send + Sync>;
type Sites = BTreeMap<String, Arc<SiteCounters>>;

/// All counters of the edge.
pub(crate) struct Metrics {
    workers: usize,
    cluster: String,
    sites: RwLock<Sites>,
    /// Of requests that needed no forward request, and of those that did; by worker.
    times: [Box<[Times]>; 2],
    /// Connections of HTTP/2 that this node closed, by reason.
    http2_closed: [AtomicU64; http2::frames::Closed::ALL.len()],
    /// The same of HTTP/3.
    http3_closed: [AtomicU64; http3::closed::Closed::ALL.len()],
    readings: OnceLock<Readings>,
}

impl Metrics {
    pub(crate) fn new(workers: usize, cluster: &str) -> Self {
        let times = || (0..workers).map(|_| Times::default()).collect();
        Self {
            workers,
            cluster: cluster.to_owned(),
            sites: RwLock::default(),
            times: [times(), times()],
            http2_closed: Default::default(),
            http3_closed: Default::default(),
            readings: OnceLock::new(),
        }
    }

    /// Sets the function that reads the figures of other parts. Once.
    pub(crate) fn read_from(&self, readings: Readings) {
        let _ = self.readings.set(readings);
    }

    /// The counters of a site, the same ones for each call.
    pub(crate) fn site(&self, name: &str) -> Arc<SiteCounters> {
        self.sites
            .write()
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(SiteCounters::new(self.workers)))
            .clone()
    }

    /// Counts a connection of HTTP/2 that this node closed.
    pub(crate) fn http2_closed(&self, why: http2::frames::Closed) {
        self.http2_closed[why as usize].fetch_add(1, Relaxed);
    }

    /// Connections of HTTP/2 that this node closed for a reason.
    pub(crate) fn http2_closed_count(&self, why: http2::frames::Closed) -> u64 {
        self.http2_closed[why as usize].load(Relaxed)
    }

    /// Counts a connection of HTTP/3 that this node closed.
    pub(crate) fn http3_closed(&self, why: http3::closed::Closed) {
        self.http3_closed[why as usize].fetch_add(1, Relaxed);
    }

    /// Connections of HTTP/3 that this node closed for a reason.
    pub(crate) fn http3_closed_count(&self, why: http3::closed::Closed) -> u64 {
        self.http3_closed[why as usize].load(Relaxed)
    }

    /// Counts the time from a request's head to the begin of its response.
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
        self.sites
            .read()
            .iter()
            .filter(|(name, _)| *name != NO_SITE)
            .map(|(name, counters)| (name.clone(), counters.totals()))
            .collect()
    }

    /// Response body bytes of all sites since start.
    pub(crate) fn response_bytes(&self) -> u64 {
        let of_site = |counters: &Arc<SiteCounters>| -> u64 {
            CacheStatus::ALL
                .iter()
                .map(|label| counters.bytes(*label))
                .sum()
        };
        self.sites.read().values().map(of_site).sum()
    }

    /// Open WebSockets of all sites.
    pub(crate) fn upgrades_open(&self) -> u64 {
        self.sites
            .read()
            .values()
            .map(|counters| counters.upgrades.open.load(Relaxed))
            .sum()
    }

    fn families(&self) -> Vec<MetricFamily> {
        let sites = self.sites.read().clone();
        let mut families = request_families(&sites);
        families.extend(fill_families(&sites));
        families.extend(origin_families(&sites));
        families.extend(upgrade_families(&sites));
        families.push(self.request_seconds());
        families.push(self.push_bytes(&sites));
        let readings = self.readings.get().map(|read| read()).unwrap_or_default();
        add_readings(&mut families, readings);
        families.retain(|f| !f.get_metric().is_empty());
        families
    }

    fn request_seconds(&self) -> MetricFamily {
        histogram_family(
            "nearcast_edge_request_seconds",
            "Time from a request's head to the begin of its response.",
            vec![
                histogram("hit", &self.times[0]),
                histogram("forward", &self.times[1]),
            ],
        )
    }

    fn push_bytes(&self, sites: &Sites) -> MetricFamily {
        let metrics = [
            ("origin", SiteCount::PushOriginBytes),
            ("peer", SiteCount::PushPeerBytes),
        ]
        .map(|(source, count)| {
            let bytes = sites.values().map(|counters| counters.count(count)).sum();
            counter(&[("cluster", &self.cluster), ("source", source)], bytes)
        });
        counters(
            "nearcast_push_bytes_total",
            "Bytes fetched by push orders.",
            metrics.into(),
        )
    }
}

/// Requests and the bytes of their responses.
fn request_families(sites: &Sites) -> Vec<MetricFamily> {
    let (mut requests, mut bytes) = (Vec::new(), Vec::new());
    for (name, site) in sites {
        for label in CacheStatus::ALL {
            let [of_site, of_label] = [("site", name.as_str()), ("cache_status", label.as_str())];
            for (class, class_name) in STATUS_CLASSES.iter().enumerate() {
                let count = site.requests(label, class);
                if count > 0 {
                    requests.push(counter(
                        &[of_site, of_label, ("status_class", class_name)],
                        count,
                    ));
                }
            }

            // Hits are shown from the start, so that every site has a series.
            let sent = site.bytes(label);
            if sent > 0 || label == CacheStatus::Hit {
                bytes.push(counter(&[of_site, of_label], sent));
            }
        }
    }
    vec![
        counters(REQUESTS, REQUESTS_HELP, requests),
        counters(
            "nearcast_edge_response_bytes_total",
            "Bytes of response bodies sent to clients.",
            bytes,
        ),
        site_counters(
            sites,
            SiteCount::Unsynced,
            "nearcast_edge_unsynced_total",
            "Requests answered with stored responses of an earlier run, without the newest purges, because neither origin nor control answered.",
        ),
        site_counters(
            sites,
            SiteCount::PushedHits,
            "nearcast_edge_pushed_hits_total",
            "Requests answered with pushed content.",
        ),
    ]
}

/// Responses on their way into the store.
fn fill_families(sites: &Sites) -> Vec<MetricFamily> {
    let mut not_stored = Vec::new();
    for (name, site) in sites {
        for cause in NotStored::ALL {
            let count = site.sum(|s| &s.not_stored[cause as usize]);
            if count > 0 {
                not_stored.push(counter(&[("site", name), ("cause", cause.as_str())], count));
            }
        }
    }
    vec![
        site_counters(
            sites,
            SiteCount::OriginBytes,
            "nearcast_edge_origin_bytes_total",
            "Bytes of response bodies received from origins because clients requested them.",
        ),
        counters(
            "nearcast_edge_not_stored_total",
            "Responses of origins that were not stored, or not completely, by cause.",
            not_stored,
        ),
        site_counters(
            sites,
            SiteCount::FillsAbandoned,
            "nearcast_edge_fills_abandoned_total",
            "Fills that ended early because they had no reader any more.",
        ),
    ]
}

/// Connections to origins, their breakers and failures.
fn origin_families(sites: &Sites) -> Vec<MetricFamily> {
    let (mut connections, mut breakers, mut changed, mut failures) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut http2_connections, mut opened_by) = (Vec::new(), Vec::new());
    for (name, site) in sites {
        let OriginGauges {
            in_use,
            idle,
            waiting,
            http2,
            is_open,
            changes,
            opened,
        } = &*site.origin;
        let of_site = ("site", name.as_str());
        for (state, value) in [("in_use", in_use), ("idle", idle), ("waiting", waiting)] {
            connections.push(gauge(&[of_site, ("state", state)], value.load(Relaxed)));
        }
        http2_connections.push(gauge(&[of_site], http2.load(Relaxed)));
        for (protocol, count) in ["http1", "http2"].iter().zip(opened) {
            let labels = [of_site, ("protocol", protocol)];
            opened_by.push(counter(&labels, count.load(Relaxed)));
        }
        breakers.push(gauge(&[of_site], is_open.load(Relaxed)));
        for (state, count) in ["closed", "open"].iter().zip(changes) {
            changed.push(counter(&[of_site, ("state", state)], count.load(Relaxed)));
        }
        for (reason, count) in site.failures.lock().iter() {
            failures.push(counter(&[of_site, ("reason", reason)], *count));
        }
    }
    vec![
        gauges(
            "nearcast_edge_origin_connections",
            "Requests to origins that are under way, connections to origins that are idle, and requests that wait for a connection.",
            connections,
        ),
        gauges(
            "nearcast_edge_origin_http2_connections",
            "Connections to origins by HTTP/2, in use or idle.",
            http2_connections,
        ),
        counters(
            "nearcast_edge_origin_connections_opened_total",
            "Connections to origins that were opened, by protocol.",
            opened_by,
        ),
        gauges(
            "nearcast_edge_origin_breaker_open",
            "1 while the origin's breaker is open: the origin does not answer and gets few requests.",
            breakers,
        ),
        counters(
            "nearcast_edge_origin_breaker_changes_total",
            "How often the origin's breaker opened (the origin did not answer) and closed (it answered again).",
            changed,
        ),
        counters(
            "nearcast_edge_origin_failures_total",
            "Requests to origins that failed.",
            failures,
        ),
    ]
}

/// WebSockets.
fn upgrade_families(sites: &Sites) -> Vec<MetricFamily> {
    let (mut open_now, mut results) = (Vec::new(), Vec::new());
    for (name, site) in sites {
        let Upgrades {
            open,
            begun,
            refused,
        } = &*site.upgrades;
        let of_site = ("site", name.as_str());
        open_now.push(gauge(&[of_site], open.load(Relaxed)));
        for (result, count) in [("begun", begun), ("refused", refused)] {
            results.push(counter(&[of_site, ("result", result)], count.load(Relaxed)));
        }
    }
    vec![
        gauges("nearcast_edge_upgrades_open", "Open WebSockets.", open_now),
        counters(
            "nearcast_edge_upgrades_total",
            "Requests for WebSockets that were sent to the origin (begun), or refused because too many were open.",
            results,
        ),
    ]
}

/// Adds the figures of other parts, those of one name to one family.
fn add_readings(families: &mut Vec<MetricFamily>, readings: Vec<Reading>) {
    for reading in readings {
        let labels: Vec<(&str, &str)> = reading
            .labels
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        let mut metric = labelled(&labels);
        match reading.kind {
            MetricType::COUNTER => metric.set_counter(counter_of(reading.value)),
            _ => metric.set_gauge(gauge_of(reading.value)),
        }
        match families.last_mut() {
            Some(last) if last.name() == reading.name => last.mut_metric().push(metric),
            _ => families.push(family(
                reading.name,
                reading.help,
                reading.kind,
                vec![metric],
            )),
        }
    }
}

/// One counter of every site.
fn site_counters(sites: &Sites, count: SiteCount, name: &str, help: &str) -> MetricFamily {
    let of_site = |(name, counters): (&String, &Arc<SiteCounters>)| {
        counter(&[("site", name)], counters.count(count))
    };
    counters(name, help, sites.iter().map(of_site).collect())
}

fn histogram(forward: &str, times: &[Times]) -> Metric {
    let in_bucket = |at: usize| -> u64 { times.iter().map(|t| t.buckets[at].load(Relaxed)).sum() };
    let mut cumulative = 0;
    let mut buckets = Vec::with_capacity(SECONDS.len());
    for (at, bound) in SECONDS.iter().enumerate() {
        cumulative += in_bucket(at);
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(cumulative);
        buckets.push(bucket);
    }

    let nanos: u64 = times.iter().map(|t| t.nanos.load(Relaxed)).sum();
    let mut histogram = Histogram::default();
    histogram.set_sample_count(cumulative + in_bucket(SECONDS.len()));
    histogram.set_sample_sum(nanos as f64 / 1e9);
    histogram.set_bucket(buckets);
    let mut metric = labelled(&[("forward", forward)]);
    metric.set_histogram(histogram);
    metric
}

fn counter(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut metric = labelled(labels);
    metric.set_counter(counter_of(value as f64));
    metric
}

fn gauge(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut metric = labelled(labels);
    metric.set_gauge(gauge_of(value as f64));
    metric
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

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let label = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut labels: Vec<LabelPair> = labels.iter().map(label).collect();
    labels.sort_by(|a, b| a.name().cmp(b.name()));
    Metric::from_label(labels)
}

fn counters(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    family(name, help, MetricType::COUNTER, metrics)
}

fn gauges(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    family(name, help, MetricType::GAUGE, metrics)
}

fn histogram_family(name: &str, help: &str, metrics: Vec<Metric>) -> MetricFamily {
    family(name, help, MetricType::HISTOGRAM, metrics)
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

/// The collector that the Prometheus registry reads.
pub(crate) struct Collected {
    metrics: Arc<Metrics>,
    /// The registry requires at least one.
    descriptions: Vec<Desc>,
}

impl Collected {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        let labels = ["site", "cache_status", "status_class"]
            .map(str::to_owned)
            .to_vec();
        let description = Desc::new(
            REQUESTS.to_owned(),
            REQUESTS_HELP.to_owned(),
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
        site.answered(0, CacheStatus::Hit, 200);
        site.answered(1, CacheStatus::Hit, 206);
        site.answered(1, CacheStatus::Error, 502);
        site.sent(0, CacheStatus::Hit, 5);
        site.sent(1, CacheStatus::Hit, 7);
        site.received(1, 11);
        site.pushed(0, false, 100);
        site.pushed(1, true, 30);
        site.not_stored(0, NotStored::NoStore);
        site.not_stored(1, NotStored::NoStore);
        site.served_unsynced(1);
        site.fill_abandoned(0);
        // A site of any name that a site can have beside what belongs to none.
        metrics.site("none").answered(0, CacheStatus::Hit, 200);
        metrics.site(NO_SITE).answered(0, CacheStatus::Local, 421);
        site.origin_failed("tls_certificate_expired");
        site.pushed_hit(0, 5);
        site.origin_gauges().set_connections(3, 2, 1);
        metrics.took(0, false, Duration::from_micros(300));
        metrics.took(1, true, Duration::from_secs(60));
        metrics.read_from(Box::new(|| {
            let refused = || Reading::counter("nearcast_refused_total", "Refused.", 4.0);
            vec![
                Reading::gauge("nearcast_edge_connections", "Open.", 3.0),
                refused().with_label("reason", "full"),
                refused().with_label("reason", "share"),
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
