//! Listeners of one worker thread: accepting connections under a limit, and drain.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue};
use nearcast_http_rules::status::{PROXY_STATUS, ProxyError};
use nearcast_net::quic::WorkerSockets;
use nearcast_net::shutdown::{self, Shutdown};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

use super::connection::{self, Accepted, ListenerKind};
use super::http1::first::{self, First};
use super::http1::write::write_head;
use super::quic::{self, QuicListener};
use crate::edge::Worker;
use crate::kernel;
use crate::proxies::ProxyRefusal;
use crate::request::check::ClientConnection;

/// How long accepting pauses when the system has no more sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections that are accepted before the other tasks of the worker get a turn.
const ACCEPTS_A_TURN: usize = 32;
/// One connection of so many that wait together is asked for its round-trip time.
const ROUND_TRIPS_OF: usize = 8;

/// Counts the open connections of one worker, and wakes the drain when there are none.
#[derive(Debug, Default)]
pub(crate) struct OpenConnections {
    count: AtomicU64,
    closed: Notify,
}

/// Counts one connection for as long as it exists.
pub(super) struct OpenConnection {
    open: Arc<OpenConnections>,
}

impl OpenConnection {
    pub(super) fn new(open: &Arc<OpenConnections>) -> Self {
        open.count.fetch_add(1, Ordering::Relaxed);
        Self { open: open.clone() }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if self.open.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.open.closed.notify_waiters();
        }
    }
}

/// When workers stop accepting, and how long open connections may take to finish after that.
#[derive(Debug, Clone)]
pub(crate) struct Drain {
    /// The limit, once the drain begins.
    pub(crate) finish_max: watch::Receiver<Option<Duration>>,
    /// Cuts the drain short.
    pub(crate) shutdown: Shutdown,
}

/// A listener for clients.
#[derive(Debug)]
pub(crate) struct ClientListener {
    pub(crate) socket: std::net::TcpListener,
    pub(crate) kind: ListenerKind,
    /// QUIC on the same address.
    pub(crate) quic: Option<WorkerSockets>,
}

/// Serves until the drain begins, then waits for connections to finish within the limit.
pub(crate) async fn serve(worker: Arc<Worker>, listeners: Vec<ClientListener>, drain: Drain) {
    let Drain {
        mut finish_max,
        mut shutdown,
    } = drain;
    let open = Arc::new(OpenConnections::default());
    // The worker's own, so that connections of different threads share no lock.
    let (end, ending) = shutdown::channel();
    let mut accepting = Vec::new();
    let mut endpoints = Vec::new();
    for listener in listeners {
        let quic = listener.quic.map(|sockets| {
            QuicListener::new(worker.clone(), sockets, open.clone(), ending.clone())
        });
        match quic.transpose() {
            Ok(None) => {}
            Ok(Some(quic)) => {
                endpoints.push(quic.endpoint());
                tokio::spawn(quic.accept());
            }
            Err(error) => tracing::error!(%error, "a socket for QUIC cannot be used"),
        }
        match kernel::wait_at(listener.socket) {
            Ok(socket) => accepting.push(tokio::spawn(accept(
                worker.clone(),
                socket,
                listener.kind,
                open.clone(),
                ending.clone(),
            ))),
            Err(error) => tracing::error!(%error, "a listener cannot be used"),
        }
    }
    // An error means that the sender was dropped: then connections are not waited for.
    let limit = finish_max
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|limit| *limit)
        .unwrap_or_default();
    end.shut_down();
    for task in accepting {
        let _ = task.await;
    }
    let closed = async {
        loop {
            let next = open.closed.notified();
            if open.count.load(Ordering::Relaxed) == 0 {
                return;
            }
            next.await;
        }
    };
    if !shutdown.drained(limit, closed).await {
        let connections = open.count.load(Ordering::Relaxed);
        tracing::warn!(
            connections,
            ?limit,
            "connections did not finish in time and are closed (finish_max)"
        );
    }
    quic::end(&endpoints).await;
}

