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

use super::compression::Compression;
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
/// Requests at once whose streams the HTTP library resets for an error of the client's. No client in
/// order makes any; each costs a request that may be on its way to the origin, and is no longer
/// counted as open.
const FAULTS_MAX: u32 = 20;
/// The work that the HTTP library does before other things have their turn: that of so many frames.
/// A header block, which usually makes a request, is as much as [`BLOCK_WORK`], and more by its
/// bytes. The last frame may add some.
const PORTION_WORK: u32 = 64;
const BLOCK_WORK: u32 = 4;
const WORK_BYTES: u32 = 128;
/// DATA frames with fewer bytes count as small.
const SMALL_DATA_BYTES: u32 = 64;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

pub(super) const ACK: u8 = 0x1;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const HAS_PRIORITY: u8 = 0x20;
const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;

/// Error codes of RFC 9113 section 7.
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
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
    /// A header block does not decompress.
    Compression,
    /// Too many CONTINUATION frames, or too many bytes of one header block.
    Continuation,
    /// Too many frames of this kind; of the first one also too many changes of the field table.
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
    pub(crate) const ALL: [Self; 22] = [
        Self::Preface,
        Self::Protocol,
        Self::FrameSize,
        Self::FlowControl,
        Self::EndedStream,
        Self::Compression,
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
            Self::Compression => "compression",
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

    /// Whether the client did something wrong.
    pub(super) fn is_fault(self) -> bool {
        self.code() != NO_ERROR
    }

    /// The error code that the client is told (RFC 9113 section 7).
    fn code(self) -> u32 {
        match self {
            Self::Idle | Self::Evicted | Self::Slow | Self::Stalled => NO_ERROR,
            Self::Preface | Self::Protocol => PROTOCOL_ERROR,
            Self::FrameSize => FRAME_SIZE_ERROR,
            Self::FlowControl => FLOW_CONTROL_ERROR,
            Self::EndedStream => STREAM_CLOSED,
            Self::Compression => COMPRESSION_ERROR,
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
    Fault,
    TableSize,
}

impl Kind {
    const COUNT: usize = 14;

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
            Self::Fault => (FAULTS_MAX, 1),
            // The size of the field table changes after SETTINGS (RFC 7541 section 4.2), and each
            // change may empty it.
            Self::TableSize => (100, 10),
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
        Self::Fault,
        Self::TableSize,
    ];

    fn exceeded(self) -> Closed {
        match self {
            Self::Settings | Self::TableSize => Closed::Settings,
            Self::Ping => Closed::Ping,
            Self::Priority => Closed::Priority,
            Self::Unknown => Closed::Unknown,
            Self::Reset => Closed::Reset,
            Self::EmptyData => Closed::EmptyData,
            Self::SmallData => Closed::SmallData,
            Self::Trailers => Closed::Trailers,
            Self::WindowUpdate => Closed::WindowUpdate,
            Self::Goaway => Closed::Goaway,
            Self::Refused | Self::BadRequest | Self::Fault => Closed::Refused,
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
    block_stream: u32,
    newest_stream: u32,
    /// Work since the last call of `begin_portion`.
    work: u32,
    /// A part of one setting: its number and value are six bytes.
    setting: [u8; 6],
    setting_bytes: u8,
    initial_window: u32,
    allowances: Allowances,
    unended: Unended,
    compression: Compression,
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
            block_stream: 0,
            newest_stream: 0,
            work: 0,
            setting: [0; 6],
            setting_bytes: 0,
            initial_window: INITIAL_WINDOW,
            allowances: Allowances::new(now),
            unended: Unended::default(),
            compression: Compression::default(),
        }
    }

    /// Counts bytes that were received, up to the end of a portion; how many of them.
    ///
    /// # Errors
    /// The connection has to be closed.
    pub(super) fn read(&mut self, mut bytes: &[u8], now: Instant) -> Result<usize, Closed> {
        let received = bytes.len();
        if self.preface < PREFACE.len() {
            let length = bytes.len().min(PREFACE.len() - self.preface);
            if bytes[..length] != PREFACE[self.preface..self.preface + length] {
                return Err(Closed::Preface);
            }
            self.preface += length;
            bytes = &bytes[length..];
        }
        while !self.is_portion_complete() {
            match self.walk.next(&mut bytes) {
                Some(Piece::Head(head)) => self.begin_frame(head, now)?,
                Some(Piece::Payload(payload)) => self.read_payload(payload, now)?,
                None => break,
            }
        }
        Ok(received - bytes.len())
    }

    fn begin_frame(&mut self, head: FrameHead, now: Instant) -> Result<(), Closed> {
        self.frame = head;
        if !self.has_settings && (head.kind != SETTINGS || head.has(ACK)) {
            return Err(Closed::Preface);
        }
        check_size(head)?;
        // Nothing but CONTINUATION of the same stream may be within a block, and it nowhere else (RFC
        // 9113 section 6.10).
        match (&self.block, head.kind) {
            (Some(_), CONTINUATION) if head.stream == self.block_stream => {}
            (None, kind) if kind != CONTINUATION => {
                self.unended.check(head, self.newest_stream)?;
            }
            _ => return Err(Closed::Protocol),
        }
        self.work += match head.kind {
            HEADERS | CONTINUATION => BLOCK_WORK + head.length / WORK_BYTES,
            _ => 1,
        };
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
                self.block_stream = head.stream;
                let is_trailers = head.stream <= self.newest_stream;
                if !is_trailers {
                    self.newest_stream = head.stream;
                    for kind in [Kind::Priority, Kind::Unknown, Kind::WindowUpdate] {
                        allowances.earn(kind, 2);
                    }
                } else {
                    allowances.spend(Kind::Trailers, 1, now)?;
                }
                self.continue_block(head)?;
                self.compression.begin_frame(head, is_trailers)?;
            }
            CONTINUATION => {
                self.continue_block(head)?;
                self.compression.begin_frame(head, false)?;
            }
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
            HEADERS | CONTINUATION => {
                let is_last = self.walk.payload_left == 0;
                self.compression.read(head, payload, is_last)?;
                match self.compression.take_resizes() {
                    0 => {}
                    resizes => self.allowances.spend(Kind::TableSize, resizes, now)?,
                }
            }
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
        self.allowances.earn(Kind::Trailers, requests);
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
        if sent.faults > 0 {
            self.allowances.spend(Kind::Fault, sent.faults, now)?;
        }
        Ok(())
    }

    /// Begins to count work anew.
    pub(super) fn begin_portion(&mut self) {
        self.work = 0;
    }

    /// Whether the next frame belongs to another portion of work.
    pub(super) fn is_portion_complete(&self) -> bool {
        self.work >= PORTION_WORK && self.walk.is_between_frames()
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
    /// Those of them that name an error of the client's.
    pub(super) faults: u32,
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
    /// Bytes of a GOAWAY or RST_STREAM frame that were seen, and the last four of them.
    ending: (u32, u32),
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
                        RST_STREAM => {
                            self.sent.resets += 1;
                            self.ending = (0, 0);
                        }
                        HEADERS | CONTINUATION => self.is_in_block = !head.has(END_HEADERS),
                        GOAWAY => self.ending = (0, 0),
                        _ => {}
                    }
                }
                Piece::Payload(payload) if matches!(self.frame.kind, GOAWAY | RST_STREAM) => {
                    for byte in payload {
                        self.read_ending(*byte);
                    }
                }
                Piece::Payload(_) => {}
            }
        }
    }

    /// Reads a byte of a frame that ends a stream or the connection.
    fn read_ending(&mut self, byte: u8) {
        let (at, code) = self.ending;
        let code = code << 8 | u32::from(byte);
        self.ending = (at + 1, code);
        match (self.frame.kind, at) {
            (GOAWAY, 7) if code != NO_ERROR => self.error = Some(code),
            // STREAM_CLOSED is not among them: frames may be on their way when a stream ends.
            (RST_STREAM, 3)
                if matches!(code, PROTOCOL_ERROR | FLOW_CONTROL_ERROR | FRAME_SIZE_ERROR) =>
            {
                self.sent.faults += 1;
            }
            _ => {}
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
    use std::collections::BTreeSet;
    use std::time::Duration;

    use nearcast_http_rules::testing;
    use proptest::prelude::*;

    use super::*;

    /// Codes that this module does not need.
    const INTERNAL_ERROR: u32 = 2;
    const REFUSED_STREAM: u32 = 7;
    const CANCEL: u32 = 8;

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
        read_all(&mut inbound, bytes, now).map(|()| inbound)
    }

    /// Reads bytes in as many portions as they need.
    fn read_all(inbound: &mut Inbound, mut bytes: &[u8], now: Instant) -> Result<(), Closed> {
        while !bytes.is_empty() {
            bytes = &bytes[inbound.read(bytes, now)?..];
            if inbound.is_portion_complete() {
                inbound.begin_portion();
            }
        }
        Ok(())
    }

    #[test]
    fn the_page_lists_the_reasons_for_which_connections_are_closed() {
        const PAGE: &str = include_str!("../../../../docs/operating.md");
        let names: BTreeSet<&str> = Closed::ALL.into_iter().map(Closed::as_str).collect();
        let listed = crate::documented::first_column(PAGE, "| `reason` | Meaning |");
        assert_eq!(names, listed);
        assert_eq!(names.len(), Closed::ALL.len(), "no two have the same name");
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
                assert_eq!(read_all(&mut inbound, &upload, now), Ok(()));
                let left = inbound.allowances.left[kind as usize] / 1000;
                for count in 0..left / cost {
                    assert_eq!(
                        read_all(&mut inbound, &frame, now),
                        Ok(()),
                        "{kind:?} {count}"
                    );
                }
                let is_refilled = kind.allowance().per_second * later.as_secs() as u32 >= cost;
                let expected = match is_refilled {
                    true => Ok(()),
                    false => Err(kind.exceeded()),
                };
                assert_eq!(
                    read_all(&mut inbound, &frame, now + later),
                    expected,
                    "{kind:?}"
                );
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
            assert_eq!(read_all(&mut inbound, &bytes, now), Ok(()), "{stream}");
            // Each answer is cancelled at its end.
            let cancel = frame(RST_STREAM, 0, 2 * stream + 1, &[0; 4]);
            assert_eq!(read_all(&mut inbound, &cancel, now), Ok(()), "{stream}");
            inbound.note_answered(1);
        }
        let sent = Sent {
            data_frames: 1,
            ..Sent::default()
        };
        for count in 0..100_000 {
            let update = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
            let bytes = [update.clone(), update, frame(PING, 0, 0, &[0; 8])].concat();
            assert_eq!(read_all(&mut inbound, &bytes, now), Ok(()), "{count}");
            assert_eq!(inbound.note_sent(sent, now), Ok(()));
        }
        let resets = Sent {
            resets: 1,
            ..Sent::default()
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
            read_all(&mut inbound, &bytes[..cut], now).expect("good");
            read_all(&mut inbound, &bytes[cut..], now).expect("good");
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
    fn few_streams_may_be_reset_for_errors_of_the_client() {
        const CLOSED: Option<Closed> = Some(Closed::Refused);
        let second = Duration::from_secs(1);
        // The code of the frames, how many are sent, how many answers there were, seconds that have
        // passed, and whether that is too many.
        let table = [
            (FLOW_CONTROL_ERROR, FAULTS_MAX, 0, 0, None),
            (FLOW_CONTROL_ERROR, FAULTS_MAX + 1, 0, 0, CLOSED),
            (PROTOCOL_ERROR, FAULTS_MAX + 1, 0, 0, CLOSED),
            (FRAME_SIZE_ERROR, FAULTS_MAX + 1, 0, 0, CLOSED),
            // Answers do not make up for them, but time does.
            (FLOW_CONTROL_ERROR, FAULTS_MAX + 1, 1000, 0, CLOSED),
            (FLOW_CONTROL_ERROR, FAULTS_MAX + 5, 0, 6, None),
            // A page with pictures whose origin fails, an upload that was answered early, and more
            // requests than there may be before the client knows the limit.
            (INTERNAL_ERROR, 300, 0, 0, None),
            (STREAM_CLOSED, 300, 0, 0, None),
            (REFUSED_STREAM, 300, 0, 0, None),
            (REFUSED_STREAM, 301, 0, 0, CLOSED),
        ];
        for (code, count, answered, seconds, expected) in table {
            let now = Instant::now();
            let mut inbound = read(&begun()).expect("a connection");
            let mut outbound = Outbound::default();
            let mut closed = None;
            for at in 0..count {
                let at_last = if at + 5 >= count { seconds } else { 0 };
                outbound.write(&frame(RST_STREAM, 0, 2 * at + 1, &code.to_be_bytes()));
                let sent = inbound.note_sent(outbound.take_sent(), now + second * at_last);
                closed = closed.or(sent.err());
                inbound.note_answered(answered);
            }
            // Answers refill the allowance of refused requests.
            assert_eq!(closed, expected, "{code} {count} {answered} {seconds}");
        }
    }

    #[test]
    fn the_field_table_may_change_its_size_a_few_times() {
        // The flags and the payload of a header block, and whether it changes the size.
        let table: [(u8, &[u8], bool); 6] = [
            (0, b"\x82", false),
            (0, b"\x20\x82", true),
            (0, b"\x3f\xe1\x1f\x82", true),
            (
                PADDED,
                b"\x21\x82\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                false,
            ),
            (PADDED, b"\x01\x20\x82\0", true),
            (HAS_PRIORITY | PADDED, b"\x01\0\0\0\0\x10\x20\x82\0", true),
        ];
        for (flags, payload, is_change) in table {
            for is_split in [false, true] {
                let now = Instant::now();
                let mut inbound = read(&begun()).expect("a connection");
                let most = Kind::TableSize.allowance().most;
                let closed = (1..=most + 1).find_map(|at| {
                    let flags = flags | END_STREAM;
                    let mut block = match is_split {
                        true => frame(HEADERS, flags, 2 * at + 1, payload),
                        false => frame(HEADERS, flags | END_HEADERS, 2 * at + 1, payload),
                    };
                    if is_split {
                        block.extend(frame(CONTINUATION, END_HEADERS, 2 * at + 1, b"\x84"));
                    }
                    let (first, rest) = block.split_at(10);
                    let read = read_all(&mut inbound, first, now);
                    let read = read.and_then(|()| read_all(&mut inbound, rest, now));
                    read.err().map(|why| (why, at))
                });
                let expected = is_change.then_some((Closed::Settings, most + 1));
                assert_eq!(closed, expected, "{payload:?}");
            }
        }
    }

    #[test]
    fn what_honest_clients_do_is_within_all_allowances() {
        let request = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x82; 40]);
        let upload = |stream| {
            [
                frame(HEADERS, END_HEADERS, stream, &[0x82; 40]),
                frame(DATA, 0, stream, &[0; 100]),
                // The trailers.
                frame(HEADERS, END_HEADERS | END_STREAM, stream, b"\x90"),
            ]
            .concat()
        };
        let cancel = |stream| frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
        let update = |stream| frame(WINDOW_UPDATE, 0, stream, &[0, 0, 0, 1]);
        type Sends<'a> = &'a dyn Fn(u32) -> Vec<u8>;
        // What is sent for each stream, how many there are at once, how many of them are answered
        // before the next ones, and how often that is repeated without a pause.
        let table: [(&str, Sends<'_>, u32, u32, u32); 5] = [
            // All pictures of a page are requested, and cancelled, since it is left.
            (
                "a page that is left",
                &|n| [request(n), cancel(n)].concat(),
                200,
                0,
                1,
            ),
            // 100 of 200 pictures are scrolled away, again and again.
            (
                "scrolling",
                &|n| match n % 4 {
                    1 => [request(n), cancel(n)].concat(),
                    _ => request(n),
                },
                200,
                100,
                50,
            ),
            ("many at once", &request, 500, 500, 20),
            ("trailers", &upload, 100, 100, 50),
            (
                "downloads",
                &|n| [request(n), update(n), update(0)].concat(),
                100,
                100,
                50,
            ),
        ];
        for (name, sends, at_once, answered, times) in table {
            let now = Instant::now();
            let mut inbound = read(&begun()).expect("a connection");
            for time in 0..times {
                for at in 0..at_once {
                    let bytes = sends(2 * (time * at_once + at) + 1);
                    assert_eq!(read_all(&mut inbound, &bytes, now), Ok(()), "{name} {time}");
                }
                inbound.note_answered(answered);
                // Those above the limit of streams are refused until the client knows it.
                let refused = match (name, time) {
                    ("many at once", 0) => at_once / 2,
                    _ => 0,
                };
                let sent = Sent {
                    resets: refused,
                    ..Sent::default()
                };
                assert_eq!(inbound.note_sent(sent, now), Ok(()), "{name} {time}");
            }
        }
    }

    #[test]
    fn work_comes_in_portions_that_end_with_a_frame() {
        let block = |stream: u32, bytes: usize| {
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                stream,
                &vec![0x82; bytes],
            )
        };
        type Sends<'a> = &'a dyn Fn(u32) -> Vec<u8>;
        let table: [(&str, Sends<'_>, usize); 5] = [
            ("requests", &|n| block(n, 40), 16),
            ("large requests", &|n| block(n, 4000), 2),
            ("more than a portion", &|n| block(n, 16_000), 1),
            ("no requests", &|_| frame(PING, 0, 0, &[0; 8]), 64),
            ("a body", &|_| frame(DATA, 0, 1, &[0; 16_384]), 64),
        ];
        for (name, sends, expected) in table {
            let now = Instant::now();
            let open = [begun(), frame(HEADERS, END_HEADERS, 1, b"\x82")].concat();
            let mut inbound = read(&open).expect("a connection");
            inbound.begin_portion();
            let pieces: Vec<Vec<u8>> = (1..=100).map(|n| sends(2 * n + 1)).collect();
            let (first, rest) = pieces.split_at(expected);
            let taken = inbound.read(&pieces.concat(), now);
            assert_eq!(taken, Ok(first.concat().len()), "{name}");
            assert!(inbound.is_portion_complete() && inbound.is_between_frames());
            assert_eq!(inbound.read(&rest.concat(), now), Ok(0), "{name}");
            inbound.begin_portion();
            assert_eq!(inbound.read(&rest[0][..5], now), Ok(5), "{name}");
        }
    }

    #[test]
    fn what_is_sent_is_known_by_frames() {
        let bytes = [
            frame(HEADERS, 0, 1, b"abc"),
            frame(CONTINUATION, END_HEADERS, 1, b"def"),
            frame(DATA, END_STREAM, 1, b"ghij"),
            frame(RST_STREAM, 0, 3, &CANCEL.to_be_bytes()),
            frame(RST_STREAM, 0, 5, &FLOW_CONTROL_ERROR.to_be_bytes()),
            goaway(3, Closed::Idle).to_vec(),
        ]
        .concat();
        let boundaries = [0, 24, 37, 50, 63, 80];
        for cut in 0..bytes.len() {
            let mut outbound = Outbound::default();
            outbound.write(&bytes[..cut]);
            let is_boundary = boundaries.contains(&cut);
            assert_eq!(outbound.is_between_frames(), is_boundary, "{cut}");
            outbound.write(&bytes[cut..]);
            let sent = Sent {
                data_frames: 1,
                resets: 2,
                faults: 1,
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
            let expected = read_all(&mut whole, &bytes, now);
            let mut found = Ok(());
            let mut rest = &bytes[..];
            for length in cuts.iter().cycle() {
                let (piece, after) = rest.split_at(rest.len().min(*length));
                rest = after;
                found = read_all(&mut cut, piece, now);
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
            let _ = read_all(&mut inbound, &[PREFACE.to_vec(), bytes.clone()].concat(), now);
            Outbound::default().write(&bytes);
        }
    }
}
