//! A stored response: the origin's status and fields, the request they belong to, the times that
//! decide on its age, and the content.
//!
//! Owns its form on disk, from which it is made again. Does not decide whether a response may be
//! stored or used. There may be millions, so what most of them never need is made when it is needed,
//! and fields are kept as [`Head`].

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{DATE, VARY};
use http::{HeaderMap, HeaderValue, StatusCode, Version};

use super::generations::{Generations, PurgeState, PurgeSubject};
use super::head::{Head, Lines};
use crate::body::Content;
use crate::compress::SiteCompression;
use crate::origin::Backoff;
use nearcast_http_rules::compress::{self, CODINGS};
use nearcast_http_rules::conditional::StrongValidator;
use nearcast_http_rules::freshness::{Basis, Freshness};
use nearcast_http_rules::https::STRICT_TRANSPORT_SECURITY;
use nearcast_http_rules::{dates, invalidate, vary};
use nearcast_store::{BodyId, StoredBody};

/// Version of the form on disk and of the rules by which responses are stored. Responses of another
/// version are not read.
const FORM: u8 = 3;

/// A response in the index.
#[derive(Debug)]
pub(crate) struct StoredResponse {
    head: Head,
    pub(crate) site: Arc<str>,
    pub(crate) content: Arc<Content>,
    times: Times,
    /// Journal revision that was folded when its request was sent. Later purges may cover it.
    pub(crate) requested_at_revision: u64,
    /// Revision up to which purges have been applied to it.
    clean_at: AtomicU64,
    /// Whether it may have coded forms, with the number of the policy by which that was decided.
    compressible: AtomicU64,
    /// Made when it is first needed.
    rare: OnceLock<Box<Rare>>,
    /// When it was last used, in seconds after the Unix epoch; 0 for never.
    used_s: AtomicU32,
    pub(crate) status: StatusCode,
    /// The version of HTTP in which it was received, for `Via`.
    pub(crate) version: Version,
    /// The flags of [`State`].
    state: AtomicU8,
    traits: Traits,
}

/// What changes in the life of a stored response, a bit each.
struct State;

impl State {
    /// Covered by a soft purge: it must be validated before use.
    const SOFT: u8 = 1;
    /// Purged or replaced: it must not be used.
    const RETIRED: u8 = 2;
    /// A validation in the background is running.
    const VALIDATING: u8 = 4;
    /// Read from disk, and not known yet to be still there: it must not be used.
    const LOADING: u8 = 8;
}

/// What never changes.
#[derive(Debug, Clone, Copy)]
struct Traits {
    has_vary: bool,
    has_tags: bool,
    has_transport_security: bool,
    is_recovered: bool,
    is_doubtful: bool,
}

/// The slots of a stored response that few ones fill.
#[derive(Debug, Default)]
struct Rare {
    backoff: Backoff,
    http2_fields: OnceLock<Box<HeaderMap>>,
    http3_fields: OnceLock<Box<[u8]>>,
    coded_heads: OnceLock<Box<CodedHeads>>,
}

/// Slots for the heads of a response that has coded forms.
#[derive(Debug, Default)]
pub(crate) struct CodedHeads {
    /// Of the form without a coding.
    identity: OnceLock<Box<[u8]>>,
    identity_http2: OnceLock<Box<HeaderMap>>,
    identity_http3: OnceLock<Box<[u8]>>,
    /// Of the coded forms, by the number of their coding.
    coded: [ArcSwapOption<CodedHead>; CODINGS.len()],
}

/// A slot for the head of one coded form.
#[derive(Debug)]
pub(crate) struct CodedHead {
    /// The body of that form.
    body: BodyId,
    pub(crate) http1: OnceLock<Box<[u8]>>,
    pub(crate) http2: OnceLock<Box<HeaderMap>>,
    pub(crate) http3: OnceLock<Box<[u8]>>,
}

