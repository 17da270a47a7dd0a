//! The streams of one connection, and which of them may send next.
//!
//! The connection's task polls everything itself: the HTTP library, then the streams that were woken
//! or wait for their turn to send, the most urgent first (RFC 9218 section 10), then the library
//! again, which writes what they gave. A body gives pieces only while it has a grant. So the library
//! never holds much that is not urgent when something urgent comes.
//!
//! Knows neither HTTP nor sockets: a stream is a future, and a body asks [`Pace`].

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::priority::Priority;

/// Bytes that a body gives at once.
pub(super) const PIECE_BYTES_MAX: usize = 32 << 10;
/// A stream that its own window holds back is given up when the connection has sent that much for
/// others meanwhile: so much may be before it in the library's queue.
const OTHERS_BYTES_MAX: u64 = 1 << 20;
/// Most streams that wait for the client to take what they gave. Each keeps a piece in memory, with
/// the slice that it is a part of.
const HELD_BACK_COUNT_MAX: usize = 32;
/// A stream that is held back so many times longer than it may is given up in any case.
const HELD_BACK_MAX: u32 = 10;
/// Slots that are kept without a stream.
const SLOTS_KEPT: usize = 4;

type StreamFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What wakes a connection's task.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    task: AtomicWaker,
    /// The task polls, and looks for wakes itself before it ends.
    is_polling: AtomicBool,
    is_library_woken: AtomicBool,
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
        if self.is_library_woken.load(SeqCst) || !self.streams.lock().is_empty() {
            self.is_polling.store(true, Release);
            return false;
        }
        true
    }

    /// A poll ends before all is done: the task is polled again after others, which include those
    /// whose sockets have become ready meanwhile. A task that wakes itself would keep the runtime
    /// from looking at sockets for dozens of turns.
    pub(super) fn end_turn(&self, cx: &mut Context<'_>) {
        self.is_polling.store(false, SeqCst);
        self.is_library_woken.store(true, SeqCst);
        let turn = pin!(tokio::task::yield_now());
        // The runtime has the waker now.
        let _ = turn.poll(cx);
    }

    pub(super) fn is_library_woken(&self) -> bool {
        self.is_library_woken.load(Acquire)
    }

    pub(super) fn take_library(&self) -> bool {
        self.is_library_woken.swap(false, AcqRel)
    }

    fn wake_task(&self) {
        if !self.is_polling.load(SeqCst) {
            self.task.wake();
        }
    }
}

/// Wakes the HTTP library.
#[derive(Debug)]
pub(super) struct LibraryWaker(pub(super) Arc<Wakes>);

impl Wake for LibraryWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.0.is_library_woken.swap(true, SeqCst) {
            self.0.wake_task();
        }
    }
}

struct StreamWaker {
    wakes: Arc<Wakes>,
    slot: u32,
    /// The slot's number is in the list.
    is_listed: AtomicBool,
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_listed.swap(true, AcqRel) {
            self.wakes.streams.lock().push(self.slot);
            self.wakes.wake_task();
        }
    }
}

/// What a body did last in a poll.
const NOTHING: u8 = 0;
const GAVE: u8 = 1;
const ASKED: u8 = 2;
const WAITED: u8 = 3;

/// By how much the body of the stream that is being polled may send. One for each connection: one
/// stream is polled at a time.
#[derive(Debug, Default)]
pub(super) struct Pace {
    grant: AtomicUsize,
    last: AtomicU8,
    /// The window that each stream begins with.
    window: AtomicU32,
    /// Bodies that were given whole since the last look.
    complete: AtomicU32,
    /// Malformed requests since the last look.
    bad: AtomicU32,
}

impl Pace {
    /// How many bytes the body may give now; where that is none, it is polled again when it may.
    pub(super) fn ask(&self) -> Option<usize> {
        let grant = self.grant.load(Relaxed);
        if grant == 0 {
            self.last.store(ASKED, Relaxed);
            return None;
        }
        Some(grant.min(PIECE_BYTES_MAX))
    }

    /// The body gives so many bytes.
    pub(super) fn give(&self, bytes: usize) {
        let grant = self.grant.load(Relaxed);
        self.grant.store(grant.saturating_sub(bytes), Relaxed);
        self.last.store(GAVE, Relaxed);
    }

