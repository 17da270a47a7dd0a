//! What waits to be written, and can be read and removed meanwhile.
//!
//! A slice 0 waits a moment for its head, so that a body of one slice becomes one record. A job that
//! the writer has taken has a sequence, and stays readable here until the directory knows its place.
//! What is removed here is never written; where the writer has taken it already, the writer finds
//! that it is gone and destroys what it wrote.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::record::record_span;
use crate::body::{BodyId, Pool, SliceKey, StoredBody};
use crate::directory::Place;
use crate::groups::Group;

/// How long a slice 0 waits for its head.
const HEAD_WAIT: Duration = Duration::from_millis(100);

/// A head that waits.
#[derive(Debug, Clone)]
pub(crate) struct QueuedHead {
    pub(crate) body: Arc<StoredBody>,
    pub(crate) key: u128,
    pub(crate) group: Group,
    pub(crate) head: Bytes,
    /// 0 until the writer takes it.
    pub(crate) sequence: u64,
    /// Whether the writer may have taken an earlier head of the body, which this one replaced.
    pub(crate) has_taken_before: bool,
}

impl QueuedHead {
    /// Whether a head of the body may be on disk without an entry in the directory.
    fn was_taken(&self) -> bool {
        self.sequence > 0 || self.has_taken_before
    }
}

#[derive(Debug)]
struct QueuedSlice {
    body: Arc<StoredBody>,
    bytes: Bytes,
    sequence: u64,
}

#[derive(Debug)]
enum Item {
    Head(BodyId),
    Slice(SliceKey),
    Work(Work),
}

/// Work of the writer that is not a write of something new.
#[derive(Debug)]
pub(crate) enum Work {
    /// The head at that place, of that key, does not count any more. Its slice does where
    /// `keeps_slice`.
    Destroy {
        key: u128,
        place: Place,
        /// Of the region at that time.
        generation: u64,
        keeps_slice: bool,
    },
    /// Nothing counts any more in that region, which is of that generation and not being written.
    Release {
        pool: Pool,
        slot: u16,
        generation: u64,
    },
    /// All removals of that block and before have been queued as work before this.
    RemovalsQueued(u64),
    /// Destroy and sync everything that is to be destroyed so far, and say whether that was possible.
    Barrier(SyncSender<bool>),
    /// Begin a checkpoint.
    #[cfg(any(test, feature = "testing"))]
    Checkpoint,
    /// Answer when everything before it is written.
    Flush(SyncSender<()>),
}

/// What the writer takes from the queue.
#[derive(Debug)]
pub(crate) enum Job {
    /// A head, and slice 0 with it where both were there.
    Head(QueuedHead, Option<Bytes>),
    Slice {
        body: Arc<StoredBody>,
        index: u32,
        bytes: Bytes,
        sequence: u64,
    },
    Work(Work),
    /// Nothing to do for now.
    Idle,
    /// The store is closed.
    End,
}

#[derive(Debug, Default)]
struct State {
    heads: HashMap<BodyId, QueuedHead>,
    /// Bodies of the heads, by key.
    of_key: HashMap<u128, Vec<BodyId>>,
    slices: HashMap<SliceKey, QueuedSlice>,
    order: VecDeque<Item>,
    /// Slices that wait for their heads.
    waiting: VecDeque<(Instant, SliceKey)>,
    is_closed: bool,
    /// The writer takes nothing any more.
    is_ended: bool,
}

impl State {
    fn remove_head(&mut self, body: BodyId) -> Option<QueuedHead> {
        let head = self.heads.remove(&body)?;
        if let Some(bodies) = self.of_key.get_mut(&head.key) {
            bodies.retain(|other| *other != body);
            if bodies.is_empty() {
                self.of_key.remove(&head.key);
            }
        }
        Some(head)
    }
}

/// The queue to the writer.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    bytes: AtomicU64,
    bytes_max: u64,
}

