//! Syntax of host names, zone names, node names and origin URLs.

use crate::request_fields;

/// Longest host name, in characters.
const NAME_CHARS_MAX: usize = 253;

/// Longest label.
const LABEL_CHARS_MAX: usize = 63;

/// Whether a name can be that of a node, cluster or site: it becomes a DNS label, a directory and a
/// metric label.
pub(super) fn is_label(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LABEL_CHARS_MAX
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The problem with a host name; `None` for a valid one. Underscores are allowed, as they are
/// common below zones.
pub(super) fn host_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > NAME_CHARS_MAX {
        return Some("it has more than 253 characters");
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Some("it has an empty label");
        }
        if label.len() > LABEL_CHARS_MAX {
            return Some("a label has more than 63 characters");
        }
        if !label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            return Some("only letters, digits, - and . can be in it");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Some("a label cannot start or end with -");
        }
    }

    None
}

/// Lower case, without the final dot.
pub(super) fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Whether `name` is `zone` or below it; both in normal form.
pub(super) fn is_within(name: &str, zone: &str) -> bool {
    zone.is_empty()
        || name == zone
        || name
            .strip_suffix(zone)
            .is_some_and(|rest| rest.ends_with('.'))
}

/// `http://host[:port]` in normal form, for a URL with one of these schemes and nothing after its
/// port.
///
/// # Errors
/// The problem.
pub(crate) fn base_url(url: &str, schemes: &[&str]) -> Result<String, &'static str> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err("it has no scheme");
    };
    let scheme = scheme.to_ascii_lowercase();
    if !schemes.contains(&scheme.as_str()) {
        return Err("its scheme is not one that can be used here");
    }
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err("it has a path");
    }
    if authority.contains('@') {
        return Err("it has a user name");
    }
    Ok(format!("{scheme}://{}", host_and_port(authority)?))
}

/// `host[:port]` in normal form.
///
/// # Errors
/// The problem.
pub(crate) fn host_and_port(authority: &str) -> Result<String, &'static str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or("its [ is not closed")?;
            let address: std::net::Ipv6Addr = address
                .parse()
                .map_err(|_| "what is in its [] is not an IPv6 address")?;
            let port = if after.is_empty() {
                None
            } else {
                Some(after.strip_prefix(':').ok_or("something follows its ]")?)
            };
            (format!("[{address}]"), port)
        }
        None => match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err("an IPv6 address in it needs []"),
            Some((host, port)) => (normal(host), Some(port)),
            None => (normal(authority), None),
        },
    };

    if !host.starts_with('[') {
        host_problem(&host).map_or(Ok(()), Err)?;
    }
    match port {
        None => Ok(host),
        Some(port) => match port.parse::<u16>() {
            Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(format!("{host}:{number}"))
            }
            _ => Err("its port is not a number from 1 to 65535"),
        },
    }
}

/// Longest name of a request field.
const FIELD_NAME_BYTES_MAX: usize = 64;

/// Checks the name of a request field, in lower case, for `forward_fields` and `key_fields`.
///
/// # Errors
/// The problem and a hint.
pub(super) fn request_field(name: &str) -> Result<(), (String, &'static str)> {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > FIELD_NAME_BYTES_MAX || !name.bytes().all(is_token) {
        return Err((
            format!("{name:?} is not a field name"),
            "write one such as \"x-app-version\", without a colon, wildcard or value",
        ));
    }
    if name == "authorization" {
        return Err((
            "answers to requests with credentials are shared only where they say so".to_owned(),
            "remove it; let the origin send Cache-Control: public, s-maxage or must-revalidate (RFC 9111 section 3.5)",
        ));
    }
    if request_fields::is_owned_by_edge(name) {
        let hint = "remove it: no client's value of it reaches the origin";
        return Err((
            format!("{name} is a field that the edge drops, or makes or reads itself"),
            hint,
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for (name, good) in [
            ("ams-1", true),
            ("a", true),
            ("9", true),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("A", false),
            ("a.b", false),
            ("../x", false),
        ] {
            assert_eq!(is_label(name), good, "{name}");
        }
        assert!(is_label(&"a".repeat(63)) && !is_label(&"a".repeat(64)));
    }

    #[test]
    fn hosts() {
        for (name, good) in [
            ("www.demo.test", true),
            ("127.0.0.1", true),
            ("_dmarc.x", true),
            ("", false),
            ("a..b", false),
            (".a", false),
            ("a b", false),
            ("a:80", false),
            ("-a.b", false),
            ("*.a", false),
            ("ä.test", false),
        ] {
            assert_eq!(host_problem(name).is_none(), good, "{name}");
        }
        assert!(host_problem(&format!("{}.x", "a".repeat(64))).is_some());
        assert!(host_problem(&"a.".repeat(130)).is_some());
    }

    #[test]
    fn within() {
        for (name, zone, expected) in [
            ("a.b", "b", true),
            ("b", "b", true),
            ("ab", "b", false),
            ("a.b", "", true),
            ("", "", true),
            ("b", "a.b", false),
        ] {
            assert_eq!(is_within(name, zone), expected, "{name} {zone}");
        }
    }

    #[test]
    fn base_urls_are_normalized_or_refused() {
        for (url, expected) in [
            ("http://origin.test", Ok("http://origin.test")),
            ("HTTP://Origin.Test:8000/", Ok("http://origin.test:8000")),
            (
                "https://[2001:DB8::1]:8443",
                Ok("https://[2001:db8::1]:8443"),
            ),
            ("http://[::1]", Ok("http://[::1]")),
            ("origin.test", Err("it has no scheme")),
            (
                "ftp://origin.test",
                Err("its scheme is not one that can be used here"),
            ),
            ("http://origin.test/path", Err("it has a path")),
            ("http://origin.test?q", Err("it has a path")),
            ("http://u:p@origin.test", Err("it has a user name")),
            ("http://", Err("it is empty")),
            (
                "http://a:0",
                Err("its port is not a number from 1 to 65535"),
            ),
            (
                "http://a:+1",
                Err("its port is not a number from 1 to 65535"),
            ),
            (
                "http://a:65536",
                Err("its port is not a number from 1 to 65535"),
            ),
            ("http://::1", Err("an IPv6 address in it needs []")),
            ("http://[::1", Err("its [ is not closed")),
            ("http://[::1]x", Err("something follows its ]")),
        ] {
            assert_eq!(
                base_url(url, &["http", "https"]),
                expected.map(str::to_owned),
                "{url}"
            );
        }
    }
}
