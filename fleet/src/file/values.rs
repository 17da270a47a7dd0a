//! Readers of single values that several sections share: names, paths, URLs, references.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::names;
use super::reader::{Section, Text, nearest};
use crate::config::CertificateFiles;

/// One day.
pub(super) const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn check_label(text: &Text<'_>) -> bool {
    let good = names::is_label(text.text);
    if !good {
        text.note(
            format!("{:?} cannot be a name", text.text),
            "use up to 63 lower-case letters, digits and -, such as \"ams-1\"",
        );
    }
    good
}

pub(super) fn host_name(text: &Text<'_>) -> String {
    let host = names::normal(text.text);
    if let Some(problem) = names::host_problem(&host) {
        text.note(
            format!("{:?} is not a host name: {problem}", text.text),
            "write a name such as \"www.example.org\", without scheme, port and path",
        );
    }
    host
}

pub(super) fn zone_name(text: &Text<'_>, or_root: bool) -> Option<String> {
    let zone = names::normal(text.text);
    if or_root && text.text == "." {
        return Some(zone);
    }
    match names::host_problem(&zone) {
        None => Some(zone),
        Some(problem) => {
            text.note(
                format!("{:?} is not a zone name: {problem}", text.text),
                "write a domain name such as \"example.org\"",
            );
            None
        }
    }
}

pub(super) fn path(text: &Text<'_>, base: &Path) -> PathBuf {
    if text.text.is_empty() {
        text.note(
            "the path is empty",
            "write a path, from the fleet file's directory or absolute",
        );
    }
    // Collecting components removes `.`.
    base.join(text.text).components().collect()
}

pub(super) fn url(text: &Text<'_>, schemes: &[&str]) -> String {
    names::base_url(text.text, schemes).unwrap_or_else(|problem| {
        let forms: Vec<String> = schemes
            .iter()
            .map(|s| format!("{s}://host[:port]"))
            .collect();
        text.note(
            format!("{:?} cannot be used: {problem}", text.text),
            format!("write {} and nothing more", forms.join(" or ")),
        );
        String::new()
    })
}

/// Host names that a listener accepts, see [`crate::own_names`].
pub(super) fn check_own_names(section: &Section<'_>, key: &'static str) -> Vec<String> {
    let check = |text: Text<'_>| match text.text {
        "*" => "*".to_owned(),
        written => {
            let name = names::normal(written.strip_prefix("*.").unwrap_or(written));
            if let Some(problem) = names::host_problem(&name) {
                text.note(
                    format!("{written:?} is not a host name: {problem}"),
                    "write a name without a port, *.NAME for all below it, or *",
                );
            }
            if written.starts_with("*.") {
                format!("*.{name}")
            } else {
                name
            }
        }
    };
    section
        .texts(key)
        .unwrap_or_default()
        .into_iter()
        .map(check)
        .collect()
}

/// Web origins as browsers write them in the field `Origin` (RFC 6454 section 6.2): without the port
/// that the scheme implies.
pub(super) fn check_web_origins(section: &Section<'_>, key: &'static str) -> Vec<String> {
    let check = |text: Text<'_>| {
        let url = url(&text, &["http", "https"]);
        let implied = if url.starts_with("https:") {
            ":443"
        } else {
            ":80"
        };
        url.strip_suffix(implied).unwrap_or(&url).to_owned()
    };
    let texts = section.texts(key).unwrap_or_default();
    texts.into_iter().map(check).collect()
}

pub(super) fn need_socket(section: &Section<'_>, key: &'static str, example: &str) -> SocketAddr {
    if !section.has(key) {
        section.note_missing(key, example);
    }
    section
        .socket(key)
        .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)))
}

/// A URL for other nodes; by default that of the listener, if its address is specified. `is_tls`
/// says whether the listener has a certificate.
pub(super) fn reachable_url(
    section: &Section<'_>,
    key: &'static str,
    listen: SocketAddr,
    listen_key: &str,
    is_tls: bool,
) -> String {
    let scheme = if is_tls { "https" } else { "http" };
    if let Some(text) = section.text(key) {
        let url = url(&text, &["http", "https"]);
        // The reverse is right: a proxy before the listener may have the certificate.
        if is_tls && url.starts_with("http://") {
            text.note(
                "nodes would speak HTTP without TLS to a listener that has a certificate",
                format!("write {key} = \"https://...\", or leave the certificate out"),
            );
        }
        return url;
    }
    if listen.ip().is_unspecified() && !section.has(key) {
        let problem = format!(
            "{}: this setting is required, as {listen_key} is {listen}, every address",
            section.path_of(key)
        );
        section.mistakes.note(
            section.at,
            problem,
            format!(
                "add {key} = \"{scheme}://host:{}\", by which other nodes reach it",
                listen.port()
            ),
        );
    }
    format!("{scheme}://{listen}")
}

