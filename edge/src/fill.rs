//! Forward requests that fill the store: one for everybody who wants the same (collapse), resumed
//! after a cut, and the ones for slices that a stored response lacks.
//!
//! A fill belongs to nobody: it runs as its own task and outlives the client that began it, unless
//! nobody reads it any more and [`finish`](nearcast_http_rules::finish) finds too much left of it, or
//! there are so many that those without a reader have to end. Who waits learns the outcome of the
//! head, then reads from the store as bytes come. A response that may not be stored goes to the one
//! client that asked; the others are told at once, and for a while nobody waits in line for that
//! key. Requests with different [`Unusual`] fields never wait for one another, as what these bring
//! about is not shared. What came for one client's own sake (its cookie, range, credentials) sends
//! the others back, where one of them leads next. An error is shared by those who waited for it
//! with the same cookies and range, and by nobody after them: an origin in trouble is not asked
//! once for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use http::header::{AUTHORIZATION, COOKIE, IF_RANGE, RANGE, SET_COOKIE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use nearcast_fleet::config::CachePolicy;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::content::{Content, Fill, FillWriter};
use crate::edge::{Edge, Site, Worker, now_ms};
use crate::index::{HashedKey, Index};
use crate::interim::InterimSender;
use crate::origin::{OriginBody, OriginError, OriginRequestBody, Purpose, Target};
use crate::purge::Verdict;
use crate::push::Pacer;
use crate::response::{Facts, StoredResponse};
use crate::store::{Pool, SLICE_BYTES};
use nearcast_http_rules::conditional::StrongValidator;
use nearcast_http_rules::finish::Abandoned;
use nearcast_http_rules::freshness::{self, Exchange, Freshness, NotStored, RequestFacts};
use nearcast_http_rules::range::{self, ByteRange, ContentRange, Part, Spec};
use nearcast_http_rules::request_fields::{self, Unusual};
use nearcast_http_rules::{conditional, reuse, vary};

/// Bytes of an error that is given to those who wait for it as well. One that is larger, or may be
/// as its length is not known, goes to the one who asked, and the others get its status.
const SHARED_ERROR_BYTES_MAX: u64 = SLICE;
/// Bytes that a fill has at hand at most: the slice that comes, and the last few.
const FILL_BYTES: u64 = 3 * SLICE;
/// Fills under way beyond which those that nobody reads end: as many as fit into this part of what
/// the memory tier has, with a least and a most. Those that are read are bounded by the connections
/// of clients.
const FILLS_MEMORY_SHARE: u64 = 4;
const FILLS_MIN: u64 = 32;
const FILLS_MAX: u64 = 4096;
/// How long a fill may take to find its first reader where there are too many.
const UNREAD_MAX: Duration = Duration::from_secs(1);
/// How long nobody has read a fill when it counts as abandoned: those who waited for its head with
/// the client that left look for it in the index first.
const ABANDONED_AFTER: Duration = Duration::from_millis(100);
/// How often one fill is resumed without having got further.
const RESUMES_MAX: u32 = 3;
/// How long requests for a key whose response may not be stored do not wait for one another.
const UNSHARED_MS: u64 = 60_000;
/// Keys of that kind that are remembered.
const UNSHARED_MAX: usize = 65_536;
/// How long requests for ranges of a representation whose parts cannot be joined go to the origin
/// as the client made them.
const UNJOINABLE_MS: u64 = 60_000;
/// Keys of that kind that are remembered.
const UNJOINABLE_MAX: usize = 65_536;
/// Bytes of several ranges, of a body too large to be stored, that are put together here from
/// requests for their slices. More go to the origin as the client asked: nothing would hold such a
/// fill back to the client's pace.
const ASSEMBLED_BYTES_MAX: u64 = 16 * SLICE;
/// Length of the largest body whose slices can be numbered.
const NUMBERED_BYTES_MAX: u64 = u32::MAX as u64 * SLICE;
/// How often a fill looks whether the disk has caught up, and how long it waits for it at most.
const DISK_PAUSE: Duration = Duration::from_millis(10);
const DISK_PAUSES_MAX: u32 = 200;

const SLICE: u64 = SLICE_BYTES as u64;

/// What followers of a forward request are told.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    /// No head has come yet.
    Waiting,
    /// There is a stored response now: look again.
    Published,
    /// What came may not be shared: ask for yourself.
    Unshared,
    /// What came may be due to the cookie or credentials of the one who asked, or to fields that
    /// are too long: of those who wait the ones of the same kind ask for themselves, the others
    /// look again and ask together.
    Own,
    /// What came is for the range or the credentials of the one who asked: as [`Own`](Self::Own),
    /// and nothing to remember.
    Aside,
    /// There is nothing in the range of the one who asked: those of the same range ask for
    /// themselves, the others ask together.
    OutOfRange,
    /// What came is not there any more, as it was purged or changed meanwhile: look again, and ask
    /// together.
    AskAgain,
    /// The origin answered with an error, which is not stored; the answer itself where it may be
    /// given to others.
    Erred {
        status: StatusCode,
        cause: NotStored,
        answer: Option<(Arc<StoredResponse>, Arc<Fill>)>,
    },
    /// The origin failed.
    Failed(OriginError),
}

/// Waits for what followers are told.
pub(crate) async fn told(told: &mut watch::Receiver<Told>) -> Told {
    told.wait_for(|t| !matches!(t, Told::Waiting))
        .await
        .map_or(Told::Unshared, |t| t.clone())
}

/// What of a request tells it from others for the same URL, as far as they may share a forward
/// request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requester {
    /// Of the unusual fields and those that the site keys by. Requests that differ in it never wait
    /// for one another.
    group: u128,
    kind: RequestKind,
    /// Cookies, credentials and range: an error may be their fault.
    own: Vec<(HeaderName, HeaderValue)>,
}

/// By what an answer may be for one request alone, beside its unusual fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct RequestKind {
    has_credentials: bool,
    has_range: bool,
    is_oversized: bool,
}

impl RequestKind {
    /// Whether the answer says little about what others get.
    fn is_special(self) -> bool {
        self.has_credentials || self.is_oversized
    }

    /// Apart for each kind whose answers say little about those to others.
    fn bits(self) -> u128 {
        u128::from(self.has_credentials) << 127 | u128::from(self.is_oversized) << 126
    }
}

