//! HTTP/1.1 on one connection, by hyper, under limits. For control, origin and admin listeners.
//!
//! Owns the time-outs and sizes of a connection. It must not know what a response says.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::HttpService;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Limits of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time for the head of a request, the wait for the next request on an open connection
    /// included.
    pub head_time_max: Duration,
    /// Size of the head of a request.
    pub head: HeadLimit,
    /// How long a client may read nothing of a response; `None` is for ever.
    pub write_stall_max: Option<Duration>,
}

/// How the head of a request is limited. A larger one is answered with 431.
#[derive(Debug, Clone, Copy)]
pub enum HeadLimit {
    /// The head alone: its bytes, and the number of its fields.
    Head {
        /// Bytes.
        bytes_max: usize,
        /// Fields.
        fields_max: usize,
    },
    /// Every buffer of the connection, and the head with them. For connections that carry no large
    /// bodies.
    Buffers {
        /// Bytes; at least 8 KiB.
        bytes_max: usize,
    },
}

/// Serves a connection, in plain TCP or in TLS, until the client closes it, a limit passes, or `end` completes and the
/// request that is being answered then is finished.
///
/// # Errors
/// A connection that ended early, and why: for the log at most.
pub async fn serve_connection<T, S>(
    stream: T,
    limits: Limits,
    service: S,
    end: impl Future<Output = ()>,
) -> hyper::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: HttpService<Incoming>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::ResBody: Body + 'static,
    <S::ResBody as Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time_max);
    match limits.head {
        HeadLimit::Head {
            bytes_max,
            fields_max,
        } => builder.max_header_size(bytes_max).max_headers(fields_max),
        HeadLimit::Buffers { bytes_max } => builder.max_buf_size(bytes_max),
    };
    let stream = StallLimit::new(stream, limits.write_stall_max);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));

    tokio::select! {
        ended = serving.as_mut() => return ended,
        () = end => {}
    }
    serving.as_mut().graceful_shutdown();
    serving.await
}

/// A stream whose writes fail when the other side reads nothing for a time. TLS accepts some bytes
/// and waits when it is flushed, so that is limited too.
#[derive(Debug)]
struct StallLimit<S> {
    stream: S,
    limit: Option<Duration>,
    /// Runs while a write waits; made by the first that does.
    timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl<S> StallLimit<S> {
    fn new(stream: S, limit: Option<Duration>) -> Self {
        Self {
            stream,
            limit,
            timer: None,
            is_waiting: false,
        }
    }

    /// Passes the result of a write on, or fails it when writes have waited too long.
    fn limited<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_waiting = false;
            return written;
        }
        let Some(limit) = self.limit else {
            return Poll::Pending;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if !self.is_waiting {
            self.is_waiting = true;
            timer.as_mut().reset(Instant::now() + limit);
        }
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallLimit<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StallLimit<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limited(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.limited(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.limited(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut_down = Pin::new(&mut self.stream).poll_shutdown(context);
        self.limited(context, shut_down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::net::SocketAddr;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;

    const LIMITS: Limits = Limits {
        head_time_max: Duration::from_secs(15),
        head: HeadLimit::Buffers {
            bytes_max: 16 << 10,
        },
        write_stall_max: Some(Duration::from_secs(30)),
    };

    /// Serves one connection; `/slow` takes 5 s.
    async fn served(
        limits: Limits,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> (TcpStream, JoinHandle<hyper::Result<()>>) {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).await.expect("it listens");
        let (stream, _) = listener.accept().await.expect("it is queued");
        let service = service_fn(|request: Request<Incoming>| async move {
            if request.uri().path() == "/slow" {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"here"))))
        });
        let serving = tokio::spawn(serve_connection(stream, limits, service, end));
        (client, serving)
    }

    async fn answer(client: &mut TcpStream, sent: &str) -> String {
        client.write_all(sent.as_bytes()).await.expect("sent");
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.expect("closed");
        String::from_utf8(received).expect("text")
    }

    #[tokio::test]
    async fn a_head_beyond_the_limit_is_answered_with_431() {
        let head = HeadLimit::Head {
            bytes_max: 1024,
            fields_max: 10,
        };
        for (limits, fields, bytes, status) in [
            (Limits { head, ..LIMITS }, 1, 100, "HTTP/1.1 200"),
            (Limits { head, ..LIMITS }, 1, 2000, "HTTP/1.1 431"),
            (Limits { head, ..LIMITS }, 20, 1, "HTTP/1.1 431"),
            (LIMITS, 20, 100, "HTTP/1.1 200"),
            (LIMITS, 1, 20_000, "HTTP/1.1 431"),
        ] {
            let (mut client, _serving) = served(limits, std::future::pending()).await;
            let mut sent = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n".to_owned();
            for number in 0..fields {
                sent.push_str(&format!("X-{number}: {}\r\n", "x".repeat(bytes)));
            }
            sent.push_str("\r\n");
            let received = answer(&mut client, &sent).await;
            assert!(received.starts_with(status), "{limits:?}: {received:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_request_that_is_being_answered_at_the_end_is_finished() {
        let end = tokio::time::sleep(Duration::from_secs(1));
        let (mut client, serving) = served(LIMITS, end).await;
        let received = answer(&mut client, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(received.contains("connection: close"), "{received:?}");
        assert!(received.ends_with("here"), "{received:?}");
        serving.await.expect("no panic").expect("an orderly end");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_with_the_time_for_a_head() {
        let begun = Instant::now();
        let (mut client, _serving) = served(LIMITS, std::future::pending()).await;
        let received = answer(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(received.starts_with("HTTP/1.1 200"), "{received:?}");
        assert!(begun.elapsed() >= LIMITS.head_time_max);
    }

    #[tokio::test(start_paused = true)]
    async fn writes_fail_when_the_other_side_reads_nothing() {
        let seconds = Duration::from_secs;
        for (limit, pauses, expected) in [
            (Some(seconds(30)), [10, 20], true),
            (Some(seconds(30)), [10, 40], false),
            (None, [100, 1000], true),
        ] {
            let (near, mut far) = tokio::io::duplex(4);
            let mut near = StallLimit::new(near, limit);
            let reader = tokio::spawn(async move {
                for pause in pauses {
                    tokio::time::sleep(seconds(pause)).await;
                    far.read_exact(&mut [0; 4]).await.expect("written");
                }
                far
            });
            let written = near.write_all(b"twelve bytes").await;
            assert_eq!(written.is_ok(), expected, "{limit:?} {pauses:?}");
            drop((near, reader));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_fails_when_the_other_side_reads_nothing() {
        for (reads, expected) in [(true, true), (false, false)] {
            let (near, mut far) = tokio::io::duplex(4);
            let buffered = tokio::io::BufWriter::new(near);
            let mut near = StallLimit::new(buffered, Some(Duration::from_secs(30)));
            near.write_all(b"twelve bytes").await.expect("buffered");
            let reader = tokio::spawn(async move {
                if reads {
                    far.read_exact(&mut [0; 12]).await.expect("written");
                }
                far
            });
            assert_eq!(near.flush().await.is_ok(), expected, "{reads}");
            drop((near, reader));
        }
    }
}
