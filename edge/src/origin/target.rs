//! The target of requests: an address, and the limits of requests to it.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use nearcast_fleet::config::OriginLimits;
use tokio::time::Instant;

use super::connections::Connections;
use super::health::Health;
use super::tls::TargetTls;

/// Scheme, host and port, from the fleet file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) is_tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// Reads `http://host[:port]` or `https://host[:port]`.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let uri: http::Uri = url.parse().ok()?;
        let is_tls = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Some(Self {
            is_tls,
            host: uri.host()?.trim_matches(['[', ']']).to_owned(),
            port,
        })
    }
}

/// An origin, or a node of the same cluster, with all that requests to it need. Equal targets share
/// connections.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) address: Address,
    pub(crate) limits: OriginLimits,
    /// Present where the address says so.
    pub(super) tls: Option<TargetTls>,
    pub(super) connections: Arc<Connections>,
    pub(super) health: Arc<Health>,
}

impl Target {
    /// A node of the same cluster, without TLS.
    pub(crate) fn peer(address: std::net::SocketAddr) -> Self {
        let address = Address {
            is_tls: false,
            host: address.ip().to_string(),
            port: address.port(),
        };
        let limits = OriginLimits::default();
        let connections = Connections::new(&limits, Arc::default());
        let health = Health::new(address.clone());
        Self {
            address,
            limits,
            tls: None,
            connections,
            health,
        }
    }

    /// `None` while it answers, as far as is known; else whether a probe is due.
    pub(crate) fn failing(&self) -> Option<bool> {
        self.failing_at(Instant::now())
    }

    pub(crate) fn failing_at(&self, now: Instant) -> Option<bool> {
        self.health.failing(now)
    }

    /// Takes one retry from the budget, if one is left.
    pub(crate) fn take_retry(&self) -> bool {
        self.health.take_retry()
    }

    /// Whether to offer HTTP/2 in the handshake of a new connection.
    pub(super) fn offers_http2(&self) -> bool {
        let is_permitted = self.tls.as_ref().is_some_and(|tls| tls.http2.is_some());
        is_permitted && !self.health.needs_http1(Instant::now())
    }

    /// Whether what does not need a connection for long should not keep one.
    pub(crate) fn are_connections_scarce(&self) -> bool {
        self.connections.are_scarce()
    }

    /// Whether requests should share connections: the origin has selected HTTP/2 when it was offered
    /// last, or is not known yet.
    pub(super) fn may_share(&self) -> bool {
        self.offers_http2() && !self.health.selected_http1()
    }

    /// The values that a connection is opened with: it serves targets with the same ones only.
    fn connection_key(&self) -> impl Hash + PartialEq + '_ {
        let tls = self
            .tls
            .as_ref()
            .map(|tls| (Arc::as_ptr(&tls.config), tls.http2.is_some(), &tls.name));
        (
            &self.address,
            self.limits.head_bytes_max,
            self.limits.fields_max,
            tls,
        )
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.connection_key() == other.connection_key()
    }
}

impl Eq for Target {}

impl Hash for Target {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.connection_key().hash(state);
    }
}
