//! Why a client is given its cluster, for a person: everything the decision depended on, and what
//! was made of it.
//!
//! Made from the same snapshot and by the same functions as answers, from the zones on: a name that
//! has records is explained by them, and one that does not exist is none, whatever sites there are.
//! Only exploration is left out, since it is chance.

use std::net::{IpAddr, Ipv4Addr};

use http::StatusCode;
use nearcast_fleet::config::SelectionPolicy;
use serde::Serialize;

use super::location::ClientPlace;
use super::plan::distance_km;
use super::select::{self, Standing, UNMEASURED};
use super::{ClientPrefix, Family, Reason, Snapshot, State, Steering, masked};
use crate::answer::{Answer, Last, Link, NameRef};
use crate::handler::{self, Asker};
use crate::rdata;
use crate::wire::{self, ClientSubnet, QName, rcode, rtype};
use crate::zone::RrSet;

/// Longest query string taken, in bytes.
const QUERY_MAX: usize = 1_024;

/// The answer of `GET /explain`.
#[derive(Debug, Serialize)]
pub(super) struct Explanation {
    host: String,
    r#type: String,
    client: Client,
    dns: Dns,
    /// For a name whose addresses are steered.
    #[serde(flatten)]
    steered: Option<Steered>,
    revision: u64,
    /// The whole in a sentence.
    summary: String,
}

/// What a query for the name is answered.
#[derive(Debug, Serialize)]
struct Dns {
    /// The response code's name.
    status: &'static str,
    /// `steered`, `records`, `no-data`, `no-name`, `delegated`, `elsewhere` or `too-long`.
    kind: &'static str,
    /// Apex of the zone that the last name is in.
    zone: Option<String>,
    /// Aliases on the way, then records.
    records: Vec<RecordShown>,
    /// The site that edges serve for a host that no site names, when it is not by DNS that they are
    /// asked for it.
    catch_all: Option<String>,
}

#[derive(Debug, Serialize)]
struct RecordShown {
    owner: String,
    ttl: u32,
    r#type: String,
    data: String,
}

/// What is told of a choice.
#[derive(Debug, Serialize)]
struct Steered {
    site: String,
    steered_name: String,
    family: &'static str,
    policy: &'static str,
    place: Option<PlaceShown>,
    geo_source: String,
    candidates: Vec<Candidate>,
    chosen: Option<Chosen>,
    reason: &'static str,
    scope_prefix: u8,
    /// The network that the answer is good for.
    scope: String,
    ttl: u32,
}

#[derive(Debug, Serialize)]
struct Client {
    address: IpAddr,
    source_prefix: u8,
    /// Whose address it is: `client` or `resolver`.
    from: &'static str,
    resolver: Option<IpAddr>,
}

#[derive(Debug, Serialize)]
struct PlaceShown {
    country: String,
    latitude: f64,
    longitude: f64,
    source: &'static str,
    /// The network around the client that is at this place.
    prefix: String,
}

#[derive(Debug, Serialize)]
struct Candidate {
    cluster: String,
    label: String,
    distance_km: Option<f64>,
    rtt_ms: Option<f64>,
    rtt: Option<Measured>,
    /// Share of what its nodes that are up can carry, 0 to 1 and more; none without capacities or
    /// reports.
    load: Option<f64>,
    /// `up`, `degraded` (some nodes down), `drained` (all of them) or `down`.
    health: &'static str,
    nodes: Vec<NodeShown>,
    weight: u32,
    /// Position in the policy's ranking, from 1; none under weighted and round-robin steering.
    rank: Option<usize>,
    /// Why it was not given; none for the one that was.
    rejected: Option<String>,
}

