//! The life of one request, in order.
//!
//! host and method -> cache key -> look-up and Vary -> fresh? respond -> stale? respond and validate behind, or
//! validate first -> nothing or parts? join or lead the forward request, and read from the store as bytes come ->
//! one [`Outcome`] feeds `Cache-Status`, metrics and log. Follows RFC 9110, 9111, 9211 and 9209.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT_RANGES, AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST, IF_RANGE, RANGE, VIA};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use crate::body::{BodyCut, ClientBody, Pieces};
use crate::connection::Phase;
use crate::content::{Next, Reader};
use crate::decide::{self, Directives, Spec, Wanted};
use crate::edge::{Site, Sites, Worker, now_ms};
use crate::fill::{self, Ask, Forwards, Joined, Led, Source, Told};
use crate::metrics::Answer;
use crate::origin::{OriginBody, OriginError, OriginRequestBody};
use crate::purge::{Verdict, canonical_host};
use crate::response::StoredResponse;
use crate::store::Pool;

/// The path that health checks ask for, under any host.
const HEALTH_PATH: &str = "/.nearcast/health";
/// How often one request looks again because what it had found has changed under it.
const LOOKS_MAX: u32 = 6;
/// Bytes of a cache key.
const URL_BYTES_MAX: usize = 16 * 1024;
/// The field by which a node of the same cluster shows the node key.
pub(crate) const PEER: HeaderName = HeaderName::from_static("nearcast-peer");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// How a request was answered: the one value behind `Cache-Status`, metrics and log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) answer: Answer,
    /// Why the origin was asked (RFC 9211 section 2.2).
    pub(crate) forward: Option<&'static str>,
    pub(crate) forward_status: Option<StatusCode>,
    pub(crate) ttl: Option<i64>,
    pub(crate) is_stored: bool,
    pub(crate) is_collapsed: bool,
    pub(crate) detail: Option<&'static str>,
}

impl Outcome {
    fn new(answer: Answer) -> Self {
        Self { answer, forward: None, forward_status: None, ttl: None, is_stored: false, is_collapsed: false, detail: None }
    }

    fn forwarded(answer: Answer, reason: &'static str) -> Self {
        Self { forward: Some(reason), ..Self::new(answer) }
    }

    fn cache_status(&self, name: &str) -> HeaderValue {
        use std::fmt::Write;
        let mut text = String::with_capacity(96);
        text.push_str(name);
        match self.forward {
            None => text.push_str("; hit"),
            Some(reason) => {
                let _ = write!(text, "; fwd={reason}");
            }
        }
        if let Some(status) = self.forward_status {
            let _ = write!(text, "; fwd-status={}", status.as_u16());
        }
        if let Some(ttl) = self.ttl {
            let _ = write!(text, "; ttl={ttl}");
        }
        if self.is_stored {
            text.push_str("; stored");
        }
        if self.is_collapsed {
            text.push_str("; collapsed");
        }
        if let Some(detail) = self.detail {
            let _ = write!(text, "; detail=\"{detail}\"");
        }
        HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static("nearcast"))
    }
}

/// A request that has passed the checks.
struct Checked {
    worker: Arc<Worker>,
    site: Arc<Site>,
    url: Arc<str>,
    hash: u128,
    method: Method,
    path: PathAndQuery,
    host: HeaderValue,
    client: Arc<HeaderMap>,
    loop_id: HeaderValue,
    address: IpAddr,
    is_peer: bool,
    began_ms: u64,
    /// Journal revision that was folded when the request came.
    revision: u64,
}

/// Answers one request. Never fails: what goes wrong is an answer.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    phase: Arc<Phase>,
    client: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<ClientBody>, Infallible> {
    phase.request_began();
    let began = Instant::now();
    let (response, outcome, site, note) = respond(&worker, client, request).await;
    let counters = site.as_ref().map_or(&worker.edge.no_site, |s| &s.counters).clone();
    counters.answered(worker.number, outcome.answer, response.status().as_u16());
    worker.edge.metrics.took(worker.number, outcome.forward.is_some(), began.elapsed());
    tracing::debug!(answer = outcome.answer.label(), forward = outcome.forward, status = response.status().as_u16(), "answered");
    let number = worker.number;
    let (head, body) = response.into_parts();
    if let Some(bytes) = body.whole_length() {
        counters.sent(number, outcome.answer, bytes);
        if let Some(note) = &note {
            note.note(&worker, bytes);
        }
        phase.request_ended();
        return Ok(Response::from_parts(head, body));
    }
    if let Some(note) = &note {
        note.note(&worker, 0);
    }
    let body = body.on_end(move |bytes| {
        counters.sent(number, outcome.answer, bytes);
        if let Some(note) = note {
            worker.note_sent(note.hash, bytes);
            if note.is_pushed {
                counters.pushed_hit(number, bytes);
            }
        }
        phase.request_ended();
    });
    Ok(Response::from_parts(head, body))
}

