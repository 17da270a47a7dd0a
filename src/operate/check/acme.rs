//! Whether the names of the certificates that control orders lead to the fleet: by questions to a
//! resolver, as an authority asks them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use nearcast_acme::lookup::{Judgement, OurZone, Resolver, challenge_name, dns_leads_here};
use nearcast_fleet::config::{AcmeChallenge, Fleet};
use nearcast_fleet::file::Mistake;
use nearcast_fleet::wanted_certificates::wanted_certificates;

use super::{START, Strings, warning};
use crate::text::plural;

/// How long all questions together may take.
const TIME_MAX: Duration = Duration::from_secs(5);
/// Questions under way at a time.
const AT_ONCE: usize = 32;
/// Most names that are asked for.
const NAMES_MAX: usize = 1000;

/// What was found of the names.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Names that lead elsewhere.
    pub(super) warnings: Vec<Mistake>,
    /// Why some names could not be asked for, one line.
    pub(super) unasked: Option<String>,
}

/// A name of a certificate, and how an authority would ask.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Asked {
    /// The name as the fleet file has it.
    name: String,
    is_dns: bool,
}

/// Asks where the names of all wanted certificates lead.
pub(super) async fn look(fleet: &Fleet, text: &str) -> Found {
    let Some(acme) = &fleet.acme else {
        return Found::default();
    };
    let asked = asked(fleet);
    let resolver = match Resolver::or_of_system(acme.resolver) {
        Ok(resolver) => resolver,
        Err(error) => {
            let reason = format!("the system's list of resolvers cannot be read: {error}");
            return Found {
                warnings: Vec::new(),
                unasked: (!asked.is_empty()).then(|| unasked(asked.len(), &reason)),
            };
        }
    };
    let (total, places) = (asked.len(), Strings::new(text));
    let (zones, ours) = (zones(fleet), addresses(fleet));
    let questions = asked.into_iter().take(NAMES_MAX).map(|asked| {
        let (resolver, zones, ours) = (&resolver, &zones[..], &ours[..]);
        async move {
            let judged = judge(fleet, resolver, &asked, zones, ours).await;
            (asked, judged)
        }
    });

    let mut answers = futures_util::stream::iter(questions).buffer_unordered(AT_ONCE);
    let until = tokio::time::Instant::now() + TIME_MAX;
    let (mut judged, mut missing) = (Vec::new(), None);
    let mut known = 0;
    while let Ok(Some((asked, judgement))) = tokio::time::timeout_at(until, answers.next()).await {
        match judgement {
            Judgement::Here => known += 1,
            Judgement::Partly(advice) | Judgement::Elsewhere(advice) => {
                known += 1;
                judged.push((asked, advice));
            }
            Judgement::Unknown(reason) => missing = Some(reason),
        }
    }

    // Answers come in any order.
    judged.sort_by(|(a, _), (b, _)| a.cmp(b));
    let warnings = judged.into_iter().map(|(asked, advice)| {
        let place = places.first(&asked.name).unwrap_or(START);
        let problem = format!("the certificate of {}: {}", asked.name, advice.reason);
        warning(place, problem, &advice.hint)
    });
    let missing = missing.unwrap_or_else(|| "there was no time".to_owned());
    Found {
        warnings: warnings.collect(),
        unasked: (known < total).then(|| unasked(total - known, &missing)),
    }
}

fn unasked(count: usize, reason: &str) -> String {
    format!(
        "could not ask where {} of certificates {}: {reason}",
        plural(count, "name"),
        if count == 1 { "leads" } else { "lead" }
    )
}

/// The names, each once: a wildcard has the challenge of its parent.
fn asked(fleet: &Fleet) -> BTreeSet<Asked> {
    let mut seen = BTreeSet::new();
    let mut asked = BTreeSet::new();
    for wanted in wanted_certificates(fleet) {
        let is_dns = wanted.challenge == AcmeChallenge::Dns;
        for name in wanted.hosts {
            if seen.insert((challenge_name(&name), is_dns)) {
                asked.insert(Asked { name, is_dns });
            }
        }
    }
    asked
}

async fn judge(
    fleet: &Fleet,
    resolver: &Resolver,
    asked: &Asked,
    zones: &[OurZone],
    ours: &[IpAddr],
) -> Judgement {
    if asked.is_dns {
        let found = resolver.challenge_answerer(&asked.name).await;
        return dns_leads_here(&asked.name, &found, zones);
    }
    // Clients reach proxies in front of the edges, whose addresses the fleet file does not have.
    if fleet
        .edges()
        .any(|(_, node)| !node.trusted_proxies.is_empty())
    {
        return Judgement::Here;
    }
    let alias = fleet.steered_name_of_host(&asked.name);
    resolver
        .http_judgement(&asked.name, ours, alias.as_deref())
        .await
}

/// The zones of the fleet's name servers, the CDN's own first.
fn zones(fleet: &Fleet) -> Vec<OurZone> {
    let own = (&fleet.zone, &fleet.zone_name_servers);
    let others = fleet
        .zones
        .iter()
        .map(|zone| (&zone.name, &zone.name_servers));
    let zone = |(name, servers): (&String, &Vec<usize>)| OurZone {
        name: name.clone(),
        name_servers: servers
            .iter()
            .filter_map(|server| fleet.name_servers.get(*server))
            .map(|server| server.host.clone())
            .collect(),
    };
    std::iter::once(own).chain(others).map(zone).collect()
}

/// The addresses at which clients reach edges.
fn addresses(fleet: &Fleet) -> Vec<IpAddr> {
    let all: BTreeSet<IpAddr> = fleet
        .edges()
        .flat_map(|(_, node)| node.addresses.iter().copied())
        .collect();
    all.into_iter().collect()
}
