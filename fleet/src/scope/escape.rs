//! Paths and queries with exactly the escapes that they need (RFC 3986 sections 2.1 to 2.3).

/// Bytes that mean the same with and without an escape: the unreserved ones, and those that were
/// unreserved in RFC 2396 (`!*'()`), which some programs escape and others do not.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!*'()".contains(&byte)
}

/// Other bytes that a path or query may have without an escape; escaped they mean something else.
fn is_delimiter(byte: u8) -> bool {
    b"/?:@$&+,;=".contains(&byte)
}

/// The byte that an escape at the start encodes.
fn escaped(bytes: &[u8]) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    match bytes {
        [b'%', high, low, ..] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
        _ => None,
    }
}

/// Whether path and query are in canonical form.
pub(super) fn is_canonical(path: &[u8]) -> bool {
    let mut rest = path;
    while let Some((byte, after)) = rest.split_first() {
        let is_valid = match byte {
            b'%' => {
                escaped(rest).is_some_and(|b| !is_plain(b))
                    && after[..2].iter().all(|b| !b.is_ascii_lowercase())
            }
            byte => is_plain(*byte) || is_delimiter(*byte),
        };
        if !is_valid {
            return false;
        }
        rest = after;
    }
    path.first() == Some(&b'/')
}

/// Appends a text in canonical form: with every escape that it needs, and no other. `on_malformed`
/// decides whether a percent sign without two digits is an error; otherwise it is escaped.
pub(super) fn push_escaped<E>(
    text: &str,
    url: &mut String,
    on_malformed: impl Fn() -> Result<(), E>,
) -> Result<(), E> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut push = |byte: u8, is_plain: bool| match is_plain {
        true => url.push(char::from(byte)),
        false => url.extend([
            '%',
            char::from(HEX[usize::from(byte >> 4)]),
            char::from(HEX[usize::from(byte & 15)]),
        ]),
    };
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        match (byte, escaped(rest)) {
            (b'%', Some(byte)) => {
                push(byte, is_plain(byte));
                rest = &after[2..];
                continue;
            }
            (b'%', None) => {
                on_malformed()?;
                push(b'%', false);
            }
            (byte, _) => push(*byte, is_plain(*byte) || is_delimiter(*byte)),
        }
        rest = after;
    }
    Ok(())
}
