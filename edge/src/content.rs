//! The bytes of one representation: slices in the store, slices on their way from the origin, and
//! readers that take both as they come.
//!
//! A fill belongs to nobody: it runs as its own task, writes into the store and keeps the last few
//! slices at hand; readers wait for bytes, never for a slice, and no reader slows a fill. The one
//! exception is a body that turns out to be too large to be stored: it is relayed, at the pace of
//! its slowest reader, within [`RELAY_SLICES`]. A reader far ahead of a fill need not wait for it:
//! a [`Seek`] takes the slices from there on over from that fill.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use crate::origin::OriginError;
use crate::store::{SLICE_BYTES, Store, StoredBody};
use nearcast_http_rules::conditional::StrongValidator;

/// Slices that a fill keeps at hand for readers that keep up.
const RECENT_SLICES: usize = 2;
/// Slices between a fill and a reader ahead of it from which on waiting costs more than a request
/// of its own.
const SEEK_SLICES: u64 = 4;
/// Fills of one body at once that seeks may lead to.
const FILLS_MAX: usize = 8;
/// Slices that one fill of missing ones is for at most, so that nobody holds a body's lock while
/// looking for the end of a longer run. What comes after them is another fill's.
const RUN_SLICES_MAX: u64 = 4096;
/// Slices that the last user of a body forgets where it is, which may be a thread that serves; more
/// are left to another.
const FORGOTTEN_AT_ONCE_MAX: u32 = 256;
/// In place of an end that is not known yet.
const UNKNOWN: u64 = u64::MAX;
/// Slices between the newest byte and the slowest reader of a body that is only relayed.
const RELAY_SLICES: usize = 16;

const SLICE: u64 = SLICE_BYTES as u64;

/// One representation's bytes. Shared by every stored response that carries it.
#[derive(Debug)]
pub(crate) struct Content {
    store: Arc<Store>,
    pub(crate) body: Arc<StoredBody>,
    /// Complete length, once known.
    length: OnceLock<u64>,
    /// What names it; without that its parts cannot be put together from several requests.
    pub(crate) validator: Option<StrongValidator>,
    fills: Mutex<Fills>,
    is_filling: AtomicBool,
    /// The origin was asked for a part and sent the whole.
    is_whole_only: AtomicBool,
    /// Nobody will look for it again: its slices go with its last user.
    is_discarded: AtomicBool,
    /// Readers there are, wherever in it they are.
    readers: AtomicUsize,
    /// The last of them has gone.
    unread: Notify,
}

#[derive(Debug, Default)]
struct Fills {
    running: Vec<Arc<Fill>>,
    /// First bytes that somebody asks the origin for, ahead of a fill that runs.
    sought: Vec<u64>,
}

impl Content {
    pub(crate) fn new(
        store: Arc<Store>,
        body: Arc<StoredBody>,
        length: Option<u64>,
        validator: Option<StrongValidator>,
    ) -> Arc<Self> {
        let known = OnceLock::new();
        if let Some(length) = length {
            let _ = known.set(length);
        }
        Arc::new(Self {
            store,
            body,
            length: known,
            validator,
            fills: Mutex::default(),
            is_filling: AtomicBool::new(false),
            is_whole_only: AtomicBool::new(false),
            is_discarded: AtomicBool::new(false),
            readers: AtomicUsize::new(0),
            unread: Notify::new(),
        })
    }

    pub(crate) fn length(&self) -> Option<u64> {
        self.length.get().copied()
    }

    /// `false` when another length was known.
    pub(crate) fn learn_length(&self, length: u64) -> bool {
        *self.length.get_or_init(|| length) == length
    }

    pub(crate) fn is_filling(&self) -> bool {
        self.is_filling.load(Ordering::Acquire)
    }

    /// Whether anybody is reading it.
    pub(crate) fn is_read(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }

    /// Waits until its last reader goes.
    pub(crate) fn left(&self) -> Notified<'_> {
        self.unread.notified()
    }

    /// Lets its slices go with its last user.
    pub(crate) fn discard(&self) {
        self.is_discarded.store(true, Ordering::Relaxed);
    }

    /// The whole body when it is one slice and in memory.
    pub(crate) fn whole_in_memory(&self) -> Option<Bytes> {
        let length = self.length()?;
        if length > SLICE {
            return None;
        }
        self.store
            .get_memory(&self.body, 0)
            .filter(|slice| slice.len() as u64 == length)
    }

    /// Whether every byte of `first..end` is stored.
    pub(crate) fn has(&self, first: u64, end: u64) -> bool {
        (first / SLICE..slices_before(end).max(first / SLICE + 1))
            .all(|index| self.store.contains(&self.body, index as u32))
    }

    /// The first byte of `first..end` whose slice is not stored.
    pub(crate) fn first_missing(&self, first: u64, end: u64) -> Option<u64> {
        let missing = (first / SLICE..slices_before(end))
            .find(|index| !self.store.contains(&self.body, *index as u32))?;
        Some((missing * SLICE).max(first))
    }

    /// Waits until nothing of it is on its way any more. `false` when some of it has not come.
    pub(crate) async fn settled(&self) -> bool {
        loop {
            let Some(fill) = self.fills().running.first().cloned() else {
                break;
            };
            fill.ended().await;
        }
        self.length().is_some_and(|length| self.has(0, length))
    }

    /// Whether some of it is still on its way.
    pub(crate) fn is_awaited(&self) -> bool {
        self.is_filling() && self.length().is_none_or(|length| !self.has(0, length))
    }

    /// Whether a byte is stored or on its way.
    pub(crate) fn has_or_awaits(&self, at: u64) -> bool {
        self.store.contains(&self.body, (at / SLICE) as u32) || self.fill_of(at).is_some()
    }

    /// Begins a fill of `first..end`, whose first byte is a slice's. Readers wait for it from now
    /// on.
    pub(crate) fn begin_fill(&self, first: u64, end: Option<u64>) -> Arc<Fill> {
        self.add_fill(&mut self.fills(), first, end)
    }

    /// Begins a fill of the run of slices from the one at `at` on that are neither stored nor on
    /// their way, cut at `end`. `None` when that slice is. Who looks and who begins holds the lock
    /// in between: of all that ask for the same run at once, one begins.
    pub(crate) fn begin_fill_of_missing(&self, at: u64, end: u64) -> Option<Arc<Fill>> {
        self.add_fill_of_missing(&mut self.fills(), at / SLICE * SLICE, end)
    }

    /// As [`begin_fill_of_missing`](Self::begin_fill_of_missing), for the first such run at or
    /// after `at`.
    pub(crate) fn begin_fill_of_next_missing(&self, at: u64, end: u64) -> Option<Arc<Fill>> {
        let (mut index, last) = (at / SLICE, end.div_ceil(SLICE));
        while index < last {
            let mut fills = self.fills();
            let next = last.min(index + RUN_SLICES_MAX);
            let first = (index..next)
                .map(|index| index * SLICE)
                .find(|first| self.is_missing(&fills, *first));
            if let Some(first) = first {
                return self.add_fill_of_missing(&mut fills, first, end);
            }
            index = next;
        }
        None
    }

    fn is_missing(&self, fills: &Fills, at: u64) -> bool {
        !self.store.contains(&self.body, (at / SLICE) as u32)
            && fill_in(&fills.running, at).is_none()
    }

    fn add_fill_of_missing(&self, fills: &mut Fills, first: u64, end: u64) -> Option<Arc<Fill>> {
        if !self.is_missing(fills, first) {
            return None;
        }
        let most = end.min(first.saturating_add(RUN_SLICES_MAX * SLICE));
        let mut last = first + SLICE;
        while last < most && self.is_missing(fills, last) {
            last += SLICE;
        }
        let last = self.length().map_or(last, |length| last.min(length));
        Some(self.add_fill(fills, first, Some(last)))
    }

    /// Leave to ask the origin for what a reader at `at` wants, when the fill that will bring it is
    /// far behind. `None` when waiting is better: it is near, somebody asks already, or parts of
    /// this body cannot be had or put together.
    pub(crate) fn begin_seek(self: &Arc<Self>, at: u64) -> Option<Seek> {
        let first = at / SLICE * SLICE;
        if self.validator.is_none()
            || !self.is_filling()
            || self.is_whole_only.load(Ordering::Relaxed)
        {
            return None;
        }
        let mut fills = self.fills();
        let is_far = fill_in(&fills.running, first)
            .is_some_and(|fill| fill.at() + SEEK_SLICES * SLICE <= first);
        let is_sought = fills
            .sought
            .iter()
            .any(|other| other.abs_diff(first) < SEEK_SLICES * SLICE);
        if !is_far || is_sought || fills.running.len() + fills.sought.len() >= FILLS_MAX {
            return None;
        }
        fills.sought.push(first);
        Some(Seek {
            content: self.clone(),
            first,
        })
    }

    /// Remembers that the origin sends this body as a whole only.
    pub(crate) fn note_whole_only(&self) {
        self.is_whole_only.store(true, Ordering::Relaxed);
    }

    fn add_fill(&self, fills: &mut Fills, first: u64, end: Option<u64>) -> Arc<Fill> {
        let fill = Arc::new(Fill {
            first,
            end: AtomicU64::new(end.unwrap_or(UNKNOWN)),
            progress: watch::channel(Progress {
                available: first,
                state: FillState::Running,
            })
            .0,
            window: Mutex::new(Window {
                recent: VecDeque::new(),
                pieces: Vec::new(),
                start: first,
                length: 0,
            }),
            readers: Mutex::default(),
            consumed: Notify::new(),
            is_relay: AtomicBool::new(false),
        });
        fills.running.push(fill.clone());
        self.is_filling.store(true, Ordering::Release);
        fill
    }

    fn fills(&self) -> MutexGuard<'_, Fills> {
        self.fills.lock().expect("no holder of this lock panics")
    }

    /// The fill that has the byte at hand or will have it.
    fn fill_of(&self, at: u64) -> Option<Arc<Fill>> {
        if self.is_filling() {
            fill_in(&self.fills().running, at).cloned()
        } else {
            None
        }
    }

    fn end_fill(&self, fill: &Arc<Fill>) {
        let mut fills = self.fills();
        fills.running.retain(|f| !Arc::ptr_eq(f, fill));
        self.is_filling
            .store(!fills.running.is_empty(), Ordering::Release);
    }

    /// A byte range of it for one client. `end` is `None` while the length is unknown.
    pub(crate) fn reader(self: &Arc<Self>, first: u64, end: Option<u64>) -> Reader {
        self.readers.fetch_add(1, Ordering::Relaxed);
        Reader {
            content: self.clone(),
            at: first,
            end,
            fill: None,
            position: None,
            receiver: None,
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        if !*self.is_discarded.get_mut() {
            return;
        }
        let runtime = Handle::try_current()
            .ok()
            .filter(|_| self.body.slices() > FORGOTTEN_AT_ONCE_MAX);
        let (store, body) = (self.store.clone(), self.body.clone());
        match runtime {
            Some(runtime) => drop(runtime.spawn_blocking(move || store.forget(&body))),
            None => store.forget(&body),
        }
    }
}

