//! What a certificate says, and whether it is the one that was ordered.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use instant_acme::CertificateIdentifier;
use ring::digest;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::text;

/// The most certificates of a chain, as of those that servers load from files.
const CHAIN_MAX: usize = 16;
/// The most names of a certificate that are read.
const NAMES_MAX: usize = 1000;
/// By how much the clocks of this machine and of an authority may differ. Authorities let
/// certificates begin about an hour before they sign them.
pub(crate) const CLOCK_TOLERANCE_S: i64 = 3600;

/// What is known of a certificate.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Facts {
    /// Its names, lower case: hosts, wildcards and addresses.
    pub(crate) names: BTreeSet<String>,
    /// Begin of its validity, in seconds after the Unix epoch.
    pub(crate) not_before_unix_s: i64,
    /// End of its validity, in seconds after the Unix epoch.
    pub(crate) not_after_unix_s: i64,
    /// Its name in questions for renewal information (RFC 9773 section 4.1); some lack one.
    pub(crate) id: Option<CertificateIdentifier<'static>>,
    /// A number from 0 to below 1 that differs from one certificate to the next.
    pub(crate) fraction: f64,
}

impl Facts {
    /// Whether each host is among the names.
    pub(crate) fn covers(&self, hosts: &[String]) -> bool {
        hosts
            .iter()
            .all(|host| self.names.contains(&canonical(host)))
    }
}

/// Why a certificate is not what was ordered.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// It is not what was ordered, or no certificate; the rest of a sentence about the authority.
    #[error("sent {0}")]
    Wrong(String),
    /// Its validity does not fit this machine's clock.
    #[error(
        "sent a certificate that {what} by this machine's clock, which may be wrong: it says {now}"
    )]
    Clock {
        /// Such as `is not valid before DATE`.
        what: String,
        /// This machine's time.
        now: String,
    },
}

/// Reads the first certificate of a chain with its key.
///
/// # Errors
/// The reason, as the rest of a sentence: no certificate, too many, one that cannot be read, or the
/// key of another one.
pub(crate) fn read(chain: &str, key: &str) -> Result<Facts, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .take(CHAIN_MAX + 1)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("certificates that are not in PEM form: {error}"))?;
    if chain.len() > CHAIN_MAX {
        return Err(format!("a chain of more than {CHAIN_MAX} certificates"));
    }
    let Some(leaf) = chain.first() else {
        return Err("no certificate".to_owned());
    };
    for certificate in &chain {
        parsed(certificate)?;
    }

    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|error| format!("a private key that cannot be read: {error}"))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)
        .map_err(|error| format!("a private key that cannot be used: {error}"))?;
    rustls::sign::CertifiedKey::new(chain.clone(), key)
        .keys_match()
        .map_err(|_| "a certificate for another key".to_owned())?;

    let certificate = parsed(leaf)?;
    Ok(Facts {
        names: names(&certificate)?,
        not_before_unix_s: certificate.validity().not_before.timestamp(),
        not_after_unix_s: certificate.validity().not_after.timestamp(),
        id: CertificateIdentifier::try_from(leaf)
            .ok()
            .map(CertificateIdentifier::into_owned),
        fraction: fraction(leaf),
    })
}

/// Whether an authority sent what was ordered: a chain for this key and these hosts, valid now.
pub(crate) fn verify(
    chain: &str,
    key: &str,
    hosts: &[String],
    now_unix_s: i64,
) -> Result<Facts, Unfit> {
    let facts = read(chain, key).map_err(Unfit::Wrong)?;
    let missing: Vec<&str> = hosts
        .iter()
        .filter(|host| !facts.names.contains(&canonical(host)))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        let missing = text::line(&missing.join(", "));
        return Err(Unfit::Wrong(format!("a certificate without {missing}")));
    }

    let (begin, end) = (facts.not_before_unix_s, facts.not_after_unix_s);
    if end <= begin {
        return Err(Unfit::Wrong(
            "a certificate that ends before it begins".to_owned(),
        ));
    }
    let what = if begin > now_unix_s + CLOCK_TOLERANCE_S {
        format!("is not valid before {}", text::time(begin))
    } else if end <= now_unix_s {
        format!("expired on {}", text::time(end))
    } else {
        return Ok(facts);
    };
    Err(Unfit::Clock {
        what,
        now: text::time(now_unix_s),
    })
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    X509Certificate::from_der(certificate)
        .map(|(_, certificate)| certificate)
        .map_err(|error| format!("a certificate that cannot be read: {error}"))
}

