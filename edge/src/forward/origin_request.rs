//! One request to the origin of a site, or to another node of the cluster, and the accounts of what
//! it brings.

use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response};

use super::pacer::Pacer;
use crate::edge::Worker;
use crate::interim::InterimSender;
use crate::origin::{OriginBody, OriginError, OriginRequestBody, Purpose, Target};
use crate::site::Site;

/// A GET request for one URL, which may be sent several times with different ranges and conditions.
#[derive(Clone)]
pub(crate) struct OriginRequest {
    pub(crate) worker: Arc<Worker>,
    pub(crate) site: Arc<Site>,
    /// The site's origin, or another node of the same cluster.
    pub(crate) target: Arc<Target>,
    pub(crate) path: PathAndQuery,
    /// Fields of every request; conditions and ranges are added to them.
    pub(crate) fields: Arc<HeaderMap>,
    /// The target is another node of the cluster: its bytes are not the origin's.
    pub(crate) is_peer: bool,
    /// The request is for a push order of this node or of the one that asks, not for a client: its
    /// bytes are counted apart.
    pub(crate) is_for_push: bool,
    /// No client waits for the response.
    pub(crate) is_background: bool,
    /// Limits the rate of a push order.
    pub(crate) pacer: Option<Arc<Pacer>>,
    /// The client that waits for the response, and gets the interim responses before it.
    pub(crate) interim: Option<InterimSender>,
}

impl OriginRequest {
    /// Sends the request with `extra` fields, and waits for the head of the response.
    pub(super) async fn send(&self, extra: HeaderMap) -> Result<Response<OriginBody>, OriginError> {
        let request = self.to_request(extra);
        if !self.is_peer && !self.is_for_push {
            self.site.counters.asked_origin(self.worker.number);
        }

        let sent = self.worker.origins.send(&self.target, request);
        let Some(pacer) = &self.pacer else {
            return sent.await.inspect_err(|error| self.note_failure(*error));
        };
        tokio::select! {
            biased;
            () = pacer.stopped() => Err(OriginError::GivenUp),
            sent = sent => sent.inspect_err(|error| self.note_failure(*error)),
        }
    }

    fn to_request(&self, extra: HeaderMap) -> Request<OriginRequestBody> {
        let mut request = Request::new(OriginRequestBody::Empty);
        *request.method_mut() = Method::GET;
        *request.uri_mut() = self.path.clone().into();
        let mut fields = HeaderMap::clone(&self.fields);
        for (name, value) in &extra {
            fields.insert(name, value.clone());
        }
        *request.headers_mut() = fields;
        if let Some(interim) = &self.interim {
            interim.follow(&mut request);
        }
        if self.is_background {
            request.extensions_mut().insert(Purpose::Background);
        }
        request
    }

    /// Largest body that is stored: the site's limit, or what this node's store can hold.
    pub(super) fn body_bytes_max(&self) -> u64 {
        let of_site = self.site.cache.body_bytes_max.0;
        of_site.min(self.worker.edge.body_bytes_max)
    }

    /// Counts a failure of the origin.
    pub(super) fn note_failure(&self, error: OriginError) {
        if !self.is_peer {
            self.site.counters.origin_failed(error.reason());
        }
    }

    /// Counts received bytes, and waits until they are within the rate of the push order.
    pub(super) async fn note_received(&self, bytes: usize) {
        let bytes = bytes as u64;
        let counters = &self.site.counters;
        if self.is_for_push {
            counters.pushed(self.worker.number, self.is_peer, bytes);
        } else if !self.is_peer {
            counters.received(self.worker.number, bytes);
        }
        if let Some(pacer) = &self.pacer {
            pacer.count(self.is_peer, bytes);
            pacer.pass(bytes).await;
        }
    }
}
