//! Names and record data from presentation format (RFC 1035 section 5.1, RFC 3597, RFC 9460) to
//! wire form, and back. Used when zones are compiled, never while a query is answered.
//!
//! Every type can also be written in the generic form `\# LENGTH HEX`.
//!
//! The crate `domain` (0.12) reads presentation format too, but not well enough for this use. Its
//! scanner panics on a parenthesis that is not closed (`TXT (a b`), although this text comes from
//! operators over the network. It reads `@` in record data as a label, rejects text outside ASCII,
//! does not know AFSDB, SPF, URI and SMIMEA, and checks neither generic data against its type nor
//! SVCB parameters against AliasMode. Its errors name neither the field nor its text. Code around
//! it for all of this would be as long as this module. It remains an option for whole zone files,
//! signing and transfers.

mod data;
mod fields;
mod service;
#[cfg(test)]
mod tests;

pub use self::data::data;
use crate::message::{self, LABEL_BYTES_MAX, NAME_BYTES_MAX, rtype};

/// A fault in a name or in a record's data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// A name breaks a rule.
    #[error("{text:?} is not a domain name: {reason}")]
    Name {
        /// As written.
        text: String,
        /// The rule.
        reason: &'static str,
    },
    /// A field is missing.
    #[error("the data ends before its {0}")]
    Missing(&'static str),
    /// A field cannot be read.
    #[error("{text:?} is not {what}")]
    Field {
        /// As written.
        text: String,
        /// What was expected.
        what: &'static str,
    },
    /// Something follows the last field.
    #[error("{0:?} follows the last field of the data")]
    Excess(String),
    /// The type is not known by name.
    #[error(
        "the type {0} is not known by name; write TYPE<number> and the data as \\# <length> <hex>"
    )]
    Type(String),
    /// Too long for a record.
    #[error("the data is longer than a record may be ({DATA_BYTES_MAX} bytes)")]
    TooLong,
    /// Quotes or escapes do not end.
    #[error("a quote or an escape is not complete")]
    Quote,
}

/// Longest record data.
const DATA_BYTES_MAX: usize = 65_535;

/// The wire form of a name in its letter case. A name without a final dot is relative to `origin`
/// (wire form); `@` is the origin.
pub fn name(text: &str, origin: &[u8]) -> Result<Vec<u8>, DataError> {
    let fail = |reason| DataError::Name {
        text: text.to_owned(),
        reason,
    };
    if text == "@" {
        return Ok(origin.to_vec());
    }

    if text == "." {
        return Ok(vec![0]);
    }
    if text.is_empty() {
        return Err(fail("it is empty"));
    }

    let mut wire = Vec::with_capacity(text.len() + 2);
    let mut label: Vec<u8> = Vec::new();
    let mut is_absolute = false;
    let mut bytes = text.bytes().peekable();
    while let Some(b) = bytes.next() {
        is_absolute = false;
        match b {
            b'.' => {
                if label.is_empty() {
                    return Err(fail("it has an empty label"));
                }
                end_label(&mut wire, &mut label)
                    .ok_or_else(|| fail("a label is longer than 63 bytes"))?;
                is_absolute = true;
            }
            b'\\' => label.push(escape(&mut bytes).ok_or(DataError::Quote)?),
            _ => label.push(b),
        }
    }

    if is_absolute {
        wire.push(0);
    } else {
        end_label(&mut wire, &mut label).ok_or_else(|| fail("a label is longer than 63 bytes"))?;
        wire.extend_from_slice(origin);
    }

    if wire.len() > NAME_BYTES_MAX {
        return Err(fail("it is longer than 255 bytes"));
    }
    Ok(wire)
}

fn end_label(wire: &mut Vec<u8>, label: &mut Vec<u8>) -> Option<()> {
    if label.len() > LABEL_BYTES_MAX {
        return None;
    }
    wire.push(label.len() as u8);
    wire.append(label);
    Some(())
}

/// The byte after a backslash: `\DDD` or the character itself.
fn escape(bytes: &mut std::iter::Peekable<impl Iterator<Item = u8>>) -> Option<u8> {
    let first = bytes.next()?;
    if !first.is_ascii_digit() {
        return Some(first);
    }
    let mut value = u16::from(first - b'0');
    for _ in 0..2 {
        let digit = bytes.next().filter(u8::is_ascii_digit)?;
        value = value * 10 + u16::from(digit - b'0');
    }
    u8::try_from(value).ok()
}

/// Data in presentation format for the common types; others in the generic form of RFC 3597.
pub fn shown(rtype: u16, data: &[u8]) -> String {
    known_shown(rtype, data).unwrap_or_else(|| {
        let digits: String = data.iter().map(|b| format!("{b:02x}")).collect();
        format!("\\# {} {digits}", data.len()).trim_end().to_owned()
    })
}

fn known_shown(rtype: u16, data: &[u8]) -> Option<String> {
    let word = |at: usize| Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?));
    match rtype {
        rtype::A => Some(std::net::Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).to_string()),
        rtype::AAAA => Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).to_string()),
        rtype::NS | rtype::CNAME | rtype::PTR | rtype::DNAME => Some(absolute_shown(data)),
        rtype::MX => Some(format!("{} {}", word(0)?, absolute_shown(data.get(2..)?))),
        rtype::SRV => Some(format!(
            "{} {} {} {}",
            word(0)?,
            word(2)?,
            word(4)?,
            absolute_shown(data.get(6..)?)
        )),
        rtype::SVCB | rtype::HTTPS => service::service_shown(data),
        rtype::TXT | rtype::SPF => {
            let mut texts = Vec::new();
            let mut rest = data;
            while let Some((len, after)) = rest.split_first() {
                let (text, after) = after.split_at_checked(usize::from(*len))?;
                let escaped = text.iter().map(|&b| match b {
                    b'"' | b'\\' => format!("\\{}", char::from(b)),
                    b' '..=b'~' => char::from(b).to_string(),
                    _ => format!("\\{b:03}"),
                });
                let escaped: String = escaped.collect();
                texts.push(format!("\"{escaped}\""));
                rest = after;
            }
            Some(texts.join(" "))
        }
        rtype::SOA => {
            let mname = message::name_bytes(data);
            let numbers = mname + message::name_bytes(&data[mname..]);
            let names = format!(
                "{} {}",
                absolute_shown(&data[..mname]),
                absolute_shown(&data[mname..numbers])
            );
            let words = data[numbers..]
                .chunks_exact(4)
                .map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]).to_string());
            Some(
                std::iter::once(names)
                    .chain(words)
                    .collect::<Vec<_>>()
                    .join(" "),
            )
        }
        _ => None,
    }
}

/// A wire name with the dot at its end.
pub fn absolute_shown(name: &[u8]) -> String {
    let text = message::presentation(name);
    if text == "." { text } else { text + "." }
}
