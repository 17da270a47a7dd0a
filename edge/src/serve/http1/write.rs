//! HTTP/1.1 as it is written: status line, fields, framing, and the pieces of a body.
//!
//! The only place that knows how a head is spelt. Follows RFC 9112 sections 4 and 6.3.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Poll, ready};

use http::header::{ACCEPT_RANGES, AGE, CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING, VIA};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Body;
use nearcast_fleet::clock::now_unix_s;
use nearcast_http_rules::forward::Via;
use nearcast_http_rules::https::{ALT_SVC, STRICT_TRANSPORT_SECURITY};
use nearcast_http_rules::{dates, structured};
use tokio::io::AsyncWrite;

use crate::client_body::ClientBody;
use crate::edge::Edge;
use crate::request::check::ClientConnection;
use crate::request::hit::Hit;
use crate::serve::socket::ClientSocket;
use crate::stored::head::Value;
use crate::stored::response::StoredResponse;

/// A body up to this length is copied behind its head: that costs less than a second piece to
/// write.
pub(super) const COPIED_BYTES_MAX: usize = 4096;

/// How the client finds the end of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// It ends with its head.
    None,
    Length(u64),
    Chunked,
}

/// Chooses the framing and sets the fields that state it (RFC 9112 section 6.3).
pub(super) fn frame(
    status: StatusCode,
    fields: &mut HeaderMap,
    body: &ClientBody,
    is_head: bool,
) -> Framing {
    fields.remove(TRANSFER_ENCODING);
    fields.remove(CONNECTION);
    if !fields.contains_key(DATE) {
        fields.insert(DATE, dates::format_date(now_unix_s()));
    }

    if status.is_informational() || status == StatusCode::NO_CONTENT {
        fields.remove(CONTENT_LENGTH);
        return Framing::None;
    }
    // Content-Length may state what a GET would have got (RFC 9110 section 8.6).
    if is_head || status == StatusCode::NOT_MODIFIED {
        return Framing::None;
    }
    match body.size_hint().exact() {
        Some(length) => {
            fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
            match length {
                0 => Framing::None,
                _ => Framing::Length(length),
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
pub(in crate::serve) fn write_head(output: &mut Vec<u8>, status: StatusCode, fields: &HeaderMap) {
    write_status(output, status);
    for (name, value) in fields {
        write_field(output, name.as_str(), value.as_bytes());
    }
}

fn write_status(output: &mut Vec<u8>, status: StatusCode) {
    output.extend_from_slice(b"HTTP/1.1 ");
    output.extend_from_slice(status.as_str().as_bytes());
    output.push(b' ');
    output.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    output.extend_from_slice(b"\r\n");
}

/// Appends the same as [`write_head`] with [`Hit::lasting_fields`], from the lines of a stored
/// response that has one form. Allocates nothing.
fn write_stored_head(output: &mut Vec<u8>, stored: &StoredResponse, via: &Via, length: usize) {
    write_status(output, stored.status);
    let mut has_ranges = false;
    for (name, value) in stored.lines() {
        if name == AGE.as_str() || name == STRICT_TRANSPORT_SECURITY.as_str() {
            continue;
        }
        has_ranges |= name == ACCEPT_RANGES.as_str();
        match value {
            Value::Text(text) => write_field(output, name, text),
            Value::Date(seconds) => {
                output.extend_from_slice(name.as_bytes());
                output.extend_from_slice(b": ");
                dates::write_date(seconds, output);
                output.extend_from_slice(b"\r\n");
            }
        }
    }
    if stored.status == StatusCode::OK && !has_ranges {
        write_field(output, ACCEPT_RANGES.as_str(), b"bytes");
    }
    write_field(
        output,
        VIA.as_str(),
        via.received(stored.version).as_bytes(),
    );
    if stored.status != StatusCode::NO_CONTENT {
        output.extend_from_slice(b"content-length: ");
        structured::write_integer(length.try_into().unwrap_or(i64::MAX), output);
        output.extend_from_slice(b"\r\n");
    }
}

/// Appends the head of a hit, without the empty line after it. All of it but the fields that
/// change with time is written once for each stored response.
pub(super) fn write_hit_head(
    output: &mut Vec<u8>,
    hit: &Hit,
    edge: &Edge,
    client: &ClientConnection,
) {
    match (hit.http1_head(), hit.as_stored()) {
        (Some(slot), _) => output.extend_from_slice(slot.get_or_init(|| {
            let mut head = Vec::with_capacity(512);
            write_head(&mut head, hit.status(), &hit.lasting_fields(&edge.via));
            head.into()
        })),
        (None, Some(stored)) => write_stored_head(output, stored, &edge.via, hit.body.len()),
        (None, None) => {}
    }
    if let Some(value) = hit.transport_security() {
        write_field(output, STRICT_TRANSPORT_SECURITY.as_str(), value);
    }
    if let Some(value) = client.alternative(edge) {
        write_field(output, ALT_SVC.as_str(), value.as_bytes());
    }
    output.extend_from_slice(b"age: ");
    structured::write_integer(hit.age.try_into().unwrap_or(i64::MAX), output);
    output.extend_from_slice(b"\r\ncache-status: ");
    hit.outcome.write(&edge.name, output);
    output.extend_from_slice(b"\r\n");
}

/// Appends one field's line.
fn write_field(output: &mut Vec<u8>, name: &str, value: &[u8]) {
    output.extend_from_slice(name.as_bytes());
    output.extend_from_slice(b": ");
    output.extend_from_slice(value);
    output.extend_from_slice(b"\r\n");
}

/// Ends a head.
pub(super) fn end_fields(output: &mut Vec<u8>, is_last: bool) {
    if is_last {
        write_field(output, "connection", b"close");
    }
    output.extend_from_slice(b"\r\n");
}

/// Writes the content of `output`, which is empty then, `data` after it, and the short `end` after
/// that.
pub(super) async fn write(
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
            let is_alone = pieces[first + 1..].iter().all(|piece| piece.is_empty());
            let written = if is_alone {
                ready!(Pin::new(&mut *socket).poll_write(cx, pieces[first]))?
            } else {
                let slices = pieces.map(IoSlice::new);
                ready!(Pin::new(&mut *socket).poll_write_vectored(cx, &slices[first..]))?
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
        // TLS keeps records that the system did not take at once. Otherwise this does nothing.
        Pin::new(&mut *socket).poll_flush(cx)
    })
    .await
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderName;

    use super::*;

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
}
