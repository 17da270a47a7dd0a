//! The rate of a push order: its bytes, counted, held back to the rate, and stopped with it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// Least bytes of a burst, whatever the rate.
const BURST_BYTES_MIN: u64 = 64 * 1024;

/// Holds the bytes of one push order back to its rate, counts them, and stops its fills.
#[derive(Debug)]
pub(crate) struct Pacer {
    bytes_per_second: u64,
    origin_bytes: AtomicU64,
    peer_bytes: AtomicU64,
    has_stopped: watch::Sender<bool>,
    /// When the bytes that have passed so far are within the rate.
    paid_at: Mutex<Instant>,
}

impl Pacer {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            origin_bytes: AtomicU64::new(0),
            peer_bytes: AtomicU64::new(0),
            has_stopped: watch::channel(false).0,
            paid_at: Mutex::new(Instant::now()),
        }
    }

    /// Stops the fills of the order.
    pub(crate) fn stop(&self) {
        self.has_stopped.send_replace(true);
    }

    /// Waits until the order is stopped.
    pub(crate) async fn stopped(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self
            .has_stopped
            .subscribe()
            .wait_for(|has_stopped| *has_stopped)
            .await;
    }

    /// Counts bytes that the origin or, with `is_peer`, another node of the cluster has sent.
    pub(crate) fn count(&self, is_peer: bool, bytes: u64) {
        let received = if is_peer {
            &self.peer_bytes
        } else {
            &self.origin_bytes
        };
        received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes received from origins.
    pub(crate) fn origin_bytes(&self) -> u64 {
        self.origin_bytes.load(Ordering::Relaxed)
    }

    /// Bytes received from other nodes of the cluster.
    pub(crate) fn peer_bytes(&self) -> u64 {
        self.peer_bytes.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` more are within the rate, or the order is stopped.
    pub(crate) async fn pass(&self, bytes: u64) {
        let burst = self.time_of((self.bytes_per_second / 10).max(BURST_BYTES_MIN));
        let until = {
            let mut paid_at = self.paid_at.lock();
            let now = Instant::now();
            *paid_at = (*paid_at).max(now.checked_sub(burst).unwrap_or(now)) + self.time_of(bytes);
            *paid_at
        };
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = self.stopped() => {}
        }
    }

    fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate_and_no_faster() {
        let pacer = Pacer::new(1_000_000);
        let began = Instant::now();
        for _ in 0..100 {
            pacer.pass(50_000).await;
        }
        let seconds = began.elapsed().as_secs_f64();
        assert!(
            (4.8..5.1).contains(&seconds),
            "{seconds} s for 5 MB at 1 MB/s"
        );
    }
}
