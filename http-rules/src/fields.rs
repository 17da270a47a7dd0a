//! Lists of HTTP fields, and the fields of one hop.
//!
//! Follows RFC 9110 sections 5 and 7.6.1. Works on bytes, because a field value may have any.

use http::header::{AsHeaderName, CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The largest delta-seconds; a larger number counts as this one (RFC 9111 section 1.2.2).
pub(crate) const DELTA_SECONDS_MAX: u64 = 1 << 31;

/// The members of a comma-separated list in order, trimmed, without empty ones. A comma in a quoted
/// string does not end a member.
///
/// An unclosed quote counts as an ordinary character, so that it cannot hide the members after it.
pub fn members(value: &[u8]) -> Members<'_> {
    Members {
        rest: value,
        has_escapes: true,
    }
}

/// The iterator of [`members`].
#[derive(Debug, Clone)]
pub struct Members<'a> {
    rest: &'a [u8],
    has_escapes: bool,
}

impl<'a> Iterator for Members<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.rest.is_empty() {
            let end = member_end(self.rest, self.has_escapes);
            let member = self.rest[..end].trim_ascii();
            self.rest = self.rest.get(end + 1..).unwrap_or_default();
            if !member.is_empty() {
                return Some(member);
            }
        }
        None
    }
}

/// The end of the first member: its comma, or the end of the text.
fn member_end(text: &[u8], has_escapes: bool) -> usize {
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b',' => return at,
            b'"' => at += quoted_length(&text[at..], has_escapes).unwrap_or(1),
            _ => at += 1,
        }
    }
    at
}

/// The length of the quoted string at the start, with its quotes; `None` when it is unclosed.
fn quoted_length(text: &[u8], has_escapes: bool) -> Option<usize> {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            b'"' => return Some(at + 1),
            b'\\' if has_escapes => at += 2,
            _ => at += 1,
        }
    }
    None
}

/// The members of all lines of a field, in order.
pub fn list(fields: &HeaderMap, name: impl AsHeaderName) -> impl Iterator<Item = &[u8]> {
    fields
        .get_all(name)
        .into_iter()
        .flat_map(|value| members(value.as_bytes()))
}

/// The entity tags of all lines of a field: a list whose quoted strings have no escapes (RFC 9110
/// section 8.8.3).
pub(crate) fn entity_tags(
    fields: &HeaderMap,
    name: impl AsHeaderName,
) -> impl Iterator<Item = &[u8]> {
    fields.get_all(name).into_iter().flat_map(|value| Members {
        rest: value.as_bytes(),
        has_escapes: false,
    })
}

/// The text inside the quotes if the whole text is quoted, else the text. Escapes stay, since
/// callers read numbers and tags, which need none.
pub fn unquoted(text: &[u8]) -> &[u8] {
    match text {
        [b'"', inner @ .., b'"'] => inner,
        _ => text,
    }
}

/// Parses a delta-seconds and clamps it (RFC 9111 section 1.2.2); `None` when it is not a number.
pub(crate) fn delta_seconds(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| (sum * 10 + u64::from(digit - b'0')).min(DELTA_SECONDS_MAX);
    Some(text.iter().fold(0, add))
}

/// Whether a token may have this byte (RFC 9110 section 5.6.2).
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a field is about one connection, one server or one proxy, so that it is neither
/// forwarded nor stored (RFC 9110 section 7.6.1, RFC 9111 section 3.1, RFC 7838 section 3).
pub(crate) fn is_hop_by_hop(name: &HeaderName) -> bool {
    const OTHERS: [&str; 7] = [
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "http2-settings",
        "alt-svc",
    ];
    matches!(
        *name,
        CONNECTION | TE | TRAILER | TRANSFER_ENCODING | UPGRADE
    ) || OTHERS.contains(&name.as_str())
}

/// Fields for every recipient on the path, which `Connection` cannot remove. Otherwise a client
/// could remove the loop check or the length of its body (RFC 8586 section 2, RFC 9110 section
/// 7.6.1).
const FOR_EVERYBODY: [&str; 5] = ["cdn-loop", "via", "host", "content-length", "cache-control"];

