//! Runs one node of the fleet: from its arguments to the `run` of its role.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nearcast_fleet::config::{
    AccessLog, CachePolicy, CertificateFiles, Fleet, LogFormat, LogTarget,
};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::{self, KeySource, Mistake, StandaloneAcme, StandaloneEdge};
use nearcast_fleet::follow::{self, NodeContext};
use nearcast_fleet::lookup::NoSuchNode;
use nearcast_fleet::node_key::{self, OwnKey};
use nearcast_net::shutdown;
use nearcast_net::tls::ClientRoots;
use nearcast_origin::demo::PageSteering;
use tokio::signal::unix::SignalKind;
use tokio::sync::watch;

use crate::cli::{AccessLogFormat, Command, EdgeArgs, GslbDnsArgs, Listen, NodeArgs, OriginArgs};
use crate::operate::check;
use crate::{find, kernel, signals};

/// The step between opening a role's listeners and its first read or write.
pub(crate) trait WhenOpen: FnOnce() -> Result<(), Failure> + Send + 'static {}

impl<F: FnOnce() -> Result<(), Failure> + Send + 'static> WhenOpen for F {}

fn with_step(context: NodeContext, when_open: impl WhenOpen) -> NodeContext {
    let following = context.following.after(when_open);
    NodeContext {
        following,
        ..context
    }
}
/// Name of the file in a node's state directory that holds its key.
const KEY_FILE_NAME: &str = "node.key";

/// After this time a node has started, or has failed to.
const START_TIME: std::time::Duration = std::time::Duration::from_secs(2);

/// `nearcast gslb-dns`.
pub(crate) async fn gslb_dns(
    arguments: GslbDnsArgs,
    with_parent: bool,
    when_open: impl WhenOpen,
) -> Result<(), Failure> {
    kernel::raise_open_files();
    let path = find::fleet_path(arguments.node.fleet.fleet.as_deref())?;
    let find = |fleet: &Fleet| {
        choose(
            arguments.node.node.as_deref(),
            "[[name_server]]",
            fleet.name_servers.iter().map(|n| n.name.as_str()),
        )
    };
    let (fleet, name, disk) = load(path, arguments.node.key_file.clone(), find)?;
    check::refuse_faults(&disk.path, &fleet)?;
    let context = context(name, fleet, Some(disk), check::record_faults, with_parent).await?;
    nearcast_gslb_dns::run(with_step(context, when_open)).await
}

/// `nearcast edge`.
pub(crate) async fn edge(
    arguments: EdgeArgs,
    with_parent: bool,
    when_open: impl WhenOpen,
) -> Result<(), Failure> {
    kernel::raise_open_files();
    let EdgeArgs {
        node,
        listen,
        origin,
        default_ttl,
        forward_fields,
        key_fields,
        no_heuristic,
        no_http3,
        access_log,
        access_log_format,
        memory,
        disk,
        state_dir,
        mut listen_tls,
        cert,
        key,
        host,
        listen_http,
        no_redirect,
        acme_directory,
        acme_ca,
        resolver,
        contact,
    } = arguments;
    let orders = !host.is_empty();
    let mut http = None;
    let context = match origin {
        Some(origin) => {
            let state_dir = match state_dir {
                Some(named) => named,
                None => own_state_dir(listen.first(), disk.0 > 0)?,
            };
            let listen = match orders {
                false => listen.iter().map(|listen| listen.address).collect(),
                true => {
                    refuse_http_port(&listen)?;
                    check_authority_file(acme_ca.as_deref())?;
                    listen_tls = listen.iter().map(every_address).collect();
                    let found = match (no_redirect, listen_http.is_empty()) {
                        (true, _) => Vec::new(),
                        (false, true) => http_beside(&listen_tls),
                        (false, false) => listen_http,
                    };
                    http = Some(found.clone());
                    found
                }
            };
            let lower =
                |names: Vec<String>| names.iter().map(|name| name.to_ascii_lowercase()).collect();
            let cache = CachePolicy {
                default_ttl,
                heuristic: !no_heuristic,
                forward_fields: lower(forward_fields),
                key_fields: lower(key_fields),
                ..CachePolicy::default()
            };
            let mut fleet = file::standalone_edge(StandaloneEdge {
                listen,
                listen_tls,
                certificates: certificates(cert, key)?,
                ordered: StandaloneAcme {
                    hosts: host,
                    directory: acme_directory,
                    ca: acme_ca,
                    resolver,
                    contact,
                },
                origin,
                state_dir,
                memory,
                disk,
                cache,
            })?;
            for node in fleet.clusters.iter_mut().flat_map(|c| &mut c.nodes) {
                node.clients.http3 = !no_http3;
            }
            if let Some(path) = access_log {
                fleet.access_log = Some(own_access_log(path, access_log_format)?);
            }
            if let Some(warning) = origin_is_own_host(&fleet).filter(|_| orders) {
                tracing::warn!("{warning}");
            }
            context("edge".to_owned(), fleet, None, no_check, with_parent).await?
        }
        None => {
            let path = find::fleet_path(node.fleet.fleet.as_deref())
                .map_err(|f| or_without(f, "--listen ADDR:PORT --origin URL"))?;
            let edges = |fleet: &Fleet| {
                let names = fleet
                    .clusters
                    .iter()
                    .flat_map(|c| c.nodes.iter().map(|n| n.name.as_str()));
                choose(node.node.as_deref(), "[[cluster.node]]", names)
            };
            let (fleet, name, disk) = load(path, node.key_file.clone(), edges)?;
            context(name, fleet, Some(disk), no_check, with_parent).await?
        }
    };
    nearcast_edge::run(with_step(context, when_open))
        .await
        .map_err(|failure| match &http {
            Some(http) => with_hint_for_http(failure, http),
            None => failure,
        })
}

