//! HTTPS records (RFC 9460) at steered names, as an independent library reads them.

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::svcb::{SvcParamKey, SvcParamValue};
use hickory_proto::rr::{RData, RecordType};
use nearcast_fleet::config::{CertificateFiles, Fleet};

use support::{Server, query, query_with};

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const HTTPS: u16 = 65;
const ANY: u16 = 255;

/// Three clusters whose edges have two addresses each and TLS on that port, and these sites.
fn fleet(address: SocketAddr, port: u16) -> Fleet {
    let sites = vec![
        support::site("www", &["www.demo.test", "demo.test"]),
        support::site("plain", &["plain.demo.test"]),
        support::site("own", &["own.test"]),
    ];
    let zones = vec![
        support::zone("demo.test", &["odd CNAME www"]),
        support::zone("own.test", &["@ HTTPS 1 . alpn=h2 port=444"]),
    ];
    let mut fleet = support::fleet(vec![address], sites, zones);
    fleet.sites[1].https.dns_record = false;
    fleet.tls.certificates.push(CertificateFiles {
        cert: "a.pem".into(),
        key: "a.key".into(),
    });
    for (c, cluster) in fleet.clusters.iter_mut().enumerate() {
        for (n, node) in cluster.nodes.iter_mut().enumerate() {
            let v6 = format!("2001:db8:{c}::{n}");
            node.addresses.push(v6.parse().expect("an address"));
            let own = node.addresses.iter();
            node.listen_tls = own.map(|ip| SocketAddr::new(*ip, port)).collect();
        }
    }
    // Amsterdam has an edge without HTTP/3, New York one without HTTP/2.
    fleet.clusters[0].nodes[0].clients.http3 = false;
    fleet.clusters[1].nodes[0].clients.http2 = false;
    fleet
}

fn start(port: u16) -> Server {
    let address = support::free_address(std::net::Ipv4Addr::LOCALHOST);
    Server::start_fleet(fleet(address, port), address)
}

/// The client-subnet option for a /24.
fn subnet(network: [u8; 3]) -> (u16, Vec<u8>) {
    (8, [&[0, 1, 24, 0][..], &network].concat())
}

const CLIENTS: [[u8; 3]; 3] = [[198, 51, 100], [203, 0, 113], [192, 0, 2]];

fn ask(server: &Server, name: &str, qtype: u16, network: [u8; 3], recurse: bool) -> Message {
    let mut message = query_with(7, name, qtype, 0, &[subnet(network)]);
    message[2] |= u8::from(recurse);
    let answer = server.udp(&message).expect("an answer");
    Message::from_vec(&answer).expect("a message")
}

/// The answer's only HTTPS record: owner, TTL, `alpn`, `port`, and addresses.
#[derive(Debug, PartialEq)]
struct Found {
    owner: String,
    ttl: u32,
    alpn: Vec<String>,
    port: Option<u16>,
    hints: BTreeSet<IpAddr>,
}

fn found(message: &Message) -> Found {
    let mut records = message
        .answers
        .iter()
        .filter(|r| r.record_type() == RecordType::HTTPS);
    let record = records.next().expect("an HTTPS record");
    assert!(records.next().is_none(), "one record: {message:?}");
    let RData::HTTPS(data) = &record.data else {
        panic!("{record:?}")
    };
    let data = &data.0;
    assert_eq!(data.svc_priority, 1);
    assert!(data.target_name.is_root(), "{record:?}");
    let keys: Vec<SvcParamKey> = data.svc_params.iter().map(|(key, _)| *key).collect();
    assert!(keys.is_sorted(), "{keys:?}");
    let mut found = Found {
        owner: record.name.to_ascii().to_ascii_lowercase(),
        ttl: record.ttl,
        alpn: Vec::new(),
        port: None,
        hints: BTreeSet::new(),
    };
    for (_, value) in &data.svc_params {
        match value {
            SvcParamValue::Alpn(alpn) => found.alpn.clone_from(&alpn.0),
            SvcParamValue::Port(port) => found.port = Some(*port),
            SvcParamValue::Ipv4Hint(hint) => {
                found.hints.extend(hint.0.iter().map(|a| IpAddr::from(a.0)));
            }
            SvcParamValue::Ipv6Hint(hint) => {
                found.hints.extend(hint.0.iter().map(|a| IpAddr::from(a.0)));
            }
            other => panic!("{other:?}"),
        }
    }
    found
}

/// The addresses of an answer, and its scope.
fn addresses(message: &Message) -> BTreeSet<IpAddr> {
    message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::from(a.0)),
            RData::AAAA(a) => Some(IpAddr::from(a.0)),
            _ => None,
        })
        .collect()
}

