//! Steering: the cluster that each client gets, and the knowledge that decides it.
//!
//! The query path reads one immutable [`Snapshot`] behind an atomic pointer. It holds the zones,
//! whose steered names refer to sites by their number in the fleet, and the inputs of
//! [`Snapshot::select`]: the locations of addresses ([`location`], compiled by [`plan`] into an
//! order of clusters for each run of addresses), round-trip times ([`rtt`]), the nodes that are up
//! ([`health`], measured by [`check`]), their load ([`load`]), the share of its clients that a full
//! cluster keeps ([`share`]), and the share of a returning node ([`ramp`]). [`select`] decides from
//! these alone. Tasks beside the query path ([`watch`]) change the [`state`] and publish a new
//! snapshot.
//!
//! # Scopes (RFC 7871)
//!
//! All clients inside the returned scope get the same cluster, now and after any change of health
//! or load; only chance and turns differ. The scope is not the widest such prefix of the moment:
//! while a cluster is down, networks with different orders may share the next one, but a scope that
//! spans them would be wrong once the cluster is up again, and resolvers would hold scopes that
//! overlap. The scope follows the order:
//!
//! - `geo`: the widest prefix around the client inside a run of addresses that share an order of
//!   clusters;
//! - `rtt`: the same, but never wider than /24 (/48), the grain of measurements, for exploring
//!   answers too. Where there is a measurement, the scope also stays inside one location, since
//!   guessed times depend on it;
//! - `weighted` and `round-robin`: 0, since these answers do not depend on the client. Shares then
//!   hold over resolvers, not over the clients of one resolver;
//! - a site with a single cluster: 0, and likewise a family without addresses, which is the same
//!   for all clients.
//!
//! While a cluster of a site accepts only a share of its clients, because it is full or has just
//! returned, all clients of one prefix of the grain (/24, /48) get the same cluster: a hash of that
//! prefix decides. Scopes of the site are then no wider than the grain. This is the one case in
//! which a scope depends on load: if scopes always did, resolvers would query for each /24
//! separately although nothing is full. Wider scopes that resolvers hold from before end with their
//! TTL. For a resolver that sends no prefix its own prefix counts, moved a little by chance.
//!
//! A client that shows fewer bits than the map tells apart is steered as the first address of its
//! prefix, and the longer scope shows its resolver that more bits would have helped.

mod addresses;
mod admin;
mod check;
mod choice;
mod counters;
mod countries;
mod explain;
#[cfg(test)]
mod fixture;
mod health;
mod load;
mod location;
mod metrics;
mod plan;
mod ramp;
mod ranges;
mod refused;
mod rtt;
mod select;
mod service;
mod share;
mod snapshot;
mod state;
mod steering;
mod watch;

use std::sync::Arc;

use nearcast_fleet::clock::now_unix_ms;
use nearcast_net::shutdown::Shutdown;

pub use self::addresses::Addresses;
pub use self::choice::{Choice, ClientPrefix, Family, Reason, Selection, Service, Wanted};
use self::location::Atlas;
use self::metrics::SteeringCollector;
pub use self::service::Protocols;
pub use self::snapshot::{Revision, Snapshot};
pub use self::steering::Steering;

/// Checks a geo database without compiling it, for checking a fleet file before it is used.
///
/// # Errors
/// The file cannot be read (`NoInput`), or is not a database (`BadData`).
pub fn check_geo_db(path: &std::path::Path) -> Result<(), nearcast_fleet::failure::Failure> {
    Atlas::probe(path)
}

impl Steering {
    /// Starts steering for the revisions in `served`: loads the geo database and begins health
    /// checks.
    ///
    /// If the geo database cannot be used, the error is logged and the built-in table is used until
    /// it can.
    ///
    /// Must be called inside a Tokio runtime; its tasks end with `shutdown`.
    pub fn start(
        served: tokio::sync::watch::Receiver<Revision>,
        registry: &prometheus::Registry,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let current = served.borrow().clone();
        let geo = watch::start(current.fleet.steering.geo_db.as_deref(), registry);
        let steering = Arc::new(Self::new(current, geo.atlas.clone(), now_unix_ms()));
        let selections = SteeringCollector::new(steering.clone());
        if let Err(error) = registry.register(Box::new(selections)) {
            tracing::warn!(%error, "selections are not counted in this registry");
        }
        watch::spawn(&steering, served, geo, shutdown);
        steering
    }
}

#[cfg(test)]
mod tests;
