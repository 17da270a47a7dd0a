//! DNS messages as bytes: a bounded parser for what resolvers send and a writer with name
//! compression.
//!
//! Owns header, question, EDNS and record framing (RFC 1035 section 4, RFC 6891, RFC 7871 section
//! 6). Knows no zones and no sockets. The parser keeps no heap memory and never follows more than
//! it has bounded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest name on the wire (RFC 1035 section 2.3.4).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest label.
pub const LABEL_BYTES_MAX: usize = 63;
/// Bytes of a message header.
pub const HEADER_BYTES: usize = 12;
/// Longest message that is read as a query. Longer ones hold nothing that is served here; they are
/// read this far and are a format error.
pub const QUERY_BYTES_MAX: usize = 4095;
/// Largest UDP response, whatever the client offers (RFC 9715, DNS flag day 2020).
pub const UDP_BYTES_MAX: usize = 1232;
/// UDP response limit for clients without EDNS.
pub const UDP_BYTES_PLAIN: usize = 512;
/// Label starts that the writer remembers as targets of compression pointers.
const TARGETS_MAX: usize = 64;

/// Record types by number.
pub mod rtype {
    #![allow(
        missing_docs,
        reason = "each constant is the type mnemonic of the IANA registry"
    )]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const RP: u16 = 17;
    pub const AFSDB: u16 = 18;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const NAPTR: u16 = 35;
    pub const DNAME: u16 = 39;
    pub const OPT: u16 = 41;
    pub const DS: u16 = 43;
    pub const SSHFP: u16 = 44;
    pub const DNSKEY: u16 = 48;
    pub const TLSA: u16 = 52;
    pub const SMIMEA: u16 = 53;
    pub const CDS: u16 = 59;
    pub const CDNSKEY: u16 = 60;
    pub const OPENPGPKEY: u16 = 61;
    pub const SVCB: u16 = 64;
    pub const HTTPS: u16 = 65;
    pub const SPF: u16 = 99;
    pub const TKEY: u16 = 249;
    pub const TSIG: u16 = 250;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
    pub const URI: u16 = 256;
    pub const CAA: u16 = 257;
}

/// Response codes, the extended ones included.
pub mod rcode {
    #![allow(
        missing_docs,
        reason = "each constant is the name of the IANA registry"
    )]
    pub const NOERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const YXDOMAIN: u16 = 6;
    pub const NOTAUTH: u16 = 9;
    pub const BADVERS: u16 = 16;
    /// In TSIG records alone.
    pub const BADKEY: u16 = 17;
    pub const BADCOOKIE: u16 = 23;
}

/// Classes.
pub mod class {
    #![allow(
        missing_docs,
        reason = "each constant is the name of the IANA registry"
    )]
    pub const IN: u16 = 1;
    pub const CH: u16 = 3;
    pub const ANY: u16 = 255;
}

/// EDNS option codes.
pub mod option {
    #![allow(
        missing_docs,
        reason = "each constant is the name of the IANA registry"
    )]
    pub const NSID: u16 = 3;
    pub const ECS: u16 = 8;
    pub const COOKIE: u16 = 10;
    pub const KEEPALIVE: u16 = 11;
    pub const EDE: u16 = 15;
    pub const ZONEVERSION: u16 = 19;
}

/// Header flag bits.
pub mod flag {
    #![allow(
        missing_docs,
        reason = "each constant is the name of RFC 1035 or RFC 4035"
    )]
    pub const QR: u16 = 0x8000;
    pub const AA: u16 = 0x0400;
    pub const TC: u16 = 0x0200;
    pub const RD: u16 = 0x0100;
    pub const CD: u16 = 0x0010;
    pub const OPCODE: u16 = 0x7800;
}

/// A question name in lower case, uncompressed, with where its labels begin.
#[derive(Clone)]
pub struct QName {
    bytes: [u8; NAME_BYTES_MAX],
    len: u8,
}

impl std::fmt::Debug for QName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&presentation(self.as_bytes()))
    }
}

