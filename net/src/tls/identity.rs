//! A server's certificate with its key: the hosts that it covers (RFC 9525), and when it is valid.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::files::{self, FileError, unusable};

/// A certificate is warned of when less than this share of its time is left, and no more than this
/// long: those who renew by themselves do so at a third.
const EXPIRES_SOON_SHARE: i64 = 10;
const EXPIRES_SOON_S: i64 = 14 * 86_400;
/// The most names of a certificate.
const NAMES_MAX: usize = 10_000;

/// A certificate with its chain and key.
#[derive(Debug)]
pub struct Identity {
    pub(super) certified: Arc<CertifiedKey>,
    /// DNS names, lower case, without wildcards.
    hosts: HashSet<Box<str>>,
    /// Wildcards, without `*.`.
    wildcards: HashSet<Box<str>>,
    addresses: Vec<IpAddr>,
    not_before_unix_s: i64,
    not_after_unix_s: i64,
    is_chain_broken: bool,
    is_authority: bool,
}

impl Identity {
    /// Reads a certificate, the chain behind it, and its key.
    ///
    /// # Errors
    /// A file that cannot be read or used, a key of another certificate, a certificate without
    /// names. An expired certificate is no error, see [`warning`](Self::warning).
    pub fn load(cert: &Path, key: &Path) -> Result<Self, FileError> {
        let certified = files::certified_key(cert, key)?;
        Self::of(certified).map_err(|problem| unusable(cert, problem))
    }

    fn of(certified: Arc<CertifiedKey>) -> Result<Self, String> {
        let leaf = parsed(&certified.cert[0])?;
        let names = leaf
            .subject_alternative_name()
            .map_err(|error| format!("has names (subjectAltName) that cannot be read: {error}"))?;
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        if names.len() > NAMES_MAX {
            return Err(format!("has more than {NAMES_MAX} names"));
        }
        let (mut hosts, mut wildcards) = (HashSet::new(), HashSet::new());
        let mut addresses = Vec::new();
        for name in names {
            match name {
                GeneralName::DNSName(name) => {
                    let name = name.trim_end_matches('.').to_ascii_lowercase();
                    match name.strip_prefix("*.") {
                        Some(parent) => wildcards.insert(parent.into()),
                        None => hosts.insert(name.into()),
                    };
                }
                GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                _ => {}
            }
        }
        if hosts.is_empty() && wildcards.is_empty() && addresses.is_empty() {
            return Err(
                "names no host: clients compare the subjectAltName only, which it lacks".into(),
            );
        }
        Ok(Self {
            hosts,
            wildcards,
            addresses,
            not_before_unix_s: leaf.validity().not_before.timestamp(),
            not_after_unix_s: leaf.validity().not_after.timestamp(),
            is_chain_broken: is_chain_broken(&certified.cert)?,
            is_authority: matches!(leaf.basic_constraints(), Ok(Some(found)) if found.value.ca),
            certified,
        })
    }

    /// Whether the certificate covers a host: lower case, without port and trailing dot; an address
    /// without brackets. A wildcard stands for one label.
    pub fn covers(&self, host: &str) -> bool {
        if self.hosts.contains(host) {
            return true;
        }
        if let Some((label, parent)) = host.split_once('.')
            && !label.is_empty()
            && self.wildcards.contains(parent)
            && !is_address(host)
        {
            return true;
        }
        !self.addresses.is_empty()
            && host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .parse()
                .is_ok_and(|address: IpAddr| self.addresses.contains(&address))
    }

    /// Its names, in order, as a person writes them: `*.a.test`, `a.test`, `192.0.2.1`.
    pub fn names(&self) -> Vec<String> {
        let wildcards = self.wildcards.iter().map(|parent| format!("*.{parent}"));
        let hosts = self.hosts.iter().map(|host| host.to_string());
        let mut names: Vec<String> = wildcards.chain(hosts).collect();
        names.sort_unstable();
        names.extend(self.addresses.iter().map(ToString::to_string));
        names
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(|host| &**host)
    }

