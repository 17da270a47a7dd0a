//! The frames of one request, as they are received.
//!
//! Follows RFC 9114 sections 4.1, 4.1.1 and 7.1.

use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker, ready};

use bytes::Bytes;
use quinn::{RecvStream, VarInt};

use super::allowances::{Kind, SMALL_DATA_BYTES};
use super::closed::{Closed, ConnectionError};
use super::context::Context;
use super::frames::{DATA, FrameWalk, HEADERS, Piece, Stage};

/// Bytes of unknown frames that count as one more.
const UNKNOWN_BYTES: u64 = 1024;

/// Why a request is not read further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection has to be closed.
    Connection(ConnectionError),
    /// The stream has to be reset.
    Stream(VarInt),
    /// A section has more bytes than permitted.
    TooLarge,
    /// The client gave the request up, or the connection has ended.
    Left,
}

impl From<Closed> for Fault {
    fn from(why: Closed) -> Self {
        Self::Connection(why.into())
    }
}

/// What a request has.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// A whole field section, compressed.
    Section(Bytes),
    /// Bytes of the body.
    Data(Bytes),
    End,
}

/// The client's side of a stream.
pub(super) struct Reader {
    stream: RecvStream,
    /// Bytes that were received and not yet read.
    chunks: [Bytes; 2],
    walk: FrameWalk,
    stage: Stage,
    /// The begin of a section that did not come in one piece.
    section: Vec<u8>,
    has_ended: bool,
}

impl Reader {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            chunks: Default::default(),
            walk: FrameWalk::default(),
            stage: Stage::default(),
            section: Vec::new(),
            has_ended: false,
        }
    }

    /// Reads what comes next, without frames of unknown kinds.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut TaskContext<'_>,
        context: &Context,
    ) -> Poll<Result<Input, Fault>> {
        loop {
            while let Some(piece) = self.walk.next(&mut self.chunks[0]) {
                if let Some(input) = self.read(piece, context)? {
                    return Poll::Ready(Ok(input));
                }
            }
            self.chunks.swap(0, 1);
            if !self.chunks[0].is_empty() {
                continue;
            }
            if self.has_ended {
                return Poll::Ready(match self.walk.is_between_frames() {
                    true => Ok(Input::End),
                    false => Err(Closed::Frame.into()),
                });
            }
            self.has_ended = ready!(self.poll_chunks(cx))?;
        }
    }

    /// Receives more; `true` at the end of the stream.
    fn poll_chunks(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<bool, Fault>> {
        let read = pin!(self.stream.read_chunks(&mut self.chunks)).poll(cx);
        Poll::Ready(match ready!(read) {
            Ok(Some(_)) => Ok(false),
            Ok(None) => Ok(true),
            // The client has reset it, or the connection has ended.
            Err(_) => Err(Fault::Left),
        })
    }

    fn read(&mut self, piece: Piece, context: &Context) -> Result<Option<Input>, Fault> {
        match piece {
            Piece::Head { kind, length } => {
                self.stage = self.stage.follow(kind)?;
                match kind {
                    HEADERS if length > context.section_bytes_max => Err(Fault::TooLarge),
                    HEADERS if length == 0 => Ok(Some(Input::Section(Bytes::new()))),
                    HEADERS => Ok(None),
                    DATA if length < SMALL_DATA_BYTES => {
                        context.spend(Kind::SmallData, 1)?;
                        Ok(None)
                    }
                    DATA => {
                        context.note_data(length);
                        Ok(None)
                    }
                    _ => {
                        let more = u32::try_from(length / UNKNOWN_BYTES).unwrap_or(u32::MAX);
                        context.spend(Kind::Unknown, more.saturating_add(1))?;
                        Ok(None)
                    }
                }
            }
            Piece::Payload(data) if self.walk.kind() == DATA => Ok(Some(Input::Data(data))),
            Piece::Payload(part) if self.walk.kind() == HEADERS => {
                let is_whole = self.walk.payload_left() == 0;
                if is_whole && self.section.is_empty() {
                    return Ok(Some(Input::Section(part)));
                }
                self.section.extend_from_slice(&part);
                let section = is_whole.then(|| std::mem::take(&mut self.section));
                Ok(section.map(|section| Input::Section(section.into())))
            }
            Piece::Payload(_) => Ok(None),
        }
    }

    /// Whether the stream is known to have ended behind what was read.
    pub(super) fn is_at_end(&mut self) -> bool {
        if self.chunks.iter().any(|chunk| !chunk.is_empty()) || !self.walk.is_between_frames() {
            return false;
        }
        if !self.has_ended {
            let mut cx = TaskContext::from_waker(Waker::noop());
            // An error is found again by the next read.
            self.has_ended = matches!(self.poll_chunks(&mut cx), Poll::Ready(Ok(true)));
        }
        self.has_ended
    }

    /// Receives no more, and has the client send no more.
    pub(super) fn stop(&mut self, code: VarInt) {
        if !self.has_ended {
            // It may have ended.
            let _ = self.stream.stop(code);
            self.has_ended = true;
        }
    }
}
