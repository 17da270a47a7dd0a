//! Sites as requests need them: by the hosts that clients name, each with its origins and settings.
//!
//! Made anew, as a whole, when the fleet changes; the counters of a site stay.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;
use nearcast_fleet::config::{self, CachePolicy, Fleet, PurgePolicy, Secret};
use nearcast_fleet::node_key;
use nearcast_net::tls::FileError;

use crate::compress::SiteCompression;
use crate::metrics::{Metrics, SiteCounters};
use crate::origin::{Address, Origins, SiteOrigins};
use crate::proxies::TrustedProxies;
use crate::request::purge_request::ControlAddress;
use crate::stored::generations::host_of;
use nearcast_http_rules::https;
use nearcast_http_rules::not_stored::NotStored;

/// Minimum time between two warnings that a site's origin fails.
const WARN_EVERY_MS: u64 = 10_000;

/// One site.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) name: Arc<str>,
    pub(crate) origins: SiteOrigins,
    /// `Host` for the origin; `None` forwards the client's.
    pub(crate) origin_host: Option<HeaderValue>,
    pub(crate) cache: CachePolicy,
    pub(crate) compression: SiteCompression,
    pub(crate) purge: PurgePolicy,
    /// Requests without TLS are redirected.
    pub(crate) redirects_to_https: bool,
    /// `Strict-Transport-Security` of responses by `https`; `None` keeps the origin's.
    pub(crate) hsts: Option<HeaderValue>,
    pub(crate) counters: Arc<SiteCounters>,
    /// When the last warning that its origin fails was logged, in milliseconds after the Unix epoch.
    pub(crate) warned_ms: AtomicU64,
}

impl Site {
    fn new(configured: &config::Site, origins: SiteOrigins, counters: Arc<SiteCounters>) -> Self {
        let origin_host = configured.origin_host.as_ref();
        Self {
            name: configured.name.as_str().into(),
            origins,
            origin_host: origin_host.and_then(|host| HeaderValue::from_str(host).ok()),
            cache: configured.cache.clone(),
            compression: SiteCompression::new(configured.compression.clone()),
            purge: configured.purge.clone(),
            redirects_to_https: configured.https.redirect,
            hsts: configured
                .https
                .hsts
                .as_ref()
                .map(https::strict_transport_security),
            counters,
            warned_ms: AtomicU64::new(0),
        }
    }

    /// Counts and logs, once for each forward request, that a response is not stored, and why.
    /// `Cache-Status` names the same cause.
    pub(crate) fn note_not_stored(&self, worker: usize, url: &str, cause: NotStored) {
        self.counters.not_stored(worker, cause);
        tracing::debug!(site = %self.name, host = host_of(url), url, cause = cause.as_str(), "a response is not stored");
    }

    /// Whether a warning that the origin fails is due: true for one of all requests at a time.
    pub(crate) fn should_warn(&self, now_ms: u64) -> bool {
        let warned = self.warned_ms.load(Ordering::Relaxed);
        now_ms >= warned.saturating_add(WARN_EVERY_MS)
            && self
                .warned_ms
                .compare_exchange(warned, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// All sites of the fleet, and the facts of this node that requests to any of them need. Steering
/// decides which clusters serve a site; every edge can serve every site.
#[derive(Debug, Default)]
pub(crate) struct Sites {
    by_host: HashMap<String, Arc<Site>>,
    by_name: HashMap<String, Arc<Site>>,
    /// The site of all other hosts.
    any: Option<Arc<Site>>,
    /// The member of `CDN-Loop` in requests to origins.
    pub(crate) loop_id: Option<HeaderValue>,
    /// The secrets that other edges of this node's cluster show.
    pub(crate) peer_secrets: Vec<Secret>,
    /// The proxies in front of this node.
    pub(crate) trusted_proxies: TrustedProxies,
    /// The port of redirects to `https`.
    pub(crate) https_port: u16,
    /// Where control is asked for purges; `None` without a control role or node key.
    pub(crate) control: Option<ControlAddress>,
}

impl Sites {
    /// The sites of a fleet, as the node of that name serves them.
    ///
    /// # Errors
    /// The name of a site, and which of its files cannot be used.
    pub(crate) fn new(
        fleet: &Fleet,
        node: &str,
        metrics: &Metrics,
        origins: &Origins,
    ) -> Result<Self, (String, FileError)> {
        let mut sites = Self::without_sites(fleet, node);
        for configured in &fleet.sites {
            let address = Address::parse(&configured.origin)
                .expect("the fleet file's reader accepts URLs with a host only");
            let counters = metrics.site(&configured.name);
            let target = origins
                .target(configured, address, &counters)
                .map_err(|error| (configured.name.clone(), error))?;
            sites.add(
                configured,
                Site::new(configured, SiteOrigins::single(target), counters),
            );
        }

        // The names by which steering reaches the sites come after all configured hosts.
        for configured in &fleet.sites {
            if let Some(site) = sites.by_name.get(&configured.name) {
                sites
                    .by_host
                    .entry(fleet.steered_name(configured))
                    .or_insert_with(|| site.clone());
            }
        }
        for site in sites.by_name.values() {
            for target in site.origins.iter() {
                origins.adopt(target, &site.counters);
            }
        }
        Ok(sites)
    }

    fn without_sites(fleet: &Fleet, node: &str) -> Self {
        let loop_id = match fleet.zone.is_empty() {
            true => node.to_owned(),
            false => format!("nearcast-{}", fleet.zone),
        };
        let control = fleet.control.as_ref().zip(node_key::shown_by(fleet, node));
        let node_of = fleet.edge(node).map(|(_, node)| node);
        Self {
            loop_id: HeaderValue::try_from(loop_id).ok(),
            peer_secrets: fleet.edge(node).map_or_else(Vec::new, |(cluster, _)| {
                node_key::accepted_from_peers(fleet, &cluster.name)
            }),
            trusted_proxies: node_of.map_or_else(TrustedProxies::default, |node| {
                TrustedProxies::new(&node.trusted_proxies)
            }),
            https_port: https::redirect_port(
                node_of
                    .iter()
                    .flat_map(|node| node.listen_tls.iter().map(SocketAddr::port)),
            ),
            control: control.map(|(control, node_key)| ControlAddress {
                url: control.url.clone(),
                node_key,
            }),
            ..Self::default()
        }
    }

    /// Adds a site under its name and its hosts. A host belongs to the first site that names it.
    fn add(&mut self, configured: &config::Site, site: Site) {
        let site = Arc::new(site);
        self.by_name.insert(configured.name.clone(), site.clone());
        for host in &configured.hosts {
            if host == "*" {
                self.any.get_or_insert_with(|| site.clone());
            } else {
                self.by_host
                    .entry(host.clone())
                    .or_insert_with(|| site.clone());
            }
        }
    }

    /// The site of a host in lower case, without port and trailing dot.
    pub(crate) fn of_host(&self, host: &str) -> Option<&Arc<Site>> {
        self.by_host.get(host).or(self.any.as_ref())
    }

    pub(crate) fn of_name(&self, name: &str) -> Option<&Arc<Site>> {
        self.by_name.get(name)
    }
}
