//! What a QUIC server with several worker threads needs around the QUIC library (quinn), which
//! knows one socket: which worker gets a packet, and keys that all workers and nodes share.
//!
//! - [`route`] is the program by which the kernel gives each packet to the worker whose number is in
//!   its connection ID, and keeps first packets of new connections apart from those of open ones;
//!   [`kernel`] attaches it.
//! - [`socket`] opens a worker's sockets and reads them: packets of open connections first.
//! - [`cid`] makes connection IDs; [`keys`] derives the keys of tokens and of stateless resets;
//!   [`token`] encrypts tokens, and remembers those that were used.
//!
//! Follows RFC 9000 (QUIC) and RFC 8999 (what holds for all its versions). TLS is in
//! [`crate::tls`]. Must not know HTTP.

mod cid;
mod kernel;
mod keys;
mod route;
mod socket;
mod token;

use std::io;
use std::sync::Arc;

pub use keys::QuicKeys;
pub use socket::{Pressure, WorkerSockets, open};

/// Time between two stateless resets of one endpoint: a reset costs a client that is not there any
/// more nothing, and one that is there a time-out.
const RESET_INTERVAL: std::time::Duration = std::time::Duration::from_millis(1);
/// The version of QUIC that is served (RFC 9000 section 15).
const VERSIONS: [u32; 1] = [1];

/// An endpoint of the worker that calls it, within its runtime, and the pressure of new connections
/// on it. `server` gets the keys of tokens.
///
/// # Errors
/// The system's, if a socket cannot be used.
pub fn endpoint(
    sockets: WorkerSockets,
    keys: &Arc<QuicKeys>,
    server: quinn::ServerConfig,
) -> io::Result<(quinn::Endpoint, Arc<Pressure>)> {
    let mut config = quinn::EndpointConfig::new(Arc::new(keys::ResetKey(keys.clone())));
    let (worker, workers, of_ids) = (sockets.worker, sockets.workers, keys.clone());
    config
        .cid_generator(move || Box::new(cid::WorkerIds::new(worker, workers, of_ids.clone())))
        .supported_versions(VERSIONS.to_vec())
        .min_reset_interval(RESET_INTERVAL);
    let (socket, pressure) = socket::Merged::new(sockets)?;
    let endpoint = quinn::Endpoint::new_with_abstract_socket(
        config,
        Some(server),
        Arc::new(socket),
        Arc::new(quinn::TokioRuntime),
    )?;
    Ok((endpoint, pressure))
}

/// The configuration of a server with these keys.
pub fn server_config(
    keys: &Arc<QuicKeys>,
    crypto: Arc<dyn quinn::crypto::ServerConfig>,
) -> quinn::ServerConfig {
    let mut config = quinn::ServerConfig::new(crypto, Arc::new(token::TokenKey(keys.clone())));
    let mut validation = quinn::ValidationTokenConfig::default();
    validation
        .lifetime(token::LIFETIME)
        .sent(token::SENT)
        .log(Arc::new(token::UsedTokensOf(keys.clone())));
    config
        .validation_token_config(validation)
        .retry_token_lifetime(token::RETRY_LIFETIME);
    config
}

pub(crate) fn now_unix_s() -> u64 {
    rustls::pki_types::UnixTime::now().as_secs()
}
