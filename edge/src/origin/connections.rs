//! The connections of one site to its origin: which are in use, which are idle, and which requests
//! wait for one.
//!
//! Shared by all workers of the node. The limit holds for requests under way: each has a permit from
//! before its connection is opened until its response's body has ended or is dropped. With HTTP/1.1 that
//! is one connection each; with HTTP/2 several requests share one, so there are fewer connections. Idle
//! connections count as well, but are closed for new ones: there are never more connections than the
//! limit. Requests wait in order of arrival; uploads and background work have shares of the limit, so
//! that neither can use all of it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use nearcast_fleet::config::OriginLimits;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::http2::Session;
use super::sessions::{Opened, Sessions};
use super::{OriginError, OriginRequestBody, Target};
use crate::metrics::{OriginGauges, OriginProtocol};

/// How long a connection is kept idle.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(50);

/// The purpose of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Purpose {
    /// A client waits for a response, and sends no body.
    #[default]
    Client,
    /// A client sends a body, which may take long.
    Upload,
    /// No client waits: a push order, or a validation in the background.
    Background,
}

impl Purpose {
    const ALL: [Self; 3] = [Self::Client, Self::Upload, Self::Background];

    /// How many of `most` connections may be in use for it: half for uploads, a quarter for
    /// background work.
    fn share(self, most: usize) -> usize {
        match self {
            Self::Client => most,
            Self::Upload => most.div_ceil(2),
            Self::Background => most.div_ceil(4),
        }
    }
}

/// In the extensions of a request that is sent on as a task of its own: whether its client still
/// waits.
#[derive(Debug, Clone)]
pub(crate) struct ClientWaits(watch::Receiver<()>);

impl ClientWaits {
    /// A client waits until the first of both is dropped.
    pub(crate) fn new() -> (watch::Sender<()>, Self) {
        let (waits, client) = watch::channel(());
        (waits, Self(client))
    }

    /// Ends when the client has gone.
    pub(super) async fn gone(mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// The answer to a request for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotAnswer {
    Granted,
    /// It waits, with this ticket.
    Waits(u64),
    /// The queue is full.
    Full,
}

/// The slots of a limit, and the queue for them, as numbers. Knows no tasks and no time.
#[derive(Debug, Default)]
struct Slots {
    most: usize,
    waiting_max: usize,
    in_use: [usize; Purpose::ALL.len()],
    /// Tickets in order of arrival.
    waiting: [VecDeque<u64>; Purpose::ALL.len()],
    tickets: u64,
}

impl Slots {
    fn in_use(&self) -> usize {
        self.in_use.iter().sum()
    }

    fn waiting(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }

    fn has_room(&self, purpose: Purpose) -> bool {
        self.in_use() < self.most && self.in_use[purpose as usize] < purpose.share(self.most)
    }

    /// Requests a slot. No request waits for a slot that is free: [`grant`](Self::grant) comes first.
    fn ask(&mut self, purpose: Purpose) -> SlotAnswer {
        if self.has_room(purpose) {
            self.in_use[purpose as usize] += 1;
            return SlotAnswer::Granted;
        }
        if self.waiting() >= self.waiting_max {
            return SlotAnswer::Full;
        }
        self.tickets += 1;
        self.waiting[purpose as usize].push_back(self.tickets);
        SlotAnswer::Waits(self.tickets)
    }

    fn release(&mut self, purpose: Purpose) {
        self.in_use[purpose as usize] -= 1;
    }

    /// Grants a free slot to the request that has waited longest; background work comes last.
    fn grant(&mut self) -> Option<u64> {
        let longest = |purposes: &[Purpose]| {
            let heads = purposes.iter().filter(|purpose| self.has_room(**purpose));
            heads
                .filter_map(|purpose| Some((*self.waiting[*purpose as usize].front()?, *purpose)))
                .min_by_key(|(ticket, _)| *ticket)
        };
        let (ticket, purpose) = longest(&[Purpose::Client, Purpose::Upload])
            .or_else(|| longest(&[Purpose::Background]))?;
        self.waiting[purpose as usize].pop_front();
        self.in_use[purpose as usize] += 1;
        Some(ticket)
    }

