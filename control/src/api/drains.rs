//! Drains: clients are steered away from an edge or a cluster, and back. A drain is a change in the
//! journal, which name servers and edges follow. An answer lists the name servers that have applied it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use http::HeaderMap;
use nearcast_fleet::change::{Change, Drain, DrainTarget, Entry};
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::drains::{largest_ttl, sites_without_nodes};
use nearcast_fleet::file;
use tokio::time::Instant;

use crate::api::request::{ApiResult, App, BODY_BYTES_MAX, Body, json, with_token};
use crate::error::ApiError;
use crate::event::{Level, NewEvent};
use crate::fleet_state::FleetState;
use crate::state::State;
use crate::views;

/// Default and longest wait for the name servers, milliseconds.
const WAIT_MS: u64 = 5_000;

const WAIT_MS_MAX: u64 = 60_000;

/// Time between two checks while a request waits: a name server becomes silent without a report that
/// would wake the request.
const CHECK_EVERY: Duration = Duration::from_millis(200);

/// The drains in force.
#[utoipa::path(get, path = "/v1/drains", tag = "read", responses((status = 200, body = views::DrainsView)))]
pub(super) async fn drains(Shared(state): Shared<App>) -> Json<views::DrainsView> {
    let (fleet, fleet_state, now) = (state.fleet(), state.fleet_state(), now_unix_ms());
    let drains = fleet_state
        .drains
        .iter()
        .map(|(target, since)| views::DrainView {
            drained: true,
            since_unix_ms: since.unix_ms,
            ..drain_view(&fleet, &fleet_state, target, since.revision, now)
        })
        .collect();
    Json(views::DrainsView { drains })
}

/// Drain, or return to service.
#[utoipa::path(post, path = "/v1/drains", tag = "change", request_body = views::DrainRequest, security(("token" = [])),
    responses((status = 200, body = views::DrainView), (status = 401, body = views::ErrorBody), (status = 404, body = views::ErrorBody),
        (status = 409, body = views::ErrorBody), (status = 422, body = views::ErrorBody), (status = 507, body = views::ErrorBody)))]