/// The one of `fills` that has the byte at hand or will have it.
fn fill_in(fills: &[Arc<Fill>], at: u64) -> Option<&Arc<Fill>> {
    fills.iter().find(|f| {
        f.first <= at
            && f.end().is_none_or(|end| at < end)
            && !matches!(f.find(at), Found::Elsewhere)
    })
}

/// Leave to ask for bytes ahead of a fill; nobody else gets it for the same bytes while it lives.
#[derive(Debug)]
pub(crate) struct Seek {
    content: Arc<Content>,
    first: u64,
}

impl Seek {
    /// The first byte to ask for, a slice's.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// Takes the missing slices up to `end` over from the fill that would have brought them, which
    /// ends where they begin, and sends the readers that wait there on. `None` when that fill has
    /// come near meanwhile.
    pub(crate) fn take_over(&self, end: u64) -> Option<Arc<Fill>> {
        let (behind, ahead) = {
            let mut fills = self.content.fills();
            let behind = fill_in(&fills.running, self.first).cloned();
            if behind.as_ref().is_some_and(|fill| !fill.cut(self.first)) {
                return None;
            }
            (
                behind,
                self.content
                    .add_fill_of_missing(&mut fills, self.first, end),
            )
        };
        if let Some(behind) = behind {
            behind.progress.send_modify(|_| {});
        }
        ahead
    }
}

impl Drop for Seek {
    fn drop(&mut self) {
        self.content
            .fills()
            .sought
            .retain(|first| *first != self.first);
    }
}

/// How many slices lie before the end of a body of that length; an empty one has one, so that it
/// can be stored.
fn slices_before(end: u64) -> u64 {
    end.div_ceil(SLICE).max(1)
}

/// How a fill stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FillState {
    Running,
    Done,
    Failed(OriginError),
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    /// Offset after the newest byte.
    available: u64,
    state: FillState,
}

#[derive(Debug)]
struct Window {
    /// Whole slices, newest last, by their first byte.
    recent: VecDeque<(u64, Bytes)>,
    /// The slice that is being filled, in the pieces in which it came.
    pieces: Vec<Bytes>,
    /// Offset of the first byte of `pieces`, a slice's.
    start: u64,
    length: usize,
}

/// Bytes on their way from the origin into the store.
#[derive(Debug)]
pub(crate) struct Fill {
    first: u64,
    /// [`UNKNOWN`] while it is; moved nearer only, by [`cut`](Self::cut), while the window is
    /// locked.
    end: AtomicU64,
    progress: watch::Sender<Progress>,
    window: Mutex<Window>,
    readers: Mutex<Vec<Weak<AtomicU64>>>,
    consumed: Notify,
    is_relay: AtomicBool,
}

enum Found {
    Piece(Bytes),
    NotYet,
    /// Sealed, and no longer at hand: the store has it, or had it.
    Elsewhere,
}

impl Fill {
    /// Offset of the next byte it needs.
    pub(crate) fn at(&self) -> u64 {
        self.progress.borrow().available
    }

    /// Where it ends, as far as that is known.
    pub(crate) fn end(&self) -> Option<u64> {
        Some(self.end.load(Ordering::Acquire)).filter(|end| *end != UNKNOWN)
    }

    /// Ends it at `at`, a slice's first byte. `false` when it is in the slice before that, or
    /// further.
    fn cut(&self, at: u64) -> bool {
        let window = self.window.lock().expect("no holder of this lock panics");
        let is_ahead = window.start + SLICE < at;
        if is_ahead {
            self.end.store(at, Ordering::Release);
        }
        is_ahead
    }

    /// Waits until it has ended, and how.
    pub(crate) async fn ended(&self) -> FillState {
        let mut progress = self.progress.subscribe();
        let ended = progress.wait_for(|p| p.state != FillState::Running).await;
        ended.map_or(FillState::Failed(OriginError::Incomplete), |p| p.state)
    }

    fn find(&self, at: u64) -> Found {
        let window = self.window.lock().expect("no holder of this lock panics");
        if at >= window.start {
            let mut start = window.start;
            for piece in &window.pieces {
                let end = start + piece.len() as u64;
                if at < end {
                    return Found::Piece(piece.slice((at - start) as usize..));
                }
                start = end;
            }
            return Found::NotYet;
        }
        let slice = at / SLICE * SLICE;
        match window.recent.iter().find(|(first, _)| *first == slice) {
            Some((first, bytes)) => Found::Piece(bytes.slice((at - first) as usize..)),
            None => Found::Elsewhere,
        }
    }
}

