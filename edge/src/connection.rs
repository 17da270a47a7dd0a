//! The socket under a client's connection: time-outs for idling, for a request head and for a
//! client that does not read, an end that loses no response, and, where the HTTP library reads, a
//! gate that lets judged heads pass.
//!
//! RFC 9112 sections 9.3 (pipelining), 9.5 (time-outs) and 9.6 (tear-down).

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use nearcast_fleet::config::ClientLimits;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::connections::{IdleSince, Place};
use crate::interim::Interims;
use crate::request_head::{BodyEnd, Judged, Refusal, judge};
use crate::upgrade;

/// How long, and for how many bytes, what a client still sends is read after the last response.
const LINGER_MAX: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 256 * 1024;
/// Room that is made for a read.
const READ_BYTES_TYPICAL: usize = 2048;

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;

/// What a connection is doing, told to the socket by those who read and answer requests.
#[derive(Debug, Default)]
pub(crate) struct Phase {
    state: AtomicU8,
    is_last: AtomicBool,
    /// The HTTP library has a request whose response is not made whole.
    is_answering: AtomicBool,
    /// It was told to wait for that before it reads on.
    has_held: AtomicBool,
    pub(crate) idle_since: IdleSince,
    pub(crate) interims: Interims,
}

impl Phase {
    /// A request head was read whole.
    pub(crate) fn request_began(&self) {
        self.set(REQUEST);
    }

    /// Its response has been made whole.
    pub(crate) fn request_ended(&self) {
        self.set(IDLE);
    }

    /// Whether the connection has to end with the response to this request.
    pub(crate) fn is_last(&self) -> bool {
        self.is_last.load(Ordering::Relaxed)
    }

    fn is_answering(&self) -> bool {
        self.is_answering.load(Ordering::Relaxed)
    }

    fn answering_began(&self) {
        self.is_answering.store(true, Ordering::Relaxed);
    }

    /// The HTTP library has the whole response.
    pub(crate) fn answering_ended(&self) {
        self.is_answering.store(false, Ordering::Relaxed);
    }

    fn hold(&self) {
        self.has_held.store(true, Ordering::Relaxed);
    }

    /// Whether reading waited for a response that has ended since: nothing else wakes it.
    pub(crate) fn take_held(&self) -> bool {
        !self.is_answering() && self.has_held.swap(false, Ordering::Relaxed)
    }

    fn get(&self) -> u8 {
        self.state.load(Ordering::Relaxed)
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
    }
}

/// A client's socket with the limits named above.
#[derive(Debug)]
pub(crate) struct ClientSocket {
    /// Before the stream, as it is dropped first.
    place: Option<Place>,
    stream: TcpStream,
    phase: Arc<Phase>,
    limits: Arc<ClientLimits>,
    is_idle: bool,
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
    write_stall: Option<Pin<Box<Sleep>>>,
    /// Where the HTTP library reads. A box, as most connections never have one.
    gate: Option<Box<Gate>>,
}

impl ClientSocket {
    pub(crate) fn new(
        stream: TcpStream,
        phase: Arc<Phase>,
        limits: Arc<ClientLimits>,
        mut place: Option<Place>,
    ) -> Self {
        // The first head has to come as quickly as any other.
        phase.set(HEAD);
        let deadline = Instant::now() + limits.head_timeout;
        if let Some(place) = &mut place {
            place.enter(&stream, &phase);
        }
        Self {
            place,
            stream,
            phase,
            limits,
            is_idle: false,
            deadline,
            timer: Box::pin(tokio::time::sleep_until(deadline)),
            write_stall: None,
            gate: None,
        }
    }

    /// From here on the HTTP library reads, first of all what [`poll_fill`](Self::poll_fill) has
    /// taken.
    pub(crate) fn hand_over(&mut self, input: BytesMut) {
        let limits = self.limits.clone();
        self.gate = Some(Box::new(Gate {
            limits,
            input,
            seen: 0,
            may_pass: 0,
            is_blind: false,
            is_upgrade: false,
            refusal: None,
        }));
    }

