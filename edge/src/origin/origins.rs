//! What all workers of a node share of the ways to origins and to the cluster's other nodes. Lives as long as the process,
//! whatever happens to the sites.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use nearcast_fleet::config::{self, OriginPolicy};

use super::connections::Connections;
use super::health::Health;
use super::tls::{DefaultTls, TlsFileError};
use super::{Address, Target};
use crate::metrics::SiteCounters;

/// See the module's words.
#[derive(Debug)]
pub(crate) struct Origins {
    tls: DefaultTls,
    sites: Mutex<HashMap<String, Arc<Connections>>>,
    addresses: Mutex<HashMap<Address, Arc<Health>>>,
    peers: Mutex<HashMap<SocketAddr, Arc<Target>>>,
}

impl Origins {
    /// With the authorities that the environment names.
    pub(crate) fn of_environment() -> Self {
        Self { tls: DefaultTls::of_environment(), sites: Mutex::default(), addresses: Mutex::default(), peers: Mutex::default() }
    }

    /// A site's origin.
    ///
    /// # Errors
    /// A file for TLS that is missing or of no use.
    pub(crate) fn target(&self, site: &config::Site, address: Address, counters: &SiteCounters) -> Result<Target, TlsFileError> {
        let OriginPolicy { limits, tls: settings } = &site.origin_policy;
        let authority = site.origin_host.as_deref().and_then(|host| host.parse::<http::uri::Authority>().ok());
        let host = authority.as_ref().map_or(&*address.host, |authority| authority.host().trim_matches(['[', ']']));
        let tls = match address.is_tls {
            true => Some(self.tls.target(settings, host)?),
            false => None,
        };
        let mut sites = self.sites.lock().expect("no holder of this lock panics");
        let new = || Connections::new(limits, counters.origin_gauges().clone());
        let connections = sites.entry(site.name.clone()).or_insert_with(new).clone();
        let mut addresses = self.addresses.lock().expect("no holder of this lock panics");
        let health = addresses.entry(address.clone()).or_insert_with(|| Health::new(address.clone())).clone();
        Ok(Target { address, limits: limits.clone(), tls, connections, health })
    }

    /// Puts a site's target into force: its limits for the connections that it shares with the one before it, and in the
    /// site's figures.
    pub(crate) fn adopt(&self, target: &Target, counters: &SiteCounters) {
        target.connections.set_limits(&target.limits);
        let gauges = counters.origin_gauges();
        for health in self.addresses.lock().expect("no holder of this lock panics").values() {
            health.hide_from(gauges);
        }
        target.health.show_in(gauges);
    }

    /// A node of the same cluster.
    pub(crate) fn peer(&self, address: SocketAddr) -> Arc<Target> {
        let mut peers = self.peers.lock().expect("no holder of this lock panics");
        peers.entry(address).or_insert_with(|| Arc::new(Target::peer(address))).clone()
    }
}
