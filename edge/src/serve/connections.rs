//! Clients' connections of the whole process: how many there may be, how many of one client, and
//! which are closed to make room for others.
//!
//! Each has an open file (those of QUIC are few beside them, and count as much), and files are limited: a part of them is reserved for origins, the disk
//! and the admin listener. While slots are plentiful no client is limited. When they get scarce,
//! the connections of one address prefix may take half of what the others leave, so that there is
//! always a slot for one more; and idle connections are closed, the oldest first, those of prefixes
//! with many before those of others. A connection with a request is never closed.
//!
//! A connection of TCP whose reading is ended by [`kernel::end_reading`] closes by itself, as if its
//! client had ended it; a request that came just before is still answered
//! ([`ConnectionSlot::is_closing`]). One of QUIC is closed at once with `H3_NO_ERROR`; clients repeat
//! a request that crosses it (RFC 9114 section 5.3).

use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::phase::{IdleSince, Phase};
use crate::kernel;

/// Open files that are reserved for other uses: this part of all, within these bounds.
const RESERVE_PART: usize = 4;
const RESERVE_MIN: usize = 64;
const RESERVE_MAX: usize = 16_384;
/// Limit of clients' connections where none is configured: containers often have limits of a
/// million files and more, and seldom the memory for so many connections.
const DEFAULT_MAX: usize = 65_536;
/// Slots are scarce from this share of the limit on: then each prefix has its own limit.
const SCARCE: (usize, usize) = (3, 4);
/// From this share on idle connections are closed, until no more than that are left.
const HIGH: (usize, usize) = (15, 16);
const LOW: (usize, usize) = (7, 8);
/// This share more may be open for the moment in which others close.
const BRIEFLY: (usize, usize) = (1, 8);
/// A prefix with this share of the limit has many.
const MANY: (usize, usize) = (1, 8);
/// Idle connections of one prefix that are closed at a time, with a minimum: new ones take their
/// slots without another search. So a proxy in front of the edge keeps most of its connections.
const BATCH: (usize, usize) = (1, 64);
const BATCH_MIN: usize = 8;
/// Pause between two searches for idle connections: among all after a search found too few, among
/// those of one prefix always.
const SEARCH_PAUSE: Duration = Duration::from_millis(100);
/// Minimum time between two searches among the connections of single prefixes: each search visits
/// every connection.
const SEARCH_SPACING: Duration = Duration::from_millis(10);
/// `H3_NO_ERROR` (RFC 9114 section 8.1).
const QUIC_NO_ERROR: u32 = 0x100;
/// Minimum time between two warnings that connections were refused.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The clients that count as one: those of an IPv4 address or an IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Prefix(u64);

impl Prefix {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self(u32::from(v4).into()),
            IpAddr::V6(v6) => Self((u128::from(v6) >> 64) as u64),
        }
    }
}

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The limit is reached, and no connection is idle.
    Full,
    /// Slots are scarce, and its prefix has its share.
    Share,
    /// The system had no more open files.
    Files,
}

impl Refused {
    pub(crate) const ALL: [Self; 3] = [Self::Full, Self::Share, Self::Files];

    fn number(self) -> usize {
        self as usize
    }
}

/// The connections of one prefix.
#[derive(Debug, Default)]
struct Held {
    count: usize,
    /// Those of them that are being closed.
    closing: usize,
    /// New ones that may take the slots of closed ones.
    vacated: usize,
    /// When its idle connections may be searched again, in milliseconds.
    search_after: u64,
}

/// How a connection is ended from outside.
#[derive(Debug)]
pub(crate) enum Ends {
    /// Its reading is ended.
    File(RawFd),
    /// It is closed.
    Quic(quinn::Connection),
}

impl Ends {
    pub(crate) fn of(stream: &TcpStream) -> Self {
        Self::File(stream.as_raw_fd())
    }

    fn end(&self) {
        match self {
            Self::File(file) => kernel::end_reading(*file),
            Self::Quic(connection) => connection.close(QUIC_NO_ERROR.into(), b""),
        }
    }
}

#[derive(Debug)]
struct Entry {
    ends: Ends,
    prefix: Option<Prefix>,
    phase: Arc<Phase>,
    is_closing: bool,
}

