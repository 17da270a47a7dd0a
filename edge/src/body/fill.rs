//! A fill: bytes on their way from the origin into the store, and the readers that follow them.
//!
//! Knows offsets and bytes of one run of slices. Does not know the store or other fills.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::origin::OriginError;
use nearcast_store::{Arena, Budget, Charge, SLICE_BYTES};

/// Bytes of a slice.
pub(super) const SLICE: u64 = SLICE_BYTES as u64;
/// Neighbouring pieces of the current slice that are shorter than this together become one, so that
/// a body that comes in crumbs costs no reader a piece a crumb.
const MERGED_BYTES_MAX: usize = 16 * 1024;
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

/// A complete slice that a fill holds for its readers.
#[derive(Debug)]
struct Held {
    /// Offset of its first byte.
    start: u64,
    bytes: Bytes,
    /// Whether the disk has it, so that no reader depends on this copy.
    is_kept: bool,
    /// Bytes of it that the arena has not charged.
    uncharged: u64,
}

impl Held {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// The bytes that a fill holds in memory.
#[derive(Debug)]
struct Window {
    /// Complete slices, newest last.
    held: VecDeque<Held>,
    held_bytes: u64,
    /// Those of them that the arena has not charged.
    uncharged_bytes: u64,
    /// The disk has what comes before this offset, but for slices that are held.
    kept_to: u64,
    /// The incomplete slice, in pieces.
    pieces: Vec<Bytes>,
    /// Offset of the first byte of `pieces`, which is a slice's first byte.
    start: u64,
    /// Bytes in `pieces`.
    length: usize,
    state: FillState,
    charge: Charge,
}

impl Window {
    fn at(&self) -> u64 {
        self.start + self.length as u64
    }

    /// Drops the slices that no reader needs and that are not among the `recent` newest ones; also
    /// those that only slower readers need, where they are more than `most` bytes behind.
    fn trim(&mut self, readers: Option<Readers>, most: u64, recent: usize) {
        let at = self.at();
        while self.held.len() > recent
            && let Some(front) = self.held.front()
        {
            let is_needed = readers.filter(|_| !front.is_kept).is_some_and(|readers| {
                // The fill waits for the fastest one, so that it is never left behind.
                readers.fastest < front.end()
                    || readers.slowest < front.end() && at - front.end() < most
            });
            if is_needed {
                break;
            }
            self.held_bytes -= front.bytes.len() as u64;
            self.uncharged_bytes -= front.uncharged;
            self.held.pop_front();
        }
    }

    fn account(&mut self) {
        self.charge.set(self.uncharged_bytes + self.length as u64);
    }
}

/// Bytes on their way from the origin into the store.
#[derive(Debug)]
pub(crate) struct Fill {
    first: u64,
    /// [`UNKNOWN`] while it is unknown. Only [`cut`](Self::cut) lowers it, with the window locked.
    end: AtomicU64,
    /// Offset after the newest byte.
    available: AtomicU64,
    window: Mutex<Window>,
    /// Offsets of the readers that follow this fill. The entries of those that have ended are
    /// removed before the list grows.
    positions: Mutex<Vec<Arc<AtomicU64>>>,
    reader_count: AtomicUsize,
    /// Bytes have come, or the fill has ended.
    changed: Notify,
    /// A reader has advanced or ended.
    consumed: Notify,
    /// Whether the writer waits for a reader.
    is_waiting: AtomicBool,
    is_relay: AtomicBool,
    is_repeat: AtomicBool,
}

/// Offsets of the slowest and the fastest reader of a fill.
#[derive(Debug, Clone, Copy)]
pub(super) struct Readers {
    pub(super) slowest: u64,
    pub(super) fastest: u64,
}

/// What a fill knows of the byte at an offset.
pub(super) enum FillBytes {
    /// Bytes from that offset on.
    Piece(Bytes),
    /// The fill has not reached it.
    NotYet(FillState),
    /// The fill has passed it and holds it no longer. The store may have it.
    Passed,
}

impl Fill {
    /// A fill of `first..end`, where `first` is a slice's first byte.
    pub(super) fn new(first: u64, end: Option<u64>, budget: &Arc<Budget>) -> Arc<Self> {
        let window = Window {
            held: VecDeque::new(),
            held_bytes: 0,
            uncharged_bytes: 0,
            kept_to: first,
            pieces: Vec::new(),
            start: first,
            length: 0,
            state: FillState::Running,
            charge: budget.charge(0),
        };
        Arc::new(Self {
            first,
            end: AtomicU64::new(end.unwrap_or(UNKNOWN)),
            available: AtomicU64::new(first),
            window: Mutex::new(window),
            positions: Mutex::default(),
            reader_count: AtomicUsize::new(0),
            changed: Notify::new(),
            consumed: Notify::new(),
            is_waiting: AtomicBool::new(false),
            is_relay: AtomicBool::new(false),
            is_repeat: AtomicBool::new(false),
        })
    }

