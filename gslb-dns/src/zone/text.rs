//! Names and record data from presentation format (RFC 1035 section 5.1, RFC 3597, RFC 9460) to wire
//! form, and back.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::message::registry::type_mnemonic;
use crate::message::{self, LABEL_BYTES_MAX, NAME_BYTES_MAX, rtype};

/// Longest record data.
const DATA_BYTES_MAX: usize = 65_535;

/// Why a name or a record's data cannot be used.
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

/// Data as people write it, for the types that most records are of; others in the generic form of
/// RFC 3597.
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

/// A name in wire form, case kept. Names without a final dot are relative to `origin` (wire form);
/// `@` is the origin.
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

/// A field of the data: its bytes with escapes resolved, and as written.
struct Field {
    value: Vec<u8>,
    text: String,
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
struct FieldReader<'o> {
    fields: std::vec::IntoIter<Field>,
    origin: &'o [u8],
    out: Vec<u8>,
}

impl FieldReader<'_> {
    fn next(&mut self, what: &'static str) -> Result<Field, DataError> {
        self.fields.next().ok_or(DataError::Missing(what))
    }

    fn parsed<T: std::str::FromStr>(&mut self, what: &'static str) -> Result<T, DataError> {
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

    fn name(&mut self, what: &'static str) -> Result<(), DataError> {
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
fn base64(text: &[u8]) -> Option<Vec<u8>> {
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

/// Whether data in the generic form is what its type says, for the types whose data is looked into
/// when they are served.
fn has_shape(rtype: u16, data: &[u8]) -> bool {
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

/// SVCB and HTTPS (RFC 9460 section 2): priority, target, parameters in ascending key order.
fn service(r: &mut FieldReader<'_>) -> Result<(), DataError> {
    let priority: u16 = r.parsed("priority, 0 to 65535")?;
    r.out.extend_from_slice(&priority.to_be_bytes());
    r.name("target")?;
    let mut parameters = std::collections::BTreeMap::new();
    for field in r.fields.by_ref() {
        let equals = field.value.iter().position(|b| *b == b'=');
        let (key, value) = match equals {
            Some(at) => (&field.value[..at], Some(&field.value[at + 1..])),
            None => (&field.value[..], None),
        };
        let key_text = String::from_utf8_lossy(key).into_owned();
        let fail = |what| DataError::Field {
            text: field.text.clone(),
            what,
        };
        let key = service_key(&key_text)
            .ok_or_else(|| fail("a service parameter key such as alpn, port or key65000"))?;
        let wire = service_value(key, value)
            .ok_or_else(|| fail("a service parameter with a value of its kind"))?;
        if parameters.insert(key, wire).is_some() {
            return Err(fail("a parameter that is given once"));
        }
    }
    let mandatory: Option<Vec<u16>> = parameters.get(&0).map(|v: &Vec<u8>| {
        v.chunks_exact(2)
            .map(|c| u16::from_be_bytes([c[0], c[1]]))
            .collect()
    });
    if mandatory.is_some_and(|keys| keys.iter().any(|k| *k == 0 || !parameters.contains_key(k))) {
        return Err(DataError::Field {
            text: "mandatory".to_owned(),
            what: "a list of the other keys of this record",
        });
    }
    if priority == 0 && !parameters.is_empty() {
        return Err(DataError::Field {
            text: "0".to_owned(),
            what: "the priority of a record with parameters (0 is AliasMode)",
        });
    }
    for (key, value) in parameters {
        r.out.extend_from_slice(&u16::to_be_bytes(key));
        r.out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        r.out.extend_from_slice(&value);
    }
    Ok(())
}

fn service_key(text: &str) -> Option<u16> {
    const KEYS: [&str; 9] = [
        "mandatory",
        "alpn",
        "no-default-alpn",
        "port",
        "ipv4hint",
        "ech",
        "ipv6hint",
        "dohpath",
        "ohttp",
    ];
    let known = KEYS.iter().position(|k| *k == text).map(|k| k as u16);
    known.or_else(|| text.strip_prefix("key")?.parse().ok())
}

fn service_value(key: u16, value: Option<&[u8]>) -> Option<Vec<u8>> {
    let text = || std::str::from_utf8(value?).ok();
    let parts = || text().map(|t| t.split(',').map(str::to_owned).collect::<Vec<_>>());
    match key {
        0 => {
            let mut keys: Vec<u16> = parts()?
                .iter()
                .map(|k| service_key(k))
                .collect::<Option<_>>()?;
            keys.sort_unstable();
            Some(keys.iter().flat_map(|k| k.to_be_bytes()).collect())
        }
        1 => {
            let mut wire = Vec::new();
            for id in parts()? {
                wire.push(u8::try_from(id.len()).ok().filter(|l| *l > 0)?);
                wire.extend_from_slice(id.as_bytes());
            }
            Some(wire)
        }
        2 | 8 => value.is_none().then(Vec::new),
        3 => Some(text()?.parse::<u16>().ok()?.to_be_bytes().to_vec()),
        4 => parts()?
            .iter()
            .map(|a| a.parse::<Ipv4Addr>().ok().map(|a| a.octets()))
            .collect::<Option<Vec<_>>>()
            .map(|v| v.concat()),
        5 => base64(value?),
        6 => parts()?
            .iter()
            .map(|a| a.parse::<Ipv6Addr>().ok().map(|a| a.octets()))
            .collect::<Option<Vec<_>>>()
            .map(|v| v.concat()),
        _ => Some(value.unwrap_or_default().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy as _;

    use super::*;
    use crate::message::registry::{MNEMONICS, type_number};

    const ORIGIN: &[u8] = b"\x04demo\x04test\x00";

    #[test]
    fn names_are_read_with_escapes_and_origin() {
        let rows: &[(&str, Result<&[u8], &str>)] = &[
            ("@", Ok(ORIGIN)),
            (".", Ok(b"\x00")),
            ("www", Ok(b"\x03www\x04demo\x04test\x00")),
            ("www.", Ok(b"\x03www\x00")),
            ("A.b", Ok(b"\x01A\x01b\x04demo\x04test\x00")),
            ("a\\.b.", Ok(b"\x03a.b\x00")),
            ("\\065.", Ok(b"\x01A\x00")),
            ("", Err("it is empty")),
            ("a..b", Err("empty label")),
            (".a", Err("empty label")),
            ("\\256.", Err("not complete")),
            ("\\", Err("not complete")),
        ];
        for (text, expected) in rows {
            match (name(text, ORIGIN), expected) {
                (Ok(wire), Ok(bytes)) => assert_eq!(wire, *bytes, "{text}"),
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{text}: {error}")
                }
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
        let long = vec!["a".repeat(63); 4].join(".");
        for (text, part) in [
            ("a".repeat(64), "63 bytes"),
            (format!("{long}."), "255 bytes"),
        ] {
            assert!(
                name(&text, &[0])
                    .expect_err("too long")
                    .to_string()
                    .contains(part)
            );
        }
        let longest = format!("{}.{}.", vec!["a".repeat(63); 3].join("."), "b".repeat(61));
        assert_eq!(
            name(&longest, &[0]).expect("255 bytes are enough").len(),
            255
        );
    }

    /// Compared with the bytes that the standards' own text gives for these types.
    #[test]
    fn data_of_every_type_becomes_its_wire_form() {
        let rows: &[(&str, &str, &[u8])] = &[
            ("A", "192.0.2.1", &[192, 0, 2, 1]),
            ("AAAA", "2001:db8::1", &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            ("CNAME", "x.", b"\x01x\x00"),
            ("MX", "10 x.", b"\x00\x0a\x01x\x00"),
            ("TXT", "a \"b c\" \\034d", b"\x01a\x03b c\x02\"d"),
            ("TXT", "\"\"", b"\x00"),
            ("TXT", "a ; a comment", b"\x01a"),
            ("HINFO", "cpu \"an os\"", b"\x03cpu\x05an os"),
            ("SRV", "1 2 443 x.", b"\x00\x01\x00\x02\x01\xbb\x01x\x00"),
            ("NAPTR", "1 2 \"u\" \"E2U\" \"!a!b!\" .", b"\x00\x01\x00\x02\x01u\x03E2U\x05!a!b!\x00"),
            ("DS", "60485 13 2 ( 2BB1 83AF )", &[0xec, 0x45, 13, 2, 0x2b, 0xb1, 0x83, 0xaf]),
            ("DNSKEY", "257 3 13 AQID", &[1, 1, 3, 13, 1, 2, 3]),
            ("DNSKEY", "257 3 13 AQ==", &[1, 1, 3, 13, 1]),
            ("SSHFP", "4 2 abcd", &[4, 2, 0xab, 0xcd]),
            ("TLSA", "3 1 1 00ff", &[3, 1, 1, 0, 0xff]),
            ("CAA", "0 issue \"ca.example; policy=ev\"", b"\x00\x05issueca.example; policy=ev"),
            ("URI", "10 1 \"http://x/\"", b"\x00\x0a\x00\x01http://x/"),
            ("RP", "a. b.", b"\x01a\x00\x01b\x00"),
            // RFC 9460 appendix D.
            ("SVCB", "0 foo.example.com.", b"\x00\x00\x03foo\x07example\x03com\x00"),
            ("SVCB", "1 .", b"\x00\x01\x00"),
            ("SVCB", "16 foo.example.com. port=53", b"\x00\x10\x03foo\x07example\x03com\x00\x00\x03\x00\x02\x00\x35"),
            ("SVCB", "1 foo.example.com. key667=hello", b"\x00\x01\x03foo\x07example\x03com\x00\x02\x9b\x00\x05hello"),
            (
                "SVCB",
                "16 foo.example.org. alpn=h2,h3-19 mandatory=ipv4hint,alpn ipv4hint=192.0.2.1",
                b"\x00\x10\x03foo\x07example\x03org\x00\x00\x00\x00\x04\x00\x01\x00\x04\x00\x01\x00\x09\x02h2\x05h3-19\x00\x04\x00\x04\xc0\x00\x02\x01",
            ),
            ("HTTPS", "1 . no-default-alpn alpn=h3", b"\x00\x01\x00\x00\x01\x00\x03\x02h3\x00\x02\x00\x00"),
            // RFC 3597 section 5.
            ("TYPE731", "\\# 6 abcd ( ef 01 23 45 )", &[0xab, 0xcd, 0xef, 1, 0x23, 0x45]),
            ("TYPE62347", "\\# 0", &[]),
            ("A", "\\# 4 0A000001", &[10, 0, 0, 1]),
            ("MX", "\\# 5 000a016100", b"\x00\x0a\x01a\x00"),
            ("TXT", "\\# 3 016100", b"\x01a\x00"),
        ];
        for (rtype, text, expected) in rows {
            let number = type_number(rtype).unwrap_or_else(|| panic!("{rtype}"));
            let wire = data(number, text, ORIGIN).unwrap_or_else(|e| panic!("{rtype} {text}: {e}"));
            assert_eq!(wire, *expected, "{rtype} {text}");
        }
    }

    #[test]
    fn data_that_is_wrong_is_refused_with_the_field() {
        for (rtype, text, part) in [
            ("A", "192.0.2", "an IPv4 address"),
            ("A", "192.0.2.1 x", "follows the last field"),
            ("A", "", "an IPv4 address"),
            ("AAAA", "192.0.2.1", "an IPv6 address"),
            ("MX", "mail", "preference"),
            ("MX", "10", "host"),
            ("MX", "65536 mail", "preference"),
            ("TXT", "\"open", "not complete"),
            ("DS", "1 13 2 abc", "hexadecimal"),
            ("DNSKEY", "257 3 13 A", "base64"),
            ("CAA", "0 is-sue x", "letters and digits"),
            ("SVCB", "0 . port=1", "AliasMode"),
            ("SVCB", "1 . port=1 port=2", "given once"),
            ("SVCB", "1 . mandatory=alpn", "mandatory"),
            ("SVCB", "1 . mandatory=mandatory", "mandatory"),
            ("SVCB", "1 . colour=red", "a service parameter key"),
            ("SVCB", "1 . port", "value of its kind"),
            ("SVCB", "1 . alpn=", "value of its kind"),
            ("SVCB", "1 . no-default-alpn=1", "value of its kind"),
            ("TYPE65280", "1 2", "TYPE<number>"),
            ("TYPE65280", "\\# 3 abcd", "number of bytes"),
            ("TYPE65280", "\\# 1 zz", "hexadecimal"),
            // The generic form is no way around the rules of a type (RFC 3597 section 5).
            ("A", "\\# 3 0a0000", "data of that type"),
            ("AAAA", "\\# 4 0a000001", "data of that type"),
            ("CNAME", "\\# 3 016100ff", "number of bytes"),
            ("CNAME", "\\# 2 0161", "data of that type"),
            ("CNAME", "\\# 2 c00c", "data of that type"),
            ("NS", "\\# 0", "data of that type"),
            ("PTR", "\\# 4 016100ff", "data of that type"),
            ("DNAME", "\\# 4 01610061", "data of that type"),
            ("MX", "\\# 1 00", "data of that type"),
            ("MX", "\\# 4 000a0161", "data of that type"),
            ("TXT", "\\# 2 0561", "data of that type"),
            ("TXT", "\\# 0", "data of that type"),
        ] {
            let number = type_number(rtype).unwrap_or_else(|| panic!("{rtype}"));
            let error = data(number, text, ORIGIN).expect_err(text);
            assert!(error.to_string().contains(part), "{rtype} {text}: {error}");
        }
        let long = format!("\"{}\"", "x".repeat(256));
        assert!(data(rtype::TXT, &long, ORIGIN).is_err());
        assert_eq!(type_number("NOSUCH"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_the_readers_and_what_they_take_is_well_formed(
            mnemonic in proptest::sample::select(MNEMONICS),
            pieces in proptest::collection::vec(
                proptest::prop_oneof![
                    proptest::sample::select(vec![
                        "a", ".", "@", "\\", "\\0", "\\046", "\"", "(", ")", ";", " ", "\\# ", "4 ", "0a000001", "10 ", "192.0.2.1",
                        "2001:db8::1", "port=", "alpn=", "h2,", "mandatory=", "key7", "AQID", "=", "65536",
                    ])
                    .prop_map(str::to_owned),
                    "\\PC{0,3}",
                ], 0..16)) {
            let text = pieces.concat();
            if let Ok(name) = name(&text, ORIGIN) {
                proptest::prop_assert!(message::is_name(&name), "{text:?}: {name:?}");
            }
            if let Ok(wire) = data(mnemonic.1, &text, ORIGIN) {
                proptest::prop_assert!(has_shape(mnemonic.1, &wire), "{} {text:?}: {wire:?}", mnemonic.0);
            }
        }
    }
}
