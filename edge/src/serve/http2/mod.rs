//! HTTP/2 with one client.
//!
//! The HTTP library reads frames and writes them; requests take the same fast path and the same steps
//! as those of HTTP/1.1. Around the library is what it leaves open: [`wire`] collects what it writes
//! and counts every frame ([`frames`]), [`streams`] polls the most urgent response first
//! ([`priority`], [`body`]), [`judge`] refuses what is malformed, and this file has the time-outs.
//!
//! Follows RFC 9113 and RFC 9218. Not supported: server push, extended CONNECT (RFC 8441),
//! PRIORITY_UPDATE, and interim responses, which the library cannot send.

pub(in crate::serve) mod answer;
mod body;
mod compression;
mod faults;
pub(crate) mod frames;
pub(in crate::serve) mod judge;
pub(in crate::serve) mod priority;
mod streams;
mod wire;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt;
use hyper::server::conn::http2;
use hyper_util::rt::TokioIo;
use nearcast_fleet::config::ClientLimits;
use nearcast_net::shutdown::Shutdown;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

use self::answer::Requests;
use self::frames::Closed;
use self::streams::{LibraryWaker, NewStreams, Pace, Streams, Wakes};
use self::wire::{OUTPUT_BYTES_MAX, Wire, WireEnd};
use crate::edge::Worker;
use crate::request::check::ClientConnection;
use crate::serve::connections::{ConnectionSlot, Ends};
use crate::serve::phase::Phase;
use crate::serve::transport::Transport;

/// Bytes of request bodies that a client may send before they are read: of one, and of all.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of a response that the library accepts beyond what the client's window allows.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Bytes that streams may give before the library writes them.
const ROUND_BYTES: usize = 2 * OUTPUT_BYTES_MAX;
/// How long a connection works before others of the worker have their turn.
const TURN_TIME: Duration = Duration::from_micros(300);
/// Streams that are polled before the time is looked at. Header blocks have a limit of their own.
const PORTION_STREAMS: usize = 16;
/// Requests that a client may begin and reset before this node has looked at them.
const UNSEEN_RESETS_MAX: usize = 100;
/// When an idle connection frees its buffers.
const SHRINK_AFTER: Duration = Duration::from_secs(1);
/// How long a client without streams may take to end a connection that is wound down.
const WIND_DOWN_MAX: Duration = Duration::from_secs(2);
/// The longest wait that a timer is set to.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// A connection on which HTTP/2 begins.
#[derive(Debug)]
pub(in crate::serve) struct Opened {
    pub(in crate::serve) transport: Transport,
    /// What the connection is doing, as its slot knows it.
    pub(in crate::serve) phase: Arc<Phase>,
    pub(in crate::serve) slot: Option<ConnectionSlot>,
    /// Bytes that were read already.
    pub(in crate::serve) input: BytesMut,
}

impl Opened {
    /// A connection on which nothing was read.
    pub(in crate::serve) fn new(transport: Transport, mut slot: ConnectionSlot) -> Self {
        let phase = Arc::<Phase>::default();
        slot.enter(Ends::of(transport.tcp()), &phase);
        Self {
            transport,
            phase,
            slot: Some(slot),
            input: BytesMut::new(),
        }
    }
}

/// Serves one connection until either side ends it.
pub(in crate::serve) async fn serve(
    worker: Arc<Worker>,
    opened: Opened,
    client: ClientConnection,
    mut ending: Shutdown,
) {
    let address = client.address();
    let write_timeout = worker.edge.clients.write_timeout;
    let mut connection = Box::new(Connection::new(worker, opened, client));
    let at_end = ending.clone();
    let mut ending = pin!(ending.requested().fuse());
    let ended = poll_fn(|cx| {
        if ending.poll_unpin(cx).is_ready() {
            connection.wind_down();
        }
        connection.poll(cx)
    })
    .await;

    let Connection {
        worker,
        phase,
        wire,
        library,
        streams,
        ..
    } = *connection;
    // Both hold the wire's other end.
    drop(streams);
    drop(library);
    let closed = wire.lock().closed();
    if let Some(why) = closed {
        worker.edge.metrics.http2_closed(why);
        tracing::debug!(client = %address, reason = why.as_str(), "closed a connection of HTTP/2");
    }
    let ended = match Arc::into_inner(wire).map(Mutex::into_inner) {
        Some(wire) if closed == Some(Closed::Stalled) && wire.stalled().is_some() => {
            wire.abandon();
            ended
        }
        Some(wire) => {
            let written = Box::pin(wire::end(wire, &phase, write_timeout, at_end)).await;
            ended.and(written.map_err(Into::into))
        }
        None => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(client = %address, %error, "a client's connection ended early");
    }
}

type Library = http2::Connection<TokioIo<WireEnd>, Requests, NewStreams>;
type Error = Box<dyn std::error::Error + Send + Sync>;