    /// Offset of the next byte it needs.
    pub(crate) fn at(&self) -> u64 {
        self.available.load(Ordering::Acquire)
    }

    /// Where it ends, if that is known.
    pub(crate) fn end(&self) -> Option<u64> {
        Some(self.end.load(Ordering::Acquire)).filter(|end| *end != UNKNOWN)
    }

    /// Offset of its first byte.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Waits until it has ended and returns how.
    pub(crate) async fn ended(&self) -> FillState {
        loop {
            let changed = self.changed.notified();
            let state = self.window.lock().state;
            if state != FillState::Running {
                return state;
            }
            changed.await;
        }
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
        self.changed.notify_waiters();
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
            return FillBytes::NotYet(window.state);
        }

        let held = window.held.iter().rev().find(|held| held.start <= at);
        match held.filter(|held| at < held.end()) {
            Some(held) => FillBytes::Piece(held.bytes.slice((at - held.start) as usize..)),
            None => FillBytes::Passed,
        }
    }

    /// How many bytes more the current slice takes, up to the end of the fill. None once the fill
    /// has reached its end.
    pub(super) fn room_in_slice(&self, unpublished: usize) -> usize {
        let window = self.window.lock();
        let length = window.length + unpublished;
        // A seek may have lowered the end since the bytes were requested.
        self.end()
            .map_or(u64::MAX, |end| {
                end.saturating_sub(window.start + length as u64)
            })
            .min((SLICE_BYTES - length) as u64) as usize
    }

    /// Adds pieces to the current slice, and wakes the readers.
    pub(super) fn publish(&self, pieces: &mut Vec<Bytes>, length: usize) {
        {
            let mut window = self.window.lock();
            window.length += length;
            for piece in pieces.drain(..) {
                add_piece(&mut window.pieces, piece);
            }
            window.account();
            self.available.store(window.at(), Ordering::Release);
        }
        self.changed.notify_waiters();
    }

    /// The offset and the bytes of the current slice, with pieces that were not published. They are
    /// one buffer of its own: the pieces may keep a much larger read buffer alive.
    pub(super) fn current_slice(&self, arena: &Arena, unpublished: &[Bytes]) -> (u64, Bytes) {
        let (start, mut pieces) = {
            let window = self.window.lock();
            (window.start, window.pieces.clone())
        };
        pieces.extend_from_slice(unpublished);
        let length = pieces.iter().map(Bytes::len).sum();
        (start, arena.gather(&pieces, length))
    }

    /// Moves on to the slice after `slice`, which begins at `start`, and wakes the readers. Holds
    /// that one while readers need it and are at most `most` bytes behind; `is_kept` ones are on
    /// disk.
    pub(super) fn next_slice(
        &self,
        arena: &Arena,
        start: u64,
        slice: Bytes,
        is_kept: bool,
        most: u64,
    ) {
        let readers = match is_kept {
            true => None,
            false => self.readers(),
        };
        {
            let mut window = self.window.lock();
            let end = start + slice.len() as u64;
            window.start = end;
            window.pieces = Vec::new();
            window.length = 0;
            if is_kept {
                window.kept_to = end;
            }
            let uncharged = match arena.owns(&slice) {
                true => 0,
                false => slice.len() as u64,
            };
            window.held_bytes += slice.len() as u64;
            window.uncharged_bytes += uncharged;
            window.held.push_back(Held {
                start,
                bytes: slice,
                is_kept,
                uncharged,
            });
            window.trim(readers, most, recent(most));
            window.account();
            self.available.store(end, Ordering::Release);
        }
        self.changed.notify_waiters();
    }

    /// Bytes of the complete slices that it holds.
    pub(super) fn held_bytes(&self) -> u64 {
        self.window.lock().held_bytes
    }

    /// Bytes that readers can get from nowhere else, from `at` on.
    pub(super) fn unkept_from(&self, at: u64) -> u64 {
        let window = self.window.lock();
        window.at().saturating_sub(at.max(window.kept_to))
    }

    /// Drops the complete slices that its readers have not read yet.
    pub(super) fn release(&self) {
        let mut window = self.window.lock();
        window.held = VecDeque::new();
        window.held_bytes = 0;
        window.uncharged_bytes = 0;
        window.account();
    }

    /// Whether a slice is left to be stored at the end: an incomplete one, or the empty slice of an
    /// empty body.
    pub(super) fn has_last_slice(&self) -> bool {
        let has_bytes = self.window.lock().length > 0;
        has_bytes || (self.first == 0 && self.at() == 0)
    }

    /// Says how it ended. What its readers have read is held no longer.
    pub(super) fn finish(&self, state: FillState) {
        let readers = self.readers();
        {
            let mut window = self.window.lock();
            window.state = state;
            window.trim(readers, UNKNOWN / 2, 0);
            window.account();
        }
        self.changed.notify_waiters();
    }

    pub(super) fn is_relay(&self) -> bool {
        self.is_relay.load(Ordering::Acquire)
    }

    /// From now on it ends with its last reader.
    pub(super) fn become_relay(&self) {
        self.is_relay.store(true, Ordering::Release);
    }

