//! The fleet file: parses and checks its text, and gives a [`Fleet`] or every mistake at once.
//!
//! The only module that knows the syntax of settings and their defaults; [`crate::config`] defines
//! their meaning. Each section of the file has a module with the list of its settings and their
//! readers. A test compares `docs/fleet-file.md` with them.

mod access_log;
mod acme;
mod catalogue;
mod clusters;
mod compression;
mod control;
mod fleet_section;
mod mistakes;
mod name_servers;
mod names;
mod origin_nodes;
mod reader;
mod record;
mod registry;
mod secrets;
mod settings;
mod site_https;
mod sites;
mod standalone;
mod standalone_acme;
mod steering;
mod tls;
mod values;
mod zones;

pub use self::catalogue::renamed_settings;
pub use self::mistakes::{Mistake, describe};
pub use self::secrets::{KeySource, read_key};
pub use self::standalone::{StandaloneEdge, standalone_edge, standalone_origin};
pub use self::standalone_acme::StandaloneAcme;

use std::path::Path;
use std::time::SystemTime;

use toml::de::DeTable;

use self::access_log::check_access_log;
use self::acme::{ACME, OfFleet, check_acme};
use self::catalogue::ROOT;
use self::clusters::check_clusters;
use self::control::check_control;
use self::fleet_section::{
    CLIENTS, FLEET, ForClients, check_clients, check_clock, check_drain, check_hostmaster,
    check_report_interval, check_state_dir, check_trusted_proxies, check_user, check_zone,
};
use self::mistakes::Mistakes;
use self::name_servers::check_name_servers;
use self::origin_nodes::{ORIGIN_NODE, check_origin_node};
use self::reader::Section;
use self::registry::Registry;
use self::secrets::{check_keys, check_node_key};
use self::sites::check_sites;
use self::steering::check_steering;
use self::tls::check_tls;
use self::values::{certificate_files, check_own_names, path, references};
use self::zones::{OwnZone, check_zones};
use crate::clock::unix_seconds;
use crate::config::{ClientLimits, Fleet, OriginNode};
use crate::failure::{Failure, FailureKind};

/// The known name nearest to a mistyped one, if one is near.
pub fn nearest_name<'k>(name: &str, known: &'k [&'k str]) -> Option<&'k str> {
    self::reader::nearest(name, known)
}

/// Largest fleet file.
pub const FILE_BYTES_MAX: usize = 4 << 20;

/// Parses and checks the text of a fleet file. Relative paths in it start at `base`.
///
/// # Errors
/// Every mistake found, in file order, at least one.
pub fn parse(text: &str, base: &Path) -> Result<Fleet, Vec<Mistake>> {
    parse_with(text, base, KeySource::File)
}

/// [`parse`] with a node key from elsewhere.
///
/// # Errors
/// As [`parse`].
pub fn parse_with(text: &str, base: &Path, key: KeySource<'_>) -> Result<Fleet, Vec<Mistake>> {
    let mistakes = Mistakes::new(text);
    if text.len() > FILE_BYTES_MAX {
        mistakes.note(
            0,
            format!("the file has {} bytes", text.len()),
            format!("at most {FILE_BYTES_MAX} are read"),
        );
        return Err(mistakes.into_sorted());
    }

    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(0, |span| span.start);
        mistakes.note(
            at,
            error.message().replace('\n', ", "),
            "write TOML: [section] headers, and lines of the form key = \"value\"",
        );
    }

    // The rest of a file with syntax errors would only give misleading mistakes.
    if !errors.is_empty() {
        return Err(mistakes.into_sorted());
    }
    let fleet = {
        let root = Section::root(&mistakes, table.get_ref(), ROOT);
        check(&root, base, key)
    };
    if mistakes.is_empty() {
        Ok(fleet)
    } else {
        Err(mistakes.into_sorted())
    }
}

/// Reads, parses and checks a fleet file.
///
/// # Errors
/// [`FailureKind::NoInput`] when it cannot be read; [`FailureKind::Usage`] with every mistake, one
/// a line as `FILE:LINE:COLUMN: PROBLEM; HINT`.
pub fn load(path: &Path) -> Result<Fleet, Failure> {
    load_with(path, KeySource::File)
}

/// [`load`] with a node key from elsewhere.
///
/// # Errors
/// As [`load`].
pub fn load_with(path: &Path, key: KeySource<'_>) -> Result<Fleet, Failure> {
    let text = read(path)?;
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let base = std::path::absolute(parent).unwrap_or_else(|_| parent.to_owned());
    let fleet = parse_with(&text, &base, key).map_err(|mistakes| {
        Failure::new(
            FailureKind::Usage,
            describe(&path.display().to_string(), &mistakes),
        )
    })?;
    Ok(Fleet {
        changed_unix_s: modified_unix_s(path),
        ..fleet
    })
}

/// Time of a file's last modification, seconds after the Unix epoch: at most now, and 0 where it is
/// unknown.
fn modified_unix_s(path: &Path) -> u64 {
    let modified = std::fs::metadata(path)
        .and_then(|about| about.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH);
    unix_seconds(modified.min(SystemTime::now())) as u64
}

