//! The steps of one query, in order: parse, EDNS version, cookie and rate limit, operation, class
//! and type, zones, selection, response.
//!
//! The only file that sees all the others. Nothing here blocks, and the common steered answer
//! allocates nothing.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::answer::{self, Answer, Outcome};
use crate::challenges::ChallengeRecords;
use crate::cookie::{self, CookieCheck, CookieSecrets};
use crate::limit::Limiter;
use crate::message::{ClientSubnet, Edns, QName, Query, Question, class, flag, rcode, rtype};
use crate::metrics::{Tally, Transport};
use crate::respond::{Draft, ede};
use crate::steer::{ClientPrefix, Family, Selection, Snapshot, Steering, Wanted};
use crate::zone::Zones;
use nearcast_fleet::random::Random;

/// Idle time after which a TCP connection is closed, in units of 100 ms as RFC 7828 counts.
pub(crate) const TCP_IDLE_TENTHS: u16 = 100;
/// Type NXNAME, which must not be queried (RFC 9824 section 3.1).
const NXNAME: u16 = 128;

/// Operation codes with a policy of their own.
mod opcode {
    pub(super) const QUERY: u16 = 0;
    pub(super) const NOTIFY: u16 = 4;
    pub(super) const UPDATE: u16 = 5;
}

/// The state that all workers share.
pub struct Handler {
    /// Zones and steering, read as one snapshot.
    pub steering: Arc<Steering>,
    /// Identifies this server (RFC 5001).
    pub server_id: String,
    /// Cookie secrets, swapped whole.
    pub cookies: ArcSwap<CookieSecrets>,
}

/// The state of one worker: its random numbers, its reading of the clock and its counts. A worker
/// serves one transport.
#[derive(Debug)]
pub struct Worker {
    random: Random,
    /// Unix seconds, read once a batch.
    pub now: u32,
    /// Counts.
    pub tally: Tally,
    /// Over UDP only: the address of a TCP client is verified by the handshake.
    limiter: Option<Limiter>,
}

impl Worker {
    /// A worker whose random numbers begin at `seed`.
    pub fn new(transport: Transport, seed: u64, now: u32) -> Self {
        let limiter = (transport == Transport::Udp).then(|| Limiter::new(seed));
        Self {
            random: Random::new(seed),
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
}

impl Handler {
    /// Answers one message by writing a response at the end of `out`; `false` when there must be no
    /// response.
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
        let mut draft = Draft::new(&query, client, transport);

        match self.precheck(&mut draft, worker) {
            Next::Write => draft.write_empty(out),
            Next::Chaos(question) => draft.write_chaos(question, &self.server_id, out),
            Next::Resolve(question) => {
                match answer_from_zones(&mut draft, snapshot, worker, question) {
                    Some((answer, selection)) => draft.write_answer(&answer, &selection, out),
                    None => draft.write_empty(out),
                }
            }
        }

        let qtype = query.question.as_ref().map(|q| q.qtype);
        worker.tally.answered(transport, qtype, draft.rcode);
        true
    }

    /// The steps before the zones.
    fn precheck<'q>(&'q self, draft: &mut Draft<'q>, worker: &mut Worker) -> Next<'q> {
        let query = draft.query;
        if let Some(edns) = query.edns.as_ref() {
            if edns.version != 0 {
                draft.rcode = rcode::BADVERS;
                return Next::Write;
            }
            self.fill_opt(draft, edns, worker.now);
        }

        if !draft.is_verified && is_over_limit(worker, draft.client) {
            if query.edns.is_some_and(|e| e.cookie.is_some()) {
                draft.rcode = rcode::BADCOOKIE;
            } else {
                draft.flags = flag::TC;
            }
            return Next::Write;
        }

        if draft.tsig.is_some() && !query.is_malformed {
            // This server knows no key (RFC 8945 section 5.2.1); `finish` adds the record with
            // BADKEY.
            return fail(draft, rcode::NOTAUTH, None);
        }

        match query.opcode() {
            opcode::QUERY => {}
            // This server is the primary of all its zones and takes no changes by DNS.
            opcode::NOTIFY | opcode::UPDATE if !query.is_malformed => {
                return fail(draft, rcode::REFUSED, Some(ede::PROHIBITED));
            }
            opcode::NOTIFY | opcode::UPDATE => return fail(draft, rcode::FORMERR, None),
            _ => return fail(draft, rcode::NOTIMP, Some(ede::NOT_SUPPORTED)),
        }

        if query.is_malformed {
            return fail(draft, rcode::FORMERR, None);
        }
        if query.tsig.is_some() {
            // The TSIG record cannot be read, so no BADKEY can name its key.
            return fail(draft, rcode::NOTAUTH, None);
        }

        let Some(question) = query.question.as_ref() else {
            // RFC 7873 section 5.4: a query without a question requests a cookie.
            return match query.edns.is_some_and(|e| e.cookie.is_some()) {
                true => Next::Write,
                false => fail(draft, rcode::FORMERR, None),
            };
        };
        check_question(draft, question)
    }

    /// Sets the options that every response to this client has.
    fn fill_opt<'q>(&'q self, draft: &mut Draft<'q>, edns: &Edns, now: u32) {
        let Some(opt) = draft.opt.as_mut() else {
            return;
        };
        if edns.nsid {
            opt.nsid = Some(&self.server_id);
        }
        if edns.keepalive && draft.transport == Transport::Tcp {
            opt.keepalive = Some(TCP_IDLE_TENTHS);
        }
        if let Some(sent) = edns.cookie {
            let secrets = self.cookies.load();
            let check = sent
                .server
                .as_ref()
                .map(|s| cookie::check(&secrets, sent.client, s, draft.client, now));
            draft.is_verified = matches!(check, Some(CookieCheck::Valid { .. }));
            let server = match (check, sent.server) {
                (Some(CookieCheck::Valid { is_recent: true }), Some(same)) => same,
                _ => cookie::make(&secrets, sent.client, draft.client, now),
            };
            let mut whole = [0; 24];
            whole[..8].copy_from_slice(&sent.client);
            whole[8..].copy_from_slice(&server);
            opt.cookie = Some(whole);
        }
    }
}

