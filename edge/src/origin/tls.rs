//! TLS to origins: the trusted authorities, the client certificate, and the name of the origin.
//!
//! The files that a site names are read when the sites are made: at start, and with each revision
//! of the fleet file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nearcast_fleet::config::OriginTls;
use nearcast_fleet::failure::{Failure, FailureKind};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

/// The largest file of certificates or keys that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The environment variable that names a file of authorities to replace the built-in ones.
const CERT_FILE: &str = "SSL_CERT_FILE";

/// A file for TLS that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsFileError {
    /// It cannot be read.
    #[error("cannot read {}: {error}", .path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    /// Its content cannot be used.
    #[error("{} {problem}", .path.display())]
    Unusable { path: PathBuf, problem: String },
}

impl TlsFileError {
    /// The failure of an edge that cannot start because of it.
    pub(crate) fn to_failure(&self, site: &str) -> Failure {
        let kind = match self {
            Self::Unreadable { .. } => FailureKind::NoInput,
            Self::Unusable { .. } => FailureKind::BadData,
        };
        Failure::new(
            kind,
            format!("the TLS settings of the site {site:?} cannot be used: {self}"),
        )
    }
}

/// The TLS settings for one origin.
#[derive(Debug, Clone)]
pub(crate) struct TargetTls {
    pub(super) config: Arc<ClientConfig>,
    /// The name that the certificate must have; `None` where a certificate cannot name the host.
    pub(super) name: Option<ServerName<'static>>,
}

/// The TLS settings for origins whose sites set none.
#[derive(Debug, Default)]
pub(crate) struct DefaultTls {
    /// A file of authorities that replaces the built-in ones.
    cert_file: Option<PathBuf>,
    config: OnceLock<Arc<ClientConfig>>,
}

impl DefaultTls {
    /// As the environment sets them.
    pub(crate) fn of_environment() -> Self {
        let cert_file = std::env::var_os(CERT_FILE)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        Self {
            cert_file,
            config: OnceLock::new(),
        }
    }

    /// The settings for an origin whose certificate must name `host`.
    ///
    /// # Errors
    /// A file that is missing or cannot be used.
    pub(crate) fn target(
        &self,
        settings: &OriginTls,
        host: &str,
    ) -> Result<TargetTls, TlsFileError> {
        let config = match settings {
            OriginTls {
                ca: None,
                identity: None,
            } => self.default_config()?,
            OriginTls { ca, identity } => {
                let roots = self.roots(ca.as_deref())?;
                let identity = identity
                    .as_ref()
                    .map(|(cert, key)| (cert.as_path(), key.as_path()));
                Arc::new(client_config(roots, identity)?)
            }
        };
        Ok(TargetTls {
            config,
            name: ServerName::try_from(host.to_owned()).ok(),
        })
    }

    fn default_config(&self) -> Result<Arc<ClientConfig>, TlsFileError> {
        if let Some(config) = self.config.get() {
            return Ok(config.clone());
        }
        let config = Arc::new(client_config(self.roots(None)?, None)?);
        Ok(self.config.get_or_init(|| config).clone())
    }

    /// The trusted authorities: only the site's, if it sets some; else those of the environment's file;
    /// else those of the Web.
    fn roots(&self, ca: Option<&Path>) -> Result<RootCertStore, TlsFileError> {
        let Some(path) = ca.or(self.cert_file.as_deref()) else {
            return Ok(RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
            });
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
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

fn client_config(
    roots: RootCertStore,
    identity: Option<(&Path, &Path)>,
) -> Result<ClientConfig, TlsFileError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default versions")
        .with_root_certificates(roots);
    let Some((cert_path, key_path)) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(cert_path)?;
    let key = PrivateKeyDer::from_pem_slice(&read(key_path)?).map_err(|error| {
        unusable(
            key_path,
            format!("has no private key in PEM form that can be used: {error}"),
        )
    })?;
    builder.with_client_auth_cert(chain, key).map_err(|error| {
        unusable(
            key_path,
            format!("cannot be used with {}: {error}", cert_path.display()),
        )
    })
}

/// All certificates of a file in PEM form, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unusable(path, "has no certificate in PEM form".to_owned())),
        Err(error) => Err(unusable(
            path,
            format!("has no certificates in PEM form that can be used: {error}"),
        )),
    }
}

