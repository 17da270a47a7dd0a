//! Record data by type.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::fields::{FieldReader, fields};
use super::service::service;
use super::{DATA_BYTES_MAX, DataError};
use crate::message::registry::type_mnemonic;
use crate::message::{self, rtype};

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
