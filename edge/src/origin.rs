//! The way to origins: a worker thread's own pool of HTTP/1.1 connections, with limits on everything an origin
//! can do to us.
//!
//! Targets come from the fleet file alone, never from a request, and names that resolve to link-local addresses
//! are refused, so that nobody can be made to fetch a machine's metadata.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::policy::status::ProxyError;

/// How long a connection may take to be made, TLS included.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How long an origin may think before its response's head, once it has the whole request.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(30);
/// How long it may take nothing of a request's body. Longer than a client may pause, which is found out first.
const TAKE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long it may pause within a body.
const BETWEEN_BYTES_MAX: Duration = Duration::from_secs(15);
/// How long a kept connection may lie idle.
const IDLE_MAX: Duration = Duration::from_secs(50);
/// Idle connections kept to one origin by one worker.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// A connection reads this much at once at most. hyper's own limit is six times as much; each connection keeps the
/// buffer it has grown to, and a byte of it that waits in a slice keeps all of it.
const READ_BYTES_MAX: usize = 64 << 10;
/// Addresses of one origin that are tried.
const ADDRESSES_MAX: usize = 4;
/// Fields a response may have.
const FIELDS_MAX: usize = 128;
/// Bytes a response's head may have.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How long a client may pause within a request's body.
const REQUEST_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request's body.
pub(crate) const REQUEST_BYTES_MAX: u64 = 1 << 30;

/// Where requests go: scheme, host and port out of the fleet file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) is_tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Target {
    /// Reads `http://host[:port]` or `https://host[:port]`.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let uri: http::Uri = url.parse().ok()?;
        let is_tls = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Some(Self { is_tls, host: uri.host()?.trim_matches(['[', ']']).to_owned(), port })
    }
}

/// Why an origin gave no usable response. Each maps to one error type of RFC 9209 section 2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OriginError {
    /// Its name could not be resolved.
    #[error("the origin's name could not be resolved")]
    Dns,
    /// Its name resolves to an address that is never asked.
    #[error("the origin's name leads to a forbidden address")]
    Forbidden,
    /// It took no connection.
    #[error("the origin refused the connection")]
    Refused,
    /// It is not reachable.
    #[error("the origin cannot be reached")]
    Unreachable,
    /// Connecting took too long.
    #[error("connecting to the origin took too long")]
    ConnectTimeout,
    /// TLS failed.
    #[error("TLS with the origin failed")]
    Tls,
    /// It did not begin to answer in time.
    #[error("the origin did not answer in time")]
    FirstByteTimeout,
    /// It paused too long within a body.
    #[error("the origin paused too long")]
    BetweenBytesTimeout,
    /// It closed the connection before its response was whole.
    #[error("the origin ended its response early")]
    Incomplete,
    /// It closed the connection instead of answering.
    #[error("the origin closed the connection")]
    Terminated,
    /// What it sent is not HTTP.
    #[error("the origin broke the protocol")]
    Protocol,
    /// The client's request body failed.
    #[error("the request's body ended early")]
    RequestBody,
    /// It answered with an error where a part of what is stored was asked for.
    #[error("the origin answered with an error")]
    Erred,
    /// Its response was given up: nobody waited for it, and there were too many.
    #[error("nobody waited for the origin's response")]
    GivenUp,
    /// Its answer to a validation or a range request does not fit what is stored.
    #[error("the origin's answer does not fit what is stored")]
    Unfit,
}

impl OriginError {
    /// Whether it took the longest time that it may, which nobody should have to wait for twice.
    pub(crate) fn is_timeout(self) -> bool {
        matches!(self, Self::ConnectTimeout | Self::FirstByteTimeout | Self::BetweenBytesTimeout)
    }

    /// Whether the origin may have got the request, and may have done what it asks.
    pub(crate) fn may_have_arrived(self) -> bool {
        use OriginError::*;
        !matches!(self, Dns | Forbidden | Refused | Unreachable | ConnectTimeout | Tls)
    }