#[derive(Debug, Serialize)]
struct Measured {
    /// `prefix`, or `aggregate` for the mean over the /20 or /40.
    from: &'static str,
    min_ms: Option<f64>,
    connections: Option<u32>,
    age_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct NodeShown {
    node: String,
    addresses: Vec<IpAddr>,
    up: bool,
    /// By an operator: not in the answers, whatever its health.
    drained: bool,
    full: bool,
    since_unix_ms: u64,
    reason: String,
    check_us: u64,
    egress_bits: Option<u64>,
    capacity_bits: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Chosen {
    cluster: String,
    label: String,
    addresses: Vec<IpAddr>,
    reason: &'static str,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    host: String,
    qtype: u16,
    /// The client's address as its resolver sends it, and how many bits of it.
    client: Option<ClientPrefix>,
    resolver: Option<IpAddr>,
}

fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let (high, low) = (
                    char::from(bytes.next()?).to_digit(16)?,
                    char::from(bytes.next()?).to_digit(16)?,
                );
                (high * 16 + low) as u8
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

fn address(name: &str, text: &str) -> Result<IpAddr, String> {
    text.parse::<IpAddr>()
        .map_err(|_| format!("{name}={text:?} is not an IP address"))
}

/// An address with or without a prefix length. An IPv4 address in the form of IPv6 is the IPv4
/// address, as it is in a client subnet.
fn client(text: &str) -> Result<ClientPrefix, String> {
    let (ip, bits) = text
        .split_once('/')
        .map_or((text, None), |(ip, bits)| (ip, Some(bits)));
    let address = address("client", ip)?;
    let whole = ClientPrefix::host(address).source_prefix;
    let source_prefix = match bits.map(str::parse::<u8>) {
        None => whole,
        Some(Ok(bits)) if bits <= whole => bits,
        Some(_) => {
            return Err(format!(
                "client={text:?} has no prefix length up to {whole}"
            ));
        }
    };
    let address = match address {
        // The bits that are not sent are zeros before anything is made of the address.
        IpAddr::V6(ip) => IpAddr::V6(
            (u128::from(ip)
                & u128::MAX
                    .checked_shl(128 - u32::from(source_prefix))
                    .unwrap_or(0))
            .into(),
        ),
        v4 => v4,
    };
    let given = ClientPrefix {
        address,
        source_prefix,
        from_ecs: true,
    };
    let address = masked(&given);
    let moved = if given.address.is_ipv6() && address.is_ipv4() {
        super::MAPPED_BITS
    } else {
        0
    };
    Ok(ClientPrefix {
        address,
        source_prefix: source_prefix.saturating_sub(moved),
        from_ecs: true,
    })
}

fn asked(query: &str) -> Result<Asked, String> {
    if query.len() > QUERY_MAX {
        return Err(format!("the query is longer than {QUERY_MAX} bytes"));
    }
    let (mut host, mut prefix, mut resolver, mut qtype) = (None, None, None, rtype::A);
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value =
            decoded(value).ok_or_else(|| format!("{pair:?} is not percent-encoded text"))?;
        match name {
            "host" => {
                host = Some(
                    value
                        .strip_suffix('.')
                        .unwrap_or(&value)
                        .to_ascii_lowercase(),
                )
            }
            "client" if !value.is_empty() => prefix = Some(client(&value)?),
            "resolver" if !value.is_empty() => {
                resolver = Some(address("resolver", &value)?.to_canonical())
            }
            "type" => {
                let known = rdata::type_number(&value)
                    .or_else(|| value.eq_ignore_ascii_case("ANY").then_some(rtype::ANY));
                qtype = known.ok_or_else(|| format!("type={value:?} is no record type; write A, AAAA, MX and so on, or TYPE<number>"))?;
            }
            "client" | "resolver" => {}
            _ => {
                return Err(format!(
                    "{name:?} is unknown; there are host, client, resolver and type"
                ));
            }
        }
    }
    let host = host
        .filter(|h| !h.is_empty())
        .ok_or("host=NAME is missing")?;
    match (prefix, resolver) {
        (None, None) => return Err("client=ADDRESS or resolver=ADDRESS is missing".into()),
        (
            Some(ClientPrefix {
                source_prefix: 0, ..
            }),
            None,
        ) => {
            return Err("a client prefix of 0 bits says nothing, and DNS goes by the resolver: add resolver=ADDRESS".into());
        }
        _ => {}
    }
    Ok(Asked {
        host,
        qtype,
        client: prefix,
        resolver,
    })
}

impl Asked {
    /// As a name server sees who asks.
    fn asker(&self) -> Asker {
        let subnet = self.client.map(|c| ClientSubnet {
            family: if c.address.is_ipv4() { 1 } else { 2 },
            source_prefix: c.source_prefix,
            address: c.address,
        });
        // Without a resolver there is a subnet, by which it then goes alone.
        Asker {
            subnet,
            resolver: self.resolver.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        }
    }