/// A certificate and its key, both or none. The files are on the nodes that show the certificate,
/// so their existence is not checked here.
pub(super) fn certificate_files(
    section: &Section<'_>,
    cert_key: &'static str,
    key_key: &'static str,
    base: &Path,
) -> Option<CertificateFiles> {
    let file = |key| section.text(key).map(|text| path(&text, base));
    for (there, missing, what) in [
        (cert_key, key_key, "the private key of that certificate"),
        (key_key, cert_key, "the certificate of that private key"),
    ] {
        if section.has(there) && !section.has(missing) {
            section.note_missing(missing, &format!("{missing} = \"{missing}.pem\", {what}"));
        }
    }
    let (cert, key) = (file(cert_key), file(key_key));
    Some(CertificateFiles {
        cert: cert?,
        key: key?,
    })
}

/// A prefix of addresses, or a single address. Every address is a mistake; `instead` says what to
/// write.
pub(super) fn prefix(text: &Text<'_>, instead: &str) -> Option<IpNet> {
    const FORMS: &str = "write one such as \"192.0.2.7\", \"10.0.0.0/8\" or \"2001:db8::/32\"";
    let found: Option<IpNet> = text
        .text
        .parse()
        .ok()
        .or_else(|| text.text.parse::<IpAddr>().ok().map(IpNet::from));
    match found {
        None => text.note(
            format!("{:?} is not an address or a prefix", text.text),
            FORMS,
        ),
        Some(prefix) if prefix.prefix_len() == 0 => {
            text.note(format!("{:?} is every address", text.text), instead);
        }
        Some(_) => {}
    }
    found.map(|prefix| prefix.trunc())
}

pub(super) fn unique<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    values.for_each(|v| {
        if !seen.contains(&v) {
            seen.push(v)
        }
    });
    seen
}

/// Longest list of references for which names are searched one by one.
const SHORT_LIST: usize = 16;

/// Indexes of the items that a list names; of all items without a list.
pub(super) fn references<T>(
    section: &Section<'_>,
    key: &'static str,
    things: &[T],
    name: impl Fn(&T) -> &String,
    what: &str,
) -> Vec<usize> {
    let Some(texts) = section.texts(key) else {
        return (0..things.len()).collect();
    };
    let names: Vec<&String> = things.iter().map(&name).collect();
    // Long lists get a map. Most lists are short, and there are many of them.
    let numbers: Option<HashMap<&str, usize>> = (texts.len() > SHORT_LIST).then(|| {
        names
            .iter()
            .enumerate()
            .rev()
            .map(|(number, name)| (name.as_str(), number))
            .collect()
    });
    let number_of = |text: &str| match &numbers {
        Some(numbers) => numbers.get(text).copied(),
        None => names.iter().position(|n| *n == text),
    };
    if texts.is_empty() {
        section.note_at(
            key,
            "the list is empty",
            format!("name at least one {what}, or leave {key} out for all"),
        );
    }

    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for text in texts {
        match number_of(text.text) {
            Some(index) if !seen.insert(index) => {
                text.note(format!("{:?} is listed twice", text.text), "remove one")
            }
            Some(index) => found.push(index),
            None => note_unknown(&text, &names, what),
        }
    }
    found
}

/// Notes a reference to a name that does not exist.
fn note_unknown(text: &Text<'_>, names: &[&String], what: &str) {
    if names.is_empty() {
        text.note(
            format!("there is no {what} {:?}; the file has none", text.text),
            format!("add a [[{}]] of that name", what.replace(' ', "_")),
        );
        return;
    }
    let near =
        nearest(text.text, names).map_or_else(String::new, |n| format!("did you mean {n:?}? "));
    let all: Vec<String> = names.iter().map(|n| format!("{n:?}")).collect();
    text.note(
        format!("there is no {what} {:?}", text.text),
        format!("{near}there is {}", all.join(", ")),
    );
}
