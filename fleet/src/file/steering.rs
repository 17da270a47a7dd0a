//! The sections `[steering]` and `[steering.health]`.

use std::path::Path;
use std::time::Duration;

use super::reader::{Section, Text};
use super::settings::Settings;
use super::values::{DAY, path};
use crate::config::{HealthCheck, Steering};

/// Settings of `[steering]`.
pub(super) const STEERING: Settings = Settings::of(&[
    "geo_db",
    "rtt_max_age",
    "rtt_explore",
    "rtt_bound",
    "ramp",
    "health",
]);

/// Settings of `[steering.health]`.
pub(super) const HEALTH: Settings = Settings::of(&[
    "path",
    "interval",
    "timeout",
    "timeout_min",
    "fall",
    "rise",
    "jitter",
]);

pub(super) fn default_steering() -> Steering {
    Steering {
        geo_db: None,
        health: HealthCheck {
            path: "/.nearcast/health".into(),
            interval: Duration::from_millis(500),
            timeout: Duration::from_secs(2),
            timeout_min: Duration::from_millis(250),
            fall: 2,
            rise: 2,
            jitter: 0.1,
        },
        rtt_max_age: Duration::from_secs(600),
        rtt_explore: 0.01,
        rtt_bound: true,
        ramp: Duration::from_secs(30),
    }
}

pub(super) fn check_steering(root: &Section<'_>, base: &Path) -> Steering {
    let section = root.section("steering", STEERING);
    let health = section.section("health", HEALTH);
    let defaults = default_steering();
    let check_path = |text: Text<'_>| {
        if !text.text.starts_with('/') || !text.text.bytes().all(|b| b.is_ascii_graphic()) {
            text.note(
                format!("{:?} is not a path", text.text),
                "write one that begins with / and has no blanks",
            );
        }
        text.text.to_owned()
    };
    Steering {
        geo_db: section.text("geo_db").map(|t| path(&t, base)),
        rtt_max_age: section
            .duration("rtt_max_age", Duration::from_secs(1)..=7 * DAY)
            .unwrap_or(defaults.rtt_max_age),
        rtt_explore: section
            .percent("rtt_explore")
            .unwrap_or(defaults.rtt_explore),
        ramp: section
            .duration("ramp", Duration::ZERO..=Duration::from_secs(3_600))
            .unwrap_or(defaults.ramp),
        rtt_bound: section.boolean("rtt_bound", defaults.rtt_bound),
        health: HealthCheck {
            path: health.text("path").map_or(defaults.health.path, check_path),
            interval: health
                .duration(
                    "interval",
                    Duration::from_millis(50)..=Duration::from_secs(300),
                )
                .unwrap_or(defaults.health.interval),
            timeout: health
                .duration(
                    "timeout",
                    Duration::from_millis(10)..=Duration::from_secs(60),
                )
                .unwrap_or(defaults.health.timeout),
            timeout_min: health
                .duration(
                    "timeout_min",
                    Duration::from_millis(10)..=Duration::from_secs(60),
                )
                .unwrap_or(defaults.health.timeout_min),
            fall: health
                .integer("fall", 1..=10_000)
                .map_or(defaults.health.fall, |n| n as u32),
            rise: health
                .integer("rise", 1..=10_000)
                .map_or(defaults.health.rise, |n| n as u32),
            jitter: health.percent("jitter").unwrap_or(defaults.health.jitter),
        },
    }
}