/// What popularity and the accounts of pushes learn from an answer.
struct Note {
    hash: u128,
    site: Arc<Site>,
    url: Arc<str>,
    size: u64,
    is_pushed: bool,
}

impl Note {
    fn note(&self, worker: &Worker, bytes: u64) {
        worker.note_request(self.hash, &self.site.name, &self.url, bytes, self.size);
        if self.is_pushed && bytes > 0 {
            self.site.counters.pushed_hit(worker.number, bytes);
        }
    }
}

type Answered = (Response<ClientBody>, Outcome, Option<Arc<Site>>, Option<Note>);

fn local(status: StatusCode, words: &'static str) -> Answered {
    (plain(status, words), Outcome::new(Answer::Local), None, None)
}

fn plain(status: StatusCode, words: &'static str) -> Response<ClientBody> {
    let mut response = Response::new(ClientBody::whole(Bytes::from_static(words.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn respond(worker: &Arc<Worker>, client: IpAddr, request: Request<Incoming>) -> Answered {
    let edge = &worker.edge;
    if request.uri().path() == HEALTH_PATH {
        return match edge.is_draining.load(Ordering::Relaxed) {
            false => local(StatusCode::OK, "ok\n"),
            true => local(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        };
    }
    let (checked, body) = match check(worker, client, request) {
        Ok(checked) => checked,
        Err(refused) => return *refused,
    };
    let site = checked.site.clone();
    let is_read = matches!(checked.method, Method::GET | Method::HEAD);
    let (response, outcome, stored) = if is_read && hyper::body::Body::is_end_stream(&body) {
        look_up(&checked).await
    } else {
        let (response, outcome) = pass(&checked, Some(body), if is_read { "bypass" } else { "method" }).await;
        (response, outcome, None)
    };
    let note = (checked.method == Method::GET && !checked.is_peer && outcome.answer != Answer::Error).then(|| Note {
        hash: checked.hash,
        site: site.clone(),
        url: checked.url.clone(),
        size: stored.as_ref().and_then(|s| s.content.length()).unwrap_or(0),
        is_pushed: outcome.forward.is_none() && stored.is_some_and(|s| s.content.body.pool() == Pool::Pushed),
    });
    let outcome = if checked.is_peer { Outcome { answer: Answer::Local, ..outcome } } else { outcome };
    (response, outcome, Some(site), note)
}

/// The checks that need no look into the cache.
fn check(worker: &Arc<Worker>, client: IpAddr, request: Request<Incoming>) -> Result<(Checked, Incoming), Box<Answered>> {
    let refuse = |status, words| Err(Box::new(local(status, words)));
    let (head, body) = request.into_parts();
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        return refuse(StatusCode::NOT_IMPLEMENTED, "this method is not served here\n");
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return refuse(StatusCode::BAD_REQUEST, "more than one Host\n"),
        (Some(host), None) => host.to_str().ok(),
        (None, _) if head.version == Version::HTTP_11 => return refuse(StatusCode::BAD_REQUEST, "no Host\n"),
        (None, _) => Some(""),
    };
    // The authority of an absolute target wins (RFC 9112 section 3.2.2).
    let host = match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => host,
    };
    let Some(host) = host.filter(|h| is_host(h)) else { return refuse(StatusCode::BAD_REQUEST, "the Host is malformed\n") };
    let host = canonical_host(host);
    let sites = worker.edge.sites.load();
    let Some(site) = sites.of_host(&host) else {
        return refuse(StatusCode::MISDIRECTED_REQUEST, "no site of this network has that host\n");
    };
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    if !path.as_str().starts_with('/') && head.method != Method::OPTIONS {
        return refuse(StatusCode::BAD_REQUEST, "the request's target is malformed\n");
    }
    if path.as_str().len() + host.len() > URL_BYTES_MAX {
        return refuse(StatusCode::URI_TOO_LONG, "the request's target is too long\n");
    }
    let url = format!("http://{host}{path}");
    if head.headers.get_all(&CDN_LOOP).iter().filter_map(|v| v.to_str().ok()).any(|v| names_loop(v, &sites.loop_id)) {
        let mut looped = local(StatusCode::LOOP_DETECTED, "the request has come here before\n");
        let error = format!("{}; error=proxy_loop_detected", worker.edge.name);
        looped.0.headers_mut().extend(HeaderValue::try_from(error).ok().map(|v| (PROXY_STATUS, v)));
        return Err(Box::new(looped));
    }
    let is_peer = is_peer(&head.headers, &sites);
    let checked = Checked {
        worker: worker.clone(),
        site: site.clone(),
        hash: worker.edge.index.hash(&url),
        url: url.into(),
        method: head.method,
        path,
        host: HeaderValue::try_from(host).unwrap_or(HeaderValue::from_static("")),
        client: Arc::new(head.headers),
        loop_id: HeaderValue::try_from(sites.loop_id.as_str()).unwrap_or(HeaderValue::from_static("nearcast")),
        address: client,
        is_peer,
        began_ms: now_ms(),
        revision: worker.edge.generations.revision(),
    };
    Ok((checked, body))
}

fn is_host(host: &str) -> bool {
    host.len() <= 300
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']' | b'~' | b'%'))
}

fn names_loop(value: &str, id: &str) -> bool {
    value.split(',').any(|member| member.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case(id)))
}

