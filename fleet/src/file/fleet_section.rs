//! The sections `[fleet]`, `[clock]` and `[clients]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::names;
use super::reader::{Section, Text};
use super::settings::Settings;
use super::values::{DAY, path, prefix, zone_name};
use crate::clock::FleetClock;
use crate::config::{ClientLimits, DrainLimits};
use crate::units::Bytes;

/// Settings of `[fleet]`.
pub(super) const FLEET: Settings = Settings::of(&[
    "zone",
    "hostmaster",
    "state_dir",
    "user",
    "node_key",
    "node_key_file",
    "node_keys",
    "report_interval",
    "name_servers",
    "admin_hosts",
    "admin_cert",
    "admin_key",
    "ca",
    "drain_max",
    "dns_withdrawal",
    "finish_max",
]);

/// Settings of `[clock]`.
pub(super) const CLOCK: Settings = Settings::of(&["speed", "anchor_real", "anchor_fleet"]);

/// Settings of `[clients]` and `[cluster.node.clients]`.
pub(super) const CLIENTS: Settings = Settings::of(&[
    "head_max",
    "fields_max",
    "head_timeout",
    "idle_timeout",
    "write_timeout",
    "connections_max",
    "trusted_proxies",
    "handshake_timeout",
    "http2",
    "http2_streams_max",
    "http3",
    "http3_streams_max",
]);

/// Default of `report_interval`.
pub(super) const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// The CDN's own zone; a stand-in where it is missing.
pub(super) fn check_zone(root: &Section<'_>, head: &Section<'_>) -> String {
    let text = if head.is_present() {
        head.need_text(
            "zone",
            "zone = \"cdn.example.org\", a zone that this fleet serves",
        )
    } else {
        root.note_missing(
            "fleet",
            "the section [fleet] with zone = \"cdn.example.org\"",
        );
        None
    };
    let zone = text.and_then(|text| zone_name(&text, false));
    zone.unwrap_or_else(|| "cdn.invalid".into())
}

pub(super) fn check_state_dir(head: &Section<'_>, base: &Path) -> PathBuf {
    let text = head.text("state_dir");
    text.map_or_else(
        || PathBuf::from("/var/lib/nearcast"),
        |text| path(&text, base),
    )
}

pub(super) fn check_report_interval(head: &Section<'_>) -> Duration {
    let range = Duration::from_millis(200)..=Duration::from_secs(60);
    head.duration("report_interval", range)
        .unwrap_or(REPORT_INTERVAL)
}

pub(super) fn check_hostmaster(head: &Section<'_>, zone: &str) -> String {
    let Some(text) = head.text("hostmaster") else {
        return format!("hostmaster@{zone}");
    };
    let good = text.text.split_once('@').is_some_and(|(user, domain)| {
        !user.is_empty()
            && user.bytes().all(|b| b.is_ascii_graphic() && b != b'@')
            && names::host_problem(&names::normal(domain)).is_none()
    });
    if !good {
        text.note(
            format!("{:?} is not a mail address", text.text),
            "write one such as \"hostmaster@example.org\"",
        );
    }
    text.text.to_owned()
}

