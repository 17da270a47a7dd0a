//! The host names that listeners for people and nodes accept, against DNS rebinding.
//!
//! A web page can make the name of its site resolve to an address of a node and then read the
//! node's answers, because the browser attributes them to that site. Such requests carry the name
//! of the site. So the host of a request must be one that no attacker can own: an address,
//! `localhost`, a name without a dot (no public zone has one; containers do), or a name of this
//! fleet. Other requests get 421 (RFC 9110 section 15.5.20).

use std::net::IpAddr;

use http::uri::Authority;
use http::{Request, Version, header};

/// Why a request is refused because of its host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No host, two hosts, or an invalid one: 400 (RFC 9112 section 3.2).
    #[error("the request needs one Host field with a host name")]
    Malformed,
    /// A name of somebody else: 421.
    #[error("{0:?} is not a name of this listener")]
    Foreign(String),
}

/// Checks the host of a request; `is_accepted` gets a name in lower case, without a port or a final
/// dot.
///
/// # Errors
/// [`NameError`]
pub fn check<B>(
    request: &Request<B>,
    is_accepted: impl FnOnce(&str) -> bool,
) -> Result<(), NameError> {
    let mut fields = request.headers().get_all(header::HOST).iter();
    let (field, more) = (fields.next(), fields.next());
    if more.is_some() {
        return Err(NameError::Malformed);
    }
    let authority = match (request.uri().authority(), field) {
        (Some(authority), _) => authority.clone(),
        (None, Some(field)) => {
            Authority::try_from(field.as_bytes()).map_err(|_| NameError::Malformed)?
        }
        // Browsers always send it.
        (None, None) if request.version() < Version::HTTP_11 => return Ok(()),
        (None, None) => return Err(NameError::Malformed),
    };

    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    let literal = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(&host);
    let is_safe =
        literal.parse::<IpAddr>().is_ok() || !host.contains('.') || host.ends_with(".localhost");
    if host.is_empty() || authority.as_str().contains('@') {
        Err(NameError::Malformed)
    } else if is_safe || is_accepted(&host) {
        Ok(())
    } else {
        Err(NameError::Foreign(host))
    }
}

/// Whether a list contains a name: lower case, `*` for every name, `*.example.net` for every name
/// below it.
pub fn is_listed(name: &str, list: &[String]) -> bool {
    list.iter().any(|own| match own.strip_prefix('*') {
        Some(end) => name.ends_with(end),
        None => own == name,
    })
}

/// The host of `http://host:port/path`, in lower case.
pub fn host_of_url(url: &str) -> String {
    let uri: Option<http::Uri> = url.parse().ok();
    uri.as_ref()
        .and_then(http::Uri::host)
        .unwrap_or_default()
        .to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_others_may_own_are_refused() {
        let foreign = |name: &str| Err(NameError::Foreign(name.to_owned()));
        let table: [(&str, &[&str], Result<(), NameError>); 22] = [
            ("/x", &["127.0.0.1:7700"], Ok(())),
            ("/x", &["[::1]:7700"], Ok(())),
            ("/x", &["[2001:db8::1]"], Ok(())),
            ("/x", &["10.1.2.3"], Ok(())),
            ("/x", &["localhost:7700"], Ok(())),
            ("/x", &["LocalHost"], Ok(())),
            ("/x", &["a.localhost"], Ok(())),
            ("/x", &["control:7700"], Ok(())),
            ("/x", &["cdn.example.net"], Ok(())),
            ("/x", &["CDN.example.net.:443"], Ok(())),
            ("/x", &["any.ops.example.net"], Ok(())),
            ("/x", &["ops.example.net"], foreign("ops.example.net")),
            ("/x", &["evil.example"], foreign("evil.example")),
            (
                "/x",
                &["127.0.0.1.evil.example:7700"],
                foreign("127.0.0.1.evil.example"),
            ),
            (
                "/x",
                &["cdn.example.net.evil.example"],
                foreign("cdn.example.net.evil.example"),
            ),
            (
                "/x",
                &["evilcdn.example.net"],
                foreign("evilcdn.example.net"),
            ),
            ("/x", &["localhost@evil.example"], Err(NameError::Malformed)),
            ("/x", &[""], Err(NameError::Malformed)),
            ("/x", &[], Err(NameError::Malformed)),
            (
                "/x",
                &["127.0.0.1", "evil.example"],
                Err(NameError::Malformed),
            ),
            (
                "http://evil.example/x",
                &["127.0.0.1"],
                foreign("evil.example"),
            ),
            ("http://127.0.0.1/x", &["evil.example"], Ok(())),
        ];
        let list = ["cdn.example.net".to_owned(), "*.ops.example.net".to_owned()];
        for (uri, hosts, expected) in table {
            let mut request = Request::builder().uri(uri);
            for host in hosts {
                request = request.header(header::HOST, *host);
            }
            let request = request.body(()).expect("a request");
            assert_eq!(
                check(&request, |name| is_listed(name, &list)),
                expected,
                "{uri} {hosts:?}"
            );
        }
        let old = Request::builder()
            .version(Version::HTTP_10)
            .uri("/x")
            .body(())
            .expect("a request");
        assert_eq!(check(&old, |_| false), Ok(()), "no browser asks so");
        assert!(is_listed("any.name", &["*".to_owned()]));
        assert_eq!(
            host_of_url("http://Control.example.net:7700"),
            "control.example.net"
        );
    }
}
