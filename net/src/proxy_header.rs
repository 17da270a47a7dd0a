//! The header by which a proxy names the client of a connection, before that connection's first
//! byte: the PROXY protocol, versions 1 and 2.
//!
//! Follows HAProxy's `proxy-protocol.txt` (version of 2020/03/05), sections 2.1, 2.2 and 3. A header
//! is believed only from proxies that the caller trusts, and on a listener that expects one it must
//! be there: otherwise a client could write its own.
//!
//! [`parse`] is pure. [`read`] reads exactly the header, so that what follows it stays in the
//! socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Longest header of version 1, with its line end.
pub const V1_BYTES_MAX: usize = 107;
/// Longest header of version 2. Proxies send a few hundred bytes; certificates of clients, which some
/// can add, are longer and are not used here.
pub const V2_BYTES_MAX: usize = V2_FIXED + 4096;

/// How version 1 begins.
const V1_START: &[u8] = b"PROXY ";
/// How version 2 begins.
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of a header of version 2 before its addresses.
const V2_FIXED: usize = 16;

/// TLV with a checksum of the whole header (section 2.2.3).
const TLV_CRC32C: u8 = 0x03;
/// TLV on the TLS of the client's connection (section 2.2.6).
const TLV_SSL: u8 = 0x20;
/// The client used TLS.
const CLIENT_SSL: u8 = 0x01;

/// What a header states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client's address. `None` where the connection is the proxy's own, as its health checks
    /// are, or where the client has no IP address: then the connection's address holds.
    pub client: Option<SocketAddr>,
    /// The client's connection to the proxy used TLS.
    pub is_tls: bool,
}

/// Why a connection has no header that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ProxyHeaderError {
    /// It begins with something else.
    #[error("the connection does not begin with a PROXY header")]
    Absent,
    /// It ended first.
    #[error("the connection ended before its PROXY header was complete")]
    Ended,
    /// The header contradicts the protocol.
    #[error("the PROXY header is malformed: {0}")]
    Malformed(&'static str),
    /// The header is longer than the limit.
    #[error("the PROXY header is longer than the limit")]
    TooLong,
    /// Its checksum is not that of its bytes.
    #[error("the checksum of the PROXY header is wrong")]
    Checksum,
    /// The connection failed.
    #[error("the connection failed before its PROXY header was complete: {0}")]
    Io(#[from] io::Error),
}

impl ProxyHeaderError {
    /// The label values of [`ProxyHeaderError::reason`].
    pub const REASONS: [&'static str; 6] = [
        "absent",
        "ended",
        "malformed",
        "too_long",
        "checksum",
        "failed",
    ];

    /// One word, for a metric.
    pub fn reason(&self) -> &'static str {
        let number = match self {
            Self::Absent => 0,
            Self::Ended => 1,
            Self::Malformed(_) => 2,
            Self::TooLong => 3,
            Self::Checksum => 4,
            Self::Io(_) => 5,
        };
        Self::REASONS[number]
    }
}

/// What the bytes at the start of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header. This many bytes more belong to it at least, so that they can be
    /// read without reading what follows it. In version 1 the count is 1, because its line may end
    /// anywhere.
    Incomplete(usize),
    /// A header of this length.
    Whole(usize, ProxyHeader),
}

/// Parses the header at the start of a connection.
///
/// # Errors
/// The bytes are no header, or contradict the protocol.
pub fn parse(input: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    let begins = |start: &[u8]| {
        let length = input.len().min(start.len());
        input[..length] == start[..length]
    };
    if input.is_empty() {
        // The shorter one of the shortest headers: `PROXY UNKNOWN` and its line end.
        return Ok(Parsed::Incomplete(1));
    }
    if begins(V2_START) {
        return parse_v2(input);
    }
    if begins(V1_START) {
        return parse_v1(input);
    }
    Err(ProxyHeaderError::Absent)
}

