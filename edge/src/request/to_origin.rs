//! The requests that the origin gets for a client's.

use std::sync::Arc;

use http::HeaderMap;
use http::header::IF_RANGE;
use nearcast_http_rules::forward::{self, ClientFields, Forwarder};
use nearcast_http_rules::{conditional, range};

use super::check::Request;
use crate::forward::{ForwardRequest, OriginRequest, Requester, WantedSlices};
use crate::peer::{PEER, SCHEME};
use crate::request_id::X_REQUEST_ID;
use crate::stored::response::StoredResponse;
use nearcast_store::Pool;

/// The forward request for what a client asks, or for the validation of a stored response.
pub(super) fn forward_request(
    request: &Request,
    requester: Requester,
    stale: Option<&Arc<StoredResponse>>,
) -> ForwardRequest {
    ForwardRequest {
        origin: OriginRequest {
            interim: request.interim.clone(),
            ..origin_request(request, ClientFields::Storable)
        },
        url: request.url.clone(),
        hash: request.hash,
        client: request.fields.clone(),
        keyed: request.keyed.clone(),
        requester,
        has_stale: stale.is_some(),
        stale: stale
            .filter(|stale| conditional::has_validator(&stale.fields()))
            .cloned(),
        range: wanted_slices(request),
        pool: Pool::Pull,
    }
}

/// The slices by which a client's ranges are fetched; `None` for the whole.
pub(super) fn wanted_slices(request: &Request) -> Option<WantedSlices> {
    let specs = range::requested(&request.method, &request.fields)?;
    WantedSlices::of(&specs, request.fields.contains_key(IF_RANGE))
}

/// How the site's origin is asked for the request's URL.
pub(super) fn origin_request(request: &Request, which: ClientFields<'_>) -> OriginRequest {
    OriginRequest {
        worker: request.worker.clone(),
        site: request.site.clone(),
        target: request.target().clone(),
        path: request.path.clone(),
        fields: Arc::new(origin_fields(request, &request.fields, which)),
        is_peer: false,
        // Other nodes ask on behalf of a push order.
        is_for_push: request.is_peer,
        is_background: false,
        pacer: None,
        interim: None,
    }
}

/// The fields of a request to the origin, for these fields of the client.
pub(super) fn origin_fields(
    request: &Request,
    client: &HeaderMap,
    which: ClientFields<'_>,
) -> HeaderMap {
    let by = Forwarder {
        via: request.worker.edge.via.received(request.version),
        loop_id: &request.loop_id,
        origin_host: request.site.origin_host.as_ref(),
        host: &request.host,
        client: request.address,
        scheme: request.scheme,
    };
    let mut fields = forward::to_origin(client, which, &by);
    fields.remove(&PEER);
    fields.remove(&SCHEME);
    fields.insert(X_REQUEST_ID, request.trail.id.to_field());
    fields
}
