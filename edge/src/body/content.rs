//! One representation: its slices in the store, its running fills and the number of its readers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::coded::CodedForms;
use super::fill::{Fill, SLICE};
use crate::store::{Store, StoredBody};
use nearcast_http_rules::conditional::StrongValidator;

/// A reader this many slices ahead of a fill gets its bytes sooner by a request of its own than by
/// waiting.
pub(super) const SEEK_SLICES: u64 = 4;
/// Largest number of fills of one body that run at once because of seeks.
const FILLS_MAX: usize = 8;
/// Largest number of slices that one fill of missing slices covers. It bounds how long the search
/// for the end of the run holds the lock of the fills. Another fill brings the slices after it.
pub(super) const RUN_SLICES_MAX: u64 = 4096;
/// Largest number of slices that the last user of a body forgets on its own thread, which may be
/// one that serves clients. Longer bodies are forgotten on a blocking thread.
pub(super) const FORGOTTEN_INLINE_MAX: u32 = 256;

/// The bytes of one representation. Every stored response that carries it shares it.
#[derive(Debug)]
pub(crate) struct Content {
    store: Arc<Store>,
    pub(crate) body: Arc<StoredBody>,
    /// Complete length, once known.
    length: OnceLock<u64>,
    /// Identifies the representation. Without it, parts of several responses cannot be combined
    /// (RFC 9110 section 15.3.7.3).
    pub(crate) validator: Option<StrongValidator>,
    fills: Mutex<Fills>,
    /// Whether `fills` has running ones; read without the lock.
    is_filling: AtomicBool,
    /// Whether the origin answered a range request with the whole body.
    is_whole_only: AtomicBool,
    /// No look-up finds it any more: its slices are forgotten with its last user.
    is_discarded: AtomicBool,
    readers: AtomicUsize,
    /// Notified when the last reader ends.
    unread: Notify,
    /// Made with the first one.
    pub(super) coded_forms: OnceLock<Box<CodedForms>>,
}

#[derive(Debug, Default)]
struct Fills {
    running: Vec<Arc<Fill>>,
    /// First bytes of the seeks whose requests are under way.
    sought: Vec<u64>,
}

impl Fills {
    /// The fill that holds the byte at `at` or will receive it.
    fn covering(&self, at: u64) -> Option<&Arc<Fill>> {
        self.running.iter().find(|fill| fill.covers(at))
    }
}

impl Content {
    pub(crate) fn new(
        store: Arc<Store>,
        body: Arc<StoredBody>,
        length: Option<u64>,
        validator: Option<StrongValidator>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            body,
            length: length.map_or_else(OnceLock::new, OnceLock::from),
            validator,
            fills: Mutex::default(),
            is_filling: AtomicBool::new(false),
            is_whole_only: AtomicBool::new(false),
            is_discarded: AtomicBool::new(false),
            readers: AtomicUsize::new(0),
            unread: Notify::new(),
            coded_forms: OnceLock::new(),
        })
    }

    /// Complete length in bytes, if it is known.
    pub(crate) fn length(&self) -> Option<u64> {
        self.length.get().copied()
    }

    /// Sets the length. `false` when another length was known.
    pub(crate) fn learn_length(&self, length: u64) -> bool {
        *self.length.get_or_init(|| length) == length
    }

    /// Whether a fill is running.
    pub(crate) fn is_filling(&self) -> bool {
        self.is_filling.load(Ordering::Acquire)
    }

    /// Whether it has a reader.
    pub(crate) fn is_read(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }

    /// Resolves when its last reader ends.
    pub(crate) fn last_reader_ended(&self) -> Notified<'_> {
        self.unread.notified()
    }

    /// Forgets its slices with its last user, and those of its coded forms.
    pub(crate) fn discard(&self) {
        self.is_discarded.store(true, Ordering::SeqCst);
        self.discard_coded();
    }

    /// Whether no look-up finds it any more.
    pub(crate) fn is_discarded(&self) -> bool {
        self.is_discarded.load(Ordering::SeqCst)
    }

    /// Remembers that the origin sends this representation as a whole only.
    pub(crate) fn note_whole_only(&self) {
        self.is_whole_only.store(true, Ordering::Relaxed);
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(super) fn add_reader(&self) {
        self.readers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_reader(&self) {
        if self.readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.unread.notify_waiters();
        }
    }
}

