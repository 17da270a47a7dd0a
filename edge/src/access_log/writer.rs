//! The thread that writes the lines of all workers, and follows the settings of the log.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::{Failure, FailureKind};
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use super::WorkerLog;
use super::line::{LineFormat, Lines};
use super::sink::{Sink, SinkSettings};

/// How long a line waits in its worker's buffer at most.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);
/// Shortest time between two warnings that lines are lost.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The settings of a log on one node.
struct Plan {
    sink: SinkSettings,
    format: Arc<LineFormat>,
}

impl Plan {
    /// `None` where the fleet has no access log.
    fn of(fleet: &Fleet, node: &str, directory: &Path) -> Option<Self> {
        let settings = fleet.access_log.as_ref()?;
        let cluster = fleet
            .edge(node)
            .map_or("", |(cluster, _)| cluster.name.as_str());
        Some(Self {
            sink: SinkSettings::new(settings, directory),
            format: Arc::new(LineFormat::new(settings, node, cluster)),
        })
    }
}

/// The access log of one edge.
pub(crate) struct AccessLog {
    shared: Arc<Shared>,
    thread: std::thread::Thread,
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

struct Shared {
    workers: Vec<Arc<WorkerLog>>,
    orders: Mutex<Orders>,
    written: AtomicU64,
    /// Lines that could not be written; those that found a full buffer are counted by their worker.
    lost: AtomicU64,
}

/// What the thread is asked to do next.
#[derive(Default)]
struct Orders {
    plan: Option<Option<Plan>>,
    reopen: bool,
    end: bool,
}

impl AccessLog {
    /// Starts the log of these workers. Without a setting for it, it waits for one.
    ///
    /// # Errors
    /// The file cannot be opened. A full disk is no error: it may have room later.
    pub(crate) fn start(
        workers: Vec<Arc<WorkerLog>>,
        fleet: &Fleet,
        node: &str,
        directory: &Path,
    ) -> Result<Self, Failure> {
        let plan = Plan::of(fleet, node, directory);
        if let Some(plan) = &plan {
            check_open(&plan.sink)?;
        }
        let shared = Arc::new(Shared {
            workers,
            orders: Mutex::new(Orders {
                plan: Some(plan),
                ..Orders::default()
            }),
            written: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let (end, ended) = oneshot::channel();
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || {
                Writer::new(of_thread).run();
                let _ = end.send(());
            })
            .map_err(|error| {
                Failure::new(
                    FailureKind::System,
                    format!("cannot start the thread of the access log: {error}"),
                )
            })?
            .thread()
            .clone();
        for worker in &shared.workers {
            *worker.writer.lock() = Some(thread.clone());
        }
        Ok(Self {
            shared,
            thread,
            ended: Mutex::new(Some(ended)),
        })
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.shared.orders.lock());
        self.thread.unpark();
    }

    /// Writes all lines, and ends the log. Waits at most this long: a pipe may have a reader that
    /// does not read.
    pub(crate) async fn end(&self, most: Duration) {
        self.order(|orders| orders.end = true);
        let ended = self.ended.lock().take();
        if let Some(ended) = ended
            && tokio::time::timeout(most, ended).await.is_err()
        {
            tracing::warn!("the last lines of the access log could not be written in time");
        }
    }

    /// Lines that were written, and lines that were lost.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let of_workers: u64 = self
            .shared
            .workers
            .iter()
            .map(|worker| worker.lost.load(Ordering::Relaxed))
            .sum();
        (
            self.shared.written.load(Ordering::Relaxed),
            self.shared.lost.load(Ordering::Relaxed) + of_workers,
        )
    }
}

/// Opens the target once, so that an unusable one is found at start.
fn check_open(settings: &SinkSettings) -> Result<(), Failure> {
    use std::io::ErrorKind;
    match Sink::new(settings.clone()).reopen() {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(Failure::new(
            FailureKind::CannotCreate,
            format!(
                "cannot write the access log to {settings}: {error} (make its directory writable for this user, or choose another path \
                 in [access_log])"
            ),
        )),
    }
}

/// Follows the settings of the fleet file, and opens the file anew on SIGHUP.
pub(crate) async fn follow_fleet(
    log: Arc<AccessLog>,
    mut fleet: watch::Receiver<Arc<Fleet>>,
    node: String,
    directory: std::path::PathBuf,
) {
    let mut hangup = signal(SignalKind::hangup())
        .inspect_err(|error| tracing::warn!(%error, "SIGHUP does not open the access log anew"))
        .ok();
    loop {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = fleet.changed() => {
                if changed.is_err() {
                    return;
                }
                let plan = Plan::of(&fleet.borrow_and_update().clone(), &node, &directory);
                log.order(|orders| orders.plan = Some(plan));
            }
            Some(()) = hung_up => log.order(|orders| orders.reopen = true),
        }
    }
}

/// The state of the thread.
struct Writer {
    shared: Arc<Shared>,
    sink: Option<Sink>,
    format: Option<Arc<LineFormat>>,
    /// Buffer that is exchanged for those of the workers.
    spare: Lines,
    losses: Losses,
}

