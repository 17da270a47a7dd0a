//! The UDP sockets of a QUIC server: two for each worker thread and address, in one group that
//! shares the address (SO_REUSEPORT). The kernel gives each packet to the right one
//! ([`super::route`]).
//!
//! Packets of open connections and packets that may begin one wait in queues of their own, and those
//! of open connections are read first. However many first packets come, they take no place of
//! others, and a worker computes only a few of them before everything else has its turn.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

use super::{kernel, route};

/// Workers that get packets; the first byte of a connection ID names one.
pub(super) const WORKERS_MAX: usize = 128;
/// Bytes of a socket's buffers, of which the kernel may give less (net.core.rmem_max, wmem_max): for
/// packets of open connections, for those that may begin one, and for what is sent.
const OPEN_BYTES: usize = 4 << 20;
const FIRST_BYTES: usize = 1 << 20;
const SEND_BYTES: usize = 4 << 20;
/// First packets that are read before everything else has its turn.
const FIRST_PACKETS: usize = 8;
/// Reads of packets of open connections after which first packets have a portion all the same, so that
/// connections begin at a busy worker too.
const READS_BEFORE_FIRST: u32 = 16;
/// So many such portions without a pause mean that more come than are worked off.
const FULL_PORTIONS: u32 = 4;

/// The sockets of one worker for one address.
#[derive(Debug)]
pub struct WorkerSockets {
    pub(super) worker: usize,
    pub(super) workers: usize,
    /// Packets of open connections, or all where there is no other.
    open: UdpSocket,
    /// Packets that may begin a connection.
    first: Option<UdpSocket>,
}

impl WorkerSockets {
    /// The address.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.open.local_addr()
    }

    /// Whether the kernel would not distribute packets among workers, so that one serves all.
    pub fn is_alone(&self) -> bool {
        self.first.is_none()
    }
}

/// Opens the sockets of `workers` workers for an address, in their order. Where the kernel refuses
/// the program that distributes packets, as some sandboxes do, there are sockets of one worker.
///
/// # Errors
/// The system's, [`io::ErrorKind::AddrInUse`] also where another process shares the port.
pub fn open(address: SocketAddr, workers: usize) -> io::Result<Vec<WorkerSockets>> {
    let workers = workers.clamp(1, WORKERS_MAX);
    // Without SO_REUSEPORT, so that a port which another process shares counts as in use. Port 0
    // becomes the one that all get.
    let address = bound(address, false, OPEN_BYTES)?.local_addr()?;
    // Their order is their number in the program.
    let mut first = Vec::with_capacity(workers);
    for _ in 0..workers {
        first.push(bound(address, true, FIRST_BYTES)?);
    }
    let mut open = Vec::with_capacity(workers);
    for _ in 0..workers {
        open.push(bound(address, true, OPEN_BYTES)?);
    }
    let program = route::program(workers as u32);
    if kernel::attach(&first[0], &program).is_err() {
        drop((first, open));
        return Ok(vec![WorkerSockets {
            worker: 0,
            workers: 1,
            open: bound(address, false, OPEN_BYTES)?,
            first: None,
        }]);
    }
    let pairs = first.into_iter().zip(open).enumerate();
    let sockets = pairs.map(|(worker, (first, open))| WorkerSockets {
        worker,
        workers,
        open,
        first: Some(first),
    });
    Ok(sockets.collect())
}

fn bound(address: SocketAddr, is_shared: bool, receive_bytes: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_reuse_port(is_shared)?;
    socket.set_nonblocking(true)?;
    // The kernel cuts them to its limits, and is asked for no more.
    let _ = socket.set_recv_buffer_size(receive_bytes);
    let _ = socket.set_send_buffer_size(SEND_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// How many connections begin, compared with what is worked off.
#[derive(Debug, Default)]
pub struct Pressure {
    /// Full portions of first packets since the queue was last empty.
    full_portions: AtomicU32,
}

impl Pressure {
    /// Whether more first packets wait than are worked off soon.
    pub fn is_high(&self) -> bool {
        self.full_portions.load(Relaxed) >= FULL_PORTIONS
    }

    fn note(&self, count: usize) {
        let full = self.full_portions.load(Relaxed);
        let full = match count >= FIRST_PACKETS {
            true => full.saturating_add(1),
            false => 0,
        };
        self.full_portions.store(full, Relaxed);
    }
}

/// One socket within a runtime.
#[derive(Debug)]
struct Half {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
}

impl Half {
    fn new(socket: UdpSocket, has_joined_delivery: bool) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        if !has_joined_delivery {
            // An error means a kernel that joins nothing.
            let _ = kernel::end_joined_delivery(&socket);
        }
        let io = tokio::net::UdpSocket::from_std(socket)?;
        Ok(Self { io, state })
    }

    /// Reads what the kernel has, whether or not the runtime knows of it.
    fn read(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        self.state.recv((&self.io).into(), buffers, metas)
    }

    /// Reads packets, or has the task woken when there are some.
    fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let read = self
                .io
                .try_io(Interest::READABLE, || self.read(buffers, metas));
            // Any other error is one of the network, of which QUIC has its own opinion.
            if let Ok(count) = read {
                return Poll::Ready(Ok(count));
            }
        }
    }
}

