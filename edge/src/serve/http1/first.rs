//! The first request of a new connection, where it has come whole: many clients open a connection
//! for one response. Such a hit is written, and its connection closed, in the turn that accepts it:
//! without a task, a timer, or a place among the connections that wait.
//!
//! All else goes on as an ordinary connection, with what was read.

use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};

use super::HEAD_BYTES_TYPICAL;
use super::head::{FIELDS_MAX, Head, Parsed};
use super::write::{COPIED_BYTES_MAX, end_fields, write_hit_head};
use crate::edge::Worker;
use crate::request::check::ClientConnection;
use crate::request::hit::try_hit;
use crate::serve::socket::ends_head;

/// What a new connection did at once.
pub(in crate::serve) enum First {
    /// It ended.
    Ended,
    /// It goes on; `None` if nothing has come.
    Begun(Option<Box<Begun>>),
}

/// A connection whose first bytes have been read.
pub(in crate::serve) struct Begun {
    pub(super) client: ClientConnection,
    /// Bytes that were read and not used.
    pub(super) input: BytesMut,
    /// What is left of the head of its only response.
    pub(super) output: Vec<u8>,
    /// What is left of the body, where that response was begun.
    pub(super) unwritten: Option<Bytes>,
}

/// Reads what a new connection has sent, and answers it if that is one request for a hit, after
/// which the client wants no other.
pub(in crate::serve) fn answer(
    worker: &Arc<Worker>,
    client: ClientConnection,
    mut stream: &TcpStream,
) -> First {
    let mut buffer = [0; HEAD_BYTES_TYPICAL];
    let input = match stream.read(&mut buffer) {
        Ok(0) => return First::Ended,
        Ok(length) => &buffer[..length],
        Err(error) if error.kind() == ErrorKind::WouldBlock => return First::Begun(None),
        Err(error) => {
            tracing::debug!(client = %client.address(), %error, "a client's connection ended early");
            return First::Ended;
        }
    };
    let Some((mut output, mut body)) = hit(worker, &client, input) else {
        return First::Begun(Some(Box::new(Begun {
            client,
            input: input.into(),
            output: Vec::new(),
            unwritten: None,
        })));
    };

    if body.len() <= COPIED_BYTES_MAX {
        output.extend_from_slice(&body);
        body = Bytes::new();
    }
    let written = match body.is_empty() {
        true => stream.write(&output),
        false => stream.write_vectored(&[IoSlice::new(&output), IoSlice::new(&body)]),
    };
    let written = match written {
        Ok(written) => written,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => {
            tracing::debug!(client = %client.address(), %error, "a client's connection ended early");
            return First::Ended;
        }
    };
    if written == output.len() + body.len() {
        // The client said that it sends nothing more, so nothing unread can turn this end into a
        // reset (RFC 9112 section 9.6).
        return First::Ended;
    }
    let of_head = written.min(output.len());
    output.drain(..of_head);
    body.advance(written - of_head);
    First::Begun(Some(Box::new(Begun {
        client,
        input: BytesMut::new(),
        output,
        unwritten: Some(body),
    })))
}

/// The head and the body of the response to the only request of a connection, if it is a hit.
fn hit(worker: &Arc<Worker>, client: &ClientConnection, input: &[u8]) -> Option<(Vec<u8>, Bytes)> {
    if !ends_head(input, 0) {
        return None;
    }
    let edge = &worker.edge;
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let Parsed::Whole(head) = Head::parse(input, &mut fields, &edge.clients) else {
        return None;
    };
    if !head.is_last || head.length != input.len() {
        return None;
    }
    let hit = try_hit(worker, client, head.to_hit_request()?, &mut String::new())?;
    let mut output = Vec::with_capacity(HEAD_BYTES_TYPICAL);
    write_hit_head(&mut output, &hit, edge, client);
    end_fields(&mut output, true);
    // The body alone: a slow client must not keep the stored response.
    Some((output, hit.body))
}
