//! How every role starts and ends, in one order for all of them.
//!
//! [`run`] owns the order and the admin listener; a [`Role`] owns everything else. At the start, all
//! listeners open first, so that a port in use is found before anything has happened; then the
//! process gives up its privileges, state is read, tasks start, and `/ready` turns 200. At the end,
//! `/ready` turns 503, the role drains, and the admin listener ends last.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use nearcast_net::shutdown::Shutdown;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::admin::{self, Readiness, RolePaths};
use crate::config::Fleet;
use crate::failure::{Failure, FailureKind};
use crate::listener_tls::ListenerTls;

/// One role of a node, in the stages of its life; [`run`] calls them in the order in which they are
/// written here.
pub trait Role: Sized {
    /// The role's own listeners, open and not yet served.
    type Listeners: Send;
    /// The role while it serves.
    type Running: Send;

    /// The address of its admin listener, where it has one.
    fn admin_address(&self) -> Option<SocketAddr>;

    /// Opens the role's own listeners, within a Tokio runtime. Reads and writes nothing else.
    fn open(&self) -> Result<Self::Listeners, Failure>;

    /// Gives up the privileges that only listeners needed, and then begins to use the node's state
    /// directory.
    fn begin(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Reads state, starts tasks, serves the listeners and the admin listener, and sets readiness.
    fn start(
        self,
        listeners: Self::Listeners,
        admin: &mut Admin,
    ) -> impl Future<Output = Result<Self::Running, Failure>> + Send;

    /// Waits until the role cannot serve any more although nobody has asked it to end, and says why.
    fn failed(_running: &mut Self::Running) -> impl Future<Output = Failure> + Send {
        std::future::pending()
    }

    /// Finishes open work within the role's limits, and ends everything that [`Self::start`]
    /// started.
    fn drain(running: Self::Running, shutdown: &mut Shutdown) -> impl Future<Output = ()> + Send;
}

/// Runs a role until shutdown is requested and it has drained.
///
/// # Errors
/// A listener that cannot be opened, or what the role's stages return. Nothing of the role stays
/// started then.
pub async fn run<R: Role>(
    mut role: R,
    fleet: watch::Receiver<Arc<Fleet>>,
    mut shutdown: Shutdown,
) -> Result<(), Failure> {
    let mut admin = Admin::open(role.admin_address(), fleet, shutdown.clone()).await?;
    let listeners = role.open()?;
    role.begin().await?;
    admin.read_certificate()?;
    let mut running = role.start(listeners, &mut admin).await?;

    tokio::select! {
        biased;
        () = shutdown.requested() => {}
        failure = R::failed(&mut running) => return Err(failure),
    }
    admin.set_readiness(Readiness::NotReady("draining".to_owned()));
    R::drain(running, &mut shutdown).await;
    drop(admin);
    Ok(())
}

/// The admin listener of a node, where it has one, and the node's readiness. Dropping this ends
/// both.
#[derive(Debug)]
pub struct Admin {
    listener: Option<TcpListener>,
    tls: Option<ListenerTls>,
    readiness: Arc<watch::Sender<Readiness>>,
    fleet: watch::Receiver<Arc<Fleet>>,
    shutdown: Shutdown,
    serving: Option<AbortHandle>,
}

impl Admin {
    async fn open(
        address: Option<SocketAddr>,
        fleet: watch::Receiver<Arc<Fleet>>,
        shutdown: Shutdown,
    ) -> Result<Self, Failure> {
        let listener = match address {
            Some(address) => Some(admin::bind(address).await?),
            None => None,
        };
        Ok(Self {
            listener,
            tls: None,
            readiness: Arc::new(watch::Sender::new(Readiness::NotReady(
                "starting".to_owned(),
            ))),
            fleet,
            shutdown,
            serving: None,
        })
    }

    /// Reads the certificate of the listener, as the user that the process has from here on.
    fn read_certificate(&mut self) -> Result<(), Failure> {
        if self.listener.is_some() {
            let tls = ListenerTls::open(self.fleet.clone(), |fleet| fleet.admin_identity.as_ref())?;
            self.tls = Some(tls);
        }
        Ok(())
    }

    /// Starts to answer, with the metrics of `registry` and the paths of the role.
    pub fn serve(&mut self, registry: prometheus::Registry, role_paths: Option<RolePaths>) {
        let (Some(listener), Some(tls)) = (self.listener.take(), self.tls.take()) else {
            return;
        };
        let serving = tokio::spawn(admin::serve(
            listener,
            tls,
            registry,
            self.readiness.subscribe(),
            role_paths,
            admin::own_names_of(self.fleet.clone()),
            self.shutdown.clone(),
        ));
        self.serving = Some(serving.abort_handle());
    }

