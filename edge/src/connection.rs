//! The socket under a client's connection: time-outs for idling, for a request head and for a client that does
//! not read, an end that loses no response, and, where the HTTP library reads, a look at each head for what that lets pass
//! and the standard forbids.
//!
//! RFC 9112 sections 2.2 (a bare LF is refused), 5.1, 6.1 (Content-Length beside Transfer-Encoding) and 9.8.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// How long a connection may lie idle between requests.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(75);
/// How long a request head may take from its first byte on.
pub(crate) const HEAD_MAX: Duration = Duration::from_secs(10);
/// How long a client may take no byte of a response.
pub(crate) const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// How long, and for how many bytes, what a client still sends is read after the last response.
const LINGER_MAX: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 256 * 1024;

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;

/// What a connection is doing, told to the socket by those who read and answer requests.
#[derive(Debug, Default)]
pub(crate) struct Phase {
    state: AtomicU8,
    is_last: AtomicBool,
}

impl Phase {
    /// A request head was read whole.
    pub(crate) fn request_began(&self) {
        self.set(REQUEST);
    }

    /// Its response has been made whole.
    pub(crate) fn request_ended(&self) {
        self.set(IDLE);
    }

    /// Whether the connection has to end with the response to this request.
    pub(crate) fn is_last(&self) -> bool {
        self.is_last.load(Ordering::Relaxed)
    }

    fn get(&self) -> u8 {
        self.state.load(Ordering::Relaxed)
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
    }
}

/// A client's socket with the limits named above.
#[derive(Debug)]
pub(crate) struct ClientSocket {
    stream: TcpStream,
    phase: Arc<Phase>,
    is_idle: bool,
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
    write_stall: Option<Pin<Box<Sleep>>>,
    /// Read before, to be read again.
    given_back: Bytes,
    head: HeadInspector,
}

impl ClientSocket {
    pub(crate) fn new(stream: TcpStream, phase: Arc<Phase>) -> Self {
        // The first head has to come as quickly as any other.
        phase.set(HEAD);
        let deadline = Instant::now() + HEAD_MAX;
        Self {
            stream,
            phase,
            is_idle: false,
            deadline,
            timer: Box::pin(tokio::time::sleep_until(deadline)),
            write_stall: None,
            given_back: Bytes::new(),
            head: HeadInspector::default(),
        }
    }

    /// Bytes that were taken by [`poll_fill`](Self::poll_fill) and are to be read again, before all others.
    pub(crate) fn give_back(&mut self, bytes: Bytes) {
        self.given_back = bytes;
    }

