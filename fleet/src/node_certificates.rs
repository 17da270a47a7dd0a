//! Certificates with their private keys, as control gives them to the edges that show them: which
//! ones there are, and each of them encrypted for the node that asks.
//!
//! A node asks for the list ([`CertificateList`]), and then for those that it lacks. It sends an
//! ephemeral X25519 key (RFC 7748); control answers with one of its own and with boxes of AES-256-GCM.
//! Their key is derived from both by HKDF (RFC 5869), with the node's own key as salt: who reads the
//! exchange but has no node key opens nothing, and who learns a node key later opens no exchange of
//! the past. Each exchange has keys of its own, so that numbers serve as nonces.
//!
//! Owns this form, which both sides share. A secret is never part of a log or of an error.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::hkdf;
use ring::rand::SystemRandom;
use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// Path of control's API.
pub const PATH: &str = "/v1/certificate-keys";

/// Request field with the node's ephemeral key, in hexadecimal.
pub const EXCHANGE_FIELD: &str = "nearcast-exchange-key";

/// Most certificates of a cluster.
pub const CERTIFICATES_MAX: usize = 10_000;

/// Most certificates in one answer.
pub const BOXES_MAX: usize = 32;

/// Largest certificate with chain and key.
pub const PEM_BYTES_MAX: usize = 256 << 10;

/// Longest name of a certificate: that of a host, and `*.`.
const NAME_BYTES_MAX: usize = 255;

/// Bytes of an X25519 key.
const KEY_BYTES: usize = 32;

/// Bytes of a digest.
const DIGEST_BYTES: usize = 32;

/// What the keys of boxes are derived for.
const PURPOSE: &[u8] = b"nearcast 1 certificate keys";

/// The certificates of a cluster, without their contents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateList {
    /// The cluster.
    pub cluster: String,
    /// Its certificates.
    pub certificates: Vec<Listed>,
}

/// A certificate of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its first host.
    pub name: String,
    /// What it contains, see [`digest`].
    pub digest: String,
}

/// Certificates for one node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedCertificates {
    /// Control's ephemeral key, in hexadecimal.
    exchange_key: String,
    certificates: Vec<SealedCertificate>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SealedCertificate {
    name: String,
    /// In hexadecimal.
    sealed: String,
}

/// A certificate with its chain and key.
#[derive(Clone, PartialEq, Eq)]
pub struct OpenedCertificate {
    /// Its first host.
    pub name: String,
    /// Certificate, chain and private key (PEM).
    pub pem: String,
}

