//! The server's side of one handshake, within a time-out, and why it fails.
//!
//! Its bytes are bounded: rustls accepts one handshake message of at most 64 KiB at a time, and few
//! messages that lead nowhere (empty records, warnings, compatibility messages).

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::poll_immediate;
use rustls::server::Acceptor;
use rustls::{AlertDescription, Error, PeerIncompatible};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::challenge::Challenges;
use super::identity::Identity;
use super::store::{NoCertificate, Store};
use crate::linger::{After, drain_input};

/// First byte of a TLS record with a handshake message (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// Methods of HTTP by whose first letters a plain request is recognised.
const METHODS: [&[u8]; 9] = [
    b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"TRAC", b"CONN",
];
/// Begins HTTP/2 with prior knowledge (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI ";

/// Why a handshake led to no requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It took too long.
    TimedOut,
    /// The client left.
    Left,
    /// A plain HTTP request.
    PlainHttp,
    /// No TLS, or TLS that breaks its rules.
    Junk,
    /// The client names no host, and there is no default certificate.
    NoName,
    /// No certificate covers the host that the client names.
    UnknownName,
    /// No version of TLS in common.
    Version,
    /// No cipher suite, group or signature scheme in common.
    Mismatch,
    /// No protocol in common (ALPN).
    NoProtocol,
    /// The client objected, perhaps to the certificate.
    ClientAlert,
    /// An error of this side.
    Internal,
    /// It was complete: an authority has seen the certificate of a challenge, and asks for nothing
    /// else (RFC 8737 section 3).
    Challenge,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::TimedOut,
        Self::Left,
        Self::PlainHttp,
        Self::Junk,
        Self::NoName,
        Self::UnknownName,
        Self::Version,
        Self::Mismatch,
        Self::NoProtocol,
        Self::ClientAlert,
        Self::Internal,
        Self::Challenge,
    ];

    /// Its name in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::TimedOut => "timeout",
            Self::Left => "left",
            Self::PlainHttp => "plain-http",
            Self::Junk => "junk",
            Self::NoName => "no-name",
            Self::UnknownName => "unknown-name",
            Self::Version => "version",
            Self::Mismatch => "mismatch",
            Self::NoProtocol => "no-protocol",
            Self::ClientAlert => "client-alert",
            Self::Internal => "internal",
            Self::Challenge => "challenge",
        }
    }
}

/// A failed handshake.
#[derive(Debug)]
pub struct HandshakeError {
    /// Why.
    pub refusal: Refusal,
    /// The connection, where the client was sent nothing: it expects an answer in plain HTTP.
    pub plain: Option<TcpStream>,
}

impl HandshakeError {
    fn new(refusal: Refusal) -> Self {
        Self {
            refusal,
            plain: None,
        }
    }
}

/// A connection whose handshake is complete.
#[derive(Debug)]
pub struct TlsAccepted {
    /// The connection.
    pub stream: TlsStream<TcpStream>,
    /// The certificate that it was shown, now or in the session that it resumed.
    pub identity: Arc<Identity>,
}

/// How many handshakes may compute before other tasks of the same thread get their turn: a
/// signature takes as long as several hits.
#[derive(Debug)]
pub struct HandshakeTurns(Semaphore);

impl HandshakeTurns {
    /// So many handshakes.
    pub fn new(count: usize) -> Self {
        Self(Semaphore::new(count))
    }
}

/// The server's side of handshakes.
#[derive(Debug, Clone)]
pub struct ServerSide {
    store: Arc<Store>,
    challenges: Arc<Challenges>,
}

