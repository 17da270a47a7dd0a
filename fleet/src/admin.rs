//! The admin listener of every role: `/live`, `/ready`, `/metrics` and the role's own paths.
//!
//! `/live` is 200 while the process runs, `/ready` is 200 or 503 with the reasons one a line,
//! `/metrics` is Prometheus text. The role answers other paths. Limits: 64 connections, 16 KiB of
//! head, 8 MiB of body, 10 s a request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use nearcast_net::accept::{Acceptor, Connections};
use nearcast_net::listen;
use nearcast_net::serve::{HeadLimit, Limits, serve_connection};
use nearcast_net::shutdown::Shutdown;
use prometheus::Encoder as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::config::Fleet;
use crate::failure::Failure;
use crate::listener_tls::{Accepted, ListenerTls};
use crate::own_names::{self, NameError};

/// Connections served at a time. The oldest is closed for one more, so that a client with many
/// connections, or a slow one, keeps no health check and no scrape out.
const CONNECTIONS_MAX: usize = 64;

/// The largest request head.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// The largest request body.
const BODY_BYTES_MAX: usize = 8 << 20;

/// The time for a request to arrive, for a role to answer it, and for a connection to be idle.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

const LIMITS: Limits = Limits {
    head_time_max: REQUEST_TIME_MAX,
    head: HeadLimit::Buffers {
        bytes_max: HEAD_BYTES_MAX,
    },
    write_stall_max: None,
};

/// Whether a role is ready to serve, with the reason when it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It serves.
    Ready,
    /// It serves under a limit that an operator should know of (`control was not reached`, ...).
    Limited(String),
    /// It does not serve, and why (`starting`, `draining`, ...).
    NotReady(String),
}

/// A role's own admin paths: gets the whole request, answers with a whole response.
pub type RolePaths = Arc<
    dyn Fn(Request<Bytes>) -> Pin<Box<dyn Future<Output = Response<Bytes>> + Send>> + Send + Sync,
>;

/// Whether an admin listener answers requests for a host name, see [`crate::own_names`].
pub type IsOwnName = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The names that a fleet file gives to its admin listeners, as the fleet is when a request comes.
pub fn own_names_of(fleet: watch::Receiver<Arc<Fleet>>) -> IsOwnName {
    Arc::new(move |name| {
        let fleet = fleet.borrow();
        let mut urls = fleet
            .name_servers
            .iter()
            .map(|n| &n.admin_url)
            .chain(fleet.control.iter().map(|c| &c.url));
        own_names::is_listed(name, &fleet.admin_hosts)
            || urls.any(|url| own_names::host_of_url(url) == name)
    })
}

/// Opens the admin listener, so that a port in use is found before anything starts.
///
/// # Errors
/// [`Failure::bind`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    listen::open(address).map_err(|e| Failure::bind("the admin listener", address, &e))
}

/// Serves the admin listener for ever. It ends last: the caller aborts this task, or drops this
/// future, after everything else has drained, and open connections close with it. From the moment
/// `shutdown` is requested, `/ready` is 503 `draining` whatever `readiness` says.
pub async fn serve(
    listener: TcpListener,
    tls: ListenerTls,
    registry: prometheus::Registry,
    readiness: watch::Receiver<Readiness>,
    role_paths: Option<RolePaths>,
    is_own_name: IsOwnName,
    shutdown: Shutdown,
) {
    let answering = Arc::new(Answering {
        tls,
        registry,
        readiness,
        role_paths,
        is_own_name,
        shutdown,
    });
    let mut acceptor = Acceptor::new(
        listener,
        |error| tracing::warn!(%error, "the admin listener cannot accept a connection; trying again"),
    );
    let mut connections = Connections::default();
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let (stream, _) = acceptor.accept().await;
        if open.len() >= CONNECTIONS_MAX {
            open.retain(|connection| !connection.is_finished());
        }
        if open.len() >= CONNECTIONS_MAX
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(connections.spawn(answer_requests(stream, answering.clone())));
    }
}

/// The sources of the answers.
struct Answering {
    tls: ListenerTls,
    registry: prometheus::Registry,
    readiness: watch::Receiver<Readiness>,
    role_paths: Option<RolePaths>,
    is_own_name: IsOwnName,
    shutdown: Shutdown,
}

