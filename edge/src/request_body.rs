//! The body of a client's request. Where a request was answered before all of its body was read, the
//! rest is dropped by a rule of the protocol.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use nearcast_net::linger::{After, Lingering};
use tokio::runtime::Handle;
use tokio::time::timeout_at;

/// A body that is received from a client.
pub(crate) struct RequestBody {
    /// `None` once it is dropped.
    body: Option<Incoming>,
    is_stream: bool,
}

impl RequestBody {
    /// A body of HTTP/1.1: the connection ends after an early answer, and reads on then.
    pub(crate) fn of_connection(body: Incoming) -> Self {
        Self {
            body: Some(body),
            is_stream: false,
        }
    }

    /// A body of a stream. A stream that is not read on after an early answer is reset at once, with
    /// NO_ERROR (RFC 9113 section 8.1). Some clients take that for a failure, and drop the answer. So
    /// the rest is received for a while, as at the end of a connection.
    pub(crate) fn of_stream(body: Incoming) -> Self {
        Self {
            body: Some(body),
            is_stream: true,
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| !body.is_end_stream());
        if self.is_stream
            && let Some(rest) = rest
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(drain(rest));
        }
    }
}

async fn drain(mut body: Incoming) {
    let mut lingering = Lingering::begin(After::Response);
    while let Some(deadline) = lingering.deadline() {
        let next = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        match timeout_at(deadline, next).await {
            Ok(Some(Ok(frame))) => lingering.note(frame.data_ref().map_or(0, Bytes::len)),
            _ => return,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
