//! Which precompressed variant of a file a client wants (RFC 9110 section 12.5.3). Pure.

use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

/// A content coding whose file may lie beside the plain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Coding {
    /// As in `Content-Encoding`.
    pub(crate) name: &'static str,
    /// Added to the plain file's name.
    pub(crate) suffix: &'static str,
}

/// Best first, for clients that like several equally.
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

/// The codings that a request accepts, best first; without the plain file where that is refused
/// (`identity;q=0`).
pub(crate) fn accepted(fields: &HeaderMap) -> Vec<Coding> {
    let mut weighed: Vec<(u16, Coding)> = CODINGS
        .iter()
        .map(|c| (weight(fields, c.name), *c))
        .filter(|(w, _)| *w > 0)
        .collect();
    let plain = weight(fields, "identity");
    // A coding that a client likes less than the plain file is not chosen. The sort keeps our order
    // among equals.
    weighed.retain(|(w, _)| *w >= plain || plain == u16::MAX);
    weighed.sort_by_key(|(w, _)| std::cmp::Reverse(*w));
    weighed.into_iter().map(|(_, c)| c).collect()
}

/// Quality in thousandths; `u16::MAX` for the plain file where nothing is said of it.
fn weight(fields: &HeaderMap, name: &str) -> u16 {
    let (mut named, mut star) = (None, None);
    for member in fields
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
    {
        let mut parts = member.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default();
        let quality = parts
            .find_map(|p| p.strip_prefix("q=").or_else(|| p.strip_prefix("Q=")))
            .map_or(1000, thousandths);
        if coding.eq_ignore_ascii_case(name)
            || (name == "gzip" && coding.eq_ignore_ascii_case("x-gzip"))
        {
            named = Some(quality);
        } else if coding == "*" {
            star = Some(quality);
        }
    }
    match (named, star) {
        (Some(q), _) => q,
        (None, Some(q)) if name != "identity" || q == 0 => q,
        _ if name == "identity" => u16::MAX,
        _ => 0,
    }
}

fn thousandths(text: &str) -> u16 {
    let quality: f64 = text.parse().unwrap_or(0.0);
    (quality.clamp(0.0, 1.0) * 1000.0) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

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
