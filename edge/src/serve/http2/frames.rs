//! The frames of one connection as they pass: what each costs this node, and when a client has sent
//! too many that ask for nothing.
//!
//! The HTTP library bounds streams and resets. Every other frame makes it work too, and most make it
//! answer. So each kind that is no request and no body has an allowance. It refills with time and
//! with useful work: requests, answers, and body bytes. Whoever exceeds one is sent away
//! (`ENHANCE_YOUR_CALM`, RFC 9113 section 10.5). This module only counts: it has no socket and no
//! clock, allocates nothing for a request without a body, and checks of a frame what the library
//! does not, or answers by another code than RFC 9113 demands ([`super::faults`]).

use tokio::time::Instant;

use super::faults::{Unended, check_size};

/// The first bytes of each connection (RFC 9113 section 3.4).
pub(in crate::serve) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A stream's window until the client's SETTINGS say otherwise (RFC 9113 section 6.5.2).
const INITIAL_WINDOW: u32 = 65_535;
/// The largest window (RFC 9113 section 6.9.1).
const WINDOW_MAX: u32 = u32::MAX >> 1;
/// CONTINUATION frames of one header block: a head of the largest size needs a few.
const CONTINUATIONS_MAX: u32 = 16;
/// Requests at once that may be malformed: each is answered, which costs more than a reset.
pub(super) const BAD_REQUESTS_MAX: u32 = 50;
/// DATA frames with fewer bytes count as small.
const SMALL_DATA_BYTES: u32 = 64;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

pub(super) const ACK: u8 = 0x1;
pub(super) const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;

/// Error codes of RFC 9113 section 7.
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Why this node closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// The first bytes are no HTTP/2, or the first frame is not SETTINGS.
    Preface,
    /// The HTTP library found an error of the connection.
    Protocol,
    /// A frame is larger than permitted, or has not the size of its kind.
    FrameSize,
    /// A window is larger than permitted.
    FlowControl,
    /// A frame on a stream that the client has ended.
    EndedStream,
    /// Too many CONTINUATION frames, or too many bytes of one header block.
    Continuation,
    /// Too many frames of this kind.
    Settings,
    Ping,
    Priority,
    Unknown,
    Reset,
    EmptyData,
    SmallData,
    Trailers,
    WindowUpdate,
    Goaway,
    /// Too many requests that were malformed or refused: answered so, or their streams reset.
    Refused,
    /// No preface, no SETTINGS, or half a frame, for too long.
    Slow,
    /// The client took nothing for too long.
    Stalled,
    /// No stream for too long.
    Idle,
    /// To make room for others.
    Evicted,
}

impl Closed {
    pub(crate) const ALL: [Self; 21] = [
        Self::Preface,
        Self::Protocol,
        Self::FrameSize,
        Self::FlowControl,
        Self::EndedStream,
        Self::Continuation,
        Self::Settings,
        Self::Ping,
        Self::Priority,
        Self::Unknown,
        Self::Reset,
        Self::EmptyData,
        Self::SmallData,
        Self::Trailers,
        Self::WindowUpdate,
        Self::Goaway,
        Self::Refused,
        Self::Slow,
        Self::Stalled,
        Self::Idle,
        Self::Evicted,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Preface => "preface",
            Self::Protocol => "protocol",
            Self::FrameSize => "frame-size",
            Self::FlowControl => "flow-control",
            Self::EndedStream => "ended-stream",
            Self::Continuation => "continuation",
            Self::Settings => "settings",
            Self::Ping => "ping",
            Self::Priority => "priority",
            Self::Unknown => "unknown",
            Self::Reset => "reset",
            Self::EmptyData => "empty-data",
            Self::SmallData => "small-data",
            Self::Trailers => "trailers",
            Self::WindowUpdate => "window-update",
            Self::Goaway => "goaway",
            Self::Refused => "refused",
            Self::Slow => "slow",
            Self::Stalled => "stalled",
            Self::Idle => "idle",
            Self::Evicted => "evicted",
        }
    }

    /// The error code that the client is told (RFC 9113 section 7).
    fn code(self) -> u32 {
        match self {
            Self::Idle | Self::Evicted | Self::Slow | Self::Stalled => NO_ERROR,
            Self::Preface | Self::Protocol => PROTOCOL_ERROR,
            Self::FrameSize => FRAME_SIZE_ERROR,
            Self::FlowControl => FLOW_CONTROL_ERROR,
            Self::EndedStream => STREAM_CLOSED,
            _ => ENHANCE_YOUR_CALM,
        }
    }
}

