//! Push orders: filling the node with what its cluster will want, before anybody asks.
//!
//! For each URL one node of the cluster, the owner, asks the origin; the others ask the owner, so
//! that the origin gives each about once. What lies whole in the pushed share of the disk is left
//! alone when it stays fresh until the order says, and validated otherwise; the rest is fetched
//! into that share, also what clients have pulled: that may be evicted before it is wanted. What an
//! order names stays on disk until the next order. Slower than the order's rate by design, never
//! faster; a newer order replaces the one that runs. When an order's time is over everything stops
//! at once; whole slices stay, and the next order that names the URL has the others fetched.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::{HOST, VIA};
use http::uri::PathAndQuery;
use http::{HeaderMap, StatusCode};
use nearcast_fleet::config::Fleet;
use nearcast_fleet::journal::{PushItem, PushOrder};
use nearcast_fleet::report::FillProgress;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::content::FillState;
use crate::edge::{Site, Worker, now_ms};
use crate::forward::{
    FollowerStep, ForwardRequest, Forwarded, Join, OriginRequest, Pacer, Requester, refill,
};
use crate::origin::{OriginError, Target};
use crate::peer::{self, owner};
use crate::purge::{Verdict, canonical_url};
use crate::request::hit;
use crate::response::StoredResponse;
use crate::store::{Pool, SLICE_BYTES, StoredBody};
use nearcast_http_rules::freshness::NotStored;
use nearcast_http_rules::key;

/// Items of one order that are fetched side by side.
const ITEMS_AT_ONCE: usize = 4;
/// How often an owner is asked for what it does not have yet, and how long apart.
const OWNER_TRIES_MAX: u32 = 10;
const OWNER_PAUSE: Duration = Duration::from_millis(500);
/// Orders whose progress is kept for reports.
const ORDERS_KEPT: usize = 16;
/// Reasons of failures kept of one order.
const REASONS_MAX: usize = 8;

/// How far push orders are. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pushes(Arc<Mutex<VecDeque<Known>>>);

/// An order with what came for it, which is counted as it comes.
#[derive(Debug)]
struct Known {
    progress: FillProgress,
    pacer: Arc<Pacer>,
}

impl Pushes {
    /// Progress of the orders known, oldest first.
    pub(crate) fn progress(&self) -> Vec<FillProgress> {
        let counted = |Known { progress, pacer }: &Known| FillProgress {
            origin_bytes: pacer.origin_bytes(),
            peer_bytes: pacer.peer_bytes(),
            ..progress.clone()
        };
        self.0
            .lock()
            .expect("no holder of this lock panics")
            .iter()
            .map(counted)
            .collect()
    }

    fn begin(&self, order: &PushOrder, pacer: Arc<Pacer>) {
        let mut known = self.0.lock().expect("no holder of this lock panics");
        known.retain(|k| k.progress.order != order.id);
        let progress = FillProgress {
            order: order.id.clone(),
            items: order.items.len() as u64,
            ..FillProgress::default()
        };
        known.push_back(Known { progress, pacer });
        while known.len() > ORDERS_KEPT {
            known.pop_front();
        }
    }

    fn note(&self, order: &str, change: impl FnOnce(&mut FillProgress)) {
        let mut known = self.0.lock().expect("no holder of this lock panics");
        if let Some(known) = known.iter_mut().find(|k| k.progress.order == order) {
            change(&mut known.progress);
        }
    }

    fn end(&self, order: &str, reason: Option<&str>) {
        self.note(order, |progress| {
            progress.ended = true;
            progress.unfinished = progress
                .items
                .saturating_sub(progress.already_warm + progress.warmed + progress.failed);
            progress.ended_unix_ms = now_ms();
            if let Some(reason) = reason {
                add_reason(progress, reason);
            }
        });
    }
}

fn add_reason(progress: &mut FillProgress, reason: &str) {
    if progress.reasons.len() < REASONS_MAX && !progress.reasons.iter().any(|r| r == reason) {
        progress.reasons.push(reason.to_owned());
    }
}

