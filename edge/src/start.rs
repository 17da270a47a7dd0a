//! How an edge starts and ends: the stages of its [`Role`], and the tasks that follow the fleet.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use nearcast_fleet::admin::Readiness;
use nearcast_fleet::change::Entry;
use nearcast_fleet::config::{Cluster, Fleet, Node};
use nearcast_fleet::drains::{Drains, LameDuck};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::follow::{self, FollowState, Following, NodeContext};
use nearcast_fleet::role::{self, Admin, Role};
use nearcast_http_rules::forward::Via;
use nearcast_net::listen;
use nearcast_net::quic::{self, WorkerSockets};
use nearcast_net::shutdown::{self, Shutdown, ShutdownTrigger};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::access_log::{self, AccessLog};
use crate::certificates::Certificates;
use crate::changes::Changes;
use crate::clock::Clock;
use crate::compress::Compressions;
use crate::edge::{Edge, Knowledge, Worker};
use crate::forward::Forwards;
use crate::lifecycle::{Lifecycle, Stage};
use crate::metrics::{self, Collected, Metrics};
use crate::node_certificates::Held;
use crate::origin::{OriginPool, Origins, tls_failure};
use crate::own_certificates::{self, OwnCertificates};
use crate::proxies::ProxyCounters;
use crate::report::{self, Reporting};
use crate::request::purge_request::PurgeRelay;
use crate::serve::connection::ListenerKind;
use crate::serve::connections::{self, Connections};
use crate::serve::handshake::Handshakes;
use crate::serve::quic::Quic;
use crate::serve::server::{self, ClientListener};
use crate::site::Sites;
use crate::stored::generations::Generations;
use crate::stored::index::Index;
use crate::stored::load::Loads;
use crate::{heap, journal, kernel, node_certificates, push, ticket_keys, traces};
use nearcast_store::io::DiskState;
use nearcast_store::{DiskConfig, Gone, Store, StoreConfig};

/// How long background tasks may take to end after the last connection.
const TASKS_END_MAX: Duration = Duration::from_secs(2);
/// How long the check of the store's directory may hold up the start.
const CHECK_MAX: Duration = Duration::from_millis(250);
/// How often the state of the disk is looked at for `/ready`.
const DISK_STATE_PAUSE: Duration = Duration::from_millis(250);
/// How long the last reports may take.
const LAST_REPORTS_MAX: Duration = Duration::from_secs(1);
/// Push orders that may wait for the task that carries them out.
const ORDERS_WAITING_MAX: usize = 16;
/// WebSockets may hold at most this part of the files that are reserved beside those of clients.
const UPGRADES_SHARE: u64 = 2;
/// A body may take at most this part of the tier that stores it.
const BODY_SHARE: u64 = 2;
/// Pause between attempts to read a file that a changed fleet names and that cannot be used.
const FILES_PAUSE: Duration = Duration::from_secs(2);

/// Runs one edge until shutdown is requested and it has drained.
///
/// # Errors
/// A node name that is no edge of the fleet, an address that cannot be listened on, a state
/// directory that cannot be written to; nothing is left half-started.
pub async fn run(context: NodeContext) -> Result<(), Failure> {
    let fleet = context.fleet.borrow().clone();
    let (cluster, node) = fleet.edge_or_error(&context.name)?;
    let workers = node
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        .max(1);
    let directory = fleet.node_dir(&context.name);
    let starting = StartingEdge {
        cluster: cluster.name.clone(),
        node: node.clone(),
        workers,
        store: store_config(cluster, node, &directory),
        directory,
        stored_drains: Drains::default(),
        name: context.name,
        fleet: context.fleet.clone(),
        entries: context.entries,
        follow_state: context.state,
        following: context.following,
        shutdown: context.shutdown.clone(),
    };
    role::run(starting, context.fleet, context.shutdown).await
}

/// An edge that has not started yet.
struct StartingEdge {
    name: String,
    cluster: String,
    node: Node,
    workers: usize,
    store: StoreConfig,
    directory: PathBuf,
    /// The drains of operators that an earlier run knew of.
    stored_drains: Drains,
    fleet: watch::Receiver<Arc<Fleet>>,
    entries: mpsc::Receiver<Entry>,
    follow_state: watch::Receiver<FollowState>,
    following: Following,
    shutdown: Shutdown,
}

