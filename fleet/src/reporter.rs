//! Sends a node's reports to their receivers: every report interval, one at a time.
//!
//! A role provides a closure that builds its report; this module decides when it is called, where
//! the JSON is sent and what is logged. An unreachable receiver costs one time-out an interval and
//! two log lines: one when it fails and one when it works again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::client::Client;
use crate::config::Fleet;
use crate::node_key;
use nearcast_net::shutdown::Shutdown;

/// Time-out of a report.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// Time-out of the last report, which is sent at shutdown.
const LAST_ANSWER_TIME_MAX: Duration = Duration::from_millis(500);

/// Longest part of a refusal's text in the log.
const REASON_CHARS_MAX: usize = 300;

/// Sends reports until shutdown is requested, and then a last one.
///
/// At each `fleet.report_interval` (of the fleet in force), `build` is called with whether
/// **every** receiver accepted the report before (`true` at first), so that a report of differences
/// can keep those that were refused. The report is posted as JSON with the key of the node `name`
/// to each of `urls(fleet)` in parallel. The next report waits until all have answered or 3 s have
/// passed, so at most one is in flight. Without URLs `build` is not called. Example:
///
/// ```no_run
/// use nearcast_fleet::{config::Fleet, follow::NodeContext, report::OriginReport, reporter};
///
/// fn report(context: &NodeContext, requests: impl Fn() -> u64 + Send + 'static) {
///     let urls = |fleet: &Fleet| reporter::to_control(fleet, "origin");
///     let build = move |_taken| OriginReport { bytes: requests(), ..OriginReport::default() };
///     tokio::spawn(reporter::run(context.name.clone(), urls, context.fleet.clone(), build, context.shutdown.clone()));
/// }
/// ```
pub async fn run<R, F>(
    name: String,
    urls: impl Fn(&Fleet) -> Vec<String>,
    fleet: watch::Receiver<Arc<Fleet>>,
    build: F,
    shutdown: Shutdown,
) where
    F: FnMut(bool) -> R,
    R: Serialize,
{
    let client = Client::following(fleet.clone());
    run_with(client, name, urls, fleet, build, shutdown).await;
}

/// [`run`] with a shared client and its kept connections.
pub async fn run_with<R, F>(
    client: Client,
    name: String,
    urls: impl Fn(&Fleet) -> Vec<String>,
    fleet: watch::Receiver<Arc<Fleet>>,
    mut build: F,
    mut shutdown: Shutdown,
) where
    F: FnMut(bool) -> R,
    R: Serialize,
{
    let mut log = Log::default();
    let mut accepted = true;
    let mut interval = fleet.borrow().report_interval;
    let mut ticks = ticker(interval);
    loop {
        let last = tokio::select! {
            _ = ticks.tick() => false,
            () = shutdown.requested() => true,
        };

        let now = fleet.borrow().clone();
        let urls = urls(&now);
        if !urls.is_empty() {
            let report = build(accepted);
            let limit = if last {
                LAST_ANSWER_TIME_MAX
            } else {
                ANSWER_TIME_MAX
            };
            let key = node_key::shown_by(&now, &name);
            let outcomes = futures_util::future::join_all(
                urls.iter()
                    .map(|url| post(&client, url, key.as_ref(), &report, limit)),
            )
            .await;
            accepted = outcomes.iter().all(Result::is_ok);
            for (url, outcome) in urls.into_iter().zip(outcomes) {
                log.note(url, outcome.err());
            }
        }

        if last {
            return;
        }
        if now.report_interval != interval {
            interval = now.report_interval;
            ticks = ticker(interval);
        }
    }
}

/// URLs for a role's reports to control, `<control>/v1/reports/<role>`; none without control.
pub fn to_control(fleet: &Fleet, role: &str) -> Vec<String> {
    fleet
        .control
        .iter()
        .map(|c| format!("{}/v1/reports/{role}", c.url))
        .collect()
}

/// URLs for round-trip reports: `<admin>/rtt` of every name server of the CDN's zone. Other name
/// servers do not steer clients.
pub fn to_name_servers(fleet: &Fleet) -> Vec<String> {
    let steering = fleet
        .zone_name_servers
        .iter()
        .filter_map(|i| fleet.name_servers.get(*i));
    steering.map(|n| format!("{}/rtt", n.admin_url)).collect()
}