/// The step after the checks.
enum Next<'q> {
    /// Write a response without records.
    Write,
    /// Answer a question of class CH.
    Chaos(&'q Question),
    /// Look the question up in the zones.
    Resolve(&'q Question),
}

fn fail<'q>(draft: &mut Draft<'_>, rcode: u16, extended_error: Option<u16>) -> Next<'q> {
    draft.set_error(rcode, extended_error);
    Next::Write
}

/// Counts the answer and says whether the client's network has had its share of this second.
fn is_over_limit(worker: &mut Worker, client: IpAddr) -> bool {
    let now = worker.now;
    worker
        .limiter
        .as_mut()
        .is_some_and(|limiter| !limiter.admits(client, now))
}

/// Class and type.
fn check_question<'q>(draft: &mut Draft<'_>, question: &'q Question) -> Next<'q> {
    match (question.qclass, question.qtype) {
        (_, rtype::OPT | NXNAME) => fail(draft, rcode::FORMERR, Some(ede::INVALID_QUERY_TYPE)),
        (class::IN, rtype::AXFR | rtype::IXFR) => {
            fail(draft, rcode::REFUSED, Some(ede::PROHIBITED))
        }
        // MAILB, MAILA, TKEY, TSIG and other query types.
        (class::IN, 129..=254) => fail(draft, rcode::NOTIMP, Some(ede::NOT_SUPPORTED)),
        (class::IN, _) => Next::Resolve(question),
        (class::CH, _) => Next::Chaos(question),
        _ => fail(draft, rcode::REFUSED, Some(ede::NOT_AUTHORITATIVE)),
    }
}

/// Looks the question up and selects addresses; `None` for a response without records, whose error
/// is in the draft.
fn answer_from_zones<'z>(
    draft: &mut Draft<'_>,
    snapshot: &'z Snapshot,
    worker: &mut Worker,
    question: &Question,
) -> Option<(Answer<'z>, Selection)> {
    let zones = snapshot.zones();
    if zones.zone_count() == 0 {
        draft.set_error(rcode::SERVFAIL, Some(ede::NOT_READY));
        return None;
    }

    // A resolver gets only the first link, so that it can cache each link under its own scope (RFC
    // 7871 section 7.2.1). RD is set by a stub or a person with dig, who would be left without an
    // address: they get the whole chain under the scope of its last link, which is never too wide.
    let stops_at_link = draft.is_tailored() && draft.query.flags & flag::RD == 0;
    let requester = Requester {
        subnet: draft.subnet(),
        resolver: draft.client,
    };
    let select = |site, client: &ClientPrefix, wanted| {
        snapshot.select_wanted(site, client, wanted, worker.random.bits())
    };
    let (answer, selection) = look_up(
        (zones, snapshot.challenges()),
        (&question.qname, question.qtype),
        requester,
        stops_at_link,
        select,
    );

    if answer.outcome == Outcome::NotServed {
        draft.set_error(rcode::REFUSED, Some(ede::NOT_AUTHORITATIVE));
        return None;
    }
    Some((answer, selection))
}

/// The sender of a query: its client subnet, if it has one, and the resolver's address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requester {
    pub(crate) subnet: Option<ClientSubnet>,
    pub(crate) resolver: IpAddr,
}

/// Answers a question (name and type): the records, and for a steered name what `select` chooses for
/// the client. Queries and explanations both use this function, so they cannot
/// differ.
pub(crate) fn look_up<'z>(
    (zones, challenges): (&'z Zones, &'z ChallengeRecords),
    (qname, qtype): (&QName, u16),
    requester: Requester,
    stops_at_link: bool,
    select: impl FnOnce(usize, &ClientPrefix, Wanted) -> Selection,
) -> (Answer<'z>, Selection) {
    let answer = answer::resolve_with(zones, challenges, qname, qtype, stops_at_link);
    let selection = match &answer.outcome {
        Outcome::Steered(_, site) => {
            let wanted = match qtype {
                rtype::HTTPS => Wanted::Service,
                rtype::AAAA => Wanted::Addresses(Family::V6),
                _ => Wanted::Addresses(Family::V4),
            };
            let client = client_prefix(requester.subnet, requester.resolver);
            select(*site, &client, wanted)
        }
        _ => Selection::Nothing,
    };
    (answer, selection)
}

/// The client that an answer is for: the client subnet, or the resolver itself when the query has
/// none or withholds it.
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
