//! Records of a zone in one line each: `name [ttl] TYPE data`, and what must hold among them.
//!
//! Checks what a person gets wrong: names outside the zone, addresses, missing fields, CNAME beside
//! other data. The name server parses the data into its wire form; a type that is not known here by
//! name is written `TYPE<number>` with data in the generic form of RFC 3597.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::names;
use super::reader::{Text, nearest};
use crate::config::Record;
use crate::units;

/// Types that can be written by name.
const TYPES: &[&str] = &[
    "A",
    "AAAA",
    "AFSDB",
    "CAA",
    "CDNSKEY",
    "CDS",
    "CNAME",
    "DNAME",
    "DNSKEY",
    "DS",
    "HINFO",
    "HTTPS",
    "MX",
    "NAPTR",
    "NS",
    "OPENPGPKEY",
    "PTR",
    "RP",
    "SMIMEA",
    "SPF",
    "SRV",
    "SSHFP",
    "SVCB",
    "TLSA",
    "TXT",
    "URI",
];

/// The largest TTL (RFC 2181 section 8).
const TTL_MAX: u64 = (1 << 31) - 1;

/// A mistake in a record: what is wrong and what to write.
pub(super) type Wrong = (String, String);

/// Parses one record of `zone` (normal form); `ttl` is for records that name none.
pub(super) fn parse(line: &str, zone: &str, ttl: u32) -> Result<Record, Wrong> {
    let wrong = |problem: String, hint: &str| Err((problem, hint.to_owned()));
    if line.contains(['\n', '\r', '\0']) {
        return wrong(
            "a record is one line".into(),
            "write each record as a string of its own",
        );
    }
    let mut rest = line.trim();
    let owner = next_word(&mut rest);
    if owner.is_empty() {
        return wrong(
            "the record is empty".into(),
            "write \"name TYPE data\", such as \"www A 192.0.2.1\"",
        );
    }
    let owner = owner_name(owner, zone)?;
    let mut own_ttl = None;
    let mut word = next_word(&mut rest);
    for _ in 0..2 {
        if word.eq_ignore_ascii_case("IN") {
            word = next_word(&mut rest);
        } else if own_ttl.is_none() && word.starts_with(|c: char| c.is_ascii_digit()) {
            own_ttl = Some(parse_ttl(word)?);
            word = next_word(&mut rest);
        }
    }
    if word.is_empty() {
        return wrong(
            format!("{line:?} has no type"),
            "write \"name TYPE data\", such as \"www A 192.0.2.1\"",
        );
    }
    let rtype = word.to_ascii_uppercase();
    let is_numbered = rtype
        .strip_prefix("TYPE")
        .is_some_and(|n| n.parse::<u16>().is_ok());
    if rtype == "SOA" {
        return wrong(
            "the SOA record is made by the name server".into(),
            "remove it",
        );
    }
    if !is_numbered && !TYPES.contains(&rtype.as_str()) {
        let hint = match nearest(&rtype, TYPES) {
            Some(near) => format!("did you mean {near}? Types without a name here are written TYPE<number> \\# <length> <hex>"),
            None => "write \"name TYPE data\", such as \"www A 192.0.2.1\"; other types as TYPE<number> \\# <length> <hex>".to_owned(),
        };
        return Err((format!("{word:?} is not a record type"), hint));
    }
    if rtype == "NS" && owner == zone {
        return wrong(
            "NS records at the top of the zone are made from its name_servers".into(),
            "remove it, and list the name servers in name_servers",
        );
    }
    if rtype == "CNAME" && owner == zone {
        return wrong(
            "the top of a zone cannot be a CNAME".into(),
            "use A and AAAA records, or a name below the zone",
        );
    }
    check_data(&rtype, rest)?;
    Ok(Record {
        owner,
        ttl: own_ttl.unwrap_or(ttl),
        rtype,
        data: rest.to_owned(),
    })
}

