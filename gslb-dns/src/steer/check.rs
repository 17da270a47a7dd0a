//! Health checks of one endpoint over HTTP: their times, their connection, and their time-outs.
//!
//! Checks use one persistent connection, so that a check costs one round trip at any distance.
//! Every tenth check uses a new connection, which then replaces the old one: this detects a
//! listener that accepts no connections any more. A new connection is also used after a failure,
//! until a check passes, and when the persistent connection turns out to be closed: edges close
//! idle connections, and that alone says nothing about their health.
//!
//! The time-out of a check is learned from measured round trips (as in RFC 6298: the smoothed time
//! and four times its mean deviation, but at least 1.5 times the smoothed time), separately for the
//! connection and for the response, between `timeout_min` and `timeout`. It is `timeout` while
//! nothing is measured and while the endpoint is down, so that a distant edge, or one whose way has
//! become longer, has the time to respond. A measurement longer than the time-out of an endpoint
//! that is up counts only when the next one confirms it: an edge that stalled responds late once,
//! and the next stall must be detected as fast.
//!
//! The check after a failure does not wait for the interval, and neither does the one after the
//! persistent connection closes: a killed edge is detected within moments.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use nearcast_fleet::config::HealthCheck;
use tokio::task::JoinHandle;

use super::health::{CheckOutcome, pause};
use nearcast_fleet::random::Random;

/// Longest reason kept, in characters.
const REASON_CHARS_MAX: usize = 120;
/// Every so many checks, a new connection is used.
const NEW_CONNECTION_EVERY: u32 = 10;
/// Largest head of a response, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Largest body of a response after which the connection is kept, in bytes.
const BODY_BYTES_MAX: usize = 16 << 10;
/// After a failure the next check follows after this fraction of the interval.
const RECHECK_PARTS: u32 = 5;
/// A persistent connection that closes brings the next check forward if it has carried so many
/// checks; an edge that closes after each response is not checked more often for it.
const CARRIED_MIN: u32 = 2;

/// A smoothed time and its deviation, in microseconds.
#[derive(Debug, Clone, Copy, Default)]
struct RoundTrip {
    learned: Option<(f64, f64)>,
    /// The last measurement, where it exceeds the time-out of an endpoint that is up. Either the
    /// way has become longer, or the edge stalled and responded afterwards; the next measurement
    /// shows which.
    doubtful: Option<f64>,
}

impl RoundTrip {
    /// Records a measurement (RFC 6298 section 2, with its constants). `least` is the shortest
    /// time-out.
    fn observe(&mut self, took: Duration, least: Duration) {
        let us = took.as_secs_f64() * 1e6;
        let first = |us: f64| Some((us, us / 2.0));
        let doubtful = self.doubtful.take();
        let is_late = self.limit().is_some_and(|limit| took > limit.max(least));
        match (self.learned, doubtful) {
            (None, _) => self.learned = first(us),
            (Some(_), None) if is_late => self.doubtful = Some(us),
            (Some(_), Some(before)) if is_late => self.learned = first(us.min(before)),
            (Some((smoothed, deviation)), _) => {
                self.learned = Some((
                    smoothed * 0.875 + us * 0.125,
                    deviation * 0.75 + (smoothed - us).abs() * 0.25,
                ));
            }
        }
    }

    /// The learned time-out, without bounds; `None` before the first measurement and while the last
    /// one is in doubt.
    fn limit(self) -> Option<Duration> {
        let (smoothed, deviation) = self.learned.filter(|_| self.doubtful.is_none())?;
        Some(Duration::from_secs_f64(
            (smoothed + 4.0 * deviation).max(smoothed * 1.5) / 1e6,
        ))
    }
}

/// A connection with the task that drives it.
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<()>,
    /// Number of checks that it has carried.
    carried: u32,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The checks of one endpoint.
pub(super) struct Checker {
    endpoint: SocketAddr,
    host: String,
    rules: HealthCheck,
    kept: Option<Connection>,
    connecting: RoundTrip,
    answering: RoundTrip,
    /// Failures in a row.
    failures: u32,
}

impl Checker {
    pub(super) fn new(endpoint: SocketAddr, rules: HealthCheck) -> Self {
        let (connecting, answering) = Default::default();
        Self {
            endpoint,
            host: endpoint.to_string(),
            rules,
            kept: None,
            connecting,
            answering,
            failures: 0,
        }
    }

    /// Checks once.
    pub(super) async fn check(&mut self) -> CheckOutcome {
        let kept = self
            .kept
            .take()
            .filter(|c| c.carried < NEW_CONNECTION_EVERY && !c.sender.is_closed());
        let outcome = match kept {
            Some(connection) => self.check_kept(connection).await,
            None => self.check_new().await,
        };
        self.failures = match outcome {
            CheckOutcome::Passed(_) => 0,
            _ => self.failures.saturating_add(1),
        };
        outcome
    }

    /// Waits until the next check is due, counted from when the last one began.
    pub(super) async fn rest(&mut self, begun: Instant, jitter: &mut Random) {
        let soon = tokio::time::Instant::from_std(begun + self.rules.interval / RECHECK_PARTS);
        let next = match self.is_failing() {
            true => soon,
            false => tokio::time::Instant::from_std(begun + pause(&self.rules, jitter.bits())),
        };
        if let Some(kept) = self.kept.as_mut().filter(|c| c.carried >= CARRIED_MIN) {
            tokio::select! {
                () = tokio::time::sleep_until(next) => return,
                _ = &mut kept.driver => {}
            }
            self.kept = None;
            return tokio::time::sleep_until(soon.min(next)).await;
        }
        tokio::time::sleep_until(next).await;
    }

