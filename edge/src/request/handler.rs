//! The life of one request, in order.
//!
//! Health check, checks, cache key and route; then, for a request that a stored response may answer:
//! find it, decide, and serve it, or ask the origin and serve what it sends. One [`Outcome`] fills
//! `Cache-Status`, metrics and log. Follows RFC 9110, 9111, 9209 and 9211.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use http::header::{
    CONNECTION, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
    SET_COOKIE,
};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use nearcast_http_rules::decide::{Decision, Route, Sharing, Terms, decide, route};
use nearcast_http_rules::freshness::NotStored;
use nearcast_http_rules::request_fields::Unusual;
use nearcast_http_rules::status::{self, ForwardReason, Outcome, PROXY_STATUS, ProxyError};
use nearcast_http_rules::{range, vary};

use super::account::Accounted;
use super::answer::{Answered, add_status_fields, client_failed, failed, plain};
use super::check::{ClientConnection, Rejection, Request, check};
use super::deliver::{Undelivered, deliver, deliver_fill};
use super::hit::find;
use super::pass::{pass, pass_conditional, pass_response, pass_unsafe};
use super::purge_request;
use super::stale::{Stale, revalidate_in_background};
use super::to_origin::{forward_request, wanted_slices};
use crate::body::ClientBody;
use crate::edge::{Edge, Worker, now_ms};
use crate::forward::{Cookies, FollowerStep, Forwarded, Join, Requester, SharedError, Turns};
use crate::interim::InterimSender;
use crate::metrics::Answer;
use crate::origin::OriginError;
use crate::peer::PEER;

/// The path of health checks, under any host. The fleet file may name another one.
const HEALTH_PATH: &str = "/.nearcast/health";

/// Answers one request, whose body is `None` where it has none. Never fails: every failure is an
/// answer. `on_end` is called when the response is complete.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    client: ClientConnection,
    interim: Option<InterimSender>,
    request: http::Request<Option<Incoming>>,
    on_end: impl FnOnce() + Send + 'static,
) -> Response<ClientBody> {
    let began = Instant::now();
    let accounted = respond(&worker, &client, interim, request).await;
    accounted.conclude(&worker, began, on_end)
}

/// The answer to input that is no request which could be handled.
pub(crate) fn refuse(
    worker: &Arc<Worker>,
    status: StatusCode,
    error: ProxyError,
    text: Cow<'static, str>,
) -> Response<ClientBody> {
    let answered = Answered::refused(&worker.edge.name, status, error, text);
    Accounted::without_site(answered).conclude(worker, Instant::now(), || ())
}

async fn respond(
    worker: &Arc<Worker>,
    client: &ClientConnection,
    interim: Option<InterimSender>,
    request: http::Request<Option<Incoming>>,
) -> Accounted {
    let edge = &worker.edge;
    if let Some(answered) = answer_health_check(edge, &request) {
        return Accounted::without_site(answered);
    }
    let (request, body) = match check(worker, client, interim, request) {
        Ok(checked) => checked,
        Err(rejection) => return Accounted::without_site(reject(&edge.name, rejection)),
    };

    let body_bytes_max = request.site.origins.limits().request_bytes_max;
    if let (Some(body), Some(most)) = (&body, body_bytes_max)
        && body.size_hint().lower() > most.0
    {
        let mut response = client_failed(&edge.name, OriginError::RequestTooLarge);
        // The body is not read.
        let fields = response.headers_mut();
        fields.insert(CONNECTION, HeaderValue::from_static("close"));
        let answered = Answered::new(response, Outcome::local(""));
        return Accounted::of_site(&request.site, answered);
    }
    if purge_request::is_purge(&request.method) {
        return Accounted::of_site(&request.site, purge(&request).await);
    }

    let has_body = body.as_ref().is_some_and(|body| !body.is_end_stream());
    let mut answered = match route(&request.method, request.path.as_str(), has_body) {
        Route::LookUp => look_up(&request).await,
        Route::Pass { reason, cause } => pass(&request, body, reason, Some(cause)).await,
        Route::PassUnsafe => pass_unsafe(&request, body).await,
    };
    add_status_fields(&request, &answered.outcome, answered.response.headers_mut());
    Accounted::of_request(&request, answered)
}