fn is_peer(fields: &HeaderMap, sites: &Sites) -> bool {
    let (Some(shown), Some(key)) = (fields.get(&PEER), &sites.node_key) else { return false };
    let (shown, key) = (shown.as_bytes(), key.0.as_bytes());
    // Takes the same time for every wrong key of that length.
    shown.len() == key.len() && shown.iter().zip(key).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

type Found = (Response<ClientBody>, Outcome, Option<Arc<StoredResponse>>);

/// A GET or HEAD without a body: from the store where that is possible.
async fn look_up(checked: &Checked) -> Found {
    let edge = &checked.worker.edge;
    let asks = Directives::of_request(&checked.client);
    let only_stored = asks.only_if_cached && (checked.is_peer || checked.site.cache.obey_client);
    let mut is_collapsed = false;
    let mut is_alone = false;
    for _ in 0..LOOKS_MAX {
        let (stored, reason) = choose(checked);
        let mut stale = None;
        if let Some((response, verdict)) = stored {
            let standing = decide::standing(&response, checked.began_ms.max(response.received_ms), &checked.site.cache);
            let asked_for_us = is_collapsed && response.requested_ms + 1 >= checked.began_ms;
            let must_validate = standing.must_validate || verdict == Verdict::Soft || !edge.is_usable_unvalidated(&response);
            let client_allows = !checked.site.cache.obey_client || client_allows(&asks, standing);
            let is_fresh = (standing.ttl > 0 && client_allows || asked_for_us) && !must_validate;
            let allowed_stale =
                checked.site.cache.obey_client && asks.max_stale.is_some_and(|most| most.is_none_or(|m| -standing.ttl <= m as i64));
            if is_fresh || (standing.ttl <= 0 && allowed_stale && standing.on_error && !must_validate) {
                let answer = match is_collapsed || response.content.is_filling() {
                    true => Answer::Collapsed,
                    false if standing.ttl <= 0 => Answer::Stale,
                    false => Answer::Hit,
                };
                let mut outcome = Outcome { ttl: Some(standing.ttl), ..Outcome::new(answer) };
                if is_collapsed {
                    outcome = Outcome { forward: Some(reason), is_collapsed: true, ..outcome };
                }
                match deliver(checked, &response, outcome, standing.age).await {
                    Ok((delivered, outcome)) => return (delivered, outcome, Some(response)),
                    Err(Undelivered::LookAgain) => continue,
                    Err(Undelivered::Failed(error)) => return (failed(checked, error, "partial"), error_outcome("partial"), None),
                }
            }
            if standing.while_validating && !must_validate && !only_stored {
                validate_behind(checked, &response);
                let outcome = Outcome { ttl: Some(standing.ttl), ..Outcome::new(Answer::Stale) };
                if let Ok((delivered, outcome)) = deliver(checked, &response, outcome, standing.age).await {
                    return (delivered, outcome, Some(response));
                }
                continue;
            }
            stale = Some((response, standing.on_error && !must_validate));
        }
        if only_stored {
            let outcome = Outcome { detail: Some("only-if-cached"), ..Outcome::forwarded(Answer::Local, reason) };
            return (with_status(checked, plain(StatusCode::GATEWAY_TIMEOUT, "not stored here\n"), &outcome), outcome, None);
        }
        if checked.method == Method::HEAD && stale.is_none() {
            let (response, outcome) = pass(checked, None, reason).await;
            return (response, outcome, None);
        }
        let reason = if stale.is_some() { "stale" } else { reason };
        let joined = if is_alone { Joined::Alone } else { Forwards::join(edge, checked.hash) };
        let lead = match joined {
            Joined::Follower(mut told) => {
                let told = told.wait_for(|t| *t != Told::Waiting).await.map_or(Told::Unshared, |t| *t);
                match told {
                    Told::Published => is_collapsed = true,
                    Told::Waiting | Told::Unshared => is_alone = true,
                    Told::Failed(error) => match stale {
                        Some((response, true)) => {
                            if let Some(found) = deliver_stale(checked, &response, Some(error), None).await {
                                return found;
                            }
                        }
                        _ if error == OriginError::Unfit => is_alone = true,
                        _ => return (failed(checked, error, reason), error_outcome(reason), None),
                    },
                }
                continue;
            }
            Joined::Leader(lead) => Some(lead),
            Joined::Alone => None,
        };
        let led =
            fill::start(ask(checked, stale.as_ref().map(|s| s.0.clone())), lead).await.unwrap_or(Led::Failed(OriginError::Terminated));
        match led {
            Led::Filling { response, fill, is_stored } => {
                let outcome = Outcome { forward_status: Some(response.status), is_stored, ..Outcome::forwarded(Answer::Miss, reason) };
                let mut reader = response.content.reader(0, None);
                reader.attach(fill);
                return match deliver_from(checked, &response, outcome, 0, Some(reader)).await {
                    Ok((delivered, outcome)) => (delivered, outcome, Some(response)),
                    Err(Undelivered::Failed(error)) => (failed(checked, error, reason), error_outcome(reason), None),
                    Err(Undelivered::LookAgain) => continue,
                };
            }
            Led::Validated(response) => {
                let standing = decide::standing(&response, now_ms(), &checked.site.cache);
                let outcome = Outcome {
                    forward_status: Some(StatusCode::NOT_MODIFIED),
                    ttl: Some(standing.ttl),
                    is_stored: true,
                    ..Outcome::forwarded(Answer::Revalidated, reason)
                };
                match deliver(checked, &response, outcome, standing.age).await {
                    Ok((delivered, outcome)) => return (delivered, outcome, Some(response)),
                    Err(_) => continue,
                }
            }
            Led::Passing { head, body } => {
                let is_failure = matches!(head.status.as_u16(), 500 | 502 | 503 | 504);
                if is_failure
                    && let Some((response, true)) = &stale
                    && let Some(found) = deliver_stale(checked, response, None, Some(head.status)).await
                {
                    return found;
                }
                let outcome = Outcome { forward_status: Some(head.status), ..Outcome::forwarded(Answer::Miss, reason) };
                return (pass_on(checked, head, body, &outcome), outcome, None);
            }
            Led::Failed(error) => {
                if let Some((response, true)) = &stale
                    && let Some(found) = deliver_stale(checked, response, Some(error), None).await
                {
                    return found;
                }
                return (failed(checked, error, reason), error_outcome(reason), None);
            }
        }
    }
    let error = OriginError::Unfit;
    (failed(checked, error, "uri-miss"), error_outcome("uri-miss"), None)
}

fn client_allows(asks: &Directives, standing: decide::Standing) -> bool {
    !asks.no_cache
        && asks.max_age.is_none_or(|most| standing.age <= most)
        && asks.min_fresh.is_none_or(|least| standing.ttl >= least as i64)
}

/// The stored response for a request, and why there is none.
fn choose(checked: &Checked) -> (Option<(Arc<StoredResponse>, Verdict)>, &'static str) {
    let edge = &checked.worker.edge;
    let Some(variants) = edge.index.variants(checked.hash) else { return (None, "uri-miss") };
    let mut reason = "uri-miss";
    for response in variants.iter().filter(|r| r.url == checked.url) {
        let verdict = response.verdict(&edge.generations);
        if verdict == Verdict::Gone {
            continue;
        }
        if !decide::is_selected(response, &checked.client) {
            reason = "vary-miss";
            continue;
        }
        return (Some((response.clone(), verdict)), "stale");
    }
    (None, reason)
}

/// Starts one validation behind a stale answer.
fn validate_behind(checked: &Checked, response: &Arc<StoredResponse>) {
    if response.is_validating.swap(true, Ordering::Relaxed) {
        return;
    }
    let Some(lead) = Forwards::lead(&checked.worker.edge, checked.hash) else {
        response.is_validating.store(false, Ordering::Relaxed);
        return;
    };
    let led = fill::start(ask(checked, Some(response.clone())), Some(lead));
    let response = response.clone();
    tokio::spawn(async move {
        let _ = led.await;
        response.is_validating.store(false, Ordering::Relaxed);
    });
}

async fn deliver_stale(
    checked: &Checked,
    response: &Arc<StoredResponse>,
    error: Option<OriginError>,
    status: Option<StatusCode>,
) -> Option<Found> {
    let standing = decide::standing(response, now_ms(), &checked.site.cache);
    let outcome = Outcome {
        ttl: Some(standing.ttl),
        forward_status: status,
        detail: error.map(OriginError::proxy_error),
        ..Outcome::forwarded(Answer::Stale, "stale")
    };
    let (delivered, outcome) = deliver(checked, response, outcome, standing.age).await.ok()?;
    Some((delivered, outcome, Some(response.clone())))
}

fn ask(checked: &Checked, stale: Option<Arc<StoredResponse>>) -> Ask {
    let range = match (&stale, decide::specs(&checked.client).as_deref()) {
        // A range from the start on, several and the last bytes: the first answer tells the length.
        (None, Some([Spec::FromTo(first, last)])) if !checked.client.contains_key(IF_RANGE) => Some((*first, Some(last.saturating_add(1)))),
        (None, Some([Spec::From(first)])) if *first > 0 && !checked.client.contains_key(IF_RANGE) => Some((*first, None)),
        _ => None,
    };
    let has_stale = stale.is_some();
    let stale = stale.filter(|s| decide::has_validator(s));
    Ask {
        source: source(checked),
        url: checked.url.clone(),
        hash: checked.hash,
        client: checked.client.clone(),
        stale,
        has_stale,
        range,
        pool: Pool::Pull,
    }
}

fn source(checked: &Checked) -> Source {
    let mut fields = forward_fields(checked);
    for name in ["range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"] {
        fields.remove(name);
    }
    Source {
        worker: checked.worker.clone(),
        site: checked.site.clone(),
        target: checked.site.target.clone(),
        path: checked.path.clone(),
        fields: Arc::new(fields),
        is_peer: false,
        pacer: None,
    }
}

/// The fields of a request to the origin.
fn forward_fields(checked: &Checked) -> HeaderMap {
    let mut fields = decide::passed_fields(&checked.client);
    for name in ["expect", "x-forwarded-host", "x-forwarded-scheme", "x-original-url", "x-rewrite-url", "forwarded"] {
        fields.remove(name);
    }
    fields.remove(&PEER);
    fields.insert(HOST, checked.site.origin_host.clone().unwrap_or_else(|| checked.host.clone()));
    fields.append(VIA, checked.worker.edge.via.clone());
    fields.append(CDN_LOOP, checked.loop_id.clone());
    if let Ok(address) = HeaderValue::try_from(checked.address.to_string()) {
        fields.append("x-forwarded-for", address);
    }
    fields.insert("x-forwarded-proto", HeaderValue::from_static("http"));
    fields
}

enum Undelivered {
    /// What was found is not there any more.
    LookAgain,
    Failed(OriginError),
}

async fn deliver(
    checked: &Checked,
    response: &Arc<StoredResponse>,
    outcome: Outcome,
    age: u64,
) -> Result<(Response<ClientBody>, Outcome), Undelivered> {
    deliver_from(checked, response, outcome, age, None).await
}

/// Makes the response to the client out of a stored one: conditions, ranges, body.
async fn deliver_from(
    checked: &Checked,
    stored: &Arc<StoredResponse>,
    mut outcome: Outcome,
    age: u64,
    filling: Option<Reader>,
) -> Result<(Response<ClientBody>, Outcome), Undelivered> {
    let content = &stored.content;
    let is_first_hand = filling.is_some();
    let mut head = Response::new(());
    *head.status_mut() = stored.status;
    *head.headers_mut() = stored.fields.clone();
    let fields = head.headers_mut();
    if !is_first_hand || fields.contains_key(AGE) {
        fields.insert(AGE, HeaderValue::from(age));
    }
    fields.append(VIA, checked.worker.edge.via.clone());
    if decide::is_not_modified(&checked.client, stored) {
        for name in [CONTENT_TYPE, CONTENT_LENGTH, HeaderName::from_static("content-encoding"), HeaderName::from_static("content-language")]
        {
            fields.remove(name);
        }
        *head.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok((finish(checked, head, ClientBody::empty(), &outcome), outcome));
    }
    let length = content.length();
    let has_body = stored.status != StatusCode::NO_CONTENT;
    if has_body && stored.status == StatusCode::OK && length.is_some() {
        fields.entry(ACCEPT_RANGES).or_insert(HeaderValue::from_static("bytes"));
    }
    if checked.method == Method::HEAD || !has_body {
        if has_body && let Some(length) = length {
            fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        return Ok((finish(checked, head, ClientBody::empty(), &outcome), outcome));
    }
    let specs = decide::specs(&checked.client).filter(|_| {
        stored.status == StatusCode::OK && checked.client.contains_key(RANGE) && decide::if_range_holds(&checked.client, stored)
    });
    let wanted = match (specs, length) {
        (Some(specs), Some(length)) => decide::wanted(&specs, length),
        _ => Wanted::All,
    };
    let body = match wanted {
        Wanted::Unsatisfiable => {
            let complete = length.unwrap_or(0);
            fields.insert(CONTENT_RANGE, HeaderValue::try_from(format!("bytes */{complete}")).expect("digits are valid"));
            fields.remove(CONTENT_TYPE);
            *head.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            ClientBody::empty()
        }
        Wanted::All => {
            if let Some(length) = length {
                fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            match content.whole_in_memory() {
                Some(bytes) => ClientBody::whole(bytes),
                None => {
                    let reader = filling.unwrap_or_else(|| content.reader(0, length));
                    ClientBody::stream(read(checked, stored, reader, &mut outcome).await?, length)
                }
            }
        }
        Wanted::Ranges(ranges) if ranges.len() == 1 => {
            let (first, end) = ranges[0];
            let complete = length.unwrap_or(0);
            fields.insert(CONTENT_RANGE, HeaderValue::try_from(format!("bytes {first}-{}/{complete}", end - 1)).expect("digits are valid"));
            fields.insert(CONTENT_LENGTH, HeaderValue::from(end - first));
            *head.status_mut() = StatusCode::PARTIAL_CONTENT;
            let reader = content.reader(first, Some(end));
            ClientBody::stream(read(checked, stored, reader, &mut outcome).await?, Some(end - first))
        }
        Wanted::Ranges(ranges) => {
            let (body, length, kind) = multipart(checked, stored, &ranges);
            fields.insert(CONTENT_TYPE, kind);
            fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
            *head.status_mut() = StatusCode::PARTIAL_CONTENT;
            ClientBody::stream(body, Some(length))
        }
    };
    content.body.touch();
    Ok((finish(checked, head, body, &outcome), outcome))
}

fn finish(checked: &Checked, head: Response<()>, body: ClientBody, outcome: &Outcome) -> Response<ClientBody> {
    with_status(checked, head.map(|()| body), outcome)
}

fn with_status(checked: &Checked, mut response: Response<ClientBody>, outcome: &Outcome) -> Response<ClientBody> {
    if checked.is_peer {
        // What a node stores of this is the origin's, not ours.
        response.headers_mut().remove(VIA);
        response.headers_mut().insert(decide::REVISION, HeaderValue::from(checked.revision));
        return response;
    }
    response.headers_mut().append(CACHE_STATUS, outcome.cache_status(&checked.worker.edge.name));
    response
}

struct Reading {
    reader: Reader,
    stored: Arc<StoredResponse>,
    source: Source,
    first: Option<Bytes>,
    refills: u32,
}

/// Slices asked for again in one body without a byte in between.
const REFILLS_MAX: u32 = 3;

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        loop {
            match self.reader.next().await {
                Next::Piece(piece) => {
                    self.refills = 0;
                    return Ok(Some(piece));
                }
                Next::End => return Ok(None),
                Next::Failed(error) if self.refills >= REFILLS_MAX || self.stored.content.strong_tag.is_none() => return Err(error),
                Next::Missing if self.refills >= REFILLS_MAX => return Err(OriginError::Incomplete),
                Next::Failed(_) | Next::Missing => {
                    self.refills += 1;
                    let (at, end) = self.reader.range();
                    let end = end.unwrap_or(at + 1);
                    fill::refill(&self.source, &self.stored, at, end, Pool::Pull).await?;
                }
            }
        }
    }
}

/// The body of a range, as a stream. Where nothing is under way its first piece is had before the head is sent, so
/// that an origin that fails is an answer and not a cut.
async fn read(checked: &Checked, stored: &Arc<StoredResponse>, reader: Reader, outcome: &mut Outcome) -> Result<Pieces, Undelivered> {
    let is_first_hand = outcome.answer == Answer::Miss;
    let mut reading = Reading { reader, stored: stored.clone(), source: source(checked), first: None, refills: 0 };
    let (at, end) = reading.reader.range();
    if !stored.content.is_filling() || !stored.content.has_or_awaits(at) {
        let is_whole = end.is_none_or(|end| stored.content.has(at, end));
        if !is_whole && !is_first_hand {
            if stored.content.strong_tag.is_none() {
                checked.worker.edge.unpublish(stored);
                return Err(Undelivered::LookAgain);
            }
            *outcome = Outcome { answer: Answer::Partial, forward: Some("partial"), ..*outcome };
        }
        match reading.next().await {
            Ok(first) => reading.first = first,
            Err(OriginError::Unfit) => {
                checked.worker.edge.unpublish(stored);
                return Err(Undelivered::LookAgain);
            }
            Err(error) => return Err(Undelivered::Failed(error)),
        }
    }
    Ok(pieces(reading))
}

fn pieces(reading: Reading) -> Pieces {
    Box::pin(stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        match reading.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(reading))),
            Ok(None) => None,
            Err(error) => Some((Err(BodyCut(error.to_string())), None)),
        }
    }))
}