/// Carries out orders as they come, the newest one only, until there are no more.
pub(crate) async fn run(
    worker: Arc<Worker>,
    fleet: watch::Receiver<Arc<Fleet>>,
    mut orders: mpsc::Receiver<PushOrder>,
    pushes: Pushes,
) {
    let node = &*worker.edge.name;
    let mut next = next_own(&fleet, node, &mut orders).await;
    while let Some(order) = next {
        let now = fleet.borrow().clone();
        let left = Duration::from_millis(order.not_after_unix_ms.saturating_sub(now_ms()));
        let nodes = now
            .edge(node)
            .map_or(1, |(cluster, _)| cluster.nodes.len().max(1)) as u64;
        let pacer = Arc::new(Pacer::new((order.rate_bytes / nodes).max(1)));
        pushes.begin(&order, pacer.clone());
        let id = order.id.clone();
        tracing::info!(order = id, items = order.items.len(), "a push order begins");
        let reason = tokio::select! {
            biased;
            newer = next_own(&fleet, node, &mut orders) => {
                next = newer;
                Some("replaced by a newer order")
            }
            done = tokio::time::timeout(left, carry_out(&worker, &now, &order, &pushes, &pacer)) => {
                next = None;
                done.is_err().then_some("its time was over")
            }
        };
        // Its fills are tasks of their own.
        pacer.stop();
        pushes.end(&id, reason);
        if next.is_none() {
            next = next_own(&fleet, node, &mut orders).await;
        }
    }
}

/// The next order for this node's cluster whose time is not over: one that is handed out again
/// after a restart, or was missed, leaves nothing to do, and other clusters' orders do not disturb
/// the one that runs.
async fn next_own(
    fleet: &watch::Receiver<Arc<Fleet>>,
    node: &str,
    orders: &mut mpsc::Receiver<PushOrder>,
) -> Option<PushOrder> {
    loop {
        let order = orders.recv().await?;
        let is_own = fleet
            .borrow()
            .edge(node)
            .is_some_and(|(cluster, _)| cluster.name == order.cluster);
        if is_own && order.not_after_unix_ms > now_ms() {
            return Some(order);
        }
    }
}

async fn carry_out(
    worker: &Arc<Worker>,
    fleet: &Arc<Fleet>,
    order: &PushOrder,
    pushes: &Pushes,
    pacer: &Arc<Pacer>,
) {
    let Some((cluster, _)) = fleet.edge(&worker.edge.name) else {
        return;
    };
    let filler = Filler {
        worker: worker.clone(),
        fleet: fleet.clone(),
        pacer: pacer.clone(),
        fresh_until_ms: order.fresh_until_unix_ms,
    };
    let is_own =
        |item: &&PushItem| owner(cluster, &item.url).is_none_or(|node| *node == *worker.edge.name);
    let store = &worker.edge.store;
    store.wish_anew();
    // Also what lies there in part.
    let there = order
        .items
        .iter()
        .filter_map(|item| pushed(worker, &canonical_url(&item.url), |_| true));
    there.for_each(|response| store.want(&response.content.body));
    // Own items first: the others can be had from their owners by then.
    let (own, others): (Vec<_>, Vec<_>) = order.items.iter().partition(is_own);
    // Dropped with this future, and its tasks with it.
    let mut running = tokio::task::JoinSet::new();
    for item in own.into_iter().chain(others) {
        if running.len() >= ITEMS_AT_ONCE {
            let _ = running.join_next().await;
        }
        let (filler, item, id, pushes) = (
            filler.clone(),
            item.clone(),
            order.id.clone(),
            pushes.clone(),
        );
        running.spawn(async move {
            let outcome = filler.fill(&item).await;
            pushes.note(&id, |progress| outcome.add_to(progress, &item));
        });
    }
    while running.join_next().await.is_some() {}
}

