//! A fill: bytes on their way from the origin into the store, and the readers that follow them.
//!
//! Knows offsets and bytes of one run of slices. Does not know the store or other fills.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use crate::origin::OriginError;
use crate::store::SLICE_BYTES;

/// Complete slices that a fill keeps in memory for readers that keep up with it.
const RECENT_SLICES: usize = 2;
/// Slices between the newest byte and the slowest reader of a relayed body.
pub(super) const RELAY_SLICES: usize = 16;
/// Bytes of a slice.
pub(super) const SLICE: u64 = SLICE_BYTES as u64;
/// Stands for an end that is not known yet.
const UNKNOWN: u64 = u64::MAX;

/// Whether a fill is running, and how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FillState {
    /// More bytes may come.
    Running,
    /// All bytes have come.
    Done,
    /// No more bytes will come.
    Failed(OriginError),
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    /// Offset after the newest byte.
    available: u64,
    state: FillState,
}

/// The bytes that a fill holds in memory.
#[derive(Debug)]
struct Window {
    /// Complete slices by the offset of their first byte, newest last.
    recent: VecDeque<(u64, Bytes)>,
    /// The incomplete slice, in the pieces in which it came.
    pieces: Vec<Bytes>,
    /// Offset of the first byte of `pieces`, which is a slice's first byte.
    start: u64,
    /// Bytes in `pieces`.
    length: usize,
}

/// Bytes on their way from the origin into the store.
#[derive(Debug)]
pub(crate) struct Fill {
    first: u64,
    /// [`UNKNOWN`] while it is unknown. Only [`cut`](Self::cut) lowers it, with the window locked.
    end: AtomicU64,
    progress: watch::Sender<Progress>,
    window: Mutex<Window>,
    /// Offsets of the readers that follow this fill.
    readers: Mutex<Vec<Weak<AtomicU64>>>,
    consumed: Notify,
    is_relay: AtomicBool,
}

/// What a fill knows of the byte at an offset.
pub(super) enum FillBytes {
    /// Bytes from that offset on.
    Piece(Bytes),
    /// The fill has not reached it.
    NotYet,
    /// The fill has passed it and holds it no longer. The store may have it.
    Passed,
}

/// What [`Fill::append`] took.
pub(super) struct Appended {
    pub(super) bytes: usize,
    /// Whether the current slice is complete.
    pub(super) is_slice_complete: bool,
}

impl Fill {
    /// A fill of `first..end`, where `first` is a slice's first byte.
    pub(super) fn new(first: u64, end: Option<u64>) -> Arc<Self> {
        let progress = Progress {
            available: first,
            state: FillState::Running,
        };
        let window = Window {
            recent: VecDeque::new(),
            pieces: Vec::new(),
            start: first,
            length: 0,
        };
        Arc::new(Self {
            first,
            end: AtomicU64::new(end.unwrap_or(UNKNOWN)),
            progress: watch::channel(progress).0,
            window: Mutex::new(window),
            readers: Mutex::default(),
            consumed: Notify::new(),
            is_relay: AtomicBool::new(false),
        })
    }

    /// Offset of the next byte it needs.
    pub(crate) fn at(&self) -> u64 {
        self.progress.borrow().available
    }

    /// Where it ends, if that is known.
    pub(crate) fn end(&self) -> Option<u64> {
        Some(self.end.load(Ordering::Acquire)).filter(|end| *end != UNKNOWN)
    }

    /// Waits until it has ended and returns how.
    pub(crate) async fn ended(&self) -> FillState {
        let mut progress = self.progress.subscribe();
        let ended = progress.wait_for(|p| p.state != FillState::Running).await;
        ended.map_or(FillState::Failed(OriginError::Incomplete), |p| p.state)
    }

    /// Ends it at `at`, a slice's first byte. Returns `false` when it has reached the slice before
    /// that one, or is beyond it.
    pub(super) fn cut(&self, at: u64) -> bool {
        let window = self.window.lock();
        let is_ahead = window.start + SLICE < at;
        if is_ahead {
            self.end.store(at, Ordering::Release);
        }
        is_ahead
    }

    /// Wakes its readers, so that they look at its end again.
    pub(super) fn wake_readers(&self) {
        self.progress.send_modify(|_| {});
    }

    /// Whether it holds the byte at that offset or will receive it.
    pub(super) fn covers(&self, at: u64) -> bool {
        self.first <= at
            && self.end().is_none_or(|end| at < end)
            && !matches!(self.find(at), FillBytes::Passed)
    }

    /// The bytes from an offset on.
    pub(super) fn find(&self, at: u64) -> FillBytes {
        let window = self.window.lock();
        if at >= window.start {
            let mut start = window.start;
            for piece in &window.pieces {
                let end = start + piece.len() as u64;
                if at < end {
                    return FillBytes::Piece(piece.slice((at - start) as usize..));
                }
                start = end;
            }
            return FillBytes::NotYet;
        }

        let slice = at / SLICE * SLICE;
        match window.recent.iter().find(|(first, _)| *first == slice) {
            Some((first, bytes)) => FillBytes::Piece(bytes.slice((at - first) as usize..)),
            None => FillBytes::Passed,
        }
    }