/// The port on which clients ask for a host over HTTP.
const HTTP_PORT: u16 = 80;
/// That of HTTPS.
const HTTPS_PORT: u16 = 443;

/// The address of a listener of HTTPS: a port alone is every address of the machine. One socket serves
/// IPv4 and IPv6, where the system has both and does not keep them apart.
fn every_address(listen: &Listen) -> SocketAddr {
    let Listen { address, is_port } = *listen;
    let is_one = |path: &str, is: fn(&str) -> bool| {
        std::fs::read_to_string(path).is_ok_and(|text| is(text.trim()))
    };
    let has_both = is_one("/proc/net/if_inet6", |text| !text.is_empty())
        && is_one("/proc/sys/net/ipv6/bindv6only", |text| text == "0");
    match is_port && has_both {
        true => (Ipv6Addr::UNSPECIFIED, address.port()).into(),
        false => address,
    }
}

/// Port 80 of a host with a certificate is for HTTP: clients and authorities do not speak TLS there.
fn refuse_http_port(listen: &[Listen]) -> Result<(), Failure> {
    let is_of_http = |listen: &&Listen| listen.address.port() == HTTP_PORT;
    match listen.iter().find(is_of_http) {
        None => Ok(()),
        Some(Listen { address, .. }) => Err(Failure::new(
            FailureKind::Usage,
            format!(
                "--listen {address}: with --host this is the address of HTTPS, and port {HTTP_PORT} is for the redirect to it and for http-01; write --listen {}, beside which port {HTTP_PORT} is opened",
                SocketAddr::new(address.ip(), HTTPS_PORT)
            ),
        )),
    }
}

/// An authority that cannot be verified would be asked again and again.
fn check_authority_file(ca: Option<&Path>) -> Result<(), Failure> {
    let Some(ca) = ca else { return Ok(()) };
    match ClientRoots::load(Some(ca)) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(
            FailureKind::NoInput,
            format!(
                "--acme-ca: {error}; name a PEM file with the certificate that the authority's own server is verified by"
            ),
        )),
    }
}

/// Says that the origin of an edge without a fleet file is a host that this edge serves, at a port
/// at which clients reach the edge.
fn origin_is_own_host(fleet: &Fleet) -> Option<String> {
    let site = fleet.sites.first()?;
    let (scheme, authority) = site.origin.split_once("://")?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None if scheme == "https" => (authority, HTTPS_PORT),
        None => (authority, HTTP_PORT),
    };
    let mut listeners = fleet
        .edges()
        .flat_map(|(_, node)| node.listen.iter().chain(&node.listen_tls));
    let is_own = [HTTP_PORT, HTTPS_PORT].contains(&port) || listeners.any(|at| at.port() == port);
    (is_own && site.hosts.iter().any(|one| one == host)).then(|| {
        format!(
            "--origin {} has the name of --host, which leads to this edge: requests would come back to it; use another name for the origin, such as https://origin.{host}, or its address",
            site.origin
        )
    })
}

