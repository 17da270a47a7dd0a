//! Forward requests that fill the store: one for everybody who wants the same (collapse), resumed after a cut,
//! and the ones for slices that a stored response lacks.
//!
//! A fill belongs to nobody: it runs as its own task and outlives the client that began it. Who waits learns the
//! outcome of the head, then reads from the store as bytes come. A response that may not be stored goes to the one
//! client that asked; the others are told at once, and for a while nobody waits in line for that key.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use http::header::{ETAG, IF_RANGE, RANGE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tokio::sync::{oneshot, watch};

use crate::content::{Content, Fill, FillWriter};
use crate::edge::{Edge, Site, Worker, now_ms};
use crate::index::HashedKey;
use crate::origin::{OriginBody, OriginError, OriginRequestBody, Target};
use crate::policy::freshness::{self, Exchange, Freshness, RequestFacts};
use crate::policy::range::{ByteRange, ContentRange};
use crate::policy::{conditional, reuse, vary};
use crate::purge::Verdict;
use crate::push::{self, Pacer};
use crate::response::{Facts, StoredResponse};
use crate::store::{Pool, SLICE_BYTES};

/// How often one fill is resumed without having got further.
const RESUMES_MAX: u32 = 3;
/// How long requests for a key whose response may not be stored do not wait for one another.
const UNSHARED_MS: u64 = 60_000;
/// Keys of that kind that are remembered.
const UNSHARED_MAX: usize = 65_536;
/// How often a fill looks whether the disk has caught up, and how long it waits for it at most.
const DISK_PAUSE: Duration = Duration::from_millis(10);
const DISK_PAUSES_MAX: u32 = 200;

const SLICE: u64 = SLICE_BYTES as u64;

/// What followers of a forward request are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// No head has come yet.
    Waiting,
    /// There is a stored response now: look again.
    Published,
    /// What came may not be shared: ask for yourself.
    Unshared,
    /// The origin failed, by itself or with a status of that class.
    Failed(OriginError),
}

type InFlight = DashMap<u128, Arc<watch::Sender<Told>>, std::hash::BuildHasherDefault<HashedKey>>;

/// Forward requests under way by key, and keys for which waiting is pointless.
#[derive(Debug, Default)]
pub(crate) struct Forwards {
    in_flight: InFlight,
    unshared: DashMap<u128, u64, std::hash::BuildHasherDefault<HashedKey>>,
}

/// What somebody who needs a forward request is to do.
pub(crate) enum Joined {
    /// Send it, and tell the others.
    Leader(Lead),
    /// Wait for the one that is under way.
    Follower(watch::Receiver<Told>),
    /// Send it for yourself alone.
    Alone,
}

impl Forwards {
    pub(crate) fn join(edge: &Arc<Edge>, hash: u128) -> Joined {
        let forwards = &edge.forwards;
        if !forwards.unshared.is_empty() && forwards.unshared.get(&hash).is_some_and(|until| *until > now_ms()) {
            return Joined::Alone;
        }
        match forwards.in_flight.entry(hash) {
            dashmap::Entry::Occupied(other) => Joined::Follower(other.get().subscribe()),
            dashmap::Entry::Vacant(free) => {
                let told = Arc::new(watch::channel(Told::Waiting).0);
                free.insert(told.clone());
                Joined::Leader(Lead { edge: edge.clone(), hash, told, is_over: false })
            }
        }
    }

    /// A lead only when nobody else has one.
    pub(crate) fn lead(edge: &Arc<Edge>, hash: u128) -> Option<Lead> {
        match Self::join(edge, hash) {
            Joined::Leader(lead) => Some(lead),
            Joined::Follower(_) | Joined::Alone => None,
        }
    }

    fn note_unshared(&self, hash: u128) {
        if self.unshared.len() >= UNSHARED_MAX {
            self.unshared.clear();
        }
        self.unshared.insert(hash, now_ms() + UNSHARED_MS);
    }

    /// Forward requests under way.
    pub(crate) fn len(&self) -> usize {
        self.in_flight.len()
    }
}

/// The duty to tell followers of one key. Dropped untold it sends them on their own way.
pub(crate) struct Lead {
    edge: Arc<Edge>,
    hash: u128,
    told: Arc<watch::Sender<Told>>,
    is_over: bool,
}

impl Lead {
    pub(crate) fn tell(mut self, told: Told) {
        self.end(told);
    }