    /// Whose address counts, as `client 192.0.2.1` or `resolver 192.0.2.1`.
    fn who(&self) -> ClientPrefix {
        match (self.client, self.resolver) {
            (Some(client), None) => client,
            (Some(client), Some(_)) if client.source_prefix > 0 => client,
            (_, resolver) => ClientPrefix::host(resolver.unwrap_or(Ipv4Addr::UNSPECIFIED.into())),
        }
    }
}

fn network(address: IpAddr, prefix: u8) -> String {
    let masked = masked(&ClientPrefix {
        address,
        source_prefix: prefix,
        from_ecs: true,
    });
    format!("{masked}/{prefix}")
}

fn policy_label(policy: SelectionPolicy) -> &'static str {
    match policy {
        SelectionPolicy::Geo => "geo",
        SelectionPolicy::Rtt => "rtt",
        SelectionPolicy::Weighted => "weighted",
        SelectionPolicy::RoundRobin => "round-robin",
    }
}

fn milliseconds(us: f64) -> f64 {
    (us / 10.0).round() / 100.0
}

impl Steering {
    /// Explains what a query would be answered.
    pub(super) fn explain(
        &self,
        query: &str,
        now_ms: u64,
    ) -> Result<Explanation, (StatusCode, String)> {
        let asked = asked(query).map_err(|message| (StatusCode::BAD_REQUEST, message))?;
        self.explain_name(&asked, now_ms)
    }

