//! Reading: status, fleet, series, events, plans, pushes, purges, explanations. None of it needs a
//! credential.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State as Shared};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::{Extension, Json};
use futures_util::stream::{self, Stream};
use http::{HeaderMap, StatusCode, Uri};
use nearcast_fleet::clock::now_unix_ms;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;

use crate::admission::Slot;
use crate::api::change::known_cluster;
use crate::api::request::{self, ApiResult, App, QueryResult};
use crate::error::ApiError;
use crate::event_log::EVENTS_MAX;
use crate::fleet_state::nodes::settled_second;
use crate::fleet_state::series::{Key, SECONDS_KEPT, Span, TIME_KEPT};
use crate::fleet_state::status::StatusContext;
use crate::push::plan_view;
use crate::push::planner::ITEMS_MAX;
use crate::state::State;
use crate::views;

/// Events at the start of a new stream, and in a status.
const BACKLOG: usize = 64;
const STATUS_EVENTS: usize = 20;
/// Bytes of a query that is forwarded to a name server.
const EXPLAIN_QUERY_MAX: usize = 1024;
/// Time for a name server to explain.
const EXPLAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// Time between two comments on a quiet event stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StatusQuery {
    /// Seconds over which rates are means, 1..=3600; 30 by default; fewer while control has run for
    /// less time.
    window: Option<u64>,
}

/// The fleet now.
#[utoipa::path(get, path = "/v1/status", tag = "read", params(StatusQuery), responses((status = 200, body = views::Status)))]
pub(super) async fn status(
    Shared(state): Shared<App>,
    query: QueryResult<StatusQuery>,
) -> ApiResult<views::Status> {
    let now_unix_ms = now_unix_ms();
    let requested_seconds = request::query(query)?.window.unwrap_or(30);
    // No longer than control has counted: a mean that includes earlier time would be too low.
    let end_second = settled_second(&state.fleet(), now_unix_ms);
    let counted_seconds =
        end_second.saturating_sub(state.fleet_state().started_unix_ms().div_ceil(1000));
    let window_seconds = requested_seconds
        .min(counted_seconds)
        .clamp(1, SECONDS_KEPT);
    let context = StatusContext {
        now_unix_ms,
        journal: state.journal.id().to_owned(),
        revision: state.journal.revision(),
        fleet_revision: state.fleet_revision(),
        window_seconds,
        end_second,
    };
    let mut status = state.fleet_state().status(&state.fleet(), &context);
    for node in &mut status.nodes {
        node.key = state.node_keys.last_kind(&node.name).map(str::to_owned);
    }
    status.events = state.events.after(0, STATUS_EVENTS);
    status.events.reverse();
    Ok(Json(status))
}

/// The fleet file in force, without secrets.
#[utoipa::path(get, path = "/v1/fleet", tag = "read", responses((status = 200, body = views::FleetView)))]
pub(super) async fn fleet_in_force(Shared(state): Shared<App>) -> Json<views::FleetView> {
    Json(views::FleetView::new(
        &state.fleet(),
        state.fleet_revision(),
        now_unix_ms(),
    ))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SeriesQuery {
    /// Seconds to cover, 1..=2592000 (30 days); 300 by default.
    seconds: Option<u64>,
    /// Only steps that begin at this time or later, in Unix ms: what a reader that has the earlier ones
    /// lacks. `points` is 0 when there are none yet.
    since: Option<u64>,
}

/// Rates over time.
#[utoipa::path(get, path = "/v1/series", tag = "read", params(SeriesQuery), responses((status = 200, body = views::SeriesView)))]
pub(super) async fn series(
    Shared(state): Shared<App>,
    query: QueryResult<SeriesQuery>,
) -> ApiResult<views::SeriesView> {
    let SeriesQuery { seconds, since } = request::query(query)?;
    let seconds = seconds.unwrap_or(300).clamp(1, TIME_KEPT);
    let fleet = state.fleet();
    let span =
        Span::before(settled_second(&fleet, now_unix_ms()), seconds).since(since.unwrap_or(0));
    let start_unix_ms = span.first * span.step * 1000;
    // Lock the state for one line at a time, so that reports can be applied in between.
    let line = |key: Key| state.fleet_state().series.line(&key, span);
    let statuses = state.fleet_state().series.statuses(span);
    Ok(Json(views::SeriesView {
        step_ms: span.step * 1000,
        points: span.points as usize,
        start_unix_ms,
        fleet_start_unix_ms: views::clock(&fleet.clock, start_unix_ms).fleet_unix_ms,
        speed: fleet.clock.speed,
        total: line(Key::Total),
        statuses,
        clusters: fleet
            .clusters
            .iter()
            .map(|c| (c.name.clone(), line(Key::Cluster(c.name.clone()))))
            .collect(),
        sites: fleet
            .sites
            .iter()
            .map(|s| (s.name.clone(), line(Key::Site(s.name.clone()))))
            .collect(),
    }))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Only events with a larger id.
    after: Option<u64>,
}

/// Events as they happen, as server-sent events.
#[utoipa::path(get, path = "/v1/events", tag = "read", params(EventsQuery),
    responses((status = 200, content_type = "text/event-stream", body = views::Event), (status = 503, body = views::ErrorBody)))]
