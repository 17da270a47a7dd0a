//! Explanations in words.

use nearcast_fleet::config::SelectionPolicy;

use super::query::ExplainQuery;
use super::view::{DnsView, SteeredView};
use crate::answer::{Answer, Outcome};
use crate::message::presentation;
use crate::message::registry::type_shown;
use crate::steer::choice::{ClientPrefix, Family, Reason};
use crate::steer::select::{Availability, Inputs, UNMEASURED};

/// Why a cluster was not chosen. `ahead` is the chosen one's name where that ranks before it.
pub(super) fn rejection(
    inputs: &Inputs<'_>,
    cluster: u16,
    winner: Option<u16>,
    ahead: Option<&str>,
) -> String {
    match inputs.clusters[usize::from(cluster)].availability(inputs.family) {
        Availability::NoAddress if inputs.family == Family::V4 => return "no IPv4 address".into(),
        Availability::NoAddress => return "no IPv6 address".into(),
        Availability::Down => return "down".into(),
        Availability::Full => return "full".into(),
        Availability::Open => {}
    }

    let is_measured = |cluster: u16| {
        let row = inputs.rtt.and_then(|row| row.get(usize::from(cluster)));
        row.is_some_and(|us| *us != UNMEASURED)
    };

    match (inputs.policy, ahead) {
        (SelectionPolicy::Geo, Some(ahead)) if inputs.placed => format!("farther than {ahead}"),
        (SelectionPolicy::Geo, Some(ahead)) => {
            format!("place unknown, and {ahead} comes first by weight")
        }
        (SelectionPolicy::Rtt, Some(ahead)) if inputs.rtt.is_some() => {
            match (is_measured(cluster), winner.is_some_and(is_measured)) {
                (true, true) => format!("slower than {ahead}, or farther at about the same time"),
                (true, false) => {
                    format!("measured slower than {ahead} is likely to be by its distance")
                }
                (false, _) => format!("not measured, and likely to be slower than {ahead}"),
            }
        }
        (SelectionPolicy::Rtt, Some(ahead)) if inputs.placed => {
            format!("nothing measured, and farther than {ahead}")
        }
        (SelectionPolicy::Rtt, Some(ahead)) => {
            format!("nothing measured, place unknown, and {ahead} comes first by weight")
        }
        (SelectionPolicy::Weighted, _) => "not drawn this time".into(),
        (SelectionPolicy::RoundRobin, _) => "not its turn".into(),
        (_, None) => "back since a short time, and takes only a share of its clients".into(),
    }
}

/// The summary for a steered name.
pub(super) fn of_choice(client: ClientPrefix, steered: &SteeredView) -> String {
    let kind = if client.from_ecs {
        "client"
    } else {
        "resolver"
    };
    let who = format!("{kind} {}", client.address);
    let location = match &steered.place {
        Some(l) if l.country.is_empty() => format!(" (at {:.1}, {:.1})", l.latitude, l.longitude),
        Some(l) => format!(" (in {})", l.country),
        None => " (place unknown)".to_owned(),
    };

    let Some(chosen) = &steered.chosen else {
        return format!(
            "{who}{location} is given no address: no cluster of the site has one for {}",
            steered.family
        );
    };

    let distance = steered
        .candidates
        .iter()
        .find(|c| c.cluster == chosen.cluster)
        .and_then(|c| c.distance_km);
    let distance = distance.map_or_else(String::new, |km| format!(", {km:.0} km away"));
    let reason = Reason::ALL
        .into_iter()
        .find(|r| r.label() == steered.reason)
        .unwrap_or(Reason::NoAddress);

    format!(
        "{who}{location} is given {}{distance}: {}",
        chosen.cluster,
        reason_text(reason)
    )
}

fn reason_text(reason: Reason) -> &'static str {
    match reason {
        Reason::Geo => "the nearest one",
        Reason::Rtt => "the quickest by measured round-trip time",
        Reason::Explore => "to measure it",
        Reason::Weighted => "drawn by weight",
        Reason::RoundRobin => "whose turn it is",
        Reason::Failover => {
            "the next best, as a better one is out (down or drained) or has just returned"
        }
        Reason::Spill => "the next best, as a better one is full and gives away its surplus",
        Reason::AllFull => {
            "all that are up are full, and share clients so that they are equally full"
        }
        Reason::Unplaced => "the first by weight, as nothing is known of the client's place",
        Reason::AllDown => {
            "the best one although all are down, as some address is better than none"
        }
        Reason::NoAddress => "",
    }
}

/// The summary for a name that is not steered.
pub(super) fn of_records(
    query: &ExplainQuery,
    answer: &Answer<'_>,
    dns: &DnsView,
    name: &str,
) -> String {
    let rtype = type_shown(query.qtype);
    let zone = dns.zone.as_deref().unwrap_or_default();
    let via = match name == query.host {
        true => String::new(),
        false => format!("{} is an alias of {name}. ", query.host),
    };
    let text = match &answer.outcome {
        Outcome::Records(..) | Outcome::AnyType(..) => {
            format!("{name} has {rtype} records in the zone {zone}: every client gets the same")
        }
        Outcome::NoData | Outcome::Steered(..) => {
            format!(
                "{name} is in the zone {zone} but has no {rtype} record: the answer is NOERROR without data"
            )
        }
        Outcome::NxDomain => {
            format!("there is no name {name} in the zone {zone}: the answer is NXDOMAIN")
        }
        Outcome::Referral(cut, servers) => {
            let hosts: Vec<String> = servers.data.iter().map(|host| presentation(host)).collect();
            format!(
                "{name} is delegated: the zone {} is served by {}, which alone can say",
                presentation(cut),
                hosts.join(", ")
            )
        }
        Outcome::Incomplete => format!(
            "{name} is what the client has to ask for next, elsewhere if no zone of this name server holds it"
        ),
        Outcome::NameTooLong => {
            "a DNAME makes a name of it that is too long: the answer is YXDOMAIN".to_owned()
        }
        Outcome::NotServed => {
            format!("no zone of this name server holds {name}: the answer is REFUSED")
        }
    };

    let is_absent = matches!(answer.outcome, Outcome::NxDomain | Outcome::NotServed);
    let catch_all = dns.catch_all.as_ref().filter(|_| is_absent);
    let catch_all = catch_all.map_or_else(String::new, |site| {
        format!("; edges would serve it as the site {site}, whose hosts are \"*\", but a record must lead clients to them")
    });
    format!("{via}{text}{catch_all}")
}
