//! DNS over TCP with pipelining (RFC 7766).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nearcast_fleet::clock::now_unix_s;
use nearcast_net::shutdown::Shutdown;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::slots::{ClientConnections, ClientSlot, ConnectionSlots};
use super::{ERROR_PAUSE, seed};
use crate::handler::{Handler, TCP_IDLE_TENTHS, Worker};
use crate::message::{QUERY_BYTES_MAX, TCP_BYTES_MAX};
use crate::metrics::{Metrics, Transport};

/// A connection without a whole query for this long is closed.
const TCP_IDLE: Duration = Duration::from_millis(TCP_IDLE_TENTHS as u64 * 100);
/// A client that does not read its answers for this long is disconnected.
const TCP_WRITE_MAX: Duration = Duration::from_secs(5);
/// Answers are written once so many bytes are ready, or all queries that have arrived are answered.
const TCP_OUTPUT_BYTES: usize = 16 << 10;
/// Bytes kept of a message: enough to see that it is too long for a query. The rest is read and
/// discarded.
const TCP_KEPT_BYTES: usize = QUERY_BYTES_MAX + 1;
/// Size of the read buffer: once it is full, it holds a message.
const TCP_INPUT_BYTES: usize = 2 + TCP_KEPT_BYTES;
/// Connections waiting to be accepted.
const BACKLOG: i32 = 1024;

pub(super) fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restart need not wait for old connections; a live listener still keeps the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

pub(super) struct Acceptor {
    pub(super) listener: TcpListener,
    pub(super) handler: Arc<Handler>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) slots: Arc<ConnectionSlots>,
    pub(super) clients: Arc<ClientConnections>,
}

impl Acceptor {
    pub(super) async fn run(self, mut shutdown: Shutdown) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.requested() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // An accept error never ends the listener.
                    tracing::debug!(%error, "accepting a DNS connection failed; going on");
                    // A connection that was aborted before it was accepted costs nothing.
                    if error.kind() != io::ErrorKind::ConnectionAborted {
                        if is_exhaustion(&error) {
                            self.slots.evict_idlest();
                        }
                        tokio::time::sleep(ERROR_PAUSE).await;
                    }
                    continue;
                }
            };

            // The client is at its limit, or no connection can be evicted: the new connection is
            // closed.
            let Some(client_slot) = self.clients.enter(peer.ip()) else {
                continue;
            };

            let Some(entered) = self.slots.enter() else {
                continue;
            };
            let connection = Connection {
                stream,
                client: peer.ip(),
                handler: self.handler.clone(),
                metrics: self.metrics.clone(),
                slots: self.slots.clone(),
                evicted: Arc::default(),
                _client_slot: client_slot,
            };
            let shutdown = shutdown.clone();

            // The listener continues while this connection waits for its slot.
            tokio::spawn(async move {
                let Some(_slot) = entered.await else { return };
                connection.run(shutdown).await;
            });
        }
    }
}

/// Whether descriptors or memory ran out, so that closing a connection helps.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

struct Connection {
    stream: TcpStream,
    client: IpAddr,
    handler: Arc<Handler>,
    metrics: Arc<Metrics>,
    slots: Arc<ConnectionSlots>,
    evicted: Arc<Notify>,
    _client_slot: ClientSlot,
}

impl Connection {
    async fn run(mut self, mut shutdown: Shutdown) {
        let _ = self.stream.set_nodelay(true);
        let mut worker = Worker::new(Transport::Tcp, seed(0), now_unix_s() as u32);
        let mut input: Vec<u8> = Vec::with_capacity(TCP_INPUT_BYTES);
        let mut output = Vec::new();
        // Bytes still to come of a message that was answered from its beginning.
        let mut skipped = 0;

        loop {
            let reading = tokio::time::timeout(
                TCP_IDLE,
                read_query(&mut self.stream, &mut input, &mut skipped),
            );
            let read = tokio::select! {
                biased;
                read = self.slots.while_idle(&self.evicted, reading) => read,
                () = shutdown.requested() => return,
            };

            // Evicted, end of stream, an error, or no whole query in time.
            if !matches!(read, Some(Ok(Ok(true)))) {
                return;
            }
            worker.now = now_unix_s() as u32;
            let mut taken = 0;

            while let Some((message, length)) = input.get(taken..).and_then(framed) {
                let start = output.len();
                output.extend_from_slice(&[0, 0]);
                let snapshot = self.handler.steering.snapshot();
                if self
                    .handler
                    .answer(&snapshot, &mut worker, message, self.client, &mut output)
                {
                    let len = (output.len() - start - 2).min(TCP_BYTES_MAX) as u16;
                    output[start..start + 2].copy_from_slice(&len.to_be_bytes());
                } else {
                    output.truncate(start);
                }
                taken += 2 + length;
                if output.len() >= TCP_OUTPUT_BYTES {
                    break;
                }
            }

            worker.tally.flush(&self.metrics);
            skipped = taken.saturating_sub(input.len());
            input.drain(..taken - skipped);
            if !output.is_empty() {
                let writing = tokio::time::timeout(TCP_WRITE_MAX, self.stream.write_all(&output));
                match self.slots.while_idle(&self.evicted, writing).await {
                    Some(Ok(Ok(()))) => output.clear(),
                    _ => return,
                }
                // Release the memory of a large answer.
                output.shrink_to(TCP_OUTPUT_BYTES);
            }
        }
    }
}

/// Reads until a whole query has arrived; `false` at the end of the stream.
async fn read_query(
    stream: &mut TcpStream,
    input: &mut Vec<u8>,
    skipped: &mut usize,
) -> io::Result<bool> {
    while framed(input).is_none() {
        if stream.read_buf(input).await? == 0 {
            return Ok(false);
        }
        let now = input.len().min(*skipped);
        input.drain(..now);
        *skipped -= now;
    }
    Ok(true)
}

/// The first message of a stream, as much of it as is kept, and its length (RFC 1035 section
/// 4.2.2). A length below a header's is a message too: the handler ignores it.
fn framed(input: &[u8]) -> Option<(&[u8], usize)> {
    let [hi, lo, rest @ ..] = input else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([*hi, *lo]));
    Some((rest.get(..length.min(TCP_KEPT_BYTES))?, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exhaustion_makes_others_give_way() {
        for (code, expected) in [
            (libc::EMFILE, true),
            (libc::ENFILE, true),
            (libc::ECONNABORTED, false),
            (libc::EPERM, false),
        ] {
            assert_eq!(
                is_exhaustion(&io::Error::from_raw_os_error(code)),
                expected,
                "{code}"
            );
        }
    }

    #[test]
    fn frames_are_whole_messages_or_enough_of_them() {
        let large = vec![0xff; TCP_INPUT_BYTES];
        for (input, expected) in [
            (&b""[..], None),
            (b"\x00", None),
            (b"\x00\x02a", None),
            (b"\x00\x02ab", Some((&b"ab"[..], 2))),
            (b"\x00\x01abc", Some((b"a", 1))),
            (b"\x00\x00a", Some((b"", 0))),
            (&large[..], Some((&large[2..], 65_535))),
            (&large[..large.len() - 1], None),
        ] {
            assert_eq!(framed(input), expected);
        }
    }
}
