//! Frames: where each begins and ends in bytes that come in any pieces, and which may be where.
//!
//! Follows RFC 9114 sections 4.1 and 7, RFC 9000 section 16 (integers), RFC 9218 section 7.2.

use bytes::{Buf as _, Bytes};

use super::closed::Closed;

pub(super) const DATA: u64 = 0x0;
pub(super) const HEADERS: u64 = 0x1;
pub(super) const CANCEL_PUSH: u64 = 0x3;
pub(super) const SETTINGS: u64 = 0x4;
pub(super) const PUSH_PROMISE: u64 = 0x5;
pub(super) const GOAWAY: u64 = 0x7;
pub(super) const MAX_PUSH_ID: u64 = 0xd;
pub(super) const PRIORITY_UPDATE: u64 = 0xf0700;
pub(super) const PRIORITY_UPDATE_PUSH: u64 = 0xf0701;

/// The largest integer.
pub(super) const INTEGER_MAX: u64 = (1 << 62) - 1;

/// Whether HTTP/2 has frames of this kind and HTTP/3 has not (RFC 9114 section 7.2.8).
pub(super) fn is_of_http2(kind: u64) -> bool {
    matches!(kind, 0x2 | 0x6 | 0x8 | 0x9)
}

/// Whether frames of this kind have no meaning, so that they are passed over (RFC 9114 section 9).
pub(super) fn is_unknown(kind: u64) -> bool {
    !is_of_http2(kind)
        && !matches!(
            kind,
            DATA | HEADERS
                | CANCEL_PUSH
                | SETTINGS
                | PUSH_PROMISE
                | GOAWAY
                | MAX_PUSH_ID
                | PRIORITY_UPDATE
                | PRIORITY_UPDATE_PUSH
        )
}

/// The number of bytes of an integer that begins with this one (RFC 9000 section 16).
fn integer_bytes(first: u8) -> usize {
    1 << (first >> 6)
}

/// Takes an integer from the front of the input; `None` where it is not complete.
pub(super) fn take_integer(input: &mut &[u8]) -> Option<u64> {
    let length = integer_bytes(*input.first()?);
    let (bytes, rest) = input.split_at_checked(length)?;
    *input = rest;
    let first = u64::from(bytes[0] & 0b0011_1111);
    Some(
        bytes[1..]
            .iter()
            .fold(first, |value, byte| value << 8 | u64::from(*byte)),
    )
}

