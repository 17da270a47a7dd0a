//! QUIC connections of one worker: which of those that begin are accepted, their handshakes, and how
//! the endpoint ends.
//!
//! A packet that begins a connection may have a false sender, and costs its sender nothing. While
//! few connections begin, their handshakes start at once. When many do, a client first has to show
//! that it receives at its address (Retry, RFC 9000 section 8.1.2), which costs the edge no memory.
//! After that, a connection is admitted as one of TCP is: by the same limits, with the same counters.
//!
//! The sockets and keys are in `net/src/quic/`, the certificates in `net/src/tls/quic.rs`, and
//! requests in [`super::http3`].

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nearcast_fleet::config::ClientLimits;
use nearcast_net::quic::{self, Pressure, QuicKeys, WorkerSockets};
use nearcast_net::shutdown::Shutdown;
use nearcast_net::tls::{QuicHandshake, QuicSession, QuicSide, Refusal, ServerSide, Tickets};
use quinn::congestion::CubicConfig;
use quinn::{
    AckFrequencyConfig, Connecting, ConnectionError, Endpoint, IdleTimeout, Incoming,
    TransportConfig, VarInt,
};

use super::connections::{ConnectionSlot, Ends};
use super::handshake::{HandshakeResult, SHARE, TURNS, TlsInfo};
use super::http3;
use super::phase::Phase;
use super::server::{OpenConnection, OpenConnections};
use crate::edge::Worker;
use crate::request::check::ClientConnection;

/// The name of HTTP/3 in ALPN (RFC 9114 section 3.1).
const HTTP_3: &[u8] = b"h3";
/// `H3_NO_ERROR` (RFC 9114 section 8.1).
const NO_ERROR: u32 = 0x100;
/// Bytes of request bodies that a client may send before they are read: of one, and of all. As with
/// HTTP/2.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of responses that a connection sends before its client has acknowledged them: 320 Mbit/s
/// at 100 ms.
const SEND_WINDOW: u64 = 4 << 20;
/// Streams in one direction that a client may have open: control, and the two of QPACK (RFC 9114
/// section 6.2), and some of types that are ignored.
const UNI_STREAMS_MAX: u32 = 8;
/// Bytes of handshake messages that may come out of order: a ClientHello with large key shares has
/// less than 4 KiB.
const CRYPTO_BYTES: usize = 16 << 10;
/// What is taken for the round-trip time before one is measured (RFC 9002 section 6.2.2).
const INITIAL_ROUND_TRIP: Duration = Duration::from_millis(333);
/// Packets that a client may acknowledge at a time, where it knows how to be asked for that.
const PACKETS_PER_ACK: u32 = 10;
/// Handshakes under way of one worker from which on clients have to show their addresses first.
const RETRY_FROM: usize = 64;
/// Connections that wait for the worker to look at them, and bytes of further packets of one and of
/// all of them. What exceeds them is dropped, and sent again by its client.
const INCOMING_MAX: usize = 256;
const INCOMING_BYTES: u64 = 8 << 10;
const INCOMING_BYTES_ALL: u64 = 1 << 20;
/// How long the last packets of connections may take when the worker ends.
const CLOSE_TIME: Duration = Duration::from_millis(250);

/// What became of a connection that began, before its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// Its handshake was begun.
    Accepted,
    /// Its client was asked to show its address.
    Retried,
    /// It was refused by a limit, or because the node ends.
    Refused,
}

impl Beginning {
    pub(crate) const ALL: [Self; 3] = [Self::Accepted, Self::Retried, Self::Refused];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Retried => "retry",
            Self::Refused => "refused",
        }
    }
}

/// What the QUIC endpoints of a process share.
#[derive(Debug)]
pub(crate) struct Quic {
    side: Arc<QuicSide>,
    keys: Arc<QuicKeys>,
    beginnings: [AtomicU64; Beginning::ALL.len()],
}

impl Quic {
    /// With the certificates and session tickets of the listeners for TCP.
    pub(crate) fn new(side: &ServerSide, tickets: &Arc<Tickets>) -> Self {
        let alpn = vec![HTTP_3.to_vec()];
        let side = QuicSide::new(side.store().clone(), tickets.clone(), alpn);
        Self {
            side: Arc::new(side),
            keys: Arc::new(QuicKeys::new(tickets.clone())),
            beginnings: Default::default(),
        }
    }

