//! One forward request, from a [`ForwardRequest`] to its [`Forwarded`] outcome.
//!
//! Sends the request, has its response's head decided by [`head`](super::head), and acts on the
//! decision: starts a fill, publishes the stored response, requests other slices.

use std::sync::Arc;

use futures_util::FutureExt as _;
use http::{HeaderMap, Response, StatusCode};
use tokio::sync::oneshot;

use super::collapse::{ForwardResult, Leader, Requester};
use super::head::{
    self, Admission, Cookies, Expected, FreshenEffect, Freshened, HeadAction, HeadDecision,
    OriginHead,
};
use super::origin_request::OriginRequest;
use super::pump::Pump;
use super::representation::{complete_length, is_same_representation};
use super::wanted::WantedSlices;
use crate::body::{Content, Fill, FillWriter};
use crate::edge::Edge;
use crate::origin::{OriginBody, OriginError};
use crate::peer::{self, REVISION, revision};
use crate::stored::generations::PurgeState;
use crate::stored::head::Head;
use crate::stored::response::{StoredResponse, StoredResponseParts};
use nearcast_http_rules::conditional::{self, StrongValidator};
use nearcast_http_rules::freshness::Exchange;
use nearcast_http_rules::not_stored::NotStored;
use nearcast_http_rules::{range, vary};
use nearcast_store::Pool;

/// A forward request whose response may be stored.
pub(crate) struct ForwardRequest {
    pub(crate) origin: OriginRequest,
    pub(crate) url: Arc<str>,
    pub(crate) hash: u128,
    /// The client's fields: they decide whether the response may be stored, and `Vary` selects by
    /// them.
    pub(crate) client: Arc<HeaderMap>,
    /// Those of the client's fields that the site keys by.
    pub(crate) keyed: Arc<HeaderMap>,
    pub(crate) requester: Requester,
    /// The stored response to validate.
    pub(crate) stale: Option<Arc<StoredResponse>>,
    /// A stored response may still be used when the origin fails: an error must not replace it.
    pub(crate) has_stale: bool,
    /// The wanted slices, unless the whole is wanted.
    pub(crate) range: Option<WantedSlices>,
    pub(crate) pool: Pool,
}

/// The outcome of a forward request for its leader.
pub(crate) enum Forwarded {
    /// The body is being received, and is read from the store meanwhile. `not_stored` says why it is
    /// not stored in the end; `received` is the origin's status, 206 for a part.
    Filling {
        response: Arc<StoredResponse>,
        fill: Arc<Fill>,
        not_stored: Option<NotStored>,
        received: StatusCode,
        cookies: Cookies,
    },
    /// The stored response is validated, by a response with the status `received`. `not_stored` says
    /// why the freshened response is for this client alone.
    Validated {
        response: Arc<StoredResponse>,
        received: StatusCode,
        cookies: Cookies,
        not_stored: Option<NotStored>,
    },
    /// The response is for this client alone, and is not stored.
    PassResponse {
        head: http::response::Parts,
        body: OriginBody,
        not_stored: NotStored,
    },
    /// The origin's parts are of no use: the request is to be forwarded with the client's own
    /// `Range` and conditions. A request for the whole instead may cost any number of bytes.
    PassRequest,
    /// The origin could not be asked, or sent no response.
    Failed(OriginError),
}

impl Forwarded {
    /// Why the response is not stored; `None` where it is, or there is none.
    fn not_stored(&self) -> Option<NotStored> {
        match self {
            Self::Filling { not_stored, .. } | Self::Validated { not_stored, .. } => *not_stored,
            Self::PassResponse { not_stored, .. } => Some(*not_stored),
            Self::PassRequest | Self::Failed(_) => None,
        }
    }
}

/// What the leader gets, and what its followers get.
type Outcome = (Forwarded, ForwardResult);

/// When a forward request was sent and its response's head received, by the clock, by the journal
/// and by this node's own changes.
#[derive(Debug, Clone, Copy)]
struct SentAt {
    exchange: Exchange,
    /// Journal revision that was folded.
    revision: u64,
    /// Number of changes by unsafe requests.
    changes: u64,
}

impl ForwardRequest {
    /// Sends the request as a task of its own, which publishes the result for the followers, and
    /// gives its outcome.
    pub(crate) fn spawn(self, leader: Option<Leader>) -> oneshot::Receiver<Forwarded> {
        let (outcome_tx, outcome) = oneshot::channel();
        // A box: the runtime moves a task's future several times, and this one has kilobytes.
        tokio::spawn(Box::pin(async move {
            let (origin, url) = (self.origin.clone(), self.url.clone());
            let (forwarded, result) = self.fetch().await;
            if let Some(cause) = forwarded.not_stored() {
                origin
                    .site
                    .note_not_stored(origin.worker.number, &url, cause);
            }
            if let Some(leader) = leader {
                leader.publish(result);
            }
            // The client may have left, and a background validation has none.
            let _ = outcome_tx.send(forwarded);
        }));
        outcome
    }

