//! The HTTPS records of steered names (RFC 9460), as far as they follow from the fleet file: which
//! sites have one, its port, and the protocols of each cluster.
//!
//! A record leads clients from `http` to `https` (RFC 9460 section 9.5). So a site has one only if
//! every edge that may be given to a client serves TLS and can have a certificate; then every client
//! gets one (RFC 7871: no record is absent for some clients only). The port is one that all of them
//! have: target and addresses are the same for all ports, and a client may hold the record of one
//! cluster and the addresses of another.

use nearcast_fleet::config::{Cluster, Fleet, Node, Site};

/// The port of `https` without a number.
const DEFAULT_PORT: u16 = 443;

/// Why a site has no HTTPS record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRecord {
    /// `dns_record = false`.
    TurnedOff,
    /// No certificate can be expected.
    NoCertificate,
    /// An edge serves no TLS.
    NoTls,
    /// Edges serve TLS, but not on one port.
    NoCommonPort,
    /// There is no such site.
    NoSite,
}

impl NoRecord {
    /// For people.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::TurnedOff => "the site has https.dns_record = false",
            Self::NoCertificate => "the fleet file has no certificate for the site",
            Self::NoTls => "an edge of the site has no listen_tls",
            Self::NoCommonPort => "the edges of the site have no port of listen_tls in common",
            Self::NoSite => "the site is gone",
        }
    }
}

/// The protocols that edges serve over TLS beside HTTP/1.1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Protocols {
    /// HTTP/2.
    pub http2: bool,
    /// HTTP/3.
    pub http3: bool,
}

impl Protocols {
    const ALL: Self = Self {
        http2: true,
        http3: true,
    };

    /// Those that both have.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            http2: self.http2 && other.http2,
            http3: self.http3 && other.http3,
        }
    }

    fn of_node(node: &Node, port: u16) -> Self {
        // Behind the PROXY protocol is a proxy for TCP.
        let takes_quic = node
            .listen_tls
            .iter()
            .any(|address| address.port() == port && !node.proxy_protocol.contains(address));
        Self {
            http2: node.clients.http2,
            http3: node.clients.http3 && takes_quic,
        }
    }

    fn of_cluster(cluster: &Cluster, port: u16) -> Self {
        let nodes = cluster.nodes.iter();
        nodes
            .map(|node| Self::of_node(node, port))
            .fold(Self::ALL, Self::and)
    }
}

/// The record of a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SiteService {
    pub(super) port: u16,
    /// By cluster of the fleet; of the site's only.
    protocols: Box<[Protocols]>,
}

impl SiteService {
    /// The protocols of all edges of a cluster.
    pub(super) fn protocols(&self, cluster: usize) -> Protocols {
        self.protocols
            .get(cluster)
            .copied()
            .unwrap_or(Protocols::ALL)
    }
}

/// The records of all sites, by site of the fleet. Immutable.
#[derive(Debug)]
pub(super) struct Services(Box<[Result<SiteService, NoRecord>]>);

impl Services {
    pub(super) fn new(fleet: &Fleet) -> Self {
        Self(
            fleet
                .sites
                .iter()
                .map(|site| service_of(fleet, site))
                .collect(),
        )
    }

    /// That of a site, or why it has none.
    pub(super) fn of_site(&self, site: usize) -> Result<&SiteService, NoRecord> {
        match self.0.get(site) {
            Some(service) => service.as_ref().map_err(|reason| *reason),
            None => Err(NoRecord::NoSite),
        }
    }
}

fn service_of(fleet: &Fleet, site: &Site) -> Result<SiteService, NoRecord> {
    if !site.https.dns_record {
        return Err(NoRecord::TurnedOff);
    }
    let is_ordered = fleet.acme.is_some() && !site.https.brings_certificates;
    if fleet.tls.certificates.is_empty() && !is_ordered {
        return Err(NoRecord::NoCertificate);
    }

    let clusters = || site.clusters.iter().filter_map(|c| fleet.clusters.get(*c));
    let nodes: Vec<&Node> = clusters().flat_map(|cluster| &cluster.nodes).collect();
    let port = common_port(&nodes)?;
    let mut protocols = vec![Protocols::ALL; fleet.clusters.len()];
    for &cluster in &site.clusters {
        if let (Some(slot), Some(cluster)) =
            (protocols.get_mut(cluster), fleet.clusters.get(cluster))
        {
            *slot = Protocols::of_cluster(cluster, port);
        }
    }
    Ok(SiteService {
        port,
        protocols: protocols.into(),
    })
}