pub(super) async fn drain(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<views::DrainView> {
    with_token(&state, &headers)?;
    let request: views::DrainRequest = json(&headers, body, BODY_BYTES_MAX)?;
    let deadline =
        Instant::now() + Duration::from_millis(request.wait_ms.unwrap_or(WAIT_MS).min(WAIT_MS_MAX));
    let (fleet, wanted, entry) = append(&state, &request).await?;

    let since = state.fleet_state().drains.get(&wanted.target);
    let revision = entry
        .as_ref()
        .map(|e| e.revision)
        .or(since.map(|s| s.revision))
        .unwrap_or(0);
    let mut answer = wait_applied(&state, &wanted.target, revision, deadline).await;
    answer.drained = request.drained;
    answer.changed = entry.is_some();
    answer.since_unix_ms = since
        .map(|s| s.unix_ms)
        .or(entry.map(|e| e.accepted_unix_ms))
        .unwrap_or(0);
    answer.notes.splice(
        0..0,
        notes(&fleet, &state.fleet_state(), &wanted, answer.changed),
    );
    Ok(Json(answer))
}

/// Checks a request and appends its drain to the journal, unless it changes nothing.
async fn append(
    state: &App,
    request: &views::DrainRequest,
) -> Result<(Arc<Fleet>, Drain, Option<Entry>), ApiError> {
    // Hold the lock of fleet files, so that names keep their meaning until the journal has the drain.
    let _turn = state.fleet_files.lock().await;
    let fleet = state.fleet();
    let kind = request.kind.as_deref();
    let left_over =
        || left_over(&state.fleet_state(), &request.name, kind).filter(|_| !request.drained);
    let target = match target(&fleet, &request.name, kind) {
        Err(error @ ApiError::NotFound(_)) => left_over().ok_or(error)?,
        found => found?,
    };

    let wanted = Drain {
        target,
        drained: request.drained,
    };
    let (is_new, obstacle) = {
        let fleet_state = state.fleet_state();
        (
            is_change(&fleet, &fleet_state, &wanted),
            obstacle(&fleet, &fleet_state, &wanted, request.force),
        )
    };
    if let Some(obstacle) = obstacle {
        return Err(ApiError::Conflict(obstacle));
    }

    let entry = if is_new {
        let accept = {
            let accepting = state.clone();
            move |entry: &Entry| accepted(&accepting, entry)
        };
        Some(
            state
                .journal
                .append(Change::Drain(wanted.clone()), now_unix_ms(), accept)
                .await?,
        )
    } else {
        None
    };
    Ok((fleet, wanted, entry))
}

/// Applies a drain that the journal has accepted, before any node can see it.
fn accepted(state: &State, entry: &Entry) {
    let Change::Drain(Drain { target, drained }) = &entry.change else {
        return;
    };
    state.fleet_state().drains.fold(entry);
    let (kind, message) = match drained {
        true => (
            "drained",
            format!(
                "{} {} is drained: clients are steered elsewhere",
                target.kind(),
                target.name()
            ),
        ),
        false => (
            "undrained",
            format!("{} {} is back in service", target.kind(), target.name()),
        ),
    };
    let mut new_event = NewEvent::new(kind, Level::Info, message).revision(entry.revision);
    new_event = match target {
        DrainTarget::Node(name) => new_event.node(name),
        DrainTarget::Cluster(name) => new_event.cluster(name),
    };
    state.events.add(entry.accepted_unix_ms, [new_event]);
}

/// The edge or cluster of a name.
fn target(fleet: &Fleet, name: &str, kind: Option<&str>) -> Result<DrainTarget, ApiError> {
    let is_node = fleet.edge(name).is_some();
    let is_cluster = fleet.clusters.iter().any(|cluster| cluster.name == name);
    match (kind, is_node, is_cluster) {
        (Some("node"), true, _) | (None, true, false) => Ok(DrainTarget::Node(name.to_owned())),
        (Some("cluster"), _, true) | (None, false, true) => {
            Ok(DrainTarget::Cluster(name.to_owned()))
        }
        (None, true, true) => Err(ApiError::invalid(format!(
            "{name} is both an edge and a cluster; say which (kind, --kind)"
        ))),
        (Some(other), ..) if other != "node" && other != "cluster" => Err(ApiError::invalid(
            format!("the kind {other:?} is unknown; there are node and cluster"),
        )),
        _ => Err(ApiError::NotFound(unknown(fleet, name))),
    }
}

/// The drain of an edge or a cluster that the fleet no longer has. It would apply to a new one of the
/// same name.
fn left_over(fleet_state: &FleetState, name: &str, kind: Option<&str>) -> Option<DrainTarget> {
    let is_meant = |target: &DrainTarget| {
        target.name() == name && kind.is_none_or(|kind| kind == target.kind())
    };
    fleet_state
        .drains
        .iter()
        .map(|(target, _)| target)
        .find(|target| is_meant(target))
        .cloned()
}

/// The error for a name that cannot be drained.
fn unknown(fleet: &Fleet, name: &str) -> String {
    let other = fleet
        .name_servers
        .iter()
        .map(|n| (&n.name, "name server"))
        .chain(fleet.origins.iter().map(|o| (&o.name, "origin")));
    if let Some((_, role)) = other
        .chain(fleet.control.iter().map(|c| (&c.name, "control role")))
        .find(|(known, _)| *known == name)
    {
        return format!(
            "{name} is a {role}; only edges and clusters are drained, as clients are steered to them alone"
        );
    }
    let clusters = fleet.clusters.iter().map(|c| c.name.as_str());
    let known: Vec<&str> = clusters
        .chain(
            fleet
                .clusters
                .iter()
                .flat_map(|c| &c.nodes)
                .map(|n| n.name.as_str()),
        )
        .collect();
    let shown: String = name.chars().take(64).collect();
    match file::nearest_name(name, &known) {
        Some(nearest) => {
            format!("the fleet has no edge or cluster {shown:?}; did you mean {nearest}?")
        }
        None => {
            let clusters: Vec<&str> = fleet.clusters.iter().map(|c| c.name.as_str()).collect();
            format!(
                "the fleet has no edge or cluster {shown:?}; its clusters are {}",
                clusters.join(", ")
            )
        }
    }
}

/// The edges of a target.
fn nodes<'f>(fleet: &'f Fleet, target: &DrainTarget) -> Vec<&'f str> {
    let all = fleet
        .clusters
        .iter()
        .flat_map(|cluster| cluster.nodes.iter().map(move |node| (cluster, node)));
    all.filter(|(cluster, node)| match target {
        DrainTarget::Node(name) => node.name == *name,
        DrainTarget::Cluster(name) => cluster.name == *name,
    })
    .map(|(_, node)| node.name.as_str())
    .collect()
}

/// Whether a request changes anything. An edge that still reports a drain from a lost journal gets
/// another entry.
fn is_change(fleet: &Fleet, fleet_state: &FleetState, wanted: &Drain) -> bool {
    let is_drained = fleet_state.drains.get(&wanted.target).is_some();
    let lingers = || {
        nodes(fleet, &wanted.target)
            .iter()
            .any(|node| fleet_state.reports_drained(node))
    };
    is_drained != wanted.drained
        || (!wanted.drained
            && lingers()
            && !is_drained_with_cluster(fleet, fleet_state, &wanted.target))
}