/// An edge that serves.
struct RunningEdge {
    edge: Arc<Edge>,
    fleet: watch::Receiver<Arc<Fleet>>,
    /// Ends accepting, with the limit for open connections.
    drain: watch::Sender<Option<Duration>>,
    /// One for each worker's thread; ends with it.
    workers: Vec<oneshot::Receiver<()>>,
    tasks: JoinSet<()>,
    reporters: JoinSet<()>,
    end_reports: ShutdownTrigger,
    log: Arc<AccessLog>,
}

impl Role for StartingEdge {
    /// For each worker, one listener an address.
    type Listeners = Vec<Vec<ClientListener>>;
    type Running = RunningEdge;

    fn admin_address(&self) -> Option<SocketAddr> {
        self.node.admin
    }

    fn open(&self) -> Result<Self::Listeners, Failure> {
        let mut of_workers: Self::Listeners = (0..self.workers).map(|_| Vec::new()).collect();
        let plain = self.node.listen.iter().map(|address| (address, false));
        let tls = self.node.listen_tls.iter().map(|address| (address, true));
        for (address, is_tls) in plain.chain(tls) {
            let mut kind = ListenerKind {
                is_tls,
                has_proxy_header: self.node.proxy_protocol.contains(address),
                http3_port: None,
            };
            let listeners = listen::open_shared(*address, self.workers)
                .map_err(|error| Failure::bind("clients", *address, &error))?;
            // A header of the PROXY protocol has no place in QUIC.
            let serves_quic = is_tls && self.node.clients.http3 && !kind.has_proxy_header;
            let mut quic = match serves_quic {
                true => open_quic(&listeners, *address, self.workers)?.into_iter(),
                false => Vec::new().into_iter(),
            };
            let bound = listeners.first().and_then(|first| first.local_addr().ok());
            kind.http3_port = bound.filter(|_| serves_quic).map(|bound| bound.port());
            for (of_worker, listener) in of_workers.iter_mut().zip(listeners) {
                of_worker.push(ClientListener {
                    socket: listener,
                    kind,
                    quic: quic.next(),
                });
            }
        }
        Ok(of_workers)
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        if let Some(disk) = &self.store.disk {
            check_answering(disk.directory.clone()).await?;
        }
        // Before following replaces the copy that holds them.
        self.stored_drains = follow::stored_drains(&self.directory).await;
        std::mem::take(&mut self.following).begin().await
    }

