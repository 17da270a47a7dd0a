//! Splits record data into fields, and reads fields of the common kinds into wire form.

use super::{DataError, escape, name};

/// A field of the data: its bytes with escapes resolved, and as written.
pub(super) struct Field {
    pub(super) value: Vec<u8>,
    pub(super) text: String,
}

/// Splits data into fields at white space outside quotes; parentheses are white space, `;` begins a
/// comment.
pub(super) fn fields(data: &str) -> Result<Vec<Field>, DataError> {
    let mut fields = Vec::new();
    let mut bytes = data.bytes().peekable();
    while let Some(&b) = bytes.peek() {
        match b {
            b' ' | b'\t' | b'\r' | b'\n' | b'(' | b')' => {
                bytes.next();
            }
            b';' => break,
            _ => fields.push(field(&mut bytes)?),
        }
    }
    Ok(fields)
}

fn field(
    bytes: &mut std::iter::Peekable<impl Iterator<Item = u8> + Clone>,
) -> Result<Field, DataError> {
    let (mut value, mut text) = (Vec::new(), Vec::new());
    let mut is_quoted = false;
    while let Some(&b) = bytes.peek() {
        match b {
            b'"' => is_quoted = !is_quoted,
            b' ' | b'\t' | b'\r' | b'\n' | b'(' | b')' | b';' if !is_quoted => break,
            b'\\' => {
                bytes.next();
                let before = bytes.clone();
                let byte = escape(bytes).ok_or(DataError::Quote)?;
                text.push(b'\\');
                let digits = if before.clone().next().is_some_and(|d| d.is_ascii_digit()) {
                    3
                } else {
                    1
                };
                text.extend(before.take(digits));
                value.push(byte);
                continue;
            }
            _ => {
                value.push(b);
                text.push(b);
            }
        }
        bytes.next();
    }

    if is_quoted {
        return Err(DataError::Quote);
    }
    Ok(Field {
        value,
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

/// Reads fields one after the other into wire form.
pub(super) struct FieldReader<'o> {
    pub(super) fields: std::vec::IntoIter<Field>,
    pub(super) origin: &'o [u8],
    pub(super) out: Vec<u8>,
}

impl FieldReader<'_> {
    pub(super) fn next(&mut self, what: &'static str) -> Result<Field, DataError> {
        self.fields.next().ok_or(DataError::Missing(what))
    }

    pub(super) fn parsed<T: std::str::FromStr>(
        &mut self,
        what: &'static str,
    ) -> Result<T, DataError> {
        let field = self.next(what)?;
        field.text.parse().map_err(|_| DataError::Field {
            text: field.text,
            what,
        })
    }

    pub(super) fn byte(&mut self, what: &'static str) -> Result<(), DataError> {
        let v: u8 = self.parsed(what)?;
        self.out.push(v);
        Ok(())
    }

    pub(super) fn short(&mut self, what: &'static str) -> Result<(), DataError> {
        let v: u16 = self.parsed(what)?;
        self.out.extend_from_slice(&v.to_be_bytes());
        Ok(())
    }

    pub(super) fn name(&mut self, what: &'static str) -> Result<(), DataError> {
        let field = self.next(what)?;
        let wire = name(&field.text, self.origin)?;
        self.out.extend_from_slice(&wire);
        Ok(())
    }

    /// A character string: one length byte and up to 255 bytes.
    pub(super) fn string(&mut self, what: &'static str) -> Result<(), DataError> {
        let field = self.next(what)?;
        let len = u8::try_from(field.value.len()).map_err(|_| DataError::Field {
            text: field.text,
            what: "a string of at most 255 bytes",
        })?;
        self.out.push(len);
        self.out.extend_from_slice(&field.value);
        Ok(())
    }

    /// The remaining fields as one run of hexadecimal digits.
    pub(super) fn hex(&mut self, what: &'static str) -> Result<(), DataError> {
        let text: String = self.fields.by_ref().map(|f| f.text).collect();
        let digits: Option<Vec<u8>> = text
            .chars()
            .map(|c| c.to_digit(16).map(|d| d as u8))
            .collect();
        match digits {
            Some(d) if d.len() % 2 == 0 && !d.is_empty() => {
                self.out.extend(d.chunks_exact(2).map(|p| p[0] << 4 | p[1]));
                Ok(())
            }
            _ => Err(DataError::Field { text, what }),
        }
    }

    /// The remaining fields as one run of base64.
    pub(super) fn base64(&mut self, what: &'static str) -> Result<(), DataError> {
        let text: String = self.fields.by_ref().map(|f| f.text).collect();
        match base64(text.as_bytes()) {
            Some(bytes) if !bytes.is_empty() => {
                self.out.extend(bytes);
                Ok(())
            }
            _ => Err(DataError::Field { text, what }),
        }
    }
}

/// Decodes base64 with its padding (RFC 4648 section 4).
pub(super) fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|b| **b == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for chunk in text[..text.len() - padding].chunks(4) {
        let mut word = 0u32;
        for &b in chunk {
            word = word << 6 | u32::from(digit(b)?);
        }
        word <<= 6 * (4 - chunk.len());
        out.extend_from_slice(&word.to_be_bytes()[1..chunk.len()]);
    }
    Some(out)
}
