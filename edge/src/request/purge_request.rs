//! The method `PURGE`: from a client that may purge to control, and control's answer to the client.
//!
//! A node never purges alone: without control's agreement nothing is purged. The origin gets no part
//! of it. The site's [`PurgePolicy`] names the clients that may purge; their purges are limited to
//! that site, here by the host and in control by its own check.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use nearcast_fleet::admin;
use nearcast_fleet::client::{Client, ClientError};
use nearcast_fleet::config::{Fleet, PurgePolicy, Secret};
use nearcast_fleet::scope;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

use crate::client_body::ClientBody;
use nearcast_http_rules::fields;
use nearcast_http_rules::status::{PROXY_STATUS, ProxyError};

/// Requests that wait for control at a time.
const IN_FLIGHT_MAX: usize = 64;
/// How long control waits for edges to confirm.
const CONFIRMED_MAX: Duration = Duration::from_secs(1);
/// How long control may take in all.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Attempts: a kept connection may have been closed just when it was used, and a repeated purge does
/// no harm.
const ATTEMPTS: u32 = 2;
/// With the value `soft`, covered responses are validated and not removed.
const SOFT: HeaderName = HeaderName::from_static("nearcast-purge");
/// The same, with the value `1`, as programs for another network write it.
const FASTLY_SOFT: HeaderName = HeaderName::from_static("fastly-soft-purge");
/// The served methods, for a 405.
const METHODS: HeaderValue =
    HeaderValue::from_static("GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE");

/// Whether a request is to purge.
pub(crate) fn is_purge(method: &Method) -> bool {
    method.as_str() == "PURGE"
}

/// Sends purges to control, whose address changes with the fleet.
#[derive(Debug)]
pub(crate) struct PurgeRelay {
    client: Client,
    permits: Arc<Semaphore>,
}

/// Where control is, and the key that a node shows there.
#[derive(Debug, Clone)]
pub(crate) struct ControlAddress {
    pub(crate) url: String,
    pub(crate) node_key: Secret,
}

/// A `PURGE` of a client.
#[derive(Debug)]
pub(crate) struct PurgeRequest<'a> {
    pub(crate) node: &'a str,
    pub(crate) site: &'a str,
    /// The request's cache key.
    pub(crate) url: &'a str,
    pub(crate) client: IpAddr,
    pub(crate) fields: &'a HeaderMap,
}

/// Why nothing was purged.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refused {
    status: StatusCode,
    error: ProxyError,
    code: &'static str,
    message: String,
}

impl Refused {
    fn new(
        status: StatusCode,
        error: ProxyError,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            error,
            code,
            message: message.into(),
        }
    }

    fn unavailable(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ProxyError::DestinationUnavailable,
            "unavailable",
            message,
        )
    }
}

impl PurgeRelay {
    /// A relay that verifies control as the fleet file in force says.
    pub(crate) fn new(fleet: watch::Receiver<Arc<Fleet>>) -> Self {
        Self {
            client: Client::following(fleet),
            permits: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
        }
    }

    /// Answers a `PURGE`. Once control is purge, the purge goes on also when the client does not
    /// wait.
    pub(crate) async fn answer(
        &self,
        policy: &PurgePolicy,
        control: Option<&ControlAddress>,
        purge: &PurgeRequest<'_>,
    ) -> Response<ClientBody> {
        let outcome = match prepare(policy, control, purge) {
            Ok((url, request)) => self.ask(url, request).await,
            Err(refused) => Err(refused),
        };
        match outcome {
            Ok(answer) => purged(&answer),
            Err(refused) => {
                tracing::debug!(site = purge.site, url = purge.url, client = %purge.client, reason = refused.message, "a PURGE is refused");
                refusal(&refused, purge.node)
            }
        }
    }

    async fn ask(&self, url: String, request: Request<Bytes>) -> Result<Value, Refused> {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            let message = format!(
                "{IN_FLIGHT_MAX} purges of this node are under way; send it again in a second"
            );
            return Err(Refused::new(
                StatusCode::SERVICE_UNAVAILABLE,
                ProxyError::ConnectionLimitReached,
                "too_busy",
                message,
            ));
        };
        let client = self.client.clone();
        let asking = tokio::spawn(async move {
            let _permit = permit;
            let mut attempt = 1;
            loop {
                match client.send(request.clone(), ANSWER_MAX).await {
                    Err(ClientError::Exchange { .. }) if attempt < ATTEMPTS => attempt += 1,
                    other => return other,
                }
            }
        });
        let response = match asking.await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                tracing::warn!(%url, %error, "control does not answer: a PURGE came to nothing");
                return Err(Refused::unavailable(
                    "control does not answer: it is not known to be purged; send it again",
                ));
            }
            Err(_) => return Err(Refused::unavailable("this node ends; send it again")),
        };
        read_answer(&response)
    }
}

