//! The forms of a line: JSON, Common Log Format, and the latter with two more fields.
//!
//! JSON strings follow RFC 8259 section 7, with U+FFFD for bytes that are not UTF-8. The other
//! forms escape as Apache's `mod_log_config` does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nearcast_fleet::config::{AccessLog, LogFormat};

use super::{Entry, protocol};
use crate::request_id::RequestId;

/// Bytes that a line has of a path, and of each field of the client.
const TEXT_BYTES_MAX: usize = 8 << 10;
const FIELD_BYTES_MAX: usize = 1024;
/// Capacity of a buffer that is kept without lines in it.
const CAPACITY_KEPT: usize = 1 << 20;

/// How lines are written.
#[derive(Debug, PartialEq)]
pub(super) struct LineFormat {
    format: LogFormat,
    truncates_clients: bool,
    /// Requests whose id has a hash up to this are logged.
    sampled_to: Option<u64>,
    /// The members `node` and `cluster` of a JSON line.
    place: Vec<u8>,
}

impl LineFormat {
    pub(super) fn new(settings: &AccessLog, node: &str, cluster: &str) -> Self {
        let mut place = Vec::new();
        place.extend_from_slice(b",\"node\":\"");
        write_json(&mut place, node.as_bytes());
        place.extend_from_slice(b"\",\"cluster\":\"");
        write_json(&mut place, cluster.as_bytes());
        place.push(b'"');
        Self {
            format: settings.format,
            truncates_clients: settings.truncates_clients,
            sampled_to: (settings.sample < 1.0)
                .then_some((settings.sample * u64::MAX as f64) as u64),
            place,
        }
    }

    /// Whether a request is logged. All nodes decide alike on the same id.
    pub(super) fn is_sampled(&self, id: &RequestId) -> bool {
        self.sampled_to.is_none_or(|most| id.hash() < most)
    }

    fn client(&self, address: IpAddr) -> IpAddr {
        match self.truncates_clients {
            true => truncated(address),
            false => address,
        }
    }
}

/// An address without its last bits: IPv4 to /24, IPv6 to /48.
fn truncated(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            Ipv4Addr::new(a, b, c, 0).into()
        }
        IpAddr::V6(address) => {
            let [a, b, c, ..] = address.segments();
            Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into()
        }
    }
}

/// Lines in a buffer.
#[derive(Default)]
pub(super) struct Lines {
    text: Vec<u8>,
    count: u64,
    date: Date,
}

impl Lines {
    pub(super) fn bytes(&self) -> usize {
        self.text.len()
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Empties the buffer, and frees the memory of an unusually large one.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.text.shrink_to(CAPACITY_KEPT);
        self.count = 0;
    }

    /// Appends one line. Does not allocate while the buffer has the capacity.
    pub(super) fn write(&mut self, format: &LineFormat, entry: &Entry<'_>) {
        let Self { text, count, date } = self;
        *count += 1;
        match format.format {
            LogFormat::Json => write_json_line(text, date, format, entry),
            LogFormat::Common | LogFormat::Combined => {
                write_common_line(text, date, format, entry);
            }
        }
    }
}

