//! Explains the choice for a steered name: gathers the inputs, ranks the clusters, describes each.

use std::net::IpAddr;

use nearcast_fleet::config::{Cluster, SelectionPolicy, Site};

use super::summary;
use super::view::{CandidateView, ChosenView, LocationView, MeasuredView, NodeView, SteeredView};
use crate::steer::choice::{Choice, ClientPrefix, Family, Selection, Wanted};
use crate::steer::location::Location;
use crate::steer::plan::distance_km;
use crate::steer::select::{self, Decision, UNMEASURED};
use crate::steer::service::NoRecord;
use crate::steer::snapshot::{ScopedInputs, Snapshot, masked, service_of};
use crate::steer::state::{DRAINED, State};
use nearcast_fleet::random::Random;

/// The moment that is explained.
pub(super) struct Context<'a> {
    pub(super) state: &'a State,
    pub(super) snapshot: &'a Snapshot,
    pub(super) now_ms: u64,
}

/// A decision with its inputs.
struct Decided<'a> {
    site: &'a Site,
    address: IpAddr,
    scoped: ScopedInputs<'a>,
    decision: Decision,
    choice: Choice,
}

impl Context<'_> {
    /// What the query path would select, chance aside, and the reasons for it.
    ///
    /// # Errors
    /// The site has no HTTPS record, for any client.
    pub(super) fn explain_selection(
        &self,
        site: usize,
        client: &ClientPrefix,
        wanted: Wanted,
    ) -> Result<(Selection, Option<SteeredView>), NoRecord> {
        match wanted {
            Wanted::Addresses(family) => Ok(match self.decide(site, client, family) {
                Some(decided) => (
                    Selection::of_choice(decided.choice),
                    Some(self.describe(&decided)),
                ),
                None => (Selection::Nothing, None),
            }),
            Wanted::Service => {
                let service = self.snapshot.services.of_site(site)?;
                let v4 = self.decide(site, client, Family::V4);
                let v6 = self.decide(site, client, Family::V6);
                Ok(match v4.zip(v6) {
                    Some((v4, v6)) => {
                        let service = service_of(service, v4.choice, v6.choice);
                        let view = self.describe_both(&v4, &v6);
                        (Selection::of_service(service), Some(view))
                    }
                    None => (Selection::Nothing, None),
                })
            }
        }
    }

    /// The choices of an HTTPS record: as that of IPv4, where it has addresses, with those of both
    /// families.
    fn describe_both(&self, v4: &Decided<'_>, v6: &Decided<'_>) -> SteeredView {
        let (main, other) = match v4.choice.addresses.is_empty() {
            true => (v6, None),
            false => (v4, Some(v6)),
        };
        let mut view = self.describe(main);
        view.family = "HTTPS";
        if let (Some(chosen), Some(other)) = (view.chosen.as_mut(), other) {
            chosen.addresses.extend(other.choice.addresses.iter());
        }
        view
    }

    fn decide(&self, site: usize, client: &ClientPrefix, family: Family) -> Option<Decided<'_>> {
        let address = masked(client);
        let random = Random::new(self.now_ms).bits();
        let mut scoped = self.snapshot.inputs(site, address, family, random)?;
        scoped.inputs.explore_below = 0;
        scoped.inputs.has_subnet = client.from_ecs;
        // In the order of the file, so that explanations of one state do not differ by rotation.
        scoped.inputs.random &= !0xffff;

        let decision = select::decide(&scoped.inputs);
        let choice = self.snapshot.choice(site, &scoped, decision);
        Some(Decided {
            site: self.snapshot.fleet.sites.get(site)?,
            address,
            scoped,
            decision,
            choice,
        })
    }

    fn describe(&self, decided: &Decided<'_>) -> SteeredView {
        let (fleet, atlas) = (&self.snapshot.fleet, &self.snapshot.plan.atlas);
        let (number, location_scope) = atlas.find(decided.address);
        let location = atlas.location(number);
        let chosen = decided.decision.cluster.map(|cluster| {
            let cluster = &fleet.clusters[usize::from(cluster)];
            ChosenView {
                cluster: cluster.name.clone(),
                label: cluster.label.clone(),
                addresses: decided.choice.addresses.to_vec(),
                reason: decided.decision.reason.label(),
            }
        });

        SteeredView {
            site: decided.site.name.clone(),
            steered_name: fleet.steered_name(decided.site),
            family: match decided.scoped.inputs.family {
                Family::V4 => "A",
                Family::V6 => "AAAA",
            },
            policy: policy_label(decided.site.policy),
            place: location.map(|l| LocationView {
                country: l.country_str().to_owned(),
                latitude: f64::from(l.latitude),
                longitude: f64::from(l.longitude),
                source: l.source.label(),
                prefix: network(decided.address, location_scope),
            }),
            geo_source: atlas.description.clone(),
            candidates: self.candidates(decided, location),
            chosen,
            reason: decided.decision.reason.label(),
            scope_prefix: decided.choice.scope_prefix,
            scope: network(decided.address, decided.choice.scope_prefix),
            ttl: decided.choice.ttl,
        }
    }

    /// The site's clusters, best first.
    fn candidates(&self, decided: &Decided<'_>, location: Option<&Location>) -> Vec<CandidateView> {
        let inputs = &decided.scoped.inputs;
        let ranking = ranking(inputs);
        let rank_of = |cluster: u16| ranking.iter().position(|r| *r == cluster);
        let mut clusters = inputs.order.to_vec();
        clusters.sort_by_key(|c| rank_of(*c).unwrap_or(usize::MAX));

        let winner = decided.decision.cluster;
        let winner_name =
            winner.map(|w| self.snapshot.fleet.clusters[usize::from(w)].name.as_str());
        clusters
            .into_iter()
            .map(|cluster| {
                let rank = rank_of(cluster);
                let ahead = winner_name.filter(|_| rank > winner.and_then(rank_of));
                CandidateView {
                    rank: rank.map(|r| r + 1),
                    rejected: (winner != Some(cluster))
                        .then(|| summary::rejection(inputs, cluster, winner, ahead)),
                    ..self.candidate(cluster, decided.address, location)
                }
            })
            .collect()
    }

    /// A cluster without its rank.
    fn candidate(
        &self,
        number: u16,
        address: IpAddr,
        location: Option<&Location>,
    ) -> CandidateView {
        let cluster = &self.state.fleet.clusters[usize::from(number)];
        let nodes = self.nodes(cluster);
        let measured_us = self
            .state
            .rtt_map
            .find(address)
            .and_then(|row| row.get(usize::from(number)).copied())
            .filter(|us| *us != UNMEASURED);
        let there = (cluster.place.latitude, cluster.place.longitude);
        CandidateView {
            cluster: cluster.name.clone(),
            label: cluster.label.clone(),
            distance_km: location.map(|l| distance_km(l.position(), there).round()),
            rtt_ms: measured_us.map(|us| milliseconds(f64::from(us))),
            rtt: measured_us.map(|_| self.measured(number, address)),
            load: load(&nodes),
            health: health(&nodes),
            nodes,
            weight: cluster.weight,
            rank: None,
            rejected: None,
        }
    }

    /// Where a cluster's round-trip time comes from.
    fn measured(&self, cluster: u16, address: IpAddr) -> MeasuredView {
        let max_age_ms = self.state.fleet.steering.rtt_max_age.as_millis() as u64;
        let own = self
            .state
            .rtt
            .measured(address, usize::from(cluster))
            .filter(|m| self.now_ms.saturating_sub(m.at_ms) <= max_age_ms);
        MeasuredView {
            from: if own.is_some() { "prefix" } else { "aggregate" },
            min_ms: own.map(|m| milliseconds(f64::from(m.min_us))),
            connections: own.map(|m| m.samples),
            age_seconds: own.map(|m| self.now_ms.saturating_sub(m.at_ms) as f64 / 1_000.0),
        }
    }

    fn nodes(&self, cluster: &Cluster) -> Vec<NodeView> {
        let view = |node: &nearcast_fleet::config::Node| {
            let health = self.state.health.get(&node.name);
            let is_drained = self.state.drains.is_drained(&cluster.name, &node.name);
            let load = self.state.loads.get(&node.name).filter(|l| l.at_ms > 0);
            NodeView {
                node: node.name.clone(),
                addresses: node.addresses.clone(),
                up: health.is_none_or(|h| h.up) && !is_drained,
                drained: is_drained,
                full: load.is_some_and(|l| l.full),
                since_unix_ms: health.map_or(0, |h| h.since_ms),
                reason: match is_drained {
                    true => DRAINED.to_owned(),
                    false => health.map_or_else(String::new, |h| h.reason.clone()),
                },
                check_us: health.map_or(0, |h| h.check_us),
                egress_bits: load.map(|l| l.egress_bits),
                capacity_bits: node.capacity_bits,
            }
        };
        cluster.nodes.iter().map(view).collect()
    }
}

