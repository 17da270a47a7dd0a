//! One item of a push order: from what the node has of it to a whole response in the pushed share.
//!
//! The owner of the item's URL asks the origin; the other nodes of the cluster ask the owner, which
//! may not have the item yet, and then the origin.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, StatusCode, Version};
use nearcast_fleet::change::PushItem;
use nearcast_fleet::config::Fleet;
use tokio::time::Instant;

use crate::body::{Fill, FillState};
use crate::edge::{Edge, Worker};
use crate::forward::{
    FollowerStep, ForwardRequest, Forwarded, Join, OriginRequest, Pacer, Requester, refill,
};
use crate::origin::{OriginError, Target};
use crate::peer;
use crate::request::hit;
use crate::request_id::X_REQUEST_ID;
use crate::site::Site;
use crate::stored::generations::PurgeState;
use crate::stored::index::Variants;
use crate::stored::load::load;
use crate::stored::response::StoredResponse;
use nearcast_http_rules::forward;
use nearcast_http_rules::key::{self, Key};
use nearcast_http_rules::not_stored::NotStored;
use nearcast_store::{Pool, SLICE_BYTES, StoredBody};

/// How often an owner is asked for an item that it does not have yet, and the pause in between.
const OWNER_TRIES_MAX: u32 = 10;
const OWNER_PAUSE: Duration = Duration::from_millis(500);

/// The parts of an order that each of its items needs.
#[derive(Clone)]
pub(super) struct ItemFiller {
    pub(super) worker: Arc<Worker>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) pacer: Arc<Pacer>,
    /// A stored response that stays fresh until then is not validated.
    pub(super) fresh_until_ms: u64,
}

/// How the filling of one item ended.
pub(super) enum ItemOutcome {
    /// All of it was stored before; with its bytes.
    AlreadyWarm(u64),
    Warmed,
    Failed(String),
}

impl ItemFiller {
    pub(super) async fn fill(&self, item: &PushItem) -> ItemOutcome {
        let Some(site) = self.worker.edge.sites.load().of_name(&item.site).cloned() else {
            return ItemOutcome::Failed("no such site".to_owned());
        };
        let url = match Key::of_url(&item.url) {
            Ok(key) => key.url.into_string(),
            Err(error) => return ItemOutcome::Failed(error.to_string()),
        };
        let path = match path_of(&url) {
            Ok(path) => path,
            Err(error) => return ItemOutcome::Failed(error.to_string()),
        };
        let filling = ItemFilling {
            filler: self,
            item,
            site,
            hash: self.worker.edge.index.hash(&url),
            url,
            path,
        };
        match filling.run().await {
            Ok(outcome) => outcome,
            Err(error) => ItemOutcome::Failed(error.to_string()),
        }
    }
}

/// One item that is being filled.
struct ItemFilling<'a> {
    filler: &'a ItemFiller,
    item: &'a PushItem,
    site: Arc<Site>,
    url: String,
    path: PathAndQuery,
    hash: u128,
}

