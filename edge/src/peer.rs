//! What nodes of a cluster say to one another: the fields of their requests and responses, and which
//! node owns a URL.

use http::header::{CACHE_CONTROL, HOST, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use nearcast_fleet::config::{Cluster, Fleet, Secret};
use nearcast_fleet::node_key;
use xxhash_rust::xxh3::xxh3_64;

use crate::edge::Edge;
use crate::stored::generations::host_of;

/// The field by which a node of the same cluster shows the node key.
pub(crate) const PEER: HeaderName = HeaderName::from_static("nearcast-peer");
/// The field by which a node of the same cluster states the scheme of the URL that it asks for, and
/// by which the answer confirms it. Without it the scheme is `http`, as it always is with nodes of
/// earlier versions.
pub(crate) const SCHEME: HeaderName = HeaderName::from_static("nearcast-scheme");
/// The field by which a node states up to which journal revision its response is purged.
pub(crate) const REVISION: HeaderName = HeaderName::from_static("nearcast-revision");

const HTTPS: &str = "https";

/// Whether a request shows one of the secrets of this node's cluster.
pub(crate) fn is_peer(fields: &HeaderMap, secrets: &[Secret]) -> bool {
    fields
        .get(&PEER)
        .is_some_and(|shown| node_key::is_one_of(shown.as_bytes(), secrets))
}

/// The scheme for which a peer asks, or which its answer confirms.
pub(crate) fn scheme(fields: &HeaderMap) -> &'static str {
    let is_https = fields.get(&SCHEME).is_some_and(|stated| stated == HTTPS);
    if is_https { HTTPS } else { "http" }
}

/// The scheme of a key.
pub(crate) fn scheme_of(url: &str) -> &'static str {
    match url.split_once("://") {
        Some((HTTPS, _)) => HTTPS,
        _ => "http",
    }
}

/// States the scheme of a key, in a request to a peer or the answer to one.
pub(crate) fn state_scheme(fields: &mut HeaderMap, scheme: &'static str) {
    if scheme == HTTPS {
        fields.insert(SCHEME, HeaderValue::from_static(HTTPS));
    }
}

/// The revision that a peer's response states, 0 when it states none.
pub(crate) fn revision(fields: &HeaderMap) -> u64 {
    fields
        .get(&REVISION)
        .and_then(|v| v.to_str().ok()?.parse().ok())
        .unwrap_or(0)
}

/// The node of a cluster that asks the origin for a URL: the highest hash of both names together
/// (rendezvous hashing).
pub(crate) fn owner<'a>(cluster: &'a Cluster, url: &str) -> Option<&'a str> {
    let weight = |name: &str| xxh3_64(format!("{name}\n{url}").as_bytes());
    cluster
        .nodes
        .iter()
        .map(|n| n.name.as_str())
        .max_by_key(|name| weight(name))
}

/// The fields of a request to another node of the cluster for a stored response.
pub(crate) fn request_fields(edge: &Edge, url: &str, fleet: &Fleet) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert(HOST, host_field(url));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("only-if-cached"));
    let secret = fleet
        .edge(&edge.name)
        .and_then(|(cluster, _)| node_key::shown_to_peers(fleet, &cluster.name));
    if let Some(Ok(mut key)) = secret.map(|secret| HeaderValue::try_from(secret.0)) {
        key.set_sensitive(true);
        fields.insert(PEER, key);
    }
    fields.insert(VIA, edge.via.received(Version::HTTP_11).clone());
    state_scheme(&mut fields, scheme_of(url));
    fields
}

/// `Host` for a URL.
pub(crate) fn host_field(url: &str) -> HeaderValue {
    HeaderValue::try_from(host_of(url)).unwrap_or(HeaderValue::from_static(""))
}