impl Requester {
    /// A client's request.
    pub(crate) fn of(
        index: &Index,
        client: &HeaderMap,
        unusual: &Unusual,
        keyed: &HeaderMap,
    ) -> Self {
        let own = [COOKIE, AUTHORIZATION, RANGE].into_iter();
        let mut apart = Vec::new();
        unusual.write(&mut apart);
        if !keyed.is_empty() {
            apart.extend_from_slice(b"\n");
            request_fields::write_fields(keyed.iter(), &mut apart);
        }
        Self {
            group: if apart.is_empty() {
                0
            } else {
                index.hash_of(&apart)
            },
            kind: RequestKind {
                has_credentials: client.contains_key(COOKIE) || client.contains_key(AUTHORIZATION),
                has_range: client.contains_key(RANGE),
                is_oversized: request_fields::is_oversized(client),
            },
            own: own
                .flat_map(|name| {
                    client
                        .get_all(&name)
                        .iter()
                        .map(move |value| (name.clone(), value.clone()))
                })
                .collect(),
        }
    }

    /// What those who waited are told of an answer that may not be shared.
    fn unshared(&self) -> Told {
        if self.kind.is_special() {
            Told::Own
        } else {
            Told::Unshared
        }
    }

    /// What requests of the same group under way are found by.
    fn flight(&self, hash: u128) -> u128 {
        hash ^ self.group
    }

    /// What it is remembered by that answers to such requests are not shared.
    fn memo(&self, hash: u128) -> u128 {
        hash ^ self.group ^ self.kind.bits()
    }
}

/// A forward request under way, as those see it who come after it.
#[derive(Debug)]
struct Flight {
    told: Arc<watch::Sender<Told>>,
    requester: Requester,
}

/// Forward requests under way by key, and keys for which waiting is pointless.
#[derive(Debug)]
pub(crate) struct Forwards {
    pub(crate) fills: FillsUnderWay,
    in_flight: DashMap<u128, Flight, std::hash::BuildHasherDefault<HashedKey>>,
    unshared: DashMap<u128, u64, std::hash::BuildHasherDefault<HashedKey>>,
    /// Keys whose parts cannot be joined, each with when that is to be looked at again.
    unjoinable: DashMap<u128, u64, std::hash::BuildHasherDefault<HashedKey>>,
}

/// What somebody who needs a forward request is to do.
pub(crate) enum Joined {
    /// Send it, and tell the others.
    Leader(Lead),
    /// Wait for the one that is under way. Its errors are this one's only when it is alike: of the
    /// same cookies, credentials and range.
    Follower {
        told: watch::Receiver<Told>,
        is_alike: bool,
        is_same_kind: bool,
    },
    /// Send it for yourself alone.
    Alone,
}

/// See [`FILLS_MEMORY_SHARE`].
#[derive(Debug)]
pub(crate) struct FillsUnderWay {
    most: usize,
    count: AtomicUsize,
    has_grown: Notify,
}

impl FillsUnderWay {
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn add(&self) {
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.has_grown.notify_waiters();
        }
    }

    fn are_too_many(&self) -> bool {
        self.count() > self.most
    }
}

impl Forwards {
    pub(crate) fn new(memory_bytes: u64) -> Self {
        let most =
            (memory_bytes / FILLS_MEMORY_SHARE / FILL_BYTES).clamp(FILLS_MIN, FILLS_MAX) as usize;
        let fills = FillsUnderWay {
            most,
            count: AtomicUsize::new(0),
            has_grown: Notify::new(),
        };
        Self {
            fills,
            in_flight: DashMap::default(),
            unshared: DashMap::default(),
            unjoinable: DashMap::default(),
        }
    }

    pub(crate) fn join(edge: &Arc<Edge>, hash: u128, requester: Requester) -> Joined {
        let forwards = &edge.forwards;
        let memo = requester.memo(hash);
        if !forwards.unshared.is_empty()
            && forwards
                .unshared
                .get(&memo)
                .is_some_and(|until| *until > now_ms())
        {
            return Joined::Alone;
        }
        let flight = requester.flight(hash);
        match forwards.in_flight.entry(flight) {
            dashmap::Entry::Occupied(other) => {
                let Flight {
                    told,
                    requester: first,
                } = other.get();
                Joined::Follower {
                    told: told.subscribe(),
                    is_alike: first.own == requester.own
                        && first.kind == requester.kind
                        && !requester.kind.is_oversized,
                    is_same_kind: first.kind == requester.kind,
                }
            }
            dashmap::Entry::Vacant(free) => {
                let told = Arc::new(watch::channel(Told::Waiting).0);
                free.insert(Flight {
                    told: told.clone(),
                    requester,
                });
                Joined::Leader(Lead {
                    edge: edge.clone(),
                    flight,
                    memo,
                    told,
                    is_over: false,
                })
            }
        }
    }

    /// A lead only when nobody else has one.
    pub(crate) fn lead(edge: &Arc<Edge>, hash: u128, requester: Requester) -> Option<Lead> {
        match Self::join(edge, hash, requester) {
            Joined::Leader(lead) => Some(lead),
            Joined::Follower { .. } | Joined::Alone => None,
        }
    }

    fn note_unshared(&self, memo: u128) {
        if self.unshared.len() >= UNSHARED_MAX {
            self.unshared.clear();
        }
        self.unshared.insert(memo, now_ms() + UNSHARED_MS);
    }

    fn note_unjoinable(&self, memo: u128) {
        if self.unjoinable.len() >= UNJOINABLE_MAX {
            self.unjoinable.clear();
        }
        self.unjoinable.insert(memo, now_ms() + UNJOINABLE_MS);
    }

    /// Whether parts of what is there cannot be joined: asking for whole slices costs more and
    /// keeps nothing.
    pub(crate) fn is_unjoinable(&self, hash: u128, requester: &Requester) -> bool {
        !self.unjoinable.is_empty()
            && self
                .unjoinable
                .get(&requester.memo(hash))
                .is_some_and(|until| *until > now_ms())
    }

    /// Forward requests under way.
    pub(crate) fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// Requests that wait for one of them.
    pub(crate) fn waiting(&self) -> usize {
        self.in_flight
            .iter()
            .map(|flight| flight.told.receiver_count())
            .sum()
    }
}

