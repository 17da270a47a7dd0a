//! HTTP/1.1 with one client.
//!
//! Requests without a body, nearly all that a cache gets, are read and answered here. The first one
//! that has a body, or a rare form, hands the connection with all its bytes to the HTTP library
//! ([`library`]), which knows every form that HTTP/1 has. A malformed request reaches neither:
//! [`judge`] refuses it, and the connection ends with the answer that names the reason.
//!
//! Follows RFC 9112 sections 3 (request line), 6 (framing) and 9 (connections).

pub(super) mod first;
pub(crate) mod head;
pub mod judge;
mod library;
pub(super) mod write;

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::FutureExt;
use http::{Method, Request, Response};
use http_body::Body;
use nearcast_net::shutdown::Shutdown;

use self::first::Begun;
use self::head::{FIELDS_MAX, Head, Parsed};
use self::judge::{BodyEnd, Judged, Refusal, judge, websocket_request};
use self::write::{
    COPIED_BYTES_MAX, Framing, end_fields, frame, write, write_head, write_hit_head,
};
use crate::client_body::ClientBody;
use crate::edge::Worker;
use crate::interim::{self, Interims};
use crate::request::check::ClientConnection;
use crate::request::handler;
use crate::request::hit::try_hit;
use crate::request::upgrade::{Upgraded, serve_upgrade};
use crate::request_body::RequestBody;
use crate::serve::connections::ConnectionSlot;
use crate::serve::http2;
use crate::serve::phase::Phase;
use crate::serve::socket::{ClientSocket, ends_head};
use crate::serve::transport::Transport;
use crate::serve::tunnel;

/// How long a connection is kept for one more request when the node drains.
const LAST_REQUEST_MAX: Duration = Duration::from_secs(1);
/// Bytes that a connection reserves for a head at first, and keeps while it is idle.
const HEAD_BYTES_TYPICAL: usize = 2048;
/// Bytes of the preface of HTTP/2 that look like the head of a request.
const PREFACE_HEAD_BYTES: usize = "PRI * HTTP/2.0\r\n\r\n".len();

