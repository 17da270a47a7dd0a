//! Purges by operators, and by clients of a site through an edge.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use http::HeaderMap;
use nearcast_fleet::change::{Change, Entry, Purge, PurgeScope};
use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::Fleet;
use nearcast_fleet::scope;
use tokio::time::{Instant, timeout_at};

use crate::api::nodes::known_node;
use crate::api::request::{
    ApiResult, App, BODY_BYTES_MAX, Body, json, speaks_for, with_node_key, with_token,
};
use crate::error::ApiError;
use crate::event::{Level, NewEvent};
use crate::fleet_state::nodes::Role;
use crate::state::PurgeWaiter;
use crate::views::{self, Scope};

/// Longest wait of a purge for its edges.
const WAIT_MS_MAX: u64 = 60_000;
/// Default wait of a purge.
const WAIT_MS: u64 = 5_000;
/// The beginning of a URL by that scheme, in canonical form.
const HTTPS: &str = "https://";
/// Remarks on one purge.
const NOTES_MAX: usize = 8;
/// Time between two checks while a request waits: an edge becomes silent without a report that would
/// wake the request.
const CHECK_EVERY: Duration = Duration::from_millis(200);
/// When more requests than this wait, each report would wake all of them. They then pause between two
/// checks.
const CROWD: usize = 64;
const CROWD_PAUSE: Duration = Duration::from_millis(20);

/// Purge.
#[utoipa::path(post, path = "/v1/purges", tag = "change", request_body = views::PurgeRequest, security(("token" = [])),
    responses((status = 200, body = views::PurgeView), (status = 401, body = views::ErrorBody), (status = 422, body = views::ErrorBody),
        (status = 507, body = views::ErrorBody)))]
pub(super) async fn purge(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<views::PurgeView> {
    with_token(&state, &headers)?;
    let request: views::PurgeRequest = json(&headers, body, BODY_BYTES_MAX)?;
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

/// Purge for a client of a site, which sent the request to an edge.
#[utoipa::path(post, path = "/v1/site-purges", tag = "nodes", request_body = views::SitePurgeRequest, security(("node_key" = [])),
    responses((status = 200, body = views::PurgeView), (status = 401, body = views::ErrorBody), (status = 403, body = views::ErrorBody), (status = 404, body = views::ErrorBody),
        (status = 422, body = views::ErrorBody), (status = 507, body = views::ErrorBody)))]