    fn end(&mut self, told: Told) {
        self.is_over = true;
        match told {
            Told::Unshared => self.edge.forwards.note_unshared(self.hash),
            Told::Published => {
                self.edge.forwards.unshared.remove(&self.hash);
            }
            Told::Waiting | Told::Failed(_) => {}
        }
        self.edge.forwards.in_flight.remove(&self.hash);
        self.told.send_replace(told);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if !self.is_over {
            self.edge.forwards.in_flight.remove(&self.hash);
            self.told.send_replace(Told::Unshared);
        }
    }
}

/// How to ask the origin for one URL.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) worker: Arc<Worker>,
    pub(crate) site: Arc<Site>,
    /// The site's origin, or a node of the same cluster.
    pub(crate) target: Arc<Target>,
    pub(crate) path: PathAndQuery,
    /// Fields of every request to it; conditions and ranges come on top.
    pub(crate) fields: Arc<HeaderMap>,
    /// Whether that is a node: its bytes are not the origin's.
    pub(crate) is_peer: bool,
    /// What holds a push order's bytes back.
    pub(crate) pacer: Option<Arc<Pacer>>,
}

impl Source {
    pub(crate) async fn ask(&self, extra: HeaderMap) -> Result<Response<OriginBody>, OriginError> {
        let mut request = Request::new(OriginRequestBody::Empty);
        *request.method_mut() = Method::GET;
        *request.uri_mut() = self.path.clone().into();
        let mut fields = HeaderMap::clone(&self.fields);
        for (name, value) in &extra {
            fields.insert(name, value.clone());
        }
        *request.headers_mut() = fields;
        if !self.is_peer {
            self.site.counters.asked_origin(self.worker.number);
        }
        self.worker.origins.send(&self.target, request).await
    }

    async fn received(&self, bytes: usize) {
        let bytes = bytes as u64;
        if !self.is_peer {
            self.site.counters.received(self.worker.number, bytes);
        }
        if let Some(pacer) = &self.pacer {
            push::count(&self.worker, self.is_peer, bytes);
            pacer.pass(bytes).await;
        }
    }
}

/// A forward request that may fill the store.
pub(crate) struct Ask {
    pub(crate) source: Source,
    pub(crate) url: Arc<str>,
    pub(crate) hash: u128,
    /// The client's fields, for what may be stored and for `Vary`.
    pub(crate) client: Arc<HeaderMap>,
    /// To be validated rather than fetched.
    pub(crate) stale: Option<Arc<StoredResponse>>,
    /// Something stored may still serve when the origin fails: its 5xx must not take that one's place.
    pub(crate) has_stale: bool,
    /// Wanted bytes, when not all are: first and end.
    pub(crate) range: Option<(u64, Option<u64>)>,
    pub(crate) pool: Pool,
}

/// What the head of a forward request's response led to.
pub(crate) enum Led {
    /// To be read from the store as it comes. Not necessarily kept.
    Filling { response: Arc<StoredResponse>, fill: Arc<Fill>, is_stored: bool },
    /// What was stored is as good as new.
    Validated(Arc<StoredResponse>),
    /// For this client alone.
    Passing { head: http::response::Parts, body: OriginBody },
    /// Nothing.
    Failed(OriginError),
}

/// Sends a forward request as a task of its own.
pub(crate) fn start(ask: Ask, lead: Option<Lead>) -> oneshot::Receiver<Led> {
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let (led, to_followers) = follow_head(ask).await;
        if let Some(lead) = lead {
            lead.tell(to_followers);
        }
        // Nobody waits for a validation in the background.
        let _ = tell.send(led);
    });
    told
}

async fn follow_head(mut ask: Ask) -> (Led, Told) {
    loop {
        let requested_ms = now_ms();
        let born = ask.source.worker.edge.generations.revision();
        let extra = match (&ask.stale, ask.range) {
            (Some(stale), _) => {
                let mut conditions = HeaderMap::with_capacity(2);
                conditional::set_validation(&mut conditions, [&stale.fields]);
                conditions
            }
            (None, Some((first, end))) => range_field(first / SLICE * SLICE, end.map(|e| e.next_multiple_of(SLICE))),
            (None, None) => HeaderMap::new(),
        };
        let response = match ask.source.ask(extra).await {
            Ok(response) => response,
            Err(error) => return (Led::Failed(error), Told::Failed(error)),
        };
        let exchange = Exchange { requested_ms, received_ms: now_ms() };
        // A node that has not folded a purge yet may give what that covers.
        let born = if ask.source.is_peer { born.min(revision(response.headers())) } else { born };
        if response.status() == StatusCode::NOT_MODIFIED
            && let Some(stale) = ask.stale.take()
        {
            match freshen(&ask, &stale, response.headers(), exchange, born) {
                Some(fresh) => return (Led::Validated(fresh), Told::Published),
                // A validator that nobody knows: ask for all of it.
                None => continue,
            }
        }
        return take(&ask, response, exchange, born);
    }
}