/// A message that cannot be used. The reason contains nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("these are no usable certificates: {0}")]
pub struct Malformed(&'static str);

/// The digest of a certificate with its key, in hexadecimal: another one with every renewal.
pub fn digest(pem: &str) -> String {
    blake3::derive_key("nearcast 1 digest of a certificate", pem.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Whether a text has the form of a digest.
pub fn is_digest(text: &str) -> bool {
    text.len() == 2 * DIGEST_BYTES
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether a name can be that of a certificate: a host in lower case, perhaps after `*.`.
pub fn is_name(name: &str) -> bool {
    let host = name.strip_prefix("*.").unwrap_or(name);
    name.len() <= NAME_BYTES_MAX
        && !host.is_empty()
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

impl CertificateList {
    /// Reads a list.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(text: &[u8]) -> Result<Self, Malformed> {
        let read: Self =
            serde_json::from_slice(text).map_err(|_| Malformed("it is not such JSON"))?;
        if read.certificates.len() > CERTIFICATES_MAX {
            return Err(Malformed("there are more than 10,000"));
        }
        let is_good = |one: &Listed| is_name(&one.name) && is_digest(&one.digest);
        match read.certificates.iter().all(is_good) {
            true => Ok(read),
            false => Err(Malformed("a name or a digest has another form")),
        }
    }
}

/// One side of an exchange: an ephemeral key that is used once.
pub struct Exchange {
    private: EphemeralPrivateKey,
    public: [u8; KEY_BYTES],
}

impl Exchange {
    /// A new key.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn new() -> Result<Self, Malformed> {
        let failed = |_| Malformed("the system has no random bytes");
        let private =
            EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).map_err(failed)?;
        let public = private.compute_public_key().map_err(failed)?;
        let public = public
            .as_ref()
            .try_into()
            .map_err(|_| Malformed("no key"))?;
        Ok(Self { private, public })
    }

    /// The public key, in hexadecimal.
    pub fn public(&self) -> String {
        to_hex(&self.public)
    }

    /// The key of the boxes. `asks` says whether this side is the node.
    fn agree(self, theirs: &str, own_key: &Secret, asks: bool) -> Result<LessSafeKey, Malformed> {
        let theirs: [u8; KEY_BYTES] = from_hex(theirs)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(Malformed("the exchange key has another form"))?;
        if own_key.0.is_empty() {
            return Err(Malformed("the node has no key of its own"));
        }
        let Self { private, public } = self;
        let (node, control) = if asks {
            (public, theirs)
        } else {
            (theirs, public)
        };
        let peer = UnparsedPublicKey::new(&X25519, theirs);
        let derived = agree_ephemeral(private, &peer, |shared| {
            let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, own_key.0.as_bytes());
            let info = [PURPOSE, &node, &control];
            let mut bytes = [0; 32];
            salt.extract(shared)
                .expand(&info, &AES_256_GCM)
                .and_then(|okm| okm.fill(&mut bytes))
                .map(|()| bytes)
        });
        let bytes = derived
            .ok()
            .and_then(Result::ok)
            .ok_or(Malformed("the exchange key is not one"))?;
        UnboundKey::new(&AES_256_GCM, &bytes)
            .map(LessSafeKey::new)
            .map_err(|_| Malformed("the exchange key is not one"))
    }
}

fn nonce(number: usize) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&(number as u64).to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl SealedCertificates {
    /// Encrypts certificates for the node that sent `exchange_key` and has this key of its own.
    ///
    /// # Errors
    /// The exchange key is none, or the system has no random bytes.
    pub fn seal(
        certificates: &[OpenedCertificate],
        exchange_key: &str,
        own_key: &Secret,
    ) -> Result<Self, Malformed> {
        let exchange = Exchange::new()?;
        let public = exchange.public();
        let key = exchange.agree(exchange_key, own_key, false)?;
        let seal = |(number, one): (usize, &OpenedCertificate)| {
            let mut bytes = one.pem.clone().into_bytes();
            key.seal_in_place_append_tag(nonce(number), Aad::from(one.name.as_bytes()), &mut bytes)
                .map_err(|_| Malformed("a certificate is too large"))?;
            Ok(SealedCertificate {
                name: one.name.clone(),
                sealed: to_hex(&bytes),
            })
        };
        Ok(Self {
            exchange_key: public,
            certificates: certificates
                .iter()
                .enumerate()
                .map(seal)
                .collect::<Result<_, _>>()?,
        })
    }

    /// Reads and decrypts an answer, with the key that was sent and the node's own.
    ///
    /// # Errors
    /// [`Malformed`], also where it was encrypted for another node.
    pub fn open(
        text: &[u8],
        exchange: Exchange,
        own_key: &Secret,
    ) -> Result<Vec<OpenedCertificate>, Malformed> {
        let read: Self =
            serde_json::from_slice(text).map_err(|_| Malformed("it is not such JSON"))?;
        if read.certificates.len() > BOXES_MAX {
            return Err(Malformed("there are more than were asked for"));
        }
        let key = exchange.agree(&read.exchange_key, own_key, true)?;
        let open = |(number, one): (usize, SealedCertificate)| {
            if !is_name(&one.name) {
                return Err(Malformed("a name has another form"));
            }
            if one.sealed.len() > 2 * (PEM_BYTES_MAX + AES_256_GCM.tag_len()) {
                return Err(Malformed("a certificate is too large"));
            }
            let mut bytes = from_hex(&one.sealed).ok_or(Malformed("a box has another form"))?;
            let pem = key
                .open_in_place(nonce(number), Aad::from(one.name.as_bytes()), &mut bytes)
                .map_err(|_| Malformed("they are not encrypted for this node"))?;
            let pem = std::str::from_utf8(pem).map_err(|_| Malformed("one is not text"))?;
            Ok(OpenedCertificate {
                name: one.name,
                pem: pem.to_owned(),
            })
        };
        read.certificates
            .into_iter()
            .enumerate()
            .map(open)
            .collect()
    }
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str) -> OpenedCertificate {
        OpenedCertificate {
            name: name.to_owned(),
            pem: format!("-----BEGIN PRIVATE KEY----- of {name}"),
        }
    }

    fn key(text: &str) -> Secret {
        Secret(text.to_owned())
    }

    fn sealed(of: &[OpenedCertificate], exchange: &Exchange, own_key: &str) -> String {
        let sealed = SealedCertificates::seal(of, &exchange.public(), &key(own_key))
            .expect("a good exchange key");
        serde_json::to_string(&sealed).expect("JSON")
    }

    #[test]
    fn a_node_opens_what_was_sealed_for_it_and_nobody_else_does() {
        let certificates = [one("www.a.test"), one("*.b.test")];
        let exchange = Exchange::new().expect("random bytes");
        let text = sealed(&certificates, &exchange, "key of ams-1");
        assert!(!text.contains("PRIVATE") && !text.contains(&to_hex(b"PRIVATE")));
        let other = sealed(&certificates, &exchange, "key of ams-1");
        assert_ne!(text, other, "each exchange has keys of its own");
        let opened = SealedCertificates::open(text.as_bytes(), exchange, &key("key of ams-1"));
        assert!(opened == Ok(certificates.to_vec()));

        // Another node that reads the exchange, and this node with another exchange.
        let exchange = Exchange::new().expect("random bytes");
        let text = sealed(&certificates, &exchange, "key of ams-1");
        let foreign = SealedCertificates::open(text.as_bytes(), exchange, &key("key of ams-2"));
        assert!(foreign.is_err());
        let exchange = Exchange::new().expect("random bytes");
        assert!(SealedCertificates::open(text.as_bytes(), exchange, &key("key of ams-1")).is_err());
    }

    #[test]
    fn a_changed_answer_is_refused_without_a_word_of_it() {
        let certificates = [one("www.a.test"), one("*.b.test")];
        type Change = fn(&str) -> String;
        let changes: [(&str, Change); 7] = [
            ("renamed", |t| t.replace("www.a.test", "www.c.test")),
            ("path", |t| t.replace("www.a.test", "../a")),
            ("cut", |t| t.replace("\"sealed\":\"", "\"sealed\":\"00")),
            ("no hex", |t| t.replace("\"sealed\":\"", "\"sealed\":\"xy")),
            ("odd", |t| t.replace("\"sealed\":\"", "\"sealed\":\"0")),
            ("key", |t| {
                t.replace("\"exchange_key\":\"", "\"exchange_key\":\"00")
            }),
            ("no JSON", |t| t[1..].to_owned()),
        ];
        for (what, change) in changes {
            let exchange = Exchange::new().expect("random bytes");
            let text = change(&sealed(&certificates, &exchange, "key of ams-1"));
            let refused = SealedCertificates::open(text.as_bytes(), exchange, &key("key of ams-1"));
            let error = refused.err().expect(what).to_string();
            assert!(
                !error.contains("a.test") && !error.contains("ams-1"),
                "{error}"
            );
        }
        let many: Vec<_> = (0..=BOXES_MAX)
            .map(|n| one(&format!("h{n}.test")))
            .collect();
        let exchange = Exchange::new().expect("random bytes");
        let text = sealed(&many, &exchange, "k");
        assert!(SealedCertificates::open(text.as_bytes(), exchange, &key("k")).is_err());
        for exchange_key in ["", "00", &"0".repeat(64), &"xy".repeat(32)] {
            let refused = SealedCertificates::seal(&certificates, exchange_key, &key("k"));
            assert!(refused.is_err(), "{exchange_key}");
        }
        let exchange = Exchange::new().expect("random bytes");
        let without = SealedCertificates::seal(&certificates, &exchange.public(), &key(""));
        assert!(without.is_err(), "a node without a key");
    }

    #[test]
    fn lists_have_names_and_digests_only() {
        let digest = digest("pem");
        assert!(is_digest(&digest) && digest != super::digest("other"));
        let list = |name: &str, digest: &str| {
            let text = serde_json::to_vec(&CertificateList {
                cluster: "ams".to_owned(),
                certificates: vec![Listed {
                    name: name.to_owned(),
                    digest: digest.to_owned(),
                }],
            });
            CertificateList::parse(&text.expect("JSON"))
        };
        for (name, is_good) in [
            ("www.a.test", true),
            ("*.a.test", true),
            ("a", true),
            ("", false),
            ("*", false),
            ("*.", false),
            ("a..b", false),
            ("a/b", false),
            ("..", false),
            ("_wildcard.a.test", false),
            ("A.test", false),
            ("a.*.test", false),
        ] {
            assert_eq!(list(name, &digest).is_ok(), is_good, "{name}");
        }
        for wrong in ["", "00", &digest.to_uppercase(), &format!("{digest}0")] {
            assert!(list("a.test", wrong).is_err(), "{wrong}");
        }
        for text in ["", "[]", "{\"cluster\":\"ams\"}"] {
            assert!(CertificateList::parse(text.as_bytes()).is_err());
        }
    }
}
