//! Request heads as they are received: their limits, where their bodies end, and which heads are
//! refused before any other code reads them.
//!
//! Both readers of requests, the edge's own and the HTTP library, rely on this one. So every refusal
//! is an answer of the edge with its `Proxy-Status`, and the library reads well-formed heads only.
//! Follows RFC 9112 sections 2.2 (line ends), 3 (request line), 5.1 and 6 (framing), RFC 9110
//! sections 7.8 and 15.5, RFC 6585 section 5 and RFC 9209 section 2.3.

use std::borrow::Cow;

use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use nearcast_fleet::config::ClientLimits;
use nearcast_http_rules::fields;
use nearcast_http_rules::key::{self, AUTHORITY_BYTES_MAX, PATH_BYTES_MAX};
use nearcast_http_rules::status::ProxyError;
use nearcast_http_rules::transfer_coding::TransferCoding;

use crate::request::upgrade::names_websocket;
use crate::request_body::RequestBody;

/// Bytes of a request target: an absolute one with the longest authority and path.
const TARGET_BYTES_MAX: usize = "https://".len() + AUTHORITY_BYTES_MAX + PATH_BYTES_MAX;
/// Bytes of a field's name: the most that the HTTP library can read.
const NAME_BYTES_MAX: usize = (64 << 10) - 1;

/// Where the body behind a head ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyEnd {
    /// After this many bytes; 0 is no body.
    Length(u64),
    /// Only its chunks show it.
    Chunked,
}

/// Why a request is refused, and what its client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Status of the answer.
    pub status: StatusCode,
    /// Reason for programs.
    pub error: ProxyError,
    /// Reason for people: one line of ASCII.
    pub words: Cow<'static, str>,
}

impl Refusal {
    pub(in crate::serve) fn new(status: StatusCode, words: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            error: ProxyError::HttpRequestError,
            words: words.into(),
        }
    }

    pub(in crate::serve) fn bad(words: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, words)
    }

    /// The head began and did not end in time.
    pub fn too_slow() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "the request's head did not come in time\n",
        )
    }
}

/// The verdict on the first bytes of a connection, or on those after another request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// The head is not complete.
    Incomplete,
    /// It may be read.
    Whole {
        /// Bytes of the head, with the empty line at its end.
        length: usize,
        /// Where the body behind it ends.
        body: BodyEnd,
    },
    /// It gets this answer, and the connection ends.
    Refused(Refusal),
}

/// Judges a head.
pub fn judge(input: &[u8], limits: &ClientLimits) -> Judged {
    let mut fields = vec![httparse::EMPTY_HEADER; limits.fields_max];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(input) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() < limits.head_bytes_max => {
            return Judged::Incomplete;
        }
        Ok(httparse::Status::Partial) => return Judged::Refused(too_large(input, limits)),
        Err(httparse::Error::TooManyHeaders) => return Judged::Refused(too_large(b"\n", limits)),
        Err(_) if is_of_another_version(input) => {
            let words = "this version of HTTP is not served here; write HTTP/1.1\n";
            return Judged::Refused(Refusal::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, words));
        }
        Err(
            httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine,
        ) => {
            return Judged::Refused(Refusal::bad("a field of the request is malformed\n"));
        }
        Err(_) => return Judged::Refused(Refusal::bad("the request line is malformed\n")),
    };
    if length > limits.head_bytes_max {
        return Judged::Refused(too_large(&input[..limits.head_bytes_max], limits));
    }
    match check(&input[..length], &request) {
        Ok(body) => Judged::Whole { length, body },
        Err(refusal) => Judged::Refused(refusal),
    }
}

/// The request in a head that [`judge`] found complete and without a body, if it asks for a
/// WebSocket: a GET of HTTP/1.1 that keeps its connection. `websocket` is the only protocol that a
/// connection is upgraded to: any other, `h2c` above all, would carry requests past all checks. A
/// request for others is answered in HTTP/1.1 (RFC 9110 section 7.8 permits a server to ignore
/// `Upgrade`).
pub(in crate::serve) fn websocket_request(
    head: &[u8],
    limits: &ClientLimits,
) -> Option<Request<Option<RequestBody>>> {
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
    let has_option = |token: &[u8]| {
        fields::list(&fields, CONNECTION).any(|member| member.eq_ignore_ascii_case(token))
    };
    if !has_option(b"upgrade") || has_option(b"close") || !names_websocket(&fields) {
        return None;
    }
    let mut found = Request::new(None);
    *found.uri_mut() = Uri::try_from(request.path?).ok()?;
    *found.method_mut() = Method::GET;
    *found.headers_mut() = fields;
    Some(found)
}

