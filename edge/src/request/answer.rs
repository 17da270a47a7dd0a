//! The answers that this node makes itself, and the fields that every answer gets.
//!
//! Follows RFC 9209 (Proxy-Status) and RFC 9211 (Cache-Status).

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, RETRY_AFTER, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use nearcast_http_rules::not_stored::NotStored;
use nearcast_http_rules::request_fields::{self, UnkeyedFields};
use nearcast_http_rules::status::{CACHE_STATUS, ForwardReason, Outcome, PROXY_STATUS, ProxyError};
use nearcast_http_rules::vary;

use super::check::Request;
use crate::client_body::ClientBody;
use crate::origin::OriginError;
use crate::peer::{REVISION, state_scheme};
use crate::stored::response::StoredResponse;
use nearcast_fleet::report::CacheStatus;

/// A response to a client, and how it came about.
pub(super) struct Answered {
    pub(super) response: Response<ClientBody>,
    pub(super) outcome: Outcome,
    /// The stored response of which it is made.
    pub(super) stored: Option<Arc<StoredResponse>>,
}

impl Answered {
    pub(super) fn new(response: Response<ClientBody>, outcome: Outcome) -> Self {
        Self {
            response,
            outcome,
            stored: None,
        }
    }

    /// An answer of this node's own to a request that asks for no content.
    pub(super) fn local(status: StatusCode, text: &'static str) -> Self {
        Self::new(plain(status, text), Outcome::local(""))
    }

    /// The error of a request that is refused, with the reason for programs and for people.
    pub(super) fn refused(
        node: &str,
        status: StatusCode,
        error: ProxyError,
        text: impl Into<Cow<'static, str>>,
    ) -> Self {
        let mut response = plain(status, "");
        *response.body_mut() = ClientBody::whole(match text.into() {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => text.into(),
        });
        let fields = response.headers_mut();
        fields.insert(PROXY_STATUS, error.proxy_status(node));
        Self::new(response, Outcome::local(""))
    }
}

/// A response with a line of text.
pub(super) fn plain(status: StatusCode, text: &'static str) -> Response<ClientBody> {
    let mut response = Response::new(ClientBody::whole(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The answer to a request whose client failed.
pub(super) fn client_failed(node: &str, error: OriginError) -> Response<ClientBody> {
    let text = match error {
        OriginError::RequestTooLarge => "the request's body is larger than this site takes\n",
        OriginError::RequestPause => "the request's body did not come in time\n",
        _ => "the request's body ended early\n",
    };
    let mut response = plain(error.status(), text);
    let fields = response.headers_mut();
    fields.insert(PROXY_STATUS, error.proxy_status(node));
    response
}

/// The answer where the origin failed and no stored response may be used instead.
pub(super) fn failed(request: &Request, error: OriginError, reason: ForwardReason) -> Answered {
    let (site, node) = (&request.site, &request.worker.edge.name);
    let outcome = Outcome::forwarded(CacheStatus::Error, reason);
    if error.is_of_client() {
        tracing::debug!(site = %site.name, url = %request.url, %error, "a request failed");
        return Answered::new(client_failed(node, error), outcome);
    }
    tracing::debug!(site = %site.name, url = %request.url, %error, "the origin failed");
    if !request.is_peer {
        warn_of_origin(request, error);
    }
    let mut response = plain(
        error.status(),
        "the origin of this content does not answer\n",
    );
    let fields = response.headers_mut();
    fields.insert(PROXY_STATUS, error.proxy_status(node));
    if let Some(seconds) = error.retry_after() {
        fields.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    Answered::new(response, outcome)
}

/// Logs that the origin fails; suppresses repeated messages.
pub(super) fn warn_of_origin(request: &Request, error: OriginError) {
    let is_known = matches!(error, OriginError::Unavailable { .. });
    let site = &request.site;
    if !is_known && site.should_warn(request.began_ms) {
        tracing::warn!(site = %site.name, origin = %request.target().address.host, %error, "an origin fails; repeated messages are suppressed");
    }
}

/// Adds the fields of this cache to an answer: `Cache-Status` for a client, the journal revision
/// for a node of the cluster.
pub(super) fn add_status_fields(request: &Request, outcome: &Outcome, fields: &mut HeaderMap) {
    if request.is_peer {
        // The node stores the origin's response, without this hop.
        fields.remove(VIA);
        fields.insert(REVISION, HeaderValue::from(request.revision));
        state_scheme(fields, request.scheme);
        return;
    }
    let field = (outcome.not_stored == Some(NotStored::RequestFields))
        .then(|| distinct_field(request, fields))
        .flatten();
    let node = &request.worker.edge.name;
    fields.append(
        CACHE_STATUS,
        outcome.cache_status_naming(node, field.as_ref()),
    );
}

/// The first field of a request for which the origin may have made the answer this client's own.
fn distinct_field(request: &Request, response: &HeaderMap) -> Option<HeaderName> {
    let vary = vary::names(response).unwrap_or_default();
    let policy = &request.site.cache;
    if let Some(name) = UnkeyedFields::of(&request.fields, policy).first_beyond(&vary) {
        return Some(name.clone());
    }
    // An error may also be due to these.
    let is_distinct =
        |name: &HeaderName| !vary.contains(name) && !request_fields::is_listed(name, policy);
    [COOKIE, AUTHORIZATION]
        .into_iter()
        .find(|name| request.fields.contains_key(name) && is_distinct(name))
}
