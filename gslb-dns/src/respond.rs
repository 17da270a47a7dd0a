//! Writes responses: header, sections, OPT and TSIG, within the size that the transport and the
//! client allow. Knows answers and choices, not how they were found.

use std::net::IpAddr;

use crate::answer::{Answer, Link, NameRef, Outcome};
use crate::message::{
    ClientSubnet, Edns, HEADER_BYTES, OptRecord, Owner, Query, Question, Section, ServiceParam,
    TCP_BYTES_MAX, Tsig, UDP_BYTES_MAX, UDP_BYTES_PLAIN, Writer, class, flag, labels, rcode, rtype,
};
use crate::metrics::Transport;
use crate::steer::{Choice, Protocols, Selection, Service};
use crate::zone::{RrSet, ZoneHead};

/// TTL of the HINFO record that stands for any type (RFC 8482 section 4.2).
pub(crate) const ANY_TTL: u32 = 3600;
/// Its data: CPU `RFC8482`, no system.
const ANY_DATA: &[u8] = b"\x07RFC8482\x00";

/// Priority of the only HTTPS record of a name (RFC 9460 section 2.4.1).
pub(crate) const SERVICE_PRIORITY: u16 = 1;
/// The port of `https` without a number, which an HTTPS record does not name.
const HTTPS_PORT: u16 = 443;

/// The extended DNS errors (RFC 8914) that responses carry.
pub(crate) mod ede {
    pub(crate) const NOT_READY: u16 = 14;
    pub(crate) const PROHIBITED: u16 = 18;
    pub(crate) const NOT_AUTHORITATIVE: u16 = 20;
    pub(crate) const NOT_SUPPORTED: u16 = 21;
    pub(crate) const NO_REACHABLE: u16 = 22;
    pub(crate) const INVALID_QUERY_TYPE: u16 = 30;
}

/// A response before it is written: the query, and the results of the steps so far.
pub(crate) struct Draft<'q> {
    pub(crate) query: &'q Query<'q>,
    /// The question's bytes as they were sent.
    question: Option<&'q [u8]>,
    /// Length of the query.
    query_bytes: usize,
    /// The address that the query came from.
    pub(crate) client: IpAddr,
    pub(crate) transport: Transport,
    /// Most bytes that the response may have.
    limit: usize,
    pub(crate) opt: Option<OptRecord<'q>>,
    /// The query's.
    pub(crate) tsig: Option<Tsig<'q>>,
    pub(crate) rcode: u16,
    pub(crate) flags: u16,
    /// Whether a valid cookie shows that the client receives at its address.
    pub(crate) is_verified: bool,
}

impl<'q> Draft<'q> {
    /// A response to a query, without an error so far.
    pub(crate) fn new(query: &'q Query<'q>, client: IpAddr, transport: Transport) -> Self {
        let (message, question) = (query.message, query.question.as_ref());
        Self {
            query,
            question: question.and_then(|q| message.get(HEADER_BYTES..q.end)),
            query_bytes: message.len(),
            client,
            transport,
            limit: response_limit(query.edns.as_ref(), transport),
            opt: query.edns.as_ref().map(|e| OptRecord {
                dnssec_ok: e.dnssec_ok,
                ..OptRecord::default()
            }),
            tsig: query.tsig.and_then(|at| Tsig::read(message, at)),
            rcode: rcode::NOERROR,
            flags: 0,
            is_verified: false,
        }
    }

    /// The query's client subnet.
    pub(crate) fn subnet(&self) -> Option<ClientSubnet> {
        self.query.edns.as_ref().and_then(|e| e.subnet)
    }

    /// Whether the query shows a part of the client's address.
    pub(crate) fn is_tailored(&self) -> bool {
        self.subnet().is_some_and(|s| s.source_prefix > 0)
    }

    /// Sets the response code and the extended error, which needs an OPT record.
    pub(crate) fn set_error(&mut self, rcode: u16, extended_error: Option<u16>) {
        self.rcode = rcode;
        if let (Some(opt), Some(code)) = (self.opt.as_mut(), extended_error) {
            opt.extended_error = Some(code);
        }
    }

