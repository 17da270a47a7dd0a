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

use crate::serve::http3::upload::{Upload, UploadCut};

/// A body that is received from a client.
pub(crate) struct RequestBody {
    /// `None` once it is dropped.
    body: Option<Received>,
}

/// A body, by the protocol in which it comes.
enum Received {
    Connection(Incoming),
    Stream(Incoming),
    Http3(Box<Upload>),
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestBodyError {
    /// The connection failed, or what came on it was malformed.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The same in HTTP/3.
    #[error(transparent)]
    Http3(#[from] UploadCut),
}

impl RequestBody {
    /// A body of HTTP/1.1: the connection ends after an early answer, and reads on then.
    pub(crate) fn of_connection(body: Incoming) -> Self {
        Self {
            body: Some(Received::Connection(body)),
        }
    }

    /// A body of a stream. A stream that is not read on after an early answer is reset at once, with
    /// NO_ERROR (RFC 9113 section 8.1). Some clients take that for a failure, and drop the answer. So
    /// the rest is received for a while, as at the end of a connection.
    pub(crate) fn of_stream(body: Incoming) -> Self {
        Self {
            body: Some(Received::Stream(body)),
        }
    }

    /// A body of HTTP/3: its rest is not received after an early answer.
    pub(crate) fn of_http3(body: Upload) -> Self {
        Self {
            body: Some(Received::Http3(Box::new(body))),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(Received::Stream(rest)) = self.body.take()
            && !rest.is_end_stream()
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
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        match &mut self.body {
            Some(Received::Connection(body) | Received::Stream(body)) => {
                let frame = Pin::new(body).poll_frame(cx);
                frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            Some(Received::Http3(body)) => {
                let frame = Pin::new(&mut **body).poll_frame(cx);
                frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Some(Received::Connection(body) | Received::Stream(body)) => body.is_end_stream(),
            Some(Received::Http3(body)) => body.is_end_stream(),
            None => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(Received::Connection(body) | Received::Stream(body)) => body.size_hint(),
            Some(Received::Http3(body)) => body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}
