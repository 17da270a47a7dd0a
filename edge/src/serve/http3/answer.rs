//! Requests and their answers: the fast path, which writes a hit where it was read, and the steps
//! that all protocols share.
//!
//! Follows RFC 9114 section 4.1.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use nearcast_http_rules::https::STRICT_TRANSPORT_SECURITY;
use nearcast_http_rules::{key, structured};
use quinn::{RecvStream, SendStream};

use super::allowances::Kind;
use super::closed::{Closed, MESSAGE_ERROR, NO_ERROR, REQUEST_INCOMPLETE, REQUEST_REJECTED};
use super::context::{Buffers, Context};
use super::frames;
use super::head::{Head, expects_continue, stated_length};
use super::qpack::{SectionFault, encode};
use super::reader::{Fault, Input, Reader};
use super::send::{Left, Sender, number, poll_write};
use super::streams::Stream;
use super::upload::{Upload, read_trailers};
use crate::client_body::ClientBody;
use crate::interim;
use crate::request::handler;
use crate::request::hit::{Hit, HitRequest, try_hit};
use crate::request_body::RequestBody;
use crate::serve::http1::head::FieldKind;
use crate::serve::http1::judge::Refusal;
use crate::serve::http2::answer::to_multiplexed;
use crate::serve::http2::judge;
use crate::serve::http2::priority::Priority;

/// Fields of a request that the fast path accepts.
const HIT_FIELDS_MAX: usize = 32;
/// Larger responses are sent in the order of their requests. Smaller ones are sent before them, which
/// costs others little.
const LARGE_BYTES: usize = 64 << 10;
/// A longer hit is under way until its client has it.
const SHORT_BYTES_MAX: usize = 16 << 10;

/// A request that was received, as far as its head.
enum Received {
    /// Its answer.
    Hit {
        head: Bytes,
        body: Bytes,
    },
    Request(Box<Parts>),
    Refused(Refusal),
}

/// Answers a stream that the client has begun: at once where its request is a hit, otherwise by the
/// stream that this gives.
pub(super) fn begin(
    context: &Arc<Context>,
    (mut send, incoming): (SendStream, RecvStream),
    update: Option<Priority>,
) -> Option<Stream> {
    let id = u64::from(send.id());
    let mut reader = Reader::new(incoming);
    if context.goaway().is_some_and(|first| id >= first) {
        reader.stop(REQUEST_REJECTED);
        let _ = send.reset(REQUEST_REJECTED);
        return None;
    }
    // The stream's own task waits, if something has to.
    let mut cx = TaskContext::from_waker(Waker::noop());
    let section = match reader.poll_next(&mut cx, context) {
        Poll::Pending => {
            let priority = update.unwrap_or_default();
            let sender = Sender::new(context, send, number(priority, id));
            let work = receive_and_answer(context.clone(), sender, reader, update);
            return Some(Stream {
                id,
                priority: work.0,
                future: Box::pin(work.1),
            });
        }
        Poll::Ready(section) => section,
    };
    let is_end = reader.is_at_end();
    let mut priority = Priority::default();
    let received = receive(context, section, is_end, &mut priority);
    let priority = update.unwrap_or(priority);
    let transport = number(priority, id);
    match received {
        Ok(Received::Hit { head, body }) => {
            if priority != Priority::default() || body.len() >= LARGE_BYTES {
                let _ = send.set_priority(transport);
            }
            let is_long = body.len() > SHORT_BYTES_MAX;
            let mut pieces = [head, body];
            match poll_write(&mut send, &mut cx, &mut pieces) {
                Poll::Ready(Err(Left)) => {
                    context.spend_or_close(Kind::Reset);
                    return None;
                }
                // The stream ends when it is dropped.
                Poll::Ready(Ok(_)) if !is_long && pieces.iter().all(Bytes::is_empty) => {
                    context.note_write();
                    context.note_answered();
                    return None;
                }
                _ => {}
            }
            let mut sender = Sender::new(context, send, transport);
            Some(Stream {
                id,
                priority: sender.priority(),
                future: Box::pin(async move {
                    if sender.write(&mut pieces).await.is_ok() {
                        sender.finish().await;
                    }
                }),
            })
        }
        received => {
            let sender = Sender::new(context, send, transport);
            let priority = sender.priority();
            let context = context.clone();
            let work = async move {
                match received {
                    Ok(Received::Request(parts)) => {
                        answer(context, sender, reader, *parts, is_end).await;
                    }
                    Ok(Received::Refused(refusal)) => {
                        refuse(&context, sender, reader, refusal).await;
                    }
                    Ok(Received::Hit { .. }) => {}
                    Err(fault) => fail(&context, sender, reader, fault).await,
                }
            };
            Some(Stream {
                id,
                priority,
                future: Box::pin(work),
            })
        }
    }
}