/// The connections of one worker, each in one slot for as long as it lives.
#[derive(Debug, Default)]
struct Slots {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
}

/// All clients' connections of the process, with their limits.
#[derive(Debug)]
pub(crate) struct Connections {
    max: usize,
    started: Instant,
    of_worker: Box<[Mutex<Slots>]>,
    /// Has no more entries than there are connections.
    of_prefix: DashMap<Prefix, Held>,
    count: AtomicUsize,
    /// Those of them that are being closed.
    closing: AtomicUsize,
    refused: [AtomicU64; 3],
    closed_idle: AtomicU64,
    /// When all idle connections may be searched again, in milliseconds, and when those of any one
    /// prefix.
    search_after: AtomicU64,
    prefix_search_after: AtomicU64,
    warned_ms: AtomicU64,
    /// Refusals that the log has counted.
    warned_of: AtomicU64,
}

/// The limit of clients' connections of a process that may open so many files.
pub(crate) fn limit(files: usize, configured: Option<usize>) -> usize {
    let reserve = (files / RESERVE_PART).clamp(RESERVE_MIN, RESERVE_MAX);
    let most = files.saturating_sub(reserve).max(files / 2).max(1);
    configured.unwrap_or(DEFAULT_MAX).min(most)
}

/// The sum of the connections that sites may open to their origins, where that exceeds the `others`
/// files that clients leave.
pub(crate) fn sum_beyond(of_sites: impl Iterator<Item = usize>, others: usize) -> Option<usize> {
    let sum = of_sites.fold(0, usize::saturating_add);
    (sum > others).then_some(sum)
}

fn share(of: usize, (part, whole): (usize, usize)) -> usize {
    (of as u64 * part as u64 / whole as u64) as usize
}