/// What every item of an order needs.
#[derive(Clone)]
struct Filler {
    worker: Arc<Worker>,
    fleet: Arc<Fleet>,
    pacer: Arc<Pacer>,
    /// Until when an item has to stay fresh to be left alone.
    fresh_until_ms: u64,
}

/// How one item ended.
enum Filled {
    AlreadyWarm(u64),
    Warmed,
    Failed(String),
}

impl Filled {
    fn add_to(self, progress: &mut FillProgress, item: &PushItem) {
        match self {
            Self::AlreadyWarm(bytes) => {
                progress.already_warm += 1;
                progress.already_warm_bytes += bytes;
            }
            Self::Warmed => progress.warmed += 1,
            Self::Failed(reason) => {
                progress.failed += 1;
                add_reason(progress, &format!("{}: {reason}", item.url));
            }
        }
    }
}

impl Filler {
    async fn fill(&self, item: &PushItem) -> Filled {
        let worker = &self.worker;
        let url = canonical_url(&item.url);
        let Some(site) = worker.edge.sites.load().of_name(&item.site).cloned() else {
            return Filled::Failed("no such site".to_owned());
        };
        if let Some(kept) = kept(worker, &url) {
            if self.needs_nothing(&kept) {
                return Filled::AlreadyWarm(kept.content.length().unwrap_or(0));
            }
            return match self.fetch(item, &site, &url, Some(&kept)).await {
                // Validated: it is what it was, and as fresh as its origin makes it.
                Filled::Warmed if kept_in(worker, &url, &kept.content.body) => {
                    Filled::AlreadyWarm(kept.content.length().unwrap_or(0))
                }
                filled => filled,
            };
        }
        // What an earlier order has brought a part of, perhaps as its time was over.
        let Some(part) = pushed(worker, &url, is_joinable) else {
            return self.fetch(item, &site, &url, None).await;
        };
        if !self.needs_nothing(&part) {
            match self.fetch(item, &site, &url, Some(&part)).await {
                Filled::Warmed => {}
                failed => return failed,
            }
        }
        // Another one by now where the part was no good any more, and then a whole one.
        if kept(worker, &url).is_some() {
            return Filled::Warmed;
        }
        match pushed(worker, &url, is_joinable) {
            Some(part) if self.complete(item, &site, &url, &part).await => Filled::Warmed,
            _ => self.fetch(item, &site, &url, None).await,
        }
    }

    /// Whether what is there need not be validated.
    fn needs_nothing(&self, response: &StoredResponse) -> bool {
        let until_ms = self.fresh_until_ms.max(now_ms());
        hit::is_usable_until(&self.worker.edge, response, until_ms)
    }

    /// Fetches the slices that a response lacks. `false` when it is not whole after that.
    async fn complete(
        &self,
        item: &PushItem,
        site: &Arc<Site>,
        url: &str,
        part: &Arc<StoredResponse>,
    ) -> bool {
        let worker = &self.worker;
        let (Some(length), Ok(path)) = (part.content.length(), path_of(url)) else {
            return false;
        };
        let source = |target: Arc<Target>, fields: HeaderMap, is_peer: bool| {
            self.source(site, target, &path, fields, is_peer)
        };
        let peer = self.peer(item).map(|target| {
            source(
                target,
                peer::request_fields(&worker.edge, url, &self.fleet),
                true,
            )
        });
        let origin = source(
            self.origin_of(site, url),
            origin_fields(worker, site, url),
            false,
        );
        for source in peer.into_iter().chain([origin]) {
            let mut tries = 0;
            while let Some(at) = part.content.first_missing(0, length) {
                match refill::fetch_missing(&source, part, at, length, Pool::Pushed).await {
                    Ok(()) => {}
                    Err(OriginError::Unfit) => return false,
                    // It has not got that far.
                    Err(OriginError::Erred) if source.is_peer && tries < OWNER_TRIES_MAX => {
                        tries += 1;
                        tokio::time::sleep(OWNER_PAUSE).await;
                        continue;
                    }
                    Err(_) => break,
                }
                part.content.settled().await;
                if part
                    .content
                    .first_missing(0, length)
                    .is_some_and(|next| next <= at)
                {
                    break;
                }
            }
        }
        let is_whole = part.content.has(0, length);
        if is_whole {
            worker
                .edge
                .store
                .put_head(&part.content.body, part.encode());
        }
        is_whole
    }