fn names(certificate: &X509Certificate<'_>) -> Result<BTreeSet<String>, String> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| format!("a certificate with names that cannot be read: {error}"))?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    if names.len() > NAMES_MAX {
        return Err(format!("a certificate with more than {NAMES_MAX} names"));
    }
    Ok(names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(canonical(name.trim_end_matches('.'))),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect())
}

/// A host as it is compared: lower case, an address in its usual form.
fn canonical(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => host.to_ascii_lowercase(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(v6).into())
}

/// A number from 0 to below 1 from a hash of the certificate, so that a moment chosen by it is the
/// same after a restart, and on a copy of the directory.
fn fraction(certificate: &CertificateDer<'_>) -> f64 {
    let hash = digest::digest(&digest::SHA256, certificate);
    let first = hash.as_ref()[..4].try_into().expect("SHA-256 has 32 bytes");
    f64::from(u32::from_be_bytes(first)) / 2f64.powi(32)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 86_400;

    fn time(unix_s: i64) -> time::OffsetDateTime {
        time::OffsetDateTime::from_unix_timestamp(unix_s).unwrap()
    }

    fn made(names: &[&str], begin: i64, end: i64, key: &KeyPair) -> String {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut wanted = CertificateParams::new(names).unwrap();
        wanted.not_before = time(begin);
        wanted.not_after = time(end);
        wanted.self_signed(key).unwrap().pem()
    }

    #[test]
    fn only_the_ordered_certificate_is_taken() {
        let (ours, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let hosts = [
            "a.test".to_owned(),
            "*.A.test".to_owned(),
            "192.0.2.1".to_owned(),
        ];
        let names = &["a.test", "*.a.test", "192.0.2.1"][..];
        let good = made(names, NOW - DAY, NOW + DAY, &ours);
        for (chain, expected) in [
            (good.clone(), None),
            (good.repeat(CHAIN_MAX), None),
            (good.repeat(CHAIN_MAX + 1), Some("a chain of more than 16")),
            (String::new(), Some("no certificate")),
            ("lies".to_owned(), Some("no certificate")),
            (ours.serialize_pem(), Some("no certificate")),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
                Some("a certificate that cannot be read"),
            ),
            (
                format!("{good}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
                Some("a certificate that cannot be read"),
            ),
            (
                made(names, NOW - DAY, NOW + DAY, &other),
                Some("for another key"),
            ),
            (
                made(&["a.test"], NOW - DAY, NOW + DAY, &ours),
                Some("without *.A.test, 192.0.2.1"),
            ),
            (
                made(names, NOW + DAY, NOW - DAY, &ours),
                Some("ends before it begins"),
            ),
            (
                made(names, NOW + DAY, NOW + 2 * DAY, &ours),
                Some(
                    "is not valid before 2027-01-16 08:00 UTC by this machine's clock, which may be wrong: it says 2027-01-15 08:00 UTC",
                ),
            ),
            (made(names, NOW + 3000, NOW + 2 * DAY, &ours), None),
            (
                made(names, NOW - 2 * DAY, NOW - DAY, &ours),
                Some("expired on 2027-01-14 08:00 UTC by this machine's clock"),
            ),
        ] {
            let found = verify(&chain, &ours.serialize_pem(), &hosts, NOW);
            match (&found, expected) {
                (Ok(facts), None) => assert!(facts.covers(&hosts)),
                (Err(error), Some(expected)) => {
                    let error = error.to_string();
                    assert!(error.contains(expected), "{error} has {expected}");
                }
                _ => panic!("{found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn the_fraction_of_a_certificate_stays_and_differs() {
        let key = KeyPair::generate().unwrap();
        let fractions: Vec<f64> = (0..8)
            .map(|n| {
                let chain = made(&["a.test"], NOW - n, NOW + DAY, &key);
                let one = read(&chain, &key.serialize_pem()).unwrap().fraction;
                let again = read(&chain, &key.serialize_pem()).unwrap().fraction;
                assert_eq!(one, again);
                one
            })
            .collect();
        assert!(fractions.iter().all(|f| (0.0..1.0).contains(f)));
        assert!(fractions.iter().any(|f| *f != fractions[0]));
    }
}
