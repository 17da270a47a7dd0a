//! Requests to origins by HTTP/1.1 and HTTP/2, with a limit on everything that an origin can do to
//! this node.
//!
//! Targets come from the fleet file alone, never from a request, and names that resolve to link-local
//! addresses are refused: no client can make a node fetch the metadata of a machine. [`choose`] picks
//! one of a site's origins, [`connect`] opens connections, [`connections`] limits and keeps them.
//! [`http2`] carries several requests on one connection. [`health`] holds what is known of an origin: its
//! circuit [`breaker`] and its retry [`budget`]. Follows RFC 9110 section 9.2.2, RFC 9112 and RFC 9113.

mod backoff;
mod body;
mod breaker;
mod budget;
mod choose;
mod connect;
mod connections;
mod error;
mod health;
mod http2;
mod origins;
mod sessions;
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
pub(crate) use self::connections::{ClientWaits, Purpose};
use self::connections::{Permit, StreamAnswer, StreamPlace};
pub(crate) use self::error::{OriginError, TlsFault};
use self::health::Selected;
use self::http2::{Failed, Processed, Session};
pub(crate) use self::origins::Origins;
pub(crate) use self::target::{Address, Target};
pub(crate) use self::tls::to_failure as tls_failure;
use crate::metrics::OriginProtocol;
use nearcast_http_rules::transfer_coding::TransferCoding;

/// How much longer than the longest pause of a client the origin may pause while a request's body is
/// sent, so that a client's pause is not taken for the origin's.
const TAKE_GRACE: Duration = Duration::from_secs(5);
/// Largest read buffer of a connection, unless heads may be larger. hyper's own limit is six times as
/// large; each connection keeps the buffer that it has grown to, and one byte of it in a slice keeps
/// all of it.
const READ_BYTES_MAX: usize = 64 << 10;

