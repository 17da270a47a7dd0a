//! The head of a request that the edge reads itself: without a body, in a form that most clients
//! use.
//!
//! Any other head is left to [`judge`](super::judge) and the HTTP library. Both must agree on every
//! head that is read here; a property test compares them. Follows RFC 9112 sections 2.2 and 3.

use std::mem::MaybeUninit;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use nearcast_fleet::config::ClientLimits;
use nearcast_http_rules::fields;

use crate::request::hit::HitRequest;
use crate::request_body::RequestBody;

/// Fields of a head that is read here; the HTTP library reads those with more.
pub(super) const FIELDS_MAX: usize = 128;

/// A request's head, in the bytes that were read.
pub(super) struct Head<'a> {
    method: &'a str,
    target: &'a str,
    fields: &'a [httparse::Header<'a>],
    /// Bytes of the head.
    pub(super) length: usize,
    /// The only `Host`.
    host: Option<&'a str>,
    /// The client wants no other request on this connection.
    pub(super) is_last: bool,
    /// It has a condition, a range, or another field that changes which response answers it.
    is_special: bool,
    /// It has directives on the use of stored responses.
    has_directives: bool,
}

pub(super) enum Parsed<'a> {
    Whole(Head<'a>),
    Incomplete,
    /// Malformed, with a body, or of a rare form.
    Other,
}

/// Whether a line ends with LF alone, which the parser accepts; it rejects a bare CR (RFC 9112 section
/// 2.2). Without a branch, so that the compiler looks at many bytes at once.
fn has_bare_lf(head: &[u8]) -> bool {
    let pairs = head.iter().zip(head.get(1..).unwrap_or_default());
    let found = pairs.fold(0, |found, (before, byte)| {
        found | (u8::from(*byte == b'\n') & u8::from(*before != b'\r'))
    });
    found != 0 || head.first() == Some(&b'\n')
}

/// For fuzz targets: the length of the head that [`Head::parse`] accepts, and whether it makes a
/// request.
pub fn fuzz_head(input: &[u8], limits: &ClientLimits) -> Option<(usize, bool)> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    match Head::parse(input, &mut fields, limits) {
        Parsed::Whole(head) => Some((head.length, head.to_request().is_some())),
        Parsed::Incomplete | Parsed::Other => None,
    }
}

impl<'a> Head<'a> {
    pub(super) fn parse(
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
        let is_too_large =
            length > limits.head_bytes_max || request.headers.len() > limits.fields_max;
        if !target.starts_with('/') || is_too_large || has_bare_lf(&input[..length]) {
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
        match head.read_fields() {
            Some(()) => Parsed::Whole(head),
            None => Parsed::Other,
        }
    }

    /// Notes what the fields mean for the request; `None` where it is not to be read here.
    fn read_fields(&mut self) -> Option<()> {
        let mut hosts = 0;
        for field in self.fields {
            match FieldKind::of(field.name) {
                FieldKind::Plain => {}
                FieldKind::Host => {
                    hosts += 1;
                    self.host = std::str::from_utf8(field.value).ok().filter(|_| hosts == 1);
                }
                FieldKind::Framing => return None,
                FieldKind::Special => self.is_special = true,
                FieldKind::Directives => self.has_directives = true,
                FieldKind::Connection => {
                    for member in fields::members(field.value) {
                        if member.eq_ignore_ascii_case(b"close") {
                            self.is_last = true;
                        } else if !member.eq_ignore_ascii_case(b"keep-alive") {
                            self.is_special = true;
                        }
                    }
                }
            }
        }
        Some(())
    }

    /// The request for the fast path, where that may answer it.
    pub(super) fn to_hit_request(
        &self,
    ) -> Option<HitRequest<'_, impl Iterator<Item = (&str, &[u8])> + Clone>> {
        let host = self
            .host
            .filter(|_| self.method == "GET" && !self.is_special)?;
        Some(HitRequest {
            host,
            path: self.target,
            version: Version::HTTP_11,
            fields: self.fields.iter().map(|field| (field.name, field.value)),
            has_directives: self.has_directives,
        })
    }