impl ItemFilling<'_> {
    async fn run(&self) -> Result<ItemOutcome, FillError> {
        let worker = &self.filler.worker;
        if let Some(whole) = find_whole(worker, &self.url).await {
            let already_warm = ItemOutcome::AlreadyWarm(whole.content.length().unwrap_or(0));
            if self.is_fresh_enough(&whole) {
                return Ok(already_warm);
            }
            self.fetch(Some(&whole)).await?;
            // A validation keeps the body; otherwise the origin has sent another one.
            return match is_stored_as(worker, &self.url, &whole.content.body).await {
                true => Ok(already_warm),
                false => Ok(ItemOutcome::Warmed),
            };
        }

        // An earlier order may have ended before all slices were there.
        let Some(part) = find_pushed(worker, &self.url, is_joinable).await else {
            self.fetch(None).await?;
            return Ok(ItemOutcome::Warmed);
        };
        if !self.is_fresh_enough(&part) {
            self.fetch(Some(&part)).await?;
        }
        // Where the part was out of date, the validation has brought the whole.
        if find_whole(worker, &self.url).await.is_some() {
            return Ok(ItemOutcome::Warmed);
        }
        match find_pushed(worker, &self.url, is_joinable).await {
            Some(part) if self.complete(&part).await => {}
            _ => self.fetch(None).await?,
        }
        Ok(ItemOutcome::Warmed)
    }

    /// Whether a stored response can be used without validation until the order's time is over.
    fn is_fresh_enough(&self, response: &StoredResponse) -> bool {
        let edge = &self.filler.worker.edge;
        let until_ms = self.filler.fresh_until_ms.max(edge.clock.unix_ms());
        hit::is_usable_until(edge, response, until_ms)
    }

    /// Requests the slices that a stored response lacks. Whether it is whole then.
    async fn complete(&self, part: &Arc<StoredResponse>) -> bool {
        let Some(length) = part.content.length() else {
            return false;
        };
        for origin in self.to_owner().into_iter().chain([self.to_origin()]) {
            match self.complete_from(&origin, part, length).await {
                Ok(()) => {}
                Err(OriginError::Unfit) => return false,
                // The next one may send the slices.
                Err(_) => continue,
            }
        }
        let is_whole = part.content.has(0, length);
        if is_whole {
            part.write_head();
        }
        is_whole
    }

    /// Requests missing slices from one node or origin, until it brings no further ones.
    async fn complete_from(
        &self,
        origin: &OriginRequest,
        part: &Arc<StoredResponse>,
        length: u64,
    ) -> Result<(), OriginError> {
        let content = &part.content;
        let mut tries = 0;
        while let Some(at) = content.first_missing(0, length) {
            match refill::fetch_missing(origin, part, at, length, Pool::Pushed, None).await {
                // The owner does not have these slices yet.
                Err(OriginError::Erred) if origin.is_peer && tries < OWNER_TRIES_MAX => {
                    tries += 1;
                    tokio::time::sleep(OWNER_PAUSE).await;
                    continue;
                }
                answered => answered?,
            }
            content.fills_ended().await;
            let next = content.first_missing(0, length);
            if next.is_some_and(|next| next <= at) {
                break;
            }
        }
        Ok(())
    }

    /// Fetches the item, or validates `stale`: from the owner of its URL, else from the origin.
    async fn fetch(&self, stale: Option<&Arc<StoredResponse>>) -> Result<(), FillError> {
        if let Some(owner) = self.to_owner() {
            for attempt in 1..=OWNER_TRIES_MAX {
                match self.fetch_from(owner.clone(), stale).await {
                    Ok(()) => return Ok(()),
                    // The owner does not have the item yet.
                    Err(FillError::Status(StatusCode::GATEWAY_TIMEOUT))
                        if attempt < OWNER_TRIES_MAX =>
                    {
                        tokio::time::sleep(OWNER_PAUSE).await
                    }
                    Err(_) => break,
                }
            }
        }
        self.fetch_from(self.to_origin(), stale).await
    }

    async fn fetch_from(
        &self,
        origin: OriginRequest,
        stale: Option<&Arc<StoredResponse>>,
    ) -> Result<(), FillError> {
        let forwards = &self.filler.worker.edge.forwards;
        let leader = match forwards.join(self.hash, Requester::default()) {
            Join::Leader(leader) => Some(leader),
            Join::Alone => None,
            // A client requests the item now: its response is stored, if it may be.
            Join::Follower(follower) => {
                return match follower.wait().await {
                    FollowerStep::LookUpStored => Ok(()),
                    _ => Err(FillError::NotStored(NotStored::Unshared)),
                };
            }
        };
        let request = ForwardRequest {
            origin,
            url: self.url.as_str().into(),
            hash: self.hash,
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
                fill,
                not_stored,
                ..
            }) => is_filled(&response, &fill, not_stored).await,
            Ok(Forwarded::Validated { .. }) => Ok(()),
            Ok(Forwarded::PassResponse {
                head, not_stored, ..
            }) => Err(match head.status.is_success() {
                true => FillError::NotStored(not_stored),
                false => FillError::Status(head.status),
            }),
            Ok(Forwarded::Failed(error)) => Err(FillError::Origin(error)),
            Ok(Forwarded::PassRequest) | Err(_) => Err(FillError::NotStored(NotStored::Partial)),
        }
    }

    /// A request to the node that owns the item's URL; `None` where this node does.
    fn to_owner(&self) -> Option<OriginRequest> {
        let ItemFiller { worker, fleet, .. } = self.filler;
        let own_name = &*worker.edge.name;
        let (cluster, _) = fleet.edge(own_name)?;
        let owner = peer::owner(cluster, &self.item.url).filter(|name| *name != own_name)?;
        let node = cluster.nodes.iter().find(|node| node.name == owner)?;
        let target = worker.edge.origins.peer(node.service);
        let fields = peer::request_fields(&worker.edge, &self.url, fleet);
        Some(self.request_to(target, fields, true))
    }

    fn to_origin(&self) -> OriginRequest {
        let edge = &self.filler.worker.edge;
        let host = match &self.site.origin_host {
            Some(host) => host.clone(),
            None => peer::host_field(&self.url),
        };
        let sites = edge.sites.load();
        let fields = forward::without_client(
            host,
            edge.via.received(Version::HTTP_11),
            sites.loop_id.as_ref(),
            peer::scheme_of(&self.url),
        );
        let target = self.site.origins.pick(Instant::now(), self.hash).clone();
        self.request_to(target, fields, false)
    }

    fn request_to(
        &self,
        target: Arc<Target>,
        mut fields: HeaderMap,
        is_peer: bool,
    ) -> OriginRequest {
        let id = self.filler.worker.log.next_id();
        fields.insert(X_REQUEST_ID, id.to_field());
        OriginRequest {
            worker: self.filler.worker.clone(),
            site: self.site.clone(),
            target,
            path: self.path.clone(),
            fields: Arc::new(fields),
            is_peer,
            is_for_push: true,
            is_background: true,
            pacer: Some(self.filler.pacer.clone()),
            interim: None,
        }
    }
}