/// Serves one connection until either side ends it. `begun` is what happened to it before.
pub(in crate::serve) async fn serve(
    worker: Arc<Worker>,
    transport: Transport,
    client: ClientConnection,
    (slot, begun): (ConnectionSlot, Option<Box<Begun>>),
    ending: Shutdown,
) {
    let phase = Arc::new(Phase::default());
    let address = client.address();
    let limits = worker.edge.clients.clone();
    let mut connection = Connection {
        socket: ClientSocket::new(transport, phase.clone(), limits, Some(slot)),
        client,
        worker,
        phase,
        input: BytesMut::new(),
        output: Vec::new(),
        url: String::new(),
        interims: None,
        is_fresh: true,
        unwritten: None,
    };
    if let Some(begun) = begun {
        // Nothing was written yet, so this takes one look of the runtime at the socket. The HTTP
        // library needs it: it takes a connection for done whose last response is not written.
        if begun.unwritten.is_none() {
            connection.socket.writable().await;
        }
        connection.resume(*begun);
    }
    // Boxes, so that the many connections that never come there reserve no memory for it.
    let ended: Result<(), Box<dyn std::error::Error + Send + Sync>> = loop {
        break match connection.serve_requests(ending.clone()).await {
            Ok(Ended::Idle | Ended::Closed) => {
                connection.socket.close_idle();
                Ok(())
            }
            Ok(Ended::Answered) => Box::pin(connection.socket.end(ending))
                .await
                .map_err(Into::into),
            Ok(Ended::Refused(refusal)) => Box::pin(connection.end_with(refusal, ending))
                .await
                .map_err(Into::into),
            Ok(Ended::Http2) => {
                let Connection {
                    worker,
                    socket,
                    client,
                    input,
                    ..
                } = connection;
                let (transport, phase, slot) = socket.into_parts();
                let opened = http2::Opened {
                    transport,
                    phase,
                    slot,
                    input,
                };
                return Box::pin(http2::serve(worker, opened, client, ending)).await;
            }
            Ok(Ended::Library) => {
                match Box::pin(library::serve_requests(connection, ending.clone())).await {
                    Ok(Some(back)) => {
                        connection = back;
                        continue;
                    }
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Err(error) => {
                connection.socket.close_idle();
                Err(error.into())
            }
        };
    };
    if let Err(error) = ended {
        tracing::debug!(client = %address, %error, "a client's connection ended early");
    }
}

struct Connection {
    worker: Arc<Worker>,
    socket: ClientSocket,
    phase: Arc<Phase>,
    client: ClientConnection,
    /// Bytes that were read and not yet used.
    input: BytesMut,
    /// The head that is being written.
    output: Vec<u8>,
    /// Buffer for the cache key of a hit.
    url: String,
    /// Interim responses; made for the first request that may get one.
    interims: Option<Arc<Interims>>,
    /// No request came yet.
    is_fresh: bool,
    /// The rest of a last response's body, to be written behind the output.
    unwritten: Option<Bytes>,
}

/// How the requests that are read here ended.
enum Ended {
    /// Between two requests.
    Idle,
    /// With a response, after which the client may still send.
    Answered,
    /// With a response, after which the client sends nothing.
    Closed,
    /// The HTTP library reads the next request.
    Library,
    /// The client speaks HTTP/2.
    Http2,
    /// The next request is malformed or came too slowly.
    Refused(Refusal),
}

/// The request at the start of the input.
enum Received {
    /// The output has the head of its response.
    Hit {
        body: Bytes,
        is_last: bool,
        /// The client asked for the end, and has sent nothing behind the request.
        is_end: bool,
    },
    Request {
        request: Box<Request<Option<RequestBody>>>,
        is_last: bool,
    },
    Incomplete,
    Other,
}

/// How the connection continues after one request.
enum Step {
    Next,
    /// The connection ends with the response, which was written.
    Last,
    /// The same, and the client sends nothing more.
    Closed,
    Incomplete,
    Library,
    Http2,
    Refused(Refusal),
}

impl Step {
    /// After a response; one whose body ended early ends the connection.
    fn after_response(is_complete: bool, is_last: bool) -> Self {
        match is_complete && !is_last {
            true => Self::Next,
            false => Self::Last,
        }
    }
}

impl Connection {
    async fn end_with(self, refusal: Refusal, ending: Shutdown) -> io::Result<()> {
        let Self {
            worker,
            mut socket,
            output,
            client,
            ..
        } = self;
        refuse((&worker, &client), &mut socket, output, &refusal).await?;
        socket.end(ending).await
    }

    /// Goes on with what was read before.
    fn resume(&mut self, begun: Begun) {
        self.client = begun.client;
        self.input = begun.input;
        self.socket.note_read(self.input.len());
        self.output = begun.output;
        self.unwritten = begun.unwritten;
    }

    /// Reads and answers requests until the connection ends or the HTTP library takes over.
    async fn serve_requests(&mut self, mut ending: Shutdown) -> io::Result<Ended> {
        if let Some(body) = self.unwritten.take() {
            self.phase.request_began();
            write(&mut self.socket, &mut self.output, &body, &[]).await?;
            self.phase.request_ended();
            return Ok(Ended::Closed);
        }
        let mut ending = pin!(close_idle(&mut ending).fuse());
        // Bytes of the head that were searched for its end.
        let mut searched = 0;
        loop {
            if ends_head(&self.input, searched) {
                match self.answer().await? {
                    Step::Next => {
                        searched = 0;
                        self.is_fresh = false;
                        self.socket.note_read(self.input.len());
                        self.shrink_buffers();
                        continue;
                    }
                    Step::Last => return Ok(Ended::Answered),
                    Step::Closed => return Ok(Ended::Closed),
                    Step::Library => return Ok(Ended::Library),
                    Step::Http2 => return Ok(Ended::Http2),
                    Step::Refused(refusal) => return Ok(Ended::Refused(refusal)),
                    Step::Incomplete => {}
                }
            }
            searched = self.input.len();
            let limits = &self.worker.edge.clients;
            if searched >= limits.head_bytes_max
                && let Judged::Refused(refusal) = judge(&self.input, limits)
            {
                return Ok(Ended::Refused(refusal));
            }

            let (socket, input) = (&mut self.socket, &mut self.input);
            input.reserve(HEAD_BYTES_TYPICAL);
            let read = poll_fn(|cx| {
                if let Poll::Ready(read) = socket.poll_fill(cx, input) {
                    return Poll::Ready(Some(read));
                }
                // A request whose head has begun is still answered.
                if input.is_empty() && ending.as_mut().poll_unpin(cx).is_ready() {
                    return Poll::Ready(None);
                }
                Poll::Pending
            });
            match read.await {
                // This node ended the reading: the client is still there, and may not have its last
                // response yet.
                Some(Ok(0)) if self.socket.is_closing() => return Ok(Ended::Answered),
                Some(Ok(0)) | None => return Ok(Ended::Idle),
                Some(Ok(_)) => {}
                Some(Err(error))
                    if error.kind() == io::ErrorKind::TimedOut && !self.input.is_empty() =>
                {
                    return Ok(Ended::Refused(Refusal::too_slow()));
                }
                Some(Err(error)) => return Err(error),
            }
        }
    }

    /// Answers the request at the start of the input.
    async fn answer(&mut self) -> io::Result<Step> {
        let (request, is_last) = match self.take_request() {
            Received::Incomplete => return Ok(Step::Incomplete),
            Received::Other => return self.answer_other().await,
            Received::Hit {
                body,
                is_last,
                is_end,
            } => {
                write(&mut self.socket, &mut self.output, &body, &[]).await?;
                self.phase.request_ended();
                return Ok(match is_end {
                    true => Step::Closed,
                    false => Step::after_response(true, is_last),
                });
            }
            Received::Request { request, is_last } => (request, is_last),
        };
        let is_head = *request.method() == Method::HEAD;
        // Boxes, so that an idle connection reserves no memory for all that a request may need.
        let response = Box::pin(self.response(*request)).await?;
        let is_complete = Box::pin(self.respond(response, is_head, is_last)).await?;
        Ok(Step::after_response(is_complete, is_last))
    }

    /// Takes the request at the start of the input out of it, and answers it if it is a hit.
    fn take_request(&mut self) -> Received {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let edge = &self.worker.edge;
        let head = match Head::parse(&self.input, &mut fields, &edge.clients) {
            Parsed::Whole(head) => head,
            Parsed::Incomplete => return Received::Incomplete,
            Parsed::Other => return Received::Other,
        };
        let is_last = head.is_last || edge.lifecycle.is_leaving();
        let length = head.length;

        let hit = head
            .to_hit_request()
            .and_then(|request| try_hit(&self.worker, &self.client, request, &mut self.url));
        let received = match hit {
            Some(hit) => {
                write_hit_head(&mut self.output, &hit, edge, &self.client);
                end_fields(&mut self.output, is_last);
                // The body alone: a slow client must not keep the stored response.
                Received::Hit {
                    body: hit.body,
                    is_last,
                    is_end: head.is_last && self.input.len() == length && !self.socket.is_tls(),
                }
            }
            None => match head.to_request() {
                Some(request) => Received::Request {
                    request: Box::new(request),
                    is_last,
                },
                None => return Received::Other,
            },
        };
        self.phase.request_began();
        self.input.advance(length);
        received
    }

    /// Answers a request that is not read here if it asks for a WebSocket.
    async fn answer_other(&mut self) -> io::Result<Step> {
        let limits = &self.worker.edge.clients;
        match self.begins_http2() {
            Some(true) => return Ok(Step::Http2),
            Some(false) => return Ok(Step::Incomplete),
            None => {}
        }
        match judge(&self.input, limits) {
            Judged::Incomplete => Ok(Step::Incomplete),
            Judged::Refused(refusal) => Ok(Step::Refused(refusal)),
            Judged::Whole { length, body } => {
                let request = (body == BodyEnd::Length(0))
                    .then(|| websocket_request(&self.input[..length], limits))
                    .flatten();
                match request {
                    Some(request) => Box::pin(self.upgrade(request, length)).await,
                    None => Ok(Step::Library),
                }
            }
        }
    }

    /// Whether the connection is one of HTTP/2 with prior knowledge (RFC 9113 section 3.3): its
    /// preface looks like the head of a request. `Some(false)` when it may become one. Over TLS the
    /// client would have said so before.
    fn begins_http2(&self) -> Option<bool> {
        let preface = &http2::frames::PREFACE[..PREFACE_HEAD_BYTES];
        if !self.is_fresh || !self.worker.edge.clients.http2 || self.socket.is_tls() {
            return None;
        }
        match self.input.starts_with(preface) {
            true => Some(true),
            false => preface.starts_with(&self.input).then_some(false),
        }
    }

    /// Answers a request for a WebSocket, whose head has `length` bytes. When the origin agrees,
    /// the bytes of both sides are relayed; no byte that the client sends after its request is
    /// relayed before that (RFC 6455 section 4.1).
    async fn upgrade(
        &mut self,
        request: Request<Option<RequestBody>>,
        length: usize,
    ) -> io::Result<Step> {
        self.phase.request_began();
        self.input.advance(length);
        let phase = self.phase.clone();
        let served = serve_upgrade(
            self.worker.clone(),
            self.client.clone(),
            request,
            move || phase.request_ended(),
        );
        let (head, mut tunnel) =
            match or_disconnect(&mut self.socket, &mut self.input, served).await? {
                Upgraded::Tunnel(head, tunnel) => (head, tunnel),
                Upgraded::Response(response) => {
                    let is_last = self.worker.edge.lifecycle.is_leaving();
                    let is_complete = self.respond(response, false, is_last).await?;
                    return Ok(Step::after_response(is_complete, is_last));
                }
            };
        write_head(&mut self.output, head.status(), head.headers());
        end_fields(&mut self.output, false);
        write(&mut self.socket, &mut self.output, &[], &[]).await?;

        // An idle tunnel keeps no buffer for heads.
        self.output = Vec::new();
        let early = std::mem::take(&mut self.input);
        let (idle_max, count) = (tunnel.idle_max, tunnel.count());
        tunnel::relay(&mut self.socket, &mut tunnel.origin, early, idle_max, count).await?;
        Ok(Step::Last)
    }

    /// Waits for the response to a request, and writes the interim ones that come before it.
    async fn response(
        &mut self,
        request: Request<Option<RequestBody>>,
    ) -> io::Result<Response<ClientBody>> {
        let (sender, interim) = interim::channel(self.interims.get_or_insert_default());
        let phase = self.phase.clone();
        let mut served = pin!(handler::serve(
            self.worker.clone(),
            self.client.clone(),
            Some(sender),
            request,
            move || phase.request_ended(),
        ));
        loop {
            let next = poll_fn(|cx| match interim.take() {
                Some(head) => Poll::Ready(Err(head)),
                None => match served.as_mut().poll(cx) {
                    Poll::Ready(response) => Poll::Ready(Ok(response)),
                    Poll::Pending => interim.poll_next(cx).map(Err),
                },
            });
            match or_disconnect(&mut self.socket, &mut self.input, next).await? {
                Ok(response) => return Ok(response),
                Err((status, fields)) => {
                    write_head(&mut self.output, status, &fields);
                    end_fields(&mut self.output, false);
                    write(&mut self.socket, &mut self.output, &[], &[]).await?;
                }
            }
        }
    }

    /// Writes a response; `false` when its body ended early, so that the connection has to end with
    /// it.
    async fn respond(
        &mut self,
        response: Response<ClientBody>,
        is_head: bool,
        is_last: bool,
    ) -> io::Result<bool> {
        let Self {
            socket,
            input,
            output,
            ..
        } = self;
        let (mut parts, body) = response.into_parts();
        let framing = frame(parts.status, &mut parts.headers, &body, is_head);
        write_head(output, parts.status, &parts.headers);
        end_fields(output, is_last);
        let mut body = pin!(body);
        // Bytes of the body that are still to come, where its length is known.
        let mut left = match framing {
            Framing::None => return write(socket, output, &[], &[]).await.map(|()| true),
            Framing::Length(length) => length,
            Framing::Chunked => 0,
        };

        loop {
            // Data that is ready is written together with the head. If none is ready, the head is
            // written first.
            let next = match poll_fn(|cx| Poll::Ready(body.as_mut().poll_frame(cx))).await {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    write(socket, output, &[], &[]).await?;
                    or_disconnect(socket, input, poll_fn(|cx| body.as_mut().poll_frame(cx))).await?
                }
            };
            let data = match next {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(_)) => {
                    // The client gets what there is, so that it sees a response that was cut and no
                    // other error.
                    write(socket, output, &[], &[]).await?;
                    return Ok(false);
                }
                None => break,
            };
            match framing {
                Framing::Chunked if !data.is_empty() => {
                    output.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                    write(socket, output, &data, b"\r\n").await?;
                }
                Framing::Chunked => {}
                _ => {
                    let length = (data.len() as u64).min(left);
                    left -= length;
                    write(socket, output, &data[..length as usize], &[]).await?;
                }
            }
        }

        if framing == Framing::Chunked {
            output.extend_from_slice(b"0\r\n\r\n");
        }
        write(socket, output, &[], &[]).await?;
        Ok(left == 0)
    }

    /// Frees the memory of an unusually large head.
    fn shrink_buffers(&mut self) {
        if self.input.is_empty() && self.input.capacity() > 2 * HEAD_BYTES_TYPICAL {
            self.input = BytesMut::new();
        }
        if self.output.capacity() > 2 * (HEAD_BYTES_TYPICAL + COPIED_BYTES_MAX) {
            self.output = Vec::new();
        }
    }
}

