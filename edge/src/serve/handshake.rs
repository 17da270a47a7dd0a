//! The TLS handshake of one client's connection: how long it may take, how many there may be, and
//! how each ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use nearcast_fleet::config::ClientLimits;
use nearcast_net::linger::{After, drain_input};
use nearcast_net::shutdown::Shutdown;
use nearcast_net::tls::{HandshakeError, Identity, QuicSession, Refusal, TlsAccepted};
use rustls::{HandshakeKind, ProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::connections::{ConnectionSlot, Ends};
use super::phase::Phase;
use crate::edge::Worker;

/// Handshakes of one worker that compute before its other connections get their turn.
pub(crate) const TURNS: usize = 2;
/// Handshakes under way may have this share of all connections: so slow ones leave slots for
/// others. A connection that has sent nothing is no handshake, and is closed when slots get scarce.
pub(super) const SHARE: usize = 2;
/// How long a connection that has sent nothing is kept when the node drains.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(1);
/// Names of the protocols in ALPN (RFC 7301 section 6, RFC 9113 section 3.2).
const HTTP_1_1: &[u8] = b"http/1.1";
const HTTP_2: &[u8] = b"h2";
/// The answer to a request in plain HTTP.
const PLAIN_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    content-length: 52\r\n\
    cache-control: no-store\r\n\
    connection: close\r\n\r\n\
    this port speaks TLS: write https:// in place of it\n";

/// The protocols that are offered by ALPN, the preferred one first.
pub(crate) fn protocols(clients: &ClientLimits) -> Vec<Vec<u8>> {
    let http2 = clients.http2.then(|| HTTP_2.to_vec());
    http2.into_iter().chain([HTTP_1_1.to_vec()]).collect()
}

/// Whether the client and this node have agreed on HTTP/2.
pub(super) fn is_http2(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP_2)
}

/// How a handshake ended, for the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeResult {
    Full,
    Resumed,
    /// Too many were under way.
    TooMany,
    Refused(Refusal),
}

impl HandshakeResult {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let refused = Refusal::ALL.into_iter().map(Self::Refused);
        [Self::Full, Self::Resumed, Self::TooMany]
            .into_iter()
            .chain(refused)
    }

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Resumed => "resumed",
            Self::TooMany => "too-many",
            Self::Refused(refusal) => refusal.label(),
        }
    }

    fn number(self) -> usize {
        match self {
            Self::Full => 0,
            Self::Resumed => 1,
            Self::TooMany => 2,
            Self::Refused(refusal) => 3 + refusal as usize,
        }
    }
}

/// The handshakes of the process.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    under_way: AtomicUsize,
    results: [AtomicU64; 3 + Refusal::ALL.len()],
}

impl Handshakes {
    pub(crate) fn count(&self, result: HandshakeResult) -> u64 {
        self.results[result.number()].load(Relaxed)
    }

    pub(super) fn note(&self, result: HandshakeResult) {
        self.results[result.number()].fetch_add(1, Relaxed);
    }

    /// Counts one as under way; `None` when `max` are.
    fn enter(&self, max: usize) -> Option<UnderWay<'_>> {
        self.begin(max).then_some(UnderWay(self))
    }

    /// Counts one as under way until [`Self::end`]; `false`, and not counted, when `max` are.
    pub(super) fn begin(&self, max: usize) -> bool {
        let has_room = self.under_way.fetch_add(1, Relaxed) < max.max(1);
        if !has_room {
            self.end();
        }
        has_room
    }

    pub(super) fn end(&self) {
        self.under_way.fetch_sub(1, Relaxed);
    }
}

/// One handshake that is under way.
struct UnderWay<'a>(&'a Handshakes);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What is known of a connection's TLS.
#[derive(Debug)]
pub(crate) struct TlsInfo {
    /// Its version: `TLSv1.2`, `TLSv1.3`.
    pub(crate) version: &'static str,
    /// The host that the client named, in lower case.
    pub(crate) server_name: Option<Box<str>>,
    identity: Arc<Identity>,
}

impl TlsInfo {
    /// Whether the certificate of the connection covers a host, lower case and without port.
    pub(crate) fn covers(&self, host: &str) -> bool {
        self.identity.covers(host)
    }

    /// Of a connection of QUIC, which has no other version.
    pub(super) fn of_quic(session: QuicSession) -> Self {
        Self {
            version: "TLSv1.3",
            server_name: session.server_name,
            identity: session.identity,
        }
    }

    fn of(stream: &TlsStream<TcpStream>, identity: Arc<Identity>) -> Self {
        let connection = stream.get_ref().1;
        Self {
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                _ => "TLSv1.2",
            },
            server_name: connection.server_name().map(Into::into),
            identity,
        }
    }
}

