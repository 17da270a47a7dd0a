//! Whether the header blocks of one connection decompress: their integers, indexes and strings, and
//! the size of the dynamic table. The HTTP library has one error for a block that does not and for one
//! that holds a malformed name; RFC 9113 section 4.3 has two.
//!
//! Follows RFC 7541. What the fields say is looked at only as far as the library does not report it.

use std::collections::VecDeque;

use super::frames::{Closed, END_HEADERS, FrameHead, HAS_PRIORITY, HEADERS, PADDED};

/// SETTINGS_HEADER_TABLE_SIZE of this node, the initial value (RFC 9113 section 6.5.2).
const TABLE_BYTES_MAX: u32 = 4096;
/// What an entry counts for besides its name and value (RFC 7541 section 4.1).
const ENTRY_OVERHEAD: u32 = 32;
/// Bytes of an integer after its prefix, as the HTTP library has it.
const INTEGER_BYTES_MAX: u32 = 4;
/// A buffer of more bytes is freed with its block.
const BUFFER_BYTES_KEPT: usize = 4 << 10;

/// Names of the static table (RFC 7541 appendix A).
const STATIC_NAMES: [&str; 61] = [
    ":authority",
    ":method",
    ":method",
    ":path",
    ":path",
    ":scheme",
    ":scheme",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "accept",
    "access-control-allow-origin",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
];

/// How many symbols of the Huffman code have so many bits, shortest first (RFC 7541 appendix B). The
/// code is canonical, so this says where each symbol ends.
const CODE_COUNTS: [(u32, u64); 21] = [
    (5, 10),
    (6, 26),
    (7, 32),
    (8, 6),
    (10, 5),
    (11, 3),
    (12, 2),
    (13, 6),
    (14, 2),
    (15, 3),
    (19, 3),
    (20, 8),
    (21, 13),
    (22, 26),
    (23, 29),
    (24, 12),
    (25, 4),
    (26, 15),
    (27, 19),
    (28, 29),
    (30, 4),
];
/// The bits of the next symbol are those of the first row whose end is above the next 32 bits.
const CODE_ENDS: [(u32, u64); CODE_COUNTS.len()] = code_ends();
/// The code of `:`, of seven bits.
const COLON: u8 = 0x5c;

const fn code_ends() -> [(u32, u64); CODE_COUNTS.len()] {
    let mut ends = CODE_COUNTS;
    let (mut row, mut end) = (0, 0);
    while row < ends.len() {
        let (bits, count) = CODE_COUNTS[row];
        end += count << (32 - bits);
        ends[row] = (bits, end);
        row += 1;
    }
    ends
}

/// The decompression of one connection's header blocks.
#[derive(Debug, Default)]
pub(super) struct Compression {
    table: Table,
    /// The block so far, where it does not come in one piece.
    block: Vec<u8>,
    /// Where the current frame begins in it.
    frame_at: usize,
    /// The block is one of trailers.
    is_trailers: bool,
}

impl Compression {
    /// A frame of a header block begins, of a request or of trailers.
    ///
    /// # Errors
    /// The connection has to be closed.
    pub(super) fn begin_frame(&mut self, head: FrameHead, is_trailers: bool) -> Result<(), Closed> {
        if head.kind == HEADERS {
            self.is_trailers = is_trailers;
            self.block.clear();
        }
        self.frame_at = self.block.len();
        match head.length {
            0 => self.end_frame(head),
            _ => Ok(()),
        }
    }

    /// Reads a piece of the frame's payload, the last one or not.
    ///
    /// # Errors
    /// The connection has to be closed.
    pub(super) fn read(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        is_last: bool,
    ) -> Result<(), Closed> {
        let is_whole = self.block.is_empty() && payload.len() == head.length as usize;
        if is_whole && head.has(END_HEADERS) {
            let fields = fields_of(head, payload)?;
            return self.check(fields);
        }
        self.block.extend_from_slice(payload);
        match is_last {
            true => self.end_frame(head),
            false => Ok(()),
        }
    }

    /// Changes of the field table's size (RFC 7541 section 6.3) since the last call.
    pub(super) fn take_resizes(&mut self) -> u32 {
        std::mem::take(&mut self.table.resizes)
    }

    fn end_frame(&mut self, head: FrameHead) -> Result<(), Closed> {
        let mut block = std::mem::take(&mut self.block);
        if head.kind == HEADERS {
            let fields = fields_of(head, &block[self.frame_at..])?;
            block = fields.to_vec();
        }
        if !head.has(END_HEADERS) {
            self.block = block;
            return Ok(());
        }
        self.check(&block)?;
        if block.capacity() <= BUFFER_BYTES_KEPT {
            block.clear();
            self.block = block;
        }
        Ok(())
    }

