//! Opening of connections to origins: names and addresses.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::OriginError;
use super::target::Address;

/// Addresses of one origin that are tried.
const ADDRESSES_MAX: usize = 4;

/// Opens connections to origins.
#[derive(Debug, Clone)]
pub(crate) enum Dialer {
    /// Resolves names by the system, and connects by TCP.
    Tcp,
    /// Connects in memory: the other end of each connection goes to a scripted origin.
    #[cfg(test)]
    Memory(tokio::sync::mpsc::UnboundedSender<tokio::io::DuplexStream>),
}

/// An open connection.
pub(super) enum Stream {
    Tcp(TcpStream),
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

impl Dialer {
    pub(super) async fn dial(
        &self,
        address: &Address,
        deadline: Instant,
    ) -> Result<Stream, OriginError> {
        match self {
            Self::Tcp => open(address, deadline).await.map(Stream::Tcp),
            #[cfg(test)]
            Self::Memory(origin) => {
                let (ours, theirs) = tokio::io::duplex(64 << 10);
                origin.send(theirs).map_err(|_| OriginError::Refused)?;
                Ok(Stream::Memory(ours))
            }
        }
    }
}

async fn open(target: &Address, deadline: Instant) -> Result<TcpStream, OriginError> {
    let addresses: Vec<SocketAddr> = match target.host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, target.port)],
        Err(_) => {
            let found = tokio::net::lookup_host((target.host.as_str(), target.port))
                .await
                .map_err(|error| {
                    // A query to a name server needs a socket too.
                    if is_local_shortage(&error) {
                        OriginError::NoSocket
                    } else {
                        OriginError::Dns
                    }
                })?;
            let found: Vec<_> = found.take(ADDRESSES_MAX).collect();
            let allowed: Vec<_> = found
                .iter()
                .copied()
                .filter(|a| !is_forbidden(a.ip()))
                .collect();
            if allowed.is_empty() && !found.is_empty() {
                return Err(OriginError::Forbidden);
            }
            allowed
        }
    };
    connect_to_one(&addresses, deadline).await
}

/// A connection to the first of several addresses that accepts one. Each address has an equal share
/// of the remaining time, so that a dead one does not use up the time of the others.
pub(super) async fn connect_to_one(
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<TcpStream, OriginError> {
    let mut last = None;
    for (tried, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(
            left / (addresses.len() - tried) as u32,
            TcpStream::connect(address),
        )
        .await
        {
            Ok(Ok(stream)) => {
                // Without this option small requests are delayed; a failure to set it is harmless.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => match classify(&error) {
                // An address of a family that this node lacks fails like this, so the failures of
                // other addresses take precedence.
                OriginError::NoSocket => last = last.or(Some(OriginError::NoSocket)),
                of_origin => last = Some(of_origin),
            },
            Err(_) => last = Some(OriginError::ConnectTimeout),
        }
    }
    Err(last.unwrap_or(OriginError::Dns))
}

/// Why no connection was made.
fn classify(error: &io::Error) -> OriginError {
    match error.kind() {
        _ if is_local_shortage(error) => OriginError::NoSocket,
        io::ErrorKind::ConnectionRefused => OriginError::Refused,
        _ => OriginError::Unreachable,
    }
}

/// Whether this node lacks a resource that a connection needs.
fn is_local_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::EADDRNOTAVAIL | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// Addresses that a name must not resolve to: link-local ones, where clouds serve the credentials of
/// machines.
pub(super) fn is_forbidden(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_unspecified() || ip.is_multicast(),
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip
                    .to_ipv4_mapped()
                    .is_some_and(|v4| is_forbidden(v4.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_of_this_node_says_nothing_of_the_origin() {
        for (code, expected) in [
            (libc::EMFILE, OriginError::NoSocket),
            (libc::ENFILE, OriginError::NoSocket),
            (libc::EADDRNOTAVAIL, OriginError::NoSocket),
            (libc::ENOBUFS, OriginError::NoSocket),
            (libc::ENOMEM, OriginError::NoSocket),
            (libc::ECONNREFUSED, OriginError::Refused),
            (libc::EHOSTUNREACH, OriginError::Unreachable),
            (libc::ENETUNREACH, OriginError::Unreachable),
            (libc::ECONNRESET, OriginError::Unreachable),
            (libc::ETIMEDOUT, OriginError::Unreachable),
        ] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(classify(&error), expected, "{error}");
        }
        let error = OriginError::NoSocket;
        assert_eq!(
            (
                error.status().as_u16(),
                error.retry_after(),
                error.failing()
            ),
            (503, Some(1), None)
        );
    }
}
