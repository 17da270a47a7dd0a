//! Collapsing of forward requests: which request leads, which follow it, and what followers receive.
//!
//! Of all requests for one key the first leads: it is forwarded, and the others wait for its result.
//! Requests in different groups (see [`Requester`]) never wait for one another. A response that may
//! not be shared goes to its leader alone, and for a while requests for that key do not wait. A
//! response that depends on the leader's cookie, range or credentials sends the followers back to
//! look up again, where one of them leads. An error is shared by the followers that waited for it
//! with the same cookies, credentials and range, and by nobody after them: an origin in trouble is
//! not asked once for each request.
//!
//! Owns who waits for whom. Knows no sockets: the leader decides how it gets its result. Follows RFC
//! 9111 section 4 and RFC 9211.

use std::hash::BuildHasherDefault;
use std::sync::Arc;

use dashmap::DashMap;
use http::header::{AUTHORIZATION, COOKIE, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::sync::watch;

use super::permit::FillLimit;
use crate::body::Fill;
use crate::clock::Clock;
use crate::origin::OriginError;
use crate::stored::index::{HashedKey, Index};
use crate::stored::response::StoredResponse;
use nearcast_http_rules::forward::EARLY_DATA;
use nearcast_http_rules::not_stored::NotStored;
use nearcast_http_rules::request_fields::{self, UnkeyedFields};

/// How long requests for a key whose responses may not be shared do not wait for one another.
const NOT_SHAREABLE_MS: u64 = 60_000;
/// How long range requests for a representation whose parts cannot be joined go to the origin as
/// the client made them.
const UNJOINABLE_MS: u64 = 60_000;
/// Keys that are remembered of each of these two kinds.
const REMEMBERED_MAX: usize = 65_536;
/// How often one request looks up again because the stored response has changed meanwhile.
const TURNS_MAX: u32 = 6;
/// How many of those turns, the last ones, do not wait for other requests.
const TURNS_ALONE: u32 = 2;
/// How many stored responses one request waits for before it is forwarded alone.
const STORED_WAITED_MAX: u32 = 2;
/// The same while the stored responses are other variants than its own.
const VARIANTS_WAITED_MAX: u32 = 4;

/// The result of a forward request, as its followers receive it.
#[derive(Debug, Clone)]
pub(crate) enum ForwardResult {
    /// The response's head has not been received yet.
    Pending,
    /// A response is stored: look up again.
    Stored,
    /// The response may not be shared: each follower is forwarded alone, and the key is remembered.
    NotShareable,
    /// The response may depend on the leader's cookie or credentials, or on fields that are too
    /// long. Followers of the same kind are forwarded alone, the others look up again; the key is
    /// remembered for requests of this kind.
    NotShareableByKind,
    /// The response is for the leader's range or credentials: as
    /// [`NotShareableByKind`](Self::NotShareableByKind), but nothing is remembered.
    LeaderOnly,
    /// The leader's range is outside the representation. Followers with the same range are forwarded
    /// alone, the others look up again.
    RangeNotSatisfiable,
    /// The response was stored, but a purge or a change has removed it already: look up again.
    LookUpAgain,
    /// The origin sent an error, which is not stored; with the response where it may be shared.
    ErrorResponse {
        status: StatusCode,
        cause: NotStored,
        shared: Option<SharedError>,
    },
    /// The origin could not be asked, or sent no response.
    Failed(OriginError),
}

/// An error response that followers may get, and the fill of its body.
pub(crate) type SharedError = (Arc<StoredResponse>, Arc<Fill>);

/// What distinguishes a request from others for the same URL, as far as they may share a forward
/// request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requester {
    /// A hash of the unusual fields, of those that the site keys by, and of `Early-Data`. Requests that differ in it
    /// never wait for one another.
    group: u128,
    kind: RequestKind,
    /// Cookies, credentials and range: an error may be due to them.
    own_fields: Vec<(HeaderName, HeaderValue)>,
}

/// Why a response may be for one request alone, beside its unusual fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct RequestKind {
    has_credentials: bool,
    has_range: bool,
    is_oversized: bool,
}

