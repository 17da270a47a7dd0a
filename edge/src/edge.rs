//! What the parts of one edge share: its sites, its store and index, its figures; and what each
//! worker has of its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue};
use nearcast_fleet::config::{CachePolicy, ClientLimits, Fleet, PurgePolicy, Secret};
use nearcast_fleet::node_key;
use tokio::sync::watch;

use crate::changes::Changes;
use crate::clock::Clock;
use crate::forward::Forwards;
use crate::index::Index;
use crate::lifecycle::Lifecycle;
use crate::metrics::{Metrics, SiteCounters};
use crate::origin::{Address, OriginPool, Origins, SiteOrigins, TlsFileError};
use crate::popularity::Popularity;
use crate::purge::{Generations, host_of};
use crate::request::purge_request::{ControlAddress, PurgeRelay};
use crate::response::StoredResponse;
use crate::rtt::RoundTrips;
use crate::serve::connections::Connections;
use crate::store::Store;
use nearcast_http_rules::freshness::NotStored;

/// A site as requests need it. Made anew when the fleet changes; its counters stay.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) name: Arc<str>,
    pub(crate) origins: SiteOrigins,
    /// `Host` for the origin; `None` passes the client's on.
    pub(crate) origin_host: Option<HeaderValue>,
    pub(crate) cache: CachePolicy,
    pub(crate) purge: PurgePolicy,
    pub(crate) counters: Arc<SiteCounters>,
    /// When it was last told that its origin fails, in milliseconds after the Unix epoch.
    pub(crate) warned_ms: AtomicU64,
}

/// How often it is told, for each site, that its origin fails.
const WARN_EVERY_MS: u64 = 10_000;

impl Site {
    /// Counts and logs, once for each forward request, that what came is not stored; `Cache-Status`
    /// has the same word.
    pub(crate) fn note_not_stored(&self, worker: usize, url: &str, cause: NotStored) {
        self.counters.not_stored(worker, cause);
        tracing::debug!(site = %self.name, host = host_of(url), url, cause = cause.as_str(), "a response is not stored");
    }