/// The duty to tell followers of one key. Dropped untold it sends them on their own way.
pub(crate) struct Lead {
    edge: Arc<Edge>,
    flight: u128,
    memo: u128,
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
            Told::Unshared | Told::Own => self.edge.forwards.note_unshared(self.memo),
            Told::Published => {
                self.edge.forwards.unshared.remove(&self.memo);
            }
            Told::Waiting
            | Told::Aside
            | Told::OutOfRange
            | Told::AskAgain
            | Told::Erred { .. }
            | Told::Failed(_) => {}
        }
        self.edge.forwards.in_flight.remove(&self.flight);
        self.told.send_replace(told);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if !self.is_over {
            self.edge.forwards.in_flight.remove(&self.flight);
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
    /// For a push order, of this node or of the one that asks, and not for a client: its bytes are
    /// counted apart.
    pub(crate) is_for_push: bool,
    /// Nobody waits for what it gives.
    pub(crate) is_background: bool,
    /// What holds a push order's bytes back.
    pub(crate) pacer: Option<Arc<Pacer>>,
    /// The client that waits for the response, and gets the interim ones before it.
    pub(crate) interim: Option<InterimSender>,
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
        if let Some(interim) = &self.interim {
            interim.follow(&mut request);
        }
        if self.is_background {
            request.extensions_mut().insert(Purpose::Background);
        }
        if !self.is_peer && !self.is_for_push {
            self.site.counters.asked_origin(self.worker.number);
        }
        let asked = self.worker.origins.send(&self.target, request);
        let Some(pacer) = &self.pacer else {
            return asked.await.inspect_err(|error| self.note_failure(*error));
        };
        tokio::select! {
            biased;
            () = pacer.stopped() => Err(OriginError::GivenUp),
            asked = asked => asked.inspect_err(|error| self.note_failure(*error)),
        }
    }

    fn note_failure(&self, error: OriginError) {
        if !self.is_peer {
            self.site.counters.origin_failed(error.reason());
        }
    }

    async fn received(&self, bytes: usize) {
        let bytes = bytes as u64;
        let counters = &self.site.counters;
        if self.is_for_push {
            counters.pushed(self.worker.number, self.is_peer, bytes);
        } else if !self.is_peer {
            counters.received(self.worker.number, bytes);
        }
        if let Some(pacer) = &self.pacer {
            pacer.count(self.is_peer, bytes);
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
    /// Those of them that the site keys by.
    pub(crate) keyed: Arc<HeaderMap>,
    pub(crate) requester: Requester,
    /// To be validated rather than fetched.
    pub(crate) stale: Option<Arc<StoredResponse>>,
    /// Something stored may still serve when the origin fails: its 5xx must not take that one's
    /// place.
    pub(crate) has_stale: bool,
    /// Wanted bytes, when not all are.
    pub(crate) range: Option<Wanted>,
    pub(crate) pool: Pool,
}

/// What of a representation that nobody knows yet is asked for first: the slices of a client's
/// first range.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    spec: Spec,
    /// More than this has to come by requests of its own, perhaps: other ranges, or all of it where
    /// `If-Range` fails.
    may_need_more: bool,
    /// It stands in for a range that turned out to be outside.
    is_second: bool,
}

/// A stretch of a representation that can be kept in slices.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    range: ByteRange,
    complete: u64,
    /// Bytes that come before it.
    skip: u64,
}

impl Wanted {
    /// What to ask for; `None` when it is the whole.
    pub(crate) fn of(specs: &[Spec], has_if_range: bool) -> Option<Self> {
        let asked = *specs.first()?;
        let spec = match asked {
            Spec::From(0) => return None,
            // Nothing is had by asking for nothing, and the length is wanted.
            Spec::Last(0) => Spec::Last(1),
            other => other,
        };
        Some(Self {
            spec,
            may_need_more: has_if_range || specs.len() > 1 || spec != asked,
            is_second: false,
        })
    }

    /// What to ask for after a 416: the client's first range that is inside the length which that
    /// named.
    fn after_unsatisfied(self, unsatisfied: &HeaderMap, client: &HeaderMap) -> Option<Self> {
        let Some(ContentRange::Unsatisfied(length)) = ContentRange::of(unsatisfied) else {
            return None;
        };
        let spec = range::requested(&Method::GET, client)?
            .into_iter()
            .find(|spec| spec.within(length).is_some())?;
        (!self.is_second && spec != self.spec).then_some(Self {
            spec,
            may_need_more: true,
            is_second: true,
        })
    }

    /// `Range` for whole slices. Where they begin is not known for the last bytes of a length that
    /// is not known: then one slice more is asked for, but for a byte.
    fn field(self) -> HeaderMap {
        match self.spec {
            Spec::FromTo(first, last) => range_field(
                first / SLICE * SLICE,
                last.saturating_add(1).checked_next_multiple_of(SLICE),
            ),
            Spec::From(first) => range_field(first / SLICE * SLICE, None),
            Spec::Last(count) => {
                range_value(&format!("bytes=-{}", count.saturating_add(SLICE - 1)))
            }
        }
    }

    /// The whole slices in a 206 to [`field`](Self::field); `None` when what is wanted does not
    /// begin in them, or cannot be put together from them and later requests, for which parts of it
    /// must be joinable.
    fn part(self, fields: &HeaderMap, is_joinable: bool) -> Option<Stretch> {
        let Some(ContentRange::Bytes {
            range,
            complete: Some(complete),
        }) = ContentRange::of(fields)
        else {
            return None;
        };
        let first = range.first.checked_next_multiple_of(SLICE)?;
        let end = if range.end() == complete {
            complete
        } else {
            range.end() / SLICE * SLICE
        };
        let wanted = self.spec.within(complete);
        let has_begin =
            first < end && wanted.is_none_or(|w| first <= w.first / SLICE * SLICE && w.first < end);
        let is_enough = !self.may_need_more && wanted.is_none_or(|w| w.end() <= end);
        let stretch = Stretch {
            range: ByteRange {
                first,
                last: end.checked_sub(1)?,
            },
            complete,
            skip: first - range.first,
        };
        (has_begin && (is_enough || is_joinable || stretch.is_whole())).then_some(stretch)
    }

    /// Whether a 206 is what the client itself asked for, whatever was asked of the origin.
    fn is_met_by(self, fields: &HeaderMap) -> bool {
        let Some(ContentRange::Bytes {
            range,
            complete: Some(complete),
        }) = ContentRange::of(fields)
        else {
            return false;
        };
        !self.may_need_more && self.spec.within(complete) == Some(range)
    }
}

impl Stretch {
    /// All of a representation in answer to a request for all of it: as good as a 200 (RFC 9110
    /// section 15.3.7.3).
    fn of_whole(fields: &HeaderMap) -> Option<Self> {
        let Some(ContentRange::Bytes {
            range,
            complete: Some(complete),
        }) = ContentRange::of(fields)
        else {
            return None;
        };
        let stretch = Self {
            range,
            complete,
            skip: 0,
        };
        stretch.is_whole().then_some(stretch)
    }

    fn is_whole(self) -> bool {
        self.range.first == 0 && self.range.end() == self.complete
    }
}

