//! Transfer codings: the framing of a message's body on one connection.
//!
//! Follows RFC 9112 sections 6.1, 6.3 and 7. Only `chunked` is supported. The HTTP library reads
//! any list that ends in `chunked` as `chunked` alone, and any other list as a body that ends with
//! the connection; both would take a coded body for the content. So messages are checked here
//! first.

use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, StatusCode};

/// The transfer coding of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransferCoding {
    /// None: there is no `Transfer-Encoding`.
    None,
    /// `chunked` alone.
    Chunked,
    /// Another coding before `chunked`, which this cache cannot decode.
    Unknown,
    /// `chunked` twice, before another coding or with a parameter, or an empty list: the end of the
    /// body cannot be determined.
    Broken,
}

impl TransferCoding {
    /// The coding of a request or a response.
    pub fn of(message: &HeaderMap) -> Self {
        let mut lines = message.get_all(TRANSFER_ENCODING).iter().peekable();
        if lines.peek().is_none() {
            return Self::None;
        }
        let codings: Vec<&[u8]> = lines
            .flat_map(|line| line.as_bytes().split(|b| *b == b','))
            .map(|coding| coding.trim_ascii())
            .collect();
        let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
        // An empty member at the end hides `chunked` from the HTTP library, which then frames the
        // body differently.
        let Some((_, before)) = codings.split_last().filter(|(last, _)| is_chunked(last)) else {
            return Self::Broken;
        };
        let names = || {
            before.iter().map(|coding| {
                coding
                    .split(|b| matches!(b, b';' | b' ' | b'\t'))
                    .next()
                    .unwrap_or_default()
            })
        };
        if names().any(is_chunked) {
            Self::Broken
        } else if names().any(|name| !name.is_empty()) {
            Self::Unknown
        } else {
            Self::Chunked
        }
    }

    /// The status to refuse a request with; `None` when it is accepted.
    pub fn refusal(self) -> Option<StatusCode> {
        match self {
            Self::None | Self::Chunked => None,
            Self::Unknown => Some(StatusCode::NOT_IMPLEMENTED),
            Self::Broken => Some(StatusCode::BAD_REQUEST),
        }
    }

    /// Whether a body with this coding can be read.
    pub fn is_understood(self) -> bool {
        self.refusal().is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, map};

    #[test]
    fn only_chunked_once_is_understood() {
        use TransferCoding::*;
        let table: [(&[&str], TransferCoding); 20] = [
            (&[], None),
            (&["chunked"], Chunked),
            (&["CHUNKED"], Chunked),
            (&[", ,chunked"], Chunked),
            (&["", "chunked"], Chunked),
            (&["gzip, chunked"], Unknown),
            (&["gzip", "chunked"], Unknown),
            (&["GZip;q=1 , Chunked"], Unknown),
            (&["identity, chunked"], Unknown),
            (&["xchunked, chunked"], Unknown),
            (&["gzip"], Broken),
            (&["identity"], Broken),
            (&["xchunked"], Broken),
            (&["chunked;a=b"], Broken),
            (&["chunked,"], Broken),
            (&["chunked, gzip"], Broken),
            (&["chunked, chunked"], Broken),
            (&["chunked", "chunked"], Broken),
            (&["chunked; a=b, gzip, chunked"], Broken),
            (&[""], Broken),
        ];
        for (lines, expected) in table {
            let lines: Vec<String> = lines
                .iter()
                .map(|line| format!("transfer-encoding: {line}"))
                .collect();
            let fields = map(&lines.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(TransferCoding::of(&fields), expected, "{lines:?}");
        }
        assert_eq!(Unknown.refusal(), Some(StatusCode::NOT_IMPLEMENTED));
        assert_eq!(Broken.refusal(), Some(StatusCode::BAD_REQUEST));
        assert!(Chunked.is_understood() && None.is_understood());
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn nothing_else_passes(value in testing::pieces(&["chunked", "gzip", "identity", "CHUNKED", "x"])) {
            let mut fields = HeaderMap::new();
            fields.insert(TRANSFER_ENCODING, value.clone());
            if TransferCoding::of(&fields).is_understood() {
                let members: Vec<_> = crate::fields::members(value.as_bytes()).filter(|m| !m.is_empty()).collect();
                prop_assert!(members.len() == 1 && members[0].eq_ignore_ascii_case(b"chunked"), "{value:?}");
            }
        }
    }
}