    /// The body waits for its content.
    pub(super) fn wait(&self) {
        self.last.store(WAITED, Relaxed);
    }

    /// A body was given whole.
    pub(super) fn note_complete(&self) {
        self.complete.fetch_add(1, Relaxed);
    }

    /// How many bodies were given whole since the last call.
    pub(super) fn take_complete(&self) -> u32 {
        self.complete.swap(0, Relaxed)
    }

    /// A request was malformed: how many were since the last look, with this one.
    pub(super) fn note_bad(&self) -> u32 {
        self.bad.fetch_add(1, Relaxed) + 1
    }

    /// How many requests were malformed since the last call.
    pub(super) fn take_bad(&self) -> u32 {
        self.bad.swap(0, Relaxed)
    }

    /// The window that each stream begins with, in bytes.
    pub(super) fn window(&self) -> u32 {
        self.window.load(Relaxed)
    }

    #[cfg(test)]
    pub(super) fn set_grant(&self, bytes: usize) {
        self.grant.store(bytes, Relaxed);
    }

    pub(super) fn set_window(&self, bytes: u32) {
        self.window.store(bytes, Relaxed);
    }
}

/// Where the HTTP library leaves new streams.
#[derive(Clone)]
pub(super) struct NewStreams(Arc<Mutex<Newcomers>>);

#[derive(Default)]
struct Newcomers {
    /// Of the request that is being received.
    priority: Priority,
    streams: Vec<(Priority, StreamFuture)>,
}

impl NewStreams {
    /// The next stream has this priority.
    pub(super) fn expect(&self, priority: Priority) {
        self.0.lock().priority = priority;
    }
}

impl<F> hyper::rt::Executor<F> for NewStreams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let mut new = self.0.lock();
        let priority = std::mem::take(&mut new.priority);
        new.streams.push((priority, Box::pin(stream)));
    }
}

/// What a stream waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// To be woken.
    Woken,
    /// For its turn to send.
    Turn,
    /// For the client to take what it gave: since when, and what the connection had sent by then.
    Client(Instant, u64),
}

struct Slot {
    stream: Option<StreamFuture>,
    waker: Arc<StreamWaker>,
    priority: Priority,
    /// Position among those of one urgency.
    turn: u64,
    waiting: Waiting,
    /// Its body gave a piece that the library may not have taken.
    holds_piece: bool,
}

/// The open streams of one connection.
pub(super) struct Streams {
    new: NewStreams,
    wakes: Arc<Wakes>,
    pace: Arc<Pace>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    open: usize,
    turns: u64,
    /// Slots of this round: a buffer.
    due: Vec<u32>,
    /// Some that were woken were not polled in the last round.
    has_more: bool,
}

impl Streams {
    pub(super) fn new(wakes: Arc<Wakes>, pace: Arc<Pace>) -> Self {
        Self {
            new: NewStreams(Arc::default()),
            wakes,
            pace,
            slots: Vec::new(),
            free: Vec::new(),
            open: 0,
            turns: 0,
            due: Vec::new(),
            has_more: false,
        }
    }

    /// Where new streams are left.
    pub(super) fn entrance(&self) -> NewStreams {
        self.new.clone()
    }

    /// Streams that are not complete.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Polls the streams that are new or were woken, and those that wait for their turn as long as
    /// there is something of `budget`, the bytes that may be given; not more than `most` of both.
    /// `sent` is what the connection has sent so far. Gives how many were polled.
    pub(super) fn poll(
        &mut self,
        most: usize,
        budget: usize,
        sent: u64,
        now: impl Fn() -> Instant,
    ) -> usize {
        self.find_due(budget);
        let mut due = std::mem::take(&mut self.due);
        due.sort_unstable_by_key(|at| {
            let slot = &self.slots[*at as usize];
            (slot.priority.urgency, slot.turn)
        });
        due.dedup();
        let mut polled = 0;
        let mut budget = budget;
        self.has_more = false;
        for (position, at) in due.iter().enumerate() {
            let slot = &self.slots[*at as usize];
            let is_woken = slot.waker.is_listed.load(Relaxed);
            if polled == most {
                if is_woken {
                    self.wakes.streams.lock().push(*at);
                    self.has_more = true;
                }
                continue;
            }
            if budget == 0 && !is_woken {
                continue;
            }
            let grant = self.grant(*at, &due[position + 1..], budget);
            let given = self.poll_one(*at, grant, sent, &now);
            budget -= given.min(budget);
            polled += 1;
        }
        due.clear();
        self.due = due;
        polled
    }