    fn begin<'b>(&self, out: &'b mut Vec<u8>, flags: u16) -> Writer<'b> {
        let copied = self.query.flags & (flag::OPCODE | flag::RD | flag::CD);
        let mut w = Writer::new(out, self.query.id, flag::QR | copied | flags, self.question);
        w.set_rcode(self.rcode);
        w
    }

    fn opt_bytes(&self) -> usize {
        self.opt.as_ref().map_or(0, OptRecord::len)
    }

    /// Adds OPT and TSIG.
    fn finish(&mut self, mut w: Writer<'_>) {
        if let Some(opt) = self.opt.as_mut() {
            opt.rcode = self.rcode;
            w.opt(opt);
        }
        if let Some(tsig) = self.tsig.as_ref().filter(|_| self.rcode == rcode::NOTAUTH) {
            // Key and algorithm names that do not exist may be too long for UDP; the client then
            // repeats the query over TCP.
            if w.len() + tsig.answer_len() <= self.limit {
                w.tsig(tsig, self.query.id, rcode::BADKEY);
            } else {
                w.set_flags(flag::TC);
            }
        }
    }

    /// Writes a response without records. Over UDP it is never larger than its query, so that it
    /// amplifies nothing (RFC 5358).
    pub(crate) fn write_empty(&mut self, out: &mut Vec<u8>) {
        let w = self.begin(out, self.flags);
        let bytes = w.len() + self.opt_bytes();
        if self.transport == Transport::Udp
            && bytes > self.query_bytes
            && let Some(opt) = self.opt.as_mut()
        {
            opt.extended_error = None;
        }
        self.finish(w);
    }

    /// Answers a question of class CH: only the identity of this server. Its version is not
    /// disclosed.
    pub(crate) fn write_chaos(&mut self, question: &Question, server_id: &str, out: &mut Vec<u8>) {
        let is_identity = matches!(
            question.qname.as_bytes(),
            b"\x02id\x06server\x00" | b"\x08hostname\x04bind\x00"
        );
        if !is_identity || !matches!(question.qtype, rtype::TXT | rtype::ANY) {
            self.set_error(rcode::REFUSED, Some(ede::PROHIBITED));
            // The refusal keeps its reason whatever the size of the query.
            self.query_bytes = usize::MAX;
            return self.write_empty(out);
        }

        let mut w = self.begin(out, flag::AA);
        let name = &server_id.as_bytes()[..server_id.len().min(255)];
        let data = [&[name.len() as u8], name].concat();
        let (section, ttl) = (Section::Answer, 0);
        w.record(section, Owner::Question, rtype::TXT, class::CH, ttl, &data);
        self.finish(w);
    }

    /// Writes an answer, with what was selected where its name is steered.
    pub(crate) fn write_answer(
        &mut self,
        answer: &Answer<'_>,
        selection: &Selection,
        out: &mut Vec<u8>,
    ) {
        self.set_answer_options(answer, selection);
        let is_referral = matches!(answer.outcome, Outcome::Referral(..));
        let mut w = self.begin(out, if is_referral { 0 } else { flag::AA });
        let start = w.mark();
        write_sections(&mut w, answer, selection);
        self.rcode = rcode_of(answer);
        w.set_rcode(self.rcode);

        let mut fits = w.len() + self.opt_bytes() <= self.limit;
        if fits {
            fits = write_additional(&mut w, answer, self.limit - self.opt_bytes());
        }
        if !fits {
            w.rewind(start);
            w.set_flags(flag::TC);
        }
        self.finish(w);
    }

    /// Sets the options that depend on the answer.
    fn set_answer_options(&mut self, answer: &Answer<'_>, selection: &Selection) {
        let (subnet, is_tailored) = (self.subnet(), self.is_tailored());
        let Some(opt) = self.opt.as_mut() else {
            return;
        };
        // All answers but those of steered names are the same for every client (RFC 7871 section
        // 7.2.1).
        let scope = match is_tailored {
            true => selection.scope_prefix(),
            false => 0,
        };
        opt.subnet = subnet.map(|s| (s, scope));
        if selection.is_all_down() {
            opt.extended_error = Some(ede::NO_REACHABLE);
        }
        if self.query.edns.is_some_and(|e| e.zone_version) {
            opt.zone_version = answer
                .zone
                .map(|z| (labels(&z.apex).count() as u8, z.serial));
        }
    }
}

/// The response code of an answer (RFC 6604: that of the last name).
pub(crate) fn rcode_of(answer: &Answer<'_>) -> u16 {
    match answer.outcome {
        Outcome::NxDomain => rcode::NXDOMAIN,
        Outcome::NameTooLong => rcode::YXDOMAIN,
        Outcome::NotServed => rcode::REFUSED,
        _ => rcode::NOERROR,
    }
}

/// Most bytes of a response.
fn response_limit(edns: Option<&Edns>, transport: Transport) -> usize {
    match (transport, edns) {
        (Transport::Tcp, _) => TCP_BYTES_MAX,
        (Transport::Udp, None) => UDP_BYTES_PLAIN,
        (Transport::Udp, Some(e)) => usize::from(e.udp_bytes).clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX),
    }
}

fn owner<'a>(name: &'a NameRef<'_>) -> Owner<'a> {
    match name {
        NameRef::Question => Owner::Question,
        NameRef::Stored(name) => Owner::Name(name),
        NameRef::Synthesized(name) => Owner::Name(name),
    }
}

fn write_set(w: &mut Writer<'_>, section: Section, owner: Owner<'_>, set: &RrSet) {
    for data in &set.data {
        w.record(section, owner, set.rtype, class::IN, set.ttl, data);
    }
}