    /// Whether the last check failed, but too few did for the endpoint to be down.
    fn is_failing(&self) -> bool {
        (1..self.rules.fall.max(1)).contains(&self.failures)
    }

    /// The time-out of the next check, for one or two of the measured steps.
    fn limit(&self, parts: &[RoundTrip]) -> Duration {
        let longest = self.rules.timeout;
        let is_down = self.failures >= self.rules.fall.max(1);
        let learned = parts
            .iter()
            .map(|part| part.limit())
            .sum::<Option<Duration>>();
        match learned.filter(|_| !is_down) {
            None => longest,
            Some(learned) => learned.max(self.rules.timeout_min).min(longest),
        }
    }

    async fn check_kept(&mut self, mut connection: Connection) -> CheckOutcome {
        let limit = self.limit(&[self.answering]);
        let begun = Instant::now();
        match tokio::time::timeout(limit, ask(&mut connection, &self.host, &self.rules.path)).await
        {
            Err(_) => CheckOutcome::Failed(format!("no answer within {} ms", limit.as_millis())),
            // The connection was closed, perhaps because it was idle; a new one shows.
            Ok(Err(_)) => self.check_new().await,
            Ok(Ok(answer)) => self.judge(connection, answer, begun, begun, limit).await,
        }
    }

    async fn check_new(&mut self) -> CheckOutcome {
        let limit = self.limit(&[self.connecting, self.answering]);
        let begun = Instant::now();
        let late =
            |what: &str| CheckOutcome::Failed(format!("no {what} within {} ms", limit.as_millis()));
        let mut connection = match tokio::time::timeout(limit, connect(self.endpoint)).await {
            Err(_) => return late("connection"),
            Ok(Err(outcome)) => return outcome,
            Ok(Ok(connection)) => connection,
        };
        let asked = Instant::now();
        let left = limit.saturating_sub(asked - begun);
        match tokio::time::timeout(left, ask(&mut connection, &self.host, &self.rules.path)).await {
            Err(_) => late("answer"),
            Ok(Err(reason)) => {
                CheckOutcome::Failed(reason.chars().take(REASON_CHARS_MAX).collect())
            }
            Ok(Ok(answer)) => {
                self.connecting
                    .observe(asked - begun, self.rules.timeout_min);
                self.judge(connection, answer, begun, asked, limit).await
            }
        }
    }

    /// Derives the result from the head, which alone counts, and keeps the connection when the body
    /// was read in time.
    async fn judge(
        &mut self,
        mut connection: Connection,
        answer: http::Response<Incoming>,
        begun: Instant,
        asked: Instant,
        limit: Duration,
    ) -> CheckOutcome {
        let ended = Instant::now();
        self.answering
            .observe(ended - asked, self.rules.timeout_min);
        let outcome = match answer.status() {
            status if status.is_success() => {
                CheckOutcome::Passed(((ended - begun).as_micros() as u64).max(1))
            }
            http::StatusCode::SERVICE_UNAVAILABLE => CheckOutcome::Refusing("status 503".into()),
            status => CheckOutcome::Failed(format!("status {}", status.as_u16())),
        };
        let left = limit.saturating_sub(ended - begun);
        let is_read = tokio::time::timeout(left, drain(answer.into_body()))
            .await
            .unwrap_or(false);
        if is_read && matches!(outcome, CheckOutcome::Passed(_)) {
            connection.carried += 1;
            self.kept = Some(connection);
        }
        outcome
    }
}

/// Opens a connection and starts its driver.
async fn connect(endpoint: SocketAddr) -> Result<Connection, CheckOutcome> {
    use std::io::ErrorKind;
    let stream = tokio::net::TcpStream::connect(endpoint)
        .await
        .map_err(|e| match e.kind() {
            ErrorKind::ConnectionRefused => CheckOutcome::Failed("connection refused".to_owned()),
            _ if !has_route(endpoint) => CheckOutcome::NoRoute,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                CheckOutcome::Failed("unreachable".to_owned())
            }
            _ => CheckOutcome::Failed(
                format!("cannot connect: {e}")
                    .chars()
                    .take(REASON_CHARS_MAX)
                    .collect(),
            ),
        })?;
    let _ = stream.set_nodelay(true);
    let handshake = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await;
    let (sender, connection) = handshake.map_err(|e| CheckOutcome::Failed(broken(&e)))?;

    // An error of the connection reaches the caller through the response that it waits for.
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok(Connection {
        sender,
        driver,
        carried: 0,
    })
}

/// Whether the system has a route to that address; nothing is sent.
fn has_route(endpoint: SocketAddr) -> bool {
    let any: SocketAddr = match endpoint {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    std::net::UdpSocket::bind(any)
        .and_then(|socket| socket.connect(endpoint))
        .is_ok()
}

/// Sends the request and reads the head of the answer.
async fn ask(
    connection: &mut Connection,
    host: &str,
    path: &str,
) -> Result<http::Response<Incoming>, String> {
    let request = http::Request::get(path)
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, "nearcast-health")
        .body(Empty::new())
        .map_err(|e| format!("the path {path:?} cannot be asked for: {e}"))?;
    connection.sender.ready().await.map_err(|e| broken(&e))?;
    connection
        .sender
        .send_request(request)
        .await
        .map_err(|e| broken(&e))
}

fn broken(error: &hyper::Error) -> String {
    match error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        true => "closed without an answer".to_owned(),
        false => format!("not an HTTP answer: {error}"),
    }
}

/// Reads a body to its end; `false` when it is too long or broken.
async fn drain(mut body: Incoming) -> bool {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > BODY_BYTES_MAX {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests;