impl RequestKind {
    /// Whether responses to it say little about responses to others.
    fn is_special(self) -> bool {
        self.has_credentials || self.is_oversized
    }

    /// Distinguishes the special kinds in a remembered key.
    fn bits(self) -> u128 {
        u128::from(self.has_credentials) << 127 | u128::from(self.is_oversized) << 126
    }
}

impl Requester {
    /// A client's request.
    pub(crate) fn of(
        index: &Index,
        client: &HeaderMap,
        unusual: &UnkeyedFields,
        keyed: &HeaderMap,
    ) -> Self {
        let mut distinct = Vec::new();
        unusual.write(&mut distinct);
        if !keyed.is_empty() {
            distinct.extend_from_slice(b"\n");
            request_fields::write_fields(keyed.iter(), &mut distinct);
        }
        // The origin may answer it with a 425, which is for such requests alone (RFC 8470 section
        // 5.2).
        if client.contains_key(EARLY_DATA) {
            distinct.extend_from_slice(b"\nearly-data\n");
        }
        let group = match distinct.is_empty() {
            true => 0,
            false => index.hash_of(&distinct),
        };

        let values_of = |name: HeaderName| {
            let values = client.get_all(&name).iter().cloned();
            values
                .map(|value| (name.clone(), value))
                .collect::<Vec<_>>()
        };
        Self {
            group,
            kind: RequestKind {
                has_credentials: client.contains_key(COOKIE) || client.contains_key(AUTHORIZATION),
                has_range: client.contains_key(RANGE),
                is_oversized: request_fields::is_oversized(client),
            },
            own_fields: [COOKIE, AUTHORIZATION, RANGE]
                .into_iter()
                .flat_map(values_of)
                .collect(),
        }
    }

    /// The result for followers when the response may not be shared.
    pub(super) fn not_shareable(&self) -> ForwardResult {
        if self.kind.is_special() {
            ForwardResult::NotShareableByKind
        } else {
            ForwardResult::NotShareable
        }
    }

    /// The key of the forward request that requests of this group share.
    fn flight_key(&self, hash: u128) -> u128 {
        hash ^ self.group
    }

    /// The key by which such requests are remembered.
    fn memory_key(&self, hash: u128) -> u128 {
        hash ^ self.group ^ self.kind.bits()
    }
}

/// A forward request under way.
#[derive(Debug)]
struct InFlight {
    result: Arc<watch::Sender<ForwardResult>>,
    leader: Requester,
}

type KeyMap<V> = DashMap<u128, V, BuildHasherDefault<HashedKey>>;

/// Forward requests under way by key, and the keys for which requests do not wait.
#[derive(Debug)]
pub(crate) struct Forwards {
    pub(crate) fills: Arc<FillLimit>,
    clock: Clock,
    in_flight: KeyMap<InFlight>,
    /// Until when requests for a key do not wait, in milliseconds after the Unix epoch.
    not_shareable: KeyMap<u64>,
    /// Until when the parts of a key's representation are taken for unjoinable.
    unjoinable: KeyMap<u64>,
}

/// How a request takes part in a forward request.
pub(crate) enum Join {
    /// It is forwarded, and its result is published.
    Leader(Leader),
    /// It waits for the result of the one under way.
    Follower(Follower),
    /// It is forwarded alone.
    Alone,
}