/// Receives the rest of a head, and answers the request. Gives also where the stream's priority is
/// changed.
fn receive_and_answer(
    context: Arc<Context>,
    sender: Sender,
    mut reader: Reader,
    update: Option<Priority>,
) -> (
    Arc<std::sync::atomic::AtomicI32>,
    impl Future<Output = ()> + Send,
) {
    let (priority, id) = (sender.priority(), sender.id());
    let cell = priority.clone();
    let work = async move {
        let most = context.worker.edge.clients.head_timeout;
        let head = poll_fn(|cx| reader.poll_next(cx, &context));
        let section = match tokio::time::timeout(most, head).await {
            Ok(section) => section,
            Err(_) => Err(Fault::Stream(REQUEST_INCOMPLETE)),
        };
        let is_end = reader.is_at_end();
        let mut stated = Priority::default();
        let received = receive(&context, section, is_end, &mut stated);
        if update.is_none() {
            let _ = cell.compare_exchange(
                number(Priority::default(), id),
                number(stated, id),
                std::sync::atomic::Ordering::SeqCst,
                std::sync::atomic::Ordering::SeqCst,
            );
        }
        match received {
            Ok(Received::Hit { head, body }) => {
                let mut sender = sender;
                if sender.write(&mut [head, body]).await.is_ok() {
                    sender.finish().await;
                }
            }
            Ok(Received::Request(parts)) => {
                answer(context, sender, reader, *parts, is_end).await;
            }
            Ok(Received::Refused(refusal)) => refuse(&context, sender, reader, refusal).await,
            Err(fault) => fail(&context, sender, reader, fault).await,
        }
    };
    (priority, work)
}

/// Reads a request's head: what is malformed is known, and a hit has its answer.
fn receive(
    context: &Context,
    section: Result<Input, Fault>,
    is_end: bool,
    priority: &mut Priority,
) -> Result<Received, Fault> {
    let section = match section? {
        Input::Section(section) => section,
        // RFC 9114 section 4.1.
        Input::End => return Err(Fault::Stream(REQUEST_INCOMPLETE)),
        Input::Data(_) => return Err(Closed::FrameUnexpected.into()),
    };
    let mut buffers = context.buffers.lock();
    match buffers.section.read(&section, context.section_limits) {
        Ok(()) => {}
        Err(SectionFault::Malformed) => return Err(Closed::Decompression.into()),
        Err(SectionFault::TooLarge) => return Err(Fault::TooLarge),
    }
    buffers.section.join_cookies();
    let mut section = std::mem::take(&mut buffers.section);
    let received = Head::of(&section)
        .map_err(|_| Fault::Stream(MESSAGE_ERROR))
        .and_then(|head| {
            *priority = Priority::stated(
                head.fields()
                    .filter(|(name, _)| *name == "priority")
                    .map(|(_, value)| value),
            );
            if is_end && let Some((head, body)) = answer_hit(context, &mut buffers, &head) {
                return Ok(Received::Hit { head, body });
            }
            let mut parts = head.to_parts().map_err(|_| Fault::Stream(MESSAGE_ERROR))?;
            // RFC 9114 section 4.1.2.
            if is_end && stated_length(&parts.headers).is_some_and(|length| length > 0) {
                return Err(Fault::Stream(MESSAGE_ERROR));
            }
            if let Err(refusal) = judge_request(context, &parts, !is_end, head.scheme) {
                return Ok(Received::Refused(refusal));
            }
            judge::to_origin_form(&mut parts);
            Ok(Received::Request(Box::new(parts)))
        });
    std::mem::swap(&mut buffers.section, &mut section);
    received
}

