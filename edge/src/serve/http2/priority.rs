//! How urgent a client says a response is: the `Priority` request field.
//!
//! Follows RFC 9218 sections 4 and 5. PRIORITY_UPDATE frames (section 7) are ignored: the HTTP
//! library does not pass them on.

use http::{HeaderMap, HeaderName, HeaderValue};
use nearcast_http_rules::fields;

const PRIORITY: HeaderName = HeaderName::from_static("priority");

/// The urgency of a request that states none.
const URGENCY_DEFAULT: u8 = 3;
/// The least urgent.
const URGENCY_MAX: u8 = 7;

/// The priority of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::serve) struct Priority {
    /// 0, the most urgent, to 7.
    pub(in crate::serve) urgency: u8,
    /// A part of it is useful without the rest, so it may share the connection with others.
    pub(in crate::serve) is_incremental: bool,
}

impl Default for Priority {
    fn default() -> Self {
        Self {
            urgency: URGENCY_DEFAULT,
            is_incremental: false,
        }
    }
}

impl Priority {
    /// What a request states. A member that is malformed or out of range is ignored (RFC 9218
    /// section 4); the last one of a name counts (RFC 9651 section 3.2).
    pub(super) fn of(request: &HeaderMap) -> Self {
        match request.contains_key(&PRIORITY) {
            false => Self::default(),
            true => Self::stated(request.get_all(PRIORITY).iter().map(HeaderValue::as_bytes)),
        }
    }

    /// The same, of the lines of the field.
    pub(in crate::serve) fn stated<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut priority = Self::default();
        for member in lines.flat_map(fields::members) {
            // A parameter of a member means nothing here.
            let item = member.split(|byte| *byte == b';').next().unwrap_or(member);
            match item.trim_ascii() {
                [b'u', b'=', digit @ b'0'..=b'9'] if *digit - b'0' <= URGENCY_MAX => {
                    priority.urgency = *digit - b'0';
                }
                b"i" | b"i=?1" => priority.is_incremental = true,
                b"i=?0" => priority.is_incremental = false,
                _ => {}
            }
        }
        priority
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_states_urgency_and_whether_parts_are_useful() {
        let table: [(&[&str], u8, bool); 12] = [
            (&[], 3, false),
            (&["u=0"], 0, false),
            (&["u=7, i"], 7, true),
            (&["i"], 3, true),
            (&["i=?1, u=2"], 2, true),
            (&["i, i=?0"], 3, false),
            (&["u=1", "i"], 1, true),
            (&["u=1, u=5"], 5, false),
            (&["u=8"], 3, false),
            (&["u=-1, i=1"], 3, false),
            (&["u=2;x=1, i;y"], 2, true),
            (&["u = 1, U=1, \u{1F600}"], 3, false),
        ];
        for (values, urgency, is_incremental) in table {
            let fields = values
                .iter()
                .map(|value| {
                    let value = HeaderValue::from_bytes(value.as_bytes()).expect("a value");
                    (PRIORITY, value)
                })
                .collect();
            let expected = Priority {
                urgency,
                is_incremental,
            };
            assert_eq!(Priority::of(&fields), expected, "{values:?}");
        }
    }
}