impl Queue {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            bytes: AtomicU64::new(0),
            bytes_max,
        }
    }

    /// Bytes that it can take.
    pub(crate) fn room(&self) -> u64 {
        self.bytes_max
            .saturating_sub(self.bytes.load(Ordering::Relaxed))
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn take_room(&self, payload: usize) -> bool {
        let span = record_span(payload);
        if span > self.room() {
            return false;
        }
        self.bytes.fetch_add(span, Ordering::Relaxed);
        true
    }

    fn give_room(&self, payload: usize) {
        self.bytes
            .fetch_sub(record_span(payload), Ordering::Relaxed);
    }

    /// Queues a slice. `false` where there is no room.
    pub(crate) fn put_slice(&self, body: &Arc<StoredBody>, index: u32, bytes: Bytes) -> bool {
        if !self.take_room(bytes.len()) {
            return false;
        }
        let key = body.slice_key(index);
        let mut state = self.state.lock();
        if state.is_ended {
            self.give_room(bytes.len());
            return false;
        }
        if state.slices.contains_key(&key) {
            self.give_room(bytes.len());
            return true;
        }
        let slice = QueuedSlice {
            body: body.clone(),
            bytes,
            sequence: 0,
        };
        state.slices.insert(key, slice);
        if index == 0 && !state.heads.contains_key(&key.body) {
            state.waiting.push_back((Instant::now() + HEAD_WAIT, key));
        } else {
            state.order.push_back(Item::Slice(key));
        }
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Queues a head, in place of one of the same body. `false` where there is no room.
    pub(crate) fn put_head(&self, mut head: QueuedHead) -> bool {
        if !self.take_room(head.head.len()) {
            return false;
        }
        let mut state = self.state.lock();
        if state.is_ended {
            self.give_room(head.head.len());
            return false;
        }
        let id = head.body.id;
        if let Some(before) = state.remove_head(id) {
            head.has_taken_before = before.was_taken();
            self.give_room(before.head.len());
        }
        state.of_key.entry(head.key).or_default().push(id);
        state.heads.insert(id, head);
        state.order.push_back(Item::Head(id));
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Queues other work, which has no limit: each removal of something on disk is one.
    pub(crate) fn put_work(&self, work: Work) {
        let mut state = self.state.lock();
        if state.is_ended {
            // Whoever waits for an answer hears that there is none.
            return;
        }
        if matches!(work, Work::Flush(_)) {
            let waiting = std::mem::take(&mut state.waiting);
            let waiting = waiting.into_iter().map(|(_, key)| Item::Slice(key));
            state.order.extend(waiting);
        }
        state.order.push_back(Item::Work(work));
        drop(state);
        self.changed.notify_one();
    }

    pub(crate) fn slice(&self, key: SliceKey) -> Option<Bytes> {
        self.state.lock().slices.get(&key).map(|s| s.bytes.clone())
    }

    pub(crate) fn has_slice(&self, key: SliceKey) -> bool {
        self.state.lock().slices.contains_key(&key)
    }

    pub(crate) fn has_head(&self, body: BodyId) -> bool {
        self.state.lock().heads.contains_key(&body)
    }

    pub(crate) fn has_key(&self, key: u128) -> bool {
        self.state.lock().of_key.contains_key(&key)
    }

    /// The heads of a key, the newest last.
    pub(crate) fn heads_of(&self, key: u128) -> Vec<QueuedHead> {
        let state = self.state.lock();
        let bodies = state.of_key.get(&key).map_or(&[][..], Vec::as_slice);
        bodies
            .iter()
            .filter_map(|body| state.heads.get(body).cloned())
            .collect()
    }

    /// Takes out the heads of a key, and what waits of their bodies. Whether the writer has taken
    /// one of them.
    pub(crate) fn remove_key(&self, key: u128) -> bool {
        let bodies = self.state.lock().of_key.get(&key).cloned();
        let mut was_taken = false;
        for body in bodies.into_iter().flatten() {
            was_taken |= self.remove_body(body);
        }
        was_taken
    }

    /// Takes out the head of a body. Whether the writer has taken it.
    pub(crate) fn remove_head(&self, body: BodyId) -> bool {
        let head = self.state.lock().remove_head(body);
        if let Some(head) = &head {
            self.give_room(head.head.len());
        }
        head.is_some_and(|head| head.was_taken())
    }

    /// Takes out everything of a body. Whether the writer has taken its head.
    pub(crate) fn remove_body(&self, body: BodyId) -> bool {
        let mut state = self.state.lock();
        let head = state.remove_head(body);
        if let Some(head) = &head {
            self.give_room(head.head.len());
        }
        // The queue is short, and few bodies are removed while they wait in it.
        state.slices.retain(|key, slice| {
            let stays = key.body != body;
            if !stays {
                self.give_room(slice.bytes.len());
            }
            stays
        });
        head.is_some_and(|head| head.was_taken())
    }

    /// The next job, waiting for one at most as long as that. Gives it a sequence.
    pub(crate) fn take(&self, sequence: &AtomicU64, wait: Duration) -> Job {
        let mut state = self.state.lock();
        let until = Instant::now() + wait;
        loop {
            let now = Instant::now();
            let is_urgent = self.bytes() > self.bytes_max / 2 || state.is_closed;
            while let Some((ready, key)) = state.waiting.front().copied() {
                if ready > now && !is_urgent {
                    break;
                }
                state.waiting.pop_front();
                state.order.push_back(Item::Slice(key));
            }
            while let Some(item) = state.order.pop_front() {
                if let Some(job) = take_item(&mut state, item, sequence) {
                    return job;
                }
            }
            if state.is_closed && state.waiting.is_empty() {
                state.is_ended = true;
                return Job::End;
            }
            if now >= until {
                return Job::Idle;
            }
            let ready = state.waiting.front().map_or(until, |(ready, _)| *ready);
            self.changed.wait_until(&mut state, ready.min(until));
        }
    }

    /// Ends the life of a head that was taken with that sequence: `settle` runs under the lock of
    /// the queue if it is still wanted. `false` where it is not.
    pub(crate) fn settle_head(&self, body: BodyId, sequence: u64, settle: impl FnOnce()) -> bool {
        let mut state = self.state.lock();
        let is_wanted = state
            .heads
            .get(&body)
            .is_some_and(|head| head.sequence == sequence);
        if is_wanted {
            settle();
            if let Some(head) = state.remove_head(body) {
                self.give_room(head.head.len());
            }
        }
        is_wanted
    }

    /// The same for a slice.
    pub(crate) fn settle_slice(&self, key: SliceKey, sequence: u64, settle: impl FnOnce()) -> bool {
        let mut state = self.state.lock();
        let is_wanted = state
            .slices
            .get(&key)
            .is_some_and(|slice| slice.sequence == sequence);
        if is_wanted {
            settle();
            if let Some(slice) = state.slices.remove(&key) {
                self.give_room(slice.bytes.len());
            }
        }
        is_wanted
    }

    /// Drops everything that waits, and takes no further work: there is no writer.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        self.bytes.store(0, Ordering::Relaxed);
        *state = State {
            is_closed: true,
            is_ended: true,
            ..State::default()
        };
    }

    /// Makes [`take`](Self::take) end once everything is taken.
    pub(crate) fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_all();
    }
}

