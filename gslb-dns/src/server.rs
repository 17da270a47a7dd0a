//! Listeners: UDP workers, TCP connections, their limits and time-outs. Knows bytes and peers, not
//! what an answer says.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use nearcast_fleet::failure::Failure;
use nearcast_fleet::shutdown::Shutdown;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::handler::{Handler, TCP_BYTES_MAX, TCP_IDLE_TENTHS, Worker};
use crate::kernel::{self, Batch, Reply};
use crate::metrics::{Metrics, Transport};
use crate::wire::QUERY_BYTES_MAX;

/// UDP workers an address, whatever the number of cores.
const WORKERS_MAX: usize = 64;
/// Batches of queries that a UDP worker still answers when it is to end.
const LAST_BATCHES_MAX: u32 = 64;
/// How long a worker waits for a datagram before it looks at shutdown again.
const UDP_WAIT: Duration = Duration::from_millis(100);
/// Kernel buffers of a UDP socket.
const UDP_BUFFER_BYTES: usize = 4 << 20;
/// Wait after an unexpected socket error, so that it cannot spin.
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// TCP connections served at a time. At most as many again wait for one that was asked to give way.
const CONNECTIONS_MAX: usize = 4096;
/// TCP connections of one client (an IPv4 address or an IPv6 /56).
pub const CONNECTIONS_PER_CLIENT_MAX: u32 = 128;
/// A connection without a whole query for this long is closed.
const TCP_IDLE: Duration = Duration::from_millis(TCP_IDLE_TENTHS as u64 * 100);
/// A client that does not take its answers for this long is given up.
const TCP_WRITE_MAX: Duration = Duration::from_secs(5);
/// Answers are written once so many bytes are ready, or all that was asked is answered.
const TCP_OUTPUT_BYTES: usize = 16 << 10;
/// Bytes that are kept of a message: enough to see that it is too long for a query. The rest is
/// read and forgotten.
const TCP_KEPT_BYTES: usize = QUERY_BYTES_MAX + 1;
/// Read buffer: once it is full, a message can be taken from it.
const TCP_INPUT_BYTES: usize = 2 + TCP_KEPT_BYTES;
/// Connections waiting to be accepted.
const BACKLOG: i32 = 1024;

/// Everything that listens for DNS, opened but not yet served.
pub struct Listeners {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    /// TCP connections open at a time.
    pub connections_max: usize,
}

impl Listeners {
    /// Opens UDP and TCP on every address; port 0 gives both the same free port.
    ///
    /// # Errors
    /// [`Failure::bind`] for the first that cannot be opened; nothing stays open then.
    pub fn open(addresses: &[SocketAddr]) -> Result<Self, Failure> {
        let workers = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(WORKERS_MAX);
        let mut all = Self {
            udp: Vec::new(),
            tcp: Vec::new(),
            addresses: Vec::new(),
            connections_max: CONNECTIONS_MAX,
        };
        for &address in addresses {
            let tcp =
                tcp_listener(address).map_err(|e| Failure::bind("DNS over TCP", address, &e))?;
            let bound = tcp
                .local_addr()
                .map_err(|e| Failure::bind("DNS over TCP", address, &e))?;
            let fail = |e: io::Error| Failure::bind("DNS over UDP", bound, &e);
            // Sockets that share a port would not notice another server there; one that does not
            // share it does.
            drop(udp_socket(bound, false).map_err(fail)?);
            for _ in 0..workers {
                all.udp.push(udp_socket(bound, true).map_err(fail)?);
            }
            all.tcp.push(tcp);
            all.addresses.push(bound);
        }
        Ok(all)
    }

    /// Where they listen.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Starts serving: UDP on threads of its own, TCP on this Tokio runtime. TCP ends with
    /// `shutdown`, UDP with [`Serving::drain`].
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn serve(
        self,
        handler: &Arc<Handler>,
        metrics: &Arc<Metrics>,
        shutdown: &Shutdown,
    ) -> Result<Serving, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (index, socket) in self.udp.into_iter().enumerate() {
            let worker = UdpWorker {
                socket,
                handler: Arc::clone(handler),
                metrics: Arc::clone(metrics),
                stop: Arc::clone(&stop),
                seed: seed(index),
            };
            let thread = std::thread::Builder::new()
                .name(format!("dns-udp-{index}"))
                .spawn(move || worker.run());
            threads.push(thread.map_err(|e| {
                Failure::new(
                    nearcast_fleet::failure::FailureKind::System,
                    format!(
                        "cannot start a thread for DNS over UDP: {e} (raise the limit of tasks)"
                    ),
                )
            })?);
        }
        let room = Arc::new(Room::new(self.connections_max));
        let clients = Arc::new(Clients::default());
        let mut tasks = tokio::task::JoinSet::new();
        for listener in self.tcp {
            let acceptor = Acceptor {
                listener,
                handler: Arc::clone(handler),
                metrics: Arc::clone(metrics),
                room: Arc::clone(&room),
                clients: Arc::clone(&clients),
            };
            tasks.spawn(acceptor.run(shutdown.clone()));
        }
        Ok(Serving {
            stop,
            threads,
            tasks,
            slots: Arc::clone(&room.slots),
            connections_max: self.connections_max,
        })
    }
}