impl QName {
    /// The root.
    pub const ROOT: Self = Self {
        bytes: [0; NAME_BYTES_MAX],
        len: 1,
    };

    /// From wire bytes of a valid name; `None` when they are longer than a name may be.
    pub fn from_wire(wire: &[u8]) -> Option<Self> {
        if wire.is_empty() || wire.len() > NAME_BYTES_MAX {
            return None;
        }
        let mut name = Self::ROOT;
        name.bytes[..wire.len()].copy_from_slice(wire);
        name.bytes[..wire.len()].make_ascii_lowercase();
        name.len = wire.len() as u8;
        Some(name)
    }

    /// The wire form in lower case.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

/// A wire name as text, for people and logs: escapes what is not plain, ends without a dot (the
/// root is `.`).
pub fn presentation(wire: &[u8]) -> String {
    use std::fmt::Write as _;
    if wire.len() <= 1 {
        return ".".to_owned();
    }
    let mut text = String::new();
    for label in labels(wire) {
        if !text.is_empty() {
            text.push('.');
        }
        for &b in label {
            match b {
                b'.' | b'\\' | b'"' | b';' | b'@' | b'$' => {
                    text.push('\\');
                    text.push(b as char);
                }
                0x21..=0x7e => text.push(b as char),
                _ => {
                    let _ = write!(text, "\\{b:03}");
                }
            }
        }
    }
    text
}

/// The labels of an uncompressed wire name, without the root label.
pub fn labels(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let len = *wire.get(at)? as usize;
        if len == 0 {
            return None;
        }
        let label = wire.get(at + 1..at + 1 + len)?;
        at += 1 + len;
        Some(label)
    })
}

/// Whether these bytes are one whole uncompressed name.
pub fn is_name(wire: &[u8]) -> bool {
    let mut at = 0;
    while let Some(&len) = wire.get(at) {
        at += 1 + usize::from(len);
        if len == 0 {
            return at == wire.len() && at <= NAME_BYTES_MAX;
        }
        if usize::from(len) > LABEL_BYTES_MAX {
            return false;
        }
    }
    false
}

/// The name without its first label; `None` for the root.
pub fn parent(wire: &[u8]) -> Option<&[u8]> {
    let len = *wire.first()? as usize;
    if len == 0 { None } else { wire.get(1 + len..) }
}

/// Whether `name` is `ancestor` or below it; both lower case.
pub fn is_at_or_below(name: &[u8], ancestor: &[u8]) -> bool {
    let mut rest = Some(name);
    while let Some(here) = rest {
        if here.len() <= ancestor.len() {
            return here == ancestor;
        }
        rest = parent(here);
    }
    false
}

/// Client subnet as sent (RFC 7871 section 6), already checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSubnet {
    /// 0 (no family, no address), 1 (IPv4) or 2 (IPv6).
    pub family: u16,
    /// SOURCE PREFIX-LENGTH.
    pub source_prefix: u8,
    /// The address, host bits zero. Family 0 gives `0.0.0.0`.
    pub address: IpAddr,
}

impl ClientSubnet {
    /// Checks the data of an option in a query: known family, zero scope, the right number of
    /// octets, no stray bits.
    fn parse(data: &[u8]) -> Option<Self> {
        let [f1, f0, source_prefix, scope, octets @ ..] = data else {
            return None;
        };
        let (family, source_prefix) = (u16::from_be_bytes([*f1, *f0]), *source_prefix);
        let bits_max = match family {
            0 => 0,
            1 => 32,
            2 => 128,
            _ => return None,
        };
        if *scope != 0
            || source_prefix > bits_max
            || octets.len() != usize::from(source_prefix).div_ceil(8)
        {
            return None;
        }
        let stray = source_prefix % 8;
        if stray != 0 && octets.last().is_some_and(|b| b & (0xff >> stray) != 0) {
            return None;
        }
        let mut whole = [0; 16];
        whole[..octets.len()].copy_from_slice(octets);
        let address = if family == 2 {
            IpAddr::V6(Ipv6Addr::from(whole))
        } else {
            IpAddr::V4(Ipv4Addr::new(whole[0], whole[1], whole[2], whole[3]))
        };
        Some(Self {
            family,
            source_prefix,
            address,
        })
    }

