//! The edge: a pull cache in front of an origin, one of several in a cluster.
//!
//! - [`serve`]: a client's connection, its limits, and one protocol a module.
//! - [`request`]: the life of one request, in order; [`nearcast_http_rules`]: its decisions, as pure
//!   functions. [`client_body`], [`interim`]: what a protocol is given to write, beside a response's
//!   head.
//! - [`forward`]: forward requests that fill the store, shared by all clients that want the same;
//!   [`origin`]: the pool of connections under them; [`body`]: the bytes of a representation, from
//!   fills to readers.
//! - [`stored`], [`spellings`]: stored responses and the purges that cover them; [`store`]: their
//!   slices, in memory and on disk.
//! - [`changes`]: the latest changes by unsafe requests; [`journal`]: folds the control journal;
//!   [`push`]: carries out push orders.
//! - [`lifecycle`]: whether the node accepts clients, is drained, or is shutting down.
//! - [`metrics`], [`popularity`], [`rtt`], [`report`]: what the node counts and reports.
//! - [`site`]: the sites by their hosts; [`peer`]: what nodes of a cluster say to one another;
//!   [`clock`]: the time of day, as an argument.
//!
//! One current-thread runtime a worker, SO_REUSEPORT, shared index; counters are each worker's own.

mod body;
mod changes;
mod client_body;
mod clock;
mod edge;
mod forward;
#[doc(hidden)]
pub mod fuzzing;
mod interim;
mod journal;
mod kernel;
mod lifecycle;
mod metrics;
mod origin;
mod peer;
mod popularity;
mod push;
mod report;
mod request;
mod rtt;
mod serve;
mod site;
mod spellings;
mod store;
mod stored;

pub use self::serve::http1::judge as request_head;

// alias until the parts are merged
mod standing {
    pub(crate) use crate::lifecycle::{Lifecycle as Standing, Stage};
}

// Aliases until the parts are merged.
use stored::generations as purge;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use http::HeaderValue;
use nearcast_fleet::admin::{self, Readiness};
use nearcast_fleet::config::{Cluster, Fleet, Node};
use nearcast_fleet::drains::LameDuck;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::follow::{self, NodeContext};
use nearcast_fleet::shutdown::{self, Shutdown};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::edge::{Edge, Knowledge, Sites, Worker, now_ms};
use crate::forward::Forwards;
use crate::metrics::{Collected, Metrics};
use crate::origin::{OriginPool, Origins};
use crate::serve::connections::{self, Connections};
use crate::serve::server;
use crate::standing::{Stage, Standing};
use crate::store::{DiskConfig, Gone, Store, StoreConfig};
use crate::stored::index::Index;

/// How long background tasks may take to end after the last connection.
const TASKS_END_MAX: Duration = Duration::from_secs(2);
/// How long the last reports may take.
const LAST_REPORTS_MAX: Duration = Duration::from_secs(1);
/// Push orders that may wait to be looked at.
const ORDERS_WAITING_MAX: usize = 16;
/// WebSockets may hold at most this part of the files that are kept beside those of clients.
const UPGRADES_SHARE: u64 = 2;
/// A body may take at most this part of the tier it lives in.
const BODY_SHARE: u64 = 2;

