//! Sets fields of responses from text.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Sets a field. A value that is not valid is left out: its parts are ours or were checked.
pub(crate) fn put(fields: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        fields.insert(name, value);
    }
}
