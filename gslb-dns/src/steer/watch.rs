//! The tasks beside the query path: health checks, periodic work, and changes of the fleet and of
//! the geo database.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nearcast_fleet::clock::now_unix_ms;
use nearcast_fleet::config::HealthCheck;
use nearcast_fleet::failure::Failure;
use nearcast_net::shutdown::Shutdown;
use nearcast_net::stamp::Stamp;
use prometheus::IntGauge;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::check::Checker;
use super::health::CheckOutcome;
use super::location::Atlas;
use super::snapshot::Revision;
use super::steering::Steering;
use nearcast_fleet::random::Random;

/// Interval of the periodic work.
const TICK: Duration = Duration::from_millis(250);
/// Interval at which the geo database's file is checked for changes.
const LOOK: Duration = Duration::from_secs(1);
/// Most results of health checks that wait to be recorded.
const RESULTS_MAX: usize = 1_024;

/// The atlas for a setting of `steering.geo_db`, and the stamp its file had before it was read.
fn load(geo_db: Option<&Path>) -> Result<(Arc<Atlas>, Option<Stamp>), Failure> {
    match geo_db {
        None => Ok((Atlas::built_in(), None)),
        Some(path) => {
            let before = Stamp::of(path);
            Ok((Arc::new(Atlas::load(path)?), before))
        }
    }
}

/// The metrics of the geo database.
#[derive(Debug, Clone)]
struct GeoMetrics {
    /// 1 while the database of the fleet file is not in use.
    failed: IntGauge,
    /// Records of the database in use that could not be read, or only in part.
    rejected_records: IntGauge,
}

impl GeoMetrics {
    fn register(registry: &prometheus::Registry) -> Self {
        let gauge = |name, help| {
            let gauge = IntGauge::new(name, help).expect("a valid name");
            if let Err(error) = registry.register(Box::new(gauge.clone())) {
                tracing::warn!(%error, name, "this metric is not in the registry");
            }
            gauge
        };
        Self {
            failed: gauge(
                "nearcast_dns_geo_db_failed",
                "1 while the geo database of the fleet file cannot be used as it is, else 0.",
            ),
            rejected_records: gauge(
                "nearcast_dns_geo_db_rejected_records",
                "Records of the geo database in use that were skipped or read in part.",
            ),
        }
    }

    fn note(&self, atlas: &Atlas) {
        self.failed.set(0);
        self.rejected_records.set(atlas.rejected_records as i64);
        if atlas.rejected_records > 0 {
            let (source, records) = (&atlas.description, atlas.rejected_records);
            tracing::warn!(%source, records, "records of the geo database are not what they should be; what can be read of them counts");
        }
    }
}

/// The database at start, and the version of its file.
pub(super) struct Geo {
    pub(super) atlas: Arc<Atlas>,
    source: DatabaseFile,
    metrics: GeoMetrics,
}

/// Loads the database at start. A broken one does not stop a name server: it starts with the
/// built-in table, and loads the database once its file has changed into a good one.
pub(super) fn start(geo_db: Option<&Path>, registry: &prometheus::Registry) -> Geo {
    let metrics = GeoMetrics::register(registry);
    let before = geo_db.and_then(Stamp::of);
    match load(geo_db) {
        Ok((atlas, stamp)) => {
            metrics.note(&atlas);
            Geo {
                atlas,
                source: DatabaseFile::new(stamp),
                metrics,
            }
        }
        Err(failure) => {
            metrics.failed.set(1);
            tracing::warn!(%failure, "the built-in country table places clients until the geo database's file changes");
            Geo {
                atlas: Atlas::built_in(),
                source: DatabaseFile {
                    is_good: false,
                    missing_logged: before.is_none(),
                    ..DatabaseFile::new(before)
                },
                metrics,
            }
        }
    }
}

