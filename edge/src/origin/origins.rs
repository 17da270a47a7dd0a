//! What all workers of a node share for requests to origins and to the other nodes of the cluster.
//! Lives as long as the process, while sites are made anew.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nearcast_fleet::config::{self, OriginPolicy, OriginTls};
use nearcast_net::tls::FileError;
use parking_lot::Mutex;

use super::connections::Connections;
use super::health::Health;
use super::tls::DefaultTls;
use super::{Address, Target};
use crate::metrics::SiteCounters;

/// The settings that may cause an origin's failures. Sites that differ in one of them do not share the
/// state of the origin: a certificate that one site does not trust, or a time-out that is too short,
/// must not affect other sites.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct HealthKey {
    address: Address,
    /// For TLS: the files, and the host that the certificate must name.
    tls: Option<(OriginTls, String)>,
    connect: Duration,
    first_byte: Duration,
}

/// The connections, states and TLS settings of all origins and peers.
#[derive(Debug)]
pub(crate) struct Origins {
    tls: DefaultTls,
    sites: Mutex<HashMap<String, Arc<Connections>>>,
    health: Mutex<HashMap<HealthKey, Arc<Health>>>,
    peers: Mutex<HashMap<SocketAddr, Arc<Target>>>,
}

impl Origins {
    /// With the certificate authorities that the environment names.
    pub(crate) fn of_environment() -> Self {
        Self {
            tls: DefaultTls::of_environment(),
            sites: Mutex::default(),
            health: Mutex::default(),
            peers: Mutex::default(),
        }
    }

    /// A site's origin.
    ///
    /// # Errors
    /// A TLS file that is missing or cannot be used.
    pub(crate) fn target(
        &self,
        site: &config::Site,
        address: Address,
        counters: &SiteCounters,
    ) -> Result<Target, FileError> {
        let OriginPolicy {
            limits,
            tls: settings,
            http2,
        } = &site.origin_policy;
        let authority = site
            .origin_host
            .as_deref()
            .and_then(|host| host.parse::<http::uri::Authority>().ok());
        let host = authority.as_ref().map_or(&*address.host, |authority| {
            authority.host().trim_matches(['[', ']'])
        });
        let tls = match address.is_tls {
            true => Some(self.tls.target(settings, host, *http2)?),
            false => None,
        };
        let mut sites = self.sites.lock();
        let new = || Connections::new(limits, counters.origin_gauges().clone());
        let connections = sites.entry(site.name.clone()).or_insert_with(new).clone();
        let tls_key = address.is_tls.then(|| (settings.clone(), host.to_owned()));
        let key = HealthKey {
            address: address.clone(),
            tls: tls_key,
            connect: limits.connect,
            first_byte: limits.first_byte,
        };
        let mut known = self.health.lock();
        // Remove the states of settings that no site has any more.
        known.retain(|_, health| Arc::strong_count(health) > 1);
        let health = known
            .entry(key)
            .or_insert_with(|| Health::new(address.clone()))
            .clone();
        Ok(Target {
            address,
            limits: limits.clone(),
            tls,
            connections,
            health,
        })
    }

    /// Applies a site's target: its limits to the connections that it shares with the target before
    /// it, and its state to the site's gauges.
    pub(crate) fn adopt(&self, target: &Target, counters: &SiteCounters) {
        target.connections.set_limits(&target.limits);
        let gauges = counters.origin_gauges();
        for health in self.health.lock().values() {
            health.hide_from(gauges);
        }
        target.health.show_in(gauges);
    }

    /// A node of the same cluster.
    pub(crate) fn peer(&self, address: SocketAddr) -> Arc<Target> {
        let mut peers = self.peers.lock();
        peers
            .entry(address)
            .or_insert_with(|| Arc::new(Target::peer(address)))
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::breaker::Sign;
    use super::*;
    use crate::metrics::Metrics;

    fn site(change: impl FnOnce(&mut config::Site)) -> config::Site {
        let mut site = config::Site {
            name: "www".into(),
            hosts: vec![],
            origin: "https://o.test".into(),
            origin_host: None,
            policy: config::SelectionPolicy::Geo,
            ttl: Duration::from_secs(20),
            clusters: vec![],
            cache: config::CachePolicy::default(),
            origin_policy: OriginPolicy::default(),
            purge: config::PurgePolicy::default(),
            https: config::HttpsPolicy::default(),
            compression: config::CompressionPolicy::default(),
        };
        change(&mut site);
        site
    }

    fn target(origins: &Origins, site: &config::Site) -> Target {
        let address = Address::parse(&site.origin).expect("an address");
        origins
            .target(site, address, &Metrics::new(1, "ams").site(&site.name))
            .expect("its files are there")
    }

    #[test]
    fn sites_share_what_is_known_of_an_origin_only_if_they_ask_it_alike() {
        let directory = tempfile::tempdir().expect("a directory");
        let ca = directory.path().join("ca.pem");
        let own = rcgen::generate_simple_self_signed(["o.test".to_owned()]).expect("a certificate");
        std::fs::write(&ca, own.cert.pem()).expect("written");
        let origins = Origins::of_environment();
        type Change = Box<dyn Fn(&mut config::Site)>;
        let with = |change: Change| target(&origins, &site(change));
        let failing = with(Box::new(|_| {}));
        for url in 0..3 {
            failing.health.ask(false).expect("it is not known yet").end(
                Sign::Dead,
                url,
                Duration::from_secs(60),
            );
        }
        let table: [(&str, bool, Change); 9] = [
            ("the same", true, Box::new(|_| {})),
            (
                "another name",
                true,
                Box::new(|site| site.name = "other".into()),
            ),
            (
                "another pause",
                true,
                Box::new(|site| site.origin_policy.limits.between_bytes *= 2),
            ),
            (
                "the same host, written out",
                true,
                Box::new(|site| site.origin_host = Some("o.test:8443".into())),
            ),
            (
                "another first byte",
                false,
                Box::new(|site| site.origin_policy.limits.first_byte *= 2),
            ),
            (
                "another connect",
                false,
                Box::new(|site| site.origin_policy.limits.connect *= 2),
            ),
            (
                "another certificate's name",
                false,
                Box::new(|site| site.origin_host = Some("p.test".into())),
            ),
            (
                "other authorities",
                false,
                Box::new(move |site| site.origin_policy.tls.ca = Some(ca.clone())),
            ),
            (
                "another address",
                false,
                Box::new(|site| site.origin = "https://o.test:444".into()),
            ),
        ];
        for (what, is_shared, change) in table {
            assert_eq!(with(change).failing().is_some(), is_shared, "{what}");
        }
    }

    #[test]
    fn without_tls_the_host_makes_no_difference_and_what_no_site_has_is_forgotten() {
        let origins = Origins::of_environment();
        let of = |host: Option<&str>, seconds| {
            target(
                &origins,
                &site(|site| {
                    site.origin = "http://o.test".into();
                    site.origin_host = host.map(str::to_owned);
                    site.origin_policy.limits.first_byte = Duration::from_secs(seconds);
                }),
            )
        };
        let kept = of(None, 60);
        assert!(Arc::ptr_eq(&kept.health, &of(Some("a.test"), 60).health));
        (1..50).for_each(|seconds| drop(of(None, seconds)));
        let known = origins.health.lock().len();
        assert!(known <= 2, "{known}");
        assert!(Arc::ptr_eq(&kept.health, &of(None, 60).health));
    }
}
