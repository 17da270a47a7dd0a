//! The API: every path, in the order of `API.md`. Steps are: who asks, what they ask, the answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State as Shared};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use futures_util::stream::{self, Stream};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use nearcast_fleet::admin;
use nearcast_fleet::config::{Fleet, Secret};
use nearcast_fleet::follow::JournalAnswer;
use nearcast_fleet::journal::{Change, Purge, PurgeScope};
use nearcast_fleet::node_key::{self, Caller, KeyRefused};
use nearcast_fleet::report::{DnsReport, EdgeReport, OriginReport};
use nearcast_fleet::scope;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};
use utoipa::OpenApi;

use crate::admission::Seat;
use crate::book::{Role, Surroundings, roster, settled_second};
use crate::bounds;
use crate::console;
use crate::error::ApiError;
use crate::events::{Happening, KEPT_MAX, Level};
use crate::fleet_view;
use crate::ledger::Reconciled;
use crate::planner;
use crate::series::{Key, SECONDS_KEPT, Span, TIME_KEPT};
use crate::state::{PurgeWaiter, State, now_unix_ms};
use crate::view;

/// Largest body of a change.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;
/// Largest body of a report.
pub(crate) const REPORT_BYTES_MAX: usize = 4 << 20;
/// A long poll waits no longer.
const POLL_WAIT_MS_MAX: u64 = 30_000;
/// A purge waits no longer for its edges.
const PURGE_WAIT_MS_MAX: u64 = 60_000;
/// How long a purge waits unless it says.
const PURGE_WAIT_MS: u64 = 5_000;
/// Remarks on one purge.
const NOTES_MAX: usize = 8;
/// Events that a new stream begins with, and that a status shows.
const BACKLOG: usize = 64;
const STATUS_EVENTS: usize = 20;
/// Bytes of a query that is handed on to a name server.
const EXPLAIN_QUERY_MAX: usize = 1024;
/// How long a name server may take to explain.
const EXPLAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// A comment on a quiet event stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(crate) type App = Arc<State>;
pub(crate) type Body = Result<Bytes, BytesRejection>;
type Asked<T> = Result<Query<T>, QueryRejection>;
pub(crate) type Answer<T> = Result<Json<T>, ApiError>;

/// The OpenAPI document.
#[derive(OpenApi)]
#[openapi(
    info(title = "Nearcast control", description = "Status, plans, purges, pushes and the fleet file of a Nearcast fleet."),
    paths(
        status, fleet_in_force, series, events, event_log, explain, plan, pushes, push, purges, one_purge, purge, crate::drains::drains, crate::drains::drain, site_purge, fleet_file, put_fleet_file, journal,
        edge_report, dns_report, origin_report, openapi
    ),
    modifiers(&Bearers)
)]
struct Document;

/// The two bearer secrets.
struct Bearers;

impl utoipa::Modify for Bearers {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
        let components = document.components.get_or_insert_with(Default::default);
        components.add_security_scheme(
            "token",
            SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
        );
        components.add_security_scheme(
            "node_key",
            SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
        );
    }
}

/// Every path of the API with its methods; the console has the rest.
fn routes() -> Vec<(Method, &'static str, MethodRouter<App>)> {
    let reports = || DefaultBodyLimit::max(REPORT_BYTES_MAX);
    vec![
        (Method::GET, "/v1/status", get(status)),
        (Method::GET, "/v1/fleet", get(fleet_in_force)),
        (Method::GET, "/v1/series", get(series)),
        (Method::GET, "/v1/events", get(events)),
        (Method::GET, "/v1/events/log", get(event_log)),
        (Method::GET, "/v1/explain", get(explain)),
        (Method::GET, "/v1/plan", get(plan)),
        (Method::GET, "/v1/pushes", get(pushes)),
        (Method::POST, "/v1/pushes", post(push)),
        (Method::GET, "/v1/purges", get(purges)),
        (Method::POST, "/v1/purges", post(purge)),
        (Method::GET, "/v1/purges/{revision}", get(one_purge)),
        (Method::GET, "/v1/drains", get(crate::drains::drains)),
        (Method::POST, "/v1/drains", post(crate::drains::drain)),
        (Method::POST, "/v1/site-purges", post(site_purge)),
        (Method::GET, "/v1/fleet-file", get(fleet_file)),
        (Method::PUT, "/v1/fleet-file", put(put_fleet_file)),
        (Method::GET, "/v1/journal", get(journal)),
        (
            Method::POST,
            "/v1/reports/edge",
            post(edge_report).layer(reports()),
        ),
        (
            Method::POST,
            "/v1/reports/dns",
            post(dns_report).layer(reports()),
        ),
        (
            Method::POST,
            "/v1/reports/origin",
            post(origin_report).layer(reports()),
        ),
        (Method::GET, "/v1/openapi.json", get(openapi)),
    ]
}

