//! Seeks: requests for bytes far ahead of a running fill.

use std::sync::Arc;

use super::content::Content;
use super::fill::{Fill, SLICE};

/// Permission to fetch bytes ahead of a fill. While it lives, no other seek of the same bytes
/// begins.
#[derive(Debug)]
pub(crate) struct Seek {
    content: Arc<Content>,
    first: u64,
}

impl Content {
    /// Begins a seek: permission to request the bytes at `at` although a fill that is far behind
    /// would bring them. `None` when waiting is better: the fill is near, another seek requests
    /// about the same bytes, or the origin cannot send parts of this representation that fit
    /// together.
    pub(crate) fn begin_seek(self: &Arc<Self>, at: u64) -> Option<Seek> {
        let first = at / SLICE * SLICE;
        self.reserve_seek(first).then(|| Seek {
            content: self.clone(),
            first,
        })
    }
}

impl Seek {
    /// The first byte to request, which is a slice's first byte.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Takes over the missing slices up to `end` from the fill that would have brought them. That
    /// fill then ends where they begin, and its readers that wait for them move to the new fill.
    /// `None` when that fill has come near meanwhile, or when nothing is missing.
    pub(crate) fn take_over(&self, end: u64) -> Option<Arc<Fill>> {
        self.content.take_over(self.first, end)
    }
}

impl Drop for Seek {
    fn drop(&mut self) {
        self.content.release_seek(self.first);
    }
}
