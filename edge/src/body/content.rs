//! One representation: its slices in the store, its running fills and the number of its readers.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::HeaderValue;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::again::Sums;
use super::coded::CodedForms;
use super::fill::{Fill, SLICE};
use nearcast_http_rules::conditional::StrongValidator;
use nearcast_store::{DiskState, Store, StoredBody};

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

/// The bytes of one representation. Every stored response that carries it shares it. There may be
/// millions, so what few of them need is made when it is needed.
#[derive(Debug)]
pub(crate) struct Content {
    store: Arc<Store>,
    pub(crate) body: Arc<StoredBody>,
    /// Complete length, or [`LENGTH_UNKNOWN`].
    length: AtomicU64,
    /// Identifies the representation. Without it, parts of several responses cannot be combined
    /// (RFC 9110 section 15.3.7.3). The first byte states the kind, the value follows.
    validator: Option<Box<[u8]>>,
    /// Made while there are some.
    fills: Mutex<Option<Box<Fills>>>,
    /// Whether `fills` has running ones; read without the lock.
    is_filling: AtomicBool,
    /// Whether the origin answered a range request with the whole body.
    is_whole_only: AtomicBool,
    /// No look-up finds it any more: its slices are forgotten with its last user.
    is_discarded: AtomicBool,
    readers: AtomicU32,
    rare: OnceLock<Box<Rare>>,
}

#[derive(Debug, Default)]
struct Rare {
    /// Of a body that cannot be fetched in parts: what shows that a further copy of it is the same.
    sums: OnceLock<Box<Sums>>,
    /// Made with the first one.
    coded_forms: OnceLock<Box<CodedForms>>,
}

/// In the place of a length.
const LENGTH_UNKNOWN: u64 = u64::MAX;
/// Kinds of validators.
const TAG: u8 = 1;
const DATE: u8 = 2;

/// Notified when the last reader of a content ends, by the number of its body. Who waits looks at the
/// content again, so several may share one.
static UNREAD: [Notify; 1024] = [const { Notify::const_new() }; 1024];

#[derive(Debug, Default)]
pub(super) struct Fills {
    pub(super) running: Vec<Arc<Fill>>,
    /// First bytes of the seeks whose requests are under way.
    sought: Vec<u64>,
}

impl Fills {
    /// The fill that holds the byte at `at` or will receive it.
    pub(super) fn covering(&self, at: u64) -> Option<&Arc<Fill>> {
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
        let kept = |kind: u8, value: &HeaderValue| -> Box<[u8]> {
            [&[kind], value.as_bytes()].concat().into()
        };
        Arc::new(Self {
            store,
            body,
            length: AtomicU64::new(length.unwrap_or(LENGTH_UNKNOWN)),
            validator: validator.map(|validator| match &validator {
                StrongValidator::Tag(tag) => kept(TAG, tag),
                StrongValidator::Date(date) => kept(DATE, date),
            }),
            fills: Mutex::default(),
            is_filling: AtomicBool::new(false),
            is_whole_only: AtomicBool::new(false),
            is_discarded: AtomicBool::new(false),
            readers: AtomicU32::new(0),
            rare: OnceLock::new(),
        })
    }

    /// Complete length in bytes, if it is known.
    pub(crate) fn length(&self) -> Option<u64> {
        let length = self.length.load(Ordering::Acquire);
        (length != LENGTH_UNKNOWN).then_some(length)
    }

    /// Sets the length. `false` when another length was known.
    pub(crate) fn learn_length(&self, length: u64) -> bool {
        let known = self.length.compare_exchange(
            LENGTH_UNKNOWN,
            length,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        known.is_ok() || known == Err(length)
    }

    /// Whether it has a strong validator.
    pub(crate) fn has_validator(&self) -> bool {
        self.validator.is_some()
    }

    /// The strong validator that identifies the representation.
    pub(crate) fn validator(&self) -> Option<StrongValidator> {
        let (kind, value) = self.validator.as_ref()?.split_first()?;
        // It was a field's value when it came.
        let value = HeaderValue::from_bytes(value).ok()?;
        Some(match *kind {
            DATE => StrongValidator::Date(value),
            _ => StrongValidator::Tag(value),
        })
    }

    /// Memory that it takes, each allocation by its size.
    pub(crate) fn allocations(&self) -> [usize; 2] {
        [
            size_of::<Self>(),
            self.validator.as_ref().map_or(0, |v| v.len()),
        ]
    }

    fn rare(&self) -> &Rare {
        self.rare.get_or_init(Box::default)
    }

    pub(super) fn sums(&self) -> Option<&Sums> {
        self.rare.get()?.sums.get().map(|sums| &**sums)
    }

    pub(super) fn sums_to_fill(&self) -> &Sums {
        self.rare().sums.get_or_init(Box::default)
    }

    pub(super) fn coded_forms(&self) -> Option<&CodedForms> {
        self.rare.get()?.coded_forms.get().map(|forms| &**forms)
    }

    pub(super) fn coded_forms_to_fill(&self) -> &CodedForms {
        self.rare().coded_forms.get_or_init(Box::default)
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
        self.unread().notified()
    }

    fn unread(&self) -> &'static Notify {
        &UNREAD[self.body.id.0 as usize % UNREAD.len()]
    }

