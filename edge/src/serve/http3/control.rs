//! The unidirectional streams of a connection: this node's control stream, and what a client sends on
//! its own, on those of QPACK, and on others.
//!
//! Follows RFC 9114 sections 5.2, 6.2 and 7.2, RFC 9204 section 4, RFC 9218 section 7.2.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use bytes::{Buf as _, Bytes};
use quinn::{ReadError, RecvStream, SendStream};

use super::allowances::Kind;
use super::closed::{Closed, ConnectionError, UNKNOWN_STREAM};
use super::context::Context;
use super::frames::{
    self, CANCEL_PUSH, FrameWalk, GOAWAY, MAX_PUSH_ID, PRIORITY_UPDATE, PRIORITY_UPDATE_PUSH,
    Piece, SETTINGS, take_integer,
};
use super::qpack;
use crate::serve::http2::priority::Priority;

/// Kinds of streams (RFC 9114 section 6.2, RFC 9204 section 4.2).
const CONTROL_STREAM: u64 = 0x0;
const PUSH_STREAM: u64 = 0x1;
const ENCODER_STREAM: u64 = 0x2;
const DECODER_STREAM: u64 = 0x3;

const SETTINGS_MAX_FIELD_SECTION_SIZE: u64 = 0x6;
/// A setting without a meaning, which clients must ignore (RFC 9114 section 7.2.4.1).
const SETTING_UNKNOWN: u64 = 0x1f + 0x21;
/// What the size of a section counts for a field beside its bytes (RFC 9114 section 4.2.2).
const FIELD_OVERHEAD: u64 = 32;
/// Settings that only HTTP/2 has (RFC 9114 section 7.2.4.1).
const SETTINGS_OF_HTTP2: [u64; 4] = [0x2, 0x3, 0x4, 0x5];

/// Most settings of a client.
const SETTINGS_MAX: usize = 64;
/// Most bytes of the payload of a frame that has a meaning on the control stream.
const PAYLOAD_BYTES_MAX: u64 = 4 << 10;
/// Bytes of unknown frames that count as one more.
const UNKNOWN_BYTES: u64 = 1024;
/// Streams whose kind is not known yet, and those that last. More of them than clients need.
const STREAMS_MAX: usize = 16;
/// The priority of the control stream in the transport.
const FIRST: i32 = i32::MAX;

/// Sends this node's control stream, and reads the client's streams, for as long as the connection
/// lasts.
pub(super) async fn serve(context: Arc<Context>) {
    let Err(error) = run(&context).await else {
        return;
    };
    context.close(error);
}

