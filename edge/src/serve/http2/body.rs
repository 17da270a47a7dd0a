//! Bodies of responses on streams: they give what the connection's [`Pace`] grants, and end with
//! their length or with an error.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::streams::Pace;
use crate::client_body::{BodyCut, ClientBody};

/// The body of one response.
pub(super) struct PacedBody {
    body: ClientBody,
    /// The rest of the body's last piece.
    rest: Bytes,
    pace: Arc<Pace>,
    given: u64,
    /// Bytes of the whole body, where that is known.
    length: Option<u64>,
    has_ended: bool,
    /// Whether it is useful work when it was given whole.
    is_useful: bool,
}

impl PacedBody {
    pub(super) fn new(body: ClientBody, pace: Arc<Pace>) -> Self {
        Self {
            length: body.size_hint().exact(),
            body,
            rest: Bytes::new(),
            pace,
            given: 0,
            has_ended: false,
            is_useful: true,
        }
    }

    /// The answer to a malformed request earns its client nothing.
    pub(super) fn of_refusal(mut self) -> Self {
        self.is_useful = false;
        self
    }

    fn left(&self) -> Option<u64> {
        self.length.map(|length| length.saturating_sub(self.given))
    }

    /// How many bytes the next piece has, of at most `most`. The library has room for a piece when
    /// the client's window has room for its first byte. So where the window may be exceeded the
    /// last byte comes alone: it is taken when all others fit, and until then the stream can be
    /// given up.
    fn piece(&self, most: usize) -> usize {
        let length = self.rest.len().min(most);
        let exceeds = self.given + length as u64 > self.pace.window().into();
        let may_be_last = self.left().is_none_or(|left| left == length as u64);
        match exceeds && may_be_last && length > 1 {
            true => length - 1,
            false => length,
        }
    }
}

impl Drop for PacedBody {
    fn drop(&mut self) {
        if self.is_useful && (self.has_ended || self.is_end_stream()) {
            self.pace.note_complete();
        }
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = BodyCut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyCut>>> {
        let this = &mut *self;
        let Some(grant) = this.pace.ask() else {
            return Poll::Pending;
        };
        while this.rest.is_empty() {
            let next = match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    this.pace.wait();
                    return Poll::Pending;
                }
            };
            let Some(frame) = next.transpose()? else {
                if matches!(this.left(), Some(1..)) {
                    let cut = BodyCut("it is shorter than its length".into());
                    return Poll::Ready(Some(Err(cut)));
                }
                this.has_ended = true;
                return Poll::Ready(None);
            };
            let data = frame.into_data().unwrap_or_default();
            // No response has more than its length.
            let most = this.left().unwrap_or(u64::MAX).min(data.len() as u64);
            this.rest = data.slice(..most as usize);
        }
        let piece = this.rest.split_to(this.piece(grant));
        this.given += piece.len() as u64;
        this.pace.give(piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left()
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use std::task::Waker;

    use super::*;

    fn streamed(pieces: &[&'static [u8]], length: Option<u64>) -> ClientBody {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(Bytes::from_static(piece)))
            .collect();
        ClientBody::stream(Box::pin(stream::iter(pieces)), length)
    }

    /// The pieces that a body gives to a client with such a window, or its failure.
    fn given(body: ClientBody, window: u32) -> Vec<String> {
        let pace = Arc::<Pace>::default();
        pace.set_window(window);
        let mut body = PacedBody::new(body, pace.clone());
        let mut cx = Context::from_waker(Waker::noop());
        let mut given = Vec::new();
        loop {
            assert!(
                Pin::new(&mut body).poll_frame(&mut cx).is_pending(),
                "no grant"
            );
            pace.set_grant(4);
            match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let data = frame.into_data().expect("data");
                    given.push(String::from_utf8_lossy(&data).into_owned());
                    if body.is_end_stream() {
                        return given;
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    given.push(error.to_string());
                    return given;
                }
                Poll::Ready(None) => return given,
                Poll::Pending => panic!("it has a grant"),
            }
            pace.set_grant(0);
        }
    }

    #[test]
    fn a_body_gives_what_is_granted_and_no_more_than_its_length() {
        let short = "the body ended early: it is shorter than its length";
        let table: [(ClientBody, u32, &[&str]); 9] = [
            (
                ClientBody::whole(Bytes::from_static(b"abcdef")),
                100,
                &["abcd", "ef"],
            ),
            (
                streamed(&[b"abc", b"", b"defgh"], None),
                100,
                &["abc", "defg", "h"],
            ),
            (streamed(&[b"abc", b"def"], Some(4)), 100, &["abc", "d"]),
            (streamed(&[b"abc"], Some(4)), 100, &["abc", short]),
            // The last byte comes alone where the client's window may end before it.
            (
                ClientBody::whole(Bytes::from_static(b"abcdef")),
                6,
                &["abcd", "ef"],
            ),
            (
                ClientBody::whole(Bytes::from_static(b"abcdef")),
                5,
                &["abcd", "e", "f"],
            ),
            (ClientBody::whole(Bytes::from_static(b"a")), 0, &["a"]),
            (streamed(&[b"abcd", b"ef"], Some(6)), 1, &["abcd", "e", "f"]),
            (streamed(&[b"abcd", b"ef"], None), 4, &["abcd", "e", "f"]),
        ];
        for (number, (body, window, expected)) in table.into_iter().enumerate() {
            assert_eq!(given(body, window), expected, "{number}");
        }
    }
}
