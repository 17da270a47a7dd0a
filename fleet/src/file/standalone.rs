//! Fleets without a fleet file: one edge, or one origin node, from command-line arguments.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::clusters::{FILL_RATE_BITS, MEMORY_MIN};
use super::fleet_section::REPORT_INTERVAL;
use super::names;
use super::sites::SITE_TTL;
use super::standalone_acme::{self, StandaloneAcme};
use super::steering::default_steering;
use crate::clock::FleetClock;
use crate::config::{
    CachePolicy, CertificateFiles, ClientLimits, Cluster, CompressionPolicy, DailyWindow,
    DrainLimits, Fleet, HttpsPolicy, KeyPolicy, Node, OriginNode, OriginPolicy, Place, PurgePolicy,
    Secret, SelectionPolicy, Site, TlsSettings,
};
use crate::failure::{Failure, FailureKind};
use crate::units::Bytes;

/// An edge without a fleet file.
#[derive(Debug, Clone)]
pub struct StandaloneEdge {
    /// Addresses of its listeners for HTTP; at least one where it orders no certificates.
    pub listen: Vec<SocketAddr>,
    /// Addresses of its listeners for TLS.
    pub listen_tls: Vec<SocketAddr>,
    /// Certificates that it shows there.
    pub certificates: Vec<CertificateFiles>,
    /// Certificates that it orders, in place of those. It then serves their hosts alone, and redirects
    /// them to https.
    pub ordered: StandaloneAcme,
    /// Its origin, `http://host[:port]` or `https://host[:port]`.
    pub origin: String,
    /// Parent of its state directory `edge`.
    pub state_dir: PathBuf,
    /// Size of the memory tier.
    pub memory: Bytes,
    /// Size of the disk tier; 0 turns it off.
    pub disk: Bytes,
    /// The site's policy.
    pub cache: CachePolicy,
}

/// The fleet of one edge without a fleet file: node `edge` in cluster `local`, one site `site` for
/// any host (or the hosts of the certificates that it orders), without control, admin listener and node key. The edge forwards the client's `Host` to
/// the origin.
///
/// # Errors
/// [`FailureKind::Usage`] when the origin is no URL with a host only, there is no listener, a
/// listener for TLS has no certificate, a certificate is ordered that no authority issues, or a
/// request field of the policy has an invalid name.
pub fn standalone_edge(edge: StandaloneEdge) -> Result<Fleet, Failure> {
    let StandaloneEdge {
        listen,
        listen_tls,
        certificates,
        ordered,
        origin,
        state_dir,
        memory,
        disk,
        cache,
    } = edge;
    if memory < MEMORY_MIN {
        return Err(Failure::new(
            FailureKind::Usage,
            format!(
                "the memory of an edge is {memory}, which is too little for its work; give it {MEMORY_MIN} at least"
            ),
        ));
    }
    let origin = names::base_url(&origin, &["http", "https"]).map_err(|problem| {
        Failure::new(
            FailureKind::Usage,
            format!("{origin:?} is not an origin: {problem}; write http://host[:port] or https://host[:port], such as http://127.0.0.1:8000"),
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
    let acme = standalone_acme::check(ordered)?;
    let service = match acme {
        Some(_) => listen.first().or(listen_tls.first()),
        None => listen.first(),
    };
    let Some(service) = service.copied() else {
        return Err(Failure::new(
            FailureKind::Usage,
            "there is nothing to listen on; name an address and a port, such as 127.0.0.1:8080",
        ));
    };

    let has_certificates = !certificates.is_empty() || acme.is_some();
    if listen_tls.is_empty() == has_certificates {
        return Err(Failure::new(
            FailureKind::Usage,
            "a listener for TLS needs a certificate, and a certificate a listener; name an address, a certificate and its key",
        ));
    }

    let node = Node {
        name: "edge".into(),
        addresses: match listen.is_empty() {
            true => vec![service.ip()],
            false => listen.iter().map(SocketAddr::ip).collect(),
        },
        listen,
        listen_tls,
        proxy_protocol: Vec::new(),
        trusted_proxies: Vec::new(),
        service,
        admin: None,
        memory,
        disk,
        threads: None,
        capacity_bits: None,
        clients: ClientLimits::default(),
    };
    let hosts = match &acme {
        Some(acme) => acme
            .certificates
            .iter()
            .flat_map(|one| one.hosts.clone())
            .collect(),
        None => vec!["*".into()],
    };
    let site = Site {
        name: "site".into(),
        hosts,
        origin,
        origin_host: None,
        policy: SelectionPolicy::Geo,
        ttl: SITE_TTL,
        clusters: vec![0],
        cache,
        origin_policy: OriginPolicy::default(),
        purge: PurgePolicy::default(),
        https: HttpsPolicy {
            redirect: acme.is_some(),
            ..HttpsPolicy::default()
        },
        compression: CompressionPolicy::default(),
    };
    Ok(Fleet {
        clusters: vec![cluster_of(node)],
        sites: vec![site],
        tls: TlsSettings {
            certificates,
            ..TlsSettings::default()
        },
        acme,
        ..standalone(state_dir)
    })
}

/// The cluster of a single edge.
fn cluster_of(node: Node) -> Cluster {
    Cluster {
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
        // Nobody pushes to it: the disk is for what clients request.
        push_share: Bytes(0),
        weight: 1,
        nodes: vec![node],
    }
}

/// The fleet of one origin node without a fleet file: node `origin` that serves the directory
/// `root` on `listen` with the built-in cache rules, without control and admin listener.
///
/// # Errors
/// [`FailureKind::NoInput`] when `root` is not a directory.
pub fn standalone_origin(root: PathBuf, listen: SocketAddr) -> Result<Fleet, Failure> {
    if !root.is_dir() {
        return Err(Failure::new(
            FailureKind::NoInput,
            format!(
                "{} is not a directory; name one that has the content",
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

/// A fleet of defaults without nodes. No public name can be in its zone.
fn standalone(state_dir: PathBuf) -> Fleet {
    use std::hash::{BuildHasher as _, RandomState};
    Fleet {
        // Different in every process: requests carry the zone in `CDN-Loop`, and two such edges in
        // a row are not a loop.
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
        tls: TlsSettings::default(),
        acme: None,
        ca: None,
        admin_identity: None,
        access_log: None,
        zones: Vec::new(),
        changed_unix_s: 0,
    }
}
