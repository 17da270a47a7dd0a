//! A stored response: the origin's status and fields, the request they belong to, the times that
//! decide on its age, and the content.
//!
//! Owns its form on disk, which is kept beside its slices so that it survives a restart. Does not
//! decide whether a response may be stored or used.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use serde::{Deserialize, Serialize};

use super::generations::{Generations, PurgeState, PurgeSubject};
use crate::body::Content;
use crate::compress::SiteCompression;
use crate::origin::Backoff;
use crate::store::BodyId;
use nearcast_http_rules::compress::{self, CODINGS};
use nearcast_http_rules::conditional::StrongValidator;
use nearcast_http_rules::freshness::Freshness;
use nearcast_http_rules::{invalidate, vary};

/// Version of the form on disk and of the rules by which responses are stored. Responses of another
/// version are left out at start.
const FORM: u32 = 2;

/// A response in the index. All times are milliseconds after the Unix epoch.
#[derive(Debug)]
pub(crate) struct StoredResponse {
    /// Cache key: `scheme://host/path?query`.
    pub(crate) url: Arc<str>,
    pub(crate) hash: u128,
    pub(crate) site: Arc<str>,
    pub(crate) status: StatusCode,
    /// The version of HTTP in which it was received, for `Via`.
    pub(crate) version: Version,
    /// The origin's fields as they are stored.
    pub(crate) fields: HeaderMap,
    /// A slot for the writer of HTTP/1 heads: the head of a whole response without the fields that
    /// change with time, made for the first hit. Nothing else reads or fills it.
    pub(crate) http1_head: OnceLock<Box<[u8]>>,
    /// The same for HTTP/2, whose writer compresses fields for each connection.
    pub(crate) http2_fields: OnceLock<Box<HeaderMap>>,
    /// The same for HTTP/3, whose writer compresses fields without a memory of those before.
    pub(crate) http3_fields: OnceLock<Box<[u8]>>,
    /// Both for the form without a coding of a response that has coded forms, and for each of
    /// those.
    pub(crate) coded_heads: OnceLock<Box<CodedHeads>>,
    /// Whether it may have coded forms, with the number of the policy by which that was decided.
    compressible: AtomicU64,
    /// The request fields that `Vary` names.
    pub(crate) selecting: HeaderMap,
    /// The request fields that the site adds to the cache key.
    pub(crate) keyed: HeaderMap,
    /// Hashes of the names in `Vary` and of their values; `None` when no request selects it (`Vary:
    /// *`).
    pub(crate) selection: Option<vary::Selection>,
    /// When it was last used, in seconds after the Unix epoch; 0 for never.
    used_s: AtomicU64,
    pub(crate) requested_ms: u64,
    /// Everything that decides on its age and its use.
    pub(crate) freshness: Freshness,
    pub(crate) tags: Box<[Box<str>]>,
    pub(crate) content: Arc<Content>,
    /// Journal revision that was folded when its request was sent. Later purges may cover it.
    pub(crate) requested_at_revision: u64,
    /// Revision up to which purges have been applied to it.
    clean_at: AtomicU64,
    /// Covered by a soft purge: it must be validated before use.
    is_soft: AtomicBool,
    /// Restored from the disk at start.
    pub(crate) is_recovered: bool,
    /// A validation in the background is running.
    pub(crate) is_validating: AtomicBool,
    /// Failures of its validations, and when the next one is due.
    pub(crate) backoff: Backoff,
    /// Purged or replaced: it must not be used.
    is_retired: AtomicBool,
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

impl StoredResponse {
    /// Whether it may have coded forms by the policy of its site. Cheap after the first call for a
    /// policy.
    pub(crate) fn is_compressible(&self, site: &SiteCompression) -> bool {
        // The lowest bit is the result; no policy has the number 0.
        let known = self.compressible.load(Ordering::Relaxed);
        if known >> 1 == u64::from(site.number) {
            return known & 1 == 1;
        }
        let found = compress::is_compressible(self.status, &self.fields, &site.policy);
        let noted = u64::from(site.number) << 1 | u64::from(found);
        self.compressible.store(noted, Ordering::Relaxed);
        found
    }