async fn run(context: &Context) -> Result<(), ConnectionError> {
    let Ok(mut control) = context.quic.open_uni().await else {
        return Ok(());
    };
    let _ = control.set_priority(FIRST);
    let mut output = settings(context);
    let mut goaway = None;
    let stopped = control.stopped();
    let mut stopped = pin!(stopped);
    let mut accept = pin!(context.quic.accept_uni());
    let mut streams: Vec<Inbound> = Vec::new();
    let mut client = Client::default();
    poll_fn(|cx| {
        if stopped.as_mut().poll(cx).is_ready() && context.quic.close_reason().is_none() {
            return Poll::Ready(Err(Closed::CriticalStream.into()));
        }
        while streams.len() < STREAMS_MAX {
            match accept.as_mut().poll(cx) {
                Poll::Ready(Ok(stream)) => {
                    streams.push(Inbound::new(stream));
                    accept.set(context.quic.accept_uni());
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        let before = streams.len();
        let mut at = 0;
        while at < streams.len() {
            match streams[at].poll(cx, context, &mut client)? {
                Poll::Ready(()) => drop(streams.swap_remove(at)),
                Poll::Pending => at += 1,
            }
        }
        if before == STREAMS_MAX && streams.len() < before {
            // More may be waiting.
            cx.waker().wake_by_ref();
        }
        if goaway != context.goaway() {
            goaway = context.goaway();
            if let Some(id) = goaway {
                write_integer_frame(&mut output, GOAWAY, id);
            }
        }
        poll_write(&mut control, cx, &mut output);
        Poll::Pending
    })
    .await
}

/// The kind of this node's control stream, and its first frame.
fn settings(context: &Context) -> Vec<u8> {
    let limits = context.section_limits;
    let section = limits.bytes_max as u64 + FIELD_OVERHEAD * limits.fields_max as u64;
    let mut payload = Vec::new();
    for (setting, value) in [
        (
            SETTINGS_MAX_FIELD_SECTION_SIZE,
            section.min(frames::INTEGER_MAX),
        ),
        (SETTING_UNKNOWN, 0),
    ] {
        frames::write_integer(&mut payload, setting);
        frames::write_integer(&mut payload, value);
    }
    let mut output = Vec::new();
    frames::write_integer(&mut output, CONTROL_STREAM);
    frames::write_head(&mut output, SETTINGS, payload.len() as u64);
    output.extend(payload);
    output
}

fn write_integer_frame(output: &mut Vec<u8>, kind: u64, value: u64) {
    let mut payload = Vec::new();
    frames::write_integer(&mut payload, value);
    frames::write_head(output, kind, payload.len() as u64);
    output.extend(payload);
}

/// Writes what there is room for. An error means that the connection ends, or that the client has
/// stopped the stream, which is found elsewhere.
fn poll_write(stream: &mut SendStream, cx: &mut TaskContext<'_>, output: &mut Vec<u8>) {
    while !output.is_empty() {
        let written = pin!(stream.write(output)).poll(cx);
        match written {
            Poll::Ready(Ok(length)) => drop(output.drain(..length)),
            Poll::Ready(Err(_)) | Poll::Pending => return,
        }
    }
}

/// What is known of the client's streams.
#[derive(Debug, Default)]
struct Client {
    has: [bool; 4],
    has_settings: bool,
    /// The identifiers of its last frames of these kinds.
    goaway: Option<u64>,
    max_push: Option<u64>,
}

/// A stream of the client's.
struct Inbound {
    stream: RecvStream,
    kind: Option<u64>,
    /// The begin of an integer that is its kind, or an instruction of QPACK that is not complete.
    begin: Vec<u8>,
    walk: FrameWalk,
    payload: Vec<u8>,
}

impl Inbound {
    fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            kind: None,
            begin: Vec::new(),
            walk: FrameWalk::default(),
            payload: Vec::new(),
        }
    }

    /// Reads what came. Ready when the stream is over.
    fn poll(
        &mut self,
        cx: &mut TaskContext<'_>,
        context: &Context,
        client: &mut Client,
    ) -> Result<Poll<()>, ConnectionError> {
        loop {
            let mut chunks = [Bytes::new()];
            let read = pin!(self.stream.read_chunks(&mut chunks)).poll(cx);
            let is_end = match read {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(Some(_))) => false,
                Poll::Ready(Ok(None) | Err(ReadError::Reset(_))) => true,
                // The connection ends.
                Poll::Ready(Err(_)) => return Ok(Poll::Ready(())),
            };
            if is_end {
                // A stream may end before its kind is known (RFC 9114 section 6.2).
                return match self.kind {
                    None => {
                        context.spend(Kind::Unknown, 1)?;
                        Ok(Poll::Ready(()))
                    }
                    Some(_) => Err(Closed::CriticalStream.into()),
                };
            }
            let [mut chunk] = chunks;
            if self.kind.is_none() {
                let Some(kind) = self.read_kind(&mut chunk) else {
                    continue;
                };
                if !client.begin(kind)? {
                    context.spend(Kind::Unknown, 1)?;
                    let _ = self.stream.stop(UNKNOWN_STREAM);
                    return Ok(Poll::Ready(()));
                }
                self.kind = Some(kind);
            }
            match self.kind {
                Some(CONTROL_STREAM) => self.read_frames(chunk, context, client)?,
                Some(ENCODER_STREAM) => self.read_instructions(&chunk, context, encoder)?,
                _ => self.read_instructions(&chunk, context, decoder)?,
            }
        }
    }

    fn read_kind(&mut self, chunk: &mut Bytes) -> Option<u64> {
        while chunk.has_remaining() {
            self.begin.push(chunk.get_u8());
            if let Some(kind) = take_integer(&mut &self.begin[..]) {
                self.begin.clear();
                return Some(kind);
            }
        }
        None
    }

    fn read_frames(
        &mut self,
        mut chunk: Bytes,
        context: &Context,
        client: &mut Client,
    ) -> Result<(), ConnectionError> {
        while let Some(piece) = self.walk.next(&mut chunk) {
            match piece {
                Piece::Head { kind, length } => {
                    self.payload.clear();
                    client.begin_frame(kind)?;
                    let (spent, more) = match kind {
                        _ if frames::is_unknown(kind) => (Kind::Unknown, length / UNKNOWN_BYTES),
                        _ if length > PAYLOAD_BYTES_MAX => return Err(Closed::Control.into()),
                        PRIORITY_UPDATE => (Kind::Priority, 0),
                        _ => (Kind::Control, 0),
                    };
                    let more = u32::try_from(more).unwrap_or(u32::MAX);
                    context.spend(spent, more.saturating_add(1))?;
                }
                Piece::Payload(_) if frames::is_unknown(self.walk.kind()) => {}
                Piece::Payload(part) => self.payload.extend_from_slice(&part),
            }
            if self.walk.payload_left() == 0 && !frames::is_unknown(self.walk.kind()) {
                let payload = std::mem::take(&mut self.payload);
                client.read_frame(self.walk.kind(), &payload, context)?;
            }
        }
        Ok(())
    }

    /// Reads instructions of QPACK by a function that takes one from the front; `Ok(None)` where it
    /// is not complete.
    fn read_instructions(
        &mut self,
        chunk: &[u8],
        context: &Context,
        take: impl Fn(&mut &[u8]) -> Result<Option<()>, ConnectionError>,
    ) -> Result<(), ConnectionError> {
        self.begin.extend_from_slice(chunk);
        let begin = std::mem::take(&mut self.begin);
        let mut rest = &begin[..];
        while !rest.is_empty() {
            match take(&mut rest)? {
                Some(()) => context.spend(Kind::Control, 1)?,
                None => break,
            }
        }
        self.begin = rest.to_vec();
        Ok(())
    }
}