/// [`Freshness`] and the time of the request, in as few bytes as they need.
#[derive(Debug, Clone, Copy)]
struct Times {
    requested_ms: u64,
    received_ms: u64,
    lifetime: u32,
    initial_age: u32,
    age_when_sent: u32,
    /// [`Times::ABSENT`] where there is none; so for the next.
    stale_while_revalidate: u32,
    stale_if_error: u32,
    basis: Basis,
    flags: u8,
}

impl Times {
    const ABSENT: u32 = u32::MAX;
    const MUST_REVALIDATE: u8 = 1;
    const NO_CACHE: u8 = 2;
    const IMMUTABLE: u8 = 4;

    fn of(requested_ms: u64, freshness: &Freshness) -> Self {
        // Delta-seconds end at 2^31 (RFC 9111 section 1.2.2), so nothing is lost.
        let seconds =
            |value: u64| u32::try_from(value).map_or(Self::ABSENT - 1, |s| s.min(Self::ABSENT - 1));
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        Self {
            requested_ms,
            received_ms: freshness.received_ms,
            lifetime: seconds(freshness.lifetime),
            initial_age: seconds(freshness.initial_age),
            age_when_sent: seconds(freshness.age_when_sent),
            stale_while_revalidate: freshness
                .stale_while_revalidate
                .map_or(Self::ABSENT, seconds),
            stale_if_error: freshness.stale_if_error.map_or(Self::ABSENT, seconds),
            basis: freshness.basis,
            flags: flag(freshness.must_revalidate, Self::MUST_REVALIDATE)
                | flag(freshness.no_cache, Self::NO_CACHE)
                | flag(freshness.immutable, Self::IMMUTABLE),
        }
    }

    fn freshness(&self) -> Freshness {
        let window = |seconds: u32| (seconds != Self::ABSENT).then_some(u64::from(seconds));
        Freshness {
            lifetime: self.lifetime.into(),
            basis: self.basis,
            initial_age: self.initial_age.into(),
            age_when_sent: self.age_when_sent.into(),
            received_ms: self.received_ms,
            stale_while_revalidate: window(self.stale_while_revalidate),
            stale_if_error: window(self.stale_if_error),
            must_revalidate: self.flags & Self::MUST_REVALIDATE != 0,
            no_cache: self.flags & Self::NO_CACHE != 0,
            immutable: self.flags & Self::IMMUTABLE != 0,
        }
    }
}

/// What it says.
impl StoredResponse {
    /// Cache key: `scheme://host/path?query`.
    pub(crate) fn url(&self) -> &str {
        self.head.url()
    }

    /// Whether this is its cache key.
    pub(crate) fn is_of(&self, url: &str) -> bool {
        self.head.url_bytes() == url.as_bytes()
    }

    /// The hash of its cache key in the index.
    pub(crate) fn hash(&self) -> u128 {
        self.content.body.owner
    }