/// Performs the handshake of a connection. `None`: it failed, is counted, and the connection is
/// closed.
pub(super) async fn handshake(
    worker: &Worker,
    stream: TcpStream,
    slot: &mut ConnectionSlot,
    ending: &Shutdown,
) -> Option<(TlsStream<TcpStream>, TlsInfo)> {
    let edge = &worker.edge;
    let handshakes = &edge.handshakes;
    let began = tokio::time::Instant::now();
    let limit = edge.clients.handshake_timeout;
    if let Err(refusal) = first_byte(&stream, slot, limit, ending.clone()).await {
        handshakes.note(HandshakeResult::Refused(refusal));
        return None;
    }
    let Some(under_way) = handshakes.enter(edge.connections.max() / SHARE) else {
        handshakes.note(HandshakeResult::TooMany);
        return None;
    };

    let left = limit.saturating_sub(began.elapsed());
    let side = edge.certificates.side();
    let accepted = Box::pin(side.accept(stream, left, Some(&worker.turns))).await;
    drop(under_way);
    match accepted {
        Ok(TlsAccepted { stream, identity }) => {
            let is_resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
            handshakes.note(match is_resumed {
                true => HandshakeResult::Resumed,
                false => HandshakeResult::Full,
            });
            let info = TlsInfo::of(&stream, identity);
            let TlsInfo {
                version,
                server_name,
                ..
            } = &info;
            tracing::debug!(version, server_name, is_resumed, "a client speaks TLS");
            Some((stream, info))
        }
        Err(HandshakeError { refusal, plain }) => {
            handshakes.note(HandshakeResult::Refused(refusal));
            if let Some(stream) = plain {
                Box::pin(answer_plain(stream, ending.clone())).await;
            }
            None
        }
    }
}

/// Waits for a connection's first byte. Until then it is idle, and may be closed to make room for
/// others.
async fn first_byte(
    stream: &TcpStream,
    slot: &mut ConnectionSlot,
    limit: Duration,
    mut ending: Shutdown,
) -> Result<(), Refusal> {
    let phase = Arc::new(Phase::default());
    slot.enter(Ends::of(stream), &phase);
    let drained = async {
        ending.requested().await;
        tokio::time::sleep(FIRST_BYTE_MAX).await;
    };
    let mut byte = [0];
    let came = tokio::select! {
        biased;
        peeked = stream.peek(&mut byte) => match peeked {
            Ok(1..) => Ok(()),
            _ => Err(Refusal::Left),
        },
        () = drained => Err(Refusal::TimedOut),
        () = tokio::time::sleep(limit) => Err(Refusal::TimedOut),
    };
    slot.leave();
    came
}

/// Answers a request in plain HTTP, as far as that can be sent without waiting.
async fn answer_plain(mut stream: TcpStream, ending: Shutdown) {
    if stream.try_write(PLAIN_ANSWER).is_err() {
        return;
    }
    let _ = socket2::SockRef::from(&stream).shutdown(std::net::Shutdown::Write);
    drain_input(&mut stream, After::Fault, Some(ending)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_lists_the_results_of_handshakes() {
        const PAGE: &str = include_str!("../../../docs/tls.md");
        let labels: Vec<&str> = HandshakeResult::all().map(HandshakeResult::label).collect();
        let listed = crate::documented::first_column(PAGE, "| `result` | Meaning |");
        assert_eq!(
            labels
                .iter()
                .copied()
                .collect::<std::collections::BTreeSet<_>>(),
            listed
        );
        assert_eq!(labels.len(), listed.len(), "no two have the same label");
    }

    #[test]
    fn every_result_has_a_counter_and_a_label_of_its_own() {
        let handshakes = Handshakes::default();
        let mut labels = std::collections::BTreeSet::new();
        for result in HandshakeResult::all() {
            handshakes.note(result);
            assert_eq!(handshakes.count(result), 1, "{result:?}");
            assert!(labels.insert(result.label()), "{result:?}");
        }
        assert_eq!(labels.len(), handshakes.results.len());
    }

    #[test]
    fn handshakes_under_way_have_a_limit() {
        let handshakes = Handshakes::default();
        let first = handshakes.enter(2);
        let second = handshakes.enter(2);
        assert!(first.is_some() && second.is_some());
        assert!(handshakes.enter(2).is_none());
        drop(first);
        assert!(handshakes.enter(2).is_some());
    }

    #[test]
    fn the_answer_to_plain_http_says_its_length() {
        let text = std::str::from_utf8(PLAIN_ANSWER).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
    }
}
