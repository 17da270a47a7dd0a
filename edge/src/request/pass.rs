//! Requests that go to the origin as the client made them, responses that are not stored, and what
//! an exchange invalidates.
//!
//! Follows RFC 9111 section 4.4 and RFC 9875 (invalidation), and RFC 9110 section 15.3.7 (206).

use std::sync::Arc;

use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_LOCATION, IF_RANGE, LOCATION, RANGE};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use nearcast_http_rules::compress;
use nearcast_http_rules::conditional::{self, HeadComparison};
use nearcast_http_rules::forward::{self, ClientFields};
use nearcast_http_rules::freshness::Exchange;
use nearcast_http_rules::invalidate;
use nearcast_http_rules::key::{self, Key, MethodClass};
use nearcast_http_rules::not_stored::NotStored;
use nearcast_http_rules::range::{self, ByteRange, ContentRange, Part};
use nearcast_http_rules::status::{ForwardReason, Outcome};
use nearcast_http_rules::storing::{self, RequestFacts};

use super::answer::{Answered, failed};
use super::check::Request;
use super::form::passed_form;
use super::stale::{Stale, has_distinct_fields};
use super::to_origin::origin_fields;
use crate::client_body::{BodyCut, ClientBody, Pieces};
use crate::edge::Edge;
use crate::origin::{ClientWaits, OriginBody, OriginError, OriginRequestBody};
use crate::request_body::RequestBody;
use crate::stored::generations::host_of;
use crate::stored::load::disk_name;
use crate::stored::response::StoredResponse;
use nearcast_fleet::report::CacheStatus;

/// Sends on a request that may change something. As a task of its own: what the origin has changed
/// is invalidated here also when the client does not wait for the response. But without its client
/// it does not wait for a connection.
pub(super) async fn pass_unsafe(request: &Request, body: Option<RequestBody>) -> Answered {
    let of_task = request.clone();
    let (_waits, client) = ClientWaits::new();
    let passed = tokio::spawn(async move {
        let (fields, reason) = (&of_task.fields, ForwardReason::Method);
        let cause = Some(NotStored::Method);
        try_pass(&of_task, fields, body, reason, cause, Some(client))
            .await
            .unwrap_or_else(|error| failed(&of_task, error, reason))
    });
    let panicked = |_| failed(request, OriginError::Terminated, ForwardReason::Method);
    passed.await.unwrap_or_else(panicked)
}

/// Sends a request on without a look-up. The response is not stored for `cause`; without one the
/// response itself shows why.
pub(super) async fn pass(
    request: &Request,
    body: Option<RequestBody>,
    reason: ForwardReason,
    cause: Option<NotStored>,
) -> Answered {
    try_pass(request, &request.fields, body, reason, cause, None)
        .await
        .unwrap_or_else(|error| failed(request, error, reason))
}

/// Sends a request on with its own range and conditions, where nothing of the response can be
/// stored.
pub(super) async fn pass_conditional(
    request: &Request,
    stale: Option<&Stale>,
    reason: ForwardReason,
) -> Answered {
    let mut passed = try_pass(request, &request.fields, None, reason, None, None).await;
    if let Ok(Answered { response, .. }) = &passed
        && let Some(range) = range_instead_of_whole(request, response)
    {
        // Dropped before any of its body is fetched.
        drop(passed);
        let mut fields = HeaderMap::clone(&request.fields);
        fields.insert(RANGE, range);
        passed = try_pass(request, &fields, None, reason, None, None).await;
    }
    match (passed, stale) {
        (Ok(passed), Some(stale)) => stale
            .serve_on_error(request, passed.response.status())
            .await
            .unwrap_or(passed),
        (Ok(passed), None) => passed,
        (Err(error), Some(stale)) => stale.serve_on_failure(request, error, reason).await,
        (Err(error), None) => failed(request, error, reason),
    }
}

