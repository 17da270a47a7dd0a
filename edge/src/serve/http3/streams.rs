//! The streams of one connection that wait for something, and which is polled first.
//!
//! The connection's task polls them itself: those that were woken, the most urgent first. Knows
//! neither HTTP nor the transport: a stream is a future.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32};
use std::task::{Context, Wake, Waker};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

/// The number of what is polled like a stream, but is no request.
pub(super) const NO_REQUEST: u64 = u64::MAX;

pub(super) type StreamFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What wakes a connection's task.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    task: AtomicWaker,
    /// The task polls, and looks for wakes itself before it ends.
    is_polling: AtomicBool,
    /// Numbers of the slots whose streams were woken.
    streams: Mutex<Vec<u32>>,
}

impl Wakes {
    /// A poll of the task begins.
    pub(super) fn begin(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
        self.is_polling.store(true, Release);
    }

    /// A poll ends; `false` if something was woken meanwhile, so that the task has to go on.
    pub(super) fn end(&self) -> bool {
        self.is_polling.store(false, SeqCst);
        if !self.streams.lock().is_empty() {
            self.is_polling.store(true, Release);
            return false;
        }
        true
    }

    /// A poll ends before all is done: the task is polled again after others.
    pub(super) fn end_turn(&self, cx: &mut Context<'_>) {
        self.is_polling.store(false, SeqCst);
        let turn = pin!(tokio::task::yield_now());
        // The runtime has the waker now.
        let _ = turn.poll(cx);
    }
}

struct SlotWaker {
    wakes: Arc<Wakes>,
    slot: u32,
    /// The slot's number is in the list.
    is_listed: AtomicBool,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_listed.swap(true, AcqRel) {
            self.wakes.streams.lock().push(self.slot);
            if !self.wakes.is_polling.load(SeqCst) {
                self.wakes.task.wake();
            }
        }
    }
}

/// A stream that waits.
pub(super) struct Stream {
    /// Its number in the transport.
    pub(super) id: u64,
    pub(super) future: StreamFuture,
    /// The priority that its response has in the transport. More is more urgent.
    pub(super) priority: Arc<AtomicI32>,
}

struct Slot {
    stream: Option<Stream>,
    waker: Arc<SlotWaker>,
    /// It may not take its next piece yet.
    is_refused: bool,
}

/// The open streams of one connection.
pub(super) struct Streams {
    wakes: Arc<Wakes>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    open: usize,
    refused: usize,
    /// Slots of this round: a buffer.
    due: Vec<u32>,
}

impl Streams {
    pub(super) fn new(wakes: Arc<Wakes>) -> Self {
        Self {
            wakes,
            slots: Vec::new(),
            free: Vec::new(),
            open: 0,
            refused: 0,
            due: Vec::new(),
        }
    }

