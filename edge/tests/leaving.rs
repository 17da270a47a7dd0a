//! An edge that does not want clients: drained by an operator, or on its way to its end; and what
//! is counted while it sends.

mod lab;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use lab::{Answer, Edge, Gate, Origin, Plan, Reply, exchange, wait_for};
use nearcast_fleet::change::{Change, Drain, DrainTarget};
use nearcast_fleet::config::{DrainLimits, NameServer};

const HOUR: Duration = Duration::from_secs(3600);

fn health(edge: &Edge) -> (u16, String) {
    let answer = edge.get("/.nearcast/health");
    (answer.status, answer.text())
}

/// Gives the fleet a name server, and these times to a lame duck.
fn steer(edge: &Edge, interval: Duration, ttl: Duration) {
    edge.fleet.send_modify(|fleet| {
        let mut changed = (**fleet).clone();
        changed.name_servers = vec![NameServer {
            name: "ns1".into(),
            host: "ns1.cdn.test".into(),
            listen: vec![],
            addresses: vec![],
            admin: "127.0.0.1:9".parse().expect("an address"),
            admin_url: "http://127.0.0.1:9".into(),
        }];
        changed.drain = DrainLimits {
            lame_duck_max: 3 * HOUR,
            finish_max: HOUR,
            ..DrainLimits::default()
        };
        changed.steering.health.interval = interval;
        changed.steering.health.timeout = Duration::ZERO;
        changed.sites[0].ttl = ttl;
        *fleet = Arc::new(changed);
    });
}

/// One request on a connection that may stay, and whether it may.
fn keep_asking(stream: &mut TcpStream) -> (String, bool) {
    ask(stream, b"GET /x HTTP/1.1\r\nHost: www.test\r\n\r\n")
}

fn ask(stream: &mut TcpStream, request: &[u8]) -> (String, bool) {
    stream.write_all(request).expect("sent");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\nx") {
        stream.read_exact(&mut byte).expect("a response");
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let stays = !head.contains("connection: close");
    (head, stays)
}

#[test]
fn a_lame_duck_serves_and_keeps_connections_while_its_health_says_no() {
    let origin = Origin::start(|_| Reply::ok("x", "max-age=60"));
    let edge = Plan::new(&origin).start();
    steer(&edge, HOUR, HOUR);
    let mut kept = edge.connect();
    assert!(keep_asking(&mut kept).1);
    edge.begin_stop();
    wait_for("the health to say so", || {
        health(&edge) == (503, "draining\n".into())
    });
    let (head, stays) = keep_asking(&mut kept);
    assert!(
        stays,
        "as long as name servers may not have seen it: {head}"
    );
    assert_eq!(edge.get("/x").status, 200, "new connections are served");
    assert_eq!(
        exchange(
            edge.admin,
            b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .expect("an answer")
        .status,
        503
    );
    assert_eq!(edge.metric("nearcast_edge_draining"), 1.0);
    edge.end_at_once();
    edge.stop()
        .expect("a second request ends it without waiting for anything");
}

#[test]
fn in_its_second_part_each_response_is_the_last_of_its_connection() {
    let origin = Origin::start(|_| Reply::ok("x", "max-age=60"));
    let edge = Plan::new(&origin).start();
    steer(&edge, Duration::ZERO, HOUR);
    // One by the edge's own hands, and one that the library reads.
    let mut own = edge.connect();
    let mut library = edge.connect();
    assert!(
        ask(
            &mut library,
            b"POST /y HTTP/1.1\r\nHost: www.test\r\nContent-Length: 1\r\n\r\nz"
        )
        .1
    );
    edge.begin_stop();
    wait_for("responses to ask clients to leave", || {
        let (_, stays) = keep_asking(&mut own);
        if stays {
            return false;
        }
        own = edge.connect();
        true
    });
    assert!(
        !keep_asking(&mut own).1,
        "also on a new connection, which is accepted"
    );
    assert!(!keep_asking(&mut library).1);
    assert_eq!(library.read(&mut [0]).expect("an orderly end"), 0);
    edge.end_at_once();
}

#[test]
fn without_steering_the_listener_closes_at_once_and_what_was_sent_is_answered() {
    let origin = Origin::start(|_| Reply::ok("x", "max-age=60"));
    let edge = Plan::new(&origin).start();
    edge.get("/x");
    let mut waiting: Vec<TcpStream> = (0..8).map(|_| edge.connect()).collect();
    edge.begin_stop();
    wait_for("the end to begin", || {
        edge.metric("nearcast_edge_draining") == 1.0
    });
    for stream in &mut waiting {
        let (head, stays) = keep_asking(stream);
        assert!(head.starts_with("http/1.1 200") && !stays, "{head}");
    }
    wait_for("the listener to close", || {
        TcpStream::connect(edge.address).is_err()
    });
    edge.stop().expect("a good end");
}

/// A transfer that the origin holds back in its middle, on an edge that is told to end with that
/// limit.
fn begin_transfer(finish_max: Duration) -> (Gate, Edge, TcpStream, Origin) {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |_| Reply::ok(vec![b'x'; 2000], "").held_at(1000, &held));
    let edge = Plan::new(&origin).start();
    edge.fleet.send_modify(|fleet| {
        let mut changed = (**fleet).clone();
        changed.drain.finish_max = finish_max;
        *fleet = Arc::new(changed);
    });
    let mut stream = edge.connect();
    stream
        .write_all(b"GET /held HTTP/1.1\r\nHost: www.test\r\n\r\n")
        .expect("sent");
    stream.read_exact(&mut [0; 15]).expect("it begins");
    edge.begin_stop();
    (gate, edge, stream, origin)
}