/// The checks that HTTP/2 has too.
fn judge_request(
    context: &Context,
    parts: &Parts,
    has_body: bool,
    named: Option<&str>,
) -> Result<(), Refusal> {
    let client = &context.client;
    // A proxy relays clients of both.
    let scheme = (!client.is_proxied()).then(|| client.scheme());
    judge::judge(parts, has_body, scheme, &context.worker.edge.clients)?;
    // A request without an authority has no absolute form, in which the scheme would be.
    let is_right = match (named, scheme) {
        (Some(named), Some(scheme)) => named == scheme,
        _ => true,
    };
    match is_right {
        true => Ok(()),
        false => Err(Refusal::bad(
            "the request's scheme is not that of the connection\n",
        )),
    }
}

/// The answer, where a request without a body is a hit: the frames before the body, and the body.
fn answer_hit(context: &Context, buffers: &mut Buffers, head: &Head<'_>) -> Option<(Bytes, Bytes)> {
    let (host, path) = (head.authority?, head.path?);
    if head.method != b"GET"
        || head.scheme != Some(context.client.scheme())
        || host.contains('@')
        || !path.starts_with('/')
        || !key::is_target(&Method::GET, path)
    {
        return None;
    }
    let mut has_directives = false;
    let mut fields = [("", b"".as_slice()); HIT_FIELDS_MAX];
    let mut count = 0;
    for (name, value) in head.fields() {
        match FieldKind::of(name) {
            FieldKind::Plain => {}
            FieldKind::Host if value.eq_ignore_ascii_case(host.as_bytes()) => {}
            FieldKind::Directives => has_directives = true,
            _ => return None,
        }
        let is_edge = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        if is_edge(value.first()) || is_edge(value.last()) {
            return None;
        }
        *fields.get_mut(count)? = (name, value);
        count += 1;
    }
    let request = HitRequest {
        host,
        path,
        version: Version::HTTP_3,
        fields: fields[..count].iter().copied(),
        has_directives,
    };
    let hit = try_hit(&context.worker, &context.client, request, &mut buffers.url)?;
    let head = write_hit(context, buffers, &hit);
    Some((head, hit.body))
}

/// The frames before the body of a hit. All fields but those that change with time are written once
/// for each stored response.
fn write_hit(context: &Context, buffers: &mut Buffers, hit: &Hit) -> Bytes {
    let edge = &context.worker.edge;
    let lasting = hit.http3_fields().get_or_init(|| {
        let mut fields = Vec::with_capacity(512);
        encode::begin(&mut fields, hit.status());
        encode::write_fields(&mut fields, &hit.lasting_fields(&edge.via));
        fields.into()
    });
    let Buffers { fields, value, .. } = buffers;
    fields.clear();
    if let Some(value) = hit.transport_security() {
        encode::write_field(fields, STRICT_TRANSPORT_SECURITY.as_str(), value);
    }
    value.clear();
    structured::write_integer(hit.age.try_into().unwrap_or(i64::MAX), value);
    encode::write_field(fields, "age", value);
    value.clear();
    hit.outcome.write(&edge.name, value);
    encode::write_field(fields, "cache-status", value);

    let section = lasting.len() + fields.len();
    value.clear();
    frames::write_head(value, frames::HEADERS, section as u64);
    let begin = value.len();
    if !hit.body.is_empty() {
        frames::write_head(value, frames::DATA, hit.body.len() as u64);
    }
    let (value, fields) = (std::mem::take(value), std::mem::take(fields));
    let (first, last) = value.split_at(begin);
    let head = buffers.head([first, lasting, &fields, last]);
    (buffers.value, buffers.fields) = (value, fields);
    head
}

/// The frame with the head of a response.
fn write_response(context: &Context, status: StatusCode, fields: &HeaderMap) -> Vec<u8> {
    let mut buffers = context.buffers.lock();
    let section = &mut buffers.fields;
    section.clear();
    encode::begin(section, status);
    encode::write_fields(section, fields);
    let mut head = Vec::with_capacity(section.len() + 24);
    frames::write_head(&mut head, frames::HEADERS, section.len() as u64);
    head.extend_from_slice(section);
    head
}

