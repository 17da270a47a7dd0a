//! Counts answers: requests, bytes, time, and popularity.

use nearcast_fleet::report::CacheStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Response, StatusCode};
use nearcast_http_rules::status::{self, ForwardReason, Outcome, PROXY_STATUS};

use super::answer::Answered;
use super::check::Request;
use super::trail::{self, Trail};
use crate::access_log::Ending;
use crate::client_body::{ClientBody, Progress};
use crate::edge::Worker;
use crate::metrics::SiteCounters;
use crate::request_id::RequestId;
use crate::site::Site;
use nearcast_store::Pool;

/// An answer, and where it is counted.
pub(super) struct Accounted {
    pub(super) response: Response<ClientBody>,
    outcome: Outcome,
    /// `None` counts under no site's name.
    site: Option<Arc<Site>>,
    popularity: Option<PopularityNote>,
    is_peer: bool,
}

impl Accounted {
    /// An answer of this node's own, before the request had a site.
    pub(super) fn without_site(answered: Answered) -> Self {
        Self {
            response: answered.response,
            outcome: answered.outcome,
            site: None,
            popularity: None,
            is_peer: false,
        }
    }

    /// An answer that says nothing about the popularity of its URL.
    pub(super) fn of_site(site: &Arc<Site>, answered: Answered) -> Self {
        Self {
            site: Some(site.clone()),
            ..Self::without_site(answered)
        }
    }

    /// An answer to a client's request for a URL. Answers to other nodes count as this node's own.
    pub(super) fn of_request(request: &Request, answered: Answered) -> Self {
        let popularity = PopularityNote::of(request, &answered);
        let mut accounted = Self::of_site(&request.site, answered);
        accounted.popularity = popularity;
        accounted.is_peer = request.is_peer;
        if request.is_peer {
            accounted.outcome.label = CacheStatus::Local;
        }
        accounted
    }

    /// Counts the answer now, and its bytes as they are sent; logs it at its end. `on_end` is called
    /// when the response is complete.
    pub(super) fn conclude(
        self,
        worker: &Arc<Worker>,
        trail: Arc<Trail>,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Response<ClientBody> {
        let Self {
            mut response,
            outcome,
            site,
            popularity,
            is_peer,
        } = self;
        if matches!(outcome.label, CacheStatus::Error | CacheStatus::Local) && !is_peer {
            name_request(&mut response, &trail.id);
        }
        let counters = site
            .as_ref()
            .map_or_else(|| worker.edge.no_site.clone(), |site| site.counters.clone());
        let status = response.status();
        let first_byte = count(worker, &counters, &outcome, status, trail.began());
        let number = worker.number;
        let note = move |bytes: u64, ending: Ending| {
            trail.note(&trail::Result {
                site: site.as_ref().map_or("", |site| &site.name),
                is_peer,
                outcome: &outcome,
                status: status.as_u16(),
                bytes,
                first_byte: Some(first_byte),
                // No body is taken where there is none to send.
                ending: match trail.is_head_request() || is_bodyless(status) {
                    true => Ending::Complete,
                    false => ending,
                },
            });
        };

        if let Some(bytes) = response.body().whole_length() {
            counters.sent(number, outcome.label, bytes);
            if let Some(note) = &popularity {
                note.note(worker, bytes);
            }
            on_end();
            if bytes == 0 {
                note(0, Ending::Complete);
                return response;
            }
            return response.map(|body| {
                body.observed(move |progress| match progress {
                    Progress::Piece(_) => {}
                    Progress::End(bytes, ending) => note(bytes, ending),
                })
            });
        }
        if let Some(note) = &popularity {
            note.note(worker, 0);
            if note.is_pushed {
                counters.pushed_hit(number, 0);
            }
        }
        let worker = worker.clone();
        let mut on_end = Some(on_end);
        response.map(|body| {
            body.observed(move |progress| match progress {
                Progress::Piece(bytes) => {
                    counters.sent(number, outcome.label, bytes);
                    if popularity.as_ref().is_some_and(|note| note.is_pushed) {
                        counters.pushed_sent(number, bytes);
                    }
                }
                Progress::End(bytes, ending) => {
                    if let Some(note) = &popularity {
                        worker.note_sent(note.hash, bytes);
                    }
                    note(bytes, ending);
                    if let Some(on_end) = on_end.take() {
                        on_end();
                    }
                }
            })
        })
    }
}

fn is_bodyless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Names the request in an error that this node makes, for programs and for people.
fn name_request(response: &mut Response<ClientBody>, id: &RequestId) {
    let Some(value) = response.headers_mut().get_mut(PROXY_STATUS) else {
        return;
    };
    let text = id.text();
    *value = status::with_request_id(value, text.as_str());
    let line = format!("request id: {}\n", text.as_str());
    response.body_mut().append(line.as_bytes());
}

/// Counts an answer, without the bytes of its body; returns the time that it took.
pub(super) fn count(
    worker: &Worker,
    counters: &SiteCounters,
    outcome: &Outcome,
    status: StatusCode,
    began: Instant,
) -> Duration {
    let took = began.elapsed();
    counters.answered(worker.number, outcome.label, status.as_u16());
    worker
        .edge
        .metrics
        .took(worker.number, outcome.forward.is_some(), took);
    tracing::debug!(
        answer = outcome.label.as_str(),
        forward = outcome.forward.map(ForwardReason::as_str),
        status = status.as_u16(),
        "answered"
    );
    took
}

/// What popularity and the counters of pushes learn from an answer.
struct PopularityNote {
    hash: u128,
    site: Arc<Site>,
    url: Arc<str>,
    size: u64,
    is_pushed: bool,
}

impl PopularityNote {
    /// Requests of other nodes, other methods and failures say nothing about popularity.
    fn of(request: &Request, answered: &Answered) -> Option<Self> {
        let Answered {
            outcome, stored, ..
        } = answered;
        let counts = request.method == Method::GET
            && !request.is_peer
            && outcome.label != CacheStatus::Error;
        counts.then(|| Self {
            hash: request.hash,
            site: request.site.clone(),
            url: request.url.clone(),
            size: stored
                .as_ref()
                .and_then(|stored| stored.content.length())
                .unwrap_or(0),
            is_pushed: outcome.forward.is_none()
                && stored
                    .as_ref()
                    .is_some_and(|stored| stored.content.body.pool() == Pool::Pushed),
        })
    }

    fn note(&self, worker: &Worker, bytes: u64) {
        worker.note_request(self.hash, &self.site.name, &self.url, bytes, self.size);
        if self.is_pushed && bytes > 0 {
            self.site.counters.pushed_hit(worker.number, bytes);
        }
    }
}
