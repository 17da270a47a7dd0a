//! The life of one query, in order: parse, EDNS version, operation, cookie, class and type, zones,
//! selection, response.
//!
//! The only file that sees the others. Nothing here blocks, and the common steered answer allocates
//! nothing.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::answer::{self, Answer, Last, Link, NameRef};
use crate::cookie::{self, CookieSecrets, Verdict};
use crate::limit::Limiter;
use crate::metrics::{Tally, Transport};
use crate::steer::{Choice, ClientPrefix, Family, Reason, Snapshot, Steering};
use crate::wire::{
    ClientSubnet, Edns, OptRecord, Owner, QName, Query, Question, Section, Tsig, UDP_BYTES_MAX,
    UDP_BYTES_PLAIN, Writer, class, flag, labels, rcode, rtype,
};
use crate::zone::{RrSet, ZoneHead, Zones};

/// Largest message over TCP.
pub const TCP_BYTES_MAX: usize = 65_535;
/// Idle time after which a TCP connection is closed, in units of 100 ms as RFC 7828 counts.
pub const TCP_IDLE_TENTHS: u16 = 100;
/// TTL of the HINFO record that stands for any type (RFC 8482 section 4.2).
pub(crate) const ANY_TTL: u32 = 3600;
/// Its data: CPU `RFC8482`, no system.
const ANY_DATA: &[u8] = b"\x07RFC8482\x00";
/// Type NXNAME, which nobody may ask for (RFC 9824 section 3.1).
const NXNAME: u16 = 128;

/// Extended DNS errors (RFC 8914) that are given.
mod ede {
    pub(super) const NOT_READY: u16 = 14;
    pub(super) const PROHIBITED: u16 = 18;
    pub(super) const NOT_AUTHORITATIVE: u16 = 20;
    pub(super) const NOT_SUPPORTED: u16 = 21;
    pub(super) const NO_REACHABLE: u16 = 22;
    pub(super) const INVALID_QUERY_TYPE: u16 = 30;
}

/// Operation codes with a policy of their own.
mod opcode {
    pub(super) const QUERY: u16 = 0;
    pub(super) const NOTIFY: u16 = 4;
    pub(super) const UPDATE: u16 = 5;
}

/// What all workers share.
pub struct Handler {
    /// Zones and what selects addresses, one snapshot.
    pub steering: Arc<Steering>,
    /// Identifies this server (RFC 5001).
    pub server_id: String,
    /// Cookie secrets, swapped whole.
    pub cookies: ArcSwap<CookieSecrets>,
}

/// What one worker owns: its randomness, its clock reading and its counts. A worker serves one
/// transport.
#[derive(Debug)]
pub struct Worker {
    random: u64,
    /// Unix seconds, read once a batch.
    pub now: u32,
    /// Counts.
    pub tally: Tally,
    /// Over UDP only: a sender over TCP has shown that it is there.
    limiter: Option<Limiter>,
}

impl Worker {
    /// A worker whose random numbers begin at `seed`.
    pub fn new(transport: Transport, seed: u64, now: u32) -> Self {
        let limiter = (transport == Transport::Udp).then(|| Limiter::new(seed));
        Self {
            random: seed | 1,
            now,
            tally: Tally::default(),
            limiter,
        }
    }

    fn transport(&self) -> Transport {
        if self.limiter.is_some() {
            Transport::Udp
        } else {
            Transport::Tcp
        }
    }

    /// xorshift64*: only spreads load, decides nothing that an attacker would want to guess.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// A response in the making: what the steps so far have settled.
struct Draft<'q> {
    query: &'q Query,
    question: Option<&'q [u8]>,
    opt: Option<OptRecord<'q>>,
    /// The query's.
    tsig: Option<Tsig<'q>>,
    rcode: u16,
    transport: Transport,
    limit: usize,
    /// Whether the client has shown by a cookie that it gets what is sent to its address.
    is_known: bool,
    flags: u16,
}

