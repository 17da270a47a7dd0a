//! Connections that become WebSockets: which requests ask for that, and the bytes both ways once an
//! origin has agreed.
//!
//! `websocket` is the only protocol that a connection is upgraded to: another one, `h2c` above all,
//! would carry requests past everything that the edge checks. A request that asks for others is
//! answered in HTTP/1.1 (RFC 9110 section 7.8 lets a server ignore `Upgrade`). Nothing of a
//! WebSocket is looked at, stored or shared. Follows RFC 9110 section 7.8 and RFC 6455 section 4.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use hyper::body::Incoming;
use nearcast_fleet::config::ClientLimits;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::time::Instant;

use crate::connection::ClientSocket;
use nearcast_http_rules::fields;

/// The protocol, as `Upgrade` names it.
pub(crate) const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
/// Bytes on their way in one direction.
const BUFFER_BYTES_MAX: usize = 16 << 10;

/// The request in a head that [`judge`](crate::request_head::judge) found whole and without a body,
/// if it asks for a WebSocket: a GET of HTTP/1.1 that keeps its connection.
pub(crate) fn asked(head: &[u8], limits: &ClientLimits) -> Option<Request<Option<Incoming>>> {
    let mut parsed = vec![httparse::EMPTY_HEADER; limits.fields_max];
    let mut request = httparse::Request::new(&mut parsed);
    let is_whole = matches!(request.parse(head), Ok(httparse::Status::Complete(_)));
    let is_candidate = is_whole && request.method == Some("GET") && request.version == Some(1);
    if !is_candidate
        || !request
            .headers
            .iter()
            .any(|field| field.name.eq_ignore_ascii_case("upgrade"))
    {
        return None;
    }
    let mut fields = HeaderMap::with_capacity(request.headers.len());
    for field in request.headers.iter() {
        fields.append(
            HeaderName::from_bytes(field.name.as_bytes()).ok()?,
            HeaderValue::from_bytes(field.value).ok()?,
        );
    }
    let says = |token: &[u8]| {
        fields::list(&fields, CONNECTION).any(|member| member.eq_ignore_ascii_case(token))
    };
    if !says(b"upgrade") || says(b"close") || !names_websocket(&fields) {
        return None;
    }
    let mut asked = Request::new(None);
    *asked.uri_mut() = Uri::try_from(request.path?).ok()?;
    *asked.method_mut() = Method::GET;
    *asked.headers_mut() = fields;
    Some(asked)
}

/// Whether `Upgrade` has the protocol among others.
pub(crate) fn names_websocket(fields: &HeaderMap) -> bool {
    fields::list(fields, UPGRADE).any(|member| member.eq_ignore_ascii_case(WEBSOCKET.as_bytes()))
}

/// Adds what asks for the protocol, or agrees to it, on one hop.
pub(crate) fn insert_fields(fields: &mut HeaderMap) {
    fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    fields.insert(UPGRADE, WEBSOCKET);
}

/// Bytes that a tunnel has passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passed {
    ToClient(u64),
    ToOrigin(u64),
}

/// Passes bytes on both ways until both sides have ended theirs. `early` is what the client has
/// sent already. A side that ends is ended on the other, which may go on (RFC 6455 section 7.1.1
/// has the server close first).
///
/// # Errors
/// Either side broke, or no byte was passed on for `idle_max`.
pub(crate) async fn relay(
    client: &mut ClientSocket,
    origin: &mut (impl AsyncRead + AsyncWrite + Unpin),
    early: BytesMut,
    idle_max: Duration,
    mut passed: impl FnMut(Passed),
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
                passed(Passed::ToOrigin(written.bytes));
            }
            has_moved |= downstream.poll_read(|buffer| pin!(origin.read_buf(buffer)).poll(cx))?;
            let written = downstream.poll_write(cx, client)?;
            has_moved |= written.has_moved;
            if written.bytes > 0 {
                passed(Passed::ToClient(written.bytes));
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
    /// The side that sends has ended.
    has_ended: bool,
    /// Written bytes may lie in a buffer of the other side's.
    is_to_flush: bool,
    /// The end was passed on.
    is_over: bool,
}

struct Written {
    bytes: u64,
    has_moved: bool,
}

impl Direction {
    /// Reads when everything before was written.
    fn poll_read(
        &mut self,
        read: impl FnOnce(&mut BytesMut) -> Poll<io::Result<usize>>,
    ) -> io::Result<bool> {
        if self.has_ended || !self.buffer.is_empty() {
            return Ok(false);
        }
        // Exactly that much: a read fills what room there is.
        self.buffer = BytesMut::with_capacity(BUFFER_BYTES_MAX);
        let read = read(&mut self.buffer);
        if self.buffer.is_empty() {
            // A tunnel that waits holds no room.
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
                    (written.bytes, written.has_moved, self.is_to_flush) =
                        (written.bytes + length as u64, true, true);
                }
            }
        }
        if self.is_to_flush && Pin::new(&mut *to).poll_flush(cx)?.is_ready() {
            self.is_to_flush = false;
        }
        if self.has_ended
            && !self.is_over
            && !self.is_to_flush
            && Pin::new(to).poll_shutdown(cx)?.is_ready()
        {
            (self.is_over, written.has_moved) = (true, true);
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_for_a_websocket_are_upgraded() {
        let table = [
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
                true,
            ),
            (
                "GET /?a=b HTTP/1.1\r\nHost: a\r\nconnection: keep-alive, upgrade\r\nupgrade: WebSocket\r\n\r\n",
                true,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c, websocket\r\n\r\n",
                true,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
                false,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n",
                false,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
                false,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n",
                false,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n",
                false,
            ),
            (
                "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
                false,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
                false,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websockets\r\n\r\n",
                false,
            ),
        ];
        for (head, expected) in table {
            assert_eq!(
                asked(head.as_bytes(), &ClientLimits::default()).is_some(),
                expected,
                "{head:?}"
            );
        }
    }
}
