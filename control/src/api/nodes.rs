//! Requests of nodes: following the journal, and reports.

use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use nearcast_fleet::change::Entry;
use nearcast_fleet::clock::{now_unix_ms, now_unix_s};
use nearcast_fleet::config::Fleet;
use nearcast_fleet::follow::JournalAnswer;
use nearcast_fleet::node_key::Caller;
use nearcast_fleet::report::{DnsReport, EdgeReport, OriginReport};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::api::report_bounds;
use crate::api::request::{
    self, ApiResult, App, Body, QueryResult, REPORT_BYTES_MAX, json, speaks_for, with_node_key,
};
use crate::error::ApiError;
use crate::event::{Level, NewEvent};
use crate::fleet_state::nodes::{Role, is_node, roster};
use crate::journal::Reconciled;
use crate::state::State;
use crate::views;

/// Longest wait of a long poll.
const POLL_WAIT_MS_MAX: u64 = 30_000;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct JournalQuery {
    /// Newest revision that the node has.
    after: u64,
    /// Time to wait for a newer entry, up to 30,000.
    #[serde(default)]
    wait_ms: u64,
    /// The node that sends the request.
    node: Option<String>,
    /// Identity of the journal that the node follows. A cursor in another journal acknowledges
    /// nothing here.
    journal: Option<String>,
}

/// Journal entries after a cursor, for nodes.
#[utoipa::path(get, path = "/v1/journal", tag = "nodes", params(JournalQuery), security(("node_key" = [])),
    responses((status = 200, body = views::JournalPage), (status = 400, body = views::ErrorBody), (status = 401, body = views::ErrorBody), (status = 403, body = views::ErrorBody), (status = 507, body = views::ErrorBody),
        (status = 503, body = views::ErrorBody)))]
pub(super) async fn journal(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    query: QueryResult<JournalQuery>,
) -> Result<Response, ApiError> {
    let fleet = state.fleet();
    let query = request::query(query);
    let named = query
        .as_ref()
        .ok()
        .and_then(|q: &JournalQuery| q.node.clone());
    let caller = with_node_key(&state, &fleet, &headers, named.as_deref())?;
    let JournalQuery {
        after,
        wait_ms,
        node,
        journal,
    } = query?;
    let node = match (node, &caller) {
        (None, Caller::Node(own)) => Some(own.clone()),
        (node, _) => node.filter(|name| is_node(&fleet, name)),
    };
    if let Some(node) = &node {
        speaks_for(&state, &caller, node)?;
    }
    let is_same_journal = journal.as_ref().is_none_or(|id| id == state.journal.id());
    let newest = state.journal.revision();
    if let Some(revision) = reconcile(&state, node.as_deref(), journal, after).await? {
        let answer = JournalAnswer {
            journal: state.journal.id().to_owned(),
            revision,
            entries: Vec::new(),
        };
        return Ok(Json(answer).into_response());
    }
    // A cursor beyond the newest revision refers to revisions that will mean other changes here.
    if let Some(node) =
        node.filter(|name| is_same_journal && after <= newest && fleet.edge(name).is_some())
    {
        state
            .fleet_state()
            .purges
            .cursor(&node, after.min(state.journal.revision()));
    }
    let mut revisions = state.journal.watch();
    if *revisions.borrow_and_update() <= after && wait_ms > 0 {
        let deadline = Instant::now() + Duration::from_millis(wait_ms.min(POLL_WAIT_MS_MAX));
        let mut shutdown = state.shutdown.clone();
        tokio::select! {
            _ = timeout_at(deadline, revisions.changed()) => {}
            () = shutdown.requested() => {}
        }
    }
    let page = state.journal.page(after, now_unix_ms()).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], page).into_response())
}

/// The keys of TLS session tickets of an edge's cluster, for the edge by its own key alone. The
/// fleet's key and the operators' token do not open them.
#[utoipa::path(get, path = "/v1/ticket-keys", tag = "nodes", security(("node_key" = [])),
    responses((status = 200, body = Object), (status = 304), (status = 401, body = views::ErrorBody), (status = 404, body = views::ErrorBody), (status = 503, body = views::ErrorBody)))]