/// Starts the tasks.
pub(super) fn spawn(
    steering: &Arc<Steering>,
    served: watch::Receiver<Revision>,
    geo: Geo,
    shutdown: Shutdown,
) {
    tokio::spawn(check_nodes(
        steering.clone(),
        served.clone(),
        shutdown.clone(),
    ));
    tokio::spawn(follow(steering.clone(), served, geo, shutdown.clone()));
    let steering = steering.clone();
    tokio::spawn(until(shutdown, async move {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            steering.tick(now_unix_ms());
        }
    }));
}

async fn until(mut shutdown: Shutdown, work: impl Future<Output = ()>) {
    tokio::select! {
        () = shutdown.requested() => {}
        () = work => {}
    }
}

/// The result of a check, with its node and endpoint.
type CheckResult = (Arc<str>, SocketAddr, CheckOutcome);

/// Runs one task for each endpoint of each node of the fleet, and records the results.
async fn check_nodes(
    steering: Arc<Steering>,
    mut served: watch::Receiver<Revision>,
    mut shutdown: Shutdown,
) {
    let (results_tx, mut results) = mpsc::channel::<CheckResult>(RESULTS_MAX);
    let mut tasks = JoinSet::new();
    let mut running: HashMap<(String, SocketAddr), (HealthCheck, AbortHandle)> = HashMap::new();
    loop {
        let current = served.borrow_and_update().fleet.clone();
        let rules = &current.steering.health;
        let mut wanted: HashSet<(String, SocketAddr)> = HashSet::new();
        for node in current.clusters.iter().flat_map(|c| &c.nodes) {
            wanted.extend(
                node.addresses
                    .iter()
                    .flat_map(|a| node.checked_at(*a))
                    .map(|at| (node.name.clone(), at)),
            );
        }

        running.retain(|what, (how, task)| {
            let stays = wanted.contains(what) && how == rules;
            if !stays {
                task.abort();
            }
            stays
        });

        for what in wanted {
            running.entry(what).or_insert_with_key(|(node, at)| {
                let task = tasks.spawn(check_one(
                    Arc::from(node.as_str()),
                    *at,
                    rules.clone(),
                    results_tx.clone(),
                ));
                (rules.clone(), task)
            });
        }

        loop {
            tokio::select! {
                () = shutdown.requested() => return,
                Some((node, at, outcome)) = results.recv() => steering.observe_health(&node, at, outcome, now_unix_ms()),
                Some(_) = tasks.join_next() => {}
                changed = served.changed() => {
                    if changed.is_err() {
                        // The fleet will not change any more.
                        return shutdown_or_results(&steering, &mut results, shutdown).await;
                    }
                    break;
                }
            }
        }
    }
}

async fn shutdown_or_results(
    steering: &Steering,
    results: &mut mpsc::Receiver<CheckResult>,
    mut shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            Some((node, at, outcome)) = results.recv() => steering.observe_health(&node, at, outcome, now_unix_ms()),
        }
    }
}

async fn check_one(
    node: Arc<str>,
    endpoint: SocketAddr,
    rules: HealthCheck,
    results: mpsc::Sender<CheckResult>,
) {
    let seed = node.bytes().fold(now_unix_ms(), |seed, b| {
        seed.wrapping_mul(31).wrapping_add(u64::from(b))
    });
    let mut jitter = Random::new(seed ^ u64::from(endpoint.port()));
    let mut checker = Checker::new(endpoint, rules);
    loop {
        let begun = Instant::now();
        let outcome = checker.check().await;
        if results
            .send((node.clone(), endpoint, outcome))
            .await
            .is_err()
        {
            return;
        }
        checker.rest(begun, &mut jitter).await;
    }
}

/// The version of the geo database's file that is loaded, and the one last seen.
#[derive(Debug)]
struct DatabaseFile {
    /// The version that is loaded, or that could not be.
    settled: Option<Stamp>,
    /// Whether the version in `settled` is loaded.
    is_good: bool,
    /// The version seen last, when it differs.
    seen: Option<Stamp>,
    /// Whether a missing file was logged.
    missing_logged: bool,
}