/// Notes what does not hold among the records of one zone.
pub(super) fn check_together(records: &[(Record, Text<'_>)]) {
    let mut by_owner: BTreeMap<&str, Vec<&(Record, Text<'_>)>> = BTreeMap::new();
    for pair in records {
        by_owner.entry(&pair.0.owner).or_default().push(pair);
    }
    for (owner, group) in by_owner {
        let cname = group.iter().position(|(r, _)| r.rtype == "CNAME");
        if let (Some(cname), true) = (cname, group.len() > 1) {
            let other = if cname == 0 { 1 } else { cname };
            group[other].1.note(
                format!("{owner} has a CNAME record and others"),
                "a name with a CNAME record can have no other records; keep one of them",
            );
            continue;
        }
        let mut seen = BTreeSet::new();
        let mut ttls: BTreeMap<&str, u32> = BTreeMap::new();
        for (record, text) in group {
            if !seen.insert((&record.rtype, &record.data)) {
                text.note(
                    format!("{owner} has this {} record twice", record.rtype),
                    "remove one",
                );
            }
            let first = *ttls.entry(&record.rtype).or_insert(record.ttl);
            if first != record.ttl {
                text.note(
                    format!(
                        "the {} records of {owner} have different TTLs, {first} s and {} s",
                        record.rtype, record.ttl
                    ),
                    "give them the same TTL (RFC 2181 section 5.2)",
                );
            }
        }
    }
}

fn next_word<'l>(rest: &mut &'l str) -> &'l str {
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    let word = &rest[..end];
    *rest = rest[end..].trim_start();
    word
}

fn owner_name(written: &str, zone: &str) -> Result<String, Wrong> {
    if written == "@" {
        return Ok(zone.to_owned());
    }
    let owner = match written.strip_suffix('.') {
        Some(absolute) => absolute.to_ascii_lowercase(),
        None if zone.is_empty() => written.to_ascii_lowercase(),
        None => format!("{}.{zone}", written.to_ascii_lowercase()),
    };
    let below_star = owner
        .strip_prefix("*.")
        .unwrap_or(if owner == "*" { "x" } else { &owner });
    if let Some(problem) = (!owner.is_empty())
        .then(|| names::host_problem(below_star))
        .flatten()
    {
        return Err((
            format!("{written:?} cannot own a record: {problem}"),
            "write a name relative to the zone, such as \"www\", or @ for its top".into(),
        ));
    }
    if !names::is_within(&owner, zone) {
        return Err((
            format!("{written:?} is outside the zone {}", shown(zone)),
            "names that end in a dot are absolute; write a name below the zone, without the dot if it is relative".into(),
        ));
    }
    if !written.ends_with('.') && !zone.is_empty() && owner.ends_with(&format!(".{zone}.{zone}")) {
        return Err((
            format!("{written:?} means {owner}, with the zone's name twice"),
            "write it relative to the zone, or with a dot at its end".into(),
        ));
    }
    Ok(owner)
}

/// A zone's name for people.
pub(super) fn shown(zone: &str) -> &str {
    if zone.is_empty() { "." } else { zone }
}

fn parse_ttl(word: &str) -> Result<u32, Wrong> {
    let seconds = match word.parse::<u64>() {
        Ok(seconds) => Some(seconds),
        Err(_) => units::duration(word)
            .ok()
            .filter(|d| d.subsec_millis() == 0)
            .map(|d| d.as_secs()),
    };
    match seconds.filter(|s| *s <= TTL_MAX) {
        Some(seconds) => Ok(seconds as u32),
        None => Err((
            format!("{word:?} is not a TTL"),
            "write whole seconds, such as 300, or a duration, such as 5m".into(),
        )),
    }
}

fn check_data(rtype: &str, data: &str) -> Result<(), Wrong> {
    if data.starts_with("\\#") {
        return check_generic(data);
    }
    let words: Vec<&str> = data.split_whitespace().collect();
    let wrong =
        |problem: String, example: &str| Err((problem, format!("write for example \"{example}\"")));
    if data.is_empty() {
        return wrong(format!("the {rtype} record has no data"), example(rtype));
    }
    match rtype {
        "A" if !matches!(words[..], [a] if a.parse::<Ipv4Addr>().is_ok()) => {
            wrong(format!("{data:?} is not an IPv4 address"), example(rtype))
        }
        "AAAA" if !matches!(words[..], [a] if a.parse::<Ipv6Addr>().is_ok()) => {
            wrong(format!("{data:?} is not an IPv6 address"), example(rtype))
        }
        "CNAME" | "NS" | "PTR" | "DNAME" if !matches!(words[..], [name] if is_target(name)) => {
            wrong(format!("{data:?} is not one host name"), example(rtype))
        }
        "MX" if !matches!(words[..], [preference, name] if is_u16(preference) && is_target(name)) => {
            wrong(
                format!("{data:?} is not a preference and a host name"),
                example(rtype),
            )
        }
        "SRV" if !matches!(words[..], [a, b, c, name] if [a, b, c].iter().all(|w| is_u16(w)) && is_target(name)) => {
            wrong(
                format!("{data:?} is not a priority, a weight, a port and a host name"),
                example(rtype),
            )
        }
        "CAA" if words.len() < 3 || words[0].parse::<u8>().is_err() => wrong(
            format!("{data:?} is not flags, a tag and a value"),
            example(rtype),
        ),
        "TXT" | "SPF" | "CAA" | "HINFO" | "URI" | "NAPTR" if !quotes_end(data) => {
            wrong(format!("a quote in {data:?} does not end"), example(rtype))
        }
        _ => Ok(()),
    }
}

fn example(rtype: &str) -> &'static str {
    match rtype {
        "A" => "www A 192.0.2.1",
        "AAAA" => "www AAAA 2001:db8::1",
        "CNAME" => "www CNAME www.cdn.test.",
        "NS" => "sub NS ns1.example.test.",
        "PTR" => "1 PTR host.example.test.",
        "DNAME" => "old DNAME new.example.test.",
        "MX" => "@ MX 10 mail",
        "SRV" => "_http._tcp SRV 10 5 80 www",
        "CAA" => "@ CAA 0 issue \\\"ca.example\\\"",
        "TXT" => "@ TXT \\\"some words\\\"",
        _ => "name TYPE65280 \\\\# 2 abcd",
    }
}

