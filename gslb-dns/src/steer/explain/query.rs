//! The query string of `GET /explain`.

use std::net::{IpAddr, Ipv4Addr};

use percent_encoding::percent_decode_str;

use crate::handler::Requester;
use crate::message::registry::type_number;
use crate::message::{ClientSubnet, QName, rtype};
use crate::steer::choice::ClientPrefix;
use crate::steer::location::MAPPED_BITS;
use crate::steer::snapshot::masked;
use crate::zone::text;

/// Longest query string taken, in bytes.
const QUERY_BYTES_MAX: usize = 1_024;

/// The question to explain, and the client that it is explained for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ExplainQuery {
    pub(super) host: String,
    pub(super) qtype: u16,
    /// The client's address as its resolver sends it, and how many bits of it.
    pub(super) subnet: Option<ClientPrefix>,
    pub(super) resolver: Option<IpAddr>,
}

impl ExplainQuery {
    /// Reads the query string.
    ///
    /// # Errors
    /// The first fault, for people.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        if query.len() > QUERY_BYTES_MAX {
            return Err(format!("the query is longer than {QUERY_BYTES_MAX} bytes"));
        }

        let (mut host, mut subnet, mut resolver, mut qtype) = (None, None, None, rtype::A);
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value =
                decoded(value).ok_or_else(|| format!("{pair:?} is not percent-encoded text"))?;
            match name {
                "host" => {
                    let name = value.strip_suffix('.').unwrap_or(&value);
                    host = Some(name.to_ascii_lowercase());
                }
                "client" if !value.is_empty() => subnet = Some(client(&value)?),
                "resolver" if !value.is_empty() => {
                    resolver = Some(address("resolver", &value)?.to_canonical())
                }
                "type" => {
                    qtype = type_number(&value).ok_or_else(|| format!("type={value:?} is no record type; write A, AAAA, MX and so on, or TYPE<number>"))?;
                }
                "client" | "resolver" => {}
                _ => {
                    return Err(format!(
                        "{name:?} is unknown; there are host, client, resolver and type"
                    ));
                }
            }
        }

        let host = host
            .filter(|h| !h.is_empty())
            .ok_or("host=NAME is missing")?;
        match (subnet, resolver) {
            (None, None) => return Err("client=ADDRESS or resolver=ADDRESS is missing".into()),
            (Some(subnet), None) if subnet.source_prefix == 0 => {
                return Err("a client prefix of 0 bits says nothing, and DNS goes by the resolver: add resolver=ADDRESS".into());
            }
            _ => {}
        }
        Ok(Self {
            host,
            qtype,
            subnet,
            resolver,
        })
    }

    /// The host as a question name; `None` when DNS cannot have such a name.
    pub(super) fn qname(&self) -> Option<QName> {
        QName::from_wire(&text::name(&self.host, &[0]).ok()?)
    }

    /// The sender of such a query, as a name server sees it.
    pub(super) fn requester(&self) -> Requester {
        let subnet = self.subnet.map(|c| ClientSubnet {
            family: if c.address.is_ipv4() { 1 } else { 2 },
            source_prefix: c.source_prefix,
            address: c.address,
        });
        // Without a resolver there is a subnet, and the resolver's address does not count.
        Requester {
            subnet,
            resolver: self.resolver.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        }
    }

    /// The prefix that decides: the client's, or the resolver's where the client's is withheld.
    pub(super) fn client(&self) -> ClientPrefix {
        match (self.subnet, self.resolver) {
            (Some(client), None) => client,
            (Some(client), Some(_)) if client.source_prefix > 0 => client,
            (_, resolver) => ClientPrefix::host(resolver.unwrap_or(Ipv4Addr::UNSPECIFIED.into())),
        }
    }
}

/// Decodes a form value; `None` for a broken escape or text that is not UTF-8.
fn decoded(text: &str) -> Option<String> {
    let is_escape = |rest: &str| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit))
    };
    // The crate would keep a broken escape as it is.
    if !text.split('%').skip(1).all(is_escape) {
        return None;
    }
    let text = text.replace('+', " ");
    Some(percent_decode_str(&text).decode_utf8().ok()?.into_owned())
}

fn address(name: &str, text: &str) -> Result<IpAddr, String> {
    text.parse::<IpAddr>()
        .map_err(|_| format!("{name}={text:?} is not an IP address"))
}

