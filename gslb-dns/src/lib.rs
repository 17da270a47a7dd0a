//! Authoritative DNS that gives each client the best edge cluster.
//!
//! A query's walk: `server` (sockets) -> `handler` (the steps in order) -> `wire` (bytes) -> `answer` over `zone` (which
//! records) -> `steer` (which addresses) -> `wire`. `rdata` reads records as people write them, `cookie` makes DNS
//! cookies, `limit` keeps forged queries from using us, `kernel` talks to the system.

pub mod answer;
pub mod cookie;
pub mod handler;
pub mod kernel;
pub mod limit;
pub mod metrics;
pub mod rdata;
pub mod server;
pub mod steer;
pub mod wire;
pub mod zone;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use nearcast_fleet::admin::{self, Readiness};
use nearcast_fleet::clock::{unix_millis, unix_seconds};
use nearcast_fleet::config::{Fleet, NameServer};
use nearcast_fleet::drains::Drains;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::follow::{self, FollowState, NodeContext};
use nearcast_fleet::journal::Entry;
use nearcast_fleet::report::DnsReport;
use nearcast_fleet::reporter;
use nearcast_fleet::shutdown::{self, Shutdown};
use tokio::sync::{mpsc, watch};

use crate::cookie::{CookieSecret, CookieSecrets};
use crate::handler::Handler;
use crate::metrics::Metrics;
use crate::server::Listeners;
use crate::steer::{Served, Steering};
use crate::zone::{ZoneError, Zones, next_serial};

/// How long open connections may take to end.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long a cookie secret makes new cookies (RFC 9018 section 5 asks for a change at least every 36 days).
const COOKIE_SECRET_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Runs a name server until shutdown: listeners first, then zones and steering, then answers.
///
/// # Errors
/// A listener cannot be opened, a zone has a fault, or steering cannot start.
pub async fn run(context: NodeContext) -> Result<(), Failure> {
    let NodeContext { name, fleet, entries, state, following, mut shutdown } = context;
    // What answers goes on until then, and so does what answers depend on.
    let (end, until_end) = shutdown::channel();
    let current = Arc::clone(&fleet.borrow());
    let me = find_server(&current, &name)?.clone();
    let registry = prometheus::Registry::new();
    let admin_listener = admin::bind(me.admin).await?;
    let listeners = Listeners::open(&me.listen)?;
    let metrics = Metrics::register(&registry).map_err(|e| Failure::new(FailureKind::Internal, format!("metrics: {e}")))?;
    let metrics = Arc::new(metrics);
    let serial = next_serial(None, unix_seconds(SystemTime::now()) as u32);
    let zones = Zones::compile(&current, &name, serial).map_err(|faults| zone_failure(&faults))?;
    let (served_tx, served) = watch::channel(Served { fleet: current, zones: Arc::new(zones) });
    let steering = Steering::start(served, &registry, until_end.clone())?;
    let handler = Arc::new(Handler {
        steering: Arc::clone(&steering),
        server_id: name.clone(),
        cookies: ArcSwap::from_pointee(CookieSecrets { current: new_secret()?, previous: new_secret()? }),
    });
    // Before the first answer.
    let directory = fleet.borrow().node_dir(&name);
    let drains = follow::kept_drains(&directory).await;
    steering.set_drained(drains.clone());
    following.begin().await?;
    let addresses = listeners.addresses().to_vec();
    let (readiness_tx, readiness) = watch::channel(Readiness::NotReady("starting".to_owned()));
    let serving = listeners.serve(&handler, &metrics, &until_end)?;
    let admin_task = tokio::spawn(admin::serve(admin_listener, registry, readiness, Some(steering.admin_extra()), shutdown.clone()));
    let reloader = Reloader { name: name.clone(), fleet: fleet.clone(), served: served_tx, serial, listen: me.listen.clone() };
    let started_unix_ms = unix_millis(SystemTime::now());
    let drained = Arc::clone(&steering);
    let fleet_for_end = fleet.clone();
    let source = ReportSource { name, state, steering, metrics, started_unix_ms, shutdown: shutdown.clone() };
    let to_control = |f: &Fleet| reporter::to_control(f, "dns");
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(reloader.run(until_end.clone()));
    tasks.spawn(reporter::run(to_control, fleet, move |_| source.report(), until_end.clone()));
    tasks.spawn(rotate_cookie_secrets(handler, until_end.clone()));
    tasks.spawn(follow_drains(drains, entries, drained, until_end));
    readiness_tx.send_replace(Readiness::Ready);
    tracing::info!(?addresses, "answering DNS");

    shutdown.asked().await;
    readiness_tx.send_replace(Readiness::NotReady("draining".to_owned()));
    let withdrawal = fleet_for_end.borrow().drain.dns_withdrawal;
    shutdown.drained(withdrawal, std::future::pending()).await;
    end.shut_down();
    // Its own limit is shorter: this one is for an end that cannot wait.
    shutdown.drained(2 * DRAIN_MAX, serving.drain(DRAIN_MAX)).await;
    while tasks.join_next().await.is_some() {}
    admin_task.abort();
    Ok(())
}

