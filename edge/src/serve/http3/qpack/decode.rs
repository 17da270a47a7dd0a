//! Field sections as they are received.
//!
//! Follows RFC 9204 section 4.5. A reference to the dynamic table is an error, as this node offers
//! none.

use super::huffman;
use super::static_table::STATIC;

/// Most bytes of an integer after its prefix, which are enough for 62 bits.
const INTEGER_BYTES_MAX: usize = 9;
/// The largest integer (RFC 9204 section 4.1.1).
const INTEGER_MAX: u64 = (1 << 62) - 1;
/// Bytes of text that are kept between two sections.
const TEXT_BYTES_KEPT: usize = 4 << 10;

/// Why a section cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::serve::http3) enum SectionFault {
    /// It does not decompress, which is an error of the connection (RFC 9204 section 2.2).
    Malformed,
    /// It has more bytes or fields than permitted.
    TooLarge,
}

/// How large a section may be.
#[derive(Debug, Clone, Copy)]
pub(in crate::serve::http3) struct SectionLimits {
    /// Fields, without pseudo-header fields.
    pub(in crate::serve::http3) fields_max: usize,
    /// Bytes of all names and values.
    pub(in crate::serve::http3) bytes_max: usize,
}

#[derive(Debug, Clone, Copy)]
enum Piece {
    Static(&'static str),
    Text { at: u32, bytes: u32 },
}

/// The fields of a section, in order. A buffer for one after the other.
#[derive(Debug, Default)]
pub(in crate::serve::http3) struct FieldSection {
    text: Vec<u8>,
    lines: Vec<(Piece, Piece)>,
}

impl FieldSection {
    /// Reads a section in the place of the last one.
    pub(in crate::serve::http3) fn read(
        &mut self,
        mut input: &[u8],
        limits: SectionLimits,
    ) -> Result<(), SectionFault> {
        self.clear();
        read_prefix(&mut input).ok_or(SectionFault::Malformed)?;
        let mut left = limits.bytes_max;
        let mut fields = 0;
        while !input.is_empty() {
            let line = self.read_line(&mut input, left)?;
            let (name, value) = (self.bytes(line.0), self.bytes(line.1));
            left = (left.checked_sub(name.len() + value.len())).ok_or(SectionFault::TooLarge)?;
            fields += usize::from(name.first() != Some(&b':'));
            // There are four pseudo-header fields of requests; more of them are as bad as fields.
            if fields > limits.fields_max || self.lines.len() >= limits.fields_max + 4 {
                return Err(SectionFault::TooLarge);
            }
            self.lines.push(line);
        }
        Ok(())
    }

    /// Names and values, in order.
    pub(in crate::serve::http3) fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        let bytes = |piece| self.bytes(piece);
        self.lines
            .iter()
            .map(move |(name, value)| (bytes(*name), bytes(*value)))
    }

    /// Joins the pieces of a request's cookies in the place of the first one (RFC 9114 section
    /// 4.2.1).
    pub(in crate::serve::http3) fn join_cookies(&mut self) {
        let is_cookie = |section: &Self, name: Piece| section.bytes(name) == b"cookie";
        let mut cookies = (0..self.lines.len()).filter(|at| is_cookie(self, self.lines[*at].0));
        let (Some(first), Some(_)) = (cookies.next(), cookies.next()) else {
            return;
        };
        let at = self.text.len();
        for line in first..self.lines.len() {
            let (name, value) = self.lines[line];
            if !is_cookie(self, name) {
                continue;
            }
            if line > first {
                self.text.extend_from_slice(b"; ");
            }
            match value {
                Piece::Static(value) => self.text.extend_from_slice(value.as_bytes()),
                Piece::Text { at, bytes } => {
                    let at = at as usize;
                    self.text.extend_from_within(at..at + bytes as usize);
                }
            }
        }
        self.lines[first].1 = Piece::Text {
            at: at as u32,
            bytes: (self.text.len() - at) as u32,
        };
        let mut lines = std::mem::take(&mut self.lines);
        let mut number = 0;
        lines.retain(|(name, _)| {
            number += 1;
            number - 1 <= first || !is_cookie(self, *name)
        });
        self.lines = lines;
    }