/// The listeners for HTTP beside those of HTTPS.
fn http_beside(listen_tls: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in listen_tls {
        let http = SocketAddr::new(address.ip(), HTTP_PORT);
        if !found.contains(&http) && !listen_tls.contains(&http) {
            found.push(http);
        }
    }
    found
}

/// Adds what to do where it is the listener for HTTP that cannot be opened, which nobody has named.
fn with_hint_for_http(failure: Failure, http: &[SocketAddr]) -> Failure {
    let is_of_http = |address: &SocketAddr| failure.message.contains(&format!(" on {address}: "));
    match http.iter().any(is_of_http) {
        true => Failure {
            message: format!(
                "{}; it is for redirects to https: name another with --listen-http ADDR:PORT, or have none with --no-redirect",
                failure.message
            ),
            ..failure
        },
        false => failure,
    }
}

/// The access log of an edge without a fleet file. Its path starts at the current directory.
fn own_access_log(path: PathBuf, format: AccessLogFormat) -> Result<AccessLog, Failure> {
    let target = match path.as_os_str() == "-" {
        true => LogTarget::Stdout,
        false => LogTarget::File(std::path::absolute(&path).map_err(|error| {
            Failure::new(
                FailureKind::Usage,
                format!(
                    "{} cannot be the access log: {error}; name a file, or - for standard output",
                    path.display()
                ),
            )
        })?),
    };
    Ok(AccessLog {
        format: match format {
            AccessLogFormat::Json => LogFormat::Json,
            AccessLogFormat::Common => LogFormat::Common,
            AccessLogFormat::Combined => LogFormat::Combined,
        },
        ..AccessLog::to(target)
    })
}

/// The certificates of a command line, each with the key at the same place.
fn certificates(cert: Vec<PathBuf>, key: Vec<PathBuf>) -> Result<Vec<CertificateFiles>, Failure> {
    if cert.len() != key.len() {
        return Err(Failure::new(
            FailureKind::Usage,
            format!(
                "there are {} --cert and {} --key; each certificate needs its key, in the same order",
                cert.len(),
                key.len()
            ),
        ));
    }
    let pairs = cert.into_iter().zip(key);
    Ok(pairs
        .map(|(cert, key)| CertificateFiles { cert, key })
        .collect())
}

/// `nearcast origin`.
pub(crate) async fn origin(
    arguments: OriginArgs,
    with_parent: bool,
    when_open: impl WhenOpen,
) -> Result<(), Failure> {
    kernel::raise_open_files();
    let OriginArgs {
        node,
        root,
        listen,
        demo_content,
    } = arguments;
    let (fleet, name, disk) = match (root, listen) {
        (Some(root), Some(listen)) => {
            if demo_content {
                write_demo_content(&root, &PageSteering::default())?;
            }
            (
                file::standalone_origin(root, listen)?,
                "origin".to_owned(),
                None,
            )
        }
        _ => {
            let path = find::fleet_path(node.fleet.fleet.as_deref())
                .map_err(|f| or_without(f, "--root DIR --listen ADDR:PORT"))?;
            let origins = |fleet: &Fleet| {
                choose(
                    node.node.as_deref(),
                    "[[origin_node]]",
                    fleet.origins.iter().map(|n| n.name.as_str()),
                )
            };
            let (fleet, name, disk) = load(path, node.key_file.clone(), origins)?;
            if let Some(origin) = fleet
                .origins
                .iter()
                .find(|o| o.name == name)
                .filter(|_| demo_content)
            {
                write_demo_content(&origin.root, &PageSteering::of(&fleet))?;
            }
            (fleet, name, Some(disk))
        }
    };
    let context = context(name, fleet, disk, no_check, with_parent).await?;
    nearcast_origin::run(with_step(context, when_open)).await
}

