//! HTTP/1.1 with one client.
//!
//! Requests without a body, nearly all that a cache sees, are read and answered here. The first one
//! that has a body, or is odd in any way, hands the connection with all its bytes to hyper, which
//! knows every form that HTTP/1 has. What is broken reaches neither: [`judge`] refuses it, and the
//! connection ends with the answer that says why.
//!
//! Follows RFC 9112 sections 3 (request line), 6 (framing) and 9 (connections).

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nearcast_fleet::config::ClientLimits;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::body::ClientBody;
use crate::connection::{ClientSocket, Phase, ends_head};
use crate::connections::Place;
use crate::edge::Worker;
use crate::handler::{self, Brief, LastHost, Served};
use crate::interim;
use crate::request_head::{BodyEnd, Judged, Refusal, judge};
use crate::server::asked;
use crate::upgrade;
use nearcast_http_rules::fields;

/// Fields of a head that is answered here; what has more goes to hyper.
const FIELDS_MAX: usize = 128;
/// How long a connection is kept for one more request when the node drains.
const LAST_REQUEST_MAX: Duration = Duration::from_secs(1);
/// Room for a head that a connection makes at first, and keeps while it is idle.
const HEAD_BYTES_TYPICAL: usize = 2048;
/// A body up to this length is copied behind its head: that costs less than a second piece to
/// write.
const COPIED_BYTES_MAX: usize = 4096;

