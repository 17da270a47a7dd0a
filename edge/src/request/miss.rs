//! A request that no stored response answers as it is: it is forwarded, or waits for another request
//! that is.
//!
//! Follows RFC 9111 sections 4 and 4.3.

use http::header::{
    IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE, SET_COOKIE,
};
use http::{HeaderName, Method, StatusCode};
use nearcast_http_rules::decide::Sharing;
use nearcast_http_rules::not_stored::NotStored;
use nearcast_http_rules::range;
use nearcast_http_rules::request_fields::UnkeyedFields;
use nearcast_http_rules::status::{self, ForwardReason, Outcome, PROXY_STATUS};

use super::answer::{Answered, plain};
use super::check::Request;
use super::deliver::{Undelivered, deliver, deliver_fill};
use super::hit::find;
use super::pass::pass_response;
use super::stale::Stale;
use super::to_origin::{forward_request, wanted_slices};
use crate::forward::{Cookies, FollowerStep, Forwarded, Join, Requester, SharedError, Turns};
use crate::origin::OriginError;
use nearcast_fleet::report::CacheStatus;

/// The last step of a request.
pub(super) enum Step {
    Answer(Answered),
    /// It is sent on; the response is not stored for `cause`, or for what it shows itself.
    Pass {
        reason: ForwardReason,
        cause: Option<NotStored>,
    },
    /// It is sent on, and may change stored responses.
    PassUnsafe,
    /// It is sent on with its range and conditions: the origin's parts cannot be joined here.
    PassConditional {
        reason: ForwardReason,
        stale: Option<Stale>,
    },
    /// The origin failed.
    Fail {
        reason: ForwardReason,
        error: OriginError,
    },
}

impl Step {
    /// The step after a stored response was delivered; `None` where it has changed and the request
    /// looks up again.
    pub(super) fn of_delivery(
        delivered: Result<Answered, Undelivered>,
        reason: ForwardReason,
    ) -> Option<Self> {
        match delivered {
            Ok(answered) => Some(Self::Answer(answered)),
            Err(Undelivered::LookUpAgain) => None,
            Err(Undelivered::Failed(error)) => Some(Self::Fail { reason, error }),
        }
    }
}

/// Asks the origin, or waits for another request that does. `None` looks up again.
pub(super) async fn forward_or_follow(
    request: &Request,
    reason: ForwardReason,
    sharing: Sharing,
    stale: Option<Stale>,
    turns: &mut Turns,
) -> Option<Step> {
    // The client does not wait for an origin that is known to fail.
    if let Some(stale) = &stale
        && let Some(answered) = stale.serve_while_failing(request).await
    {
        return Some(Step::Answer(answered));
    }

    let forwards = &request.worker.edge.forwards;
    let unusual = UnkeyedFields::of(&request.fields, &request.site.cache);
    let requester = Requester::of(
        &request.worker.edge.index,
        &request.fields,
        &unusual,
        &request.keyed,
    );
    if wanted_slices(request).is_some() && forwards.is_unjoinable(request.hash, &requester) {
        return Some(Step::PassConditional { reason, stale });
    }

    let may_wait = turns.may_wait(reason == ForwardReason::VaryMiss);
    let is_shareable = match (sharing, &stale) {
        (Sharing::Unshared, _) => false,
        (Sharing::SharedIfVaried, Some(stale)) => {
            unusual.are_varied_on(&stale.response.vary_names())
        }
        (Sharing::Shared | Sharing::SharedIfVaried, _) => true,
    };
    let join = match may_wait && is_shareable {
        true => forwards.join(request.hash, requester.clone()),
        false => Join::Alone,
    };
    let leader = match join {
        Join::Follower(follower) => {
            let step = request.trail.waiting_for_origin(follower.wait()).await;
            return follow(request, step, reason, stale, turns).await;
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
            return Some(Step::Pass {
                reason,
                cause: None,
            });
        }
        Join::Alone => None,
    };
    let forward = forward_request(request, requester, stale.as_ref().map(|s| &s.response));
    let spawned = forward.spawn(leader);
    let forwarded = request.trail.waiting_for_origin(spawned).await;
    let forwarded = forwarded.unwrap_or(Forwarded::Failed(OriginError::Terminated));
    answer_forwarded(request, forwarded, reason, stale).await
}