/// What serves; told to stop, it finishes what it has begun.
pub struct Serving {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    tasks: tokio::task::JoinSet<()>,
    slots: Arc<Semaphore>,
    connections_max: usize,
}

impl Serving {
    /// Waits for TCP connections to end, up to `limit`, and ends the UDP workers, which answer
    /// until then. Call after shutdown was asked for.
    pub async fn drain(mut self, limit: Duration) {
        let drained = async {
            while self.tasks.join_next().await.is_some() {}
            // Every slot is free again once every connection has ended.
            let _ = self.slots.acquire_many(self.connections_max as u32).await;
        };
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::warn!("TCP connections are still open after {limit:?}; closing them");
        }
        self.stop.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads);
        let _ =
            tokio::task::spawn_blocking(move || threads.into_iter().for_each(|t| drop(t.join())))
                .await;
    }
}

fn udp_socket(address: SocketAddr, is_shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(is_shared)?;
    // The system may grant less; that is its choice.
    let _ = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(UDP_BUFFER_BYTES);
    socket.set_read_timeout(Some(UDP_WAIT))?;
    socket.set_write_timeout(Some(UDP_WAIT))?;
    socket.bind(&address.into())?;
    let socket = UdpSocket::from(socket);
    kernel::prepare(&socket, address)?;
    Ok(socket)
}

fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Only so that a restart does not wait for old connections; a live listener still keeps the
    // port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A start for a worker's random numbers; distinct for each worker and run.
fn seed(index: usize) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(index)
}

fn unix_now() -> u32 {
    nearcast_fleet::clock::unix_seconds(SystemTime::now()) as u32
}

struct UdpWorker {
    socket: UdpSocket,
    handler: Arc<Handler>,
    metrics: Arc<Metrics>,
    stop: Arc<AtomicBool>,
    seed: u64,
}

impl UdpWorker {
    /// Serves until told to stop. A worker that ended early would leave its share of the port's
    /// clients unanswered, so a defect costs one batch and an error in the log.
    fn run(self) {
        while std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.serve())).is_err() {
            tracing::error!(
                "a query made a DNS worker panic: this is a defect; the worker goes on"
            );
        }
    }

    fn serve(&self) {
        let mut batch = Batch::new();
        let mut worker = Worker::new(Transport::Udp, self.seed, unix_now());
        let mut output = Vec::with_capacity(kernel::BATCH * crate::wire::UDP_BYTES_MAX);
        let mut replies = Vec::with_capacity(kernel::BATCH);
        let mut errors: u64 = 0;
        let mut last_batches = 0;
        loop {
            let count = match batch.receive(&self.socket) {
                Ok(count) => count,
                Err(error) => {
                    if self.stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) {
                        errors += 1;
                        // The first few and then ever fewer: 1, 2, 4, 8, ...
                        if errors.is_power_of_two() {
                            tracing::warn!(%error, errors, "receiving DNS queries failed; going on");
                        }
                        std::thread::sleep(ERROR_PAUSE);
                    }
                    continue;
                }
            };
            worker.now = unix_now();
            let snapshot = self.handler.steering.snapshot();
            output.clear();
            replies.clear();
            for i in 0..count {
                let Some((client, message)) = batch.datagram(i) else {
                    worker.tally.ignored();
                    continue;
                };
                let start = output.len();
                if self
                    .handler
                    .answer(&snapshot, &mut worker, message, client.ip(), &mut output)
                {
                    replies.push(Reply {
                        to: i,
                        start,
                        end: output.len(),
                    });
                }
            }
            if let Err(error) = batch.send(&self.socket, &output, &replies) {
                tracing::debug!(%error, "an answer could not be sent");
            }
            worker.tally.flush(&self.metrics);
            // Queries that wait in the socket are answered; not for ever, under a load that never
            // lets the wait above run out.
            if self.stop.load(Ordering::Relaxed) {
                last_batches += 1;
                if last_batches > LAST_BATCHES_MAX {
                    return;
                }
            }
        }
    }
}

