//! Opening listeners. Every function fails before it has changed anything, with the system's error;
//! the role adds the name of the listener.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that may wait to be accepted, for each listener.
const BACKLOG: i32 = 1024;

/// Opens a listener. No other process can have one on its port. Needs a Tokio runtime.
///
/// # Errors
/// The system's, [`io::ErrorKind::AddrInUse`] where the port is in use.
pub fn open(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::from_std(socket(address, false)?)
}

/// Opens `count` listeners that share one address (SO_REUSEPORT), one for each worker thread. The
/// kernel distributes connections among them. Port 0 gives all of them the same free port. Each
/// thread makes a Tokio listener of its own.
///
/// # Errors
/// As [`open`], also where another process shares the port.
pub fn open_shared(address: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpListener>> {
    if address.port() != 0 {
        // Without SO_REUSEPORT, so that a port which another process shares counts as in use.
        drop(socket(address, false)?);
    }
    let first = socket(address, true)?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..count {
        listeners.push(socket(address, true)?);
    }
    Ok(listeners)
}

fn socket(address: SocketAddr, is_shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart does not wait for the connections of before; a live listener still keeps its port.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    socket.set_nonblocking(true)?;
    // Accepted connections inherit it: no system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[tokio::test]
    async fn a_port_has_one_owner() {
        let kinds = [false, true];
        let open = |is_shared, address| {
            let listeners = match is_shared {
                true => open_shared(address, 2)?,
                false => vec![super::open(address)?.into_std()?],
            };
            Ok::<_, io::Error>(listeners)
        };
        for first in kinds {
            let listeners = open(first, any()).expect("a free port");
            let address = listeners[0].local_addr().expect("bound");
            for second in kinds {
                let error = open(second, address).expect_err("the port is in use");
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            }
            drop(listeners);
            open(first, address).expect("the port is free again");
        }
    }

    #[tokio::test]
    async fn accepted_connections_send_at_once() {
        let listener = open(any()).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let _client = std::net::TcpStream::connect(address).expect("somebody listens");
        let (accepted, _) = listener.accept().await.expect("a connection waits");
        assert!(accepted.nodelay().expect("an open socket"));
    }

    #[test]
    fn shared_listeners_have_the_same_port() {
        for count in [1, 3] {
            let listeners = open_shared(any(), count).expect("a free port");
            let addresses: Vec<SocketAddr> = listeners
                .iter()
                .map(|listener| listener.local_addr().expect("bound"))
                .collect();
            assert_eq!(addresses.len(), count);
            assert!(addresses.iter().all(|address| *address == addresses[0]));
        }
    }
}
