//! The API's listener: connections under a limit, time-outs, drain.

use std::convert::Infallible;
use std::sync::Arc;
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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::error::ApiError;
use crate::metrics::Metrics;

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// Time for the head of a request, and for a kept connection to send the next one.
const HEAD_TIME_MAX: Duration = Duration::from_secs(15);
/// Largest request head.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Time from a request's head to the head of its response: longer than any wait that a request can ask for.
const RESPONSE_TIME_MAX: Duration = Duration::from_secs(75);
/// A connection ends after this time whatever it does; event streams go on from their last id on a new one.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(3600);
/// Time for open requests to end when the role does.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of descriptors, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until shutdown is asked for, then lets open requests end.
pub(crate) async fn serve(listener: TcpListener, router: Router, metrics: Metrics, mut shutdown: Shutdown) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            () = shutdown.asked() => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.asked() => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let (router, metrics, shutdown) = (router.clone(), metrics.clone(), shutdown.clone());
                connections.spawn(async move {
                    metrics.connections.inc();
                    serve_connection(stream, router, &metrics, shutdown).await;
                    metrics.connections.dec();
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the API's listener cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // What waits in the queue would be reset with the listener: it is answered first.
    while let Some(Ok((stream, _))) = futures_util::FutureExt::now_or_never(listener.accept()) {
        let Ok(permit) = permits.clone().try_acquire_owned() else { break };
        let (router, metrics, shutdown) = (router.clone(), metrics.clone(), shutdown.clone());
        connections.spawn(async move {
            metrics.connections.inc();
            serve_connection(stream, router, &metrics, shutdown).await;
            metrics.connections.dec();
            drop(permit);
        });
    }
    drop(listener);
    let drained = shutdown.drained(DRAIN_TIME_MAX, async { while connections.join_next().await.is_some() {} }).await;
    if !drained {
        tracing::warn!(open = connections.len(), "connections were still open after {DRAIN_TIME_MAX:?}");
    }
}

async fn serve_connection(stream: TcpStream, router: Router, metrics: &Metrics, mut shutdown: Shutdown) {
    let _ = stream.set_nodelay(true);
    let routed = TowerToHyperService::new(router);
    let service = service_fn(|request: Request<Incoming>| {
        let routed = routed.clone();
        async move {
            let method = method_label(request.method());
            let response = match tokio::time::timeout(RESPONSE_TIME_MAX, routed.call(request)).await {
                Ok(Ok(response)) => response,
                Err(_) => ApiError::TooBusy("the request did not arrive or could not be answered in time").into_response(),
            };
            let class = format!("{}xx", response.status().as_u16() / 100);
            metrics.requests.with_label_values(&[method, class.as_str()]).inc();
            Ok::<Response, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
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
        let router = Router::new().route("/", get(|| async { "here" })).route("/never", get(never));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, shutdown) = shutdown::channel();
        (address, trigger, tokio::spawn(serve(listener, router, Metrics::new(), shutdown)))
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
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "HTTP/1.1 200", Duration::ZERO),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: slo", "", HEAD_TIME_MAX),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200", HEAD_TIME_MAX),
            ("GET /never HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "HTTP/1.1 503", RESPONSE_TIME_MAX),
        ];
        for (sent, answer, least) in table {
            let begun = Instant::now();
            let received = exchange(address, sent).await;
            assert!(received.starts_with(answer), "{sent:?}: {received:?}");
            assert!(begun.elapsed() >= least && begun.elapsed() < least + HEAD_TIME_MAX, "{sent:?} took {:?}", begun.elapsed());
        }
        trigger.shut_down();
        server.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_open_requests_up_to_its_limit() {
        let (address, trigger, server) = start().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /never HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut first = [0; 64];
        assert!(stream.read(&mut first).await.unwrap() > 0);
        let begun = Instant::now();
        trigger.shut_down();
        server.await.unwrap();
        assert!(begun.elapsed() >= DRAIN_TIME_MAX && begun.elapsed() < DRAIN_TIME_MAX * 2, "{:?}", begun.elapsed());
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    }

    #[tokio::test]
    async fn more_connections_than_the_limit_wait() {
        let (address, _trigger, _server) = start().await;
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            open.push(TcpStream::connect(address).await.unwrap());
        }
        let mut late = TcpStream::connect(address).await.unwrap();
        late.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut buffer = [0; 12];
        let early = tokio::time::timeout(Duration::from_millis(200), late.read_exact(&mut buffer)).await;
        assert!(early.is_err(), "{buffer:?}");
        open.pop();
        late.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"HTTP/1.1 200");
    }
}
