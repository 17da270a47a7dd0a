//! The certificates by which an authority is shown that hosts are served here (RFC 8737,
//! `tls-alpn-01`), and who is shown them.
//!
//! An authority offers the protocol `acme-tls/1` alone and names the host. No other client sees
//! these certificates, and a connection that has seen one ends with its handshake.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::ClientHello;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

/// The protocol in ALPN (RFC 8737 section 6.2).
const PROTOCOL: &[u8] = b"acme-tls/1";

/// A certificate that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the certificate of a challenge for {host}: {problem}")]
pub struct ChallengeError {
    host: String,
    problem: String,
}

/// The challenges that are open, by host in lower case. Each [`Challenges::set`] replaces all.
#[derive(Debug, Default)]
pub struct Challenges {
    open: ArcSwap<HashMap<String, Arc<ServerConfig>>>,
}

impl Challenges {
    /// Replaces them: hosts, each with the SHA-256 of its key authorization.
    ///
    /// # Errors
    /// A host that cannot be in a certificate. The former challenges stay open.
    pub fn set(&self, open: &[(String, [u8; 32])]) -> Result<(), ChallengeError> {
        let configs = open.iter().map(|(host, digest)| {
            let config = config(host, digest).map_err(|problem| ChallengeError {
                host: host.clone(),
                problem,
            })?;
            Ok((host.to_ascii_lowercase(), Arc::new(config)))
        });
        let configs: HashMap<_, _> = configs.collect::<Result<_, _>>()?;
        self.open.store(Arc::new(configs));
        Ok(())
    }

    /// The configuration of the handshake with an authority that asks for an open challenge; `None`
    /// for every other client.
    pub(super) fn find(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        let open = self.open.load();
        if open.is_empty() || !is_question(hello) {
            return None;
        }
        let name = hello.server_name()?.to_ascii_lowercase();
        open.get(name.strip_suffix('.').unwrap_or(&name)).cloned()
    }
}

/// Whether the client offers the protocol of challenges and no other (RFC 8737 section 3).
fn is_question(hello: &ClientHello<'_>) -> bool {
    let mut offered = hello.alpn().into_iter().flatten();
    offered.next() == Some(PROTOCOL) && offered.next().is_none()
}

fn config(host: &str, digest: &[u8; 32]) -> Result<ServerConfig, String> {
    // A wildcard or an address would be another kind of name in the certificate.
    if host.starts_with("*.") || host.parse::<std::net::IpAddr>().is_ok() {
        return Err("it is not a host name".to_owned());
    }
    let problem = |error: rcgen::Error| error.to_string();
    let mut params = CertificateParams::new([host.to_owned()]).map_err(problem)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "ACME challenge");
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(problem)?;
    let certificate = params.self_signed(&key).map_err(problem)?;

    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let key = super::provider().key_provider.load_private_key(key);
    // Not checked as other certificates are: no client is to understand its critical extension.
    let certified = CertifiedKey::new(
        vec![certificate.der().clone()],
        key.map_err(|error| error.to_string())?,
    );
    let mut config = ServerConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}