impl Handler {
    /// Answers one message by writing a response at the end of `out`; `false` when there must be no
    /// answer.
    pub fn answer(
        &self,
        snapshot: &Snapshot,
        worker: &mut Worker,
        message: &[u8],
        client: IpAddr,
        out: &mut Vec<u8>,
    ) -> bool {
        let transport = worker.transport();
        let Some(query) = Query::parse(message) else {
            worker.tally.ignored();
            return false;
        };
        let question = query.question.as_ref();
        let mut draft = Draft {
            query: &query,
            question: question.and_then(|q| message.get(crate::wire::HEADER_BYTES..q.end)),
            opt: query.edns.as_ref().map(|e| OptRecord {
                dnssec_ok: e.dnssec_ok,
                ..OptRecord::default()
            }),
            tsig: query.tsig.and_then(|at| Tsig::read(message, at)),
            rcode: rcode::NOERROR,
            transport,
            limit: response_limit(query.edns.as_ref(), transport),
            is_known: false,
            flags: 0,
        };
        match self.precheck(&mut draft, worker, client) {
            Next::Write => draft.write_empty(out, message.len()),
            Next::Chaos(question) => self.write_chaos(&mut draft, question, out),
            Next::Resolve(question) => write_resolved(
                &mut draft,
                snapshot,
                worker,
                question,
                client,
                out,
                message.len(),
            ),
        }
        worker
            .tally
            .answered(transport, question.map(|q| q.qtype), draft.rcode);
        true
    }

