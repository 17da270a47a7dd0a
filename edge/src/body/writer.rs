//! The writing side of a fill.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::content::Content;
use super::fill::{Fill, FillState, SLICE, join};
use super::windows::Windows;
use crate::origin::OriginError;

/// What waking one reader costs, with the write that follows. Bytes that come sooner than that after
/// the last ones wait for more, so that many readers of a body that comes in small pieces do not
/// cost more than the node has.
const WAKE_COST: Duration = Duration::from_micros(10);
/// From so many readers on bytes wait for others: timers have milliseconds.
const WAITING_READERS_MIN: usize = 100;
/// Longest time that bytes wait for others.
const WAKE_WAIT_MAX: Duration = Duration::from_millis(50);
/// A piece that is shorter than this does not keep the origin's read buffer alive.
const SHORT_BYTES: usize = 4096;
/// What a fill holds for readers where no share was given to it.
pub(super) const WINDOW: u64 = 4 * SLICE;

/// Writes the bytes of a fill. Dropping it unfinished fails the fill.
pub(crate) struct FillWriter {
    content: Arc<Content>,
    fill: Arc<Fill>,
    /// Whether slices are written to disk only, for content that no client has requested yet.
    is_disk_only: bool,
    /// Bytes that readers do not see yet.
    unpublished: Vec<Bytes>,
    unpublished_bytes: usize,
    /// When readers were woken last.
    woken: Option<Instant>,
    windows: Option<Arc<Windows>>,
    is_over: bool,
}

impl FillWriter {
    pub(crate) fn new(content: Arc<Content>, fill: Arc<Fill>, is_disk_only: bool) -> Self {
        Self {
            content,
            fill,
            is_disk_only,
            unpublished: Vec::new(),
            unpublished_bytes: 0,
            woken: None,
            windows: None,
            is_over: false,
        }
    }

    /// Takes part in the node's share of memory for fills.
    pub(crate) fn join(&mut self, windows: &Arc<Windows>) {
        if self.windows.is_none() {
            windows.begin();
            self.windows = Some(windows.clone());
        }
    }

    /// Offset of the next byte.
    pub(crate) fn at(&self) -> u64 {
        self.fill.at() + self.unpublished_bytes as u64
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

    /// Whether readers follow its fill.
    pub(crate) fn has_readers(&self) -> bool {
        self.fill.reader_count() > 0
    }

    /// From now on the body is only relayed to its readers; nothing more is stored.
    pub(crate) fn relay(&self) {
        self.fill.become_relay();
        self.content.discard();
    }

    pub(crate) fn is_relay(&self) -> bool {
        self.fill.is_relay()
    }

    /// Adds bytes. Bytes beyond the end of the fill are ignored. The caller calls
    /// [`flush`](Self::flush) when [`is_due`](Self::is_due) says so.
    pub(crate) fn write(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let room = self.fill.room_in_slice(self.unpublished_bytes);
            if room == 0 {
                return;
            }
            let piece = bytes.split_to(bytes.len().min(room));
            self.unpublished_bytes += piece.len();
            // The last slice of a known length is complete as well: it becomes readable before the
            // origin ends its response.
            let is_complete = piece.len() == room;
            self.unpublished.push(piece);
            if is_complete {
                self.seal();
            } else if self.is_due() {
                self.flush();
            }
        }
    }

    /// When the bytes that readers do not see yet have waited long enough; `None` when there are
    /// none.
    pub(crate) fn due(&self) -> Option<Instant> {
        if self.unpublished.is_empty() {
            return None;
        }
        let readers = self.fill.reader_count();
        let wait = match readers < WAITING_READERS_MIN {
            true => Duration::ZERO,
            false => (WAKE_COST * readers.min(1 << 16) as u32).min(WAKE_WAIT_MAX),
        };
        Some(match self.woken {
            Some(woken) => woken + wait,
            None => Instant::now(),
        })
    }

    fn is_due(&self) -> bool {
        // Most fills have few readers, which need no clock.
        self.fill.reader_count() < WAITING_READERS_MIN
            || self.due().is_some_and(|due| due <= Instant::now())
    }

    /// Shows readers all bytes so far.
    pub(crate) fn flush(&mut self) {
        if self.unpublished.is_empty() {
            return;
        }
        let is_short = self.unpublished.len() > 1 || self.unpublished_bytes < SHORT_BYTES;
        if is_short {
            let joined = join(&self.unpublished);
            self.unpublished = vec![joined];
        }
        self.fill
            .publish(&mut self.unpublished, self.unpublished_bytes);
        self.woke();
    }

    fn woke(&mut self) {
        self.unpublished.clear();
        self.unpublished_bytes = 0;
        self.woken = (self.fill.reader_count() >= WAITING_READERS_MIN).then(Instant::now);
    }

    /// Moves the current slice into the store.
    fn seal(&mut self) {
        let arena = self.content.store().arena();
        let (start, slice) = self.fill.current_slice(arena, &self.unpublished);
        let index = (start / SLICE) as u32;
        if !self.fill.is_repeat() {
            self.content.note_sum(index, &slice);
        }
        let is_kept = !self.is_relay()
            && self
                .content
                .store_slice(index, slice.clone(), self.is_disk_only);
        let window = self.window();
        let arena = self.content.store().arena();
        self.fill.next_slice(arena, start, slice, is_kept, window);
        self.woke();
    }

    fn window(&self) -> u64 {
        self.windows
            .as_ref()
            .map_or(WINDOW, |windows| windows.window())
    }

    /// Waits until the fastest reader has read enough of what the disk does not have. `false` when a
    /// relayed body has no reader any more. Other bodies go on without readers.
    pub(crate) async fn pace(&self) -> bool {
        if self.fill.reader_count() == 0 {
            return !self.is_relay();
        }
        if self.fill.unkept_from(self.fill.first()) <= self.window() {
            return true;
        }
        loop {
            let consumed = self.fill.consumed();
            self.fill.wait_for_readers(true);
            let goes_on = match self.fill.readers() {
                None => Some(!self.is_relay()),
                Some(readers) => {
                    let unread = self.fill.unkept_from(readers.fastest);
                    (unread <= self.window()).then_some(true)
                }
            };
            if let Some(goes_on) = goes_on {
                self.fill.wait_for_readers(false);
                return goes_on;
            }
            consumed.await;
        }
    }

    /// Whether so many bytes can be stored now: the queue to the disk has room, or nothing goes to
    /// a disk.
    pub(crate) fn can_store(&self, bytes: u64) -> bool {
        self.is_relay() || self.content.can_store(bytes)
    }

    /// Ends the fill: all its bytes have come.
    pub(crate) fn finish(mut self) {
        if !self.unpublished.is_empty() || self.fill.has_last_slice() {
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
        self.flush();
        self.content.end_fill(&self.fill);
        self.fill.finish(state);
        if let Some(windows) = self.windows.take() {
            windows.end(&self.fill);
        }
    }
}

impl Drop for FillWriter {
    fn drop(&mut self) {
        if !self.is_over {
            self.end(FillState::Failed(OriginError::Incomplete));
        }
    }
}