/// The request to control, for a client that may purge.
fn prepare(
    policy: &PurgePolicy,
    control: Option<&ControlAddress>,
    purge: &PurgeRequest<'_>,
) -> Result<(String, Request<Bytes>), Refused> {
    allow(policy, purge.client, purge.fields)?;
    let scopes = scopes(purge)?;
    let Some(control) = control else {
        return Err(Refused::unavailable(
            "the fleet has no control role, which purges need",
        ));
    };
    let is_soft = purge
        .fields
        .get(SOFT)
        .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"soft"))
        || purge.fields.get(FASTLY_SOFT).is_some_and(|v| v == "1");
    let body = json!({
        "node": purge.node, "site": purge.site, "scopes": scopes, "soft": is_soft, "wait_ms": CONFIRMED_MAX.as_millis() as u64
    });
    let url = format!("{}/v1/site-purges", control.url);
    let request = Request::builder()
        .method(Method::POST)
        .uri(&url)
        .header(CONTENT_TYPE, "application/json")
        .header(AUTHORIZATION, format!("Bearer {}", control.node_key.0))
        .body(Bytes::from(body.to_string()));
    let request =
        request.map_err(|_| Refused::unavailable("control.url of the fleet file is no URL"))?;
    Ok((url, request))
}

/// Whether a client may purge.
fn allow(policy: &PurgePolicy, client: IpAddr, fields: &HeaderMap) -> Result<(), Refused> {
    if policy.is_off() {
        let message =
            "no client may purge this site by PURGE: its purge_from and purge_token are not set";
        return Err(Refused::new(
            StatusCode::METHOD_NOT_ALLOWED,
            ProxyError::HttpRequestDenied,
            "method_not_allowed",
            message,
        ));
    }
    let client = client.to_canonical();
    if policy.from.iter().any(|prefix| prefix.contains(&client)) {
        return Ok(());
    }
    let mut shown = Request::new(());
    for value in fields.get_all(AUTHORIZATION) {
        shown.headers_mut().append(AUTHORIZATION, value.clone());
    }
    if policy
        .token
        .as_ref()
        .is_some_and(|token| admin::is_bearer(&shown, &token.0))
    {
        return Ok(());
    }
    let message = "this client may not purge: its address is not in purge_from, and it shows no right token (Authorization: Bearer)";
    Err(Refused::new(
        StatusCode::FORBIDDEN,
        ProxyError::HttpRequestDenied,
        "forbidden",
        message,
    ))
}

/// The scopes of a purge: the tags in the request's fields, else its URL.
fn scopes(purge: &PurgeRequest<'_>) -> Result<Vec<Value>, Refused> {
    const TAG_LISTS: [HeaderName; 3] = [
        HeaderName::from_static("cache-tag"),
        HeaderName::from_static("surrogate-key"),
        HeaderName::from_static("xkey"),
    ];
    let bad = |message: String| {
        Refused::new(
            StatusCode::BAD_REQUEST,
            ProxyError::HttpRequestError,
            "bad_request",
            message,
        )
    };
    if !TAG_LISTS.iter().any(|name| purge.fields.contains_key(name)) {
        return Ok(vec![
            json!({"by": "url", "value": scope::key_in_any_scheme(purge.url)}),
        ]);
    }
    let [commas, blanks @ ..] = TAG_LISTS;
    let mut tags: Vec<&[u8]> = fields::list(purge.fields, commas)
        .map(fields::unquoted)
        .collect();
    for name in blanks {
        let values = purge.fields.get_all(name).into_iter();
        tags.extend(
            values.flat_map(|value| value.as_bytes().split(|b| matches!(b, b' ' | b'\t' | b','))),
        );
    }
    tags.retain(|tag| !tag.trim_ascii().is_empty());
    if tags.is_empty() {
        return Err(bad(
            "the field of tags names none; leave it out to purge the URL".to_owned(),
        ));
    }
    if tags.len() > scope::SCOPES_MAX {
        return Err(bad(format!(
            "a PURGE names at most {} tags, this one {}: send several",
            scope::SCOPES_MAX,
            tags.len()
        )));
    }
    let checked = tags.into_iter().map(|tag| {
        let text = std::str::from_utf8(tag).map_err(|_| bad("a tag is no UTF-8".to_owned()))?;
        let tag = scope::tag(text).map_err(|error| bad(error.to_string()))?;
        Ok(json!({"by": "tag", "value": tag}))
    });
    checked.collect()
}

