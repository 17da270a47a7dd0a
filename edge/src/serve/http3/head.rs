//! The head of a request: which field sections are malformed, and the form in which the others are
//! answered.
//!
//! Follows RFC 9114 sections 4.1.2, 4.2 and 4.3. What is malformed beyond that is answered as in
//! HTTP/2.

use http::header::{CONTENT_LENGTH, EXPECT};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, uri};

use super::qpack::FieldSection;

/// The request is malformed: its stream is reset (RFC 9114 section 4.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// The head of a request, whose fields are well-formed.
#[derive(Debug)]
pub(super) struct Head<'a> {
    section: &'a FieldSection,
    /// Pseudo-header fields, which come first.
    pseudo_fields: usize,
    pub(super) method: &'a [u8],
    pub(super) scheme: Option<&'a str>,
    pub(super) authority: Option<&'a str>,
    pub(super) path: Option<&'a str>,
}

impl<'a> Head<'a> {
    /// Checks a section.
    ///
    /// # Errors
    /// It is malformed.
    pub(super) fn of(section: &'a FieldSection) -> Result<Self, Malformed> {
        let (mut method, mut scheme, mut authority, mut path) = (None, None, None, None);
        let mut pseudo_fields = 0;
        for (number, (name, value)) in section.lines().enumerate() {
            if name.first() != Some(&b':') {
                check_field(name, value)?;
                continue;
            }
            // They come before all fields, each once, and those of responses not at all.
            let slot = match name {
                b":method" => &mut method,
                b":scheme" => &mut scheme,
                b":authority" => &mut authority,
                b":path" => &mut path,
                _ => return Err(Malformed),
            };
            if number != pseudo_fields || slot.replace(value).is_some() {
                return Err(Malformed);
            }
            pseudo_fields += 1;
        }

        let method = method
            .filter(|method| !method.is_empty())
            .ok_or(Malformed)?;
        let is_connect = method == b"CONNECT";
        let has_target = [scheme, path]
            .iter()
            .all(|part: &Option<&[u8]>| part.is_some_and(|part| !part.is_empty()));
        let is_complete = match is_connect {
            // RFC 9114 section 4.4.
            true => scheme.is_none() && path.is_none() && authority.is_some(),
            false => has_target,
        };
        if !is_complete || authority.is_some_and(|authority: &[u8]| authority.is_empty()) {
            return Err(Malformed);
        }
        let text = |value: Option<&'a [u8]>| {
            let text = value.map(std::str::from_utf8);
            text.transpose().map_err(|_| Malformed)
        };
        Ok(Self {
            section,
            pseudo_fields,
            method,
            scheme: text(scheme)?,
            authority: text(authority)?,
            path: text(path)?,
        })
    }

    /// Names and values of its fields, in order.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone + use<'a> {
        let lines = self.section.lines().skip(self.pseudo_fields);
        // Names were checked.
        lines.map(|(name, value)| (std::str::from_utf8(name).unwrap_or_default(), value))
    }

    /// The request with its target in absolute form.
    ///
    /// # Errors
    /// The method or the target is malformed.
    pub(super) fn to_parts(&self) -> Result<Parts, Malformed> {
        let mut request = Request::new(());
        *request.version_mut() = Version::HTTP_3;
        *request.method_mut() = Method::from_bytes(self.method).map_err(|_| Malformed)?;
        *request.uri_mut() = self.uri()?;
        let mut fields = HeaderMap::with_capacity(self.fields().count() + 1);
        for (name, value) in self.fields() {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Malformed)?;
            let value = HeaderValue::from_bytes(value).map_err(|_| Malformed)?;
            fields.try_append(name, value).map_err(|_| Malformed)?;
        }
        *request.headers_mut() = fields;
        Ok(request.into_parts().0)
    }

    fn uri(&self) -> Result<Uri, Malformed> {
        let mut parts = uri::Parts::default();
        let authority = self.authority.map(str::parse::<Authority>).transpose();
        parts.authority = authority.map_err(|_| Malformed)?;
        if let (Some(scheme), Some(path)) = (self.scheme, self.path) {
            let scheme = scheme.parse::<Scheme>().map_err(|_| Malformed)?;
            // Without an authority there is no absolute form.
            parts.scheme = parts.authority.is_some().then_some(scheme);
            let path = path.parse::<PathAndQuery>().map_err(|_| Malformed)?;
            parts.path_and_query = Some(path);
        }
        Uri::from_parts(parts).map_err(|_| Malformed)
    }
}

/// Whether the client wants to be asked for its body (RFC 9110 section 10.1.1).
pub(super) fn expects_continue(fields: &HeaderMap) -> bool {
    fields
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The length that a request states for its body, which was checked.
pub(super) fn stated_length(fields: &HeaderMap) -> Option<u64> {
    fields.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The fields behind a body (RFC 9114 section 4.1).
///
/// # Errors
/// One is malformed, or a pseudo-header field.
pub(super) fn trailers(section: &FieldSection) -> Result<HeaderMap, Malformed> {
    let mut fields = HeaderMap::new();
    for (name, value) in section.lines() {
        check_field(name, value)?;
        let name = HeaderName::from_bytes(name).map_err(|_| Malformed)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| Malformed)?;
        fields.try_append(name, value).map_err(|_| Malformed)?;
    }
    Ok(fields)
}

/// Whether a field may be in a request (RFC 9114 sections 4.2 and 10.3, RFC 9110 sections 5.1 and
/// 5.5). Pseudo-header fields have names of their own.
fn check_field(name: &[u8], value: &[u8]) -> Result<(), Malformed> {
    let is_name = !name.is_empty() && name.iter().all(|byte| is_in_name(*byte));
    let is_value = value
        .iter()
        .all(|byte| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..));
    let is_of_message = match name.len() {
        2 => name != b"te" || value.eq_ignore_ascii_case(b"trailers"),
        7 => name != b"upgrade",
        10 => name != b"connection" && name != b"keep-alive",
        16 => name != b"proxy-connection",
        17 => name != b"transfer-encoding",
        _ => true,
    };
    match is_name && is_value && is_of_message {
        true => Ok(()),
        false => Err(Malformed),
    }
}

