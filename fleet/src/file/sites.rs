//! The sections `[[site]]`, `[site.cache]` and `[site.limits]`.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use super::compression::{COMPRESSION, check_compression};
use super::names;
use super::reader::{Section, Text, nearest};
use super::secrets::{MAKE_SECRET, check_secret};
use super::settings::Settings;
use super::site_https::{HTTPS, check_https};
use super::values::{DAY, check_label, host_name, path, prefix, references, url};
use crate::config::{
    CachePolicy, Cluster, NameServer, OriginLimits, OriginPolicy, OriginTls, PurgePolicy, Secret,
    SelectionPolicy, Site,
};
use crate::units::Bytes;

/// Settings of `[[site]]`.
pub(super) const SITE: Settings = Settings::of(&[
    "name",
    "hosts",
    "origin",
    "origin_host",
    "origin_ca",
    "origin_cert",
    "origin_key",
    "origin_http2",
    "steering",
    "ttl",
    "clusters",
    "purge_from",
    "purge_token",
    "purge_token_file",
    "cache",
    "compression",
    "limits",
    "https",
]);

/// Settings of `[site.cache]`.
pub(super) const CACHE: Settings = Settings::of(&[
    "default_ttl",
    "heuristic",
    "stale_while_revalidate",
    "stale_if_error",
    "obey_client",
    "body_max",
    "forward_fields",
    "key_fields",
    "store_set_cookie",
    "serve_unsynced",
    "finish_rest_max",
    "finish_share_min",
])
.with_former(&[
    ("finish_rest", "finish_rest_max"),
    ("finish_share", "finish_share_min"),
]);

/// Settings of `[site.limits]`.
pub(super) const LIMITS: Settings = Settings::of(&[
    "connect_timeout",
    "first_byte_timeout",
    "between_bytes_timeout",
    "request_body_timeout",
    "request_body_max",
    "head_max",
    "fields_max",
    "connections_max",
    "queue_max",
    "queue_timeout",
    "upgrades_max",
    "upgrade_idle_timeout",
])
.with_former(&[
    ("connect", "connect_timeout"),
    ("first_byte", "first_byte_timeout"),
    ("between_bytes", "between_bytes_timeout"),
    ("request_pause", "request_body_timeout"),
    ("request_body", "request_body_max"),
    ("head", "head_max"),
    ("fields", "fields_max"),
    ("connections", "connections_max"),
    ("waiting", "queue_max"),
    ("connection_wait", "queue_timeout"),
    ("upgrades", "upgrades_max"),
    ("upgrade_idle", "upgrade_idle_timeout"),
]);

/// Most names in a list of request fields.
const FIELDS_MAX: usize = 32;

/// Default of `ttl`.
pub(super) const SITE_TTL: Duration = Duration::from_secs(20);

const POLICIES: [(&str, SelectionPolicy); 4] = [
    ("geo", SelectionPolicy::Geo),
    ("rtt", SelectionPolicy::Rtt),
    ("weighted", SelectionPolicy::Weighted),
    ("round-robin", SelectionPolicy::RoundRobin),
];

pub(super) fn check_sites(
    root: &Section<'_>,
    base: &Path,
    zone: &str,
    clusters: &[Cluster],
    name_servers: &[NameServer],
    node_key: &Secret,
) -> Vec<Site> {
    let mut lines: HashMap<String, usize> = HashMap::new();
    let mut hosts: HashMap<String, String> = HashMap::new();
    let sections = root.sections("site", SITE);
    let servers: HashMap<&str, &NameServer> = name_servers
        .iter()
        .rev()
        .map(|n| (n.host.as_str(), n))
        .collect();
    // A site may list its own steered name among its hosts; another site may not.
    for text in sections
        .iter()
        .filter_map(|section| section.item("name")?.silent_text())
    {
        hosts
            .entry(format!("{text}.{zone}"))
            .or_insert_with(|| text.to_owned());
    }

    let mut sites = Vec::new();
    for section in &sections {
        let name = check_site_name(section, zone, &servers, &mut lines);
        let origin = section
            .need_text("origin", "origin = \"http://origin.example.org\"")
            .map_or_else(String::new, |t| url(&t, &["http", "https"]));
        sites.push(Site {
            hosts: check_hosts(section, &name, &mut hosts),
            name,
            origin_host: section.text("origin_host").map(|t| check_origin_host(&t)),
            policy: section
                .text("steering")
                .map_or(SelectionPolicy::Geo, |t| check_policy(&t)),
            ttl: section
                .duration("ttl", Duration::from_secs(1)..=DAY)
                .unwrap_or(SITE_TTL),
            clusters: references(section, "clusters", clusters, |c| &c.name, "cluster"),
            cache: check_cache(&section.section("cache", CACHE)),
            origin_policy: OriginPolicy {
                limits: check_limits(&section.section("limits", LIMITS)),
                tls: check_origin_tls(section, base, origin.starts_with("http://")),
                http2: section.boolean("origin_http2", OriginPolicy::default().http2),
            },
            purge: check_purge(section, base, node_key),
            https: check_https(&section.section("https", HTTPS)),
            compression: check_compression(&section.section("compression", COMPRESSION)),
            origin,
        });
    }
    sites
}