/// API and console.
pub(crate) fn router(state: App) -> Router {
    let mut router = Router::new();
    for (_, path, methods) in routes() {
        router = router.route(path, methods);
    }
    router
        .fallback(other_path)
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(axum::middleware::from_fn_with_state(
            state.clone(),
            crate::gate::pass,
        ))
        .layer(axum::middleware::map_response(secure))
        .with_state(state)
}

async fn secure(mut response: Response) -> Response {
    let fields = response.headers_mut();
    for (name, value) in console::SECURITY_FIELDS {
        fields.insert(name, http::HeaderValue::from_static(value));
    }
    if !fields.contains_key(header::CACHE_CONTROL) {
        fields.insert(
            header::CACHE_CONTROL,
            http::HeaderValue::from_static("no-store"),
        );
    }
    response
}

async fn other_path(method: Method, uri: Uri) -> Result<Response, ApiError> {
    let path = uri.path();
    if path == "/v1" || path.starts_with("/v1/") {
        return Err(ApiError::NotFound(format!(
            "the API has no {path}; /v1/openapi.json lists what it has"
        )));
    }
    if !matches!(method, Method::GET | Method::HEAD) {
        return Err(ApiError::MethodNotAllowed(format!("{path} is only read")));
    }
    console::file(path)
}

async fn other_method(method: Method, uri: Uri) -> ApiError {
    ApiError::MethodNotAllowed(format!("{} has no method {method}", uri.path()))
}

// Who asks.

pub(crate) fn with_token(state: &State, headers: &HeaderMap) -> Result<(), ApiError> {
    bearer(
        headers,
        &state.token,
        "this needs the operators' token (Authorization: Bearer); it is in the file `token` of control's directory",
    )
}

/// Which node asks, by its key. `named` is who it says to be, as far as that is known yet.
fn with_node_key(
    state: &State,
    fleet: &Fleet,
    headers: &HeaderMap,
    named: Option<&str>,
) -> Result<Caller, ApiError> {
    node_key::caller(fleet, headers).map_err(|refused| key_refused(state, refused, named))
}

/// Whether who asks may speak for a node.
fn speaks_for(state: &State, caller: &Caller, node: &str) -> Result<(), ApiError> {
    caller
        .speaks_for(node)
        .map_err(|refused| key_refused(state, refused, None))?;
    state.callers.accepted(node, caller);
    Ok(())
}

fn key_refused(state: &State, refused: KeyRefused, named: Option<&str>) -> ApiError {
    state.key_refused(&refused, named);
    ApiError::Key(refused)
}

fn bearer(headers: &HeaderMap, secret: &Secret, mend: &'static str) -> Result<(), ApiError> {
    let mut request = http::Request::new(());
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        request
            .headers_mut()
            .insert(header::AUTHORIZATION, value.clone());
    }
    if admin::is_bearer(&request, &secret.0) {
        Ok(())
    } else {
        Err(ApiError::Unauthorized(mend))
    }
}

// What they ask.

fn query<T>(asked: Asked<T>) -> Result<T, ApiError> {
    asked
        .map(|Query(q)| q)
        .map_err(|e| ApiError::BadRequest(e.body_text()))
}

fn bytes(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    body.map_err(|e| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge(limit),
        _ => ApiError::BadRequest(e.body_text()),
    })
}

pub(crate) fn json<T: DeserializeOwned>(
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
        _ => ApiError::BadRequest(format!("the body is no JSON: {e}")),
    })
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct StatusQuery {
    /// Seconds that rates are taken over, 1..=3600; 30 unless given; fewer while control has not
    /// run that long.
    window: Option<u64>,
}

/// The fleet now.
#[utoipa::path(get, path = "/v1/status", tag = "read", params(StatusQuery), responses((status = 200, body = view::Status)))]
async fn status(Shared(state): Shared<App>, asked: Asked<StatusQuery>) -> Answer<view::Status> {
    let now_unix_ms = now_unix_ms();
    let asked_seconds = query(asked)?.window.unwrap_or(30);
    // No longer than there was anything to count: a mean over time before that would be too low.
    let counted_seconds = settled_second(&state.fleet(), now_unix_ms)
        .saturating_sub(state.book().started_unix_ms().div_ceil(1000));
    let window_seconds = asked_seconds.min(counted_seconds).clamp(1, SECONDS_KEPT);
    let around = Surroundings {
        now_unix_ms,
        journal: state.ledger.id().to_owned(),
        revision: state.ledger.revision(),
        fleet_revision: state.fleet_revision(),
        window_seconds,
    };
    let mut status = state.book().status(&state.fleet(), &around);
    for node in &mut status.nodes {
        node.key = state.callers.shown(&node.name).map(str::to_owned);
    }
    status.events = state.events.after(0, STATUS_EVENTS);
    status.events.reverse();
    Ok(Json(status))
}

