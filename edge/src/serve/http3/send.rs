//! The response's side of a stream: what is written waits for the client within a limit, and a
//! response that does not become complete is reset.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use quinn::{SendStream, VarInt, WriteError};
use tokio::time::{Instant, Sleep};

use super::closed::{INTERNAL_ERROR, REQUEST_CANCELLED};
use super::context::{Context, HeldPiece};
use crate::serve::http2::priority::Priority;

/// A stream that waits so many times longer than it may is given up though others are sent meanwhile.
const WAITS_MAX: u32 = 10;
/// Priorities of the transport that belong to one urgency.
const BAND: i32 = 1 << 27;
/// The urgency of the transport's own priority, 0.
const URGENCY_DEFAULT: i32 = 3;

/// The client takes no more, or has taken nothing for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left;

/// The priority of a stream for the transport, which sends what has the highest number first, and
/// streams of one number in turns. Responses whose parts are of no use alone are sent one after the
/// other, in the order of their requests; the others of their urgency follow them, in turns (RFC 9218
/// section 10).
pub(super) fn number(priority: Priority, stream: u64) -> i32 {
    let band = (URGENCY_DEFAULT - i32::from(priority.urgency)) * BAND;
    match priority.is_incremental {
        true => band - BAND / 2,
        // It wraps after millions of requests.
        false => band - ((stream >> 2) % (BAND as u64 / 2)) as i32,
    }
}

/// The response's side of a stream.
pub(super) struct Sender {
    context: Arc<Context>,
    stream: SendStream,
    /// The priority that it is to have, and the one that it has.
    priority: Arc<AtomicI32>,
    applied: i32,
    is_complete: bool,
    /// The response is useful work once it is complete.
    pub(super) is_useful: bool,
}

impl Sender {
    pub(super) fn new(context: &Arc<Context>, stream: SendStream, priority: i32) -> Self {
        let _ = stream.set_priority(priority);
        Self {
            context: context.clone(),
            stream,
            priority: Arc::new(AtomicI32::new(priority)),
            applied: priority,
            is_complete: false,
            is_useful: true,
        }
    }

    /// The number of the stream.
    pub(super) fn id(&self) -> u64 {
        self.stream.id().into()
    }

    /// Where the stream's priority is changed.
    pub(super) fn priority(&self) -> Arc<AtomicI32> {
        self.priority.clone()
    }

    /// Waits until the client wants no more of the response, or has it all.
    pub(super) fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.stream.stopped();
        async move { drop(stopped.await) }
    }

    /// Writes pieces. They wait for the client within the limit.
    pub(super) async fn write(&mut self, mut pieces: &mut [Bytes]) -> Result<(), Left> {
        let mut wait: Option<Wait> = None;
        while pieces.iter().any(|piece| !piece.is_empty()) {
            let most = self.context.worker.edge.clients.write_timeout;
            let written = std::future::poll_fn(|cx| {
                self.apply_priority();
                if let Poll::Ready(written) = poll_write(&mut self.stream, cx, pieces) {
                    return Poll::Ready(written);
                }
                let wait = wait.get_or_insert_with(|| Wait::new(&self.context, most));
                wait.poll(cx, &self.context, most).map(|()| Err(Left))
            });
            let whole = written.await?;
            self.context.note_write();
            if let Some(wait) = &mut wait {
                wait.note_progress();
            }
            pieces = &mut pieces[whole..];
        }
        Ok(())
    }

    fn apply_priority(&mut self) {
        let wanted = self.priority.load(Relaxed);
        if wanted != self.applied {
            self.applied = wanted;
            let _ = self.stream.set_priority(wanted);
        }
    }

    /// Whether the response is more urgent than others usually are.
    pub(super) fn is_urgent(&self) -> bool {
        self.priority.load(Relaxed) > 0
    }

    /// Ends the response, and waits until the client has it: a connection that is closed before loses
    /// what is on its way.
    pub(super) async fn finish(mut self) {
        self.is_complete = true;
        if self.is_useful {
            self.context.note_answered();
        }
        let most = self.context.worker.edge.clients.write_timeout * WAITS_MAX;
        let received = self.stopped();
        let _ = self.stream.finish();
        let _ = tokio::time::timeout(most, received).await;
    }

    /// Ends the response with an error.
    pub(super) fn reset(mut self, code: VarInt) {
        self.is_complete = true;
        let _ = self.stream.reset(code);
    }
}

impl Drop for Sender {
    /// The client must not take a part for the whole.
    fn drop(&mut self) {
        if !self.is_complete {
            let _ = self.stream.reset(INTERNAL_ERROR);
        }
    }
}

/// Writes as much as the client and the transport have room for; how many pieces are written whole.
pub(super) fn poll_write(
    stream: &mut SendStream,
    cx: &mut TaskContext<'_>,
    pieces: &mut [Bytes],
) -> Poll<Result<usize, Left>> {
    let written = pin!(stream.write_chunks(pieces)).poll(cx);
    written.map(|written| match written {
        Ok(written) => Ok(written.chunks),
        Err(WriteError::Stopped(_)) => {
            // What was written is not of interest any more.
            let _ = stream.reset(REQUEST_CANCELLED);
            Err(Left)
        }
        Err(_) => Err(Left),
    })
}

/// A piece that waits for the client.
struct Wait {
    since: Instant,
    timer: Pin<Box<Sleep>>,
    _held: HeldPiece,
}

impl Wait {
    fn new(context: &Arc<Context>, most: Duration) -> Self {
        Self {
            since: Instant::now(),
            timer: Box::pin(tokio::time::sleep(most)),
            _held: context.hold(),
        }
    }

    fn note_progress(&mut self) {
        self.since = Instant::now();
    }

    /// Ready when it has waited for too long. While others are sent, it may only be behind them.
    fn poll(&mut self, cx: &mut TaskContext<'_>, context: &Context, most: Duration) -> Poll<()> {
        loop {
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            let begin = self.since.max(context.last_write());
            if now >= begin + most || now >= self.since + most * WAITS_MAX {
                return Poll::Ready(());
            }
            self.timer
                .as_mut()
                .reset((begin + most).min(self.since + most * WAITS_MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgent_responses_have_higher_numbers() {
        let number = |urgency, is_incremental, index: u64| {
            let priority = Priority {
                urgency,
                is_incremental,
            };
            number(priority, 4 * index)
        };
        assert_eq!(number(3, false, 0), 0);
        let mut numbers = Vec::new();
        for urgency in 0..8 {
            numbers.extend([0, 1, 2, 1000].map(|index| number(urgency, false, index)));
            numbers.push(number(urgency, true, 5));
            assert_eq!(number(urgency, true, 5), number(urgency, true, 7));
        }
        assert!(
            numbers.is_sorted_by(|before, after| before > after),
            "{numbers:?}"
        );
        assert!(number(0, false, (1 << 60) - 1) > number(1, false, 0));
    }
}