    /// The option's data for a response with that scope.
    fn write(&self, out: &mut Vec<u8>, scope_prefix: u8) {
        out.extend_from_slice(&self.family.to_be_bytes());
        out.extend_from_slice(&[self.source_prefix, scope_prefix]);
        let octets = usize::from(self.source_prefix).div_ceil(8);
        match self.address {
            IpAddr::V4(a) => out.extend_from_slice(&a.octets()[..octets.min(4)]),
            IpAddr::V6(a) => out.extend_from_slice(&a.octets()[..octets.min(16)]),
        }
    }
}

/// A cookie as sent (RFC 7873 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cookie {
    /// The client's part.
    pub client: [u8; 8],
    /// The server's part as the client had it, when it is of our length.
    pub server: Option<[u8; 16]>,
}

impl Cookie {
    fn parse(data: &[u8]) -> Option<Self> {
        if !matches!(data.len(), 8 | 16..=40) {
            return None;
        }
        let client = data[..8].try_into().ok()?;
        Some(Self {
            client,
            server: data[8..].try_into().ok(),
        })
    }
}

/// What the OPT record of a query says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Edns {
    /// Offered UDP payload size.
    pub udp_bytes: u16,
    /// EDNS version.
    pub version: u8,
    /// DNSSEC OK.
    pub dnssec_ok: bool,
    /// Client subnet.
    pub subnet: Option<ClientSubnet>,
    /// Cookie.
    pub cookie: Option<Cookie>,
    /// The name server identifier is asked for.
    pub nsid: bool,
    /// The TCP keepalive time-out is asked for.
    pub keepalive: bool,
    /// The zone version is asked for.
    pub zone_version: bool,
}

/// A query, as far as it could be understood.
#[derive(Debug, Clone)]
pub struct Query {
    /// Message ID.
    pub id: u16,
    /// The flags word as sent.
    pub flags: u16,
    /// Questions announced.
    pub question_count: u16,
    /// The question, when there is exactly one and it is well formed.
    pub question: Option<Question>,
    /// The first OPT record, when there is one.
    pub edns: Option<Edns>,
    /// The TSIG record that ends the message.
    pub tsig: Option<TsigAt>,
    /// Whether the message breaks the format rules.
    pub is_malformed: bool,
}

/// A well-formed question.
#[derive(Debug, Clone)]
pub struct Question {
    /// Name in lower case.
    pub qname: QName,
    /// Type.
    pub qtype: u16,
    /// Class.
    pub qclass: u16,
    /// Where the question ends in the query: bytes 12 to this are echoed as sent.
    pub end: usize,
}

impl Query {
    /// The operation code.
    pub fn opcode(&self) -> u16 {
        (self.flags & flag::OPCODE) >> 11
    }

