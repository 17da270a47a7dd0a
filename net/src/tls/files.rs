//! Certificates and keys in PEM files, with errors that name the file.

use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};

/// The largest file of certificates or keys that is read.
pub(super) const FILE_BYTES_MAX: u64 = 4 << 20;
/// What editors of some systems write before the text of a file in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The most certificates of the chain that a server or client shows.
const CHAIN_MAX: usize = 16;

/// A file for TLS that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {}: {error}{}", .path.display(), hint(.error))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// Its content cannot be used.
    #[error("{} {problem}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
}

/// What to do about a file that the process may not read: keys are often their owner's alone.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; let the group of this process's user read it (chgrp GROUP FILE, chmod 640 FILE) and enter the directories above it"
        }
        _ => "",
    }
}

pub(super) fn unusable(path: &Path, problem: impl Into<String>) -> FileError {
    FileError::Unusable {
        path: path.to_owned(),
        problem: problem.into(),
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let unreadable = |error| FileError::Unreadable {
        path: path.to_owned(),
        error,
    };
    let mut text = Vec::new();
    // Opening a pipe waits for a writer, and reading a terminal or a device might never end. The file
    // may have been replaced after the first look: it is opened without waiting, and looked at again.
    let refuse_others = |about: std::fs::Metadata| match about.is_file() {
        true => Ok(()),
        false => Err(unusable(path, "is not a regular file")),
    };
    refuse_others(std::fs::metadata(path).map_err(unreadable)?)?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(unreadable)?;
    refuse_others(file.metadata().map_err(unreadable)?)?;
    io::Read::read_to_end(&mut io::Read::take(file, FILE_BYTES_MAX + 1), &mut text)
        .map_err(unreadable)?;
    match text.len() as u64 > FILE_BYTES_MAX {
        true => Err(unusable(
            path,
            format!("has more than {FILE_BYTES_MAX} bytes"),
        )),
        false => {
            if text.starts_with(BYTE_ORDER_MARK) {
                text.drain(..BYTE_ORDER_MARK.len());
            }
            Ok(text)
        }
    }
}

/// Why a file has no PEM of a kind, as far as it can be seen.
fn hint_of_content(path: &Path, text: &[u8], wanted: &str) -> String {
    let has = |label: &str| text.windows(label.len()).any(|at| at == label.as_bytes());
    let path = path.display();
    match text {
        [] => "; it is empty".to_owned(),
        // A SEQUENCE of ASN.1 with a length of two bytes.
        [0x30, 0x82, ..] => match wanted {
            "CERTIFICATE" => {
                format!("; it is in DER form: `openssl x509 -inform der -in {path}` prints PEM")
            }
            _ => format!("; it is in DER form: `openssl pkey -inform der -in {path}` prints PEM"),
        },
        _ if wanted == "CERTIFICATE" && has("PRIVATE KEY-----") => {
            "; it has a private key: are cert and key exchanged?".to_owned()
        }
        _ if wanted != "CERTIFICATE" && has("-----BEGIN CERTIFICATE-----") => {
            "; it has a certificate: are cert and key exchanged?".to_owned()
        }
        _ => String::new(),
    }
}

/// All certificates of a file in PEM form, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => {
            let hint = hint_of_content(path, &text, "CERTIFICATE");
            Err(unusable(
                path,
                format!("has no certificate in PEM form{hint}"),
            ))
        }
        Err(error) => Err(unusable(
            path,
            format!("has no certificates in PEM form that can be used: {error}"),
        )),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let is_encrypted = |line: &[u8]| {
            line.starts_with(b"-----BEGIN ENCRYPTED PRIVATE KEY")
                || line.starts_with(b"Proc-Type: 4,ENCRYPTED")
        };
        match text.split(|byte| *byte == b'\n').any(is_encrypted) {
            true => unusable(
                path,
                "has a private key with a passphrase; remove it with `openssl pkey`",
            ),
            false => {
                let hint = hint_of_content(path, &text, "PRIVATE KEY");
                unusable(
                    path,
                    format!("has no private key in PEM form that can be used: {error}{hint}"),
                )
            }
        }
    })
}

/// A certificate, the chain behind it, and its private key.
///
/// # Errors
/// A file that cannot be read, has no PEM of its kind, or a key that is not the certificate's.
pub(super) fn certified_key(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, FileError> {
    let chain = certificates(cert)?;
    if chain.len() > CHAIN_MAX {
        let problem = format!("has more than {CHAIN_MAX} certificates; a chain has few");
        return Err(unusable(cert, problem));
    }
    let private_key = private_key(key)?;
    let with_key = |chain: &[CertificateDer<'static>]| {
        CertifiedKey::from_der(chain.to_vec(), private_key.clone_key(), &super::provider())
    };
    with_key(&chain).map(Arc::new).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch)
            if (1..chain.len()).any(|n| with_key(&chain[n..]).is_ok()) =>
        {
            let problem = "has the certificate of this key behind another one: it must be the first, and those that issued it follow";
            unusable(cert, problem)
        }
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => unusable(
            key,
            format!(
                "cannot be used with {}: it is the key of another certificate",
                cert.display()
            ),
        ),
        Error::InvalidCertificate(error) => unusable(
            cert,
            format!("has a first certificate that cannot be used: {error}"),
        ),
        error => unusable(
            key,
            format!("cannot be used with {}: {error}", cert.display()),
        ),
    })
}
