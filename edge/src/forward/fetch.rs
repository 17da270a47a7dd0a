//! One forward request, from a [`ForwardRequest`] to its [`Forwarded`] outcome.

use std::sync::Arc;

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use nearcast_fleet::config::CachePolicy;
use tokio::sync::oneshot;

use super::collapse::{ForwardResult, Leader, Requester};
use super::origin_request::OriginRequest;
use super::pump::Pump;
use super::representation::{complete_length, is_same_representation};
use super::wanted::{SliceRange, WantedSlices, can_be_assembled};
use crate::content::{Content, Fill, FillWriter};
use crate::origin::{OriginBody, OriginError};
use crate::peer::{REVISION, revision};
use crate::purge::Verdict;
use crate::response::{Facts, StoredResponse};
use crate::store::{Pool, SLICE_BYTES};
use nearcast_http_rules::conditional::{self, StrongValidator};
use nearcast_http_rules::freshness::{self, Exchange, Freshness, NotStored, RequestFacts};
use nearcast_http_rules::{range, reuse, vary};

/// Bytes of the largest error response that followers share. A larger one, or one of unknown length,
/// goes to the leader alone, and the followers get its status.
const SHARED_ERROR_BYTES_MAX: u64 = SLICE_BYTES as u64;

/// A forward request that may fill the store.
pub(crate) struct ForwardRequest {
    pub(crate) origin: OriginRequest,
    pub(crate) url: Arc<str>,
    pub(crate) hash: u128,
    /// The client's fields, for what may be stored and for `Vary`.
    pub(crate) client: Arc<HeaderMap>,
    /// Those of them that the site keys by.
    pub(crate) keyed: Arc<HeaderMap>,
    pub(crate) requester: Requester,
    /// To be validated rather than fetched.
    pub(crate) stale: Option<Arc<StoredResponse>>,
    /// Something stored may still serve when the origin fails: its 5xx must not take that one's
    /// place.
    pub(crate) has_stale: bool,
    /// WantedSlices bytes, when not all are.
    pub(crate) range: Option<WantedSlices>,
    pub(crate) pool: Pool,
}

/// What the head of a forward request's response led to.
pub(crate) enum Forwarded {
    /// To be read from the store as it comes. Kept unless it says why not. `received` is the
    /// origin's status, 206 for a part.
    Filling {
        response: Arc<StoredResponse>,
        fill: Arc<Fill>,
        not_stored: Option<NotStored>,
        received: StatusCode,
        cookies: Cookies,
    },
    /// What was stored is as good as new, as an answer of the status `received` says; for this
    /// client alone where that says why it is not stored.
    Validated {
        response: Arc<StoredResponse>,
        received: StatusCode,
        cookies: Cookies,
        not_stored: Option<NotStored>,
    },
    /// For this client alone, and why it is not stored.
    PassResponse {
        head: http::response::Parts,
        body: OriginBody,
        not_stored: NotStored,
    },
    /// The origin's parts are of no use here: the request is to be sent on with the client's own
    /// `Range` and conditions. Asking for the whole instead may cost any number of bytes.
    PassRequest,
    /// Nothing.
    Failed(OriginError),
}

impl Forwarded {
    /// Why what came is not stored; `None` where it is, or nothing came.
    fn not_stored(&self) -> Option<NotStored> {
        match self {
            Self::Filling { not_stored, .. } | Self::Validated { not_stored, .. } => *not_stored,
            Self::PassResponse { not_stored, .. } => Some(*not_stored),
            Self::PassRequest | Self::Failed(_) => None,
        }
    }
}

/// Values of `Set-Cookie` that came for the one who asked, and are not stored.
pub(crate) type Cookies = Vec<HeaderValue>;

/// Takes the cookies out of the fields of a response that others may get, unless the site wants
/// them shared.
fn take_cookies(fields: &mut HeaderMap, policy: &CachePolicy) -> Cookies {
    let mut cookies = Vec::new();
    if !policy.store_set_cookie {
        cookies.extend(fields.get_all(SET_COOKIE).iter().cloned());
        fields.remove(SET_COOKIE);
        fields.remove("set-cookie2");
    }
    cookies
}

