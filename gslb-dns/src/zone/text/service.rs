//! The data of SVCB and HTTPS records (RFC 9460 section 2).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::DataError;
use super::absolute_shown;
use super::fields::{FieldReader, base64};
use crate::message::{is_name, name_bytes};

/// SVCB and HTTPS (RFC 9460 section 2): priority, target, parameters in ascending key order.
pub(super) fn service(r: &mut FieldReader<'_>) -> Result<(), DataError> {
    let priority: u16 = r.parsed("priority, 0 to 65535")?;
    r.out.extend_from_slice(&priority.to_be_bytes());
    r.name("target")?;
    let mut parameters = BTreeMap::new();
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

/// Keys with a name, by number.
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

fn service_key(text: &str) -> Option<u16> {
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

/// Data in presentation format; `None` for data with a parameter whose value needs escapes or has no
/// form of its own here.
pub(super) fn service_shown(data: &[u8]) -> Option<String> {
    let (priority, rest) = data.split_first_chunk::<2>()?;
    let (target, mut rest) = rest.split_at_checked(name_bytes(rest))?;
    if !is_name(target) {
        return None;
    }
    let mut shown = format!(
        "{} {}",
        u16::from_be_bytes(*priority),
        absolute_shown(target)
    );
    while !rest.is_empty() {
        let (head, after) = rest.split_first_chunk::<4>()?;
        let key = u16::from_be_bytes([head[0], head[1]]);
        let (value, after) =
            after.split_at_checked(usize::from(u16::from_be_bytes([head[2], head[3]])))?;
        shown.push(' ');
        shown.push_str(&value_shown(key, value)?);
        rest = after;
    }
    Some(shown)
}

fn value_shown(key: u16, value: &[u8]) -> Option<String> {
    let key_text = *KEYS.get(usize::from(key))?;
    let values: Vec<String> = match key {
        0 => value
            .chunks(2)
            .map(|chunk| {
                let key = u16::from_be_bytes(chunk.try_into().ok()?);
                let known = KEYS.get(usize::from(key)).map(|&name| name.to_owned());
                Some(known.unwrap_or_else(|| format!("key{key}")))
            })
            .collect::<Option<_>>()?,
        1 => protocols_shown(value)?,
        2 | 8 if value.is_empty() => return Some(key_text.to_owned()),
        3 => vec![u16::from_be_bytes(value.try_into().ok()?).to_string()],
        4 => value
            .chunks(4)
            .map(|chunk| Some(Ipv4Addr::from(<[u8; 4]>::try_from(chunk).ok()?).to_string()))
            .collect::<Option<_>>()?,
        6 => value
            .chunks(16)
            .map(|chunk| Some(Ipv6Addr::from(<[u8; 16]>::try_from(chunk).ok()?).to_string()))
            .collect::<Option<_>>()?,
        _ => return None,
    };
    Some(format!("{key_text}={}", values.join(",")))
}

fn protocols_shown(mut value: &[u8]) -> Option<Vec<String>> {
    let mut protocols = Vec::new();
    while let Some((len, after)) = value.split_first() {
        let (id, after) = after.split_at_checked(usize::from(*len))?;
        let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"./-".contains(b);
        if id.is_empty() || !id.iter().all(is_plain) {
            return None;
        }
        protocols.push(String::from_utf8_lossy(id).into_owned());
        value = after;
    }
    Some(protocols)
}