/// Whether several ranges of a body that is too large to be stored can be put together here, from
/// slices that are asked for one range at a time. Many origins answer a request for several ranges
/// with the whole.
fn can_be_assembled(client: &HeaderMap, part: &HeaderMap, complete: u64) -> bool {
    let specs = range::requested(&Method::GET, client)
        .filter(|specs| specs.len() > 1)
        .unwrap_or_default();
    let bytes = match range::resolve(&specs, complete) {
        Part::Ranges(ranges) => ranges
            .iter()
            .map(|range| range.length())
            .fold(0, u64::saturating_add),
        Part::Whole | Part::Unsatisfiable => return false,
    };
    bytes <= ASSEMBLED_BYTES_MAX
        && complete <= NUMBERED_BYTES_MAX
        && conditional::if_range_holds(client, part)
}

/// What the head of a forward request's response led to.
pub(crate) enum Led {
    /// To be read from the store as it comes. Kept unless it says why not. `received` is the
    /// origin's status, 206 for a part.
    Filling {
        response: Arc<StoredResponse>,
        fill: Arc<Fill>,
        not_stored: Option<NotStored>,
        received: StatusCode,
        cookies: Cookies,
    },
    /// What was stored is as good as new, as an answer of the status `received` says; for this
    /// client alone where that says why it is not stored.
    Validated {
        response: Arc<StoredResponse>,
        received: StatusCode,
        cookies: Cookies,
        not_stored: Option<NotStored>,
    },
    /// For this client alone, and why it is not stored.
    Passing {
        head: http::response::Parts,
        body: OriginBody,
        not_stored: NotStored,
    },
    /// The origin's parts are of no use here: the request is to be sent on with the client's own
    /// `Range` and conditions. Asking for the whole instead may cost any number of bytes.
    PassRequest,
    /// Nothing.
    Failed(OriginError),
}

impl Led {
    /// Why what came is not stored; `None` where it is, or nothing came.
    fn not_stored(&self) -> Option<NotStored> {
        match self {
            Self::Filling { not_stored, .. } | Self::Validated { not_stored, .. } => *not_stored,
            Self::Passing { not_stored, .. } => Some(*not_stored),
            Self::PassRequest | Self::Failed(_) => None,
        }
    }
}

/// Values of `Set-Cookie` that came for the one who asked, and are not stored.
pub(crate) type Cookies = Vec<HeaderValue>;

/// Takes the cookies out of the fields of a response that others may get, unless the site wants
/// them shared.
fn take_cookies(fields: &mut HeaderMap, policy: &CachePolicy) -> Cookies {
    let mut cookies = Vec::new();
    if !policy.store_set_cookie {
        cookies.extend(fields.get_all(SET_COOKIE).iter().cloned());
        fields.remove(SET_COOKIE);
        fields.remove("set-cookie2");
    }
    cookies
}

/// Sends a forward request as a task of its own.
pub(crate) fn start(ask: Ask, lead: Option<Lead>) -> oneshot::Receiver<Led> {
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let (source, url) = (ask.source.clone(), ask.url.clone());
        let (led, to_followers) = follow_head(ask).await;
        if let Some(cause) = led.not_stored() {
            source
                .site
                .note_not_stored(source.worker.number, &url, cause);
        }
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
        let asked_at = ask.source.worker.edge.changes.now();
        let mut extra = ask.range.map(Wanted::field).unwrap_or_default();
        // Conditions come first: a range counts only where what is stored has changed (RFC 9110
        // section 13.2.2).
        if let Some(stale) = &ask.stale {
            conditional::set_validation(&mut extra, [&stale.fields]);
        }
        let response = match ask.source.ask(extra).await {
            Ok(response) => response,
            // That a push order has ended says nothing to clients that waited for its request.
            Err(OriginError::GivenUp) => {
                return (Led::Failed(OriginError::GivenUp), Told::AskAgain);
            }
            Err(error) => return (Led::Failed(error), Told::Failed(error)),
        };
        let exchange = Exchange {
            requested_ms,
            received_ms: now_ms(),
        };
        // A node that has not folded a purge yet may give what that covers.
        let born = if ask.source.is_peer {
            born.min(revision(response.headers()))
        } else {
            born
        };
        // Some origins look at the range first: a part of what is stored says that it has not
        // changed.
        let is_same_part = response.status() == StatusCode::PARTIAL_CONTENT
            && ask.stale.as_ref().is_some_and(|s| {
                is_same(
                    &s.content,
                    response.headers(),
                    complete_length(response.headers()),
                )
            });
        if (response.status() == StatusCode::NOT_MODIFIED || is_same_part)
            && let Some(stale) = ask.stale.take()
        {
            let sent = Sent {
                exchange,
                born,
                asked_at,
            };
            match freshen(&ask, &stale, response.headers(), sent) {
                Some(Freshened {
                    response: fresh,
                    cookies,
                    not_stored,
                }) => {
                    let told = if not_stored.is_some() {
                        ask.requester.unshared()
                    } else {
                        Told::Published
                    };
                    let led = Led::Validated {
                        response: fresh,
                        received: response.status(),
                        cookies,
                        not_stored,
                    };
                    return (led, told);
                }
                // A validator that nobody knows: ask for all of it.
                None => continue,
            }
        }
        match take(
            &ask,
            response,
            Sent {
                exchange,
                born,
                asked_at,
            },
        ) {
            Ok(taken) => return taken,
            Err(wanted) => ask.range = Some(wanted),
        }
    }
}

/// The field by which a node tells a peer up to which journal revision its answer is clean.
pub(crate) const REVISION: HeaderName = HeaderName::from_static("nearcast-revision");

/// The revision that a peer named, 0 when it named none.
fn revision(fields: &HeaderMap) -> u64 {
    fields
        .get(&REVISION)
        .and_then(|v| v.to_str().ok()?.parse().ok())
        .unwrap_or(0)
}

/// When a forward request was sent and its head received: by the clock, by the journal, and by this
/// node's own changes.
#[derive(Clone, Copy)]
struct Sent {
    exchange: Exchange,
    born: u64,
    asked_at: u64,
}

/// What a 304 made of a stored response.
struct Freshened {
    response: Arc<StoredResponse>,
    cookies: Cookies,
    /// Why it is for the client that asked alone: what is stored stays as it was, or is stored no
    /// more.
    not_stored: Option<NotStored>,
}

