//! EDNS (RFC 6891): the OPT record of a query and of a response, with the options used here: client
//! subnet (RFC 7871), cookies (RFC 7873), NSID, keepalive and zone version.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::registry::option;

/// A valid client subnet as sent (RFC 7871 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSubnet {
    /// 0 (no family, no address), 1 (IPv4) or 2 (IPv6).
    pub family: u16,
    /// SOURCE PREFIX-LENGTH.
    pub source_prefix: u8,
    /// The address, host bits zero. Family 0 gives `0.0.0.0`.
    pub address: IpAddr,
}

impl ClientSubnet {
    /// Checks the data of the option in a query: a known family, a scope of zero, the right number
    /// of octets, and no bits beyond the prefix.
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        let [f1, f0, source_prefix, scope, octets @ ..] = data else {
            return None;
        };
        let (family, source_prefix) = (u16::from_be_bytes([*f1, *f0]), *source_prefix);
        let bits_max = match family {
            0 => 0,
            1 => 32,
            2 => 128,
            _ => return None,
        };

        if *scope != 0
            || source_prefix > bits_max
            || octets.len() != usize::from(source_prefix).div_ceil(8)
        {
            return None;
        }

        let stray = source_prefix % 8;
        if stray != 0 && octets.last().is_some_and(|b| b & (0xff >> stray) != 0) {
            return None;
        }
        let mut whole = [0; 16];
        whole[..octets.len()].copy_from_slice(octets);
        let address = if family == 2 {
            IpAddr::V6(Ipv6Addr::from(whole))
        } else {
            IpAddr::V4(Ipv4Addr::new(whole[0], whole[1], whole[2], whole[3]))
        };

        Some(Self {
            family,
            source_prefix,
            address,
        })
    }

    /// Writes the option's data for a response with that scope.
    pub(super) fn write(&self, out: &mut Vec<u8>, scope_prefix: u8) {
        out.extend_from_slice(&self.family.to_be_bytes());
        out.extend_from_slice(&[self.source_prefix, scope_prefix]);
        let octets = usize::from(self.source_prefix).div_ceil(8);
        match self.address {
            IpAddr::V4(a) => out.extend_from_slice(&a.octets()[..octets.min(4)]),
            IpAddr::V6(a) => out.extend_from_slice(&a.octets()[..octets.min(16)]),
        }
    }
}

/// A cookie as sent (RFC 7873 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cookie {
    /// The client's part.
    pub client: [u8; 8],
    /// The server's part that the client sent, when it has the length of ours.
    pub server: Option<[u8; 16]>,
}

impl Cookie {
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        if !matches!(data.len(), 8 | 16..=40) {
            return None;
        }
        let client = data[..8].try_into().ok()?;
        Some(Self {
            client,
            server: data[8..].try_into().ok(),
        })
    }
}

/// The OPT record of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Edns {
    /// Offered UDP payload size.
    pub udp_bytes: u16,
    /// EDNS version.
    pub version: u8,
    /// DNSSEC OK.
    pub dnssec_ok: bool,
    /// Client subnet.
    pub subnet: Option<ClientSubnet>,
    /// Cookie.
    pub cookie: Option<Cookie>,
    /// Whether the name server identifier is requested.
    pub nsid: bool,
    /// Whether the TCP keepalive time-out is requested.
    pub keepalive: bool,
    /// Whether the zone version is requested.
    pub zone_version: bool,
}

impl Edns {
    /// Reads the options; `None` when one is cut short or malformed.
    pub(super) fn parse_options(&mut self, mut data: &[u8]) -> Option<()> {
        while !data.is_empty() {
            let head = data.get(..4)?;
            let (code, len) = (
                u16::from_be_bytes([head[0], head[1]]),
                usize::from(u16::from_be_bytes([head[2], head[3]])),
            );
            let value = data.get(4..4 + len)?;
            data = &data[4 + len..];
            match code {
                option::ECS if self.subnet.is_none() => {
                    self.subnet = Some(ClientSubnet::parse(value)?)
                }
                // Two client subnets contradict each other.
                option::ECS => return None,
                option::COOKIE if self.cookie.is_none() => {
                    self.cookie = Some(Cookie::parse(value)?)
                }
                option::NSID => self.nsid = true,
                option::KEEPALIVE => self.keepalive = true,
                // RFC 9660 section 3.1: empty in a query.
                option::ZONEVERSION if value.is_empty() => self.zone_version = true,
                option::ZONEVERSION => return None,
                _ => {}
            }
        }

        Some(())
    }
}

/// The OPT record of a response.
#[derive(Debug, Clone, Default)]
pub struct OptRecord<'o> {
    /// The whole response code.
    pub rcode: u16,
    /// Copied from the query (RFC 3225).
    pub dnssec_ok: bool,
    /// The client subnet as sent, and the scope that the answer is valid for.
    pub subnet: Option<(ClientSubnet, u8)>,
    /// Client and server cookie.
    pub cookie: Option<[u8; 24]>,
    /// Name server identifier.
    pub nsid: Option<&'o str>,
    /// TCP idle time-out in units of 100 ms (RFC 7828).
    pub keepalive: Option<u16>,
    /// Labels of the zone's apex, and its serial.
    pub zone_version: Option<(u8, u32)>,
    /// Extended DNS error (RFC 8914).
    pub extended_error: Option<u16>,
}

impl OptRecord<'_> {
    /// Its length on the wire.
    pub fn len(&self) -> usize {
        let subnet = self
            .subnet
            .map_or(0, |(s, _)| 8 + usize::from(s.source_prefix).div_ceil(8));
        11 + subnet
            + self.cookie.map_or(0, |_| 28)
            + self.nsid.map_or(0, |n| 4 + n.len())
            + self.keepalive.map_or(0, |_| 6)
            + self.zone_version.map_or(0, |_| 10)
            + self.extended_error.map_or(0, |_| 6)
    }

    /// Always `false`: an OPT record has a fixed part.
    pub fn is_empty(&self) -> bool {
        false
    }
}