/// `nearcast control`.
pub(crate) async fn control(
    arguments: NodeArgs,
    with_parent: bool,
    when_open: impl WhenOpen,
) -> Result<(), Failure> {
    kernel::raise_open_files();
    let path = find::fleet_path(arguments.fleet.fleet.as_deref())?;
    let control = |fleet: &Fleet| {
        choose(
            arguments.node.as_deref(),
            "[control]",
            std::iter::once(find::control(fleet)?.name.as_str()),
        )
    };
    let (fleet, _, Disk { path, .. }) = load(path, arguments.key_file.clone(), control)?;
    check::refuse_faults(&path, &fleet)?;
    for Mistake {
        line,
        column,
        problem,
        hint,
    } in check::warnings(&fleet, &file::read(&path)?)
    {
        tracing::warn!("{}:{line}:{column}: {problem}; {hint}", path.display());
    }
    let (fleet_tx, _) = watch::channel(Arc::new(fleet));
    let (trigger, shutdown) = shutdown::channel();
    signals::end_on(trigger, with_parent)?;
    let (disk_tx, disk) = watch::channel(file::read(&path)?);
    let mut hangup = signals::listen(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match file::read(&path) {
                Ok(text) => drop(disk_tx.send_replace(text)),
                Err(failure) => tracing::error!(%failure, "SIGHUP: the fleet file stays as it was"),
            }
        }
    });
    nearcast_control::run(fleet_tx, disk, check::record_faults, when_open, shutdown).await
}

/// The check of roles that serve no zones: they accept a fleet file with a faulty zone.
fn no_check(_: &Fleet, _: &str) -> Vec<file::Mistake> {
    Vec::new()
}

/// The files of a node that an operator may edit on its machine.
pub(crate) struct Disk {
    /// The fleet file.
    pub(crate) path: PathBuf,
    /// The file with this node's key, where the fleet file does not say it.
    pub(crate) key: Option<PathBuf>,
}

impl Disk {
    /// Loads the fleet file, with this node's key.
    pub(crate) fn load(&self) -> Result<Fleet, Failure> {
        match &self.key {
            Some(key) => Ok(Fleet {
                node_key: file::read_key(key)?,
                ..file::load_with(&self.path, KeySource::Unneeded)?
            }),
            None => file::load(&self.path),
        }
    }
}

/// The file that holds a node's key: the one of `--key-file`, else `node.key` in the node's state
/// directory. `None` leaves it to the fleet file.
pub(crate) fn key_file(named: Option<PathBuf>, fleet: &Fleet, name: &str) -> Option<PathBuf> {
    let in_state = fleet.node_dir(name).join(KEY_FILE_NAME);
    named.or_else(|| in_state.exists().then_some(in_state))
}

/// Loads the fleet, and finds the name of this node. The key is that of `--key-file`, else
/// `node.key` in the node's state directory, else that of the fleet file.
fn load(
    path: PathBuf,
    key: Option<PathBuf>,
    find: impl Fn(&Fleet) -> Result<String, Failure>,
) -> Result<(Fleet, String, Disk), Failure> {
    let fleet = file::load_with(&path, KeySource::Unneeded)?;
    let name = find(&fleet)?;
    let disk = Disk {
        key: key_file(key, &fleet, &name),
        path,
    };
    let fleet = disk.load()?;
    check_key(&fleet, &name)?;
    Ok((fleet, name, disk))
}

/// Refuses a key with which this node cannot work; returns warnings about one that should be
/// replaced.
fn check_key(fleet: &Fleet, name: &str) -> Result<Vec<String>, Failure> {
    let is_edge_or_origin =
        fleet.edge(name).is_some() || fleet.origins.iter().any(|origin| origin.name == name);
    let refuse = |message: String| Err(Failure::new(FailureKind::Usage, message));
    let own = match OwnKey::parse(&fleet.node_key.0) {
        Some(own) => own,
        None if fleet.keys.own_only && is_edge_or_origin && !fleet.node_key.0.is_empty() => {
            return Ok(vec![format!(
                "this node holds the fleet's key, by which it can speak for every node; give it the one that `nearcast key {name}` prints"
            )]);
        }
        None => return Ok(node_key::warnings(fleet)),
    };
    if !is_edge_or_origin {
        return refuse(format!(
            "{name} holds one node's own key; control and name servers check the keys of all nodes and need the fleet's"
        ));
    }
    if own.node != name {
        return refuse(format!(
            "the key of this machine is of {}, and this node is {name}; name its own with --key-file (`nearcast key {name}` prints it)",
            own.node
        ));
    }
    let current = node_key::generation(fleet, name);
    let other = (own.generation != current).then(|| {
        let shown = own.generation;
        format!("the key of this node is of generation {shown} and the fleet file says {current}; control and name servers refuse it")
    });
    Ok(other.into_iter().collect())
}

