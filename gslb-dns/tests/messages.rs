//! Messages as bytes: what is answered to every kind of probe, and what is not answered at all.

mod support;

use std::net::Ipv4Addr;
use std::time::Duration;

use support::{
    Server, add_opt, count, demo_zone, fleet, free_address, query, query_with, rcode, site, zone,
};

const ECS: u16 = 8;
const NSID: u16 = 3;
const COOKIE: u16 = 10;
const KEEPALIVE: u16 = 11;
const PADDING: u16 = 12;
const EDE: u16 = 15;
const ZONEVERSION: u16 = 19;

/// The OPT record at the end of a response.
struct Opt {
    rcode: u8,
    version: u8,
    flags: u16,
    options: Vec<(u16, Vec<u8>)>,
}

fn opt(message: &[u8]) -> Option<Opt> {
    // hickory-proto refuses family 0, which RFC 7871 section 7.1.2 has for a withheld subnet.
    if !message.windows(8).any(|w| w == [0, 8, 0, 4, 0, 0, 0, 0]) {
        let parsed = hickory_proto::op::Message::from_vec(message)
            .unwrap_or_else(|e| panic!("{e}: {message:?}"));
        parsed.edns.as_ref()?;
    }
    // OPT is the last record here, and its owner is the root: find its fixed part from the end.
    let at = (12..message.len() - 10).rev().find(|&at| {
        message[at..at + 3] == [0, 0, 41]
            && at + 11 + usize::from(u16::from_be_bytes([message[at + 9], message[at + 10]]))
                == message.len()
    })?;
    let mut options = Vec::new();
    let mut rest = &message[at + 11..];
    while !rest.is_empty() {
        let len = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        options.push((
            u16::from_be_bytes([rest[0], rest[1]]),
            rest[4..4 + len].to_vec(),
        ));
        rest = &rest[4 + len..];
    }
    let flags = u16::from_be_bytes([message[at + 7], message[at + 8]]);
    Some(Opt {
        rcode: message[at + 5],
        version: message[at + 6],
        flags,
        options,
    })
}

fn option(message: &[u8], code: u16) -> Option<Vec<u8>> {
    opt(message)?
        .options
        .into_iter()
        .find(|o| o.0 == code)
        .map(|o| o.1)
}

