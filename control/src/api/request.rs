//! What the handlers share: the body and query of a request, its credentials, and their limits.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::Query;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use http::{HeaderMap, StatusCode, header};
use nearcast_fleet::admin;
use nearcast_fleet::config::{Fleet, Secret};
use nearcast_fleet::node_key::{self, Caller, KeyRefused};
use serde::de::DeserializeOwned;

use crate::error::ApiError;
use crate::state::State;

/// Largest body of a change.
pub(super) const BODY_BYTES_MAX: usize = 1 << 20;
/// Largest body of a report.
pub(super) const REPORT_BYTES_MAX: usize = 4 << 20;

pub(super) type App = Arc<State>;
pub(super) type Body = Result<Bytes, BytesRejection>;
pub(super) type QueryResult<T> = Result<Query<T>, QueryRejection>;
pub(super) type ApiResult<T> = Result<Json<T>, ApiError>;

/// Requires the operators' token.
pub(super) fn with_token(state: &State, headers: &HeaderMap) -> Result<(), ApiError> {
    bearer(
        headers,
        &state.token,
        "this needs the operators' token (Authorization: Bearer); it is in the file `token` of control's directory",
    )
}

/// The caller by its node key. `named` is the node that the request names, if that is known yet.
pub(super) fn with_node_key(
    state: &State,
    fleet: &Fleet,
    headers: &HeaderMap,
    named: Option<&str>,
) -> Result<Caller, ApiError> {
    node_key::caller(fleet, headers).map_err(|refused| key_refused(state, refused, named))
}

/// Requires that the caller may act for a node.
pub(super) fn speaks_for(state: &State, caller: &Caller, node: &str) -> Result<(), ApiError> {
    caller
        .speaks_for(node)
        .map_err(|refused| key_refused(state, refused, None))?;
    state.node_keys.accepted(node, caller);
    Ok(())
}

/// Counts and announces a refused key.
fn key_refused(state: &State, refused: KeyRefused, named: Option<&str>) -> ApiError {
    state.key_refused(&refused, named);
    ApiError::Key(refused)
}

fn bearer(headers: &HeaderMap, secret: &Secret, hint: &'static str) -> Result<(), ApiError> {
    let mut request = http::Request::new(());
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        request
            .headers_mut()
            .insert(header::AUTHORIZATION, value.clone());
    }
    if admin::is_bearer(&request, &secret.0) {
        Ok(())
    } else {
        Err(ApiError::Unauthorized(hint))
    }
}

/// The query of a request.
pub(super) fn query<T>(query: QueryResult<T>) -> Result<T, ApiError> {
    query
        .map(|Query(q)| q)
        .map_err(|e| ApiError::BadRequest(e.body_text()))
}

/// The body of a request as bytes.
pub(super) fn bytes(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    body.map_err(|e| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge(limit),
        _ => ApiError::BadRequest(e.body_text()),
    })
}

/// The body of a request, read as JSON.
pub(super) fn json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<T, ApiError> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or("");
    let essence = content_type.split(';').next().unwrap_or("").trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::UnsupportedMediaType(
            "send the body as Content-Type: application/json".to_owned(),
        ));
    }
    let body = bytes(body, limit)?;
    serde_json::from_slice(&body).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => {
            ApiError::invalid(format!("the body does not fit: {e}"))
        }
        _ => ApiError::BadRequest(format!("the body is not JSON: {e}")),
    })
}
