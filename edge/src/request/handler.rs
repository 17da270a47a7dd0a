//! The life of one request, in order.
//!
//! Health check, challenge of an authority, checks, cache key and route; then, for a request that a stored response may answer:
//! find it, decide, and serve it, or ask the origin and serve what it sends. One [`Outcome`] fills
//! `Cache-Status`, metrics and log. Follows RFC 9110, 9111, 9209 and 9211.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{CONNECTION, LOCATION};
use http::{HeaderValue, Response, StatusCode};
use http_body::Body;
use nearcast_http_rules::decide::{Decision, Route, Terms, decide, route};
use nearcast_http_rules::https::{self, ALT_SVC, STRICT_TRANSPORT_SECURITY};
use nearcast_http_rules::not_stored::NotStored;
use nearcast_http_rules::status::{ForwardReason, Outcome, ProxyError};

use super::account::Accounted;
use super::answer::{Answered, add_status_fields, client_failed, failed, plain};
use super::check::{ClientConnection, Rejection, Request, check, check_challenge, check_health};
use super::deliver::deliver;
use super::hit::find_or_load;
use super::miss::{Step, forward_or_follow};
use super::pass::{pass, pass_conditional, pass_unsafe};
use super::purge_request;
use super::stale::{Stale, revalidate_in_background};
use super::trail::Trail;
use crate::client_body::ClientBody;
use crate::edge::Worker;
use crate::forward::Turns;
use crate::interim::InterimSender;
use crate::origin::OriginError;
use crate::request_body::RequestBody;

/// Answers one request, whose body is `None` where it has none. Never fails: every failure is an
/// answer. `on_end` is called when the response is complete.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    client: ClientConnection,
    interim: Option<InterimSender>,
    mut request: http::Request<Option<RequestBody>>,
    on_end: impl FnOnce() + Send + 'static,
) -> Response<ClientBody> {
    let trail = Trail::begin(&worker, &client, &mut request);
    let accounted = respond(&worker, &client, &trail, interim, request).await;
    accounted.conclude(&worker, trail, on_end)
}

/// The answer to input that is no request which could be handled.
pub(crate) fn refuse(
    worker: &Arc<Worker>,
    client: &ClientConnection,
    status: StatusCode,
    error: ProxyError,
    text: Cow<'static, str>,
) -> Response<ClientBody> {
    let answered = Answered::refused(&worker.edge.name, status, error, text);
    Accounted::without_site(answered).conclude(worker, Trail::of_refused(worker, client), || ())
}

async fn respond(
    worker: &Arc<Worker>,
    client: &ClientConnection,
    trail: &Arc<Trail>,
    interim: Option<InterimSender>,
    request: http::Request<Option<RequestBody>>,
) -> Accounted {
    let edge = &worker.edge;
    if let Some(health) = check_health(edge, &request) {
        trail.forget();
        return Accounted::without_site(match health {
            Ok(()) => Answered::local(StatusCode::OK, "ok\n"),
            Err(text) => Answered::local(StatusCode::SERVICE_UNAVAILABLE, text),
        });
    }
    if let Some(content) = check_challenge(edge, &request) {
        let mut response = plain(StatusCode::OK, "");
        *response.body_mut() = ClientBody::whole(content.into());
        return Accounted::without_site(Answered::new(response, Outcome::local("challenge")));
    }
    let (request, body) = match check(worker, client, trail, interim, request) {
        Ok(checked) => checked,
        Err(rejection) => return Accounted::without_site(reject(&edge.name, rejection)),
    };

    if let Some(answered) = redirect_to_https(&request) {
        return Accounted::of_site(&request.site, answered);
    }

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
    let step = match route(&request.method, request.path.as_str(), has_body) {
        Route::LookUp => look_up(&request).await,
        Route::Pass { reason, cause } => Step::Pass {
            reason,
            cause: Some(cause),
        },
        Route::PassUnsafe => Step::PassUnsafe,
    };
    let mut answered = match step {
        Step::Answer(answered) => answered,
        Step::Pass { reason, cause } => pass(&request, body, reason, cause).await,
        Step::PassUnsafe => pass_unsafe(&request, body).await,
        Step::PassConditional { reason, stale } => {
            pass_conditional(&request, stale.as_ref(), reason).await
        }
        Step::Fail { reason, error } => failed(&request, error, reason),
    };
    let fields = answered.response.headers_mut();
    add_status_fields(&request, &answered.outcome, fields);
    if let Some(value) = request.transport_security() {
        fields.insert(STRICT_TRANSPORT_SECURITY, value.clone());
    }
    if let Some(value) = client.alternative(edge).filter(|_| !request.is_peer) {
        fields.insert(ALT_SVC, value.clone());
    }
    Accounted::of_request(&request, answered)
}

/// The redirect of a client without TLS, where the site wants TLS. Other nodes and purges are no
/// clients of the site.
pub(super) fn redirect_to_https(request: &Request) -> Option<Answered> {
    let is_exempt =
        request.scheme == "https" || request.is_peer || purge_request::is_purge(&request.method);
    if is_exempt || !request.site.redirects_to_https {
        return None;
    }
    let sites = request.worker.edge.sites.load();
    let host = request.host.to_str().ok()?;
    let (status, target) = https::redirect(
        &request.method,
        host,
        sites.https_port,
        request.path.as_str(),
    )?;
    let mut response = plain(status, "this site is served by https\n");
    response.headers_mut().insert(LOCATION, target);
    Some(Answered::new(response, Outcome::local("https")))
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

/// Looks up a GET or HEAD without a body, and asks the origin where no stored response answers it.
/// The stored response may change between its look-up and its use: then the request looks up again.
async fn look_up(request: &Request) -> Step {
    let edge = &request.worker.edge;
    let mut terms = Terms::of(
        &request.method,
        &request.fields,
        &request.site.cache,
        request.is_peer,
        request.began_ms,
    );
    let mut turns = Turns::default();
    while turns.begin() {
        terms.has_waited = turns.has_waited();
        let found = find_or_load(edge, request).await;
        let facts = found.as_ref().map(|found| found.facts(edge));
        let decision = decide(&terms, facts.map_err(|reason| *reason));
        let stored = found.ok().map(|found| found.response);

        let step = match decision {
            Decision::Serve {
                outcome,
                age,
                revalidate,
            } => {
                let Some(stored) = stored else { continue };
                if revalidate {
                    revalidate_in_background(request, &stored);
                }
                let delivered = deliver(request, &stored, outcome, age).await;
                Step::of_delivery(delivered, ForwardReason::Partial)
            }
            Decision::OnlyIfCached { outcome } => {
                let response = plain(StatusCode::GATEWAY_TIMEOUT, "not stored here\n");
                Some(Step::Answer(Answered::new(response, outcome)))
            }
            Decision::Pass { reason } => Some(Step::Pass {
                reason,
                cause: Some(NotStored::Method),
            }),
            Decision::Forward {
                reason,
                sharing,
                validation,
            } => {
                let stale = stored.zip(validation).map(|(response, validation)| Stale {
                    response,
                    validation,
                });
                forward_or_follow(request, reason, sharing, stale, &mut turns).await
            }
        };
        if let Some(step) = step {
            return step;
        }
    }
    Step::Fail {
        reason: ForwardReason::Miss,
        error: OriginError::Unfit,
    }
}