    /// Cancels a ticket; `false` when it was granted before.
    fn cancel(&mut self, ticket: u64, purpose: Purpose) -> bool {
        let queue = &mut self.waiting[purpose as usize];
        let found = queue.iter().position(|other| *other == ticket);
        found.map(|at| queue.remove(at)).is_some()
    }
}

/// An idle connection.
struct Idle {
    sender: SendRequest<OriginRequestBody>,
    since: Instant,
    target: Arc<Target>,
    /// The worker on whose runtime it runs.
    worker: usize,
}

impl Idle {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && self.since.elapsed() < IDLE_MAX
    }
}

#[derive(Default)]
struct State {
    slots: Slots,
    waiters: HashMap<u64, oneshot::Sender<()>>,
    /// Connections in use that are open or being opened: a permit has none at first.
    open: usize,
    /// The one that has been idle longest comes first.
    idle: Vec<Idle>,
    /// Connections by HTTP/2, whether requests use them or not.
    sessions: Sessions,
    /// A task closes the ones that are idle for too long.
    is_swept: bool,
}

impl State {
    /// Connections that are open or being opened.
    fn connections(&self) -> usize {
        self.open + self.idle.len() + self.sessions.len()
    }

    /// Closes the connections above the limit that have been idle for longest.
    fn close_surplus(&mut self) {
        let surplus = self.connections().saturating_sub(self.slots.most);
        let of_http1 = surplus.min(self.idle.len());
        self.idle.drain(..of_http1);
        self.sessions.drop_idle(surplus - of_http1);
    }

    fn grant_all(&mut self) {
        while let Some(ticket) = self.slots.grant() {
            // The receiver exists as long as the ticket.
            if let Some(waiter) = self.waiters.remove(&ticket) {
                let _ = waiter.send(());
            }
        }
    }
}

/// The connections of one site.
pub(crate) struct Connections {
    state: Mutex<State>,
    gauges: Arc<OriginGauges>,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connections")
    }
}

impl Connections {
    pub(super) fn new(limits: &OriginLimits, gauges: Arc<OriginGauges>) -> Arc<Self> {
        let connections = Arc::new(Self {
            state: Mutex::default(),
            gauges,
        });
        connections.set_limits(limits);
        connections
    }

