//! Resolves a question against the zones: the aliases that were followed and the records at their
//! end, or the reason that there are none.
//!
//! Pure (RFC 1034 section 4.3.2, RFC 2308, RFC 4592, RFC 6672). Knows zones, not messages. For a
//! steered name the outcome names the site; the caller selects the addresses, or makes the HTTPS
//! record.

use std::sync::LazyLock;

use crate::challenges::{ChallengeName, ChallengeRecords};
use crate::message::{NAME_BYTES_MAX, QName, rtype};
use crate::zone::{NameMatch, Node, RrSet, ZoneHead, Zones};

/// CNAME and DNAME records followed in one answer.
pub const LINKS_MAX: usize = 8;

/// The owner of a record in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameRef<'z> {
    /// The question's name.
    Question,
    /// A name of the zones.
    Stored(&'z [u8]),
    /// A name that a DNAME substitution makes.
    Synthesized(Box<[u8]>),
}

/// An alias: one step from a name to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link<'z> {
    /// A CNAME record.
    Cname {
        /// Its owner.
        owner: NameRef<'z>,
        /// The record.
        set: &'z RrSet,
    },
    /// A DNAME record and the CNAME synthesized from it (RFC 6672 section 3.1).
    Dname {
        /// Owner of the DNAME.
        dname_owner: &'z [u8],
        /// The DNAME.
        set: &'z RrSet,
        /// Owner of the synthesized CNAME.
        owner: NameRef<'z>,
        /// Its target.
        target: Box<[u8]>,
    },
}

impl Link<'_> {
    /// Its owner; `None` for the question's name.
    fn owner(&self) -> Option<&[u8]> {
        let (Self::Cname { owner, .. } | Self::Dname { owner, .. }) = self;
        match owner {
            NameRef::Question => None,
            NameRef::Stored(name) => Some(name),
            NameRef::Synthesized(name) => Some(name),
        }
    }
}

/// The end of the look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome<'z> {
    /// Records of the type.
    Records(NameRef<'z>, &'z RrSet),
    /// One of several sets, for a question for any type (RFC 8482).
    AnyType(NameRef<'z>, &'z Node),
    /// Addresses of a site, to be selected for the client, or its HTTPS record, made from them.
    Steered(NameRef<'z>, usize),
    /// The name exists without that type.
    NoData,
    /// The name does not exist.
    NxDomain,
    /// Another server is responsible: the delegation's owner and its NS records.
    Referral(&'z [u8], &'z RrSet),
    /// The chain of aliases ends at a name that the client has to query for itself: one of another
    /// server, one link too many, or one that is in the chain already.
    Incomplete,
    /// No zone of this server holds the name.
    NotServed,
    /// A DNAME makes a name that is too long.
    NameTooLong,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<'z> {
    /// Aliases followed, in order.
    pub links: [Option<Link<'z>>; LINKS_MAX],
    /// The end of the chain.
    pub outcome: Outcome<'z>,
    /// Zone of the last name that was looked at; its SOA goes into negative answers.
    pub zone: Option<&'z ZoneHead>,
}

/// Answers a question of class IN.
///
/// With `stops_before_steered` a chain ends before a steered name: CNAME and addresses then hold
/// for different clients and are not joined in one answer (RFC 7871 section 7.2.1).
pub fn resolve<'z>(
    zones: &'z Zones,
    qname: &QName,
    qtype: u16,
    stops_before_steered: bool,
) -> Answer<'z> {
    static NONE: LazyLock<ChallengeRecords> = LazyLock::new(ChallengeRecords::default);
    resolve_with(zones, &NONE, qname, qtype, stops_before_steered)
}

/// [`resolve`] with the records of open challenges laid over the zones.
pub fn resolve_with<'z>(
    zones: &'z Zones,
    challenges: &'z ChallengeRecords,
    qname: &QName,
    qtype: u16,
    stops_before_steered: bool,
) -> Answer<'z> {
    let mut answer = Answer {
        links: [const { None }; LINKS_MAX],
        outcome: Outcome::NotServed,
        zone: None,
    };
    let mut count = 0;

    // The name to look up; after an alias it is the alias's target in lower case.
    let mut owned: QName;
    let mut name = qname;
    let mut owner = NameRef::Question;
    loop {
        match step(
            zones,
            challenges,
            name.as_bytes(),
            qtype,
            &owner,
            &mut answer.zone,
        ) {
            Step::End(outcome) => {
                answer.outcome = match outcome {
                    Outcome::Steered(..) if count > 0 && stops_before_steered => {
                        Outcome::Incomplete
                    }
                    // The chain leaves the zones served here: the resolver continues.
                    Outcome::NotServed | Outcome::Referral(..) if count > 0 => Outcome::Incomplete,
                    outcome => outcome,
                };
                return answer;
            }
            Step::Cname(set) => {
                let Some(target) = set.data.first() else {
                    return answer;
                };
                let Some(slot) = answer.links.get_mut(count) else {
                    answer.outcome = Outcome::Incomplete;
                    return answer;
                };
                *slot = Some(Link::Cname { owner, set });
                owner = NameRef::Stored(target);
                let Some(next) = QName::from_wire(target) else {
                    return answer;
                };
                owned = next;
            }
            Step::Dname(node, set) => {
                let Some(slot) = answer.links.get_mut(count) else {
                    answer.outcome = Outcome::Incomplete;
                    return answer;
                };
                let kept = &name.as_bytes()[..name.as_bytes().len() - node.owner.len()];
                let target: Vec<u8> = [kept, set.data.first().map_or(&[0][..], |d| d)].concat();
                let next = (target.len() <= NAME_BYTES_MAX)
                    .then(|| QName::from_wire(&target))
                    .flatten();
                let target = target.into_boxed_slice();
                *slot = Some(Link::Dname {
                    dname_owner: &node.owner,
                    set,
                    owner,
                    target: target.clone(),
                });
                owner = NameRef::Synthesized(target);
                let Some(next) = next else {
                    answer.outcome = Outcome::NameTooLong;
                    return answer;
                };
                owned = next;
            }
        }

        count += 1;
        let is_repeated = |next: &[u8]| {
            let mut owners = answer
                .links
                .iter()
                .flatten()
                .map(|l| l.owner().unwrap_or(qname.as_bytes()));
            owners.any(|owner| owner.eq_ignore_ascii_case(next))
        };

        if is_repeated(owned.as_bytes()) {
            answer.outcome = Outcome::Incomplete;
            return answer;
        }
        name = &owned;
    }
}