    /// The slot for the head of the form without a coding of a response that has coded forms.
    pub(crate) fn varying_http1_head(&self) -> &OnceLock<Box<[u8]>> {
        &self.coded_heads.get_or_init(Box::default).identity
    }

    /// The same for HTTP/2.
    pub(crate) fn varying_http2_fields(&self) -> &OnceLock<Box<HeaderMap>> {
        &self.coded_heads.get_or_init(Box::default).identity_http2
    }

    /// The same for HTTP/3.
    pub(crate) fn varying_http3_fields(&self) -> &OnceLock<Box<[u8]>> {
        &self.coded_heads.get_or_init(Box::default).identity_http3
    }

    /// The slot for the head of a coded form.
    pub(crate) fn coded_head(&self, number: usize, form: &Content) -> Arc<CodedHead> {
        let slot = &self.coded_heads.get_or_init(Box::default).coded[number];
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

    /// Whether a purge covers it. Cheap if nothing was purged since the last call.
    pub(crate) fn purge_state(&self, generations: &Generations) -> PurgeState {
        if self.is_retired.load(Ordering::Relaxed) {
            return PurgeState::Gone;
        }
        let now = generations.revision();
        let since = self.clean_at.load(Ordering::Relaxed);
        if since < now {
            match generations.purge_state(
                since,
                PurgeSubject {
                    site: &self.site,
                    url: &self.url,
                    tags: &self.tags,
                },
            ) {
                PurgeState::Gone => return PurgeState::Gone,
                PurgeState::Soft => self.is_soft.store(true, Ordering::Relaxed),
                PurgeState::Clean => {}
            }
            self.clean_at.fetch_max(now, Ordering::Relaxed);
        }
        if self.is_soft.load(Ordering::Relaxed) {
            PurgeState::Soft
        } else {
            PurgeState::Clean
        }
    }

    /// Makes it unusable for good. `true` for the first caller.
    pub(crate) fn retire(&self) -> bool {
        !self.is_retired.swap(true, Ordering::Relaxed)
    }

    /// Whether a request with these fields selects it: by the fields that `Vary` names (RFC 9111
    /// section 4.1) and those that the site adds to the cache key.
    pub(crate) fn is_selected(&self, request: &HeaderMap, keyed: &HeaderMap) -> bool {
        self.keyed == *keyed && vary::is_selected(&self.fields, &self.selecting, request)
    }

    /// Marks it as used at that time. Of the variants of a URL those used lately are evicted last.
    /// `true` for the first use in a second.
    pub(crate) fn note_used(&self, now_ms: u64) -> bool {
        let now_s = now_ms / 1000;
        // One store a second is enough, and a load keeps the cache line shared.
        let is_first = self.used_s.load(Ordering::Relaxed) != now_s;
        if is_first {
            self.used_s.store(now_s, Ordering::Relaxed);
        }
        is_first
    }

    /// When it was last used, in seconds after the Unix epoch; 0 for never.
    pub(crate) fn used_s(&self) -> u64 {
        self.used_s.load(Ordering::Relaxed)
    }

    /// Takes over the time of last use of a response that it replaces.
    pub(crate) fn inherit_use(&self, older: &Self) {
        self.used_s.fetch_max(older.used_s(), Ordering::Relaxed);
    }

    /// Whether a newer response to the same URL replaces it.
    pub(crate) fn is_same_variant(&self, newer: &Self) -> bool {
        if let (Some(own), Some(other)) = (self.selection, newer.selection)
            && own.names == other.names
            && own.hash != other.hash
        {
            return false;
        }
        self.is_selected(&newer.selecting, &newer.keyed)
            && newer.is_selected(&self.selecting, &self.keyed)
    }

    /// Whether a soft purge is known to cover it.
    pub(crate) fn is_soft(&self) -> bool {
        self.is_soft.load(Ordering::Relaxed)
    }

    /// Estimated memory that it takes beside its slices.
    pub(crate) fn bytes(&self) -> u32 {
        let fields: usize = self
            .fields
            .iter()
            .chain(&self.selecting)
            .chain(&self.keyed)
            .map(|(n, v)| n.as_str().len() + v.len() + 80)
            .sum();
        let tags: usize = self.tags.iter().map(|tag| tag.len() + 32).sum();
        (600 + self.url.len() + 2 * fields + tags) as u32
    }

    /// Its form on disk.
    pub(crate) fn encode(&self) -> Bytes {
        let (strong_tag, strong_date) = match &self.content.validator {
            Some(StrongValidator::Tag(tag)) => (Some(text(tag)), None),
            Some(StrongValidator::Date(date)) => (None, Some(text(date))),
            None => (None, None),
        };
        let written = DiskForm {
            form: FORM,
            url: self.url.to_string(),
            site: self.site.to_string(),
            status: self.status.as_u16(),
            version: match self.version {
                Version::HTTP_10 => Some(10),
                Version::HTTP_2 => Some(20),
                _ => None,
            },
            fields: pairs(&self.fields),
            selecting: pairs(&self.selecting),
            keyed: pairs(&self.keyed),
            requested_ms: self.requested_ms,
            freshness: self.freshness,
            requested_at_revision: self.requested_at_revision,
            is_soft: self.is_soft.load(Ordering::Relaxed),
            length: self.content.length(),
            strong_tag,
            strong_date,
        };
        // A struct of strings and numbers always encodes.
        serde_json::to_vec(&written).unwrap_or_default().into()
    }
}

/// What a stored response is made from; its other fields follow from these.
#[derive(Debug, Clone)]
pub(crate) struct StoredResponseParts {
    pub(crate) url: Arc<str>,
    pub(crate) hash: u128,
    pub(crate) site: Arc<str>,
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) fields: HeaderMap,
    pub(crate) selecting: HeaderMap,
    pub(crate) keyed: HeaderMap,
    pub(crate) requested_ms: u64,
    pub(crate) freshness: Freshness,
    pub(crate) requested_at_revision: u64,
    pub(crate) is_soft: bool,
    pub(crate) is_recovered: bool,
}

impl StoredResponseParts {
    pub(crate) fn store(self, content: Arc<Content>) -> Arc<StoredResponse> {
        Arc::new(StoredResponse {
            selection: vary::Selection::of(&self.fields, &self.selecting),
            used_s: AtomicU64::new(0),
            // A response whose tags cannot be read is never stored, as no purge would find it.
            tags: invalidate::tags(&self.fields).unwrap_or_default(),
            url: self.url,
            hash: self.hash,
            site: self.site,
            status: self.status,
            version: self.version,
            fields: self.fields,
            http1_head: OnceLock::new(),
            http2_fields: OnceLock::new(),
            http3_fields: OnceLock::new(),
            coded_heads: OnceLock::new(),
            compressible: AtomicU64::new(0),
            selecting: self.selecting,
            keyed: self.keyed,
            requested_ms: self.requested_ms,
            freshness: self.freshness,
            content,
            requested_at_revision: self.requested_at_revision,
            clean_at: AtomicU64::new(self.requested_at_revision),
            is_soft: AtomicBool::new(self.is_soft),
            is_recovered: self.is_recovered,
            is_validating: AtomicBool::new(false),
            backoff: Backoff::default(),
            is_retired: AtomicBool::new(false),
        })
    }
}

/// A response that an earlier run wrote to disk.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) parts: StoredResponseParts,
    pub(crate) length: Option<u64>,
    pub(crate) validator: Option<StrongValidator>,
}