fn scope(message: &Message) -> u8 {
    let edns = message.edns.as_ref().expect("EDNS");
    let option = edns.option(hickory_proto::rr::rdata::opt::EdnsCode::Subnet);
    match option {
        Some(hickory_proto::rr::rdata::opt::EdnsOption::Subnet(subnet)) => subnet.scope_prefix(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_record_has_the_addresses_ttl_and_scope_of_the_same_client() {
    let server = start(443);
    let alpn: [&[&str]; 3] = [&["h2"], &["h3"], &["h3", "h2"]];
    for (network, alpn) in CLIENTS.into_iter().zip(alpn) {
        let message = ask(&server, "www.cdn.test", HTTPS, network, false);
        let v4 = ask(&server, "www.cdn.test", A, network, false);
        let v6 = ask(&server, "www.cdn.test", AAAA, network, false);
        let found = found(&message);
        let all: BTreeSet<IpAddr> = &addresses(&v4) | &addresses(&v6);
        assert_eq!(all.len(), 4, "{network:?}");
        let expected = Found {
            owner: "www.cdn.test.".to_owned(),
            ttl: v4.answers[0].ttl,
            alpn: alpn.iter().map(|&id| id.to_owned()).collect(),
            port: None,
            hints: all,
        };
        assert_eq!(found, expected, "{network:?}");
        assert_eq!(scope(&message), scope(&v4), "{network:?}");
        assert!(scope(&message) > 0);
    }
}

#[test]
fn an_apex_has_one_and_a_cname_leads_to_one() {
    let server = start(8443);
    let apex = found(&ask(&server, "demo.test", HTTPS, CLIENTS[0], false));
    assert_eq!((apex.owner.as_str(), apex.port), ("demo.test.", Some(8443)));

    // A stub gets the whole chain, a resolver the first link, since the scope is the next name's.
    for name in ["www.demo.test", "odd.demo.test"] {
        let stub = ask(&server, name, HTTPS, CLIENTS[0], true);
        let last = found(&stub);
        assert_eq!(last.owner, "www.cdn.test.", "{name}");
        assert_eq!(last.hints, apex.hints, "{name}");
        assert!(scope(&stub) > 0);
        let resolver = ask(&server, name, HTTPS, CLIENTS[0], false);
        let is_alias = |r: &hickory_proto::rr::Record| u16::from(r.record_type()) == CNAME;
        assert!(!resolver.answers.is_empty(), "{name}");
        assert!(resolver.answers.iter().all(is_alias), "{name}");
        assert_eq!(scope(&resolver), 0);
    }
    // Without EDNS the answer is for the resolver.
    let answer = server.udp(&query(7, "www.cdn.test", HTTPS)).expect("one");
    let message = Message::from_vec(&answer).expect("a message");
    assert_eq!(found(&message).port, Some(8443));
    assert!(answer.len() <= 512);
}

#[test]
fn without_one_the_answer_is_negative_and_the_same_for_all() {
    let server = start(443);
    for network in CLIENTS {
        let message = ask(&server, "plain.cdn.test", HTTPS, network, false);
        assert!(message.answers.is_empty(), "{message:?}");
        assert_eq!(message.authorities.len(), 1);
        assert_eq!(message.authorities[0].record_type(), RecordType::SOA);
        assert_eq!(scope(&message), 0);
        let v4 = ask(&server, "plain.cdn.test", A, network, false);
        assert_eq!(addresses(&v4).len(), 2, "its addresses are there");
    }
    // Port 443 of all but one edge.
    let address = support::free_address(std::net::Ipv4Addr::LOCALHOST);
    let mut fleet = fleet(address, 443);
    fleet.clusters[2].nodes[1].listen_tls.clear();
    let server = Server::start_fleet(fleet, address);
    let message = ask(&server, "www.cdn.test", HTTPS, CLIENTS[0], false);
    assert!(message.answers.is_empty(), "{message:?}");
}

#[test]
fn a_written_record_stays_as_it_is() {
    let server = start(443);
    let message = ask(&server, "own.test", HTTPS, CLIENTS[0], false);
    let found = found(&message);
    assert_eq!(found.port, Some(444));
    assert!(found.hints.is_empty());
    assert_eq!(scope(&message), 0);
    let v4 = ask(&server, "own.test", A, CLIENTS[0], false);
    assert_eq!(addresses(&v4).len(), 2, "its addresses are steered");
}

#[test]
fn a_question_for_any_type_still_gets_hinfo() {
    let server = start(443);
    let message = ask(&server, "www.cdn.test", ANY, CLIENTS[0], false);
    let types: Vec<RecordType> = message.answers.iter().map(|r| r.record_type()).collect();
    assert_eq!(types, [RecordType::HINFO]);
}