pub(super) async fn site_purge(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<views::PurgeView> {
    let fleet = state.fleet();
    let caller = with_node_key(&state, &fleet, &headers, None)?;
    let request: views::SitePurgeRequest = json(&headers, body, BODY_BYTES_MAX)?;
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

/// Appends a purge to the journal and waits for the edges. `edge` is the edge that a client of a site
/// sent it to.
async fn carry_out(
    state: &App,
    purge: Purge,
    edge: Option<String>,
    wait_ms: Option<u64>,
) -> ApiResult<views::PurgeView> {
    let wait = Duration::from_millis(wait_ms.unwrap_or(WAIT_MS).min(WAIT_MS_MAX));
    let fleet = state.fleet();
    let purge = Purge {
        scope: as_clients_ask(&fleet, purge.scope)?,
        ..purge
    };
    let notes = notes(&fleet, &purge.scope);
    let scheme_note = fleet
        .has_https_clients()
        .then(|| scheme_note(&purge.scope))
        .flatten();
    for scope in purge.scope.each() {
        state
            .metrics
            .purges
            .with_label_values(&[Scope::from(scope).name()])
            .inc();
    }
    let begun = Instant::now();
    let waiter = Arc::new(PurgeWaiter::new(state.clone()));
    let accept = {
        let (state, waiter) = (state.clone(), waiter.clone());
        move |entry: &Entry| state.purge_accepted(entry, edge.as_deref(), Some(&waiter))
    };
    let entry = state
        .journal
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
    // A request that does not wait gets no warning.
    if !answer.complete && !wait.is_zero() {
        let message = format!(
            "purge {} is not confirmed by {}",
            answer.revision,
            answer.missing.join(", ")
        );
        let new_event =
            NewEvent::new("purge_incomplete", Level::Warn, message).revision(answer.revision);
        state.events.add(now_unix_ms(), [new_event]);
    }
    answer.notes = notes;
    if answer.complete && answer.responses == 0 && !answer.at_least {
        answer.notes.extend(scheme_note);
    }
    if !waiter.waits() && !wait.is_zero() {
        answer
            .notes
            .push("too many requests wait for purges; this one did not wait".to_owned());
    }
    Ok(Json(answer))
}

/// Waits until every reporting edge has confirmed, the deadline, or shutdown.
async fn purge_outcome(
    state: &App,
    revision: u64,
    deadline: Instant,
) -> Result<views::PurgeView, ApiError> {
    let mut confirmed = state.confirmed.subscribe();
    let mut shutdown = state.shutdown.clone();
    loop {
        confirmed.borrow_and_update();
        let is_crowd;
        {
            let fleet_state = state.fleet_state();
            let edges = fleet_state.edges(&state.fleet(), now_unix_ms());
            let waits = fleet_state
                .purges
                .outstanding(revision, &edges)
                .is_some_and(|o| o.reporting > 0);
            if !waits || Instant::now() >= deadline || shutdown.is_requested() {
                let lost = || {
                    ApiError::Internal(format!(
                        "purge {revision} is in the journal but its record is no longer kept"
                    ))
                };
                return fleet_state.purges.view(revision, &edges).ok_or_else(lost);
            }
            is_crowd = fleet_state.purges.waited_count() > CROWD;
        }
        let until = deadline.min(Instant::now() + CHECK_EVERY);
        tokio::select! {
            _ = timeout_at(until, confirmed.changed()) => {}
            () = shutdown.requested() => {}
        }
        if is_crowd {
            tokio::time::sleep_until(deadline.min(Instant::now() + CROWD_PAUSE)).await;
        }
    }
}

/// The scope that covers what an operator means. Where TLS ends in front of the edges, and nothing
/// says so to them, clients ask for `https://host/path` and edges store `http://host/path`: then a
/// URL or prefix by `https` covers both schemes.
fn as_clients_ask(fleet: &Fleet, scope: PurgeScope) -> Result<PurgeScope, ApiError> {
    if fleet.has_https_clients() {
        return Ok(scope);
    }
    let widened = scope.each().iter().map(|one| match one {
        PurgeScope::Url(text) | PurgeScope::Prefix(text) if text.starts_with(HTTPS) => {
            scope::in_any_scheme(one).unwrap_or_else(|| one.clone())
        }
        _ => one.clone(),
    });
    let widened: Vec<PurgeScope> = widened.collect();
    scope::any_of(&widened).map_err(|error| ApiError::invalid(error.to_string()))
}

/// The remark on a purge by one scheme that covered nothing: what was meant may be stored by the
/// other one.
fn scheme_note(scope: &PurgeScope) -> Option<String> {
    let mut by_scheme = scope.each().iter().filter_map(|one| match one {
        PurgeScope::Url(text) | PurgeScope::Prefix(text) => {
            let (scheme, rest) = text.split_once("://")?;
            // A prefix in canonical form has a star at its end, which operators need not write.
            let rest = rest.trim_end_matches('*');
            scope::SCHEMES.contains(&scheme).then_some((scheme, rest))
        }
        _ => None,
    });
    let (scheme, rest) = by_scheme.next()?;
    Some(format!(
        "nothing was covered; with {scheme}:// only what clients asked for by {scheme} is: //{rest} covers http and https"
    ))
}

/// The scopes of an operator, checked and in canonical form.
fn purge_scope(fleet: &Fleet, scopes: Vec<Scope>) -> Result<PurgeScope, ApiError> {
    for scope in &scopes {
        if let Scope::Site(site) | Scope::SiteTag { site, .. } = scope {
            known_site(fleet, site).map_err(ApiError::invalid)?;
        }
    }
    let scopes: Vec<PurgeScope> = scopes.into_iter().map(PurgeScope::from).collect();
    scope::any_of(&scopes).map_err(|error| ApiError::invalid(error.to_string()))
}

/// The scopes of a client of a site: only URLs of its hosts, and tags within it.
fn within_site(fleet: &Fleet, site: &str, scopes: Vec<Scope>) -> Result<PurgeScope, ApiError> {
    known_site(fleet, site).map_err(ApiError::NotFound)?;
    let mut named = Vec::with_capacity(scopes.len());
    for scope in scopes {
        named.push(match scope {
            Scope::Url(text) => {
                let url =
                    scope::url(&text).map_err(|error| ApiError::invalid(error.to_string()))?;
                let host = scope::host_of(&url);
                if fleet.site_of_host(host).is_none_or(|s| s.name != site) {
                    return Err(ApiError::invalid(format!(
                        "{host} is not a host of the site {site}"
                    )));
                }
                PurgeScope::Url(url)
            }
            Scope::Tag(tag) => PurgeScope::SiteTag {
                site: site.to_owned(),
                tag,
            },
            _ => {
                return Err(ApiError::invalid(
                    "a site's clients may purge only URLs and tags",
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

/// Remarks on scopes that are valid but may be mistakes.
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
            PurgeScope::Url(url) if scope::of_any_scheme(url).unwrap_or(url).contains('*') => {
                notes.push(format!(
                    "the * in {url} is taken literally; to purge all URLs that begin so, purge by prefix"
                ));
            }
            PurgeScope::Tag(tag) if tag.contains([',', ' ']) => {
                notes.push(format!(
                    "{tag:?} is taken as one tag; to purge several, list them one by one"
                ));
            }
            _ => {}
        }
    }
    notes.dedup();
    notes.truncate(NOTES_MAX);
    notes
}
