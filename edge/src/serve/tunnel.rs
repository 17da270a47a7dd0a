//! The bytes of a connection that became a WebSocket, relayed both ways. They are neither inspected
//! nor stored.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::Instant;

use super::socket::ClientSocket;
use crate::request::upgrade::Relayed;

/// Bytes in transit in one direction.
const BUFFER_BYTES_MAX: usize = 16 << 10;

/// Relays bytes both ways until both sides have ended. `early` are the bytes that the client has
/// sent already. The end of one side is passed on; the other side may go on sending (by RFC 6455
/// section 7.1.1 the server closes first).
///
/// # Errors
/// Either side failed, or no byte was relayed for `idle_max`.
pub(crate) async fn relay(
    client: &mut ClientSocket,
    origin: &mut (impl AsyncRead + AsyncWrite + Unpin),
    early: BytesMut,
    idle_max: Duration,
    mut relayed: impl FnMut(Relayed),
) -> io::Result<()> {
    let mut upstream = Direction {
        buffer: early,
        ..Direction::default()
    };
    let mut downstream = Direction::default();
    let mut idle = pin!(tokio::time::sleep(idle_max));
    poll_fn(|cx| {
        loop {
            let mut has_moved = false;
            has_moved |= upstream.poll_read(|buffer| client.poll_fill(cx, buffer))?;
            let written = upstream.poll_write(cx, origin)?;
            has_moved |= written.has_moved;
            if written.bytes > 0 {
                relayed(Relayed::ToOrigin(written.bytes));
            }
            has_moved |= downstream.poll_read(|buffer| pin!(origin.read_buf(buffer)).poll(cx))?;
            let written = downstream.poll_write(cx, client)?;
            has_moved |= written.has_moved;
            if written.bytes > 0 {
                relayed(Relayed::ToClient(written.bytes));
            }
            if upstream.is_over && downstream.is_over {
                return Poll::Ready(Ok(()));
            }
            if !has_moved {
                break;
            }
            idle.as_mut().reset(Instant::now() + idle_max);
        }
        idle.as_mut().poll(cx).map(|()| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "nothing was sent for too long",
            ))
        })
    })
    .await
}

/// One of the two directions of a tunnel.
#[derive(Debug, Default)]
struct Direction {
    buffer: BytesMut,
    /// The sending side has ended.
    has_ended: bool,
    /// Written bytes may be in a buffer of the receiving side.
    needs_flush: bool,
    /// The end was passed on.
    is_over: bool,
}

struct Written {
    bytes: u64,
    has_moved: bool,
}

impl Direction {
    /// Reads if all earlier bytes were written.
    fn poll_read(
        &mut self,
        read: impl FnOnce(&mut BytesMut) -> Poll<io::Result<usize>>,
    ) -> io::Result<bool> {
        if self.has_ended || !self.buffer.is_empty() {
            return Ok(false);
        }
        // Exactly that much: a read fills the spare capacity.
        self.buffer = BytesMut::with_capacity(BUFFER_BYTES_MAX);
        let read = read(&mut self.buffer);
        if self.buffer.is_empty() {
            // A waiting tunnel keeps no buffer.
            self.buffer = BytesMut::new();
        }
        match read {
            Poll::Pending => Ok(false),
            Poll::Ready(length) => {
                self.has_ended = length? == 0;
                Ok(true)
            }
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<Written> {
        let mut written = Written {
            bytes: 0,
            has_moved: false,
        };
        while !self.buffer.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, &self.buffer) {
                Poll::Pending => return Ok(written),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(length) => {
                    let length = length?;
                    self.buffer.advance(length);
                    (written.bytes, written.has_moved, self.needs_flush) =
                        (written.bytes + length as u64, true, true);
                }
            }
        }
        if self.needs_flush && Pin::new(&mut *to).poll_flush(cx)?.is_ready() {
            self.needs_flush = false;
        }
        if self.has_ended
            && !self.is_over
            && !self.needs_flush
            && Pin::new(to).poll_shutdown(cx)?.is_ready()
        {
            (self.is_over, written.has_moved) = (true, true);
        }
        Ok(written)
    }
}