    /// The steps before the zones.
    fn precheck<'q>(
        &'q self,
        draft: &mut Draft<'q>,
        worker: &mut Worker,
        client: IpAddr,
    ) -> Next<'q> {
        let query = draft.query;
        if let Some(edns) = query.edns.as_ref() {
            if edns.version != 0 {
                draft.rcode = rcode::BADVERS;
                return Next::Write;
            }
            self.fill_opt(draft, edns, worker.now, client);
        }
        let now = worker.now;
        if !draft.is_known
            && worker
                .limiter
                .as_mut()
                .is_some_and(|l| !l.admits(client, now))
        {
            if query.edns.is_some_and(|e| e.cookie.is_some()) {
                draft.rcode = rcode::BADCOOKIE;
            } else {
                draft.flags = flag::TC;
            }
            return Next::Write;
        }
        if draft.tsig.is_some() && !query.is_malformed {
            // No key is known here, whatever is asked for (RFC 8945 section 5.2.1); `finish` adds
            // the record with BADKEY.
            return draft.fail(rcode::NOTAUTH, 0);
        }
        match query.opcode() {
            opcode::QUERY => {}
            // We are the primary of all we serve and take no changes by DNS.
            opcode::NOTIFY | opcode::UPDATE if !query.is_malformed => {
                return draft.fail(rcode::REFUSED, ede::PROHIBITED);
            }
            opcode::NOTIFY | opcode::UPDATE => return draft.fail(rcode::FORMERR, 0),
            _ => return draft.fail(rcode::NOTIMP, ede::NOT_SUPPORTED),
        }
        if query.is_malformed {
            return draft.fail(rcode::FORMERR, 0);
        }
        if query.tsig.is_some() {
            // One that cannot be read, so that no BADKEY can name its key.
            return draft.fail(rcode::NOTAUTH, 0);
        }
        let Some(question) = query.question.as_ref() else {
            // RFC 7873 section 5.4: a query without a question asks for a cookie.
            let asks_cookie = query.edns.is_some_and(|e| e.cookie.is_some());
            return if asks_cookie {
                Next::Write
            } else {
                draft.fail(rcode::FORMERR, 0)
            };
        };
        match (question.qclass, question.qtype) {
            (_, rtype::OPT) => draft.fail(rcode::FORMERR, ede::INVALID_QUERY_TYPE),
            (_, NXNAME) => draft.fail(rcode::FORMERR, ede::INVALID_QUERY_TYPE),
            (class::IN, rtype::AXFR | rtype::IXFR) => draft.fail(rcode::REFUSED, ede::PROHIBITED),
            // MAILB, MAILA, TKEY, TSIG and other query types.
            (class::IN, 129..=254) => draft.fail(rcode::NOTIMP, ede::NOT_SUPPORTED),
            (class::IN, _) => Next::Resolve(question),
            (class::CH, _) => Next::Chaos(question),
            _ => draft.fail(rcode::REFUSED, ede::NOT_AUTHORITATIVE),
        }
    }

    /// Options that every response to this client has.
    fn fill_opt<'q>(&'q self, draft: &mut Draft<'q>, edns: &Edns, now: u32, client: IpAddr) {
        let Some(opt) = draft.opt.as_mut() else {
            return;
        };
        if edns.nsid {
            opt.nsid = Some(&self.server_id);
        }
        if edns.keepalive && draft.transport == Transport::Tcp {
            opt.keepalive = Some(TCP_IDLE_TENTHS);
        }
        if let Some(given) = edns.cookie {
            let secrets = self.cookies.load();
            let verdict = given
                .server
                .as_ref()
                .map(|s| cookie::check(&secrets, given.client, s, client, now));
            draft.is_known = matches!(verdict, Some(Verdict::Valid { .. }));
            let server = match (verdict, given.server) {
                (Some(Verdict::Valid { is_recent: true }), Some(same)) => same,
                _ => cookie::make(&secrets, given.client, client, now),
            };
            let mut whole = [0; 24];
            whole[..8].copy_from_slice(&given.client);
            whole[8..].copy_from_slice(&server);
            opt.cookie = Some(whole);
        }
    }

    /// Class CH: only who this server is. Its version is nobody's business.
    fn write_chaos(&self, draft: &mut Draft<'_>, question: &Question, out: &mut Vec<u8>) {
        let is_identity = matches!(
            question.qname.as_bytes(),
            b"\x02id\x06server\x00" | b"\x08hostname\x04bind\x00"
        );
        if !is_identity || !matches!(question.qtype, rtype::TXT | rtype::ANY) {
            draft.fail(rcode::REFUSED, ede::PROHIBITED);
            return draft.write_empty(out, usize::MAX);
        }
        let mut w = draft.begin(out, flag::AA);
        let name = &self.server_id.as_bytes()[..self.server_id.len().min(255)];
        let data = [&[name.len() as u8], name].concat();
        w.record(
            Section::Answer,
            Owner::Question,
            rtype::TXT,
            class::CH,
            0,
            &data,
        );
        draft.finish(w);
    }
}