/// The fleet file in force, without secrets.
#[utoipa::path(get, path = "/v1/fleet", tag = "read", responses((status = 200, body = view::FleetView)))]
async fn fleet_in_force(Shared(state): Shared<App>) -> Json<view::FleetView> {
    Json(fleet_view::fleet(
        &state.fleet(),
        state.fleet_revision(),
        now_unix_ms(),
    ))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct SeriesQuery {
    /// How many, 1..=2592000 (30 days); 300 unless given.
    seconds: Option<u64>,
}

/// Rates over time.
#[utoipa::path(get, path = "/v1/series", tag = "read", params(SeriesQuery), responses((status = 200, body = view::SeriesView)))]
async fn series(Shared(state): Shared<App>, asked: Asked<SeriesQuery>) -> Answer<view::SeriesView> {
    let seconds = query(asked)?.seconds.unwrap_or(300).clamp(1, TIME_KEPT);
    let fleet = state.fleet();
    let span = Span::before(settled_second(&fleet, now_unix_ms()), seconds);
    let start_unix_ms = span.first * span.step * 1000;
    // The book is held for one line at a time: reports come meanwhile.
    let line = |key: Key| state.book().series.line(&key, span);
    let statuses = state.book().series.statuses(span);
    Ok(Json(view::SeriesView {
        step_ms: span.step * 1000,
        points: span.points as usize,
        start_unix_ms,
        fleet_start_unix_ms: fleet_view::clock(&fleet.clock, start_unix_ms).fleet_unix_ms,
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
struct EventsQuery {
    /// Only events with a larger id.
    after: Option<u64>,
}

/// Events as they happen, as server-sent events.
#[utoipa::path(get, path = "/v1/events", tag = "read", params(EventsQuery),
    responses((status = 200, content_type = "text/event-stream", body = view::Event), (status = 503, body = view::ErrorBody)))]
async fn events(
    Shared(state): Shared<App>,
    Extension(seat): Extension<Arc<Seat>>,
    headers: HeaderMap,
    asked: Asked<EventsQuery>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, axum::Error>>>, ApiError> {
    let after = query(asked)?.after;
    let last = headers
        .get("last-event-id")
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.trim().parse().ok());
    let permit = seat
        .stream()
        .ok_or(ApiError::TooBusy("too many event streams are open"))?;
    let (begin, most) = match last.or(after) {
        Some(id) => (id, KEPT_MAX),
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
                    () = shutdown.asked() => return None,
                };
                match received {
                    Ok(event) if event.id > newest => old.push_back(event),
                    Ok(_) => {}
                    // Too slow: go on from what is kept.
                    Err(RecvError::Lagged(_)) => old.extend(state.events.after(newest, KEPT_MAX)),
                    Err(RecvError::Closed) => return None,
                }
            }
        },
    );
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// The kept events.
#[utoipa::path(get, path = "/v1/events/log", tag = "read", params(EventsQuery), responses((status = 200, body = view::EventLog)))]
async fn event_log(
    Shared(state): Shared<App>,
    asked: Asked<EventsQuery>,
) -> Answer<view::EventLog> {
    let after = query(asked)?.after.unwrap_or(0);
    Ok(Json(view::EventLog {
        newest: state.events.newest(),
        events: state.events.after(after, KEPT_MAX),
    }))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct PlanQuery {
    /// Only this cluster.
    cluster: Option<String>,
    /// Items shown a cluster, up to 4,096; 50 unless given.
    items: Option<usize>,
}

/// Tomorrow's plans, made now.
#[utoipa::path(get, path = "/v1/plan", tag = "read", params(PlanQuery),
    responses((status = 200, body = view::PlanView), (status = 404, body = view::ErrorBody)))]
async fn plan(Shared(state): Shared<App>, asked: Asked<PlanQuery>) -> Answer<view::PlanView> {
    let PlanQuery { cluster, items } = query(asked)?;
    let fleet = state.fleet();
    if let Some(name) = &cluster {
        known_cluster(&fleet, name).map_err(ApiError::NotFound)?;
    }
    let items = items.unwrap_or(50).min(planner::ITEMS_MAX);
    // Anybody may ask, and it takes a core while it lasts.
    let _turn = state
        .plans
        .acquire()
        .await
        .map_err(|_| ApiError::Internal("the planner ended".to_owned()))?;
    let planning = state.clone();
    let made = tokio::task::spawn_blocking(move || {
        planner::plans(
            &planning.learnt,
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

fn known_cluster(fleet: &Fleet, name: &str) -> Result<(), String> {
    if fleet.clusters.iter().any(|c| c.name == name) {
        return Ok(());
    }
    let known: Vec<&str> = fleet.clusters.iter().map(|c| c.name.as_str()).collect();
    Err(format!(
        "the fleet has no cluster {name:?}; it has {}",
        known.join(", ")
    ))
}

/// Push orders with their progress and what they earned.
#[utoipa::path(get, path = "/v1/pushes", tag = "read", responses((status = 200, body = view::Pushes)))]
async fn pushes(Shared(state): Shared<App>) -> Json<view::Pushes> {
    Json(view::Pushes {
        now_unix_ms: now_unix_ms(),
        orders: state.book().pushes.views(),
    })
}

/// Push now.
#[utoipa::path(post, path = "/v1/pushes", tag = "change", request_body = view::PushRequest, security(("token" = [])),
    responses((status = 202, body = view::Pushed), (status = 401, body = view::ErrorBody), (status = 422, body = view::ErrorBody)))]
async fn push(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<view::Pushed>), ApiError> {
    with_token(&state, &headers)?;
    let request: view::PushRequest = json(&headers, body, BODY_BYTES_MAX)?;
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
        match planner::order(&state, &fleet, cluster, None, now_unix_ms()).await {
            Ok(order) => orders.push(order),
            Err(planner::NoOrder::Failed(error)) => return Err(error),
            Err(why) => skipped.push(view::PushSkipped {
                cluster: cluster.name.clone(),
                reason: why.to_string(),
            }),
        }
    }
    Ok((StatusCode::ACCEPTED, Json(view::Pushed { orders, skipped })))
}

/// Purges, newest first.
#[utoipa::path(get, path = "/v1/purges", tag = "read", responses((status = 200, body = view::Purges)))]
async fn purges(Shared(state): Shared<App>) -> Json<view::Purges> {
    let book = state.book();
    let edges = book.edges(&state.fleet(), now_unix_ms());
    Json(view::Purges {
        purges: book.purges.views(&edges),
    })
}

/// One purge.
#[utoipa::path(get, path = "/v1/purges/{revision}", tag = "read", params(("revision" = u64, Path, description = "Its journal revision.")),
    responses((status = 200, body = view::PurgeView), (status = 404, body = view::ErrorBody)))]
