//! The state that the query path reads, and the answer made from it for one client.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nearcast_fleet::config::{Fleet, SelectionPolicy};

use super::addresses::Addresses;
use super::choice::{Choice, ClientPrefix, Family, Reason, Selection, Service, Wanted};
use super::counters::SelectionCounters;
use super::location::{GRAIN_V4, GRAIN_V6, Location, MAPPED_BITS};
use super::plan::Plan;
use super::rtt::RttMap;
use super::select::{self, ClusterState, Decision, Inputs};
use super::service::{Services, SiteService};
use crate::challenges::ChallengeRecords;
use crate::zone::Zones;

/// Longest TTL given, a week.
const TTL_MAX: u64 = 604_800;

/// A fleet and the zones compiled from it. The zones refer to sites by their number in the fleet,
/// so the two are always used together.
#[derive(Debug, Clone)]
pub struct Revision {
    /// The fleet.
    pub fleet: Arc<Fleet>,
    /// The zones that this name server serves.
    pub zones: Arc<Zones>,
}

/// The state that the query path reads, all of one moment. Immutable, except for counters.
pub struct Snapshot {
    pub(super) fleet: Arc<Fleet>,
    pub(super) zones: Arc<Zones>,
    pub(super) challenges: Arc<ChallengeRecords>,
    pub(super) plan: Arc<Plan>,
    pub(super) services: Arc<Services>,
    pub(super) clusters: Vec<ClusterState>,
    pub(super) rtt: Arc<RttMap>,
    pub(super) counters: Arc<SelectionCounters>,
    pub(super) turns: Arc<[AtomicU64]>,
    pub(super) explore_below: u32,
    /// Whether some cluster accepts only a share of its clients.
    pub(super) is_shared: bool,
}

/// The inputs of a decision, and the scope of an answer made from them.
pub(super) struct ScopedInputs<'a> {
    pub(super) inputs: Inputs<'a>,
    pub(super) scope_prefix: u8,
}

impl Snapshot {
    /// The zones, whose site numbers are those of this snapshot.
    pub fn zones(&self) -> &Zones {
        &self.zones
    }

    /// The records of open challenges, laid over the zones.
    pub fn challenges(&self) -> &ChallengeRecords {
        &self.challenges
    }

    /// Selects the addresses for one client of the `site`-th site of the fleet. Takes no lock and
    /// allocates nothing. A site that does not exist has no addresses.
    pub fn select(
        &self,
        site: usize,
        client: &ClientPrefix,
        family: Family,
        random: u64,
    ) -> Choice {
        let turn = self.take_turn(site);
        let choice = self.decide(site, client, family, random, turn);
        self.count(site, client, &choice);
        choice
    }

    /// Selects what is asked for at a steered name, as [`Snapshot::select`] does.
    pub fn select_wanted(
        &self,
        site: usize,
        client: &ClientPrefix,
        wanted: Wanted,
        random: u64,
    ) -> Selection {
        match wanted {
            Wanted::Addresses(family) => {
                Selection::of_choice(self.select(site, client, family, random))
            }
            Wanted::Service => match self.services.of_site(site) {
                Ok(service) => self.select_service(site, service, client, random),
                Err(_) => Selection::Nothing,
            },
        }
    }

    /// Selects the addresses of both families, with the same random number and in the same turn, so
    /// that both are of one cluster.
    fn select_service(
        &self,
        site: usize,
        service: &SiteService,
        client: &ClientPrefix,
        random: u64,
    ) -> Selection {
        let turn = self.take_turn(site);
        let [v4, v6] =
            [Family::V4, Family::V6].map(|family| self.decide(site, client, family, random, turn));
        let service = service_of(service, v4, v6);
        self.count(site, client, service.main());
        Selection::of_service(service)
    }

    /// Counts an answer with addresses.
    fn count(&self, site: usize, client: &ClientPrefix, choice: &Choice) {
        if !choice.addresses.is_empty() {
            let country = self.plan.atlas.country(masked(client));
            self.counters
                .add(site, choice.cluster, choice.reason, country);
        }
    }

    /// The number of this answer of the site, where its clusters are given in turn.
    fn take_turn(&self, site: usize) -> u64 {
        let in_turn =
            |site: &nearcast_fleet::config::Site| site.policy == SelectionPolicy::RoundRobin;
        match self.turns.get(site) {
            Some(turns) if self.fleet.sites.get(site).is_some_and(in_turn) => {
                turns.fetch_add(1, Ordering::Relaxed)
            }
            _ => 0,
        }
    }

