//! The stored response that a request selects, and the fast path: most hits are answered from a
//! request's fields where they were read, without a map of them, a task or an allocation.
//!
//! Follows RFC 9111 sections 4 and 4.1.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AGE, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use nearcast_http_rules::compress::{self, Accepted, Form};
use nearcast_http_rules::decide::{self, Decision, Terms, decide};
use nearcast_http_rules::forward::{self, Via};
use nearcast_http_rules::https::STRICT_TRANSPORT_SECURITY;
use nearcast_http_rules::key;
use nearcast_http_rules::status::{ForwardReason, Outcome};
use nearcast_http_rules::vary;

use super::account;
use super::check::{ClientConnection, Request, may_be_own};
use super::form::set_form;
use crate::access_log::EntryOfHit;
use crate::body::Content;
use crate::edge::{Edge, Worker};
use crate::site::Site;
use crate::stored::generations::PurgeState;
use crate::stored::index::Variants;
use crate::stored::load::load;
use crate::stored::response::{CodedHead, StoredResponse};
use nearcast_fleet::report::CacheStatus;
use nearcast_store::Pool;

/// The stored response that a request selects.
pub(super) struct Found {
    pub(super) response: Arc<StoredResponse>,
    is_soft_purged: bool,
}

impl Found {
    /// Its facts, for the decision on the request.
    pub(super) fn facts(&self, edge: &Edge) -> decide::Stored {
        facts(edge, &self.response, self.is_soft_purged)
    }
}

fn facts(edge: &Edge, response: &StoredResponse, is_soft_purged: bool) -> decide::Stored {
    decide::Stored {
        freshness: response.freshness(),
        requested_ms: response.requested_ms(),
        is_soft_purged,
        is_unsynced: !edge.is_usable_unvalidated(response),
        is_awaited: response.content.is_awaited(),
    }
}

/// Whether a stored response belongs to a URL and is not purged; then whether a soft purge covers
/// it.
pub(super) fn is_soft_purged(edge: &Edge, response: &StoredResponse, url: &str) -> Option<bool> {
    match response.purge_state(&edge.generations) {
        PurgeState::Gone => None,
        _ if !response.is_of(url) => None,
        state => Some(state == PurgeState::Soft),
    }
}

/// Whether a stored response can be used at any moment until then without a validation.
pub(crate) fn is_usable_until(edge: &Edge, response: &StoredResponse, until_ms: u64) -> bool {
    is_soft_purged(edge, response, response.url())
        .is_some_and(|is_soft| facts(edge, response, is_soft).is_usable_until(until_ms))
}

/// Finds the stored response in memory that a request selects, or why there is none.
pub(super) fn find(edge: &Edge, request: &Request) -> Result<Found, ForwardReason> {
    match edge.index.variants(request.hash) {
        Some(variants) => select(edge, request, &variants),
        None => Err(ForwardReason::UriMiss),
    }
}

/// Selects the stored response for a request, or says why it selects none.
fn select(edge: &Edge, request: &Request, variants: &Variants) -> Result<Found, ForwardReason> {
    let soft_purged = |response: &StoredResponse| is_soft_purged(edge, response, &request.url);
    let found = |response: &Arc<StoredResponse>, is_soft_purged| {
        response.note_used(request.began_ms);
        Found {
            response: response.clone(),
            is_soft_purged,
        }
    };

    // Nearly always there is one.
    if let [response] = &variants[..]
        && let Some(is_soft_purged) = soft_purged(response)
    {
        return match response.is_selected(&request.fields, &request.keyed) {
            true => Ok(found(response, is_soft_purged)),
            false => Err(ForwardReason::VaryMiss),
        };
    }
    let selected = variants
        .selected(&request.fields, &request.keyed)
        .into_iter()
        .filter_map(|r| Some((r, soft_purged(r)?)));
    let newest =
        vary::newest(selected.map(|(r, is_soft)| ((r, is_soft), r.date_s(), r.received_ms())));
    match newest {
        Some((response, is_soft_purged)) => Ok(found(response, is_soft_purged)),
        None if variants.iter().any(|r| soft_purged(r).is_some()) => Err(ForwardReason::VaryMiss),
        None => Err(ForwardReason::UriMiss),
    }
}

/// The same, where necessary after it was read from disk.
pub(super) async fn find_or_load(
    edge: &Arc<Edge>,
    request: &Request,
) -> Result<Found, ForwardReason> {
    let found = find(edge, request);
    if found.is_ok() {
        return found;
    }
    match load(edge, &request.url, request.hash).await {
        Some(loaded) => find(edge, request).or_else(|_| select(edge, request, &loaded)),
        // Another request may have read it meanwhile.
        None => find(edge, request),
    }
}

