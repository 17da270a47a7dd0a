//! TLS to origins: the trusted authorities, the client certificate, and the name of the origin.
//!
//! The files that a site names are read when the sites are made: at start, and with each revision
//! of the fleet file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nearcast_fleet::config::OriginTls;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_net::tls::{ClientRoots, FileError, client_config};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};

use super::http2;

/// The environment variable that names a file of authorities to replace the built-in ones.
const CERT_FILE: &str = "SSL_CERT_FILE";

/// The failure of an edge that cannot start because of a site's file.
pub(crate) fn to_failure(error: &FileError, site: &str) -> Failure {
    let kind = match error {
        FileError::Unreadable { .. } => FailureKind::NoInput,
        FileError::Unusable { .. } => FailureKind::BadData,
    };
    Failure::new(
        kind,
        format!("the TLS settings of the site {site:?} cannot be used: {error}"),
    )
}

/// The TLS settings for one origin.
#[derive(Debug, Clone)]
pub(crate) struct TargetTls {
    /// For HTTP/1.1, without ALPN.
    pub(super) config: Arc<ClientConfig>,
    /// The same with an offer of HTTP/2, where the site permits it. Both share their TLS sessions.
    pub(super) http2: Option<Arc<ClientConfig>>,
    /// The name that the certificate must have; `None` where a certificate cannot name the host.
    pub(super) name: Option<ServerName<'static>>,
}

/// The TLS settings for origins whose sites set none.
#[derive(Debug, Default)]
pub(crate) struct DefaultTls {
    /// A file of authorities that replaces the built-in ones.
    cert_file: Option<PathBuf>,
    configs: OnceLock<Configs>,
}

/// The settings for one set of authorities and client certificate.
#[derive(Debug, Clone)]
struct Configs {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl Configs {
    fn of(http1: ClientConfig) -> Self {
        let mut http2 = http1.clone();
        http2.alpn_protocols = vec![http2::ALPN.to_vec(), b"http/1.1".to_vec()];
        Self {
            http1: Arc::new(http1),
            http2: Arc::new(http2),
        }
    }
}

impl DefaultTls {
    /// As the environment sets them.
    pub(crate) fn of_environment() -> Self {
        let cert_file = std::env::var_os(CERT_FILE)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from);
        Self {
            cert_file,
            configs: OnceLock::new(),
        }
    }

    /// The settings for an origin whose certificate must name `host`, with an offer of HTTP/2 or
    /// without.
    ///
    /// # Errors
    /// A file that is missing or cannot be used.
    pub(crate) fn target(
        &self,
        settings: &OriginTls,
        host: &str,
        offers_http2: bool,
    ) -> Result<TargetTls, FileError> {
        let configs = match settings {
            OriginTls {
                ca: None,
                identity: None,
            } => self.default_configs()?,
            OriginTls { ca, identity } => {
                let roots = self.roots(ca.as_deref())?;
                let identity = identity
                    .as_ref()
                    .map(|(cert, key)| (cert.as_path(), key.as_path()));
                Configs::of(client_config(roots, identity)?)
            }
        };
        Ok(TargetTls {
            config: configs.http1,
            http2: offers_http2.then_some(configs.http2),
            name: ServerName::try_from(host.to_owned()).ok(),
        })
    }

    fn default_configs(&self) -> Result<Configs, FileError> {
        if let Some(configs) = self.configs.get() {
            return Ok(configs.clone());
        }
        let configs = Configs::of(client_config(self.roots(None)?, None)?);
        Ok(self.configs.get_or_init(|| configs).clone())
    }

    /// The trusted authorities: only the site's, if it sets some; else those of the environment's file;
    /// else those of the Web.
    fn roots(&self, ca: Option<&Path>) -> Result<RootCertStore, FileError> {
        ClientRoots::load(ca.or(self.cert_file.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(cert_file: Option<PathBuf>) -> DefaultTls {
        DefaultTls {
            cert_file,
            configs: OnceLock::new(),
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
        let large = write("large.pem", &"x".repeat((4 << 20) + 1));
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
            let made = tls(cert_file.cloned()).target(&settings, "a.test", true);
            match (made, expected) {
                (Ok(_), None) => {}
                (Err(error), Some((words, code))) => {
                    let failure = to_failure(&error, "www");
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
            tls.target(&OriginTls::default(), host, true)
                .expect("nothing is read")
        };
        assert!(Arc::ptr_eq(&of("a.test").config, &of("b.test").config));
        assert!(of("192.0.2.1").name.is_some() && of("a b").name.is_none());
    }
}