/// Reads a fleet file's text.
///
/// # Errors
/// [`FailureKind::NoInput`] when it cannot be read; [`FailureKind::BadData`] when it is not UTF-8
/// text.
pub fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        let (kind, hint) = match error.kind() {
            std::io::ErrorKind::InvalidData => (FailureKind::BadData, "save it as UTF-8 text"),
            std::io::ErrorKind::PermissionDenied => (
                FailureKind::NoInput,
                "make it readable for this user, with the directories above it",
            ),
            // Commands take the path in different ways, so the argument's name is not known here.
            _ => (
                FailureKind::NoInput,
                "give the path of a file that is there",
            ),
        };
        Failure::new(
            kind,
            format!(
                "cannot read the fleet file {}: {error}; {hint}",
                path.display()
            ),
        )
    })
}

/// A check beyond the parser's, which needs the knowledge of a role. It gets the parsed fleet and
/// the file's text, for the places of mistakes.
pub type FurtherCheck = fn(&Fleet, &str) -> Vec<Mistake>;

/// [`parse`], followed by a further check.
///
/// # Errors
/// Every mistake of the parser; if there is none, every mistake of the further check.
pub fn parse_and_check(
    text: &str,
    base: &Path,
    check: FurtherCheck,
) -> Result<Fleet, Vec<Mistake>> {
    parse_and_check_with(text, base, KeySource::File, check)
}

/// [`parse_and_check`] with a node key from elsewhere.
///
/// # Errors
/// As [`parse_and_check`].
pub fn parse_and_check_with(
    text: &str,
    base: &Path,
    key: KeySource<'_>,
    check: FurtherCheck,
) -> Result<Fleet, Vec<Mistake>> {
    let fleet = parse_with(text, base, key)?;
    let mistakes = check(&fleet, text);
    if mistakes.is_empty() {
        Ok(fleet)
    } else {
        Err(mistakes)
    }
}

/// Builds the fleet from the sections of a file. The value is meaningless when mistakes were noted.
fn check(root: &Section<'_>, base: &Path, key: KeySource<'_>) -> Fleet {
    let head = root.section("fleet", FLEET);
    let zone = check_zone(root, &head);

    // Nodes, in the order in which the registry names the first owner of a name or address.
    let mut registry = Registry::default();
    let admin_identity = certificate_files(&head, "admin_cert", "admin_key", base);
    let control = check_control(root, base, &mut registry);
    let origins: Vec<OriginNode> = root
        .sections("origin_node", ORIGIN_NODE)
        .iter()
        .map(|s| check_origin_node(s, base, &mut registry))
        .collect();
    let name_servers = check_name_servers(root, &zone, admin_identity.is_some(), &mut registry);
    let acme = root.section("acme", ACME);
    let (tls, ordered) = check_tls(root, base, acme.is_present());
    let for_clients = root.section("clients", CLIENTS);
    let clients = ForClients {
        limits: check_clients(&for_clients, ClientLimits::default()),
        trusted_proxies: check_trusted_proxies(&for_clients).unwrap_or_default(),
        has_certificates: !tls.certificates.is_empty() || acme.is_present(),
    };
    let clusters = check_clusters(root, &clients, &mut registry);

    let node_key = check_node_key(
        &head,
        base,
        key,
        control.is_some() || !name_servers.is_empty(),
    );
    let keys = check_keys(&head, registry);

    // Sites and zones refer to nodes.
    let sites = check_sites(root, base, &zone, &clusters, &name_servers, &node_key);
    let zone_name_servers = references(
        &head,
        "name_servers",
        &name_servers,
        |n| &n.name,
        "name server",
    );
    let own = OwnZone {
        zone: &zone,
        name_servers: &zone_name_servers,
        sites: sites.iter().map(|s| s.name.as_str()).collect(),
    };
    let zones = check_zones(root, &head, &own, &name_servers);

    let of_fleet = OfFleet {
        zone: &zone,
        has_control: control.is_some(),
        has_name_servers: !name_servers.is_empty(),
        clusters: &clusters,
        sites: &sites,
    };
    let acme = check_acme(&acme, base, ordered, &of_fleet);

    Fleet {
        hostmaster: check_hostmaster(&head, &zone),
        zone,
        zone_name_servers,
        base: base.to_owned(),
        state_dir: check_state_dir(&head, base),
        user: head.text("user").map(|t| check_user(&t)),
        node_key,
        keys,
        report_interval: check_report_interval(&head),
        admin_hosts: check_own_names(&head, "admin_hosts"),
        drain: check_drain(&head),
        clock: check_clock(root),
        control,
        origins,
        name_servers,
        steering: check_steering(root, base),
        clusters,
        sites,
        tls,
        acme,
        ca: head.text("ca").map(|text| path(&text, base)),
        admin_identity,
        access_log: check_access_log(root),
        zones,
        changed_unix_s: 0,
    }
}

#[cfg(test)]
mod tests;