/// Runs one edge until shutdown is asked for.
///
/// # Errors
/// A node name that is no edge of the fleet, an address that cannot be listened on, a state
/// directory that cannot be written to; nothing is left half-started.
pub async fn run(context: NodeContext) -> Result<(), Failure> {
    let fleet = context.fleet.borrow().clone();
    let (cluster, node) = fleet
        .edge(&context.name)
        .ok_or_else(|| unknown_node(&fleet, &context.name))?;
    let workers = node
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        .max(1);

    // Everything that can fail comes first.
    let admin_listener = match node.admin {
        Some(address) => Some(admin::bind(address).await?),
        None => None,
    };
    let mut listeners: Vec<Vec<std::net::TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for address in &node.listen {
        for (of_worker, listener) in listeners.iter_mut().zip(server::listen(*address, workers)?) {
            of_worker.push(listener);
        }
    }
    let directory = fleet.node_dir(&context.name);
    let config = store_config(cluster, node, &directory);
    if let Some(disk) = &config.disk {
        check_writable(&disk.directory)?;
    }
    let metrics = Arc::new(Metrics::new(workers, &cluster.name));
    let origins = Origins::of_environment();
    let kept_drains = follow::kept_drains(&directory).await;
    context.following.begin().await?;
    let sites = follow::start_from(context.fleet.clone(), context.shutdown.clone(), |fleet| {
        Sites::new(fleet, &context.name, &metrics, &origins)
            .map_err(|(site, error)| error.to_failure(&site))
    });
    let sites = sites.await?;
    let files = kernel::open_files_max();
    let clients_max = connections_max(files, node);
    let mut reserve = Reserve {
        files,
        clients_max,
        warned: None,
    };
    reserve.compare(&fleet);

    let (store, gone) = Store::open(&config);
    let clock = Clock::System;
    let edge = Arc::new(Edge {
        name: context.name.as_str().into(),
        via: HeaderValue::try_from(format!("1.1 {}", context.name))
            .map_err(|_| unknown_node(&fleet, &context.name))?,
        started_ms: now_ms(),
        sites: ArcSwap::from_pointee(sites),
        origins,
        store: Arc::new(store),
        index: Index::new(config.memory_bytes),
        forwards: Forwards::new(config.memory_bytes, clock.clone()),
        clock,
        generations: purge::Generations::default(),
        changes: changes::Changes::default(),
        purge_relay: request::purge_request::PurgeRelay::default(),
        no_site: metrics.site(metrics::NO_SITE),
        metrics: metrics.clone(),
        standing: Standing::default(),
        is_caught_up: AtomicBool::new(false),
        knowledge: watch::channel(Knowledge::Recalling).0,
        connections: Connections::new(clients_max, workers),
        clients: Arc::new(node.clients),
        upgrades_max: files.saturating_sub(clients_max) as u64 / UPGRADES_SHARE,
        body_bytes_max: config.disk.as_ref().map_or(config.memory_bytes, |d| {
            d.pull_bytes.max(config.memory_bytes)
        }) / BODY_SHARE,
    });
    edge.standing.begin(kept_drains, &fleet, &edge.name);
    let recovering = edge.clone();
    let recovered = tokio::task::spawn_blocking(move || journal::recover(&recovering)).await;
    tracing::info!(
        responses = recovered.unwrap_or(0),
        "stored responses of an earlier run were found"
    );

    let (readiness_tx, readiness) = watch::channel(Readiness::NotReady("starting".to_owned()));
    let registry = prometheus::Registry::new();
    report::add_readings(&edge);
    if let Err(error) = registry.register(Box::new(Collected::new(metrics))) {
        return Err(Failure::new(
            FailureKind::Internal,
            format!("metrics cannot be registered: {error}"),
        ));
    }
    let admin_task = admin_listener.map(|l| {
        tokio::spawn(admin::serve(
            l,
            registry,
            readiness,
            None,
            admin::own_names_of(context.fleet.clone()),
            context.shutdown.clone(),
        ))
    });

    let (drain_tx, finish_max) = watch::channel(None);
    let drain = server::Drain {
        finish_max,
        shutdown: context.shutdown.clone(),
    };
    let mut threads = Vec::new();
    let mut running = Vec::new();
    for (number, listeners) in listeners.into_iter().enumerate() {
        let worker = Worker::new(number, edge.clone(), OriginPool::new(number));
        running.push(worker.clone());
        threads.push(start_worker(worker, listeners, drain.clone())?);
    }
    let mut shutdown = context.shutdown.clone();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(take_out_gone(edge.clone(), gone));
    let journal = journal::Journal::of(context.fleet.clone());
    let (orders_tx, orders) = mpsc::channel(ORDERS_WAITING_MAX);
    let pushes = push::Pushes::default();
    let pusher = Worker::new(workers, edge.clone(), OriginPool::new(workers));
    tasks.spawn(push::run(
        pusher,
        context.fleet.clone(),
        orders,
        pushes.clone(),
    ));
    tasks.spawn(
        journal
            .clone()
            .follow(edge.clone(), context.entries, context.state, orders_tx),
    );
    tasks.spawn(follow_sites(edge.clone(), context.fleet.clone(), reserve));
    // A node that drains still serves: it reports until its last connection has ended.
    let (reports_end, reports) = shutdown::channel();
    let mut reporters = report::start(
        &mut tasks,
        &edge,
        running,
        &journal,
        &pushes,
        context.fleet.clone(),
        reports,
    );
    readiness_tx.send_replace(readiness_of(*edge.knowledge.borrow()));
    let readiness_tx = Arc::new(readiness_tx);
    tasks.spawn(tell_knowledge(edge.clone(), readiness_tx.clone()));
    tracing::info!(node = %edge.name, workers, "the edge serves");

    shutdown.asked().await;
    readiness_tx.send_replace(Readiness::NotReady("draining".to_owned()));
    let fleet = context.fleet.borrow().clone();
    be_lame_duck(&edge, &fleet, &mut shutdown).await;
    edge.standing.reach(Stage::Draining);
    drain_tx.send_replace(Some(fleet.drain.finish_max));
    for ended in threads {
        // A worker that is gone has nothing left to finish.
        let _ = ended.await;
    }
    reports_end.shut_down();
    shutdown
        .drained(LAST_REPORTS_MAX, async {
            while reporters.join_next().await.is_some() {}
        })
        .await;
    let store = edge.store.clone();
    let _ = tokio::time::timeout(
        TASKS_END_MAX,
        tokio::task::spawn_blocking(move || store.flush()),
    )
    .await;
    tasks.shutdown().await;
    if let Some(task) = admin_task {
        task.abort();
    }
    Ok(())
}

