//! Sending a node's reports: every report interval, one at a time, to whoever wants them.
//!
//! A role gives a closure that makes its report; this module owns when it is called, where the JSON goes and what is
//! logged. A receiver that is away costs one time-out an interval and two lines in the log: one when it goes, one when
//! it is back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use crate::client::Client;
use crate::config::Fleet;
use crate::shutdown::Shutdown;

/// How long a receiver may take to answer a report.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// How long the last report, sent when shutdown is asked for, may take.
const LAST_ANSWER_TIME_MAX: Duration = Duration::from_millis(500);

/// Sends reports until shutdown is asked for, and then a last one.
///
/// Each `fleet.report_interval` (as the fleet is then) `build` is called with whether **every** receiver accepted the
/// report before this one (`true` at first), so that a report of differences can keep what was not taken. Its value is
/// posted as JSON with the node key to each of `urls(fleet)`, all at once; the next report waits until all have
/// answered or 3 s have passed, so there is one in flight at most. No URLs: `build` is not called. Example:
///
/// ```ignore
/// let urls = |f: &Fleet| reporter::to_control(f, "edge");
/// tokio::spawn(reporter::run(urls, context.fleet.clone(), move |taken| edge.report(taken), context.shutdown.clone()));
/// let urls = |f: &Fleet| reporter::to_name_servers(f);
/// tokio::spawn(reporter::run(urls, context.fleet.clone(), move |_| edge.rtt_report(), context.shutdown.clone()));
/// ```
pub async fn run<R, F>(urls: impl Fn(&Fleet) -> Vec<String>, fleet: watch::Receiver<Arc<Fleet>>, mut build: F, mut shutdown: Shutdown)
where
    F: FnMut(bool) -> R,
    R: Serialize,
{
    let client = Client::new();
    let mut log = Log::default();
    let mut accepted = true;
    let mut interval = fleet.borrow().report_interval;
    let mut ticks = ticker(interval);
    loop {
        let last = tokio::select! {
            _ = ticks.tick() => false,
            () = shutdown.asked() => true,
        };
        let now = fleet.borrow().clone();
        let urls = urls(&now);
        if !urls.is_empty() {
            let report = build(accepted);
            let limit = if last { LAST_ANSWER_TIME_MAX } else { ANSWER_TIME_MAX };
            let key = (!now.node_key.0.is_empty()).then_some(&now.node_key);
            let outcomes = futures_util::future::join_all(urls.iter().map(|url| post(&client, url, key, &report, limit))).await;
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

/// Where a role's reports to control go: `<control>/v1/reports/<role>`; none without control.
pub fn to_control(fleet: &Fleet, role: &str) -> Vec<String> {
    fleet.control.iter().map(|c| format!("{}/v1/reports/{role}", c.url)).collect()
}

/// Where round-trip times go: `<admin>/rtt` of every name server.
pub fn to_name_servers(fleet: &Fleet) -> Vec<String> {
    fleet.name_servers.iter().map(|n| format!("{}/rtt", n.admin_url)).collect()
}

/// The first report after one interval: there is something to report by then.
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
    let response = client.post_json(url, key, report, limit).await.map_err(|e| e.to_string())?;
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("status {status}")),
    }
}

/// What was last logged of each receiver: its failure, if it failed.
#[derive(Debug, Default)]
struct Log {
    failing: HashMap<String, String>,
}

impl Log {
    /// Logs a change: it begins to fail, fails in another way, takes reports again.
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