fn is_for_everybody(name: &[u8]) -> bool {
    FOR_EVERYBODY
        .iter()
        .any(|known| known.as_bytes().eq_ignore_ascii_case(name))
}

/// Whether `Connection` names a field, so that it is for this hop alone.
pub(crate) fn is_named_by_connection(fields: &HeaderMap, name: &str) -> bool {
    let is_named =
        || list(fields, CONNECTION).any(|named| named.eq_ignore_ascii_case(name.as_bytes()));
    fields.contains_key(CONNECTION) && !is_for_everybody(name.as_bytes()) && is_named()
}

/// The fields without those for one hop: the hop-by-hop fields and those that `Connection` names.
///
/// With `is_kept_long` the values are copied, so that stored fields do not keep a connection's read
/// buffer alive.
pub fn end_to_end(fields: &HeaderMap, is_kept_long: bool) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(fields.len() + 4);
    for (name, value) in fields.iter().filter(|(name, _)| !is_hop_by_hop(name)) {
        let value = if is_kept_long {
            HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
        } else {
            value.clone()
        };
        kept.append(name.clone(), value);
    }
    for named in list(fields, CONNECTION).filter(|named| !is_for_everybody(named)) {
        if let Ok(name) = std::str::from_utf8(named) {
            kept.remove(name);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, map};

    fn text(members: Members<'_>) -> Vec<String> {
        members
            .map(|m| String::from_utf8_lossy(m).into_owned())
            .collect()
    }

    #[test]
    fn lists_are_cut_at_commas_outside_quotes() {
        let table: [(&str, &[&str]); 8] = [
            ("", &[]),
            (" , ,", &[]),
            ("a", &["a"]),
            (" a ,\tb,, c ", &["a", "b", "c"]),
            ("a=\"x, y\", b", &["a=\"x, y\"", "b"]),
            ("\"a\\\", b\", c", &["\"a\\\", b\"", "c"]),
            ("a=\"open, no-store", &["a=\"open", "no-store"]),
            ("\"x\\", &["\"x\\"]),
        ];
        for (value, expected) in table {
            assert_eq!(text(members(value.as_bytes())), expected, "{value}");
        }
    }

    #[test]
    fn lines_of_one_field_are_joined() {
        let fields = map(&["vary: a, b", "vary: c"]);
        assert_eq!(list(&fields, "vary").count(), 3);
    }

    #[test]
    fn fields_of_one_hop_end_here() {
        // RFC 9110 section 7.6.1 and RFC 9111 section 3.1.
        let fields = map(&[
            "connection: a, B, cdn-loop, close, host, cache-control",
            "a: 1",
            "b: 2",
            "c: 3",
            "cdn-loop: x",
            "cache-control: no-store",
            "host: h",
            "keep-alive: 5",
            "proxy-connection: x",
            "proxy-authenticate: x",
            "proxy-authentication-info: x",
            "proxy-authorization: x",
            "te: trailers",
            "trailer: x",
            "transfer-encoding: chunked",
            "upgrade: x",
            "alt-svc: clear",
            "set-cookie: a=1",
            "set-cookie: b=2",
        ]);
        for is_kept_long in [false, true] {
            let mut kept: Vec<String> = end_to_end(&fields, is_kept_long)
                .iter()
                .map(|(n, _)| n.to_string())
                .collect();
            kept.sort();
            assert_eq!(
                kept,
                [
                    "c",
                    "cache-control",
                    "cdn-loop",
                    "host",
                    "set-cookie",
                    "set-cookie"
                ],
                "what all are to see cannot be taken away"
            );
        }
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn numbers_clamp(number in any::<u128>()) {
            let expected = u64::try_from(number).unwrap_or(u64::MAX).min(DELTA_SECONDS_MAX);
            prop_assert_eq!(delta_seconds(number.to_string().as_bytes()), Some(expected));
        }
    }
}