    /// Parses a message, of which no more than one byte after [`QUERY_BYTES_MAX`] is needed. `None`
    /// for what must not be answered: shorter than a header, or a response.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let header = message.get(..HEADER_BYTES)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let mut query = Self {
            id: word(0),
            flags: word(2),
            question_count: word(4),
            question: None,
            edns: None,
            tsig: None,
            is_malformed: false,
        };
        if query.flags & flag::QR != 0 {
            return None;
        }
        query.is_malformed = query
            .parse_body(message, [word(6), word(8), word(10)])
            .is_none()
            || message.len() > QUERY_BYTES_MAX;
        Some(query)
    }

    /// Reads the sections; `None` at the first thing that is wrong.
    fn parse_body(&mut self, message: &[u8], counts: [u16; 3]) -> Option<()> {
        let mut at = HEADER_BYTES;
        match self.question_count {
            0 => {}
            1 => {
                let question = Question::parse(message)?;
                at = question.end;
                self.question = Some(question);
            }
            // RFC 9619: a query has at most one question.
            _ => return None,
        }
        let mut faults = 0;
        for (section, &count) in counts.iter().enumerate() {
            for index in 0..count {
                let record = RecordHead::parse(message, at)?;
                let start = std::mem::replace(&mut at, record.end);
                match record.rtype {
                    rtype::OPT => {
                        // RFC 6891 section 6.1.1: one OPT, in the additional section, owned by the
                        // root.
                        if section != 2 || self.edns.is_some() || !record.is_root_owned {
                            faults += 1;
                            continue;
                        }
                        let mut edns = Edns {
                            udp_bytes: record.class,
                            version: (record.ttl >> 16) as u8,
                            dnssec_ok: record.ttl & 0x8000 != 0,
                            ..Edns::default()
                        };
                        // Options of a version we do not know are not ours to read.
                        let understood = edns.version != 0
                            || edns
                                .parse_options(&message[record.data_at..record.end])
                                .is_some();
                        faults += usize::from(!understood);
                        self.edns = Some(edns);
                    }
                    rtype::TSIG => {
                        // RFC 8945 section 5.1: the last record of the additional section.
                        let place = TsigAt {
                            start: start as u16,
                            data: record.data_at as u16,
                            end: record.end as u16,
                        };
                        if section != 2 || index + 1 != count {
                            faults += 1;
                        }
                        self.tsig = Some(place);
                    }
                    _ => {}
                }
            }
        }
        (faults == 0 && at == message.len()).then_some(())
    }
}

/// Where a TSIG record is in its message, which is no longer than what is read as a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TsigAt {
    start: u16,
    data: u16,
    end: u16,
}

/// What an answer to a TSIG record has of it (RFC 8945 section 4.2).
#[derive(Debug, Clone)]
pub struct Tsig<'m> {
    /// The key's name.
    key: QName,
    /// The algorithm's name, then time signed and fudge.
    fixed: &'m [u8],
}

impl<'m> Tsig<'m> {
    /// Reads the record at a place of its message; `None` when it breaks the format.
    pub fn read(message: &'m [u8], at: TsigAt) -> Option<Self> {
        let key = expand_name(message, usize::from(at.start))?;
        let data = message.get(usize::from(at.data)..usize::from(at.end))?;
        let algorithm = name_bytes(data);
        if !is_name(&data[..algorithm]) {
            return None;
        }
        // Time signed (6), fudge, MAC size; MAC; original ID, error, other length; other data.
        let mac = data.get(algorithm + 8..algorithm + 10)?;
        let after_mac = algorithm + 10 + usize::from(u16::from_be_bytes([mac[0], mac[1]]));
        let other = data.get(after_mac + 4..after_mac + 6)?;
        let end = after_mac + 6 + usize::from(u16::from_be_bytes([other[0], other[1]]));
        (end == data.len()).then_some(Self {
            key,
            fixed: &data[..algorithm + 8],
        })
    }

    /// Length of the record that answers it.
    pub fn answer_len(&self) -> usize {
        self.key.as_bytes().len() + 10 + self.fixed.len() + 8
    }
}