impl ServerSide {
    /// With these certificates.
    pub fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            challenges: Arc::default(),
        }
    }

    /// What it shows authorities.
    pub fn challenges(&self) -> &Arc<Challenges> {
        &self.challenges
    }

    /// Its certificates.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Performs the handshake of a connection.
    ///
    /// # Errors
    /// It failed, or was not complete within `limit`. The client was sent the alert that tells why,
    /// where the rules of TLS have one.
    pub async fn accept(
        &self,
        stream: TcpStream,
        limit: Duration,
        turns: Option<&HandshakeTurns>,
    ) -> Result<TlsAccepted, HandshakeError> {
        let handshake = self.handshake(stream, turns);
        match tokio::time::timeout(limit, handshake).await {
            Ok(result) => result,
            Err(_) => Err(HandshakeError::new(Refusal::TimedOut)),
        }
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        turns: Option<&HandshakeTurns>,
    ) -> Result<TlsAccepted, HandshakeError> {
        if let Some(refusal) = look_ahead(&stream).await? {
            return match refusal {
                Refusal::PlainHttp => Err(HandshakeError {
                    refusal,
                    plain: Some(stream),
                }),
                refusal => Err(HandshakeError::new(refusal)),
            };
        }
        let local = stream
            .local_addr()
            .map_err(|_| HandshakeError::new(Refusal::Left))?;
        let local = local.ip().to_canonical();
        let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let start = match (&mut acceptor).await {
            Ok(start) => start,
            Err(error) => {
                if let Some(stream) = acceptor.take_io() {
                    linger(stream).await;
                }
                return Err(HandshakeError::new(refusal_of(&error)));
            }
        };
        let question = self.challenges.find(&start.client_hello());
        if let Some(config) = question {
            let accept = start.into_stream(config).into_fallible();
            return Err(HandshakeError::new(match in_turn(accept, turns).await {
                Ok(stream) => {
                    end(stream).await;
                    Refusal::Challenge
                }
                Err((error, stream)) => failed(&error, stream).await,
            }));
        }
        let shown = match self.store.choose(&start.client_hello(), local) {
            Ok(shown) => shown,
            Err(why) => {
                refuse(start.io, AlertDescription::UnrecognisedName).await;
                return Err(HandshakeError::new(match why {
                    NoCertificate::NoName => Refusal::NoName,
                    NoCertificate::UnknownName => Refusal::UnknownName,
                }));
            }
        };

        let accept = start.into_stream(shown.config).into_fallible();
        match in_turn(accept, turns).await {
            Ok(stream) => Ok(TlsAccepted {
                stream,
                identity: shown.identity,
            }),
            Err((error, stream)) => Err(HandshakeError::new(failed(&error, stream).await)),
        }
    }
}

/// Computes the costly first step, which signs, when it is its turn, and then waits for the rest.
async fn in_turn<T>(work: impl Future<Output = T>, turns: Option<&HandshakeTurns>) -> T {
    let mut work = pin!(work);
    if let Some(turns) = turns
        && let Ok(turn) = turns.0.acquire().await
    {
        let first = poll_immediate(&mut work).await;
        // Held until the other tasks had their turn.
        tokio::task::yield_now().await;
        drop(turn);
        if let Some(done) = first {
            return done;
        }
    }
    work.await
}

/// Looks at a connection's first bytes without taking them: a reason to begin no handshake.
async fn look_ahead(stream: &TcpStream) -> Result<Option<Refusal>, HandshakeError> {
    let mut first = [0; 4];
    let length = match stream.peek(&mut first).await {
        Ok(0) | Err(_) => return Err(HandshakeError::new(Refusal::Left)),
        Ok(length) => length,
    };
    let first = &first[..length];
    if first[0] == HANDSHAKE_RECORD {
        return Ok(None);
    }
    let is_http = |method: &&[u8]| method.starts_with(first);
    Ok(Some(
        match METHODS.iter().chain([&HTTP2_PREFACE]).any(is_http) {
            true => Refusal::PlainHttp,
            false => Refusal::Junk,
        },
    ))
}

/// Sends a fatal alert in place of a ServerHello, and ends the connection (RFC 8446 section 6.2).
async fn refuse(stream: TcpStream, alert: AlertDescription) {
    // An alert record, version 1.2 on the wire; its level is fatal.
    let record = [21, 3, 3, 0, 2, 2, u8::from(alert)];
    // A connection whose peer has sent only a ClientHello takes seven bytes at once, or never.
    let _ = stream.try_write(&record);
    linger(stream).await;
}

/// Ends a connection whose handshake failed.
async fn failed(error: &io::Error, stream: TcpStream) -> Refusal {
    let refusal = refusal_of(error);
    if refusal != Refusal::Left {
        linger(stream).await;
    }
    refusal
}

/// Ends a connection after its handshake.
async fn end(mut stream: TlsStream<TcpStream>) {
    // An error means that the client has left.
    let _ = stream.shutdown().await;
    let (stream, _) = stream.into_inner();
    linger(stream).await;
}

async fn linger(mut stream: TcpStream) {
    let _ = socket2::SockRef::from(&stream).shutdown(std::net::Shutdown::Write);
    drain_input(&mut stream, After::Alert, None).await;
}

pub(super) fn refusal_of(error: &io::Error) -> Refusal {
    let inner = error.get_ref().and_then(|error| error.downcast_ref());
    match inner {
        Some(Error::NoApplicationProtocol) => Refusal::NoProtocol,
        Some(Error::AlertReceived(_)) => Refusal::ClientAlert,
        Some(Error::PeerIncompatible(reason)) => match reason {
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            // What clients before TLS 1.2 do not have is missed before their version is looked at.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired => Refusal::Version,
            _ => Refusal::Mismatch,
        },
        Some(
            Error::General(_)
            | Error::FailedToGetCurrentTime
            | Error::FailedToGetRandomBytes
            | Error::EncryptError,
        ) => Refusal::Internal,
        Some(_) => Refusal::Junk,
        None => Refusal::Left,
    }
}
