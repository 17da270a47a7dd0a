//! Accepting connections: until shutdown, under a limit where there is one, through the errors of
//! the system.
//!
//! Owns the listener and the tasks of open connections. It must not know a protocol: how many
//! connections one client may have, and which of them is evicted for another, is each role's rule.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

use crate::shutdown::Shutdown;

/// Pause after a failed accept. Its usual cause, no free file descriptors, does not pass at once.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);
/// Most connections that are accepted after shutdown was requested: more than a queue holds.
const QUEUED_MAX: usize = 8192;

/// Accepts the connections of one listener.
///
/// An accept that fails is not an error of the listener: `on_failure` is called, and accepting goes
/// on after a pause. A connection that its client closed while it was queued is skipped.
#[derive(Debug)]
pub struct Acceptor<F> {
    listener: TcpListener,
    on_failure: F,
    /// How many more connections are accepted after shutdown was requested.
    queued_max: usize,
}

impl<F: FnMut(&io::Error)> Acceptor<F> {
    /// An acceptor that calls `on_failure` when the system refuses a connection, most likely since
    /// file descriptors or memory are exhausted.
    pub fn new(listener: TcpListener, on_failure: F) -> Self {
        Self {
            listener,
            on_failure,
            queued_max: QUEUED_MAX,
        }
    }

    /// Waits for the next connection, for ever. Cancel-safe.
    pub async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    (self.on_failure)(&error);
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        }
    }

    /// Waits for the next connection until shutdown is requested. From then on it returns the
    /// connections that are queued in the kernel, which would be reset with the listener, and then
    /// `None`. Cancel-safe.
    pub async fn accept_until(
        &mut self,
        shutdown: &mut Shutdown,
    ) -> Option<(TcpStream, SocketAddr)> {
        tokio::select! {
            // Shutdown first: a queue that is never empty must not delay it.
            biased;
            () = shutdown.requested() => {}
            accepted = self.accept() => return Some(accepted),
        }
        // New clients may connect as fast as the queue is emptied.
        self.queued_max = self.queued_max.checked_sub(1)?;
        self.queued()
    }

    /// As [`Self::accept_until`], for a listener with a limit of connections: takes a permit first.
    /// A connection without one waits in the kernel's queue, where it costs this process nothing.
    /// After shutdown was requested, queued connections are accepted only while permits are free.
    pub async fn accept_permitted(
        &mut self,
        permits: &Arc<Semaphore>,
        shutdown: &mut Shutdown,
    ) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let permit = tokio::select! {
            biased;
            () = shutdown.requested() => permits.clone().try_acquire_owned().ok()?,
            permit = permits.clone().acquire_owned() => permit.ok()?,
        };
        let (stream, peer) = self.accept_until(shutdown).await?;
        Some((stream, peer, permit))
    }

    /// A connection that is queued in the kernel now.
    fn queued(&mut self) -> Option<(TcpStream, SocketAddr)> {
        loop {
            // Unconstrained: the scheduler's budget must not make a full queue look empty.
            let accepted = tokio::task::unconstrained(self.listener.accept()).now_or_never()?;
            match accepted {
                Ok(accepted) => return Some(accepted),
                Err(error) if concerns_one_connection(&error) => {}
                Err(_) => return None,
            }
        }
    }
}

/// Whether an accept failed because of the connection, and the next one may succeed at once.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}

/// The tasks of open connections. Dropping this closes them.
#[derive(Debug, Default)]
pub struct Connections(JoinSet<()>);

impl Connections {
    /// Serves a connection in a task of its own.
    pub fn spawn(&mut self, connection: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        // The set keeps the result of each task until it is read.
        while self.0.try_join_next().is_some() {}
        self.0.spawn(connection)
    }

    /// Waits for open connections to finish, up to `limit` and no longer than shutdown allows, then
    /// closes the rest. Returns how many those were.
    pub async fn drain(mut self, limit: Duration, shutdown: &mut Shutdown) -> usize {
        let finished = async { while self.0.join_next().await.is_some() {} };
        if shutdown.drained(limit, finished).await {
            0
        } else {
            self.0.len()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown;

    async fn listener() -> (Acceptor<fn(&io::Error)>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        (Acceptor::new(listener, |_| {}), address)
    }

    #[test]
    fn only_errors_of_the_system_pause_accepting() {
        for (kind, expected) in [
            (ErrorKind::ConnectionAborted, true),
            (ErrorKind::ConnectionReset, true),
            (ErrorKind::ConnectionRefused, true),
            (ErrorKind::OutOfMemory, false),
            (ErrorKind::Other, false),
        ] {
            assert_eq!(concerns_one_connection(&kind.into()), expected, "{kind}");
        }
    }

    #[tokio::test]
    async fn queued_connections_are_accepted_after_shutdown() {
        let (mut acceptor, address) = listener().await;
        let (trigger, mut shutdown) = shutdown::channel();
        let mut clients = Vec::new();
        for _ in 0..100 {
            clients.push(TcpStream::connect(address).await.expect("queued"));
        }
        trigger.shut_down();
        let mut accepted = 0;
        while acceptor.accept_until(&mut shutdown).await.is_some() {
            accepted += 1;
        }
        assert_eq!(accepted, clients.len());
    }

    #[tokio::test]
    async fn without_a_permit_a_connection_stays_queued() {
        let (mut acceptor, address) = listener().await;
        let (trigger, mut shutdown) = shutdown::channel();
        let permits = Arc::new(Semaphore::new(1));
        let _clients = (
            TcpStream::connect(address).await.expect("queued"),
            TcpStream::connect(address).await.expect("queued"),
            TcpStream::connect(address).await.expect("queued"),
        );
        let first = acceptor.accept_permitted(&permits, &mut shutdown).await;
        let mut second = Box::pin(acceptor.accept_permitted(&permits, &mut shutdown));
        assert!(second.as_mut().now_or_never().is_none(), "no permit");
        drop(first);
        let second = second.await.expect("a permit is free again");
        trigger.shut_down();
        assert!(
            acceptor
                .accept_permitted(&permits, &mut shutdown)
                .await
                .is_none(),
            "the third finds no permit"
        );
        drop(second);
        assert!(
            acceptor
                .accept_permitted(&permits, &mut shutdown)
                .await
                .is_some(),
            "the third is answered before the end"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn draining_counts_the_connections_that_it_closes() {
        let limit = Duration::from_secs(10);
        for (seconds, left) in [([1, 2], 0), ([1, 60], 1), ([30, 60], 2)] {
            let (trigger, mut shutdown) = shutdown::channel();
            trigger.shut_down();
            let mut connections = Connections::default();
            for time in seconds.map(Duration::from_secs) {
                connections.spawn(tokio::time::sleep(time));
            }
            let begun = tokio::time::Instant::now();
            assert_eq!(connections.drain(limit, &mut shutdown).await, left);
            assert!(begun.elapsed() <= limit);
        }
    }
}