/// A possibly compressed name in lower case. Each pointer must lead before the part of the name
/// that it ends.
fn expand_name(message: &[u8], start: usize) -> Option<QName> {
    let mut name = QName {
        bytes: [0; NAME_BYTES_MAX],
        len: 0,
    };
    let (mut at, mut part) = (start, start);
    loop {
        let len = usize::from(*message.get(at)?);
        if len >= 0xc0 {
            let target = (len & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
            if target < HEADER_BYTES || target >= part {
                return None;
            }
            (at, part) = (target, target);
            continue;
        }
        let label = message
            .get(at..=at + len)
            .filter(|_| len <= LABEL_BYTES_MAX)?;
        let taken = usize::from(name.len);
        name.bytes
            .get_mut(taken..taken + label.len())?
            .copy_from_slice(label);
        name.len = u8::try_from(taken + label.len()).ok()?;
        if len == 0 {
            name.bytes[..usize::from(name.len)].make_ascii_lowercase();
            return Some(name);
        }
        at += 1 + len;
    }
}

impl Question {
    /// Reads the only question, right after the header. Its name cannot be compressed: there is
    /// nothing to point at.
    fn parse(message: &[u8]) -> Option<Self> {
        let mut name = QName::ROOT;
        let mut at = HEADER_BYTES;
        loop {
            let len = *message.get(at)? as usize;
            if len > LABEL_BYTES_MAX {
                return None;
            }
            let taken = at - HEADER_BYTES;
            // One more byte for the root label that must follow.
            if len > 0 && taken + 1 + len + 1 > NAME_BYTES_MAX {
                return None;
            }
            let label = message.get(at..=at + len)?;
            name.bytes[taken..=taken + len].copy_from_slice(label);
            at += 1 + len;
            if len == 0 {
                break;
            }
        }
        name.len = (at - HEADER_BYTES) as u8;
        // Length bytes are below 64 and so never ASCII letters.
        name.bytes[..name.len as usize].make_ascii_lowercase();
        let fixed = message.get(at..at + 4)?;
        Some(Self {
            qname: name,
            qtype: u16::from_be_bytes([fixed[0], fixed[1]]),
            qclass: u16::from_be_bytes([fixed[2], fixed[3]]),
            end: at + 4,
        })
    }
}

/// The frame of a record that is skipped or looked into.
struct RecordHead {
    rtype: u16,
    class: u16,
    ttl: u32,
    data_at: usize,
    end: usize,
    is_root_owned: bool,
}

impl RecordHead {
    fn parse(message: &[u8], start: usize) -> Option<Self> {
        let at = skip_name(message, start)?;
        let f = message.get(at..at + 10)?;
        let data_at = at + 10;
        let end = data_at + usize::from(u16::from_be_bytes([f[8], f[9]]));
        if end > message.len() {
            return None;
        }
        Some(Self {
            rtype: u16::from_be_bytes([f[0], f[1]]),
            class: u16::from_be_bytes([f[2], f[3]]),
            ttl: u32::from_be_bytes([f[4], f[5], f[6], f[7]]),
            data_at,
            end,
            is_root_owned: message[start] == 0,
        })
    }
}

/// Where a possibly compressed name ends. A pointer must point before the name it is in, so that
/// following it could never loop; it is not followed here.
fn skip_name(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let len = *message.get(at)? as usize;
        match len {
            0 => return Some(at + 1),
            1..=LABEL_BYTES_MAX => {
                at += 1 + len;
                if at - start >= NAME_BYTES_MAX {
                    return None;
                }
            }
            0xc0.. => {
                let target = (len & 0x3f) << 8 | *message.get(at + 1)? as usize;
                return (target >= HEADER_BYTES && target < start).then_some(at + 2);
            }
            _ => return None,
        }
    }
}

impl Edns {
    /// Reads the options; `None` when one is cut short or breaks its own format.
    fn parse_options(&mut self, mut data: &[u8]) -> Option<()> {
        while !data.is_empty() {
            let head = data.get(..4)?;
            let (code, len) = (
                u16::from_be_bytes([head[0], head[1]]),
                usize::from(u16::from_be_bytes([head[2], head[3]])),
            );
            let value = data.get(4..4 + len)?;
            data = &data[4 + len..];
            match code {
                option::ECS if self.subnet.is_none() => {
                    self.subnet = Some(ClientSubnet::parse(value)?)
                }
                // Two client subnets contradict one another.
                option::ECS => return None,
                option::COOKIE if self.cookie.is_none() => {
                    self.cookie = Some(Cookie::parse(value)?)
                }
                option::NSID => self.nsid = true,
                option::KEEPALIVE => self.keepalive = true,
                // RFC 9660 section 3.1: empty in a query.
                option::ZONEVERSION if value.is_empty() => self.zone_version = true,
                option::ZONEVERSION => return None,
                _ => {}
            }
        }
        Some(())
    }
}

/// Counts of the sections after the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Answer.
    Answer = 6,
    /// Authority.
    Authority = 8,
    /// Additional.
    Additional = 10,
}

/// Writes one message at the end of a buffer that may hold others before it.
pub struct Writer<'b> {
    out: &'b mut Vec<u8>,
    start: usize,
    targets: [u16; TARGETS_MAX],
    target_count: usize,
}

