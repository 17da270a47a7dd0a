//! HTTP/3 with one client.
//!
//! The transport is quinn's; frames and field sections are read and written here, each byte once.
//! Requests take the same fast path and the same steps as those of other protocols. One task serves a
//! connection: it accepts streams and answers hits at once; all other streams are polled by it, the
//! most urgent first ([`streams`]).
//!
//! - [`control`]: unidirectional streams. [`reader`]: the frames of a request; [`frames`]: where they
//!   begin and end. [`qpack`]: field sections. [`head`]: which requests are malformed.
//! - [`answer`]: requests and their answers; [`upload`]: bodies of requests; [`send`]: how a response
//!   waits for its client, and its priority.
//! - [`context`]: what these share. [`allowances`]: what a client may send that asks for nothing.
//!   [`closed`]: error codes.
//!
//! Follows RFC 9114, RFC 9204 and RFC 9218. Not supported: server push, extended CONNECT (RFC 9220),
//! datagrams (RFC 9297) and a dynamic table.

mod allowances;
mod answer;
pub(crate) mod closed;
mod context;
mod control;
mod frames;
mod fuzzing;
mod head;
mod qpack;
mod reader;
mod send;
mod streams;
pub(crate) mod upload;

pub use self::fuzzing::fuzz_http3;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use nearcast_net::shutdown::Shutdown;
use tokio::time::{Instant, Sleep};

use self::closed::{Closed, NO_ERROR};
use self::context::Context;
use self::streams::{NO_REQUEST, Stream, Streams, Wakes};
use crate::edge::Worker;
use crate::request::check::ClientConnection;
use crate::serve::connections::ConnectionSlot;
use crate::serve::http2::priority::Priority;
use crate::serve::phase::Phase;

/// How long a connection works before others of the worker have their turn.
const TURN_TIME: Duration = Duration::from_micros(300);
/// Streams that are accepted, and polled, before the time is looked at.
const PORTION_STREAMS: usize = 16;
/// When an idle connection frees its buffers.
const SHRINK_AFTER: Duration = Duration::from_secs(1);
/// How long a client without streams may take to end a connection that is wound down.
const WIND_DOWN_MAX: Duration = Duration::from_secs(2);
/// How long requests that are on their way may take to come when a connection is wound down.
const LAST_REQUESTS_MAX: Duration = Duration::from_secs(1);
/// The longest wait that a timer is set to.
const FAR: Duration = Duration::from_secs(24 * 3600);
/// The identifier that refuses no request (RFC 9114 section 5.2).
const LAST_STREAM: u64 = (1 << 62) - 4;
/// Priorities that may come before their requests.
const EARLY_UPDATES_MAX: usize = 16;

/// A connection on which HTTP/3 begins.
#[derive(Debug)]
pub(in crate::serve) struct Opened {
    pub(in crate::serve) connection: quinn::Connection,
    /// What the connection is doing, as its slot knows it.
    pub(in crate::serve) phase: Arc<Phase>,
    pub(in crate::serve) slot: Option<ConnectionSlot>,
}

