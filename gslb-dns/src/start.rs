//! How a name server starts and ends: the stages of its [`Role`], and the tasks that follow the
//! fleet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use nearcast_fleet::admin::Readiness;
use nearcast_fleet::change::{Change, Entry};
use nearcast_fleet::clock::{now_unix_ms, now_unix_s};
use nearcast_fleet::config::{Fleet, NameServer};
use nearcast_fleet::drains::Drains;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::follow::{self, FollowState, Following, NodeContext};
use nearcast_fleet::random::entropy;
use nearcast_fleet::report::DnsReport;
use nearcast_fleet::reporter;
use nearcast_fleet::role::{self, Admin, Role};
use nearcast_net::shutdown::{self, Shutdown, ShutdownTrigger};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::cookie::{CookieKey, CookieSecrets};
use crate::handler::Handler;
use crate::metrics::Metrics;
use crate::steer::{Revision, Steering};
use crate::transport::{Listeners, Serving};
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
    let fleet = context.fleet.borrow().clone();
    let server = fleet.name_server_or_error(&context.name)?.clone();
    let starting = StartingServer {
        server,
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

/// A name server that has not started yet.
struct StartingServer {
    name: String,
    server: NameServer,
    /// The drains of operators that an earlier run knew of.
    stored_drains: Drains,
    fleet: watch::Receiver<Arc<Fleet>>,
    entries: mpsc::Receiver<Entry>,
    follow_state: watch::Receiver<FollowState>,
    following: Following,
    shutdown: Shutdown,
}

/// A name server that answers.
struct RunningServer {
    fleet: watch::Receiver<Arc<Fleet>>,
    serving: Serving,
    tasks: JoinSet<()>,
    /// Ends the listeners, and everything on which answers depend.
    end: ShutdownTrigger,
}

impl Role for StartingServer {
    type Listeners = Listeners;
    type Running = RunningServer;

    fn admin_address(&self) -> Option<SocketAddr> {
        Some(self.server.admin)
    }

    fn open(&self) -> Result<Listeners, Failure> {
        Listeners::open(&self.server.listen)
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        // Before the first answer, and before following replaces the copy that holds them.
        let fleet = self.fleet.borrow().clone();
        self.stored_drains = follow::stored_drains(&fleet.node_dir(&self.name)).await;
        std::mem::take(&mut self.following).begin().await?;
        if fleet.control.is_some() {
            // The revision in force decides the serials and more; the fleet file of this machine may
            // be older.
            follow::wait_for_control(self.follow_state.clone(), self.shutdown.clone()).await;
        }
        Ok(())
    }

    async fn start(
        self,
        listeners: Listeners,
        admin: &mut Admin,
    ) -> Result<RunningServer, Failure> {
        let Self {
            name,
            server,
            stored_drains,
            fleet,
            entries,
            follow_state,
            shutdown,
            ..
        } = self;
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).map_err(|e| role::metrics_failure(&e))?;
        let metrics = Arc::new(metrics);
        let directory = fleet.borrow().node_dir(&name);
        let mut serial = Serial::open(&directory);
        let compiled = follow::start_from(fleet.clone(), shutdown.clone(), |fleet| {
            let zones = Zones::compile(fleet, &name, serial.at_start(fleet.changed_unix_s))
                .map_err(|faults| zone_failure(&faults))?;
            Ok(Revision {
                fleet: fleet.clone(),
                zones: Arc::new(zones),
            })
        });
        let compiled = compiled.await?;
        serial.served(compiled.zones.serial());
        let key = cookie_key(&compiled.fleet, None)?;

        // The server answers until its drain ends, and so does everything on which answers depend.
        let (end, until_end) = shutdown::channel();
        let (served_tx, served) = watch::channel(compiled);
        let steering = Steering::start(served, &registry, until_end.clone());
        steering.set_drained(stored_drains.clone());
        let handler = Arc::new(Handler {
            steering: steering.clone(),
            server_id: name.clone(),
            cookies: ArcSwap::from_pointee(CookieSecrets::new(key, None, now_unix_s() as u32)),
        });
        let addresses = listeners.addresses().to_vec();
        let serving = listeners.serve(&handler, &metrics, &until_end)?;
        admin.serve(registry, Some(steering.admin_extra()));

        let reloader = Reloader {
            name: name.clone(),
            fleet: fleet.clone(),
            served: served_tx,
            serial,
            listen: server.listen,
        };
        let report = ReportSource {
            name: name.clone(),
            state: follow_state,
            steering: steering.clone(),
            metrics,
            started_unix_ms: now_unix_ms(),
            shutdown,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(reloader.run(until_end.clone()));
        tasks.spawn(keep_cookie_secrets(
            handler,
            key,
            fleet.clone(),
            until_end.clone(),
        ));
        tasks.spawn(reporter::run(
            name,
            |fleet: &Fleet| reporter::to_control(fleet, "dns"),
            fleet.clone(),
            move |_| report.report(),
            until_end.clone(),
        ));
        tasks.spawn(follow_entries(stored_drains, entries, steering, until_end));
        admin.set_readiness(Readiness::Ready);
        tracing::info!(?addresses, "answering DNS");
        Ok(RunningServer {
            fleet,
            serving,
            tasks,
            end,
        })
    }

    async fn drain(mut running: RunningServer, shutdown: &mut Shutdown) {
        let withdrawal = running.fleet.borrow().drain.dns_withdrawal;
        shutdown.pause(withdrawal).await;
        running.end.shut_down();
        // The drain has a limit of its own, which is shorter; this one ends it when no time is left.
        shutdown
            .drained(2 * DRAIN_MAX, running.serving.drain(DRAIN_MAX))
            .await;
        while running.tasks.join_next().await.is_some() {}
    }
}

fn zone_failure(faults: &[ZoneError]) -> Failure {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    Failure::new(FailureKind::Usage, lines.join("\n"))
}

/// The key of cookies: the one that all name servers of the fleet share, or for a server without a
/// node key one of its own, which it keeps.
fn cookie_key(fleet: &Fleet, own: Option<CookieKey>) -> Result<CookieKey, Failure> {
    if !fleet.node_key.0.is_empty() {
        return Ok(CookieKey::of_fleet(&fleet.node_key.0));
    }
    if let Some(own) = own {
        return Ok(own);
    }
    let bytes = entropy().map_err(|e| Failure::new(FailureKind::System, e.to_string()))?;
    Ok(CookieKey::of_bytes(bytes))
}

/// Follows the drains of operators and the challenges of authorities. Name servers have no use for
/// purges and pushes; new fleet files come by `fleet`.
async fn follow_entries(
    mut drains: Drains,
    mut entries: mpsc::Receiver<Entry>,
    steering: Arc<Steering>,
    mut shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            entry = entries.recv() => match entry {
                Some(Entry { revision, change: Change::Challenges(open), .. }) => {
                    steering.set_challenges(revision, open.dns);
                }
                Some(entry) if drains.fold(&entry) => steering.set_drained(drains.clone()),
                Some(_) => {}
                None => return shutdown.requested().await,
            },
            () = shutdown.requested() => return,
        }
    }
}