/// Appends an integer, which is at most [`INTEGER_MAX`].
pub(super) fn write_integer(output: &mut Vec<u8>, value: u64) {
    match value {
        0..0x40 => output.push(value as u8),
        0x40..0x4000 => output.extend((value as u16 | 0x4000).to_be_bytes()),
        0x4000..0x4000_0000 => output.extend((value as u32 | 0x8000_0000).to_be_bytes()),
        _ => output.extend((value | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

/// Appends the head of a frame.
pub(super) fn write_head(output: &mut Vec<u8>, kind: u64, length: u64) {
    write_integer(output, kind);
    write_integer(output, length);
}

/// Finds the frames in the bytes of a stream.
#[derive(Debug, Default)]
pub(super) struct FrameWalk {
    head: [u8; 16],
    head_bytes: u8,
    /// Of the frame whose payload is being read.
    kind: u64,
    payload_left: u64,
}

/// What comes next in the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Head {
        kind: u64,
        length: u64,
    },
    /// Some bytes of the payload behind the last head.
    Payload(Bytes),
}

impl FrameWalk {
    /// Takes the next piece from the front of the input; `None` when that is used up.
    pub(super) fn next(&mut self, input: &mut Bytes) -> Option<Piece> {
        if self.payload_left > 0 {
            if input.is_empty() {
                return None;
            }
            let length = self.payload_left.min(input.len() as u64);
            self.payload_left -= length;
            return Some(Piece::Payload(input.split_to(length as usize)));
        }
        let have = usize::from(self.head_bytes);
        let more = input.len().min(self.head.len() - have);
        self.head[have..have + more].copy_from_slice(&input[..more]);
        let mut head = &self.head[..have + more];
        let found = take_integer(&mut head).zip(take_integer(&mut head));
        let Some((kind, length)) = found else {
            self.head_bytes += more as u8;
            input.advance(more);
            return None;
        };
        let used = have + more - head.len();
        input.advance(used - have);
        self.head_bytes = 0;
        (self.kind, self.payload_left) = (kind, length);
        Some(Piece::Head { kind, length })
    }

    /// Of the last frame whose head was read.
    pub(super) fn kind(&self) -> u64 {
        self.kind
    }

    /// Bytes of its payload that are still to come.
    pub(super) fn payload_left(&self) -> u64 {
        self.payload_left
    }

    /// Whether the bytes so far end with a frame.
    pub(super) fn is_between_frames(&self) -> bool {
        self.head_bytes == 0 && self.payload_left == 0
    }
}

/// What a stream of requests has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stage {
    #[default]
    Begun,
    /// The head of the request.
    Head,
    /// The section behind the body, which is the last frame.
    Trailers,
}

impl Stage {
    /// What a frame on the stream of a request changes.
    ///
    /// # Errors
    /// It may not be there (RFC 9114 sections 4.1 and 7.2).
    pub(super) fn follow(self, kind: u64) -> Result<Self, Closed> {
        match (self, kind) {
            (Self::Begun, HEADERS) => Ok(Self::Head),
            (Self::Head, HEADERS) => Ok(Self::Trailers),
            (Self::Head, DATA) => Ok(Self::Head),
            _ if is_unknown(kind) => Ok(self),
            _ => Err(Closed::FrameUnexpected),
        }
    }
}

#[cfg(test)]
mod tests {
    use nearcast_http_rules::testing;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_have_four_lengths() {
        // RFC 9000 appendix A.1.
        let table: [(&[u8], u64); 8] = [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0xff; 8], INTEGER_MAX),
            (&[0x40, 0x40], 0x40),
            (&[0x80, 0, 0x40, 0], 0x4000),
            (&[0xc0, 0, 0, 0, 0x40, 0, 0, 0], 0x4000_0000),
        ];
        for (bytes, value) in table {
            let mut input = bytes;
            assert_eq!(take_integer(&mut input), Some(value));
            assert!(input.is_empty());
            for cut in 0..bytes.len() {
                assert_eq!(take_integer(&mut &bytes[..cut]), None);
            }
            let mut written = Vec::new();
            write_integer(&mut written, value);
            assert_eq!(written, bytes);
        }
        assert_eq!(
            take_integer(&mut &[0x40, 0x25][..]),
            Some(37),
            "a longer form"
        );
    }

    #[test]
    fn a_request_is_a_head_a_body_and_trailers() {
        const UNKNOWN: u64 = 0x21;
        let unexpected = Err(Closed::FrameUnexpected);
        let table: &[(&[u64], Result<Stage, Closed>)] = &[
            (&[HEADERS], Ok(Stage::Head)),
            (
                &[UNKNOWN, HEADERS, UNKNOWN, DATA, UNKNOWN, DATA],
                Ok(Stage::Head),
            ),
            (&[HEADERS, HEADERS], Ok(Stage::Trailers)),
            (&[HEADERS, DATA, HEADERS, UNKNOWN], Ok(Stage::Trailers)),
            (&[DATA], unexpected),
            (&[UNKNOWN, DATA], unexpected),
            (&[HEADERS, DATA, HEADERS, DATA], unexpected),
            (&[HEADERS, HEADERS, HEADERS], unexpected),
            (&[SETTINGS], unexpected),
            (&[HEADERS, SETTINGS], unexpected),
            (&[HEADERS, GOAWAY], unexpected),
            (&[HEADERS, CANCEL_PUSH], unexpected),
            (&[HEADERS, MAX_PUSH_ID], unexpected),
            (&[HEADERS, PUSH_PROMISE], unexpected),
            (&[HEADERS, PRIORITY_UPDATE], unexpected),
            (&[HEADERS, PRIORITY_UPDATE_PUSH], unexpected),
            (&[HEADERS, 0x2], unexpected),
            (&[HEADERS, 0x6], unexpected),
            (&[0x8], unexpected),
            (&[0x9], unexpected),
            (&[0x41, HEADERS], Ok(Stage::Head)),
        ];
        for (kinds, expected) in table {
            let mut stage = Ok(Stage::default());
            for kind in *kinds {
                stage = stage.expect("only the last one is bad").follow(*kind);
            }
            assert_eq!(stage, *expected, "{kinds:?}");
        }
    }

    fn walk(walk: &mut FrameWalk, mut input: Bytes) -> Vec<(u64, Vec<u8>)> {
        let mut frames: Vec<(u64, Vec<u8>)> = Vec::new();
        while let Some(piece) = walk.next(&mut input) {
            match piece {
                Piece::Head { kind, .. } => frames.push((kind, Vec::new())),
                Piece::Payload(payload) => match frames.last_mut() {
                    Some((_, bytes)) => bytes.extend(payload),
                    None => frames.push((walk.kind(), payload.to_vec())),
                },
            }
        }
        assert!(input.is_empty());
        frames
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn frames_are_found_however_they_are_cut(
            frames in proptest::collection::vec(
                (0..INTEGER_MAX, proptest::collection::vec(any::<u8>(), 0..80)),
                0..10,
            ),
            cut in 1usize..20,
        ) {
            let mut bytes = Vec::new();
            for (kind, payload) in &frames {
                write_head(&mut bytes, *kind, payload.len() as u64);
                bytes.extend(payload);
            }
            let mut whole = FrameWalk::default();
            prop_assert_eq!(&walk(&mut whole, bytes.clone().into()), &frames);
            prop_assert!(whole.is_between_frames());

            let mut cut_walk = FrameWalk::default();
            let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
            for piece in bytes.chunks(cut) {
                let mut input = Bytes::copy_from_slice(piece);
                while let Some(piece) = cut_walk.next(&mut input) {
                    match piece {
                        Piece::Head { kind, .. } => found.push((kind, Vec::new())),
                        Piece::Payload(payload) => {
                            found.last_mut().expect("a head came before").1.extend(payload);
                        }
                    }
                }
            }
            prop_assert_eq!(found, frames);
            prop_assert!(cut_walk.is_between_frames());
        }
    }
}