    /// Whether the edge ends the client's side of the connection, to make room for others: requests
    /// that came before are answered.
    pub(crate) fn is_closing(&self) -> bool {
        self.place.as_ref().is_some_and(Place::is_closing)
    }

    /// What comes, where the library's reading has ended because that is a request for another
    /// protocol. From here on the library reads nothing.
    pub(crate) fn take_back(&mut self) -> Option<BytesMut> {
        self.gate
            .take_if(|gate| gate.is_upgrade)
            .map(|gate| gate.input)
    }

    /// Bytes that a request's head may have.
    pub(crate) fn head_bytes_max(&self) -> usize {
        self.limits.head_bytes_max
    }

    /// Why the library's reading has ended, where a head was refused.
    pub(crate) fn take_refusal(&mut self) -> Option<Refusal> {
        self.gate.as_mut()?.refusal.take()
    }

    /// Reads what there is, but no more than there is room for in `input`, which is not looked at;
    /// 0 at the client's end.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        let read = pin!(self.stream.read_buf(input)).poll(cx);
        match read {
            Poll::Pending => self.poll_deadline(cx).map(Err),
            Poll::Ready(Ok(length)) => {
                self.note_read(length);
                Poll::Ready(Ok(length))
            }
            failed => failed,
        }
    }

    /// That so many bytes are there which were not looked at: the first byte after a pause begins a
    /// head.
    pub(crate) fn note_read(&mut self, length: usize) {
        if length == 0 {
            return;
        }
        self.phase.idle_since.note_busy();
        if self.phase.get() == IDLE {
            self.phase.set(HEAD);
            self.is_idle = false;
            self.deadline = Instant::now() + self.limits.head_timeout;
        }
    }

    /// Ends the connection after its last response. Closing while bytes of the client's are unread
    /// would reset it, and a reset can overtake the response (RFC 9112 section 9.6): so what comes
    /// is read for a while.
    pub(crate) async fn end(mut self) -> io::Result<()> {
        self.stream.shutdown().await?;
        let mut scratch = BytesMut::with_capacity(4096);
        let mut left = LINGER_BYTES_MAX;
        let drained = async {
            while left > 0 {
                scratch.clear();
                match self.stream.read_buf(&mut scratch).await {
                    Ok(0) | Err(_) => return,
                    Ok(length) => left = left.saturating_sub(length),
                }
            }
        };
        let _ = tokio::time::timeout(LINGER_MAX, drained).await;
        Ok(())
    }

    /// While nothing can be read: whether the wait has taken too long.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let phase = self.phase.get();
        if phase == REQUEST {
            return Poll::Pending;
        }
        if phase == IDLE && !self.is_idle {
            self.is_idle = true;
            let now = Instant::now();
            self.deadline = now + self.limits.idle_timeout;
            if let Some(place) = &self.place {
                place.note_idle(&self.phase.idle_since, now);
            }
        }
        loop {
            if self.timer.as_mut().poll(cx).is_pending() {
                // A timer that is due too late is moved; one that is due early looks again then.
                if self.timer.deadline() > self.deadline {
                    let deadline = self.deadline;
                    self.timer.as_mut().reset(deadline);
                    continue;
                }
                return Poll::Pending;
            }
            if self.deadline <= Instant::now() {
                return Poll::Ready(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client sent nothing in time",
                ));
            }
            let deadline = self.deadline;
            self.timer.as_mut().reset(deadline);
        }
    }

    fn poll_through(
        &mut self,
        cx: &mut Context<'_>,
        gate: &mut Gate,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let most = gate.passes(buffer.remaining());
            if most > 0 && !gate.input.is_empty() {
                let passed = gate.input.split_to(most.min(gate.input.len()));
                buffer.put_slice(&passed);
                gate.note_passed(passed.len());
                return Poll::Ready(Ok(()));
            }
            if most > 0 {
                let before = buffer.filled().len();
                match Pin::new(&mut (&mut self.stream).take(most as u64)).poll_read(cx, buffer) {
                    Poll::Pending => return self.poll_deadline(cx).map(Err),
                    Poll::Ready(Ok(())) => {}
                    failed => return failed,
                }
                let length = buffer.filled().len() - before;
                self.note_read(length);
                gate.note_passed(length);
                return Poll::Ready(Ok(()));
            }
            let is_answering = self.phase.is_answering();
            if !is_answering {
                if gate.refusal.is_some() || gate.is_upgrade {
                    // To the library the client has ended its side.
                    return Poll::Ready(Ok(()));
                }
                self.note_read(gate.input.len());
                if gate.look() {
                    self.phase.answering_began();
                    if gate.is_blind {
                        self.phase.is_last.store(true, Ordering::Relaxed);
                    }
                    continue;
                }
                if gate.refusal.is_some() || gate.is_upgrade {
                    continue;
                }
            }
            if is_answering {
                // Bytes or none, the wait for the next head begins with the end of the response.
                self.phase.hold();
                if gate.input.len() >= gate.limits.head_bytes_max {
                    return Poll::Pending;
                }
            }
            gate.input.reserve(READ_BYTES_TYPICAL);
            match pin!(self.stream.read_buf(&mut gate.input)).poll(cx) {
                Poll::Pending => match self.poll_deadline(cx) {
                    Poll::Ready(_) if !gate.input.is_empty() => {
                        gate.refusal = Some(Refusal::too_slow())
                    }
                    late => return late.map(Err),
                },
                // The library gives up a request whose client has gone, which this one has not.
                Poll::Ready(Ok(0)) if is_answering && self.is_closing() => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(length)) => self.note_read(length),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn check_written(&mut self, cx: &mut Context<'_>, is_pending: bool) -> io::Result<()> {
        if !is_pending {
            self.write_stall = None;
            return Ok(());
        }
        let stall = self
            .write_stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.limits.write_timeout)));
        match stall.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client took nothing in time",
            )),
        }
    }
}