    pub(crate) fn count(&self, beginning: Beginning) -> u64 {
        self.beginnings[beginning as usize].load(Relaxed)
    }

    fn note(&self, beginning: Beginning) {
        self.beginnings[beginning as usize].fetch_add(1, Relaxed);
    }
}

/// The endpoint of one worker for one address.
pub(super) struct QuicListener {
    worker: Arc<Worker>,
    endpoint: Endpoint,
    pressure: Arc<Pressure>,
    /// What the connections have in common.
    config: quinn::ServerConfig,
    local: IpAddr,
    /// Handshakes under way.
    handshakes: Arc<AtomicUsize>,
    open: Arc<OpenConnections>,
    ending: Shutdown,
}

impl QuicListener {
    /// Within the worker's runtime.
    pub(super) fn new(
        worker: Arc<Worker>,
        sockets: WorkerSockets,
        open: Arc<OpenConnections>,
        ending: Shutdown,
    ) -> io::Result<Self> {
        let local = sockets.local_addr()?.ip();
        let quic = &worker.edge.quic;
        let config = server_config(quic, &worker.edge.clients, local);
        let (endpoint, pressure) = quic::endpoint(sockets, &quic.keys, config.clone())?;
        Ok(Self {
            worker,
            endpoint,
            pressure,
            config,
            local,
            handshakes: Arc::default(),
            open,
            ending,
        })
    }

