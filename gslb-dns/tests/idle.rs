//! TCP clients that do nothing, send half a query or do not read are closed after named times. Time
//! is virtual here.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use nearcast_gslb_dns::cookie::{CookieKey, CookieSecrets};
use nearcast_gslb_dns::handler::Handler;
use nearcast_gslb_dns::metrics::Metrics;
use nearcast_gslb_dns::steer::{Revision, Steering};
use nearcast_gslb_dns::transport::{Listeners, Serving};
use nearcast_gslb_dns::zone::Zones;
use nearcast_net::shutdown::ShutdownTrigger;
use support::{fleet, query, zone};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// A server on this test's own runtime, so that its time-outs are in the test's time.
fn start() -> (SocketAddr, Serving, ShutdownTrigger) {
    start_with(None)
}

fn start_with(connections_max: Option<usize>) -> (SocketAddr, Serving, ShutdownTrigger) {
    let long: Vec<String> = (0..60)
        .map(|i| format!("big TXT \"{i:02}{}\"", "x".repeat(200)))
        .collect();
    let records: Vec<&str> = long.iter().map(String::as_str).collect();
    let fleet = fleet(vec![], vec![], vec![zone("demo.test", &records)]);
    let zones = Zones::compile(&fleet, "ns1", 1).expect("it compiles");
    let (trigger, shutdown) = nearcast_net::shutdown::channel();
    let registry = prometheus::Registry::new();
    let (_tx, rx) = tokio::sync::watch::channel(Revision {
        fleet: Arc::new(fleet),
        zones: Arc::new(zones),
    });
    let secrets = CookieSecrets::new(CookieKey::of_bytes([9; 32]), None, 0);
    let handler = Arc::new(Handler {
        steering: Steering::start(rx, &registry, shutdown.clone()),
        server_id: "ns1".to_owned(),
        cookies: ArcSwap::from_pointee(secrets),
    });
    let metrics = Arc::new(Metrics::register(&registry).expect("a new registry"));
    let mut listeners =
        Listeners::open(&[SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]).expect("a free port");
    listeners.connections_max = connections_max.unwrap_or(listeners.connections_max);
    let address = listeners.addresses()[0];
    (
        address,
        listeners
            .serve(&handler, &metrics, &shutdown)
            .expect("threads"),
        trigger,
    )
}

/// The rcode of an answer; `None` from a connection that was closed.
async fn ask(stream: &mut TcpStream) -> Option<u8> {
    let message = query(7, "demo.test", 6);
    stream
        .write_all(&[&(message.len() as u16).to_be_bytes()[..], &message].concat())
        .await
        .ok()?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await.ok()?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).await.ok()?;
    Some(support::rcode(&answer))
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_ten_seconds() {
    let (address, serving, trigger) = start();
    for sent in [&b""[..], b"\x00", b"\x00\x40half a query"] {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(sent).await.expect("written");
        let start = Instant::now();
        assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
        let waited = start.elapsed();
        assert!(
            (Duration::from_millis(9500)..Duration::from_secs(11)).contains(&waited),
            "{waited:?} after {sent:?}"
        );
    }
    drop(trigger);
    serving.drain(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn when_there_is_no_room_the_one_that_waited_longest_gives_way() {
    let (address, serving, trigger) = start_with(Some(3));
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        assert_eq!(ask(&mut stream).await, Some(0));
        streams.push(stream);
    }
    assert_eq!(
        ask(&mut streams[0]).await,
        Some(0),
        "now the second has waited longest"
    );
    let mut fourth = TcpStream::connect(address).await.expect("connected");
    assert_eq!(ask(&mut fourth).await, Some(0), "there is room for it");
    assert!(
        matches!(streams[1].read(&mut [0]).await, Ok(0) | Err(_)),
        "the second gave way"
    );
    assert_eq!(ask(&mut streams[0]).await, Some(0));
    assert_eq!(ask(&mut streams[2]).await, Some(0));
    drop(trigger);
    serving.drain(Duration::from_secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_given_up() {
    let (address, serving, trigger) = start();
    let message = query(1, "big.demo.test", 16);
    let framed = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    let stream = TcpStream::connect(address).await.expect("connected");
    let (mut reader, mut writer) = stream.into_split();
    // 100,000 queries ask for more than a gigabyte: no buffer takes that.
    tokio::spawn(async move {
        for _ in 0..100_000 {
            if writer.write_all(&framed).await.is_err() {
                return;
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(30)).await;
    let mut received = Vec::new();
    let _ = reader.read_to_end(&mut received).await;
    assert!(received.len() < 100 << 20, "{} bytes", received.len());
    drop(trigger);
    serving.drain(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn clients_that_do_not_read_give_way() {
    const HELD: usize = 3;
    let (address, serving, trigger) = start_with(Some(HELD));
    let message = query(1, "big.demo.test", 16);
    let framed = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    let written = Arc::new(AtomicUsize::new(0));
    let mut held = Vec::new();
    for _ in 0..HELD {
        let (reader, mut writer) = TcpStream::connect(address)
            .await
            .expect("connected")
            .into_split();
        let (framed, written) = (framed.clone(), written.clone());
        let writing = tokio::spawn(async move {
            while writer.write_all(&framed).await.is_ok() {
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        held.push((reader, writing));
    }
    // Until no buffer takes more: then the server is inside a write on each of them.
    let (mut before, mut still) = (0, 0);
    while still < 10 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = written.load(Ordering::Relaxed);
        still = if now > 0 && now == before {
            still + 1
        } else {
            0
        };
        before = now;
    }
    // Each of these is served at once, and none of them has to go for the next.
    let mut served = Vec::new();
    for number in 0..HELD {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        assert_eq!(ask(&mut stream).await, Some(0), "client {number}");
        served.push(stream);
    }
    for (_reader, writing) in held {
        tokio::time::timeout(Duration::from_secs(30), writing)
            .await
            .expect("who does not read was closed")
            .expect("no panic");
    }
    for stream in &mut served {
        assert_eq!(ask(stream).await, Some(0), "still open");
    }
    drop(trigger);
    serving.drain(Duration::from_secs(10)).await;
}