/// For the HTTP library, behind [`hand_over`](ClientSocket::hand_over).
impl AsyncRead for ClientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(mut gate) = this.gate.take() else {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        };
        let polled = this.poll_through(cx, &mut gate, buffer);
        this.gate = Some(gate);
        polled
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check_written(cx, polled.is_pending())?;
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.check_written(cx, polled.is_pending())?;
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// What stands between a client's bytes and the HTTP library, which reads them: a head is judged
/// first, and passed on when it is whole and no response is under way. So the library has nothing
/// to refuse, and each refusal can be an answer of the edge's own. Bodies of a known length are
/// passed on as they come; behind any other the connection ends with the response, so that no head
/// is missed.
#[derive(Debug)]
struct Gate {
    limits: Arc<ClientLimits>,
    /// Read and not yet passed on.
    input: BytesMut,
    /// Bytes of a head that were looked at and do not end it.
    seen: usize,
    /// Bytes that may be passed on, of a head and of the body behind it.
    may_pass: u64,
    /// What comes cannot be told apart.
    is_blind: bool,
    /// What comes asks for another protocol, which is not the library's to answer.
    is_upgrade: bool,
    refusal: Option<Refusal>,
}

impl Gate {
    /// How much of `room` may be filled.
    fn passes(&self, room: usize) -> usize {
        if self.is_blind {
            room
        } else {
            room.min(usize::try_from(self.may_pass).unwrap_or(usize::MAX))
        }
    }

    fn note_passed(&mut self, length: usize) {
        self.may_pass = self.may_pass.saturating_sub(length as u64);
    }

    /// Looks at the next head. `true` when there is something to pass on.
    fn look(&mut self) -> bool {
        if !ends_head(&self.input, self.seen) && self.input.len() < self.limits.head_bytes_max {
            self.seen = self.input.len();
            return false;
        }
        self.seen = 0;
        match judge(&self.input, &self.limits) {
            Judged::Incomplete => self.seen = self.input.len(),
            Judged::Refused(refusal) => self.refusal = Some(refusal),
            Judged::Whole { length, body } => {
                if body == BodyEnd::Length(0)
                    && upgrade::asked(&self.input[..length], &self.limits).is_some()
                {
                    self.is_upgrade = true;
                    return false;
                }
                match body {
                    BodyEnd::Length(body) => self.may_pass = body.saturating_add(length as u64),
                    BodyEnd::Chunked => self.is_blind = true,
                }
                return true;
            }
        }
        false
    }
}