async fn answer_requests(stream: TcpStream, answering: Arc<Answering>) {
    let ended = match answering.tls.accept(stream).await {
        Ok(Accepted::Plain(stream)) => serve_role(stream, answering).await,
        Ok(Accepted::Tls(stream)) => serve_role(stream, answering).await,
        Ok(Accepted::Unencrypted(stream)) => {
            let refusing = service_fn(async |_| Ok::<_, Infallible>(refuse_unencrypted()));
            serve_connection(stream, LIMITS, refusing, std::future::pending()).await
        }
        Err(error) => {
            tracing::debug!(%error, "an admin connection ended");
            return;
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an admin connection ended");
    }
}

async fn serve_role<T: AsyncRead + AsyncWrite + Unpin>(
    stream: T,
    answering: Arc<Answering>,
) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let answering = answering.clone();
        async move { Ok::<_, Infallible>(answer(request, &answering).await.map(Full::new)) }
    });
    serve_connection(stream, LIMITS, service, std::future::pending()).await
}

/// The answer to a request without TLS where there is a certificate. The connection ends: what the
/// client sent has crossed the network in the clear.
fn refuse_unencrypted() -> Response<Full<Bytes>> {
    let message = "this port speaks TLS; write https:// in the URL";
    let mut refused = error(StatusCode::BAD_REQUEST, "tls_required", message);
    refused
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    refused.map(Full::new)
}

async fn answer(request: Request<Incoming>, answering: &Answering) -> Response<Bytes> {
    if let Err(error) = own_names::check(&request, |name| (answering.is_own_name)(name)) {
        return refuse_host(&error);
    }
    let common: fn(&Answering) -> Response<Bytes> = match request.uri().path() {
        "/live" => |_| text(StatusCode::OK, "live\n"),
        "/ready" => ready,
        "/metrics" => metrics,
        _ => return answer_for_role(request, answering.role_paths.as_ref()).await,
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = error(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "use GET",
        );
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    common(answering)
}

fn refuse_host(name_error: &NameError) -> Response<Bytes> {
    match name_error {
        NameError::Malformed => error(
            StatusCode::BAD_REQUEST,
            "bad_request",
            &name_error.to_string(),
        ),
        NameError::Foreign(_) => {
            let message = format!(
                "{name_error}; ask by its address, or list the name in admin_hosts of [fleet]"
            );
            error(StatusCode::MISDIRECTED_REQUEST, "misdirected", &message)
        }
    }
}

/// Reads the body of a request, and passes both to the role.
async fn answer_for_role(
    request: Request<Incoming>,
    role_paths: Option<&RolePaths>,
) -> Response<Bytes> {
    let Some(role_paths) = role_paths else {
        return error(
            StatusCode::NOT_FOUND,
            "not_found",
            "this admin listener has /live, /ready and /metrics",
        );
    };
    let (head, body) = request.into_parts();
    let reading = Limited::new(body, BODY_BYTES_MAX).collect();
    let body = match tokio::time::timeout(REQUEST_TIME_MAX, reading).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            return error(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                "a request body may have 8 MiB at most",
            );
        }
        Ok(Err(_)) => {
            return error(
                StatusCode::BAD_REQUEST,
                "bad_body",
                "the request body did not arrive whole",
            );
        }
        Err(_) => {
            return error(
                StatusCode::REQUEST_TIMEOUT,
                "timeout",
                "the request body took longer than 10 s",
            );
        }
    };

    let answered = role_paths(Request::from_parts(head, body));
    match tokio::time::timeout(REQUEST_TIME_MAX, answered).await {
        Ok(response) => response,
        Err(_) => error(
            StatusCode::SERVICE_UNAVAILABLE,
            "timeout",
            "no answer within 10 s",
        ),
    }
}

fn ready(answering: &Answering) -> Response<Bytes> {
    if answering.shutdown.is_requested() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    match &*answering.readiness.borrow() {
        Readiness::Ready => text(StatusCode::OK, "ready\n"),
        Readiness::Limited(reason) => text(StatusCode::OK, &format!("ready; {reason}\n")),
        Readiness::NotReady(reason) => {
            text(StatusCode::SERVICE_UNAVAILABLE, &format!("{reason}\n"))
        }
    }
}

