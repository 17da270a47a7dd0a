//! The body of a request, as it is received.
//!
//! Follows RFC 9114 sections 4.1 and 4.1.2.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context as TaskContext, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use quinn::VarInt;

use super::allowances::Kind;
use super::closed::{Closed, MESSAGE_ERROR, NO_ERROR, REQUEST_CANCELLED};
use super::context::Context;
use super::head;
use super::qpack::SectionFault;
use super::reader::{Fault, Input, Reader};

/// Pieces of a body that nobody asked for which are read at its end. More than its flow control lets
/// come at once, if none is small.
const DROPPED_PIECES_MAX: usize = 1024;
/// No fault: no error code is zero.
const NONE: u64 = 0;

/// The error code with which a request's stream has to be reset, once that is known.
#[derive(Debug, Default)]
pub(super) struct StreamFault(AtomicU64);

impl StreamFault {
    pub(super) fn get(&self) -> Option<VarInt> {
        match self.0.load(Relaxed) {
            NONE => None,
            code => VarInt::from_u64(code).ok(),
        }
    }
}

/// Why a body ended early.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the request's body ended early")]
pub(crate) struct UploadCut;

/// The body of one request.
pub(crate) struct Upload {
    context: Arc<Context>,
    reader: Reader,
    /// Bytes that came before somebody asked for them.
    first: Option<Bytes>,
    /// Bytes that are to come, where the request states its length.
    left: Option<u64>,
    /// The last bytes of the stated length. They wait for the end of the stream, so that a request
    /// with more than that is not passed on as a whole one.
    last: Option<Bytes>,
    /// Fields that came behind the body.
    trailers: Option<HeaderMap>,
    fault: Arc<StreamFault>,
    has_ended: bool,
}

impl Upload {
    pub(super) fn new(
        context: &Arc<Context>,
        reader: Reader,
        first: Option<Bytes>,
        length: Option<u64>,
    ) -> Self {
        Self {
            context: context.clone(),
            reader,
            first,
            left: length,
            last: None,
            trailers: None,
            fault: Arc::default(),
            has_ended: false,
        }
    }

    /// Where errors of the stream are found.
    pub(super) fn fault(&self) -> Arc<StreamFault> {
        self.fault.clone()
    }

    fn fail(&mut self, fault: Fault) -> UploadCut {
        self.has_ended = true;
        (self.last, self.trailers) = (None, None);
        match fault {
            Fault::Connection(error) => self.context.close(error),
            Fault::Stream(code) => self.fail_stream(code),
            // Trailers.
            Fault::TooLarge => self.fail_stream(MESSAGE_ERROR),
            Fault::Left => {
                self.fault.0.store(REQUEST_CANCELLED.into_inner(), Relaxed);
                self.context.spend_or_close(Kind::Reset);
            }
        }
        UploadCut
    }

    fn fail_stream(&mut self, code: VarInt) {
        self.fault.0.store(code.into_inner(), Relaxed);
        self.reader.stop(code);
        self.context.spend_or_close(Kind::Refused);
    }

    /// Counts bytes of the body; `None` where they have to wait for its end.
    fn take(&mut self, data: Bytes) -> Result<Option<Bytes>, UploadCut> {
        let Some(left) = &mut self.left else {
            return Ok(Some(data));
        };
        match left.checked_sub(data.len() as u64) {
            Some(0) => {
                *left = 0;
                self.last = Some(data);
                Ok(None)
            }
            Some(rest) => {
                *left = rest;
                Ok(Some(data))
            }
            None => Err(self.fail(Fault::Stream(MESSAGE_ERROR))),
        }
    }

    fn end(&mut self) -> Result<(), UploadCut> {
        self.has_ended = true;
        match self.left {
            Some(1..) => Err(self.fail(Fault::Stream(MESSAGE_ERROR))),
            _ => Ok(()),
        }
    }

    /// Fields behind the body. They are given at the end of the stream: no frame may follow them.
    fn read_trailers(&mut self, section: &[u8]) -> Result<(), UploadCut> {
        match read_trailers(&self.context, section) {
            Ok(fields) => {
                self.trailers = Some(fields);
                Ok(())
            }
            Err(fault) => Err(self.fail(fault)),
        }
    }
}

/// Reads the section behind a body.
///
/// # Errors
/// It is malformed.
pub(super) fn read_trailers(context: &Context, section: &[u8]) -> Result<HeaderMap, Fault> {
    let mut buffers = context.buffers.lock();
    match buffers.section.read(section, context.section_limits) {
        Ok(()) => head::trailers(&buffers.section).map_err(|_| Fault::Stream(MESSAGE_ERROR)),
        Err(SectionFault::TooLarge) => Err(Fault::Stream(MESSAGE_ERROR)),
        Err(SectionFault::Malformed) => Err(Closed::Decompression.into()),
    }
}

impl Drop for Upload {
    /// The rest is of no use: the request is answered (RFC 9114 section 4.1). What was received of it
    /// is checked all the same.
    fn drop(&mut self) {
        let mut cx = TaskContext::from_waker(Waker::noop());
        for _ in 0..DROPPED_PIECES_MAX {
            let Poll::Ready(Some(Ok(_))) = Pin::new(&mut *self).poll_frame(&mut cx) else {
                break;
            };
        }
        if !self.has_ended {
            self.reader.stop(NO_ERROR);
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadCut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadCut>>> {
        let this = &mut *self;
        loop {
            if this.has_ended {
                let data = this.last.take().map(Frame::data);
                let frame = data.or_else(|| this.trailers.take().map(Frame::trailers));
                return Poll::Ready(frame.map(Ok));
            }
            let next = match this.first.take() {
                Some(first) => Ok(Input::Data(first)),
                None => ready!(this.reader.poll_next(cx, &this.context)),
            };
            let done = match next {
                Ok(Input::Data(data)) => this.take(data),
                Ok(Input::Section(section)) => this.read_trailers(&section).map(|()| None),
                Ok(Input::End) => this.end().map(|()| None),
                Err(fault) => Err(this.fail(fault)),
            };
            match done {
                Ok(None) => {}
                Ok(Some(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(cut) => return Poll::Ready(Some(Err(cut))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended && self.last.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.last.as_ref().map_or(0, |last| last.len() as u64);
        self.left
            .map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + held))
    }
}
