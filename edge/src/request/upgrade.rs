//! Requests for a WebSocket: checked as all requests are, and sent to the origin on a connection of
//! their own.
//!
//! Nothing of a WebSocket is stored or shared. Follows RFC 9110 section 7.8 and RFC 6455 section 4.

use nearcast_fleet::report::CacheStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nearcast_http_rules::fields;
use nearcast_http_rules::forward::{self, ClientFields};
use nearcast_http_rules::not_stored::NotStored;
use nearcast_http_rules::status::{ForwardReason, Outcome};

use super::account::{self, Accounted};
use super::answer::{Answered, add_status_fields, failed};
use super::check::{ClientConnection, Request, check, is_health_path};
use super::handler::{redirect_to_https, reject, serve};
use super::pass::pass_response;
use super::to_origin::origin_fields;
use super::trail::{self, Trail};
use crate::access_log::Ending;
use crate::client_body::ClientBody;
use crate::edge::Worker;
use crate::metrics::UpgradePermit;
use crate::origin::{OriginError, OriginRequestBody, UpgradeAnswer};
use crate::request_body::RequestBody;

/// The only protocol that a connection is upgraded to, as `Upgrade` names it.
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Whether `Upgrade` names a WebSocket among other protocols.
pub(crate) fn names_websocket(fields: &HeaderMap) -> bool {
    fields::list(fields, UPGRADE).any(|member| member.eq_ignore_ascii_case(WEBSOCKET.as_bytes()))
}

/// Adds the fields that ask for a WebSocket, or agree to one, on one hop.
fn insert_upgrade(fields: &mut HeaderMap) {
    fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    fields.insert(UPGRADE, WEBSOCKET);
}

/// Bytes that a tunnel has relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relayed {
    ToClient(u64),
    ToOrigin(u64),
}

/// The answer to a request for a WebSocket.
pub(crate) enum Upgraded {
    /// An ordinary response: the origin, or this node, did not agree.
    Response(Response<ClientBody>),
    /// A 101, after which the tunnel begins.
    Tunnel(Response<()>, Box<Tunnel>),
}

/// The origin's side of a WebSocket.
pub(crate) struct Tunnel {
    pub(crate) origin: TokioIo<hyper::upgrade::Upgraded>,
    pub(crate) idle_max: Duration,
    request: Request,
    /// Bytes that were relayed to the client.
    sent: Arc<AtomicU64>,
    /// For the log, once the client gets its 101: what came of the request, and when.
    begun: Option<(Outcome, Duration)>,
    /// Counts the tunnel for as long as it exists.
    _place: UpgradePermit,
}