/// A node that lacks purges serves all the same: nobody is to take it out of service for that, as
/// then all would go when control does. The words say what is limited.
fn readiness_of(knowledge: Knowledge) -> Readiness {
    let limit = match knowledge {
        Knowledge::CaughtUp => return Readiness::Ready,
        Knowledge::Recalling | Knowledge::Asking | Knowledge::Behind => {
            "not caught up with control's journal yet"
        }
        Knowledge::CutOff => {
            "control does not answer: purges since this node was last up are not known"
        }
    };
    Readiness::Limited(format!(
        "{limit}; what an earlier run stored is validated before it is served"
    ))
}

/// Keeps `/ready` true about how far the node is with the journal.
async fn tell_knowledge(edge: Arc<Edge>, readiness: Arc<watch::Sender<Readiness>>) {
    let mut knowledge = edge.knowledge.subscribe();
    loop {
        let now = readiness_of(*knowledge.borrow_and_update());
        readiness.send_if_modified(|shown| {
            let is_other = *shown != now && !matches!(shown, Readiness::NotReady(_));
            if is_other {
                *shown = now;
            }
            is_other
        });
        if knowledge.changed().await.is_err() {
            return;
        }
    }
}

/// Serves on, while name servers and then resolvers forget this node; see [`LameDuck`].
async fn be_lame_duck(edge: &Edge, fleet: &Fleet, shutdown: &mut Shutdown) {
    edge.standing.reach(Stage::LameDuck);
    let duck = LameDuck::of(fleet, &edge.name).after(edge.standing.drained_for(
        fleet,
        &edge.name,
        SystemTime::now(),
    ));
    if duck == LameDuck::default() {
        return;
    }
    tracing::info!(detection = ?duck.detection, ttl = ?duck.ttl, "serving on until clients are steered elsewhere; a second signal ends at once");
    shutdown
        .drained(duck.detection, std::future::pending())
        .await;
    edge.standing.reach(Stage::Leaving);
    shutdown.drained(duck.ttl, std::future::pending()).await;
}

fn unknown_node(fleet: &Fleet, name: &str) -> Failure {
    let known: Vec<&str> = fleet
        .clusters
        .iter()
        .flat_map(|c| &c.nodes)
        .map(|n| n.name.as_str())
        .collect();
    Failure::new(
        FailureKind::Usage,
        format!(
            "no edge of the fleet file is called {name:?}; its edges are: {}",
            known.join(", ")
        ),
    )
}

/// How many connections clients may have.
fn connections_max(files: usize, node: &Node) -> usize {
    let most = connections::limit(files, node.clients.connections_max);
    if let Some(configured) = node
        .clients
        .connections_max
        .filter(|configured| *configured > most)
    {
        tracing::warn!(
            configured,
            most,
            files,
            "connections_max is more than the limit of open files allows; raise that (ulimit -n)"
        );
    }
    most
}

/// The open files that are left beside clients' connections.
struct Reserve {
    files: usize,
    clients_max: usize,
    /// The sum that the log has named.
    warned: Option<usize>,
}

