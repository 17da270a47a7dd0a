//! The DNS side of a synthetic client: one question at a time over UDP, with a client subnet
//! (RFC 1035, RFC 6891, RFC 7871).
//!
//! It acts as a resolver that passes the subnet on and caches for this client alone. hickory-proto
//! writes and reads the messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsOption};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

/// How long one attempt may take.
const ATTEMPT_TIME_MAX: Duration = Duration::from_millis(1000);
/// Attempts for one question, over all servers.
const ATTEMPTS_MAX: usize = 3;
/// Links of a CNAME chain.
const CHAIN_MAX: usize = 8;
/// Size of a response, as advertised and read.
const RESPONSE_BYTES_MAX: u16 = 1232;
/// Length of the client subnet in a question.
const SOURCE_PREFIX: u8 = 24;

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DnsError {
    /// No server answered in time.
    #[error("no name server answers")]
    Unanswered,
    /// The server answered with an error.
    #[error("the name server answers with RCODE {0}")]
    Refused(u16),
    /// The response cannot be parsed.
    #[error("the answer is malformed")]
    Malformed,
    /// The name has no address, or its chain of aliases is too long.
    #[error("the name has no address")]
    NoAddress,
    /// The text is not a name.
    #[error("that is not a host name")]
    BadName,
}

/// Addresses of a name, and how long they may be cached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// In the order of the response; at least one.
    pub(crate) list: Vec<Ipv4Addr>,
    /// The least TTL of the chain, seconds.
    pub(crate) ttl: u32,
}

/// Resolves `host` for `client`. `ids` makes the identifiers of the questions.
pub(crate) async fn resolve(
    servers: &[SocketAddr],
    host: &str,
    client: Ipv4Addr,
    mut ids: impl FnMut() -> u16,
) -> Result<Addresses, DnsError> {
    let mut name = parse_name(host)?;
    let mut ttl = u32::MAX;
    for _ in 0..CHAIN_MAX {
        let answers = ask(servers, &name, client, &mut ids).await?;
        let end = follow_aliases(&name, &answers);
        ttl = ttl.min(end.ttl);
        if !end.addresses.is_empty() {
            return Ok(Addresses {
                list: end.addresses,
                ttl,
            });
        }
        if end.name == name {
            return Err(DnsError::NoAddress);
        }
        name = end.name;
    }
    Err(DnsError::NoAddress)
}

fn parse_name(host: &str) -> Result<Name, DnsError> {
    let mut name = Name::from_ascii(host).map_err(|_| DnsError::BadName)?;
    name.set_fqdn(true);
    Ok(name)
}

async fn ask(
    servers: &[SocketAddr],
    name: &Name,
    client: Ipv4Addr,
    ids: &mut impl FnMut() -> u16,
) -> Result<Vec<Record>, DnsError> {
    let mut last = DnsError::Unanswered;
    for server in servers.iter().cycle().take(ATTEMPTS_MAX.max(servers.len())) {
        let id = ids();
        let question = question(id, name, client).ok_or(DnsError::BadName)?;
        let exchange = exchange(*server, &question, id);
        match tokio::time::timeout(ATTEMPT_TIME_MAX, exchange).await {
            Ok(Ok(Ok(records))) => return Ok(records),
            Ok(Ok(Err(error))) => last = error,
            Ok(Err(_)) | Err(_) => {}
        }
    }
    Err(last)
}

/// Sends a question and waits for its response; other datagrams are ignored.
async fn exchange(
    server: SocketAddr,
    question: &[u8],
    id: u16,
) -> std::io::Result<Result<Vec<Record>, DnsError>> {
    let local: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut bytes = [0; RESPONSE_BYTES_MAX as usize];
    loop {
        let length = socket.recv(&mut bytes).await?;
        let message = &bytes[..length];
        if message.starts_with(&id.to_be_bytes()) {
            return Ok(parse_response(message));
        }
    }
}

/// A question for the addresses of `name`, with the /24 of `client`.
fn question(id: u16, name: &Name, client: Ipv4Addr) -> Option<Vec<u8>> {
    let mut edns = Edns::new();
    edns.set_max_payload(RESPONSE_BYTES_MAX);
    let subnet = ClientSubnet::new(IpAddr::V4(client), SOURCE_PREFIX, 0);
    edns.options_mut().insert(EdnsOption::Subnet(subnet));
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message
        .add_query(Query::query(name.clone(), RecordType::A))
        .set_edns(edns);
    message.to_vec().ok()
}

/// The answer section of a response.
fn parse_response(message: &[u8]) -> Result<Vec<Record>, DnsError> {
    let message = Message::from_vec(message).map_err(|_| DnsError::Malformed)?;
    if message.metadata.message_type != MessageType::Response {
        return Err(DnsError::Malformed);
    }
    match message.metadata.response_code {
        ResponseCode::NoError => Ok(message.answers),
        refused => Err(DnsError::Refused(refused.into())),
    }
}

