//! What an edge says to proxies and of them: `Via`, and the connections of trusted ones.

mod lab;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::mpsc;

use lab::{Answer, Edge, Origin, Plan, Reply, read_answer, wait_for};
use nearcast_fleet::report::{RttReport, RttSample};
use socket2::{Domain, Socket, Type};

/// A request on a connection from this address.
fn get_from(edge: &Edge, from: Ipv4Addr, fields: &str) -> Answer {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let bound = SocketAddr::from((from, 0));
    socket.bind(&bound.into()).expect("a loopback address");
    socket.connect(&edge.address.into()).expect("it listens");
    let request = format!("GET / HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n{fields}\r\n");
    (&socket).write_all(request.as_bytes()).expect("sent");
    read_answer(&mut BufReader::new(socket), false).expect("the edge answers")
}

/// The samples in all reports so far.
fn samples(name_server: &Origin) -> Vec<RttSample> {
    let reports = name_server.seen().into_iter();
    reports
        .filter(|seen| seen.target.ends_with("/rtt"))
        .flat_map(|seen| {
            let report: RttReport = serde_json::from_slice(&seen.body).expect("a report");
            report.samples
        })
        .collect()
}

#[test]
fn the_time_to_a_proxy_is_not_taken_for_its_clients() {
    let origin = Origin::start(|_| Reply::ok("hello", "max-age=60"));
    let name_server = Origin::start(|_| Reply::status(204));
    let proxy = Ipv4Addr::new(127, 0, 9, 9);
    let mut plan = Plan::new(&origin);
    plan.trusted_proxies = vec!["127.0.9.9/32".parse().expect("a prefix")];
    plan.name_server = Some(name_server.address);
    let edge = plan.start();

    let answer = get_from(&edge, proxy, "X-Forwarded-For: 198.51.100.7\r\n");
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = &origin.seen()[0].fields;
    assert_eq!(seen["x-forwarded-for"], "198.51.100.7", "it is believed");
    // A report with this client has everything that was measured before.
    let client = Ipv4Addr::new(127, 0, 8, 8);
    assert_eq!(get_from(&edge, client, "").status, 200);
    let prefixes = || {
        samples(&name_server)
            .into_iter()
            .map(|sample| sample.prefix.to_string())
    };
    wait_for("the report", || {
        prefixes().any(|prefix| prefix == "127.0.8.0/24")
    });
    let found: Vec<_> = prefixes().collect();
    for prefix in ["127.0.9.0/24", "198.51.100.0/24"] {
        assert!(!found.iter().any(|other| other == prefix), "{found:?}");
    }
}

/// An origin of HTTP/1.0, and the heads of the requests that it gets.
fn old_origin() -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let (sender, heads) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(&stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|n| n > 0) {}
            let answer =
                b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nCache-Control: max-age=60\r\n\r\nok";
            if sender.send(head.to_lowercase()).is_err() || (&stream).write_all(answer).is_err() {
                return;
            }
        }
    });
    (address, heads)
}

#[test]
fn via_names_the_version_in_which_each_message_was_received() {
    let (address, heads) = old_origin();
    let unused = Origin::start(|_| Reply::status(500));
    let mut plan = Plan::new(&unused);
    plan.origin = format!("http://{address}");
    let edge = plan.start();
    for (request, to_origin) in [
        (
            "GET /a HTTP/1.0\r\nHost: www.test\r\n\r\n",
            Some("1.0 ams-1"),
        ),
        (
            "GET /a HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n",
            None,
        ),
        (
            "GET /b HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n",
            Some("1.1 ams-1"),
        ),
        (
            "DELETE /b HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n",
            Some("1.1 ams-1"),
        ),
    ] {
        let answer = edge.raw(request.as_bytes());
        assert_eq!(answer.field("via"), "1.0 ams-1", "{request:?}: {answer:?}");
        assert_eq!(answer.is_hit(), to_origin.is_none(), "{request:?}");
        if let Some(expected) = to_origin {
            let head = heads.recv().expect("a request");
            assert!(head.contains(&format!("\r\nvia: {expected}\r\n")), "{head}");
        }
    }
}