    async fn start(
        mut self,
        listeners: Self::Listeners,
        admin: &mut Admin,
    ) -> Result<RunningEdge, Failure> {
        let metrics = Arc::new(Metrics::new(self.workers, &self.cluster));
        let (edge, gone, files, held) = self.build(&metrics).await?;
        let own = open_own_certificates(
            self.fleet.borrow().clone(),
            self.node.clone(),
            self.directory.clone(),
            edge.clone(),
        );
        let own = own.await?;
        let registry = prometheus::Registry::new();
        registry
            .register(Box::new(Collected::new(metrics)))
            .map_err(|e| role::metrics_failure(&e))?;
        admin.serve(registry, None);

        let (drain, finish_max) = watch::channel(None);
        let worker_drain = server::Drain {
            finish_max,
            shutdown: self.shutdown.clone(),
        };
        let mut workers = Vec::new();
        let mut starting = Vec::new();
        let mut threads = Vec::new();
        for (number, listeners) in listeners.into_iter().enumerate() {
            let worker = Worker::new(number, edge.clone(), OriginPool::new(number));
            workers.push(worker.clone());
            starting.push((worker, listeners));
        }
        let log = Arc::new(AccessLog::start(
            workers.iter().map(|worker| worker.log.clone()).collect(),
            &self.fleet.borrow().clone(),
            &self.name,
            &self.directory,
        )?);
        report::add_readings(&edge, &log);
        for (worker, listeners) in starting {
            threads.push(start_worker(worker, listeners, worker_drain.clone())?);
        }

        let mut tasks = JoinSet::new();
        tasks.spawn(remove_gone(edge.clone(), gone));
        tasks.spawn(heap::watch(edge.clone()));
        let journal = journal::Journal::of(self.fleet.clone());
        let (orders_tx, orders) = mpsc::channel(ORDERS_WAITING_MAX);
        let pushes = push::Pushes::default();
        let pusher = Worker::new(self.workers, edge.clone(), OriginPool::new(self.workers));
        tasks.spawn(push::run(
            pusher,
            self.fleet.clone(),
            orders,
            pushes.clone(),
        ));
        tasks.spawn(journal.clone().follow(
            edge.clone(),
            self.entries,
            self.follow_state,
            orders_tx,
        ));
        tasks.spawn(edge.certificates.clone().follow(self.fleet.clone()));
        if !self.node.listen_tls.is_empty() {
            tasks.spawn(ticket_keys::follow(
                edge.name.to_string(),
                self.fleet.clone(),
                edge.certificates.tickets().clone(),
            ));
            match own {
                Some(own) => tasks.spawn(own.run(self.shutdown.clone())),
                None => tasks.spawn(node_certificates::follow(
                    edge.name.to_string(),
                    self.fleet.clone(),
                    held,
                    edge.certificates.clone(),
                )),
            };
        }
        tasks.spawn(follow_sites(edge.clone(), self.fleet.clone(), files));
        tasks.spawn(access_log::follow_fleet(
            log.clone(),
            self.fleet.clone(),
            self.name.clone(),
            self.directory.clone(),
        ));
        tasks.spawn(traces::answer(
            self.name.clone(),
            workers.clone(),
            self.fleet.clone(),
        ));
        // A node that drains still serves: it reports until its last connection has ended.
        let (end_reports, until_reports_end) = shutdown::channel();
        let reporting = Reporting {
            edge: edge.clone(),
            workers,
            journal,
            pushes,
            fleet: self.fleet.clone(),
        };
        let reporters = reporting.start(&mut tasks, until_reports_end);
        let disk = edge.store.disk_state();
        admin.set_readiness(readiness_of(*edge.knowledge.borrow(), disk.as_ref()));
        tasks.spawn(follow_readiness(edge.clone(), admin.readiness()));
        tracing::info!(node = %edge.name, workers = self.workers, "the edge serves");
        Ok(RunningEdge {
            edge,
            fleet: self.fleet,
            drain,
            workers: threads,
            tasks,
            reporters,
            end_reports,
            log,
        })
    }

    async fn drain(running: RunningEdge, shutdown: &mut Shutdown) {
        let RunningEdge {
            edge,
            fleet,
            drain,
            workers,
            mut tasks,
            mut reporters,
            end_reports,
            log,
        } = running;
        let fleet = fleet.borrow().clone();
        serve_as_lame_duck(&edge, &fleet, shutdown).await;
        edge.lifecycle.reach(Stage::Draining);
        drain.send_replace(Some(fleet.drain.finish_max));
        for ended in workers {
            // An error means that the worker's thread has ended.
            let _ = ended.await;
        }

        log.end(TASKS_END_MAX).await;
        end_reports.shut_down();
        let reported = async { while reporters.join_next().await.is_some() {} };
        shutdown.drained(LAST_REPORTS_MAX, reported).await;
        let store = edge.store.clone();
        let flushing = tokio::task::spawn_blocking(move || store.close());
        let _ = tokio::time::timeout(TASKS_END_MAX, flushing).await;
        tasks.shutdown().await;
    }
}