    async fn fetch(mut self) -> Outcome {
        loop {
            let mut sent = self.sending();
            let response = match self.origin.send(self.extra_fields()).await {
                Ok(response) => response,
                // The end of a push order is no failure for clients that waited for its request.
                Err(OriginError::GivenUp) => {
                    let failed = Forwarded::Failed(OriginError::GivenUp);
                    return (failed, ForwardResult::LookUpAgain);
                }
                Err(error) => return failed(error),
            };
            sent.exchange.received_ms = self.edge().clock.unix_ms();
            // A peer that has not folded a purge yet may send what that purge covers.
            if self.origin.is_peer {
                // A node of an earlier version answers for the other scheme.
                if peer::scheme(response.headers()) != peer::scheme_of(&self.url) {
                    return failed(OriginError::Unfit);
                }
                sent.revision = sent.revision.min(revision(response.headers()));
            }

            if self.is_validation(&response)
                && let Some(stale) = self.stale.take()
            {
                match self.freshen(&stale, &response, sent) {
                    Some(validated) => return validated,
                    // The 304 has an unknown validator: request the whole without conditions.
                    None => continue,
                }
            }

            let head = OriginHead {
                status: response.status(),
                fields: response.headers(),
                length: response.body().length(),
            };
            let HeadDecision {
                action,
                is_unjoinable,
            } = head::decide(head, &self.expected(sent.exchange));
            if is_unjoinable {
                let forwards = &self.edge().forwards;
                forwards.note_unjoinable(self.hash, &self.requester);
            }
            match action {
                HeadAction::Fill(admission) => return self.fill(response, admission, sent),
                HeadAction::PassResponse {
                    not_stored,
                    followers,
                } => {
                    let (head, body) = response.into_parts();
                    let passed = Forwarded::PassResponse {
                        head,
                        body,
                        not_stored,
                    };
                    return (passed, followers.result(&self.requester, None));
                }
                HeadAction::PassRequest { followers } => {
                    return (
                        Forwarded::PassRequest,
                        followers.result(&self.requester, None),
                    );
                }
                HeadAction::RequestAgain(wanted) => self.range = Some(wanted),
                HeadAction::Fail(error) => return failed(error),
            }
        }
    }

    fn edge(&self) -> &Arc<Edge> {
        &self.origin.worker.edge
    }

    /// Now, as the moment in which the request is sent.
    fn sending(&self) -> SentAt {
        let edge = self.edge();
        let now = edge.clock.unix_ms();
        SentAt {
            exchange: Exchange {
                requested_ms: now,
                received_ms: now,
            },
            revision: edge.generations.revision(),
            changes: edge.changes.now(),
        }
    }

    /// The range and the conditions of the request. Conditions come first: the range counts only
    /// where the stored response has changed (RFC 9110 section 13.2.2).
    fn extra_fields(&self) -> HeaderMap {
        let mut extra = self.range.map(WantedSlices::field).unwrap_or_default();
        if let Some(stale) = &self.stale {
            conditional::set_validation(&mut extra, [&stale.fields()]);
        }
        extra
    }

    /// Whether a response validates the stored one. Some origins evaluate the range first: a part
    /// of the stored representation shows that it has not changed.
    fn is_validation(&self, response: &Response<OriginBody>) -> bool {
        match response.status() {
            StatusCode::NOT_MODIFIED => true,
            StatusCode::PARTIAL_CONTENT => self.stale.as_ref().is_some_and(|stale| {
                let fields = response.headers();
                is_same_representation(&stale.content, fields, complete_length(fields))
            }),
            _ => false,
        }
    }

