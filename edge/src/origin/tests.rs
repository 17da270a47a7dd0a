use std::net::SocketAddr;

use bytes::Bytes as Piece;
use hyper::body::Incoming;
use nearcast_fleet::units::Bytes;

use super::connect::{connect_to_one, is_forbidden};
use super::connections::{Connections, IDLE_MAX};
use super::*;
use crate::request_body::RequestBody;

#[test]
fn targets_are_read_and_anything_else_is_refused() {
    let address = |is_tls, host: &str, port| {
        Some(Address {
            is_tls,
            host: host.to_owned(),
            port,
        })
    };
    for (url, expected) in [
        ("http://origin.test", address(false, "origin.test", 80)),
        ("http://127.0.0.1:8000", address(false, "127.0.0.1", 8000)),
        ("https://origin.test", address(true, "origin.test", 443)),
        ("http://[::1]:81", address(false, "::1", 81)),
        ("gopher://x", None),
        ("origin.test", None),
    ] {
        assert_eq!(Address::parse(url), expected, "{url}");
    }
}

fn tcp(address: SocketAddr) -> Arc<Target> {
    Arc::new(Target::peer(address))
}

/// The same origin with other limits.
fn limited(target: &Target, change: impl FnOnce(&mut OriginLimits)) -> Arc<Target> {
    let mut limits = target.limits.clone();
    change(&mut limits);
    let connections = Connections::new(&limits, Arc::default());
    Arc::new(Target {
        address: target.address.clone(),
        limits,
        tls: None,
        connections,
        health: target.health.clone(),
    })
}

fn defaults() -> OriginLimits {
    OriginLimits::default()
}

fn get() -> Request<OriginRequestBody> {
    Request::get("/")
        .body(OriginRequestBody::Empty)
        .expect("valid")
}

/// An origin on this runtime that writes these bytes after each request's head and then keeps
/// silent. Time that is paused goes on only when neither side has anything to do.
async fn origin(answer: &'static [u8]) -> Arc<Target> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let target = tcp(listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                    stream.write_all(answer).await.expect("the edge reads");
                }
            });
        }
    });
    target
}

/// A listener whose queue is full: connecting to it takes for ever. The connections that fill it
/// come with it.
fn silent() -> (SocketAddr, Vec<socket2::Socket>) {
    use socket2::{Domain, Socket, Type};
    let new = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let listener = new();
    listener
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .expect("a free port");
    listener.listen(0).expect("it listens");
    let address = listener.local_addr().expect("bound");
    let mut held = vec![listener];
    loop {
        let socket = new();
        let is_taken = socket
            .connect_timeout(&address, Duration::from_millis(200))
            .is_ok();
        held.push(socket);
        if !is_taken {
            return (address.as_socket().expect("it is one"), held);
        }
    }
}

