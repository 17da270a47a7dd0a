//! The sections `[[cluster]]` and `[[cluster.node]]`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::fleet_section::{CLIENTS, ForClients, check_clients, check_trusted_proxies};
use super::reader::{Section, Text, nearest};
use super::registry::{Registry, node_name};
use super::secrets::key_generation;
use super::settings::Settings;
use super::values::check_label;
use crate::config::{Cluster, DailyWindow, Node, Place};
use crate::units::{self, Bytes};

/// Settings of `[[cluster]]`.
pub(super) const CLUSTER: Settings = Settings::of(&[
    "name",
    "label",
    "place",
    "time_zone",
    "off_peak",
    "fill_rate",
    "push_share",
    "weight",
    "key_generation",
    "node",
]);

/// Settings of `place` in `[[cluster]]`.
pub(super) const PLACE: Settings = Settings::of(&["latitude", "longitude"]);

/// Settings of `[[cluster.node]]`.
pub(super) const NODE: Settings = Settings::of(&[
    "name",
    "address",
    "addresses",
    "listen",
    "listen_tls",
    "proxy_protocol",
    "service",
    "admin",
    "memory",
    "disk",
    "threads",
    "capacity",
    "key_generation",
    "clients",
]);

/// Least memory of an edge's store.
pub(super) const MEMORY_MIN: Bytes = Bytes(1 << 20);
/// Default of `fill_rate`.
pub(super) const FILL_RATE_BITS: u64 = 100_000_000;

pub(super) fn check_clusters(
    root: &Section<'_>,
    clients: &ForClients,
    registry: &mut Registry,
) -> Vec<Cluster> {
    let sections = root.sections("cluster", CLUSTER);
    if !root.has("cluster") {
        root.note_missing("cluster", "a section [[cluster]] with name and place, and a [[cluster.node]] with name and address below it");
    }
    let mut lines: HashMap<String, usize> = HashMap::new();
    let mut clusters = Vec::new();
    for section in &sections {
        clusters.push(check_cluster(section, clients, &mut lines, registry));
    }
    clusters
}

fn check_cluster(
    section: &Section<'_>,
    clients: &ForClients,
    lines: &mut HashMap<String, usize>,
    registry: &mut Registry,
) -> Cluster {
    let name = section.need_text("name", "name = \"ams\"");
    if let Some(text) = &name {
        check_label(text);
        if let Some(first) = lines.insert(text.text.to_owned(), section.mistakes.line_of(text.at)) {
            text.note(
                format!(
                    "{:?} is the name of another cluster, in line {first}",
                    text.text
                ),
                "give every cluster a name of its own",
            );
        }
    }

    let name = name.map_or_else(String::new, |t| t.text.to_owned());
    if !section.has("node") {
        section.note_missing(
            "node",
            "a section [[cluster.node]] with name and address below this one",
        );
    }

    let nodes: Vec<Node> = section
        .sections("node", NODE)
        .iter()
        .map(|s| check_node(s, clients, registry))
        .collect();

    key_generation(section, &name, &mut registry.cluster_generations);
    let smallest_disk = nodes.iter().map(|n| n.disk).min().unwrap_or_default();
    Cluster {
        label: section
            .text("label")
            .map_or_else(|| name.clone(), |t| t.text.to_owned()),
        name,
        place: check_place(section),
        time_zone: check_time_zone(section),
        off_peak: section.text("off_peak").map_or(
            DailyWindow {
                start_minute: 120,
                end_minute: 360,
            },
            |t| check_window(&t),
        ),
        fill_rate_bits: section.rate("fill_rate").unwrap_or(FILL_RATE_BITS),
        push_share: check_push_share(section, smallest_disk),
        weight: section
            .integer("weight", 0..=1_000_000)
            .map_or(1, |n| n as u32),
        nodes,
    }
}

fn check_place(section: &Section<'_>) -> Place {
    if !section.has("place") {
        section.note_missing(
            "place",
            "place = { latitude = 52.37, longitude = 4.90 }, where the cluster is",
        );
    }
    let place = section.section("place", PLACE);
    for (key, example) in [
        ("latitude", "latitude = 52.37, degrees north"),
        ("longitude", "longitude = 4.90, degrees east"),
    ] {
        if place.is_present() && !place.has(key) {
            place.note_missing(key, example);
        }
    }
    Place {
        latitude: place.float("latitude", -90.0..=90.0).unwrap_or(0.0),
        longitude: place.float("longitude", -180.0..=180.0).unwrap_or(0.0),
    }
}