fn unusable(path: &Path, problem: String) -> TlsFileError {
    TlsFileError::Unusable {
        path: path.to_owned(),
        problem,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsFileError> {
    let unreadable = |error| TlsFileError::Unreadable {
        path: path.to_owned(),
        error,
    };
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    io::Read::read_to_end(&mut io::Read::take(file, FILE_BYTES_MAX + 1), &mut text)
        .map_err(unreadable)?;
    match text.len() as u64 > FILE_BYTES_MAX {
        true => Err(unusable(
            path,
            format!("has more than {FILE_BYTES_MAX} bytes"),
        )),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(cert_file: Option<PathBuf>) -> DefaultTls {
        DefaultTls {
            cert_file,
            config: OnceLock::new(),
        }
    }

    #[test]
    fn files_that_are_of_no_use_are_named_with_their_problem() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let own = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("a certificate");
        let other =
            rcgen::generate_simple_self_signed(["b.test".to_owned()]).expect("a certificate");
        let cert = write("cert.pem", &own.cert.pem());
        let key = write("key.pem", &own.signing_key.serialize_pem());
        let other_key = write("other.pem", &other.signing_key.serialize_pem());
        let empty = write("empty.pem", "");
        let cut = write("cut.pem", &own.cert.pem()[..200]);
        let garbage = write(
            "garbage.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        );
        let missing = directory.path().join("missing.pem");
        let large = write("large.pem", &"x".repeat(FILE_BYTES_MAX as usize + 1));
        let ca = |path: &PathBuf| OriginTls {
            ca: Some(path.clone()),
            identity: None,
        };
        let identity = |cert: &PathBuf, key: &PathBuf| OriginTls {
            ca: None,
            identity: Some((cert.clone(), key.clone())),
        };
        let table = [
            (None, OriginTls::default(), None),
            (None, ca(&cert), None),
            (None, identity(&cert, &key), None),
            (Some(&cert), OriginTls::default(), None),
            (None, ca(&missing), Some(("missing.pem: ", 66))),
            (None, ca(&empty), Some(("empty.pem has no certificate", 65))),
            (None, ca(&cut), Some(("cut.pem has no certificate", 65))),
            (
                None,
                ca(&garbage),
                Some(("garbage.pem has a certificate that cannot be used", 65)),
            ),
            (None, ca(&key), Some(("key.pem has no certificate", 65))),
            (None, ca(&large), Some(("large.pem has more than", 65))),
            (None, identity(&missing, &key), Some(("missing.pem: ", 66))),
            (None, identity(&cert, &missing), Some(("missing.pem: ", 66))),
            (
                None,
                identity(&cert, &cert),
                Some(("cert.pem has no private key", 65)),
            ),
            (
                None,
                identity(&cert, &other_key),
                Some(("other.pem cannot be used with", 65)),
            ),
            (
                Some(&missing),
                OriginTls::default(),
                Some(("missing.pem: ", 66)),
            ),
            (
                Some(&missing),
                identity(&cert, &key),
                Some(("missing.pem: ", 66)),
            ),
            (Some(&missing), ca(&cert), None),
        ];
        for (cert_file, settings, expected) in table {
            let made = tls(cert_file.cloned()).target(&settings, "a.test");
            match (made, expected) {
                (Ok(_), None) => {}
                (Err(error), Some((words, code))) => {
                    let failure = error.to_failure("www");
                    assert!(
                        failure.message.contains(words) && failure.message.contains("\"www\""),
                        "{settings:?}: {failure}"
                    );
                    assert_eq!(failure.kind.exit_code(), code, "{failure}");
                }
                (made, expected) => panic!("{settings:?}: {made:?} in place of {expected:?}"),
            }
        }
    }

    #[test]
    fn sites_that_say_nothing_share_one_configuration() {
        let tls = tls(None);
        let of = |host| {
            tls.target(&OriginTls::default(), host)
                .expect("nothing is read")
        };
        assert!(Arc::ptr_eq(&of("a.test").config, &of("b.test").config));
        assert!(of("192.0.2.1").name.is_some() && of("a b").name.is_none());
    }
}