    /// The registered error type, which also names the status to answer with where nothing stored helps.
    pub(crate) fn proxy_error(self) -> ProxyError {
        match self {
            Self::Dns => ProxyError::DnsError,
            Self::Forbidden => ProxyError::DestinationIpProhibited,
            Self::Refused => ProxyError::ConnectionRefused,
            Self::Unreachable | Self::Erred => ProxyError::DestinationUnavailable,
            Self::ConnectTimeout => ProxyError::ConnectionTimeout,
            Self::Tls => ProxyError::TlsProtocolError,
            Self::FirstByteTimeout => ProxyError::HttpResponseTimeout,
            Self::BetweenBytesTimeout => ProxyError::ConnectionReadTimeout,
            Self::Incomplete | Self::GivenUp => ProxyError::HttpResponseIncomplete,
            Self::Terminated => ProxyError::ConnectionTerminated,
            Self::Protocol | Self::Unfit => ProxyError::HttpProtocolError,
            Self::RequestBody => ProxyError::HttpRequestError,
        }
    }
}

/// The body of a request to an origin.
pub(crate) enum OriginRequestBody {
    /// None.
    Empty,
    /// The client's, as it comes, with a limit on each pause. Tells of each piece that goes on, and by its end of the last.
    Client { body: Incoming, pause: Pin<Box<Sleep>>, left: u64, taken: watch::Sender<()> },
}

impl OriginRequestBody {
    pub(crate) fn client(body: Incoming) -> Self {
        let pause = Box::pin(tokio::time::sleep(REQUEST_PAUSE_MAX));
        Self::Client { body, pause, left: REQUEST_BYTES_MAX, taken: watch::channel(()).0 }
    }

    /// What tells how far it has gone on; `None` when there is nothing to send.
    fn taken(&self) -> Option<watch::Receiver<()>> {
        match self {
            Self::Empty => None,
            Self::Client { taken, .. } => Some(taken.subscribe()),
        }
    }
}

/// A client's body that failed on its way.
#[derive(Debug, thiserror::Error)]
#[error("the client's body ended early")]
pub(crate) struct RequestBodyCut;

impl Body for OriginRequestBody {
    type Data = Bytes;
    type Error = RequestBodyCut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyCut>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Client { body, pause, left, taken } => match Pin::new(body).poll_frame(cx) {
                Poll::Pending => pause.as_mut().poll(cx).map(|()| Some(Err(RequestBodyCut))),
                Poll::Ready(frame) => {
                    pause.as_mut().reset(Instant::now() + REQUEST_PAUSE_MAX);
                    match frame {
                        // Trailers are dropped: no origin asked for them.
                        Some(Ok(frame)) => match frame.into_data() {
                            Ok(data) => match left.checked_sub(data.len() as u64) {
                                Some(less) => {
                                    *left = less;
                                    taken.send_replace(());
                                    Poll::Ready(Some(Ok(Frame::data(data))))
                                }
                                None => Poll::Ready(Some(Err(RequestBodyCut))),
                            },
                            Err(_) => Poll::Ready(None),
                        },
                        Some(Err(_)) => Poll::Ready(Some(Err(RequestBodyCut))),
                        None => Poll::Ready(None),
                    }
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client { body, .. } => body.size_hint(),
        }
    }
}

struct Idle {
    sender: SendRequest<OriginRequestBody>,
    since: Instant,
}

impl Idle {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && self.since.elapsed() < IDLE_MAX
    }
}

#[derive(Default)]
struct IdleConnections {
    of_target: HashMap<Arc<Target>, Vec<Idle>>,
    /// A task looks after them.
    is_swept: bool,
}

/// See the module's words. One a worker thread: its lock is never contended for.
pub(crate) struct OriginPool {
    idle: Mutex<IdleConnections>,
    tls: tokio_rustls::TlsConnector,
}