impl DatabaseFile {
    fn new(settled: Option<Stamp>) -> Self {
        Self {
            settled,
            is_good: true,
            seen: None,
            missing_logged: false,
        }
    }

    /// Whether to load the file now: its version differs from the loaded one, and has not changed
    /// since the last look, so that a file that is being written is not read half.
    fn is_due(&mut self, now: Stamp) -> bool {
        self.missing_logged = false;
        if self.settled == Some(now) {
            self.seen = None;
            return false;
        }
        let still = self.seen == Some(now);
        self.seen = Some(now);
        still
    }
}

/// Follows the revisions of the fleet and the file of the database.
async fn follow(
    steering: Arc<Steering>,
    mut served: watch::Receiver<Revision>,
    geo: Geo,
    mut shutdown: Shutdown,
) {
    let Geo {
        mut source,
        metrics,
        ..
    } = geo;
    let mut path: Option<PathBuf> = served.borrow().fleet.steering.geo_db.clone();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut may_change = true;

    loop {
        tokio::select! {
            () = shutdown.requested() => return,
            changed = served.changed(), if may_change => {
                may_change = changed.is_ok();
                let current = served.borrow_and_update().clone();
                let moved = current.fleet.steering.geo_db != path;
                if moved {
                    path.clone_from(&current.fleet.steering.geo_db);
                    source = DatabaseFile::new(None);
                }
                reload(&steering, current, moved.then(|| path.clone()), &mut source, &metrics).await;
            }
            _ = look.tick() => {
                let Some(watched) = path.clone() else { continue };
                let shown = watched.display().to_string();
                match run_blocking(move || Stamp::read(&watched)).await {
                    Some(Ok(now)) if source.is_due(now) => {
                        let current = served.borrow().clone();
                        reload(&steering, current, Some(path.clone()), &mut source, &metrics).await;
                    }
                    // The file was missing and is the same again.
                    Some(Ok(now)) if source.settled == Some(now) => metrics.failed.set(i64::from(!source.is_good)),
                    Some(Err(error)) if !source.missing_logged => {
                        source.missing_logged = true;
                        metrics.failed.set(1);
                        tracing::warn!(path = shown, %error, "the geo database's file cannot be read; the one loaded before stays in use");
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Adopts a revision, and the database at a path where one is given; if it is broken, the old one
/// remains in use.
async fn reload(
    steering: &Arc<Steering>,
    served: Revision,
    path: Option<Option<PathBuf>>,
    source: &mut DatabaseFile,
    metrics: &GeoMetrics,
) {
    let kept = steering.atlas();
    let worker = steering.clone();
    let loaded = run_blocking(move || {
        let (atlas, result) = match path {
            None => (kept, Ok(None)),
            Some(path) => {
                let before = path.as_deref().and_then(Stamp::of);
                match load(path.as_deref()) {
                    Ok((atlas, stamp)) => (atlas, Ok(Some(stamp))),
                    Err(failure) => (kept, Err((failure, before))),
                }
            }
        };
        worker.adopt(served, atlas, now_unix_ms());
        result
    })
    .await;

    match loaded {
        Some(Ok(Some(stamp))) => {
            (source.settled, source.is_good) = (stamp, true);
            let atlas = steering.atlas();
            tracing::info!(source = %atlas.description, "geo database loaded");
            metrics.note(&atlas);
        }
        Some(Err((failure, stamp))) => {
            // Logged once: the same version is not tried again.
            (source.settled, source.is_good) = (stamp, false);
            source.missing_logged = stamp.is_none();
            metrics.failed.set(1);
            tracing::warn!(%failure, "the geo database loaded before stays in use");
        }
        Some(Ok(None)) | None => {}
    }
}

/// Runs blocking work on a thread for it; `None` when the runtime ends.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steer::fixture;

    #[test]
    fn a_file_is_due_when_it_changed_and_then_stayed() {
        let dir = tempfile::tempdir().unwrap();
        let stamp = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            Stamp::of(&path).unwrap()
        };
        let (a, b, c) = (stamp("a"), stamp("b"), stamp("c"));
        let mut source = DatabaseFile::new(Some(a));
        for (step, (now, due)) in [
            (a, false),
            (b, false),
            (c, false),
            (c, true),
            (a, false),
            (c, false),
            (c, true),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(source.is_due(now), due, "look {step}");
        }
        source.settled = Some(c);
        assert!(!source.is_due(c), "loaded, or found wanting: not again");
        let mut unread = DatabaseFile::new(None);
        assert!(!unread.is_due(a));
        assert!(unread.is_due(a));
    }

    #[tokio::test]
    async fn a_broken_database_leaves_the_old_one_in_use_and_is_not_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("geo.mmdb");
        let mut writer = mmdb_writer::Writer::new("Test");
        let country = mmdb_writer::Value::map([("country_code", mmdb_writer::Value::from("NL"))]);
        writer
            .insert_value("81.2.69.0/24".parse::<ipnet::IpNet>().unwrap(), country)
            .unwrap();
        std::fs::write(&path, writer.to_bytes().unwrap()).unwrap();
        let fleet = fixture::served(fixture::fleet());
        let steering = Arc::new(fixture::steering());
        let mut source = DatabaseFile::new(None);
        let metrics = GeoMetrics::register(&prometheus::Registry::new());
        reload(
            &steering,
            fleet.clone(),
            Some(Some(path.clone())),
            &mut source,
            &metrics,
        )
        .await;
        let loaded = steering.atlas();
        assert!(loaded.description.starts_with("Test, built"));
        assert_eq!(source.settled, Stamp::of(&path));

        std::fs::write(&path, b"broken").unwrap();
        reload(
            &steering,
            fleet.clone(),
            Some(Some(path.clone())),
            &mut source,
            &metrics,
        )
        .await;
        assert!(Arc::ptr_eq(&loaded, &steering.atlas()));
        assert_eq!(metrics.failed.get(), 1);
        assert!(source.settled.is_some());
        assert_eq!(source.settled, Stamp::of(&path));

        std::fs::remove_file(&path).unwrap();
        reload(
            &steering,
            fleet.clone(),
            Some(Some(path)),
            &mut source,
            &metrics,
        )
        .await;
        assert!(Arc::ptr_eq(&loaded, &steering.atlas()));
        reload(&steering, fleet.clone(), None, &mut source, &metrics).await;
        assert!(
            Arc::ptr_eq(&loaded, &steering.atlas()),
            "another fleet alone changes nothing here"
        );
        reload(&steering, fleet, Some(None), &mut source, &metrics).await;
        assert_eq!(steering.atlas().description, "built-in");
        assert_eq!(metrics.failed.get(), 0);
    }

    #[test]
    fn a_start_without_a_good_database_is_one_with_the_built_in_table() {
        let dir = tempfile::tempdir().unwrap();
        let (missing, broken) = (dir.path().join("none"), dir.path().join("broken"));
        std::fs::write(&broken, b"broken").unwrap();
        for (path, failed) in [
            (None, 0),
            (Some(&missing), 1),
            (Some(&broken), 1),
            (Some(&dir.path().to_owned()), 1),
        ] {
            let mut geo = start(path.map(PathBuf::as_path), &prometheus::Registry::new());
            assert_eq!(
                (geo.atlas.description.as_str(), geo.metrics.failed.get()),
                ("built-in", failed),
                "{path:?}"
            );
            if let Some(now) = path.and_then(|p| Stamp::of(p)) {
                assert!(!geo.source.is_due(now), "the same file is not tried again");
            }
        }
    }
}
