//! The way to origins: a worker thread's own pool of HTTP/1.1 connections, with limits on everything an origin
//! can do to us.
//!
//! Targets come from the fleet file alone, never from a request, and names that resolve to link-local addresses
//! are refused, so that nobody can be made to fetch a machine's metadata.

mod body;
mod connect;
mod error;
mod target;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use nearcast_fleet::config::OriginLimits;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

pub(crate) use self::body::{OriginBody, OriginRequestBody};
use self::body::{Returning, UploadProgress};
pub(crate) use self::error::{OriginError, TlsFault};
pub(crate) use self::target::{Address, Target};
use self::tls::TargetTls;
pub(crate) use self::tls::{DefaultTls, TlsFileError};
use crate::policy::coding::TransferCoding;

/// The origin may take nothing of a request's body for this much longer than the client may send nothing, so that a pause of
/// the client's is found to be one.
const TAKE_GRACE: Duration = Duration::from_secs(5);
/// How long a kept connection may lie idle.
const IDLE_MAX: Duration = Duration::from_secs(50);
/// Idle connections kept to one origin by one worker.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// A connection reads this much at once at most, unless heads may be larger. hyper's own limit is six times as much; each
/// connection keeps the buffer it has grown to, and a byte of it that waits in a slice keeps all of it.
const READ_BYTES_MAX: usize = 64 << 10;

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
}

impl OriginPool {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { idle: Mutex::default() })
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
            let sender = connect(target).await?;
            return self.exchange(sender, target, request).await.map_err(|(error, _)| error);
        }
        let sender = connect(target).await?;
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
        let mut progress = request.body().progress();
        let is_head = *request.method() == Method::HEAD;
        match answered(sender.try_send_request(request), progress.as_mut(), &target.limits).await {
            Err(error) => Err((error, None)),
            Ok(Err(mut failed)) => {
                let unsent = failed.take_message();
                let of_body = progress.and_then(|progress| *progress.borrow());
                Err((of_body.unwrap_or_else(|| classify(failed.error())), unsent))
            }
            // The connection ends with its sender: what follows on it cannot be told from the body.
            Ok(Ok(response)) if !is_head && has_unknown_coding(&response) => Err((OriginError::TransferCoding, None)),
            Ok(Ok(response)) => Ok(response.map(|body| {
                let connection = Returning { pool: self.clone(), target: target.clone(), sender };
                OriginBody::new(body, connection)
            })),
        }
    }
}

async fn connect(target: &Target) -> Result<SendRequest<OriginRequestBody>, OriginError> {
    let deadline = Instant::now() + target.limits.connect;
    tokio::time::timeout_at(deadline, connect_by(target, deadline)).await.unwrap_or(Err(OriginError::ConnectTimeout))
}

async fn connect_by(target: &Target, deadline: Instant) -> Result<SendRequest<OriginRequestBody>, OriginError> {
    let stream = connect::open(&target.address, deadline).await?;
    let Some(TargetTls { config, name }) = &target.tls else { return handshake(stream, &target.limits).await };
    let name = name.clone().ok_or(OriginError::Tls(TlsFault::WrongName))?;
    let connector = tokio_rustls::TlsConnector::from(config.clone());
    let stream = connector.connect(name, stream).await.map_err(|error| OriginError::Tls(TlsFault::of_handshake(&error)))?;
    handshake(stream, &target.limits).await
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

/// Waits for a response's head: within the time to the first byte once the request has gone, which takes as long as it goes on.
async fn answered<T>(
    sending: impl Future<Output = T>,
    progress: Option<&mut UploadProgress>,
    limits: &OriginLimits,
) -> Result<T, OriginError> {
    let mut sending = std::pin::pin!(sending);
    if let Some(progress) = progress {
        let most = limits.request_pause + TAKE_GRACE;
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => return Ok(sent),
                piece = tokio::time::timeout(most, progress.changed()) => match piece {
                    Ok(Ok(())) => {}
                    // The body is gone: all of it was taken.
                    Ok(Err(_)) => break,
                    Err(_) => return Err(OriginError::FirstByteTimeout),
                },
            }
        }
    }
    tokio::time::timeout(limits.first_byte, sending).await.map_err(|_| OriginError::FirstByteTimeout)
}

async fn handshake<S>(stream: S, limits: &OriginLimits) -> Result<SendRequest<OriginRequestBody>, OriginError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    let head_bytes_max = limits.head_bytes_max.0 as usize;
    builder.max_headers(limits.fields_max).max_header_size(head_bytes_max).max_buf_size(READ_BYTES_MAX.max(head_bytes_max));
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| OriginError::Protocol)?;
    // Its end shows up at the sender or at the body.
    tokio::spawn(connection);
    Ok(sender)
}

/// Whether a response has a body that cannot be read. Where the standard gives it none, the field is about what there would be.
fn has_unknown_coding<B>(response: &Response<B>) -> bool {
    let has_body = !matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    has_body && !TransferCoding::of(response.headers()).is_understood()
}

fn classify(error: &hyper::Error) -> OriginError {
    // A server may refuse a client's certificate only when the handshake is over for the client (RFC 8446 section 4.4.2).
    if let Some(fault) = TlsFault::find(error) {
        OriginError::Tls(fault)
    } else if error.is_user() || error.is_body_write_aborted() {
        OriginError::RequestBody
    } else if error.is_parse_too_large() {
        OriginError::HeadTooLarge
    } else if error.is_parse() {
        OriginError::Protocol
    } else {
        // Closed before the head was whole: cancelled, incomplete or a broken socket.
        OriginError::Terminated
    }
}
