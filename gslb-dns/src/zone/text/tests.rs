use proptest::strategy::Strategy as _;

use super::data::has_shape;
use super::*;
use crate::message::registry::{MNEMONICS, type_number};

const ORIGIN: &[u8] = b"\x04demo\x04test\x00";

#[test]
fn names_are_read_with_escapes_and_origin() {
    let rows: &[(&str, Result<&[u8], &str>)] = &[
        ("@", Ok(ORIGIN)),
        (".", Ok(b"\x00")),
        ("www", Ok(b"\x03www\x04demo\x04test\x00")),
        ("www.", Ok(b"\x03www\x00")),
        ("A.b", Ok(b"\x01A\x01b\x04demo\x04test\x00")),
        ("a\\.b.", Ok(b"\x03a.b\x00")),
        ("\\065.", Ok(b"\x01A\x00")),
        ("", Err("it is empty")),
        ("a..b", Err("empty label")),
        (".a", Err("empty label")),
        ("\\256.", Err("not complete")),
        ("\\", Err("not complete")),
    ];
    for (text, expected) in rows {
        match (name(text, ORIGIN), expected) {
            (Ok(wire), Ok(bytes)) => assert_eq!(wire, *bytes, "{text}"),
            (Err(error), Err(part)) => {
                assert!(error.to_string().contains(part), "{text}: {error}")
            }
            (got, _) => panic!("{text}: {got:?}"),
        }
    }
    let long = vec!["a".repeat(63); 4].join(".");
    for (text, part) in [
        ("a".repeat(64), "63 bytes"),
        (format!("{long}."), "255 bytes"),
    ] {
        assert!(
            name(&text, &[0])
                .expect_err("too long")
                .to_string()
                .contains(part)
        );
    }
    let longest = format!("{}.{}.", vec!["a".repeat(63); 3].join("."), "b".repeat(61));
    assert_eq!(
        name(&longest, &[0]).expect("255 bytes are enough").len(),
        255
    );
}

