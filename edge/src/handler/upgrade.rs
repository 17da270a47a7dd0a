//! A request for a WebSocket: checked as every request is, and sent to the origin on a connection
//! of its own.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::{
    Answered, Checked, HEALTH_PATH, LastHost, account, check, conclude, failed, forward_fields,
    pass_on, serve, with_status,
};
use crate::body::ClientBody;
use crate::connection::Phase;
use crate::edge::Worker;
use crate::metrics::{Answer, UpgradePlace};
use crate::origin::{OriginError, OriginRequestBody, UpgradeAnswer};
use crate::upgrade::{self, Passed};
use nearcast_http_rules::forward::{self, ClientFields};
use nearcast_http_rules::freshness::NotStored;
use nearcast_http_rules::status::{ForwardReason, Outcome};

/// What a request for a WebSocket led to.
pub(crate) enum Served {
    /// An ordinary response: the origin, or this node, did not agree.
    Response(Response<ClientBody>),
    /// A 101, behind which the tunnel begins.
    Tunnel(Response<()>, Box<Tunnel>),
}

/// The origin's side of a WebSocket.
pub(crate) struct Tunnel {
    pub(crate) origin: TokioIo<Upgraded>,
    pub(crate) idle_max: Duration,
    checked: Checked,
    /// Counts the tunnel for as long as it is there.
    _place: UpgradePlace,
}

impl Tunnel {
    /// Counts bytes as they pass.
    pub(crate) fn count(&self) -> impl FnMut(Passed) + use<> {
        let (counters, number) = (
            self.checked.site.counters.clone(),
            self.checked.worker.number,
        );
        move |passed| {
            // What comes from the origin goes to the client as it is.
            if let Passed::ToClient(bytes) = passed {
                counters.received(number, bytes);
                counters.sent(number, Answer::Bypass, bytes);
            }
        }
    }
}

/// Answers a request that asks for a WebSocket. Where the site allows none it is answered as if it
/// had not.
pub(crate) async fn serve_upgrade(
    worker: Arc<Worker>,
    phase: Arc<Phase>,
    client: IpAddr,
    last: Arc<Mutex<LastHost>>,
    request: Request<Option<Incoming>>,
) -> Served {
    let began = Instant::now();
    let (head, _) = request.into_parts();
    let again = Request::from_parts(head.clone(), None);
    if head.uri.path() == HEALTH_PATH {
        return Served::Response(serve(worker, phase, client, last, None, again).await);
    }
    let checked = check(
        &worker,
        client,
        &mut last.lock().expect("one request at a time"),
        Request::from_parts(head, None),
    );
    let checked = match checked {
        Ok((checked, _)) => checked,
        Err(refused) => return Served::Response(conclude(&worker, phase, began, *refused)),
    };
    if checked.site.origins.limits().upgrades_max == 0 {
        return Served::Response(serve(worker, phase, client, last, None, again).await);
    }
    match ask(&checked).await {
        Ok((head, outcome, Ok(tunnel))) => {
            account(
                &worker,
                &checked.site.counters,
                &outcome,
                head.status(),
                began,
            );
            Served::Tunnel(head, tunnel)
        }
        Ok((head, outcome, Err(body))) => {
            let answered: Answered = (head.map(|()| body), outcome, Some(checked.site), None);
            Served::Response(conclude(&worker, phase, began, answered))
        }
        Err(error) => {
            if !error.is_of_client() && error != OriginError::ConnectionLimit {
                checked.site.counters.origin_failed(error.reason());
            }
            let (response, outcome, _) = failed(&checked, error, ForwardReason::Bypass);
            Served::Response(conclude(
                &worker,
                phase,
                began,
                (response, outcome, Some(checked.site), None),
            ))
        }
    }
}

type Asked = (Response<()>, Outcome, Result<Box<Tunnel>, ClientBody>);

/// Asks the origin; gives the response's head with the tunnel behind it, or with its body where the
/// origin did not agree.
async fn ask(checked: &Checked) -> Result<Asked, OriginError> {
    let (site, worker) = (&checked.site, &checked.worker);
    let limits = site.origins.limits();
    if worker.edge.metrics.upgrades_open() >= worker.edge.upgrades_max {
        site.counters.enter_upgrade(0);
        return Err(OriginError::ConnectionLimit);
    }
    let place = site
        .counters
        .enter_upgrade(limits.upgrades_max)
        .ok_or(OriginError::ConnectionLimit)?;
    let mut request = Request::new(OriginRequestBody::Empty);
    *request.uri_mut() = checked.path.clone().into();
    *request.headers_mut() = forward_fields(checked, ClientFields::Passed);
    upgrade::insert_fields(request.headers_mut());
    site.counters.asked_origin(worker.number);
    let outcome = |status| Outcome {
        forward_status: Some(status),
        ..Outcome::forwarded(Answer::Bypass, ForwardReason::Bypass)
    };
    match worker.origins.upgrade(checked.target(), request).await? {
        UpgradeAnswer::Switched(head, origin) => {
            if !upgrade::names_websocket(&head.headers) {
                return Err(OriginError::Protocol);
            }
            let outcome = outcome(head.status);
            let mut response = Response::new(ClientBody::empty());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.headers_mut() = forward::passed(&head.headers, &worker.edge.via);
            let mut response = with_status(checked, response, &outcome).map(|_| ());
            upgrade::insert_fields(response.headers_mut());
            let origin = TokioIo::new(origin);
            let tunnel = Tunnel {
                origin,
                idle_max: limits.upgrade_idle,
                checked: checked.clone(),
                _place: place,
            };
            Ok((response, outcome, Ok(Box::new(tunnel))))
        }
        UpgradeAnswer::Refused(head, body) => {
            site.note_not_stored(worker.number, &checked.url, NotStored::Upgrade);
            let outcome = Outcome {
                not_stored: Some(NotStored::Upgrade),
                ..outcome(head.status)
            };
            // A 426 has to name the protocol (RFC 9110 section 15.5.22), which is one for each hop.
            let names_protocol = head.status == StatusCode::UPGRADE_REQUIRED
                && upgrade::names_websocket(&head.headers);
            let (mut head, body) = pass_on(checked, head, *body, &outcome).into_parts();
            if names_protocol {
                upgrade::insert_fields(&mut head.headers);
            }
            Ok((Response::from_parts(head, ()), outcome, Err(body)))
        }
    }
}
