//! Whether a response carries the representation that is stored, and where its bytes begin.

use http::{HeaderMap, Response, StatusCode};

use crate::body::Content;
use crate::origin::{OriginBody, OriginError};
use nearcast_http_rules::conditional::StrongValidator;
use nearcast_http_rules::range::ContentRange;

/// How many bytes of a response's body come before the byte at `at` of `content`.
///
/// # Errors
/// [`OriginError::Erred`] when the response is an error, [`OriginError::Unfit`] when it carries
/// another representation.
pub(super) fn bytes_to_skip(
    content: &Content,
    response: &Response<OriginBody>,
    at: u64,
) -> Result<u64, OriginError> {
    if response.status().is_server_error() {
        return Err(OriginError::Erred);
    }
    let fields = response.headers();
    let skip = match (response.status(), ContentRange::of(fields)) {
        // Some origins ignore `If-Range`: a 206 without the validator may belong to any version, so
        // it is refused (RFC 9110 section 15.3.7).
        (StatusCode::PARTIAL_CONTENT, Some(ContentRange::Bytes { range, complete })) => {
            (range.first <= at && is_same_representation(content, fields, complete))
                .then(|| at - range.first)
        }
        (StatusCode::OK, _) => {
            is_same_representation(content, fields, response.body().length()).then_some(at)
        }
        _ => None,
    };
    skip.ok_or(OriginError::Unfit)
}

/// Whether a response carries the representation that `content` holds, by its validator and its
/// complete length. Where the validator is a date, the response has to state the length: files that
/// a deployment gave one date differ in it.
pub(super) fn is_same_representation(
    content: &Content,
    fields: &HeaderMap,
    length: Option<u64>,
) -> bool {
    let Some(validator) = content
        .validator()
        .filter(|validator| validator.matches(fields))
    else {
        return false;
    };
    match (length, content.length()) {
        (Some(length), Some(known)) => length == known,
        _ => matches!(validator, StrongValidator::Tag(_)),
    }
}

/// The complete length that a 206 states.
pub(super) fn complete_length(fields: &HeaderMap) -> Option<u64> {
    match ContentRange::of(fields) {
        Some(ContentRange::Bytes { complete, .. }) => complete,
        _ => None,
    }
}
