//! The socket under a client's connection: time-outs for an idle connection, for a request head and
//! for a client that does not read, an end that loses no response, and a gate that passes only
//! accepted heads to the HTTP library.
//!
//! Follows RFC 9112 sections 9.3 (pipelining), 9.5 (time-outs) and 9.6 (tear-down).

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use futures_util::FutureExt;
use nearcast_fleet::config::ClientLimits;
use nearcast_net::linger::{After, drain_input};
use nearcast_net::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::connections::{ConnectionSlot, Ends};
use super::http1::judge::{BodyEnd, Judged, Refusal, judge, websocket_request};
use super::phase::{Phase, Waiting};
use super::transport::Transport;

/// Bytes that are reserved for a read.
const READ_BYTES_TYPICAL: usize = 2048;

/// A client's socket with the limits named above.
#[derive(Debug)]
pub(super) struct ClientSocket {
    /// Before the stream, as it is dropped first.
    slot: Option<ConnectionSlot>,
    stream: Transport,
    phase: Arc<Phase>,
    limits: Arc<ClientLimits>,
    is_idle: bool,
    /// A head has begun, and the time for it has not: that begins with the first wait for the rest of
    /// the head, which most heads never need, so that they cost no reading of the clock.
    is_head_new: bool,
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
    write_stall: Option<Pin<Box<Sleep>>>,
    /// Where the HTTP library reads. A box, as most connections never have one.
    gate: Option<Box<HeadGate>>,
}

