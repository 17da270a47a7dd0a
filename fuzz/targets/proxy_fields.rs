//! Any bytes as the fields by which proxies state a client: what a trusted proxy has appended holds
//! whatever its client wrote before it.
//!
//! The input is lines of `name: value`.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use libfuzzer_sys::fuzz_target;
use nearcast_http_rules::proxies::{self, LINES_MAX, Seen};

const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const CLIENT: &str = "192.0.2.7";

fn stated(lines: &[(&str, &[u8])]) -> Seen {
    let is_trusted = |address| matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10);
    proxies::stated((PROXY, "http"), lines.iter().copied(), is_trusted)
}

fuzz_target!(|input: &[u8]| {
    let mut lines: Vec<(&str, &[u8])> = Vec::new();
    for line in input.split(|byte| *byte == b'\n').take(LINES_MAX * 4) {
        let Some(at) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        if let Ok(name) = std::str::from_utf8(&line[..at]) {
            lines.push((name, &line[at + 1..]));
        }
    }
    let seen = stated(&lines);
    assert!(matches!(seen.scheme, "http" | "https"));

    let names = lines.iter().map(|(name, _)| name);
    let count = names
        .filter(|name| name.eq_ignore_ascii_case("x-forwarded-for"))
        .count();
    lines.push(("x-forwarded-for", CLIENT.as_bytes()));
    let appended = stated(&lines);
    match count < LINES_MAX {
        true => assert_eq!(appended.address.to_string(), CLIENT),
        false => assert_eq!((appended.address, appended.is_malformed), (PROXY, true)),
    }
});