/// The writing side of a fill. Dropping it unfinished fails the fill.
pub(crate) struct FillWriter {
    content: Arc<Content>,
    fill: Arc<Fill>,
    /// Whether slices go to disk alone, for content that nobody has asked for yet.
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

    /// From now on the body is only relayed: nothing more is stored.
    pub(crate) fn relay(&self) {
        self.fill.is_relay.store(true, Ordering::Release);
        self.content.discard();
    }

    pub(crate) fn is_relay(&self) -> bool {
        self.fill.is_relay.load(Ordering::Acquire)
    }

    /// Takes bytes as they came.
    pub(crate) fn write(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let (added, is_full) = {
                let mut window = self
                    .fill
                    .window
                    .lock()
                    .expect("no holder of this lock panics");
                let at = window.start + window.length as u64;
                // Its end may have come nearer since these bytes were asked for.
                let left = self
                    .fill
                    .end()
                    .map_or(u64::MAX, |end| end.saturating_sub(at));
                let room = left.min((SLICE_BYTES - window.length) as u64) as usize;
                if room == 0 {
                    return;
                }
                let piece = bytes.split_to(bytes.len().min(room));
                let added = piece.len();
                window.pieces.push(piece);
                window.length += added;
                // The last slice of a known length is whole as well, and readable before the origin
                // has ended.
                (
                    added,
                    window.length == SLICE_BYTES || self.fill.end() == Some(at + added as u64),
                )
            };
            if is_full {
                self.seal();
            }
            self.fill
                .progress
                .send_modify(|p| p.available += added as u64);
        }
    }

    /// Moves the slice that is being filled into the store.
    fn seal(&self) {
        let (start, pieces, length) = {
            let window = self
                .fill
                .window
                .lock()
                .expect("no holder of this lock panics");
            (window.start, window.pieces.clone(), window.length)
        };
        // A copy of its own: pieces may keep a much larger read buffer alive.
        let mut slice = BytesMut::with_capacity(length);
        pieces
            .iter()
            .for_each(|piece| slice.extend_from_slice(piece));
        let slice = slice.freeze();
        let is_relay = self.is_relay();
        if !is_relay {
            let index = (start / SLICE) as u32;
            if self.content.is_discarded.load(Ordering::Relaxed) {
                // For those who read it now, and never on a disk: it may be nothing that may be
                // stored.
                self.content
                    .store
                    .put_in_memory(&self.content.body, index, slice.clone());
            } else if self.is_disk_only {
                self.content
                    .store
                    .put_on_disk(&self.content.body, index, slice.clone());
            } else {
                self.content
                    .store
                    .put(&self.content.body, index, slice.clone());
            }
        }
        let mut window = self
            .fill
            .window
            .lock()
            .expect("no holder of this lock panics");
        window.recent.push_back((start, slice));
        while window.recent.len()
            > if is_relay {
                RELAY_SLICES + RECENT_SLICES
            } else {
                RECENT_SLICES
            }
        {
            window.recent.pop_front();
        }
        window.pieces.clear();
        window.start = start + length as u64;
        window.length = 0;
    }

    /// Waits until the slowest reader of a relayed body has come close enough. `false` when nobody
    /// reads any more.
    pub(crate) async fn pace(&self) -> bool {
        if !self.is_relay() {
            return true;
        }
        loop {
            let consumed = self.fill.consumed.notified();
            let slowest = {
                let mut readers = self
                    .fill
                    .readers
                    .lock()
                    .expect("no holder of this lock panics");
                readers.retain(|r| r.strong_count() > 0);
                readers
                    .iter()
                    .filter_map(Weak::upgrade)
                    .map(|r| r.load(Ordering::Relaxed))
                    .min()
            };
            match slowest {
                None => return false,
                Some(at) if at + RELAY_SLICES as u64 * SLICE > self.at() => return true,
                // A reader that goes away says nothing: look again in a while.
                Some(_) => {
                    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), consumed).await;
                }
            }
        }
    }

    /// Room that the queue to the disk has left.
    pub(crate) fn write_room(&self) -> u64 {
        self.content.store.write_room()
    }

    /// All bytes of the fill have come.
    pub(crate) fn finish(mut self) {
        let has_rest = self
            .fill
            .window
            .lock()
            .expect("no holder of this lock panics")
            .length
            > 0;
        if has_rest || (self.fill.first == 0 && self.at() == 0) {
            self.seal();
        }
        self.end(FillState::Done);
    }

    /// No more bytes will come.
    pub(crate) fn fail(mut self, error: OriginError) {
        self.end(FillState::Failed(error));
    }

    fn end(&mut self, state: FillState) {
        self.is_over = true;
        self.content.end_fill(&self.fill);
        self.fill.progress.send_modify(|p| p.state = state);
    }
}

impl Drop for FillWriter {
    fn drop(&mut self) {
        if !self.is_over {
            self.end(FillState::Failed(OriginError::Incomplete));
        }
    }
}

/// What a reader found at its place.
#[derive(Debug)]
pub(crate) enum Next {
    /// Bytes; the reader is after them now.
    Piece(Bytes),
    /// The end of its range.
    End,
    /// The slice at that offset is neither stored nor on its way.
    Missing,
    /// The fill it waited for failed.
    Failed(OriginError),
}