async fn one_purge(
    Shared(state): Shared<App>,
    Path(revision): Path<String>,
) -> Answer<view::PurgeView> {
    let book = state.book();
    let edges = book.edges(&state.fleet(), now_unix_ms());
    let found = revision
        .parse()
        .ok()
        .and_then(|r| book.purges.view(r, &edges));
    found.map(Json).ok_or_else(|| {
        ApiError::NotFound(format!(
            "no purge with revision {revision} is kept; /v1/purges lists those that are"
        ))
    })
}

/// Purge.
#[utoipa::path(post, path = "/v1/purges", tag = "change", request_body = view::PurgeRequest, security(("token" = [])),
    responses((status = 200, body = view::PurgeView), (status = 401, body = view::ErrorBody), (status = 422, body = view::ErrorBody),
        (status = 507, body = view::ErrorBody)))]
async fn purge(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> Answer<view::PurgeView> {
    with_token(&state, &headers)?;
    let request: view::PurgeRequest = json(&headers, body, BODY_BYTES_MAX)?;
    let scopes = match (request.scope, request.scopes) {
        (Some(scope), None) => vec![scope],
        (None, Some(scopes)) => scopes,
        _ => {
            return Err(ApiError::invalid(
                "send what to purge in either scope or scopes",
            ));
        }
    };
    let scope = purge_scope(&state.fleet(), scopes)?;
    carry_out(
        &state,
        Purge {
            scope,
            soft: request.soft,
        },
        None,
        request.wait_ms,
    )
    .await
}

/// Purge what a client of a site asked an edge for.
#[utoipa::path(post, path = "/v1/site-purges", tag = "nodes", request_body = view::SitePurgeRequest, security(("node_key" = [])),
    responses((status = 200, body = view::PurgeView), (status = 401, body = view::ErrorBody), (status = 403, body = view::ErrorBody), (status = 404, body = view::ErrorBody),
        (status = 422, body = view::ErrorBody), (status = 507, body = view::ErrorBody)))]
