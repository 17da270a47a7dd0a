use std::net::SocketAddr;

use bytes::Bytes;
use hyper::body::Incoming;

use super::body::BETWEEN_BYTES_MAX;
use super::connect::{connect_to_one, is_forbidden};
use super::*;

#[test]
fn targets_are_read_and_anything_else_is_refused() {
    let target = |is_tls, host: &str, port| Some(Target { is_tls, host: host.to_owned(), port });
    for (url, expected) in [
        ("http://origin.test", target(false, "origin.test", 80)),
        ("http://127.0.0.1:8000", target(false, "127.0.0.1", 8000)),
        ("https://origin.test", target(true, "origin.test", 443)),
        ("http://[::1]:81", target(false, "::1", 81)),
        ("gopher://x", None),
        ("origin.test", None),
    ] {
        assert_eq!(Target::parse(url), expected, "{url}");
    }
}

fn tcp(address: SocketAddr) -> Arc<Target> {
    Arc::new(Target { is_tls: false, host: address.ip().to_string(), port: address.port() })
}

fn get() -> Request<OriginRequestBody> {
    Request::get("/").body(OriginRequestBody::Empty).expect("valid")
}

/// An origin on this runtime that writes these bytes after each request's head and then keeps silent. Time that is
/// paused goes on only when neither side has anything to do.
async fn origin(answer: &'static [u8]) -> Arc<Target> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
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

/// A listener whose queue is full: connecting to it takes for ever. The connections that fill it come with it.
fn silent() -> (SocketAddr, Vec<socket2::Socket>) {
    use socket2::{Domain, Socket, Type};
    let new = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let listener = new();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    listener.listen(0).expect("it listens");
    let address = listener.local_addr().expect("bound");
    let mut held = vec![listener];
    loop {
        let socket = new();
        let is_taken = socket.connect_timeout(&address, Duration::from_millis(200)).is_ok();
        held.push(socket);
        if !is_taken {
            return (address.as_socket().expect("it is one"), held);
        }
    }
}

fn pool() -> Arc<OriginPool> {
    OriginPool::new(tls_config())
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_takes_no_connection_is_given_up() {
    let (address, _held) = silent();
    let began = Instant::now();
    assert_eq!(pool().send(&tcp(address), get()).await.err(), Some(OriginError::ConnectTimeout));
    assert!((CONNECT_MAX..CONNECT_MAX * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_dead_leaves_time_for_the_next() {
    let (dead, _held) = silent();
    let alive = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = alive.local_addr().expect("bound");
    // Finding the addresses has taken a part of the time.
    let deadline = Instant::now() + CONNECT_MAX / 3;
    let stream = connect_to_one(&[dead, address], deadline).await.expect("the second takes it");
    assert_eq!(stream.peer_addr().expect("connected"), address);
    assert!(Instant::now() < deadline);
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_does_not_begin_to_answer_is_given_up() {
    for silent_after in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n"] {
        let target = origin(silent_after).await;
        let began = Instant::now();
        assert_eq!(pool().send(&target, get()).await.err(), Some(OriginError::FirstByteTimeout));
        assert!((FIRST_BYTE_MAX..FIRST_BYTE_MAX * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}

/// Sends a request whose body a client on this runtime writes in pieces of a byte, a second apart.
async fn upload(target: Arc<Target>, pieces: usize) -> Result<Response<OriginBody>, OriginError> {
    use tokio::io::AsyncWriteExt;
    let (mut client, server) = tokio::io::duplex(4096);
    tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {pieces}\r\n\r\n");
        client.write_all(head.as_bytes()).await.expect("the edge reads");
        for _ in 0..pieces {
            tokio::time::sleep(Duration::from_secs(1)).await;
            client.write_all(b"x").await.expect("the edge reads");
        }
        std::future::pending::<()>().await;
    });
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (tell, target) = (tell.clone(), target.clone());
        async move {
            let request = Request::post("/").body(OriginRequestBody::client(request.into_body())).expect("valid");
            let _ = tell.send(pool().send(&target, request).await).await;
            Ok::<_, std::convert::Infallible>(Response::new(String::new()))
        }
    });
    let serving = tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service));
    let answer = told.recv().await.expect("an outcome");
    serving.abort();
    answer
}

#[tokio::test(start_paused = true)]
async fn an_origin_may_think_as_long_as_ever_when_an_upload_took_long() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for (pieces, thinks, is_answered) in [(100, FIRST_BYTE_MAX - Duration::from_secs(2), true), (100, FIRST_BYTE_MAX * 2, false)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let target = tcp(listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.ends_with(&[b'x'; 100]) {
                assert!(stream.read_buf(&mut request).await.expect("readable") > 0, "the whole request");
            }
            tokio::time::sleep(thinks).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        });
        let began = Instant::now();
        let answer = upload(target, pieces).await;
        assert_eq!(answer.err(), (!is_answered).then_some(OriginError::FirstByteTimeout));
        let took = began.elapsed() - Duration::from_secs(100);
        assert!(took < FIRST_BYTE_MAX + Duration::from_secs(2), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_pauses_too_long_within_a_body_is_given_up() {
    for answer in
        [&b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"[..], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"]
    {
        let target = origin(answer).await;
        let mut body = pool().send(&target, get()).await.expect("a head").into_body();
        assert_eq!(body.next().await, Ok(Some(Bytes::from_static(b"hello"))));
        let began = Instant::now();
        assert_eq!(body.next().await, Err(OriginError::BetweenBytesTimeout));
        assert!((BETWEEN_BYTES_MAX..BETWEEN_BYTES_MAX * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
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
        assert_eq!(pool.idle.lock().expect("unpoisoned").of_target[&target].len(), 1);
    }
    tokio::time::sleep(IDLE_MAX * 2).await;
    let idle = pool.idle.lock().expect("unpoisoned");
    assert!(idle.of_target.is_empty() && !idle.is_swept);
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
        assert_eq!(is_forbidden(ip.parse().expect("an address")), forbidden, "{ip}");
    }
}
