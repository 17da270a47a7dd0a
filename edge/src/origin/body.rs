//! The bodies of requests to origins and of their responses, with a limit on each pause.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use nearcast_fleet::config::OriginLimits;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::connections::Permit;
use super::http2::ResponseBody;
use super::{OriginError, Target};
use crate::request_body::RequestBody;

/// The body of a request to an origin.
pub(crate) enum OriginRequestBody {
    /// None.
    Empty,
    /// The client's body, as it is received.
    Client(Upload),
}

impl OriginRequestBody {
    pub(crate) fn client(body: RequestBody, limits: &OriginLimits) -> Self {
        let left = limits.request_bytes_max.map_or(u64::MAX, |most| most.0);
        Self::Client(Upload {
            body,
            pause: Pause::new(limits.request_pause),
            left,
            progress: watch::channel(None).0,
            has_begun: false,
        })
    }

    /// Reports the progress of sending; `None` when there is no body.
    pub(super) fn progress(&self) -> Option<UploadProgress> {
        match self {
            Self::Empty => None,
            Self::Client(upload) => Some(upload.progress.subscribe()),
        }
    }
}

/// Changes with each piece that is sent, and ends with the last. Contains the error of a body that
/// failed.
pub(super) type UploadProgress = watch::Receiver<Option<OriginError>>;

/// A client's body that is sent to an origin, with a limit on its length and on each pause of the
/// client.
pub(crate) struct Upload {
    body: RequestBody,
    pause: Pause,
    left: u64,
    progress: watch::Sender<Option<OriginError>>,
    has_begun: bool,
}

impl Upload {
    fn fail(&self, error: OriginError) -> Poll<Option<Result<Frame<Bytes>, OriginError>>> {
        self.progress.send_replace(Some(error));
        Poll::Ready(Some(Err(error)))
    }
}

/// A limit on each pause. The timer runs only while a pause lasts.
#[derive(Debug)]
struct Pause {
    most: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    is_running: bool,
}

impl Pause {
    fn new(most: Duration) -> Self {
        Self {
            most,
            timer: None,
            is_running: false,
        }
    }

    /// Ready when the current pause has lasted too long.
    fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.most)));
        if !std::mem::replace(&mut self.is_running, true) {
            timer.as_mut().reset(Instant::now() + self.most);
        }
        timer.as_mut().poll(cx)
    }

    /// Ends the current pause.
    fn end(&mut self) {
        self.is_running = false;
    }
}

impl Body for OriginRequestBody {
    type Data = Bytes;
    type Error = OriginError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, OriginError>>> {
        let Self::Client(upload) = &mut *self else {
            return Poll::Ready(None);
        };
        if !std::mem::replace(&mut upload.has_begun, true) {
            // The head is sent first, so that the origin can reject the request before the body.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Poll::Ready(frame) = Pin::new(&mut upload.body).poll_frame(cx) else {
            return match upload.pause.poll_elapsed(cx) {
                Poll::Ready(()) => upload.fail(OriginError::RequestPause),
                Poll::Pending => Poll::Pending,
            };
        };
        upload.pause.end();
        match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => match upload.left.checked_sub(data.len() as u64) {
                Some(left) => {
                    upload.left = left;
                    upload.progress.send_replace(None);
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                None => upload.fail(OriginError::RequestTooLarge),
            },
            // Trailers are dropped: no request announces that it forwards them.
            Some(Ok(Err(_))) | None => Poll::Ready(None),
            Some(Err(_)) => upload.fail(OriginError::RequestBody),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(upload) => upload.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(upload) => upload.body.size_hint(),
        }
    }
}

/// A connection that is kept for the next request once its response's body has ended.
pub(super) struct Returning {
    pub(super) target: Arc<Target>,
    pub(super) worker: usize,
    pub(super) sender: SendRequest<OriginRequestBody>,
    pub(super) permit: Permit,
}