/// `\# LENGTH HEX` (RFC 3597 section 5).
fn check_generic(data: &str) -> Result<(), Wrong> {
    let mut words = data.split_whitespace().skip(1);
    let length: Option<usize> = words.next().and_then(|w| w.parse().ok());
    let digits: String = words.collect();
    if length == Some(digits.len() / 2)
        && digits.len().is_multiple_of(2)
        && digits.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return Ok(());
    }
    Err((
        format!("{data:?} is not \\# with a length and as many bytes in hexadecimal digits"),
        "write for example \"name TYPE65280 \\\\# 2 abcd\"".into(),
    ))
}

/// A host name as data: relative, absolute, `@` or the root.
fn is_target(name: &str) -> bool {
    name == "@"
        || name == "."
        || names::host_problem(name.strip_suffix('.').unwrap_or(name)).is_none()
}

fn is_u16(word: &str) -> bool {
    word.bytes().all(|b| b.is_ascii_digit()) && word.parse::<u16>().is_ok()
}

fn quotes_end(data: &str) -> bool {
    let mut is_open = false;
    let mut bytes = data.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if bytes.next().is_none() => return false,
            b'"' => is_open = !is_open,
            _ => {}
        }
    }
    !is_open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read() {
        type Fields = (&'static str, u32, &'static str, &'static str);
        let table: [(&str, &str, Fields); 12] = [
            (
                "www A 192.0.2.1",
                "demo.test",
                ("www.demo.test", 300, "A", "192.0.2.1"),
            ),
            (
                "@ MX 10 mail",
                "demo.test",
                ("demo.test", 300, "MX", "10 mail"),
            ),
            (
                "WWW 60 IN aaaa 2001:db8::1",
                "demo.test",
                ("www.demo.test", 60, "AAAA", "2001:db8::1"),
            ),
            (
                "www IN 5m A 192.0.2.1",
                "demo.test",
                ("www.demo.test", 300, "A", "192.0.2.1"),
            ),
            (
                "www.demo.test. CNAME www.cdn.test.",
                "demo.test",
                ("www.demo.test", 300, "CNAME", "www.cdn.test."),
            ),
            (
                "test NS ns.nic.test.",
                "",
                ("test", 300, "NS", "ns.nic.test."),
            ),
            (
                "*.sub A 192.0.2.1",
                "demo.test",
                ("*.sub.demo.test", 300, "A", "192.0.2.1"),
            ),
            (
                "* A 192.0.2.1",
                "demo.test",
                ("*.demo.test", 300, "A", "192.0.2.1"),
            ),
            (
                "@ TXT \"v=spf1 mx -all\"",
                "demo.test",
                ("demo.test", 300, "TXT", "\"v=spf1 mx -all\""),
            ),
            (
                "_sip._tcp SRV 1 2 5060 sip",
                "demo.test",
                ("_sip._tcp.demo.test", 300, "SRV", "1 2 5060 sip"),
            ),
            (
                "x TYPE65280 \\# 2 ab cd",
                "demo.test",
                ("x.demo.test", 300, "TYPE65280", "\\# 2 ab cd"),
            ),
            (
                "@ CAA 0 issue \"ca.test\"",
                "demo.test",
                ("demo.test", 300, "CAA", "0 issue \"ca.test\""),
            ),
        ];
        for (line, zone, (owner, ttl, rtype, data)) in table {
            let expected = Record {
                owner: owner.into(),
                ttl,
                rtype: rtype.into(),
                data: data.into(),
            };
            assert_eq!(parse(line, zone, 300), Ok(expected), "{line}");
        }
    }

    #[test]
    fn wrong_records_are_explained() {
        for (line, words) in [
            ("", "is empty"),
            ("www", "has no type"),
            ("www 300", "has no type"),
            ("www A", "has no data"),
            ("www A 192.0.2", "not an IPv4 address"),
            ("www A 192.0.2.1 192.0.2.2", "not an IPv4 address"),
            ("www AAAA 192.0.2.1", "not an IPv6 address"),
            ("www CNMAE x", "not a record type"),
            ("www B x", "not a record type"),
            ("@ CNAME x", "cannot be a CNAME"),
            ("@ NS ns1", "made from its name_servers"),
            ("@ SOA a b 1 2 3 4 5", "made by the name server"),
            ("www.other.test. A 192.0.2.1", "outside the zone"),
            ("www.demo.test A 192.0.2.1", "twice"),
            ("a..b A 192.0.2.1", "empty label"),
            ("a.*.b A 192.0.2.1", "cannot own a record"),
            ("@ MX mail", "not a preference and a host name"),
            ("@ MX 70000 mail", "not a preference and a host name"),
            ("@ SRV 1 2 sip", "not a priority"),
            ("@ TXT \"open", "does not end"),
            ("www 5x A 192.0.2.1", "not a TTL"),
            ("www 4294967296 A 192.0.2.1", "not a TTL"),
            ("www TYPE65280 \\# 3 abcd", "as many bytes"),
            ("www TYPE65280 \\# 2 abcx", "as many bytes"),
            ("www A 192.0.2.1\nx A 192.0.2.2", "one line"),
        ] {
            let (problem, hint) = parse(line, "demo.test", 300).expect_err(line);
            assert!(problem.contains(words), "{line}: {problem}");
            assert!(!hint.is_empty());
        }
    }

    #[test]
    fn the_nearest_type_is_named() {
        let (_, hint) = parse("www CNMAE x", "demo.test", 300).expect_err("wrong");
        assert!(hint.contains("CNAME"), "{hint}");
    }
}
