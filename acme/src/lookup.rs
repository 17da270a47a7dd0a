//! Questions to a resolver before an order: which addresses a host has, which zone answers for the
//! TXT record of its challenge, and whether either is ours.
//!
//! An order whose names lead elsewhere is bound to fail, and authorities count failures. The
//! judgements are pure functions of what was found. A resolver that does not answer prevents no
//! order: the authority has resolvers of its own.
//!
//! Follows RFC 1035, RFC 5452 section 9 (which responses are believed), RFC 6891 (EDNS), RFC 7766
//! (TCP) and RFC 8555 sections 8.3 and 8.4. Must not know the fleet.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

/// How long one attempt may take.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(2);
/// Attempts for one question, over all servers.
const ATTEMPTS_MAX: usize = 2;
/// Links of a chain of aliases (CNAME) that are followed.
const CHAIN_MAX: usize = 10;
/// Size of a response over UDP, as it is advertised and read.
const DATAGRAM_BYTES_MAX: u16 = 1232;
/// Bytes of the system's list of resolvers that are read.
const LIST_BYTES_MAX: u64 = 64 << 10;
/// Where the system lists its resolvers.
const SYSTEM_LIST: &str = "/etc/resolv.conf";
/// Port of resolvers.
const PORT: u16 = 53;
/// Addresses that a message names before it counts the others.
const SHOWN_MAX: usize = 4;

/// The name of the TXT record of a host's challenge (RFC 8555 section 8.4), without a final dot.
pub fn challenge_name(host: &str) -> String {
    format!("_acme-challenge.{}", without_wildcard(host))
}

/// The name at which name servers of `zone` answer the challenge of a host of another zone, which a
/// CNAME at [`challenge_name`] leads to; `None` where the name would be too long.
pub fn alias_of_challenge(host: &str, zone: &str) -> Option<String> {
    let alias = format!("{}._acme-challenge.{zone}", without_wildcard(host));
    parse_name(&alias).is_ok().then_some(alias)
}

fn without_wildcard(host: &str) -> &str {
    host.strip_prefix("*.").unwrap_or(host)
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No resolver answered in time.
    #[error("the resolver {} does not answer", list(.0))]
    Unanswered(Vec<SocketAddr>),
    /// The resolver answered with an error.
    #[error("the resolver answers {1} for {0}")]
    Refused(String, ResponseCode),
    /// The chain of aliases is a loop, or too long.
    #[error("the CNAMEs of {0} are a loop, or more than {CHAIN_MAX}")]
    Endless(String),
    /// The answer does not say which zone the name is in.
    #[error("the resolver's answer for {0} names no zone")]
    NoZone(String),
    /// The text is not a host name.
    #[error("{0:?} is not a host name")]
    BadName(String),
}

/// The addresses of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostAddresses {
    /// The names that its CNAMEs lead to, in order.
    pub chain: Vec<String>,
    /// Its addresses; empty where it has none or does not exist.
    pub list: Vec<IpAddr>,
}

/// Who answers for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answerer {
    /// The names that its CNAMEs lead to, in order.
    pub chain: Vec<String>,
    /// The zone that the last name is in (the owner of its SOA record).
    pub zone: String,
    /// The zone's name servers, as far as the answer has them: that of its SOA record (MNAME), or
    /// those of a delegation.
    pub name_servers: Vec<String>,
}

/// A resolver that is asked, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    servers: Vec<SocketAddr>,
    attempt_time_max: Duration,
}

impl Resolver {
    /// This one.
    pub fn at(server: SocketAddr) -> Self {
        Self {
            servers: vec![server],
            attempt_time_max: ATTEMPT_TIME_MAX,
        }
    }

    /// This one, else those of the system (`/etc/resolv.conf`; this machine where it lists none).
    /// Reads a file.
    ///
    /// # Errors
    /// The list is there and cannot be read.
    pub fn or_of_system(server: Option<SocketAddr>) -> io::Result<Self> {
        match server {
            Some(server) => Ok(Self::at(server)),
            None => Self::of_list(Path::new(SYSTEM_LIST)),
        }
    }