/// Sends a request on with these fields. `client_waits` is given by a task that its client's end does not
/// end.
async fn try_pass(
    request: &Request,
    client: &HeaderMap,
    body: Option<RequestBody>,
    reason: ForwardReason,
    cause: Option<NotStored>,
    client_waits: Option<ClientWaits>,
) -> Result<Answered, OriginError> {
    let (site, worker) = (&request.site, &request.worker);
    let mut passed = http::Request::new(body.map_or(OriginRequestBody::Empty, |body| {
        OriginRequestBody::client(body, site.origins.limits())
    }));
    *passed.method_mut() = request.method.clone();
    *passed.uri_mut() = request.path.clone().into();
    *passed.headers_mut() = origin_fields(request, client, ClientFields::Passed);
    if let Some(interim) = &request.interim {
        interim.follow(&mut passed);
    }
    if let Some(client) = client_waits {
        passed.extensions_mut().insert(client);
    }
    site.counters.asked_origin(worker.number);

    // Within each request there would be room for this, whatever becomes of it, and more than once.
    let sent = Box::pin(worker.origins.send(request.target(), passed));
    let sent = request.trail.waiting_for_origin(sent).await;
    let received = sent.and_then(|response| match response.status().is_informational() {
        // No request is sent on with an upgrade, so no client can have asked for one.
        true => Err(OriginError::Protocol),
        false => Ok(response),
    });
    let response = received.inspect_err(|error| note_failed(request, *error))?;

    let (head, body) = response.into_parts();
    invalidate(request, head.status, &head.headers);
    // The client may rely on the change from its answer on, even if this node fails then.
    let _ = worker.edge.store.removals_recorded().await;
    let cause = cause.unwrap_or_else(|| why_passed(request, &head));
    site.note_not_stored(worker.number, &request.url, cause);
    let label = match reason {
        ForwardReason::Bypass | ForwardReason::Method => CacheStatus::Bypass,
        _ => CacheStatus::Miss,
    };
    let outcome = Outcome {
        forward_status: Some(head.status),
        not_stored: Some(cause),
        ..Outcome::forwarded(label, reason)
    };
    Ok(Answered::new(pass_response(request, head, body), outcome))
}

/// Counts a request that failed. An unsafe one may have had its effect without a response.
fn note_failed(request: &Request, error: OriginError) {
    if !error.is_of_client() {
        request.site.counters.origin_failed(error.reason());
    }
    if key::method_class(&request.method) == MethodClass::Unsafe && error.may_have_arrived() {
        let edge = &request.worker.edge;
        drop_all(edge, &request.url);
    }
}

/// A response that goes to one client as it is received.
pub(super) fn pass_response(
    request: &Request,
    head: Parts,
    body: OriginBody,
) -> Response<ClientBody> {
    let length = body.length();
    let is_bodyless = request.method == Method::HEAD
        || matches!(head.status.as_u16(), 204 | 304)
        || length == Some(0);
    let (counters, number) = (request.site.counters.clone(), request.worker.number);
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
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    let via = request.worker.edge.via.received(head.version);
    *response.headers_mut() = forward::passed(&head.headers, via);
    if head.status == StatusCode::NOT_MODIFIED {
        compress::set_known_tag(&request.fields, response.headers_mut());
    }
    let pieces: Option<Pieces> = (!is_bodyless).then(|| Box::pin(pieces) as Pieces);
    let length = match request.method == Method::HEAD {
        // That of the body which a GET would get.
        true => content_length(&head.headers),
        false => length,
    };
    let body = passed_form(request, &mut response, length, pieces);
    response.map(|()| body)
}

/// Bytes of the largest body that may be stored.
fn body_bytes_max(request: &Request) -> u64 {
    let of_site = request.site.cache.body_bytes_max.0;
    of_site.min(request.worker.edge.body_bytes_max)
}

/// The one range to ask for where an origin answers several ranges with the whole of a body that is
/// too large to be stored: a 206 may have only some of the requested bytes, and the client looks
/// which (RFC 9110 section 15.3.7). An `If-Range` may be the reason for the whole.
fn range_instead_of_whole(
    request: &Request,
    response: &Response<ClientBody>,
) -> Option<HeaderValue> {
    let specs = range::requested(&request.method, &request.fields)?;
    let is_whole_of_several = specs.len() > 1
        && response.status() == StatusCode::OK
        && !request.fields.contains_key(IF_RANGE);
    if !is_whole_of_several {
        return None;
    }
    let length = content_length(response.headers())?;
    match range::resolve(&specs, length) {
        Part::Ranges(ranges) if length > body_bytes_max(request) => {
            let ByteRange { first, last } = ranges.first()?;
            HeaderValue::try_from(format!("bytes={first}-{last}")).ok()
        }
        Part::Ranges(_) | Part::Whole | Part::Unsatisfiable => None,
    }
}