    /// The endpoint, to end it by.
    pub(super) fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    /// Accepts connections until the endpoint is closed. Once the node ends, it refuses them.
    pub(super) async fn accept(self) {
        let mut in_turn = 0;
        while let Some(incoming) = self.endpoint.accept().await {
            if self.begin(incoming) == Beginning::Accepted {
                // The first step of a handshake signs, which takes as long as several hits.
                in_turn += 1;
            }
            if in_turn >= TURNS {
                in_turn = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    fn begin(&self, incoming: Incoming) -> Beginning {
        let edge = &self.worker.edge;
        let load = Load {
            is_ending: self.ending.is_requested(),
            has_many: self.handshakes.load(Relaxed) >= RETRY_FROM
                || self.pressure.is_high()
                || edge.connections.are_slots_scarce(),
        };
        let beginning = decide(load, incoming.remote_address_validated());
        let beginning = match beginning {
            Beginning::Accepted => self.accept_one(incoming),
            Beginning::Retried => match incoming.retry() {
                Ok(()) => Beginning::Retried,
                // Dropped, and so refused.
                Err(_) => Beginning::Refused,
            },
            Beginning::Refused => {
                incoming.refuse();
                Beginning::Refused
            }
        };
        edge.quic.note(beginning);
        beginning
    }

    /// Begins the handshake of a connection within the limits, or refuses it.
    fn accept_one(&self, incoming: Incoming) -> Beginning {
        let edge = &self.worker.edge;
        let client = incoming.remote_address().ip().to_canonical();
        let is_proxy = edge.sites.load().trusted_proxies.contains(client);
        let admitted = match is_proxy {
            true => edge.connections.admit_proxy(self.worker.number),
            false => edge.connections.admit(self.worker.number, client),
        };
        let Ok(slot) = admitted else {
            incoming.refuse();
            return Beginning::Refused;
        };
        if !edge.handshakes.begin(edge.connections.max() / SHARE) {
            edge.handshakes.note(HandshakeResult::TooMany);
            incoming.refuse();
            return Beginning::Refused;
        }
        let under_way = UnderWay::new(&self.worker, &self.handshakes);

        let local = incoming.local_ip().unwrap_or(self.local).to_canonical();
        let tls = edge.quic.side.handshake(local);
        let mut config = self.config.clone();
        config.crypto = tls.clone();
        match incoming.accept_with(Arc::new(config)) {
            Ok(connecting) => {
                let connection = Beginner {
                    worker: self.worker.clone(),
                    connecting,
                    tls,
                    client,
                    is_proxy,
                    slot,
                    under_way,
                    counted: OpenConnection::new(&self.open),
                };
                // Spawned as it is: a block around it would reserve memory for it twice.
                tokio::spawn(serve(connection, self.ending.clone()));
            }
            Err(error) => {
                let refusal = refusal_of(&error, &tls);
                edge.handshakes.note(HandshakeResult::Refused(refusal));
            }
        }
        Beginning::Accepted
    }
}

/// Closes the endpoints of a worker, and waits a moment for their last packets.
pub(super) async fn end(endpoints: &[Endpoint]) {
    for endpoint in endpoints {
        endpoint.close(NO_ERROR.into(), b"");
    }
    let idle = async {
        for endpoint in endpoints {
            endpoint.wait_idle().await;
        }
    };
    let _ = tokio::time::timeout(CLOSE_TIME, idle).await;
}

/// What matters for a connection that begins.
#[derive(Debug, Clone, Copy)]
struct Load {
    /// The node accepts no connections any more.
    is_ending: bool,
    /// Many connections begin, or slots are scarce.
    has_many: bool,
}

/// What becomes of a connection that begins, from an address that `is_validated` or not.
fn decide(load: Load, is_validated: bool) -> Beginning {
    match load {
        Load {
            is_ending: true, ..
        } => Beginning::Refused,
        Load { has_many: true, .. } if !is_validated => Beginning::Retried,
        Load { .. } => Beginning::Accepted,
    }
}

/// One handshake that is under way.
struct UnderWay {
    worker: Arc<Worker>,
    of_listener: Arc<AtomicUsize>,
}

impl UnderWay {
    fn new(worker: &Arc<Worker>, of_listener: &Arc<AtomicUsize>) -> Self {
        of_listener.fetch_add(1, Relaxed);
        Self {
            worker: worker.clone(),
            of_listener: of_listener.clone(),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.of_listener.fetch_sub(1, Relaxed);
        self.worker.edge.handshakes.end();
    }
}

/// A connection whose handshake was begun.
struct Beginner {
    // Dropped last, as it is declared first.
    counted: OpenConnection,
    worker: Arc<Worker>,
    connecting: Connecting,
    tls: Arc<QuicHandshake>,
    client: IpAddr,
    is_proxy: bool,
    slot: ConnectionSlot,
    under_way: UnderWay,
}

/// Serves one connection until either side ends it.
async fn serve(beginner: Beginner, ending: Shutdown) {
    let Beginner {
        counted: _counted,
        worker,
        connecting,
        tls,
        client: address,
        is_proxy,
        mut slot,
        under_way,
    } = beginner;
    let handshakes = &worker.edge.handshakes;
    let limit = worker.edge.clients.handshake_timeout;
    let connected = match tokio::time::timeout(limit, connecting).await {
        Ok(connected) => connected.map_err(|error| refusal_of(&error, &tls)),
        Err(_) => Err(Refusal::TimedOut),
    };
    drop((under_way, tls));
    let connection = match connected {
        Ok(connection) => connection,
        Err(refusal) => return handshakes.note(HandshakeResult::Refused(refusal)),
    };
    let session = connection.handshake_data();
    let Some(session) = session.and_then(|data| data.downcast::<QuicSession>().ok()) else {
        return handshakes.note(HandshakeResult::Refused(Refusal::Internal));
    };
    handshakes.note(match session.is_resumed {
        true => HandshakeResult::Resumed,
        false => HandshakeResult::Full,
    });
    // The time to a proxy says nothing about its clients.
    if !is_proxy && let Some(round_trip) = round_trip(&connection) {
        worker.note_round_trip(address, round_trip);
    }

    let tls = TlsInfo::of_quic(*session);
    tracing::debug!(server_name = tls.server_name, "a client speaks QUIC");
    let client = ClientConnection::new(address, "https").with_tls(tls);
    let client = match is_proxy {
        true => client.through_proxy(),
        false => client,
    };
    let phase = Arc::<Phase>::default();
    slot.enter(Ends::Quic(connection.clone()), &phase);
    let opened = http3::Opened {
        connection,
        phase,
        slot: Some(slot),
    };
    Box::pin(http3::serve(worker, opened, client, ending)).await;
}

/// The smallest round-trip time that was measured; `None` before the first measurement.
fn round_trip(connection: &quinn::Connection) -> Option<Duration> {
    let least = connection.min_rtt();
    let measured = match least {
        // Larger ones are no new least one.
        INITIAL_ROUND_TRIP => connection.rtt(),
        least => least,
    };
    (measured != INITIAL_ROUND_TRIP).then_some(measured)
}

/// Why a handshake failed: by what TLS says, else by how the connection ended.
fn refusal_of(error: &ConnectionError, tls: &QuicHandshake) -> Refusal {
    if let Some(refusal) = tls.refusal() {
        return refusal;
    }
    match error {
        ConnectionError::TimedOut => Refusal::TimedOut,
        ConnectionError::ConnectionClosed(close) => match is_of_tls(close.error_code.into()) {
            true => Refusal::ClientAlert,
            false => Refusal::Left,
        },
        ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed => Refusal::Left,
        ConnectionError::VersionMismatch => Refusal::Version,
        ConnectionError::TransportError(_) => Refusal::Junk,
        ConnectionError::CidsExhausted => Refusal::Internal,
    }
}

/// Whether an error code is that of an alert of TLS (RFC 9001 section 4.8).
fn is_of_tls(code: u64) -> bool {
    (0x100..0x200).contains(&code)
}

/// What the connections to a listener with the address `local` have in common.
fn server_config(quic: &Quic, limits: &ClientLimits, local: IpAddr) -> quinn::ServerConfig {
    let mut config = quic::server_config(&quic.keys, quic.side.handshake(local));
    config
        .transport_config(Arc::new(transport_config(limits)))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_ALL)
        .migration(true);
    config
}

fn transport_config(limits: &ClientLimits) -> TransportConfig {
    // HTTP/3 closes idle connections itself. A client that has vanished is given up after that time,
    // and not while a response to it may still be stalled.
    let idle = limits.idle_timeout.max(limits.write_timeout);
    let idle = IdleTimeout::try_from(idle).unwrap_or_else(|_| VarInt::MAX.into());
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold((PACKETS_PER_ACK - 1).into());
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(None)
        .max_concurrent_bidi_streams(limits.http3_streams_max.into())
        .max_concurrent_uni_streams(UNI_STREAMS_MAX.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .crypto_buffer_size(CRYPTO_BYTES)
        .initial_rtt(INITIAL_ROUND_TRIP)
        .datagram_receive_buffer_size(None)
        .ack_frequency_config(Some(acknowledgements))
        .congestion_controller_factory(Arc::new(CubicConfig::default()));
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_a_connection_depends_on_load_and_address() {
        use Beginning::{Accepted, Refused, Retried};
        // Ending, many, validated.
        let table = [
            (false, false, false, Accepted),
            (false, false, true, Accepted),
            (false, true, false, Retried),
            (false, true, true, Accepted),
            (true, false, false, Refused),
            (true, false, true, Refused),
            (true, true, false, Refused),
            (true, true, true, Refused),
        ];
        for (is_ending, has_many, is_validated, expected) in table {
            let load = Load {
                is_ending,
                has_many,
            };
            assert_eq!(
                decide(load, is_validated),
                expected,
                "{load:?} {is_validated}"
            );
        }
    }

    #[test]
    fn only_alerts_of_tls_are_objections_of_the_client() {
        for (code, expected) in [(0x0ff, false), (0x100, true), (0x1ff, true), (0x200, false)] {
            assert_eq!(is_of_tls(code), expected, "{code:#x}");
        }
    }

    #[test]
    fn the_page_lists_what_becomes_of_connections_that_begin() {
        const PAGE: &str = include_str!("../../../docs/http3.md");
        let listed = crate::documented::first_column(PAGE, "| `result` | Meaning |");
        let labels = std::collections::BTreeSet::from(Beginning::ALL.map(Beginning::label));
        assert_eq!(labels, listed);
    }

    #[test]
    fn every_beginning_has_a_counter_of_its_own() {
        let tickets = Arc::<Tickets>::default();
        let options = nearcast_net::tls::ServerOptions {
            default_host: None,
            allows_1_2: false,
            alpn: Vec::new(),
            tickets: None,
        };
        let (store, _) = nearcast_net::tls::Store::open(Vec::new(), options);
        let quic = Quic::new(&ServerSide::new(Arc::new(store)), &tickets);
        for beginning in Beginning::ALL {
            quic.note(beginning);
            assert_eq!(quic.count(beginning), 1, "{beginning:?}");
        }
    }
}
