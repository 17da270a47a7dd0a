//! The listener of an origin: limit of connections, time-outs, drain. Knows sockets, not the content
//! of a response.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use nearcast_fleet::config::Fleet;
use nearcast_net::accept::{Acceptor, Connections};
use nearcast_net::serve::{HeadLimit, Limits, serve_connection};
use nearcast_net::shutdown::Shutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::handler::{Handler, handle};

/// Connections open at once.
const CONNECTIONS_MAX: usize = 4096;
/// How long an open connection is kept for one more request after shutdown was requested.
const LAST_REQUEST_MAX: Duration = Duration::from_secs(1);
/// Limits of a connection: 75 s for a request head, the wait for it included, 64 KiB and 100 fields;
/// a client may read nothing of a response for 30 s.
const LIMITS: Limits = Limits {
    head_time_max: Duration::from_secs(75),
    head: HeadLimit::Head {
        bytes_max: 64 << 10,
        fields_max: 100,
    },
    write_stall_max: Some(Duration::from_secs(30)),
};

/// Serves until shutdown is requested, then lets connections finish within the fleet's `finish_max`.
pub(crate) async fn serve(
    listener: TcpListener,
    handler: Arc<Handler>,
    fleet: watch::Receiver<Arc<Fleet>>,
    mut shutdown: Shutdown,
) {
    let mut acceptor = Acceptor::new(
        listener,
        |error| tracing::debug!(%error, "a connection was not accepted"),
    );
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = Connections::default();
    while let Some((stream, _, permit)) = acceptor.accept_permitted(&permits, &mut shutdown).await {
        let (handler, shutdown) = (handler.clone(), shutdown.clone());
        connections.spawn(async move {
            handler.metrics.connections.inc();
            answer_requests(stream, handler.clone(), shutdown).await;
            handler.metrics.connections.dec();
            drop(permit);
        });
    }
    drop(acceptor);

    let finish_max = fleet.borrow().drain.finish_max;
    let open = connections.drain(finish_max, &mut shutdown).await;
    if open > 0 {
        tracing::warn!(
            open,
            limit = ?finish_max,
            "connections did not finish in time and are closed (finish_max)"
        );
    }
}

async fn answer_requests(stream: TcpStream, handler: Arc<Handler>, mut shutdown: Shutdown) {
    let service = service_fn(move |request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(handle(handler, request).await) }
    });
    let end = async move {
        shutdown.requested().await;
        // A client may have sent a request before it could see that the connection ends.
        tokio::time::sleep(LAST_REQUEST_MAX).await;
    };
    let _ = stream.set_nodelay(true);
    if let Err(error) = serve_connection(stream, LIMITS, service, end).await {
        tracing::debug!(%error, "a connection ended early");
    }
}
