//! Writes the data of SVCB and HTTPS records (RFC 9460 section 2.2).

use std::net::IpAddr;

/// A service parameter (RFC 9460 section 14.3).
///
/// `ech` (5) is not among them: the TLS library of the edges cannot decrypt a ClientHello (RFC
/// 9849). It would be one more variant, between the two hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceParam<'a> {
    /// `alpn`: protocols beside the scheme's default one, which is `http/1.1` (section 7.1).
    Alpn(&'a [&'a [u8]]),
    /// `port` (section 7.2).
    Port(u16),
    /// `ipv4hint` (section 7.3): its IPv4 addresses.
    Ipv4Hint(&'a [IpAddr]),
    /// `ipv6hint` (section 7.3): its IPv6 addresses.
    Ipv6Hint(&'a [IpAddr]),
}

impl ServiceParam<'_> {
    fn key(self) -> u16 {
        match self {
            Self::Alpn(_) => 1,
            Self::Port(_) => 3,
            Self::Ipv4Hint(_) => 4,
            Self::Ipv6Hint(_) => 6,
        }
    }

    /// Whether it has nothing to say. A list must not be empty (sections 7.1.1 and 7.3).
    fn is_empty(self) -> bool {
        match self {
            Self::Alpn(protocols) => protocols.is_empty(),
            Self::Port(_) => false,
            Self::Ipv4Hint(addresses) => !addresses.iter().any(IpAddr::is_ipv4),
            Self::Ipv6Hint(addresses) => !addresses.iter().any(IpAddr::is_ipv6),
        }
    }

    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key().to_be_bytes());
        out.extend_from_slice(&[0, 0]);
        let value_at = out.len();
        match self {
            Self::Alpn(protocols) => {
                for protocol in protocols {
                    out.push(protocol.len() as u8);
                    out.extend_from_slice(protocol);
                }
            }
            Self::Port(port) => out.extend_from_slice(&port.to_be_bytes()),
            Self::Ipv4Hint(addresses) => {
                for address in addresses {
                    if let IpAddr::V4(address) = address {
                        out.extend_from_slice(&address.octets());
                    }
                }
            }
            Self::Ipv6Hint(addresses) => {
                for address in addresses {
                    if let IpAddr::V6(address) = address {
                        out.extend_from_slice(&address.octets());
                    }
                }
            }
        }
        let len = (out.len() - value_at) as u16;
        out[value_at - 2..value_at].copy_from_slice(&len.to_be_bytes());
    }
}

/// Writes the data of a record in ServiceMode whose target is its owner. `params` are in ascending
/// order of their keys (section 2.2); empty lists are left out.
pub fn write_service(out: &mut Vec<u8>, priority: u16, params: &[ServiceParam<'_>]) {
    debug_assert!(params.is_sorted_by(|a, b| a.key() < b.key()), "{params:?}");
    out.extend_from_slice(&priority.to_be_bytes());
    // The root, which stands for the owner (section 2.5.2).
    out.push(0);
    for param in params.iter().filter(|param| !param.is_empty()) {
        param.write(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ServiceParam::{Alpn, Ipv4Hint, Ipv6Hint, Port};

    #[test]
    fn parameters_are_written_as_a_zone_file_reads_them() {
        let v4: [IpAddr; 2] = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
        let v6: [IpAddr; 1] = ["2001:db8::1".parse().expect("an address")];
        let table: [(&[ServiceParam<'_>], &str); 7] = [
            (&[], "1 ."),
            (&[Alpn(&[b"h3", b"h2"])], "1 . alpn=h3,h2"),
            (&[Alpn(&[]), Port(8443)], "1 . port=8443"),
            (&[Ipv4Hint(&v4)], "1 . ipv4hint=192.0.2.1,192.0.2.2"),
            (&[Ipv6Hint(&v6)], "1 . ipv6hint=2001:db8::1"),
            (&[Ipv4Hint(&v6), Ipv6Hint(&v4)], "1 ."),
            (
                &[Alpn(&[b"h2"]), Port(8443), Ipv4Hint(&v4), Ipv6Hint(&v6)],
                "1 . alpn=h2 port=8443 ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1",
            ),
        ];
        for (params, text) in table {
            let mut out = Vec::new();
            write_service(&mut out, 1, params);
            let read = crate::zone::text::data(crate::message::rtype::HTTPS, text, &[0]);
            assert_eq!(Ok(out), read, "{text}");
        }
    }
}