impl ForwardRequest {
    /// Sends the request as a task of its own, which publishes the result for the followers, and
    /// gives its outcome.
    pub(crate) fn spawn(self, leader: Option<Leader>) -> oneshot::Receiver<Forwarded> {
        let (outcome_tx, outcome) = oneshot::channel();
        tokio::spawn(async move {
            let (origin, url) = (self.origin.clone(), self.url.clone());
            let (forwarded, result) = follow_head(self).await;
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
        });
        outcome
    }
}

async fn follow_head(mut request: ForwardRequest) -> (Forwarded, ForwardResult) {
    loop {
        let requested_ms = request.origin.worker.edge.clock.unix_ms();
        let born = request.origin.worker.edge.generations.revision();
        let asked_at = request.origin.worker.edge.changes.now();
        let mut extra = request.range.map(WantedSlices::field).unwrap_or_default();
        // Conditions come first: a range counts only where what is stored has changed (RFC 9110
        // section 13.2.2).
        if let Some(stale) = &request.stale {
            conditional::set_validation(&mut extra, [&stale.fields]);
        }
        let response = match request.origin.send(extra).await {
            Ok(response) => response,
            // That a push order has ended says nothing to clients that waited for its request.
            Err(OriginError::GivenUp) => {
                return (
                    Forwarded::Failed(OriginError::GivenUp),
                    ForwardResult::LookUpAgain,
                );
            }
            Err(error) => return (Forwarded::Failed(error), ForwardResult::Failed(error)),
        };
        let exchange = Exchange {
            requested_ms,
            received_ms: request.origin.worker.edge.clock.unix_ms(),
        };
        // A node that has not folded a purge yet may give what that covers.
        let born = if request.origin.is_peer {
            born.min(revision(response.headers()))
        } else {
            born
        };
        // Some origins look at the range first: a part of what is stored says that it has not
        // changed.
        let is_same_part = response.status() == StatusCode::PARTIAL_CONTENT
            && request.stale.as_ref().is_some_and(|s| {
                is_same_representation(
                    &s.content,
                    response.headers(),
                    complete_length(response.headers()),
                )
            });
        if (response.status() == StatusCode::NOT_MODIFIED || is_same_part)
            && let Some(stale) = request.stale.take()
        {
            let sent = Sent {
                exchange,
                born,
                asked_at,
            };
            match freshen(&request, &stale, response.headers(), sent) {
                Some(Freshened {
                    response: fresh,
                    cookies,
                    not_stored,
                }) => {
                    let result = if not_stored.is_some() {
                        request.requester.not_shareable()
                    } else {
                        ForwardResult::Stored
                    };
                    let forwarded = Forwarded::Validated {
                        response: fresh,
                        received: response.status(),
                        cookies,
                        not_stored,
                    };
                    return (forwarded, result);
                }
                // A validator that nobody knows: ask for all of it.
                None => continue,
            }
        }
        match take(
            &request,
            response,
            Sent {
                exchange,
                born,
                asked_at,
            },
        ) {
            Ok(taken) => return taken,
            Err(wanted) => request.range = Some(wanted),
        }
    }
}

/// When a forward request was sent and its head received: by the clock, by the journal, and by this
/// node's own changes.
#[derive(Clone, Copy)]
struct Sent {
    exchange: Exchange,
    born: u64,
    asked_at: u64,
}

/// What a 304 made of a stored response.
struct Freshened {
    response: Arc<StoredResponse>,
    cookies: Cookies,
    /// Why it is for the client that asked alone: what is stored stays as it was, or is stored no
    /// more.
    not_stored: Option<NotStored>,
}