    /// Sets the answer of `/ready`.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.readiness.send_replace(readiness);
    }

    /// The readiness, for a task that keeps it up to date.
    pub fn readiness(&self) -> Arc<watch::Sender<Readiness>> {
        self.readiness.clone()
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

/// The failure of a role whose metrics cannot be registered.
pub fn metrics_failure(error: &prometheus::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("metrics: {error}"))
}

#[cfg(test)]
mod tests {
    use crate::testing::FleetText;

    use super::*;
    use crate::client::Client;
    use nearcast_net::shutdown;
    use std::sync::Mutex;
    use std::time::Duration;

    /// The stages that were called, and the readiness that clients saw in them.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl Log {
        fn note(&self, stage: &str) {
            self.0.lock().expect("no panic").push(stage.to_owned());
        }

        async fn note_with_ready(&self, stage: &str, admin: SocketAddr) {
            let answer = Client::new(None)
                .get(&format!("http://{admin}/ready"), Duration::from_secs(5))
                .await;
            let ready = answer.map(|a| String::from_utf8_lossy(a.body()).trim().to_owned());
            self.note(&format!("{stage}: {}", ready.expect("answered")));
        }
    }

    struct Scripted {
        log: Log,
        admin: SocketAddr,
        fails_in: &'static str,
    }

    impl Scripted {
        fn pass(&self, stage: &str) -> Result<(), Failure> {
            self.log.note(stage);
            match stage == self.fails_in {
                true => Err(Failure::new(FailureKind::Internal, stage)),
                false => Ok(()),
            }
        }
    }

    impl Role for Scripted {
        type Listeners = ();
        type Running = (Log, SocketAddr, &'static str);

        fn admin_address(&self) -> Option<SocketAddr> {
            Some(self.admin)
        }

        fn open(&self) -> Result<(), Failure> {
            self.pass("open")
        }

        async fn begin(&mut self) -> Result<(), Failure> {
            self.pass("begin")
        }

        async fn start(self, (): (), admin: &mut Admin) -> Result<Self::Running, Failure> {
            admin.serve(prometheus::Registry::new(), None);
            self.log.note_with_ready("start", self.admin).await;
            admin.set_readiness(Readiness::Ready);
            self.log.note_with_ready("start", self.admin).await;
            Ok((self.log, self.admin, self.fails_in))
        }

        async fn failed((_, _, fails_in): &mut Self::Running) -> Failure {
            match *fails_in == "serving" {
                true => Failure::new(FailureKind::Internal, "serving"),
                false => std::future::pending().await,
            }
        }

        async fn drain((log, admin, _): Self::Running, _: &mut Shutdown) {
            log.note_with_ready("drain", admin).await;
        }
    }

    fn fleet() -> watch::Receiver<Arc<Fleet>> {
        let fleet = FleetText::new().cluster("ams", &["192.0.2.1"]).fleet();
        watch::Sender::new(Arc::new(fleet)).subscribe()
    }

    async fn free_address() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        listener.local_addr().expect("bound")
    }

    #[tokio::test]
    async fn the_stages_run_in_order_and_ready_follows_them() {
        let (log, admin) = (Log::default(), free_address().await);
        let (trigger, shutdown) = shutdown::channel();
        let role = Scripted {
            log: log.clone(),
            admin,
            fails_in: "",
        };
        let running = tokio::spawn(run(role, fleet(), shutdown));
        while log.0.lock().expect("no panic").len() < 4 {
            tokio::task::yield_now().await;
        }
        trigger.shut_down();
        running.await.expect("no panic").expect("an orderly end");
        assert_eq!(
            *log.0.lock().expect("no panic"),
            [
                "open",
                "begin",
                "start: starting",
                "start: ready",
                "drain: draining"
            ]
        );
    }

    #[tokio::test]
    async fn a_stage_that_fails_ends_the_role() {
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let in_use = taken.local_addr().expect("bound");
        let free = free_address().await;
        for (admin, fails_in, expected) in [
            (in_use, "", &[][..]),
            (free, "open", &["open"]),
            (free, "begin", &["open", "begin"]),
            (
                free,
                "serving",
                &["open", "begin", "start: starting", "start: ready"],
            ),
        ] {
            let log = Log::default();
            let role = Scripted {
                log: log.clone(),
                admin,
                fails_in,
            };
            let (_trigger, shutdown) = shutdown::channel();
            assert!(run(role, fleet(), shutdown).await.is_err());
            assert_eq!(*log.0.lock().expect("no panic"), expected, "{fails_in}");
        }
    }
}