async fn site_purge(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> Answer<view::PurgeView> {
    let fleet = state.fleet();
    let caller = with_node_key(&state, &fleet, &headers, None)?;
    let request: view::SitePurgeRequest = json(&headers, body, BODY_BYTES_MAX)?;
    known_node(&fleet, &request.node, Role::Edge)?;
    speaks_for(&state, &caller, &request.node)?;
    let scope = within_site(&fleet, &request.site, request.scopes)?;
    carry_out(
        &state,
        Purge {
            scope,
            soft: request.soft,
        },
        Some(request.node),
        request.wait_ms,
    )
    .await
}

/// Puts a purge into the journal and waits for the edges. `at` is the edge that a client asked.
async fn carry_out(
    state: &App,
    purge: Purge,
    at: Option<String>,
    wait_ms: Option<u64>,
) -> Answer<view::PurgeView> {
    let wait = Duration::from_millis(wait_ms.unwrap_or(PURGE_WAIT_MS).min(PURGE_WAIT_MS_MAX));
    let notes = notes(&state.fleet(), &purge.scope);
    for scope in purge.scope.each() {
        state
            .metrics
            .purges
            .with_label_values(&[scope_name(scope)])
            .inc();
    }
    let begun = Instant::now();
    let waiter = Arc::new(PurgeWaiter::new(state.clone()));
    let accept = {
        let (state, waiter) = (state.clone(), waiter.clone());
        move |entry: &nearcast_fleet::journal::Entry| {
            state.purge_accepted(entry, at.as_deref(), Some(&waiter))
        }
    };
    let entry = state
        .ledger
        .append(Change::Purge(purge), now_unix_ms(), accept)
        .await?;
    let deadline = if waiter.waits() { begun + wait } else { begun };
    let mut answer = purge_outcome(state, entry.revision, deadline).await?;
    let label = if answer.complete { "true" } else { "false" };
    state
        .metrics
        .purge_seconds
        .with_label_values(&[label])
        .observe(begun.elapsed().as_secs_f64());
    // Whoever does not wait need not be warned.
    if !answer.complete && !wait.is_zero() {
        let message = format!(
            "purge {} is not confirmed by {}",
            answer.revision,
            answer.missing.join(", ")
        );
        let happening =
            Happening::new("purge_incomplete", Level::Warn, message).revision(answer.revision);
        state.events.add(now_unix_ms(), [happening]);
    }
    answer.notes = notes;
    if !waiter.waits() && !wait.is_zero() {
        answer
            .notes
            .push("too many purges are waited for: this one was not".to_owned());
    }
    Ok(Json(answer))
}

/// Waits until no reporting edge is missing, the deadline, or shutdown.
async fn purge_outcome(
    state: &App,
    revision: u64,
    deadline: Instant,
) -> Result<view::PurgeView, ApiError> {
    /// Edges fall silent without a report that would wake us.
    const LOOK_AGAIN: Duration = Duration::from_millis(200);
    /// Where many wait, each report would wake all of them: they look no more often than this.
    const CROWD: usize = 64;
    const CROWD_PAUSE: Duration = Duration::from_millis(20);
    let mut confirmed = state.confirmed.subscribe();
    let mut shutdown = state.shutdown.clone();
    loop {
        confirmed.borrow_and_update();
        let is_crowd;
        {
            let book = state.book();
            let edges = book.edges(&state.fleet(), now_unix_ms());
            let waits = book
                .purges
                .outstanding(revision, &edges)
                .is_some_and(|o| o.reporting > 0);
            if !waits || Instant::now() >= deadline || shutdown.is_asked() {
                let lost = || {
                    ApiError::Internal(format!(
                        "purge {revision} is in the journal but no longer kept here"
                    ))
                };
                return book.purges.view(revision, &edges).ok_or_else(lost);
            }
            is_crowd = book.purges.waited_for() > CROWD;
        }
        let until = deadline.min(Instant::now() + LOOK_AGAIN);
        tokio::select! {
            _ = timeout_at(until, confirmed.changed()) => {}
            () = shutdown.asked() => {}
        }
        if is_crowd {
            tokio::time::sleep_until(deadline.min(Instant::now() + CROWD_PAUSE)).await;
        }
    }
}

/// What operators name, checked, as the journal carries it.
fn purge_scope(fleet: &Fleet, scopes: Vec<view::Scope>) -> Result<PurgeScope, ApiError> {
    let mut named = Vec::with_capacity(scopes.len());
    for scope in scopes {
        named.push(match scope {
            view::Scope::Url(v) => PurgeScope::Url(v),
            view::Scope::Prefix(v) => PurgeScope::Prefix(v),
            view::Scope::Host(v) => PurgeScope::Host(v),
            view::Scope::Tag(v) => PurgeScope::Tag(v),
            view::Scope::All => PurgeScope::All,
            view::Scope::Site(site) => {
                known_site(fleet, &site).map_err(ApiError::invalid)?;
                PurgeScope::Site(site)
            }
            view::Scope::SiteTag { site, tag } => {
                known_site(fleet, &site).map_err(ApiError::invalid)?;
                PurgeScope::SiteTag { site, tag }
            }
        });
    }
    scope::any_of(&named).map_err(|error| ApiError::invalid(error.to_string()))
}

/// The same for a client of a site: URLs of its hosts alone, and tags within it.
fn within_site(
    fleet: &Fleet,
    site: &str,
    scopes: Vec<view::Scope>,
) -> Result<PurgeScope, ApiError> {
    known_site(fleet, site).map_err(ApiError::NotFound)?;
    let mut named = Vec::with_capacity(scopes.len());
    for scope in scopes {
        named.push(match scope {
            view::Scope::Url(text) => {
                let url =
                    scope::url(&text).map_err(|error| ApiError::invalid(error.to_string()))?;
                let host = scope::host_of(&url);
                if fleet.site_of_host(host).is_none_or(|s| s.name != site) {
                    return Err(ApiError::invalid(format!(
                        "{host} is no host of the site {site}"
                    )));
                }
                PurgeScope::Url(url)
            }
            view::Scope::Tag(tag) => PurgeScope::SiteTag {
                site: site.to_owned(),
                tag,
            },
            _ => {
                return Err(ApiError::invalid(
                    "a site's clients purge URLs and tags alone",
                ));
            }
        });
    }
    scope::any_of(&named).map_err(|error| ApiError::invalid(error.to_string()))
}

fn known_site(fleet: &Fleet, name: &str) -> Result<(), String> {
    if fleet.sites.iter().any(|s| s.name == name) {
        return Ok(());
    }
    let known: Vec<&str> = fleet.sites.iter().map(|s| s.name.as_str()).collect();
    Err(format!(
        "the fleet has no site {name:?}; it has {}",
        known.join(", ")
    ))
}

/// What is good and yet may not be what was meant.
fn notes(fleet: &Fleet, scope: &PurgeScope) -> Vec<String> {
    let mut notes = Vec::new();
    for one in scope.each() {
        let host = match one {
            PurgeScope::Url(text) | PurgeScope::Prefix(text) => Some(scope::host_of(text)),
            PurgeScope::Host(host) => Some(host.as_str()),
            _ => None,
        };
        if let Some(host) = host.filter(|host| fleet.site_of_host(host).is_none()) {
            notes.push(format!("no site of the fleet has the host {host}"));
        }
        match one {
            PurgeScope::Url(url) if url.contains('*') => {
                notes.push(format!(
                    "the * in {url} stands for itself: to purge all that begins so, purge by prefix"
                ));
            }
            PurgeScope::Tag(tag) if tag.contains([',', ' ']) => {
                notes.push(format!(
                    "{tag:?} is one tag: name each by itself to purge several"
                ));
            }
            _ => {}
        }
    }
    notes.dedup();
    notes.truncate(NOTES_MAX);
    notes
}

fn scope_name(scope: &PurgeScope) -> &'static str {
    match scope {
        PurgeScope::Url(_) => "url",
        PurgeScope::Prefix(_) => "prefix",
        PurgeScope::Host(_) => "host",
        PurgeScope::Site(_) => "site",
        PurgeScope::Tag(_) => "tag",
        PurgeScope::SiteTag { .. } => "site_tag",
        PurgeScope::All | PurgeScope::Any(_) => "all",
    }
}

