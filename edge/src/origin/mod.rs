//! Requests to origins on HTTP/1.1 connections, with a limit on everything that an origin can do to
//! this node.
//!
//! Targets come from the fleet file alone, never from a request, and names that resolve to link-local
//! addresses are refused: no client can make a node fetch the metadata of a machine. [`choose`] picks
//! one of a site's origins, [`connect`] opens connections, [`connections`] limits and keeps them.
//! [`health`] holds what is known of an origin: its circuit [`breaker`] and its retry [`budget`].
//! Follows RFC 9110 section 9.2.2 and RFC 9112.

mod backoff;
mod body;
mod breaker;
mod budget;
mod choose;
mod connect;
mod connections;
mod error;
mod health;
mod origins;
mod target;
#[cfg(test)]
mod tests;
mod tls;

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use nearcast_fleet::config::OriginLimits;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

pub(crate) use self::backoff::{Backoff, Failing};
pub(crate) use self::body::{OriginBody, OriginRequestBody};
use self::body::{Returning, UploadProgress};
use self::breaker::Sign;
pub(crate) use self::choose::SiteOrigins;
pub(crate) use self::connect::Dialer;
use self::connect::Stream;
use self::connections::Permit;
pub(crate) use self::connections::Purpose;
pub(crate) use self::error::{OriginError, TlsFault};
pub(crate) use self::origins::Origins;
pub(crate) use self::target::{Address, Target};
use self::tls::TargetTls;
pub(crate) use self::tls::TlsFileError;
use nearcast_http_rules::transfer_coding::TransferCoding;

/// How much longer than the longest pause of a client the origin may pause while a request's body is
/// sent, so that a client's pause is not taken for the origin's.
const TAKE_GRACE: Duration = Duration::from_secs(5);
/// Largest read buffer of a connection, unless heads may be larger. hyper's own limit is six times as
/// large; each connection keeps the buffer that it has grown to, and one byte of it in a slice keeps
/// all of it.
const READ_BYTES_MAX: usize = 64 << 10;

/// Sends the requests of one worker to origins.
pub(crate) struct OriginPool {
    /// The worker on whose runtime the connections run.
    worker: usize,
    dialer: Dialer,
}

impl OriginPool {
    pub(crate) fn new(worker: usize) -> Arc<Self> {
        Self::with_dialer(worker, Dialer::Tcp)
    }

    /// A pool that opens its connections by `dialer`.
    pub(crate) fn with_dialer(worker: usize, dialer: Dialer) -> Arc<Self> {
        Arc::new(Self { worker, dialer })
    }

    /// Sends a request, whose URI is in origin form, and waits for the head of the response. The
    /// request's extensions hold its [`Purpose`], where it is not for a client.
    ///
    /// An idle connection may be closing just now. So it is used only for a request that may be sent
    /// twice, which is sent again on a new connection in that case; every other request has a new
    /// connection of its own (RFC 9110 section 9.2.2).
    pub(crate) async fn send(
        &self,
        target: &Arc<Target>,
        request: Request<OriginRequestBody>,
    ) -> Result<Response<OriginBody>, OriginError> {
        let has_body = !matches!(request.body(), OriginRequestBody::Empty);
        let attempt = target.health.ask(has_body)?;
        let url = url_hash(&request);
        let sent = self.send_asked(target, request).await;
        let sign = sent
            .as_ref()
            .map_or_else(|error| Sign::of(*error), |_| Sign::Alive);
        attempt.end(sign, url, target.limits.connect + target.limits.first_byte);
        sent
    }

