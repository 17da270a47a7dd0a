//! Conditions: those of a client against a stored response, those of our own validation, and what its answer changes.
//!
//! Follows RFC 9110 section 13 and RFC 9111 section 3.2, 4.3.

use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, IF_MATCH, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::fields;

/// What a client's conditions say, in the order of RFC 9110 section 13.2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precondition {
    /// Answer as without conditions. A `Range` counts where `is_range_valid` says so.
    Proceed {
        /// There is no `If-Range`, or it holds.
        is_range_valid: bool,
    },
    /// Answer 304, with [`not_modified_fields`].
    NotModified,
    /// Answer 412.
    Failed,
}

/// What a client's conditions say of a stored response, which has been selected and may be used.
///
/// Conditions count for GET and HEAD and a successful response only (RFC 9110 section 13.2.1).
pub fn evaluate(method: &Method, request: &HeaderMap, status: StatusCode, stored: &HeaderMap) -> Precondition {
    let is_conditional = matches!(*method, Method::GET | Method::HEAD) && status.is_success();
    if !is_conditional {
        return Precondition::Proceed { is_range_valid: false };
    }
    if !may_go_on(request, stored) {
        return Precondition::Failed;
    }
    if is_not_modified(request, stored) {
        return Precondition::NotModified;
    }
    let can_be_ranged = *method == Method::GET && matches!(status.as_u16(), 200 | 206);
    Precondition::Proceed { is_range_valid: can_be_ranged && if_range_holds(request, stored) }
}

/// If-Match, or in its absence If-Unmodified-Since (RFC 9110 section 13.1.1, 13.1.4).
fn may_go_on(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_MATCH) {
        let current = stored.get(ETAG).map(HeaderValue::as_bytes);
        return fields::list(request, IF_MATCH).any(|tag| tag == b"*" || current.is_some_and(|current| is_strongly_equal(tag, current)));
    }
    match (fields::date(request, IF_UNMODIFIED_SINCE), fields::date(stored, LAST_MODIFIED)) {
        (Some(since), Some(modified)) => modified <= since,
        _ => true,
    }
}

/// If-None-Match, or in its absence If-Modified-Since (RFC 9110 section 13.1.2, 13.1.3).
fn is_not_modified(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let current = stored.get(ETAG).map(HeaderValue::as_bytes);
        return fields::list(request, IF_NONE_MATCH).any(|tag| tag == b"*" || current.is_some_and(|current| is_weakly_equal(tag, current)));
    }
    let Some(since) = fields::date(request, IF_MODIFIED_SINCE) else { return false };
    // RFC 9111 section 4.3.2: without Last-Modified, Date.
    let modified =
        fields::date(stored, LAST_MODIFIED).or_else(|| fields::date(stored, DATE).filter(|_| !stored.contains_key(LAST_MODIFIED)));
    modified.is_some_and(|modified| modified <= since)
}

/// Whether there is no If-Range, or it holds: a strong tag that is equal, or exactly the date of a response whose
/// `Last-Modified` is strong (RFC 9110 section 13.1.5).
pub fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(wanted) = request.get(IF_RANGE).map(|v| v.as_bytes().trim_ascii()) else { return true };
    if wanted.starts_with(b"\"") || wanted.starts_with(b"W/") {
        return stored.get(ETAG).is_some_and(|current| is_strongly_equal(wanted, current.as_bytes()));
    }
    let exact = stored.get(LAST_MODIFIED).is_some_and(|modified| modified.as_bytes() == wanted);
    exact && is_strong_date(stored)
}

/// Whether `Last-Modified` is at least a second before `Date`, so that two changes cannot share it (RFC 9110 section 8.8.2.2).
pub fn is_strong_date(stored: &HeaderMap) -> bool {
    match (fields::date(stored, LAST_MODIFIED), fields::date(stored, DATE)) {
        (Some(modified), Some(made)) => made > modified,
        _ => false,
    }
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Equal but for weakness (RFC 9110 section 8.8.3.2).
pub fn is_weakly_equal(one: &[u8], other: &[u8]) -> bool {
    opaque(one.trim_ascii()) == opaque(other.trim_ascii())
}

/// Equal and both strong.
pub fn is_strongly_equal(one: &[u8], other: &[u8]) -> bool {
    is_strong(one.trim_ascii()) && one.trim_ascii() == other.trim_ascii()
}

/// A quoted tag without `W/`.
fn is_strong(tag: &[u8]) -> bool {
    tag.len() >= 2 && tag.starts_with(b"\"") && tag.ends_with(b"\"")
}

/// The strong entity tag of a response, by which its slices are named.
pub fn strong_tag(response: &HeaderMap) -> Option<&HeaderValue> {
    let mut tags = response.get_all(ETAG).into_iter();
    let tag = tags.next()?;
    (tags.next().is_none() && is_strong(tag.as_bytes().trim_ascii())).then_some(tag)
}

/// Whether a response can be validated at all.
pub fn has_validator(response: &HeaderMap) -> bool {
    response.contains_key(ETAG) || response.contains_key(LAST_MODIFIED)
}

/// Fields of a 304 to a client, out of those of the stored response: none that describes a body it does not have
/// (RFC 9110 section 15.4.5).
pub fn not_modified_fields(mut stored: HeaderMap) -> HeaderMap {
    for name in [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_RANGE] {
        stored.remove(name);
    }
    stored
}

/// Names of all conditions of a client, which never reach the origin with a request that fills the store.
pub const CONDITIONS: [HeaderName; 5] = [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE];

/// Makes a forward request a validation of these stored responses, of which the first is the one selected
/// (RFC 9111 section 4.3.1). The client's own conditions go.
pub fn set_validation<'a>(forward: &mut HeaderMap, stored: impl IntoIterator<Item = &'a HeaderMap>) {
    for name in CONDITIONS {
        forward.remove(name);
    }
    let mut tags: Vec<u8> = Vec::new();
    for (number, response) in stored.into_iter().enumerate() {
        if let Some(modified) = response.get(LAST_MODIFIED).filter(|_| number == 0) {
            forward.insert(IF_MODIFIED_SINCE, modified.clone());
        }
        let Some(tag) = response.get(ETAG).map(HeaderValue::as_bytes) else { continue };
        if tags.len() + tag.len() > VALIDATION_BYTES_MAX && !tags.is_empty() {
            break;
        }
        if !tags.is_empty() {
            tags.extend_from_slice(b", ");
        }
        tags.extend_from_slice(tag);
    }
    if let Some(tags) = HeaderValue::from_bytes(&tags).ok().filter(|tags| !tags.is_empty()) {
        forward.insert(IF_NONE_MATCH, tags);
    }
}

