//! Keeps the heap within what the node is configured to take.
//!
//! Heads of responses lie in the heap. The allocator keeps what they leave behind, also when the
//! budget has long given those bytes to bodies: a heap of holes, in which the next heads find room
//! only if they are no longer. So the process is measured as the kernel counts it, and when it takes
//! much more than the budget says, the holes are given back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::edge::Edge;
use crate::kernel::trim_heap;

/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Memory beside the budget from which on the heap is trimmed: half of what a node may take beside
/// `memory`.
const BESIDE_MAX: u64 = 24 << 20;
/// Memory that an open connection may take.
const CONNECTION_BYTES: u64 = 8 << 10;
/// A trim that gives back less was not worth its time.
const GAIN_MIN: u64 = 2 << 20;
/// Least and most time between trims. Allocations wait for a trim, and what it gives back causes page
/// faults later.
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// A trim that takes long is followed by so many times its time without one.
const REST: u32 = 200;

/// Looks at the memory of this process from time to time, and trims its heap.
pub(crate) async fn watch(edge: Arc<Edge>) {
    let mut pause = PAUSE_MIN;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(before) = own_bytes().filter(|own| *own > allowed(&edge)) else {
            continue;
        };
        let began = Instant::now();
        if tokio::task::spawn_blocking(trim_heap).await.is_err() {
            return;
        }
        let took = began.elapsed();
        let gain = before.saturating_sub(own_bytes().unwrap_or(before));
        tracing::debug!(gain, ?took, "the heap was trimmed");
        pause = next_pause(pause, gain, took);
        tokio::time::sleep(pause).await;
    }
}

/// Bytes that the process may take before its heap is trimmed.
fn allowed(edge: &Edge) -> u64 {
    let connections = edge.connections.count() as u64 * CONNECTION_BYTES;
    edge.store.budget().taken() + BESIDE_MAX + connections
}

fn next_pause(pause: Duration, gain: u64, took: Duration) -> Duration {
    let next = if gain < GAIN_MIN {
        pause * 2
    } else {
        PAUSE_MIN
    };
    next.max(took * REST).min(PAUSE_MAX)
}

/// Bytes of memory that this process has for itself, without what is mapped from files. `None` where
/// the kernel does not say.
fn own_bytes() -> Option<u64> {
    own_bytes_in(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn own_bytes_in(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_the_process_takes() {
        let status = "VmRSS:\t    9000 kB\nRssAnon:\t    5120 kB\nRssFile:\t   3880 kB\n";
        assert_eq!(own_bytes_in(status), Some(5 << 20));
        assert_eq!(own_bytes_in("VmRSS:\t 9000 kB\n"), None);
        assert!(own_bytes().is_some_and(|own| own > 0));
    }

    #[test]
    fn trims_that_bring_little_become_rare() {
        let short = Duration::from_millis(1);
        let mut pause = PAUSE_MIN;
        for _ in 0..20 {
            pause = next_pause(pause, 0, short);
        }
        assert_eq!(pause, PAUSE_MAX);
        assert_eq!(next_pause(pause, GAIN_MIN, short), PAUSE_MIN);
        let long = Duration::from_millis(100);
        assert_eq!(next_pause(PAUSE_MIN, GAIN_MIN, long), long * REST);
    }
}