/// One client's way through a range of a representation.
#[derive(Debug)]
pub(crate) struct Reader {
    content: Arc<Content>,
    at: u64,
    end: Option<u64>,
    fill: Option<Arc<Fill>>,
    position: Option<Arc<AtomicU64>>,
    receiver: Option<watch::Receiver<Progress>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.content.readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.content.unread.notify_waiters();
        }
    }
}

impl Reader {
    /// Offset of the next byte and the end, where known.
    pub(crate) fn range(&self) -> (u64, Option<u64>) {
        (self.at, self.end.or_else(|| self.content.length()))
    }

    /// Attaches to a fill, so that it is found also when it ends before the first look.
    pub(crate) fn attach(&mut self, fill: Arc<Fill>) {
        let position = Arc::new(AtomicU64::new(self.at));
        {
            let mut readers = fill.readers.lock().expect("no holder of this lock panics");
            // Those that have gone make room before more is taken, which is looked for seldom
            // enough.
            if readers.len() == readers.capacity() {
                readers.retain(|r| r.strong_count() > 0);
            }
            readers.push(Arc::downgrade(&position));
        }
        self.receiver = Some(fill.progress.subscribe());
        self.position = Some(position);
        self.fill = Some(fill);
    }

    fn detach(&mut self) {
        self.fill = None;
        self.receiver = None;
        self.position = None;
    }

    /// The next bytes, waiting for origin and disk.
    pub(crate) async fn next(&mut self) -> Next {
        loop {
            if self.end.is_some_and(|end| self.at >= end) {
                return Next::End;
            }
            if self.fill.is_none()
                && let Some(fill) = self.content.fill_of(self.at)
            {
                self.attach(fill);
            }
            if let Some(piece) = self.piece_in_memory() {
                return self.take(piece);
            }
            if let Some(fill) = self.fill.clone() {
                // The state first: what is looked for after it has ended is either there or will
                // never be.
                let progress = *self
                    .receiver
                    .as_mut()
                    .expect("set together with the fill")
                    .borrow_and_update();
                match fill.find(self.at) {
                    Found::Piece(piece) => return self.take(piece),
                    Found::NotYet if fill.end().is_some_and(|end| self.at >= end) => self.detach(),
                    Found::NotYet => match progress.state {
                        FillState::Running => {
                            let changed = self
                                .receiver
                                .as_mut()
                                .expect("set together with the fill")
                                .changed()
                                .await;
                            if changed.is_err() {
                                self.detach();
                            }
                            continue;
                        }
                        FillState::Failed(error) => {
                            self.detach();
                            return Next::Failed(error);
                        }
                        FillState::Done => {
                            self.detach();
                            if self
                                .content
                                .length()
                                .is_some_and(|length| self.at >= length)
                            {
                                return Next::End;
                            }
                        }
                    },
                    Found::Elsewhere => self.detach(),
                }
            }
            if self
                .content
                .length()
                .is_some_and(|length| self.at >= length)
            {
                return Next::End;
            }
            return match self.piece_on_disk().await {
                Some(piece) => self.take(piece),
                None if self.fill.is_none() && self.content.fill_of(self.at).is_some() => continue,
                None => Next::Missing,
            };
        }
    }

    fn take(&mut self, mut piece: Bytes) -> Next {
        if let Some(end) = self.end {
            piece.truncate((end - self.at).min(piece.len() as u64) as usize);
        }
        self.at += piece.len() as u64;
        if let (Some(position), Some(fill)) = (&self.position, &self.fill) {
            position.store(self.at, Ordering::Relaxed);
            if fill.is_relay.load(Ordering::Relaxed) {
                fill.consumed.notify_one();
            }
        }
        Next::Piece(piece)
    }

    fn within(&self, slice: Bytes) -> Option<Bytes> {
        let offset = (self.at % SLICE) as usize;
        (offset < slice.len()).then(|| slice.slice(offset..))
    }

    fn piece_in_memory(&self) -> Option<Bytes> {
        self.content
            .store
            .get_memory(&self.content.body, (self.at / SLICE) as u32)
            .and_then(|slice| self.within(slice))
    }

