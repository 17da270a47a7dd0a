//! A client's side of TLS: the authorities that it trusts and its own certificate.

use std::path::Path;

use rustls::{ClientConfig, RootCertStore};

use super::files::{self, FileError, unusable};

/// The authorities that a client trusts.
#[derive(Debug, Clone, Copy)]
pub struct ClientRoots;

impl ClientRoots {
    /// The authorities of a PEM file; without one those of the Web.
    ///
    /// # Errors
    /// A file that cannot be read or has no certificate that can be used.
    pub fn load(ca: Option<&Path>) -> Result<RootCertStore, FileError> {
        let Some(path) = ca else {
            return Ok(RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
            });
        };
        let mut roots = RootCertStore::empty();
        for certificate in files::certificates(path)? {
            roots.add(certificate).map_err(|error| {
                unusable(
                    path,
                    format!("has a certificate that cannot be used: {error}"),
                )
            })?;
        }
        Ok(roots)
    }
}

/// A client's configuration: it verifies servers by these authorities and shows the certificate of
/// `identity` (its file and its key's) to those that ask. No protocol is offered by ALPN; the caller
/// sets that.
///
/// # Errors
/// A file of `identity` that cannot be used.
pub fn client_config(
    roots: RootCertStore,
    identity: Option<(&Path, &Path)>,
) -> Result<ClientConfig, FileError> {
    let builder = ClientConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default versions")
        .with_root_certificates(roots);
    let Some((cert, key)) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let resolver = rustls::sign::SingleCertAndKey::from(files::certified_key(cert, key)?);
    Ok(builder.with_client_cert_resolver(std::sync::Arc::new(resolver)))
}
