//! Steering: which cluster a client is given, and how that is known.
//!
//! The query path reads one immutable [`Snapshot`] behind an atomic pointer: the zones, whose
//! steered names stand for sites by their number in the fleet, and what [`Snapshot::select`]
//! decides from: where addresses are ([`location`], compiled by [`plan`] into an order of clusters
//! for each run of addresses), what round-trip times say ([`rtt`]), which nodes are up ([`health`],
//! found out by [`check`]), what they carry ([`load`]), what clusters keep of their clients when
//! they are full ([`share`]), and how nodes return ([`ramp`]). [`select`] decides from these alone.
//! Everything that changes them runs in tasks beside it and swaps in a new snapshot.
//!
//! # Scopes (RFC 7871)
//!
//! Whoever is inside the scope returned gets the same cluster, now and whatever goes up, down or
//! full; chance and turns aside. It is not the widest such prefix of the moment: while a cluster is
//! down, networks with different orders may share the next one, but a scope that spans them would
//! be wrong once it is up again, and resolvers would hold scopes that overlap. What counts is the
//! order:
//!
//! - `geo`: the widest prefix around the client inside a run of addresses that share an order of
//!   clusters;
//! - `rtt`: the same, but never wider than /24 (/48), the grain of measurements; an exploring
//!   answer too. Where there is a measurement, it also stays inside one place, since times that are
//!   guessed depend on that;
//! - `weighted` and `round-robin`: 0, since these answers do not depend on who asks. Shares are
//!   then met over resolvers, not over the clients of one resolver;
//! - a site with a single cluster: 0 likewise, and so does the absence of addresses of a family,
//!   which is the same for all.
//!
//! While a cluster of a site takes a share of its clients alone, because it is full or has just
//! returned, the clients of one prefix of the grain (/24, /48) go together: a hash of that prefix
//! decides. So scopes of the site are then no wider than the grain. That is the one case in which a
//! scope depends on what is full: if it were always so, resolvers would ask for each /24 apart
//! although nothing is. Wider scopes that resolvers hold from before end with their TTL. For a
//! resolver that tells no prefix its own counts, moved a little by chance.
//!
//! A client that shows fewer bits than the map tells apart is steered as the first address of its
//! prefix, and the longer scope tells its resolver that more bits would have helped.

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
mod share;
mod snapshot;
mod state;
mod steering;
mod watch;

use std::sync::Arc;

use nearcast_fleet::shutdown::Shutdown;

pub use self::addresses::Addresses;
pub use self::choice::{Choice, ClientPrefix, Family, Reason};
use self::location::Atlas;
use self::metrics::SteeringCollector;
pub use self::snapshot::{Revision, Snapshot};
// alias until the parts are merged
pub use self::snapshot::Revision as Served;
pub use self::steering::Steering;
use self::steering::now_ms;

/// What is wrong with a geo database, as far as it can be told without compiling it; for checking a
/// fleet file before it is used.
///
/// # Errors
/// The file cannot be read (`NoInput`), or is no database (`BadData`).
pub fn check_geo_db(path: &std::path::Path) -> Result<(), nearcast_fleet::failure::Failure> {
    Atlas::probe(path)
}

impl Steering {
    /// Starts steering for what is served: loads the geo database, begins health checks. Whatever
    /// `served` holds later is gone over to.
    ///
    /// A geo database that cannot be used is told, and the built-in table used until it can.
    ///
    /// Must be called inside a Tokio runtime; its tasks end with `shutdown`.
    pub fn start(
        served: tokio::sync::watch::Receiver<Revision>,
        registry: &prometheus::Registry,
        shutdown: Shutdown,
    ) -> Arc<Self> {
        let current = served.borrow().clone();
        let geo = watch::start(current.fleet.steering.geo_db.as_deref(), registry);
        let steering = Arc::new(Self::new(current, geo.atlas.clone(), now_ms()));
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
