//! A stored response that is to be validated: served when the origin fails, where that is
//! permitted, and validated in the background while it is served.
//!
//! Follows RFC 9111 section 4.2.4 and RFC 5861.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, COOKIE, IF_RANGE};
use http::{HeaderMap, StatusCode};
use nearcast_http_rules::decide::{OnFailure, Validation};
use nearcast_http_rules::request_fields::{self, UnkeyedFields};
use nearcast_http_rules::reuse;
use nearcast_http_rules::status::{ForwardReason, Outcome};
use tokio::sync::oneshot;

use super::answer::{Answered, failed, warn_of_origin};
use super::check::Request;
use super::deliver::deliver;
use super::hit::is_soft_purged;
use super::to_origin::forward_request;
use crate::edge::{Edge, Knowledge};
use crate::forward::{Forwarded, Requester};
use crate::origin::{Failing, OriginError};
use crate::stored::response::StoredResponse;
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::report::CacheStatus;

/// How long a request whose validation has failed waits to learn whether control answers, and what
/// was purged. Only a node that has just started does not know.
const KNOWLEDGE_WAIT_MAX: Duration = Duration::from_secs(1);

/// A stored response that has to be validated.
#[derive(Clone)]
pub(super) struct Stale {
    pub(super) response: Arc<StoredResponse>,
    pub(super) validation: Validation,
}

impl Stale {
    /// Serves it without waiting for an origin that is known to fail, and validates it in the
    /// background when a validation is due.
    pub(super) async fn serve_while_failing(&self, request: &Request) -> Option<Answered> {
        if !self.validation.may_serve_while_failing {
            return None;
        }
        let (detail, is_due) = self.known_failure(request)?;
        let is_unsynced = self.may_serve(&request.worker.edge).await?;
        if is_due {
            revalidate_in_background(request, &self.response);
        }
        let outcome = self.validation.outcome_while_failing(detail, is_unsynced);
        self.serve(request, outcome, self.validation.age).await
    }

    /// Why the client does not wait for a validation, and whether one is due: the origin is known
    /// not to answer, or fails for this URL.
    fn known_failure(&self, request: &Request) -> Option<(&'static str, bool)> {
        if let Some(is_due) = request.target().failing() {
            return Some(("origin-unavailable", is_due));
        }
        let now = request.worker.edge.clock.unix_ms();
        let (failing, is_due) = self.response.known_backoff()?.state(now)?;
        Some((failing.detail(), is_due))
    }

    /// Whether it may be used now that its validation has failed, and then whether this node may
    /// lack a purge of it.
    async fn may_serve(&self, edge: &Edge) -> Option<bool> {
        match self.validation.on_failure {
            OnFailure::Fail => return None,
            OnFailure::Serve => return Some(false),
            // It may have been invalidated, and nothing that arrives says whether it was.
            OnFailure::ServeUnsynced if self.response.is_doubtful() => return None,
            OnFailure::ServeUnsynced => {}
        }
        let mut knowledge = edge.knowledge.subscribe();
        let is_settled = |now: &Knowledge| matches!(now, Knowledge::CutOff | Knowledge::CaughtUp);
        let _ = tokio::time::timeout(KNOWLEDGE_WAIT_MAX, knowledge.wait_for(is_settled)).await;
        let now = *knowledge.borrow();
        // A purge that has arrived meanwhile counts.
        is_soft_purged(edge, &self.response, self.response.url())?;
        match now {
            Knowledge::CaughtUp => self.validation.reuse.may_serve_on_error().then_some(false),
            // More purges will arrive, from the node's own copy or from control.
            Knowledge::Recalling | Knowledge::Behind => None,
            Knowledge::CutOff | Knowledge::Asking => Some(true),
        }
    }

    async fn serve(&self, request: &Request, outcome: Outcome, age: u64) -> Option<Answered> {
        let answered = deliver(request, &self.response, outcome, age).await.ok()?;
        if outcome.is_unsynced {
            let counters = &request.site.counters;
            counters.served_unsynced(request.worker.number);
        }
        Some(answered)
    }

    /// Serves it after a failed validation.
    async fn serve_after_failure(
        &self,
        request: &Request,
        is_unsynced: bool,
        error: Option<OriginError>,
        status: Option<StatusCode>,
    ) -> Option<Answered> {
        let now = request.worker.edge.clock.unix_ms();
        let freshness = self.response.freshness();
        let outcome = Outcome {
            is_unsynced,
            ttl: Some(freshness.ttl(now)),
            forward_status: status,
            detail: error.map(|error| error.proxy_error().as_str()),
            ..Outcome::forwarded(CacheStatus::Stale, ForwardReason::Stale)
        };
        self.serve(request, outcome, freshness.age(now)).await
    }

    /// Answers a request whose forward request failed.
    pub(super) async fn serve_on_failure(
        &self,
        request: &Request,
        error: OriginError,
        reason: ForwardReason,
    ) -> Answered {
        if let Some(failing) = error.failing() {
            self.note_failure(request, failing);
        }
        self.serve_or_fail(request, error, reason).await
    }