/// What is stored.
impl Content {
    /// The whole body, if it is one slice and in memory.
    pub(crate) fn whole_in_memory(&self) -> Option<Bytes> {
        let length = self.length()?;
        if length > SLICE {
            return None;
        }
        self.slice_in_memory(0)
            .filter(|slice| slice.len() as u64 == length)
    }

    /// Counts as a use of its first slice in memory. A body of which only coded forms are read stays
    /// by this: without any slice of it, its response is no longer found.
    pub(crate) fn keep_in_memory(&self) {
        drop(self.slice_in_memory(0));
    }

    /// Whether every byte of `first..end` is stored.
    pub(crate) fn has(&self, first: u64, end: u64) -> bool {
        (first / SLICE..slices_before(end).max(first / SLICE + 1))
            .all(|index| self.has_slice(index as u32))
    }

    /// The first byte of `first..end` whose slice is not stored.
    pub(crate) fn first_missing(&self, first: u64, end: u64) -> Option<u64> {
        let missing =
            (first / SLICE..slices_before(end)).find(|index| !self.has_slice(*index as u32))?;
        Some((missing * SLICE).max(first))
    }

    /// Whether fills are running that bring bytes which are not stored yet.
    pub(crate) fn is_awaited(&self) -> bool {
        self.is_filling() && self.length().is_none_or(|length| !self.has(0, length))
    }

    /// Whether the byte at an offset is stored or being filled.
    pub(crate) fn has_or_awaits(&self, at: u64) -> bool {
        self.has_slice((at / SLICE) as u32) || self.fill_of(at).is_some()
    }

    /// Stores a slice that a fill has completed.
    pub(super) fn store_slice(&self, index: u32, slice: Bytes, is_disk_only: bool) {
        if self.is_discarded.load(Ordering::Relaxed) {
            // Only for its present readers. It is never written to disk: it may be a response that
            // must not be stored.
            self.store.put_in_memory(&self.body, index, slice);
        } else if is_disk_only {
            self.store.put_on_disk(&self.body, index, slice);
        } else {
            self.store.put(&self.body, index, slice);
        }
    }

    /// Bytes that the queue to the disk can take.
    pub(super) fn write_room(&self) -> u64 {
        self.store.write_room()
    }

    fn has_slice(&self, index: u32) -> bool {
        self.store.contains(&self.body, index)
    }

    pub(super) fn slice_in_memory(&self, index: u32) -> Option<Bytes> {
        self.store.get_memory(&self.body, index)
    }

    /// A slice from either tier, waiting for the disk where it must.
    pub(super) async fn read_slice(&self, index: u32) -> Option<Bytes> {
        if let Some(slice) = self.store.get_now(&self.body, index) {
            return Some(slice);
        }
        if !self.has_slice(index) {
            return None;
        }
        let (store, body) = (self.store.clone(), self.body.clone());
        let read = tokio::task::spawn_blocking(move || store.read_blocking(&body, index)).await;
        read.ok().flatten()
    }
}

/// Fills.
impl Content {
    /// Begins a fill of `first..end`, where `first` is a slice's first byte. Readers wait for it
    /// from now on.
    pub(crate) fn begin_fill(&self, first: u64, end: Option<u64>) -> Arc<Fill> {
        self.add_fill(&mut self.fills(), first, end)
    }

    /// Begins a fill of the run of missing slices that begins with the slice at `at`, cut at `end`.
    /// A missing slice is neither stored nor being filled; `None` when that slice is not missing.
    /// The lock is held from the search to the begin, so that of all that request the same run at
    /// once exactly one begins a fill.
    pub(crate) fn begin_fill_of_missing(&self, at: u64, end: u64) -> Option<Arc<Fill>> {
        self.add_fill_of_missing(&mut self.fills(), at / SLICE * SLICE, end)
    }

    /// As [`begin_fill_of_missing`](Self::begin_fill_of_missing), for the first run of missing
    /// slices at or after `at`.
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

    /// Waits until no fill is running. `false` when bytes are missing then.
    pub(crate) async fn fills_ended(&self) -> bool {
        loop {
            let Some(fill) = self.fills().running.first().cloned() else {
                break;
            };
            fill.ended().await;
        }
        self.length().is_some_and(|length| self.has(0, length))
    }