impl Tunnel {
    /// Counts bytes as they are relayed.
    pub(crate) fn count(&self) -> impl FnMut(Relayed) + use<> {
        let counters = self.request.site.counters.clone();
        let number = self.request.worker.number;
        let sent = self.sent.clone();
        move |relayed| {
            // The client gets the origin's bytes unchanged, so both are counted here.
            if let Relayed::ToClient(bytes) = relayed {
                counters.received(number, bytes);
                counters.sent(number, CacheStatus::Bypass, bytes);
                sent.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }
}

/// A WebSocket is logged at its end.
impl Drop for Tunnel {
    fn drop(&mut self) {
        if let Some((outcome, first_byte)) = &self.begun {
            self.request.trail.note(&trail::Result {
                site: &self.request.site.name,
                is_peer: self.request.is_peer,
                outcome,
                status: StatusCode::SWITCHING_PROTOCOLS.as_u16(),
                bytes: self.sent.load(Ordering::Relaxed),
                first_byte: Some(*first_byte),
                ending: Ending::Complete,
            });
        }
    }
}

/// Answers a request for a WebSocket. Where the site permits none, it is answered as an ordinary
/// request.
pub(crate) async fn serve_upgrade(
    worker: Arc<Worker>,
    client: ClientConnection,
    request: http::Request<Option<RequestBody>>,
    on_end: impl FnOnce() + Send + 'static,
) -> Upgraded {
    let (head, _) = request.into_parts();
    let ordinary = http::Request::from_parts(head.clone(), None);
    if is_health_path(&ordinary) {
        return Upgraded::Response(serve(worker, client, None, ordinary, on_end).await);
    }
    let mut upgrade = http::Request::from_parts(head, None);
    let trail = Trail::begin(&worker, &client, &mut upgrade);
    let request = match check(&worker, &client, &trail, None, upgrade) {
        Ok((request, _)) => request,
        Err(rejection) => {
            let answered = reject(&worker.edge.name, rejection);
            let accounted = Accounted::without_site(answered);
            return Upgraded::Response(accounted.conclude(&worker, trail, on_end));
        }
    };
    let is_ordinary =
        request.site.origins.limits().upgrades_max == 0 || redirect_to_https(&request).is_some();
    if is_ordinary {
        // The ordinary request is logged.
        trail.forget();
        return Upgraded::Response(serve(worker, client, None, ordinary, on_end).await);
    }

    let counters = &request.site.counters;
    let mut answered = match ask_origin(&request).await {
        Ok(Asked::Agreed(mut head, outcome, mut tunnel)) => {
            add_status_fields(&request, &outcome, head.headers_mut());
            let first_byte =
                account::count(&worker, counters, &outcome, head.status(), trail.began());
            tunnel.begun = Some((outcome, first_byte));
            return Upgraded::Tunnel(head, tunnel);
        }
        Ok(Asked::Declined(answered)) => answered,
        Err(error) => {
            if !error.is_of_client() && error != OriginError::ConnectionLimit {
                counters.origin_failed(error.reason());
            }
            failed(&request, error, ForwardReason::Bypass)
        }
    };
    add_status_fields(&request, &answered.outcome, answered.response.headers_mut());
    let accounted = Accounted::of_site(&request.site, answered);
    Upgraded::Response(accounted.conclude(&worker, trail, on_end))
}

/// The origin's answer to a request for a WebSocket.
enum Asked {
    Agreed(Response<()>, Outcome, Box<Tunnel>),
    Declined(Answered),
}

/// Asks the origin for a WebSocket, within the limits of the site and of this node.
async fn ask_origin(request: &Request) -> Result<Asked, OriginError> {
    let (site, worker) = (&request.site, &request.worker);
    let limits = site.origins.limits();
    if worker.edge.metrics.upgrades_open() >= worker.edge.upgrades_max {
        site.counters.enter_upgrade(0);
        return Err(OriginError::ConnectionLimit);
    }
    let place = site
        .counters
        .enter_upgrade(limits.upgrades_max)
        .ok_or(OriginError::ConnectionLimit)?;

    let mut forward = http::Request::new(OriginRequestBody::Empty);
    *forward.uri_mut() = request.path.clone().into();
    *forward.headers_mut() = origin_fields(request, &request.fields, ClientFields::Passed);
    insert_upgrade(forward.headers_mut());
    site.counters.asked_origin(worker.number);
    let outcome = |status| Outcome {
        forward_status: Some(status),
        ..Outcome::forwarded(CacheStatus::Bypass, ForwardReason::Bypass)
    };
    let upgrade = worker.origins.upgrade(request.target(), forward);
    match request.trail.waiting_for_origin(upgrade).await? {
        UpgradeAnswer::Switched(head, origin) => {
            if !names_websocket(&head.headers) {
                return Err(OriginError::Protocol);
            }
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let via = worker.edge.via.received(head.version);
            *response.headers_mut() = forward::passed(&head.headers, via);
            insert_upgrade(response.headers_mut());
            let tunnel = Tunnel {
                origin: TokioIo::new(origin),
                idle_max: limits.upgrade_idle,
                request: request.clone(),
                sent: Arc::default(),
                begun: None,
                _place: place,
            };
            Ok(Asked::Agreed(
                response,
                outcome(head.status),
                Box::new(tunnel),
            ))
        }
        UpgradeAnswer::Refused(head, body) => {
            site.note_not_stored(worker.number, &request.url, NotStored::Upgrade);
            let outcome = Outcome {
                not_stored: Some(NotStored::Upgrade),
                ..outcome(head.status)
            };
            // A 426 has to name the protocol (RFC 9110 section 15.5.22), which is one for each hop.
            let names_protocol =
                head.status == StatusCode::UPGRADE_REQUIRED && names_websocket(&head.headers);
            let mut response = pass_response(request, head, *body);
            if names_protocol {
                insert_upgrade(response.headers_mut());
            }
            Ok(Asked::Declined(Answered::new(response, outcome)))
        }
    }
}