/// Whether a head may end in what was read after the first `seen` bytes. Saves looking at a head
/// again at each byte that a slow client sends.
pub(crate) fn ends_head(input: &[u8], seen: usize) -> bool {
    seen == 0 && !input.is_empty()
        || input[seen.saturating_sub(3)..]
            .windows(3)
            .any(|w| w == b"\n\r\n" || w.ends_with(b"\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connections::Connections;
    use crate::connections::tests::close_all_idle;

    const LIMITS: ClientLimits = ClientLimits {
        head_bytes_max: 1024,
        fields_max: 8,
        head_timeout: Duration::from_secs(7),
        idle_timeout: Duration::from_secs(40),
        write_timeout: Duration::from_secs(20),
        connections_max: None,
    };

    /// A client, and the edge's end of its connection.
    async fn pair() -> (TcpStream, ClientSocket, Arc<Phase>) {
        pair_at(None).await
    }

    async fn pair_at(place: Option<Place>) -> (TcpStream, ClientSocket, Arc<Phase>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound"))
            .await
            .expect("somebody listens");
        let (accepted, _) = listener.accept().await.expect("a connection waits");
        let phase = Arc::new(Phase::default());
        (
            client,
            ClientSocket::new(accepted, phase.clone(), Arc::new(LIMITS), place),
            phase,
        )
    }

    async fn fill(socket: &mut ClientSocket) -> io::Result<usize> {
        let mut input = BytesMut::with_capacity(64);
        std::future::poll_fn(|cx| socket.poll_fill(cx, &mut input)).await
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_for_a_client_has_its_limit() {
        let (mut client, mut socket, phase) = pair().await;
        let began = Instant::now();
        client.write_all(b"GET / HT").await.expect("sent");
        assert_eq!(fill(&mut socket).await.expect("a begin"), 8);
        let error = fill(&mut socket).await.expect_err("the head never ends");
        assert_eq!(
            (error.kind(), began.elapsed().as_secs()),
            (io::ErrorKind::TimedOut, LIMITS.head_timeout.as_secs())
        );

        let (mut client, mut socket, idle) = pair().await;
        client
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .await
            .expect("sent");
        assert_eq!(fill(&mut socket).await.expect("a head"), 18);
        idle.request_began();
        let working = tokio::time::timeout(LIMITS.idle_timeout * 10, fill(&mut socket)).await;
        assert!(working.is_err(), "a request may take as long as it takes");
        idle.request_ended();
        let began = Instant::now();
        let error = fill(&mut socket).await.expect_err("nothing more comes");
        assert_eq!(
            (error.kind(), began.elapsed().as_secs()),
            (io::ErrorKind::TimedOut, LIMITS.idle_timeout.as_secs())
        );
        drop((client, phase));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (client, mut socket, _phase) = pair().await;
        let block = vec![0; 1 << 20];
        let began = Instant::now();
        let error = loop {
            match socket.write_all(&block).await {
                Ok(()) => assert!(
                    began.elapsed() < LIMITS.write_timeout,
                    "the buffers take everything"
                ),
                Err(error) => break error,
            }
        };
        assert_eq!(
            (error.kind(), began.elapsed().as_secs()),
            (io::ErrorKind::TimedOut, LIMITS.write_timeout.as_secs())
        );
        drop(client);
    }

    /// Reads through the gate as the HTTP library would, all that is let pass; and whether
    /// something was refused.
    async fn passed(phase: &Phase, socket: &mut ClientSocket) -> (Vec<u8>, bool) {
        let mut passed = Vec::new();
        while socket.read_buf(&mut passed).await.expect("a socket") > 0 {
            phase.answering_ended();
        }
        (passed, socket.take_refusal().is_some())
    }

    #[tokio::test]
    async fn heads_that_must_be_refused_do_not_pass_however_they_are_cut() {
        let table: [(&str, bool); 10] = [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", true),
            (
                "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
                true,
            ),
            (
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nX: y\r\ncONTENT-length: 3\r\n\r\nabc",
                true,
            ),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na\nb", false),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX: content-length: 3\r\n\r\n0\r\n\r\n",
                false,
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length:                                                             3\r\n\r\na\nb",
                false,
            ),
            (
                "GET / HTTP/1.1\r\nContent-Lengthy: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                false,
            ),
        ];
        for (head, refused) in table {
            // The same behind another request, with a body or without.
            let before = "GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 4\r\n\r\na\nb\n";
            for before in ["", before] {
                let all = format!("{before}{head}");
                for cut in 0..all.len() {
                    let (mut client, mut socket, phase) = pair().await;
                    socket.hand_over(BytesMut::from(&all[..cut]));
                    client
                        .write_all(&all.as_bytes()[cut..])
                        .await
                        .expect("sent");
                    client.shutdown().await.expect("sent");
                    let (passed, is_refused) = passed(&phase, &mut socket).await;
                    assert_eq!(is_refused, refused, "{all:?} cut at {cut}");
                    let expected = if refused { before } else { &all };
                    assert_eq!(String::from_utf8_lossy(&passed), expected, "cut at {cut}");
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_came_before_its_connection_is_closed_for_room_is_answered() {
        let all = Connections::new(16, 1);
        for is_closed_for_room in [false, true] {
            let place = all.admit(0, [192, 0, 2, 1].into()).expect("there is room");
            let (mut client, mut socket, phase) = pair_at(Some(place)).await;
            socket.hand_over(BytesMut::new());
            let head = b"OPTIONS * HTTP/1.1\r\n\r\n";
            client.write_all(head).await.expect("sent");
            socket.stream.readable().await.expect("it came");
            if is_closed_for_room {
                close_all_idle(&all);
            } else {
                client.shutdown().await.expect("sent");
            }
            let mut buffer = [0; 64];
            assert_eq!(socket.read(&mut buffer).await.expect("a head"), head.len());
            phase.request_began();
            let end = tokio::time::timeout(LIMITS.idle_timeout, socket.read(&mut buffer)).await;
            if is_closed_for_room {
                assert!(
                    end.is_err(),
                    "the library sees no end while the response is under way"
                );
                phase.answering_ended();
                assert!(phase.take_held(), "and looks again behind it");
                assert_eq!(socket.read(&mut buffer).await.expect("the end"), 0);
            } else {
                assert_eq!(end.expect("at once").expect("the end"), 0);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_waits_for_the_response_before_it_and_has_its_own_time() {
        let (mut client, mut socket, phase) = pair().await;
        let mut buffer = [0; 64];
        socket.hand_over(BytesMut::new());
        let head = b"GET / HTTP/1.1\r\n\r\n";
        client.write_all(&head.repeat(2)).await.expect("sent");
        client.write_all(b"GET").await.expect("sent");
        assert_eq!(socket.read(&mut buffer).await.expect("a head"), head.len());
        phase.request_began();
        assert!(
            tokio::time::timeout(LIMITS.idle_timeout * 10, socket.read(&mut buffer))
                .await
                .is_err(),
            "the next one waits"
        );
        assert!(!phase.take_held());
        phase.request_ended();
        phase.answering_ended();
        assert!(phase.take_held() && !phase.take_held());
        assert_eq!(
            socket.read(&mut buffer).await.expect("the next head"),
            head.len()
        );
        phase.answering_ended();
        let began = Instant::now();
        assert_eq!(socket.read(&mut buffer).await.expect("the end"), 0);
        assert_eq!(
            (began.elapsed().as_secs(), socket.take_refusal()),
            (LIMITS.head_timeout.as_secs(), Some(Refusal::too_slow()))
        );
    }
}