/// A 304 that names the stored response: it is as good as new, with the fields of the 304.
fn freshen(
    ask: &Ask,
    stale: &Arc<StoredResponse>,
    fields: &HeaderMap,
    sent: Sent,
) -> Option<Freshened> {
    let Sent {
        exchange,
        born,
        asked_at,
    } = sent;
    let edge = &ask.source.worker.edge;
    let policy = &ask.source.site.cache;
    if !conditional::is_confirmed(&stale.fields, fields, true) {
        return None;
    }
    let mut fields = conditional::freshened(&stale.fields, fields, exchange.received_ms);
    let cookies = take_cookies(&mut fields, policy);
    // Whether what is stored may stay depends on its fields alone, as it did not come for this
    // request. Whether the fields of the 304 are for others as well, and may take it away from
    // them, depends on the request, as with any response.
    let judge = |client: &HeaderMap, fields: &HeaderMap| {
        let request = RequestFacts {
            method: &Method::GET,
            fields: client,
        };
        match freshness::judge(request, stale.status, fields, policy, exchange) {
            freshness::Verdict::Store(_) => None,
            freshness::Verdict::DoNotStore(cause) => Some(cause),
        }
    };
    let gone_for = judge(&HeaderMap::new(), &fields);
    let own_for = judge(&ask.client, &stale.fields)
        .or_else(|| judge(&ask.client, &fields).filter(|_| gone_for.is_none()));
    let facts = Facts {
        url: stale.url.clone(),
        hash: stale.hash,
        site: stale.site.clone(),
        status: stale.status,
        freshness: Freshness::of(stale.status, &fields, policy, exchange),
        // The 304 may have changed what it varies on.
        selecting: vary::selecting(&ask.client, &fields),
        keyed: stale.keyed.clone(),
        fields,
        requested_ms: exchange.requested_ms,
        requested_at_revision: born,
        is_soft: false,
        is_recovered: false,
    };
    let fresh = facts.store(stale.content.clone());
    if own_for.is_some() {
        return Some(Freshened {
            response: fresh,
            cookies,
            not_stored: own_for,
        });
    }
    if let Some(cause) = gone_for {
        edge.unpublish(stale);
        ask.source
            .site
            .note_not_stored(ask.source.worker.number, &ask.url, cause);
        return Some(Freshened {
            response: fresh,
            cookies,
            not_stored: None,
        });
    }
    edge.publish(&fresh, |r| Arc::ptr_eq(&r.content, &stale.content));
    if edge.changes.have_covered(&fresh, asked_at) {
        edge.unpublish(&fresh);
    } else {
        edge.store.put_head(&fresh.content.body, fresh.encode());
    }
    Some(Freshened {
        response: fresh,
        cookies,
        not_stored: None,
    })
}

fn broken() -> (Led, Told) {
    (
        Led::Failed(OriginError::Protocol),
        Told::Failed(OriginError::Protocol),
    )
}

/// What a response leads to.
///
/// # Errors
/// What to ask for instead, when the range that was asked for is of no use.
fn take(ask: &Ask, response: Response<OriginBody>, sent: Sent) -> Result<(Led, Told), Wanted> {
    let (head, body) = response.into_parts();
    let site = &ask.source.site;
    let most = site
        .cache
        .body_bytes_max
        .0
        .min(ask.source.worker.edge.body_bytes_max);
    let is_joinable = StrongValidator::of(&head.headers, sent.exchange.received_ms).is_some();
    let whole = Stretch::of_whole(&head.headers)
        .filter(|_| head.status == StatusCode::PARTIAL_CONTENT && ask.range.is_none());
    let part = match (head.status, ask.range) {
        (StatusCode::PARTIAL_CONTENT, Some(wanted)) => {
            let part = wanted.part(&head.headers, is_joinable);
            let is_too_large =
                complete_length(&head.headers).is_some_and(|complete| complete > most);
            let is_usable = |part: &Stretch| {
                !is_too_large
                    || is_joinable && can_be_assembled(&ask.client, &head.headers, part.complete)
            };
            let part = part.filter(is_usable);
            if part.is_none() {
                if !is_too_large || !is_joinable {
                    ask.source
                        .worker
                        .edge
                        .forwards
                        .note_unjoinable(ask.requester.memo(ask.hash));
                }
                let is_met = wanted.is_met_by(&head.headers);
                let not_stored = if is_too_large {
                    NotStored::TooLarge
                } else {
                    NotStored::Partial
                };
                let led = if is_met {
                    Led::Passing {
                        head,
                        body,
                        not_stored,
                    }
                } else {
                    Led::PassRequest
                };
                return Ok((
                    led,
                    if is_too_large {
                        Told::Unshared
                    } else {
                        Told::Aside
                    },
                ));
            }
            part
        }
        (StatusCode::PARTIAL_CONTENT, None) if whole.is_some() => whole,
        // Nobody asked for a part, or whether something had changed.
        (StatusCode::PARTIAL_CONTENT, None) | (StatusCode::NOT_MODIFIED, _) => return Ok(broken()),
        // Nor for another protocol.
        (status, _) if status.is_informational() => return Ok(broken()),
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(wanted)) if wanted.may_need_more => {
            return wanted
                .after_unsatisfied(&head.headers, &ask.client)
                .map_or(Ok((Led::PassRequest, Told::Aside)), Err);
        }
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => {
            return Ok((
                Led::Passing {
                    head,
                    body,
                    not_stored: NotStored::Status,
                },
                Told::OutOfRange,
            ));
        }
        _ => None,
    };
    let request = RequestFacts {
        method: &Method::GET,
        fields: &ask.client,
    };
    // A part is judged, and stored, as what it is a part of.
    let status = if part.is_some() {
        StatusCode::OK
    } else {
        head.status
    };
    let length = part.map_or(body.length(), |part| Some(part.complete));
    let verdict = freshness::judge(request, status, &head.headers, &site.cache, sent.exchange);
    let is_error = reuse::is_error(status);
    let not_stored = match verdict {
        freshness::Verdict::DoNotStore(cause) => Some(cause),
        freshness::Verdict::Store(_) if is_error && ask.has_stale => {
            Some(NotStored::ErrorBesideStored)
        }
        freshness::Verdict::Store(_) => length
            .is_some_and(|length| length > most)
            .then_some(NotStored::TooLarge),
    };
    let came = Came {
        status,
        fields: &head.headers,
        part,
        length,
        sent,
    };
    if let (true, Some(cause)) = (is_error, not_stored) {
        let is_for_others = match verdict {
            freshness::Verdict::Store(_) => true,
            // Of those who wait only requests that are alike take an error.
            freshness::Verdict::DoNotStore(reason) => {
                matches!(
                    reason,
                    NotStored::NoLifetime
                        | NotStored::Useless
                        | NotStored::RequestFields
                        | NotStored::Credentials
                )
            }
        };
        if !is_for_others || length.is_none_or(|length| length > SHARED_ERROR_BYTES_MAX) {
            return Ok((
                Led::Passing {
                    head,
                    body,
                    not_stored: cause,
                },
                Told::Erred {
                    status,
                    cause,
                    answer: None,
                },
            ));
        }
        let Begun {
            response,
            fill,
            not_stored,
            cookies,
        } = begin(ask, &came, body, not_stored);
        let told = Told::Erred {
            status,
            cause,
            answer: Some((response.clone(), fill.clone())),
        };
        return Ok((
            Led::Filling {
                response,
                fill,
                not_stored,
                received: head.status,
                cookies,
            },
            told,
        ));
    }
    let unshared = match verdict {
        // That is of the request, and says nothing of what others get.
        freshness::Verdict::DoNotStore(NotStored::Authorization | NotStored::RequestNoStore) => {
            Told::Aside
        }
        _ => ask.requester.unshared(),
    };
    if let (Some(not_stored), None) = (not_stored, part) {
        return Ok((
            Led::Passing {
                head,
                body,
                not_stored,
            },
            unshared,
        ));
    }
    let is_storable = not_stored.is_none();
    let can_be_kept = is_joinable || part.is_none_or(Stretch::is_whole);
    if is_storable && !can_be_kept {
        ask.source
            .worker
            .edge
            .forwards
            .note_unjoinable(ask.requester.memo(ask.hash));
    }
    let not_stored = not_stored.or((!can_be_kept).then_some(NotStored::Partial));
    let Begun {
        response,
        fill,
        not_stored,
        cookies,
    } = begin(ask, &came, body, not_stored);
    let told = match not_stored {
        None => Told::Published,
        Some(_) if !is_storable => unshared,
        Some(_) if !can_be_kept => Told::Aside,
        Some(_) => Told::AskAgain,
    };
    Ok((
        Led::Filling {
            response,
            fill,
            not_stored,
            received: head.status,
            cookies,
        },
        told,
    ))
}