/// The fleet file's text.
#[utoipa::path(get, path = "/v1/fleet-file", tag = "change", security(("token" = [])),
    responses((status = 200, content_type = "text/plain", body = String), (status = 401, body = view::ErrorBody)))]
async fn fleet_file(Shared(state): Shared<App>, headers: HeaderMap) -> Result<Response, ApiError> {
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
struct FleetFileQuery {
    /// Only say whether it would be accepted.
    #[serde(default)]
    check: bool,
    /// Accept other listeners too, which nodes open when they are started again.
    #[serde(default)]
    restart_needed: bool,
}

/// A new fleet file.
#[utoipa::path(put, path = "/v1/fleet-file", tag = "change", params(FleetFileQuery), security(("token" = [])),
    request_body(content = String, content_type = "text/plain"),
    responses((status = 200, body = view::FleetFileAccepted), (status = 401, body = view::ErrorBody), (status = 409, body = view::ErrorBody),
        (status = 422, body = view::ErrorBody), (status = 507, body = view::ErrorBody)))]
async fn put_fleet_file(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    asked: Asked<FleetFileQuery>,
    body: Body,
) -> Answer<view::FleetFileAccepted> {
    with_token(&state, &headers)?;
    let FleetFileQuery {
        check,
        restart_needed,
    } = query(asked)?;
    let body = bytes(body, BODY_BYTES_MAX)?;
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
            crate::purges::count(mistakes.len() as u64, "mistake")
        ),
        mistakes,
    })?;
    let obstacles = crate::revision::obstacles(&state.fleet(), &fleet);
    if let Some(refusal) = obstacles.refusal(restart_needed) {
        return Err(ApiError::Conflict(refusal));
    }
    let restart = obstacles.restarts;
    let current = state.fleet_file();
    if check || current.text == text {
        return Ok(Json(view::FleetFileAccepted {
            revision: current.revision,
            changed: false,
            restart,
        }));
    }
    let entry = crate::revision::accept(&state, fleet, text).await?;
    Ok(Json(view::FleetFileAccepted {
        revision: entry.revision,
        changed: true,
        restart,
    }))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query, which is handed on as it is")]
struct ExplainQuery {
    /// Host name as clients use it.
    host: String,
    /// The client's address, perhaps with a prefix length, as a resolver sends it in a client
    /// subnet.
    client: Option<String>,
    /// The resolver's address, which counts where no client is given.
    resolver: Option<String>,
    /// `A` unless given, or another record type.
    r#type: Option<String>,
}

/// Why a client is given its cluster: a name server's own account, from the first one that answers.
#[utoipa::path(get, path = "/v1/explain", tag = "read", params(ExplainQuery),
    responses((status = 200, body = Object), (status = 400, body = view::ErrorBody), (status = 404, body = view::ErrorBody), (status = 503, body = view::ErrorBody)))]
