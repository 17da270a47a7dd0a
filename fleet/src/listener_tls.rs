//! TLS of a node's own listeners: control's API and console, and the admin listeners.
//!
//! A listener has one certificate, which the fleet file in force names, or none. Its files are read
//! at the start, and again when the first connection after a change arrives; while a new pair is
//! broken, the one before stays in force. Clients speak HTTP/1.1 (ALPN `http/1.1`). A client that
//! speaks without TLS where there is a certificate is told so ([`Accepted::Unencrypted`]).

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nearcast_net::stamp::Stamp;
use nearcast_net::tls;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::clock::now_unix_s;
use crate::config::{CertificateFiles, Fleet};
use crate::failure::{Failure, FailureKind};

/// Time for a client's first byte and its whole handshake.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// How often the files are compared with what was read of them.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// First byte of a connection with TLS: the type of a record with a handshake message (RFC 8446
/// section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// The certificate that a fleet file gives to a listener; `None` for plain HTTP.
pub type CertificateOf = fn(&Fleet) -> Option<&CertificateFiles>;

/// A connection that a listener may serve.
#[derive(Debug)]
pub enum Accepted {
    /// The listener has no certificate.
    Plain(TcpStream),
    /// The handshake is done.
    Tls(Box<TlsStream<TcpStream>>),
    /// The listener has a certificate, and the client speaks without TLS. Its request must not be
    /// served.
    Unencrypted(TcpStream),
}

/// Why a connection ended before its first request.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeFailed {
    /// It took too long.
    #[error("no TLS handshake within {} s", HANDSHAKE_TIME_MAX.as_secs())]
    TooSlow,
    /// The client closed the connection or broke the protocol.
    #[error("the TLS handshake failed: {0}")]
    Broken(io::Error),
}

impl HandshakeFailed {
    /// Label in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooSlow => "too-slow",
            Self::Broken(_) => "broken",
        }
    }
}

/// The certificate of one listener.
#[derive(Debug)]
pub struct ListenerTls {
    fleet: watch::Receiver<Arc<Fleet>>,
    of: CertificateOf,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    files: Option<CertificateFiles>,
    stamps: [Option<Stamp>; 2],
    looked: Instant,
    /// What is shown: of the files above, or of those before while these are broken.
    config: Option<Arc<ServerConfig>>,
}

impl Current {
    fn read(files: Option<CertificateFiles>, now: Instant) -> Result<Self, tls::FileError> {
        let stamps = stamps(files.as_ref());
        let config = files.as_ref().map(read).transpose()?;
        Ok(Self {
            files,
            stamps,
            looked: now,
            config,
        })
    }
}

impl ListenerTls {
    /// Reads the files. They are read again by the user that the process has now.
    ///
    /// # Errors
    /// [`FailureKind::NoInput`] or [`FailureKind::BadData`] when they cannot be read or used.
    pub fn open(fleet: watch::Receiver<Arc<Fleet>>, of: CertificateOf) -> Result<Self, Failure> {
        let files = of(&fleet.borrow()).cloned();
        let current = Current::read(files, Instant::now()).map_err(|error| {
            let kind = match error {
                tls::FileError::Unreadable { .. } => FailureKind::NoInput,
                tls::FileError::Unusable { .. } => FailureKind::BadData,
            };
            let hint = "see cert and key in [control], admin_cert and admin_key in [fleet]";
            Failure::new(kind, format!("{error}; {hint}"))
        })?;
        Ok(Self {
            fleet,
            of,
            current: Mutex::new(current),
        })
    }

    /// A listener without a certificate, for tests.
    #[cfg(any(test, feature = "testing"))]
    pub fn none() -> Self {
        let fleet = crate::testing::FleetText::new()
            .cluster("ams", &["192.0.2.1"])
            .fleet();
        let fleet = watch::Sender::new(Arc::new(fleet)).subscribe();
        Self::open(fleet, |_| None).expect("it reads no file")
    }

    /// Whether the listener has a certificate now.
    pub fn is_on(&self) -> bool {
        self.config(Instant::now()).is_some()
    }

    /// Prepares a connection for its first request. Cancel-safe: the connection is closed.
    ///
    /// # Errors
    /// [`HandshakeFailed`].
    pub async fn accept(&self, stream: TcpStream) -> Result<Accepted, HandshakeFailed> {
        let _ = stream.set_nodelay(true);
        let Some(config) = self.config(Instant::now()) else {
            return Ok(Accepted::Plain(stream));
        };
        let shaking_hands = async {
            let mut first = [0];
            if stream.peek(&mut first).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if first != [HANDSHAKE_RECORD] {
                return Ok(Accepted::Unencrypted(stream));
            }
            let stream = TlsAcceptor::from(config).accept(stream).await?;
            Ok(Accepted::Tls(Box::new(stream)))
        };
        match tokio::time::timeout(HANDSHAKE_TIME_MAX, shaking_hands).await {
            Ok(accepted) => accepted.map_err(HandshakeFailed::Broken),
            Err(_) => Err(HandshakeFailed::TooSlow),
        }
    }

    /// The configuration of a new connection: of the files as they are, or as they last were good.
    fn config(&self, now: Instant) -> Option<Arc<ServerConfig>> {
        let files = (self.of)(&self.fleet.borrow()).cloned();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = current.files == files;
        if is_same && now.saturating_duration_since(current.looked) < LOOK_EVERY {
            return current.config.clone();
        }
        current.looked = now;
        // The files are small and local; they are read once for each change.
        let stamps = stamps(files.as_ref());
        if is_same && current.stamps == stamps {
            return current.config.clone();
        }
        match Current::read(files.clone(), now) {
            Ok(changed) => {
                tracing::info!(files = ?changed.files, "the certificate of a listener was read");
                *current = changed;
            }
            Err(error) => {
                tracing::error!(%error, "a listener's certificate cannot be used; the one before stays in force");
                (current.files, current.stamps) = (files, stamps);
            }
        }
        current.config.clone()
    }
}

fn stamps(files: Option<&CertificateFiles>) -> [Option<Stamp>; 2] {
    // Without files there is nothing to compare.
    files.map_or([None, None], |files| {
        [&files.cert, &files.key].map(|path| Stamp::of(path))
    })
}

fn read(files: &CertificateFiles) -> Result<Arc<ServerConfig>, tls::FileError> {
    let identity = tls::Identity::load(&files.cert, &files.key)?;
    if let Some(warning) = identity.warning(now_unix_s() as i64) {
        tracing::warn!("the certificate {} {warning}", files.cert.display());
    }
    let mut config = tls::single_server(&identity);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests;
