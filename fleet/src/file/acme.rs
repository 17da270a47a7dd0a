//! The sections `[acme]` and `[[acme.authority]]`, and those of `[[certificate]]` without files:
//! certificates that control orders.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;

use super::names;
use super::reader::{Section, Text, nearest};
use super::settings::Settings;
use super::values::{check_label, path};
use crate::config::{
    Acme, AcmeAuthority, AcmeChallenge, Cluster, ExternalAccount, OrderedCertificate, Site,
};
use crate::wanted_certificates::covers;

/// Settings of `[acme]`.
pub(super) const ACME: Settings = Settings::of(&[
    "terms_agreed",
    "contact",
    "resolver",
    "challenge",
    "authority",
]);

/// Settings of `[[acme.authority]]`.
pub(super) const AUTHORITY: Settings = Settings::of(&[
    "name",
    "directory",
    "ca",
    "eab_key_id",
    "eab_hmac_key_file",
    "profile",
]);

/// Most names of a certificate: what authorities allow.
pub(super) const NAMES_MAX: usize = 100;

/// Most authorities, and most addresses of the operator.
const LIST_MAX: usize = 8;

/// Longest URL, identifier or profile name.
const TEXT_BYTES_MAX: usize = 512;

/// An authority whose directory need not be written.
struct KnownAuthority {
    name: &'static str,
    directory: &'static str,
    /// Where its terms are.
    terms: &'static str,
    /// Whether it wants an account elsewhere.
    needs_external_account: bool,
}

const KNOWN: [KnownAuthority; 6] = [
    KnownAuthority {
        name: "letsencrypt",
        directory: "https://acme-v02.api.letsencrypt.org/directory",
        terms: "https://letsencrypt.org/repository/",
        needs_external_account: false,
    },
    KnownAuthority {
        name: "letsencrypt-staging",
        directory: "https://acme-staging-v02.api.letsencrypt.org/directory",
        terms: "https://letsencrypt.org/repository/",
        needs_external_account: false,
    },
    KnownAuthority {
        name: "zerossl",
        directory: "https://acme.zerossl.com/v2/DV90",
        terms: "https://zerossl.com/terms/",
        needs_external_account: true,
    },
    KnownAuthority {
        name: "google",
        directory: "https://dv.acme-v02.api.pki.goog/directory",
        terms: "https://pki.goog/GTS-SA.pdf",
        needs_external_account: true,
    },
    KnownAuthority {
        name: "google-staging",
        directory: "https://dv.acme-v02.test-api.pki.goog/directory",
        terms: "https://pki.goog/GTS-SA.pdf",
        needs_external_account: true,
    },
    KnownAuthority {
        name: "sslcom",
        directory: "https://acme.ssl.com/sslcom-dv-ecc",
        terms: "https://www.ssl.com/repository/",
        needs_external_account: true,
    },
];

fn known(name: &str) -> Option<&'static KnownAuthority> {
    KNOWN.iter().find(|known| known.name == name)
}

/// The parts of a fleet that certificates refer to.
pub(super) struct OfFleet<'f> {
    pub(super) zone: &'f str,
    pub(super) has_control: bool,
    pub(super) has_name_servers: bool,
    pub(super) clusters: &'f [Cluster],
    pub(super) sites: &'f [Site],
}

pub(super) fn check_acme(
    section: &Section<'_>,
    base: &Path,
    ordered: Vec<Section<'_>>,
    fleet: &OfFleet<'_>,
) -> Option<Acme> {
    if !section.is_present() {
        for one in &ordered {
            one.note_at(
                "hosts",
                "control orders no certificates",
                "add a section [acme] with terms_agreed = true; or name the files cert and key",
            );
        }
        return None;
    }
    if !fleet.has_control {
        section.mistakes.note(
            section.at,
            "acme: there is no control, which orders the certificates",
            "add a section [control]",
        );
    }
    let nodes = fleet.clusters.iter().flat_map(|c| &c.nodes);
    if !fleet.clusters.is_empty() && nodes.clone().all(|node| node.listen_tls.is_empty()) {
        section.mistakes.note(
            section.at,
            "acme: no edge has listen_tls, so none would show a certificate",
            "leave listen_tls out, for port 443, or write listen_tls = \"0.0.0.0:443\" at the nodes",
        );
    }

    let authorities = check_authorities(section, base);
    check_terms(section, &authorities);
    let challenge = check_challenge(section, fleet);
    let mut taken = HashMap::new();
    Some(Acme {
        contact: check_contact(section),
        resolver: section.socket("resolver"),
        challenge,
        certificates: ordered
            .iter()
            .filter_map(|one| check_ordered(one, challenge, fleet, &mut taken))
            .collect(),
        authorities,
    })
}

