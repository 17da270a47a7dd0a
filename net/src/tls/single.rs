//! The configuration of a listener with one certificate, whatever host its clients name.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::sign::SingleCertAndKey;

use super::identity::Identity;

/// A server that shows this certificate to every client, by TLS 1.2 or 1.3. The caller sets the
/// protocols of ALPN.
pub fn single_server(identity: &Identity) -> ServerConfig {
    ServerConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified.clone())))
}
