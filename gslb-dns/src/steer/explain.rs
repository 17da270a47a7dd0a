//! Why a client is given its cluster, for a person: everything the decision depended on, and what was made of it.
//!
//! Made from the same snapshot and by the same functions as answers; only exploration is left out, since it is chance.

use std::net::IpAddr;

use http::StatusCode;
use nearcast_fleet::config::SelectionPolicy;
use serde::Serialize;

use super::location::ClientPlace;
use super::plan::distance_km;
use super::select::{self, Standing, UNMEASURED};
use super::{ClientPrefix, Family, Reason, State, Steering, masked};

/// Longest query string taken, in bytes.
const QUERY_MAX: usize = 1_024;

/// The answer of `GET /explain`.
#[derive(Debug, Serialize)]
pub(super) struct Explanation {
    host: String,
    site: String,
    steered_name: String,
    family: &'static str,
    policy: &'static str,
    client: Client,
    place: Option<PlaceShown>,
    geo_source: String,
    candidates: Vec<Candidate>,
    chosen: Option<Chosen>,
    reason: &'static str,
    scope_prefix: u8,
    /// The network that the answer is good for.
    scope: String,
    ttl: u32,
    revision: u64,
    /// The whole in a sentence.
    summary: String,
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
    /// Share of what its nodes that are up can carry, 0 to 1 and more; none without capacities or reports.
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
#[derive(Debug, PartialEq)]
struct Asked {
    host: String,
    prefix: ClientPrefix,
    resolver: Option<IpAddr>,
    family: Family,
}

fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let (high, low) = (char::from(bytes.next()?).to_digit(16)?, char::from(bytes.next()?).to_digit(16)?);
                (high * 16 + low) as u8
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

fn address(name: &str, text: &str) -> Result<IpAddr, String> {
    text.parse::<IpAddr>().map(|a| a.to_canonical()).map_err(|_| format!("{name}={text:?} is not an IP address"))
}

fn asked(query: &str) -> Result<Asked, String> {
    if query.len() > QUERY_MAX {
        return Err(format!("the query is longer than {QUERY_MAX} bytes"));
    }
    let (mut host, mut client, mut resolver, mut family) = (None, None, None, Family::V4);
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(value).ok_or_else(|| format!("{pair:?} is not percent-encoded text"))?;
        match name {
            "host" => host = Some(value.trim_end_matches('.').to_ascii_lowercase()),
            "client" if !value.is_empty() => client = Some(value),
            "resolver" if !value.is_empty() => resolver = Some(address("resolver", &value)?),
            "type" => {
                family = match value.to_ascii_uppercase().as_str() {
                    "A" => Family::V4,
                    "AAAA" => Family::V6,
                    _ => return Err(format!("type={value:?} is neither A nor AAAA")),
                }
            }
            "client" | "resolver" => {}
            _ => return Err(format!("{name:?} is unknown; there are host, client, resolver and type")),
        }
    }
    let host = host.filter(|h| !h.is_empty()).ok_or("host=NAME is missing")?;
    let prefix = match (&client, resolver) {
        (Some(text), _) => {
            let (ip, bits) = text.split_once('/').map_or((text.as_str(), None), |(ip, bits)| (ip, Some(bits)));
            let address = address("client", ip)?;
            let whole = ClientPrefix::host(address).source_prefix;
            let source_prefix = match bits.map(str::parse::<u8>) {
                None => whole,
                Some(Ok(bits)) if bits <= whole => bits,
                Some(_) => return Err(format!("client={text:?} has no prefix length up to {whole}")),
            };
            ClientPrefix { address, source_prefix, from_ecs: true }
        }
        (None, Some(resolver)) => ClientPrefix::host(resolver),
        (None, None) => return Err("client=ADDRESS or resolver=ADDRESS is missing".into()),
    };
    Ok(Asked { host, prefix, resolver, family })
}