    async fn send_asked(
        &self,
        target: &Arc<Target>,
        request: Request<OriginRequestBody>,
    ) -> Result<Response<OriginBody>, OriginError> {
        let has_body = !matches!(request.body(), OriginRequestBody::Empty);
        let purpose = match request.extensions().get::<Purpose>() {
            Some(purpose) => *purpose,
            None if has_body => Purpose::Upload,
            None => Purpose::Client,
        };
        let mut permit = target
            .connections
            .permit(purpose, target.limits.connection_wait)
            .await?;
        let is_repeatable = !has_body
            && matches!(
                *request.method(),
                Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
            );
        let kept = if is_repeatable {
            target
                .connections
                .take_idle(target, self.worker, &mut permit)
        } else {
            None
        };
        let request = match kept {
            None => request,
            Some(sender) => {
                let again = copy(&request);
                match exchange(sender, target, request).await {
                    Ok(answered) => return Ok(self.body(answered, target, permit)),
                    Err((_, Some(unsent))) => unsent,
                    Err((OriginError::Terminated, None)) if target.take_retry() => again,
                    Err((error, None)) => return Err(error),
                }
            }
        };
        target.connections.open(&mut permit);
        let sender = self.connect(target, false).await?;
        let answered = exchange(sender, target, request)
            .await
            .map_err(|(error, _)| error)?;
        Ok(self.body(answered, target, permit))
    }

    /// Sends a request for another protocol on a connection of its own, which the site's limit does
    /// not count: it may last for hours.
    pub(crate) async fn upgrade(
        &self,
        target: &Arc<Target>,
        request: Request<OriginRequestBody>,
    ) -> Result<UpgradeAnswer, OriginError> {
        let attempt = target.health.ask(false)?;
        let url = url_hash(&request);
        let sent = async {
            let sender = self.connect(target, true).await?;
            exchange(sender, target, request)
                .await
                .map_err(|(error, _)| error)
        };
        let sent = sent.await;
        let sign = sent
            .as_ref()
            .map_or_else(|error| Sign::of(*error), |_| Sign::Alive);
        attempt.end(sign, url, target.limits.connect + target.limits.first_byte);
        let (mut response, sender) = sent?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let switched = hyper::upgrade::on(&mut response)
                .await
                .map_err(|_| OriginError::Protocol)?;
            return Ok(UpgradeAnswer::Switched(response.into_parts().0, switched));
        }
        let (head, body) = response.into_parts();
        Ok(UpgradeAnswer::Refused(
            head,
            Box::new(OriginBody::alone(body, sender, target.limits.between_bytes)),
        ))
    }

    /// Opens a connection; `may_switch` allows it to change to another protocol.
    async fn connect(
        &self,
        target: &Target,
        may_switch: bool,
    ) -> Result<SendRequest<OriginRequestBody>, OriginError> {
        let deadline = Instant::now() + target.limits.connect;
        let connected = async {
            match self.dialer.dial(&target.address, deadline).await? {
                Stream::Tcp(stream) => start_http(stream, target, may_switch).await,
                #[cfg(test)]
                Stream::Memory(stream) => start_http(stream, target, may_switch).await,
            }
        };
        tokio::time::timeout_at(deadline, connected)
            .await
            .unwrap_or(Err(OriginError::ConnectTimeout))
    }

    fn body(
        &self,
        (response, sender): Answered,
        target: &Arc<Target>,
        permit: Permit,
    ) -> Response<OriginBody> {
        let connection = Returning {
            target: target.clone(),
            worker: self.worker,
            sender,
            permit,
        };
        response.map(|body| OriginBody::new(body, connection))
    }
}

/// Identifies one endpoint of an origin: a host and a path. The query is left out, because clients
/// choose it freely for one slow endpoint.
fn url_hash<B>(request: &Request<B>) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    (request.headers().get(HOST), request.uri().path()).hash(&mut hasher);
    hasher.finish()
}