    /// The fill that holds the byte at `at` or will receive it.
    pub(super) fn fill_of(&self, at: u64) -> Option<Arc<Fill>> {
        if self.is_filling() {
            self.fills().covering(at).cloned()
        } else {
            None
        }
    }

    pub(super) fn end_fill(&self, fill: &Arc<Fill>) {
        let mut fills = self.fills();
        fills.running.retain(|f| !Arc::ptr_eq(f, fill));
        if fills.running.is_empty() {
            // Most bodies have one fill ever, and no use for its room in the list after it.
            fills.running = Vec::new();
        }
        self.is_filling
            .store(!fills.running.is_empty(), Ordering::Release);
    }

    fn is_missing(&self, fills: &Fills, at: u64) -> bool {
        !self.has_slice((at / SLICE) as u32) && fills.covering(at).is_none()
    }

    fn add_fill_of_missing(&self, fills: &mut Fills, first: u64, end: u64) -> Option<Arc<Fill>> {
        if !self.is_missing(fills, first) {
            return None;
        }
        let end_max = end.min(first.saturating_add(RUN_SLICES_MAX * SLICE));
        let mut last = first + SLICE;
        while last < end_max && self.is_missing(fills, last) {
            last += SLICE;
        }
        let last = self.length().map_or(last, |length| last.min(length));
        Some(self.add_fill(fills, first, Some(last)))
    }

    fn add_fill(&self, fills: &mut Fills, first: u64, end: Option<u64>) -> Arc<Fill> {
        let fill = Fill::new(first, end);
        fills.running.push(fill.clone());
        self.is_filling.store(true, Ordering::Release);
        fill
    }

    fn fills(&self) -> MutexGuard<'_, Fills> {
        self.fills.lock()
    }
}

/// Seeks.
impl Content {
    /// Notes a seek from `first` on, unless waiting for the running fill is better.
    pub(super) fn reserve_seek(&self, first: u64) -> bool {
        // Parts can be combined only by a strong validator, and only if the origin sends parts.
        if self.validator.is_none()
            || !self.is_filling()
            || self.is_whole_only.load(Ordering::Relaxed)
        {
            return false;
        }

        let mut fills = self.fills();
        let is_far = fills
            .covering(first)
            .is_some_and(|fill| fill.at() + SEEK_SLICES * SLICE <= first);
        let is_sought = fills
            .sought
            .iter()
            .any(|other| other.abs_diff(first) < SEEK_SLICES * SLICE);
        if !is_far || is_sought || fills.running.len() + fills.sought.len() >= FILLS_MAX {
            return false;
        }
        fills.sought.push(first);
        true
    }

    pub(super) fn release_seek(&self, first: u64) {
        self.fills().sought.retain(|other| *other != first);
    }

    /// Cuts the fill that would bring the byte at `first`, and begins one of the missing slices
    /// from there to `end`. `None` when the running fill is near by now, or nothing is missing.
    pub(super) fn take_over(&self, first: u64, end: u64) -> Option<Arc<Fill>> {
        let (behind, ahead) = {
            let mut fills = self.fills();
            let behind = fills.covering(first).cloned();
            if behind.as_ref().is_some_and(|fill| !fill.cut(first)) {
                return None;
            }
            (behind, self.add_fill_of_missing(&mut fills, first, end))
        };

        // After the new fill is in the list: its readers look there next.
        if let Some(behind) = behind {
            behind.wake_readers();
        }
        ahead
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        // No look-up finds a coded form without its identity form.
        self.discard_coded();
        if !*self.is_discarded.get_mut() {
            return;
        }
        let (store, body) = (self.store.clone(), self.body.clone());
        let runtime = Handle::try_current()
            .ok()
            .filter(|_| body.slices() > FORGOTTEN_INLINE_MAX);
        match runtime {
            Some(runtime) => drop(runtime.spawn_blocking(move || store.forget(&body))),
            None => store.forget(&body),
        }
    }
}

/// How many slices a body of that length has. An empty body has one, so that it can be stored.
fn slices_before(end: u64) -> u64 {
    end.div_ceil(SLICE).max(1)
}