/// Answers a health check. The path that the fleet file names is an ordinary one while the node
/// accepts clients, and always for other nodes of its cluster, which ask on behalf of theirs.
fn answer_health_check<B>(edge: &Edge, request: &http::Request<B>) -> Option<Answered> {
    let refused = |text| Answered::local(StatusCode::SERVICE_UNAVAILABLE, text);
    if is_health_path(request) {
        let healthy = || Answered::local(StatusCode::OK, "ok\n");
        return Some(edge.standing.refusal().map_or_else(healthy, refused));
    }
    let is_refused = matches!(*request.method(), Method::GET | Method::HEAD)
        && request
            .uri()
            .path_and_query()
            .is_some_and(|target| edge.standing.refuses(target.as_str()))
        && !request.headers().contains_key(PEER);
    edge.standing.refusal().filter(|_| is_refused).map(refused)
}

pub(super) fn is_health_path<B>(request: &http::Request<B>) -> bool {
    request.uri().path() == HEALTH_PATH
}

/// Whether a request for this path, with its query, may be a health check that is answered here.
pub(super) fn is_health_check(edge: &Edge, path: &str) -> bool {
    path == HEALTH_PATH || edge.standing.refuses(path)
}

pub(super) fn reject(node: &str, rejection: Rejection) -> Answered {
    match rejection {
        Rejection::Refused {
            status,
            error,
            text,
        } => Answered::refused(node, status, error, text),
        Rejection::LastHop => Answered::local(StatusCode::OK, ""),
    }
}

/// Has control purge the URL or the tags that a request names, if the site permits its client that.
async fn purge(request: &Request) -> Answered {
    let edge = &request.worker.edge;
    let purge = purge_request::PurgeRequest {
        node: &edge.name,
        site: &request.site.name,
        url: &request.url,
        client: request.address,
        fields: &request.fields,
    };
    let sites = edge.sites.load_full();
    let response = edge
        .purge_relay
        .answer(&request.site.purge, sites.control.as_ref(), &purge)
        .await;
    Answered::new(response, Outcome::local("purge"))
}

/// Answers a GET or HEAD without a body, from the store where that is possible. The stored response
/// may change between its look-up and its use: then the request looks up again.
async fn look_up(request: &Request) -> Answered {
    let Request {
        worker,
        site,
        method,
        fields,
        ..
    } = request;
    let edge = &worker.edge;
    let mut terms = Terms::of(
        method,
        fields,
        &site.cache,
        request.is_peer,
        request.began_ms,
    );
    let mut turns = Turns::default();
    while turns.begin() {
        terms.has_waited = turns.has_waited();
        let found = find(edge, request);
        let facts = found.as_ref().map(|found| found.facts(edge));
        let decision = decide(&terms, facts.map_err(|reason| *reason));
        let stored = found.ok().map(|found| found.response);

        let answered = match decision {
            Decision::Serve {
                outcome,
                age,
                revalidate,
            } => {
                let Some(stored) = stored else { continue };
                if revalidate {
                    revalidate_in_background(request, &stored);
                }
                let reason = ForwardReason::Partial;
                or_look_up_again(
                    request,
                    reason,
                    deliver(request, &stored, outcome, age).await,
                )
            }
            Decision::OnlyIfCached { outcome } => Some(Answered::new(
                plain(StatusCode::GATEWAY_TIMEOUT, "not stored here\n"),
                outcome,
            )),
            Decision::Pass { reason } => {
                Some(pass(request, None, reason, Some(NotStored::Method)).await)
            }
            Decision::Forward {
                reason,
                sharing,
                validation,
            } => {
                let stale = stored.zip(validation).map(|(response, validation)| Stale {
                    response,
                    validation,
                });
                forward(request, reason, sharing, stale, &mut turns).await
            }
        };
        if let Some(answered) = answered {
            return answered;
        }
    }
    failed(request, OriginError::Unfit, ForwardReason::Miss)
}