impl StartingEdge {
    /// Builds the state that all parts share, with the fleet file in force; opens the store.
    async fn build(
        &mut self,
        metrics: &Arc<Metrics>,
    ) -> Result<(Arc<Edge>, mpsc::UnboundedReceiver<Gone>, FileBudget, Held), Failure> {
        let fleet = self.fleet.borrow().clone();
        let origins = Origins::of_environment();
        let sites = follow::start_from(self.fleet.clone(), self.shutdown.clone(), |fleet| {
            Sites::new(fleet, &self.name, metrics, &origins)
                .map_err(|(site, error)| tls_failure(&error, &site))
        });
        let sites = sites.await?;
        let (certificates, held) =
            open_certificates(fleet.clone(), &self.node, self.directory.clone()).await?;
        let mut files = FileBudget::new(kernel::open_files_max(), &self.node);
        files.compare(&fleet);

        if self.store.disk.is_none() {
            // Not awaited: a disk that hangs does not hold up a start without a disk tier.
            let directory = self.directory.clone();
            tokio::task::spawn_blocking(move || nearcast_store::note_run_without_disk(&directory));
        }
        let (store, gone) = Store::open(&self.store);
        let memory_bytes = self.store.memory_bytes;
        let largest_tier = self
            .store
            .disk
            .as_ref()
            .map_or(memory_bytes, |disk| disk.pull_bytes.max(memory_bytes));
        let clock = Clock::System;
        let edge = Arc::new(Edge {
            name: self.name.as_str().into(),
            via: Via::new(&self.name).map_err(|_| {
                let message = format!("the node name {:?} is not a field value", self.name);
                Failure::new(FailureKind::Usage, message)
            })?,
            started_ms: clock.unix_ms(),
            sites: ArcSwap::from_pointee(sites),
            origins,
            store: Arc::new(store),
            index: Index::new(),
            loads: Loads::default(),
            forwards: Forwards::new(memory_bytes, clock.clone()),
            compressions: Compressions::new(self.workers),
            clock,
            generations: Generations::default(),
            changes: Changes::default(),
            purge_relay: PurgeRelay::new(self.fleet.clone()),
            no_site: metrics.site(metrics::NO_SITE),
            metrics: metrics.clone(),
            lifecycle: Lifecycle::default(),
            is_caught_up: AtomicBool::new(false),
            knowledge: watch::channel(Knowledge::Recalling).0,
            connections: Connections::new(files.clients_max, self.workers),
            proxy_counters: ProxyCounters::default(),
            quic: Quic::new(certificates.side(), certificates.tickets()),
            certificates,
            challenges: Arc::default(),
            handshakes: Handshakes::default(),
            clients: Arc::new(self.node.clients),
            upgrades_max: files.others() as u64 / UPGRADES_SHARE,
            body_bytes_max: largest_tier / BODY_SHARE,
        });
        let stored_drains = std::mem::take(&mut self.stored_drains);
        edge.lifecycle.begin(stored_drains, &fleet, &edge.name);
        Ok((edge, gone, files, held))
    }
}

/// Opens the directory of the certificates that this node orders itself, where it does.
fn open_own_certificates(
    fleet: Arc<Fleet>,
    node: Node,
    directory: PathBuf,
    edge: Arc<Edge>,
) -> impl Future<Output = Result<Option<OwnCertificates>, Failure>> {
    let opening = tokio::task::spawn_blocking(move || {
        own_certificates::ordered_by_node(&fleet)
            .map(|acme| OwnCertificates::open(&edge, acme, &node, directory))
            .transpose()
    });
    let ended = |error| {
        Failure::new(
            FailureKind::System,
            format!("the directory of certificates was not opened: {error}"),
        )
    };
    async move { opening.await.map_err(ended)? }
}

/// Reads the certificates for clients, and finds those that an earlier run got.
fn open_certificates(
    fleet: Arc<Fleet>,
    node: &Node,
    directory: PathBuf,
) -> impl Future<Output = Result<(Arc<Certificates>, Held), Failure>> + use<> {
    let (clients, must_show) = (node.clients, !node.listen_tls.is_empty());
    let reading = tokio::task::spawn_blocking(move || {
        let held = Held::open(&directory);
        let files = match own_certificates::ordered_by_node(&fleet) {
            Some(acme) => own_certificates::files(acme, &directory),
            None => held.paths(),
        };
        let certificates = Certificates::open(&fleet, clients, must_show, files)?;
        Ok((Arc::new(certificates), held))
    });
    let ended = |error| {
        Failure::new(
            FailureKind::System,
            format!("the certificates were not read: {error}"),
        )
    };
    async move { reading.await.map_err(ended)? }
}