    pub(super) fn is_repeat(&self) -> bool {
        self.is_repeat.load(Ordering::Relaxed)
    }

    /// It brings what was received before once more.
    pub(super) fn become_repeat(&self) {
        self.is_repeat.store(true, Ordering::Relaxed);
    }

    /// Resolves when a reader has taken bytes or ended, if [`wait_for_readers`] was called before.
    ///
    /// [`wait_for_readers`]: Self::wait_for_readers
    pub(super) fn consumed(&self) -> Notified<'_> {
        self.consumed.notified()
    }

    /// Says whether the writer waits for readers.
    pub(super) fn wait_for_readers(&self, is_waiting: bool) {
        // Ordered before the positions are read; a reader writes its position before it reads this.
        self.is_waiting.store(is_waiting, Ordering::SeqCst);
    }

    /// Readers that follow it.
    pub(super) fn reader_count(&self) -> usize {
        self.reader_count.load(Ordering::Relaxed)
    }

    /// How far its readers are; `None` when there is none.
    pub(super) fn readers(&self) -> Option<Readers> {
        if self.reader_count() == 0 {
            return None;
        }
        let positions = self.positions.lock();
        let live = positions.iter().filter(|position| is_live(position));
        live.map(|position| position.load(Ordering::SeqCst))
            .map(|at| Readers {
                slowest: at,
                fastest: at,
            })
            .reduce(|one, other| Readers {
                slowest: one.slowest.min(other.slowest),
                fastest: one.fastest.max(other.fastest),
            })
    }

    #[cfg(test)]
    pub(super) fn reader_slots(&self) -> usize {
        self.positions.lock().len()
    }

    fn add_reader(&self, position: &Arc<AtomicU64>) {
        let mut positions = self.positions.lock();
        // That happens seldom enough to be cheap.
        if positions.len() == positions.capacity() {
            positions.retain(is_live);
        }
        positions.push(position.clone());
        self.reader_count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a reader has not ended: the other owner of its position is its follower.
fn is_live(position: &Arc<AtomicU64>) -> bool {
    Arc::strong_count(position) > 1
}

/// Newest slices that are held whether a reader needs them or not: one that keeps up then finds
/// them without a look into the store.
fn recent(most: u64) -> usize {
    (most / SLICE).saturating_sub(1).min(2) as usize
}

/// Adds a piece behind others, as one with those before it where all are short.
fn add_piece(pieces: &mut Vec<Bytes>, mut piece: Bytes) {
    while let Some(last) = pieces.last()
        && last.len() <= piece.len()
        && last.len() + piece.len() <= MERGED_BYTES_MAX
    {
        piece = join(&[last.clone(), piece]);
        pieces.pop();
    }
    pieces.push(piece);
}

/// Pieces as one, in a buffer of its own.
pub(super) fn join(pieces: &[Bytes]) -> Bytes {
    let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces
        .iter()
        .for_each(|piece| joined.extend_from_slice(piece));
    joined.freeze()
}

/// A reader's subscription to a fill.
#[derive(Debug)]
pub(super) struct FillFollower {
    fill: Arc<Fill>,
    /// The reader's offset, which the fill reads.
    position: Arc<AtomicU64>,
}

impl FillFollower {
    /// Follows a fill from an offset on.
    pub(super) fn new(fill: Arc<Fill>, at: u64) -> Self {
        let position = Arc::new(AtomicU64::new(at));
        fill.add_reader(&position);
        Self { position, fill }
    }

    pub(super) fn fill(&self) -> &Arc<Fill> {
        &self.fill
    }

    /// What the fill has at an offset, waiting while it has nothing and runs. A fill that ends
    /// before that offset has [`FillBytes::Passed`] it.
    pub(super) async fn find(&self, at: u64) -> FillBytes {
        let is_running = |found: &FillBytes| {
            matches!(found, FillBytes::NotYet(FillState::Running))
                && self.fill.end().is_none_or(|end| at < end)
        };
        let found = self.fill.find(at);
        if !is_running(&found) {
            return found;
        }
        loop {
            let changed = self.fill.changed.notified();
            tokio::pin!(changed);
            // Before the second look, so that no change after it is missed.
            changed.as_mut().enable();
            let found = self.fill.find(at);
            if !is_running(&found) {
                return found;
            }
            changed.await;
        }
    }

    /// Notes that the reader is at an offset now.
    pub(super) fn advance(&self, at: u64) {
        self.position.store(at, Ordering::SeqCst);
        self.wake_writer();
    }

    fn wake_writer(&self) {
        if self.fill.is_waiting.load(Ordering::SeqCst) {
            self.fill.consumed.notify_one();
        }
    }
}

impl Drop for FillFollower {
    fn drop(&mut self) {
        // Marks the position as that of a reader that has ended.
        self.position = Arc::default();
        self.fill.reader_count.fetch_sub(1, Ordering::SeqCst);
        self.wake_writer();
    }
}
