//! What makes a coded form once more, byte for byte: an encoder gives the same bytes for the same
//! settings and the same flushes, however its input is cut.

use nearcast_fleet::config::Coding;
use parking_lot::Mutex;

/// Flushes that are remembered. A body with more of them came in crumbs over a long time; its coded
/// form is not made again.
const FLUSHES_MAX: usize = 4096;

/// How one coded form is made.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) coding: Coding,
    pub(super) level: u32,
    /// The length of the body, as far as it was known at the begin.
    pub(super) length: Option<u64>,
    /// After how many bytes of the body the encoder was flushed; `None` once there were too many.
    flushes: Mutex<Option<Vec<u64>>>,
}

impl Recipe {
    pub(super) fn new(coding: Coding, level: u32, length: Option<u64>) -> Self {
        Self {
            coding,
            level,
            length,
            flushes: Mutex::new(Some(Vec::new())),
        }
    }

    /// Whether it gives the same bytes again.
    pub(crate) fn is_exact(&self) -> bool {
        self.flushes.lock().is_some()
    }

    pub(super) fn note_flush(&self, at: u64) {
        let mut flushes = self.flushes.lock();
        if let Some(all) = &mut *flushes {
            match all.len() < FLUSHES_MAX {
                true => all.push(at),
                false => *flushes = None,
            }
        }
    }

    /// The flushes after more than `from` bytes, up to `to`.
    pub(super) fn flushes_within(&self, from: u64, to: u64) -> Vec<u64> {
        let flushes = self.flushes.lock();
        let all = flushes.as_deref().unwrap_or_default();
        let first = all.partition_point(|at| *at <= from);
        let end = all.partition_point(|at| *at <= to);
        all[first..end].to_vec()
    }
}
