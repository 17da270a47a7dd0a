//! Requests of HTTP/2 and their answers: the fast path, the steps that all protocols share, and the
//! fields that a response has in HTTP/2.
//!
//! Follows RFC 9113 sections 8.1 and 8.2.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{AGE, CONNECTION, CONTENT_LENGTH, DATE, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::Service;
use nearcast_fleet::clock::now_unix_s;
use nearcast_http_rules::dates;
use nearcast_http_rules::https::{ALT_SVC, STRICT_TRANSPORT_SECURITY};
use nearcast_http_rules::status::CACHE_STATUS;
use parking_lot::Mutex;

use super::body::PacedBody;
use super::frames::BAD_REQUESTS_MAX;
use super::judge::{join_cookies, judge, to_origin_form};
use super::priority::Priority;
use super::streams::{NewStreams, Pace};
use crate::client_body::ClientBody;
use crate::edge::Worker;
use crate::request::check::ClientConnection;
use crate::request::handler;
use crate::request::hit::{Hit, HitRequest, try_hit};
use crate::request_body::RequestBody;
use crate::serve::http1::head::FieldKind;
use crate::serve::http1::judge::Refusal;

/// Fields of a request that the fast path accepts.
const HIT_FIELDS_MAX: usize = 32;
/// Fields of a connection that have no name in the library.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Answers the requests of one connection.
pub(super) struct Requests {
    worker: Arc<Worker>,
    client: ClientConnection,
    pace: Arc<Pace>,
    streams: NewStreams,
    /// Buffer for the cache key of a hit.
    url: Mutex<String>,
}

impl Requests {
    pub(super) fn new(
        worker: Arc<Worker>,
        client: ClientConnection,
        pace: Arc<Pace>,
        streams: NewStreams,
    ) -> Self {
        Self {
            worker,
            client,
            pace,
            streams,
            url: Mutex::default(),
        }
    }

    /// The answer to a malformed request, made in its stream's turn. There is none when the
    /// connection will be closed for so many of them.
    fn refuse(&self, refusal: Refusal) -> Answering {
        let (worker, client) = (self.worker.clone(), self.client.clone());
        let pace = self.pace.clone();
        if pace.note_bad() > BAD_REQUESTS_MAX {
            return Answering::Ready(None);
        }
        Answering::Working(Box::pin(async move {
            let Refusal {
                status,
                error,
                words,
            } = refusal;
            let response = handler::refuse(&worker, &client, status, error, words);
            to_http2(response, false, &pace).map(PacedBody::of_refusal)
        }))
    }

    /// The answer, where the request is a hit.
    fn try_hit(&self, request: &Parts) -> Option<Response<PacedBody>> {
        if request.method != Method::GET {
            return None;
        }
        let path = request.uri.path_and_query()?.as_str();
        let host = match request.uri.authority() {
            Some(authority) => authority.as_str(),
            None => request.headers.get(HOST)?.to_str().ok()?,
        };
        let mut has_directives = false;
        let mut fields = [("", b"".as_slice()); HIT_FIELDS_MAX];
        if request.headers.len() > fields.len() {
            return None;
        }
        for (place, (name, value)) in fields.iter_mut().zip(&request.headers) {
            match FieldKind::of(name.as_str()) {
                FieldKind::Plain | FieldKind::Host => {}
                FieldKind::Directives => has_directives = true,
                FieldKind::Framing | FieldKind::Special | FieldKind::Connection => return None,
            }
            *place = (name.as_str(), value.as_bytes());
        }
        let request = HitRequest {
            host,
            path,
            version: Version::HTTP_2,
            fields: fields[..request.headers.len()].iter().copied(),
            has_directives,
        };
        let hit = try_hit(&self.worker, &self.client, request, &mut self.url.lock())?;
        Some(self.write_hit(hit))
    }

