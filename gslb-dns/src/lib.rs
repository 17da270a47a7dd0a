//! Authoritative DNS that gives each client the best edge cluster.
//!
//! The path of a query: `transport` (sockets) -> `handler` (the steps in order) -> `message` (bytes)
//! -> `answer` over `zone` (records) -> `steer` (addresses) -> `respond` (bytes). Beside it: `cookie`
//! makes DNS cookies, `limit` bounds the answers to forged queries, `metrics` counts, and `kernel`
//! holds the system calls.

pub mod answer;
pub mod cookie;
pub mod handler;
mod kernel;
pub mod limit;
pub mod message;
pub mod metrics;
mod respond;
pub mod steer;
pub mod transport;
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
use nearcast_fleet::random::entropy;
use nearcast_fleet::report::DnsReport;
use nearcast_fleet::reporter;
use nearcast_fleet::shutdown::{self, Shutdown};
use tokio::sync::{mpsc, watch};

use crate::cookie::{CookieKey, CookieSecrets};
use crate::handler::Handler;
use crate::metrics::Metrics;
use crate::steer::{Revision, Steering};
use crate::transport::Listeners;
use crate::zone::{Serial, ZoneError, Zones};

/// How long open connections may take to end.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How often cookie secrets are made ready for the days around the current one.
const COOKIE_SECRETS_RENEWED: Duration = Duration::from_secs(6 * 3600);

/// Runs a name server until shutdown: listeners first, then zones and steering, then answers.
///
/// # Errors
/// A listener cannot be opened, the state directory cannot be used, or a zone has a fault.
pub async fn run(context: NodeContext) -> Result<(), Failure> {
    let NodeContext {
        name,
        fleet,
        entries,
        state,
        following,
        mut shutdown,
    } = context;
    // What answers goes on until then, and so does what answers depend on.
    let (end, until_end) = shutdown::channel();
    let current = Arc::clone(&fleet.borrow());
    let me = find_server(&current, &name)?.clone();
    let registry = prometheus::Registry::new();
    let admin_listener = admin::bind(me.admin).await?;
    let listeners = Listeners::open(&me.listen)?;
    let metrics = Metrics::register(&registry)
        .map_err(|e| Failure::new(FailureKind::Internal, format!("metrics: {e}")))?;
    let metrics = Arc::new(metrics);
    // Before the first answer, and before following takes the copy over.
    let directory = current.node_dir(&name);
    let drains = follow::kept_drains(&directory).await;
    following.begin().await?;
    if current.control.is_some() {
        // The serials, and more, are those of the revision in force, which another machine's file
        // may be older than.
        follow::hear_control(state.clone(), shutdown.clone()).await;
    }
    let mut serial = Serial::open(&directory);
    let compiled = follow::start_from(fleet.clone(), shutdown.clone(), |fleet| {
        let zones = Zones::compile(fleet, &name, serial.at_start(fleet.changed_unix_s))
            .map_err(|faults| zone_failure(&faults))?;
        Ok(Revision {
            fleet: Arc::clone(fleet),
            zones: Arc::new(zones),
        })
    });
    let compiled = compiled.await?;
    serial.served(compiled.zones.serial());
    let key = cookie_key(&compiled.fleet, None)?;
    let (served_tx, served) = watch::channel(compiled);
    let steering = Steering::start(served, &registry, until_end.clone());
    steering.set_drained(drains.clone());
    let handler = Arc::new(Handler {
        steering: Arc::clone(&steering),
        server_id: name.clone(),
        cookies: ArcSwap::from_pointee(CookieSecrets::new(key, None, unix_now())),
    });
    let addresses = listeners.addresses().to_vec();
    let (readiness_tx, readiness) = watch::channel(Readiness::NotReady("starting".to_owned()));
    let serving = listeners.serve(&handler, &metrics, &until_end)?;
    let admin_task = tokio::spawn(admin::serve(
        admin_listener,
        registry,
        readiness,
        Some(steering.admin_extra()),
        admin::own_names_of(fleet.clone()),
        shutdown.clone(),
    ));
    let reloader = Reloader {
        name: name.clone(),
        fleet: fleet.clone(),
        served: served_tx,
        serial,
        listen: me.listen.clone(),
    };
    let started_unix_ms = unix_millis(SystemTime::now());
    let drained = Arc::clone(&steering);
    let fleet_for_end = fleet.clone();
    let source = ReportSource {
        name: name.clone(),
        state,
        steering,
        metrics,
        started_unix_ms,
        shutdown: shutdown.clone(),
    };
    let to_control = |f: &Fleet| reporter::to_control(f, "dns");
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(reloader.run(until_end.clone()));
    tasks.spawn(keep_cookie_secrets(
        handler,
        key,
        fleet.clone(),
        until_end.clone(),
    ));
    tasks.spawn(reporter::run(
        name,
        to_control,
        fleet,
        move |_| source.report(),
        until_end.clone(),
    ));
    tasks.spawn(follow_drains(drains, entries, drained, until_end));
    readiness_tx.send_replace(Readiness::Ready);
    tracing::info!(?addresses, "answering DNS");

    shutdown.asked().await;
    readiness_tx.send_replace(Readiness::NotReady("draining".to_owned()));
    let withdrawal = fleet_for_end.borrow().drain.dns_withdrawal;
    shutdown.drained(withdrawal, std::future::pending()).await;
    end.shut_down();
    // Its own limit is shorter: this one is for an end that cannot wait.
    shutdown
        .drained(2 * DRAIN_MAX, serving.drain(DRAIN_MAX))
        .await;
    while tasks.join_next().await.is_some() {}
    admin_task.abort();
    Ok(())
}