    fn check(&mut self, block: &[u8]) -> Result<(), Closed> {
        let has_pseudo = self.table.read(block).ok_or(Closed::Compression)?;
        match self.is_trailers && has_pseudo {
            // The library drops it without a word (RFC 9113 section 8.1).
            true => Err(Closed::Protocol),
            false => Ok(()),
        }
    }
}

/// What a HEADERS frame holds of its block, or a CONTINUATION frame (RFC 9113 section 6.2).
fn fields_of(head: FrameHead, mut payload: &[u8]) -> Result<&[u8], Closed> {
    if head.kind != HEADERS {
        return Ok(payload);
    }
    let mut padding = 0;
    if head.has(PADDED) {
        let (length, rest) = payload.split_first().ok_or(Closed::FrameSize)?;
        (padding, payload) = (usize::from(*length), rest);
    }
    if head.has(HAS_PRIORITY) {
        payload = payload.get(5..).ok_or(Closed::FrameSize)?;
    }
    let length = payload.len().checked_sub(padding);
    Ok(&payload[..length.ok_or(Closed::Protocol)?])
}

/// A name of a table.
#[derive(Debug, Clone, Copy)]
struct Name {
    bytes: u32,
    is_pseudo: bool,
}

/// The dynamic table, without what its entries say, newest first.
#[derive(Debug)]
struct Table {
    /// Names, and the sizes of their entries.
    entries: VecDeque<(Name, u32)>,
    bytes: u32,
    bytes_max: u32,
    /// Changes of `bytes_max` that were not counted yet.
    resizes: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max: TABLE_BYTES_MAX,
            resizes: 0,
        }
    }
}

impl Table {
    /// Reads a whole block; gives whether it has a pseudo field, or `None` where it does not
    /// decompress.
    fn read(&mut self, mut block: &[u8]) -> Option<bool> {
        let (mut has_fields, mut has_pseudo) = (false, false);
        while let Some(first) = block.first() {
            let name = match first {
                0x80.. => {
                    let index = integer(&mut block, 7)?;
                    self.name(index)?
                }
                0x40..0x80 => {
                    let (name, value) = self.literal(&mut block, 6)?;
                    self.add(name, value);
                    name
                }
                // A size is stated before the first field (RFC 7541 section 4.2).
                0x20..0x40 if has_fields => return None,
                0x20..0x40 => {
                    let size = integer(&mut block, 5)?;
                    if size > TABLE_BYTES_MAX {
                        return None;
                    }
                    self.bytes_max = size;
                    self.resizes = self.resizes.saturating_add(1);
                    self.evict(0);
                    continue;
                }
                ..0x20 => self.literal(&mut block, 4)?.0,
            };
            has_fields = true;
            has_pseudo |= name.is_pseudo;
        }
        Some(has_pseudo)
    }

    /// A literal: its name, and the bytes of its value.
    fn literal(&self, block: &mut &[u8], bits: u32) -> Option<(Name, u32)> {
        let name = match integer(block, bits)? {
            0 => {
                let is_colon = match block {
                    [length, first, ..] if length & 0x80 == 0 => *first == b':',
                    [_, first, ..] => first >> 1 == COLON,
                    _ => false,
                };
                let bytes = string(block)?;
                Name {
                    bytes,
                    is_pseudo: is_colon && bytes > 0,
                }
            }
            index => self.name(index)?,
        };
        Some((name, string(block)?))
    }

    fn name(&self, index: u32) -> Option<Name> {
        let index = (index as usize).checked_sub(1)?;
        match STATIC_NAMES.get(index) {
            Some(name) => Some(Name {
                bytes: name.len() as u32,
                is_pseudo: name.starts_with(':'),
            }),
            None => {
                let entry = self.entries.get(index - STATIC_NAMES.len());
                entry.map(|(name, _)| *name)
            }
        }
    }

    fn add(&mut self, name: Name, value: u32) {
        let size = ENTRY_OVERHEAD
            .saturating_add(name.bytes)
            .saturating_add(value);
        self.evict(size);
        // One that has no room has emptied the table (RFC 7541 section 4.4).
        if size <= self.bytes_max {
            self.bytes += size;
            self.entries.push_front((name, size));
        }
    }

    /// Makes room for so many bytes.
    fn evict(&mut self, bytes: u32) {
        while self.bytes.saturating_add(bytes) > self.bytes_max {
            let Some((_, size)) = self.entries.pop_back() else {
                return;
            };
            self.bytes -= size;
        }
    }
}

