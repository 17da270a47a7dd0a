//! How many fills may run: beyond the limit, fills without a reader end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::body::{Content, Windows};
use nearcast_store::SLICE_BYTES;

/// Bytes that one fill buffers at most: the slice that is being received, and the last few.
const FILL_BYTES: u64 = 3 * SLICE_BYTES as u64;
/// The limit is as many fills as fit into this part of the memory tier, between a least and a most.
/// Fills with readers are bounded by the connections of clients.
const FILLS_MEMORY_SHARE: u64 = 4;
const FILLS_MIN: u64 = 32;
const FILLS_MAX: u64 = 4096;
/// How long a fill may take to find its first reader while the limit is exceeded; and how long a
/// fill that cannot be resumed runs on without a reader.
pub(super) const UNREAD_MAX: Duration = Duration::from_secs(1);

/// Counts the fills that run.
#[derive(Debug)]
pub(crate) struct FillLimit {
    windows: Arc<Windows>,
    most: usize,
    count: AtomicUsize,
    has_grown: Notify,
}

impl FillLimit {
    pub(super) fn new(memory_bytes: u64) -> Arc<Self> {
        let most =
            (memory_bytes / FILLS_MEMORY_SHARE / FILL_BYTES).clamp(FILLS_MIN, FILLS_MAX) as usize;
        Arc::new(Self {
            windows: Windows::new(memory_bytes),
            most,
            count: AtomicUsize::new(0),
            has_grown: Notify::new(),
        })
    }

    /// Fills that run.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The memory that fills hold for their readers.
    pub(crate) fn windows(&self) -> &Arc<Windows> {
        &self.windows
    }

    /// Counts one more fill, until the permit is dropped.
    pub(super) fn permit(self: &Arc<Self>) -> FillPermit {
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.has_grown.notify_waiters();
        }
        FillPermit {
            limit: self.clone(),
            since: Instant::now(),
        }
    }

    fn is_exceeded(&self) -> bool {
        self.count() > self.most
    }
}

/// A running fill, counted until it is dropped.
pub(super) struct FillPermit {
    limit: Arc<FillLimit>,
    since: Instant,
}

impl FillPermit {
    /// Waits until `content` has no reader while the limit is exceeded: the fill then has to end.
    pub(super) async fn revoked(&self, content: &Content) {
        loop {
            // Subscribe before the checks, so that no change after them is missed.
            let (has_grown, unread) =
                (self.limit.has_grown.notified(), content.last_reader_ended());
            if content.is_read() || !self.limit.is_exceeded() {
                tokio::select! {
                    () = has_grown => {}
                    () = unread => {}
                }
            } else if self.since.elapsed() < UNREAD_MAX {
                tokio::time::sleep_until(self.since + UNREAD_MAX).await;
            } else {
                return;
            }
        }
    }
}

impl Drop for FillPermit {
    fn drop(&mut self) {
        self.limit.count.fetch_sub(1, Ordering::Relaxed);
    }
}