    fn explain_name(
        &self,
        asked: &Asked,
        now_ms: u64,
    ) -> Result<Explanation, (StatusCode, String)> {
        let qname = rdata::name(&asked.host, &[0])
            .ok()
            .and_then(|wire| QName::from_wire(&wire));
        let qname = qname.ok_or_else(|| {
            (
                StatusCode::BAD_REQUEST,
                format!("{:?} is no name that DNS could have", asked.host),
            )
        })?;
        let state = self.state();
        // Loaded under the lock, so that both tell of the same moment.
        let snapshot = self.snapshot.load_full();
        let fleet = &snapshot.fleet;
        let mut steered = None;
        let select = |site: usize, client: &ClientPrefix, family: Family| {
            let (choice, told) =
                self.explain_choice(&state, &snapshot, site, client, family, now_ms);
            steered = told;
            choice
        };
        let (answer, choice) = handler::look_up(
            snapshot.zones(),
            &qname,
            asked.qtype,
            asked.asker(),
            false,
            select,
        );
        let client = asked.who();
        let mut dns = Dns {
            status: match handler::rcode_of(&answer) {
                rcode::NXDOMAIN => "NXDOMAIN",
                rcode::YXDOMAIN => "YXDOMAIN",
                rcode::REFUSED => "REFUSED",
                _ => "NOERROR",
            },
            kind: kind(
                &answer,
                choice.as_ref().is_some_and(|c| c.addresses.is_empty()),
            ),
            zone: answer.zone.map(|zone| wire::presentation(&zone.apex)),
            records: shown_links(&answer, &asked.host),
            catch_all: None,
        };
        let owner = shown_owner(&answer, &asked.host);
        match (&answer.last, &choice) {
            (Last::Steered(..), Some(choice)) => {
                dns.records
                    .extend(choice.addresses.iter().map(|address| RecordShown {
                        owner: owner.clone(),
                        ttl: choice.ttl,
                        r#type: if address.is_ipv4() {
                            "A".into()
                        } else {
                            "AAAA".into()
                        },
                        data: address.to_string(),
                    }))
            }
            (Last::Records(_, set), _) => add_set(&mut dns.records, &owner, set),
            (Last::Any(_, node), _) => match node.sets.first().filter(|_| node.site.is_none()) {
                Some(set) => add_set(&mut dns.records, &owner, set),
                None => {
                    let data = "\"RFC8482\" \"\"".to_owned();
                    dns.records.push(RecordShown {
                        owner: owner.clone(),
                        ttl: handler::ANY_TTL,
                        r#type: "HINFO".into(),
                        data,
                    });
                }
            },
            _ => {}
        }
        if steered.is_none() {
            let is_named = |site: &&nearcast_fleet::config::Site| {
                site.hosts.contains(&asked.host) || fleet.steered_name(site) == asked.host
            };
            let any = fleet
                .sites
                .iter()
                .find(|site| site.hosts.iter().any(|host| host == "*"));
            dns.catch_all = any
                .filter(|_| !fleet.sites.iter().any(|site| is_named(&site)))
                .map(|site| site.name.clone());
        }
        let summary = match &steered {
            Some(steered) => summary(asked, steered),
            None => plain_summary(asked, &answer, &dns, &owner),
        };
        if answer.last == Last::Outside {
            let site = fleet
                .sites
                .iter()
                .find(|site| site.hosts.contains(&asked.host));
            let there = site
                .map(|site| (&site.name, fleet.steered_name(site)))
                .filter(|(_, there)| *there != asked.host);
            let Some((site, there)) = there else {
                return Err((StatusCode::NOT_FOUND, summary));
            };
            drop(state);
            let told = self.explain_name(
                &Asked {
                    host: there.clone(),
                    ..asked.clone()
                },
                now_ms,
            )?;
            let summary = format!(
                "{summary}. It is a host of the site {site}: where a CNAME leads its clients to {there}, {}",
                told.summary
            );
            return Ok(Explanation {
                host: asked.host.clone(),
                summary,
                ..told
            });
        }
        Ok(Explanation {
            host: asked.host.clone(),
            r#type: rdata::type_shown(asked.qtype),
            client: Client {
                address: masked(&client),
                source_prefix: client.source_prefix,
                from: if client.from_ecs {
                    "client"
                } else {
                    "resolver"
                },
                resolver: asked.resolver,
            },
            dns,
            steered,
            revision: self.revision(),
            summary,
        })
    }

    /// What `select` would choose, chance aside, and why.
    fn explain_choice(
        &self,
        state: &State,
        snapshot: &Snapshot,
        number: usize,
        client: &ClientPrefix,
        family: Family,
        now_ms: u64,
    ) -> (super::Choice, Option<Steered>) {
        let fleet = &snapshot.fleet;
        let none = super::Choice {
            cluster: 0,
            addresses: super::Addresses::EMPTY,
            ttl: 0,
            scope_prefix: 0,
            reason: Reason::NoAddress,
        };
        let address = masked(client);
        let random = super::health::Jitter::new(now_ms).next();
        let (Some(found), Some(mut considered)) = (
            fleet.sites.get(number),
            snapshot.consider(number, address, family, random),
        ) else {
            return (none, None);
        };
        considered.question.explore_below = 0;
        considered.question.has_subnet = client.from_ecs;
        // Ordered as asked for, so that explanations of one state do not differ by rotation.
        considered.question.random &= !0xffff;
        let question = considered.question;
        let decision = select::decide(&question);
        let choice = snapshot.choice(number, &considered, decision);
        let (place_number, place_scope) = snapshot.plan.atlas.find(address);
        let client_place = snapshot.plan.atlas.place(place_number);
        let ranking: Vec<u16> = match found.policy {
            SelectionPolicy::Geo => question.order.to_vec(),
            SelectionPolicy::Rtt if question.rtt.is_none() => question.order.to_vec(),
            SelectionPolicy::Rtt => select::rank_by_time(&question)
                .items()
                .iter()
                .map(|r| r.cluster)
                .collect(),
            SelectionPolicy::Weighted | SelectionPolicy::RoundRobin => Vec::new(),
        };
        let mut shown = question.order.to_vec();
        shown.sort_by_key(|c| ranking.iter().position(|r| r == c).unwrap_or(usize::MAX));
        let winner = decision.cluster;
        let candidates: Vec<Candidate> = shown
            .iter()
            .map(|cluster| {
                let rank = ranking.iter().position(|r| r == cluster);
                let mut candidate = self.candidate(state, client_place, *cluster, address, now_ms);
                candidate.rank = rank.map(|r| r + 1);
                candidate.rejected = (winner != Some(*cluster))
                    .then(|| rejection(&question, *cluster, rank, winner, &ranking, fleet));
                candidate
            })
            .collect();
        let place = client_place.map(|p| PlaceShown {
            country: p.country_str().to_owned(),
            latitude: f64::from(p.latitude),
            longitude: f64::from(p.longitude),
            source: p.source.label(),
            prefix: network(address, place_scope),
        });
        let chosen = winner.map(|c| Chosen {
            cluster: fleet.clusters[usize::from(c)].name.clone(),
            label: fleet.clusters[usize::from(c)].label.clone(),
            addresses: choice.addresses.to_vec(),
            reason: decision.reason.label(),
        });
        let told = Steered {
            site: found.name.clone(),
            steered_name: fleet.steered_name(found),
            family: if family == Family::V4 { "A" } else { "AAAA" },
            policy: policy_label(found.policy),
            place,
            geo_source: snapshot.plan.atlas.description.clone(),
            candidates,
            chosen,
            reason: decision.reason.label(),
            scope_prefix: choice.scope_prefix,
            scope: network(address, choice.scope_prefix),
            ttl: choice.ttl,
        };
        (choice, Some(told))
    }

    fn candidate(
        &self,
        state: &State,
        place: Option<&ClientPlace>,
        cluster: u16,
        address: IpAddr,
        now_ms: u64,
    ) -> Candidate {
        let config = &state.fleet.clusters[usize::from(cluster)];
        let measured_us = state
            .rtt_map
            .find(address)
            .and_then(|row| row.get(usize::from(cluster)).copied())
            .filter(|us| *us != UNMEASURED);
        let own = state.rtt.cell(address, usize::from(cluster)).filter(|c| {
            now_ms.saturating_sub(c.at_ms) <= state.fleet.steering.rtt_max_age.as_millis() as u64
        });
        let nodes: Vec<NodeShown> = config
            .nodes
            .iter()
            .map(|node| {
                let vitals = state.vitals.get(&node.name);
                let is_drained = state.drains.is_drained(&config.name, &node.name);
                let load = state.loads.get(&node.name).filter(|l| l.at_ms > 0);
                NodeShown {
                    node: node.name.clone(),
                    addresses: node.addresses.clone(),
                    up: vitals.is_none_or(|v| v.up) && !is_drained,
                    drained: is_drained,
                    full: load.is_some_and(|l| l.full),
                    since_unix_ms: vitals.map_or(0, |v| v.since_ms),
                    reason: if is_drained {
                        super::DRAINED.to_owned()
                    } else {
                        vitals.map_or_else(String::new, |v| v.reason.clone())
                    },
                    check_us: vitals.map_or(0, |v| v.check_us),
                    egress_bits: load.map(|l| l.egress_bits),
                    capacity_bits: node.capacity_bits,
                }
            })
            .collect();
        let carrying = || {
            nodes
                .iter()
                .filter(|n| n.up)
                .filter_map(|n| Some((n.egress_bits?, n.capacity_bits.filter(|c| *c > 0)?)))
        };
        let (egress, capacity) = carrying().fold((0.0, 0.0), |(e, c), (egress, capacity)| {
            (e + egress as f64, c + capacity as f64)
        });
        let up = nodes.iter().filter(|n| n.up).count();
        Candidate {
            cluster: config.name.clone(),
            label: config.label.clone(),
            distance_km: place.map(|p| {
                distance_km(
                    p.position(),
                    (config.place.latitude, config.place.longitude),
                )
                .round()
            }),
            rtt_ms: measured_us.map(|us| milliseconds(f64::from(us))),
            rtt: measured_us.map(|_| Measured {
                from: if own.is_some() { "prefix" } else { "aggregate" },
                min_ms: own.map(|c| milliseconds(f64::from(c.min_us))),
                connections: own.map(|c| c.samples),
                age_seconds: own.map(|c| now_ms.saturating_sub(c.at_ms) as f64 / 1_000.0),
            }),
            load: (capacity > 0.0).then(|| (egress / capacity * 1_000.0).round() / 1_000.0),
            health: if up == nodes.len() {
                "up"
            } else if nodes.iter().all(|n| n.drained) {
                "drained"
            } else if up == 0 {
                "down"
            } else {
                "degraded"
            },
            nodes,
            weight: config.weight,
            rank: None,
            rejected: None,
        }
    }
}