fn find_server<'f>(fleet: &'f Fleet, name: &str) -> Result<&'f NameServer, Failure> {
    fleet.name_servers.iter().find(|s| s.name == name).ok_or_else(|| {
        let known: Vec<&str> = fleet.name_servers.iter().map(|s| s.name.as_str()).collect();
        let message = format!("the fleet file has no [[name_server]] named {name:?}; it has: {}", known.join(", "));
        Failure::new(FailureKind::Usage, message)
    })
}

fn zone_failure(faults: &[ZoneError]) -> Failure {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Failure::new(FailureKind::Usage, lines.join("\n"))
}

fn new_secret() -> Result<CookieSecret, Failure> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(|e| Failure::new(FailureKind::System, format!("cannot read /dev/urandom: {e} (mount /dev for this process)")))?;
    Ok(CookieSecret(bytes))
}

/// Folds what operators drain. Purges and pushes are not for name servers; new fleet files come by `fleet`.
async fn follow_drains(mut drains: Drains, mut entries: mpsc::Receiver<Entry>, steering: Arc<Steering>, mut shutdown: Shutdown) {
    loop {
        tokio::select! {
            entry = entries.recv() => match entry {
                Some(entry) if drains.fold(&entry) => steering.set_drained(drains.clone()),
                Some(_) => {}
                None => return shutdown.asked().await,
            },
            () = shutdown.asked() => return,
        }
    }
}

async fn rotate_cookie_secrets(handler: Arc<Handler>, mut shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(COOKIE_SECRET_LIFE) => {}
            () = shutdown.asked() => return,
        }
        match new_secret() {
            Ok(current) => {
                let previous = handler.cookies.load().current;
                handler.cookies.store(Arc::new(CookieSecrets { current, previous }));
            }
            Err(failure) => tracing::warn!(%failure, "the cookie secret stays as it is"),
        }
    }
}

/// Compiles the zones again whenever the fleet changes; steering takes both over at once.
struct Reloader {
    name: String,
    fleet: watch::Receiver<Arc<Fleet>>,
    /// The newest fleet whose zones could be compiled.
    served: watch::Sender<Served>,
    /// Of the zones served.
    serial: u32,
    listen: Vec<std::net::SocketAddr>,
}

impl Reloader {
    async fn run(mut self, mut shutdown: Shutdown) {
        loop {
            let changed = tokio::select! {
                changed = self.fleet.changed() => changed,
                () = shutdown.asked() => return,
            };
            if changed.is_err() {
                // Nobody can change the fleet any more.
                return shutdown.asked().await;
            }
            let fleet = Arc::clone(&self.fleet.borrow_and_update());
            self.reload(&fleet, unix_seconds(SystemTime::now()) as u32);
        }
    }

    fn reload(&mut self, fleet: &Arc<Fleet>, now: u32) {
        if let Some(me) = fleet.name_servers.iter().find(|s| s.name == self.name)
            && me.listen != self.listen
        {
            tracing::warn!("this name server's listen addresses changed in the fleet file; restart it to use them");
            self.listen.clone_from(&me.listen);
        }
        match self.compile(fleet, now) {
            Ok(zones) => {
                self.served.send_replace(Served { fleet: Arc::clone(fleet), zones });
            }
            Err(faults) => {
                for fault in &faults {
                    tracing::error!(%fault, "the new zones are not served; the last good ones are");
                }
            }
        }
    }

    /// The zones of a fleet: those that are served when nothing in them changed, else new ones with a newer serial.
    fn compile(&mut self, fleet: &Fleet, now: u32) -> Result<Arc<Zones>, Vec<ZoneError>> {
        let served = Arc::clone(&self.served.borrow().zones);
        if *served == Zones::compile(fleet, &self.name, self.serial)? {
            return Ok(served);
        }
        self.serial = next_serial(Some(self.serial), now);
        tracing::info!(serial = self.serial, "zones changed");
        Zones::compile(fleet, &self.name, self.serial).map(Arc::new)
    }
}

/// What this node tells control of itself.
struct ReportSource {
    name: String,
    state: watch::Receiver<FollowState>,
    steering: Arc<Steering>,
    metrics: Arc<Metrics>,
    started_unix_ms: u64,
    shutdown: Shutdown,
}

impl ReportSource {
    fn report(&self) -> DnsReport {
        let mut report = DnsReport {
            node: self.name.clone(),
            started_unix_ms: self.started_unix_ms,
            revision: self.state.borrow().revision,
            draining: self.shutdown.is_asked(),
            queries: self.metrics.by_rcode(),
            ..DnsReport::default()
        };
        self.steering.fill_report(&mut report);
        report
    }
}