    fn expected(&self, exchange: Exchange) -> Expected<'_> {
        Expected {
            client: &self.client,
            policy: &self.origin.site.cache,
            body_bytes_max: self.origin.body_bytes_max(),
            wanted: self.range,
            has_stale: self.has_stale,
            exchange,
        }
    }

    /// Freshens the stored response with a 304, or a part of it. `None` where that does not name
    /// it.
    fn freshen(
        &self,
        stale: &Arc<StoredResponse>,
        response: &Response<OriginBody>,
        sent: SentAt,
    ) -> Option<Outcome> {
        let expected = self.expected(sent.exchange);
        let Freshened {
            fields,
            freshness,
            cookies,
            effect,
        } = head::freshen(stale.status, &stale.fields(), response.headers(), &expected)?;
        let facts = StoredResponseParts {
            // The 304 may have changed `Vary`.
            head: Head::new(
                stale.url(),
                &fields,
                &vary::selecting(&self.client, &fields),
                &stale.keyed(),
            ),
            site: stale.site.clone(),
            status: stale.status,
            version: stale.version,
            freshness,
            requested_ms: sent.exchange.requested_ms,
            requested_at_revision: sent.revision,
            is_soft: false,
            is_recovered: false,
            is_doubtful: false,
        };
        let fresh = facts.store(stale.content.clone());

        let (result, not_stored) = match effect {
            FreshenEffect::Replace => {
                self.replace(stale, &fresh, sent);
                (ForwardResult::Stored, None)
            }
            FreshenEffect::LeaderOnly(cause) => (self.requester.not_shareable(), Some(cause)),
            FreshenEffect::Remove(cause) => {
                self.edge().unpublish(stale);
                let (site, worker) = (&self.origin.site, &self.origin.worker);
                site.note_not_stored(worker.number, &self.url, cause);
                (ForwardResult::Stored, None)
            }
        };
        let validated = Forwarded::Validated {
            response: fresh,
            received: response.status(),
            cookies,
            not_stored,
        };
        Some((validated, result))
    }

    /// Publishes a freshened response in place of the stored one.
    fn replace(&self, stale: &StoredResponse, fresh: &Arc<StoredResponse>, sent: SentAt) {
        let edge = self.edge();
        edge.publish(fresh, |r| r.has_body_of(stale));
        if edge.changes.have_covered(fresh, sent.changes) {
            edge.unpublish(fresh);
        } else {
            fresh.write_head();
        }
    }

    /// Starts a fill with a response, which is published unless there is a reason not to store it.
    fn fill(&self, response: Response<OriginBody>, admission: Admission, sent: SentAt) -> Outcome {
        let (head, body) = response.into_parts();
        let (stored, cookies) = self.stored_response(&head, &admission, sent);
        let content = &stored.content;
        let part = admission.part;
        let (first, end) = part.map_or((0, admission.length), |part| {
            (part.range.first, Some(part.range.end()))
        });
        let fill = content.begin_fill(first, end);
        let writer = FillWriter::new(content.clone(), fill.clone(), self.pool == Pool::Pushed);

        // Readers find the fill in the index from here on, so it has to have begun.
        let is_stored =
            admission.not_stored.is_none() && self.publish(&stored, part.is_some(), sent);
        if !is_stored {
            self.edge().unpublish(&stored);
        }
        let pump = Pump::new(
            self.origin.clone(),
            writer,
            is_stored.then(|| stored.clone()),
            part.map_or(0, |part| part.skip),
        );
        // A short body has often come with its head: it is stored at once, without a task of its own.
        let mut pumping = Box::pin(pump.run(body));
        if pumping.as_mut().now_or_never().is_none() {
            tokio::spawn(pumping);
        }

        let result = match (is_stored, admission.not_stored) {
            (true, _) => ForwardResult::Stored,
            (false, None) => ForwardResult::LookUpAgain,
            (false, Some(_)) => {
                let shared = (stored.clone(), fill.clone());
                admission.followers.result(&self.requester, Some(shared))
            }
        };
        let overtaken = (!is_stored).then_some(NotStored::Overtaken);
        let filling = Forwarded::Filling {
            response: stored,
            fill,
            not_stored: admission.not_stored.or(overtaken),
            received: head.status,
            cookies,
        };
        (filling, result)
    }

    /// The response as it is stored, without a body yet, and the cookies for the leader.
    fn stored_response(
        &self,
        head: &http::response::Parts,
        admission: &Admission,
        sent: SentAt,
    ) -> (Arc<StoredResponse>, Cookies) {
        let fields = &head.headers;
        let edge = self.edge();
        let received_ms = sent.exchange.received_ms;
        let mut stored = conditional::stored_fields(fields, received_ms);
        stored.remove(&REVISION);
        let cookies = head::take_cookies(&mut stored, &self.origin.site.cache);
        let facts = StoredResponseParts {
            head: Head::new(
                &self.url,
                &stored,
                &vary::selecting(&self.client, fields),
                &self.keyed,
            ),
            site: self.origin.site.name.clone(),
            status: admission.status,
            version: head.version,
            freshness: admission.freshness,
            requested_ms: sent.exchange.requested_ms,
            requested_at_revision: sent.revision,
            is_soft: false,
            is_recovered: false,
            is_doubtful: false,
        };

        let content = Content::new(
            edge.store.clone(),
            edge.store.new_body(self.hash, self.pool),
            admission.length,
            StrongValidator::of(fields, received_ms),
        );
        let ignores_ranges = self.range.is_some() && admission.part.is_none();
        if ignores_ranges || !range::is_rangeable(fields) {
            content.note_whole_only();
        }
        (facts.store(content), cookies)
    }

    /// Publishes a response. `false` where a purge or an unsafe request that came after the forward
    /// request was sent covers it.
    fn publish(&self, stored: &Arc<StoredResponse>, is_part: bool, sent: SentAt) -> bool {
        let edge = self.edge();
        if stored.purge_state(&edge.generations) != PurgeState::Clean {
            return false;
        }
        edge.forwards.note_shareable(self.hash, &self.requester);
        edge.publish(stored, |r| r.is_same_variant(stored));
        // An unsafe request notes its change before it removes stored responses. So this check, after
        // the response is published, finds the change, or the removal finds the response.
        if edge.changes.have_covered(stored, sent.changes) {
            return false;
        }
        if is_part {
            stored.write_head();
        }
        true
    }
}

fn failed(error: OriginError) -> Outcome {
    (Forwarded::Failed(error), ForwardResult::Failed(error))
}