    async fn piece_on_disk(&self) -> Option<Bytes> {
        let index = (self.at / SLICE) as u32;
        let Content { store, body, .. } = &*self.content;
        if let Some(slice) = store.get_now(body, index) {
            return self.within(slice);
        }
        if !store.contains(body, index) {
            return None;
        }
        let (store, body) = (store.clone(), body.clone());
        let read = tokio::task::spawn_blocking(move || store.read_blocking(&body, index)).await;
        read.ok().flatten().and_then(|slice| self.within(slice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Pool, StoreConfig};

    fn content(memory_bytes: u64, length: Option<u64>) -> Arc<Content> {
        content_of(memory_bytes, length, false)
    }

    fn content_of(memory_bytes: u64, length: Option<u64>, is_tagged: bool) -> Arc<Content> {
        let (store, _gone) = Store::open(&StoreConfig {
            memory_bytes,
            disk: None,
        });
        let store = Arc::new(store);
        let body = store.new_body(1, Pool::Pull);
        Content::new(
            store,
            body,
            length,
            is_tagged.then(|| StrongValidator::Tag(http::HeaderValue::from_static("\"t\""))),
        )
    }

    fn writer(content: &Arc<Content>) -> FillWriter {
        let fill = content.begin_fill(0, content.length());
        FillWriter::new(content.clone(), fill, false)
    }

    async fn read_all(mut reader: Reader) -> Result<Vec<u8>, Next> {
        let mut whole = Vec::new();
        loop {
            match reader.next().await {
                Next::Piece(piece) => whole.extend_from_slice(&piece),
                Next::End => return Ok(whole),
                other => return Err(other),
            }
        }
    }

    #[tokio::test]
    async fn readers_get_bytes_as_they_come_and_slices_afterwards() {
        let body: Vec<u8> = (0..SLICE_BYTES * 2 + 1000)
            .map(|i| (i % 251) as u8)
            .collect();
        let content = content(64 << 20, None);
        let mut fill = writer(&content);
        let mut early = content.reader(0, None);
        fill.write(Bytes::from_static(b"\0"));
        assert!(
            matches!(early.next().await, Next::Piece(p) if p.as_ref() == [0]),
            "the first byte comes alone"
        );
        let rest = tokio::spawn(read_all(early));
        for piece in body[1..].chunks(70_000) {
            fill.write(Bytes::copy_from_slice(piece));
            tokio::task::yield_now().await;
        }
        let middle = tokio::spawn(read_all(content.reader(300_000, Some(300_100))));
        assert!(content.learn_length(body.len() as u64));
        fill.finish();
        assert_eq!(rest.await.expect("no panic").expect("whole"), body[1..]);
        assert_eq!(
            middle.await.expect("no panic").expect("whole"),
            body[300_000..300_100]
        );
        assert_eq!(
            read_all(content.reader(0, None)).await.expect("whole"),
            body
        );
        assert!(content.has(0, body.len() as u64) && !content.is_filling());
    }

    #[tokio::test]
    async fn a_failed_fill_fails_its_readers_and_a_forgotten_one_too() {
        for fail in [true, false] {
            let content = content(64 << 20, None);
            let mut fill = writer(&content);
            fill.write(Bytes::from_static(b"part"));
            let reader = tokio::spawn(read_all(content.reader(0, None)));
            tokio::task::yield_now().await;
            if fail {
                fill.fail(OriginError::BetweenBytesTimeout)
            } else {
                drop(fill)
            }
            assert!(matches!(
                reader.await.expect("no panic"),
                Err(Next::Failed(_))
            ));
        }
    }

    #[tokio::test]
    async fn an_empty_body_is_whole_and_missing_slices_are_named() {
        let empty = content(1 << 20, Some(0));
        writer(&empty).finish();
        assert_eq!(
            read_all(empty.reader(0, Some(0))).await.expect("whole"),
            b""
        );
        assert_eq!(empty.whole_in_memory().as_deref(), Some(&b""[..]));
        let parts = content(64 << 20, Some(5 * SLICE));
        let fill = parts.begin_fill(2 * SLICE, Some(3 * SLICE));
        assert!(
            parts.begin_fill_of_missing(2 * SLICE, 5 * SLICE).is_none(),
            "it is on its way"
        );
        let before = parts
            .begin_fill_of_missing(10, 5 * SLICE)
            .expect("it is missing");
        assert_eq!(
            (before.first, before.end()),
            (0, Some(2 * SLICE)),
            "up to what is on its way"
        );
        let after = parts
            .begin_fill_of_missing(3 * SLICE + 1, 3 * SLICE + 2)
            .expect("it is missing");
        assert_eq!(
            (after.first, after.end()),
            (3 * SLICE, Some(4 * SLICE)),
            "whole slices"
        );
        for fill in [fill, before, after] {
            drop(FillWriter::new(parts.clone(), fill, false));
        }
        assert!(matches!(
            parts.reader(0, Some(1)).next().await,
            Next::Missing
        ));
    }

    #[tokio::test]
    async fn a_long_row_of_slices_is_forgotten_away_from_the_thread_that_serves() {
        for (slices, is_here) in [(FORGOTTEN_AT_ONCE_MAX, true), (4_000_000, false)] {
            let content = content(64 << 20, None);
            let (store, body) = (content.store.clone(), content.body.clone());
            store.put_in_memory(&body, slices - 1, Bytes::from_static(b"x"));
            content.discard();
            drop(content);
            // Millions of looks take longer than this one.
            assert_eq!(store.contains(&body, slices - 1), !is_here, "{slices}");
            while store.contains(&body, slices - 1) {
                tokio::task::yield_now().await;
            }
        }
    }

    #[test]
    fn a_run_of_missing_slices_is_looked_through_in_bounded_steps() {
        let content = content(1 << 20, Some(1 << 62));
        let fill = content
            .begin_fill_of_missing(SLICE, 1 << 62)
            .expect("it is missing");
        assert_eq!(
            (fill.at(), fill.end()),
            (SLICE, Some((RUN_SLICES_MAX + 1) * SLICE))
        );
        let next = content
            .begin_fill_of_next_missing(SLICE, 1 << 62)
            .expect("what comes after it");
        assert_eq!(
            (next.at(), next.end()),
            (
                (RUN_SLICES_MAX + 1) * SLICE,
                Some((2 * RUN_SLICES_MAX + 1) * SLICE)
            )
        );
    }

    #[tokio::test]
    async fn what_is_cut_by_a_seek_settles_with_its_last_slice() {
        let content = seekable(12);
        let mut behind = writer(&content);
        let settled = tokio::spawn({
            let content = content.clone();
            async move { content.settled().await }
        });
        let ahead = content
            .begin_seek(8 * SLICE)
            .expect("far ahead")
            .take_over(9 * SLICE)
            .expect("still far");
        let mut ahead = FillWriter::new(content.clone(), ahead, false);
        behind.write(Bytes::from(vec![1; 8 * SLICE_BYTES]));
        let rest = content
            .begin_fill_of_next_missing(8 * SLICE, 12 * SLICE)
            .expect("the rest");
        let mut rest = FillWriter::new(content.clone(), rest, false);
        behind.finish();
        ahead.write(Bytes::from(vec![1; SLICE_BYTES]));
        ahead.finish();
        tokio::task::yield_now().await;
        assert!(!settled.is_finished(), "three slices are on their way");
        rest.write(Bytes::from(vec![1; 3 * SLICE_BYTES]));
        rest.finish();
        assert!(settled.await.expect("no panic"));
        let (cut, fill) = (seekable(2), seekable(2));
        drop(writer(&cut));
        assert!(
            !cut.settled().await && !fill.settled().await,
            "nothing has come"
        );
    }

    #[tokio::test]
    async fn a_fill_remembers_no_readers_that_have_gone() {
        let content = content(64 << 20, Some(10 * SLICE));
        let writer = writer(&content);
        let mut stays = content.reader(SLICE, None);
        assert!(futures_util::FutureExt::now_or_never(stays.next()).is_none() && content.is_read());
        for _ in 0..1000 {
            let mut reader = content.reader(SLICE, Some(SLICE + 1));
            assert!(
                futures_util::FutureExt::now_or_never(reader.next()).is_none(),
                "it waits"
            );
        }
        assert!(writer.fill().readers.lock().expect("unpoisoned").len() <= 8);
        drop(stays);
        assert!(!content.is_read());
    }

    fn seekable(slices: u64) -> Arc<Content> {
        content_of(64 << 20, Some(slices * SLICE), true)
    }

    #[tokio::test]
    async fn a_seek_takes_over_what_is_far_ahead_and_its_readers() {
        let content = seekable(12);
        let mut behind = writer(&content);
        behind.write(Bytes::from(vec![1; SLICE_BYTES / 2]));
        let early = tokio::spawn(read_all(content.reader(8 * SLICE + 5, Some(8 * SLICE + 7))));
        tokio::task::yield_now().await;
        assert!(
            content.begin_seek(SEEK_SLICES * SLICE).is_none(),
            "that is near"
        );
        let seek = content.begin_seek(8 * SLICE + 5).expect("far ahead");
        assert!(
            content.begin_seek(9 * SLICE).is_none(),
            "somebody asks for nearly the same"
        );
        assert_eq!(seek.first(), 8 * SLICE);
        let fill = seek.take_over(10 * SLICE).expect("still far");
        assert_eq!(
            (fill.at(), fill.end(), behind.fill().end()),
            (8 * SLICE, Some(10 * SLICE), Some(8 * SLICE))
        );
        let mut ahead = FillWriter::new(content.clone(), fill, false);
        ahead.write(Bytes::from(vec![2; SLICE_BYTES]));
        assert_eq!(
            early.await.expect("no panic").expect("whole"),
            [2, 2],
            "a reader that waited for the one behind"
        );
        // What the one behind was sent beyond its new end is not written twice.
        behind.write(Bytes::from(vec![1; 9 * SLICE_BYTES]));
        assert_eq!(behind.at(), 8 * SLICE);
        behind.finish();
        ahead.write(Bytes::from(vec![2; SLICE_BYTES]));
        ahead.finish();
        assert!(content.has(0, 10 * SLICE) && !content.has(10 * SLICE, 12 * SLICE));
        let next = content
            .begin_fill_of_next_missing(8 * SLICE, 12 * SLICE)
            .expect("the last two");
        assert_eq!((next.at(), next.end()), (10 * SLICE, Some(12 * SLICE)));
        drop(FillWriter::new(content.clone(), next, false));
        assert!(content.begin_fill_of_next_missing(0, 10 * SLICE).is_none());
    }

    /// Numbers that a seed decides (xorshift).
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % end
        }
    }