/// A site's name, which is unique and whose steered name is not the host of a name server.
fn check_site_name(
    section: &Section<'_>,
    zone: &str,
    servers: &HashMap<&str, &NameServer>,
    lines: &mut HashMap<String, usize>,
) -> String {
    let Some(text) = section.need_text("name", "name = \"www\"") else {
        return String::new();
    };
    check_label(&text);
    let line = section.mistakes.line_of(text.at);
    if let Some(first) = lines.insert(text.text.to_owned(), line) {
        text.note(
            format!(
                "{:?} is the name of another site, in line {first}",
                text.text
            ),
            "give every site a name of its own",
        );
    }

    let steered = format!("{}.{zone}", text.text);
    if let Some(server) = servers.get(steered.as_str()) {
        text.note(
            format!("{steered} is the host of the name server {}", server.name),
            "give the site another name",
        );
    }

    text.text.to_owned()
}

fn check_hosts(
    section: &Section<'_>,
    site: &str,
    taken: &mut HashMap<String, String>,
) -> Vec<String> {
    let mut hosts = Vec::new();
    let mut seen = HashSet::new();
    for text in section.texts("hosts").unwrap_or_default() {
        let host = match text.text {
            "*" => "*".to_owned(),
            written if written.contains('*') => {
                text.note(
                    format!("{written:?} is not a host name"),
                    "name the hosts one by one, or write \"*\" alone for any host",
                );
                continue;
            }
            _ => host_name(&text),
        };
        if !seen.insert(host.clone()) {
            text.note(format!("{host} is listed twice"), "remove one");
            continue;
        }
        if let Some(first) = taken
            .insert(host.clone(), site.to_owned())
            .filter(|first| first != site)
        {
            text.note(
                format!("{host} is a host of the site {first} already"),
                "a host belongs to one site; remove it from one of them",
            );
        }
        hosts.push(host);
    }

    hosts
}

fn check_origin_host(text: &Text<'_>) -> String {
    names::host_and_port(text.text).unwrap_or_else(|problem| {
        text.note(
            format!("{:?} is not a host: {problem}", text.text),
            "write host or host:port, such as \"www.example.org\"",
        );
        String::new()
    })
}

/// The files are on the edges, so their existence is not checked here.
fn check_origin_tls(section: &Section<'_>, base: &Path, is_plain: bool) -> OriginTls {
    let file = |key: &'static str| {
        let text = section.text(key)?;
        if is_plain {
            text.note(
                "the origin is reached without TLS",
                format!("write origin = \"https://...\", or leave {key} out"),
            );
        }
        Some(path(&text, base))
    };

    let (ca, cert, key) = (file("origin_ca"), file("origin_cert"), file("origin_key"));
    for (there, missing, example) in [
        (
            "origin_cert",
            "origin_key",
            "origin_key = \"edge.key\", its key",
        ),
        (
            "origin_key",
            "origin_cert",
            "origin_cert = \"edge.pem\", its certificate",
        ),
    ] {
        if section.has(there) && !section.has(missing) {
            section.note_missing(missing, example);
        }
    }

    OriginTls {
        ca,
        identity: cert.zip(key),
    }
}

fn check_policy(text: &Text<'_>) -> SelectionPolicy {
    match POLICIES.iter().find(|(name, _)| *name == text.text) {
        Some((_, policy)) => *policy,
        None => {
            let known = POLICIES.map(|(name, _)| name);
            let near = nearest(text.text, &known)
                .map_or_else(String::new, |n| format!("did you mean {n:?}? "));
            text.note(
                format!("there is no steering {:?}", text.text),
                format!(
                    "{near}write one of {}",
                    known.map(|n| format!("{n:?}")).join(", ")
                ),
            );
            SelectionPolicy::Geo
        }
    }
}

