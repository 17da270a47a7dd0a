//! Traces: what the edges have kept of one request. A trace has addresses of clients, so it needs
//! the operators' token.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State as Shared};
use http::HeaderMap;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::trace::{TraceAnswer, TraceQuestions, TraceRecord, is_id};
use serde::Deserialize;

use crate::api::nodes::known_node;
use crate::api::request::{
    self, ApiResult, App, BODY_BYTES_MAX, Body, QueryResult, json, speaks_for, with_node_key,
    with_token,
};
use crate::error::ApiError;
use crate::fleet_state::nodes::Role;
use crate::views;

/// Requests of which each edge keeps a record at least.
const KEPT: &str = "each edge keeps its last 10,000 requests";

/// What every edge has kept of a request.
#[utoipa::path(get, path = "/v1/traces/{id}", tag = "read", security(("token" = [])),
    params(("id" = String, Path, description = "The id of the request: 1 to 64 characters of a token.")),
    responses((status = 200, body = views::TraceView), (status = 400, body = views::ErrorBody), (status = 401, body = views::ErrorBody),
        (status = 404, body = views::ErrorBody), (status = 503, body = views::ErrorBody)))]
pub(super) async fn trace(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> ApiResult<views::TraceView> {
    with_token(&state, &headers)?;
    if !is_id(id.as_bytes()) {
        return Err(ApiError::BadRequest(
            "this is not the id of a request; ids are 1 to 64 characters such as 0123456789abcdef01234567, as in X-Request-Id at the origin, \
             request_id in the access log, and the text of errors"
                .to_owned(),
        ));
    }
    let fleet = state.fleet();
    let edges = fleet
        .clusters
        .iter()
        .flat_map(|cluster| cluster.nodes.iter().map(|node| node.name.clone()))
        .collect();
    let trace = state
        .traces
        .ask(&id, &edges)
        .await
        .map_err(|_| ApiError::TooBusy("too many traces are asked for"))?;
    if trace.records.is_empty() {
        return Err(ApiError::NotFound(match trace.silent.is_empty() {
            true => format!("no edge knows the request {id}; {KEPT}"),
            false => format!(
                "no edge that answers knows the request {id}; {KEPT}; no answer came from {}",
                trace.silent.join(", ")
            ),
        }));
    }
    Ok(Json(views::TraceView {
        id,
        records: trace.records.into_iter().map(Into::into).collect(),
        answered: trace.answered,
        silent: trace.silent,
    }))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct QuestionsQuery {
    /// The edge that sends the request.
    node: String,
    /// Number of the newest question that it has seen.
    #[serde(default)]
    after: u64,
    /// Time to wait for a newer question, up to 20,000.
    #[serde(default)]
    wait_ms: u64,
}

/// Questions about requests, for edges.
#[utoipa::path(get, path = "/v1/trace-questions", tag = "nodes", params(QuestionsQuery), security(("node_key" = [])),
    responses((status = 200, body = Object), (status = 400, body = views::ErrorBody), (status = 401, body = views::ErrorBody),
        (status = 403, body = views::ErrorBody), (status = 404, body = views::ErrorBody)))]
pub(super) async fn questions(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    query: QueryResult<QuestionsQuery>,
) -> ApiResult<TraceQuestions> {
    let fleet = state.fleet();
    let query = request::query(query);
    let named = query.as_ref().ok().map(|q: &QuestionsQuery| q.node.clone());
    let caller = with_node_key(&state, &fleet, &headers, named.as_deref())?;
    let QuestionsQuery {
        node,
        after,
        wait_ms,
    } = query?;
    known_node(&fleet, &node, Role::Edge)?;
    speaks_for(&state, &caller, &node)?;
    let mut shutdown = state.shutdown.clone();
    tokio::select! {
        questions = state.traces.poll(&node, after, Duration::from_millis(wait_ms)) => Ok(Json(questions)),
        () = shutdown.requested() => Err(ApiError::Unavailable("control ends".to_owned())),
    }
}

/// An edge's answer to a question.
#[utoipa::path(post, path = "/v1/trace-answers", tag = "nodes", request_body = Object, security(("node_key" = [])),
    responses((status = 200, body = views::TraceAccepted), (status = 401, body = views::ErrorBody), (status = 403, body = views::ErrorBody),
        (status = 404, body = views::ErrorBody), (status = 422, body = views::ErrorBody)))]
pub(super) async fn answers(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<views::TraceAccepted> {
    let fleet = state.fleet();
    let caller = with_node_key(&state, &fleet, &headers, None)?;
    let answer: TraceAnswer = json(&headers, body, BODY_BYTES_MAX)?;
    known_node(&fleet, &answer.node, Role::Edge)?;
    speaks_for(&state, &caller, &answer.node)?;
    let records = answer
        .records
        .into_iter()
        .map(|record| of_node(record, &fleet, &answer.node))
        .collect();
    Ok(Json(views::TraceAccepted {
        is_awaited: state.traces.answer(&answer.node, answer.number, records),
    }))
}

/// A record as of the node that shows its key, whatever it says of itself.
fn of_node(record: TraceRecord, fleet: &Fleet, node: &str) -> TraceRecord {
    TraceRecord {
        node: node.to_owned(),
        cluster: fleet
            .edge(node)
            .map_or_else(String::new, |(cluster, _)| cluster.name.clone()),
        ..record
    }
}