/// A `multipart/byteranges` body, its length and its content type.
fn multipart(checked: &Checked, stored: &Arc<StoredResponse>, ranges: &[(u64, u64)]) -> (Pieces, u64, HeaderValue) {
    let complete = stored.content.length().unwrap_or(0);
    let boundary = format!("nearcast{:016x}{:016x}", stored.content.body.id.0, checked.began_ms);
    let kind = stored.fields.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let mut length = 0;
    let mut parts: Vec<Part> = Vec::new();
    for (first, end) in ranges {
        let kind = kind.map(|k| format!("Content-Type: {k}\r\n")).unwrap_or_default();
        let start = if parts.is_empty() { "" } else { "\r\n" };
        let text = format!("{start}--{boundary}\r\n{kind}Content-Range: bytes {first}-{}/{complete}\r\n\r\n", end - 1);
        length += text.len() as u64 + end - first;
        parts.push(Part::Text(text.into()));
        let reader = stored.content.reader(*first, Some(*end));
        let reading = Reading { reader, stored: stored.clone(), source: source(checked), first: None, refills: 0 };
        parts.push(Part::Range(Box::new(reading)));
    }
    let last = format!("\r\n--{boundary}--\r\n");
    length += last.len() as u64;
    parts.push(Part::Text(last.into()));
    parts.reverse();
    let pieces = stream::unfold(parts, |mut parts| async {
        loop {
            match parts.pop()? {
                Part::Text(text) => return Some((Ok(text), parts)),
                Part::Range(mut reading) => match reading.next().await {
                    Ok(Some(piece)) => {
                        parts.push(Part::Range(reading));
                        return Some((Ok(piece), parts));
                    }
                    Ok(None) => {}
                    Err(error) => return Some((Err(BodyCut(error.to_string())), Vec::new())),
                },
            }
        }
    });
    let kind = HeaderValue::try_from(format!("multipart/byteranges; boundary={boundary}")).expect("letters are valid");
    (Box::pin(pieces), length, kind)
}

