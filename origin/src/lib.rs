//! The origin: serves the files of a directory to edges and other HTTP clients, with the fields that
//! caches and players need.
//!
//! The path of a request: [`server`] (sockets, limits) -> [`handler`] (the steps in order) ->
//! [`path`] (which file) -> [`representation`] (the file or a variant, by [`coding`]) ->
//! [`conditions`] (preconditions, range) -> [`rules`] (content type, `Cache-Control`) -> [`body`].
//! [`demo`] writes the demo's pages and video.

mod body;
mod coding;
mod conditions;
pub mod demo;
mod handler;
mod metrics;
mod path;
mod representation;
mod rules;
mod server;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use nearcast_fleet::admin::{self, Readiness};
use nearcast_fleet::clock::unix_millis;
use nearcast_fleet::config::{Fleet, OriginNode, OriginRule};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::follow::{self, NodeContext};
use nearcast_fleet::report::OriginReport;
use nearcast_fleet::reporter;
use nearcast_fleet::shutdown::{self, Shutdown};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::handler::Handler;
use crate::metrics::Metrics;

/// Runs an origin node until shutdown.
///
/// # Errors
/// [`FailureKind::NoInput`] when the root is no directory; [`Failure::bind`] when it cannot listen.
pub async fn run(context: NodeContext) -> Result<(), Failure> {
    let NodeContext {
        name,
        fleet,
        entries,
        state,
        following,
        mut shutdown,
    } = context;
    // Purges and pushes are not for origins.
    drop((entries, state));
    let me = find(&fleet.borrow(), &name)?;
    let admin_listener = match me.admin {
        Some(address) => Some(admin::bind(address).await?),
        None => None,
    };
    let listener = TcpListener::bind(me.listen)
        .await
        .map_err(|e| Failure::bind("clients", me.listen, &e))?;
    following.begin().await?;
    let (me, root) = follow::start_from(fleet.clone(), shutdown.clone(), |fleet| {
        let me = find(fleet, &name)?;
        let root = root_of(&me)?;
        Ok((me, root))
    })
    .await?;
    let registry = prometheus::Registry::new();
    let metrics = Metrics::register(&registry)
        .map_err(|e| Failure::new(FailureKind::Internal, format!("metrics: {e}")))?;
    let (rules_tx, rules) = watch::channel(Arc::new(me.rules));
    let handler = Arc::new(Handler {
        root: root.clone(),
        rules,
        metrics: metrics.clone(),
    });
    let (readiness_tx, readiness) = watch::channel(Readiness::Ready);
    let admin_task = admin_listener.map(|l| {
        tokio::spawn(admin::serve(
            l,
            registry,
            readiness,
            None,
            admin::own_names_of(fleet.clone()),
            shutdown.clone(),
        ))
    });
    let following = tokio::spawn(follow_rules(
        name.clone(),
        fleet.clone(),
        rules_tx,
        shutdown.clone(),
    ));
    let report = report_source(name.clone(), metrics, shutdown.clone());
    // The limit that is in force when it ends.
    let for_end = fleet.clone();
    // It reports for as long as it serves.
    let (reports_end, reports) = shutdown::channel();
    let reporting = tokio::spawn(reporter::run(
        name,
        |f| reporter::to_control(f, "origin"),
        fleet,
        move |_| report(),
        reports,
    ));
    let serving = tokio::spawn(server::serve(listener, handler, for_end, shutdown.clone()));
    tracing::info!(listen = %me.listen, root = %root.display(), "serving files");

    shutdown.asked().await;
    readiness_tx.send_replace(Readiness::NotReady("draining".to_owned()));
    let _ = serving.await;
    reports_end.shut_down();
    let _ = tokio::join!(following, reporting);
    if let Some(task) = admin_task {
        task.abort();
    }
    Ok(())
}

fn root_of(me: &OriginNode) -> Result<PathBuf, Failure> {
    me.root.canonicalize().ok().filter(|r| r.is_dir()).ok_or_else(|| {
        let root = me.root.display();
        Failure::new(
            FailureKind::NoInput,
            format!("the origin's root {root} is no directory that can be read; make it, or set another root"),
        )
    })
}

fn find(fleet: &Fleet, name: &str) -> Result<OriginNode, Failure> {
    fleet
        .origins
        .iter()
        .find(|o| o.name == name)
        .cloned()
        .ok_or_else(|| {
            let known: Vec<&str> = fleet.origins.iter().map(|o| o.name.as_str()).collect();
            Failure::new(
                FailureKind::Usage,
                format!(
                    "the fleet file has no [[origin_node]] named {name:?}; it has: {}",
                    known.join(", ")
                ),
            )
        })
}

/// Takes over cache rules as the fleet file changes; root and addresses stay until a restart.
async fn follow_rules(
    name: String,
    mut fleet: watch::Receiver<Arc<Fleet>>,
    rules: watch::Sender<Arc<Vec<OriginRule>>>,
    mut shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            changed = fleet.changed() => if changed.is_err() { return shutdown.asked().await },
            () = shutdown.asked() => return,
        }
        let found = fleet
            .borrow_and_update()
            .origins
            .iter()
            .find(|o| o.name == name)
            .map(|o| o.rules.clone());
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
        draining: shutdown.is_asked(),
        requests: metrics.by_class(),
        bytes: metrics.response_bytes.get(),
    }
}