/// A character of a token, but no capital letter.
fn is_in_name(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::super::qpack::{SectionLimits, encode};
    use super::*;

    fn section(lines: &[&str]) -> FieldSection {
        let mut input = vec![0, 0];
        for line in lines {
            let at = line[1..].find(':').expect("a value") + 1;
            encode::write_field(&mut input, &line[..at], &line.as_bytes()[at + 1..]);
        }
        let mut section = FieldSection::default();
        let limits = SectionLimits {
            fields_max: 20,
            bytes_max: 1000,
        };
        section.read(&input, limits).expect("it decodes");
        section
    }

    const GET: [&str; 4] = [
        ":method:GET",
        ":scheme:https",
        ":authority:a.test",
        ":path:/b?c",
    ];

    fn with(lines: &[&'static str]) -> Vec<&'static str> {
        [&GET[..], lines].concat()
    }

    /// The head without these, and with others in their place.
    fn without(name: &str, lines: &[&'static str]) -> Vec<&'static str> {
        let rest = GET.into_iter().filter(|line| !line.starts_with(name));
        rest.chain(lines.iter().copied()).collect()
    }

    #[test]
    fn malformed_requests_are_known() {
        let table: &[(Vec<&str>, bool)] = &[
            (GET.to_vec(), true),
            (with(&["accept:*/*", "te:trailers", "x:\t y"]), true),
            (without(":authority", &["host:a.test"]), true),
            (vec![":method:CONNECT", ":authority:a.test:443"], true),
            (
                vec![
                    ":path:*",
                    ":method:OPTIONS",
                    ":scheme:https",
                    ":authority:a",
                ],
                true,
            ),
            // Pseudo-header fields.
            (without(":method", &[]), false),
            (without(":scheme", &[]), false),
            (without(":path", &[]), false),
            (without(":path", &[":path:"]), false),
            (without(":scheme", &[":scheme:"]), false),
            (without(":authority", &[":authority:"]), false),
            (without(":method", &[":method:"]), false),
            (without(":method", &[":method:G T"]), false),
            (with(&[":method:GET"]), false),
            (with(&[":path:/"]), false),
            (with(&[":authority:a.test"]), false),
            (with(&[":scheme:https"]), false),
            (with(&[":status:200"]), false),
            (with(&[":protocol:websocket"]), false),
            (with(&[":unknown:a"]), false),
            (without(":path", &["accept:a", ":path:/"]), false),
            (vec![":method:CONNECT"], false),
            (vec![":method:CONNECT", ":authority:a:1", ":path:/"], false),
            (
                vec![":method:CONNECT", ":authority:a:1", ":scheme:https"],
                false,
            ),
            (without(":authority", &[":authority:a b"]), false),
            (without(":scheme", &[":scheme:ht tp"]), false),
            (without(":path", &[":path:/a b"]), false),
            // Fields of a connection.
            (with(&["connection:close"]), false),
            (with(&["keep-alive:timeout=5"]), false),
            (with(&["proxy-connection:keep-alive"]), false),
            (with(&["transfer-encoding:chunked"]), false),
            (with(&["upgrade:h2c"]), false),
            (with(&["te:gzip"]), false),
            (with(&["te:trailers, gzip"]), false),
            // Names and values.
            (with(&["Accept:a"]), false),
            (with(&["a b:c"]), false),
            (with(&["a\u{e9}:c"]), false),
            (with(&["a:b\nc"]), false),
            (with(&["a:b\rc"]), false),
            (with(&["a:b\0c"]), false),
            (with(&["a:\u{7f}"]), false),
        ];
        for (lines, is_good) in table {
            let section = section(lines);
            let parts = Head::of(&section).and_then(|head| head.to_parts());
            assert_eq!(parts.is_ok(), *is_good, "{lines:?}");
        }
    }

    #[test]
    fn a_head_becomes_a_request() {
        let section = section(&with(&["accept:a", "x:1", "x:2", "content-length:3"]));
        let head = Head::of(&section).expect("it is good");
        assert_eq!(head.fields().count(), 4);
        let parts = head.to_parts().expect("it is good");
        assert_eq!(parts.method, Method::GET);
        assert_eq!(parts.uri, "https://a.test/b?c");
        assert_eq!(parts.version, Version::HTTP_3);
        assert_eq!(parts.headers.get_all("x").iter().count(), 2);
        assert_eq!(stated_length(&parts.headers), Some(3));
    }

    #[test]
    fn trailers_have_no_pseudo_header_fields() {
        let table: &[(&[&str], bool)] = &[
            (&[], true),
            (&["x-sum:1", "x-sum:2"], true),
            (&[":path:/"], false),
            (&["x:1", ":status:200"], false),
            (&["Upper:1"], false),
            (&["connection:close"], false),
        ];
        for (lines, is_good) in table {
            let found = trailers(&section(lines));
            assert_eq!(
                found.as_ref().map(HeaderMap::len).ok(),
                is_good.then_some(lines.len())
            );
        }
    }
}
