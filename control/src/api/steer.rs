//! `GET /v1/steer`: the edges that DNS gives to a client, for pages of the web origins in
//! `steering_origins`. A browser cannot ask DNS for addresses, so a player that wants to change to
//! another edge asks here.
//!
//! A name server makes the decision, by the code of a query, as for `/v1/explain`. This file adds the
//! ports and names of the nodes from the fleet file, CORS (Fetch Standard, section 3.2), and limits: the
//! path needs no credential and is called by everybody who watches.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::{HeaderMap, HeaderValue, header};
use nearcast_fleet::config::{Fleet, Node};
use serde::{Deserialize, Serialize};

use crate::admission::Slot;
use crate::api::read::ask_name_servers;
use crate::api::request::{self, App, QueryResult};
use crate::error::ApiError;
use crate::state::State;
use crate::views;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SteerQuery {
    /// A host of a site, or a site's steered name.
    host: String,
    /// The client's address; that of the caller by default.
    #[param(value_type = Option<String>)]
    client: Option<IpAddr>,
}

/// What DNS would answer.
#[derive(Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub(super) struct Steered {
    /// As asked.
    host: String,
    /// The address that was steered.
    client: String,
    /// The site of the host.
    site: String,
    /// Its steering policy.
    policy: String,
    /// The cluster.
    cluster: String,
    /// Its name for people.
    label: String,
    /// Why this cluster.
    reason: String,
    /// Seconds for which the answer is valid.
    ttl: u64,
    /// The edges, in the order of the answer.
    edges: Vec<SteeredEdge>,
}

/// An edge of the answer.
#[derive(Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub(super) struct SteeredEdge {
    /// Node name.
    node: String,
    /// Address.
    address: String,
    /// Base URL of its HTTP listener; none without one.
    http: Option<String>,
    /// Base URL of its HTTPS listener; none without one.
    https: Option<String>,
}

/// The edges that DNS gives to a client now.
#[utoipa::path(get, path = "/v1/steer", tag = "read", params(SteerQuery),
    responses((status = 200, body = Steered), (status = 400, body = views::ErrorBody), (status = 403, body = views::ErrorBody),
        (status = 404, body = views::ErrorBody), (status = 429, body = views::ErrorBody), (status = 503, body = views::ErrorBody)))]
pub(super) async fn steer(
    Shared(state): Shared<App>,
    slot: Option<Extension<Arc<Slot>>>,
    headers: HeaderMap,
    query: QueryResult<SteerQuery>,
) -> Response {
    let fleet = state.fleet();
    let listed = fleet
        .control
        .as_ref()
        .map_or(&[][..], |control| &control.steering_origins[..]);
    let origin = headers.get(header::ORIGIN);
    let permitted = permitted(listed, origin);
    let caller = slot.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |slot| slot.address());

    let answered = match &permitted {
        Ok(()) => answer(&state, &fleet, caller, query).await,
        Err(refused) => Err(ApiError::from(refused)),
    };
    let mut response = match answered {
        Ok(steered) => Json(steered).into_response(),
        Err(error) => error.into_response(),
    };

    // Errors, too: otherwise the page sees a network failure where there is a reason.
    let fields = response.headers_mut();
    fields.insert(header::VARY, HeaderValue::from_static("Origin"));
    if let (Ok(()), Some(origin)) = (permitted, origin) {
        fields.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        fields.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("Retry-After"),
        );
    }
    response
}

/// Why a caller gets no answer.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Off,
    ForeignOrigin(String),
}

impl From<&Refused> for ApiError {
    fn from(refused: &Refused) -> Self {
        match refused {
            Refused::Off => Self::NotFound(
                "this fleet answers no pages; steering_origins of [control] lists those that may ask".to_owned(),
            ),
            Refused::ForeignOrigin(origin) => {
                Self::Forbidden(format!("{origin} is not in steering_origins of [control]"))
            }
        }
    }
}

/// Whether a page of this web origin may ask. Programs, which send no `Origin`, may: the answer holds
/// nothing that DNS does not give to everybody.
fn permitted(listed: &[String], origin: Option<&HeaderValue>) -> Result<(), Refused> {
    if listed.is_empty() {
        return Err(Refused::Off);
    }
    let Some(origin) = origin else { return Ok(()) };
    match origin.to_str() {
        Ok(origin) if listed.iter().any(|known| known == origin) => Ok(()),
        _ => {
            let shown = String::from_utf8_lossy(origin.as_bytes());
            Err(Refused::ForeignOrigin(shown.chars().take(200).collect()))
        }
    }
}

async fn answer(
    state: &State,
    fleet: &Fleet,
    caller: IpAddr,
    query: QueryResult<SteerQuery>,
) -> Result<Steered, ApiError> {
    if !state.asking.admit(caller, Instant::now()) {
        return Err(ApiError::TooManyRequests(
            "this address asks too often; ask again when the TTL of the answer has passed",
        ));
    }
    let SteerQuery { host, client } = request::query(query)?;
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let is_steered = |site: &nearcast_fleet::config::Site| {
        site.hosts
            .iter()
            .any(|known| *known == host && known != "*")
            || fleet.steered_name(site) == host
    };
    if !fleet.sites.iter().any(is_steered) {
        return Err(ApiError::NotFound(
            "no site of this fleet has that host".to_owned(),
        ));
    }

    let client = client.unwrap_or(caller).to_canonical();
    let _turn = (state.asking.questions.try_acquire())
        .map_err(|_| ApiError::TooBusy("too many pages ask at this moment"))?;
    let mut explained = serde_json::Value::Null;
    for family in ["A", "AAAA"] {
        let query = format!("host={host}&client={client}&type={family}");
        explained = ask_name_servers(state, &query).await?;
        if !addresses(&explained).is_empty() {
            break;
        }
    }
    steered(fleet, &host, client, &explained).ok_or_else(|| {
        ApiError::NotFound("DNS gives no address of an edge for that host".to_owned())
    })
}