/// One connection. Its task polls the library and all streams.
struct Connection {
    worker: Arc<Worker>,
    phase: Arc<Phase>,
    wire: Arc<Mutex<Wire>>,
    library: Pin<Box<Library>>,
    library_waker: Waker,
    wakes: Arc<Wakes>,
    pace: Arc<Pace>,
    streams: Streams,
    /// Others are to be polled before this one goes on.
    has_had_turn: bool,
    began: Instant,
    /// Since when no stream is open.
    idle: Option<Instant>,
    has_shrunk: bool,
    /// Since when the connection is wound down.
    winding_down: Option<Instant>,
    /// When streams that their clients hold back are looked at next.
    next_look: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(worker: Arc<Worker>, opened: Opened, client: ClientConnection) -> Self {
        let now = Instant::now();
        let limits = worker.edge.clients.clone();
        let Opened {
            transport,
            phase,
            slot,
            input,
        } = opened;
        // A head that is somewhat too large is answered so; a larger one ends the connection.
        let block_bytes_max = limits.head_bytes_max.saturating_mul(2);
        let wire = Wire::new(transport, slot, input, block_bytes_max, now);
        wire.note_idle(&phase, now);
        let wire = Arc::new(Mutex::new(wire));
        let wakes = Arc::<Wakes>::default();
        let pace = Arc::<Pace>::default();
        let streams = Streams::new(wakes.clone(), pace.clone());
        let requests = Requests::new(worker.clone(), client, pace.clone(), streams.entrance());
        let library = builder(&limits, streams.entrance())
            .serve_connection(TokioIo::new(WireEnd(wire.clone())), requests);
        let library_waker = Waker::from(Arc::new(LibraryWaker(wakes.clone())));
        library_waker.wake_by_ref();
        Self {
            worker,
            phase,
            wire,
            library: Box::pin(library),
            library_waker,
            wakes,
            pace,
            streams,
            has_had_turn: false,
            began: now,
            idle: Some(now),
            has_shrunk: false,
            winding_down: None,
            next_look: now,
            timer: Box::pin(tokio::time::sleep(limits.head_timeout)),
        }
    }

    /// Has the client make its next requests on another connection. Those that are on their way are
    /// still answered (RFC 9113 section 6.8).
    fn wind_down(&mut self) {
        if self.winding_down.is_none() {
            self.winding_down = Some(Instant::now());
            self.library.as_mut().graceful_shutdown();
            self.library_waker.wake_by_ref();
        }
    }