impl Writer {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            sink: None,
            format: None,
            spare: Lines::default(),
            losses: Losses::default(),
        }
    }

    fn run(mut self) {
        loop {
            let orders = std::mem::take(&mut *self.shared.orders.lock());
            if let Some(plan) = orders.plan {
                self.follow(plan);
            }
            self.flush();
            if orders.reopen
                && let Some(sink) = &mut self.sink
                && let Err(error) = sink.reopen()
            {
                tracing::warn!(log = %sink.settings(), %error, "the access log cannot be opened anew; trying again with each line");
            }
            if orders.end {
                return;
            }
            match self.sink.is_some() {
                true => std::thread::park_timeout(FLUSH_INTERVAL),
                false => std::thread::park(),
            }
        }
    }

    /// Begins to follow other settings. Lines of the former ones go where those say.
    fn follow(&mut self, plan: Option<Plan>) {
        let (settings, format) = match plan {
            Some(plan) => (Some(plan.sink), Some(plan.format)),
            None => (None, None),
        };
        if format != self.format {
            for worker in &self.shared.workers {
                worker.inner.lock().format = format.clone();
            }
            self.format = format;
        }
        // The workers' buffers have no line in the new form for the former target, or few.
        if settings.as_ref() != self.sink.as_ref().map(Sink::settings) {
            self.flush();
            if settings.is_none() && self.sink.is_some() {
                tracing::info!("requests are not logged any more");
            }
            self.sink = settings.map(Sink::new);
            if let Some(sink) = &mut self.sink {
                match sink.reopen() {
                    Ok(()) => tracing::info!(log = %sink.settings(), "requests are logged"),
                    Err(error) => {
                        tracing::warn!(log = %sink.settings(), %error, "the access log cannot be opened; trying again with each line")
                    }
                }
            }
        }
    }

    fn flush(&mut self) {
        let mut failed = None;
        for worker in &self.shared.workers {
            worker.take(&mut self.spare);
            let lines = self.spare.count();
            if lines == 0 {
                continue;
            }
            let written = match &mut self.sink {
                Some(sink) => sink.write(self.spare.text()),
                None => continue,
            };
            let lost = match written {
                Ok(()) => 0,
                Err(failure) => {
                    failed = Some(failure.error);
                    failure.lines_lost
                }
            };
            self.shared
                .written
                .fetch_add(lines.saturating_sub(lost), Ordering::Relaxed);
            self.shared.lost.fetch_add(lost, Ordering::Relaxed);
        }
        self.warn_of_lost(failed);
    }

    /// Warns that lines are lost, once a while.
    fn warn_of_lost(&mut self, failed: Option<std::io::Error>) {
        let of_workers: u64 = self
            .shared
            .workers
            .iter()
            .map(|worker| worker.lost.load(Ordering::Relaxed))
            .sum();
        let lost = self.shared.lost.load(Ordering::Relaxed) + of_workers;
        if let Some((lines, reason)) = self.losses.due(lost, failed, Instant::now()) {
            tracing::warn!(
                lines,
                reason,
                "lines of the access log are lost; nearcast_edge_access_log_lines_total counts them, repeated messages are suppressed"
            );
        }
    }
}

/// What was warned of.
#[derive(Debug, Default)]
struct Losses {
    /// Lines that were lost by then.
    seen: u64,
    warned: Option<Instant>,
    /// The last error since then: one that is over explains the lines that it lost.
    failed: Option<std::io::Error>,
}

impl Losses {
    /// The lines that were lost since the last warning, and why, where a warning is due. `lost` is
    /// how many were lost so far, `failed` the error of the last writing.
    fn due(
        &mut self,
        lost: u64,
        failed: Option<std::io::Error>,
        now: Instant,
    ) -> Option<(u64, String)> {
        self.failed = failed.or(self.failed.take());
        let is_quiet = self
            .warned
            .is_some_and(|at| now.saturating_duration_since(at) < WARNING_INTERVAL);
        if lost <= self.seen || is_quiet {
            return None;
        }
        let reason = self.failed.take().map_or_else(
            || "it is written too slowly".to_owned(),
            |error| error.to_string(),
        );
        let lines = lost - self.seen;
        (self.seen, self.warned) = (lost, Some(now));
        Some((lines, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_names_the_last_error_also_when_that_is_over() {
        let began = Instant::now();
        let full = || Some(std::io::Error::other("the disk is full"));
        let slow = "it is written too slowly";
        let mut losses = Losses::default();
        for (seconds, lost, failed, expected) in [
            (0, 4, full(), Some((4, "the disk is full"))),
            (1, 150, full(), None),
            (2, 150, None, None),
            (60, 192, None, Some((188, "the disk is full"))),
            (61, 192, None, None),
            (130, 195, None, Some((3, slow))),
            (300, 195, None, None),
        ] {
            let due = losses.due(lost, failed, began + Duration::from_secs(seconds));
            let expected = expected.map(|(lines, reason)| (lines, reason.to_owned()));
            assert_eq!(due, expected, "after {seconds} s");
        }
    }
}
