//! Which requests of HTTP/2, and of HTTP/3, are malformed beyond what the HTTP library refuses, and the form in which
//! the others are answered: that of HTTP/1.1.
//!
//! The library checks the order and the number of pseudo-header fields, the octets of names and
//! values, fields of the connection, and whether the body has the length that is stated. It resets
//! the stream of such a request. Follows RFC 9113 sections 8.1.1, 8.2 and 8.3, and RFC 9110 sections
//! 4.2.4 and 7.2.

use http::header::{CONTENT_LENGTH, COOKIE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use nearcast_fleet::config::ClientLimits;
use nearcast_http_rules::key;

use crate::serve::http1::judge::Refusal;

/// Judges a request. `scheme` is the connection's; a proxy's connection has none, as the proxy
/// relays clients of both.
///
/// # Errors
/// The answer to a malformed one.
pub(in crate::serve) fn judge(
    request: &Parts,
    has_body: bool,
    scheme: Option<&str>,
    limits: &ClientLimits,
) -> Result<(), Refusal> {
    if request.headers.len() > limits.fields_max {
        return Err(too_large(limits));
    }
    let mut bytes = request
        .uri
        .path_and_query()
        .map_or(0, |path| path.as_str().len());
    for (name, value) in &request.headers {
        let value = value.as_bytes();
        bytes += name.as_str().len() + value.len() + 4;
        let is_edge = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        if is_edge(value.first()) || is_edge(value.last()) {
            return Err(Refusal::bad(
                "the value of a field begins or ends with a space\n",
            ));
        }
    }
    if bytes > limits.head_bytes_max {
        return Err(too_large(limits));
    }
    check_host(request)?;
    check_target(request, scheme)?;
    check_length(&request.headers, has_body)
}

/// The refusal of a head that exceeds the limits.
pub(in crate::serve) fn too_large(limits: &ClientLimits) -> Refusal {
    let (bytes, fields) = (limits.head_bytes_max, limits.fields_max);
    let words = format!(
        "the request's head has more than {bytes} bytes or {fields} fields, which are the limits here\n"
    );
    Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, words)
}

/// `:authority` and `Host` name the same host, once (RFC 9113 section 8.3.1).
fn check_host(request: &Parts) -> Result<(), Refusal> {
    let mut hosts = request.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::bad("the request has more than one Host field\n"));
    }
    match (request.uri.authority(), host) {
        (None, None) => Err(Refusal::bad("the request names no host\n")),
        (Some(authority), _) if authority.as_str().contains('@') => {
            Err(Refusal::bad("the request's authority names a user\n"))
        }
        (Some(authority), Some(host))
            if !host
                .as_bytes()
                .eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            Err(Refusal::bad("the Host field differs from :authority\n"))
        }
        _ => Ok(()),
    }
}

/// The scheme is the connection's, and the path one of a request (RFC 9113 section 8.3.1). The
/// scheme is not known where a request has no authority.
fn check_target(request: &Parts, scheme: Option<&str>) -> Result<(), Refusal> {
    if request.method == Method::CONNECT {
        return Ok(());
    }
    if request.uri.scheme_str().is_some_and(|named| match scheme {
        Some(scheme) => named != scheme,
        None => !matches!(named, "http" | "https"),
    }) {
        return Err(Refusal::bad(
            "the request's scheme is not that of the connection\n",
        ));
    }
    let path = request
        .uri
        .path_and_query()
        .map_or("", |path| path.as_str());
    let is_path = path.starts_with('/') || path == "*";
    if !is_path || !key::is_target(&request.method, path) {
        return Err(Refusal::bad(
            "the request's path is malformed: it begins with a slash and has no fragment\n",
        ));
    }
    Ok(())
}