#[test]
fn every_probe_of_the_edns_and_flag_matrix_gets_its_answer() {
    let server = Server::start();
    let plain = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut m = query(7, "mail.demo.test", 1);
        edit(&mut m);
        m
    };
    let unknown = (65_000, vec![1, 2, 3]);
    // What is sent, rcode (low bits), extended rcode in OPT when there is to be one, answers.
    type Probe = (&'static str, Vec<u8>, u8, Option<u8>, u16);
    let rows: Vec<Probe> = vec![
        ("plain", plain(&|_| {}), 0, None, 1),
        ("unknown type", query(7, "mail.demo.test", 1000), 0, None, 0),
        ("RD", plain(&|m| m[2] |= 1), 0, None, 1),
        ("AD", plain(&|m| m[3] |= 0x20), 0, None, 1),
        ("CD", plain(&|m| m[3] |= 0x10), 0, None, 1),
        ("Z", plain(&|m| m[3] |= 0x40), 0, None, 1),
        (
            "AA, TC, RA",
            plain(&|m| {
                m[2] |= 6;
                m[3] |= 0x80;
            }),
            0,
            None,
            1,
        ),
        (
            "EDNS",
            query_with(7, "mail.demo.test", 1, 0, &[]),
            0,
            Some(0),
            1,
        ),
        (
            "EDNS and an unknown option",
            query_with(7, "mail.demo.test", 1, 0, std::slice::from_ref(&unknown)),
            0,
            Some(0),
            1,
        ),
        (
            "EDNS and padding",
            query_with(7, "mail.demo.test", 1, 0, &[(PADDING, vec![0; 20])]),
            0,
            Some(0),
            1,
        ),
        (
            "EDNS version 1",
            query_with(7, "mail.demo.test", 1, 1, &[]),
            0,
            Some(1),
            0,
        ),
        (
            "EDNS version 1 and an option",
            query_with(7, "mail.demo.test", 1, 1, std::slice::from_ref(&unknown)),
            0,
            Some(1),
            0,
        ),
        (
            "EDNS version 1 and an option we would refuse",
            query_with(7, "mail.demo.test", 1, 1, &[(ECS, vec![0])]),
            0,
            Some(1),
            0,
        ),
        (
            "EDNS and unknown flags",
            {
                let mut m = query_with(7, "mail.demo.test", 1, 0, &[]);
                let at = m.len() - 3;
                m[at] = 0x40;
                m
            },
            0,
            Some(0),
            1,
        ),
        (
            "a small EDNS size counts as 512",
            {
                let mut m = query(7, "mail.demo.test", 1);
                add_opt(&mut m, 0, 10, &[]);
                m
            },
            0,
            Some(0),
            1,
        ),
        (
            "two OPT records",
            {
                let mut m = query_with(7, "mail.demo.test", 1, 0, &[]);
                add_opt(&mut m, 0, 1232, &[]);
                m
            },
            1,
            Some(0),
            0,
        ),
        (
            "OPT as answer",
            {
                let mut m = query_with(7, "mail.demo.test", 1, 0, &[]);
                m[11] = 0;
                m[7] = 1;
                m
            },
            1,
            None,
            0,
        ),
        (
            "OPT not owned by the root",
            {
                let mut m = query(7, "mail.demo.test", 1);
                m[11] = 1;
                m.extend_from_slice(&[1, b'x', 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
                m
            },
            1,
            None,
            0,
        ),
        (
            "an option cut short",
            {
                let mut m = query_with(7, "mail.demo.test", 1, 0, &[(65_000, vec![0; 4])]);
                let at = m.len() - 5;
                m[at] = 9;
                m
            },
            1,
            Some(0),
            0,
        ),
        ("IQUERY", plain(&|m| m[2] |= 1 << 3), 4, None, 0),
        ("STATUS", plain(&|m| m[2] |= 2 << 3), 4, None, 0),
        ("opcode 15", plain(&|m| m[2] |= 15 << 3), 4, None, 0),
        (
            "DSO",
            {
                let mut m = vec![0, 7, 6 << 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                m.extend_from_slice(&[0, 1, 0, 4, 0, 0, 58, 152]);
                m
            },
            4,
            None,
            0,
        ),
        (
            "NOTIFY",
            {
                let mut m = query(7, "demo.test", 6);
                m[2] |= 4 << 3;
                m
            },
            5,
            None,
            0,
        ),
        (
            "UPDATE",
            {
                let mut m = query(7, "demo.test", 6);
                m[2] |= 5 << 3;
                m
            },
            5,
            None,
            0,
        ),
        (
            "a signed UPDATE with a prerequisite and a change",
            {
                let mut m = query(7, "demo.test", 6);
                m[2] |= 5 << 3;
                // One of each: prerequisite "in use", a deletion, TSIG.
                (m[7], m[9], m[11]) = (1, 1, 1);
                m.extend_from_slice(&[0xc0, 12, 0, 255, 0, 255, 0, 0, 0, 0, 0, 0]);
                m.extend_from_slice(&[0xc0, 12, 0, 1, 0, 254, 0, 0, 0, 0, 0, 4, 192, 0, 2, 1]);
                m.extend_from_slice(&[1, b'k', 0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 2, 0, 0]);
                m
            },
            5,
            None,
            0,
        ),
        ("AXFR over UDP", query(7, "demo.test", 252), 5, None, 0),
        ("IXFR", query(7, "demo.test", 251), 5, None, 0),
        ("MAILB", query(7, "demo.test", 253), 4, None, 0),
        (
            "no question",
            {
                let mut m = query(7, "x", 1);
                m.truncate(12);
                m[5] = 0;
                m
            },
            1,
            None,
            0,
        ),
        ("two questions", plain(&|m| m[5] = 2), 1, None, 0),
        ("bytes after the end", plain(&|m| m.push(0)), 1, None, 0),
        (
            "a question cut short",
            plain(&|m| m.truncate(20)),
            1,
            None,
            0,
        ),
        (
            "a compressed question",
            vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1],
            1,
            None,
            0,
        ),
        (
            "a label of 64 bytes",
            {
                let mut m = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 64];
                m.extend_from_slice(&[b'x'; 64]);
                m.extend_from_slice(&[0, 0, 1, 0, 1]);
                m
            },
            1,
            None,
            0,
        ),
        (
            "class HS",
            plain(&|m| {
                let at = m.len() - 1;
                m[at] = 4;
            }),
            5,
            None,
            0,
        ),
        (
            "class ANY",
            plain(&|m| {
                let at = m.len() - 1;
                m[at] = 255;
            }),
            5,
            None,
            0,
        ),
        (
            "TSIG with a key nobody knows",
            {
                let mut m = query(7, "mail.demo.test", 1);
                m[11] = 1;
                m.extend_from_slice(&[0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 0]);
                m
            },
            9,
            None,
            0,
        ),
    ];
    for (what, message, expected, extended, answers) in rows {
        for answer in [
            server
                .udp(&message)
                .unwrap_or_else(|| panic!("{what}: no answer")),
            server.tcp(std::slice::from_ref(&message), 1).remove(0),
        ] {
            assert_eq!(answer[..2], [0, 7], "{what}: the id comes back");
            assert_eq!(rcode(&answer), expected, "{what}");
            assert_eq!(answer[2] & 0x80, 0x80, "{what}: QR");
            assert_eq!(
                answer[2] & 0x79,
                message[2] & 0x79,
                "{what}: opcode and RD come back"
            );
            assert_eq!(
                answer[3] & 0xf0,
                message[3] & 0x10,
                "{what}: CD comes back, RA, Z and AD are clear"
            );
            assert_eq!(count(&answer, 6), answers, "{what}");
            let edns = opt(&answer);
            assert_eq!(
                edns.as_ref().map(|e| (e.rcode, e.version)),
                extended.map(|e| (e, 0)),
                "{what}: OPT comes with OPT, version 0"
            );
        }
    }
}

/// A query with one additional record whose owner is these bytes.
fn with_owner(owner: &[u8]) -> Vec<u8> {
    let mut message = query(7, "mail.demo.test", 1);
    message[11] = 1;
    message.extend_from_slice(owner);
    message.extend_from_slice(&[0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    message
}

#[test]
fn compression_pointers_only_point_back_and_are_never_a_loop() {
    let server = Server::start();
    let here = query(7, "mail.demo.test", 1).len() as u8;
    for (what, owner, expected) in [
        ("back to the question", vec![0xc0, 12], 0),
        ("a label, then back", vec![1, b'x', 0xc0, 17], 0),
        ("to itself", vec![0xc0, here], 1),
        ("forward", vec![0xc0, here + 5], 1),
        ("into the header", vec![0xc0, 4], 1),
        ("far outside", vec![0xff, 0xff], 1),
        ("a loop through a label", vec![1, b'x', 0xc0, here], 1),
        ("a reserved label type", vec![0x80, 1], 1),
        ("half a pointer at the end", vec![0xc0], 1),
    ] {
        let answer = server
            .udp(&with_owner(&owner))
            .unwrap_or_else(|| panic!("{what}: no answer"));
        assert_eq!(rcode(&answer), expected, "{what}");
    }
}

#[test]
fn when_nothing_is_up_the_answer_says_so_and_still_has_addresses() {
    let address = free_address(Ipv4Addr::LOCALHOST);
    let mut dead = fleet(
        vec![address],
        vec![site("www", &["www.demo.test"])],
        vec![demo_zone()],
    );
    dead.clusters
        .iter_mut()
        .flat_map(|c| &mut c.nodes)
        .for_each(|node| node.service = support::nobody());
    let server = Server::start_fleet(dead, address);
    let asked = query_with(
        1,
        "www.cdn.test",
        1,
        0,
        &[(ECS, vec![0, 1, 24, 0, 198, 51, 100])],
    );
    for _ in 0..200 {
        let answer = server.udp(&asked).expect("an answer");
        // Between the first checks of the two edges, one of them alone is known to be down.
        assert!(rcode(&answer) == 0 && (1..=2).contains(&count(&answer, 6)));
        if option(&answer, EDE) == Some(vec![0, 22]) {
            assert_eq!(count(&answer, 6), 2);
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("no extended error");
}

#[test]
fn responses_and_stumps_get_no_answer() {
    let server = Server::start();
    let mut response = query(1, "mail.demo.test", 1);
    response[2] |= 0x80;
    for (what, message) in [
        ("a response", response),
        ("11 bytes", vec![0; 11]),
        ("one byte", vec![0]),
        ("nothing", Vec::new()),
    ] {
        assert!(server.ignores(&message), "{what}");
    }
    // The same before a good query on one connection.
    let answers = server.tcp(&[vec![0; 11], Vec::new(), query(9, "mail.demo.test", 1)], 1);
    assert_eq!(answers[0][..2], [0, 9]);
}

#[test]
fn a_message_longer_than_any_query_is_a_format_error_and_the_next_is_answered() {
    let server = Server::start();
    let long = |bytes: usize| {
        let mut message = query(7, "mail.demo.test", 1);
        // A record of no meaning fills it up, so that only its length is wrong.
        message[11] = 1;
        let filler = bytes - message.len() - 11;
        message.extend_from_slice(&[0, 255, 0, 0, 1, 0, 0, 0, 0]);
        message.extend_from_slice(&(filler as u16).to_be_bytes());
        message.resize(bytes, 0);
        message
    };
    let most = nearcast_gslb_dns::message::QUERY_BYTES_MAX;
    for (bytes, expected) in [
        (most, 0),
        (most + 1, 1),
        (most + 2, 1),
        (20_000, 1),
        (60_000, 1),
    ] {
        let message = long(bytes);
        let udp = server
            .udp(&message)
            .unwrap_or_else(|| panic!("{bytes} bytes: no answer"));
        let tcp = server.tcp(
            &[
                message.clone(),
                query(8, "mail.demo.test", 1),
                message.clone(),
                query(9, "mail.demo.test", 1),
            ],
            4,
        );
        assert_eq!(
            tcp.iter().map(|a| a[1]).collect::<Vec<_>>(),
            [7, 8, 7, 9],
            "{bytes} bytes: all are answered"
        );
        for answer in [&udp, &tcp[0], &tcp[2]] {
            assert_eq!(
                (rcode(answer), &answer[12..32]),
                (expected, &message[12..32]),
                "{bytes} bytes"
            );
        }
        for answer in [&tcp[1], &tcp[3]] {
            assert_eq!(
                (rcode(answer), count(answer, 6)),
                (0, 1),
                "{bytes} bytes before it"
            );
        }
    }
}

#[test]
fn dnssec_ok_is_copied_and_brings_no_records_without_signatures() {
    let server = Server::start();
    let mut message = query_with(1, "mail.demo.test", 1, 0, &[]);
    let at = message.len() - 4;
    message[at] = 0x80;
    let answer = server.udp(&message).expect("an answer");
    assert_eq!(opt(&answer).expect("OPT").flags, 0x8000);
    assert_eq!(
        (count(&answer, 6), count(&answer, 8), count(&answer, 10)),
        (1, 0, 1)
    );
}

#[test]
fn letter_case_does_not_matter_and_comes_back_as_it_was_sent() {
    let server = Server::start();
    for name in ["mAiL.DeMo.TeSt", "WWW.cdn.TEST"] {
        let message = query(1, name, 1);
        let answer = server.udp(&message).expect("an answer");
        assert_eq!(
            answer[12..message.len()],
            message[12..],
            "the question as sent"
        );
        assert!(count(&answer, 6) >= 1);
        assert_eq!(
            answer[message.len()..message.len() + 2],
            [0xc0, 12],
            "the owner is the question's name"
        );
    }
    let text = server.dig(&["mixed.demo.test", "TXT", "+short"]);
    assert_eq!(text.trim(), "\"case\"");
}

#[test]
fn a_client_subnet_that_breaks_the_rules_is_a_format_error() {
    let server = Server::start();
    let rows: &[(&[u8], u8)] = &[
        (&[0, 1, 24, 0, 198, 51, 100], 0),
        (&[0, 1, 0, 0], 0),
        (&[0, 1, 32, 0, 198, 51, 100, 7], 0),
        (&[0, 1, 20, 0, 198, 51, 96], 0),
        (&[0, 2, 48, 0, 0x20, 1, 0xd, 0xb8, 0, 1], 0),
        (&[0, 0, 0, 0], 0),
        // Stray bits after the prefix.
        (&[0, 1, 20, 0, 198, 51, 97], 1),
        // Too many and too few octets.
        (&[0, 1, 24, 0, 198, 51, 100, 0], 1),
        (&[0, 1, 24, 0, 198, 51], 1),
        (&[0, 1, 0, 0, 0], 1),
        // A scope in a query.
        (&[0, 1, 24, 1, 198, 51, 100], 1),
        // Longer than the family.
        (&[0, 1, 33, 0, 198, 51, 100, 7, 0], 1),
        (
            &[
                0, 2, 129, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
            1,
        ),
        // Unknown families.
        (&[0, 3, 0, 0], 1),
        (&[0, 0, 8, 0, 1], 1),
        // Not even a head.
        (&[0, 1, 0], 1),
        (&[], 1),
    ];
    for (data, expected) in rows {
        let answer = server
            .udp(&query_with(
                1,
                "www.cdn.test",
                1,
                0,
                &[(ECS, data.to_vec())],
            ))
            .expect("an answer");
        assert_eq!(rcode(&answer), *expected, "{data:?}");
        let returned = option(&answer, ECS);
        if *expected == 0 {
            let returned = returned.unwrap_or_else(|| panic!("{data:?}: the option comes back"));
            assert_eq!(
                (&returned[..3], &returned[4..]),
                (&data[..3], &data[4..]),
                "family, source and address are copied"
            );
            assert!(
                data[2] != 0 || returned[3] == 0,
                "a withheld subnet gets scope 0"
            );
        } else {
            assert_eq!(returned, None, "{data:?}");
        }
    }
    let twice = vec![(ECS, vec![0, 1, 8, 0, 10]), (ECS, vec![0, 1, 8, 0, 11])];
    assert_eq!(
        rcode(
            &server
                .udp(&query_with(1, "www.cdn.test", 1, 0, &twice))
                .expect("an answer")
        ),
        1
    );
}

#[test]
fn a_client_subnet_is_returned_only_when_asked_and_with_scope_0_where_all_get_the_same() {
    let server = Server::start();
    assert_eq!(
        option(
            &server
                .udp(&query_with(1, "www.cdn.test", 1, 0, &[]))
                .expect("an answer"),
            ECS
        ),
        None
    );
    let subnet = vec![(ECS, vec![0, 1, 24, 0, 198, 51, 100])];
    for (name, qtype, scope) in [
        ("mail.demo.test", 1, Some(0)),
        ("nowhere.demo.test", 1, Some(0)),
        ("www.cdn.test", 28, Some(0)),
        ("www.cdn.test", 16, Some(0)),
        ("example.com", 1, None),
    ] {
        let answer = server
            .udp(&query_with(1, name, qtype, 0, &subnet))
            .expect("an answer");
        assert_eq!(option(&answer, ECS).map(|o| o[3]), scope, "{name} {qtype}");
    }
    let tailored = server
        .udp(&query_with(1, "www.cdn.test", 1, 0, &subnet))
        .expect("an answer");
    assert_ne!(
        option(&tailored, ECS).expect("the option")[3],
        0,
        "addresses hold for some clients only"
    );
}

#[test]
fn cookies_are_made_recognised_and_checked() {
    let server = Server::start();
    let ask = |data: Vec<u8>| {
        server
            .udp(&query_with(1, "mail.demo.test", 1, 0, &[(COOKIE, data)]))
            .expect("an answer")
    };
    let first = option(&ask(vec![1; 8]), COOKIE).expect("a cookie");
    assert_eq!(
        (first.len(), &first[..8], first[8]),
        (24, &[1; 8][..], 1),
        "client cookie, version 1"
    );
    assert_eq!(
        option(&ask(first.clone()), COOKIE).expect("a cookie"),
        first,
        "a recent cookie is kept"
    );
    let mut forged = first.clone();
    forged[23] ^= 1;
    let renewed = option(&ask(forged.clone()), COOKIE).expect("a cookie");
    assert_ne!(renewed, forged, "a wrong cookie is replaced");
    for len in [0, 7, 9, 15, 41] {
        assert_eq!(rcode(&ask(vec![1; len])), 1, "a cookie of {len} bytes");
    }
    for len in [16, 40] {
        assert_eq!(
            rcode(&ask(vec![1; len])),
            0,
            "a cookie of another server's length {len}"
        );
    }
    // RFC 7873 section 5.4: a cookie without a question.
    let mut bare = vec![0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    add_opt(&mut bare, 0, 1232, &[(COOKIE, vec![2; 8])]);
    let answer = server.udp(&bare).expect("an answer");
    assert_eq!(
        (rcode(&answer), option(&answer, COOKIE).map(|c| c.len())),
        (0, Some(24))
    );
}

#[test]
fn server_identity_zone_version_and_keepalive_come_on_request() {
    let server = Server::start();
    let asked = query_with(
        1,
        "mail.demo.test",
        1,
        0,
        &[
            (NSID, Vec::new()),
            (KEEPALIVE, Vec::new()),
            (ZONEVERSION, Vec::new()),
        ],
    );
    let udp = server.udp(&asked).expect("an answer");
    assert_eq!(option(&udp, NSID), Some(b"ns1".to_vec()));
    assert_eq!(option(&udp, KEEPALIVE), None, "never over UDP (RFC 7828)");
    let version = option(&udp, ZONEVERSION).expect("a zone version");
    assert_eq!(
        (version.len(), version[0], version[1]),
        (6, 2, 0),
        "two labels of the apex, SOA serial"
    );
    let soa = server.dig(&["demo.test", "SOA", "+short"]);
    let serial: u32 = soa
        .split(' ')
        .nth(2)
        .expect("a serial")
        .parse()
        .expect("a number");
    assert_eq!(version[2..], serial.to_be_bytes());
    assert!(
        soa.starts_with("ns1.cdn.test. host\\.master.cdn.test. "),
        "{soa}"
    );
    let tcp = server.tcp(&[asked], 1).remove(0);
    assert_eq!(
        option(&tcp, KEEPALIVE),
        Some(100_u16.to_be_bytes().to_vec()),
        "10 s in units of 100 ms"
    );
    let silent = server
        .udp(&query_with(1, "mail.demo.test", 1, 0, &[]))
        .expect("an answer");
    assert_eq!(opt(&silent).expect("OPT").options, []);
}

#[test]
fn class_chaos_says_who_but_not_what() {
    let server = Server::start();
    for name in ["id.server", "hostname.bind"] {
        assert_eq!(
            server.dig(&[name, "TXT", "CH", "+short"]).trim(),
            "\"ns1\"",
            "{name}"
        );
    }
    for name in [
        "version.bind",
        "version.server",
        "authors.bind",
        "mail.demo.test",
    ] {
        assert!(
            server.dig(&[name, "TXT", "CH"]).contains("status: REFUSED"),
            "{name}"
        );
    }
}

#[test]
fn a_refusal_is_never_larger_than_its_query() {
    let server = Server::start();
    for message in [
        query(1, "example.com", 1),
        query_with(1, "example.com", 1, 0, &[]),
        query_with(
            1,
            "example.com",
            1,
            0,
            &[(ECS, vec![0, 1, 24, 0, 198, 51, 100])],
        ),
        query(1, "demo.test", 252),
    ] {
        let answer = server.udp(&message).expect("an answer");
        assert_eq!(rcode(&answer), 5);
        assert!(
            answer.len() <= message.len(),
            "{} for {}",
            answer.len(),
            message.len()
        );
        let end = 12
            + answer[12..]
                .iter()
                .position(|b| *b == 0)
                .expect("the root label")
            + 5;
        assert_eq!(answer[12..end], message[12..end], "the question comes back");
    }
    // Where size is no matter, it says why.
    let told = server
        .tcp(&[query_with(1, "demo.test", 252, 0, &[])], 1)
        .remove(0);
    assert_eq!(option(&told, EDE), Some(vec![0, 18]), "prohibited");
}

#[test]
fn a_refusal_says_why_in_an_extended_error() {
    let server = Server::start();
    let edited = |name: &str, qtype: u16, edit: &dyn Fn(&mut Vec<u8>)| {
        let mut message = query(1, name, qtype);
        edit(&mut message);
        add_opt(&mut message, 0, 1232, &[]);
        message
    };
    let unchanged = |_: &mut Vec<u8>| {};
    for (what, message, rcode_expected, code) in [
        (
            "another's name",
            edited("example.com", 1, &unchanged),
            5,
            Some(20),
        ),
        (
            "a class that is not served",
            edited("demo.test", 1, &|m| *m.last_mut().expect("a class") = 4),
            5,
            Some(20),
        ),
        (
            "a transfer",
            edited("demo.test", 252, &unchanged),
            5,
            Some(18),
        ),
        (
            "NOTIFY",
            edited("demo.test", 6, &|m| m[2] |= 4 << 3),
            5,
            Some(18),
        ),
        (
            "the version of the software",
            edited("version.bind", 16, &|m| *m.last_mut().expect("a class") = 3),
            5,
            Some(18),
        ),
        (
            "STATUS",
            edited("demo.test", 6, &|m| m[2] |= 2 << 3),
            4,
            Some(21),
        ),
        ("MAILB", edited("demo.test", 253, &unchanged), 4, Some(21)),
        ("NXNAME", edited("demo.test", 128, &unchanged), 1, Some(30)),
        (
            "an answer",
            edited("mail.demo.test", 1, &unchanged),
            0,
            None,
        ),
        (
            "a missing name",
            edited("nowhere.demo.test", 1, &unchanged),
            3,
            None,
        ),
    ] {
        let answer = server.tcp(&[message], 1).remove(0);
        assert_eq!(rcode(&answer), rcode_expected, "{what}");
        assert_eq!(
            option(&answer, EDE).map(|d| u16::from_be_bytes([d[0], d[1]])),
            code,
            "{what}"
        );
    }
}

#[test]
fn what_does_not_fit_is_cut_off_whole_and_comes_over_tcp() {
    let long: Vec<String> = (0..60)
        .map(|i| format!("big TXT \"{i:02}{}\"", "x".repeat(60)))
        .collect();
    let mut records: Vec<&str> = long.iter().map(String::as_str).collect();
    let middle: Vec<String> = (0..9)
        .map(|i| format!("mid TXT \"{i:02}{}\"", "x".repeat(60)))
        .collect();
    records.extend(middle.iter().map(String::as_str));
    let hosts: Vec<String> = (0..14)
        .flat_map(|i| {
            [
                format!("far NS n{i:02}.far"),
                format!("n{i:02}.far A 192.0.2.{i}"),
                format!("n{i:02}.far AAAA 2001:db8::{i}"),
            ]
        })
        .collect();
    records.extend(hosts.iter().map(String::as_str));
    let siblings: Vec<String> = (0..14)
        .flat_map(|i| {
            [
                format!("sib NS s{i:02}"),
                format!("s{i:02} A 192.0.2.{i}"),
                format!("s{i:02} AAAA 2001:db8::{i}"),
            ]
        })
        .collect();
    records.extend(siblings.iter().map(String::as_str));
    let server = Server::start_with(vec![], vec![zone("demo.test", &records)]);
    let sized = |name: &str, size: u16| {
        let mut m = query(1, name, 16);
        add_opt(&mut m, 0, size, &[]);
        m
    };
    // Name, query, whether it is cut, the most bytes.
    for (what, message, is_cut, limit) in [
        ("512 without EDNS", query(1, "mid.demo.test", 16), true, 512),
        ("fits 1232", sized("mid.demo.test", 1232), false, 1232),
        ("a small offer", sized("mid.demo.test", 600), true, 600),
        (
            "an offer of nothing counts as 512",
            sized("mid.demo.test", 0),
            true,
            512,
        ),
        (
            "a large offer is not taken",
            sized("big.demo.test", 4096),
            true,
            1232,
        ),
        (
            "required glue does not fit",
            query(1, "www.far.demo.test", 1),
            true,
            512,
        ),
        (
            "other addresses are left out",
            query(1, "www.sib.demo.test", 1),
            false,
            512,
        ),
    ] {
        let answer = server.udp(&message).expect("an answer");
        assert_eq!(answer[2] & 2 != 0, is_cut, "{what}: TC");
        assert!(answer.len() <= limit, "{what}: {} bytes", answer.len());
        assert!(
            !is_cut || count(&answer, 6) == 0,
            "{what}: no part of a set"
        );
        let whole = server.tcp(&[message], 1).remove(0);
        assert_eq!(whole[2] & 2, 0, "{what}: whole over TCP");
    }
    let whole = server.tcp(&[query(1, "big.demo.test", 16)], 1).remove(0);
    assert_eq!(count(&whole, 6), 60);
    let referral = server.tcp(&[query(1, "www.far.demo.test", 1)], 1).remove(0);
    assert_eq!(
        (count(&referral, 8), count(&referral, 10)),
        (14, 28),
        "in-domain glue is complete"
    );
}

#[test]
fn udp_and_tcp_say_the_same_and_pipelined_queries_are_all_answered() {
    let server = Server::start();
    let names = [
        "mail.demo.test",
        "nowhere.demo.test",
        "alias.demo.test",
        "www.sub.demo.test",
        "example.com",
        "demo.test",
    ];
    let queries: Vec<Vec<u8>> = (0..300_u16)
        .map(|i| query(i, names[usize::from(i) % names.len()], 1))
        .collect();
    let answers = server.tcp(&queries, queries.len());
    let ids: std::collections::BTreeSet<u16> = answers
        .iter()
        .map(|a| u16::from_be_bytes([a[0], a[1]]))
        .collect();
    assert_eq!(ids.len(), queries.len());
    for (message, answer) in queries.iter().zip(&answers).take(names.len()) {
        assert_eq!(server.udp(message).as_ref(), Some(answer));
    }
}

#[test]
fn a_query_may_come_in_single_bytes() {
    use std::io::Write as _;
    let server = Server::start();
    let mut stream = std::net::TcpStream::connect(server.address).expect("connected");
    stream.set_nodelay(true).expect("no delay");
    stream
        .set_read_timeout(Some(Duration::from_secs(3)))
        .expect("a time-out");
    let message = query(5, "mail.demo.test", 1);
    for byte in [&(message.len() as u16).to_be_bytes()[..], &message].concat() {
        stream.write_all(&[byte]).expect("written");
    }
    assert_eq!(support::read_message(&mut stream)[..2], [0, 5]);
}

#[test]
fn one_client_cannot_take_all_connections() {
    use std::io::Read as _;
    let server = Server::start();
    let most = nearcast_gslb_dns::transport::CONNECTIONS_PER_CLIENT_MAX as usize;
    // The harness has made one connection that may be still open.
    let mut streams: Vec<_> = (0..most + 2)
        .map(|_| std::net::TcpStream::connect(server.address).expect("connected"))
        .collect();
    let last = streams.last_mut().expect("some");
    last.set_read_timeout(Some(Duration::from_secs(3)))
        .expect("a time-out");
    assert!(
        matches!(last.read(&mut [0]), Ok(0)),
        "one too many is closed"
    );
    // Others are still served, and so is UDP.
    assert!(server.udp(&query(1, "mail.demo.test", 1)).is_some());
    drop(streams);
    for _ in 0..300 {
        let mut stream = std::net::TcpStream::connect(server.address).expect("connected");
        stream
            .set_read_timeout(Some(Duration::from_millis(10)))
            .expect("a time-out");
        // A time-out: it stays open. The end of the stream: it is one too many still.
        if stream.read(&mut [0]).is_err() {
            return;
        }
    }
    panic!("closed connections are not given back");
}

#[test]
fn a_wildcard_bind_answers_from_the_address_that_was_asked() {
    let address = free_address(Ipv4Addr::UNSPECIFIED);
    let server = Server::start_fleet(
        fleet(vec![address], vec![site("www", &[])], vec![demo_zone()]),
        address,
    );
    for ip in [Ipv4Addr::new(127, 0, 0, 9), Ipv4Addr::new(127, 3, 2, 1)] {
        // `udp_within` checks where the answer comes from.
        let asked = std::net::SocketAddr::from((ip, address.port()));
        let answer = support::udp_within(
            asked,
            &query(1, "mail.demo.test", 1),
            Duration::from_secs(3),
        );
        assert!(answer.is_some(), "{ip}");
    }
    server.stop().expect("a good end");
    let any = free_address(std::net::Ipv6Addr::UNSPECIFIED);
    let address = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, any.port()));
    let server = Server::start_fleet(
        fleet(vec![any], vec![site("www", &[])], vec![demo_zone()]),
        address,
    );
    assert!(server.udp(&query(1, "mail.demo.test", 1)).is_some(), "IPv6");
}

#[test]
fn a_port_in_use_is_told_at_once() {
    let server = Server::start();
    let udp_only = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    for address in [server.address, udp_only.local_addr().expect("bound")] {
        let fleet = std::sync::Arc::new(fleet(vec![address], vec![], vec![]));
        let (_fleet_tx, fleet) = tokio::sync::watch::channel(fleet);
        let (_entries_tx, entries) = tokio::sync::mpsc::channel(1);
        let (_state_tx, state) =
            tokio::sync::watch::channel(nearcast_fleet::follow::FollowState::default());
        let (_trigger, shutdown) = nearcast_net::shutdown::channel();
        let context = nearcast_fleet::follow::NodeContext {
            name: "ns1".to_owned(),
            fleet,
            entries,
            state,
            following: nearcast_fleet::follow::Following::default(),
            shutdown,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let failure = runtime
            .block_on(nearcast_gslb_dns::run(context))
            .expect_err("the port is in use");
        assert_eq!(
            failure.kind,
            nearcast_fleet::failure::FailureKind::Unavailable
        );
        assert!(failure.message.contains(&address.to_string()), "{failure}");
    }
}

#[test]
fn told_to_end_it_ends_well_and_closes_what_is_idle() {
    use std::io::Read as _;
    let server = Server::start();
    let mut idle = std::net::TcpStream::connect(server.address).expect("connected");
    idle.set_read_timeout(Some(Duration::from_secs(3)))
        .expect("a time-out");
    server.stop().expect("a good end");
    assert!(matches!(idle.read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn it_ends_under_load_too() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let server = Server::start();
    let address = server.address;
    let done = std::sync::Arc::new(AtomicBool::new(false));
    let seen = done.clone();
    let load = std::thread::spawn(move || {
        let sockets: Vec<_> = (0..16)
            .map(|_| std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"))
            .collect();
        let message = query(1, "mail.demo.test", 1);
        while !seen.load(Ordering::Relaxed) {
            for socket in &sockets {
                // Refused once the server is gone.
                let _ = socket.send_to(&message, address);
            }
        }
    });
    let (ended_tx, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended_tx.send(server.stop()));
    let result = ended.recv_timeout(Duration::from_secs(8));
    done.store(true, Ordering::Relaxed);
    load.join().expect("no panic");
    result.expect("it ends").expect("and well");
}

#[test]
fn a_key_that_nobody_knows_is_named_as_bad_and_the_answer_is_not_signed() {
    let server = Server::start();
    // Key, algorithm, time signed, fudge; MAC; original ID, error, other length (RFC 8945 section
    // 4.2).
    let algorithm = b"\x0bhmac-sha256\x00";
    let time = [0, 0, 0x65, 0x53, 0xf1, 0, 1, 44];
    let data = [
        &algorithm[..],
        &time,
        &[0, 32],
        &[0xab; 32],
        &[0, 7, 0, 0, 0, 0],
    ]
    .concat();
    let signed = |opcode: u8, owner: &[u8], with_opt: bool| {
        let mut m = query(7, "mail.demo.test", 1);
        m[2] |= opcode << 3;
        if with_opt {
            support::add_opt(&mut m, 0, 1232, &[]);
        }
        m[11] += 1;
        m.extend_from_slice(owner);
        m.extend_from_slice(&[0, 250, 0, 255, 0, 0, 0, 0]);
        m.extend_from_slice(&(data.len() as u16).to_be_bytes());
        m.extend_from_slice(&data);
        m
    };
    let key = b"\x03KeY\x04test\x00";
    for (message, owner) in [
        (signed(0, key, false), &b"\x03key\x04test\x00"[..]),
        (signed(0, key, true), &b"\x03key\x04test\x00"[..]),
        // `demo.test`, the end of the question's name, by a pointer; an update and a notification.
        (
            signed(0, &[1, b'k', 0xc0, 17], true),
            &b"\x01k\x04demo\x04test\x00"[..],
        ),
        (signed(5, key, false), &b"\x03key\x04test\x00"[..]),
        (signed(4, key, false), &b"\x03key\x04test\x00"[..]),
    ] {
        for answer in [
            server.udp(&message).expect("an answer"),
            server.tcp(std::slice::from_ref(&message), 1).remove(0),
        ] {
            assert_eq!(rcode(&answer), 9, "NOTAUTH");
            let record = [
                owner,
                &[0, 250, 0, 255, 0, 0, 0, 0, 0, 29],
                &algorithm[..],
                &time,
                &[0, 0, 0, 7, 0, 17, 0, 0],
            ]
            .concat();
            assert!(
                answer.ends_with(&record),
                "TSIG is the last record, without a MAC, and its error is BADKEY: {answer:02x?}"
            );
            assert_eq!(
                (count(&answer, 10), count(&answer, 6)),
                (count(&message, 10), 0)
            );
            assert!(answer.len() <= message.len(), "no larger than the query");
        }
    }
    // Real clients say it in words.
    let key = [
        "-y",
        "hmac-sha256:nobody:c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IQ==",
        "mail.demo.test",
        "A",
    ];
    let text = server.dig(&key);
    assert!(
        text.contains("NOTAUTH") && text.contains("BADKEY"),
        "{text}"
    );
    let at = [
        format!("@{}", server.address.ip()),
        "-p".to_owned(),
        server.address.port().to_string(),
    ];
    let output = std::process::Command::new("kdig")
        .args(at)
        .args(key)
        .output()
        .expect("kdig runs; apt-get install knot-dnsutils");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("BADKEY"), "{text}");
}

#[test]
fn name_servers_of_one_fleet_take_each_others_cookies() {
    let (here, there) = (Server::start(), Server::start());
    let ask = |server: &Server, data: Vec<u8>| {
        let answer = server
            .udp(&query_with(7, "mail.demo.test", 1, 0, &[(COOKIE, data)]))
            .expect("an answer");
        option(&answer, COOKIE).expect("a cookie")
    };
    let cookie = ask(&here, vec![1; 8]);
    assert_eq!(
        ask(&there, cookie.clone()),
        cookie,
        "a good cookie that is recent is given back"
    );
    // Another key in the fleet file: the old cookies hold on, and new ones are made of it, on every
    // server alike.
    for server in [&here, &there] {
        let mut other = fleet(
            vec![server.address],
            vec![site("www", &["www.demo.test"])],
            vec![support::demo_zone()],
        );
        other.node_key =
            nearcast_fleet::config::Secret("another key that only this test knows".to_owned());
        server.fleet.send_replace(std::sync::Arc::new(other));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while ask(server, cookie.clone()) == cookie {
            assert!(
                std::time::Instant::now() < deadline,
                "the new key is never used"
            );
        }
    }
    let cookie = ask(&there, vec![2; 8]);
    assert_eq!(ask(&here, cookie.clone()), cookie);
}

#[test]
fn a_new_fleet_is_served_with_a_newer_serial_and_a_bad_one_is_not() {
    let server = Server::start();
    let serial = || -> u32 {
        server
            .dig(&["demo.test", "SOA", "+short"])
            .split(' ')
            .nth(2)
            .and_then(|s| s.parse().ok())
            .expect("a serial")
    };
    let before = serial();
    let with = |records: &[&str]| {
        std::sync::Arc::new(fleet(
            vec![server.address],
            vec![site("www", &[])],
            vec![zone("demo.test", records)],
        ))
    };
    server.fleet.send_replace(with(&["new A 192.0.2.77"]));
    let mut found = String::new();
    for _ in 0..300 {
        found = server.dig(&["new.demo.test", "A", "+short"]);
        if found.trim() == "192.0.2.77" {
            break;
        }
    }
    assert_eq!(found.trim(), "192.0.2.77");
    let after = serial();
    assert!(
        nearcast_gslb_dns::zone::is_newer(after, before),
        "{before} then {after}"
    );
    // A record that cannot be compiled, then a change that can: only the good ones are ever seen.
    server.fleet.send_replace(with(&["new A not-an-address"]));
    assert_eq!(
        server.dig(&["new.demo.test", "A", "+short"]).trim(),
        "192.0.2.77"
    );
    server.fleet.send_replace(with(&["new A 192.0.2.78"]));
    for _ in 0..300 {
        found = server.dig(&["new.demo.test", "A", "+short"]);
        if found.trim() == "192.0.2.78" {
            return;
        }
        assert_eq!(found.trim(), "192.0.2.77");
    }
    panic!("the last fleet never came: {found}");
}