    /// Sets other limits. Connections in use above a new limit are not closed early.
    pub(super) fn set_limits(&self, limits: &OriginLimits) {
        let mut state = self.lock();
        state.slots.most = limits.connections_max;
        state.slots.waiting_max = limits.waiting_max;
        state.grant_all();
        self.show(&state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Whether requests wait for a connection, or half of those that the site allows are in use.
    pub(super) fn are_scarce(&self) -> bool {
        let slots = &self.lock().slots;
        slots.waiting() > 0 || slots.in_use() * 2 >= slots.most
    }

    fn show(&self, state: &State) {
        self.gauges.set_connections(
            state.slots.in_use(),
            state.idle.len() + state.sessions.idle(),
            state.slots.waiting(),
        );
        self.gauges.set_http2_connections(state.sessions.len());
    }

    /// Waits for a permit to use a connection.
    ///
    /// # Errors
    /// [`OriginError::ConnectionLimit`] when the queue is full, or the wait took too long.
    pub(super) async fn permit(
        self: &Arc<Self>,
        purpose: Purpose,
        wait: Duration,
    ) -> Result<Permit, OriginError> {
        let mut waiting = {
            let mut state = self.lock();
            let ticket = match state.slots.ask(purpose) {
                SlotAnswer::Granted => None,
                SlotAnswer::Waits(ticket) => Some(ticket),
                SlotAnswer::Full => return Err(OriginError::ConnectionLimit),
            };
            let granted = ticket.map(|ticket| {
                let (granted_tx, granted) = oneshot::channel();
                state.waiters.insert(ticket, granted_tx);
                (ticket, granted)
            });
            self.show(&state);
            match granted {
                None => return Ok(self.granted(purpose)),
                Some((ticket, granted)) => Waiting {
                    connections: self,
                    purpose,
                    ticket,
                    granted,
                    is_over: false,
                },
            }
        };
        match tokio::time::timeout(wait, &mut waiting.granted).await {
            Ok(_) => {
                waiting.is_over = true;
                Ok(self.granted(purpose))
            }
            Err(_) => Err(OriginError::ConnectionLimit),
        }
    }

    fn granted(self: &Arc<Self>, purpose: Purpose) -> Permit {
        Permit {
            connections: self.clone(),
            purpose,
            is_open: false,
        }
    }

    /// An idle connection to a target, on that worker's runtime; one on another worker's runtime where
    /// the limit would close it for a new one.
    pub(super) fn take_idle(
        &self,
        target: &Target,
        worker: usize,
        permit: &mut Permit,
    ) -> Option<SendRequest<OriginRequestBody>> {
        let mut state = self.lock();
        let mut found = None;
        while found.is_none() {
            let is_full = state.connections() >= state.slots.most;
            let of = |is_own: bool| {
                state
                    .idle
                    .iter()
                    .rposition(|idle| (idle.worker == worker) == is_own && *idle.target == *target)
            };
            let Some(at) = of(true).or_else(|| of(false).filter(|_| is_full)) else {
                break;
            };
            let idle = state.idle.remove(at);
            found = (idle.is_usable() && idle.sender.is_ready()).then_some(idle.sender);
        }
        if found.is_some() {
            state.open += 1;
            permit.is_open = true;
        }
        self.show(&state);
        found
    }

    /// Counts a connection that is about to be opened, or that replaces a closed one. Idle connections
    /// above the limit are closed.
    pub(super) fn open(&self, permit: &mut Permit) {
        let mut state = self.lock();
        if !std::mem::replace(&mut permit.is_open, true) {
            state.open += 1;
        }
        state.close_surplus();
        self.show(&state);
    }

    /// A place on an HTTP/2 connection to a target; else where to wait for one that is being opened, or
    /// the duty to open one.
    pub(super) fn stream(self: &Arc<Self>, target: &Arc<Target>, worker: usize) -> StreamAnswer {
        let mut state = self.lock();
        let is_full = state.connections() >= state.slots.most;
        let answer = if let Some((id, session)) = state.sessions.join(target, worker, is_full) {
            StreamAnswer::Found(session, self.place(id))
        } else if let Some(opened) = state.sessions.opening(target, worker) {
            StreamAnswer::IsOpening(opened)
        } else {
            StreamAnswer::Missing(Opening {
                ticket: state.sessions.begin_opening(target.clone(), worker),
                connections: self.clone(),
            })
        };
        self.show(&state);
        answer
    }

    /// Counts a connection that was opened.
    pub(super) fn note_opened(&self, protocol: OriginProtocol) {
        self.gauges.connected(protocol);
    }

    fn place(self: &Arc<Self>, id: u64) -> StreamPlace {
        StreamPlace {
            connections: self.clone(),
            id,
            permit: None,
        }
    }

    /// Shares a new HTTP/2 connection, which a request has opened with its permit, and gives that
    /// request the first place on it.
    pub(super) fn share(
        self: &Arc<Self>,
        target: Arc<Target>,
        session: Session,
        worker: usize,
        permit: &mut Permit,
    ) -> StreamPlace {
        let mut state = self.lock();
        state.open -= usize::from(std::mem::take(&mut permit.is_open));
        let id = state.sessions.add(session, target, worker);
        self.show(&state);
        self.place(id)
    }

    /// Closes idle connections after [`IDLE_MAX`]. Without this, connections without further requests
    /// would keep their sockets and buffers for ever.
    fn start_sweep(self: &Arc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self)));
        }
    }

    /// Keeps a connection for the next request, if the limit allows it, and releases its permit after
    /// that, so that the request that waits for the permit finds the connection.
    pub(super) fn keep(
        self: &Arc<Self>,
        target: Arc<Target>,
        sender: SendRequest<OriginRequestBody>,
        worker: usize,
        permit: Permit,
    ) {
        {
            let mut state = self.lock();
            state.idle.retain(Idle::is_usable);
            if state.connections() <= state.slots.most {
                state.idle.push(Idle {
                    sender,
                    since: Instant::now(),
                    target,
                    worker,
                });
            }
            self.start_sweep(&mut state);
            self.show(&state);
        }
        drop(permit);
    }

    /// Closes connections that were idle for too long. `false` when none is left.
    fn drop_unusable(&self) -> bool {
        let mut state = self.lock();
        state.idle.retain(Idle::is_usable);
        state.sessions.drop_unusable();
        state.is_swept = !state.idle.is_empty() || state.sessions.len() > 0;
        self.show(&state);
        state.is_swept
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.lock().idle.len()
    }

    #[cfg(test)]
    pub(super) fn http2_connections(&self) -> usize {
        self.lock().sessions.len()
    }
}

