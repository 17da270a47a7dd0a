//! Drains: clients are steered away from an edge or a cluster, and back. Each is a change in the
//! journal, which name servers and edges follow; an answer says who has seen it.

use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use http::HeaderMap;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::drains::{largest_ttl, sites_without_nodes};
use nearcast_fleet::file;
use nearcast_fleet::journal::{Change, Drain, DrainTarget, Entry};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::book::Book;
use crate::error::ApiError;
use crate::events::{Happening, Level};
use crate::handler::{Answer, App, BODY_BYTES_MAX, Body, json, with_token};
use crate::state::{State, now_unix_ms};
use crate::view;

/// How long an answer waits for name servers unless it says, and at most, milliseconds.
const WAIT_MS: u64 = 5_000;
const WAIT_MS_MAX: u64 = 60_000;
/// Name servers fall silent without a report that would wake us.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What to drain, or to take back into service.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainRequest {
    /// An edge or a cluster.
    pub name: String,
    /// `node` or `cluster`, where both have that name.
    #[serde(default)]
    pub kind: Option<String>,
    /// `false` takes it back into service.
    #[serde(default = "yes")]
    pub drained: bool,
    /// Also where a site is left without an edge in service.
    #[serde(default)]
    pub force: bool,
    /// How long to wait for the name servers, 60000 at most; 5000 unless given.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

fn yes() -> bool {
    true
}

/// A drain, and who knows of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainView {
    pub name: String,
    /// `node` or `cluster`.
    pub kind: String,
    pub drained: bool,
    /// Whether this request changed anything; `false` in lists.
    pub changed: bool,
    /// Journal revision of the change; 0 where there is none.
    pub revision: u64,
    /// When it was drained, or taken back by this request; 0 where it is not known.
    pub since_unix_ms: u64,
    /// The edges that it is about.
    pub nodes: Vec<String>,
    /// After this time no resolver that obeys TTLs gives the addresses any more, once every name
    /// server has seen the drain.
    pub ttl_seconds: u64,
    /// Name servers that steer clients and have seen the change.
    pub seen: Vec<String>,
    /// Name servers that report and have not seen it.
    pub missing: Vec<String>,
    /// Name servers that do not report: nothing is known of them.
    pub silent: Vec<String>,
    /// Every name server that reports has seen it.
    pub complete: bool,
    /// Sites without any edge in service. Their clients are still given addresses, since any answer
    /// is better than none.
    pub sites_without_nodes: Vec<String>,
    /// For people.
    pub notes: Vec<String>,
}

/// Everything that is drained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DrainsView {
    pub drains: Vec<DrainView>,
}

/// What is drained.
#[utoipa::path(get, path = "/v1/drains", tag = "read", responses((status = 200, body = DrainsView)))]
pub(crate) async fn drains(Shared(state): Shared<App>) -> Json<DrainsView> {
    let (fleet, book, now) = (state.fleet(), state.book(), now_unix_ms());
    let drains = book
        .drains
        .iter()
        .map(|(target, since)| DrainView {
            drained: true,
            since_unix_ms: since.unix_ms,
            ..about(&fleet, &book, target, since.revision, now)
        })
        .collect();
    Json(DrainsView { drains })
}

/// Drain, or take back into service.
#[utoipa::path(post, path = "/v1/drains", tag = "change", request_body = DrainRequest, security(("token" = [])),
    responses((status = 200, body = DrainView), (status = 401, body = view::ErrorBody), (status = 404, body = view::ErrorBody),
        (status = 409, body = view::ErrorBody), (status = 422, body = view::ErrorBody), (status = 507, body = view::ErrorBody)))]
