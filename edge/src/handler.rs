//! The life of one request, in order.
//!
//! host and method -> cache key -> look-up and Vary -> fresh? respond -> stale? respond and
//! validate behind, or validate first -> nothing or parts? join or lead the forward request, and
//! read from the store as bytes come -> one [`Outcome`] feeds `Cache-Status`, metrics and log.
//! Follows RFC 9110, 9111, 9211 and 9209.

mod upgrade;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    COOKIE, HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
    MAX_FORWARDS, RANGE, RETRY_AFTER, SET_COOKIE, VIA,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;

use crate::body::{BodyCut, ClientBody, Pieces, Progress};
use crate::connection::Phase;
use crate::content::{Next, Reader};
use crate::edge::{Edge, Knowledge, Site, Sites, Worker, now_ms};
use crate::forward::{
    Cookies, FollowerStep, ForwardRequest, Forwarded, Join, OriginRequest, Requester, SharedError,
    Turns, WantedSlices, refill,
};
use crate::http1::write_head;
use crate::interim::InterimSender;
use crate::metrics::{Answer, SiteCounters};
use crate::origin::{Failing, OriginBody, OriginError, OriginRequestBody, Target};
use crate::peer::{PEER, REVISION, is_peer};
use crate::purge::{Verdict, canonical_host};
use crate::purge_request;
use crate::request_head::Refusal;
use crate::response::StoredResponse;
use crate::store::Pool;
use nearcast_http_rules::conditional::{self, HeadSays, Precondition};
use nearcast_http_rules::fields::CacheControl;
use nearcast_http_rules::forward::{self, ClientFields, Forwarder, Loop, MaxForwards};
use nearcast_http_rules::freshness::{self, Exchange, NotStored, RequestFacts};
use nearcast_http_rules::key::{self, Key, KeyError, MethodClass};
use nearcast_http_rules::range::{self, ByteRange, ContentRange, Multipart, Part};
use nearcast_http_rules::request_fields::Unusual;
use nearcast_http_rules::reuse::{self, Reuse};
use nearcast_http_rules::status::{
    self, CACHE_STATUS, ForwardReason, Outcome, PROXY_STATUS, ProxyError,
};
use nearcast_http_rules::{invalidate, request_fields, vary};

pub(crate) use self::upgrade::{Served, serve_upgrade};

/// The path that health checks ask for, under any host, unless the fleet file names another one.
const HEALTH_PATH: &str = "/.nearcast/health";

/// A request that has passed the checks.
#[derive(Clone)]
struct Checked {
    worker: Arc<Worker>,
    site: Arc<Site>,
    url: Arc<str>,
    hash: u128,
    method: Method,
    path: PathAndQuery,
    host: HeaderValue,
    client: Arc<HeaderMap>,
    /// The client's fields that the site keys by.
    keyed: Arc<HeaderMap>,
    loop_id: HeaderValue,
    address: IpAddr,
    is_peer: bool,
    began_ms: u64,
    /// Journal revision that was folded when the request came.
    revision: u64,
    /// Where interim responses go; `None` where the client gets none.
    interim: Option<InterimSender>,
}

impl Checked {
    /// The origin that the request goes to where it is forwarded.
    fn target(&self) -> &Arc<Target> {
        self.site
            .origins
            .pick(tokio::time::Instant::now(), self.hash)
    }
}

/// Answers one request; without a body where that is `None`. Never fails: what goes wrong is an
/// answer.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    phase: Arc<Phase>,
    client: IpAddr,
    last: Arc<Mutex<LastHost>>,
    interim: Option<InterimSender>,
    request: Request<Option<Incoming>>,
) -> Response<ClientBody> {
    let began = Instant::now();
    let answered = respond(&worker, client, &last, interim, request).await;
    conclude(&worker, phase, began, answered)
}

/// Counts an answer, and its bytes as they go.
fn conclude(
    worker: &Arc<Worker>,
    phase: Arc<Phase>,
    began: Instant,
    answered: Answered,
) -> Response<ClientBody> {
    let (response, outcome, site, note) = answered;
    let worker = worker.clone();
    let counters = site
        .as_ref()
        .map_or(&worker.edge.no_site, |s| &s.counters)
        .clone();
    account(&worker, &counters, &outcome, response.status(), began);
    let number = worker.number;
    let (head, body) = response.into_parts();
    if let Some(bytes) = body.whole_length() {
        counters.sent(number, outcome.label, bytes);
        if let Some(note) = &note {
            note.note(&worker, bytes);
        }
        phase.request_ended();
        return Response::from_parts(head, body);
    }
    if let Some(note) = &note {
        note.note(&worker, 0);
        if note.is_pushed {
            counters.pushed_hit(number, 0);
        }
    }
    let body = body.observed(move |progress| match progress {
        Progress::Piece(bytes) => {
            counters.sent(number, outcome.label, bytes);
            if note.as_ref().is_some_and(|note| note.is_pushed) {
                counters.pushed_sent(number, bytes);
            }
        }
        Progress::End(bytes) => {
            if let Some(note) = &note {
                worker.note_sent(note.hash, bytes);
            }
            phase.request_ended();
        }
    });
    Response::from_parts(head, body)
}

/// What an answer does to the figures, but for the bytes of its body.
fn account(
    worker: &Worker,
    counters: &SiteCounters,
    outcome: &Outcome,
    status: StatusCode,
    began: Instant,
) {
    counters.answered(worker.number, outcome.label, status.as_u16());
    worker
        .edge
        .metrics
        .took(worker.number, outcome.forward.is_some(), began.elapsed());
    tracing::debug!(
        answer = outcome.label.as_str(),
        forward = outcome.forward.map(ForwardReason::as_str),
        status = status.as_u16(),
        "answered"
    );
}

/// A GET without a body, condition or range, whose `Connection` names no other field: its fields
/// are where they were read.
pub(crate) struct Brief<'a> {
    pub(crate) host: &'a str,
    /// In origin form.
    pub(crate) path: &'a str,
    pub(crate) fields: &'a [httparse::Header<'a>],
    /// It says how it wants stored responses to be used.
    pub(crate) has_directives: bool,
}

/// The short way for most hits: one fresh response whose body is one slice in memory. Appends the
/// response's head but for the empty line after it, and gives its body. `None` does nothing: the
/// long way finds out why.
pub(crate) fn serve_brief(
    worker: &Worker,
    last: &LastHost,
    brief: &Brief<'_>,
    url: &mut String,
    head: &mut Vec<u8>,
) -> Option<Bytes> {
    let began = Instant::now();
    let edge = &worker.edge;
    let Known { host, site, .. } = last.known(brief.host, &edge.sites.load())?;
    let is_health = brief.path == HEALTH_PATH || edge.standing.refuses(brief.path);
    let is_long = is_health
        || brief.has_directives && site.cache.obey_client
        || !site.cache.key_fields.is_empty();
    if is_long || key::ambiguity(brief.path).is_some() {
        return None;
    }
    url.clear();
    write_plain_url(host, brief.path, url)?;
    let hash = edge.index.hash(url);
    let variants = edge.index.variants(hash)?;
    let [stored] = &variants[..] else { return None };
    let is_clean =
        usable(edge, stored, url)? == Verdict::Clean && edge.is_usable_unvalidated(stored);
    let fields = brief.fields.iter().map(|f| (f.name, f.value));
    if !is_clean
        || stored.content.is_filling()
        || !stored.keyed.is_empty()
        || !vary::is_repeated(&stored.fields, &stored.selecting, fields)
    {
        return None;
    }
    let now = now_ms().max(stored.freshness.received_ms);
    let standing = reuse::standing(&stored.freshness, None, false, &site.cache, now);
    if standing.reuse != Reuse::Fresh {
        return None;
    }
    let body = stored.content.whole_in_memory()?;
    stored.content.body.touch();
    stored.note_used(now);
    let outcome = Outcome::hit(standing.ttl);
    head.extend_from_slice(
        stored
            .whole_head
            .get_or_init(|| whole_head(stored, body.len(), &edge.via)),
    );
    head.extend_from_slice(b"age: ");
    status::write_integer(standing.age.try_into().unwrap_or(i64::MAX), head);
    head.extend_from_slice(b"\r\ncache-status: ");
    outcome.write(&edge.name, head);
    head.extend_from_slice(b"\r\n");
    account(worker, &site.counters, &outcome, stored.status, began);
    let sent = body.len() as u64;
    site.counters.sent(worker.number, outcome.label, sent);
    worker.note_request(hash, &site.name, &stored.url, sent, sent);
    if sent > 0 && stored.content.body.pool() == Pool::Pushed {
        site.counters.pushed_hit(worker.number, sent);
    }
    Some(body)
}

