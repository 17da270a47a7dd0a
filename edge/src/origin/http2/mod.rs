//! HTTP/2 towards origins that offer it over TLS: one connection carries many requests.
//!
//! A [`Session`] is the handle of one connection; its frames are read and written by a task of its own,
//! which also detects a dead origin by PING. `exchange` sends one request on it, `body` has the bodies.
//! Which session a request uses, and how many there are, is decided in
//! [`connections`](super::connections). Follows RFC 9113.

mod body;
mod exchange;
mod failure;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use h2::{Ping, PingPong};
use nearcast_fleet::config::OriginLimits;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, oneshot, watch};

pub(super) use self::body::ResponseBody;
pub(super) use self::exchange::exchange;
pub(super) use self::failure::{Failed, Processed};
use super::OriginError;

/// The name of HTTP/2 over TLS in ALPN (RFC 9113 section 3.2).
pub(super) const ALPN: &[u8] = b"h2";

/// Requests that one connection carries at a time, if the origin permits as many.
pub(super) const STREAMS_MAX: usize = 32;
/// Bytes of one response that may wait for its reader. This limits a single response to as many bytes
/// for each round trip.
const STREAM_WINDOW: u32 = 512 << 10;
/// Bytes of all responses on a connection that may wait for their readers: as many as all of its streams
/// may hold, so that responses whose readers are slow never block the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX as u32;
/// Bytes of one request body that may wait to be written.
const SEND_BYTES_MAX: usize = 128 << 10;
/// Requests before the origin's SETTINGS are known; further ones wait for these, so that none is refused.
const STREAMS_BEFORE_SETTINGS: usize = 1;
/// How RFC 9113 section 6.5.2 counts the size of a field, beyond its name and value.
const FIELD_OVERHEAD: u64 = 32;

/// Time between two PINGs.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Time in which an origin must answer a PING.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the last frames of a connection that is closed.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// The handle of one connection. The connection is closed when all handles and streams are dropped.
#[derive(Clone)]
pub(super) struct Session {
    sender: SendRequest<Bytes>,
    shared: Arc<Shared>,
}

struct Shared {
    /// It gets no further requests.
    is_retired: AtomicBool,
    /// Whether the origin's SETTINGS were received. Closes when the connection ends.
    settled: watch::Receiver<bool>,
    /// A request on it timed out: it gets no further ones until the origin answers a PING.
    is_doubted: AtomicBool,
    doubted: Arc<Notify>,
    /// Wakes the connection's task when it is dropped, so that the connection is closed.
    _closing: oneshot::Sender<()>,
}

impl Session {
    /// Starts HTTP/2 on a stream on which TLS has selected it.
    pub(super) async fn start<S>(stream: S, limits: &OriginLimits) -> Result<Self, OriginError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, mut connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(header_list_max(limits))
            .max_send_buffer_size(SEND_BYTES_MAX)
            .handshake(stream)
            .await
            .map_err(|_| OriginError::Protocol)?;
        let doubted = Arc::new(Notify::new());
        let (settled_tx, settled) = watch::channel(false);
        let (closing_tx, closing) = oneshot::channel();
        let shared = Arc::new(Shared {
            is_retired: AtomicBool::new(false),
            settled,
            is_doubted: AtomicBool::new(false),
            doubted: doubted.clone(),
            _closing: closing_tx,
        });
        let pings = connection
            .ping_pong()
            .expect("it is taken once for each connection");
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                // The streams report how it ended.
                _ = &mut connection => {}
                // Dropping the connection ends its streams.
                () = keep_alive(pings, weak, doubted, settled_tx) => {}
                _ = closing => close(connection).await,
            }
        });
        Ok(Self { sender, shared })
    }

    /// Whether it takes further requests: it is open, has had no GOAWAY, and is not in doubt.
    pub(super) fn is_usable(&self) -> bool {
        let flags = [&self.shared.is_retired, &self.shared.is_doubted];
        if flags.iter().any(|flag| flag.load(Ordering::Acquire)) {
            return false;
        }
        let mut context = Context::from_waker(Waker::noop());
        matches!(
            self.sender.clone().poll_ready(&mut context),
            Poll::Ready(Ok(()))
        )
    }

    /// Requests that it may carry at a time, by the origin's setting and our own limit.
    pub(super) fn streams_max(&self) -> usize {
        if !*self.shared.settled.borrow() {
            return STREAMS_BEFORE_SETTINGS;
        }
        self.sender.current_max_send_streams().min(STREAMS_MAX)
    }

    /// Waits until the origin's SETTINGS are known; `false` when the connection ended before.
    pub(super) fn settled(&self) -> impl Future<Output = bool> + Send + use<> {
        let mut settled = self.shared.settled.clone();
        async move { settled.wait_for(|is_settled| *is_settled).await.is_ok() }
    }

    /// Sends no further requests on it; those under way go on.
    fn retire(&self) {
        self.shared.is_retired.store(true, Ordering::Release);
    }

    /// Asks the origin for a sign of life at once, and sends no further requests until it gives one.
    fn doubt(&self) {
        self.shared.is_doubted.store(true, Ordering::Release);
        self.shared.doubted.notify_one();
    }
}

/// The largest decoded head that is received. Larger ones than the site permits are received up to this
/// size, so that they can be named as too large.
fn header_list_max(limits: &OriginLimits) -> u32 {
    let permitted = limits.head_bytes_max.0 + FIELD_OVERHEAD * limits.fields_max as u64;
    u32::try_from(2 * permitted).unwrap_or(u32::MAX)
}

/// Sends PINGs, and returns when the origin does not answer one in time.
async fn keep_alive(
    mut pings: PingPong,
    shared: Weak<Shared>,
    doubted: Arc<Notify>,
    settled: watch::Sender<bool>,
) {
    loop {
        // SETTINGS come before the answer to the first one (RFC 9113 section 3.4).
        let answered = tokio::time::timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await;
        let (Ok(Ok(_)), Some(shared)) = (answered, shared.upgrade()) else {
            return;
        };
        settled.send_replace(true);
        shared.is_doubted.store(false, Ordering::Release);
        drop(shared);
        tokio::select! {
            () = tokio::time::sleep(PING_INTERVAL) => {}
            () = doubted.notified() => {}
        }
    }
}

/// Writes the last frames of a connection.
async fn close<S>(connection: Pin<&mut Connection<S, Bytes>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _ = tokio::time::timeout(CLOSE_MAX, connection).await;
}