/// Serves one connection until either side ends it.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    stream: TcpStream,
    client: IpAddr,
    place: Place,
    ending: watch::Receiver<bool>,
) {
    let phase = Arc::new(Phase::default());
    let mut connection = Connection {
        socket: ClientSocket::new(
            stream,
            phase.clone(),
            worker.edge.clients.clone(),
            Some(place),
        ),
        last: Arc::new(Mutex::new(LastHost::default())),
        worker,
        phase,
        client,
        input: BytesMut::new(),
        output: Vec::new(),
        url: String::new(),
    };
    let mut conversed = connection.converse(ending.clone()).await;
    // Boxes, so that the many connections that never come here do not hold room for it.
    while let Ok(Ended::Other) = conversed {
        match Box::pin(connection.hand_over(ending.clone())).await {
            Ok(Some(back)) => connection = back,
            Ok(None) => return,
            Err(error) => {
                return tracing::debug!(%client, %error, "a client's connection ended early");
            }
        }
        conversed = connection.converse(ending.clone()).await;
    }
    let ended = match conversed {
        Ok(Ended::Over | Ended::Other) => Ok(()),
        Ok(Ended::Answered) => Box::pin(connection.socket.end()).await,
        Ok(Ended::Refused(refusal)) => {
            let Connection {
                worker,
                mut socket,
                output,
                ..
            } = connection;
            Box::pin(async move {
                refuse(&worker, &mut socket, output, &refusal).await?;
                socket.end().await
            })
            .await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::debug!(%client, %error, "a client's connection ended early");
    }
}

struct Connection {
    worker: Arc<Worker>,
    socket: ClientSocket,
    phase: Arc<Phase>,
    client: IpAddr,
    last: Arc<Mutex<LastHost>>,
    /// What was read and not yet used.
    input: BytesMut,
    /// The head that is being written.
    output: Vec<u8>,
    /// The cache key that is being looked up.
    url: String,
}

enum Ended {
    /// Between two requests.
    Over,
    /// With a response, behind which the client may still send.
    Answered,
    /// What comes next is for hyper.
    Other,
    /// What came is no request that can be answered.
    Refused(Refusal),
}

/// A request at the begin of what was read.
enum Taken {
    /// Its response's head stands in the output.
    Brief {
        body: Bytes,
        is_last: bool,
    },
    Request {
        request: Box<Request<Option<Incoming>>>,
        is_last: bool,
    },
    Incomplete,
    Other,
}

/// What a request led to.
enum Step {
    Next,
    /// The response is on its way, and with it the connection is over.
    Last,
    Incomplete,
    Other,
    Refused(Refusal),
}

impl Connection {
    async fn converse(&mut self, mut ending: watch::Receiver<bool>) -> io::Result<Ended> {
        let mut ending = pin!(closes_idle(&mut ending).fuse());
        // Bytes of the head that were looked at and do not end it.
        let mut seen = 0;
        loop {
            if ends_head(&self.input, seen) {
                match self.answer().await? {
                    Step::Next => {
                        seen = 0;
                        self.socket.note_read(self.input.len());
                        self.tidy();
                        continue;
                    }
                    Step::Last => return Ok(Ended::Answered),
                    Step::Other => return Ok(Ended::Other),
                    Step::Refused(refusal) => return Ok(Ended::Refused(refusal)),
                    Step::Incomplete => {}
                }
            }
            seen = self.input.len();
            let limits = &self.worker.edge.clients;
            if seen >= limits.head_bytes_max
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
                // A head that has begun is still answered.
                if input.is_empty() && ending.as_mut().poll_unpin(cx).is_ready() {
                    return Poll::Ready(None);
                }
                Poll::Pending
            });
            match read.await {
                // The client has not gone, and may not have its last response yet.
                Some(Ok(0)) if self.socket.is_closing() => return Ok(Ended::Answered),
                Some(Ok(0)) | None => return Ok(Ended::Over),
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

    /// Answers the request at the begin of what was read.
    async fn answer(&mut self) -> io::Result<Step> {
        let (request, is_last) = match self.take_request() {
            Taken::Incomplete => return Ok(Step::Incomplete),
            Taken::Other => {
                return Ok(match judge(&self.input, &self.worker.edge.clients) {
                    Judged::Incomplete => Step::Incomplete,
                    Judged::Whole { length, body } => {
                        let limits = &self.worker.edge.clients;
                        let asked = (body == BodyEnd::Length(0))
                            .then(|| upgrade::asked(&self.input[..length], limits))
                            .flatten();
                        match asked {
                            Some(request) => return Box::pin(self.upgrade(request, length)).await,
                            None => Step::Other,
                        }
                    }
                    Judged::Refused(refusal) => Step::Refused(refusal),
                });
            }
            Taken::Brief { body, is_last } => {
                write(&mut self.socket, &mut self.output, &body, &[]).await?;
                self.phase.request_ended();
                return Ok(if is_last { Step::Last } else { Step::Next });
            }
            Taken::Request { request, is_last } => (request, is_last),
        };
        let is_head = *request.method() == Method::HEAD;
        // Boxes, so that an idle connection does not hold room for all that a request may need.
        let response = Box::pin(self.response(*request)).await?;
        let is_whole = Box::pin(self.respond(response, is_head, is_last)).await?;
        Ok(if is_whole && !is_last {
            Step::Next
        } else {
            Step::Last
        })
    }

    /// Takes the request at the begin of what was read out of it, and answers it where that takes
    /// no time.
    fn take_request(&mut self) -> Taken {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let head = match Head::parse(&self.input, &mut fields, &self.worker.edge.clients) {
            Parsed::Whole(head) => head,
            Parsed::Incomplete => return Taken::Incomplete,
            Parsed::Other => return Taken::Other,
        };
        let is_last = head.is_last || self.worker.edge.standing.is_leaving();
        let length = head.length;
        let body = head.brief().and_then(|brief| {
            let last = self.last.lock().expect("one request at a time");
            handler::serve_brief(&self.worker, &last, &brief, &mut self.url, &mut self.output)
        });
        let taken = match body {
            Some(body) => {
                end_fields(&mut self.output, is_last);
                Taken::Brief { body, is_last }
            }
            None => match head.to_request() {
                Some(request) => Taken::Request {
                    request: Box::new(request),
                    is_last,
                },
                None => return Taken::Other,
            },
        };
        self.phase.request_began();
        self.input.advance(length);
        taken
    }

    /// Answers a request for a WebSocket, whose head takes so many bytes; and when the origin
    /// agrees, passes on what both sides send. Nothing that the client sends behind its request
    /// goes on before that (RFC 6455 section 4.1).
    async fn upgrade(
        &mut self,
        request: Request<Option<Incoming>>,
        length: usize,
    ) -> io::Result<Step> {
        self.phase.request_began();
        self.input.advance(length);
        let served = handler::serve_upgrade(
            self.worker.clone(),
            self.phase.clone(),
            self.client,
            self.last.clone(),
            request,
        );
        let (head, mut tunnel) =
            match unless_gone(&mut self.socket, &mut self.input, served).await? {
                Served::Tunnel(head, tunnel) => (head, tunnel),
                Served::Response(response) => {
                    let is_last = self.worker.edge.standing.is_leaving();
                    let is_whole = self.respond(response, false, is_last).await?;
                    return Ok(if is_whole && !is_last {
                        Step::Next
                    } else {
                        Step::Last
                    });
                }
            };
        write_head(&mut self.output, head.status(), head.headers());
        end_fields(&mut self.output, false);
        write(&mut self.socket, &mut self.output, &[], &[]).await?;
        // An idle tunnel holds no room for heads.
        self.output = Vec::new();
        let (early, idle_max, count) = (
            std::mem::take(&mut self.input),
            tunnel.idle_max,
            tunnel.count(),
        );
        upgrade::relay(&mut self.socket, &mut tunnel.origin, early, idle_max, count).await?;
        Ok(Step::Last)
    }

    /// Waits for the response to a request, and writes the interim ones that come before it.
    async fn response(
        &mut self,
        request: Request<Option<Incoming>>,
    ) -> io::Result<Response<ClientBody>> {
        let (sender, interim) = interim::channel(&self.phase);
        let Self {
            worker,
            phase,
            client,
            last,
            socket,
            input,
            ..
        } = self;
        let mut served = pin!(handler::serve(
            worker.clone(),
            phase.clone(),
            *client,
            last.clone(),
            Some(sender),
            request
        ));
        loop {
            let next = poll_fn(|cx| match interim.take() {
                Some(head) => Poll::Ready(Err(head)),
                None => match served.as_mut().poll(cx) {
                    Poll::Ready(response) => Poll::Ready(Ok(response)),
                    Poll::Pending => interim.poll_next(cx).map(Err),
                },
            });
            match unless_gone(socket, input, next).await? {
                Ok(response) => return Ok(response),
                Err(head) => write_all(socket, [&head, &[], &[]]).await?,
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
        // Bytes that are still to come, where that is known.
        let mut left = match framing {
            Framing::None => return write(socket, output, &[], &[]).await.map(|()| true),
            Framing::Length(length) => length,
            Framing::Chunked => 0,
        };
        loop {
            // What is at hand goes with what is to be written, the head above all; for what is not,
            // that goes ahead.
            let next = match poll_fn(|cx| Poll::Ready(body.as_mut().poll_frame(cx))).await {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    write(socket, output, &[], &[]).await?;
                    unless_gone(socket, input, poll_fn(|cx| body.as_mut().poll_frame(cx))).await?
                }
            };
            let data = match next {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(_)) => {
                    // What there is goes out, so that the client sees a response that was cut and
                    // no other error.
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

    /// Lets go of what an unusually large head has taken.
    fn tidy(&mut self) {
        if self.input.is_empty() && self.input.capacity() > 2 * HEAD_BYTES_TYPICAL {
            self.input = BytesMut::new();
        }
        if self.output.capacity() > 2 * (HEAD_BYTES_TYPICAL + COPIED_BYTES_MAX) {
            self.output = Vec::new();
        }
    }

    /// Lets hyper serve the connection from here on; gives it back where a request comes that is
    /// not hyper's to answer.
    async fn hand_over(
        self,
        mut ending: watch::Receiver<bool>,
    ) -> Result<Option<Self>, Box<dyn std::error::Error + Send + Sync>> {
        let Self {
            worker,
            mut socket,
            phase,
            client,
            last,
            input,
            ..
        } = self;
        socket.hand_over(input);
        let ClientLimits {
            head_bytes_max,
            fields_max,
            ..
        } = *worker.edge.clients;
        let (of_refusals, waiting) = (worker.clone(), phase.clone());
        let (kept_last, kept_phase) = (last.clone(), phase.clone());
        let of_requests = phase.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            of_requests.request_began();
            let is_last = of_requests.is_last();
            let edge = worker.edge.clone();
            let served = handler::serve(
                worker.clone(),
                of_requests.clone(),
                client,
                last.clone(),
                None,
                request.map(Some),
            );
            let phase = of_requests.clone();
            Box::pin(served.map(move |mut response| {
                if is_last || edge.standing.is_leaving() {
                    response
                        .headers_mut()
                        .insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, std::convert::Infallible>(response.map(|body| LibraryBody { body, phase }))
            }))
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_headers(fields_max)
            .max_header_size(head_bytes_max);
        let mut connection = builder.serve_connection(TokioIo::new(socket), service);
        let mut ending = pin!(closes_idle(&mut ending).fuse());
        let ended = poll_fn(|cx| {
            loop {
                if let Poll::Ready(ended) = connection.poll_without_shutdown(cx) {
                    return Poll::Ready(ended);
                }
                if !waiting.take_held() {
                    break;
                }
            }
            if ending.as_mut().poll_unpin(cx).is_ready() {
                Pin::new(&mut connection).graceful_shutdown();
                return connection.poll_without_shutdown(cx);
            }
            Poll::Pending
        })
        .await;
        let mut socket = connection.into_parts().io.into_inner();
        ended?;
        if let Some(input) = socket.take_back() {
            let (output, url) = (Vec::new(), String::new());
            return Ok(Some(Self {
                worker: of_refusals,
                socket,
                phase: kept_phase,
                client,
                last: kept_last,
                input,
                output,
                url,
            }));
        }
        if let Some(refusal) = socket.take_refusal() {
            refuse(&of_refusals, &mut socket, Vec::new(), &refusal).await?;
        }
        socket.end().await?;
        Ok(None)
    }
}

/// Waits until a connection without a request is to be closed because the node ends. Requests that
/// are on their way at that moment are answered: a client cannot know of the end before it sees it.
async fn closes_idle(ending: &mut watch::Receiver<bool>) {
    asked(ending).await;
    tokio::time::sleep(LAST_REQUEST_MAX).await;
}

/// Answers what is no request, as the last of a connection. Its method may not be known: a body
/// does no harm there.
async fn refuse(
    worker: &Worker,
    socket: &mut ClientSocket,
    mut output: Vec<u8>,
    refusal: &Refusal,
) -> io::Result<()> {
    let (mut parts, mut body) = handler::refused(worker, refusal).into_parts();
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

/// A body in hyper's hands, whose end is told.
struct LibraryBody {
    body: ClientBody,
    phase: Arc<Phase>,
}

impl Drop for LibraryBody {
    fn drop(&mut self) {
        self.phase.answering_ended();
    }
}

impl Body for LibraryBody {
    type Data = Bytes;
    type Error = crate::body::BodyCut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// Waits for something, unless the client goes away meanwhile; what that sends is kept for later. A
/// client that ends its own side counts as gone: few do so and wait, and one that left cannot be
/// told from it. A side that the edge ended does not.
///
/// # Errors
/// The client has gone.
async fn unless_gone<T>(
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

/// A request's head as it stands in the input.
struct Head<'a> {
    method: &'a str,
    target: &'a str,
    fields: &'a [httparse::Header<'a>],
    /// Bytes it takes.
    length: usize,
    /// The only `Host`.
    host: Option<&'a str>,
    /// The client wants no other request on this connection.
    is_last: bool,
    /// It has a condition, a range, or another field that changes what a stored response means for
    /// it.
    is_special: bool,
    /// It says how it wants stored responses to be used.
    has_directives: bool,
}

enum Parsed<'a> {
    Whole(Head<'a>),
    Incomplete,
    /// Broken, with a body, or of a form that is rare.
    Other,
}

/// For fuzz targets: the length of the head that [`Head::parse`] accepts, and whether it makes a
/// request.
#[doc(hidden)]
pub fn fuzz_head(input: &[u8], limits: &ClientLimits) -> Option<(usize, bool)> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    match Head::parse(input, &mut fields, limits) {
        Parsed::Whole(head) => Some((head.length, head.to_request().is_some())),
        Parsed::Incomplete | Parsed::Other => None,
    }
}

impl<'a> Head<'a> {
    fn parse(
        input: &'a [u8],
        fields: &'a mut [MaybeUninit<httparse::Header<'a>>],
        limits: &ClientLimits,
    ) -> Parsed<'a> {
        let mut request = httparse::Request::new(&mut []);
        let length = match request.parse_with_uninit_headers(input, fields) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Parsed::Incomplete,
            Err(_) => return Parsed::Other,
        };
        let (Some(method), Some(target), Some(1)) = (request.method, request.path, request.version)
        else {
            return Parsed::Other;
        };
        // The parser lets a line end without a CR, and no CR stand alone (RFC 9112 section 2.2).
        let is_too_large =
            length > limits.head_bytes_max || request.headers.len() > limits.fields_max;
        let count = |byte: u8| input[..length].iter().filter(|b| **b == byte).count();
        if !target.starts_with('/') || is_too_large || count(b'\n') != count(b'\r') {
            return Parsed::Other;
        }
        let mut head = Self {
            method,
            target,
            fields: &*request.headers,
            length,
            host: None,
            is_last: false,
            is_special: false,
            has_directives: false,
        };
        let mut hosts = 0;
        for field in head.fields {
            match FieldKind::of(field.name) {
                FieldKind::Plain => {}
                FieldKind::Host => {
                    hosts += 1;
                    head.host = std::str::from_utf8(field.value).ok().filter(|_| hosts == 1);
                }
                FieldKind::Framing => return Parsed::Other,
                FieldKind::Special => head.is_special = true,
                FieldKind::Directives => head.has_directives = true,
                FieldKind::Connection => {
                    for member in fields::members(field.value) {
                        if member.eq_ignore_ascii_case(b"close") {
                            head.is_last = true;
                        } else if !member.eq_ignore_ascii_case(b"keep-alive") {
                            head.is_special = true;
                        }
                    }
                }
            }
        }
        Parsed::Whole(head)
    }

    /// As the short way takes it, if that may be.
    fn brief(&self) -> Option<Brief<'_>> {
        let host = self
            .host
            .filter(|_| self.method == "GET" && !self.is_special)?;
        Some(Brief {
            host,
            path: self.target,
            fields: self.fields,
            has_directives: self.has_directives,
        })
    }

    /// As the long way takes it; `None` where its target or a field is none after all.
    fn to_request(&self) -> Option<Request<Option<Incoming>>> {
        // A URI is read without its fragment, which a target never has.
        if self.target.contains('#') {
            return None;
        }
        let mut request = Request::new(None);
        *request.method_mut() = Method::from_bytes(self.method.as_bytes()).ok()?;
        *request.uri_mut() = Uri::try_from(self.target).ok()?;
        let mut fields = HeaderMap::with_capacity(self.fields.len());
        for field in self.fields {
            // Copies: a value that were a part of the input would keep all of it alive.
            fields.append(
                HeaderName::from_bytes(field.name.as_bytes()).ok()?,
                HeaderValue::from_bytes(field.value).ok()?,
            );
        }
        *request.headers_mut() = fields;
        Some(request)
    }
}

/// What a request's field means for how the request is read and answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FieldKind {
    Plain,
    Host,
    Connection,
    /// A body follows, or another protocol.
    Framing,
    /// A stored response cannot simply be given.
    Special,
    Directives,
}

impl FieldKind {
    fn of(name: &str) -> Self {
        use FieldKind::*;
        // By length first: few names are compared.
        let candidates: &[(&str, Self)] = match name.len() {
            4 => &[("host", Host)],
            5 => &[("range", Special)],
            6 => &[("expect", Framing), ("pragma", Directives)],
            7 => &[("upgrade", Framing)],
            8 => &[
                ("if-match", Special),
                ("if-range", Special),
                ("cdn-loop", Special),
            ],
            10 => &[("connection", Connection), ("keep-alive", Special)],
            13 => &[
                ("cache-control", Directives),
                ("if-none-match", Special),
                ("nearcast-peer", Special),
            ],
            14 => &[("content-length", Framing)],
            17 => &[
                ("if-modified-since", Special),
                ("transfer-encoding", Framing),
            ],
            19 => &[("if-unmodified-since", Special)],
            _ => &[],
        };
        candidates
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map_or(Plain, |(_, kind)| *kind)
    }
}

/// How a response's end is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// It ends with its head.
    None,
    Length(u64),
    Chunked,
}

/// Chooses the framing and sets the fields that say it (RFC 9112 section 6.3).
fn frame(status: StatusCode, fields: &mut HeaderMap, body: &ClientBody, is_head: bool) -> Framing {
    fields.remove(TRANSFER_ENCODING);
    fields.remove(CONNECTION);
    if !fields.contains_key(DATE) {
        fields.insert(DATE, fields::format_date(crate::edge::now_ms() / 1000));
    }
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        fields.remove(CONTENT_LENGTH);
        return Framing::None;
    }
    // What they would have had with a body may stand there.
    if is_head || status == StatusCode::NOT_MODIFIED {
        return Framing::None;
    }
    match body.size_hint().exact() {
        Some(length) => {
            fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
            if length == 0 {
                Framing::None
            } else {
                Framing::Length(length)
            }
        }
        None => {
            fields.remove(CONTENT_LENGTH);
            fields.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            Framing::Chunked
        }
    }
}