/// The part of the head of a whole stored response that is the same for every client at any time.
fn whole_head(stored: &StoredResponse, length: usize, via: &HeaderValue) -> Box<[u8]> {
    let mut fields = forward::stored(&stored.fields, None, stored.status == StatusCode::OK, via);
    fields.remove(AGE);
    if stored.status != StatusCode::NO_CONTENT {
        fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let mut head = Vec::with_capacity(512);
    write_head(&mut head, stored.status, &fields);
    head.into()
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

/// The answer to what is no request.
pub(crate) fn refused(worker: &Worker, refusal: &Refusal) -> Response<ClientBody> {
    let began = Instant::now();
    let response = error(
        &worker.edge,
        refusal.status,
        refusal.error,
        refusal.words.clone(),
    );
    let (counters, outcome) = (&worker.edge.no_site, Outcome::local(""));
    account(worker, counters, &outcome, response.status(), began);
    counters.sent(
        worker.number,
        outcome.label,
        response.body().whole_length().unwrap_or(0),
    );
    response
}

/// An answer of this node's own to a request that it refuses, with the reason for programs and for
/// people.
fn error(
    edge: &Edge,
    status: StatusCode,
    error: ProxyError,
    words: Cow<'static, str>,
) -> Response<ClientBody> {
    let mut response = plain(status, "");
    *response.body_mut() = ClientBody::whole(match words {
        Cow::Borrowed(words) => Bytes::from_static(words.as_bytes()),
        Cow::Owned(words) => words.into(),
    });
    response
        .headers_mut()
        .insert(PROXY_STATUS, error.proxy_status(&edge.name));
    response
}

type Answered = (
    Response<ClientBody>,
    Outcome,
    Option<Arc<Site>>,
    Option<Note>,
);

fn local(status: StatusCode, words: &'static str) -> Answered {
    (plain(status, words), Outcome::local(""), None, None)
}

fn plain(status: StatusCode, words: &'static str) -> Response<ClientBody> {
    let mut response = Response::new(ClientBody::whole(Bytes::from_static(words.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn respond(
    worker: &Arc<Worker>,
    client: IpAddr,
    last: &Mutex<LastHost>,
    interim: Option<InterimSender>,
    request: Request<Option<Incoming>>,
) -> Answered {
    let edge = &worker.edge;
    if request.uri().path() == HEALTH_PATH {
        return match edge.standing.refusal() {
            None => local(StatusCode::OK, "ok\n"),
            Some(why) => local(StatusCode::SERVICE_UNAVAILABLE, why),
        };
    }
    if is_refused_check(edge, &request)
        && let Some(why) = edge.standing.refusal()
    {
        return local(StatusCode::SERVICE_UNAVAILABLE, why);
    }
    let (mut checked, body) = match check(
        worker,
        client,
        &mut last.lock().expect("one request at a time"),
        request,
    ) {
        Ok(checked) => checked,
        Err(refused) => return *refused,
    };
    let body_bytes_max = checked.site.origins.limits().request_bytes_max;
    if let (Some(body), Some(most)) = (&body, body_bytes_max)
        && body.size_hint().lower() > most.0
    {
        let mut response = refuse_request(worker, OriginError::RequestTooLarge);
        // What comes is not read.
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
        return (response, Outcome::local(""), Some(checked.site), None);
    }
    checked.interim = interim;
    let site = checked.site.clone();
    if purge_request::is_purge(&checked.method) {
        return (
            purge(&checked).await,
            Outcome::local("purge"),
            Some(site),
            None,
        );
    }
    let has_body = body.as_ref().is_some_and(|b| !b.is_end_stream());
    let is_ambiguous = || key::ambiguity(checked.path.as_str()).is_some();
    let (response, outcome, stored) = match key::method_class(&checked.method) {
        MethodClass::Get | MethodClass::Head if has_body || is_ambiguous() => {
            let cause = if has_body {
                NotStored::RequestBody
            } else {
                NotStored::AmbiguousPath
            };
            let (response, outcome) =
                pass(&checked, body, ForwardReason::Bypass, Some(cause)).await;
            (response, outcome, None)
        }
        MethodClass::Get | MethodClass::Head => look_up(&checked).await,
        MethodClass::Safe | MethodClass::Refused => {
            let (response, outcome) = pass(
                &checked,
                body,
                ForwardReason::Method,
                Some(NotStored::Method),
            )
            .await;
            (response, outcome, None)
        }
        MethodClass::Unsafe => pass_unsafe(&checked, body).await,
    };
    let note = (checked.method == Method::GET
        && !checked.is_peer
        && outcome.label != Answer::Error)
        .then(|| Note {
            hash: checked.hash,
            site: site.clone(),
            url: checked.url.clone(),
            size: stored
                .as_ref()
                .and_then(|s| s.content.length())
                .unwrap_or(0),
            is_pushed: outcome.forward.is_none()
                && stored.is_some_and(|s| s.content.body.pool() == Pool::Pushed),
        });
    let outcome = if checked.is_peer {
        Outcome {
            label: Answer::Local,
            ..outcome
        }
    } else {
        outcome
    };
    (response, outcome, Some(site), note)
}

/// Whether it asks for the health path that the fleet file names, which is an ordinary one while
/// the node wants clients, and always for other nodes of its cluster, which ask for clients of
/// theirs.
fn is_refused_check<B>(edge: &Edge, request: &Request<B>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && request
            .uri()
            .path_and_query()
            .is_some_and(|target| edge.standing.refuses(target.as_str()))
        && !request.headers().contains_key(PEER)
}

/// The URL of a key for a host that is canonical. The rules are the policy's; what plainly fits
/// them is put together here.
fn key_url(host: &str, path: &str) -> Result<String, KeyError> {
    let mut url = String::with_capacity("http://".len() + host.len() + path.len());
    match write_plain_url(host, path, &mut url) {
        Some(()) => Ok(url),
        None => Key::new("http", host, path).map(|key| key.url.into()),
    }
}

fn write_plain_url(host: &str, path: &str, url: &mut String) -> Option<()> {
    let is_plain = path.len() <= key::PATH_BYTES_MAX
        && path.starts_with('/')
        && path.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b'#');
    if is_plain {
        url.push_str("http://");
        url.push_str(host);
        url.push_str(path);
    }
    is_plain.then_some(())
}

/// The host that a connection's last request named, and what came of it: nearly always the next one
/// names the same.
#[derive(Default)]
pub(crate) struct LastHost(Option<Known>);

struct Known {
    /// As the client wrote it.
    named: Box<str>,
    /// The sites that it was looked up in.
    sites: Arc<Sites>,
    host: Box<str>,
    host_field: HeaderValue,
    site: Arc<Site>,
}

impl LastHost {
    fn known(&self, named: &str, sites: &Arc<Sites>) -> Option<&Known> {
        self.0
            .as_ref()
            .filter(|known| *known.named == *named && Arc::ptr_eq(&known.sites, sites))
    }

    fn keep(&mut self, known: Known) -> &Known {
        self.0.insert(known)
    }
}

/// The checks that need no look into the cache.
fn check(
    worker: &Arc<Worker>,
    client: IpAddr,
    last: &mut LastHost,
    request: Request<Option<Incoming>>,
) -> Result<(Checked, Option<Incoming>), Box<Answered>> {
    let refuse_for = |status, reason, words: &'static str| {
        let response = error(&worker.edge, status, reason, words.into());
        Err(Box::new((response, Outcome::local(""), None, None)))
    };
    let refuse = |status, words| refuse_for(status, ProxyError::HttpRequestError, words);
    let (mut head, body) = request.into_parts();
    if key::method_class(&head.method) == MethodClass::Refused {
        return refuse_for(
            StatusCode::NOT_IMPLEMENTED,
            ProxyError::HttpRequestDenied,
            "this method is not served here\n",
        );
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => {
            return refuse(
                StatusCode::BAD_REQUEST,
                "the request has more than one Host field\n",
            );
        }
        (Some(host), None) => host.to_str().ok(),
        (None, _) if head.version == Version::HTTP_11 => {
            return refuse(StatusCode::BAD_REQUEST, "the request has no Host field\n");
        }
        (None, _) => Some(""),
    };
    // The authority of an absolute target wins, but does not make up for a `Host` that is none (RFC
    // 9112 section 3.2).
    if head.uri.authority().is_some()
        && host.is_none_or(|h| !h.is_empty() && key::authority("http", h).is_err())
    {
        return refuse(StatusCode::BAD_REQUEST, "the Host is malformed\n");
    }
    let host = match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => host,
    };
    let sites = worker.edge.sites.load();
    let known = host.and_then(|h| last.known(h, &sites));
    let Known {
        host,
        host_field,
        site,
        ..
    } = match known {
        Some(known) => known,
        None => {
            let Some(named) = host.filter(|h| key::authority("http", h).is_ok()) else {
                return refuse(StatusCode::BAD_REQUEST, "the Host is malformed\n");
            };
            // The port is the one that the client reached this node by: it says nothing of the
            // resource.
            let host = canonical_host(named);
            let Some(site) = sites.of_host(&host) else {
                let words = "no site of this network has that host\n";
                return refuse_for(
                    StatusCode::MISDIRECTED_REQUEST,
                    ProxyError::DestinationNotFound,
                    words,
                );
            };
            let host_field = HeaderValue::try_from(&host).unwrap_or(HeaderValue::from_static(""));
            last.keep(Known {
                named: named.into(),
                sites: sites.clone(),
                host: host.into(),
                host_field,
                site: site.clone(),
            })
        }
    };
    let path = match head.uri.path_and_query() {
        None => PathAndQuery::from_static("/"),
        // An absolute target may have a query behind an empty path, which is `/` (RFC 9110 section
        // 4.2.3).
        Some(path) if path.as_str().starts_with('?') => match path.to_string().parse() {
            Ok(path) => path,
            Err(_) => {
                return refuse(
                    StatusCode::BAD_REQUEST,
                    "the request's target is malformed\n",
                );
            }
        },
        Some(path) => path.clone(),
    };
    let is_asterisk = path.as_str() == "*" && head.method == Method::OPTIONS;
    let url: Arc<str> = match key_url(host, path.as_str()) {
        Ok(url) => url.into(),
        Err(_) if is_asterisk => format!("http://{host}/*").into(),
        Err(error) => {
            return refuse(
                error.status(),
                "the request's target is malformed or too long\n",
            );
        }
    };
    let loop_id = sites
        .loop_id
        .clone()
        .unwrap_or(HeaderValue::from_static("nearcast"));
    if forward::find_loop(&head.headers, loop_id.as_bytes()) != Loop::Clear {
        return refuse_for(
            StatusCode::LOOP_DETECTED,
            ProxyError::ProxyLoopDetected,
            "the request has come here before\n",
        );
    }
    match forward::max_forwards(&head.method, &head.headers) {
        MaxForwards::Unlimited => {}
        MaxForwards::Left(left) => drop(head.headers.insert(MAX_FORWARDS, HeaderValue::from(left))),
        MaxForwards::Here => return Err(Box::new(local(StatusCode::OK, ""))),
    }
    let is_peer = is_peer(&head.headers, &sites.peer_secrets);
    let checked = Checked {
        worker: worker.clone(),
        site: site.clone(),
        hash: worker.edge.index.hash(&url),
        url,
        method: head.method,
        path,
        host: host_field.clone(),
        keyed: match site.cache.key_fields.is_empty() {
            true => worker.no_fields.clone(),
            false => Arc::new(request_fields::keyed(&head.headers, &site.cache)),
        },
        client: Arc::new(head.headers),
        loop_id,
        address: client,
        is_peer,
        began_ms: now_ms(),
        revision: worker.edge.generations.revision(),
        interim: None,
    };
    Ok((checked, body))
}

/// The answer to a request that is the client's own fault.
fn refuse_request(worker: &Worker, error: OriginError) -> Response<ClientBody> {
    let words = match error {
        OriginError::RequestTooLarge => "the request's body is larger than this site takes\n",
        OriginError::RequestPause => "the request's body did not come in time\n",
        _ => "the request's body ended early\n",
    };
    let mut response = plain(error.status(), words);
    response
        .headers_mut()
        .insert(PROXY_STATUS, error.proxy_status(&worker.edge.name));
    response
}

type Found = (Response<ClientBody>, Outcome, Option<Arc<StoredResponse>>);

/// A GET or HEAD without a body: from the store where that is possible.
async fn look_up(checked: &Checked) -> Found {
    let edge = &checked.worker.edge;
    let policy = &checked.site.cache;
    let asks =
        (policy.obey_client || checked.is_peer).then(|| CacheControl::of_request(&checked.client));
    let only_stored = reuse::is_only_if_cached(asks.as_ref(), policy)
        || checked.is_peer && asks.as_ref().is_some_and(|a| a.only_if_cached);
    let mut turns = Turns::default();
    while turns.begin() {
        let is_collapsed = turns.has_waited();
        let (stored, mut reason) = choose(checked);
        let mut stale: Option<Stale> = None;
        if let Some((response, verdict)) = stored {
            let now = checked.began_ms.max(response.freshness.received_ms);
            let standing = reuse::standing(
                &response.freshness,
                asks.as_ref(),
                verdict == Verdict::Soft,
                policy,
                now,
            );
            let is_unknown = !edge.is_usable_unvalidated(&response);
            // It was asked for, or came, while this request waited: that is as good as its own.
            let freshness = &response.freshness;
            let is_asked_for = response.requested_ms >= checked.began_ms && !freshness.no_cache;
            let has_come = freshness.received_ms >= checked.began_ms
                && freshness.is_for_those_who_waited()
                && !standing.reuse.is_of_request();
            let is_ours = is_collapsed && verdict == Verdict::Clean && (is_asked_for || has_come);
            if !is_unknown && (standing.reuse.may_serve_now() || is_ours) {
                let mut outcome = Outcome::hit(standing.ttl);
                if is_collapsed || response.content.is_awaited() {
                    outcome = Outcome {
                        is_collapsed: true,
                        ..Outcome::forwarded(Answer::Collapsed, ForwardReason::UriMiss)
                    };
                } else if matches!(standing.reuse, Reuse::Stale { .. }) && !only_stored {
                    validate_behind(checked, &response);
                }
                match deliver(checked, &response, outcome, standing.age).await {
                    Ok((delivered, outcome)) => return (delivered, outcome, Some(response)),
                    Err(Undelivered::LookAgain) => continue,
                    Err(Undelivered::Failed(error)) => {
                        return failed(checked, error, ForwardReason::Partial);
                    }
                }
            }
            reason = match standing.reuse {
                Reuse::MustValidate { reason, .. } if reason.is_of_request() => {
                    ForwardReason::Request
                }
                _ => ForwardReason::Stale,
            };
            let on_failure = match is_unknown {
                false if standing.reuse.may_serve_on_error() => OnFailure::Use,
                true if reuse::may_serve_unsynced(
                    &response.freshness,
                    asks.as_ref(),
                    policy,
                    standing.ttl,
                ) =>
                {
                    OnFailure::UseUnsynced
                }
                false | true => OnFailure::Fail,
            };
            let found = Stale {
                response,
                on_failure,
                reuse: standing.reuse,
            };
            if reason == ForwardReason::Stale
                && !only_stored
                && on_failure != OnFailure::Fail
                && let Some((detail, is_due)) = backs_off(checked, &found.response)
                && let Some(is_unsynced) = found.may_serve(checked).await
            {
                // Nobody waits for what is known to fail; it is asked behind what it is known to
                // hold up.
                if is_due {
                    validate_behind(checked, &found.response);
                }
                let outcome = Outcome {
                    label: Answer::Stale,
                    detail: Some(detail),
                    is_unsynced,
                    ..Outcome::hit(standing.ttl)
                };
                if let Ok((delivered, outcome)) =
                    deliver(checked, &found.response, outcome, standing.age).await
                {
                    if is_unsynced {
                        checked.site.counters.served_unsynced(checked.worker.number);
                    }
                    return (delivered, outcome, Some(found.response));
                }
            }
            stale = Some(found);
        }
        if only_stored {
            let outcome = Outcome {
                detail: Some("only-if-cached"),
                ..Outcome::forwarded(Answer::Local, reason)
            };
            return (
                with_status(
                    checked,
                    plain(StatusCode::GATEWAY_TIMEOUT, "not stored here\n"),
                    &outcome,
                ),
                outcome,
                None,
            );
        }
        if checked.method == Method::HEAD && stale.is_none() {
            let (response, outcome) = pass(checked, None, reason, Some(NotStored::Method)).await;
            return (response, outcome, None);
        }
        let unusual = Unusual::of(&checked.client, policy);
        let requester = Requester::of(&edge.index, &checked.client, &unusual, &checked.keyed);
        if wanted(checked).is_some() && edge.forwards.is_unjoinable(checked.hash, &requester) {
            return pass_request(checked, stale.as_ref(), reason).await;
        }
        let may_wait = turns.may_wait(reason == ForwardReason::VaryMiss);
        let is_own = match &stale {
            // What comes for credentials is nobody else's, as long as nothing stored shows that it
            // is.
            None => checked.client.contains_key(AUTHORIZATION),
            // What is to be validated for each request is not waited for (RFC 9111 section
            // 5.2.2.4), nor what unusual fields bring about.
            Some(Stale { response, .. }) => {
                let vary = vary::names(&response.fields).unwrap_or_default();
                response.freshness.no_cache || !unusual.are_varied_on(&vary)
            }
        };
        let join = if !may_wait || is_own {
            Join::Alone
        } else {
            edge.forwards.join(checked.hash, requester.clone())
        };
        let leader = match join {
            Join::Follower(follower) => match follower.wait().await {
                FollowerStep::LookUpStored => {
                    turns.note_stored();
                    continue;
                }
                FollowerStep::ForwardAlone => {
                    turns.forward_alone();
                    continue;
                }
                FollowerStep::LookUpAgain => continue,
                FollowerStep::ErrorResponse {
                    status,
                    cause,
                    shared,
                } => {
                    return on_others_error(checked, stale, (status, cause), shared, reason).await;
                }
                FollowerStep::Fail(error) => {
                    return on_others_failure(checked, stale, error, reason).await;
                }
            },
            // Another's forward request has brought a response since the look-up.
            Join::Leader(leader) if has_changed(checked, stale.as_ref()) => {
                leader.resign();
                continue;
            }
            Join::Leader(leader) => Some(leader),
            // What is not shared is this client's alone: its range and conditions are the origin's
            // to answer. But many origins answer several ranges with the whole, however large:
            // those are asked for one at a time.
            Join::Alone if stale.is_none() && !is_plain(checked) && !asks_several(checked) => {
                let (response, outcome) = pass(checked, None, reason, None).await;
                return (response, outcome, None);
            }
            Join::Alone => None,
        };
        let response = stale.as_ref().map(|s| s.response.clone());
        let forwarded = forward_request(checked, requester, response).spawn(leader);
        match forwarded
            .await
            .unwrap_or(Forwarded::Failed(OriginError::Terminated))
        {
            Forwarded::Filling {
                response,
                fill,
                not_stored,
                received,
                cookies,
            } => {
                let is_stored = not_stored.is_none();
                if !is_stored
                    && let Some(found) =
                        deliver_stale_on_error(checked, stale.as_ref(), response.status).await
                {
                    return found;
                }
                let ttl = is_stored.then(|| response.freshness.ttl(now_ms()));
                let outcome = Outcome {
                    forward_status: Some(received),
                    is_stored,
                    not_stored,
                    ttl,
                    ..Outcome::forwarded(Answer::Miss, reason)
                };
                let mut reader = response.content.reader(0, None);
                reader.attach(fill);
                return match deliver_from(checked, &response, outcome, None, Some(reader)).await {
                    Ok((delivered, outcome)) => {
                        (with_cookies(delivered, cookies), outcome, Some(response))
                    }
                    Err(Undelivered::Failed(error)) => failed(checked, error, reason),
                    Err(Undelivered::LookAgain) => continue,
                };
            }
            Forwarded::Validated {
                response,
                received,
                cookies,
                not_stored,
            } => {
                let now = now_ms();
                let outcome = Outcome {
                    forward_status: Some(received),
                    ttl: Some(response.freshness.ttl(now)),
                    is_stored: not_stored.is_none(),
                    not_stored,
                    ..Outcome::forwarded(Answer::Revalidated, reason)
                };
                match deliver(checked, &response, outcome, response.freshness.age(now)).await {
                    Ok((delivered, outcome)) => {
                        return (with_cookies(delivered, cookies), outcome, Some(response));
                    }
                    Err(_) => continue,
                }
            }
            Forwarded::PassResponse {
                head,
                body,
                not_stored,
            } => {
                if let Some(found) =
                    deliver_stale_on_error(checked, stale.as_ref(), head.status).await
                {
                    return found;
                }
                let not_stored = Some(not_stored);
                let outcome = Outcome {
                    forward_status: Some(head.status),
                    not_stored,
                    ..Outcome::forwarded(Answer::Miss, reason)
                };
                return (pass_on(checked, head, body, &outcome), outcome, None);
            }
            Forwarded::PassRequest => return pass_request(checked, stale.as_ref(), reason).await,
            Forwarded::Failed(error) => return on_failure(checked, stale, error, reason).await,
        }
    }
    failed(checked, OriginError::Unfit, ForwardReason::Miss)
}

/// A response with the cookies that came for this client alone.
fn with_cookies(mut response: Response<ClientBody>, cookies: Cookies) -> Response<ClientBody> {
    for cookie in cookies {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    response
}

/// A stored response that has to be validated.
#[derive(Clone)]
struct Stale {
    response: Arc<StoredResponse>,
    on_failure: OnFailure,
    reuse: Reuse,
}

/// What becomes of a stored response whose validation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnFailure {
    /// It may not be used.
    Fail,
    /// It is used.
    Use,
    /// It is of an earlier run, and a purge of it may be missing: it is used only where control
    /// does not answer either.
    UseUnsynced,
}

/// How long a request whose validation has failed waits to learn whether control answers, and what
/// has been purged. Until then the node has only just started.
const KNOWLEDGE_WAIT_MAX: Duration = Duration::from_secs(1);

impl Stale {
    /// Whether it may be used now that its validation has failed, and then whether a purge of it
    /// may be missing.
    async fn may_serve(&self, checked: &Checked) -> Option<bool> {
        match self.on_failure {
            OnFailure::Fail => return None,
            OnFailure::Use => return Some(false),
            OnFailure::UseUnsynced => {}
        }
        let edge = &checked.worker.edge;
        let mut knowledge = edge.knowledge.subscribe();
        let is_settled = |now: &Knowledge| matches!(now, Knowledge::CutOff | Knowledge::CaughtUp);
        let _ = tokio::time::timeout(KNOWLEDGE_WAIT_MAX, knowledge.wait_for(is_settled)).await;
        let now = *knowledge.borrow();
        // A purge that this node knows of holds.
        usable(edge, &self.response, &checked.url)?;
        match now {
            Knowledge::CaughtUp => self.reuse.may_serve_on_error().then_some(false),
            // More purges are about to come, from the node's own copy or from control.
            Knowledge::Recalling | Knowledge::Behind => None,
            Knowledge::CutOff | Knowledge::Asking => Some(true),
        }
    }
}

/// The origin could not be asked: what is stored where that is allowed, else an error.
async fn on_failure(
    checked: &Checked,
    stale: Option<Stale>,
    error: OriginError,
    reason: ForwardReason,
) -> Found {
    if let (Some(stale), Some(failing)) = (&stale, error.failing()) {
        note_failing(checked, &stale.response, failing);
    }
    deliver_failure(checked, stale, error, reason).await
}

/// The same for a request that waited for another's forward: a failure counts once, for the request
/// that asked.
async fn on_others_failure(
    checked: &Checked,
    stale: Option<Stale>,
    error: OriginError,
    reason: ForwardReason,
) -> Found {
    // One time-out is enough, and more do not count; the client that asked may have left before the
    // time was over.
    if let (Some(stale), Some(Failing::TimedOut)) = (&stale, error.failing()) {
        note_failing(checked, &stale.response, Failing::TimedOut);
    }
    deliver_failure(checked, stale, error, reason).await
}

async fn deliver_failure(
    checked: &Checked,
    stale: Option<Stale>,
    error: OriginError,
    reason: ForwardReason,
) -> Found {
    let Some(stale) = stale else {
        return failed(checked, error, reason);
    };
    if !error.is_of_client() {
        warn_of(checked, error);
    }
    // What this node itself could not do says nothing of the origin.
    let is_of_origin =
        error.failing().is_some() || matches!(error, OriginError::Unavailable { .. });
    if (stale.on_failure == OnFailure::Use || is_of_origin)
        && let Some(is_unsynced) = stale.may_serve(checked).await
        && let Some(found) =
            deliver_stale(checked, &stale.response, Some(error), None, is_unsynced).await
    {
        return found;
    }
    let mut found = failed(checked, error, reason);
    *found.0.status_mut() = reuse::failure_status(stale.reuse, found.0.status());
    found
}

/// What is stored, where the origin answered with an error that allows it.
async fn deliver_stale_on_error(
    checked: &Checked,
    stale: Option<&Stale>,
    status: StatusCode,
) -> Option<Found> {
    if let Some(stale) =
        stale.filter(|stale| stale.on_failure != OnFailure::Fail && reuse::is_error(status))
    {
        note_failing(checked, &stale.response, Failing::Status);
    }
    deliver_stale_on_others_error(checked, stale, status).await
}

/// The same for a request that waited for another's forward: an error counts once, for the request
/// that asked.
async fn deliver_stale_on_others_error(
    checked: &Checked,
    stale: Option<&Stale>,
    status: StatusCode,
) -> Option<Found> {
    let stale = stale.filter(|_| reuse::is_error(status))?;
    let is_unsynced = stale.may_serve(checked).await?;
    deliver_stale(checked, &stale.response, None, Some(status), is_unsynced).await
}

/// Notes that the validation of a stale response failed: where the client's own fields may be to
/// blame, only once a validation without them has failed as well.
fn note_failing(checked: &Checked, response: &Arc<StoredResponse>, failing: Failing) {
    let is_own = || has_own_fields(checked) || request_fields::is_oversized(&checked.client);
    // What timed out nobody is to wait for again, whoever is to blame: the next validation behind
    // shows it.
    if failing != Failing::TimedOut && is_own() {
        validate_behind(checked, response);
    } else {
        response.backoff.note(failing, now_ms());
    }
}

/// Whether a request has a cookie, credentials or unusual fields, which may have brought about its
/// answer.
fn has_own_fields(checked: &Checked) -> bool {
    checked
        .client
        .keys()
        .any(|name| matches!(*name, COOKIE | AUTHORIZATION))
        || !Unusual::of(&checked.client, &checked.site.cache).is_empty()
}

/// Sends a request on with its own range and conditions, where nothing of the answer can be kept.
async fn pass_request(checked: &Checked, stale: Option<&Stale>, reason: ForwardReason) -> Found {
    let mut passed = try_pass(checked, None, reason, None).await;
    if let Ok((response, _)) = &passed
        && let Some(range) = in_place_of_whole(checked, response)
    {
        // Dropped before any of its body is asked for.
        drop(passed);
        let mut fields = HeaderMap::clone(&checked.client);
        fields.insert(RANGE, range);
        let narrowed = Checked {
            client: Arc::new(fields),
            ..checked.clone()
        };
        passed = try_pass(&narrowed, None, reason, None).await;
    }
    let (response, outcome) = match passed {
        Ok(passed) => passed,
        Err(error) => return on_failure(checked, stale.cloned(), error, reason).await,
    };
    match deliver_stale_on_error(checked, stale, response.status()).await {
        Some(found) => found,
        None => (response, outcome, None),
    }
}

/// The one range to ask for where an origin answers several ranges with the whole of a body that is
/// too large to be stored: a 206 may hold a part of what was asked for, and the client looks at
/// which (RFC 9110 section 15.3.7). An `If-Range` may be why it is the whole.
fn in_place_of_whole(checked: &Checked, response: &Response<ClientBody>) -> Option<HeaderValue> {
    let specs =
        range::requested(&checked.method, &checked.client).filter(|specs| specs.len() > 1)?;
    if response.status() != StatusCode::OK || checked.client.contains_key(IF_RANGE) {
        return None;
    }
    let length = response
        .headers()
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    let is_too_large = length
        > checked
            .site
            .cache
            .body_bytes_max
            .0
            .min(checked.worker.edge.body_bytes_max);
    match range::resolve(&specs, length) {
        Part::Ranges(ranges) if is_too_large => {
            let ByteRange { first, last } = ranges.first()?;
            HeaderValue::try_from(format!("bytes={first}-{last}")).ok()
        }
        Part::Ranges(_) | Part::Whole | Part::Unsatisfiable => None,
    }
}

/// Another request's forward, which this one waited for, ended in an error: what is stored where
/// that is allowed, else the same answer, or one of ours where that is not for others. The origin
/// is not asked again for each who waited.
async fn on_others_error(
    checked: &Checked,
    stale: Option<Stale>,
    (status, cause): (StatusCode, NotStored),
    answer: Option<SharedError>,
    reason: ForwardReason,
) -> Found {
    if let Some(found) = deliver_stale_on_others_error(checked, stale.as_ref(), status).await {
        return found;
    }
    let outcome = Outcome {
        forward_status: Some(status),
        is_collapsed: true,
        not_stored: Some(cause),
        ..Outcome::forwarded(Answer::Collapsed, reason)
    };
    let Some((response, fill)) =
        answer.filter(|(response, _)| response.is_selected(&checked.client, &checked.keyed))
    else {
        let mut response = plain(status, "the origin of this content failed\n");
        response.headers_mut().insert(
            PROXY_STATUS,
            status::received(&checked.worker.edge.name, status),
        );
        return (with_status(checked, response, &outcome), outcome, None);
    };
    let mut reader = response.content.reader(0, None);
    reader.attach(fill);
    match deliver_from(checked, &response, outcome, None, Some(reader)).await {
        Ok((delivered, outcome)) => (delivered, outcome, None),
        Err(Undelivered::Failed(error)) => failed(checked, error, reason),
        Err(Undelivered::LookAgain) => failed(checked, OriginError::Incomplete, reason),
    }
}

/// The stored response for a request, and why there is none.
fn choose(checked: &Checked) -> (Option<(Arc<StoredResponse>, Verdict)>, ForwardReason) {
    let edge = &checked.worker.edge;
    let Some(variants) = edge.index.variants(checked.hash) else {
        return (None, ForwardReason::UriMiss);
    };
    // Nearly always there is one.
    if let [response] = &variants[..]
        && let Some(verdict) = usable(edge, response, &checked.url)
    {
        if !response.is_selected(&checked.client, &checked.keyed) {
            return (None, ForwardReason::VaryMiss);
        }
        response.note_used(checked.began_ms);
        return (Some((response.clone(), verdict)), ForwardReason::Stale);
    }
    let selected = variants
        .selected(&checked.client, &checked.keyed)
        .filter_map(|r| Some((r, usable(edge, r, &checked.url)?)));
    let newest = vary::newest(
        selected.map(|(r, verdict)| ((r, verdict), &r.fields, r.freshness.received_ms)),
    );
    match newest {
        Some((response, verdict)) => {
            response.note_used(checked.began_ms);
            (Some((response.clone(), verdict)), ForwardReason::Stale)
        }
        None if variants
            .iter()
            .any(|r| usable(edge, r, &checked.url).is_some()) =>
        {
            (None, ForwardReason::VaryMiss)
        }
        None => (None, ForwardReason::UriMiss),
    }
}

/// Whether another response is stored than was found before.
fn has_changed(checked: &Checked, found: Option<&Stale>) -> bool {
    let now = choose(checked)
        .0
        .map(|(response, _)| Arc::as_ptr(&response));
    now != found.map(|stale| Arc::as_ptr(&stale.response))
}

fn usable(edge: &Edge, response: &StoredResponse, url: &str) -> Option<Verdict> {
    let verdict = response.verdict(&edge.generations);
    (*response.url == *url && verdict != Verdict::Gone).then_some(verdict)
}

/// Why a client is not to wait for a validation, and whether one is due behind its answer: the
/// origin is known not to answer, or fails for this URL.
fn backs_off(checked: &Checked, response: &StoredResponse) -> Option<(&'static str, bool)> {
    if let Some(is_due) = checked.target().failing() {
        return Some(("origin-unavailable", is_due));
    }
    response
        .backoff
        .standing(now_ms())
        .map(|(failing, is_due)| (failing.detail(), is_due))
}

/// Starts one validation behind a stale answer.
fn validate_behind(checked: &Checked, response: &Arc<StoredResponse>) {
    if response.is_validating.swap(true, Ordering::Relaxed) {
        return;
    }
    let edge = &checked.worker.edge;
    let requester = Requester::of(
        &edge.index,
        &HeaderMap::new(),
        &Unusual::default(),
        &checked.keyed,
    );
    let Some(leader) = edge.forwards.lead(checked.hash, requester.clone()) else {
        response.is_validating.store(false, Ordering::Relaxed);
        return;
    };
    // On behalf of what is stored, not of the client that happened to come, who is answered without
    // it.
    let vary = vary::names(&response.fields).unwrap_or_default();
    let policy = &checked.site.cache;
    let mut client = match request_fields::is_oversized(&checked.client) {
        true => request_fields::selecting_only(&checked.client, policy, &vary),
        false => request_fields::shared(&checked.client, policy, &vary),
    };
    client.remove(IF_RANGE);
    let checked = Checked {
        client: Arc::new(client),
        interim: None,
        ..checked.clone()
    };
    let mut request = forward_request(&checked, requester, Some(response.clone()));
    request.origin.is_background = true;
    let forwarded = request.spawn(Some(leader));
    let response = response.clone();
    tokio::spawn(async move {
        let status = match forwarded.await {
            Ok(Forwarded::Failed(error)) => Err(error.failing()),
            Ok(Forwarded::Filling { response, .. }) => Ok(response.status),
            Ok(Forwarded::PassResponse { head, .. }) => Ok(head.status),
            Ok(Forwarded::Validated { .. }) => Ok(StatusCode::NOT_MODIFIED),
            Ok(Forwarded::PassRequest) | Err(_) => Err(None),
        };
        match status {
            Ok(status) if !reuse::is_error(status) => response.backoff.clear(),
            Ok(_) => response.backoff.note(Failing::Status, now_ms()),
            Err(Some(failing)) => response.backoff.note(failing, now_ms()),
            Err(None) => {}
        }
        response.is_validating.store(false, Ordering::Relaxed);
    });
}

async fn deliver_stale(
    checked: &Checked,
    response: &Arc<StoredResponse>,
    error: Option<OriginError>,
    status: Option<StatusCode>,
    is_unsynced: bool,
) -> Option<Found> {
    let now = now_ms();
    let outcome = Outcome {
        is_unsynced,
        ttl: Some(response.freshness.ttl(now)),
        forward_status: status,
        detail: error.map(|e| e.proxy_error().as_str()),
        ..Outcome::forwarded(Answer::Stale, ForwardReason::Stale)
    };
    let (delivered, outcome) = deliver(checked, response, outcome, response.freshness.age(now))
        .await
        .ok()?;
    if is_unsynced {
        checked.site.counters.served_unsynced(checked.worker.number);
    }
    Some((delivered, outcome, Some(response.clone())))
}

fn forward_request(
    checked: &Checked,
    requester: Requester,
    stale: Option<Arc<StoredResponse>>,
) -> ForwardRequest {
    let has_stale = stale.is_some();
    let stale = stale.filter(|s| conditional::has_validator(&s.fields));
    ForwardRequest {
        origin: OriginRequest {
            interim: checked.interim.clone(),
            ..origin_request(checked, ClientFields::Storable)
        },
        url: checked.url.clone(),
        hash: checked.hash,
        client: checked.client.clone(),
        keyed: checked.keyed.clone(),
        requester,
        stale,
        has_stale,
        range: wanted(checked),
        pool: Pool::Pull,
    }
}

/// What a client's ranges are asked for by; `None` when it is the whole.
fn wanted(checked: &Checked) -> Option<WantedSlices> {
    let specs = range::requested(&checked.method, &checked.client)?;
    WantedSlices::of(&specs, checked.client.contains_key(IF_RANGE))
}

fn asks_several(checked: &Checked) -> bool {
    range::requested(&checked.method, &checked.client).is_some_and(|specs| specs.len() > 1)
}

fn origin_request(checked: &Checked, fields: ClientFields<'_>) -> OriginRequest {
    OriginRequest {
        worker: checked.worker.clone(),
        site: checked.site.clone(),
        target: checked.target().clone(),
        path: checked.path.clone(),
        fields: Arc::new(forward_fields(checked, fields)),
        is_peer: false,
        // A node asks on behalf of a push order.
        is_for_push: checked.is_peer,
        is_background: false,
        pacer: None,
        interim: None,
    }
}

/// The fields of a request to the origin.
fn forward_fields(checked: &Checked, which: ClientFields<'_>) -> HeaderMap {
    let by = Forwarder {
        via: &checked.worker.edge.via,
        loop_id: &checked.loop_id,
        origin_host: checked.site.origin_host.as_ref(),
        host: &checked.host,
        client: checked.address,
        scheme: "http",
    };
    let mut fields = forward::to_origin(&checked.client, which, &by);
    fields.remove(&PEER);
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
    deliver_from(checked, response, outcome, Some(age), None).await
}

/// Makes the response to the client out of a stored one: conditions, ranges, body. Without an age
/// it comes from the origin now.
async fn deliver_from(
    checked: &Checked,
    stored: &Arc<StoredResponse>,
    mut outcome: Outcome,
    age: Option<u64>,
    filling: Option<Reader>,
) -> Result<(Response<ClientBody>, Outcome), Undelivered> {
    let content = &stored.content;
    let length = content.length();
    let is_rangeable = stored.status == StatusCode::OK && length.is_some();
    let mut head = Response::new(());
    *head.status_mut() = stored.status;
    *head.headers_mut() =
        forward::stored(&stored.fields, age, is_rangeable, &checked.worker.edge.via);
    let is_range_valid = match conditional::evaluate(
        &checked.method,
        &checked.client,
        stored.status,
        &stored.fields,
    ) {
        Precondition::Proceed { is_range_valid } => is_range_valid,
        Precondition::NotModified => {
            *head.headers_mut() =
                conditional::not_modified_fields(std::mem::take(head.headers_mut()));
            *head.status_mut() = StatusCode::NOT_MODIFIED;
            return Ok((
                finish(checked, head, ClientBody::empty(), &outcome),
                outcome,
            ));
        }
        Precondition::Failed => {
            let failed = plain(
                StatusCode::PRECONDITION_FAILED,
                "the stored representation does not meet the conditions\n",
            );
            return Ok((with_status(checked, failed, &outcome), outcome));
        }
    };
    let fields = head.headers_mut();
    let has_body = stored.status != StatusCode::NO_CONTENT;
    if checked.method == Method::HEAD || !has_body {
        if has_body && let Some(length) = length {
            fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        return Ok((
            finish(checked, head, ClientBody::empty(), &outcome),
            outcome,
        ));
    }
    let part = match (
        is_range_valid
            .then(|| range::requested(&checked.method, &checked.client))
            .flatten(),
        length,
    ) {
        (Some(specs), Some(length)) if is_rangeable => range::resolve(&specs, length),
        _ => Part::Whole,
    };
    let complete = length.unwrap_or(0);
    let body = match part {
        Part::Unsatisfiable => {
            fields.insert(
                CONTENT_RANGE,
                ContentRange::Unsatisfied(complete).to_value(),
            );
            fields.remove(CONTENT_TYPE);
            *head.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            ClientBody::empty()
        }
        Part::Whole => {
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
        Part::Ranges(ranges) if ranges.len() == 1 => {
            let range = ranges[0];
            fields.insert(
                CONTENT_RANGE,
                ContentRange::Bytes {
                    range,
                    complete: length,
                }
                .to_value(),
            );
            fields.insert(CONTENT_LENGTH, HeaderValue::from(range.length()));
            *head.status_mut() = StatusCode::PARTIAL_CONTENT;
            let reader = content.reader(range.first, Some(range.end()));
            ClientBody::stream(
                read(checked, stored, reader, &mut outcome).await?,
                Some(range.length()),
            )
        }
        Part::Ranges(ranges) => {
            let boundary = format!(
                "nearcast{:016x}{:016x}",
                content.body.id.0, checked.began_ms
            );
            let is_missing =
                |range: &ByteRange| !content.is_filling() && !content.has(range.first, range.end());
            if content.validator.is_none() && ranges.iter().any(is_missing) {
                checked.worker.edge.unpublish(stored);
                return Err(Undelivered::LookAgain);
            }
            let frame =
                Multipart::new(&boundary, stored.fields.get(CONTENT_TYPE), ranges, complete);
            fields.insert(CONTENT_TYPE, frame.content_type());
            fields.insert(CONTENT_LENGTH, HeaderValue::from(frame.content_length()));
            *head.status_mut() = StatusCode::PARTIAL_CONTENT;
            ClientBody::stream(
                multipart(checked, stored, &frame, &outcome),
                Some(frame.content_length()),
            )
        }
    };
    content.body.touch();
    Ok((finish(checked, head, body, &outcome), outcome))
}

/// Whether a request has neither conditions nor ranges, as most have.
fn is_plain(checked: &Checked) -> bool {
    let is_special = |name: &HeaderName| {
        matches!(
            *name,
            RANGE | IF_RANGE | IF_MATCH | IF_NONE_MATCH | IF_MODIFIED_SINCE | IF_UNMODIFIED_SINCE
        )
    };
    checked.method == Method::GET && !checked.client.keys().any(is_special)
}

fn finish(
    checked: &Checked,
    head: Response<()>,
    body: ClientBody,
    outcome: &Outcome,
) -> Response<ClientBody> {
    with_status(checked, head.map(|()| body), outcome)
}

fn with_status(
    checked: &Checked,
    mut response: Response<ClientBody>,
    outcome: &Outcome,
) -> Response<ClientBody> {
    if checked.is_peer {
        // What a node stores of this is the origin's, not ours.
        response.headers_mut().remove(VIA);
        response
            .headers_mut()
            .insert(REVISION, HeaderValue::from(checked.revision));
        return response;
    }
    let field = (outcome.not_stored == Some(NotStored::RequestFields))
        .then(|| field_to_blame(checked, response.headers()))
        .flatten();
    response.headers_mut().append(
        CACHE_STATUS,
        outcome.cache_status_naming(&checked.worker.edge.name, field.as_ref()),
    );
    response
}

/// The field of a request that may have brought about its answer, the first of them.
fn field_to_blame(checked: &Checked, response: &HeaderMap) -> Option<HeaderName> {
    let vary = vary::names(response).unwrap_or_default();
    let policy = &checked.site.cache;
    if let Some(name) = Unusual::of(&checked.client, policy).first_beyond(&vary) {
        return Some(name.clone());
    }
    // Of an error also these.
    let is_own =
        |name: &HeaderName| !vary.contains(name) && !request_fields::is_listed(name, policy);
    [COOKIE, AUTHORIZATION]
        .into_iter()
        .find(|name| checked.client.contains_key(name) && is_own(name))
}

struct Reading {
    reader: Reader,
    stored: Arc<StoredResponse>,
    asker: Asker,
    first: Option<Bytes>,
    refills: u32,
    has_begun: bool,
}

/// Asks for what a body lacks. Most lack nothing.
struct Asker {
    checked: Checked,
    /// What is read is for this client alone.
    is_own: bool,
}

impl Asker {
    fn origin_request(&self, stored: &StoredResponse) -> OriginRequest {
        let vary = vary::names(&stored.fields).unwrap_or_default();
        let policy = &self.checked.site.cache;
        origin_request(
            &self.checked,
            if self.is_own {
                ClientFields::Storable
            } else {
                ClientFields::Shared {
                    policy,
                    vary: &vary,
                }
            },
        )
    }
}

/// Slices asked for again in one body without a byte in between.
const REFILLS_MAX: u32 = 3;

impl Reading {
    fn new(
        checked: &Checked,
        stored: &Arc<StoredResponse>,
        reader: Reader,
        outcome: &Outcome,
    ) -> Self {
        let is_own = outcome.label == Answer::Miss && !outcome.is_stored;
        let asker = Asker {
            checked: checked.clone(),
            is_own,
        };
        Self {
            reader,
            stored: stored.clone(),
            asker,
            first: None,
            refills: 0,
            has_begun: false,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        if !std::mem::replace(&mut self.has_begun, true) && self.stored.content.is_filling() {
            let (at, end) = self.reader.range();
            refill::seek_ahead(
                &self.asker.origin_request(&self.stored),
                &self.stored,
                at,
                end,
            );
        }
        loop {
            match self.reader.next().await {
                Next::Piece(piece) => {
                    self.refills = 0;
                    return Ok(Some(piece));
                }
                Next::End => return Ok(None),
                // A node that asks for what is stored takes the rest from the origin itself, within
                // its own order.
                Next::Failed(_) | Next::Missing if self.asker.checked.is_peer => {
                    return Err(OriginError::BetweenBytesTimeout);
                }
                Next::Failed(error)
                    if self.refills >= REFILLS_MAX || self.stored.content.validator.is_none() =>
                {
                    return Err(error);
                }
                Next::Failed(error) if !self.asker.checked.target().take_retry() => {
                    return Err(error);
                }
                Next::Missing if self.refills >= REFILLS_MAX => {
                    return Err(OriginError::Incomplete);
                }
                Next::Failed(_) | Next::Missing => {
                    self.refills += 1;
                    let (at, end) = self.reader.range();
                    let end = end.unwrap_or(at + 1);
                    refill::fetch_missing(
                        &self.asker.origin_request(&self.stored),
                        &self.stored,
                        at,
                        end,
                        Pool::Pull,
                    )
                    .await?;
                }
            }
        }
    }
}

/// The body of a range, as a stream. Where nothing is under way its first piece is had before the
/// head is sent, so that an origin that fails is an answer and not a cut.
async fn read(
    checked: &Checked,
    stored: &Arc<StoredResponse>,
    reader: Reader,
    outcome: &mut Outcome,
) -> Result<Pieces, Undelivered> {
    let is_first_hand = outcome.label == Answer::Miss;
    let mut reading = Reading::new(checked, stored, reader, outcome);
    let (at, end) = reading.reader.range();
    if !stored.content.is_filling() || !stored.content.has_or_awaits(at) {
        let is_whole = end.is_none_or(|end| stored.content.has(at, end));
        if !is_whole && !is_first_hand {
            if stored.content.validator.is_none() {
                checked.worker.edge.unpublish(stored);
                return Err(Undelivered::LookAgain);
            }
            *outcome = Outcome {
                label: Answer::Partial,
                forward: Some(ForwardReason::Partial),
                ..*outcome
            };
        }
        match reading.next().await {
            Ok(first) => reading.first = first,
            Err(OriginError::Unfit) => return Err(Undelivered::LookAgain),
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

/// A `multipart/byteranges` body.
fn multipart(
    checked: &Checked,
    stored: &Arc<StoredResponse>,
    frame: &Multipart,
    outcome: &Outcome,
) -> Pieces {
    let mut parts: Vec<Piece> = Vec::new();
    for (number, ByteRange { first, last }) in frame.ranges().iter().enumerate() {
        parts.push(Piece::Text(frame.head(number).into()));
        let reader = stored.content.reader(*first, Some(last + 1));
        parts.push(Piece::Range(Box::new(Reading::new(
            checked, stored, reader, outcome,
        ))));
    }
    parts.push(Piece::Text(frame.tail().into()));
    parts.reverse();
    let pieces = stream::unfold(parts, |mut parts| async {
        loop {
            match parts.pop()? {
                Piece::Text(text) => return Some((Ok(text), parts)),
                Piece::Range(mut reading) => match reading.next().await {
                    Ok(Some(piece)) => {
                        parts.push(Piece::Range(reading));
                        return Some((Ok(piece), parts));
                    }
                    Ok(None) => {}
                    Err(error) => return Some((Err(BodyCut(error.to_string())), Vec::new())),
                },
            }
        }
    });
    Box::pin(pieces)
}

enum Piece {
    Text(Bytes),
    Range(Box<Reading>),
}

/// Has control purge what a request names, where the site allows its client that.
async fn purge(checked: &Checked) -> Response<ClientBody> {
    let edge = &checked.worker.edge;
    let asked = purge_request::Asked {
        node: &edge.name,
        site: &checked.site.name,
        url: &checked.url,
        client: checked.address,
        fields: &checked.client,
    };
    let sites = edge.sites.load_full();
    edge.purge_relay
        .answer(&checked.site.purge, sites.control.as_ref(), &asked)
        .await
}

/// Sends on a request that may change something. As a task of its own: what the origin has changed
/// is forgotten here also when the client did not wait for the answer.
async fn pass_unsafe(checked: &Checked, body: Option<Incoming>) -> Found {
    let of_task = checked.clone();
    let passed = tokio::spawn(async move {
        pass(
            &of_task,
            body,
            ForwardReason::Method,
            Some(NotStored::Method),
        )
        .await
    });
    match passed.await {
        Ok((response, outcome)) => (response, outcome, None),
        Err(_) => failed(checked, OriginError::Terminated, ForwardReason::Method),
    }
}

/// Sends a request on without a look into the cache. The answer is not stored for `cause`; without
/// one it says itself why.
async fn pass(
    checked: &Checked,
    body: Option<Incoming>,
    reason: ForwardReason,
    cause: Option<NotStored>,
) -> (Response<ClientBody>, Outcome) {
    try_pass(checked, body, reason, cause)
        .await
        .unwrap_or_else(|error| {
            let (response, outcome, _) = failed(checked, error, reason);
            (response, outcome)
        })
}

/// The same, where a failure is not answered yet.
async fn try_pass(
    checked: &Checked,
    body: Option<Incoming>,
    reason: ForwardReason,
    cause: Option<NotStored>,
) -> Result<(Response<ClientBody>, Outcome), OriginError> {
    let mut request = Request::new(body.map_or(OriginRequestBody::Empty, |body| {
        OriginRequestBody::client(body, checked.site.origins.limits())
    }));
    *request.method_mut() = checked.method.clone();
    *request.uri_mut() = checked.path.clone().into();
    *request.headers_mut() = forward_fields(checked, ClientFields::Passed);
    if let Some(interim) = &checked.interim {
        interim.follow(&mut request);
    }
    checked.site.counters.asked_origin(checked.worker.number);
    let label = if matches!(reason, ForwardReason::Bypass | ForwardReason::Method) {
        Answer::Bypass
    } else {
        Answer::Miss
    };
    let sent = checked.worker.origins.send(checked.target(), request).await;
    // No request goes on with an upgrade, so nobody can have asked for this.
    match sent.and_then(|response| {
        if response.status().is_informational() {
            Err(OriginError::Protocol)
        } else {
            Ok(response)
        }
    }) {
        Err(error) => {
            if !error.is_of_client() {
                checked.site.counters.origin_failed(error.reason());
            }
            if key::method_class(&checked.method) == MethodClass::Unsafe && error.may_have_arrived()
            {
                // It may have changed what it was for, whatever became of the answer.
                checked.worker.edge.changes.note(checked.hash);
                drop_stored(&checked.worker.edge, &checked.url, |_| true);
            }
            Err(error)
        }
        Ok(response) => {
            let (head, body) = response.into_parts();
            invalidate(checked, head.status, &head.headers);
            let cause = cause.unwrap_or_else(|| why_passed(checked, &head));
            checked
                .site
                .note_not_stored(checked.worker.number, &checked.url, cause);
            let outcome = Outcome {
                forward_status: Some(head.status),
                not_stored: Some(cause),
                ..Outcome::forwarded(label, reason)
            };
            Ok((pass_on(checked, head, body, &outcome), outcome))
        }
    }
}

/// Why the answer to a request that was sent on as the client made it is not stored: it would not
/// have been in any case, or answers to such requests could not be shared or put together lately.
fn why_passed(checked: &Checked, head: &http::response::Parts) -> NotStored {
    let request = RequestFacts {
        method: &checked.method,
        fields: &checked.client,
    };
    let now = now_ms();
    let exchange = Exchange {
        requested_ms: checked.began_ms,
        received_ms: now,
    };
    // A part is judged as what it is a part of.
    let is_part = head.status == StatusCode::PARTIAL_CONTENT;
    let status = if is_part { StatusCode::OK } else { head.status };
    if let freshness::Verdict::DoNotStore(cause) = freshness::judge(
        request,
        status,
        &head.headers,
        &checked.site.cache,
        exchange,
    ) {
        return cause;
    }
    let most = checked
        .site
        .cache
        .body_bytes_max
        .0
        .min(checked.worker.edge.body_bytes_max);
    let length = match ContentRange::of(&head.headers) {
        Some(ContentRange::Bytes { complete, .. }) if is_part => complete,
        _ => head
            .headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok()),
    };
    match length.is_some_and(|length| length > most) {
        true => NotStored::TooLarge,
        false if is_part => NotStored::Partial,
        false => NotStored::Unshared,
    }
}

/// Drops what an unsafe request has changed (RFC 9111 section 4.4, RFC 9875), or what a HEAD shows
/// to have changed.
fn invalidate(checked: &Checked, status: StatusCode, fields: &HeaderMap) {
    let edge = &checked.worker.edge;
    let invalidation = invalidate::invalidated(
        &checked.method,
        &checked.url,
        status,
        &without_own_port(checked, fields),
    );
    for url in &invalidation.urls {
        edge.changes.note(edge.index.hash(url));
        drop_stored(edge, url, |_| true);
    }
    // What one client's own fields brought about says nothing of what is stored for all.
    if checked.method == Method::HEAD && !has_own_fields(checked) {
        let differs = |r: &StoredResponse| {
            conditional::head_says(r.status, &r.fields, r.content.length(), status, fields)
                == HeadSays::Other
                && r.is_selected(&checked.client, &checked.keyed)
        };
        drop_stored(edge, &checked.url, differs);
    }
    if !invalidation.groups.is_empty() {
        let (edge, origin) = (edge.clone(), invalidate::origin_of(&checked.url).to_owned());
        invalidation
            .groups
            .iter()
            .for_each(|group| edge.changes.note_group(&origin, group));
        // Every stored response is looked at: not on the thread that serves.
        tokio::task::spawn_blocking(move || {
            let mut members = Vec::new();
            edge.index.for_each(|r| {
                let is_member = invalidate::groups(&r.fields)
                    .iter()
                    .any(|g| invalidation.groups.contains(g));
                if is_member && invalidate::origin_of(&r.url) == origin {
                    members.push(r.clone());
                }
            });
            members.iter().for_each(|r| edge.unpublish(r));
        });
    }
}

/// Fields in which absolute references to this host have no port, as keys have none.
fn without_own_port(checked: &Checked, fields: &HeaderMap) -> HeaderMap {
    let mut fields = fields.clone();
    for name in [http::header::LOCATION, http::header::CONTENT_LOCATION] {
        let Some(target) = fields
            .get(&name)
            .and_then(|v| v.to_str().ok())
            .filter(|t| t.contains("://"))
        else {
            continue;
        };
        let named = crate::purge::canonical_url(target);
        if crate::purge::host_of(&named) == crate::purge::host_of(&checked.url)
            && let Ok(value) = HeaderValue::try_from(named)
        {
            fields.insert(name, value);
        }
    }
    fields
}

fn drop_stored(edge: &Edge, url: &str, which: impl Fn(&StoredResponse) -> bool) {
    for response in edge
        .index
        .remove(edge.index.hash(url), |r| *r.url == *url && which(r))
    {
        response.go();
        response.content.discard();
    }
}

/// A response that goes to one client, as it comes.
fn pass_on(
    checked: &Checked,
    head: http::response::Parts,
    body: OriginBody,
    outcome: &Outcome,
) -> Response<ClientBody> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = forward::passed(&head.headers, &checked.worker.edge.via);
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
                Err(error) => {
                    counters.origin_failed(error.reason());
                    Some((Err(BodyCut(error.to_string())), None))
                }
            }
        }
    });
    let is_bodyless = checked.method == Method::HEAD
        || matches!(head.status.as_u16(), 204 | 304)
        || length == Some(0);
    let body = if is_bodyless {
        ClientBody::empty()
    } else {
        ClientBody::stream(Box::pin(pieces), length)
    };
    finish(checked, response, body, outcome)
}

/// Logs that the origin fails; suppresses repeated messages.
fn warn_of(checked: &Checked, error: OriginError) {
    let is_known = matches!(error, OriginError::Unavailable { .. });
    if !is_known && checked.site.is_to_warn(checked.began_ms) {
        tracing::warn!(site = %checked.site.name, origin = %checked.target().address.host, %error, "an origin fails; repeated messages are suppressed");
    }
}

/// The answer where the origin failed and nothing stored helps.
fn failed(checked: &Checked, error: OriginError, reason: ForwardReason) -> Found {
    if error.is_of_client() {
        tracing::debug!(site = %checked.site.name, url = %checked.url, %error, "a request failed");
        let outcome = Outcome::forwarded(Answer::Error, reason);
        return (
            with_status(checked, refuse_request(&checked.worker, error), &outcome),
            outcome,
            None,
        );
    }
    tracing::debug!(site = %checked.site.name, url = %checked.url, %error, "the origin failed");
    if !checked.is_peer {
        warn_of(checked, error);
    }
    let mut response = plain(
        error.status(),
        "the origin of this content does not answer\n",
    );
    response
        .headers_mut()
        .insert(PROXY_STATUS, error.proxy_status(&checked.worker.edge.name));
    if let Some(seconds) = error.retry_after() {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    let outcome = Outcome::forwarded(Answer::Error, reason);
    (with_status(checked, response, &outcome), outcome, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_way_to_a_key_gives_what_the_policy_gives() {
        let long = "x".repeat(key::PATH_BYTES_MAX);
        let paths = [
            "/",
            "/a/b?c=d&e",
            "/%2F;x",
            "/caf\u{e9}",
            "/a b",
            "/a#b",
            "a",
            "",
            "*",
            "/\u{7f}",
            &format!("/{long}"),
        ];
        for path in paths {
            let expected = Key::new("http", "a.test", path).map(|key| key.url.into_string());
            assert_eq!(key_url("a.test", path), expected, "{path:?}");
        }
    }

    #[test]
    fn a_host_is_looked_up_again_when_the_sites_have_changed() {
        let metrics = crate::metrics::Metrics::new(1, "ams");
        let sites = [Arc::new(Sites::default()), Arc::new(Sites::default())];
        let site = Arc::new(Site {
            name: "www".into(),
            origins: crate::origin::SiteOrigins::single(Target::peer(([127, 0, 0, 1], 80).into())),
            origin_host: None,
            cache: nearcast_fleet::config::CachePolicy::default(),
            purge: nearcast_fleet::config::PurgePolicy::default(),
            counters: metrics.site("www"),
            warned_ms: std::sync::atomic::AtomicU64::new(0),
        });
        let mut last = LastHost::default();
        let host_field = HeaderValue::from_static("a.test");
        last.keep(Known {
            named: "A.test:80".into(),
            sites: sites[0].clone(),
            host: "a.test".into(),
            host_field,
            site,
        });
        for (named, of, is_known) in [
            ("A.test:80", 0, true),
            ("a.test", 0, false),
            ("A.test:80", 1, false),
        ] {
            assert_eq!(
                last.known(named, &sites[of]).is_some(),
                is_known,
                "{named} {of}"
            );
        }
    }
}