impl OriginPool {
    pub(crate) fn new(tls: Arc<rustls::ClientConfig>) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::default(), tls: tls.into() })
    }

    /// Sends a request, whose URI is in origin form, and waits for the head of the response.
    ///
    /// A kept connection that turns out to be dead is replaced once, when the request may be sent twice.
    pub(crate) async fn send(
        self: &Arc<Self>,
        target: &Arc<Target>,
        request: Request<OriginRequestBody>,
    ) -> Result<Response<OriginBody>, OriginError> {
        let is_repeatable = matches!(request.body(), OriginRequestBody::Empty)
            && matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE);
        let again = is_repeatable.then(|| {
            let mut copy = Request::new(OriginRequestBody::Empty);
            *copy.method_mut() = request.method().clone();
            *copy.uri_mut() = request.uri().clone();
            *copy.headers_mut() = request.headers().clone();
            copy
        });
        if let Some(sender) = self.take_idle(target) {
            let request = match self.exchange(sender, target, request).await {
                Ok(response) => return Ok(response),
                Err((_, Some(unsent))) => unsent,
                Err((OriginError::Terminated, None)) => again.ok_or(OriginError::Terminated)?,
                Err((error, None)) => return Err(error),
            };
            let sender = self.connect(target).await?;
            return self.exchange(sender, target, request).await.map_err(|(error, _)| error);
        }
        let sender = self.connect(target).await?;
        self.exchange(sender, target, request).await.map_err(|(error, _)| error)
    }

    fn take_idle(&self, target: &Arc<Target>) -> Option<SendRequest<OriginRequestBody>> {
        let mut idle = self.idle.lock().expect("no holder of this lock panics");
        let of_target = idle.of_target.get_mut(target)?;
        while let Some(kept) = of_target.pop() {
            if kept.is_usable() && kept.sender.is_ready() {
                return Some(kept.sender);
            }
        }
        None
    }

    fn keep(self: &Arc<Self>, target: Arc<Target>, sender: SendRequest<OriginRequestBody>) {
        let mut idle = self.idle.lock().expect("no holder of this lock panics");
        let of_target = idle.of_target.entry(target).or_default();
        of_target.retain(Idle::is_usable);
        if of_target.len() < IDLE_CONNECTIONS_MAX {
            of_target.push(Idle { sender, since: Instant::now() });
        }
        if !std::mem::replace(&mut idle.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Closes what has lain idle for too long. `false` when nothing is left.
    fn drop_unusable(&self) -> bool {
        let mut idle = self.idle.lock().expect("no holder of this lock panics");
        idle.of_target.retain(|_, of_target| {
            of_target.retain(Idle::is_usable);
            !of_target.is_empty()
        });
        idle.is_swept = !idle.of_target.is_empty();
        idle.is_swept
    }

    async fn exchange(
        self: &Arc<Self>,
        mut sender: SendRequest<OriginRequestBody>,
        target: &Arc<Target>,
        request: Request<OriginRequestBody>,
    ) -> Result<Response<OriginBody>, (OriginError, Option<Request<OriginRequestBody>>)> {
        if sender.ready().await.is_err() {
            return Err((OriginError::Terminated, Some(request)));
        }
        let taken = request.body().taken();
        let sent = answered(sender.try_send_request(request), taken).await;
        match sent {
            Err(error) => Err((error, None)),
            Ok(Err(mut failed)) => {
                let unsent = failed.take_message();
                Err((classify(failed.error()), unsent))
            }
            Ok(Ok(response)) => Ok(response.map(|body| OriginBody {
                body,
                pause: None,
                connection: Some(Returning { pool: self.clone(), target: target.clone(), sender }),
            })),
        }
    }

    async fn connect(&self, target: &Target) -> Result<SendRequest<OriginRequestBody>, OriginError> {
        let deadline = Instant::now() + CONNECT_MAX;
        tokio::time::timeout_at(deadline, self.connect_by(target, deadline)).await.unwrap_or(Err(OriginError::ConnectTimeout))
    }

    async fn connect_by(&self, target: &Target, deadline: Instant) -> Result<SendRequest<OriginRequestBody>, OriginError> {
        let stream = open(target, deadline).await?;
        if !target.is_tls {
            return handshake(stream).await;
        }
        let name = rustls::pki_types::ServerName::try_from(target.host.clone()).map_err(|_| OriginError::Tls)?;
        let stream = self.tls.connect(name, stream).await.map_err(|_| OriginError::Tls)?;
        handshake(stream).await
    }
}

/// Connections that nobody asks for again would keep their sockets and buffers for good.
async fn sweep(pool: Weak<OriginPool>) {
    loop {
        tokio::time::sleep(IDLE_MAX).await;
        if !pool.upgrade().is_some_and(|pool| pool.drop_unusable()) {
            return;
        }
    }
}

/// Waits for a response's head: within [`FIRST_BYTE_MAX`] once the request has gone, which takes as long as it goes on.
async fn answered<T>(sending: impl Future<Output = T>, taken: Option<watch::Receiver<()>>) -> Result<T, OriginError> {
    let mut sending = std::pin::pin!(sending);
    if let Some(mut taken) = taken {
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => return Ok(sent),
                piece = tokio::time::timeout(TAKE_PAUSE_MAX, taken.changed()) => match piece {
                    Ok(Ok(())) => {}
                    // The body is gone: all of it was taken.
                    Ok(Err(_)) => break,
                    Err(_) => return Err(OriginError::FirstByteTimeout),
                },
            }
        }
    }
    tokio::time::timeout(FIRST_BYTE_MAX, sending).await.map_err(|_| OriginError::FirstByteTimeout)
}