fn write_json_line(text: &mut Vec<u8>, date: &mut Date, format: &LineFormat, entry: &Entry<'_>) {
    text.extend_from_slice(b"{\"time\":\"");
    text.extend_from_slice(date.rfc3339(entry.began_ms));
    text.extend_from_slice(b"\",\"client\":\"");
    write_address(text, format.client(entry.client));
    text.extend_from_slice(b"\",\"host\":\"");
    write_json(text, cut(entry.host, FIELD_BYTES_MAX));
    text.extend_from_slice(b"\",\"method\":\"");
    write_json(text, cut(entry.method.as_bytes(), FIELD_BYTES_MAX));
    text.extend_from_slice(b"\",\"path\":\"");
    write_json(text, cut(entry.path.as_bytes(), TEXT_BYTES_MAX));
    text.extend_from_slice(b"\",\"status\":");
    write_number(text, entry.status.into());
    text.extend_from_slice(b",\"bytes\":");
    write_number(text, entry.bytes);
    text.extend_from_slice(b",\"cache\":\"");
    text.extend_from_slice(entry.outcome.label.as_str().as_bytes());
    text.push(b'"');
    if let Some(reason) = entry.outcome.forward {
        write_word(text, "forward", reason.as_str());
    }
    if let Some(cause) = entry.outcome.not_stored {
        write_word(text, "not_stored", cause.as_str());
    }
    text.extend_from_slice(&format.place);
    text.extend_from_slice(b",\"site\":\"");
    write_json(text, entry.site.as_bytes());
    text.extend_from_slice(b"\",\"protocol\":\"");
    text.extend_from_slice(protocol(entry.version).as_bytes());
    text.push(b'"');
    if let Some(tls) = entry.tls {
        write_word(text, "tls", tls);
    }
    text.extend_from_slice(b",\"request_id\":\"");
    // Its characters need no escape.
    text.extend_from_slice(entry.id.text().as_bytes());
    text.extend_from_slice(b"\",\"first_byte_us\":");
    write_number(text, entry.first_byte.as_micros() as u64);
    text.extend_from_slice(b",\"total_us\":");
    write_number(text, entry.total.as_micros() as u64);
    if let Some(time) = entry.origin {
        text.extend_from_slice(b",\"origin_us\":");
        write_number(text, time.as_micros() as u64);
    }
    for (name, value) in [
        (&b",\"referer\":\""[..], entry.referer),
        (b",\"user_agent\":\"", entry.user_agent),
    ] {
        if !value.is_empty() {
            text.extend_from_slice(name);
            write_json(text, cut(value, FIELD_BYTES_MAX));
            text.push(b'"');
        }
    }
    if let Some(word) = entry.ending.word() {
        write_word(text, "ended", word);
    }
    if entry.is_peer {
        text.extend_from_slice(b",\"peer\":true");
    }
    text.extend_from_slice(b"}\n");
}

/// A member whose value needs no escape.
fn write_word(text: &mut Vec<u8>, name: &str, word: &str) {
    text.extend_from_slice(b",\"");
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b"\":\"");
    text.extend_from_slice(word.as_bytes());
    text.push(b'"');
}

fn write_common_line(text: &mut Vec<u8>, date: &mut Date, format: &LineFormat, entry: &Entry<'_>) {
    write_address(text, format.client(entry.client));
    text.extend_from_slice(b" - - [");
    text.extend_from_slice(date.common(entry.began_ms));
    text.extend_from_slice(b"] \"");
    if entry.method.is_empty() {
        text.push(b'-');
    } else {
        write_common(text, cut(entry.method.as_bytes(), FIELD_BYTES_MAX));
        text.push(b' ');
        write_common(text, cut(entry.path.as_bytes(), TEXT_BYTES_MAX));
        text.push(b' ');
        text.extend_from_slice(protocol(entry.version).as_bytes());
    }
    text.extend_from_slice(b"\" ");
    write_number(text, entry.status.into());
    text.push(b' ');
    match entry.bytes {
        0 => text.push(b'-'),
        bytes => write_number(text, bytes),
    }
    if format.format == LogFormat::Combined {
        for value in [entry.referer, entry.user_agent] {
            text.extend_from_slice(b" \"");
            match value.is_empty() {
                true => text.push(b'-'),
                false => write_common(text, cut(value, FIELD_BYTES_MAX)),
            }
            text.push(b'"');
        }
    }
    text.push(b'\n');
}

fn cut(bytes: &[u8], most: usize) -> &[u8] {
    &bytes[..bytes.len().min(most)]
}

fn write_address(text: &mut Vec<u8>, address: IpAddr) {
    use std::io::Write as _;
    match address {
        IpAddr::V4(address) => {
            for (at, octet) in address.octets().into_iter().enumerate() {
                if at > 0 {
                    text.push(b'.');
                }
                write_number(text, octet.into());
            }
        }
        // Writing to a `Vec` cannot fail.
        IpAddr::V6(address) => drop(write!(text, "{address}")),
    }
}

fn write_number(text: &mut Vec<u8>, mut number: u64) {
    // 2^64 has 20 digits.
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
}

/// Appends the content of a JSON string.
fn write_json(text: &mut Vec<u8>, bytes: &[u8]) {
    let is_plain = |byte: &u8| matches!(byte, 0x20..=0x7e) && !matches!(byte, b'"' | b'\\');
    // Without an early end, so that several bytes are compared at once.
    if bytes
        .iter()
        .fold(true, |plain, byte| plain & is_plain(byte))
    {
        text.extend_from_slice(bytes);
        return;
    }
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => text.extend_from_slice(b"\\\""),
                '\\' => text.extend_from_slice(b"\\\\"),
                // Controls of both sets, and the separators at which JavaScript ends a line.
                '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}' => {
                    write_hex(text, b"\\u", character as u32, 4);
                }
                _ => text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            text.extend_from_slice(b"\\ufffd");
        }
    }
}