fn check_cache(section: &Section<'_>) -> CachePolicy {
    let defaults = CachePolicy::default();
    let year = 365 * DAY;
    CachePolicy {
        default_ttl: section.duration("default_ttl", Duration::ZERO..=year),
        heuristic: section.boolean("heuristic", defaults.heuristic),
        stale_while_revalidate: section
            .duration("stale_while_revalidate", Duration::ZERO..=year)
            .unwrap_or(defaults.stale_while_revalidate),
        stale_if_error: section
            .duration("stale_if_error", Duration::ZERO..=year)
            .unwrap_or(defaults.stale_if_error),
        obey_client: section.boolean("obey_client", defaults.obey_client),
        body_bytes_max: section
            .bytes("body_max", Bytes(1 << 10)..=Bytes(1 << 44))
            .unwrap_or(defaults.body_bytes_max),
        forward_fields: check_fields(section, "forward_fields"),
        key_fields: check_fields(section, "key_fields"),
        store_set_cookie: section.boolean("store_set_cookie", defaults.store_set_cookie),
        serve_unsynced: section.boolean("serve_unsynced", defaults.serve_unsynced),
        finish_rest: section
            .bytes("finish_rest_max", Bytes(0)..=Bytes(1 << 44))
            .unwrap_or(defaults.finish_rest),
        finish_share: section
            .percent("finish_share_min")
            .unwrap_or(defaults.finish_share),
    }
}

/// Names of request fields, in lower case, without duplicates.
fn check_fields(section: &Section<'_>, key: &'static str) -> Vec<String> {
    let mut names = Vec::new();
    let texts = section.texts(key).unwrap_or_default();
    if let Some(text) = texts.get(FIELDS_MAX) {
        text.note(
            format!("there are more than {FIELDS_MAX} fields"),
            "remove some: each is looked at for every request that is not a hit",
        );
    }
    for text in texts.into_iter().take(FIELDS_MAX) {
        let name = text.text.to_ascii_lowercase();
        if let Err((problem, hint)) = names::request_field(&name) {
            text.note(problem, hint);
        } else if names.contains(&name) {
            text.note(format!("{name} is listed twice"), "remove one");
        } else {
            names.push(name);
        }
    }
    names
}

fn check_limits(section: &Section<'_>) -> OriginLimits {
    let defaults = OriginLimits::default();
    let pause = Duration::from_secs(1)..=DAY;
    OriginLimits {
        connect: section
            .duration(
                "connect_timeout",
                Duration::from_millis(10)..=Duration::from_secs(300),
            )
            .unwrap_or(defaults.connect),
        first_byte: section
            .duration("first_byte_timeout", Duration::from_millis(100)..=DAY)
            .unwrap_or(defaults.first_byte),
        between_bytes: section
            .duration("between_bytes_timeout", pause.clone())
            .unwrap_or(defaults.between_bytes),
        request_pause: section
            .duration("request_body_timeout", pause)
            .unwrap_or(defaults.request_pause),
        request_bytes_max: match section
            .item("request_body_max")
            .and_then(|item| item.silent_text())
        {
            Some(UNLIMITED) => None,
            _ => section
                .bytes("request_body_max", Bytes(0)..=Bytes(1 << 50))
                .or(defaults.request_bytes_max),
        },
        head_bytes_max: section
            .bytes("head_max", Bytes(4 << 10)..=Bytes(1 << 20))
            .unwrap_or(defaults.head_bytes_max),
        fields_max: section
            .integer("fields_max", 16..=10_000)
            .map_or(defaults.fields_max, |n| n as usize),
        connections_max: section
            .integer("connections_max", 1..=65_536)
            .map_or(defaults.connections_max, |n| n as usize),
        waiting_max: section
            .integer("queue_max", 0..=65_536)
            .map_or(defaults.waiting_max, |n| n as usize),
        connection_wait: section
            .duration("queue_timeout", Duration::ZERO..=DAY)
            .unwrap_or(defaults.connection_wait),
        upgrades_max: section
            .integer("upgrades_max", 0..=65_536)
            .map_or(defaults.upgrades_max, |n| n as usize),
        upgrade_idle: section
            .duration("upgrade_idle_timeout", Duration::from_secs(1)..=DAY)
            .unwrap_or(defaults.upgrade_idle),
    }
}

/// The value of a size without a limit.
const UNLIMITED: &str = "unlimited";

fn check_purge(section: &Section<'_>, base: &Path, node_key: &Secret) -> PurgePolicy {
    const KEYS: [&str; 2] = ["purge_token", "purge_token_file"];
    let from = section
        .texts("purge_from")
        .unwrap_or_default()
        .iter()
        .filter_map(|text| prefix(text, "name those that may purge, or set a purge_token"))
        .collect();
    let token = check_secret(section, base, KEYS, "token");
    if token.as_ref().is_some_and(|token| token == node_key)
        && let Some(text) = KEYS.iter().find_map(|key| section.text(key))
    {
        text.note(
            "the token is the node key, which opens every site and node",
            format!("make another one; {MAKE_SECRET}"),
        );
    }
    PurgePolicy { from, token }
}
