//! Bodies on their way to an origin and from it, with a limit on each pause.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::{OriginError, OriginPool, Target};

/// How long it may pause within a body.
pub(super) const BETWEEN_BYTES_MAX: Duration = Duration::from_secs(15);
/// How long a client may pause within a request's body.
const REQUEST_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request's body.
pub(crate) const REQUEST_BYTES_MAX: u64 = 1 << 30;

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
    pub(super) fn taken(&self) -> Option<watch::Receiver<()>> {
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

pub(super) struct Returning {
    pub(super) pool: Arc<OriginPool>,
    pub(super) target: Arc<Target>,
    pub(super) sender: SendRequest<OriginRequestBody>,
}

/// The body of an origin's response. Its connection is kept for the next request once it was read to the end.
pub(crate) struct OriginBody {
    pub(super) body: Incoming,
    pub(super) pause: Option<Pin<Box<Sleep>>>,
    pub(super) connection: Option<Returning>,
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