/// Reads the header at the start of a connection, and not one byte more.
///
/// # Errors
/// As [`parse`]; the connection failed or ended first.
pub async fn read(stream: &mut TcpStream) -> Result<ProxyHeader, ProxyHeaderError> {
    let mut input = Vec::with_capacity(V1_BYTES_MAX + 1);
    loop {
        let more = match parse(&input)? {
            Parsed::Whole(_, header) => return Ok(header),
            Parsed::Incomplete(more) => more,
        };
        let at = input.len();
        // The end of a line of version 1 is found in the socket, before its bytes are taken out.
        let is_line = more == 1 && input.starts_with(V1_START);
        let wanted = if is_line { V1_BYTES_MAX - at } else { more };
        input.resize(at + wanted, 0);
        let taken = if is_line {
            let seen = stream.peek(&mut input[at..]).await?;
            let end = input[at..at + seen].iter().position(|byte| *byte == b'\n');
            let line = end.map_or(seen, |end| end + 1);
            stream.read(&mut input[at..at + line]).await?
        } else {
            stream.read(&mut input[at..]).await?
        };
        input.truncate(at + taken);
        if taken == 0 {
            return Err(ProxyHeaderError::Ended);
        }
    }
}

fn parse_v1(input: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    let within = &input[..input.len().min(V1_BYTES_MAX)];
    let Some(end) = within.iter().position(|byte| *byte == b'\n') else {
        return match input.len() < V1_BYTES_MAX {
            true => Ok(Parsed::Incomplete(1)),
            false => Err(ProxyHeaderError::TooLong),
        };
    };
    let malformed = ProxyHeaderError::Malformed;
    let line = within[..end]
        .strip_suffix(b"\r")
        .ok_or(malformed("its line ends without a carriage return"))?;
    let line = std::str::from_utf8(line).map_err(|_| malformed("it is no text"))?;

    let mut words = line.split(' ').skip(1);
    let family = words.next().unwrap_or_default();
    if family == "UNKNOWN" {
        // Nothing else on the line is used.
        let header = ProxyHeader {
            client: None,
            is_tls: false,
        };
        return Ok(Parsed::Whole(end + 1, header));
    }
    let (Some(source), Some(target), Some(source_port), Some(target_port), None) = (
        words.next(),
        words.next(),
        words.next(),
        words.next(),
        words.next(),
    ) else {
        return Err(malformed("it has not two addresses and two ports"));
    };
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let port = |text: &str| -> Option<u16> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit())
            && (text == "0" || !text.starts_with('0'));
        text.parse().ok().filter(|_| is_number)
    };
    let addresses = address(source).zip(address(target));
    let ports = port(source_port).zip(port(target_port));
    match (addresses, ports) {
        (Some((source, _)), Some((port, _))) => Ok(Parsed::Whole(
            end + 1,
            ProxyHeader {
                client: Some(SocketAddr::new(source.to_canonical(), port)),
                is_tls: false,
            },
        )),
        (None, _) => Err(malformed(
            "its addresses are not of the family that it names",
        )),
        (_, None) => Err(malformed("a port is no number from 0 to 65535")),
    }
}

fn parse_v2(input: &[u8]) -> Result<Parsed, ProxyHeaderError> {
    let malformed = ProxyHeaderError::Malformed;
    let Some(fixed) = input.get(..V2_FIXED) else {
        return Ok(Parsed::Incomplete(V2_FIXED - input.len()));
    };
    let is_proxied = match fixed[12] {
        0x20 => false,
        0x21 => true,
        _ => return Err(malformed("its version or command is unknown")),
    };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > V2_BYTES_MAX {
        return Err(ProxyHeaderError::TooLong);
    }
    let Some(header) = input.get(..length) else {
        return Ok(Parsed::Incomplete(length - input.len()));
    };
    let mut stated = ProxyHeader {
        client: None,
        is_tls: false,
    };
    if !is_proxied {
        // The connection is the proxy's own, whatever follows.
        return Ok(Parsed::Whole(length, stated));
    }

    let rest = &header[V2_FIXED..];
    let addresses = match fixed[13] {
        // Unknown to the proxy.
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        // Sockets of a file system, which have no address for us.
        0x31 => 216,
        _ => {
            return Err(malformed(
                "it is not about a stream of IPv4, IPv6 or a Unix socket",
            ));
        }
    };
    if rest.len() < addresses {
        return Err(malformed("it is too short for its addresses"));
    }
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match addresses {
        12 => {
            let address: [u8; 4] = rest[..4].try_into().expect("four bytes");
            stated.client = Some(SocketAddr::new(address.into(), port(8)));
        }
        36 => {
            let address: [u8; 16] = rest[..16].try_into().expect("sixteen bytes");
            let address = IpAddr::from(address).to_canonical();
            stated.client = Some(SocketAddr::new(address, port(32)));
        }
        _ => {}
    }
    stated.is_tls = read_tlvs(header, V2_FIXED + addresses)?;
    Ok(Parsed::Whole(length, stated))
}