/// Open connections by client.
#[derive(Default)]
struct Clients(Mutex<HashMap<IpAddr, u32>>);

impl Clients {
    /// Counts a connection; `None` when the client has enough.
    fn enter(self: &Arc<Self>, client: IpAddr) -> Option<ClientSlot> {
        let client = client_key(client);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(client).or_insert(0);
        if *count >= CONNECTIONS_PER_CLIENT_MAX {
            return None;
        }
        *count += 1;
        Some(ClientSlot {
            clients: Arc::clone(self),
            client,
        })
    }
}

/// IPv6 clients have a whole network of addresses each: a /56 counts as one client.
fn client_key(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(a) => IpAddr::V6(std::net::Ipv6Addr::from(u128::from(a) & !(u128::MAX >> 56))),
    }
}

struct ClientSlot {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Drop for ClientSlot {
    fn drop(&mut self) {
        let mut open = self
            .clients
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// Room for connections. When there is none, the one that has waited longest for its client gives
/// way (RFC 7766 section 6.2.3): for a query, or for answers to be taken. So who only holds
/// connections open locks nobody out.
struct Room {
    slots: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
}

/// Connections that wait for their clients, by when they began to. One that is served is not among
/// them.
#[derive(Default)]
struct Waiting {
    begun: u64,
    by_age: BTreeMap<u64, Arc<Notify>>,
}

impl Room {
    fn new(connections_max: usize) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(connections_max)),
            waiting: Mutex::default(),
        }
    }

    /// A slot for a new connection, now or once another has given way; `None` when there is
    /// neither. Each that waits has asked one connection of its own, which ends as soon as it runs:
    /// that bounds how many wait, and how long.
    fn enter(&self) -> Option<impl Future<Output = Option<OwnedSemaphorePermit>> + Send + 'static> {
        let free = Arc::clone(&self.slots).try_acquire_owned().ok();
        if free.is_none() && !self.make_room() {
            return None;
        }
        let slots = Arc::clone(&self.slots);
        Some(async move {
            match free {
                Some(slot) => Some(slot),
                None => slots.acquire_owned().await.ok(),
            }
        })
    }

    /// Asks the connection that has waited longest to give way; `false` when none waits that was
    /// not asked yet.
    fn make_room(&self) -> bool {
        let mut waiting = self.waiting();
        let Some((_, give_way)) = waiting.by_age.pop_first() else {
            return false;
        };
        // Under the lock, so that who has left `by_age` knows whether it was asked.
        give_way.notify_one();
        true
    }

    /// Does what a connection waits for; `None` when it was asked to give way meanwhile. Then it
    /// must end.
    async fn wait<T>(&self, give_way: &Arc<Notify>, awaited: impl Future<Output = T>) -> Option<T> {
        let turn = self.begin(give_way);
        let mut asked = std::pin::pin!(give_way.notified());
        tokio::select! {
            biased;
            () = &mut asked => None,
            done = awaited => {
                drop(turn);
                // It may have been asked after the look above.
                (!asked.as_mut().enable()).then_some(done)
            }
        }
    }

    fn begin(&self, give_way: &Arc<Notify>) -> Turn<'_> {
        let mut waiting = self.waiting();
        let number = waiting.begun;
        waiting.begun += 1;
        waiting.by_age.insert(number, Arc::clone(give_way));
        Turn { room: self, number }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those that wait, until it is dropped.
struct Turn<'a> {
    room: &'a Room,
    number: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.room.waiting().by_age.remove(&self.number);
    }
}

struct Acceptor {
    listener: TcpListener,
    handler: Arc<Handler>,
    metrics: Arc<Metrics>,
    room: Arc<Room>,
    clients: Arc<Clients>,
}

impl Acceptor {
    async fn run(self, mut shutdown: Shutdown) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.asked() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Never a reason to end.
                    tracing::debug!(%error, "accepting a DNS connection failed; going on");
                    // One that was gone before it was accepted costs nobody anything.
                    if error.kind() != io::ErrorKind::ConnectionAborted {
                        if is_exhaustion(&error) {
                            self.room.make_room();
                        }
                        tokio::time::sleep(ERROR_PAUSE).await;
                    }
                    continue;
                }
            };
            // A client that has enough, or nobody who can give way: the new connection is closed.
            let Some(client_slot) = self.clients.enter(peer.ip()) else {
                continue;
            };
            let Some(entered) = self.room.enter() else {
                continue;
            };
            let connection = Connection {
                stream,
                client: peer.ip(),
                handler: Arc::clone(&self.handler),
                metrics: Arc::clone(&self.metrics),
                room: Arc::clone(&self.room),
                give_way: Arc::default(),
                _client_slot: client_slot,
            };
            let shutdown = shutdown.clone();
            // Others are accepted while this one waits for its slot.
            tokio::spawn(async move {
                let Some(_slot) = entered.await else { return };
                connection.run(shutdown).await;
            });
        }
    }
}