/// A 304 that names the stored response: it is as good as new, with the fields of the 304.
fn freshen(
    request: &ForwardRequest,
    stale: &Arc<StoredResponse>,
    fields: &HeaderMap,
    sent: Sent,
) -> Option<Freshened> {
    let Sent {
        exchange,
        born,
        asked_at,
    } = sent;
    let edge = &request.origin.worker.edge;
    let policy = &request.origin.site.cache;
    if !conditional::is_confirmed(&stale.fields, fields, true) {
        return None;
    }
    let mut fields = conditional::freshened(&stale.fields, fields, exchange.received_ms);
    let cookies = take_cookies(&mut fields, policy);
    // Whether what is stored may stay depends on its fields alone, as it did not come for this
    // request. Whether the fields of the 304 are for others as well, and may take it away from
    // them, depends on the request, as with any response.
    let judge = |client: &HeaderMap, fields: &HeaderMap| {
        let request = RequestFacts {
            method: &Method::GET,
            fields: client,
        };
        match freshness::judge(request, stale.status, fields, policy, exchange) {
            freshness::Verdict::Store(_) => None,
            freshness::Verdict::DoNotStore(cause) => Some(cause),
        }
    };
    let gone_for = judge(&HeaderMap::new(), &fields);
    let own_for = judge(&request.client, &stale.fields)
        .or_else(|| judge(&request.client, &fields).filter(|_| gone_for.is_none()));
    let facts = Facts {
        url: stale.url.clone(),
        hash: stale.hash,
        site: stale.site.clone(),
        status: stale.status,
        freshness: Freshness::of(stale.status, &fields, policy, exchange),
        // The 304 may have changed what it varies on.
        selecting: vary::selecting(&request.client, &fields),
        keyed: stale.keyed.clone(),
        fields,
        requested_ms: exchange.requested_ms,
        born,
        is_soft: false,
        is_recovered: false,
    };
    let fresh = facts.store(stale.content.clone());
    if own_for.is_some() {
        return Some(Freshened {
            response: fresh,
            cookies,
            not_stored: own_for,
        });
    }
    if let Some(cause) = gone_for {
        edge.unpublish(stale);
        request
            .origin
            .site
            .note_not_stored(request.origin.worker.number, &request.url, cause);
        return Some(Freshened {
            response: fresh,
            cookies,
            not_stored: None,
        });
    }
    edge.publish(&fresh, |r| Arc::ptr_eq(&r.content, &stale.content));
    if edge.changes.have_covered(&fresh, asked_at) {
        edge.unpublish(&fresh);
    } else {
        edge.store.put_head(&fresh.content.body, fresh.encode());
    }
    Some(Freshened {
        response: fresh,
        cookies,
        not_stored: None,
    })
}

fn broken() -> (Forwarded, ForwardResult) {
    (
        Forwarded::Failed(OriginError::Protocol),
        ForwardResult::Failed(OriginError::Protocol),
    )
}