/// The answer of `/ready`. A node that may lack purges, or has lost its disk, serves nevertheless: if
/// that took a node out of service, all nodes would go with control, and a node without its disk is
/// better than none. The text says what is limited.
fn readiness_of(knowledge: Knowledge, disk: Option<&DiskState>) -> Readiness {
    let limits: Vec<String> = limit_of_knowledge(knowledge)
        .into_iter()
        .chain(disk.and_then(limit_of_disk))
        .collect();
    if limits.is_empty() {
        Readiness::Ready
    } else {
        Readiness::Limited(limits.join("; "))
    }
}

fn limit_of_knowledge(knowledge: Knowledge) -> Option<String> {
    let limit = match knowledge {
        Knowledge::CaughtUp => return None,
        Knowledge::Recalling | Knowledge::Asking | Knowledge::Behind => {
            "not caught up with control's journal yet"
        }
        Knowledge::CutOff => {
            "control does not answer: purges since this node was last up are not known"
        }
    };
    Some(format!(
        "{limit}; what an earlier run stored is validated before it is served"
    ))
}

fn limit_of_disk(disk: &DiskState) -> Option<String> {
    match disk {
        DiskState::On => None,
        DiskState::Opening => {
            Some("the store's disk is being opened; responses come from memory".to_owned())
        }
        DiskState::Full => {
            Some("the store's disk is full; new responses are stored in memory only".to_owned())
        }
        DiskState::Left(reason) => Some(format!(
            "the store's disk is not used, responses come from memory: {reason}"
        )),
        DiskState::Refused(reason) => Some(format!(
            "the store's disk is not used, responses come from memory: {reason}"
        )),
    }
}