    /// Whether streams that were woken, or are new, were left by the last poll.
    pub(super) fn has_more(&self) -> bool {
        self.has_more
    }

    /// Fills `due`.
    fn find_due(&mut self, budget: usize) {
        self.due.clear();
        let woken = std::mem::take(&mut *self.wakes.streams.lock());
        for at in &woken {
            // A waker may outlive its stream, and its slot too.
            match self.slots.get(*at as usize) {
                Some(slot) if slot.stream.is_none() => slot.waker.is_listed.store(false, Release),
                Some(slot) if slot.waker.is_listed.load(Relaxed) => self.due.push(*at),
                _ => {}
            }
        }
        {
            // The list keeps its memory.
            let mut list = self.wakes.streams.lock();
            if list.is_empty() && woken.capacity() <= 64 {
                let mut woken = woken;
                woken.clear();
                *list = woken;
            }
        }
        if budget > 0 {
            let slots = self.slots.iter().enumerate();
            let waiting = slots.filter(|(_, slot)| {
                slot.waiting == Waiting::Turn
                    && slot.stream.is_some()
                    && !slot.waker.is_listed.load(Relaxed)
            });
            self.due.extend(waiting.map(|(at, _)| at as u32));
        }
        let new = std::mem::take(&mut self.new.0.lock().streams);
        for (priority, stream) in new {
            let at = self.enter(priority, stream);
            self.due.push(at);
        }
    }

