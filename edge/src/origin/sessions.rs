//! The HTTP/2 connections of one site: which exist, how many requests each carries, and which are being
//! opened. Knows no tasks: a value under the lock of [`connections`](super::connections).

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::connections::IDLE_MAX;
use super::http2::Session;
use super::{OriginError, Target};

/// How the opening of a connection ended; `None` until then. It closes without an outcome when it was
/// given up.
pub(super) type Opened = watch::Receiver<Option<Result<(), OriginError>>>;

struct Kept {
    id: u64,
    session: Session,
    target: Arc<Target>,
    /// The worker on whose runtime it runs.
    worker: usize,
    /// Requests that it carries.
    streams: usize,
    /// Since when it carries none.
    since: Instant,
}

impl Kept {
    fn has_room(&self) -> bool {
        self.streams < self.session.streams_max() && self.session.is_usable()
    }
}

struct BeingOpened {
    ticket: u64,
    target: Arc<Target>,
    worker: usize,
    outcome: watch::Sender<Option<Result<(), OriginError>>>,
}

#[derive(Default)]
pub(super) struct Sessions {
    /// The oldest comes first, so that the newer ones become idle.
    kept: Vec<Kept>,
    being_opened: Vec<BeingOpened>,
    ids: u64,
}

impl Sessions {
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn idle(&self) -> usize {
        self.kept.iter().filter(|kept| kept.streams == 0).count()
    }

    /// Takes a place on a connection to a target, on that worker's runtime; where no connection may be
    /// opened, on any runtime.
    pub(super) fn join(
        &mut self,
        target: &Target,
        worker: usize,
        is_full: bool,
    ) -> Option<(u64, Session)> {
        self.drop_unusable();
        let position = |is_own: bool| {
            self.kept.iter().position(|kept| {
                (kept.worker == worker) == is_own && *kept.target == *target && kept.has_room()
            })
        };
        let at = position(true).or_else(|| is_full.then(|| position(false))?)?;
        let kept = &mut self.kept[at];
        kept.streams += 1;
        Some((kept.id, kept.session.clone()))
    }

    /// Gives a place back; `true` when the connection is idle now.
    pub(super) fn leave(&mut self, id: u64) -> bool {
        let Some(kept) = self.kept.iter_mut().find(|kept| kept.id == id) else {
            return false;
        };
        kept.streams -= 1;
        kept.since = Instant::now();
        kept.streams == 0
    }

    /// Adds a connection that carries one request.
    pub(super) fn add(&mut self, session: Session, target: Arc<Target>, worker: usize) -> u64 {
        self.ids += 1;
        self.kept.push(Kept {
            id: self.ids,
            session,
            target,
            worker,
            streams: 1,
            since: Instant::now(),
        });
        self.ids
    }

    /// Closes the connections without requests that are of no use any more.
    pub(super) fn drop_unusable(&mut self) {
        self.kept.retain(|kept| {
            kept.streams > 0 || (kept.session.is_usable() && kept.since.elapsed() < IDLE_MAX)
        });
    }

    /// Closes that many connections without requests, those first that have been idle for longest.
    pub(super) fn drop_idle(&mut self, count: usize) {
        for _ in 0..count {
            let idle = self.kept.iter().enumerate();
            let Some((at, _)) = idle
                .filter(|(_, kept)| kept.streams == 0)
                .min_by_key(|(_, kept)| kept.since)
            else {
                return;
            };
            self.kept.remove(at);
        }
    }

    /// The outcome of a connection that is being opened on that worker's runtime.
    pub(super) fn opening(&self, target: &Target, worker: usize) -> Option<Opened> {
        let mut all = self.being_opened.iter();
        let found = all.find(|other| other.worker == worker && *other.target == *target)?;
        Some(found.outcome.subscribe())
    }

    /// Notes that a connection is being opened, and gives its ticket.
    pub(super) fn begin_opening(&mut self, target: Arc<Target>, worker: usize) -> u64 {
        self.ids += 1;
        self.being_opened.push(BeingOpened {
            ticket: self.ids,
            target,
            worker,
            outcome: watch::channel(None).0,
        });
        self.ids
    }

    /// Tells those who wait the outcome, if there is one.
    pub(super) fn end_opening(&mut self, ticket: u64, outcome: Option<Result<(), OriginError>>) {
        let Some(at) = (self.being_opened.iter()).position(|other| other.ticket == ticket) else {
            return;
        };
        let ended = self.being_opened.remove(at);
        if outcome.is_some() {
            ended.outcome.send_replace(outcome);
        }
    }
}
