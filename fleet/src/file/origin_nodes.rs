//! The sections `[[origin_node]]` and `[[origin_node.rule]]`.

use std::net::SocketAddr;
use std::path::Path;

use super::reader::{Section, Text};
use super::registry::{Registry, node_name};
use super::secrets::key_generation;
use super::settings::Settings;
use super::values::{need_socket, path};
use crate::config::{OriginNode, OriginRule};

/// Settings of `[[origin_node]]`.
pub(super) const ORIGIN_NODE: Settings =
    Settings::of(&["name", "listen", "admin", "root", "key_generation", "rule"]);

/// Settings of `[[origin_node.rule]]`.
pub(super) const RULE: Settings = Settings::of(&["pattern", "cache_control"]);

pub(super) fn check_origin_node(
    section: &Section<'_>,
    base: &Path,
    registry: &mut Registry,
) -> OriginNode {
    let name = node_name(section, "name = \"origin\"", None, registry);
    let listen = need_socket(section, "listen", "listen = \"127.0.0.1:8000\"");
    let admin = section
        .socket("admin")
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9180)));
    let is_local = listen.ip().is_loopback();
    registry.listener(section, "listen", listen, is_local, &name);
    registry.listener(section, "admin", admin, is_local, &name);
    let root = section
        .need_text("root", "root = \"content\", the directory that it serves")
        .map(|t| path(&t, base));
    key_generation(section, &name, &mut registry.generations);
    let rules = section
        .sections("rule", RULE)
        .iter()
        .map(check_rule)
        .collect();
    OriginNode {
        name,
        listen,
        admin: Some(admin),
        root: root.unwrap_or_default(),
        rules,
    }
}

fn check_rule(section: &Section<'_>) -> OriginRule {
    let pattern = section.need_text("pattern", "pattern = \"img/**\", a glob below the root");
    let value = section.need_text("cache_control", "cache_control = \"max-age=3600\"");
    if let Some(text) = pattern.as_ref().filter(|t| t.text.is_empty()) {
        text.note("the pattern is empty", "write a glob such as \"img/**\"");
    }
    let is_field =
        |text: &str| !text.trim().is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b));
    if let Some(text) = value.as_ref().filter(|t| !is_field(t.text)) {
        text.note(
            "this is no field value",
            "write directives such as \"max-age=3600\"",
        );
    }
    let own = |t: Option<Text<'_>>| t.map_or_else(String::new, |t| t.text.to_owned());
    OriginRule {
        pattern: own(pattern),
        cache_control: own(value),
    }
}