/// Appends a text as `mod_log_config` of Apache escapes it.
fn write_common(text: &mut Vec<u8>, bytes: &[u8]) {
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => text.extend_from_slice(&[b'\\', byte]),
            0x08 => text.extend_from_slice(b"\\b"),
            b'\n' => text.extend_from_slice(b"\\n"),
            b'\r' => text.extend_from_slice(b"\\r"),
            b'\t' => text.extend_from_slice(b"\\t"),
            0x0b => text.extend_from_slice(b"\\v"),
            0x20..=0x7e => text.push(byte),
            _ => write_hex(text, b"\\x", byte.into(), 2),
        }
    }
}

fn write_hex(text: &mut Vec<u8>, mark: &[u8], number: u32, digits: u32) {
    text.extend_from_slice(mark);
    for place in (0..digits).rev() {
        let digit = (number >> (4 * place)) & 15;
        text.push(b"0123456789abcdef"[digit as usize]);
    }
}

/// The date of the newest line in both forms: nearly all lines have it in common with the one
/// before.
struct Date {
    unix_s: u64,
    /// `2026-11-28T02:04:46.123Z`.
    rfc3339: [u8; 24],
    /// `28/Nov/2026:02:04:46 +0000`.
    common: [u8; 26],
}

impl Default for Date {
    fn default() -> Self {
        Self {
            unix_s: u64::MAX,
            rfc3339: *b"0000-00-00T00:00:00.000Z",
            common: *b"00/Jan/0000:00:00:00 +0000",
        }
    }
}

impl Date {
    /// RFC 3339 section 5.6, in UTC, with milliseconds.
    fn rfc3339(&mut self, unix_ms: u64) -> &[u8] {
        self.set(unix_ms / 1000);
        set_digits(&mut self.rfc3339[20..23], unix_ms % 1000);
        &self.rfc3339
    }

    fn common(&mut self, unix_ms: u64) -> &[u8] {
        self.set(unix_ms / 1000);
        &self.common
    }

    fn set(&mut self, unix_s: u64) {
        const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
        if self.unix_s == unix_s {
            return;
        }
        self.unix_s = unix_s;
        let (year, month, day) = civil(unix_s / 86_400);
        let second = unix_s % 86_400;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        for (range, number) in [
            (0..4, year),
            (5..7, month),
            (8..10, day),
            (11..13, hour),
            (14..16, minute),
            (17..19, second),
        ] {
            set_digits(&mut self.rfc3339[range], number);
        }
        for (range, number) in [
            (0..2, day),
            (7..11, year),
            (12..14, hour),
            (15..17, minute),
            (18..20, second),
        ] {
            set_digits(&mut self.common[range], number);
        }
        let at = 3 * (month as usize - 1);
        self.common[3..6].copy_from_slice(&MONTHS[at..at + 3]);
    }
}