/// The port on which all these nodes serve TLS: 443 if it is one, else the first one of the first
/// node.
fn common_port(nodes: &[&Node]) -> Result<u16, NoRecord> {
    let Some(first) = nodes.first() else {
        return Err(NoRecord::NoTls);
    };
    if nodes.iter().any(|node| node.listen_tls.is_empty()) {
        return Err(NoRecord::NoTls);
    }
    let is_common = |port: &u16| {
        nodes
            .iter()
            .all(|node| node.listen_tls.iter().any(|a| a.port() == *port))
    };
    let of_first = first.listen_tls.iter().map(std::net::SocketAddr::port);
    std::iter::once(DEFAULT_PORT)
        .chain(of_first)
        .find(is_common)
        .ok_or(NoRecord::NoCommonPort)
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::config::Acme;

    use super::*;
    use crate::steer::fixture::fleet_with_tls;

    type Change = fn(&mut Fleet);

    const BOTH: Protocols = Protocols::ALL;
    const HTTP2: Protocols = Protocols {
        http2: true,
        http3: false,
    };

    fn acme() -> Acme {
        Acme {
            authorities: Vec::new(),
            contact: Vec::new(),
            resolver: None,
            challenge: None,
            certificates: Vec::new(),
        }
    }

    #[test]
    fn a_site_has_a_record_where_every_edge_serves_tls_on_one_port() {
        fn listen(fleet: &mut Fleet, cluster: usize, node: usize, ports: &[u16]) {
            let node = &mut fleet.clusters[cluster].nodes[node];
            let address = node.addresses[0];
            node.listen_tls = ports.iter().map(|port| (address, *port).into()).collect();
        }
        let table: [(&str, Change, Result<u16, NoRecord>); 12] = [
            ("as it is", |_| {}, Ok(443)),
            (
                "turned off",
                |f| f.sites[0].https.dns_record = false,
                Err(NoRecord::TurnedOff),
            ),
            (
                "no certificate",
                |f| f.tls.certificates.clear(),
                Err(NoRecord::NoCertificate),
            ),
            (
                "certificates are ordered",
                |f| {
                    f.tls.certificates.clear();
                    f.acme = Some(acme());
                },
                Ok(443),
            ),
            (
                "others' certificates are ordered",
                |f| {
                    f.tls.certificates.clear();
                    f.acme = Some(acme());
                    f.sites[0].https.brings_certificates = true;
                },
                Err(NoRecord::NoCertificate),
            ),
            (
                "one edge without TLS",
                |f| listen(f, 2, 1, &[]),
                Err(NoRecord::NoTls),
            ),
            (
                "one edge on another port",
                |f| listen(f, 2, 1, &[8443]),
                Err(NoRecord::NoCommonPort),
            ),
            (
                "one edge on two ports",
                |f| listen(f, 2, 1, &[8443, 443]),
                Ok(443),
            ),
            (
                "another port for all",
                |f| (0..6).for_each(|n| listen(f, n / 2, n % 2, &[8443])),
                Ok(8443),
            ),
            (
                "two ports for all",
                |f| (0..6).for_each(|n| listen(f, n / 2, n % 2, &[8443, 443])),
                Ok(443),
            ),
            (
                "some ports in common",
                |f| {
                    (0..6).for_each(|n| listen(f, n / 2, n % 2, &[9443, 8443]));
                    listen(f, 0, 0, &[7443, 8443, 9443]);
                },
                Ok(8443),
            ),
            (
                "an edge of no cluster of the site",
                |f| {
                    f.sites[0].clusters = vec![0, 1];
                    listen(f, 2, 1, &[]);
                },
                Ok(443),
            ),
        ];
        for (name, change, expected) in table {
            let mut fleet = fleet_with_tls();
            change(&mut fleet);
            let services = Services::new(&fleet);
            let found = services.of_site(0).map(|service| service.port);
            assert_eq!(found, expected, "{name}");
        }
        let services = Services::new(&fleet_with_tls());
        assert_eq!(services.of_site(99), Err(NoRecord::NoSite));
    }

    #[test]
    fn protocols_are_those_of_every_edge_of_a_cluster() {
        let table: [(&str, Change, Protocols); 5] = [
            ("as it is", |_| {}, BOTH),
            (
                "one without HTTP/3",
                |f| f.clusters[0].nodes[1].clients.http3 = false,
                HTTP2,
            ),
            (
                "one without HTTP/2",
                |f| f.clusters[0].nodes[1].clients.http2 = false,
                Protocols {
                    http2: false,
                    http3: true,
                },
            ),
            (
                "one behind a proxy",
                |f| {
                    let node = &mut f.clusters[0].nodes[1];
                    node.proxy_protocol = node.listen_tls.clone();
                },
                HTTP2,
            ),
            (
                "another cluster",
                |f| f.clusters[1].nodes[0].clients.http3 = false,
                BOTH,
            ),
        ];
        for (name, change, expected) in table {
            let mut fleet = fleet_with_tls();
            change(&mut fleet);
            let services = Services::new(&fleet);
            let service = services.of_site(0).expect("it has a record");
            assert_eq!(service.protocols(0), expected, "{name}");
        }
    }
}