/// Reads the TLVs from `at` on: checks the checksum, and gives whether the client used TLS. Others
/// are skipped, the name that the client asked for by TLS (authority) too: each request names its
/// host.
fn read_tlvs(header: &[u8], mut at: usize) -> Result<bool, ProxyHeaderError> {
    let mut is_tls = false;
    while at < header.len() {
        let too_short = ProxyHeaderError::Malformed("a TLV is longer than the header");
        let Some(&[kind, high, low]) = header.get(at..at + 3).and_then(|tlv| tlv.first_chunk())
        else {
            return Err(too_short);
        };
        let begins = at + 3;
        at = begins + usize::from(u16::from_be_bytes([high, low]));
        let value = header.get(begins..at).ok_or(too_short)?;
        match (kind, value) {
            (TLV_CRC32C, value) => {
                let Ok(stated) = <[u8; 4]>::try_from(value) else {
                    return Err(ProxyHeaderError::Malformed(
                        "its checksum has not four bytes",
                    ));
                };
                let found = [&header[..begins], &[0; 4], &header[at..]];
                if crc32c(found.into_iter().flatten()) != u32::from_be_bytes(stated) {
                    return Err(ProxyHeaderError::Checksum);
                }
            }
            (TLV_SSL, [client, _, _, _, _, ..]) => is_tls |= client & CLIENT_SSL != 0,
            (TLV_SSL, _) => return Err(ProxyHeaderError::Malformed("its TLS part is too short")),
            _ => {}
        }
    }
    Ok(is_tls)
}

