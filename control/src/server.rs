//! The API's listener: connections under the limits of `admission`, time-outs, drain.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use http::{Method, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nearcast_fleet::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use crate::admission::{Admission, Seat};
use crate::error::ApiError;
use crate::metrics::Metrics;

/// Time for the head of a request, and for a kept connection to send the next one.
const HEAD_TIME_MAX: Duration = Duration::from_secs(15);
/// Largest request head.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Time from a request's head to the head of its response: longer than any wait that a request can
/// ask for.
const RESPONSE_TIME_MAX: Duration = Duration::from_secs(75);
/// A client that takes nothing of an answer for so long has gone.
const WRITE_TIME_MAX: Duration = Duration::from_secs(15);
/// A connection ends after this time whatever it does; event streams go on from their last id on a
/// new one.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(3600);
/// Time for open requests to end when the role does.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until shutdown is asked for, then lets open requests end.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    admission: Arc<Admission>,
    metrics: Metrics,
    mut shutdown: Shutdown,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.asked() => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                connections.spawn(serve_seated(
                    stream,
                    admission.enter(peer.ip()),
                    router.clone(),
                    metrics.clone(),
                    shutdown.clone(),
                ));
            }
            Err(error) => {
                tracing::warn!(%error, "the API's listener cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // What waits in the queue would be reset with the listener: it is answered first.
    while let Some(Ok((stream, peer))) = futures_util::FutureExt::now_or_never(listener.accept()) {
        connections.spawn(serve_seated(
            stream,
            admission.enter(peer.ip()),
            router.clone(),
            metrics.clone(),
            shutdown.clone(),
        ));
    }
    drop(listener);
    let drained = shutdown
        .drained(DRAIN_TIME_MAX, async {
            while connections.join_next().await.is_some() {}
        })
        .await;
    if !drained {
        tracing::warn!(
            open = connections.len(),
            "connections were still open after {DRAIN_TIME_MAX:?}"
        );
    }
}

/// Serves a connection until it ends, or has to give way to another.
async fn serve_seated(
    stream: TcpStream,
    seat: Arc<Seat>,
    router: Router,
    metrics: Metrics,
    shutdown: Shutdown,
) {
    metrics.connections.inc();
    tokio::select! {
        () = serve_connection(stream, router, &metrics, seat.clone(), shutdown) => {}
        () = seat.evicted() => metrics.connections_evicted.inc(),
    }
    metrics.connections.dec();
}

async fn serve_connection(
    stream: TcpStream,
    router: Router,
    metrics: &Metrics,
    seat: Arc<Seat>,
    mut shutdown: Shutdown,
) {
    let _ = stream.set_nodelay(true);
    let routed = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<Incoming>| {
        let routed = routed.clone();
        request.extensions_mut().insert(seat.clone());
        async move {
            let method = method_label(request.method());
            let response =
                match tokio::time::timeout(RESPONSE_TIME_MAX, routed.call(request)).await {
                    Ok(Ok(response)) => response,
                    Err(_) => ApiError::TooBusy("the request could not be answered in time")
                        .into_response(),
                };
            let class = format!("{}xx", response.status().as_u16() / 100);
            metrics
                .requests
                .with_label_values(&[method, class.as_str()])
                .inc();
            Ok::<Response, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(Reading::new(stream)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(CONNECTION_TIME_MAX) => return,
        () = shutdown.asked() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the API ended");
    }
}

/// A socket whose client must go on taking what it is sent.
struct Reading {
    stream: TcpStream,
    stalled: Pin<Box<Sleep>>,
    is_stalled: bool,
}

impl Reading {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            stalled: Box::pin(tokio::time::sleep(WRITE_TIME_MAX)),
            is_stalled: false,
        }
    }

    fn note(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.is_stalled = false;
            return written;
        }
        if !self.is_stalled {
            self.is_stalled = true;
            self.stalled.as_mut().reset(Instant::now() + WRITE_TIME_MAX);
        }
        self.stalled
            .as_mut()
            .poll(context)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Reading {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Reading {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.note(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Limits;
    use axum::routing::get;
    use nearcast_fleet::shutdown::{self, ShutdownTrigger};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    async fn start() -> (SocketAddr, ShutdownTrigger, JoinHandle<()>) {
        let never = || async {
            std::future::pending::<()>().await;
            "never"
        };
        let much = || async { vec![b'x'; 64 << 20] };
        let router = Router::new()
            .route("/", get(|| async { "here" }))
            .route("/never", get(never))
            .route("/much", get(much));
        let admission = Admission::new(Limits {
            strangers: 40,
            of_address: 40,
            operators: 8,
            nodes: 8,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, shutdown) = shutdown::channel();
        (
            address,
            trigger,
            tokio::spawn(serve(listener, router, admission, Metrics::new(), shutdown)),
        )
    }

    /// Sends, and reads until the other side closes.
    async fn exchange(address: SocketAddr, sent: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        String::from_utf8(received).unwrap()
    }

    // Paused time goes on by itself once every task waits, so these limits pass in no time.
    #[tokio::test(start_paused = true)]
    async fn slow_requests_and_slow_answers_end() {
        let (address, trigger, server) = start().await;
        let table = [
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                "HTTP/1.1 200",
                Duration::ZERO,
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: slo", "", HEAD_TIME_MAX),
            (
                "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                "HTTP/1.1 200",
                HEAD_TIME_MAX,
            ),
            (
                "GET /never HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                "HTTP/1.1 503",
                RESPONSE_TIME_MAX,
            ),
        ];
        for (sent, answer, least) in table {
            let begun = Instant::now();
            let received = exchange(address, sent).await;
            assert!(received.starts_with(answer), "{sent:?}: {received:?}");
            assert!(
                begun.elapsed() >= least && begun.elapsed() < least + HEAD_TIME_MAX,
                "{sent:?} took {:?}",
                begun.elapsed()
            );
        }
        trigger.shut_down();
        server.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_open_requests_up_to_its_limit() {
        let (address, trigger, server) = start().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /never HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let mut first = [0; 64];
        assert!(stream.read(&mut first).await.unwrap() > 0);
        let begun = Instant::now();
        trigger.shut_down();
        server.await.unwrap();
        assert!(
            begun.elapsed() >= DRAIN_TIME_MAX && begun.elapsed() < DRAIN_TIME_MAX * 2,
            "{:?}",
            begun.elapsed()
        );
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    }

    #[tokio::test]
    async fn the_quietest_stranger_gives_way_to_a_newcomer() {
        let (address, _trigger, _server) = start().await;
        let mut quiet = Vec::new();
        for _ in 0..100 {
            quiet.push(TcpStream::connect(address).await.unwrap());
        }
        let answer = exchange(
            address,
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        let ended = quiet[0].read(&mut [0; 1]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }

    // The clock stands until the answer has filled the socket's buffers, which takes real time.
    #[tokio::test]
    async fn a_client_that_takes_nothing_of_its_answer_is_left() {
        let (address, _trigger, _server) = start().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /much HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let mut first = [0; 16];
        stream.read_exact(&mut first).await.unwrap();
        tokio::time::pause();
        tokio::time::sleep(WRITE_TIME_MAX * 2).await;
        tokio::time::resume();
        let mut rest = Vec::new();
        // Its buffers are read, then it has ended.
        let ended = stream.read_to_end(&mut rest).await;
        assert!(ended.is_err() || rest.len() < 64 << 20, "{ended:?}");
    }
}