    /// Gathers the inputs of a decision.
    pub(super) fn inputs(
        &self,
        site: usize,
        address: IpAddr,
        family: Family,
        random: u64,
    ) -> Option<ScopedInputs<'_>> {
        let policy = self.fleet.sites.get(site)?.policy;
        let (order, order_scope) = match policy {
            SelectionPolicy::Geo | SelectionPolicy::Rtt => self.plan.find(site, address)?,
            SelectionPolicy::Weighted | SelectionPolicy::RoundRobin => {
                (self.plan.unplaced(site)?, 0)
            }
        };
        let grain = if address.is_ipv4() {
            GRAIN_V4
        } else {
            GRAIN_V6
        };
        let single = order.clusters.len() < 2;
        let mut inputs = Inputs {
            policy,
            clusters: &self.clusters,
            order: &order.clusters,
            placed: order.placed,
            here: None,
            rtt: None,
            family,
            explore_below: if single { 0 } else { self.explore_below },
            turn: 0,
            random,
            is_shared: self.is_shared
                && order
                    .clusters
                    .iter()
                    .any(|c| !self.clusters[usize::from(*c)].takes_all()),
            grain: grain_of(address),
            has_subnet: true,
        };
        let scope_prefix = match policy {
            _ if single => 0,
            SelectionPolicy::Geo if inputs.is_shared => order_scope.max(grain),
            SelectionPolicy::Geo => order_scope,
            SelectionPolicy::Rtt => match self.rtt.find(address) {
                Some(row) => {
                    // A guessed time depends on the location itself, not on the order alone.
                    let (number, place_scope) = self.plan.atlas.find(address);
                    inputs.here = self.plan.atlas.location(number).map(Location::position);
                    inputs.rtt = Some(row);
                    order_scope.max(place_scope).max(grain)
                }
                None => order_scope.max(grain),
            },
            SelectionPolicy::Weighted => 0,
            SelectionPolicy::RoundRobin => {
                inputs.turn = self
                    .turns
                    .get(site)
                    .map_or(0, |t| t.load(Ordering::Relaxed));
                0
            }
        };

        Some(ScopedInputs {
            inputs,
            scope_prefix,
        })
    }

    fn decide(
        &self,
        site: usize,
        client: &ClientPrefix,
        family: Family,
        random: u64,
        turn: u64,
    ) -> Choice {
        let address = masked(client);
        let Some(mut scoped) = self.inputs(site, address, family, random) else {
            return Choice::empty(0, Reason::NoAddress);
        };
        scoped.inputs.has_subnet = client.from_ecs;
        scoped.inputs.turn = turn;
        let mut choice = self.choice(site, &scoped, select::decide(&scoped.inputs));
        if choice.scope_prefix > 0 && client.address.is_ipv6() && address.is_ipv4() {
            // The scope belongs to the family of the query's client subnet.
            choice.scope_prefix += MAPPED_BITS;
        }
        choice
    }

    pub(super) fn choice(
        &self,
        site: usize,
        scoped: &ScopedInputs<'_>,
        decision: Decision,
    ) -> Choice {
        let ttl = self
            .fleet
            .sites
            .get(site)
            .map_or(0, |s| s.ttl.as_secs().min(TTL_MAX) as u32);
        let inputs = &scoped.inputs;
        match decision.cluster {
            None => Choice::empty(ttl, decision.reason),
            Some(cluster) => Choice {
                cluster: usize::from(cluster),
                addresses: match self.clusters[usize::from(cluster)].serving(inputs.family) {
                    (all, []) => Addresses::rotated(all, (inputs.random & 0xffff) as usize),
                    (all, weights) => {
                        Addresses::weighted(all, weights, inputs.has_subnet, inputs.random)
                    }
                },
                ttl,
                scope_prefix: scoped.scope_prefix,
                reason: decision.reason,
            },
        }
    }
}

/// The HTTPS record for a client that gets these addresses.
pub(super) fn service_of(service: &SiteService, v4: Choice, v6: Choice) -> Service {
    let of = |choice: &Choice| match choice.addresses.is_empty() {
        true => None,
        false => Some(service.protocols(choice.cluster)),
    };
    let protocols = match (of(&v4), of(&v6)) {
        (Some(a), Some(b)) => a.and(b),
        (one, other) => one.or(other).unwrap_or_default(),
    };
    Service {
        v4,
        v6,
        port: service.port,
        protocols,
    }
}

/// The prefix of the grain around an address, as a number.
pub(super) fn grain_of(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(ip) => 1 << 60 | u64::from(u32::from(ip) >> (32 - GRAIN_V4)),
        IpAddr::V6(ip) => 2 << 60 | (u128::from(ip) >> (128 - GRAIN_V6)) as u64,
    }
}

/// The known bits of an address, with zeros after them; of an IPv4-mapped address, the IPv4
/// address.
pub(super) fn masked(client: &ClientPrefix) -> IpAddr {
    match client.address.to_canonical() {
        IpAddr::V4(ip) => {
            let before = if client.address.is_ipv6() {
                MAPPED_BITS
            } else {
                0
            };
            let known = client.source_prefix.saturating_sub(before);
            let mask = u32::MAX
                .checked_shl(32_u32.saturating_sub(known.into()))
                .unwrap_or(0);
            IpAddr::V4((u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX
                .checked_shl(128_u32.saturating_sub(client.source_prefix.into()))
                .unwrap_or(0);
            IpAddr::V6((u128::from(ip) & mask).into())
        }
    }
}