/// A response's head, as far as it goes into the store.
struct Came<'a> {
    /// Of the whole, when it is a part.
    status: StatusCode,
    fields: &'a HeaderMap,
    part: Option<Stretch>,
    /// Of the whole.
    length: Option<u64>,
    sent: Sent,
}

/// A fill that has begun.
struct Begun {
    response: Arc<StoredResponse>,
    fill: Arc<Fill>,
    not_stored: Option<NotStored>,
    cookies: Cookies,
}

/// Begins a fill with a response, which is published unless there is a reason not to store it.
fn begin(ask: &Ask, came: &Came<'_>, body: OriginBody, not_stored: Option<NotStored>) -> Begun {
    let Came {
        status,
        fields,
        part,
        length,
        sent: Sent {
            exchange,
            born,
            asked_at,
        },
    } = *came;
    let edge = &ask.source.worker.edge;
    let policy = &ask.source.site.cache;
    let mut stored = conditional::stored_fields(fields, exchange.received_ms);
    stored.remove(&REVISION);
    let cookies = take_cookies(&mut stored, policy);
    let facts = Facts {
        url: ask.url.clone(),
        hash: ask.hash,
        site: ask.source.site.name.clone(),
        status,
        freshness: Freshness::of(status, &stored, policy, exchange),
        selecting: vary::selecting(&ask.client, fields),
        keyed: HeaderMap::clone(&ask.keyed),
        fields: stored,
        requested_ms: exchange.requested_ms,
        requested_at_revision: born,
        is_soft: false,
        is_recovered: false,
    };
    let validator = StrongValidator::of(fields, exchange.received_ms);
    let content = Content::new(
        edge.store.clone(),
        edge.store.new_body(ask.hash, ask.pool),
        length,
        validator,
    );
    if (ask.range.is_some() && part.is_none()) || !range::is_rangeable(fields) {
        content.note_whole_only();
    }
    let response = facts.store(content.clone());
    let (first, end) = part.map_or((0, length), |part| {
        (part.range.first, Some(part.range.end()))
    });
    let fill = content.begin_fill(first, end);
    let writer = FillWriter::new(content.clone(), fill.clone(), ask.pool == Pool::Pushed);
    // A purge that came since the request was sent covers it already.
    let mut is_stored =
        not_stored.is_none() && response.verdict(&edge.generations) == Verdict::Clean;
    if is_stored {
        edge.forwards.unshared.remove(&ask.requester.memo(ask.hash));
        edge.publish(&response, |r| r.is_same_variant(&response));
        // So does an unsafe request. Its answer is noted before what is stored is dropped, so that
        // one of the two is seen.
        is_stored = !edge.changes.have_covered(&response, asked_at);
    }
    if is_stored && part.is_some() {
        edge.store.put_head(&content.body, response.encode());
    }
    if !is_stored {
        edge.unpublish(&response);
    }
    let pump = Pump::new(
        ask.source.clone(),
        writer,
        is_stored.then(|| response.clone()),
        part.map_or(0, |part| part.skip),
    );
    tokio::spawn(pump.run(body));
    let not_stored = not_stored.or((!is_stored).then_some(NotStored::Overtaken));
    Begun {
        response,
        fill,
        not_stored,
        cookies,
    }
}

/// Moves a body from the origin into a fill, through cuts, and around what other fills bring.
struct Pump {
    source: Source,
    writer: FillWriter,
    /// What it is for, when that is stored.
    response: Option<Arc<StoredResponse>>,
    /// Bytes that come before the ones that are wanted.
    skip: u64,
    /// Where it is to end, even when its fill is made to end before that.
    goal: Option<u64>,
    /// Where it began.
    first: u64,
    /// Since when nobody reads it, and how far it was then.
    unread: Option<(Instant, u64)>,
    place: Place,
}

/// A fill that is counted while it lives.
struct Place {
    edge: Arc<Edge>,
    since: Instant,
}

impl Place {
    fn take(edge: &Arc<Edge>) -> Self {
        edge.forwards.fills.add();
        Self {
            edge: edge.clone(),
            since: Instant::now(),
        }
    }