pub(super) async fn events(
    Shared(state): Shared<App>,
    Extension(slot): Extension<Arc<Slot>>,
    headers: HeaderMap,
    query: QueryResult<EventsQuery>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, axum::Error>>>, ApiError> {
    let after = request::query(query)?.after;
    let last = headers
        .get("last-event-id")
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.trim().parse().ok());
    let permit = slot
        .stream()
        .ok_or(ApiError::TooBusy("too many event streams are open"))?;
    let (begin, most) = match last.or(after) {
        Some(id) => (id, EVENTS_MAX),
        None => (0, BACKLOG),
    };
    let (old, feed) = state.events.follow(begin, most);
    let newest = old.last().map_or(begin, |e| e.id);
    let follow = (VecDeque::from(old), newest, feed, state, permit);
    let stream = stream::unfold(
        follow,
        |(mut old, mut newest, mut feed, state, permit)| async move {
            let mut shutdown = state.shutdown.clone();
            loop {
                if let Some(event) = old.pop_front() {
                    newest = newest.max(event.id);
                    let frame = sse::Event::default()
                        .id(event.id.to_string())
                        .json_data(&event);
                    return Some((frame, (old, newest, feed, state, permit)));
                }
                let received = tokio::select! {
                    received = feed.recv() => received,
                    () = shutdown.requested() => return None,
                };
                match received {
                    Ok(event) if event.id > newest => old.push_back(event),
                    Ok(_) => {}
                    // The reader was too slow. Continue from the ring.
                    Err(RecvError::Lagged(_)) => old.extend(state.events.after(newest, EVENTS_MAX)),
                    Err(RecvError::Closed) => return None,
                }
            }
        },
    );
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// The newest events.
#[utoipa::path(get, path = "/v1/events/log", tag = "read", params(EventsQuery), responses((status = 200, body = views::EventList)))]
pub(super) async fn event_log(
    Shared(state): Shared<App>,
    query: QueryResult<EventsQuery>,
) -> ApiResult<views::EventList> {
    let after = request::query(query)?.after.unwrap_or(0);
    Ok(Json(views::EventList {
        newest: state.events.newest(),
        events: state.events.after(after, EVENTS_MAX),
    }))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PlanQuery {
    /// Only this cluster.
    cluster: Option<String>,
    /// Items shown for each cluster, up to 4,096; 50 by default.
    items: Option<usize>,
}

/// Plans for the next window, made now.
#[utoipa::path(get, path = "/v1/plan", tag = "read", params(PlanQuery),
    responses((status = 200, body = views::PlanView), (status = 404, body = views::ErrorBody)))]
pub(super) async fn plan(
    Shared(state): Shared<App>,
    query: QueryResult<PlanQuery>,
) -> ApiResult<views::PlanView> {
    let PlanQuery { cluster, items } = request::query(query)?;
    let fleet = state.fleet();
    if let Some(name) = &cluster {
        known_cluster(&fleet, name).map_err(ApiError::NotFound)?;
    }
    let items = items.unwrap_or(50).min(ITEMS_MAX);
    // Needs no credential and keeps a core busy, so a semaphore limits it.
    let _turn = state
        .plans
        .acquire()
        .await
        .map_err(|_| ApiError::Internal("the planner ended".to_owned()))?;
    let planning = state.clone();
    let made = tokio::task::spawn_blocking(move || {
        plan_view::plans(
            &planning.popularity,
            &fleet,
            cluster.as_deref(),
            items,
            now_unix_ms(),
        )
    })
    .await;
    made.map(Json)
        .map_err(|_| ApiError::Internal("the planner ended".to_owned()))
}

