//! The Huffman code of field strings (RFC 7541 section 5.2 and appendix B, RFC 9204 section 4.1.2).

/// Bits of each symbol's code; the last symbol ends no string. The code is canonical: symbols are
/// ordered by their bits, then by value.
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const SYMBOLS: usize = 257;
/// The symbol that may not occur in a string.
const END: u16 = 256;
/// The longest code.
const LENGTH_MAX: usize = 30;
/// Bits of the codes that are found in one step.
const SHORT: u32 = 8;

/// The symbols in the order of their codes.
const ORDER: [u16; SYMBOLS] = order();
/// The codes of each length.
const ROWS: [Row; LENGTH_MAX + 1] = rows();
/// For the next eight bits: the symbol and the bits of its code, or no bits if that is longer.
const SHORT_CODES: [(u8, u8); 1 << SHORT] = short_codes();

/// The codes of one length, as the first of 32 bits.
#[derive(Clone, Copy)]
struct Row {
    begin: u64,
    end: u64,
    /// Where the symbol of the first one is in [`ORDER`].
    first: usize,
}

const fn order() -> [u16; SYMBOLS] {
    let mut order = [0; SYMBOLS];
    let (mut at, mut length) = (0, 1);
    while length <= LENGTH_MAX {
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                order[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    order
}

const fn rows() -> [Row; LENGTH_MAX + 1] {
    let mut rows = [Row {
        begin: 0,
        end: 0,
        first: 0,
    }; LENGTH_MAX + 1];
    let (mut at, mut begin, mut length) = (0, 0, 1);
    while length <= LENGTH_MAX {
        let (first, mut end) = (at, begin);
        while at < SYMBOLS && LENGTHS[ORDER[at] as usize] as usize == length {
            end += 1 << (32 - length);
            at += 1;
        }
        rows[length] = Row { begin, end, first };
        begin = end;
        length += 1;
    }
    rows
}

const fn short_codes() -> [(u8, u8); 1 << SHORT] {
    let mut codes = [(0, 0); 1 << SHORT];
    let mut next = 0;
    while next < codes.len() {
        let window = (next as u64) << (32 - SHORT);
        let mut length = 1;
        while length <= SHORT as usize {
            let row = ROWS[length];
            if window >= row.begin && window < row.end {
                let at = row.first + ((window - row.begin) >> (32 - length)) as usize;
                codes[next] = (ORDER[at] as u8, length as u8);
            }
            length += 1;
        }
        next += 1;
    }
    codes
}

/// Appends what a string decodes to. `None` if it does not decode, or to more than `most` bytes.
pub(super) fn decode(text: &[u8], most: usize, output: &mut Vec<u8>) -> Option<()> {
    let end = output.len() + most;
    let mut rest = text.iter();
    // The next bits, from the highest one on.
    let (mut bits, mut count) = (0u64, 0u32);
    loop {
        while count <= 56
            && let Some(byte) = rest.next()
        {
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
        }
        let (short, short_length) = SHORT_CODES[(bits >> (64 - SHORT)) as usize];
        let (symbol, length) = match short_length {
            0 => long_code(bits >> 32)?,
            length => (u16::from(short), u32::from(length)),
        };
        if length > count {
            break;
        }
        if symbol == END || output.len() == end {
            return None;
        }
        output.push(symbol as u8);
        bits <<= length;
        count -= length;
    }
    // The rest is shorter than a byte, and the beginning of the last symbol's code.
    let is_padding = count < 8 && (count == 0 || bits >> (64 - count) == (1 << count) - 1);
    is_padding.then_some(())
}

/// The symbol whose code is at the beginning of 32 bits, and its length.
fn long_code(window: u64) -> Option<(u16, u32)> {
    let length = (SHORT as usize + 1..=LENGTH_MAX).find(|length| window < ROWS[*length].end)?;
    let row = ROWS[length];
    let at = row.first + ((window - row.begin) >> (32 - length)) as usize;
    Some((ORDER[at], length as u32))
}

#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let (mut output, mut bits, mut count) = (Vec::new(), 0u64, 0u32);
    for byte in text {
        let length = usize::from(LENGTHS[usize::from(*byte)]);
        let at = ORDER.iter().position(|symbol| *symbol == u16::from(*byte));
        let at = at.expect("every byte has a code");
        let row = ROWS[length];
        let code = (row.begin >> (32 - length)) + (at - row.first) as u64;
        bits = bits << length | code;
        count += length as u32;
        while count >= 8 {
            output.push((bits >> (count - 8)) as u8);
            count -= 8;
        }
    }
    if count > 0 {
        output.push((bits << (8 - count)) as u8 | (0xff >> count));
    }
    output
}

#[cfg(test)]
mod tests {
    use nearcast_http_rules::testing;
    use proptest::prelude::*;

    use super::*;

    fn decoded(text: &[u8]) -> Option<Vec<u8>> {
        let mut output = Vec::new();
        decode(text, 1000, &mut output).map(|()| output)
    }

    #[test]
    fn strings_of_the_standard_decode() {
        // RFC 7541 appendix C.4 and C.6.
        let table: [(&[u8], &str); 5] = [
            (
                b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
                "www.example.com",
            ),
            (b"\xa8\xeb\x10\x64\x9c\xbf", "no-cache"),
            (
                b"\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (b"\x64\x02", "302"),
            (b"", ""),
        ];
        for (text, expected) in table {
            assert_eq!(decoded(text).as_deref(), Some(expected.as_bytes()));
            assert_eq!(encode(expected.as_bytes()), text);
        }
    }

    #[test]
    fn padding_is_short_and_of_ones_and_the_end_is_no_symbol() {
        // "0" is 00000.
        let table: [(&[u8], bool); 7] = [
            (&[0b0000_0111], true),
            (&[0b0000_0110], false),
            (&[0b0000_0000], false),
            (&[0b0000_0111, 0xff], false),
            (&[0xff], false),
            (&[0xff, 0xff, 0xff, 0xfc], false),
            (&[0xff, 0xff, 0xff, 0xff], false),
        ];
        for (text, is_good) in table {
            assert_eq!(decoded(text).is_some(), is_good, "{text:?}");
        }
    }

    #[test]
    fn no_more_is_decoded_than_there_is_room_for() {
        let text = encode(b"aaaa");
        let mut output = b"before".to_vec();
        assert_eq!(decode(&text, 4, &mut output), Some(()));
        assert_eq!(output, b"beforeaaaa");
        assert_eq!(decode(&text, 3, &mut Vec::new()), None);
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn every_string_comes_back(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(decoded(&encode(&text)), Some(text));
        }

        #[test]
        fn what_decodes_has_one_form(text in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Some(output) = decoded(&text) {
                prop_assert_eq!(encode(&output), text);
            }
        }
    }
}