/// An address with or without a prefix length. An IPv4-mapped IPv6 address means the IPv4 address,
/// as it does in a client subnet.
fn client(text: &str) -> Result<ClientPrefix, String> {
    let (ip, bits) = text
        .split_once('/')
        .map_or((text, None), |(ip, bits)| (ip, Some(bits)));
    let address = address("client", ip)?;
    let whole = ClientPrefix::host(address).source_prefix;
    let source_prefix = match bits.map(str::parse::<u8>) {
        None => whole,
        Some(Ok(bits)) if bits <= whole => bits,
        Some(_) => {
            return Err(format!(
                "client={text:?} has no prefix length up to {whole}"
            ));
        }
    };
    let address = match address {
        // Bits that are not sent are zeros before the address is interpreted.
        IpAddr::V6(ip) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(source_prefix))
                .unwrap_or(0);
            IpAddr::V6((u128::from(ip) & mask).into())
        }
        v4 => v4,
    };

    let sent = ClientPrefix {
        address,
        source_prefix,
        from_ecs: true,
    };
    let address = masked(&sent);
    let is_mapped = sent.address.is_ipv6() && address.is_ipv4();
    let before = if is_mapped { MAPPED_BITS } else { 0 };

    Ok(ClientPrefix {
        address,
        source_prefix: source_prefix.saturating_sub(before),
        from_ecs: true,
    })
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy as _;

    use super::*;

    #[test]
    fn questions_are_read_or_refused_with_a_hint() {
        let prefix = |address: &str, source_prefix| ClientPrefix {
            address: address.parse().unwrap(),
            source_prefix,
            from_ecs: true,
        };
        let good = [
            (
                "host=WWW.demo.test.&client=203.0.113.7",
                Some(prefix("203.0.113.7", 32)),
                None,
                rtype::A,
            ),
            (
                "host=www.demo.test&client=203.0.113.77%2f24&type=aaaa",
                Some(prefix("203.0.113.0", 24)),
                None,
                rtype::AAAA,
            ),
            (
                "host=www.demo.test&resolver=2001:db8::1",
                None,
                Some("2001:db8::1"),
                rtype::A,
            ),
            (
                "host=www.demo.test&client=&resolver=192.0.2.1&type=TYPE65280",
                None,
                Some("192.0.2.1"),
                65_280,
            ),
            (
                "client=::ffff:192.0.2.1&host=www.demo.test&type=mx",
                Some(prefix("192.0.2.1", 32)),
                None,
                rtype::MX,
            ),
            (
                "client=::ffff:192.0.2.1/120&host=www.demo.test&type=any",
                Some(prefix("192.0.2.0", 24)),
                None,
                rtype::ANY,
            ),
            (
                "client=::/0&host=www.demo.test&resolver=::ffff:192.0.2.1",
                Some(prefix("::", 0)),
                Some("192.0.2.1"),
                rtype::A,
            ),
        ];
        for (query, client, resolver, qtype) in good {
            let resolver = resolver.map(|r: &str| r.parse().unwrap());
            assert_eq!(
                ExplainQuery::parse(query),
                Ok(ExplainQuery {
                    host: "www.demo.test".into(),
                    qtype,
                    subnet: client,
                    resolver
                }),
                "{query}"
            );
        }
        let long = format!("host={}", "a".repeat(QUERY_BYTES_MAX));
        let bad = [
            ("client=192.0.2.1", "host=NAME is missing"),
            ("host=a", "client=ADDRESS or resolver=ADDRESS"),
            ("host=a&client=x", "not an IP address"),
            ("host=a&client=192.0.2.1/33", "no prefix length up to 32"),
            ("host=a&client=192.0.2.1/-1", "no prefix length"),
            ("host=a&client=%zz", "percent-encoded"),
            ("host=a&client=192.0.2.1%2", "percent-encoded"),
            ("host=a&client=192.0.2.1&type=NOSUCH", "no record type"),
            ("host=a&client=0.0.0.0/0", "add resolver="),
            ("host=a&clinet=192.0.2.1", "there are host, client"),
            (long.as_str(), "longer than"),
        ];
        for (query, words) in bad {
            let message = ExplainQuery::parse(query).unwrap_err();
            assert!(message.contains(words), "{query}: {message}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_query_string_breaks_the_reader(pieces in proptest::collection::vec(
            proptest::prop_oneof![
                proptest::sample::select(vec!["host=", "client=", "resolver=", "type=", "&", "/", "%2f", "%", "::", "ffff:", "192.0.2.1", "33", "A"])
                    .prop_map(str::to_owned),
                "\\PC{0,4}",
            ], 0..12)) {
            if let Ok(query) = ExplainQuery::parse(&pieces.concat()) {
                let who = query.client();
                let whole = if who.address.is_ipv4() { 32 } else { 128 };
                proptest::prop_assert!(who.source_prefix <= whole && !query.host.is_empty());
            }
        }
    }
}
