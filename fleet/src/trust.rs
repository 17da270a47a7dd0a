//! Which certificates nodes and commands trust for `https` URLs of their own fleet, and the words of
//! what goes wrong.
//!
//! The authority is a PEM file: `ca` of `[fleet]`, or `--ca` of a command. Without one, the file in
//! the environment variable `SSL_CERT_FILE` is trusted, or else the authorities of the Web. A file is
//! read when the first `https` URL needs it, and again when it has changed; while it is broken, the
//! authorities that were read before stay in force.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use nearcast_net::stamp::Stamp;
use nearcast_net::tls::{self, ClientRoots, FileError};
use rustls::{CertificateError, InvalidMessage, RootCertStore};
use tokio::sync::watch;

use crate::client::{self, Inner};
use crate::config::Fleet;

/// How often a file is compared with what was read of it.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Names the file of trusted authorities where no setting does, as for OpenSSL and curl.
const FILE_VARIABLE: &str = "SSL_CERT_FILE";

/// Where the file of trusted authorities is named.
pub(crate) const FILE_HINT: &str =
    "it is to hold the trusted authorities (ca in [fleet], --ca, NEARCAST_CA or SSL_CERT_FILE)";

/// Which authorities are trusted.
#[derive(Debug)]
pub(crate) enum Trusted {
    /// Those in a file, or the ones of the Web.
    File(Option<PathBuf>),
    /// Those that the fleet file in force names.
    OfFleet(watch::Receiver<Arc<Fleet>>),
}

impl Trusted {
    /// The file; `None` for the authorities of the Web.
    fn file(&self) -> Option<PathBuf> {
        let named = match self {
            Self::File(named) => named.clone(),
            Self::OfFleet(fleet) => fleet.borrow().ca.clone(),
        };
        named.or_else(|| {
            std::env::var_os(FILE_VARIABLE)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        })
    }
}

/// The client for `https` URLs, made anew when the authorities change.
#[derive(Debug)]
pub(crate) struct TlsClient {
    trusted: Trusted,
    current: Mutex<Option<Current>>,
}

#[derive(Debug)]
struct Current {
    path: Option<PathBuf>,
    stamp: Option<Stamp>,
    looked: Instant,
    client: Inner<HttpsConnector<HttpConnector>>,
}

impl TlsClient {
    pub(crate) fn new(trusted: Trusted) -> Self {
        Self {
            trusted,
            current: Mutex::new(None),
        }
    }

    /// The client that trusts the authorities as they are now.
    ///
    /// # Errors
    /// [`FileError`] when there are none, and never were.
    pub(crate) fn current(
        &self,
        now: Instant,
    ) -> Result<Inner<HttpsConnector<HttpConnector>>, FileError> {
        let path = self.trusted.file();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = &*current
            && current.path == path
            && now.saturating_duration_since(current.looked) < LOOK_EVERY
        {
            return Ok(current.client.clone());
        }

        // The file is small and local, and it is read once for each change of it.
        let stamp = path.as_deref().and_then(Stamp::of);
        if let Some(current) = &mut *current
            && current.path == path
            && current.stamp == stamp
        {
            current.looked = now;
            return Ok(current.client.clone());
        }
        match (ClientRoots::load(path.as_deref()), &mut *current) {
            (Ok(roots), current) => {
                let client = client_of(roots);
                *current = Some(Current {
                    path,
                    stamp,
                    looked: now,
                    client: client.clone(),
                });
                Ok(client)
            }
            (Err(error), Some(current)) => {
                tracing::warn!(%error, "the authorities that were read before stay in force");
                (current.path, current.stamp) = (path, stamp);
                current.looked = now;
                Ok(current.client.clone())
            }
            (Err(error), None) => Err(error),
        }
    }
}

fn client_of(roots: RootCertStore) -> Inner<HttpsConnector<HttpConnector>> {
    let config = tls::client_config(roots, None).expect("it reads no file");
    let mut connector = client::connector();
    connector.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only()
        .enable_http1()
        .wrap_connector(connector);
    client::build(connector)
}

/// Describes a failure of TLS, with a hint; `None` for another failure.
pub(crate) fn tls_problem(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(words(found));
        }
        // The source of such an error is that of the error inside it.
        let inside = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|inside| inside as &(dyn Error + 'static));
        next = inside.or_else(|| error.source());
    }
    None
}

fn words(error: &rustls::Error) -> String {
    use rustls::Error::{InvalidCertificate, InvalidMessage as BadMessage};
    let (problem, hint) = match error {
        // A new authority often has the name of the one before it; then the signature is wrong.
        InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => (
            "its certificate is from an authority that is not trusted here".to_owned(),
            "name the authority's certificate: ca in [fleet] of the fleet file, --ca or NEARCAST_CA of a command",
        ),
        InvalidCertificate(CertificateError::NotValidForNameContext {
            expected,
            presented,
        }) => (
            format!(
                "its certificate is not for {}, but for {}",
                expected.to_str(),
                presented.join(", ")
            ),
            "write a URL with a name of the certificate, or renew it with this name",
        ),
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            (
                "its certificate has expired".to_owned(),
                "renew it; the server reads the new files by itself",
            )
        }
        InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => (
            "its certificate is not valid yet".to_owned(),
            "compare the clocks of both machines",
        ),
        // The library gives this reason as text only. `openssl req -x509` makes such certificates.
        InvalidCertificate(CertificateError::Other(reason))
            if format!("{reason:?}").contains("CaUsedAsEndEntity") =>
        {
            (
                "its certificate is that of an authority, which no server may show".to_owned(),
                "make one with basicConstraints CA:FALSE, or sign a certificate for the server with it",
            )
        }
        BadMessage(InvalidMessage::InvalidContentType) => (
            "the server speaks HTTP without TLS, or another protocol".to_owned(),
            "write http:// in the URL, or give the server a certificate",
        ),
        other => return other.to_string(),
    };
    format!("{problem}; {hint}")
}