type Pause = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The sockets of one worker, as the QUIC library takes them for one.
pub(super) struct Merged {
    open: Half,
    first: Option<Half>,
    /// Packets of one sender are delivered joined.
    is_joined: bool,
    pressure: Arc<Pressure>,
    turn: Mutex<Turn>,
}

/// Whose packets are read next.
#[derive(Default)]
struct Turn {
    /// Reads of packets of open connections since the last portion of first ones.
    reads: u32,
    /// After a portion of first packets: until everything else had its turn.
    pause: Option<Pause>,
}

impl fmt::Debug for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merged")
            .field("open", &self.open)
            .field("first", &self.first)
            .finish_non_exhaustive()
    }
}

impl Merged {
    /// Within the worker's runtime.
    pub(super) fn new(sockets: WorkerSockets) -> io::Result<(Self, Arc<Pressure>)> {
        // A client may have several connections on one port. The kernel would join their packets
        // before it looks at a connection ID, and give them all to the worker of the first one.
        let is_joined = sockets.workers == 1;
        let pressure = Arc::<Pressure>::default();
        let merged = Self {
            open: Half::new(sockets.open, is_joined)?,
            first: sockets
                .first
                .map(|socket| Half::new(socket, false))
                .transpose()?,
            is_joined,
            pressure: pressure.clone(),
            turn: Mutex::default(),
        };
        Ok((merged, pressure))
    }
}

impl Merged {
    /// Reads a portion of the packets that may begin connections, if all else has had its turn since
    /// the last one. Unless one `is_due`, packets of open connections come first also here: the
    /// runtime looks for them between turns only.
    fn poll_first(
        &self,
        turn: &mut Turn,
        is_due: bool,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Some(first) = &self.first else {
            return Poll::Pending;
        };
        if let Some(pausing) = turn.pause.as_mut() {
            ready!(pausing.as_mut().poll(cx));
            turn.pause = None;
        }
        let most = buffers.len().min(metas.len()).min(FIRST_PACKETS);
        let read = if is_due {
            match first.read(&mut buffers[..most], &mut metas[..most]) {
                Ok(count) => Poll::Ready(Ok(count)),
                Err(_) => return Poll::Pending,
            }
        } else {
            ready!(first.io.poll_recv_ready(cx))?;
            if let Ok(count) = self.open.read(buffers, metas) {
                turn.reads += 1;
                return Poll::Ready(Ok(count));
            }
            first.poll_read(cx, &mut buffers[..most], &mut metas[..most])
        };
        match &read {
            Poll::Ready(Ok(count)) => {
                self.pressure.note(*count);
                turn.reads = 0;
                turn.pause = Some(Box::pin(tokio::task::yield_now()));
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.pressure.note(0),
        }
        read
    }
}

impl AsyncUdpSocket for Merged {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable {
            socket: self,
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Half { io, state } = &self.open;
        io.try_io(Interest::WRITABLE, || state.send(io.into(), transmit))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut turn = self.turn.lock();
        if turn.reads >= READS_BEFORE_FIRST {
            turn.reads = 0;
            let first = self.poll_first(&mut turn, true, cx, buffers, metas);
            if first.is_ready() {
                return first;
            }
        }
        if let Poll::Ready(read) = self.open.poll_read(cx, buffers, metas) {
            turn.reads += 1;
            return Poll::Ready(read);
        }
        self.poll_first(&mut turn, false, cx, buffers, metas)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.open.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.open.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        match self.is_joined {
            true => self.open.state.gro_segments(),
            false => 1,
        }
    }

    fn may_fragment(&self) -> bool {
        self.open.state.may_fragment()
    }
}

type Writing = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// Waits for room to send, for one of the tasks that do.
struct Writable {
    socket: Arc<Merged>,
    waiting: Option<Writing>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").finish_non_exhaustive()
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.socket.clone();
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(async move { socket.open.io.writable().await }));
        let written = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const INITIAL: [u8; 30] = [0xc0; 30];

    /// A packet that may begin a connection, of worker 0.
    fn first_packet() -> Vec<u8> {
        let mut packet = INITIAL.to_vec();
        packet[1..6].copy_from_slice(&[0, 0, 0, 1, 8]);
        packet[6] = 0;
        packet
    }

    /// One of an open connection.
    fn open_packet() -> Vec<u8> {
        [&[0x40, 0][..], &[9; 20]].concat()
    }

    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    /// How many packets the next read gives, and whether they are of an open connection.
    fn read(merged: &Merged, cx: &mut Context<'_>) -> Poll<(usize, bool)> {
        let mut space = [[0; 1500]; quinn::udp::BATCH_SIZE];
        let mut buffers = space.each_mut().map(|bytes| IoSliceMut::new(bytes));
        let mut metas = [RecvMeta::default(); quinn::udp::BATCH_SIZE];
        let read = ready!(merged.poll_recv(cx, &mut buffers, &mut metas));
        let count = read.expect("the sockets live");
        Poll::Ready((count, space[0][0] & 0x80 == 0))
    }