/// How often one request is sent: on a kept connection, and then on new ones. Retries also have a budget.
const TRIES_MAX: usize = 3;

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
    /// A kept connection may be closing just now. With HTTP/1.1 that leaves open whether a request on it
    /// was received, so only requests that may be sent twice use one; every other request has a new
    /// connection of its own (RFC 9110 section 9.2.2). With HTTP/2 an origin that closes a connection
    /// says which requests it has not processed (RFC 9113 section 6.8), so all requests share.
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
        mut request: Request<OriginRequestBody>,
    ) -> Result<Response<OriginBody>, OriginError> {
        let has_body = !matches!(request.body(), OriginRequestBody::Empty);
        let purpose = match request.extensions().get::<Purpose>() {
            Some(purpose) => *purpose,
            None if has_body => Purpose::Upload,
            None => Purpose::Client,
        };
        let permit = target
            .connections
            .permit(purpose, target.limits.connection_wait);
        let mut permit = match request.extensions_mut().remove::<ClientWaits>() {
            None => permit.await?,
            // The origin has nothing of the request yet, so that it changes nothing: its client's
            // body, which may be large, is not kept while it waits for nobody.
            Some(client) => tokio::select! {
                biased;
                permit = permit => permit?,
                () = client.gone() => return Err(OriginError::RequestBody),
            },
        };
        let is_repeatable = !has_body
            && matches!(
                *request.method(),
                Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
            );

        let mut may_reuse = is_repeatable;
        let mut tries = 0;
        loop {
            tries += 1;
            let route = self.route(target, &mut permit, may_reuse).await?;
            let is_kept = route.is_kept();
            let again = (!has_body).then(|| copy(&request));
            let failed = match route {
                Route::Http1 { sender, .. } => match exchange(sender, target, request).await {
                    Ok(answered) => return Ok(self.body(answered, target, permit)),
                    Err(failed) => failed,
                },
                Route::Http2 { session, place, .. } => {
                    match http2::exchange(&session, target, request).await {
                        Ok(response) => {
                            let between_bytes = target.limits.between_bytes;
                            return Ok(response.map(|mut body| {
                                body.hold(place.with_permit(permit));
                                OriginBody::streamed(body, between_bytes)
                            }));
                        }
                        Err(failed) => failed,
                    }
                }
            };

            let Failed {
                error,
                processed,
                unsent,
            } = failed;
            if processed == Processed::NeedsHttp1 {
                target.health.note_http1_required(Instant::now());
            }
            let may_repeat = match processed {
                Processed::No | Processed::NeedsHttp1 => true,
                // The connection was closed before it carried the request, as far as is known.
                Processed::Maybe => is_kept && is_repeatable && error == OriginError::Terminated,
            };
            request = match (unsent, again) {
                (Some(unsent), _) if is_kept && tries < TRIES_MAX => unsent,
                (None, Some(again)) if may_repeat && tries < TRIES_MAX && target.take_retry() => {
                    again
                }
                _ => return Err(error),
            };
            may_reuse = false;
        }
    }

    /// The connection for a request: one that exists, or a new one.
    async fn route(
        &self,
        target: &Arc<Target>,
        permit: &mut Permit,
        may_reuse: bool,
    ) -> Result<Route, OriginError> {
        let connections = &target.connections;
        while target.may_share() {
            let mut opened = match connections.stream(target, self.worker) {
                StreamAnswer::Found(session, place) => {
                    return Ok(Route::Http2 {
                        session,
                        place,
                        is_kept: true,
                    });
                }
                StreamAnswer::Missing(opening) => {
                    let route = self.open(target, permit).await;
                    match &route {
                        // The others wait to learn how many requests the origin permits.
                        Ok(Route::Http2 { session, .. }) => {
                            let settled = session.settled();
                            tokio::spawn(async move {
                                if settled.await {
                                    opening.end(Ok(()));
                                }
                            });
                        }
                        Ok(Route::Http1 { .. }) => opening.end(Ok(())),
                        Err(error) => opening.end(Err(*error)),
                    }
                    return route;
                }
                StreamAnswer::IsOpening(opened) => opened,
            };
            // Whoever opens it has the same time.
            let outcome = tokio::time::timeout(
                target.limits.connect,
                opened.wait_for(|outcome| outcome.is_some()),
            );
            let outcome = match outcome.await {
                Err(_) => return Err(OriginError::ConnectTimeout),
                // The request that opened it was dropped.
                Ok(Err(_)) => continue,
                Ok(Ok(outcome)) => *outcome,
            };
            if let Some(Err(error)) = outcome {
                return Err(error);
            }
        }
        if may_reuse && let Some(sender) = connections.take_idle(target, self.worker, permit) {
            let is_kept = true;
            return Ok(Route::Http1 { sender, is_kept });
        }
        self.open(target, permit).await
    }

    /// Opens a connection, and shares it if the origin selects HTTP/2.
    async fn open(&self, target: &Arc<Target>, permit: &mut Permit) -> Result<Route, OriginError> {
        target.connections.open(permit);
        let is_kept = false;
        let offer = match target.offers_http2() {
            true => Offer::Http2,
            false => Offer::Http1,
        };
        // Most requests need no new connection, or wait for one: they are not to be so large.
        let connected = Box::pin(self.connect(target, offer)).await?;
        if offer == Offer::Http2 {
            target.health.note_selected(match connected {
                Connected::Http1(_) => Selected::Http1,
                Connected::Http2(_) => Selected::Http2,
            });
        }
        Ok(match connected {
            Connected::Http1(sender) => Route::Http1 { sender, is_kept },
            Connected::Http2(session) => Route::Http2 {
                place: target.connections.share(
                    target.clone(),
                    session.clone(),
                    self.worker,
                    permit,
                ),
                session,
                is_kept,
            },
        })
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
            // Only HTTP/1.1 has upgrades.
            let Connected::Http1(sender) = self.connect(target, Offer::Upgrade).await? else {
                return Err(OriginError::Protocol);
            };
            exchange(sender, target, request)
                .await
                .map_err(|failed| failed.error)
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

    /// Opens a connection.
    async fn connect(&self, target: &Target, offer: Offer) -> Result<Connected, OriginError> {
        let deadline = Instant::now() + target.limits.connect;
        let connected = async {
            match self.dialer.dial(&target.address, deadline).await? {
                Stream::Tcp(stream) => start_http(stream, target, offer).await,
                #[cfg(test)]
                Stream::Memory(stream) => start_http(stream, target, offer).await,
            }
        };
        let connected = tokio::time::timeout_at(deadline, connected)
            .await
            .unwrap_or(Err(OriginError::ConnectTimeout))?;
        target.connections.note_opened(match connected {
            Connected::Http1(_) => OriginProtocol::Http1,
            Connected::Http2(_) => OriginProtocol::Http2,
        });
        Ok(connected)
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

/// The protocols that a connection is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offer {
    Http1,
    /// HTTP/1.1, with the permission to change to another protocol.
    Upgrade,
    /// HTTP/2, or HTTP/1.1 if the origin selects that.
    Http2,
}

/// A new connection.
enum Connected {
    Http1(SendRequest<OriginRequestBody>),
    Http2(Session),
}

/// The connection that a request uses. `is_kept` when it existed before, so that the origin may have
/// closed it.
enum Route {
    Http1 {
        sender: SendRequest<OriginRequestBody>,
        is_kept: bool,
    },
    Http2 {
        session: Session,
        place: StreamPlace,
        is_kept: bool,
    },
}

impl Route {
    fn is_kept(&self) -> bool {
        match self {
            Self::Http1 { is_kept, .. } | Self::Http2 { is_kept, .. } => *is_kept,
        }
    }
}

/// A response's head, and the connection that it was received on.
type Answered = (Response<Incoming>, SendRequest<OriginRequestBody>);

/// Sends a request on a connection of HTTP/1.1.
async fn exchange(
    mut sender: SendRequest<OriginRequestBody>,
    target: &Target,
    request: Request<OriginRequestBody>,
) -> Result<Answered, Failed> {
    if sender.ready().await.is_err() {
        return Err(Failed {
            unsent: Some(request),
            ..Failed::of(OriginError::Terminated)
        });
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
        Err(error) => Err(Failed::of(error)),
        Ok(Err(mut failed)) => {
            let unsent = failed.take_message();
            let of_body = progress.and_then(|progress| *progress.borrow());
            let error = of_body.unwrap_or_else(|| classify(failed.error()));
            Err(Failed {
                unsent,
                ..Failed::of(error)
            })
        }
        // The end of such a body is unknown, so the connection is closed with its sender.
        Ok(Ok(response)) if !is_head && has_unknown_coding(&response) => {
            Err(Failed::of(OriginError::TransferCoding))
        }
        Ok(Ok(response)) => Ok((response, sender)),
    }
}

/// Secures a connection where the target says so, and starts the version of HTTP on it that the origin
/// selects from the offer.
async fn start_http<S>(stream: S, target: &Target, offer: Offer) -> Result<Connected, OriginError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let may_switch = offer == Offer::Upgrade;
    let Some(tls) = &target.tls else {
        let sender = handshake(stream, &target.limits, may_switch).await?;
        return Ok(Connected::Http1(sender));
    };
    let name = tls.name.clone();
    let name = name.ok_or(OriginError::Tls(TlsFault::WrongName))?;
    let config = match (&tls.http2, offer) {
        (Some(http2), Offer::Http2) => http2,
        _ => &tls.config,
    };
    let connector = tokio_rustls::TlsConnector::from(config.clone());
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| OriginError::Tls(TlsFault::of_handshake(&error)))?;
    if stream.get_ref().1.alpn_protocol() == Some(http2::ALPN) {
        let session = Session::start(stream, &target.limits).await?;
        return Ok(Connected::Http2(session));
    }
    let sender = handshake(stream, &target.limits, may_switch).await?;
    Ok(Connected::Http1(sender))
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