impl Connections {
    pub(crate) fn new(max: usize, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            started: Instant::now(),
            of_worker: (0..workers).map(|_| Mutex::default()).collect(),
            of_prefix: DashMap::new(),
            count: AtomicUsize::new(0),
            closing: AtomicUsize::new(0),
            refused: Default::default(),
            closed_idle: AtomicU64::new(0),
            search_after: AtomicU64::new(0),
            prefix_search_after: AtomicU64::new(0),
            warned_ms: AtomicU64::new(0),
            warned_of: AtomicU64::new(0),
        })
    }

    /// Open connections.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Whether connections may be closing, which need time for it.
    pub(crate) fn are_slots_scarce(&self) -> bool {
        self.count() > share(self.max, SCARCE)
    }

    pub(crate) fn refused(&self, why: Refused) -> u64 {
        self.refused[why.number()].load(Relaxed)
    }

    /// Idle connections that were closed to make room.
    pub(crate) fn closed_idle(&self) -> u64 {
        self.closed_idle.load(Relaxed)
    }

    /// Admits a new connection of a client, and closes idle ones where slots get scarce.
    pub(crate) fn admit(
        self: &Arc<Self>,
        worker: usize,
        address: IpAddr,
    ) -> Result<ConnectionSlot, Refused> {
        self.admit_of(worker, Some(Prefix::of(address)))
    }

    /// Admits a new connection of a trusted proxy, whose clients are many: it has no share.
    pub(crate) fn admit_proxy(self: &Arc<Self>, worker: usize) -> Result<ConnectionSlot, Refused> {
        self.admit_of(worker, None)
    }

    fn admit_of(
        self: &Arc<Self>,
        worker: usize,
        prefix: Option<Prefix>,
    ) -> Result<ConnectionSlot, Refused> {
        let total = self.count.fetch_add(1, Relaxed) + 1;
        let own = prefix.map(|prefix| (prefix, self.hold(prefix)));
        // Dropping it takes the counts back.
        let slot = ConnectionSlot {
            connections: self.clone(),
            prefix,
            worker: worker as u32,
            slot: None,
        };
        if total <= share(self.max, SCARCE) {
            return Ok(slot);
        }
        let open = total.saturating_sub(self.closing.load(Relaxed));
        let refusal = if own.is_some_and(|(prefix, own)| self.exceeds_share(prefix, own, open)) {
            Some(Refused::Share)
        } else {
            if open > share(self.max, HIGH) {
                self.close_idle(None, open - share(self.max, LOW));
            }
            // Closing connections have their files for a moment longer: the reserve has enough for
            // so many.
            let open = total.saturating_sub(self.closing.load(Relaxed));
            (open > self.max || total > self.max + share(self.max, BRIEFLY))
                .then_some(Refused::Full)
        };
        match refusal {
            None => Ok(slot),
            Some(refusal) => {
                drop(slot);
                self.note_refused(refusal);
                Err(refusal)
            }
        }
    }

    /// Counts one more connection of a prefix, and gives how many it has.
    fn hold(&self, prefix: Prefix) -> usize {
        let mut held = self.of_prefix.entry(prefix).or_default();
        held.count += 1;
        held.count - held.closing
    }

    /// Whether a prefix with `own` of the `open` connections has more than its share, and none of its
    /// idle ones is closed for the newest.
    fn exceeds_share(&self, prefix: Prefix, own: usize, open: usize) -> bool {
        let of_others = open.saturating_sub(own);
        let own_most = (self.max.saturating_sub(of_others) / 2).max(1);
        own > own_most && !self.replaces_one(prefix, own - own_most)
    }

    /// Whether a new connection of a prefix that has `excess` more than its share takes the slot of
    /// an idle one that was closed. Such slots are vacated a batch at a time.
    fn replaces_one(&self, prefix: Prefix, excess: usize) -> bool {
        let now = self.now_ms();
        if let Some(mut held) = self.of_prefix.get_mut(&prefix) {
            if held.vacated > 0 {
                held.vacated -= 1;
                return true;
            }
            if now < held.search_after {
                return false;
            }
            if now < self.prefix_search_after.load(Relaxed) {
                return false;
            }
            held.search_after = now + SEARCH_PAUSE.as_millis() as u64;
        }
        self.prefix_search_after
            .store(now + SEARCH_SPACING.as_millis() as u64, Relaxed);
        let closed = self.close_idle(
            Some(prefix),
            excess.min(share(self.max, BATCH).max(BATCH_MIN)),
        );
        if let Some(mut held) = self.of_prefix.get_mut(&prefix) {
            held.vacated = closed.saturating_sub(1);
        }
        closed > 0
    }

    /// The system had no file for a waiting connection: closes some idle ones.
    pub(crate) fn note_no_files(&self) {
        self.close_idle(None, (self.count() / 16).max(1));
        self.note_refused(Refused::Files);
    }

    fn note_refused(&self, why: Refused) {
        self.refused[why.number()].fetch_add(1, Relaxed);
        let now = self.now_ms();
        let warned = self.warned_ms.load(Relaxed);
        let is_due = warned == 0 || now >= warned + WARN_EVERY.as_millis() as u64;
        if is_due
            && self
                .warned_ms
                .compare_exchange(warned, now.max(1), Relaxed, Relaxed)
                .is_ok()
        {
            let all: u64 = Refused::ALL.iter().map(|why| self.refused(*why)).sum();
            let refused = all - self.warned_of.swap(all, Relaxed);
            let (open, max, closed_idle) = (self.count(), self.max, self.closed_idle());
            tracing::warn!(refused, last = ?why, open, max, closed_idle, "connections of clients are refused; repeated messages are suppressed");
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Closes up to `count` idle connections, of one prefix or of all; gives how many.
    fn close_idle(&self, only: Option<Prefix>, count: usize) -> usize {
        let now = self.now_ms();
        if only.is_none() && now < self.search_after.load(Relaxed) {
            return 0;
        }
        let many = share(self.max, MANY);
        let mut idle = Vec::new();
        for (worker, slots) in self.of_worker.iter().enumerate() {
            let slots = slots.lock();
            for (slot, entry) in slots.entries.iter().enumerate() {
                let Some(entry) = entry
                    .as_ref()
                    .filter(|e| !e.is_closing && only.is_none_or(|only| Some(only) == e.prefix))
                else {
                    continue;
                };
                if let Some(since) = entry.phase.idle_since.get() {
                    idle.push((false, since, worker, slot, entry.prefix));
                }
            }
        }
        for found in &mut idle {
            // Those of prefixes with many come first.
            found.0 = found
                .4
                .and_then(|prefix| self.of_prefix.get(&prefix))
                .is_none_or(|held| held.count <= many);
        }
        if idle.len() < count && only.is_none() {
            self.search_after
                .store(now + SEARCH_PAUSE.as_millis() as u64, Relaxed);
        } else if idle.len() > count {
            idle.select_nth_unstable_by_key(count, |(is_small, since, ..)| (*is_small, *since));
            idle.truncate(count);
        }
        let mut closed = 0;
        for (_, since, worker, slot, _) in idle {
            let mut slots = self.of_worker[worker].lock();
            let Some(entry) = slots.entries[slot].as_mut() else {
                continue;
            };
            // A request may have come meanwhile, or another connection into the slot.
            if entry.is_closing || entry.phase.idle_since.get() != Some(since) {
                continue;
            }
            entry.is_closing = true;
            // The file is open: a connection frees its slot, under this lock, before it closes the
            // file.
            entry.ends.end();
            let prefix = entry.prefix;
            self.closing.fetch_add(1, Relaxed);
            if let Some(mut held) = prefix.and_then(|prefix| self.of_prefix.get_mut(&prefix)) {
                held.closing += 1;
            }
            closed += 1;
        }
        self.closed_idle.fetch_add(closed as u64, Relaxed);
        closed
    }
}

/// The slot of one connection among all. To be dropped before its socket is closed.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    connections: Arc<Connections>,
    /// `None` for a trusted proxy.
    prefix: Option<Prefix>,
    worker: u32,
    slot: Option<u32>,
}

