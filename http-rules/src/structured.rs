//! Structured fields: the parts that cache directives, groups and status fields need.
//!
//! Follows RFC 9651. A field that cannot be parsed is ignored as a whole.

use http::{HeaderMap, HeaderName};

use crate::fields::{is_token, unquoted};

/// Most members of one dictionary; a field with more cannot be parsed.
pub const DICTIONARY_MEMBERS_MAX: usize = 64;

/// A value of a structured dictionary, in the detail that cache directives need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// No value, or `?1`.
    True,
    /// An integer.
    Integer(i64),
    /// A string or a token.
    Text,
    /// Anything else: false, decimals, byte sequences, inner lists.
    Other,
}

/// Parses a field as a structured dictionary (RFC 9651 section 4.2.2). Of equal keys the last one
/// counts.
///
/// `None` when the field is missing, empty or cannot be parsed: then callers ignore it as a whole.
pub fn dictionary<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<Vec<(&'a [u8], Item)>> {
    let mut found: Vec<(&[u8], Item)> = Vec::new();
    for value in fields.get_all(name) {
        let mut parser = Structured {
            rest: value.as_bytes().trim_ascii(),
        };
        while !parser.rest.is_empty() {
            let (key, item) = parser.member()?;
            found.retain(|(old, _)| *old != key);
            if found.len() == DICTIONARY_MEMBERS_MAX {
                return None;
            }
            found.push((key, item));
            parser.next_member()?;
        }
    }
    (!found.is_empty()).then_some(found)
}

/// Parses a field as a structured list (RFC 9651 section 4.2.1) and gives its strings; members of
/// other types are left out.
///
/// Empty when the field is missing or cannot be parsed: then callers ignore it as a whole.
pub fn strings(fields: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let mut found = Vec::new();
    for value in fields.get_all(name) {
        let mut parser = Structured {
            rest: value.as_bytes().trim_ascii(),
        };
        while !parser.rest.is_empty() {
            let Some(string) = parser.list_member() else {
                return Vec::new();
            };
            found.extend(string);
        }
    }
    found
}

/// The value of a string, from the text between its quotes.
fn unescaped(text: &[u8]) -> String {
    let mut is_escaped = false;
    let keep = |byte: &&u8| {
        is_escaped = **byte == b'\\' && !is_escaped;
        !is_escaped
    };
    text.iter().filter(keep).map(|b| char::from(*b)).collect()
}

/// The unparsed rest of a structured field's line.
struct Structured<'a> {
    rest: &'a [u8],
}

impl<'a> Structured<'a> {
    fn take_while(&mut self, is_in: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self
            .rest
            .iter()
            .position(|b| !is_in(*b))
            .unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn eat(&mut self, byte: u8) -> bool {
        let is_next = self.rest.first() == Some(&byte);
        self.rest = &self.rest[usize::from(is_next)..];
        is_next
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        self.rest
            .first()
            .filter(|b| b.is_ascii_lowercase() || **b == b'*')?;
        Some(self.take_while(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.' | b'*')
        }))
    }

    fn member(&mut self) -> Option<(&'a [u8], Item)> {
        let key = self.key()?;
        let item = match self.eat(b'=') {
            false => Item::True,
            true if self.rest.first() == Some(&b'(') => self.inner_list()?,
            true => self.bare_item()?,
        };
        self.parameters()?;
        Some((key, item))
    }

    /// Parses one member of a list and the comma after it. The inner `Option` has the value of a
    /// string.
    fn list_member(&mut self) -> Option<Option<String>> {
        let before = self.rest;
        let item = if before.first() == Some(&b'(') {
            self.inner_list()?
        } else {
            self.bare_item()?
        };
        let is_string = item == Item::Text && before.first() == Some(&b'"');
        let text = &before[..before.len() - self.rest.len()];
        let string = is_string.then(|| unescaped(unquoted(text)));
        self.parameters()?;
        self.next_member()?;
        Some(string)
    }

    fn parameters(&mut self) -> Option<()> {
        while self.eat(b';') {
            self.take_while(|b| b == b' ');
            self.key()?;
            if self.eat(b'=') {
                self.bare_item()?;
            }
        }
        Some(())
    }

    /// Skips a comma and the white space around it. A comma at the end is an error.
    fn next_member(&mut self) -> Option<()> {
        self.take_while(|b| matches!(b, b' ' | b'\t'));
        if self.rest.is_empty() {
            return Some(());
        }
        if !self.eat(b',') {
            return None;
        }
        self.take_while(|b| matches!(b, b' ' | b'\t'));
        (!self.rest.is_empty()).then_some(())
    }

    fn inner_list(&mut self) -> Option<Item> {
        self.eat(b'(');
        loop {
            self.take_while(|b| b == b' ');
            if self.eat(b')') {
                return Some(Item::Other);
            }
            self.bare_item()?;
            self.parameters()?;
            self.rest.first().filter(|b| matches!(b, b' ' | b')'))?;
        }
    }

