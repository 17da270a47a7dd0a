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
    registry: &mut Registry,
) -> Vec<NameServer> {
    let mut hosts: HashMap<String, String> = HashMap::new();
    let check_one = |section: &Section<'_>| {
        let name = node_name(section, "name = \"ns1\"", None, registry);
        let host = section
            .text("host")
            .map_or_else(|| format!("{name}.{zone}"), |t| host_name(&t));
        if let Some(first) = hosts.insert(host.clone(), name.clone()) {
            let problem = format!(
                "{}: {host} is the host of {first} too",
                section.path_of("host")
            );
            section.mistakes.note(
                section.at_of("host"),
                problem,
                "give every name server a host name of its own",
            );
        }
        if !section.has("listen") {
            section.note_missing("listen", "listen = \"192.0.2.53:53\"");
        }
        let listen = section.sockets("listen");
        let is_local = listen.first().is_some_and(|a| a.ip().is_loopback());
        let admin = section
            .socket("admin")
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9153)));
        for address in &listen {
            registry.listener(section, "listen", *address, is_local, &name);
        }
        registry.listener(section, "admin", admin, is_local, &name);
        let addresses = if section.has("addresses") {
            section
                .addresses("addresses")
                .into_iter()
                .map(|(a, _)| a)
                .collect()
        } else {
            unique(listen.iter().map(SocketAddr::ip))
        };
        if !section.has("addresses") && addresses.iter().any(IpAddr::is_unspecified) {
            let problem = format!(
                "{}: this setting is required, as listen has every address",
                section.path_of("addresses")
            );
            section.mistakes.note(
                section.at,
                problem,
                "add addresses = [\"192.0.2.53\"], those that resolvers reach it by",
            );
        }
        let admin_url = reachable_url(section, "admin_url", admin, "admin");
        key_generation(section, &name, &mut registry.generations);
        NameServer {
            name,
            host,
            listen,
            addresses,
            admin,
            admin_url,
        }
    };
    root.sections("name_server", NAME_SERVER)
        .iter()
        .map(check_one)
        .collect()
}