/// What a response leads to.
///
/// # Errors
/// What to ask for instead, when the range that was asked for is of no use.
fn take(
    request: &ForwardRequest,
    response: Response<OriginBody>,
    sent: Sent,
) -> Result<(Forwarded, ForwardResult), WantedSlices> {
    let (head, body) = response.into_parts();
    let site = &request.origin.site;
    let most = site
        .cache
        .body_bytes_max
        .0
        .min(request.origin.worker.edge.body_bytes_max);
    let is_joinable = StrongValidator::of(&head.headers, sent.exchange.received_ms).is_some();
    let whole = SliceRange::of_whole(&head.headers)
        .filter(|_| head.status == StatusCode::PARTIAL_CONTENT && request.range.is_none());
    let part = match (head.status, request.range) {
        (StatusCode::PARTIAL_CONTENT, Some(wanted)) => {
            let part = wanted.part(&head.headers, is_joinable);
            let is_too_large =
                complete_length(&head.headers).is_some_and(|complete| complete > most);
            let is_usable = |part: &SliceRange| {
                !is_too_large
                    || is_joinable
                        && can_be_assembled(&request.client, &head.headers, part.complete)
            };
            let part = part.filter(is_usable);
            if part.is_none() {
                if !is_too_large || !is_joinable {
                    request
                        .origin
                        .worker
                        .edge
                        .forwards
                        .note_unjoinable(request.hash, &request.requester);
                }
                let is_met = wanted.is_met_by(&head.headers);
                let not_stored = if is_too_large {
                    NotStored::TooLarge
                } else {
                    NotStored::Partial
                };
                let forwarded = if is_met {
                    Forwarded::PassResponse {
                        head,
                        body,
                        not_stored,
                    }
                } else {
                    Forwarded::PassRequest
                };
                return Ok((
                    forwarded,
                    if is_too_large {
                        ForwardResult::NotShareable
                    } else {
                        ForwardResult::LeaderOnly
                    },
                ));
            }
            part
        }
        (StatusCode::PARTIAL_CONTENT, None) if whole.is_some() => whole,
        // Nobody asked for a part, or whether something had changed.
        (StatusCode::PARTIAL_CONTENT, None) | (StatusCode::NOT_MODIFIED, _) => return Ok(broken()),
        // Nor for another protocol.
        (status, _) if status.is_informational() => return Ok(broken()),
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(wanted)) if wanted.may_need_more => {
            return wanted
                .after_unsatisfied(&head.headers, &request.client)
                .map_or(Ok((Forwarded::PassRequest, ForwardResult::LeaderOnly)), Err);
        }
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => {
            return Ok((
                Forwarded::PassResponse {
                    head,
                    body,
                    not_stored: NotStored::Status,
                },
                ForwardResult::RangeNotSatisfiable,
            ));
        }
        _ => None,
    };
    let facts = RequestFacts {
        method: &Method::GET,
        fields: &request.client,
    };
    // A part is judged, and stored, as what it is a part of.
    let status = if part.is_some() {
        StatusCode::OK
    } else {
        head.status
    };
    let length = part.map_or(body.length(), |part| Some(part.complete));
    let verdict = freshness::judge(facts, status, &head.headers, &site.cache, sent.exchange);
    let is_error = reuse::is_error(status);
    let not_stored = match verdict {
        freshness::Verdict::DoNotStore(cause) => Some(cause),
        freshness::Verdict::Store(_) if is_error && request.has_stale => {
            Some(NotStored::ErrorBesideStored)
        }
        freshness::Verdict::Store(_) => length
            .is_some_and(|length| length > most)
            .then_some(NotStored::TooLarge),
    };
    let origin_head = OriginHead {
        status,
        fields: &head.headers,
        part,
        length,
        sent,
    };
    if let (true, Some(cause)) = (is_error, not_stored) {
        let is_for_others = match verdict {
            freshness::Verdict::Store(_) => true,
            // Of those who wait only requests that are alike take an error.
            freshness::Verdict::DoNotStore(reason) => {
                matches!(
                    reason,
                    NotStored::NoLifetime
                        | NotStored::Useless
                        | NotStored::RequestFields
                        | NotStored::Credentials
                )
            }
        };
        if !is_for_others || length.is_none_or(|length| length > SHARED_ERROR_BYTES_MAX) {
            return Ok((
                Forwarded::PassResponse {
                    head,
                    body,
                    not_stored: cause,
                },
                ForwardResult::ErrorResponse {
                    status,
                    cause,
                    shared: None,
                },
            ));
        }
        let StartedFill {
            response,
            fill,
            not_stored,
            cookies,
        } = begin(request, &origin_head, body, not_stored);
        let result = ForwardResult::ErrorResponse {
            status,
            cause,
            shared: Some((response.clone(), fill.clone())),
        };
        return Ok((
            Forwarded::Filling {
                response,
                fill,
                not_stored,
                received: head.status,
                cookies,
            },
            result,
        ));
    }
    let unshared = match verdict {
        // That is of the request, and says nothing of what others get.
        freshness::Verdict::DoNotStore(NotStored::Authorization | NotStored::RequestNoStore) => {
            ForwardResult::LeaderOnly
        }
        _ => request.requester.not_shareable(),
    };
    if let (Some(not_stored), None) = (not_stored, part) {
        return Ok((
            Forwarded::PassResponse {
                head,
                body,
                not_stored,
            },
            unshared,
        ));
    }
    let is_storable = not_stored.is_none();
    let can_be_kept = is_joinable || part.is_none_or(SliceRange::is_whole);
    if is_storable && !can_be_kept {
        request
            .origin
            .worker
            .edge
            .forwards
            .note_unjoinable(request.hash, &request.requester);
    }
    let not_stored = not_stored.or((!can_be_kept).then_some(NotStored::Partial));
    let StartedFill {
        response,
        fill,
        not_stored,
        cookies,
    } = begin(request, &origin_head, body, not_stored);
    let result = match not_stored {
        None => ForwardResult::Stored,
        Some(_) if !is_storable => unshared,
        Some(_) if !can_be_kept => ForwardResult::LeaderOnly,
        Some(_) => ForwardResult::LookUpAgain,
    };
    Ok((
        Forwarded::Filling {
            response,
            fill,
            not_stored,
            received: head.status,
            cookies,
        },
        result,
    ))
}