/// The answer made of a stored response; `None` where it has changed and the request looks up
/// again.
fn or_look_up_again(
    request: &Request,
    reason: ForwardReason,
    delivered: Result<Answered, Undelivered>,
) -> Option<Answered> {
    match delivered {
        Ok(answered) => Some(answered),
        Err(Undelivered::LookUpAgain) => None,
        Err(Undelivered::Failed(error)) => Some(failed(request, error, reason)),
    }
}

/// Asks the origin, or waits for another request that does. `None` looks up again.
async fn forward(
    request: &Request,
    reason: ForwardReason,
    sharing: Sharing,
    stale: Option<Stale>,
    turns: &mut Turns,
) -> Option<Answered> {
    // The client does not wait for an origin that is known to fail.
    if let Some(stale) = &stale
        && let Some(answered) = stale.serve_while_failing(request).await
    {
        return Some(answered);
    }

    let forwards = &request.worker.edge.forwards;
    let unusual = Unusual::of(&request.fields, &request.site.cache);
    let requester = Requester::of(
        &request.worker.edge.index,
        &request.fields,
        &unusual,
        &request.keyed,
    );
    if wanted_slices(request).is_some() && forwards.is_unjoinable(request.hash, &requester) {
        return Some(pass_conditional(request, stale.as_ref(), reason).await);
    }

    let may_wait = turns.may_wait(reason == ForwardReason::VaryMiss);
    let is_shareable = match (sharing, &stale) {
        (Sharing::Unshared, _) => false,
        (Sharing::SharedIfVaried, Some(stale)) => {
            unusual.are_varied_on(&vary::names(&stale.response.fields).unwrap_or_default())
        }
        (Sharing::Shared | Sharing::SharedIfVaried, _) => true,
    };
    let join = match may_wait && is_shareable {
        true => forwards.join(request.hash, requester.clone()),
        false => Join::Alone,
    };
    let leader = match join {
        Join::Follower(follower) => {
            return follow(request, follower.wait().await, reason, stale, turns).await;
        }
        // Another forward request has brought a response since the look-up.
        Join::Leader(leader) if has_changed(request, stale.as_ref()) => {
            leader.resign();
            return None;
        }
        Join::Leader(leader) => Some(leader),
        // The response is this client's alone, so the origin evaluates its range and conditions.
        // But many origins answer several ranges with the whole, however large: those are fetched
        // one at a time.
        Join::Alone if stale.is_none() && is_passed_when_alone(request) => {
            return Some(pass(request, None, reason, None).await);
        }
        Join::Alone => None,
    };
    let forward = forward_request(request, requester, stale.as_ref().map(|s| &s.response));
    let forwarded = forward.spawn(leader).await;
    let forwarded = forwarded.unwrap_or(Forwarded::Failed(OriginError::Terminated));
    answer_forwarded(request, forwarded, reason, stale).await
}

/// Answers with the result of the request's own forward request. `None` looks up again.
async fn answer_forwarded(
    request: &Request,
    forwarded: Forwarded,
    reason: ForwardReason,
    stale: Option<Stale>,
) -> Option<Answered> {
    match forwarded {
        Forwarded::Filling {
            response,
            fill,
            not_stored,
            received,
            cookies,
        } => {
            if not_stored.is_some()
                && let Some(stale) = &stale
                && let Some(answered) = stale.serve_on_error(request, response.status).await
            {
                return Some(answered);
            }
            let is_stored = not_stored.is_none();
            let outcome = Outcome {
                forward_status: Some(received),
                is_stored,
                not_stored,
                ttl: is_stored.then(|| response.freshness.ttl(now_ms())),
                ..Outcome::forwarded(Answer::Miss, reason)
            };
            let delivered = deliver_fill(request, &response, outcome, fill).await;
            or_look_up_again(request, reason, delivered)
                .map(|answered| with_cookies(answered, cookies))
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
            let age = response.freshness.age(now);
            let delivered = deliver(request, &response, outcome, age).await;
            delivered
                .ok()
                .map(|answered| with_cookies(answered, cookies))
        }
        Forwarded::PassResponse {
            head,
            body,
            not_stored,
        } => {
            if let Some(stale) = &stale
                && let Some(answered) = stale.serve_on_error(request, head.status).await
            {
                return Some(answered);
            }
            let outcome = Outcome {
                forward_status: Some(head.status),
                not_stored: Some(not_stored),
                ..Outcome::forwarded(Answer::Miss, reason)
            };
            Some(Answered::new(pass_response(request, head, body), outcome))
        }
        Forwarded::PassRequest => Some(pass_conditional(request, stale.as_ref(), reason).await),
        Forwarded::Failed(error) => Some(match stale {
            Some(stale) => stale.serve_on_failure(request, error, reason).await,
            None => failed(request, error, reason),
        }),
    }
}

