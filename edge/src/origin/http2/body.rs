//! The bodies of a request and of its response on an HTTP/2 stream.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::Response;
use http::header::CONTENT_LENGTH;
use http_body::Body;
use tokio::task::JoinHandle;

use super::super::connections::StreamPlace;
use super::super::{OriginError, OriginRequestBody};
use super::Session;

/// How long the rest of a request body may take that the origin answered early and completely.
const REST_MAX: Duration = Duration::from_secs(10);

/// A request body that is being sent. Dropping it ends the request.
pub(super) struct Sending(Pin<Box<dyn Future<Output = Result<(), OriginError>> + Send>>);

impl Sending {
    pub(super) fn new(
        sending: impl Future<Output = Result<(), OriginError>> + Send + 'static,
    ) -> Self {
        Self(Box::pin(sending))
    }

    /// The result, once all was sent or could not be.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Option<Result<(), OriginError>> {
        match self.0.as_mut().poll(cx) {
            Poll::Ready(sent) => Some(sent),
            Poll::Pending => None,
        }
    }
}

/// Sends a body as the origin takes it. Its own errors are returned; those of the stream are left to
/// the response, which says more about them.
pub(super) async fn send(
    mut body: OriginRequestBody,
    mut stream: SendStream<Bytes>,
) -> Result<(), OriginError> {
    loop {
        let next = poll_fn(|cx| {
            if let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(cx) {
                return Poll::Ready(Some(frame));
            }
            // The origin may want no more of it (RFC 9113 section 8.1).
            stream.poll_reset(cx).map(|_| None)
        });
        match next.await {
            None => return Ok(()),
            Some(None) => {
                let _ = stream.send_data(Bytes::new(), true);
                return Ok(());
            }
            Some(Some(Err(error))) => {
                stream.send_reset(Reason::CANCEL);
                return Err(error);
            }
            Some(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                if !send_piece(&mut stream, data).await {
                    return Ok(());
                }
            }
        }
    }
}

/// Sends one piece as flow control permits; `false` when the stream is over.
async fn send_piece(stream: &mut SendStream<Bytes>, mut data: Bytes) -> bool {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let Some(Ok(capacity)) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return false;
        };
        let piece = data.split_to(capacity.min(data.len()));
        if stream.send_data(piece, false).is_err() {
            return false;
        }
    }
    true
}

/// The body of a response on a stream. Dropping it before its end resets the stream and leaves the
/// connection to the others.
pub(in super::super) struct ResponseBody {
    stream: RecvStream,
    length: Option<u64>,
    is_data_over: bool,
    /// The rest of the request's body, which the origin answered before its end.
    rest: Option<JoinHandle<Result<(), OriginError>>>,
    session: Session,
    place: Option<StreamPlace>,
}

impl ResponseBody {
    pub(super) fn of(
        response: Response<RecvStream>,
        is_head: bool,
        sending: Option<Sending>,
        session: Session,
    ) -> Response<Self> {
        let length = match response.body().is_end_stream() || is_head {
            true => Some(0),
            // Several equal ones may be there; others were refused.
            false => response
                .headers()
                .get(CONTENT_LENGTH)
                .and_then(|value| value.to_str().ok()?.parse().ok()),
        };
        let rest = sending.map(|sending| tokio::spawn(sending.0));
        response.map(|stream| Self {
            stream,
            length,
            is_data_over: false,
            rest,
            session,
            place: None,
        })
    }

    /// Counts the stream as in use until the body has ended or is dropped.
    pub(in super::super) fn hold(&mut self, place: StreamPlace) {
        self.place = Some(place);
    }

    pub(in super::super) fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next piece; `None` at the end of a complete body. Trailers are dropped.
    pub(in super::super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, OriginError>> {
        while !self.is_data_over {
            match std::task::ready!(self.stream.poll_data(cx)) {
                None => self.is_data_over = true,
                Some(Ok(data)) => {
                    // The room is for the next bytes on the stream and on the connection.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if !data.is_empty() {
                        return Poll::Ready(Ok(Some(data)));
                    }
                }
                // A reset is no end, whatever its reason: the complete body precedes the reset of a
                // request that is not (RFC 9113 section 8.1).
                Some(Err(_)) => return Poll::Ready(Err(OriginError::Incomplete)),
            }
        }
        let trailers = std::task::ready!(self.stream.poll_trailers(cx));
        if trailers.is_err() {
            return Poll::Ready(Err(OriginError::Incomplete));
        }
        self.end();
        Poll::Ready(Ok(None))
    }

    /// A response of which nothing came for too long: the connection may be dead.
    pub(in super::super) fn timed_out(&self) {
        self.session.doubt();
    }

    /// Gives back the stream's place after a complete body.
    fn end(&mut self) {
        let place = self.place.take();
        let Some(mut rest) = self.rest.take().filter(|rest| !rest.is_finished()) else {
            return;
        };
        tokio::spawn(async move {
            if tokio::time::timeout(REST_MAX, &mut rest).await.is_err() {
                rest.abort();
            }
            drop(place);
        });
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if self.stream.is_end_stream() {
            self.end();
        } else if let Some(rest) = &self.rest {
            rest.abort();
        }
    }
}