impl ClientSocket {
    pub(super) fn new(
        stream: Transport,
        phase: Arc<Phase>,
        limits: Arc<ClientLimits>,
        mut slot: Option<ConnectionSlot>,
    ) -> Self {
        // The time-out of heads holds for the first one too.
        phase.head_began();
        let deadline = Instant::now() + limits.head_timeout;
        if let Some(slot) = &mut slot {
            slot.enter(Ends::of(stream.tcp()), &phase);
        }
        Self {
            slot,
            stream,
            phase,
            limits,
            is_idle: false,
            is_head_new: false,
            deadline,
            timer: Box::pin(tokio::time::sleep_until(deadline)),
            write_stall: None,
            gate: None,
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.stream.is_tls()
    }

    /// Waits until the runtime knows that the socket takes bytes, or has failed.
    pub(super) async fn writable(&self) {
        // A failure shows with the next write, too.
        let _ = self.stream.tcp().writable().await;
    }

    /// Gives the connection to another protocol, with what it is doing.
    pub(super) fn into_parts(self) -> (Transport, Arc<Phase>, Option<ConnectionSlot>) {
        (self.stream, self.phase, self.slot)
    }

    /// From here on the HTTP library reads, beginning with `input`, which
    /// [`poll_fill`](Self::poll_fill) has read.
    pub(super) fn hand_over(&mut self, input: BytesMut) {
        let limits = self.limits.clone();
        self.gate = Some(Box::new(HeadGate {
            limits,
            input,
            searched: 0,
            may_pass: 0,
            is_blind: false,
            is_upgrade: false,
            refusal: None,
        }));
    }

    /// Whether the edge closes the connection to make room for others: requests that were received
    /// before are answered.
    pub(super) fn is_closing(&self) -> bool {
        self.slot.as_ref().is_some_and(ConnectionSlot::is_closing)
    }

    /// The next request's bytes, if the library's input has ended because that request asks for a
    /// WebSocket. From here on the library reads nothing.
    pub(super) fn take_back(&mut self) -> Option<BytesMut> {
        self.gate
            .take_if(|gate| gate.is_upgrade)
            .map(|gate| gate.input)
    }

    /// Bytes that a request's head may have.
    pub(super) fn head_bytes_max(&self) -> usize {
        self.limits.head_bytes_max
    }

    /// Why the library's input has ended, where a head was refused.
    pub(super) fn take_refusal(&mut self) -> Option<Refusal> {
        self.gate.as_mut()?.refusal.take()
    }

    /// Reads available bytes into the spare capacity of `input`; 0 when the client has ended its
    /// side.
    pub(super) fn poll_fill(
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

    /// Notes that so many bytes were read and not yet used: the first byte after a pause begins a
    /// head.
    pub(super) fn note_read(&mut self, length: usize) {
        if length == 0 {
            return;
        }
        self.phase.idle_since.note_busy();
        if self.phase.waiting() == Waiting::Idle {
            self.phase.head_began();
            self.is_idle = false;
            self.is_head_new = true;
        }
    }

    /// Ends the connection after its last response, which the client may not have read yet.
    pub(super) async fn end(mut self, ending: Shutdown) -> io::Result<()> {
        self.end_output().await?;
        if let Some(slot) = &self.slot {
            slot.note_lingering(&self.phase.idle_since);
        }
        drain_input(&mut self.stream, After::Response, Some(ending)).await;
        Ok(())
    }

    /// Writes what TLS still holds and its end, and ends this side. A client that takes nothing must
    /// not keep the connection.
    async fn end_output(&mut self) -> io::Result<()> {
        let limit = self.limits.write_timeout;
        tokio::time::timeout(limit, self.stream.shutdown()).await?
    }

    /// Tells the client of a TLS connection that it ends, where that is certain not to cut a
    /// response, and as far as it can be sent at once (RFC 8446 section 6.1).
    pub(super) fn close_idle(&mut self) {
        if self.stream.is_tls() && self.phase.waiting() != Waiting::Response {
            let _ = self.stream.shutdown().now_or_never();
        }
    }

    /// Called while nothing can be read. Ready when the wait has taken too long.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let waiting = self.phase.waiting();
        if waiting == Waiting::Response {
            return Poll::Pending;
        }
        if waiting == Waiting::Head && self.is_head_new {
            self.deadline = Instant::now() + self.limits.head_timeout;
        }
        self.is_head_new = false;
        if waiting == Waiting::Idle && !self.is_idle {
            self.is_idle = true;
            let now = Instant::now();
            self.deadline = now + self.limits.idle_timeout;
            if let Some(slot) = &self.slot {
                slot.note_idle(&self.phase.idle_since, now);
            }
        }

        loop {
            if self.timer.as_mut().poll(cx).is_pending() {
                // A timer that fires too late is moved; one that fires early is set again then.
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

    /// Reads for the HTTP library: bytes that the gate passes, and no others.
    fn poll_through(
        &mut self,
        cx: &mut Context<'_>,
        gate: &mut HeadGate,
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
                return self.poll_read_passed(cx, gate, buffer, most);
            }

            // The next head is judged when the response before it is complete.
            let is_answering = self.phase.is_answering();
            if !is_answering {
                if gate.ends_input() {
                    // To the library this looks as if the client had ended its side.
                    return Poll::Ready(Ok(()));
                }
                self.note_read(gate.input.len());
                if gate.judge_next() {
                    self.phase.answering_began();
                    if gate.is_blind {
                        self.phase.set_last();
                    }
                    continue;
                }
                if gate.ends_input() {
                    continue;
                }
            }
            if is_answering {
                // Whether or not there is input, the wait for the next head begins at the end of
                // the response.
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
                // The library gives up a request whose client has disconnected; this client has
                // not.
                Poll::Ready(Ok(0)) if is_answering && self.is_closing() => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(length)) => self.note_read(length),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Reads up to `most` bytes that the gate passes whatever they are.
    fn poll_read_passed(
        &mut self,
        cx: &mut Context<'_>,
        gate: &mut HeadGate,
        buffer: &mut ReadBuf<'_>,
        most: usize,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match Pin::new(&mut (&mut self.stream).take(most as u64)).poll_read(cx, buffer) {
            Poll::Pending => return self.poll_deadline(cx).map(Err),
            Poll::Ready(Ok(())) => {}
            failed => return failed,
        }
        let length = buffer.filled().len() - before;
        self.note_read(length);
        gate.note_passed(length);
        Poll::Ready(Ok(()))
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
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.check_written(cx, polled.is_pending())?;
        polled
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

/// The gate between a client's bytes and the HTTP library. It judges each head, and passes it on
/// when it is complete and no response is under way. So the library has nothing to refuse, and
/// each refusal can be an answer of the edge's own. Bodies of a known length are passed on as they
/// come. After a body of any other kind the connection ends with the response, since the gate
/// cannot find the next head.
#[derive(Debug)]
struct HeadGate {
    limits: Arc<ClientLimits>,
    /// Bytes that were read and not yet passed on.
    input: BytesMut,
    /// Bytes of a head that were searched for its end.
    searched: usize,
    /// Bytes that may be passed on, of a head and of the body after it.
    may_pass: u64,
    /// All input is passed on: the end of the body is not known.
    is_blind: bool,
    /// The next request asks for a WebSocket, which the library does not answer.
    is_upgrade: bool,
    refusal: Option<Refusal>,
}

impl HeadGate {
    /// How many bytes may be passed on into a buffer of so many.
    fn passes(&self, capacity: usize) -> usize {
        match self.is_blind {
            true => capacity,
            false => capacity.min(usize::try_from(self.may_pass).unwrap_or(usize::MAX)),
        }
    }

    fn note_passed(&mut self, length: usize) {
        self.may_pass = self.may_pass.saturating_sub(length as u64);
    }

    /// Whether the library gets no more input.
    fn ends_input(&self) -> bool {
        self.refusal.is_some() || self.is_upgrade
    }

    /// Judges the next head. `true` when there is something to pass on.
    fn judge_next(&mut self) -> bool {
        if !ends_head(&self.input, self.searched) && self.input.len() < self.limits.head_bytes_max {
            self.searched = self.input.len();
            return false;
        }
        self.searched = 0;
        match judge(&self.input, &self.limits) {
            Judged::Incomplete => self.searched = self.input.len(),
            Judged::Refused(refusal) => self.refusal = Some(refusal),
            Judged::Whole { length, body } => {
                if body == BodyEnd::Length(0)
                    && websocket_request(&self.input[..length], &self.limits).is_some()
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

/// Whether a head may end after the first `searched` bytes of the input. Saves parsing a head again
/// for each byte that a slow client sends.
pub(super) fn ends_head(input: &[u8], searched: usize) -> bool {
    searched == 0 && !input.is_empty()
        || input[searched.saturating_sub(3)..]
            .windows(3)
            .any(|w| w == b"\n\r\n" || w.ends_with(b"\n\n"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpStream;

    use super::*;
    use crate::serve::connections::Connections;
    use crate::serve::connections::tests::close_all_idle;

    const LIMITS: ClientLimits = ClientLimits {
        head_bytes_max: 1024,
        fields_max: 8,
        head_timeout: Duration::from_secs(7),
        idle_timeout: Duration::from_secs(40),
        write_timeout: Duration::from_secs(20),
        connections_max: None,
        handshake_timeout: Duration::from_secs(10),
        http2: true,
        http2_streams_max: 128,
        http3: true,
        http3_streams_max: 128,
    };

    /// A client, and the edge's end of its connection.
    async fn pair() -> (TcpStream, ClientSocket, Arc<Phase>) {
        pair_at(None).await
    }

    async fn pair_at(slot: Option<ConnectionSlot>) -> (TcpStream, ClientSocket, Arc<Phase>) {
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
            ClientSocket::new(
                Transport::Plain(accepted),
                phase.clone(),
                Arc::new(LIMITS),
                slot,
            ),
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

    /// A client of TLS, and the edge's end of its connection.
    async fn tls_pair() -> (impl AsyncRead + AsyncWrite, ClientSocket) {
        use nearcast_net::tls;
        use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
        let directory = tempfile::tempdir().expect("a directory");
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("made");
        let path = |name: &str| directory.path().join(name);
        let files = tls::PairFiles {
            cert: path("cert"),
            key: path("key"),
        };
        std::fs::write(&files.cert, made.cert.pem()).expect("written");
        std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("written");
        let mut roots = rustls::RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).expect("PEM");
        roots.add(root).expect("a root");
        let options = tls::ServerOptions {
            default_host: None,
            allows_1_2: false,
            alpn: Vec::new(),
            tickets: None,
        };
        let (store, _) = tls::Store::open(vec![files], options);
        let side = tls::ServerSide::new(Arc::new(store));

        let (client, plain, phase) = pair().await;
        let (Transport::Plain(stream), ..) = plain.into_parts() else {
            panic!("it has no TLS yet");
        };
        let client_config = tls::client_config(roots, None).expect("a client");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config));
        let name = ServerName::try_from("a.test").expect("a name");
        let (client, accepted) = tokio::join!(
            connector.connect(name, client),
            side.accept(stream, Duration::from_secs(20), None)
        );
        let stream = accepted.expect("a handshake").stream;
        let transport = Transport::Tls(Box::new(stream));
        let socket = ClientSocket::new(transport, phase, Arc::new(LIMITS), None);
        (client.expect("a handshake"), socket)
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_does_not_keep_the_end_of_tls() {
        let (client, mut socket) = tls_pair().await;
        tokio::time::pause();
        let block = vec![0; 64 << 10];
        // Until neither the system nor TLS takes any more.
        while let Some(written) = socket.write(&block).now_or_never() {
            written.expect("the client is there");
        }
        let began = Instant::now();
        let (_running, ending) = nearcast_net::shutdown::channel();
        let ended = tokio::time::timeout(LIMITS.write_timeout * 10, socket.end(ending)).await;
        let error = ended.expect("it ends").expect_err("not all was taken");
        assert_eq!(
            (error.kind(), began.elapsed().as_secs()),
            (io::ErrorKind::TimedOut, LIMITS.write_timeout.as_secs())
        );
        drop(client);
    }

    /// Reads all that passes the gate, as the HTTP library would; and whether a head was
    /// refused.
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
            let slot = all.admit(0, [192, 0, 2, 1].into()).expect("there is room");
            let (mut client, mut socket, phase) = pair_at(Some(slot)).await;
            socket.hand_over(BytesMut::new());
            let head = b"OPTIONS * HTTP/1.1\r\n\r\n";
            client.write_all(head).await.expect("sent");
            socket.stream.tcp().readable().await.expect("it came");
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

    #[test]
    fn a_head_is_found_however_it_is_cut_and_not_looked_for_again_and_again() {
        for input in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
        ] {
            for cut in 1..input.len() {
                let looks = (cut + 1..=input.len())
                    .filter(|end| ends_head(&input.as_bytes()[..*end], end - 1))
                    .count();
                assert!(ends_head(input.as_bytes(), cut), "{input:?} cut at {cut}");
                assert!(looks <= 2, "{input:?} from {cut} on");
            }
        }
        assert!(!ends_head(b"", 0) && ends_head(b"G", 0));
    }
}