async fn open(target: &Target, deadline: Instant) -> Result<TcpStream, OriginError> {
    let addresses: Vec<SocketAddr> = match target.host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, target.port)],
        Err(_) => {
            let found = tokio::net::lookup_host((target.host.as_str(), target.port)).await.map_err(|_| OriginError::Dns)?;
            let found: Vec<_> = found.take(ADDRESSES_MAX).collect();
            let allowed: Vec<_> = found.iter().copied().filter(|a| !is_forbidden(a.ip())).collect();
            if allowed.is_empty() && !found.is_empty() {
                return Err(OriginError::Forbidden);
            }
            allowed
        }
    };
    connect_to_one(&addresses, deadline).await
}

/// A connection to the first of several addresses that takes one. Each has an equal share of the time that is left, so that
/// a dead one does not use up that of the others.
async fn connect_to_one(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, OriginError> {
    let mut last = OriginError::Dns;
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left / (addresses.len() - tried) as u32, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Without it small requests wait; a socket that cannot have it works all the same.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => last = OriginError::Refused,
            Ok(Err(_)) => last = OriginError::Unreachable,
            Err(_) => last = OriginError::ConnectTimeout,
        }
    }
    Err(last)
}

/// Addresses that a name must not lead to: link-local ones, where clouds keep machines' credentials.
fn is_forbidden(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_unspecified() || ip.is_multicast(),
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.to_ipv4_mapped().is_some_and(|v4| is_forbidden(v4.into()))
        }
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<OriginRequestBody>, OriginError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_headers(FIELDS_MAX).max_header_size(HEAD_BYTES_MAX).max_buf_size(READ_BYTES_MAX);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| OriginError::Protocol)?;
    // Its end shows up at the sender or at the body.
    tokio::spawn(connection);
    Ok(sender)
}

fn classify(error: &hyper::Error) -> OriginError {
    if error.is_user() || error.is_body_write_aborted() {
        OriginError::RequestBody
    } else if error.is_parse() {
        OriginError::Protocol
    } else {
        // Closed before the head was whole: cancelled, incomplete or a broken socket.
        OriginError::Terminated
    }
}

struct Returning {
    pool: Arc<OriginPool>,
    target: Arc<Target>,
    sender: SendRequest<OriginRequestBody>,
}

/// The body of an origin's response. Its connection is kept for the next request once it was read to the end.
pub(crate) struct OriginBody {
    body: Incoming,
    pause: Option<Pin<Box<Sleep>>>,
    connection: Option<Returning>,
}

