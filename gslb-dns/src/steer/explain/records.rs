//! The records of an answer as text.

use super::view::RecordView;
use crate::answer::{Answer, Link, NameRef, Outcome};
use crate::message::registry::type_shown;
use crate::message::{presentation, rtype, write_service};
use crate::respond;
use crate::steer::choice::Selection;
use crate::zone::{RrSet, text};

/// The answer's kind in a word.
pub(super) fn kind(answer: &Answer<'_>, selection: &Selection) -> &'static str {
    match answer.outcome {
        Outcome::Steered(..) if *selection == Selection::Nothing => "no-data",
        Outcome::Steered(..) => "steered",
        Outcome::Records(..) | Outcome::AnyType(..) => "records",
        Outcome::NoData => "no-data",
        Outcome::NxDomain => "no-name",
        Outcome::Referral(..) => "delegated",
        Outcome::Incomplete | Outcome::NotServed => "elsewhere",
        Outcome::NameTooLong => "too-long",
    }
}

/// The answer section: the aliases that were followed, then the records of their end, `owner`.
pub(super) fn answer_section(
    answer: &Answer<'_>,
    selection: &Selection,
    host: &str,
    owner: &str,
) -> Vec<RecordView> {
    let mut records = links(answer, host);
    match (&answer.outcome, selection) {
        (Outcome::Steered(..), Selection::Addresses(choice)) => {
            records.extend(choice.addresses.iter().map(|address| RecordView {
                owner: owner.to_owned(),
                ttl: choice.ttl,
                r#type: if address.is_ipv4() { "A" } else { "AAAA" }.to_owned(),
                data: address.to_string(),
            }));
        }
        (Outcome::Steered(..), Selection::Service(service)) => {
            let mut data = Vec::new();
            respond::with_params(service, |params| {
                write_service(&mut data, respond::SERVICE_PRIORITY, params);
            });
            records.push(RecordView {
                owner: owner.to_owned(),
                ttl: service.main().ttl,
                r#type: type_shown(rtype::HTTPS),
                data: text::shown(rtype::HTTPS, &data),
            });
        }
        (Outcome::Records(_, set), _) => add_set(&mut records, owner, set),
        (Outcome::AnyType(_, node), _) => match node.sets.first().filter(|_| node.site.is_none()) {
            Some(set) => add_set(&mut records, owner, set),
            None => records.push(RecordView {
                owner: owner.to_owned(),
                ttl: respond::ANY_TTL,
                r#type: "HINFO".to_owned(),
                data: "\"RFC8482\" \"\"".to_owned(),
            }),
        },
        _ => {}
    }
    records
}

/// The aliases that were followed, as records.
fn links(answer: &Answer<'_>, host: &str) -> Vec<RecordView> {
    let mut records = Vec::new();
    for link in answer.links.iter().flatten() {
        match link {
            Link::Cname { owner, set } => add_set(&mut records, &name(owner, host), set),
            Link::Dname {
                dname_owner,
                set,
                owner,
                target,
            } => {
                add_set(&mut records, &presentation(dname_owner), set);
                if answer.outcome != Outcome::NameTooLong {
                    records.push(RecordView {
                        owner: name(owner, host),
                        ttl: set.ttl,
                        r#type: "CNAME".to_owned(),
                        data: text::absolute_shown(target),
                    });
                }
            }
        }
    }
    records
}

/// The name that the answer ends at.
pub(super) fn last_name(answer: &Answer<'_>, host: &str) -> String {
    let last = answer.links.iter().flatten().last();
    match (&answer.outcome, last) {
        (
            Outcome::Records(owner, _) | Outcome::AnyType(owner, _) | Outcome::Steered(owner, _),
            _,
        ) => name(owner, host),
        (_, Some(Link::Cname { set, .. })) => set
            .data
            .first()
            .map_or_else(String::new, |target| presentation(target)),
        (_, Some(Link::Dname { target, .. })) => presentation(target),
        (_, None) => host.to_owned(),
    }
}

fn name(name: &NameRef<'_>, host: &str) -> String {
    match name {
        NameRef::Question => host.to_owned(),
        NameRef::Stored(name) => presentation(name),
        NameRef::Synthesized(name) => presentation(name),
    }
}

fn add_set(records: &mut Vec<RecordView>, owner: &str, set: &RrSet) {
    records.extend(set.data.iter().map(|data| RecordView {
        owner: owner.to_owned(),
        ttl: set.ttl,
        r#type: type_shown(set.rtype),
        data: text::shown(set.rtype, data),
    }));
}
