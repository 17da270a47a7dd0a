//! The sections `[tls]` and `[[certificate]]`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

use super::names;
use super::reader::{Section, Text};
use super::settings::Settings;
use super::values::path;
use crate::config::{CertificateFiles, TlsSettings, TlsVersion};

/// Settings of `[tls]`.
pub(super) const TLS: Settings = Settings::of(&["default_host", "version_min"]);

/// Settings of `[[certificate]]`.
pub(super) const CERTIFICATE: Settings = Settings::of(&["cert", "key", "hosts", "challenge"]);

/// What edges show to clients, and the sections of the certificates that control orders, which have
/// hosts in place of files. The files are on the edges: only they read them.
pub(super) fn check_tls<'a>(
    root: &Section<'a>,
    base: &Path,
    has_acme: bool,
) -> (TlsSettings, Vec<Section<'a>>) {
    let section = root.section("tls", TLS);
    let mut certificates = Vec::new();
    let mut seen = HashSet::new();
    let mut ordered = Vec::new();
    for one in root.sections("certificate", CERTIFICATE) {
        if one.has("hosts") && !one.has("cert") && !one.has("key") {
            ordered.push(one);
            continue;
        }
        for setting in ["hosts", "challenge"] {
            if one.has(setting) {
                one.note_at(
                    setting,
                    "this certificate has files, and serves the hosts that it contains",
                    format!("remove {setting}; or remove cert and key, and control orders a certificate for hosts"),
                );
            }
        }
        let cert = one.need_text("cert", "cert = \"www.pem\", the certificate and its chain; or hosts instead of files, and control orders it");
        let key = one.need_text("key", "key = \"www.key\", its private key");
        let (Some(cert), Some(key)) = (cert, key) else {
            continue;
        };
        let pair = CertificateFiles {
            cert: path(&cert, base),
            key: path(&key, base),
        };
        if !seen.insert(pair.cert.clone()) {
            cert.note(
                format!("{:?} is the file of another certificate", cert.text),
                "name each file once; a certificate serves every host that it contains",
            );
        }
        certificates.push(pair);
    }
    if section.has("default_host") && certificates.is_empty() && !has_acme {
        section.note_at(
            "default_host",
            "there is no certificate",
            "add a section [[certificate]] with cert and key, or [acme]",
        );
    }
    let settings = TlsSettings {
        certificates,
        default_host: section.text("default_host").map(|text| host(&text)),
        version_min: section
            .text("version_min")
            .map_or(TlsVersion::default(), |text| version(&text)),
    };
    (settings, ordered)
}

/// A host name or an address, as certificates name it.
fn host(text: &Text<'_>) -> String {
    if let Ok(address) = text.text.parse::<IpAddr>() {
        return address.to_string();
    }
    let name = names::normal(text.text);
    if let Some(problem) = names::host_problem(&name) {
        text.note(
            format!("{:?} is not a host name: {problem}", text.text),
            "write a host of one of the certificates, such as \"www.example.org\"",
        );
    }
    name
}

fn version(text: &Text<'_>) -> TlsVersion {
    match text.text {
        "1.2" => TlsVersion::V1_2,
        "1.3" => TlsVersion::V1_3,
        other => {
            text.note(
                format!("{other:?} is no version of TLS that is served"),
                "write \"1.2\" or \"1.3\"",
            );
            TlsVersion::default()
        }
    }
}