/// Waits for the end of a fill. `Ok` where all of it is stored then.
async fn is_filled(
    response: &StoredResponse,
    fill: &Fill,
    not_stored: Option<NotStored>,
) -> Result<(), FillError> {
    if not_stored.is_some() && !response.status.is_success() {
        return Err(FillError::Status(response.status));
    }
    match (fill.ended().await, not_stored) {
        // A client's seek may have taken slices over from the fill: wait for those as well.
        (FillState::Done, None) => match response.content.fills_ended().await {
            true => Ok(()),
            false => Err(FillError::Cut),
        },
        (FillState::Failed(error), _) => Err(FillError::Origin(error)),
        (FillState::Done, Some(cause)) => Err(FillError::NotStored(cause)),
        (FillState::Running, _) => Err(FillError::Cut),
    }
}

/// The stored response that a request without fields of its own selects, where it is in the pushed
/// share and `is_meant`.
pub(super) async fn find_pushed(
    worker: &Worker,
    url: &str,
    is_meant: impl Fn(&StoredResponse) -> bool,
) -> Option<Arc<StoredResponse>> {
    let edge = &worker.edge;
    let hash = edge.index.hash(url);
    let select = |variants: Variants| select_pushed(edge, url, &variants, &is_meant);
    let found = edge.index.variants(hash).and_then(select);
    match found {
        Some(found) => Some(found),
        None => load(edge, url, hash).await.and_then(select),
    }
}

fn select_pushed(
    edge: &Edge,
    url: &str,
    variants: &Variants,
    is_meant: &impl Fn(&StoredResponse) -> bool,
) -> Option<Arc<StoredResponse>> {
    let none = HeaderMap::new();
    let is_found = |r: &&Arc<StoredResponse>| {
        r.is_of(url)
            && r.purge_state(&edge.generations) != PurgeState::Gone
            && r.is_selected(&none, &none)
            && r.content.body.pool() == Pool::Pushed
            && is_meant(r)
    };
    variants.iter().find(is_found).cloned()
}

/// The same where all of its slices are in the pushed share.
async fn find_whole(worker: &Worker, url: &str) -> Option<Arc<StoredResponse>> {
    let store = &worker.edge.store;
    find_pushed(worker, url, |r| {
        let slices = r
            .content
            .length()
            .map(|length| length.div_ceil(SLICE_BYTES as u64) as u32);
        slices.is_some_and(|slices| (0..slices).all(|index| store.is_kept(&r.content.body, index)))
    })
    .await
}

async fn is_stored_as(worker: &Worker, url: &str, body: &StoredBody) -> bool {
    let whole = find_whole(worker, url).await;
    whole.is_some_and(|r| r.content.body.id == body.id)
}

/// Whether further slices can be joined to the ones of a response.
fn is_joinable(response: &StoredResponse) -> bool {
    response.content.has_validator() && response.content.length().is_some()
}

fn path_of(url: &str) -> Result<PathAndQuery, FillError> {
    let path = url.splitn(4, '/').nth(3).unwrap_or_default();
    let path = PathAndQuery::try_from(format!("/{path}")).map_err(|_| FillError::Url)?;
    match key::ambiguity(path.as_str()) {
        Some(_) => Err(FillError::Ambiguous),
        None => Ok(path),
    }
}

/// Why an item is not filled.
#[derive(Debug, thiserror::Error)]
enum FillError {
    #[error("{0}")]
    Origin(OriginError),
    #[error("status {0}, which is not stored")]
    Status(StatusCode),
    #[error("the body is incomplete, or the pushed share had no room for it")]
    Cut,
    #[error("the response may not be stored: {}", .0.as_str())]
    NotStored(NotStored),
    #[error("the URL is malformed")]
    Url,
    #[error(
        "responses for such a path are never stored: it has dot segments, a backslash, control characters or a broken escape"
    )]
    Ambiguous,
}