fn find_server<'f>(fleet: &'f Fleet, name: &str) -> Result<&'f NameServer, Failure> {
    fleet
        .name_servers
        .iter()
        .find(|s| s.name == name)
        .ok_or_else(|| {
            let known: Vec<&str> = fleet.name_servers.iter().map(|s| s.name.as_str()).collect();
            let message = format!(
                "the fleet file has no [[name_server]] named {name:?}; it has: {}",
                known.join(", ")
            );
            Failure::new(FailureKind::Usage, message)
        })
}

fn zone_failure(faults: &[ZoneError]) -> Failure {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Failure::new(FailureKind::Usage, lines.join("\n"))
}

/// The cookie key: the one that all name servers of the fleet derive from the node key, or a random
/// one for a server without a node key, which keeps it while it runs.
fn cookie_key(fleet: &Fleet, own: Option<CookieKey>) -> Result<CookieKey, Failure> {
    if !fleet.node_key.0.is_empty() {
        return Ok(CookieKey::of_fleet(&fleet.node_key.0));
    }
    if let Some(own) = own {
        return Ok(own);
    }
    let bytes = entropy::<32>().map_err(|e| Failure::new(FailureKind::System, e.to_string()))?;
    Ok(CookieKey::of_bytes(bytes))
}

/// Follows the drains of operators. Purges and pushes do not concern name servers; new fleet files
/// arrive in `fleet`.
async fn follow_drains(
    mut drains: Drains,
    mut entries: mpsc::Receiver<Entry>,
    steering: Arc<Steering>,
    mut shutdown: Shutdown,
) {
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

fn unix_now() -> u32 {
    unix_seconds(SystemTime::now()) as u32
}

/// Renews the cookie secrets each day, and when the node key changes.
async fn keep_cookie_secrets(
    handler: Arc<Handler>,
    mut key: CookieKey,
    mut fleet: watch::Receiver<Arc<Fleet>>,
    mut shutdown: Shutdown,
) {
    let mut may_change = true;
    loop {
        tokio::select! {
            () = tokio::time::sleep(COOKIE_SECRETS_RENEWED) => {}
            changed = fleet.changed(), if may_change => may_change = changed.is_ok(),
            () = shutdown.asked() => return,
        }
        match cookie_key(&fleet.borrow_and_update(), Some(key)) {
            Ok(found) => key = found,
            Err(failure) => tracing::warn!(%failure, "the cookie key stays as it is"),
        }
        let secrets = handler.cookies.load().renewed(key, unix_now());
        handler.cookies.store(Arc::new(secrets));
    }
}

/// Compiles the zones again whenever the fleet changes; steering adopts both at once.
struct Reloader {
    name: String,
    fleet: watch::Receiver<Arc<Fleet>>,
    /// The newest fleet whose zones could be compiled.
    served: watch::Sender<Revision>,
    /// The serial of the zones served.
    serial: Serial,
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
                // The fleet cannot change any more.
                return shutdown.asked().await;
            }
            let fleet = Arc::clone(&self.fleet.borrow_and_update());
            self.reload(&fleet);
        }
    }

    fn reload(&mut self, fleet: &Arc<Fleet>) {
        if let Some(me) = fleet.name_servers.iter().find(|s| s.name == self.name)
            && me.listen != self.listen
        {
            tracing::warn!(
                "this name server's listen addresses changed in the fleet file; restart it to use them"
            );
            self.listen.clone_from(&me.listen);
        }
        match self.compile(fleet) {
            Ok(zones) => {
                self.served.send_replace(Revision {
                    fleet: Arc::clone(fleet),
                    zones,
                });
            }
            Err(faults) => {
                for fault in &faults {
                    tracing::error!(%fault, "the new zones are not served; the last good ones are");
                }
            }
        }
    }

    /// The zones of a fleet under the serial of its revision; the zones served already, if nothing
    /// has changed in them.
    fn compile(&mut self, fleet: &Fleet) -> Result<Arc<Zones>, Vec<ZoneError>> {
        let served = Arc::clone(&self.served.borrow().zones);
        let changed_unix_s = fleet.changed_unix_s;
        let serial = self
            .serial
            .of_revision(changed_unix_s)
            .unwrap_or_else(|| self.serial.going_on(changed_unix_s, false));
        let mut zones = Zones::compile(fleet, &self.name, serial)?;
        if zones == *served {
            return Ok(served);
        }
        if zones.serial() == served.serial() {
            zones = Zones::compile(
                fleet,
                &self.name,
                self.serial.going_on(changed_unix_s, true),
            )?;
        }
        self.serial.served(zones.serial());
        tracing::info!(serial = zones.serial(), "zones changed");
        Ok(Arc::new(zones))
    }
}

/// The source of this node's reports to control.
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