/// Compared with the bytes that the standards' own text gives for these types.
#[test]
fn data_of_every_type_becomes_its_wire_form() {
    let rows: &[(&str, &str, &[u8])] = &[
        ("A", "192.0.2.1", &[192, 0, 2, 1]),
        ("AAAA", "2001:db8::1", &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ("CNAME", "x.", b"\x01x\x00"),
        ("MX", "10 x.", b"\x00\x0a\x01x\x00"),
        ("TXT", "a \"b c\" \\034d", b"\x01a\x03b c\x02\"d"),
        ("TXT", "\"\"", b"\x00"),
        ("TXT", "a ; a comment", b"\x01a"),
        ("HINFO", "cpu \"an os\"", b"\x03cpu\x05an os"),
        ("SRV", "1 2 443 x.", b"\x00\x01\x00\x02\x01\xbb\x01x\x00"),
        ("NAPTR", "1 2 \"u\" \"E2U\" \"!a!b!\" .", b"\x00\x01\x00\x02\x01u\x03E2U\x05!a!b!\x00"),
        ("DS", "60485 13 2 ( 2BB1 83AF )", &[0xec, 0x45, 13, 2, 0x2b, 0xb1, 0x83, 0xaf]),
        ("DNSKEY", "257 3 13 AQID", &[1, 1, 3, 13, 1, 2, 3]),
        ("DNSKEY", "257 3 13 AQ==", &[1, 1, 3, 13, 1]),
        ("SSHFP", "4 2 abcd", &[4, 2, 0xab, 0xcd]),
        ("TLSA", "3 1 1 00ff", &[3, 1, 1, 0, 0xff]),
        ("CAA", "0 issue \"ca.example; policy=ev\"", b"\x00\x05issueca.example; policy=ev"),
        ("URI", "10 1 \"http://x/\"", b"\x00\x0a\x00\x01http://x/"),
        ("RP", "a. b.", b"\x01a\x00\x01b\x00"),
        // RFC 9460 appendix D.
        ("SVCB", "0 foo.example.com.", b"\x00\x00\x03foo\x07example\x03com\x00"),
        ("SVCB", "1 .", b"\x00\x01\x00"),
        ("SVCB", "16 foo.example.com. port=53", b"\x00\x10\x03foo\x07example\x03com\x00\x00\x03\x00\x02\x00\x35"),
        ("SVCB", "1 foo.example.com. key667=hello", b"\x00\x01\x03foo\x07example\x03com\x00\x02\x9b\x00\x05hello"),
        (
            "SVCB",
            "16 foo.example.org. alpn=h2,h3-19 mandatory=ipv4hint,alpn ipv4hint=192.0.2.1",
            b"\x00\x10\x03foo\x07example\x03org\x00\x00\x00\x00\x04\x00\x01\x00\x04\x00\x01\x00\x09\x02h2\x05h3-19\x00\x04\x00\x04\xc0\x00\x02\x01",
        ),
        ("HTTPS", "1 . no-default-alpn alpn=h3", b"\x00\x01\x00\x00\x01\x00\x03\x02h3\x00\x02\x00\x00"),
        // RFC 3597 section 5.
        ("TYPE731", "\\# 6 abcd ( ef 01 23 45 )", &[0xab, 0xcd, 0xef, 1, 0x23, 0x45]),
        ("TYPE62347", "\\# 0", &[]),
        ("A", "\\# 4 0A000001", &[10, 0, 0, 1]),
        ("MX", "\\# 5 000a016100", b"\x00\x0a\x01a\x00"),
        ("TXT", "\\# 3 016100", b"\x01a\x00"),
    ];
    for (rtype, text, expected) in rows {
        let number = type_number(rtype).unwrap_or_else(|| panic!("{rtype}"));
        let wire = data(number, text, ORIGIN).unwrap_or_else(|e| panic!("{rtype} {text}: {e}"));
        assert_eq!(wire, *expected, "{rtype} {text}");
    }
}

#[test]
fn data_that_is_wrong_is_refused_with_the_field() {
    for (rtype, text, part) in [
        ("A", "192.0.2", "an IPv4 address"),
        ("A", "192.0.2.1 x", "follows the last field"),
        ("A", "", "an IPv4 address"),
        ("AAAA", "192.0.2.1", "an IPv6 address"),
        ("MX", "mail", "preference"),
        ("MX", "10", "host"),
        ("MX", "65536 mail", "preference"),
        ("TXT", "\"open", "not complete"),
        ("DS", "1 13 2 abc", "hexadecimal"),
        ("DNSKEY", "257 3 13 A", "base64"),
        ("CAA", "0 is-sue x", "letters and digits"),
        ("SVCB", "0 . port=1", "AliasMode"),
        ("SVCB", "1 . port=1 port=2", "given once"),
        ("SVCB", "1 . mandatory=alpn", "mandatory"),
        ("SVCB", "1 . mandatory=mandatory", "mandatory"),
        ("SVCB", "1 . colour=red", "a service parameter key"),
        ("SVCB", "1 . port", "value of its kind"),
        ("SVCB", "1 . alpn=", "value of its kind"),
        ("SVCB", "1 . no-default-alpn=1", "value of its kind"),
        ("TYPE65280", "1 2", "TYPE<number>"),
        ("TYPE65280", "\\# 3 abcd", "number of bytes"),
        ("TYPE65280", "\\# 1 zz", "hexadecimal"),
        // The generic form is no way around the rules of a type (RFC 3597 section 5).
        ("A", "\\# 3 0a0000", "data of that type"),
        ("AAAA", "\\# 4 0a000001", "data of that type"),
        ("CNAME", "\\# 3 016100ff", "number of bytes"),
        ("CNAME", "\\# 2 0161", "data of that type"),
        ("CNAME", "\\# 2 c00c", "data of that type"),
        ("NS", "\\# 0", "data of that type"),
        ("PTR", "\\# 4 016100ff", "data of that type"),
        ("DNAME", "\\# 4 01610061", "data of that type"),
        ("MX", "\\# 1 00", "data of that type"),
        ("MX", "\\# 4 000a0161", "data of that type"),
        ("TXT", "\\# 2 0561", "data of that type"),
        ("TXT", "\\# 0", "data of that type"),
    ] {
        let number = type_number(rtype).unwrap_or_else(|| panic!("{rtype}"));
        let error = data(number, text, ORIGIN).expect_err(text);
        assert!(error.to_string().contains(part), "{rtype} {text}: {error}");
    }
    let long = format!("\"{}\"", "x".repeat(256));
    assert!(data(rtype::TXT, &long, ORIGIN).is_err());
    assert_eq!(type_number("NOSUCH"), None);
}

proptest::proptest! {
    #[test]
    fn no_text_breaks_the_readers_and_what_they_take_is_well_formed(
        mnemonic in proptest::sample::select(MNEMONICS),
        pieces in proptest::collection::vec(
            proptest::prop_oneof![
                proptest::sample::select(vec![
                    "a", ".", "@", "\\", "\\0", "\\046", "\"", "(", ")", ";", " ", "\\# ", "4 ", "0a000001", "10 ", "192.0.2.1",
                    "2001:db8::1", "port=", "alpn=", "h2,", "mandatory=", "key7", "AQID", "=", "65536",
                ])
                .prop_map(str::to_owned),
                "\\PC{0,3}",
            ], 0..16)) {
        let text = pieces.concat();
        if let Ok(name) = name(&text, ORIGIN) {
            proptest::prop_assert!(message::is_name(&name), "{text:?}: {name:?}");
        }
        if let Ok(wire) = data(mnemonic.1, &text, ORIGIN) {
            proptest::prop_assert!(has_shape(mnemonic.1, &wire), "{} {text:?}: {wire:?}", mnemonic.0);
        }
    }
}

#[test]
fn service_records_are_shown_as_they_are_written() {
    for text in [
        "1 .",
        "0 svc.example.org.",
        "16 svc.example.org. alpn=h3,h2,http/1.1 port=8443",
        "1 . mandatory=alpn,key9 alpn=h2 key9=x",
        "1 . alpn=h2 no-default-alpn ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1",
    ] {
        let wire = data(rtype::HTTPS, text, ORIGIN).unwrap_or_else(|e| panic!("{text}: {e}"));
        let expected = match text.contains("key9=") {
            // A value without a form of its own: the generic one.
            true => format!("\\# {}", wire.len()),
            false => text.to_owned(),
        };
        assert!(shown(rtype::HTTPS, &wire).starts_with(&expected), "{text}");
        assert_eq!(
            data(rtype::HTTPS, &shown(rtype::HTTPS, &wire), ORIGIN),
            Ok(wire)
        );
    }
    for broken in [
        &[][..],
        &[0],
        &[0, 1],
        &[0, 1, 0, 0, 1, 0, 9],
        &[0, 1, 5, b'a'],
    ] {
        assert!(shown(rtype::SVCB, broken).starts_with("\\# "), "{broken:?}");
    }
}