/// Why a cluster was not given.
fn rejection(
    question: &select::Question<'_>,
    cluster: u16,
    rank: Option<usize>,
    winner: Option<u16>,
    ranking: &[u16],
    fleet: &nearcast_fleet::config::Fleet,
) -> String {
    let standing = question.clusters[usize::from(cluster)].standing(question.family);
    let family = if question.family == Family::V4 {
        "IPv4"
    } else {
        "IPv6"
    };
    match standing {
        Standing::Addressless => return format!("no {family} address"),
        Standing::Down => return "down".into(),
        Standing::Full => return "full".into(),
        Standing::Open => {}
    }
    let ahead = winner
        .filter(|w| rank > ranking.iter().position(|r| r == w))
        .map(|w| fleet.clusters[usize::from(w)].name.as_str());
    match (question.policy, ahead) {
        (SelectionPolicy::Geo, Some(ahead)) if question.placed => format!("farther than {ahead}"),
        (SelectionPolicy::Geo, Some(ahead)) => {
            format!("place unknown, and {ahead} comes first by weight")
        }
        (SelectionPolicy::Rtt, Some(ahead)) if question.rtt.is_some() => {
            let measured = |c: u16| {
                question
                    .rtt
                    .and_then(|row| row.get(usize::from(c)))
                    .is_some_and(|us| *us != UNMEASURED)
            };
            match (measured(cluster), winner.is_some_and(measured)) {
                (true, true) => format!("slower than {ahead}, or farther at about the same time"),
                (true, false) => {
                    format!("measured slower than {ahead} is likely to be by its distance")
                }
                (false, _) => format!("not measured, and likely to be slower than {ahead}"),
            }
        }
        (SelectionPolicy::Rtt, Some(ahead)) if question.placed => {
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

fn summary(asked: &Asked, steered: &Steered) -> String {
    let client = asked.who();
    let who = format!(
        "{} {}",
        if client.from_ecs {
            "client"
        } else {
            "resolver"
        },
        client.address
    );
    let Steered {
        place,
        chosen,
        candidates,
        ..
    } = steered;
    let location = match place {
        Some(p) if p.country.is_empty() => format!(" (at {:.1}, {:.1})", p.latitude, p.longitude),
        Some(p) => format!(" (in {})", p.country),
        None => " (place unknown)".to_owned(),
    };
    let Some(chosen) = chosen else {
        return format!(
            "{who}{location} is given no address: no cluster of the site has one for {}",
            steered.family
        );
    };
    let reason = Reason::ALL
        .into_iter()
        .find(|r| r.label() == steered.reason)
        .unwrap_or(Reason::NoAddress);
    let why = match reason {
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
    };
    let distance = candidates
        .iter()
        .find(|c| c.cluster == chosen.cluster)
        .and_then(|c| c.distance_km);
    let distance = distance.map_or_else(String::new, |km| format!(", {km:.0} km away"));
    format!(
        "{who}{location} is given {}{distance}: {why}",
        chosen.cluster
    )
}

/// The answer's kind in a word.
fn kind(answer: &Answer<'_>, is_empty: bool) -> &'static str {
    match answer.last {
        Last::Steered(..) if is_empty => "no-data",
        Last::Steered(..) => "steered",
        Last::Records(..) | Last::Any(..) => "records",
        Last::NoData => "no-data",
        Last::Missing => "no-name",
        Last::Referral(..) => "delegated",
        Last::Open | Last::Outside => "elsewhere",
        Last::TooLong => "too-long",
    }
}

fn name_shown(name: &NameRef<'_>, host: &str) -> String {
    match name {
        NameRef::Question => host.to_owned(),
        NameRef::Stored(name) => wire::presentation(name),
        NameRef::Made(name) => wire::presentation(name),
    }
}

/// The name that the answer ends at.
fn shown_owner(answer: &Answer<'_>, host: &str) -> String {
    let last = answer.links.iter().flatten().last();
    match (&answer.last, last) {
        (Last::Records(name, _) | Last::Any(name, _) | Last::Steered(name, _), _) => {
            name_shown(name, host)
        }
        (_, Some(Link::Alias { set, .. })) => set
            .data
            .first()
            .map_or_else(String::new, |target| wire::presentation(target)),
        (_, Some(Link::Redirect { target, .. })) => wire::presentation(target),
        (_, None) => host.to_owned(),
    }
}

fn add_set(records: &mut Vec<RecordShown>, owner: &str, set: &RrSet) {
    records.extend(set.data.iter().map(|data| RecordShown {
        owner: owner.to_owned(),
        ttl: set.ttl,
        r#type: rdata::type_shown(set.rtype),
        data: rdata::shown(set.rtype, data),
    }));
}

/// The aliases that were followed, as records.
fn shown_links(answer: &Answer<'_>, host: &str) -> Vec<RecordShown> {
    let mut records = Vec::new();
    for link in answer.links.iter().flatten() {
        match link {
            Link::Alias { owner, set } => add_set(&mut records, &name_shown(owner, host), set),
            Link::Redirect {
                dname_owner,
                set,
                owner,
                target,
            } => {
                add_set(&mut records, &wire::presentation(dname_owner), set);
                if answer.last != Last::TooLong {
                    let (owner, data) = (name_shown(owner, host), rdata::absolute_shown(target));
                    records.push(RecordShown {
                        owner,
                        ttl: set.ttl,
                        r#type: "CNAME".into(),
                        data,
                    });
                }
            }
        }
    }
    records
}

/// What there is to say of a name that is not steered.
fn plain_summary(asked: &Asked, answer: &Answer<'_>, dns: &Dns, name: &str) -> String {
    let rtype = rdata::type_shown(asked.qtype);
    let zone = dns.zone.as_deref().unwrap_or_default();
    let via = if name == asked.host {
        String::new()
    } else {
        format!("{} is an alias of {name}. ", asked.host)
    };
    let said = match &answer.last {
        Last::Records(..) | Last::Any(..) => {
            format!("{name} has {rtype} records in the zone {zone}: every client gets the same")
        }
        Last::NoData | Last::Steered(..) => {
            format!(
                "{name} is in the zone {zone} but has no {rtype} record: the answer is NOERROR without data"
            )
        }
        Last::Missing => {
            format!("there is no name {name} in the zone {zone}: the answer is NXDOMAIN")
        }
        Last::Referral(cut, servers) => {
            let hosts: Vec<String> = servers
                .data
                .iter()
                .map(|host| wire::presentation(host))
                .collect();
            format!(
                "{name} is delegated: the zone {} is served by {}, which alone can say",
                wire::presentation(cut),
                hosts.join(", ")
            )
        }
        Last::Open => format!(
            "{name} is what the client has to ask for next, elsewhere if no zone of this name server holds it"
        ),
        Last::TooLong => {
            "a DNAME makes a name of it that is too long: the answer is YXDOMAIN".to_owned()
        }
        Last::Outside => format!("no zone of this name server holds {name}: the answer is REFUSED"),
    };
    let catch_all = dns
        .catch_all
        .as_ref()
        .filter(|_| matches!(answer.last, Last::Missing | Last::Outside));
    let catch_all = catch_all.map_or_else(String::new, |site| {
        format!("; edges would serve it as the site {site}, whose hosts are \"*\", but a record must lead clients to them")
    });
    format!("{via}{said}{catch_all}")
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy as _;

    use super::*;

    #[test]
    fn questions_are_read_or_refused_with_the_mend() {
        let prefix = |address: &str, source_prefix| ClientPrefix {
            address: address.parse().unwrap(),
            source_prefix,
            from_ecs: true,
        };
        let good = [
            (
                "host=WWW.demo.test.&client=203.0.113.7",
                Some(prefix("203.0.113.7", 32)),
                None,
                rtype::A,
            ),
            (
                "host=www.demo.test&client=203.0.113.77%2f24&type=aaaa",
                Some(prefix("203.0.113.0", 24)),
                None,
                rtype::AAAA,
            ),
            (
                "host=www.demo.test&resolver=2001:db8::1",
                None,
                Some("2001:db8::1"),
                rtype::A,
            ),
            (
                "host=www.demo.test&client=&resolver=192.0.2.1&type=TYPE65280",
                None,
                Some("192.0.2.1"),
                65_280,
            ),
            (
                "client=::ffff:192.0.2.1&host=www.demo.test&type=mx",
                Some(prefix("192.0.2.1", 32)),
                None,
                rtype::MX,
            ),
            (
                "client=::ffff:192.0.2.1/120&host=www.demo.test&type=any",
                Some(prefix("192.0.2.0", 24)),
                None,
                rtype::ANY,
            ),
            (
                "client=::/0&host=www.demo.test&resolver=::ffff:192.0.2.1",
                Some(prefix("::", 0)),
                Some("192.0.2.1"),
                rtype::A,
            ),
        ];
        for (query, client, resolver, qtype) in good {
            let resolver = resolver.map(|r: &str| r.parse().unwrap());
            assert_eq!(
                asked(query),
                Ok(Asked {
                    host: "www.demo.test".into(),
                    qtype,
                    client,
                    resolver
                }),
                "{query}"
            );
        }
        let long = format!("host={}", "a".repeat(QUERY_MAX));
        let bad = [
            ("client=192.0.2.1", "host=NAME is missing"),
            ("host=a", "client=ADDRESS or resolver=ADDRESS"),
            ("host=a&client=x", "not an IP address"),
            ("host=a&client=192.0.2.1/33", "no prefix length up to 32"),
            ("host=a&client=192.0.2.1/-1", "no prefix length"),
            ("host=a&client=%zz", "percent-encoded"),
            ("host=a&client=192.0.2.1%2", "percent-encoded"),
            ("host=a&client=192.0.2.1&type=NOSUCH", "no record type"),
            ("host=a&client=0.0.0.0/0", "add resolver="),
            ("host=a&clinet=192.0.2.1", "there are host, client"),
            (long.as_str(), "longer than"),
        ];
        for (query, words) in bad {
            let message = asked(query).unwrap_err();
            assert!(message.contains(words), "{query}: {message}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_query_string_breaks_the_reader(pieces in proptest::collection::vec(
            proptest::prop_oneof![
                proptest::sample::select(vec!["host=", "client=", "resolver=", "type=", "&", "/", "%2f", "%", "::", "ffff:", "192.0.2.1", "33", "A"])
                    .prop_map(str::to_owned),
                "\\PC{0,4}",
            ], 0..12)) {
            if let Ok(asked) = asked(&pieces.concat()) {
                let who = asked.who();
                let whole = if who.address.is_ipv4() { 32 } else { 128 };
                proptest::prop_assert!(who.source_prefix <= whole && !asked.host.is_empty());
            }
        }
    }
}