    fn clear(&mut self) {
        self.lines.clear();
        self.text.clear();
        self.text.shrink_to(TEXT_BYTES_KEPT);
    }

    fn bytes(&self, piece: Piece) -> &[u8] {
        match piece {
            Piece::Static(text) => text.as_bytes(),
            Piece::Text { at, bytes } => &self.text[at as usize..(at + bytes) as usize],
        }
    }

    /// Reads one line, whose strings have together at most `left` bytes.
    fn read_line(
        &mut self,
        input: &mut &[u8],
        left: usize,
    ) -> Result<(Piece, Piece), SectionFault> {
        let first = input[0];
        // Indexed: both are an entry's.
        if first & 0b1000_0000 != 0 {
            let index = integer(input, 6).ok_or(SectionFault::Malformed)?;
            let (name, value) = static_entry(index, first & 0b0100_0000)?;
            return Ok((Piece::Static(name), Piece::Static(value)));
        }
        // The name is an entry's.
        if first & 0b0100_0000 != 0 {
            let index = integer(input, 4).ok_or(SectionFault::Malformed)?;
            let (name, _) = static_entry(index, first & 0b0001_0000)?;
            let value = self.read_string(input, 7, left)?;
            return Ok((Piece::Static(name), value));
        }
        if first & 0b0010_0000 != 0 {
            let name = self.read_string(input, 3, left)?;
            let left = left - self.bytes(name).len();
            let value = self.read_string(input, 7, left)?;
            return Ok((name, value));
        }
        // Both other forms are references to the dynamic table.
        Err(SectionFault::Malformed)
    }

    /// Reads a string, whose length has a prefix of so many bits, behind the bit that says whether it
    /// is coded.
    fn read_string(
        &mut self,
        input: &mut &[u8],
        bits: u32,
        left: usize,
    ) -> Result<Piece, SectionFault> {
        let is_coded = input.first().ok_or(SectionFault::Malformed)? >> bits & 1 != 0;
        let bytes = integer(input, bits).ok_or(SectionFault::Malformed)?;
        let bytes = usize::try_from(bytes).map_err(|_| SectionFault::Malformed)?;
        let (text, rest) = input
            .split_at_checked(bytes)
            .ok_or(SectionFault::Malformed)?;
        *input = rest;
        let at = self.text.len();
        if is_coded {
            // The shortest code has five bits, so this bounds what is decoded.
            let most = left.min(text.len() * 8 / 5);
            if huffman::decode(text, most, &mut self.text).is_none() {
                let is_full = self.text.len() - at == left;
                return Err(match is_full {
                    true => SectionFault::TooLarge,
                    false => SectionFault::Malformed,
                });
            }
        } else if text.len() > left {
            return Err(SectionFault::TooLarge);
        } else {
            self.text.extend_from_slice(text);
        }
        Ok(Piece::Text {
            at: at as u32,
            bytes: (self.text.len() - at) as u32,
        })
    }
}

/// The prefix of a section says that it needs nothing of the dynamic table (RFC 9204 section
/// 4.5.1).
fn read_prefix(input: &mut &[u8]) -> Option<()> {
    if integer(input, 8)? != 0 {
        return None;
    }
    // The base is not used, but it may not be negative.
    let is_negative = input.first()? & 0b1000_0000 != 0;
    integer(input, 7)?;
    (!is_negative).then_some(())
}

fn static_entry(index: u64, is_static: u8) -> Result<(&'static str, &'static str), SectionFault> {
    let entry = usize::try_from(index)
        .ok()
        .and_then(|index| STATIC.get(index));
    entry
        .filter(|_| is_static != 0)
        .copied()
        .ok_or(SectionFault::Malformed)
}