fn network(address: IpAddr, prefix: u8) -> String {
    let masked = masked(&ClientPrefix { address, source_prefix: prefix, from_ecs: true });
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
    /// Explains what `select` would answer.
    pub(super) fn explain(&self, query: &str, now_ms: u64) -> Result<Explanation, (StatusCode, String)> {
        let asked = asked(query).map_err(|message| (StatusCode::BAD_REQUEST, message))?;
        let state = self.state();
        // Loaded under the lock, so that both tell of the same moment.
        let snapshot = self.snapshot.load_full();
        let fleet = &snapshot.fleet;
        let not_found = || (StatusCode::NOT_FOUND, format!("no site serves {:?}", asked.host));
        let found = fleet.site_of_host(&asked.host).ok_or_else(not_found)?;
        let number = fleet.sites.iter().position(|s| std::ptr::eq(s, found)).ok_or_else(not_found)?;
        let address = masked(&asked.prefix);
        let random = super::health::Jitter::new(now_ms).next();
        let mut considered = snapshot.consider(number, address, asked.family, random).ok_or_else(not_found)?;
        considered.question.explore_below = 0;
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
            SelectionPolicy::Rtt => select::rank_by_time(&question).items().iter().map(|r| r.cluster).collect(),
            SelectionPolicy::Weighted | SelectionPolicy::RoundRobin => Vec::new(),
        };
        let mut shown = question.order.to_vec();
        shown.sort_by_key(|c| ranking.iter().position(|r| r == c).unwrap_or(usize::MAX));
        let winner = decision.cluster;
        let candidates: Vec<Candidate> = shown
            .iter()
            .map(|cluster| {
                let rank = ranking.iter().position(|r| r == cluster);
                let mut candidate = self.candidate(&state, client_place, *cluster, address, now_ms);
                candidate.rank = rank.map(|r| r + 1);
                candidate.rejected = (winner != Some(*cluster)).then(|| rejection(&question, *cluster, rank, winner, &ranking, fleet));
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
        let summary = summary(&asked, place.as_ref(), chosen.as_ref(), decision.reason, &candidates);
        Ok(Explanation {
            host: asked.host,
            site: found.name.clone(),
            steered_name: fleet.steered_name(found),
            family: if asked.family == Family::V4 { "A" } else { "AAAA" },
            policy: policy_label(found.policy),
            client: Client {
                address,
                source_prefix: asked.prefix.source_prefix,
                from: if asked.prefix.from_ecs { "client" } else { "resolver" },
                resolver: asked.resolver,
            },
            place,
            geo_source: snapshot.plan.atlas.description.clone(),
            candidates,
            chosen,
            reason: decision.reason.label(),
            scope_prefix: choice.scope_prefix,
            scope: network(address, choice.scope_prefix),
            ttl: choice.ttl,
            revision: self.revision(),
            summary,
        })
    }

    fn candidate(&self, state: &State, place: Option<&ClientPlace>, cluster: u16, address: IpAddr, now_ms: u64) -> Candidate {
        let config = &state.fleet.clusters[usize::from(cluster)];
        let measured_us = state.rtt_map.find(address).and_then(|row| row.get(usize::from(cluster)).copied()).filter(|us| *us != UNMEASURED);
        let own = state
            .rtt
            .cell(address, usize::from(cluster))
            .filter(|c| now_ms.saturating_sub(c.at_ms) <= state.fleet.steering.rtt_max_age.as_millis() as u64);
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
                    reason: if is_drained { super::DRAINED.to_owned() } else { vitals.map_or_else(String::new, |v| v.reason.clone()) },
                    check_us: vitals.map_or(0, |v| v.check_us),
                    egress_bits: load.map(|l| l.egress_bits),
                    capacity_bits: node.capacity_bits,
                }
            })
            .collect();
        let carrying = || nodes.iter().filter(|n| n.up).filter_map(|n| Some((n.egress_bits?, n.capacity_bits.filter(|c| *c > 0)?)));
        let (egress, capacity) = carrying().fold((0.0, 0.0), |(e, c), (egress, capacity)| (e + egress as f64, c + capacity as f64));
        let up = nodes.iter().filter(|n| n.up).count();
        Candidate {
            cluster: config.name.clone(),
            label: config.label.clone(),
            distance_km: place.map(|p| distance_km(p.position(), (config.place.latitude, config.place.longitude)).round()),
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
    let family = if question.family == Family::V4 { "IPv4" } else { "IPv6" };
    match standing {
        Standing::Addressless => return format!("no {family} address"),
        Standing::Down => return "down".into(),
        Standing::Full => return "full".into(),
        Standing::Open => {}
    }
    let ahead = winner.filter(|w| rank > ranking.iter().position(|r| r == w)).map(|w| fleet.clusters[usize::from(w)].name.as_str());
    match (question.policy, ahead) {
        (SelectionPolicy::Geo, Some(ahead)) if question.placed => format!("farther than {ahead}"),
        (SelectionPolicy::Geo, Some(ahead)) => format!("place unknown, and {ahead} comes first by weight"),
        (SelectionPolicy::Rtt, Some(ahead)) if question.rtt.is_some() => {
            let measured = |c: u16| question.rtt.and_then(|row| row.get(usize::from(c))).is_some_and(|us| *us != UNMEASURED);
            match (measured(cluster), winner.is_some_and(measured)) {
                (true, true) => format!("slower than {ahead}, or farther at about the same time"),
                (true, false) => format!("measured slower than {ahead} is likely to be by its distance"),
                (false, _) => format!("not measured, and likely to be slower than {ahead}"),
            }
        }
        (SelectionPolicy::Rtt, Some(ahead)) if question.placed => format!("nothing measured, and farther than {ahead}"),
        (SelectionPolicy::Rtt, Some(ahead)) => format!("nothing measured, place unknown, and {ahead} comes first by weight"),
        (SelectionPolicy::Weighted, _) => "not drawn this time".into(),
        (SelectionPolicy::RoundRobin, _) => "not its turn".into(),
        (_, None) => "not considered".into(),
    }
}