fn pool() -> Arc<OriginPool> {
    OriginPool::new(0)
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_takes_no_connection_is_given_up() {
    let (address, _held) = silent();
    let began = Instant::now();
    assert_eq!(
        pool().send(&tcp(address), get()).await.err(),
        Some(OriginError::ConnectTimeout)
    );
    assert!(
        (defaults().connect..defaults().connect * 2).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_dead_leaves_time_for_the_next() {
    let (dead, _held) = silent();
    let alive = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = alive.local_addr().expect("bound");
    // Finding the addresses has taken a part of the time.
    let deadline = Instant::now() + defaults().connect / 3;
    let stream = connect_to_one(&[dead, address], deadline)
        .await
        .expect("the second takes it");
    assert_eq!(stream.peer_addr().expect("connected"), address);
    assert!(Instant::now() < deadline);
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_does_not_begin_to_answer_is_given_up() {
    for silent_after in [
        &b""[..],
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n",
    ] {
        let target = origin(silent_after).await;
        for most in [defaults().first_byte, Duration::from_secs(900)] {
            let target = limited(&target, |limits| limits.first_byte = most);
            let began = Instant::now();
            assert_eq!(
                pool().send(&target, get()).await.err(),
                Some(OriginError::FirstByteTimeout)
            );
            assert!(
                (most..most * 2).contains(&began.elapsed()),
                "{:?}",
                began.elapsed()
            );
        }
    }
}

/// Sends a request whose body a client on this runtime writes in pieces of a byte, a second apart.
async fn upload(target: Arc<Target>, pieces: usize) -> Result<Response<OriginBody>, OriginError> {
    upload_with(
        target,
        format!("Content-Length: {pieces}"),
        vec!["x"; pieces],
        Duration::from_secs(1),
    )
    .await
}

async fn upload_with(
    target: Arc<Target>,
    framing: String,
    pieces: Vec<&'static str>,
    pause: Duration,
) -> Result<Response<OriginBody>, OriginError> {
    use tokio::io::AsyncWriteExt;
    let (mut client, server) = tokio::io::duplex(4096);
    tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n");
        client
            .write_all(head.as_bytes())
            .await
            .expect("the edge reads");
        for piece in pieces {
            tokio::time::sleep(pause).await;
            // The edge may have given up.
            let _ = client.write_all(piece.as_bytes()).await;
        }
        std::future::pending::<()>().await;
    });
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (tell, target) = (tell.clone(), target.clone());
        async move {
            let request = Request::post("/")
                .body(OriginRequestBody::client(
                    RequestBody::of_connection(request.into_body()),
                    &target.limits,
                ))
                .expect("valid");
            let _ = tell.send(pool().send(&target, request).await).await;
            Ok::<_, std::convert::Infallible>(Response::new(String::new()))
        }
    });
    let serving = tokio::spawn(
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service),
    );
    let answer = told.recv().await.expect("an outcome");
    serving.abort();
    answer
}

#[tokio::test(start_paused = true)]
async fn an_origin_may_think_as_long_as_ever_when_an_upload_took_long() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for (pieces, thinks, is_answered) in [
        (100, defaults().first_byte - Duration::from_secs(2), true),
        (100, defaults().first_byte * 2, false),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        let target = tcp(listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.ends_with(&[b'x'; 100]) {
                assert!(
                    stream.read_buf(&mut request).await.expect("readable") > 0,
                    "the whole request"
                );
            }
            tokio::time::sleep(thinks).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .await;
        });
        let began = Instant::now();
        let answer = upload(target, pieces).await;
        assert_eq!(
            answer.err(),
            (!is_answered).then_some(OriginError::FirstByteTimeout)
        );
        let took = began.elapsed() - Duration::from_secs(100);
        assert!(
            took < defaults().first_byte + Duration::from_secs(2),
            "{took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_may_be_as_long_and_pause_as_long_as_the_site_says() {
    let chunked = || "Transfer-Encoding: chunked".to_owned();
    let (short, long) = (Duration::from_secs(50), Duration::from_secs(70));
    let table = [
        (
            chunked(),
            vec!["3\r\nabc\r\n", "0\r\n\r\n"],
            short,
            3,
            defaults().request_pause,
            None,
        ),
        (
            chunked(),
            vec!["3\r\nabc\r\n", "1\r\nd\r\n"],
            short,
            3,
            defaults().request_pause,
            Some(OriginError::RequestTooLarge),
        ),
        (
            "Content-Length: 6".to_owned(),
            vec!["abc", "def"],
            short,
            6,
            defaults().request_pause,
            None,
        ),
        (
            "Content-Length: 6".to_owned(),
            vec!["abc", "def"],
            long,
            6,
            defaults().request_pause,
            Some(OriginError::RequestPause),
        ),
        (
            "Content-Length: 6".to_owned(),
            vec!["abc", "def"],
            long,
            6,
            Duration::from_secs(600),
            None,
        ),
    ];
    for (framing, pieces, pause, most, request_pause, expected) in table {
        let target = origin_after("0\r\n\r\n", "def").await;
        let target = limited(&target, |limits| {
            limits.request_bytes_max = Some(Bytes(most));
            limits.request_pause = request_pause;
        });
        let error = upload_with(target, framing.clone(), pieces, pause)
            .await
            .err();
        assert_eq!(error, expected, "{framing} {pause:?}");
    }
}

