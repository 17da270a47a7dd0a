//! The fleet file: from text to a checked [`Fleet`], or to every mistake in it at once.
//!
//! The only place that knows how settings are written and what their defaults are;
//! [`crate::config`] says what they mean. `docs/fleet-file.md` is the same for people, and a test
//! holds the two together.

mod catalogue;
mod clusters;
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
mod sites;
mod standalone;
mod steering;
mod values;
mod zones;

pub use self::catalogue::renamed_settings;
pub use self::mistakes::{Mistake, describe};
pub use self::secrets::{KeySource, read_key};
pub use self::standalone::{standalone_edge, standalone_origin};

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use toml::de::DeTable;

use self::catalogue::ROOT;
use self::clusters::check_clusters;
use self::control::check_control;
use self::fleet_section::{
    CLIENTS, FLEET, REPORT_INTERVAL, check_clients, check_clock, check_drain, check_hostmaster,
    check_user,
};
use self::mistakes::Mistakes;
use self::name_servers::check_name_servers;
use self::origin_nodes::{ORIGIN_NODE, check_origin_node};
use self::reader::Section;
use self::registry::Registry;
use self::secrets::{check_keys, check_node_key};
use self::sites::check_sites;
use self::steering::check_steering;
use self::values::{check_own_names, path, references, zone_name};
use self::zones::{OwnZone, check_zones};
use crate::clock::unix_seconds;
use crate::config::{ClientLimits, Fleet, OriginNode};
use crate::failure::{Failure, FailureKind};

/// The known name that a mistyped one most likely stands for.
pub fn nearest_name<'k>(name: &str, known: &'k [&'k str]) -> Option<&'k str> {
    self::reader::nearest(name, known)
}

/// The largest fleet file that is read.
pub const FILE_BYTES_MAX: usize = 4 << 20;

/// Parses and checks a fleet file's text. Relative paths in it are taken from `base`.
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
    // What is left of a file with such errors would only give mistakes that nobody made.
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

/// When a file was last modified, in seconds after the Unix epoch; not later than now, and 0 where
/// that is not known.
fn modified_unix_s(path: &Path) -> u64 {
    let modified = std::fs::metadata(path)
        .and_then(|about| about.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH);
    unix_seconds(modified.min(SystemTime::now())) as u64
}

/// Reads a fleet file's text.
///
/// # Errors
/// [`FailureKind::NoInput`] when it cannot be read; [`FailureKind::BadData`] when it is no text.
pub fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        let (kind, hint) = match error.kind() {
            std::io::ErrorKind::InvalidData => (FailureKind::BadData, "save it as UTF-8 text"),
            std::io::ErrorKind::PermissionDenied => (
                FailureKind::NoInput,
                "let this user read it, and search the directories above it",
            ),
            // Commands take the path in different ways: what it is called there is not known here.
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

/// What the parser cannot tell of a file that it has read, as it takes a role to know; given with
/// the file's text, in which the mistakes have their places.
pub type FurtherCheck = fn(&Fleet, &str) -> Vec<Mistake>;

/// [`parse`], and then a further check.
///
/// # Errors
/// Every mistake of the parser; if it has none, every one of the further check.
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

/// Makes the fleet of a whole file; with mistakes noted the value means nothing.
fn check(root: &Section<'_>, base: &Path, key: KeySource<'_>) -> Fleet {
    let head = root.section("fleet", FLEET);
    if !head.is_present() {
        root.note_missing(
            "fleet",
            "the section [fleet] with zone = \"cdn.example.org\"",
        );
    }
    let zone = head
        .is_present()
        .then(|| {
            head.need_text(
                "zone",
                "zone = \"cdn.example.org\", a zone that this fleet serves",
            )
        })
        .flatten()
        .and_then(|t| zone_name(&t, false))
        .unwrap_or_else(|| "cdn.invalid".into());
    let mut registry = Registry::default();
    let control = check_control(root, &mut registry);
    let origins: Vec<OriginNode> = root
        .sections("origin_node", ORIGIN_NODE)
        .iter()
        .map(|s| check_origin_node(s, base, &mut registry))
        .collect();
    let name_servers = check_name_servers(root, &zone, &mut registry);
    let clients = check_clients(&root.section("clients", CLIENTS), ClientLimits::default());
    let clusters = check_clusters(root, clients, &mut registry);
    let node_key = check_node_key(
        &head,
        base,
        key,
        control.is_some() || !name_servers.is_empty(),
    );
    let keys = check_keys(&head, registry);
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
    Fleet {
        hostmaster: check_hostmaster(&head, &zone),
        zone,
        zone_name_servers,
        base: base.to_owned(),
        state_dir: head
            .text("state_dir")
            .map_or_else(|| PathBuf::from("/var/lib/nearcast"), |t| path(&t, base)),
        user: head.text("user").map(|t| check_user(&t)),
        node_key,
        keys,
        report_interval: head
            .duration(
                "report_interval",
                Duration::from_millis(200)..=Duration::from_secs(60),
            )
            .unwrap_or(REPORT_INTERVAL),
        admin_hosts: check_own_names(&head, "admin_hosts"),
        drain: check_drain(&head),
        clock: check_clock(root),
        control,
        origins,
        name_servers,
        steering: check_steering(root, base),
        clusters,
        sites,
        zones,
        changed_unix_s: 0,
    }
}

#[cfg(test)]
mod tests;