/// Reads control's answer.
fn read_answer(response: &Response<Bytes>) -> Result<Value, Refused> {
    let value: Value = serde_json::from_slice(response.body()).unwrap_or_default();
    let said = value["error"]["message"]
        .as_str()
        .unwrap_or("no reason given")
        .to_owned();
    let status = response.status();
    match status {
        StatusCode::OK if value["revision"].is_u64() => Ok(value),
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => Err(Refused::new(
            status,
            ProxyError::HttpRequestError,
            "invalid",
            said,
        )),
        StatusCode::INSUFFICIENT_STORAGE => Err(Refused::new(
            status,
            ProxyError::DestinationUnavailable,
            "storage",
            said,
        )),
        // A wrong node key, a node or site that control does not know (yet), or an earlier version:
        // the client can repair none of them.
        _ => {
            tracing::warn!(
                status = status.as_u16(),
                reason = said,
                "control refuses a PURGE of this node"
            );
            Err(Refused::unavailable(format!(
                "control did not take it ({}): {said}",
                status.as_u16()
            )))
        }
    }
}

/// 200 when every edge that reports has confirmed, else 202.
fn purged(answer: &Value) -> Response<ClientBody> {
    let member = |name: &str| answer[name].clone();
    let waits = answer["missing"].as_array().map_or(0, Vec::len)
        > answer["silent"].as_array().map_or(0, Vec::len);
    let mut body = json!({
        "revision": member("revision"), "complete": member("complete"), "responses": member("responses"), "missing": member("missing")
    });
    if answer["at_least"] == true {
        body["at_least"] = Value::Bool(true);
    }
    respond(
        if waits {
            StatusCode::ACCEPTED
        } else {
            StatusCode::OK
        },
        &body,
    )
}