/// Warnings about settings that a fleet file has by a former name.
fn former_names(path: &Path) -> Vec<String> {
    let text = file::read(path).unwrap_or_default();
    file::renamed_settings(&text)
        .into_iter()
        .map(|setting| {
            let Mistake {
                line,
                column,
                problem,
                hint,
            } = setting;
            format!("{}:{line}:{column}: {problem}; {hint}", path.display())
        })
        .collect()
}

/// Logs warnings once the node has had time to start, so that a failed start shows its reason
/// alone.
fn warn_once_started(warnings: Vec<String>) {
    tokio::spawn(async move {
        tokio::time::sleep(START_TIME).await;
        warnings
            .iter()
            .for_each(|warning| tracing::warn!("{warning}"));
    });
}

/// The context of every role but control. `check` may refuse a fleet file of the journal.
async fn context(
    name: String,
    fleet: Fleet,
    disk: Option<Disk>,
    check: file::FurtherCheck,
    with_parent: bool,
) -> Result<NodeContext, Failure> {
    let state_dir = fleet.node_dir(&name);
    let (fleet_tx, _) = watch::channel(Arc::new(fleet));
    let (trigger, shutdown) = shutdown::channel();
    signals::end_on(trigger, with_parent)?;
    let mut warnings = check_key(&fleet_tx.borrow(), &name)?;
    warnings.extend(disk.iter().flat_map(|disk| former_names(&disk.path)));
    warn_once_started(warnings);
    reload_on_hangup(name.clone(), fleet_tx.clone(), disk)?;
    Ok(follow::prepare(name, fleet_tx, state_dir, check, shutdown).await)
}

/// Adds to a failure that the role works without a fleet file too.
fn or_without(failure: Failure, arguments: &str) -> Failure {
    Failure {
        message: format!("{}; without a fleet file: {arguments}", failure.message),
        ..failure
    }
}

/// The node to run: the one named, or the only one of its role.
pub(crate) fn choose<'f>(
    asked: Option<&str>,
    section: &'static str,
    names: impl Iterator<Item = &'f str>,
) -> Result<String, Failure> {
    let names: Vec<&str> = names.collect();
    match (asked, &names[..]) {
        (Some(name), _) if names.contains(&name) => Ok(name.to_owned()),
        (None, [only]) => Ok((*only).to_owned()),
        (None, [_, ..]) => Err(Failure::new(
            FailureKind::Usage,
            format!(
                "which node is this? Say --node NAME; the fleet file has: {}",
                names.join(", ")
            ),
        )),
        (Some(_), _) | (None, []) => Err(NoSuchNode {
            section,
            name: asked.unwrap_or_default().to_owned(),
            known: names.into_iter().map(str::to_owned).collect(),
        }
        .into()),
    }
}

/// Names the state directory of an edge that keeps certificates, as it depends on who starts it: call
/// this before the process becomes another user.
///
/// # Errors
/// The user has no home directory.
pub(crate) fn name_state_dir(command: &mut Command) -> Result<(), Failure> {
    if let Command::Edge(arguments) = command
        && !arguments.host.is_empty()
        && arguments.state_dir.is_none()
    {
        arguments.state_dir = Some(lasting_state_dir(&arguments.listen)?);
    }
    Ok(())
}

