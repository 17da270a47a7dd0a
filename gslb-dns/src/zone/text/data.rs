//! Record data: splits the text into fields and reads them by type.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::service::service;
use super::{DATA_BYTES_MAX, DataError, escape, name};
use crate::message::registry::type_mnemonic;
use crate::message::{self, rtype};

/// A field of the data: its bytes with escapes resolved, and as written.
pub(super) struct Field {
    pub(super) value: Vec<u8>,
    pub(super) text: String,
}

/// Splits data into fields at white space outside quotes; parentheses are white space, `;` begins a
/// comment.
fn fields(data: &str) -> Result<Vec<Field>, DataError> {
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
    fn next(&mut self, what: &'static str) -> Result<Field, DataError> {
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

    fn byte(&mut self, what: &'static str) -> Result<(), DataError> {
        let v: u8 = self.parsed(what)?;
        self.out.push(v);
        Ok(())
    }

    fn short(&mut self, what: &'static str) -> Result<(), DataError> {
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
    fn string(&mut self, what: &'static str) -> Result<(), DataError> {
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
    fn hex(&mut self, what: &'static str) -> Result<(), DataError> {
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
    fn base64(&mut self, what: &'static str) -> Result<(), DataError> {
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

/// Record data in wire form, names uncompressed. Relative names are relative to `origin` (wire
/// form).
///
/// # Errors
/// The first thing that is wrong.
pub fn data(rtype: u16, text: &str, origin: &[u8]) -> Result<Vec<u8>, DataError> {
    let mut r = FieldReader {
        fields: fields(text)?.into_iter(),
        origin,
        out: Vec::new(),
    };
    if r.fields.as_slice().first().is_some_and(|f| f.text == "\\#") {
        generic(&mut r)?;
        if !has_shape(rtype, &r.out) {
            return Err(DataError::Field {
                text: text.to_owned(),
                what: "data of that type",
            });
        }
    } else {
        typed(rtype, &mut r)?;
    }
    if let Some(excess) = r.fields.next() {
        return Err(DataError::Excess(excess.text));
    }
    if r.out.len() > DATA_BYTES_MAX {
        return Err(DataError::TooLong);
    }
    Ok(r.out)
}

/// `\# LENGTH HEX` (RFC 3597 section 5).
fn generic(r: &mut FieldReader<'_>) -> Result<(), DataError> {
    r.next("\\#")?;
    let length: u16 = r.parsed("length")?;
    if length > 0 {
        r.hex("hexadecimal digits")?;
    }
    if r.out.len() == usize::from(length) {
        Ok(())
    } else {
        Err(DataError::Field {
            text: length.to_string(),
            what: "the number of bytes that follow it",
        })
    }
}

/// Whether data in the generic form fits its type, for the types whose data is read when they are
/// served.
pub(super) fn has_shape(rtype: u16, data: &[u8]) -> bool {
    match rtype {
        rtype::A => data.len() == 4,
        rtype::AAAA => data.len() == 16,
        rtype::NS | rtype::CNAME | rtype::PTR | rtype::DNAME => message::is_name(data),
        rtype::MX => data.get(2..).is_some_and(message::is_name),
        rtype::TXT => {
            let mut rest = data;
            while let [len, after @ ..] = rest {
                let Some(next) = after.get(usize::from(*len)..) else {
                    return false;
                };
                rest = next;
            }
            !data.is_empty()
        }
        _ => true,
    }
}

fn typed(rtype: u16, r: &mut FieldReader<'_>) -> Result<(), DataError> {
    match rtype {
        rtype::A => {
            let a: Ipv4Addr = r.parsed("an IPv4 address")?;
            r.out.extend_from_slice(&a.octets());
        }
        rtype::AAAA => {
            let a: Ipv6Addr = r.parsed("an IPv6 address")?;
            r.out.extend_from_slice(&a.octets());
        }
        rtype::NS | rtype::CNAME | rtype::PTR | rtype::DNAME => r.name("target")?,
        rtype::MX | rtype::AFSDB => {
            r.short("preference, 0 to 65535")?;
            r.name("host")?;
        }
        rtype::RP => {
            r.name("mailbox")?;
            r.name("text name")?;
        }
        rtype::TXT | rtype::SPF => {
            r.string("text")?;
            while !r.fields.as_slice().is_empty() {
                r.string("text")?;
            }
        }
        rtype::HINFO => {
            r.string("CPU")?;
            r.string("system")?;
        }
        rtype::SRV => {
            r.short("priority, 0 to 65535")?;
            r.short("weight, 0 to 65535")?;
            r.short("port, 0 to 65535")?;
            r.name("target")?;
        }
        rtype::NAPTR => {
            r.short("order, 0 to 65535")?;
            r.short("preference, 0 to 65535")?;
            r.string("flags")?;
            r.string("service")?;
            r.string("regular expression")?;
            r.name("replacement")?;
        }
        rtype::DS | rtype::CDS => {
            r.short("key tag, 0 to 65535")?;
            r.byte("algorithm number")?;
            r.byte("digest type number")?;
            r.hex("a digest in hexadecimal digits")?;
        }
        rtype::DNSKEY | rtype::CDNSKEY => {
            r.short("flags, 0 to 65535")?;
            r.byte("protocol number")?;
            r.byte("algorithm number")?;
            r.base64("a key in base64")?;
        }
        rtype::SSHFP => {
            r.byte("algorithm number")?;
            r.byte("fingerprint type number")?;
            r.hex("a fingerprint in hexadecimal digits")?;
        }
        rtype::TLSA | rtype::SMIMEA => {
            r.byte("usage number")?;
            r.byte("selector number")?;
            r.byte("matching type number")?;
            r.hex("data in hexadecimal digits")?;
        }
        rtype::OPENPGPKEY => r.base64("a key in base64")?,
        rtype::CAA => {
            r.byte("flags, 0 to 255")?;
            let tag = r.next("tag")?;
            if tag.value.is_empty()
                || tag.value.len() > 255
                || !tag.value.iter().all(u8::is_ascii_alphanumeric)
            {
                return Err(DataError::Field {
                    text: tag.text,
                    what: "a tag of letters and digits",
                });
            }
            r.out.push(tag.value.len() as u8);
            r.out.extend_from_slice(&tag.value);
            let value = r.next("value")?;
            r.out.extend_from_slice(&value.value);
        }
        rtype::URI => {
            r.short("priority, 0 to 65535")?;
            r.short("weight, 0 to 65535")?;
            let target = r.next("target")?;
            r.out.extend_from_slice(&target.value);
        }
        rtype::SVCB | rtype::HTTPS => service(r)?,
        _ => {
            return Err(DataError::Type(
                type_mnemonic(rtype).map_or_else(|| format!("TYPE{rtype}"), str::to_owned),
            ));
        }
    }

    Ok(())
}