pub(super) async fn ticket_keys(
    Shared(state): Shared<App>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let fleet = state.fleet();
    let Caller::Node(node) = with_node_key(&state, &fleet, &headers, None)? else {
        return Err(ApiError::Unauthorized(
            "an edge gets these by its own key alone, which `nearcast key NODE` prints; this is the fleet's key",
        ));
    };
    let Some((cluster, _)) = fleet.edge(&node) else {
        return Err(ApiError::NotFound(format!(
            "{node} is no edge: only edges encrypt session tickets"
        )));
    };
    let (keys, tag) = state
        .ticket_rings
        .of(&fleet, cluster, now_unix_s())
        .map_err(|_| ApiError::Unavailable("the system has no random bytes".to_owned()))?;
    let is_known = headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|known| known.as_bytes() == tag.as_bytes());
    if is_known {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    Ok(([(header::ETAG, tag)], Json(keys)).into_response())
}

/// Compares a node's cursor with this journal. A cursor in another journal, or beyond the newest
/// revision, shows that this journal was lost or set back, and everything is purged. Only a plausible
/// cursor of a node of the fleet is accepted, and the event names the node. Returns the revision to
/// answer with when the journal was set back.
async fn reconcile(
    state: &App,
    node: Option<&str>,
    journal: Option<String>,
    after: u64,
) -> Result<Option<u64>, ApiError> {
    let is_other = after > 0
        && journal
            .as_deref()
            .is_some_and(|id| id != state.journal.id());
    if after <= state.journal.revision() && !is_other {
        return Ok(None);
    }
    let Some(node) = node else {
        return Err(ApiError::BadRequest(format!(
            "revision {after} is not in this journal, and the request names no node of the fleet"
        )));
    };
    let (accepting, name) = (state.clone(), node.to_owned());
    let accept = move |entry: &Entry| {
        accepting.purge_accepted(entry, None, None);
        let which = if is_other {
            "another journal"
        } else {
            "this journal"
        };
        let message = format!(
            "{name} has seen revision {after} of {which} that is missing here: everything is purged once"
        );
        let new_event = NewEvent::new("journal_reconciled", Level::Warn, message)
            .node(&name)
            .revision(entry.revision);
        accepting.events.add(entry.accepted_unix_ms, [new_event]);
    };
    match state
        .journal
        .reconcile(journal, after, now_unix_ms(), accept)
        .await?
    {
        Reconciled::Follows => return Ok(None),
        Reconciled::SetBack(revision) => return Ok(Some(revision)),
        Reconciled::Implausible => {}
    }
    tracing::warn!(
        node,
        after,
        "the cursor of a node is impossible; it is rejected"
    );
    Err(ApiError::BadRequest(format!(
        "no journal can have reached revision {after}: remove the copy of {node}, journal.copy in its state directory, and start it again"
    )))
}

/// Requires that the fleet has a node of that name and role.
pub(super) fn known_node(fleet: &Fleet, name: &str, role: Role) -> Result<(), ApiError> {
    if roster(fleet)
        .iter()
        .any(|(n, r, _)| n == name && *r == role)
    {
        return Ok(());
    }
    Err(ApiError::NotFound(format!(
        "the fleet file has no {} node {name:?}",
        role.name()
    )))
}

/// Answers an applied report. Its events are added, and requests that wait for purges are woken, when
/// the records up to number `written` are on disk; at once when there are none.
fn reported(
    state: &App,
    role: Role,
    new_events: Vec<NewEvent>,
    written: Option<u64>,
    now_unix_ms: u64,
) -> Json<views::ReportAccepted> {
    state
        .metrics
        .reports
        .with_label_values(&[role.name()])
        .inc();
    match written {
        None => state.events.add(now_unix_ms, new_events),
        // In its own task, because the node may disconnect meanwhile.
        Some(number) => {
            let state = state.clone();
            tokio::spawn(async move {
                state.log.wait_written(number).await;
                state.events.add(now_unix_ms, new_events);
                state.confirmed.send_replace(());
            });
        }
    }
    Json(views::ReportAccepted {
        revision: state.journal.revision(),
    })
}

