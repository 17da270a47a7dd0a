//! Which of several stored responses a request selects.
//!
//! Follows RFC 9111 section 4.1 and RFC 9110 section 12.5.

use http::header::{ACCEPT_ENCODING, ACCEPT_LANGUAGE, DATE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::fields;

/// Names in `Vary`; a response with more is not stored.
pub const VARY_NAMES_MAX: usize = 32;

/// The fields that `Vary` names, sorted, each once; `None` when it has `*`, an invalid name or too many: then the
/// response selects nothing.
pub fn names(response: &HeaderMap) -> Option<Vec<HeaderName>> {
    let mut names = Vec::new();
    for member in fields::list(response, VARY) {
        if member == b"*" || names.len() == VARY_NAMES_MAX {
            return None;
        }
        names.push(HeaderName::from_bytes(member).ok()?);
    }
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    Some(names)
}

/// The request's fields that select this response, to be kept with it.
pub fn selecting(request: &HeaderMap, response: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in names(response).unwrap_or_default().into_iter().filter(|name| !fields::is_named_by_connection(request, name)) {
        for value in request.get_all(&name) {
            // A copy of its own: the value may keep a connection's whole read buffer alive.
            kept.append(name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone()));
        }
    }
    kept
}

/// Whether a request selects a stored response: `stored` are its fields, `selecting` those kept of its request.
pub fn is_selected(stored: &HeaderMap, selecting: &HeaderMap, request: &HeaderMap) -> bool {
    if !stored.contains_key(VARY) {
        return true;
    }
    names(stored).is_some_and(|names| names.iter().all(|name| is_same(name, selecting, request)))
}

/// Whether two requests say the same in one field.
fn is_same(name: &HeaderName, one: &HeaderMap, other: &HeaderMap) -> bool {
    // What a client takes away behind this hop the origin does not see: it counts as absent.
    if fields::is_named_by_connection(other, name) {
        return !one.contains_key(name);
    }
    one.get_all(name) == other.get_all(name) || normal(name, one) == normal(name, other)
}

/// A field as it is compared: its members in order; a preference list as a set with its weights.
fn normal(name: &HeaderName, request: &HeaderMap) -> Option<Vec<Vec<u8>>> {
    request.get(name)?;
    let is_preference = *name == ACCEPT_ENCODING || *name == ACCEPT_LANGUAGE;
    let members = fields::list(request, name);
    if !is_preference {
        return Some(members.map(<[u8]>::to_vec).collect());
    }
    let mut members: Vec<Vec<u8>> = members.map(preference).collect();
    members.sort_unstable();
    members.dedup();
    Some(members)
}

/// A member of a preference list: lower case, no white space, its weight only where it is not 1.
fn preference(member: &[u8]) -> Vec<u8> {
    let text: Vec<u8> = member.iter().filter(|b| !matches!(b, b' ' | b'\t')).map(u8::to_ascii_lowercase).collect();
    let Some(at) = text.windows(3).position(|w| w == b";q=") else { return text };
    let weight = &text[at + 3..];
    let weight = if weight.contains(&b'.') { weight.trim_ascii_end().strip_suffix(b"0").map_or(weight, trim_zeros) } else { weight };
    let weight = weight.strip_suffix(b".").unwrap_or(weight);
    let mut normal = text[..at].to_vec();
    if weight != b"1" {
        normal.extend_from_slice(b";q=");
        normal.extend_from_slice(weight);
    }
    normal
}

fn trim_zeros(mut digits: &[u8]) -> &[u8] {
    while let Some(shorter) = digits.strip_suffix(b"0") {
        digits = shorter;
    }
    digits
}

/// Which of several selected responses is used: the one with the newest `Date`, of equals the one received last.
pub fn newest<'a, T>(selected: impl IntoIterator<Item = (T, &'a HeaderMap, u64)>) -> Option<T> {
    let made = |fields: &HeaderMap, received_ms: u64| fields::date(fields, DATE).unwrap_or(received_ms / 1000);
    selected.into_iter().max_by_key(|(_, fields, received_ms)| (made(fields, *received_ms), *received_ms)).map(|(found, ..)| found)
}
