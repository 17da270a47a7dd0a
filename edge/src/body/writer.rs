//! The writing side of a fill.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::content::Content;
use super::fill::{Fill, FillState, RELAY_SLICES, SLICE};
use crate::origin::OriginError;

/// Longest time between two checks of the readers of a relayed body: dropping a reader does not wake
/// the writer.
const READER_CHECK: Duration = Duration::from_secs(1);

/// Writes the bytes of a fill. Dropping it unfinished fails the fill.
pub(crate) struct FillWriter {
    content: Arc<Content>,
    fill: Arc<Fill>,
    /// Whether slices are written to disk only, for content that no client has requested yet.
    is_disk_only: bool,
    is_over: bool,
}

impl FillWriter {
    pub(crate) fn new(content: Arc<Content>, fill: Arc<Fill>, is_disk_only: bool) -> Self {
        Self {
            content,
            fill,
            is_disk_only,
            is_over: false,
        }
    }

    /// Offset of the next byte.
    pub(crate) fn at(&self) -> u64 {
        self.fill.at()
    }

    pub(crate) fn content(&self) -> &Arc<Content> {
        &self.content
    }

    pub(crate) fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    pub(crate) fn is_disk_only(&self) -> bool {
        self.is_disk_only
    }

    /// From now on the body is only relayed to its readers; nothing more is stored.
    pub(crate) fn relay(&self) {
        self.fill.become_relay();
        self.content.discard();
    }

    pub(crate) fn is_relay(&self) -> bool {
        self.fill.is_relay()
    }

    /// Adds bytes. Bytes beyond the end of the fill are ignored.
    pub(crate) fn write(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let Some(appended) = self.fill.append(&mut bytes) else {
                return;
            };
            if appended.is_slice_complete {
                self.seal();
            }
            self.fill.advance(appended.bytes);
        }
    }

    /// Moves the current slice into the store.
    fn seal(&self) {
        let (start, slice) = self.fill.current_slice();
        if !self.is_relay() {
            self.content
                .store_slice((start / SLICE) as u32, slice.clone(), self.is_disk_only);
        }
        self.fill.next_slice(start, slice);
    }

    /// Waits until the slowest reader of a relayed body is close enough. `false` when there is no
    /// reader any more.
    pub(crate) async fn pace(&self) -> bool {
        if !self.is_relay() {
            return true;
        }
        loop {
            let consumed = self.fill.consumed();
            match self.fill.slowest_reader() {
                None => return false,
                Some(at) if at + RELAY_SLICES as u64 * SLICE > self.at() => return true,
                Some(_) => {
                    let _ = tokio::time::timeout(READER_CHECK, consumed).await;
                }
            }
        }
    }

    /// Bytes that the queue to the disk can take.
    pub(crate) fn write_room(&self) -> u64 {
        self.content.write_room()
    }

    /// Ends the fill: all its bytes have come.
    pub(crate) fn finish(mut self) {
        if self.fill.has_last_slice() {
            self.seal();
        }
        self.end(FillState::Done);
    }

    /// Ends the fill: no more bytes will come.
    pub(crate) fn fail(mut self, error: OriginError) {
        self.end(FillState::Failed(error));
    }

    fn end(&mut self, state: FillState) {
        self.is_over = true;
        self.content.end_fill(&self.fill);
        self.fill.finish(state);
    }
}

impl Drop for FillWriter {
    fn drop(&mut self) {
        if !self.is_over {
            self.end(FillState::Failed(OriginError::Incomplete));
        }
    }
}