fn content_length(fields: &HeaderMap) -> Option<u64> {
    fields.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Why the response to a request that was sent on as the client made it is not stored: it may not be
/// stored in any case, or responses to such requests could not be shared or joined lately.
fn why_passed(request: &Request, head: &Parts) -> NotStored {
    let facts = RequestFacts {
        method: &request.method,
        fields: &request.fields,
    };
    let exchange = Exchange {
        requested_ms: request.began_ms,
        received_ms: request.worker.edge.clock.unix_ms(),
    };
    // A part is judged as the whole would be.
    let is_part = head.status == StatusCode::PARTIAL_CONTENT;
    let status = match is_part {
        true => StatusCode::OK,
        false => head.status,
    };
    let policy = &request.site.cache;
    let assessment = storing::assess(facts, status, &head.headers, policy, exchange);
    if let Some(cause) = assessment.not_stored {
        return cause;
    }
    let length = match ContentRange::of(&head.headers) {
        Some(ContentRange::Bytes { complete, .. }) if is_part => complete,
        _ => content_length(&head.headers),
    };
    match length.is_some_and(|length| length > body_bytes_max(request)) {
        true => NotStored::TooLarge,
        false if is_part => NotStored::Partial,
        false => NotStored::Unshared,
    }
}

/// Invalidates what an unsafe request has changed (RFC 9111 section 4.4, RFC 9875), or what the
/// response to a HEAD shows to have changed.
fn invalidate(request: &Request, status: StatusCode, fields: &HeaderMap) {
    let edge = &request.worker.edge;
    let invalidation = invalidate::invalidated(
        &request.method,
        &request.url,
        status,
        &without_own_port(&request.url, fields),
    );
    for url in &invalidation.urls {
        drop_all(edge, url);
    }
    // A response that may be due to one client's own fields says nothing about the one that is
    // stored for all.
    if request.method == Method::HEAD && !has_distinct_fields(request) {
        drop_stored(edge, &request.url, |stored| {
            let length = stored.content.length();
            let says =
                conditional::compare_head(stored.status, &stored.fields(), length, status, fields);
            says == HeadComparison::Other && stored.is_selected(&request.fields, &request.keyed)
        });
    }
    if !invalidation.groups.is_empty() {
        let origin = invalidate::origin_of(&request.url).to_owned();
        invalidate_groups(edge.clone(), origin, invalidation.groups);
    }
}

/// Invalidates all stored responses of an origin that are members of these groups. Every stored
/// response is visited, so this is not done on the thread that serves.
fn invalidate_groups(edge: Arc<Edge>, origin: String, groups: Vec<Box<str>>) {
    for group in &groups {
        edge.changes
            .note_group(&origin, group, edge.clock.unix_ms());
    }
    tokio::task::spawn_blocking(move || {
        let mut members = Vec::new();
        edge.index.for_each(|stored| {
            let is_member = invalidate::groups(&stored.fields())
                .iter()
                .any(|group| groups.contains(group));
            if is_member && invalidate::origin_of(stored.url()) == origin {
                members.push(stored.clone());
            }
        });
        for member in members {
            edge.unpublish(&member);
        }
    });
}

/// Fields in which absolute references to the host of this URL have no port, as keys have none.
fn without_own_port(url: &str, fields: &HeaderMap) -> HeaderMap {
    let mut fields = fields.clone();
    for name in [LOCATION, CONTENT_LOCATION] {
        let target = fields.get(&name).and_then(|value| value.to_str().ok());
        let Some(target) = target.filter(|target| target.contains("://")) else {
            continue;
        };
        if let Ok(named) = Key::of_url(target)
            && host_of(&named.url) == host_of(url)
            && let Ok(value) = HeaderValue::from_str(&named.url)
        {
            fields.insert(name, value);
        }
    }
    fields
}

/// Removes all responses of a key, first from the disk: a request that reads one from there sees
/// that it has gone.
fn drop_all(edge: &Edge, url: &str) {
    edge.changes.note(edge.index.hash(url));
    edge.store.remove(&disk_name(url));
    drop_stored(edge, url, |_| true);
}

fn drop_stored(edge: &Edge, url: &str, which: impl Fn(&StoredResponse) -> bool) {
    let hash = edge.index.hash(url);
    for response in edge.index.remove(hash, |r| r.is_of(url) && which(r)) {
        edge.unpublish(&response);
    }
}