    fn source(
        &self,
        site: &Arc<Site>,
        target: Arc<Target>,
        path: &PathAndQuery,
        fields: HeaderMap,
        is_peer: bool,
    ) -> OriginRequest {
        OriginRequest {
            worker: self.worker.clone(),
            site: site.clone(),
            target,
            path: path.clone(),
            fields: Arc::new(fields),
            is_peer,
            is_for_push: true,
            is_background: true,
            pacer: Some(self.pacer.clone()),
            interim: None,
        }
    }

    /// Fetches an item, or has `stale` validated.
    async fn fetch(
        &self,
        item: &PushItem,
        site: &Arc<Site>,
        url: &str,
        stale: Option<&Arc<StoredResponse>>,
    ) -> Filled {
        let worker = &self.worker;
        if let Some(target) = self.peer(item) {
            let fields = peer::request_fields(&worker.edge, url, &self.fleet);
            for attempt in 1..=OWNER_TRIES_MAX {
                match self
                    .fetch_from(site, url, (target.clone(), fields.clone(), true), stale)
                    .await
                {
                    Ok(()) => return Filled::Warmed,
                    // It has not got that far.
                    Err(Miss::Status(StatusCode::GATEWAY_TIMEOUT)) if attempt < OWNER_TRIES_MAX => {
                        tokio::time::sleep(OWNER_PAUSE).await
                    }
                    Err(_) => break,
                }
            }
        }
        let fields = origin_fields(worker, site, url);
        match self
            .fetch_from(site, url, (self.origin_of(site, url), fields, false), stale)
            .await
        {
            Ok(()) => Filled::Warmed,
            Err(miss) => Filled::Failed(miss.to_string()),
        }
    }

    async fn fetch_from(
        &self,
        site: &Arc<Site>,
        url: &str,
        (target, fields, is_peer): (Arc<Target>, HeaderMap, bool),
        stale: Option<&Arc<StoredResponse>>,
    ) -> Result<(), Miss> {
        let worker = &self.worker;
        let path = path_of(url)?;
        let hash = worker.edge.index.hash(url);
        let leader = match worker.edge.forwards.join(hash, Requester::default()) {
            Join::Leader(leader) => Some(leader),
            Join::Alone => None,
            Join::Follower(follower) => {
                // A client asks for it right now: it will be stored, if it can be.
                return if matches!(follower.wait().await, FollowerStep::LookUpStored) {
                    Ok(())
                } else {
                    Err(Miss::NotStored(NotStored::Unshared))
                };
            }
        };
        let request = ForwardRequest {
            origin: self.source(site, target, &path, fields, is_peer),
            url: url.into(),
            hash,
            client: Arc::default(),
            keyed: Arc::default(),
            requester: Requester::default(),
            stale: stale.cloned(),
            has_stale: stale.is_some(),
            range: None,
            pool: Pool::Pushed,
        };
        match request.spawn(leader).await {
            Ok(Forwarded::Filling {
                response,
                not_stored: Some(_),
                ..
            }) if !response.status.is_success() => Err(Miss::Status(response.status)),
            Ok(Forwarded::Filling {
                response,
                fill,
                not_stored,
                ..
            }) => match (fill.ended().await, not_stored) {
                // A client's seek may have cut it: others bring the rest then.
                (FillState::Done, None) => match response.content.settled().await {
                    true => Ok(()),
                    false => Err(Miss::Cut),
                },
                (FillState::Failed(error), _) => Err(Miss::Origin(error)),
                (FillState::Done, Some(cause)) => Err(Miss::NotStored(cause)),
                (FillState::Running, _) => Err(Miss::Cut),
            },
            Ok(Forwarded::Validated { .. }) => Ok(()),
            Ok(Forwarded::PassResponse {
                head, not_stored, ..
            }) if head.status.is_success() => Err(Miss::NotStored(not_stored)),
            Ok(Forwarded::PassResponse { head, .. }) => Err(Miss::Status(head.status)),
            Ok(Forwarded::Failed(error)) => Err(Miss::Origin(error)),
            Ok(Forwarded::PassRequest) | Err(_) => Err(Miss::NotStored(NotStored::Partial)),
        }
    }