enum Part {
    Text(Bytes),
    Range(Box<Reading>),
}

/// Sends a request on without a look into the cache.
async fn pass(checked: &Checked, body: Option<Incoming>, reason: &'static str) -> (Response<ClientBody>, Outcome) {
    let mut request = Request::new(body.map_or(OriginRequestBody::Empty, OriginRequestBody::client));
    *request.method_mut() = checked.method.clone();
    *request.uri_mut() = checked.path.clone().into();
    *request.headers_mut() = forward_fields(checked);
    checked.site.counters.asked_origin(checked.worker.number);
    let answer = if checked.method == Method::HEAD { Answer::Miss } else { Answer::Bypass };
    match checked.worker.origins.send(&checked.site.target, request).await {
        Err(error) => (failed(checked, error, reason), error_outcome(reason)),
        Ok(response) => {
            let (head, body) = response.into_parts();
            if !checked.method.is_safe() && (head.status.is_success() || head.status.is_redirection()) {
                invalidate(checked, &head.headers);
            }
            let outcome = Outcome { forward_status: Some(head.status), ..Outcome::forwarded(answer, reason) };
            (pass_on(checked, head, body, &outcome), outcome)
        }
    }
}

/// Drops what an unsafe request has changed (RFC 9111 section 4.4).
fn invalidate(checked: &Checked, fields: &HeaderMap) {
    let edge = &checked.worker.edge;
    let mut urls = vec![checked.url.to_string()];
    for name in ["location", "content-location"] {
        if let Some(target) = fields.get(name).and_then(|v| v.to_str().ok()) {
            urls.extend(decide::same_origin_url(&checked.url, target));
        }
    }
    for url in urls {
        for response in edge.index.remove(edge.index.hash(&url), |r| *r.url == *url) {
            response.go();
            response.content.discard();
        }
    }
}