async fn sweep(connections: Weak<Connections>) {
    loop {
        tokio::time::sleep(IDLE_MAX).await;
        if !connections
            .upgrade()
            .is_some_and(|connections| connections.drop_unusable())
        {
            return;
        }
    }
}

/// The answer to a request for a stream of HTTP/2.
pub(super) enum StreamAnswer {
    Found(Session, StreamPlace),
    /// Another request opens a connection on this worker; its outcome is told here.
    IsOpening(Opened),
    /// The request is to open one.
    Missing(Opening),
}

/// A request's place on an HTTP/2 connection, which is given back when this is dropped.
pub(super) struct StreamPlace {
    connections: Arc<Connections>,
    id: u64,
    permit: Option<Permit>,
}

impl StreamPlace {
    /// Releases the request's permit with this place.
    pub(super) fn with_permit(mut self, permit: Permit) -> Self {
        self.permit = Some(permit);
        self
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut state = self.connections.lock();
        if state.sessions.leave(self.id) {
            self.connections.start_sweep(&mut state);
        }
        self.connections.show(&state);
    }
}

/// The duty to open an HTTP/2 connection. When this is dropped, one of the requests that wait for the
/// connection takes over.
pub(super) struct Opening {
    connections: Arc<Connections>,
    ticket: u64,
}

impl Opening {
    /// Tells those who wait how it ended: there is a connection to share, or the origin speaks HTTP/1.1
    /// only, or a failure that they share.
    pub(super) fn end(self, outcome: Result<(), OriginError>) {
        self.connections
            .lock()
            .sessions
            .end_opening(self.ticket, Some(outcome));
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.connections
            .lock()
            .sessions
            .end_opening(self.ticket, None);
    }
}

/// A place in the queue, which is left when this is dropped.
struct Waiting<'a> {
    connections: &'a Connections,
    purpose: Purpose,
    ticket: u64,
    granted: oneshot::Receiver<()>,
    is_over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = self.connections.lock();
        state.waiters.remove(&self.ticket);
        if !state.slots.cancel(self.ticket, self.purpose) {
            // The slot was granted, and is not used.
            state.slots.release(self.purpose);
            state.grant_all();
        }
        self.connections.show(&state);
    }
}

/// The permit to use one connection.
#[derive(Debug)]
pub(super) struct Permit {
    connections: Arc<Connections>,
    purpose: Purpose,
    /// It has a connection.
    is_open: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.connections.lock();
        state.open -= usize::from(self.is_open);
        state.slots.release(self.purpose);
        state.grant_all();
        self.connections.show(&state);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Purpose::*;

    fn slots(most: usize, waiting_max: usize) -> Slots {
        Slots {
            most,
            waiting_max,
            ..Slots::default()
        }
    }

    #[test]
    fn shares_leave_room_for_clients_and_the_queue_is_fair() {
        let mut slots = slots(4, 6);
        let asked: Vec<SlotAnswer> = [
            Background, Background, Upload, Upload, Upload, Client, Client, Upload, Background,
            Client,
        ]
        .into_iter()
        .map(|purpose| slots.ask(purpose))
        .collect();
        use SlotAnswer::*;
        let expected = [
            Granted,
            Waits(1),
            Granted,
            Granted,
            Waits(2),
            Granted,
            Waits(3),
            Waits(4),
            Waits(5),
            Waits(6),
        ];
        assert_eq!(
            asked, expected,
            "one for background work, two for uploads, one for a client"
        );
        assert_eq!(slots.ask(Client), Full);
        // A client's place goes to the client that has waited longest: uploads have their share.
        slots.release(Client);
        assert_eq!((slots.grant(), slots.grant()), (Some(3), None));
        slots.release(Upload);
        assert_eq!(
            (slots.grant(), slots.grant()),
            (Some(2), None),
            "in order of arrival"
        );
        assert!(slots.cancel(4, Upload) && !slots.cancel(4, Upload) && !slots.cancel(2, Upload));
        slots.release(Background);
        assert_eq!(slots.grant(), Some(6), "background work comes last");
        slots.release(Client);
        assert_eq!((slots.grant(), slots.grant()), (Some(1), None));
        assert_eq!((slots.in_use(), slots.waiting()), (4, 1));
    }