impl OriginBody {
    /// The next piece; `None` at the end of a whole body.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Its length when the head told it.
    pub(crate) fn length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, OriginError>> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => {
                    let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(BETWEEN_BYTES_MAX)));
                    return pause.as_mut().poll(cx).map(|()| Err(OriginError::BetweenBytesTimeout));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(pause) = &mut self.pause {
                        pause.as_mut().reset(Instant::now() + BETWEEN_BYTES_MAX);
                    }
                    match frame.into_data() {
                        Ok(data) if data.is_empty() => {}
                        Ok(data) => return Poll::Ready(Ok(Some(data))),
                        Err(_trailers) => {}
                    }
                }
                Poll::Ready(Some(Err(_))) => {
                    self.connection = None;
                    return Poll::Ready(Err(OriginError::Incomplete));
                }
                Poll::Ready(None) => {
                    self.give_back();
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }

    fn give_back(&mut self) {
        let Some(Returning { pool, target, mut sender }) = self.connection.take() else { return };
        if sender.is_ready() {
            pool.keep(target, sender);
            return;
        }
        // The connection's task has yet to see that the body was read.
        tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                pool.keep(target, sender);
            }
        });
    }
}

impl Drop for OriginBody {
    fn drop(&mut self) {
        if self.connection.is_some() && self.body.is_end_stream() {
            self.give_back();
        }
    }
}