    /// Takes bytes off `bytes`, up to the end of the current slice. `None` when the fill has
    /// reached its end. Readers see the bytes after [`advance`](Self::advance).
    pub(super) fn append(&self, bytes: &mut Bytes) -> Option<Appended> {
        let mut window = self.window.lock();
        let at = window.start + window.length as u64;
        // A seek may have lowered the end since these bytes were requested.
        let left = self
            .end()
            .map_or(u64::MAX, |end| end.saturating_sub(at))
            .min((SLICE_BYTES - window.length) as u64) as usize;
        if left == 0 {
            return None;
        }

        let piece = bytes.split_to(bytes.len().min(left));
        let added = piece.len();
        window.pieces.push(piece);
        window.length += added;
        // The last slice of a known length is complete as well: it becomes readable before the
        // origin ends its response.
        let is_slice_complete =
            window.length == SLICE_BYTES || self.end() == Some(at + added as u64);
        Some(Appended {
            bytes: added,
            is_slice_complete,
        })
    }

    /// Makes so many more bytes visible to readers.
    pub(super) fn advance(&self, bytes: usize) {
        self.progress.send_modify(|p| p.available += bytes as u64);
    }

    /// The offset and the bytes of the current slice.
    pub(super) fn current_slice(&self) -> (u64, Bytes) {
        let (start, pieces, length) = {
            let window = self.window.lock();
            (window.start, window.pieces.clone(), window.length)
        };
        // One buffer of its own: the pieces may keep a much larger read buffer alive.
        let mut slice = BytesMut::with_capacity(length);
        pieces
            .iter()
            .for_each(|piece| slice.extend_from_slice(piece));
        (start, slice.freeze())
    }

    /// Moves on to the slice after `slice`, which begins at `start`, and keeps that one for readers.
    pub(super) fn next_slice(&self, start: u64, slice: Bytes) {
        let kept = if self.is_relay() {
            RELAY_SLICES + RECENT_SLICES
        } else {
            RECENT_SLICES
        };
        let mut window = self.window.lock();
        window.start = start + slice.len() as u64;
        window.pieces.clear();
        window.length = 0;
        window.recent.push_back((start, slice));
        while window.recent.len() > kept {
            window.recent.pop_front();
        }
    }

    /// Whether a slice is left to be stored at the end: an incomplete one, or the empty slice of an
    /// empty body.
    pub(super) fn has_last_slice(&self) -> bool {
        let has_bytes = self.window.lock().length > 0;
        has_bytes || (self.first == 0 && self.at() == 0)
    }

    /// Says how it ended.
    pub(super) fn finish(&self, state: FillState) {
        self.progress.send_modify(|p| p.state = state);
    }

    pub(super) fn is_relay(&self) -> bool {
        self.is_relay.load(Ordering::Acquire)
    }

    /// From now on readers set its pace.
    pub(super) fn become_relay(&self) {
        self.is_relay.store(true, Ordering::Release);
    }

    /// Resolves when a reader of a relayed body has taken bytes.
    pub(super) fn consumed(&self) -> Notified<'_> {
        self.consumed.notified()
    }

    /// Offset of the slowest reader; `None` when there is no reader.
    pub(super) fn slowest_reader(&self) -> Option<u64> {
        let mut readers = self.readers.lock();
        readers.retain(|r| r.strong_count() > 0);
        readers
            .iter()
            .filter_map(Weak::upgrade)
            .map(|r| r.load(Ordering::Relaxed))
            .min()
    }

    #[cfg(test)]
    pub(super) fn reader_slots(&self) -> usize {
        self.readers.lock().len()
    }

    fn add_reader(&self, position: &Arc<AtomicU64>) {
        let mut readers = self.readers.lock();
        // Drop the entries of readers that have ended before the list grows. That happens seldom
        // enough to be cheap.
        if readers.len() == readers.capacity() {
            readers.retain(|r| r.strong_count() > 0);
        }
        readers.push(Arc::downgrade(position));
    }
}

/// A reader's subscription to a fill.
#[derive(Debug)]
pub(super) struct FillFollower {
    fill: Arc<Fill>,
    /// The reader's offset, which the fill reads.
    position: Arc<AtomicU64>,
    progress: watch::Receiver<Progress>,
}

impl FillFollower {
    /// Follows a fill from an offset on.
    pub(super) fn new(fill: Arc<Fill>, at: u64) -> Self {
        let position = Arc::new(AtomicU64::new(at));
        fill.add_reader(&position);
        Self {
            progress: fill.progress.subscribe(),
            position,
            fill,
        }
    }

    pub(super) fn fill(&self) -> &Fill {
        &self.fill
    }

    /// The state of the fill; later changes of it end [`changed`](Self::changed).
    pub(super) fn state(&mut self) -> FillState {
        self.progress.borrow_and_update().state
    }

    /// Waits for bytes, or for the end of the fill. `false` when there can be none any more.
    pub(super) async fn changed(&mut self) -> bool {
        self.progress.changed().await.is_ok()
    }

    /// Notes that the reader is at an offset now.
    pub(super) fn advance(&self, at: u64) {
        self.position.store(at, Ordering::Relaxed);
        if self.fill.is_relay.load(Ordering::Relaxed) {
            self.fill.consumed.notify_one();
        }
    }
}