/// Push orders with their progress and benefit.
#[utoipa::path(get, path = "/v1/pushes", tag = "read", responses((status = 200, body = views::Pushes)))]
pub(super) async fn pushes(Shared(state): Shared<App>) -> Json<views::Pushes> {
    Json(views::Pushes {
        now_unix_ms: now_unix_ms(),
        orders: state.fleet_state().orders.views(),
    })
}

/// Purges, newest first.
#[utoipa::path(get, path = "/v1/purges", tag = "read", responses((status = 200, body = views::Purges)))]
pub(super) async fn purges(Shared(state): Shared<App>) -> Json<views::Purges> {
    let fleet_state = state.fleet_state();
    let edges = fleet_state.edges(&state.fleet(), now_unix_ms());
    Json(views::Purges {
        purges: fleet_state.purges.views(&edges),
    })
}

/// One purge.
#[utoipa::path(get, path = "/v1/purges/{revision}", tag = "read", params(("revision" = u64, Path, description = "Its journal revision.")),
    responses((status = 200, body = views::PurgeView), (status = 404, body = views::ErrorBody)))]
pub(super) async fn one_purge(
    Shared(state): Shared<App>,
    Path(revision): Path<String>,
) -> ApiResult<views::PurgeView> {
    let fleet_state = state.fleet_state();
    let edges = fleet_state.edges(&state.fleet(), now_unix_ms());
    let found = revision
        .parse()
        .ok()
        .and_then(|r| fleet_state.purges.view(r, &edges));
    found.map(Json).ok_or_else(|| {
        ApiError::NotFound(format!(
            "no purge with revision {revision} is kept; /v1/purges lists those that are"
        ))
    })
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(
    dead_code,
    reason = "describes the query, which is forwarded unchanged"
)]
pub(super) struct ExplainQuery {
    /// Host name as clients use it.
    host: String,
    /// The client's address, optionally with a prefix length, as a resolver sends it in a client
    /// subnet.
    client: Option<String>,
    /// The resolver's address, which counts when no client is given.
    resolver: Option<String>,
    /// Record type; `A` by default.
    r#type: Option<String>,
}

/// Why a client is steered to its cluster, as the first name server that answers explains it.
#[utoipa::path(get, path = "/v1/explain", tag = "read", params(ExplainQuery),
    responses((status = 200, body = Object), (status = 400, body = views::ErrorBody), (status = 404, body = views::ErrorBody), (status = 503, body = views::ErrorBody)))]
pub(super) async fn explain(Shared(state): Shared<App>, uri: Uri) -> ApiResult<serde_json::Value> {
    let query = uri
        .query()
        .filter(|q| q.len() <= EXPLAIN_QUERY_MAX)
        .ok_or_else(|| {
            ApiError::BadRequest(
                "ask with ?host=NAME&client=ADDRESS or ?host=NAME&resolver=ADDRESS".to_owned(),
            )
        })?;
    ask_name_servers(&state, query).await.map(Json)
}

/// The explanation of the first name server that answers.
pub(super) async fn ask_name_servers(
    state: &State,
    query: &str,
) -> Result<serde_json::Value, ApiError> {
    let fleet = state.fleet();
    let mut silent = Vec::new();
    for server in fleet
        .zone_name_servers
        .iter()
        .filter_map(|i| fleet.name_servers.get(*i))
    {
        let asked = state
            .client
            .get(
                &format!("{}/explain?{query}", server.admin_url),
                EXPLAIN_TIME_MAX,
            )
            .await;
        let Ok(answer) = asked else {
            silent.push(server.name.as_str());
            continue;
        };
        let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        let reason = || {
            body["error"]["message"]
                .as_str()
                .or(body["error"].as_str())
                .unwrap_or("no reason given")
                .to_owned()
        };
        return match answer.status() {
            StatusCode::OK => Ok(body),
            StatusCode::NOT_FOUND => Err(ApiError::NotFound(reason())),
            _ => Err(ApiError::BadRequest(reason())),
        };
    }
    Err(ApiError::Unavailable(format!(
        "no name server answers: {}",
        silent.join(", ")
    )))
}