/// Whether the user exists is checked on each machine at start.
pub(super) fn check_user(text: &Text<'_>) -> String {
    let is_name = |name: &str| {
        !name.is_empty()
            && name.len() <= 64
            && !name.starts_with('-')
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let (user, group) = text
        .text
        .split_once(':')
        .map_or((text.text, None), |(user, group)| (user, Some(group)));
    if !is_name(user) || !group.is_none_or(is_name) {
        text.note(
            format!("{:?} is not a user name", text.text),
            "write a name or number such as \"nearcast\", or one with a group, \"nearcast:www-data\"",
        );
    }
    text.text.to_owned()
}

/// Time limits of a node's shutdown.
pub(super) fn check_drain(head: &Section<'_>) -> DrainLimits {
    let defaults = DrainLimits::default();
    DrainLimits {
        lame_duck_max: head
            .duration("drain_max", Duration::ZERO..=DAY)
            .unwrap_or(defaults.lame_duck_max),
        dns_withdrawal: head
            .duration("dns_withdrawal", Duration::ZERO..=Duration::from_secs(600))
            .unwrap_or(defaults.dns_withdrawal),
        finish_max: head
            .duration("finish_max", Duration::ZERO..=DAY)
            .unwrap_or(defaults.finish_max),
    }
}

pub(super) fn check_clock(root: &Section<'_>) -> FleetClock {
    let section = root.section("clock", CLOCK);
    let speed = section.float("speed", 0.001..=1_000_000.0).unwrap_or(1.0);
    let real = instant(&section, "anchor_real");
    let fleet = instant(&section, "anchor_fleet");
    for (key, other, is_missing) in [
        (
            "anchor_real",
            "anchor_fleet",
            !section.has("anchor_real") && (section.has("anchor_fleet") || speed != 1.0),
        ),
        (
            "anchor_fleet",
            "anchor_real",
            !section.has("anchor_fleet") && (section.has("anchor_real") || speed != 1.0),
        ),
    ] {
        if is_missing {
            section.note_missing(key, &format!("{key} and {other}, an instant each such as 2026-01-01T00:00:00Z: the clock shows the second when the real time is the first"));
        }
    }

    match (real, fleet) {
        (Some(anchor_real), Some(anchor_fleet)) => FleetClock {
            anchor_real,
            anchor_fleet,
            speed,
        },
        _ => FleetClock {
            speed,
            ..FleetClock::REAL
        },
    }
}

/// Seconds after the Unix epoch: a number, or a date and time with its offset.
fn instant(section: &Section<'_>, key: &'static str) -> Option<f64> {
    let item = section.item(key)?;
    let found = item.number().or_else(|| {
        let date: jiff::Timestamp = item.date()?.parse().ok()?;
        Some(date.as_nanosecond() as f64 / 1e9)
    });
    let good = found.filter(|seconds| (0.0..=32_503_680_000.0).contains(seconds));
    if good.is_none() {
        item.note(
            "this is not an instant",
            "write seconds after 1970 or a date with time and offset, such as 2026-01-01T00:00:00Z",
        );
    }
    good
}

/// What `[clients]` says for every edge.
#[derive(Debug)]
pub(super) struct ForClients {
    pub(super) limits: ClientLimits,
    pub(super) trusted_proxies: Vec<IpNet>,
    /// Edges have certificates, and so listeners for TLS unless they say otherwise.
    pub(super) has_certificates: bool,
}

/// Most prefixes of `trusted_proxies`: each is compared with the address of each connection.
const PROXIES_MAX: usize = 256;

/// The prefixes of the proxies in front; `None` where the section does not say.
pub(super) fn check_trusted_proxies(section: &Section<'_>) -> Option<Vec<IpNet>> {
    let texts = section.texts("trusted_proxies")?;
    if texts.len() > PROXIES_MAX {
        section.note_at(
            "trusted_proxies",
            format!("it has {} prefixes", texts.len()),
            format!("write at most {PROXIES_MAX}, wider ones"),
        );
    }
    let instead = "name your proxies: everyone else could pretend to be any client";
    let prefixes = texts.iter().filter_map(|text| prefix(text, instead));
    Some(prefixes.collect())
}

/// Limits for clients. Settings that the section does not have are taken from `otherwise`.
pub(super) fn check_clients(section: &Section<'_>, otherwise: ClientLimits) -> ClientLimits {
    let second = Duration::from_secs(1);
    let head_max = section.bytes("head_max", Bytes(4 << 10)..=Bytes(256 << 10));
    ClientLimits {
        head_bytes_max: head_max.map_or(otherwise.head_bytes_max, |bytes| bytes.0 as usize),
        fields_max: section
            .integer("fields_max", 16..=1024)
            .map_or(otherwise.fields_max, |n| n as usize),
        head_timeout: section
            .duration("head_timeout", second..=300 * second)
            .unwrap_or(otherwise.head_timeout),
        idle_timeout: section
            .duration("idle_timeout", second..=3600 * second)
            .unwrap_or(otherwise.idle_timeout),
        write_timeout: section
            .duration("write_timeout", second..=600 * second)
            .unwrap_or(otherwise.write_timeout),
        connections_max: section
            .integer("connections_max", 16..=1_000_000)
            .map(|n| n as usize)
            .or(otherwise.connections_max),
        handshake_timeout: section
            .duration("handshake_timeout", second..=300 * second)
            .unwrap_or(otherwise.handshake_timeout),
        http2: section.boolean("http2", otherwise.http2),
        http2_streams_max: section
            .integer("http2_streams_max", 1..=1000)
            .map_or(otherwise.http2_streams_max, |n| n as u32),
        http3: section.boolean("http3", otherwise.http3),
        http3_streams_max: section
            .integer("http3_streams_max", 1..=1000)
            .map_or(otherwise.http3_streams_max, |n| n as u32),
    }
}
