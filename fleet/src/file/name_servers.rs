//! The sections `[[name_server]]`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::reader::Section;
use super::registry::{Registry, node_name};
use super::secrets::key_generation;
use super::settings::Settings;
use super::values::{host_name, reachable_url, unique};
use crate::config::NameServer;

/// Settings of `[[name_server]]`.
pub(super) const NAME_SERVER: Settings = Settings::of(&[
    "name",
    "host",
    "listen",
    "addresses",
    "admin",
    "admin_url",
    "key_generation",
]);

pub(super) fn check_name_servers(
    root: &Section<'_>,
    zone: &str,
    is_admin_tls: bool,
    registry: &mut Registry,
) -> Vec<NameServer> {
    let mut hosts: HashMap<String, String> = HashMap::new();
    root.sections("name_server", NAME_SERVER)
        .iter()
        .map(|section| check_name_server(section, zone, is_admin_tls, &mut hosts, registry))
        .collect()
}

fn check_name_server(
    section: &Section<'_>,
    zone: &str,
    is_admin_tls: bool,
    hosts: &mut HashMap<String, String>,
    registry: &mut Registry,
) -> NameServer {
    let name = node_name(section, "name = \"ns1\"", None, registry);
    let host = section
        .text("host")
        .map_or_else(|| format!("{name}.{zone}"), |t| host_name(&t));
    if let Some(first) = hosts.insert(host.clone(), name.clone()) {
        section.note_at(
            "host",
            format!("{host} is the host of {first} too"),
            "give every name server a host name of its own",
        );
    }

    if !section.has("listen") {
        section.note_missing("listen", "listen = \"192.0.2.53:53\"");
    }
    let listen = section.sockets("listen");
    let admin = section.socket_or_local("admin", 9153);
    let is_local = listen.first().is_some_and(|a| a.ip().is_loopback());
    for address in &listen {
        registry.listener(section, "listen", *address, is_local, &name);
    }
    registry.listener(section, "admin", admin, is_local, &name);

    key_generation(section, &name, &mut registry.generations);
    NameServer {
        addresses: check_addresses(section, &listen),
        admin_url: reachable_url(section, "admin_url", admin, "admin", is_admin_tls),
        name,
        host,
        listen,
        admin,
    }
}

/// The addresses in DNS answers, by default those of the listeners.
fn check_addresses(section: &Section<'_>, listen: &[SocketAddr]) -> Vec<IpAddr> {
    if section.has("addresses") {
        let addresses = section.addresses("addresses");
        return addresses.into_iter().map(|(address, _)| address).collect();
    }
    let addresses = unique(listen.iter().map(SocketAddr::ip));
    if addresses.iter().any(IpAddr::is_unspecified) {
        section.note_at(
            "addresses",
            "this setting is required, as listen has every address",
            "add addresses = [\"192.0.2.53\"], those that resolvers reach it by",
        );
    }
    addresses
}
