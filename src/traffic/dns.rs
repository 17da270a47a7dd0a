//! A client's way to an address: one question at a time over UDP with a client subnet (RFC 1035,
//! RFC 6891, RFC 7871).
//!
//! It stands for a resolver that passes the subnet on and caches for this client alone. Answers are
//! read with limits on everything; what is malformed is an error, never a panic.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

/// How long one try may take.
const TRY_MAX: Duration = Duration::from_millis(1000);
/// Tries of one question, over all servers.
const TRIES: usize = 3;
/// Links of a CNAME chain.
const CHAIN_MAX: usize = 8;
/// Steps through the pointers of one compressed name.
const POINTERS_MAX: usize = 32;
/// Advertised and read size of an answer.
const ANSWER_BYTES_MAX: usize = 1232;

const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
const OPTION_CLIENT_SUBNET: u16 = 8;

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DnsError {
    /// Nobody answered in time.
    #[error("no name server answers")]
    Unanswered,
    /// The answer says that something is wrong.
    #[error("the name server answers with RCODE {0}")]
    Refused(u8),
    /// The answer cannot be read.
    #[error("the answer is malformed")]
    Malformed,
    /// The name has no address, or its aliases go on for ever.
    #[error("the name has no address")]
    NoAddress,
    /// The name cannot be asked for.
    #[error("that is no host name")]
    BadName,
}

/// Addresses of a name, and for how long they may be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// In the order of the answer; at least one.
    pub(crate) list: Vec<Ipv4Addr>,
    /// The least TTL of the chain, seconds.
    pub(crate) ttl: u32,
}

/// The addresses that `client` is given for `host`. `ids` makes the questions' identifiers.
pub(crate) async fn resolve(
    servers: &[SocketAddr],
    host: &str,
    client: Ipv4Addr,
    mut ids: impl FnMut() -> u16,
) -> Result<Addresses, DnsError> {
    let mut name = host.to_ascii_lowercase();
    let mut ttl = u32::MAX;
    for _ in 0..CHAIN_MAX {
        let answer = ask(servers, &name, client, &mut ids).await?;
        let (last, found, least) = follow(&name, &answer);
        ttl = ttl.min(least);
        if !found.is_empty() {
            return Ok(Addresses { list: found, ttl });
        }
        if last == name {
            return Err(DnsError::NoAddress);
        }
        name = last;
    }
    Err(DnsError::NoAddress)
}

async fn ask(
    servers: &[SocketAddr],
    name: &str,
    client: Ipv4Addr,
    ids: &mut impl FnMut() -> u16,
) -> Result<Vec<Record>, DnsError> {
    let mut last = DnsError::Unanswered;
    for server in servers.iter().cycle().take(TRIES.max(servers.len())) {
        let id = ids();
        let question = question(id, name, client).ok_or(DnsError::BadName)?;
        match tokio::time::timeout(TRY_MAX, exchange(*server, &question, id)).await {
            Ok(Ok(Ok(records))) => return Ok(records),
            Ok(Ok(Err(error))) => last = error,
            Ok(Err(_)) | Err(_) => {}
        }
    }
    Err(last)
}

/// Sends a question and waits for its answer; other datagrams are passed over.
async fn exchange(
    server: SocketAddr,
    question: &[u8],
    id: u16,
) -> std::io::Result<Result<Vec<Record>, DnsError>> {
    let local: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut bytes = [0; ANSWER_BYTES_MAX];
    loop {
        let length = socket.recv(&mut bytes).await?;
        let message = &bytes[..length];
        if length >= 2 && message[..2] == id.to_be_bytes() {
            return Ok(read(message));
        }
    }
}

/// A question for the addresses of `name` with the /24 of `client`.
fn question(id: u16, name: &str, client: Ipv4Addr) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(96);
    for part in [id, 0x0000, 1, 0, 0, 1] {
        message.extend(part.to_be_bytes());
    }
    let name = name.trim_end_matches('.');
    if name.len() > 253 {
        return None;
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|l| (1..=63).contains(l))?;
        message.push(length);
        message.extend(label.bytes());
    }
    message.push(0);
    for part in [TYPE_A, CLASS_IN] {
        message.extend(part.to_be_bytes());
    }
    // OPT: the root name, the type, the size, no flags, and one option of 11 bytes with family 1,
    // /24, scope 0.
    message.push(0);
    message.extend(TYPE_OPT.to_be_bytes());
    message.extend((ANSWER_BYTES_MAX as u16).to_be_bytes());
    message.extend([0; 4]);
    message.extend(11u16.to_be_bytes());
    message.extend(OPTION_CLIENT_SUBNET.to_be_bytes());
    message.extend(7u16.to_be_bytes());
    message.extend([0, 1, 24, 0]);
    message.extend(&client.octets()[..3]);
    Some(message)
}