fn check_length(fields: &HeaderMap, has_body: bool) -> Result<(), Refusal> {
    let mut stated = None;
    for value in fields.get_all(CONTENT_LENGTH) {
        let value = value.as_bytes();
        let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(value)
            .ok()
            .filter(|_| is_number)
            .and_then(|value| value.parse::<u64>().ok());
        match (length, stated) {
            (None, _) => return Err(Refusal::bad("Content-Length is no number\n")),
            (Some(length), Some(before)) if length != before => {
                return Err(Refusal::bad("more than one Content-Length\n"));
            }
            _ => stated = length,
        }
    }
    match stated {
        Some(1..) if !has_body => Err(Refusal::bad(
            "the request has less than its Content-Length\n",
        )),
        _ => Ok(()),
    }
}

/// Joins the pieces of a request's cookies (RFC 9113 section 8.2.3): in HTTP/1.1, and in whatever
/// compares requests, `Cookie` is one field.
pub(super) fn join_cookies(fields: &mut HeaderMap) {
    let mut pieces = fields.get_all(COOKIE).iter();
    if pieces.next().is_none() || pieces.next().is_none() {
        return;
    }
    let pieces: Vec<&[u8]> = fields
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        fields.insert(COOKIE, joined);
    }
}

/// Gives a request the form of HTTP/1.1: the target is a path, and the host a field. A field that
/// states the body's length twice states it once.
pub(in crate::serve) fn to_origin_form(request: &mut Parts) {
    if request.method == Method::CONNECT {
        return;
    }
    let mut uri = std::mem::take(&mut request.uri).into_parts();
    if let Some(authority) = &uri.authority
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers.insert(HOST, host);
    }
    if let Some(length) = request.headers.remove(CONTENT_LENGTH) {
        request.headers.insert(CONTENT_LENGTH, length);
    }
    request.uri = uri
        .path_and_query
        .take()
        .map_or_else(Uri::default, Uri::from);
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, Request, Version};

    use super::*;

    fn request(target: &str, fields: &[(&'static str, &str)]) -> Parts {
        let (method, uri) = target.split_once(' ').expect("a method and a target");
        let mut parts = http::uri::Parts::default();
        let named = uri.split_once("://");
        let (authority, path) = match named {
            Some((_, rest)) => {
                let end = rest.find(['/', '*']).unwrap_or(rest.len());
                (Some(&rest[..end]), &rest[end..])
            }
            None => (None, uri),
        };
        parts.scheme = named.map(|(scheme, _)| scheme.parse().expect("a scheme"));
        parts.authority = authority.map(|authority| authority.parse().expect("an authority"));
        if !path.is_empty() && method != "CONNECT" {
            parts.path_and_query = Some(path.parse().expect("a path"));
        }
        let mut request = Request::new(());
        *request.method_mut() = method.parse().expect("a method");
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = match method {
            "CONNECT" => Uri::try_from(uri).expect("an authority"),
            _ => Uri::from_parts(parts).expect("a URI"),
        };
        for (name, value) in fields {
            request.headers_mut().append(
                HeaderName::from_static(name),
                HeaderValue::from_bytes(value.as_bytes()).expect("a value"),
            );
        }
        request.into_parts().0
    }

    #[test]
    fn what_the_library_lets_pass_is_refused() {
        let limits = ClientLimits {
            fields_max: 4,
            head_bytes_max: 200,
            ..ClientLimits::default()
        };
        let long = "x".repeat(200);
        type Case<'a> = (&'a str, &'a [(&'static str, &'a str)], bool, u16);
        let table: &[Case<'_>] = &[
            ("GET http://a/", &[], false, 0),
            ("GET http://a/?b", &[("host", "a")], false, 0),
            ("GET http://A:80/", &[("host", "a:80")], false, 0),
            ("GET /", &[("host", "a")], false, 0),
            ("OPTIONS http://a*", &[], false, 0),
            ("CONNECT a:443", &[], false, 0),
            // The host.
            ("GET /", &[], false, 400),
            ("GET http://a/", &[("host", "b")], false, 400),
            ("GET http://a/", &[("host", "a:80")], false, 400),
            ("GET http://a/", &[("host", "")], false, 400),
            ("GET http://a/", &[("host", "a"), ("host", "a")], false, 400),
            ("GET http://u@a/", &[], false, 400),
            // The target.
            ("GET https://a/", &[], false, 400),
            ("GET ftp://a/", &[], false, 400),
            ("GET http://a*", &[], false, 400),
            // Values.
            ("GET http://a/", &[("b", "c ")], false, 400),
            ("GET http://a/", &[("b", "\tc")], false, 400),
            ("GET http://a/", &[("b", " ")], false, 400),
            ("GET http://a/", &[("b", "c d")], false, 0),
            // Lengths.
            ("POST http://a/", &[("content-length", "3")], true, 0),
            (
                "POST http://a/",
                &[("content-length", "3"), ("content-length", "3")],
                true,
                0,
            ),
            (
                "POST http://a/",
                &[("content-length", "3"), ("content-length", "4")],
                true,
                400,
            ),
            ("POST http://a/", &[("content-length", "+3")], true, 400),
            ("POST http://a/", &[("content-length", "3, 3")], true, 400),
            ("POST http://a/", &[("content-length", "")], true, 400),
            ("GET http://a/", &[("content-length", "0")], false, 0),
            ("GET http://a/", &[("content-length", "1")], false, 400),
            // Sizes.
            ("GET http://a/", &[("b", "c"); 4], false, 0),
            ("GET http://a/", &[("b", "c"); 5], false, 431),
            ("GET http://a/", &[("b", &long)], false, 431),
        ];
        for (target, fields, has_body, status) in table {
            let judged = judge(&request(target, fields), *has_body, Some("http"), &limits);
            let found = judged.as_ref().err().map_or(0, |refusal| {
                assert!(refusal.words.ends_with('\n'), "{refusal:?}");
                refusal.status.as_u16()
            });
            assert_eq!(found, *status, "{target} {fields:?}");
        }
    }

    #[test]
    fn a_request_gets_the_form_of_http_1_1() {
        type Case = (
            &'static str,
            &'static [(&'static str, &'static str)],
            &'static str,
            &'static str,
        );
        let table: [Case; 4] = [
            ("GET http://A.test:80/b?c", &[], "/b?c", "A.test:80"),
            ("GET /b", &[("host", "a.test")], "/b", "a.test"),
            ("OPTIONS http://a.test*", &[], "*", "a.test"),
            ("GET http://a.test/", &[("host", "A.test")], "/", "a.test"),
        ];
        for (target, fields, path, host) in table {
            let mut request = request(target, fields);
            to_origin_form(&mut request);
            let found = (request.uri.to_string(), &request.headers[HOST]);
            assert_eq!(
                (found.0.as_str(), found.1.to_str().expect("text")),
                (path, host)
            );
            assert_eq!(request.headers.get_all(HOST).iter().count(), 1);
        }
    }

    #[test]
    fn pieces_of_cookies_become_one_field() {
        type Case = (
            &'static [(&'static str, &'static str)],
            &'static [&'static str],
        );
        let table: [Case; 4] = [
            (&[], &[]),
            (&[("cookie", "a=b")], &["a=b"]),
            (&[("cookie", "a=b"), ("cookie", "c=d")], &["a=b; c=d"]),
            (
                &[
                    ("cookie", "a=b; c=d"),
                    ("x", "y"),
                    ("cookie", "e"),
                    ("cookie", "f="),
                ],
                &["a=b; c=d; e; f="],
            ),
        ];
        for (fields, expected) in table {
            let mut request = request("GET /", fields);
            join_cookies(&mut request.headers);
            let cookies: Vec<_> = request.headers.get_all(COOKIE).iter().collect();
            assert_eq!(cookies, expected);
        }
    }
}
