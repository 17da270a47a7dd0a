//! One request of a client: DNS look-up, HTTP exchange, and a second attempt at another address
//! when that fails.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use parking_lot::Mutex;

use super::dns::{self, DnsError};

/// How long connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// How long a whole response may take.
const RESPONSE_MAX: Duration = Duration::from_secs(15);
/// Kept connections to one edge.
const IDLE_PER_EDGE_MAX: usize = 32;
/// How long a connection is kept without a request.
const IDLE_KEPT: Duration = Duration::from_secs(5);
/// Bytes kept of a body that is to be read.
const BODY_KEPT_MAX: usize = 4 << 20;

/// The state that all clients share: name servers, ports, connections.
#[derive(Debug)]
pub(super) struct Fetcher {
    http: Client<HttpConnector, Empty<Bytes>>,
    name_servers: Vec<SocketAddr>,
    /// Ports of the edges' HTTP listeners, by client address.
    ports: BTreeMap<Ipv4Addr, u16>,
    next_id: AtomicU16,
    user_agent: String,
}

/// One synthetic client: its address and its DNS cache.
#[derive(Debug)]
pub(super) struct ClientState {
    /// Its address, of which the client subnet is made.
    pub(super) address: Ipv4Addr,
    cache: Mutex<HashMap<String, Cached>>,
}

#[derive(Debug, Clone)]
struct Cached {
    list: Vec<Ipv4Addr>,
    until: Instant,
}

/// The result of a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    /// The response, or the last error.
    pub(super) result: Result<Got, String>,
    /// Whether a second try was needed.
    pub(super) retried: bool,
    /// Questions asked of name servers.
    pub(super) dns_queries: u32,
}

/// A whole response.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Got {
    /// The edge that gave it.
    pub(super) edge: Ipv4Addr,
    /// Bytes of its body.
    pub(super) bytes: u64,
    /// Whether it came from the cache.
    pub(super) hit: bool,
    /// The first bytes of its body when they were asked for.
    pub(super) body: Vec<u8>,
}

impl ClientState {
    /// A client with an empty DNS cache.
    pub(super) fn new(address: Ipv4Addr) -> Self {
        Self {
            address,
            cache: Mutex::new(HashMap::new()),
        }
    }

    fn remembered(&self, host: &str) -> Option<Vec<Ipv4Addr>> {
        let cache = self.cache.lock();
        cache
            .get(host)
            .filter(|c| c.until > Instant::now())
            .map(|c| c.list.clone())
    }

    fn remember(&self, host: &str, list: Vec<Ipv4Addr>, ttl: Duration) {
        let mut cache = self.cache.lock();
        cache.insert(
            host.to_owned(),
            Cached {
                list,
                until: Instant::now() + ttl,
            },
        );
    }

    /// Moves an address that failed to the end of the list.
    fn demote(&self, host: &str, failed: Ipv4Addr) {
        let mut cache = self.cache.lock();
        if let Some(cached) = cache.get_mut(host) {
            cached.list.sort_by_key(|a| *a == failed);
        }
    }
}