fn check_time_zone(section: &Section<'_>) -> String {
    let Some(text) = section.text("time_zone") else {
        return "UTC".into();
    };
    if jiff::tz::db().get(text.text).is_err() {
        let names: Vec<String> = jiff::tz::db().available().map(|n| n.to_string()).collect();
        let near = nearest(text.text, &names)
            .map_or_else(String::new, |n| format!("did you mean {n:?}? "));
        text.note(
            format!("there is no time zone {:?}", text.text),
            format!("{near}write a name of the IANA database, such as \"Europe/Amsterdam\""),
        );
    }
    text.text.to_owned()
}

fn check_window(text: &Text<'_>) -> DailyWindow {
    let found = text
        .text
        .split_once('-')
        .and_then(|(start, end)| Some((minute_of_day(start)?, minute_of_day(end)?)));
    match found {
        Some((0, 1440)) => return DailyWindow { start_minute: 0, end_minute: 1440 },
        Some((start, end)) if start % 1440 != end % 1440 => {
            return DailyWindow { start_minute: start % 1440, end_minute: end % 1440 };
        }
        Some(_) => text.note(
            format!("{:?} starts when it ends", text.text),
            "write two different times, such as \"02:00-06:00\", or \"00:00-24:00\" for the whole day",
        ),
        None => text.note(
            format!("{:?} is not a span of time of day", text.text),
            "write local times as \"HH:MM-HH:MM\", such as \"02:00-06:00\" or \"22:30-05:00\"",
        ),
    }
    DailyWindow {
        start_minute: 0,
        end_minute: 1,
    }
}

/// Minutes after midnight; `24:00` is the next midnight.
fn minute_of_day(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let two_digits = |s: &str| {
        (s.len() == 2 && s.bytes().all(|b| b.is_ascii_digit()))
            .then(|| s.parse::<u16>().ok())
            .flatten()
    };
    match (two_digits(hour)?, two_digits(minute)?) {
        (24, 0) => Some(1440),
        (hour, minute) if hour < 24 && minute < 60 => Some(hour * 60 + minute),
        _ => None,
    }
}

/// A percentage of the smallest node disk, or a size.
fn check_push_share(section: &Section<'_>, smallest_disk: Bytes) -> Bytes {
    let half = Bytes(smallest_disk.0 / 2);
    let Some(item) = section.item("push_share") else {
        return half;
    };
    if item.is_bare_zero() {
        return Bytes(0);
    }
    let Some(text) =
        item.as_text("a percentage of the nodes' disks or a size, such as \"50%\" or \"1GiB\"")
    else {
        return half;
    };
    if text.text.trim_end().ends_with('%') {
        let share = text.quantity(units::percent).unwrap_or(0.5);
        if share > 1.0 {
            text.note(
                format!("{} is out of range", text.text),
                "write one from 0% to 100%",
            );
        }
        return Bytes((smallest_disk.0 as f64 * share.min(1.0)) as u64);
    }

    let size = text.quantity(units::bytes).unwrap_or(half);
    if size > smallest_disk {
        text.note(
            format!(
                "{} is more than the smallest disk of this cluster's nodes, {smallest_disk}",
                text.text
            ),
            "write less, or give the nodes more disk",
        );
    }

    size
}

fn check_node(section: &Section<'_>, clients: &ForClients, registry: &mut Registry) -> Node {
    let name = node_name(section, "name = \"ams-1\"", None, registry);
    let addresses = check_node_addresses(section, &name, registry);
    let listen = if section.has("listen") {
        section.sockets("listen")
    } else {
        addresses.iter().map(|a| SocketAddr::new(*a, 80)).collect()
    };

    let proxy_protocol = match section.has("proxy_protocol") {
        true => section.sockets("proxy_protocol"),
        false => Vec::new(),
    };
    let first_listen = listen
        .iter()
        .find(|address| !proxy_protocol.contains(address))
        .or(listen.first())
        .copied()
        .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 80)));
    let reached_by = if first_listen.ip().is_unspecified() {
        addresses.first().copied()
    } else {
        None
    };

    let service = section.socket("service").unwrap_or_else(|| {
        SocketAddr::new(reached_by.unwrap_or(first_listen.ip()), first_listen.port())
    });
    if section.has("service") && service.ip().is_unspecified() {
        section.note_at(
            "service",
            format!("{service} reaches no node"),
            "write the address and port by which name servers and other nodes reach it",
        );
    }

    let admin = section.socket_or_local("admin", 9100);
    let is_local = first_listen.ip().is_loopback();
    for address in &listen {
        registry.listener(section, "listen", *address, true, &name);
    }
    registry.listener(section, "admin", admin, is_local, &name);
    let listen_tls = check_listen_tls(section, &listen, clients.has_certificates);
    for address in &listen_tls {
        registry.listener(section, "listen_tls", *address, true, &name);
    }
    key_generation(section, &name, &mut registry.generations);
    let own = section.section("clients", CLIENTS);
    let node = Node {
        name,
        addresses,
        listen,
        listen_tls,
        proxy_protocol,
        trusted_proxies: check_trusted_proxies(&own)
            .unwrap_or_else(|| clients.trusted_proxies.clone()),
        service,
        admin: Some(admin),
        memory: section
            .bytes("memory", MEMORY_MIN..=Bytes(1 << 44))
            .unwrap_or(Bytes(64 << 20)),
        disk: section
            .bytes("disk", Bytes(0)..=Bytes(1 << 50))
            .unwrap_or(Bytes(1 << 30)),
        threads: section.integer("threads", 1..=1024).map(|n| n as usize),
        capacity_bits: section.rate("capacity"),
        clients: check_clients(&own, clients.limits),
    };
    check_proxy_protocol(section, &node);
    node
}