fn metrics(answering: &Answering) -> Response<Bytes> {
    let mut body = Vec::new();
    match prometheus::TextEncoder::new().encode(&answering.registry.gather(), &mut body) {
        Ok(()) => with_type(StatusCode::OK, prometheus::TEXT_FORMAT, body),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, "metrics", &e.to_string()),
    }
}

fn text(status: StatusCode, body: &str) -> Response<Bytes> {
    with_type(
        status,
        "text/plain; charset=utf-8",
        body.as_bytes().to_vec(),
    )
}

fn error(status: StatusCode, code: &str, message: &str) -> Response<Bytes> {
    let body = serde_json::json!({ "error": { "code": code, "message": message } });
    with_type(status, "application/json", body.to_string().into_bytes())
}

fn with_type(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Whether a request carries `Authorization: Bearer SECRET` with this secret, compared in constant
/// time. Never true for an empty secret.
pub fn is_bearer<B>(request: &Request<B>, secret: &str) -> bool {
    let mut fields = request.headers().get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (fields.next(), fields.next()) else {
        return false;
    };
    let Some((scheme, token)) = value.to_str().ok().and_then(|v| v.split_once(' ')) else {
        return false;
    };
    // Digests are compared, in constant time, so that the time shows neither content nor length.
    let same = blake3::hash(token.trim().as_bytes()) == blake3::hash(secret.as_bytes());
    scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty() && same
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use nearcast_net::shutdown;

    const SOON: Duration = Duration::from_secs(5);

    struct Served {
        url: String,
        readiness: watch::Sender<Readiness>,
        trigger: shutdown::ShutdownTrigger,
    }

    async fn served(role_paths: Option<RolePaths>) -> Served {
        let listener = bind("127.0.0.1:0".parse().expect("an address"))
            .await
            .expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let registry = prometheus::Registry::new();
        let counter = prometheus::IntCounter::new("nearcast_x_total", "x").expect("a name");
        counter.inc();
        registry.register(Box::new(counter)).expect("once");
        let (readiness, rx) = watch::channel(Readiness::NotReady("starting".into()));
        let (trigger, shutdown) = shutdown::channel();
        tokio::spawn(serve(
            listener,
            ListenerTls::none(),
            registry,
            rx,
            role_paths,
            Arc::new(|name| name == "ours.example"),
            shutdown,
        ));
        Served {
            url,
            readiness,
            trigger,
        }
    }

    async fn get(served: &Served, path: &str) -> (u16, String) {
        let response = Client::new(None)
            .get(&format!("{}{path}", served.url), SOON)
            .await
            .expect("answered");
        (
            response.status().as_u16(),
            String::from_utf8(response.into_body().to_vec()).expect("text"),
        )
    }

    #[tokio::test]
    async fn the_three_paths_answer_and_ready_follows_the_role() {
        let served = served(None).await;
        assert_eq!(get(&served, "/live").await, (200, "live\n".into()));
        assert_eq!(get(&served, "/ready").await, (503, "starting\n".into()));
        served.readiness.send_replace(Readiness::Ready);
        assert_eq!(get(&served, "/ready").await, (200, "ready\n".into()));
        served
            .readiness
            .send_replace(Readiness::Limited("control was not reached".into()));
        assert_eq!(
            get(&served, "/ready").await,
            (200, "ready; control was not reached\n".into())
        );
        let (status, metrics) = get(&served, "/metrics").await;
        assert!(
            status == 200 && metrics.contains("nearcast_x_total 1"),
            "{metrics}"
        );
        assert_eq!(get(&served, "/other").await.0, 404);
        let posted = Client::new(None)
            .post_json(&format!("{}/ready", served.url), None, "x", SOON)
            .await
            .expect("answered");
        assert_eq!(posted.status(), 405);
        served.trigger.shut_down();
        assert_eq!(get(&served, "/ready").await, (503, "draining\n".into()));
        assert_eq!(get(&served, "/live").await.0, 200);
    }

    #[tokio::test]
    async fn no_page_of_another_site_reads_an_admin_listener() {
        let served = served(None).await;
        for (host, path, status) in [
            ("evil.example", "/metrics", 421),
            ("evil.example", "/explain?host=a", 421),
            ("ours.example", "/metrics", 200),
            ("edge-1:9100", "/live", 200),
            ("a b", "/live", 400),
        ] {
            let request = Request::get(format!("{}{path}", served.url))
                .header("host", host)
                .body(Bytes::new())
                .expect("a request");
            let response = Client::new(None)
                .send(request, SOON)
                .await
                .expect("answered");
            assert_eq!(response.status().as_u16(), status, "{host} {path}");
        }
    }

    #[tokio::test]
    async fn slow_clients_keep_no_other_out() {
        let served = served(Some(Arc::new(|_| {
            Box::pin(async { Response::new(Bytes::from_static(b"taken")) })
        })))
        .await;
        let address = served.url.trim_start_matches("http://").to_owned();
        let mut slow = Vec::new();
        for _ in 0..3 * CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(&address).await.expect("it listens");
            let head = b"POST /rtt HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf";
            tokio::io::AsyncWriteExt::write_all(&mut stream, head)
                .await
                .expect("taken");
            slow.push(stream);
        }
        assert_eq!(get(&served, "/live").await.0, 200);
        assert_eq!(
            Client::new(None)
                .post_json(&format!("{}/rtt", served.url), None, "x", SOON)
                .await
                .expect("answered")
                .status(),
            200
        );
    }

    #[tokio::test]
    async fn a_role_gets_whole_requests_and_too_large_ones_are_refused() {
        let echo: RolePaths =
            Arc::new(|request| Box::pin(async move { Response::new(request.into_body()) }));
        let served = served(Some(echo)).await;
        let url = format!("{}/echo", served.url);
        let client = Client::new(None);
        let small = client
            .post_json(&url, None, "hello", SOON)
            .await
            .expect("answered");
        assert_eq!(
            (small.status().as_u16(), &small.body()[..]),
            (200, &b"\"hello\""[..])
        );
        let large = client
            .post_json(&url, None, &"x".repeat(BODY_BYTES_MAX), SOON)
            .await;
        // The refusal may reach the client, or the broken connection does, as the server does not
        // read on.
        assert!(
            large.as_ref().map_or(true, |r| r.status() == 413),
            "{large:?}"
        );
        assert_eq!(
            client
                .get(&url, SOON)
                .await
                .expect("still serving")
                .status(),
            200
        );
    }

    #[tokio::test]
    async fn a_head_beyond_the_limit_is_refused() {
        let served = served(None).await;
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = format!("{}/live", served.url).parse().expect("a URL");
        request.headers_mut().insert(
            "x-large",
            HeaderValue::from_str(&"x".repeat(HEAD_BYTES_MAX)).expect("a value"),
        );
        let outcome = Client::new(None).send(request, SOON).await;
        assert!(
            outcome.as_ref().map_or(true, |r| r.status() == 431),
            "{outcome:?}"
        );
    }

    #[test]
    fn only_the_key_itself_opens() {
        for (field, key, expected) in [
            (Some("Bearer secret"), "secret", true),
            (Some("bearer secret"), "secret", true),
            (Some("Bearer  secret "), "secret", true),
            (Some("Bearer secre"), "secret", false),
            (Some("Bearer secret2"), "secret", false),
            (Some("Basic secret"), "secret", false),
            (Some("secret"), "secret", false),
            (Some("Bearer "), "", false),
            (None, "", false),
            (None, "secret", false),
        ] {
            let mut request = Request::new(());
            if let Some(field) = field {
                request
                    .headers_mut()
                    .insert(AUTHORIZATION, HeaderValue::from_static(field));
            }
            assert_eq!(is_bearer(&request, key), expected, "{field:?} {key:?}");
        }
        let mut twice = Request::new(());
        twice
            .headers_mut()
            .append(AUTHORIZATION, HeaderValue::from_static("Bearer secret"));
        twice
            .headers_mut()
            .append(AUTHORIZATION, HeaderValue::from_static("Bearer secret"));
        assert!(!is_bearer(&twice, "secret"));
    }
}