/// Authorities issue to those only who agree to their terms, which no program can do for them.
fn check_terms(section: &Section<'_>, authorities: &[AcmeAuthority]) {
    let terms: Vec<String> = authorities
        .iter()
        .map(|authority| match known(&authority.name) {
            Some(known) => format!("{} ({})", authority.name, known.terms),
            None => authority.name.clone(),
        })
        .collect();
    let terms = terms.join(", ");
    if !section.has("terms_agreed") {
        section.note_missing(
            "terms_agreed",
            &format!("terms_agreed = true, if you agree to the terms of {terms}"),
        );
    } else if !section.boolean("terms_agreed", true) {
        section.note_at(
            "terms_agreed",
            "no authority issues certificates without it",
            format!("read the terms of {terms}, and write true; or remove [acme]"),
        );
    }
}

fn check_authorities(section: &Section<'_>, base: &Path) -> Vec<AcmeAuthority> {
    let sections = section.sections("authority", AUTHORITY);
    if let Some(one) = sections.get(LIST_MAX) {
        one.mistakes.note(
            one.at,
            format!("{}: there are more than {LIST_MAX} authorities", one.path),
            "remove some: each is asked only when those before it fail",
        );
    }
    let mut seen = HashSet::new();
    let mut authorities: Vec<AcmeAuthority> = sections
        .iter()
        .filter_map(|one| check_authority(one, base, &mut seen))
        .collect();
    if authorities.is_empty() {
        authorities.push(default_authority());
    }
    authorities
}

/// The authority that is asked where none is named.
pub(super) fn default_authority() -> AcmeAuthority {
    let [default, ..] = &KNOWN;
    AcmeAuthority {
        name: default.name.to_owned(),
        directory: default.directory.to_owned(),
        ca: None,
        external_account: None,
        profile: None,
    }
}

fn check_authority(
    section: &Section<'_>,
    base: &Path,
    seen: &mut HashSet<String>,
) -> Option<AcmeAuthority> {
    let name = section.need_text("name", "name = \"letsencrypt\"")?;
    check_label(&name);
    if !seen.insert(name.text.to_owned()) {
        name.note(
            format!("{:?} is the name of another authority", name.text),
            "name each authority once",
        );
    }

    let known = known(name.text);
    let directory = match (section.text("directory"), known) {
        (Some(text), _) => check_directory(&text),
        (None, Some(known)) => known.directory.to_owned(),
        (None, None) if section.has("directory") => String::new(),
        (None, None) => {
            let names = KNOWN.map(|known| known.name);
            let near = nearest(name.text, &names)
                .map_or_else(String::new, |near| format!("did you mean {near:?}? "));
            name.note(
                format!("the directory of {:?} is not known", name.text),
                format!(
                    "{near}add directory = \"https://...\", or write one of {}",
                    names.map(|name| format!("{name:?}")).join(", ")
                ),
            );
            String::new()
        }
    };
    let external_account = check_external_account(section, base);
    let has_account = section.has("eab_key_id") || section.has("eab_hmac_key_file");
    if known.is_some_and(|known| known.needs_external_account)
        && !has_account
        && !section.has("directory")
    {
        section.note_missing(
            "eab_key_id",
            &format!(
                "eab_key_id and eab_hmac_key_file, which {} shows in your account there",
                name.text
            ),
        );
    }

    Some(AcmeAuthority {
        name: name.text.to_owned(),
        directory,
        ca: section.text("ca").map(|text| path(&text, base)),
        external_account,
        profile: section
            .text("profile")
            .map(|text| check_word(&text, "a profile, such as \"shortlived\"")),
    })
}