    /// The lines of the origin's fields as they are stored.
    pub(crate) fn lines(&self) -> Lines<'_> {
        self.head.fields()
    }

    /// The origin's fields. Takes time and memory: not for each hit.
    pub(crate) fn fields(&self) -> HeaderMap {
        self.head.fields().to_map()
    }

    /// The origin's `Strict-Transport-Security`.
    pub(crate) fn transport_security(&self) -> Option<&[u8]> {
        if !self.traits.has_transport_security {
            return None;
        }
        let mut lines = self.head.fields().texts();
        lines
            .find_map(|(name, value)| (name == STRICT_TRANSPORT_SECURITY.as_str()).then_some(value))
    }

    /// Its `Date`, in seconds after the Unix epoch.
    pub(crate) fn date_s(&self) -> Option<u64> {
        dates::date(&self.fields(), DATE)
    }

    /// The names in `Vary`.
    pub(crate) fn vary_names(&self) -> Vec<http::HeaderName> {
        match self.traits.has_vary {
            true => vary::names(&self.fields()).unwrap_or_default(),
            false => Vec::new(),
        }
    }

    /// The request fields that the site adds to the cache key.
    pub(crate) fn keyed(&self) -> HeaderMap {
        self.head.keyed().to_map()
    }

    /// Everything that decides on its age and its use.
    pub(crate) fn freshness(&self) -> Freshness {
        self.times.freshness()
    }

    /// When its request was sent, in milliseconds after the Unix epoch.
    pub(crate) fn requested_ms(&self) -> u64 {
        self.times.requested_ms
    }

    /// When its head was received, in milliseconds after the Unix epoch.
    pub(crate) fn received_ms(&self) -> u64 {
        self.times.received_ms
    }

    /// Whether an earlier run stored it.
    pub(crate) fn is_recovered(&self) -> bool {
        self.traits.is_recovered
    }

    /// Whether a removal of it may have been lost: it is never used without a validation.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.traits.is_doubtful
    }

    /// Whether a request that has these lines, and no fields that the site adds to the cache key,
    /// surely selects it. Allocates nothing.
    pub(crate) fn is_surely_selected<'a>(
        &self,
        request: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
    ) -> bool {
        self.head.keyed().is_empty()
            && (!self.traits.has_vary
                || vary::matches_exactly(
                    self.head.fields().texts(),
                    self.head.selecting().texts(),
                    request,
                ))
    }

    /// Whether a request with these fields selects it: by the fields that `Vary` names (RFC 9111
    /// section 4.1) and those that the site adds to the cache key.
    pub(crate) fn is_selected(&self, request: &HeaderMap, keyed: &HeaderMap) -> bool {
        let is_keyed = match self.head.keyed().is_empty() {
            true => keyed.is_empty(),
            false => self.keyed() == *keyed,
        };
        is_keyed
            && (!self.traits.has_vary
                || vary::is_selected(&self.fields(), &self.head.selecting().to_map(), request))
    }

    /// Hashes of the names in `Vary` and of their values; `None` when no request selects it (`Vary:
    /// *`).
    pub(crate) fn selection(&self) -> Option<vary::Selection> {
        match self.traits.has_vary {
            true => vary::Selection::of(&self.fields(), &self.head.selecting().to_map()),
            false => vary::Selection::of(&HeaderMap::new(), &HeaderMap::new()),
        }
    }

    /// Whether it carries the same body. Of one body there may be several contents: one of a response
    /// that has left the index and is still used, and one that was read from disk since.
    pub(crate) fn has_body_of(&self, other: &Self) -> bool {
        self.content.body.id == other.content.body.id
    }

    /// Whether it is the same response, perhaps read from disk anew.
    pub(crate) fn is_same_as(&self, other: &Self) -> bool {
        self.has_body_of(other) && self.received_ms() == other.received_ms()
    }

    /// Whether a newer response to the same URL replaces it.
    pub(crate) fn is_same_variant(&self, newer: &Self) -> bool {
        if let (Some(own), Some(other)) = (self.selection(), newer.selection())
            && own.names == other.names
            && own.hash != other.hash
        {
            return false;
        }
        self.is_selected(&newer.head.selecting().to_map(), &newer.keyed())
            && newer.is_selected(&self.head.selecting().to_map(), &self.keyed())
    }
}

/// What is noted of it.
impl StoredResponse {
    /// Whether it may have coded forms by the policy of its site. Cheap after the first call for a
    /// policy.
    pub(crate) fn is_compressible(&self, site: &SiteCompression) -> bool {
        // The lowest bit is the result; no policy has the number 0.
        let known = self.compressible.load(Ordering::Relaxed);
        if known >> 1 == u64::from(site.number) {
            return known & 1 == 1;
        }
        let found = compress::is_compressible(self.status, &self.fields(), &site.policy);
        let noted = u64::from(site.number) << 1 | u64::from(found);
        self.compressible.store(noted, Ordering::Relaxed);
        found
    }

    fn rare(&self) -> &Rare {
        let mut is_new = false;
        let rare = self.rare.get_or_init(|| {
            is_new = true;
            Box::default()
        });
        if is_new && !self.is(State::RETIRED) {
            let store = self.content.store();
            store.account_head(&self.content.body, self.bytes());
        }
        rare
    }

    fn coded_heads(&self) -> &CodedHeads {
        self.rare().coded_heads.get_or_init(Box::default)
    }