/// The state directory of an edge that keeps certificates, named by the port: that of the service
/// manager, of the system where root starts it, else of this user.
///
/// # Errors
/// The user has no home directory.
fn lasting_state_dir(listen: &[Listen]) -> Result<PathBuf, Failure> {
    let variable = |name: &str| {
        let value = std::env::var_os(name).map(PathBuf::from);
        value.filter(|path| path.is_absolute())
    };
    let port = listen.first().map_or(0, |listen| listen.address.port());
    // Set by systemd for StateDirectory=.
    if let Some(given) = variable("STATE_DIRECTORY") {
        return Ok(given);
    }
    let base = match kernel::user_id() {
        0 => Some(PathBuf::from("/var/lib")),
        _ => variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state"))),
    };
    let base = base.ok_or_else(|| {
        Failure::new(
            FailureKind::Usage,
            "this user has no home directory to keep certificates in; name a directory with --state-dir",
        )
    })?;
    Ok(base.join("nearcast-edge").join(port.to_string()))
}

/// The state directory of an edge without a fleet file, named by the port, so that each edge has
/// its own.
fn own_state_dir(listen: Option<&Listen>, is_needed: bool) -> Result<PathBuf, Failure> {
    let port = listen.map_or(0, |listen| listen.address.port());
    let path = std::env::temp_dir().join(format!("nearcast-edge-{}-{port}", kernel::user_id()));
    if is_needed {
        make_own(&path)?;
    }
    Ok(path)
}

/// Makes a directory in a place where every user can make one. A file or directory of another user
/// under that name is refused.
fn make_own(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    let is_own = || {
        std::fs::symlink_metadata(path)
            .is_ok_and(|about| about.is_dir() && about.uid() == kernel::user_id())
    };
    match made {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && is_own() => Ok(()),
        Err(error) => {
            let message = format!(
                "cannot use {} as the state directory: {error}, and it is not this user's own; name another with --state-dir",
                path.display()
            );
            Err(Failure::new(FailureKind::CannotCreate, message))
        }
    }
}

/// Reads the fleet file again at each SIGHUP. A file with mistakes is logged and changes nothing.
/// An unedited file changes nothing either: the journal may have brought a newer revision.
fn reload_on_hangup(
    name: String,
    fleet_tx: watch::Sender<Arc<Fleet>>,
    disk: Option<Disk>,
) -> Result<(), Failure> {
    let mut hangup = signals::listen(SignalKind::hangup())?;
    let mut seen = fleet_tx.borrow().clone();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let Some(disk) = &disk else {
                tracing::warn!("SIGHUP: this node has no fleet file to read again");
                continue;
            };
            let path = disk.path.display();
            // The key may have a file by now that was not there at the start.
            let key = key_file(disk.key.clone(), &fleet_tx.borrow(), &name);
            let now = Disk {
                key,
                path: disk.path.clone(),
            };
            let loaded = now
                .load()
                .and_then(|fleet| check_key(&fleet, &name).map(|warnings| (fleet, warnings)));
            match loaded.map(|(fleet, warnings)| {
                warnings
                    .iter()
                    .for_each(|warning| tracing::warn!("{warning}"));
                fleet
            }) {
                Ok(fleet) if fleet.says_the_same(&seen) => {
                    tracing::info!(%path, "SIGHUP: the fleet file has not changed")
                }
                Ok(fleet)
                    if (Fleet {
                        node_key: seen.node_key.clone(),
                        ..fleet.clone()
                    })
                    .says_the_same(&seen) =>
                {
                    // The fleet file that is in force may be newer.
                    tracing::info!(%path, "SIGHUP: this node has a new key");
                    fleet_tx
                        .send_modify(|now| Arc::make_mut(now).node_key = fleet.node_key.clone());
                    seen = Arc::new(fleet);
                }
                Ok(fleet) => {
                    tracing::info!(%path, "SIGHUP: the fleet file was read again");
                    seen = Arc::new(fleet);
                    fleet_tx.send_replace(seen.clone());
                }
                Err(failure) => tracing::error!(%failure, "SIGHUP: the fleet file stays as it was"),
            }
        }
    });
    Ok(())
}