/// A place to come back to when what follows does not fit.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    len: usize,
    counts: [u8; 6],
    target_count: usize,
}

impl<'b> Writer<'b> {
    /// Begins a message: header and, when there is one, the question's bytes as they were sent.
    pub fn new(out: &'b mut Vec<u8>, id: u16, flags: u16, question: Option<&[u8]>) -> Self {
        let start = out.len();
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&[0, u8::from(question.is_some()), 0, 0, 0, 0, 0, 0]);
        let mut writer = Self {
            out,
            start,
            targets: [0; TARGETS_MAX],
            target_count: 0,
        };
        if let Some(bytes) = question {
            writer.out.extend_from_slice(bytes);
            writer.remember(HEADER_BYTES);
        }
        writer
    }

    /// Bytes of this message so far.
    pub fn len(&self) -> usize {
        self.out.len() - self.start
    }

    /// Whether nothing was written; a message has a header at least.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sets flag bits.
    pub fn set_flags(&mut self, bits: u16) {
        let [hi, lo] = bits.to_be_bytes();
        self.out[self.start + 2] |= hi;
        self.out[self.start + 3] |= lo;
    }

    /// Sets the lower four bits of the response code.
    pub fn set_rcode(&mut self, code: u16) {
        let at = self.start + 3;
        self.out[at] = self.out[at] & 0xf0 | (code & 0x0f) as u8;
    }

    /// Where the message is now.
    pub fn mark(&self) -> Mark {
        let mut counts = [0; 6];
        counts.copy_from_slice(&self.out[self.start + 6..self.start + 12]);
        Mark {
            len: self.len(),
            counts,
            target_count: self.target_count,
        }
    }

    /// Forgets everything written since the mark.
    pub fn rewind(&mut self, mark: Mark) {
        self.out.truncate(self.start + mark.len);
        self.out[self.start + 6..self.start + 12].copy_from_slice(&mark.counts);
        self.target_count = mark.target_count;
    }

    /// Remembers the labels of the name that was written at `at` as pointer targets.
    fn remember(&mut self, mut at: usize) {
        let message = &self.out[self.start..];
        while let Some(&len) = message.get(at) {
            // Pointers have 14 bits.
            if len == 0 || len >= 0xc0 || at >= 0x4000 || self.target_count == TARGETS_MAX {
                return;
            }
            self.targets[self.target_count] = at as u16;
            self.target_count += 1;
            at += 1 + usize::from(len);
        }
    }

    /// Whether the name at `at` in the message is `name` (uncompressed), letter case aside.
    fn is_name_at(&self, mut at: usize, mut name: &[u8]) -> bool {
        let message = &self.out[self.start..];
        loop {
            let Some(&len) = message.get(at) else {
                return false;
            };
            if len >= 0xc0 {
                // Only pointers that this writer wrote are here; each points backwards.
                let Some(&low) = message.get(at + 1) else {
                    return false;
                };
                at = usize::from(len & 0x3f) << 8 | usize::from(low);
                continue;
            }
            let label = 1 + usize::from(len);
            let (Some(here), Some(there)) = (message.get(at..at + label), name.get(..label)) else {
                return false;
            };
            if !here.eq_ignore_ascii_case(there) {
                return false;
            }
            if len == 0 {
                return true;
            }
            at += label;
            name = &name[label..];
        }
    }

    /// Writes a name, compressed where its end was written before (RFC 1035 section 4.1.4).
    pub fn name(&mut self, name: &[u8]) {
        let mut rest = name;
        let at = self.len();
        while rest.first().is_some_and(|&len| len != 0) {
            let known = self.targets[..self.target_count]
                .iter()
                .copied()
                .find(|&t| self.is_name_at(usize::from(t), rest));
            if let Some(target) = known {
                self.out.extend_from_slice(&(0xc000 | target).to_be_bytes());
                self.remember(at);
                return;
            }
            let label = (1 + usize::from(rest[0])).min(rest.len());
            self.out.extend_from_slice(&rest[..label]);
            rest = &rest[label..];
        }
        self.out.push(0);
        self.remember(at);
    }

    /// Writes a record's owner: a pointer to the question when it has that name.
    fn owner(&mut self, owner: Owner<'_>) {
        match owner {
            // A pointer to the root would be longer than the root.
            Owner::Question if self.out.get(self.start + HEADER_BYTES) == Some(&0) => {
                self.out.push(0)
            }
            Owner::Question => self.out.extend_from_slice(&[0xc0, HEADER_BYTES as u8]),
            Owner::Name(name) => self.name(name),
        }
    }

    /// Writes a record. `data` is uncompressed; names in it are compressed where the type allows it
    /// (RFC 3597 section 4).
    pub fn record(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        rtype: u16,
        class: u16,
        ttl: u32,
        data: &[u8],
    ) {
        self.owner(owner);
        let mut head = [0; 10];
        head[..2].copy_from_slice(&rtype.to_be_bytes());
        head[2..4].copy_from_slice(&class.to_be_bytes());
        head[4..8].copy_from_slice(&ttl.to_be_bytes());
        head[8..].copy_from_slice(&(data.len() as u16).to_be_bytes());
        self.out.extend_from_slice(&head);
        let data_at = self.out.len();
        match rtype {
            rtype::NS | rtype::CNAME | rtype::PTR => self.name(data),
            rtype::MX if data.len() > 2 => {
                self.out.extend_from_slice(&data[..2]);
                self.name(&data[2..]);
            }
            rtype::SOA => {
                let mname = name_bytes(data);
                let rname = name_bytes(&data[mname..]);
                self.name(&data[..mname]);
                self.name(&data[mname..mname + rname]);
                self.out.extend_from_slice(&data[mname + rname..]);
            }
            _ => self.out.extend_from_slice(data),
        }
        let written = (self.out.len() - data_at) as u16;
        self.out[data_at - 2..data_at].copy_from_slice(&written.to_be_bytes());
        self.count(section);
    }

    /// The same for data of a fixed length without names, of class IN: one copy into the message.
    pub fn small_record<const N: usize>(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        rtype: u16,
        ttl: u32,
        data: &[u8; N],
    ) {
        self.owner(owner);
        let mut record = [0; 10 + 16];
        record[..2].copy_from_slice(&rtype.to_be_bytes());
        record[3] = class::IN as u8;
        record[4..8].copy_from_slice(&ttl.to_be_bytes());
        record[9] = N as u8;
        record[10..10 + N].copy_from_slice(data);
        self.out.extend_from_slice(&record[..10 + N]);
        self.count(section);
    }

    fn count(&mut self, section: Section) {
        let at = self.start + section as usize;
        let count = u16::from_be_bytes([self.out[at], self.out[at + 1]]) + 1;
        self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }

    /// Writes the TSIG record of a response that is not signed, with its error (RFC 8945 section
    /// 5.3.2): always the last.
    pub fn tsig(&mut self, asked: &Tsig<'_>, original_id: u16, error: u16) {
        self.out.extend_from_slice(asked.key.as_bytes());
        self.out.extend_from_slice(&rtype::TSIG.to_be_bytes());
        self.out.extend_from_slice(&class::ANY.to_be_bytes());
        self.out.extend_from_slice(&[0; 4]);
        self.out
            .extend_from_slice(&(asked.fixed.len() as u16 + 8).to_be_bytes());
        self.out.extend_from_slice(asked.fixed);
        // No MAC; no other data after the error.
        for word in [0, original_id, error, 0] {
            self.out.extend_from_slice(&word.to_be_bytes());
        }
        self.count(Section::Additional);
    }

    /// Writes the OPT record: the last but for TSIG.
    pub fn opt(&mut self, opt: &OptRecord<'_>) {
        let ttl = u32::from(opt.rcode >> 4) << 24 | if opt.dnssec_ok { 0x8000 } else { 0 };
        self.out.push(0);
        self.out.extend_from_slice(&rtype::OPT.to_be_bytes());
        self.out
            .extend_from_slice(&(UDP_BYTES_MAX as u16).to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        self.out.extend_from_slice(&[0, 0]);
        let data_at = self.out.len();
        if let Some((subnet, scope_prefix)) = opt.subnet {
            let at = self.option_head(option::ECS);
            subnet.write(self.out, scope_prefix);
            self.option_end(at);
        }
        if let Some(cookie) = opt.cookie {
            let at = self.option_head(option::COOKIE);
            self.out.extend_from_slice(&cookie);
            self.option_end(at);
        }
        if let Some(nsid) = opt.nsid {
            let at = self.option_head(option::NSID);
            self.out.extend_from_slice(nsid.as_bytes());
            self.option_end(at);
        }
        if let Some(tenths) = opt.keepalive {
            let at = self.option_head(option::KEEPALIVE);
            self.out.extend_from_slice(&tenths.to_be_bytes());
            self.option_end(at);
        }
        if let Some((apex_labels, serial)) = opt.zone_version {
            let at = self.option_head(option::ZONEVERSION);
            // RFC 9660 section 2: label count, type 0 (SOA serial), serial.
            self.out.extend_from_slice(&[apex_labels, 0]);
            self.out.extend_from_slice(&serial.to_be_bytes());
            self.option_end(at);
        }
        if let Some(code) = opt.extended_error {
            let at = self.option_head(option::EDE);
            self.out.extend_from_slice(&code.to_be_bytes());
            self.option_end(at);
        }
        let len = (self.out.len() - data_at) as u16;
        self.out[data_at - 2..data_at].copy_from_slice(&len.to_be_bytes());
        self.count(Section::Additional);
    }

    fn option_head(&mut self, code: u16) -> usize {
        self.out.extend_from_slice(&code.to_be_bytes());
        self.out.extend_from_slice(&[0, 0]);
        self.out.len()
    }

    fn option_end(&mut self, at: usize) {
        let len = (self.out.len() - at) as u16;
        self.out[at - 2..at].copy_from_slice(&len.to_be_bytes());
    }
}

