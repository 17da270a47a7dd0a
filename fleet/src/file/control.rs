//! The sections `[control]` and `[control.push]`.

use std::path::Path;
use std::time::Duration;

use super::reader::Section;
use super::registry::{Registry, node_name};
use super::settings::Settings;
use super::values::{DAY, certificate_files, check_own_names, check_web_origins, reachable_url};
use crate::config::{Control, PushPolicy};

/// Settings of `[control]`.
pub(super) const CONTROL: Settings = Settings::of(&[
    "name",
    "listen",
    "url",
    "hosts",
    "steering_origins",
    "cert",
    "key",
    "admin",
    "push",
]);

/// Settings of `[control.push]`.
pub(super) const PUSH: Settings = Settings::of(&["enabled", "half_life", "expected_requests_min"]);

pub(super) fn check_control(
    root: &Section<'_>,
    base: &Path,
    registry: &mut Registry,
) -> Option<Control> {
    let section = root.section("control", CONTROL);
    let push = section.section("push", PUSH);
    if !section.is_present() {
        return None;
    }
    let name = node_name(&section, "", Some("control"), registry);
    let listen = section.socket_or_local("listen", 7700);
    let admin = section.socket_or_local("admin", 9170);
    let is_local = listen.ip().is_loopback();
    registry.listener(&section, "listen", listen, is_local, &name);
    registry.listener(&section, "admin", admin, is_local, &name);
    let identity = certificate_files(&section, "cert", "key", base);
    let policy = PushPolicy {
        half_life: push
            .duration("half_life", Duration::from_secs(60)..=365 * DAY)
            .unwrap_or(DAY),
        expected_requests_min: push
            .float("expected_requests_min", 0.0..=1e12)
            .unwrap_or(2.0),
    };

    Some(Control {
        name,
        url: reachable_url(&section, "url", listen, "listen", identity.is_some()),
        hosts: check_own_names(&section, "hosts"),
        steering_origins: check_web_origins(&section, "steering_origins"),
        identity,
        listen,
        admin,
        push: push.boolean("enabled", true).then_some(policy),
    })
}