/// Answers with the result of the request's own forward request. `None` looks up again.
async fn answer_forwarded(
    request: &Request,
    forwarded: Forwarded,
    reason: ForwardReason,
    stale: Option<Stale>,
) -> Option<Step> {
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
                return Some(Step::Answer(answered));
            }
            let is_stored = not_stored.is_none();
            let outcome = Outcome {
                forward_status: Some(received),
                is_stored,
                not_stored,
                ttl: is_stored.then(|| {
                    response
                        .freshness()
                        .ttl(request.worker.edge.clock.unix_ms())
                }),
                ..Outcome::forwarded(CacheStatus::Miss, reason)
            };
            let delivered = deliver_fill(request, &response, outcome, fill).await;
            Step::of_delivery(
                delivered.map(|answered| with_cookies(answered, cookies)),
                reason,
            )
        }
        Forwarded::Validated {
            response,
            received,
            cookies,
            not_stored,
        } => {
            let now = request.worker.edge.clock.unix_ms();
            let outcome = Outcome {
                forward_status: Some(received),
                ttl: Some(response.freshness().ttl(now)),
                is_stored: not_stored.is_none(),
                not_stored,
                ..Outcome::forwarded(CacheStatus::Revalidated, reason)
            };
            let age = response.freshness().age(now);
            let delivered = deliver(request, &response, outcome, age).await;
            let answered = with_cookies(delivered.ok()?, cookies);
            Some(Step::Answer(answered))
        }
        Forwarded::PassResponse {
            head,
            body,
            not_stored,
        } => {
            if let Some(stale) = &stale
                && let Some(answered) = stale.serve_on_error(request, head.status).await
            {
                return Some(Step::Answer(answered));
            }
            let outcome = Outcome {
                forward_status: Some(head.status),
                not_stored: Some(not_stored),
                ..Outcome::forwarded(CacheStatus::Miss, reason)
            };
            let response = pass_response(request, head, body);
            Some(Step::Answer(Answered::new(response, outcome)))
        }
        Forwarded::PassRequest => Some(Step::PassConditional { reason, stale }),
        Forwarded::Failed(error) => Some(match stale {
            Some(stale) => Step::Answer(stale.serve_on_failure(request, error, reason).await),
            None => Step::Fail { reason, error },
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
) -> Option<Step> {
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
                return Some(Step::Answer(answered));
            }
            return Some(share_error(request, (status, cause), shared, reason).await);
        }
        FollowerStep::Fail(error) => {
            return Some(match stale {
                Some(stale) => {
                    Step::Answer(stale.serve_on_others_failure(request, error, reason).await)
                }
                None => Step::Fail { reason, error },
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
) -> Step {
    let outcome = Outcome {
        forward_status: Some(status),
        is_collapsed: true,
        not_stored: Some(cause),
        ..Outcome::forwarded(CacheStatus::Collapsed, reason)
    };
    let shared =
        shared.filter(|(response, _)| response.is_selected(&request.fields, &request.keyed));
    let Some((response, fill)) = shared else {
        let mut response = plain(status, "the origin of this content failed\n");
        let received = status::received(&request.worker.edge.name, status);
        response.headers_mut().insert(PROXY_STATUS, received);
        return Step::Answer(Answered::new(response, outcome));
    };
    match deliver_fill(request, &response, outcome, fill).await {
        Ok(answered) => Step::Answer(Answered {
            stored: None,
            ..answered
        }),
        Err(Undelivered::Failed(error)) => Step::Fail { reason, error },
        Err(Undelivered::LookUpAgain) => Step::Fail {
            reason,
            error: OriginError::Incomplete,
        },
    }
}

/// Whether another response is stored than was found before.
fn has_changed(request: &Request, before: Option<&Stale>) -> bool {
    // One that has left memory only has not changed.
    let now = find(&request.worker.edge, request).ok();
    now.is_some_and(|found| before.is_none_or(|stale| !found.response.is_same_as(&stale.response)))
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
