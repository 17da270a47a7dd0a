//! How much memory the running fills of a node may hold for their readers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::fill::Fill;

/// The part of the memory tier that all running fills together hold for readers, and that ended
/// fills hold for readers that are behind.
const MEMORY_SHARE: u64 = 4;
/// What each fill may hold at least: without it no reader advances. Beside this, a fill has the
/// slice that it is receiving.
const WINDOW_MIN: u64 = 64 * 1024;

/// Divides a part of the memory among the fills that run.
#[derive(Debug)]
pub(crate) struct Windows {
    bytes: u64,
    running: AtomicUsize,
    /// Fills that have ended and hold slices for readers, oldest first.
    ended: Mutex<VecDeque<Weak<Fill>>>,
}

impl Windows {
    /// For a memory tier of that many bytes.
    pub(crate) fn new(memory_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes: memory_bytes / MEMORY_SHARE,
            running: AtomicUsize::new(0),
            ended: Mutex::default(),
        })
    }

    /// Bytes that one fill may hold for readers now.
    pub(super) fn window(&self) -> u64 {
        let running = self.running.load(Ordering::Relaxed).max(1) as u64;
        (self.bytes / running).max(WINDOW_MIN)
    }

    pub(super) fn begin(&self) {
        self.running.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a fill has ended. The oldest ended ones release what they hold where it is too
    /// much: their readers then need a fill of their own.
    pub(super) fn end(&self, fill: &Arc<Fill>) {
        self.running.fetch_sub(1, Ordering::Relaxed);
        if fill.held_bytes() == 0 {
            return;
        }
        let mut ended = self.ended.lock();
        ended.push_back(Arc::downgrade(fill));
        let mut held = 0;
        ended.retain(|fill| {
            let bytes = fill.upgrade().map_or(0, |fill| fill.held_bytes());
            held += bytes;
            bytes > 0
        });
        while held > self.bytes
            && ended.len() > 1
            && let Some(oldest) = ended.pop_front()
        {
            if let Some(oldest) = oldest.upgrade() {
                held -= oldest.held_bytes().min(held);
                oldest.release();
            }
        }
    }
}
