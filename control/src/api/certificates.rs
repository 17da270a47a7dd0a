//! Certificates that control orders: for operators without secrets, for edges sealed for each of
//! them.

use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use nearcast_fleet::node_certificates::{BOXES_MAX, EXCHANGE_FIELD, SealedCertificates, is_digest};
use nearcast_fleet::node_key::{self, Caller};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::api::request::{
    self, ApiResult, App, BODY_BYTES_MAX, Body, QueryResult, json, with_node_key, with_token,
};
use crate::certificates;
use crate::error::ApiError;
use crate::views;

/// Longest wait of a long poll.
const POLL_WAIT_MS_MAX: u64 = 30_000;

/// The certificates that control orders and renews.
#[utoipa::path(get, path = "/v1/certificates", tag = "read", responses((status = 200, body = views::CertificatesView)))]
pub(super) async fn certificates(Shared(state): Shared<App>) -> Json<views::CertificatesView> {
    Json(state.certificates.view(&state.fleet()))
}

/// Order a certificate now, whatever is due. Any of its hosts names it.
#[utoipa::path(post, path = "/v1/certificates/renew", tag = "change", request_body = views::RenewRequest, security(("token" = [])),
    responses((status = 200, body = views::RenewView), (status = 401, body = views::ErrorBody), (status = 404, body = views::ErrorBody),
        (status = 409, body = views::ErrorBody), (status = 422, body = views::ErrorBody)))]
pub(super) async fn renew(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<views::RenewView> {
    with_token(&state, &headers)?;
    let views::RenewRequest { name } = json(&headers, body, BODY_BYTES_MAX)?;
    let fleet = state.fleet();
    if fleet.acme.is_none() {
        return Err(ApiError::Conflict(
            "the fleet file has no [acme]: control orders no certificates".to_owned(),
        ));
    }
    match state.certificates.renew(&fleet, &name).await {
        Some(Some(name)) => Ok(Json(views::RenewView { name })),
        Some(None) => Err(ApiError::NotFound(format!(
            "no certificate is ordered for {:?}; `nearcast certificates` lists them",
            name.chars().take(255).collect::<String>()
        ))),
        None => Err(ApiError::Unavailable(
            "certificates cannot be ordered yet; `nearcast certificates` says why".to_owned(),
        )),
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct KeysQuery {
    /// Time to wait for another list than the one with the tag in `If-None-Match`, up to 30,000.
    #[serde(default)]
    wait_ms: u64,
    /// Digests of the certificates to send, with commas between them, at most 32. Without it the
    /// answer is the list.
    digests: Option<String>,
}

/// The certificates of an edge's cluster, for the edge by its own key alone: their list, or some of
/// them with their private keys, encrypted for this node.
#[utoipa::path(get, path = "/v1/certificate-keys", tag = "nodes", params(KeysQuery), security(("node_key" = [])),
    responses((status = 200, body = Object), (status = 304), (status = 400, body = views::ErrorBody), (status = 401, body = views::ErrorBody),
        (status = 404, body = views::ErrorBody), (status = 503, body = views::ErrorBody)))]
pub(super) async fn certificate_keys(
    Shared(state): Shared<App>,
    headers: HeaderMap,
    query: QueryResult<KeysQuery>,
) -> Result<Response, ApiError> {
    let fleet = state.fleet();
    let Caller::Node(node) = with_node_key(&state, &fleet, &headers, None)? else {
        return Err(ApiError::Unauthorized(
            "an edge gets these by its own key alone, which `nearcast key NODE` prints; this is the fleet's key",
        ));
    };
    let KeysQuery { wait_ms, digests } = request::query(query)?;
    let Some(cluster) = fleet
        .clusters
        .iter()
        .position(|cluster| cluster.nodes.iter().any(|n| n.name == node))
    else {
        return Err(ApiError::NotFound(format!(
            "{node} is no edge: only edges show certificates to clients"
        )));
    };
    let mut in_force = state.certificates.watch();
    if let Some(digests) = digests {
        let digests: Vec<&str> = digests.split(',').collect();
        if digests.len() > BOXES_MAX || !digests.iter().all(|digest| is_digest(digest)) {
            return Err(ApiError::BadRequest(format!(
                "digests are up to {BOXES_MAX} of the list's, with commas between them"
            )));
        }
        let held = in_force.borrow().clone();
        let contents = certificates::contents(&held, &fleet, cluster, &digests);
        let exchange_key = headers
            .get(EXCHANGE_FIELD)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let own_key = node_key::own_of(&fleet, &node).ok_or_else(|| {
            ApiError::Unavailable("control has no key to derive that of the node from".to_owned())
        })?;
        let sealed = SealedCertificates::seal(&contents, exchange_key, &own_key)
            .map_err(|error| ApiError::BadRequest(format!("{EXCHANGE_FIELD}: {error}")))?;
        return Ok(Json(sealed).into_response());
    }

    let deadline = Instant::now() + Duration::from_millis(wait_ms.min(POLL_WAIT_MS_MAX));
    let mut shutdown = state.shutdown.clone();
    loop {
        let held = in_force.borrow_and_update().clone();
        let (list, tag) = certificates::list(&held, &fleet, cluster);
        let is_known = headers
            .get(header::IF_NONE_MATCH)
            .is_some_and(|known| known.as_bytes() == tag.as_bytes());
        if !is_known {
            return Ok(([(header::ETAG, tag)], Json(list)).into_response());
        }
        // Another fleet file may assign sites to other clusters: the next request finds that.
        let is_changed = tokio::select! {
            changed = timeout_at(deadline, in_force.changed()) => matches!(changed, Ok(Ok(()))),
            () = shutdown.requested() => false,
        };
        if !is_changed {
            return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
        }
    }
}