/// Writes the demo's content where it is missing.
pub(crate) fn write_demo_content(root: &Path, steering: &PageSteering) -> Result<(), Failure> {
    nearcast_origin::demo::write(root, steering).map_err(|error| {
        let kind = if error.kind() == std::io::ErrorKind::StorageFull {
            FailureKind::Io
        } else {
            FailureKind::CannotCreate
        };
        Failure::new(
            kind,
            format!(
                "cannot write the demo's content to {}: {error}",
                root.display()
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use nearcast_fleet::units::Bytes;

    use super::*;

    #[test]
    fn a_state_directory_that_somebody_planted_is_not_used() {
        let directory = tempfile::tempdir().expect("a directory");
        let own = directory.path().join("own");
        make_own(&own).expect("it is made");
        make_own(&own).expect("it is there already, and ours");
        let (link, file) = (directory.path().join("link"), directory.path().join("file"));
        std::os::unix::fs::symlink(&own, &link).expect("a link");
        std::fs::write(&file, "").expect("a file");
        for planted in [link, file] {
            let refused = make_own(&planted).expect_err("it is not a directory of ours");
            assert_eq!(refused.kind.exit_code(), 73);
            assert!(refused.message.contains("--state-dir"), "{refused}");
        }
    }

    #[test]
    fn redirects_listen_beside_https() {
        let at = |texts: &[&str]| {
            let parse = |text: &&str| text.parse::<SocketAddr>().expect("an address");
            texts.iter().map(parse).collect::<Vec<_>>()
        };
        for (https, http) in [
            (&["[::]:443"][..], &["[::]:80"][..]),
            (&["192.0.2.1:443", "192.0.2.1:8443"], &["192.0.2.1:80"]),
            (
                &["192.0.2.1:443", "[2001:db8::1]:443"],
                &["192.0.2.1:80", "[2001:db8::1]:80"],
            ),
            (&["192.0.2.1:80"], &[]),
        ] {
            assert_eq!(http_beside(&at(https)), at(http), "{https:?}");
        }
        let failure = Failure::new(
            FailureKind::Unavailable,
            "cannot listen for clients on [::]:80: in use",
        );
        let hinted = with_hint_for_http(failure.clone(), &at(&["[::]:80"]));
        assert!(hinted.message.contains("--no-redirect"), "{hinted}");
        assert_eq!(
            with_hint_for_http(failure.clone(), &at(&["[::]:8080"])),
            failure
        );
    }

    #[test]
    fn an_origin_with_the_name_of_the_edge_is_warned_of() {
        for (origin, is_warned) in [
            ("https://www.example.org", true),
            ("http://WWW.example.org/", true),
            ("https://www.example.org:8443", true),
            ("https://www.example.org:9443", false),
            ("https://origin.example.org", false),
            ("http://127.0.0.1:8000", false),
            ("http://[::1]:8000", false),
        ] {
            let fleet = file::standalone_edge(StandaloneEdge {
                listen: Vec::new(),
                listen_tls: vec![(Ipv6Addr::LOCALHOST, 8443).into()],
                certificates: Vec::new(),
                ordered: StandaloneAcme {
                    hosts: vec!["www.example.org".to_owned()],
                    ..StandaloneAcme::default()
                },
                origin: origin.to_owned(),
                state_dir: PathBuf::from("state"),
                memory: Bytes(1 << 20),
                disk: Bytes(0),
                cache: CachePolicy::default(),
            });
            let warning = origin_is_own_host(&fleet.expect("good arguments"));
            assert_eq!(warning.is_some(), is_warned, "{origin}: {warning:?}");
            if let Some(warning) = warning {
                assert!(
                    warning.contains("use another name for the origin"),
                    "{warning}"
                );
            }
        }
    }

    #[test]
    fn the_only_node_needs_no_name() {
        type Row<'a> = (Option<&'a str>, &'a [&'a str], Result<&'a str, &'a str>);
        let table: [Row<'_>; 6] = [
            (None, &["ns1"], Ok("ns1")),
            (Some("ns1"), &["ns1"], Ok("ns1")),
            (Some("b"), &["a", "b"], Ok("b")),
            (None, &["a", "b"], Err("a, b")),
            (Some("nobody"), &["a", "b"], Err("\"nobody\"")),
            (None, &[], Err("has no [[x]]")),
        ];
        for (asked, names, expected) in table {
            let found = choose(asked, "[[x]]", names.iter().copied());
            match (found, expected) {
                (Ok(name), Ok(wanted)) => assert_eq!(name, wanted),
                (Err(failure), Err(words)) => assert!(failure.message.contains(words), "{failure}"),
                other => panic!("{asked:?} of {names:?}: {other:?}"),
            }
        }
    }
}