/// A GOAWAY frame (RFC 9113 section 6.8): requests on streams above `last_stream` were not
/// processed.
pub(super) fn goaway(last_stream: u32, why: Closed) -> [u8; 17] {
    let mut frame = [0; 17];
    frame[2] = 8;
    frame[3] = GOAWAY;
    frame[9..13].copy_from_slice(&last_stream.to_be_bytes());
    frame[13..].copy_from_slice(&why.code().to_be_bytes());
    frame
}

/// The head of a frame (RFC 9113 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct FrameHead {
    /// Bytes of the payload.
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHead {
    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Finds the frames in bytes that come in any pieces.
#[derive(Debug, Default)]
struct FrameWalk {
    head: [u8; 9],
    head_bytes: u8,
    payload_left: u32,
}

/// What comes next in the bytes.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Head(FrameHead),
    /// Some bytes of the payload behind the last head.
    Payload(&'a [u8]),
}

impl FrameWalk {
    /// Takes the next piece from the front of the input; `None` when that is used up.
    fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        if input.is_empty() {
            return None;
        }
        if self.payload_left > 0 {
            let length = input.len().min(self.payload_left as usize);
            self.payload_left -= length as u32;
            let (payload, rest) = input.split_at(length);
            *input = rest;
            return Some(Piece::Payload(payload));
        }
        let have = usize::from(self.head_bytes);
        let length = input.len().min(self.head.len() - have);
        self.head[have..have + length].copy_from_slice(&input[..length]);
        *input = &input[length..];
        self.head_bytes += length as u8;
        if usize::from(self.head_bytes) < self.head.len() {
            return None;
        }
        self.head_bytes = 0;
        let [l1, l2, l3, kind, flags, stream @ ..] = self.head;
        let head = FrameHead {
            length: u32::from_be_bytes([0, l1, l2, l3]),
            kind,
            flags,
            // The first bit is reserved.
            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
        };
        self.payload_left = head.length;
        Some(Piece::Head(head))
    }

    fn is_between_frames(&self) -> bool {
        self.head_bytes == 0 && self.payload_left == 0
    }
}

/// What a client may send without asking for anything: so many at once, and so many more a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Allowance {
    most: u32,
    per_second: u32,
}

/// The kinds of frames that have an allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Settings,
    Ping,
    Priority,
    Unknown,
    Reset,
    EmptyData,
    SmallData,
    Trailers,
    WindowUpdate,
    Goaway,
    Refused,
    BadRequest,
}

impl Kind {
    const COUNT: usize = 12;

    fn allowance(self) -> Allowance {
        let (most, per_second) = match self {
            // Clients send them once or twice; each is acknowledged.
            Self::Settings => (20, 1),
            // Some clients measure the path by one for each few DATA frames.
            Self::Ping => (100, 10),
            // Clients of the old scheme of priorities send a few for each request.
            Self::Priority | Self::Unknown => (300, 10),
            // A page that is left cancels all its requests.
            Self::Reset => (300, 10),
            Self::EmptyData => (100, 10),
            // An upload that is typed.
            Self::SmallData => (1000, 100),
            Self::Trailers => (100, 10),
            // For each DATA frame one of its stream and one of the connection.
            Self::WindowUpdate => (1000, 50),
            Self::Goaway => (5, 0),
            // A client may send more requests than it may have streams before it knows the limit.
            Self::Refused => (300, 10),
            Self::BadRequest => (BAD_REQUESTS_MAX, 5),
        };
        Allowance { most, per_second }
    }

    const ALL: [Self; Self::COUNT] = [
        Self::Settings,
        Self::Ping,
        Self::Priority,
        Self::Unknown,
        Self::Reset,
        Self::EmptyData,
        Self::SmallData,
        Self::Trailers,
        Self::WindowUpdate,
        Self::Goaway,
        Self::Refused,
        Self::BadRequest,
    ];

    fn exceeded(self) -> Closed {
        match self {
            Self::Settings => Closed::Settings,
            Self::Ping => Closed::Ping,
            Self::Priority => Closed::Priority,
            Self::Unknown => Closed::Unknown,
            Self::Reset => Closed::Reset,
            Self::EmptyData => Closed::EmptyData,
            Self::SmallData => Closed::SmallData,
            Self::Trailers => Closed::Trailers,
            Self::WindowUpdate => Closed::WindowUpdate,
            Self::Goaway => Closed::Goaway,
            Self::Refused | Self::BadRequest => Closed::Refused,
        }
    }
}