impl Fetcher {
    /// For a fleet with these name servers and edges.
    pub(super) fn new(name_servers: Vec<SocketAddr>, ports: BTreeMap<Ipv4Addr, u16>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_MAX));
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_KEPT)
            .pool_max_idle_per_host(IDLE_PER_EDGE_MAX)
            .build(connector);
        let user_agent = concat!("nearcast-traffic/", env!("CARGO_PKG_VERSION")).to_owned();
        Self {
            http,
            name_servers,
            ports,
            next_id: AtomicU16::new(std::process::id() as u16),
            user_agent,
        }
    }

    /// Asks for `http://host/path` as `client`; keeps the body when `keep_body`.
    pub(super) async fn fetch(
        &self,
        client: &ClientState,
        host: &str,
        path: &str,
        keep_body: bool,
    ) -> Outcome {
        let mut outcome = Outcome {
            result: Err(String::new()),
            retried: false,
            dns_queries: 0,
        };
        let first = match self
            .addresses(client, host, &mut outcome.dns_queries, None)
            .await
        {
            Ok(list) => list[0],
            Err(error) => {
                outcome.result = Err(format!("{host}: {error}"));
                return outcome;
            }
        };
        outcome.result = self.exchange(first, host, path, keep_body).await;
        if outcome.result.is_err() {
            client.demote(host, first);
            outcome.retried = true;
            if let Ok(list) = self
                .addresses(client, host, &mut outcome.dns_queries, Some(first))
                .await
            {
                let second = list.into_iter().find(|a| *a != first).unwrap_or(first);
                outcome.result = self.exchange(second, host, path, keep_body).await;
            }
        }
        outcome
    }

    /// Addresses from memory, or by DNS when there are none but `failed`.
    async fn addresses(
        &self,
        client: &ClientState,
        host: &str,
        queries: &mut u32,
        failed: Option<Ipv4Addr>,
    ) -> Result<Vec<Ipv4Addr>, DnsError> {
        if let Some(list) = client
            .remembered(host)
            .filter(|l| l.iter().any(|a| Some(*a) != failed))
        {
            return Ok(list);
        }
        let ids = || {
            *queries += 1;
            // Spread over the range; the answers come over loopback or from name servers that the
            // operator named.
            self.next_id.fetch_add(40_503, Ordering::Relaxed)
        };
        let found = dns::resolve(&self.name_servers, host, client.address, ids).await?;
        client.remember(
            host,
            found.list.clone(),
            Duration::from_secs(u64::from(found.ttl)),
        );
        Ok(found.list)
    }

    async fn exchange(
        &self,
        edge: Ipv4Addr,
        host: &str,
        path: &str,
        keep_body: bool,
    ) -> Result<Got, String> {
        let port = self.ports.get(&edge).copied().unwrap_or(80);
        let host_field = if port == 80 {
            host.to_owned()
        } else {
            format!("{host}:{port}")
        };
        let request = Request::builder()
            .uri(format!("http://{edge}:{port}{path}"))
            .header(header::HOST, host_field)
            .header(header::USER_AGENT, &self.user_agent)
            .body(Empty::new())
            .map_err(|e| format!("{path}: {e}"))?;
        let whole = async {
            let response = self
                .http
                .request(request)
                .await
                .map_err(|e| format!("{edge}: {}", innermost(&e)))?;
            let (head, mut body) = response.into_parts();
            if head.status != StatusCode::OK {
                return Err(format!("{edge}: {} for {path}", head.status));
            }
            let mut got = Got {
                edge,
                bytes: 0,
                hit: is_hit(&head.headers),
                body: Vec::new(),
            };
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|e| format!("{edge}: {path} was cut: {e}"))?;
                if let Some(data) = frame.data_ref() {
                    got.bytes += data.len() as u64;
                    if keep_body && got.body.len() < BODY_KEPT_MAX {
                        got.body.extend_from_slice(data);
                    }
                }
            }
            Ok(got)
        };
        tokio::time::timeout(RESPONSE_MAX, whole)
            .await
            .unwrap_or_else(|_| Err(format!("{edge}: no whole response to {path} in time")))
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Whether the cache nearest to the client served the request without content of its own from the
/// origin (RFC 9211): a hit, a stale or validated response, or a collapsed request.
fn is_hit(headers: &HeaderMap) -> bool {
    let all: Vec<&str> = headers
        .get_all("cache-status")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect();
    let Some(nearest) = all.last().and_then(|v| v.rsplit(',').next()) else {
        return false;
    };
    let mut validated = (false, false);
    for parameter in nearest.split(';').skip(1).map(str::trim) {
        match parameter {
            "hit" | "collapsed" => return true,
            "fwd=stale" => validated.0 = true,
            "fwd-status=304" => validated.1 = true,
            _ => {}
        }
    }
    validated == (true, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cache_tells_whether_it_was_a_hit() {
        let table: [(&[&str], bool); 8] = [
            (&["ams-1; hit; ttl=30"], true),
            (&["ams-1; fwd=uri-miss; stored"], false),
            (&["ams-1; fwd=uri-miss; collapsed"], true),
            (&["ams-1; fwd=stale; fwd-status=304; stored"], true),
            (&["ams-1; fwd=stale; fwd-status=200"], false),
            (&["parent; hit, ams-1; fwd=uri-miss"], false),
            (&["parent; fwd=uri-miss", "ams-1; hit"], true),
            (&[], false),
        ];
        for (values, expected) in table {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("cache-status", value.parse().expect("a field value"));
            }
            assert_eq!(is_hit(&headers), expected, "{values:?}");
        }
    }

    #[test]
    fn a_failed_address_goes_last_and_memory_ends() {
        let client = ClientState::new(Ipv4Addr::LOCALHOST);
        let [a, b] = [Ipv4Addr::new(127, 0, 10, 1), Ipv4Addr::new(127, 0, 10, 2)];
        client.remember("h", vec![a, b], Duration::from_secs(60));
        client.demote("h", a);
        assert_eq!(client.remembered("h"), Some(vec![b, a]));
        client.remember("h", vec![a], Duration::ZERO);
        assert_eq!(client.remembered("h"), None);
    }
}
