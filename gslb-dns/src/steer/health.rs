//! Whether edges are up: active HTTP checks, each on a connection of its own, so that a listener that no longer accepts is found.
//!
//! A node is taken for up until its first check has ended, which is at once: a name server that starts must not answer that everything is
//! down. That first result decides alone. After it, `fall` failures in a row take a node out and `rise` successes bring it back. A 503 is no failure to doubt but
//! the node's own word that it wants no clients: it takes the node out at once. With the default settings (a check each half second,
//! 0.4 s to answer, two failures) a node that dies silently is out within 1.6 s.
//!
//! Checks run in tasks of their own and send what they saw to the one place that keeps the state.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use nearcast_fleet::config::HealthCheck;

/// Longest reason kept, in characters.
const REASON_CHARS_MAX: usize = 120;

/// How one check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A success status, after so many microseconds.
    Passed(u64),
    /// No answer, or the wrong one.
    Failed(String),
    /// The node itself says that it takes no clients.
    Refusing(String),
}

/// What is known of one node's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vitals {
    /// Whether it is in the answers.
    pub(super) up: bool,
    /// Since when, milliseconds after the Unix epoch.
    pub(super) since_ms: u64,
    /// Why, for people.
    pub(super) reason: String,
    /// Time of the last check in microseconds; 0 when it failed.
    pub(super) check_us: u64,
    /// Whether any check has ended.
    checked: bool,
    /// Results in a row that speak against `up`.
    against: u32,
}

impl Vitals {
    /// Before the first check.
    pub(super) fn unknown(now_ms: u64) -> Self {
        Self { up: true, since_ms: now_ms, reason: "not checked yet".into(), check_us: 0, checked: false, against: 0 }
    }

    /// Takes in a result. Says whether `up` changed.
    pub(super) fn observe(&mut self, outcome: Outcome, rules: &HealthCheck, now_ms: u64) -> bool {
        let (good, at_once, reason, check_us) = match outcome {
            Outcome::Passed(us) => (true, false, "ok".to_owned(), us),
            Outcome::Failed(reason) => (false, false, reason, 0),
            Outcome::Refusing(reason) => (false, true, reason, 0),
        };
        self.check_us = check_us;
        let first = !std::mem::replace(&mut self.checked, true);
        if good == self.up {
            self.against = 0;
            self.reason = reason;
            return false;
        }
        self.against = self.against.saturating_add(1);
        let needed = match (first || at_once, good) {
            (true, _) => 1,
            (_, true) => rules.rise.max(1),
            (_, false) => rules.fall.max(1),
        };
        if self.against < needed {
            if !good {
                self.reason = format!("{reason} ({} of {needed} failures)", self.against);
            }
            return false;
        }
        (self.up, self.since_ms, self.against, self.reason) = (good, now_ms, 0, reason);
        true
    }
}

/// The pause before the next check begins, counted from the beginning of the last: the interval moved by up to `jitter` of itself either way.
pub(super) fn pause(rules: &HealthCheck, random: u64) -> Duration {
    let part = (random >> 11) as f64 / (1_u64 << 53) as f64;
    rules.interval.mul_f64((1.0 + rules.jitter * (2.0 * part - 1.0)).max(0.0))
}

/// Checks once.
pub(super) async fn check(service: SocketAddr, host: &str, rules: &HealthCheck) -> Outcome {
    let started = Instant::now();
    match tokio::time::timeout(rules.timeout, exchange(service, host, &rules.path)).await {
        Err(_) => Outcome::Failed(format!("no answer within {} ms", rules.timeout.as_millis())),
        Ok(Err(reason)) => Outcome::Failed(reason.chars().take(REASON_CHARS_MAX).collect()),
        Ok(Ok(status)) if status.is_success() => Outcome::Passed(started.elapsed().as_micros().max(1) as u64),
        Ok(Ok(http::StatusCode::SERVICE_UNAVAILABLE)) => Outcome::Refusing("status 503".into()),
        Ok(Ok(status)) => Outcome::Failed(format!("status {}", status.as_u16())),
    }
}

/// Sends the request and reads the head of the answer; its body is not looked at.
async fn exchange(service: SocketAddr, host: &str, path: &str) -> Result<http::StatusCode, String> {
    let stream = tokio::net::TcpStream::connect(service).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => "unreachable".to_owned(),
        _ => format!("cannot connect: {e}"),
    })?;
    let broken = |e: hyper::Error| {
        if e.is_incomplete_message() { "closed without an answer".to_owned() } else { format!("not an HTTP answer: {e}") }
    };
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(16 << 10)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let request = http::Request::get(path)
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, "nearcast-health")
        .header(http::header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|e| format!("the path {path:?} cannot be asked for: {e}"))?;
    let answer = sender.send_request(request);
    tokio::pin!(connection, answer);
    tokio::select! {
        biased;
        answered = &mut answer => answered.map(|a| a.status()).map_err(broken),
        // The connection may end with the answer handed over but not taken.
        ended = &mut connection => match ended {
            Ok(()) => answer.await.map(|a| a.status()).map_err(broken),
            Err(e) => Err(broken(e)),
        },
    }
}