    fn of_list(path: &Path) -> io::Result<Self> {
        use std::io::Read as _;
        let mut text = String::new();
        match std::fs::File::open(path) {
            Ok(file) => drop(file.take(LIST_BYTES_MAX).read_to_string(&mut text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            servers: servers_of(&text),
            attempt_time_max: ATTEMPT_TIME_MAX,
        })
    }

    /// The addresses of a host, of IPv4 and IPv6, by its CNAMEs.
    ///
    /// # Errors
    /// Neither question has an answer. One alone is enough: some name servers know nothing of IPv6.
    pub async fn addresses(&self, host: &str) -> Result<HostAddresses, LookupError> {
        let name = parse_name(host)?;
        let (v4, v6) = tokio::join!(
            self.chase(&name, RecordType::A),
            self.chase(&name, RecordType::AAAA)
        );
        let (v4, v6) = match (v4, v6) {
            (Err(error), Err(_)) => return Err(error),
            // An answer without addresses says nothing where the other question has none.
            (Ok(found), Err(error)) | (Err(error), Ok(found)) => match found.values.is_empty() {
                true => return Err(error),
                false => (found, None),
            },
            (Ok(v4), Ok(v6)) => (v4, Some(v6)),
        };
        let values = v4.values.iter().chain(v6.iter().flat_map(|v6| &v6.values));
        let address = |data: &RData| match data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0).to_canonical()),
            _ => None,
        };
        Ok(HostAddresses {
            list: values.filter_map(address).collect(),
            chain: v4.chain,
        })
    }

    /// Who answers for the TXT record of a host's challenge, `_acme-challenge.<host>`, which need not
    /// exist. A wildcard is that of its parent.
    ///
    /// # Errors
    /// There is no answer, or it does not name the zone.
    pub async fn challenge_answerer(&self, host: &str) -> Result<Answerer, LookupError> {
        let name = parse_name(&challenge_name(host))?;
        let Chased {
            chain, end, zone, ..
        } = self.chase(&name, RecordType::SOA).await?;
        let Some((zone, name_servers)) = zone else {
            return Err(LookupError::NoZone(text_of(&end)));
        };
        Ok(Answerer {
            chain,
            zone: text_of(&zone),
            name_servers: name_servers.iter().map(text_of).collect(),
        })
    }

    /// Whether the addresses of a host are ours, as [`http_leads_here`] judges it. `alias` is a name
    /// with our addresses, which the host can be a CNAME to unless it is the apex of a zone.
    pub async fn http_judgement(
        &self,
        host: &str,
        ours: &[IpAddr],
        alias: Option<&str>,
    ) -> Judgement {
        let found = self.addresses(host).await;
        let record = alias.map_or(LeadBy::Addresses, LeadBy::Alias);
        match http_leads_here(host, &found, ours, record) {
            Judgement::Elsewhere(_) if alias.is_some() && self.is_apex(host).await => {
                http_leads_here(host, &found, ours, LeadBy::AtApex)
            }
            judged => judged,
        }
    }

    /// Whether a zone begins at a host; `false` where that is not known.
    async fn is_apex(&self, host: &str) -> bool {
        let Ok(name) = parse_name(host) else {
            return false;
        };
        let found = self.chase(&name, RecordType::SOA).await;
        found.is_ok_and(|found| {
            found.chain.is_empty() && found.zone.is_some_and(|(zone, _)| zone == name)
        })
    }

    /// Asks for a name, and again for the last of its aliases where the answer does not follow them.
    async fn chase(&self, name: &Name, rtype: RecordType) -> Result<Chased, LookupError> {
        let mut chain = Vec::new();
        let mut asked = name.clone();
        while chain.len() <= CHAIN_MAX {
            let message = self.ask(&asked, rtype).await?;
            let step = read(&asked, rtype, &message);
            chain.extend(step.chain);
            let is_last = !step.values.is_empty() || step.zone.is_some() || step.end == asked;
            if is_last && chain.len() <= CHAIN_MAX {
                return Ok(Chased { chain, ..step });
            }
            asked = step.end;
        }
        Err(LookupError::Endless(text_of(name)))
    }

    /// The response to one question: one without error, or one that says that there is no such name.
    async fn ask(&self, name: &Name, rtype: RecordType) -> Result<Message, LookupError> {
        let mut last = LookupError::Unanswered(self.servers.clone());
        for server in self.servers.iter().cycle().take(ATTEMPTS_MAX) {
            let exchange = exchange(*server, name, rtype);
            let Ok(Ok(message)) = tokio::time::timeout(self.attempt_time_max, exchange).await
            else {
                continue;
            };
            match message.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => return Ok(message),
                refused => last = LookupError::Refused(text_of(name), refused),
            }
        }
        Err(last)
    }
}

