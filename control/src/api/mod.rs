//! The API: its paths, in the order of `API.md`, and their OpenAPI document. A handler checks the
//! caller, then the request, and then answers.

mod certificates;
mod change;
mod compress;
mod console;
mod drains;
mod gate;
mod nodes;
mod purge;
mod read;
mod report_bounds;
mod request;
mod steer;
mod traces;

use axum::extract::DefaultBodyLimit;
use axum::response::Response;
use axum::routing::{MethodRouter, get, post, put};
use axum::{Json, Router};
use http::{Method, Uri, header};
use utoipa::OpenApi;

use crate::api::request::{App, BODY_BYTES_MAX, REPORT_BYTES_MAX};
use crate::error::ApiError;

/// The OpenAPI document.
#[derive(OpenApi)]
#[openapi(
    info(title = "Nearcast control", description = "Status, plans, purges, pushes and the fleet file of a Nearcast fleet."),
    paths(
        read::status,
        read::fleet_in_force,
        read::series,
        read::events,
        read::event_log,
        read::explain,
        steer::steer,
        read::plan,
        read::pushes,
        read::purges,
        read::one_purge,
        change::push,
        change::fleet_file,
        change::put_fleet_file,
        purge::purge,
        purge::site_purge,
        drains::drains,
        drains::drain,
        certificates::certificates,
        certificates::renew,
        nodes::journal,
        nodes::ticket_keys,
        certificates::certificate_keys,
        nodes::edge_report,
        nodes::dns_report,
        nodes::origin_report,
        traces::trace,
        traces::questions,
        traces::answers,
        openapi
    ),
    modifiers(&Bearers)
)]
struct Document;

/// The two kinds of bearer tokens.
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
        (Method::GET, "/v1/status", get(read::status)),
        (Method::GET, "/v1/fleet", get(read::fleet_in_force)),
        (Method::GET, "/v1/series", get(read::series)),
        (Method::GET, "/v1/events", get(read::events)),
        (Method::GET, "/v1/events/log", get(read::event_log)),
        (Method::GET, "/v1/explain", get(read::explain)),
        (Method::GET, "/v1/steer", get(steer::steer)),
        (Method::GET, "/v1/plan", get(read::plan)),
        (Method::GET, "/v1/pushes", get(read::pushes)),
        (Method::POST, "/v1/pushes", post(change::push)),
        (Method::GET, "/v1/purges", get(read::purges)),
        (Method::POST, "/v1/purges", post(purge::purge)),
        (Method::GET, "/v1/purges/{revision}", get(read::one_purge)),
        (Method::GET, "/v1/drains", get(drains::drains)),
        (Method::POST, "/v1/drains", post(drains::drain)),
        (
            Method::GET,
            "/v1/certificates",
            get(certificates::certificates),
        ),
        (
            Method::POST,
            "/v1/certificates/renew",
            post(certificates::renew),
        ),
        (Method::POST, "/v1/site-purges", post(purge::site_purge)),
        (Method::GET, "/v1/fleet-file", get(change::fleet_file)),
        (Method::PUT, "/v1/fleet-file", put(change::put_fleet_file)),
        (Method::GET, "/v1/traces/{id}", get(traces::trace)),
        (Method::GET, "/v1/journal", get(nodes::journal)),
        (Method::GET, "/v1/trace-questions", get(traces::questions)),
        (Method::POST, "/v1/trace-answers", post(traces::answers)),
        (Method::GET, "/v1/ticket-keys", get(nodes::ticket_keys)),
        (
            Method::GET,
            "/v1/certificate-keys",
            get(certificates::certificate_keys),
        ),
        (
            Method::POST,
            "/v1/reports/edge",
            post(nodes::edge_report).layer(reports()),
        ),
        (
            Method::POST,
            "/v1/reports/dns",
            post(nodes::dns_report).layer(reports()),
        ),
        (
            Method::POST,
            "/v1/reports/origin",
            post(nodes::origin_report).layer(reports()),
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
            gate::pass,
        ))
        .layer(axum::middleware::from_fn(compress::pass))
        .layer(axum::middleware::map_response(secure))
        .with_state(state)
}

/// Adds the security fields of every response.
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

/// Any path without a route: a file of the console, or an error.
async fn other_path(method: Method, uri: Uri) -> Result<Response, ApiError> {
    let path = uri.path();
    if path == "/v1" || path.starts_with("/v1/") {
        return Err(ApiError::NotFound(format!(
            "the API has no {path}; /v1/openapi.json lists what it has"
        )));
    }
    if !matches!(method, Method::GET | Method::HEAD) {
        return Err(ApiError::MethodNotAllowed(format!("{path} is read-only")));
    }
    console::file(path)
}

async fn other_method(method: Method, uri: Uri) -> ApiError {
    ApiError::MethodNotAllowed(format!("{} has no method {method}", uri.path()))
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
        let explained = include_str!("../../API.md");
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
                let is_guarded = [
                    "/v1/fleet-file",
                    "/v1/journal",
                    "/v1/ticket-keys",
                    "/v1/certificate-keys",
                    "/v1/traces/{id}",
                    "/v1/trace-questions",
                ]
                .contains(&path.as_str());
                let is_read = method == "get" && !is_guarded;
                assert_eq!(is_open, is_read, "{method} {path}");
            }
        }
    }
}
