//! What the parts of one edge share: its sites, store, index and counters; and what each worker has
//! of its own.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderMap;
use nearcast_fleet::config::ClientLimits;
use nearcast_http_rules::forward::Via;
use nearcast_net::tls::HandshakeTurns;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::access_log::WorkerLog;
use crate::certificates::Certificates;
use crate::challenges::Challenges;
use crate::changes::Changes;
use crate::clock::Clock;
use crate::compress::Compressions;
use crate::forward::Forwards;
use crate::lifecycle::Lifecycle;
use crate::metrics::{Metrics, SiteCounters};
use crate::origin::{OriginPool, Origins};
use crate::popularity::Popularity;
use crate::proxies::ProxyCounters;
use crate::request::check::LastHosts;
use crate::request::purge_request::PurgeRelay;
use crate::rtt::RoundTrips;
use crate::serve::connections::Connections;
use crate::serve::handshake::{self, Handshakes};
use crate::serve::quic::Quic;
use crate::site::Sites;
use crate::stored::generations::Generations;
use crate::stored::index::Index;
use crate::stored::load::Loads;
use crate::stored::response::StoredResponse;
use nearcast_store::Store;

/// How much this node knows of the purges that may cover responses of an earlier run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// It is still reading its own copy of the journal.
    Recalling,
    /// All entries of its copy; control has neither answered nor failed yet.
    Asking,
    /// All entries of its copy; control answers, and more entries may come.
    Behind,
    /// All entries of its copy; control does not answer.
    CutOff,
    /// All entries.
    CaughtUp,
}

/// One edge.
pub(crate) struct Edge {
    pub(crate) name: Arc<str>,
    /// The members that responses and requests carry in `Via`.
    pub(crate) via: Via,
    pub(crate) started_ms: u64,
    pub(crate) sites: ArcSwap<Sites>,
    /// What all workers share of origins and peers.
    pub(crate) origins: Origins,
    pub(crate) store: Arc<Store>,
    pub(crate) index: Index,
    pub(crate) loads: Loads,
    pub(crate) forwards: Arc<Forwards>,
    pub(crate) compressions: Arc<Compressions>,
    pub(crate) clock: Clock,
    pub(crate) generations: Generations,
    pub(crate) changes: Changes,
    pub(crate) purge_relay: PurgeRelay,
    pub(crate) metrics: Arc<Metrics>,
    /// Counters of refused requests and of the edge's own responses, which belong to no site.
    pub(crate) no_site: Arc<SiteCounters>,
    /// Whether the node wants clients.
    pub(crate) lifecycle: Lifecycle,
    /// Whether all purges are known that may cover responses of an earlier run.
    pub(crate) is_caught_up: AtomicBool,
    /// The same with the state of the journal. Only the journal writes it.
    pub(crate) knowledge: watch::Sender<Knowledge>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) proxy_counters: ProxyCounters,
    /// What this node shows to clients that speak TLS.
    pub(crate) certificates: Arc<Certificates>,
    /// What authorities ask for before they issue certificates.
    pub(crate) challenges: Arc<Challenges>,
    pub(crate) handshakes: Handshakes,
    pub(crate) quic: Quic,
    /// Shared with each connection.
    pub(crate) clients: Arc<ClientLimits>,
    /// Most WebSockets of all sites together: each needs one of the files that are reserved for
    /// origins and the disk.
    pub(crate) upgrades_max: u64,
    /// Largest body that the store can hold, whatever a site allows. Larger ones are passed through.
    pub(crate) body_bytes_max: u64,
}

impl Edge {
    /// Whether a stored response may be used without validation. A response of an earlier run may
    /// not, until all purges are known, and one whose removal may have been lost never may.
    pub(crate) fn is_usable_unvalidated(&self, response: &StoredResponse) -> bool {
        if response.is_doubtful() {
            return false;
        }
        !response.is_recovered() || self.is_caught_up.load(Ordering::Acquire)
    }