/// The policy's ranking; empty under weighted and round-robin steering.
fn ranking(inputs: &select::Inputs<'_>) -> Vec<u16> {
    match inputs.policy {
        SelectionPolicy::Geo => inputs.order.to_vec(),
        SelectionPolicy::Rtt if inputs.rtt.is_none() => inputs.order.to_vec(),
        SelectionPolicy::Rtt => select::rank_by_time(inputs)
            .items()
            .iter()
            .map(|r| r.cluster)
            .collect(),
        SelectionPolicy::Weighted | SelectionPolicy::RoundRobin => Vec::new(),
    }
}

/// Load of the nodes that are up as a share of their capacity.
fn load(nodes: &[NodeView]) -> Option<f64> {
    let loaded = nodes
        .iter()
        .filter(|n| n.up)
        .filter_map(|n| Some((n.egress_bits?, n.capacity_bits.filter(|c| *c > 0)?)));
    let (egress, capacity) = loaded.fold((0.0, 0.0), |(e, c), (egress, capacity)| {
        (e + egress as f64, c + capacity as f64)
    });
    (capacity > 0.0).then(|| (egress / capacity * 1_000.0).round() / 1_000.0)
}

fn health(nodes: &[NodeView]) -> &'static str {
    let up = nodes.iter().filter(|n| n.up).count();
    if up == nodes.len() {
        "up"
    } else if nodes.iter().all(|n| n.drained) {
        "drained"
    } else if up == 0 {
        "down"
    } else {
        "degraded"
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