/// The servers of a list of resolvers (`resolv.conf`). Lines that cannot be read are left out.
fn servers_of(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver");
        let address: IpAddr = address.and_then(|_| words.next())?.parse().ok()?;
        Some(SocketAddr::new(address, PORT))
    };
    let mut servers: Vec<_> = text.lines().filter_map(server).take(ATTEMPTS_MAX).collect();
    if servers.is_empty() {
        servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
    }
    servers
}

/// A name at the root, from a text that is a host or an underscored name.
fn parse_name(text: &str) -> Result<Name, LookupError> {
    let bad = || LookupError::BadName(text.to_owned());
    let mut name = Name::from_ascii(text).map_err(|_| bad())?;
    name.set_fqdn(true);
    match name.is_root() {
        true => Err(bad()),
        false => Ok(name),
    }
}

/// A name in lower case, without a final dot; the root is a dot.
fn text_of(name: &Name) -> String {
    let text = name.to_ascii().to_ascii_lowercase();
    match text.strip_suffix('.') {
        Some("") | None => text,
        Some(rest) => rest.to_owned(),
    }
}

/// Sends a question by UDP, and by TCP where the response is cut off.
async fn exchange(server: SocketAddr, name: &Name, rtype: RecordType) -> io::Result<Message> {
    let (id, question) = question(name, rtype)?;
    // Each question has a socket of its own, and so a port that the system chooses at random.
    let local: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    let mut bytes = [0; DATAGRAM_BYTES_MAX as usize];
    loop {
        let length = socket.recv(&mut bytes).await?;
        match response(&bytes[..length], id, name, rtype) {
            Some(message) if message.metadata.truncation => break,
            Some(message) => return Ok(message),
            // Somebody else's, or a forgery.
            None => {}
        }
    }

    let mut stream = TcpStream::connect(server).await?;
    let length = question.len() as u16;
    stream
        .write_all(&[&length.to_be_bytes()[..], &question].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    response(&bytes, id, name, rtype).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A question with a random identifier, which is given too.
fn question(name: &Name, rtype: RecordType) -> io::Result<(u16, Vec<u8>)> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    let id = u16::from_be_bytes(id);
    let mut edns = Edns::new();
    edns.set_max_payload(DATAGRAM_BYTES_MAX);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message
        .add_query(Query::query(name.clone(), rtype))
        .set_edns(edns);
    let bytes = message.to_vec().map_err(io::Error::other)?;
    Ok((id, bytes))
}

/// The response to a question, where it is one (RFC 5452 section 9.1): the address is checked by the
/// socket.
fn response(bytes: &[u8], id: u16, name: &Name, rtype: RecordType) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let about = &message.metadata;
    let is_ours = about.id == id
        && about.message_type == MessageType::Response
        && about.op_code == OpCode::Query
        && matches!(&message.queries[..], [query] if query.name() == name && query.query_type() == rtype);
    is_ours.then_some(message)
}

/// What a response says of the name that was asked for.
#[derive(Debug)]
struct Chased {
    chain: Vec<String>,
    /// The last name of the chain.
    end: Name,
    /// Records of the type at that name.
    values: Vec<RData>,
    /// The zone that the last name is in, and the name servers that the response names for it.
    zone: Option<(Name, Vec<Name>)>,
}

fn read(asked: &Name, rtype: RecordType, message: &Message) -> Chased {
    let mut end = asked.clone();
    let mut chain = Vec::new();
    // A loop in the records ends at the limit, and is found by the caller.
    while chain.len() <= CHAIN_MAX {
        let target = message
            .answers
            .iter()
            .find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == end => Some(&target.0),
                _ => None,
            });
        let Some(target) = target else { break };
        chain.push(text_of(target));
        end = target.clone();
    }
    let of_end = message.answers.iter().filter(|record| record.name == end);
    let values: Vec<RData> = of_end
        .filter(|record| record.record_type() == rtype)
        .map(|record| record.data.clone())
        .collect();
    Chased {
        zone: zone_of(&end, message),
        chain,
        end,
        values,
    }
}