/// Answers a request by the steps that all protocols share.
async fn answer(
    context: Arc<Context>,
    mut sender: Sender,
    mut reader: Reader,
    parts: Parts,
    is_end: bool,
) {
    let length = stated_length(&parts.headers);
    let expects_continue = expects_continue(&parts.headers);
    let (mut first, mut has_body) = (None, !is_end);
    let is_upload = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
    let is_empty = length == Some(0) || length.is_none() && !is_upload && !expects_continue;
    if has_body && is_empty {
        // Most of these have no body, and their stream may end with a later packet.
        match find_body(&context, &mut reader).await {
            Ok(found) => (first, has_body) = (found.0, found.1),
            Err(fault) => return fail(&context, sender, reader, fault).await,
        }
    }
    if first.is_some() && length == Some(0) {
        return fail(&context, sender, reader, Fault::Stream(MESSAGE_ERROR)).await;
    }
    let (body, fault) = match has_body {
        false => (None, None),
        true => {
            let upload = Upload::new(&context, reader, first, length);
            let fault = upload.fault();
            (Some(RequestBody::of_http3(upload)), Some(fault))
        }
    };

    if expects_continue && has_body {
        let mut head = [write_response(&context, StatusCode::CONTINUE, &HeaderMap::new()).into()];
        if sender.write(&mut head).await.is_err() {
            return context.spend_or_close(Kind::Reset);
        }
    }
    let is_head = parts.method == Method::HEAD;
    let request = Request::from_parts(parts, body);
    let Some(response) = respond(&context, &mut sender, request).await else {
        return context.spend_or_close(Kind::Reset);
    };
    if let Some(code) = fault.and_then(|fault| fault.get()) {
        return sender.reset(code);
    }
    send(&context, sender, response, is_head).await;
}

/// Waits until the body of a request begins, or it is known that there is none. Gives the body's
/// first bytes, and whether there may be a body.
async fn find_body(context: &Context, reader: &mut Reader) -> Result<(Option<Bytes>, bool), Fault> {
    let most = context.worker.edge.clients.head_timeout;
    let found = async {
        loop {
            match poll_fn(|cx| reader.poll_next(cx, context)).await? {
                Input::End => return Ok((None, false)),
                Input::Data(data) => return Ok((Some(data), true)),
                // Trailers without a body, behind which nothing may come.
                Input::Section(section) => drop(read_trailers(context, &section)?),
            }
        }
    };
    match tokio::time::timeout(most, found).await {
        Ok(found) => found.map_err(|fault| match fault {
            // The head was good: what is too large are the trailers.
            Fault::TooLarge => Fault::Stream(MESSAGE_ERROR),
            fault => fault,
        }),
        Err(_) => Err(Fault::Stream(REQUEST_INCOMPLETE)),
    }
}

/// Waits for the response to a request, and writes the interim ones that come before it. `None` when
/// the client does not want it any more.
async fn respond(
    context: &Arc<Context>,
    sender: &mut Sender,
    request: Request<Option<RequestBody>>,
) -> Option<Response<ClientBody>> {
    enum Next {
        Response(Response<ClientBody>),
        Interim(interim::Interim),
        Stopped,
    }

    let mut stopped = pin!(sender.stopped());
    let (interim, receiver) = interim::channel(&Arc::default());
    let (worker, client) = (context.worker.clone(), context.client.clone());
    let mut response = pin!(handler::serve(
        worker,
        client,
        Some(interim),
        request,
        || ()
    ));
    loop {
        let next = poll_fn(|cx| {
            if stopped.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Next::Stopped);
            }
            if let Poll::Ready(response) = response.as_mut().poll(cx) {
                return Poll::Ready(Next::Response(response));
            }
            receiver.poll_next(cx).map(Next::Interim)
        });
        match next.await {
            Next::Response(response) => return Some(response),
            Next::Stopped => return None,
            Next::Interim((status, fields)) => {
                let head = write_response(context, status, &fields);
                sender.write(&mut [head.into()]).await.ok()?;
            }
        }
    }
}

