//! TLS: certificate files, the certificate for a server name, handshakes, session tickets, and the
//! authorities that clients trust.
//!
//! - [`files`] reads PEM files; [`identity`] is a certificate with its key, and the hosts that it
//!   covers; [`client`] the settings of a client.
//! - [`store`] holds the certificates of a listener by server name, and reads changed files again.
//! - [`single`] is the configuration of a listener with one certificate.
//! - [`handshake`] accepts one connection within a time-out, and says why where it does not;
//!   [`tickets`] encrypts session tickets, so that any node with the same keys resumes a session.
//! - [`challenge`] shows authorities the certificates that they ask for before they issue one.
//!
//! - [`quic`] is the handshake of a QUIC connection, with the same certificates.
//!
//! Follows RFC 8446 (TLS 1.3), RFC 5246 (TLS 1.2), RFC 6066 section 3 (server names), RFC 7301
//! (ALPN), RFC 8737 (challenges) and RFC 9525 (names in certificates). Must not know the fleet file.

mod challenge;
pub mod client;
mod files;
mod handshake;
mod identity;
mod quic;
mod single;
mod store;
mod tickets;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use challenge::{ChallengeError, Challenges};
pub use client::{ClientRoots, client_config};
pub use files::FileError;
pub use handshake::{HandshakeError, HandshakeTurns, Refusal, ServerSide, TlsAccepted};
pub use identity::Identity;
pub use quic::{QuicHandshake, QuicSession, QuicSide};
pub use single::single_server;
pub use store::{CertificateState, Event, NoCertificate, PairFiles, ServerOptions, Store};
pub(crate) use tickets::Keys;
pub use tickets::{TicketKey, Tickets};

/// The cryptography of all TLS here.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    let provider = PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider()));
    provider.clone()
}

#[cfg(test)]
mod tests;