    /// Whether it is time to tell that the origin fails: true for one of all who ask at once.
    pub(crate) fn is_to_warn(&self, now_ms: u64) -> bool {
        let warned = self.warned_ms.load(Ordering::Relaxed);
        now_ms >= warned.saturating_add(WARN_EVERY_MS)
            && self
                .warned_ms
                .compare_exchange(warned, now_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// All sites by the hosts that clients name.
#[derive(Debug, Default)]
pub(crate) struct Sites {
    by_host: HashMap<String, Arc<Site>>,
    by_name: HashMap<String, Arc<Site>>,
    any: Option<Arc<Site>>,
    /// What requests to origins carry in `CDN-Loop`.
    pub(crate) loop_id: Option<HeaderValue>,
    /// Whether this node's cluster serves a site is decided by steering, not here: every edge can
    /// serve every site. What other edges of this node's cluster show.
    pub(crate) peer_secrets: Vec<Secret>,
    /// Where purges are asked for; none without a control role or node key.
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
    ) -> Result<Self, (String, TlsFileError)> {
        let mut sites = Self {
            loop_id: HeaderValue::try_from(if fleet.zone.is_empty() {
                node.to_owned()
            } else {
                format!("nearcast-{}", fleet.zone)
            })
            .ok(),
            peer_secrets: fleet.edge(node).map_or_else(Vec::new, |(cluster, _)| {
                node_key::accepted_from_peers(fleet, &cluster.name)
            }),
            control: fleet
                .control
                .as_ref()
                .zip(node_key::shown_by(fleet, node))
                .map(|(control, node_key)| ControlAddress {
                    url: control.url.clone(),
                    node_key,
                }),
            ..Self::default()
        };
        for configured in &fleet.sites {
            let Some(address) = Address::parse(&configured.origin) else {
                tracing::warn!(
                    site = configured.name,
                    origin = configured.origin,
                    "a site's origin is no URL; the site is not served"
                );
                continue;
            };
            let counters = metrics.site(&configured.name);
            let target = origins
                .target(configured, address, &counters)
                .map_err(|error| (configured.name.clone(), error))?;
            let site = Arc::new(Site {
                name: configured.name.as_str().into(),
                origins: SiteOrigins::single(target),
                origin_host: configured
                    .origin_host
                    .as_ref()
                    .and_then(|h| HeaderValue::from_str(h).ok()),
                cache: configured.cache.clone(),
                purge: configured.purge.clone(),
                counters,
                warned_ms: AtomicU64::new(0),
            });
            sites.by_name.insert(configured.name.clone(), site.clone());
            for host in &configured.hosts {
                if host == "*" {
                    sites.any.get_or_insert_with(|| site.clone());
                } else {
                    sites
                        .by_host
                        .entry(host.clone())
                        .or_insert_with(|| site.clone());
                }
            }
        }
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

    /// The site of a host in lower case, without port and trailing dot.
    pub(crate) fn of_host(&self, host: &str) -> Option<&Arc<Site>> {
        self.by_host.get(host).or(self.any.as_ref())
    }

    pub(crate) fn of_name(&self, name: &str) -> Option<&Arc<Site>> {
        self.by_name.get(name)
    }
}

/// What this node knows of purges that may cover what an earlier run stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// Perhaps not even all that its own copy of the journal has.
    Recalling,
    /// All that its copy has; control has not answered yet, nor failed to.
    Asking,
    /// All that its copy has; control answers, and more may come.
    Behind,
    /// All that its copy has; control does not answer.
    CutOff,
    /// All.
    CaughtUp,
}

/// See the module's words.
pub(crate) struct Edge {
    pub(crate) name: Arc<str>,
    /// `1.1 <name>`, the member that responses and requests carry in `Via`.
    pub(crate) via: HeaderValue,
    pub(crate) started_ms: u64,
    pub(crate) sites: ArcSwap<Sites>,
    /// What the workers' ways to origins share.
    pub(crate) origins: Origins,
    pub(crate) store: Arc<Store>,
    pub(crate) index: Index,
    pub(crate) forwards: Arc<Forwards>,
    pub(crate) clock: Clock,
    pub(crate) generations: Generations,
    pub(crate) changes: Changes,
    pub(crate) purge_relay: PurgeRelay,
    pub(crate) metrics: Arc<Metrics>,
    /// Refused and local answers count here, under no site's name.
    pub(crate) no_site: Arc<SiteCounters>,
    /// Whether the node wants clients.
    pub(crate) standing: Lifecycle,
    /// Whether every purge is known that an earlier run's responses may be covered by.
    pub(crate) is_caught_up: AtomicBool,
    /// The same with what is known where it is not so. Written by the journal alone.
    pub(crate) knowledge: watch::Sender<Knowledge>,
    pub(crate) connections: Arc<Connections>,
    /// Shared with each connection.
    pub(crate) clients: Arc<ClientLimits>,
    /// WebSockets of all sites together: each holds a file of those that are kept for origins and
    /// the disk.
    pub(crate) upgrades_max: u64,
    /// Larger bodies are passed through, whatever a site says: the store could not hold them.
    pub(crate) body_bytes_max: u64,
}

impl Edge {
    /// What purges say of a stored response; one of an earlier run is not used before all purges
    /// are known.
    pub(crate) fn is_usable_unvalidated(&self, response: &StoredResponse) -> bool {
        !response.is_recovered || self.is_caught_up.load(Ordering::Acquire)
    }

    /// Puts a response into the index; what it replaces lets go of its slices.
    pub(crate) fn publish(
        &self,
        response: &Arc<StoredResponse>,
        replaces: impl Fn(&StoredResponse) -> bool,
    ) {
        self.store
            .account_head(&response.content.body, response.bytes());
        for left in self
            .index
            .insert(response.clone(), replaces)
            .into_iter()
            .chain(self.index.shed())
        {
            left.go();
            if !Arc::ptr_eq(&left.content, &response.content) {
                left.content.discard();
            }
        }
    }

    /// Takes a response out of the index and lets its slices go.
    pub(crate) fn unpublish(&self, response: &StoredResponse) {
        response.go();
        response.content.discard();
        self.index
            .remove(response.hash, |r| std::ptr::eq(r, response));
    }
}

/// What one worker thread has of its own.
pub(crate) struct Worker {
    pub(crate) number: usize,
    pub(crate) edge: Arc<Edge>,
    pub(crate) origins: Arc<OriginPool>,
    /// For the many requests that have none of some kind.
    pub(crate) no_fields: Arc<HeaderMap>,
    round_trips: Mutex<RoundTrips>,
    popularity: Mutex<Popularity>,
}

impl Worker {
    pub(crate) fn new(number: usize, edge: Arc<Edge>, origins: Arc<OriginPool>) -> Arc<Self> {
        Arc::new(Self {
            number,
            edge,
            origins,
            no_fields: Arc::default(),
            round_trips: Mutex::default(),
            popularity: Mutex::default(),
        })
    }

    pub(crate) fn note_round_trip(&self, client: IpAddr, round_trip: Duration) {
        self.round_trips
            .lock()
            .expect("no holder of this lock panics")
            .note(client, round_trip);
    }

    pub(crate) fn take_round_trips(&self) -> RoundTrips {
        std::mem::take(
            &mut *self
                .round_trips
                .lock()
                .expect("no holder of this lock panics"),
        )
    }

    /// Notes a request; the lock is contended for by nobody but the reporter, once an interval.
    pub(crate) fn note_request(
        &self,
        hash: u128,
        site: &Arc<str>,
        url: &Arc<str>,
        bytes: u64,
        size: u64,
    ) {
        self.popularity
            .lock()
            .expect("no holder of this lock panics")
            .note(hash, site, url, bytes, size);
    }

    pub(crate) fn note_sent(&self, hash: u128, bytes: u64) {
        self.popularity
            .lock()
            .expect("no holder of this lock panics")
            .sent(hash, bytes);
    }

    pub(crate) fn take_popularity(&self) -> Popularity {
        std::mem::take(
            &mut *self
                .popularity
                .lock()
                .expect("no holder of this lock panics"),
        )
    }
}

/// Milliseconds after the Unix epoch, now.
pub(crate) fn now_ms() -> u64 {
    Clock::System.unix_ms()
}