    /// All fields but those that change with time are made once for each stored response.
    fn write_hit(&self, hit: Hit) -> Response<PacedBody> {
        let edge = &self.worker.edge;
        let lasting = hit.http2_fields().get_or_init(|| {
            let mut fields = hit.lasting_fields(&edge.via);
            fields.reserve(4);
            Box::new(fields)
        });
        let mut fields = (**lasting).clone();
        if let Some(Ok(value)) = hit.transport_security().map(HeaderValue::from_bytes) {
            fields.insert(STRICT_TRANSPORT_SECURITY, value);
        }
        if let Some(value) = self.client.alternative(edge) {
            fields.insert(ALT_SVC, value.clone());
        }
        fields.insert(AGE, HeaderValue::from(hit.age));
        fields.append(
            CACHE_STATUS,
            hit.outcome.cache_status_naming(&edge.name, None),
        );
        let status = hit.status();
        // The body alone: a slow client must not keep the stored response.
        let body = ClientBody::whole(hit.body);
        let mut response = Response::new(PacedBody::new(body, self.pace.clone()));
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        response
    }
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response<PacedBody>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        self.streams.expect(Priority::of(request.headers()));
        let (mut head, body) = request.into_parts();
        let body = (!body.is_end_stream()).then(|| RequestBody::of_stream(body));
        let limits = &self.worker.edge.clients;
        let scheme = (!self.client.is_proxied()).then(|| self.client.scheme());
        if let Err(refusal) = judge(&head, body.is_some(), scheme, limits) {
            return self.refuse(refusal);
        }
        join_cookies(&mut head.headers);
        if body.is_none()
            && let Some(response) = self.try_hit(&head)
        {
            return Answering::Ready(Some(response));
        }

        to_origin_form(&mut head);
        let is_head = head.method == Method::HEAD;
        let request = Request::from_parts(head, body);
        let (worker, client) = (self.worker.clone(), self.client.clone());
        let pace = self.pace.clone();
        Answering::Working(Box::pin(async move {
            let response = handler::serve(worker, client, None, request, || ()).await;
            to_http2(response, is_head, &pace)
        }))
    }
}

/// The answer to one request.
#[allow(
    clippy::large_enum_variant,
    reason = "a hit is answered without an allocation"
)]
pub(super) enum Answering {
    Ready(Option<Response<PacedBody>>),
    Working(Pin<Box<dyn Future<Output = Response<PacedBody>> + Send>>),
}

impl Future for Answering {
    type Output = Result<Response<PacedBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            // Not polled again.
            Self::Ready(response) => response
                .take()
                .map_or(Poll::Pending, |response| Poll::Ready(Ok(response))),
            Self::Working(response) => response.as_mut().poll(cx).map(Ok),
        }
    }
}

fn to_http2(
    mut response: Response<ClientBody>,
    is_head: bool,
    pace: &Arc<Pace>,
) -> Response<PacedBody> {
    let is_bodyless = to_multiplexed(&mut response, is_head);
    let pace = pace.clone();
    response.map(|body| match is_bodyless {
        true => PacedBody::new(ClientBody::empty(), pace),
        false => PacedBody::new(body, pace),
    })
}

/// Gives a response the fields that it has in HTTP/2 and HTTP/3: none of a connection, and the length
/// of its body where that is known. Whether it is sent without a body.
pub(in crate::serve) fn to_multiplexed(response: &mut Response<ClientBody>, is_head: bool) -> bool {
    let status = response.status();
    let length = response.body().size_hint().exact();
    let fields = response.headers_mut();
    for name in [
        &CONNECTION,
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &TE,
        &TRANSFER_ENCODING,
        &UPGRADE,
    ] {
        fields.remove(name);
    }
    if !fields.contains_key(DATE) {
        fields.insert(DATE, dates::format_date(now_unix_s()));
    }
    if status == StatusCode::NO_CONTENT {
        fields.remove(CONTENT_LENGTH);
    } else if !is_head && status != StatusCode::NOT_MODIFIED {
        // Content-Length may state what a GET would have got (RFC 9110 section 8.6).
        match length {
            Some(length) => drop(fields.insert(CONTENT_LENGTH, HeaderValue::from(length))),
            None => drop(fields.remove(CONTENT_LENGTH)),
        }
    }
    is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}