/// Listeners on which every connection begins with a PROXY header: of those that the node has, and
/// none to which name servers and other nodes connect, which send no such header.
fn check_proxy_protocol(section: &Section<'_>, node: &Node) {
    let Some(first) = node.proxy_protocol.first() else {
        return;
    };
    let note = |problem: String, hint: &str| section.note_at("proxy_protocol", problem, hint);
    for address in &node.proxy_protocol {
        if !node.listen.contains(address) && !node.listen_tls.contains(address) {
            note(
                format!("{address} is no listener of this node"),
                "write addresses of listen or listen_tls, as they are written there",
            );
        }
    }
    if node.trusted_proxies.is_empty() {
        note(
            format!("nobody may connect to {first}: no proxy is trusted"),
            "name the proxies in trusted_proxies of [clients]",
        );
    }
    let is_service = |address: &&SocketAddr| {
        address.port() == node.service.port()
            && (address.ip() == node.service.ip() || address.ip().is_unspecified())
    };
    if let Some(address) = node.proxy_protocol.iter().find(is_service) {
        note(
            format!("name servers and other nodes connect to {address} and send no PROXY header"),
            "add a listener without it, and name that one as service",
        );
    }
}

/// Listeners for TLS: by default one on port 443 for each address of the others, where the fleet has
/// certificates.
fn check_listen_tls(
    section: &Section<'_>,
    listen: &[SocketAddr],
    has_certificates: bool,
) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = Vec::new();
    if !section.has("listen_tls") {
        for address in listen.iter().filter(|_| has_certificates) {
            let address = SocketAddr::new(address.ip(), 443);
            if !found.contains(&address) {
                found.push(address);
            }
        }
        return found;
    }
    // Unlike `listen` it may be empty: a node need not speak TLS.
    if section
        .texts("listen_tls")
        .is_some_and(|list| list.is_empty())
    {
        return found;
    }
    found = section.sockets("listen_tls");
    if !has_certificates {
        section.note_at(
            "listen_tls",
            "the fleet has no certificate to show",
            "add a section [[certificate]] with cert and key, or [acme], by which control orders certificates",
        );
    }
    found
}

fn check_node_addresses(section: &Section<'_>, name: &str, registry: &mut Registry) -> Vec<IpAddr> {
    let key = match (section.has("address"), section.has("addresses")) {
        (true, true) => {
            let problem = format!("{}: address is set as well", section.path_of("addresses"));
            section.mistakes.note(
                section.at_of("addresses"),
                problem,
                "keep one of address and addresses",
            );
            "addresses"
        }
        (false, false) => {
            section.note_missing(
                "address",
                "address = \"192.0.2.1\", which clients are given",
            );
            return Vec::new();
        }
        (true, false) => "address",
        (false, true) => "addresses",
    };

    let mut addresses = Vec::new();
    for (address, at) in section.addresses(key) {
        let note = |problem: String, hint: &str| {
            section
                .mistakes
                .note(at, format!("{}: {problem}", section.path_of(key)), hint)
        };
        if address.is_unspecified() || address.is_multicast() {
            note(
                format!("{address} reaches no node"),
                "write the address that clients are given",
            );
        }
        match registry.addresses.insert(address, name.to_owned()) {
            Some(first) => note(
                format!("{address} is an address of {first} already"),
                "give every node an address of its own",
            ),
            None => addresses.push(address),
        }
    }

    addresses
}