/// Takes an integer whose prefix has so many bits (RFC 7541 section 5.1, RFC 9204 section 4.1.1);
/// `None` where it is not complete or too large.
pub(in crate::serve::http3) fn integer(input: &mut &[u8], bits: u32) -> Option<u64> {
    let most = (1u64 << bits) - 1;
    let (first, mut rest) = input.split_first()?;
    let mut value = u64::from(*first) & most;
    if value == most {
        let mut is_complete = false;
        for number in 0..INTEGER_BYTES_MAX {
            let (byte, behind) = rest.split_first()?;
            rest = behind;
            // The last one ends at bit 63, so nothing is lost.
            let more = u64::from(byte & 127) << (7 * number);
            value = (value.checked_add(more)).filter(|value| *value <= INTEGER_MAX)?;
            is_complete = byte & 128 == 0;
            if is_complete {
                break;
            }
        }
        if !is_complete {
            return None;
        }
    }
    *input = rest;
    Some(value)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
    use nearcast_http_rules::testing;
    use proptest::prelude::*;

    use super::super::encode;
    use super::*;

    const LIMITS: SectionLimits = SectionLimits {
        fields_max: 10,
        bytes_max: 200,
    };

    fn read(input: &[u8]) -> Result<Vec<String>, SectionFault> {
        let mut section = FieldSection::default();
        section.read(input, LIMITS)?;
        let line = |(name, value): (&[u8], &[u8])| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            format!("{}={}", text(name), text(value))
        };
        Ok(section.lines().map(line).collect())
    }

    #[test]
    fn sections_decode() {
        let coded = super::super::huffman::encode(b"a.test");
        let coded = [&[0, 0, 0x50, 0x80 | coded.len() as u8][..], &coded].concat();
        let table: [(&[u8], &[&str]); 8] = [
            // RFC 9204 appendix B.1.
            (b"\0\0\x51\x0b/index.html", &[":path=/index.html"]),
            (
                b"\0\0\xd1\xd7\xc1",
                &[":method=GET", ":scheme=https", ":path=/"],
            ),
            (b"\0\0\xff\x23", &["x-frame-options=sameorigin"]),
            (b"\0\0\x5f\x50\x01c", &["user-agent=c"]),
            (b"\0\0\x23abc\x02de", &["abc=de"]),
            (b"\0\0\x27\x01abcdefgh\0", &["abcdefgh="]),
            // A base that nothing refers to.
            (b"\0\x7f\x05\xd1", &[":method=GET"]),
            (&coded, &[":authority=a.test"]),
        ];
        for (input, expected) in table {
            assert_eq!(
                read(input),
                Ok(expected.iter().map(|l| l.to_string()).collect())
            );
            // Every part of it is incomplete, unless it ends with a line.
            for cut in 0..input.len() {
                assert!(
                    read(&input[..cut]).is_ok_and(|lines| lines.len() < expected.len())
                        || read(&input[..cut]) == Err(SectionFault::Malformed),
                    "{cut}"
                );
            }
        }
    }

    #[test]
    fn references_to_the_dynamic_table_and_broken_lines_are_refused() {
        let table: [(&str, &[u8]); 13] = [
            ("no prefix", b""),
            ("half a prefix", b"\0"),
            ("a required insert", b"\x01\0\xd1"),
            ("a negative base", b"\0\x80\xd1"),
            ("a dynamic entry", b"\0\0\x80"),
            ("a dynamic name", b"\0\0\x40\0"),
            ("an entry after the base", b"\0\0\x10"),
            ("a name after the base", b"\0\0\x00\0"),
            ("no such entry", b"\0\0\xff\x24"),
            ("no such name", b"\0\0\x5f\x54\0"),
            ("a string that is cut", b"\0\0\x51\x05abc"),
            ("a bad code", b"\0\0\x51\x81\0"),
            (
                "a huge integer",
                b"\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            ),
        ];
        for (name, input) in table {
            assert_eq!(read(input), Err(SectionFault::Malformed), "{name}");
        }
    }

    #[test]
    fn what_is_too_large_is_not_decoded() {
        let long = super::super::huffman::encode(&[b'a'; 300]);
        let coded = |bytes: &[u8]| {
            let mut section = b"\0\0\x51".to_vec();
            encode::write_integer(&mut section, 0x80, 7, bytes.len() as u64);
            [section, bytes.to_vec()].concat()
        };
        let fields = |count: usize| [&b"\0\0"[..], &b"\x21a\0".repeat(count)].concat();
        let table = [
            (fields(10), true),
            (fields(11), false),
            ([&b"\0\0"[..], &[0xd1; 14]].concat(), true),
            ([&b"\0\0"[..], &[0xd1; 15]].concat(), false),
            ([&b"\0\0\x51\x7f\x44"[..], &[b'a'; 195]].concat(), true),
            ([&b"\0\0\x51\x7f\x45"[..], &[b'a'; 196]].concat(), false),
            (coded(&long), false),
        ];
        for (at, (input, is_good)) in table.into_iter().enumerate() {
            let expected = if is_good {
                None
            } else {
                Some(SectionFault::TooLarge)
            };
            assert_eq!(read(&input).err(), expected, "{at}");
        }
    }

    #[test]
    fn integers_have_62_bits() {
        let table: [(&[u8], u32, Option<u64>); 8] = [
            (&[0b010_01010], 5, Some(10)),
            (&[0b000_11111, 154, 10], 5, Some(1337)),
            (&[42], 8, Some(42)),
            (&[255, 0], 8, Some(255)),
            (&[127, 0x80, 0x80, 0], 7, Some(127)),
            (&[127, 0x80], 7, None),
            (
                &[127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f],
                7,
                None,
            ),
            (
                &[
                    127, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0,
                ],
                7,
                None,
            ),
        ];
        for (bytes, bits, expected) in table {
            let mut input = bytes;
            assert_eq!(integer(&mut input, bits), expected, "{bytes:?}");
            assert_eq!(input.is_empty(), expected.is_some());
        }
    }

    #[test]
    fn pieces_of_cookies_become_one_field() {
        let table: [(&[&str], &[&str]); 4] = [
            (&["a=b"], &["a=b"]),
            (&["cookie=a"], &["cookie=a"]),
            (
                &["x=y", "cookie=a=b", "cookie=c"],
                &["x=y", "cookie=a=b; c"],
            ),
            (
                &["cookie=a", "x=y", "cookie=", "cookie=c", "z="],
                &["cookie=a; ; c", "x=y", "z="],
            ),
        ];
        for (lines, expected) in table {
            let mut input = vec![0, 0];
            for line in lines {
                let (name, value) = line.split_once('=').expect("a value");
                encode::write_field(&mut input, name, value.as_bytes());
            }
            let mut section = FieldSection::default();
            section.read(&input, LIMITS).expect("it is good");
            section.join_cookies();
            let found: Vec<String> = section
                .lines()
                .map(|(n, v)| [n, b"=", v].concat())
                .map(|line| String::from_utf8(line).expect("text"))
                .collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn an_integer_is_written_as_it_is_read() {
        for value in [
            0,
            1,
            6,
            7,
            8,
            14,
            15,
            127,
            128,
            255,
            1337,
            1 << 40,
            INTEGER_MAX,
        ] {
            for bits in 3..=8 {
                let mut output = Vec::new();
                encode::write_integer(&mut output, 0, bits, value);
                assert_eq!(
                    integer(&mut &output[..], bits),
                    Some(value),
                    "{value} {bits}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut section = FieldSection::default();
            if section.read(&bytes, LIMITS).is_ok() {
                section.join_cookies();
                let bytes: usize = section.lines().map(|(n, v)| n.len() + v.len()).sum();
                prop_assert!(bytes <= LIMITS.bytes_max + 2 * LIMITS.fields_max);
            }
        }

        #[test]
        fn what_is_written_is_read(
            fields in proptest::collection::vec(("[a-z][a-z-]{0,9}", "[ -~]{0,9}"), 0..8),
        ) {
            let map: HeaderMap = fields
                .iter()
                .map(|(name, value)| {
                    let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
                    (name, HeaderValue::from_str(value).expect("a value"))
                })
                .collect();
            let mut output = Vec::new();
            encode::begin(&mut output, StatusCode::NOT_FOUND);
            encode::write_fields(&mut output, &map);
            let mut expected = vec![":status=404".to_owned()];
            expected.extend(
                map.iter().map(|(n, v)| format!("{}={}", n, v.to_str().expect("text"))),
            );
            prop_assert_eq!(read(&output), Ok(expected));
        }
    }
}