/// A response's head, as far as it goes into the store.
struct OriginHead<'a> {
    /// Of the whole, when it is a part.
    status: StatusCode,
    fields: &'a HeaderMap,
    part: Option<SliceRange>,
    /// Of the whole.
    length: Option<u64>,
    sent: Sent,
}

/// A fill that has begun.
struct StartedFill {
    response: Arc<StoredResponse>,
    fill: Arc<Fill>,
    not_stored: Option<NotStored>,
    cookies: Cookies,
}

/// Begins a fill with a response, which is published unless there is a reason not to store it.
fn begin(
    request: &ForwardRequest,
    origin_head: &OriginHead<'_>,
    body: OriginBody,
    not_stored: Option<NotStored>,
) -> StartedFill {
    let OriginHead {
        status,
        fields,
        part,
        length,
        sent: Sent {
            exchange,
            born,
            asked_at,
        },
    } = *origin_head;
    let edge = &request.origin.worker.edge;
    let policy = &request.origin.site.cache;
    let mut stored = conditional::stored_fields(fields, exchange.received_ms);
    stored.remove(&REVISION);
    let cookies = take_cookies(&mut stored, policy);
    let facts = Facts {
        url: request.url.clone(),
        hash: request.hash,
        site: request.origin.site.name.clone(),
        status,
        freshness: Freshness::of(status, &stored, policy, exchange),
        selecting: vary::selecting(&request.client, fields),
        keyed: HeaderMap::clone(&request.keyed),
        fields: stored,
        requested_ms: exchange.requested_ms,
        born,
        is_soft: false,
        is_recovered: false,
    };
    let validator = StrongValidator::of(fields, exchange.received_ms);
    let content = Content::new(
        edge.store.clone(),
        edge.store.new_body(request.hash, request.pool),
        length,
        validator,
    );
    if (request.range.is_some() && part.is_none()) || !range::is_rangeable(fields) {
        content.note_whole_only();
    }
    let response = facts.store(content.clone());
    let (first, end) = part.map_or((0, length), |part| {
        (part.range.first, Some(part.range.end()))
    });
    let fill = content.begin_fill(first, end);
    let writer = FillWriter::new(content.clone(), fill.clone(), request.pool == Pool::Pushed);
    // A purge that came since the request was sent covers it already.
    let mut is_stored =
        not_stored.is_none() && response.verdict(&edge.generations) == Verdict::Clean;
    if is_stored {
        edge.forwards
            .note_shareable(request.hash, &request.requester);
        edge.publish(&response, |r| r.is_same_variant(&response));
        // So does an unsafe request. Its answer is noted before what is stored is dropped, so that
        // one of the two is seen.
        is_stored = !edge.changes.have_covered(&response, asked_at);
    }
    if is_stored && part.is_some() {
        edge.store.put_head(&content.body, response.encode());
    }
    if !is_stored {
        edge.unpublish(&response);
    }
    let pump = Pump::new(
        request.origin.clone(),
        writer,
        is_stored.then(|| response.clone()),
        part.map_or(0, |part| part.skip),
    );
    tokio::spawn(pump.run(body));
    let not_stored = not_stored.or((!is_stored).then_some(NotStored::Overtaken));
    StartedFill {
        response,
        fill,
        not_stored,
        cookies,
    }
}