    /// The same for a request that waited for another's forward request.
    pub(super) async fn serve_on_others_failure(
        &self,
        request: &Request,
        error: OriginError,
        reason: ForwardReason,
    ) -> Answered {
        // A failure counts once, for the request that was forwarded. But the client of that one may
        // have left before the time-out; further time-outs do not count.
        if error.failing() == Some(Failing::TimedOut) {
            self.note_failure(request, Failing::TimedOut);
        }
        self.serve_or_fail(request, error, reason).await
    }

    async fn serve_or_fail(
        &self,
        request: &Request,
        error: OriginError,
        reason: ForwardReason,
    ) -> Answered {
        if !error.is_of_client() {
            warn_of_origin(request, error);
        }
        // A failure of this node's own says nothing about the origin.
        let is_of_origin =
            error.failing().is_some() || matches!(error, OriginError::Unavailable { .. });
        if (self.validation.on_failure == OnFailure::Serve || is_of_origin)
            && let Some(is_unsynced) = self.may_serve(&request.worker.edge).await
            && let Some(answered) = self
                .serve_after_failure(request, is_unsynced, Some(error), None)
                .await
        {
            return answered;
        }
        let mut answered = failed(request, error, reason);
        let status = answered.response.status_mut();
        *status = reuse::failure_status(self.validation.reuse, *status);
        answered
    }

    /// Serves it instead of an error response of the origin, if the status is one.
    pub(super) async fn serve_on_error(
        &self,
        request: &Request,
        status: StatusCode,
    ) -> Option<Answered> {
        if self.validation.on_failure != OnFailure::Fail && reuse::is_error(status) {
            self.note_failure(request, Failing::Status);
        }
        self.serve_on_others_error(request, status).await
    }

    /// The same for a request that waited for another's forward request: an error counts once, for
    /// the request that was forwarded.
    pub(super) async fn serve_on_others_error(
        &self,
        request: &Request,
        status: StatusCode,
    ) -> Option<Answered> {
        if !reuse::is_error(status) {
            return None;
        }
        let is_unsynced = self.may_serve(&request.worker.edge).await?;
        self.serve_after_failure(request, is_unsynced, None, Some(status))
            .await
    }

    /// Notes that its validation failed. If the client's own fields may be the reason, it counts
    /// only when a validation without them fails as well.
    fn note_failure(&self, request: &Request, failing: Failing) {
        let may_be_of_client =
            || has_distinct_fields(request) || request_fields::is_oversized(&request.fields);
        // No client waits for a time-out a second time, whatever the reason: the next validation in
        // the background shows it.
        if failing != Failing::TimedOut && may_be_of_client() {
            revalidate_in_background(request, &self.response);
        } else {
            let now = request.worker.edge.clock.unix_ms();
            self.response.backoff().note(failing, now);
        }
    }
}

/// Whether a request has a cookie, credentials or unusual fields, to which its response may be due.
pub(super) fn has_distinct_fields(request: &Request) -> bool {
    request
        .fields
        .keys()
        .any(|name| matches!(*name, COOKIE | AUTHORIZATION))
        || !UnkeyedFields::of(&request.fields, &request.site.cache).is_empty()
}

/// Starts one validation in the background, unless one is under way.
pub(super) fn revalidate_in_background(request: &Request, response: &Arc<StoredResponse>) {
    if !response.begin_validating() {
        return;
    }
    let edge = &request.worker.edge;
    let requester = Requester::of(
        &edge.index,
        &HeaderMap::new(),
        &UnkeyedFields::default(),
        &request.keyed,
    );
    let Some(leader) = edge.forwards.lead(request.hash, requester.clone()) else {
        response.end_validating();
        return;
    };

    // It is for the stored response, not for the client that happened to ask, which is answered
    // without it.
    let vary = response.vary_names();
    let policy = &request.site.cache;
    let mut fields = match request_fields::is_oversized(&request.fields) {
        true => request_fields::selecting_only(&request.fields, policy, &vary),
        false => request_fields::shared(&request.fields, policy, &vary),
    };
    fields.remove(IF_RANGE);
    let request = Request {
        fields: Arc::new(fields),
        interim: None,
        ..request.clone()
    };
    let mut forward = forward_request(&request, requester, Some(response));
    forward.origin.is_background = true;
    let forwarded = forward.spawn(Some(leader));
    tokio::spawn(note_revalidated(response.clone(), forwarded));
}

/// Notes the result of a validation in the background.
async fn note_revalidated(response: Arc<StoredResponse>, forwarded: oneshot::Receiver<Forwarded>) {
    let status = match forwarded.await {
        Ok(Forwarded::Failed(error)) => Err(error.failing()),
        Ok(Forwarded::Filling { response, .. }) => Ok(response.status),
        Ok(Forwarded::PassResponse { head, .. }) => Ok(head.status),
        Ok(Forwarded::Validated { .. }) => Ok(StatusCode::NOT_MODIFIED),
        Ok(Forwarded::PassRequest) | Err(_) => Err(None),
    };
    match status {
        Ok(status) if !reuse::is_error(status) => response.clear_backoff(),
        Ok(_) => response.backoff().note(Failing::Status, now_unix_ms()),
        Err(Some(failing)) => response.backoff().note(failing, now_unix_ms()),
        Err(None) => {}
    }
    response.end_validating();
}