/// An instruction of the client's encoder: the only one that has a meaning for a table of no bytes
/// sets its size to that (RFC 9204 sections 3.2.3 and 4.3).
fn encoder(input: &mut &[u8]) -> Result<Option<()>, ConnectionError> {
    match input[0] >> 5 {
        0b001 => match take_prefixed(input, 5)? {
            Some(0) => Ok(Some(())),
            Some(_) => Err(Closed::Qpack.into()),
            None => Ok(None),
        },
        _ => Err(Closed::Qpack.into()),
    }
}

/// An instruction of the client's decoder: it can give up streams, but there is nothing to
/// acknowledge (RFC 9204 section 4.4).
fn decoder(input: &mut &[u8]) -> Result<Option<()>, ConnectionError> {
    match input[0] >> 6 {
        0b01 => {
            let taken = take_prefixed(input, 6).map_err(|_| ConnectionError::DECODER_STREAM)?;
            Ok(taken.map(|_| ()))
        }
        _ => Err(ConnectionError::DECODER_STREAM),
    }
}

/// Takes an integer; `None` where it is not complete.
fn take_prefixed(input: &mut &[u8], bits: u32) -> Result<Option<u64>, ConnectionError> {
    /// More than any integer has.
    const BYTES_MAX: usize = 11;
    match qpack::integer(input, bits) {
        Some(value) => Ok(Some(value)),
        None if input.len() < BYTES_MAX && input[1..].iter().all(|byte| byte & 128 != 0) => {
            Ok(None)
        }
        None => Err(Closed::Qpack.into()),
    }
}

impl Client {
    /// A stream begins; `false` if its kind is unknown, so that it is not read.
    fn begin(&mut self, kind: u64) -> Result<bool, Closed> {
        match kind {
            // Only servers push.
            PUSH_STREAM => Err(Closed::StreamCreation),
            CONTROL_STREAM | ENCODER_STREAM | DECODER_STREAM => {
                match std::mem::replace(&mut self.has[kind as usize], true) {
                    true => Err(Closed::StreamCreation),
                    false => Ok(true),
                }
            }
            _ => Ok(false),
        }
    }

