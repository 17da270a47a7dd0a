//! The bytes under the HTTP library: each frame is counted as it passes, and what the library writes
//! is collected, so that the frames of one poll go to TLS and TCP as one piece.
//!
//! Follows RFC 9113 sections 5.4.1 and 6.8 (GOAWAY) and 9.1 (connections).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use nearcast_net::linger::{After, drain_input};
use nearcast_net::shutdown::Shutdown;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::Instant;

use super::frames::{Closed, Inbound, Outbound, goaway};
use crate::serve::connections::ConnectionSlot;
use crate::serve::phase::Phase;
use crate::serve::transport::Transport;

/// Bytes that are collected before they are written. The library may add one frame to them.
pub(super) const OUTPUT_BYTES_MAX: usize = 64 << 10;

/// One client's connection under the HTTP library.
#[derive(Debug)]
pub(super) struct Wire {
    /// Before the transport, as it is dropped first.
    slot: Option<ConnectionSlot>,
    transport: Transport,
    /// Bytes that were read and that the library has not had: those before it took over, and those
    /// behind what it may have at once.
    early: BytesMut,
    inbound: Inbound,
    outbound: Outbound,
    /// Bytes of the library's, the first `written` of which were written.
    output: Vec<u8>,
    written: usize,
    needs_flush: bool,
    /// The library was refused room for more.
    is_refused: bool,
    /// When the library last wrote bytes of bodies.
    last_data: Instant,
    /// Since when the client has taken nothing.
    stalled: Option<Instant>,
    /// Since when a frame or a header block is incomplete.
    incomplete: Option<Instant>,
    /// The library may not have any input for now.
    is_input_withheld: bool,
    /// The library was refused more input.
    is_read_held: bool,
    /// This node ended the reading, to make room.
    is_evicted: bool,
    closed: Option<Closed>,
}

impl Wire {
    pub(super) fn new(
        transport: Transport,
        slot: Option<ConnectionSlot>,
        early: BytesMut,
        head_bytes_max: usize,
        now: Instant,
    ) -> Self {
        Self {
            slot,
            transport,
            early,
            inbound: Inbound::new(head_bytes_max, now),
            outbound: Outbound::default(),
            output: Vec::new(),
            written: 0,
            needs_flush: false,
            is_refused: false,
            last_data: now,
            stalled: None,
            incomplete: None,
            is_input_withheld: false,
            is_read_held: false,
            is_evicted: false,
            closed: None,
        }
    }

    pub(super) fn inbound(&self) -> &Inbound {
        &self.inbound
    }

    /// Bytes of bodies that the library has written.
    pub(super) fn data_bytes(&self) -> u64 {
        self.outbound.data_bytes()
    }

    /// Has the kernel discard what the client has not taken when the connection is dropped: it would
    /// keep that for a client that reads nothing.
    pub(super) fn abandon(&self) {
        let socket = socket2::SockRef::from(self.transport.tcp());
        let _ = socket.set_linger(Some(Duration::ZERO));
    }

    /// When the library last wrote bytes of bodies, or the connection began.
    pub(super) fn last_data(&self) -> Instant {
        self.last_data
    }

    /// Since when the client has taken nothing of what is to be written.
    pub(super) fn stalled(&self) -> Option<Instant> {
        self.stalled
    }

    /// Since when a frame or a header block is incomplete.
    pub(super) fn incomplete(&self) -> Option<Instant> {
        self.incomplete
    }

    pub(super) fn is_evicted(&self) -> bool {
        self.is_evicted
    }

    /// Why this node has closed the connection, or the library for it.
    pub(super) fn closed(&self) -> Option<Closed> {
        self.closed
            .or(self.outbound.error().map(|_| Closed::Protocol))
    }

    /// The library may have as much input as makes one portion of work.
    pub(super) fn allow_input(&mut self) {
        self.inbound.begin_portion();
        (self.is_input_withheld, self.is_read_held) = (false, false);
    }

    /// The library may have no input until [`Wire::allow_input`].
    pub(super) fn withhold_input(&mut self) {
        self.is_input_withheld = true;
    }

    /// Whether the library has to be polled again, as there may be more to read.
    pub(super) fn is_read_held(&self) -> bool {
        self.is_read_held
    }

    /// So many requests were answered, and so many refused as malformed: closes the connection
    /// after too many of these.
    pub(super) fn note_answered(&mut self, requests: u32, bad: u32) {
        self.inbound.note_answered(requests);
        if let Err(why) = self.inbound.note_bad(bad, Instant::now()) {
            self.close(why);
        }
    }

    /// The connection is idle from now on.
    pub(super) fn note_idle(&self, phase: &Phase, now: Instant) {
        if let Some(slot) = &self.slot {
            slot.note_idle(&phase.idle_since, now);
        }
    }

