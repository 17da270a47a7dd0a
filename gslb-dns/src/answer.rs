//! From a question to what is to be said: which records, which names were followed, or why there
//! are none.
//!
//! Pure (RFC 1034 section 4.3.2, RFC 2308, RFC 4592, RFC 6672). Knows zones, not messages; steered
//! addresses are only named, selecting them is the caller's.

use crate::wire::{NAME_BYTES_MAX, QName, rtype};
use crate::zone::{Found, Node, RrSet, ZoneHead, Zones};

/// CNAME and DNAME records followed in one answer.
pub const LINKS_MAX: usize = 8;

/// The owner of a record in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameRef<'z> {
    /// The question's name.
    Question,
    /// A name of the zones.
    Stored(&'z [u8]),
    /// A name made by a DNAME.
    Made(Box<[u8]>),
}

/// One step from a name to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link<'z> {
    /// A CNAME record.
    Alias {
        /// Its owner.
        owner: NameRef<'z>,
        /// The record.
        set: &'z RrSet,
    },
    /// A DNAME record and the CNAME made of it (RFC 6672 section 3.1).
    Redirect {
        /// Owner of the DNAME.
        dname_owner: &'z [u8],
        /// The DNAME.
        set: &'z RrSet,
        /// Owner of the made CNAME.
        owner: NameRef<'z>,
        /// Its target.
        target: Box<[u8]>,
    },
}

impl Link<'_> {
    /// Whose alias it is; `None` for the name that was asked for.
    fn owner(&self) -> Option<&[u8]> {
        let (Self::Alias { owner, .. } | Self::Redirect { owner, .. }) = self;
        match owner {
            NameRef::Question => None,
            NameRef::Stored(name) => Some(name),
            NameRef::Made(name) => Some(name),
        }
    }
}

/// What stands at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Last<'z> {
    /// Records of the type.
    Records(NameRef<'z>, &'z RrSet),
    /// One of several sets, for a question for any type (RFC 8482).
    Any(NameRef<'z>, &'z Node),
    /// Addresses of a site, to be selected for the client.
    Steered(NameRef<'z>, usize),
    /// The name exists without that type.
    NoData,
    /// The name does not exist.
    Missing,
    /// Another server is responsible: the delegation's owner and its NS records.
    Referral(&'z [u8], &'z RrSet),
    /// The chain ends at a name that the client has to ask for itself: another's, one link too
    /// many, or one that was there before.
    Open,
    /// No zone of this server holds the name.
    Outside,
    /// A DNAME made a name that is too long.
    TooLong,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<'z> {
    /// Steps taken, in order.
    pub links: [Option<Link<'z>>; LINKS_MAX],
    /// Where they lead.
    pub last: Last<'z>,
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
    let mut answer = Answer {
        links: [const { None }; LINKS_MAX],
        last: Last::Outside,
        zone: None,
    };
    let mut count = 0;
    // The name looked at; after a link it is the link's target in lower case.
    let mut owned: QName;
    let mut name = qname;
    let mut owner = NameRef::Question;
    loop {
        match step(zones, name.as_bytes(), qtype, &owner, &mut answer.zone) {
            Step::End(last) => {
                answer.last = match last {
                    Last::Steered(..) if count > 0 && stops_before_steered => Last::Open,
                    // A chain that leaves what we serve: the resolver goes on by itself.
                    Last::Outside | Last::Referral(..) if count > 0 => Last::Open,
                    last => last,
                };
                return answer;
            }
            Step::Alias(set) => {
                let Some(target) = set.data.first() else {
                    return answer;
                };
                let Some(slot) = answer.links.get_mut(count) else {
                    answer.last = Last::Open;
                    return answer;
                };
                *slot = Some(Link::Alias { owner, set });
                owner = NameRef::Stored(target);
                let Some(next) = QName::from_wire(target) else {
                    return answer;
                };
                owned = next;
            }
            Step::Redirect(node, set) => {
                let Some(slot) = answer.links.get_mut(count) else {
                    answer.last = Last::Open;
                    return answer;
                };
                let kept = &name.as_bytes()[..name.as_bytes().len() - node.owner.len()];
                let made: Vec<u8> = [kept, set.data.first().map_or(&[0][..], |d| d)].concat();
                let next = (made.len() <= NAME_BYTES_MAX)
                    .then(|| QName::from_wire(&made))
                    .flatten();
                let made = made.into_boxed_slice();
                *slot = Some(Link::Redirect {
                    dname_owner: &node.owner,
                    set,
                    owner,
                    target: made.clone(),
                });
                owner = NameRef::Made(made);
                let Some(next) = next else {
                    answer.last = Last::TooLong;
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
            answer.last = Last::Open;
            return answer;
        }
        name = &owned;
    }
}

/// What one look-up leads to.
enum Step<'z> {
    End(Last<'z>),
    Alias(&'z RrSet),
    Redirect(&'z Node, &'z RrSet),
}

fn step<'z>(
    zones: &'z Zones,
    name: &[u8],
    qtype: u16,
    owner: &NameRef<'z>,
    zone: &mut Option<&'z ZoneHead>,
) -> Step<'z> {
    let (node, is_exact) = match zones.find(name) {
        Found::Exact(index) => (zones.node(index), true),
        Found::Below(index) => (zones.node(index), false),
        Found::Outside => {
            *zone = None;
            return Step::End(Last::Outside);
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
            return Step::End(Last::Referral(&cut.owner, ns));
        }
    }
    if is_exact {
        return at_node(node, qtype, owner);
    }
    if let Some(dname) = node.set(rtype::DNAME) {
        return Step::Redirect(node, dname);
    }
    match node.wildcard {
        // What is below a delegated wildcard name is not special: RFC 4592 section 4.2 leaves NS
        // there undefined.
        Some(wildcard) => at_node(zones.node(wildcard), qtype, owner),
        None => Step::End(Last::Missing),
    }
}

fn at_node<'z>(node: &'z Node, qtype: u16, owner: &NameRef<'z>) -> Step<'z> {
    if let Some(site) = node.site
        && matches!(qtype, rtype::A | rtype::AAAA)
    {
        return Step::End(Last::Steered(owner.clone(), site));
    }
    if let Some(set) = node.set(qtype) {
        return Step::End(Last::Records(owner.clone(), set));
    }
    if qtype == rtype::ANY && (node.site.is_some() || !node.sets.is_empty()) {
        return Step::End(Last::Any(owner.clone(), node));
    }
    match node.set(rtype::CNAME) {
        Some(alias) => Step::Alias(alias),
        None => Step::End(Last::NoData),
    }
}
