//! Bodies of responses to clients: empty, one piece from memory, or a stream that is made as it is
//! read.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Body, Frame, SizeHint};

use crate::access_log::Ending;

/// Why a body ended early; the connection is then closed, so that the client does not take the part
/// for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the body ended early: {0}")]
pub(crate) struct BodyCut(pub(crate) String);

/// The pieces of a body, as they become available.
pub(crate) type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, BodyCut>> + Send>>;

/// The body of a response to a client.
pub(crate) struct ClientBody {
    content: Content,
    /// Called for each piece as it is taken to be sent, and once at the end.
    observer: Option<Box<dyn FnMut(Progress) + Send>>,
    taken: u64,
    /// Its content has ended, well or early.
    ended: Option<Ending>,
}

/// How much of a body has been taken to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// So many more bytes were taken to be sent.
    Piece(u64),
    /// The body is complete or was given up; so many bytes of it were taken in all.
    End(u64, Ending),
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

    /// A body that is in memory.
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::new(if bytes.is_empty() {
            Content::Empty
        } else {
            Content::Whole(Some(bytes))
        })
    }

    /// A body in pieces; `length` when it is known.
    pub(crate) fn stream(pieces: Pieces, length: Option<u64>) -> Self {
        Self::new(Content::Stream { pieces, length })
    }

    fn new(content: Content) -> Self {
        Self {
            content,
            observer: None,
            taken: 0,
            ended: None,
        }
    }

    /// The same body, which reports its progress: a response may take hours, and its bytes count
    /// while they flow.
    pub(crate) fn observed(mut self, observer: impl FnMut(Progress) + Send + 'static) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Adds bytes to a body that is in memory; a stream stays as it is.
    pub(crate) fn append(&mut self, more: &[u8]) {
        if let Content::Whole(Some(bytes)) = &mut self.content {
            *bytes = [bytes, more].concat().into();
        }
    }

    /// How the body has ended, when it is dropped now. A protocol that knows the length need not
    /// ask for a piece after the last one.
    fn ending(&self) -> Ending {
        let is_taken = match &self.content {
            Content::Empty | Content::Whole(None) => true,
            Content::Whole(Some(_)) | Content::Stream { length: None, .. } => false,
            Content::Stream {
                length: Some(length),
                ..
            } => self.taken >= *length,
        };
        match (self.ended, is_taken) {
            (Some(ending), _) => ending,
            (None, true) => Ending::Complete,
            (None, false) => Ending::ClientLeft,
        }
    }

    /// Its length when it is in memory as a whole.
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
        if let Some(mut observer) = self.observer.take() {
            observer(Progress::End(self.taken, self.ending()));
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyCut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyCut>>> {
        let this = &mut *self;
        let piece = match &mut this.content {
            Content::Empty => None,
            Content::Whole(bytes) => bytes.take().map(Ok),
            Content::Stream { pieces, .. } => match pieces.as_mut().poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(piece) => piece,
            },
        };
        match &piece {
            Some(Ok(_)) => {}
            Some(Err(_)) => this.ended = Some(Ending::Cut),
            None => this.ended = this.ended.or(Some(Ending::Complete)),
        }
        if let Some(Ok(bytes)) = &piece {
            let length = bytes.len() as u64;
            this.taken += length;
            if let Some(observer) = &mut this.observer {
                observer(Progress::Piece(length));
            }
        }
        Poll::Ready(piece.map(|p| p.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Empty | Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Content::Stream {
                length: Some(length),
                ..
            } => SizeHint::with_exact(length - (*length).min(self.taken)),
            Content::Stream { length: None, .. } => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::{FutureExt, stream};
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn bytes_are_reported_as_they_are_taken_and_not_at_the_end() {
        let pieces = [b"abc".as_slice(), b"de"].map(|piece| Ok(Bytes::from_static(piece)));
        let body = ClientBody::stream(Box::pin(stream::iter(pieces)), Some(5));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        let mut body =
            body.observed(move |progress| noted.lock().expect("no panic").push(progress));
        let look = || seen.lock().expect("no panic").clone();
        assert_eq!(look(), []);
        body.frame()
            .now_or_never()
            .expect("at hand")
            .expect("a piece")
            .expect("good");
        assert_eq!(look(), [Progress::Piece(3)], "while the body goes on");
        body.frame()
            .now_or_never()
            .expect("at hand")
            .expect("a piece")
            .expect("good");
        drop(body);
        assert_eq!(
            look(),
            [
                Progress::Piece(3),
                Progress::Piece(2),
                Progress::End(5, Ending::Complete)
            ]
        );
    }
    /// The ending that is reported after some pieces were taken.
    fn ending_after(
        pieces: &[Result<&'static [u8], ()>],
        length: Option<u64>,
        taken: usize,
    ) -> Ending {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| {
                let cut = || BodyCut("the origin ended".into());
                piece.map(Bytes::from_static).map_err(|()| cut())
            })
            .collect();
        let body = ClientBody::stream(Box::pin(stream::iter(pieces)), length);
        let ending = Arc::new(Mutex::new(None));
        let noted = ending.clone();
        let mut body = body.observed(move |progress| {
            if let Progress::End(_, ending) = progress {
                *noted.lock().expect("no panic") = Some(ending);
            }
        });
        for _ in 0..taken {
            let _ = body.frame().now_or_never().expect("at hand");
        }
        drop(body);
        let ending = ending.lock().expect("no panic");
        ending.expect("it was reported")
    }

    #[test]
    fn a_body_is_complete_cut_or_left() {
        let (two, cut) = ([Ok(&b"abc"[..]), Ok(b"de")], [Ok(&b"abc"[..]), Err(())]);
        for (pieces, length, taken, expected) in [
            (&two[..], None, 3, Ending::Complete),
            (&two, None, 2, Ending::ClientLeft),
            (&two, Some(5), 2, Ending::Complete),
            (&two, Some(5), 1, Ending::ClientLeft),
            (&two, Some(5), 0, Ending::ClientLeft),
            (&cut, Some(5), 2, Ending::Cut),
            (&cut, None, 2, Ending::Cut),
            (&cut, None, 1, Ending::ClientLeft),
        ] {
            let ending = ending_after(pieces, length, taken);
            assert_eq!(ending, expected, "{length:?}, {taken} taken");
        }
    }

    #[test]
    fn only_bodies_in_memory_can_be_added_to() {
        let mut whole = ClientBody::whole(Bytes::from_static(b"a\n"));
        whole.append(b"b\n");
        let collected = whole.collect().now_or_never().expect("at hand");
        assert_eq!(collected.expect("whole").to_bytes(), "a\nb\n");
        let mut empty = ClientBody::empty();
        empty.append(b"b\n");
        assert_eq!(empty.whole_length(), Some(0));
    }
}