    fn bare_item(&mut self) -> Option<Item> {
        match *self.rest.first()? {
            b'"' => self.string().map(|()| Item::Text),
            b'?' => self.boolean(),
            b':' => self.bytes(),
            b'-' | b'0'..=b'9' => self.number(),
            b'*' | b'A'..=b'Z' | b'a'..=b'z' => {
                self.take_while(|b| is_token(b) || matches!(b, b':' | b'/'));
                Some(Item::Text)
            }
            _ => None,
        }
    }

    fn string(&mut self) -> Option<()> {
        let mut at = 1;
        loop {
            match *self.rest.get(at)? {
                b'"' => break,
                b'\\' if matches!(self.rest.get(at + 1), Some(b'"' | b'\\')) => at += 2,
                b'\\' => return None,
                0x20..=0x7e => at += 1,
                _ => return None,
            }
        }
        self.rest = &self.rest[at + 1..];
        Some(())
    }

    fn boolean(&mut self) -> Option<Item> {
        let item = match self.rest.get(1)? {
            b'1' => Item::True,
            b'0' => Item::Other,
            _ => return None,
        };
        self.rest = &self.rest[2..];
        Some(item)
    }

    fn bytes(&mut self) -> Option<Item> {
        self.eat(b':');
        self.take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='));
        self.eat(b':').then_some(Item::Other)
    }

    fn number(&mut self) -> Option<Item> {
        let is_negative = self.eat(b'-');
        let digits = self.take_while(|b| b.is_ascii_digit());
        if digits.is_empty() || digits.len() > 15 {
            return None;
        }
        if self.eat(b'.') {
            let fraction = self.take_while(|b| b.is_ascii_digit());
            return (digits.len() <= 12 && matches!(fraction.len(), 1..=3)).then_some(Item::Other);
        }
        let value = digits
            .iter()
            .fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        Some(Item::Integer(if is_negative { -value } else { value }))
    }
}

/// Appends a node's name: as a token if it is one, else as a string (RFC 9211 section 2).
pub(crate) fn write_name(name: &str, buffer: &mut Vec<u8>) {
    let is_start = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'*');
    if is_start
        && name
            .bytes()
            .all(|b| is_token(b) || matches!(b, b':' | b'/'))
    {
        buffer.extend_from_slice(name.as_bytes());
    } else {
        write_string(name, buffer);
    }
}

/// Appends a structured string, without the characters that a string cannot have.
pub(crate) fn write_string(text: &str, buffer: &mut Vec<u8>) {
    buffer.push(b'"');
    for byte in text.bytes().filter(|b| (0x20..0x7f).contains(b)) {
        if matches!(byte, b'"' | b'\\') {
            buffer.push(b'\\');
        }
        buffer.push(byte);
    }
    buffer.push(b'"');
}

/// Appends a structured integer, which has 15 digits at most (RFC 9651 section 3.3.1).
pub fn write_integer(value: i64, buffer: &mut Vec<u8>) {
    const MOST: i64 = 999_999_999_999_999;
    let value = value.clamp(-MOST, MOST);
    if value < 0 {
        buffer.push(b'-');
    }
    let mut digits = [0; 15];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    buffer.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, map};

    #[test]
    fn dictionaries_are_bounded() {
        let wide = |count| {
            (0..count)
                .map(|n| format!("k{n}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let name = &HeaderName::from_static("cdn-cache-control");
        let fields = |count| map(&[&format!("cdn-cache-control: {}", wide(count))]);
        assert_eq!(
            dictionary(&fields(DICTIONARY_MEMBERS_MAX), name).map(|d| d.len()),
            Some(DICTIONARY_MEMBERS_MAX)
        );
        assert_eq!(dictionary(&fields(DICTIONARY_MEMBERS_MAX + 1), name), None);
    }

    #[test]
    fn structured_strings() {
        let table: [(&[&str], &[&str]); 8] = [
            (&["g: \"a\", \"b c\""], &["a", "b c"]),
            (&["g: \"a\"", "g: \"b\""], &["a", "b"]),
            (&["g: \"a\\\"b\\\\c\""], &["a\"b\\c"]),
            (
                &["g: \"a, b\";x=1, token, 5, (\"in\" \"ner\"), \"z\""],
                &["a, b", "z"],
            ),
            (&["g: \"a\", \"open"], &[]),
            (&["g: \"a\" \"b\""], &[]),
            (&["g: \"a\","], &[]),
            (&["other: \"a\""], &[]),
        ];
        for (lines, expected) in table {
            assert_eq!(
                strings(&map(lines), &HeaderName::from_static("g")),
                expected,
                "{lines:?}"
            );
        }
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn integers_are_structured(ttl in any::<i64>()) {
            let mut buffer = Vec::new();
            write_integer(ttl, &mut buffer);
            let expected = ttl.clamp(-999_999_999_999_999, 999_999_999_999_999).to_string();
            prop_assert_eq!(String::from_utf8(buffer).expect("digits"), expected);
        }
    }
}
