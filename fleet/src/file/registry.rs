//! Registry, listeners and addresses that the nodes of one fleet use: each may be used once.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use super::reader::{Section, Text};
use super::values::check_label;

/// Registry and listeners that are registry, with where and by whom; and the generations of keys that the
/// nodes with these names have.
#[derive(Default)]
pub(super) struct Registry {
    nodes: HashMap<String, usize>,
    listeners: HashMap<SocketAddr, String>,
    pub(super) addresses: HashMap<IpAddr, String>,
    pub(super) generations: BTreeMap<String, u32>,
    pub(super) cluster_generations: BTreeMap<String, u32>,
}

impl Registry {
    /// Notes a second node of that name.
    fn node(&mut self, text: &Text<'_>, section: &Section<'_>) {
        let line = section.mistakes.line_of(text.at);
        if let Some(first) = self.nodes.insert(text.text.to_owned(), line) {
            text.note(
                format!(
                    "{:?} is the name of another node, in line {first}",
                    text.text
                ),
                "give every node a name of its own",
            );
        }
    }

    /// Notes a second listener on one address and port. Addresses that every machine has prove
    /// nothing, unless both nodes are certainly on one machine: such ones carry the mark `local`.
    pub(super) fn listener(
        &mut self,
        section: &Section<'_>,
        key: &'static str,
        address: SocketAddr,
        is_local: bool,
        owner: &str,
    ) {
        if address.port() == 0
            || address.ip().is_unspecified()
            || (address.ip().is_loopback() && !is_local)
        {
            return;
        }
        let whose = format!("{key} of {owner}");
        if let Some(first) = self.listeners.get(&address) {
            let (problem, hint) = if section.has(key) {
                (
                    format!("{address} is taken by {first}"),
                    "choose another port or address".to_owned(),
                )
            } else {
                (
                    format!("{address}, which is the default, is taken by {first}"),
                    format!("add {key} with another address and port"),
                )
            };
            section.mistakes.note(
                section.at_of(key),
                format!("{}: {problem}", section.path_of(key)),
                hint,
            );
        } else {
            self.listeners.insert(address, whose);
        }
    }
}

/// A required name that is a label; notes mistakes and a second node of the name.
pub(super) fn node_name(
    section: &Section<'_>,
    example: &str,
    default: Option<&str>,
    registry: &mut Registry,
) -> String {
    let text = match default {
        Some(_) => section.text("name"),
        None => section.need_text("name", example),
    };
    let Some(text) = text else {
        let name = default.unwrap_or_default();
        if !name.is_empty() {
            registry
                .nodes
                .entry(name.to_owned())
                .or_insert_with(|| section.mistakes.line_of(section.at));
        }
        return name.to_owned();
    };
    check_label(&text);
    registry.node(&text, section);
    text.text.to_owned()
}