impl Forwards {
    pub(crate) fn new(memory_bytes: u64, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            fills: FillLimit::new(memory_bytes),
            clock,
            in_flight: DashMap::default(),
            not_shareable: DashMap::default(),
            unjoinable: DashMap::default(),
        })
    }

    /// Joins the forward request for a key, or leads a new one.
    pub(crate) fn join(self: &Arc<Self>, hash: u128, requester: Requester) -> Join {
        let memory_key = requester.memory_key(hash);
        if self.is_remembered(&self.not_shareable, memory_key) {
            return Join::Alone;
        }
        let flight_key = requester.flight_key(hash);
        match self.in_flight.entry(flight_key) {
            dashmap::Entry::Occupied(under_way) => {
                Join::Follower(Follower::of(under_way.get(), &requester))
            }
            dashmap::Entry::Vacant(free) => {
                let result = Arc::new(watch::channel(ForwardResult::Pending).0);
                free.insert(InFlight {
                    result: result.clone(),
                    leader: requester,
                });
                Join::Leader(Leader {
                    forwards: self.clone(),
                    flight_key,
                    memory_key,
                    result,
                    has_published: false,
                })
            }
        }
    }

    /// Leads a forward request for a key, unless one is under way or requests for it do not wait.
    pub(crate) fn lead(self: &Arc<Self>, hash: u128, requester: Requester) -> Option<Leader> {
        match self.join(hash, requester) {
            Join::Leader(leader) => Some(leader),
            Join::Follower(_) | Join::Alone => None,
        }
    }

    /// Requests for this key may wait for one another again: a response was stored.
    pub(super) fn note_shareable(&self, hash: u128, requester: &Requester) {
        self.not_shareable.remove(&requester.memory_key(hash));
    }

    pub(super) fn note_unjoinable(&self, hash: u128, requester: &Requester) {
        self.remember(&self.unjoinable, requester.memory_key(hash), UNJOINABLE_MS);
    }

    /// Whether the parts of this key's representation cannot be joined: whole slices would cost more
    /// than the client's range, and could not be stored.
    pub(crate) fn is_unjoinable(&self, hash: u128, requester: &Requester) -> bool {
        self.is_remembered(&self.unjoinable, requester.memory_key(hash))
    }

    fn remember(&self, keys: &KeyMap<u64>, key: u128, for_ms: u64) {
        if keys.len() >= REMEMBERED_MAX {
            keys.clear();
        }
        keys.insert(key, self.clock.unix_ms() + for_ms);
    }

    fn is_remembered(&self, keys: &KeyMap<u64>, key: u128) -> bool {
        !keys.is_empty()
            && keys
                .get(&key)
                .is_some_and(|until| *until > self.clock.unix_ms())
    }

    /// Forward requests under way that others may follow.
    pub(crate) fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// Requests that wait for one of them.
    pub(crate) fn waiting(&self) -> usize {
        self.in_flight
            .iter()
            .map(|flight| flight.result.receiver_count())
            .sum()
    }
}

/// The duty to publish the result of one forward request. Dropped without one, it sends the
/// followers to the origin alone.
pub(crate) struct Leader {
    forwards: Arc<Forwards>,
    flight_key: u128,
    memory_key: u128,
    result: Arc<watch::Sender<ForwardResult>>,
    has_published: bool,
}

impl Leader {
    /// Gives the followers the result, and lets the next request for the key lead.
    pub(crate) fn publish(mut self, result: ForwardResult) {
        let forwards = &self.forwards;
        match result {
            ForwardResult::NotShareable | ForwardResult::NotShareableByKind => {
                forwards.remember(&forwards.not_shareable, self.memory_key, NOT_SHAREABLE_MS);
            }
            ForwardResult::Stored => {
                forwards.not_shareable.remove(&self.memory_key);
            }
            ForwardResult::Pending
            | ForwardResult::LeaderOnly
            | ForwardResult::RangeNotSatisfiable
            | ForwardResult::LookUpAgain
            | ForwardResult::ErrorResponse { .. }
            | ForwardResult::Failed(_) => {}
        }
        self.end(result);
    }

    /// Gives up the duty without a forward request: the stored response has changed meanwhile, and
    /// the followers look up again.
    pub(crate) fn resign(self) {
        self.publish(ForwardResult::LookUpAgain);
    }

    fn end(&mut self, result: ForwardResult) {
        self.has_published = true;
        self.forwards.in_flight.remove(&self.flight_key);
        self.result.send_replace(result);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if !self.has_published {
            self.end(ForwardResult::NotShareable);
        }
    }
}

/// A request that waits for the result of another's forward request.
pub(crate) struct Follower {
    result: watch::Receiver<ForwardResult>,
    /// Its cookies, credentials and range are the leader's: so are its errors.
    has_leaders_fields: bool,
    has_leaders_kind: bool,
}