impl Recovered {
    /// Reads the form that [`StoredResponse::encode`] writes. `None` for any other bytes.
    pub(crate) fn decode(bytes: &[u8], hash: impl Fn(&str) -> u128) -> Option<Self> {
        let written: DiskForm = serde_json::from_slice(bytes)
            .ok()
            .filter(|w: &DiskForm| w.form == FORM)?;
        let parts = StoredResponseParts {
            hash: hash(&written.url),
            url: written.url.into(),
            site: written.site.into(),
            status: StatusCode::from_u16(written.status).ok()?,
            version: match written.version {
                Some(10) => Version::HTTP_10,
                Some(20) => Version::HTTP_2,
                _ => Version::HTTP_11,
            },
            fields: map(written.fields)?,
            selecting: map(written.selecting)?,
            keyed: map(written.keyed)?,
            requested_ms: written.requested_ms,
            freshness: written.freshness,
            requested_at_revision: written.requested_at_revision,
            is_soft: written.is_soft,
            is_recovered: true,
        };
        invalidate::tags(&parts.fields).ok()?;
        let validator = match (written.strong_tag, written.strong_date) {
            (Some(tag), _) => Some(StrongValidator::Tag(value(&tag)?)),
            (None, Some(date)) => Some(StrongValidator::Date(value(&date)?)),
            (None, None) => None,
        };
        Some(Self {
            parts,
            length: written.length,
            validator,
        })
    }
}