    pub(super) fn wildcards(&self) -> impl Iterator<Item = &str> {
        self.wildcards.iter().map(|parent| &**parent)
    }

    pub(super) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// When it expires, in seconds after the Unix epoch.
    pub fn not_after_unix_s(&self) -> i64 {
        self.not_after_unix_s
    }

    pub(super) fn is_valid_at(&self, now_unix_s: i64) -> bool {
        (self.not_before_unix_s..=self.not_after_unix_s).contains(&now_unix_s)
    }

    /// Whether it is the certificate of an authority. Browsers take such a one that they trust from a
    /// server too; clients of this crate do not.
    pub fn is_authority(&self) -> bool {
        self.is_authority
    }

    /// The warning of a certificate that [expires soon](Self::expires_soon).
    pub const EXPIRES_SOON: &str = "expires soon and was not renewed";

    /// The seconds until it expires, where that is soon: less than a tenth of its time, and than two
    /// weeks. `None` for one that is not valid now.
    pub fn expires_soon(&self, now_unix_s: i64) -> Option<i64> {
        let lifetime = self.not_after_unix_s.saturating_sub(self.not_before_unix_s);
        let soon = (lifetime / EXPIRES_SOON_SHARE).min(EXPIRES_SOON_S);
        let left = self.not_after_unix_s - now_unix_s;
        (self.is_valid_at(now_unix_s) && left < soon).then_some(left)
    }

    /// What clients will object to, as the rest of a sentence about the certificate; `None` if
    /// nothing is known.
    pub fn warning(&self, now_unix_s: i64) -> Option<&'static str> {
        if now_unix_s > self.not_after_unix_s {
            Some("has expired; clients refuse it")
        } else if now_unix_s < self.not_before_unix_s {
            Some("is not valid yet; clients refuse it")
        } else if self.is_chain_broken {
            Some("is followed by a certificate that did not issue it; clients may refuse the chain")
        } else if self.expires_soon(now_unix_s).is_some() {
            Some(Self::EXPIRES_SOON)
        } else {
            None
        }
    }

    /// Order of preference among certificates of one name: signing by ECDSA costs a server the
    /// least.
    pub(super) fn rank(&self) -> u8 {
        match self.certified.key.algorithm() {
            SignatureAlgorithm::ECDSA => 0,
            SignatureAlgorithm::ED25519 => 1,
            _ => 2,
        }
    }

    /// Whether a client that offers these signature schemes and cipher suites can use the
    /// certificate. TLS 1.2 ties the suite to the key's type; TLS 1.3 does not.
    pub(super) fn suits(
        &self,
        schemes: &[SignatureScheme],
        suites: &[rustls::CipherSuite],
        allows_1_2: bool,
    ) -> bool {
        let key = &self.certified.key;
        key.choose_scheme(schemes).is_some()
            && super::provider().cipher_suites.iter().any(|suite| {
                suites.contains(&suite.suite())
                    && match suite {
                        rustls::SupportedCipherSuite::Tls13(_) => true,
                        rustls::SupportedCipherSuite::Tls12(_) => {
                            allows_1_2 && suite.usable_for_signature_algorithm(key.algorithm())
                        }
                    }
            })
    }
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    X509Certificate::from_der(certificate)
        .map(|(_, certificate)| certificate)
        .map_err(|error| format!("has a certificate that cannot be read: {error}"))
}

/// Whether a certificate of the chain was not issued by the one after it.
fn is_chain_broken(chain: &[CertificateDer<'_>]) -> Result<bool, String> {
    let chain: Vec<_> = chain.iter().map(parsed).collect::<Result<_, _>>()?;
    Ok(chain
        .windows(2)
        .any(|pair| pair[0].issuer().as_raw() != pair[1].subject().as_raw()))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(v6).into())
}

fn is_address(host: &str) -> bool {
    host.parse::<Ipv4Addr>().is_ok()
}