async fn explain(Shared(state): Shared<App>, uri: Uri) -> Answer<serde_json::Value> {
    let fleet = state.fleet();
    let query = uri
        .query()
        .filter(|q| q.len() <= EXPLAIN_QUERY_MAX)
        .ok_or_else(|| {
            ApiError::BadRequest(
                "ask with ?host=NAME&client=ADDRESS or ?host=NAME&resolver=ADDRESS".to_owned(),
            )
        })?;
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
        let said = || {
            body["error"]["message"]
                .as_str()
                .or(body["error"].as_str())
                .unwrap_or("no reason given")
                .to_owned()
        };
        return match answer.status() {
            StatusCode::OK => Ok(Json(body)),
            StatusCode::NOT_FOUND => Err(ApiError::NotFound(said())),
            _ => Err(ApiError::BadRequest(said())),
        };
    }
    Err(ApiError::Unavailable(format!(
        "no name server answers: {}",
        silent.join(", ")
    )))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct JournalQuery {
    /// Newest revision that the node has.
    after: u64,
    /// How long to wait for something newer, up to 30,000.
    #[serde(default)]
    wait_ms: u64,
    /// Who asks.
    node: Option<String>,
    /// Identity of the journal that the node has followed, so that a cursor in another one
    /// acknowledges nothing here.
    journal: Option<String>,
}

/// Journal entries after a cursor, for nodes.
#[utoipa::path(get, path = "/v1/journal", tag = "nodes", params(JournalQuery), security(("node_key" = [])),
    responses((status = 200, body = view::JournalPage), (status = 400, body = view::ErrorBody), (status = 401, body = view::ErrorBody), (status = 403, body = view::ErrorBody), (status = 507, body = view::ErrorBody),
        (status = 503, body = view::ErrorBody)))]
async fn journal(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    asked: Asked<JournalQuery>,
) -> Result<Response, ApiError> {
    let fleet = state.fleet();
    let asked = query(asked);
    let named = asked
        .as_ref()
        .ok()
        .and_then(|q: &JournalQuery| q.node.clone());
    let caller = with_node_key(&state, &fleet, &headers, named.as_deref())?;
    let JournalQuery {
        after,
        wait_ms,
        node,
        journal,
    } = asked?;
    let node = match (node, &caller) {
        (None, Caller::Node(own)) => Some(own.clone()),
        (node, _) => node.filter(|name| roster(&fleet).iter().any(|(known, ..)| known == name)),
    };
    if let Some(node) = &node {
        speaks_for(&state, &caller, node)?;
    }
    let is_ours = journal.as_ref().is_none_or(|id| id == state.ledger.id());
    let newest = state.ledger.revision();
    if let Some(revision) = believe(&state, node.as_deref(), journal, after).await? {
        let answer = JournalAnswer {
            journal: state.ledger.id().to_owned(),
            revision,
            entries: Vec::new(),
        };
        return Ok(Json(answer).into_response());
    }
    // A cursor beyond what there was is of revisions that this journal gives to other changes.
    if let Some(node) = node.filter(|name| is_ours && after <= newest && fleet.edge(name).is_some())
    {
        state
            .book()
            .purges
            .cursor(&node, after.min(state.ledger.revision()));
    }
    let mut revisions = state.ledger.watch();
    if *revisions.borrow_and_update() <= after && wait_ms > 0 {
        let deadline = Instant::now() + Duration::from_millis(wait_ms.min(POLL_WAIT_MS_MAX));
        let mut shutdown = state.shutdown.clone();
        tokio::select! {
            _ = timeout_at(deadline, revisions.changed()) => {}
            () = shutdown.asked() => {}
        }
    }
    let page = state.ledger.page(after, now_unix_ms()).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], page).into_response())
}

/// Takes a node's cursor for what it is: one in this journal, or a sign that this journal was lost
/// or set back. Only a node of the fleet is believed that, and only what can be; who it was is
/// told, since everything is purged on its word.
async fn believe(
    state: &App,
    node: Option<&str>,
    journal: Option<String>,
    after: u64,
) -> Result<Option<u64>, ApiError> {
    let is_other = after > 0 && journal.as_deref().is_some_and(|id| id != state.ledger.id());
    if after <= state.ledger.revision() && !is_other {
        return Ok(None);
    }
    let Some(node) = node else {
        return Err(ApiError::BadRequest(format!(
            "revision {after} is not of this journal, and no node of the fleet says that it has seen it"
        )));
    };
    let (accepting, name) = (state.clone(), node.to_owned());
    let accept = move |entry: &nearcast_fleet::journal::Entry| {
        accepting.purge_accepted(entry, None, None);
        let whose = if is_other {
            "another journal"
        } else {
            "this journal"
        };
        let message = format!(
            "{name} has seen revision {after} of {whose}, which this one lacks: everything is purged, once"
        );
        let happening = Happening::new("journal_reconciled", Level::Warn, message)
            .node(&name)
            .revision(entry.revision);
        accepting.events.add(entry.accepted_unix_ms, [happening]);
    };
    match state
        .ledger
        .reconcile(journal, after, now_unix_ms(), accept)
        .await?
    {
        Reconciled::Told => return Ok(None),
        Reconciled::SetBack(revision) => return Ok(Some(revision)),
        Reconciled::NotBelieved => {}
    }
    tracing::warn!(
        node,
        after,
        "a node says that it has seen more changes than there can be; it is not believed"
    );
    Err(ApiError::BadRequest(format!(
        "no journal can have reached revision {after}: remove the copy of {node}, journal.copy in its state directory, and start it again"
    )))
}

