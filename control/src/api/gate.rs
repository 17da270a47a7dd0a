//! The checks that every request passes before its handler, in this order: the host name, the class of
//! the caller, the body.
//!
//! The body of a request without a valid token or node key is not read. Its handler finds no body, and
//! refuses the request for the missing credential first. Whose key it is, and whether it permits the
//! request, is checked by the handler.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, Method, header};
use nearcast_fleet::config::Fleet;
use nearcast_fleet::node_key;
use nearcast_fleet::own_names::{self, NameError};

use crate::admission::{Class, Slot};
use crate::api::request::{BODY_BYTES_MAX, REPORT_BYTES_MAX, with_token};
use crate::error::ApiError;
use crate::state::State;

/// Time for a body, from the end of the head.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);

/// Runs the checks and then the handler.
pub(super) async fn pass(
    Shared(state): Shared<Arc<State>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let fleet = state.fleet();
    own_names::check(&request, |name| is_own_name(&fleet, name)).map_err(|error| match error {
        NameError::Malformed => ApiError::BadRequest(error.to_string()),
        NameError::Foreign(name) => ApiError::Misdirected(name),
    })?;

    let class = class(&state, &fleet, request.headers());
    if let Some(slot) = request.extensions().get::<Arc<Slot>>()
        && !slot.admit(class)
    {
        return Err(ApiError::TooBusy(
            "too many connections of this kind are open",
        ));
    }

    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(next.run(request).await);
    }
    let (head, body) = request.into_parts();
    let body = match class {
        Class::Anonymous => Body::empty(),
        Class::Node | Class::Operator => {
            let limit = if head.uri.path().starts_with("/v1/reports/") {
                REPORT_BYTES_MAX
            } else {
                BODY_BYTES_MAX
            };
            read(&head.headers, body, limit).await?
        }
    };
    Ok(next.run(Request::from_parts(head, body)).await)
}

/// The class of the caller by its credential.
fn class(state: &State, fleet: &Fleet, headers: &HeaderMap) -> Class {
    if with_token(state, headers).is_ok() {
        Class::Operator
    } else if node_key::caller(fleet, headers).is_ok() {
        Class::Node
    } else {
        Class::Anonymous
    }
}

/// Whether a host name belongs to control.
fn is_own_name(fleet: &Fleet, name: &str) -> bool {
    let Some(control) = &fleet.control else {
        return false;
    };
    own_names::host_of_url(&control.url) == name || own_names::is_listed(name, &control.hosts)
}

/// Reads a body within the limits of size and time.
async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Body, ApiError> {
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<u64>().ok());
    if declared.is_some_and(|bytes| bytes > limit as u64) {
        return Err(ApiError::TooLarge(limit));
    }
    match tokio::time::timeout(BODY_TIME_MAX, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(Body::from(bytes)),
        Ok(Err(error)) if is_too_large(&error) => Err(ApiError::TooLarge(limit)),
        Ok(Err(error)) => Err(ApiError::BadRequest(format!(
            "the body is incomplete: {error}"
        ))),
        Err(_) => Err(ApiError::TooSlow(BODY_TIME_MAX)),
    }
}

fn is_too_large(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<http_body_util::LengthLimitError>() || error.source().is_some_and(is_too_large)
}