    /// The site's origin for a URL.
    fn origin_of(&self, site: &Site, url: &str) -> Arc<Target> {
        let hash = self.worker.edge.index.hash(url);
        site.origins.pick(Instant::now(), hash).clone()
    }

    /// The owner of an item, when that is another node.
    fn peer(&self, item: &PushItem) -> Option<Arc<Target>> {
        let (cluster, _) = self.fleet.edge(&self.worker.edge.name)?;
        let name = owner(cluster, &item.url).filter(|name| *name != &*self.worker.edge.name)?;
        let node = cluster.nodes.iter().find(|n| n.name == name)?;
        Some(self.worker.edge.origins.peer(node.service))
    }
}

/// The stored response that a request without fields of its own would find, where it lies in the
/// pushed share and is as asked for.
fn pushed(
    worker: &Worker,
    url: &str,
    is_meant: impl Fn(&StoredResponse) -> bool,
) -> Option<Arc<StoredResponse>> {
    let edge = &worker.edge;
    let variants = edge.index.variants(edge.index.hash(url))?;
    let none = HeaderMap::new();
    let is_it = |r: &&Arc<StoredResponse>| {
        *r.url == *url
            && r.verdict(&edge.generations) != Verdict::Gone
            && r.is_selected(&none, &none)
            && r.content.body.pool() == Pool::Pushed
            && is_meant(r)
    };
    variants.iter().find(is_it).cloned()
}

/// The same when all of it lies there.
fn kept(worker: &Worker, url: &str) -> Option<Arc<StoredResponse>> {
    let store = &worker.edge.store;
    pushed(worker, url, |r| {
        let slices = r
            .content
            .length()
            .map(|length| length.div_ceil(SLICE_BYTES as u64) as u32);
        slices.is_some_and(|slices| (0..slices).all(|index| store.is_kept(&r.content.body, index)))
    })
}

/// Whether what lacks slices can be made whole.
fn is_joinable(response: &StoredResponse) -> bool {
    response.content.validator.is_some() && response.content.length().is_some()
}

fn path_of(url: &str) -> Result<PathAndQuery, Miss> {
    let path = url.splitn(4, '/').nth(3).unwrap_or_default();
    let path = PathAndQuery::try_from(format!("/{path}")).map_err(|_| Miss::Url)?;
    if key::ambiguity(path.as_str()).is_some() {
        Err(Miss::Ambiguous)
    } else {
        Ok(path)
    }
}

fn kept_in(worker: &Worker, url: &str, body: &StoredBody) -> bool {
    kept(worker, url).is_some_and(|r| r.content.body.id == body.id)
}

fn origin_fields(worker: &Worker, site: &Site, url: &str) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert(
        HOST,
        site.origin_host
            .clone()
            .unwrap_or_else(|| peer::host_field(url)),
    );
    fields.insert(VIA, worker.edge.via.clone());
    if let Some(id) = &worker.edge.sites.load().loop_id {
        fields.insert("cdn-loop", id.clone());
    }
    fields
}