/// Writes the last decimal digits of a number over all of `place`.
fn set_digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of a day after 1970-01-01, in the Gregorian calendar (Hinnant,
/// "chrono-compatible low-level date algorithms", `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    // Days after 0000-03-01; 400 years have 146,097.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = match month_from_march < 10 {
        true => month_from_march + 3,
        false => month_from_march - 9,
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::time::Duration;

    use http::Version;
    use nearcast_fleet::config::LogTarget;
    use nearcast_fleet::report::CacheStatus;
    use nearcast_fleet::units::Bytes;
    use nearcast_http_rules::not_stored::NotStored;
    use nearcast_http_rules::status::{ForwardReason, Outcome};
    use proptest::prelude::*;

    use super::super::Ending;
    use super::super::testing::entry;
    use super::*;
    use crate::request_id::RequestIds;

    fn settings(format: LogFormat) -> AccessLog {
        AccessLog {
            target: LogTarget::File(PathBuf::from("access.log")),
            format,
            sample: 1.0,
            truncates_clients: false,
            rotate_at: Bytes(1 << 20),
            kept: 5,
        }
    }

    fn line(settings: &AccessLog, entry: &Entry<'_>) -> String {
        let mut lines = Lines::default();
        lines.write(&LineFormat::new(settings, "ams-1", "ams"), entry);
        assert_eq!(lines.count(), 1);
        String::from_utf8(lines.text().to_vec()).expect("UTF-8")
    }

    #[test]
    fn a_json_line_has_every_field() {
        let id = RequestId::given(b"0123456789abcdef01234567").expect("a token");
        let hit = Outcome::hit(5);
        assert_eq!(
            line(&settings(LogFormat::Json), &entry(&id, &hit)),
            "{\"time\":\"2025-11-28T02:04:46.123Z\",\"client\":\"192.0.2.77\",\"host\":\"www.example.org\",\"method\":\"GET\",\
             \"path\":\"/a?b=c\",\"status\":200,\"bytes\":1024,\"cache\":\"hit\",\"node\":\"ams-1\",\"cluster\":\"ams\",\"site\":\"www\",\
             \"protocol\":\"HTTP/1.1\",\"request_id\":\"0123456789abcdef01234567\",\"first_byte_us\":17,\"total_us\":17,\
             \"user_agent\":\"curl/8\"}\n"
        );

        let miss = Outcome {
            not_stored: Some(NotStored::NoStore),
            ..Outcome::forwarded(CacheStatus::Miss, ForwardReason::UriMiss)
        };
        let whole = Entry {
            tls: Some("TLSv1.3"),
            version: Version::HTTP_2,
            referer: b"https://x.example/",
            origin: Some(Duration::from_millis(30)),
            total: Duration::from_secs(2),
            ending: Ending::ClientLeft,
            is_peer: true,
            ..entry(&id, &miss)
        };
        let value: serde_json::Value =
            serde_json::from_str(&line(&settings(LogFormat::Json), &whole)).expect("JSON");
        for (name, expected) in [
            ("cache", "miss"),
            ("forward", "uri-miss"),
            ("not_stored", "no-store"),
            ("tls", "TLSv1.3"),
            ("protocol", "HTTP/2.0"),
            ("referer", "https://x.example/"),
            ("ended", "client-left"),
        ] {
            assert_eq!(value[name], expected, "{name}");
        }
        assert_eq!(value["origin_us"], 30_000);
        assert_eq!(value["total_us"], 2_000_000);
        assert_eq!(value["peer"], true);
    }

    #[test]
    fn the_page_lists_the_members_of_a_line() {
        const PAGE: &str = include_str!("../../../docs/logs.md");
        let id = RequestId::given(b"0123456789abcdef01234567").expect("a token");
        let outcome = Outcome {
            not_stored: Some(NotStored::NoStore),
            ..Outcome::forwarded(CacheStatus::Miss, ForwardReason::UriMiss)
        };
        // With everything that a request may lack.
        let whole = Entry {
            tls: Some("TLSv1.3"),
            referer: b"https://x.example/",
            origin: Some(Duration::from_millis(30)),
            ending: Ending::ClientLeft,
            is_peer: true,
            ..entry(&id, &outcome)
        };
        let value: serde_json::Value =
            serde_json::from_str(&line(&settings(LogFormat::Json), &whole)).expect("JSON");
        let members: BTreeSet<&str> = value
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        let listed = crate::documented::first_column(PAGE, "| Member of `json` |");
        assert_eq!(members, listed);
    }

    #[test]
    fn common_lines_are_those_of_apache() {
        let id = RequestIds::default().next();
        let hit = Outcome::hit(5);
        let plain = entry(&id, &hit);
        let common = |entry: &Entry<'_>| line(&settings(LogFormat::Common), entry);
        let combined = |entry: &Entry<'_>| line(&settings(LogFormat::Combined), entry);
        assert_eq!(
            common(&plain),
            "192.0.2.77 - - [28/Nov/2025:02:04:46 +0000] \"GET /a?b=c HTTP/1.1\" 200 1024\n"
        );
        let refused = Entry {
            method: "",
            path: "",
            user_agent: b"",
            status: 400,
            bytes: 0,
            ..plain
        };
        assert_eq!(
            common(&refused),
            "192.0.2.77 - - [28/Nov/2025:02:04:46 +0000] \"-\" 400 -\n"
        );
        assert!(combined(&refused).ends_with("\"-\" 400 - \"-\" \"-\"\n"));
        let odd = Entry {
            path: "/\"\\\u{e9}",
            referer: b"a\"b\\c\r\n\t\x0b\x08\x00\x7f\xff",
            ..plain
        };
        assert!(combined(&odd).ends_with(
            "\"GET /\\\"\\\\\\xc3\\xa9 HTTP/1.1\" 200 1024 \"a\\\"b\\\\c\\r\\n\\t\\v\\b\\x00\\x7f\\xff\" \"curl/8\"\n"
        ));
    }

    #[test]
    fn json_strings_are_escaped() {
        for (bytes, expected) in [
            (&b"plain"[..], "plain"),
            (b"", ""),
            (b"a\"b\\c", "a\\\"b\\\\c"),
            (b"\x00\x1f\n\x7f", "\\u0000\\u001f\\u000a\\u007f"),
            ("é\u{2028}😀".as_bytes(), "é\\u2028😀"),
            (b"a\xffb\xc3", "a\\ufffdb\\ufffd"),
        ] {
            let mut text = Vec::new();
            write_json(&mut text, bytes);
            assert_eq!(String::from_utf8_lossy(&text), expected, "{bytes:?}");
        }
    }

    #[test]
    fn clients_lose_their_last_bits_where_that_is_set() {
        let id = RequestIds::default().next();
        let hit = Outcome::hit(5);
        let settings = AccessLog {
            truncates_clients: true,
            ..settings(LogFormat::Common)
        };
        for (whole, expected) in [
            ("192.0.2.77", "192.0.2.0 - "),
            ("2001:db8:1:2:3::4", "2001:db8:1:: - "),
        ] {
            let entry = Entry {
                client: whole.parse().expect("an address"),
                ..entry(&id, &hit)
            };
            assert!(line(&settings, &entry).starts_with(expected), "{whole}");
        }
    }

    #[test]
    fn a_sample_has_its_share_of_the_ids_and_every_node_the_same() {
        let sampled = |sample| {
            let settings = AccessLog {
                sample,
                ..settings(LogFormat::Json)
            };
            ["ams-1", "nyc-2"].map(|node| LineFormat::new(&settings, node, "x"))
        };
        let mut ids = RequestIds::default();
        let (all, few, none) = (sampled(1.0), sampled(0.1), sampled(0.0));
        let mut count = 0;
        for _ in 0..20_000 {
            let id = ids.next();
            assert!(all[0].is_sampled(&id) && !none[0].is_sampled(&id));
            assert_eq!(few[0].is_sampled(&id), few[1].is_sampled(&id));
            count += usize::from(few[0].is_sampled(&id));
        }
        assert!((1700..2300).contains(&count), "{count}");
    }

    #[test]
    fn endless_texts_are_cut() {
        let id = RequestIds::default().next();
        let hit = Outcome::hit(5);
        let path = format!("/{}", "\u{1}".repeat(300_000));
        let field = vec![0xff; 300_000];
        let entry = Entry {
            path: &path,
            host: &field,
            referer: &field,
            user_agent: &field,
            ..entry(&id, &hit)
        };
        assert!(line(&settings(LogFormat::Json), &entry).len() < 80_000);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix_s, expected) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (4_102_444_799, "2099-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            let mut date = Date::default();
            assert_eq!(
                String::from_utf8_lossy(date.rfc3339(unix_s * 1000 + 7)),
                format!("{expected}.007Z")
            );
        }
    }

    proptest! {
        #[test]
        fn every_line_is_one_line_and_json_reads_it(
            path in ".*", host in proptest::collection::vec(any::<u8>(), 0..40), agent in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let id = RequestIds::default().next();
            let hit = Outcome::hit(5);
            let entry = Entry { path: &path, host: &host, user_agent: &agent, ..entry(&id, &hit) };
            let json = line(&settings(LogFormat::Json), &entry);
            prop_assert_eq!(json.matches('\n').count(), 1);
            let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
            prop_assert_eq!(value["path"].as_str(), Some(&*path));
            prop_assert_eq!(value["host"].as_str(), Some(&*String::from_utf8_lossy(&host)));
            let common = line(&settings(LogFormat::Combined), &entry);
            prop_assert!(common.trim_end_matches('\n').bytes().all(|b| matches!(b, 0x20..=0x7e)));
        }
    }
}
