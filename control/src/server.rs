//! The listener of the API: connections under the limits of [`crate::admission`], TLS, time-outs,
//! drain. A connection has its slot before its handshake, so slow handshakes evict one another.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::service::TowerToHyperService;
use nearcast_fleet::listener_tls::{Accepted, ListenerTls};
use nearcast_net::accept::{Acceptor, Connections};
use nearcast_net::serve::{self, HeadLimit, Limits};
use nearcast_net::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use crate::admission::{Admission, Slot};
use crate::error::ApiError;
use crate::metrics::Metrics;

/// Time for the head of a request, the wait for the next request on an open connection included.
const HEAD_TIME_MAX: Duration = Duration::from_secs(15);
/// Largest request head.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Time from a request's head to the head of its response: longer than any wait that a request can
/// ask for.
const RESPONSE_TIME_MAX: Duration = Duration::from_secs(75);
/// How long a client may read nothing of a response.
const WRITE_TIME_MAX: Duration = Duration::from_secs(15);
/// A connection ends after this time, also in the middle of a response; a client continues an event
/// stream from its last id on a new connection.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(3600);
/// Time for open requests to end when the role does.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

const LIMITS: Limits = Limits {
    head_time_max: HEAD_TIME_MAX,
    head: HeadLimit::Buffers {
        bytes_max: HEAD_BYTES_MAX,
    },
    write_stall_max: Some(WRITE_TIME_MAX),
};

/// Serves until shutdown is requested, then lets open requests end.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<ListenerTls>,
    router: Router,
    admission: Arc<Admission>,
    metrics: Metrics,
    mut shutdown: Shutdown,
) {
    let mut acceptor = Acceptor::new(
        listener,
        |error| tracing::warn!(%error, "the API's listener cannot accept a connection; trying again"),
    );
    let mut connections = Connections::default();
    while let Some((stream, peer)) = acceptor.accept_until(&mut shutdown).await {
        connections.spawn(serve_connection(
            stream,
            tls.clone(),
            admission.enter(peer.ip()),
            router.clone(),
            metrics.clone(),
            shutdown.clone(),
        ));
    }
    drop(acceptor);

    let open = connections.drain(DRAIN_TIME_MAX, &mut shutdown).await;
    if open > 0 {
        tracing::warn!(open, "connections were still open after {DRAIN_TIME_MAX:?}");
    }
}

/// Serves a connection until it ends, or is evicted for another one.
async fn serve_connection(
    stream: TcpStream,
    tls: Arc<ListenerTls>,
    slot: Arc<Slot>,
    router: Router,
    metrics: Metrics,
    shutdown: Shutdown,
) {
    metrics.connections.inc();
    let serving = async {
        let slot = slot.clone();
        match tls.accept(stream).await {
            Ok(Accepted::Plain(stream)) => {
                answer_requests(stream, router, &metrics, slot, shutdown).await;
            }
            Ok(Accepted::Tls(stream)) => {
                answer_requests(stream, router, &metrics, slot, shutdown).await;
            }
            Ok(Accepted::Unencrypted(stream)) => {
                let refusing =
                    service_fn(async |request| Ok::<_, Infallible>(send_to_tls(&request)));
                let ended =
                    serve::serve_connection(stream, LIMITS, refusing, std::future::pending());
                note_handshake(&metrics, "without-tls");
                let _ = ended.await;
            }
            Err(error) => {
                tracing::debug!(%error, "a connection to the API ended");
                note_handshake(&metrics, error.label());
            }
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(CONNECTION_TIME_MAX, serving) => {}
        () = slot.evicted() => metrics.connections_evicted.inc(),
    }
    metrics.connections.dec();
}

fn note_handshake(metrics: &Metrics, reason: &str) {
    metrics.handshakes_failed.with_label_values(&[reason]).inc();
}

/// The answer to a request without TLS where there is a certificate: a person with a browser is sent
/// to `https`. A program is refused, so that its operator finds out that it sends its token or key
/// in the clear. The connection ends.
fn send_to_tls<B>(request: &Request<B>) -> Response {
    let is_page = matches!(*request.method(), Method::GET | Method::HEAD)
        && !request.uri().path().starts_with("/v1")
        && !request.headers().contains_key(header::AUTHORIZATION);
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let location = host
        .filter(|host| is_page && !host.as_str().contains('@'))
        .and_then(|host| {
            let path = request.uri().path_and_query()?;
            HeaderValue::try_from(format!("https://{host}{path}")).ok()
        });
    let mut response = match location {
        Some(location) => {
            let status = StatusCode::TEMPORARY_REDIRECT;
            (
                status,
                [(header::LOCATION, location)],
                "this port speaks TLS\n",
            )
                .into_response()
        }
        None => ApiError::BadRequest(
            "this port speaks TLS; write https:// in the URL (url in [control])".to_owned(),
        )
        .into_response(),
    };
    let fields = response.headers_mut();
    fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn answer_requests<T: AsyncRead + AsyncWrite + Unpin>(
    stream: T,
    router: Router,
    metrics: &Metrics,
    slot: Arc<Slot>,
    mut shutdown: Shutdown,
) {
    let routed = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<Incoming>| {
        let routed = routed.clone();
        request.extensions_mut().insert(slot.clone());
        async move {
            let method = method_label(request.method());
            let routing = tokio::time::timeout(RESPONSE_TIME_MAX, routed.call(request));
            let response = match routing.await {
                Ok(Ok(response)) => response,
                Err(_) => {
                    ApiError::TooBusy("the request could not be answered in time").into_response()
                }
            };
            let class = format!("{}xx", response.status().as_u16() / 100);
            metrics
                .requests
                .with_label_values(&[method, class.as_str()])
                .inc();
            Ok::<Response, Infallible>(response)
        }
    });
    let ended = serve::serve_connection(stream, LIMITS, service, shutdown.requested()).await;
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
    use crate::admission::Limits;
    use axum::routing::get;
    use nearcast_net::shutdown::{self, ShutdownTrigger};
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
            anonymous: 40,
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
            tokio::spawn(serve(
                listener,
                Arc::new(ListenerTls::none()),
                router,
                admission,
                Metrics::new(),
                shutdown,
            )),
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
    async fn the_longest_idle_anonymous_connection_is_evicted_for_a_new_one() {
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