/// Keeps the answer of `/ready` up to date while the node follows the journal, and its disk comes
/// and goes.
async fn follow_readiness(edge: Arc<Edge>, readiness: Arc<watch::Sender<Readiness>>) {
    let mut knowledge = edge.knowledge.subscribe();
    loop {
        let disk = edge.store.disk_state();
        let now = readiness_of(*knowledge.borrow_and_update(), disk.as_ref());
        readiness.send_if_modified(|shown| {
            let is_other = *shown != now && !matches!(shown, Readiness::NotReady(_));
            if is_other {
                *shown = now;
            }
            is_other
        });
        // The disk has no channel: its state is looked at now and then, where there is one.
        let pause = disk.map(|_| DISK_STATE_PAUSE);
        tokio::select! {
            changed = knowledge.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }
}

/// Serves on while name servers, and then resolvers, stop to send clients here; see [`LameDuck`].
async fn serve_as_lame_duck(edge: &Edge, fleet: &Fleet, shutdown: &mut Shutdown) {
    edge.lifecycle.reach(Stage::LameDuck);
    let duck = LameDuck::of(fleet, &edge.name).after(edge.lifecycle.drained_for(
        fleet,
        &edge.name,
        SystemTime::now(),
    ));
    if duck == LameDuck::default() {
        return;
    }
    tracing::info!(detection = ?duck.detection, ttl = ?duck.ttl, "serving on until clients are steered elsewhere; a second signal ends at once");
    shutdown.pause(duck.detection).await;
    edge.lifecycle.reach(Stage::Leaving);
    shutdown.pause(duck.ttl).await;
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

/// The open files of this process: those of clients, and those left beside them.
struct FileBudget {
    files: usize,
    clients_max: usize,
    /// The number of connections in the newest warning.
    warned: Option<usize>,
}

impl FileBudget {
    fn new(files: usize, node: &Node) -> Self {
        Self {
            files,
            clients_max: connections_max(files, node),
            warned: None,
        }
    }

    /// Files that clients' connections leave.
    fn others(&self) -> usize {
        self.files.saturating_sub(self.clients_max)
    }

    /// Warns where sites may open more connections to their origins than files are left, once for
    /// each number of them.
    fn compare(&mut self, fleet: &Fleet) {
        let Self {
            files, clients_max, ..
        } = *self;
        let others = self.others();
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
                "sites may open more connections to origins (limits.connections_max of all sites) than there are files for beside \
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

/// Checks the directory of the store, for at most [`CHECK_MAX`]: a disk that hangs does not hold up
/// the start. The store leaves it, and says so.
async fn check_answering(directory: PathBuf) -> Result<(), Failure> {
    let (checked, check) = oneshot::channel();
    // Not a thread of the runtime, which would wait for it at its end.
    let thread = std::thread::Builder::new().name("disk-check".into());
    let spawned = thread.spawn(move || {
        let _ = checked.send(check_writable(&directory));
    });
    spawned.map_err(|error| {
        Failure::new(
            FailureKind::System,
            format!("no thread can check the state directory: {error}"),
        )
    })?;
    match tokio::time::timeout(CHECK_MAX, check).await {
        Ok(Ok(result)) => result,
        // The thread panicked, or hangs.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

/// Makes the directory and writes to it, so that an unusable one is found at start.
fn check_writable(directory: &Path) -> Result<(), Failure> {
    let probe = directory.join(".probe");
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(&probe, b"").or_else(is_full_only));
    written.map_err(|error| {
        let hint = "make it writable for this user, or choose another state_dir or disk = \"0\"";
        Failure::new(
            FailureKind::CannotCreate,
            format!(
                "cannot write to the state directory {}: {error} ({hint})",
                directory.display()
            ),
        )
    })?;
    // On a full disk it was not written.
    let _ = std::fs::remove_file(probe);
    Ok(())
}

/// Accepts a full disk: the node serves with its disk tier turned off.
fn is_full_only(error: std::io::Error) -> std::io::Result<()> {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Ok(()),
        _ => Err(error),
    }
}

/// Opens the sockets for QUIC beside the listeners for TCP of an address.
fn open_quic(
    listeners: &[std::net::TcpListener],
    configured: SocketAddr,
    workers: usize,
) -> Result<Vec<WorkerSockets>, Failure> {
    // Port 0 stands for the port that the listeners got.
    let bound = listeners.first().and_then(|first| first.local_addr().ok());
    let address = bound.unwrap_or(configured);
    let sockets = quic::open(address, workers).map_err(|error| {
        let failure = Failure::bind("HTTP/3 clients (UDP)", address, &error);
        let hint = "`http3 = false` in [clients], or --no-http3 without a fleet file, serves without HTTP/3";
        Failure::new(failure.kind, format!("{}; {hint}", failure.message))
    })?;
    if sockets.iter().any(WorkerSockets::is_alone) && workers > 1 {
        tracing::warn!(
            %address,
            "the system does not distribute packets by connection (SO_ATTACH_REUSEPORT_CBPF): one worker serves all of HTTP/3 here"
        );
    }
    Ok(sockets)
}

/// Starts the thread of a worker; the receiver ends when the worker does.
fn start_worker(
    worker: Arc<Worker>,
    listeners: Vec<ClientListener>,
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

/// Removes bodies whose last slice was evicted from the index.
async fn remove_gone(edge: Arc<Edge>, mut gone: mpsc::UnboundedReceiver<Gone>) {
    while let Some(Gone { id, owner }) = gone.recv().await {
        edge.index.remove_body(owner, id);
    }
}

/// Replaces all sites at once when the fleet changes; addresses and sizes of this node need a
/// restart. While a file that a site names cannot be used, all sites stay as they are.
async fn follow_sites(
    edge: Arc<Edge>,
    mut fleet: watch::Receiver<Arc<Fleet>>,
    mut files: FileBudget,
) {
    while fleet.changed().await.is_ok() {
        let mut warned = None;
        loop {
            let changed = fleet.borrow_and_update().clone();
            match Sites::new(&changed, &edge.name, &edge.metrics, &edge.origins) {
                Ok(sites) => {
                    edge.lifecycle.follow(&changed, &edge.name);
                    edge.sites.store(Arc::new(sites));
                    break files.compare(&changed);
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
            // Another change of the fleet may correct it, and so may the file.
            if let Ok(Err(_)) = tokio::time::timeout(FILES_PAUSE, fleet.changed()).await {
                return;
            }
        }
    }
}
