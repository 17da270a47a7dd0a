//! The proxies in front of this node: which are trusted, and how often what they state was refused.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use ipnet::IpNet;
use nearcast_net::proxy_header::ProxyHeaderError;

/// The prefixes whose statements on clients are believed.
#[derive(Debug, Clone)]
pub(crate) struct TrustedProxies(Arc<[IpNet]>);

impl Default for TrustedProxies {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl TrustedProxies {
    pub(crate) fn new(prefixes: &[IpNet]) -> Self {
        Self(prefixes.into())
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|prefix| prefix.contains(&address))
    }
}

/// Why a connection on a listener with PROXY protocol was closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyRefusal {
    /// It came from an address that is no trusted proxy.
    #[error("it came from no trusted proxy")]
    Stranger,
    /// Its header took too long.
    #[error("its PROXY header took too long")]
    Slow,
    #[error(transparent)]
    Header(#[from] ProxyHeaderError),
}

impl ProxyRefusal {
    /// The label of the metric.
    fn reason(&self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Slow => "slow",
            Self::Header(error) => error.reason(),
        }
    }
}

/// The reasons that are not in the header.
const OTHER_REASONS: [&str; 2] = ["stranger", "slow"];

/// Counts what was refused of the proxies in front.
#[derive(Debug, Default)]
pub(crate) struct ProxyCounters {
    /// Connections that were closed, by the reasons of [`ProxyCounters::reasons`].
    refused: [AtomicU64; OTHER_REASONS.len() + ProxyHeaderError::REASONS.len()],
    /// Requests of trusted proxies with malformed statements on their clients.
    malformed: AtomicU64,
}

impl ProxyCounters {
    fn reasons() -> impl Iterator<Item = &'static str> {
        OTHER_REASONS.into_iter().chain(ProxyHeaderError::REASONS)
    }

    pub(crate) fn note_refused(&self, refusal: &ProxyRefusal) {
        let reason = refusal.reason();
        if let Some(at) = Self::reasons().position(|known| known == reason) {
            self.refused[at].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn note_malformed(&self) {
        self.malformed.fetch_add(1, Relaxed);
    }

    pub(crate) fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Self::reasons().zip(self.refused.iter().map(|count| count.load(Relaxed)))
    }

    pub(crate) fn malformed(&self) -> u64 {
        self.malformed.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_trusted_by_prefix() {
        let trusted = TrustedProxies::new(
            &["10.0.0.0/8", "2001:db8::7/128"].map(|prefix| prefix.parse().expect("a prefix")),
        );
        for (address, expected) in [
            ("10.1.2.3", true),
            ("11.0.0.1", false),
            ("2001:db8::7", true),
            ("2001:db8::8", false),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(trusted.contains(address), expected, "{address}");
            assert!(!TrustedProxies::default().contains(address));
        }
    }

    #[test]
    fn every_reason_is_counted_under_its_name() {
        let counters = ProxyCounters::default();
        for refusal in [
            ProxyRefusal::Stranger,
            ProxyRefusal::Slow,
            ProxyHeaderError::Absent.into(),
            ProxyHeaderError::Checksum.into(),
        ] {
            counters.note_refused(&refusal);
        }
        let counted: Vec<&str> = counters
            .refused()
            .filter(|(_, count)| *count == 1)
            .map(|(reason, _)| reason)
            .collect();
        assert_eq!(counted, ["stranger", "slow", "absent", "checksum"]);
    }
}