    /// Adds a response to the index. The ones that it replaces release their slices.
    pub(crate) fn publish(
        &self,
        response: &Arc<StoredResponse>,
        replaces: impl Fn(&StoredResponse) -> bool,
    ) {
        let left = self.index.insert(response.clone(), replaces);
        self.hold(response, left);
    }

    /// Adds a response that was read from disk, unless it is there or a newer one is.
    pub(crate) fn publish_loaded(&self, response: &Arc<StoredResponse>) -> bool {
        let is_older = |r: &StoredResponse| r.received_ms() < response.received_ms();
        let inserted = self.index.insert_unless(
            response.clone(),
            |r| r.is_same_variant(response) && is_older(r),
            |r| r.has_body_of(response) || r.is_same_variant(response) && !is_older(r),
        );
        match inserted {
            Ok(left) => self.hold(response, left),
            Err(other) => {
                if !other.has_body_of(response) {
                    response.content.discard();
                }
                return false;
            }
        }
        true
    }

    /// Has a response in the index hold its place in memory, and those that have left it for it
    /// release theirs.
    fn hold(&self, response: &Arc<StoredResponse>, left: Vec<Arc<StoredResponse>>) {
        // After it can be found: from now on its body may be evicted, which removes it.
        self.store
            .account_head(&response.content.body, response.bytes());
        for left in left {
            left.retire();
            if !left.has_body_of(response) {
                left.content.discard();
            }
        }
    }

    /// Removes a response from the index and from the disk, and releases its slices.
    pub(crate) fn unpublish(&self, response: &StoredResponse) {
        response.retire();
        response.content.discard();
        let removed = self
            .index
            .remove(response.hash(), |r| r.has_body_of(response));
        for other in removed {
            other.retire();
            other.content.discard();
        }
    }
}

/// What one worker thread has of its own.
pub(crate) struct Worker {
    pub(crate) number: usize,
    pub(crate) edge: Arc<Edge>,
    pub(crate) origins: Arc<OriginPool>,
    /// Shared by the many requests without fields of some kind.
    pub(crate) no_fields: Arc<HeaderMap>,
    /// Ids, newest requests, and lines for the access log.
    pub(crate) log: Arc<WorkerLog>,
    /// Handshakes take turns with the worker's other connections.
    pub(crate) turns: HandshakeTurns,
    round_trips: Mutex<RoundTrips>,
    popularity: Mutex<Popularity>,
    /// Hosts that its clients named last.
    pub(crate) last_hosts: Mutex<LastHosts>,
}

impl Worker {
    pub(crate) fn new(number: usize, edge: Arc<Edge>, origins: Arc<OriginPool>) -> Arc<Self> {
        Arc::new(Self {
            number,
            edge,
            origins,
            no_fields: Arc::default(),
            log: Arc::default(),
            turns: HandshakeTurns::new(handshake::TURNS),
            round_trips: Mutex::default(),
            popularity: Mutex::default(),
            last_hosts: Mutex::default(),
        })
    }

    pub(crate) fn note_round_trip(&self, client: IpAddr, round_trip: Duration) {
        self.round_trips.lock().note(client, round_trip);
    }

    pub(crate) fn take_round_trips(&self) -> RoundTrips {
        std::mem::take(&mut *self.round_trips.lock())
    }

    /// Notes a request. Only the reporter contends for the lock, once an interval.
    pub(crate) fn note_request(
        &self,
        hash: u128,
        site: &Arc<str>,
        url: &str,
        bytes: u64,
        size: u64,
    ) {
        self.popularity.lock().note(hash, site, url, bytes, size);
    }

    pub(crate) fn note_sent(&self, hash: u128, bytes: u64) {
        self.popularity.lock().sent(hash, bytes);
    }

    pub(crate) fn take_popularity(&self) -> Popularity {
        std::mem::take(&mut *self.popularity.lock())
    }
}