/// The zone of a name: its own SOA record, that of a negative answer (RFC 2308 section 2), or a
/// delegation, where the server is asked that has it.
fn zone_of(name: &Name, message: &Message) -> Option<(Name, Vec<Name>)> {
    let is_own = |record: &&Record| record.name == *name;
    let answers = message.answers.iter().filter(is_own);
    let around = |record: &&Record| record.name.zone_of(name);
    let authorities = || message.authorities.iter().filter(around);
    let soa = answers
        .chain(authorities())
        .find_map(|record| match &record.data {
            RData::SOA(soa) => Some((record.name.clone(), vec![soa.mname.clone()])),
            _ => None,
        });
    let delegation = || {
        let servers = authorities().filter_map(|record| match &record.data {
            RData::NS(server) => Some((&record.name, &server.0)),
            _ => None,
        });
        let (owners, servers): (Vec<_>, Vec<_>) = servers.unzip();
        let zone = (*owners.first()?).clone();
        Some((zone, servers.into_iter().cloned().collect()))
    };
    soa.or_else(delegation)
}

/// A zone that our name servers serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurZone {
    /// Its name, lower case, without a final dot.
    pub name: String,
    /// The host names of its name servers, in the same form.
    pub name_servers: Vec<String>,
}

/// Whether a name leads here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It does.
    Here,
    /// It leads here and elsewhere: it depends on the authority's choice.
    Partly(Advice),
    /// It does not: an order is bound to fail.
    Elsewhere(Advice),
    /// It cannot be said, for this reason.
    Unknown(String),
}

/// What is found, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// Where the name leads.
    pub reason: String,
    /// Which record to create.
    pub hint: String,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.reason, self.hint)
    }
}

impl Judgement {
    /// Why an order is bound to fail, with a hint; `None` where it may succeed.
    pub fn refusal(&self) -> Option<String> {
        match self {
            Self::Elsewhere(advice) => Some(advice.to_string()),
            Self::Here | Self::Partly(_) | Self::Unknown(_) => None,
        }
    }
}

/// Whether the TXT record of a host's challenge is answered by our name servers. The first of
/// `zones` is the one whose name servers answer challenges of hosts elsewhere too, at
/// [`alias_of_challenge`].
pub fn dns_leads_here(
    host: &str,
    found: &Result<Answerer, LookupError>,
    zones: &[OurZone],
) -> Judgement {
    let found = match found {
        Ok(found) => found,
        Err(error) => return Judgement::Unknown(error.to_string()),
    };
    let name = challenge_name(host);
    let alias = zones
        .first()
        .and_then(|zone| alias_of_challenge(host, &zone.name));
    let is_ours = zones.iter().any(|zone| {
        let serves = |server: &String| found.name_servers.contains(server);
        zone.name == found.zone && zone.name_servers.iter().any(serves)
    });
    let end = found.chain.last();
    if is_ours && (end.is_none() || end == alias.as_ref()) {
        return Judgement::Here;
    }

    let reason = match end {
        Some(end) if is_ours => {
            format!("{name} leads by CNAME to {end}, where no challenge of {host} is answered")
        }
        Some(end) => format!(
            "{name} leads by CNAME to {end}, which is answered by {}",
            server_of(found)
        ),
        None => format!("{name} is answered by {}", server_of(found)),
    };
    Judgement::Elsewhere(Advice {
        hint: dns_hint(&name, end.unwrap_or(&name), alias.as_deref(), zones),
        reason,
    })
}

fn server_of(found: &Answerer) -> String {
    match found.name_servers.first() {
        Some(server) => format!("{server} (zone {})", found.zone),
        None => format!("the name servers of {}", found.zone),
    }
}