    /// The whole request; `None` where its target or a field is malformed after all.
    pub(super) fn to_request(&self) -> Option<Request<Option<RequestBody>>> {
        // A URI is parsed without its fragment, which a target never has.
        if self.target.contains('#') {
            return None;
        }
        let mut request = Request::new(None);
        *request.method_mut() = Method::from_bytes(self.method.as_bytes()).ok()?;
        *request.uri_mut() = Uri::try_from(self.target).ok()?;
        let mut fields = HeaderMap::with_capacity(self.fields.len());
        for field in self.fields {
            // Copies: a value that shares the input would keep all of it in memory.
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
pub(in crate::serve) enum FieldKind {
    Plain,
    Host,
    Connection,
    /// A body follows, or another protocol.
    Framing,
    /// A stored response may not answer the request as it is.
    Special,
    Directives,
}

impl FieldKind {
    pub(in crate::serve) fn of(name: &str) -> Self {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;
    use http::Response;
    use http_body::Body;
    use http_body_util::Empty;
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use nearcast_http_rules::testing;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::serve::http1::judge::{BodyEnd, Judged, judge};
    use crate::serve::socket::ends_head;

    fn parsed<T>(input: &[u8], look: impl FnOnce(Parsed<'_>) -> T) -> T {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        look(Head::parse(input, &mut fields, &ClientLimits::default()))
    }

    #[test]
    fn a_bare_lf_is_found_wherever_it_is() {
        let head =
            b"GET / HTTP/1.1\r\nHost: a.test\r\nAccept: */*\r\nUser-Agent: something\r\n\r\n";
        assert!(!has_bare_lf(head) && !has_bare_lf(b"") && !has_bare_lf(b"a"));
        for at in (0..head.len()).filter(|at| *at == 0 || head[at - 1] != b'\r') {
            let mut head = head.to_vec();
            head[at] = b'\n';
            assert!(has_bare_lf(&head), "{at}");
        }
    }

    #[test]
    fn requests_go_the_way_that_can_answer_them() {
        let table = [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "hit"),
            (
                "GET / HTTP/1.1\r\nHOST: a\r\nAccept: b\r\nconnection: Keep-Alive\r\n\r\n",
                "hit",
            ),
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "hit"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                "hit last",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nCache-Control: no-cache\r\n\r\n",
                "hit directives",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nPragma: no-cache\r\nConnection: x, close\r\n\r\n",
                "full last",
            ),
            ("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "full"),
            ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", "full"),
            ("GET / HTTP/1.1\r\n\r\n", "full"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "full"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1\r\n\r\n",
                "full",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nIf-Range: \"x\"\r\n\r\n",
                "full",
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nIf-Match: *\r\n\r\n", "full"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nIF-NONE-MATCH: *\r\n\r\n",
                "full",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nIf-Modified-Since: x\r\n\r\n",
                "full",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nIf-Unmodified-Since: x\r\n\r\n",
                "full",
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nCDN-Loop: b\r\n\r\n", "full"),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nNearcast-Peer: k\r\n\r\n",
                "full",
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nConnection: accept\r\nAccept: b\r\n\r\n",
                "full",
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
                    let mut way = if head.to_hit_request().is_some() {
                        "hit"
                    } else {
                        "full"
                    }
                    .to_owned();
                    way += if head.is_last { " last" } else { "" };
                    way += if head.has_directives && head.to_hit_request().is_some() {
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

    /// What hyper makes of the first request in some bytes, and whether it has no body.
    fn as_hyper_reads(input: &[u8]) -> Option<((Method, String, HeaderMap), bool)> {
        let (sender, receiver) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let (client, server) = tokio::io::duplex(input.len() + 4096);
            let service = service_fn(|request: Request<Incoming>| {
                let sender = sender.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let is_empty = body.is_end_stream();
                    let _ =
                        sender.send((head.method, head.uri.to_string(), head.headers, is_empty));
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
            // The bytes after the first request may be malformed.
            let _ = tokio::join!(serve, feed);
        });
        let (method, target, fields, is_empty) = receiver.try_recv().ok()?;
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
            // The library never refuses a head that passes here, and finds the same end of its body.
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
