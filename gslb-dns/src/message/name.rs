//! Domain names in wire form: lower-case question names, labels, and compression pointers on the way
//! in (RFC 1035 sections 3.1 and 4.1.4).

use super::HEADER_BYTES;

/// Longest name on the wire (RFC 1035 section 2.3.4).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest label.
pub const LABEL_BYTES_MAX: usize = 63;

/// A name in lower case, uncompressed.
#[derive(Clone)]
pub struct QName {
    bytes: [u8; NAME_BYTES_MAX],
    len: u8,
}

impl std::fmt::Debug for QName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&presentation(self.as_bytes()))
    }
}

impl QName {
    /// The root.
    pub const ROOT: Self = Self {
        bytes: [0; NAME_BYTES_MAX],
        len: 1,
    };

    /// From the wire form of a valid name; `None` when it is longer than a name may be.
    pub fn from_wire(wire: &[u8]) -> Option<Self> {
        if wire.is_empty() || wire.len() > NAME_BYTES_MAX {
            return None;
        }
        let mut name = Self::ROOT;
        name.bytes[..wire.len()].copy_from_slice(wire);
        name.bytes[..wire.len()].make_ascii_lowercase();
        name.len = wire.len() as u8;
        Some(name)
    }

    /// Reads the name right after the header of a message; gives it and its end. It cannot be
    /// compressed: nothing before it can be pointed at.
    pub(super) fn read_first(message: &[u8]) -> Option<(Self, usize)> {
        let mut name = Self::ROOT;
        let mut at = HEADER_BYTES;
        loop {
            let len = *message.get(at)? as usize;
            if len > LABEL_BYTES_MAX {
                return None;
            }
            let taken = at - HEADER_BYTES;
            // One more byte for the root label that must follow.
            if len > 0 && taken + 1 + len + 1 > NAME_BYTES_MAX {
                return None;
            }
            let label = message.get(at..=at + len)?;
            name.bytes[taken..=taken + len].copy_from_slice(label);
            at += 1 + len;
            if len == 0 {
                break;
            }
        }
        name.len = (at - HEADER_BYTES) as u8;
        // Length bytes are below 64 and so never ASCII letters.
        name.bytes[..name.len as usize].make_ascii_lowercase();
        Some((name, at))
    }

    /// The wire form in lower case.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

/// A wire name as text, for people and logs: special bytes are escaped, and there is no dot at the
/// end (the root is `.`).
pub fn presentation(wire: &[u8]) -> String {
    use std::fmt::Write as _;
    if wire.len() <= 1 {
        return ".".to_owned();
    }
    let mut text = String::new();
    for label in labels(wire) {
        if !text.is_empty() {
            text.push('.');
        }
        for &b in label {
            match b {
                b'.' | b'\\' | b'"' | b';' | b'@' | b'$' => {
                    text.push('\\');
                    text.push(b as char);
                }
                0x21..=0x7e => text.push(b as char),
                _ => {
                    let _ = write!(text, "\\{b:03}");
                }
            }
        }
    }
    text
}

/// The labels of an uncompressed wire name, without the root label.
pub fn labels(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let len = *wire.get(at)? as usize;
        if len == 0 {
            return None;
        }
        let label = wire.get(at + 1..at + 1 + len)?;
        at += 1 + len;
        Some(label)
    })
}

/// Whether these bytes are exactly one uncompressed name.
pub fn is_name(wire: &[u8]) -> bool {
    let mut at = 0;
    while let Some(&len) = wire.get(at) {
        at += 1 + usize::from(len);
        if len == 0 {
            return at == wire.len() && at <= NAME_BYTES_MAX;
        }
        if usize::from(len) > LABEL_BYTES_MAX {
            return false;
        }
    }
    false
}

/// Bytes of the uncompressed name at the start of `data`.
pub fn name_bytes(data: &[u8]) -> usize {
    let mut at = 0;
    while let Some(&len) = data.get(at) {
        at += 1 + usize::from(len);
        if len == 0 {
            break;
        }
    }
    at.min(data.len())
}

/// The name without its first label; `None` for the root.
pub fn parent(wire: &[u8]) -> Option<&[u8]> {
    let len = *wire.first()? as usize;
    if len == 0 { None } else { wire.get(1 + len..) }
}

/// Whether `name` is `ancestor` or below it; both lower case.
pub fn is_at_or_below(name: &[u8], ancestor: &[u8]) -> bool {
    let mut rest = Some(name);
    while let Some(here) = rest {
        if here.len() <= ancestor.len() {
            return here == ancestor;
        }
        rest = parent(here);
    }
    false
}

/// Expands a possibly compressed name, in lower case. Each pointer must lead before the part of the
/// name that it ends.
pub(super) fn expand_name(message: &[u8], start: usize) -> Option<QName> {
    let mut name = QName {
        bytes: [0; NAME_BYTES_MAX],
        len: 0,
    };
    let (mut at, mut part) = (start, start);

    loop {
        let len = usize::from(*message.get(at)?);
        if len >= 0xc0 {
            let target = (len & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
            if target < HEADER_BYTES || target >= part {
                return None;
            }
            (at, part) = (target, target);
            continue;
        }
        let label = message
            .get(at..=at + len)
            .filter(|_| len <= LABEL_BYTES_MAX)?;
        let taken = usize::from(name.len);
        name.bytes
            .get_mut(taken..taken + label.len())?
            .copy_from_slice(label);
        name.len = u8::try_from(taken + label.len()).ok()?;
        if len == 0 {
            name.bytes[..usize::from(name.len)].make_ascii_lowercase();
            return Some(name);
        }
        at += 1 + len;
    }
}

/// The end of a possibly compressed name. A pointer must lead before the name it is in, so that
/// following it cannot loop; it is not followed here.
pub(super) fn skip_name(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let len = *message.get(at)? as usize;
        match len {
            0 => return Some(at + 1),
            1..=LABEL_BYTES_MAX => {
                at += 1 + len;
                if at - start >= NAME_BYTES_MAX {
                    return None;
                }
            }
            0xc0.. => {
                let target = (len & 0x3f) << 8 | *message.get(at + 1)? as usize;
                return (target >= HEADER_BYTES && target < start).then_some(at + 2);
            }
            _ => return None,
        }
    }
}