    /// A slot for the writer of HTTP/2 heads, which compresses fields for each connection: the head
    /// of a whole response without the fields that change with time. Nothing else reads or fills it.
    pub(crate) fn http2_fields(&self) -> &OnceLock<Box<HeaderMap>> {
        &self.rare().http2_fields
    }

    /// The same for HTTP/3, whose writer compresses fields without a memory of those before.
    pub(crate) fn http3_fields(&self) -> &OnceLock<Box<[u8]>> {
        &self.rare().http3_fields
    }

    /// The slot for the head of the form without a coding of a response that has coded forms.
    pub(crate) fn varying_http1_head(&self) -> &OnceLock<Box<[u8]>> {
        &self.coded_heads().identity
    }

    /// The same for HTTP/2.
    pub(crate) fn varying_http2_fields(&self) -> &OnceLock<Box<HeaderMap>> {
        &self.coded_heads().identity_http2
    }

    /// The same for HTTP/3.
    pub(crate) fn varying_http3_fields(&self) -> &OnceLock<Box<[u8]>> {
        &self.coded_heads().identity_http3
    }

    /// The slot for the head of a coded form.
    pub(crate) fn coded_head(&self, number: usize, form: &Content) -> Arc<CodedHead> {
        let slot = &self.coded_heads().coded[number];
        if let Some(head) = slot
            .load()
            .as_ref()
            .filter(|head| head.body == form.body.id)
        {
            return head.clone();
        }
        let head = Arc::new(CodedHead {
            body: form.body.id,
            http1: OnceLock::new(),
            http2: OnceLock::new(),
            http3: OnceLock::new(),
        });
        slot.store(Some(head.clone()));
        head
    }

    /// Failures of its validations, and when the next one is due.
    pub(crate) fn backoff(&self) -> &Backoff {
        &self.rare().backoff
    }

    /// The same, if a validation has failed.
    pub(crate) fn known_backoff(&self) -> Option<&Backoff> {
        self.rare.get().map(|rare| &rare.backoff)
    }

    /// Notes that a validation has succeeded.
    pub(crate) fn clear_backoff(&self) {
        if let Some(backoff) = self.known_backoff() {
            backoff.clear();
        }
    }

    /// Notes that a validation in the background begins. `false` where one is running.
    pub(crate) fn begin_validating(&self) -> bool {
        self.state.fetch_or(State::VALIDATING, Ordering::Relaxed) & State::VALIDATING == 0
    }

    /// Notes that it has ended.
    pub(crate) fn end_validating(&self) {
        self.state.fetch_and(!State::VALIDATING, Ordering::Relaxed);
    }

    fn is(&self, flag: u8) -> bool {
        self.state.load(Ordering::Relaxed) & flag != 0
    }

    /// Whether a purge covers it. Cheap if nothing was purged since the last call.
    pub(crate) fn purge_state(&self, generations: &Generations) -> PurgeState {
        if self.is(State::RETIRED | State::LOADING) {
            return PurgeState::Gone;
        }
        self.purge_state_of_loading(generations)
    }

    /// The same for one that is being read from disk.
    pub(crate) fn purge_state_of_loading(&self, generations: &Generations) -> PurgeState {
        let now = generations.revision();
        let since = self.clean_at.load(Ordering::Relaxed);
        if since < now {
            // Nearly all have none, and none is made without a purge.
            let tags = match self.traits.has_tags {
                // A response whose tags cannot be read is never stored, as no purge would find it.
                true => invalidate::tags(&self.fields()).unwrap_or_default(),
                false => Box::default(),
            };
            match generations.purge_state(
                since,
                PurgeSubject {
                    site: &self.site,
                    url: self.url(),
                    tags: &tags,
                },
            ) {
                PurgeState::Gone => return PurgeState::Gone,
                PurgeState::Soft => drop(self.state.fetch_or(State::SOFT, Ordering::Relaxed)),
                PurgeState::Clean => {}
            }
            self.clean_at.fetch_max(now, Ordering::Relaxed);
        }
        if self.is(State::SOFT) {
            PurgeState::Soft
        } else {
            PurgeState::Clean
        }
    }