    type Writers = std::rc::Rc<std::cell::RefCell<Vec<(FillWriter, u64)>>>;

    fn add(writers: &Writers, content: &Arc<Content>, fill: Arc<Fill>) {
        let goal = fill.end().expect("it is known");
        add_towards(writers, content, fill, goal);
    }

    fn add_towards(writers: &Writers, content: &Arc<Content>, fill: Arc<Fill>, goal: u64) {
        writers
            .borrow_mut()
            .push((FillWriter::new(content.clone(), fill, false), goal));
    }

    /// Reads a range as a client's request does: seeks where the fill is far behind, and fills what
    /// is missing.
    async fn read_range(
        content: Arc<Content>,
        writers: Writers,
        first: u64,
        end: u64,
        patience: u64,
    ) -> Vec<u8> {
        if let Some(seek) = content.begin_seek(first) {
            // The origin's answer takes its time.
            for _ in 0..patience {
                tokio::task::yield_now().await;
            }
            if let Some(fill) = seek.take_over(end) {
                add(&writers, &content, fill);
            }
        }
        let (mut reader, mut bytes) = (content.reader(first, Some(end)), Vec::new());
        loop {
            match reader.next().await {
                Next::Piece(piece) => bytes.extend_from_slice(&piece),
                Next::End => return bytes,
                Next::Missing => match content.begin_fill_of_missing(reader.at, end) {
                    Some(fill) => add(&writers, &content, fill),
                    None => tokio::task::yield_now().await,
                },
                Next::Failed(error) => panic!("no fill failed: {error}"),
            }
        }
    }

