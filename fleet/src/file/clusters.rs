//! The sections `[[cluster]]` and `[[cluster.node]]`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::fleet_section::{CLIENTS, check_clients};
use super::reader::{Section, Text, nearest};
use super::registry::{Registry, node_name};
use super::secrets::key_generation;
use super::settings::Settings;
use super::values::check_label;
use crate::config::{ClientLimits, Cluster, DailyWindow, Node, Place};
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
    "service",
    "admin",
    "memory",
    "disk",
    "threads",
    "capacity",
    "key_generation",
    "clients",
]);

/// The default.
pub(super) const FILL_RATE_BITS: u64 = 100_000_000;

pub(super) fn check_clusters(
    root: &Section<'_>,
    clients: ClientLimits,
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
    clients: ClientLimits,
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
            format!("{:?} is no span of time of day", text.text),
            "write local times as \"HH:MM-HH:MM\", such as \"02:00-06:00\" or \"22:30-05:00\"",
        ),
    }
    DailyWindow {
        start_minute: 0,
        end_minute: 1,
    }
}

/// Minutes after midnight; `24:00` is the next one.
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

fn check_node(section: &Section<'_>, clients: ClientLimits, registry: &mut Registry) -> Node {
    let name = node_name(section, "name = \"ams-1\"", None, registry);
    let addresses = check_node_addresses(section, &name, registry);
    let listen = if section.has("listen") {
        section.sockets("listen")
    } else {
        addresses.iter().map(|a| SocketAddr::new(*a, 80)).collect()
    };
    let first_listen = listen
        .first()
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
        section.mistakes.note(
            section.at_of("service"),
            format!("{}: {service} reaches no node", section.path_of("service")),
            "write the address and port by which name servers and other nodes reach it",
        );
    }
    let admin = section
        .socket("admin")
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9100)));
    let is_local = first_listen.ip().is_loopback();
    for address in &listen {
        registry.listener(section, "listen", *address, true, &name);
    }
    registry.listener(section, "admin", admin, is_local, &name);
    key_generation(section, &name, &mut registry.generations);
    Node {
        name,
        addresses,
        listen,
        service,
        admin: Some(admin),
        memory: section
            .bytes("memory", Bytes(1 << 20)..=Bytes(1 << 44))
            .unwrap_or(Bytes(64 << 20)),
        disk: section
            .bytes("disk", Bytes(0)..=Bytes(1 << 50))
            .unwrap_or(Bytes(1 << 30)),
        threads: section.integer("threads", 1..=1024).map(|n| n as usize),
        capacity_bits: section.rate("capacity"),
        clients: check_clients(&section.section("clients", CLIENTS), clients),
    }
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