/// Accepts connections without Tokio's own socket for them, as those that are answered at once
/// never need to be registered with it.
async fn accept(
    worker: Arc<Worker>,
    listener: AsyncFd<std::net::TcpListener>,
    kind: ListenerKind,
    open: Arc<OpenConnections>,
    mut ending: Shutdown,
) {
    let begin = |accepted, number: usize, ending: &Shutdown| {
        let is_measured = number.is_multiple_of(ROUND_TRIPS_OF);
        begin(&worker, accepted, kind, is_measured, &open, ending);
    };
    loop {
        let ready = tokio::select! {
            biased;
            ready = listener.readable() => ready,
            () = ending.requested() => break,
        };
        let mut error = ready.as_ref().err().map(|error| error.kind().into());
        if let Ok(mut ready) = ready {
            for number in 0..ACCEPTS_A_TURN {
                match ready.try_io(|listener| kernel::accept(listener.get_ref())) {
                    Ok(Ok(accepted)) => begin(accepted, number, &ending),
                    Ok(Err(failed)) if is_of_one_connection(&failed) => {}
                    Ok(Err(failed)) => {
                        error = Some(failed);
                        break;
                    }
                    Err(_) => break,
                }
                // Connections that are being closed get a turn.
                if worker.edge.connections.are_slots_scarce() {
                    break;
                }
            }
        }
        match error {
            None => tokio::task::yield_now().await,
            Some(error) => {
                tracing::debug!(%error, "cannot accept connections; trying again");
                worker.edge.connections.note_no_files();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Connections in the queue would be reset with the listener: they are served first.
    while let Ok(accepted) = kernel::accept(listener.get_ref()) {
        begin(accepted, 0, &ending);
    }
}

fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}

fn begin(
    worker: &Arc<Worker>,
    (stream, address): (std::net::TcpStream, SocketAddr),
    kind: ListenerKind,
    is_measured: bool,
    open: &Arc<OpenConnections>,
    ending: &Shutdown,
) {
    let edge = &worker.edge;
    let client = address.ip().to_canonical();
    let is_proxy = edge.sites.load().trusted_proxies.contains(client);
    if kind.has_proxy_header && !is_proxy {
        tracing::debug!(%client, "a connection is closed: it came from no trusted proxy");
        return edge.proxy_counters.note_refused(&ProxyRefusal::Stranger);
    }
    // The clients of a proxy count one by one once they are known.
    let admitted = match is_proxy {
        true => edge.connections.admit_proxy(worker.number),
        false => edge.connections.admit(worker.number, client),
    };
    let slot = match admitted {
        Ok(slot) => slot,
        Err(_) => return turn_away(&edge.name, &stream),
    };
    // The time to a proxy says nothing about its clients.
    if is_measured
        && !is_proxy
        && let Some(round_trip) = kernel::round_trip(&stream)
    {
        worker.note_round_trip(client, round_trip);
    }
    // A client that wants one response often sends its request with the end of its handshake.
    let mut begun = None;
    if kind.is_plain() && !is_proxy {
        match first::answer(worker, ClientConnection::new(client, "http"), &stream) {
            First::Ended => return,
            First::Begun(first) => begun = first,
        }
    }

    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "a connection is closed"),
    };
    let counted = OpenConnection::new(open);
    let accepted = Accepted {
        stream,
        address: client,
        is_proxy,
        kind,
        slot,
        begun,
    };
    // Spawned as it is: a block around it would reserve memory for it twice.
    tokio::spawn(connection::serve(
        worker.clone(),
        accepted,
        counted,
        ending.clone(),
    ));
}

/// Answers a connection that is refused with the reason, as far as that can be sent at once without
/// waiting.
pub(super) fn turn_away(name: &str, stream: &impl AsFd) {
    let mut head = Vec::with_capacity(256);
    let error = ProxyError::ConnectionLimitReached;
    let reason = "too many connections are open; try again\n";
    let mut fields = HeaderMap::new();
    fields.insert(PROXY_STATUS, error.proxy_status(name));
    fields.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    fields.insert(CONNECTION, HeaderValue::from_static("close"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    fields.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    fields.insert(CONTENT_LENGTH, HeaderValue::from(reason.len()));
    write_head(&mut head, error.status(), &fields);
    head.extend_from_slice(b"\r\n");
    head.extend_from_slice(reason.as_bytes());
    let _ = socket2::SockRef::from(stream).send(&head);
}