/// Answers a request that has waited for another's forward request. `None` looks up again.
async fn follow(
    request: &Request,
    step: FollowerStep,
    reason: ForwardReason,
    stale: Option<Stale>,
    turns: &mut Turns,
) -> Option<Answered> {
    match step {
        FollowerStep::LookUpStored => turns.note_stored(),
        FollowerStep::ForwardAlone => turns.forward_alone(),
        FollowerStep::LookUpAgain => {}
        FollowerStep::ErrorResponse {
            status,
            cause,
            shared,
        } => {
            // The origin is not asked again for each request that waited.
            if let Some(stale) = &stale
                && let Some(answered) = stale.serve_on_others_error(request, status).await
            {
                return Some(answered);
            }
            return Some(share_error(request, (status, cause), shared, reason).await);
        }
        FollowerStep::Fail(error) => {
            return Some(match stale {
                Some(stale) => stale.serve_on_others_failure(request, error, reason).await,
                None => failed(request, error, reason),
            });
        }
    }
    None
}

/// The error response for which a request has waited, or one of this node's own with the same
/// status where that response is not for others.
async fn share_error(
    request: &Request,
    (status, cause): (StatusCode, NotStored),
    shared: Option<SharedError>,
    reason: ForwardReason,
) -> Answered {
    let outcome = Outcome {
        forward_status: Some(status),
        is_collapsed: true,
        not_stored: Some(cause),
        ..Outcome::forwarded(Answer::Collapsed, reason)
    };
    let shared =
        shared.filter(|(response, _)| response.is_selected(&request.fields, &request.keyed));
    let Some((response, fill)) = shared else {
        let mut response = plain(status, "the origin of this content failed\n");
        let received = status::received(&request.worker.edge.name, status);
        response.headers_mut().insert(PROXY_STATUS, received);
        return Answered::new(response, outcome);
    };
    match deliver_fill(request, &response, outcome, fill).await {
        Ok(answered) => Answered {
            stored: None,
            ..answered
        },
        Err(Undelivered::Failed(error)) => failed(request, error, reason),
        Err(Undelivered::LookUpAgain) => failed(request, OriginError::Incomplete, reason),
    }
}

/// Whether another response is stored than was found before.
fn has_changed(request: &Request, before: Option<&Stale>) -> bool {
    let now = find(&request.worker.edge, request).ok();
    now.map(|found| Arc::as_ptr(&found.response))
        != before.map(|stale| Arc::as_ptr(&stale.response))
}

/// An answer with the cookies that the origin sent for this client alone.
fn with_cookies(mut answered: Answered, cookies: Cookies) -> Answered {
    for cookie in cookies {
        answered.response.headers_mut().append(SET_COOKIE, cookie);
    }
    answered
}

/// Whether the origin answers a request that is forwarded alone as the client made it: it has
/// conditions or a range, but not several ranges.
fn is_passed_when_alone(request: &Request) -> bool {
    let is_special = |name: &HeaderName| {
        matches!(
            *name,
            RANGE | IF_RANGE | IF_MATCH | IF_NONE_MATCH | IF_MODIFIED_SINCE | IF_UNMODIFIED_SINCE
        )
    };
    let is_plain = request.method == Method::GET && !request.fields.keys().any(is_special);
    let has_several_ranges =
        || range::requested(&request.method, &request.fields).is_some_and(|specs| specs.len() > 1);
    !is_plain && !has_several_ranges()
}