/// The URL of a directory: its account keys and orders are worth nothing to those who listen, but
/// those who change answers could have certificates refused or delayed.
fn check_directory(text: &Text<'_>) -> String {
    const FORMS: &str = "write its URL, such as \"https://acme-v02.api.letsencrypt.org/directory\"";
    let url = text.text;
    if let Some(problem) = directory_problem(url) {
        text.note(
            format!("{} cannot be used: {problem}", shown_url(url)),
            FORMS,
        );
    }
    url.to_owned()
}

/// A URL for a message: nothing of a user name and password, or what may be one.
pub(super) fn shown_url(url: &str) -> String {
    match url.contains('@') {
        true => "this URL".to_owned(),
        false => format!("{url:?}"),
    }
}

/// Why a URL cannot be that of a directory.
pub(super) fn directory_problem(url: &str) -> Option<&'static str> {
    let is_visible = url.bytes().all(|b| b.is_ascii_graphic()) && url.len() <= TEXT_BYTES_MAX;
    let (scheme, rest) = url.split_once("://").unwrap_or(("", ""));
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let host = names::host_and_port(&rest[..end]);
    match (scheme, &host) {
        _ if !is_visible => Some("it has characters that a URL cannot have, or too many"),
        ("https" | "http", _) if rest[..end].contains('@') => {
            Some("a URL with a user name is not taken")
        }
        ("https", Err(problem)) | ("http", Err(problem)) => Some(*problem),
        _ if rest.contains('#') => Some("it has a fragment"),
        ("https", Ok(_)) => None,
        ("http", Ok(host)) if is_loopback(host) => None,
        ("http", Ok(_)) => Some("only an authority on this machine may be asked without TLS"),
        _ => Some("it does not begin with https://"),
    }
}

/// Whether `host[:port]` is this machine.
fn is_loopback(host: &str) -> bool {
    let without_port = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    without_port == "localhost"
        || without_port
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn check_external_account(section: &Section<'_>, base: &Path) -> Option<ExternalAccount> {
    for (there, missing, what) in [
        (
            "eab_key_id",
            "eab_hmac_key_file",
            "eab_hmac_key_file = \"eab.key\", the file with the key of that account",
        ),
        (
            "eab_hmac_key_file",
            "eab_key_id",
            "eab_key_id = \"...\", the identifier that belongs to that key",
        ),
    ] {
        if section.has(there) && !section.has(missing) {
            section.note_missing(missing, what);
        }
    }
    let key_id = section.text("eab_key_id");
    let file = section.text("eab_hmac_key_file");
    Some(ExternalAccount {
        key_id: key_id.map(|text| check_word(&text, "the identifier that the authority shows"))?,
        hmac_key_file: file.map(|text| path(&text, base))?,
    })
}

/// A word of visible ASCII characters.
fn check_word(text: &Text<'_>, what: &str) -> String {
    let word = text.text;
    if word.is_empty() || word.len() > TEXT_BYTES_MAX || !word.bytes().all(|b| b.is_ascii_graphic())
    {
        text.note(
            "it is empty, too long, or has characters that are not visible ASCII",
            format!("write {what}"),
        );
    }
    word.to_owned()
}

/// Addresses as URLs (RFC 8555 section 7.3): `mailto` with one address and without fields.
fn check_contact(section: &Section<'_>) -> Vec<String> {
    let texts = section.texts("contact").unwrap_or_default();
    if let Some(text) = texts.get(LIST_MAX) {
        text.note(
            format!("there are more than {LIST_MAX} addresses"),
            "remove some",
        );
    }
    let check = |text: Text<'_>| {
        contact_url(text.text).unwrap_or_else(|| {
            text.note(
                format!("{:?} is not a mail address", text.text),
                "write one such as \"ops@example.org\"",
            );
            String::new()
        })
    };
    texts.into_iter().map(check).collect()
}

/// The URL of a mail address; `None` for what is none.
pub(super) fn contact_url(text: &str) -> Option<String> {
    let address = text.strip_prefix("mailto:").unwrap_or(text);
    let is_good = address.len() <= TEXT_BYTES_MAX
        && address
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b",?&<>\"".contains(&b))
        && address.split_once('@').is_some_and(|(user, host)| {
            !user.is_empty() && host.contains('.') && names::host_problem(host).is_none()
        });
    is_good.then(|| format!("mailto:{address}"))
}