    /// A frame begins on the control stream.
    fn begin_frame(&mut self, kind: u64) -> Result<(), Closed> {
        if !self.has_settings && kind != SETTINGS {
            return Err(Closed::MissingSettings);
        }
        let is_second = kind == SETTINGS && std::mem::replace(&mut self.has_settings, true);
        let is_good = frames::is_unknown(kind)
            || matches!(
                kind,
                SETTINGS
                    | CANCEL_PUSH
                    | GOAWAY
                    | MAX_PUSH_ID
                    | PRIORITY_UPDATE
                    | PRIORITY_UPDATE_PUSH
            );
        match is_good && !is_second {
            true => Ok(()),
            false => Err(Closed::FrameUnexpected),
        }
    }

    /// A frame with a meaning is complete.
    fn read_frame(
        &mut self,
        kind: u64,
        payload: &[u8],
        context: &Context,
    ) -> Result<(), ConnectionError> {
        if kind == SETTINGS {
            let unknown = read_settings(payload)?;
            context.spend(Kind::Unknown, unknown)?;
            context.note_settings();
            return Ok(());
        }
        let mut rest = payload;
        let id = take_integer(&mut rest).ok_or(Closed::Frame)?;
        if !rest.is_empty() && kind != PRIORITY_UPDATE && kind != PRIORITY_UPDATE_PUSH {
            return Err(Closed::Frame.into());
        }
        match kind {
            PRIORITY_UPDATE => {
                // The client may begin so many streams at most.
                let limits = &context.worker.edge.clients;
                let most = context.accepted() + u64::from(limits.http3_streams_max);
                if id % 4 != 0 || id / 4 >= most {
                    return Err(Closed::Id.into());
                }
                context.update(id, Priority::stated([rest].into_iter()));
            }
            GOAWAY => {
                if self.goaway.is_some_and(|before| id > before) {
                    return Err(Closed::Id.into());
                }
                self.goaway = Some(id);
            }
            MAX_PUSH_ID => {
                if self.max_push.is_some_and(|before| id < before) {
                    return Err(Closed::Id.into());
                }
                self.max_push = Some(id);
            }
            // Nothing is ever pushed, so there is nothing that these could name (RFC 9114 section
            // 7.2.3, RFC 9218 section 7.2).
            _ => return Err(Closed::Id.into()),
        }
        Ok(())
    }
}

/// Reads SETTINGS; how many of them are unknown. No setting of a client's changes what this node
/// sends: it has no dynamic table, and heads of responses are small.
fn read_settings(mut payload: &[u8]) -> Result<u32, Closed> {
    let mut seen: Vec<u64> = Vec::new();
    while !payload.is_empty() {
        let setting = take_integer(&mut payload).ok_or(Closed::Frame)?;
        take_integer(&mut payload).ok_or(Closed::Frame)?;
        if SETTINGS_OF_HTTP2.contains(&setting) || seen.contains(&setting) {
            return Err(Closed::Settings);
        }
        // A few are known, and clients add one or two that are not.
        if seen.len() >= SETTINGS_MAX {
            return Err(Closed::Control);
        }
        seen.push(setting);
    }
    Ok(u32::try_from(seen.len()).unwrap_or(u32::MAX))
}