    #[tokio::test]
    async fn packets_of_open_connections_come_first_and_first_ones_a_few_at_a_time() {
        let sockets = open(any(), 1).expect("a free port");
        let [sockets] = <[_; 1]>::try_from(sockets).expect("one worker");
        let address = sockets.local_addr().expect("bound");
        let (merged, pressure) = Merged::new(sockets).expect("a runtime");
        let client = UdpSocket::bind(any()).expect("a free port");
        let send = |packet: &[u8]| client.send_to(packet, address).expect("sent");
        for _ in 0..10 * FIRST_PACKETS {
            send(&first_packet());
        }
        send(&open_packet());

        assert_eq!(poll_fn(|cx| read(&merged, cx)).await, (1, true));
        assert_eq!(
            poll_fn(|cx| read(&merged, cx)).await,
            (FIRST_PACKETS, false)
        );
        let mut is_pending = false;
        poll_fn(|cx| {
            is_pending = read(&merged, cx).is_pending();
            Poll::Ready(())
        })
        .await;
        assert!(is_pending, "everything else has its turn");
        // The runtime has not looked at the socket meanwhile.
        send(&open_packet());
        assert_eq!(poll_fn(|cx| read(&merged, cx)).await, (1, true));
        for _ in 0..FULL_PORTIONS {
            assert_eq!(
                poll_fn(|cx| read(&merged, cx)).await,
                (FIRST_PACKETS, false)
            );
        }
        assert!(pressure.is_high());
        for _ in 0..5 {
            assert_eq!(
                poll_fn(|cx| read(&merged, cx)).await,
                (FIRST_PACKETS, false)
            );
        }
        send(&first_packet());
        assert_eq!(poll_fn(|cx| read(&merged, cx)).await, (1, false));
        assert!(!pressure.is_high(), "the queue is worked off");
    }

    #[tokio::test]
    async fn connections_begin_also_where_packets_of_open_ones_never_end() {
        let sockets = open(any(), 1).expect("a free port").remove(0);
        let address = sockets.local_addr().expect("bound");
        let (merged, _) = Merged::new(sockets).expect("a runtime");
        let client = UdpSocket::bind(any()).expect("a free port");
        for _ in 0..3 * FIRST_PACKETS {
            client.send_to(&first_packet(), address).expect("sent");
        }
        let mut reads = 0;
        for _ in 0..3 {
            loop {
                client.send_to(&open_packet(), address).expect("sent");
                let (_, is_open) = poll_fn(|cx| read(&merged, cx)).await;
                if !is_open {
                    break;
                }
                reads += 1;
                assert!(reads <= 10 * READS_BEFORE_FIRST);
            }
        }
        assert!(reads >= 3 * READS_BEFORE_FIRST, "{reads}");
    }

    #[tokio::test]
    async fn first_packets_take_no_room_of_others() {
        let sockets = open(any(), 1).expect("a free port").remove(0);
        let address = sockets.local_addr().expect("bound");
        let (merged, _) = Merged::new(sockets).expect("a runtime");
        let client = UdpSocket::bind(any()).expect("a free port");
        // More than any queue holds.
        let mut packet = first_packet();
        packet.resize(1200, 0);
        for _ in 0..20_000 {
            client.send_to(&packet, address).expect("sent");
        }
        for _ in 0..10 {
            client.send_to(&open_packet(), address).expect("sent");
        }
        let mut found = 0;
        while found < 10 {
            let (count, is_open) = poll_fn(|cx| read(&merged, cx)).await;
            assert!(is_open, "{found}");
            found += count;
        }
    }

    #[tokio::test]
    async fn one_socket_alone_gives_all_packets() {
        let sockets = WorkerSockets {
            worker: 0,
            workers: 1,
            open: bound(any(), false, OPEN_BYTES).expect("a free port"),
            first: None,
        };
        assert!(sockets.is_alone());
        let address = sockets.local_addr().expect("bound");
        let (merged, _) = Merged::new(sockets).expect("a runtime");
        let client = UdpSocket::bind(any()).expect("a free port");
        for (packet, is_open) in [(first_packet(), false), (open_packet(), true)] {
            client.send_to(&packet, address).expect("sent");
            assert_eq!(poll_fn(|cx| read(&merged, cx)).await, (1, is_open));
        }
    }

    #[test]
    fn a_port_has_one_owner() {
        let sockets = open(any(), 2).expect("a free port");
        assert_eq!(sockets.len(), 2);
        let address = sockets[0].local_addr().expect("bound");
        assert_eq!(sockets[1].local_addr().expect("bound"), address);
        let error = open(address, 2).expect_err("the port is in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(sockets);
        open(address, 1).expect("the port is free again");
    }

    #[test]
    fn there_are_no_more_workers_than_a_byte_can_name() {
        let sockets = open(any(), 1000).expect("a free port");
        assert_eq!(sockets.len(), WORKERS_MAX);
        assert!(sockets.iter().all(|one| one.workers == WORKERS_MAX));
    }
}