    /// Closes the connection: the client is told why, where the library's last frame is whole.
    pub(super) fn close(&mut self, why: Closed) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some(why);
        if self.outbound.is_between_frames() && self.outbound.error().is_none() {
            let frame = goaway(self.inbound.newest_stream(), why);
            self.output.extend_from_slice(&frame);
        }
    }

    /// Counts what was read; how many of the bytes the library may have now.
    fn note_read(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = Instant::now();
        let taken = match self.inbound.read(bytes, now) {
            Ok(taken) => taken,
            Err(why) => {
                self.close(why);
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        };
        self.incomplete = match self.inbound.is_between_frames() {
            true => None,
            // A body may come slowly.
            false if self.inbound.is_in_data() => Some(now),
            false => self.incomplete.or(Some(now)),
        };
        Ok(taken)
    }

    /// Makes room for the library.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.is_congested() && self.poll_write_out(cx)?.is_pending() && self.is_congested() {
            self.is_refused = true;
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether there is no room for more.
    pub(super) fn is_congested(&self) -> bool {
        self.output.len() - self.written >= OUTPUT_BYTES_MAX
    }

    /// Whether the library waits for room that there is by now.
    pub(super) fn take_refused(&mut self) -> bool {
        !self.is_congested() && std::mem::take(&mut self.is_refused)
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.written >= OUTPUT_BYTES_MAX / 2 {
            self.output.drain(..self.written);
            self.written = 0;
        }
        self.outbound.write(bytes);
        self.output.extend_from_slice(bytes);
    }

    /// Writes what was collected.
    pub(super) fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.outbound.take_sent();
        if sent != Default::default() {
            let now = Instant::now();
            if sent.data_frames > 0 {
                self.last_data = now;
            }
            if let Err(why) = self.inbound.note_sent(sent, now) {
                self.close(why);
            }
        }
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            match Pin::new(&mut self.transport).poll_write(cx, rest) {
                Poll::Pending => {
                    self.stalled.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(length)) => {
                    self.written += length;
                    self.needs_flush = true;
                    self.stalled = None;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        self.written = 0;
        self.output.clear();
        if self.needs_flush {
            match Pin::new(&mut self.transport).poll_flush(cx) {
                Poll::Pending => {
                    self.stalled.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
                flushed => ready!(flushed)?,
            }
            self.needs_flush = false;
        }
        self.stalled = None;
        Poll::Ready(Ok(()))
    }

    /// Frees what an idle connection does not need.
    pub(super) fn shrink(&mut self) {
        if self.output.is_empty() {
            self.output = Vec::new();
        }
        if self.early.is_empty() {
            self.early = BytesMut::new();
        }
    }
}

/// The library's end of a [`Wire`].
#[derive(Debug, Clone)]
pub(super) struct WireEnd(pub(super) Arc<Mutex<Wire>>);

impl AsyncRead for WireEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = &mut *self.0.lock();
        if wire.closed.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if wire.is_evicted {
            return Poll::Pending;
        }
        // The library reads as long as there is something, and would leave others no turn.
        if wire.is_input_withheld || wire.inbound.is_portion_complete() {
            wire.is_read_held = true;
            return Poll::Pending;
        }
        if !wire.early.is_empty() {
            let length = wire.early.len().min(buffer.remaining());
            let mut piece = wire.early.split_to(length);
            let taken = wire.note_read(&piece)?;
            buffer.put_slice(&piece[..taken]);
            if taken < length {
                // Both are parts of one buffer, so that nothing is copied.
                let rest = piece.split_off(taken);
                let behind = std::mem::replace(&mut wire.early, rest);
                wire.early.unsplit(behind);
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut wire.transport).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            let taken = wire.note_read(&buffer.filled()[before..])?;
            wire.early
                .extend_from_slice(&buffer.filled()[before + taken..]);
            buffer.set_filled(before + taken);
            return Poll::Ready(Ok(()));
        }
        // The client has ended its side, or this node the reading, to make room: requests that came
        // before are answered then.
        if wire.slot.as_ref().is_some_and(ConnectionSlot::is_closing) {
            wire.is_evicted = true;
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WireEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wire = &mut *self.0.lock();
        ready!(wire.poll_room(cx))?;
        wire.append(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = &mut *self.0.lock();
        ready!(wire.poll_room(cx))?;
        let mut length = 0;
        for slice in slices {
            wire.append(slice);
            length += slice.len();
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Everything is written after the poll.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The end is written after the library's last poll.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Ends a connection whose library is done: writes the rest within `write_timeout`, ends this side,
/// and drops what still comes.
pub(super) async fn end(
    mut wire: Wire,
    phase: &Phase,
    write_timeout: Duration,
    ending: Shutdown,
) -> io::Result<()> {
    let after = match wire.closed().is_some_and(Closed::is_fault) {
        true => After::Fault,
        false => After::Response,
    };
    let rest = wire.output.split_off(wire.written);
    let transport = &mut wire.transport;
    let written = async {
        transport.write_all(&rest).await?;
        transport.shutdown().await
    };
    tokio::time::timeout(write_timeout, written).await??;
    if let Some(slot) = &wire.slot {
        slot.note_lingering(&phase.idle_since);
    }
    drain_input(transport, after, Some(ending)).await;
    Ok(())
}