    fn enter(&mut self, priority: Priority, stream: StreamFuture) -> u32 {
        self.open += 1;
        self.turns += 1;
        let (turn, waiting) = (self.turns, Waiting::Woken);
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                let slot = self.slots.len() as u32;
                self.slots.push(Slot {
                    stream: None,
                    waker: Arc::new(StreamWaker {
                        wakes: self.wakes.clone(),
                        slot,
                        is_listed: AtomicBool::new(false),
                    }),
                    priority,
                    turn,
                    waiting,
                    holds_piece: false,
                });
                slot
            }
        };
        let slot = &mut self.slots[at as usize];
        // As if it had been woken.
        slot.waker.is_listed.store(true, Release);
        (slot.stream, slot.priority, slot.turn) = (Some(stream), priority, turn);
        (slot.waiting, slot.holds_piece) = (waiting, false);
        at
    }

    /// How much of the budget a stream may use: all, one piece if its parts are useful and others
    /// are as urgent, half if others' are.
    fn grant(&self, at: u32, after: &[u32], budget: usize) -> usize {
        let Priority {
            urgency,
            is_incremental,
        } = self.slots[at as usize].priority;
        let mut rest = after
            .iter()
            .map(|at| self.slots[*at as usize].priority)
            .take_while(|other| other.urgency == urgency);
        match is_incremental {
            true if rest.next().is_some() => budget.min(PIECE_BYTES_MAX),
            false if rest.any(|other| other.is_incremental) => {
                budget.min(PIECE_BYTES_MAX.max(budget / 2))
            }
            _ => budget,
        }
    }

    /// Polls one stream; how many bytes its body gave.
    fn poll_one(&mut self, at: u32, grant: usize, sent: u64, now: impl Fn() -> Instant) -> usize {
        let pace = &self.pace;
        let slot = &mut self.slots[at as usize];
        let Some(stream) = &mut slot.stream else {
            return 0;
        };
        slot.waker.is_listed.store(false, Release);
        let waker = Waker::from(slot.waker.clone());
        pace.grant.store(grant, Relaxed);
        pace.last.store(NOTHING, Relaxed);
        let polled = stream.as_mut().poll(&mut Context::from_waker(&waker));
        let given = grant - pace.grant.swap(0, Relaxed);
        if polled.is_ready() {
            slot.stream = None;
            self.leave(at);
            return given;
        }
        slot.holds_piece = match pace.last.load(Relaxed) {
            NOTHING => slot.holds_piece,
            last => last == GAVE,
        };
        slot.waiting = match (pace.last.load(Relaxed), slot.waiting) {
            (ASKED, _) => Waiting::Turn,
            (NOTHING, Waiting::Client(since, before)) => Waiting::Client(since, before),
            (NOTHING, Waiting::Turn) => Waiting::Turn,
            _ if slot.holds_piece => Waiting::Client(now(), sent),
            _ => Waiting::Woken,
        };
        if given > 0 && slot.priority.is_incremental {
            self.turns += 1;
            slot.turn = self.turns;
        }
        given
    }

    fn leave(&mut self, at: u32) {
        self.slots[at as usize].waiting = Waiting::Woken;
        self.open -= 1;
        self.free.push(at);
    }

    /// Whether so many streams wait for their client that no other may give anything.
    pub(super) fn is_held_back(&self) -> bool {
        let is_held = |slot: &&Slot| matches!(slot.waiting, Waiting::Client(..));
        self.open >= HELD_BACK_COUNT_MAX
            && self.slots.iter().filter(is_held).count() >= HELD_BACK_COUNT_MAX
    }

    /// Since when the stream that waits longest for its client does.
    pub(super) fn oldest_held_back(&self) -> Option<Instant> {
        let since = |slot: &Slot| match slot.waiting {
            Waiting::Client(since, _) if slot.stream.is_some() => Some(since),
            _ => None,
        };
        self.slots.iter().filter_map(since).min()
    }

    /// Gives up the streams whose client has not taken what they gave for too long; how many. The
    /// connection has sent `sent` bytes of bodies by now, the last ones at `last`.
    pub(super) fn give_up_stalled(
        &mut self,
        (sent, last): (u64, Instant),
        now: Instant,
        most: Duration,
    ) -> u32 {
        let mut count = 0;
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            if let Waiting::Client(since, before) = slot.waiting
                && slot.stream.is_some()
                && is_stalled(now - since, now - last, sent - before, most)
            {
                slot.stream = None;
                self.leave(at as u32);
                count += 1;
            }
        }
        count
    }

    /// Frees what an idle connection does not need.
    pub(super) fn shrink(&mut self) {
        if self.open > 0 {
            return;
        }
        if self.slots.len() > SLOTS_KEPT {
            self.slots = Vec::new();
            self.free = Vec::new();
        }
        self.due = Vec::new();
    }
}