/// What comes after the checks.
enum Next<'q> {
    Write,
    Chaos(&'q Question),
    Resolve(&'q Question),
}

impl<'q> Draft<'q> {
    fn fail(&mut self, rcode: u16, extended_error: u16) -> Next<'q> {
        self.rcode = rcode;
        if let Some(opt) = self.opt.as_mut().filter(|_| extended_error != 0) {
            opt.extended_error = Some(extended_error);
        }
        Next::Write
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

    fn finish(&mut self, mut w: Writer<'_>) {
        if let Some(opt) = self.opt.as_mut() {
            opt.rcode = self.rcode;
            w.opt(opt);
        }
        if let Some(tsig) = self.tsig.as_ref().filter(|_| self.rcode == rcode::NOTAUTH) {
            // Names that no key and algorithm have may be too long for UDP; the client then asks
            // again.
            if w.len() + tsig.answer_len() <= self.limit {
                w.tsig(tsig, self.query.id, rcode::BADKEY);
            } else {
                w.set_flags(flag::TC);
            }
        }
    }

    /// A response without records. A refusal is never larger than its query, so that nobody is
    /// attacked with it (RFC 5358).
    fn write_empty(&mut self, out: &mut Vec<u8>, query_bytes: usize) {
        let w = self.begin(out, self.flags);
        let bytes = w.len() + self.opt_bytes();
        if self.transport == Transport::Udp
            && bytes > query_bytes
            && let Some(opt) = self.opt.as_mut()
        {
            opt.extended_error = None;
        }
        self.finish(w);
    }
}

/// The steps over zones and selection.
fn write_resolved(
    draft: &mut Draft<'_>,
    snapshot: &Snapshot,
    worker: &mut Worker,
    question: &Question,
    client: IpAddr,
    out: &mut Vec<u8>,
    query_bytes: usize,
) {
    let zones = snapshot.zones();
    if zones.zone_count() == 0 {
        draft.fail(rcode::SERVFAIL, ede::NOT_READY);
        return draft.write_empty(out, query_bytes);
    }
    let edns = draft.query.edns.as_ref();
    let subnet = edns.and_then(|e| e.subnet);
    let is_tailored = subnet.is_some_and(|s| s.source_prefix > 0);
    // A resolver gets the first link alone, so that it can keep each link under its own scope (RFC
    // 7871 section 7.2.1). Who wants recursion is the end of the line, a person with dig or a stub,
    // and would be left without an address; the whole chain then has the scope of its last link,
    // which is never too wide.
    let stops_at_link = is_tailored && draft.query.flags & flag::RD == 0;
    let asker = Asker {
        subnet,
        resolver: client,
    };
    let select = |site, client: &ClientPrefix, family| {
        snapshot.select(site, client, family, worker.next_random())
    };
    let (answer, choice) = look_up(
        zones,
        &question.qname,
        question.qtype,
        asker,
        stops_at_link,
        select,
    );
    if answer.last == Last::Outside {
        draft.fail(rcode::REFUSED, ede::NOT_AUTHORITATIVE);
        return draft.write_empty(out, query_bytes);
    }
    if let Some(opt) = draft.opt.as_mut() {
        // An empty choice is the same for every client, as are all answers but addresses (RFC 7871
        // section 7.2.1).
        let scope = choice
            .as_ref()
            .filter(|c| is_tailored && !c.addresses.is_empty())
            .map_or(0, |c| c.scope_prefix);
        opt.subnet = subnet.map(|s| (s, scope));
        if choice.as_ref().is_some_and(|c| c.reason == Reason::AllDown) {
            opt.extended_error = Some(ede::NO_REACHABLE);
        }
        if edns.is_some_and(|e| e.zone_version) {
            opt.zone_version = answer
                .zone
                .map(|z| (labels(&z.apex).count() as u8, z.serial));
        }
    }
    let is_referral = matches!(answer.last, Last::Referral(..));
    let mut w = draft.begin(out, if is_referral { 0 } else { flag::AA });
    let start = w.mark();
    write_answer(&mut w, &answer, choice.as_ref());
    draft.rcode = rcode_of(&answer);
    w.set_rcode(draft.rcode);
    let mut fits = w.len() + draft.opt_bytes() <= draft.limit;
    if fits {
        fits = write_additional(&mut w, &answer, draft.limit - draft.opt_bytes());
    }
    if !fits {
        w.rewind(start);
        w.set_flags(flag::TC);
    }
    draft.finish(w);
}

/// Who asks: the client subnet of the query, if it has one, and the resolver's address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) subnet: Option<ClientSubnet>,
    pub(crate) resolver: IpAddr,
}

/// What is to be said to a question: the records, and for a steered name the addresses that
/// `select` chooses for the client. The one way to an answer, of queries and of explanations.
pub(crate) fn look_up<'z>(
    zones: &'z Zones,
    qname: &QName,
    qtype: u16,
    asker: Asker,
    stops_at_link: bool,
    select: impl FnOnce(usize, &ClientPrefix, Family) -> Choice,
) -> (Answer<'z>, Option<Choice>) {
    let answer = answer::resolve(zones, qname, qtype, stops_at_link);
    let choice = match &answer.last {
        Last::Steered(_, site) => {
            let family = if qtype == rtype::AAAA {
                Family::V6
            } else {
                Family::V4
            };
            Some(select(
                *site,
                &client_prefix(asker.subnet, asker.resolver),
                family,
            ))
        }
        _ => None,
    };
    (answer, choice)
}

