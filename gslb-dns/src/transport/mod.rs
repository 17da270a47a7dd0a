//! The sockets of a name server: UDP workers and TCP connections, their limits and time-outs. Knows
//! bytes and peers, not the meaning of an answer.
//!
//! Other transports of the same messages (DNS over TLS, HTTPS and QUIC) belong here, each in a file of
//! its own beside `tcp`.

mod slots;
mod tcp;
mod udp;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nearcast_fleet::failure::Failure;
use nearcast_net::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

pub use self::slots::CONNECTIONS_PER_CLIENT_MAX;
use self::slots::{ClientConnections, ConnectionSlots};
use self::tcp::{Acceptor, tcp_listener};
use self::udp::{UdpWorker, udp_socket};
use crate::handler::Handler;
use crate::metrics::Metrics;

/// Most UDP workers for one address, whatever the number of cores.
const WORKERS_MAX: usize = 64;
/// Wait after an unexpected socket error, so that it cannot spin.
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// TCP connections served at a time. At most as many newcomers wait for an evicted one to end.
const CONNECTIONS_MAX: usize = 4096;

/// All listening sockets, opened but not yet served.
pub struct Listeners {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    /// TCP connections open at a time.
    pub connections_max: usize,
}

impl Listeners {
    /// Opens UDP and TCP on every address; port 0 gives both the same free port.
    ///
    /// # Errors
    /// [`Failure::bind`] for the first that cannot be opened; nothing stays open then.
    pub fn open(addresses: &[SocketAddr]) -> Result<Self, Failure> {
        let workers = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(WORKERS_MAX);
        let mut all = Self {
            udp: Vec::new(),
            tcp: Vec::new(),
            addresses: Vec::new(),
            connections_max: CONNECTIONS_MAX,
        };

        for &address in addresses {
            let tcp =
                tcp_listener(address).map_err(|e| Failure::bind("DNS over TCP", address, &e))?;
            let bound = tcp
                .local_addr()
                .map_err(|e| Failure::bind("DNS over TCP", address, &e))?;
            let fail = |e: io::Error| Failure::bind("DNS over UDP", bound, &e);
            // Sockets that share a port do not detect another server there; one that does not share
            // it does.
            drop(udp_socket(bound, false).map_err(fail)?);
            for _ in 0..workers {
                all.udp.push(udp_socket(bound, true).map_err(fail)?);
            }
            all.tcp.push(tcp);
            all.addresses.push(bound);
        }

        Ok(all)
    }

    /// The addresses they listen on.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Starts serving: UDP on threads of its own, TCP on this Tokio runtime. TCP stops accepting at
    /// `shutdown`, UDP stops at [`Serving::drain`].
    pub fn serve(
        self,
        handler: &Arc<Handler>,
        metrics: &Arc<Metrics>,
        shutdown: &Shutdown,
    ) -> Result<Serving, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (index, socket) in self.udp.into_iter().enumerate() {
            let worker = UdpWorker {
                socket,
                handler: handler.clone(),
                metrics: metrics.clone(),
                stop: stop.clone(),
                seed: seed(index),
            };
            let thread = std::thread::Builder::new()
                .name(format!("dns-udp-{index}"))
                .spawn(move || worker.run());
            threads.push(thread.map_err(|e| {
                Failure::new(
                    nearcast_fleet::failure::FailureKind::System,
                    format!(
                        "cannot start a thread for DNS over UDP: {e} (raise the limit of tasks)"
                    ),
                )
            })?);
        }

        let slots = Arc::new(ConnectionSlots::new(self.connections_max));
        let clients = Arc::new(ClientConnections::default());
        let mut tasks = tokio::task::JoinSet::new();
        for listener in self.tcp {
            let acceptor = Acceptor {
                listener,
                handler: handler.clone(),
                metrics: metrics.clone(),
                slots: slots.clone(),
                clients: clients.clone(),
            };
            tasks.spawn(acceptor.run(shutdown.clone()));
        }

        Ok(Serving {
            stop,
            threads,
            tasks,
            slots: slots.slots.clone(),
            connections_max: self.connections_max,
        })
    }
}

/// The running workers and connections.
pub struct Serving {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    tasks: tokio::task::JoinSet<()>,
    slots: Arc<Semaphore>,
    connections_max: usize,
}

impl Serving {
    /// Waits up to `limit` for TCP connections to end, then stops the UDP workers, which answer
    /// until then. Call after shutdown was requested.
    pub async fn drain(mut self, limit: Duration) {
        let drained = async {
            while self.tasks.join_next().await.is_some() {}
            // All slots are free once every connection has ended.
            let _ = self.slots.acquire_many(self.connections_max as u32).await;
        };
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::warn!("TCP connections are still open after {limit:?}; closing them");
        }
        self.stop.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads);
        let _ =
            tokio::task::spawn_blocking(move || threads.into_iter().for_each(|t| drop(t.join())))
                .await;
    }
}

/// A seed for a worker's random numbers, different for each worker and run.
fn seed(index: usize) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(index)
}