/// Takes an integer whose prefix has so many bits (RFC 7541 section 5.1).
fn integer(input: &mut &[u8], bits: u32) -> Option<u32> {
    let (first, mut rest) = input.split_first()?;
    let most = (1 << bits) - 1;
    let mut value = u32::from(*first) & most;
    let mut is_open = value == most;
    let mut shift = 0;
    while is_open {
        let (byte, after) = rest.split_first()?;
        if shift == 7 * INTEGER_BYTES_MAX {
            return None;
        }
        value += u32::from(byte & 0x7f) << shift;
        is_open = byte & 0x80 != 0;
        shift += 7;
        rest = after;
    }
    *input = rest;
    Some(value)
}

/// Takes a string (RFC 7541 section 5.2); gives how many bytes it has when it is decoded.
fn string(input: &mut &[u8]) -> Option<u32> {
    let is_coded = input.first()? & 0x80 != 0;
    let length = integer(input, 7)?;
    let (text, rest) = input.split_at_checked(length as usize)?;
    *input = rest;
    match is_coded {
        true => decoded_bytes(text),
        false => Some(length),
    }
}

/// The symbols of a Huffman-coded string, which ends with fewer than eight bits of padding, all ones,
/// and does not hold the code of the end.
fn decoded_bytes(text: &[u8]) -> Option<u32> {
    let mut text = text.iter();
    // Bits that were not used yet, at the upper end.
    let (mut bits, mut have, mut symbols) = (0u64, 0, 0);
    loop {
        while have <= 56
            && let Some(byte) = text.next()
        {
            bits |= u64::from(*byte) << (56 - have);
            have += 8;
        }
        // Behind the last bit there are ones, as in the padding.
        let next = bits | u64::MAX.checked_shr(have).unwrap_or(0);
        if next >> 34 == u64::MAX >> 34 {
            // The code of the end, or padding.
            return (have < 8).then_some(symbols);
        }
        let (length, _) = CODE_ENDS.iter().find(|(_, end)| next >> 32 < *end)?;
        if *length > have {
            return None;
        }
        bits <<= length;
        have -= length;
        symbols += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_huffman_code_is_complete() {
        let symbols: u64 = CODE_COUNTS.iter().map(|(_, count)| count).sum();
        assert_eq!(symbols, 257, "each byte and the end");
        assert_eq!(CODE_ENDS.last(), Some(&(30, 1 << 32)));
    }

    #[test]
    fn strings_are_as_long_as_they_say() {
        let table: [(&[u8], Option<u32>); 12] = [
            (b"", Some(0)),
            // www.example.com, no-cache, custom-value, and a date (RFC 7541 appendix C).
            (
                b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
                Some(15),
            ),
            (b"\xa8\xeb\x10\x64\x9c\xbf", Some(8)),
            (b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf", Some(12)),
            (
                b"\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff",
                Some(29),
            ),
            // The code of the end, alone and behind a symbol.
            (b"\xff\xff\xff\xff", None),
            (b"\x1f\xff\xff\xff\xff", None),
            // Padding of eight bits, padding with a zero, and a symbol that is cut.
            (b"\xf8\xff", None),
            (b"\x1f\xff", None),
            (b"\x18", None),
            (b"\xff\xc0", None),
            (b"\x1f", Some(1)),
        ];
        for (text, expected) in table {
            assert_eq!(decoded_bytes(text), expected, "{text:x?}");
        }
    }

    #[test]
    fn blocks_that_do_not_decompress_are_found() {
        // Blocks that come before, the block, and whether it has a pseudo field.
        type Case = (&'static [&'static [u8]], &'static [u8], Option<bool>);
        let table: &[Case] = &[
            (&[], b"", Some(false)),
            (&[], b"\x82\x86\x84\x41\x01a", Some(true)),
            (&[], b"\x90", Some(false)),
            (&[], b"\x00\x01a\x01b", Some(false)),
            (&[], b"\x00\x02:a\x01b", Some(true)),
            (&[], b"\x00\x82\xb8\xff\x01b", Some(true)),
            (&[], b"\x00\x81\xb9\x01b", Some(true)),
            // Index 0, one beyond the tables, and one that a block before has added.
            (&[], b"\x80", None),
            (&[], b"\xbe", None),
            (&[b"\x40\x01a\x01b"], b"\xbe", Some(false)),
            (&[b"\x40\x01a\x01b"], b"\xbf", None),
            (&[b"\x40\x01a\x01b", b"\x20"], b"\xbe", None),
            (&[b"\x40\x01a\x01b"], b"\x7e\x01c", Some(false)),
            (&[b"\x40\x01a\x01b"], b"\x7f\x00\x01c", None),
            // A table with room for no entry, and for one: the older is evicted.
            (&[b"\x3f\x02", b"\x40\x01a\x01b"], b"\xbe", None),
            (&[b"\x3f\x04\x40\x01a\x01b"], b"\xbf", None),
            (
                &[b"\x3f\x04\x40\x01a\x01b\x40\x01c\x01d"],
                b"\xbe",
                Some(false),
            ),
            (&[b"\x3f\x04\x40\x01a\x01b\x40\x01c\x01d"], b"\xbf", None),
            // Sizes: the largest, one above, two of them, and one behind a field.
            (&[], b"\x3f\xe1\x1f", Some(false)),
            (&[], b"\x3f\xe2\x1f", None),
            (&[], b"\x20\x3f\xe1\x1f\x82", Some(true)),
            (&[], b"\x82\x20", None),
            // Integers that are cut, or too long.
            (&[], b"\xff", None),
            (&[], b"\xff\x80", None),
            (&[], b"\xff\x80\x80\x80\x00", None),
            (&[], b"\xff\x80\x80\x80\x80\x00", None),
            // Strings that are cut.
            (&[], b"\x00", None),
            (&[], b"\x00\x02a", None),
            (&[], b"\x00\x01a", None),
            (&[], b"\x00\x01a\x7f", None),
        ];
        for (before, block, expected) in table {
            let mut table = Table::default();
            for block in *before {
                assert!(table.read(block).is_some(), "{block:x?}");
            }
            assert_eq!(table.read(block), *expected, "{before:x?} {block:x?}");
        }
    }

    fn head(kind: u8, flags: u8, length: usize) -> FrameHead {
        FrameHead {
            length: length as u32,
            kind,
            flags,
            stream: 1,
        }
    }

    #[test]
    fn padding_and_priorities_are_no_part_of_a_block() {
        let table: [(u8, &[u8], Result<(), Closed>); 8] = [
            (0, b"\x82", Ok(())),
            (PADDED, b"\x02\x82\xff\xff", Ok(())),
            (PADDED, b"\x01\x82\xff\xff", Err(Closed::Compression)),
            (PADDED, b"\x04\x82\xff\xff", Err(Closed::Protocol)),
            (HAS_PRIORITY, b"\0\0\0\0\xff\x82", Ok(())),
            (HAS_PRIORITY, b"\0\0\0\0", Err(Closed::FrameSize)),
            (PADDED | HAS_PRIORITY, b"\x01\0\0\0\0\xff\x82\xff", Ok(())),
            (PADDED, b"", Err(Closed::FrameSize)),
        ];
        for (flags, payload, expected) in table {
            let frame = head(HEADERS, flags | END_HEADERS, payload.len());
            let mut compression = Compression::default();
            let found =
                compression
                    .begin_frame(frame, false)
                    .and_then(|()| match payload.is_empty() {
                        true => Ok(()),
                        false => compression.read(frame, payload, true),
                    });
            assert_eq!(found, expected, "{flags} {payload:x?}");
        }
    }

    proptest! {
        /// A block is the same in any pieces; and no bytes panic.
        #[test]
        fn a_block_is_the_same_in_any_pieces(
            block in proptest::collection::vec(any::<u8>(), 1..60),
            cut in 0usize..60,
            within in 0usize..60,
        ) {
            let mut whole = Compression::default();
            let frame = head(HEADERS, END_HEADERS, block.len());
            whole.begin_frame(frame, false).expect("no block yet");
            let expected = whole.read(frame, &block, true);

            let mut cut_up = Compression::default();
            let (first, second) = block.split_at(cut.min(block.len()));
            let frames = [(head(HEADERS, 0, first.len()), first), (head(9, END_HEADERS, second.len()), second)];
            let mut found = Ok(());
            for (frame, payload) in frames {
                found = cut_up.begin_frame(frame, false);
                let (a, b) = payload.split_at(within.min(payload.len()));
                for (piece, is_last) in [(a, b.is_empty()), (b, true)] {
                    if found.is_ok() && !piece.is_empty() {
                        found = cut_up.read(frame, piece, is_last);
                    }
                }
            }
            prop_assert_eq!(found, expected);
            if expected.is_ok() {
                prop_assert_eq!(format!("{:?}", whole.table), format!("{:?}", cut_up.table));
            }
        }
    }
}
