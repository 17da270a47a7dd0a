//! Connections to origins: names and addresses.

use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::OriginError;
use super::target::Address;

/// Addresses of one origin that are tried.
const ADDRESSES_MAX: usize = 4;

pub(super) async fn open(target: &Address, deadline: Instant) -> Result<TcpStream, OriginError> {
    let addresses: Vec<SocketAddr> = match target.host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, target.port)],
        Err(_) => {
            let found = tokio::net::lookup_host((target.host.as_str(), target.port)).await.map_err(|_| OriginError::Dns)?;
            let found: Vec<_> = found.take(ADDRESSES_MAX).collect();
            let allowed: Vec<_> = found.iter().copied().filter(|a| !is_forbidden(a.ip())).collect();
            if allowed.is_empty() && !found.is_empty() {
                return Err(OriginError::Forbidden);
            }
            allowed
        }
    };
    connect_to_one(&addresses, deadline).await
}

/// A connection to the first of several addresses that takes one. Each has an equal share of the time that is left, so that
/// a dead one does not use up that of the others.
pub(super) async fn connect_to_one(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, OriginError> {
    let mut last = OriginError::Dns;
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left / (addresses.len() - tried) as u32, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Without it small requests wait; a socket that cannot have it works all the same.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => last = OriginError::Refused,
            Ok(Err(_)) => last = OriginError::Unreachable,
            Err(_) => last = OriginError::ConnectTimeout,
        }
    }
    Err(last)
}

/// Addresses that a name must not lead to: link-local ones, where clouds keep machines' credentials.
pub(super) fn is_forbidden(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_unspecified() || ip.is_multicast(),
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.to_ipv4_mapped().is_some_and(|v4| is_forbidden(v4.into()))
        }
    }
}