fn dns_hint(name: &str, end: &str, alias: Option<&str>, zones: &[OurZone]) -> String {
    let is_below = |zone: &&OurZone| {
        let rest = end.strip_suffix(zone.name.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    // A zone that is ours, and that the parent zone does not delegate to us.
    let enclosing = zones
        .iter()
        .filter(is_below)
        .max_by_key(|zone| zone.name.len());
    if let Some(zone) = enclosing.filter(|_| end == name || Some(end) == alias) {
        return format!(
            "delegate the zone: {}",
            delegation(&zone.name, &zone.name_servers)
        );
    }
    let servers = zones.first().map_or(&[][..], |zone| &zone.name_servers);
    let delegation = format!(
        "delegate it with {} and add a [[zone]] of that name",
        delegation(name, servers)
    );
    match alias {
        Some(alias) => format!("create the record `{name}. CNAME {alias}.`, or {delegation}"),
        None => delegation,
    }
}

fn delegation(zone: &str, servers: &[String]) -> String {
    let record = |server: &String| format!("`{zone}. NS {server}.`");
    servers.iter().map(record).collect::<Vec<_>>().join(" ")
}

/// By which records a host can lead to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeadBy<'n> {
    /// A CNAME to this name, which has our addresses.
    Alias(&'n str),
    /// Our addresses.
    Addresses,
    /// Our addresses, because the host is the apex of a zone, where no CNAME can be (RFC 1034 section
    /// 3.6.2).
    AtApex,
}

/// Whether the addresses of a host are ours, and by which records they would be.
pub fn http_leads_here(
    host: &str,
    found: &Result<HostAddresses, LookupError>,
    ours: &[IpAddr],
    record: LeadBy<'_>,
) -> Judgement {
    let found = match found {
        Ok(found) => found,
        Err(error) => return Judgement::Unknown(error.to_string()),
    };
    let is_ours = |address: &&IpAddr| ours.contains(&address.to_canonical());
    let (here, elsewhere): (Vec<IpAddr>, Vec<IpAddr>) = found.list.iter().partition(is_ours);
    let hint = || match record {
        LeadBy::Alias(alias) => format!("create the record `{host}. CNAME {alias}.`"),
        LeadBy::Addresses => records(host, ours),
        LeadBy::AtApex => format!(
            "{} ({host} is the apex of its zone and can have no CNAME), or serve its zone here with a [[zone]]",
            records(host, ours)
        ),
    };
    if found.list.is_empty() {
        return Judgement::Elsewhere(Advice {
            reason: match found.chain.last() {
                Some(end) => format!("{host} leads by CNAME to {end}, which has no address"),
                None => format!("{host} has no address"),
            },
            hint: hint(),
        });
    }
    match (&here[..], &elsewhere[..]) {
        (_, []) => Judgement::Here,
        ([], elsewhere) => Judgement::Elsewhere(Advice {
            reason: match ours {
                [] => format!("{host} leads to {}", list(elsewhere)),
                ours => format!(
                    "{host} leads to {}, and not to {}",
                    list(elsewhere),
                    list(ours)
                ),
            },
            hint: hint(),
        }),
        (_, elsewhere) => Judgement::Partly(Advice {
            reason: format!(
                "{host} leads to {} too, and an authority may ask there",
                list(elsewhere)
            ),
            hint: "remove the addresses that are not of this service".to_owned(),
        }),
    }
}

/// The records by which a host gets these addresses.
fn records(host: &str, addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return format!("give {host} the address of this machine");
    }
    let record = |address: &IpAddr| match address {
        IpAddr::V4(_) => format!("`{host}. A {address}`"),
        IpAddr::V6(_) => format!("`{host}. AAAA {address}`"),
    };
    let records: Vec<_> = addresses.iter().take(SHOWN_MAX).map(record).collect();
    let noun = if records.len() == 1 {
        "record"
    } else {
        "records"
    };
    format!("create the {noun} {}", records.join(" "))
}

/// A few of a list, and how many more there are.
fn list(items: &[impl ToString]) -> String {
    let shown: Vec<_> = items
        .iter()
        .take(SHOWN_MAX)
        .map(ToString::to_string)
        .collect();
    match items.len().saturating_sub(SHOWN_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use hickory_proto::rr::rdata::{A, CNAME, NS, SOA};

    fn ours() -> Vec<OurZone> {
        let zone = |name: &str, servers: &[&str]| OurZone {
            name: name.to_owned(),
            name_servers: servers.iter().map(|s| (*s).to_owned()).collect(),
        };
        vec![
            zone("cdn.example", &["ns1.cdn.example", "ns2.cdn.example"]),
            zone("shop.example", &["ns1.cdn.example"]),
        ]
    }

    fn answerer(chain: &[&str], zone: &str, server: &str) -> Result<Answerer, LookupError> {
        Ok(Answerer {
            chain: chain.iter().map(|name| (*name).to_owned()).collect(),
            zone: zone.to_owned(),
            name_servers: vec![server.to_owned()],
        })
    }

    #[test]
    fn a_challenge_leads_here_where_our_servers_answer_it() {
        for (host, found) in [
            (
                "www.cdn.example",
                answerer(&[], "cdn.example", "ns1.cdn.example"),
            ),
            (
                "*.shop.example",
                answerer(&[], "shop.example", "ns1.cdn.example"),
            ),
            (
                "www.example.org",
                answerer(
                    &["www.example.org._acme-challenge.cdn.example"],
                    "cdn.example",
                    "ns2.cdn.example",
                ),
            ),
            (
                "*.example.org",
                answerer(
                    &[
                        "alias.example.org",
                        "example.org._acme-challenge.cdn.example",
                    ],
                    "cdn.example",
                    "ns1.cdn.example",
                ),
            ),
        ] {
            let judged = dns_leads_here(host, &found, &ours());
            assert_eq!(judged, Judgement::Here, "{host}");
        }
    }

    #[test]
    fn a_challenge_that_leads_elsewhere_names_the_record_to_write() {
        let www = "www.example.org";
        for (host, found, words) in [
            (
                www,
                answerer(&[], "example.org", "ns1.other.net"),
                &[
                    "_acme-challenge.www.example.org is answered by ns1.other.net (zone example.org)",
                    "`_acme-challenge.www.example.org. CNAME www.example.org._acme-challenge.cdn.example.`",
                    "`_acme-challenge.www.example.org. NS ns1.cdn.example.` `_acme-challenge.www.example.org. NS ns2.cdn.example.`",
                ][..],
            ),
            // The zone has our name, and its parent delegates it to others.
            (
                "a.shop.example",
                answerer(&[], "shop.example", "ns1.other.net"),
                &[
                    "ns1.other.net",
                    "delegate the zone: `shop.example. NS ns1.cdn.example.`",
                ],
            ),
            (
                "a.shop.example",
                answerer(&[], "example", "a.nic.example"),
                &["delegate the zone: `shop.example. NS ns1.cdn.example.`"],
            ),
            // A CNAME that another service wants, and one of a wildcard.
            (
                www,
                answerer(&["token.acme.other.net"], "other.net", "ns1.other.net"),
                &[
                    "by CNAME to token.acme.other.net, which is answered by ns1.other.net",
                    "`_acme-challenge.www.example.org. CNAME ",
                ],
            ),
            (
                www,
                answerer(&["www.cdn.example"], "cdn.example", "ns1.cdn.example"),
                &[
                    "by CNAME to www.cdn.example, where no challenge of www.example.org is answered",
                    "`_acme-challenge.www.example.org. CNAME www.example.org._acme-challenge.cdn.example.`",
                ],
            ),
            (
                www,
                answerer(
                    &["www.example.org._acme-challenge.cdn.example"],
                    "example",
                    "a.nic.example",
                ),
                &[
                    "delegate the zone: `cdn.example. NS ns1.cdn.example.` `cdn.example. NS ns2.cdn.example.`",
                ],
            ),
        ] {
            let judged = dns_leads_here(host, &found, &ours());
            let refusal = judged.refusal().expect("it leads elsewhere");
            for words in words {
                assert!(refusal.contains(words), "{host}: {refusal}");
            }
        }
        let too_long = format!("{}example.org", "a.".repeat(110));
        let judged = dns_leads_here(
            &too_long,
            &answerer(&[], "example.org", "ns1.a.test"),
            &ours(),
        );
        let refusal = judged.refusal().expect("it leads elsewhere");
        assert!(!refusal.contains("CNAME"), "{refusal}");
        assert_eq!(alias_of_challenge(&too_long, "cdn.example"), None);
    }

    #[test]
    fn addresses_lead_here_where_all_are_ours() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let addresses = |texts: &[&str]| texts.iter().map(|text| address(text)).collect::<Vec<_>>();
        let ours = addresses(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        let found = |list: &[&str]| {
            Ok(HostAddresses {
                chain: Vec::new(),
                list: addresses(list),
            })
        };
        let judge =
            |list: &[&str]| http_leads_here("a.test", &found(list), &ours, LeadBy::Addresses);
        assert_eq!(judge(&["192.0.2.2"]), Judgement::Here);
        assert_eq!(judge(&["192.0.2.1", "2001:db8::1"]), Judgement::Here);
        let Judgement::Partly(advice) = judge(&["192.0.2.1", "2001:db8::9"]) else {
            panic!("one of two is ours")
        };
        assert!(
            advice.reason.contains("leads to 2001:db8::9 too"),
            "{advice}"
        );
        let refusal = judge(&["203.0.113.9"]).refusal().expect("it is not ours");
        for words in [
            "leads to 203.0.113.9, and not to 192.0.2.1",
            "create the records `a.test. A 192.0.2.1` ",
        ] {
            assert!(refusal.contains(words), "{refusal}");
        }
        let refusal = judge(&[]).refusal().expect("there is none");
        for words in ["a.test has no address", "`a.test. AAAA 2001:db8::1`"] {
            assert!(refusal.contains(words), "{refusal}");
        }
        let alias = LeadBy::Alias("www.cdn.example");
        let judged = http_leads_here("a.test", &found(&[]), &ours, alias);
        let refusal = judged.refusal().expect("there is none");
        assert!(
            refusal.ends_with("create the record `a.test. CNAME www.cdn.example.`"),
            "{refusal}"
        );
    }

    #[test]
    fn a_resolver_that_does_not_answer_prevents_no_order() {
        let server = SocketAddr::from(([192, 0, 2, 53], 53));
        let error = LookupError::Unanswered(vec![server]);
        for judged in [
            dns_leads_here("a.test", &Err(error.clone()), &ours()),
            http_leads_here("a.test", &Err(error), &[], LeadBy::Addresses),
        ] {
            assert_eq!(judged.refusal(), None);
            let Judgement::Unknown(reason) = judged else {
                panic!("{judged:?}")
            };
            assert!(reason.contains("192.0.2.53:53 does not answer"), "{reason}");
        }
    }

    #[test]
    fn the_system_lists_its_resolvers() {
        for (text, expected) in [
            ("nameserver 192.0.2.1\n", &["192.0.2.1:53"][..]),
            (
                "# first\nsearch a.test\nnameserver 2001:db8::1\noptions edns0\nnameserver\t192.0.2.2 \nnameserver 192.0.2.3",
                &["[2001:db8::1]:53", "192.0.2.2:53"],
            ),
            (
                "nameserver fe80::1%eth0\nnameserver\n#nameserver 192.0.2.9",
                &["127.0.0.1:53"],
            ),
            ("", &["127.0.0.1:53"]),
        ] {
            let servers: Vec<String> = servers_of(text).iter().map(ToString::to_string).collect();
            assert_eq!(servers, expected, "{text:?}");
        }
        let missing = Resolver::of_list(Path::new("/nonexistent/resolv.conf"));
        assert_eq!(missing.expect("that is no error").servers.len(), 1);
    }

    fn name(text: &str) -> Name {
        parse_name(text).expect("a name")
    }

    fn message(answers: &[(&str, RData)], authorities: &[(&str, RData)]) -> Message {
        let record =
            |(owner, data): &(&str, RData)| Record::from_rdata(name(owner), 60, data.clone());
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.answers = answers.iter().map(record).collect();
        message.authorities = authorities.iter().map(record).collect();
        message
    }

    fn soa(server: &str) -> RData {
        RData::SOA(SOA::new(name(server), name("h.test"), 1, 1, 1, 1, 1))
    }

    #[test]
    fn the_zone_of_a_name_is_read_from_any_answer() {
        let cname = |target: &str| RData::CNAME(CNAME(name(target)));
        let ns = |server: &str| RData::NS(NS(name(server)));
        let asked = "_acme-challenge.a.test";
        for (answers, authorities, expected) in [
            (
                vec![],
                vec![("A.test", soa("NS1.a.test"))],
                Some(("a.test", "ns1.a.test")),
            ),
            (
                vec![(asked, soa("ns1.b.test"))],
                vec![],
                Some((asked, "ns1.b.test")),
            ),
            (
                vec![(asked, cname("x.b.test"))],
                vec![("b.test", soa("ns1.b.test"))],
                Some(("b.test", "ns1.b.test")),
            ),
            (
                vec![],
                vec![(asked, ns("ns1.c.test"))],
                Some((asked, "ns1.c.test")),
            ),
            // Records of other names are not believed.
            (vec![], vec![("b.test", soa("ns1.b.test"))], None),
            (vec![("b.test", soa("ns1.b.test"))], vec![], None),
            (
                vec![(asked, cname("x.b.test"))],
                vec![("a.test", soa("ns1.a.test"))],
                None,
            ),
            (vec![], vec![], None),
        ] {
            let message = message(&answers, &authorities);
            let zone = read(&name(asked), RecordType::SOA, &message).zone;
            let zone = zone.map(|(zone, servers)| (text_of(&zone), text_of(&servers[0])));
            let expected = expected.map(|(zone, server)| (zone.to_owned(), server.to_owned()));
            assert_eq!(zone, expected, "{answers:?} {authorities:?}");
        }
    }

    /// A server on a free port that sends these datagrams for each that it gets, with the
    /// identifier of the question in place of theirs where that is 1.
    async fn server(responses: Vec<Message>) -> SocketAddr {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a free port"));
        let address = socket.local_addr().expect("bound");
        tokio::spawn(async move {
            let mut bytes = [0; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut bytes).await {
                let asked = Message::from_vec(&bytes[..length]).expect("a question");
                for mut response in responses.clone() {
                    if response.metadata.id == 1 {
                        response.metadata.id = asked.metadata.id;
                    } else {
                        response.metadata.id = asked.metadata.id.wrapping_add(1);
                    }
                    if response.queries.is_empty() {
                        response.queries.clone_from(&asked.queries);
                    }
                    let bytes = response.to_vec().expect("a message");
                    socket.send_to(&bytes, client).await.expect("sent");
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn responses_to_other_questions_are_not_believed() {
        let lie = |id: u16| {
            let forged = RData::A(A(Ipv4Addr::new(203, 0, 113, 66)));
            let mut message = message(&[("a.test", forged)], &[]);
            message.metadata.id = id;
            message
        };
        let mut other_name = lie(1);
        other_name.add_query(Query::query(name("b.test"), RecordType::A));
        let mut no_response = lie(1);
        no_response.metadata.message_type = MessageType::Query;
        let truth = message(&[("a.test", RData::A(A(Ipv4Addr::new(192, 0, 2, 1))))], &[]);
        let lies = vec![lie(2), other_name, no_response];

        let all = [lies.clone(), vec![truth]].concat();
        let found = Resolver::at(server(all).await).addresses("a.test").await;
        let expected = [IpAddr::from([192, 0, 2, 1])];
        assert_eq!(found.expect("an answer").list, expected);

        let quick = Resolver {
            attempt_time_max: Duration::from_millis(100),
            ..Resolver::at(server(lies).await)
        };
        let found = quick.addresses("a.test").await;
        assert_eq!(found, Err(LookupError::Unanswered(quick.servers.clone())));
    }

    #[tokio::test]
    async fn aliases_without_end_are_an_error() {
        let to = |target: &str| RData::CNAME(CNAME(name(target)));
        let turn = message(&[("a.test", to("b.test")), ("b.test", to("a.test"))], &[]);
        let resolver = Resolver::at(server(vec![turn]).await);
        let found = resolver.addresses("a.test").await;
        assert_eq!(found, Err(LookupError::Endless("a.test".to_owned())));
        let asked = "_acme-challenge.x.test";
        let found = resolver.challenge_answerer("x.test").await;
        assert_eq!(found, Err(LookupError::NoZone(asked.to_owned())));
    }

    #[tokio::test]
    async fn errors_of_the_resolver_are_named() {
        let mut refused = message(&[], &[]);
        refused.metadata.response_code = ResponseCode::ServFail;
        let resolver = Resolver::at(server(vec![refused]).await);
        let error = resolver.addresses("a.test").await.expect_err("it fails");
        assert!(error.to_string().contains("for a.test"), "{error}");
        for bad in ["", ".", "a..test", &"a".repeat(64)] {
            let refused = resolver.addresses(bad).await;
            assert!(matches!(refused, Err(LookupError::BadName(_))), "{bad}");
        }
    }
}