/// Whether an edge is drained with its cluster.
fn is_drained_with_cluster(fleet: &Fleet, fleet_state: &FleetState, target: &DrainTarget) -> bool {
    let DrainTarget::Node(name) = target else {
        return false;
    };
    let cluster = fleet
        .edge(name)
        .map(|(cluster, _)| DrainTarget::Cluster(cluster.name.clone()));
    cluster.is_some_and(|cluster| fleet_state.drains.get(&cluster).is_some())
}

/// Why a request is refused.
fn obstacle(
    fleet: &Fleet,
    fleet_state: &FleetState,
    wanted: &Drain,
    force: bool,
) -> Option<String> {
    if !wanted.drained {
        let cluster = fleet
            .edge(wanted.target.name())
            .map(|(cluster, _)| cluster.name.as_str())
            .unwrap_or_default();
        let is_own = fleet_state.drains.get(&wanted.target).is_some();
        return (!is_own && is_drained_with_cluster(fleet, fleet_state, &wanted.target)).then(
            || {
                format!(
                    "{} is drained with its cluster; undrain {cluster}, or keep it drained",
                    wanted.target.name()
                )
            },
        );
    }
    if force || fleet_state.drains.get(&wanted.target).is_some() {
        return None;
    }
    let mut drains = fleet_state.drains.clone();
    let before = sites_without_nodes(fleet, &drains);
    drains.fold(&Entry {
        revision: 0,
        accepted_unix_ms: 0,
        change: Change::Drain(wanted.clone()),
    });
    let lost: Vec<String> = sites_without_nodes(fleet, &drains)
        .into_iter()
        .filter(|site| !before.contains(site))
        .collect();
    (!lost.is_empty()).then(|| {
        format!(
            "{} is the last in service for {}: clients would still be steered to drained edges, as there are no others; undrain others first, or insist (force, --force)",
            wanted.target.name(),
            lost.join(", ")
        )
    })
}

/// Remarks for the answer.
fn notes(fleet: &Fleet, fleet_state: &FleetState, wanted: &Drain, changed: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if !changed {
        let now = if wanted.drained {
            "drained already"
        } else {
            "in service already"
        };
        notes.push(format!("{} is {now}", wanted.target.name()));
    }
    if !wanted.drained {
        let others: Vec<&str> = nodes(fleet, &wanted.target)
            .into_iter()
            .filter(|node| {
                fleet
                    .edge(node)
                    .is_some_and(|(cluster, _)| fleet_state.drains.is_drained(&cluster.name, node))
            })
            .collect();
        if !others.is_empty() {
            notes.push(format!("still drained: {}", others.join(", ")));
        }
    }
    notes
}

/// Waits until every name server that reports has applied a revision, or the deadline.
async fn wait_applied(
    state: &State,
    target: &DrainTarget,
    revision: u64,
    deadline: Instant,
) -> views::DrainView {
    let mut shutdown = state.shutdown.clone();
    loop {
        let now = drain_view(
            &state.fleet(),
            &state.fleet_state(),
            target,
            revision,
            now_unix_ms(),
        );
        if now.complete || Instant::now() >= deadline || shutdown.is_requested() {
            return now;
        }
        tokio::select! {
            () = tokio::time::sleep_until(deadline.min(Instant::now() + CHECK_EVERY)) => {}
            () = shutdown.requested() => {}
        }
    }
}

/// A drain, with the name servers that have applied it.
fn drain_view(
    fleet: &Fleet,
    fleet_state: &FleetState,
    target: &DrainTarget,
    revision: u64,
    now_ms: u64,
) -> views::DrainView {
    let (mut seen, mut missing, mut silent) = (Vec::new(), Vec::new(), Vec::new());
    for server in fleet
        .zone_name_servers
        .iter()
        .filter_map(|n| fleet.name_servers.get(*n))
    {
        match fleet_state.revision_of(fleet, &server.name, now_ms) {
            None => silent.push(server.name.clone()),
            Some(known) if known >= revision => seen.push(server.name.clone()),
            Some(_) => missing.push(server.name.clone()),
        }
    }
    let nodes: Vec<String> = nodes(fleet, target)
        .into_iter()
        .map(str::to_owned)
        .collect();
    let ttl_seconds = nodes
        .iter()
        .map(|node| {
            fleet
                .edge(node)
                .and_then(|(cluster, _)| largest_ttl(fleet, cluster))
                .map_or(0, |ttl| ttl.as_secs())
        })
        .max()
        .unwrap_or(0);
    views::DrainView {
        name: target.name().to_owned(),
        kind: target.kind().to_owned(),
        drained: false,
        changed: false,
        revision,
        since_unix_ms: 0,
        nodes,
        ttl_seconds,
        complete: missing.is_empty(),
        seen,
        missing,
        silent,
        sites_without_nodes: sites_without_nodes(fleet, &fleet_state.drains),
        notes: Vec::new(),
    }
}
