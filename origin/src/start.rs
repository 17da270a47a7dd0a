//! How an origin starts and ends: the stages of its [`Role`], and the tasks that run beside its
//! server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use nearcast_fleet::admin::Readiness;
use nearcast_fleet::clock::unix_millis;
use nearcast_fleet::config::{Fleet, OriginNode, OriginRule};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::follow::{self, Following, NodeContext};
use nearcast_fleet::report::OriginReport;
use nearcast_fleet::reporter;
use nearcast_fleet::role::{self, Admin, Role};
use nearcast_net::listen;
use nearcast_net::shutdown::{self, Shutdown, ShutdownTrigger};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::handler::Handler;
use crate::metrics::Metrics;
use crate::server;

/// Runs an origin node until shutdown.
///
/// # Errors
/// [`FailureKind::NoInput`] when the root is not a directory; [`Failure::bind`] when it cannot
/// listen.
pub async fn run(context: NodeContext) -> Result<(), Failure> {
    let NodeContext {
        name,
        fleet,
        following,
        shutdown,
        // Origins have no use for purges and pushes.
        entries: _,
        state: _,
    } = context;
    let node = fleet.borrow().origin_node_or_error(&name)?.clone();
    let origin = Origin {
        name,
        node,
        fleet: fleet.clone(),
        following,
        shutdown: shutdown.clone(),
    };
    role::run(origin, fleet, shutdown).await
}

struct Origin {
    name: String,
    node: OriginNode,
    fleet: watch::Receiver<Arc<Fleet>>,
    following: Following,
    shutdown: Shutdown,
}

/// An origin that serves.
struct RunningOrigin {
    serving: JoinHandle<()>,
    following_rules: JoinHandle<()>,
    reporting: JoinHandle<()>,
    end_reports: ShutdownTrigger,
}

impl Role for Origin {
    type Listeners = TcpListener;
    type Running = RunningOrigin;

    fn admin_address(&self) -> Option<SocketAddr> {
        self.node.admin
    }

    fn open(&self) -> Result<TcpListener, Failure> {
        let address = self.node.listen;
        listen::open(address).map_err(|e| Failure::bind("clients", address, &e))
    }

    async fn begin(&mut self) -> Result<(), Failure> {
        std::mem::take(&mut self.following).begin().await
    }

    async fn start(
        self,
        listener: TcpListener,
        admin: &mut Admin,
    ) -> Result<RunningOrigin, Failure> {
        let Self {
            name,
            fleet,
            shutdown,
            ..
        } = self;
        let (node, root) = follow::start_from(fleet.clone(), shutdown.clone(), |fleet| {
            let node = fleet.origin_node_or_error(&name)?.clone();
            let root = root_of(&node)?;
            Ok((node, root))
        })
        .await?;
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).map_err(|e| role::metrics_failure(&e))?;
        let (rules_tx, rules) = watch::channel(Arc::new(node.rules));
        let handler = Arc::new(Handler {
            root: root.clone(),
            rules,
            metrics: metrics.clone(),
        });
        admin.serve(registry, None);

        let following_rules = tokio::spawn(follow_rules(
            name.clone(),
            fleet.clone(),
            rules_tx,
            shutdown.clone(),
        ));
        let report = report_source(name.clone(), metrics, shutdown.clone());
        // It reports for as long as it serves.
        let (end_reports, until_reports_end) = shutdown::channel();
        let reporting = tokio::spawn(reporter::run(
            name,
            |fleet| reporter::to_control(fleet, "origin"),
            fleet.clone(),
            move |_| report(),
            until_reports_end,
        ));
        let serving = tokio::spawn(server::serve(listener, handler, fleet, shutdown));
        admin.set_readiness(Readiness::Ready);
        tracing::info!(listen = %node.listen, root = %root.display(), "serving files");
        Ok(RunningOrigin {
            serving,
            following_rules,
            reporting,
            end_reports,
        })
    }

    async fn drain(running: RunningOrigin, _: &mut Shutdown) {
        let _ = running.serving.await;
        running.end_reports.shut_down();
        let _ = tokio::join!(running.following_rules, running.reporting);
    }
}

fn root_of(node: &OriginNode) -> Result<PathBuf, Failure> {
    let root = node.root.canonicalize().ok().filter(|root| root.is_dir());
    root.ok_or_else(|| {
        let root = node.root.display();
        Failure::new(
            FailureKind::NoInput,
            format!(
                "the origin's root {root} is not a readable directory; make it, or set another root"
            ),
        )
    })
}

/// Applies changes of the cache rules in the fleet file; root and addresses need a restart.
async fn follow_rules(
    name: String,
    mut fleet: watch::Receiver<Arc<Fleet>>,
    rules: watch::Sender<Arc<Vec<OriginRule>>>,
    mut shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            changed = fleet.changed() => if changed.is_err() { return shutdown.requested().await },
            () = shutdown.requested() => return,
        }
        let found = fleet
            .borrow_and_update()
            .origin_node(&name)
            .map(|node| node.rules.clone());
        if let Some(found) = found {
            rules.send_replace(Arc::new(found));
        }
    }
}

fn report_source(node: String, metrics: Metrics, shutdown: Shutdown) -> impl Fn() -> OriginReport {
    let started_unix_ms = unix_millis(SystemTime::now());
    move || OriginReport {
        node: node.clone(),
        started_unix_ms,
        draining: shutdown.is_requested(),
        requests: metrics.by_class(),
        bytes: metrics.response_bytes.get(),
    }
}