    /// Waits until nobody reads `content` while there are too many fills.
    async fn is_needed(&self, content: &Content) {
        let fills = &self.edge.forwards.fills;
        loop {
            // First: what changes after the look must not be missed.
            let (has_grown, left) = (fills.has_grown.notified(), content.left());
            if content.is_read() || !fills.are_too_many() {
                tokio::select! {
                    () = has_grown => {}
                    () = left => {}
                }
            } else if self.since.elapsed() < UNREAD_MAX {
                tokio::time::sleep_until(self.since + UNREAD_MAX).await;
            } else {
                return;
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.edge
            .forwards
            .fills
            .count
            .fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pump {
    fn new(
        source: Source,
        writer: FillWriter,
        response: Option<Arc<StoredResponse>>,
        skip: u64,
    ) -> Self {
        let (first, goal) = (writer.at(), writer.fill().end());
        let place = Place::take(&source.worker.edge);
        Self {
            source,
            writer,
            response,
            skip,
            goal,
            first,
            unread: None,
            place,
        }
    }

    async fn run(mut self, mut body: OriginBody) {
        let mut fruitless = 0;
        loop {
            let before = self.writer.at();
            let error = match self.drain(&mut body).await {
                Ok(()) if !self.go_on() => return self.finish(),
                Ok(()) => OriginError::Incomplete,
                Err(OriginError::GivenUp) => return self.fail(OriginError::GivenUp),
                Err(error) => {
                    self.source.note_failure(error);
                    error
                }
            };
            // What is left of it is not wanted.
            drop(body);
            let made = self.writer.at() - before;
            fruitless = if made > 0 { 0 } else { fruitless + 1 };
            // A body that comes in ever so small pieces is retried within the budget like one that
            // does not come.
            if fruitless > RESUMES_MAX || made < SLICE && !self.source.target.take_retry() {
                return self.fail(error);
            }
            match self.resume().await {
                Ok(next) => body = next,
                Err(OriginError::Unfit) => {
                    // What is stored will never be whole: the next client shall have what there is
                    // now.
                    if let Some(response) = self.response.take() {
                        self.source.worker.edge.unpublish(&response);
                    }
                    return self.fail(error);
                }
                Err(_) => return self.fail(error),
            }
        }
    }

    /// Goes on behind what another fill has taken over. `false` when nothing is left.
    fn go_on(&mut self) -> bool {
        let (Some(end), Some(goal)) = (self.writer.fill().end(), self.goal) else {
            return false;
        };
        let content = self.writer.content().clone();
        let Some(fill) = (end < goal)
            .then(|| content.begin_fill_of_next_missing(end, goal))
            .flatten()
        else {
            return false;
        };
        let next = FillWriter::new(content, fill, self.writer.is_disk_only());
        std::mem::replace(&mut self.writer, next).finish();
        true
    }

    async fn drain(&mut self, body: &mut OriginBody) -> Result<(), OriginError> {
        while let Some(mut bytes) = self.next(body).await? {
            self.source.received(bytes.len()).await;
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len() as u64);
                self.skip -= skipped;
                bytes = bytes.split_off(skipped as usize);
            }
            self.writer.write(bytes);
            let end = self.writer.fill().end();
            if end.is_some_and(|end| self.writer.at() >= end)
                && end != self.writer.content().length()
            {
                // A part, answered with more than was asked for.
                return Ok(());
            }
            self.check_size();
            if !self.writer.pace().await {
                return Err(OriginError::Incomplete);
            }
            self.wait_for_disk().await;
        }
        match self
            .writer
            .fill()
            .end()
            .is_some_and(|end| self.writer.at() < end)
        {
            true => Err(OriginError::Incomplete),
            false => Ok(()),
        }
    }

    /// The next bytes. A push order's fills are few, and nobody is to read them yet: they end with
    /// the order.
    async fn next(&mut self, body: &mut OriginBody) -> Result<Option<Bytes>, OriginError> {
        let Self {
            source,
            writer,
            goal,
            first,
            unread,
            place,
            ..
        } = self;
        let content = writer.content();
        if let Some(pacer) = &source.pacer {
            return tokio::select! {
                biased;
                () = push_ends(pacer, content) => Err(OriginError::GivenUp),
                next = body.next() => next,
            };
        }
        let progress = Abandoned {
            first: *first,
            end: *goal,
            left_at: writer.at(),
            at: writer.at(),
        };
        tokio::select! {
            biased;
            () = place.is_needed(content) => Err(OriginError::GivenUp),
            () = abandoned(content, source, progress, unread) => {
                source.site.counters.fill_abandoned(source.worker.number);
                Err(OriginError::GivenUp)
            }
            next = body.next() => next,
        }
    }

    /// A body without a length may turn out to be too large to be stored.
    fn check_size(&mut self) {
        let at = self.writer.at();
        let most = self
            .source
            .site
            .cache
            .body_bytes_max
            .0
            .min(self.source.worker.edge.body_bytes_max);
        if at > most && self.writer.content().length().is_none() && !self.writer.is_relay() {
            if let Some(response) = self.response.take() {
                self.source.worker.edge.unpublish(&response);
                self.source.site.note_not_stored(
                    self.source.worker.number,
                    &response.url,
                    NotStored::TooLarge,
                );
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

    /// Its source; for what is stored one without the fields of the client that began it, as the
    /// rest is for everybody.
    fn sharing_source(&self) -> Source {
        let mut source = self.source.clone();
        if let Some(response) = &self.response {
            let vary = vary::names(&response.fields).unwrap_or_default();
            source.fields = Arc::new(request_fields::shared(
                &source.fields,
                &source.site.cache,
                &vary,
            ));
        }
        source
    }

    /// Asks for the rest of the same representation.
    async fn resume(&mut self) -> Result<OriginBody, OriginError> {
        let content = self.writer.content();
        let validator = content
            .validator
            .as_ref()
            .filter(|_| !self.writer.is_relay())
            .ok_or(OriginError::Incomplete)?;
        let at = self.writer.at();
        let mut extra = range_field(at, self.writer.fill().end());
        extra.insert(IF_RANGE, validator.value().clone());
        let response = self.sharing_source().ask(extra).await?;
        self.skip = fits(content, &response, at)?;
        Ok(response.into_body())
    }

    fn finish(self) {
        let Self {
            source,
            writer,
            response,
            goal,
            ..
        } = self;
        let edge = source.worker.edge.clone();
        let content = writer.content().clone();
        if goal.is_none() {
            content.learn_length(writer.at());
        }
        let is_part = goal.is_some() && goal != content.length();
        writer.finish();
        if let Some(response) = response
            && !is_part
        {
            edge.store.account_head(&content.body, response.bytes());
            edge.store.put_head(&content.body, response.encode());
        }
    }

    fn fail(self, error: OriginError) {
        let Self {
            source,
            writer,
            response,
            ..
        } = self;
        tracing::debug!(site = %source.site.name, path = %source.path, %error, "a fill ended early");
        let content = writer.content().clone();
        // Whole slices of a representation that can be named are as good as any; others are
        // nothing.
        let is_resumable = content.validator.is_some() && content.length().is_some();
        if let Some(response) = response {
            if is_resumable {
                source
                    .worker
                    .edge
                    .store
                    .put_head(&content.body, response.encode());
            } else {
                source.worker.edge.unpublish(&response);
                source.site.note_not_stored(
                    source.worker.number,
                    &response.url,
                    NotStored::Incomplete,
                );
            }
        }
        writer.fail(error);
    }
}

/// Waits until the order of a push fill has ended. One that could not be resumed goes on for the
/// clients that read it.
async fn push_ends(pacer: &Pacer, content: &Content) {
    pacer.stopped().await;
    loop {
        // First: who leaves after the look must not be missed.
        let left = content.left();
        if content.validator.is_some() || !content.is_read() {
            return;
        }
        left.await;
    }
}

/// Waits until a fill that clients began has been read by nobody for a moment, and is not worth to
/// be finished. `unread` is kept from one call to the next.
async fn abandoned(
    content: &Content,
    source: &Source,
    progress: Abandoned,
    unread: &mut Option<(Instant, u64)>,
) {
    // What nobody waited for from its start was not abandoned.
    if source.is_background || source.is_for_push {
        return std::future::pending().await;
    }
    loop {
        // First: who leaves after the look must not be missed.
        let left = content.left();
        if content.is_read() {
            *unread = None;
            left.await;
            continue;
        }
        let (since, left_at) = *unread.get_or_insert((Instant::now(), progress.at));
        if (Abandoned {
            left_at,
            ..progress
        })
        .goes_on(&source.site.cache)
        {
            return std::future::pending().await;
        }
        // What cannot be resumed is lost to whoever comes a little later.
        let after = if content.validator.is_some() {
            ABANDONED_AFTER
        } else {
            UNREAD_MAX
        };
        tokio::time::sleep_until(since + after).await;
        if !content.is_read() {
            return;
        }
    }
}

/// How many bytes of a response come before the ones that continue `content` at `at`.
///
/// # Errors
/// [`OriginError::Erred`] when the origin answered with an error, [`OriginError::Unfit`] when it
/// has another representation by now.
fn fits(content: &Content, response: &Response<OriginBody>, at: u64) -> Result<u64, OriginError> {
    if response.status().is_server_error() {
        return Err(OriginError::Erred);
    }
    let fields = response.headers();
    let skip = match (response.status(), ContentRange::of(fields)) {
        // Not all origins heed `If-Range`: a part without the validator may belong to any version.
        (StatusCode::PARTIAL_CONTENT, Some(ContentRange::Bytes { range, complete })) => {
            (range.first <= at && is_same(content, fields, complete)).then(|| at - range.first)
        }
        (StatusCode::OK, _) => is_same(content, fields, response.body().length()).then_some(at),
        _ => None,
    };
    skip.ok_or(OriginError::Unfit)
}

/// Whether a response carries the representation that `content` holds, by its validator and the
/// complete length that it names. Where the validator is a date, the length has to be named: files
/// that a deployment gave one date differ in it.
fn is_same(content: &Content, fields: &HeaderMap, length: Option<u64>) -> bool {
    let Some(validator) = content
        .validator
        .as_ref()
        .filter(|validator| validator.is_of(fields))
    else {
        return false;
    };
    match (length, content.length()) {
        (Some(length), Some(known)) => length == known,
        _ => matches!(validator, StrongValidator::Tag(_)),
    }
}

/// The complete length that a 206 names.
fn complete_length(fields: &HeaderMap) -> Option<u64> {
    match ContentRange::of(fields) {
        Some(ContentRange::Bytes { complete, .. }) => complete,
        _ => None,
    }
}

/// Sees to it that the slice at `at` comes, with the missing ones after it up to `end`.
///
/// # Errors
/// [`OriginError::Unfit`] when the origin has another representation by now: what is stored is then
/// forgotten.
pub(crate) async fn refill(
    source: &Source,
    response: &Arc<StoredResponse>,
    at: u64,
    end: u64,
    pool: Pool,
) -> Result<(), OriginError> {
    let content = response.content.clone();
    let Some(validator) = content.validator.clone() else {
        return Err(OriginError::Unfit);
    };
    let Some(fill) = content.begin_fill_of_missing(at, end) else {
        return Ok(());
    };
    let (first, end) = (fill.at(), fill.end());
    let writer = FillWriter::new(content.clone(), fill, pool == Pool::Pushed);
    let (tell, told) = oneshot::channel();
    let (asking, source) = (source, source.clone());
    tokio::spawn(async move {
        let mut extra = range_field(first, end);
        extra.insert(IF_RANGE, validator.value().clone());
        let outcome = match source.ask(extra).await {
            Ok(response) => fits(&content, &response, first).map(|skip| (skip, response)),
            Err(error) => Err(error),
        };
        match outcome {
            Ok((skip, response)) => {
                if response.status() == StatusCode::OK {
                    content.note_whole_only();
                }
                let _ = tell.send(Ok(()));
                Pump::new(source, writer, None, skip)
                    .run(response.into_body())
                    .await;
            }
            Err(error) => {
                writer.fail(error);
                let _ = tell.send(Err(error));
            }
        }
    });
    let told = told.await.unwrap_or(Err(OriginError::Terminated));
    if told == Err(OriginError::Unfit) {
        asking.worker.edge.unpublish(response);
    }
    told
}

/// For a reader far ahead of the fill that it would wait for: asks the origin for the slices from
/// `at` up to `end` beside that fill, which from then on leaves them out. Where that fails the
/// reader is as well off as before.
pub(crate) fn seek_ahead(
    source: &Source,
    response: &Arc<StoredResponse>,
    at: u64,
    end: Option<u64>,
) {
    let content = response.content.clone();
    let (Some(validator), Some(length)) = (content.validator.clone(), content.length()) else {
        return;
    };
    let Some(seek) = content.begin_seek(at) else {
        return;
    };
    let end = end
        .and_then(|end| end.checked_next_multiple_of(SLICE))
        .map_or(length, |end| end.min(length));
    let source = source.clone();
    tokio::spawn(async move {
        let mut extra = range_field(seek.first(), Some(end));
        extra.insert(IF_RANGE, validator.value().clone());
        let Ok(response) = source.ask(extra).await else {
            return;
        };
        let skip = match fits(&content, &response, seek.first()) {
            Ok(skip) if response.status() != StatusCode::OK => skip,
            Err(OriginError::Erred) => return,
            // Parts of this body cannot be had, or not be known for what they are: the next seek
            // need not try.
            Ok(_) | Err(_) => return content.note_whole_only(),
        };
        let Some(fill) = seek.take_over(end) else {
            return;
        };
        drop(seek);
        let writer = FillWriter::new(content, fill, false);
        Pump::new(source, writer, None, skip)
            .run(response.into_body())
            .await;
    });
}

/// `Range` for bytes from `first` up to `end`.
fn range_field(first: u64, end: Option<u64>) -> HeaderMap {
    match end {
        Some(end) => range_value(&format!("bytes={first}-{}", end.saturating_sub(1))),
        None => range_value(&format!("bytes={first}-")),
    }
}

fn range_value(text: &str) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert(
        RANGE,
        HeaderValue::try_from(text).expect("digits are valid in a field"),
    );
    fields
}
