//! DNS over UDP: worker threads with a socket of their own each, and batched system calls.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nearcast_fleet::clock::now_unix_s;
use socket2::{Domain, Protocol, Socket, Type};

use super::ERROR_PAUSE;
use crate::handler::{Handler, Worker};
use crate::kernel::{self, Batch, Reply};
use crate::message::UDP_BYTES_MAX;
use crate::metrics::{Metrics, Transport};

/// Batches of queries that a UDP worker still answers after shutdown.
const LAST_BATCHES_MAX: u32 = 64;
/// Longest wait for a datagram before a worker checks for shutdown.
const UDP_WAIT: Duration = Duration::from_millis(100);
/// Kernel buffers of a UDP socket.
const UDP_BUFFER_BYTES: usize = 4 << 20;

pub(super) fn udp_socket(address: SocketAddr, is_shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(is_shared)?;
    // The system may grant less.
    let _ = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(UDP_BUFFER_BYTES);
    socket.set_read_timeout(Some(UDP_WAIT))?;
    socket.set_write_timeout(Some(UDP_WAIT))?;
    socket.bind(&address.into())?;
    let socket = UdpSocket::from(socket);
    kernel::prepare(&socket, address)?;
    Ok(socket)
}

pub(super) struct UdpWorker {
    pub(super) socket: UdpSocket,
    pub(super) handler: Arc<Handler>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) seed: u64,
}

impl UdpWorker {
    /// Serves until stopped. A worker that ended early would leave its share of the port's clients
    /// unanswered, so a panic costs one batch and an error in the log.
    pub(super) fn run(self) {
        while std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.serve())).is_err() {
            tracing::error!(
                "a query made a DNS worker panic: this is a defect; the worker goes on"
            );
        }
    }

    fn serve(&self) {
        let mut batch = Batch::new();
        let mut worker = Worker::new(Transport::Udp, self.seed, now_unix_s() as u32);
        let mut output = Vec::with_capacity(kernel::BATCH * UDP_BYTES_MAX);
        let mut replies = Vec::with_capacity(kernel::BATCH);
        let mut errors: u64 = 0;
        let mut last_batches = 0;

        loop {
            let count = match batch.receive(&self.socket) {
                Ok(count) => count,
                Err(error) => {
                    if self.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) {
                        errors += 1;
                        // Logged at 1, 2, 4, 8 and so on.
                        if errors.is_power_of_two() {
                            tracing::warn!(%error, errors, "receiving DNS queries failed; going on");
                        }
                        std::thread::sleep(ERROR_PAUSE);
                    }
                    continue;
                }
            };
            worker.now = now_unix_s() as u32;
            let snapshot = self.handler.steering.snapshot();
            output.clear();
            replies.clear();

            for i in 0..count {
                let Some((client, message)) = batch.datagram(i) else {
                    worker.tally.ignored();
                    continue;
                };
                let start = output.len();
                if self
                    .handler
                    .answer(&snapshot, &mut worker, message, client.ip(), &mut output)
                {
                    replies.push(Reply {
                        to: i,
                        start,
                        end: output.len(),
                    });
                }
            }

            if let Err(error) = batch.send(&self.socket, &output, &replies) {
                tracing::debug!(%error, "an answer could not be sent");
            }
            worker.tally.flush(&self.metrics);
            // Queries that wait in the socket are still answered, up to a limit, since the wait
            // above never times out under load.
            if self.stop.load(Ordering::Relaxed) {
                last_batches += 1;
                if last_batches > LAST_BATCHES_MAX {
                    return;
                }
            }
        }
    }
}
