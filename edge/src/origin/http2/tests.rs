//! Requests to an origin in memory that speaks HTTP/2 over TLS, by paused time.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::Version;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::super::connections::{Connections, IDLE_MAX};
use super::super::tls::DefaultTls;
use super::super::*;
use super::*;

/// A request as the origin has it.
struct Asked {
    /// The number of its connection, from 0.
    connection: usize,
    head: Request<()>,
    _body: RecvStream,
    answer: SendResponse<Bytes>,
}

impl Asked {
    fn respond(mut self, response: Response<()>, body: &[u8]) {
        let mut stream = self.begin(response, body.is_empty());
        if !body.is_empty() {
            let body = Bytes::copy_from_slice(body);
            stream.send_data(body, true).expect("the stream is open");
        }
    }

    fn begin(&mut self, response: Response<()>, has_ended: bool) -> SendStream<Bytes> {
        self.answer
            .send_response(response, has_ended)
            .expect("the stream is open")
    }

    fn ok(self, body: &str) {
        self.respond(Response::new(()), body.as_bytes());
    }

    fn path(&self) -> &str {
        self.head.uri().path()
    }
}

/// What the origin selects, and permits.
#[derive(Debug, Clone, Copy)]
struct Speaks {
    http2: bool,
    streams_max: u32,
}

const HTTP2: Speaks = Speaks {
    http2: true,
    streams_max: 100,
};

/// An origin, and the edge's side of it.
struct Lab {
    pool: Arc<OriginPool>,
    target: Arc<Target>,
    asked: mpsc::UnboundedReceiver<Asked>,
    /// Connections that the origin has had.
    connections: Arc<AtomicUsize>,
    /// Ends each connection: at once, or with GOAWAY.
    ends: tokio::sync::broadcast::Sender<bool>,
    _files: tempfile::TempDir,
}

impl Lab {
    fn new(speaks: Speaks, change: impl FnOnce(&mut OriginLimits)) -> Self {
        Self::with_offer(speaks, true, change)
    }

    fn with_offer(
        speaks: Speaks,
        offers_http2: bool,
        change: impl FnOnce(&mut OriginLimits),
    ) -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let own = rcgen::generate_simple_self_signed(["o.test".to_owned()]).expect("a certificate");
        let ca = files.path().join("ca.pem");
        std::fs::write(&ca, own.cert.pem()).expect("written");
        let settings = nearcast_fleet::config::OriginTls {
            ca: Some(ca),
            identity: None,
        };
        let tls = DefaultTls::default().target(&settings, "o.test", offers_http2);
        let mut limits = OriginLimits::default();
        change(&mut limits);
        let address = Address {
            is_tls: true,
            host: "o.test".into(),
            port: 443,
        };
        let target = Arc::new(Target {
            connections: Connections::new(&limits, Arc::default()),
            health: super::super::health::Health::new(address.clone()),
            address,
            limits,
            tls: Some(tls.expect("the file is there")),
        });

        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .expect("the default ones")
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .expect("they fit");
        if speaks.http2 {
            config.alpn_protocols = vec![ALPN.to_vec()];
        }
        let (dialled_tx, mut dialled) = mpsc::unbounded_channel();
        let (asked_tx, asked) = mpsc::unbounded_channel();
        let (ends, _) = tokio::sync::broadcast::channel(8);
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, ending) = (connections.clone(), ends.clone());
        tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            while let Some(stream) = dialled.recv().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(
                    acceptor.clone(),
                    stream,
                    speaks,
                    number,
                    asked_tx.clone(),
                    ending.subscribe(),
                ));
            }
        });
        Self {
            pool: OriginPool::with_dialer(0, Dialer::Memory(dialled_tx)),
            target,
            asked,
            connections,
            ends,
            _files: files,
        }
    }

    fn send(&self, request: Request<OriginRequestBody>) -> Sent {
        let (pool, target) = (self.pool.clone(), self.target.clone());
        tokio::spawn(async move { pool.send(&target, request).await })
    }

    async fn next(&mut self) -> Asked {
        self.asked.recv().await.expect("a request")
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The next request is served on the first connection.
    async fn assert_first_connection_serves(&mut self) {
        let next = self.send(get("/next"));
        let asked = self.next().await;
        assert_eq!(asked.connection, 0);
        asked.ok("");
        assert!(text(next).await.is_ok());
    }
}