/// Writes the answer and authority sections.
fn write_sections(w: &mut Writer<'_>, answer: &Answer<'_>, selection: &Selection) {
    write_links(w, answer);
    match &answer.outcome {
        Outcome::Records(name, set) => write_set(w, Section::Answer, owner(name), set),
        Outcome::AnyType(name, node) => match node.sets.first().filter(|_| node.site.is_none()) {
            Some(set) => write_set(w, Section::Answer, owner(name), set),
            None => w.record(
                Section::Answer,
                owner(name),
                rtype::HINFO,
                class::IN,
                ANY_TTL,
                ANY_DATA,
            ),
        },
        Outcome::Steered(name, _) => match selection {
            Selection::Addresses(choice) => write_addresses(w, owner(name), choice),
            Selection::Service(service) => with_params(service, |params| {
                w.https_record(owner(name), service.main().ttl, SERVICE_PRIORITY, params);
            }),
            Selection::Nothing => write_negative(w, answer.zone),
        },
        Outcome::NoData | Outcome::NxDomain => write_negative(w, answer.zone),
        Outcome::Referral(name, set) => write_set(w, Section::Authority, Owner::Name(name), set),
        Outcome::NameTooLong | Outcome::Incomplete | Outcome::NotServed => {}
    }
}

/// Writes the aliases that lead to the last name.
fn write_links(w: &mut Writer<'_>, answer: &Answer<'_>) {
    let mut last_dname: Option<&RrSet> = None;
    for link in answer.links.iter().map_while(Option::as_ref) {
        match link {
            Link::Cname { owner: name, set } => write_set(w, Section::Answer, owner(name), set),
            Link::Dname {
                dname_owner,
                set,
                owner: name,
                target,
            } => {
                // A DNAME that applies twice in a row is in the answer once.
                let before = last_dname.replace(set);
                if !before.is_some_and(|before| std::ptr::eq(before, *set)) {
                    write_set(w, Section::Answer, Owner::Name(dname_owner), set);
                }
                if answer.outcome != Outcome::NameTooLong {
                    let (section, rtype) = (Section::Answer, rtype::CNAME);
                    w.record(section, owner(name), rtype, class::IN, set.ttl, target);
                }
            }
        }
    }
}

fn write_addresses(w: &mut Writer<'_>, owner: Owner<'_>, choice: &Choice) {
    for address in choice.addresses.iter() {
        match address {
            IpAddr::V4(a) => {
                w.small_record(Section::Answer, owner, rtype::A, choice.ttl, &a.octets())
            }
            IpAddr::V6(a) => {
                w.small_record(Section::Answer, owner, rtype::AAAA, choice.ttl, &a.octets())
            }
        }
    }
}

/// Gives the parameters of an HTTPS record, in the order of their keys.
pub(crate) fn with_params<T>(service: &Service, then: impl FnOnce(&[ServiceParam<'_>]) -> T) -> T {
    let Protocols { http2, http3 } = service.protocols;
    // HTTP/1.1 is the default, which the record keeps (RFC 9460 section 7.1.2).
    let alpn: &[&[u8]] = match (http3, http2) {
        (true, true) => &[b"h3", b"h2"],
        (true, false) => &[b"h3"],
        (false, true) => &[b"h2"],
        (false, false) => &[],
    };
    let v4 = ServiceParam::Ipv4Hint(&service.v4.addresses);
    let v6 = ServiceParam::Ipv6Hint(&service.v6.addresses);
    match service.port {
        HTTPS_PORT => then(&[ServiceParam::Alpn(alpn), v4, v6]),
        port => then(&[ServiceParam::Alpn(alpn), ServiceParam::Port(port), v4, v6]),
    }
}

/// Writes the SOA record of a negative answer (RFC 2308).
fn write_negative(w: &mut Writer<'_>, zone: Option<&ZoneHead>) {
    if let Some(zone) = zone {
        w.record(
            Section::Authority,
            Owner::Name(&zone.apex),
            rtype::SOA,
            class::IN,
            zone.negative_ttl,
            &zone.soa,
        );
    }
}

/// Writes addresses of name servers, as many as fit; `false` when a required one does not fit (RFC
/// 9471).
fn write_additional(w: &mut Writer<'_>, answer: &Answer<'_>, limit: usize) -> bool {
    let (Outcome::Records(_, set) | Outcome::Referral(_, set)) = &answer.outcome else {
        return true;
    };
    let is_referral = matches!(answer.outcome, Outcome::Referral(..));
    for address in &set.additional {
        let before = w.mark();
        w.record(
            Section::Additional,
            Owner::Name(&address.owner),
            address.rtype,
            class::IN,
            address.ttl,
            &address.data,
        );
        if w.len() > limit {
            w.rewind(before);
            return !(is_referral && address.is_required);
        }
    }
    true
}