/// What a follower does once it has the leader's result.
#[derive(Debug)]
pub(crate) enum FollowerStep {
    /// It looks up again: a response is stored.
    LookUpStored,
    /// It looks up again, and one of the followers leads.
    LookUpAgain,
    /// It is forwarded, and does not wait for other requests any more.
    ForwardAlone,
    /// It gets the leader's error response, or one with the same status.
    ErrorResponse {
        status: StatusCode,
        cause: NotStored,
        shared: Option<SharedError>,
    },
    /// It fails as the leader did.
    Fail(OriginError),
}

impl Follower {
    fn of(under_way: &InFlight, requester: &Requester) -> Self {
        let leader = &under_way.leader;
        Self {
            result: under_way.result.subscribe(),
            has_leaders_fields: leader.own_fields == requester.own_fields
                && leader.kind == requester.kind
                && !requester.kind.is_oversized,
            has_leaders_kind: leader.kind == requester.kind,
        }
    }

    /// Waits for the leader's result, and decides what the follower does.
    pub(crate) async fn wait(mut self) -> FollowerStep {
        let result = self
            .result
            .wait_for(|result| !matches!(result, ForwardResult::Pending))
            .await
            .map_or(ForwardResult::NotShareable, |result| result.clone());
        self.step(result)
    }

    fn step(&self, result: ForwardResult) -> FollowerStep {
        let alone_if = |is_same: bool| match is_same {
            true => FollowerStep::ForwardAlone,
            false => FollowerStep::LookUpAgain,
        };
        match result {
            ForwardResult::Stored => FollowerStep::LookUpStored,
            ForwardResult::Pending | ForwardResult::NotShareable => FollowerStep::ForwardAlone,
            ForwardResult::NotShareableByKind | ForwardResult::LeaderOnly => {
                alone_if(self.has_leaders_kind)
            }
            ForwardResult::RangeNotSatisfiable => alone_if(self.has_leaders_fields),
            ForwardResult::ErrorResponse {
                status,
                cause,
                shared,
            } if self.has_leaders_fields => FollowerStep::ErrorResponse {
                status,
                cause,
                shared,
            },
            ForwardResult::Failed(error)
                if self.has_leaders_fields || !error.may_be_of_request() =>
            {
                FollowerStep::Fail(error)
            }
            // If the followers led one after another, each would wait for the time-outs of all
            // before it.
            ForwardResult::Failed(OriginError::FirstByteTimeout) => FollowerStep::ForwardAlone,
            // The error may be due to the leader's own fields: one of its followers leads next.
            ForwardResult::LookUpAgain
            | ForwardResult::ErrorResponse { .. }
            | ForwardResult::Failed(_) => FollowerStep::LookUpAgain,
        }
    }
}

/// How often one request has looked up and waited, and whether it may wait again.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: u32,
    /// Turns in which the response that it waited for was stored.
    stored: u32,
    is_alone: bool,
}

impl Turns {
    /// Begins the next turn; `false` when none is left.
    pub(crate) fn begin(&mut self) -> bool {
        self.taken += 1;
        self.taken <= TURNS_MAX
    }

    /// The request has waited for a response that was stored.
    pub(crate) fn note_stored(&mut self) {
        self.stored += 1;
    }

    /// From now on the request does not wait for others.
    pub(crate) fn forward_alone(&mut self) {
        self.is_alone = true;
    }

    /// Whether the request has waited for a response that was stored.
    pub(crate) fn has_waited(&self) -> bool {
        self.stored > 0
    }

    /// Whether the request may wait for another. A response that cannot be used after two waits is
    /// requested alone; other variants than the request's own may need some more waits.
    pub(crate) fn may_wait(&mut self, is_other_variant: bool) -> bool {
        let waits_max = if is_other_variant {
            VARIANTS_WAITED_MAX
        } else {
            STORED_WAITED_MAX
        };
        self.is_alone |= self.stored >= waits_max || self.taken + TURNS_ALONE > TURNS_MAX;
        !self.is_alone
    }
}