/// What is left of each allowance.
#[derive(Debug)]
struct Allowances {
    /// In thousandths of a frame.
    left: [u32; Kind::COUNT],
    refilled: Instant,
}

impl Allowances {
    fn new(now: Instant) -> Self {
        Self {
            left: Kind::ALL.map(|kind| kind.allowance().most * 1000),
            refilled: now,
        }
    }

    /// Takes `frames` from the allowance of a kind.
    fn spend(&mut self, kind: Kind, frames: u32, now: Instant) -> Result<(), Closed> {
        let cost = frames.saturating_mul(1000);
        if self.left[kind as usize] < cost {
            self.refill(now);
        }
        let left = &mut self.left[kind as usize];
        *left = left.checked_sub(cost).ok_or(kind.exceeded())?;
        Ok(())
    }

    fn refill(&mut self, now: Instant) {
        let elapsed_ms = now.saturating_duration_since(self.refilled).as_millis();
        let elapsed_ms = u32::try_from(elapsed_ms).unwrap_or(u32::MAX);
        self.refilled = now;
        for kind in Kind::ALL {
            let more = elapsed_ms.saturating_mul(kind.allowance().per_second);
            self.add(kind, more);
        }
    }

    /// Useful work earns a kind so many frames more.
    fn earn(&mut self, kind: Kind, frames: u32) {
        self.add(kind, frames.saturating_mul(1000));
    }

    fn add(&mut self, kind: Kind, thousandths: u32) {
        let left = &mut self.left[kind as usize];
        *left = left
            .saturating_add(thousandths)
            .min(kind.allowance().most * 1000);
    }
}

/// What a client sends.
#[derive(Debug)]
pub(super) struct Inbound {
    /// Bytes of the preface that have come.
    preface: usize,
    walk: FrameWalk,
    frame: FrameHead,
    has_settings: bool,
    /// The frames and bytes of a header block that has not ended.
    block: Option<(u32, u64)>,
    block_bytes_max: u64,
    newest_stream: u32,
    /// Header blocks that have begun since the last call of `begin_turn`.
    turn_blocks: u32,
    /// A part of one setting: its number and value are six bytes.
    setting: [u8; 6],
    setting_bytes: u8,
    initial_window: u32,
    allowances: Allowances,
    unended: Unended,
}

impl Inbound {
    /// `block_bytes_max` are the bytes of a compressed header block.
    pub(super) fn new(block_bytes_max: usize, now: Instant) -> Self {
        Self {
            preface: 0,
            walk: FrameWalk::default(),
            frame: FrameHead::default(),
            has_settings: false,
            block: None,
            block_bytes_max: block_bytes_max as u64,
            newest_stream: 0,
            turn_blocks: 0,
            setting: [0; 6],
            setting_bytes: 0,
            initial_window: INITIAL_WINDOW,
            allowances: Allowances::new(now),
            unended: Unended::default(),
        }
    }