/// Appends a status line and fields, without the empty line after them.
pub(crate) fn write_head(output: &mut Vec<u8>, status: StatusCode, fields: &HeaderMap) {
    output.extend_from_slice(b"HTTP/1.1 ");
    output.extend_from_slice(status.as_str().as_bytes());
    output.push(b' ');
    output.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    output.extend_from_slice(b"\r\n");
    for (name, value) in fields {
        write_field(output, name.as_str(), value.as_bytes());
    }
}

/// Appends one field's line.
pub(crate) fn write_field(output: &mut Vec<u8>, name: &str, value: &[u8]) {
    output.extend_from_slice(name.as_bytes());
    output.extend_from_slice(b": ");
    output.extend_from_slice(value);
    output.extend_from_slice(b"\r\n");
}

fn end_fields(output: &mut Vec<u8>, is_last: bool) {
    if is_last {
        write_field(output, "connection", b"close");
    }
    output.extend_from_slice(b"\r\n");
}

/// Writes what is in `output`, which is empty then, `data` after it, and the short `end` after
/// that.
async fn write(
    socket: &mut ClientSocket,
    output: &mut Vec<u8>,
    data: &[u8],
    end: &[u8],
) -> io::Result<()> {
    if data.len() <= COPIED_BYTES_MAX {
        output.extend_from_slice(data);
        output.extend_from_slice(end);
        write_all(socket, [output, &[], &[]]).await?;
    } else {
        write_all(socket, [output, data, end]).await?;
    }
    output.clear();
    Ok(())
}

