//! Changes by operators: pushes and the fleet file.

use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::Fleet;
use serde::Deserialize;

use crate::api::request::{
    self, ApiResult, App, BODY_BYTES_MAX, Body, QueryResult, json, with_token,
};
use crate::error::ApiError;
use crate::event::count;
use crate::push::order::{self, NoOrder};
use crate::views;

/// Push now.
#[utoipa::path(post, path = "/v1/pushes", tag = "change", request_body = views::PushRequest, security(("token" = [])),
    responses((status = 202, body = views::Pushed), (status = 401, body = views::ErrorBody), (status = 422, body = views::ErrorBody)))]
pub(super) async fn push(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<views::Pushed>), ApiError> {
    with_token(&state, &headers)?;
    let request: views::PushRequest = json(&headers, body, BODY_BYTES_MAX)?;
    let fleet = state.fleet();
    for name in request.clusters.iter().flatten() {
        known_cluster(&fleet, name).map_err(ApiError::invalid)?;
    }
    let (mut orders, mut skipped) = (Vec::new(), Vec::new());
    for cluster in &fleet.clusters {
        if request
            .clusters
            .as_ref()
            .is_some_and(|names| !names.contains(&cluster.name))
        {
            continue;
        }
        match order::order(&state, &fleet, cluster, None, now_unix_ms()).await {
            Ok(order) => orders.push(order),
            Err(NoOrder::Failed(error)) => return Err(error),
            Err(why) => skipped.push(views::PushSkipped {
                cluster: cluster.name.clone(),
                reason: why.to_string(),
            }),
        }
    }
    Ok((
        StatusCode::ACCEPTED,
        Json(views::Pushed { orders, skipped }),
    ))
}

/// The fleet file's text.
#[utoipa::path(get, path = "/v1/fleet-file", tag = "change", security(("token" = [])),
    responses((status = 200, content_type = "text/plain", body = String), (status = 401, body = views::ErrorBody)))]
pub(super) async fn fleet_file(
    Shared(state): Shared<App>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    with_token(&state, &headers)?;
    let file = state.fleet_file();
    Ok((
        [("nearcast-revision", file.revision.to_string())],
        file.text,
    )
        .into_response())
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct FleetFileQuery {
    /// Only check whether it would be accepted.
    #[serde(default)]
    check: bool,
    /// Also accept changed listeners, which nodes open when they are restarted.
    #[serde(default)]
    restart_needed: bool,
}

/// A new fleet file.
#[utoipa::path(put, path = "/v1/fleet-file", tag = "change", params(FleetFileQuery), security(("token" = [])),
    request_body(content = String, content_type = "text/plain"),
    responses((status = 200, body = views::FleetFileAccepted), (status = 401, body = views::ErrorBody), (status = 409, body = views::ErrorBody),
        (status = 422, body = views::ErrorBody), (status = 507, body = views::ErrorBody)))]
pub(super) async fn put_fleet_file(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    query: QueryResult<FleetFileQuery>,
    body: Body,
) -> ApiResult<views::FleetFileAccepted> {
    with_token(&state, &headers)?;
    let FleetFileQuery {
        check,
        restart_needed,
    } = request::query(query)?;
    let body = request::bytes(body, BODY_BYTES_MAX)?;
    let text = std::str::from_utf8(&body)
        .map_err(|e| ApiError::BadRequest(format!("the fleet file is not UTF-8: {e}")))?
        .to_owned();
    let _turn = state.fleet_files.lock().await;
    let parsed = state
        .parse(text.clone())
        .await
        .map_err(|_| ApiError::Internal("the checker ended".to_owned()))?;
    let fleet = parsed.map_err(|mistakes| ApiError::Invalid {
        message: format!(
            "the fleet file has {}",
            count(mistakes.len() as u64, "mistake")
        ),
        mistakes,
    })?;
    let obstacles = crate::fleet_file::obstacles(&state.fleet(), &fleet);
    if let Some(refusal) = obstacles.refusal(restart_needed) {
        return Err(ApiError::Conflict(refusal));
    }
    let restart = obstacles.restarts;
    let current = state.fleet_file();
    if check || current.text == text {
        return Ok(Json(views::FleetFileAccepted {
            revision: current.revision,
            changed: false,
            restart,
        }));
    }
    let entry = crate::fleet_file::accept(&state, fleet, text).await?;
    Ok(Json(views::FleetFileAccepted {
        revision: entry.revision,
        changed: true,
        restart,
    }))
}

/// Requires that the fleet has a cluster of that name; the error lists its clusters.
pub(super) fn known_cluster(fleet: &Fleet, name: &str) -> Result<(), String> {
    if fleet.clusters.iter().any(|c| c.name == name) {
        return Ok(());
    }
    let known: Vec<&str> = fleet.clusters.iter().map(|c| c.name.as_str()).collect();
    Err(format!(
        "the fleet has no cluster {name:?}; it has {}",
        known.join(", ")
    ))
}
