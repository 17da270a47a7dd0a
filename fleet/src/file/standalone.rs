//! Fleets without a fleet file: one edge, or one origin node, from command-line arguments.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::clusters::FILL_RATE_BITS;
use super::fleet_section::REPORT_INTERVAL;
use super::names;
use super::sites::SITE_TTL;
use super::steering::default_steering;
use crate::clock::FleetClock;
use crate::config::{
    CachePolicy, ClientLimits, Cluster, DailyWindow, DrainLimits, Fleet, KeyPolicy, Node,
    OriginNode, OriginPolicy, Place, PurgePolicy, Secret, SelectionPolicy, Site,
};
use crate::failure::{Failure, FailureKind};
use crate::units::Bytes;

/// The fleet of one edge without a fleet file: node `edge` in cluster `local`, one site `site` for
/// any host, no control, no admin listener, the client's `Host` passed on to the origin, no node
/// key. `disk` of 0 keeps nothing on disk; `cache` is the site's policy. The node's state is in
/// `state_dir`/edge.
///
/// # Errors
/// [`FailureKind::Usage`] when `origin` is not `http://host[:port]` or `https://host[:port]`,
/// nothing is listened on, or a request field of the policy has a name that it cannot have.
pub fn standalone_edge(
    listen: Vec<SocketAddr>,
    origin: &str,
    state_dir: PathBuf,
    memory: Bytes,
    disk: Bytes,
    cache: CachePolicy,
) -> Result<Fleet, Failure> {
    let origin = names::base_url(origin, &["http", "https"]).map_err(|problem| {
        Failure::new(
            FailureKind::Usage,
            format!("{origin:?} is no origin: {problem}; write http://host[:port] or https://host[:port], such as http://127.0.0.1:8000"),
        )
    })?;
    for name in cache.forward_fields.iter().chain(&cache.key_fields) {
        names::request_field(name).map_err(|(problem, hint)| {
            Failure::new(
                FailureKind::Usage,
                format!("the request field {name:?}: {problem}; {hint}"),
            )
        })?;
    }
    let Some(service) = listen.first().copied() else {
        return Err(Failure::new(
            FailureKind::Usage,
            "there is nothing to listen on; name an address and a port, such as 127.0.0.1:8080",
        ));
    };
    let node = Node {
        name: "edge".into(),
        addresses: listen.iter().map(SocketAddr::ip).collect(),
        listen,
        service,
        admin: None,
        memory,
        disk,
        threads: None,
        capacity_bits: None,
        clients: ClientLimits::default(),
    };
    let cluster = Cluster {
        name: "local".into(),
        label: "local".into(),
        place: Place {
            latitude: 0.0,
            longitude: 0.0,
        },
        time_zone: "UTC".into(),
        off_peak: DailyWindow {
            start_minute: 120,
            end_minute: 360,
        },
        fill_rate_bits: FILL_RATE_BITS,
        push_share: Bytes(disk.0 / 2),
        weight: 1,
        nodes: vec![node],
    };
    let site = Site {
        name: "site".into(),
        hosts: vec!["*".into()],
        origin,
        origin_host: None,
        policy: SelectionPolicy::Geo,
        ttl: SITE_TTL,
        clusters: vec![0],
        cache,
        origin_policy: OriginPolicy::default(),
        purge: PurgePolicy::default(),
    };
    Ok(Fleet {
        clusters: vec![cluster],
        sites: vec![site],
        ..standalone(state_dir)
    })
}

/// The fleet of one origin node without a fleet file: node `origin` that serves the directory
/// `root` on `listen`, no control, no admin listener, built-in cache rules alone.
///
/// # Errors
/// [`FailureKind::NoInput`] when `root` is no directory.
pub fn standalone_origin(root: PathBuf, listen: SocketAddr) -> Result<Fleet, Failure> {
    if !root.is_dir() {
        return Err(Failure::new(
            FailureKind::NoInput,
            format!(
                "{} is no directory; name one that has the content",
                root.display()
            ),
        ));
    }
    let node = OriginNode {
        name: "origin".into(),
        listen,
        admin: None,
        root,
        rules: Vec::new(),
    };
    Ok(Fleet {
        origins: vec![node],
        ..standalone(PathBuf::from("."))
    })
}

/// Nothing but defaults; a zone that no public name can be in.
fn standalone(state_dir: PathBuf) -> Fleet {
    use std::hash::{BuildHasher as _, RandomState};
    Fleet {
        // Of its own in every process: requests carry it, and a loop must not be seen where two
        // stand in a row.
        zone: format!("{:016x}.invalid", RandomState::new().hash_one(0)),
        zone_name_servers: Vec::new(),
        hostmaster: "hostmaster@cdn.invalid".into(),
        base: PathBuf::from("."),
        state_dir,
        user: None,
        node_key: Secret(String::new()),
        keys: KeyPolicy::default(),
        report_interval: REPORT_INTERVAL,
        admin_hosts: Vec::new(),
        drain: DrainLimits::default(),
        clock: FleetClock::REAL,
        control: None,
        origins: Vec::new(),
        name_servers: Vec::new(),
        steering: default_steering(),
        clusters: Vec::new(),
        sites: Vec::new(),
        zones: Vec::new(),
        changed_unix_s: 0,
    }
}