/// Bytes of one If-None-Match of ours.
const VALIDATION_BYTES_MAX: usize = 2048;

/// Whether a 304 speaks of this stored response (RFC 9111 section 4.3.4).
///
/// A 304 without a validator speaks of the one response that was asked about (`is_only_one`).
pub fn is_confirmed(stored: &HeaderMap, not_modified: &HeaderMap, is_only_one: bool) -> bool {
    if let Some(tag) = not_modified.get(ETAG).map(HeaderValue::as_bytes) {
        let is_equal = |current: &HeaderValue| match is_strong(tag.trim_ascii()) {
            true => is_strongly_equal(tag, current.as_bytes()),
            false => is_weakly_equal(tag, current.as_bytes()),
        };
        return stored.get(ETAG).is_some_and(is_equal);
    }
    match (not_modified.get(LAST_MODIFIED), stored.get(LAST_MODIFIED)) {
        (Some(new), Some(old)) => {
            new == old || fields::parse_date(new.as_bytes()).is_some_and(|n| Some(n) == fields::parse_date(old.as_bytes()))
        }
        (Some(_), None) => false,
        (None, _) => is_only_one,
    }
}

/// A response's fields as they are stored: none for one hop, none that framing or the store tells better, and a Date.
pub fn stored_fields(response: &HeaderMap, received_ms: u64) -> HeaderMap {
    let mut stored = fields::end_to_end(response, true);
    stored.remove(CONTENT_LENGTH);
    stored.remove(CONTENT_RANGE);
    // RFC 9110 section 6.6.1: a recipient with a clock adds it.
    if fields::date(&stored, DATE).is_none() {
        stored.insert(DATE, fields::format_date(received_ms / 1000));
    }
    stored
}

/// Stored fields after a 304, or after a HEAD that says the same (RFC 9111 section 3.2): the new ones replace the old,
/// but for those that describe the body that is stored.
pub fn freshened(stored: &HeaderMap, new: &HeaderMap, received_ms: u64) -> HeaderMap {
    const OF_BODY: [HeaderName; 4] = [CONTENT_ENCODING, CONTENT_TYPE, CONTENT_LENGTH, CONTENT_RANGE];
    let mut freshened = stored.clone();
    // The old age says nothing of a response that was confirmed now.
    freshened.remove(AGE);
    let update = stored_fields(new, received_ms);
    for name in update.keys().filter(|name| !OF_BODY.contains(name)) {
        freshened.remove(name);
        for value in update.get_all(name) {
            freshened.append(name.clone(), value.clone());
        }
    }
    freshened
}

/// What the 200 to a HEAD says of a stored response (RFC 9111 section 4.3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeadSays {
    /// The same: [`freshened`] applies.
    Same,
    /// Something else is there now: it is to be made unusable.
    Other,
    /// Nothing.
    Nothing,
}

/// What the answer to a HEAD says of a stored response with this status, these fields and this body length.
pub fn head_says(stored_status: StatusCode, stored: &HeaderMap, length: Option<u64>, status: StatusCode, head: &HeaderMap) -> HeadSays {
    if status != StatusCode::OK || stored_status != StatusCode::OK {
        return HeadSays::Nothing;
    }
    let said = fields::list(head, CONTENT_LENGTH).next().and_then(|text| std::str::from_utf8(text).ok()?.parse::<u64>().ok());
    let is_same_length = said.is_none() || length.is_none() || said == length;
    let is_same = |name: &HeaderName| head.get(name).is_none_or(|new| stored.get(name) == Some(new));
    match is_same_length && is_same(&ETAG) && is_same(&LAST_MODIFIED) {
        true => HeadSays::Same,
        false => HeadSays::Other,
    }
}