    /// Forgets its slices with its last user, and those of its coded forms. No later look-up finds
    /// its head on disk.
    pub(crate) fn discard(&self) {
        self.is_discarded.store(true, Ordering::SeqCst);
        self.store.forget_head(&self.body);
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

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(super) fn add_reader(&self) {
        self.readers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_reader(&self) {
        if self.readers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.unread().notify_waiters();
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

    /// Stores a slice that a fill has completed. Gives whether the disk has it.
    pub(super) fn store_slice(&self, index: u32, slice: Bytes, is_disk_only: bool) -> bool {
        if self.is_discarded.load(Ordering::Relaxed) {
            // Only for its present readers. It is never written to disk: it may be a response that
            // must not be stored.
            self.store.put_in_memory(&self.body, index, slice);
            return false;
        }
        if is_disk_only {
            self.store.put_on_disk(&self.body, index, slice);
        } else {
            self.store.put(&self.body, index, slice);
        }
        self.store.is_on_disk(&self.body, index)
    }

    /// Whether the queue to the disk can take so many bytes, or takes none at all.
    pub(super) fn can_store(&self, bytes: u64) -> bool {
        self.store.write_room() >= bytes
            || self
                .store
                .disk_state()
                .is_none_or(|state| state != DiskState::On)
    }

    pub(super) fn has_slice(&self, index: u32) -> bool {
        self.store.contains(&self.body, index)
    }

    pub(super) fn slice_in_memory(&self, index: u32) -> Option<Bytes> {
        self.store.get_memory(&self.body, index)
    }

    /// A slice from either tier, waiting for the disk where it must.
    pub(super) async fn read_slice(&self, index: u32) -> Option<Bytes> {
        self.store.read_slice(&self.body, index).await
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
            let running = |fills: &Fills| fills.running.first().cloned();
            let Some(fill) = self.fills.lock().as_deref().and_then(running) else {
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
        let is_last = fills.running.is_empty();
        if is_last {
            // Most bodies have no use for its room in the list after it.
            fills.running = Vec::new();
        }
        let is_unused = is_last && fills.sought.is_empty();
        self.is_filling.store(!is_last, Ordering::Release);
        drop(fills);
        if is_unused {
            let mut fills = self.fills.lock();
            let is_empty = |fills: &Fills| fills.running.is_empty() && fills.sought.is_empty();
            if fills.as_deref().is_some_and(is_empty) {
                // Most bodies have one fill ever.
                *fills = None;
            }
        }
        if is_last && !self.is_discarded() {
            // While a fill runs, its response stays when the body is evicted.
            self.store.keep_head(&self.body);
        }
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

    pub(super) fn add_fill(&self, fills: &mut Fills, first: u64, end: Option<u64>) -> Arc<Fill> {
        let fill = Fill::new(first, end, self.store.budget());
        fills.running.push(fill.clone());
        self.is_filling.store(true, Ordering::Release);
        fill
    }

    pub(super) fn fills(&self) -> MappedMutexGuard<'_, Fills> {
        MutexGuard::map(self.fills.lock(), |fills| {
            &mut **fills.get_or_insert_default()
        })
    }
}

/// Seeks.
impl Content {
    /// Notes a seek from `first` on, unless waiting for the running fill is better.
    pub(super) fn reserve_seek(&self, first: u64) -> bool {
        // Parts can be combined only by a strong validator, and only if the origin sends parts.
        if !self.has_validator() || !self.is_filling() || self.is_whole_only.load(Ordering::Relaxed)
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