    /// Makes it unusable for good. `true` for the first caller.
    pub(crate) fn retire(&self) -> bool {
        self.state.fetch_or(State::RETIRED, Ordering::Relaxed) & State::RETIRED == 0
    }

    /// Marks it as used at that time. Of the variants of a URL those used lately are evicted last.
    /// `true` for the first use in a second.
    pub(crate) fn note_used(&self, now_ms: u64) -> bool {
        let now_s = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
        // One store a second is enough, and a load keeps the cache line shared.
        let is_first = self.used_s.load(Ordering::Relaxed) != now_s;
        if is_first {
            self.used_s.store(now_s, Ordering::Relaxed);
        }
        is_first
    }

    /// When it was last used, in seconds after the Unix epoch; 0 for never.
    pub(crate) fn used_s(&self) -> u64 {
        self.used_s.load(Ordering::Relaxed).into()
    }

    /// Takes over the time of last use of a response that it replaces.
    pub(crate) fn inherit_use(&self, older: &Self) {
        let used_s = older.used_s.load(Ordering::Relaxed);
        self.used_s.fetch_max(used_s, Ordering::Relaxed);
    }

    /// Makes one that was read from disk usable.
    pub(crate) fn end_loading(&self) {
        self.state.fetch_and(!State::LOADING, Ordering::SeqCst);
    }

    /// Whether a soft purge is known to cover it.
    pub(crate) fn is_soft(&self) -> bool {
        self.is(State::SOFT)
    }

    /// Memory that it takes beside its slices, with its place in the index.
    pub(crate) fn bytes(&self) -> u32 {
        let text = self.head.as_bytes().len();
        let [content, validator] = self.content.allocations();
        let shared = allocated(content + COUNTS)
            + allocated(size_of::<StoredBody>() + COUNTS)
            + allocated(validator);
        // Slots are filled after they are counted: each with about the length of the text.
        let rare = self
            .rare
            .get()
            .map_or(0, |_| allocated(size_of::<Rare>()) + 4 * allocated(text));
        let own = allocated(size_of::<Self>() + COUNTS) + allocated(text) + rare;
        u32::try_from(own + shared + INDEX_BYTES).unwrap_or(u32::MAX)
    }
}

/// The counts of an `Arc`.
const COUNTS: usize = 2 * size_of::<usize>();
/// The place of a response in the index: an entry and a byte, in a table that is half to seven
/// eighths full.
const INDEX_BYTES: usize = 26;

/// The memory that an allocation of so many bytes takes.
fn allocated(bytes: usize) -> usize {
    (bytes + size_of::<usize>()).next_multiple_of(16).max(32)
}

/// Its form on disk.
impl StoredResponse {
    /// Queues its head for the disk.
    pub(crate) fn write_head(&self) {
        let store = self.content.store();
        let group = store.group(&self.site);
        let name = super::load::disk_name(self.url());
        store.put_head(&self.content.body, &name, group, self.encode());
    }

    /// Its form on disk.
    pub(crate) fn encode(&self) -> Bytes {
        let Times {
            requested_ms,
            received_ms,
            lifetime,
            initial_age,
            age_when_sent,
            stale_while_revalidate,
            stale_if_error,
            basis,
            flags,
        } = self.times;
        let head = self.head.as_bytes();
        let mut to = Vec::with_capacity(FIXED_BYTES + 64 + self.site.len() + head.len());
        to.push(FORM);
        to.push(match self.version {
            Version::HTTP_10 => 10,
            Version::HTTP_2 => 20,
            _ => 11,
        });
        to.extend_from_slice(&self.status.as_u16().to_le_bytes());
        to.push(number_of(basis));
        to.push(flags);
        to.push(u8::from(self.is_soft()));
        let seconds = [
            lifetime,
            initial_age,
            age_when_sent,
            stale_while_revalidate,
            stale_if_error,
        ];
        seconds
            .iter()
            .for_each(|s| to.extend_from_slice(&s.to_le_bytes()));
        let length = self.content.length().unwrap_or(LENGTH_UNKNOWN);
        for number in [
            requested_ms,
            received_ms,
            self.requested_at_revision,
            length,
        ] {
            to.extend_from_slice(&number.to_le_bytes());
        }
        let validator = self.content.validator();
        let (kind, validator) = match &validator {
            None => (0, &b""[..]),
            Some(StrongValidator::Tag(tag)) => (1, tag.as_bytes()),
            Some(StrongValidator::Date(date)) => (2, date.as_bytes()),
        };
        to.push(kind);
        for text in [validator, self.site.as_bytes()] {
            // A field and a name are far shorter.
            to.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
            to.extend_from_slice(text);
        }
        to.extend_from_slice(head);
        to.into()
    }
}