/// A response that goes to one client, as it comes.
fn pass_on(checked: &Checked, head: http::response::Parts, body: OriginBody, outcome: &Outcome) -> Response<ClientBody> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = decide::passed_fields(&head.headers);
    response.headers_mut().append(VIA, checked.worker.edge.via.clone());
    let length = body.length();
    let (counters, number) = (checked.site.counters.clone(), checked.worker.number);
    let pieces = stream::unfold(Some(body), move |body| {
        let counters = counters.clone();
        async move {
            let mut body = body?;
            match body.next().await {
                Ok(Some(piece)) => {
                    counters.received(number, piece.len() as u64);
                    Some((Ok(piece), Some(body)))
                }
                Ok(None) => None,
                Err(error) => Some((Err(BodyCut(error.to_string())), None)),
            }
        }
    });
    let is_bodyless = checked.method == Method::HEAD || matches!(head.status.as_u16(), 204 | 304) || length == Some(0);
    let body = if is_bodyless { ClientBody::empty() } else { ClientBody::stream(Box::pin(pieces), length) };
    finish(checked, response, body, outcome)
}

fn error_outcome(reason: &'static str) -> Outcome {
    Outcome::forwarded(Answer::Error, reason)
}

/// The answer where the origin failed and nothing stored helps.
fn failed(checked: &Checked, error: OriginError, reason: &'static str) -> Response<ClientBody> {
    tracing::debug!(site = %checked.site.name, url = %checked.url, %error, "the origin failed");
    let mut response = plain(error.status(), "the origin of this content does not answer\n");
    let status = format!("{}; error={}", checked.worker.edge.name, error.proxy_error());
    response.headers_mut().extend(HeaderValue::try_from(status).ok().map(|v| (PROXY_STATUS, v)));
    with_status(checked, response, &error_outcome(reason))
}