    async fn walk(seed: u64) {
        const SLICES: u64 = 24;
        let length = SLICES * SLICE - 1000;
        let body: Bytes = (0..length)
            .map(|at| (at % 251) as u8 ^ (at / SLICE) as u8)
            .collect::<Vec<_>>()
            .into();
        let content = content_of(64 << 20, Some(length), true);
        let mut random = Random(seed * 2 + 1);
        let writers = Writers::default();
        add(&writers, &content, content.begin_fill(0, Some(length)));
        let readers: Vec<_> = (0..12)
            .map(|_| {
                let first = random.below(length);
                let end = first + 1 + random.below(length - first);
                let reading = read_range(
                    content.clone(),
                    writers.clone(),
                    first,
                    end,
                    random.below(40),
                );
                (first, end, tokio::task::spawn_local(reading))
            })
            .collect();
        let mut written = 0;
        while !writers.borrow().is_empty() {
            tokio::task::yield_now().await;
            let number = random.below(writers.borrow().len() as u64) as usize;
            let (mut writer, goal) = writers.borrow_mut().swap_remove(number);
            // The origin does not know that a fill's end has come nearer.
            let (at, more) = (writer.at(), 1 + random.below(2 * SLICE));
            writer.write(body.slice(at as usize..(at + more).min(goal) as usize));
            written += writer.at() - at;
            let end = writer.fill().end().expect("it is known");
            if writer.at() < end {
                writers.borrow_mut().push((writer, goal));
                continue;
            }
            writer.finish();
            if end < goal
                && let Some(fill) = content.begin_fill_of_next_missing(end, goal)
            {
                add_towards(&writers, &content, fill, goal);
            }
        }
        for (first, end, reader) in readers {
            assert!(content.has(0, length), "seed {seed}: some of it never came");
            let bytes = reader.await.expect("no panic");
            assert!(
                bytes == body[first as usize..end as usize],
                "seed {seed}: {first}-{end}"
            );
        }
        assert_eq!(written, length, "seed {seed}: some of it came twice");
    }

    #[test]
    fn whoever_seeks_where_everything_comes_once_and_everybody_reads_what_was_sent() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        for seed in 0..20 {
            tokio::task::LocalSet::new().block_on(&runtime, walk(seed));
        }
    }

    #[test]
    fn a_seek_that_comes_too_late_or_cannot_be_joined_is_none() {
        let content = seekable(12);
        let mut behind = writer(&content);
        let seek = content.begin_seek(6 * SLICE).expect("far ahead");
        behind.write(Bytes::from(vec![1; 5 * SLICE_BYTES + 1]));
        assert!(
            seek.take_over(7 * SLICE).is_none(),
            "the fill has come near"
        );
        drop(seek);
        assert_eq!(behind.fill().end(), Some(12 * SLICE));
        assert!(content.begin_seek(10 * SLICE).is_some());
        content.note_whole_only();
        assert!(
            content.begin_seek(10 * SLICE).is_none(),
            "the origin gives no parts"
        );
        let untagged = super::tests::content(64 << 20, Some(12 * SLICE));
        let _fill = writer(&untagged);
        assert!(
            untagged.begin_seek(10 * SLICE).is_none(),
            "without a strong validator parts never meet"
        );
    }

    #[test]
    fn of_many_that_miss_the_same_slice_one_begins_its_fill() {
        for _ in 0..200 {
            let content = content(64 << 20, Some(2 * SLICE));
            let start = std::sync::Barrier::new(4);
            let begun = std::thread::scope(|scope| {
                let begin = || {
                    start.wait();
                    content.begin_fill_of_missing(0, SLICE).is_some()
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(begin)).collect();
                threads
                    .into_iter()
                    .map(|t| t.join().expect("no panic"))
                    .filter(|b| *b)
                    .count()
            });
            assert_eq!(begun, 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_relayed_body_waits_for_its_slowest_reader_and_ends_without_one() {
        let content = content(64 << 20, None);
        let mut fill = writer(&content);
        let mut reader = content.reader(0, None);
        fill.write(Bytes::from(vec![1u8; SLICE_BYTES]));
        assert!(matches!(reader.next().await, Next::Piece(_)));
        fill.relay();
        for _ in 0..RELAY_SLICES - 1 {
            assert!(fill.pace().await);
            fill.write(Bytes::from(vec![2u8; SLICE_BYTES]));
        }
        fill.write(Bytes::from(vec![2u8; SLICE_BYTES]));
        let wait = std::time::Duration::from_secs(60);
        assert!(
            tokio::time::timeout(wait, fill.pace()).await.is_err(),
            "the reader is too far behind"
        );
        while reader.at < fill.at() {
            assert!(matches!(reader.next().await, Next::Piece(_)));
        }
        assert!(fill.pace().await);
        drop(reader);
        assert!(!fill.pace().await, "nobody reads");
    }
}