/// Whether descriptors or memory ran out, so that a connection less would help.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

struct Connection {
    stream: TcpStream,
    client: IpAddr,
    handler: Arc<Handler>,
    metrics: Arc<Metrics>,
    room: Arc<Room>,
    give_way: Arc<Notify>,
    _client_slot: ClientSlot,
}

impl Connection {
    async fn run(mut self, mut shutdown: Shutdown) {
        let _ = self.stream.set_nodelay(true);
        let mut worker = Worker::new(Transport::Tcp, seed(0), unix_now());
        let mut input: Vec<u8> = Vec::with_capacity(TCP_INPUT_BYTES);
        let mut output = Vec::new();
        // Bytes still to come of a message that was answered by its beginning.
        let mut skipped = 0;
        loop {
            let reading = tokio::time::timeout(
                TCP_IDLE,
                read_query(&mut self.stream, &mut input, &mut skipped),
            );
            let read = tokio::select! {
                biased;
                read = self.room.wait(&self.give_way, reading) => read,
                () = shutdown.asked() => return,
            };
            // Asked to give way, the end, an error, or nothing whole for too long.
            if !matches!(read, Some(Ok(Ok(true)))) {
                return;
            }
            worker.now = unix_now();
            let mut taken = 0;
            while let Some((message, length)) = input.get(taken..).and_then(framed) {
                let start = output.len();
                output.extend_from_slice(&[0, 0]);
                let snapshot = self.handler.steering.snapshot();
                if self
                    .handler
                    .answer(&snapshot, &mut worker, message, self.client, &mut output)
                {
                    let len = (output.len() - start - 2).min(TCP_BYTES_MAX) as u16;
                    output[start..start + 2].copy_from_slice(&len.to_be_bytes());
                } else {
                    output.truncate(start);
                }
                taken += 2 + length;
                if output.len() >= TCP_OUTPUT_BYTES {
                    break;
                }
            }
            worker.tally.flush(&self.metrics);
            skipped = taken.saturating_sub(input.len());
            input.drain(..taken - skipped);
            if !output.is_empty() {
                let writing = tokio::time::timeout(TCP_WRITE_MAX, self.stream.write_all(&output));
                match self.room.wait(&self.give_way, writing).await {
                    Some(Ok(Ok(()))) => output.clear(),
                    _ => return,
                }
                // One large answer is no reason to keep its room for as long as the client stays.
                output.shrink_to(TCP_OUTPUT_BYTES);
            }
        }
    }
}

/// Reads until a whole query is there; `false` at the end of the stream.
async fn read_query(
    stream: &mut TcpStream,
    input: &mut Vec<u8>,
    skipped: &mut usize,
) -> io::Result<bool> {
    while framed(input).is_none() {
        if stream.read_buf(input).await? == 0 {
            return Ok(false);
        }
        let now = input.len().min(*skipped);
        input.drain(..now);
        *skipped -= now;
    }
    Ok(true)
}