/// Bytes of the uncompressed name at the start of `data`.
pub fn name_bytes(data: &[u8]) -> usize {
    let mut at = 0;
    while let Some(&len) = data.get(at) {
        at += 1 + usize::from(len);
        if len == 0 {
            break;
        }
    }
    at.min(data.len())
}

/// Whose record it is.
#[derive(Debug, Clone, Copy)]
pub enum Owner<'n> {
    /// The name that was asked for, in the letter case it was asked in.
    Question,
    /// Another name, uncompressed.
    Name(&'n [u8]),
}

/// What the OPT record of a response says.
#[derive(Debug, Clone, Default)]
pub struct OptRecord<'o> {
    /// The whole response code.
    pub rcode: u16,
    /// Copied from the query (RFC 3225).
    pub dnssec_ok: bool,
    /// The client subnet as sent, with the scope that the answer holds for.
    pub subnet: Option<(ClientSubnet, u8)>,
    /// Client and server cookie.
    pub cookie: Option<[u8; 24]>,
    /// Name server identifier.
    pub nsid: Option<&'o str>,
    /// TCP idle time-out in units of 100 ms (RFC 7828).
    pub keepalive: Option<u16>,
    /// Labels of the zone's apex, and its serial.
    pub zone_version: Option<(u8, u32)>,
    /// Extended DNS error (RFC 8914).
    pub extended_error: Option<u16>,
}

impl OptRecord<'_> {
    /// Its length on the wire.
    pub fn len(&self) -> usize {
        let subnet = self
            .subnet
            .map_or(0, |(s, _)| 8 + usize::from(s.source_prefix).div_ceil(8));
        11 + subnet
            + self.cookie.map_or(0, |_| 28)
            + self.nsid.map_or(0, |n| 4 + n.len())
            + self.keepalive.map_or(0, |_| 6)
            + self.zone_version.map_or(0, |_| 10)
            + self.extended_error.map_or(0, |_| 6)
    }

    /// Never: an OPT record has a fixed part.
    pub fn is_empty(&self) -> bool {
        false
    }
}