async fn write_all(socket: &mut ClientSocket, mut pieces: [&[u8]; 3]) -> io::Result<()> {
    poll_fn(|cx| {
        while let Some(first) = pieces.iter().position(|piece| !piece.is_empty()) {
            let written = if first + 1 == pieces.len()
                || pieces[first + 1..].iter().all(|piece| piece.is_empty())
            {
                ready!(Pin::new(&mut *socket).poll_write(cx, pieces[first]))?
            } else {
                ready!(
                    Pin::new(&mut *socket)
                        .poll_write_vectored(cx, &pieces.map(IoSlice::new)[first..])
                )?
            };
            if written == 0 {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero)));
            }
            let mut left = written;
            for piece in &mut pieces[first..] {
                let taken = left.min(piece.len());
                *piece = &piece[taken..];
                left -= taken;
            }
        }
        Poll::Ready(Ok(()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use http_body_util::Empty;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::connections::Connections;
    use crate::connections::tests::close_all_idle;
    use crate::request_head::BodyEnd;
    use nearcast_http_rules::testing;

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
            let place = all.admit(0, [192, 0, 2, 1].into()).expect("there is room");
            let mut socket =
                ClientSocket::new(accepted, Arc::default(), Arc::default(), Some(place));
            let _open = if is_closed_for_room {
                close_all_idle(&all);
                Some(client)
            } else {
                drop(client);
                None
            };
            // The clock goes on when the end has been read and there is nothing else to do.
            let work = tokio::time::sleep(std::time::Duration::from_secs(1));
            let waited = unless_gone(&mut socket, &mut BytesMut::new(), work).await;
            assert_eq!(waited.is_ok(), is_closed_for_room, "{waited:?}");
        }
    }

    fn parsed<T>(input: &[u8], look: impl FnOnce(Parsed<'_>) -> T) -> T {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        look(Head::parse(input, &mut fields, &ClientLimits::default()))
    }

    #[test]
    fn requests_go_the_way_that_can_answer_them() {
        let table = [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "brief"),
            (
                "GET / HTTP/1.1\r\nHOST: a\r\nAccept: b\r\nconnection: Keep-Alive\r\n\r\n",
                "brief",
            ),
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "brief"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                "brief last",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nCache-Control: no-cache\r\n\r\n",
                "brief directives",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nPragma: no-cache\r\nConnection: x, close\r\n\r\n",
                "long last",
            ),
            ("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "long"),
            ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", "long"),
            ("GET / HTTP/1.1\r\n\r\n", "long"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "long"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1\r\n\r\n",
                "long",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nIf-Range: \"x\"\r\n\r\n",
                "long",
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nIf-Match: *\r\n\r\n", "long"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nIF-NONE-MATCH: *\r\n\r\n",
                "long",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nIf-Modified-Since: x\r\n\r\n",
                "long",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nIf-Unmodified-Since: x\r\n\r\n",
                "long",
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nCDN-Loop: b\r\n\r\n", "long"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nNearcast-Peer: k\r\n\r\n",
                "long",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: accept\r\nAccept: b\r\n\r\n",
                "long",
            ),
            ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", "other"),
            ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "other"),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "other"),
            ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", "other"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "other"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
                "other",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n",
                "other",
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n", "other"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
                "other",
            ),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", "other"),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\nA: b\0c\r\n\r\n", "other"),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "other"),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "other"),
            ("GET / HTTP/1.1\r\nHost: a\r\n", "incomplete"),
            ("GE", "incomplete"),
        ];
        for (input, expected) in table {
            let way = parsed(input.as_bytes(), |parsed| match parsed {
                Parsed::Incomplete => "incomplete".to_owned(),
                Parsed::Other => "other".to_owned(),
                Parsed::Whole(head) => {
                    assert_eq!(head.length, input.len());
                    let mut way = if head.brief().is_some() {
                        "brief"
                    } else {
                        "long"
                    }
                    .to_owned();
                    way += if head.is_last { " last" } else { "" };
                    way += if head.has_directives && head.brief().is_some() {
                        " directives"
                    } else {
                        ""
                    };
                    way
                }
            });
            assert_eq!(way, expected, "{input:?}");
        }
    }

    #[test]
    fn a_head_is_found_however_it_is_cut_and_not_looked_for_again_and_again() {
        for input in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
        ] {
            for cut in 1..input.len() {
                let looks = (cut + 1..=input.len())
                    .filter(|end| ends_head(&input.as_bytes()[..*end], end - 1))
                    .count();
                assert!(ends_head(input.as_bytes(), cut), "{input:?} cut at {cut}");
                assert!(looks <= 2, "{input:?} from {cut} on");
            }
        }
        assert!(!ends_head(b"", 0) && ends_head(b"G", 0));
    }

    #[test]
    fn every_response_says_where_it_ends() {
        let stream = |length| ClientBody::stream(Box::pin(futures_util::stream::empty()), length);
        type Fields = &'static [(&'static str, &'static str)];
        let table: [(u16, bool, ClientBody, Fields, Framing, &str, &str); 9] = [
            (
                200,
                false,
                ClientBody::whole(Bytes::from_static(b"abc")),
                &[],
                Framing::Length(3),
                "3",
                "",
            ),
            (
                200,
                false,
                ClientBody::empty(),
                &[("transfer-encoding", "gzip"), ("connection", "x")],
                Framing::None,
                "0",
                "",
            ),
            (
                200,
                false,
                stream(Some(7)),
                &[("content-length", "9")],
                Framing::Length(7),
                "7",
                "",
            ),
            (
                200,
                false,
                stream(None),
                &[("content-length", "9")],
                Framing::Chunked,
                "",
                "chunked",
            ),
            (
                200,
                true,
                ClientBody::empty(),
                &[("content-length", "9")],
                Framing::None,
                "9",
                "",
            ),
            (200, true, ClientBody::empty(), &[], Framing::None, "", ""),
            (304, false, ClientBody::empty(), &[], Framing::None, "", ""),
            (
                204,
                false,
                ClientBody::empty(),
                &[("content-length", "0")],
                Framing::None,
                "",
                "",
            ),
            (404, false, ClientBody::empty(), &[], Framing::None, "0", ""),
        ];
        for (status, is_head, body, said, expected, length, coding) in table {
            let mut fields: HeaderMap = said
                .iter()
                .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
                .collect();
            let status = StatusCode::from_u16(status).expect("valid");
            assert_eq!(
                frame(status, &mut fields, &body, is_head),
                expected,
                "{status} {said:?}"
            );
            let field = |name: HeaderName| {
                fields
                    .get(name)
                    .map_or("", |v| v.to_str().expect("text"))
                    .to_owned()
            };
            assert_eq!(
                (
                    field(CONTENT_LENGTH).as_str(),
                    field(TRANSFER_ENCODING).as_str()
                ),
                (length, coding),
                "{status} {said:?}"
            );
            assert!(
                fields.contains_key(DATE) && !fields.contains_key(CONNECTION),
                "{status} {said:?}"
            );
        }
    }

    /// What hyper makes of the first request in some bytes, and whether it has no body.
    fn as_hyper_reads(input: &[u8]) -> Option<((Method, String, HeaderMap), bool)> {
        let (tell, told) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let (client, server) = tokio::io::duplex(input.len() + 4096);
            let service = service_fn(|request: Request<Incoming>| {
                let tell = tell.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let is_empty = body.is_end_stream();
                    let _ = tell.send((head.method, head.uri.to_string(), head.headers, is_empty));
                    Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
                }
            });
            let mut builder = http1::Builder::new();
            let serve = builder
                .half_close(true)
                .header_read_timeout(None)
                .serve_connection(TokioIo::new(server), service);
            let (mut reader, mut writer) = tokio::io::split(client);
            let feed = async {
                let _ = writer.write_all(input).await;
                let _ = writer.shutdown().await;
                let _ = reader.read_to_end(&mut Vec::new()).await;
            };
            // What comes after the first request may be broken.
            let _ = tokio::join!(serve, feed);
        });
        let (method, target, fields, is_empty) = told.try_recv().ok()?;
        Some(((method, target, fields), is_empty))
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn what_is_answered_here_means_the_same_to_hyper(
            method in "(GET|HEAD|POST|DELETE|OPTIONS|get|X-Y|G@T|G\\(T)",
            target in "(/|/a\\?b=c|/%2f/|/a#b|/\u{e9}|/\"<>|\\*|http://a/|https://a:1|http://a\\?b|ftp://a/|a|a:80|//|/\\\\)",
            lines in proptest::collection::vec(
                ("(Host|host|Accept|Connection|Content-Length|content-length|Transfer-Encoding|Range|X \\(|X|TE|Expect|Upgrade)",
                 "(:|: | :|:\t)", "(a|a.test|close|chunked|chunked,|,chunked|,||0|3|keep-alive|\u{e9}|a\tb|| x |bytes=0-1|\u{1})", "(\r\n|\r\n|\r\n|\r\n|\n|\r)"),
                0..6,
            ),
            end in "(\r\n|\r\n|\r\n|\n)",
            rest in "(|GET / HTTP/1.1\r\n\r\n|abc)",
        ) {
            let fields: String = lines.iter().map(|(name, colon, value, end)| format!("{name}{colon}{value}{end}")).collect();
            let input = format!("{method} {target} HTTP/1.1\r\n{fields}{end}{rest}").into_bytes();
            let own = parsed(&input, |parsed| match parsed {
                Parsed::Whole(head) => head.to_request().map(|r| (r.method().clone(), r.uri().to_string(), r.headers().clone())),
                Parsed::Incomplete | Parsed::Other => None,
            });
            let hyper = as_hyper_reads(&input);
            if let Some(own) = own {
                prop_assert_eq!(Some((own, true)), hyper.clone());
            }
            // What is let pass is never refused there, and ends where it ends here.
            if let Judged::Whole { body, .. } = judge(&input, &ClientLimits::default()) {
                prop_assert_eq!(hyper.map(|(_, is_empty)| is_empty), Some(body == BodyEnd::Length(0)));
            }
        }

        #[test]
        fn no_bytes_panic(input in proptest::collection::vec(any::<u8>(), 0..300), seen in 0usize..300) {
            parsed(&input, |_| ());
            ends_head(&input, seen.min(input.len()));
        }
    }
}