/// For fuzz targets: reads any bytes as SETTINGS and as instructions of QPACK.
pub(super) fn fuzz_control(input: &[u8]) {
    let _ = read_settings(input);
    for take in [encoder, decoder] {
        let mut rest = input;
        while !rest.is_empty() && matches!(take(&mut rest), Ok(Some(()))) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        let table: [(&[u8], Result<u32, Closed>); 10] = [
            (&[], Ok(0)),
            (&[0x6, 0x40, 0x80, 0x1, 0, 0x7, 0], Ok(3)),
            (&[0x33, 1, 0x40, 0x52, 5], Ok(2)),
            (&[0x2, 0], Err(Closed::Settings)),
            (&[0x3, 1], Err(Closed::Settings)),
            (&[0x4, 1], Err(Closed::Settings)),
            (&[0x5, 1], Err(Closed::Settings)),
            (&[0x6, 1, 0x6, 1], Err(Closed::Settings)),
            (&[0x6], Err(Closed::Frame)),
            (&[0x6, 0x40], Err(Closed::Frame)),
        ];
        for (payload, expected) in table {
            assert_eq!(read_settings(payload), expected, "{payload:?}");
        }
        let many: Vec<u8> = (0..=SETTINGS_MAX as u8)
            .flat_map(|n| [0x40, n + 64, 0])
            .collect();
        assert_eq!(read_settings(&many), Err(Closed::Control));
    }

    #[test]
    fn frames_of_the_control_stream_have_their_place() {
        const UNKNOWN: u64 = 0x21;
        let table: &[(&[u64], Result<(), Closed>)] = &[
            (&[SETTINGS], Ok(())),
            (
                &[SETTINGS, UNKNOWN, GOAWAY, MAX_PUSH_ID, PRIORITY_UPDATE],
                Ok(()),
            ),
            (&[UNKNOWN], Err(Closed::MissingSettings)),
            (&[GOAWAY], Err(Closed::MissingSettings)),
            (&[SETTINGS, SETTINGS], Err(Closed::FrameUnexpected)),
            (&[SETTINGS, frames::DATA], Err(Closed::FrameUnexpected)),
            (&[SETTINGS, frames::HEADERS], Err(Closed::FrameUnexpected)),
            (
                &[SETTINGS, frames::PUSH_PROMISE],
                Err(Closed::FrameUnexpected),
            ),
            (&[SETTINGS, 0x2], Err(Closed::FrameUnexpected)),
            (&[SETTINGS, 0x6], Err(Closed::FrameUnexpected)),
            (&[SETTINGS, 0x8], Err(Closed::FrameUnexpected)),
            (&[SETTINGS, 0x9], Err(Closed::FrameUnexpected)),
        ];
        for (kinds, expected) in table {
            let (mut client, mut found) = (Client::default(), Ok(()));
            for kind in *kinds {
                assert_eq!(found, Ok(()), "{kinds:?}");
                found = client.begin_frame(*kind);
            }
            assert_eq!(found, *expected, "{kinds:?}");
        }
    }

    #[test]
    fn a_client_has_each_stream_once_and_pushes_nothing() {
        let mut client = Client::default();
        for kind in [CONTROL_STREAM, ENCODER_STREAM, DECODER_STREAM] {
            assert_eq!(client.begin(kind), Ok(true));
            assert_eq!(client.begin(kind), Err(Closed::StreamCreation));
        }
        assert_eq!(client.begin(PUSH_STREAM), Err(Closed::StreamCreation));
        assert_eq!(
            (client.begin(0x21), client.begin(0x54)),
            (Ok(false), Ok(false))
        );
    }

    /// Bytes, and what an instruction at their begin means.
    type Instruction<'a> = (&'a [u8], Result<Option<()>, ConnectionError>);

    #[test]
    fn instructions_without_a_table_mean_little() {
        let bad_encoder = Err(Closed::Qpack.into());
        let bad_decoder = Err(ConnectionError::DECODER_STREAM);
        let encoders: [Instruction<'_>; 7] = [
            (&[0x20], Ok(Some(()))),
            (&[0x21], bad_encoder),
            (&[0x3f], Ok(None)),
            (&[0x3f, 0x01], bad_encoder),
            (&[0xc0, 0], bad_encoder),
            (&[0x41, b'a', 0], bad_encoder),
            (&[0x00], bad_encoder),
        ];
        for (bytes, expected) in encoders {
            assert_eq!(encoder(&mut &bytes[..]), expected, "{bytes:?}");
        }
        let decoders: [Instruction<'_>; 6] = [
            (&[0x44], Ok(Some(()))),
            (&[0x7f, 0x80], Ok(None)),
            (&[0x7f, 0x80, 0x01], Ok(Some(()))),
            (&[0x84], bad_decoder),
            (&[0x01], bad_decoder),
            (
                &[0x7f, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
                bad_decoder,
            ),
        ];
        for (bytes, expected) in decoders {
            assert_eq!(decoder(&mut &bytes[..]), expected, "{bytes:?}");
        }
    }
}