pub(crate) async fn drain(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> Answer<DrainView> {
    with_token(&state, &headers)?;
    let request: DrainRequest = json(&headers, body, BODY_BYTES_MAX)?;
    let deadline =
        Instant::now() + Duration::from_millis(request.wait_ms.unwrap_or(WAIT_MS).min(WAIT_MS_MAX));
    // With the lock of fleet files: names stay what they are between the check and the journal.
    let turn = state.fleet_files.lock().await;
    let fleet = state.fleet();
    let kind = request.kind.as_deref();
    let left_over = || left_over(&state.book(), &request.name, kind).filter(|_| !request.drained);
    let target = match target(&fleet, &request.name, kind) {
        Err(error @ ApiError::NotFound(_)) => left_over().ok_or(error)?,
        found => found?,
    };
    let wanted = Drain {
        target: target.clone(),
        drained: request.drained,
    };
    let (is_new, obstacle) = {
        let book = state.book();
        (
            is_change(&fleet, &book, &wanted),
            obstacle(&fleet, &book, &wanted, request.force),
        )
    };
    if let Some(obstacle) = obstacle {
        return Err(ApiError::Conflict(obstacle));
    }
    let entry = if is_new {
        let accept = {
            let state = state.clone();
            move |entry: &Entry| accepted(&state, entry)
        };
        Some(
            state
                .ledger
                .append(Change::Drain(wanted.clone()), now_unix_ms(), accept)
                .await?,
        )
    } else {
        None
    };
    drop(turn);
    let since = state.book().drains.get(&target);
    let revision = entry
        .as_ref()
        .map(|e| e.revision)
        .or(since.map(|s| s.revision))
        .unwrap_or(0);
    let mut answer = until_seen(&state, &target, revision, deadline).await;
    answer.drained = request.drained;
    answer.changed = entry.is_some();
    answer.since_unix_ms = since
        .map(|s| s.unix_ms)
        .or(entry.map(|e| e.accepted_unix_ms))
        .unwrap_or(0);
    answer
        .notes
        .splice(0..0, notes(&fleet, &state.book(), &wanted, answer.changed));
    Ok(Json(answer))
}

/// A drain is in the journal; no node has seen it yet.
fn accepted(state: &State, entry: &Entry) {
    let Change::Drain(Drain { target, drained }) = &entry.change else {
        return;
    };
    state.book().drains.fold(entry);
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
    let mut happening = Happening::new(kind, Level::Info, message).revision(entry.revision);
    happening = match target {
        DrainTarget::Node(name) => happening.node(name),
        DrainTarget::Cluster(name) => happening.cluster(name),
    };
    state.events.add(entry.accepted_unix_ms, [happening]);
}

/// What a name stands for.
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

/// The drain of an edge or a cluster that is no longer in the fleet: it would hold for the next of
/// that name.
fn left_over(book: &Book, name: &str, kind: Option<&str>) -> Option<DrainTarget> {
    let is_meant = |target: &DrainTarget| {
        target.name() == name && kind.is_none_or(|kind| kind == target.kind())
    };
    book.drains
        .iter()
        .map(|(target, _)| target)
        .find(|target| is_meant(target))
        .cloned()
}

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

/// Whether a request changes anything. An edge that still takes itself for drained, by a journal
/// that was lost, is told again.
fn is_change(fleet: &Fleet, book: &Book, wanted: &Drain) -> bool {
    let is_drained = book.drains.get(&wanted.target).is_some();
    let lingers = || {
        nodes(fleet, &wanted.target)
            .iter()
            .any(|node| book.takes_itself_for_drained(node))
    };
    is_drained != wanted.drained
        || (!wanted.drained && lingers() && !is_held_by_other(fleet, book, &wanted.target))
}

/// Whether an edge is drained by its cluster.
fn is_held_by_other(fleet: &Fleet, book: &Book, target: &DrainTarget) -> bool {
    let DrainTarget::Node(name) = target else {
        return false;
    };
    let cluster = fleet
        .edge(name)
        .map(|(cluster, _)| DrainTarget::Cluster(cluster.name.clone()));
    cluster.is_some_and(|cluster| book.drains.get(&cluster).is_some())
}

/// Why a request is not carried out.
fn obstacle(fleet: &Fleet, book: &Book, wanted: &Drain, force: bool) -> Option<String> {
    if !wanted.drained {
        let cluster = fleet
            .edge(wanted.target.name())
            .map(|(cluster, _)| cluster.name.as_str())
            .unwrap_or_default();
        let is_own = book.drains.get(&wanted.target).is_some();
        return (!is_own && is_held_by_other(fleet, book, &wanted.target)).then(|| {
            format!(
                "{} is drained with its cluster; undrain {cluster}, or keep it drained",
                wanted.target.name()
            )
        });
    }
    if force || book.drains.get(&wanted.target).is_some() {
        return None;
    }
    let mut drains = book.drains.clone();
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

fn notes(fleet: &Fleet, book: &Book, wanted: &Drain, changed: bool) -> Vec<String> {
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
                    .is_some_and(|(cluster, _)| book.drains.is_drained(&cluster.name, node))
            })
            .collect();
        if !others.is_empty() {
            notes.push(format!("still drained: {}", others.join(", ")));
        }
    }
    notes
}

/// Waits until every name server that reports has seen a revision, or the deadline.
async fn until_seen(
    state: &State,
    target: &DrainTarget,
    revision: u64,
    deadline: Instant,
) -> DrainView {
    let mut shutdown = state.shutdown.clone();
    loop {
        let now = about(
            &state.fleet(),
            &state.book(),
            target,
            revision,
            now_unix_ms(),
        );
        if now.complete || Instant::now() >= deadline || shutdown.is_asked() {
            return now;
        }
        tokio::select! {
            () = tokio::time::sleep_until(deadline.min(Instant::now() + LOOK_AGAIN)) => {}
            () = shutdown.asked() => {}
        }
    }
}

/// A drain with what is known of who has seen it.
fn about(
    fleet: &Fleet,
    book: &Book,
    target: &DrainTarget,
    revision: u64,
    now_ms: u64,
) -> DrainView {
    let (mut seen, mut missing, mut silent) = (Vec::new(), Vec::new(), Vec::new());
    for server in fleet
        .zone_name_servers
        .iter()
        .filter_map(|n| fleet.name_servers.get(*n))
    {
        match book.revision_of(fleet, &server.name, now_ms) {
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
    DrainView {
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
        sites_without_nodes: sites_without_nodes(fleet, &book.drains),
        notes: Vec::new(),
    }
}