/// A small generator for jitter; not for anything that must not be guessed.
#[derive(Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    /// Different for each seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (splitmix64).
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn rules() -> HealthCheck {
        HealthCheck {
            path: "/.nearcast/health".into(),
            interval: Duration::from_millis(500),
            timeout: Duration::from_millis(400),
            fall: 2,
            rise: 3,
            jitter: 0.1,
        }
    }

    #[test]
    fn falls_rises_and_obeys_a_503_at_once() {
        let pass = || Outcome::Passed(100);
        let fail = || Outcome::Failed("connection refused".into());
        let refuse = || Outcome::Refusing("status 503".into());
        let table: [(&str, Vec<Outcome>, &[bool]); 6] = [
            ("one failure is not enough", vec![pass(), fail(), pass(), fail()], &[true, true, true, true]),
            ("two in a row are", vec![pass(), fail(), fail()], &[true, true, false]),
            (
                "three successes in a row bring it back",
                vec![fail(), pass(), pass(), fail(), pass(), pass(), pass()],
                &[false, false, false, false, false, false, true],
            ),
            ("the first result decides alone", vec![fail()], &[false]),
            ("503 counts at once", vec![pass(), refuse()], &[true, false]),
            ("and needs as many successes", vec![refuse(), pass(), pass(), pass()], &[false, false, false, true]),
        ];
        for (name, outcomes, expected) in table {
            let mut vitals = Vitals::unknown(0);
            assert!(vitals.up);
            for (i, (outcome, up)) in outcomes.into_iter().zip(expected).enumerate() {
                let was = vitals.up;
                let changed = vitals.observe(outcome, &rules(), 10 + i as u64);
                assert_eq!(vitals.up, *up, "{name}, result {i}");
                assert_eq!(changed, was != *up, "{name}, result {i}");
                if changed {
                    assert_eq!(vitals.since_ms, 10 + i as u64, "{name}");
                }
            }
        }
    }

    #[test]
    fn reasons_tell_what_happened() {
        let mut vitals = Vitals::unknown(0);
        vitals.observe(Outcome::Passed(7), &rules(), 1);
        assert_eq!((vitals.reason.as_str(), vitals.check_us), ("ok", 7));
        vitals.observe(Outcome::Failed("connection refused".into()), &rules(), 2);
        assert_eq!((vitals.reason.as_str(), vitals.check_us), ("connection refused (1 of 2 failures)", 0));
        vitals.observe(Outcome::Failed("connection refused".into()), &rules(), 3);
        assert_eq!(vitals.reason, "connection refused");
        vitals.observe(Outcome::Passed(9), &rules(), 4);
        assert_eq!((vitals.up, vitals.reason.as_str(), vitals.check_us), (false, "connection refused", 9), "still why it is down");
    }

    #[test]
    fn pauses_stay_within_the_jitter() {
        let mut jitter = Jitter::new(1);
        let pauses: Vec<Duration> = (0..1_000).map(|_| pause(&rules(), jitter.next())).collect();
        assert!(pauses.iter().all(|p| (450..=550).contains(&p.as_millis())));
        assert!(pauses.iter().min() < pauses.iter().max());
        assert!(pause(&rules(), 0) >= Duration::from_millis(450) && pause(&rules(), u64::MAX) <= Duration::from_millis(550));
    }

    /// A server that answers every connection with these bytes, then closes it.
    async fn answering(bytes: &'static [u8]) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let n = stream.read(&mut head).await.unwrap_or(0);
                assert!(head[..n].starts_with(b"GET /.nearcast/health HTTP/1.1\r\n"));
                let _ = stream.write_all(bytes).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn checks_over_real_connections() {
        let passed = check(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await, "a", &rules()).await;
        assert!(matches!(passed, Outcome::Passed(us) if us > 0), "{passed:?}");
        let table: [(&'static [u8], Outcome); 4] = [
            (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", Outcome::Refusing("status 503".into())),
            (b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", Outcome::Failed("status 500".into())),
            (b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n", Outcome::Failed("status 302".into())),
            (b"", Outcome::Failed("closed without an answer".into())),
        ];
        for (bytes, expected) in table {
            assert_eq!(check(answering(bytes).await, "a", &rules()).await, expected);
        }
        let Outcome::Failed(reason) = check(answering(b"SSH-2.0-x\r\n").await, "a", &rules()).await else { panic!() };
        assert!(reason.starts_with("not an HTTP answer"), "{reason}");
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(check(gone, "a", &rules()).await, Outcome::Failed("connection refused".into()));
    }

    #[tokio::test]
    async fn a_silent_server_fails_after_the_time_out() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let quick = HealthCheck { timeout: Duration::from_millis(30), ..rules() };
        let outcome = check(listener.local_addr().unwrap(), "a", &quick).await;
        assert_eq!(outcome, Outcome::Failed("no answer within 30 ms".into()));
    }
}