/// The response code of an answer (RFC 6604: that of the last name).
pub(crate) fn rcode_of(answer: &Answer<'_>) -> u16 {
    match answer.last {
        Last::Missing => rcode::NXDOMAIN,
        Last::TooLong => rcode::YXDOMAIN,
        Last::Outside => rcode::REFUSED,
        _ => rcode::NOERROR,
    }
}

/// Bytes that a response may have.
fn response_limit(edns: Option<&Edns>, transport: Transport) -> usize {
    match (transport, edns) {
        (Transport::Tcp, _) => TCP_BYTES_MAX,
        (Transport::Udp, None) => UDP_BYTES_PLAIN,
        (Transport::Udp, Some(e)) => usize::from(e.udp_bytes).clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX),
    }
}

/// Whom the answer is for: the client subnet, or the resolver itself when there is none or it is
/// withheld.
fn client_prefix(subnet: Option<ClientSubnet>, resolver: IpAddr) -> ClientPrefix {
    match subnet {
        Some(s) if s.source_prefix > 0 => ClientPrefix {
            address: s.address,
            source_prefix: s.source_prefix,
            from_ecs: true,
        },
        _ => ClientPrefix::host(resolver),
    }
}

fn owner<'a>(name: &'a NameRef<'_>) -> Owner<'a> {
    match name {
        NameRef::Question => Owner::Question,
        NameRef::Stored(name) => Owner::Name(name),
        NameRef::Made(name) => Owner::Name(name),
    }
}

fn write_set(w: &mut Writer<'_>, section: Section, owner: Owner<'_>, set: &RrSet) {
    for data in &set.data {
        w.record(section, owner, set.rtype, class::IN, set.ttl, data);
    }
}

/// Answer and authority sections.
fn write_answer(w: &mut Writer<'_>, answer: &Answer<'_>, choice: Option<&Choice>) {
    let mut redirected: Option<&RrSet> = None;
    for link in answer.links.iter().map_while(Option::as_ref) {
        match link {
            Link::Alias { owner: name, set } => write_set(w, Section::Answer, owner(name), set),
            Link::Redirect {
                dname_owner,
                set,
                owner: name,
                target,
            } => {
                // One that redirects again is in the answer already.
                if !redirected
                    .replace(set)
                    .is_some_and(|before| std::ptr::eq(before, *set))
                {
                    write_set(w, Section::Answer, Owner::Name(dname_owner), set);
                }
                if answer.last != Last::TooLong {
                    w.record(
                        Section::Answer,
                        owner(name),
                        rtype::CNAME,
                        class::IN,
                        set.ttl,
                        target,
                    );
                }
            }
        }
    }
    match &answer.last {
        Last::Records(name, set) => write_set(w, Section::Answer, owner(name), set),
        Last::Any(name, node) => match node.sets.first().filter(|_| node.site.is_none()) {
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
        Last::Steered(name, _) => match choice.filter(|c| !c.addresses.is_empty()) {
            Some(choice) => write_addresses(w, owner(name), choice),
            None => write_negative(w, answer.zone),
        },
        Last::NoData | Last::Missing => write_negative(w, answer.zone),
        Last::Referral(name, set) => write_set(w, Section::Authority, Owner::Name(name), set),
        Last::TooLong | Last::Open | Last::Outside => {}
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

/// Addresses of name servers, as far as they fit; `false` when one that is required does not (RFC
/// 9471).
fn write_additional(w: &mut Writer<'_>, answer: &Answer<'_>, limit: usize) -> bool {
    let (Last::Records(_, set) | Last::Referral(_, set)) = &answer.last else {
        return true;
    };
    let is_referral = matches!(answer.last, Last::Referral(..));
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