/// The field by which a node tells a peer up to which journal revision its answer is clean.
pub(crate) const REVISION: HeaderName = HeaderName::from_static("nearcast-revision");

/// The revision that a peer named, 0 when it named none.
fn revision(fields: &HeaderMap) -> u64 {
    fields.get(&REVISION).and_then(|v| v.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// A 304 that names the stored response: it is as good as new, with the fields of the 304.
fn freshen(ask: &Ask, stale: &Arc<StoredResponse>, fields: &HeaderMap, exchange: Exchange, born: u64) -> Option<Arc<StoredResponse>> {
    let edge = &ask.source.worker.edge;
    let policy = &ask.source.site.cache;
    if !conditional::is_confirmed(&stale.fields, fields, true) {
        return None;
    }
    let fields = conditional::freshened(&stale.fields, fields, exchange.received_ms);
    let request = RequestFacts { method: &Method::GET, fields: &ask.client };
    let may_stay = matches!(freshness::judge(request, stale.status, &fields, policy, exchange), freshness::Verdict::Store(_));
    let facts = Facts {
        url: stale.url.clone(),
        hash: stale.hash,
        site: stale.site.clone(),
        status: stale.status,
        freshness: Freshness::of(stale.status, &fields, policy, exchange),
        // The 304 may have changed what it varies on.
        selecting: vary::selecting(&ask.client, &fields),
        fields,
        requested_ms: exchange.requested_ms,
        born,
        is_soft: false,
        is_recovered: false,
    };
    let fresh = facts.store(stale.content.clone());
    if !may_stay {
        edge.unpublish(stale);
        return Some(fresh);
    }
    edge.publish(&fresh, |r| Arc::ptr_eq(&r.content, &stale.content));
    edge.store.put_head(&fresh.content.body, fresh.encode());
    Some(fresh)
}

fn take(ask: &Ask, response: Response<OriginBody>, exchange: Exchange, born: u64) -> (Led, Told) {
    let (head, body) = response.into_parts();
    let site = &ask.source.site;
    if reuse::is_error(head.status) && ask.has_stale {
        return (Led::Passing { head, body }, Told::Failed(OriginError::Unfit));
    }
    let strong_tag = conditional::strong_tag(&head.headers).cloned();
    let (part, length) = match (head.status, ContentRange::of(&head.headers)) {
        // A part counts when it was asked for, begins with a slice and tells the complete length.
        (StatusCode::PARTIAL_CONTENT, Some(ContentRange::Bytes { range, complete: Some(complete) }))
            if ask.range.is_some() && range.first % SLICE == 0 =>
        {
            (Some(range), Some(complete))
        }
        (StatusCode::PARTIAL_CONTENT, _) => return (Led::Passing { head, body }, Told::Unshared),
        _ => (None, body.length()),
    };
    let request = RequestFacts { method: &Method::GET, fields: &ask.client };
    // A part is judged, and stored, as what it is a part of.
    let status = if part.is_some() { StatusCode::OK } else { head.status };
    let verdict = freshness::judge(request, status, &head.headers, &site.cache, exchange);
    let most = site.cache.body_bytes_max.0.min(ask.source.worker.edge.body_bytes_max);
    let is_storable = matches!(verdict, freshness::Verdict::Store(_)) && length.is_none_or(|length| length <= most);
    if !is_storable && part.is_none() {
        return (Led::Passing { head, body }, Told::Unshared);
    }
    let is_stored = is_storable && (part.is_none() || strong_tag.is_some());
    begin(ask, (status, &head.headers), body, (part, length, strong_tag), exchange, born, is_stored)
}

type Extent = (Option<ByteRange>, Option<u64>, Option<HeaderValue>);

fn begin(
    ask: &Ask,
    (status, fields): (StatusCode, &HeaderMap),
    body: OriginBody,
    (part, length, strong_tag): Extent,
    exchange: Exchange,
    born: u64,
    is_stored: bool,
) -> (Led, Told) {
    let edge = &ask.source.worker.edge;
    let mut stored = conditional::stored_fields(fields, exchange.received_ms);
    stored.remove(&REVISION);
    let facts = Facts {
        url: ask.url.clone(),
        hash: ask.hash,
        site: ask.source.site.name.clone(),
        status,
        freshness: Freshness::of(status, &stored, &ask.source.site.cache, exchange),
        selecting: vary::selecting(&ask.client, fields),
        fields: stored,
        requested_ms: exchange.requested_ms,
        born,
        is_soft: false,
        is_recovered: false,
    };
    let content = Content::new(edge.store.clone(), edge.store.new_body(ask.hash, ask.pool), length, strong_tag);
    let response = facts.store(content.clone());
    let (first, end) = part.map_or((0, length), |range| (range.first, Some(range.end())));
    let fill = content.begin_fill(first, end);
    let writer = FillWriter::new(content.clone(), fill.clone(), ask.pool == Pool::Pushed);
    // A purge that came since the request was sent covers it already.
    let is_stored = is_stored && response.verdict(&edge.generations) == Verdict::Clean;
    if is_stored {
        edge.forwards.unshared.remove(&ask.hash);
        edge.publish(&response, |r| r.is_same_variant(&response));
        if part.is_some() {
            edge.store.put_head(&content.body, response.encode());
        }
    } else {
        content.discard();
    }
    let pump = Pump { source: ask.source.clone(), writer, response: is_stored.then(|| response.clone()), skip: 0 };
    tokio::spawn(pump.run(body));
    let told = if is_stored { Told::Published } else { Told::Unshared };
    (Led::Filling { response, fill, is_stored }, told)
}

/// Moves a body from the origin into a fill, through cuts.
struct Pump {
    source: Source,
    writer: FillWriter,
    /// What it is for, when that is stored.
    response: Option<Arc<StoredResponse>>,
    /// Bytes that come before the ones that are wanted.
    skip: u64,
}

impl Pump {
    async fn run(mut self, mut body: OriginBody) {
        let mut fruitless = 0;
        loop {
            let before = self.writer.at();
            let Err(error) = self.drain(&mut body).await else { return self.finish() };
            fruitless = if self.writer.at() > before { 0 } else { fruitless + 1 };
            if fruitless > RESUMES_MAX {
                return self.fail(error);
            }
            match self.resume().await {
                Some(next) => body = next,
                None => return self.fail(error),
            }
        }
    }

    async fn drain(&mut self, body: &mut OriginBody) -> Result<(), OriginError> {
        let end = self.writer.fill().end();
        while let Some(mut bytes) = body.next().await? {
            self.source.received(bytes.len()).await;
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len() as u64);
                self.skip -= skipped;
                bytes = bytes.split_off(skipped as usize);
            }
            if let Some(end) = end {
                bytes.truncate((end - self.writer.at()).min(bytes.len() as u64) as usize);
            }
            self.writer.write(bytes);
            if end.is_some_and(|end| self.writer.at() >= end) && end != self.writer.content().length() {
                // A part, answered with more than was asked for.
                return Ok(());
            }
            self.check_size();
            if !self.writer.pace().await {
                return Err(OriginError::Incomplete);
            }
            self.wait_for_disk().await;
        }
        if end.is_some_and(|end| self.writer.at() < end) {
            return Err(OriginError::Incomplete);
        }
        Ok(())
    }

    /// A body without a length may turn out to be too large to be stored.
    fn check_size(&mut self) {
        let at = self.writer.at();
        let most = self.source.site.cache.body_bytes_max.0.min(self.source.worker.edge.body_bytes_max);
        if at > most && !self.writer.is_relay() {
            if let Some(response) = self.response.take() {
                self.source.worker.edge.unpublish(&response);
            }
            self.writer.relay();
        }
    }

    /// A disk that is behind slows the fill for a while, rather than that slices get lost.
    async fn wait_for_disk(&self) {
        for _ in 0..DISK_PAUSES_MAX {
            if self.writer.write_room() > 2 * SLICE {
                return;
            }
            tokio::time::sleep(DISK_PAUSE).await;
        }
    }

    /// Asks for the rest of the same representation.
    async fn resume(&mut self) -> Option<OriginBody> {
        let content = self.writer.content();
        let tag = content.strong_tag.clone()?;
        if self.writer.is_relay() {
            return None;
        }
        let at = self.writer.at();
        let mut extra = range_field(at, self.writer.fill().end());
        extra.insert(IF_RANGE, tag);
        let response = self.source.ask(extra).await.ok()?;
        match fits(content, &response, at) {
            Some(skip) => {
                self.skip = skip;
                Some(response.into_body())
            }
            None => None,
        }
    }

    fn finish(self) {
        let Self { source, writer, response, .. } = self;
        let edge = source.worker.edge.clone();
        let content = writer.content().clone();
        if writer.fill().end().is_none() {
            content.learn_length(writer.at());
        }
        let is_part = writer.fill().end() != content.length() && writer.fill().end().is_some();
        writer.finish();
        if let Some(response) = response
            && !is_part
        {
            edge.store.account_head(&content.body, response.bytes());
            edge.store.put_head(&content.body, response.encode());
        }
    }

    fn fail(self, error: OriginError) {
        let Self { source, writer, response, .. } = self;
        tracing::debug!(site = %source.site.name, path = %source.path, %error, "a fill ended early");
        let content = writer.content().clone();
        // Whole slices of a representation that can be named are as good as any; others are nothing.
        let is_resumable = content.strong_tag.is_some() && content.length().is_some();
        if let Some(response) = response {
            if is_resumable {
                source.worker.edge.store.put_head(&content.body, response.encode());
            } else {
                source.worker.edge.unpublish(&response);
            }
        }
        writer.fail(error);
    }
}