/// Ticks from one interval on, as there is nothing to report before.
fn ticker(interval: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn post<R: Serialize>(
    client: &Client,
    url: &str,
    key: Option<&crate::config::Secret>,
    report: &R,
    limit: Duration,
) -> Result<(), String> {
    let response = client
        .post_json(url, key, report, limit)
        .await
        .map_err(|e| e.to_string())?;
    match response.status() {
        status if status.is_success() => Ok(()),
        status => {
            // The message contains the hint, for example about a wrong key.
            let words: serde_json::Value =
                serde_json::from_slice(response.body()).unwrap_or_default();
            let words: String = words["error"]["message"]
                .as_str()
                .unwrap_or_default()
                .chars()
                .take(REASON_CHARS_MAX)
                .collect();
            Err(if words.is_empty() {
                format!("status {status}")
            } else {
                format!("status {status}: {words}")
            })
        }
    }
}

/// The last logged failure of each failing receiver.
#[derive(Debug, Default)]
struct Log {
    failing: HashMap<String, String>,
}

impl Log {
    /// Logs a change: a receiver begins to fail, fails in another way, or works again.
    fn note(&mut self, url: String, failure: Option<String>) {
        match failure {
            Some(reason) if self.failing.get(&url) != Some(&reason) => {
                tracing::warn!(url, reason, "reports are not accepted");
                self.failing.insert(url, reason);
            }
            Some(_) => {}
            None => {
                if self.failing.remove(&url).is_some() {
                    tracing::info!(url, "reports are accepted again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

    use bytes::Bytes;
    use http::{Response, StatusCode};

    use parking_lot::Mutex;

    use super::*;
    use crate::admin::{self, Readiness};
    use crate::config::Secret;
    use crate::file;
    use crate::testing::FleetText;
    use nearcast_net::shutdown;

    /// A receiver of reports and what it has received.
    struct Receiver {
        url: String,
        status: Arc<AtomicU16>,
        received: Arc<Mutex<Vec<String>>>,
        most_at_a_time: Arc<AtomicUsize>,
        _rest: (shutdown::ShutdownTrigger, watch::Sender<Readiness>),
    }

    impl Receiver {
        async fn start() -> Self {
            let status = Arc::new(AtomicU16::new(200));
            let received = Arc::new(Mutex::new(Vec::new()));
            let (at_a_time, most_at_a_time) =
                (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let parts = (
                status.clone(),
                received.clone(),
                at_a_time,
                most_at_a_time.clone(),
            );
            let extra: admin::RolePaths = Arc::new(move |request| {
                let (status, received, at_a_time, most) = parts.clone();
                Box::pin(async move {
                    most.fetch_max(
                        at_a_time.fetch_add(1, Ordering::SeqCst) + 1,
                        Ordering::SeqCst,
                    );
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    at_a_time.fetch_sub(1, Ordering::SeqCst);
                    let mut response = Response::new(Bytes::new());
                    *response.status_mut() =
                        StatusCode::from_u16(status.load(Ordering::SeqCst)).expect("a status");
                    if !admin::is_bearer(&request, "the key of this test") {
                        *response.status_mut() = StatusCode::UNAUTHORIZED;
                    }
                    received
                        .lock()
                        .push(String::from_utf8_lossy(request.body()).into_owned());
                    response
                })
            });
            let listener = admin::bind("127.0.0.1:0".parse().expect("an address"))
                .await
                .expect("a free port");
            let url = format!("http://{}/report", listener.local_addr().expect("bound"));
            let (trigger, shutdown) = shutdown::channel();
            let (readiness, ready) = watch::channel(Readiness::Ready);
            tokio::spawn(admin::serve(
                listener,
                crate::listener_tls::ListenerTls::none(),
                prometheus::Registry::new(),
                ready,
                Some(extra),
                Arc::new(|_| false),
                shutdown,
            ));
            Self {
                url,
                status,
                received,
                most_at_a_time,
                _rest: (trigger, readiness),
            }
        }

        fn received(&self) -> Vec<String> {
            self.received.lock().clone()
        }

        async fn until_received(&self, count: usize) {
            while self.received().len() < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    fn fleet(interval: Duration) -> watch::Sender<Arc<Fleet>> {
        let mut fleet = file::standalone_origin(
            PathBuf::from("/"),
            "127.0.0.1:1".parse().expect("an address"),
        )
        .expect("a directory");
        fleet.report_interval = interval;
        fleet.node_key = Secret("the key of this test".into());
        watch::channel(Arc::new(fleet)).0
    }

    #[tokio::test]
    async fn reports_go_one_at_a_time_and_say_whether_the_last_was_taken() {
        let receiver = Receiver::start().await;
        let fleet = fleet(Duration::from_millis(5));
        let (trigger, shutdown) = shutdown::channel();
        let urls = vec![receiver.url.clone()];
        let running = tokio::spawn(run(
            "origin".into(),
            move |_| urls.clone(),
            fleet.subscribe(),
            |taken| taken,
            shutdown,
        ));
        receiver.until_received(2).await;
        receiver.status.store(503, Ordering::SeqCst);
        let count = receiver.received().len();
        receiver.until_received(count + 3).await;
        receiver.status.store(200, Ordering::SeqCst);
        let count = receiver.received().len();
        receiver.until_received(count + 3).await;
        trigger.shut_down();
        running.await.expect("ends");
        let received = receiver.received();
        assert_eq!(received[..2], ["true", "true"]);
        assert!(received.contains(&"false".to_owned()), "{received:?}");
        assert_eq!(received.last().map(String::as_str), Some("true"));
        assert_eq!(receiver.most_at_a_time.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_last_report_is_sent_at_shutdown() {
        let receiver = Receiver::start().await;
        let fleet = fleet(Duration::from_secs(3600));
        let (trigger, shutdown) = shutdown::channel();
        let urls = vec![receiver.url.clone()];
        let running = tokio::spawn(run(
            "origin".into(),
            move |_| urls.clone(),
            fleet.subscribe(),
            |_| "draining",
            shutdown,
        ));
        trigger.shut_down();
        running.await.expect("ends");
        assert_eq!(receiver.received(), ["\"draining\""]);
    }

    #[tokio::test]
    async fn one_receiver_that_is_away_does_not_keep_reports_from_another() {
        let receiver = Receiver::start().await;
        let fleet = fleet(Duration::from_millis(5));
        let (_trigger, shutdown) = shutdown::channel();
        let urls = vec!["http://127.0.0.1:1/nobody".to_owned(), receiver.url.clone()];
        tokio::spawn(run(
            "origin".into(),
            move |_| urls.clone(),
            fleet.subscribe(),
            |taken| taken,
            shutdown,
        ));
        receiver.until_received(3).await;
        assert_eq!(receiver.received()[..3], ["true", "false", "false"]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_built_while_nobody_wants_it_and_a_new_interval_is_heeded() {
        let fleet = fleet(Duration::from_secs(10));
        let (_trigger, shutdown) = shutdown::channel();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let urls = move |_: &Fleet| {
            counted.fetch_add(1, Ordering::SeqCst);
            Vec::new()
        };
        tokio::spawn(run(
            "origin".into(),
            urls,
            fleet.subscribe(),
            |_| -> () { panic!("nobody wants it") },
            shutdown,
        ));
        tokio::time::sleep(Duration::from_secs(35)).await;
        assert_eq!(asked.load(Ordering::SeqCst), 3);
        fleet.send_modify(|f| Arc::make_mut(f).report_interval = Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(10_500)).await;
        assert_eq!(asked.load(Ordering::SeqCst), 3 + 1 + 5);
    }

    #[test]
    fn urls_are_those_of_the_fleet() {
        let fleet = FleetText::new()
            .control("127.0.0.1:7700")
            .name_server("ns1", "127.0.0.1:5300")
            .cluster("ams", &["192.0.2.1"])
            .fleet();
        assert_eq!(
            to_control(&fleet, "edge"),
            ["http://127.0.0.1:7700/v1/reports/edge"]
        );
        assert_eq!(to_name_servers(&fleet), ["http://127.0.0.1:9153/rtt"]);
    }
}
