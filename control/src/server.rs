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
    drop(listener);
    let drained = tokio::time::timeout(DRAIN_TIME_MAX, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
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