fn refusal(refused: &Refused, node: &str) -> Response<ClientBody> {
    let mut response = respond(
        refused.status,
        &json!({"error": {"code": refused.code, "message": refused.message}}),
    );
    let fields = response.headers_mut();
    fields.insert(PROXY_STATUS, refused.error.proxy_status(node));
    if refused.status == StatusCode::METHOD_NOT_ALLOWED {
        fields.insert(ALLOW, METHODS);
    }
    if refused.status == StatusCode::SERVICE_UNAVAILABLE {
        fields.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn respond(status: StatusCode, body: &Value) -> Response<ClientBody> {
    let mut response = Response::new(ClientBody::whole(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearcast_http_rules::testing::map;

    #[test]
    fn only_those_whom_the_site_names_may_purge() {
        let token = || Some(Secret("a token of this site".into()));
        let from = |prefixes: &[&str]| {
            prefixes
                .iter()
                .map(|p| p.parse().expect("a prefix"))
                .collect::<Vec<_>>()
        };
        let off = PurgePolicy::default();
        let by_address = PurgePolicy {
            from: from(&["192.0.2.0/24", "2001:db8::/32"]),
            token: None,
        };
        let by_token = PurgePolicy {
            from: vec![],
            token: token(),
        };
        let both = PurgePolicy {
            from: from(&["192.0.2.7/32"]),
            token: token(),
        };
        let right = "authorization: Bearer a token of this site";
        let table: [(&PurgePolicy, &str, &[&str], u16); 16] = [
            (&off, "127.0.0.1", &[], 405),
            (&off, "127.0.0.1", &[right], 405),
            (&by_address, "192.0.2.9", &[], 200),
            (&by_address, "::ffff:192.0.2.9", &[], 200),
            (&by_address, "2001:db8::1", &[], 200),
            (&by_address, "192.0.3.9", &[], 403),
            (&by_address, "192.0.3.9", &[right], 403),
            (&by_address, "192.0.3.9", &["authorization: Bearer "], 403),
            (&by_token, "192.0.2.9", &[], 403),
            (&by_token, "192.0.2.9", &[right], 200),
            (
                &by_token,
                "192.0.2.9",
                &["authorization: Bearer a token of this sitE"],
                403,
            ),
            (
                &by_token,
                "192.0.2.9",
                &["authorization: Bearer a token of this site and more"],
                403,
            ),
            (
                &by_token,
                "192.0.2.9",
                &["authorization: Basic a token of this site"],
                403,
            ),
            (&by_token, "192.0.2.9", &[right, right], 403),
            (&both, "192.0.2.7", &[], 200),
            (&both, "192.0.2.8", &[right], 200),
        ];
        for (policy, client, fields, expected) in table {
            let found = allow(policy, client.parse().expect("an address"), &map(fields))
                .map_or_else(|r| r.status.as_u16(), |()| 200);
            assert_eq!(found, expected, "{policy:?} {client} {fields:?}");
        }
    }

    #[test]
    fn a_request_names_its_url_or_its_tags() {
        let url = |v: &str| json!({"by": "url", "value": v});
        let tag = |v: &str| json!({"by": "tag", "value": v});
        let many = (0..=scope::SCOPES_MAX)
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
            .join(" ");
        type Row<'a> = (&'a [&'a str], Result<Vec<Value>, &'a str>);
        let table: [Row<'_>; 9] = [
            (&[], Ok(vec![url("*://a.test/caf%C3%A9?x=100%25")])),
            (
                &["cache-tag: a, \"b c\"", "cache-tag: é"],
                Ok(vec![tag("a"), tag("b c"), tag("é")]),
            ),
            (&["surrogate-key: a  b"], Ok(vec![tag("a"), tag("b")])),
            (
                &["xkey: a,b", "cache-tag: c"],
                Ok(vec![tag("c"), tag("a"), tag("b")]),
            ),
            (&["cache-tag:"], Err("names none")),
            (&["surrogate-key: "], Err("names none")),
            (&[&format!("xkey: {many}")], Err("at most 256 tags")),
            (
                &[&format!("xkey: {}", "x".repeat(1025))],
                Err("at most 1024 bytes"),
            ),
            (&["cache-tag: a\tb"], Err("control character")),
        ];
        for (fields, expected) in table {
            let fields = map(fields);
            let purge = PurgeRequest {
                node: "ams-1",
                site: "www",
                url: "http://a.test/caf%c3%a9?x=100%",
                client: IpAddr::from([192, 0, 2, 1]),
                fields: &fields,
            };
            match (scopes(&purge), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{fields:?}"),
                (Err(refused), Err(words)) => assert!(
                    refused.status == 400 && refused.message.contains(words),
                    "{fields:?}: {refused:?}"
                ),
                (found, expected) => panic!("{fields:?}: {found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn what_control_says_is_passed_on() {
        let error =
            |code: &str| format!("{{\"error\":{{\"code\":\"{code}\",\"message\":\"why\"}}}}");
        let table = [
            (200, r#"{"revision":7,"complete":true,"responses":2,"missing":[],"silent":[]}"#.to_owned(), 200, "\"revision\":7"),
            (200, r#"{"revision":7,"complete":true,"responses":2,"at_least":true,"missing":[],"silent":[]}"#.to_owned(), 200, "{\"at_least\":true,"),
            (200, r#"{"revision":7,"complete":false,"responses":2,"missing":["a"],"silent":["a"]}"#.to_owned(), 200, "\"missing\":[\"a\"]"),
            (
                200,
                r#"{"revision":7,"complete":false,"responses":2,"missing":["a","b"],"silent":["a"]}"#.to_owned(),
                202,
                "\"complete\":false",
            ),
            (200, "<html>".to_owned(), 503, "no reason"),
            (401, error("unauthorized"), 503, "(401): why"),
            (404, error("not_found"), 503, "(404): why"),
            (422, error("invalid"), 422, "\"message\":\"why\""),
            (503, error("too_busy"), 503, "why"),
            (507, error("storage"), 507, "why"),
        ];
        for (status, body, expected, words) in table {
            let response = Response::builder()
                .status(status)
                .body(Bytes::from(body))
                .expect("a response");
            let answer = read_answer(&response)
                .map_or_else(|refused| refusal(&refused, "ams-1"), |value| purged(&value));
            assert_eq!(answer.status(), expected, "{status}");
            assert_eq!(
                answer.headers().contains_key(PROXY_STATUS),
                expected >= 400,
                "{status}"
            );
            let text = format!(
                "{:?}",
                read_answer(&response)
                    .map(|v| v.to_string())
                    .map_err(|r| format!("\"message\":\"{}\"", r.message))
            );
            assert!(text.replace('\\', "").contains(words), "{status}: {text}");
        }
    }
}