/// Counts a report with values out of bounds.
fn note_bounded(state: &State, role: Role, node: &str, is_clamped: bool) {
    if is_clamped {
        state
            .metrics
            .reports_clamped
            .with_label_values(&[role.name()])
            .inc();
        tracing::debug!(node, "a report has values out of bounds; they are clamped");
    }
}

/// An edge's report.
#[utoipa::path(post, path = "/v1/reports/edge", tag = "nodes", request_body = Object, security(("node_key" = [])),
    responses((status = 200, body = views::ReportAccepted), (status = 401, body = views::ErrorBody), (status = 403, body = views::ErrorBody), (status = 404, body = views::ErrorBody)))]
pub(super) async fn edge_report(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<views::ReportAccepted> {
    let fleet = state.fleet();
    let caller = with_node_key(&state, &fleet, &headers, None)?;
    let mut report: EdgeReport = json(&headers, body, REPORT_BYTES_MAX)?;
    known_node(&fleet, &report.node, Role::Edge)?;
    speaks_for(&state, &caller, &report.node)?;
    let Some((cluster, _)) = fleet.edge(&report.node) else {
        return Err(ApiError::NotFound(format!(
            "the fleet file has no edge {:?}",
            report.node
        )));
    };
    let now = now_unix_ms();
    let newest = state.journal.revision();
    note_bounded(
        &state,
        Role::Edge,
        &report.node.clone(),
        report_bounds::edge(&mut report, &fleet, newest, now),
    );
    // Popularity is learned, not kept with the report.
    let popularity = std::mem::take(&mut report.popularity);
    state.popularity.fold(&fleet, cluster, &popularity, now);
    let (new_events, written) = {
        let mut fleet_state = state.fleet_state();
        let new_events = fleet_state.apply_edge_report(&fleet, cluster, report, now);
        (new_events, state.save(&mut fleet_state, false))
    };
    Ok(reported(&state, Role::Edge, new_events, written, now))
}

/// A name server's report.
#[utoipa::path(post, path = "/v1/reports/dns", tag = "nodes", request_body = Object, security(("node_key" = [])),
    responses((status = 200, body = views::ReportAccepted), (status = 401, body = views::ErrorBody), (status = 403, body = views::ErrorBody), (status = 404, body = views::ErrorBody)))]
pub(super) async fn dns_report(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<views::ReportAccepted> {
    let fleet = state.fleet();
    let caller = with_node_key(&state, &fleet, &headers, None)?;
    let mut report: DnsReport = json(&headers, body, REPORT_BYTES_MAX)?;
    known_node(&fleet, &report.node, Role::Dns)?;
    speaks_for(&state, &caller, &report.node)?;
    let now = now_unix_ms();
    let newest = state.journal.revision();
    note_bounded(
        &state,
        Role::Dns,
        &report.node.clone(),
        report_bounds::dns(&mut report, &fleet, newest, now),
    );
    let new_events = state.fleet_state().apply_dns_report(&fleet, report, now);
    Ok(reported(&state, Role::Dns, new_events, None, now))
}

/// An origin's report.
#[utoipa::path(post, path = "/v1/reports/origin", tag = "nodes", request_body = Object, security(("node_key" = [])),
    responses((status = 200, body = views::ReportAccepted), (status = 401, body = views::ErrorBody), (status = 403, body = views::ErrorBody), (status = 404, body = views::ErrorBody)))]
pub(super) async fn origin_report(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<views::ReportAccepted> {
    let fleet = state.fleet();
    let caller = with_node_key(&state, &fleet, &headers, None)?;
    let mut report: OriginReport = json(&headers, body, REPORT_BYTES_MAX)?;
    known_node(&fleet, &report.node, Role::Origin)?;
    speaks_for(&state, &caller, &report.node)?;
    let now = now_unix_ms();
    note_bounded(
        &state,
        Role::Origin,
        &report.node.clone(),
        report_bounds::origin(&mut report, now),
    );
    state.fleet_state().apply_origin_report(report, now);
    Ok(reported(&state, Role::Origin, Vec::new(), None, now))
}