/// The form on disk, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct DiskForm {
    form: u32,
    url: String,
    site: String,
    status: u16,
    /// Ten times the version of HTTP; absent for 1.1, and in records of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<u8>,
    fields: Vec<(String, String)>,
    selecting: Vec<(String, String)>,
    keyed: Vec<(String, String)>,
    requested_ms: u64,
    freshness: Freshness,
    #[serde(rename = "born")]
    requested_at_revision: u64,
    is_soft: bool,
    length: Option<u64>,
    strong_tag: Option<String>,
    strong_date: Option<String>,
}

/// A field value as text, one character a byte, so that every value survives.
fn text(value: &HeaderValue) -> String {
    value.as_bytes().iter().map(|b| char::from(*b)).collect()
}

fn value(text: &str) -> Option<HeaderValue> {
    let bytes: Option<Vec<u8>> = text
        .chars()
        .map(|c| u8::try_from(u32::from(c)).ok())
        .collect();
    HeaderValue::from_bytes(&bytes?).ok()
}

fn pairs(fields: &HeaderMap) -> Vec<(String, String)> {
    fields
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), text(value)))
        .collect()
}

fn map(pairs: Vec<(String, String)>) -> Option<HeaderMap> {
    let mut fields = HeaderMap::with_capacity(pairs.len());
    for (name, text) in pairs {
        fields.append(HeaderName::from_bytes(name.as_bytes()).ok()?, value(&text)?);
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_fleet::config::CachePolicy;

    use crate::store::{Pool, Store, StoreConfig};
    use nearcast_http_rules::freshness::Exchange;

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
        let parts = StoredResponseParts {
            url: "http://a.test/".into(),
            hash: 9,
            site: "www".into(),
            status: StatusCode::OK,
            version: Version::HTTP_2,
            fields,
            selecting: HeaderMap::new(),
            keyed: HeaderMap::new(),
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
        let recovered = Recovered::decode(&stored.encode(), |_| 9).expect("own form");
        assert_eq!(recovered.parts.fields, stored.fields);
        assert_eq!(recovered.parts.version, Version::HTTP_2);
        assert_eq!(
            (recovered.length, recovered.validator),
            (Some(5), stored.content.validator.clone())
        );
        assert_eq!(
            (
                recovered.parts.requested_at_revision,
                recovered.parts.url.clone(),
                recovered.parts.is_recovered
            ),
            (3, stored.url.clone(), true)
        );
        let too_many = response(&[("cache-tag", "x".repeat(2000).leak().as_bytes())]);
        assert!(
            Recovered::decode(&too_many.encode(), |_| 9).is_none(),
            "no purge could find it"
        );
        assert!(
            Recovered::decode(b"{}", |_| 9).is_none()
                && Recovered::decode(b"\xff", |_| 9).is_none()
        );
    }

    #[test]
    fn what_names_a_body_survives_in_every_form() {
        let tag = StrongValidator::Tag(HeaderValue::from_static("\"t\""));
        let date = StrongValidator::Date(HeaderValue::from_static("Mon, 02 Nov 2026 10:00:00 GMT"));
        for validator in [None, Some(tag), Some(date)] {
            let written = response_of(&[], validator.clone()).encode();
            assert_eq!(
                Recovered::decode(&written, |_| 9)
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