fn known_node(fleet: &Fleet, name: &str, role: Role) -> Result<(), ApiError> {
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

/// A report is in the book: tell what happened, wake who waits for a purge; both when the facts up
/// to a number are on disk, if there are any.
fn reported(
    state: &App,
    role: Role,
    happenings: Vec<Happening>,
    facts: Option<u64>,
    now_unix_ms: u64,
) -> Json<view::ReportAccepted> {
    state
        .metrics
        .reports
        .with_label_values(&[role.name()])
        .inc();
    match facts {
        None => state.events.add(now_unix_ms, happenings),
        // On its own: the node may go away meanwhile.
        Some(number) => {
            let state = state.clone();
            tokio::spawn(async move {
                state.facts.kept(number).await;
                state.events.add(now_unix_ms, happenings);
                state.confirmed.send_replace(());
            });
        }
    }
    Json(view::ReportAccepted {
        revision: state.ledger.revision(),
    })
}

/// Counts a report that said what cannot be.
fn note_bounded(state: &State, role: Role, node: &str, is_bounded: bool) {
    if is_bounded {
        state
            .metrics
            .bounded
            .with_label_values(&[role.name()])
            .inc();
        tracing::debug!(node, "a report has values that cannot be; they are cut");
    }
}

/// An edge's report.
#[utoipa::path(post, path = "/v1/reports/edge", tag = "nodes", request_body = Object, security(("node_key" = [])),
    responses((status = 200, body = view::ReportAccepted), (status = 401, body = view::ErrorBody), (status = 403, body = view::ErrorBody), (status = 404, body = view::ErrorBody)))]
async fn edge_report(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> Answer<view::ReportAccepted> {
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
    let newest = state.ledger.revision();
    note_bounded(
        &state,
        Role::Edge,
        &report.node.clone(),
        bounds::edge(&mut report, &fleet, newest, now),
    );
    // Learnt, not kept.
    let popularity = std::mem::take(&mut report.popularity);
    state.learnt.fold(&fleet, cluster, &popularity, now);
    let (happenings, facts) = {
        let mut book = state.book();
        let happenings = book.edge(&fleet, cluster, report, now);
        (happenings, state.keep(&mut book, false))
    };
    Ok(reported(&state, Role::Edge, happenings, facts, now))
}

/// A name server's report.
#[utoipa::path(post, path = "/v1/reports/dns", tag = "nodes", request_body = Object, security(("node_key" = [])),
    responses((status = 200, body = view::ReportAccepted), (status = 401, body = view::ErrorBody), (status = 403, body = view::ErrorBody), (status = 404, body = view::ErrorBody)))]
async fn dns_report(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> Answer<view::ReportAccepted> {
    let fleet = state.fleet();
    let caller = with_node_key(&state, &fleet, &headers, None)?;
    let mut report: DnsReport = json(&headers, body, REPORT_BYTES_MAX)?;
    known_node(&fleet, &report.node, Role::Dns)?;
    speaks_for(&state, &caller, &report.node)?;
    let now = now_unix_ms();
    let newest = state.ledger.revision();
    note_bounded(
        &state,
        Role::Dns,
        &report.node.clone(),
        bounds::dns(&mut report, &fleet, newest, now),
    );
    let happenings = state.book().dns(&fleet, report, now);
    Ok(reported(&state, Role::Dns, happenings, None, now))
}

/// An origin's report.
#[utoipa::path(post, path = "/v1/reports/origin", tag = "nodes", request_body = Object, security(("node_key" = [])),
    responses((status = 200, body = view::ReportAccepted), (status = 401, body = view::ErrorBody), (status = 403, body = view::ErrorBody), (status = 404, body = view::ErrorBody)))]
async fn origin_report(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> Answer<view::ReportAccepted> {
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
        bounds::origin(&mut report, now),
    );
    state.book().origin(report, now);
    Ok(reported(&state, Role::Origin, Vec::new(), None, now))
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "read", responses((status = 200, body = Object)))]
async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_route_is_in_the_document_and_the_reverse() {
        let routed: BTreeSet<(String, String)> = routes()
            .into_iter()
            .map(|(method, path, _)| (path.to_owned(), method.to_string()))
            .collect();
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let described: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods
                    .as_object()
                    .unwrap()
                    .keys()
                    .map(move |m| (path.clone(), m.to_uppercase()))
            })
            .collect();
        assert_eq!(described, routed);
        let explained = include_str!("../API.md");
        for (path, method) in &routed {
            assert!(
                explained.contains(path.as_str()) || path.starts_with("/v1/reports/"),
                "API.md lacks {method} {path}"
            );
        }
    }

    #[test]
    fn what_changes_something_needs_a_secret() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let is_open = operation
                    .get("security")
                    .and_then(|s| s.as_array())
                    .is_none_or(Vec::is_empty);
                let is_read = method == "get" && path != "/v1/fleet-file" && path != "/v1/journal";
                assert_eq!(is_open, is_read, "{method} {path}");
            }
        }
    }
}