/// Bytes of the form on disk before its first text.
const FIXED_BYTES: usize = 7 + 5 * 4 + 4 * 8 + 1;
/// In the place of a length.
const LENGTH_UNKNOWN: u64 = u64::MAX;

const BASES: [Basis; 7] = [
    Basis::Nothing,
    Basis::Targeted,
    Basis::SMaxage,
    Basis::MaxAge,
    Basis::Expires,
    Basis::Heuristic,
    Basis::Default,
];

fn number_of(basis: Basis) -> u8 {
    BASES.iter().position(|known| *known == basis).unwrap_or(0) as u8
}

/// What a stored response is made from; its other parts follow from these.
#[derive(Debug, Clone)]
pub(crate) struct StoredResponseParts {
    pub(crate) head: Head,
    pub(crate) site: Arc<str>,
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) requested_ms: u64,
    pub(crate) freshness: Freshness,
    pub(crate) requested_at_revision: u64,
    pub(crate) is_soft: bool,
    pub(crate) is_recovered: bool,
    pub(crate) is_doubtful: bool,
}

impl StoredResponseParts {
    pub(crate) fn store(self, content: Arc<Content>) -> Arc<StoredResponse> {
        Arc::new(self.with(content, 0))
    }

    /// One that cannot be used before [`StoredResponse::end_loading`].
    pub(crate) fn loading(self, content: Arc<Content>) -> Arc<StoredResponse> {
        Arc::new(self.with(content, State::LOADING))
    }

    fn with(self, content: Arc<Content>, state: u8) -> StoredResponse {
        let has = |name: &str| self.head.fields().any(|(n, _)| n == name);
        let traits = Traits {
            has_vary: has(VARY.as_str()),
            has_tags: TAG_FIELDS.into_iter().any(has),
            has_transport_security: has(STRICT_TRANSPORT_SECURITY.as_str()),
            is_recovered: self.is_recovered,
            is_doubtful: self.is_doubtful,
        };
        StoredResponse {
            head: self.head,
            site: self.site,
            content,
            times: Times::of(self.requested_ms, &self.freshness),
            requested_at_revision: self.requested_at_revision,
            clean_at: AtomicU64::new(self.requested_at_revision),
            compressible: AtomicU64::new(0),
            rare: OnceLock::new(),
            used_s: AtomicU32::new(0),
            status: self.status,
            version: self.version,
            state: AtomicU8::new(state | if self.is_soft { State::SOFT } else { 0 }),
            traits,
        }
    }
}

/// The fields that name tags.
const TAG_FIELDS: [&str; 3] = ["cache-tag", "surrogate-key", "cache-groups"];

/// A response that was read from disk.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) parts: StoredResponseParts,
    pub(crate) length: Option<u64>,
    pub(crate) validator: Option<StrongValidator>,
}