impl Returning {
    fn keep(self) {
        let Self {
            target,
            worker,
            sender,
            permit,
        } = self;
        let connections = target.connections.clone();
        connections.keep(target, sender, worker, permit);
    }
}

/// How long a connection may take to be ready for the next request after a response has ended. It is
/// not ready while it still sends the rest of a request that was answered early.
const READY_MAX: Duration = Duration::from_secs(10);

/// The body of an origin's response. Its connection is kept for the next request once the body has
/// been read to the end.
pub(crate) struct OriginBody {
    source: Source,
    pause: Pause,
}

/// The connection or stream that a body is read from.
enum Source {
    Http1 {
        body: Incoming,
        connection: Option<Box<Returning>>,
        /// The sender of a connection that is not kept: the connection would end with it.
        _sender: Option<SendRequest<OriginRequestBody>>,
    },
    Http2(Box<ResponseBody>),
}

impl OriginBody {
    pub(super) fn new(body: Incoming, connection: Returning) -> Self {
        let pause = Pause::new(connection.target.limits.between_bytes);
        let source = Source::Http1 {
            body,
            connection: Some(Box::new(connection)),
            _sender: None,
        };
        Self { source, pause }
    }

    /// The body of a response on a connection that is not kept.
    pub(super) fn alone(
        body: Incoming,
        sender: SendRequest<OriginRequestBody>,
        between_bytes: Duration,
    ) -> Self {
        let source = Source::Http1 {
            body,
            connection: None,
            _sender: Some(sender),
        };
        let pause = Pause::new(between_bytes);
        Self { source, pause }
    }

    /// The body of a response on a stream of HTTP/2.
    pub(super) fn streamed(body: ResponseBody, between_bytes: Duration) -> Self {
        Self {
            source: Source::Http2(Box::new(body)),
            pause: Pause::new(between_bytes),
        }
    }

    /// The next piece; `None` at the end of a complete body.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Its length, where the head states it.
    pub(crate) fn length(&self) -> Option<u64> {
        match &self.source {
            Source::Http1 { body, .. } => body.size_hint().exact(),
            Source::Http2(body) => body.length(),
        }
    }

    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, OriginError>> {
        let polled = match &mut self.source {
            Source::Http1 {
                body, connection, ..
            } => poll_http1(body, connection, cx),
            Source::Http2(body) => body.poll_next(cx),
        };
        let Poll::Ready(piece) = polled else {
            if self.pause.poll_elapsed(cx).is_pending() {
                return Poll::Pending;
            }
            if let Source::Http2(body) = &self.source {
                body.timed_out();
            }
            return Poll::Ready(Err(OriginError::BetweenBytesTimeout));
        };
        self.pause.end();
        Poll::Ready(piece)
    }
}

/// The next piece of a body on a connection of its own, which is kept at the body's end.
fn poll_http1(
    body: &mut Incoming,
    connection: &mut Option<Box<Returning>>,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Bytes>, OriginError>> {
    loop {
        match std::task::ready!(Pin::new(&mut *body).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Poll::Ready(Ok(Some(data))),
                Err(_trailers) => {}
            },
            Some(Err(_)) => {
                *connection = None;
                return Poll::Ready(Err(OriginError::Incomplete));
            }
            None => {
                give_back(connection);
                return Poll::Ready(Ok(None));
            }
        }
    }
}

fn give_back(connection: &mut Option<Box<Returning>>) {
    let Some(mut returning) = connection.take() else {
        return;
    };
    if returning.sender.is_ready() {
        return returning.keep();
    }
    // The connection's task has not noticed yet that the body was read.
    tokio::spawn(async move {
        if let Ok(Ok(())) = tokio::time::timeout(READY_MAX, returning.sender.ready()).await {
            returning.keep();
        }
    });
}

impl Drop for OriginBody {
    fn drop(&mut self) {
        if let Source::Http1 {
            body, connection, ..
        } = &mut self.source
            && connection.is_some()
            && body.is_end_stream()
        {
            give_back(connection);
        }
    }
}
