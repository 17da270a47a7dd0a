//! What is answered for names that exist, do not exist, are elsewhere, or are steered. With dig as
//! the client.

mod support;

use support::Server;

/// Lines of the answer section with blanks made one.
fn answers(text: &str) -> Vec<String> {
    section(text, ";; ANSWER SECTION:")
}

fn section(text: &str, title: &str) -> Vec<String> {
    text.lines()
        .skip_while(|l| *l != title)
        .skip(1)
        .take_while(|l| !l.is_empty())
        .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn rows_of_names_and_what_they_get() {
    let server = Server::start();
    // name, type, status, flags, answer lines.
    let rows: &[(&str, &str, &str, &str, &[&str])] = &[
        (
            "demo.test",
            "MX",
            "NOERROR",
            "qr aa",
            &["demo.test. 300 IN MX 10 mail.demo.test."],
        ),
        (
            "demo.test",
            "TXT",
            "NOERROR",
            "qr aa",
            &["demo.test. 300 IN TXT \"v=spf1 mx -all\""],
        ),
        (
            "demo.test",
            "NS",
            "NOERROR",
            "qr aa",
            &["demo.test. 300 IN NS ns1.cdn.test."],
        ),
        (
            "ns1.cdn.test",
            "A",
            "NOERROR",
            "qr aa",
            &["ns1.cdn.test. 3600 IN A 127.0.0.53"],
        ),
        ("mail.demo.test", "AAAA", "NOERROR", "qr aa", &[]),
        ("nowhere.demo.test", "A", "NXDOMAIN", "qr aa", &[]),
        (
            "alias.demo.test",
            "A",
            "NOERROR",
            "qr aa",
            &[
                "alias.demo.test. 300 IN CNAME mail.demo.test.",
                "mail.demo.test. 300 IN A 192.0.2.25",
            ],
        ),
        (
            "alias.demo.test",
            "CNAME",
            "NOERROR",
            "qr aa",
            &["alias.demo.test. 300 IN CNAME mail.demo.test."],
        ),
        (
            "alias.demo.test",
            "AAAA",
            "NOERROR",
            "qr aa",
            &["alias.demo.test. 300 IN CNAME mail.demo.test."],
        ),
        // The code belongs to the last name of the chain (RFC 6604).
        (
            "dangling.demo.test",
            "A",
            "NXDOMAIN",
            "qr aa",
            &["dangling.demo.test. 300 IN CNAME nowhere.demo.test."],
        ),
        (
            "foreign.demo.test",
            "A",
            "NOERROR",
            "qr aa",
            &["foreign.demo.test. 300 IN CNAME www.example.org."],
        ),
        // Empty non-terminals exist (RFC 8020), also for minimised queries (RFC 9156).
        ("b.c.demo.test", "NS", "NOERROR", "qr aa", &[]),
        ("c.demo.test", "A", "NOERROR", "qr aa", &[]),
        ("z.b.c.demo.test", "A", "NXDOMAIN", "qr aa", &[]),
        // RFC 4592: the wildcard covers what has no closer encloser.
        (
            "q.wild.demo.test",
            "TXT",
            "NOERROR",
            "qr aa",
            &["q.wild.demo.test. 300 IN TXT \"any\""],
        ),
        (
            "r.q.wild.demo.test",
            "TXT",
            "NOERROR",
            "qr aa",
            &["r.q.wild.demo.test. 300 IN TXT \"any\""],
        ),
        ("q.wild.demo.test", "A", "NOERROR", "qr aa", &[]),
        ("y.wild.demo.test", "TXT", "NOERROR", "qr aa", &[]),
        ("q.y.wild.demo.test", "TXT", "NXDOMAIN", "qr aa", &[]),
        (
            "*.wild.demo.test",
            "TXT",
            "NOERROR",
            "qr aa",
            &["*.wild.demo.test. 300 IN TXT \"any\""],
        ),
        // Below a cut somebody else answers.
        ("www.sub.demo.test", "A", "NOERROR", "qr", &[]),
        ("sub.demo.test", "NS", "NOERROR", "qr", &[]),
        ("ns.sub.demo.test", "A", "NOERROR", "qr", &[]),
        // DS is the parent's.
        ("sub.demo.test", "DS", "NOERROR", "qr aa", &[]),
        ("example.com", "A", "REFUSED", "qr", &[]),
        ("test", "NS", "REFUSED", "qr", &[]),
        (".", "NS", "REFUSED", "qr", &[]),
        (
            "odd.demo.test",
            "TYPE65280",
            "NOERROR",
            "qr aa",
            &["odd.demo.test. 300 IN TYPE65280 \\# 4 C0A80C05"],
        ),
        (
            "svc.demo.test",
            "HTTPS",
            "NOERROR",
            "qr aa",
            &["svc.demo.test. 300 IN HTTPS 1 . alpn=\"h2,h3\" port=8443 ipv4hint=192.0.2.1"],
        ),
        // One TTL a set: the least (RFC 2181).
        (
            "many.demo.test",
            "A",
            "NOERROR",
            "qr aa",
            &[
                "many.demo.test. 30 IN A 192.0.2.1",
                "many.demo.test. 30 IN A 192.0.2.2",
            ],
        ),
        (
            "x.old.demo.test",
            "A",
            "NXDOMAIN",
            "qr aa",
            &[
                "old.demo.test. 300 IN DNAME mail.demo.test.",
                "x.old.demo.test. 300 IN CNAME x.mail.demo.test.",
            ],
        ),
        (
            "old.demo.test",
            "DNAME",
            "NOERROR",
            "qr aa",
            &["old.demo.test. 300 IN DNAME mail.demo.test."],
        ),
        ("www.cdn.test", "TXT", "NOERROR", "qr aa", &[]),
        (
            "www.cdn.test",
            "ANY",
            "NOERROR",
            "qr aa",
            &["www.cdn.test. 3600 IN HINFO \"RFC8482\" \"\""],
        ),
        (
            "mail.demo.test",
            "ANY",
            "NOERROR",
            "qr aa",
            &["mail.demo.test. 300 IN A 192.0.2.25"],
        ),
        ("www.cdn.test", "NXNAME", "FORMERR", "qr", &[]),
    ];
    for (name, qtype, status, flags, expected) in rows {
        for transport in ["+notcp", "+tcp"] {
            let qtype = if *qtype == "NXNAME" { "TYPE128" } else { qtype };
            let text = server.dig(&[name, qtype, "+norec", transport]);
            assert!(
                text.contains(&format!("status: {status},")),
                "{name} {qtype}: {text}"
            );
            assert!(
                text.contains(&format!("flags: {flags};")),
                "{name} {qtype}: {text}"
            );
            assert_eq!(answers(&text), *expected, "{name} {qtype}: {text}");
            let is_negative = expected.is_empty() && flags.contains("aa");
            if is_negative {
                let soa = section(&text, ";; AUTHORITY SECTION:");
                let apex = if name.ends_with("cdn.test") {
                    ("cdn.test. 60", " 60")
                } else {
                    ("demo.test. 300", " 300")
                };
                assert!(
                    soa.len() == 1 && soa[0].starts_with(apex.0) && soa[0].ends_with(apex.1),
                    "{name} {qtype}: {text}"
                );
            }
        }
    }
}

#[test]
fn a_referral_names_the_servers_and_brings_their_glue() {
    let server = Server::start();
    let text = server.dig(&["www.sub.demo.test", "A", "+norec"]);
    assert_eq!(
        section(&text, ";; AUTHORITY SECTION:"),
        [
            "sub.demo.test. 300 IN NS ns.sub.demo.test.",
            "sub.demo.test. 300 IN NS ns.other.demo.test."
        ]
    );
    assert_eq!(
        section(&text, ";; ADDITIONAL SECTION:"),
        [
            "ns.sub.demo.test. 300 IN A 192.0.2.53",
            "ns.other.demo.test. 300 IN A 192.0.2.54"
        ],
        "{text}"
    );
}

#[test]
fn a_resolver_with_a_subnet_gets_the_first_link_alone_and_a_stub_the_whole_chain() {
    let server = Server::start();
    let with = server.dig(&["www.demo.test", "A", "+norec", "+subnet=198.51.100.0/24"]);
    assert_eq!(
        answers(&with),
        ["www.demo.test. 300 IN CNAME www.cdn.test."],
        "{with}"
    );
    assert!(
        with.contains("CLIENT-SUBNET: 198.51.100.0/24/0"),
        "the alias holds for everybody: {with}"
    );
    let stub = server.dig(&["www.demo.test", "A", "+rec", "+subnet=198.51.100.0/24"]);
    assert_eq!(
        answers(&stub).len(),
        3,
        "the alias and two addresses: {stub}"
    );
    assert!(
        stub.contains("CLIENT-SUBNET: 198.51.100.0/24/") && !stub.contains("198.51.100.0/24/0"),
        "tailored, so not for everybody: {stub}"
    );
    for withheld in ["+nosubnet", "+subnet=0.0.0.0/0"] {
        let without = server.dig(&["www.demo.test", "A", withheld]);
        let lines = answers(&without);
        assert_eq!(lines[0], "www.demo.test. 300 IN CNAME www.cdn.test.");
        assert_eq!(lines.len(), 3, "the alias and two addresses: {without}");
    }
}

#[test]
fn a_name_with_addresses_of_one_family_has_no_data_for_the_other() {
    let server = Server::start();
    let text = server.dig(&["www.cdn.test", "AAAA", "+subnet=198.51.100.0/24"]);
    assert!(
        text.contains("status: NOERROR") && text.contains("ANSWER: 0") && text.contains("SOA"),
        "{text}"
    );
    assert!(
        text.contains("CLIENT-SUBNET: 198.51.100.0/24/0"),
        "a negative answer is the same for all: {text}"
    );
}

#[test]
fn a_loop_of_aliases_is_given_once_round() {
    let server = Server::start();
    let text = server.dig(&["loop.demo.test", "A"]);
    assert!(
        text.contains("status: NOERROR") && answers(&text).len() == 2,
        "{text}"
    );
}