/// Serves one connection until either side ends it.
pub(in crate::serve) async fn serve(
    worker: Arc<Worker>,
    opened: Opened,
    client: ClientConnection,
    mut ending: Shutdown,
) {
    let address = client.address();
    let Opened {
        connection: quic,
        phase,
        slot,
    } = opened;
    let context = Context::new(worker, client, quic.clone(), Instant::now());
    let mut connection = Connection::new(context.clone(), phase, slot);
    let mut accept = pin!(quic.accept_bi());
    let mut ending = pin!(ending.requested().fuse());
    poll_fn(|cx| {
        if ending.poll_unpin(cx).is_ready() {
            connection.wind_down();
        }
        connection.poll(cx, |cx| match accept.as_mut().poll(cx) {
            Poll::Ready(Ok(stream)) => {
                accept.set(quic.accept_bi());
                Poll::Ready(Some(stream))
            }
            Poll::Ready(Err(_)) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
    })
    .await;

    if let Some(why) = context.closed() {
        context.worker.edge.metrics.http3_closed(why);
        tracing::debug!(client = %address, reason = why.as_str(), "closed a connection of HTTP/3");
    }
    // Uploads may still have it.
    quic.close(NO_ERROR, b"");
}

/// One connection. Its task polls all streams.
struct Connection {
    context: Arc<Context>,
    phase: Arc<Phase>,
    slot: Option<ConnectionSlot>,
    wakes: Arc<Wakes>,
    streams: Streams,
    /// Priorities of requests that did not come yet.
    early_updates: Vec<(u64, Priority)>,
    /// Streams that the client has begun.
    accepted: u64,
    began: Instant,
    /// Since when no stream is open.
    idle: Option<Instant>,
    has_shrunk: bool,
    winding_down: Option<WindDown>,
    timer: Pin<Box<Sleep>>,
}

/// A connection that is wound down (RFC 9114 section 5.2).
#[derive(Debug, Clone, Copy)]
struct WindDown {
    /// When the client knows: requests that come later are not answered.
    known: Instant,
}

type Accepted = (quinn::SendStream, quinn::RecvStream);

impl Connection {
    fn new(context: Arc<Context>, phase: Arc<Phase>, slot: Option<ConnectionSlot>) -> Self {
        let now = Instant::now();
        let wakes = Arc::<Wakes>::default();
        let mut streams = Streams::new(wakes.clone());
        streams.enter(Stream {
            id: NO_REQUEST,
            future: Box::pin(control::serve(context.clone())),
            priority: Arc::new(AtomicI32::new(i32::MAX)),
        });
        let head_timeout = context.worker.edge.clients.head_timeout;
        let connection = Self {
            context,
            phase,
            slot,
            wakes,
            streams,
            early_updates: Vec::new(),
            accepted: 0,
            began: now,
            idle: None,
            has_shrunk: false,
            winding_down: None,
            timer: Box::pin(tokio::time::sleep(head_timeout)),
        };
        connection.phase.idle_since.note_busy();
        connection
    }

    /// Has the client make its next requests on another connection. Those that are on their way are
    /// still answered: the client is told the last one when it had the time to learn of it.
    fn wind_down(&mut self) {
        if self.winding_down.is_none() {
            let learns = (self.context.quic.rtt() * 2).min(LAST_REQUESTS_MAX);
            self.winding_down = Some(WindDown {
                known: Instant::now() + learns,
            });
            self.set_goaway(LAST_STREAM);
        }
    }

    fn set_goaway(&mut self, id: u64) {
        self.context.set_goaway(id);
        // The control stream sends it.
        self.streams.set_priority(NO_REQUEST, i32::MAX);
    }

    /// Does all that can be done. Ready when the connection is over.
    fn poll(
        &mut self,
        cx: &mut TaskContext<'_>,
        mut accept: impl FnMut(&mut TaskContext<'_>) -> Poll<Option<Accepted>>,
    ) -> Poll<()> {
        self.wakes.begin(cx);
        let turn = Instant::now() + TURN_TIME;
        let mut has_worked = false;
        loop {
            let mut count = 0;
            let mut has_more = false;
            while self.context.may_accept() {
                if count == PORTION_STREAMS {
                    has_more = true;
                    break;
                }
                match accept(cx) {
                    Poll::Ready(Some(stream)) => self.begin(stream),
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
                count += 1;
            }
            let context = &self.context;
            let may_take = !context.is_held_back();
            let polled = (self.streams).poll(PORTION_STREAMS, may_take, || context.take_refused());
            has_worked |= count + polled > 0;
            if self.context.closed().is_some() {
                return Poll::Ready(());
            }
            self.apply_updates();
            if self.context.worker.edge.lifecycle.is_leaving() && self.context.has_settings() {
                self.wind_down();
            }
            if count + polled == 0 && !has_more && self.wakes.end() {
                break;
            }
            if Instant::now() >= turn {
                self.wakes.end_turn(cx);
                break;
            }
        }
        self.note_idle(has_worked);
        self.poll_deadlines(cx)
    }

    fn begin(&mut self, stream: Accepted) {
        let id = u64::from(stream.0.id());
        self.accepted = self.accepted.max(id / 4 + 1);
        self.context.note_accepted(self.accepted);
        let early = self.early_updates.iter().position(|(of, _)| *of == id);
        let update = early.map(|at| self.early_updates.swap_remove(at).1);
        if let Some(stream) = answer::begin(&self.context, stream, update) {
            self.streams.enter(stream);
        }
    }

    /// Applies the changes of priorities that the client has sent.
    fn apply_updates(&mut self) {
        for (id, priority) in self.context.take_updates() {
            let number = send::number(priority, id);
            if self.streams.set_priority(id, number) || id / 4 < self.accepted {
                continue;
            }
            self.early_updates.retain(|(of, _)| *of != id);
            if self.early_updates.len() == EARLY_UPDATES_MAX {
                self.early_updates.remove(0);
            }
            self.early_updates.push((id, priority));
        }
    }

    /// Notes when the connection becomes idle and when it no longer is.
    fn note_idle(&mut self, has_worked: bool) {
        if self.streams.open() > 0 {
            if self.idle.take().is_some() {
                self.phase.idle_since.note_busy();
            }
        } else if has_worked || self.idle.is_none() {
            let now = Instant::now();
            (self.idle, self.has_shrunk) = (Some(now), false);
            if let Some(slot) = &self.slot {
                slot.note_idle(&self.phase.idle_since, now);
            }
        }
    }

    /// Ready when the connection has to be closed for something that took too long.
    fn poll_deadlines(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        loop {
            let now = Instant::now();
            if let Some(why) = self.overdue(now) {
                self.context.close(why);
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

    /// Why the connection has to be closed now; does and frees what is due.
    fn overdue(&mut self, now: Instant) -> Option<Closed> {
        let limits = self.context.worker.edge.clients.clone();
        if !self.context.has_settings() && now >= self.began + limits.head_timeout {
            return Some(Closed::Slow);
        }
        if let Some(wind_down) = self.winding_down
            && now >= wind_down.known
            && self.context.goaway() == Some(LAST_STREAM)
        {
            self.set_goaway(4 * self.accepted);
        }
        let idle = self.idle?;
        let is_left = self
            .winding_down
            .is_some_and(|wind_down| now >= idle.max(wind_down.known) + WIND_DOWN_MAX);
        if is_left || now >= idle + limits.idle_timeout {
            return Some(Closed::Idle);
        }
        if !self.has_shrunk && now >= idle + SHRINK_AFTER {
            self.has_shrunk = true;
            self.context.buffers.lock().shrink();
        }
        None
    }

    /// When something will be due.
    fn deadline(&self, now: Instant) -> Instant {
        let limits = &self.context.worker.edge.clients;
        let mut deadline = now + FAR;
        let mut at_most = |due: Instant| deadline = deadline.min(due);
        if !self.context.has_settings() {
            at_most(self.began + limits.head_timeout);
        }
        if let Some(wind_down) = self.winding_down {
            match self.context.goaway() {
                Some(LAST_STREAM) => at_most(wind_down.known),
                _ => {
                    if let Some(idle) = self.idle {
                        at_most(idle.max(wind_down.known) + WIND_DOWN_MAX);
                    }
                }
            }
        }
        if let Some(idle) = self.idle {
            at_most(idle + limits.idle_timeout);
            if !self.has_shrunk {
                at_most(idle + SHRINK_AFTER);
            }
        }
        deadline
    }
}