    #[test]
    fn even_one_connection_serves_every_purpose() {
        for purpose in Purpose::ALL {
            let mut slots = slots(1, 1);
            assert_eq!(
                (slots.ask(purpose), slots.ask(purpose)),
                (SlotAnswer::Granted, SlotAnswer::Waits(1))
            );
            slots.release(purpose);
            assert_eq!(slots.grant(), Some(1));
        }
    }

    proptest! {
        #[test]
        fn limits_hold_and_nobody_is_forgotten(most in 1usize..9, steps in proptest::collection::vec((0usize..4, 0usize..3, any::<prop::sample::Index>()), 0..200)) {
            let mut slots = slots(most, 8);
            let (mut held, mut queued): (Vec<Purpose>, Vec<(u64, Purpose)>) = Default::default();
            for (step, purpose, at) in steps {
                let purpose = Purpose::ALL[purpose];
                match step {
                    0 | 1 => match slots.ask(purpose) {
                        SlotAnswer::Granted => held.push(purpose),
                        SlotAnswer::Waits(ticket) => queued.push((ticket, purpose)),
                        SlotAnswer::Full => prop_assert_eq!(queued.len(), 8),
                    },
                    2 if !held.is_empty() => slots.release(held.swap_remove(at.index(held.len()))),
                    3 if !queued.is_empty() => {
                        let (ticket, purpose) = queued.remove(at.index(queued.len()));
                        prop_assert!(slots.cancel(ticket, purpose));
                    }
                    _ => {}
                }
                while let Some(ticket) = slots.grant() {
                    let at = queued.iter().position(|(other, _)| *other == ticket).expect("it waits");
                    held.push(queued.remove(at).1);
                }
                prop_assert!(slots.in_use() == held.len() && held.len() <= most);
                prop_assert_eq!(slots.waiting(), queued.len());
                for purpose in Purpose::ALL {
                    prop_assert!(held.iter().filter(|p| **p == purpose).count() <= purpose.share(most));
                }
                prop_assert!(held.len() == most || queued.iter().all(|(_, purpose)| *purpose != Client), "a client waits for a free one");
            }
        }
    }

    fn connections(most: usize, waiting_max: usize) -> Arc<Connections> {
        let limits = OriginLimits {
            connections_max: most,
            waiting_max,
            ..OriginLimits::default()
        };
        Connections::new(&limits, Arc::default())
    }

    #[tokio::test]
    async fn connections_are_scarce_from_half_of_them_on() {
        let connections = connections(4, 2);
        let wait = Duration::ZERO;
        let _first = connections.permit(Client, wait).await.expect("free");
        assert!(!connections.are_scarce());
        let second = connections.permit(Client, wait).await.expect("free");
        assert!(connections.are_scarce());
        drop(second);
        assert!(!connections.are_scarce());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_or_goes_away_leaves_the_queue() {
        let connections = connections(1, 2);
        let wait = Duration::from_secs(5);
        let first = connections.permit(Client, wait).await.expect("free");
        let began = Instant::now();
        assert_eq!(
            connections.permit(Client, wait).await.err(),
            Some(OriginError::ConnectionLimit)
        );
        assert_eq!(began.elapsed(), wait);
        let spawn = || {
            let connections = connections.clone();
            tokio::spawn(async move { connections.permit(Client, Duration::from_secs(60)).await })
        };
        let (left, stays) = (spawn(), spawn());
        tokio::task::yield_now().await;
        assert_eq!(
            connections.permit(Client, wait).await.err(),
            Some(OriginError::ConnectionLimit),
            "the queue is full"
        );
        left.abort();
        assert!(left.await.is_err());
        drop(first);
        let second = stays.await.expect("no panic").expect("its turn");
        // Granted, and given up before it was noticed.
        let granted = spawn();
        tokio::task::yield_now().await;
        drop(second);
        granted.abort();
        assert!(granted.await.is_err());
        assert!(connections.permit(Client, Duration::ZERO).await.is_ok());
        assert_eq!(connections.lock().slots.in_use(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_higher_limit_serves_those_who_wait() {
        let connections = connections(1, 8);
        let _first = connections
            .permit(Client, Duration::ZERO)
            .await
            .expect("free");
        let waiting = tokio::spawn({
            let connections = connections.clone();
            async move {
                connections
                    .permit(Client, Duration::from_secs(60))
                    .await
                    .map(drop)
            }
        });
        tokio::task::yield_now().await;
        connections.set_limits(&OriginLimits::default());
        assert_eq!(waiting.await.expect("no panic"), Ok(()));
    }
}