impl ConnectionSlot {
    /// The connection, which was admitted as a proxy's, is one of this client.
    pub(crate) fn assign(&mut self, address: IpAddr) -> Result<(), Refused> {
        let prefix = Prefix::of(address);
        let all = &self.connections;
        let own = all.hold(prefix);
        self.prefix = Some(prefix);
        let is_scarce = all.are_slots_scarce();
        let open = all.count().saturating_sub(all.closing.load(Relaxed));
        if is_scarce && all.exceeds_share(prefix, own, open) {
            all.note_refused(Refused::Share);
            return Err(Refused::Share);
        }
        Ok(())
    }

    /// Enters the connection, which has sent nothing yet, among those that may be idle.
    pub(crate) fn enter(&mut self, ends: Ends, phase: &Arc<Phase>) {
        self.note_idle(&phase.idle_since, Instant::now());
        let entry = Entry {
            ends,
            prefix: self.prefix,
            phase: phase.clone(),
            is_closing: false,
        };
        let mut slots = self.slots().lock();
        let slot = match slots.free.pop() {
            Some(slot) => {
                slots.entries[slot as usize] = Some(entry);
                slot
            }
            None => {
                slots.entries.push(Some(entry));
                (slots.entries.len() - 1) as u32
            }
        };
        drop(slots);
        self.slot = Some(slot);
    }

    /// Takes the connection out again: it is no longer closed to make room, and may be closed.
    pub(crate) fn leave(&mut self) {
        let Some(slot) = self.slot.take() else {
            return;
        };
        let was_closing = {
            let mut slots = self.slots().lock();
            slots.free.push(slot);
            let entry = slots.entries[slot as usize].take();
            entry.is_some_and(|entry| entry.is_closing)
        };
        if was_closing {
            let held = self
                .prefix
                .and_then(|prefix| self.connections.of_prefix.get_mut(&prefix));
            if let Some(mut held) = held {
                held.closing -= 1;
            }
            self.connections.closing.fetch_sub(1, Relaxed);
        }
    }

    /// The connection is idle from now on.
    pub(crate) fn note_idle(&self, idle_since: &IdleSince, now: Instant) {
        let since = now.saturating_duration_since(self.connections.started);
        idle_since.note_idle(since.as_millis() as u64);
    }

    /// The connection has its last response, and its input is dropped: it is the first to be closed
    /// to make room.
    pub(crate) fn note_lingering(&self, idle_since: &IdleSince) {
        idle_since.note_idle(0);
    }

    /// Whether the edge closes the connection to make room: then the client has not ended its side,
    /// though its reader finds an end.
    pub(crate) fn is_closing(&self) -> bool {
        let slots = self.slots().lock();
        self.slot
            .and_then(|slot| slots.entries[slot as usize].as_ref())
            .is_some_and(|entry| entry.is_closing)
    }