fn rest_of(mut stream: TcpStream) -> usize {
    let mut rest = Vec::new();
    // A cut may be a reset.
    let _ = stream.read_to_end(&mut rest);
    rest.iter().rev().take_while(|byte| **byte == b'x').count()
}

#[test]
fn a_transfer_may_take_as_long_as_the_limit_says_and_no_longer() {
    let (gate, edge, stream, _origin) = begin_transfer(HOUR);
    wait_for("the listener to close", || {
        TcpStream::connect(edge.address).is_err()
    });
    gate.open();
    assert_eq!(rest_of(stream), 2000);
    edge.stop().expect("a good end");

    let (gate, edge, stream, _origin) = begin_transfer(Duration::ZERO);
    edge.stop().expect("it waits for nobody");
    assert!(rest_of(stream) < 2000, "the rest never came");
    gate.open();
}

#[test]
fn a_drained_node_tells_health_checks_and_serves_whoever_comes() {
    let origin = Origin::start(|_| Reply::ok("x", "max-age=60"));
    let mut edge = Plan::new(&origin).start();
    let change = |target: &DrainTarget, drained| {
        Change::Drain(Drain {
            target: target.clone(),
            drained,
        })
    };
    for target in [
        DrainTarget::Node("ams-1".into()),
        DrainTarget::Cluster("ams".into()),
    ] {
        edge.entry(change(&target, true));
        assert_eq!(health(&edge), (503, "drained\n".into()), "{target:?}");
        assert_eq!(edge.metric("nearcast_edge_drained"), 1.0);
        assert!(keep_asking(&mut edge.connect()).1, "clients may stay");
        let ready = exchange(
            edge.admin,
            b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
        .expect("an answer");
        assert_eq!(ready.status, 200, "it could serve");
        edge.entry(change(&target, false));
        assert_eq!(health(&edge), (200, "ok\n".into()), "{target:?}");
    }
    edge.entry(change(&DrainTarget::Node("ams-2".into()), true));
    assert_eq!(health(&edge).0, 200, "another node");
}

#[test]
fn the_health_path_of_the_fleet_file_says_so_too_and_is_an_ordinary_one_otherwise() {
    let origin = Origin::start(|_| Reply::ok("x", "max-age=60"));
    let mut edge = Plan::new(&origin).start();
    let name_path = |edge: &Edge, path: &str| {
        edge.fleet.send_modify(|fleet| {
            let mut changed = (**fleet).clone();
            changed.steering.health.path = path.into();
            *fleet = Arc::new(changed);
        });
    };
    name_path(&edge, "/up");
    let drain = |drained| {
        Change::Drain(Drain {
            target: DrainTarget::Node("ams-1".into()),
            drained,
        })
    };
    let status = |edge: &Edge, method: &str, path: &str| {
        edge.ask(method, path, &[("Host", "www.test")]).status
    };
    // The second request of a connection goes the short way to what is stored.
    let again = |edge: &Edge| {
        let mut stream = edge.connect();
        assert!(keep_asking(&mut stream).1);
        stream
            .write_all(b"GET /up HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n")
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("a response");
        answer[9..12].to_owned()
    };
    assert_eq!(
        (status(&edge, "GET", "/up"), status(&edge, "GET", "/up")),
        (200, 200)
    );
    edge.entry(drain(true));
    wait_for("the path to be known", || {
        status(&edge, "GET", "/up") == 503
    });
    assert_eq!(again(&edge), "503");
    assert_eq!(status(&edge, "HEAD", "/up"), 503);
    assert_eq!(
        edge.ask("GET", "/up", &[("Host", "192.0.2.1:80")]).status,
        503,
        "as name servers ask"
    );
    assert_eq!(
        edge.ask(
            "GET",
            "/up",
            &[("Host", "www.test"), ("Nearcast-Peer", "x")]
        )
        .status,
        200,
        "for a client of another node"
    );
    assert_eq!(
        (
            status(&edge, "POST", "/up"),
            status(&edge, "GET", "/up/x"),
            status(&edge, "GET", "/x")
        ),
        (200, 200, 200)
    );
    assert_eq!(health(&edge), (503, "drained\n".into()));
    edge.entry(drain(false));
    assert_eq!(again(&edge), "200");
    steer(&edge, HOUR, HOUR);
    name_path(&edge, "/other");
    edge.begin_stop();
    wait_for("its end to be told", || {
        status(&edge, "GET", "/other") == 503
    });
    assert_eq!(status(&edge, "GET", "/up"), 200);
    edge.end_at_once();
}

#[test]
fn a_drained_node_has_no_clients_to_wait_for() {
    let origin = Origin::start(|_| Reply::ok("x", "max-age=60"));
    let mut edge = Plan::new(&origin).start();
    // The entry is of 1970: its clients have left.
    edge.entry(Change::Drain(Drain {
        target: DrainTarget::Node("ams-1".into()),
        drained: true,
    }));
    steer(&edge, HOUR, HOUR);
    edge.stop().expect("at once");
}

#[test]
fn bytes_count_while_they_flow() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |seen| match seen.target.as_str() {
        "/stored" => Reply::ok(vec![b'x'; 600_000], "max-age=60").held_at(300_000, &held),
        _ => Reply::ok(vec![b'x'; 600_000], "no-store").held_at(300_000, &held),
    });
    let edge = Plan::new(&origin).start();
    // One that is stored, one that is passed on, each by the edge's own hands and by the library's.
    let requests = [
        "GET /stored HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n",
        "GET /passed HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n",
        "GET /stored HTTP/1.1\r\nHost: www.test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "POST /posted HTTP/1.1\r\nHost: www.test\r\nContent-Length: 1\r\nConnection: close\r\n\r\nz",
    ];
    let address = edge.address;
    let clients: Vec<_> = requests
        .map(|request| {
            std::thread::spawn(move || exchange(address, request.as_bytes()).expect("an answer"))
        })
        .into();
    let sent = || edge.metric("nearcast_edge_response_bytes_total");
    // Up to a piece that is not there yet, all that came has gone on.
    wait_for("the bytes of the responses under way", || {
        sent() >= 4.0 * 262_144.0
    });
    assert!(sent() <= 4.0 * 300_000.0, "and no others");
    gate.open();
    for client in clients {
        let answer: Answer = client.join().expect("no panic");
        assert!(answer.whole && answer.body.len() == 600_000);
    }
    assert_eq!(sent(), 4.0 * 600_000.0, "each once");
}