/// TLS to origins with the Web's roots and no client certificate.
pub(crate) fn tls_config() -> Arc<rustls::ClientConfig> {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_anything_else_is_refused() {
        let target = |is_tls, host: &str, port| Some(Target { is_tls, host: host.to_owned(), port });
        for (url, expected) in [
            ("http://origin.test", target(false, "origin.test", 80)),
            ("http://127.0.0.1:8000", target(false, "127.0.0.1", 8000)),
            ("https://origin.test", target(true, "origin.test", 443)),
            ("http://[::1]:81", target(false, "::1", 81)),
            ("gopher://x", None),
            ("origin.test", None),
        ] {
            assert_eq!(Target::parse(url), expected, "{url}");
        }
    }

    fn tcp(address: SocketAddr) -> Arc<Target> {
        Arc::new(Target { is_tls: false, host: address.ip().to_string(), port: address.port() })
    }

    fn get() -> Request<OriginRequestBody> {
        Request::get("/").body(OriginRequestBody::Empty).expect("valid")
    }

    /// An origin on this runtime that writes these bytes after each request's head and then keeps silent. Time that is
    /// paused goes on only when neither side has anything to do.
    async fn origin(answer: &'static [u8]) -> Arc<Target> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let target = tcp(listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    while stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                        stream.write_all(answer).await.expect("the edge reads");
                    }
                });
            }
        });
        target
    }

    /// A listener whose queue is full: connecting to it takes for ever. The connections that fill it come with it.
    fn silent() -> (SocketAddr, Vec<socket2::Socket>) {
        use socket2::{Domain, Socket, Type};
        let new = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let listener = new();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        listener.listen(0).expect("it listens");
        let address = listener.local_addr().expect("bound");
        let mut held = vec![listener];
        loop {
            let socket = new();
            let is_taken = socket.connect_timeout(&address, Duration::from_millis(200)).is_ok();
            held.push(socket);
            if !is_taken {
                return (address.as_socket().expect("it is one"), held);
            }
        }
    }

    fn pool() -> Arc<OriginPool> {
        OriginPool::new(tls_config())
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_that_takes_no_connection_is_given_up() {
        let (address, _held) = silent();
        let began = Instant::now();
        assert_eq!(pool().send(&tcp(address), get()).await.err(), Some(OriginError::ConnectTimeout));
        assert!((CONNECT_MAX..CONNECT_MAX * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_dead_leaves_time_for_the_next() {
        let (dead, _held) = silent();
        let alive = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = alive.local_addr().expect("bound");
        // Finding the addresses has taken a part of the time.
        let deadline = Instant::now() + CONNECT_MAX / 3;
        let stream = connect_to_one(&[dead, address], deadline).await.expect("the second takes it");
        assert_eq!(stream.peer_addr().expect("connected"), address);
        assert!(Instant::now() < deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_that_does_not_begin_to_answer_is_given_up() {
        for silent_after in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"] {
            let target = origin(silent_after).await;
            let began = Instant::now();
            assert_eq!(pool().send(&target, get()).await.err(), Some(OriginError::FirstByteTimeout));
            assert!((FIRST_BYTE_MAX..FIRST_BYTE_MAX * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        }
    }

    /// Sends a request whose body a client on this runtime writes in pieces of a byte, a second apart.
    async fn upload(target: Arc<Target>, pieces: usize) -> Result<Response<OriginBody>, OriginError> {
        use tokio::io::AsyncWriteExt;
        let (mut client, server) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {pieces}\r\n\r\n");
            client.write_all(head.as_bytes()).await.expect("the edge reads");
            for _ in 0..pieces {
                tokio::time::sleep(Duration::from_secs(1)).await;
                client.write_all(b"x").await.expect("the edge reads");
            }
            std::future::pending::<()>().await;
        });
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (tell, target) = (tell.clone(), target.clone());
            async move {
                let request = Request::post("/").body(OriginRequestBody::client(request.into_body())).expect("valid");
                let _ = tell.send(pool().send(&target, request).await).await;
                Ok::<_, std::convert::Infallible>(Response::new(String::new()))
            }
        });
        let serving = tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service));
        let answer = told.recv().await.expect("an outcome");
        serving.abort();
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_may_think_as_long_as_ever_when_an_upload_took_long() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for (pieces, thinks, is_answered) in [(100, FIRST_BYTE_MAX - Duration::from_secs(2), true), (100, FIRST_BYTE_MAX * 2, false)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let target = tcp(listener.local_addr().expect("bound"));
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut request = Vec::new();
                while !request.ends_with(&[b'x'; 100]) {
                    assert!(stream.read_buf(&mut request).await.expect("readable") > 0, "the whole request");
                }
                tokio::time::sleep(thinks).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            });
            let began = Instant::now();
            let answer = upload(target, pieces).await;
            assert_eq!(answer.err(), (!is_answered).then_some(OriginError::FirstByteTimeout));
            let took = began.elapsed() - Duration::from_secs(100);
            assert!(took < FIRST_BYTE_MAX + Duration::from_secs(2), "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_that_pauses_too_long_within_a_body_is_given_up() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ] {
            let target = origin(answer).await;
            let mut body = pool().send(&target, get()).await.expect("a head").into_body();
            assert_eq!(body.next().await, Ok(Some(Bytes::from_static(b"hello"))));
            let began = Instant::now();
            assert_eq!(body.next().await, Err(OriginError::BetweenBytesTimeout));
            assert!((BETWEEN_BYTES_MAX..BETWEEN_BYTES_MAX * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kept_connection_is_used_again_and_closed_when_nobody_needs_it() {
        let pool = pool();
        let target = origin(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
        for _ in 0..2 {
            let mut body = pool.send(&target, get()).await.expect("a head").into_body();
            while body.next().await.expect("whole").is_some() {}
            // Its task has yet to see that it may be kept.
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(pool.idle.lock().expect("unpoisoned").of_target[&target].len(), 1);
        }
        tokio::time::sleep(IDLE_MAX * 2).await;
        let idle = pool.idle.lock().expect("unpoisoned");
        assert!(idle.of_target.is_empty() && !idle.is_swept);
    }

    #[test]
    fn names_never_lead_to_a_machines_metadata() {
        for (ip, forbidden) in [
            ("169.254.169.254", true),
            ("fe80::1", true),
            ("::ffff:169.254.169.254", true),
            ("0.0.0.0", true),
            ("127.0.0.1", false),
            ("10.0.0.1", false),
            ("203.0.113.1", false),
        ] {
            assert_eq!(is_forbidden(ip.parse().expect("an address")), forbidden, "{ip}");
        }
    }
}