    fn slots(&self) -> &Mutex<Slots> {
        &self.connections.of_worker[self.worker as usize]
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.leave();
        let held = self
            .prefix
            .map(|prefix| self.connections.of_prefix.entry(prefix));
        if let Some(dashmap::Entry::Occupied(mut held)) = held {
            held.get_mut().count -= 1;
            if held.get().count == 0 {
                held.remove();
            }
        }
        self.connections.count.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn a_proxy_has_no_share_and_its_clients_have_one_each() {
        let all = Connections::new(100, 1);
        let of_proxy: Vec<ConnectionSlot> =
            (0..90).filter_map(|_| all.admit_proxy(0).ok()).collect();
        assert_eq!(
            (of_proxy.len(), all.count()),
            (90, 90),
            "more than any share"
        );
        drop(of_proxy);
        assert!(all.of_prefix.is_empty());

        let mut admitted: Vec<ConnectionSlot> = Vec::new();
        for _ in 0..100 {
            let mut slot = all.admit_proxy(0).expect("there is room");
            if slot.assign([192, 0, 2, 1].into()).is_ok() {
                admitted.push(slot);
            }
        }
        assert_eq!(
            admitted.len(),
            75,
            "the client has what one client may have"
        );
        let mut other = all.admit_proxy(0).expect("there is room");
        assert_eq!(other.assign([192, 0, 2, 2].into()), Ok(()));
        drop((admitted, other));
        assert_eq!((all.count(), all.of_prefix.len()), (0, 0));
    }

    #[test]
    fn files_are_kept_back_for_others_than_clients() {
        let table = [
            (20_000, None, 15_000),
            (1024, None, 768),
            (256, None, 192),
            (100, None, 50),
            (100_000, None, 65_536),
            (1_048_576, None, 65_536),
            (1_073_741_816, None, 65_536),
            (usize::MAX, None, 65_536),
            (1_000_000, Some(1_000_000), 983_616),
            (usize::MAX, Some(1_000_000), 1_000_000),
            (20_000, Some(500), 500),
            (1024, Some(500_000), 768),
        ];
        for (files, configured, expected) in table {
            assert_eq!(limit(files, configured), expected, "{files} {configured:?}");
        }
    }

    #[test]
    fn connections_to_origins_are_compared_with_the_files_left_for_them() {
        let table: [(&[usize], usize, Option<usize>); 5] = [
            (&[], 0, None),
            (&[128], 128, None),
            (&[128, 128], 255, Some(256)),
            (&[128, 127], 255, None),
            (&[usize::MAX, 1], 64, Some(usize::MAX)),
        ];
        for (limits, others, expected) in table {
            assert_eq!(
                sum_beyond(limits.iter().copied(), others),
                expected,
                "{limits:?} {others}"
            );
        }
    }

    #[test]
    fn prefixes_are_what_one_client_may_have() {
        let of = |text: &str| Prefix::of(text.parse().expect("an address"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }

    fn address(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    /// Closes all idle connections, as if the last room were needed.
    pub(crate) fn close_all_idle(all: &Arc<Connections>) {
        all.close_idle(None, all.count());
    }

    /// How many of so many connections from one address are taken.
    fn taken(all: &Arc<Connections>, from: u8, count: usize) -> Vec<ConnectionSlot> {
        (0..count)
            .filter_map(|_| all.admit(0, address(from)).ok())
            .collect()
    }

    #[test]
    fn nobody_takes_the_room_of_the_next_when_it_is_scarce() {
        let all = Connections::new(1000, 1);
        let first = taken(&all, 1, 2000);
        assert_eq!(
            first.len(),
            750,
            "alone one may have all until it is scarce"
        );
        let second = taken(&all, 2, 2000);
        let third = taken(&all, 3, 2000);
        assert_eq!(
            (second.len(), third.len()),
            (125, 62),
            "half of what the others leave"
        );
        assert_eq!(all.refused(Refused::Share), 2000 * 3 - 750 - 125 - 62);
        assert_eq!(all.refused(Refused::Full), 0);
        assert_eq!(taken(&all, 4, 1).len(), 1);
        drop((first, second, third));
        assert_eq!((all.count(), all.of_prefix.len()), (0, 0));
        assert_eq!(taken(&all, 2, 2000).len(), 750);
    }

    #[test]
    fn many_with_few_each_fill_all_of_it() {
        let all = Connections::new(100, 1);
        let slots: Vec<_> = (0..200)
            .filter_map(|n| all.admit(0, address(n)).ok())
            .collect();
        assert_eq!((slots.len(), all.refused(Refused::Full)), (100, 100));
    }

    struct Client {
        stream: TcpStream,
        phase: Arc<Phase>,
        _slot: ConnectionSlot,
        _peer: TcpStream,
    }

    /// A connection that has been idle since `order`, and its client's end.
    async fn client(all: &Arc<Connections>, worker: usize, from: u8, order: u64) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let peer = TcpStream::connect(listener.local_addr().expect("bound"))
            .await
            .expect("somebody listens");
        let (stream, _) = listener.accept().await.expect("a connection waits");
        let mut slot = all.admit(worker, address(from)).expect("there is room");
        let phase = Arc::new(Phase::default());
        slot.enter(Ends::of(&stream), &phase);
        phase.idle_since.note_idle(order);
        Client {
            stream,
            phase,
            _slot: slot,
            _peer: peer,
        }
    }

    impl Client {
        fn has_ended(&self) -> bool {
            matches!(
                socket2::SockRef::from(&self.stream).recv(&mut [std::mem::MaybeUninit::uninit()]),
                Ok(0)
            )
        }
    }

    #[tokio::test]
    async fn the_oldest_idle_one_gives_way_and_none_with_a_request() {
        let all = Connections::new(16, 2);
        let mut clients = Vec::new();
        for n in 0..15 {
            clients.push(client(&all, n % 2, n as u8, 100 - n as u64).await);
        }
        // The two oldest have a request.
        clients[14].phase.idle_since.note_busy();
        clients[13].phase.idle_since.note_busy();
        clients.push(client(&all, 0, 99, 1000).await);
        let mut ended = Vec::new();
        for (n, client) in clients.iter().enumerate() {
            if client.has_ended() {
                ended.push(n);
            }
        }
        assert_eq!(
            (ended, all.closed_idle()),
            (vec![11, 12], 2),
            "down to the low mark"
        );
        clients.truncate(11);
        assert_eq!((all.count(), all.closing.load(Relaxed)), (11, 0));
    }

    #[tokio::test]
    async fn one_that_was_answered_and_still_sends_gives_way_before_idle_ones() {
        let all = Connections::new(16, 1);
        let idle = client(&all, 0, 1, 1).await;
        let lingering = client(&all, 0, 2, 50).await;
        lingering.phase.idle_since.note_busy();
        lingering._slot.note_lingering(&lingering.phase.idle_since);
        assert_eq!(all.close_idle(None, 1), 1);
        assert_eq!((lingering.has_ended(), idle.has_ended()), (true, false));
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_hold_much_give_way_first() {
        let all = Connections::new(32, 1);
        let few = client(&all, 0, 1, 1).await;
        let mut many = Vec::new();
        for n in 0..23 {
            many.push(client(&all, 0, 2, 10 + n).await);
        }
        // More than its share: a batch of its own oldest goes.
        many.push(client(&all, 0, 2, 90).await);
        assert!(!few.has_ended(), "not that of another, though it is older");
        let mut ended = Vec::new();
        for (n, client) in many.iter().enumerate() {
            if client.has_ended() {
                ended.push(n);
            }
        }
        assert_eq!(ended, [0, 1, 2, 3, 4, 5, 6, 7]);
        // As many take their slots without another search. After that there is one for each pause.
        for _ in 0..7 {
            many.push(client(&all, 0, 2, 100).await);
        }
        assert_eq!(
            (all.admit(0, address(2)).err(), all.closed_idle()),
            (Some(Refused::Share), 8)
        );
        tokio::time::advance(SEARCH_PAUSE).await;
        many.push(client(&all, 0, 2, 100).await);
        assert_eq!((all.closed_idle(), few.has_ended()), (16, false));
    }
}