/// The end of a chain of aliases.
#[derive(Debug, PartialEq, Eq)]
struct ChainEnd {
    name: Name,
    addresses: Vec<Ipv4Addr>,
    /// The least TTL of the chain.
    ttl: u32,
}

/// Follows the aliases of a response, as far as it has them.
fn follow_aliases(name: &Name, records: &[Record]) -> ChainEnd {
    let mut end = ChainEnd {
        name: name.clone(),
        addresses: Vec::new(),
        ttl: u32::MAX,
    };
    for _ in 0..CHAIN_MAX {
        let mut alias = None;
        for record in records.iter().filter(|record| record.name == end.name) {
            match &record.data {
                RData::A(address) => {
                    end.addresses.push(address.0);
                    end.ttl = end.ttl.min(record.ttl);
                }
                RData::CNAME(target) => alias = alias.or(Some((&target.0, record.ttl))),
                _ => {}
            }
        }
        let Some((target, ttl)) = alias.filter(|_| end.addresses.is_empty()) else {
            break;
        };
        end.name = target.clone();
        end.ttl = end.ttl.min(ttl);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::{A, CNAME};

    const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

    fn name(text: &str) -> Name {
        parse_name(text).expect("a name")
    }

    fn alias(owner: &str, target: &str) -> Record {
        Record::from_rdata(name(owner), 300, RData::CNAME(CNAME(name(target))))
    }

    fn address(owner: &str, last: u8) -> Record {
        let address = Ipv4Addr::new(127, 0, 20, last);
        Record::from_rdata(name(owner), 20, RData::A(A(address)))
    }

    /// A response to the question for `www.demo.test`.
    fn response(records: Vec<Record>) -> Message {
        let mut message = Message::response(7, OpCode::Query);
        message
            .add_query(Query::query(name("www.demo.test"), RecordType::A))
            .add_answers(records);
        message
    }

    fn parsed(records: Vec<Record>) -> Vec<Record> {
        let bytes = response(records).to_vec().expect("it can be written");
        parse_response(&bytes).expect("well formed")
    }

    #[test]
    fn a_question_carries_the_subnet() {
        let bytes = question(0x1234, &name("a.b"), CLIENT).expect("a name");
        let expected = [
            0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, b'a', 1, b'b', 0, 0, 1, 0,
            1, // header, question
            0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 11, 0, 8, 0, 7, 0, 1, 24, 0, 203, 0,
            113, // OPT with the subnet
        ];
        assert_eq!(bytes, expected);
        assert_eq!(parse_name("a..b"), Err(DnsError::BadName));
        assert_eq!(parse_name(&"a.".repeat(200)), Err(DnsError::BadName));
    }

    #[test]
    fn aliases_are_followed_to_their_addresses() {
        let records = parsed(vec![
            alias("WWW.demo.test", "www.cdn.test"),
            address("www.cdn.test", 1),
            address("www.cdn.test", 2),
        ]);
        let both = vec![Ipv4Addr::new(127, 0, 20, 1), Ipv4Addr::new(127, 0, 20, 2)];
        let end = |name_of_end: &str, addresses, ttl| ChainEnd {
            name: name(name_of_end),
            addresses,
            ttl,
        };
        assert_eq!(
            follow_aliases(&name("www.demo.test"), &records),
            end("www.cdn.test", both, 20)
        );
        let link = parsed(vec![alias("www.demo.test", "www.cdn.test")]);
        assert_eq!(
            follow_aliases(&name("www.demo.test"), &link),
            end("www.cdn.test", vec![], 300)
        );
        let circle = parsed(vec![alias("www.demo.test", "www.demo.test")]);
        assert_eq!(
            follow_aliases(&name("www.demo.test"), &circle),
            end("www.demo.test", vec![], 300)
        );
        assert_eq!(
            follow_aliases(&name("other.test"), &records),
            end("other.test", vec![], u32::MAX)
        );
    }

    #[test]
    fn no_response_makes_it_panic() {
        let message = response(vec![
            alias("www.demo.test", "www.cdn.test"),
            address("www.cdn.test", 1),
        ]);
        let whole = message.to_vec().expect("it can be written");
        for cut in 0..whole.len() {
            assert!(parse_response(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            for value in [0, 0xc0, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = parse_response(&bytes);
            }
        }
        let mut refused = whole.clone();
        refused[3] = 5;
        assert_eq!(parse_response(&refused), Err(DnsError::Refused(5)));
        let mut query = whole.clone();
        query[2] = 0;
        assert_eq!(parse_response(&query), Err(DnsError::Malformed));
        let mut looping = whole;
        looping[12..14].copy_from_slice(&[0xc0, 12]);
        assert_eq!(parse_response(&looping), Err(DnsError::Malformed));
    }
}