fn take_item(state: &mut State, item: Item, sequence: &AtomicU64) -> Option<Job> {
    match item {
        Item::Work(work) => Some(Job::Work(work)),
        Item::Head(id) => {
            let head = state.heads.get_mut(&id).filter(|head| head.sequence == 0)?;
            head.sequence = sequence.fetch_add(1, Ordering::SeqCst);
            let head = head.clone();
            let slice = state
                .slices
                .get_mut(&head.body.slice_key(0))
                .filter(|slice| slice.sequence == 0)
                .filter(|slice| fits_one_record(&head, slice));
            let slice = slice.map(|slice| {
                slice.sequence = head.sequence;
                slice.bytes.clone()
            });
            Some(Job::Head(head, slice))
        }
        Item::Slice(key) => {
            let slice = state.slices.get_mut(&key).filter(|s| s.sequence == 0)?;
            slice.sequence = sequence.fetch_add(1, Ordering::SeqCst);
            Some(Job::Slice {
                body: slice.body.clone(),
                index: key.index,
                bytes: slice.bytes.clone(),
                sequence: slice.sequence,
            })
        }
    }
}

fn fits_one_record(head: &QueuedHead, slice: &QueuedSlice) -> bool {
    head.head.len() + slice.bytes.len() <= super::record::PAYLOAD_BYTES_MAX
}

/// A pool's name in log lines.
pub(crate) fn pool_name(pool: Pool) -> &'static str {
    match pool {
        Pool::Pull => "pull",
        Pool::Pushed => "pushed",
    }
}
