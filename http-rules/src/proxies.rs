//! What trusted proxies in front of this cache state about a client: its address and its scheme.
//!
//! Follows RFC 7239 (`Forwarded`) and the custom of `X-Forwarded-For` and `X-Forwarded-Proto`. The
//! caller checks that the request came from a trusted proxy; from anyone else nothing of this is
//! believed.
//!
//! Each proxy appends the address from which it was asked, so the list is read from its end: the
//! client is the last address that is no trusted proxy. What stands before it may come from the
//! client itself. `Forwarded` counts only where neither of the other two is there: most proxies set
//! those, and relay a client's `Forwarded` as it is.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::fields;

/// Most lines of one of the fields; with more it is malformed.
pub const LINES_MAX: usize = 8;
/// Most proxies that a request may have passed.
pub const HOPS_MAX: usize = 32;

/// The client of a request, as its connection and trusted proxies show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its address.
    pub address: IpAddr,
    /// The scheme by which it asked, `http` or `https`.
    pub scheme: &'static str,
    /// A statement was malformed, and what it would have said is not believed.
    pub is_malformed: bool,
}

/// The client of a request that came over a trusted proxy's connection. `connection` is the address
/// and the scheme of that connection; they hold as far as the fields state nothing else.
pub fn stated<'a>(
    connection: (IpAddr, &'static str),
    request: impl Iterator<Item = (&'a str, &'a [u8])>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Seen {
    let (address, scheme) = connection;
    let mut seen = Seen {
        address,
        scheme,
        is_malformed: false,
    };
    let (mut clients, mut schemes, mut forwarded) =
        (Lines::default(), Lines::default(), Lines::default());
    for (name, value) in request {
        let lines = match name.len() {
            9 if name.eq_ignore_ascii_case("forwarded") => &mut forwarded,
            15 if name.eq_ignore_ascii_case("x-forwarded-for") => &mut clients,
            17 if name.eq_ignore_ascii_case("x-forwarded-proto") => &mut schemes,
            _ => continue,
        };
        lines.push(value);
    }

    if clients.is_empty() && schemes.is_empty() {
        if !forwarded.is_empty() {
            read_forwarded(&forwarded, &mut seen, is_trusted);
        }
        return seen;
    }
    let passed = read_clients(&clients, &mut seen, is_trusted);
    read_schemes(&schemes, passed, &mut seen);
    seen
}

/// The lines of one field.
#[derive(Default)]
struct Lines<'a> {
    values: [&'a [u8]; LINES_MAX],
    count: usize,
}

impl<'a> Lines<'a> {
    fn push(&mut self, value: &'a [u8]) {
        if let Some(line) = self.values.get_mut(self.count) {
            *line = value;
        }
        self.count += 1;
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// `None` where there are more than the limit.
    fn all(&self) -> Option<&[&'a [u8]]> {
        self.values.get(..self.count)
    }
}

/// Members of lines without quoted strings, the last first.
fn from_the_end<'a>(lines: &'a [&'a [u8]]) -> impl Iterator<Item = &'a [u8]> {
    let members = |line: &&'a [u8]| line.rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let all = lines.iter().rev().flat_map(members);
    all.filter(|member| !member.is_empty())
}

/// What a member states of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Address(IpAddr),
    /// The proxy does not know it, or does not say it (RFC 7239 sections 6.2 and 6.3).
    Hidden,
    Malformed,
}

/// Finds the client in `X-Forwarded-For`, and gives the number of proxies between it and this node
/// beside the one that asks.
fn read_clients(lines: &Lines<'_>, seen: &mut Seen, is_trusted: impl Fn(IpAddr) -> bool) -> usize {
    let Some(lines) = lines.all() else {
        seen.is_malformed = true;
        return 0;
    };
    let mut passed = 0;
    for (number, member) in from_the_end(lines).enumerate() {
        passed = number;
        if !follow(node_of(member), number, seen) || !is_trusted(seen.address) {
            break;
        }
    }
    passed
}

/// Takes an address as the client's, until another one is found behind it; `false` where the list
/// ends.
fn follow(node: Node, passed: usize, seen: &mut Seen) -> bool {
    match node {
        Node::Address(address) if passed < HOPS_MAX => {
            seen.address = address;
            true
        }
        Node::Hidden => false,
        Node::Address(_) | Node::Malformed => {
            seen.is_malformed = true;
            false
        }
    }
}

/// Finds the scheme in `X-Forwarded-Proto`: the member at the client's place where each proxy has
/// appended one, else the first one.
fn read_schemes(lines: &Lines<'_>, passed: usize, seen: &mut Seen) {
    let Some(lines) = lines.all() else {
        seen.is_malformed = true;
        return;
    };
    if let Some(member) = from_the_end(lines).take(passed + 1).last() {
        match scheme_of(member) {
            Some(scheme) => seen.scheme = scheme,
            None => seen.is_malformed = true,
        }
    }
}

/// Finds client and scheme in `Forwarded`. A malformed field states nothing.
fn read_forwarded(lines: &Lines<'_>, seen: &mut Seen, is_trusted: impl Fn(IpAddr) -> bool) {
    let elements = lines.all().and_then(|lines| {
        let members = lines.iter().flat_map(|line| fields::members(line));
        members.map(Element::parse).collect::<Option<Vec<_>>>()
    });
    let Some(elements) = elements else {
        seen.is_malformed = true;
        return;
    };
    for (passed, element) in elements.iter().rev().enumerate() {
        if passed == HOPS_MAX {
            seen.is_malformed = true;
            return;
        }
        if let Some(scheme) = element.scheme {
            seen.scheme = scheme;
        }
        if !follow(element.client, passed, seen) || !is_trusted(seen.address) {
            return;
        }
    }
}

/// A `forwarded-element` (RFC 7239 section 4).
struct Element {
    client: Node,
    scheme: Option<&'static str>,
}

impl Element {
    fn parse(mut text: &[u8]) -> Option<Self> {
        let (mut client, mut scheme) = (None, None);
        loop {
            text = text.trim_ascii_start();
            if let Some(rest) = text.strip_prefix(b";") {
                text = rest;
                continue;
            }
            if text.is_empty() {
                return Some(Self {
                    client: client.unwrap_or(Node::Hidden),
                    scheme,
                });
            }
            let name_end = text.iter().position(|byte| !fields::is_token(*byte))?;
            let (name, rest) = text.split_at(name_end);
            let (value, rest) = parameter_value(rest.strip_prefix(b"=")?)?;
            text = rest.trim_ascii_start();
            if !(text.is_empty() || text.starts_with(b";")) {
                return None;
            }
            // Each parameter comes once.
            if name.eq_ignore_ascii_case(b"for") {
                let node = node_of(value);
                if node == Node::Malformed || client.replace(node).is_some() {
                    return None;
                }
            } else if name.eq_ignore_ascii_case(b"proto")
                && scheme.replace(scheme_of(value)?).is_some()
            {
                return None;
            }
        }
    }
}

/// A token, or the text of a quoted string, and what follows it. Addresses and schemes need no
/// escapes: a value with one names neither.
fn parameter_value(text: &[u8]) -> Option<(&[u8], &[u8])> {
    match text.strip_prefix(b"\"") {
        None => {
            let end = text.iter().position(|byte| !fields::is_token(*byte));
            let (value, rest) = text.split_at(end.unwrap_or(text.len()));
            (!value.is_empty()).then_some((value, rest))
        }
        Some(quoted) => {
            let mut at = 0;
            loop {
                match quoted.get(at)? {
                    b'"' => return Some((&quoted[..at], &quoted[at + 1..])),
                    b'\\' => at += 2,
                    _ => at += 1,
                }
            }
        }
    }
}

/// The address that a node identifier names (RFC 7239 section 6), with or without a port.
/// `X-Forwarded-For` has IPv6 addresses without brackets too.
fn node_of(text: &[u8]) -> Node {
    let Ok(text) = std::str::from_utf8(text) else {
        return Node::Malformed;
    };
    let text = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text);
    if let Ok(address) = text.parse::<IpAddr>() {
        return Node::Address(address.to_canonical());
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Node::Address(address.ip().to_canonical());
    }
    // An obfuscated port says nothing about the address.
    let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => match address.parse::<Ipv6Addr>() {
            Ok(address) if port.is_empty() || is_port(port) => {
                return Node::Address(IpAddr::V6(address).to_canonical());
            }
            _ => return Node::Malformed,
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    if !(port.is_empty() || is_port(port)) {
        return Node::Malformed;
    }
    if let Ok(address) = name.parse::<IpAddr>() {
        return Node::Address(address);
    }
    let is_obfuscated = name.len() > 1
        && name.starts_with('_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    match is_obfuscated || name.eq_ignore_ascii_case("unknown") {
        true => Node::Hidden,
        false => Node::Malformed,
    }
}

/// Whether a text is `:` and a number of a port, or an obfuscated one.
fn is_port(text: &str) -> bool {
    let Some(port) = text.strip_prefix(':') else {
        return false;
    };
    let is_number = (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
    let is_obfuscated = port.len() > 1
        && port.starts_with('_')
        && port
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    is_number || is_obfuscated
}

/// The scheme of this name. Proxies name those of WebSockets too, which are requests of the other
/// two.
fn scheme_of(name: &[u8]) -> Option<&'static str> {
    const NAMES: [(&[u8], &str); 4] = [
        (b"https", "https"),
        (b"http", "http"),
        (b"wss", "https"),
        (b"ws", "http"),
    ];
    let mut names = NAMES.iter();
    names
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, scheme)| *scheme)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn is_trusted(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address.octets()[0] == 10,
            IpAddr::V6(address) => address.octets()[0] == 0xfd,
        }
    }

    fn seen(lines: &[(&str, &str)]) -> Seen {
        let lines = lines.iter().map(|(name, value)| (*name, value.as_bytes()));
        stated((PROXY, "http"), lines, is_trusted)
    }

    /// Lines of a request, the client's address and scheme, whether something is malformed.
    type Row<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str, bool);

    fn check(table: &[Row<'_>]) {
        for (lines, address, scheme, is_malformed) in table {
            let expected = Seen {
                address: address.parse().expect("an address"),
                scheme: match *scheme {
                    "https" => "https",
                    _ => "http",
                },
                is_malformed: *is_malformed,
            };
            assert_eq!(seen(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_trusted_proxy() {
        let xff = "x-forwarded-for";
        check(&[
            (&[], "10.0.0.1", "http", false),
            (&[(xff, "192.0.2.1")], "192.0.2.1", "http", false),
            (
                &[("X-Forwarded-For", "192.0.2.1")],
                "192.0.2.1",
                "http",
                false,
            ),
            // What a client writes itself stands before what proxies append.
            (&[(xff, "1.1.1.1, 192.0.2.1")], "192.0.2.1", "http", false),
            (
                &[(xff, "1.1.1.1"), (xff, "192.0.2.1")],
                "192.0.2.1",
                "http",
                false,
            ),
            (
                &[(xff, "192.0.2.1,10.0.0.9 , 10.0.0.8")],
                "192.0.2.1",
                "http",
                false,
            ),
            (
                &[(xff, "192.0.2.1"), (xff, "10.0.0.9")],
                "192.0.2.1",
                "http",
                false,
            ),
            (&[(xff, "192.0.2.1, fd00::1")], "192.0.2.1", "http", false),
            // All are proxies: the first is where the chain begins.
            (&[(xff, "10.0.0.9, 10.0.0.8")], "10.0.0.9", "http", false),
            (&[(xff, "192.0.2.1:4711")], "192.0.2.1", "http", false),
            (&[(xff, "2001:db8::1")], "2001:db8::1", "http", false),
            (&[(xff, "[2001:db8::1]")], "2001:db8::1", "http", false),
            (&[(xff, "[2001:DB8::1]:80")], "2001:db8::1", "http", false),
            (&[(xff, "::ffff:192.0.2.1")], "192.0.2.1", "http", false),
            (&[(xff, ", 192.0.2.1,, ")], "192.0.2.1", "http", false),
            (&[(xff, "192.0.2.1, unknown")], "10.0.0.1", "http", false),
            (&[(xff, "")], "10.0.0.1", "http", false),
            // Nothing behind a malformed member is believed.
            (&[(xff, "192.0.2.1, x")], "10.0.0.1", "http", true),
            (&[(xff, "192.0.2.1, x, 10.0.0.9")], "10.0.0.9", "http", true),
            (&[(xff, "x, 192.0.2.1")], "192.0.2.1", "http", false),
            (&[(xff, "192.0.2.256")], "10.0.0.1", "http", true),
            (&[(xff, "192.0.2.1:x")], "10.0.0.1", "http", true),
            (&[(xff, "[::1")], "10.0.0.1", "http", true),
            (&[(xff, "fe80::1%eth0")], "10.0.0.1", "http", true),
        ]);
    }

    #[test]
    fn the_scheme_is_the_clients() {
        let (xff, xfp) = ("x-forwarded-for", "x-forwarded-proto");
        check(&[
            (&[(xfp, "https")], "10.0.0.1", "https", false),
            (&[(xfp, "HTTPS")], "10.0.0.1", "https", false),
            (&[(xfp, "wss")], "10.0.0.1", "https", false),
            (&[(xfp, "http")], "10.0.0.1", "http", false),
            (&[(xfp, "ftp")], "10.0.0.1", "http", true),
            (&[(xfp, "")], "10.0.0.1", "http", false),
            // Of the proxy that the client asked; what the client wrote stands before.
            (
                &[(xff, "192.0.2.1"), (xfp, "http, https")],
                "192.0.2.1",
                "https",
                false,
            ),
            (
                &[(xff, "192.0.2.1, 10.0.0.9"), (xfp, "https, http")],
                "192.0.2.1",
                "https",
                false,
            ),
            (
                &[(xff, "192.0.2.1, 10.0.0.9"), (xfp, "https")],
                "192.0.2.1",
                "https",
                false,
            ),
            (&[(xff, "x"), (xfp, "https")], "10.0.0.1", "https", true),
            (&[(xfp, "http, https")], "10.0.0.1", "https", false),
            (&[(xfp, "http"), (xfp, "https")], "10.0.0.1", "https", false),
        ]);
    }

    #[test]
    fn forwarded_counts_where_nothing_else_is_stated() {
        // RFC 7239 sections 4 and 7.4.
        let f = "forwarded";
        check(&[
            (&[(f, "for=192.0.2.43")], "192.0.2.43", "http", false),
            (
                &[(
                    f,
                    "For=\"[2001:db8:cafe::17]:4711\";Proto=HTTPS;by=203.0.113.43",
                )],
                "2001:db8:cafe::17",
                "https",
                false,
            ),
            (
                &[(f, "for=192.0.2.43;proto=https, for=10.0.0.9;proto=http")],
                "192.0.2.43",
                "https",
                false,
            ),
            (
                &[(f, "for=192.0.2.43;proto=https"), (f, "for=10.0.0.9")],
                "192.0.2.43",
                "https",
                false,
            ),
            (
                &[(f, "for=1.1.1.1;proto=https, for=192.0.2.43")],
                "192.0.2.43",
                "http",
                false,
            ),
            (
                &[(f, "for=\"192.0.2.43:47011\"")],
                "192.0.2.43",
                "http",
                false,
            ),
            (
                &[(f, "for=\"192.0.2.43:_x1\"")],
                "192.0.2.43",
                "http",
                false,
            ),
            (
                &[(f, "for=_hidden;proto=https")],
                "10.0.0.1",
                "https",
                false,
            ),
            (&[(f, "for=unknown")], "10.0.0.1", "http", false),
            (&[(f, "for=\"_a:1\"")], "10.0.0.1", "http", false),
            (
                &[(f, "proto=https;host=\"a,b;c\"")],
                "10.0.0.1",
                "https",
                false,
            ),
            (&[(f, ";for=192.0.2.43; ;")], "192.0.2.43", "http", false),
            (
                &[(f, "for=192.0.2.43;for=192.0.2.44")],
                "10.0.0.1",
                "http",
                true,
            ),
            (&[(f, "for=x")], "10.0.0.1", "http", true),
            (&[(f, "for=\"192.0.2.43")], "10.0.0.1", "http", true),
            (&[(f, "for = 192.0.2.43")], "10.0.0.1", "http", true),
            (
                &[(f, "for=192.0.2.43 proto=https")],
                "10.0.0.1",
                "http",
                true,
            ),
            (&[(f, "for")], "10.0.0.1", "http", true),
            (&[(f, "proto=gopher")], "10.0.0.1", "http", true),
            (
                &[
                    (f, "for=1.1.1.1;proto=https"),
                    ("x-forwarded-for", "192.0.2.1"),
                ],
                "192.0.2.1",
                "http",
                false,
            ),
            (
                &[(f, "for=1.1.1.1"), ("x-forwarded-proto", "https")],
                "10.0.0.1",
                "https",
                false,
            ),
        ]);
    }

    #[test]
    fn statements_are_bounded() {
        let long = vec!["10.0.0.2"; HOPS_MAX].join(", ");
        let with_client = format!("192.0.2.1, {long}");
        for (name, value) in [
            ("x-forwarded-for", with_client.clone()),
            (
                "forwarded",
                format!("for={}", with_client.replace(", ", ", for=")),
            ),
        ] {
            let found = seen(&[(name, &value)]);
            assert_eq!(
                (found.address.to_string(), found.is_malformed),
                ("10.0.0.2".to_owned(), true),
                "{name}"
            );
        }
        for name in ["x-forwarded-for", "x-forwarded-proto", "forwarded"] {
            let found = seen(&vec![(name, "x"); LINES_MAX + 1]);
            assert_eq!((found.address, found.is_malformed), (PROXY, true), "{name}");
        }
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn no_text_panics_and_no_client_hides_behind_its_own_words(
            one in "[ -~]{0,40}",
            other in "(for=|proto=|\"|,|;|\\[|\\]|:|10\\.0\\.0\\.9|_x|https|[ -~]){0,12}",
        ) {
            for name in ["x-forwarded-for", "x-forwarded-proto", "forwarded"] {
                seen(&[(name, &one), (name, &other)]);
            }
            // The proxy appends the true client, in a line of its own or behind a comma.
            let behind = format!("{other}, 192.0.2.1");
            for lines in [
                [("x-forwarded-for", &*other), ("x-forwarded-for", "192.0.2.1")],
                [("x-forwarded-for", &*one), ("x-forwarded-for", &*behind)],
            ] {
                prop_assert_eq!(seen(&lines).address.to_string(), "192.0.2.1");
            }
        }
    }
}