impl Recovered {
    /// Reads the form that [`StoredResponse::encode`] writes. `None` for any other bytes. `site`
    /// gives the shared name of a site.
    pub(crate) fn decode(bytes: &[u8], site: impl Fn(&str) -> Arc<str>) -> Option<Self> {
        let mut from = Reader(bytes);
        let [form, version] = from.take()?;
        if form != FORM {
            return None;
        }
        let status = StatusCode::from_u16(u16::from_le_bytes(from.take()?)).ok()?;
        let [basis, flags, is_soft] = from.take()?;
        let mut seconds = [0_u32; 5];
        for value in &mut seconds {
            *value = u32::from_le_bytes(from.take()?);
        }
        let mut numbers = [0_u64; 4];
        for value in &mut numbers {
            *value = u64::from_le_bytes(from.take()?);
        }
        let [requested_ms, received_ms, requested_at_revision, length] = numbers;
        let [kind] = from.take()?;
        let validator = from.text()?;
        let name = std::str::from_utf8(from.text()?).ok()?;
        let head = Head::read(from.0)?;

        let [
            lifetime,
            initial_age,
            age_when_sent,
            stale_while_revalidate,
            stale_if_error,
        ] = seconds;
        let times = Times {
            requested_ms,
            received_ms,
            lifetime,
            initial_age,
            age_when_sent,
            stale_while_revalidate,
            stale_if_error,
            basis: *BASES.get(usize::from(basis))?,
            flags,
        };
        let has_tags = head.fields().any(|(name, _)| TAG_FIELDS.contains(&name));
        if has_tags {
            invalidate::tags(&head.fields().to_map()).ok()?;
        }
        let value = || HeaderValue::from_bytes(validator).ok();
        let validator = match kind {
            0 => None,
            1 => Some(StrongValidator::Tag(value()?)),
            2 => Some(StrongValidator::Date(value()?)),
            _ => return None,
        };
        let parts = StoredResponseParts {
            head,
            site: site(name),
            status,
            version: match version {
                10 => Version::HTTP_10,
                20 => Version::HTTP_2,
                _ => Version::HTTP_11,
            },
            requested_ms,
            freshness: times.freshness(),
            requested_at_revision,
            is_soft: is_soft != 0,
            is_recovered: true,
            is_doubtful: false,
        };
        Some(Self {
            parts,
            length: (length != LENGTH_UNKNOWN).then_some(length),
            validator,
        })
    }
}