/// Sends a response.
async fn send(
    context: &Arc<Context>,
    mut sender: Sender,
    mut response: Response<ClientBody>,
    is_head: bool,
) {
    let is_bodyless = to_multiplexed(&mut response, is_head);
    let (parts, mut body) = response.into_parts();
    let length = match is_bodyless {
        true => Some(0),
        false => body.size_hint().exact(),
    };
    let mut head = write_response(context, parts.status, &parts.headers);
    if let Some(length @ 1..) = length {
        frames::write_head(&mut head, frames::DATA, length);
    }
    let mut head = Bytes::from(head);
    let mut left = length;
    let mut stopped = pin!(sender.stopped());
    while left != Some(0) {
        let next = poll_fn(|cx| {
            if stopped.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Next::Stopped);
            }
            // The head does not wait for the body, but goes with it if it is there.
            let is_due = !head.is_empty();
            if !is_due && !context.may_take(sender.is_urgent()) {
                return Poll::Pending;
            }
            match Pin::new(&mut body).poll_frame(cx) {
                Poll::Pending if is_due => Poll::Ready(Next::Nothing),
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    Poll::Ready(Next::Piece(frame.into_data().unwrap_or_default()))
                }
                Poll::Ready(Some(Err(_))) => Poll::Ready(Next::Cut),
                Poll::Ready(None) => Poll::Ready(Next::End),
            }
        });
        let (before, piece) = match next.await {
            Next::Nothing => (Bytes::new(), Bytes::new()),
            Next::Piece(piece) => match &mut left {
                // No response has more than its length.
                Some(left) => {
                    let most = (*left).min(piece.len() as u64);
                    *left -= most;
                    (Bytes::new(), piece.slice(..most as usize))
                }
                None if piece.is_empty() => (Bytes::new(), piece),
                None => {
                    let mut before = Vec::with_capacity(8);
                    frames::write_head(&mut before, frames::DATA, piece.len() as u64);
                    (before.into(), piece)
                }
            },
            Next::End if left.is_none() => break,
            // It is shorter than its length, or was cut: the stream is reset when it is dropped.
            Next::End | Next::Cut => return,
            Next::Stopped => return context.spend_or_close(Kind::Reset),
        };
        let mut pieces = [std::mem::take(&mut head), before, piece];
        if sender.write(&mut pieces).await.is_err() {
            return context.spend_or_close(Kind::Reset);
        }
    }
    if !head.is_empty() && sender.write(&mut [head]).await.is_err() {
        return context.spend_or_close(Kind::Reset);
    }
    // The response ends here for the log.
    drop(body);
    sender.finish().await;
}

/// What comes next of a response.
enum Next {
    Piece(Bytes),
    /// Not yet.
    Nothing,
    End,
    Cut,
    /// The client wants no more.
    Stopped,
}

/// Sends the answer to a malformed request.
async fn refuse(context: &Arc<Context>, mut sender: Sender, mut reader: Reader, refusal: Refusal) {
    // It earns its client nothing.
    sender.is_useful = false;
    if let Err(why) = context.spend(Kind::Refused, 1) {
        return context.close(why);
    }
    reader.stop(NO_ERROR);
    let Refusal {
        status,
        error,
        words,
    } = refusal;
    let response = handler::refuse(&context.worker, &context.client, status, error, words);
    send(context, sender, response, false).await;
}

/// Ends a request that cannot be answered.
async fn fail(context: &Arc<Context>, sender: Sender, mut reader: Reader, fault: Fault) {
    match fault {
        Fault::Connection(error) => context.close(error),
        Fault::Stream(code) => {
            context.spend_or_close(Kind::Refused);
            reader.stop(code);
            sender.reset(code);
        }
        Fault::TooLarge => {
            let refusal = judge::too_large(&context.worker.edge.clients);
            refuse(context, sender, reader, refusal).await;
        }
        Fault::Left => {
            context.spend_or_close(Kind::Reset);
            sender.reset(super::closed::REQUEST_CANCELLED);
        }
    }
}
