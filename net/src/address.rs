//! The text form of a listener: `192.0.2.1:80`, and the short forms that other servers accept.
//!
//! Pure functions from text to an address. No name is resolved.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why a text is not a listener.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {hint}")]
pub struct ListenerError {
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub hint: String,
}

/// Parses a listener. `8080`, `:8080` and `*:8080` are that port on every IPv4 address of the
/// machine, as `0.0.0.0:8080` is; `localhost:8080` is `127.0.0.1:8080`. Where the text has no port,
/// the hint suggests `usual_port`.
///
/// # Errors
/// Every other text. Other host names are refused: the address of a name may change, and may be
/// that of another machine.
pub fn parse(text: &str, usual_port: u16) -> Result<SocketAddr, ListenerError> {
    let text = text.trim();
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let refuse = |hint: String| {
        let problem = format!("{text:?} is not an address with a port");
        Err(ListenerError { problem, hint })
    };
    let bare = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => {
            let guess = last_group_as_port(bare).map_or_else(String::new, |(ip, port)| {
                format!(", or \"[{ip}]:{port}\" if {port} is the port")
            });
            return refuse(format!(
                "add a port, such as \"[{ip}]:{usual_port}\"{guess}"
            ));
        }
        Ok(ip) => return refuse(format!("add a port, such as \"{ip}:{usual_port}\"")),
        Err(_) => {}
    }
    if let Some((_, rest)) = text.split_once("://") {
        let rest = rest.split('/').next().unwrap_or_default();
        return refuse(match parse(rest, usual_port) {
            Ok(_) => format!("write it without the scheme: \"{rest}\""),
            Err(_) => "write an address of this machine and a port, without a scheme, such as \"192.0.2.1:80\"".to_owned(),
        });
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let is_number = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    match (host, port.parse::<u16>()) {
        ("" | "*", Ok(port)) if is_number => Ok((Ipv4Addr::UNSPECIFIED, port).into()),
        ("localhost", Ok(port)) if is_number => Ok((Ipv4Addr::LOCALHOST, port).into()),
        (_, Err(_)) if is_number => refuse(format!("a port is at most {}", u16::MAX)),
        (host, Ok(port)) if is_number => refuse(format!(
            "a listener is an IP address of this machine and not a name: write it in place of {host}, or \":{port}\" for every address"
        )),
        _ if text.eq_ignore_ascii_case("localhost") => {
            refuse(format!("add a port, such as \"localhost:{usual_port}\""))
        }
        _ => refuse(format!(
            "write an IP address and a port, such as \"192.0.2.1:{usual_port}\" or \"[2001:db8::1]:{usual_port}\""
        )),
    }
}

/// Reads the last group of an IPv6 address as a port, as in `::1:8080`: the hint offers it.
fn last_group_as_port(text: &str) -> Option<(Ipv6Addr, u16)> {
    let (ip, port) = text.rsplit_once(':')?;
    Some((
        ip.parse().ok()?,
        port.parse().ok().filter(|port| *port > 0)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_forms_are_parsed() {
        for (text, expected) in [
            ("192.0.2.1:80", "192.0.2.1:80"),
            ("[2001:db8::1]:80", "[2001:db8::1]:80"),
            ("[::]:53", "[::]:53"),
            (" 127.0.0.1:0 ", "127.0.0.1:0"),
            ("8080", "0.0.0.0:8080"),
            (":8080", "0.0.0.0:8080"),
            ("*:8080", "0.0.0.0:8080"),
            ("localhost:8080", "127.0.0.1:8080"),
            ("LocalHost.:8080", "127.0.0.1:8080"),
        ] {
            assert_eq!(
                parse(text, 80),
                Ok(expected.parse().expect("an address")),
                "{text}"
            );
        }
    }

    #[test]
    fn other_texts_are_refused_with_a_hint() {
        for (text, hint) in [
            ("192.0.2.53", "\"192.0.2.53:53\""),
            ("2001:db8::1", "\"[2001:db8::1]:53\""),
            ("[2001:db8::1]", "\"[2001:db8::1]:53\""),
            ("::1:8080", "\"[::1]:8080\" if 8080 is the port"),
            ("localhost", "\"localhost:53\""),
            ("www.example.org:80", "\":80\" for every address"),
            (
                "http://127.0.0.1:8080/",
                "without the scheme: \"127.0.0.1:8080\"",
            ),
            ("https://www.example.org/", "without a scheme"),
            ("127.0.0.1:70000", "at most 65535"),
            ("70000", "at most 65535"),
            (":", "write an IP address and a port"),
            ("", "write an IP address and a port"),
            ("127.0.0.1:", "write an IP address and a port"),
            ("127.0.0.1:http", "write an IP address and a port"),
            ("+80", "write an IP address and a port"),
            ("127.0.0.1:+80", "write an IP address and a port"),
            ("unix:/run/x", "write an IP address and a port"),
        ] {
            let refused = parse(text, 53).expect_err(text);
            assert!(refused.hint.contains(hint), "{text}: {refused}");
            assert!(
                refused.problem.contains("not an address with a port"),
                "{refused}"
            );
        }
    }
}
