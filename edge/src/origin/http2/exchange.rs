//! One request on an HTTP/2 connection, up to the head of its response.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use h2::RecvStream;
use h2::client::ResponseFuture;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use nearcast_fleet::config::OriginLimits;

use super::super::{OriginError, OriginRequestBody, Target, answered};
use super::body::{self, ResponseBody, Sending};
use super::{Failed, Session};
use crate::interim::InterimSender;

/// The fields that HTTP/2 has no use for: they are of one connection of HTTP/1.1 (RFC 9113 section
/// 8.2.2).
const CONNECTION_FIELDS: [HeaderName; 6] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
];

/// Sends a request, and waits for the head of its response.
pub(in super::super) async fn exchange(
    session: &Session,
    target: &Target,
    request: Request<OriginRequestBody>,
) -> Result<Response<ResponseBody>, Failed> {
    let mut sender = session.sender.clone();
    if poll_fn(|cx| sender.poll_ready(cx)).await.is_err() {
        return Err(Failed {
            unsent: Some(request),
            ..Failed::of(OriginError::Terminated)
        });
    }
    let mut progress = request.body().progress();
    let interims = request.extensions().get::<InterimSender>().cloned();
    let (head, body) = request.into_parts();
    let head = head_of(head, &body).ok_or_else(|| Failed::of(OriginError::Protocol))?;
    let is_head = *head.method() == Method::HEAD;

    let has_ended = body.is_end_stream();
    let (response, stream) = sender
        .send_request(head, has_ended)
        .map_err(|error| Failed::of_stream(&error))?;
    let mut sending = (!has_ended).then(|| Sending::new(body::send(body, stream)));
    let mut waiting = Waiting { response, interims };
    let received = poll_fn(|cx| {
        if let Some(sent) = sending.as_mut().and_then(|sending| sending.poll(cx)) {
            sending = None;
            if let Err(error) = sent {
                return Poll::Ready(Err(Failed::of(error)));
            }
        }
        waiting.poll(cx)
    });
    let received = answered(received, progress.as_mut(), &target.limits)
        .await
        .map_err(|error| {
            // Either the origin is slow, or the connection is dead.
            session.doubt();
            Failed::of(error)
        })?;
    let of_body = progress.and_then(|progress| *progress.borrow());
    let response = received.map_err(|failed| match of_body {
        Some(error) => Failed::of(error),
        None => retire_refused(session, failed),
    })?;
    check(&response, &target.limits).map_err(Failed::of)?;
    let session = session.clone();
    Ok(ResponseBody::of(response, is_head, sending, session))
}

/// An origin that refuses a stream is likely to refuse the next one as well.
fn retire_refused(session: &Session, failed: Failed) -> Failed {
    if failed.error == OriginError::Unprocessed {
        session.retire();
    }
    failed
}

/// A response that is awaited.
struct Waiting {
    response: ResponseFuture,
    interims: Option<InterimSender>,
}

impl Waiting {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<RecvStream>, Failed>> {
        while let Poll::Ready(Some(interim)) = self.response.poll_informational(cx) {
            let interim = interim.map_err(|error| Failed::of_stream(&error))?;
            // HTTP/2 has no such response (RFC 9113 section 8.6).
            if interim.status() == StatusCode::SWITCHING_PROTOCOLS {
                return Poll::Ready(Err(Failed::of(OriginError::Protocol)));
            }
            if let Some(interims) = &self.interims {
                interims.send(interim.status(), interim.headers());
            }
        }
        Pin::new(&mut self.response)
            .poll(cx)
            .map_err(|error| Failed::of_stream(&error))
    }
}

/// The head of a request as HTTP/2 has it: `:authority` from `Host`, and no field of one connection.
/// `None` when `Host` names no authority.
fn head_of(mut head: http::request::Parts, body: &OriginRequestBody) -> Option<Request<()>> {
    let host = head.headers.remove(HOST)?;
    for name in CONNECTION_FIELDS {
        head.headers.remove(name);
    }
    let length = body.size_hint().exact();
    let states_length = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
    if let Some(length) = length.filter(|length| *length > 0 || states_length) {
        head.headers
            .entry(CONTENT_LENGTH)
            .or_insert(HeaderValue::from(length));
    }

    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTPS);
    uri.authority = Some(Authority::try_from(host.as_bytes()).ok()?);
    uri.path_and_query = Some(
        head.uri
            .into_parts()
            .path_and_query
            .unwrap_or(PathAndQuery::from_static("/")),
    );
    let mut request = Request::new(());
    *request.method_mut() = head.method;
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = head.headers;
    Some(request)
}

/// Refuses heads that are larger than the site permits, and values with spaces at their edges (RFC 9113
/// section 8.2.1). Names and pseudo fields were checked when the head was decoded.
fn check(response: &Response<RecvStream>, limits: &OriginLimits) -> Result<(), OriginError> {
    let fields = response.headers();
    // As a head of HTTP/1.1 would have them: `name: value` and the end of the line.
    let bytes: usize = fields
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    if fields.len() > limits.fields_max || bytes as u64 > limits.head_bytes_max.0 {
        return Err(OriginError::HeadTooLarge);
    }
    match has_padded_value(fields) {
        true => Err(OriginError::Protocol),
        false => Ok(()),
    }
}

fn has_padded_value(fields: &HeaderMap) -> bool {
    fields
        .values()
        .any(|value| value.as_bytes().trim_ascii().len() != value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, uri: &str, lines: &[(&'static str, &'static str)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(()).expect("valid")
    }

    #[test]
    fn a_request_has_its_host_as_authority_and_nothing_of_a_connection() {
        let table = [
            (
                request(
                    "GET",
                    "/a?b",
                    &[
                        ("host", "www.test:8443"),
                        ("cookie", "a=b"),
                        ("via", "1.1 x"),
                    ],
                ),
                Some("https://www.test:8443/a?b"),
                2,
            ),
            (
                request(
                    "GET",
                    "/",
                    &[
                        ("host", "[::1]"),
                        ("connection", "close"),
                        ("keep-alive", "a"),
                        ("proxy-connection", "a"),
                        ("transfer-encoding", "chunked"),
                        ("upgrade", "h2c"),
                        ("te", "trailers"),
                    ],
                ),
                Some("https://[::1]/"),
                0,
            ),
            // Zero bytes of a body are stated where a method has one.
            (
                request("POST", "/", &[("host", "a")]),
                Some("https://a/"),
                1,
            ),
            (request("GET", "/", &[]), None, 0),
            (request("GET", "/", &[("host", "a b")]), None, 0),
        ];
        for (request, uri, fields) in table {
            let described = format!("{request:?}");
            let made = head_of(request.into_parts().0, &OriginRequestBody::Empty);
            let made = made.map(|made| (made.uri().to_string(), made.headers().len()));
            let expected = uri.map(|uri| (uri.to_owned(), fields));
            assert_eq!(made, expected, "{described}");
        }
    }

    #[test]
    fn an_asterisk_stays_one() {
        let request = request("OPTIONS", "*", &[("host", "a")]);
        let made = head_of(request.into_parts().0, &OriginRequestBody::Empty).expect("valid");
        let path = made.uri().path_and_query().map(PathAndQuery::as_str);
        assert_eq!(path, Some("*"));
    }
}