/// The checksum of RFC 9260 appendix A (Castagnoli).
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let mut sum = !0_u32;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = match sum & 1 {
                1 => sum >> 1 ^ 0x82f6_3b78,
                _ => sum >> 1,
            };
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    const IPV4: [u8; 12] = [192, 0, 2, 1, 127, 0, 0, 1, 0x12, 0x67, 0, 80];

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = V2_START.to_vec();
        header.extend([command, family]);
        header.extend(u16::try_from(rest.len()).expect("short").to_be_bytes());
        header.extend(rest);
        header
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let mut tlv = vec![kind];
        tlv.extend(u16::try_from(value.len()).expect("short").to_be_bytes());
        tlv.extend(value);
        tlv
    }

    fn with_tlvs(tlvs: &[u8]) -> Vec<u8> {
        v2(0x21, 0x11, &[&IPV4[..], tlvs].concat())
    }

    fn with_checksum(xor: u8) -> Vec<u8> {
        let mut header = with_tlvs(&tlv(TLV_CRC32C, &[0; 4]));
        let mut sum = crc32c(header.iter()).to_be_bytes();
        sum[3] ^= xor;
        let at = header.len() - 4;
        header[at..].copy_from_slice(&sum);
        header
    }

    /// Headers that can be used, the client's address and whether it used TLS.
    fn valid() -> Vec<(Vec<u8>, Option<&'static str>, bool)> {
        let text = |text: &str| text.as_bytes().to_vec();
        let of_v6 = {
            let mut rest = [0; 36];
            rest[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().expect("one").octets());
            rest[32..34].copy_from_slice(&443_u16.to_be_bytes());
            rest
        };
        vec![
            (
                text("PROXY TCP4 192.0.2.1 127.0.0.1 4711 80\r\n"),
                Some("192.0.2.1:4711"),
                false,
            ),
            (
                text("PROXY TCP6 2001:db8::7 ::1 443 80\r\n"),
                Some("[2001:db8::7]:443"),
                false,
            ),
            (
                text("PROXY TCP6 ::ffff:192.0.2.1 ::1 0 80\r\n"),
                Some("192.0.2.1:0"),
                false,
            ),
            (text("PROXY UNKNOWN\r\n"), None, false),
            (
                format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_BYTES_MAX - 16)).into_bytes(),
                None,
                false,
            ),
            (v2(0x21, 0x11, &IPV4), Some("192.0.2.1:4711"), false),
            (v2(0x21, 0x21, &of_v6), Some("[2001:db8::7]:443"), false),
            (v2(0x20, 0x00, &[]), None, false),
            (v2(0x20, 0x11, b"whatever"), None, false),
            (v2(0x21, 0x00, &[]), None, false),
            (v2(0x21, 0x31, &[b'/'; 216]), None, false),
            (with_checksum(0), Some("192.0.2.1:4711"), false),
            (
                with_tlvs(&tlv(TLV_SSL, &[1, 0, 0, 0, 0])),
                Some("192.0.2.1:4711"),
                true,
            ),
            (
                with_tlvs(&tlv(TLV_SSL, &[0, 0, 0, 0, 0])),
                Some("192.0.2.1:4711"),
                false,
            ),
            (
                with_tlvs(
                    &[
                        tlv(0x02, b"a.test"),
                        tlv(TLV_SSL, b"\x07\0\0\0\0\x21\0\x07TLSv1.3"),
                        tlv(0x04, &[0; 9]),
                    ]
                    .concat(),
                ),
                Some("192.0.2.1:4711"),
                true,
            ),
            (
                with_tlvs(&tlv(0xee, &vec![7; V2_BYTES_MAX - V2_FIXED - 12 - 3])),
                Some("192.0.2.1:4711"),
                false,
            ),
        ]
    }

    #[test]
    fn every_beginning_is_incomplete_and_the_whole_is_exact() {
        for (header, client, is_tls) in valid() {
            let stated = ProxyHeader {
                client: client.map(|client| client.parse().expect("an address")),
                is_tls,
            };
            for length in 0..header.len() {
                match parse(&header[..length]).expect("a beginning") {
                    Parsed::Incomplete(more) => {
                        assert!(
                            more >= 1 && length + more <= header.len(),
                            "{length} {more}"
                        );
                    }
                    whole => panic!("{length}: {whole:?}"),
                }
            }
            let followed = [&header[..], b"\nGET / HTTP/1.1\r\n"].concat();
            for input in [&header, &followed] {
                let found = parse(input).expect("a header");
                assert_eq!(found, Parsed::Whole(header.len(), stated));
            }
        }
    }

    #[test]
    fn anything_else_is_an_error_with_its_reason() {
        let mut too_long = v2(0x21, 0x11, &IPV4);
        too_long[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        let table: [(Vec<u8>, &str); 29] = [
            (b"GET / HTTP/1.1\r\n".to_vec(), "absent"),
            (b"\x16\x03\x01\x02".to_vec(), "absent"),
            (b"proxy TCP4".to_vec(), "absent"),
            (b"\r\nG".to_vec(), "absent"),
            (b"PROXY\r\n".to_vec(), "absent"),
            (b"PROXY \r\n".to_vec(), "malformed"),
            (b"PROXY UNKNOWN\n".to_vec(), "malformed"),
            (b"PROXY TCP4\r\n".to_vec(), "malformed"),
            (
                b"PROXY TCP4 192.0.2.1 127.0.0.1 1\r\n".to_vec(),
                "malformed",
            ),
            (
                b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2 3\r\n".to_vec(),
                "malformed",
            ),
            (
                b"PROXY TCP4 192.0.2.1  127.0.0.1 1 2\r\n".to_vec(),
                "malformed",
            ),
            (b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(), "malformed"),
            (b"PROXY TCP6 192.0.2.1 ::1 1 2\r\n".to_vec(), "malformed"),
            (
                b"PROXY UDP4 192.0.2.1 127.0.0.1 1 2\r\n".to_vec(),
                "malformed",
            ),
            (
                b"PROXY TCP4 192.0.2.1 127.0.0.1 1 65536\r\n".to_vec(),
                "malformed",
            ),
            (
                b"PROXY TCP4 192.0.2.1 127.0.0.1 +1 2\r\n".to_vec(),
                "malformed",
            ),
            (
                b"PROXY TCP4 192.0.2.1 127.0.0.1 01 2\r\n".to_vec(),
                "malformed",
            ),
            (b"PROXY TCP4 \xff 127.0.0.1 1 2\r\n".to_vec(), "malformed"),
            (
                [b"PROXY UNKNOWN"[..].to_vec(), vec![b' '; 200]].concat(),
                "too_long",
            ),
            (v2(0x11, 0x11, &IPV4), "malformed"),
            (v2(0x22, 0x11, &IPV4), "malformed"),
            (v2(0x21, 0x12, &IPV4), "malformed"),
            (v2(0x21, 0x11, &IPV4[..11]), "malformed"),
            (v2(0x21, 0x21, &IPV4), "malformed"),
            (too_long, "too_long"),
            (with_tlvs(&[TLV_SSL, 0]), "malformed"),
            (with_tlvs(&tlv(TLV_SSL, &[1, 0])), "malformed"),
            (with_tlvs(&[TLV_SSL, 0, 9, 1]), "malformed"),
            (with_checksum(1), "checksum"),
        ];
        for (input, reason) in table {
            let error = parse(&input).expect_err(&format!("{}", input.escape_ascii()));
            assert_eq!(error.reason(), reason, "{}", input.escape_ascii());
        }
        let short = with_tlvs(&tlv(TLV_CRC32C, &[0; 3]));
        assert_eq!(parse(&short).expect_err("short").reason(), "malformed");
    }

    #[test]
    fn the_checksum_is_the_one_of_iscsi() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c([0; 32].iter()), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.expect("connected"), accepted.expect("accepted").0)
    }

    #[tokio::test]
    async fn what_follows_a_header_stays_in_the_socket_wherever_it_is_split() {
        let next = b"\nPROXY \r\nGET / HTTP/1.1\r\n\r\n";
        for (header, client, is_tls) in valid() {
            let whole = [&header[..], next].concat();
            let step = if header.len() > 300 { 97 } else { 1 };
            for at in (0..=header.len()).step_by(step) {
                let (mut sender, mut receiver) = pair().await;
                sender.set_nodelay(true).expect("a socket");
                let (first, second) = whole.split_at(at);
                let sending = async {
                    sender.write_all(first).await.expect("sent");
                    tokio::task::yield_now().await;
                    sender.write_all(second).await.expect("sent");
                    drop(sender);
                };
                let ((), found) = tokio::join!(sending, read(&mut receiver));
                let found = found.expect("a header");
                let expected = client.map(|client| client.parse().expect("an address"));
                assert_eq!((found.client, found.is_tls), (expected, is_tls));
                let mut rest = Vec::new();
                receiver.read_to_end(&mut rest).await.expect("the rest");
                assert_eq!(rest, next, "split at {at} of {}", header.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_first_is_an_error() {
        for (header, ..) in valid() {
            for at in [0, 1, 5, 6, header.len() - 1] {
                let (mut sender, mut receiver) = pair().await;
                sender.write_all(&header[..at]).await.expect("sent");
                drop(sender);
                let error = read(&mut receiver).await.expect_err("no header");
                assert_eq!(error.reason(), "ended", "{at} of {}", header.escape_ascii());
            }
        }
    }

    #[test]
    fn no_bytes_panic() {
        // Every change of one byte of each header, with all of their beginnings.
        for (header, ..) in valid() {
            for at in 0..header.len().min(300) {
                for value in [0, 1, 0x0a, 0x0d, 0x20, 0x7f, 0x80, 0xff] {
                    let mut changed = header.clone();
                    changed[at] = value;
                    if let Ok(Parsed::Whole(length, _)) = parse(&changed) {
                        assert!(length <= changed.len());
                    }
                }
            }
        }
    }
}