    /// Does all that can be done. Ready when the connection is over but for what is still to be
    /// written.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.wakes.begin(cx);
        let turn = Instant::now() + TURN_TIME;
        loop {
            if let Poll::Ready(ended) = self.poll_work(cx, turn) {
                return Poll::Ready(ended);
            }
            if self.worker.edge.lifecycle.is_leaving() && self.wire.lock().inbound().has_settings()
            {
                self.wind_down();
            }
            if std::mem::take(&mut self.has_had_turn) {
                self.wakes.end_turn(cx);
                break;
            }
            if self.wakes.end() {
                break;
            }
        }
        self.note_idle();
        self.poll_deadlines(cx).map(Ok)
    }

    /// Polls the library and the streams until neither has anything to do, the client takes no more
    /// or `turn`, the end of the connection's turn, has come, and writes what they gave. Input comes
    /// in portions, and the next one when the streams that the last one began were polled: however
    /// much a client sends, it is this connection alone that waits.
    fn poll_work(&mut self, cx: &mut Context<'_>, turn: Instant) -> Poll<Result<(), Error>> {
        let mut is_library_due = false;
        let mut polled = 0;
        let mut is_look_due = false;
        loop {
            let has_had_turn = is_look_due && Instant::now() >= turn;
            if is_look_due {
                (polled, is_look_due) = (0, false);
            }
            if self.wire.lock().is_congested() {
                let _ = self.wire.lock().poll_write_out(cx)?;
            }
            if self.wakes.take_library() | self.wire.lock().take_refused() | is_library_due {
                is_library_due = false;
                match has_had_turn || self.streams.has_more() {
                    true => self.wire.lock().withhold_input(),
                    false => self.wire.lock().allow_input(),
                }
                let mut of_library = Context::from_waker(&self.library_waker);
                if let Poll::Ready(ended) = self.library.as_mut().poll(&mut of_library) {
                    return Poll::Ready(ended.map_err(Into::into));
                }
            }
            let (is_congested, sent) = {
                let wire = self.wire.lock();
                is_look_due |= wire.is_read_held();
                self.pace.set_window(wire.inbound().initial_window());
                (wire.is_congested(), wire.data_bytes())
            };
            let budget = match is_congested || self.streams.is_held_back() {
                true => 0,
                false => ROUND_BYTES,
            };
            // What the streams gave was written by the library's poll above.
            let count = match has_had_turn {
                true => 0,
                false => {
                    let most = PORTION_STREAMS;
                    self.streams.poll(most, budget, sent, Instant::now)
                }
            };
            if count > 0 {
                polled += count;
                is_look_due |= polled >= PORTION_STREAMS;
                let (complete, bad) = (self.pace.take_complete(), self.pace.take_bad());
                // A response that the client cancelled is no useful work.
                let mut wire = self.wire.lock();
                wire.note_answered(complete, bad);
                if wire.closed().is_none() {
                    continue;
                }
            } else if !has_had_turn && self.wakes.is_library_woken() {
                continue;
            }

            let mut wire = self.wire.lock();
            let _ = wire.poll_write_out(cx)?;
            if wire.closed().is_some() {
                return Poll::Ready(Ok(()));
            }
            if has_had_turn {
                self.has_had_turn = true;
                return Poll::Pending;
            }
            is_library_due = wire.is_read_held() || wire.take_refused();
            let has_room_again = is_congested && !wire.is_congested();
            if !is_library_due && !has_room_again {
                return Poll::Pending;
            }
        }
    }

    /// Notes when the connection becomes idle and when it no longer is.
    fn note_idle(&mut self) {
        match (self.streams.open(), self.idle) {
            (0, None) => {
                let now = Instant::now();
                (self.idle, self.has_shrunk) = (Some(now), false);
                self.wire.lock().note_idle(&self.phase, now);
            }
            (1.., Some(_)) => {
                self.idle = None;
                self.phase.idle_since.note_busy();
            }
            _ => {}
        }
    }

    /// Ready when the connection has to be closed for something that took too long.
    fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let now = Instant::now();
            if let Some(why) = self.overdue(now) {
                let mut wire = self.wire.lock();
                wire.close(why);
                return Poll::Ready(());
            }
            let deadline = self.deadline(now);
            if self.timer.deadline() > deadline || self.timer.is_elapsed() {
                self.timer.as_mut().reset(deadline);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Why the connection has to be closed now; frees and gives up what is due.
    fn overdue(&mut self, now: Instant) -> Option<Closed> {
        let limits = self.worker.edge.clients.clone();
        let is_over = |since: Option<Instant>, most| since.is_some_and(|since| now >= since + most);
        let mut wire = self.wire.lock();
        if let Some(why) = wire.closed() {
            return Some(why);
        }
        if !wire.inbound().has_settings() && now >= self.began + limits.head_timeout
            || is_over(wire.incomplete(), limits.head_timeout)
        {
            return Some(Closed::Slow);
        }
        if is_over(wire.stalled(), limits.write_timeout) {
            return Some(Closed::Stalled);
        }
        if self.idle.is_some() {
            if wire.is_evicted() {
                return Some(Closed::Evicted);
            }
            if is_over(self.idle.max(self.winding_down), WIND_DOWN_MAX)
                && self.winding_down.is_some()
                || is_over(self.idle, limits.idle_timeout)
            {
                return Some(Closed::Idle);
            }
            if !self.has_shrunk && is_over(self.idle, SHRINK_AFTER) {
                self.has_shrunk = true;
                wire.shrink();
                self.streams.shrink();
            }
        }
        let held_back = self.streams.oldest_held_back();
        if now >= self.next_look && is_over(held_back, limits.write_timeout) {
            self.next_look = now + limits.write_timeout / 4;
            let sent = (wire.data_bytes(), wire.last_data());
            drop(wire);
            // So many that none of the others gets its turn.
            if self.streams.is_held_back() && is_over(Some(sent.1), limits.write_timeout) {
                return Some(Closed::Stalled);
            }
            self.streams
                .give_up_stalled(sent, now, limits.write_timeout);
        }
        None
    }

    /// When something will be due.
    fn deadline(&self, now: Instant) -> Instant {
        let limits = &self.worker.edge.clients;
        let wire = self.wire.lock();
        let mut deadline = now + FAR;
        let mut at_most = |since: Option<Instant>, most: Duration| {
            if let Some(since) = since {
                deadline = deadline.min(since + most);
            }
        };
        if !wire.inbound().has_settings() {
            at_most(Some(self.began), limits.head_timeout);
        }
        at_most(wire.incomplete(), limits.head_timeout);
        at_most(wire.stalled(), limits.write_timeout);
        if self.idle.is_some() {
            at_most(self.idle, limits.idle_timeout);
            if !self.has_shrunk {
                at_most(self.idle, SHRINK_AFTER);
            }
            if self.winding_down.is_some() {
                at_most(self.idle.max(self.winding_down), WIND_DOWN_MAX);
            }
        }
        if let Some(held_back) = self.streams.oldest_held_back() {
            let look = (held_back + limits.write_timeout).max(self.next_look);
            deadline = deadline.min(look);
        }
        deadline
    }
}

fn builder(limits: &ClientLimits, streams: NewStreams) -> http2::Builder<NewStreams> {
    let mut builder = http2::Builder::new(streams);
    // What HTTP/2 counts for a field besides its bytes (RFC 9113 section 6.5.2): the limits of this
    // node are applied to what passes here.
    let overhead = 32 * limits.fields_max;
    let list_bytes = limits
        .head_bytes_max
        .saturating_mul(2)
        .saturating_add(overhead);
    let list_bytes = u32::try_from(list_bytes).unwrap_or(u32::MAX);
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.http2_streams_max)
        .max_header_list_size(list_bytes)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(UNSEEN_RESETS_MAX)
        .auto_date_header(false);
    builder
}