/// Changes to the secrets of each day, and to another node key.
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
            () = shutdown.requested() => return,
        }
        match cookie_key(&fleet.borrow_and_update(), Some(key)) {
            Ok(found) => key = found,
            Err(failure) => tracing::warn!(%failure, "the cookie key stays as it is"),
        }
        let secrets = handler.cookies.load().renewed(key, now_unix_s() as u32);
        handler.cookies.store(Arc::new(secrets));
    }
}

/// Compiles the zones again when the fleet changes; steering replaces both in one step.
struct Reloader {
    name: String,
    fleet: watch::Receiver<Arc<Fleet>>,
    /// The newest fleet whose zones compiled.
    served: watch::Sender<Revision>,
    /// Of the zones served.
    serial: Serial,
    listen: Vec<std::net::SocketAddr>,
}

impl Reloader {
    async fn run(mut self, mut shutdown: Shutdown) {
        loop {
            let changed = tokio::select! {
                changed = self.fleet.changed() => changed,
                () = shutdown.requested() => return,
            };
            if changed.is_err() {
                // The fleet cannot change any more.
                return shutdown.requested().await;
            }
            let fleet = self.fleet.borrow_and_update().clone();
            self.reload(&fleet);
        }
    }

    fn reload(&mut self, fleet: &Arc<Fleet>) {
        if let Some(me) = fleet.name_server(&self.name)
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
                    fleet: fleet.clone(),
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

    /// Compiles the zones of a fleet under the serial of its revision. Returns the zones that are
    /// served already where nothing differs.
    fn compile(&mut self, fleet: &Fleet) -> Result<Arc<Zones>, Vec<ZoneError>> {
        let served = self.served.borrow().zones.clone();
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
            draining: self.shutdown.is_requested(),
            queries: self.metrics.by_rcode(),
            ..DnsReport::default()
        };
        self.steering.fill_report(&mut report);
        report
    }
}