/// Whether a response continues `content` at `at`; then how many of its bytes come before that.
fn fits(content: &Content, response: &Response<OriginBody>, at: u64) -> Option<u64> {
    let own = content.strong_tag.as_ref()?;
    let has_same = conditional::strong_tag(response.headers()) == Some(own);
    match (response.status(), ContentRange::of(response.headers())) {
        (StatusCode::PARTIAL_CONTENT, Some(ContentRange::Bytes { range, complete })) => {
            // `If-Range` speaks for a part that names no tag.
            let is_same = has_same || !response.headers().contains_key(ETAG);
            let is_as_long = complete.is_none_or(|l| content.length().is_none_or(|known| known == l));
            (is_same && is_as_long && range.first <= at).then(|| at - range.first)
        }
        (StatusCode::OK, _) if has_same => Some(at),
        _ => None,
    }
}

/// Sees to it that the slice at `at` comes, with the missing ones after it up to `end`.
///
/// # Errors
/// [`OriginError::Unfit`] when the origin has another representation by now.
pub(crate) async fn refill(source: &Source, response: &Arc<StoredResponse>, at: u64, end: u64, pool: Pool) -> Result<(), OriginError> {
    let content = response.content.clone();
    let Some(tag) = content.strong_tag.clone() else { return Err(OriginError::Unfit) };
    let Some(fill) = content.begin_fill_of_missing(at, end) else { return Ok(()) };
    let (first, end) = (fill.at(), fill.end());
    let writer = FillWriter::new(content.clone(), fill, pool == Pool::Pushed);
    let (tell, told) = oneshot::channel();
    let source = source.clone();
    tokio::spawn(async move {
        let mut extra = range_field(first, end);
        extra.insert(IF_RANGE, tag);
        let outcome = match source.ask(extra).await {
            Ok(response) => fits(&content, &response, first).map(|skip| (skip, response)).ok_or(OriginError::Unfit),
            Err(error) => Err(error),
        };
        match outcome {
            Ok((skip, response)) => {
                let _ = tell.send(Ok(()));
                Pump { source, writer, response: None, skip }.run(response.into_body()).await;
            }
            Err(error) => {
                writer.fail(error);
                let _ = tell.send(Err(error));
            }
        }
    });
    told.await.unwrap_or(Err(OriginError::Terminated))
}

/// `Range` for bytes from `first` up to `end`.
fn range_field(first: u64, end: Option<u64>) -> HeaderMap {
    let text = match end {
        Some(end) => format!("bytes={first}-{}", end.saturating_sub(1)),
        None => format!("bytes={first}-"),
    };
    let mut fields = HeaderMap::new();
    fields.insert(RANGE, HeaderValue::try_from(text).expect("digits are valid in a field"));
    fields
}
