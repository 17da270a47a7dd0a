//! The redirect of clients without TLS to `https`, and what browsers are told about TLS and HTTP/3.
//!
//! Follows RFC 9110 sections 15.4.2 and 15.4.9, RFC 6797, RFC 7838 and RFC 8555 section 8.3.

use http::{HeaderName, HeaderValue, Method, StatusCode};
use nearcast_fleet::config::Hsts;

/// `Strict-Transport-Security` (RFC 6797 section 6.1).
pub const STRICT_TRANSPORT_SECURITY: HeaderName =
    HeaderName::from_static("strict-transport-security");

/// `Alt-Svc` (RFC 7838 section 3).
pub const ALT_SVC: HeaderName = HeaderName::from_static("alt-svc");
/// Seconds for which a client may remember that a host is served by HTTP/3. A client that does not
/// get through returns to TCP at once (RFC 7838 section 2.4), so nothing fails when this is too long.
const ALTERNATIVE_SECONDS: u32 = 86_400;

/// The port of `https` without a number.
const DEFAULT_PORT: u16 = 443;
/// Where certificate authorities look for the proof that a host is its owner's. They ask by `http`,
/// and the host may have no certificate yet.
const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// The redirect of a request without TLS to the same host, path and query by `https`, for a site
/// whose clients are to use that. `None` where the request is served as it is: the path of an ACME
/// challenge, and `*`, which names no resource. `port` is the one on which this node serves TLS.
pub fn redirect(
    method: &Method,
    host: &str,
    port: u16,
    path_and_query: &str,
) -> Option<(StatusCode, HeaderValue)> {
    if !path_and_query.starts_with('/') || path_and_query.starts_with(CHALLENGES) {
        return None;
    }
    let status = match *method {
        Method::GET | Method::HEAD => StatusCode::MOVED_PERMANENTLY,
        // With a 301 clients would repeat it as a GET (RFC 9110 section 15.4.2).
        _ => StatusCode::PERMANENT_REDIRECT,
    };
    let port = match port {
        DEFAULT_PORT => String::new(),
        port => format!(":{port}"),
    };
    let target = format!("https://{host}{port}{path_and_query}");
    Some((status, HeaderValue::try_from(target).ok()?))
}

/// The port of redirects, where a node serves TLS on these ports; the default one where it serves
/// none, since then a proxy in front of it does.
pub fn redirect_port(ports: impl Iterator<Item = u16>) -> u16 {
    let mut first = None;
    for port in ports {
        if port == DEFAULT_PORT {
            return port;
        }
        first.get_or_insert(port);
    }
    first.unwrap_or(DEFAULT_PORT)
}

/// The value of `Strict-Transport-Security`. It is sent by `https` only (RFC 6797 section 7.2).
pub fn strict_transport_security(hsts: &Hsts) -> HeaderValue {
    let mut value = format!("max-age={}", hsts.max_age.as_secs());
    if hsts.subdomains {
        value.push_str("; includeSubDomains");
    }
    if hsts.preload {
        value.push_str("; preload");
    }
    HeaderValue::try_from(value).expect("digits and words are a field's value")
}

/// The value of `Alt-Svc` for a host that is served by HTTP/3 on this port of the same address (RFC
/// 9114 section 3.1.1). It is sent over TLS alone: another protocol has no way to show that it is
/// the same host's (RFC 7838 section 2.1).
pub fn alternative(port: u16) -> HeaderValue {
    HeaderValue::try_from(format!("h3=\":{port}\"; ma={ALTERNATIVE_SECONDS}"))
        .expect("digits and quotes are a field's value")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_redirect_keeps_host_path_and_query() {
        let (moved, kept) = (301, 308);
        let table = [
            ("GET", 443, "/", Some((moved, "https://a.test/"))),
            (
                "HEAD",
                443,
                "/x?y=%41",
                Some((moved, "https://a.test/x?y=%41")),
            ),
            (
                "GET",
                8443,
                "//b.test/x",
                Some((moved, "https://a.test:8443//b.test/x")),
            ),
            ("POST", 443, "/x", Some((kept, "https://a.test/x"))),
            ("OPTIONS", 443, "/x", Some((kept, "https://a.test/x"))),
            ("OPTIONS", 443, "*", None),
            ("GET", 443, "/.well-known/acme-challenge/abc", None),
            (
                "GET",
                443,
                "/.well-known/x",
                Some((moved, "https://a.test/.well-known/x")),
            ),
        ];
        for (method, port, path, expected) in table {
            let method = Method::from_bytes(method.as_bytes()).expect("a token");
            let found = redirect(&method, "a.test", port, path);
            let found = found
                .as_ref()
                .map(|(status, target)| (status.as_u16(), target.to_str().expect("ASCII")));
            assert_eq!(found, expected, "{method} {path}");
        }
    }

    #[test]
    fn the_port_is_one_that_serves_tls() {
        for (ports, expected) in [
            (&[][..], 443),
            (&[8443], 8443),
            (&[8443, 443], 443),
            (&[9443, 8443], 9443),
        ] {
            assert_eq!(redirect_port(ports.iter().copied()), expected, "{ports:?}");
        }
    }

    #[test]
    fn the_alternative_names_its_port() {
        // RFC 7838 section 3.
        for (port, expected) in [
            (443, "h3=\":443\"; ma=86400"),
            (8443, "h3=\":8443\"; ma=86400"),
        ] {
            assert_eq!(alternative(port), expected);
        }
    }

    #[test]
    fn browsers_are_told_for_how_long() {
        // RFC 6797 section 6.1.
        let table = [
            (365, false, false, "max-age=31536000"),
            (365, true, false, "max-age=31536000; includeSubDomains"),
            (
                730,
                true,
                true,
                "max-age=63072000; includeSubDomains; preload",
            ),
            (0, false, false, "max-age=0"),
        ];
        for (days, subdomains, preload, expected) in table {
            let hsts = Hsts {
                max_age: Duration::from_secs(days * 86_400),
                subdomains,
                preload,
            };
            assert_eq!(strict_transport_security(&hsts), expected);
        }
    }
}