#[derive(Debug, thiserror::Error)]
enum Miss {
    #[error("{0}")]
    Origin(OriginError),
    #[error("status {0}, which is not stored")]
    Status(StatusCode),
    #[error("not all of it came, or there was no room for it")]
    Cut,
    #[error("it may not be stored: {}", .0.as_str())]
    NotStored(NotStored),
    #[error("the URL is malformed")]
    Url,
    #[error(
        "what has a path like this is never stored: it has dot segments, a backslash, control characters or a broken escape"
    )]
    Ambiguous,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_reported_as_they_come_and_what_is_left_when_it_ends() {
        let items = vec![
            PushItem {
                site: "www".into(),
                url: "http://a/".into(),
                bytes: 100
            };
            3
        ];
        let order = PushOrder {
            id: "x".into(),
            cluster: "ams".into(),
            items,
            rate_bytes: 1,
            not_after_unix_ms: 0,
            fresh_until_unix_ms: 0,
        };
        let (pushes, pacer) = (Pushes::default(), Arc::new(Pacer::new(1)));
        pushes.begin(&order, pacer.clone());
        pacer.count(false, 70);
        pacer.count(true, 5);
        let progress = pushes.progress().remove(0);
        assert_eq!(
            (progress.origin_bytes, progress.peer_bytes, progress.ended),
            (70, 5, false)
        );
        pushes.note("x", |progress| {
            Filled::Warmed.add_to(progress, &order.items[0])
        });
        pacer.stop();
        // It waits for nothing any more.
        pacer.pass(1 << 40).await;
        pacer.count(false, 1);
        pushes.end("x", Some("its time was over"));
        let progress = pushes.progress().remove(0);
        assert_eq!(
            (
                progress.origin_bytes,
                progress.warmed,
                progress.unfinished,
                progress.ended
            ),
            (71, 1, 2, true)
        );
        assert_eq!(progress.reasons, ["its time was over"]);
    }

    #[test]
    fn reasons_are_few_and_different() {
        let mut progress = FillProgress::default();
        for n in 0..20 {
            add_reason(&mut progress, &format!("reason {}", n / 2));
        }
        assert_eq!(progress.reasons.len(), REASONS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn only_orders_of_the_own_cluster_that_are_not_over_count() {
        let mut file = "[fleet]\nzone = \"cdn.test\"\n".to_owned();
        for (name, address) in [("ams", "127.0.0.1"), ("nyc", "127.0.0.2")] {
            file += &format!(
                "[[cluster]]\nname = \"{name}\"\nplace = {{ latitude = 1.0, longitude = 1.0 }}\n"
            );
            file += &format!(
                "[[cluster.node]]\nname = \"{name}-1\"\naddress = \"{address}\"\nadmin = \"{address}:9100\"\n"
            );
        }
        file += "[[site]]\nname = \"www\"\nhosts = [\"www.test\"]\norigin = \"http://127.0.0.3\"\n";
        let fleet = nearcast_fleet::file::parse(&file, std::path::Path::new("/"))
            .expect("the file is good");
        let (_fleet_tx, fleet) = watch::channel(Arc::new(fleet));
        let (orders_tx, mut orders) = mpsc::channel(8);
        for (id, cluster, not_after_unix_ms) in [
            ("other", "nyc", u64::MAX),
            ("over", "ams", 1),
            ("own", "ams", u64::MAX),
            ("later", "nyc", u64::MAX),
        ] {
            let order = PushOrder {
                id: id.to_owned(),
                cluster: cluster.to_owned(),
                items: Vec::new(),
                rate_bytes: 1,
                not_after_unix_ms,
                fresh_until_unix_ms: 0,
            };
            orders_tx.send(order).await.expect("there is room");
        }
        let order = next_own(&fleet, "ams-1", &mut orders)
            .await
            .expect("an own order");
        assert_eq!(order.id, "own");
        // What waits for a newer one goes on waiting while others' orders come.
        let newer = tokio::time::timeout(
            Duration::from_secs(1),
            next_own(&fleet, "ams-1", &mut orders),
        )
        .await;
        assert!(
            newer.is_err(),
            "another cluster's order is taken for a newer one: {newer:?}"
        );
        drop(orders_tx);
        assert!(next_own(&fleet, "ams-1", &mut orders).await.is_none());
    }
}