fn summary(asked: &Asked, place: Option<&PlaceShown>, chosen: Option<&Chosen>, reason: Reason, candidates: &[Candidate]) -> String {
    let who = format!("{} {}", if asked.prefix.from_ecs { "client" } else { "resolver" }, asked.prefix.address);
    let location = match place {
        Some(p) if p.country.is_empty() => format!(" (at {:.1}, {:.1})", p.latitude, p.longitude),
        Some(p) => format!(" (in {})", p.country),
        None => " (place unknown)".to_owned(),
    };
    let Some(chosen) = chosen else {
        let what = if asked.family == Family::V4 { "A" } else { "AAAA" };
        return format!("{who}{location} is given no address: no cluster of the site has one for {what}");
    };
    let why = match reason {
        Reason::Geo => "the nearest one",
        Reason::Rtt => "the quickest by measured round-trip time",
        Reason::Explore => "to measure it",
        Reason::Weighted => "drawn by weight",
        Reason::RoundRobin => "whose turn it is",
        Reason::Failover => "the next best, as a better one is down",
        Reason::Spill => "the next best, as a better one is full",
        Reason::AllFull => "the best of those that are up, which are all full",
        Reason::Unplaced => "the first by weight, as nothing is known of the client's place",
        Reason::AllDown => "the best one although all are down, as some address is better than none",
        Reason::NoAddress => "",
    };
    let distance = candidates.iter().find(|c| c.cluster == chosen.cluster).and_then(|c| c.distance_km);
    let distance = distance.map_or_else(String::new, |km| format!(", {km:.0} km away"));
    format!("{who}{location} is given {}{distance}: {why}", chosen.cluster)
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy as _;

    use super::*;

    #[test]
    fn questions_are_read_or_refused_with_the_mend() {
        let prefix = |address: &str, source_prefix, from_ecs| ClientPrefix { address: address.parse().unwrap(), source_prefix, from_ecs };
        let good = [
            ("host=WWW.demo.test.&client=203.0.113.7", prefix("203.0.113.7", 32, true), None, Family::V4),
            ("host=www.demo.test&client=203.0.113.0%2f24&type=aaaa", prefix("203.0.113.0", 24, true), None, Family::V6),
            ("host=www.demo.test&resolver=2001:db8::1", prefix("2001:db8::1", 128, false), Some("2001:db8::1"), Family::V4),
            ("host=www.demo.test&client=&resolver=192.0.2.1", prefix("192.0.2.1", 32, false), Some("192.0.2.1"), Family::V4),
            ("client=::ffff:192.0.2.1&host=www.demo.test", prefix("192.0.2.1", 32, true), None, Family::V4),
        ];
        for (query, prefix, resolver, family) in good {
            let resolver = resolver.map(|r: &str| r.parse().unwrap());
            assert_eq!(asked(query), Ok(Asked { host: "www.demo.test".into(), prefix, resolver, family }), "{query}");
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
            ("host=a&client=192.0.2.1&type=MX", "neither A nor AAAA"),
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
                let whole = if asked.prefix.address.is_ipv4() { 32 } else { 128 };
                proptest::prop_assert!(asked.prefix.source_prefix <= whole && !asked.host.is_empty());
            }
        }
    }
}