/// An origin that answers when it has read one of these ends.
async fn origin_after(end: &'static str, other: &'static str) -> Arc<Target> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let target = tcp(listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = Vec::new();
        while !request.ends_with(end.as_bytes()) && !request.ends_with(other.as_bytes()) {
            if stream.read_buf(&mut request).await.is_ok_and(|n| n == 0) {
                return;
            }
        }
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await;
    });
    target
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_pauses_too_long_within_a_body_is_given_up() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let target = origin(answer).await;
        for most in [defaults().between_bytes, Duration::from_secs(7200)] {
            let target = limited(&target, |limits| limits.between_bytes = most);
            let mut body = pool()
                .send(&target, get())
                .await
                .expect("a head")
                .into_body();
            assert_eq!(body.next().await, Ok(Some(Piece::from_static(b"hello"))));
            // A reader that takes its time is no pause of the origin's.
            assert!(futures_util::FutureExt::now_or_never(body.next()).is_none());
            tokio::time::sleep(most - Duration::from_secs(1)).await;
            let began = Instant::now();
            assert_eq!(body.next().await, Err(OriginError::BetweenBytesTimeout));
            assert_eq!(
                began.elapsed().as_secs(),
                1,
                "it was waited for all the time"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_its_time_is_no_pause_of_the_origins() {
    let target = origin(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nagain\r\n",
    )
    .await;
    let mut body = pool()
        .send(&target, get())
        .await
        .expect("a head")
        .into_body();
    for _ in 0..2 {
        assert!(body.next().await.expect("a piece").is_some());
        tokio::time::sleep(defaults().between_bytes * 3).await;
    }
    let began = Instant::now();
    assert_eq!(body.next().await, Err(OriginError::BetweenBytesTimeout));
    assert_eq!(
        began.elapsed().as_secs(),
        defaults().between_bytes.as_secs()
    );
}

#[tokio::test]
async fn a_head_may_be_as_large_as_the_site_says() {
    let fields = |count: usize, bytes: usize| {
        let field = format!("A: {}\r\n", "x".repeat(bytes));
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}\r\n",
            field.repeat(count - 1)
        )
        .leak()
        .as_bytes()
    };
    let table = [
        (fields(256, 10), defaults(), true),
        (fields(257, 10), defaults(), false),
        (fields(10, 6_000), defaults(), true),
        (fields(10, 8_000), defaults(), false),
        (
            fields(1000, 10),
            OriginLimits {
                fields_max: 1000,
                ..defaults()
            },
            true,
        ),
        (
            fields(17, 10),
            OriginLimits {
                fields_max: 16,
                ..defaults()
            },
            false,
        ),
        (
            fields(20, 40_000),
            OriginLimits {
                head_bytes_max: Bytes(1 << 20),
                ..defaults()
            },
            true,
        ),
        (
            fields(3, 2_500),
            OriginLimits {
                head_bytes_max: Bytes(4 << 10),
                ..defaults()
            },
            false,
        ),
    ];
    for (answer, limits, is_taken) in table {
        let target = limited(&*origin(answer).await, |of_target| *of_target = limits);
        let error = pool().send(&target, get()).await.err();
        assert_eq!(
            error,
            (!is_taken).then_some(OriginError::HeadTooLarge),
            "{} bytes",
            answer.len()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_is_used_again_and_closed_when_nobody_needs_it() {
    let pool = pool();
    let target = origin(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
    for _ in 0..2 {
        let mut body = pool.send(&target, get()).await.expect("a head").into_body();
        while body.next().await.expect("whole").is_some() {}
        // Its task has yet to see that it may be kept.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(target.connections.idle(), 1);
    }
    tokio::time::sleep(IDLE_MAX * 2).await;
    assert_eq!(target.connections.idle(), 0);
}

#[tokio::test]
async fn interim_responses_to_a_second_try_are_passed_on_too() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let target = tcp(listener.local_addr().expect("bound"));
    let origin = tokio::spawn(async move {
        let mut request = [0; 4096];
        // The first connection is closed when a second request has come on it.
        let (mut stream, _) = listener.accept().await.expect("a connection");
        assert!(stream.read(&mut request).await.expect("a request") > 0);
        stream.write_all(OK).await.expect("the edge reads");
        assert!(stream.read(&mut request).await.expect("the first try") > 0);
        drop(stream);
        let (mut stream, _) = listener.accept().await.expect("another connection");
        assert!(stream.read(&mut request).await.expect("the second try") > 0);
        stream
            .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
            .await
            .expect("the edge reads");
        stream.write_all(OK).await.expect("the edge reads");
    });
    let pool = pool();
    drop(pool.send(&target, get()).await.expect("a head"));
    tokio::time::timeout(Duration::from_secs(20), async {
        while target.connections.idle() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the connection is kept");
    let (mut request, seen) = (get(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let noted = seen.clone();
    hyper::ext::on_informational(&mut request, move |response| {
        noted
            .lock()
            .expect("unpoisoned")
            .push(response.status().as_u16())
    });
    assert_eq!(
        pool.send(&target, request).await.expect("a head").status(),
        200
    );
    assert_eq!(*seen.lock().expect("unpoisoned"), [103]);
    origin.await.expect("all of it came");
}

#[test]
fn names_never_lead_to_a_machines_metadata() {
    for (ip, forbidden) in [
        ("169.254.169.254", true),
        ("fe80::1", true),
        ("::ffff:169.254.169.254", true),
        ("0.0.0.0", true),
        ("127.0.0.1", false),
        ("10.0.0.1", false),
        ("203.0.113.1", false),
    ] {
        assert_eq!(
            is_forbidden(ip.parse().expect("an address")),
            forbidden,
            "{ip}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_origin_in_memory_answers_and_is_given_up_by_the_clock_alone() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (origin_tx, mut origin) = tokio::sync::mpsc::unbounded_channel();
    let pool = OriginPool::with_dialer(0, Dialer::Memory(origin_tx));
    let target = limited(&tcp(([127, 0, 0, 1], 80).into()), |limits| {
        limits.first_byte = Duration::from_secs(3600);
    });
    let send = || {
        let (pool, target) = (pool.clone(), target.clone());
        tokio::spawn(async move { pool.send(&target, get()).await.map(|r| r.status()) })
    };

    let answered = send();
    let mut connection = origin.recv().await.expect("a connection");
    let mut head = [0; 1024];
    let read = connection.read(&mut head).await.expect("the request");
    assert!(head[..read].starts_with(b"GET / HTTP/1.1\r\n"));
    let answer = b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    connection.write_all(answer).await.expect("the edge reads");
    let answered = answered.await.expect("no panic");
    assert_eq!(answered, Ok(StatusCode::NOT_FOUND));

    let began = Instant::now();
    let given_up = send();
    let _silent = origin.recv().await.expect("another connection");
    let given_up = given_up.await.expect("no panic");
    assert_eq!(given_up, Err(OriginError::FirstByteTimeout));
    assert!(began.elapsed() >= Duration::from_secs(3600));

    // No origin at all.
    drop(origin);
    let refused = send().await.expect("no panic");
    assert_eq!(refused, Err(OriginError::Refused));
}

#[tokio::test(start_paused = true)]
async fn a_request_does_not_wait_for_a_connection_without_its_client() {
    let target = origin(b"HTTP/1.1 200 OK\r\n\r\n").await;
    let target = limited(&target, |limits| limits.connections_max = 1);
    let held = target
        .connections
        .permit(Purpose::Client, Duration::ZERO)
        .await
        .expect("the first one");
    let send = |client: ClientWaits| {
        let (pool, target, mut request) = (pool(), target.clone(), get());
        request.extensions_mut().insert(client);
        tokio::spawn(async move { pool.send(&target, request).await.map(drop) })
    };
    let (waits, client) = ClientWaits::new();
    let given_up = send(client);
    let (_stays, client) = ClientWaits::new();
    let sent = send(client);
    tokio::task::yield_now().await;
    let began = Instant::now();
    drop(waits);
    let given_up = given_up.await.expect("no panic");
    assert_eq!(
        (given_up, began.elapsed()),
        (Err(OriginError::RequestBody), Duration::ZERO)
    );
    drop(held);
    assert_eq!(sent.await.expect("no panic"), Ok(()));
}