/// A record of an answer section that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    owner: String,
    ttl: u32,
    data: Data,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Data {
    Address(Ipv4Addr),
    Alias(String),
}

/// The address and alias records of an answer.
fn read(message: &[u8]) -> Result<Vec<Record>, DnsError> {
    let mut reader = Reader { message, at: 2 };
    let flags = reader.u16()?;
    let (questions, answers) = (reader.u16()?, reader.u16()?);
    reader.skip(4)?;
    if flags & 0x8000 == 0 {
        return Err(DnsError::Malformed);
    }
    let rcode = (flags & 0x000f) as u8;
    if rcode != 0 {
        return Err(DnsError::Refused(rcode));
    }
    for _ in 0..questions {
        reader.name()?;
        reader.skip(4)?;
    }
    let mut records = Vec::new();
    for _ in 0..answers {
        let owner = reader.name()?;
        let (rtype, _class) = (reader.u16()?, reader.u16()?);
        let ttl = u32::from(reader.u16()?) << 16 | u32::from(reader.u16()?);
        let length = usize::from(reader.u16()?);
        let end = reader.at + length;
        let data = reader
            .message
            .get(reader.at..end)
            .ok_or(DnsError::Malformed)?;
        match rtype {
            TYPE_A => {
                let octets: [u8; 4] = data.try_into().map_err(|_| DnsError::Malformed)?;
                records.push(Record {
                    owner,
                    ttl,
                    data: Data::Address(octets.into()),
                });
            }
            TYPE_CNAME => {
                let alias = reader.name()?;
                records.push(Record {
                    owner,
                    ttl,
                    data: Data::Alias(alias),
                });
            }
            _ => {}
        }
        reader.at = end;
    }
    Ok(records)
}

/// Follows the aliases of an answer: where the chain ends, the addresses there, and the least TTL
/// on the way.
fn follow(name: &str, records: &[Record]) -> (String, Vec<Ipv4Addr>, u32) {
    let (mut name, mut ttl) = (name.to_owned(), u32::MAX);
    for _ in 0..CHAIN_MAX {
        let addresses: Vec<(Ipv4Addr, u32)> = records
            .iter()
            .filter(|r| r.owner == name)
            .filter_map(|r| match r.data {
                Data::Address(address) => Some((address, r.ttl)),
                Data::Alias(_) => None,
            })
            .collect();
        if !addresses.is_empty() {
            let least = addresses.iter().map(|(_, t)| *t).min().unwrap_or(0);
            return (
                name,
                addresses.into_iter().map(|(a, _)| a).collect(),
                ttl.min(least),
            );
        }
        let alias = records.iter().find_map(|r| match &r.data {
            Data::Alias(to) if r.owner == name => Some((to.clone(), r.ttl)),
            _ => None,
        });
        let Some((to, alias_ttl)) = alias else { break };
        (name, ttl) = (to, ttl.min(alias_ttl));
    }
    (name, Vec::new(), ttl)
}

struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

