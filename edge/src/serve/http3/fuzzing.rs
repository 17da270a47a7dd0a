//! The entry point of a fuzz target: everything that reads a client's bytes without a connection.

use bytes::Bytes;

use super::control::fuzz_control;
use super::frames::{FrameWalk, Piece};
use super::head::{self, Head};
use super::qpack::{FieldSection, SectionLimits, encode};

const LIMITS: SectionLimits = SectionLimits {
    fields_max: 16,
    bytes_max: 4096,
};

/// Reads any bytes as a field section, as frames and as what comes on streams of control. `cut` is
/// where the frames come in two pieces.
pub fn fuzz_http3(input: &[u8], cut: usize) {
    fuzz_section(input);
    fuzz_control(input);

    let cut = cut.min(input.len());
    let whole = frames(&[input]);
    assert_eq!(
        frames(&[&input[..cut], &input[cut..]]),
        whole,
        "a cut changes nothing"
    );
}

/// A section that is accepted is within its limits, and written again it reads the same.
fn fuzz_section(input: &[u8]) {
    let mut section = FieldSection::default();
    if section.read(input, LIMITS).is_err() {
        return;
    }
    let bytes: usize = section.lines().map(|(n, v)| n.len() + v.len()).sum();
    assert!(bytes <= LIMITS.bytes_max);
    assert!(section.lines().count() <= LIMITS.fields_max + 4);

    let mut written = vec![0, 0];
    for (name, value) in section.lines() {
        if let Ok(name) = std::str::from_utf8(name) {
            encode::write_field(&mut written, name, value);
        }
    }
    let mut again = FieldSection::default();
    if section.lines().all(|(n, _)| std::str::from_utf8(n).is_ok()) {
        assert_eq!(again.read(&written, LIMITS), Ok(()));
        assert!(again.lines().eq(section.lines()), "it reads the same");
    }

    let _ = head::trailers(&section);
    section.join_cookies();
    let cookies = section.lines().filter(|(name, _)| *name == b"cookie");
    assert!(cookies.count() <= 1);
    if let Ok(head) = Head::of(&section)
        && let Ok(parts) = head.to_parts()
    {
        assert_eq!(parts.headers.len(), head.fields().count());
    }
}

/// Kinds and payloads of frames; the last one may be incomplete.
fn frames(pieces: &[&[u8]]) -> Vec<(u64, Vec<u8>)> {
    let mut walk = FrameWalk::default();
    let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
    for piece in pieces {
        let mut input = Bytes::copy_from_slice(piece);
        while let Some(piece) = walk.next(&mut input) {
            match piece {
                Piece::Head { kind, .. } => found.push((kind, Vec::new())),
                Piece::Payload(part) => match found.last_mut() {
                    Some((_, payload)) => payload.extend(part),
                    None => unreachable!("a head comes first"),
                },
            }
        }
    }
    found
}