/// The result of looking one name up.
enum Step<'z> {
    End(Outcome<'z>),
    Cname(&'z RrSet),
    Dname(&'z Node, &'z RrSet),
}

fn step<'z>(
    zones: &'z Zones,
    challenges: &'z ChallengeRecords,
    name: &[u8],
    qtype: u16,
    owner: &NameRef<'z>,
    zone: &mut Option<&'z ZoneHead>,
) -> Step<'z> {
    let (node, is_exact) = match zones.find(name) {
        NameMatch::Exact(index) => (zones.node(index), true),
        NameMatch::ClosestEncloser(index) => (zones.node(index), false),
        NameMatch::NotServed => {
            *zone = None;
            return Step::End(Outcome::NotServed);
        }
    };

    // DS is the parent's (RFC 4035 section 3.1.4.1).
    let node = if is_exact && qtype == rtype::DS {
        zones
            .parent_side(name)
            .map_or(node, |parent| zones.node(parent))
    } else {
        node
    };
    *zone = Some(zones.zone_of(node));

    if let Some(cut) = node.cut {
        let cut = zones.node(cut);
        let asks_parent = is_exact && qtype == rtype::DS && cut.owner == node.owner;
        if let Some(ns) = cut.set(rtype::NS).filter(|_| !asks_parent) {
            return Step::End(Outcome::Referral(&cut.owner, ns));
        }
    }

    if !challenges.is_empty()
        && let Some(outcome) = at_challenge(challenges, name, qtype, (node, is_exact), owner)
    {
        return Step::End(outcome);
    }

    if is_exact {
        return at_node(node, qtype, owner);
    }
    if let Some(dname) = node.set(rtype::DNAME) {
        return Step::Dname(node, dname);
    }

    match node.wildcard {
        // A wildcard is never delegated here: RFC 4592 section 4.2 leaves NS there undefined, and
        // the zone compiler rejects it.
        Some(wildcard) => at_node(zones.node(wildcard), qtype, owner),
        None => Step::End(Outcome::NxDomain),
    }
}

/// The outcome for a name that exists because of challenges, or has other records because of them.
/// `node` is the name's own or its closest encloser; an alias there is followed as ever.
fn at_challenge<'z>(
    challenges: &'z ChallengeRecords,
    name: &[u8],
    qtype: u16,
    (node, is_exact): (&'z Node, bool),
    owner: &NameRef<'z>,
) -> Option<Outcome<'z>> {
    let found = challenges.find(name)?;
    let alias = if is_exact { rtype::CNAME } else { rtype::DNAME };
    if node.set(alias).is_some() {
        return None;
    }
    match found {
        ChallengeName::Txt(set) if qtype == rtype::TXT || (qtype == rtype::ANY && !is_exact) => {
            Some(Outcome::Records(owner.clone(), set))
        }
        _ if is_exact => None,
        ChallengeName::Txt(_) => Some(Outcome::NoData),
        // A wildcard goes on to serve the hosts whose certificate is ordered, although the name of
        // the challenge below a host would hide it (RFC 4592 section 2.2.2).
        ChallengeName::Above => node.wildcard.is_none().then_some(Outcome::NoData),
    }
}

fn at_node<'z>(node: &'z Node, qtype: u16, owner: &NameRef<'z>) -> Step<'z> {
    // Written HTTPS records are the operator's word; where there are none, they are made from the
    // addresses.
    if let Some(site) = node.site
        && (matches!(qtype, rtype::A | rtype::AAAA)
            || qtype == rtype::HTTPS && node.set(qtype).is_none())
    {
        return Step::End(Outcome::Steered(owner.clone(), site));
    }
    if let Some(set) = node.set(qtype) {
        return Step::End(Outcome::Records(owner.clone(), set));
    }
    if qtype == rtype::ANY && (node.site.is_some() || !node.sets.is_empty()) {
        return Step::End(Outcome::AnyType(owner.clone(), node));
    }
    match node.set(rtype::CNAME) {
        Some(alias) => Step::Cname(alias),
        None => Step::End(Outcome::NoData),
    }
}
