//! Why this node closes a connection or a stream, and the error code that the client is told.
//!
//! Follows RFC 9114 section 8.1, RFC 9204 section 6.

use quinn::VarInt;

/// Error codes of streams and connections.
pub(super) const NO_ERROR: VarInt = VarInt::from_u32(0x100);
const STREAM_CREATION_ERROR: VarInt = VarInt::from_u32(0x103);
const CLOSED_CRITICAL_STREAM: VarInt = VarInt::from_u32(0x104);
const FRAME_UNEXPECTED: VarInt = VarInt::from_u32(0x105);
const FRAME_ERROR: VarInt = VarInt::from_u32(0x106);
const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);
const ID_ERROR: VarInt = VarInt::from_u32(0x108);
const SETTINGS_ERROR: VarInt = VarInt::from_u32(0x109);
const MISSING_SETTINGS: VarInt = VarInt::from_u32(0x10a);
const DECOMPRESSION_FAILED: VarInt = VarInt::from_u32(0x200);
const ENCODER_STREAM_ERROR: VarInt = VarInt::from_u32(0x201);
const DECODER_STREAM_ERROR: VarInt = VarInt::from_u32(0x202);
/// Only of streams.
pub(super) const INTERNAL_ERROR: VarInt = VarInt::from_u32(0x102);
pub(super) const REQUEST_REJECTED: VarInt = VarInt::from_u32(0x10b);
pub(super) const REQUEST_CANCELLED: VarInt = VarInt::from_u32(0x10c);
pub(super) const REQUEST_INCOMPLETE: VarInt = VarInt::from_u32(0x10d);
pub(super) const MESSAGE_ERROR: VarInt = VarInt::from_u32(0x10e);
/// The code of a unidirectional stream of an unknown kind, which is not read (RFC 9114 section 6.2).
pub(super) const UNKNOWN_STREAM: VarInt = STREAM_CREATION_ERROR;

/// Why this node closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// A frame where none of its kind may be, or after the last one that may be there.
    FrameUnexpected,
    /// A frame that has not the size of its kind, or is cut.
    Frame,
    /// A setting that HTTP/3 does not have, or one that comes twice or has an invalid value.
    Settings,
    /// The control stream does not begin with SETTINGS.
    MissingSettings,
    /// An identifier that refers to nothing, or goes the wrong way.
    Id,
    /// A stream that a client may not begin, or not twice.
    StreamCreation,
    /// The client ended a stream that lasts as long as the connection.
    CriticalStream,
    /// A field section does not decompress.
    Decompression,
    /// An instruction on a stream of QPACK that has no meaning here.
    Qpack,
    /// Too many of these, of which none asks for anything.
    Control,
    Priority,
    Unknown,
    Reset,
    SmallData,
    /// Too many requests that were malformed.
    Refused,
    /// No SETTINGS for too long.
    Slow,
    /// No request for too long.
    Idle,
}

impl Closed {
    pub(crate) const ALL: [Self; 17] = [
        Self::FrameUnexpected,
        Self::Frame,
        Self::Settings,
        Self::MissingSettings,
        Self::Id,
        Self::StreamCreation,
        Self::CriticalStream,
        Self::Decompression,
        Self::Qpack,
        Self::Control,
        Self::Priority,
        Self::Unknown,
        Self::Reset,
        Self::SmallData,
        Self::Refused,
        Self::Slow,
        Self::Idle,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::FrameUnexpected => "frame-unexpected",
            Self::Frame => "frame",
            Self::Settings => "settings",
            Self::MissingSettings => "missing-settings",
            Self::Id => "id",
            Self::StreamCreation => "stream-creation",
            Self::CriticalStream => "critical-stream",
            Self::Decompression => "decompression",
            Self::Qpack => "qpack",
            Self::Control => "control",
            Self::Priority => "priority",
            Self::Unknown => "unknown",
            Self::Reset => "reset",
            Self::SmallData => "small-data",
            Self::Refused => "refused",
            Self::Slow => "slow",
            Self::Idle => "idle",
        }
    }
}

/// An error of a client's that ends the connection: why it is closed, and the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConnectionError {
    pub(super) why: Closed,
    pub(super) code: VarInt,
}

impl From<Closed> for ConnectionError {
    fn from(why: Closed) -> Self {
        let code = match why {
            Closed::FrameUnexpected => FRAME_UNEXPECTED,
            Closed::Frame => FRAME_ERROR,
            Closed::Settings => SETTINGS_ERROR,
            Closed::MissingSettings => MISSING_SETTINGS,
            Closed::Id => ID_ERROR,
            Closed::StreamCreation => STREAM_CREATION_ERROR,
            Closed::CriticalStream => CLOSED_CRITICAL_STREAM,
            Closed::Decompression => DECOMPRESSION_FAILED,
            Closed::Qpack => ENCODER_STREAM_ERROR,
            Closed::Control
            | Closed::Priority
            | Closed::Unknown
            | Closed::Reset
            | Closed::SmallData
            | Closed::Refused => EXCESSIVE_LOAD,
            Closed::Slow | Closed::Idle => NO_ERROR,
        };
        Self { why, code }
    }
}

impl ConnectionError {
    /// An error on the stream of the client's QPACK decoder.
    pub(super) const DECODER_STREAM: Self = Self {
        why: Closed::Qpack,
        code: DECODER_STREAM_ERROR,
    };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_page_lists_the_reasons_for_which_connections_are_closed() {
        const PAGE: &str = include_str!("../../../../docs/operating.md");
        let names: BTreeSet<&str> = Closed::ALL.into_iter().map(Closed::as_str).collect();
        let listed = crate::documented::first_column(PAGE, "| `reason` of HTTP/3 | Meaning |");
        assert_eq!(names, listed);
        assert_eq!(names.len(), Closed::ALL.len(), "no two have the same name");
        for (number, why) in Closed::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, number, "counters are found by it");
        }
    }
}