/// Whether a stream that has waited so long for its client is given up, when the connection has
/// sent `others` bytes meanwhile and none for the time `quiet`. While it sends little, the stream may
/// only be behind others.
fn is_stalled(waited: Duration, quiet: Duration, others: u64, most: Duration) -> bool {
    waited >= most && (quiet >= most || others >= OTHERS_BYTES_MAX)
        || waited >= most * HELD_BACK_MAX
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::future::poll_fn;
    use hyper::rt::Executor as _;

    use super::*;

    const PIECE: usize = PIECE_BYTES_MAX;

    /// A connection's streams, and what their bodies gave, in order.
    struct Lab {
        streams: Streams,
        pace: Arc<Pace>,
        wakes: Arc<Wakes>,
        given: Arc<Mutex<Vec<(&'static str, usize)>>>,
    }

    impl Lab {
        fn new() -> Self {
            let (wakes, pace) = (Arc::<Wakes>::default(), Arc::<Pace>::default());
            Self {
                streams: Streams::new(wakes.clone(), pace.clone()),
                pace,
                wakes,
                given: Arc::default(),
            }
        }

        fn begin(
            &self,
            urgency: u8,
            is_incremental: bool,
            stream: impl Future<Output = ()> + Send + 'static,
        ) {
            let entrance = self.streams.entrance();
            entrance.expect(Priority {
                urgency,
                is_incremental,
            });
            entrance.execute(stream);
        }

        /// A response with a body of so many bytes, which the client takes at once.
        fn body(&self, name: &'static str, priority: (u8, bool), mut bytes: usize) {
            let (pace, given) = (self.pace.clone(), self.given.clone());
            let stream = poll_fn(move |_| {
                while bytes > 0 {
                    let Some(most) = pace.ask() else {
                        return Poll::Pending;
                    };
                    let length = most.min(bytes);
                    pace.give(length);
                    bytes -= length;
                    given.lock().push((name, length));
                }
                Poll::Ready(())
            });
            self.begin(priority.0, priority.1, stream);
        }

        fn poll(&mut self, budget: usize) -> usize {
            self.streams.poll(usize::MAX, budget, 0, Instant::now)
        }

        /// The names of bodies in the order in which they gave pieces.
        fn order(&mut self, budget: usize) -> String {
            while self.poll(budget) > 0 {}
            let given = std::mem::take(&mut *self.given.lock());
            given.iter().map(|(name, _)| *name).collect()
        }
    }

    #[test]
    fn the_most_urgent_body_comes_first_and_then_the_oldest() {
        let mut lab = Lab::new();
        lab.body("d", (7, false), PIECE);
        lab.body("b", (3, false), 2 * PIECE);
        lab.body("c", (3, false), PIECE);
        lab.body("a", (0, false), 2 * PIECE);
        assert_eq!(lab.order(PIECE), "aabbcd");
        assert_eq!(lab.streams.open(), 0);
    }

    #[test]
    fn incremental_bodies_take_turns() {
        let mut lab = Lab::new();
        for name in ["a", "b", "c"] {
            lab.body(name, (3, true), 3 * PIECE);
        }
        lab.body("z", (4, true), PIECE);
        assert_eq!(lab.order(2 * PIECE), "abcabcabcz");
    }

    #[test]
    fn a_long_body_leaves_half_to_incremental_ones_of_its_urgency() {
        let mut lab = Lab::new();
        lab.body("a", (3, false), 4 * PIECE);
        lab.body("b", (3, true), 2 * PIECE);
        assert_eq!(lab.order(4 * PIECE), "aabbaa");
    }

    #[test]
    fn something_urgent_overtakes_what_has_begun() {
        let mut lab = Lab::new();
        lab.body("b", (3, false), 4 * PIECE);
        lab.poll(PIECE);
        lab.body("a", (1, false), 2 * PIECE);
        assert_eq!(lab.order(PIECE), "baabbb");
    }

    #[test]
    fn without_a_budget_only_what_was_woken_is_polled() {
        let mut lab = Lab::new();
        lab.body("a", (3, false), PIECE);
        assert_eq!(lab.poll(0), 1, "it is new");
        assert_eq!(lab.poll(0), 0, "it waits for its turn");
        assert_eq!((lab.poll(PIECE), lab.streams.open()), (1, 0));
    }

    #[test]
    fn streams_that_are_too_many_for_one_poll_come_in_the_next() {
        let mut lab = Lab::new();
        for name in ["a", "b", "c"] {
            lab.body(name, (3, false), 1);
        }
        lab.body("z", (1, false), 1);
        let poll = |lab: &mut Lab, most| lab.streams.poll(most, PIECE, 0, Instant::now);
        assert_eq!((poll(&mut lab, 3), lab.streams.has_more()), (3, true));
        // Those that come later are as urgent, but after them.
        lab.body("d", (3, false), 1);
        assert!(!lab.wakes.end(), "the task goes on");
        assert_eq!((poll(&mut lab, 1), lab.streams.has_more()), (1, true));
        assert_eq!((poll(&mut lab, 9), lab.streams.has_more()), (1, false));
        let given: Vec<_> = lab.given.lock().iter().map(|(name, _)| *name).collect();
        assert_eq!((given.concat().as_str(), lab.streams.open()), ("zabcd", 0));
    }

    #[test]
    fn a_stream_is_polled_when_it_was_woken_and_only_then() {
        let mut lab = Lab::new();
        let (waker, count) = (Arc::new(Mutex::new(None)), Arc::new(AtomicUsize::new(0)));
        let (kept, counted) = (waker.clone(), count.clone());
        let waits = poll_fn(move |cx: &mut Context<'_>| {
            *kept.lock() = Some(cx.waker().clone());
            match counted.fetch_add(1, Relaxed) {
                2 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        });
        lab.begin(3, false, waits);
        assert_eq!(lab.poll(PIECE), 1);
        assert_eq!(lab.poll(PIECE), 0);
        let wake = || waker.lock().clone().expect("it was polled").wake();
        wake();
        wake();
        assert_eq!(lab.poll(0), 1);
        // One that is woken twice, once while it is polled, is polled once more.
        wake();
        assert_eq!((lab.poll(0), lab.streams.open()), (1, 0));
        wake();
        assert_eq!((lab.poll(PIECE), count.load(Relaxed)), (0, 3));
        // Its slot is used again.
        lab.body("a", (3, false), 1);
        assert_eq!(
            (lab.order(PIECE).as_str(), lab.streams.slots.len()),
            ("a", 1)
        );
        lab.streams.shrink();
        wake();
        assert_eq!(lab.poll(PIECE), 0, "a waker may outlive its slot");
    }

    #[test]
    fn a_wake_during_a_poll_makes_the_task_go_on() {
        let lab = Lab::new();
        let cx = Context::from_waker(Waker::noop());
        lab.wakes.begin(&cx);
        assert!(lab.wakes.end());
        lab.wakes.begin(&cx);
        Waker::from(Arc::new(LibraryWaker(lab.wakes.clone()))).wake();
        assert!(!lab.wakes.end());
        assert!(lab.wakes.take_library());
        assert!(lab.wakes.end());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_loses_the_stream() {
        const MOST: Duration = Duration::from_secs(30);
        let mut lab = Lab::new();
        let pace = lab.pace.clone();
        let mut has_given = false;
        let stream = poll_fn(move |_| {
            if !has_given && pace.ask().is_some() {
                pace.give(1);
                has_given = true;
            }
            Poll::<()>::Pending
        });
        lab.begin(3, false, stream);
        lab.poll(PIECE);
        let began = Instant::now();
        assert_eq!(lab.streams.oldest_held_back(), Some(began));
        assert_eq!(
            lab.streams
                .give_up_stalled((0, began), began + MOST / 2, MOST),
            0
        );
        // It may be behind another stream, which was sent meanwhile.
        let behind = (1, began + MOST / 2);
        assert_eq!(lab.streams.give_up_stalled(behind, began + MOST, MOST), 0);
        let now = began + MOST / 2 + MOST;
        assert_eq!(lab.streams.give_up_stalled(behind, now, MOST), 1);
        assert_eq!(
            (lab.streams.open(), lab.streams.oldest_held_back()),
            (0, None)
        );
    }

    #[test]
    fn a_stream_behind_others_is_not_stalled() {
        const MOST: Duration = Duration::from_secs(30);
        let table = [
            (29, 29, 0, false),
            (30, 30, 0, true),
            (30, 29, 1, false),
            // What the window allowed was sent just after it gave its piece.
            (31, 30, 65_535, true),
            (30, 0, OTHERS_BYTES_MAX, true),
            (299, 0, 1, false),
            (300, 0, 1, true),
        ];
        for (waited_s, quiet_s, others, expected) in table {
            let (waited, quiet) = (Duration::from_secs(waited_s), Duration::from_secs(quiet_s));
            assert_eq!(
                is_stalled(waited, quiet, others, MOST),
                expected,
                "{waited_s} {quiet_s} {others}"
            );
        }
    }

    #[test]
    fn few_streams_may_keep_what_their_clients_do_not_take() {
        let mut lab = Lab::new();
        for _ in 0..HELD_BACK_COUNT_MAX {
            assert!(!lab.streams.is_held_back());
            let pace = lab.pace.clone();
            let mut has_given = false;
            lab.begin(
                3,
                false,
                poll_fn(move |_| {
                    if !has_given && pace.ask().is_some() {
                        pace.give(1);
                        has_given = true;
                    }
                    Poll::<()>::Pending
                }),
            );
            lab.poll(PIECE);
        }
        assert!(lab.streams.is_held_back());
    }
}