    /// Reads what there is, but no more than there is room for in `input`, which is not looked at; 0 at the client's end.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>, input: &mut BytesMut) -> Poll<io::Result<usize>> {
        let read = pin!(self.stream.read_buf(input)).poll(cx);
        match read {
            Poll::Pending => self.poll_deadline(cx).map(Err),
            Poll::Ready(Ok(length)) => {
                self.note_read(length);
                Poll::Ready(Ok(length))
            }
            failed => failed,
        }
    }

    /// That so many bytes are there which were not looked at: the first byte after a pause begins a head.
    pub(crate) fn note_read(&mut self, length: usize) {
        if length > 0 && self.phase.get() == IDLE {
            self.phase.set(HEAD);
            self.is_idle = false;
            self.deadline = Instant::now() + HEAD_MAX;
        }
    }

    /// Ends the connection after its last response. Closing while bytes of the client's are unread would reset it, and a
    /// reset can overtake the response (RFC 9112 section 9.6): so what comes is read for a while.
    pub(crate) async fn end(mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let mut scratch = BytesMut::with_capacity(4096);
        let mut left = LINGER_BYTES_MAX;
        let drained = async {
            while left > 0 {
                scratch.clear();
                match self.stream.read_buf(&mut scratch).await {
                    Ok(0) | Err(_) => return,
                    Ok(length) => left = left.saturating_sub(length),
                }
            }
        };
        let _ = tokio::time::timeout(LINGER_MAX, drained).await;
        Ok(())
    }

    /// While nothing can be read: whether the wait has taken too long.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let phase = self.phase.get();
        if phase == REQUEST {
            return Poll::Pending;
        }
        if phase == IDLE && !self.is_idle {
            self.is_idle = true;
            self.deadline = Instant::now() + IDLE_MAX;
        }
        loop {
            if self.timer.as_mut().poll(cx).is_pending() {
                // A timer that is due too late is moved; one that is due early looks again then.
                if self.timer.deadline() > self.deadline {
                    let deadline = self.deadline;
                    self.timer.as_mut().reset(deadline);
                    continue;
                }
                return Poll::Pending;
            }
            if self.deadline <= Instant::now() {
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client sent nothing in time"));
            }
            let deadline = self.deadline;
            self.timer.as_mut().reset(deadline);
        }
    }

    fn check_written(&mut self, cx: &mut Context<'_>, is_pending: bool) -> io::Result<()> {
        if !is_pending {
            self.write_stall = None;
            return Ok(());
        }
        let stall = self.write_stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL_MAX)));
        match stall.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client took nothing in time")),
        }
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        if this.given_back.has_remaining() {
            let length = this.given_back.len().min(buffer.remaining());
            buffer.put_slice(&this.given_back.split_to(length));
        } else {
            match Pin::new(&mut this.stream).poll_read(cx, buffer) {
                Poll::Pending => return this.poll_deadline(cx).map(Err),
                Poll::Ready(Ok(())) => {}
                failed => return failed,
            }
        }
        this.note_read(buffer.filled().len() - before);
        this.head.inspect(&mut buffer.filled_mut()[before..]);
        if this.head.is_blind {
            this.phase.is_last.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check_written(cx, polled.is_pending())?;
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.check_written(cx, polled.is_pending())?;
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Looks at the bytes of requests as they come. A head that must be refused gets a NUL, which no parser lets pass, so that
/// it is answered with 400 like any other broken one. Bodies of a known length are stepped over; behind any other the
/// connection ends with the response, so that no head is missed.
#[derive(Debug, Default)]
struct HeadInspector {
    /// The begin of the current line.
    line: Vec<u8>,
    length: usize,
    last: u8,
    has_begun: bool,
    content_length: Option<u64>,
    transfer_encoding: bool,
    /// Bytes of the body that are still to come.
    body_left: u64,
    /// What comes cannot be looked at.
    is_blind: bool,
}

impl HeadInspector {
    /// Enough for the names that count, with a length behind them.
    const LINE_BYTES_MAX: usize = 64;

    fn inspect(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while !self.is_blind && at < bytes.len() {
            if self.body_left > 0 {
                let stepped = self.body_left.min((bytes.len() - at) as u64);
                self.body_left -= stepped;
                at += stepped as usize;
                continue;
            }
            let end = bytes[at..].iter().position(|b| *b == b'\n').map(|n| at + n);
            let line = &bytes[at..end.unwrap_or(bytes.len())];
            let more = line.len().min(Self::LINE_BYTES_MAX - self.line.len());
            self.line.extend_from_slice(&line[..more]);
            self.length += line.len();
            self.last = line.last().copied().unwrap_or(self.last);
            let Some(end) = end else { return };
            if self.ends_wrongly() {
                bytes[end] = 0;
                self.is_blind = true;
                return;
            }
            self.line.clear();
            self.length = 0;
            self.last = 0;
            at = end + 1;
        }
    }

    /// At a line's end: whether the head must be refused.
    fn ends_wrongly(&mut self) -> bool {
        if self.last != b'\r' {
            return true;
        }
        if self.length == 1 {
            // Empty lines before the request line are allowed (RFC 9112 section 2.2).
            return std::mem::take(&mut self.has_begun) && self.end_head();
        }
        self.has_begun = true;
        self.transfer_encoding |= starts_with(&self.line, b"transfer-encoding:");
        if starts_with(&self.line, b"content-length:") {
            let value = self.line["content-length:".len()..].trim_ascii();
            let is_whole = self.length <= Self::LINE_BYTES_MAX;
            let length = std::str::from_utf8(value).ok().filter(|_| is_whole).and_then(|v| v.parse().ok());
            // One that cannot be read is refused by the library, or is all the more for it alone.
            self.is_blind |= length.is_none();
            self.content_length = Some(length.unwrap_or(0));
        }
        false
    }

    /// At a head's end: whether it must be refused.
    fn end_head(&mut self) -> bool {
        let (length, is_coded) = (self.content_length.take(), std::mem::take(&mut self.transfer_encoding));
        self.body_left = length.unwrap_or(0);
        self.is_blind |= is_coded;
        is_coded && length.is_some()
    }
}

fn starts_with(line: &[u8], name: &[u8]) -> bool {
    line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client, and the edge's end of its connection.
    async fn pair() -> (TcpStream, ClientSocket, Arc<Phase>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("somebody listens");
        let (accepted, _) = listener.accept().await.expect("a connection waits");
        let phase = Arc::new(Phase::default());
        (client, ClientSocket::new(accepted, phase.clone()), phase)
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_for_a_client_has_its_limit() {
        let (mut client, mut socket, phase) = pair().await;
        let mut buffer = [0; 64];
        let began = Instant::now();
        client.write_all(b"GET / HT").await.expect("sent");
        assert_eq!(socket.read(&mut buffer).await.expect("a begin"), 8);
        let error = socket.read(&mut buffer).await.expect_err("the head never ends");
        assert_eq!((error.kind(), began.elapsed().as_secs()), (io::ErrorKind::TimedOut, HEAD_MAX.as_secs()));

        let (mut client, mut socket, idle) = pair().await;
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
        assert_eq!(socket.read(&mut buffer).await.expect("a head"), 18);
        idle.request_began();
        let working = tokio::time::timeout(IDLE_MAX * 10, socket.read(&mut buffer)).await;
        assert!(working.is_err(), "a request may take as long as it takes");
        idle.request_ended();
        let began = Instant::now();
        let error = socket.read(&mut buffer).await.expect_err("nothing more comes");
        assert_eq!((error.kind(), began.elapsed().as_secs()), (io::ErrorKind::TimedOut, IDLE_MAX.as_secs()));
        drop((client, phase));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (client, mut socket, _phase) = pair().await;
        let block = vec![0; 1 << 20];
        let began = Instant::now();
        let error = loop {
            match socket.write_all(&block).await {
                Ok(()) => assert!(began.elapsed() < WRITE_STALL_MAX, "the buffers take everything"),
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), began.elapsed().as_secs()), (io::ErrorKind::TimedOut, WRITE_STALL_MAX.as_secs()));
        drop(client);
    }

    #[test]
    fn heads_that_must_be_refused_are_made_unreadable_however_they_are_cut() {
        let table: [(&str, bool); 10] = [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", true),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", true),
            ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nX: y\r\ncONTENT-length: 3\r\n\r\nabc", true),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na\nb", false),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX: content-length: 3\r\n\r\n0\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nContent-Length:                                                             3\r\n\r\na\nb", false),
            ("GET / HTTP/1.1\r\nContent-Lengthy: 3\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        ];
        for (head, refused) in table {
            // The same behind another request, with a body or without.
            let before = "GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 4\r\n\r\na\nb\n";
            let all = format!("{before}{head}");
            for (head, cut) in (0..head.len()).map(|cut| (head, cut)).chain((0..all.len()).map(|cut| (all.as_str(), cut))) {
                let mut bytes = head.as_bytes().to_vec();
                let mut inspector = HeadInspector::default();
                let (first, second) = bytes.split_at_mut(cut);
                inspector.inspect(first);
                inspector.inspect(second);
                assert_eq!(bytes.contains(&0), refused, "{head:?} cut at {cut}");
            }
        }
    }
}