impl Reader<'_> {
    fn u8(&mut self) -> Result<u8, DnsError> {
        let byte = self
            .message
            .get(self.at)
            .copied()
            .ok_or(DnsError::Malformed)?;
        self.at += 1;
        Ok(byte)
    }

    fn u16(&mut self) -> Result<u16, DnsError> {
        Ok(u16::from(self.u8()?) << 8 | u16::from(self.u8()?))
    }

    fn skip(&mut self, bytes: usize) -> Result<(), DnsError> {
        self.at += bytes;
        if self.at <= self.message.len() {
            Ok(())
        } else {
            Err(DnsError::Malformed)
        }
    }

    /// A name, lower case, without the last dot; pointers (RFC 1035 section 4.1.4) are followed a
    /// limited number of times.
    fn name(&mut self) -> Result<String, DnsError> {
        let mut name = String::new();
        let mut after = None;
        for _ in 0..POINTERS_MAX + 128 {
            let length = self.u8()?;
            match length {
                0 => {
                    self.at = after.unwrap_or(self.at);
                    return Ok(name);
                }
                0xc0.. => {
                    let target = usize::from(length & 0x3f) << 8 | usize::from(self.u8()?);
                    after = after.or(Some(self.at));
                    self.at = target;
                }
                64.. => return Err(DnsError::Malformed),
                _ => {
                    let end = self.at + usize::from(length);
                    let label = self.message.get(self.at..end).ok_or(DnsError::Malformed)?;
                    if !name.is_empty() {
                        name.push('.');
                    }
                    name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
                    self.at = end;
                    if name.len() > 255 {
                        return Err(DnsError::Malformed);
                    }
                }
            }
        }
        Err(DnsError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

    /// An answer to the question for `www.demo.test`: a chain of aliases and addresses, names
    /// compressed.
    fn answer(records: &[(&str, u16, u32, &[u8])]) -> Vec<u8> {
        let mut message = question(7, "www.demo.test", CLIENT).expect("a name");
        message.truncate(12 + 15 + 4);
        message[2..4].copy_from_slice(&[0x84, 0]);
        message[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
        message[10..12].copy_from_slice(&[0, 0]);
        for (owner, rtype, ttl, data) in records {
            if *owner == "www.demo.test" {
                message.extend([0xc0, 12]);
            } else {
                for label in owner.split('.') {
                    message.push(label.len() as u8);
                    message.extend(label.bytes());
                }
                message.push(0);
            }
            message.extend(rtype.to_be_bytes());
            message.extend(1u16.to_be_bytes());
            message.extend(ttl.to_be_bytes());
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(*data);
        }
        message
    }

    #[test]
    fn a_question_carries_the_subnet() {
        let bytes = question(0x1234, "a.b", CLIENT).expect("a name");
        let expected = [
            0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, b'a', 1, b'b', 0, 0, 1, 0,
            1, // header, question
            0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 11, 0, 8, 0, 7, 0, 1, 24, 0, 203, 0,
            113, // OPT with the subnet
        ];
        assert_eq!(bytes, expected);
        assert_eq!(question(1, "a..b", CLIENT), None);
        assert_eq!(question(1, &"a.".repeat(200), CLIENT), None);
    }

    #[test]
    fn answers_are_read_and_followed() {
        let alias = b"\x03www\x03cdn\x04test\0";
        let whole = answer(&[
            ("www.demo.test", 5, 300, alias),
            ("www.cdn.test", 1, 20, &[127, 0, 20, 1]),
            ("www.cdn.test", 1, 20, &[127, 0, 20, 2]),
        ]);
        let records = read(&whole).expect("well formed");
        let both = vec![Ipv4Addr::new(127, 0, 20, 1), Ipv4Addr::new(127, 0, 20, 2)];
        assert_eq!(
            follow("www.demo.test", &records),
            ("www.cdn.test".into(), both, 20)
        );
        let link = read(&answer(&[("www.demo.test", 5, 300, alias)])).expect("well formed");
        assert_eq!(
            follow("www.demo.test", &link),
            ("www.cdn.test".into(), vec![], 300)
        );
        let circle = read(&answer(&[(
            "www.demo.test",
            5,
            300,
            b"\x03www\x04demo\x04test\0",
        )]))
        .expect("well formed");
        assert_eq!(follow("www.demo.test", &circle).1, Vec::<Ipv4Addr>::new());
    }

    #[test]
    fn no_answer_makes_it_panic() {
        let whole = answer(&[
            ("www.demo.test", 5, 300, b"\x03www\x03cdn\x04test\0"),
            ("www.cdn.test", 1, 20, &[127, 0, 20, 1]),
        ]);
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..whole.len() {
            for value in [0, 0xc0, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = read(&bytes);
            }
        }
        let mut refused = whole.clone();
        refused[3] = 5;
        assert_eq!(read(&refused), Err(DnsError::Refused(5)));
        let mut looping = whole;
        looping[12..14].copy_from_slice(&[0xc0, 12]);
        assert_eq!(read(&looping), Err(DnsError::Malformed));
    }
}