/// Waits until connections without a request are to be closed because the node ends. Requests that
/// are on their way at that moment are still answered, as their clients cannot know of the end.
async fn close_idle(ending: &mut Shutdown) {
    ending.requested().await;
    tokio::time::sleep(LAST_REQUEST_MAX).await;
}

/// Answers a request that was refused, as the last of a connection. Its method may not be known: a
/// body does no harm there.
async fn refuse(
    (worker, client): (&Arc<Worker>, &ClientConnection),
    socket: &mut ClientSocket,
    mut output: Vec<u8>,
    refusal: &Refusal,
) -> io::Result<()> {
    let words = refusal.words.clone();
    let response = handler::refuse(worker, client, refusal.status, refusal.error, words);
    let (mut parts, mut body) = response.into_parts();
    frame(parts.status, &mut parts.headers, &body, false);
    write_head(&mut output, parts.status, &parts.headers);
    end_fields(&mut output, true);
    let body = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).now_or_never();
    let body = body
        .flatten()
        .and_then(Result::ok)
        .and_then(|frame| frame.into_data().ok())
        .unwrap_or_default();
    write(socket, &mut output, &body, &[]).await
}

/// Waits for `work`, unless the client disconnects meanwhile; bytes that it sends are kept for
/// later. A client that ends its own side counts as disconnected: few do so and wait, and one that
/// has left looks the same. A connection whose reading this node ended does not.
///
/// # Errors
/// The client has disconnected.
async fn or_disconnect<T>(
    socket: &mut ClientSocket,
    input: &mut BytesMut,
    work: impl Future<Output = T>,
) -> io::Result<T> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        while input.len() < socket.head_bytes_max() {
            input.reserve(HEAD_BYTES_TYPICAL);
            match ready!(socket.poll_fill(cx, input)) {
                Ok(0) if socket.is_closing() => return Poll::Pending,
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::serve::connections::Connections;
    use crate::serve::connections::tests::close_all_idle;

    #[tokio::test(start_paused = true)]
    async fn a_client_whose_connection_is_closed_for_room_has_not_gone() {
        let all = Connections::new(16, 1);
        for is_closed_for_room in [false, true] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
                .await
                .expect("a free port");
            let client = TcpStream::connect(listener.local_addr().expect("bound"))
                .await
                .expect("somebody listens");
            let (accepted, _) = listener.accept().await.expect("a connection waits");
            let slot = all.admit(0, [192, 0, 2, 1].into()).expect("there is room");
            let mut socket = ClientSocket::new(
                Transport::Plain(accepted),
                Arc::default(),
                Arc::default(),
                Some(slot),
            );
            let _open = if is_closed_for_room {
                close_all_idle(&all);
                Some(client)
            } else {
                drop(client);
                None
            };
            // The clock goes on when the end has been read and there is nothing else to do.
            let work = tokio::time::sleep(std::time::Duration::from_secs(1));
            let waited = or_disconnect(&mut socket, &mut BytesMut::new(), work).await;
            assert_eq!(waited.is_ok(), is_closed_for_room, "{waited:?}");
        }
    }
}
