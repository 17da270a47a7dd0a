//! Listener, connection limits, time-outs and drain. Knows sockets, not what a response says.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nearcast_fleet::config::Fleet;
use nearcast_fleet::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use crate::handler::{Handler, handle};

/// Connections open at once.
const CONNECTIONS_MAX: usize = 4096;
/// How long a request head may take, the wait for it on a kept connection included.
const HEAD_TIME_MAX: Duration = Duration::from_secs(75);
/// How long a client may take nothing of a response.
const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Fields of a request head.
const FIELDS_MAX: usize = 100;
/// How long accepting rests when the system has no more sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection is kept for one more request after shutdown was asked for.
const LAST_REQUEST_MAX: Duration = Duration::from_secs(1);

/// Serves until shutdown is asked for, then lets connections finish within the fleet's
/// `finish_max`.
pub(crate) async fn serve(
    listener: TcpListener,
    handler: Arc<Handler>,
    fleet: watch::Receiver<Arc<Fleet>>,
    mut shutdown: Shutdown,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        // A connection that finds no room waits in the kernel's queue, where it costs nothing.
        let accepted = tokio::select! {
            biased;
            () = shutdown.asked() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &room) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => begin(&mut connections, stream, permit, &handler, &shutdown),
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // What waits in the queue would be reset with the listener: it is answered first.
    while let Ok(Ok((stream, permit))) =
        tokio::time::timeout(Duration::ZERO, accept(&listener, &room)).await
    {
        begin(&mut connections, stream, permit, &handler, &shutdown);
    }
    drop(listener);
    let finish_max = fleet.borrow().drain.finish_max;
    if !shutdown
        .drained(finish_max, async {
            while connections.join_next().await.is_some() {}
        })
        .await
    {
        tracing::warn!(limit = ?finish_max, "connections did not finish in time and are closed (finish_max)");
    }
}

fn begin(
    connections: &mut JoinSet<()>,
    stream: TcpStream,
    permit: tokio::sync::OwnedSemaphorePermit,
    handler: &Arc<Handler>,
    shutdown: &Shutdown,
) {
    let (handler, shutdown) = (handler.clone(), shutdown.clone());
    connections.spawn(async move {
        handler.metrics.connections.inc();
        connection(stream, handler.clone(), shutdown).await;
        handler.metrics.connections.dec();
        drop(permit);
    });
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room
        .clone()
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn connection(stream: TcpStream, handler: Arc<Handler>, mut shutdown: Shutdown) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let handler = handler.clone();
        async move { Ok::<_, std::convert::Infallible>(handle(handler, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_headers(FIELDS_MAX)
        .max_header_size(HEAD_BYTES_MAX);
    let socket = StallLimit {
        stream,
        limit: Box::pin(tokio::time::sleep(WRITE_STALL_MAX)),
        is_waiting: false,
    };
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(socket), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = async {
            shutdown.asked().await;
            // A request that is on its way is answered: a client cannot know of the end before it
            // sees it.
            tokio::time::sleep(LAST_REQUEST_MAX).await;
        } => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// A stream whose writes fail when the other side takes nothing for [`WRITE_STALL_MAX`].
struct StallLimit {
    stream: TcpStream,
    limit: Pin<Box<Sleep>>,
    is_waiting: bool,
}

impl StallLimit {
    fn judge<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<std::io::Result<T>>,
    ) -> Poll<std::io::Result<T>> {
        if written.is_ready() {
            self.is_waiting = false;
            return written;
        }
        if !self.is_waiting {
            self.is_waiting = true;
            self.limit.as_mut().reset(Instant::now() + WRITE_STALL_MAX);
        }
        match self.limit.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for StallLimit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for StallLimit {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