/// A GET without a body, condition or range, whose `Connection` names no other field.
pub(crate) struct HitRequest<'a, F> {
    pub(crate) host: &'a str,
    /// In origin form.
    pub(crate) path: &'a str,
    pub(crate) version: Version,
    /// Names and values of its fields.
    pub(crate) fields: F,
    /// It has directives on the use of stored responses.
    pub(crate) has_directives: bool,
}

/// A fresh stored response that answers a request whole, for a protocol to write.
pub(crate) struct Hit {
    /// Its only member is the stored response.
    variants: Variants,
    form: HitForm,
    /// Seconds, for `Age`.
    pub(crate) age: u64,
    pub(crate) outcome: Outcome,
    pub(crate) body: Bytes,
    /// The site's `Strict-Transport-Security`, where the client asked by `https`.
    hsts: Option<HeaderValue>,
}

/// The form of the stored response that the client gets.
enum HitForm {
    Only,
    /// Without a coding, of a response that has coded forms.
    Identity,
    Coded {
        form: Form,
        content: Arc<Content>,
        head: Arc<CodedHead>,
    },
}

impl HitForm {
    /// The form that a request gets; `None` where the ordinary path has to decide on it or to make
    /// it.
    fn of<'a>(
        stored: &StoredResponse,
        site: &Site,
        has_directives: bool,
        fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Option<Self> {
        let policy = &site.compression;
        if !stored.is_compressible(policy)
            || !compress::is_fit_length(stored.content.length(), &policy.policy)
        {
            return Some(Self::Only);
        }
        // One of them may be `no-transform`.
        if has_directives {
            return None;
        }
        let lines = fields
            .filter(|(name, _)| name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str()))
            .map(|(_, value)| value);
        let Some(coding) = Accepted::of(lines).preferred(&policy.policy.codings) else {
            return Some(Self::Identity);
        };
        let number = compress::number(coding);
        if stored.content.is_coded_refused(number) {
            return Some(Self::Identity);
        }
        let slot = stored.content.coded(number)?;
        let content = slot.as_ref().filter(|content| !content.is_filling())?;
        Some(Self::Coded {
            form: Form::Coded(coding),
            content: content.clone(),
            head: stored.coded_head(number, content),
        })
    }
}

impl Hit {
    fn stored(&self) -> &StoredResponse {
        &self.variants[0]
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.stored().status
    }

    /// `Strict-Transport-Security`: the site's, which may change at any time, or the origin's.
    pub(crate) fn transport_security(&self) -> Option<&[u8]> {
        let of_origin = || self.stored().transport_security();
        self.hsts
            .as_ref()
            .map(HeaderValue::as_bytes)
            .or_else(of_origin)
    }

    /// The stored response, where this client gets it in its only form. Its lines are the lasting
    /// fields then, but for those that each response of this cache has.
    pub(crate) fn as_stored(&self) -> Option<&StoredResponse> {
        matches!(self.form, HitForm::Only).then(|| self.stored())
    }

    /// The fields that are the same for every client at any time: all but `Age`, `Cache-Status` and
    /// [`Hit::transport_security`].
    pub(crate) fn lasting_fields(&self, via: &Via) -> HeaderMap {
        let stored = self.stored();
        let via = via.received(stored.version);
        let mut fields =
            forward::stored(stored.fields(), None, stored.status == StatusCode::OK, via);
        fields.remove(AGE);
        fields.remove(STRICT_TRANSPORT_SECURITY);
        let (form, coded) = match &self.form {
            HitForm::Only => (Form::Only, None),
            HitForm::Identity => (Form::Identity, None),
            HitForm::Coded { form, content, .. } => (*form, Some(&**content)),
        };
        set_form(&mut fields, form, coded, &HeaderMap::new());
        if stored.status != StatusCode::NO_CONTENT {
            fields.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        }
        fields
    }

    /// Where HTTP/1 keeps these fields as it writes them, unless it writes them as they are stored.
    pub(crate) fn http1_head(&self) -> Option<&OnceLock<Box<[u8]>>> {
        match &self.form {
            HitForm::Only => None,
            HitForm::Identity => Some(self.stored().varying_http1_head()),
            HitForm::Coded { head, .. } => Some(&head.http1),
        }
    }