    /// Requests that are not complete.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Adds a stream, which is polled in the next round.
    pub(super) fn enter(&mut self, stream: Stream) {
        self.open += usize::from(stream.id != NO_REQUEST);
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                let slot = self.slots.len() as u32;
                self.slots.push(Slot {
                    stream: None,
                    waker: Arc::new(SlotWaker {
                        wakes: self.wakes.clone(),
                        slot,
                        is_listed: AtomicBool::new(false),
                    }),
                    is_refused: false,
                });
                slot
            }
        };
        let slot = &mut self.slots[at as usize];
        slot.stream = Some(stream);
        slot.waker.wake_by_ref();
    }

    /// Changes the priority of a stream; `false` if there is no such stream.
    pub(super) fn set_priority(&mut self, id: u64, priority: i32) -> bool {
        let is_it = |slot: &&Slot| slot.stream.as_ref().is_some_and(|stream| stream.id == id);
        let Some(slot) = self.slots.iter().find(is_it) else {
            return false;
        };
        if let Some(stream) = &slot.stream {
            stream.priority.store(priority, SeqCst);
        }
        slot.waker.wake_by_ref();
        true
    }

    /// Polls streams that were woken, the most urgent first and at most so many; how many. Those that
    /// may not take their next piece are polled where `may_take`. `take_refused` says of the stream
    /// that was polled last whether it is one of them now.
    pub(super) fn poll(
        &mut self,
        most: usize,
        may_take: bool,
        take_refused: impl Fn() -> bool,
    ) -> usize {
        if may_take && self.refused > 0 {
            for slot in &self.slots {
                if slot.is_refused {
                    slot.waker.wake_by_ref();
                }
            }
        }
        let mut due = std::mem::take(&mut self.due);
        due.clear();
        std::mem::swap(&mut due, &mut *self.wakes.streams.lock());
        if due.len() > 1 {
            due.sort_by_key(|at| {
                let stream = &self.slots[*at as usize].stream;
                let priority = stream.as_ref().map(|stream| &stream.priority);
                std::cmp::Reverse(priority.map(|priority| priority.load(SeqCst)))
            });
        }
        if due.len() > most {
            // They stay listed.
            self.wakes.streams.lock().extend(due.drain(most..));
        }
        for at in &due {
            self.poll_one(*at, &take_refused);
        }
        let polled = due.len();
        self.due = due;
        polled
    }

    fn poll_one(&mut self, at: u32, take_refused: impl Fn() -> bool) {
        let slot = &mut self.slots[at as usize];
        slot.waker.is_listed.store(false, Release);
        self.refused -= usize::from(std::mem::take(&mut slot.is_refused));
        // A waker may outlive its stream.
        let Some(stream) = &mut slot.stream else {
            return;
        };
        let waker = Waker::from(slot.waker.clone());
        let polled = stream
            .future
            .as_mut()
            .poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            self.open -= usize::from(stream.id != NO_REQUEST);
            slot.stream = None;
            self.free.push(at);
        } else if take_refused() {
            slot.is_refused = true;
            self.refused += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;
    use std::task::Poll;

    use super::*;

    type Log = Arc<Mutex<Vec<u64>>>;

    /// A stream that notes each poll, and ends with the last one.
    fn stream(id: u64, priority: i32, mut polls: usize, log: &Log) -> Stream {
        let log = log.clone();
        Stream {
            id,
            priority: Arc::new(AtomicI32::new(priority)),
            future: Box::pin(poll_fn(move |cx| {
                log.lock().push(id);
                polls -= 1;
                if polls == 0 {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })),
        }
    }

    #[test]
    fn the_most_urgent_are_polled_first_and_in_order_of_their_waking() {
        let log = Log::default();
        let mut streams = Streams::new(Arc::default());
        for (id, priority) in [(1, 0), (2, -5), (3, 7), (4, 0)] {
            streams.enter(stream(id, priority, 1, &log));
        }
        assert_eq!((streams.open(), streams.poll(3, true, || false)), (4, 3));
        assert_eq!(*log.lock(), [3, 1, 4]);
        streams.enter(stream(5, 1, 1, &log));
        assert_eq!(streams.poll(9, true, || false), 2);
        assert_eq!(log.lock()[3..], [5, 2]);
        assert_eq!((streams.open(), streams.poll(9, true, || false)), (0, 0));
    }

    #[test]
    fn a_priority_can_change() {
        let log = Log::default();
        let mut streams = Streams::new(Arc::default());
        for id in [1, 2] {
            streams.enter(stream(id, 0, 2, &log));
        }
        assert!(streams.set_priority(2, 1) && !streams.set_priority(3, 1));
        while streams.poll(1, true, || false) > 0 {}
        assert_eq!(*log.lock(), [2, 2, 1, 1]);
    }

    #[test]
    fn a_stream_that_was_refused_is_polled_when_it_may_go_on() {
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = polls.clone();
        let mut streams = Streams::new(Arc::default());
        streams.enter(Stream {
            id: 1,
            priority: Arc::default(),
            future: Box::pin(poll_fn(move |_| {
                counted.fetch_add(1, SeqCst);
                Poll::<()>::Pending
            })),
        });
        assert_eq!(streams.poll(9, true, || true), 1);
        assert_eq!(streams.poll(9, false, || true), 0);
        assert_eq!(streams.poll(9, true, || false), 1);
        assert_eq!(streams.poll(9, true, || false), 0);
        assert_eq!(polls.load(SeqCst), 2);
    }
}