type Sent = tokio::task::JoinHandle<Result<Response<OriginBody>, OriginError>>;

/// One connection of the origin.
async fn serve(
    acceptor: tokio_rustls::TlsAcceptor,
    stream: DuplexStream,
    speaks: Speaks,
    number: usize,
    asked: mpsc::UnboundedSender<Asked>,
    mut ends: tokio::sync::broadcast::Receiver<bool>,
) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    if !speaks.http2 {
        let service = hyper::service::service_fn(|_| async {
            Ok::<_, Infallible>(Response::new("one".to_owned()))
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
        return;
    }
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(speaks.streams_max)
        .max_send_buffer_size(4 << 20)
        .handshake(stream)
        .await
        .expect("a preface");
    loop {
        let next = tokio::select! {
            next = connection.accept() => next,
            ended = ends.recv() => match ended {
                Ok(true) => {
                    connection.graceful_shutdown();
                    continue;
                }
                _ => return,
            },
        };
        let Some(Ok((request, answer))) = next else {
            return;
        };
        let (head, body) = request.into_parts();
        let asked_now = Asked {
            connection: number,
            head: Request::from_parts(head, ()),
            _body: body,
            answer,
        };
        if asked.send(asked_now).is_err() {
            return;
        }
    }
}

fn get(path: &str) -> Request<OriginRequestBody> {
    Request::get(path)
        .header("host", "o.test")
        .body(OriginRequestBody::Empty)
        .expect("valid")
}

async fn head(sent: Sent) -> Result<Response<OriginBody>, OriginError> {
    sent.await.expect("no panic")
}

async fn text(sent: Sent) -> Result<String, OriginError> {
    let mut body = head(sent).await?.into_body();
    let mut text = Vec::new();
    while let Some(piece) = body.next().await? {
        text.extend_from_slice(&piece);
    }
    Ok(String::from_utf8(text).expect("text"))
}

/// Lets all tasks do what they can without time passing.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn requests_share_one_connection_even_if_they_come_before_it_is_open() {
    let mut lab = Lab::new(HTTP2, |_| {});
    let sent: Vec<Sent> = (0..20).map(|n| lab.send(get(&format!("/{n}")))).collect();
    let mut asked = Vec::new();
    for _ in 0..20 {
        asked.push(lab.next().await);
    }
    assert_eq!(lab.connections(), 1);
    assert_eq!(lab.target.connections.http2_connections(), 1);
    // The last one first: none waits for another.
    for asked in asked.into_iter().rev() {
        let path = asked.path().to_owned();
        assert_eq!(asked.head.version(), Version::HTTP_2);
        assert_eq!(asked.head.uri().host(), Some("o.test"));
        assert!(!asked.head.headers().contains_key("host"));
        asked.ok(&path);
    }
    for (n, sent) in sent.into_iter().enumerate() {
        assert_eq!(text(sent).await, Ok(format!("/{n}")));
    }
    assert_eq!(lab.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_permits_few_streams_has_more_connections() {
    let speaks = Speaks {
        streams_max: 2,
        ..HTTP2
    };
    let mut lab = Lab::new(speaks, |_| {});
    // None is sent before the origin's limit is known.
    let sent: Vec<Sent> = (0..5).map(|_| lab.send(get("/"))).collect();
    let mut asked = Vec::new();
    for _ in 0..5 {
        asked.push(lab.next().await);
    }
    let mut by_connection = [0; 3];
    for asked in asked {
        by_connection[asked.connection] += 1;
        asked.ok("");
    }
    assert_eq!(by_connection, [2, 2, 1]);
    for sent in sent {
        assert_eq!(text(sent).await, Ok(String::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn connections_never_exceed_the_limit_of_requests() {
    let mut lab = Lab::new(HTTP2, |limits| {
        limits.connections_max = 2;
        limits.connection_wait = Duration::from_secs(1);
    });
    let held = [lab.send(get("/a")), lab.send(get("/b"))];
    let mut asked = vec![lab.next().await, lab.next().await];
    let refused = lab.send(get("/c"));
    assert_eq!(text(refused).await, Err(OriginError::ConnectionLimit));
    asked.remove(0).ok("");
    asked.remove(0).ok("");
    for held in held {
        assert_eq!(text(held).await, Ok(String::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_origin_of_http1_is_asked_as_ever_and_so_is_one_that_is_not_offered_more() {
    for (speaks, offers) in [
        (
            Speaks {
                http2: false,
                ..HTTP2
            },
            true,
        ),
        (
            Speaks {
                http2: false,
                ..HTTP2
            },
            false,
        ),
    ] {
        let lab = Lab::with_offer(speaks, offers, |_| {});
        let sent: Vec<Sent> = (0..3).map(|_| lab.send(get("/"))).collect();
        for sent in sent {
            assert_eq!(text(sent).await, Ok("one".to_owned()));
        }
        assert_eq!(lab.connections(), 3);
        settle().await;
        assert_eq!(text(lab.send(get("/"))).await, Ok("one".to_owned()));
        assert_eq!(lab.connections(), 3, "a kept connection");
    }
    // The origin wants HTTP/2 only, which is not offered.
    let lab = Lab::with_offer(HTTP2, false, |_| {});
    let refused = head(lab.send(get("/"))).await.err();
    assert!(
        matches!(refused, Some(OriginError::Terminated | OriginError::Tls(_))),
        "{refused:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_to_connect_is_shared_by_all_who_wait_for_the_connection() {
    let mut lab = Lab::new(HTTP2, |_| {});
    let (dialled_tx, mut dialled) = mpsc::unbounded_channel();
    lab.pool = OriginPool::with_dialer(0, Dialer::Memory(dialled_tx));
    let began = Instant::now();
    let sent: Vec<Sent> = (0..10).map(|_| lab.send(get("/"))).collect();
    for sent in sent {
        assert_eq!(text(sent).await, Err(OriginError::ConnectTimeout));
    }
    assert!(began.elapsed() < lab.target.limits.connect * 2);
    assert!(dialled.recv().await.is_some());
    assert!(dialled.try_recv().is_err(), "one was opened");

    // If the request that opens it is dropped, another one opens one.
    let (first, second) = (lab.send(get("/")), lab.send(get("/")));
    let _first = dialled.recv().await.expect("a connection");
    first.abort();
    let _second = dialled.recv().await.expect("another connection");
    assert_eq!(text(second).await, Err(OriginError::ConnectTimeout));
}

#[tokio::test(start_paused = true)]
async fn what_the_origin_did_not_process_is_sent_again_and_the_rest_is_not() {
    // The reset of the first try, the method, and the outcome.
    let table = [
        (Reason::REFUSED_STREAM, "GET", Ok("again")),
        // Without a body, whatever the method.
        (Reason::REFUSED_STREAM, "POST", Ok("again")),
        (Reason::INTERNAL_ERROR, "GET", Err(OriginError::Terminated)),
        (Reason::CANCEL, "POST", Err(OriginError::Terminated)),
    ];
    for (reason, method, expected) in table {
        let mut lab = Lab::new(HTTP2, |_| {});
        let mut request = get("/");
        *request.method_mut() = method.parse().expect("a method");
        let sent = lab.send(request);
        let mut first = lab.next().await;
        first.answer.send_reset(reason);
        if expected.is_ok() {
            let second = lab.next().await;
            assert_eq!(second.connection, 1, "on another connection");
            second.ok("again");
        }
        let got = text(sent).await;
        assert_eq!(got, expected.map(str::to_owned), "{reason:?} {method}");
    }
}

#[tokio::test(start_paused = true)]
async fn refused_requests_are_sent_again_a_few_times_only() {
    let mut lab = Lab::new(HTTP2, |_| {});
    let sent = lab.send(get("/"));
    for _ in 0..TRIES_MAX {
        lab.next().await.answer.send_reset(Reason::REFUSED_STREAM);
    }
    assert_eq!(text(sent).await, Err(OriginError::Unprocessed));
    settle().await;
    assert!(lab.asked.try_recv().is_err());

    // And within the budget.
    let mut tries = 0;
    for _ in 0..30 {
        let sent = lab.send(get("/"));
        while !sent.is_finished() {
            tokio::select! {
                asked = lab.asked.recv() => {
                    tries += 1;
                    asked.expect("a request").answer.send_reset(Reason::REFUSED_STREAM);
                }
                () = tokio::time::sleep(Duration::from_micros(1)) => {}
            }
        }
        assert_eq!(text(sent).await, Err(OriginError::Unprocessed));
    }
    assert!(tries < 30 * TRIES_MAX - 20, "{tries}");
}

#[tokio::test(start_paused = true)]
async fn streams_before_a_goaway_end_and_new_ones_go_elsewhere() {
    let mut lab = Lab::new(HTTP2, |_| {});
    let old = lab.send(get("/old"));
    let asked = lab.next().await;
    lab.ends.send(true).expect("a connection");
    settle().await;
    let new = lab.send(get("/new"));
    let other = lab.next().await;
    assert_eq!(other.connection, 1);
    other.ok("new");
    assert_eq!(text(new).await, Ok("new".to_owned()));
    asked.ok("old");
    assert_eq!(text(old).await, Ok("old".to_owned()));
    settle().await;
    assert_eq!(lab.target.connections.http2_connections(), 2);
    let third = lab.send(get("/third"));
    let asked = lab.next().await;
    assert_eq!(asked.connection, 1);
    asked.ok("");
    assert!(text(third).await.is_ok());
    assert_eq!(lab.target.connections.http2_connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_dies_is_replaced_for_requests_that_may_be_sent_twice() {
    for (method, is_repeated) in [("GET", true), ("POST", false)] {
        let mut lab = Lab::new(HTTP2, |_| {});
        let warm = lab.send(get("/"));
        lab.next().await.ok("");
        assert!(text(warm).await.is_ok());
        let mut request = get("/");
        *request.method_mut() = method.parse().expect("a method");
        let sent = lab.send(request);
        let _lost = lab.next().await;
        lab.ends.send(false).expect("a connection");
        if is_repeated {
            lab.next().await.ok("again");
            assert_eq!(text(sent).await, Ok("again".to_owned()));
        } else {
            assert_eq!(text(sent).await, Err(OriginError::Terminated));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn http1_is_used_when_the_origin_requires_it() {
    let mut lab = Lab::new(HTTP2, |_| {});
    let sent = lab.send(get("/"));
    let mut first = lab.next().await;
    first.answer.send_reset(Reason::HTTP_1_1_REQUIRED);
    // This origin has no HTTP/1.1, so the request fails; but it is not offered HTTP/2 again.
    assert!(text(sent).await.is_err());
    assert!(!lab.target.offers_http2());
    tokio::time::advance(Duration::from_secs(601)).await;
    assert!(lab.target.offers_http2());
}

#[tokio::test(start_paused = true)]
async fn time_outs_are_of_one_request_and_leave_the_others_alone() {
    let mut lab = Lab::new(HTTP2, |limits| limits.first_byte = Duration::from_secs(5));
    let other = lab.send(get("/other"));
    let mut asked = lab.next().await;
    let mut stream = asked.begin(Response::new(()), false);
    let mut other = head(other).await.expect("a head").into_body();

    let slow = lab.send(get("/slow"));
    let mut silent = lab.next().await;
    assert_eq!(text(slow).await, Err(OriginError::FirstByteTimeout));
    let reset = std::future::poll_fn(|cx| silent.answer.poll_reset(cx)).await;
    assert_eq!(reset.expect("a reset"), Reason::CANCEL);

    stream.send_data("a".into(), false).expect("open");
    assert_eq!(other.next().await, Ok(Some("a".into())));
    let began = Instant::now();
    assert_eq!(other.next().await, Err(OriginError::BetweenBytesTimeout));
    assert!(began.elapsed() >= OriginLimits::default().between_bytes);
    drop(other);
    // The origin answers PINGs, so the connection goes on.
    settle().await;
    lab.assert_first_connection_serves().await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_response_resets_its_stream_and_keeps_the_connection() {
    let mut lab = Lab::new(HTTP2, |limits| limits.connections_max = 1);
    let sent = lab.send(get("/"));
    let mut asked = lab.next().await;
    let mut stream = asked.begin(Response::new(()), false);
    drop(head(sent).await.expect("a head"));
    let reset = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
    assert_eq!(reset.expect("a reset"), Reason::CANCEL);
    // Before the head as well.
    let sent = lab.send(get("/"));
    let mut asked = lab.next().await;
    sent.abort();
    let reset = std::future::poll_fn(|cx| asked.answer.poll_reset(cx)).await;
    assert_eq!(reset.expect("a reset"), Reason::CANCEL);
    lab.assert_first_connection_serves().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_cut_is_never_taken_for_complete() {
    let with_length = || {
        Response::builder()
            .header("content-length", "4")
            .body(())
            .expect("valid")
    };
    for (response, reason) in [
        (Response::new(()), Reason::NO_ERROR),
        (Response::new(()), Reason::INTERNAL_ERROR),
        (with_length(), Reason::NO_ERROR),
        (with_length(), Reason::CANCEL),
    ] {
        let mut lab = Lab::new(HTTP2, |_| {});
        let sent = lab.send(get("/"));
        let mut asked = lab.next().await;
        let mut stream = asked.begin(response, false);
        stream.send_data("ab".into(), false).expect("open");
        let mut body = head(sent).await.expect("a head").into_body();
        assert_eq!(body.next().await, Ok(Some("ab".into())));
        stream.send_reset(reason);
        assert_eq!(body.next().await, Err(OriginError::Incomplete), "{reason}");
    }
    // Fewer bytes than stated, and more.
    for (data, pieces) in [("ab", 1), ("abcdef", 0)] {
        let mut lab = Lab::new(HTTP2, |_| {});
        let sent = lab.send(get("/"));
        let mut asked = lab.next().await;
        let mut stream = asked.begin(with_length(), false);
        let mut body = head(sent).await.expect("a head").into_body();
        assert_eq!(body.length(), Some(4));
        stream.send_data(data.into(), false).expect("open");
        for _ in 0..pieces {
            assert!(body.next().await.is_ok());
        }
        stream.send_data(Bytes::new(), true).expect("open");
        assert_eq!(body.next().await, Err(OriginError::Incomplete), "{data}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_blocks_nobody_and_holds_little() {
    let mut lab = Lab::new(HTTP2, |_| {});
    let mut stalled = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..STREAMS_MAX - 1 {
        let sent = lab.send(get("/stalled"));
        let mut asked = lab.next().await;
        let mut stream = asked.begin(Response::new(()), false);
        stream.reserve_capacity(8 << 20);
        stalled.push(head(sent).await.expect("a head").into_body());
        streams.push(stream);
    }
    settle().await;
    for stream in &mut streams {
        let capacity = stream.capacity();
        assert_eq!(capacity, STREAM_WINDOW as usize);
        stream
            .send_data(vec![0; capacity].into(), false)
            .expect("open");
    }
    settle().await;
    // The last stream has all of its window.
    let sent = lab.send(get("/"));
    let mut asked = lab.next().await;
    assert_eq!(asked.connection, 0);
    let mut stream = asked.begin(Response::new(()), false);
    let mut left = 4 << 20;
    let mut body = head(sent).await.expect("a head").into_body();
    let reading = tokio::spawn(async move {
        let mut bytes = 0;
        while let Some(piece) = body.next().await.expect("whole") {
            bytes += piece.len();
        }
        bytes
    });
    while left > 0 {
        stream.reserve_capacity(left);
        let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let piece = capacity.expect("open").expect("open").min(left);
        left -= piece;
        stream
            .send_data(vec![0; piece].into(), left == 0)
            .expect("open");
    }
    assert_eq!(reading.await.expect("no panic"), 4 << 20);
    drop(stalled);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_and_a_dead_one_is_found_by_ping() {
    let mut lab = Lab::new(HTTP2, |_| {});
    let sent = lab.send(get("/"));
    lab.next().await.ok("");
    assert!(text(sent).await.is_ok());
    assert_eq!(lab.target.connections.http2_connections(), 1);
    tokio::time::sleep(IDLE_MAX * 2).await;
    assert_eq!(lab.target.connections.http2_connections(), 0);

    // A connection on which nothing comes any more.
    let (dialled_tx, mut dialled) = mpsc::unbounded_channel();
    let dialer = std::mem::replace(
        &mut lab.pool,
        OriginPool::with_dialer(0, Dialer::Memory(dialled_tx)),
    );
    let sent = lab.send(get("/"));
    let (near, mut far) = (dialled.recv().await.expect("a connection"), {
        let Dialer::Memory(origin) = &dialer.dialer else {
            unreachable!("it is one")
        };
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        origin.send(theirs).expect("the origin runs");
        ours
    });
    let mut near = near;
    let relay = tokio::spawn(async move {
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    });
    let mut asked = lab.next().await;
    let _stream = asked.begin(Response::new(()), false);
    let mut body = head(sent).await.expect("a head").into_body();
    let began = Instant::now();
    // It holds both ends open.
    let frozen = Arc::new(relay);
    frozen.abort();
    assert_eq!(body.next().await, Err(OriginError::Incomplete));
    assert!(began.elapsed() <= PING_INTERVAL + PING_TIMEOUT);
}

#[tokio::test]
async fn heads_are_limited_and_checked() {
    let fields = |count: usize, bytes: usize| {
        let mut response = Response::new(());
        for n in 0..count {
            let name = http::HeaderName::try_from(format!("a{n}")).expect("a name");
            let value = http::HeaderValue::try_from("x".repeat(bytes)).expect("a value");
            response.headers_mut().insert(name, value);
        }
        response
    };
    let with = |name: &'static str, value: &'static str| {
        let mut response = Response::new(());
        response
            .headers_mut()
            .insert(name, http::HeaderValue::from_static(value));
        response
    };
    let table = [
        (fields(256, 10), None),
        (fields(257, 10), Some(OriginError::HeadTooLarge)),
        (fields(10, 6_000), None),
        (fields(10, 7_000), Some(OriginError::HeadTooLarge)),
        // Far more than is received at all.
        (fields(200, 4_000), Some(OriginError::Protocol)),
        (with("a", " b"), Some(OriginError::Protocol)),
        (with("a", "b\t"), Some(OriginError::Protocol)),
        (with("a", "b c"), None),
        (with("a", ""), None),
    ];
    for (response, expected) in table {
        let mut lab = Lab::new(HTTP2, |_| {});
        let described = format!("{:.80}", format!("{:?}", response.headers()));
        let sent = lab.send(get("/"));
        lab.next().await.respond(response, b"");
        assert_eq!(text(sent).await.err(), expected, "{described}");
    }
}

#[tokio::test(start_paused = true)]
async fn interim_responses_are_passed_on_and_trailers_dropped() {
    let interims = Arc::default();
    let (sender, receiver) = crate::interim::channel(&interims);
    let mut request = get("/");
    sender.follow(&mut request);
    let mut lab = Lab::new(HTTP2, |_| {});
    let sent = lab.send(request);
    let mut asked = lab.next().await;
    let hints = Response::builder()
        .status(103)
        .header("link", "</a>")
        .body(())
        .expect("valid");
    asked.answer.send_informational(hints).expect("open");
    let mut stream = asked.begin(Response::new(()), false);
    stream.send_data("a".into(), false).expect("open");
    stream
        .send_trailers(http::HeaderMap::from_iter([(
            http::HeaderName::from_static("a"),
            http::HeaderValue::from_static("b"),
        )]))
        .expect("open");
    assert_eq!(text(sent).await, Ok("a".to_owned()));
    let (status, fields) = receiver.take().expect("it was passed on");
    assert_eq!(
        (status.as_u16(), fields["link"].as_bytes()),
        (103, &b"</a>"[..])
    );
}