/// The addresses that an explanation chooses.
fn addresses(explained: &serde_json::Value) -> Vec<IpAddr> {
    let list = explained["chosen"]["addresses"].as_array();
    let texts = list.into_iter().flatten().filter_map(|a| a.as_str());
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// An explanation in the form of this path; `None` when it chooses nothing.
fn steered(
    fleet: &Fleet,
    host: &str,
    client: IpAddr,
    explained: &serde_json::Value,
) -> Option<Steered> {
    let nodes = || fleet.clusters.iter().flat_map(|cluster| &cluster.nodes);
    let edges: Vec<SteeredEdge> = addresses(explained)
        .into_iter()
        .filter_map(|address| {
            let node = nodes().find(|node| node.addresses.contains(&address))?;
            Some(edge(node, address))
        })
        .collect();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    (!edges.is_empty()).then(|| Steered {
        host: host.to_owned(),
        client: client.to_string(),
        site: text(&explained["site"]),
        policy: text(&explained["policy"]),
        cluster: text(&explained["chosen"]["cluster"]),
        label: text(&explained["chosen"]["label"]),
        reason: text(&explained["reason"]),
        ttl: explained["ttl"].as_u64().unwrap_or(0),
        edges,
    })
}

fn edge(node: &Node, address: IpAddr) -> SteeredEdge {
    // The address of clients may be translated to that of the listener; the port is the same.
    let url = |scheme: &str, listeners: &[SocketAddr]| {
        let of_family = |l: &&SocketAddr| l.is_ipv4() == address.is_ipv4();
        let listener = (listeners.iter().find(|l| l.ip() == address))
            .or_else(|| listeners.iter().find(of_family))
            .or(listeners.first())?;
        Some(format!(
            "{scheme}://{}",
            SocketAddr::new(address, listener.port())
        ))
    };
    SteeredEdge {
        node: node.name.clone(),
        address: address.to_string(),
        http: url("http", &node.listen),
        https: url("https", &node.listen_tls),
    }
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::testing;
    use serde_json::json;

    use super::*;

    #[test]
    fn pages_of_listed_origins_and_programs_may_ask() {
        let listed = ["https://www.demo.test".to_owned()];
        let foreign = |origin: &str| Err(Refused::ForeignOrigin(origin.to_owned()));
        for (listed, origin, expected) in [
            (&[][..], None, Err(Refused::Off)),
            (&[][..], Some("https://www.demo.test"), Err(Refused::Off)),
            (&listed[..], None, Ok(())),
            (&listed[..], Some("https://www.demo.test"), Ok(())),
            (
                &listed[..],
                Some("http://www.demo.test"),
                foreign("http://www.demo.test"),
            ),
            (
                &listed[..],
                Some("https://www.demo.test.evil.example"),
                foreign("https://www.demo.test.evil.example"),
            ),
            (&listed[..], Some("null"), foreign("null")),
        ] {
            let field = origin.map(|o| HeaderValue::from_str(o).expect("visible"));
            assert_eq!(permitted(listed, field.as_ref()), expected, "{origin:?}");
        }
    }

    #[test]
    fn an_explanation_gets_the_ports_of_its_nodes() {
        let mut node = testing::node("ams-1", &["192.0.2.1", "2001:db8::1"]);
        node.listen = vec!["0.0.0.0:80".parse().unwrap(), "[::]:8080".parse().unwrap()];
        node.listen_tls = vec!["192.0.2.1:443".parse().unwrap()];
        let mut plain = testing::node("ams-2", &["192.0.2.2"]);
        plain.listen = vec!["0.0.0.0:80".parse().unwrap()];
        plain.listen_tls = Vec::new();
        let cluster = testing::cluster("ams", 52.0, 5.0, vec![node, plain]);
        let fleet = testing::fleet_of(vec![cluster], vec![testing::site("www", &[], &[0])]);
        let explained = json!({
            "site": "www", "policy": "geo", "reason": "nearest", "ttl": 20,
            "chosen": {"cluster": "ams", "label": "Amsterdam", "addresses": ["192.0.2.2", "2001:db8::1", "192.0.2.1", "192.0.2.99"]},
        });
        let client = "203.0.113.9".parse().unwrap();
        let found = steered(&fleet, "www.demo.test", client, &explained).expect("edges");
        assert_eq!(
            (found.label.as_str(), found.reason.as_str(), found.ttl),
            ("Amsterdam", "nearest", 20)
        );
        let urls: Vec<_> = (found.edges.iter())
            .map(|e| (e.node.as_str(), e.http.as_deref(), e.https.as_deref()))
            .collect();
        assert_eq!(
            urls,
            [
                ("ams-2", Some("http://192.0.2.2:80"), None),
                (
                    "ams-1",
                    Some("http://[2001:db8::1]:8080"),
                    Some("https://[2001:db8::1]:443")
                ),
                (
                    "ams-1",
                    Some("http://192.0.2.1:80"),
                    Some("https://192.0.2.1:443")
                ),
            ]
        );
        assert_eq!(steered(&fleet, "mail.demo.test", client, &json!({})), None);
    }
}