/// The same request without its body.
fn copy(request: &Request<OriginRequestBody>) -> Request<OriginRequestBody> {
    let mut copy = Request::new(OriginRequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

/// The response to a request for another protocol.
pub(crate) enum UpgradeAnswer {
    /// A 101, and the connection after it.
    Switched(http::response::Parts, hyper::upgrade::Upgraded),
    /// Any other response.
    Refused(http::response::Parts, Box<OriginBody>),
}

/// A response's head, and the connection that it was received on.
type Answered = (Response<Incoming>, SendRequest<OriginRequestBody>);

/// Sends a request on a connection. An error contains the request where nothing of it was sent.
async fn exchange(
    mut sender: SendRequest<OriginRequestBody>,
    target: &Target,
    request: Request<OriginRequestBody>,
) -> Result<Answered, (OriginError, Option<Request<OriginRequestBody>>)> {
    if sender.ready().await.is_err() {
        return Err((OriginError::Terminated, Some(request)));
    }
    let mut progress = request.body().progress();
    let is_head = *request.method() == Method::HEAD;
    match answered(
        sender.try_send_request(request),
        progress.as_mut(),
        &target.limits,
    )
    .await
    {
        Err(error) => Err((error, None)),
        Ok(Err(mut failed)) => {
            let unsent = failed.take_message();
            let of_body = progress.and_then(|progress| *progress.borrow());
            Err((of_body.unwrap_or_else(|| classify(failed.error())), unsent))
        }
        // The end of such a body is unknown, so the connection is closed with its sender.
        Ok(Ok(response)) if !is_head && has_unknown_coding(&response) => {
            Err((OriginError::TransferCoding, None))
        }
        Ok(Ok(response)) => Ok((response, sender)),
    }
}

/// Secures a connection where the target says so, and starts HTTP/1.1 on it.
async fn start_http<S>(
    stream: S,
    target: &Target,
    may_switch: bool,
) -> Result<SendRequest<OriginRequestBody>, OriginError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(TargetTls { config, name }) = &target.tls else {
        return handshake(stream, &target.limits, may_switch).await;
    };
    let name = name.clone().ok_or(OriginError::Tls(TlsFault::WrongName))?;
    let connector = tokio_rustls::TlsConnector::from(config.clone());
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| OriginError::Tls(TlsFault::of_handshake(&error)))?;
    handshake(stream, &target.limits, may_switch).await
}

/// Waits for a response's head. The time to the first byte counts from when all of the request's body
/// has been sent.
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
                    // All of the body was sent.
                    Ok(Err(_)) => break,
                    Err(_) => return Err(OriginError::FirstByteTimeout),
                },
            }
        }
    }
    tokio::time::timeout(limits.first_byte, sending)
        .await
        .map_err(|_| OriginError::FirstByteTimeout)
}

async fn handshake<S>(
    stream: S,
    limits: &OriginLimits,
    may_switch: bool,
) -> Result<SendRequest<OriginRequestBody>, OriginError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    let head_bytes_max = limits.head_bytes_max.0 as usize;
    builder
        .max_headers(limits.fields_max)
        .max_header_size(head_bytes_max)
        .max_buf_size(READ_BYTES_MAX.max(head_bytes_max));
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| OriginError::Protocol)?;
    // The sender or the body reports the end of the connection.
    if may_switch {
        tokio::spawn(connection.with_upgrades());
    } else {
        tokio::spawn(connection);
    }
    Ok(sender)
}

/// Whether a response has a body that cannot be read. A 204 and a 304 have none, whatever the field
/// says.
fn has_unknown_coding<B>(response: &Response<B>) -> bool {
    let has_body = !matches!(
        response.status(),
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    has_body && !TransferCoding::of(response.headers()).is_understood()
}

fn classify(error: &hyper::Error) -> OriginError {
    // A server may refuse a client's certificate only when the handshake is over for the client
    // (RFC 8446 section 4.4.2).
    if let Some(fault) = TlsFault::find(error) {
        OriginError::Tls(fault)
    } else if error.is_user() || error.is_body_write_aborted() {
        OriginError::RequestBody
    } else if error.is_parse_too_large() {
        OriginError::HeadTooLarge
    } else if error.is_parse() {
        OriginError::Protocol
    } else {
        // Closed before the head was complete: cancelled, incomplete or a broken socket.
        OriginError::Terminated
    }
}
