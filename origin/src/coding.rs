//! The precompressed variants of a file, and which of them a request accepts. Pure.
//!
//! The choice is that of [`nearcast_http_rules::coding`] (RFC 9110 section 12.5.3).

use http::HeaderMap;
use nearcast_http_rules::coding;

/// A content coding that a file beside the plain one may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Coding {
    /// As in `Content-Encoding`.
    pub(crate) name: &'static str,
    /// Suffix after the plain file's name.
    pub(crate) suffix: &'static str,
}

/// All codings; of those that a client wants equally the first one is chosen.
pub(crate) const CODINGS: [Coding; 3] = [
    Coding {
        name: "zstd",
        suffix: ".zst",
    },
    Coding {
        name: "br",
        suffix: ".br",
    },
    Coding {
        name: "gzip",
        suffix: ".gz",
    },
];

/// The codings that a request wants at least as much as the plain file, most wanted first.
pub(crate) fn accepted(request: &HeaderMap) -> Vec<Coding> {
    let names = coding::preferred(request, &CODINGS.map(|coding| coding.name));
    names
        .into_iter()
        .filter_map(|name| CODINGS.into_iter().find(|coding| coding.name == name))
        .collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::ACCEPT_ENCODING;

    use super::*;

    #[test]
    fn clients_get_the_coding_they_like_best() {
        let table = [
            ("", vec![]),
            ("gzip", vec!["gzip"]),
            ("gzip, br", vec!["br", "gzip"]),
            ("gzip, br;q=0.5", vec!["gzip", "br"]),
            ("gzip;q=0, br", vec!["br"]),
            ("*", vec!["zstd", "br", "gzip"]),
            ("*;q=0", vec![]),
            ("*, gzip;q=0", vec!["zstd", "br"]),
            ("identity, gzip;q=0.1", vec![]),
            ("GZIP", vec!["gzip"]),
            ("x-gzip", vec!["gzip"]),
            ("gzip;q=nonsense", vec![]),
            ("deflate", vec![]),
        ];
        for (value, expected) in table {
            let mut fields = HeaderMap::new();
            if !value.is_empty() {
                fields.insert(ACCEPT_ENCODING, HeaderValue::from_static(value));
            }
            let found: Vec<&str> = accepted(&fields).iter().map(|c| c.name).collect();
            assert_eq!(found, expected, "{value:?}");
        }
    }
}