/// The refusal of a head that exceeds `limits`, of which this is the start: another one where its
/// target is too long.
fn too_large(start: &[u8], limits: &ClientLimits) -> Refusal {
    let is_in_first_line =
        !start[count_leading_line_ends(start)..].contains(&b'\n') && start.len() > 1;
    if is_in_first_line {
        return Refusal::new(
            StatusCode::URI_TOO_LONG,
            "the request's target is too long\n",
        );
    }
    let ClientLimits {
        head_bytes_max: bytes,
        fields_max: fields,
        ..
    } = limits;
    let words = format!(
        "the request's head has more than {bytes} bytes or {fields} fields, which are the limits here\n"
    );
    Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, words)
}

fn count_leading_line_ends(input: &[u8]) -> usize {
    input
        .iter()
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .count()
}

/// Whether the first line ends in a well-formed version of HTTP that is not served.
fn is_of_another_version(input: &[u8]) -> bool {
    let line = input[count_leading_line_ends(input)..]
        .split(|byte| matches!(byte, b'\r' | b'\n'))
        .next()
        .unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let version = words
        .next_back()
        .and_then(|word| word.strip_prefix(b"HTTP/"));
    // A method and a target come before it.
    words.count() == 2
        && matches!(version, Some([major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit() && !matches!((major, minor), (b'1', b'0' | b'1')))
}

/// The rules that the parser does not check.
fn check(head: &[u8], request: &httparse::Request<'_, '_>) -> Result<BodyEnd, Refusal> {
    let (method, target) = (
        request.method.unwrap_or_default(),
        request.path.unwrap_or_default(),
    );
    // The parser accepts a bare LF as a line's end (RFC 9112 section 2.2), and rejects a bare CR.
    if head
        .iter()
        .enumerate()
        .any(|(at, byte)| *byte == b'\n' && (at == 0 || head[at - 1] != b'\r'))
    {
        return Err(Refusal::bad(
            "a line of the request's head ends without CR LF\n",
        ));
    }
    let Ok(method) = Method::from_bytes(method.as_bytes()) else {
        return Err(Refusal::bad("the request's method is malformed\n"));
    };
    if target.len() > TARGET_BYTES_MAX {
        return Err(Refusal::new(
            StatusCode::URI_TOO_LONG,
            "the request's target is too long\n",
        ));
    }
    if !key::is_target(&method, target) || Uri::try_from(target).is_err() {
        let words = "the request's target is malformed: it is a path with a query, or an http or https URL, without a fragment\n";
        return Err(Refusal::bad(words));
    }
    body_end(request)
}

/// Finds where the body ends (RFC 9112 section 6.3).
fn body_end(request: &httparse::Request<'_, '_>) -> Result<BodyEnd, Refusal> {
    let mut length: Option<u64> = None;
    let mut codings = HeaderMap::new();
    for field in request.headers.iter() {
        if field.name.len() > NAME_BYTES_MAX {
            return Err(Refusal::new(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "the name of a field is too long\n",
            ));
        }
        if HeaderName::from_bytes(field.name.as_bytes()).is_err() {
            return Err(Refusal::bad("a field of the request is malformed\n"));
        }
        if field.name.eq_ignore_ascii_case("transfer-encoding") {
            let Ok(value) = HeaderValue::from_bytes(field.value) else {
                return Err(Refusal::bad("a field of the request is malformed\n"));
            };
            codings.append(TRANSFER_ENCODING, value);
        } else if field.name.eq_ignore_ascii_case("content-length") {
            let is_number = !field.value.is_empty() && field.value.iter().all(u8::is_ascii_digit);
            let stated = std::str::from_utf8(field.value)
                .ok()
                .filter(|_| is_number)
                .map(|value| value.parse::<u64>().unwrap_or(u64::MAX));
            match (stated, length) {
                (None, _) => return Err(Refusal::bad("Content-Length is no number\n")),
                (Some(stated), Some(before)) if stated != before => {
                    return Err(Refusal::bad("more than one Content-Length\n"));
                }
                (stated, _) => length = stated,
            }
        }
    }
    match (TransferCoding::of(&codings), length) {
        (TransferCoding::None, Some(length)) if length > u64::MAX - 2 => {
            // The HTTP library counts to a little less than 2^64.
            Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the request's body is too large\n",
            ))
        }
        (TransferCoding::None, length) => Ok(BodyEnd::Length(length.unwrap_or(0))),
        (_, Some(_)) => Err(Refusal::bad("Content-Length beside Transfer-Encoding\n")),
        (_, None) if request.version != Some(1) => {
            Err(Refusal::bad("HTTP/1.0 has no Transfer-Encoding\n"))
        }
        (TransferCoding::Chunked, None) => Ok(BodyEnd::Chunked),
        (TransferCoding::Unknown, None) => Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "the only transfer coding that is read here is chunked\n",
        )),
        (TransferCoding::Broken, None) => Err(Refusal::bad(
            "Transfer-Encoding does not end in chunked, once\n",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(head_bytes_max: usize) -> ClientLimits {
        ClientLimits {
            head_bytes_max,
            fields_max: 8,
            ..ClientLimits::default()
        }
    }

    /// The status of a refusal; 100 for an incomplete head, 0 for one that passes.
    fn status(input: &[u8]) -> u16 {
        match judge(input, &limits(1024)) {
            Judged::Incomplete => 100,
            Judged::Whole { .. } => 0,
            Judged::Refused(refusal) => {
                assert!(
                    refusal.words.ends_with('\n') && refusal.words.is_ascii(),
                    "{refusal:?}"
                );
                refusal.status.as_u16()
            }
        }
    }

    #[test]
    fn what_is_broken_is_refused_with_the_standards_status() {
        let host = "Host: a\r\n";
        let long = "x".repeat(2000);
        let table: Vec<(String, u16)> = vec![
            (format!("GET / HTTP/1.1\r\n{host}\r\n"), 0),
            (format!("\r\n\r\nGET / HTTP/1.0\r\n{host}\r\n"), 0),
            (format!("GET / HTTP/1.1\r\n{host}"), 100),
            ("GE".into(), 100),
            // The request line.
            (format!("GET a.test HTTP/1.1\r\n{host}\r\n"), 400),
            (format!("GET x HTTP/1.1\r\n{host}\r\n"), 400),
            (format!("GET /a#b HTTP/1.1\r\n{host}\r\n"), 400),
            (format!("GET * HTTP/1.1\r\n{host}\r\n"), 400),
            (format!("GET ftp://a/x HTTP/1.1\r\n{host}\r\n"), 400),
            (format!("GET http://u@a/x HTTP/1.1\r\n{host}\r\n"), 400),
            (format!("GET  / HTTP/1.1\r\n{host}\r\n"), 400),
            (format!("GET / HTTP/1.1 \r\n{host}\r\n"), 400),
            (format!("G(T / HTTP/1.1\r\n{host}\r\n"), 400),
            ("GET /\r\n\r\n".into(), 400),
            ("GET / http/1.1\r\n\r\n".into(), 400),
            ("\u{16}\u{3}\u{1}\u{2}\0\u{1}".into(), 400),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
            (format!("GET / HTTP/1.2\r\n{host}\r\n"), 505),
            (format!("GET / HTTP/3.0\r\n{host}\r\n"), 505),
            // Fields.
            (format!("GET / HTTP/1.1\n{host}\r\n"), 400),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n".into(), 400),
            (format!("GET / HTTP/1.1\r\n{host}\n"), 400),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n".into(), 400),
            (format!("GET / HTTP/1.1\r\n{host}A: b\r\n c\r\n\r\n"), 400),
            (format!("GET / HTTP/1.1\r\n{host}A: b\rc\r\n\r\n"), 400),
            (format!("GET / HTTP/1.1\r\n{host}A: b\0c\r\n\r\n"), 400),
            (format!("GET / HTTP/1.1\r\n{host}: b\r\n\r\n"), 400),
            // Framing.
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length: 3\r\n\r\nabc"),
                0,
            ),
            (
                format!(
                    "POST / HTTP/1.1\r\n{host}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"
                ),
                0,
            ),
            (
                format!(
                    "POST / HTTP/1.1\r\n{host}Content-Length: 3\r\ncontent-length: 4\r\n\r\nabc"
                ),
                400,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length: 3, 3\r\n\r\nabc"),
                400,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length: +3\r\n\r\nabc"),
                400,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length: -3\r\n\r\nabc"),
                400,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Content-Length:\r\n\r\nabc"),
                400,
            ),
            (
                format!(
                    "POST / HTTP/1.1\r\n{host}Content-Length: {}\r\n\r\nabc",
                    "9".repeat(30)
                ),
                413,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: Chunked\r\n\r\n"),
                0,
            ),
            (
                format!(
                    "POST / HTTP/1.1\r\n{host}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
                ),
                400,
            ),
            (
                format!(
                    "POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip\r\nContent-Length: 3\r\n\r\n"
                ),
                400,
            ),
            (
                format!("POST / HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n"),
                400,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip\r\n\r\n"),
                400,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked, gzip\r\n\r\n"),
                400,
            ),
            (
                format!(
                    "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
                ),
                400,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding:\r\n\r\n"),
                400,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked,\r\n\r\n"),
                400,
            ),
            (
                format!(
                    "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n\r\n"
                ),
                400,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: ,chunked\r\n\r\n"),
                0,
            ),
            (
                format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n"),
                501,
            ),
            (
                format!(
                    "POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
                ),
                501,
            ),
            // Size.
            (format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(8)), 0),
            (
                format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(9)),
                431,
            ),
            (format!("GET / HTTP/1.1\r\nA: {long}\r\n\r\n"), 431),
            (format!("GET / HTTP/1.1\r\nA: {long}"), 431),
            (format!("GET / HTTP/1.1\r\n{long}: a"), 431),
            (format!("GET /{long} HTTP/1.1\r\n\r\n"), 414),
            (format!("\r\nGET /{long}"), 414),
        ];
        for (input, expected) in table {
            assert_eq!(
                status(input.as_bytes()),
                expected,
                "{:?}",
                &input[..input.len().min(100)]
            );
        }
        let wide = limits(1 << 20);
        let target = |length: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(length));
        for (length, is_whole) in [(PATH_BYTES_MAX, true), (TARGET_BYTES_MAX, false)] {
            assert_eq!(
                matches!(
                    judge(target(length).as_bytes(), &wide),
                    Judged::Whole { .. }
                ),
                is_whole,
                "{length}"
            );
        }
        let Judged::Refused(refusal) = judge(
            &[b"GET / HTTP/1.1\r\nA: ", long.as_bytes()].concat(),
            &limits(1024),
        ) else {
            panic!("too long")
        };
        assert!(
            refusal.words.contains("1024 bytes") && refusal.words.contains("8 fields"),
            "{refusal:?}"
        );
    }

    #[test]
    fn a_head_and_its_body_end_where_they_end() {
        let table = [
            (
                "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                "GET",
                BodyEnd::Length(0),
            ),
            (
                "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
                "",
                BodyEnd::Length(0),
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length:   7\r\n\r\n",
                "a",
                BodyEnd::Length(7),
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX: content-length: 3\r\n\r\n",
                "0\r\n\r\n",
                BodyEnd::Chunked,
            ),
            (
                "GET / HTTP/1.1\r\nContent-Lengthy: 3\r\nX-Transfer-Encoding: chunked\r\n\r\n",
                "",
                BodyEnd::Length(0),
            ),
        ];
        for (head, rest, body) in table {
            let judged = judge(format!("{head}{rest}").as_bytes(), &limits(1024));
            assert_eq!(
                judged,
                Judged::Whole {
                    length: head.len(),
                    body
                },
                "{head:?}"
            );
        }
    }

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
                websocket_request(head.as_bytes(), &ClientLimits::default()).is_some(),
                expected,
                "{head:?}"
            );
        }
    }
}
