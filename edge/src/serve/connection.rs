//! The steps of one client's connection before its first request: what a proxy in front says about
//! it, TLS, and the protocol.

use std::net::IpAddr;
use std::sync::Arc;

use nearcast_net::proxy_header;
use nearcast_net::shutdown::Shutdown;
use tokio::net::TcpStream;

use super::connections::ConnectionSlot;
use super::handshake;
use super::http1::{self, first::Begun};
use super::http2;
use super::server::turn_away;
use super::transport::Transport;
use crate::edge::Worker;
use crate::proxies::ProxyRefusal;
use crate::request::check::ClientConnection;

/// What the connections of a listener begin with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ListenerKind {
    /// A TLS handshake.
    pub(crate) is_tls: bool,
    /// A header of the PROXY protocol, before all else.
    pub(crate) has_proxy_header: bool,
    /// The same address and port serve HTTP/3: this port.
    pub(crate) http3_port: Option<u16>,
}

impl ListenerKind {
    /// Whether its connections begin with a request.
    pub(super) fn is_plain(self) -> bool {
        !self.is_tls && !self.has_proxy_header
    }
}

/// A connection that was accepted and admitted.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) address: IpAddr,
    /// The address is one of a trusted proxy.
    pub(super) is_proxy: bool,
    pub(super) kind: ListenerKind,
    pub(super) slot: ConnectionSlot,
    /// What was read of its first request, and what is left to write of the response.
    pub(super) begun: Option<Box<Begun>>,
}

/// Serves one connection until either side ends it. `counted` is dropped after it.
///
/// A task is as large as the largest of its steps for as long as it lasts, so each step is a box of
/// its own, which is freed at its end.
pub(super) async fn serve<T>(
    worker: Arc<Worker>,
    accepted: Accepted,
    counted: T,
    ending: Shutdown,
) {
    // Dropped last, as it is declared first.
    let _counted = counted;
    let (accepted, scheme) = match accepted.kind.has_proxy_header {
        false => (accepted, "http"),
        true => match Box::pin(read_proxy_header(&worker, accepted, &ending)).await {
            Some(read) => read,
            None => return,
        },
    };
    let Accepted {
        stream,
        address,
        is_proxy,
        kind,
        mut slot,
        begun,
    } = accepted;
    let of_proxy = |client: ClientConnection| match is_proxy {
        true => client.through_proxy(),
        false => client,
    };
    let (transport, client) = if kind.is_tls {
        let handshake = handshake::handshake(&worker, stream, &mut slot, &ending);
        let Some((stream, tls)) = Box::pin(handshake).await else {
            return;
        };
        let client = of_proxy(ClientConnection::new(address, "https").with_tls(tls));
        let client = client.with_alternative(kind.http3_port);
        let is_http2 = handshake::is_http2(&stream);
        let transport = Transport::Tls(Box::new(stream));
        if is_http2 {
            let opened = http2::Opened::new(transport, slot);
            return Box::pin(http2::serve(worker, opened, client, ending)).await;
        }
        (transport, client)
    } else {
        let client = of_proxy(ClientConnection::new(address, scheme));
        (Transport::Plain(stream), client)
    };
    // So that connections of HTTP/2 do not keep room for it.
    Box::pin(http1::serve(
        worker,
        transport,
        client,
        (slot, begun),
        ending,
    ))
    .await;
}

/// Reads the header by which a trusted proxy names the connection's client, and counts the
/// connection for that client. Gives the connection, and the scheme by which the client asks unless
/// a TLS handshake follows; `None` where the connection ends here.
async fn read_proxy_header(
    worker: &Worker,
    mut accepted: Accepted,
    ending: &Shutdown,
) -> Option<(Accepted, &'static str)> {
    let edge = &worker.edge;
    let mut ending = ending.clone();
    let reading = proxy_header::read(&mut accepted.stream);
    let read = tokio::select! {
        biased;
        read = tokio::time::timeout(edge.clients.handshake_timeout, reading) => read,
        () = ending.requested() => return None,
    };
    let header = match read {
        Ok(read) => read.map_err(ProxyRefusal::from),
        Err(_) => Err(ProxyRefusal::Slow),
    };
    let header = match header {
        Ok(header) => header,
        Err(refusal) => {
            edge.proxy_counters.note_refused(&refusal);
            tracing::debug!(proxy = %accepted.address, %refusal, "a connection is closed");
            return None;
        }
    };

    if let Some(client) = header.client {
        accepted.address = client.ip();
        // Behind this proxy there may be another one.
        accepted.is_proxy = edge.sites.load().trusted_proxies.contains(accepted.address);
        if !accepted.is_proxy && accepted.slot.assign(accepted.address).is_err() {
            // Over TLS there is no answer before a handshake.
            if !accepted.kind.is_tls {
                turn_away(&edge.name, &accepted.stream);
            }
            return None;
        }
    }
    Some((accepted, if header.is_tls { "https" } else { "http" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the future that a function gives.
    fn future_bytes<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_an_idle_connection_is_small() {
        let bytes = future_bytes(serve::<Arc<()>>);
        assert!(bytes <= 2048, "{bytes}");
    }
}
