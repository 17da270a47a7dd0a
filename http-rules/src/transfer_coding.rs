//! Transfer codings: how a message's body is framed on one connection.
//!
//! Follows RFC 9112 sections 6.1, 6.3 and 7. Only `chunked` is understood. The parser below takes
//! any list that ends in `chunked` for it, and any other for a body that ends with the connection;
//! both would take a coded body for the content.

use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, StatusCode};

/// What `Transfer-Encoding` says of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransferCoding {
    /// There is no such field.
    None,
    /// `chunked` alone.
    Chunked,
    /// Another coding, under `chunked`: what is in the chunks is not understood.
    Unknown,
    /// `chunked` twice, under another coding, with a parameter, or an empty list: where the body
    /// ends cannot be known.
    Broken,
}

impl TransferCoding {
    /// Of a request or a response.
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
        // An empty member at the end hides `chunked` from the parser, which then frames the body
        // otherwise.
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

    /// The status that answers a request with it, when that must be refused.
    pub fn refusal(self) -> Option<StatusCode> {
        match self {
            Self::None | Self::Chunked => None,
            Self::Unknown => Some(StatusCode::NOT_IMPLEMENTED),
            Self::Broken => Some(StatusCode::BAD_REQUEST),
        }
    }

    /// Whether a body with it can be read.
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
