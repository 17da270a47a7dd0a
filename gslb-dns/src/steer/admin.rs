//! The admin paths of steering: `GET /explain` and `POST /rtt`.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use nearcast_fleet::admin::RolePaths;
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::node_key::{self, KeyRefused};
use nearcast_fleet::report::RttReport;

use super::steering::Steering;

impl Steering {
    /// The admin paths of steering: `GET /explain` and `POST /rtt` (with the node key); 404 for
    /// others.
    pub fn admin_extra(self: &Arc<Self>) -> RolePaths {
        let steering = self.clone();
        Arc::new(move |request| {
            let response = steering.admin(&request, now_unix_ms());
            Box::pin(async move { response })
        })
    }

    pub(super) fn admin(&self, request: &Request<Bytes>, now_ms: u64) -> Response<Bytes> {
        match (request.uri().path(), request.method()) {
            ("/explain", &Method::GET) => {
                match self.explain(request.uri().query().unwrap_or(""), now_ms) {
                    Ok(explanation) => json(StatusCode::OK, &explanation),
                    Err((status, message)) => error(status, &message),
                }
            }
            ("/rtt", &Method::POST) => self.admin_rtt(request, now_ms),
            ("/explain", _) => not_allowed("GET"),
            ("/rtt", _) => not_allowed("POST"),
            _ => error(
                StatusCode::NOT_FOUND,
                "no such path; there are /live, /ready, /metrics, /explain and /rtt",
            ),
        }
    }

    fn admin_rtt(&self, request: &Request<Bytes>, now_ms: u64) -> Response<Bytes> {
        let fleet = self.snapshot.load().fleet.clone();
        let caller = match node_key::caller(&fleet, request.headers()) {
            Ok(caller) => caller,
            Err(refused) => return self.refuse_key(&refused, now_ms),
        };
        let report: RttReport = match serde_json::from_slice(request.body()) {
            Ok(report) => report,
            Err(e) => {
                return error(
                    StatusCode::BAD_REQUEST,
                    &format!("not a round-trip report: {e}"),
                );
            }
        };
        if let Err(refused) = caller.speaks_for(&report.node) {
            return self.refuse_key(&refused, now_ms);
        }
        match self.take_report(&report, now_ms) {
            Ok(taken) => json(
                StatusCode::OK,
                &serde_json::json!({ "taken": taken, "of": report.samples.len() }),
            ),
            Err(message) => error(StatusCode::NOT_FOUND, &message),
        }
    }

    fn refuse_key(&self, refused: &KeyRefused, now_ms: u64) -> Response<Bytes> {
        self.state().keys.note(refused, now_ms);
        error(refused.status(), &refused.to_string())
    }
}

fn json<T: serde::Serialize>(status: StatusCode, body: &T) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(serde_json::to_vec(body).unwrap_or_default()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    response
}

fn error(status: StatusCode, message: &str) -> Response<Bytes> {
    let code = status
        .canonical_reason()
        .unwrap_or("error")
        .to_ascii_lowercase()
        .replace(' ', "_");
    json(
        status,
        &serde_json::json!({ "error": { "code": code, "message": message } }),
    )
}

fn not_allowed(allow: &'static str) -> Response<Bytes> {
    let mut response = error(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("this path takes {allow}"),
    );
    response
        .headers_mut()
        .insert(http::header::ALLOW, http::HeaderValue::from_static(allow));
    response
}
