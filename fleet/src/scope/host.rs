//! Host names in canonical form.

use std::net::Ipv6Addr;

use super::ScopeError;
use super::punycode;

/// Most characters of a host name.
const HOST_CHARS_MAX: usize = 253;
/// Most characters of a label.
const LABEL_CHARS_MAX: usize = 63;

/// A host in canonical form: in lower case and ASCII, without port and final dot.
///
/// # Errors
/// The text is neither a host name nor an address.
pub fn host(text: &str) -> Result<String, ScopeError> {
    let authority = text.trim();
    canonical_host(authority).map_err(|why| ScopeError::Host(authority.to_owned(), why))
}

fn canonical_host(authority: &str) -> Result<String, &'static str> {
    if authority.is_empty() {
        return Err("it is empty; write one such as www.example.org");
    }
    if authority.contains("://") || authority.contains('/') {
        return Err("write its name alone, without scheme and path");
    }
    if authority.contains('@') {
        return Err("leave out the user name before the @");
    }
    if authority.contains('*') {
        return Err("name the hosts one by one, or purge the site");
    }

    let literal = authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'));
    let (name, port) = match literal {
        Some((address, port)) => (ipv6_literal(address)?, port),
        None => {
            let (name, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            (dns_name(name)?, port)
        }
    };
    if is_port(port) {
        Ok(name)
    } else {
        Err("the text after the : is not a port")
    }
}

fn ipv6_literal(address: &str) -> Result<String, &'static str> {
    match address.parse::<Ipv6Addr>() {
        Ok(address) => Ok(format!("[{address}]")),
        Err(_) => Err("the text in the [] is not an IPv6 address"),
    }
}

/// Whether the text after a host is nothing, or a colon with an optional port.
fn is_port(text: &str) -> bool {
    match text.strip_prefix(':') {
        None => text.is_empty(),
        Some("") => true,
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok(),
    }
}

/// A host name in the form that DNS uses.
fn dns_name(name: &str) -> Result<String, &'static str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let labels: Vec<String> = name.split('.').map(dns_label).collect::<Result<_, _>>()?;
    let name = labels.join(".");
    if name.len() > HOST_CHARS_MAX {
        Err("it has more than 253 characters")
    } else {
        Ok(name)
    }
}

fn dns_label(label: &str) -> Result<String, &'static str> {
    const INTERNATIONAL: &str = "letters, digits, - and . can be in it; write an international \
                                 name in its DNS form (xn--...)";
    let label = label.to_lowercase();
    if label.is_empty() {
        return Err("it has an empty label");
    }
    let is_valid = |c: char| match c {
        '-' | '_' => true,
        c if c.is_ascii() => c.is_ascii_alphanumeric(),
        c => c.is_alphanumeric(),
    };
    if !label.chars().all(is_valid) {
        return Err(INTERNATIONAL);
    }

    let label = if label.is_ascii() {
        label
    } else {
        format!("xn--{}", punycode::encode(&label).ok_or(INTERNATIONAL)?)
    };
    if label.len() > LABEL_CHARS_MAX {
        Err("a label of it has more than 63 characters")
    } else {
        Ok(label)
    }
}
