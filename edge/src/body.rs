//! Bodies of responses to clients: nothing, one piece from memory, or a stream that is made as it is read.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Body, Frame, SizeHint};

/// Why a body ended before its end; the connection is then closed, so that nobody takes the part for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the body ended early: {0}")]
pub(crate) struct BodyCut(pub(crate) String);

/// Pieces of a body as they come.
pub(crate) type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, BodyCut>> + Send>>;

/// The body of a response to a client.
pub(crate) struct ClientBody {
    content: Content,
    /// Told how many bytes were taken, when the body is done or given up.
    on_end: Option<Box<dyn FnOnce(u64) + Send>>,
    taken: u64,
}

enum Content {
    Empty,
    Whole(Option<Bytes>),
    Stream { pieces: Pieces, length: Option<u64> },
}

impl ClientBody {
    /// No body.
    pub(crate) fn empty() -> Self {
        Self::new(Content::Empty)
    }

    /// A body that is at hand.
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::new(if bytes.is_empty() { Content::Empty } else { Content::Whole(Some(bytes)) })
    }

    /// A body that comes in pieces; `length` when it is known.
    pub(crate) fn stream(pieces: Pieces, length: Option<u64>) -> Self {
        Self::new(Content::Stream { pieces, length })
    }

    fn new(content: Content) -> Self {
        Self { content, on_end: None, taken: 0 }
    }

    /// The same body, which tells how many bytes of it were taken once it is over.
    pub(crate) fn on_end(mut self, tell: impl FnOnce(u64) + Send + 'static) -> Self {
        self.on_end = Some(Box::new(tell));
        self
    }

    /// Its length when it is at hand as a whole.
    pub(crate) fn whole_length(&self) -> Option<u64> {
        match &self.content {
            Content::Empty => Some(0),
            Content::Whole(bytes) => Some(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Content::Stream { .. } => None,
        }
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let Some(tell) = self.on_end.take() {
            tell(self.taken);
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyCut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyCut>>> {
        let this = &mut *self;
        let piece = match &mut this.content {
            Content::Empty => None,
            Content::Whole(bytes) => bytes.take().map(Ok),
            Content::Stream { pieces, .. } => match pieces.as_mut().poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(piece) => piece,
            },
        };
        if let Some(Ok(bytes)) = &piece {
            this.taken += bytes.len() as u64;
        }
        Poll::Ready(piece.map(|p| p.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Empty | Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Content::Stream { length: Some(length), .. } => SizeHint::with_exact(length - (*length).min(self.taken)),
            Content::Stream { length: None, .. } => SizeHint::default(),
        }
    }
}