    /// Counts bytes that were received.
    ///
    /// # Errors
    /// The connection has to be closed.
    pub(super) fn read(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Closed> {
        if self.preface < PREFACE.len() {
            let length = bytes.len().min(PREFACE.len() - self.preface);
            if bytes[..length] != PREFACE[self.preface..self.preface + length] {
                return Err(Closed::Preface);
            }
            self.preface += length;
            bytes = &bytes[length..];
        }
        while let Some(piece) = self.walk.next(&mut bytes) {
            match piece {
                Piece::Head(head) => self.begin_frame(head, now)?,
                Piece::Payload(payload) => self.read_payload(payload, now)?,
            }
        }
        Ok(())
    }

    fn begin_frame(&mut self, head: FrameHead, now: Instant) -> Result<(), Closed> {
        self.frame = head;
        if !self.has_settings && (head.kind != SETTINGS || head.has(ACK)) {
            return Err(Closed::Preface);
        }
        check_size(head)?;
        // Nothing but CONTINUATION may be within a block, as the library says.
        if self.block.is_none() {
            self.unended.check(head, self.newest_stream)?;
        }
        let allowances = &mut self.allowances;
        match head.kind {
            DATA => match head.length {
                0 if head.has(END_STREAM) => {}
                0 => allowances.spend(Kind::EmptyData, 1, now)?,
                // Padding is looked at with the payload.
                _ if head.has(PADDED) => {}
                length => self.count_data(length, now)?,
            },
            HEADERS => {
                self.turn_blocks += 1;
                if head.stream > self.newest_stream {
                    self.newest_stream = head.stream;
                    for kind in [Kind::Priority, Kind::Unknown, Kind::WindowUpdate] {
                        allowances.earn(kind, 2);
                    }
                } else {
                    allowances.spend(Kind::Trailers, 1, now)?;
                }
                self.continue_block(head)?;
            }
            CONTINUATION => self.continue_block(head)?,
            PRIORITY => allowances.spend(Kind::Priority, 1, now)?,
            RST_STREAM => allowances.spend(Kind::Reset, 1, now)?,
            SETTINGS => {
                self.has_settings = true;
                self.setting_bytes = 0;
                // A frame may have thousands of settings.
                allowances.spend(Kind::Settings, 1 + head.length / 120, now)?;
            }
            PING => allowances.spend(Kind::Ping, 1, now)?,
            GOAWAY => allowances.spend(Kind::Goaway, 1, now)?,
            WINDOW_UPDATE => allowances.spend(Kind::WindowUpdate, 1, now)?,
            _ => allowances.spend(Kind::Unknown, 1 + head.length / 1024, now)?,
        }
        Ok(())
    }

    fn continue_block(&mut self, head: FrameHead) -> Result<(), Closed> {
        let (frames, bytes) = self.block.unwrap_or((0, 0));
        let (frames, bytes) = (frames + 1, bytes + u64::from(head.length));
        if frames > CONTINUATIONS_MAX + 1 || bytes > self.block_bytes_max {
            return Err(Closed::Continuation);
        }
        self.block = (!head.has(END_HEADERS)).then_some((frames, bytes));
        Ok(())
    }

    fn read_payload(&mut self, mut payload: &[u8], now: Instant) -> Result<(), Closed> {
        let head = self.frame;
        match head.kind {
            DATA if head.has(PADDED) => {
                // The first byte says how many of the others are padding.
                self.frame.flags &= !PADDED;
                let length = head.length.saturating_sub(1 + u32::from(payload[0]));
                match length {
                    0 if !head.has(END_STREAM) => self.allowances.spend(Kind::EmptyData, 1, now)?,
                    length => self.count_data(length, now)?,
                }
            }
            SETTINGS => {
                while !payload.is_empty() {
                    let have = usize::from(self.setting_bytes);
                    let length = payload.len().min(self.setting.len() - have);
                    self.setting[have..have + length].copy_from_slice(&payload[..length]);
                    payload = &payload[length..];
                    self.setting_bytes = (have + length) as u8;
                    if have + length == self.setting.len() {
                        self.setting_bytes = 0;
                        let [n1, n2, value @ ..] = self.setting;
                        if u16::from_be_bytes([n1, n2]) == SETTINGS_INITIAL_WINDOW_SIZE {
                            self.initial_window = u32::from_be_bytes(value);
                            if self.initial_window > WINDOW_MAX {
                                return Err(Closed::FlowControl);
                            }
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn count_data(&mut self, length: u32, now: Instant) -> Result<(), Closed> {
        if length < SMALL_DATA_BYTES && !self.frame.has(END_STREAM) {
            return self.allowances.spend(Kind::SmallData, 1, now);
        }
        self.allowances
            .earn(Kind::SmallData, length / SMALL_DATA_BYTES);
        Ok(())
    }

    /// So many requests were answered.
    pub(super) fn note_answered(&mut self, requests: u32) {
        self.allowances.earn(Kind::Reset, requests);
        self.allowances.earn(Kind::Refused, requests);
        self.allowances.earn(Kind::BadRequest, requests);
    }

    /// So many requests were malformed, and are answered so.
    ///
    /// # Errors
    /// The connection has to be closed.
    pub(super) fn note_bad(&mut self, requests: u32, now: Instant) -> Result<(), Closed> {
        match requests {
            0 => Ok(()),
            _ => self.allowances.spend(Kind::BadRequest, requests, now),
        }
    }

    /// Notes what was sent since the last time.
    ///
    /// # Errors
    /// The connection has to be closed.
    pub(super) fn note_sent(&mut self, sent: Sent, now: Instant) -> Result<(), Closed> {
        if sent.data_frames > 0 {
            self.allowances
                .earn(Kind::WindowUpdate, sent.data_frames.saturating_mul(4));
            self.allowances.earn(Kind::Ping, sent.data_frames);
        }
        if sent.resets > 0 {
            self.allowances.spend(Kind::Refused, sent.resets, now)?;
        }
        Ok(())
    }

    /// Begins to count header blocks anew.
    pub(super) fn begin_turn(&mut self) {
        self.turn_blocks = 0;
    }

    /// Header blocks that have begun in this turn.
    pub(super) fn turn_blocks(&self) -> u32 {
        self.turn_blocks
    }

    /// Whether the client's preface is complete: its SETTINGS have begun.
    pub(super) fn has_settings(&self) -> bool {
        self.has_settings
    }

    /// Whether the last byte that came ends a frame, and no header block is open.
    pub(super) fn is_between_frames(&self) -> bool {
        self.walk.is_between_frames() && self.block.is_none()
    }

    /// Whether the bytes that are missing belong to a body.
    pub(super) fn is_in_data(&self) -> bool {
        self.walk.payload_left > 0 && self.frame.kind == DATA
    }

    /// The newest stream that the client has begun; 0 for none.
    pub(super) fn newest_stream(&self) -> u32 {
        self.newest_stream
    }

    /// The window that each stream begins with, in bytes.
    pub(super) fn initial_window(&self) -> u32 {
        self.initial_window
    }
}

/// Frames that were sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) data_frames: u32,
    pub(super) resets: u32,
}

/// What the HTTP library sends.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    walk: FrameWalk,
    frame: FrameHead,
    /// A header block has not ended.
    is_in_block: bool,
    sent: Sent,
    /// Bytes of bodies since the connection began.
    data_bytes: u64,
    /// Bytes of a GOAWAY frame that were seen, and its error code so far.
    goaway: (u32, u32),
    error: Option<u32>,
}

impl Outbound {
    /// Counts bytes that are sent.
    pub(super) fn write(&mut self, mut bytes: &[u8]) {
        while let Some(piece) = self.walk.next(&mut bytes) {
            match piece {
                Piece::Head(head) => {
                    self.frame = head;
                    match head.kind {
                        DATA => {
                            self.sent.data_frames += 1;
                            self.data_bytes += u64::from(head.length);
                        }
                        RST_STREAM => self.sent.resets += 1,
                        HEADERS | CONTINUATION => self.is_in_block = !head.has(END_HEADERS),
                        GOAWAY => self.goaway = (0, 0),
                        _ => {}
                    }
                }
                Piece::Payload(payload) if self.frame.kind == GOAWAY => {
                    for byte in payload {
                        let (at, code) = self.goaway;
                        let code = match at {
                            4..8 => code << 8 | u32::from(*byte),
                            _ => code,
                        };
                        self.goaway = (at + 1, code);
                        if at == 7 && code != NO_ERROR {
                            self.error = Some(code);
                        }
                    }
                }
                Piece::Payload(_) => {}
            }
        }
    }

    /// What was sent since the last call.
    pub(super) fn take_sent(&mut self) -> Sent {
        std::mem::take(&mut self.sent)
    }

    /// Bytes of bodies since the connection began.
    pub(super) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Whether another frame may follow.
    pub(super) fn is_between_frames(&self) -> bool {
        self.walk.is_between_frames() && !self.is_in_block
    }

    /// The error code by which the library ended the connection.
    pub(super) fn error(&self) -> Option<u32> {
        self.error
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nearcast_http_rules::testing;
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn begun() -> Vec<u8> {
        [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
    }

    fn read(bytes: &[u8]) -> Result<Inbound, Closed> {
        let now = Instant::now();
        let mut inbound = Inbound::new(64 << 10, now);
        inbound.read(bytes, now).map(|()| inbound)
    }

    #[test]
    fn a_connection_begins_with_the_preface_and_settings() {
        let table = [
            (begun(), None),
            (PREFACE[..7].to_vec(), None),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Some(Closed::Preface)),
            (
                b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n".to_vec(),
                Some(Closed::Preface),
            ),
            (
                [PREFACE.to_vec(), frame(PING, 0, 0, &[0; 8])].concat(),
                Some(Closed::Preface),
            ),
            (
                [PREFACE.to_vec(), frame(SETTINGS, ACK, 0, &[])].concat(),
                Some(Closed::Preface),
            ),
        ];
        for (bytes, closed) in table {
            assert_eq!(read(&bytes).err(), closed, "{bytes:?}");
        }
    }

    #[test]
    fn each_kind_of_frame_has_an_allowance_that_time_refills() {
        let padded = |bytes: u8| [&[bytes][..], &vec![0; bytes.into()]].concat();
        let table = [
            (frame(SETTINGS, 0, 0, &[]), Kind::Settings, 1),
            (frame(SETTINGS, 0, 0, &[0; 6 * 100]), Kind::Settings, 6),
            (frame(PING, 0, 0, &[0; 8]), Kind::Ping, 1),
            (frame(PRIORITY, 0, 1, &[0; 5]), Kind::Priority, 1),
            (frame(RST_STREAM, 0, 1, &[0; 4]), Kind::Reset, 1),
            (frame(GOAWAY, 0, 0, &[0; 8]), Kind::Goaway, 1),
            (
                frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
                Kind::WindowUpdate,
                1,
            ),
            (frame(0x10, 0, 0, &[]), Kind::Unknown, 1),
            (frame(0xbe, 0, 0, &[0; 4096]), Kind::Unknown, 5),
            (frame(DATA, 0, 1, &[]), Kind::EmptyData, 1),
            (frame(DATA, PADDED, 1, &padded(9)), Kind::EmptyData, 1),
            (frame(DATA, 0, 1, b"x"), Kind::SmallData, 1),
            (
                frame(DATA, PADDED, 1, &[&[200][..], &[0; 201]].concat()),
                Kind::SmallData,
                1,
            ),
            (frame(HEADERS, END_HEADERS, 1, &[]), Kind::Trailers, 1),
        ];
        for (frame, kind, cost) in table {
            let now = Instant::now();
            for later in [Duration::ZERO, Duration::from_secs(10)] {
                let mut inbound = read(&begun()).expect("a connection");
                // A request whose body is to come.
                let upload = self::frame(HEADERS, END_HEADERS, 1, b"\x82");
                assert_eq!(inbound.read(&upload, now), Ok(()));
                let left = inbound.allowances.left[kind as usize] / 1000;
                for count in 0..left / cost {
                    assert_eq!(inbound.read(&frame, now), Ok(()), "{kind:?} {count}");
                }
                let is_refilled = kind.allowance().per_second * later.as_secs() as u32 >= cost;
                let expected = match is_refilled {
                    true => Ok(()),
                    false => Err(kind.exceeded()),
                };
                assert_eq!(inbound.read(&frame, now + later), expected, "{kind:?}");
            }
        }
    }

    #[test]
    fn useful_work_costs_nothing_and_refills() {
        let now = Instant::now();
        let mut inbound = read(&begun()).expect("a connection");
        for stream in 0..100_000 {
            let request = frame(HEADERS, END_HEADERS, 2 * stream + 1, b"\x82");
            let body = frame(DATA, 0, 2 * stream + 1, &[0; 1000]);
            let end = frame(DATA, END_STREAM, 2 * stream + 1, &[]);
            let update = frame(WINDOW_UPDATE, 0, 2 * stream + 1, &[0, 0, 0, 1]);
            let bytes = [request, body, end, update.clone(), update].concat();
            assert_eq!(inbound.read(&bytes, now), Ok(()), "{stream}");
            // Each answer is cancelled at its end.
            let cancel = frame(RST_STREAM, 0, 2 * stream + 1, &[0; 4]);
            assert_eq!(inbound.read(&cancel, now), Ok(()), "{stream}");
            inbound.note_answered(1);
        }
        let sent = Sent {
            data_frames: 1,
            resets: 0,
        };
        for count in 0..100_000 {
            let update = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
            let bytes = [update.clone(), update, frame(PING, 0, 0, &[0; 8])].concat();
            assert_eq!(inbound.read(&bytes, now), Ok(()), "{count}");
            assert_eq!(inbound.note_sent(sent, now), Ok(()));
        }
        let resets = Sent {
            data_frames: 0,
            resets: 1,
        };
        let closed = (0..1000).find_map(|_| inbound.note_sent(resets, now).err());
        assert_eq!(closed, Some(Closed::Refused));
    }

    #[test]
    fn a_header_block_has_few_frames_and_bytes() {
        let block = |first: usize, count: usize, each: usize| {
            let mut bytes = begun();
            bytes.extend(frame(HEADERS, 0, 1, &vec![0; first]));
            for _ in 0..count {
                bytes.extend(frame(CONTINUATION, 0, 1, &vec![0; each]));
            }
            bytes
        };
        let table = [
            (block(1, 16, 1), None),
            (block(1, 17, 0), Some(Closed::Continuation)),
            (block(16384, 3, 16384), None),
            (block(16384, 4, 16384), Some(Closed::Continuation)),
        ];
        for (bytes, closed) in table {
            let read = read(&bytes);
            assert_eq!(read.as_ref().err(), closed.as_ref());
            if let Ok(inbound) = read {
                assert!(!inbound.is_between_frames(), "the block is open");
            }
        }
    }

    #[test]
    fn what_the_client_sets_and_begins_is_known() {
        let settings = [0, 3, 0, 0, 0, 100, 0, 4, 0, 1, 0, 0];
        let bytes = [
            PREFACE.to_vec(),
            frame(SETTINGS, 0, 0, &settings),
            frame(HEADERS, END_HEADERS | END_STREAM, 7, b"\x82"),
        ]
        .concat();
        for cut in 0..bytes.len() {
            let now = Instant::now();
            let mut inbound = Inbound::new(100, now);
            inbound.read(&bytes[..cut], now).expect("good");
            inbound.read(&bytes[cut..], now).expect("good");
            let found = (
                inbound.initial_window(),
                inbound.newest_stream(),
                inbound.has_settings() && inbound.is_between_frames(),
            );
            assert_eq!(found, (65_536, 7, true), "{cut}");
        }
    }

    #[test]
    fn malformed_requests_have_an_allowance_that_answers_refill_slowly() {
        let now = Instant::now();
        let mut inbound = read(&begun()).expect("a connection");
        assert_eq!(inbound.note_bad(BAD_REQUESTS_MAX, now), Ok(()));
        inbound.note_answered(1);
        assert_eq!(inbound.note_bad(1, now), Ok(()));
        assert_eq!(inbound.note_bad(0, now), Ok(()));
        assert_eq!(inbound.note_bad(1, now), Err(Closed::Refused));
    }

    #[test]
    fn what_is_sent_is_known_by_frames() {
        let bytes = [
            frame(HEADERS, 0, 1, b"abc"),
            frame(CONTINUATION, END_HEADERS, 1, b"def"),
            frame(DATA, END_STREAM, 1, b"ghij"),
            frame(RST_STREAM, 0, 3, &[0; 4]),
            goaway(3, Closed::Idle).to_vec(),
        ]
        .concat();
        let boundaries = [0, 24, 37, 50, 67];
        for cut in 0..bytes.len() {
            let mut outbound = Outbound::default();
            outbound.write(&bytes[..cut]);
            let is_boundary = boundaries.contains(&cut);
            assert_eq!(outbound.is_between_frames(), is_boundary, "{cut}");
            outbound.write(&bytes[cut..]);
            let sent = Sent {
                data_frames: 1,
                resets: 1,
            };
            assert_eq!(outbound.take_sent(), sent);
            assert_eq!((outbound.data_bytes(), outbound.error()), (4, None));
            outbound.write(&goaway(3, Closed::Ping));
            assert_eq!(outbound.error(), Some(ENHANCE_YOUR_CALM));
        }
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn pieces_of_any_size_mean_the_same(
            frames in proptest::collection::vec(
                (0u8..12, any::<u8>(), 0u32..9, proptest::collection::vec(any::<u8>(), 0..40)),
                0..30,
            ),
            cuts in proptest::collection::vec(1usize..50, 1..40),
        ) {
            let mut bytes = begun();
            for (kind, flags, stream, payload) in &frames {
                bytes.extend(frame(*kind, *flags, *stream, payload));
            }
            let now = Instant::now();
            let (mut whole, mut cut) = (Inbound::new(200, now), Inbound::new(200, now));
            let expected = whole.read(&bytes, now);
            let mut found = Ok(());
            let mut rest = &bytes[..];
            for length in cuts.iter().cycle() {
                let (piece, after) = rest.split_at(rest.len().min(*length));
                rest = after;
                found = cut.read(piece, now);
                if found.is_err() || rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, expected);
            if expected.is_ok() {
                prop_assert_eq!(format!("{whole:?}"), format!("{cut:?}"));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let now = Instant::now();
            let mut inbound = Inbound::new(200, now);
            let _ = inbound.read(&[PREFACE.to_vec(), bytes.clone()].concat(), now);
            Outbound::default().write(&bytes);
        }
    }
}