/// The first message of a stream, as far as it is kept, and its length (RFC 1035 section 4.2.2). A
/// length below a header's is a message too: it is ignored later.
fn framed(input: &[u8]) -> Option<(&[u8], usize)> {
    let [hi, lo, rest @ ..] = input else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([*hi, *lo]));
    Some((rest.get(..length.min(TCP_KEPT_BYTES))?, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn an_ipv6_network_is_one_client() {
        let ip = |t: &str| t.parse::<IpAddr>().expect("an address");
        for (a, b, is_same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("2001:db8::1", "2001:db8:0:ff:1::9", true),
            ("2001:db8::1", "2001:db8:0:100::1", false),
        ] {
            assert_eq!(client_key(ip(a)) == client_key(ip(b)), is_same, "{a} {b}");
        }
    }

    #[test]
    fn slots_of_a_client_are_given_back() {
        let clients = Arc::new(Clients::default());
        let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
        let mut slots: Vec<_> = (0..CONNECTIONS_PER_CLIENT_MAX)
            .map(|_| clients.enter(ip).expect("room"))
            .collect();
        assert!(clients.enter(ip).is_none());
        assert!(
            clients.enter(IpAddr::from([127, 0, 0, 2])).is_some(),
            "another client has its own"
        );
        slots.pop();
        assert!(clients.enter(ip).is_some());
        slots.clear();
        assert!(clients.0.lock().expect("no panic").is_empty());
    }

    /// Polls once.
    async fn look<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        tokio::select! {
            biased;
            done = future => Some(done),
            () = std::future::ready(()) => None,
        }
    }

    /// A wait for something that never comes.
    fn endless<'a>(
        room: &'a Room,
        give_way: &'a Arc<Notify>,
    ) -> std::pin::Pin<Box<impl Future<Output = Option<()>> + 'a>> {
        Box::pin(room.wait(give_way, std::future::pending()))
    }

    #[tokio::test]
    async fn without_room_each_newcomer_takes_the_place_of_who_waited_longest() {
        let room = Room::new(2);
        let [a, b] = [Arc::default(), Arc::default()];
        let slot_a = look(&mut Box::pin(room.enter().expect("room")))
            .await
            .flatten()
            .expect("at once");
        let _slot_b = look(&mut Box::pin(room.enter().expect("room")))
            .await
            .flatten()
            .expect("at once");
        let mut wait_b = endless(&room, &b);
        assert_eq!(look(&mut wait_b).await, None);
        let mut wait_a = endless(&room, &a);
        assert_eq!(look(&mut wait_a).await, None);
        // What came ends a wait; the next one is a new wait.
        assert_eq!(
            look(&mut Box::pin(room.wait(&b, std::future::ready(5)))).await,
            Some(Some(5))
        );
        drop(wait_b);
        let mut wait_b = endless(&room, &b);
        assert_eq!(look(&mut wait_b).await, None);

        let mut third = Box::pin(room.enter().expect("the first gives way"));
        assert!(
            look(&mut third).await.is_none(),
            "not before its slot is free"
        );
        assert_eq!(
            (look(&mut wait_a).await, look(&mut wait_b).await),
            (Some(None), None)
        );
        drop(slot_a);
        assert!(look(&mut third).await.flatten().is_some());
        // Nobody is asked twice for one slot.
        let _fourth = room.enter().expect("the free slot");
        let _fifth = room.enter().expect("the second gives way");
        assert!(room.enter().is_none(), "both were asked");
        assert_eq!(look(&mut wait_b).await, Some(None));
    }

    #[tokio::test]
    async fn who_was_refused_leaves_nothing_behind() {
        let room = Room::new(1);
        let give_way = Arc::default();
        let slot = look(&mut Box::pin(room.enter().expect("room")))
            .await
            .flatten()
            .expect("at once");
        assert!(room.enter().is_none(), "it is being served");
        assert_eq!(
            look(&mut endless(&room, &give_way)).await,
            None,
            "its next wait goes on"
        );
        assert!(room.enter().is_none(), "a wait that was given up is none");
        drop(slot);
        assert!(
            look(&mut Box::pin(room.enter().expect("room")))
                .await
                .flatten()
                .is_some()
        );
    }

    #[tokio::test]
    async fn who_was_asked_ends_though_its_query_came() {
        let room = Room::new(1);
        let give_way = Arc::default();
        let asked_meanwhile = room.wait(&give_way, async { room.make_room() });
        assert_eq!(asked_meanwhile.await, None);
        assert!(!room.make_room(), "it waits no more");
    }

    #[test]
    fn only_exhaustion_makes_others_give_way() {
        for (code, expected) in [
            (libc::EMFILE, true),
            (libc::ENFILE, true),
            (libc::ECONNABORTED, false),
            (libc::EPERM, false),
        ] {
            assert_eq!(
                is_exhaustion(&io::Error::from_raw_os_error(code)),
                expected,
                "{code}"
            );
        }
    }

    #[test]
    fn frames_are_whole_messages_or_enough_of_them() {
        let large = vec![0xff; TCP_INPUT_BYTES];
        for (input, expected) in [
            (&b""[..], None),
            (b"\x00", None),
            (b"\x00\x02a", None),
            (b"\x00\x02ab", Some((&b"ab"[..], 2))),
            (b"\x00\x01abc", Some((b"a", 1))),
            (b"\x00\x00a", Some((b"", 0))),
            (&large[..], Some((&large[2..], 65_535))),
            (&large[..large.len() - 1], None),
        ] {
            assert_eq!(framed(input), expected);
        }
    }
}