/// Reads numbers and texts one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_le_bytes(self.take()?);
        let (text, rest) = self.0.split_at_checked(length.into())?;
        self.0 = rest;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;
    use nearcast_fleet::config::CachePolicy;

    use nearcast_http_rules::freshness::Exchange;
    use nearcast_store::{Pool, Store, StoreConfig};

    fn response(fields: &[(&'static str, &'static [u8])]) -> Arc<StoredResponse> {
        response_of(
            fields,
            Some(StrongValidator::Tag(HeaderValue::from_static("\"t\""))),
        )
    }

    fn response_of(
        fields: &[(&'static str, &'static [u8])],
        validator: Option<StrongValidator>,
    ) -> Arc<StoredResponse> {
        let (store, _gone) = Store::open(&StoreConfig {
            memory_bytes: 1 << 20,
            disk: None,
        });
        let store = Arc::new(store);
        let body = store.new_body(9, Pool::Pull);
        let content = Content::new(store, body, Some(5), validator);
        let fields = fields
            .iter()
            .map(|(n, v)| {
                (
                    HeaderName::from_static(n),
                    HeaderValue::from_bytes(v).expect("valid"),
                )
            })
            .collect();
        let none = HeaderMap::new();
        let parts = StoredResponseParts {
            head: Head::new("http://a.test/", &fields, &none, &none),
            site: "www".into(),
            status: StatusCode::OK,
            version: Version::HTTP_2,
            requested_ms: 1,
            freshness: Freshness::of(
                StatusCode::OK,
                &HeaderMap::new(),
                &CachePolicy::default(),
                Exchange {
                    requested_ms: 1,
                    received_ms: 2,
                },
            ),
            requested_at_revision: 3,
            is_soft: false,
            is_recovered: false,
            is_doubtful: false,
        };
        parts.store(content)
    }

    #[test]
    fn a_response_survives_being_written_down() {
        let stored = response(&[
            ("x-odd", b"caf\xe9"),
            ("cache-control", b"max-age=1"),
            ("cache-tag", b"a, b"),
        ]);
        let recovered = Recovered::decode(&stored.encode(), |site| site.into()).expect("own form");
        assert_eq!(recovered.parts.head, stored.head);
        assert_eq!(recovered.parts.freshness, stored.freshness());
        assert_eq!(recovered.parts.version, Version::HTTP_2);
        assert_eq!(
            (recovered.length, recovered.validator),
            (Some(5), stored.content.validator())
        );
        assert_eq!(
            (
                recovered.parts.requested_at_revision,
                recovered.parts.head.url(),
                recovered.parts.is_recovered
            ),
            (3, "http://a.test/", true)
        );
        let too_many = response(&[("cache-tag", "x".repeat(2000).leak().as_bytes())]);
        assert!(
            Recovered::decode(&too_many.encode(), |site| site.into()).is_none(),
            "no purge could find it"
        );
        assert!(
            Recovered::decode(b"{}", |site| site.into()).is_none()
                && Recovered::decode(b"\xff", |site| site.into()).is_none()
        );
    }

    #[test]
    fn a_response_takes_little_memory() {
        assert!(
            size_of::<StoredResponse>() <= 144,
            "{}",
            size_of::<StoredResponse>()
        );
        assert!(size_of::<Rare>() <= 128, "{}", size_of::<Rare>());
        let stored = response(&[
            ("content-type", b"text/html; charset=utf-8"),
            ("date", b"Mon, 02 Nov 2026 10:00:00 GMT"),
            ("etag", b"\"5f3c-5e1a9b2c3d4e5\""),
            ("last-modified", b"Sun, 01 Nov 2026 10:00:00 GMT"),
            ("cache-control", b"public, max-age=600"),
            ("server", b"nginx"),
        ]);
        assert!(stored.content.allocations()[0] <= 80);
        assert!(stored.bytes() <= 592, "{}", stored.bytes());
    }

    #[test]
    fn times_survive_in_their_short_form() {
        for seconds in [0, 1, 1 << 31] {
            for window in [None, Some(seconds)] {
                let freshness = Freshness {
                    lifetime: seconds,
                    basis: Basis::Heuristic,
                    initial_age: seconds,
                    age_when_sent: seconds,
                    received_ms: 1 << 42,
                    stale_while_revalidate: window,
                    stale_if_error: window,
                    must_revalidate: seconds == 0,
                    no_cache: seconds == 1,
                    immutable: seconds > 1,
                };
                assert_eq!(Times::of(7, &freshness).freshness(), freshness);
            }
        }
        assert!(
            BASES
                .iter()
                .all(|basis| BASES[usize::from(number_of(*basis))] == *basis)
        );
    }

    #[test]
    fn what_names_a_body_survives_in_every_form() {
        let tag = StrongValidator::Tag(HeaderValue::from_static("\"t\""));
        let date = StrongValidator::Date(HeaderValue::from_static("Mon, 02 Nov 2026 10:00:00 GMT"));
        for validator in [None, Some(tag), Some(date)] {
            let written = response_of(&[], validator.clone()).encode();
            assert_eq!(
                Recovered::decode(&written, |site| site.into())
                    .expect("own form")
                    .validator,
                validator
            );
        }
    }

    #[test]
    fn a_purge_that_came_later_makes_it_gone_and_a_soft_one_stays() {
        use nearcast_fleet::change::{Purge, PurgeScope};
        let generations = Generations::default();
        let stored = response(&[]);
        let fold = |revision, soft| {
            generations.fold(
                revision,
                &Purge {
                    scope: PurgeScope::All,
                    soft,
                },
            )
        };
        fold(3, false);
        assert_eq!(
            stored.purge_state(&generations),
            PurgeState::Clean,
            "its request was sent after that one"
        );
        fold(4, true);
        assert_eq!(stored.purge_state(&generations), PurgeState::Soft);
        assert_eq!(
            stored.purge_state(&generations),
            PurgeState::Soft,
            "also at the next look"
        );
        fold(5, false);
        assert_eq!(stored.purge_state(&generations), PurgeState::Gone);
    }
}