impl Reserve {
    /// Logs, once for each sum, that sites may open more connections to their origins than there
    /// are files for.
    fn compare(&mut self, fleet: &Fleet) {
        let Self {
            files, clients_max, ..
        } = *self;
        let others = files.saturating_sub(clients_max);
        let connections = connections::sum_beyond(
            fleet
                .sites
                .iter()
                .map(|site| site.origin_policy.limits.connections_max),
            others,
        );
        if let Some(connections) = connections.filter(|_| self.warned != connections) {
            tracing::warn!(
                connections,
                others,
                clients_max,
                files,
                "sites may open more connections to origins (limits.connections of all sites) than there are files for beside \
                 clients'; lower those, or connections_max in [clients], or raise the limit of open files (ulimit -n)"
            );
        }
        self.warned = connections;
    }
}

fn store_config(cluster: &Cluster, node: &Node, directory: &Path) -> StoreConfig {
    let pushed_bytes = cluster.push_share.0.min(node.disk.0);
    let disk = (node.disk.0 > 0).then(|| DiskConfig {
        directory: directory.join("store"),
        pull_bytes: node.disk.0 - pushed_bytes,
        pushed_bytes,
    });
    StoreConfig {
        memory_bytes: node.memory.0,
        disk,
    }
}

/// Makes the directory and writes to it, so that a wrong one is found at start.
fn check_writable(directory: &Path) -> Result<(), Failure> {
    let probe = directory.join(".probe");
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(&probe, b"").or_else(is_full_only));
    written.map_err(|error| {
        let mend = "make it writable for this user, or choose another state_dir or disk = \"0\"";
        Failure::new(
            FailureKind::CannotCreate,
            format!(
                "cannot write to the state directory {}: {error} ({mend})",
                directory.display()
            ),
        )
    })?;
    // It may not have been written on a full disk.
    let _ = std::fs::remove_file(probe);
    Ok(())
}

/// A full disk is no reason not to serve: the disk tier starts turned off.
fn is_full_only(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Ok(()),
        _ => Err(error),
    }
}

/// Starts a worker's thread; the receiver ends when the worker does.
fn start_worker(
    worker: Arc<Worker>,
    listeners: Vec<std::net::TcpListener>,
    drain: server::Drain,
) -> Result<oneshot::Receiver<()>, Failure> {
    let (ended, wait) = oneshot::channel();
    let refused = |error: std::io::Error| {
        Failure::new(
            FailureKind::System,
            format!("cannot start a worker thread: {error}"),
        )
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(refused)?;
    let name = format!("edge-{}", worker.number);
    let serve = move || {
        runtime.block_on(server::serve(worker, listeners, drain));
        runtime.shutdown_background();
        let _ = ended.send(());
    };
    std::thread::Builder::new()
        .name(name)
        .spawn(serve)
        .map_err(refused)?;
    Ok(wait)
}

/// Bodies whose last slice was evicted leave the index.
async fn take_out_gone(edge: Arc<Edge>, mut gone: mpsc::UnboundedReceiver<Gone>) {
    while let Some(Gone { id, owner }) = gone.recv().await {
        edge.index.remove_body(owner, id);
    }
}

/// How often files are looked for again that a changed fleet names and that cannot be used.
const FILES_PAUSE: Duration = Duration::from_secs(2);

/// A changed fleet changes the sites, all at once; addresses and sizes of this node need a restart.
/// Where a file that a site names cannot be used, all sites stay as they are until it can.
async fn follow_sites(
    edge: Arc<Edge>,
    mut fleet: watch::Receiver<Arc<Fleet>>,
    mut reserve: Reserve,
) {
    while fleet.changed().await.is_ok() {
        let mut warned = None;
        loop {
            let changed = fleet.borrow_and_update().clone();
            match Sites::new(&changed, &edge.name, &edge.metrics, &edge.origins) {
                Ok(sites) => {
                    edge.standing.follow(&changed, &edge.name);
                    edge.sites.store(Arc::new(sites));
                    break reserve.compare(&changed);
                }
                Err((site, error)) => {
                    let problem = error.to_string();
                    if warned.as_ref() != Some(&problem) {
                        tracing::warn!(
                            site,
                            problem,
                            "a changed fleet names a file that cannot be used; all sites stay as they are"
                        );
                        warned = Some(problem);
                    }
                }
            }
            // A further change may mend it, and so may the file.
            if let Ok(Err(_)) = tokio::time::timeout(FILES_PAUSE, fleet.changed()).await {
                return;
            }
        }
    }
}