    /// Where HTTP/2 keeps these fields.
    pub(crate) fn http2_fields(&self) -> &OnceLock<Box<HeaderMap>> {
        match &self.form {
            HitForm::Only => self.stored().http2_fields(),
            HitForm::Identity => self.stored().varying_http2_fields(),
            HitForm::Coded { head, .. } => &head.http2,
        }
    }

    /// Where HTTP/3 keeps these fields, and the status before them, as it writes them.
    pub(crate) fn http3_fields(&self) -> &OnceLock<Box<[u8]>> {
        match &self.form {
            HitForm::Only => self.stored().http3_fields(),
            HitForm::Identity => self.stored().varying_http3_fields(),
            HitForm::Coded { head, .. } => &head.http3,
        }
    }
}

/// The fast path: answers a request by one fresh response whose body is one slice in memory.
/// `None` has no effect: the request takes the ordinary path.
pub(crate) fn try_hit<'a>(
    worker: &Worker,
    client: &ClientConnection,
    request: HitRequest<'_, impl Iterator<Item = (&'a str, &'a [u8])> + Clone>,
    url: &mut String,
) -> Option<Hit> {
    let began = Instant::now();
    let edge = &worker.edge;
    let sites = edge.sites.load();
    client.with_last_host(worker, request.host, &sites, |known| {
        let site = &known.site;
        let is_ordinary = may_be_own(edge, request.path)
            || request.has_directives && site.cache.obey_client
            || !site.cache.key_fields.is_empty()
            || key::ambiguity(request.path).is_some();
        if is_ordinary {
            return None;
        }

        let seen = client.seen(&sites.trusted_proxies, request.fields.clone());
        let is_https = seen.scheme == "https";
        // Both need an answer, or a count, of the ordinary path.
        if seen.is_malformed || site.redirects_to_https && !is_https {
            return None;
        }
        known.host.write_url(seen.scheme, request.path, url).ok()?;
        let hash = edge.index.hash(url);
        let variants = edge.index.variants(hash)?;
        let [stored] = &variants[..] else { return None };
        let is_soft_purged = is_soft_purged(edge, stored, url)?;
        if stored.content.is_filling() || !stored.is_surely_selected(request.fields.clone()) {
            return None;
        }

        let now = edge.clock.unix_ms();
        let found = Ok(facts(edge, stored, is_soft_purged));
        let terms = Terms::plain(&site.cache, now);
        let Decision::Serve { outcome, age, .. } = decide(&terms, found) else {
            return None;
        };
        if outcome.label != CacheStatus::Hit {
            return None;
        }
        let form = HitForm::of(stored, site, request.has_directives, request.fields.clone())?;
        let content = match &form {
            HitForm::Coded { content, .. } => content,
            HitForm::Only | HitForm::Identity => &stored.content,
        };
        let body = content.whole_in_memory()?;
        content.body.touch();
        let size = stored.content.length().unwrap_or(0);
        if stored.note_used(now.max(stored.received_ms())) {
            stored.content.keep_in_memory();
            edge.store.note_use(&stored.content.body);
        }

        let took = account::count(worker, &site.counters, &outcome, stored.status, began);
        let sent = body.len() as u64;
        site.counters.sent(worker.number, outcome.label, sent);
        worker.note_request(hash, &site.name, stored.url(), sent, size);
        if sent > 0 && stored.content.body.pool() == Pool::Pushed {
            site.counters.pushed_hit(worker.number, sent);
        }
        worker.log.note_new(|is_logged| {
            let [referer, user_agent] = match is_logged {
                true => logged_fields(request.fields),
                false => [&b""[..]; 2],
            };
            EntryOfHit {
                began_ms: now,
                client: seen.address,
                host: request.host,
                path: request.path,
                version: request.version,
                tls: client.tls_version(),
                referer,
                user_agent,
                site: &site.name,
                status: stored.status.as_u16(),
                bytes: sent,
                outcome: &outcome,
                took,
            }
        });
        Some(Hit {
            variants,
            form,
            age,
            outcome,
            body,
            hsts: site.hsts.clone().filter(|_| is_https),
        })
    })
}

/// The values of `Referer` and `User-Agent`; empty where they are absent.
fn logged_fields<'a>(fields: impl Iterator<Item = (&'a str, &'a [u8])>) -> [&'a [u8]; 2] {
    let mut found = [&b""[..]; 2];
    for (name, value) in fields {
        if name.eq_ignore_ascii_case("referer") {
            found[0] = value;
        } else if name.eq_ignore_ascii_case("user-agent") {
            found[1] = value;
        }
    }
    found
}