fn check_challenge(section: &Section<'_>, fleet: &OfFleet<'_>) -> Option<AcmeChallenge> {
    let text = section.text("challenge")?;
    match text.text {
        "http" => Some(AcmeChallenge::Http),
        "dns" => {
            if !fleet.has_name_servers {
                text.note(
                    "there is no name server to answer it",
                    "add a [[name_server]], or write \"http\"",
                );
            }
            Some(AcmeChallenge::Dns)
        }
        other => {
            text.note(
                format!("{other:?} is not a challenge"),
                "write \"dns\" or \"http\", or leave it out: dns is used for names of zones that this fleet serves",
            );
            None
        }
    }
}

/// A certificate that is ordered. `general` is the challenge of those that name none.
fn check_ordered(
    section: &Section<'_>,
    general: Option<AcmeChallenge>,
    fleet: &OfFleet<'_>,
    taken: &mut HashMap<String, usize>,
) -> Option<OrderedCertificate> {
    let texts = section.texts("hosts")?;
    if texts.is_empty() {
        section.note_at("hosts", "the list is empty", "name at least one host");
        return None;
    }
    if texts.len() > NAMES_MAX {
        section.note_at(
            "hosts",
            format!("the certificate has {} names", texts.len()),
            format!("write at most {NAMES_MAX} into one [[certificate]], or a wildcard such as \"*.example.org\""),
        );
        return None;
    }
    let challenge = check_challenge(section, fleet);
    let mut hosts: Vec<String> = Vec::new();
    for text in texts {
        let Some(host) = check_host(&text) else {
            continue;
        };
        let line = section.mistakes.line_of(text.at);
        if hosts.contains(&host) {
            text.note(format!("{host} is listed twice"), "remove one");
            continue;
        }
        if let Some(first) = taken.insert(host.clone(), line) {
            text.note(
                format!("{host} is in another certificate, in line {first}"),
                "remove one: two orders for one name only use up the authority's limits",
            );
        } else if !is_of_a_site(&host, fleet) {
            text.note(
                format!("{host} belongs to no site"),
                "add it to the hosts of a [[site]], or remove it here",
            );
        } else if host.starts_with("*.") {
            check_wildcard(&text, challenge.or(general), fleet);
        }
        hosts.push(host);
    }
    Some(OrderedCertificate { hosts, challenge })
}

fn check_host(text: &Text<'_>) -> Option<String> {
    let host = names::normal(text.text);
    match name_problem(&host) {
        None => Some(host),
        Some(problem) => {
            text.note(
                format!("no certificate can name {:?}: {problem}", text.text),
                "write hosts such as \"www.example.org\" or \"*.example.org\"",
            );
            None
        }
    }
}

/// Why authorities certify no such host or wildcard; it is in normal form.
pub(super) fn name_problem(host: &str) -> Option<&'static str> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    if name.contains('*') {
        Some("* stands for one label, the first")
    } else if name.parse::<IpAddr>().is_ok() {
        Some("it is an address")
    } else if !name.contains('.') {
        Some("authorities certify no top-level names")
    } else if name.contains('_') {
        Some("authorities certify no names with _")
    } else {
        names::host_problem(name)
    }
}

/// Authorities issue wildcards for answers in the DNS only (RFC 8555 leaves it open; the CA/Browser
/// Forum's rules do not).
fn check_wildcard(text: &Text<'_>, challenge: Option<AcmeChallenge>, fleet: &OfFleet<'_>) {
    if challenge == Some(AcmeChallenge::Http) {
        text.note(
            "no authority issues a wildcard for the challenge http",
            "write challenge = \"dns\" here, or name the hosts one by one",
        );
    } else if !fleet.has_name_servers {
        text.note(
            "a wildcard needs the challenge dns, and there is no name server to answer it",
            "add a [[name_server]], or name the hosts one by one",
        );
    }
}

/// Whether a site has the host, or a host that the wildcard covers.
fn is_of_a_site(host: &str, fleet: &OfFleet<'_>) -> bool {
    let mut sites = fleet.sites.iter();
    sites.any(|site| {
        site.hosts.iter().any(|h| h == "*" || covers(host, h))
            || covers(host, &format!("{}.{}", site.name, fleet.zone))
    })
}
